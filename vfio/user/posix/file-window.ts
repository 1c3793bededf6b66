/**
 * Memory of another process that is reached through its file, by pread and pwrite: slower than a mapping, but a file
 * that shrinks under it makes an access fail where a mapping would end this process with SIGBUS. Left out: atomicity
 * against the other side; a compare-and-exchange is a read and a write.
 */
import { load32, store32 } from '../../../sim/little-endian.js';
import type { MemoryWindow } from '../transport.js';
import type { PosixCalls } from './calls.js';

const FILL_PIECE = 65536;

export class FileWindow implements MemoryWindow {
  lo = 0;
  hi = 0;
  private readonly calls: PosixCalls;
  private readonly start: number;
  private readonly sizeBytes: number;
  private readonly writable: boolean;
  private readonly word = new Uint8Array(8);
  /** -1: closed. */
  private fd: number;

  /** Owns the descriptor. */
  constructor(calls: PosixCalls, fd: number, offset: number, sizeBytes: number, writable: boolean) {
    this.calls = calls;
    this.fd = fd;
    this.start = offset;
    this.sizeBytes = sizeBytes;
    this.writable = writable;
  }

  load64(offset: number): boolean {
    const { word } = this;
    if (!this.get(offset, word, 8)) return false;
    this.lo = load32(word, 0) | 0;
    this.hi = load32(word, 4) | 0;
    return true;
  }

  store64(offset: number, lo: number, hi: number): boolean {
    const { word } = this;
    store32(word, 0, lo);
    store32(word, 4, hi);
    return this.put(offset, word, 8);
  }

  compareExchange64(offset: number, expectLo: number, expectHi: number, lo: number, hi: number): boolean {
    if (!this.writable || !this.load64(offset) || this.lo !== (expectLo | 0) || this.hi !== (expectHi | 0)) return false;
    return this.store64(offset, lo, hi);
  }

  load(offset: number, size: 1 | 2 | 4): number {
    const { word } = this;
    word.fill(0, 0, 4);
    return this.get(offset, word, size) ? load32(word, 0) : -1;
  }

  store(offset: number, size: 1 | 2 | 4, value: number): boolean {
    store32(this.word, 0, value);
    return this.put(offset, this.word, size);
  }

  read(offset: number, target: Uint8Array, targetOffset: number, length: number): boolean {
    return length === 0 || this.get(offset, target.subarray(targetOffset, targetOffset + length), length);
  }

  write(offset: number, source: Uint8Array, sourceOffset: number, length: number): boolean {
    return length === 0 || this.put(offset, source.subarray(sourceOffset, sourceOffset + length), length);
  }

  fill(offset: number, value: number, length: number): boolean {
    const bytes = new Uint8Array(Math.min(length, FILL_PIECE)).fill(value);
    for (let done = 0; done < length; done += bytes.length) {
      if (!this.write(offset + done, bytes, 0, Math.min(bytes.length, length - done))) return false;
    }
    return true;
  }

  close(): void {
    if (this.fd >= 0) this.calls.close(this.fd);
    this.fd = -1;
  }

  private get(offset: number, target: Uint8Array, length: number): boolean {
    if (this.fd < 0 || offset < 0 || offset + length > this.sizeBytes) return false;
    return this.calls.pread(this.fd, target, length, this.start + offset) === length;
  }

  private put(offset: number, source: Uint8Array, length: number): boolean {
    if (this.fd < 0 || !this.writable || offset < 0 || offset + length > this.sizeBytes) return false;
    return this.calls.pwrite(this.fd, source, length, this.start + offset) === length;
  }
}
