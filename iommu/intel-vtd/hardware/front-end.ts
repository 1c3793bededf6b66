/**
 * The software side of a remapping unit: register file, global commands, register-based invalidation, and the three
 * queues and logs, over a back end that translates. A unit of silicon and a virtual IOMMU share it.
 * VT-d 4.1, chapter 11 and 6.5.1.
 *
 * Left out, and not reported: advanced fault logging, protected memory regions, performance monitoring, enhanced and
 * virtual commands; their command bits do nothing and their registers read zero.
 */
import { assert } from '../../../sim/assert.js';
import { WORD, hex, pageOfWords } from '../../../sim/address.js';
import type { Struct } from '../../../sim/layout.js';
import type { Clock } from '../../../sim/clock.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { AccessSize } from '../../../sim/mmio.js';
import { PlainMmio } from '../../../sim/mmio.js';
import { RegisterFile, type Register } from '../../../sim/registers.js';
import type { Trace, TraceKind } from '../../../sim/trace.js';
import type { InterruptSink } from '../../../host/interrupts.js';
import type { Timing } from '../../../host/timing.js';
import type { BackEnd, FaultRecord, FrontEndSink } from './back-end.js';
import { EventMessage } from './event-message.js';
import { FaultRecording } from './fault-recording.js';
import { InjectedErrors, type PlannedError } from './injected-errors.js';
import { InvalidationQueue } from './invalidation-queue.js';
import { PageRequestQueue } from './page-request-queue.js';
import { defineVtdTraceKinds, type VtdTraceKinds } from './trace-kinds.js';
import { CAP, ECAP, type VtdCapabilities } from '../spec/capabilities.js';
import {
  CCMD, FRCD, FSTS_IQE, FSTS_ITE, GCMD_CFI, GCMD_IRE, GCMD_QIE, GCMD_SIRTP, GCMD_SRTP, GCMD_TE, IOTLB, IQA, IQERCD, IRTA, IVA, PQA, RTADDR, TTM_LEGACY,
  registerSpecs, registerWindowBytes,
} from '../spec/registers.js';

/** Named defects of the front end, for tests that prove that checkers can fail. */
export const VTD_FRONT_END_DEFECTS = [
  'vtd.skip-iotlb-flush', 'vtd.wait-ignores-device-tlb', 'vtd.lose-page-response', 'vtd.wrong-group-index', 'vtd.lose-overflow-answer',
] as const;

export interface VtdFrontEndOptions {
  readonly name: string;
  readonly capabilities: VtdCapabilities;
  readonly memory: PhysicalMemory;
  readonly clock: Clock;
  readonly timing: Timing;
  readonly trace: Trace;
  readonly interrupts: InterruptSink;
  /** Requester id under which the unit's own interrupts appear; default 0. */
  readonly sourceId?: number;
  readonly defects?: ReadonlySet<string>;
  /** Errors to bring about. */
  readonly inject?: readonly PlannedError[];
}

/** A register as `inspect` prints it. */
export interface RegisterDescription {
  readonly name: string;
  readonly offset: number;
  readonly size: 4 | 8;
  readonly value: bigint;
  /** Fields that are not zero, as `NAME=value`. */
  readonly text: string;
}

export class VtdFrontEnd extends PlainMmio implements FrontEndSink {
  readonly name: string;
  readonly capabilities: VtdCapabilities;
  readonly registers: RegisterFile;
  readonly sizeBytes: number;
  readonly invalidationQueue: InvalidationQueue;
  readonly faults: FaultRecording;
  readonly pageRequests: PageRequestQueue;
  private readonly trace: Trace;
  private readonly kinds: VtdTraceKinds;
  private readonly unitName: number;
  private readonly events: readonly EventMessage[];
  private readonly globalStatus: Register;
  private readonly faultStatus: Register;
  private readonly rootAddress: Register;
  private readonly interruptAddress: Register;
  private readonly domainMask: number;
  private backEnd: BackEnd | undefined;
  /** Latched by SRTP. */
  private rootTable = 0;
  private tableMode = TTM_LEGACY;
  /** IRTA as latched by SIRTP. */
  private readonly interruptTable = new Uint32Array(2);
  private interruptKind: TraceKind | undefined;

