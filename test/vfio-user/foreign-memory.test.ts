/** Memory of a client as physical memory of a machine: ranges that come, go and change their rights while a guest boots. */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Ram } from '../../sim/memory.js';
import { MemoryWorld } from './memory-world.js';
import { CMD, dmaMap, dmaUnmap } from './wire.js';

const KIB = 1024, MIB = 2 ** 20;

describe('foreign memory', () => {
  it('follows a firmware that toggles shadow RAM between writable and read-only', () => {
    const world = new MemoryWorld().negotiate();
    const { memory } = world.memory;
    const map = (address: number, size: number, flags = 3): number => world.errno(CMD.DMA_MAP, dmaMap(address, size, address, flags), [world.fd()]);
    const unmap = (address: number, size: number): number => world.errno(CMD.DMA_UNMAP, dmaUnmap(address, size));
    const generations = new Set<number>([memory.generation]);
    // the order of a boot of QEMU's q35 with SeaBIOS
    map(0, 16 * MIB);
    memory.store(0xf_0000, 4, 0xaabb);
    unmap(0, 16 * MIB);
    generations.add(memory.generation);
    for (const [address, size, flags] of [[0, 768 * KIB, 3], [768 * KIB, 128 * KIB, 1], [896 * KIB, 128 * KIB, 1], [MIB, 15 * MIB, 3]] as const) {
      expect(map(address, size, flags)).toBe(0);
      generations.add(memory.generation);
    }
    expect([memory.load(0xf_0000, 4), memory.store(0xf_0000, 4, 1), memory.store(0xb_fffc, 4, 7), memory.store(MIB, 4, 8)]).toEqual([0xaabb, false, true, true]);
    // reads cross regions, writes stop at the read-only ones with nothing written
    const bytes = new Uint8Array(16);
    expect([memory.read(0xb_fff8, bytes, 0, 16), bytes[4], memory.write(0xb_fff8, bytes.fill(9), 0, 16), memory.load(0xb_fffc, 4)]).toEqual([true, 7, false, 7]);
    expect([memory.has(0, 16 * MIB), memory.writable(0, 16 * MIB), memory.compareExchange64(0xf_0000, 0xaabb, 0, 1, 1)]).toEqual([true, false, false]);
    expect(map(0, 16 * MIB)).toBe(17);
    expect(generations.size).toBe(6);
  });

  it('gives every access the answer that RAM with the same ranges gives', () => {
    const ranges = [[0, 4], [4, 2], [8, 1], [12, 4]] as const;
    const world = new MemoryWorld().negotiate();
    for (const [page, pages] of ranges) world.ok(CMD.DMA_MAP, dmaMap(page * 4096, pages * 4096, page * 4096), [world.fd()]);
    const { memory } = world.memory;
    const ram = new Ram([{ start: 0, end: 6 * 4096 }, { start: 8 * 4096, end: 9 * 4096 }, { start: 12 * 4096, end: 16 * 4096 }]);
    const address = fc.oneof(fc.integer({ min: 0, max: 17 * 4096 }), fc.tuple(fc.integer({ min: 0, max: 17 }), fc.integer({ min: -16, max: 16 })).map(([page, off]) => Math.max(0, page * 4096 + off)));
    const length = fc.integer({ min: 1, max: 9000 });
    fc.assert(fc.property(address, address, length, fc.integer({ min: 0, max: 255 }), (a, b, count, value) => {
      const bytes = new Uint8Array(count).fill(value), one = new Uint8Array(count), two = new Uint8Array(count);
      const word = a & ~7;
      expect([memory.write(a, bytes, 0, count), memory.copy(b, a, count), memory.fill(b, value ^ 1, count >> 1), memory.store(b & ~3, 4, value), memory.store64(word, value, -value)])
        .toEqual([ram.write(a, bytes, 0, count), ram.copy(b, a, count), ram.fill(b, value ^ 1, count >> 1), ram.store(b & ~3, 4, value), ram.store64(word, value, -value)]);
      expect([memory.read(b, one, 0, count), memory.load(a, 1), memory.load(b & ~1, 2), memory.load64(word)]).toEqual([ram.read(b, two, 0, count), ram.load(a, 1), ram.load(b & ~1, 2), ram.load64(word)]);
      expect([Buffer.compare(one, two), memory.has(a, count)]).toEqual([0, ram.has(a, count)]);
      if (ram.load64(word)) expect([memory.lo, memory.hi, memory.compareExchange64(word, value, -value, 1, 2), memory.compareExchange64(word, value, -value, 1, 2)]).toEqual([ram.lo, ram.hi, ram.compareExchange64(word, value, -value, 1, 2), ram.compareExchange64(word, value, -value, 1, 2)]);
    }), { numRuns: 200, seed: 4 });
  });
});
