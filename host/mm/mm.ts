/**
 * The address space of a process: what its system calls do to it, how its loads and stores and a device's page
 * requests fault pages in. Real x86-64 tables in simulated memory, 4 KiB pages and, in MAP_HUGETLB areas, 2 MiB and
 * 1 GiB ones. Addresses are deterministic: top-down from MMAP_BASE, as Linux does without randomization.
 *
 * Left out: transparent huge pages, stack growth, swap, write-back to files, mlock, NUMA policies.
 */
import { hex } from '../../sim/address.js';
import { assert } from '../../sim/assert.js';
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import { CpuPageWalk } from '../cpu/page-walk.js';
import type { FrameRuns } from '../frame-runs.js';
import { pagesOfLevel } from '../page-table/format.js';
import { ACCESS_READ, ACCESS_WRITE } from '../pci/dma-port.js';
import type { AddressSpace, FaultAccess, FaultOutcome } from './address-space.js';
import { breakSharing, tryFault } from './faults.js';
import { copyMappings } from './fork.js';
import { MmCore, type MmOptions } from './mm-core.js';
import { moveRegion } from './move.js';
import { faultInForPin, pinRuns } from './pin.js';
import { changeProtection } from './protect.js';
import { SharedPages } from './shared-pages.js';
import { unmapRegion, zap } from './unmap.js';
import { PROT_READ, PROT_WRITE, Vma } from './vma.js';

/** End of user addresses with 4 levels (TASK_SIZE): 2^47 less a guard page. */
export const TASK_SIZE = 0x7fff_ffff_f000;
/** Top of the mmap area. */
export const MMAP_BASE = 0x7fff_f7ff_f000;
/** vm.mmap_min_addr */
export const MMAP_MIN_ADDRESS = 0x1_0000;
/** Where the heap starts. */
export const HEAP_START = 0x5555_5577_8000;

const RIGHTS = PROT_READ | PROT_WRITE | 4;

export interface MmapOptions {
  /** Default: readable and writable. PROT_* bits. */
  readonly prot?: number;
  /** Where; a hint unless `fixed`. */
  readonly address?: number;
  /** MAP_FIXED: `replace` what is there, or MAP_FIXED_NOREPLACE: EEXIST. */
  readonly fixed?: 'replace' | 'noreplace';
  /** MAP_SHARED. */
  readonly shared?: boolean;
  /** MAP_HUGETLB: leaf level 1 (2 MiB) or 2 (1 GiB). */
  readonly hugeLevel?: 1 | 2;
  /** MAP_POPULATE: faults every page in. */
  readonly populate?: boolean;
}

/** A load or store that the process may not do: SIGSEGV, or SIGBUS when memory ran out. */
export class SegmentationFault extends Error {
  override readonly name = 'SegmentationFault';
  readonly address: number;
  readonly access: FaultAccess;
  readonly outcome: FaultOutcome;

  constructor(mm: MmCore, address: number, access: FaultAccess, outcome: FaultOutcome) {
    super(`${mm.name}: ${access === ACCESS_WRITE ? 'store to' : 'load from'} ${hex(address)}: ${outcome}`);
    this.address = address;
    this.access = access;
    this.outcome = outcome;
  }
}

export class Mm extends MmCore implements AddressSpace {
  private readonly cpu: CpuPageWalk;

  /** One user, one reference; allocates the root table. ENOMEM. */
  constructor(options: MmOptions) {
    super(options);
    this.brkAddress = HEAP_START;
    this.cpu = new CpuPageWalk(options.memory);
  }

  /** handle_mm_fault (P4). ACCESS_PRIVILEGED changes nothing: the areas decide, a kernel address has none. */
  *handleFault(address: number, access: FaultAccess): Steps<FaultOutcome> {
    const outcome = this.tryHandleFault(address, access);
    if (outcome !== undefined) return outcome;
    const waited = yield* this.handleFaultLocked(address, access);
    this.recordFault(address, access, waited);
    return waited;
  }

  tryHandleFault(address: number, access: FaultAccess): FaultOutcome | undefined {
    let outcome: FaultOutcome | undefined;
    if (this.exiting) outcome = 'exiting';
    else if (this.lock.owner === undefined) outcome = tryFault(this, address, access);
    if (outcome !== undefined) this.recordFault(address, access, outcome);
    return outcome;
  }

  private recordFault(address: number, access: FaultAccess, outcome: FaultOutcome): void {
    const { kinds } = this;
    if (kinds === undefined) return;
    const name = outcome === 'handled' ? kinds.handled : this.options.trace!.intern(outcome);
    this.record(kinds.pageFault, Math.floor(address / 4096), access, name);
  }

