/** Changing the protection of mapped pages (mm/mprotect.c, `change_protection`; x86 `pte_modify`). */
import type { Steps } from '../../sim/task.js';
import { LEAF_USER, X86_64, X86_A, X86_D, X86_P, X86_RW, X86_XD_HI } from '../page-table/x86-64.js';
import { pagesOfLevel } from '../page-table/format.js';
import { leafPhysical, type MmCore } from './mm-core.js';

const PHYSICAL_LO = 0xffff_f000 | 0;
const PHYSICAL_HI = 0x000f_ffff;

/**
 * Sets the protection of [start, end), which areas cover completely. Leaves keep their frame, A and D. A leaf never
 * gains the right to write here: the next write faults and finds out whether the page is shared. The caller holds
 * mmap_lock.
 */
export function* changeProtection(mm: MmCore, start: number, end: number, prot: number): Steps {
  const areas = mm.areas.remove(start, end);
  for (const area of areas) {
    area.prot = prot;
    mm.areas.insert(area);
  }
  let restricted = false;
  const { memory } = mm;
  mm.tables.forEachLeaf(start, end - start, (page, level, slot, lo, hi) => {
    for (;;) {
      // Linux' PAGE_NONE has no U/S bit
      let newLo = (lo & (PHYSICAL_LO | X86_A | X86_D)) | X86_64.leafLo(prot === 0 ? 0 : prot | LEAF_USER, level);
      if ((lo & X86_RW) === 0) newLo &= ~X86_RW;
      const newHi = (hi & PHYSICAL_HI) | X86_64.leafHi(prot, level);
      if (memory.compareExchange64(slot, lo, hi, newLo, newHi)) {
        const lost = lo & ~newLo & (X86_P | X86_RW);
        if ((newLo & X86_P) !== 0) mm.noteSet(page, leafPhysical(newLo, newHi, level), pagesOfLevel(level), (newLo & X86_RW) !== 0);
        else if ((lo & X86_P) !== 0) mm.noteClear(page, leafPhysical(lo, hi, level), pagesOfLevel(level));
        if ((lo & X86_P) !== 0 && (lost !== 0 || (newHi & ~hi & X86_XD_HI) !== 0)) restricted = true;
        return;
      }
      memory.load64(slot);
      lo = memory.lo;
      hi = memory.hi;
    }
  });
  if (restricted) yield* mm.invalidate(start, end);
}
