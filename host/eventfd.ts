/**
 * eventfd(2): a counter that one side adds to and the other reads, waits for, or listens to. VFIO signals its users
 * through them; a virtual machine's irqfd listens to one (fs/eventfd.c, virt/kvm/eventfd.c). The counter saturates
 * like the kernel's, it never blocks the writer. Left out: EFD_SEMAPHORE, blocking writes.
 */
import { Errno } from '../sim/errno.js';
import { WaitQueue, type Scheduler, type Steps } from '../sim/task.js';
import type { OpenFile } from './process.js';

export class EventFd implements OpenFile {
  readonly name: string;
  /** Sum of the signals since the last read. */
  count = 0;
  /** Signals ever, for reports. */
  signals = 0;
  private readonly changed: WaitQueue;
  private listeners: readonly (() => void)[] = [];

  constructor(scheduler: Scheduler, name = 'eventfd') {
    this.name = name;
    this.changed = new WaitQueue(scheduler, name);
  }

  /** Adds to the counter; listeners run before this returns. */
  signal(value = 1): void {
    this.count = Math.min(this.count + value, Number.MAX_SAFE_INTEGER);
    this.signals++;
    for (const listener of this.listeners) listener();
    this.changed.wakeAll();
  }

  /** Takes the counter. EAGAIN when it is zero (EFD_NONBLOCK). */
  read(): number {
    if (this.count === 0) throw new Errno('EAGAIN', `${this.name} has not been signalled`);
    const value = this.count;
    this.count = 0;
    return value;
  }

  /** Sleeps until the counter is not zero, then takes it. */
  *wait(): Steps<number> {
    yield* this.changed.until(() => this.count > 0);
    return this.read();
  }

  /** Called at every signal (irqfd); the result ends it. */
  listen(listener: () => void): () => void {
    this.listeners = [...this.listeners, listener];
    return () => {
      this.listeners = this.listeners.filter((other) => other !== listener);
    };
  }

  // oxlint-disable-next-line require-yield -- OpenFile.release may sleep
  *release(): Steps {
    this.listeners = [];
  }
}
