/* oxlint-disable require-yield -- drivers that have nothing to wait for */
/** Error messages (PCIe 6.0 section 6.2), recovery with drivers (drivers/pci/pcie/err.c of v5.10), and resets of buses (section 6.6.1; `pci_reset_bus`, `pci_parent_bus_reset`). */
import { describe, expect, it } from 'vitest';
import { PciDrivers, PciErrors, type PciDevice, type PciDriver, type PciErrorVote } from '../../host/pci/kernel/index.js';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { PCI_EXP_TYPE_RC_END } from '../../host/pci/spec/index.js';
import { IDLE, only, PciWorld } from '../fixtures/pci-world.js';
import { createWorld, findCapability, Listener, svaFunction } from '../unit/pci-world.js';
import type { PciFunctionOptions } from '../../host/pci/hardware/pci-function.js';
import type { PciCore, PciFunctionDevice } from '../../host/pci/kernel/index.js';

const EXPRESS = 0x10, DEVCTL = 8, DEVSTA = 10;

describe('a function that detects an error', () => {
  it('notes it in Device Status and sends a message only where software enabled it (sections 6.2.4, 7.5.3.4)', () => {
    const world = createWorld();
    const fn = new PciFunction(svaFunction(new Listener(world.clock)));
    world.complex.insert(world.root, 0x08, fn);
    const at = findCapability(fn, EXPRESS);
    const heard: string[] = [];
    const end = world.complex.listenErrors(({ segment, sourceId, severity }) => heard.push(`${segment} ${sourceId} ${severity} at ${world.clock.now}`));
    fn.reportError('nonfatal');
    world.clock.run();
    expect([world.complex.configRead(0, 0x08, at + DEVSTA, 2), heard]).toEqual([0x2, []]);
    world.complex.configWrite(0, 0x08, at + DEVCTL, 2, 0x2005);
    fn.reportError('correctable');
    fn.reportError('nonfatal');
    fn.reportError('fatal');
    world.clock.run();
    expect(heard).toEqual(['0 8 correctable at 1150', '0 8 fatal at 1150']);
    world.complex.configWrite(0, 0x08, at + DEVSTA, 2, 0x5);
    expect(world.complex.configRead(0, 0x08, at + DEVSTA, 2)).toBe(0x2);
    expect(world.records('pci:error').map(([source]) => source)).toEqual([8, 8]);
    end();
    fn.reportError('fatal');
    world.clock.run();
    expect(heard).toHaveLength(2);
  });

  it('reports uncorrectable ones with SERR# enabled too, correctable ones not', () => {
    const world = createWorld();
    const fn = new PciFunction(svaFunction(new Listener(world.clock)));
    world.complex.insert(world.root, 0x08, fn);
    const heard: string[] = [];
    world.complex.listenErrors(({ severity }) => heard.push(severity));
    world.complex.configWrite(0, 0x08, 4, 2, 0x100);
    for (const severity of ['correctable', 'nonfatal', 'fatal'] as const) fn.reportError(severity);
    world.clock.run();
    expect([heard, world.complex.configRead(0, 0x08, 6, 2) & 0x4000]).toEqual([['nonfatal', 'fatal'], 0x4000]);
    world.complex.remove(fn, { surprise: true });
    fn.reportError('fatal');
    world.clock.run();
    expect(heard).toHaveLength(2);
  });
});

interface Bench {
  readonly world: PciWorld;
  readonly core: PciCore;
  readonly drivers: PciDrivers;
  readonly fns: readonly PciFunction[];
  /** What drivers were told. */
  readonly told: string[];
  readonly log: () => string[];
}

type Votes = Partial<Record<string, { readonly detected?: PciErrorVote; readonly slotReset?: PciErrorVote }>>;

