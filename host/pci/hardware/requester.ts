/**
 * What a device moves bytes with: it translates through ATS when that is enabled, caches translations, asks for
 * pages through PRI and waits for the response, or sends plain untranslated requests otherwise. It answers
 * invalidations and ends everything on reset or removal (PCIe 6.0 chapter 10; requirements 7.1, R-RACE-6, P9).
 *
 * `readNow` and `writeNow` move at once what the cache knows, without a task; `read` and `write` do the rest and
 * may block. None of them lets the time of the data transfer pass: the caller sleeps `result.costNs` once.
 */
import { assert } from '../../../sim/assert.js';
import type { Clock } from '../../../sim/clock.js';
import { sleep, type Scheduler, type Steps } from '../../../sim/task.js';
import type { Timing } from '../../timing.js';
import {
  ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE, ATTR_EXECUTE, ATTR_NO_WRITE, ATTR_PRIVILEGED, ATTR_TRANSLATED,
  DMA_DONE, DMA_HELD, DMA_REVOKED, NO_PASID, PRG_SUCCESS, type DmaClient, type DmaPort, type DmaStatus,
} from '../dma-port.js';
import { Atc, ATC_EXECUTE, ATC_READ, ATC_UNTRANSLATED_ONLY, ATC_WRITE } from './atc.js';
import { PRG_ABANDONED } from './page-request-groups.js';
import { HeldWaits, PageRequester } from './page-requester.js';
import { PasidUses, type PasidUse } from './pasid-uses.js';
import type { PciFunction } from './pci-function.js';
import { PendingInvalidations, PendingTranslations } from './requester-pending.js';

/**
 * `done`; `page-fault`: no translation with the needed rights, and PRI did not help; `error`: the fabric refused
 * (UR, CA); `revoked`: bus mastering off, reset, removed, or the PASID is being stopped.
 */
export type RequesterStatus = 'done' | 'page-fault' | 'error' | 'revoked';

/** One object per requester: read it before anything else runs. */
export interface RequesterResult {
  status: RequesterStatus;
  /** Bytes that moved, from the start. */
  doneBytes: number;
  /** Where it stopped, unless done. */
  faultPage: number;
  faultOffset: number;
  /** ACCESS_* that was asked for. */
  faultAccess: number;
  /** PRG_* code of the response that ended it, -1 without one. */
  response: number;
  /** What the transfer took and the caller has not slept yet. */
  costNs: number;
}

export interface RequesterOptions {
  readonly name: string;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly timing: Timing;
  /** Entries of the address translation cache, a power of two; 1024 unless given. */
  readonly atcEntries?: number;
  /** What the device does about messages that are not the requester's: groups and held operations of its own. */
  readonly forward?: Partial<DmaClient>;
  /**
   * `pci.ignore-invalidation`, `pci.keep-raced-translation`, `pci.early-invalidate-completion`,
   * `pci.atc-pasid-less-invalidation`, `pci.reuse-prg-index`, `pci.forge-translated`
   */
  readonly defects?: ReadonlySet<string>;
}

/** Where the defect `pci.forge-translated` goes: memory that some kernel owns. */
const FORGED_PAGE = 0x8000;

export type StopStyle = 'wait' | 'marker';

/** How an attempt without waiting ended, beside the DMA_* values: no usable translation for a page. */
const MISS = 16;
const NOTHING = -1;
type Attempt = DmaStatus | typeof MISS;

// how a translation request ended
const FILLED = 0;
const NO_TRANSLATION = 1;
const REFUSED = 2;
const GONE = 3;

