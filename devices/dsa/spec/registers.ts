/**
 * Registers of the Intel Data Streaming Accelerator, version 1.0: offsets, fields, command and error codes.
 * Facts from Linux `drivers/dma/idxd/registers.h` and, for the meaning of command errors, the texts of
 * `accfg/lib/libaccfg.c` in intel/idxd-config; recorded accesses of the Linux driver agree with them.
 * Commands and errors of interrupt handles: drivers/dma/idxd/registers.h, their texts in libaccfg.c; only virtual devices
 * have these two commands. Left out because no model advertises them: event log, perfmon, interrupt message storage,
 * per-queue operation configuration, occupancy interrupts.
 */
import { bit, bits, struct } from '../../../sim/layout.js';
import type { RegisterSpec } from '../../../sim/registers.js';

export const DSA_VENDOR_ID = 0x8086;
export const DSA_DEVICE_ID = 0x0b25;
/** System peripheral, other. */
export const DSA_CLASS_CODE = 0x088000;
export const DSA_VERSION_1 = 0x100;

export const REGISTERS_BAR = 0;
export const REGISTERS_BAR_SIZE = 0x1_0000;
export const PORTALS_BAR = 2;
/** Where the MSI-X table and pending bits lie in BAR 0. */
export const MSIX_TABLE_OFFSET = 0x2000;
export const MSIX_PBA_OFFSET = 0x3000;

/** A work queue has four portals of one page: unlimited and limited, each for MSI-X and for interrupt message storage. */
export const PORTAL_SIZE = 0x1000;
export const PORTALS_PER_WQ = 4;
export const PORTAL_LIMITED = 1;
export const PORTAL_IMS = 2;

export const GENCAP = struct('GENCAP', 8, {
  BlockOnFault: bit(0), OverlapCopy: bit(1), CacheControlMem: bit(2), CacheControlCache: bit(3), CmdCap: bit(4),
  DestReadback: bit(8), DrainReadback: bit(9), EvlSupport: bits(14, 13), BatchContinuation: bit(15),
  MaxXferShift: bits(20, 16), MaxBatchShift: bits(24, 21), MaxImsMult: bits(30, 25), ConfigEn: bit(31),
});

export const WQCAP = struct('WQCAP', 8, {
  TotalWqSize: bits(15, 0), NumWqs: bits(23, 16), WqcfgSize: bits(27, 24), SharedMode: bit(48), DedicatedMode: bit(49),
  WqAtsSupport: bit(50), Priority: bit(51), Occupancy: bit(52), OccupancyInt: bit(53), OpConfig: bit(54), WqPrsSupport: bit(55),
});

export const GRPCAP = struct('GRPCAP', 8, { NumGroups: bits(7, 0), TotalRdbufs: bits(15, 8), RdbufCtrl: bit(16), RdbufLimit: bit(17) });
export const ENGCAP = struct('ENGCAP', 8, { NumEngines: bits(7, 0) });
/** Offsets of the tables in units of 0x100 bytes. */
export const OFFSETS = struct('OFFSETS', 16, { Grpcfg: bits(15, 0), Wqcfg: bits(31, 16), MsixPerm: bits(47, 32), Ims: bits(63, 48), Perfmon: bits(79, 64) });
export const GENCFG = struct('GENCFG', 4, { RdbufLimit: bits(7, 0), UserIntEn: bit(12) });
export const GENCTRL = struct('GENCTRL', 4, { SofterrIntEn: bit(0), HaltIntEn: bit(1) });
export const GENSTS = struct('GENSTS', 4, { State: bits(1, 0), ResetType: bits(3, 2) });
export const CMD = struct('CMD', 4, { Operand: bits(19, 0), Cmd: bits(24, 20), IntReq: bit(31) });
export const CMDSTS = struct('CMDSTS', 4, { Err: bits(7, 0), Result: bits(23, 8), Active: bit(31) });
export const MSIXPERM = struct('MSIXPERM', 4, { Ignore: bit(2), PasidEn: bit(3), Pasid: bits(31, 12) });

