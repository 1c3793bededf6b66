/** The commands on machines with guests: tables, logs, places to stop, walks through both stages, the guest's bus. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import type { MachineState, Summary } from '../../harness/index.js';
import { config, expectGolden, vfiosim } from './vfiosim.js';

const ONE = config('guest-one-mdev'), WHOLE = config('guest-whole-device'), PINNING = config('guest-vendor-pinning'), KILLED = config('vmm-killed-during-dma');
const FULL = config('memory-over-commit'), LIFE = config('guest-life');

interface Report {
  readonly device: string;
  readonly pasid?: number;
  readonly address: string;
  readonly physical?: string;
  readonly steps: { readonly stage?: string; readonly what: string; readonly level: number; readonly qwords: string[] }[];
}

async function inspect(file: string, ...argv: string[]): Promise<Report> {
  const { code, out, err } = await vfiosim('inspect', file, '--json', ...argv);
  expect({ code, err }).toEqual({ code: 0, err: '' });
  return JSON.parse(out) as Report;
}

/** What stands in each stage, and how many entries. */
function stages({ steps }: Report): string[] {
  return [...new Set(steps.map(({ stage }) => stage))].map((stage) => `${stage ?? ''}: ${steps.filter((step) => step.stage === stage).map(({ what }) => what).join(', ')}`);
}

describe('vfiosim run', () => {
  it('shows guests with their devices, and their flows under their names', async () => {
    const { code, out, err } = await vfiosim('run', ONE);
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expect(out).toContain('│ vm0   │ running │ 64 MiB │ dsa0 (83b8f4f2-509f-382f-3c1e-e6bfe0fa1001) │\n');
    expect(out).toContain('│ vm0/app/dsa0 │ dsa0   │ ok     │ 256 KiB │             0 │');
    expect(out.endsWith('\nPASS\n')).toBe(true);
  });

  it('has guests in its JSON', async () => {
    const { guests, flows } = JSON.parse((await vfiosim('run', ONE, '--json')).out) as Summary;
    expect(guests).toEqual([{ name: 'vm0', state: 'running', reason: '', memoryBytes: 64 << 20, boots: 1, devices: ['dsa0 (83b8f4f2-509f-382f-3c1e-e6bfe0fa1001)'] }]);
    expect(flows).toMatchObject([{ name: 'vm0/app/dsa0', guest: 'vm0', process: 'app' }]);
  });

  it('says why a guest was refused, naming the step, and what became of a killed one', async () => {
    const refused = (await vfiosim('run', FULL)).out.split('\n').filter((line) => line.includes(' was refused: '));
    expect(refused).toHaveLength(2);
    expect(refused[0]).toMatch(/^too-large was refused: -ENOMEM: .*VFIO_IOMMU_MAP_DMA of RAM \[0x0, 0xa000000\): no memory to pin/);
    expect(refused[1]).toMatch(/^over-limit was refused: -ENOMEM: .*RLIMIT_MEMLOCK/);
    const killed = (await vfiosim('run', KILLED)).out.split('\n');
    expect(killed).toContain('victim: VMM killed');
    expect(killed).toContain('victim/app/dsa0: VMM killed');
  });

  it('prints the logs of all kernels by time, a guest\'s lines with its name', async () => {
    const { out, err } = await vfiosim('run', LIFE, '--log');
    const lines = err.trimEnd().split('\n');
    expect(lines[0]).toMatch(/^\[ +-1\.000000\] DMAR: /);
    const booted = lines.filter((line) => /^\[vm0\] \[ +0\.\d{6}\] idxd 0000:00:04\.0: Intel\(R\) Accelerator Device \(v100\)$/.test(line));
    expect(booted).toHaveLength(2);
    const times = lines.map((line) => Number(/\[ *(-?\d+\.\d+)\]/.exec(line)![1]));
    expect(times).toEqual(times.toSorted((a, b) => a - b));
    expect((await vfiosim('run', LIFE)).out).toBe(out);
  });

  it('stops with guests: their tasks bear their names, workers that wait for the same are one line', async () => {
    const { code, out } = await vfiosim('run', ONE, '--until', '30us');
    expect(code).toBe(0);
    expect(out).toContain('\n  vm0/app, step 6 (wait): waits for ');
    expect(out).toContain('\n  vm0:/dev/dsa/wq0.0 submission: waits for descriptors of 0000:00:04.0 wq0.0 (8 times)\n');
    expect(out.endsWith('\nSTOPPED where asked\n')).toBe(true);
  });

  it('stops at a time at which guests only stand there', async () => {
    expect((await vfiosim('run', ONE, '--until', '5ms')).out).toMatch(/^guest-one-mdev {2}seed 1 {2}5 ms simulated[^]*│ vm0 {3}│ running │[^]*STOPPED where asked\n$/);
  });

  it.each([['kvm:irqfd:3', 'kvm:irqfd: vm=vm0 '], ['vmm:state', 'vmm:state: guest=vm0 state=running'], ['vfio:open_device', 'vfio:open_device: device=83b8f4f2-509f-382f-3c1e-e6bfe0fa1001 ']])('stops at %s, which guests make', async (place, text) => {
    const { out } = await vfiosim('run', ONE, '--break', place, '--json');
    const { end, state } = JSON.parse(out) as Summary & { state: MachineState };
    expect(end).toBe('stopped');
    expect(state.records.some((record) => record.includes(text))).toBe(true);
  });

  it('knows no events of guests on a machine without', async () => {
    expect((await vfiosim('run', config('quickstart'), '--break', 'kvm:irqfd')).err).toBe('--break: unknown event "kvm:irqfd".\n');
  });
});

