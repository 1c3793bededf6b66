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
  /** Done, failed or killed. */
  ended = false;
  result: T | undefined;
  error: unknown;
  blockedOn: Blocker | undefined;
  /** @internal the next task in the wait queue that this one is parked in */
  nextWaiter: Task<unknown> | undefined;
  readonly heldLocks: Mutex[] = [];
  private readonly scheduler: Scheduler;
  private readonly steps: Steps<T>;
  private readonly finished: WaitQueue;
  /** @internal the event of a turn; one is under way at most */
  readonly step = (): void => this.scheduler.resume(this as unknown as Task<unknown>);

  constructor(scheduler: Scheduler, name: string, steps: Steps<T>, daemon: boolean) {
    this.scheduler = scheduler;
    this.name = name;
    this.steps = steps;
    this.daemon = daemon;
    this.finished = new WaitQueue(scheduler, `end of ${name}`);
  }

  /** Makes a parked task ready; it runs as an event of this instant. Waking a task that is not parked is a bug. */
  wake(): void {
    if (this.state !== 'blocked') throw new SimulatorBug(`task ${this.name} woken while ${this.state}`);
    this.state = 'ready';
    this.blockedOn = undefined;
    this.scheduler.clock.post(0, this.step);
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
    this.ended = true;
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
    this.blockedOn = undefined;
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
    this.ended = true;
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

  /** Tasks that have not ended, in order of their start. */
  live(): Task<unknown>[] {
    return [...this.tasks];
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

const OVER = { done: true, value: undefined } as const;

/**
 * What `yield*` of a short wait delegates to: an iterator that is its own result, where a generator would cost its
 * frame and an object for every turn. `value` is what the task blocks on.
 */
abstract class Wait {
  readonly done = false;
  abstract readonly value: Blocker;

  abstract next(): typeof OVER | this;

  return(): typeof OVER {
    return OVER;
  }

  [Symbol.iterator](): this {
    return this;
  }
}

function steps(wait: Wait): Steps {
  return wait as unknown as Steps;
}

class Sleep extends Wait implements Blocker {
  private readonly clock: Clock;
  private readonly delayNs: number;
  private asleep = false;

  constructor(clock: Clock, delayNs: number) {
    super();
    this.clock = clock;
    this.delayNs = delayNs;
  }

  get value(): Blocker {
    return this;
  }

  next(): typeof OVER | this {
    if (this.asleep) return OVER;
    this.asleep = true;
    return this;
  }

  park(task: Task<unknown>): void {
    // only this event ends a sleep: the task still sleeps then, or was killed
    this.clock.post(this.delayNs, task.step);
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

export function sleep(clock: Clock, delayNs: number): Steps {
  return steps(new Sleep(clock, delayNs));
}

const NEVER = (): boolean => false;

/** Blocks on a queue until a condition holds, or (`NEVER`) once. */
class QueueWait extends Wait {
  readonly value: Blocker;
  private readonly condition: () => boolean;
  private woken = false;

  constructor(queue: WaitQueue, condition: () => boolean) {
    super();
    this.value = queue;
    this.condition = condition;
  }

  next(): typeof OVER | this {
    if (this.condition() || (this.woken && this.condition === NEVER)) return OVER;
    this.woken = true;
    return this;
  }
}

/** First-in first-out queue of sleeping tasks. */
export class WaitQueue implements Blocker {
  readonly name: string;
  private readonly scheduler: Scheduler;
  // tasks in order of arrival, linked through `nextWaiter`
  private first: Task<unknown> | undefined;
  private last: Task<unknown> | undefined;

  constructor(scheduler: Scheduler, name: string) {
    this.scheduler = scheduler;
    this.name = name;
  }

  get empty(): boolean {
    return this.first === undefined;
  }

  /** Sleeps until the next wake. */
  wait(): Steps {
    return steps(new QueueWait(this, NEVER));
  }

  /** Sleeps until `condition` holds, which is asked now and after every wake. */
  until(condition: () => boolean): Steps {
    return steps(new QueueWait(this, condition));
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
    let task = this.first;
    this.first = this.last = undefined;
    while (task !== undefined) {
      const next = task.nextWaiter;
      task.nextWaiter = undefined;
      task.wake();
      task = next;
    }
  }

  wakeOne(): void {
    const task = this.first;
    if (task === undefined) return;
    this.unpark(task);
    task.wake();
  }

  park(task: Task<unknown>): void {
    if (this.last === undefined) this.first = task;
    else this.last.nextWaiter = task;
    this.last = task;
  }

  unpark(task: Task<unknown>): void {
    let before: Task<unknown> | undefined;
    for (let waiter = this.first; waiter !== task; waiter = waiter.nextWaiter) {
      if (waiter === undefined) return;
      before = waiter;
    }
    if (before === undefined) this.first = task.nextWaiter;
    else before.nextWaiter = task.nextWaiter;
    if (this.last === task) this.last = before;
    task.nextWaiter = undefined;
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
    if (owner.heldLocks.at(-1) === this) owner.heldLocks.pop();
    else owner.heldLocks.splice(owner.heldLocks.indexOf(this), 1);
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
