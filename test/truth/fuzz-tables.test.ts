/**
 * Memory without structure as tables: the model and the walker meet words that no driver would write, pointers in circles
 * and into each other, and still agree about every request; nothing hangs, throws or misses memory.
 */
import { describe, expect, it } from 'vitest';
import { Random } from '../../sim/random.js';
import { Ram } from '../../sim/memory.js';
import { HARDWARE, WatchedMemory } from './builder.js';
import { ModelUnderTest, describeRequest } from './compare.js';
import { walk, type Load, type Request, type RequestKind } from './walker.js';

const NIGHTLY = process.env['VFIOSIM_NIGHTLY'] === '1';
const BASE = 0x10_0000, PAGES = 24;

/** A word that often leads on: mostly present, mostly pointing into the tables. */
function word(random: Random): bigint {
  const kind = random.below(20);
  if (kind === 0) return (BigInt(random.u32()) << 32n) | BigInt(random.u32());
  const frame = kind === 1 ? BigInt(random.u32()) : BigInt((BASE >> 12) + random.below(PAGES));
  // rights, user, and rarely what is reserved somewhere
  const flags = kind < 6 ? BigInt(random.below(0x1000)) : BigInt(random.below(0x80) | 7);
  return (frame << 12n) | flags | (kind === 2 ? BigInt(random.below(0x1_0000)) << 48n : 0n);
}

const poke = (memory: WatchedMemory, address: number, value: bigint): void => {
  memory.ram.store64(address, Number(value & 0xffff_ffffn) | 0, Number(value >> 32n) | 0);
};

function scramble(memory: WatchedMemory, random: Random): void {
  for (let i = 0; i < PAGES * 512; i++) poke(memory, BASE + i * 8, word(random));
}

/** Words in the first pages that often let a request through to the random ones: root, contexts, directory, PASID table. */
function smooth(memory: WatchedMemory, random: Random, mode: number): void {
  const pointer = (flags: bigint): bigint => (random.chance(0.03) ? word(random) : (BigInt((BASE >> 12) + random.below(PAGES)) << 12n) | flags);
  const to = (page: number, flags: bigint): bigint => (random.chance(0.03) ? word(random) : (BigInt((BASE >> 12) + page) << 12n) | flags);
  const small = (bound: number): bigint => (random.chance(0.9) ? 0n : BigInt(random.below(bound)));
  for (let i = 0; i < 256; i++) {
    poke(memory, BASE + i * 16, to(1, 1n));
    poke(memory, BASE + i * 16 + 8, mode === 0 ? small(2) : to(1, 1n));
  }
  for (let i = 0; i < 512; i++) poke(memory, BASE + 0x1000 + i * 8, context(i));
  for (let i = 0; i < 512; i++) poke(memory, BASE + 0x2000 + i * 8, to(3, random.chance(0.9) ? 1n : 3n));
  for (let i = 0; i < 512; i++) poke(memory, BASE + 0x3000 + i * 8, entry(i % 8));

  function context(i: number): bigint {
    if (mode === 0) return i % 2 === 0 ? pointer(1n | (BigInt(random.below(3)) << 2n)) : BigInt(random.pick([1, 2, 3])) | small(0x100);
    if (i % 4 === 0) return to(2, 9n | (BigInt(random.chance(0.9)) << 2n) | (BigInt(random.below(8)) << 9n));
    return i % 4 === 1 ? small(0x40) : 0n;
  }

  function entry(i: number): bigint {
    if (i === 0) return pointer(1n | (BigInt(random.pick([1, 2, 3])) << 2n) | (BigInt(random.pick([1, 2, 3, 4])) << 6n));
    if (i === 1) return small(16);
    return i === 2 ? pointer(random.chance(0.9) ? 0n : BigInt(random.below(0x80))) : 0n;
  }
}

function randomRequest(random: Random): Request {
  const kind: RequestKind = random.pick(['untranslated', 'untranslated', 'untranslated', 'translation', 'translation', 'translated', 'page']);
  const address = random.chance(0.9) ? BigInt(random.u32()) << BigInt(random.pick([7, 12, 12, 15])) & ~0xfffn : ((BigInt(random.u32()) << 32n) | BigInt(random.u32())) & ~0xfffn;
  return {
    kind, address,
    sourceId: random.below(0x1_0000),
    pasid: random.chance(0.4) ? undefined : random.below(random.pick([64, 64, 8192, 0x10_0000])),
    write: (kind === 'untranslated' || kind === 'translated') && random.chance(0.5),
    execute: random.chance(0.1), privileged: random.chance(0.2), noWrite: random.chance(0.2),
  };
}

describe('random bytes as root, context, PASID and paging tables', () => {
  it('mean the same to the model and to the walker', () => {
    const memory = new WatchedMemory(new Ram([{ start: BASE, end: BASE + PAGES * 4096 }]));
    const load: Load = (address) => {
      if (address >= 1n << 52n || !memory.ram.load64(Number(address))) return undefined;
      return (BigInt(memory.ram.hi >>> 0) << 32n) | BigInt(memory.ram.lo >>> 0);
    };
    const models = HARDWARE.map((hardware) => [false, true].map((caching) => new ModelUnderTest(memory, hardware, caching)));
    const differences: string[] = [];
    const reasons = new Set<number>();
    let granted = 0;
    const worlds = NIGHTLY ? 5000 : 120;
    for (let seed = 0; seed < worlds; seed++) {
      const random = new Random(0).split(`bytes ${seed}`);
      scramble(memory, random);
      const paved = seed % 4 !== 0;
      const index = random.pick([0, 0, 0, 0, 0, 1, 2, 3, 4]);
      const hardware = HARDWARE[index]!;
      const mode = random.pick(index === 4 ? [0, 0, 1] : [0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 3]);
      if (paved) smooth(memory, random, mode);
      const rootTable = paved ? BASE : BASE + random.below(PAGES) * 4096;
      for (const model of models[index]!) model.setTables(rootTable, mode);
      for (let i = 0; i < 100 && differences.length < 5; i++) {
        const request = randomRequest(random);
        const expected = walk(load, hardware, BigInt(rootTable), mode, request);
        reasons.add(expected.reason);
        if (expected.reason === 0) granted++;
        for (const model of models[index]!) {
          const difference = model.difference(request, expected);
          if (difference !== '') differences.push(`seed ${seed}, ${i}: ${describeRequest(request, hardware, mode)}: expected 0x${expected.reason.toString(16)}; ${difference}`);
          memory.undo();
        }
      }
    }
    expect(differences).toEqual([]);
    // absent memory was asked for and answered so, and the requests did not all end at the root
    expect(memory.absent).toBeGreaterThan(20);
    expect([reasons.size > 30, granted > 20], `${reasons.size} reasons, ${granted} granted`).toEqual([true, true]);
  });
});
