/**
 * What an address space is (`struct mm_struct`): its areas, its page tables, its users, its lock and its notifiers.
 * The system calls are in mm.ts, the work behind them in faults.ts, unmap.ts, protect.ts, move.ts and fork.ts.
 *
 * Two counts, as in Linux: users (mm_users) keep the mappings, references (mm_count) keep the structure and its
 * root table. All users together hold one reference (kernel/fork.c, `mmput`, `__mmdrop`).
 */
import { assert } from '../../sim/assert.js';
import { Errno } from '../../sim/errno.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import { Mutex, type Scheduler, type Steps } from '../../sim/task.js';
import type { Trace, TraceKind } from '../../sim/trace.js';
import type { FrameAllocator } from '../frames.js';
import { PageTable } from '../page-table/page-table.js';
import { X86_64 } from '../page-table/x86-64.js';
import type { AddressSpace, FaultAccess, FaultOutcome, MmNotifier } from './address-space.js';
import { VmaList } from './vma.js';

export interface MmOptions {
  readonly id: number;
  /** Name of the process. */
  readonly name: string;
  readonly memory: PhysicalMemory;
  readonly frames: FrameAllocator;
  readonly scheduler: Scheduler;
  readonly trace?: Trace | undefined;
  /** Records every change of an entry (`mm:set_pte`, `mm:clear_pte`), for checkers. */
  readonly traceEntries?: boolean | undefined;
  /** Paging levels of the CPU, 4 when left out. */
  readonly levels?: 4 | 5 | undefined;
  /** The CPU has 1 GiB leaves (pdpe1gb); true when left out. */
  readonly gigantic?: boolean | undefined;
  /** RLIMIT_MEMLOCK in pages; unlimited when left out. */
  readonly memlockLimitPages?: number | undefined;
  /** `mm.skip-notify`, `mm.free-before-notify`, `mm.fork-stays-writable`, `mm.ignore-area-protection`. */
  readonly defects?: ReadonlySet<string> | undefined;
}

/** Kinds of records an address space makes; all zero-cost without a trace. */
export interface MmTraceKinds {
  readonly pageFault: TraceKind;
  /** The word for its usual outcome. */
  readonly handled: number;
  readonly setPte: TraceKind;
  readonly clearPte: TraceKind;
  readonly invalidate: TraceKind;
  /** Every notifier has returned: nobody may use the old entries any more. */
  readonly invalidated: TraceKind;
  readonly exit: TraceKind;
  readonly freed: TraceKind;
}

/** A page, of one leaf, on its way from a shared frame to a copy. */
export interface Unsharing {
  readonly page: number;
  readonly pages: number;
  /** The entry, and physical address of the copy. */
  readonly slot: number;
  readonly copy: number;
  /** Somebody who could not wait has mapped the copy; told when the notifiers are done. */
  mapped: boolean;
  done: (() => void)[];
}

const NO_NOTIFIERS: readonly MmNotifier[] = [];
const NO_DEFECTS: ReadonlySet<string> = new Set();
/** Owner of user frames in the frame allocator's accounts. */
export const USER_FRAMES = 'user';
const TABLE_FRAMES = 'page-table';

export abstract class MmCore implements AddressSpace {
  readonly id: number;
  readonly name: string;
  readonly levels: 4 | 5;
  readonly usesGigantic: boolean;
  readonly options: MmOptions;
  readonly memory: PhysicalMemory;
  readonly frames: FrameAllocator;
  readonly tables: PageTable;
  readonly areas = new VmaList();
  /** mmap_lock. */
  readonly lock: Mutex;
  readonly kinds: MmTraceKinds | undefined;
  /** Physical address of the root page table. */
  readonly pgd: number;
  users = 1;
  exiting = false;
  /** Mapped 4 KiB pages (the kernel's RSS). */
  residentPages = 0;
  /** Pages charged against RLIMIT_MEMLOCK. */
  lockedPages = 0;
  /** First byte after the heap; the heap starts at HEAP_START. */
  brkAddress = 0;
  readonly userOwner: number;
  readonly ignoreAreaProtection: boolean;
  readonly forkStaysWritable: boolean;
  readonly freeBeforeNotify: boolean;
  private readonly skipNotify: boolean;
  /** Copy on write that waits for the notifiers: the page's leaf is gone, its copy is not mapped yet. */
  unsharing: Unsharing | undefined;
  private references = 1;
  private notifiers: readonly MmNotifier[] = NO_NOTIFIERS;
  private freedCallbacks: (() => void)[] | undefined;