export class Requester implements DmaClient {
  readonly name: string;
  readonly atc: Atc;
  readonly result: RequesterResult = { status: 'done', doneBytes: 0, faultPage: 0, faultOffset: 0, faultAccess: 0, response: -1, costNs: 0 };
  /** Responses that matched no group. */
  unexpectedResponses = 0;
  /** Completions that were dropped because an invalidation overtook them (R-RACE-6). */
  racedTranslations = 0;
  private readonly clock: Clock;
  private readonly timing: Timing;
  private readonly forward: Partial<DmaClient>;
  private readonly uses = new PasidUses();
  private readonly held: HeldWaits;
  private readonly pages: PageRequester;
  private readonly translations = new PendingTranslations();
  private readonly invalidations: PendingInvalidations;
  private fn: PciFunction | undefined;
  private port: DmaPort | undefined;
  private epoch = 0;
  // left by the last attempt: what moved, what it took, what is held
  private nowDone = 0;
  private nowCostNs = 0;
  private heldBytes = 0;
  private heldToken = 0;
  /** An attempt of `readNow` or `writeNow` that `read` or `write` carries on. */
  private unfinished: Attempt | typeof NOTHING = NOTHING;
  private unfinishedPage = 0;
  private unfinishedLength = 0;
  private readonly ignoreInvalidation: boolean;
  private readonly keepRaced: boolean;
  private readonly forgeTranslated: boolean;

  constructor(options: RequesterOptions) {
    const defects = options.defects ?? new Set<string>();
    this.name = options.name;
    this.clock = options.clock;
    this.timing = options.timing;
    this.forward = options.forward ?? {};
    this.atc = new Atc({ entries: options.atcEntries ?? 1024, defects });
    this.held = new HeldWaits(options.scheduler);
    this.pages = new PageRequester(options.scheduler, options.name, this.uses, this.held, defects);
    this.invalidations = new PendingInvalidations((tag) => this.port!.invalidateCompletion(tag), defects.has('pci.early-invalidate-completion'));
    this.ignoreInvalidation = defects.has('pci.ignore-invalidation');
    this.keepRaced = defects.has('pci.keep-raced-translation');
    this.forgeTranslated = defects.has('pci.forge-translated');
  }

  /** Joins the requester to its function, of which it must be the `client`. */
  attach(fn: PciFunction): void {
    assert(this.fn === undefined, `${this.name} is attached already`);
    this.fn = fn;
    this.port = fn.port;
    this.pages.attach(fn);
    fn.listen((change) => {
      if (change === 'reset' || change === 'removed') this.reset();
      else if (change === 'ats' && !fn.atsEnabled) this.dropTranslations();
      else if (change === 'bus-master' || change === 'pri') this.pages.wakeAll();
    });
  }

  /** Page request groups without a response. */
  get outstandingGroups(): number {
    return this.pages.outstanding;
  }

  /**
   * Moves at once what needs no waiting. True: it ended, see `result`. False: call `read` with the same arguments
   * next, it carries on from where this attempt stopped.
   */
  readNow(page: number, offset: number, target: Uint8Array, targetOffset: number, length: number, pasid: number, attributes: number): boolean {
    return this.tryNow(false, page, offset, target, targetOffset, length, pasid, attributes);
  }

  /** Like `readNow`, for `write`. */
  writeNow(page: number, offset: number, source: Uint8Array, sourceOffset: number, length: number, pasid: number, attributes: number): boolean {
    return this.tryNow(true, page, offset, source, sourceOffset, length, pasid, attributes);
  }

  /**
   * Memory read of any length at (page, offset); waits for translations, pages and held operations.
   * @param attributes ATTR_PRIVILEGED, ATTR_EXECUTE
   * @param blockOnFault ask for missing pages through PRI and wait; else a missing page ends it
   */
  read(page: number, offset: number, target: Uint8Array, targetOffset: number, length: number, pasid: number, attributes: number, blockOnFault: boolean): Steps<RequesterResult> {
    return this.move(false, page, offset, target, targetOffset, length, pasid, attributes, blockOnFault);
  }

  /** Memory write; see `read`. */
  write(page: number, offset: number, source: Uint8Array, sourceOffset: number, length: number, pasid: number, attributes: number, blockOnFault: boolean): Steps<RequesterResult> {
    return this.move(true, page, offset, source, sourceOffset, length, pasid, attributes, blockOnFault);
  }

  /**
   * Asks for `count` pages from `page` on, in groups as large as the allocation allows (the last request of each is
   * marked last), and waits for the responses. Returns the first code that is not PRG_SUCCESS, else PRG_SUCCESS;
   * -1 when requests cannot be made or were abandoned.
   * @param access ACCESS_*
   */
  *prefetchPages(page: number, count: number, access: number, pasid: number): Steps<number> {
    const use = this.uses.enter(pasid);
    if (use === undefined) return PRG_ABANDONED;
    try {
      let code = PRG_SUCCESS;
      while (count > 0 && code === PRG_SUCCESS) {
        const group = Math.min(count, Math.max(1, this.fn!.priAllocation));
        code = yield* this.pages.request(page, group, access, pasid);
        page += group;
        count -= group;
      }
      return code;
    } finally {
      this.leave(use);
    }
  }

