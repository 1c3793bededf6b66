/**
 * Queued invalidation (VT-d 4.1, 6.5.2, 11.4.8): fetches descriptors from the ring in memory, checks them, hands them
 * to the back end, and completes wait descriptors.
 *
 * Everything runs inside the write of IQT until something has to wait: a fence (FN) stops fetching until its wait
 * descriptor completes, a wait descriptor completes when every device-TLB invalidation and every drain ahead of it
 * has ended. At one instant no more than `BURST` descriptors are fetched, and `MAX_OUTSTANDING` operations are under way
 * at most: what software may put into a queue at once must not keep the machine from everything else. A bad descriptor sets IQE with a reason in IQERCD, the head stays on it, and fetching goes on a memory
 * access after software cleared IQE. A device that does not answer sets ITE: wait descriptors that were fetched are
 * aborted, and fetching stops until ITE is cleared. An unexpected completion (ICE) stops nothing.
 *
 * PD (drain of page requests) has nothing to wait for: a page request is in its queue the moment it reaches the unit,
 * and requests on the link arrive before the device-TLB completion that software puts ahead of the wait (7.10).
 * PFSID and MIP only steer throttling, which is not reported (ECAP.DIT = 0), and are ignored.
 */
import { assert } from '../../../sim/assert.js';
import { WORD, pageOfWords } from '../../../sim/address.js';
import type { Clock } from '../../../sim/clock.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { Register, RegisterFile } from '../../../sim/registers.js';
import type { Trace } from '../../../sim/trace.js';
import { NO_PASID } from '../../../host/pci/dma-port.js';
import type { Timing } from '../../../host/timing.js';
import type { BackEnd, ContextGranularity, DeviceTlbResult, IotlbGranularity } from './back-end.js';
import type { EventMessage } from './event-message.js';
import type { FaultRecording } from './fault-recording.js';
import type { InjectedErrors } from './injected-errors.js';
import type { VtdTraceKinds } from './trace-kinds.js';
import type { VtdCapabilities } from '../spec/capabilities.js';
import { DESCRIPTOR, DESCRIPTOR_LAYOUTS } from '../spec/descriptors.js';
import { FSTS_ICE, FSTS_IQE, FSTS_ITE, ICS_IWC, IQEI, IQ_POINTER_MASK, TTM_ABORT_DMA, TTM_LEGACY, TTM_SCALABLE } from '../spec/registers.js';

export interface InvalidationQueueOptions {
  readonly unit: string;
  readonly registers: RegisterFile;
  readonly capabilities: VtdCapabilities;
  readonly memory: PhysicalMemory;
  readonly clock: Clock;
  readonly timing: Timing;
  readonly completion: EventMessage;
  readonly faults: FaultRecording;
  readonly trace: Trace;
  readonly kinds: VtdTraceKinds;
  /** Translation table mode that is in force. */
  readonly tableMode: () => number;
  readonly injected?: InjectedErrors | undefined;
  readonly defects: {
    /** IOTLB and PASID-based IOTLB invalidations do nothing. */
    readonly skipIotlb: boolean;
    /** Wait descriptors complete before the device-TLB invalidations ahead of them. */
    readonly waitIgnoresDeviceTlb: boolean;
    /** Page group responses vanish. */
    readonly losePageResponse: boolean;
    /** Page group responses carry the next group's index. */
    readonly wrongGroupIndex: boolean;
  };
}

interface PendingWait {
  readonly sequence: number;
  readonly statusWrite: boolean;
  readonly interrupt: boolean;
  readonly fence: boolean;
  readonly address: number;
  readonly data: number;
}

/** More than the drivers' queues hold. */
const BURST = 512;
const MAX_OUTSTANDING = 1024;

/** Fetching stops while one of these is set. */
const STOPPING_ERRORS = FSTS_IQE | FSTS_ITE;

const TYPE_NAMES = ['none', 'CC', 'IOTLB', 'DIOTLB', 'IEC', 'IWD', 'P-IOTLB', 'PC-inv', 'P-DIOTLB', 'PGRP'] as const;

const CONTEXT_GRANULARITIES: readonly (ContextGranularity | undefined)[] = [undefined, 'global', 'domain', 'device'];
const IOTLB_GRANULARITIES: readonly (IotlbGranularity | undefined)[] = [undefined, 'global', 'domain', 'page'];

