/**
 * Pinning for DMA (mm/gup.c, FOLL_PIN and FOLL_LONGTERM): pages are faulted in with the rights the device will have,
 * a page that another address space shares is copied first, so that what is pinned is what this process sees.
 * Left out: memory that is no RAM (a mapped BAR), which Linux looks up without pinning.
 */
import { hex } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import type { FrameRuns } from '../frame-runs.js';
import { pagesOfLevel } from '../page-table/format.js';
import { X86_P, X86_RW } from '../page-table/x86-64.js';
import { ACCESS_READ, ACCESS_WRITE } from '../pci/dma-port.js';
import type { FaultAccess, FaultOutcome } from './address-space.js';
import { breakSharing, isExclusive, tryFault } from './faults.js';
import { leafPhysical, type MmCore } from './mm-core.js';

/** What pinning needs of an address space beside its core. */
export interface PinnableMm extends MmCore {
  /** The caller holds mmap_lock. */
  faultHoldingLock(address: number, access: FaultAccess): Steps<FaultOutcome>;
}

/** Physical address of a page that may be pinned now. The caller holds mmap_lock. EFAULT, ENOMEM. */
export function* faultInForPin(mm: PinnableMm, address: number, write: boolean): Steps<number> {
  const { tables } = mm;
  const page = Math.floor(address / 4096);
  checkOutcome(mm, address, yield* mm.faultHoldingLock(address, write ? ACCESS_WRITE : ACCESS_READ));
  tables.find(page);
  if (mustCopy(mm, page) && (yield* breakSharing(mm, address, false)) !== 'handled') throw outOfMemory(mm, address);
  return tables.translate(page);
}

/**
 * Pins [page, page + pages), leaf by leaf, and appends the frames. The caller holds mmap_lock, and takes back what
 * has been appended when this fails. EFAULT, ENOMEM.
 */
export function* pinRuns(mm: PinnableMm, page: number, pages: number, write: boolean, into: FrameRuns): Steps {
  const { tables, frames } = mm;
  const access = write ? ACCESS_WRITE : ACCESS_READ;
  for (let done = 0; done < pages; ) {
    const at = page + done;
    // no generator for the usual page: there may be millions
    const outcome = mm.exiting ? 'exiting' : (tryFault(mm, at * 4096, access) ?? (yield* breakSharing(mm, at * 4096, true)));
    checkOutcome(mm, at * 4096, outcome);
    tables.find(at);
    if (mustCopy(mm, at)) {
      if ((yield* breakSharing(mm, at * 4096, false)) !== 'handled') throw outOfMemory(mm, at * 4096);
      tables.find(at);
    }
    const size = pagesOfLevel(tables.level);
    const inside = at % size;
    const count = Math.min(size - inside, pages - done);
    const frame = leafPhysical(tables.lo, tables.hi, tables.level) / 4096 + inside;
    frames.pinRange(frame * 4096, count);
    into.append(frame, count);
    done += count;
  }
}

/** True when the private page that `tables.find` found is read-only and somebody else's too. */
function mustCopy(mm: MmCore, page: number): boolean {
  const { lo, hi, level } = mm.tables;
  if ((lo & (X86_P | X86_RW)) !== X86_P) return false;
  return mm.areas.find(page)!.shared === undefined && !isExclusive(mm, leafPhysical(lo, hi, level));
}

function checkOutcome(mm: MmCore, address: number, outcome: FaultOutcome): void {
  if (outcome === 'handled') return;
  if (outcome === 'out-of-memory') throw outOfMemory(mm, address);
  throw new Errno('EFAULT', `${hex(address)} of ${mm.name} cannot be pinned: ${outcome}`);
}

function outOfMemory(mm: MmCore, address: number): Errno {
  return new Errno('ENOMEM', `no memory to pin ${hex(address)} of ${mm.name}`);
}
