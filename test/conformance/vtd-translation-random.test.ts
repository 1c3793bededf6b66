import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { ACCESS_READ, ACCESS_WRITE, NO_PASID } from '../../host/pci/dma-port.js';
import { Random } from '../../sim/random.js';
import { Ram } from '../../sim/memory.js';
import { faultReason } from '../../iommu/intel-vtd/spec/fault-reasons.js';
import { DEVICE, FL, PAGE, PASIDS, SILENT, SL, TranslationWorld, flAt } from './vtd-translation-world.js';

const MEMORY = 0x8_0000;

/** Tables of random words, most of them present and most pointers inside memory. */
function scramble(world: TranslationWorld, seed: number): void {
  const random = new Random(seed);
  for (let address = 0x1000; address < MEMORY; address += 8) {
    const kind = random.u32() % 16;
    const frame = kind === 0 ? random.u32() : random.u32() % (MEMORY >> 12);
    const low = random.u32() & (kind < 2 ? 0xfff : kind < 8 ? 0x7f : 0x67);
    const high = kind === 1 ? random.u32() : 0;
    world.memory.store64(address, ((frame << 12) | low | 3) >>> 0, high);
  }
}

describe('random bytes as tables', () => {
  it('never hang, throw or reach outside memory, and are explained as they are walked', () => {
    fc.assert(fc.property(fc.nat(), fc.constantFrom<'legacy' | bigint>('legacy', 1n, 2n, 3n, 4n), fc.boolean(), (seed, type, write) => {
      const world = new TranslationWorld({ memory: new Ram(MEMORY), iotlbEntries: 0 });
      scramble(world, seed);
      // a sound way in, so that the walk itself meets the random words
      if (type === 'legacy') world.legacy();
      else world.scalable(type);
      scramblePages(world, seed);
      const random = new Random(seed + 1);
      const pasid = type === 'legacy' ? NO_PASID : 5;
      for (let i = 0; i < 40; i++) {
        const page = (i & 1) === 0 ? PAGE : random.u32() % 2 ** 27;
        const explanation = world.backEnd.explainWalk(DEVICE, pasid, page, write ? ACCESS_WRITE : ACCESS_READ);
        const result = write ? world.write(page, pasid) : world.read(page, pasid);
        if (result < 0) expect([result === SILENT || faultReason(-result) !== undefined, explanation.reason]).toEqual([true, -result]);
        else expect(explanation.page).toBe(result);
        expect(explanation.steps.length).toBeLessThanOrEqual(4 + 5 * 6 * 2);
      }
    }), { numRuns: 60 });
  });

  it('cannot be told from tables without any structure either', () => {
    fc.assert(fc.property(fc.nat(), fc.integer({ min: 0, max: 3 }), (seed, mode) => {
      const world = new TranslationWorld({ memory: new Ram(MEMORY) });
      const random = new Random(seed);
      for (let address = 0; address < MEMORY; address += 4) world.memory.store(address, 4, random.u32());
      world.on(mode);
      for (let i = 0; i < 50; i++) {
        const source = random.u32() & 0xffff, page = random.u32() * 2 ** 20 + (random.u32() & 0xf_ffff), pasid = (i & 1) === 0 ? NO_PASID : random.u32() & 0xf_ffff;
        world.backEnd.translate(source, pasid, random.u32() & 7, page, (i & 2) === 0);
        world.backEnd.translationRequest(source, pasid, random.u32() & 11, page);
        world.backEnd.pageRequest(source, pasid, page, random.u32() & 15, true, i);
        world.backEnd.explainWalk(source, pasid, page, random.u32() & 15);
      }
      expect(world.faults.every((fault) => faultReason(fault.reason) !== undefined)).toBe(true);
    }), { numRuns: 30 });
  });
});

/** Random words in the tables that `scalable` and `legacy` built, the way in excepted. */
function scramblePages(world: TranslationWorld, seed: number): void {
  const random = new Random(seed + 2);
  for (let i = 0; i < 8; i++) {
    const level = random.u32() % 3;
    const table = (random.u32() & 1) === 0 ? FL[level]! : SL[level]!;
    const at = table + (Math.floor(PAGE / 512 ** level) % 512) * 8;
    world.memory.store64(at, ((random.u32() % (MEMORY >> 12)) << 12) | (random.u32() & 0xfff), (random.u32() & 3) === 0 ? random.u32() : 0);
  }
}

describe('caches against a model (invariant 4)', () => {
  type Step = { op: 'map' | 'unmap' | 'protect' | 'read' | 'write' | 'ats'; page: number; frame: number; pasid: number };
  const step: fc.Arbitrary<Step> = fc.record({
    op: fc.constantFrom('map', 'unmap', 'protect', 'read', 'write', 'ats'),
    page: fc.integer({ min: 0, max: 7 }),
    frame: fc.integer({ min: 0x1000, max: 0x1100 }),
    pasid: fc.integer({ min: 5, max: 6 }),
  });

  it.each([['first-level', 1n], ['nested', 3n]] as const)('never use a %s translation after its invalidation', (_name, type) => {
    fc.assert(fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
      const world = new TranslationWorld({ iotlbEntries: 8 }).scalable(type);
      // PASID 6 shares the upper tables but for the leaves' table, in the same domain
      world.memory.copy(PASIDS + 6 * 64, PASIDS + 5 * 64, 64);
      [3, 2, 1].forEach((level, i) => world.poke(0x2_8000 + i * 0x1000 + (Math.floor(PAGE / 512 ** level) % 512) * 8, BigInt(0x2_9000 + i * 0x1000) | 7n));
      world.poke(PASIDS + 6 * 64 + 16, 0x2_8000n);
      const leafAt = (pasid: number, page: number): number => (pasid === 5 ? flAt(0) : 0x2_b000 + (PAGE % 512) * 8) + page * 8;
      for (const { op, page, frame, pasid } of steps) {
        const at = leafAt(pasid, page);
        const word = world.peek(at);
        if (op === 'map' && (word & 1n) === 0n) world.poke(at, (BigInt(frame) << 12n) | 7n);
        else if (op === 'unmap' || op === 'protect') {
          world.poke(at, op === 'unmap' ? 0n : word & ~2n);
          world.backEnd.invalidatePasidIotlb('page', 7, pasid, PAGE + page, 1, true);
        } else if (op === 'read' || op === 'write') {
          const expected = (word & 1n) === 0n ? -0x71 : op === 'write' && (word & 2n) === 0n ? -0x85 : Number((word >> 12n) & 0xf_ffffn);
          expect(op === 'read' ? world.read(PAGE + page, pasid) : world.write(PAGE + page, pasid)).toBe(expected);
          if (expected > 0) expect(world.peek(at) & (op === 'write' ? 0x60n : 0x20n)).toBe(op === 'write' ? 0x60n : 0x20n);
        } else if (op === 'ats') {
          expect(world.ats(PAGE + page, pasid)).toBe((word & 1n) === 0n ? '---' : (word & 2n) === 0n ? 'R--' : 'RW-');
        }
      }
    }), { numRuns: 60 });
  });
});
