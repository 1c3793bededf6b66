/**
 * Code that sleeps (kernel threads, drains, process programs) is a generator run by the clock. It delegates with
 * `yield*` to `sleep`, a `WaitQueue`, a `Mutex` or a `Completion`; what it blocks on describes itself, so that a
 * deadlock report can name who waits for what. Locks record their owner and the order in which they are taken.
 */
import { assert, SimulatorBug } from './assert.js';
import type { Clock } from './clock.js';

/** What a sleeping function returns: delegate to it with `yield*`. */
export type Steps<T = void> = Generator<Blocker, T, void>;

/** Something a task can block on. */
export interface Blocker {
  /** Called once, right after the task yielded; it must lead to `task.wake()` later. */
  park(task: Task<unknown>): void;
  /** Called when a parked task is killed. */
  unpark(task: Task<unknown>): void;
  /** Completes "waits for …". */
  describe(): string;
}

export type TaskState = 'ready' | 'running' | 'blocked' | 'done' | 'failed' | 'killed';

export class Task<T = void> {
  readonly name: string;
  /** A daemon may be blocked when the machine is idle (a kernel thread that waits for work). */
  daemon: boolean;
  state: TaskState = 'ready';
  result: T | undefined;
  error: unknown;
  blockedOn: Blocker | undefined;
  readonly heldLocks: Mutex[] = [];
  private readonly scheduler: Scheduler;
  private readonly steps: Steps<T>;
  private readonly finished: WaitQueue;
  private readonly step = (): void => this.scheduler.resume(this as unknown as Task<unknown>);

  constructor(scheduler: Scheduler, name: string, steps: Steps<T>, daemon: boolean) {
    this.scheduler = scheduler;
    this.name = name;
    this.steps = steps;
    this.daemon = daemon;
    this.finished = new WaitQueue(scheduler, `end of ${name}`);
  }

  get ended(): boolean {
    return this.state === 'done' || this.state === 'failed' || this.state === 'killed';
  }

  /** Makes a parked task ready; it runs as an event of this instant. Waking a task that is not parked is a bug. */
  wake(): void {
    assert(this.state === 'blocked', `task ${this.name} woken while ${this.state}`);
    this.state = 'ready';
    this.blockedOn = undefined;
    this.scheduler.clock.post(0, this.step);
  }

  /** @internal a timed block of this very kind has run out: the task goes on in the same event */
  expire(blocker: Blocker): void {
    if (this.blockedOn !== blocker) return;
    this.state = 'ready';
    this.blockedOn = undefined;
    this.step();
  }

  /** Waits for the end and returns the result; rethrows what the task threw. */
  *join(): Steps<T> {
    while (!this.ended) yield* this.finished.wait();
    if (this.state === 'failed') throw this.error;
    if (this.state === 'killed') throw new SimulatorBug(`joined task ${this.name}, which was killed`);
    return this.result as T;
  }

  /** Stops a task that is not running; its `finally` blocks run and must not block. */
  kill(): void {
    if (this.ended) return;
    assert(this.state !== 'running', `task ${this.name} cannot kill itself`);
    if (this.state === 'blocked') this.blockedOn!.unpark(this as unknown as Task<unknown>);
    this.blockedOn = undefined;
    this.state = 'killed';
    this.steps.return(undefined as never);
    this.scheduler.ended(this as unknown as Task<unknown>);
    this.finished.wakeAll();
  }

  /** @internal */
  start(): void {
    this.scheduler.clock.post(0, this.step);
  }

  /** @internal one turn: until the next block or the end */
  turn(): void {
    this.state = 'running';
    try {
      const next = this.steps.next();
      if (next.done) {
        this.result = next.value;
        this.state = 'done';
      } else {
        this.state = 'blocked';
        this.blockedOn = next.value;
        next.value.park(this as unknown as Task<unknown>);
        return;
      }
    } catch (error) {
      this.state = 'failed';
      this.error = error;
    }
    this.scheduler.ended(this as unknown as Task<unknown>);
    this.finished.wakeAll();
  }
}

export interface SpawnOptions {
  daemon?: boolean;
  /** Someone will join and take the error; otherwise a failed task fails the run at that event. */
  joined?: boolean;
}

export class Scheduler {
  readonly clock: Clock;
  /** The task whose turn it is, undefined in plain events. */
  current: Task<unknown> | undefined;
  /** Lock classes: name → names taken while it was held, to report order inversions (A then B, B then A). */
  readonly lockOrder = new Map<string, Map<string, string>>();
  private readonly tasks = new Set<Task<unknown>>();
  private readonly joined = new WeakSet<Task<unknown>>();
  private readonly onFailure: (error: unknown) => void;

