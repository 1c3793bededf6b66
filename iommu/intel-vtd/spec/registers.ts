/**
 * Registers of a remapping unit (VT-d specification rev 4.1, chapter 11): offsets, widths, which bits software may
 * write and how, reset values. What the bits do is in hardware/. Registers of features that are never advertised
 * (advanced fault log, protected memory, MTRRs, performance monitoring, enhanced and virtual commands) are read-only
 * zero: drivers read some of them without asking.
 */
import { alignUp } from '../../../sim/address.js';
import { bit, bits, struct } from '../../../sim/layout.js';
import type { RegisterSpec } from '../../../sim/registers.js';
import type { VtdCapabilities } from './capabilities.js';

/** Offsets of registers whose place is fixed (table 11.1). */
export const REG = {
  VER: 0x00, CAP: 0x08, ECAP: 0x10, GCMD: 0x18, GSTS: 0x1c, RTADDR: 0x20, CCMD: 0x28,
  FSTS: 0x34, FECTL: 0x38, FEDATA: 0x3c, FEADDR: 0x40, FEUADDR: 0x44, AFLOG: 0x58,
  PMEN: 0x64, PLMBASE: 0x68, PLMLIMIT: 0x6c, PHMBASE: 0x70, PHMLIMIT: 0x78,
  IQH: 0x80, IQT: 0x88, IQA: 0x90, ICS: 0x9c, IECTL: 0xa0, IEDATA: 0xa4, IEADDR: 0xa8, IEUADDR: 0xac, IQERCD: 0xb0,
  IRTA: 0xb8, PQH: 0xc0, PQT: 0xc8, PQA: 0xd0, PRS: 0xdc, PECTL: 0xe0, PEDATA: 0xe4, PEADDR: 0xe8, PEUADDR: 0xec,
  MTRRCAP: 0x100, MTRRDEF: 0x108,
} as const;

/** Bytes of one fault recording register. */
export const FAULT_RECORD_BYTES = 16;

/** GCMD and GSTS (11.4.4): a command bit and its status bit have the same position. */
export const GCMD_TE = 0x8000_0000;
export const GCMD_SRTP = 0x4000_0000;
/** Reserved when advanced fault logging is not reported. */
export const GCMD_SFL = 0x2000_0000;
export const GCMD_EAFL = 0x1000_0000;
export const GCMD_WBF = 0x0800_0000;
export const GCMD_QIE = 0x0400_0000;
export const GCMD_IRE = 0x0200_0000;
export const GCMD_SIRTP = 0x0100_0000;
export const GCMD_CFI = 0x0080_0000;

/** RTADDR (11.4.5): TTM in bits 11:10. */
export const RTADDR = struct('RTADDR', 8, { TTM: bits(11, 10), RTA: { hi: 63, lo: 12, kind: 'addr' } });
export const TTM_LEGACY = 0;
export const TTM_SCALABLE = 1;
export const TTM_ABORT_DMA = 3;

/** CCMD (11.4.6.1). CIRG, CAIG: 1 global, 2 domain-selective, 3 device-selective; CAIG 0: request was incorrect and ignored. */
export const CCMD = struct('CCMD', 8, {
  DID: bits(15, 0), SID: bits(31, 16), FM: bits(33, 32), CAIG: bits(60, 59), CIRG: bits(62, 61), ICC: bit(63),
});
/** IOTLB (11.4.6.2.1), at IRO × 16 + 8. IIRG, IAIG: 1 global, 2 domain-selective, 3 page-selective. */
export const IOTLB = struct('IOTLB', 8, {
  DID: bits(47, 32), DW: bit(48), DR: bit(49), IAIG: bits(58, 57), IIRG: bits(61, 60), IVT: bit(63),
});
/** IVA (11.4.6.2.2), at IRO × 16. */
export const IVA = struct('IVA', 8, { AM: bits(5, 0), IH: bit(6), ADDR: { hi: 63, lo: 12, kind: 'addr' } });

/** FSTS (11.4.7.1). */
export const FSTS_PFO = 0x01;
export const FSTS_PPF = 0x02;
export const FSTS_IQE = 0x10;
export const FSTS_ICE = 0x20;
export const FSTS_ITE = 0x40;
/** Fault record index, bits 15:8. */
export const FSTS_FRI_SHIFT = 8;
export const FSTS_FRI_MASK = 0xff00;

/** FECTL, IECTL, PECTL. */
export const EVENT_IM = 0x8000_0000;
export const EVENT_IP = 0x4000_0000;

