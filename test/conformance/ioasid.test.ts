/** The IOASID allocator: requirements I1–I5, E5, E41. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { VirtualClock } from '../../sim/clock.js';
import { Errno } from '../../sim/errno.js';
import { Random } from '../../sim/random.js';
import { KernelLog } from '../../host/kernel-log.js';
import { INVALID_IOASID, IoasidAllocator, IoasidSet, type CustomAllocator, type PasidPolicy } from '../../iommu/core/ioasid.js';
import { CoreWorld } from '../fixtures/core-world.js';

function allocator(options: { policy?: PasidPolicy; endId?: number; seed?: number } = {}) {
  const log = new KernelLog(new VirtualClock());
  const { seed = 1, ...rest } = options;
  return { log, ids: new IoasidAllocator({ log, random: new Random(seed), ...rest }), set: new IoasidSet('test') };
}

function code(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    if (error instanceof Errno) return error.code;
    throw error;
  }
  return 'none';
}

/** Hands out from `next` on. */
function custom(next: number): CustomAllocator & { freed: number[] } {
  const freed: number[] = [];
  return { alloc: (first) => Math.max(first, next++), free: (id) => void freed.push(id), freed };
}

describe('ioasid_alloc', () => {
  it('has an inclusive range and answers -1U when it is full, empty or outside (I1, E5)', () => {
    const { ids, set } = allocator({ endId: 16 });
    expect([ids.alloc(set, 5, 6), ids.alloc(set, 5, 6), ids.alloc(set, 5, 6)]).toEqual([5, 6, INVALID_IOASID]);
    expect(ids.alloc(set, 7, 6)).toBe(INVALID_IOASID);
    expect(ids.alloc(set, 15, 99)).toBe(15);
    expect(ids.alloc(set, 15, 99)).toBe(INVALID_IOASID);
    expect(ids.alloc(set, 16, 99)).toBe(INVALID_IOASID);
    expect(INVALID_IOASID).toBe(0xffff_ffff);
  });

  it('takes the lowest free id, from the lowest again after a free (I4)', () => {
    const { ids, set } = allocator();
    for (let i = 1; i <= 100; i++) expect(ids.alloc(set, 1, 1000)).toBe(i);
    ids.free(40);
    ids.free(7);
    expect([ids.alloc(set, 1, 1000), ids.alloc(set, 1, 1000), ids.alloc(set, 1, 1000)]).toEqual([7, 40, 101]);
  });

  it('cycles through the range before it reuses (I4)', () => {
    const { ids, set } = allocator({ policy: 'cyclic' });
    const seen: number[] = [];
    for (let i = 0; i < 6; i++) {
      const id = ids.alloc(set, 1, 4);
      seen.push(id);
      ids.free(id);
    }
    expect(seen).toEqual([1, 2, 3, 4, 1, 2]);
  });

  it('takes random ids that the seed decides, and all of them in the end (I4)', () => {
    const draw = (seed: number) => {
      const { ids, set } = allocator({ policy: 'random', seed });
      return Array.from({ length: 200 }, () => ids.alloc(set, 1, 200));
    };
    expect(draw(1)).toEqual(draw(1));
    expect(draw(1)).not.toEqual(draw(2));
    expect(draw(1).sort((a, b) => a - b)).toEqual(Array.from({ length: 200 }, (_, i) => i + 1));
  });
});

describe('ioasid_free, ioasid_find, ioasid_set_data', () => {
  it('free of an unknown id is an error message only (I1)', () => {
    const { ids, set, log } = allocator();
    const id = ids.alloc(set, 1, 9);
    expect([ids.free(id), ids.free(id)]).toEqual([true, false]);
    expect(log.lines.map(({ text }) => text)).toEqual([`Trying to free unknown IOASID ${id}`]);
  });

  it('find: ENOENT unknown, EACCES wrong set, nothing when the getter refuses (I1, E41)', () => {
    const { ids, set } = allocator();
    const id = ids.alloc(set, 1, 9, 'private');
    expect(ids.find(set, id)).toBe('private');
    expect(ids.find(undefined, id)).toBe('private');
    expect(code(() => ids.find(new IoasidSet('other'), id))).toBe('EACCES');
    expect(code(() => ids.find(set, id + 1))).toBe('ENOENT');
    expect(ids.find(set, id, () => false)).toBeUndefined();
    ids.free(id);
    expect(code(() => ids.find(set, id))).toBe('ENOENT');
  });

  it('set_data: ENOENT unknown; a reused id has no old data (I1)', () => {
    const { ids, set } = allocator();
    const id = ids.alloc(set, 1, 9);
    ids.setData(id, 'later');
    expect(ids.find(set, id)).toBe('later');
    expect(code(() => ids.setData(id + 1, 'x'))).toBe('ENOENT');
    ids.free(id);
    expect(ids.find(set, ids.alloc(set, id, id))).toBeUndefined();
  });
});