  /**
   * Maps `length` bytes, rounded up to pages, of zeros. Its address.
   * EINVAL length or fixed address, ENOMEM no room, EEXIST `noreplace` and taken.
   */
  *mmap(length: number, options: MmapOptions = {}): Steps<number> {
    const level = options.hugeLevel ?? 0;
    const shared = options.shared === true ? new SharedPages(this.memory, this.frames, level * 9) : undefined;
    return yield* this.mapArea(length, options, shared, undefined);
  }

  /**
   * Maps a file's content: private (copied page by page when touched) or, with `shared`, one page cache for all who
   * inherit it. Errors as `mmap`.
   */
  *mmapFile(content: Uint8Array, options: MmapOptions = {}): Steps<number> {
    if (options.hugeLevel !== undefined) throw new Errno('EINVAL', 'huge pages of a file are not supported');
    const shared = options.shared === true ? new SharedPages(this.memory, this.frames, 0, content) : undefined;
    return yield* this.mapArea(content.length, options, shared, content);
  }

  /** Unmaps whatever lies in [address, address + length). EINVAL misaligned (to the huge page inside huge areas) or empty. */
  *munmap(address: number, length: number): Steps {
    const start = this.checkRange('munmap', address, length), end = start + pagesOf(length);
    yield* this.enter();
    try {
      this.checkHugeAlignment('munmap', start, end);
      yield* unmapRegion(this, start, end);
    } finally {
      this.leave();
    }
  }

  /** Changes the protection of a range. EINVAL misaligned, ENOMEM not all mapped. */
  *mprotect(address: number, length: number, prot: number): Steps {
    const start = this.checkRange('mprotect', address, length), end = start + pagesOf(length);
    yield* this.enter();
    try {
      this.checkCovered('mprotect', start, end);
      this.checkHugeAlignment('mprotect', start, end);
      yield* changeProtection(this, start, end, prot & RIGHTS);
    } finally {
      this.leave();
    }
  }

  /** MADV_DONTNEED: the pages go, the areas stay. EINVAL misaligned, ENOMEM not all mapped. */
  *madviseDontNeed(address: number, length: number): Steps {
    const start = this.checkRange('madvise', address, length), end = start + pagesOf(length);
    yield* this.enter();
    try {
      this.checkCovered('madvise', start, end);
      this.checkHugeAlignment('madvise', start, end);
      yield* zap(this, start, end);
    } finally {
      this.leave();
    }
  }

  /**
   * Resizes a mapping; the new address. It grows in place when there is room, else it moves if it may.
   * EINVAL misaligned or empty, EFAULT not one mapping, ENOMEM no room.
   */
  *mremap(address: number, oldLength: number, newLength: number, mayMove = true): Steps<number> {
    const start = this.checkRange('mremap', address, oldLength);
    const oldPages = pagesOf(oldLength), newPages = pagesOf(newLength);
    if (newPages === 0) throw new Errno('EINVAL', 'mremap to zero bytes');
    yield* this.enter();
    try {
      const area = this.areas.find(start);
      if (area === undefined || area.end < start + oldPages) throw new Errno('EFAULT', `mremap: ${hex(address)} is not one mapping of ${oldLength} bytes`);
      const size = pagesOfLevel(area.level);
      if (start % size !== 0 || oldPages % size !== 0 || newPages % size !== 0) throw new Errno('EINVAL', 'mremap inside a huge page');
      if (newPages <= oldPages) {
        if (newPages < oldPages) yield* unmapRegion(this, start + newPages, start + oldPages);
        return address;
      }
      return yield* this.growArea(area, start, oldPages, newPages, mayMove);
    } finally {
      this.leave();
    }
  }

  /** Sets the end of the heap; the new end. ENOMEM when it cannot, EINVAL below its start. */
  *brk(end: number): Steps<number> {
    if (end < HEAP_START) throw new Errno('EINVAL', `brk ${hex(end)} below the heap's start`);
    yield* this.enter();
    try {
      const oldPage = pagesOf(this.brkAddress), newPage = pagesOf(end);
      if (newPage > oldPage) {
        if (this.areas.intersecting(oldPage, newPage).length > 0) throw new Errno('ENOMEM', 'the heap runs into a mapping');
        this.areas.insert(new Vma(oldPage, newPage, PROT_READ | PROT_WRITE, 0));
      }
      this.brkAddress = end;
      if (newPage < oldPage) yield* unmapRegion(this, newPage, oldPage);
      return end;
    } finally {
      this.leave();
    }
  }

  /** A child's address space: same areas, private pages shared until written, no notifiers, nothing locked (B13). ENOMEM. */
  *fork(id: number, name: string): Steps<Mm> {
    yield* this.enter();
    try {
      const child = new Mm({ ...this.options, id, name });
      try {
        yield* copyMappings(this, child);
      } catch (error) {
        yield* child.put();
        throw error;
      }
      return child;
    } finally {
      this.leave();
    }
  }