/** A root port with a device of two functions (0000:01:00.0 and .1), a driver for each device id, and an integrated endpoint 0000:00:03.0. */
function bench(votes: Votes): Bench {
  const world = new PciWorld();
  const { secondary } = world.rootPort(0x10);
  const make = (bus: typeof secondary, devfn: number, deviceId: number, more: Partial<PciFunctionOptions> = {}): PciFunction =>
    world.fn(bus, devfn, { deviceId, name: `fn${deviceId}`, bars: [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: true }], ...more });
  const fns = [make(secondary, 0, 1), make(secondary, 1, 2), make(world.root, 0x18, 3, { deviceType: PCI_EXP_TYPE_RC_END })];
  const core = world.core();
  core.enumerate();
  const drivers = new PciDrivers({ bus: core, scheduler: world.scheduler, log: world.log });
  const errors = new PciErrors({ bus: core, drivers, sources: [world.complex], scheduler: world.scheduler, log: world.log });
  errors.start();
  const told: string[] = [];
  for (const [name, { detected, slotReset }] of Object.entries(votes) as [string, { detected?: PciErrorVote; slotReset?: PciErrorVote }][]) {
    const tell = (what: string, device: PciDevice): void => void told.push(`${name} ${what} ${device.name}`);
    const driver: PciDriver = {
      name, ids: [{ vendor: 0x8086, device: Number(name.slice(3)) }],
      *probe(device) { device.setMaster(true); },
      *remove() {},
      ...(detected === undefined ? {} : { *errorDetected(device, severity) {
        tell(severity, device);
        return detected;
      } }),
      ...(slotReset === undefined ? {} : { *slotReset(device) {
        tell('reset', device);
        return slotReset;
      } }),
      *errorResume(device) { tell('resume', device); },
    };
    world.run(drivers.registerDriver(driver));
  }
  return {
    world, core, drivers, fns, told,
    log: () => {
      world.clock.run();
      return world.log.lines.map(({ text }) => text).filter((text) => text.includes('AER') || text.includes('Bus Error'));
    },
  };
}

const YES = { detected: 'can-recover', slotReset: 'recovered' } as const;

describe('recovery', () => {
  it('of a correctable error is a line in the log', () => {
    const { fns, log, told, core } = bench({ drv1: YES, drv2: YES });
    fns[0]!.reportError('correctable');
    expect(log()).toEqual(['pcieport 0000:00:02.0: AER: Corrected error received: 0000:01:00.0', 'drv1 0000:01:00.0: PCIe Bus Error: severity=Corrected']);
    const device = only(core, '0000:01:00.0');
    expect([told, device.config.read(device.findCapability(EXPRESS)! + DEVSTA, 2)]).toEqual([[], 0]);
  });

  it('asks everybody below the port, and resumes when nobody objects (non-fatal)', () => {
    const { fns, log, told, world } = bench({ drv1: YES, drv2: YES });
    fns[1]!.reportError('nonfatal');
    expect(log()).toEqual([
      'pcieport 0000:00:02.0: AER: Uncorrected (Non-Fatal) error received: 0000:01:00.1', 'drv2 0000:01:00.1: PCIe Bus Error: severity=Uncorrected (Non-Fatal)',
      'pcieport 0000:00:02.0: AER: device recovery successful',
    ]);
    expect(told).toEqual(['drv1 nonfatal 0000:01:00.0', 'drv2 nonfatal 0000:01:00.1', 'drv1 resume 0000:01:00.0', 'drv2 resume 0000:01:00.1']);
    expect(world.clock.now).toBeLessThan(1_000_000);
  });

  it('calls slotReset of those who have it when somebody needs a reset', () => {
    const { fns, log, told } = bench({ drv1: { detected: 'need-reset', slotReset: 'recovered' }, drv2: { detected: 'can-recover' } });
    fns[0]!.reportError('nonfatal');
    expect(log().at(-1)).toContain('device recovery successful');
    expect(told).toEqual(['drv1 nonfatal 0000:01:00.0', 'drv2 nonfatal 0000:01:00.1', 'drv1 reset 0000:01:00.0', 'drv1 resume 0000:01:00.0', 'drv2 resume 0000:01:00.1']);
  });

  it.each([
    ['one gives up', { drv1: { detected: 'disconnect' }, drv2: YES }],
    ['one has no error handler', { drv1: YES, drv2: {} }],
    ['one function has no driver', { drv1: YES }],
    ['one does not come up again', { drv1: { detected: 'need-reset', slotReset: 'disconnect' }, drv2: YES }],
  ] as [string, Votes][])('fails and nobody resumes when %s', (_why, votes) => {
    const { fns, log, told } = bench(votes);
    fns[0]!.reportError('nonfatal');
    expect(log().at(-1)).toBe('pcieport 0000:00:02.0: AER: device recovery failed');
    expect(told.filter((line) => line.includes('resume'))).toEqual([]);
  });

  it('resets the link for a fatal error, and everything below is as it was', () => {
    const { fns, log, told, world, core } = bench({ drv1: YES, drv2: YES });
    const before = core.devices.map((device) => world.bytesOf(device));
    let resets = 0;
    for (const fn of fns) fn.listen((change) => {
      if (change === 'reset') resets++;
    });
    fns[0]!.reportError('fatal');
    expect(log().at(-1)).toBe('pcieport 0000:00:02.0: AER: device recovery successful');
    expect([resets, told.length, told[0]]).toEqual([2, 4, 'drv1 fatal 0000:01:00.0']);
    expect(core.devices.map((device) => world.bytesOf(device))).toEqual(before);
  });

  it('of an integrated endpoint concerns nobody else; it is reset by itself', () => {
    const { fns, log, told } = bench({ drv1: YES, drv2: YES, drv3: YES });
    fns[2]!.reportError('fatal');
    expect(log()).toEqual([
      'drv3 0000:00:03.0: AER: Uncorrected (Fatal) error received: 0000:00:03.0', 'drv3 0000:00:03.0: PCIe Bus Error: severity=Uncorrected (Fatal)', 'drv3 0000:00:03.0: AER: device recovery successful',
    ]);
    expect(told).toEqual(['drv3 fatal 0000:00:03.0', 'drv3 resume 0000:00:03.0']);
  });

  it('takes errors one after the other, and knows when the function has gone meanwhile', () => {
    const { fns, log, told, world } = bench({ drv1: YES, drv2: YES, drv3: YES });
    fns[0]!.reportError('fatal');
    fns[2]!.reportError('nonfatal');
    const forged = fns[1]!;
    forged.reportError('nonfatal');
    world.complex.remove(forged, { surprise: true });
    log();
    expect(told.indexOf('drv3 nonfatal 0000:00:03.0')).toBeGreaterThan(told.indexOf('drv1 fatal 0000:01:00.0'));
    expect(world.log.lines.some(({ text }) => text.includes('AER: subordinate device reset failed'))).toBe(true);
  });

  it('hears of functions that come later, and nothing after it was closed', () => {
    const world = new PciWorld();
    const core = world.core();
    core.enumerate();
    const drivers = new PciDrivers({ bus: core, scheduler: world.scheduler, log: world.log });
    const errors = new PciErrors({ bus: core, drivers, sources: [world.complex], scheduler: world.scheduler, log: world.log });
    const fn = world.fn(world.root, 0x08);
    world.run(core.rescan());
    fn.reportError('correctable');
    world.clock.run();
    expect(world.log.lines.map(({ text }) => text)[0]).toBe('pci 0000:00:01.0: AER: Corrected error received: 0000:00:01.0');
    errors.close();
    const { length } = world.log.lines;
    fn.reportError('correctable');
    world.clock.run();
    expect(world.log.lines).toHaveLength(length);
  });
});

