import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FrameAllocator } from '../../host/frames.js';
import { PageTable } from '../../host/page-table/page-table.js';
import { walkEntries } from '../../host/page-table/walk.js';
import { LEAF_EXECUTE, LEAF_READ, LEAF_USER, LEAF_WRITE, X86_64 } from '../../host/page-table/x86-64.js';
import { Errno } from '../../sim/errno.js';
import { Ram } from '../../sim/memory.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const RW = LEAF_READ | LEAF_WRITE | LEAF_USER;

function world(options: { levels?: number; largestLeaf?: number; bytes?: number } = {}) {
  const bytes = options.bytes ?? 16 * MIB;
  const memory = new Ram(bytes);
  const frames = new FrameAllocator({ memory, ranges: [{ start: 0, end: bytes }] });
  const { levels = 4, largestLeaf = 2 } = options;
  const table = new PageTable({ memory, frames, format: X86_64, levels, largestLeaf, owner: 'table' });
  const word = (address: number): bigint => {
    expect(memory.load64(address)).toBe(true);
    return (BigInt(memory.hi >>> 0) << 32n) | BigInt(memory.lo >>> 0);
  };
  return { memory, frames, table, word };
}

describe('page tables', () => {
  it('writes the entries of the x86-64 manual at the positions the address says', () => {
    const { table, word } = world();
    // 0x7f01_2345_6000: indexes 254, 4, 282, 86
    table.map(0x7f_0123_456, 0x12_3456_7000, 1, RW);
    const l3 = word(table.root + 254 * 8);
    expect(l3 & 0xfffn).toBe(0x067n);
    const l2 = word(Number(l3 & ~0xfffn) + 4 * 8);
    const l1 = word(Number(l2 & ~0xfffn) + 282 * 8);
    const leaf = word(Number(l1 & ~0xfffn) + 86 * 8);
    expect(l1 & 0xfffn).toBe(0x067n);
    expect(leaf).toBe(0x8000_0012_3456_7007n);
    expect(table.tables).toBe(4);
    expect(table.translate(0x7f_0123_456, 0x123)).toBe(0x12_3456_7123);
    expect(table.translate(0x7f_0123_457)).toBe(-1);
  });

  it.each([
    ['read-only', LEAF_READ | LEAF_USER, 0x8000_0000_0000_5005n],
    ['executable', LEAF_READ | LEAF_EXECUTE | LEAF_USER, 0x5005n],
    ['supervisor', LEAF_READ | LEAF_WRITE, 0x8000_0000_0000_5003n],
    ['PROT_NONE', 0, 0x8000_0000_0000_5100n],
  ])('encodes a %s leaf', (_name, prot, expected) => {
    const { table, word } = world();
    table.map(1, 0x5000, 1, prot);
    table.find(1);
    expect(word(table.slot)).toBe(expected);
  });

  it('uses the largest leaves that fit both addresses', () => {
    const { table, word } = world();
    // 4 KiB before a 2 MiB boundary, 2 MiB, 4 KiB after it
    table.map(511, 3 * GIB + 511 * 4096, 514, RW);
    expect(walkEntries(table.memory, X86_64, table.root, 4, 511).length).toBe(4);
    const large = walkEntries(table.memory, X86_64, table.root, 4, 512 + 7);
    expect(large.map(({ level }) => level)).toEqual([3, 2, 1]);
    expect(large.at(-1)!.entry).toBe(0x8000_0000_c020_0087n);
    expect(word(large.at(-1)!.address)).toBe(0x8000_0000_c020_0087n);
    expect(table.translate(512 + 7, 9)).toBe(3 * GIB + 2 * MIB + 7 * 4096 + 9);
    expect(walkEntries(table.memory, X86_64, table.root, 4, 1024).length).toBe(4);
    table.map(0x4_0000, 5 * GIB, 0x4_0000, RW);
    const gigantic = walkEntries(table.memory, X86_64, table.root, 4, 0x4_0123);
    expect(gigantic.map(({ level }) => level)).toEqual([3, 2]);
    expect(gigantic.at(-1)).toMatchObject({ entry: 0x8000_0001_4000_0087n, leaf: true, physical: 5 * GIB, index: 1, flags: ['P', 'RW', 'US', 'PS', 'XD'] });
    // physical not aligned like the address: small leaves only
    table.map(0x8_0000, 5 * GIB + 4096, 512, RW);
    expect(walkEntries(table.memory, X86_64, table.root, 4, 0x8_0000).length).toBe(4);
  });

  it('reaches page numbers of 57-bit addresses with 5 levels', () => {
    const { table } = world({ levels: 5 });
    const page = 2 ** 45 - 1;
    table.map(page, 0x9000, 1, RW);
    const walk = walkEntries(table.memory, X86_64, table.root, 5, page);
    expect(walk.map(({ index }) => index)).toEqual([511, 511, 511, 511, 511]);
    expect(table.translate(page, 1)).toBe(0x9001);
    expect(() => table.map(2 ** 45, 0x9000, 1, RW)).toThrow('ERANGE');
  });

  it('answers EEXIST to any overlap and changes nothing', () => {
    const { table, frames } = world();
    table.map(512, 2 * MIB, 512, RW);
    table.map(2000, 0x7000, 1, RW);
    const used = frames.inUse;
    for (const [page, pages] of [[0, 4096], [1023, 1], [1000, 100], [1024, 1000]] as const) {
      expect(() => table.map(page, 0, pages, RW)).toThrow('EEXIST');
    }
    expect(frames.inUse).toBe(used);
    expect(table.translate(0)).toBe(-1);
    expect(table.translate(1024)).toBe(-1);
    expect(() => table.map(1, 0x123, 1, RW)).toThrow('EINVAL');
    expect(() => table.map(1, 0, 0, RW)).toThrow(Errno);
  });

  it('maps nothing when table pages run out (ENOMEM)', () => {
    const { table, frames } = world({ bytes: 8 * 4096, largestLeaf: 0 });
    expect(frames.total).toBe(7);
    expect(() => table.map(0, 0, 512 * 8, RW)).toThrow('ENOMEM');
    expect(table.anyLeaf(0, 2 ** 36)).toBe(false);
    table.freeRetired();
    table.map(0, 0, 512, RW);
  });

  it('keeps unlinked table pages until the caller has invalidated', () => {
    const { table, frames } = world();
    table.map(0, 0, 1, RW);
    table.map(512, 0, 3, RW);
    expect(table.tables).toBe(5);
    expect(table.unmap(0, 2048)).toBe(4);
    expect(table.retired.length).toBe(2);
    expect(frames.framesOf('table')).toBe(5);
    table.freeRetired();
    expect(frames.framesOf('table')).toBe(3);
    // the tables above still cover unmapped neighbours, so they stay; large leaves fit again
    table.map(0, 2 * MIB, 512, RW);
    expect(walkEntries(table.memory, X86_64, table.root, 4, 0).length).toBe(3);
    table.destroy();
    expect(frames.inUse).toBe(0);
  });

  it('removes a large leaf whole when a part of it is unmapped', () => {
    const { table } = world();
    table.map(0, 4 * MIB, 1024, RW);
    expect(table.unmap(600, 1)).toBe(512);
    expect(table.translate(512)).toBe(-1);
    expect(table.translate(511)).toBe(4 * MIB + 511 * 4096);
  });

  it('prints a walk that ends at an empty entry or outside memory', () => {
    const { table, memory } = world();
    table.map(0, 0x1000, 1, RW);
    expect(walkEntries(memory, X86_64, table.root, 4, 5)).toMatchObject([
      { level: 3, present: true }, { level: 2, present: true }, { level: 1, present: true }, { level: 0, index: 5, entry: 0n, present: false, leaf: false },
    ]);
    expect(walkEntries(memory, X86_64, 2 ** 40, 4, 5)).toMatchObject([{ level: 3, entry: undefined }]);
  });

  it('agrees with a map of pages in random use, and ends empty', () => {
    const page = fc.tuple(fc.constantFrom(0, 2 ** 18 - 1024, 2 ** 27 - 3), fc.nat(2100)).map(([base, offset]) => base + offset);
    const step = fc.record({ map: fc.boolean(), page, pages: fc.oneof(fc.integer({ min: 1, max: 5 }), fc.constantFrom(512, 1024, 700)), physical: fc.nat(4096) });
    fc.assert(fc.property(fc.array(step, { maxLength: 60 }), (steps) => {
      const { table, frames } = world({ largestLeaf: 0 });
      const model = new Map<number, number>();
      for (const { map, page: at, pages, physical } of steps) {
        const range = Array.from({ length: pages }, (_, i) => at + i);
        const taken = range.filter((each) => model.has(each));
        if (map) {
          if (taken.length > 0) expect(() => table.map(at, physical * 4096, pages, RW)).toThrow('EEXIST');
          else {
            table.map(at, physical * 4096, pages, RW);
            range.forEach((each, i) => model.set(each, (physical + i) * 4096));
          }
        } else {
          expect(table.unmap(at, pages)).toBe(taken.length);
          table.freeRetired();
          for (const each of taken) model.delete(each);
        }
        for (const each of [at - 1, at, at + pages - 1, at + pages]) {
          if (each >= 0) expect(table.translate(each)).toBe(model.get(each) ?? -1);
        }
      }
      const seen: [number, number][] = [];
      table.forEachLeaf(0, table.endPage, (each, _level, _slot, lo) => seen.push([each, (lo & ~0xfff) >>> 0]));
      expect(seen).toEqual([...model].toSorted(([a], [b]) => a - b));
      expect(table.unmap(0, table.endPage)).toBe(model.size);
      table.freeRetired();
      expect(table.tables).toBe(1);
      table.destroy();
      expect(frames.inUse).toBe(0);
    }), { numRuns: 60, seed: 2 });
  });
});
