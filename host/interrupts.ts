/**
 * Message-signalled interrupts: a device or IOMMU writes `data` to an address of the interrupt window; the handler
 * that the kernel registered for the vector runs `interruptNs` later as an event of its own.
 * Physical destination mode, fixed delivery, edge (Intel SDM vol. 3 ch. "MSI": address 0xFEE00000 | destination
 * << 12, data bits 7:0 the vector). A message to a processor that does not exist or a vector that nobody registered
 * is spurious. Legacy interrupts come in on lines (interrupt-lines.ts).
 * Not modelled: logical destinations, lowest priority. Remapping is the IOMMU's: it stands between devices and this.
 */
import { WORD } from '../sim/address.js';
import { assert } from '../sim/assert.js';
import { Errno } from '../sim/errno.js';
import type { Observable } from 'rxjs';
import type { Channel } from '../sim/channel.js';
import type { Clock } from '../sim/clock.js';
import type { Trace, TraceKind } from '../sim/trace.js';
import { InterruptLines, type LineAction } from './interrupt-lines.js';
import type { Timing } from './timing.js';

/** Where hardware sends its message-signalled interrupts. */
export interface InterruptSink {
  /** @param sourceId requester id of the sender, for reports */
  message(address: number, data: number, sourceId: number): void;
  /** Level-triggered lines, where there are any: `driver` pulls `line` up or lets it go; it is high while anybody pulls. */
  setLine?(line: number, driver: object, high: boolean): void;
}

export interface InterruptMessage {
  readonly timeNs: number;
  readonly address: number;
  readonly data: number;
  readonly sourceId: number;
  readonly vector: number;
}

export interface IrqVector {
  readonly vector: number;
  /** What the kernel programs into MSI address and data registers. */
  readonly address: number;
  readonly data: number;
}

export interface InterruptOptions {
  /** Processors, 1..256: destinations that exist. 256 by default. */
  readonly cpus?: number;
  /** Records `irq:msi` for every message, out of the hash. */
  readonly trace?: Trace;
  /** A line was switched off because none of its handlers felt responsible. */
  readonly onNobodyCared?: (line: number) => void;
}

const FIRST_VECTOR = 0x21;
const MAX_CPUS = 256;

interface Handler {
  readonly name: string;
  readonly handler: () => void;
  count: number;
}

export class InterruptController implements InterruptSink {
  /** Messages to vectors that nobody registered or processors that do not exist. */
  spurious = 0;
  private readonly clock: Clock;
  private readonly timing: Timing;
  private readonly messages: Channel<InterruptMessage>;
  /** Index is destination × 256 + vector, so that many devices fit. */
  private readonly handlers: (Handler | undefined)[] = [];
  /** Below it nothing is free. */
  private firstFree = FIRST_VECTOR;
  private readonly lines: InterruptLines;
  private readonly cpus: number;
  private readonly trace: Trace | undefined;
  private readonly messageKind: TraceKind | undefined;

  constructor(clock: Clock, timing: Timing, messages: Channel<InterruptMessage>, options: InterruptOptions = {}) {
    this.clock = clock;
    this.timing = timing;
    this.messages = messages;
    this.cpus = options.cpus ?? MAX_CPUS;
    assert(Number.isInteger(this.cpus) && this.cpus >= 1 && this.cpus <= MAX_CPUS, `${this.cpus} processors`);
    this.lines = new InterruptLines(clock, timing, options.onNobodyCared);
    this.trace = options.trace;
    this.messageKind = options.trace?.define('irq:msi', [['source', 'hex'], ['destination', 'dec'], ['vector', 'hex']], { hashed: false });
  }

  /** Messages as they arrive, before their handlers run. */
  get messages$(): Observable<InterruptMessage> {
    return this.messages.values$;
  }

  /** Ends every subscription: for teardown. */
  close(): void {
    this.messages.close();
  }

  message(address: number, data: number, sourceId: number): void {
    const vector = data & 0xff;
    // bits above 32 name processors beyond those
    const slot = (address < WORD ? (address >>> 12) & 0xff : MAX_CPUS) * 256 + vector;
    if (this.messageKind !== undefined) this.trace!.record(this.messageKind, 0, sourceId, (address >>> 12) & 0xff, vector);
    if (this.messages.observed) this.messages.publish({ timeNs: this.clock.now, address, data, sourceId, vector });
    this.clock.post(this.timing.jittered(this.timing.options.interruptNs), () => this.deliver(slot));
  }

