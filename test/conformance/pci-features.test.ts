/* oxlint-disable require-yield -- drivers and listeners that have nothing to wait for */
/**
 * ATS, PRI, PASID, SR-IOV, function level reset and IOMMU groups of PCI functions: requirements A2, A8, C16, section
 * 3.4, E36–E38, scenarios 30 and 31. Every refusal is followed by a look at all 4096 bytes: nothing has changed.
 */
import { describe, expect, it } from 'vitest';
import { PCI_ACS_CR, PCI_ACS_RR, PCI_ACS_SV, PCI_ACS_UF, PCI_EXP_TYPE_RC_END } from '../../host/pci/spec/index.js';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { IDLE, ISOLATING, MEMORY, only, PciWorld, TRANSLATING } from '../fixtures/pci-world.js';
import type { PciFunctionOptions } from '../../host/pci/hardware/pci-function.js';
import type { PciCore, PciCoreOptions, PciFunctionDevice } from '../../host/pci/kernel/index.js';
import type { ErrnoName } from '../../sim/errno.js';

const ATS = 0x0f, PRI = 0x13, PASID = 0x1b;
const INTEGRATED = { deviceType: PCI_EXP_TYPE_RC_END } as const;

interface Bench {
  readonly world: PciWorld;
  readonly core: PciCore;
  readonly fn: PciFunction;
  readonly device: PciFunctionDevice;
}

/** One function on the root bus. */
function bench(options: Partial<PciFunctionOptions> = {}, core: Partial<PciCoreOptions> = {}): Bench {
  const world = new PciWorld();
  const fn = world.fn(world.root, 0x08, { ...INTEGRATED, ...TRANSLATING, ...options });
  const kernel = world.core(core);
  kernel.enumerate();
  return { world, core: kernel, fn, device: only(kernel, '0000:00:01.0') };
}

/** Asserts the errno and that no byte of the function changed. */
function refuses(code: ErrnoName, world: PciWorld, device: PciFunctionDevice, call: () => void): void {
  const before = world.bytesOf(device), writes = world.writes;
  expect(call).toThrow(`-${code}:`);
  expect(world.bytesOf(device)).toBe(before);
  expect(world.writes).toBe(writes);
}

function word(device: PciFunctionDevice, capability: number, offset: number): number {
  return device.config.read(device.findExtCapability(capability)! + offset, 2);
}

describe('ATS', () => {
  it('writes the translation unit and the enable bit (3.4, PCI-ATSCTRL, PCI-ATSCTRL16K)', () => {
    const { device } = bench();
    device.enableAts(12);
    expect(word(device, ATS, 6)).toBe(0x8000);
    device.disableAts();
    expect(word(device, ATS, 6)).toBe(0x0000);
    device.enableAts(14);
    expect(word(device, ATS, 6)).toBe(0x8002);
    device.disableAts();
    expect(word(device, ATS, 6)).toBe(0x0002);
  });

  it('refuses without the capability, behind an external-facing port, twice, and below 4 KiB (A8, E36)', () => {
    const without = new PciWorld();
    without.fn(without.root, 0x08);
    const plain = without.core();
    plain.enumerate();
    refuses('EINVAL', without, plain.devices[0]!, () => plain.devices[0]!.enableAts(12));
    const { world, device } = bench();
    refuses('EINVAL', world, device, () => device.enableAts(11));
    device.enableAts(12);
    // enabled comes before the unit
    refuses('EBUSY', world, device, () => device.enableAts(11));
    const outside = new PciWorld();
    outside.fn(outside.rootPort(0x08, { acs: 0x1f }).secondary, 0, TRANSLATING);
    const core = outside.core({ externalFacing: new Set(['0000:00:01.0']) });
    core.enumerate();
    const stranger = only(core, '0000:01:00.0');
    expect(stranger.atsSupported).toBe(false);
    refuses('EINVAL', outside, stranger, () => stranger.enableAts(12));
    // translated requests are blocked at the port (3.4)
    expect(word(only(core, '0000:00:01.0'), 0x0d, 6)).toBe(0x001f);
  });

  it('reads the queue depth, in which 0 means 32 (3.4)', () => {
    expect(bench().device.atsQueueDepth).toBe(32);
    expect(bench({ ats: { queueDepth: 5, pageAligned: false } }).device.atsQueueDepth).toBe(5);
  });
});

