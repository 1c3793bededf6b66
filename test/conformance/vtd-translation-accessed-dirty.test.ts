import { describe, expect, it } from 'vitest';
import { ATTR_NO_WRITE } from '../../host/pci/dma-port.js';
import { Ram } from '../../sim/memory.js';
import { A, D, EA, P, PAGE, PS, RW, TARGET, TranslationWorld, US, flAt, slAt } from './vtd-translation-world.js';

const flags = (world: TranslationWorld, mask: bigint): bigint[] => [3, 2, 1, 0].map((level) => world.peek(flAt(level)) & mask);
const slFlags = (world: TranslationWorld): bigint[] => [3, 2, 1, 0].map((level) => world.peek(slAt(level)) & 0x300n);

describe('accessed and dirty bits of the first level (VT-d 4.1, 3.6.2)', () => {
  it('sets A on every entry of a read and D on the leaf of a write only', () => {
    const world = new TranslationWorld().scalable(1n);
    world.read(PAGE, 5);
    expect(flags(world, A | D)).toEqual([A, A, A, A]);
    // the read is cached: the write must walk all the same
    expect(world.write(PAGE, 5)).toBe(TARGET);
    expect(flags(world, A | D)).toEqual([A, A, A, A | D]);
    expect([world.write(PAGE, 5), world.backEnd.walkAccesses]).toEqual([TARGET, 0]);
  });

  it('sets A on the entries above one that is not present', () => {
    const world = new TranslationWorld().scalable(1n);
    world.poke(flAt(1), 0n);
    expect(world.read(PAGE, 5)).toBe(-0x71);
    expect(flags(world, ~0n & A)).toEqual([A, A, 0n, 0n]);
  });

  it('sets neither bit on an entry that forbids the access', () => {
    const world = new TranslationWorld().scalable(1n);
    world.clear(flAt(0), RW);
    expect(world.write(PAGE, 5)).toBe(-0x85);
    expect(flags(world, A | D)).toEqual([A, A, A, 0n]);
  });

  it('sets the extended accessed bit with EAFE', () => {
    const world = new TranslationWorld().scalable(1n, { entry2: 0x80n });
    world.read(PAGE, 5);
    expect(flags(world, A | EA)).toEqual(Array(4).fill(A | EA));
  });

  it('sets D on a large leaf', () => {
    const world = new TranslationWorld().scalable(1n);
    world.poke(flAt(1), 0x60_0000n | P | RW | US | PS);
    world.write(PAGE, 5);
    expect(flags(world, A | D).slice(0, 3)).toEqual([A, A, A | D]);
  });

  it('sets D for a translation request that may write, not for one with NW', () => {
    const world = new TranslationWorld().scalable(1n);
    expect([world.ats(PAGE, 5, ATTR_NO_WRITE), flags(world, D)[3]]).toEqual(['R--', 0n]);
    expect([world.ats(), flags(world, D)[3]]).toEqual(['RW-', D]);
  });

  it('leaves D alone when the page is read-only for the requester', () => {
    const world = new TranslationWorld().scalable(1n);
    world.clear(flAt(0), RW);
    expect([world.ats(), flags(world, D)[3]]).toEqual(['R--', 0n]);
  });

  it('is missed by a defect that sets no D', () => {
    const world = new TranslationWorld({ defects: ['vtd.skip-dirty-bit'] }).scalable(1n);
    world.write(PAGE, 5);
    expect(flags(world, A | D)).toEqual([A, A, A, A]);
  });
});

describe('accessed and dirty bits of the second level (3.7.2)', () => {
  it('are set with SLADE only', () => {
    for (const [entry0, read, write] of [[0n, 0n, 0n], [0x200n, 0x100n, 0x300n]] as const) {
      const world = new TranslationWorld().scalable(2n, { entry0 });
      world.read(PAGE, 5);
      expect(slFlags(world)).toEqual(Array(4).fill(read));
      world.write(PAGE, 5);
      expect(slFlags(world)).toEqual([read, read, read, write]);
    }
  });

  it('are set for the tables of the first level as well: read, and dirty when A or D is written into them', () => {
    const world = new TranslationWorld().scalable(3n, { entry0: 0x200n });
    const leafOf = (page: number): bigint => world.peek(0x5_0000 + page * 8) & 0x300n;
    world.write(PAGE, 5);
    expect([0x23, 0x22, 0x21, 0x20, TARGET].map(leafOf)).toEqual(Array(5).fill(0x300n));
    expect(flags(world, A | D)).toEqual([A, A, A, A | D]);
    const clean = new TranslationWorld().scalable(3n, { entry0: 0x200n });
    for (const level of [0, 1, 2, 3]) clean.or(flAt(level), A | D);
    clean.read(PAGE, 5);
    expect([0x23, 0x22, 0x21, 0x20, TARGET].map((page) => clean.peek(0x5_0000 + page * 8) & 0x300n)).toEqual(Array(5).fill(0x100n));
  });
});

it('asks the second level before it writes into a first-level table that it found in the structure cache', () => {
  const world = new TranslationWorld().scalable(3n);
  for (const level of [0, 1, 2, 3]) world.or(flAt(level), A);
  world.poke(flAt(0) + 8, (0x1555n << 12n) | P | RW | US);
  // guest page 0x20 holds the leaves and may only be read
  world.poke(0x5_0000 + 0x20 * 8, 0x2_0001n);
  expect([world.read(PAGE, 5), world.read(PAGE + 1, 5), world.peek(flAt(0) + 8) & A]).toEqual([TARGET, -0x77, 0n]);
});

/** Memory of somebody else who changes a word between the walk's load and its update, `races` times. */
class RacingRam extends Ram {
  races = 0;
  at = 0;
  change: () => void = () => {};

  override compareExchange64(address: number, expectLo: number, expectHi: number, lo: number, hi: number): boolean {
    if (address === this.at && this.races > 0) {
      this.races--;
      this.change();
    }
    return super.compareExchange64(address, expectLo, expectHi, lo, hi);
  }
}

describe('entries that change while they are used', () => {
  it('starts the walk again and uses the new entry', () => {
    const memory = new RacingRam(0x200_0000);
    const world = new TranslationWorld({ memory }).scalable(1n);
    memory.at = flAt(0);
    memory.races = 1;
    memory.change = () => world.poke(flAt(0), (0x1555n << 12n) | P | RW | US);
    expect([world.write(PAGE, 5), world.peek(flAt(0))]).toEqual([0x1555, (0x1555n << 12n) | P | RW | US | A | D]);
  });

  it('gives up after a bounded number of attempts (0x91, second level 0x7d)', () => {
    for (const [type, at, reason, entry0] of [[1n, flAt(0), -0x91, 0n], [2n, slAt(0), -0x7d, 0x200n]] as const) {
      const memory = new RacingRam(0x200_0000);
      const world = new TranslationWorld({ memory }).scalable(type, { entry0 });
      let frame = 0x1000n;
      memory.at = at;
      memory.races = Infinity;
      memory.change = () => world.poke(at, (frame++ << 12n) | P | RW | US);
      expect(world.write(PAGE, 5)).toBe(reason);
    }
  });
});
