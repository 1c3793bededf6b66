/**
 * The back end of a VT-d unit in silicon: translates requests, answers ATS, checks page requests, remaps interrupts,
 * keeps the caches, and reaches device TLBs (rev 4.1, chapters 3 to 7). It is told what to obey and what to forget through
 * `BackEnd` and tells faults and page requests to a `FrontEndSink`; it knows no registers and no queues.
 *
 * Left out: protected memory regions, memory types, and faults about A/D updates that are not snooped (0x7C, 0x90): memory is coherent.
 */
import { assert } from '../../../sim/assert.js';
import type { Clock } from '../../../sim/clock.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { Timing } from '../../../host/timing.js';
import {
  ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE, ATTR_EXECUTE, ATTR_NO_WRITE, ATTR_PRIVILEGED, ATTR_TRANSLATED, DMA_CA, DMA_DONE, DMA_UR,
  NO_PASID, PRG_FAILURE, PRG_INVALID,
} from '../../../host/pci/dma-port.js';
import type { DmaStatus, FunctionRouter, TranslationCompletion } from '../../../host/pci/dma-port.js';
import type { VtdCapabilities } from '../spec/capabilities.js';
import { FAULT, isQualified } from '../spec/fault-reasons.js';
import { INTERRUPT_FIRST_PAGE, INTERRUPT_LAST_PAGE, SL_R, SL_W, pagesOfLevel } from '../spec/paging.js';
import { PGTT_PASS_THROUGH } from '../spec/pasid-table.js';
import { TTM_LEGACY } from '../spec/root-context.js';
import type {
  BackEnd, ContextGranularity, DeviceTlbResult, FrontEndSink, InterruptState, IotlbGranularity, PasidCacheGranularity, PasidIotlbGranularity, TranslationState,
} from './back-end.js';
import { DeviceTlbInvalidations } from './device-tlb.js';
import { COMPLETER_ABORT, RECOVERABLE } from './fault-answers.js';
import { InterruptRemapping } from './interrupt-remapping.js';
import { RequesterTables } from './requester-tables.js';
import type { AddressSpaceRoot, ContextSlot } from './requester-tables.js';
import {
  DIRTY, PRIVILEGED_EXECUTE, PRIVILEGED_READ, PRIVILEGED_WRITE, TranslationCache, USER_EXECUTE, USER_READ, USER_WRITE,
} from './translation-cache.js';
import type { CachedTranslation } from './translation-cache.js';
import { UnitCaches } from './unit-caches.js';
import { PageWalker } from './walker.js';
import { explainWalk } from './walk-explanation.js';
import type { WalkExplanation } from './walk-explanation.js';

/** Defects of this room that tests can switch on. */
export const TRANSLATION_DEFECTS = [
  'vtd.skip-pasid-cache-flush',
  'vtd.skip-device-tlb-flush',
  'vtd.ignore-user-bit',
  'vtd.ignore-fpd',
  'vtd.skip-dirty-bit',
  'vtd.untagged-pasid',
  'vtd.ignore-irte-source',
] as const;

export interface TranslationBackEndOptions {
  readonly memory: PhysicalMemory;
  readonly capabilities: VtdCapabilities;
  readonly clock: Clock;
  readonly timing: Timing;
  readonly router: FunctionRouter;
  /** IOTLB entries, a power of two from 4 on; 0 turns every cache of the unit off. Default 512. */
  readonly iotlbEntries?: number;
  readonly defects?: ReadonlySet<string>;
}

/** Weight of the lowest bit of FI's bits 63:48, in pages. */
const INTERRUPT_INDEX_PAGES = 2 ** 36;

const NO_DEFECTS: ReadonlySet<string> = new Set();

