/**
 * Which pages a device has written (VFIO_DEVICE_FEATURE_DMA_LOGGING_START, STOP, REPORT of include/uapi/linux/vfio.h;
 * checks as `vfio_ioctl_device_feature_logging_start` and `…_report` of drivers/vfio/vfio_main.c). The device, or the
 * driver that stands for it, says `mark`; a report gives bits and forgets them. One bitmap for each logged range.
 */
import { PAGE_SIZE } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import type { Trace, TraceKind } from '../../sim/trace.js';
import type { VfioFeatureRequest } from '../device.js';
import {
  FEATURE_DMA_LOGGING_CONTROL as CONTROL, FEATURE_DMA_LOGGING_RANGE as RANGE, FEATURE_DMA_LOGGING_REPORT as REPORT,
  VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, VFIO_DEVICE_FEATURE_DMA_LOGGING_START, VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP,
} from '../uapi/migration.js';
import { bytesOf, wordsOfBytes } from '../uapi/fields.js';
import { copyFromUser, copyToUser, wordsFromUser } from '../uapi/user-memory.js';
import { checkFeature } from './feature-check.js';
import { SparseBits } from './sparse-bits.js';

/** What fits into a page. */
export const MAX_LOGGED_RANGES = PAGE_SIZE / RANGE.sizeBytes;
/** Largest unit in which this implementation keeps a log. */
const MAX_PAGE_SIZE = 2 ** 30;

interface LoggedRange {
  /** IOVAs, end exclusive. */
  readonly start: number;
  readonly end: number;
  /** One bit for each page of the log: the range may be all of the address space. */
  readonly bits: SparseBits;
}

export interface DmaLoggingOptions {
  readonly device: string;
  readonly trace?: Trace;
  /** Most ranges the device keeps apart; default 256. */
  readonly maxRanges?: number;
}

export class DmaLogging {
  private readonly device: string;
  private readonly trace: Trace | undefined;
  private readonly kind: TraceKind | undefined;
  private readonly maxRanges: number;
  private ranges: readonly LoggedRange[] = [];
  private pageSize = PAGE_SIZE;

  constructor(options: DmaLoggingOptions) {
    this.device = options.device;
    this.trace = options.trace;
    this.kind = options.trace?.define('vfio:dma_logging', [['device', 'str'], ['what', 'str'], ['ranges', 'dec'], ['pages', 'dec']]);
    this.maxRanges = Math.min(options.maxRanges ?? MAX_LOGGED_RANGES, MAX_LOGGED_RANGES);
  }

  get active(): boolean {
    return this.ranges.length > 0;
  }

  /** The device wrote `sizeBytes` from `iova` on; what lies outside of the logged ranges is not kept. */
  mark(iova: number, sizeBytes: number): void {
    const { ranges, pageSize } = this;
    for (let i = 0; i < ranges.length; i++) {
      const range = ranges[i]!;
      const from = Math.max(iova, range.start), to = Math.min(iova + sizeBytes, range.end);
      if (from >= to) continue;
      const last = Math.floor((to - 1 - range.start) / pageSize);
      for (let page = Math.floor((from - range.start) / pageSize); page <= last; page++) range.bits.set(page);
    }
  }

  /** Ends a log, also when there is none: the device was reset or closed. */
  stop(): void {
    if (this.active) this.note('stop', 0);
    this.ranges = [];
  }

  /** Bytes written over `request.data` (START answers with the page size that is used); undefined for another feature. */
  *feature(request: VfioFeatureRequest): Steps<number | undefined> {
    switch (request.feature) {
      case VFIO_DEVICE_FEATURE_DMA_LOGGING_START:
        return checkFeature(request, 'set', CONTROL.sizeBytes) ? yield* this.start(request) : 0;
      case VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP:
        if (checkFeature(request, 'set', 0)) this.stop();
        return 0;
      case VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT:
        return checkFeature(request, 'get', REPORT.sizeBytes) ? yield* this.report(request) : 0;
      default:
        return undefined;
    }
  }