  /**
   * Stops using a PASID (PCIe 6.0 section 10.4.1.2, P9): new operations with it end as revoked, running ones end at
   * their next wait. 'wait' returns when every page request is answered; 'marker' does not wait for responses but
   * sends a stop marker behind the last request.
   */
  *stopPasid(pasid: number, style: StopStyle): Steps {
    const use = this.uses.stop(pasid);
    const { pages } = this;
    if (style === 'marker') pages.abandonPasid(pasid);
    pages.wakeAll();
    try {
      yield* pages.changed.until(() => use.operations === 0 && (style === 'marker' || pages.countOf(pasid) === 0));
      if (style === 'marker' && pages.active && !this.port!.revoked) {
        const status = this.port!.pageRequest(0, 0, true, 0, pasid);
        if (status === DMA_HELD) yield* this.held.wait(this.port!.heldToken);
      }
    } finally {
      this.uses.stopped(use);
    }
  }

  /** Forgets everything; operations that wait end as revoked. Called for every reset and removal of the function. */
  reset(): void {
    this.epoch++;
    this.dropTranslations();
    this.pages.reset();
  }

  pageResponse(prgIndex: number, code: number, pasid: number): void {
    if (this.pages.respond(prgIndex, code, pasid)) return;
    if (this.forward.pageResponse !== undefined) {
      this.forward.pageResponse(prgIndex, code, pasid);
    } else {
      this.unexpectedResponses++;
      this.fn!.pri?.unexpectedResponse();
    }
  }

  invalidate(tag: number, page: number, pages: number, pasid: number, global: boolean): void {
    if (!this.ignoreInvalidation) {
      this.atc.invalidate(page, pages, pasid, global);
      if (!this.keepRaced) this.translations.race(page, pages, pasid, global);
    }
    this.forward.invalidate?.(tag, page, pages, pasid, global);
    this.clock.post(this.timing.jittered(this.timing.options.deviceTlbInvalidationNs), this.invalidations.begin(tag));
  }

  heldDone(token: number, status: DmaStatus): void {
    this.invalidations.ended(token);
    if (!this.held.end(token, status)) this.forward.heldDone?.(token, status);
  }

  private dropTranslations(): void {
    this.atc.clear();
    this.translations.race(0, Infinity, NO_PASID, false);
  }

  private leave(use: PasidUse): void {
    use.operations--;
    if (use.stops > 0) this.pages.changed.wakeAll();
  }

  private tryNow(write: boolean, page: number, offset: number, buffer: Uint8Array, bufferOffset: number, length: number, pasid: number, attributes: number): boolean {
    if (this.uses.stopping(pasid)) return this.finish('revoked', 0, page, offset, write, attributes, 0) !== undefined;
    const status = this.attempt(write, page, offset, buffer, bufferOffset, length, pasid, attributes);
    if (status === MISS || status === DMA_HELD) {
      this.unfinished = status;
      this.unfinishedPage = page;
      this.unfinishedLength = length;
      return false;
    }
    this.finish(statusOf(status), this.nowDone, page, offset, write, attributes, this.nowCostNs);
    return true;
  }

