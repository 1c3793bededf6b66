/**
 * Taking pages away (mm/memory.c, `unmap_region`): entries first, then everybody who may have cached them is told,
 * then the frames and table pages go. The order is the whole point.
 */
import type { Steps } from '../../sim/task.js';
import { pagesOfLevel } from '../page-table/format.js';
import { leafPhysical, type MmCore } from './mm-core.js';

/** Physical addresses of frames whose reference is dropped once nobody can reach them (the kernel's mmu_gather). */
class Gather {
  private frames = new Float64Array(64);
  private count = 0;

  add(frame: number): void {
    if (this.count === this.frames.length) {
      const larger = new Float64Array(this.count * 2);
      larger.set(this.frames);
      this.frames = larger;
    }
    this.frames[this.count++] = frame;
  }

  free(mm: MmCore): void {
    for (let i = 0; i < this.count; i++) mm.frames.put(this.frames[i]!);
    this.count = 0;
  }
}

/**
 * Removes the pages of [start, end) from the tables. The caller holds mmap_lock.
 * @param floor @param ceiling pages between which no other area lies: table pages inside go as well (free_pgtables)
 */
export function* zap(mm: MmCore, start: number, end: number, floor = start, ceiling = end): Steps {
  const gather = new Gather();
  const removed = mm.tables.unmap(start, end - start, (page, level, _slot, lo, hi) => {
    const frame = leafPhysical(lo, hi, level);
    mm.noteClear(page, frame, pagesOfLevel(level));
    gather.add(frame);
  }, floor, ceiling);
  mm.residentPages -= removed;
  if (removed === 0 && mm.tables.retired.length === 0) return;
  if (mm.freeBeforeNotify) gather.free(mm);
  yield* mm.invalidate(start, end);
  gather.free(mm);
  mm.tables.freeRetired();
}

/** Removes the areas of [start, end) and their pages. The caller holds mmap_lock. */
export function* unmapRegion(mm: MmCore, start: number, end: number): Steps {
  const removed = mm.areas.remove(start, end);
  if (removed.length === 0) return;
  yield* zap(mm, start, end, mm.areas.endBefore(start), mm.areas.startFrom(end));
  for (const area of removed) area.shared?.close(area.pages);
}