/** Flags that a cached translation needs, by write | attributes << 1. A write that is not DIRTY yet walks, to set D. */
const NEEDS = Int32Array.from({ length: 8 }, (_, index) => {
  const attributes = index >> 1;
  const [read, write, execute] = (attributes & ATTR_PRIVILEGED) === 0 ? [USER_READ, USER_WRITE, USER_EXECUTE] : [PRIVILEGED_READ, PRIVILEGED_WRITE, PRIVILEGED_EXECUTE];
  return ((index & 1) === 0 ? read : write | DIRTY) | ((attributes & ATTR_EXECUTE) === 0 ? 0 : execute);
});

/** Rights of a pass-through translation. */
const EVERYTHING = NEEDS.reduce((all, needs) => all | needs, 0);

export class TranslationBackEnd implements BackEnd {
  /** Physical page of the last request that was done. */
  page = 0;
  /** Memory accesses of the last request's walks; 0 on a hit. */
  walkAccesses = 0;
  /** VT-d holds no transactions. */
  readonly heldToken = 0;
  readonly completion: TranslationCompletion = {
    page: 0, pages: 1, read: false, write: false, execute: false, privileged: false, global: false, untranslatedOnly: false,
  };

  private readonly memory: PhysicalMemory;
  private readonly capabilities: VtdCapabilities;
  private readonly clock: Clock;
  private readonly router: FunctionRouter;
  private sink: FrontEndSink | undefined;
  private readonly caching: boolean;
  private readonly tables: RequesterTables;
  private readonly walker: PageWalker;
  private readonly iotlb: TranslationCache;
  private readonly caches: UnitCaches;
  private readonly deviceTlbs: DeviceTlbInvalidations;
  private readonly interrupts: InterruptRemapping;
  private readonly hostEndPage: number;

  private enabled = false;
  private state: TranslationState = { enabled: false, rootTable: 0, mode: TTM_LEGACY };
  // the requester of the last request: its tables are found without a lookup
  private lastSourceId = -1;
  private lastPasid = NO_PASID;
  private lastRoot: AddressSpaceRoot | undefined;
  private lastContext: ContextSlot | undefined;
  private hitIndex = -1;

  private readonly skipPasidCacheFlush: boolean;
  private readonly skipDeviceTlbFlush: boolean;
  private readonly ignoreFpd: boolean;

  constructor(options: TranslationBackEndOptions) {
    const { memory, capabilities } = options;
    const entries = options.iotlbEntries ?? 512;
    const defects = options.defects ?? NO_DEFECTS;
    this.memory = memory;
    this.capabilities = capabilities;
    this.clock = options.clock;
    this.router = options.router;
    this.caching = entries > 0;
    this.tables = new RequesterTables({ memory, capabilities, caching: this.caching, untaggedPasids: defects.has('vtd.untagged-pasid') });
    this.iotlb = new TranslationCache(entries);
    this.caches = new UnitCaches(this.tables, this.iotlb);
    this.walker = new PageWalker({
      memory, capabilities,
      firstLevelCache: this.caches.firstLevel,
      secondLevelCache: this.caches.secondLevel,
      ignoreUserBit: defects.has('vtd.ignore-user-bit'),
      skipDirtyBit: defects.has('vtd.skip-dirty-bit'),
    });
    this.deviceTlbs = new DeviceTlbInvalidations(options.clock, options.router, options.timing.options.invalidationTimeoutNs);
    this.interrupts = new InterruptRemapping({ memory, caching: this.caching, ignoreSource: defects.has('vtd.ignore-irte-source') });
    this.hostEndPage = 2 ** (capabilities.hostAddressWidth - 12);
    this.skipPasidCacheFlush = defects.has('vtd.skip-pasid-cache-flush');
    this.skipDeviceTlbFlush = defects.has('vtd.skip-device-tlb-flush');
    this.ignoreFpd = defects.has('vtd.ignore-fpd');
  }

  /** Joins the front end, which needs this object first. Once, before the first request. */
  connect(sink: FrontEndSink): void {
    assert(this.sink === undefined, 'a VT-d back end has one front end');
    this.sink = sink;
  }