  private *move(write: boolean, page: number, offset: number, buffer: Uint8Array, bufferOffset: number, length: number, pasid: number, attributes: number, blockOnFault: boolean): Steps<RequesterResult> {
    let status: Attempt | typeof NOTHING = this.unfinished;
    this.unfinished = NOTHING;
    assert(status === NOTHING || (this.unfinishedPage === page && this.unfinishedLength === length), `${this.name}: an attempt was not carried on`);
    const use = this.uses.enter(pasid);
    if (use === undefined) return this.finish('revoked', 0, page, offset, write, attributes, 0);
    const { epoch, translations } = this;
    const port = this.port!;
    let done = 0, costNs = 0;
    /** A translation request whose completion is on its way. */
    let slot = -1;
    try {
      for (;;) {
        if (status === NOTHING) {
          const byte = offset + done;
          status = this.attempt(write, page + Math.floor(byte / 4096), byte % 4096, buffer, bufferOffset + done, length - done, pasid, attributes);
        }
        done += this.nowDone;
        costNs += this.nowCostNs;
        if (status === DMA_HELD) {
          const bytes = this.heldBytes;
          status = yield* this.held.wait(this.heldToken);
          if (status === DMA_DONE) done += bytes;
          // what was held may be only a part: the pages behind it have not been tried
          if (status === DMA_DONE && done < length) status = NOTHING;
        } else if (status === MISS) {
          const missing = page + Math.floor((offset + done) / 4096);
          const asked = port.translate(missing, pasid, write ? attributes : attributes | ATTR_NO_WRITE);
          let filled = GONE;
          if (asked === DMA_HELD) {
            filled = yield* this.heldTranslation(port.heldToken);
          } else if (asked !== DMA_REVOKED) {
            slot = translations.begin(missing, pasid, port.translation);
            // the time of the transfer before it passes with that of the request
            yield* sleep(this.clock, costNs + port.costNs);
            filled = this.fill(slot, asked, missing, pasid, attributes, write, epoch);
            slot = -1;
          }
          costNs = 0;
          if (filled === NO_TRANSLATION) {
            if (!blockOnFault || !this.pages.active) return this.finish('page-fault', done, page, offset, write, attributes, 0);
            const code: number = yield* this.pages.request(missing, 1, accessOf(write, attributes), pasid);
            if (code !== PRG_SUCCESS) return this.unanswered(code, done, page, offset, write, attributes, epoch, pasid);
          } else if (filled !== FILLED) {
            return this.finish(filled === GONE ? 'revoked' : 'error', done, page, offset, write, attributes, 0);
          }
          status = NOTHING;
        }
        if (status !== NOTHING) return this.finish(statusOf(status), done, page, offset, write, attributes, costNs);
        if (epoch !== this.epoch || this.uses.stopping(pasid)) return this.finish('revoked', done, page, offset, write, attributes, costNs);
      }
    } finally {
      if (slot >= 0) translations.end(slot);
      this.leave(use);
    }
  }

  /** A page request ended without success: answered so, or not to be answered any more. */
  private unanswered(code: number, done: number, page: number, offset: number, write: boolean, attributes: number, epoch: number, pasid: number): RequesterResult {
    const gone = code === PRG_ABANDONED && (epoch !== this.epoch || this.port!.revoked || this.uses.stopping(pasid));
    const result = this.finish(gone ? 'revoked' : 'page-fault', done, page, offset, write, attributes, 0);
    result.response = code;
    return result;
  }

  private *heldTranslation(token: number): Steps<number> {
    const end = yield* this.held.wait(token);
    return end === DMA_DONE ? FILLED : end === DMA_REVOKED ? GONE : REFUSED;
  }

  /**
   * The completion of a translation request arrived. FILLED means: try again (the completion may also have been
   * overtaken by an invalidation, then it is asked for anew).
   */
  private fill(slot: number, status: DmaStatus, page: number, pasid: number, attributes: number, write: boolean, epoch: number): number {
    const raced = this.translations.end(slot);
    if (epoch !== this.epoch) return GONE;
    if (status !== DMA_DONE) return REFUSED;
    if (raced) {
      this.racedTranslations++;
      return FILLED;
    }
    const completion = this.translations.completion(slot);
    const flags = (completion.read ? ATC_READ : 0) | (completion.write ? ATC_WRITE : 0) | (completion.execute ? ATC_EXECUTE : 0);
    if (!permits(flags, write, attributes)) return NO_TRANSLATION;
    this.atc.insert(page, pasid, (attributes & ATTR_PRIVILEGED) !== 0, completion);
    return FILLED;
  }

