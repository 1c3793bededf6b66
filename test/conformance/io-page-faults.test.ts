/** The page fault handler for devices: requirements P1–P9, E15, E20; scenarios 1–6, 9. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE, NO_PASID } from '../../host/pci/dma-port.js';
import type { Mm } from '../../host/mm/mm.js';
import { CoreWorld, type CoreWorldOptions } from '../fixtures/core-world.js';
import { SoftwareDevice } from '../fixtures/software-iommu.js';

const PROT_READ = 1;

function bound(options: CoreWorldOptions = {}, pages = 16) {
  const world = new CoreWorld(options);
  const device = world.svaDevice('dev0');
  const mm = world.process('app');
  const page = world.malloc(mm, pages);
  const pasid = world.run(world.core.svaBind(device, mm));
  return { world, device, mm, page, pasid };
}

function present(mm: Mm, page: number, pages: number): boolean[] {
  return Array.from({ length: pages }, (_, i) => mm.tables.find(page + i) && (mm.tables.lo & 1) === 1);
}

describe('a page request group', () => {
  it('faults its pages in and is answered once, SUCCESS (P3, scenario 1)', () => {
    const { world, device, mm, page, pasid } = bound();
    for (let i = 0; i < 16; i++) world.iommu.request(device, pasid, 7, page + i, { last: i === 15 });
    world.settle();
    expect(world.iommu.codes()).toEqual(['SUCCESS']);
    expect(world.iommu.answers[0]!.request).toMatchObject({ page: page + 15, prgIndex: 7, last: true });
    expect(mm.residentPages).toBe(16);
    expect(world.core.counters).toMatchObject({ pageRequests: 16, groups: 1, responses: { success: 1, invalid: 0, failure: 0 } });
  });

  it('stops at the first failure; the rest is not faulted (P3, scenario 2)', () => {
    const { world, device, mm, page, pasid } = bound({}, 4);
    world.run(mm.munmap((page + 2) * 4096, 4096));
    for (let i = 0; i < 4; i++) world.iommu.request(device, pasid, 7, page + i, { last: i === 3 });
    world.settle();
    expect(world.iommu.codes()).toEqual(['INVALID']);
    expect(mm.residentPages).toBe(2);
  });

  it('an error that does not stick is seen (defect, scenario 2)', () => {
    const { world, device, mm, page, pasid } = bound({ defects: ['core.fault-after-error'] }, 4);
    world.run(mm.munmap((page + 2) * 4096, 4096));
    for (let i = 0; i < 4; i++) world.iommu.request(device, pasid, 7, page + i, { last: i === 3 });
    world.settle();
    expect(mm.residentPages).toBe(3);
  });

  it('does not mix with another that is interleaved (P2, scenario 3)', () => {
    const { world, device, mm, page, pasid } = bound({}, 4);
    world.run(mm.munmap((page + 3) * 4096, 4096));
    world.iommu.request(device, pasid, 1, page, { last: false });
    world.iommu.request(device, pasid, 2, page + 3, { last: false });
    world.iommu.request(device, pasid, 1, page + 1);
    world.iommu.request(device, pasid, 2, page + 2);
    world.settle();
    expect([world.iommu.codes(1), world.iommu.codes(2)]).toEqual([['SUCCESS'], ['INVALID']]);
    expect(world.core.usage.pendingRequests).toBe(0);
  });

  it('collecting any group\'s partials is seen (defect)', () => {
    const { world, device, mm, page, pasid } = bound({ defects: ['core.collect-any-group'] }, 4);
    world.run(mm.munmap((page + 3) * 4096, 4096));
    world.iommu.request(device, pasid, 2, page + 3, { last: false });
    world.iommu.request(device, pasid, 1, page);
    world.settle();
    expect(world.iommu.codes(1)).toEqual(['INVALID']);
  });

  it('may be overtaken by another group, never inside itself (P1)', () => {
    const { world, device, page, pasid } = bound({}, 512);
    for (let i = 0; i < 400; i++) world.iommu.request(device, pasid, 1, page + i, { last: i === 399 });
    world.iommu.request(device, pasid, 2, page + 450);
    world.settle();
    expect(world.iommu.answers.map(({ request }) => request.prgIndex)).toEqual([2, 1]);
  });

  it('waits with one worker until the one before is done (P1)', () => {
    const { world, device, page, pasid } = bound({ options: { iopfWorkers: 1 } }, 512);
    for (let i = 0; i < 400; i++) world.iommu.request(device, pasid, 1, page + i, { last: i === 399 });
    world.iommu.request(device, pasid, 2, page + 450);
    world.settle();
    expect(world.iommu.answers.map(({ request }) => request.prgIndex)).toEqual([1, 2]);
  });

  it('of two PASIDs with one index is merged, as the kernel does; strictPrg reports it (P2, E20, scenario 4)', () => {
    for (const strictPrg of [false, true]) {
      const { world, device, mm, page, pasid } = bound({ options: { strictPrg } });
      const other = world.process('other');
      const otherPage = world.malloc(other, 1);
      const otherPasid = world.run(world.core.svaBind(device, other));
      world.iommu.request(device, pasid, 3, page, { last: false });
      world.iommu.request(device, otherPasid, 3, otherPage);
      world.settle();
      expect(world.iommu.codes()).toEqual(['SUCCESS']);
      expect([mm.residentPages, other.residentPages]).toEqual([1, 1]);
      expect(world.core.counters.violations).toBe(strictPrg ? 1 : 0);
      expect(world.log.lines).toHaveLength(strictPrg ? 1 : 0);
    }
  });

  it('whose index is reused before its answer is a violation in strict mode (E20)', () => {
    const { world, device, page, pasid } = bound({ options: { strictPrg: true } });
    world.iommu.request(device, pasid, 3, page);
    world.iommu.request(device, pasid, 3, page + 1);
    expect(world.core.counters.violations).toBe(1);
    world.settle();
    world.iommu.request(device, pasid, 3, page + 2, { last: false });
    world.iommu.request(device, pasid, 3, page + 3);
    expect(world.core.counters.violations).toBe(1);
    world.settle();
    expect(world.iommu.codes(3)).toEqual(['SUCCESS', 'SUCCESS', 'SUCCESS']);
  });
});

describe('one request of a group', () => {
  it.each([
    ['has no PASID', { pasid: NO_PASID }],
    ['has a PASID nobody owns (E15)', { pasid: 77 }],
    ['has an address without a mapping', { page: 5 }],
    ['has a kernel address', { page: 0xf_ffff_8000_0000 }],
    ['wants to write where only reading is allowed (scenario 6)', { access: ACCESS_WRITE }],
    ['wants to execute where it may not', { access: ACCESS_EXECUTE }],
  ])('%s: INVALID (P4)', (_, wrong) => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const page = world.malloc(mm, 1, PROT_READ);
    const pasid = world.run(world.core.svaBind(device, mm));
    const request = { pasid, page, access: ACCESS_READ, ...wrong };
    world.iommu.request(device, request.pasid, 1, request.page, { access: request.access });
    world.settle();
    expect(world.iommu.codes()).toEqual(['INVALID']);
    expect(mm.residentPages).toBe(0);
  });

  it('that reads where it may: SUCCESS; privileged ones are judged by the same areas (P4, scenario 7)', () => {
    const { world, device, page, pasid } = bound();
    world.iommu.request(device, pasid, 1, page, { access: ACCESS_READ });
    world.iommu.request(device, pasid, 2, page + 1, { access: ACCESS_READ | ACCESS_WRITE | ACCESS_PRIVILEGED });
    world.settle();
    expect(world.iommu.codes()).toEqual(['SUCCESS', 'SUCCESS']);
  });

  it('for an mm without users: INVALID (P4, scenario 11)', () => {
    const { world, device, mm, page, pasid } = bound();
    world.iommu.request(device, pasid, 1, page);
    // the process ends before a worker looks
    world.scheduler.spawn('exit', mm.put());
    world.settle();
    expect(world.iommu.codes()).toEqual(['INVALID']);
  });

  it('for a PASID that another device has bound: INVALID, its mm is not touched (R10)', () => {
    const { world, mm, page, pasid } = bound();
    const other = world.svaDevice('dev1');
    world.iommu.request(other, pasid, 1, page);
    world.settle();
    expect(world.iommu.codes()).toEqual(['INVALID']);
    expect(mm.residentPages).toBe(0);
  });

  it('reads a copy-on-write page, then needs a second request to write (P4, scenario 5)', () => {
    const { world, device, mm, page, pasid } = bound();
    world.run(mm.handleFault(page * 4096, ACCESS_WRITE));
    const child = world.run(mm.fork(60, 'child'));
    mm.tables.find(page);
    const shared = mm.tables.lo;
    world.iommu.request(device, pasid, 1, page, { access: ACCESS_READ });
    world.settle();
    mm.tables.find(page);
    expect(mm.tables.lo & 2).toBe(0);
    world.iommu.request(device, pasid, 2, page, { access: ACCESS_WRITE });
    world.settle();
    expect(world.iommu.codes()).toEqual(['SUCCESS', 'SUCCESS']);
    mm.tables.find(page);
    expect([mm.tables.lo & 2, (mm.tables.lo & ~0xfff) === (shared & ~0xfff)]).toEqual([2, false]);
    world.run(child.put());
  });

  it('takes the configured service time before the answer', () => {
    const { world, device, page, pasid } = bound({ timing: { jitter: 0, faultServiceNs: 1000, threadWakeNs: 300 } });
    const start = world.clock.now;
    world.iommu.request(device, pasid, 1, page, { last: false });
    world.iommu.request(device, pasid, 1, page + 1);
    world.settle();
    expect(world.iommu.answers[0]!.timeNs - start).toBe(2300);
  });
});

describe('the queue', () => {
  it('flush waits for all groups of the queue, whatever their device (P6)', () => {
    const { world, device, page, pasid } = bound({}, 64);
    const other = world.svaDevice('dev1');
    for (let i = 0; i < 20; i++) world.iommu.request(device, pasid, i, page + i);
    world.run(world.iommu.queue!.flushDevice(other));
    expect(world.iommu.answers).toHaveLength(20);
  });

  it('flush does not wait for groups that come later (P6)', () => {
    const { world, device, page, pasid } = bound({ options: { iopfWorkers: 1 } }, 64);
    world.iommu.request(device, pasid, 1, page);
    const flush = world.scheduler.spawn('flush', world.iommu.queue!.flushDevice(device), { joined: true });
    world.clock.post(0, () => {
      for (let i = 2; i < 20; i++) world.iommu.request(device, pasid, i, page + i);
    });
    world.clock.run({ stop: () => flush.ended });
    expect(world.iommu.answers.length).toBeLessThan(3);
    world.settle();
    expect(world.iommu.answers).toHaveLength(19);
  });

  it('refuses to flush for a device that is not on it (P6)', () => {
    const { world } = bound();
    expect(world.refused(world.iommu.queue!.flushDevice(world.device('dev1')))).toBe('ENODEV');
    expect(world.refused(world.iommu.queue!.flushDevice(new SoftwareDevice('x')))).toBe('ENODEV');
  });

  it('unbind with outstanding requests ends after their answers; nothing is left of the PASID (scenario 9)', () => {
    const { world, device, page, pasid } = bound();
    for (let i = 0; i < 5; i++) world.iommu.request(device, pasid, i, page + i);
    world.run(world.core.svaUnbind(device, pasid));
    expect(world.iommu.answers).toHaveLength(5);
    expect(world.core.usage.pendingRequests).toBe(0);
  });

  it('discards partial groups of all its devices when the hardware queue overflows (P7)', () => {
    const { world, device, mm, page, pasid } = bound();
    const other = world.svaDevice('dev1');
    world.run(world.core.svaBind(other, mm));
    world.iommu.request(device, pasid, 1, 5, { last: false });
    world.iommu.request(other, pasid, 1, 5, { last: false });
    expect(world.core.usage.pendingRequests).toBe(2);
    world.iommu.queue!.discardPartial();
    expect(world.core.usage.pendingRequests).toBe(0);
    world.iommu.request(device, pasid, 1, page);
    world.iommu.request(other, pasid, 1, page);
    world.settle();
    // page 5 is mapped nowhere: a stale partial would make them INVALID
    expect(world.iommu.codes()).toEqual(['SUCCESS', 'SUCCESS']);
    expect(world.core.counters.discarded).toBe(2);
  });

  it('partials that survive an overflow are seen (P7, defect)', () => {
    const { world, device, page, pasid } = bound({ defects: ['core.keep-partials-on-overflow'] });
    world.iommu.request(device, pasid, 1, 5, { last: false });
    world.iommu.queue!.discardPartial();
    world.iommu.request(device, pasid, 1, page);
    world.settle();
    expect(world.iommu.codes()).toEqual(['INVALID']);
  });

  it('takes a device once (P8)', () => {
    const { world, device } = bound();
    expect(world.refused(() => world.iommu.queue!.addDevice(device))).toBe('EBUSY');
    expect(world.refused(() => world.core.createIopfQueue('second').addDevice(device))).toBe('EBUSY');
    expect(world.refused(() => world.iommu.queue!.addDevice(new SoftwareDevice('x')))).toBe('ENODEV');
  });

  it('answers INVALID to all that is outstanding for a removed device, once, and drops its partials (P8)', () => {
    const { world, device, page, pasid } = bound();
    for (let i = 0; i < 6; i++) world.iommu.request(device, pasid, i, page + i);
    world.iommu.request(device, pasid, 9, page, { last: false });
    // some are in the hands of workers
    world.clock.run({ untilNs: world.clock.now + 1200 });
    world.iommu.queue!.removeDevice(device);
    expect(world.iommu.codes()).toEqual(Array<string>(6).fill('INVALID'));
    world.settle();
    expect(world.iommu.answers).toHaveLength(6);
    expect(world.core.usage.pendingRequests).toBe(0);
    world.iommu.queue!.addDevice(device);
    world.iommu.request(device, pasid, 9, page);
    world.settle();
    expect(world.iommu.codes(9)).toEqual(['SUCCESS']);
  });

  it('has limits; a last request beyond them is answered and its partials go (P5)', () => {
    const { world, device, page, pasid } = bound({ options: { iopfLimit: 2 } });
    world.iommu.request(device, pasid, 9, page, { last: false });
    for (let i = 0; i < 2; i++) world.iommu.request(device, pasid, i, page + i);
    world.iommu.request(device, pasid, 9, page + 3);
    expect(world.iommu.codes()).toEqual(['INVALID']);
    expect(world.iommu.answers[0]!.request.prgIndex).toBe(9);
    world.settle();
    expect(world.iommu.codes()).toEqual(['INVALID', 'SUCCESS', 'SUCCESS']);
    expect(world.core.usage.pendingRequests).toBe(0);
  });

  it('answers every group exactly once, whatever happens meanwhile (section 5: 1, 3)', () => {
    const step = fc.tuple(fc.constantFrom('last', 'partial', 'overflow', 'flush', 'run', 'readd'), fc.nat(3), fc.nat(7));
    fc.assert(fc.property(fc.array(step, { maxLength: 60 }), fc.integer({ min: 1, max: 5 }), (steps, iopfWorkers) => {
      const { world, device, mm, page, pasid } = bound({ options: { iopfWorkers } }, 4);
      world.run(mm.munmap((page + 3) * 4096, 4096));
      const asked: number[] = [];
      for (const [what, group, offset] of steps) {
        if (what === 'last') asked.push(world.iommu.request(device, pasid, group, page + offset));
        else if (what === 'partial') world.iommu.request(device, pasid, group, page + offset, { last: false });
        else if (what === 'overflow') world.iommu.queue!.discardPartial();
        else if (what === 'flush') {
          world.run(world.iommu.queue!.flushDevice(device));
          expect(world.iommu.answers).toHaveLength(asked.length);
        } else if (what === 'run') world.clock.run({ untilNs: world.clock.now + offset * 500 });
        else {
          world.iommu.queue!.removeDevice(device);
          world.iommu.queue!.addDevice(device);
        }
      }
      world.run(world.core.svaUnbind(device, pasid));
      expect(world.iommu.answers.map(({ correlation }) => correlation).sort((a, b) => a - b)).toEqual(asked);
      world.settle();
      expect(world.scheduler.deadlockReport()).toEqual([]);
    }), { numRuns: 60 });
  });

  it('gives the same story for the same seed, and another interleaving for another (scenario 35)', () => {
    const story = (seed: number): string => {
      const { world, device, page, pasid } = bound({ seed }, 64);
      for (let i = 0; i < 64; i++) world.iommu.request(device, pasid, i, page + i);
      world.settle();
      return world.trace.hash;
    };
    expect(story(1)).toBe(story(1));
    expect(story(1)).not.toBe(story(2));
  });
});

describe('present pages', () => {
  it('are exactly those asked for', () => {
    const { world, device, mm, page, pasid } = bound({}, 4);
    world.iommu.request(device, pasid, 1, page + 2);
    world.settle();
    expect(present(mm, page, 4)).toEqual([false, false, true, false]);
  });
});
