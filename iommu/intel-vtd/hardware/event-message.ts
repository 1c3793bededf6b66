/**
 * The three interrupt messages of a unit (fault, invalidation completion, page request): control, data, address and
 * upper address registers (VT-d 4.1, 11.4.7.2 to 11.4.7.5 and their twins). IM masks; IP says that a message is
 * held back by the mask; clearing IM sends it, servicing the cause withdraws it.
 */
import { WORD } from '../../../sim/address.js';
import type { Register } from '../../../sim/registers.js';
import type { Trace, TraceKind } from '../../../sim/trace.js';
import type { InterruptSink } from '../../../host/interrupts.js';
import { EVENT_IM, EVENT_IP } from '../spec/registers.js';

export interface EventRegisters {
  readonly control: Register;
  readonly data: Register;
  readonly address: Register;
  readonly upperAddress: Register;
}

export class EventMessage {
  /** Messages sent since reset. */
  sent = 0;
  private readonly registers: EventRegisters;
  private readonly interrupts: InterruptSink;
  private readonly sourceId: number;
  private readonly trace: Trace;
  private readonly kind: TraceKind;
  private readonly unitName: number;
  private readonly eventName: number;

  /** @param sourceId requester id under which the message appears */
  constructor(registers: EventRegisters, interrupts: InterruptSink, sourceId: number, trace: Trace, kind: TraceKind, unit: string, event: string) {
    this.registers = registers;
    this.interrupts = interrupts;
    this.sourceId = sourceId;
    this.trace = trace;
    this.kind = kind;
    this.unitName = trace.intern(unit);
    this.eventName = trace.intern(event);
    registers.control.onWrite = () => this.release();
  }

  get masked(): boolean {
    return (this.registers.control.lo & EVENT_IM) !== 0;
  }

  get pending(): boolean {
    return (this.registers.control.lo & EVENT_IP) !== 0;
  }

  /** An interrupt condition was met. */
  raise(): void {
    this.registers.control.lo |= EVENT_IP;
    this.release();
  }

  /** Software serviced the cause before the message went out. */
  withdraw(): void {
    this.registers.control.lo &= ~EVENT_IP;
  }

  reset(): void {
    this.sent = 0;
  }

  private release(): void {
    if (!this.pending || this.masked) return;
    this.registers.control.lo &= ~EVENT_IP;
    const address = this.registers.upperAddress.lo * WORD + this.registers.address.lo;
    const data = this.registers.data.lo;
    this.sent++;
    this.trace.record(this.kind, 0, this.unitName, this.eventName, address, data);
    this.interrupts.message(address, data, this.sourceId);
  }
}
