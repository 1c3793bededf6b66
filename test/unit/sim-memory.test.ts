import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { Ram } from '../../sim/memory.js';

const ARENA = 2 ** 26;

describe('Ram', () => {
  it('is little-endian and zero until written', () => {
    const ram = new Ram(0x10_0000);
    expect(ram.load(0xff0, 4)).toBe(0);
    ram.store64(0x1000, 0x55667788, 0x11223344);
    expect([ram.load(0x1000, 1), ram.load(0x1006, 2), ram.load(0x1004, 4)]).toEqual([0x88, 0x1122, 0x11223344]);
    ram.load64(0x1000);
    expect([ram.lo >>> 0, ram.hi >>> 0]).toEqual([0x55667788, 0x11223344]);
  });

  it('answers absent outside its ranges and changes nothing', () => {
    const ram = new Ram([{ start: 0, end: 0x2000 }, { start: 2 ** 32, end: 2 ** 32 + 0x1000 }]);
    expect([ram.load(0x2000, 4), ram.load64(0x1ffc + 4), ram.store(2 ** 40, 1, 1), ram.has(0x1fff, 2)]).toEqual([-1, false, false, false]);
    expect(ram.write(0x1ff0, new Uint8Array(32).fill(1), 0, 32)).toBe(false);
    expect(ram.load(0x1ff0, 4)).toBe(0);
    expect(ram.store(2 ** 32 + 0xffc, 4, 7)).toBe(true);
    expect(ram.load(2 ** 32 + 0xffc, 4)).toBe(7);
  });

  it('replaces a 64-bit word only when it still has the expected halves', () => {
    const ram = new Ram(0x1000);
    ram.store64(8, 0xffff_ffff, 1);
    expect(ram.compareExchange64(8, 0xffff_fffe, 1, 0, 0)).toBe(false);
    expect(ram.compareExchange64(8, 0xffff_ffff, 1, 2, 3)).toBe(true);
    ram.load64(8);
    expect([ram.lo, ram.hi]).toEqual([2, 3]);
  });

  it('has every byte of ranges that begin and end anywhere, and copies nothing at their ends', () => {
    const GIB = 2 ** 30;
    const ram = new Ram([{ start: 0, end: 3 * GIB }, { start: 4 * GIB, end: 5 * GIB + 0x3000 }]);
    for (const at of [0, ARENA - 8, ARENA, GIB - 8, GIB, 3 * GIB - 8, 4 * GIB, 5 * GIB - 8, 5 * GIB, 5 * GIB + 0x2ff8]) {
      expect(ram.store64(at, at | 0, 1)).toBe(true);
      expect([ram.load64(at), ram.lo, ram.hi]).toEqual([true, at | 0, 1]);
    }
    expect([3 * GIB, 4 * GIB - 8, 5 * GIB + 0x3000].map((at) => ram.load64(at))).toEqual([false, false, false]);
    expect([ram.copy(5 * GIB + 0x3000, 0, 0), ram.copy(3 * GIB, 0, 1)]).toEqual([true, false]);
  });

  it('copies, fills and reads across arenas and overlapping ranges like one flat array', () => {
    const ram = new Ram(2 * ARENA);
    const base = ARENA - 64;
    fc.assert(fc.property(fc.nat(127), fc.nat(127), fc.nat(100), fc.nat(255), (from, to, length, value) => {
      const flat = new Uint8Array(256);
      for (let i = 0; i < flat.length; i++) flat[i] = (i * 7 + value) & 0xff;
      ram.write(base, flat, 0, flat.length);
      ram.copy(base + to, base + from, length);
      flat.copyWithin(to, from, from + length);
      ram.fill(base + from, value, 5);
      flat.fill(value, from, from + 5);
      const got = new Uint8Array(256);
      ram.read(base, got, 0, 256);
      expect(got).toEqual(flat);
    }), { numRuns: 100 });
  });
});