describe('resets of buses', () => {
  function tree(): { world: PciWorld; core: PciCore; fns: PciFunction[] } {
    const world = new PciWorld();
    const upstream = world.upstreamPort(world.rootPort(0x08).secondary);
    const msi = { msi: { vectors: 1 as const }, bars: [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: true }] };
    const fns = [0x00, 0x08].map((devfn) => world.fn(world.downstreamPort(upstream.secondary, devfn).secondary, 0, { ...msi, flr: devfn === 0, name: `below ${devfn}` }));
    fns.push(world.fn(world.root, 0x18, { flr: false }));
    const core = world.core();
    core.enumerate();
    return { world, core, fns };
  }

  it('save and restore everything below, bridges before what is below them; listeners hear of each function', () => {
    const { world, core, fns } = tree();
    const endpoints = core.devices.filter((device) => !device.isBridge && device.upstream !== undefined);
    const rang: string[] = [];
    for (const device of endpoints) {
      device.setMaster(true);
      device.allocIrqs('dev', [() => rang.push(device.name)]);
    }
    const before = core.devices.map((device) => world.bytesOf(device));
    const steps: string[] = [];
    core.subscribe({
      *resetPrepare(device) { steps.push(`prepare ${device.name}`); },
      *resetDone(device) { steps.push(`done ${device.name}`); },
    });
    const root = only(core, '0000:00:01.0');
    world.run(core.resetBus(root));
    const names = ['0000:02:00.0', '0000:03:00.0', '0000:04:00.0'];
    expect(core.affectedByBusReset(only(core, '0000:02:00.0')).map((device) => device.name).toSorted()).toEqual(['0000:02:00.0', '0000:02:01.0', ...names.slice(1)]);
    expect(steps.filter((step) => step.startsWith('prepare'))).toHaveLength(5);
    expect(steps.filter((step) => step.startsWith('done'))).toHaveLength(5);
    expect(core.devices.map((device) => world.bytesOf(device))).toEqual(before);
    expect([world.clock.now, world.log.lines]).toEqual([1_002_000_000, []]);
    for (const fn of fns.slice(0, 2)) fn.raiseMsi(0);
    world.clock.run();
    expect(rang).toEqual(endpoints.map((device) => device.name));
    expect(core.devices.every((device) => device.present && !device.resetting)).toBe(true);
  });

  it('are refused on a root bus and for what is no bridge (ENOTTY), and nothing changes', () => {
    const { world, core } = tree();
    const device = only(core, '0000:00:03.0');
    const before = core.devices.map((other) => world.bytesOf(other));
    expect(() => world.run(core.resetBusOf(device))).toThrow('-ENOTTY');
    expect(() => core.affectedByBusReset(device)).toThrow('-ENOTTY');
    expect(() => world.run(core.resetBus(device))).toThrow('-ENOTTY');
    expect(() => world.run(device.reset())).toThrow('-ENOTTY');
    expect([device.resetMethods, core.devices.map((other) => world.bytesOf(other)), world.clock.now]).toEqual([[], before, 0]);
  });

  it('stand in for a function level reset where the function is alone on its bus', () => {
    const { world, core, fns } = tree();
    const resets: string[] = [];
    for (const fn of fns) fn.listen((change) => {
      if (change === 'reset') resets.push(fn.name);
    });
    const [first, second] = ['0000:03:00.0', '0000:04:00.0'].map((name) => only(core, name)) as [PciFunctionDevice, PciFunctionDevice];
    expect([first.resetMethods, second.resetMethods]).toEqual([['flr', 'bus'], ['bus']]);
    world.run(first.reset());
    expect(world.clock.now).toBe(100_000_000);
    world.run(second.reset());
    expect([resets, world.clock.now]).toEqual([['below 0', 'below 8'], 1_102_000_000]);
  });

  it('do not, for one of two functions (pci_parent_bus_reset)', () => {
    const world = new PciWorld();
    const { secondary } = world.rootPort(0x08);
    for (const devfn of [0, 1]) world.fn(secondary, devfn, { flr: false });
    const core = world.core();
    core.enumerate();
    const device = only(core, '0000:01:00.0');
    expect(device.resetMethods).toEqual([]);
    expect(() => world.run(device.reset())).toThrow('-ENOTTY');
    world.run(core.resetBusOf(device));
    expect(device.present).toBe(true);
  });

  it('bring back what survives when something below is gone: ENOTTY after a minute', () => {
    const { world, core, fns } = tree();
    const survivor = only(core, '0000:03:00.0'), before = world.bytesOf(survivor);
    world.clock.post(1_000_000, () => world.complex.remove(fns[1]!, { surprise: true }));
    expect(() => world.run(core.resetBus(only(core, '0000:00:01.0')))).toThrow('-ENOTTY');
    expect([world.bytesOf(survivor), survivor.present, only(core, '0000:04:00.0').present]).toEqual([before, true, false]);
  });

  it('bring virtual functions back with their physical one', () => {
    const world = new PciWorld();
    const { secondary } = world.rootPort(0x08);
    world.fn(secondary, 0, {
      flr: false,
      sriov: { totalVfs: 2, vfDeviceId: 0x1234, vfBars: [], createVf: (physfn, index) => new PciFunction({ ...IDLE, name: `vf${index}`, physfn, msi: { vectors: 1 } }) },
    });
    const core = world.core();
    core.enumerate();
    const pf = only(core, '0000:01:00.0');
    expect(pf.resetMethods).toEqual(['bus']);
    const vfs = world.run(core.enableSriov(pf, 2));
    expect(pf.resetMethods).toEqual([]);
    vfs[1]!.setMaster(true);
    vfs[1]!.allocIrqs('vf', [() => {}]);
    const before = core.devices.map((device) => world.bytesOf(device));
    world.run(core.resetBusOf(pf));
    expect(core.devices.map((device) => world.bytesOf(device))).toEqual(before);
  });
});
