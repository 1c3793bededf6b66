/* oxlint-disable require-yield -- drivers and listeners that have nothing to wait for */
/** Drivers of PCI functions: matching, binding by name, overrides, DMA ownership. */
import { describe, expect, it } from 'vitest';
import { Errno } from '../../sim/errno.js';
import { sleep } from '../../sim/task.js';
import { PCI_ANY_ID, PciDrivers } from '../../host/pci/kernel/index.js';
import { only, PciWorld } from '../fixtures/pci-world.js';
import type { PciCore, PciDriver } from '../../host/pci/kernel/index.js';

interface Bench {
  readonly world: PciWorld;
  readonly core: PciCore;
  readonly drivers: PciDrivers;
  readonly seen: string[];
  readonly driver: (name: string, options?: Partial<PciDriver>) => PciDriver;
}

/** Two functions, 8086:0b25 at 00:01.0 and 8086:1111 at 00:02.0, and a log of what drivers and the DMA's owner heard. */
function bench(refuseDma: (name: string) => boolean = () => false): Bench {
  const world = new PciWorld();
  world.fn(world.root, 0x08, { deviceId: 0x0b25 });
  world.fn(world.root, 0x10, { deviceId: 0x1111 });
  const core = world.core();
  core.enumerate();
  const seen: string[] = [];
  const drivers = new PciDrivers({
    bus: core, scheduler: world.scheduler, log: world.log,
    dmaOwnership: {
      claimDma(device) {
        if (refuseDma(device.name)) throw new Errno('EBUSY', `the group of ${device.name} belongs to a user`);
        seen.push(`claim ${device.name.slice(5)}`);
      },
      releaseDma: (device) => void seen.push(`release ${device.name.slice(5)}`),
    },
  });
  const driver = (name: string, options: Partial<PciDriver> = {}): PciDriver => ({
    name, ids: [{ vendor: 0x8086, device: 0x0b25 }],
    *probe(device) { seen.push(`${name} probe ${device.name.slice(5)}`); },
    *remove(device) { seen.push(`${name} remove ${device.name.slice(5)}${device.present ? '' : ' (gone)'}`); },
    ...options,
  });
  return { world, core, drivers, seen, driver };
}

describe('drivers', () => {
  it('probe what matches their ids, with the DMA claimed around it', () => {
    const { world, core, drivers, seen, driver } = bench();
    world.run(drivers.registerDriver(driver('idxd')));
    expect(seen).toEqual(['claim 00:01.0', 'idxd probe 00:01.0']);
    expect(drivers.driverOf(only(core, '0000:00:01.0'))?.name).toBe('idxd');
    expect(drivers.driverOf(only(core, '0000:00:02.0'))).toBeUndefined();
    world.run(drivers.unregisterDriver('idxd'));
    expect(seen.slice(2)).toEqual(['idxd remove 00:01.0', 'release 00:01.0']);
    expect(drivers.driverOf(only(core, '0000:00:01.0'))).toBeUndefined();
  });

  it('match any vendor and device with PCI_ANY_ID', () => {
    const { world, drivers, seen, driver } = bench();
    world.run(drivers.registerDriver(driver('all', { ids: [{ vendor: PCI_ANY_ID, device: PCI_ANY_ID }] })));
    expect(seen.filter((line) => line.includes('probe'))).toEqual(['all probe 00:01.0', 'all probe 00:02.0']);
  });

  it('that manage the DMA themselves claim nothing', () => {
    const { world, drivers, seen, driver } = bench();
    world.run(drivers.registerDriver(driver('vfio-pci', { driverManagedDma: true })));
    world.run(drivers.unregisterDriver('vfio-pci'));
    expect(seen).toEqual(['vfio-pci probe 00:01.0', 'vfio-pci remove 00:01.0']);
  });

  it('are left out when a user owns the group', () => {
    const { world, core, drivers, seen, driver } = bench((name) => name === '0000:00:01.0');
    world.run(drivers.registerDriver(driver('idxd')));
    expect(seen).toEqual([]);
    expect(() => world.run(drivers.bind('idxd', only(core, '0000:00:01.0')))).toThrow('-EBUSY');
  });

  it('that refuse give the DMA back; the next one that matches is asked', () => {
    const { world, core, drivers, seen, driver } = bench();
    const picky = driver('picky', { *probe() { throw new Errno('EINVAL', 'no such revision'); } });
    const quiet = driver('quiet', { *probe() { throw new Errno('ENODEV', 'not mine'); } });
    world.run(drivers.registerDriver(picky));
    world.run(drivers.registerDriver(quiet));
    expect(seen).toEqual(['claim 00:01.0', 'release 00:01.0', 'claim 00:01.0', 'release 00:01.0']);
    expect(world.log.lines.map((line) => line.text)).toEqual(['picky: probe of 0000:00:01.0 failed with error -22: -EINVAL: no such revision']);
    world.run(drivers.registerDriver(driver('idxd')));
    expect(drivers.driverOf(only(core, '0000:00:01.0'))?.name).toBe('idxd');
    // whoever binds by name hears the reason
    world.run(drivers.unbind('idxd', only(core, '0000:00:01.0')));
    expect(() => world.run(drivers.bind('picky', only(core, '0000:00:01.0')))).toThrow('no such revision');
  });

  it('a simulator bug in probe is not swallowed', () => {
    const { world, drivers, driver } = bench();
    const broken = driver('broken', { *probe() { throw new TypeError('oops'); } });
    expect(() => world.run(drivers.registerDriver(broken))).toThrow('oops');
  });
});

