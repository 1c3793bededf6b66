/**
 * Work queues and the arbiter of a group. A queue holds descriptors until an engine takes them; among the queues of a
 * group each gets as many turns in a round as its priority says.
 */
import { NO_PASID } from '../../../host/pci/dma-port.js';
import type { Job } from './job.js';

/** Values of WQCFG.WqState. */
export const WQ_DISABLED = 0;
export const WQ_ENABLED = 1;

/** What ENABLE_WQ took from the queue's configuration. */
export interface WorkQueueConfig {
  readonly size: number;
  readonly threshold: number;
  readonly dedicated: boolean;
  readonly blockOnFault: boolean;
  readonly priority: number;
  /** Of a dedicated queue; NO_PASID when PASID is not enabled. */
  readonly pasid: number;
  readonly privileged: boolean;
  readonly maxTransfer: number;
  readonly maxBatch: number;
}

export const IDLE_CONFIG: WorkQueueConfig = {
  size: 0, threshold: 0, dedicated: false, blockOnFault: false, priority: 0, pasid: NO_PASID, privileged: false, maxTransfer: 0, maxBatch: 0,
};

export class WorkQueue {
  readonly index: number;
  config: WorkQueueConfig = IDLE_CONFIG;
  state: 0 | 1 = WQ_DISABLED;
  /** DISABLE_WQ drains: nothing is accepted any more. */
  closing = false;
  /** Grows whenever the queue is turned on or off. */
  life = 0;
  /** Turns left in the arbiter's round. */
  credit = 0;
  private queue: Job[] = [];
  private head = 0;

  constructor(index: number) {
    this.index = index;
  }

  get occupancy(): number {
    return this.queue.length - this.head;
  }

  get accepts(): boolean {
    return this.state === WQ_ENABLED && !this.closing;
  }

  /** Disabled, with the configuration it had forgotten. */
  turnOff(): void {
    this.state = WQ_DISABLED;
    this.closing = false;
    this.config = IDLE_CONFIG;
    this.life++;
  }

  push(job: Job): void {
    this.queue.push(job);
  }

  shift(): Job | undefined {
    if (this.head === this.queue.length) return undefined;
    const job = this.queue[this.head++]!;
    if (this.head >= 64 && this.head * 2 >= this.queue.length) {
      this.queue = this.queue.slice(this.head);
      this.head = 0;
    }
    return job;
  }

  /** Takes out the waiting descriptors for which `selected` holds. */
  remove(selected: (job: Job) => boolean): Job[] {
    const removed: Job[] = [], kept: Job[] = [];
    for (let i = this.head; i < this.queue.length; i++) (selected(this.queue[i]!) ? removed : kept).push(this.queue[i]!);
    this.queue = kept;
    this.head = 0;
    return removed;
  }
}

/** A group: queues, engines, and the arbiter between them. */
export class Group {
  readonly index: number;
  readonly queues: readonly WorkQueue[];
  /** Engine numbers. */
  readonly engines: readonly number[];
  /** Descriptors that may be in progress at once. */
  readonly slots: number;
  active = 0;
  /** Of these, slots that have not looked for a descriptor yet. */
  starting = 0;
  private next = 0;

  constructor(index: number, queues: readonly WorkQueue[], engines: readonly number[], descriptorsPerEngine: number) {
    this.index = index;
    this.queues = queues;
    this.engines = engines;
    this.slots = engines.length * descriptorsPerEngine;
  }

  /** The next descriptor in weighted round-robin order. */
  take(): Job | undefined {
    const { queues } = this;
    for (let round = 0; round < 2; round++) {
      for (let i = 0; i < queues.length; i++) {
        const queue = queues[this.next]!;
        if (queue.occupancy > 0 && queue.credit > 0) {
          queue.credit--;
          return queue.shift();
        }
        this.next = (this.next + 1) % queues.length;
      }
      for (const queue of queues) queue.credit = queue.config.priority;
      this.next = 0;
    }
    return undefined;
  }
}
