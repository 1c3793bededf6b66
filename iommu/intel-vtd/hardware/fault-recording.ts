/**
 * Primary fault logging (VT-d 4.1, 7.2.1 and 11.4.7): fault recording registers used in turn, PPF as the OR of their
 * F bits, FRI of the first one, PFO when the next register is still occupied, and the fault event, which the three
 * invalidation errors share. Not modelled: advanced fault logging (never reported).
 */
import type { Register, RegisterFile } from '../../../sim/registers.js';
import type { Trace, TraceKind } from '../../../sim/trace.js';
import { NO_PASID } from '../../../host/pci/dma-port.js';
import { hiOfPage, loOfPage } from '../../../sim/address.js';
import type { FaultRecord } from './back-end.js';
import type { EventMessage } from './event-message.js';
import { FSTS_FRI_MASK, FSTS_FRI_SHIFT, FSTS_ICE, FSTS_IQE, FSTS_ITE, FSTS_PFO, FSTS_PPF } from '../spec/registers.js';

/** Status fields whose setting is an interrupt condition when none of them was set (11.4.7.2). */
const EVENT_CAUSES = FSTS_PPF | FSTS_IQE | FSTS_ICE | FSTS_ITE;

const F_BIT = 0x8000_0000;

export class FaultRecording {
  /** Faults met, recorded, folded into a pending record of the same requester, and lost to overflow. */
  readonly counts = { met: 0, recorded: 0, collapsed: 0, lost: 0 };
  private readonly status: Register;
  private readonly lows: Register[] = [];
  private readonly highs: Register[] = [];
  private readonly event: EventMessage;
  private readonly trace: Trace;
  private readonly kind: TraceKind;
  private readonly unitName: number;
  private readonly outcomes: { readonly recorded: number; readonly collapsed: number; readonly overflow: number };
  private next = 0;

  constructor(registers: RegisterFile, records: number, event: EventMessage, trace: Trace, kind: TraceKind, unit: string) {
    this.status = registers.r['FSTS']!;
    this.event = event;
    this.trace = trace;
    this.kind = kind;
    this.unitName = trace.intern(unit);
    this.outcomes = { recorded: trace.intern('recorded'), collapsed: trace.intern('collapsed'), overflow: trace.intern('overflow') };
    for (let i = 0; i < records; i++) {
      const high = registers.r[`FRCD${i}_HI`]!;
      high.onWrite = () => this.recordsWritten();
      this.lows.push(registers.r[`FRCD${i}_LO`]!);
      this.highs.push(high);
    }
  }

  /** A non-recoverable fault that is to be reported. */
  record(fault: FaultRecord): void {
    this.counts.met++;
    // 7.2.1: while PFO is set nothing is recorded
    if ((this.status.lo & FSTS_PFO) !== 0) return this.overflow(fault);
    // 11.4.7.6, F: while it is set, further faults of the same requester may be collapsed into the record
    for (const high of this.highs) {
      if ((high.hi & F_BIT) !== 0 && (high.lo & 0xffff) === fault.sourceId) {
        this.counts.collapsed++;
        this.report(fault, -1, this.outcomes.collapsed);
        return;
      }
    }
    const index = this.next;
    const low = this.lows[index]!, high = this.highs[index]!;
    if ((high.hi & F_BIT) !== 0) {
      this.status.lo |= FSTS_PFO;
      return this.overflow(fault);
    }
    this.next = (index + 1) % this.highs.length;
    low.lo = loOfPage(fault.page);
    low.hi = hiOfPage(fault.page);
    const withPasid = fault.pasid !== NO_PASID;
    const pageRequest = fault.pageRequest === true;
    high.lo = (fault.sourceId | (pageRequest ? 1 << 28 : 0) | (fault.privileged && withPasid ? 1 << 29 : 0) | (fault.execute && withPasid ? 1 << 30 : 0) | (withPasid ? 1 << 31 : 0)) >>> 0;
    high.hi = (fault.reason | (withPasid ? fault.pasid << 8 : 0) | (fault.addressType << 28) | (fault.write || pageRequest ? 0 : 1 << 30) | F_BIT) >>> 0;
    this.counts.recorded++;
    this.report(fault, index, this.outcomes.recorded);
    if ((this.status.lo & FSTS_PPF) === 0) this.status.lo = (this.status.lo & ~FSTS_FRI_MASK) | (index << FSTS_FRI_SHIFT);
    this.setStatus(FSTS_PPF);
  }

  /** Sets PPF, IQE, ICE or ITE; a fault event when none of them was set. */
  setStatus(bit: number): void {
    const before = this.status.lo;
    this.status.lo = before | bit;
    if ((before & EVENT_CAUSES) === 0) this.event.raise();
  }

  /** Software wrote FSTS or a record: a held-back event is withdrawn when everything is serviced. */
  serviced(): void {
    if ((this.status.lo & EVENT_CAUSES) === 0) this.event.withdraw();
  }

  reset(): void {
    this.next = 0;
    this.counts.met = this.counts.recorded = this.counts.collapsed = this.counts.lost = 0;
  }

  private recordsWritten(): void {
    for (const high of this.highs) if ((high.hi & F_BIT) !== 0) return;
    this.status.lo &= ~FSTS_PPF;
    this.serviced();
  }

  private overflow(fault: FaultRecord): void {
    this.counts.lost++;
    this.report(fault, -1, this.outcomes.overflow);
  }

  private report(fault: FaultRecord, index: number, outcome: number): void {
    this.trace.record(this.kind, 0, this.unitName, fault.sourceId, fault.pasid, fault.reason, fault.page, fault.write ? 1 : 0, index, outcome);
  }
}
