/**
 * Virtual memory areas of an address space, in units of 4 KiB pages: sorted, disjoint, merged where the kernel
 * would merge them (mm/vma.c). Lookups are a binary search; there are few areas, however many pages they have.
 */
import type { SharedPages } from './shared-pages.js';

/** Protection of a mapping as in mmap(2), or-ed; the same bits as ACCESS_READ, ACCESS_WRITE, ACCESS_EXECUTE. */
export const PROT_NONE = 0;
export const PROT_READ = 1;
export const PROT_WRITE = 2;
export const PROT_EXEC = 4;

/** What fills an area's pages. Anonymous private memory has neither part. */
export interface Backing {
  /** Content of a private file mapping, copied when a page is first touched. */
  readonly file?: Uint8Array | undefined;
  /** Pages of a MAP_SHARED mapping. */
  readonly shared?: SharedPages | undefined;
}

export class Vma {
  /** First page, and the page after the last. */
  start: number;
  end: number;
  prot: number;
  /** Leaf level of its pages: 0, or 1 and 2 for MAP_HUGETLB areas. */
  readonly level: number;
  readonly file: Uint8Array | undefined;
  readonly shared: SharedPages | undefined;
  /** Page of the backing that stands at `start`. */
  offset: number;

  constructor(start: number, end: number, prot: number, level: number, backing: Backing = {}, offset = 0) {
    this.start = start;
    this.end = end;
    this.prot = prot;
    this.level = level;
    this.file = backing.file;
    this.shared = backing.shared;
    this.offset = offset;
  }

  get pages(): number {
    return this.end - this.start;
  }

  /** A copy of [start, end), which lies inside the area. */
  slice(start: number, end: number): Vma {
    return new Vma(start, end, this.prot, this.level, this, this.offset + start - this.start);
  }

  continuedBy(next: Vma): boolean {
    return this.end === next.start && this.prot === next.prot && this.level === next.level
      && this.file === next.file && this.shared === next.shared
      && ((this.file === undefined && this.shared === undefined) || this.offset + this.pages === next.offset);
  }
}

export class VmaList {
  private items: Vma[] = [];
  private last: Vma | undefined;

  get count(): number {
    return this.items.length;
  }

  /** Areas in ascending order. */
  [Symbol.iterator](): Iterator<Vma> {
    return this.items[Symbol.iterator]();
  }

  /** The area that contains `page`. */
  find(page: number): Vma | undefined {
    const last = this.last;
    if (last !== undefined && page >= last.start && page < last.end) return last;
    const vma = this.items[this.firstEndingAfter(page)];
    if (vma === undefined || vma.start > page) return undefined;
    this.last = vma;
    return vma;
  }

  /** Areas that intersect [start, end), ascending. */
  intersecting(start: number, end: number): Vma[] {
    const found: Vma[] = [];
    for (let i = this.firstEndingAfter(start); i < this.items.length && this.items[i]!.start < end; i++) found.push(this.items[i]!);
    return found;
  }

  /** True when no page of [start, end) is outside an area. */
  covers(start: number, end: number): boolean {
    for (let i = this.firstEndingAfter(start); start < end; i++) {
      const vma = this.items[i];
      if (vma === undefined || vma.start > start) return false;
      start = vma.end;
    }
    return true;
  }

  /** Where the last area before `page` ends, or 0. */
  endBefore(page: number): number {
    return this.items[this.firstEndingAfter(page) - 1]?.end ?? 0;
  }

  /** Where the first area from `page` on starts, or Infinity. */
  startFrom(page: number): number {
    const i = this.firstEndingAfter(page);
    const vma = this.items[i];
    return (vma !== undefined && vma.start < page ? this.items[i + 1] : vma)?.start ?? Infinity;
  }

  /** Inserts an area into free space and merges it with its neighbours. */
  insert(vma: Vma): void {
    const at = this.firstEndingAfter(vma.start);
    this.items.splice(at, 0, vma);
    this.mergeAround(at);
  }

  /** Takes [start, end) out, splitting areas at its ends; returns what was there. */
  remove(start: number, end: number): Vma[] {
    this.splitAt(start);
    this.splitAt(end);
    const first = this.firstEndingAfter(start);
    let count = 0;
    while (first + count < this.items.length && this.items[first + count]!.start < end) count++;
    this.last = undefined;
    return this.items.splice(first, count);
  }

  clear(): void {
    this.items = [];
    this.last = undefined;
  }

  /**
   * Highest free [start, start + pages) below `top` and from `bottom` on, `start` a multiple of `alignment`; -1 when
   * there is none (the kernel's top-down search, mm/mmap.c).
   */
  gapBelow(top: number, bottom: number, pages: number, alignment: number): number {
    let end = top;
    for (let i = this.items.length - 1; i >= -1; i--) {
      const vma = this.items[i];
      if (vma !== undefined && vma.start >= end) continue;
      const floor = Math.max(vma?.end ?? 0, bottom);
      const start = Math.floor((end - pages) / alignment) * alignment;
      if (start >= floor) return start;
      if (vma === undefined || vma.start <= bottom) return -1;
      end = vma.start;
    }
    return -1;
  }

  private splitAt(page: number): void {
    const i = this.firstEndingAfter(page);
    const vma = this.items[i];
    if (vma === undefined || vma.start >= page) return;
    const upper = vma.slice(page, vma.end);
    vma.end = page;
    this.items.splice(i + 1, 0, upper);
  }

  private mergeAround(at: number): void {
    this.last = undefined;
    for (const i of [at, at - 1]) {
      const lower = this.items[i], upper = this.items[i + 1];
      if (lower === undefined || upper === undefined || !lower.continuedBy(upper)) continue;
      lower.end = upper.end;
      this.items.splice(i + 1, 1);
    }
  }

  /** Index of the first area whose end lies after `page`. */
  private firstEndingAfter(page: number): number {
    const items = this.items;
    let low = 0, high = items.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (items[middle]!.end > page) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
