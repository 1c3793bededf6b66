/**
 * VFIO_IOMMU_MAP_DMA and VFIO_IOMMU_UNMAP_DMA (C8, C9, E28, E29; drivers/vfio/vfio_iommu_type1.c v5.10): what is
 * checked, in which order. FLAG_ALL of unmap is v5.12's; FLAG_VADDR, which moves mappings to another process, is left out.
 */
import { hexPage } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import { sleep, type Steps } from '../../sim/task.js';
import type { Process } from '../../host/process.js';
import { PROT_READ, PROT_WRITE } from '../../iommu/core/ops.js';
import {
  BITMAP, DMA_MAP, DMA_UNMAP, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_ALL, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
  checkArgsz, checkFlags, recordFromUser, wordsToUser,
} from '../uapi/index.js';
import { pinAndMap, removeMapping } from './backing.js';
import { bitmapOfUnmap, checkLogging, checkWhole, endLogging, reportDirty, startLogging, type UserBitmap } from './dirty.js';
import { DmaMapping } from './dma-list.js';
import { holds, type PageRange } from './iova-ranges.js';
import { ALL_PAGES, offsetIn, pageIn, rangeOf } from './records.js';
import type { ContainerState } from './state.js';

/** Times that vendors' drivers are asked again to give pages back. */
const MOST_RETRIES = 10;
/** What a vendor's driver gets between two requests: Linux asks again at once, and a CPU takes a while to do so. */
const RETRY_NS = 1_000;

/**
 * VFIO_IOMMU_MAP_DMA. EFAULT the record or vaddr; EINVAL argsz, flags, no permission, empty, misaligned, wraps; EEXIST overlap;
 * ENOSPC too many mappings; EINVAL outside of the valid addresses; ENOMEM memory or RLIMIT_MEMLOCK. Nothing stays on failure.
 */
export function* mapDma(state: ContainerState, caller: Process, argument: number): Steps<number> {
  const words = yield* recordFromUser(caller, argument, DMA_MAP);
  const flags = DMA_MAP.f.flags.get(words);
  checkFlags(DMA_MAP.name, flags, VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE);
  yield* state.lock.with(() => mapLocked(state, caller, words));
  return 0;
}

function* mapLocked(state: ContainerState, caller: Process, words: Uint32Array): Steps {
  const { context } = state;
  const { flags: flagsOf, iova, vaddr, size } = DMA_MAP.f;
  const flags = flagsOf.get(words);
  const prot = ((flags & VFIO_DMA_MAP_FLAG_READ) !== 0 ? PROT_READ : 0) | ((flags & VFIO_DMA_MAP_FLAG_WRITE) !== 0 ? PROT_WRITE : 0);
  if (prot === 0) throw new Errno('EINVAL', 'a mapping that is neither readable nor writable');
  if (offsetIn(vaddr, words) !== 0) throw new Errno('EINVAL', `vaddr of the mapping at ${hexPage(pageIn(iova, words))} is not aligned to a page`);
  const { start, end } = rangeOf(iova, size, words);
  const pages = end - start;
  if (pageIn(vaddr, words) + pages > ALL_PAGES) throw new Errno('EINVAL', `vaddr of the mapping at ${hexPage(start)} wraps`);
  checkFree(state, start, end);
  const mapping = new DmaMapping({
    page: start, pages, vaddr: pageIn(vaddr, words) * 4096, prot, mm: caller.mm, ipcLock: context.parts.mayPassMemlock?.(caller) ?? false,
    longestRun: context.longestRun,
  });
  if (state.dirtyTracking) startLogging(state, mapping);
  try {
    // without a domain the mapping is only recorded (C8)
    if (state.domains.length > 0) yield* pinAndMap(state, mapping);
  } catch (error) {
    endLogging(state, mapping);
    throw error;
  }
  state.mappings.insert(mapping);
  state.dmaAvailable--;
  context.counters.maps++;
  const { trace } = context;
  trace?.trace.record(trace.mapDma, 0, state.number, start, mapping.vaddr / 4096, pages, prot);
}

function checkFree(state: ContainerState, start: number, end: number): void {
  const there = state.mappings.first(start, end);
  if (there !== undefined) throw new Errno('EEXIST', `[${hexPage(start)}, ${hexPage(end)}) overlaps the mapping [${hexPage(there.page)}, ${hexPage(there.end)})`);
  if (state.dmaAvailable === 0) throw new Errno('ENOSPC', `${state.name} has ${state.mappings.count} mappings, which is dma-entry-limit`);
  if (state.domains.length > 0 && !holds(state.validIova, start, end)) {
    throw new Errno('EINVAL', `[${hexPage(start)}, ${hexPage(end)}) is not inside of ${state.validIova.map((range) => `[${hexPage(range.start)}, ${hexPage(range.end)})`).join(' or ')}`);
  }
}

