import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FrameAllocator } from '../../host/frames.js';
import { SimulatorBug } from '../../sim/assert.js';
import { Errno } from '../../sim/errno.js';
import { Ram } from '../../sim/memory.js';

const MIB = 2 ** 20;

function world(bytes = 16 * MIB, options: { poison?: number; defects?: Set<string>; freshZero?: boolean } = {}) {
  const memory = new Ram(bytes);
  return { memory, frames: new FrameAllocator({ memory, ranges: [{ start: 0, end: bytes }], ...options }) };
}

describe('frame allocator', () => {
  it('never hands out frame 0, and hands out the others once each until ENOMEM', () => {
    const { frames } = world(64 * 4096);
    expect(frames.total).toBe(63);
    const taken = Array.from({ length: 63 }, () => frames.alloc('a'));
    expect(new Set(taken).size).toBe(63);
    expect(Math.min(...taken)).toBe(4096);
    expect(Math.max(...taken)).toBe(63 * 4096);
    expect(() => frames.alloc('a')).toThrow(Errno);
    expect(() => frames.alloc('a')).toThrow('ENOMEM');
    expect(frames.tryAlloc(frames.ownerId('a'), 0)).toBe(-1);
    expect(frames.inUse).toBe(63);
    for (const address of taken) frames.free(address);
    expect(frames.inUse).toBe(0);
    expect(frames.usage()).toEqual([]);
  });

  it.each([0, 1, 5, 9, 11])('aligns blocks of order %i naturally', (order) => {
    const { frames } = world(32 * MIB);
    for (let i = 0; i < 3; i++) {
      frames.alloc('pad');
      expect(frames.alloc('block', order) % (4096 * 2 ** order)).toBe(0);
    }
  });

  it('aligns a 1 GiB block by its physical address in a range that starts elsewhere', () => {
    const start = 3 * 2 ** 30 + 4096, end = 6 * 2 ** 30;
    const frames = new FrameAllocator({ memory: new Ram([{ start, end }]), ranges: [{ start, end }] });
    expect(frames.alloc('a', 18)).toBe(4 * 2 ** 30);
    expect(frames.alloc('a', 18)).toBe(5 * 2 ** 30);
    expect(() => frames.alloc('a', 18)).toThrow('ENOMEM');
    expect(frames.alloc('a')).toBe(start);
  });

  it('zeroes memory that was used before, and the defect frames.skip-zeroing does not', () => {
    for (const [defects, expected] of [[new Set<string>(), 0], [new Set(['frames.skip-zeroing']), 0x5a]] as const) {
      const { memory, frames } = world(16 * MIB, { defects });
      const address = frames.alloc('a');
      memory.fill(address, 0x5a, 4096);
      frames.free(address);
      expect(frames.alloc('b')).toBe(address);
      expect(memory.load(address + 4095, 1)).toBe(expected);
    }
  });

  it('touches no memory that was never handed out, where that is known to be zero', () => {
    const { memory, frames } = world(16 * MIB, { freshZero: true });
    const touched = (): number => [...memory.touched()].length;
    const first = frames.alloc('a'), block = frames.alloc('a', 9);
    expect(touched()).toBe(0);
    memory.fill(first, 0x5a, 4096);
    memory.fill(block, 0x5a, 512 * 4096);
    frames.free(first);
    frames.free(block, 9);
    // handed out again, also as parts of another block, it is zeroed
    for (const [order, count] of [[0, 700], [3, 40]] as const) {
      for (let i = 0; i < count; i++) {
        const address = frames.alloc('b', order);
        for (let at = 0; at < 2 ** order; at++) expect(memory.load(address + at * 4096 + 8, 4)).toBe(0);
      }
    }
  });

  it('pins ranges page by page, across blocks, and frees what only the pins held', () => {
    const { frames } = world();
    for (let i = 0; i < 3; i++) frames.alloc('pad');
    const block = frames.alloc('a', 2), next = frames.alloc('a');
    expect(next).toBe(block + 4 * 4096);
    frames.pinRange(block + 4096, 4);
    expect([frames.pinnedPages, frames.pins(block), frames.references(block), frames.pins(next)]).toEqual([4, 3, 4, 1]);
    frames.put(block);
    frames.put(next);
    expect(frames.framesOf('a')).toBe(5);
    frames.unpinRange(block + 4096, 2);
    expect([frames.pinnedPages, frames.framesOf('a')]).toEqual([2, 5]);
    expect(() => frames.unpinRange(block, 2)).toThrow(SimulatorBug);
    frames.unpinRange(block + 3 * 4096, 2);
    expect([frames.pinnedPages, frames.framesOf('a')]).toEqual([0, 0]);
    expect(() => frames.pinRange(block, 1)).toThrow(SimulatorBug);
  });

  it('poisons freed frames when asked', () => {
    const { memory, frames } = world(16 * MIB, { poison: 0xdb });
    const address = frames.alloc('a', 1);
    frames.free(address, 1);
    expect(memory.load(address, 1)).toBe(0xdb);
    expect(memory.load(address + 8191, 1)).toBe(0xdb);
  });

  it('joins freed buddies into blocks that were never allocated as such', () => {
    const { frames } = world(4 * MIB);
    const singles = Array.from({ length: 1023 }, () => frames.alloc('a'));
    expect(() => frames.alloc('b', 9)).toThrow('ENOMEM');
    for (const address of singles.toReversed()) frames.free(address);
    expect(frames.alloc('b', 9)).toBe(2 * MIB);
  });

  it('refuses nothing silently: double free, wrong order and freeing a referenced frame are bugs', () => {
    const { frames } = world();
    const address = frames.alloc('a');
    const block = frames.alloc('a', 3);
    frames.get(address);
    expect(() => frames.free(address)).toThrow(SimulatorBug);
    expect(frames.put(address)).toBe(false);
    expect(() => frames.free(block)).toThrow(SimulatorBug);
    expect(() => frames.free(block + 4096)).toThrow(SimulatorBug);
    frames.free(address);
    expect(() => frames.free(address)).toThrow('freed, but it is no block in use');
    expect(() => frames.put(address)).toThrow(SimulatorBug);
    expect(() => frames.get(2 ** 40)).toThrow(SimulatorBug);
    expect(frames.inUse).toBe(8);
  });

  it('counts references and pins of a block by any address inside it', () => {
    const { frames } = world();
    const block = frames.alloc('a', 9);
    frames.pin(block + 17 * 4096 + 5);
    frames.pin(block);
    expect(frames.pinnedPages).toBe(2);
    expect(frames.references(block + 511 * 4096)).toBe(3);
    expect(frames.pins(block + 4096)).toBe(2);
    expect(() => frames.free(block, 9)).toThrow(SimulatorBug);
    expect(frames.put(block)).toBe(false);
    frames.unpin(block + 17 * 4096);
    expect(frames.inUse).toBe(512);
    frames.unpin(block);
    expect(frames.inUse).toBe(0);
    expect(frames.pinnedPages).toBe(0);
    expect(frames.references(block)).toBe(0);
  });

  it('accounts frames to owners and names those who still hold some', () => {
    const { frames } = world();
    const table = frames.alloc('page-table');
    frames.alloc('user', 4);
    expect(frames.usage()).toEqual([{ owner: 'page-table', frames: 1 }, { owner: 'user', frames: 16 }]);
    expect(frames.ownerOf(table)).toBe('page-table');
    frames.free(table);
    expect(frames.usage()).toEqual([{ owner: 'user', frames: 16 }]);
    expect(frames.framesOf('page-table')).toBe(0);
    expect(frames.ownerOf(table)).toBeUndefined();
  });

  it('costs nothing for memory that is not used', () => {
    const end = 1024 * 2 ** 30;
    const before = process.memoryUsage();
    const frames = new FrameAllocator({ memory: new Ram([{ start: 0, end }]), ranges: [{ start: 0, end }] });
    for (let i = 0; i < 10; i++) frames.alloc('a', 18);
    const after = process.memoryUsage();
    expect(after.heapUsed + after.arrayBuffers - before.heapUsed - before.arrayBuffers).toBeLessThan(4 * MIB);
    expect(frames.inUse).toBe(10 * 2 ** 18);
  });

  it('keeps blocks disjoint and totals right in random use', () => {
    const orders = fc.constantFrom(0, 0, 0, 1, 2, 3, 5, 9);
    const step = fc.record({ free: fc.boolean(), order: orders, pick: fc.nat(1000) });
    fc.assert(fc.property(fc.array(step, { maxLength: 400 }), (steps) => {
      const { frames } = world(8 * MIB);
      const blocks: { address: number; order: number }[] = [];
      const used = new Uint8Array(2048);
      let inUse = 0;
      for (const { free, order, pick } of steps) {
        if (free && blocks.length > 0) {
          const [block] = blocks.splice(pick % blocks.length, 1);
          frames.free(block!.address, block!.order);
          used.fill(0, block!.address / 4096, block!.address / 4096 + 2 ** block!.order);
          inUse -= 2 ** block!.order;
        } else {
          const address = frames.tryAlloc(frames.ownerId('a'), order);
          if (address < 0) continue;
          const page = address / 4096;
          expect(page % 2 ** order).toBe(0);
          expect(used.subarray(page, page + 2 ** order).every((frame) => frame === 0)).toBe(true);
          used.fill(1, page, page + 2 ** order);
          blocks.push({ address, order });
          inUse += 2 ** order;
        }
        expect(frames.inUse).toBe(inUse);
      }
      for (const block of blocks) frames.free(block.address, block.order);
      // all of it merges back: the largest aligned block of 8 MiB without frame 0 is there again
      expect(frames.alloc('a', 10)).toBe(4 * MIB);
    }), { numRuns: 50, seed: 1 });
  });
});
