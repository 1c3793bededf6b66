/** Moving mapped pages to another address (mm/mremap.c, `move_page_tables`): the entries move, not the bytes. */
import { assert } from '../../sim/assert.js';
import type { Steps } from '../../sim/task.js';
import { pagesOfLevel } from '../page-table/format.js';
import { leafPhysical, type MmCore } from './mm-core.js';
import { zap } from './unmap.js';
import { Vma } from './vma.js';

/**
 * Moves the pages of [oldStart, oldEnd), a part of one area, to free space at `newStart` in an area of `newPages`
 * pages. Nothing has changed when it fails (ENOMEM). The caller holds mmap_lock.
 */
export function* moveRegion(mm: MmCore, area: Vma, oldStart: number, oldEnd: number, newStart: number, newPages: number): Steps {
  const { tables, memory } = mm;
  const offset = area.offset + oldStart - area.start;
  const shift = newStart - oldStart;
  // every table the new place needs exists before the first entry moves
  try {
    tables.forEachLeaf(oldStart, oldEnd - oldStart, (page, level) => void tables.ensureSlot(page + shift, level));
  } catch (error) {
    yield* zap(mm, newStart, newStart + newPages, mm.areas.endBefore(newStart), mm.areas.startFrom(newStart));
    throw error;
  }
  const moved = new Vma(newStart, newStart + newPages, area.prot, area.level, area, offset);
  area.shared?.open(newPages);
  const removed = mm.areas.remove(oldStart, oldEnd);
  mm.areas.insert(moved);
  tables.unmap(oldStart, oldEnd - oldStart, (page, level, _slot, lo, hi) => {
    const slot = tables.ensureSlot(page + shift, level);
    assert(slot >= 0, 'a page moves onto a larger leaf');
    const frame = leafPhysical(lo, hi, level), pages = pagesOfLevel(level);
    mm.noteClear(page, frame, pages);
    memory.store64(slot, lo, hi);
    mm.noteSet(page + shift, frame, pages, (lo & 2) !== 0);
  }, mm.areas.endBefore(oldStart), mm.areas.startFrom(oldEnd));
  yield* mm.invalidate(oldStart, oldEnd);
  tables.freeRetired();
  for (const old of removed) old.shared?.close(old.pages);
}
