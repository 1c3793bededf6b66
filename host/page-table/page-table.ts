/**
 * Radix page tables that software builds in simulated memory: one walker, many formats. The tables are real; what
 * walks them later (a CPU, an IOMMU) shares nothing with this code but the bytes.
 *
 * An unmapped table page may still be cached by whoever walks it, so it is not freed at once: it waits in `retired`
 * until the caller has invalidated and calls `freeRetired` (Linux: the iotlb gather's freelist, the mmu_gather).
 *
 * Left out: splitting a large leaf. Unmapping a part of one removes it whole and says so in the returned count,
 * as drivers of the Linux IOMMU API do.
 */
import { assert, SimulatorBug } from '../../sim/assert.js';
import { Errno } from '../../sim/errno.js';
import { hex, hexPage } from '../../sim/address.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import type { FrameSource } from '../frame-source.js';
import { indexAtLevel, pagesOfLevel, physicalOf, type PageTableFormat } from './format.js';

export interface PageTableOptions {
  readonly memory: PhysicalMemory;
  readonly frames: FrameSource;
  readonly format: PageTableFormat;
  /** Levels of the walk, 1 to 5; the root table stands at level `levels - 1`. */
  readonly levels: number;
  /** Whom the table pages are accounted to. */
  readonly owner?: string;
  /** Highest leaf level that `map` may choose; the format's when left out. */
  readonly largestLeaf?: number;
}

/** Sees one leaf. It may change the entry at `slot`. */
export type LeafVisitor = (page: number, level: number, slot: number, lo: number, hi: number) => void;

export class PageTable {
  readonly memory: PhysicalMemory;
  readonly format: PageTableFormat;
  readonly levels: number;
  /** Physical address of the root table; 0 after `destroy`. */
  root: number;
  /** Table pages, the root and retired ones included. */
  tables = 0;
  /** Table pages that were unlinked and wait for `freeRetired`. */
  readonly retired: number[] = [];
  /** Filled by `find`: address of the last entry read, its level and its halves. */
  slot = 0;
  level = 0;
  lo = 0;
  hi = 0;
  private readonly frames: FrameSource;
  private readonly owner: string;
  private readonly largestLeaf: number;
  private readonly addressHi: number;
  /** Leaf table used last: the pages it covers divided by 512, and its address. */
  private cachedSpan = -1;
  private cachedTable = 0;

  /** Allocates the root. ENOMEM. */
  constructor(options: PageTableOptions) {
    assert(options.levels >= 1 && options.levels <= 5, `page table with ${options.levels} levels`);
    this.memory = options.memory;
    this.frames = options.frames;
    this.format = options.format;
    this.levels = options.levels;
    this.owner = options.owner ?? 'page-table';
    this.largestLeaf = Math.min(options.largestLeaf ?? options.format.largestLeaf, options.levels - 1);
    this.addressHi = options.format.addressHi;
    this.root = this.frames.alloc(this.owner);
    this.tables = 1;
  }

  /** First page number that the levels cannot reach: 512^levels. */
  get endPage(): number {
    return pagesOfLevel(this.levels - 1) * 512;
  }

  /** Physical address of the byte `offset` of `page`; -1 where nothing is present to hardware. */
  translate(page: number, offset = 0): number {
    if (!this.find(page) || !this.format.isPresent(this.lo, this.hi)) return -1;
    const pages = pagesOfLevel(this.level);
    return physicalOf(this.lo & leafMask(this.level), this.hi, this.addressHi) + (page % pages) * 4096 + offset;
  }

  /**
   * Walks to the leaf that covers `page`. True: `slot`, `level`, `lo` and `hi` describe a non-empty leaf. False:
   * they describe the empty entry where the walk ended.
   */
  find(page: number): boolean {
    const { memory, format } = this;
    let table = this.root;
    for (let level = this.levels - 1; ; level--) {
      const slot = table + indexAtLevel(page, level) * 8;
      this.load(slot);
      const lo = memory.lo, hi = memory.hi;
      this.slot = slot;
      this.level = level;
      this.lo = lo;
      this.hi = hi;
      if ((lo | hi) === 0) return false;
      if (level === 0 || format.isLeaf(lo, hi, level)) return true;
      table = physicalOf(lo, hi, this.addressHi);
    }
  }