  // ---- requests ----

  /** `TranslationAgent.translate`. */
  translate(sourceId: number, pasid: number, attributes: number, page: number, write: boolean): DmaStatus {
    this.walkAccesses = 0;
    this.hitIndex = -1;
    if (!this.enabled || (attributes & ATTR_TRANSLATED) !== 0) return this.translateAside(sourceId, pasid, attributes, page, write);
    if (pasid === NO_PASID && page >= INTERRUPT_FIRST_PAGE && page <= INTERRUPT_LAST_PAGE) return this.interruptRequest(sourceId, attributes, page, write);
    const root = sourceId === this.lastSourceId && pasid === this.lastPasid ? this.lastRoot : this.findRoot(sourceId, pasid);
    if (root === undefined) return this.refuse(this.tables.reason, this.tables.fpd, sourceId, pasid, attributes, page, write, 0);
    const effective = (attributes & root.attributeMask) | root.attributeSet;
    if ((effective & root.denied) !== 0 || root.type === PGTT_PASS_THROUGH) return this.translateUnpaged(root, sourceId, pasid, attributes, page, write, effective);

    const iotlb = this.iotlb;
    const needs = NEEDS[((effective & 3) << 1) | (write ? 1 : 0)]!;
    let index = iotlb.find(root.key, root.salt, page);
    if (index >= 0) {
      if ((iotlb.flags[index]! & needs) === needs) {
        this.hitIndex = index;
        this.page = iotlb.frames[index]!;
        return DMA_DONE;
      }
    } else if (iotlb.largeEntries > 0) {
      index = this.findLarge(root, page);
      if (index >= 0 && (iotlb.flags[index]! & needs) === needs) {
        this.hitIndex = index;
        this.page = iotlb.frames[index]! + (page & (pagesOfLevel(iotlb.levels[index]!) - 1));
        return DMA_DONE;
      }
    }
    const reason = this.walk(root, page, write ? SL_W : SL_R, effective, write, index < 0);
    if (reason !== 0) return this.refuse(reason, root.fpd, sourceId, pasid, attributes, page, write, 0);
    this.page = this.walker.page;
    return DMA_DONE;
  }

  /**
   * `TranslationAgent.translationRequest` (chapter 4): DMA_DONE with the result in `completion`, where R = W = 0 says
   * that a page request may help. Refusals are DMA_UR (the function may not ask) or DMA_CA (the tables are broken), with
   * a fault record. A PASID entry that is not present is answered R = W = 0 and nothing is recorded (table 30, SPT.2; M6).
   */
  translationRequest(sourceId: number, pasid: number, attributes: number, page: number): DmaStatus {
    this.walkAccesses = 0;
    this.hitIndex = -1;
    this.complete(page, 1, 0, false);
    if (!this.enabled || !this.capabilities.deviceTlb) return DMA_UR;
    if (this.tables.mode === TTM_LEGACY && pasid !== NO_PASID) return this.refuse(FAULT.PASID_IN_LEGACY_MODE, false, sourceId, pasid, attributes, page, false, 1);
    const known = sourceId === this.lastSourceId && pasid === this.lastPasid;
    const context = known ? this.lastContext : this.findContext(sourceId);
    if (context === undefined) return this.refuse(this.tables.reason, this.tables.fpd, sourceId, pasid, attributes, page, false, 1);
    if (!context.deviceTlb) return this.refuse(context.scalable ? FAULT.S_DTE : FAULT.L_BLOCKED, context.fpd, sourceId, pasid, attributes, page, false, 1);
    if (pasid === NO_PASID && page >= INTERRUPT_FIRST_PAGE && page <= INTERRUPT_LAST_PAGE) {
      // table 30, S.1 and S.2: only as untranslated writes
      const wantWrite = this.wantsWrite(attributes);
      this.completion.write = wantWrite;
      this.completion.untranslatedOnly = wantWrite;
      return DMA_DONE;
    }
    const root = known ? this.lastRoot : this.findAddressSpace(context, sourceId, pasid);
    if (root === undefined) {
      const { reason, fpd } = this.tables;
      if (RECOVERABLE[reason] === 1) return this.withoutRights(attributes, pasid);
      return this.refuse(reason, fpd, sourceId, pasid, attributes, page, false, 1);
    }
    return this.answerTranslationRequest(root, sourceId, pasid, attributes, page);
  }

