/** The end of an address space: requirements M1–M7, R-RACE-1, R-RACE-7; sections 2b and 7.3; scenarios 11, 12, 14, 15. */
import { describe, expect, it } from 'vitest';
import { Mutex, sleep, type Steps } from '../../sim/task.js';
import type { Device } from '../../host/device.js';
import { ACCESS_WRITE } from '../../host/pci/dma-port.js';
import { CoreWorld } from '../fixtures/core-world.js';

interface Call {
  readonly device: Device;
  readonly pasid: number;
  readonly drvdata: unknown;
}

function callback(world: CoreWorld, calls: Call[], { takesNs = 0, result = 0 } = {}) {
  return function* (device: Device, pasid: number, drvdata: unknown): Steps<number> {
    calls.push({ device, pasid, drvdata });
    if (takesNs > 0) yield* sleep(world.clock, takesNs);
    return result;
  };
}

describe('an mm that dies while it is bound', () => {
  it('calls mm_exit once with device, PASID and drvdata, which may sleep (M1, M2, B12)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const calls: Call[] = [];
    const drvdata = { job: 1 };
    const pasid = world.run(world.core.svaBind(device, mm, callback(world, calls, { takesNs: 10_000 }), drvdata));
    world.run(mm.put());
    expect(calls).toEqual([{ device, pasid, drvdata }]);
    expect(world.core.bondState(device, pasid)).toBe('ZOMBIE');
    world.run(world.core.svaUnbind(device, pasid));
    expect(calls).toHaveLength(1);
    expect(world.core.usage).toMatchObject({ pasids: 0, bonds: 0 });
  });

  it('is EXITING while the callback runs and still has its tables (M3, 7.3)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const page = world.malloc(mm, 1);
    world.run(mm.handleFault(page * 4096, ACCESS_WRITE));
    const seen: unknown[] = [];
    const pasid = world.run(world.core.svaBind(device, mm, function* () {
      seen.push(world.core.bondState(device, 1), mm.residentPages, world.iommu.calls('svaSilence').length);
      yield* sleep(world.clock, 100);
      return 0;
    }));
    world.run(mm.put());
    expect(seen).toEqual(['EXITING', 1, 0]);
    expect(mm.residentPages).toBe(0);
    expect(world.iommu.calls('svaSilence')).toEqual([`svaSilence dev0 ${pasid}`]);
  });

  it('warns of a leak when the callback fails, and goes on (M2)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const pasid = world.run(world.core.svaBind(device, mm, callback(world, [], { result: 1 })));
    world.run(mm.put());
    expect(world.log.lines.map(({ text }) => text)).toEqual([`dev0: possible leak of PASID ${pasid}`]);
    expect(world.core.bondState(device, pasid)).toBe('ZOMBIE');
  });

  it('is silenced before its tables go when there is no callback (M6, scenario 12)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const pasid = world.run(world.core.svaBind(device, mm));
    world.run(mm.put());
    expect(world.iommu.tables.get(device)!.pasids.get(pasid)).toEqual({ mm, silent: true });
    expect(world.core.bondState(device, pasid)).toBe('ZOMBIE');
    expect(world.core.usage).toMatchObject({ pasids: 1, bonds: 1 });
    expect(mm.alive).toBe(true);
    world.run(world.core.svaUnbind(device, pasid));
    expect(world.core.usage).toMatchObject({ pasids: 0, bonds: 0 });
    expect(mm.alive).toBe(false);
  });

  it('treats every bond of the mm, and the callback of each once (M3)', () => {
    const world = new CoreWorld();
    const devices = ['dev0', 'dev1', 'dev2'].map((name) => world.svaDevice(name));
    const mm = world.process('app');
    const calls: Call[] = [];
    const mmExit = callback(world, calls, { takesNs: 100 });
    for (const device of devices.slice(0, 2)) world.run(world.core.svaBind(device, mm, mmExit));
    world.run(world.core.svaBind(devices[2]!, mm));
    world.run(mm.put());
    expect(calls.map(({ device }) => device.name).sort()).toEqual(['dev0', 'dev1']);
    expect(world.iommu.calls('svaSilence')).toHaveLength(3);
    expect(devices.map((device) => world.core.bondState(device, 1))).toEqual(['ZOMBIE', 'ZOMBIE', 'ZOMBIE']);
  });

  it('answers page requests of the zombie INVALID and refuses a new bind (M6, 7.3)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const page = world.malloc(mm, 1);
    const pasid = world.run(world.core.svaBind(device, mm));
    world.run(mm.put());
    world.iommu.request(device, pasid, 5, page);
    world.settle();
    expect(world.iommu.codes()).toEqual(['INVALID']);
    expect(world.refused(world.core.svaBind(device, mm))).toBe('ESRCH');
    expect(world.log.lines).toEqual([]);
  });

  it('no longer tells a silenced device of changes, but still the others (M3)', () => {
    const world = new CoreWorld();
    const [first, second] = [world.svaDevice('dev0'), world.svaDevice('dev1')];
    const mm = world.process('app');
    const page = world.malloc(mm, 1);
    world.run(mm.handleFault(page * 4096, ACCESS_WRITE));
    const unmapping = function* (): Steps<number> {
      yield* mm.munmap(page * 4096, 4096);
      return 0;
    };
    // the youngest bond exits first
    const pasid = world.run(world.core.svaBind(second, mm, unmapping));
    world.run(world.core.svaBind(first, mm));
    world.run(mm.put());
    expect(world.iommu.calls('svaInvalidate').map((call) => call.split(' ').slice(0, 3))).toEqual([['svaInvalidate', 'dev1', String(pasid)]]);
    expect(world.iommu.calls('svaSilence')).toHaveLength(2);
  });

  it('a skipped silence is seen (defect)', () => {
    const world = new CoreWorld({ defects: ['core.skip-sva-silence'] });
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    world.run(world.core.svaBind(device, mm));
    world.run(mm.put());
    expect(world.iommu.calls('svaSilence')).toEqual([]);
  });

  it('needs one unbind per bind also as a zombie (B3, 7.3)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const pasid = world.run(world.core.svaBind(device, mm));
    world.run(world.core.svaBind(device, mm));
    world.run(mm.put());
    world.run(world.core.svaUnbind(device, pasid));
    expect(world.core.bondState(device, pasid)).toBe('ZOMBIE');
    world.run(world.core.svaUnbind(device, pasid));
    expect(world.core.bondState(device, pasid)).toBe('NONE');
  });
});

