import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { addr, bit, bits, qwordsOf, struct, wordsOf } from '../../sim/layout.js';
import { Ram } from '../../sim/memory.js';

const ENTRY = struct('ENTRY', 16, { P: bit(0), AW: bits(4, 2), PTR: addr(63, 12), DID: bits(79, 64), WIDE: bits(127, 80) });

describe('struct', () => {
  it('encodes to hand-computed words and back', () => {
    const words = ENTRY.encode({ P: 1, AW: 2, PTR: 0xffff_8000_0020_0000n, DID: 5, WIDE: 0x1234_5678_9abcn });
    expect(qwordsOf(words)).toEqual([0xffff_8000_0020_0009n, 0x1234_5678_9abc_0005n]);
    expect(ENTRY.f.PTR.get(words)).toBe(0xffff_8000_0020_0000);
    expect(ENTRY.decode(words)).toEqual({ P: 1n, AW: 2n, PTR: 0xffff_8000_0020_0000n, DID: 5n, WIDE: 0x1234_5678_9abcn });
    expect(ENTRY.format(words)).toBe('P=1 AW=2 PTR=0xffff800000200000 DID=5 WIDE=0x123456789abc');
  });

  it('reads back what it wrote and leaves neighbours alone', () => {
    fc.assert(fc.property(fc.constantFrom(...ENTRY.fields), fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }), (field, raw) => {
      const words = wordsOf(raw, ~raw & 0xffff_ffff_ffff_ffffn);
      const before = [...words];
      const value = raw & ((1n << BigInt(Math.min(field.width, 40))) - 1n);
      const scaled = field.kind === 'addr' ? value << BigInt(field.lo % 64) : value;
      field.setBig(words, scaled);
      expect(field.getBig(words)).toBe(scaled);
      if (field.width <= 52) expect(BigInt(field.get(words))).toBe(scaled);
      for (let b = 0; b < 128; b++) {
        if (b >= field.lo && b <= field.hi) continue;
        expect((words[b >> 5]! >>> (b & 31)) & 1).toBe((before[b >> 5]! >>> (b & 31)) & 1);
      }
    }));
  });

  it('finds reserved bits and refuses overlaps, outsized fields and values that do not fit', () => {
    expect(ENTRY.reservedSet(wordsOf(0x21n, 0n))).toBe(true);
    expect(ENTRY.reservedSet(wordsOf(0x1dn, ~0n & 0xffff_ffff_ffff_ffffn))).toBe(false);
    expect(() => struct('BAD', 8, { A: bits(3, 0), B: bit(3) })).toThrow(/BAD.B overlaps/);
    expect(() => struct('BAD', 8, { A: bit(64) })).toThrow(/outside/);
    expect(() => ENTRY.encode({ AW: 8 })).toThrow(/cannot hold 8/);
  });

  it('loads and stores in memory', () => {
    const ram = new Ram(0x1000);
    expect(ENTRY.store(ram, 0xff0, ENTRY.encode({ DID: 0x1234 }))).toBe(true);
    expect(ram.load(0xff8, 2)).toBe(0x1234);
    expect(ENTRY.store(ram, 0xff8, ENTRY.encode({}))).toBe(false);
    expect(ENTRY.load(ram, 0x1000)).toBeUndefined();
  });
});