describe('binding by name', () => {
  it('moves a device from one driver to another through an override', () => {
    const { world, core, drivers, seen, driver } = bench();
    const device = only(core, '0000:00:01.0');
    world.run(drivers.registerDriver(driver('idxd')));
    world.run(drivers.registerDriver(driver('vfio-pci', { ids: [], driverManagedDma: true })));
    drivers.setDriverOverride(device, 'vfio-pci');
    world.run(drivers.unbind('idxd', device));
    world.run(drivers.probeDevice(device));
    expect(seen.slice(2)).toEqual(['idxd remove 00:01.0', 'release 00:01.0', 'vfio-pci probe 00:01.0']);
    // lifted, it stays with its driver until unbound
    drivers.setDriverOverride(device, undefined);
    expect(drivers.driverOf(device)?.name).toBe('vfio-pci');
    world.run(drivers.unbind('vfio-pci', device));
    world.run(drivers.bind('idxd', device));
    expect(drivers.driverOf(device)?.name).toBe('idxd');
  });

  it('an override keeps the matching driver away', () => {
    const { world, core, drivers, seen, driver } = bench();
    drivers.setDriverOverride(only(core, '0000:00:01.0'), 'none');
    world.run(drivers.registerDriver(driver('idxd')));
    expect(seen).toEqual([]);
    expect(() => world.run(drivers.bind('idxd', only(core, '0000:00:01.0')))).toThrow('-ENODEV: driver idxd does not match 0000:00:01.0');
  });

  it('refuses strangers, the bound, and the wrong driver', () => {
    const { world, core, drivers, seen, driver } = bench();
    const device = only(core, '0000:00:01.0');
    expect(() => world.run(drivers.bind('idxd', device))).toThrow('-ENODEV: no driver is named idxd');
    world.run(drivers.registerDriver(driver('idxd')));
    const before = [...seen];
    expect(() => world.run(drivers.registerDriver(driver('idxd')))).toThrow('-EBUSY');
    expect(() => world.run(drivers.bind('idxd', device))).toThrow('-EBUSY: 0000:00:01.0 is bound to idxd already');
    expect(() => world.run(drivers.unbind('other', device))).toThrow('-ENODEV: 0000:00:01.0 is bound to idxd, not to other');
    expect(() => world.run(drivers.unbind('idxd', only(core, '0000:00:02.0')))).toThrow('-ENODEV: 0000:00:02.0 is bound to no driver, not to idxd');
    expect(() => world.run(drivers.unregisterDriver('other'))).toThrow('-ENODEV');
    expect(seen).toEqual(before);
    expect(drivers.driverOf(device)?.name).toBe('idxd');
  });

  it('a new id makes a driver probe; a known one is EEXIST', () => {
    const { world, core, drivers, driver } = bench();
    world.run(drivers.registerDriver(driver('idxd')));
    world.run(drivers.addId('idxd', { vendor: 0x8086, device: 0x1111 }));
    expect(drivers.driverOf(only(core, '0000:00:02.0'))?.name).toBe('idxd');
    expect(() => world.run(drivers.addId('idxd', { vendor: 0x8086, device: 0x1111 }))).toThrow('-EEXIST');
  });

  it('two tasks that bind the same device take turns: one gets it', () => {
    const { world, core, drivers, seen, driver } = bench();
    const device = only(core, '0000:00:01.0');
    const slow = (name: string): PciDriver => driver(name, { *probe() { yield* sleep(world.clock, 1000); seen.push(name); } });
    for (const name of ['first', 'second']) world.run(drivers.registerDriver({ ...slow(name), ids: [] }));
    drivers.setDriverOverride(device, 'first');
    const tasks = [0, 1].map(() => world.scheduler.spawn('bind', drivers.bind('first', device), { joined: true }));
    world.clock.run();
    expect(tasks.map((task) => task.state)).toEqual(['done', 'failed']);
    expect(String(tasks[1]!.error)).toContain('-EBUSY');
    expect(seen.filter((line) => line === 'first')).toHaveLength(1);
  });
});

describe('drivers and hot plug', () => {
  it('probe what is added and let go what was pulled out', () => {
    const { world, core, drivers, seen, driver } = bench();
    world.run(drivers.registerDriver(driver('idxd')));
    const fn = world.fn(world.root, 0x18, { deviceId: 0x0b25 });
    const [added] = world.run(core.rescan());
    expect(drivers.driverOf(added!)?.name).toBe('idxd');
    world.complex.remove(fn, { surprise: true });
    world.run(core.removeAbsent());
    expect(seen.slice(2)).toEqual(['claim 00:03.0', 'idxd probe 00:03.0', 'idxd remove 00:03.0 (gone)', 'release 00:03.0']);
    expect(drivers.driverOf(added!)).toBeUndefined();
  });

  it('interrupts that a driver forgot are taken back', () => {
    const { world, core, drivers, driver } = bench();
    const fn = world.fn(world.root, 0x18, {
      deviceId: 0x2222, bars: [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: true }],
      msix: { vectors: 1, tableBar: 0, tableOffset: 0, pbaOffset: 0x800 },
    });
    world.run(core.rescan());
    const forgetful = driver('forgetful', { ids: [{ vendor: 0x8086, device: 0x2222 }], *probe(device) { device.allocIrqs('x', [() => {}]); }, *remove() {} });
    world.run(drivers.registerDriver(forgetful));
    expect(world.interrupts.list()).toHaveLength(1);
    world.run(drivers.unregisterDriver('forgetful'));
    expect(world.interrupts.list()).toEqual([]);
    expect(fn.msix!.enabled).toBe(false);
  });
});
