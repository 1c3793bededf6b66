/**
 * PASID directory and PASID table of scalable mode (VT-d rev 4.1, sections 9.5 and 9.6): the address space that
 * (requester, PASID) uses. Field names follow the manual (FL and SL, "first-level" and "second-level", as before
 * rev 3.4); positions were compared with drivers/iommu/intel/pasid.h (Linux) and include/VBox/iommu-intel.h
 * (VirtualBox). Memory type fields (CD, EMTE, EMT, PWT, PCD, PAT) are
 * declared and ignored by the model; SLEE (bit 5 of early revisions) is reserved.
 */
import { addr, bit, bits, struct } from '../../../sim/layout.js';

export const PASID_DIRECTORY_ENTRY_SIZE = 8;
export const PASID_ENTRY_SIZE = 64;
/** Entries of one PASID table, a 4 KiB page. */
export const PASID_TABLE_ENTRIES = 64;

export const PASID_DIRECTORY_ENTRY = struct('PASID_DIR_ENTRY', PASID_DIRECTORY_ENTRY_SIZE, {
  P: bit(0),
  FPD: bit(1),
  SMPTBLPTR: addr(63, 12),
});

/** PGTT, PASID granular translation type. */
export const PGTT_FIRST_LEVEL = 1;
export const PGTT_SECOND_LEVEL = 2;
export const PGTT_NESTED = 3;
export const PGTT_PASS_THROUGH = 4;

/** FLPM, first-level paging mode. */
export const FLPM_4_LEVEL = 0;
export const FLPM_5_LEVEL = 1;

export const PASID_ENTRY = struct('PASID_ENTRY', PASID_ENTRY_SIZE, {
  P: bit(0),
  FPD: bit(1),
  AW: bits(4, 2),
  PGTT: bits(8, 6),
  SLADE: bit(9),
  SLPTPTR: addr(63, 12),
  DID: bits(79, 64),
  PWSNP: bit(87),
  PGSNP: bit(88),
  CD: bit(89),
  EMTE: bit(90),
  EMT: bits(93, 91),
  PWT: bit(94),
  PCD: bit(95),
  PAT: bits(127, 96),
  SRE: bit(128),
  ERE: bit(129),
  FLPM: bits(131, 130),
  WPE: bit(132),
  NXE: bit(133),
  SMEP: bit(134),
  EAFE: bit(135),
  FLPTPTR: addr(191, 140),
});

/** Bits of the first word of directory and table entries. */
export const PASID_P = 1;
export const PASID_FPD = 2;

/** Index of a PASID's entry in the directory. */
export function pasidDirectoryIndex(pasid: number): number {
  return pasid >>> 6;
}

/** Index of a PASID's entry in its table. */
export function pasidTableIndex(pasid: number): number {
  return pasid & 0x3f;
}

export function pasidDirectoryEntryAddress(directory: number, pasid: number): number {
  return directory + pasidDirectoryIndex(pasid) * PASID_DIRECTORY_ENTRY_SIZE;
}

export function pasidEntryAddress(table: number, pasid: number): number {
  return table + pasidTableIndex(pasid) * PASID_ENTRY_SIZE;
}
