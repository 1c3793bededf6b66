/**
 * Which pages devices may have written (VFIO_IOMMU_DIRTY_PAGES, drivers/vfio/vfio_iommu_type1.c v5.10): an IOMMU
 * without dirty tracking makes every mapped page dirty for ever; a group whose driver pins what its device writes
 * makes only pinned pages dirty. Bitmaps are little-endian 64-bit words in the caller's memory, a bit for each page.
 *
 * Left out: page sizes other than the smallest (as in Linux), hardware that tracks.
 */
import { hexPage } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import { TASK_SIZE } from '../../host/mm/mm.js';
import type { Process } from '../../host/process.js';
import {
  BITMAP, DIRTY_BITMAP, DIRTY_BITMAP_GET, VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP, VFIO_IOMMU_DIRTY_PAGES_FLAG_START,
  VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP, checkFlags, copyFromUser, copyToUser, recordFromUser, wordsFromUser,
} from '../uapi/index.js';
import type { DmaMapping } from './dma-list.js';
import { rangeOf } from './records.js';
import type { ContainerState } from './state.js';

const FLAGS = VFIO_IOMMU_DIRTY_PAGES_FLAG_START | VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP | VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;
/** Bits that one bitmap may have (INT_MAX). */
const MOST_PAGES = 0x7fff_ffff;
/** Bytes of the largest bitmap, as the migration capability tells: 256 MiB. */
export const DIRTY_BITMAP_SIZE_MAX = bitmapBytes(MOST_PAGES);

/** Where a caller wants a bitmap. */
export interface UserBitmap {
  readonly data: number;
}

/** VFIO_IOMMU_DIRTY_PAGES. EACCES v1; EFAULT; EINVAL argsz, flags, not exactly one action, not logging, range, bitmap. */
export function* dirtyPages(state: ContainerState, caller: Process, argument: number): Steps<number> {
  if (!state.v2) throw new Errno('EACCES', `${state.name} is of version 1, which logs no dirty pages`);
  const header = yield* recordFromUser(caller, argument, DIRTY_BITMAP);
  const flags = DIRTY_BITMAP.f.flags.get(header);
  checkFlags(DIRTY_BITMAP.name, flags, FLAGS);
  switch (flags) {
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_START:
      yield* state.lock.with(() => start(state));
      return 0;
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP:
      yield* state.lock.with(() => stop(state));
      return 0;
    case VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP:
      yield* getBitmap(state, caller, argument, DIRTY_BITMAP.f.argsz.get(header));
      return 0;
    default:
      throw new Errno('EINVAL', `${DIRTY_BITMAP.name}: exactly one of START, STOP and GET_BITMAP`);
  }
}

// oxlint-disable-next-line require-yield -- runs under the container's lock
function* start(state: ContainerState): Steps {
  if (state.dirtyTracking) return;
  for (const mapping of state.mappings) checkLength(mapping);
  try {
    for (const mapping of state.mappings) startLogging(state, mapping);
  } catch (error) {
    for (const mapping of state.mappings) endLogging(state, mapping);
    throw error;
  }
  state.dirtyTracking = true;
  trace(state, 'start', 0, 0, 0);
}

// oxlint-disable-next-line require-yield -- runs under the container's lock
function* stop(state: ContainerState): Steps {
  if (!state.dirtyTracking) return;
  state.dirtyTracking = false;
  for (const mapping of state.mappings) endLogging(state, mapping);
  trace(state, 'stop', 0, 0, 0);
}

function checkLength({ page, pages }: DmaMapping): void {
  if (pages > MOST_PAGES) throw new Errno('EINVAL', `the mapping at ${hexPage(page)} has ${pages} pages, a bitmap at most ${MOST_PAGES}`);
}

