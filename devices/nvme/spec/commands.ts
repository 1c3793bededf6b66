/**
 * Submission and completion queue entries, opcodes and status codes (NVMe 1.4 sections 4.2, 4.6, 5, 6; numbers agree
 * with Linux' include/linux/nvme.h and SPDK's nvme_spec.h). An entry is handled as 32-bit words.
 */
import { load32, store32 } from '../../../sim/little-endian.js';
import { CQE_SIZE, SQE_SIZE } from './registers.js';

// words of a submission queue entry
export const DW_OPCODE = 0;
export const DW_NSID = 1;
export const DW_PRP1 = 6;
export const DW_PRP2 = 8;
export const DW10 = 10;
export const DW11 = 11;
export const DW12 = 12;
export const DW13 = 13;
export const SQE_WORDS = SQE_SIZE / 4;

/** Word 0: FUSE and PSDT (SGLs instead of PRPs). */
export const FUSE_MASK = 0x0000_0300;
export const PSDT_MASK = 0x0000_c000;

export const ADMIN = {
  DELETE_SQ: 0x00, CREATE_SQ: 0x01, GET_LOG_PAGE: 0x02, DELETE_CQ: 0x04, CREATE_CQ: 0x05, IDENTIFY: 0x06, ABORT: 0x08, SET_FEATURES: 0x09, GET_FEATURES: 0x0a,
  ASYNC_EVENT: 0x0c,
} as const;

export const IO = { FLUSH: 0x00, WRITE: 0x01, READ: 0x02, COMPARE: 0x05, WRITE_ZEROES: 0x08, DSM: 0x09 } as const;

/** Word 11 of Create I/O Completion Queue and Create I/O Submission Queue. */
export const QUEUE_PC = 1;
export const CQ_IEN = 2;
/** Word 12 of reads and writes: force unit access. */
export const RW_FUA = 0x4000_0000;
/** Word 11 of Dataset Management. */
export const DSM_DEALLOCATE = 4;
export const DSM_RANGE_SIZE = 16;

export const NSID_ALL = 0xffff_ffff;

/** Status code and status code type (bits 10:8), as they stand in the status field without phase. */
export const STATUS = {
  SUCCESS: 0x000, INVALID_OPCODE: 0x001, INVALID_FIELD: 0x002, CID_CONFLICT: 0x003, DATA_TRANSFER: 0x004, INTERNAL: 0x006, ABORT_REQUESTED: 0x007, ABORT_SQ_DELETED: 0x008,
  INVALID_NAMESPACE: 0x00b, SEQUENCE: 0x00c, INVALID_PRP_OFFSET: 0x013, WRITE_PROTECTED: 0x020, LBA_RANGE: 0x080,
  CQ_INVALID: 0x100, QID_INVALID: 0x101, QUEUE_SIZE: 0x102, ABORT_LIMIT: 0x103, ASYNC_LIMIT: 0x105, INVALID_VECTOR: 0x108, INVALID_LOG_PAGE: 0x109, INVALID_QUEUE_DELETION: 0x10c,
  FEATURE_NOT_SAVEABLE: 0x10d, FEATURE_NOT_CHANGEABLE: 0x10e, FEATURE_NOT_NAMESPACE_SPECIFIC: 0x10f,
  WRITE_FAULT: 0x280, READ_ERROR: 0x281, COMPARE_FAILED: 0x285,
} as const;
/** Do not retry. */
export const DNR = 0x4000;
export const STATUS_MASK = 0x07ff;

const NAMES = new Map<number, string>(Object.entries(STATUS).map(([name, code]) => [code, name]));

/** `LBA_RANGE`, or the number of one without a name here. */
export function statusName(status: number): string {
  const code = status & STATUS_MASK;
  return NAMES.get(code) ?? `0x${code.toString(16)}`;
}

/** Asynchronous events: type in bits 2:0 of the result, information in 15:8, log page in 23:16 (section 5.2.1). */
export const EVENT = { ERROR: 0, SMART: 1, INVALID_DOORBELL: 0, INVALID_DOORBELL_VALUE: 1, TEMPERATURE: 1 } as const;

export interface CommandFields {
  readonly opcode: number;
  readonly cid?: number;
  readonly nsid?: number;
  readonly prp1?: number;
  readonly prp2?: number;
  /** Words 10 to 15. */
  readonly cdw?: readonly number[];
}

/** 64 bytes. Addresses are plain numbers below 2^53. */
export function encodeCommand(fields: CommandFields): Uint8Array {
  const bytes = new Uint8Array(SQE_SIZE);
  store32(bytes, 0, fields.opcode | ((fields.cid ?? 0) << 16));
  store32(bytes, 4, fields.nsid ?? 0);
  storeAddress(bytes, 4 * DW_PRP1, fields.prp1 ?? 0);
  storeAddress(bytes, 4 * DW_PRP2, fields.prp2 ?? 0);
  fields.cdw?.forEach((word, i) => store32(bytes, 4 * (DW10 + i), word));
  return bytes;
}

/** Words 10 to 12 of a read or write. @param blocks 1..65536 */
export function blockWords(lba: number, blocks: number): [number, number, number] {
  return [lba % 0x1_0000_0000, Math.floor(lba / 0x1_0000_0000), blocks - 1];
}

/** Eight bytes, little-endian. */
export function storeAddress(bytes: Uint8Array, at: number, address: number): void {
  store32(bytes, at, address % 0x1_0000_0000);
  store32(bytes, at + 4, Math.floor(address / 0x1_0000_0000));
}

export interface Completion {
  readonly result: number;
  readonly sqHead: number;
  readonly sqId: number;
  readonly cid: number;
  /** Status code, its type, More and DNR; without phase. */
  readonly status: number;
  readonly phase: number;
}

/** `bytes` holds the entry at `offset`. */
export function decodeCompletion(bytes: Uint8Array, offset = 0): Completion {
  const dw2 = load32(bytes, offset + 8), dw3 = load32(bytes, offset + 12);
  return { result: load32(bytes, offset), sqHead: dw2 & 0xffff, sqId: dw2 >>> 16, cid: dw3 & 0xffff, status: dw3 >>> 17, phase: (dw3 >>> 16) & 1 };
}

/** Writes an entry of 16 bytes. */
export function encodeCompletion(bytes: Uint8Array, { result, sqHead, sqId, cid, status, phase }: Completion): void {
  bytes.fill(0, 0, CQE_SIZE);
  store32(bytes, 0, result);
  store32(bytes, 8, sqHead | (sqId << 16));
  store32(bytes, 12, cid | (((status << 1) | phase) << 16));
}