describe('PRI', () => {
  it('allocates the lesser of capacity and wish, then enables (3.4)', () => {
    const { device } = bench();
    const at = device.findExtCapability(PRI)!;
    device.enablePri(2048);
    expect([device.config.read(at + 8, 4), device.config.read(at + 12, 4), device.config.read(at + 4, 2)]).toEqual([512, 512, 1]);
    device.disablePri();
    expect(device.config.read(at + 4, 2)).toBe(0);
    device.enablePri(32);
    expect(device.config.read(at + 12, 4)).toBe(32);
  });

  it('refuses twice, without the capability, and a reset while it is on (3.4)', () => {
    const { world, device } = bench();
    device.enablePri(32);
    refuses('EBUSY', world, device, () => device.enablePri(32));
    refuses('EBUSY', world, device, () => device.resetPri());
    device.disablePri();
    device.resetPri();
    const other = new PciWorld();
    other.fn(other.root, 0x08);
    const core = other.core();
    core.enumerate();
    const plain = core.devices[0]!;
    expect(plain.priSupported).toBe(false);
    refuses('EINVAL', other, plain, () => plain.enablePri(32));
    refuses('EINVAL', other, plain, () => plain.resetPri());
  });

  it('refuses while requests are outstanding and the function has not stopped (E37)', () => {
    const { world, fn, device } = bench();
    fn.config.setBits(device.findExtCapability(PRI)! + 6, 2, 0x100, false);
    refuses('EBUSY', world, device, () => device.enablePri(32));
    const lax = bench({}, { defects: new Set(['pci.pri-enable-not-stopped']) });
    lax.fn.config.setBits(lax.device.findExtCapability(PRI)! + 6, 2, 0x100, false);
    expect(() => lax.device.enablePri(32)).not.toThrow();
  });

  it('says whether responses must carry the PASID', () => {
    expect(bench().device.prgResponsePasidRequired).toBe(true);
    expect(bench({ pri: { maxRequests: 8, prgResponsePasidRequired: false } }).device.prgResponsePasidRequired).toBe(false);
  });
});

describe('PASID', () => {
  it('writes enable and features; 2^width PASIDs (3.4)', () => {
    const { device } = bench({ pasid: { width: 16, exec: true, priv: true } });
    expect(device.maxPasids()).toBe(65_536);
    expect(device.pasidFeatures).toBe(6);
    device.enablePasid(4);
    expect(word(device, PASID, 6)).toBe(0x0005);
    device.disablePasid();
    expect(word(device, PASID, 6)).toBe(0x0000);
  });

  it('refuses twice and an unsupported feature (3.4)', () => {
    const { world, device } = bench();
    refuses('EINVAL', world, device, () => device.enablePasid(2));
    device.enablePasid(0);
    refuses('EBUSY', world, device, () => device.enablePasid(0));
  });

  it('refuses without the capability', () => {
    const world = new PciWorld();
    world.fn(world.root, 0x08, INTEGRATED);
    const core = world.core();
    core.enumerate();
    const device = core.devices[0]!;
    expect(device.pasidSupported).toBe(false);
    refuses('EINVAL', world, device, () => device.enablePasid(0));
    expect(() => device.maxPasids()).toThrow('-EINVAL');
  });

  it('needs end-end TLP prefixes of the function and of every port above it (E38)', () => {
    for (const [fn, port, works] of [[true, true, true], [false, true, false], [true, false, false]] as const) {
      const world = new PciWorld();
      world.fn(world.rootPort(0x08, { e2eTlpPrefix: port }).secondary, 0, { ...TRANSLATING, e2eTlpPrefix: fn });
      const core = world.core();
      core.enumerate();
      const device = only(core, '0000:01:00.0');
      if (works) device.enablePasid(0);
      else refuses('EINVAL', world, device, () => device.enablePasid(0));
      expect(device.pasidEnabled).toBe(works);
    }
  });

  it('is enabled before ATS and disabled after it (A2)', () => {
    const { world, fn, device } = bench();
    device.enableAts(12);
    refuses('EBUSY', world, device, () => device.enablePasid(0));
    device.disableAts();
    device.enablePasid(0);
    device.enableAts(12);
    refuses('EBUSY', world, device, () => device.disablePasid());
    device.disableAts();
    device.disablePasid();
    expect(fn.violations).toBe(0);
  });
});