  /**
   * Address of the entry for `page` at `level`, with the tables above it created as needed; -1 when a leaf of a
   * higher level covers the page. ENOMEM; tables created until then stay, empty.
   */
  ensureSlot(page: number, level: number): number {
    const high = Math.floor(page / 0x4_0000);
    const low = page - high * 0x4_0000;
    const span = high * 512 + (low >>> 9);
    if (level === 0 && span === this.cachedSpan) return this.cachedTable + (low & 511) * 8;
    const { memory, format } = this;
    let table = this.root;
    for (let at = this.levels - 1; at > level; at--) {
      const slot = table + indexAtLevel(page, at) * 8;
      this.load(slot);
      const lo = memory.lo, hi = memory.hi;
      if ((lo | hi) === 0) table = this.addTable(slot, at);
      else if (format.isLeaf(lo, hi, at)) return -1;
      else table = physicalOf(lo, hi, this.addressHi);
    }
    if (level === 0) {
      this.cachedSpan = span;
      this.cachedTable = table;
    }
    return table + indexAtLevel(page, level) * 8;
  }

  /**
   * Maps [page, page + pages) to physical memory from `physical` on, with the largest leaves that fit. Nothing is
   * mapped on failure: EINVAL misaligned or empty, ERANGE beyond the levels, EEXIST overlap, ENOMEM no table page.
   * @param prot in the format's own vocabulary
   */
  map(page: number, physical: number, pages: number, prot: number): void {
    if (pages <= 0 || physical % 4096 !== 0) throw new Errno('EINVAL', `map ${pages} pages at ${hexPage(page)} to ${hex(physical)}`);
    if (page < 0 || page + pages > this.endPage) throw new Errno('ERANGE', `${hexPage(page)} is beyond ${this.levels} levels of ${this.format.name}`);
    if (this.anyLeaf(page, page + pages)) throw new Errno('EEXIST', `a page of [${hexPage(page)}, ${hexPage(page + pages)}) is mapped already`);
    let done = 0;
    try {
      while (done < pages) done += this.mapRun(page + done, physical / 4096 + done, pages - done, prot);
    } catch (error) {
      if (done > 0) this.unmap(page, done);
      throw error;
    }
  }

  /**
   * Clears the leaves of [page, page + pages) and unlinks the tables it covers into `retired`. A larger leaf is
   * removed whole. The caller invalidates, then frees what the leaves mapped and calls `freeRetired`.
   * @param onLeaf told about each removed leaf
   * @param floor @param ceiling tables inside [floor, ceiling) go too: nothing else is mapped there
   * @returns 4 KiB pages that were mapped
   */
  unmap(page: number, pages: number, onLeaf?: LeafVisitor, floor = page, ceiling = page + pages): number {
    const removed = this.clear(this.root, this.levels - 1, 0, page, Math.min(page + pages, this.endPage), floor, ceiling, onLeaf);
    if (this.retired.length > 0) this.cachedSpan = -1;
    return removed;
  }

  /** Frees the unlinked table pages; nobody may hold a pointer to them any more. */
  freeRetired(): void {
    for (const table of this.retired) this.freeTable(table);
    this.retired.length = 0;
  }

  /** Visits the leaves of [page, page + pages) in ascending order. */
  forEachLeaf(page: number, pages: number, visit: LeafVisitor): void {
    this.visit(this.root, this.levels - 1, 0, page, Math.min(page + pages, this.endPage), visit);
  }

  /** True when a leaf, present to hardware or not, stands in [start, end). */
  anyLeaf(start: number, end: number): boolean {
    return this.search(this.root, this.levels - 1, 0, start, Math.min(end, this.endPage));
  }

  /** Frees every table page. Leaves are not looked at: what they map belongs to the caller. */
  destroy(): void {
    this.freeRetired();
    this.freeTree(this.root, this.levels - 1);
    this.root = 0;
    this.cachedSpan = -1;
    assert(this.tables === 0, `${this.tables} table pages of ${this.owner} left`);
  }

  private load(slot: number): void {
    if (!this.memory.load64(slot)) throw new SimulatorBug(`page table entry at ${hex(slot)} is not in memory`);
  }

  private addTable(slot: number, level: number): number {
    const table = this.frames.alloc(this.owner);
    this.tables++;
    const hi = Math.floor(table / 0x1_0000_0000) | this.format.tableHi(level);
    this.memory.store64(slot, (table | 0) | this.format.tableLo(level), hi);
    return table;
  }

  private freeTable(table: number): void {
    this.frames.free(table);
    this.tables--;
  }

