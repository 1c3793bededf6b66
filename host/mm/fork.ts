/**
 * Copying an address space for a child (kernel/fork.c `dup_mmap`, mm/memory.c `copy_page_range`). Private pages are
 * shared read-only until one side writes. A pinned page is copied at once and stays the parent's, so that DMA that
 * is under way keeps going to the parent (`copy_present_page`). Pages of MAP_SHARED areas are found again by faults.
 */
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import { pagesOfLevel } from '../page-table/format.js';
import { X86_A, X86_P, X86_RW } from '../page-table/x86-64.js';
import { copyFrame } from './faults.js';
import { leafPhysical, type MmCore } from './mm-core.js';

/** Fills the empty address space `child`. ENOMEM: the caller puts the child. The caller holds the parent's mmap_lock. */
export function* copyMappings(parent: MmCore, child: MmCore): Steps {
  child.brkAddress = parent.brkAddress;
  for (const area of parent.areas) {
    child.areas.insert(area.slice(area.start, area.end));
    area.shared?.open(area.pages);
  }
  for (const area of parent.areas) {
    if (area.shared !== undefined) continue;
    let restricted = false;
    try {
      parent.tables.forEachLeaf(area.start, area.pages, (page, level, slot, lo, hi) => {
        if (copyLeaf(parent, child, page, level, slot, lo, hi)) restricted = true;
      });
    } finally {
      // also when memory ran out: some of the parent's pages are read-only by now
      if (restricted) yield* parent.invalidate(area.start, area.end);
    }
  }
}

/** Shares or copies one page; true when the parent's leaf lost its right to write. */
function copyLeaf(parent: MmCore, child: MmCore, page: number, level: number, slot: number, lo: number, hi: number): boolean {
  const { memory, frames } = parent;
  const pages = pagesOfLevel(level);
  const frame = leafPhysical(lo, hi, level);
  const childSlot = child.tables.ensureSlot(page, level);
  if (frames.pins(frame) > 0) {
    const copy = copyFrame(child, frame, level);
    if (copy < 0) throw new Errno('ENOMEM', `no memory to copy a pinned page of ${parent.name} for its child`);
    const attributes = lo & (pages === 1 ? 0xfff : 0x1fff);
    memory.store64(childSlot, (copy | 0) | (attributes & ~X86_A), Math.floor(copy / 0x1_0000_0000) | (hi & ~0xf_ffff));
    child.noteSet(page, copy, pages, (lo & X86_RW) !== 0);
    child.residentPages += pages;
    return false;
  }
  let restricted = false;
  while ((lo & X86_RW) !== 0 && !parent.forkStaysWritable) {
    if (memory.compareExchange64(slot, lo, hi, lo & ~X86_RW, hi)) {
      restricted = (lo & X86_P) !== 0;
      lo &= ~X86_RW;
      parent.noteSet(page, frame, pages, false);
      break;
    }
    memory.load64(slot);
    lo = memory.lo;
    hi = memory.hi;
  }
  frames.get(frame);
  memory.store64(childSlot, lo & ~X86_A, hi);
  child.noteSet(page, frame, pages, false);
  child.residentPages += pages;
  return restricted;
}
