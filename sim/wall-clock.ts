/**
 * Real time as a `Clock`, for models that serve software outside of this process: whole nanoseconds since the clock
 * was made, events in the order of (time, sequence) as on the virtual clock, no limit on their number. What is due
 * runs as a batch, and the event loop gets its turn between two batches. An event that is asked for in the past rings
 * at once, since real time passes while one computes. Left out: precision; Node's timers have milliseconds, so events
 * that are further away come up to one late.
 */
import { VirtualClock, type Alarm, type Clock } from './clock.js';

const NS_PER_MS = 1_000_000;
/** What is nearer than this is waited for turn by turn of the event loop. */
const NEAR_NS = NS_PER_MS;
/** The longest that setTimeout can wait. */
const MAX_DELAY_MS = 0x7fff_ffff;

export class WallClock implements Clock {
  private readonly startMs = performance.now();
  /** Orders the events; its own time lags behind. */
  private readonly events = new VirtualClock();
  private readonly onError: (error: unknown) => void;
  private timer: NodeJS.Timeout | undefined;
  private immediate: NodeJS.Immediate | undefined;
  /** What is armed rings at this time. */
  private armedNs = Infinity;
  private running = false;
  private stopped = false;

  /** @param onError takes what an event threw; by default it ends the process like any other uncaught error */
  constructor(onError: (error: unknown) => void = rethrow) {
    this.onError = onError;
  }

  /** Never goes back. */
  get now(): number {
    return Math.max(this.events.now, Math.floor((performance.now() - this.startMs) * NS_PER_MS));
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

  /** Node keeps its process alive for a timer: an idle clock has none. */
  private arm(): void {
    const next = this.events.nextNs;
    if (this.running || this.stopped || next >= this.armedNs) return;
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
    this.running = true;
    try {
      this.events.run({ untilNs: this.now, stop: () => this.stopped });
    } catch (error) {
      this.onError(error);
    } finally {
      this.running = false;
      this.arm();
    }
  };
}

function rethrow(error: unknown): never {
  throw error;
}
