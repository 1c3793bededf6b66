/**
 * Promises over simulated time. What is asked for becomes a task at once; the clock runs only while somebody awaits,
 * and stands still as soon as one task has ended, until the code that awaited it has said what it wants next. So
 * calls without `await` between them overlap in simulated time, and the same code gives the same run.
 */
import type { VirtualClock } from '../../sim/clock.js';
import type { Scheduler, Steps, Task } from '../../sim/task.js';
import { LimitReached } from '../limit-reached.js';
import { Killed } from '../scenario/program.js';

/** Everything that runs waits for something that never comes. */
export class Deadlock extends Error {
  override readonly name = 'Deadlock';
}

interface Awaited {
  readonly task: Task<unknown>;
  /** It will never end: the kernel that it ran in is no more. */
  readonly gone: () => boolean;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: unknown) => void;
}

export class Turns {
  private readonly clock: VirtualClock;
  private readonly deadlockReport: () => string[];
  private awaited: Awaited[] = [];
  private scheduled = false;
  private broken: { readonly error: unknown } | undefined;

  constructor(clock: VirtualClock, deadlockReport: () => string[]) {
    this.clock = clock;
    this.deadlockReport = deadlockReport;
  }

  /**
   * Runs `steps` as a task of that name, of a kernel's scheduler; what it returns or throws, Killed when the kernel ends before it.
   * @param gone whether that kernel is no more
   */
  perform<T>(name: string, steps: Steps<T>, scheduler: Scheduler, gone: () => boolean): Promise<T> {
    const task = scheduler.spawn(name, steps, { joined: true });
    return new Promise<T>((resolve, reject) => {
      this.awaited.push({ task: task as Task<unknown>, gone, resolve: resolve as (value: unknown) => void, reject });
      this.schedule();
    });
  }

  /** Answers tasks that have ended while somebody else ran the clock. */
  settle(): void {
    const ended = this.awaited.filter(hasEnded);
    this.awaited = this.awaited.filter((one) => !hasEnded(one));
    for (const { task, resolve, reject } of ended) {
      if (task.state === 'done') resolve(task.result);
      else reject(task.error ?? new Killed(task.name));
    }
  }

  /**
   * A turn comes when every continuation of what has been answered has run: a tick that is queued by a microtask waits
   * until no microtask is left.
   */
  private schedule(): void {
    if (this.scheduled) return;
    this.scheduled = true;
    queueMicrotask(() => process.nextTick(() => {
      this.scheduled = false;
      this.turn();
    }));
  }

  private turn(): void {
    if (this.awaited.length === 0) return;
    try {
      if (this.broken !== undefined) throw this.broken.error;
      if (!this.oneEnded()) this.run();
    } catch (error) {
      this.broken ??= { error };
      for (const { reject } of this.awaited.splice(0)) reject(error);
    }
    this.settle();
    if (this.awaited.length > 0) this.schedule();
  }

  private run(): void {
    const reason = this.clock.run({ stop: () => this.oneEnded() });
    if (this.oneEnded()) return;
    const waiting = this.awaited.map(({ task }) => task.name).join(', ');
    if (reason === 'time-limit' || reason === 'event-limit') throw new LimitReached(waiting, reason);
    throw new Deadlock(`${waiting}: nothing will happen any more; ${this.deadlockReport().join('; ')}`);
  }

  private oneEnded(): boolean {
    return this.awaited.some(hasEnded);
  }
}

function hasEnded({ task, gone }: Awaited): boolean {
  return task.ended || gone();
}