/** Gives a mapping an empty bitmap: what is pinned now counts as dirty. EINVAL too long, ENOMEM more than the kernel has. */
export function startLogging(state: ContainerState, mapping: DmaMapping): void {
  checkLength(mapping);
  const { bitmaps, parts: { frames } } = state.context;
  const bytes = Math.ceil(mapping.pages / 8);
  if (mapping.bitmap === undefined) {
    // a mapping without a domain behind it costs its user nothing, whatever its length
    if (bitmaps.bytes + bytes > (frames.total - frames.inUse) * 4096) throw new Errno('ENOMEM', `no ${bytes} bytes for the bitmap of the mapping at ${hexPage(mapping.page)}`);
    bitmaps.bytes += bytes;
  }
  mapping.bitmap = new Uint8Array(bytes);
  for (const page of mapping.vendorPins.keys()) markDirty(mapping, page, page + 1);
}

/** Takes the bitmap of a mapping away, if it has one. */
export function endLogging({ context }: ContainerState, mapping: DmaMapping): void {
  context.bitmaps.bytes -= mapping.bitmap?.length ?? 0;
  mapping.bitmap = undefined;
}

/** Pages [start, end) of the mapping were or will be written. */
export function markDirty({ bitmap, page }: DmaMapping, start: number, end: number): void {
  if (bitmap !== undefined) setBits(bitmap, start - page, end - page);
}

function* getBitmap(state: ContainerState, caller: Process, argument: number, argsz: number): Steps {
  if (argsz - DIRTY_BITMAP.sizeBytes < DIRTY_BITMAP_GET.sizeBytes) {
    throw new Errno('EINVAL', `argsz ${argsz} of ${DIRTY_BITMAP.name} has no room for the range: ${DIRTY_BITMAP.sizeBytes + DIRTY_BITMAP_GET.sizeBytes} bytes`);
  }
  const words = yield* wordsFromUser(caller, argument + DIRTY_BITMAP.sizeBytes, DIRTY_BITMAP_GET.sizeWords);
  const { iova, size, bitmap_pgsize, bitmap_size, bitmap_data } = DIRTY_BITMAP_GET.f;
  // the end itself must fit into 64 bits here, where unmap only asks for the last byte
  if (iova.getBig(words) + size.getBig(words) >= 1n << 64n) throw new Errno('EINVAL', 'the range of the bitmap wraps');
  const data = checkBitmap(bitmap_pgsize.get(words), bitmap_size.get(words), bitmap_data.get(words), size.get(words));
  yield* state.lock.with(function* () {
    checkPageSize(bitmap_pgsize.get(words));
    const range = rangeOf(iova, size, words);
    if (!state.dirtyTracking) throw new Errno('EINVAL', `${state.name} does not log dirty pages`);
    checkWhole(state, range.start, range.end);
    let dirty = 0;
    for (let mapping = state.mappings.first(range.start, range.end); mapping !== undefined; mapping = state.mappings.first(mapping.end, range.end)) {
      dirty += yield* reportDirty(state, caller, { data }, mapping, range.start);
      // what is pinned goes on being dirty; what was unpinned or written by a CPU has been told
      startLogging(state, mapping);
    }
    trace(state, 'get', range.start, range.end - range.start, dirty);
  });
}

/**
 * Checks a bitmap for a range of `rangeBytes`; where it stands.
 * EINVAL outside of user addresses, too small for the range, larger than any may be.
 */
function checkBitmap(pageSize: number, sizeBytes: number, data: number, rangeBytes: number): number {
  if (data + sizeBytes > TASK_SIZE) throw new Errno('EINVAL', 'the bitmap is no user memory');
  // as the kernel does, with the lowest set bit: other sizes are refused later
  if (pageSize === 0) throw new Errno('EINVAL', 'a bitmap of pages of size 0');
  const pages = Math.floor(rangeBytes / lowestBit(pageSize));
  if (pages === 0 || sizeBytes === 0 || sizeBytes > DIRTY_BITMAP_SIZE_MAX || sizeBytes < bitmapBytes(pages)) {
    throw new Errno('EINVAL', `a bitmap of ${sizeBytes} bytes for ${pages} pages`);
  }
  return data;
}

function checkPageSize(pageSize: number): void {
  if (pageSize !== 4096) throw new Errno('EINVAL', `a bitmap of pages of ${pageSize} bytes; dirty pages are logged by 4096`);
}