/** Pages of a device-TLB invalidation: with S the size stands in the address, trailing ones and a zero (6.5.2.5). */
export function deviceTlbPages(lo: number, hi: number, size: boolean): number {
  if (!size) return 1;
  let ones = 0;
  while (ones < 20 && ((lo >>> (12 + ones)) & 1) === 1) ones++;
  if (ones === 20) while (ones < 52 && ((hi >>> (ones - 20)) & 1) === 1) ones++;
  return ones >= 51 ? Infinity : 2 ** (ones + 1);
}

export class InvalidationQueue {
  enabled = false;
  private readonly options: InvalidationQueueOptions;
  private readonly headRegister: Register;
  private readonly tailRegister: Register;
  private readonly addressRegister: Register;
  private readonly statusRegister: Register;
  private readonly errorRegister: Register;
  private readonly completionStatus: Register;
  private readonly unitName: number;
  private readonly typeNames: readonly number[];
  private readonly domainMask: number;
  private readonly words = new Uint32Array(8);
  private backEnd: BackEnd | undefined;
  private sequence = 0;
  /** Sequence numbers of device-TLB invalidations and drains that have not ended, ascending. */
  private outstanding: number[] = [];
  private waits: PendingWait[] = [];
  private fenced = false;
  private fetching = false;
  /** Descriptors fetched at the instant `burstNs`. */
  private burst = 0;
  private burstNs = -1;
  /** An event goes on with the rest. */
  private resting = false;
  /** Grows when the queue is disabled, so that late answers find nobody. */
  private era = 0;

  constructor(options: InvalidationQueueOptions) {
    this.options = options;
    const { r } = options.registers;
    this.headRegister = r['IQH']!;
    this.tailRegister = r['IQT']!;
    this.addressRegister = r['IQA']!;
    this.statusRegister = r['FSTS']!;
    this.errorRegister = r['IQERCD']!;
    this.completionStatus = r['ICS']!;
    this.unitName = options.trace.intern(options.unit);
    this.typeNames = TYPE_NAMES.map((name) => options.trace.intern(name));
    this.domainMask = 2 ** options.capabilities.domainIdBits - 1;
    this.tailRegister.onWrite = () => this.run();
    this.completionStatus.onWrite = () => {
      if ((this.completionStatus.lo & ICS_IWC) === 0) options.completion.withdraw();
    };
  }

  connect(backEnd: BackEnd): void {
    this.backEnd = backEnd;
  }

  /** Device-TLB invalidations and drains under way, and wait descriptors not complete. */
  get pending(): { operations: number; waits: number } {
    return { operations: this.outstanding.length, waits: this.waits.length };
  }

  /** GCMD.QIE was set. */
  enable(): void {
    this.enabled = true;
    this.run();
  }

  /** GCMD.QIE was cleared: the head returns to 0 (11.4.8.1); what was under way is forgotten. */
  disable(): void {
    this.enabled = false;
    this.headRegister.lo = 0;
    this.era++;
    this.outstanding = [];
    this.waits = [];
    this.fenced = false;
  }

  /** Software cleared IQE or ITE in FSTS. */
  resume(): void {
    const era = this.era;
    this.options.clock.post(this.options.timing.jittered(this.options.timing.options.memoryAccessNs), () => {
      if (era === this.era) this.run();
    });
  }

  /** A completion arrived that nobody asked for. */
  invalidCompletion(sourceId: number): void {
    if ((this.statusRegister.lo & FSTS_ICE) === 0) this.errorRegister.hi = ((this.errorRegister.hi & 0xffff) | (sourceId << 16)) >>> 0;
    this.raise(FSTS_ICE, 'ICE', sourceId);
  }

  private run(): void {
    if (this.fetching || this.resting) return;
    this.fetching = true;
    while (this.enabled && !this.fenced && (this.statusRegister.lo & STOPPING_ERRORS) === 0 && this.fetchOne());
    this.fetching = false;
  }