  /** A load by the process. Throws SegmentationFault; bytes before the faulting page have been copied. */
  *read(address: number, target: Uint8Array, targetOffset = 0, length = target.length - targetOffset): Steps {
    while (length > 0) {
      const count = Math.min(length, 4096 - (address % 4096));
      this.memory.read(yield* this.reach(address, false), target, targetOffset, count);
      address += count;
      targetOffset += count;
      length -= count;
    }
  }

  /** A store by the process. Throws SegmentationFault; bytes before the faulting page have been written. */
  *write(address: number, source: Uint8Array, sourceOffset = 0, length = source.length - sourceOffset): Steps {
    while (length > 0) {
      const count = Math.min(length, 4096 - (address % 4096));
      this.memory.write(yield* this.reach(address, true), source, sourceOffset, count);
      address += count;
      sourceOffset += count;
      length -= count;
    }
  }

  /** memset by the process. */
  *fill(address: number, value: number, length: number): Steps {
    while (length > 0) {
      const count = Math.min(length, 4096 - (address % 4096));
      this.memory.fill(yield* this.reach(address, true), value, count);
      address += count;
      length -= count;
    }
  }

  /**
   * Faults in and pins `pages` pages from `address` on; their physical addresses, each to be given back through
   * `unpinPages`. A page that another address space shares is copied first, so that what is pinned is what this
   * process sees (FOLL_PIN). EINVAL misaligned, EFAULT not accessible, ENOMEM; nothing stays pinned on failure.
   */
  *pinPages(address: number, pages: number, write: boolean): Steps<number[]> {
    if (address % 4096 !== 0) throw new Errno('EINVAL', `pages at ${hex(address)} are not aligned`);
    const pinned: number[] = [];
    yield* this.enter();
    try {
      for (let i = 0; i < pages; i++) {
        const physical = yield* faultInForPin(this, address + i * 4096, write);
        this.frames.pin(physical);
        pinned.push(physical);
      }
    } finally {
      // also when the task is killed while it waits for a page
      if (pinned.length < pages) this.unpinPages(pinned);
      this.leave();
    }
    return pinned;
  }

  unpinPages(physical: readonly number[]): void {
    for (const address of physical) this.frames.unpin(address);
  }

  /**
   * `pinPages` for large ranges: appends what was pinned to `into` as runs of contiguous frames. Give them back
   * through `unpinRuns`. Errors as `pinPages`; nothing stays pinned or appended on failure: `into` comes empty.
   */
  *pinRange(address: number, pages: number, write: boolean, into: FrameRuns): Steps {
    if (address % 4096 !== 0) throw new Errno('EINVAL', `pages at ${hex(address)} are not aligned`);
    assert(into.count === 0, 'runs of another range');
    yield* this.enter();
    try {
      yield* pinRuns(this, address / 4096, pages, write, into);
    } catch (error) {
      this.unpinRuns(into);
      throw error;
    } finally {
      this.leave();
    }
  }

  /** Gives back the pins of `pinRange`, also after the end of the address space; the runs are empty then. */
  unpinRuns(runs: FrameRuns): void {
    for (let i = 0; i < runs.count; i++) this.frames.unpinRange(runs.frameOf(i) * 4096, runs.pagesOf(i));
    runs.clear();
  }

  /** Physical address of a byte, for looking from outside: faults nothing in, -1 where nothing is mapped. */
  physicalOf(address: number): number {
    return this.tables.translate(Math.floor(address / 4096), address % 4096);
  }

  private *handleFaultLocked(address: number, access: FaultAccess): Steps<FaultOutcome> {
    yield* this.enter();
    try {
      return yield* this.faultHoldingLock(address, access);
    } finally {
      this.leave();
    }
  }

  /** @internal handle_mm_fault for a caller that holds mmap_lock */
  *faultHoldingLock(address: number, access: FaultAccess): Steps<FaultOutcome> {
    if (this.exiting) return 'exiting';
    return tryFault(this, address, access) ?? (yield* breakSharing(this, address, true));
  }

  /** Physical address of a byte the process may load or store, with faults handled. */
  private *reach(address: number, write: boolean): Steps<number> {
    const page = Math.floor(address / 4096);
    const access = write ? ACCESS_WRITE : ACCESS_READ;
    for (let tries = 0; !(address < TASK_SIZE && this.cpu.walk(this.pgd, this.levels, page, write)); tries++) {
      assert(tries < 1000, 'a handled fault does not let the access through');
      const outcome = yield* this.handleFault(address, access);
      if (outcome !== 'handled') throw new SegmentationFault(this, address, access, outcome);
    }
    return this.cpu.physical + (address % 4096);
  }

