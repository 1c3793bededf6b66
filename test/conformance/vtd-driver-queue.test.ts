/** Queued invalidation from the driver's side: encodings, many submitters, and recovery from errors (E39, E40, scenario 27). */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Steps } from '../../sim/task.js';
import { alignedRange, DescriptorBatch, responseWord0, responseWord1, responseWord2, waitWords } from '../../iommu/intel-vtd/driver/descriptor-batch.js';
import { DriverWorld, type TestFunction } from './vtd-driver-world.js';

const WAIT = 'd WAIT 0x200000025';
const DRAINS = { drainReads: true, drainWrites: true };

function qwords(batch: DescriptorBatch): string[] {
  const word = (at: number): string => (batch.words[at]! >>> 0).toString(16).padStart(8, '0');
  return Array.from({ length: batch.count }, (_, i) => `${word(4 * i + 1)}${word(4 * i)} ${word(4 * i + 3)}${word(4 * i + 2)}`);
}

describe('descriptors', () => {
  it('carry the words of requirements section 9', () => {
    const batch = new DescriptorBatch(DRAINS);
    batch.pasidIotlb(1, 0x12345).pasidIotlbPages(1, 0x12345, { page: 0x7f0123456, order: 0 }, false).pasidCache(1, 1, 0x12345);
    batch.deviceTlb({ sourceId: 0x19, queueDepth: 4, pfSourceId: 0x19 }, 0x12345, { page: 0x7f0123456, order: 0 });
    expect(qwords(batch)).toEqual([
      '0001234500010026 0000000000000000', '0001234500010036 00007f0123456000', '0001234500010017 0000000000000000', '0011234500199048 00007f0123456000',
    ]);
    expect(Array.from(waitWords(0x1000, true).slice(0, 4))).toEqual([0xa5, 2, 0x1000, 0]);
  });

  it.each([[0, 0x00190019], [1, 0x00191019], [15, 0x0019f019]])('carry a page-group response with code %i (VTD-PGRP)', (code, word0) => {
    expect([responseWord0(0x19, true, code), responseWord1(0x12345), responseWord2(0x1a5, true)]).toEqual([word0, 0x12345, 0xd2c]);
  });

  it('cover unaligned ranges with the next larger aligned power of two, as recorded', () => {
    // munmap of 16 pages at 0x7fd9b5c0d000: AM 5 from …c00, and S with 0x7fd9b5c0f
    const range = alignedRange(0x7fd9b5c0d, 16);
    expect(range).toEqual({ page: 0x7fd9b5c00, order: 5 });
    const batch = new DescriptorBatch(DRAINS).pasidIotlbPages(1, 2, range, false).deviceTlb({ sourceId: 0x20, queueDepth: 32, pfSourceId: 0 }, 2, range);
    expect(qwords(batch)).toEqual(['0000000200010036 00007fd9b5c00005', '0000000200200008 00007fd9b5c0f800']);
  });

  it('cover every page of the range, from an aligned start, and no more than twice what an aligned range could', () => {
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 2 ** 40 }), fc.integer({ min: 1, max: 2 ** 24 }), (page, pages) => {
        const range = alignedRange(page, pages);
        const size = 2 ** range.order;
        expect(range.page % size).toBe(0);
        expect(range.page).toBeLessThanOrEqual(page);
        expect(range.page + size).toBeGreaterThanOrEqual(page + pages);
        if (range.order > 0) expect(Math.floor(page / (size / 2))).not.toBe(Math.floor((page + pages - 1) / (size / 2)));
      }),
      { numRuns: 200 },
    );
  });

  it('say "everything" as all ones below bit 63', () => {
    const batch = new DescriptorBatch(DRAINS).deviceTlb({ sourceId: 0x20, queueDepth: 32, pfSourceId: 0 }, 2, alignedRange(0, 2 ** 52));
    batch.deviceTlb({ sourceId: 0x20, queueDepth: 32, pfSourceId: 0 }, 0, alignedRange(0, 2 ** 52));
    expect(qwords(batch)).toEqual(['0000000200200008 7ffffffffffff800', '0000002000000003 7ffffffffffff001']);
  });
});