  /** EINVAL no range, overlap, not aligned, logging already; E2BIG more than a page of ranges; EOVERFLOW; EFAULT. */
  private *start(request: VfioFeatureRequest): Steps<number> {
    const control = wordsOfBytes(request.data);
    const pageSize = CONTROL.f.page_size.get(control), count = CONTROL.f.num_ranges.get(control);
    if (count === 0) throw new Errno('EINVAL', `${this.device}: a log needs a range`);
    if (count > this.maxRanges) throw new Errno('E2BIG', `${this.device}: ${count} ranges, ${this.maxRanges} can be logged`);
    if (!isPageSize(pageSize)) throw new Errno('EINVAL', `${this.device}: ${pageSize} is no page size`);
    const used = Math.min(pageSize, MAX_PAGE_SIZE);
    const raw = yield* wordsFromUser(request.caller, CONTROL.f.ranges.get(control), count * RANGE.sizeWords);
    const ranges = this.parse(raw, count, pageSize);
    if (this.active) throw new Errno('EINVAL', `${this.device}: a log is running already`);
    this.pageSize = used;
    this.ranges = ranges;
    this.note('start', 0);
    CONTROL.f.page_size.set(control, used);
    request.data.set(bytesOf(control, CONTROL.sizeBytes));
    return CONTROL.sizeBytes;
  }

  private parse(raw: Uint32Array, count: number, asked: number): LoggedRange[] {
    const ranges: LoggedRange[] = [];
    for (let i = 0; i < count; i++) {
      const at = i * RANGE.sizeWords, start = RANGE.f.iova.get(raw, at), length = RANGE.f.length.get(raw, at), end = start + length;
      if (start % asked !== 0 || length % asked !== 0 || length === 0) throw new Errno('EINVAL', `${this.device}: logged range ${i} is not made of pages of ${asked} bytes`);
      if (end > Number.MAX_SAFE_INTEGER) throw new Errno('EOVERFLOW', `${this.device}: logged range ${i} ends beyond the address space`);
      if (ranges.some((other) => start < other.end && other.start < end)) throw new Errno('EINVAL', `${this.device}: logged range ${i} overlaps another`);
      ranges.push({ start, end, bits: new SparseBits() });
    }
    return ranges;
  }

  /** Adds the bits of dirty pages to the caller's bitmap and forgets them. EINVAL no log, page size; EOVERFLOW; EFAULT. */
  private *report(request: VfioFeatureRequest): Steps<number> {
    const record = wordsOfBytes(request.data);
    const iova = REPORT.f.iova.get(record), length = REPORT.f.length.get(record), pageSize = REPORT.f.page_size.get(record);
    const pointer = REPORT.f.bitmap.get(record);
    if (!isPageSize(pageSize)) throw new Errno('EINVAL', `${this.device}: ${pageSize} is no page size`);
    if (iova + length > Number.MAX_SAFE_INTEGER) throw new Errno('EOVERFLOW', `${this.device}: the report ends beyond the address space`);
    if (!this.active) throw new Errno('EINVAL', `${this.device}: no log is running`);
    const bitmap = yield* copyFromUser(request.caller, pointer, Math.ceil(length / pageSize / 64) * 8);
    const taken = this.collect(iova, length, pageSize, bitmap);
    yield* copyToUser(request.caller, pointer, bitmap);
    for (const { bits, page } of taken) bits.clear(page);
    this.note('report', taken.length);
    return 0;
  }

  private collect(iova: number, length: number, unit: number, bitmap: Uint8Array): { bits: SparseBits; page: number }[] {
    const taken: { bits: SparseBits; page: number }[] = [];
    for (const { start, end, bits } of this.ranges) {
      const from = Math.max(start, iova), to = Math.min(end, iova + length);
      for (const page of bits.within(Math.floor((from - start) / this.pageSize), Math.ceil((to - start) / this.pageSize))) {
        taken.push({ bits, page });
        const first = Math.max(start + page * this.pageSize, from), last = Math.min(start + (page + 1) * this.pageSize, to) - 1;
        for (let bit = Math.floor((first - iova) / unit); bit <= Math.floor((last - iova) / unit); bit++) bitmap[bit >>> 3]! |= 1 << (bit & 7);
      }
    }
    return taken;
  }

  private note(what: string, pages: number): void {
    if (this.kind !== undefined) this.trace!.record(this.kind, 0, this.trace!.intern(this.device), this.trace!.intern(what), this.ranges.length, pages);
  }
}

function isPageSize(value: number): boolean {
  return value >= PAGE_SIZE && Number.isInteger(Math.log2(value));
}
