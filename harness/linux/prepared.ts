/**
 * Finds what `prepare` made, or a QEMU of the system that will do, and says in sentences what is missing. QEMU of the
 * prepared root is run through that root's own dynamic loader, so it needs neither chroot nor root, and sees sockets
 * and files where everybody else does. Facts: vfio-user-pci is in QEMU since 10.1 (its ChangeLog); ld.so(8).
 */
import { spawnSync } from 'node:child_process';
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { delimiter, join, resolve } from 'node:path';
import { fileURLToPath } from 'node:url';

export interface PreparedLinux {
  readonly directory: string;
  /** Program and first arguments; `qemuArguments` follow. */
  readonly qemu: readonly string[];
  /** Of QEMU: `11.1.3`. */
  readonly version: string;
  readonly kernel: string;
  readonly initrd: string;
  /** `7.3.4+deb13-amd64` */
  readonly kernelRelease: string;
}

export type LinuxSearch = { readonly linux: PreparedLinux } | { readonly missing: readonly string[] };

export interface LinuxPlaces {
  /** What `prepare` was given; default: `defaultDirectory`. */
  readonly dir?: string;
  /** This QEMU and no other; a program's path, or its name on PATH. */
  readonly qemu?: string;
  /** VFIOSIM_LINUX, XDG_CACHE_HOME, HOME, PATH; default: of the process. */
  readonly env?: Readonly<Record<string, string | undefined>>;
}

const PROGRAM = 'qemu-system-x86_64';
const OLDEST = [10, 1] as const;
const PROBE_TIMEOUT_MS = 20_000;

/** `$VFIOSIM_LINUX`, or `vfiosim/linux` in the user's cache folder: the same rule as in `prepare`. */
export function defaultDirectory(env: Readonly<Record<string, string | undefined>> = process.env): string {
  if ((env['VFIOSIM_LINUX'] ?? '') !== '') return resolve(env['VFIOSIM_LINUX']!);
  const cache = (env['XDG_CACHE_HOME'] ?? '') === '' ? join(env['HOME'] ?? '/root', '.cache') : env['XDG_CACHE_HOME']!;
  return join(cache, 'vfiosim/linux');
}

/** Our script, from a checkout and from dist/ of the package. */
export function prepareScript(): string {
  const places = ['.', '../../../harness/linux'].map((up) => fileURLToPath(new URL(`${up}/prepare`, import.meta.url)));
  return places.find(existsSync) ?? places[0]!;
}

/** QEMU, kernel and initramfs; or everything that is missing, each a sentence, the last of them says what to do. */
export function findLinux({ dir, qemu, env = process.env }: LinuxPlaces = {}): LinuxSearch {
  const directory = resolve(dir ?? defaultDirectory(env));
  const missing: string[] = [];
  const kernel = join(directory, 'vmlinuz');
  const initrd = join(directory, 'initrd.gz');
  const release = join(directory, 'release');
  if (!existsSync(directory)) missing.push(`${directory} does not exist; it is where the guest's Linux and its QEMU are prepared.`);
  else if (!readable(directory)) missing.push(`${directory} cannot be read by this user.`);
  else {
    if (!readable(kernel) || !readable(release)) missing.push(`${kernel} is missing: the guest's kernel.`);
    if (!readable(initrd)) missing.push(`${initrd} is missing: the guest's first processes.`);
  }
  const emulator = findQemu(directory, qemu, env);
  if ('missing' in emulator) missing.push(emulator.missing);
  if (missing.length > 0 || 'missing' in emulator) return { missing: [...missing, remedy(directory, dir)] };
  return { linux: { directory, ...emulator, kernel, initrd, kernelRelease: readFileSync(release, 'utf8').trim() } };
}

type Emulator = { readonly qemu: readonly string[]; readonly version: string } | { readonly missing: string };

/** The one asked for; or the prepared one; or the system's. */
function findQemu(directory: string, asked: string | undefined, env: Readonly<Record<string, string | undefined>>): Emulator {
  if (asked !== undefined) {
    const path = asked.includes('/') ? resolve(asked) : onPath(asked, env);
    return path === undefined || !executable(path) ? { missing: `${asked} is not a program that can be run.` } : probe([path]);
  }
  const root = join(directory, 'rootfs');
  if (existsSync(join(root, '.qemu-complete'))) return probe(preparedQemu(root));
  const path = onPath(PROGRAM, env);
  return path === undefined ? { missing: `There is no QEMU: neither in ${root} nor as ${PROGRAM} on the PATH.` } : probe([path]);
}

/** The prepared root's QEMU with its loader, libraries and firmware. */
export function preparedQemu(root: string): string[] {
  return [
    join(root, 'lib64/ld-linux-x86-64.so.2'), '--library-path', join(root, 'usr/lib/x86_64-linux-gnu'), join(root, 'usr/bin', PROGRAM),
    '-L', join(root, 'usr/share/qemu'), '-L', join(root, 'usr/share/seabios'),
  ];
}

function probe(qemu: readonly string[]): Emulator {
  const name = qemu.find((word) => word.endsWith(PROGRAM)) ?? qemu[0]!;
  const asked = run([...qemu, '--version']);
  const version = /version (\d+)\.(\d+)(?:\.\d+)*/.exec(asked.text);
  if (!asked.failed && version === null) return { missing: `${name} is no QEMU: it does not say which version it is.` };
  if (asked.failed || version === null) return { missing: `${name} does not run: ${asked.text.trim().split('\n').at(-1) ?? ''}` };
  const number = version[0].replace('version ', '');
  const [major, minor] = [Number(version[1]), Number(version[2])];
  if (major < OLDEST[0] || (major === OLDEST[0] && minor < OLDEST[1])) return { missing: `${name} is version ${number}; the vfio-user client is in QEMU since ${OLDEST.join('.')}.` };
  if (run([...qemu, '-machine', 'none', '-device', 'vfio-user-pci,help']).failed) return { missing: `${name} (version ${number}) was built without the device vfio-user-pci.` };
  return { qemu, version: number };
}

function run(argv: readonly string[]): { readonly failed: boolean; readonly text: string } {
  const done = spawnSync(argv[0]!, argv.slice(1), { encoding: 'utf8', timeout: PROBE_TIMEOUT_MS, stdio: ['ignore', 'pipe', 'pipe'] });
  return { failed: done.status !== 0, text: done.error?.message ?? done.stdout + done.stderr };
}

function onPath(program: string, env: Readonly<Record<string, string | undefined>>): string | undefined {
  const folders = (env['PATH'] ?? '').split(delimiter).filter((folder) => folder !== '');
  return folders.map((folder) => join(folder, program)).find(executable);
}

function remedy(directory: string, asked: string | undefined): string {
  const argument = asked === undefined ? '' : ` ${directory}`;
  return `Run, on a Debian, once (three minutes, 700 MB): sudo ${prepareScript()}${argument}`;
}

function accessible(path: string, mode: number): boolean {
  try {
    accessSync(path, mode);
    return true;
  } catch {
    return false;
  }
}

function readable(path: string): boolean {
  return accessible(path, constants.R_OK);
}

function executable(path: string): boolean {
  return accessible(path, constants.X_OK);
}
