/** The command for QEMU, and how it is shown. */
import { spawnSync } from 'node:child_process';
import { describe, expect, test } from 'vitest';
import { kernelCommandLine, qemuArguments, shellText } from '../../harness/linux/qemu-command.js';
import { InvalidInput } from '../../harness/topology/problems.js';

const DEVICES = [{ socket: '/run/a/iommu.sock', slot: '02.0' }, { socket: '/run/a/dsa,0 "x".sock', slot: '04.0' }];

/** The values behind each occurrence of an option. */
function values(argv: readonly string[], option: string): string[] {
  return argv.flatMap((word, at) => (word === option ? [argv[at + 1]!] : []));
}

describe('qemuArguments', () => {
  test('the RAM is a shared memory file of the size of the machine', () => {
    const argv = qemuArguments({ memoryMiB: 768, devices: [] });
    expect(values(argv, '-m')).toEqual(['768']);
    expect(values(argv, '-object')).toEqual(['memory-backend-memfd,id=ram,size=768M,share=on']);
    expect(values(argv, '-machine')).toContain('memory-backend=ram');
  });

  test('no device of QEMU’s own does DMA or takes the address of the IOMMU’s registers, and a reboot ends QEMU', () => {
    const argv = qemuArguments({ memoryMiB: 512, devices: [] });
    expect(values(argv, '-vga')).toEqual(['none']);
    expect(values(argv, '-nic')).toEqual(['none']);
    expect(argv).toContain('-no-reboot');
  });

  test('devices come in the order given, each on its slot, whatever is in the path of its socket', () => {
    const devices = values(qemuArguments({ memoryMiB: 512, devices: DEVICES }), '-device').map((text) => JSON.parse(text) as unknown);
    expect(devices).toEqual(DEVICES.map(({ socket, slot }) => ({ driver: 'vfio-user-pci', socket: { type: 'unix', path: socket }, bus: 'pcie.0', addr: slot })));
  });

  test('what belongs to a kernel is there only with one', () => {
    const without = qemuArguments({ memoryMiB: 512, initrd: 'i', append: 'a', devices: [] });
    expect(without).not.toContain('-initrd');
    expect(without).not.toContain('-append');
    const all = qemuArguments({ memoryMiB: 512, kernel: 'k', initrd: 'i', append: 'a b', devices: [] });
    expect([values(all, '-kernel'), values(all, '-initrd'), values(all, '-append')]).toEqual([['k'], ['i'], ['a b']]);
  });

  test('a comma in the table’s path is doubled, a colon refused', () => {
    expect(values(qemuArguments({ memoryMiB: 512, table: '/a,b/dmar.aml', devices: [] }), '-acpitable')).toEqual(['file=/a,,b/dmar.aml']);
    expect(() => qemuArguments({ memoryMiB: 512, table: '/a:b/dmar.aml', devices: [] })).toThrow(InvalidInput);
  });
});

describe('kernelCommandLine', () => {
  test('names steps and settings, and what is extra comes last', () => {
    const words = kernelCommandLine({ run: ['nvme', 'dsa'], settings: { wqs: 4 }, extra: 'iommu.strict=1' }).split(' ');
    expect(words).toContain('vfiosim.run=nvme,dsa');
    expect(words).toContain('vfiosim.wqs=4');
    expect(words).toContain('console=ttyS0');
    expect(words.at(-1)).toBe('iommu.strict=1');
  });
});

describe('shellText', () => {
  test('one option a line, its value behind it', () => {
    expect(shellText(['qemu', '-m', '512', '-nographic', '-device', 'x,y=1'])).toBe('qemu \\\n  -m 512 \\\n  -nographic \\\n  -device x,y=1');
  });

  test.runIf(process.platform !== 'win32')('a shell that reads it sees the same words', () => {
    const argv = ['printf', '%s\\n', '-append', 'a b  c', '{"path":"/tmp/$HOME/`x`"}', "it's", '', '*', '~', 'tab\there', 'two\nlines', 'ümlaut', '\\'];
    const said = spawnSync('sh', ['-c', shellText(['printf', '%s\\0', ...argv])], { encoding: 'utf8' }).stdout;
    expect(said.split('\0').slice(0, -1)).toEqual(argv);
  });
});