describe('scalable I/O virtualization', () => {
  it('is announced by the DVSEC of vendor 8086 with id 5 (F1)', () => {
    expect(bench({ siov: true }).device.siov).toBe(true);
    expect(bench().device.siov).toBe(false);
  });
});

/** A physical function with four VFs that have ATS and a BAR. */
function sriovBench(core: Partial<PciCoreOptions> = {}, options: { firstVfOffset?: number; lastBus?: number } = {}): Bench {
  const world = new PciWorld();
  const vf: Partial<PciFunctionOptions> = { ats: { queueDepth: 32, pageAligned: true }, bars: [{ index: 0, sizeBytes: 0x4000, prefetchable: false, is64: true }] };
  const fn = world.fn(world.rootPort(0x08).secondary, 0, {
    ...TRANSLATING,
    bars: [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: true }],
    sriov: {
      totalVfs: 4, vfDeviceId: 0x0b26, firstVfOffset: options.firstVfOffset ?? 1, vfBars: [{ index: 0, sizeBytes: 0x4000, prefetchable: false, is64: true }],
      createVf: (physfn, index) => new PciFunction({ ...IDLE, ...vf, name: `vf${index}`, physfn }),
    },
  });
  const kernel = world.core({ rootBuses: [{ segment: 0, bus: 0, lastBus: options.lastBus ?? 0xff }], ...core });
  kernel.enumerate();
  return { world, core: kernel, fn, device: only(kernel, '0000:01:00.0') };
}

describe('SR-IOV', () => {
  it('sizes VF BARs for all VFs and gives each its slice', () => {
    const { world, core, device } = sriovBench();
    const vfs = world.run(core.enableSriov(device, 3));
    expect(vfs.map((vf) => [vf.name, vf.vendorId, vf.deviceId, vf.physfn === device])).toEqual([
      ['0000:01:00.1', 0x8086, 0x0b26, true], ['0000:01:00.2', 0x8086, 0x0b26, true], ['0000:01:00.3', 0x8086, 0x0b26, true],
    ]);
    const { start } = device.sriov!.bars[0]!;
    expect(start! % 0x4000).toBe(0);
    expect(vfs.map((vf) => vf.resource(0))).toEqual([0, 1, 2].map((i) => ({ start: start! + i * 0x4000, sizeBytes: 0x4000 })));
    const at = device.findExtCapability(0x10)!;
    // NumVFs 3; VF enable and VF memory space
    expect([device.config.read(at + 0x10, 2), device.config.read(at + 0x08, 2)]).toEqual([3, 0x0009]);
    // the function and three VFs decode
    expect(world.systemBus.list()).toHaveLength(4);
    expect(vfs.every((vf) => vf.present)).toBe(true);
    // VF Enable is given 100 ms
    expect(world.clock.now).toBe(100_000_000);
  });

  it('takes them away again', () => {
    const { world, core, device } = sriovBench();
    const gone: string[] = [];
    core.subscribe({ *deviceRemoved(vf) { gone.push(vf.name); } });
    world.run(core.enableSriov(device, 2));
    world.run(core.disableSriov(device));
    expect(gone).toEqual(['0000:01:00.2', '0000:01:00.1']);
    const at = device.findExtCapability(0x10)!;
    expect([device.config.read(at + 0x10, 2), device.config.read(at + 0x08, 2)]).toEqual([0, 0]);
    expect(core.devices.map((one) => one.name)).toEqual(['0000:00:01.0', '0000:01:00.0']);
    expect(world.run(core.enableSriov(device, 4))).toHaveLength(4);
  });

  it('removes VFs before their physical function', () => {
    const { world, core, device } = sriovBench();
    world.run(core.enableSriov(device, 1));
    const gone: string[] = [];
    core.subscribe({ *deviceRemoved(one) { gone.push(one.name); } });
    world.run(core.remove(device));
    expect(gone).toEqual(['0000:01:00.1', '0000:01:00.0']);
    expect(world.systemBus.list()).toEqual([]);
    expect(world.complex.functions()).toHaveLength(1);
  });

  it('refuses more than there are, twice, without the capability', () => {
    const { world, core, device } = sriovBench();
    refuses('EINVAL', world, device, () => world.run(core.enableSriov(device, 5)));
    world.run(core.enableSriov(device, 1));
    refuses('EINVAL', world, device, () => world.run(core.enableSriov(device, 1)));
    const bridge = only(core, '0000:00:01.0');
    refuses('ENOSYS', world, bridge, () => world.run(core.enableSriov(bridge, 1)));
  });

  it('refuses VFs whose bus number lies behind the last', () => {
    // offset 256 is the next bus, and only bus 1 is there
    const { world, core, device } = sriovBench({}, { firstVfOffset: 256, lastBus: 1 });
    const before = world.bytesOf(device);
    expect(() => world.run(core.enableSriov(device, 1))).toThrow('-ENOMEM');
    expect(world.bytesOf(device)).toBe(before);
    // with room it works, and the port's range holds bus 2
    const roomy = sriovBench({}, { firstVfOffset: 256 });
    expect(roomy.world.run(roomy.core.enableSriov(roomy.device, 1))[0]!.name).toBe('0000:02:00.0');
    expect(only(roomy.core, '0000:00:01.0').config.read(0x18, 4) & 0xff_ffff).toBe(0x02_01_00);
  });

  it('refuses without an address for the VF BARs', () => {
    const { world, core, device } = sriovBench({ memory: { start: MEMORY.start, sizeBytes: 0x1000 } });
    refuses('ENOMEM', world, device, () => world.run(core.enableSriov(device, 1)));
  });

  it('a VF takes the translation unit of its PF and nothing else (A8, E36, scenario 31)', () => {
    const { world, core, device } = sriovBench();
    const vf = world.run(core.enableSriov(device, 1))[0]!;
    expect(vf.atsQueueDepth).toBe(0);
    // the PF never enabled ATS
    refuses('EINVAL', world, vf, () => vf.enableAts(12));
    device.enableAts(14);
    refuses('EINVAL', world, vf, () => vf.enableAts(12));
    vf.enableAts(14);
    // a VF's unit field is not written
    expect(word(vf, ATS, 6)).toBe(0x8000);
    const lax = sriovBench({ defects: new Set(['pci.vf-stu-unchecked']) });
    const laxVf = lax.world.run(lax.core.enableSriov(lax.device, 1))[0]!;
    expect(() => laxVf.enableAts(12)).not.toThrow();
  });

  it('a VF shares the PRI and the PASID of its PF (3.4, scenario 31)', () => {
    const { world, core, device } = sriovBench();
    const vf = world.run(core.enableSriov(device, 1))[0]!;
    expect([vf.priSupported, vf.pasidSupported, vf.pasidFeatures, vf.maxPasids(), vf.prgResponsePasidRequired]).toEqual([true, true, 4, 2 ** 20, true]);
    refuses('EINVAL', world, vf, () => vf.enablePri(32));
    refuses('EINVAL', world, vf, () => vf.enablePasid(0));
    device.enablePasid(0);
    device.enablePri(32);
    const writes = world.writes;
    vf.enablePasid(0);
    vf.enablePri(32);
    expect([vf.pasidEnabled, vf.priEnabled]).toEqual([true, true]);
    vf.disablePri();
    vf.disablePasid();
    vf.resetPri();
    expect([device.pasidEnabled, device.priEnabled]).toEqual([true, true]);
    expect(world.writes).toBe(writes);
  });
});