  constructor(options: VtdFrontEndOptions) {
    super();
    const { capabilities, trace } = options;
    const defects = options.defects ?? new Set<string>();
    const injected = options.inject === undefined || options.inject.length === 0 ? undefined : new InjectedErrors(options.inject);
    this.name = options.name;
    this.capabilities = capabilities;
    this.trace = trace;
    this.kinds = defineVtdTraceKinds(trace);
    this.unitName = trace.intern(options.name);
    this.sizeBytes = registerWindowBytes(capabilities);
    this.registers = new RegisterFile(options.name, this.sizeBytes, registerSpecs(capabilities));
    this.domainMask = 2 ** capabilities.domainIdBits - 1;
    const { r } = this.registers;
    this.globalStatus = r['GSTS']!;
    this.faultStatus = r['FSTS']!;
    this.rootAddress = r['RTADDR']!;
    this.interruptAddress = r['IRTA']!;
    const faultEvent = this.eventMessage(options, 'FE', 'fault');
    const completionEvent = this.eventMessage(options, 'IE', 'invalidation');
    const pageRequestEvent = this.eventMessage(options, 'PE', 'page request');
    this.events = [faultEvent, completionEvent, pageRequestEvent];
    this.faults = new FaultRecording(this.registers, capabilities.faultRecords, faultEvent, trace, this.kinds.fault, options.name);
    this.pageRequests = new PageRequestQueue({
      unit: options.name, registers: this.registers, memory: options.memory, event: pageRequestEvent, trace, kinds: this.kinds,
      loseOverflowAnswers: defects.has('vtd.lose-overflow-answer'), injected,
    });
    this.invalidationQueue = new InvalidationQueue({
      unit: options.name, registers: this.registers, capabilities, memory: options.memory, clock: options.clock, timing: options.timing,
      completion: completionEvent, faults: this.faults, trace, kinds: this.kinds, tableMode: () => this.tableMode, injected,
      defects: {
        skipIotlb: defects.has('vtd.skip-iotlb-flush'),
        waitIgnoresDeviceTlb: defects.has('vtd.wait-ignores-device-tlb'),
        losePageResponse: defects.has('vtd.lose-page-response'),
        wrongGroupIndex: defects.has('vtd.wrong-group-index'),
      },
    });
    r['GCMD']!.onWrite = (lo) => this.globalCommand(lo);
    r['CCMD']!.onWrite = (_lo, hi) => this.contextCommand(r['CCMD']!, hi);
    r['IOTLB']!.onWrite = (_lo, hi) => this.iotlbCommand(r['IOTLB']!, r['IVA']!, hi);
    r['FSTS']!.onWrite = (lo) => this.faultStatusWritten(lo);
  }

  /** Joins the back end; once, before the first access. */
  connect(backEnd: BackEnd): void {
    assert(this.backEnd === undefined, `${this.name}: a back end is already connected`);
    this.backEnd = backEnd;
    this.invalidationQueue.connect(backEnd);
    this.pageRequests.connect(backEnd);
  }

  read(offset: number, size: AccessSize): number {
    const lo = this.registers.read(offset, size);
    this.high = this.registers.high;
    return lo;
  }

