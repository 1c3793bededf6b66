/**
 * Paging entries (VT-d rev 4.1, sections 9.7 and 9.8). First-level entries are those of the CPU (x86-64); second-level
 * entries have permission bits of their own. Level 0 holds leaves of 4 KiB, level 1 leaves of 2 MiB, level 2 of 1 GiB.
 * Constants are bits of the low 32-bit half unless the name says HI. Compared with drivers/iommu/intel/iommu.h (Linux),
 * hw/i386/intel_iommu_internal.h (QEMU) and include/VBox/iommu-intel.h (VirtualBox).
 */
import { addr, bit, bits, struct } from '../../../sim/layout.js';

/** Entries of one paging structure. */
export const PAGING_ENTRIES = 512;

export const FL_P = 1;
export const FL_RW = 2;
export const FL_US = 4;
export const FL_A = 0x20;
export const FL_D = 0x40;
export const FL_PS = 0x80;
export const FL_EA = 0x400;
/** XD, bit 63, in the high half. */
export const FL_XD_HI = -0x8000_0000;

/** First-level entry of any level (section 9.7). IGN fields are free for software; PAT and G are not used. */
export const FIRST_LEVEL_ENTRY = struct('FL_ENTRY', 8, {
  P: bit(0),
  RW: bit(1),
  US: bit(2),
  PWT: bit(3),
  PCD: bit(4),
  A: bit(5),
  D: bit(6),
  PS: bit(7),
  IGN: bits(9, 8),
  EA: bit(10),
  IGN1: bit(11),
  ADDR: addr(51, 12),
  IGN2: bits(62, 52),
  XD: bit(63),
});

export const SL_R = 1;
export const SL_W = 2;
export const SL_X = 4;
export const SL_PS = 0x80;
export const SL_A = 0x100;
export const SL_D = 0x200;
export const SL_SNP = 0x800;

/** Second-level entry of any level (section 9.8). Bit 62 (TM of early revisions) is reserved; X is not used. */
export const SECOND_LEVEL_ENTRY = struct('SL_ENTRY', 8, {
  R: bit(0),
  W: bit(1),
  X: bit(2),
  IGN: bits(6, 3),
  PS: bit(7),
  A: bit(8),
  D: bit(9),
  IGN1: bit(10),
  SNP: bit(11),
  ADDR: addr(51, 12),
  IGN2: bits(61, 52),
  IGN3: bit(63),
});

/** 4 KiB pages of a leaf at `level`. */
export function pagesOfLevel(level: number): number {
  return level === 0 ? 1 : level === 1 ? 512 : level === 2 ? 0x4_0000 : level === 3 ? 0x800_0000 : 0x10_0000_0000;
}

/** Index into the paging structure of `level` for a page number below 2^52. */
export function pagingIndex(page: number, level: number): number {
  return level < 3 ? (page >>> (9 * level)) & 511 : (Math.floor(page / 0x800_0000) >>> (9 * (level - 3))) & 511;
}

/** First page of the interrupt address range 0xFEE0_0000–0xFEEF_FFFF (section 3.15). */
export const INTERRUPT_FIRST_PAGE = 0xfee00;
/** Last page of the interrupt address range. */
export const INTERRUPT_LAST_PAGE = 0xfeeff;
