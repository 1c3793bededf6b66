/** Numbered scenarios of requirements section 10 about the end of address spaces, bonds and PASIDs. */
import { describe, expect, it } from 'vitest';
import { ACCESS_READ, ATTR_NO_WRITE, DMA_DONE, DMA_UR, PRG_INVALID, PRG_SUCCESS } from '../../host/pci/dma-port.js';
import { sleep, type Steps } from '../../sim/task.js';
import { probeWorld, silentExit, World, type WorldOptions } from './world.js';

const PAGE = 4096;

describe('the end of an address space', () => {
  it('scenario 11: a worker that holds the last use answers SUCCESS, and the teardown happens elsewhere', () => {
    const { world, probe } = probeWorld({ timing: { 'fault-service': '100us' } });
    const program = world.process('app');
    const { mm } = program.process;
    const page = world.pages(program, 1);
    const pasid = world.run(world.core.svaBind(probe.pci, mm));
    probe.ask(page, ACCESS_READ, true, 1, pasid);
    world.until(() => world.records('iommu:iopf_handle').length === 1);
    expect(mm.users).toBe(2);
    world.run(program.process.exit());
    expect([mm.users, mm.exiting]).toEqual([1, false]);
    world.settle();
    expect(probe.answers).toEqual([{ group: 1, code: PRG_SUCCESS }]);
    expect([mm.users, mm.exiting, mm.residentPages]).toEqual([0, true, 0]);
    expect(world.host.scheduler.deadlockReport()).toEqual([]);
    world.run(world.core.svaUnbind(probe.pci, pasid));
    world.finish();
  });

  it('scenario 11: a worker that finds no user answers INVALID', () => {
    const { world, probe } = probeWorld();
    const program = world.process('app');
    const { mm } = program.process;
    const page = world.pages(program, 1);
    const pasid = world.run(world.core.svaBind(probe.pci, mm));
    // in the queue before the process dies, in the hands of a worker afterwards
    probe.ask(page, ACCESS_READ, true, 1, pasid);
    world.run(program.process.exit());
    world.settle();
    expect(world.records('iommu:iopf_handle').map(({ mm: served, handled }) => [served, handled])).toEqual([[0, 0]]);
    expect(probe.answers).toEqual([{ group: 1, code: PRG_INVALID }]);
    expect(world.host.scheduler.deadlockReport()).toEqual([]);
    world.run(world.core.svaUnbind(probe.pci, pasid));
    world.finish();
  });

  it('scenario 11: a worker that tears down itself waits for its own queue (defect)', () => {
    const { world, probe } = probeWorld({ timing: { 'fault-service': '100us' }, defect: 'core.put-mm-in-worker' });
    const program = world.process('app');
    const page = world.pages(program, 1);
    const pasid = world.run(world.core.svaBind(probe.pci, program.process.mm, silentExit));
    probe.ask(page, ACCESS_READ, true, 1, pasid);
    world.until(() => world.records('iommu:iopf_handle').length === 1);
    world.run(program.process.exit());
    world.settle();
    expect(world.host.scheduler.deadlockReport().join()).toMatch(/iopf_queue\/.* waits for the flush of iopf_queue\//);
  });

  function afterExit(options: WorldOptions = {}) {
    const { world, probe } = probeWorld(options);
    const program = world.process('app');
    const page = world.pages(program, 8);
    const pasid = world.run(world.core.svaBind(probe.pci, program.process.mm));
    for (let i = 0; i < 4; i++) world.run(probe.access((page + i) * PAGE, true, pasid));
    world.run(program.process.exit());
    expect(world.core.bondState(probe.pci, pasid)).toBe('ZOMBIE');
    const logged = world.host.log.lines.length;
    const faults = (): number => world.records('iommu:dev_fault').filter(({ type }) => type === 1).length;
    return { world, probe, page, pasid, logged, faults };
  }

  it('scenario 12: 1000 DMAs after mm exit leave no record; after unbind each leaves one, and the log is limited', () => {
    const { world, probe, page, pasid, logged, faults } = afterExit();
    const { port } = probe.fn;
    const bytes = new Uint8Array(4);
    for (let i = 0; i < 250; i++) {
      const at = page + (i % 8);
      // translation requests, page requests, untranslated reads and writes
      expect([port.translate(at, pasid, ATTR_NO_WRITE), port.translation.read, port.translation.write]).toEqual([DMA_DONE, false, false]);
      expect(world.run(probe.access(at * PAGE, false, pasid))).toEqual({ status: 'page-fault', response: PRG_INVALID });
      expect(port.read(at, 0, bytes, 0, 4, pasid, 0)).toBe(DMA_UR);
      expect(port.write(at, 0, bytes, 0, 4, pasid, 0)).toBe(DMA_UR);
    }
    world.settle();
    expect(faults()).toBe(0);
    expect(world.host.log.lines.length).toBe(logged);
    expect(world.records('iommu:iopf_handle').length).toBe(4);

    world.run(world.core.svaUnbind(probe.pci, pasid));
    for (let i = 1; i <= 30; i++) {
      expect(port.read(page, 0, bytes, 0, 4, pasid, 0)).toBe(DMA_UR);
      world.wait(20_000);
      expect(faults()).toBe(i);
    }
    expect(world.log('DMAR: [DMA Read PASID 0x1]').length).toBeGreaterThan(0);
    expect(world.host.log.lines.length - logged).toBe(10);
    expect(world.host.log.suppressed).toBeGreaterThan(0);
    // and the driver that left its device running is pointed out, ten times at most
    world.finish(Array.from({ length: 10 }, () => 'DMA of PASID 1 was reported after its unbind had returned'));
  });

  it('scenario 12: an entry that is only cleared would tell (defect)', () => {
    const { world, probe, page, pasid, faults } = afterExit({ defect: 'vtd-driver.log-after-exit' });
    probe.fn.port.read(page, 0, new Uint8Array(4), 0, 4, pasid, 0);
    world.settle();
    expect(faults()).toBe(1);
  });
});

describe('a child that inherits an open file (B13)', () => {
  it("works in its parent's memory, not in its own, and keeps the bond when the parent is gone", () => {
    const world = new World({
      processes: [{
        name: 'parent',
        steps: [
          { open: { device: 'dsa0' } }, { malloc: { name: 'buffer', size: '16KiB' } }, { fill: { buffer: 'buffer', value: 1 } },
          {
            fork: {
              name: 'child',
              steps: [
                { submit: { fill: { buffer: 'buffer', pattern: '0x0202020202020202' } } }, { wait: {} }, { verify: { buffer: 'buffer', value: 1 } },
                { sleep: '1ms' }, { close: {} },
              ],
            },
          },
          { sleep: '500us' }, { verify: { buffer: 'buffer', value: 2 } },
        ],
      }],
    });
    world.machine.run({ stopAt: { at: 'time', timeNs: 900_000 } });
    const { programs } = world.machine.scenario;
    expect([...programs.values()].map(({ name, exited }) => [name, exited])).toEqual([['parent', true], ['child', false]]);
    const { pci } = world.machine.scenario.world.device('dsa0');
    expect(world.core.bondState(pci, 1)).toBe('ZOMBIE');
    expect(world.core.svaGetPasid(pci, programs.get('child')!.process.mm)).toBe(0xffff_ffff);
    world.machine.run();
    expect(world.core.usage.bonds).toBe(0);
    expect(world.machine.summary()).toMatchObject({ stepFailures: [], verdict: 'pass', leaks: { pasids: 0, frames: 0 } });
  });
});

describe('a PASID that is used again', () => {
  /** A's request is in the queue, whose thread is slow, when A goes; B gets the PASID, and has memory at the same address. */
  function recycle(options: WorldOptions = {}) {
    const { world, probe } = probeWorld({ timing: { 'thread-wake': '300us' }, ...options });
    const a = world.process('a');
    const page = world.pages(a, 1);
    const first = world.run(world.core.svaBind(probe.pci, a.process.mm));
    probe.ask(page, ACCESS_READ, true, 1, first);
    world.run(world.core.svaUnbind(probe.pci, first));
    const answeredBeforeReuse = probe.answers.length;
    world.run(a.process.exit());
    const b = world.process('b');
    expect(world.pages(b, 1)).toBe(page);
    const second = world.run(world.core.svaBind(probe.pci, b.process.mm));
    expect(second).toBe(first);
    world.settle();
    return { world, probe, b, page, pasid: second, answeredBeforeReuse };
  }

  it("scenario 13: a delayed request of the old owner is answered before the reuse and never touches the new owner's memory", () => {
    const { world, probe, b, page, pasid, answeredBeforeReuse } = recycle();
    expect(answeredBeforeReuse).toBe(1);
    expect(world.present(b.process.mm, page)).toBe(false);
    expect(world.records('iommu:iopf_handle').filter(({ mm }) => mm === b.process.mm.id)).toEqual([]);
    world.run(world.core.svaUnbind(probe.pci, pasid));
    world.finish();
  });

  it('scenario 13: without the drain it is served from the new owner (defect)', () => {
    const { world, b, page, answeredBeforeReuse } = recycle({ defect: 'vtd-driver.skip-prq-drain' });
    expect(answeredBeforeReuse).toBe(0);
    expect(world.present(b.process.mm, page)).toBe(true);
  });
});

describe('a deadlock', () => {
  it('scenario 14: an unbind that flushes under the lock its worker needs is reported, with who waits for what', () => {
    const { world, probe } = probeWorld({ defect: 'core.flush-under-sva-lock' });
    const program = world.process('app');
    const page = world.pages(program, 1);
    const pasid = world.run(world.core.svaBind(probe.pci, program.process.mm));
    probe.ask(page, ACCESS_READ, true, 1, pasid);
    world.start('unbind', world.core.svaUnbind(probe.pci, pasid));
    world.settle();
    const report = world.host.scheduler.deadlockReport();
    expect(report).toEqual([
      expect.stringMatching(/^unbind waits for the flush of iopf_queue\/\S+, holds iommu_group \d+, iommu_sva_lock$/),
      expect.stringMatching(/^iopf_queue\/\S+-0 waits for iommu_sva_lock \(held by unbind\)$/),
    ]);
    expect(world.machine.run()).toBe('deadlock');
    const { verdict, invariants } = world.machine.summary();
    expect(verdict).toBe('fail');
    expect(invariants.find(({ name }) => name === 'no deadlock')).toMatchObject({ status: 'violated', violations: report });
  });
});

describe('mm exit against unbind', () => {
  function bound() {
    const { world, probe } = probeWorld();
    const program = world.process('app');
    const calls: number[] = [];
    function* mmExit(_device: unknown, pasid: number): Steps<number> {
      calls.push(pasid);
      yield* sleep(world.host.clock, 30_000);
      return 0;
    }
    const page = world.pages(program, 1);
    const pasid = world.run(world.core.svaBind(probe.pci, program.process.mm, mmExit));
    const freed = (): number => world.records('iommu:sva_unbind').filter(({ refs }) => refs === 0).length;
    return { world, probe, program, page, pasid, calls, freed };
  }

  it('scenario 15: unbind during the callback waits for it; called once, freed once', () => {
    const { world, probe, program, pasid, calls, freed } = bound();
    const exit = world.start('exit', program.process.exit());
    world.until(() => calls.length === 1);
    expect(world.core.bondState(probe.pci, pasid)).toBe('EXITING');
    const unbind = world.start('unbind', world.core.svaUnbind(probe.pci, pasid));
    world.wait(20_000);
    expect([unbind.ended, freed()]).toEqual([false, 0]);
    world.settle();
    expect([exit.ended, unbind.state, calls, freed()]).toEqual([true, 'done', [pasid], 1]);
    expect(world.refused(world.core.svaUnbind(probe.pci, pasid))).toBe('ESRCH');
    world.finish();
  });

  it('scenario 15: exit while unbind drains finds the bond gone; freed once, nobody to call', () => {
    const { world, probe, program, page, pasid, calls, freed } = bound();
    probe.ask(page, ACCESS_READ, true, 1, pasid);
    const unbind = world.start('unbind', world.core.svaUnbind(probe.pci, pasid));
    world.until(() => world.core.bondState(probe.pci, pasid) === 'DRAINING');
    const exit = world.start('exit', program.process.exit());
    world.settle();
    expect([exit.state, unbind.state, calls, freed()]).toEqual(['done', 'done', [], 1]);
    expect(probe.answers).toHaveLength(1);
    world.finish();
  });

  it('scenario 15: exit that has ended leaves the bond to unbind; called once, freed once', () => {
    const { world, probe, program, pasid, calls, freed } = bound();
    world.run(program.process.exit());
    expect([calls, freed(), world.core.bondState(probe.pci, pasid)]).toEqual([[pasid], 0, 'ZOMBIE']);
    world.run(world.core.svaUnbind(probe.pci, pasid));
    expect([calls, freed(), world.core.bondState(probe.pci, pasid)]).toEqual([[pasid], 1, 'NONE']);
    world.finish();
  });
});
