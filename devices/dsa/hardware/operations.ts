/**
 * What the opcodes do with memory. An operation fills the job's status, result, bytes and fault; nothing here writes
 * completion records. Data moves in chunks through the accessor, so that a fault in the middle leaves an exact
 * number of completed bytes behind. An aborted job stops between two chunks.
 * Copies of overlapping buffers whose destination lies above the source run from the last byte to the first and say
 * so in the result (GENCAP.OverlapCopy).
 */
import { assert } from '../../../sim/assert.js';
import type { Steps } from '../../../sim/task.js';
import {
  FLAG, OPCODE, RESULT_BACKWARD, RESULT_DIFFERENT, RESULT_EQUAL, STATUS, STATUS_WRITE, WORD_DST, WORD_SEED_ADDR, WORD_SPECIFIC, WORD_SRC,
} from '../spec/descriptor.js';
import { ACCESS_ERROR, ACCESS_FAULT, ACCESS_OK, ACCESS_REFUSED, type AccessOutcome, type MemoryAccess } from './access.js';
import { crcEnd, crcStart, crcUpdate, crcUpdateUnreflected } from './crc32c.js';
import type { Job } from './job.js';
import { Cursor, distance } from './validate.js';

/** Bytes moved at once. */
export const CHUNK_BYTES = 64 * 1024;

export class OperationUnit {
  private readonly access: MemoryAccess;
  /** As large as the jobs so far needed: accelerators have hundreds of these. */
  private first = new Uint8Array(0);
  private second: Uint8Array | undefined;
  private readonly source = new Cursor();
  private readonly target = new Cursor();
  private readonly target2 = new Cursor();
  /** Scratch for the address of a fault. */
  private readonly at = new Cursor();

  constructor(access: MemoryAccess) {
    this.access = access;
  }

  /** Runs the job's operation to its end; afterwards `job.status` is its completion status, 0 when it was cut off. */
  *run(job: Job): Steps {
    job.status = STATUS.SUCCESS;
    if (job.opcode === OPCODE.NOOP) return;
    this.makeRoom(job.size);
    switch (job.opcode) {
      case OPCODE.MEMMOVE: return yield* this.memmove(job);
      case OPCODE.MEMFILL: return yield* this.fill(job);
      case OPCODE.COMPARE: return yield* this.compare(job);
      case OPCODE.COMPVAL: return yield* this.comparePattern(job);
      case OPCODE.DUALCAST: return yield* this.dualcast(job);
      case OPCODE.CRCGEN: return yield* this.crc(job, false);
      case OPCODE.COPY_CRC: return yield* this.crc(job, true);
      default: assert(false, `opcode ${job.opcode} passed the checks`);
    }
  }

  private *memmove(job: Job): Steps {
    const ahead = distance(job.words, WORD_SRC, WORD_DST);
    if (ahead > 0 && ahead < job.size) return yield* this.moveBackward(job);
    const { source, target, first } = this;
    source.set(job.words, WORD_SRC);
    target.set(job.words, WORD_DST);
    while (job.bytes < job.size) {
      const length = Math.min(CHUNK_BYTES, job.size - job.bytes);
      const outcome = yield* this.read(job, source, first, length);
      const have = outcome === ACCESS_OK ? length : this.access.doneBytes;
      if (have > 0 && !(yield* this.store(job, target, first, have))) return;
      if (outcome !== ACCESS_OK) return this.fail(job, outcome, source, have, false);
      source.advance(length);
    }
  }

  /** Pieces lie within one page of each side, so that each is moved whole or not at all. */
  private *moveBackward(job: Job): Steps {
    const { source, target, first } = this;
    job.result = RESULT_BACKWARD;
    let left = job.size;
    while (left > 0) {
      source.set(job.words, WORD_SRC);
      source.advance(left);
      target.set(job.words, WORD_DST);
      target.advance(left);
      const length = Math.min(left, source.offset === 0 ? 4096 : source.offset, target.offset === 0 ? 4096 : target.offset);
      left -= length;
      source.set(job.words, WORD_SRC);
      source.advance(left);
      const read = yield* this.read(job, source, first, length);
      if (read !== ACCESS_OK) return this.fail(job, read, source, 0, false);
      target.set(job.words, WORD_DST);
      target.advance(left);
      const written = yield* this.write(job, target, first, length);
      if (written !== ACCESS_OK) return this.fail(job, written, target, 0, true);
      job.bytes += length;
    }
    job.result = 0;
  }