  private answerTranslationRequest(root: AddressSpaceRoot, sourceId: number, pasid: number, attributes: number, page: number): DmaStatus {
    const effective = (attributes & root.attributeMask) | root.attributeSet;
    // SPT.5, SPT.6
    if ((effective & root.denied) !== 0) return this.withoutRights(attributes, pasid);
    const wantWrite = this.wantsWrite(attributes);
    if (root.type === PGTT_PASS_THROUGH) {
      const reason = this.passThroughReason(root, page, pasid);
      if (RECOVERABLE[reason] === 1) return this.withoutRights(attributes, pasid);
      if (reason !== 0) return this.refuse(reason, root.fpd, sourceId, pasid, attributes, page, false, 1);
      this.complete(page, 1, EVERYTHING, wantWrite, effective);
      return this.withPrivilege(attributes, pasid);
    }
    const iotlb = this.iotlb;
    // everything the device may want: a cached translation that permits less is walked again
    const needs = NEEDS[(effective & 3) << 1]! | (wantWrite ? NEEDS[((effective & 3) << 1) | 1]! : 0);
    let index = iotlb.find(root.key, root.salt, page);
    if (index < 0 && iotlb.largeEntries > 0) index = this.findLarge(root, page);
    if (index >= 0 && (iotlb.flags[index]! & needs) === needs) {
      this.hitIndex = index;
      const pages = pagesOfLevel(iotlb.levels[index]!);
      this.complete(iotlb.frames[index]!, pages, iotlb.flags[index]!, wantWrite, effective);
      return this.withPrivilege(attributes, pasid);
    }
    const reason = this.walk(root, page, 0, effective & ATTR_PRIVILEGED, wantWrite, index < 0);
    if (reason === 0) {
      const { walker } = this;
      const pages = this.leafPages(walker.level, walker.page);
      this.complete(walker.page - (walker.page & (pages - 1)), pages, walker.flags, wantWrite, effective);
      return this.withPrivilege(attributes, pasid);
    }
    if (RECOVERABLE[reason] === 1) {
      if (reason === FAULT.FL_UPDATE) this.refuse(reason, root.fpd, sourceId, pasid, attributes, page, false, 1);
      return this.withoutRights(attributes, pasid);
    }
    return this.refuse(reason, root.fpd, sourceId, pasid, attributes, page, false, 1);
  }

  /**
   * `TranslationAgent.pageRequest` (section 7.4): checked against the context and PASID entries, then handed to the front
   * end. A refused request is recorded, qualified by FPD; the device gets an answer from hardware if it was the
   * last of its group and no stop marker: Invalid Request, since Response Failure would disable the interface of the whole
   * device (tables 30 and 31).
   */
  pageRequest(sourceId: number, pasid: number, page: number, access: number, last: boolean, prgIndex: number): void {
    if (!this.enabled || !this.capabilities.pageRequests) return this.answer(sourceId, pasid, access, last, prgIndex, PRG_FAILURE);
    if (this.tables.mode === TTM_LEGACY) return this.refusePageRequest(FAULT.PAGE_REQUEST_IN_LEGACY_MODE, false, sourceId, pasid, page, access, last, prgIndex);
    const known = sourceId === this.lastSourceId && pasid === this.lastPasid;
    const context = known ? this.lastContext : this.findContext(sourceId);
    if (context === undefined) return this.refusePageRequest(this.tables.reason, this.tables.fpd, sourceId, pasid, page, access, last, prgIndex);
    if (!context.pageRequests) return this.refusePageRequest(FAULT.S_PRE, context.fpd, sourceId, pasid, page, access, last, prgIndex);
    const root = known ? this.lastRoot : this.findAddressSpace(context, sourceId, pasid);
    if (root === undefined) return this.refusePageRequest(this.tables.reason, this.tables.fpd, sourceId, pasid, page, access, last, prgIndex);
    // the device found no translation; whatever is cached of it is out of date
    this.caches.invalidatePage(root, page);
    this.sink!.pageRequest(sourceId, pasid, page, access, last, prgIndex);
  }