  write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    this.trace.record(this.kinds.registerWrite, 0, this.unitName, offset, size, lo >>> 0, hi >>> 0);
    this.registers.write(offset, size, lo, hi);
  }

  fault(record: FaultRecord): void {
    this.faults.record(record);
  }

  pageRequest(sourceId: number, pasid: number, page: number, access: number, last: boolean, prgIndex: number): void {
    this.pageRequests.request(sourceId, pasid, page, access, last, prgIndex);
  }

  interruptRemapped(sourceId: number, index: number, vector: number, destination: number): void {
    // declared here and not with the others: a kind that never occurs moves nobody's number
    this.interruptKind ??= this.trace.define('vtd:interrupt', [['unit', 'str'], ['source', 'hex'], ['index', 'hex'], ['vector', 'hex'], ['destination', 'dec']]);
    this.trace.record(this.interruptKind, 0, this.unitName, sourceId, index, vector, destination);
  }

  invalidCompletion(sourceId: number): void {
    this.invalidationQueue.invalidCompletion(sourceId);
  }

  /** Power-on state. */
  reset(): void {
    this.registers.reset();
    this.invalidationQueue.disable();
    this.faults.reset();
    this.pageRequests.reset();
    for (const event of this.events) event.reset();
    this.rootTable = 0;
    this.tableMode = TTM_LEGACY;
    this.publishState(false);
    this.invalidateEverything();
    if (!this.capabilities.interruptRemapping) return;
    this.interruptTable.fill(0);
    this.publishInterruptState();
    this.backEnd?.invalidateInterruptEntries(0, Infinity);
  }

  /** Registers in order of their offsets. */
  describeRegisters(): RegisterDescription[] {
    return Array.from(this.registers, (register) => {
      const name = register.name.slice(this.registers.name.length + 1);
      return { name, offset: register.offset, size: register.size, value: register.value, text: this.describe(name, register) };
    });
  }

  private describe(name: string, register: Register): string {
    const layout = REGISTER_LAYOUTS[name];
    if (layout !== undefined) return layout.format([register.lo, register.hi]);
    const match = /^FRCD(\d+)_HI$/.exec(name);
    if (match !== null) {
      const low = this.registers.r[`FRCD${match[1]!}_LO`]!;
      return FRCD.format([low.lo, low.hi, register.lo, register.hi]);
    }
    return name.endsWith('_LO') ? '' : (BIT_NAMES[name] ?? []).filter(([, bit]) => (register.lo & bit) !== 0).map(([bitName]) => bitName).join(' ');
  }

  private eventMessage(options: VtdFrontEndOptions, prefix: 'FE' | 'IE' | 'PE', event: string): EventMessage {
    const { r } = this.registers;
    const registers = { control: r[`${prefix}CTL`]!, data: r[`${prefix}DATA`]!, address: r[`${prefix}ADDR`]!, upperAddress: r[`${prefix}UADDR`]! };
    return new EventMessage(registers, options.interrupts, options.sourceId ?? 0, options.trace, this.kinds.event, options.name, event);
  }

  /**
   * GCMD (11.4.4): every command is acknowledged in GSTS before the write returns. Software changes one bit at a
   * time; if it changes several they take effect in the order QIE, SRTP, TE, SIRTP, IRE and CFI. WBF ends at once: there is no buffer.
   */
  private globalCommand(command: number): void {
    const before = this.globalStatus.lo;
    const queue = (command & GCMD_QIE) !== 0 && this.capabilities.queuedInvalidation;
    if (queue !== ((before & GCMD_QIE) !== 0)) {
      this.setStatus(GCMD_QIE, queue);
      if (queue) this.invalidationQueue.enable();
      else this.invalidationQueue.disable();
    }
    const enabled = (command & GCMD_TE) !== 0;
    if ((command & GCMD_SRTP) !== 0) {
      this.rootTable = this.rootAddress.hi * WORD + ((this.rootAddress.lo & ~0xfff) >>> 0);
      this.tableMode = RTADDR.f.TTM.get([this.rootAddress.lo, this.rootAddress.hi]);
      this.setStatus(GCMD_SRTP, true);
      this.publishState((before & GCMD_TE) !== 0);
      if (this.capabilities.enhancedSetRootTable) this.invalidateEverything();
    }
    if (enabled !== ((before & GCMD_TE) !== 0)) {
      this.setStatus(GCMD_TE, enabled);
      this.publishState(enabled);
    }
    if (this.capabilities.interruptRemapping) this.interruptCommand(command, before);
  }

  /** SIRTP, IRE, CFI. Without ESIRTPS software invalidates the interrupt-entry cache after setting the table. */
  private interruptCommand(command: number, before: number): void {
    const setTable = (command & GCMD_SIRTP) !== 0;
    if (!setTable && ((command ^ before) & (GCMD_IRE | GCMD_CFI)) === 0) return;
    if (setTable) {
      this.interruptTable[0] = this.interruptAddress.lo;
      this.interruptTable[1] = this.interruptAddress.hi;
      this.setStatus(GCMD_SIRTP, true);
    }
    this.setStatus(GCMD_IRE, (command & GCMD_IRE) !== 0);
    this.setStatus(GCMD_CFI, (command & GCMD_CFI) !== 0);
    this.publishInterruptState();
    if (setTable && this.capabilities.enhancedSetInterruptTable) this.backEnd!.invalidateInterruptEntries(0, Infinity);
  }

  private publishInterruptState(): void {
    const { interruptTable: words, globalStatus: { lo } } = this;
    this.backEnd?.setInterruptState({
      enabled: (lo & GCMD_IRE) !== 0, compatibility: (lo & GCMD_CFI) !== 0, table: IRTA.f.IRTA.get(words), entries: 2 << IRTA.f.S.get(words), extended: IRTA.f.EIME.get(words) === 1,
    });
  }

  private setStatus(bit: number, on: boolean): void {
    this.globalStatus.lo = on ? this.globalStatus.lo | bit : this.globalStatus.lo & ~bit;
  }

  private publishState(enabled: boolean): void {
    this.backEnd?.setState({ enabled, rootTable: this.rootTable, mode: this.tableMode });
  }

  private invalidateEverything(): void {
    this.backEnd?.invalidateContext('global', 0, 0, 0);
    this.backEnd?.invalidatePasidCache('global', 0, 0);
    this.backEnd?.invalidateIotlb('global', 0, 0, 1, false);
  }

  /**
   * The register interface is for legacy mode without the queue, and gone from major version 6 on (6.5.1); otherwise a
   * request is ignored.
   */
  private get registerInvalidationAllowed(): boolean {
    return !this.invalidationQueue.enabled && this.tableMode === TTM_LEGACY && this.capabilities.version < 0x60;
  }

  /** CCMD: writing the upper half with ICC starts the invalidation. */
  private contextCommand(register: Register, written: number): void {
    if ((written & 0x8000_0000) === 0) return;
    const words = [register.lo, register.hi];
    const granularity = CCMD.f.CIRG.get(words);
    const accepted = this.registerInvalidationAllowed && granularity !== 0;
    if (accepted) {
      const name = granularity === 1 ? 'global' : granularity === 2 ? 'domain' : 'device';
      this.backEnd!.invalidateContext(name, CCMD.f.DID.get(words) & this.domainMask, CCMD.f.SID.get(words), CCMD.f.FM.get(words));
    }
    CCMD.f.ICC.set(words, 0);
    CCMD.f.CAIG.set(words, accepted ? granularity : 0);
    CCMD.f.SID.set(words, 0);
    CCMD.f.FM.set(words, 0);
    register.lo = words[0]!;
    register.hi = words[1]!;
  }

  /** IOTLB: writing the upper half with IVT starts the invalidation, which ends when what it drains has ended. */
  private iotlbCommand(register: Register, address: Register, written: number): void {
    if ((written & 0x8000_0000) === 0) return;
    const { capabilities } = this;
    const words = [register.lo, register.hi];
    const request = IOTLB.f.IIRG.get(words);
    const order = address.lo & 0x3f;
    // IAIG 0: an incorrect request, which an unsupported address mask is too (11.4.6.2.1)
    const accepted = this.registerInvalidationAllowed && request !== 0
      && !(request === 3 && capabilities.pageSelectiveInvalidation && order > capabilities.maxAddressMask);
    const granularity = request === 3 && !capabilities.pageSelectiveInvalidation ? 2 : request;
    const finish = (): void => {
      IOTLB.f.IVT.set(words, 0);
      IOTLB.f.IAIG.set(words, accepted ? granularity : 0);
      register.hi = words[1]!;
    };
    if (!accepted) return finish();
    const pages = 2 ** order;
    const page = pageOfWords(address.lo, address.hi);
    const name = granularity === 1 ? 'global' : granularity === 2 ? 'domain' : 'page';
    this.backEnd!.invalidateIotlb(name, IOTLB.f.DID.get(words) & this.domainMask, page - (page % pages), pages, (address.lo & 0x40) !== 0);
    const drains = (capabilities.drainReads && IOTLB.f.DR.get(words) === 1) || (capabilities.drainWrites && IOTLB.f.DW.get(words) === 1);
    if (drains) this.backEnd!.drain(finish);
    else finish();
  }

  private faultStatusWritten(written: number): void {
    this.faults.serviced();
    if ((written & (FSTS_IQE | FSTS_ITE)) !== 0 && (this.faultStatus.lo & (FSTS_IQE | FSTS_ITE)) === 0) this.invalidationQueue.resume();
  }
}