  /**
   * Moves what can be moved now. Leaves `nowDone` and `nowCostNs`, for DMA_HELD also `heldToken` and `heldBytes`.
   * MISS: the page behind `nowDone` has no usable translation.
   */
  private attempt(write: boolean, page: number, offset: number, buffer: Uint8Array, bufferOffset: number, length: number, pasid: number, attributes: number): Attempt {
    this.nowDone = 0;
    this.nowCostNs = 0;
    const port = this.port!, { atc } = this;
    if (port.revoked) return DMA_REVOKED;
    if (!this.fn!.atsEnabled) return this.transfer(port, write, page, offset, buffer, bufferOffset, length, pasid, attributes);
    if (this.forgeTranslated && pasid !== NO_PASID) return this.transfer(port, write, FORGED_PAGE + (page % 256), offset, buffer, bufferOffset, length, NO_PASID, ATTR_TRANSLATED);
    const privileged = (attributes & ATTR_PRIVILEGED) !== 0;
    const tlpNs = this.timing.options.tlpNs * (write ? 1 : 2);
    let left = length, runs = 0;
    while (left > 0) {
      let entry = atc.lookup(page, pasid, privileged);
      if (entry < 0 || !permits(atc.flagsAt(entry), write, attributes)) return MISS;
      const untranslated = (atc.flagsAt(entry) & ATC_UNTRANSLATED_ONLY) !== 0;
      const first = untranslated ? page : atc.pageAt(entry, page);
      let bytes = Math.min(4096 - offset, left), pages = 1;
      // neighbours in translated memory travel as one request
      while (bytes < left && !untranslated) {
        entry = atc.lookup(page + pages, pasid, privileged);
        if (entry < 0 || (atc.flagsAt(entry) & ATC_UNTRANSLATED_ONLY) !== 0 || !permits(atc.flagsAt(entry), write, attributes)) break;
        if (atc.pageAt(entry, page + pages) !== first + pages) break;
        bytes = Math.min(bytes + 4096, left);
        pages++;
      }
      const status = untranslated
        ? this.transfer(port, write, first, offset, buffer, bufferOffset + length - left, bytes, pasid, attributes)
        : this.transfer(port, write, first, offset, buffer, bufferOffset + length - left, bytes, NO_PASID, ATTR_TRANSLATED);
      // requests overlap on the wire: only the first one's way counts
      if (runs++ > 0) this.nowCostNs -= tlpNs;
      if (status !== DMA_DONE) return status;
      left -= bytes;
      page += pages;
      offset = 0;
    }
    return DMA_DONE;
  }

  private transfer(port: DmaPort, write: boolean, page: number, offset: number, buffer: Uint8Array, bufferOffset: number, length: number, pasid: number, attributes: number): DmaStatus {
    const status = write
      ? port.write(page, offset, buffer, bufferOffset, length, pasid, attributes)
      : port.read(page, offset, buffer, bufferOffset, length, pasid, attributes);
    this.nowDone += port.doneBytes;
    this.nowCostNs += port.costNs;
    if (status === DMA_HELD) {
      this.heldToken = port.heldToken;
      this.heldBytes = length - port.doneBytes;
      if ((attributes & ATTR_TRANSLATED) !== 0) this.invalidations.hold(port.heldToken);
    }
    return status;
  }

  private finish(status: RequesterStatus, done: number, page: number, offset: number, write: boolean, attributes: number, costNs: number): RequesterResult {
    const { result } = this;
    result.status = status;
    result.doneBytes = done;
    result.faultPage = page + Math.floor((offset + done) / 4096);
    result.faultOffset = (offset + done) % 4096;
    result.faultAccess = accessOf(write, attributes);
    result.response = -1;
    result.costNs = costNs;
    return result;
  }
}

function statusOf(status: Attempt): RequesterStatus {
  return status === DMA_DONE ? 'done' : status === DMA_REVOKED ? 'revoked' : 'error';
}

function accessOf(write: boolean, attributes: number): number {
  return (write ? ACCESS_WRITE : ACCESS_READ) | ((attributes & ATTR_EXECUTE) === 0 ? 0 : ACCESS_EXECUTE)
    | ((attributes & ATTR_PRIVILEGED) === 0 ? 0 : ACCESS_PRIVILEGED);
}

function permits(flags: number, write: boolean, attributes: number): boolean {
  if (write) return (flags & ATC_WRITE) !== 0;
  return (flags & ATC_READ) !== 0 && ((attributes & ATTR_EXECUTE) === 0 || (flags & ATC_EXECUTE) !== 0);
}