  /** Maps one large leaf, or 4 KiB leaves up to the end of their table; returns the pages mapped. */
  private mapRun(page: number, physicalPage: number, pages: number, prot: number): number {
    for (let level = this.largestLeaf; level > 0; level--) {
      const size = pagesOfLevel(level);
      if (pages < size || page % size !== 0 || physicalPage % size !== 0) continue;
      const slot = this.ensureSlot(page, level);
      this.load(slot);
      // a table that is empty now may still be cached: only an unmap that covers it removes it
      if ((this.memory.lo | this.memory.hi) !== 0) continue;
      this.storeLeaf(slot, physicalPage, prot, level);
      return size;
    }
    const count = Math.min(pages, 512 - (page % 512));
    const first = this.ensureSlot(page, 0);
    const attributesLo = this.format.leafLo(prot, 0), attributesHi = this.format.leafHi(prot, 0);
    for (let i = 0; i < count; i++) {
      const target = (physicalPage + i) * 4096;
      this.memory.store64(first + i * 8, (target | 0) | attributesLo, Math.floor(target / 0x1_0000_0000) | attributesHi);
    }
    return count;
  }

  private storeLeaf(slot: number, physicalPage: number, prot: number, level: number): void {
    const target = physicalPage * 4096;
    this.memory.store64(slot, (target | 0) | this.format.leafLo(prot, level), Math.floor(target / 0x1_0000_0000) | this.format.leafHi(prot, level));
  }

  private clear(
    table: number, level: number, base: number, start: number, end: number, floor: number, ceiling: number, onLeaf: LeafVisitor | undefined,
  ): number {
    const { memory, format } = this;
    const size = pagesOfLevel(level);
    const last = lastIndex(base, size, end);
    let removed = 0;
    for (let index = firstIndex(base, size, start); index <= last; index++) {
      const slot = table + index * 8;
      this.load(slot);
      const lo = memory.lo, hi = memory.hi;
      if ((lo | hi) === 0) continue;
      const page = base + index * size;
      if (level === 0 || format.isLeaf(lo, hi, level)) {
        memory.store64(slot, 0, 0);
        removed += size;
        onLeaf?.(page, level, slot, lo, hi);
        continue;
      }
      const child = physicalOf(lo, hi, this.addressHi);
      const whole = page >= floor && page + size <= ceiling;
      if (whole) memory.store64(slot, 0, 0);
      removed += this.clear(child, level - 1, page, start, end, floor, ceiling, onLeaf);
      if (whole) this.retired.push(child);
    }
    return removed;
  }

  private visit(table: number, level: number, base: number, start: number, end: number, visit: LeafVisitor): void {
    const { memory, format } = this;
    const size = pagesOfLevel(level);
    const last = lastIndex(base, size, end);
    for (let index = firstIndex(base, size, start); index <= last; index++) {
      const slot = table + index * 8;
      this.load(slot);
      const lo = memory.lo, hi = memory.hi;
      if ((lo | hi) === 0) continue;
      const page = base + index * size;
      if (level === 0 || format.isLeaf(lo, hi, level)) visit(page, level, slot, lo, hi);
      else this.visit(physicalOf(lo, hi, this.addressHi), level - 1, page, start, end, visit);
    }
  }

  private search(table: number, level: number, base: number, start: number, end: number): boolean {
    const { memory, format } = this;
    const size = pagesOfLevel(level);
    const last = lastIndex(base, size, end);
    for (let index = firstIndex(base, size, start); index <= last; index++) {
      this.load(table + index * 8);
      const lo = memory.lo, hi = memory.hi;
      if ((lo | hi) === 0) continue;
      if (level === 0 || format.isLeaf(lo, hi, level)) return true;
      if (this.search(physicalOf(lo, hi, this.addressHi), level - 1, base + index * size, start, end)) return true;
    }
    return false;
  }

  private freeTree(table: number, level: number): void {
    if (level > 0) this.freeChildren(table, level);
    this.freeTable(table);
  }

  private freeChildren(table: number, level: number): void {
    const { memory, format } = this;
    for (let index = 0; index < 512; index++) {
      this.load(table + index * 8);
      const lo = memory.lo, hi = memory.hi;
      if ((lo | hi) !== 0 && !format.isLeaf(lo, hi, level)) this.freeTree(physicalOf(lo, hi, this.addressHi), level - 1);
    }
  }
}

/** Clears the attribute bits that stand below the address in a large leaf (bit 12 may be PAT). */
function leafMask(level: number): number {
  return level === 0 ? -1 : level === 1 ? ~0x1f_ffff : ~0x3fff_ffff;
}

function firstIndex(base: number, size: number, start: number): number {
  return start <= base ? 0 : Math.floor((start - base) / size);
}

function lastIndex(base: number, size: number, end: number): number {
  return Math.min(511, Math.ceil((end - base) / size) - 1);
}