  /** `TranslationAgent.invalidateCompletion`. */
  invalidateCompletion(sourceId: number, tag: number): void {
    if (!this.deviceTlbs.complete(sourceId, tag)) this.sink!.invalidCompletion?.(sourceId);
  }

  /** What goes to the processors after a `remapInterrupt` that was done. */
  get messageAddress(): number {
    return this.interrupts.messageAddress;
  }

  get messageData(): number {
    return this.interrupts.messageData;
  }

  /** `TranslationAgent.remapInterrupt` (chapter 5). The unit's own events do not come here (5.1.6). */
  remapInterrupt(sourceId: number, address: number, data: number): DmaStatus {
    const { interrupts } = this;
    const reason = interrupts.remap(sourceId, address, data);
    this.walkAccesses = interrupts.accesses;
    if (reason !== 0) {
      this.record(reason, interrupts.fpd, sourceId, NO_PASID, (interrupts.index & 0xffff) * INTERRUPT_INDEX_PAGES, true, false, false, 0);
      return DMA_UR;
    }
    if (interrupts.index >= 0) this.sink!.interruptRemapped?.(sourceId, interrupts.index, interrupts.vector, interrupts.destination);
    return DMA_DONE;
  }

  // ---- BackEnd ----

  setInterruptState(state: InterruptState): void {
    this.interrupts.state = state;
  }

  invalidateInterruptEntries(index: number, entries: number): void {
    this.interrupts.invalidate(index, entries);
  }

  setState(state: TranslationState): void {
    this.state = state;
    this.enabled = state.enabled;
    this.tables.rootTable = state.rootTable;
    this.tables.mode = state.mode;
    this.forgetLast();
    // without ESRTPS software invalidates after setting the root table (section 11.4.4.1)
    if (this.capabilities.enhancedSetRootTable) {
      this.caches.invalidateAll();
    }
  }

  invalidateContext(granularity: ContextGranularity, domainId: number, sourceId: number, functionMask: number): void {
    this.forgetLast();
    this.caches.invalidateContext(granularity, domainId, sourceId, functionMask);
  }

  invalidateIotlb(granularity: IotlbGranularity, domainId: number, page: number, pages: number, hint: boolean): void {
    this.caches.invalidateIotlb(granularity, domainId, page, pages, hint);
  }

  invalidatePasidCache(granularity: PasidCacheGranularity, domainId: number, pasid: number): void {
    if (this.skipPasidCacheFlush) return;
    this.forgetLast();
    this.caches.invalidatePasidCache(granularity, domainId, pasid);
  }

  invalidatePasidIotlb(granularity: PasidIotlbGranularity, domainId: number, pasid: number, page: number, pages: number, hint: boolean): void {
    this.caches.invalidatePasidIotlb(granularity, domainId, pasid, page, pages, hint);
  }

  invalidateDeviceTlb(sourceId: number, pasid: number, page: number, pages: number, global: boolean, done: (result: DeviceTlbResult) => void): void {
    if (this.skipDeviceTlbFlush) this.clock.post(0, () => done('completed'));
    else this.deviceTlbs.send(sourceId, pasid, page, pages, global, done);
  }

