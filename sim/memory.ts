/**
 * Byte-addressed physical memory, sparse and little-endian. No page tables, no registers: an address that is not
 * RAM answers *absent*. The interface also fits memory that belongs to somebody else (a real guest's RAM, a guest
 * whose RAM is a process's memory), which is why loads may be absent, 64-bit loads are untorn, accessed and dirty
 * bits are set with compare-and-exchange, and a generation number tells when a cached window is no longer valid.
 */
import { assert } from './assert.js';

export interface PhysicalMemory {
  /** Grows whenever a range appears, disappears or moves; windows and arenas obtained before are then void. */
  readonly generation: number;
  /** Halves of the last `load64`, as signed 32-bit integers (use `>>> 0` before arithmetic). */
  readonly lo: number;
  readonly hi: number;
  /** True when all of [address, address + length) is memory. */
  has(address: number, length: number): boolean;
  /** Loads an aligned 64-bit word, untorn, into `lo` and `hi`; false when absent. */
  load64(address: number): boolean;
  /** Stores an aligned 64-bit word; false when absent. */
  store64(address: number, lo: number, hi: number): boolean;
  /** Replaces an aligned 64-bit word if it still has the expected halves; false when it has not, or is absent. */
  compareExchange64(address: number, expectLo: number, expectHi: number, lo: number, hi: number): boolean;
  /** Aligned loads of 1, 2 or 4 bytes as unsigned numbers; -1 when absent. */
  load(address: number, size: 1 | 2 | 4): number;
  store(address: number, size: 1 | 2 | 4, value: number): boolean;
  /** Copies bytes out of memory; false (nothing copied) when any byte is absent. */
  read(address: number, target: Uint8Array, targetOffset: number, length: number): boolean;
  /** Copies bytes into memory; false (nothing written) when any byte is absent. */
  write(address: number, source: Uint8Array, sourceOffset: number, length: number): boolean;
  /** Sets bytes; false when any byte is absent. */
  fill(address: number, value: number, length: number): boolean;
  /** Copies inside memory (ranges may overlap); false when any byte is absent. */
  copy(target: number, source: number, length: number): boolean;
}

/** A half-open range [start, end) of physical addresses. */
export interface MemoryRange {
  readonly start: number;
  readonly end: number;
}

/** Arenas are fixed so that addresses map to them by a shift; the host commits their pages on first touch. */
const ARENA_SHIFT = 26;
const ARENA_SIZE = 2 ** ARENA_SHIFT;
const ARENA_MASK = ARENA_SIZE - 1;
/**
 * Neighbouring arenas share a buffer: the host's garbage collector runs whenever buffers have grown by some dozens of MiB,
 * and each time looks at the whole heap, which would make a large machine's memory cost the square of its size. A buffer is a
 * sixteenth of the machine, from 256 MiB to 1 GiB, so that many small machines do not use address space up.
 */
const MIN_BUFFER_ARENAS = 4;
const MAX_BUFFER_ARENAS = 16;

class Arena {
  readonly bytes: Uint8Array;
  readonly words: Int32Array;
  readonly shorts: Uint16Array;

  constructor(buffer: ArrayBuffer, offset: number) {
    const size = Math.min(buffer.byteLength - offset, ARENA_SIZE);
    this.bytes = new Uint8Array(buffer, offset, size);
    this.words = new Int32Array(buffer, offset, size / 4);
    this.shorts = new Uint16Array(buffer, offset, size / 2);
  }
}

/** RAM of a simulated machine: one or more ranges, zero until written. */
export class Ram implements PhysicalMemory {
  generation = 0;
  lo = 0;
  hi = 0;
  readonly ranges: readonly MemoryRange[];
  private readonly arenas: (Arena | undefined)[] = [];
  private readonly buffers = new Map<number, ArrayBuffer>();
  private readonly bufferArenas: number;
  /** End of the only range that starts at 0, or 0: the common case is checked with one comparison. */
  private readonly plainEnd: number;

  /** @param ranges bytes, aligned to 4 KiB, ascending, disjoint, below 2^52 */
  constructor(ranges: readonly MemoryRange[] | number) {
    this.ranges = typeof ranges === 'number' ? [{ start: 0, end: ranges }] : ranges;
    let previous = 0;
    for (const { start, end } of this.ranges) {
      assert(start % 4096 === 0 && end % 4096 === 0 && start >= previous && end > start, 'RAM ranges must be aligned and ascending');
      previous = end;
    }
    assert(previous <= 2 ** 52, 'physical addresses have at most 52 bits');
    this.plainEnd = this.ranges[0]?.start === 0 ? this.ranges[0].end : 0;
    this.bufferArenas = Math.min(Math.max(Math.ceil(this.sizeBytes / (16 * ARENA_SIZE)), MIN_BUFFER_ARENAS), MAX_BUFFER_ARENAS);
  }

  get sizeBytes(): number {
    return this.ranges.reduce((sum, range) => sum + range.end - range.start, 0);
  }

  /** Memory that was ever touched, in large pieces by address; everything else is zero. The bytes are the memory itself. */
  *touched(): Generator<{ readonly start: number; readonly bytes: Uint8Array }> {
    for (const [index, arena] of this.arenas.entries()) if (arena !== undefined) yield { start: index * ARENA_SIZE, bytes: arena.bytes };
  }

  has(address: number, length: number): boolean {
    if (address + length <= this.plainEnd) return address >= 0;
    for (const { start, end } of this.ranges) if (address >= start && address + length <= end) return true;
    return false;
  }

