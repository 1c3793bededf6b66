/**
 * Physical frames of a machine: a buddy allocator with reference and pin counts (Linux: mm/page_alloc.c, the
 * refcount of `struct page`, FOLL_PIN accounting), as plain as a simulator can have it.
 *
 * Memory that was never handed out costs nothing: each range is consumed from its start, and per-frame state lives
 * in chunks of typed arrays that appear when a frame of theirs is first used.
 *
 * Left out: zones, NUMA nodes, reclaim, compaction, free lists per CPU.
 */
import { assert, SimulatorBug } from '../sim/assert.js';
import { hex } from '../sim/address.js';
import { Errno } from '../sim/errno.js';
import type { MemoryRange, PhysicalMemory } from '../sim/memory.js';
import type { FrameSource } from './frame-source.js';

/** Largest block: 2^18 frames, 1 GiB. */
export const MAX_ORDER = 18;

const MAX_BLOCK = 2 ** MAX_ORDER;
const CHUNK_SHIFT = 10;
const CHUNK_FRAMES = 1 << CHUNK_SHIFT;
const CHUNK_MASK = CHUNK_FRAMES - 1;
/** State of a frame: 0 inside a block or never used; else FREE or USED with the block's order. */
const FREE = 0x40;
const USED = 0x80;
const ORDER = 0x1f;
/** State of a single free frame that waits in `recent`, unmerged. */
const RECENT = 0x7f;
const RECENT_FRAMES = 256;
const NONE = -1;

/** State of `CHUNK_FRAMES` frames. A free block's first frame keeps list links where a used one keeps its counts. */
class Chunk {
  /** References, or the next free block. */
  readonly a = new Int32Array(CHUNK_FRAMES);
  /** Pins, or the previous free block. */
  readonly b = new Int32Array(CHUNK_FRAMES);
  readonly owner = new Uint16Array(CHUNK_FRAMES);
  readonly state = new Uint8Array(CHUNK_FRAMES);
}

/** A range of memory in the dense index space of frames: index - base + startFrame is the frame number. */
interface Span {
  readonly startFrame: number;
  readonly base: number;
  readonly end: number;
  /** From here on nothing is in use, and nothing is on the free lists. */
  next: number;
  /** From here on nothing was ever handed out; `next` may have moved back below. */
  untouched: number;
}

export interface FrameAllocatorOptions {
  readonly memory: PhysicalMemory;
  /** What may be handed out, bytes, 4 KiB aligned, ascending. Frame 0 never is: a zero address means "none". */
  readonly ranges: readonly MemoryRange[];
  /** Fills freed frames with this byte, so that a stale translation is visible in what it reads. */
  readonly poison?: number;
  /**
   * All of the ranges is zero when the allocator is made, and nobody writes to frames that it has not handed out: then
   * a frame that was never handed out before needs no zeroing, and memory that is allocated but not touched costs the
   * host nothing. Holds for the RAM of a machine, or of a guest, that was just switched on; not after a reboot that
   * keeps the memory, and not where a device without an IOMMU may write anywhere. Default false.
   */
  readonly freshZero?: boolean;
  readonly defects?: ReadonlySet<string>;
  /** Called for every block that is free from now on. */
  readonly onFree?: (physical: number, frames: number) => void;
}

export interface OwnerFrames {
  readonly owner: string;
  readonly frames: number;
}

export class FrameAllocator implements FrameSource {
  /** Frames in use, 4 KiB each. */
  inUse = 0;
  /** Pins outstanding: each `pin` counts one until its `unpin`. */
  pinnedPages = 0;
  /** Frames that exist. */
  total = 0;
  private readonly memory: PhysicalMemory;
  private readonly poison: number;
  private readonly skipZeroing: boolean;
  private readonly freshZero: boolean;
  /** The block that `take` returned last was never handed out before. */
  private fresh = false;
  private readonly onFree: ((physical: number, frames: number) => void) | undefined;
  private readonly spans: Span[] = [];
  private readonly chunks: (Chunk | undefined)[] = [];
  /** First free block of each order. */
  private readonly freeHeads = new Int32Array(MAX_ORDER + 1).fill(NONE);
  /** Single frames freed last, handed out again first: merging and splitting blocks for each would cost more. */
  private readonly recent = new Int32Array(RECENT_FRAMES);
  private recentCount = 0;
  private readonly ownerIds = new Map<string, number>();
  private readonly ownerNames: string[] = [];
  private readonly ownerCounts: number[] = [];
  private lastOwner = '';
  private lastOwnerId = -1;

