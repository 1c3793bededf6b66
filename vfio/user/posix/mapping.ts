/**
 * Memory of another process that is mapped into this one. Mappings are made in pieces of at most 1 GiB: longer views
 * end a process under Node 20, and offsets within one stay 32-bit. The views never leave this class, and it forgets
 * them before the memory goes: an access after that is refused, where it would otherwise end the process. What the
 * other side can do to memory that is mapped here is change it, no more, if its file cannot shrink (`descriptor.ts`).
 */
import { Errno } from '../../../sim/errno.js';
import { load32 } from '../../../sim/little-endian.js';
import type { MemoryWindow } from '../transport.js';
import { callError, MAP_SHARED, PROT_READ, PROT_WRITE, type PosixCalls } from './calls.js';

/** As `piecesOf` of client-regions.ts counts them; of its own, since one that is imported makes a load a quarter slower. */
const PIECE_BYTES = 2 ** 30;
/** Tries before an untorn load goes through a 64-bit atomic: the other side may write all the time. */
const LOAD_TRIES = 8;

interface Piece {
  readonly address: number;
  readonly length: number;
  readonly bytes: Uint8Array;
  readonly shorts: Uint16Array;
  readonly words: Int32Array;
  readonly longs: BigInt64Array;
}

/** A cache line: the most that a record has. */
const RECORD_BYTES = 64;
/** Entries whose last word says that they are new. */
const PHASED_BYTES = 16;

export class MappedWindow implements MemoryWindow {
  lo = 0;
  hi = 0;
  private readonly calls: PosixCalls;
  private readonly writable: boolean;
  private readonly sizeBytes: number;
  private pieces: Piece[] = [];

  /**
   * @param offset of the file, whole pages @param sizeBytes whole pages
   * @throws Errno what mmap refuses with; nothing is mapped then
   */
  constructor(calls: PosixCalls, fd: number, offset: number, sizeBytes: number, writable: boolean) {
    this.calls = calls;
    this.writable = writable;
    this.sizeBytes = sizeBytes;
    try {
      for (let at = 0; at < sizeBytes; at += PIECE_BYTES) this.pieces.push(this.mapPiece(fd, offset + at, Math.min(PIECE_BYTES, sizeBytes - at)));
    } catch (error) {
      this.close();
      throw error;
    }
  }

  load64(offset: number): boolean {
    const piece = this.pieceAt(offset, 8);
    if (piece === undefined) return false;
    const { words } = piece, index = (offset % PIECE_BYTES) >>> 2;
    for (let i = 0; i < LOAD_TRIES; i++) {
      const lo = Atomics.load(words, index), hi = Atomics.load(words, index + 1);
      if (Atomics.load(words, index) !== lo) continue;
      this.lo = lo;
      this.hi = hi;
      return true;
    }
    const value = Atomics.load(piece.longs, index >>> 1);
    this.lo = Number(BigInt.asIntN(32, value));
    this.hi = Number(value >> 32n);
    return true;
  }

  /** The high half first: what makes an entry valid stands in the low one. */
  store64(offset: number, lo: number, hi: number): boolean {
    const piece = this.writablePiece(offset, 8);
    if (piece === undefined) return false;
    const index = (offset % PIECE_BYTES) >>> 2;
    Atomics.store(piece.words, index + 1, hi | 0);
    Atomics.store(piece.words, index, lo | 0);
    return true;
  }

  compareExchange64(offset: number, expectLo: number, expectHi: number, lo: number, hi: number): boolean {
    const piece = this.writablePiece(offset, 8);
    if (piece === undefined) return false;
    const expected = signed64(expectLo, expectHi);
    return Atomics.compareExchange(piece.longs, (offset % PIECE_BYTES) >>> 3, expected, signed64(lo, hi)) === expected;
  }

  load(offset: number, size: 1 | 2 | 4): number {
    const piece = this.pieceAt(offset, size);
    if (piece === undefined) return -1;
    const at = offset % PIECE_BYTES;
    if (size === 4) return piece.words[at >>> 2]! >>> 0;
    return size === 1 ? piece.bytes[at]! : piece.shorts[at >>> 1]!;
  }