describe('custom allocators', () => {
  it('the first registered serves, its frees reach it (I2)', () => {
    const { ids, set } = allocator();
    const [one, two] = [custom(100), custom(200)];
    ids.registerAllocator(one);
    ids.registerAllocator(two);
    const id = ids.alloc(set, 1, 1000, 'data');
    expect(id).toBe(100);
    expect(ids.find(set, id)).toBe('data');
    ids.free(id);
    expect([one.freed, two.freed]).toEqual([[100], []]);
  });

  it('EAGAIN while the default allocator has live ids, EEXIST twice (I2)', () => {
    const { ids, set } = allocator();
    const one = custom(100);
    const id = ids.alloc(set, 1, 9);
    expect(code(() => ids.registerAllocator(one))).toBe('EAGAIN');
    expect(ids.find(set, id)).toBeUndefined();
    ids.free(id);
    ids.registerAllocator(one);
    expect(code(() => ids.registerAllocator(one))).toBe('EEXIST');
  });

  it('with the same functions share one space, which outlives one of them (I2)', () => {
    const { ids, set } = allocator();
    const one = custom(100);
    const two: CustomAllocator = { alloc: one.alloc, free: one.free, data: 2 };
    ids.registerAllocator(one);
    ids.registerAllocator(two);
    const id = ids.alloc(set, 1, 1000, 'kept');
    ids.unregisterAllocator(one);
    expect(ids.find(set, id)).toBe('kept');
  });

  it('falls back to the next, then to the default; live ids of the last are orphaned with a warning (I2)', () => {
    const { ids, set, log } = allocator();
    const [one, two] = [custom(100), custom(200)];
    ids.registerAllocator(one);
    ids.registerAllocator(two);
    const orphan = ids.alloc(set, 1, 1000);
    ids.unregisterAllocator(one);
    expect(code(() => ids.find(set, orphan))).toBe('ENOENT');
    const second = ids.alloc(set, 1, 1000);
    expect(second).toBe(200);
    ids.free(second);
    ids.unregisterAllocator(two);
    expect(ids.alloc(set, 1, 1000)).toBe(1);
    ids.unregisterAllocator(two);
    expect(log.lines.map(({ level, text }) => `${level} ${text}`)).toEqual([
      'warn IOASID allocator unregistered, 1 IOASIDs orphaned', 'info IOASID allocator changed',
      'info No custom IOASID allocators, switch to default.', 'warn No custom IOASID allocators active!',
    ]);
  });

  it('an id that is live already is given back and refused (I2)', () => {
    const { ids, set } = allocator();
    const freed: number[] = [];
    ids.registerAllocator({ alloc: () => 5, free: (id) => void freed.push(id) });
    expect([ids.alloc(set, 1, 9), ids.alloc(set, 1, 9)]).toEqual([5, INVALID_IOASID]);
    expect(freed).toEqual([5]);
  });
});

describe('the kernel\'s PASIDs', () => {
  it('are 1 to max - 1 of 20 bits; no room is no PASID (I3, I5)', () => {
    const { core } = new CoreWorld();
    expect(core.allocPasid(0, 0, 'x')).toBeUndefined();
    expect(core.allocPasid(1, 0, 'x')).toBeUndefined();
    expect(core.allocPasid(0xf_ffff, 0xffff_ffff, 'x')).toBe(0xf_ffff);
    expect(core.allocPasid(0xf_ffff, 0xffff_ffff, 'x')).toBeUndefined();
    expect(core.usage.pasids).toBe(1);
    core.freePasid(0xf_ffff);
    expect(core.usage.pasids).toBe(0);
  });
});

describe('any sequence of allocs and frees', () => {
  it('agrees with a set of numbers (I1)', () => {
    fc.assert(fc.property(
      fc.array(fc.tuple(fc.boolean(), fc.nat(200), fc.nat(200)), { maxLength: 200 }), fc.constantFrom<PasidPolicy>('lowest', 'cyclic', 'random'),
      (steps, policy) => {
        // chunks of 4096 ids: the range straddles two
        const { ids, set } = allocator({ policy, endId: 4200 });
        const model = new Set<number>();
        for (const [take, a, b] of steps) {
          const first = 4000 + a, last = first + b;
          if (!take) expect(ids.free(first)).toBe(model.delete(first));
          else {
            const id = ids.alloc(set, first, last);
            const free = Array.from({ length: b + 1 }, (_, i) => first + i).filter((n) => n < 4200 && !model.has(n));
            if (free.length === 0) expect(id).toBe(INVALID_IOASID);
            else if (policy === 'lowest') expect(id).toBe(free[0]);
            else expect(free).toContain(id);
            if (id !== INVALID_IOASID) model.add(id);
          }
          expect(ids.live).toBe(model.size);
        }
      }), { numRuns: 100 });
  });

  it('hands out a million ids and takes them back (growth)', () => {
    const { ids, set } = allocator();
    const last = 1_000_000;
    for (let id = 1; id <= last; id++) if (ids.alloc(set, 1, last) !== id) throw new Error(`expected ${id}`);
    expect(ids.alloc(set, 1, last)).toBe(INVALID_IOASID);
    ids.free(777_777);
    expect(ids.alloc(set, 1, last)).toBe(777_777);
    for (let id = 1; id <= last; id++) ids.free(id);
    expect(ids.live).toBe(0);
  });
});