  /** Defects: `frames.skip-zeroing` hands out frames with their old content. */
  constructor(options: FrameAllocatorOptions) {
    this.memory = options.memory;
    this.poison = options.poison ?? -1;
    this.onFree = options.onFree;
    this.skipZeroing = options.defects?.has('frames.skip-zeroing') ?? false;
    this.freshZero = options.freshZero ?? false;
    for (const range of options.ranges) this.addRange(range);
  }

  /** More memory to hand out, above what there is (hot-add). */
  addRange(range: MemoryRange): void {
    assert(range.start % 4096 === 0 && range.end % 4096 === 0 && range.end > range.start, 'frame ranges must be aligned and not empty');
    const last = this.spans.at(-1);
    assert(last === undefined || range.start / 4096 >= last.startFrame + last.end - last.base, 'frame ranges must be ascending');
    const startFrame = Math.max(range.start / 4096, 1);
    const frames = range.end / 4096 - startFrame;
    // an index is congruent to its frame number modulo the largest block, and no block spans two ranges
    const base = Math.ceil((last?.end ?? 0) / MAX_BLOCK) * MAX_BLOCK + (startFrame % MAX_BLOCK);
    assert(base + frames < 2 ** 31, 'at most 8 TiB of memory');
    this.total += frames;
    this.spans.push({ startFrame, base, end: base + frames, next: base, untouched: base });
  }

  /** Zeroed, naturally aligned block of 2^order frames, referenced once; its physical address. ENOMEM. */
  alloc(owner: string, order = 0): number {
    const address = this.tryAlloc(this.ownerId(owner), order);
    if (address < 0) throw new Errno('ENOMEM', `no ${2 ** order * 4} KiB of memory left for ${owner}`);
    return address;
  }

  /** Like `alloc` for an owner id, -1 instead of ENOMEM. */
  tryAlloc(ownerId: number, order: number): number {
    const index = this.take(order);
    if (index < 0) return -1;
    const chunk = this.chunkOf(index), at = index & CHUNK_MASK;
    chunk.a[at] = 1;
    chunk.b[at] = 0;
    chunk.owner[at] = ownerId;
    chunk.state[at] = USED | order;
    const frames = 1 << order;
    this.inUse += frames;
    this.ownerCounts[ownerId]! += frames;
    const address = this.addressOf(index);
    if (this.fresh && this.freshZero) return address;
    // without zeroed tables there would be nothing to see but crashes
    if (!this.skipZeroing || this.ownerNames[ownerId]!.includes('table')) this.memory.fill(address, 0, frames * 4096);
    return address;
  }

  /** Number of an owner's name, for `tryAlloc`. */
  ownerId(owner: string): number {
    if (owner === this.lastOwner && this.lastOwnerId >= 0) return this.lastOwnerId;
    let id = this.ownerIds.get(owner);
    if (id === undefined) id = this.addOwner(owner);
    this.lastOwner = owner;
    this.lastOwnerId = id;
    return id;
  }

  /** Returns a block that nobody else references; freeing a free block, or with another order, is a bug. */
  free(address: number, order = 0): void {
    const index = this.indexOf(address);
    const chunk = this.chunkAt(index), at = index & CHUNK_MASK;
    // messages are built only for bugs: this is hot
    if (chunk === undefined || chunk.state[at] !== (USED | order)) throw new SimulatorBug(`frame ${hex(address)} freed, but it is no block in use of order ${order}`);
    if (chunk.a[at] !== 1 || chunk.b[at] !== 0) throw new SimulatorBug(`frame ${hex(address)} freed with ${chunk.a[at]} references and ${chunk.b[at]} pins`);
    this.release(index, chunk, at, order);
  }