export const SWERROR = struct('SWERROR', 32, {
  Valid: bit(0), Overflow: bit(1), DescValid: bit(2), WqIdxValid: bit(3), Batch: bit(4), FaultRw: bit(5), Priv: bit(6),
  Error: bits(15, 8), WqIdx: bits(23, 16), Operation: bits(39, 32), Pasid: bits(59, 40),
  BatchIdx: bits(79, 64), InvalidFlags: bits(127, 96), FaultAddr: bits(191, 128),
});

/** First 32 bytes of a queue's configuration. */
export const WQCFG = struct('WQCFG', 32, {
  WqSize: bits(15, 0), WqThresh: bits(47, 32),
  Mode: bit(64), Bof: bit(65), AtsDisable: bit(66), PrsDisable: bit(67), Priority: bits(71, 68), Pasid: bits(91, 72), PasidEn: bit(92), Priv: bit(93),
  MaxXferShift: bits(100, 96), MaxBatchShift: bits(104, 101),
  Occupancy: bits(207, 192), ModeSupport: bit(221), WqState: bits(223, 222),
});
/** Bytes of one WQCFG: 2^(WQCAP.WqcfgSize + 5). */
export const WQCFG_SIZE_FIELD = 1;
export const WQCFG_STRIDE = 64;
/** Values of WQCFG.Mode. */
export const WQ_MODE_SHARED = 0;
export const WQ_MODE_DEDICATED = 1;

export const GRPFLGCFG = struct('GRPFLGCFG', 8, {
  TcA: bits(2, 0), TcB: bits(5, 3), UseRdbufLimit: bit(7), RdbufsReserved: bits(15, 8), RdbufsAllowed: bits(27, 20),
});
export const GRPCFG_STRIDE = 64;
export const GRPENGCFG_OFFSET = 32;
export const GRPFLGCFG_OFFSET = 40;

export const TABLE_UNIT = 0x100;
export const GRPCFG_TABLE = 0x400;
export const WQCFG_TABLE = 0x500;
/** Follows the WQCFG table; 8 bytes an entry, the upper half reserved. */
export const MSIXPERM_STRIDE = 8;

/** States of GENSTS. */
export const STATE_DISABLED = 0;
export const STATE_ENABLED = 1;
export const STATE_DRAIN = 2;
export const STATE_HALT = 3;
/** What a halted device needs (GENSTS.ResetType). */
export const RESET_TYPE_SOFTWARE = 0;
export const RESET_TYPE_FLR = 1;

export const INTC_ERR = 0x01;
export const INTC_CMD = 0x02;
export const INTC_HALT_STATE = 0x10;

export const DSA_CMD = {
  ENABLE_DEVICE: 1, DISABLE_DEVICE: 2, DRAIN_ALL: 3, ABORT_ALL: 4, RESET_DEVICE: 5, ENABLE_WQ: 6, DISABLE_WQ: 7, DRAIN_WQ: 8,
  ABORT_WQ: 9, RESET_WQ: 10, DRAIN_PASID: 11, ABORT_PASID: 12, REQUEST_INT_HANDLE: 13, RELEASE_INT_HANDLE: 14,
} as const;
export type DsaCommand = (typeof DSA_CMD)[keyof typeof DSA_CMD];
/** CMDCAP: one bit per command code; the two commands for interrupt handles are not among them. */
export const CMDCAP_VALUE = 0x1ffe;
/** Operand of the commands for interrupt handles: bits 15:0 table index or handle, bit 16 interrupt message storage. */
export const INT_HANDLE_IMS = 0x1_0000;

/** Error codes in CMDSTS. */
export const CMDSTS_ERR = {
  SUCCESS: 0, INVAL_CMD: 0x01, INVAL_WQIDX: 0x02, HW_ERR: 0x03, NONZERO_RESERVED: 0x04,
  DEV_ENABLED: 0x10, CONFIG: 0x11, BUSMASTER_EN: 0x12, PRS_ALLOC: 0x13, WQ_SIZE_ERANGE: 0x14,
  GRP_CONFIG: 0x15, GRP_CONFIG_WQ: 0x16, GRP_CONFIG_ENGINE: 0x17, GRP_CONFIG_RDBUF: 0x18,
  DEV_NOTEN: 0x20, WQ_ENABLED: 0x21, WQ_SIZE: 0x22, WQ_PRIOR: 0x23, WQ_MODE: 0x24, BOF_EN: 0x25, PASID_EN: 0x26,
  MAX_BATCH_SIZE: 0x27, MAX_XFER_SIZE: 0x28, PRIV: 0x2a,
  DIS_DEV_EN: 0x31, WQ_NOT_EN: 0x32,
  INVAL_INT_IDX: 0x41, NO_HANDLE: 0x42, INVAL_INT_IDX_RELEASE: 0x43,
} as const;