  /** Only the response to the last request of a group goes out: nothing waits for the others. */
  pageResponse(sourceId: number, pasid: number, pasidPresent: boolean, prgIndex: number, code: number, last: boolean): void {
    if (last) this.router.pageResponse(sourceId, prgIndex, code, pasidPresent ? pasid : NO_PASID);
  }

  /** Translation and copy of a request are one event here, so nothing is ever under way between two events. */
  drain(done: () => void): void {
    done();
  }

  // ---- for people ----

  /** The cached entry that answered the last request; undefined when tables were walked. */
  lastHit(): CachedTranslation | undefined {
    return this.iotlb.describe(this.hitIndex);
  }

  /** Valid entries of the IOTLB. */
  cachedTranslations(): CachedTranslation[] {
    return this.iotlb.list();
  }

  /** What a walk for this request would read and how it would end, without caches and without any effect. */
  explainWalk(sourceId: number, pasid: number, page: number, access: number): WalkExplanation {
    return explainWalk(this.memory, this.capabilities, this.state, { sourceId, pasid, page, access });
  }

  // ---- inside ----

  /** The tables for a request; undefined with the reason in `tables`. */
  private findRoot(sourceId: number, pasid: number): AddressSpaceRoot | undefined {
    if (this.tables.mode === TTM_LEGACY && pasid !== NO_PASID) {
      this.tables.reason = FAULT.PASID_IN_LEGACY_MODE;
      this.tables.fpd = false;
      return undefined;
    }
    const context = this.findContext(sourceId);
    return context === undefined ? undefined : this.findAddressSpace(context, sourceId, pasid);
  }

  private findContext(sourceId: number): ContextSlot | undefined {
    const { tables } = this;
    // the lookup may put another entry where that of the last requester stood
    this.forgetLast();
    tables.accesses = 0;
    const context = tables.context(sourceId);
    this.walkAccesses += tables.accesses;
    return context;
  }

  private findAddressSpace(context: ContextSlot, sourceId: number, pasid: number): AddressSpaceRoot | undefined {
    const { tables } = this;
    tables.accesses = 0;
    const root = context.scalable ? tables.addressSpace(context, pasid) : context.root;
    this.walkAccesses += tables.accesses;
    if (root !== undefined && this.caching) {
      this.lastSourceId = sourceId;
      this.lastPasid = pasid;
      this.lastContext = context;
      this.lastRoot = root;
    }
    return root;
  }

  private forgetLast(): void {
    this.lastSourceId = -1;
    this.lastContext = undefined;
    this.lastRoot = undefined;
  }

  private findLarge(root: AddressSpaceRoot, page: number): number {
    const index = this.iotlb.find(root.key + 1, root.salt, Math.floor(page / 512));
    return index >= 0 ? index : this.iotlb.find(root.key + 2, root.salt, Math.floor(page / 0x4_0000));
  }

  /** Walks and fills the IOTLB; 0, or the reason. */
  private walk(root: AddressSpaceRoot, page: number, needs: number, effective: number, setDirty: boolean, unknown: boolean): number {
    const { walker } = this;
    walker.accesses = 0;
    const reason = walker.walk(root, page, needs, (effective & ATTR_EXECUTE) !== 0, (effective & ATTR_PRIVILEGED) !== 0, setDirty);
    this.walkAccesses += walker.accesses;
    if (reason !== 0) return reason;
    const result = walker.page;
    if (result >= INTERRUPT_FIRST_PAGE && result <= INTERRUPT_LAST_PAGE) return root.legacy ? FAULT.L_INTERRUPT_RANGE : FAULT.INTERRUPT_RANGE;
    if (!this.caching) return 0;
    if (walker.level === 0 && unknown) {
      this.iotlb.add(root.domainId, root.pasid, root.key, root.salt, 0, page, result, walker.flags);
    } else if (walker.level === 0) {
      this.iotlb.insert(root.domainId, root.pasid, root.key, root.salt, 0, page, result, walker.flags);
    } else {
      const pages = this.leafPages(walker.level, result);
      const level = pages === 1 ? 0 : walker.level;
      this.iotlb.insert(root.domainId, root.pasid, root.key, root.salt, level, Math.floor(page / pages), result - (result & (pages - 1)), walker.flags);
    }
    return 0;
  }

