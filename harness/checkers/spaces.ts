/**
 * What software decided an address space maps, kept from the records of its changes: the shadow that DMA is judged
 * by. What was removed stays allowed until the invalidation that follows has completed, and not a moment longer.
 */

/** Whether an access to `page` may land in `frame`. */
export interface Space {
  allows(page: number, frame: number, write: boolean): boolean;
}

/** A domain without tables: every address is its own translation. */
export const IDENTITY: Space = { allows: (page, frame) => page === frame };

interface Leaf {
  readonly page: number;
  readonly frame: number;
  readonly pages: number;
  writable: boolean;
  /** Was writable until a moment ago, and the invalidation that says so is still under way. */
  lateWrite: boolean;
}

const LEAF_PAGES = [1, 512, 0x4_0000];

function translates({ page: first, frame: base, pages }: { page: number; frame: number; pages: number }, page: number, frame: number): boolean {
  return page >= first && page < first + pages && base + (page - first) === frame;
}

function overlaps(from: number, pages: number, start: number, end: number): boolean {
  return from < end && from + pages > start;
}

/** Frames that were unmapped, and the page through which a device may still reach each. */
export type Lingering = Map<number, number>;

/** A process's address space: leaves of its page table by first page. */
export class ProcessSpace implements Space {
  /** The process is exiting: who could reach it has been silenced, so nothing removed lingers. */
  exiting = false;
  /** Devices that are bound. Without any there is nobody for whom what was removed could linger. */
  private bonds = 0;
  private readonly lingering: Lingering;
  private readonly live = new Map<number, Leaf>();
  private retired: Leaf[] = [];
  private late: Leaf[] = [];

  /** @param lingering frames of this and other spaces that are gone and not invalidated */
  constructor(lingering: Lingering) {
    this.lingering = lingering;
  }

  bound(): void {
    this.bonds++;
  }

  /** The last unbind drains and invalidates everything. */
  unbound(): void {
    if (--this.bonds === 0) this.invalidated(0, Infinity);
  }

  set(page: number, frame: number, pages: number, writable: boolean): void {
    const old = this.live.get(page);
    if (old !== undefined && old.frame === frame && old.pages === pages) {
      if (old.writable && !writable) {
        old.lateWrite = true;
        this.late.push(old);
      }
      old.writable = writable;
      return;
    }
    if (old !== undefined) this.clear(page);
    this.live.set(page, { page, frame, pages, writable, lateWrite: false });
  }

  clear(page: number): void {
    const leaf = this.live.get(page);
    if (leaf === undefined) return;
    this.live.delete(page);
    if (this.exiting || this.bonds === 0) return;
    this.retired.push(leaf);
    this.lingering.set(leaf.frame, page);
  }

  /** Everybody has dropped what was removed or restricted in [start, end) before. */
  invalidated(start: number, end: number): void {
    if (this.retired.length > 0) this.retired = this.retired.filter((leaf) => !this.forgotten(leaf, start, end));
    if (this.late.length === 0) return;
    for (const leaf of this.late) if (overlaps(leaf.page, leaf.pages, start, end)) leaf.lateWrite = false;
    this.late = this.late.filter(({ lateWrite }) => lateWrite);
  }

  allows(page: number, frame: number, write: boolean): boolean {
    for (const pages of LEAF_PAGES) {
      const leaf = this.live.get(page - (page % pages));
      if (leaf !== undefined && leaf.pages === pages && translates(leaf, page, frame)) {
        if (!write || leaf.writable || leaf.lateWrite) return true;
      }
    }
    return this.retired.some((leaf) => translates(leaf, page, frame) && (!write || leaf.writable));
  }

  private forgotten(leaf: Leaf, start: number, end: number): boolean {
    if (!overlaps(leaf.page, leaf.pages, start, end)) return false;
    if (this.lingering.get(leaf.frame) === leaf.page) this.lingering.delete(leaf.frame);
    return true;
  }
}

interface Range {
  readonly page: number;
  readonly frame: number;
  readonly pages: number;
}

/** A kernel domain: disjoint ranges in ascending order. Permissions are not recorded, so they are not judged. */
export class DomainSpace implements Space {
  private ranges: Range[] = [];
  private retired: Range[] = [];

  map(page: number, frame: number, pages: number): void {
    this.unmap(page, pages);
    this.ranges.splice(this.indexFrom(page), 0, { page, frame, pages });
  }

  unmap(start: number, pages: number): void {
    const end = start + pages;
    const first = this.indexFrom(start);
    let last = first;
    while (last < this.ranges.length && this.ranges[last]!.page < end) last++;
    const removed = this.ranges.slice(first, last);
    const kept = removed.flatMap((range) => [part(range, range.page, start), part(range, end, range.page + range.pages)]).filter(({ pages: left }) => left > 0);
    this.ranges.splice(first, last - first, ...kept);
    for (const range of removed) this.retired.push(part(range, Math.max(range.page, start), Math.min(range.page + range.pages, end)));
  }

  flushed(start: number, pages: number): void {
    if (this.retired.length > 0) this.retired = this.retired.filter((range) => !overlaps(range.page, range.pages, start, start + pages));
  }

  allows(page: number, frame: number): boolean {
    const range = this.ranges[this.indexFrom(page)];
    if (range !== undefined && translates(range, page, frame)) return true;
    return this.retired.some((old) => translates(old, page, frame));
  }

  /** Something can be reached in the range: it is mapped, or was and is not invalidated. */
  reaches(page: number, pages: number): boolean {
    const range = this.ranges[this.indexFrom(page)];
    return (range !== undefined && range.page < page + pages) || this.retired.some((old) => overlaps(old.page, old.pages, page, page + pages));
  }

  /** Where a page leads now; undefined where nothing is mapped. */
  frameAt(page: number): number | undefined {
    const range = this.ranges[this.indexFrom(page)];
    return range === undefined || range.page > page ? undefined : range.frame + (page - range.page);
  }

  /** Index of the first range that ends behind `page`. */
  private indexFrom(page: number): number {
    let low = 0, high = this.ranges.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      const { page: first, pages } = this.ranges[middle]!;
      if (first + pages > page) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

/** What of a range lies in [start, end); no pages when nothing does. */
function part({ page, frame, pages }: Range, start: number, end: number): Range {
  const from = Math.max(page, start);
  return { page: from, frame: frame + (from - page), pages: Math.min(page + pages, end) - from };
}