/**
 * Errors that only SWERROR reports. The first two as in the idxd VDCM patches (DSA_ERR_PCI_CFG, DSA_ERR_CMD_REG). For
 * rejected submissions no public source gives the numbers; these are this model's.
 */
export const SWERR = {
  PCI_CFG: 0x51, CMD_REG: 0x52, WQ_NOT_ENABLED: 0x61, WQ_FULL: 0x62, POSTED_TO_SHARED: 0x63, PORTAL_ACCESS: 0x64,
} as const;

/** Operand of the commands that act on several queues: bits 15:0 a mask, 19:16 which sixteen. */
export function wqMaskOperand(wq: number): number {
  return (1 << (wq % 16)) | (Math.floor(wq / 16) << 16);
}

export interface DsaLayout {
  readonly wqs: number;
  readonly groups: number;
  /** MSI-X vectors, default one more than queues. */
  readonly vectors?: number;
}

/** Where the MSI-X structures lie in BAR 0, and how large that is. */
export interface MsixPlace {
  readonly tableOffset: number;
  readonly pbaOffset: number;
  readonly barBytes: number;
}

/**
 * Up to 256 vectors the table and pending bits lie at MSIX_TABLE_OFFSET and MSIX_PBA_OFFSET; more of them, or a
 * permission table that reaches there, move the table to the page behind it, the pending bits behind the table, and
 * BAR 0 grows.
 */
export function msixPlace(layout: DsaLayout): MsixPlace {
  const vectors = layout.vectors ?? layout.wqs + 1;
  const permEnd = msixPermTable(layout.wqs) + vectors * MSIXPERM_STRIDE;
  const tableBytes = vectors * 16;
  if (permEnd <= MSIX_TABLE_OFFSET && tableBytes <= MSIX_PBA_OFFSET - MSIX_TABLE_OFFSET) {
    return { tableOffset: MSIX_TABLE_OFFSET, pbaOffset: MSIX_PBA_OFFSET, barBytes: REGISTERS_BAR_SIZE };
  }
  const tableOffset = Math.ceil(permEnd / 0x1000) * 0x1000;
  const pbaOffset = Math.ceil((tableOffset + tableBytes) / 0x1000) * 0x1000;
  return { tableOffset, pbaOffset, barBytes: Math.max(REGISTERS_BAR_SIZE, 2 ** Math.ceil(Math.log2(pbaOffset + 0x1000))) };
}

/** Offset of the MSI-X permission table: the first table unit after the queues' configurations. */
export function msixPermTable(wqs: number): number {
  return WQCFG_TABLE + Math.ceil((wqs * WQCFG_STRIDE) / TABLE_UNIT) * TABLE_UNIT;
}

/** Fixed names of the register file, before the tables. */
export type DsaRegisterName =
  | 'VER' | 'GENCAP' | 'WQCAP' | 'GRPCAP' | 'ENGCAP' | 'OPCAP0' | 'OPCAP1' | 'OPCAP2' | 'OPCAP3' | 'OFFSETS0' | 'OFFSETS1'
  | 'GENCFG' | 'GENCTRL' | 'GENSTS' | 'INTCAUSE' | 'CMD' | 'CMDSTS' | 'CMDCAP' | 'SWERROR0' | 'SWERROR1' | 'SWERROR2' | 'SWERROR3';

export interface DsaCapabilityValues {
  readonly gencap: bigint;
  readonly wqcap: bigint;
  readonly grpcap: bigint;
  readonly engcap: bigint;
  readonly opcap: bigint;
  /** Default CMDCAP_VALUE. */
  readonly cmdcap?: number;
}

