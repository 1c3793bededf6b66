/**
 * How translation requests are answered for each fault reason (VT-d rev 4.1, sections 7.1.2, 7.1.3 and table 30): tables of
 * flags by code. What is in neither table ends with Unsupported Request and a record. Page requests that meet a
 * fault are answered Invalid Request whatever the reason.
 */
import { FAULT } from '../spec/fault-reasons.js';

/**
 * Reasons that a translation request answers with R = W = 0 and that are not recorded: the device may ask for the page.
 * Everything that first-stage tables and missing entries of PASID tables can do is among them.
 */
export const RECOVERABLE = flagsOf([
  FAULT.L_BEYOND_WIDTH, FAULT.L_WRITE, FAULT.L_READ, FAULT.S_DIRECTORY_P, FAULT.S_PASID_P, FAULT.S_ERE, FAULT.S_SRE,
  FAULT.FL_ACCESS, FAULT.FL_P, FAULT.FL_RESERVED, FAULT.FL_ROOT_ACCESS, FAULT.FL_BEYOND_WIDTH, FAULT.FL_ROOT_READ, FAULT.FL_READ, FAULT.FL_WRITE,
  FAULT.SL_PERMISSION, FAULT.NOT_CANONICAL, FAULT.PRIVILEGE, FAULT.EXECUTE, FAULT.BEYOND_HOST_WIDTH, FAULT.SL_BEYOND_WIDTH, FAULT.WRITE, FAULT.READ,
  // SFS.10: this one is recorded all the same
  FAULT.FL_UPDATE,
]);

/** Reasons that say that tables or registers are broken: a translation request ends with Completer Abort, which leaves ATS enabled. */
export const COMPLETER_ABORT = flagsOf([
  FAULT.L_ROOT_ACCESS, FAULT.L_ROOT_RESERVED, FAULT.L_CONTEXT_ACCESS, FAULT.L_CONTEXT_RESERVED, FAULT.L_CONTEXT_INVALID, FAULT.L_PAGING_ACCESS,
  FAULT.L_PAGING_RESERVED, FAULT.L_INTERRUPT_RANGE, FAULT.ROOT_TABLE_ADDRESS, FAULT.S_ROOT_ACCESS, FAULT.S_ROOT_RESERVED, FAULT.S_CONTEXT_ACCESS,
  FAULT.S_CONTEXT_RESERVED, FAULT.S_CONTEXT_INVALID, FAULT.S_DIRECTORY_ACCESS, FAULT.S_DIRECTORY_RESERVED, FAULT.S_PASID_ACCESS, FAULT.S_PASID_RESERVED,
  FAULT.S_PASID_INVALID, FAULT.SL_ACCESS, FAULT.SL_RESERVED, FAULT.SL_ROOT_ACCESS, FAULT.SL_UPDATE, FAULT.INTERRUPT_RANGE,
]);

function flagsOf(codes: readonly number[]): Uint8Array {
  const flags = new Uint8Array(256);
  for (const code of codes) flags[code] = 1;
  return flags;
}