  constructor(options: MmOptions) {
    this.options = options;
    this.id = options.id;
    this.name = options.name;
    this.memory = options.memory;
    this.frames = options.frames;
    this.levels = options.levels ?? 4;
    this.usesGigantic = options.gigantic ?? true;
    this.tables = new PageTable({ memory: options.memory, frames: options.frames, format: X86_64, levels: this.levels, owner: TABLE_FRAMES });
    this.pgd = this.tables.root;
    this.lock = new Mutex(options.scheduler, 'mmap_lock');
    this.kinds = options.trace === undefined ? undefined : traceKinds(options.trace);
    this.userOwner = options.frames.ownerId(USER_FRAMES);
    const defects = options.defects ?? NO_DEFECTS;
    this.skipNotify = defects.has('mm.skip-notify');
    this.freeBeforeNotify = defects.has('mm.free-before-notify');
    this.forkStaysWritable = defects.has('mm.fork-stays-writable');
    this.ignoreAreaProtection = defects.has('mm.ignore-area-protection');
  }

  abstract handleFault(address: number, access: FaultAccess): Steps<FaultOutcome>;
  abstract tryHandleFault(address: number, access: FaultAccess): FaultOutcome | undefined;

  /** mmget_not_zero: one more user; false when none is left. */
  get(): boolean {
    if (this.users === 0) return false;
    this.users++;
    return true;
  }

  /** mmput: the last user calls `release` of the notifiers, unmaps everything and drops the users' reference. */
  *put(): Steps {
    if (this.dropUser()) yield* this.exitMmap();
  }

  /** mmput_async: the teardown, if this was the last user, runs in a task of its own (M5). */
  putAsync(): void {
    if (this.dropUser()) this.options.scheduler.spawn(`mmput ${this.name}`, this.exitMmap());
  }

  /** mmgrab: keeps the structure and the root table. */
  grab(): void {
    assert(this.references > 0, `mm ${this.id} grabbed after it was freed`);
    this.references++;
  }

  /** mmdrop: the last one frees the root table, then calls the `onFreed` callbacks. */
  drop(): void {
    assert(this.references > 0, `mm ${this.id} dropped too often`);
    if (--this.references > 0) return;
    assert(this.users === 0, `mm ${this.id} freed with ${this.users} users`);
    this.tables.destroy();
    this.record(this.kinds?.freed);
    const callbacks = this.freedCallbacks;
    this.freedCallbacks = undefined;
    callbacks?.forEach((callback) => callback());
  }

  /** True until the last `drop`. */
  get alive(): boolean {
    return this.references > 0;
  }

  onFreed(callback: () => void): void {
    assert(this.references > 0, `mm ${this.id} is freed already`);
    (this.freedCallbacks ??= []).push(callback);
  }

  /** The caller holds a user (mmu_notifier_register demands mm_users above zero). */
  registerNotifier(notifier: MmNotifier): void {
    assert(this.users > 0, `notifier registered on mm ${this.id}, which has no users`);
    // whoever can forget at once does so before anybody sleeps: nobody runs on an old entry while another waits
    const [swift, others] = [true, false].map((never) => this.notifiers.filter((other) => (other.neverSleeps ?? false) === never)) as [MmNotifier[], MmNotifier[]];
    this.notifiers = notifier.neverSleeps === true ? [...swift, notifier, ...others] : [...swift, ...others, notifier];
  }

  /** Nothing happens when `release` has run already: that ends every registration. */
  unregisterNotifier(notifier: MmNotifier): void {
    this.notifiers = this.notifiers.filter((registered) => registered !== notifier);
  }

  get hasNotifiers(): boolean {
    return this.notifiers.length > 0;
  }

  /** Telling the notifiers of a change may take time. */
  get notifiersMaySleep(): boolean {
    return this.notifiers.some((notifier) => notifier.neverSleeps !== true);
  }

  /** `invalidate` where no notifier sleeps. */
  invalidateNow(start: number, end: number): void {
    this.options.scheduler.runNow(`invalidation of ${this.name}`, this.invalidate(start, end));
  }

  /** Tells the notifiers that entries of pages [start, end) were removed or restricted; returns when all have invalidated. */
  *invalidate(start: number, end: number): Steps {
    this.record(this.kinds?.invalidate, start, end);
    const notified = this.skipNotify ? NO_NOTIFIERS : this.notifiers;
    for (const notifier of notified) {
      if (this.notifiers.includes(notifier)) yield* notifier.invalidateRange(this, start * 4096, end * 4096);
    }
    this.record(this.kinds?.invalidated, start, end);
  }

  /** Takes mmap_lock. Outside a task nothing can sleep, so there the lock only has to be free. */
  *enter(): Steps {
    if (this.options.scheduler.current !== undefined) yield* this.lock.lock();
    else assert(this.lock.owner === undefined, `mmap_lock of mm ${this.id} is held, and code outside a task cannot wait for it`);
  }