  /** @param onFailure takes the error of a task that nobody joins, e.g. `clock.fail` */
  constructor(clock: Clock, onFailure: (error: unknown) => void) {
    this.clock = clock;
    this.onFailure = onFailure;
  }

  spawn<T>(name: string, steps: Steps<T>, options: SpawnOptions = {}): Task<T> {
    const task = new Task<T>(this, name, steps, options.daemon ?? false);
    this.tasks.add(task as unknown as Task<unknown>);
    if (options.joined) this.joined.add(task as unknown as Task<unknown>);
    task.start();
    return task;
  }

  /** Runs `steps` to its end without letting it block: for code that is known not to sleep here. */
  runNow<T>(what: string, steps: Steps<T>): T {
    const next = steps.next();
    assert(next.done === true, `${what} blocked where it must not sleep`);
    return next.value;
  }

  /** Tasks that wait and are no daemons: with no event left, these are deadlocked. */
  blocked(): Task<unknown>[] {
    return [...this.tasks].filter((task) => task.state === 'blocked' && !task.daemon);
  }

  /** One line per blocked task: its name, what it waits for, which locks it holds. Empty without a deadlock. */
  deadlockReport(): string[] {
    return this.blocked().map((task) => {
      const held = task.heldLocks.map((lock) => lock.name).join(', ');
      return `${task.name} waits for ${task.blockedOn!.describe()}${held === '' ? '' : `, holds ${held}`}`;
    });
  }

  /** @internal */
  resume(task: Task<unknown>): void {
    if (task.ended) return;
    const previous = this.current;
    this.current = task;
    try {
      task.turn();
    } finally {
      this.current = previous;
    }
  }

  /** @internal */
  ended(task: Task<unknown>): void {
    this.tasks.delete(task);
    if (task.state === 'failed' && !this.joined.has(task)) this.onFailure(task.error);
  }
}

class Sleep implements Blocker {
  private readonly clock: Clock;
  private readonly delayNs: number;

  constructor(clock: Clock, delayNs: number) {
    this.clock = clock;
    this.delayNs = delayNs;
  }

  park(task: Task<unknown>): void {
    this.clock.post(this.delayNs, () => task.expire(this));
  }

  unpark(): void {}

  describe(): string {
    return `${this.delayNs} ns to pass`;
  }
}

/**
 * A sleep that one task uses again and again: `yield pause.of(delayNs)`. Nothing is allocated, and the task runs in
 * the very event that ends the sleep.
 */
export class Pause implements Blocker {
  private readonly scheduler: Scheduler;
  private delayNs = 0;
  private task: Task<unknown> | undefined;
  private readonly ring = (): void => {
    const { task } = this;
    if (task === undefined) return;
    this.task = undefined;
    task.state = 'ready';
    task.blockedOn = undefined;
    this.scheduler.resume(task);
  };

  constructor(scheduler: Scheduler) {
    this.scheduler = scheduler;
  }

  of(delayNs: number): this {
    this.delayNs = delayNs;
    return this;
  }

  park(task: Task<unknown>): void {
    assert(this.task === undefined, `${task.name} shares a pause with another task`);
    this.task = task;
    this.scheduler.clock.post(this.delayNs, this.ring);
  }

  unpark(): void {
    this.task = undefined;
  }

  describe(): string {
    return `${this.delayNs} ns to pass`;
  }
}

export function* sleep(clock: Clock, delayNs: number): Steps {
  yield new Sleep(clock, delayNs);
}

/** First-in first-out queue of sleeping tasks. */
export class WaitQueue implements Blocker {
  readonly name: string;
  private readonly scheduler: Scheduler;
  private waiters: Task<unknown>[] = [];

  constructor(scheduler: Scheduler, name: string) {
    this.scheduler = scheduler;
    this.name = name;
  }

  get empty(): boolean {
    return this.waiters.length === 0;
  }

  *wait(): Steps {
    yield this;
  }

  /** Sleeps until `condition` holds, which is asked now and after every wake. */
  *until(condition: () => boolean): Steps {
    while (!condition()) yield this;
  }

  /** Like `until` with a limit; true when the condition held in time. */
  *untilOrTimeout(condition: () => boolean, timeoutNs: number): Steps<boolean> {
    let expired = false;
    const alarm = this.scheduler.clock.after(timeoutNs, () => {
      expired = true;
      this.wakeAll();
    });
    try {
      while (!condition()) {
        if (expired) return false;
        yield this;
      }
      return true;
    } finally {
      alarm.cancel();
    }
  }

