/**
 * What a set of page tables maps: leaves by size, and runs of addresses with the same rights. Every entry is read
 * once at most per place it is reached from; a table that leads back to itself is cut, a budget bounds the rest, so
 * garbage ends soon. First-level entries as in VT-d rev 4.1, section 9.7, second-level ones as in 9.8.
 */
import { hex, pageOfWords } from '../../sim/address.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import { FL_P, FL_PS, FL_RW, FL_US, PAGING_ENTRIES, SL_PS, SL_R, SL_W, pagesOfLevel } from '../../iommu/intel-vtd/spec/paging.js';

export const MAX_RANGES = 64;
/** Problems named for one set of tables; the rest is counted. */
const MAX_PROBLEMS = 8;

/** Entries that may still be read, for one set of tables and for all of them. */
export interface ReadBudget {
  entries: number;
}

export interface MappedRange {
  /** First input page and number of 4 KiB pages. */
  readonly page: number;
  pages: number;
  /** `r` and `w` or `-`; `kernel` when user requests may not use it (U/S is clear). Execute depends on the PASID entry (NXE). */
  readonly rights: string;
  /** Physical page of the first one; the others follow it when `contiguous`. */
  readonly physical: number;
  contiguous: boolean;
}

export interface Mapping {
  /** Leaves by level: 4 KiB, 2 MiB, 1 GiB, and larger ones that no unit has. */
  readonly leaves: [number, number, number, number];
  /** 4 KiB pages that the leaves cover. */
  pages: number;
  /** Paging structures, the root included. */
  tables: number;
  readonly ranges: MappedRange[];
  /** Ranges beyond MAX_RANGES. */
  moreRanges: number;
  readonly problems: string[];
  moreProblems: number;
  /** False when the budget ended first: counts are then lower bounds. */
  complete: boolean;
}

export interface TableRoot {
  readonly kind: 'first-level' | 'second-level';
  /** Physical byte address; of a nested first level: guest-physical. */
  readonly root: number;
  readonly levels: number;
  /** Leaves above 4 KiB: bit n for level n. */
  readonly largeLeaves: number;
  /** Bits of the high half that must be zero (host address width). */
  readonly beyondHost: number;
  /** Nested: from a guest-physical table to its physical place; undefined when nothing is mapped there. */
  readonly translate?: (address: number) => number | undefined;
}

/** Walks every present entry below `root`. */
export function mappedRanges(memory: PhysicalMemory, root: TableRoot, budget: ReadBudget): Mapping {
  const scan = new Scan(memory, root, budget);
  scan.table(root.root, root.levels - 1, 0, root.kind === 'first-level' ? FL_RW | FL_US : SL_R | SL_W);
  scan.endRange();
  return scan.mapping;
}

class Scan {
  readonly mapping: Mapping = { leaves: [0, 0, 0, 0], pages: 0, tables: 0, ranges: [], moreRanges: 0, problems: [], moreProblems: 0, complete: true };
  private readonly memory: PhysicalMemory;
  private readonly root: TableRoot;
  private readonly budget: ReadBudget;
  private readonly first: boolean;
  private readonly ancestors: number[] = [];
  private open: MappedRange | undefined;
  private openRights = -1;

  constructor(memory: PhysicalMemory, root: TableRoot, budget: ReadBudget) {
    this.memory = memory;
    this.root = root;
    this.budget = budget;
    this.first = root.kind === 'first-level';
  }

  /**
   * @param firstPage input page of the table's first entry
   * @param rights what every entry on the way permits: RW and US, or R and W
   */
  table(address: number, level: number, firstPage: number, rights: number): void {
    const { memory, budget, mapping } = this;
    if (this.ancestors.includes(address)) return this.problem(`the table at ${hex(address)} leads to itself at level ${level}`);
    const place = this.root.translate === undefined ? address : this.root.translate(address);
    if (place === undefined) return this.problem(`the table at guest address ${hex(address)} is not mapped by the second level`);
    if (!memory.has(place, 4096)) return this.problem(`the table at ${hex(place)} (level ${level}) is not in the image`);
    mapping.tables++;
    this.ancestors.push(address);
    const step = pagesOfLevel(level);
    for (let index = 0; index < PAGING_ENTRIES; index++) {
      if (budget.entries-- <= 0) {
        budget.entries = 0;
        mapping.complete = false;
        break;
      }
      memory.load64(place + index * 8);
      const { lo, hi } = memory;
      if (this.first ? (lo & FL_P) === 0 : (lo & (SL_R | SL_W)) === 0) continue;
      this.entry(lo, hi, level, this.inputPage(firstPage + index * step, level, index), rights);
      if (!mapping.complete) break;
    }
    this.ancestors.pop();
  }

