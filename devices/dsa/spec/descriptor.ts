/**
 * The 64-byte descriptor and the 32-byte completion record of the Data Streaming Accelerator: opcodes, flags, status
 * codes. Facts from Linux `include/uapi/linux/idxd.h`; flags of the CRC operations from intel/DML (hardware path).
 * Left out: delta records, DIF, cache flush, event log, batch continuation.
 */
import { bit, bits, struct } from '../../../sim/layout.js';

export const DESCRIPTOR_SIZE = 64;
export const COMPLETION_SIZE = 32;

export const DESCRIPTOR = struct('DSA_DESC', 64, {
  Pasid: bits(19, 0), Priv: bit(31), Flags: bits(55, 32), Opcode: bits(63, 56),
  CompletionAddr: bits(127, 64),
  /** Or the pattern of a fill, or the descriptor list of a batch. */
  SrcAddr: bits(191, 128),
  /** Or the second source of a compare, or the pattern of a compare with pattern. */
  DstAddr: bits(255, 192),
  /** Or the descriptor count of a batch. */
  XferSize: bits(287, 256),
  IntHandle: bits(303, 288),
  OpSpecific0: bits(351, 320), OpSpecific1: bits(383, 352), OpSpecific2: bits(447, 384), OpSpecific3: bits(511, 448),
});

/** Indices of a descriptor's 32-bit words. */
export const WORD_PASID = 0;
export const WORD_FLAGS = 1;
export const WORD_COMPLETION = 2;
export const WORD_SRC = 4;
export const WORD_DST = 6;
export const WORD_SIZE = 8;
export const WORD_HANDLE = 9;
/** Expected result of compares; CRC seed; second destination of a dualcast (two words). */
export const WORD_SPECIFIC = 10;
/** Address of a CRC seed in memory (two words). */
export const WORD_SEED_ADDR = 12;

export const OPCODE = {
  NOOP: 0x00, BATCH: 0x01, DRAIN: 0x02, MEMMOVE: 0x03, MEMFILL: 0x04, COMPARE: 0x05, COMPVAL: 0x06, DUALCAST: 0x09,
  CRCGEN: 0x10, COPY_CRC: 0x11,
} as const;
export type Opcode = (typeof OPCODE)[keyof typeof OPCODE];

export const OPCODE_NAMES: readonly string[] = (() => {
  const names: string[] = [];
  for (const [name, code] of Object.entries(OPCODE)) names[code] = name;
  return Array.from({ length: 256 }, (_, code) => names[code] ?? `0x${code.toString(16)}`);
})();

/** OPCAP: bit n is set when opcode n is supported. */
export const OPCAP_VALUE = Object.values(OPCODE).reduce((value, code) => value | (1n << BigInt(code)), 0n);

export const FLAG = {
  /** In a batch: wait for the descriptors before this one. */
  FENCE: 0x0001,
  /** Block on fault. */
  BOF: 0x0002,
  /** The completion record address is valid. */
  CRAV: 0x0004,
  /** Write a completion record also on success. */
  RCR: 0x0008,
  /** Raise a completion interrupt. */
  RCI: 0x0010,
  /** Completion record steering tag selector. */
  CRSTS: 0x0020,
  /** Check result: compare it with the expected one. */
  CR: 0x0080,
  /** Cache control: a hint where data goes. */
  CC: 0x0100,
  ADDR1_TCS: 0x0200, ADDR2_TCS: 0x0400, ADDR3_TCS: 0x0800, CR_TCS: 0x1000,
  STORD: 0x2000,
  /** Destination readback. */
  DRDBK: 0x4000,
  DSTS: 0x8000,
  /** CRC: the seed lies in memory at the seed address. */
  CRC_READ_SEED: 0x1_0000,
  /** CRC: neither invert nor reflect seed and result. */
  CRC_BYPASS_INVERSION: 0x2_0000,
  /** CRC: do not reflect the data's bits. */
  CRC_BYPASS_REFLECTION: 0x4_0000,
} as const;

export const STATUS = {
  NONE: 0, SUCCESS: 0x01, SUCCESS_PRED: 0x02, PAGE_FAULT_NOBOF: 0x03, PAGE_FAULT_IR: 0x04, BATCH_FAIL: 0x05, BATCH_PAGE_FAULT: 0x06,
  BAD_OPCODE: 0x10, INVALID_FLAGS: 0x11, NOZERO_RESERVE: 0x12, XFER_ERANGE: 0x13, DESC_CNT_ERANGE: 0x14, OVERLAP_BUFFERS: 0x16,
  DCAST_ERR: 0x17, DESCLIST_ALIGN: 0x18, INT_HANDLE_INVAL: 0x19, CRA_XLAT: 0x1a, CRA_ALIGN: 0x1b, ADDR_ALIGN: 0x1c, PRIV_BAD: 0x1d,
  HW_ERR: 0x20, TRANSLATION_FAIL: 0x22,
} as const;
export type Status = (typeof STATUS)[keyof typeof STATUS];
export const STATUS_MASK = 0x7f;
/** The faulting access was a write. */
export const STATUS_WRITE = 0x80;

export const STATUS_NAMES: readonly string[] = (() => {
  const names: string[] = [];
  for (const [name, code] of Object.entries(STATUS)) names[code] = name;
  return Array.from({ length: 128 }, (_, code) => names[code] ?? `0x${code.toString(16)}`);
})();

export const COMPLETION = struct('DSA_COMPLETION', 32, {
  Status: bits(7, 0), Result: bits(15, 8), BytesCompleted: bits(63, 32), FaultAddr: bits(127, 64),
  /** With INVALID_FLAGS: the flags that were. Of CRC operations: the CRC. */
  Specific0: bits(159, 128), Specific1: bits(191, 160),
});

/** Result byte of a compare. */
export const RESULT_EQUAL = 0;
export const RESULT_DIFFERENT = 1;
/** Result byte of a partial copy that ran from the last byte to the first. */
export const RESULT_BACKWARD = 1;