describe('vfiosim check', () => {
  it('counts what there is', async () => {
    expect((await vfiosim('check', WHOLE, PINNING)).out).toBe(
      `${WHOLE}: ok (2 devices, 1 mediated device, 1 guest, 1 process)\n${PINNING}: ok (0 devices, 1 mediated device, 1 guest, 1 process)\n`);
  });

  it('names what a topology with guests gets wrong, each with its place', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'vfiosim-guests-'));
    try {
      const file = join(directory, 'wrong.yaml');
      writeFileSync(file, `version: 1
host: { iommu: { model: intel-vtd }, devices: [{ model: dsa, name: dsa0, bdf: "6a:01.0" }] }
mdevs: [{ uuid: 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001, name: slice0, parent: dsa0, mdev_type: idxd-1dwq-v1 }]
guests:
  - name: vm0
    memory: 1MiB
    devices: [{ mdev: slice1 }, { host: dsa0, bdf: "0000:01:00.0" }]
inject: [{ at: 1us, pause: vm1 }]
`);
      const { code, err } = await vfiosim('check', file);
      expect(code).toBe(3);
      expect(err.replaceAll(file, 'wrong.yaml').trimEnd().split('\n')).toEqual([
        'wrong.yaml:3:94: mdevs[0].mdev_type: needs a dedicated work queue of type mdev on "dsa0", which has none',
        'wrong.yaml:6:13: guests[0].memory: 1 MiB are too small; allowed: at least 4 MiB',
        'wrong.yaml:7:23: guests[0].devices[0].mdev: unknown mediated device "slice1"; did you mean "slice0"? Allowed: slice0, 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001',
        'wrong.yaml:7:52: guests[0].devices[1].bdf: "0000:01:00.0" is not on the guest\'s bus; allowed: "0000:00:01.0" to "0000:00:1f.0"',
        'wrong.yaml:7:41: guests[0].devices[1].host: "dsa0" is the parent of mediated devices, so nobody can have it as a whole',
        'wrong.yaml:8:28: inject[0].pause: unknown guest "vm1"; did you mean "vm0"? Allowed: vm0',
      ]);
    } finally {
      rmSync(directory, { recursive: true });
    }
  });
});

