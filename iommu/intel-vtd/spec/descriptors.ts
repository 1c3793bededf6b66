/**
 * Entries of the queues in memory: invalidation descriptors (VT-d specification rev 4.1, 6.5.2), page requests
 * (7.4.1) and page group responses (7.6.1). Invalidation descriptors are 128 or 256 bits (IQA.DW); the layouts here
 * are 256 bits, a 128-bit queue holds their first half. The type is bits 3:0 and 11:9.
 * Bits that hardware ignores (function ids and depth hints for throttling, as ECAP.DIT is 0) are declared, so the
 * reserved-bit check passes over them.
 */
import { bit, bits, struct } from '../../../sim/layout.js';

/** Descriptor types (bits 3:0, with bits 11:9 zero). */
export const DESCRIPTOR = {
  CONTEXT_CACHE: 1, IOTLB: 2, DEVICE_TLB: 3, INTERRUPT_ENTRY_CACHE: 4, WAIT: 5, PASID_IOTLB: 6, PASID_CACHE: 7,
  PASID_DEVICE_TLB: 8, PAGE_GROUP_RESPONSE: 9, PAGE_STREAM_RESPONSE: 10,
} as const;

const ADDRESS = { hi: 127, lo: 76, kind: 'bits' } as const;

/** 6.5.2.1; G: 1 global, 2 domain-selective, 3 device-selective. */
export const CONTEXT_CACHE_INVALIDATE = struct('cc_inv', 32, {
  Type: bits(3, 0), G: bits(5, 4), TypeHi: bits(11, 9), DID: bits(31, 16), SID: bits(47, 32), FM: bits(49, 48),
});
/** 6.5.2.2; G: 0 domain-selective, 1 PASID-selective, 3 global. */
export const PASID_CACHE_INVALIDATE = struct('pc_inv', 32, {
  Type: bits(3, 0), G: bits(5, 4), TypeHi: bits(11, 9), DID: bits(31, 16), PASID: bits(51, 32),
});
/** 6.5.2.3; G: 1 global, 2 domain-selective, 3 page-selective. `ADDR` is a page number. */
export const IOTLB_INVALIDATE = struct('iotlb_inv', 32, {
  Type: bits(3, 0), G: bits(5, 4), DW: bit(6), DR: bit(7), TypeHi: bits(11, 9), DID: bits(31, 16),
  AM: bits(69, 64), IH: bit(70), ADDR: ADDRESS,
});
/** 6.5.2.4; G: 2 PASID-selective, 3 page-selective within the PASID. */
export const PASID_IOTLB_INVALIDATE = struct('p_iotlb_inv', 32, {
  Type: bits(3, 0), G: bits(5, 4), TypeHi: bits(11, 9), DID: bits(31, 16), PASID: bits(51, 32),
  AM: bits(69, 64), IH: bit(70), ADDR: ADDRESS,
});
/** 6.5.2.5; S: the size is coded in the address. */
export const DEVICE_TLB_INVALIDATE = struct('dev_tlb_inv', 32, {
  Type: bits(3, 0), TypeHi: bits(11, 9), PFSID_3_0: bits(15, 12), MIP: bits(20, 16), SID: bits(47, 32), PFSID_15_4: bits(63, 52),
  S: bit(64), ADDR: ADDRESS,
});
/** 6.5.2.6; G: global translations too. */
export const PASID_DEVICE_TLB_INVALIDATE = struct('p_dev_tlb_inv', 32, {
  Type: bits(3, 0), MIP: bits(8, 4), TypeHi: bits(11, 9), PFSID_3_0: bits(15, 12), SID: bits(31, 16), PASID: bits(51, 32), PFSID_15_4: bits(63, 52),
  G: bit(64), S: bit(75), ADDR: ADDRESS,
});
/** 6.5.2.7; G: 0 global, 1 index-selective, 2^IM entries around IIDX. Without interrupt remapping its type is invalid. */
export const INTERRUPT_ENTRY_CACHE_INVALIDATE = struct('iec_inv', 32, {
  Type: bits(3, 0), G: bit(4), TypeHi: bits(11, 9), IM: bits(31, 27), IIDX: bits(47, 32),
});
/** 6.5.2.8; IF interrupt, SW status write, FN fence, PD page request drain. `SADDR` is the status address / 4. */
export const INVALIDATION_WAIT = struct('inv_wait', 32, {
  Type: bits(3, 0), IF: bit(4), SW: bit(5), FN: bit(6), PD: bit(7), TypeHi: bits(11, 9), SDATA: bits(63, 32), SADDR: bits(127, 66),
});
/** 7.6.1; RESP: 0 success, 1 invalid request, 15 response failure. LPIG is ignored by hardware. */
export const PAGE_GROUP_RESPONSE = struct('page_grp_resp', 32, {
  Type: bits(3, 0), PP: bit(4), TypeHi: bits(11, 9), RESP: bits(15, 12), RID: bits(31, 16), PASID: bits(51, 32),
  LPIG: bit(66), PRGI: bits(75, 67),
});
/** Response codes, as on the wire (PCIe 6.0, 10.4.2.1); not the kernel's enum, whose FAILURE is 2. */
export const RESP_SUCCESS = 0;
export const RESP_INVALID = 1;
export const RESP_FAILURE = 15;

/** Layout by type, index is `Type`; undefined where there is none. */
export const DESCRIPTOR_LAYOUTS = [
  undefined, CONTEXT_CACHE_INVALIDATE, IOTLB_INVALIDATE, DEVICE_TLB_INVALIDATE, INTERRUPT_ENTRY_CACHE_INVALIDATE, INVALIDATION_WAIT,
  PASID_IOTLB_INVALIDATE, PASID_CACHE_INVALIDATE, PASID_DEVICE_TLB_INVALIDATE, PAGE_GROUP_RESPONSE,
] as const;

/** Page request descriptor, 7.4.1. `ADDR` is a page number; private data is never sent. */
export const PAGE_REQUEST = struct('page_req', 32, {
  Type: bits(7, 0), PP: bit(8), RID: bits(31, 16), PASID: bits(51, 32), EXE: bit(52), PM: bit(53),
  RD: bit(64), WR: bit(65), LPIG: bit(66), PRGI: bits(75, 67), ADDR: ADDRESS,
});
export const PAGE_REQUEST_TYPE = 1;
export const PAGE_REQUEST_BYTES = 32;