describe('function level reset', () => {
  it('takes 100 ms and brings back PASID, PRI, ATS, BARs, MSI-X and bus master (2g)', () => {
    const { world, core, fn, device } = bench({
      bars: [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: true }],
      msix: { vectors: 2, tableBar: 0, tableOffset: 0x800, pbaOffset: 0xc00 },
    });
    device.setMaster(true);
    const rang: string[] = [];
    device.allocIrqs('dev', [() => rang.push('irq')]);
    device.enablePasid(4);
    device.enableAts(12);
    device.enablePri(32);
    const before = world.bytesOf(device), table = device.ioremap(0);
    const steps: string[] = [];
    core.subscribe({
      *resetPrepare() { steps.push('prepare'); },
      *resetDone() { steps.push(`done at ${world.clock.now}`); },
    });
    fn.listen((change) => steps.push(change));
    world.run(device.reset());
    expect(world.bytesOf(device)).toBe(before);
    // PASID comes before ATS: no change of the PASID control with ATS on
    expect(fn.violations).toBe(0);
    expect(steps).toEqual(['prepare', 'bus-master', 'reset', 'pasid', 'pri', 'pri', 'ats', 'bus-master', 'msix', 'msix', 'done at 100000000']);
    expect([0, 4, 8, 12, 28].map((at) => table.read(0x800 + at, 4))).toEqual([0xfee0_0000, 0, 0x21, 0, 1]);
    fn.raiseMsix(0);
    world.clock.run();
    expect(rang).toEqual(['irq']);
  });

  it('of a physical function brings its VFs back', () => {
    const { world, core, device } = sriovBench();
    const vf = world.run(core.enableSriov(device, 2))[1]!;
    const before = world.bytesOf(device);
    world.run(device.reset());
    expect(world.bytesOf(device)).toBe(before);
    expect(vf.present).toBe(true);
    expect(vf.ioremap(0).read(0, 4)).toBe(0xffff_ffff);
    expect(world.systemBus.list()).toHaveLength(3);
  });

  it('of a VF brings back its own ATS', () => {
    const { world, core, device } = sriovBench();
    const vf = world.run(core.enableSriov(device, 1))[0]!;
    device.enableAts(12);
    vf.enableAts(12);
    vf.setMaster(true);
    const before = world.bytesOf(vf);
    world.run(vf.reset());
    expect(world.bytesOf(vf)).toBe(before);
    expect(word(vf, ATS, 6)).toBe(0x8000);
  });

  it('waits for pending transactions, says so when they stay, and resets anyway', () => {
    const { world, fn, device } = bench();
    fn.config.setBits(device.findCapability(0x10)! + 0x0a, 2, 0x20, true);
    world.run(device.reset());
    expect(world.log.lines.map((line) => line.text)).toEqual([
      'pci 0000:00:01.0: timed out waiting for pending transaction; performing function level reset anyway',
    ]);
    // 100 + 200 + 400 ms, then the reset's 100
    expect(world.clock.now).toBe(800_000_000);
  });

  it('is refused with ENOTTY without the capability, and when the function is gone', () => {
    const { world, device } = bench({ flr: false });
    refuses('ENOTTY', world, device, () => world.run(device.reset()));
    const other = bench();
    other.world.complex.remove(other.fn, { surprise: true });
    expect(() => other.world.run(other.device.reset())).toThrow('-ENOTTY');
  });

  it('gives up after a minute when the function is pulled out meanwhile', () => {
    const { world, fn, device } = bench();
    const task = world.scheduler.spawn('reset', device.reset(), { joined: true });
    world.clock.run({ untilNs: 50_000_000 });
    world.complex.remove(fn, { surprise: true });
    world.clock.run();
    expect(String(task.error)).toContain('-ENOTTY');
    expect(device.present).toBe(false);
    expect(world.log.lines.at(-1)!.text).toBe('pci 0000:00:01.0: not ready 65535ms after FLR; giving up');
  });

  it('leaves PASID, PRI and ATS off under the defect that forgets them', () => {
    const { world, device } = bench({}, { defects: new Set(['pci.reset-forgets-pasid']) });
    device.enablePasid(0);
    world.run(device.reset());
    expect([device.pasidEnabled, word(device, PASID, 6)]).toEqual([true, 0]);
  });
});