describe('vfiosim inspect', () => {
  it('walks a guest\'s buffer through both stages, and as the device goes', async () => {
    const { code, out, err } = await vfiosim('inspect', ONE, '--walk', 'vm0/app/source+0x1000');
    expect({ code, err }).toEqual({ code: 0, err: '' });
    expectGolden('inspect-guest-buffer.txt', out);
  });

  it('prints the same as JSON: every entry of every stage, and one physical address', async () => {
    const report = await inspect(ONE, '--walk', 'vm0/app/source+0x1000');
    expect(stages(report)).toEqual([
      'guest-virtual → guest-physical (entries at guest-physical addresses): guest, guest, guest, guest',
      'guest-physical → VMM virtual: memory slot 0',
      'VMM virtual → host-physical: VMM, VMM, VMM, VMM',
      expect.stringMatching(/^IOVA 0x[0-9a-f]+000 → host-physical, as the device goes \(PASID \d+\): root, context, pasid-directory, pasid, second-level, second-level, second-level, second-level$/) as string,
    ]);
    // the VMM's leaf and the IOMMU's name the same frame
    const frames = report.steps.filter(({ level, what }) => level === 0 && (what === 'VMM' || what === 'second-level')).map(({ qwords }) => (BigInt(qwords[0]!) >> 12n) & 0xff_ffff_ffffn);
    expect(frames).toEqual([BigInt(report.physical!) >> 12n, BigInt(report.physical!) >> 12n]);
  });

  it('goes on from the guest-physical address, which is the I/O virtual address of the mediated device', async () => {
    const guest = await inspect(ONE, '--walk', 'vm0:dsa0/app/source+0x10');
    const iova = /IOVA (0x[0-9a-f]+)/.exec(guest.steps.at(-1)!.stage!)![1]!;
    const device = await inspect(ONE, '--walk', `slice0/-/${iova}`);
    expect(device).toMatchObject({ device: 'dsa0', pasid: guest.pasid, physical: guest.physical });
    expect(await inspect(ONE, '--walk', `83b8f4f2-509f-382f-3c1e-e6bfe0fa1001/-/${iova}`)).toEqual(device);
    expect(await inspect(ONE, '--walk', `dsa0/${guest.pasid}/${iova}`)).toEqual(device);
  });

  it('takes a whole device without PASID, and the slice beside it with one, to the same page', async () => {
    const [whole, slice] = [await inspect(WHOLE, '--walk', 'vm0:whole/app/source'), await inspect(WHOLE, '--walk', 'vm0:slice/app/source')];
    expect([whole.pasid, slice.pasid]).toEqual([undefined, 1]);
    expect(slice.physical).toBe(whole.physical);
    expect(await inspect(WHOLE, '--walk', 'vm0/app/source')).toEqual(whole);
  });

  it('says that a parent which pins has no IOMMU behind it', async () => {
    expect(stages(await inspect(PINNING, '--walk', 'vm0/app/source')).at(-1)).toBe('as the device goes: pinned on demand');
  });

  it('shows where a walk ends: pages that the guest has not touched', async () => {
    const { out } = await vfiosim('inspect', ONE, '--walk', 'vm0/app/0x10000000', '--at', '30us');
    expect(out).toContain('\nno translation: the guest process has no page there\n');
  });

  it.each([
    [ONE, 'vm0/app/source', '0ns', 'guest vm0 is starting at this moment; --at names another'],
    [FULL, 'small/app/source', '1ms', 'guest small is off at this moment; --at names another'],
    [FULL, 'too-large/app/source', '20ms', 'guest too-large is refused at this moment; --at names another'],
    [KILLED, 'victim/app/source', '1ms', 'guest victim is killed at this moment; --at names another'],
    [ONE, 'vm0/app/source', '1ms', 'process app of vm0 has ended at this moment; --at names another'],
    [ONE, 'vm0/ap/source', '30us', 'unknown process of vm0 "ap"; did you mean "app"? Allowed: app'],
    [ONE, 'vm0/1/0x1000', '30us', 'in a guest the part in the middle is a process, such as vm0/app/…; its devices\' PASIDs are the host\'s'],
    [ONE, 'vm0/app/sorce', '30us', 'process app of vm0 has no buffer "sorce" at this moment'],
    [ONE, 'vm0:dsa1/app/source', '30us', 'unknown device of vm0 "dsa1"; did you mean "dsa0"? Allowed: dsa0'],
    [ONE, 'vm1/app/source', '30us', 'unknown device "vm1"; did you mean "vm0"? Allowed: dsa0, slice0, vm0'],
    [ONE, 'dsa0/app/source', '30us', 'unknown process "app". There is none'],
    [ONE, 'slice0/1/0x1000', '30us', 'a mediated device has one PASID, its aux domain\'s: slice0/-/0x… walks an I/O virtual address'],
    [KILLED, 'slice0/-/0x1000', '1ms', 'slice0 has no aux domain at this moment: nobody has it open in a container; --at names another'],
    [PINNING, 'serial0/-/0x1000', '30us', 'no IOMMU isolates serial0: mtty0 pins its pages itself'],
  ])('%s: refuses %s at %s', async (file, target, at, message) => {
    expect(await vfiosim('inspect', file, '--walk', target, '--at', at)).toEqual({ code: 2, out: '', err: `--walk: ${message}\n` });
  });
});

describe('vfiosim lspci --guest', () => {
  let directory: string;
  beforeAll(() => { directory = mkdtempSync(join(tmpdir(), 'vfiosim-lspci-')); });
  afterAll(() => { rmSync(directory, { recursive: true }); });

  it('prints what a guest sees, with lspci\'s flags', async () => {
    expect((await vfiosim('lspci', WHOLE, '--guest', 'vm0', '-nn')).out).toBe('00:04.0 System peripheral [0880]: Intel Corporation Device [8086:0b25]\n00:05.0 System peripheral [0880]: Intel Corporation Device [8086:0b25]\n');
    expect((await vfiosim('lspci', PINNING, '--guest', 'vm0', '-s', '04.0')).out).toBe('00:04.0 Serial controller: Device 4348:3253 (rev 10)\n');
  });

  it('shows a whole device without ATS, page requests and PASIDs', async () => {
    const host = (await vfiosim('lspci', WHOLE, '-vv', '-s', '6a:01.0')).out, guest = (await vfiosim('lspci', WHOLE, '--guest', 'vm0', '-vv', '-s', '04.0')).out;
    for (const capability of ['Address Translation Service', 'Process Address Space ID', 'Page Request Interface']) expect([host.includes(capability), guest.includes(capability)]).toEqual([true, false]);
    expectGolden('lspci-guest-whole-vv.txt', guest);
  });

  it('says why a guest does not run, and names the guests there are', async () => {
    const refused = await vfiosim('lspci', FULL, '--guest', 'over-limit');
    expect({ ...refused, err: '' }).toEqual({ code: 1, out: '', err: '' });
    expect(refused.err).toMatch(/^guest over-limit was refused: -ENOMEM: .*RLIMIT_MEMLOCK/);
    expect(await vfiosim('lspci', ONE, '--guest', 'vm1')).toEqual({ code: 2, out: '', err: '--guest: unknown guest "vm1"; did you mean "vm0"? Allowed: vm0\n' });
    expect((await vfiosim('lspci', config('quickstart'), '--guest', 'vm0')).err).toBe('--guest: unknown guest "vm0". There is none\n');
  });
});