/**
 * VFIO_IOMMU_UNMAP_DMA; the record's size becomes the bytes unmapped, 0 when nothing was there. EFAULT; EINVAL argsz, flags,
 * misaligned, empty, wraps, cuts a mapping (version 2). A mapping of another address space ends it silently.
 */
export function* unmapDma(state: ContainerState, caller: Process, argument: number): Steps<number> {
  const words = yield* recordFromUser(caller, argument, DMA_UNMAP);
  const { flags: flagsOf, argsz, size } = DMA_UNMAP.f;
  const flags = flagsOf.get(words);
  checkFlags(DMA_UNMAP.name, flags, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP | VFIO_DMA_UNMAP_FLAG_ALL);
  const all = (flags & VFIO_DMA_UNMAP_FLAG_ALL) !== 0;
  let bitmap: (UserBitmap & { readonly pageSize: number }) | undefined;
  if ((flags & VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP) !== 0) {
    if (all) throw new Errno('EINVAL', `${DMA_UNMAP.name}: a bitmap of everything`);
    checkArgsz(DMA_UNMAP.name, argsz.get(words), DMA_UNMAP.sizeBytes + BITMAP.sizeBytes);
    bitmap = yield* bitmapOfUnmap(caller, argument + DMA_UNMAP.sizeBytes, size.get(words));
  }
  const unmapped = yield* unmapLocked(state, caller, words, all, bitmap);
  size.set(words, unmapped * 4096);
  yield* wordsToUser(caller, argument, words);
  return 0;
}

function* unmapLocked(
  state: ContainerState, caller: Process, words: Uint32Array, all: boolean, bitmap: (UserBitmap & { readonly pageSize: number }) | undefined,
): Steps<number> {
  const { iova, size } = DMA_UNMAP.f;
  return yield* state.lock.with(function* () {
    let range: PageRange = { start: 0, end: ALL_PAGES };
    if (!all) range = rangeOf(iova, size, words);
    else if (iova.getBig(words) !== 0n || size.getBig(words) !== 0n) throw new Errno('EINVAL', `${DMA_UNMAP.name}: everything has neither iova nor size`);
    if (bitmap !== undefined) checkLogging(state, bitmap.pageSize);
    return yield* unmapRange(state, caller, range, all, bitmap);
  });
}

/** Pages unmapped. The caller holds the container's lock, which is dropped while vendors' drivers are told. */
function* unmapRange(state: ContainerState, caller: Process, range: PageRange, all: boolean, bitmap: UserBitmap | undefined): Steps<number> {
  const { trace, counters, skipNotify } = state.context;
  const { start, end } = range;
  let unmapped = 0, retries = 0;
  let asked: DmaMapping | undefined;
  for (;;) {
    // again after every time the lock was dropped: mappings may have come and gone
    if (state.v2 && !all) checkWhole(state, start, end);
    const mapping = state.mappings.first(start, end);
    if (mapping === undefined) return unmapped;
    // version 1 has no errors here: whoever starts inside of a mapping unmaps nothing
    if (!state.v2 && start > mapping.page) return unmapped;
    if (mapping.mm !== caller.mm) return unmapped;
    if (mapping.vendorPins.size > 0 && !skipNotify) {
      retries = asked === mapping ? retries + 1 : 0;
      asked = mapping;
      if (retries <= MOST_RETRIES) {
        yield* notify(state, mapping, retries);
        continue;
      }
      // a BUG in Linux; here the mapping goes, and its pins with it
    }
    if (bitmap !== undefined) yield* reportDirty(state, caller, bitmap, mapping, start);
    trace?.trace.record(trace.unmapDma, 0, state.number, mapping.page, mapping.pages);
    yield* removeMapping(state, mapping);
    counters.unmaps++;
    unmapped += mapping.pages;
  }
}

/** Tells every vendor's driver, without the lock: they give pages back through it (C9). */
function* notify(state: ContainerState, { page, pages }: DmaMapping, retries: number): Steps {
  state.lock.unlock();
  try {
    if (retries > 0) yield* sleep(state.context.parts.clock, RETRY_NS);
    for (const notifier of state.notifiers.values()) yield* notifier.dmaUnmap(page * 4096, pages * 4096);
  } finally {
    yield* state.lock.lock();
  }
}