  /** One more reference to the block that contains `address`. */
  get(address: number): void {
    const head = this.headOf(address);
    this.chunks[head >>> CHUNK_SHIFT]!.a[head & CHUNK_MASK]!++;
  }

  /** Drops a reference; true when it was the last one and the block is free now. */
  put(address: number): boolean {
    const head = this.headOf(address);
    const chunk = this.chunks[head >>> CHUNK_SHIFT]!, at = head & CHUNK_MASK;
    const left = --chunk.a[at]!;
    if (left > 0) {
      if (left < chunk.b[at]!) throw new SimulatorBug(`frame ${hex(address)} has more pins than references`);
      return false;
    }
    if (chunk.b[at] !== 0) throw new SimulatorBug(`last reference of frame ${hex(address)} dropped with ${chunk.b[at]} pins`);
    this.release(head, chunk, at, chunk.state[at]! & ORDER);
    return true;
  }

  /** A reference for DMA (FOLL_PIN): counted by `pinnedPages`, and copy-on-write leaves the page where it is. */
  pin(address: number): void {
    const head = this.headOf(address);
    const chunk = this.chunks[head >>> CHUNK_SHIFT]!, at = head & CHUNK_MASK;
    chunk.a[at]!++;
    chunk.b[at]!++;
    this.pinnedPages++;
  }

  unpin(address: number): void {
    const head = this.headOf(address);
    const chunk = this.chunks[head >>> CHUNK_SHIFT]!, at = head & CHUNK_MASK;
    if (chunk.b[at]! <= 0) throw new SimulatorBug(`frame ${hex(address)} unpinned, but it has no pin`);
    chunk.b[at]!--;
    this.pinnedPages--;
    this.put(address);
  }

  /** Pins `pages` frames from `address` on, one pin for each; they may be parts of several blocks. */
  pinRange(address: number, pages: number): void {
    for (let done = 0; done < pages; ) {
      const at = address + done * 4096;
      const head = this.headOf(at);
      const count = Math.min(pages - done, this.framesLeft(head, at));
      const chunk = this.chunks[head >>> CHUNK_SHIFT]!, slot = head & CHUNK_MASK;
      chunk.a[slot]! += count;
      chunk.b[slot]! += count;
      this.pinnedPages += count;
      done += count;
    }
  }

  /** Gives back the pins of `pinRange`. */
  unpinRange(address: number, pages: number): void {
    for (let done = 0; done < pages; ) {
      const at = address + done * 4096;
      const head = this.headOf(at);
      const count = Math.min(pages - done, this.framesLeft(head, at));
      const chunk = this.chunks[head >>> CHUNK_SHIFT]!, slot = head & CHUNK_MASK;
      if (chunk.b[slot]! < count) throw new SimulatorBug(`frame ${hex(at)} unpinned ${count} times, but it has ${chunk.b[slot]} pins`);
      chunk.b[slot]! -= count;
      chunk.a[slot]! -= count - 1;
      this.pinnedPages -= count;
      this.put(at);
      done += count;
    }
  }

  /** References of the block that contains `address`, pins included; 0 when it is free. */
  references(address: number): number {
    const head = this.findHead(address);
    return head < 0 ? 0 : this.chunks[head >>> CHUNK_SHIFT]!.a[head & CHUNK_MASK]!;
  }

  pins(address: number): number {
    const head = this.findHead(address);
    return head < 0 ? 0 : this.chunks[head >>> CHUNK_SHIFT]!.b[head & CHUNK_MASK]!;
  }

  /** Who allocated the block that contains `address`; undefined when it is free or no memory of this allocator. */
  ownerOf(address: number): string | undefined {
    const head = this.findHead(address);
    return head < 0 ? undefined : this.ownerNames[this.chunks[head >>> CHUNK_SHIFT]!.owner[head & CHUNK_MASK]!];
  }

