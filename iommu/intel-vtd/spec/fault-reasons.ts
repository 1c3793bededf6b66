/**
 * Fault reasons of DMA and interrupt remapping (VT-d rev 4.1, sections 5.1.4, 7.1.3 and appendix A): code, condition, sentence, and whether the
 * Fault Processing Disable bit of the entries that were used keeps it from being recorded ("qualified"). Codes were
 * compared with drivers/iommu/intel/dmar.c (Linux), hw/i386/intel_iommu_internal.h (QEMU) and
 * include/VBox/iommu-intel.h (VirtualBox). QEMU differs in one: its table of qualified reasons has no LCT.3 and SCT.3, table 30
 * has. Those of interrupt remapping are qualified once an entry was read, also one that is not present (QEMU and VirtualBox
 * agree). Left out: reasons of posted interrupts.
 */

/** Codes by name. L_: legacy mode, S_: scalable mode, IR_: interrupt remapping. */
export const FAULT = {
  L_ROOT_P: 0x01,
  L_CONTEXT_P: 0x02,
  L_CONTEXT_INVALID: 0x03,
  L_BEYOND_WIDTH: 0x04,
  L_WRITE: 0x05,
  L_READ: 0x06,
  L_PAGING_ACCESS: 0x07,
  L_ROOT_ACCESS: 0x08,
  L_CONTEXT_ACCESS: 0x09,
  L_ROOT_RESERVED: 0x0a,
  L_CONTEXT_RESERVED: 0x0b,
  L_PAGING_RESERVED: 0x0c,
  L_BLOCKED: 0x0d,
  L_INTERRUPT_RANGE: 0x0e,

  IR_REQUEST_RESERVED: 0x20,
  IR_INDEX: 0x21,
  IR_P: 0x22,
  IR_ACCESS: 0x23,
  IR_RESERVED: 0x24,
  IR_COMPATIBILITY: 0x25,
  IR_SOURCE: 0x26,
  INTERRUPT_REQUEST_INVALID: 0x29,

  ROOT_TABLE_ADDRESS: 0x30,
  PASID_IN_LEGACY_MODE: 0x31,
  PAGE_REQUEST_IN_LEGACY_MODE: 0x32,
  ABORT_DMA_MODE: 0x33,

  S_ROOT_ACCESS: 0x38,
  S_ROOT_P: 0x39,
  S_ROOT_RESERVED: 0x3a,

  S_CONTEXT_ACCESS: 0x40,
  S_CONTEXT_P: 0x41,
  S_CONTEXT_RESERVED: 0x42,
  S_CONTEXT_INVALID: 0x43,
  S_DTE: 0x44,
  S_PASIDE: 0x45,
  S_PASID_RANGE: 0x46,
  S_PRE: 0x47,
  S_RID_PASID: 0x48,

  S_DIRECTORY_ACCESS: 0x50,
  S_DIRECTORY_P: 0x51,
  S_DIRECTORY_RESERVED: 0x52,

  S_PASID_ACCESS: 0x58,
  S_PASID_P: 0x59,
  S_PASID_RESERVED: 0x5a,
  S_PASID_INVALID: 0x5b,
  S_ERE: 0x5c,
  S_SRE: 0x5d,

  FL_ACCESS: 0x70,
  FL_P: 0x71,
  FL_RESERVED: 0x72,
  FL_ROOT_ACCESS: 0x73,
  FL_BEYOND_WIDTH: 0x74,
  FL_ROOT_READ: 0x75,
  FL_READ: 0x76,
  FL_WRITE: 0x77,

  SL_ACCESS: 0x78,
  SL_PERMISSION: 0x79,
  SL_RESERVED: 0x7a,
  SL_ROOT_ACCESS: 0x7b,
  SL_UPDATE: 0x7d,

  NOT_CANONICAL: 0x80,
  PRIVILEGE: 0x81,
  EXECUTE: 0x82,
  BEYOND_HOST_WIDTH: 0x83,
  SL_BEYOND_WIDTH: 0x84,
  WRITE: 0x85,
  READ: 0x86,
  INTERRUPT_RANGE: 0x87,
  PASID_SIZE: 0x89,

  FL_UPDATE: 0x91,
} as const;

export interface FaultReason {
  readonly code: number;
  /** Condition as the manual numbers it: LRT, LCT, LSL, LGN (legacy), RTA, SRT, SCT, SPD, SPT, SFL, SSL, SGN (scalable); IR (interrupt requests, without number). */
  readonly condition: string;
  readonly text: string;
  /** Not recorded when FPD is set in an entry that was used, present or not. */
  readonly qualified: boolean;
}