/** The vfio_bitmap behind an unmap record. EINVAL as `checkBitmap`, argsz; EFAULT. The page size is checked under the lock. */
export function* bitmapOfUnmap(caller: Process, address: number, rangeBytes: number): Steps<UserBitmap & { readonly pageSize: number }> {
  const words = yield* wordsFromUser(caller, address, BITMAP.sizeWords);
  const pageSize = BITMAP.f.pgsize.get(words);
  return { data: checkBitmap(pageSize, BITMAP.f.size.get(words), BITMAP.f.data.get(words), rangeBytes), pageSize };
}

/** EINVAL: dirty pages are not logged, or by another size. */
export function checkLogging(state: ContainerState, pageSize: number): void {
  if (!state.dirtyTracking) throw new Errno('EINVAL', `${state.name} does not log dirty pages`);
  checkPageSize(pageSize);
}

/** EINVAL when a mapping lies only partly in [start, end). */
export function checkWhole(state: ContainerState, start: number, end: number): void {
  for (const mapping of [state.mappings.find(start), state.mappings.find(end - 1)]) {
    if (mapping !== undefined && (mapping.page < start || mapping.end > end)) {
      throw new Errno('EINVAL', `[${hexPage(start)}, ${hexPage(end)}) cuts the mapping [${hexPage(mapping.page)}, ${hexPage(mapping.end)})`);
    }
  }
}

/**
 * Writes a mapping's bits where they belong in a bitmap that starts with page `base`; number of dirty pages. The words
 * are written whole: bits of an earlier mapping in the first of them stay, what lies behind is zero. EFAULT.
 */
export function* reportDirty(state: ContainerState, caller: Process, user: UserBitmap, mapping: DmaMapping, base: number): Steps<number> {
  const bitmap = mapping.bitmap!;
  if (!state.pinnedPageDirtyScope && mapping.iommuMapped) setBits(bitmap, 0, mapping.pages);
  const offset = mapping.page - base;
  const shift = offset % 64;
  const address = user.data + ((offset - shift) / 64) * 8;
  const bytes = new Uint8Array(bitmapBytes(mapping.pages + shift));
  if (shift > 0) {
    const before = yield* copyFromUser(caller, address, 8);
    for (let bit = 0; bit < shift; bit++) if (isSet(before, bit)) setBits(bytes, bit, bit + 1);
  }
  const dirty = merge(bytes, shift, bitmap, mapping.pages);
  yield* copyToUser(caller, address, bytes);
  return dirty;
}

/** Sets the bits of `from` in `to`, `shift` bits later; how many. */
function merge(to: Uint8Array, shift: number, from: Uint8Array, pages: number): number {
  let count = 0;
  for (let page = 0; page < pages; ) {
    if (page % 8 === 0 && from[page >> 3] === 0) {
      page += 8;
      continue;
    }
    if (isSet(from, page)) {
      const bit = page + shift;
      to[bit >> 3]! |= 1 << (bit & 7);
      count++;
    }
    page++;
  }
  return count;
}

function isSet(bitmap: Uint8Array, bit: number): boolean {
  return (bitmap[bit >> 3]! & (1 << (bit & 7))) !== 0;
}

function setBits(bitmap: Uint8Array, start: number, end: number): void {
  let bit = start;
  for (; bit < end && bit % 8 !== 0; bit++) bitmap[bit >> 3]! |= 1 << (bit & 7);
  const whole = Math.max(bit, end - (end % 8));
  bitmap.fill(0xff, bit / 8, Math.max(bit / 8, Math.floor(whole / 8)));
  for (bit = Math.max(bit, whole); bit < end; bit++) bitmap[bit >> 3]! |= 1 << (bit & 7);
}

/** Bytes of whole 64-bit words. */
function bitmapBytes(bits: number): number {
  return Math.ceil(bits / 64) * 8;
}

function lowestBit(size: number): number {
  let bit = 1;
  while (size % (bit * 2) === 0) bit *= 2;
  return bit;
}

function trace({ context, number }: ContainerState, action: string, page: number, pages: number, dirty: number): void {
  const { trace: kinds } = context;
  kinds?.trace.record(kinds.dirtyPages, 0, number, kinds.trace.intern(action), page, pages, dirty);
}