  /** Frames in use by an owner. */
  framesOf(owner: string): number {
    const id = this.ownerIds.get(owner);
    return id === undefined ? 0 : this.ownerCounts[id]!;
  }

  /** Owners that still hold frames, in the order in which they first came. After a teardown: the leaks. */
  usage(): OwnerFrames[] {
    return this.ownerNames.map((owner, id) => ({ owner, frames: this.ownerCounts[id]! })).filter(({ frames }) => frames > 0);
  }

  private addOwner(owner: string): number {
    let id = this.ownerNames.length;
    if (id === 0x1_0000) {
      id = this.ownerCounts.indexOf(0);
      assert(id >= 0, 'more than 65,536 owners of frames');
      this.ownerIds.delete(this.ownerNames[id]!);
    }
    this.ownerIds.set(owner, id);
    this.ownerNames[id] = owner;
    this.ownerCounts[id] = 0;
    return id;
  }

  private release(index: number, chunk: Chunk, at: number, order: number): void {
    const frames = 1 << order;
    this.inUse -= frames;
    this.ownerCounts[chunk.owner[at]!]! -= frames;
    if (this.poison >= 0) this.memory.fill(this.addressOf(index), this.poison, frames * 4096);
    if (this.onFree !== undefined) this.onFree(this.addressOf(index), frames);
    if (order > 0) {
      chunk.state[at] = 0;
      this.putBlock(index, order);
      return;
    }
    if (this.recentCount === RECENT_FRAMES) this.mergeRecent(RECENT_FRAMES / 2);
    chunk.state[at] = RECENT;
    this.recent[this.recentCount++] = index;
  }

  /** Gives recently freed frames to the free lists until `left` are left. */
  private mergeRecent(left: number): void {
    while (this.recentCount > left) {
      const index = this.recent[--this.recentCount]!;
      this.chunks[index >>> CHUNK_SHIFT]!.state[index & CHUNK_MASK] = 0;
      this.putBlock(index, 0);
    }
  }

  /** Index of a block that is free now, or -1. */
  private take(order: number): number {
    if (order < 0 || order > MAX_ORDER) throw new SimulatorBug(`blocks of order ${order} do not exist`);
    this.fresh = false;
    if (order === 0 && this.recentCount > 0) return this.recent[--this.recentCount]!;
    const index = this.takeBlock(order);
    if (index >= 0 || this.recentCount === 0) return index;
    this.mergeRecent(0);
    return this.takeBlock(order);
  }

  /** Takes a block off the free lists, or from the unused end. */
  private takeBlock(order: number): number {
    const heads = this.freeHeads;
    for (let larger = order; larger <= MAX_ORDER; larger++) {
      const index = heads[larger]!;
      if (index < 0) continue;
      this.unlink(index, larger);
      while (larger > order) {
        larger--;
        this.link(index + (1 << larger), larger);
      }
      return index;
    }
    return this.takeUnused(order);
  }

  private takeUnused(order: number): number {
    const size = 1 << order;
    for (const span of this.spans) {
      const index = Math.ceil(span.next / size) * size;
      if (index + size > span.end) continue;
      let skipped = span.next;
      span.next = index + size;
      this.fresh = index >= span.untouched;
      span.untouched = Math.max(span.untouched, span.next);
      // what the alignment skips stays available
      while (skipped < index) {
        const skippedOrder = 31 - Math.clz32(skipped & -skipped);
        this.putBlock(skipped, skippedOrder);
        skipped += 1 << skippedOrder;
      }
      return index;
    }
    return -1;
  }

