/**
 * What makes one page-table format differ from another, for software that builds tables in memory. A format is a
 * constant object of short pure functions; the walking, allocating and freeing live once, in page-table.ts.
 *
 * Every format here has 512 entries of 8 bytes in a 4 KiB table. Level 0 is the leaf level (4 KiB pages), level 1
 * leaves cover 2 MiB, level 2 leaves 1 GiB. Entries travel as two signed 32-bit halves, low and high. An entry of
 * all zeros is empty in every format; an entry that is not empty is either a table or a leaf, and a leaf may be
 * occupied without being present to hardware (x86 PROT_NONE).
 */

export interface PageTableFormat {
  readonly name: string;
  /** Highest level at which a leaf may stand: 0, 1 (2 MiB) or 2 (1 GiB). */
  readonly largestLeaf: number;
  /** Mask of the physical address bits 51:32 in the high half; the low half's address bits are 31:12 always. */
  readonly addressHi: number;
  /** Accessed and dirty bits of the low half; 0 when the format has none there. */
  readonly accessedLo: number;
  readonly dirtyLo: number;
  /** Attribute bits of a leaf, without the address. `prot` is in the format's own vocabulary. */
  leafLo(prot: number, level: number): number;
  leafHi(prot: number, level: number): number;
  /** Attribute bits of an entry at `level` (at least 1) that points to a table, without the address. */
  tableLo(level: number): number;
  tableHi(level: number): number;
  /** True when hardware uses the entry. */
  isPresent(lo: number, hi: number): boolean;
  /** For a non-empty entry: true when it maps memory, false when it points to a table. Level 0 is always a leaf. */
  isLeaf(lo: number, hi: number, level: number): boolean;
  /** Names of the set bits and fields, as the manual spells them, for printing. */
  flags(lo: number, hi: number, level: number): string[];
}

/** 4 KiB pages that a leaf at `level` covers: 1, 512, 262144, … */
export function pagesOfLevel(level: number): number {
  return level === 0 ? 1 : level === 1 ? 512 : level === 2 ? 0x4_0000 : level === 3 ? 0x800_0000 : 0x10_0000_0000;
}

/** Index of `page` in a table at `level` (0 … 4). */
export function indexAtLevel(page: number, level: number): number {
  const high = Math.floor(page / 0x4_0000);
  switch (level) {
    case 0: return (page - high * 0x4_0000) & 511;
    case 1: return (page - high * 0x4_0000) >>> 9;
    case 2: return high & 511;
    case 3: return (high >>> 9) & 511;
    default: return (high >>> 18) & 511;
  }
}

/** Physical address in an entry's halves. */
export function physicalOf(lo: number, hi: number, addressHi: number): number {
  return (hi & addressHi) * 0x1_0000_0000 + ((lo & 0xffff_f000) >>> 0);
}
