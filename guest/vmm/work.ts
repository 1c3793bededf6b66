/**
 * What virtual CPUs make their VMM do and what may sleep: in order, one after the other, by a task of the VMM. In QEMU
 * the virtual CPU's thread does it inside of the trapped access; here the access has ended, and the guest is held until
 * the work is done.
 */
import { isErrno } from '../../sim/errno.js';
import type { Scheduler, Steps, Task } from '../../sim/task.js';
import type { KernelLog } from '../../host/kernel-log.js';
import type { GuestClock } from '../clock.js';

interface Item {
  readonly what: string;
  readonly run: () => Steps;
}

export class VmmWork {
  private readonly name: string;
  private readonly scheduler: Scheduler;
  private readonly clock: GuestClock;
  private readonly log: KernelLog | undefined;
  private items: Item[] = [];
  private worker: Task | undefined;
  private ended = false;

  constructor(name: string, scheduler: Scheduler, clock: GuestClock, log?: KernelLog) {
    this.name = name;
    this.scheduler = scheduler;
    this.clock = clock;
    this.log = log;
  }

  /** A refusal is logged and changes nothing else, as in QEMU. */
  push(what: string, run: () => Steps): void {
    if (this.ended) return;
    this.items.push({ what, run });
    if (this.worker === undefined) this.worker = this.scheduler.spawn(`vcpu ${this.name}`, this.serve(this.clock.hold()), { daemon: true });
  }

  /** Waits until nothing is left to do. */
  *flush(): Steps {
    while (this.worker !== undefined) yield* this.worker.join();
  }

  /** The VMM is gone: nothing is done any more. */
  stop(): void {
    this.ended = true;
    this.items = [];
  }

  /** @param goOn lets the guest go on */
  private *serve(goOn: () => void): Steps {
    try {
      for (let item = this.items.shift(); item !== undefined; item = this.items.shift()) yield* this.serveOne(item);
    } finally {
      this.worker = undefined;
      goOn();
    }
  }

  private *serveOne({ what, run }: Item): Steps {
    try {
      yield* run();
    } catch (error) {
      if (!isErrno(error)) throw error;
      if (!this.ended) this.log?.limited(`vmm work ${this.name}`, 'err', `${this.name}: ${what}: ${error.message}`);
    }
  }
}
