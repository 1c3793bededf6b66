/**
 * How a CPU in user mode reaches memory: a walk of x86-64 page tables with permission checks and with accessed and
 * dirty bits set by compare-and-exchange (Intel SDM volume 3A, sections 4.5, 4.6 and 4.8). No TLB: every access
 * walks, so software that changes an entry needs no shootdown.
 *
 * Left out: supervisor accesses, protection keys, instruction fetches.
 */
import type { PhysicalMemory } from '../../sim/memory.js';
import { indexAtLevel, physicalOf } from '../page-table/format.js';
import { X86_64, X86_A, X86_D, X86_P, X86_PS, X86_RW, X86_US } from '../page-table/x86-64.js';

export class CpuPageWalk {
  /** Physical address of the page that the last `walk` found. */
  physical = 0;
  private readonly memory: PhysicalMemory;

  constructor(memory: PhysicalMemory) {
    this.memory = memory;
  }

  /** Translates a user load or store; false is a page fault. */
  walk(root: number, levels: number, page: number, write: boolean): boolean {
    const { memory } = this;
    const required = write ? X86_P | X86_US | X86_RW : X86_P | X86_US;
    let table = root;
    for (let level = levels - 1; level >= 0; ) {
      const slot = table + indexAtLevel(page, level) * 8;
      if (!memory.load64(slot)) return false;
      const lo = memory.lo, hi = memory.hi;
      if ((lo & required) !== required) return false;
      const leaf = level === 0 || (lo & X86_PS) !== 0;
      const updated = leaf && write ? lo | X86_A | X86_D : lo | X86_A;
      // somebody else changed the entry in between: look at it again
      if (updated !== lo && !memory.compareExchange64(slot, lo, hi, updated, hi)) continue;
      if (leaf) {
        const inside = level === 0 ? 0 : level === 1 ? page % 512 : page % 0x4_0000;
        const mask = level === 0 ? -1 : level === 1 ? ~0x1f_ffff : ~0x3fff_ffff;
        this.physical = physicalOf(lo & mask, hi, X86_64.addressHi) + inside * 4096;
        return true;
      }
      table = physicalOf(lo, hi, X86_64.addressHi);
      level--;
    }
    return false;
  }
}
