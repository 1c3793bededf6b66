/**
 * Asynchronous event requests and what they tell (NVMe 1.4 section 5.2): a request is parked until an event comes; a type of
 * event that was told is not told again until its log page has been read.
 */
import { EVENT, STATUS } from '../spec/commands.js';
import type { Command } from './queues.js';

export class AsyncEvents {
  private readonly parked: Command[] = [];
  private events: readonly { readonly type: number; readonly result: number }[] = [];
  /** Types that were told and not read. */
  private masked = 0;
  private readonly complete: (command: Command, status: number) => void;

  constructor(complete: (command: Command, status: number) => void) {
    this.complete = complete;
  }

  /** Parks a request; false when the controller has as many as it takes. */
  park(command: Command, limit: number): boolean {
    if (this.parked.length >= limit) return false;
    command.parked = command.waiting = true;
    this.parked.push(command);
    return true;
  }

  /** Takes a parked request back. */
  unpark(command: Command, status: number): void {
    this.parked.splice(this.parked.indexOf(command), 1);
    this.complete(command, status);
  }

  /** Something happened. Errors are told only while somebody asks, as in QEMU. */
  happened(type: number, information: number, logPage: number): void {
    if (type === EVENT.ERROR && this.parked.length === 0) return;
    if (this.events.some((event) => event.type === type)) return;
    this.events = [...this.events, { type, result: type | (information << 8) | (logPage << 16) }];
    this.deliver();
  }

  /** The log page of these events was read: they may come again. */
  read(type: number): void {
    this.masked &= ~(1 << type);
    this.deliver();
  }

  /** Answers parked requests as far as there is something to tell. */
  deliver(): void {
    for (const event of this.events) {
      const command = this.parked[0];
      if (command === undefined) return;
      if ((this.masked & (1 << event.type)) !== 0) continue;
      this.events = this.events.filter((other) => other !== event);
      this.masked |= 1 << event.type;
      command.result = event.result;
      this.unpark(command, STATUS.SUCCESS);
    }
  }

  forget(): void {
    this.parked.length = 0;
    this.events = [];
    this.masked = 0;
  }
}
