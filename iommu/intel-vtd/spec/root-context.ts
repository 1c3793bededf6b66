/**
 * Root and context entries (VT-d rev 4.1, sections 9.1 to 9.4): which table translates for a requester.
 * Legacy mode: root entry (bus) → context entry (devfn). Scalable mode: each half of a root entry points to a table
 * for half of the devfns, whose entries are 32 bytes. Field names follow the manual; positions were compared with
 * drivers/iommu/intel/iommu.h (Linux) and include/VBox/iommu-intel.h (VirtualBox). Left out: fields of the TEE and
 * of performance-hint extensions, which this model treats as reserved.
 */
import { addr, bit, bits, struct } from '../../../sim/layout.js';

/** RTADDR.TTM, translation table mode (section 11.4.5). */
export const TTM_LEGACY = 0;
export const TTM_SCALABLE = 1;
export const TTM_ABORT_DMA = 3;

/** Bytes of a root entry; the root table has 256 of them, one per bus. */
export const ROOT_ENTRY_SIZE = 16;
/** Bytes of a context entry in legacy mode: 256 in a table, by devfn. */
export const CONTEXT_ENTRY_SIZE = 16;
/** Bytes of a context entry in scalable mode: 128 in a table, by devfn modulo 128. */
export const SM_CONTEXT_ENTRY_SIZE = 32;

/** Root entry, legacy mode (section 9.1). The upper 64 bits are reserved. */
export const ROOT_ENTRY = struct('ROOT_ENTRY', ROOT_ENTRY_SIZE, {
  P: bit(0),
  CTP: addr(63, 12),
});

/** Root entry, scalable mode (section 9.2): lower half for devfn 0x00–0x7f, upper half for 0x80–0xff. */
export const SM_ROOT_ENTRY = struct('SM_ROOT_ENTRY', ROOT_ENTRY_SIZE, {
  LP: bit(0),
  LCTP: addr(63, 12),
  UP: bit(64),
  UCTP: addr(127, 76),
});

/** TT of a legacy context entry: untranslated requests only. */
export const TT_UNTRANSLATED = 0;
/** TT: all requests, device-TLB enabled. */
export const TT_DEVICE_TLB = 1;
/** TT: untranslated requests pass through. */
export const TT_PASS_THROUGH = 2;

/** Context entry, legacy mode (section 9.3). IGN is ignored by hardware and free for software. */
export const CONTEXT_ENTRY = struct('CONTEXT_ENTRY', CONTEXT_ENTRY_SIZE, {
  P: bit(0),
  FPD: bit(1),
  TT: bits(3, 2),
  SLPTPTR: addr(63, 12),
  AW: bits(66, 64),
  IGN: bits(70, 67),
  DID: bits(87, 72),
});

/** Context entry, scalable mode (section 9.4). PDTS: the PASID directory has 2^(PDTS + 7) entries. */
export const SM_CONTEXT_ENTRY = struct('SM_CONTEXT_ENTRY', SM_CONTEXT_ENTRY_SIZE, {
  P: bit(0),
  FPD: bit(1),
  DTE: bit(2),
  PASIDE: bit(3),
  PRE: bit(4),
  PDTS: bits(11, 9),
  PASIDDIRPTR: addr(63, 12),
  RID_PASID: bits(83, 64),
  RID_PRIV: bit(84),
});

/** Bits of the first word of both kinds of context entry, for code that reads halves. */
export const CONTEXT_P = 1;
export const CONTEXT_FPD = 2;
export const SM_CONTEXT_DTE = 4;
export const SM_CONTEXT_PASIDE = 8;
export const SM_CONTEXT_PRE = 16;

/** Number of PASIDs that a scalable-mode context entry's directory can name. */
export function pasidsOfDirectory(pdts: number): number {
  return 2 ** (pdts + 7 + 6);
}

/** Levels of second-level tables for an AW code (1: 39 bits, 2: 48 bits, 3: 57 bits); AW + 2. */
export function levelsOfAddressWidth(aw: number): number {
  return aw + 2;
}

/** Address bits for an AW code. */
export function bitsOfAddressWidth(aw: number): number {
  return 30 + 9 * aw;
}

/** Address of the root entry of a bus. */
export function rootEntryAddress(rootTable: number, sourceId: number): number {
  return rootTable + (sourceId >>> 8) * ROOT_ENTRY_SIZE;
}

/** Address of a requester's context entry in the table that its root entry points to. */
export function contextEntryAddress(contextTable: number, sourceId: number, scalable: boolean): number {
  return scalable ? contextTable + (sourceId & 0x7f) * SM_CONTEXT_ENTRY_SIZE : contextTable + (sourceId & 0xff) * CONTEXT_ENTRY_SIZE;
}