  /** Gives a block to the free lists, merged with its free buddies. */
  private putBlock(index: number, order: number): void {
    while (order < MAX_ORDER) {
      const buddy = index ^ (1 << order);
      const chunk = this.chunkAt(buddy);
      if (chunk === undefined || chunk.state[buddy & CHUNK_MASK] !== (FREE | order)) break;
      this.unlink(buddy, order);
      index = Math.min(index, buddy);
      order++;
    }
    const span = this.spanOf(index);
    if (index + (1 << order) === span.next) this.retreat(span, index);
    else this.link(index, order);
  }

  /** The unused end of a span grows down to `index`, and over the free blocks below it. */
  private retreat(span: Span, index: number): void {
    span.next = index;
    for (let order = 0; order <= MAX_ORDER; order++) {
      const lower = span.next - (1 << order);
      if (lower < span.base) return;
      if (this.chunkAt(lower)?.state[lower & CHUNK_MASK] !== (FREE | order)) continue;
      this.unlink(lower, order);
      span.next = lower;
      order = -1;
    }
  }

  private link(index: number, order: number): void {
    const chunk = this.chunkOf(index), at = index & CHUNK_MASK;
    const next = this.freeHeads[order]!;
    chunk.state[at] = FREE | order;
    chunk.a[at] = next;
    chunk.b[at] = NONE;
    if (next >= 0) this.chunks[next >>> CHUNK_SHIFT]!.b[next & CHUNK_MASK] = index;
    this.freeHeads[order] = index;
  }

  private unlink(index: number, order: number): void {
    const chunk = this.chunks[index >>> CHUNK_SHIFT]!, at = index & CHUNK_MASK;
    const next = chunk.a[at]!, previous = chunk.b[at]!;
    if (previous < 0) this.freeHeads[order] = next;
    else this.chunks[previous >>> CHUNK_SHIFT]!.a[previous & CHUNK_MASK] = next;
    if (next >= 0) this.chunks[next >>> CHUNK_SHIFT]!.b[next & CHUNK_MASK] = previous;
    chunk.state[at] = 0;
  }

  /** Index of the used block that contains `address`; a bug when there is none. */
  private headOf(address: number): number {
    const head = this.findHead(address);
    if (head < 0) throw new SimulatorBug(`frame ${hex(address)} is not in use`);
    return head;
  }

  /** Frames from `address` to the end of its block, whose head is `head`. */
  private framesLeft(head: number, address: number): number {
    const order = this.chunks[head >>> CHUNK_SHIFT]!.state[head & CHUNK_MASK]! & ORDER;
    return order === 0 ? 1 : head + (1 << order) - this.indexOf(address);
  }

  private findHead(address: number): number {
    const index = this.indexOf(address);
    if (index < 0) return -1;
    for (let order = 0; order <= MAX_ORDER; order++) {
      const head = (index >>> order) << order;
      const chunk = this.chunkAt(head);
      if (chunk === undefined) continue;
      const state = chunk.state[head & CHUNK_MASK]!;
      if (state !== 0) return (state & USED) !== 0 && (state & ORDER) >= order ? head : -1;
    }
    return -1;
  }

  private chunkAt(index: number): Chunk | undefined {
    return this.chunks[index >>> CHUNK_SHIFT];
  }

  private chunkOf(index: number): Chunk {
    return this.chunks[index >>> CHUNK_SHIFT] ?? this.addChunk(index >>> CHUNK_SHIFT);
  }

  private addChunk(number: number): Chunk {
    const chunk = new Chunk();
    while (this.chunks.length <= number) this.chunks.push(undefined);
    this.chunks[number] = chunk;
    return chunk;
  }

  private spanOf(index: number): Span {
    const spans = this.spans;
    let span = spans[0]!;
    for (let i = 1; i < spans.length && index >= spans[i]!.base; i++) span = spans[i]!;
    return span;
  }

  private addressOf(index: number): number {
    const span = this.spanOf(index);
    return (index - span.base + span.startFrame) * 4096;
  }

  private indexOf(address: number): number {
    const frame = Math.floor(address / 4096);
    for (const span of this.spans) {
      const index = frame - span.startFrame + span.base;
      if (frame >= span.startFrame && index < span.end) return index;
    }
    return -1;
  }
}
