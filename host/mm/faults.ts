/**
 * Page faults of an address space (mm/memory.c, `handle_mm_fault`): what a process, or a device on its behalf, gets
 * when it touches a page. Outcomes are values; the order of the checks is that of P4.
 *
 * A read of untouched anonymous memory gets a zeroed frame of its own, not the shared zero page. A leaf is installed
 * accessed, and dirty only for a write: whoever writes later through the same leaf sets D.
 */
import { assert } from '../../sim/assert.js';
import { isErrno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import { ACCESS_EXECUTE, ACCESS_READ, ACCESS_WRITE } from '../pci/dma-port.js';
import { pagesOfLevel } from '../page-table/format.js';
import { LEAF_ACCESSED, LEAF_DIRTY, LEAF_USER, X86_64, X86_A, X86_D, X86_P, X86_RW } from '../page-table/x86-64.js';
import type { FaultOutcome } from './address-space.js';
import { leafPhysical, type MmCore } from './mm-core.js';
import { copyContent } from './shared-pages.js';
import { PROT_WRITE, type Vma } from './vma.js';

const RIGHTS = ACCESS_READ | ACCESS_WRITE | ACCESS_EXECUTE;

/** The part of a fault that never sleeps; undefined when a shared page must be copied and somebody who may sleep has to be told. */
export function tryFault(mm: MmCore, address: number, access: number): FaultOutcome | undefined {
  const page = Math.floor(address / 4096);
  const area = mm.areas.find(page);
  if (area === undefined) return 'no-vma';
  if (((access & RIGHTS & ~area.prot) !== 0 || area.prot === 0) && !(mm.ignoreAreaProtection && area.prot !== 0)) return 'permission';
  const write = (access & ACCESS_WRITE) !== 0;
  const level = area.level;
  const first = level === 0 ? page : page - (page % pagesOfLevel(level));
  try {
    const slot = mm.tables.ensureSlot(first, level);
    assert(slot >= 0, 'a larger leaf lies over the area');
    mm.memory.load64(slot);
    const lo = mm.memory.lo, hi = mm.memory.hi;
    if ((lo | hi) === 0) return populate(mm, area, first, slot, write);
    return upgrade(mm, area, first, slot, lo, hi, write);
  } catch (error) {
    if (isErrno(error, 'ENOMEM')) return 'out-of-memory';
    throw error;
  }
}

/** Maps a page that is not there. */
function populate(mm: MmCore, area: Vma, page: number, slot: number, write: boolean): FaultOutcome {
  const level = area.level;
  const order = level * 9;
  const pages = pagesOfLevel(level);
  let frame: number;
  if (area.shared !== undefined) {
    frame = area.shared.frameAt((area.offset + page - area.start) / pages);
    if (frame < 0) return 'out-of-memory';
    mm.frames.get(frame);
  } else {
    frame = mm.frames.tryAlloc(mm.userOwner, order);
    if (frame < 0) return 'out-of-memory';
    if (area.file !== undefined) copyContent(mm.memory, frame, area.file, (area.offset + page - area.start) * 4096);
  }
  setLeaf(mm, area, page, slot, frame, write);
  mm.residentPages += pages;
  return 'handled';
}

/** Stores a leaf with all the rights of its area. */
export function setLeaf(mm: MmCore, area: Vma, page: number, slot: number, frame: number, dirty: boolean): void {
  const rights = mm.ignoreAreaProtection ? RIGHTS : area.prot;
  const prot = rights | LEAF_USER | LEAF_ACCESSED | (dirty ? LEAF_DIRTY : 0);
  const level = area.level;
  mm.memory.store64(slot, (frame | 0) | X86_64.leafLo(prot, level), Math.floor(frame / 0x1_0000_0000) | X86_64.leafHi(prot, level));
  mm.noteSet(page, frame, pagesOfLevel(level), (area.prot & PROT_WRITE) !== 0);
}

/** A page is there: the fault is spurious, or a write to a page that was made read-only. */
function upgrade(mm: MmCore, area: Vma, page: number, slot: number, lo: number, hi: number, write: boolean): FaultOutcome | undefined {
  assert((lo & X86_P) !== 0, 'a PROT_NONE leaf in an accessible area');
  assert(X86_64.isLeaf(lo, hi, area.level), 'a table of small pages stands where a huge page belongs');
  if (!write) {
    setBits(mm, slot, lo, hi, X86_A);
    return 'handled';
  }
  const frame = leafPhysical(lo, hi, area.level);
  if ((lo & X86_RW) !== 0 || area.shared !== undefined || isExclusive(mm, frame)) {
    setBits(mm, slot, lo, hi, X86_RW | X86_A | X86_D);
    mm.noteSet(page, frame, pagesOfLevel(area.level), true);
    return 'handled';
  }
  if (mm.notifiersMaySleep) return undefined;
  const copy = copyFrame(mm, frame, area.level);
  if (copy < 0) return 'out-of-memory';
  mm.noteClear(page, frame, pagesOfLevel(area.level));
  if (mm.hasNotifiers) {
    mm.memory.store64(slot, 0, 0);
    mm.invalidateNow(page, page + pagesOfLevel(area.level));
  }
  setLeaf(mm, area, page, slot, copy, true);
  mm.frames.put(frame);
  return 'handled';
}

/**
 * Copy on write with notifiers: the old leaf goes, everybody who may have cached it is told, then the copy is
 * mapped (`ptep_clear_flush_notify` in wp_page_copy). The caller holds mmap_lock.
 * @param dirty the copy is about to be written
 */
export function* breakSharing(mm: MmCore, address: number, dirty: boolean): Steps<FaultOutcome> {
  const { tables } = mm;
  const at = Math.floor(address / 4096);
  const area = mm.areas.find(at)!;
  const pages = pagesOfLevel(area.level);
  const page = at - (at % pages);
  const found = tables.find(page);
  assert(found && tables.level === area.level, 'copy on write without a leaf');
  const slot = tables.slot;
  const frame = leafPhysical(tables.lo, tables.hi, area.level);
  const copy = copyFrame(mm, frame, area.level);
  if (copy < 0) return 'out-of-memory';
  mm.memory.store64(slot, 0, 0);
  mm.noteClear(page, frame, pages);
  const unsharing = (mm.unsharing = { page, pages, slot, copy, mapped: false, done: [] as (() => void)[] });
  try {
    yield* mm.invalidate(page, page + pages);
  } finally {
    mm.unsharing = undefined;
    for (const done of unsharing.done) done();
  }
  if (!unsharing.mapped) setLeaf(mm, area, page, slot, copy, dirty);
  mm.frames.put(frame);
  return 'handled';
}

/**
 * A fault of a virtual CPU, whose loads and stores cannot wait here: mmap_lock may be held by a task that sleeps. Tasks
 * sleep with the lock only while notifiers invalidate, and then areas and tables agree, so `tryFault` is right without
 * the lock, with two exceptions:
 *
 * A page that is being copied for another fault has no leaf for the time being. Its copy is complete; it is mapped now
 * instead of then.
 *
 * A store to a shared page, with notifiers that sleep: the copy is mapped at once, the notifiers are told by a task, and
 * the old frame lives until they are done. Until then a device that shares the address space may still read the page as
 * it was before the store; a real CPU would wait for that. `stall` is called in both cases: what it holds (the other
 * events of the guest) goes on when the function that it returns is called.
 */
export function faultNow(mm: MmCore, address: number, access: number, stall: () => () => void): FaultOutcome {
  if (mm.exiting) return 'exiting';
  const page = Math.floor(address / 4096);
  const { unsharing } = mm;
  if (unsharing !== undefined && !unsharing.mapped && page >= unsharing.page && page < unsharing.page + unsharing.pages) {
    const area = mm.areas.find(page);
    if (area !== undefined) {
      unsharing.mapped = true;
      unsharing.done.push(stall());
      setLeaf(mm, area, unsharing.page, unsharing.slot, unsharing.copy, (access & ACCESS_WRITE) !== 0);
    }
  }
  return tryFault(mm, address, access) ?? unshareNow(mm, page, stall);
}

function unshareNow(mm: MmCore, at: number, stall: () => () => void): FaultOutcome {
  const { tables } = mm;
  const area = mm.areas.find(at)!;
  const pages = pagesOfLevel(area.level);
  const page = at - (at % pages);
  assert(tables.find(page), 'copy on write without a leaf');
  const slot = tables.slot, frame = leafPhysical(tables.lo, tables.hi, area.level);
  const copy = copyFrame(mm, frame, area.level);
  if (copy < 0) return 'out-of-memory';
  mm.noteClear(page, frame, pages);
  setLeaf(mm, area, page, slot, copy, true);
  mm.grab();
  mm.options.scheduler.spawn(`unshare of ${mm.name}`, tellLater(mm, page, pages, frame, stall()));
  return 'handled';
}

function* tellLater(mm: MmCore, page: number, pages: number, frame: number, goOn: () => void): Steps {
  yield* mm.enter();
  try {
    yield* mm.invalidate(page, page + pages);
  } finally {
    mm.leave();
    mm.frames.put(frame);
    mm.drop();
    goOn();
  }
}

/** Nobody else maps the frame: pins are references too, but they follow the page they pinned. */
export function isExclusive(mm: MmCore, frame: number): boolean {
  return mm.frames.references(frame) - mm.frames.pins(frame) === 1;
}

/** A new frame with the content of another; -1 without memory. */
export function copyFrame(mm: MmCore, frame: number, level: number): number {
  const copy = mm.frames.tryAlloc(mm.userOwner, level * 9);
  if (copy >= 0) mm.memory.copy(copy, frame, pagesOfLevel(level) * 4096);
  return copy;
}

/** Sets bits of an entry that a CPU or an IOMMU may be changing at the same time. */
function setBits(mm: MmCore, slot: number, lo: number, hi: number, bits: number): void {
  const { memory } = mm;
  while ((lo & bits) !== bits && !memory.compareExchange64(slot, lo, hi, lo | bits, hi)) {
    memory.load64(slot);
    lo = memory.lo;
    hi = memory.hi;
  }
}