  /** Pages that a result at `level` may be used for: a leaf that holds the interrupt address range counts by single pages. */
  private leafPages(level: number, result: number): number {
    const pages = pagesOfLevel(level);
    const first = result - (result & (pages - 1));
    return first <= INTERRUPT_LAST_PAGE && first + pages > INTERRUPT_FIRST_PAGE ? 1 : pages;
  }

  private passThroughReason(root: AddressSpaceRoot, page: number, pasid: number): number {
    if (page >= this.hostEndPage) return root.legacy ? FAULT.L_BEYOND_WIDTH : FAULT.BEYOND_HOST_WIDTH;
    return pasid !== NO_PASID && page >= INTERRUPT_FIRST_PAGE && page <= INTERRUPT_LAST_PAGE ? FAULT.INTERRUPT_RANGE : 0;
  }

  /** Requests that no page table decides: refused attributes, pass-through. */
  private translateUnpaged(root: AddressSpaceRoot, sourceId: number, pasid: number, attributes: number, page: number, write: boolean, effective: number): DmaStatus {
    const denied = effective & root.denied;
    const reason = denied !== 0 ? deniedReason(denied) : this.passThroughReason(root, page, pasid);
    if (reason !== 0) return this.refuse(reason, root.fpd, sourceId, pasid, attributes, page, write, 0);
    this.page = page;
    return DMA_DONE;
  }

  /** Remapping disabled, or a translated request. */
  private translateAside(sourceId: number, pasid: number, attributes: number, page: number, write: boolean): DmaStatus {
    if ((attributes & ATTR_TRANSLATED) !== 0) return this.translatedRequest(sourceId, pasid, attributes, page, write);
    // section 3.2: without remapping only requests without PASID pass, and only to physical addresses
    if (pasid !== NO_PASID || page >= this.hostEndPage) return DMA_UR;
    this.page = page;
    return DMA_DONE;
  }

  /** Section 4.2.5: a translated request passes when the context entry allows device TLBs. */
  private translatedRequest(sourceId: number, pasid: number, attributes: number, page: number, write: boolean): DmaStatus {
    // section 4.2.1: with a PASID it is a protocol error, which no table decides and nobody records
    if (!this.enabled || !this.capabilities.deviceTlb || pasid !== NO_PASID) return DMA_UR;
    const legacy = this.tables.mode === TTM_LEGACY;
    const context = sourceId === this.lastSourceId ? this.lastContext : this.findContext(sourceId);
    if (context === undefined) return this.refuse(this.tables.reason, this.tables.fpd, sourceId, pasid, attributes, page, write, 2);
    let reason = 0;
    if (!context.deviceTlb) reason = legacy ? FAULT.L_BLOCKED : FAULT.S_DTE;
    else if (page >= this.hostEndPage) reason = legacy ? FAULT.L_BEYOND_WIDTH : FAULT.BEYOND_HOST_WIDTH;
    else if (page >= INTERRUPT_FIRST_PAGE && page <= INTERRUPT_LAST_PAGE) reason = legacy ? FAULT.L_INTERRUPT_RANGE : FAULT.INTERRUPT_RANGE;
    if (reason !== 0) return this.refuse(reason, context.fpd, sourceId, pasid, attributes, page, write, 2);
    this.page = page;
    return DMA_DONE;
  }

  /** Section 3.14: untranslated writes without PASID to 0xFEEx_xxxx are interrupts, whose address no table translates; reads are refused. */
  private interruptRequest(sourceId: number, attributes: number, page: number, write: boolean): DmaStatus {
    if (!write) return this.refuse(FAULT.INTERRUPT_REQUEST_INVALID, false, sourceId, NO_PASID, attributes, page, write, 0);
    this.page = page;
    return DMA_DONE;
  }

