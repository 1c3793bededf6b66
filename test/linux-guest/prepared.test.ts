/** Finding QEMU and the guest's Linux, in folders with programs that answer as QEMU does. */
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { defaultDirectory, findLinux, prepareScript } from '../../harness/linux/prepared.js';

let home: string;
let dir: string;

beforeEach(() => {
  home = mkdtempSync(join(tmpdir(), 'vfiosim-linux-'));
  dir = join(home, 'linux');
});
afterEach(() => rmSync(home, { recursive: true, force: true }));

function put(path: string, text: string): string {
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, text);
  return path;
}

function guest(): void {
  put(join(dir, 'vmlinuz'), 'kernel');
  put(join(dir, 'initrd.gz'), 'initramfs');
  put(join(dir, 'release'), '7.3.4+deb13-amd64\n');
}

/** A program that says its version and knows vfio-user-pci, or does not. */
function emulator(path: string, version: string, vfioUser = true): string {
  put(path, `#!/bin/sh\nfor word; do [ "$word" = --version ] && { echo "QEMU emulator version ${version} (Debian)"; exit 0; }; done\nexit ${vfioUser ? 0 : 1}\n`);
  chmodSync(path, 0o755);
  return path;
}

/** The prepared root: its loader answers in QEMU's place, as it is what is run. */
function preparedRoot(version: string): string {
  put(join(dir, 'rootfs/.qemu-complete'), '');
  return emulator(join(dir, 'rootfs/lib64/ld-linux-x86-64.so.2'), version);
}

function sentences(env: Record<string, string> = {}, qemu?: string): readonly string[] {
  const found = findLinux({ dir, env, ...(qemu === undefined ? {} : { qemu }) });
  return 'missing' in found ? found.missing : [];
}

describe.runIf(process.platform === 'linux')('findLinux', () => {
  test('the prepared QEMU is run through the prepared root’s loader, with its libraries and firmware', () => {
    guest();
    const loader = preparedRoot('11.1.3');
    const found = findLinux({ dir, env: { PATH: dirname(emulator(join(home, 'bin/qemu-system-x86_64'), '12.0.0')) } });
    expect(found).toMatchObject({ linux: { version: '11.1.3', kernel: join(dir, 'vmlinuz'), initrd: join(dir, 'initrd.gz'), kernelRelease: '7.3.4+deb13-amd64' } });
    const argv = 'linux' in found ? found.linux.qemu : [];
    expect(argv[0]).toBe(loader);
    expect(argv).toContain(join(dir, 'rootfs/usr/bin/qemu-system-x86_64'));
    expect(argv.filter((word) => word === '-L')).toHaveLength(2);
  });

  test('without a prepared QEMU, the system’s will do', () => {
    guest();
    const path = emulator(join(home, 'bin/qemu-system-x86_64'), '10.1.0');
    expect(findLinux({ dir, env: { PATH: `/nowhere:${dirname(path)}` } })).toMatchObject({ linux: { qemu: [path], version: '10.1.0' } });
  });

  test('one that is asked for is taken before the prepared one, and instead of it', () => {
    guest();
    preparedRoot('11.1.3');
    const mine = emulator(join(home, 'mine'), '10.2.1');
    expect(findLinux({ dir, qemu: mine, env: {} })).toMatchObject({ linux: { qemu: [mine] } });
    expect(sentences({}, join(home, 'absent'))[0]).toMatch(/absent is not a program/);
  });

  test('says that QEMU is too old, or built without vfio-user', () => {
    guest();
    expect(sentences({}, emulator(join(home, 'old'), '10.0.8'))[0]).toMatch(/old is version 10\.0\.8; .* since 10\.1/);
    expect(sentences({}, emulator(join(home, 'older'), '9.2.0'))[0]).toMatch(/version 9\.2\.0/);
    expect(sentences({}, emulator(join(home, 'without'), '11.0.0', false))[0]).toMatch(/without the device vfio-user-pci/);
  });

  test('says all that is missing, and last what to run', () => {
    const nothing = sentences();
    expect(nothing[0]).toContain(`${dir} does not exist`);
    expect(nothing[1]).toMatch(/no QEMU/);
    expect(nothing.at(-1)).toBe(`Run, on a Debian, once (three minutes, 700 MB): sudo ${prepareScript()} ${dir}`);
    guest();
    rmSync(join(dir, 'initrd.gz'));
    expect(sentences().map((sentence) => sentence.split(':')[0])).toEqual([`${join(dir, 'initrd.gz')} is missing`, expect.stringMatching(/^There is no QEMU/), expect.stringMatching(/^Run/)]);
  });

  test('a program that is no QEMU is named with what it says', () => {
    guest();
    const broken = put(join(home, 'broken'), '#!/bin/sh\necho cannot open shared object >&2\nexit 127\n');
    chmodSync(broken, 0o755);
    expect(sentences({}, broken)[0]).toBe(`${broken} does not run: cannot open shared object`);
  });
});

describe.runIf(process.platform === 'linux')('defaultDirectory', () => {
  test('VFIOSIM_LINUX, then the cache folder, then ~/.cache; empty counts as absent', () => {
    expect(defaultDirectory({ VFIOSIM_LINUX: '/a', XDG_CACHE_HOME: '/b', HOME: '/c' })).toBe('/a');
    expect(defaultDirectory({ VFIOSIM_LINUX: '', XDG_CACHE_HOME: '/b', HOME: '/c' })).toBe('/b/vfiosim/linux');
    expect(defaultDirectory({ XDG_CACHE_HOME: '', HOME: '/c' })).toBe('/c/.cache/vfiosim/linux');
  });
});
