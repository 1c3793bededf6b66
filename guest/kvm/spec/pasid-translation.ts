/**
 * PASID translation of ENQCMD and ENQCMDS in VMX non-root operation (Intel SDM volume 3C, "PASID Translation" under
 * "VM-Execution Controls" and "VM Exits"): secondary control bit 21 switches it on; bit 19 of the guest's PASID chooses
 * one of two directories, bits 18:10 an entry of that, bits 9:0 an entry of the table that it points to. A clear present
 * or valid bit, or a reserved bit that is set, ends in a VM exit.
 */
import { addr, bit, bits, struct } from '../../../sim/layout.js';

/** Low PASID directory address and high PASID directory address: encodings of the VMCS fields. */
export const VMCS_LOW_PASID_DIRECTORY = 0x2038;
export const VMCS_HIGH_PASID_DIRECTORY = 0x203a;

/** Basic exit reasons. */
export const EXIT_REASON_ENQCMD_PASID = 72;
export const EXIT_REASON_ENQCMDS_PASID = 73;

/** 512 of them in a directory of 4 KiB. */
export const PASID_DIRECTORY_ENTRY = struct('PASID directory entry', 8, { present: bit(0), reserved: bits(11, 1), table: addr(51, 12), reservedHigh: bits(63, 52) });
/** 1024 of them in a table of 4 KiB. */
export const PASID_TABLE_ENTRY = struct('PASID table entry', 4, { pasid: bits(19, 0), reserved: bits(30, 20), valid: bit(31) });

export const PASID_LIMIT = 2 ** 20;

/** Bit 19: which directory. */
export function directoryOf(pasid: number): 0 | 1 {
  return ((pasid >>> 19) & 1) as 0 | 1;
}

/** Offset of the directory entry, in bytes. */
export function directoryOffset(pasid: number): number {
  return ((pasid >>> 10) & 0x1ff) * 8;
}

/** Offset of the table entry, in bytes. */
export function tableOffset(pasid: number): number {
  return (pasid & 0x3ff) * 4;
}