  /** NW counts where the unit supports it (section 4.2.3). */
  private wantsWrite(attributes: number): boolean {
    return (attributes & ATTR_NO_WRITE) === 0 || !this.capabilities.noWriteFlag;
  }

  /** PRIV repeats what the request asked for; RID_PRIV, which counts without PASID, does not show (section 4.2.3). */
  private withPrivilege(attributes: number, pasid: number): DmaStatus {
    this.completion.privileged = pasid !== NO_PASID && (attributes & ATTR_PRIVILEGED) !== 0;
    return DMA_DONE;
  }

  /** A successful completion with R = W = U = S = 0. */
  private withoutRights(attributes: number, pasid: number): DmaStatus {
    return this.withPrivilege(attributes, pasid);
  }

  private complete(page: number, pages: number, flags: number, wantWrite: boolean, effective = 0): void {
    const { completion } = this;
    const privileged = (effective & ATTR_PRIVILEGED) !== 0;
    completion.page = page;
    completion.pages = pages;
    completion.read = (flags & (privileged ? PRIVILEGED_READ : USER_READ)) !== 0;
    completion.write = wantWrite && (flags & DIRTY) !== 0 && (flags & (privileged ? PRIVILEGED_WRITE : USER_WRITE)) !== 0;
    completion.execute = (effective & ATTR_EXECUTE) !== 0 && (flags & (privileged ? PRIVILEGED_EXECUTE : USER_EXECUTE)) !== 0;
    completion.privileged = privileged;
    // first-level G is not used since rev 3.0, so that no translation is global
    completion.global = false;
    completion.untranslatedOnly = false;
  }

  /** Records a fault unless FPD forbids it, and names the completion status. */
  private refuse(reason: number, fpd: boolean, sourceId: number, pasid: number, attributes: number, page: number, write: boolean, addressType: number): DmaStatus {
    if (reason > 0) {
      this.record(reason, fpd, sourceId, pasid, page, write, (attributes & ATTR_EXECUTE) !== 0, (attributes & ATTR_PRIVILEGED) !== 0, addressType);
      if (addressType === 1 && COMPLETER_ABORT[reason] === 1) return DMA_CA;
    }
    return DMA_UR;
  }

  private record(reason: number, fpd: boolean, sourceId: number, pasid: number, page: number, write: boolean, execute: boolean, privileged: boolean, addressType: number, pageRequest = false): void {
    if (fpd && !this.ignoreFpd && isQualified(reason)) return;
    const withPasid = pasid !== NO_PASID;
    this.sink!.fault({ sourceId, pasid, reason, page, write, execute: withPasid && execute, privileged: withPasid && privileged, addressType, pageRequest });
  }

  private refusePageRequest(reason: number, fpd: boolean, sourceId: number, pasid: number, page: number, access: number, last: boolean, prgIndex: number): void {
    if (reason > 0) {
      const write = (access & (ACCESS_READ | ACCESS_WRITE)) === ACCESS_WRITE;
      this.record(reason, fpd, sourceId, pasid, page, write, (access & ACCESS_EXECUTE) !== 0, (access & ACCESS_PRIVILEGED) !== 0, 0, true);
    }
    this.answer(sourceId, pasid, access, last, prgIndex, PRG_INVALID);
  }

  /** Hardware's own answer to a page request; stop markers (no access) get none. */
  private answer(sourceId: number, pasid: number, access: number, last: boolean, prgIndex: number, code: number): void {
    if (last && (access & (ACCESS_READ | ACCESS_WRITE | ACCESS_EXECUTE)) !== 0) this.pageResponse(sourceId, pasid, pasid !== NO_PASID, prgIndex, code, true);
  }
}

function deniedReason(denied: number): number {
  return (denied & ATTR_PRIVILEGED) !== 0 ? FAULT.S_SRE : FAULT.S_ERE;
}