const REASONS: readonly FaultReason[] = [
  reason(FAULT.L_ROOT_P, 'LRT.2', 'Root entry of the bus is not present', false),
  reason(FAULT.L_CONTEXT_P, 'LCT.2', 'Context entry of the requester is not present'),
  reason(FAULT.L_CONTEXT_INVALID, 'LCT.4', 'Context entry asks for an address width, translation type or table that cannot be used'),
  reason(FAULT.L_BEYOND_WIDTH, 'LGN.1', 'Address is beyond the width that the context entry and the unit allow'),
  reason(FAULT.L_WRITE, 'LGN.2', 'Write without write permission in the paging entries'),
  reason(FAULT.L_READ, 'LGN.3', 'Read without read permission in the paging entries'),
  reason(FAULT.L_PAGING_ACCESS, 'LSL.1', 'Paging entry could not be read from memory'),
  reason(FAULT.L_ROOT_ACCESS, 'LRT.1', 'Root entry could not be read from memory', false),
  reason(FAULT.L_CONTEXT_ACCESS, 'LCT.1', 'Context entry could not be read from memory', false),
  reason(FAULT.L_ROOT_RESERVED, 'LRT.3', 'Reserved field of a present root entry is not zero', false),
  reason(FAULT.L_CONTEXT_RESERVED, 'LCT.3', 'Reserved field of a present context entry is not zero'),
  reason(FAULT.L_PAGING_RESERVED, 'LSL.2', 'Reserved field of a paging entry is not zero'),
  reason(FAULT.L_BLOCKED, 'LCT.5', 'Context entry does not allow translation requests and translated requests'),
  reason(FAULT.L_INTERRUPT_RANGE, 'LGN.4', 'Translation ends in the interrupt address range'),

  reason(FAULT.IR_REQUEST_RESERVED, 'IR', 'Interrupt request has reserved bits set', false),
  reason(FAULT.IR_INDEX, 'IR', 'Interrupt index is beyond the interrupt remapping table', false),
  reason(FAULT.IR_P, 'IR', 'Interrupt remapping entry is not present'),
  reason(FAULT.IR_ACCESS, 'IR', 'Interrupt remapping entry could not be read from memory', false),
  reason(FAULT.IR_RESERVED, 'IR', 'Reserved field of an interrupt remapping entry is not zero'),
  reason(FAULT.IR_COMPATIBILITY, 'IR', 'Interrupt in compatibility format while those are blocked', false),
  reason(FAULT.IR_SOURCE, 'IR', 'Interrupt remapping entry belongs to another requester'),
  reason(FAULT.INTERRUPT_REQUEST_INVALID, 'IR', 'Request without PASID to the interrupt address range is not an interrupt write', false),

  reason(FAULT.ROOT_TABLE_ADDRESS, 'RTA.1', 'Translation table mode of the root table address is not supported', false),
  reason(FAULT.PASID_IN_LEGACY_MODE, 'RTA.2', 'Request with PASID in legacy mode', false),
  reason(FAULT.PAGE_REQUEST_IN_LEGACY_MODE, 'RTA.3', 'Page request in legacy mode', false),
  reason(FAULT.ABORT_DMA_MODE, 'RTA.4', 'Request in abort-DMA mode', false),

  reason(FAULT.S_ROOT_ACCESS, 'SRT.1', 'SM: root entry could not be read from memory', false),
  reason(FAULT.S_ROOT_P, 'SRT.2', 'SM: root entry of the bus is not present', false),
  reason(FAULT.S_ROOT_RESERVED, 'SRT.3', 'SM: reserved field of a present root entry is not zero', false),

  reason(FAULT.S_CONTEXT_ACCESS, 'SCT.1', 'SM: context entry could not be read from memory', false),
  reason(FAULT.S_CONTEXT_P, 'SCT.2', 'SM: context entry of the requester is not present'),
  reason(FAULT.S_CONTEXT_RESERVED, 'SCT.3', 'SM: reserved field of a present context entry is not zero'),
  reason(FAULT.S_CONTEXT_INVALID, 'SCT.4', 'SM: context entry has PRE without DTE, or a RID_PASID beyond its directory'),
  reason(FAULT.S_DTE, 'SCT.5', 'SM: translation request or translated request while DTE is clear in the context entry'),
  reason(FAULT.S_PASIDE, 'SCT.6', 'SM: request with PASID while PASIDE is clear in the context entry'),
  reason(FAULT.S_PASID_RANGE, 'SCT.7', 'SM: PASID is beyond the directory of the context entry'),
  reason(FAULT.S_PRE, 'SCT.8', 'SM: page request while PRE is clear in the context entry'),
  reason(FAULT.S_RID_PASID, 'SCT.9', 'SM: PASID of the request is the RID_PASID of the context entry'),

  reason(FAULT.S_DIRECTORY_ACCESS, 'SPD.1', 'SM: PASID directory entry could not be read from memory', false),
  reason(FAULT.S_DIRECTORY_P, 'SPD.2', 'SM: PASID directory entry is not present'),
  reason(FAULT.S_DIRECTORY_RESERVED, 'SPD.3', 'SM: reserved field of a present PASID directory entry is not zero'),

  reason(FAULT.S_PASID_ACCESS, 'SPT.1', 'SM: PASID table entry could not be read from memory', false),
  reason(FAULT.S_PASID_P, 'SPT.2', 'SM: PASID table entry is not present'),
  reason(FAULT.S_PASID_RESERVED, 'SPT.3', 'SM: reserved field of a present PASID table entry is not zero'),
  reason(FAULT.S_PASID_INVALID, 'SPT.4', 'SM: PASID table entry asks for a translation type, width or paging mode that the unit does not support'),
  reason(FAULT.S_ERE, 'SPT.5', 'SM: execute request while ERE is clear in the PASID table entry'),
  reason(FAULT.S_SRE, 'SPT.6', 'SM: privileged request while SRE is clear in the PASID table entry'),

  reason(FAULT.FL_ACCESS, 'SFL.1', 'SM: first-level paging entry could not be read from memory'),
  reason(FAULT.FL_P, 'SFL.2', 'SM: first-level paging entry is not present'),
  reason(FAULT.FL_RESERVED, 'SFL.3', 'SM: reserved field of a first-level paging entry is not zero'),
  reason(FAULT.FL_ROOT_ACCESS, 'SFL.4', 'SM: first-level root table could not be read from memory'),
  reason(FAULT.FL_BEYOND_WIDTH, 'SFL.5', 'SM: nested: address of a first-level table is beyond the second-level width'),
  reason(FAULT.FL_ROOT_READ, 'SFL.6', 'SM: nested: second level does not permit reading the first-level root table'),
  reason(FAULT.FL_READ, 'SFL.7', 'SM: nested: second level does not permit reading a first-level table'),
  reason(FAULT.FL_WRITE, 'SFL.8', 'SM: nested: second level does not permit setting A or D in a first-level table'),

  reason(FAULT.SL_ACCESS, 'SSL.1', 'SM: second-level paging entry could not be read from memory'),
  reason(FAULT.SL_PERMISSION, 'SSL.2', 'SM: second-level paging entry permits neither reading nor writing'),
  reason(FAULT.SL_RESERVED, 'SSL.3', 'SM: reserved field of a second-level paging entry is not zero'),
  reason(FAULT.SL_ROOT_ACCESS, 'SSL.4', 'SM: second-level root table could not be read from memory'),
  reason(FAULT.SL_UPDATE, 'SSL.6', 'SM: A or D could not be set in a second-level paging entry'),

  reason(FAULT.NOT_CANONICAL, 'SGN.1', 'SM: address of a first-level translation is not canonical'),
  reason(FAULT.PRIVILEGE, 'SGN.2', 'SM: user request to a supervisor page (U/S is clear)'),
  reason(FAULT.EXECUTE, 'SGN.3', 'SM: execute request without execute permission'),
  reason(FAULT.BEYOND_HOST_WIDTH, 'SGN.4', 'SM: address is beyond the host address width'),
  reason(FAULT.SL_BEYOND_WIDTH, 'SGN.5', 'SM: address is beyond the second-level width'),
  reason(FAULT.WRITE, 'SGN.6', 'SM: write without write permission in the paging entries'),
  reason(FAULT.READ, 'SGN.7', 'SM: read without read permission in the paging entries'),
  reason(FAULT.INTERRUPT_RANGE, 'SGN.8', 'SM: translation ends in the interrupt address range'),
  reason(FAULT.PASID_SIZE, 'SGN.10', 'SM: PASID is wider than the unit supports'),

  reason(FAULT.FL_UPDATE, 'SFL.10', 'SM: A or D could not be set in a first-level paging entry'),
];

/** Every reason that the model can record, ascending by code. */
export const FAULT_REASONS: readonly FaultReason[] = REASONS.toSorted((a, b) => a.code - b.code);

const BY_CODE = new Map(REASONS.map((entry) => [entry.code, entry]));
const QUALIFIED = Uint8Array.from({ length: 256 }, (_, code) => (BY_CODE.get(code)?.qualified === true ? 1 : 0));

/** The reason with that code, undefined for codes of other units or later revisions. */
export function faultReason(code: number): FaultReason | undefined {
  return BY_CODE.get(code);
}

/** Sentence for a code, `Unknown` when the model has none. */
export function faultText(code: number): string {
  return BY_CODE.get(code)?.text ?? 'Unknown';
}

/** True when FPD keeps a fault with that code from being recorded. */
export function isQualified(code: number): boolean {
  return QUALIFIED[code] === 1;
}

function reason(code: number, condition: string, text: string, qualified = true): FaultReason {
  return { code, condition, text, qualified };
}
