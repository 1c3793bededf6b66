/**
 * Real time as a `Clock`, for models that serve software outside of this process: whole nanoseconds since the clock
 * was started, events in the order of (time, sequence) as on the virtual clock, no limit on their number. What is due
 * runs in batches of a few milliseconds, and the event loop gets its turn between two of them.
 *
 * To the models time is a function of their inputs: `now` is the due time of the event that runs, or the moment at
 * which an input was taken (`enter`), and stands still meanwhile. So a machine whose inputs are known, each with its
 * time and the number of events that had run before it, does on a virtual clock exactly what it did on this one. Real
 * time only decides when something happens, never what. A machine that is slower than real time lags behind it.
 * Left out: precision; Node's timers have milliseconds, so events that are further away come up to one late.
 */
import { assert } from './assert.js';
import { VirtualClock, type Alarm, type Clock } from './clock.js';

const NS_PER_MS = 1_000_000;
/** What is nearer than this is waited for turn by turn of the event loop. */
const NEAR_NS = NS_PER_MS;
/** The longest that setTimeout can wait. */
const MAX_DELAY_MS = 0x7fff_ffff;
/** Real time that events may take before sockets get their turn. */
const BATCH_MS = 2;

export interface WallClockOptions {
  /** Milliseconds that only grow; by default those of this process. */
  readonly realMs?: () => number;
  /** Time stands at 0 until `start`, and nothing rings: a machine is built at an instant that is always the same. */
  readonly held?: boolean;
}

export class WallClock implements Clock {
  /** Orders the events; its own time lags behind. */
  private readonly events = new VirtualClock();
  private readonly onError: (error: unknown) => void;
  private readonly realMs: () => number;
  private startMs: number;
  private timer: NodeJS.Timeout | undefined;
  private immediate: NodeJS.Immediate | undefined;
  /** What is armed rings at this time. */
  private armedNs = Infinity;
  private state: 'held' | 'outside' | 'event' | 'input' = 'outside';
  private stopped = false;

  /** @param onError takes what an event threw; by default it ends the process like any other uncaught error */
  constructor(onError: (error: unknown) => void = rethrow, { realMs = () => performance.now(), held = false }: WallClockOptions = {}) {
    this.onError = onError;
    this.realMs = realMs;
    this.startMs = realMs();
    if (held) this.state = 'held';
  }

  /** In events and inputs it never goes back; outside of them it is real time, which a machine that lags has not reached yet. */
  get now(): number {
    return this.state === 'outside' ? Math.max(this.events.now, this.realNs()) : this.events.now;
  }

  /** Events run so far. */
  get eventsRun(): number {
    return this.events.events;
  }

  /** No event is left. */
  get idle(): boolean {
    return this.events.pending === 0;
  }

  /** An event or an input is under way: what happens now belongs to the machine. */
  get inside(): boolean {
    return this.state === 'event' || this.state === 'input';
  }

  /** Lets time pass on a clock that was held; twice does nothing more. */
  start(): void {
    if (this.state !== 'held') return;
    this.startMs = this.realMs();
    this.state = 'outside';
    this.arm();
  }

  /**
   * Anything that comes from outside: runs `action` at once, at the present moment, or, if events are due that have
   * not run yet, at the moment of the first of them and before it. `now` stands still meanwhile. What it throws is the caller's.
   */
  enter(action: () => void): void {
    assert(!this.inside, 'an input inside of an event or of another input');
    const { events, state } = this;
    if (state !== 'held') events.advance(Math.max(events.now, Math.min(this.realNs(), events.nextNs)));
    this.state = 'input';
    try {
      action();
    } finally {
      this.state = state;
      this.arm();
    }
  }

  at(timeNs: number, run: () => void): Alarm {
    const alarm = this.events.at(Math.max(Math.ceil(timeNs), this.events.now), run);
    this.arm();
    return alarm;
  }

  after(delayNs: number, run: () => void): Alarm {
    return this.at(this.now + delayNs, run);
  }

  post(delayNs: number, run: () => void): void {
    this.events.post(Math.max(0, Math.ceil(this.now + delayNs) - this.events.now), run);
    this.arm();
  }

  /** Hands an error of a task or a subscriber to who owns the clock; as `VirtualClock.fail`. */
  fail(error: unknown): void {
    this.onError(error);
  }

  /** Nothing rings any more, and the clock keeps no process alive. */
  stop(): void {
    this.stopped = true;
    this.disarm();
  }

  private realNs(): number {
    return Math.floor((this.realMs() - this.startMs) * NS_PER_MS);
  }

  /** Node keeps its process alive for a timer: an idle clock has none. */
  private arm(): void {
    const next = this.events.nextNs;
    if (this.state !== 'outside' || this.stopped || next >= this.armedNs) return;
    this.disarm();
    this.armedNs = next;
    const delayNs = next - this.now;
    if (delayNs < NEAR_NS) this.immediate = setImmediate(this.ring);
    else this.timer = setTimeout(this.ring, Math.min(Math.floor(delayNs / NS_PER_MS), MAX_DELAY_MS));
  }

  private disarm(): void {
    if (this.timer !== undefined) clearTimeout(this.timer);
    if (this.immediate !== undefined) clearImmediate(this.immediate);
    this.timer = this.immediate = undefined;
    this.armedNs = Infinity;
  }

  private readonly ring = (): void => {
    this.disarm();
    const untilNs = this.now, endMs = this.realMs() + BATCH_MS;
    let failure: { error: unknown } | undefined;
    this.state = 'event';
    try {
      // one event may take long: the time is looked at after each
      this.events.run({ untilNs, stop: () => this.stopped || this.realMs() >= endMs });
    } catch (error) {
      failure = { error };
    }
    this.state = 'outside';
    this.arm();
    if (failure !== undefined) this.onError(failure.error);
  };
}

function rethrow(error: unknown): never {
  throw error;
}