describe('submissions', () => {
  it('of many tasks all complete, and the ring wraps', () => {
    const world = new DriverWorld().start();
    const dsa = world.svaFunction();
    const { queue } = world.driver.units[0]!;
    const tasks = Array.from({ length: 40 }, (_, i) => {
      const steps = function* (): Steps {
        for (let n = 0; n < 20; n++) {
          const batch = queue.batch().pasidIotlb(1, i + 1).deviceTlb({ sourceId: dsa.sourceId, queueDepth: 32, pfSourceId: 0 }, i + 1, { page: n, order: 0 });
          yield* queue.submitSync(batch);
        }
      };
      return world.scheduler.spawn(`submitter ${i}`, steps(), { joined: true });
    });
    world.settle();
    expect(tasks.map((task) => task.state)).toEqual(tasks.map(() => 'done'));
    expect(world.unit.frontEnd.invalidationQueue.pending).toEqual({ operations: 0, waits: 0 });
    // 256 slots, never more in use than fit: one batch of the largest size still goes through
    world.run(queue.submitSync(fill(queue.batch(), 254)));
    expect(dsa.invalidations.filter((line) => line !== '-1 0+Infinity')).toHaveLength(800);
  });

  it('larger than the ring are a bug', () => {
    const world = new DriverWorld().start();
    expect(() => world.run(world.driver.units[0]!.queue.submitSync(fill(world.driver.units[0]!.queue.batch(), 255)))).toThrow('do not fit');
  });
});

function fill(batch: DescriptorBatch, count: number): DescriptorBatch {
  for (let i = 0; i < count; i++) batch.pasidIotlb(1, 1);
  return batch;
}

describe('a descriptor that hardware refuses (E40)', () => {
  it('becomes a copy of its wait; the submitter gets EINVAL, the queue goes on', () => {
    const world = new DriverWorld().start();
    const { queue } = world.driver.units[0]!;
    world.take();
    const refusal = world.refusal(queue.submitSync(queue.batch().raw(0xf, 0, 0, 0)));
    expect(refusal.code).toBe('EINVAL');
    // as recorded in vtd-injected-iqe: IQH and IQERCD for the log, IQH again to find the descriptor, IQE cleared
    expect(world.take()).toEqual(['w IQT 4 0x100', 'd ? 0xf 0x0', WAIT, 'r FSTS 4 0x10', 'r IQH 4 0xc0', 'r IQERCD 8 0x3', 'r IQH 4 0xc0', 'w FSTS 4 0x10']);
    expect(world.lines(/Queue Error|QI /)).toEqual([
      'DMAR: VT-d detected Invalidation Queue Error: Reason 3',
      'DMAR: QI HEAD: UNKNOWN qw0 = 0xf, qw1 = 0x0',
      expect.stringMatching(/^DMAR: QI PRIOR: Invalidation Wait qw0 = 0x200000025, qw1 = 0x/),
      'DMAR: Invalidation Queue Error (IQE) cleared',
    ]);
    world.run(queue.submitSync(queue.batch().pasidIotlb(1, 1)));
  });

  it('is found behind good ones, and others who submit meanwhile are not harmed', () => {
    const world = new DriverWorld().start();
    const { queue } = world.driver.units[0]!;
    const bad = world.scheduler.spawn('bad', queue.submitSync(queue.batch().pasidIotlb(1, 1).raw(0xf, 0, 0, 0).pasidIotlb(1, 2)), { joined: true });
    const good = world.scheduler.spawn('good', queue.submitSync(queue.batch().pasidIotlb(1, 3)), { joined: true });
    world.settle();
    expect([bad.state, good.state]).toEqual(['failed', 'done']);
    expect(String(bad.error)).toContain('EINVAL');
  });
});

const SHORT = { timing: { invalidationTimeoutNs: 50_000 } };

function silent(world: DriverWorld): TestFunction {
  const dsa = world.svaFunction();
  dsa.completes = false;
  dsa.invalidations.length = 0;
  return dsa;
}

