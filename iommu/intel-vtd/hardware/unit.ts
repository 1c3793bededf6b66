/**
 * A remapping unit in silicon: the front end's registers and queues joined to the back end that translates. Software
 * sees it as a register window, the root complex as the agent that it asks about every request.
 */
import type { Clock } from '../../../sim/clock.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { AccessSize, EnqueueResult, Mmio } from '../../../sim/mmio.js';
import type { Trace } from '../../../sim/trace.js';
import type { InterruptSink } from '../../../host/interrupts.js';
import type { DmaStatus, FunctionRouter, TranslationAgent, TranslationCompletion } from '../../../host/pci/dma-port.js';
import type { Timing } from '../../../host/timing.js';
import { VTD_FRONT_END_DEFECTS, VtdFrontEnd, type RegisterDescription } from './front-end.js';
import type { PlannedError } from './injected-errors.js';
import { TRANSLATION_DEFECTS, TranslationBackEnd } from './translation.js';
import type { VtdCapabilities } from '../spec/capabilities.js';

/** Every named defect of a unit. */
export const VTD_UNIT_DEFECTS = [...VTD_FRONT_END_DEFECTS, ...TRANSLATION_DEFECTS] as const;

export interface VtdUnitOptions {
  /** `dmar0`, as Linux counts them. */
  readonly name: string;
  /** From `buildCapabilities` or `decodeCapabilities`. */
  readonly capabilities: VtdCapabilities;
  readonly memory: PhysicalMemory;
  readonly clock: Clock;
  readonly timing: Timing;
  readonly trace: Trace;
  readonly interrupts: InterruptSink;
  readonly router: FunctionRouter;
  /** IOTLB entries, a power of two from 4 on; 0: no caches. Default 512. */
  readonly iotlbEntries?: number;
  /** Requester id under which the unit's own interrupts appear; default 0. */
  readonly sourceId?: number;
  readonly defects?: ReadonlySet<string>;
  /** Errors to bring about on purpose. */
  readonly inject?: readonly PlannedError[];
}

export class VtdUnit implements TranslationAgent, Mmio {
  readonly name: string;
  readonly frontEnd: VtdFrontEnd;
  readonly backEnd: TranslationBackEnd;

  constructor(options: VtdUnitOptions) {
    this.name = options.name;
    this.frontEnd = new VtdFrontEnd(options);
    this.backEnd = new TranslationBackEnd(options);
    this.backEnd.connect(this.frontEnd);
    this.frontEnd.connect(this.backEnd);
  }

  get capabilities(): VtdCapabilities {
    return this.frontEnd.capabilities;
  }

  /** Bytes of the register window. */
  get sizeBytes(): number {
    return this.frontEnd.sizeBytes;
  }

  /** Power-on state: registers, queues and caches. */
  reset(): void {
    this.frontEnd.reset();
  }

  /** Registers with their fields, for `inspect`. */
  describeRegisters(): RegisterDescription[] {
    return this.frontEnd.describeRegisters();
  }

  // ---- TranslationAgent ----

  get page(): number {
    return this.backEnd.page;
  }

  get walkAccesses(): number {
    return this.backEnd.walkAccesses;
  }

  get heldToken(): number {
    return this.backEnd.heldToken;
  }

  get completion(): TranslationCompletion {
    return this.backEnd.completion;
  }

  get messageAddress(): number {
    return this.backEnd.messageAddress;
  }

  get messageData(): number {
    return this.backEnd.messageData;
  }

  translate(sourceId: number, pasid: number, attributes: number, page: number, write: boolean): DmaStatus {
    return this.backEnd.translate(sourceId, pasid, attributes, page, write);
  }

  translationRequest(sourceId: number, pasid: number, attributes: number, page: number): DmaStatus {
    return this.backEnd.translationRequest(sourceId, pasid, attributes, page);
  }

  pageRequest(sourceId: number, pasid: number, page: number, access: number, last: boolean, prgIndex: number): void {
    this.backEnd.pageRequest(sourceId, pasid, page, access, last, prgIndex);
  }

  remapInterrupt(sourceId: number, address: number, data: number): DmaStatus {
    return this.backEnd.remapInterrupt(sourceId, address, data);
  }

  invalidateCompletion(sourceId: number, tag: number): void {
    this.backEnd.invalidateCompletion(sourceId, tag);
  }

  // ---- Mmio ----

  get high(): number {
    return this.frontEnd.high;
  }

  read(offset: number, size: AccessSize): number {
    return this.frontEnd.read(offset, size);
  }

  write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    this.frontEnd.write(offset, size, lo, hi);
  }

  write64(offset: number, bytes: Uint8Array): void {
    this.frontEnd.write64(offset, bytes);
  }

  enqueue64(offset: number, bytes: Uint8Array): EnqueueResult {
    return this.frontEnd.enqueue64(offset, bytes);
  }
}