  /** Registers a handler and returns what to program into the device. ENOSPC without a free vector. */
  request(name: string, handler: () => void): IrqVector {
    for (let slot = this.firstFree; slot < this.cpus * 256; slot++) {
      if ((slot & 0xff) < FIRST_VECTOR || this.handlers[slot] !== undefined) continue;
      this.firstFree = slot + 1;
      return this.register(slot >> 8, slot & 0xff, name, handler);
    }
    this.firstFree = this.cpus * 256;
    throw new Errno('ENOSPC', `no interrupt vector left for ${name}`);
  }

  /**
   * Consecutive vectors of one destination for MSI: as many as handlers, rounded up to a power of two and aligned to
   * it, because the function puts a vector's number into the low bits of the data. What is left over in the block is
   * nobody's: messages there are spurious. All of them are returned, and freed one by one. ENOSPC without such a block.
   */
  requestBlock(name: string, handlers: readonly (() => void)[]): IrqVector[] {
    const size = 2 ** Math.ceil(Math.log2(handlers.length));
    for (let destination = this.firstFree >> 8; destination < this.cpus; destination++) {
      for (let first = Math.ceil(FIRST_VECTOR / size) * size; first + size <= 256; first += size) {
        if (!this.isFree(destination * 256 + first, size)) continue;
        return Array.from({ length: size }, (_, i) => this.register(destination, first + i, handlers.length === 1 ? name : `${name}-${i}`, handlers[i] ?? (() => this.spurious++)));
      }
    }
    throw new Errno('ENOSPC', `no block of ${size} interrupt vectors left for ${name}`);
  }

  free(vector: IrqVector): void {
    const slot = ((vector.address >>> 12) & 0xff) * 256 + vector.vector;
    this.handlers[slot] = undefined;
    this.firstFree = Math.min(this.firstFree, slot);
  }

  // ---- level-triggered lines

  setLine(line: number, driver: object, high: boolean): void {
    this.lines.set(line, driver, high);
  }

  /** Somebody drives the line. */
  lineIsHigh(line: number): boolean {
    return this.lines.isHigh(line);
  }

  /** @param handler true: it was its device. EBUSY as `InterruptLines.request`. */
  requestLine(line: number, name: string, handler: () => boolean, shared = true): LineAction {
    return this.lines.request(line, name, handler, shared);
  }

  freeLine(action: LineAction): void {
    this.lines.free(action);
  }

  /** Counted, as `disable_irq`. */
  disableLine(line: number): void {
    this.lines.disable(line);
  }

  enableLine(line: number): void {
    this.lines.enable(line);
  }

  /** Called at every end of interrupt of a line, before it is looked at again (what a resampling irqfd hears). */
  listenEoi(line: number, listener: () => void): () => void {
    return this.lines.listenEoi(line, listener);
  }

  /** Lines with handlers: number, count, names. */
  listLines(): { line: number; count: number; names: string[] }[] {
    return this.lines.list();
  }

  /** Lines like /proc/interrupts: vector, count, name. */
  list(): { vector: number; count: number; name: string }[] {
    return this.handlers.flatMap((handler, slot) => (handler === undefined ? [] : [{ vector: slot & 0xff, count: handler.count, name: handler.name }]));
  }

  private register(destination: number, vector: number, name: string, handler: () => void): IrqVector {
    const slot = destination * 256 + vector;
    while (this.handlers.length <= slot) this.handlers.push(undefined);
    this.handlers[slot] = { name, handler, count: 0 };
    return { vector, address: (0xfee0_0000 | (destination << 12)) >>> 0, data: vector };
  }

  private isFree(first: number, size: number): boolean {
    for (let slot = first; slot < first + size; slot++) if (this.handlers[slot] !== undefined) return false;
    return true;
  }

  private deliver(slot: number): void {
    const handler = this.handlers[slot];
    if (handler === undefined) {
      this.spurious++;
      return;
    }
    handler.count++;
    handler.handler();
  }
}