/** Fault recording register (11.4.7.6). T1, T2: 0 0 write, 0 1 page request, 1 0 read, 1 1 atomic. */
export const FRCD = struct('FRCD', 16, {
  FI: { hi: 63, lo: 12, kind: 'addr' },
  SID: bits(79, 64), T2: bit(92), PRIV: bit(93), EXE: bit(94), PP: bit(95), FR: bits(103, 96), PV: bits(123, 104),
  AT: bits(125, 124), T1: bit(126), F: bit(127),
});

/** IQA (11.4.8.3): 2^QS pages; DW: 256-bit descriptors. */
export const IQA = struct('IQA', 8, { QS: bits(2, 0), DW: bit(11), IQA: { hi: 63, lo: 12, kind: 'addr' } });
/** IQH and IQT: byte offset into the queue in bits 18:4 (18:5 with 256-bit descriptors). */
export const IQ_POINTER_MASK = 0x7_fff0;
export const ICS_IWC = 1;
/** IQERCD (11.4.8.9). */
export const IQERCD = struct('IQERCD', 8, { IQEI: bits(3, 0), ITESID: bits(47, 32), ICESID: bits(63, 48) });
/** What IQEI says about the descriptor or pointer that stopped the queue. */
export const IQEI = {
  INVALID_TAIL: 1, FETCH_ERROR: 2, INVALID_TYPE: 3, RESERVED_FIELD: 4, INVALID_WIDTH: 5, TAIL_NOT_ALIGNED: 6, INVALID_TTM: 7,
} as const;
export const IQEI_TEXT: readonly string[] = [
  'no information', 'invalid tail pointer', 'descriptor fetch failed', 'invalid descriptor type', 'reserved field set',
  'invalid descriptor width', 'tail pointer not aligned to 256 bits', 'invalid translation table mode',
];

/** IRTA (11.4.10.1): 2^(S + 1) entries; EIME: destinations have 32 bits, and compatibility format is blocked. */
export const IRTA = struct('IRTA', 8, { S: bits(3, 0), EIME: bit(11), IRTA: { hi: 63, lo: 12, kind: 'addr' } });

/** PQA (11.4.11.3): 2^PQS pages. PQH and PQT: byte offset in bits 18:5. */
export const PQA = struct('PQA', 8, { PQS: bits(2, 0), PQA: { hi: 63, lo: 12, kind: 'addr' } });
export const PQ_POINTER_MASK = 0x7_ffe0;
/** PRS (11.4.11.4). */
export const PRS_PPR = 1;
export const PRS_PRO = 2;

export type VtdRegisterName =
  | keyof typeof REG
  | 'IVA' | 'IOTLB'
  | `FRCD${number}_LO` | `FRCD${number}_HI`;

/** Bytes of the register window: whole 4 KiB pages that hold every register. */
export function registerWindowBytes(capabilities: VtdCapabilities): number {
  const end = Math.max(
    REG.MTRRDEF + 8,
    capabilities.iotlbOffset + 16,
    capabilities.faultRecordOffset + capabilities.faultRecords * FAULT_RECORD_BYTES,
  );
  return alignUp(end, 4096);
}

const HIGH_BIT = 0x8000_0000_0000_0000n;