/** Names of the functions of each group, in order of the groups' numbers. */
function groupsOf(core: PciCore): string[][] {
  return core.groups.list.map((group) => group.devices.map((device) => device.name.slice(5)));
}

/** Two endpoints behind a switch whose downstream ports have these services. */
function switchWorld(services: readonly (number | undefined)[], core: Partial<PciCoreOptions> = {}): PciCore {
  const world = new PciWorld();
  const upstream = world.upstreamPort(world.rootPort(0x08).secondary);
  services.forEach((acs, i) => world.fn(world.downstreamPort(upstream.secondary, i << 3, acs === undefined ? {} : { acs }).secondary, 0));
  const kernel = world.core(core);
  kernel.enumerate();
  return kernel;
}

describe('IOMMU groups', () => {
  it('one group behind a switch without ACS, separate groups with it (C16, scenario 30)', () => {
    const without = switchWorld([undefined, undefined]);
    expect(groupsOf(without)).toEqual([['00:01.0'], ['01:00.0', '02:00.0', '02:01.0', '03:00.0', '04:00.0']]);
    expect(without.groupOf(only(without, '0000:03:00.0'))).toBe(without.groupOf(only(without, '0000:04:00.0')));
    const isolated = switchWorld([ISOLATING, ISOLATING]);
    expect(groupsOf(isolated)).toEqual([['00:01.0'], ['01:00.0'], ['02:00.0'], ['02:01.0'], ['03:00.0'], ['04:00.0']]);
  });

  it('one port without ACS reaches the others: all are one group', () => {
    expect(groupsOf(switchWorld([ISOLATING, undefined]))).toEqual([['00:01.0'], ['01:00.0', '02:00.0', '02:01.0', '03:00.0', '04:00.0']]);
  });

  it('everyone is alone under the defect that ignores ACS', () => {
    expect(groupsOf(switchWorld([undefined, undefined], { defects: new Set(['pci.groups-ignore-acs']) }))).toHaveLength(6);
  });

  it('ACS that nobody switched on isolates nobody', () => {
    const core = switchWorld([ISOLATING, ISOLATING], { requestAcs: false });
    expect(groupsOf(core)).toEqual([['00:01.0', '01:00.0', '02:00.0', '02:01.0', '03:00.0', '04:00.0']]);
    expect(word(only(core, '0000:02:00.0'), 0x0d, 6)).toBe(0);
  });

  it.each([
    ['source validation', PCI_ACS_SV], ['request redirect', PCI_ACS_RR], ['completion redirect', PCI_ACS_CR], ['upstream forwarding', PCI_ACS_UF],
  ])('a port that has %s but was not told to use it does not isolate (C16)', (_what, bit) => {
    const world = new PciWorld();
    world.fn(world.rootPort(0x08, { acs: ISOLATING }).secondary, 0);
    const core = world.core();
    core.enumerate();
    const port = only(core, '0000:00:01.0');
    expect(groupsOf(core)).toEqual([['00:01.0'], ['01:00.0']]);
    port.config.write(port.acsCapability! + 6, 2, ISOLATING & ~bit);
    world.run(core.remove(only(core, '0000:01:00.0')));
    world.run(core.rescan());
    expect(groupsOf(core)).toEqual([['00:01.0', '01:00.0']]);
  });

  it('functions of one device merge unless they have ACS (C16)', () => {
    const world = new PciWorld();
    for (const devfn of [0x08, 0x09]) world.fn(world.root, devfn);
    for (const devfn of [0x10, 0x11]) world.fn(world.root, devfn, { acs: ISOLATING });
    for (const devfn of [0x18, 0x19]) world.fn(world.root, devfn, { acs: devfn === 0x18 ? ISOLATING : 0 });
    world.fn(world.root, 0x20);
    const core = world.core();
    core.enumerate();
    // a capability register of 0 says that nothing is needed: isolated as it is
    expect(groupsOf(core)).toEqual([['00:01.0', '00:01.1'], ['00:02.0'], ['00:02.1'], ['00:03.0'], ['00:03.1'], ['00:04.0']]);
  });

  it('root ports of one device without ACS merge with all below them', () => {
    const world = new PciWorld();
    world.fn(world.rootPort(0x08, {}).secondary, 0);
    world.fn(world.rootPort(0x09, {}).secondary, 0);
    const core = world.core();
    core.enumerate();
    expect(groupsOf(core)).toEqual([['00:01.0', '00:01.1', '01:00.0', '02:00.0']]);
  });

  it('aliases share a group (C16)', () => {
    const world = new PciWorld();
    for (const devfn of [0x08, 0x10, 0x18]) world.fn(world.root, devfn);
    const core = world.core({ dmaAliases: new Map([['0000:00:03.0', [0x08]]]) });
    core.enumerate();
    expect(groupsOf(core)).toEqual([['00:01.0', '00:03.0'], ['00:02.0']]);
    expect(core.groups.dmaAliases(only(core, '0000:00:03.0'))).toEqual([0x0018, 0x0008]);
  });

  it('VFs behind an isolating port have groups of their own', () => {
    const { world, core, device } = sriovBench();
    world.run(core.enableSriov(device, 2));
    expect(groupsOf(core)).toEqual([['00:01.0'], ['01:00.0'], ['01:00.1'], ['01:00.2']]);
  });

  it('the lowest free number is used again', () => {
    const world = new PciWorld();
    for (const devfn of [0x08, 0x10, 0x18]) world.fn(world.root, devfn);
    const core = world.core();
    core.enumerate();
    const first = only(core, '0000:00:01.0');
    world.run(core.remove(first));
    expect(core.groups.list.map((group) => group.id)).toEqual([1, 2]);
    const back = world.run(core.rescan())[0]!;
    expect(core.groupOf(back).id).toBe(0);
    expect(() => core.groupOf(first)).toThrow('-ENODEV: device 0000:00:01.0 is not on the PCI bus');
  });
});
