/** Translations in a function's cache and their invalidation: PCIe 6.0 sections 10.2, 10.3; A2, A5, R-RACE-6, flow 2e, scenario 26. */
import { describe, expect, it } from 'vitest';
import { Random } from '../../sim/random.js';
import type { Steps } from '../../sim/task.js';
import { NO_PASID } from '../../host/pci/dma-port.js';
import { HoldingPort } from '../../host/pci/hardware/holding-port.js';
import { bytes, createWorld, findExtCapability, plugSva } from '../unit/pci-world.js';

const PASID = 9;

function warm(options: Parameters<typeof plugSva>[1] = {}) {
  const world = createWorld(), device = plugSva(world, options);
  for (let i = 0; i < 8; i++) world.agent.map(PASID, 0x70 + i, 0x20 + i);
  const write = function* (page: number, length: number): Steps<string> {
    return (yield* device.requester.write(page, 0, bytes(length), 0, length, PASID, 0, false)).status;
  };
  return { world, write, ...device };
}

describe('translations', () => {
  it('are asked for once per page, kept, and used with translated requests without PASID', () => {
    const { world, write, requester } = warm();
    expect(world.run(write(0x70, 5 * 4096))).toBe('done');
    expect([world.agent.translations, world.agent.translatedPages]).toEqual([5, [0x20, 0x21, 0x22, 0x23, 0x24]]);
    const before = world.clock.now;
    expect(requester.writeNow(0x70, 0, bytes(5 * 4096), 0, 5 * 4096, PASID, 0)).toBe(true);
    expect([requester.result.status, requester.result.doneBytes]).toEqual(['done', 5 * 4096]);
    expect(requester.result.costNs).toBe(150 + Math.ceil((5 * 4096) / 24));
    expect([world.agent.translations, world.clock.now]).toEqual([5, before]);
  });

  it('let readNow go as far as the cache knows, and read carry on', () => {
    const { world, write, requester } = warm();
    world.run(write(0x70, 8192));
    const target = new Uint8Array(4 * 4096);
    const outcome = world.run((function* () {
      const now = requester.readNow(0x70, 0, target, 0, target.length, PASID, 0);
      return [now, (yield* requester.read(0x70, 0, target, 0, target.length, PASID, 0, false)).doneBytes];
    })());
    expect(outcome).toEqual([false, 4 * 4096]);
    expect(target.subarray(0, 8192)).toEqual(bytes(8192));
    expect(world.agent.translations).toBe(4);
  });

  it('of large pages serve every page they cover', () => {
    const { world, write } = warm();
    world.agent.map(PASID, 0x205, 0x400, 'rw', 512);
    expect(world.run(write(0x205, 20 * 4096))).toBe('done');
    expect(world.agent.translations).toBe(1);
    expect(world.memory.load(0x405 * 4096 + 4, 1)).toBe(bytes(5)[4]);
  });

  it('are not used without ATS: requests go untranslated with their PASID', () => {
    const { world, write, fn, requester } = warm();
    world.run(write(0x70, 4096));
    expect(requester.atc.size).toBe(1);
    fn.config.write(findExtCapability(fn, 0x0f) + 6, 2, 0);
    expect(requester.atc.size).toBe(0);
    expect(world.run(write(0x70, 4096))).toBe('done');
    expect(world.agent.translatedPages).toEqual([0x20]);
    expect(world.run(write(0x99, 4096))).toBe('error');
  });

  it('are gone after a reset', () => {
    const { world, write, fn, requester } = warm();
    world.run(write(0x70, 4096));
    fn.reset('flr');
    expect(requester.atc.size).toBe(0);
    expect(world.run(write(0x70, 4096))).toBe('revoked');
  });
});