describe('a device TLB that does not answer', () => {
  it('is asked again until it does, and nobody else is refused (scenario 27)', () => {
    const world = new DriverWorld(SHORT).start();
    const dsa = silent(world);
    const { queue } = world.driver.units[0]!;
    world.clock.post(80_000, () => { dsa.completes = true; });
    const other = world.scheduler.spawn('other', queue.submitSync(queue.batch().pasidIotlb(1, 9)), { joined: true });
    world.run(queue.submitSync(queue.batch().deviceTlb({ sourceId: dsa.sourceId, queueDepth: 32, pfSourceId: 0 }, 1, { page: 5, order: 0 })));
    expect(other.state).toBe('done');
    expect(dsa.invalidations).toEqual(['1 5+1', '1 5+1', '1 5+1']);
    expect(world.lines(/Time-out|ITE/)).toEqual([
      'DMAR: VT-d detected Invalidation Time-out Error: SID 20', 'DMAR: Invalidation Time-out Error (ITE) cleared',
      'DMAR: VT-d detected Invalidation Time-out Error: SID 20', 'DMAR: Invalidation Time-out Error (ITE) cleared',
    ]);
  });

  it('gives ETIMEDOUT once when its device is gone (E39), also to no one else', () => {
    const world = new DriverWorld(SHORT).start();
    const dsa = silent(world);
    const { queue } = world.driver.units[0]!;
    const lost = world.scheduler.spawn(
      'lost', queue.submitSync(queue.batch().deviceTlb({ sourceId: dsa.sourceId, queueDepth: 32, pfSourceId: 0 }, 1, { page: 5, order: 0 })), { joined: true },
    );
    const other = world.scheduler.spawn('other', queue.submitSync(queue.batch().pasidIotlb(1, 9)), { joined: true });
    world.clock.post(1_000, () => { dsa.present = false; });
    world.settle();
    expect(String(lost.error)).toContain('ETIMEDOUT');
    expect(other.state).toBe('done');
    expect(dsa.invalidations).toEqual(['1 5+1']);
    world.run(queue.submitSync(queue.batch().pasidIotlb(1, 1)));
  });

  it('reads and clears what Linux does (vtd-injected-ite)', () => {
    const world = new DriverWorld(SHORT).start();
    const dsa = silent(world);
    const { queue } = world.driver.units[0]!;
    world.take();
    world.clock.post(40_000, () => { dsa.completes = true; });
    world.run(queue.submitSync(queue.batch().deviceTlb({ sourceId: dsa.sourceId, queueDepth: 32, pfSourceId: 0 }, 1, { page: 5, order: 0 })));
    const notes = world.take();
    const at = notes.findIndex((note) => note.startsWith('r IQERCD')) - 2;
    expect(notes.slice(at, at + 6)).toEqual([
      'r FSTS 4 0x40', expect.stringMatching(/^r IQH 4 /), 'r IQERCD 8 0x2000000000', expect.stringMatching(/^r IQH 4 /), expect.stringMatching(/^r IQT 4 /), 'w FSTS 4 0x40',
    ]);
  });
});

describe('a completion that nobody asked for (ICE)', () => {
  it('is cleared and hinders nothing', () => {
    const world = new DriverWorld().start();
    const dsa = world.svaFunction();
    const { queue } = world.driver.units[0]!;
    world.unit.invalidateCompletion(dsa.sourceId, 7);
    world.run(queue.submitSync(queue.batch().deviceTlb({ sourceId: dsa.sourceId, queueDepth: 32, pfSourceId: 0 }, 1, { page: 5, order: 0 })));
    expect(world.lines(/ICE|Completion Error/)).toEqual([
      'DMAR: VT-d detected Invalidation Completion Error: SID 20', 'DMAR: Invalidation Completion Error (ICE) cleared',
    ]);
  });
});

describe('posted descriptors', () => {
  it('of one instant share a wait', () => {
    const world = new DriverWorld().start();
    const { queue } = world.driver.units[0]!;
    world.settle();
    world.take();
    for (let i = 0; i < 300; i++) queue.post(responseWord0(0x20, true, 0), 1, responseWord2(i % 512, true), 0);
    world.settle();
    const notes = world.takeDescriptors();
    expect(notes.filter((note) => note === WAIT)).toHaveLength(3);
    expect(notes.filter((note) => note.startsWith('d PGRP'))).toHaveLength(300);
  });

  it('have been executed when a flush returns', () => {
    const world = new DriverWorld().start();
    const dsa = world.svaFunction();
    const { queue } = world.driver.units[0]!;
    queue.post(responseWord0(dsa.sourceId, true, 1), 1, responseWord2(3, true), 0);
    world.run(queue.flushPosted());
    world.settle();
    expect(dsa.responses).toEqual(['3 1 1']);
  });
});