  /** First-level addresses are canonical: the upper half of the root lies at the top of the 64-bit space. */
  private inputPage(page: number, level: number, index: number): number {
    if (!this.first || level !== this.root.levels - 1 || index < 256) return page;
    return page + 2 ** 52 - 2 ** (9 * this.root.levels);
  }

  private entry(lo: number, hi: number, level: number, page: number, above: number): void {
    // rights hold only when every entry on the way grants them
    const rights = above & lo;
    const target = pageOfWords(lo, hi & 0xf_ffff);
    const large = level > 0 && (lo & (this.first ? FL_PS : SL_PS)) !== 0;
    if ((hi & this.root.beyondHost & 0xf_ffff) !== 0) return this.problem(`the entry for ${hexOf(page)} (level ${level}) points beyond the host address width`);
    if (level > 0 && !large) return this.table(target * 4096, level - 1, page, rights);
    if (level > 0 && ((this.root.largeLeaves >>> level) & 1) === 0) return this.problem(`the entry for ${hexOf(page)} is a leaf of level ${level}, which the unit does not have`);
    this.leaf(level, page, target - (target % pagesOfLevel(level)), rights);
  }

  private leaf(level: number, page: number, physical: number, rights: number): void {
    const { mapping, open } = this;
    const pages = pagesOfLevel(level);
    mapping.leaves[Math.min(level, 3) as 0 | 1 | 2 | 3]++;
    mapping.pages += pages;
    if (open !== undefined && rights === this.openRights && open.page + open.pages === page) {
      if (open.physical + open.pages !== physical) open.contiguous = false;
      open.pages += pages;
      return;
    }
    this.endRange();
    this.openRights = rights;
    this.open = { page, pages, rights: this.rightsText(rights), physical, contiguous: true };
  }

  endRange(): void {
    if (this.open === undefined) return;
    if (this.mapping.ranges.length < MAX_RANGES) this.mapping.ranges.push(this.open);
    else this.mapping.moreRanges++;
    this.open = undefined;
  }

  private rightsText(rights: number): string {
    if (!this.first) return `${(rights & SL_R) !== 0 ? 'r' : '-'}${(rights & SL_W) !== 0 ? 'w' : '-'}`;
    return `r${(rights & FL_RW) !== 0 ? 'w' : '-'}${(rights & FL_US) !== 0 ? '' : ' kernel'}`;
  }

  private problem(text: string): void {
    if (this.mapping.problems.length < MAX_PROBLEMS) this.mapping.problems.push(text);
    else this.mapping.moreProblems++;
  }
}

function hexOf(page: number): string {
  return `0x${(BigInt(page) << 12n).toString(16)}`;
}

/** Physical address behind a guest-physical one; undefined when the second level maps nothing there. Bounded by the levels. */
export function throughSecondLevel(memory: PhysicalMemory, root: number, levels: number, address: number): number | undefined {
  let table = root;
  const page = Math.floor(address / 4096);
  if (page >= 2 ** (9 * levels)) return undefined;
  for (let level = levels - 1; ; level--) {
    const pages = pagesOfLevel(level);
    if (!memory.load64(table + (Math.floor(page / pages) % PAGING_ENTRIES) * 8)) return undefined;
    const { lo, hi } = memory;
    if ((lo & (SL_R | SL_W)) === 0) return undefined;
    const target = pageOfWords(lo, hi & 0xf_ffff);
    if (level === 0 || (lo & SL_PS) !== 0) return (target - (target % pages) + (page % pages)) * 4096 + (address % 4096);
    table = target * 4096;
  }
}
