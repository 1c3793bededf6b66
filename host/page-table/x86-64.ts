/**
 * x86-64 long-mode paging, 4 or 5 levels (Intel SDM volume 3A, section 4.5, tables 4-15 to 4-20), as the CPU and a
 * first-level IOMMU walk use it. Bits that Linux gives a meaning of its own: PROT_NONE is bit 8 with P clear
 * (arch/x86/include/asm/pgtable_types.h, `_PAGE_BIT_PROTNONE`).
 *
 * Left out: protection keys (62:59), PAT and cache attributes other than their positions, encryption bits.
 */
import type { PageTableFormat } from './format.js';

export const X86_P = 1 << 0;
export const X86_RW = 1 << 1;
export const X86_US = 1 << 2;
export const X86_PWT = 1 << 3;
export const X86_PCD = 1 << 4;
export const X86_A = 1 << 5;
export const X86_D = 1 << 6;
/** Page size: the entry of a level above 0 is a leaf. At level 0 the same bit is PAT. */
export const X86_PS = 1 << 7;
export const X86_G = 1 << 8;
/** With P clear: the leaf keeps its frame, nobody may access it. */
export const X86_PROT_NONE = X86_G;
/** Bit 63, execute disable, in the high half. */
export const X86_XD_HI = 1 << 31;

/** Protection of an x86-64 leaf, or-ed; the first three are PROT_READ, PROT_WRITE and PROT_EXEC of mmap. */
export const LEAF_READ = 1;
export const LEAF_WRITE = 2;
export const LEAF_EXECUTE = 4;
/** Reachable from user mode (U/S). */
export const LEAF_USER = 8;
export const LEAF_GLOBAL = 16;
export const LEAF_ACCESSED = 32;
export const LEAF_DIRTY = 64;

const FLAGS: readonly (readonly [bit: number, name: string])[] = [
  [X86_P, 'P'], [X86_RW, 'RW'], [X86_US, 'US'], [X86_PWT, 'PWT'], [X86_PCD, 'PCD'], [X86_A, 'A'], [X86_D, 'D'],
];

/** `prot` is LEAF_* bits; without LEAF_READ, LEAF_WRITE and LEAF_EXECUTE the leaf is a PROT_NONE one. */
export const X86_64: PageTableFormat = {
  name: 'x86-64',
  largestLeaf: 2,
  addressHi: 0x000f_ffff,
  accessedLo: X86_A,
  dirtyLo: X86_D,
  leafLo(prot, level) {
    let lo = level > 0 ? X86_PS : 0;
    if ((prot & (LEAF_READ | LEAF_WRITE | LEAF_EXECUTE)) === 0) lo |= X86_PROT_NONE;
    else {
      lo |= X86_P;
      if ((prot & LEAF_WRITE) !== 0) lo |= X86_RW;
      if ((prot & LEAF_GLOBAL) !== 0) lo |= X86_G;
    }
    if ((prot & LEAF_USER) !== 0) lo |= X86_US;
    if ((prot & LEAF_ACCESSED) !== 0) lo |= X86_A;
    if ((prot & LEAF_DIRTY) !== 0) lo |= X86_D;
    return lo;
  },
  leafHi(prot) {
    return (prot & LEAF_EXECUTE) !== 0 ? 0 : X86_XD_HI;
  },
  // rights are decided in the leaf; Linux' _PAGE_TABLE carries A and D as well (0x67)
  tableLo() {
    return X86_P | X86_RW | X86_US | X86_A | X86_D;
  },
  tableHi() {
    return 0;
  },
  isPresent(lo) {
    return (lo & X86_P) !== 0;
  },
  isLeaf(lo, _hi, level) {
    return level === 0 || (lo & X86_PS) !== 0;
  },
  flags(lo, hi, level) {
    const names = FLAGS.filter(([bit]) => (lo & bit) !== 0).map(([, name]) => name);
    if ((lo & X86_PS) !== 0) names.push(level === 0 ? 'PAT' : 'PS');
    if ((lo & X86_G) !== 0) names.push((lo & X86_P) !== 0 ? 'G' : 'PROT_NONE');
    if ((hi & X86_XD_HI) !== 0) names.push('XD');
    return names;
  },
};