  /** False when the queue is empty or an error stopped it. */
  private fetchOne(): boolean {
    const wide = (this.addressRegister.lo & 0x800) !== 0;
    const sizeBytes = 0x1000 << (this.addressRegister.lo & 7);
    // software may have changed width or size under a queue in use: the head stays a multiple of the width inside the queue
    // (11.4.9.1), else it would never meet the tail
    const head = this.headRegister.lo & (sizeBytes - (wide ? 32 : 16)), tail = this.tailRegister.lo & IQ_POINTER_MASK;
    if (head === tail || this.outstanding.length >= MAX_OUTSTANDING || !this.burstGoesOn()) return false;
    if (tail >= sizeBytes) return this.fail(IQEI.INVALID_TAIL);
    if (wide && (tail & 0x10) !== 0) return this.fail(IQEI.TAIL_NOT_ALIGNED);
    const mode = this.options.tableMode();
    if (mode !== TTM_LEGACY && mode !== TTM_SCALABLE && mode !== TTM_ABORT_DMA) return this.fail(IQEI.INVALID_TTM);
    if (mode === TTM_SCALABLE && !wide) return this.fail(IQEI.INVALID_WIDTH);
    if (!this.load(head, wide)) return this.fail(IQEI.FETCH_ERROR);
    const error = this.check(wide);
    if (error !== 0) return this.fail(error);
    if (this.options.injected?.malformed(this.words[0]! & 0xf) === true) return this.fail(IQEI.RESERVED_FIELD);
    this.headRegister.lo = (head + (wide ? 32 : 16)) & (sizeBytes - 1);
    this.execute();
    return true;
  }

  private burstGoesOn(): boolean {
    const { clock } = this.options;
    if (clock.now !== this.burstNs) {
      this.burstNs = clock.now;
      this.burst = 0;
    }
    if (this.burst++ < BURST) return true;
    this.resting = true;
    clock.post(0, () => {
      this.resting = false;
      this.burst = 0;
      this.run();
    });
    return false;
  }

  private load(head: number, wide: boolean): boolean {
    const memory = this.options.memory;
    const address = this.addressRegister.hi * WORD + ((this.addressRegister.lo & ~0xfff) >>> 0) + head;
    const words = this.words;
    for (let i = 0; i < 4; i++) {
      if (i >= 2 && !wide) {
        words[2 * i] = words[2 * i + 1] = 0;
        continue;
      }
      if (!memory.load64(address + 8 * i)) return false;
      words[2 * i] = memory.lo;
      words[2 * i + 1] = memory.hi;
    }
    const q0 = words[0]!, q1 = words[2]!;
    const type = q0 & 0xf;
    const correlation = type === DESCRIPTOR.PAGE_GROUP_RESPONSE ? this.options.trace.shared.find(q0 >>> 16, (q1 >>> 3) & 0x1ff) : 0;
    this.options.trace.record(this.options.kinds.descriptor, correlation, this.unitName, head, this.typeNames[type] ?? this.typeNames[0]!, q0, words[1]!, q1, words[3]!);
    return true;
  }

  /** 0, or the IQEI code of what is wrong with the descriptor. */
  private check(wide: boolean): number {
    const { words } = this;
    const { capabilities } = this.options;
    const q0 = words[0]!;
    const type = (q0 & 0xf) | ((q0 >>> 5) & 0x70);
    const layout = DESCRIPTOR_LAYOUTS[type];
    if (layout === undefined || !this.supports(type, wide)) return IQEI.INVALID_TYPE;
    if (layout.reservedSet(words)) return IQEI.RESERVED_FIELD;
    const granularity = (q0 >>> 4) & 3;
    const am = words[2]! & 0x3f;
    const tooWide = capabilities.pageSelectiveInvalidation && granularity === 3 && am > capabilities.maxAddressMask;
    switch (type) {
      case DESCRIPTOR.CONTEXT_CACHE: return granularity === 0 ? IQEI.RESERVED_FIELD : 0;
      case DESCRIPTOR.IOTLB: return granularity === 0 || tooWide ? IQEI.RESERVED_FIELD : 0;
      case DESCRIPTOR.PASID_IOTLB: return granularity < 2 || tooWide ? IQEI.RESERVED_FIELD : 0;
      case DESCRIPTOR.PASID_CACHE: return granularity === 2 ? IQEI.RESERVED_FIELD : 0;
      // PD is reserved without page request draining (6.5.2.8)
      case DESCRIPTOR.INTERRUPT_ENTRY_CACHE: return (q0 & 0x10) !== 0 && q0 >>> 27 > capabilities.maxHandleMask ? IQEI.RESERVED_FIELD : 0;
      case DESCRIPTOR.WAIT: return (q0 & 0x80) !== 0 && !capabilities.pageRequestDrain ? IQEI.RESERVED_FIELD : 0;
      default: return 0;
    }
  }

  /** Descriptors of features that are not reported have invalid types; PASID-based ones need 256 bits (6.5.2). */
  private supports(type: number, wide: boolean): boolean {
    const { capabilities } = this.options;
    switch (type) {
      case DESCRIPTOR.DEVICE_TLB: return capabilities.deviceTlb;
      case DESCRIPTOR.INTERRUPT_ENTRY_CACHE: return capabilities.interruptRemapping;
      case DESCRIPTOR.PASID_IOTLB:
      case DESCRIPTOR.PASID_CACHE: return wide && capabilities.scalable;
      case DESCRIPTOR.PASID_DEVICE_TLB: return wide && capabilities.deviceTlb && capabilities.pasidBits > 0;
      case DESCRIPTOR.PAGE_GROUP_RESPONSE: return wide && capabilities.pageRequests;
      default: return true;
    }
  }