  wakeAll(): void {
    if (this.waiters.length === 0) return;
    const waiters = this.waiters;
    this.waiters = [];
    for (const task of waiters) task.wake();
  }

  wakeOne(): void {
    this.waiters.shift()?.wake();
  }

  park(task: Task<unknown>): void {
    this.waiters.push(task);
  }

  unpark(task: Task<unknown>): void {
    this.waiters = this.waiters.filter((waiter) => waiter !== task);
  }

  describe(): string {
    return this.name;
  }
}

/** Something that happens once; later waiters pass at once. */
export class Completion {
  done = false;
  private readonly queue: WaitQueue;

  constructor(scheduler: Scheduler, name: string) {
    this.queue = new WaitQueue(scheduler, name);
  }

  complete(): void {
    this.done = true;
    this.queue.wakeAll();
  }

  *wait(): Steps {
    while (!this.done) yield this.queue;
  }

  *waitFor(timeoutNs: number): Steps<boolean> {
    return yield* this.queue.untilOrTimeout(() => this.done, timeoutNs);
  }
}

/** A sleeping lock. Taking it twice from one task, or releasing it from another, is a reported bug. */
export class Mutex implements Blocker {
  readonly name: string;
  owner: Task<unknown> | undefined;
  private readonly scheduler: Scheduler;
  private waiters: Task<unknown>[] = [];

  constructor(scheduler: Scheduler, name: string) {
    this.scheduler = scheduler;
    this.name = name;
  }

  *lock(): Steps {
    const task = this.scheduler.current;
    if (task === undefined) throw new SimulatorBug(`${this.name} locked outside a task`);
    if (this.owner === task) throw new SimulatorBug(`${task.name} takes ${this.name}, which it already holds`);
    this.noteOrder(task);
    if (this.owner === undefined) this.take(task);
    else while (this.owner !== task) yield this;
  }

  tryLock(): boolean {
    const task = this.scheduler.current;
    if (task === undefined) throw new SimulatorBug(`${this.name} locked outside a task`);
    if (this.owner !== undefined) return false;
    this.take(task);
    return true;
  }

  unlock(): void {
    const owner = this.owner;
    if (owner === undefined) throw new SimulatorBug(`${this.name} unlocked, but nobody holds it`);
    const current = this.scheduler.current;
    if (current !== undefined && current !== owner && owner.state !== 'killed') {
      throw new SimulatorBug(`${this.name} held by ${owner.name} unlocked by ${current.name}`);
    }
    owner.heldLocks.splice(owner.heldLocks.indexOf(this), 1);
    this.owner = undefined;
    const next = this.waiters.shift();
    if (next !== undefined) {
      this.take(next);
      next.wake();
    }
  }

  /** Runs `steps` with the lock held. */
  *with<T>(steps: () => Steps<T>): Steps<T> {
    yield* this.lock();
    try {
      return yield* steps();
    } finally {
      this.unlock();
    }
  }

  /** For code that must not be entered with the lock held, such as a flush its worker has to pass (R-RACE-4). */
  get heldByCurrent(): boolean {
    return this.owner !== undefined && this.owner === this.scheduler.current;
  }

  park(task: Task<unknown>): void {
    this.waiters.push(task);
  }

  unpark(task: Task<unknown>): void {
    this.waiters = this.waiters.filter((waiter) => waiter !== task);
  }

  describe(): string {
    return `${this.name} (held by ${this.owner?.name ?? 'nobody'})`;
  }

  private take(task: Task<unknown>): void {
    this.owner = task;
    task.heldLocks.push(this);
  }

  private noteOrder(task: Task<unknown>): void {
    const order = this.scheduler.lockOrder;
    for (const held of task.heldLocks) {
      let after = order.get(held.name);
      if (after === undefined) order.set(held.name, (after = new Map<string, string>()));
      if (!after.has(this.name)) after.set(this.name, task.name);
    }
  }
}

/** Pairs of locks taken in both orders: each is a deadlock waiting for its schedule. */
export function lockInversions(scheduler: Scheduler): string[] {
  const found: string[] = [];
  for (const [first, after] of scheduler.lockOrder) {
    for (const [second, task] of after) {
      const reverse = scheduler.lockOrder.get(second)?.get(first);
      if (reverse !== undefined && first < second) {
        found.push(`${task} takes ${first} then ${second}, ${reverse} takes ${second} then ${first}`);
      }
    }
  }
  return found;
}