  load64(address: number): boolean {
    if (address + 8 > this.plainEnd && !this.has(address, 8)) return false;
    const words = this.arena(address).words;
    const index = (address & ARENA_MASK) >>> 2;
    this.lo = words[index]!;
    this.hi = words[index + 1]!;
    return true;
  }

  store64(address: number, lo: number, hi: number): boolean {
    if (!this.has(address, 8)) return false;
    const words = this.arena(address).words;
    const index = (address & ARENA_MASK) >>> 2;
    words[index] = lo;
    words[index + 1] = hi;
    return true;
  }

  compareExchange64(address: number, expectLo: number, expectHi: number, lo: number, hi: number): boolean {
    if (!this.has(address, 8)) return false;
    const words = this.arena(address).words;
    const index = (address & ARENA_MASK) >>> 2;
    if (words[index] !== (expectLo | 0) || words[index + 1] !== (expectHi | 0)) return false;
    words[index] = lo;
    words[index + 1] = hi;
    return true;
  }

  load(address: number, size: 1 | 2 | 4): number {
    if (!this.has(address, size)) return -1;
    const arena = this.arena(address);
    const offset = address & ARENA_MASK;
    if (size === 4) return arena.words[offset >>> 2]! >>> 0;
    return size === 1 ? arena.bytes[offset]! : arena.shorts[offset >>> 1]!;
  }

  store(address: number, size: 1 | 2 | 4, value: number): boolean {
    if (!this.has(address, size)) return false;
    const arena = this.arena(address);
    const offset = address & ARENA_MASK;
    if (size === 4) arena.words[offset >>> 2] = value;
    else if (size === 1) arena.bytes[offset] = value;
    else arena.shorts[offset >>> 1] = value;
    return true;
  }

  read(address: number, target: Uint8Array, targetOffset: number, length: number): boolean {
    if (!this.has(address, length)) return false;
    while (length > 0) {
      const offset = address & ARENA_MASK;
      const count = Math.min(length, ARENA_SIZE - offset);
      const bytes = this.arena(address).bytes;
      if (count <= 16) for (let i = 0; i < count; i++) target[targetOffset + i] = bytes[offset + i]!;
      else target.set(bytes.subarray(offset, offset + count), targetOffset);
      address += count;
      targetOffset += count;
      length -= count;
    }
    return true;
  }

  write(address: number, source: Uint8Array, sourceOffset: number, length: number): boolean {
    if (!this.has(address, length)) return false;
    while (length > 0) {
      const offset = address & ARENA_MASK;
      const count = Math.min(length, ARENA_SIZE - offset);
      const bytes = this.arena(address).bytes;
      if (count <= 16) for (let i = 0; i < count; i++) bytes[offset + i] = source[sourceOffset + i]!;
      else bytes.set(sourceOffset === 0 && count === source.length ? source : source.subarray(sourceOffset, sourceOffset + count), offset);
      address += count;
      sourceOffset += count;
      length -= count;
    }
    return true;
  }

  fill(address: number, value: number, length: number): boolean {
    if (!this.has(address, length)) return false;
    while (length > 0) {
      const offset = address & ARENA_MASK;
      const count = Math.min(length, ARENA_SIZE - offset);
      // an arena that does not exist yet is zero already: clearing huge untouched memory costs nothing
      if (value !== 0 || this.arenas[Math.floor(address / ARENA_SIZE)] !== undefined) {
        this.arena(address).bytes.fill(value, offset, offset + count);
      }
      address += count;
      length -= count;
    }
    return true;
  }

  copy(target: number, source: number, length: number): boolean {
    if (!this.has(target, length) || !this.has(source, length)) return false;
    // the end of RAM has no arena
    if (length === 0) return true;
    const targetOffset = target & ARENA_MASK, sourceOffset = source & ARENA_MASK;
    const targetArena = this.arena(target), sourceArena = this.arena(source);
    if (targetOffset + length <= ARENA_SIZE && sourceOffset + length <= ARENA_SIZE) {
      if (targetArena === sourceArena) targetArena.bytes.copyWithin(targetOffset, sourceOffset, sourceOffset + length);
      else targetArena.bytes.set(sourceArena.bytes.subarray(sourceOffset, sourceOffset + length), targetOffset);
      return true;
    }
    // crosses an arena: through a buffer, which also keeps overlapping ranges right
    const bytes = new Uint8Array(length);
    this.read(source, bytes, 0, length);
    return this.write(target, bytes, 0, length);
  }

  private arena(address: number): Arena {
    const index = Math.floor(address / ARENA_SIZE);
    return this.arenas[index] ?? this.commit(index);
  }

  private commit(index: number): Arena {
    const arena = new Arena(this.bufferOf(Math.floor(index / this.bufferArenas)), (index % this.bufferArenas) * ARENA_SIZE);
    while (this.arenas.length <= index) this.arenas.push(undefined);
    this.arenas[index] = arena;
    return arena;
  }

  /** From its first address to the last one of RAM below its end. */
  private bufferOf(index: number): ArrayBuffer {
    let buffer = this.buffers.get(index);
    if (buffer !== undefined) return buffer;
    const size = this.bufferArenas * ARENA_SIZE, start = index * size;
    let end = start;
    for (const range of this.ranges) if (range.end > start && range.start < start + size) end = Math.min(range.end, start + size);
    buffer = new ArrayBuffer(end - start);
    this.buffers.set(index, buffer);
    return buffer;
  }
}