describe('unbind against mm_exit', () => {
  it('unbind that comes during the callback waits for it and frees the bond once (M4, R-RACE-1, scenario 15)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const calls: Call[] = [];
    const pasid = world.run(world.core.svaBind(device, mm, callback(world, calls, { takesNs: 50_000 })));
    const start = world.clock.now;
    const exit = world.scheduler.spawn('exit', mm.put(), { joined: true });
    world.clock.run({ untilNs: start + 1000 });
    expect(world.core.bondState(device, pasid)).toBe('EXITING');
    const unbind = world.scheduler.spawn('unbind', world.core.svaUnbind(device, pasid), { joined: true });
    world.clock.run({ untilNs: start + 40_000 });
    expect(unbind.state).toBe('blocked');
    world.settle();
    expect([exit.state, unbind.state]).toEqual(['done', 'done']);
    expect(calls).toHaveLength(1);
    expect(world.iommu.calls('svaDetach')).toHaveLength(1);
    expect(world.iommu.log.indexOf(`svaSilence dev0 ${pasid}`)).toBeLessThan(world.iommu.log.indexOf(`svaDetach dev0 ${pasid}`));
    expect(world.core.usage).toMatchObject({ pasids: 0, bonds: 0 });
  });

  it('mm_exit that comes during unbind waits and finds nothing to call (M4, R-RACE-1, scenario 15)', () => {
    const world = new CoreWorld();
    world.iommu.invalidationNs = 20_000;
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const calls: Call[] = [];
    const pasid = world.run(world.core.svaBind(device, mm, callback(world, calls)));
    const start = world.clock.now;
    const unbind = world.scheduler.spawn('unbind', world.core.svaUnbind(device, pasid), { joined: true });
    world.clock.run({ untilNs: start + 1000 });
    expect(world.core.bondState(device, pasid)).toBe('DRAINING');
    const exit = world.scheduler.spawn('exit', mm.put(), { joined: true });
    world.clock.run({ untilNs: start + 2000 });
    expect(exit.state).toBe('blocked');
    world.settle();
    expect([unbind.state, exit.state]).toEqual(['done', 'done']);
    expect(calls).toEqual([]);
    expect(world.iommu.calls('svaSilence')).toEqual([]);
    expect(world.core.usage).toMatchObject({ pasids: 0, bonds: 0 });
  });

  it('of two unbinds during the callback one frees, the other finds nothing (M4)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const pasid = world.run(world.core.svaBind(device, mm, callback(world, [], { takesNs: 50_000 })));
    world.scheduler.spawn('exit', mm.put());
    world.clock.run({ untilNs: world.clock.now + 1000 });
    const unbinds = ['a', 'b'].map((name) => world.scheduler.spawn(name, world.core.svaUnbind(device, pasid), { joined: true }));
    world.settle();
    expect(unbinds.map(({ state }) => state)).toEqual(['done', 'failed']);
    expect(String(unbinds[1]!.error)).toContain('-ESRCH');
    expect(world.iommu.calls('svaDetach')).toHaveLength(1);
  });

  it('a device removed during the callback is not touched afterwards (M4, 2g)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    world.run(world.core.svaBind(device, mm, callback(world, [], { takesNs: 50_000 })));
    world.scheduler.spawn('exit', mm.put());
    world.clock.run({ untilNs: world.clock.now + 1000 });
    const waiting = world.scheduler.spawn('unbind', world.core.svaUnbind(device, 1), { joined: true });
    world.run(world.core.deviceRemove(device));
    world.clock.run({ untilNs: world.clock.now + 10 });
    expect([waiting.state, String(waiting.error)]).toEqual(['failed', expect.stringContaining('-ESRCH')]);
    world.settle();
    expect(world.iommu.calls('svaSilence')).toEqual([]);
    expect(world.core.usage).toMatchObject({ pasids: 0, bonds: 0 });
  });
});