  leave(): void {
    if (this.lock.owner !== undefined) this.lock.unlock();
  }

  /** Pages that may still be charged; Infinity without a limit. */
  get lockablePages(): number {
    return Math.max(0, (this.options.memlockLimitPages ?? Infinity) - this.lockedPages);
  }

  /** Charges pages against RLIMIT_MEMLOCK. ENOMEM beyond the limit, unless the process may pass it (CAP_IPC_LOCK). */
  accountLocked(pages: number, mayPass = false): void {
    const limit = this.options.memlockLimitPages ?? Infinity;
    if (this.lockedPages + pages > limit && !mayPass) {
      throw new Errno('ENOMEM', `${this.name} locks ${this.lockedPages} pages, ${pages} more exceed RLIMIT_MEMLOCK of ${limit} pages`);
    }
    this.lockedPages += pages;
  }

  unaccountLocked(pages: number): void {
    assert(pages <= this.lockedPages, `${this.name} unlocks ${pages} pages, but has locked ${this.lockedPages}`);
    this.lockedPages -= pages;
  }

  /** @internal */
  record(kind: TraceKind | undefined, a1 = 0, a2 = 0, a3 = 0, a4 = 0): void {
    if (kind !== undefined) this.options.trace!.record(kind, 0, this.id, a1, a2, a3, a4);
  }

  /** @internal a leaf now maps `physical` */
  noteSet(page: number, physical: number, pages: number, writable: boolean): void {
    if (this.options.traceEntries === true) this.record(this.kinds?.setPte, page, physical / 4096, pages, writable ? 1 : 0);
  }

  /** @internal a leaf no longer maps `physical` */
  noteClear(page: number, physical: number, pages: number): void {
    if (this.options.traceEntries === true) this.record(this.kinds?.clearPte, page, physical / 4096, pages);
  }

  private dropUser(): boolean {
    assert(this.users > 0, `mm ${this.id} put too often`);
    if (--this.users > 0) return false;
    this.exiting = true;
    return true;
  }

  /** exit_mmap: notifiers first, while the tables are still whole (mm/mmap.c). */
  private *exitMmap(): Steps {
    this.record(this.kinds?.exit);
    const notified = this.notifiers;
    for (const notifier of notified) {
      if (this.notifiers.includes(notifier)) yield* notifier.release(this);
    }
    this.notifiers = NO_NOTIFIERS;
    this.tearDown();
    this.drop();
  }

  /** Frees everything but the root table. */
  private tearDown(): void {
    const { frames, tables } = this;
    tables.unmap(0, tables.endPage, (page, level, _slot, lo, hi) => {
      const pages = level === 0 ? 1 : level === 1 ? 512 : 0x4_0000;
      const frame = leafPhysical(lo, hi, level);
      this.residentPages -= pages;
      this.noteClear(page, frame, pages);
      frames.put(frame);
    });
    tables.freeRetired();
    for (const area of this.areas) area.shared?.close(area.pages);
    this.areas.clear();
    assert(this.residentPages === 0, `mm ${this.id} has ${this.residentPages} pages left`);
  }
}

/** Physical address that an x86-64 leaf maps. */
export function leafPhysical(lo: number, hi: number, level: number): number {
  const mask = level === 0 ? 0xffff_f000 : level === 1 ? 0xffe0_0000 : 0xc000_0000;
  return (hi & 0xf_ffff) * 0x1_0000_0000 + ((lo & mask) >>> 0);
}

function traceKinds(trace: Trace): MmTraceKinds {
  return {
    pageFault: trace.define('mm:page_fault', [['mm', 'dec'], ['address', 'page'], ['access', 'hex'], ['outcome', 'str']]),
    handled: trace.intern('handled'),
    setPte: trace.define('mm:set_pte', [['mm', 'dec'], ['address', 'page'], ['frame', 'page'], ['pages', 'dec'], ['writable', 'bool']], { hashed: false }),
    clearPte: trace.define('mm:clear_pte', [['mm', 'dec'], ['address', 'page'], ['frame', 'page'], ['pages', 'dec']], { hashed: false }),
    invalidate: trace.define('mm:invalidate_range', [['mm', 'dec'], ['start', 'page'], ['end', 'page']]),
    invalidated: trace.define('mm:invalidated', [['mm', 'dec'], ['start', 'page'], ['end', 'page']]),
    exit: trace.define('mm:exit_mmap', [['mm', 'dec']]),
    freed: trace.define('mm:free', [['mm', 'dec']]),
  };
}
