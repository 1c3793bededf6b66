/**
 * The page request side of a function: takes credits from the (shared) page request interface, sends groups, waits
 * for responses. Without credits or a free index a request waits, nothing is lost (requirements 7.1).
 */
import { Completion, WaitQueue, type Scheduler, type Steps } from '../../../sim/task.js';
import { DMA_DONE, DMA_HELD, PRG_FAILURE, PRG_INVALID, PRG_SUCCESS, type DmaPort, type DmaStatus } from '../dma-port.js';
import { PageRequestGroups, PRG_ABANDONED } from './page-request-groups.js';
import type { PageRequestInterface } from './page-request-interface.js';
import type { PasidUses } from './pasid-uses.js';
import type { PciFunction } from './pci-function.js';

/** Held operations that a task waits for. */
export class HeldWaits {
  private readonly scheduler: Scheduler;
  private readonly waits = new Map<number, { readonly ended: Completion; status: DmaStatus }>();

  constructor(scheduler: Scheduler) {
    this.scheduler = scheduler;
  }

  /** Waits for the end of the operation that was held last under `token`. */
  *wait(token: number): Steps<DmaStatus> {
    const wait = { ended: new Completion(this.scheduler, `held DMA operation ${token}`), status: DMA_DONE as DmaStatus };
    this.waits.set(token, wait);
    yield* wait.ended.wait();
    return wait.status;
  }

  /** True when a task waited for it. */
  end(token: number, status: DmaStatus): boolean {
    const wait = this.waits.get(token);
    if (wait === undefined) return false;
    this.waits.delete(token);
    wait.status = status;
    wait.ended.complete();
    return true;
  }
}

export class PageRequester {
  /** Wakes who waits for the end of a PASID's use. */
  readonly changed: WaitQueue;
  /** Requests that wait for credits or a group index. One is woken at a time, and wakes the next while there are some. */
  private readonly waiting: WaitQueue;
  private readonly groups: PageRequestGroups;
  private readonly uses: PasidUses;
  private readonly held: HeldWaits;
  private pri: PageRequestInterface | undefined;
  private port: DmaPort | undefined;
  /** Credits of the shared pool that this function's groups hold. */
  private credits = 0;
  /** Grows whenever all groups are forgotten. */
  private generation = 0;

  constructor(scheduler: Scheduler, name: string, uses: PasidUses, held: HeldWaits, defects: ReadonlySet<string>) {
    this.changed = new WaitQueue(scheduler, `the end of a PASID's use by ${name}`);
    this.waiting = new WaitQueue(scheduler, `page request credits of ${name}`);
    this.groups = new PageRequestGroups(scheduler, name, defects);
    this.uses = uses;
    this.held = held;
  }

  attach(fn: PciFunction): void {
    this.pri = fn.pri;
    this.port = fn.port;
    fn.pri?.listen((event) => {
      // the interface has forgotten its credits already
      if (event === 'reset' || event === 'failed') {
        this.credits = 0;
        this.generation++;
        this.groups.dropAll(event === 'failed' ? PRG_FAILURE : PRG_ABANDONED);
      }
      if (event !== 'credit') this.wakeAll();
      else {
        this.waiting.wakeOne();
        this.changed.wakeAll();
      }
    });
  }

  /** Something changed that every request may have to end for. */
  wakeAll(): void {
    this.waiting.wakeAll();
    this.changed.wakeAll();
  }

  /** Groups without a response. */
  get outstanding(): number {
    return this.groups.outstanding;
  }

  get active(): boolean {
    return this.pri !== undefined && this.pri.active && this.pri.allocation > 0;
  }

  /**
   * Sends one group for `count` pages and waits for its response. Returns the response code; PRG_ABANDONED when
   * requests cannot be made, the PASID is being stopped, or the function was reset.
   */
  *request(page: number, count: number, access: number, pasid: number): Steps<number> {
    const pri = this.pri, port = this.port!;
    if (pri === undefined) return PRG_ABANDONED;
    for (;;) {
      if (!this.active || count > pri.allocation || port.revoked || this.uses.stopping(pasid)) {
        this.waiting.wakeOne();
        return PRG_ABANDONED;
      }
      // credits of a whole group at once: two halves that wait for each other would never end
      if (!this.groups.full && pri.take(count)) break;
      yield this.waiting;
    }
    const index = this.groups.open(pasid, count);
    this.credits += count;
    if (pri.outstanding < pri.allocation && !this.groups.full) this.waiting.wakeOne();
    for (let i = 0; i < count; i++) {
      const status = port.pageRequest(page + i, access, i === count - 1, index, pasid);
      if (status === DMA_HELD) {
        const { generation } = this;
        yield* this.held.wait(port.heldToken);
        if (generation !== this.generation) return PRG_ABANDONED;
      } else if (status !== DMA_DONE) {
        this.close(index, PRG_ABANDONED);
        return PRG_ABANDONED;
      }
    }
    const group = this.groups.at(index);
    group.readers++;
    try {
      while (!group.ended) yield group.queue;
      return group.code;
    } finally {
      group.readers--;
    }
  }

  /** A response arrived; false when no group expects it. */
  respond(prgIndex: number, code: number, pasid: number): boolean {
    const pri = this.pri;
    // after a response failure no response is expected, any that comes is ignored (section 10.5.2.3)
    if (pri?.failed === true) return true;
    if (!this.groups.expects(prgIndex, pasid, pri?.prgResponsePasidRequired ?? false)) return false;
    // every code that is neither success nor invalid is a response failure (section 10.4.2.1)
    const failure = code !== PRG_SUCCESS && code !== PRG_INVALID;
    if (failure && !this.groups.isStale(prgIndex)) pri?.responseFailure();
    else this.close(prgIndex, code);
    return true;
  }

  /** Groups of `pasid` whose response somebody waits for. */
  countOf(pasid: number): number {
    return this.groups.countOf(pasid);
  }

  abandonPasid(pasid: number): void {
    this.groups.abandonPasid(pasid);
    this.wakeAll();
  }

  /** The function was reset or is gone; its credits return to the pool that it shares. */
  reset(): void {
    const { credits } = this;
    this.credits = 0;
    this.generation++;
    this.groups.dropAll(PRG_ABANDONED);
    if (credits > 0) this.pri?.give(credits);
    this.wakeAll();
  }

  private close(index: number, code: number): void {
    const credits = this.groups.respond(index, code);
    this.credits -= credits;
    this.pri?.give(credits);
  }
}
