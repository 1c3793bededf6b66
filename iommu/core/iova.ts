/**
 * I/O virtual addresses of one DMA domain, in 4 KiB pages: handed out from the top of what the device can drive
 * downwards, naturally aligned to the size's power of two, with freed ranges of small sizes kept for reuse (the
 * shape of drivers/iommu/iova.c: top-down, size-aligned, one cache per power of two).
 */
import { assert } from '../../sim/assert.js';

/** Largest cached size is 2^(CACHED_ORDERS - 1) pages. */
const CACHED_ORDERS = 6;
const CACHE_DEPTH = 128;

export class IovaAllocator {
  /** Free ranges, ascending and never touching: [starts[i], ends[i]). */
  private readonly starts: number[];
  private readonly ends: number[];
  private readonly caches: number[][] = Array.from({ length: CACHED_ORDERS }, () => []);
  /** Pages handed out. */
  used = 0;

  /** @param endPage first page that the domain cannot map; page 0 is never handed out */
  constructor(endPage: number) {
    this.starts = [1];
    this.ends = [endPage];
  }

  /** Takes [firstPage, endPage) out for good; what is handed out already stays. */
  reserve(firstPage: number, endPage: number): void {
    this.dropCaches();
    for (let i = this.starts.length - 1; i >= 0; i--) {
      const start = this.starts[i]!, end = this.ends[i]!;
      if (end <= firstPage || start >= endPage) continue;
      this.replace(i, start, Math.max(start, firstPage), Math.min(end, endPage), end);
    }
  }

  /** `pages` contiguous pages below `limitPage`; undefined when there are none. */
  alloc(pages: number, limitPage: number): number | undefined {
    const size = sizeOf(pages);
    const order = orderOf(size);
    if (order !== undefined) {
      const cache = this.caches[order]!;
      // newest first; an address above this device's mask is left for others
      for (let i = cache.length - 1; i >= 0; i--) {
        const page = cache[i]!;
        if (page + size > limitPage) continue;
        cache.splice(i, 1);
        this.used += size;
        return page;
      }
    }
    const page = this.fromRanges(size, limitPage);
    if (page !== undefined) return page;
    if (this.caches.every((cache) => cache.length === 0)) return undefined;
    this.dropCaches();
    return this.fromRanges(size, limitPage);
  }

  /** Gives back what `alloc(pages)` handed out at `page`. */
  free(page: number, pages: number): void {
    const size = sizeOf(pages);
    this.used -= size;
    const order = orderOf(size);
    const cache = order === undefined ? undefined : this.caches[order]!;
    if (cache !== undefined && cache.length < CACHE_DEPTH) cache.push(page);
    else this.merge(page, page + size);
  }

  private fromRanges(size: number, limitPage: number): number | undefined {
    const alignment = alignmentOf(size);
    for (let i = this.starts.length - 1; i >= 0; i--) {
      const start = this.starts[i]!, end = this.ends[i]!;
      const top = Math.min(end, limitPage) - size;
      const page = top - (top % alignment);
      if (top < start || page < start) continue;
      this.replace(i, start, page, page + size, end);
      this.used += size;
      return page;
    }
    return undefined;
  }

  /** Range i becomes [start, holeStart) and [holeEnd, end), where not empty. */
  private replace(i: number, start: number, holeStart: number, holeEnd: number, end: number): void {
    const low = holeStart > start, high = end > holeEnd;
    if (low && high) {
      this.ends[i] = holeStart;
      this.starts.splice(i + 1, 0, holeEnd);
      this.ends.splice(i + 1, 0, end);
    } else if (low) {
      this.ends[i] = holeStart;
    } else if (high) {
      this.starts[i] = holeEnd;
    } else {
      this.starts.splice(i, 1);
      this.ends.splice(i, 1);
    }
  }

  private merge(start: number, end: number): void {
    let low = 0, high = this.starts.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.starts[middle]! < start) low = middle + 1;
      else high = middle;
    }
    const joinsPrevious = low > 0 && this.ends[low - 1] === start;
    const joinsNext = low < this.starts.length && this.starts[low] === end;
    assert(low === 0 || this.ends[low - 1]! <= start, 'I/O virtual addresses freed twice');
    if (joinsPrevious && joinsNext) {
      this.ends[low - 1] = this.ends[low]!;
      this.starts.splice(low, 1);
      this.ends.splice(low, 1);
    } else if (joinsPrevious) {
      this.ends[low - 1] = end;
    } else if (joinsNext) {
      this.starts[low] = start;
    } else {
      this.starts.splice(low, 0, start);
      this.ends.splice(low, 0, end);
    }
  }

  private dropCaches(): void {
    this.caches.forEach((cache, order) => {
      for (const page of cache) this.merge(page, page + 2 ** order);
      cache.length = 0;
    });
  }
}

/** Small sizes are rounded to a power of two, so that freed ranges fit again. */
function sizeOf(pages: number): number {
  return pages <= 2 ** (CACHED_ORDERS - 1) ? alignmentOf(pages) : pages;
}

function alignmentOf(pages: number): number {
  let alignment = 1;
  while (alignment < pages) alignment *= 2;
  return alignment;
}

function orderOf(size: number): number | undefined {
  return size <= 2 ** (CACHED_ORDERS - 1) ? Math.log2(size) : undefined;
}