  private execute(): void {
    const { words } = this;
    const q0 = words[0]!, h0 = words[1]!, q1 = words[2]!, h1 = words[3]!;
    const backEnd = this.backEnd!;
    const domain = (q0 >>> 16) & this.domainMask;
    const granularity = (q0 >>> 4) & 3;
    const pasid = h0 & 0xf_ffff;
    switch (q0 & 0xf) {
      case DESCRIPTOR.CONTEXT_CACHE:
        return backEnd.invalidateContext(CONTEXT_GRANULARITIES[granularity]!, domain, h0 & 0xffff, (h0 >>> 16) & 3);
      case DESCRIPTOR.PASID_CACHE:
        return backEnd.invalidatePasidCache(granularity === 3 ? 'global' : granularity === 1 ? 'pasid' : 'domain', domain, pasid);
      case DESCRIPTOR.IOTLB:
        return this.invalidateIotlb(granularity, domain, q0, q1, h1);
      case DESCRIPTOR.PASID_IOTLB:
        return this.invalidatePasidIotlb(granularity, domain, pasid, q1, h1);
      case DESCRIPTOR.DEVICE_TLB:
        return this.invalidateDeviceTlb(h0 & 0xffff, NO_PASID, q1, h1, (q1 & 1) !== 0, false);
      case DESCRIPTOR.PASID_DEVICE_TLB:
        return this.invalidateDeviceTlb(q0 >>> 16, pasid, q1, h1, (q1 & 0x800) !== 0, (q1 & 1) !== 0);
      case DESCRIPTOR.WAIT:
        this.waits.push({
          sequence: this.sequence++, interrupt: (q0 & 0x10) !== 0, statusWrite: (q0 & 0x20) !== 0, fence: (q0 & 0x40) !== 0,
          address: h1 * WORD + ((q1 & ~3) >>> 0), data: h0,
        });
        this.fenced = (q0 & 0x40) !== 0;
        return this.completeWaits();
      case DESCRIPTOR.PAGE_GROUP_RESPONSE:
        return this.pageGroupResponse(q0, pasid, q1);
      case DESCRIPTOR.INTERRUPT_ENTRY_CACHE:
        return this.invalidateInterruptEntries(q0, h0 & 0xffff);
      default:
        assert(false, `descriptor type ${q0 & 0xf} passed the check`);
    }
  }

  /** Global, or as many entries as the index mask says: it names the low bits of the index that do not count (6.5.2.7). */
  private invalidateInterruptEntries(q0: number, index: number): void {
    const entries = (q0 & 0x10) === 0 ? Infinity : 2 ** (q0 >>> 27);
    this.backEnd!.invalidateInterruptEntries(entries === Infinity ? 0 : index - (index % entries), entries);
  }

  private invalidateIotlb(granularity: number, domain: number, q0: number, q1: number, h1: number): void {
    const { capabilities, defects } = this.options;
    // without PSI a page-selective request is done domain-selectively (6.5.2.3)
    const coarse = granularity === 3 && !capabilities.pageSelectiveInvalidation ? 2 : granularity;
    const pages = 2 ** (q1 & 0x3f);
    const page = pageOfWords(q1, h1);
    if (!defects.skipIotlb) this.backEnd!.invalidateIotlb(IOTLB_GRANULARITIES[coarse]!, domain, page - (page % pages), pages, (q1 & 0x40) !== 0);
    if ((capabilities.drainReads && (q0 & 0x80) !== 0) || (capabilities.drainWrites && (q0 & 0x40) !== 0)) this.drain();
  }

  /** Draining is implied (6.5.2.4). */
  private invalidatePasidIotlb(granularity: number, domain: number, pasid: number, q1: number, h1: number): void {
    const { capabilities, defects } = this.options;
    const byPage = granularity === 3 && capabilities.pageSelectiveInvalidation;
    const pages = 2 ** (q1 & 0x3f);
    const page = pageOfWords(q1, h1);
    if (!defects.skipIotlb) this.backEnd!.invalidatePasidIotlb(byPage ? 'page' : 'pasid', domain, pasid, page - (page % pages), pages, (q1 & 0x40) !== 0);
    if (capabilities.drainReads || capabilities.drainWrites) this.drain();
  }