const REGISTER_LAYOUTS: Readonly<Record<string, Struct>> = { CAP, ECAP, RTADDR, CCMD, IOTLB, IVA, IQA, IQERCD, IRTA, PQA };

const BIT_NAMES: Readonly<Record<string, readonly (readonly [string, number])[]>> = {
  GSTS: [['TES', GCMD_TE], ['RTPS', GCMD_SRTP], ['QIES', GCMD_QIE], ['IRES', GCMD_IRE], ['IRTPS', GCMD_SIRTP], ['CFIS', GCMD_CFI]],
  FSTS: [['PFO', 1], ['PPF', 2], ['IQE', 0x10], ['ICE', 0x20], ['ITE', 0x40]],
  FECTL: [['IM', 0x8000_0000], ['IP', 0x4000_0000]],
  IECTL: [['IM', 0x8000_0000], ['IP', 0x4000_0000]],
  PECTL: [['IM', 0x8000_0000], ['IP', 0x4000_0000]],
  ICS: [['IWC', 1]],
  PRS: [['PPR', 1], ['PRO', 2]],
};

/** Lines `NAME offset value fields`, as `inspect` prints them. */
export function formatRegisters(descriptions: readonly RegisterDescription[]): string[] {
  return descriptions.map(({ name, offset, size, value, text }) =>
    `${name.padEnd(10)} ${hex(offset, 3)} 0x${value.toString(16).padStart(size * 2, '0')}${text === '' ? '' : ' ' + text}`.trimEnd());
}