describe('faults against mm exit', () => {
  it('a worker that holds the last use puts it elsewhere, so nothing waits for itself (M5, scenario 11)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const page = world.malloc(mm, 1);
    const pasid = world.run(world.core.svaBind(device, mm, callback(world, [])));
    world.iommu.request(device, pasid, 1, page);
    // the worker has the mm in its hands now
    world.clock.run({ untilNs: world.clock.now + 1200 });
    expect(mm.users).toBe(2);
    world.run(mm.put());
    expect(mm.exiting).toBe(false);
    world.settle();
    expect(mm.exiting).toBe(true);
    expect(world.iommu.codes()).toEqual(['SUCCESS']);
    expect(world.core.bondState(device, pasid)).toBe('ZOMBIE');
    expect(world.scheduler.deadlockReport()).toEqual([]);
  });

  it('the synchronous put in a worker is a reported deadlock (M5, defect)', () => {
    const world = new CoreWorld({ defects: ['core.put-mm-in-worker'] });
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const page = world.malloc(mm, 1);
    const pasid = world.run(world.core.svaBind(device, mm, callback(world, [])));
    world.iommu.request(device, pasid, 1, page);
    world.clock.run({ untilNs: world.clock.now + 1200 });
    world.run(mm.put());
    world.settle();
    expect(world.scheduler.deadlockReport()).toEqual([
      'iopf_queue/software-iommu-0 waits for the flush of iopf_queue/software-iommu',
    ]);
  });

  it('a driver that takes a lock in mm_exit and holds it around mmput is a reported deadlock (M5)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const lock = new Mutex(world.scheduler, 'driver_lock');
    world.run(world.core.svaBind(device, mm, function* () {
      yield* lock.with(() => sleep(world.clock, 10));
      return 0;
    }));
    // one task puts the last user and has to run mm_exit; another waits for it with the driver's lock held
    world.scheduler.spawn('close', lock.with(() => world.scheduler.spawn('put', mm.put()).join()));
    world.settle();
    expect(world.scheduler.deadlockReport()).toEqual(['close waits for end of put, holds driver_lock', 'put waits for driver_lock (held by close)']);
    expect(world.core.bondState(device, 1)).toBe('EXITING');
  });

  it('an unbind that flushes under a lock its worker needs is a reported deadlock, not a hang (R-RACE-4, scenario 14)', () => {
    const world = new CoreWorld({ defects: ['core.flush-under-sva-lock'] });
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const page = world.malloc(mm, 1);
    const pasid = world.run(world.core.svaBind(device, mm));
    world.iommu.request(device, pasid, 1, page);
    world.scheduler.spawn('unbind', world.core.svaUnbind(device, pasid));
    world.settle();
    const report = world.scheduler.deadlockReport().join('\n');
    expect(report).toContain('unbind waits for the flush of iopf_queue/software-iommu');
    expect(report).toContain('holds iommu_group 1, iommu_sva_lock');
    expect(report).toContain('iopf_queue/software-iommu-0 waits for iommu_sva_lock (held by unbind)');
  });

  it('the same unbind without the defect ends (R-RACE-4)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const page = world.malloc(mm, 1);
    const pasid = world.run(world.core.svaBind(device, mm));
    world.iommu.request(device, pasid, 1, page);
    world.run(world.core.svaUnbind(device, pasid));
    expect(world.iommu.answers).toHaveLength(1);
    world.settle();
    expect(world.scheduler.deadlockReport()).toEqual([]);
  });
});
