/**
 * The checks of a descriptor before anything moves, in the order in which the first that fails is reported:
 * opcode, flags, reserved fields, privilege, completion address, sizes, buffers, interrupt handle. Status codes as in
 * include/uapi/linux/idxd.h.
 */
import { hiOfPage, loOfPage, pageOfWords } from '../../../sim/address.js';
import { NO_PASID } from '../../../host/pci/dma-port.js';
import { FLAG, OPCODE, STATUS, WORD_COMPLETION, WORD_DST, WORD_FLAGS, WORD_HANDLE, WORD_PASID, WORD_SIZE, WORD_SPECIFIC, WORD_SRC, type Status } from '../spec/descriptor.js';
import type { Job } from './job.js';

const COMMON = FLAG.CRAV | FLAG.RCR | FLAG.RCI | FLAG.CRSTS | FLAG.CR_TCS;
const DATA = COMMON | FLAG.BOF | FLAG.ADDR1_TCS | FLAG.ADDR2_TCS;
const DESTINATION = FLAG.CC | FLAG.STORD | FLAG.DSTS;
const CRC = FLAG.CRC_READ_SEED | FLAG.CRC_BYPASS_INVERSION | FLAG.CRC_BYPASS_REFLECTION | FLAG.ADDR3_TCS;

/** Flags that are defined, by opcode; the others are reserved. DRDBK is not advertised (GENCAP). */
const ALLOWED_FLAGS: Readonly<Record<number, number>> = {
  [OPCODE.NOOP]: COMMON,
  [OPCODE.DRAIN]: COMMON,
  [OPCODE.BATCH]: COMMON | FLAG.BOF | FLAG.ADDR1_TCS,
  [OPCODE.MEMMOVE]: DATA | DESTINATION,
  [OPCODE.MEMFILL]: DATA | DESTINATION,
  [OPCODE.COMPARE]: DATA | FLAG.CR,
  [OPCODE.COMPVAL]: DATA | FLAG.CR,
  [OPCODE.DUALCAST]: DATA | DESTINATION | FLAG.ADDR3_TCS | 0x1_0000,
  [OPCODE.CRCGEN]: DATA | CRC,
  [OPCODE.COPY_CRC]: DATA | DESTINATION | CRC,
};

/** Words that must be zero, by opcode (bits 31:0 of words 10 to 15 not used by the operation, and unused addresses). */
const RESERVED_WORDS: Readonly<Record<number, readonly number[]>> = {
  [OPCODE.NOOP]: [4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15],
  [OPCODE.DRAIN]: [4, 5, 6, 7, 8, 10, 11, 12, 13, 14, 15],
  [OPCODE.BATCH]: [6, 7, 10, 11, 12, 13, 14, 15],
  [OPCODE.MEMMOVE]: [10, 11, 12, 13, 14, 15],
  [OPCODE.MEMFILL]: [10, 11, 12, 13, 14, 15],
  [OPCODE.COMPARE]: [11, 12, 13, 14, 15],
  [OPCODE.COMPVAL]: [11, 12, 13, 14, 15],
  [OPCODE.DUALCAST]: [12, 13, 14, 15],
  [OPCODE.CRCGEN]: [6, 7, 11, 14, 15],
  [OPCODE.COPY_CRC]: [11, 14, 15],
};

export interface DeviceLimits {
  /** Privileged Mode Enable of the PASID capability. */
  readonly privilegedAllowed: boolean;
  /** True when the descriptor may use that interrupt handle (MSI-X permission table). */
  handleAllowed(handle: number, job: Job): boolean;
}

/** Flags of the descriptor that are reserved here; 0 when it is fine. */
export function invalidFlags(job: Job): number {
  const flags = job.flags;
  let allowed = ALLOWED_FLAGS[job.opcode]!;
  if (job.batchIndex >= 0) allowed |= FLAG.FENCE;
  if (!job.wq.config.blockOnFault) allowed &= ~FLAG.BOF;
  let invalid = flags & ~allowed;
  if ((flags & FLAG.RCR) !== 0 && (flags & FLAG.CRAV) === 0) invalid |= FLAG.RCR;
  return invalid;
}