  private *fill(job: Job): Steps {
    const { target, first } = this;
    const pattern = patternBytes(job, WORD_SRC);
    const span = Math.min(CHUNK_BYTES, Math.ceil(job.size / 8) * 8);
    first.set(pattern);
    for (let filled = 8; filled < span; filled *= 2) first.copyWithin(filled, 0, Math.min(filled, span - filled));
    target.set(job.words, WORD_DST);
    while (job.bytes < job.size) {
      // chunks are multiples of 8 bytes, so each begins with the pattern's first byte
      if (!(yield* this.store(job, target, first, Math.min(CHUNK_BYTES, job.size - job.bytes)))) return;
    }
  }

  private *compare(job: Job): Steps {
    const { source, target, first } = this;
    const second = this.secondBuffer();
    source.set(job.words, WORD_SRC);
    target.set(job.words, WORD_DST);
    while (job.bytes < job.size) {
      const length = Math.min(CHUNK_BYTES, job.size - job.bytes);
      const readA = yield* this.read(job, source, first, length);
      const haveA = readA === ACCESS_OK ? length : this.access.doneBytes;
      const readB = haveA === 0 ? ACCESS_OK : yield* this.read(job, target, second, haveA);
      const have = readB === ACCESS_OK ? haveA : this.access.doneBytes;
      let same = 0;
      while (same < have && first[same] === second[same]) same++;
      job.bytes += same;
      if (same < have) return this.finishCompare(job, RESULT_DIFFERENT);
      if (readB !== ACCESS_OK) return this.fail(job, readB, target, have, false);
      if (readA !== ACCESS_OK) return this.fail(job, readA, source, have, false);
      source.advance(length);
      target.advance(length);
    }
    this.finishCompare(job, RESULT_EQUAL);
  }

  private *comparePattern(job: Job): Steps {
    const { source, first } = this;
    const pattern = patternBytes(job, WORD_DST);
    source.set(job.words, WORD_SRC);
    while (job.bytes < job.size) {
      const length = Math.min(CHUNK_BYTES, job.size - job.bytes);
      const outcome = yield* this.read(job, source, first, length);
      const have = outcome === ACCESS_OK ? length : this.access.doneBytes;
      let same = 0;
      while (same < have && first[same] === pattern[same & 7]) same++;
      job.bytes += same;
      if (same < have) return this.finishCompare(job, RESULT_DIFFERENT);
      if (outcome !== ACCESS_OK) return this.fail(job, outcome, source, have, false);
      source.advance(length);
    }
    this.finishCompare(job, RESULT_EQUAL);
  }

  /** With the Check Result flag, a result other than the expected one is success with a false predicate. */
  private finishCompare(job: Job, result: number): void {
    job.result = result;
    if ((job.flags & FLAG.CR) !== 0 && (job.words[WORD_SPECIFIC]! & 1) !== result) job.status = STATUS.SUCCESS_PRED;
  }

  private *dualcast(job: Job): Steps {
    const { source, target, target2, first } = this;
    source.set(job.words, WORD_SRC);
    target.set(job.words, WORD_DST);
    target2.set(job.words, WORD_SPECIFIC);
    while (job.bytes < job.size) {
      const length = Math.min(CHUNK_BYTES, job.size - job.bytes);
      const read = yield* this.read(job, source, first, length);
      let have = read === ACCESS_OK ? length : this.access.doneBytes;
      const read0 = have;
      let failed: AccessOutcome = read;
      let where = source, isWrite = false;
      for (const destination of [target, target2]) {
        if (have === 0) break;
        const written = yield* this.write(job, destination, first, have);
        if (written === ACCESS_OK) continue;
        have = Math.min(have, this.access.doneBytes);
        failed = written;
        where = destination;
        isWrite = true;
      }
      job.bytes += have;
      if (failed !== ACCESS_OK) return this.fail(job, failed, where, isWrite ? have : read0, isWrite);
      source.advance(length);
      target.advance(length);
      target2.advance(length);
    }
  }