  private drain(): void {
    const ended = this.begin();
    this.backEnd!.drain(() => ended());
  }

  private invalidateDeviceTlb(sourceId: number, pasid: number, q1: number, h1: number, size: boolean, global: boolean): void {
    const pages = deviceTlbPages(q1, h1, size);
    const page = pages === Infinity ? 0 : pageOfWords(q1, h1) - (pageOfWords(q1, h1) % pages);
    const ended = this.begin();
    const era = this.era;
    const done = (result: DeviceTlbResult): void => {
      if (result === 'timed-out' && era === this.era) this.timedOut(sourceId);
      ended();
    };
    const { clock, timing, injected } = this.options;
    if (injected?.unanswered(this.words[0]! & 0xf) === true) clock.post(timing.options.invalidationTimeoutNs, () => done('timed-out'));
    else this.backEnd!.invalidateDeviceTlb(sourceId, pasid, page, pages, global, done);
  }

  /** Registers an operation that wait descriptors behind it wait for; the result ends it. */
  private begin(): () => void {
    const sequence = this.sequence++;
    const era = this.era;
    this.outstanding.push(sequence);
    return () => {
      if (era !== this.era) return;
      const index = this.outstanding.indexOf(sequence);
      assert(index >= 0, 'an invalidation ended twice');
      this.outstanding.splice(index, 1);
      this.completeWaits();
      this.run();
    };
  }

  private pageGroupResponse(q0: number, pasid: number, q1: number): void {
    const { trace, kinds, defects } = this.options;
    const sourceId = q0 >>> 16, code = (q0 >>> 12) & 0xf;
    const withPasid = (q0 & 0x10) !== 0;
    const prgIndex = (q1 >>> 3) & 0x1ff;
    const correlation = trace.shared.find(sourceId, prgIndex);
    if (defects.losePageResponse) return;
    const sentIndex = defects.wrongGroupIndex ? (prgIndex + 1) & 0x1ff : prgIndex;
    trace.record(kinds.pageResponse, correlation, this.unitName, sourceId, withPasid ? pasid : NO_PASID, sentIndex, code);
    // the LPIG bit is ignored, as hardware does: current drivers leave it clear (recorded Linux 7.3), earlier ones set it
    this.backEnd!.pageResponse(sourceId, withPasid ? pasid : NO_PASID, withPasid, sentIndex, code, true);
  }

  private completeWaits(): void {
    const { outstanding } = this;
    while (this.waits.length > 0) {
      const wait = this.waits[0]!;
      if (outstanding.length > 0 && outstanding[0]! < wait.sequence && !this.options.defects.waitIgnoresDeviceTlb) return;
      this.waits.shift();
      if (wait.fence) this.fenced = false;
      // a status address that is not memory: the posted write is dropped on its way
      const written = wait.statusWrite && this.options.memory.store(wait.address, 4, wait.data);
      this.recordWait(wait, written, false);
      if (!wait.interrupt) continue;
      const before = this.completionStatus.lo;
      this.completionStatus.lo = before | ICS_IWC;
      if ((before & ICS_IWC) === 0) this.options.completion.raise();
    }
  }

  /** ITE: wait descriptors that were fetched are aborted, fetching stops (6.5.2.11). */
  private timedOut(sourceId: number): void {
    const aborted = this.waits;
    this.waits = [];
    this.fenced = false;
    for (const wait of aborted) this.recordWait(wait, false, true);
    if ((this.statusRegister.lo & FSTS_ITE) === 0) this.errorRegister.hi = ((this.errorRegister.hi & 0xffff_0000) | sourceId) >>> 0;
    this.raise(FSTS_ITE, 'ITE', sourceId);
  }

  private fail(code: number): false {
    this.errorRegister.lo = code;
    this.raise(FSTS_IQE, 'IQE', code);
    return false;
  }

  private raise(bit: number, name: string, info: number): void {
    const { trace, kinds, faults } = this.options;
    trace.record(kinds.invalidationError, 0, this.unitName, trace.intern(name), info, this.headRegister.lo);
    faults.setStatus(bit);
  }

  private recordWait(wait: PendingWait, written: boolean, aborted: boolean): void {
    const { trace, kinds } = this.options;
    trace.record(kinds.wait, 0, this.unitName, wait.statusWrite ? wait.address : 0, wait.data, written ? 1 : 0, wait.interrupt ? 1 : 0, aborted ? 1 : 0);
  }
}

