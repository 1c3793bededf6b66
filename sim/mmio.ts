/**
 * What software sees of a device: a window of registers. Values are 32-bit halves; an 8-byte read returns the low
 * half and leaves the high half in `high`.
 */
import { toU64, loOf, hiOf } from './address.js';
import { load32 } from './little-endian.js';

export type AccessSize = 1 | 2 | 4 | 8;

/** Who executes an ENQCMD: the CPU model inserts both into the 64 bytes (Intel SDM, ENQCMD and ENQCMDS). */
export type EnqueueResult = 'accepted' | 'retry';

export interface Mmio {
  /** High half of the last 8-byte read. */
  readonly high: number;
  /** Unsigned low 32 bits (or the whole value of a smaller access). Unclaimed offsets read as all ones. */
  read(offset: number, size: AccessSize): number;
  write(offset: number, size: AccessSize, lo: number, hi?: number): void;
  /** A 64-byte posted write (MOVDIR64B), `offset` aligned to 64. */
  write64(offset: number, bytes: Uint8Array): void;
  /** A 64-byte non-posted enqueue (ENQCMD); PASID and privilege are already in the first 4 bytes. */
  enqueue64(offset: number, bytes: Uint8Array): EnqueueResult;
}

export function read64(mmio: Mmio, offset: number): bigint {
  const lo = mmio.read(offset, 8);
  return toU64(lo, mmio.high);
}

export function write64(mmio: Mmio, offset: number, value: bigint): void {
  mmio.write(offset, 8, loOf(value), hiOf(value));
}

/** Base of windows that take only plain accesses: 64-byte writes are split, enqueues are refused. */
export abstract class PlainMmio implements Mmio {
  high = 0;
  abstract read(offset: number, size: AccessSize): number;
  abstract write(offset: number, size: AccessSize, lo: number, hi?: number): void;

  write64(offset: number, bytes: Uint8Array): void {
    for (let i = 0; i < 64; i += 8) this.write(offset + i, 8, load32(bytes, i), load32(bytes, i + 4));
  }

  enqueue64(_offset: number, _bytes: Uint8Array): EnqueueResult {
    return 'retry';
  }
}
