/**
 * Message-signalled interrupts: a device or IOMMU writes `data` to an address of the interrupt window; the handler
 * that the kernel registered for the vector runs `interruptNs` later as an event of its own.
 * Physical destination mode, fixed delivery, edge (Intel SDM vol. 3 ch. "MSI": address 0xFEE00000 | destination
 * << 12, data bits 7:0 the vector). Not modelled: logical destinations, lowest priority, remapping.
 */
import { Errno } from '../sim/errno.js';
import type { Observable } from 'rxjs';
import type { Channel } from '../sim/channel.js';
import type { Clock } from '../sim/clock.js';
import type { Timing } from './timing.js';

/** Where hardware sends its message-signalled interrupts. */
export interface InterruptSink {
  /** @param sourceId requester id of the sender, for reports */
  message(address: number, data: number, sourceId: number): void;
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

const FIRST_VECTOR = 0x21;

interface Handler {
  readonly name: string;
  readonly handler: () => void;
  count: number;
}

export class InterruptController implements InterruptSink {
  /** Messages to vectors that nobody registered. */
  spurious = 0;
  private readonly clock: Clock;
  private readonly timing: Timing;
  private readonly messages: Channel<InterruptMessage>;
  /** Index is destination × 256 + vector, so that many devices fit. */
  private readonly handlers: (Handler | undefined)[] = [];

  constructor(clock: Clock, timing: Timing, messages: Channel<InterruptMessage>) {
    this.clock = clock;
    this.timing = timing;
    this.messages = messages;
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
    const slot = ((address >>> 12) & 0xff) * 256 + vector;
    if (this.messages.observed) this.messages.publish({ timeNs: this.clock.now, address, data, sourceId, vector });
    this.clock.post(this.timing.jittered(this.timing.options.interruptNs), () => this.deliver(slot));
  }

  /** Registers a handler and returns what to program into the device. ENOSPC without a free vector. */
  request(name: string, handler: () => void): IrqVector {
    for (let destination = 0; destination < 256; destination++) {
      for (let vector = FIRST_VECTOR; vector < 256; vector++) {
        const slot = destination * 256 + vector;
        if (this.handlers[slot] !== undefined) continue;
        while (this.handlers.length <= slot) this.handlers.push(undefined);
        this.handlers[slot] = { name, handler, count: 0 };
        return { vector, address: (0xfee0_0000 | (destination << 12)) >>> 0, data: vector };
      }
    }
    throw new Errno('ENOSPC', `no interrupt vector left for ${name}`);
  }

  free(vector: IrqVector): void {
    this.handlers[((vector.address >>> 12) & 0xff) * 256 + vector.vector] = undefined;
  }

  /** Lines like /proc/interrupts: vector, count, name. */
  list(): { vector: number; count: number; name: string }[] {
    return this.handlers.flatMap((handler, slot) => (handler === undefined ? [] : [{ vector: slot & 0xff, count: handler.count, name: handler.name }]));
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