/** STATUS.SUCCESS when nothing is wrong. */
export function checkDescriptor(job: Job, limits: DeviceLimits): Status {
  const { words, opcode } = job;
  const reserved = RESERVED_WORDS[opcode];
  if (reserved === undefined) return STATUS.BAD_OPCODE;
  if (job.batchIndex >= 0 && (opcode === OPCODE.BATCH || opcode === OPCODE.DRAIN)) return STATUS.BAD_OPCODE;
  if (invalidFlags(job) !== 0) return STATUS.INVALID_FLAGS;
  if ((words[WORD_PASID]! & 0x7ff0_0000) !== 0 || words[WORD_HANDLE]! >>> 16 !== 0) return STATUS.NOZERO_RESERVE;
  for (const word of reserved) if (words[word] !== 0) return STATUS.NOZERO_RESERVE;
  if ((opcode === OPCODE.COMPARE || opcode === OPCODE.COMPVAL) && words[WORD_SPECIFIC]! >>> 1 !== 0) return STATUS.NOZERO_RESERVE;
  if (job.privileged && job.pasid !== NO_PASID && !limits.privilegedAllowed) return STATUS.PRIV_BAD;
  if ((words[WORD_FLAGS]! & FLAG.CRAV) !== 0 && (words[WORD_COMPLETION]! & 31) !== 0) return STATUS.CRA_ALIGN;
  const size = checkSizes(job);
  if (size !== STATUS.SUCCESS) return size;
  if ((job.flags & FLAG.RCI) !== 0 && (job.ims || !limits.handleAllowed(words[WORD_HANDLE]! & 0xffff, job))) return STATUS.INT_HANDLE_INVAL;
  return STATUS.SUCCESS;
}

function checkSizes(job: Job): Status {
  const { words, opcode, wq } = job;
  const size = words[WORD_SIZE]!;
  switch (opcode) {
    case OPCODE.NOOP:
    case OPCODE.DRAIN:
      return STATUS.SUCCESS;
    case OPCODE.BATCH:
      if (size < 2 || size > wq.config.maxBatch) return STATUS.DESC_CNT_ERANGE;
      return (words[WORD_SRC]! & 63) === 0 ? STATUS.SUCCESS : STATUS.DESCLIST_ALIGN;
  }
  if (size === 0 || size > wq.config.maxTransfer) return STATUS.XFER_ERANGE;
  if (opcode === OPCODE.COPY_CRC && overlaps(words, WORD_SRC, WORD_DST, size)) return STATUS.OVERLAP_BUFFERS;
  if (opcode === OPCODE.DUALCAST) {
    if (((words[WORD_DST]! ^ words[WORD_SPECIFIC]!) & 0xfff) !== 0) return STATUS.DCAST_ERR;
    if (overlaps(words, WORD_SRC, WORD_DST, size) || overlaps(words, WORD_SRC, WORD_SPECIFIC, size) || overlaps(words, WORD_DST, WORD_SPECIFIC, size)) return STATUS.OVERLAP_BUFFERS;
  }
  return STATUS.SUCCESS;
}

/** Bytes from the address at word `from` to the one at word `to`, modulo 2^64, or Infinity when beyond 2^53. */
export function distance(words: Uint32Array, from: number, to: number): number {
  let lo = words[to]! - words[from]!, hi = words[to + 1]! - words[from + 1]!;
  if (lo < 0) {
    lo += 0x1_0000_0000;
    hi -= 1;
  }
  if (hi < 0) hi += 0x1_0000_0000;
  return hi >= 0x20_0000 ? Infinity : hi * 0x1_0000_0000 + lo;
}

function overlaps(words: Uint32Array, a: number, b: number, size: number): boolean {
  return distance(words, a, b) < size || distance(words, b, a) < size;
}

/** A 64-bit address that moves: page number and offset, exact in all of 2^64. */
export class Cursor {
  page = 0;
  offset = 0;

  set(words: Uint32Array, word: number): void {
    this.page = pageOfWords(words[word]!, words[word + 1]!);
    this.offset = words[word]! & 0xfff;
  }

  advance(bytes: number): void {
    const end = this.offset + bytes;
    this.page += Math.floor(end / 4096);
    this.offset = end & 0xfff;
  }

  copy(other: Cursor, bytes = 0): void {
    this.page = other.page;
    this.offset = other.offset;
    if (bytes !== 0) this.advance(bytes);
  }

  get lo(): number {
    return loOfPage(this.page, this.offset);
  }

  get hi(): number {
    return hiOfPage(this.page);
  }
}
