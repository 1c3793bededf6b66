import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { isErrno } from '../../sim/errno.js';
import { sleep, type Steps } from '../../sim/task.js';
import { Type1World } from '../fixtures/type1-world.js';

const PAGES = 8;

type Call = readonly [kind: 'map' | 'unmap' | 'attach' | 'detach' | 'pin' | 'unpin' | 'bind' | 'unbind' | 'dirty' | 'copy' | 'fault', at: number, size: number, delayNs: number];

const call: fc.Arbitrary<Call> = fc.tuple(
  fc.constantFrom('map', 'map', 'map', 'unmap', 'unmap', 'attach', 'attach', 'detach', 'detach', 'pin', 'pin', 'unpin', 'bind', 'unbind', 'dirty', 'copy', 'fault'),
  fc.nat(5), fc.integer({ min: 1, max: 3 }), fc.nat(4_000),
);

/** Calls of several tasks on one container at the same time; what is refused is refused. */
function together(calls: readonly Call[], exitAtNs: number): Type1World {
  const world = new Type1World({ memoryBytes: 2 ** 24, type1: { dmaEntryLimit: 6 } });
  world.run(world.core.devEnableFeature(world.device(2), 'AUX'));
  const mdev = world.mdev('aux', world.device(2)), vendor = world.mdev('vendor');
  const groups = [world.group(0), world.group(1), world.group(3), mdev, vendor, vendor];
  const user = world.user('vmm', [], { memlockLimitPages: 20 });
  const { process, container, iommu } = user;
  const vaddr = world.buffer(process, PAGES);
  const pinned: number[] = [];
  iommu.registerNotifier(vendor.device, {
    *dmaUnmap() {
      yield* sleep(world.clock, 300);
      for (const iova of pinned.splice(0)) iommu.unpinPages(vendor, vendor.device, [iova]);
    },
  });
  function* one([kind, at, size]: Call): Steps<unknown> {
    const group = groups[at]!, iova = at * 4096;
    switch (kind) {
      case 'map': return yield* container.mapDma({ iova, vaddr: vaddr + iova, sizeBytes: size * 4096 });
      case 'unmap': return yield* container.unmapDma(iova, size * 4096);
      case 'attach': return yield* iommu.attachGroup(group);
      case 'detach': return yield* iommu.detachGroup(group);
      case 'pin':
        yield* iommu.pinPages(vendor, vendor.device, [iova], 3);
        return pinned.push(iova);
      case 'unpin': return iommu.unpinPages(vendor, vendor.device, pinned.splice(0, size));
      case 'bind': return yield* container.bind();
      case 'unbind': return yield* container.unbind();
      case 'dirty': return yield* at < 3 ? container.startDirtyTracking() : container.stopDirtyTracking();
      case 'copy': return yield* iommu.dmaRw(vendor, iova + 4000, new Uint8Array(200), size > 1);
      case 'fault': return yield* process.mm.madviseDontNeed(vaddr + iova, size * 4096);
    }
  }
  function* later(made: Call): Steps {
    yield* sleep(world.clock, made[3]);
    if (process.state !== 'running') return;
    try {
      yield* one(made);
    } catch (error) {
      // a process that ends while it calls finds its memory gone
      if (!isErrno(error) && process.state === 'running') throw error;
    }
  }
  for (const [i, made] of calls.entries()) world.scheduler.spawn(`caller ${i}`, later(made));
  world.scheduler.spawn('killer', (function* () {
    yield* sleep(world.clock, exitAtNs);
    yield* process.exit();
  })());
  world.settle();
  expect(world.scheduler.deadlockReport()).toEqual([]);
  world.run(iommu.release());
  world.settle();
  return world;
}

describe('type1: calls of many tasks at the same time', () => {
  it('never wait for each other for ever and leave nothing behind, the end of the process in between (2g)', () => {
    fc.assert(fc.property(fc.array(call, { minLength: 5, maxLength: 30 }), fc.integer({ min: 2_000, max: 12_000 }), (calls, exitAtNs) => {
      const world = together(calls, exitAtNs);
      world.expectNothingInUse();
      expect(world.frames.framesOf('user')).toBe(0);
    }), { numRuns: 30, seed: 11 });
  });

  it('are the same story each time', () => {
    const calls: Call[] = [['attach', 0, 1, 0], ['map', 0, 3, 10], ['attach', 4, 1, 20], ['pin', 1, 1, 30], ['attach', 2, 1, 40], ['bind', 0, 1, 50], ['attach', 1, 1, 60], ['unmap', 0, 3, 900], ['detach', 0, 1, 1_000]];
    const [one, two] = [together(calls, 5_000), together(calls, 5_000)];
    expect(one.driver.counters).toMatchObject({ maps: 1, unmaps: 1 });
    expect(two.trace.hash).toBe(one.trace.hash);
  });
});
