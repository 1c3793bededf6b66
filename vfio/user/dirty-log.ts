/**
 * Which pages of the client's memory the server has written (VFIO_DEVICE_FEATURE_DMA_LOGGING_START, STOP, REPORT as
 * the vfio-user protocol has them: ranges and bits lie in the message). Everything that writes through `ClientMemory`
 * marks; memory for bits is taken where something was written, not where a client says it might be.
 */
import { PAGE_SIZE } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import { load32 } from '../../sim/little-endian.js';
import { checkPayload, load64, LOGGING_CONTROL_SIZE, LOGGING_RANGE_SIZE, LOGGING_REPORT_SIZE, store64 } from './protocol/records.js';

/** Pages of one piece of the log. */
const PIECE_PAGES = 32768;
const MAX_RANGES = 256;

interface Range {
  /** Bytes, end exclusive. */
  readonly start: number;
  readonly end: number;
}

export class DirtyLog {
  /** Writes are logged. */
  active = false;
  private ranges: readonly Range[] = [];
  /** Bits of pages by number of the piece; forgotten when reported. */
  private readonly pieces = new Map<number, Uint8Array>();

  /** `sizeBytes` from `address` on were written; outside of the logged ranges nothing is kept. */
  mark(address: number, sizeBytes: number): void {
    if (this.ranges.length === 0) {
      this.markPages(address, address + sizeBytes);
      return;
    }
    for (const { start, end } of this.ranges) {
      const from = Math.max(start, address), to = Math.min(end, address + sizeBytes);
      if (from < to) this.markPages(from, to);
    }
  }

  /**
   * Begins a log; the page size that is used, 4 KiB, is put into `data`.
   * EINVAL logging already, page size, ranges not of whole pages or overlapping; E2BIG too many.
   */
  start(data: Uint8Array): void {
    checkPayload(data, LOGGING_CONTROL_SIZE, 'DMA_LOGGING_START');
    const pageSize = load64(data, 0, 'page size'), count = load32(data, 8);
    checkPageSize(pageSize);
    if (count > MAX_RANGES) throw new Errno('E2BIG', `${count} ranges, ${MAX_RANGES} can be logged`);
    checkPayload(data, LOGGING_CONTROL_SIZE + count * LOGGING_RANGE_SIZE, 'DMA_LOGGING_START');
    const ranges: Range[] = [];
    for (let i = 0; i < count; i++) {
      const at = LOGGING_CONTROL_SIZE + i * LOGGING_RANGE_SIZE;
      const start = load64(data, at, 'address'), length = load64(data, at + 8, 'length'), end = start + length;
      if (length === 0 || start % PAGE_SIZE !== 0 || length % PAGE_SIZE !== 0 || end > Number.MAX_SAFE_INTEGER) throw new Errno('EINVAL', `logged range ${i} is not made of pages`);
      if (ranges.some((other) => start < other.end && other.start < end)) throw new Errno('EINVAL', `logged range ${i} overlaps another`);
      ranges.push({ start, end });
    }
    if (this.active) throw new Errno('EINVAL', 'a log is running already');
    store64(data, 0, PAGE_SIZE);
    this.active = true;
    this.ranges = ranges;
  }

  /** Ends a log, also when there is none. */
  stop(): void {
    this.active = false;
    this.ranges = [];
    this.pieces.clear();
  }

  /**
   * The request's record with its bitmap behind it; the reported bits are forgotten.
   * EINVAL no log, page size, length; E2BIG a bitmap above `limitBytes`.
   */
  report(data: Uint8Array, limitBytes: number): Uint8Array {
    checkPayload(data, LOGGING_REPORT_SIZE, 'DMA_LOGGING_REPORT');
    const start = load64(data, 0, 'address'), length = load64(data, 8, 'length'), unit = load64(data, 16, 'page size');
    checkPageSize(unit);
    if (length === 0 || start % unit !== 0 || length % unit !== 0 || start + length > Number.MAX_SAFE_INTEGER) throw new Errno('EINVAL', 'the report is not made of pages');
    if (!this.active) throw new Errno('EINVAL', 'no log is running');
    const bitmapBytes = Math.ceil(length / unit / 64) * 8;
    if (LOGGING_REPORT_SIZE + bitmapBytes > limitBytes) throw new Errno('E2BIG', `a bitmap of ${bitmapBytes} bytes does not fit into the reply`);
    const answer = new Uint8Array(LOGGING_REPORT_SIZE + bitmapBytes);
    answer.set(data.subarray(0, LOGGING_REPORT_SIZE));
    this.collect(start / PAGE_SIZE, (start + length) / PAGE_SIZE, unit / PAGE_SIZE, answer.subarray(LOGGING_REPORT_SIZE));
    return answer;
  }

  private collect(first: number, end: number, unitPages: number, bitmap: Uint8Array): void {
    for (const [index, bits] of this.pieces) {
      const from = Math.max(first, index * PIECE_PAGES), to = Math.min(end, (index + 1) * PIECE_PAGES);
      for (let page = from; page < to; page++) {
        const at = page - index * PIECE_PAGES;
        if ((bits[at >>> 3]! & (1 << (at & 7))) === 0) continue;
        bits[at >>> 3]! &= ~(1 << (at & 7));
        const bit = Math.floor((page - first) / unitPages);
        bitmap[Math.floor(bit / 8)]! |= 1 << (bit % 8);
      }
    }
  }

  private markPages(start: number, end: number): void {
    const last = Math.floor((end - 1) / PAGE_SIZE);
    for (let page = Math.floor(start / PAGE_SIZE); page <= last; page++) {
      const index = Math.floor(page / PIECE_PAGES), at = page - index * PIECE_PAGES;
      let bits = this.pieces.get(index);
      if (bits === undefined) this.pieces.set(index, (bits = new Uint8Array(PIECE_PAGES / 8)));
      bits[at >>> 3]! |= 1 << (at & 7);
    }
  }
}

/** EINVAL not a power of two, or below 4 KiB. */
function checkPageSize(value: number): void {
  if (value < PAGE_SIZE || !Number.isInteger(Math.log2(value))) throw new Errno('EINVAL', `${value} is no page size of at least ${PAGE_SIZE}`);
}