/** The register file of a unit with these capabilities: features that it lacks leave read-only zeros. */
export function registerSpecs(capabilities: VtdCapabilities): Record<string, RegisterSpec> {
  const qi = capabilities.queuedInvalidation, prs = capabilities.pageRequests;
  const when = (condition: boolean, mask: bigint): bigint => (condition ? mask : 0n);
  const eventControl = (condition: boolean): { rw: bigint; reset: bigint } => ({ rw: when(condition, 0x8000_0000n), reset: when(condition, 0x8000_0000n) });
  const address = ((1n << BigInt(capabilities.hostAddressWidth)) - 1n) & ~0xfffn;
  const ttm = when(capabilities.scalable || capabilities.abortDma, 0xc00n);
  const errors = BigInt(FSTS_PFO | (qi ? FSTS_IQE : 0) | (capabilities.deviceTlb ? FSTS_ICE | FSTS_ITE : 0));
  const specs: Record<string, RegisterSpec> = {
    VER: { offset: REG.VER, size: 4, reset: BigInt(capabilities.version) },
    CAP: { offset: REG.CAP, size: 8, reset: capabilities.cap },
    ECAP: { offset: REG.ECAP, size: 8, reset: capabilities.ecap },
    GCMD: { offset: REG.GCMD, size: 4, wo: 0xffff_ffffn },
    GSTS: { offset: REG.GSTS, size: 4 },
    RTADDR: { offset: REG.RTADDR, size: 8, rw: address | ttm },
    // CAIG is the hardware's answer; FM and SID are kept until the command runs and then read as zero (11.4.6.1: WO)
    CCMD: { offset: REG.CCMD, size: 8, rw: HIGH_BIT | (3n << 61n) | 0x3_ffff_ffffn },
    FSTS: { offset: REG.FSTS, size: 4, w1c: errors },
    FECTL: { offset: REG.FECTL, size: 4, ...eventControl(true) },
    FEDATA: { offset: REG.FEDATA, size: 4, rw: 0xffff_ffffn },
    FEADDR: { offset: REG.FEADDR, size: 4, rw: 0xffff_fffcn },
    FEUADDR: { offset: REG.FEUADDR, size: 4, rw: 0xffff_ffffn },
    AFLOG: { offset: REG.AFLOG, size: 8 },
    PMEN: { offset: REG.PMEN, size: 4 },
    PLMBASE: { offset: REG.PLMBASE, size: 4 },
    PLMLIMIT: { offset: REG.PLMLIMIT, size: 4 },
    PHMBASE: { offset: REG.PHMBASE, size: 8 },
    PHMLIMIT: { offset: REG.PHMLIMIT, size: 8 },
    IQH: { offset: REG.IQH, size: 8 },
    IQT: { offset: REG.IQT, size: 8, rw: when(qi, BigInt(IQ_POINTER_MASK)) },
    IQA: { offset: REG.IQA, size: 8, rw: when(qi, address | 7n | when(capabilities.scalable || capabilities.abortDma, 0x800n)) },
    ICS: { offset: REG.ICS, size: 4, w1c: when(qi, BigInt(ICS_IWC)) },
    IECTL: { offset: REG.IECTL, size: 4, ...eventControl(qi) },
    IEDATA: { offset: REG.IEDATA, size: 4, rw: when(qi, 0xffff_ffffn) },
    IEADDR: { offset: REG.IEADDR, size: 4, rw: when(qi, 0xffff_fffcn) },
    IEUADDR: { offset: REG.IEUADDR, size: 4, rw: when(qi, 0xffff_ffffn) },
    IQERCD: { offset: REG.IQERCD, size: 8 },
    IRTA: { offset: REG.IRTA, size: 8, rw: when(capabilities.interruptRemapping, address | 0xfn | when(capabilities.extendedInterruptMode, 0x800n)) },
    PQH: { offset: REG.PQH, size: 8, rw: when(prs, BigInt(PQ_POINTER_MASK)) },
    PQT: { offset: REG.PQT, size: 8, rw: when(prs, BigInt(PQ_POINTER_MASK)) },
    PQA: { offset: REG.PQA, size: 8, rw: when(prs, address | 7n) },
    PRS: { offset: REG.PRS, size: 4, w1c: when(prs, BigInt(PRS_PPR | PRS_PRO)) },
    PECTL: { offset: REG.PECTL, size: 4, ...eventControl(prs) },
    PEDATA: { offset: REG.PEDATA, size: 4, rw: when(prs, 0xffff_ffffn) },
    PEADDR: { offset: REG.PEADDR, size: 4, rw: when(prs, 0xffff_fffcn) },
    PEUADDR: { offset: REG.PEUADDR, size: 4, rw: when(prs, 0xffff_ffffn) },
    MTRRCAP: { offset: REG.MTRRCAP, size: 8 },
    MTRRDEF: { offset: REG.MTRRDEF, size: 8 },
    // write-only in the specification, readable in datasheets (Xeon E7 v2, volume 2, VTD_INVADDRREG)
    IVA: { offset: capabilities.iotlbOffset, size: 8, rw: 0xffff_ffff_ffff_f07fn },
    // DR and DW read back as written
    IOTLB: { offset: capabilities.iotlbOffset + 8, size: 8, rw: HIGH_BIT | (3n << 60n) | (0x3_ffffn << 32n) },
  };
  for (let i = 0; i < capabilities.faultRecords; i++) {
    const offset = capabilities.faultRecordOffset + i * FAULT_RECORD_BYTES;
    specs[`FRCD${i}_LO`] = { offset, size: 8 };
    specs[`FRCD${i}_HI`] = { offset: offset + 8, size: 8, w1c: HIGH_BIT };
  }
  return specs;
}