describe('an invalidation', () => {
  it('drops the range, then is completed; the next access asks anew (scenario 26)', () => {
    const { world, write } = warm();
    world.run(write(0x70, 4 * 4096));
    world.agent.unmap(PASID, 0x72);
    const sent = world.clock.now;
    world.fabric.invalidate(8, 5, 0x72, 2, PASID, false);
    world.clock.run();
    expect(world.agent.completions).toEqual([{ timeNs: sent + 150 + 400 + 150, sourceId: 8, tag: 5 }]);
    expect(world.run(write(0x70, 8192))).toBe('done');
    expect(world.agent.translations).toBe(4);
    expect(world.run(write(0x72, 4096))).toBe('page-fault');
    expect(world.run(write(0x73, 4096))).toBe('done');
    expect(world.agent.translations).toBe(6);
    expect(world.records('pci:invalidate')).toEqual([[8, PASID, 0x72, 2, 5, 0]]);
    expect(world.records('pci:invalidate_completion')).toEqual([[8, 5]]);
  });

  it('of all addresses without PASID drops everything (A5)', () => {
    const { world, write, requester } = warm();
    world.run(write(0x70, 4 * 4096));
    world.fabric.invalidate(8, 1, 0, Infinity, NO_PASID, false);
    world.clock.run();
    expect(requester.atc.size).toBe(0);
  });

  it('is answered while bus mastering is off, and not after removal', () => {
    const { world, fn } = warm();
    fn.config.write(4, 2, 0);
    world.fabric.invalidate(8, 1, 0, 1, PASID, false);
    world.clock.run();
    expect(world.agent.completions.map(({ tag }) => tag)).toEqual([1]);
    world.fabric.invalidate(8, 2, 0, 1, PASID, false);
    world.clock.run({ untilNs: world.clock.now + 200 });
    world.complex.remove(fn, { surprise: true });
    world.clock.run();
    expect(world.agent.completions.map(({ tag }) => tag)).toEqual([1]);
  });

  it('is caught when the function ignores it (defect pci.ignore-invalidation)', () => {
    const { world, write } = warm({ defects: new Set(['pci.ignore-invalidation']) });
    world.run(write(0x70, 4096));
    world.agent.unmap(PASID, 0x70);
    world.fabric.invalidate(8, 5, 0x70, 1, PASID, false);
    world.clock.run();
    expect(world.agent.completions).toHaveLength(1);
    expect(world.run(write(0x70, 4096))).toBe('done');
  });

  it('waits for translated requests that are held and used what it drops (section 10.3.3)', () => {
    for (const early of [false, true]) {
      const world = createWorld();
      const { requester } = plugSva(world, {
        defects: new Set(early ? ['pci.early-invalidate-completion'] : []),
        wrapPort: (port) => new HoldingPort({ port, clock: world.clock, random: new Random(5), probability: 1, maxHoldNs: 100_000 }),
      });
      world.agent.map(PASID, 0x70, 0x20);
      const ends: number[] = [];
      world.scheduler.spawn('job', (function* () {
        yield* requester.write(0x70, 0, bytes(64), 0, 64, PASID, 0, false);
        ends.push(world.clock.now);
      })());
      world.clock.post(2_000, () => world.fabric.invalidate(8, 1, 0x70, 1, PASID, false));
      world.clock.run();
      expect(ends[0]).toBeGreaterThan(3_000);
      expect(world.agent.completions[0]!.timeNs > ends[0]!).toBe(!early);
    }
  });
});

describe('a translation that an invalidation overtakes (R-RACE-6)', () => {
  function race(defects: string[]) {
    const { world, write, requester } = warm({ defects: new Set(defects) });
    // the request leaves at 0 and its completion arrives at 620; the invalidation arrives at 250
    world.clock.post(100, () => {
      world.agent.unmap(PASID, 0x70);
      world.fabric.invalidate(8, 1, 0x70, 1, PASID, false);
    });
    return { status: world.run(write(0x70, 4096)), world, requester };
  }

  it('does not enter the cache: the access finds no translation', () => {
    const { status, world, requester } = race([]);
    expect([status, requester.racedTranslations, world.agent.translations, requester.atc.size]).toEqual(['page-fault', 1, 2, 0]);
    expect(world.memory.load(0x20_000, 4)).toBe(0);
  });

  it('is caught when it does (defect pci.keep-raced-translation)', () => {
    const { status, world } = race(['pci.keep-raced-translation']);
    expect([status, world.agent.completions.length]).toEqual(['done', 1]);
  });

  it('nor does one of a large page of which another part was invalidated', () => {
    const { world, write, requester } = warm();
    world.agent.map(PASID, 0x205, 0x400, 'rw', 512);
    world.clock.post(100, () => {
      world.agent.unmap(PASID, 0x205);
      world.fabric.invalidate(8, 1, 0x3ff, 1, PASID, false);
    });
    expect([world.run(write(0x205, 4096)), requester.racedTranslations]).toEqual(['page-fault', 1]);
  });

  it('of another page or PASID is none of its business', () => {
    const { world, write, requester } = warm();
    world.clock.post(100, () => {
      world.fabric.invalidate(8, 1, 0x71, 1, PASID, false);
      world.fabric.invalidate(8, 2, 0x70, 1, PASID + 1, false);
    });
    expect([world.run(write(0x70, 4096)), requester.racedTranslations]).toEqual(['done', 0]);
  });
});
