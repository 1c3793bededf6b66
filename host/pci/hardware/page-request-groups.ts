/**
 * The page request groups of one function: which of the 512 group indices are in use, for which PASID, and what was
 * answered (PCIe 6.0 section 10.4; requirements 7.1). An index is not used again before its response arrived.
 */
import { assert } from '../../../sim/assert.js';
import { WaitQueue, type Scheduler } from '../../../sim/task.js';
import { NO_PASID } from '../dma-port.js';
import { PRG_INDEX_COUNT } from '../spec/index.js';

/** No response will come: reset, removal, the PASID is being stopped. */
export const PRG_ABANDONED = -1;

/** What is known of an index; made once and used again when nobody looks at it any more. */
export interface PageRequestGroup {
  pasid: number;
  credits: number;
  /** Waits for its response. */
  open: boolean;
  code: number;
  /** The requester no longer waits; the response only frees the index and the credits (stop marker, section 10.4.1.2). */
  stale: boolean;
  /** Whoever waits may go on: answered, or abandoned. */
  ended: boolean;
  /** Tasks that still have to read `code`. */
  readers: number;
  readonly queue: WaitQueue;
}

export class PageRequestGroups {
  private readonly scheduler: Scheduler;
  private readonly name: string;
  private readonly groups: (PageRequestGroup | undefined)[] = Array.from({ length: PRG_INDEX_COUNT }, () => undefined);
  private next = 0;
  /** Groups without a response. */
  outstanding = 0;
  private readonly reuseEarly: boolean;

  /** @param defects `pci.reuse-prg-index`: every group gets index 0 */
  constructor(scheduler: Scheduler, name: string, defects: ReadonlySet<string>) {
    this.scheduler = scheduler;
    this.name = name;
    this.reuseEarly = defects.has('pci.reuse-prg-index');
  }

  /** All 512 indices are in use. */
  get full(): boolean {
    return this.outstanding >= PRG_INDEX_COUNT;
  }

  /** Takes a free index for a group of `credits` requests; there must be one. */
  open(pasid: number, credits: number): number {
    assert(!this.full, `no page request group index left in ${this.name}`);
    let index = this.reuseEarly ? 0 : this.next;
    while (this.groups[index]?.open === true && !this.reuseEarly) index = (index + 1) % PRG_INDEX_COUNT;
    let group = this.groups[index];
    if (group === undefined || group.open || group.readers > 0) this.groups[index] = group = this.newGroup(index);
    group.pasid = pasid;
    group.credits = credits;
    group.open = true;
    group.stale = false;
    group.ended = false;
    group.code = PRG_ABANDONED;
    this.next = (index + 1) % PRG_INDEX_COUNT;
    this.outstanding++;
    return index;
  }

  /** A group that was opened. Who waits for its end counts among its `readers` until it has read the code. */
  at(index: number): PageRequestGroup {
    return this.groups[index]!;
  }

  /** True when a group with that index (and PASID, where responses carry it) waits for a response. */
  expects(index: number, pasid: number, pasidRequired: boolean): boolean {
    const group = this.groups[index];
    if (group === undefined || !group.open) return false;
    return !pasidRequired || group.pasid === NO_PASID || group.pasid === pasid;
  }

  /** Ends a group; returns its credits. */
  respond(index: number, code: number): number {
    const group = this.groups[index]!;
    group.open = false;
    this.outstanding--;
    if (!group.stale) {
      group.code = code;
      group.ended = true;
      group.queue.wakeAll();
    }
    return group.credits;
  }

  isStale(index: number): boolean {
    return this.groups[index]?.stale ?? false;
  }

  /** Groups of a PASID that somebody still waits for. */
  countOf(pasid: number): number {
    let count = 0;
    for (const group of this.groups) if (group?.open === true && group.pasid === pasid && !group.stale) count++;
    return count;
  }

  /** Who waits for groups of `pasid` waits no longer; the responses will still come. */
  abandonPasid(pasid: number): void {
    for (const group of this.groups) {
      if (group?.open !== true || group.pasid !== pasid || group.stale) continue;
      group.stale = true;
      group.ended = true;
      group.queue.wakeAll();
    }
  }

  /** Forgets every group; waiters get `code`. */
  dropAll(code: number): void {
    if (this.outstanding === 0) return;
    for (let index = 0; index < PRG_INDEX_COUNT; index++) if (this.groups[index]?.open === true) this.respond(index, code);
    this.outstanding = 0;
  }

  private newGroup(index: number): PageRequestGroup {
    const queue = new WaitQueue(this.scheduler, `response to page request group ${index} of ${this.name}`);
    return { pasid: NO_PASID, credits: 0, open: false, code: PRG_ABANDONED, stale: false, ended: false, readers: 0, queue };
  }
}
