import { describe, expect, it } from 'vitest';
import { buildCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { CONTEXTS, DEVICE, DIRECTORY, FL, P, PAGE, PASIDS, PS, RW, TARGET, TranslationWorld, US, flAt, slAt } from './vtd-translation-world.js';

const CONTEXT = CONTEXTS + DEVICE * 32;
const ENTRY = PASIDS + 5 * 64;
const OTHER = 0x1555;
const leaf = (frame: number): bigint => (BigInt(frame) << 12n) | P | RW | US;

describe('context cache (VT-d 4.1, 6.2.2)', () => {
  const stale = (): TranslationWorld => {
    const world = new TranslationWorld().scalable(1n);
    expect(world.read(PAGE, 5)).toBe(TARGET);
    world.poke(CONTEXT, 0n);
    expect(world.read(PAGE, 5)).toBe(TARGET);
    return world;
  };

  it.each([
    ['globally', 'global', 0, 0, 0, true],
    ['by domain, which scalable entries do not carry', 'domain', 99, 0, 0, true],
    ['by device', 'device', 0, DEVICE, 0, true],
    ['by device with a function mask', 'device', 0, DEVICE + 7, 3, true],
    ['not by another device', 'device', 0, DEVICE + 8, 3, false],
    ['not by another function', 'device', 0, DEVICE + 4, 0, false],
    ['by function bit 2', 'device', 0, DEVICE + 4, 1, true],
    ['not by function bit 1 with mask 1', 'device', 0, DEVICE + 2, 1, false],
    ['by function bit 1 with mask 2', 'device', 0, DEVICE + 2, 2, true],
  ] as const)('is stale until invalidated %s', (_name, granularity, domain, source, mask, gone) => {
    const world = stale();
    world.backEnd.invalidateContext(granularity, domain, source, mask);
    expect(world.read(PAGE, 5)).toBe(gone ? -0x41 : TARGET);
  });

  it('is not touched by other invalidations', () => {
    const world = stale();
    world.backEnd.invalidatePasidCache('global', 0, 0);
    world.backEnd.invalidateIotlb('global', 0, 0, 1, false);
    expect(world.read(PAGE, 5)).toBe(TARGET);
  });

  it('tells legacy entries apart by domain', () => {
    const world = new TranslationWorld().legacy();
    world.read();
    world.poke(CONTEXTS + DEVICE * 16, 0n);
    world.backEnd.invalidateContext('domain', 6, 0, 0);
    expect(world.read()).toBe(TARGET);
    world.backEnd.invalidateContext('domain', 5, 0, 0);
    expect(world.read()).toBe(-0x02);
  });

  it('caches nothing that is not present, in caching mode neither', () => {
    for (const mode of [false, true]) {
      const world = new TranslationWorld({ capabilities: buildCapabilities({ 'caching-mode': mode }).capabilities }).scalable(1n);
      const word = world.peek(CONTEXT);
      world.poke(CONTEXT, 0n);
      expect(world.read(PAGE, 5)).toBe(-0x41);
      world.poke(CONTEXT, word);
      expect(world.read(PAGE, 5)).toBe(TARGET);
    }
  });
});

describe('PASID cache (6.2.3)', () => {
  it.each([
    ['globally', 'global', 0, 0, true], ['by domain', 'domain', 7, 0, true], ['by PASID', 'pasid', 7, 5, true],
    ['not by another domain', 'domain', 8, 5, false], ['not by another PASID', 'pasid', 7, 6, false], ['not by the PASID in another domain', 'pasid', 8, 5, false],
  ] as const)('is stale until invalidated %s', (_name, granularity, domain, pasid, gone) => {
    const world = new TranslationWorld().scalable(1n), defective = new TranslationWorld({ defects: ['vtd.skip-pasid-cache-flush'] }).scalable(1n);
    for (const w of [world, defective]) {
      w.read(PAGE, 5);
      w.poke(ENTRY, 0n);
      expect(w.read(PAGE, 5)).toBe(TARGET);
      w.backEnd.invalidatePasidCache(granularity, domain, pasid);
    }
    expect(world.read(PAGE, 5)).toBe(gone ? -0x59 : TARGET);
    expect(defective.read(PAGE, 5)).toBe(TARGET);
  });

  it('also holds the entry behind RID_PASID', () => {
    const world = new TranslationWorld().scalable(1n);
    world.read();
    world.poke(PASIDS, 0n);
    expect(world.read()).toBe(TARGET);
    world.backEnd.invalidatePasidCache('pasid', 7, 0);
    expect(world.read()).toBe(-0x59);
  });
});

describe('IOTLB (6.2.5)', () => {
  it.each([
    ['global', (w: TranslationWorld) => w.backEnd.invalidateIotlb('global', 0, 0, 1, false), true],
    ['by domain', (w: TranslationWorld) => w.backEnd.invalidateIotlb('domain', 7, 0, 1, false), true],
    ['not by another domain', (w: TranslationWorld) => w.backEnd.invalidateIotlb('domain', 8, 0, 1, false), false],
    ['by any page of the domain: its first-level translations have no address there', (w: TranslationWorld) => w.backEnd.invalidateIotlb('page', 7, 1, 1, false), true],
    ['by PASID', (w: TranslationWorld) => w.backEnd.invalidatePasidIotlb('pasid', 7, 5, 0, 1, false), true],
    ['not by another PASID', (w: TranslationWorld) => w.backEnd.invalidatePasidIotlb('pasid', 7, 6, 0, 1, false), false],
    ['by page', (w: TranslationWorld) => w.backEnd.invalidatePasidIotlb('page', 7, 5, PAGE, 1, false), true],
    ['by page with the leaf hint', (w: TranslationWorld) => w.backEnd.invalidatePasidIotlb('page', 7, 5, PAGE, 1, true), true],
    ['by a range around it', (w: TranslationWorld) => w.backEnd.invalidatePasidIotlb('page', 7, 5, PAGE - (PAGE % 32), 32, true), true],
    ['not by the page beside it', (w: TranslationWorld) => w.backEnd.invalidatePasidIotlb('page', 7, 5, PAGE + 1, 1, false), false],
    ['not by the context cache', (w: TranslationWorld) => w.backEnd.invalidateContext('global', 0, 0, 0), false],
    ['not by the PASID cache', (w: TranslationWorld) => w.backEnd.invalidatePasidCache('global', 0, 0), false],
  ] as const)('is stale until invalidated: %s', (_name, invalidate, gone) => {
    const world = new TranslationWorld().scalable(1n);
    world.read(PAGE, 5);
    world.poke(flAt(0), leaf(OTHER));
    expect(world.read(PAGE, 5)).toBe(TARGET);
    invalidate(world);
    expect(world.read(PAGE, 5)).toBe(gone ? OTHER : TARGET);
  });

  it.each([
    ['by page', (w: TranslationWorld) => w.backEnd.invalidateIotlb('page', 5, PAGE, 1, false), true],
    ['by page with the leaf hint', (w: TranslationWorld) => w.backEnd.invalidateIotlb('page', 5, PAGE, 1, true), true],
    ['by an aligned range', (w: TranslationWorld) => w.backEnd.invalidateIotlb('page', 5, PAGE - (PAGE % 16), 16, true), true],
    ['not by the page beside it', (w: TranslationWorld) => w.backEnd.invalidateIotlb('page', 5, PAGE - 1, 1, false), false],
    ['not by another domain', (w: TranslationWorld) => w.backEnd.invalidateIotlb('page', 6, PAGE, 1, false), false],
    ['not by a PASID', (w: TranslationWorld) => w.backEnd.invalidatePasidIotlb('page', 5, 0, PAGE, 1, false), false],
  ] as const)('holds legacy translations until invalidated %s', (_name, invalidate, gone) => {
    const world = new TranslationWorld().legacy();
    world.read();
    world.poke(slAt(0), (BigInt(OTHER) << 12n) | 3n);
    expect(world.read()).toBe(TARGET);
    invalidate(world);
    expect(world.read()).toBe(gone ? OTHER : TARGET);
  });

  it('drops a large translation by any of its pages', () => {
    const world = new TranslationWorld().scalable(1n);
    world.poke(flAt(1), 0x60_0000n | P | RW | US | PS);
    expect(world.read(PAGE, 5)).toBe(0x656);
    world.poke(flAt(1), 0x80_0000n | P | RW | US | PS);
    expect(world.read(PAGE + 1, 5)).toBe(0x657);
    world.backEnd.invalidatePasidIotlb('page', 7, 5, PAGE - 0x56, 1, true);
    expect(world.read(PAGE + 1, 5)).toBe(0x857);
  });

  it('caches nothing that is not present', () => {
    const world = new TranslationWorld().scalable(1n);
    world.poke(flAt(0), 0n);
    expect(world.read(PAGE, 5)).toBe(-0x71);
    world.poke(flAt(0), leaf(OTHER));
    expect(world.read(PAGE, 5)).toBe(OTHER);
  });

  it('walks again when a cached translation permits too little', () => {
    const world = new TranslationWorld().scalable(1n);
    world.clear(flAt(0), RW);
    expect([world.read(PAGE, 5), world.write(PAGE, 5)]).toEqual([TARGET, -0x85]);
    world.or(flAt(0), RW);
    expect([world.write(PAGE, 5), world.backEnd.walkAccesses > 0]).toEqual([TARGET, true]);
    // so it does above the leaf, where the structure cache holds the old right
    const above = new TranslationWorld().scalable(1n);
    above.clear(flAt(1), RW);
    expect([above.read(PAGE, 5), above.write(PAGE, 5)]).toEqual([TARGET, -0x85]);
    above.or(flAt(1), RW);
    expect(above.write(PAGE, 5)).toBe(TARGET);
  });

  it('shares translations between requesters of one domain and PASID, never between PASIDs or domains', () => {
    const world = new TranslationWorld().scalable(1n);
    world.poke(CONTEXTS + 0x18 * 32, BigInt(DIRECTORY) | 0x1dn, 0n, 0n, 0n);
    // PASID 6 has tables of its own
    world.poke(PASIDS + 6 * 64, 1n | (1n << 6n), 7n, 0x2_8000n);
    [3, 2, 1].forEach((level, i) => world.poke(0x2_8000 + i * 0x1000 + (Math.floor(PAGE / 512 ** level) % 512) * 8, BigInt(0x2_9000 + i * 0x1000) | P | RW | US));
    world.poke(0x2_b000 + (PAGE % 512) * 8, leaf(OTHER));
    expect([world.read(PAGE, 5), world.read(PAGE, 6)]).toEqual([TARGET, OTHER]);
    expect([world.backEnd.translate(0x18, 5, 0, PAGE, false), world.backEnd.page, world.backEnd.lastHit()?.pasid]).toEqual([0, TARGET, 5]);
    const defective = new TranslationWorld({ defects: ['vtd.untagged-pasid'] });
    defective.memory.write(0, bytesOf(world), 0, 0x10_0000);
    defective.on(1);
    expect([defective.read(PAGE, 5), defective.read(PAGE, 6)]).toEqual([TARGET, TARGET]);
  });

  it('lists what it holds', () => {
    const world = new TranslationWorld().scalable(1n);
    world.read(PAGE, 5);
    expect(world.backEnd.cachedTranslations()).toMatchObject([{ domainId: 7, pasid: 5, page: PAGE, pages: 1, frame: TARGET }]);
  });

  it('is off with 0 entries, and every other cache with it', () => {
    const world = new TranslationWorld({ iotlbEntries: 0 }).scalable(3n);
    expect(world.read(PAGE, 5)).toBe(TARGET);
    world.poke(flAt(0), leaf(OTHER));
    expect([world.read(PAGE, 5), world.read(PAGE, 5)]).toEqual([OTHER, OTHER]);
    world.poke(flAt(1), 0n);
    expect(world.read(PAGE, 5)).toBe(-0x71);
    world.poke(ENTRY, 0n);
    expect(world.read(PAGE, 5)).toBe(-0x59);
    world.poke(CONTEXT, 0n);
    expect(world.read(PAGE, 5)).toBe(-0x41);
  });
});

describe('paging-structure caches (6.2.4)', () => {
  /** The level-1 entry now leads to another table; the neighbour page has not been translated before. */
  const moved = (): TranslationWorld => {
    const world = new TranslationWorld().scalable(1n);
    world.poke(flAt(0) + 8, leaf(0x777));
    world.read(PAGE, 5);
    world.poke(flAt(1), 0x2_f000n | P | RW | US);
    world.poke(0x2_f000 + ((PAGE + 1) % 512) * 8, leaf(OTHER));
    return world;
  };

  it('are stale until invalidated, and survive the leaf hint', () => {
    expect(moved().read(PAGE + 1, 5)).toBe(0x777);
    const hinted = moved();
    hinted.backEnd.invalidatePasidIotlb('page', 7, 5, PAGE + 1, 1, true);
    expect(hinted.read(PAGE + 1, 5)).toBe(0x777);
    for (const invalidate of [
      (w: TranslationWorld) => w.backEnd.invalidatePasidIotlb('page', 7, 5, PAGE + 1, 1, false),
      (w: TranslationWorld) => w.backEnd.invalidatePasidIotlb('pasid', 7, 5, 0, 1, false),
      (w: TranslationWorld) => w.backEnd.invalidateIotlb('domain', 7, 0, 1, false),
      (w: TranslationWorld) => w.backEnd.invalidateIotlb('global', 0, 0, 1, false),
    ]) {
      const world = moved();
      invalidate(world);
      expect(world.read(PAGE + 1, 5)).toBe(OTHER);
    }
  });

  it('of the second level are stale until invalidated, and survive the leaf hint', () => {
    for (const [hint, expected] of [[true, 0x777], [false, OTHER]] as const) {
      const world = new TranslationWorld().legacy();
      world.poke(slAt(0) + 8, (0x777n << 12n) | 3n);
      world.read();
      world.poke(slAt(1), 0x2_f000n | 3n);
      world.poke(0x2_f000 + ((PAGE + 1) % 512) * 8, (BigInt(OTHER) << 12n) | 3n);
      expect(world.read(PAGE + 1)).toBe(0x777);
      world.backEnd.invalidateIotlb('page', 5, PAGE + 1, 1, hint);
      expect(world.read(PAGE + 1)).toBe(expected);
    }
  });

  it('of nested tables forget where a first-level table lies when the second level changes, with the leaf hint too', () => {
    const world = new TranslationWorld().scalable(3n);
    // with A set nothing has to be written to the table, which would ask the second level again
    world.poke(flAt(0) + 8, leaf(0x777) | 0x20n);
    world.read(PAGE, 5);
    // the page that holds the first-level leaves moves: guest 0x20 to 0x2f
    world.memory.copy(0x2_f000, FL[0], 0x1000);
    world.poke(0x2_f000 + ((PAGE + 1) % 512) * 8, leaf(0x888) | 0x20n);
    world.poke(0x5_0000 + 0x20 * 8, 0x2_f003n);
    expect(world.read(PAGE + 1, 5)).toBe(0x777);
    world.backEnd.invalidateIotlb('page', 7, 0x20, 1, true);
    expect(world.read(PAGE + 1, 5)).toBe(0x888);
  });
});

describe('setting the root table (11.4.4)', () => {
  it.each([[false, TARGET], [true, -0x39]])('with ESRTPS %s', (esrtps, expected) => {
    const world = new TranslationWorld({ capabilities: buildCapabilities({ esrtps }).capabilities }).scalable(1n);
    world.read(PAGE, 5);
    world.backEnd.setState({ enabled: true, rootTable: 0x8_0000, mode: 1 });
    expect(world.read(PAGE, 5)).toBe(expected);
  });
});

function bytesOf(world: TranslationWorld): Uint8Array {
  const bytes = new Uint8Array(0x10_0000);
  world.memory.read(0, bytes, 0, bytes.length);
  return bytes;
}

it('finds the right entry among many requesters and PASIDs, whatever replaced what', () => {
  const world = new TranslationWorld().scalable(1n);
  // PASIDs 1..63 share the first-level tables in domains of their own; requesters 0..0x7f share the directory
  for (let pasid = 1; pasid < 64; pasid++) world.poke(PASIDS + pasid * 64, 1n | (1n << 6n), BigInt(100 + pasid), BigInt(FL[3]));
  for (let source = 0; source < 0x80; source++) world.poke(CONTEXTS + source * 32, BigInt(DIRECTORY) | 0x1dn, 0n, 0n, 0n);
  for (let round = 0; round < 3; round++) {
    for (let source = 0; source < 0x80; source++) {
      for (let pasid = 1; pasid < 64; pasid += 5) expect([world.backEnd.translate(source, pasid, 0, PAGE, false), world.backEnd.page]).toEqual([0, TARGET]);
    }
  }
  expect(new Set(world.backEnd.cachedTranslations().map((entry) => entry.domainId)).size).toBe(13);
});
