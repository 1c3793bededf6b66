/**
 * malloc of a process: small blocks from a heap grown by brk, blocks of 128 KiB and more by mmap (glibc's
 * M_MMAP_THRESHOLD). Handing out memory touches none of it: sizes are kept outside the simulated memory, so a block
 * that was only allocated has no page yet. Blocks are aligned to 16 bytes, mmapped ones to a page.
 *
 * Left out: glibc's chunk headers, bins, arenas per thread, the threshold's adaption.
 */
import { assert } from '../../sim/assert.js';
import { alignUp, hex } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import { HEAP_START, type Mm } from './mm.js';

export const MMAP_THRESHOLD = 128 * 1024;
const ALIGNMENT = 16;
/** The heap grows and shrinks by this much (M_TOP_PAD, M_TRIM_THRESHOLD). */
const GROWTH = 128 * 1024;

export class Malloc {
  private readonly mm: Mm;
  /** Sizes of the blocks in use, by address. */
  private readonly blocks = new Map<number, number>();
  /** Free pieces of the heap below `top`, sorted, never adjacent. */
  private readonly holes: { start: number; end: number }[] = [];
  /** End of the used part of the heap, and of the heap. */
  private top = HEAP_START;
  private heapEnd = HEAP_START;

  constructor(mm: Mm) {
    this.mm = mm;
  }

  /** The child's allocator after a fork: the same blocks, in the copied address space. */
  fork(child: Mm): Malloc {
    const copy = new Malloc(child);
    for (const [address, size] of this.blocks) copy.blocks.set(address, size);
    for (const hole of this.holes) copy.holes.push({ ...hole });
    copy.top = this.top;
    copy.heapEnd = this.heapEnd;
    return copy;
  }

  /** Bytes in use, sizes rounded up. */
  get inUse(): number {
    let sum = 0;
    for (const size of this.blocks.values()) sum += size;
    return sum;
  }

  /** Address of at least `size` bytes, untouched. ENOMEM. */
  *malloc(size: number): Steps<number> {
    return yield* this.memalign(size >= MMAP_THRESHOLD ? 4096 : ALIGNMENT, size);
  }

  /** Like `malloc`, at a multiple of `alignment`, a power of two. ENOMEM, EINVAL. */
  *memalign(alignment: number, size: number): Steps<number> {
    if (alignment < 1 || !Number.isInteger(Math.log2(alignment)) || size < 0) throw new Errno('EINVAL', `allocation of ${size} bytes aligned to ${alignment}`);
    const bytes = alignUp(Math.max(size, 1), ALIGNMENT);
    let address: number;
    if (size >= MMAP_THRESHOLD && alignment <= 4096) address = yield* this.mm.mmap(bytes);
    else address = this.takeHole(bytes, Math.max(alignment, ALIGNMENT)) ?? (yield* this.extend(bytes, Math.max(alignment, ALIGNMENT)));
    this.blocks.set(address, bytes);
    return address;
  }

  /** Bytes that the block at `address` holds; undefined when it is none. */
  sizeOf(address: number): number | undefined {
    return this.blocks.get(address);
  }

  /** Frees a block; mmapped ones are unmapped at once. Freeing anything else is what glibc aborts for: EINVAL. */
  *free(address: number): Steps {
    const bytes = this.blocks.get(address);
    if (bytes === undefined) throw new Errno('EINVAL', `free(): invalid pointer ${hex(address)}`);
    this.blocks.delete(address);
    if (address >= this.heapEnd || address < HEAP_START) yield* this.mm.munmap(address, bytes);
    else yield* this.giveBack(address, address + bytes);
  }

  private takeHole(bytes: number, alignment: number): number | undefined {
    for (const [i, hole] of this.holes.entries()) {
      const address = alignUp(hole.start, alignment);
      if (address + bytes > hole.end) continue;
      const pieces = [{ start: hole.start, end: address }, { start: address + bytes, end: hole.end }];
      this.holes.splice(i, 1, ...pieces.filter((piece) => piece.end > piece.start));
      return address;
    }
    return undefined;
  }

  private *extend(bytes: number, alignment: number): Steps<number> {
    const address = alignUp(this.top, alignment);
    if (address + bytes > this.heapEnd) {
      const end = heapEndFor(address + bytes);
      yield* this.mm.brk(end);
      this.heapEnd = end;
    }
    if (address > this.top) this.holes.push({ start: this.top, end: address });
    this.top = address + bytes;
    return address;
  }

  private *giveBack(start: number, end: number): Steps {
    const at = this.holes.findIndex((hole) => hole.start > start);
    const index = at < 0 ? this.holes.length : at;
    const next = this.holes[index], previous = this.holes[index - 1];
    assert((next === undefined || end <= next.start) && (previous === undefined || previous.end <= start), 'heap blocks overlap');
    const joinsNext = next !== undefined && next.start === end;
    const joinsPrevious = previous !== undefined && previous.end === start;
    const hole = { start: joinsPrevious ? previous.start : start, end: joinsNext ? next.end : end };
    this.holes.splice(index - (joinsPrevious ? 1 : 0), (joinsPrevious ? 1 : 0) + (joinsNext ? 1 : 0), hole);
    if (hole.end !== this.top) return;
    this.holes.pop();
    this.top = hole.start;
    const heapEnd = heapEndFor(this.top);
    if (heapEnd < this.heapEnd) {
      this.heapEnd = heapEnd;
      yield* this.mm.brk(heapEnd);
    }
  }
}

/** End of the heap that contains `top`: a multiple of GROWTH from its start. */
function heapEndFor(top: number): number {
  return HEAP_START + alignUp(top - HEAP_START, GROWTH);
}