  private *crc(job: Job, copy: boolean): Steps {
    const { source, target, first } = this;
    const bypassInversion = (job.flags & FLAG.CRC_BYPASS_INVERSION) !== 0;
    const update = (job.flags & FLAG.CRC_BYPASS_REFLECTION) !== 0 ? crcUpdateUnreflected : crcUpdate;
    let seed = job.words[WORD_SPECIFIC]!;
    if ((job.flags & FLAG.CRC_READ_SEED) !== 0) {
      source.set(job.words, WORD_SEED_ADDR);
      const outcome = yield* this.read(job, source, first, 4);
      if (outcome !== ACCESS_OK) return this.fail(job, outcome, source, 0, false);
      seed = (first[0]! | (first[1]! << 8) | (first[2]! << 16) | (first[3]! << 24)) >>> 0;
    }
    let state = crcStart(seed, bypassInversion);
    job.specific = seed;
    source.set(job.words, WORD_SRC);
    target.set(job.words, WORD_DST);
    while (job.bytes < job.size) {
      const length = Math.min(CHUNK_BYTES, job.size - job.bytes);
      const outcome = yield* this.read(job, source, first, length);
      const have = outcome === ACCESS_OK ? length : this.access.doneBytes;
      if (copy && have > 0) {
        const before = job.bytes;
        const stored = yield* this.store(job, target, first, have);
        state = update(state, first, 0, job.bytes - before);
        job.specific = crcEnd(state, bypassInversion);
        if (!stored) return;
      } else {
        state = update(state, first, 0, have);
        job.specific = crcEnd(state, bypassInversion);
        job.bytes += have;
      }
      if (outcome !== ACCESS_OK) return this.fail(job, outcome, source, have, false);
      source.advance(length);
    }
  }

  /** Writes `length` bytes of the buffer at the cursor, counts them and advances; false when it failed. */
  private *store(job: Job, target: Cursor, buffer: Uint8Array, length: number): Steps<boolean> {
    const outcome = yield* this.write(job, target, buffer, length);
    const done = outcome === ACCESS_OK ? length : this.access.doneBytes;
    job.bytes += done;
    if (outcome !== ACCESS_OK) {
      this.fail(job, outcome, target, done, true);
      return false;
    }
    target.advance(length);
    return true;
  }

  private read(job: Job, at: Cursor, buffer: Uint8Array, length: number): Steps<AccessOutcome> {
    return this.access.read(job, at.page, at.offset, buffer, 0, length, blocks(job));
  }

  private write(job: Job, at: Cursor, buffer: Uint8Array, length: number): Steps<AccessOutcome> {
    return this.access.write(job, at.page, at.offset, buffer, 0, length, blocks(job));
  }

  private fail(job: Job, outcome: AccessOutcome, base: Cursor, moved: number, write: boolean): void {
    this.at.copy(base, moved);
    job.fault(accessStatus(outcome, write), this.at.page, this.at.offset);
  }

  private makeRoom(jobBytes: number): void {
    const length = Math.min(CHUNK_BYTES, Math.max(4096, 2 ** Math.ceil(Math.log2(jobBytes))));
    if (this.first.length >= length) return;
    this.first = new Uint8Array(length);
    this.second = undefined;
  }

  private secondBuffer(): Uint8Array {
    return (this.second ??= new Uint8Array(this.first.length));
  }
}

/** Whether the descriptor waits for pages; the checks have refused the flag on a queue that may not block. */
export function blocks(job: Job): boolean {
  return (job.flags & FLAG.BOF) !== 0;
}

/** Completion status of an access that failed; 0 when the job was cut off. */
export function accessStatus(outcome: AccessOutcome, write: boolean): number {
  const direction = write ? STATUS_WRITE : 0;
  switch (outcome) {
    case ACCESS_FAULT: return STATUS.PAGE_FAULT_NOBOF | direction;
    case ACCESS_REFUSED: return STATUS.PAGE_FAULT_IR | direction;
    case ACCESS_ERROR: return STATUS.TRANSLATION_FAIL | direction;
    default: return 0;
  }
}

function patternBytes(job: Job, word: number): Uint8Array {
  const bytes = new Uint8Array(8);
  for (let i = 0; i < 8; i++) bytes[i] = (job.words[word + (i >> 2)]! >>> (8 * (i & 3))) & 0xff;
  return bytes;
}