  private *mapArea(length: number, options: MmapOptions, shared: SharedPages | undefined, file: Uint8Array | undefined): Steps<number> {
    const level = options.hugeLevel ?? 0;
    if (level === 2 && !this.usesGigantic) throw new Errno('EINVAL', 'this CPU has no 1 GiB pages');
    if (!(length > 0)) throw new Errno('EINVAL', `mmap of ${length} bytes`);
    const size = pagesOfLevel(level);
    const pages = Math.ceil(pagesOf(length) / size) * size;
    yield* this.enter();
    try {
      const start = yield* this.place(pages, size, options);
      shared?.open(pages);
      const prot = (options.prot ?? (PROT_READ | PROT_WRITE)) & RIGHTS;
      this.areas.insert(new Vma(start, start + pages, prot, level, shared === undefined ? { file } : { shared }));
      if (options.populate === true) yield* this.populate(start, pages, prot);
      return start * 4096;
    } finally {
      this.leave();
    }
  }

  /** Where a new area goes; with MAP_FIXED, after what was there has been unmapped. */
  private *place(pages: number, size: number, options: MmapOptions): Steps<number> {
    const hint = options.address;
    if (hint !== undefined) {
      const start = hint / 4096;
      const fits = start % size === 0 && hint >= MMAP_MIN_ADDRESS && hint + pages * 4096 <= TASK_SIZE;
      const taken = fits && this.areas.intersecting(start, start + pages).length > 0;
      if (options.fixed !== undefined && !fits) throw new Errno(start % size === 0 ? 'ENOMEM' : 'EINVAL', `cannot map at ${hex(hint)}`);
      if (options.fixed === 'noreplace' && taken) throw new Errno('EEXIST', `${hex(hint)} is mapped already`);
      if (options.fixed === 'replace' && taken) {
        this.checkHugeAlignment('mmap', start, start + pages);
        yield* unmapRegion(this, start, start + pages);
      }
      if (fits && (options.fixed !== undefined || !taken)) return start;
    }
    const start = this.areas.gapBelow(MMAP_BASE / 4096, MMAP_MIN_ADDRESS / 4096, pages, size);
    if (start < 0) throw new Errno('ENOMEM', `no room for ${pages} pages in the address space of ${this.name}`);
    return start;
  }

  /** Errors of MAP_POPULATE are not reported, as in Linux. */
  private *populate(start: number, pages: number, prot: number): Steps {
    const access = (prot & PROT_WRITE) !== 0 ? ACCESS_WRITE : ACCESS_READ;
    for (let page = start; page < start + pages; page++) {
      if ((yield* this.faultHoldingLock(page * 4096, access)) !== 'handled') return;
    }
  }

  private *growArea(area: Vma, start: number, oldPages: number, newPages: number, mayMove: boolean): Steps<number> {
    const oldEnd = start + oldPages, newEnd = start + newPages;
    if (oldEnd === area.end && newEnd * 4096 <= TASK_SIZE && this.areas.startFrom(oldEnd) >= newEnd) {
      area.shared?.open(newEnd - oldEnd);
      this.areas.insert(new Vma(oldEnd, newEnd, area.prot, area.level, area, area.offset + area.pages));
      return start * 4096;
    }
    if (!mayMove) throw new Errno('ENOMEM', `no room behind ${hex(start * 4096)}, and the mapping may not move`);
    const target = this.areas.gapBelow(MMAP_BASE / 4096, MMAP_MIN_ADDRESS / 4096, newPages, pagesOfLevel(area.level));
    if (target < 0) throw new Errno('ENOMEM', `no room for ${newPages} pages in the address space of ${this.name}`);
    yield* moveRegion(this, area, start, oldEnd, target, newPages);
    return target * 4096;
  }

  /** First page of a range that a system call got. */
  private checkRange(call: string, address: number, length: number): number {
    if (address % 4096 !== 0) throw new Errno('EINVAL', `${call}: ${hex(address)} is not aligned to a page`);
    if (!(length > 0) || address < 0 || address + length > TASK_SIZE) throw new Errno('EINVAL', `${call}: ${length} bytes at ${hex(address)}`);
    return address / 4096;
  }

  private checkCovered(call: string, start: number, end: number): void {
    if (!this.areas.covers(start, end)) throw new Errno('ENOMEM', `${call}: not all of [${hex(start * 4096)}, ${hex(end * 4096)}) is mapped`);
  }

  private checkHugeAlignment(call: string, start: number, end: number): void {
    for (const area of this.areas.intersecting(start, end)) {
      const size = pagesOfLevel(area.level);
      if ((start > area.start && start % size !== 0) || (end < area.end && end % size !== 0)) {
        throw new Errno('EINVAL', `${call} of a part of a huge page at ${hex(area.start * 4096)}`);
      }
    }
  }
}

/** Pages that hold `bytes`. */
function pagesOf(bytes: number): number {
  return Math.ceil(bytes / 4096);
}
