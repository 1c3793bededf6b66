/**
 * How requests of a device with a device TLB are answered for each fault reason (VT-d rev 4.1, sections 7.2 and 7.4):
 * tables of flags by code.
 */
import { FAULT } from '../spec/fault-reasons.js';

/**
 * Reasons that a translation request answers with R = W = 0 and that are not recorded: the device may ask for the page
 * (section 7.2.2, recoverable faults).
 */
export const RECOVERABLE = flagsOf([
  FAULT.L_BEYOND_WIDTH, FAULT.L_WRITE, FAULT.L_READ, FAULT.FL_P, FAULT.FL_BEYOND_WIDTH, FAULT.FL_ROOT_READ, FAULT.FL_READ, FAULT.FL_WRITE, FAULT.SL_PERMISSION,
  FAULT.NOT_CANONICAL, FAULT.PRIVILEGE, FAULT.EXECUTE, FAULT.SL_BEYOND_WIDTH, FAULT.WRITE, FAULT.READ,
]);

/** Reasons that come from the tables of pages: a translation request ends with Completer Abort, not Unsupported Request. */
export const PAGING_ERROR = flagsOf([
  FAULT.L_PAGING_ACCESS, FAULT.L_PAGING_RESERVED, FAULT.FL_ACCESS, FAULT.FL_RESERVED, FAULT.FL_ROOT_ACCESS, FAULT.SL_ACCESS, FAULT.SL_RESERVED,
  FAULT.SL_ROOT_ACCESS, FAULT.SL_UPDATE, FAULT.FL_UPDATE,
]);

/** Reasons about the PASID of a page request: answered Invalid Request, all others with Response Failure. */
export const PASID_ERROR = flagsOf([
  FAULT.S_PASIDE, FAULT.S_PASID_RANGE, FAULT.S_RID_PASID, FAULT.S_DIRECTORY_ACCESS, FAULT.S_DIRECTORY_P, FAULT.S_DIRECTORY_RESERVED,
  FAULT.S_PASID_ACCESS, FAULT.S_PASID_P, FAULT.S_PASID_RESERVED, FAULT.S_PASID_INVALID,
]);

function flagsOf(codes: readonly number[]): Uint8Array {
  const flags = new Uint8Array(256);
  for (const code of codes) flags[code] = 1;
  return flags;
}