/**
 * The whole BAR 0 as a declaration. Tables follow at GRPCFG_TABLE, WQCFG_TABLE and `msixPermTable`; names are
 * `GRPWQCFG<group>_<qword>`, `GRPENGCFG<group>`, `GRPFLGCFG<group>`, `WQCFG<wq>_<dword>`, `MSIXPERM<vector>`.
 */
export function dsaRegisterSpecs(layout: DsaLayout, values: DsaCapabilityValues): Record<string, RegisterSpec> {
  const permOffset = msixPermTable(layout.wqs);
  const specs: Record<DsaRegisterName, RegisterSpec> = {
    VER: { offset: 0x00, size: 4, reset: BigInt(DSA_VERSION_1) },
    GENCAP: { offset: 0x10, size: 8, reset: values.gencap },
    WQCAP: { offset: 0x20, size: 8, reset: values.wqcap },
    GRPCAP: { offset: 0x30, size: 8, reset: values.grpcap },
    ENGCAP: { offset: 0x38, size: 8, reset: values.engcap },
    OPCAP0: { offset: 0x40, size: 8, reset: values.opcap },
    OPCAP1: { offset: 0x48, size: 8 },
    OPCAP2: { offset: 0x50, size: 8 },
    OPCAP3: { offset: 0x58, size: 8 },
    OFFSETS0: { offset: 0x60, size: 8, reset: BigInt(GRPCFG_TABLE / TABLE_UNIT) | (BigInt(WQCFG_TABLE / TABLE_UNIT) << 16n) | (BigInt(permOffset / TABLE_UNIT) << 32n) },
    OFFSETS1: { offset: 0x68, size: 8 },
    GENCFG: { offset: 0x80, size: 4, rw: 0x10ffn },
    GENCTRL: { offset: 0x88, size: 4, rw: 0x3n },
    GENSTS: { offset: 0x90, size: 4 },
    INTCAUSE: { offset: 0x98, size: 4, w1c: 0x13n },
    CMD: { offset: 0xa0, size: 4, wo: 0x81ff_ffffn },
    CMDSTS: { offset: 0xa8, size: 4 },
    CMDCAP: { offset: 0xb0, size: 4, reset: BigInt(values.cmdcap ?? CMDCAP_VALUE) },
    SWERROR0: { offset: 0xc0, size: 8, w1c: 0x3n },
    SWERROR1: { offset: 0xc8, size: 8 },
    SWERROR2: { offset: 0xd0, size: 8 },
    SWERROR3: { offset: 0xd8, size: 8 },
  };
  // one object that grows: copying hundreds of properties into another costs milliseconds
  const all: Record<string, RegisterSpec> = specs;
  for (let group = 0; group < layout.groups; group++) {
    const base = GRPCFG_TABLE + group * GRPCFG_STRIDE;
    for (let i = 0; i < 4; i++) all[`GRPWQCFG${group}_${i}`] = { offset: base + i * 8, size: 8, rw: 0xffff_ffff_ffff_ffffn };
    all[`GRPENGCFG${group}`] = { offset: base + GRPENGCFG_OFFSET, size: 8, rw: 0xffff_ffff_ffff_ffffn };
    all[`GRPFLGCFG${group}`] = { offset: base + GRPFLGCFG_OFFSET, size: 8, rw: 0x0ff0_ffbfn };
  }
  for (let wq = 0; wq < layout.wqs; wq++) {
    const base = WQCFG_TABLE + wq * WQCFG_STRIDE;
    const rw = [0xffffn, 0xffffn, 0x3fff_fff3n, 0x1ffn];
    for (let i = 0; i < WQCFG_STRIDE / 4; i++) all[`WQCFG${wq}_${i}`] = { offset: base + i * 4, size: 4, ...(rw[i] === undefined ? {} : { rw: rw[i] }) };
  }
  for (let vector = 0; vector < (layout.vectors ?? layout.wqs + 1); vector++) {
    all[`MSIXPERM${vector}`] = { offset: permOffset + vector * MSIXPERM_STRIDE, size: 4, rw: 0xffff_f00cn };
    all[`MSIXPERM${vector}_RSVD`] = { offset: permOffset + vector * MSIXPERM_STRIDE + 4, size: 4 };
  }
  return all;
}