  store(offset: number, size: 1 | 2 | 4, value: number): boolean {
    const piece = this.writablePiece(offset, size);
    if (piece === undefined) return false;
    const at = offset % PIECE_BYTES;
    if (size === 4) piece.words[at >>> 2] = value;
    else if (size === 1) piece.bytes[at] = value;
    else piece.shorts[at >>> 1] = value;
    return true;
  }

  read(offset: number, target: Uint8Array, targetOffset: number, length: number): boolean {
    if (!this.has(offset, length)) return false;
    for (let done = 0; done < length; ) {
      const { bytes } = this.pieces[Math.floor((offset + done) / PIECE_BYTES)]!, at = (offset + done) % PIECE_BYTES;
      const count = Math.min(length - done, bytes.length - at);
      target.set(bytes.subarray(at, at + count), targetOffset + done);
      done += count;
    }
    return true;
  }

  write(offset: number, source: Uint8Array, sourceOffset: number, length: number): boolean {
    if (!this.writable || !this.has(offset, length)) return false;
    if (length <= RECORD_BYTES && ((offset | length) & 3) === 0 && (offset % PIECE_BYTES) + length <= PIECE_BYTES) {
      this.writeRecord(offset, source, sourceOffset, length);
      return true;
    }
    for (let done = 0; done < length; ) {
      const { bytes } = this.pieces[Math.floor((offset + done) / PIECE_BYTES)]!, at = (offset + done) % PIECE_BYTES;
      const count = Math.min(length - done, bytes.length - at);
      bytes.set(source.subarray(sourceOffset + done, sourceOffset + done + count), at);
      done += count;
    }
    return true;
  }

  /**
   * A processor sees what a device writes into one cache line at once; ours would come in pieces, and some bytes twice
   * (a C library's memmove may store overlapping halves), while another processor already polls them and clears them for
   * the next time. So each word is stored once, and last the one that a poller waits for: the last of an entry of 16 bytes
   * (the phase of NVMe), the first of anything else (the status of a completion record).
   */
  private writeRecord(offset: number, source: Uint8Array, sourceOffset: number, length: number): void {
    const { words } = this.pieces[Math.floor(offset / PIECE_BYTES)]!, first = (offset % PIECE_BYTES) >>> 2, count = length >>> 2;
    for (let i = 0; i < count; i++) {
      const word = length === PHASED_BYTES ? i : count - 1 - i;
      Atomics.store(words, first + word, load32(source, sourceOffset + 4 * word) | 0);
    }
  }

  fill(offset: number, value: number, length: number): boolean {
    if (!this.writable || !this.has(offset, length)) return false;
    for (let done = 0; done < length; ) {
      const { bytes } = this.pieces[Math.floor((offset + done) / PIECE_BYTES)]!, at = (offset + done) % PIECE_BYTES;
      const count = Math.min(length - done, bytes.length - at);
      bytes.fill(value, at, at + count);
      done += count;
    }
    return true;
  }

  close(): void {
    const { pieces } = this;
    this.pieces = [];
    for (const { address, length } of pieces) this.calls.munmap(address, length);
  }

  private has(offset: number, length: number): boolean {
    return this.pieces.length > 0 && offset >= 0 && offset + length <= this.sizeBytes;
  }

  private pieceAt(offset: number, size: number): Piece | undefined {
    return this.has(offset, size) ? this.pieces[Math.floor(offset / PIECE_BYTES)] : undefined;
  }

  private writablePiece(offset: number, size: number): Piece | undefined {
    return this.writable ? this.pieceAt(offset, size) : undefined;
  }

  private mapPiece(fd: number, offset: number, length: number): Piece {
    const { calls, writable } = this;
    const address = calls.mmap(null, length, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, offset);
    if (address === -1) throw callError(calls, `${length} bytes cannot be mapped`);
    try {
      const buffer = calls.view(address, length);
      return { address, length, bytes: new Uint8Array(buffer), shorts: new Uint16Array(buffer), words: new Int32Array(buffer), longs: new BigInt64Array(buffer) };
    } catch (error) {
      calls.munmap(address, length);
      throw new Errno('ENOMEM', `no view of ${length} mapped bytes: ${String(error)}`);
    }
  }
}

function signed64(lo: number, hi: number): bigint {
  return BigInt.asIntN(64, (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0));
}
