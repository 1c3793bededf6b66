/**
 * Simulated time: integer nanoseconds, a heap of events ordered by (time, sequence) so that events of one instant
 * run first-in first-out. One event runs to completion before the next.
 */
import { assert, SimulatorBug } from './assert.js';

export interface Alarm {
  readonly pending: boolean;
  /** True when the alarm was pending and now never rings. */
  cancel(): boolean;
}

export interface Clock {
  /** Nanoseconds since the start. */
  readonly now: number;
  at(timeNs: number, run: () => void): Alarm;
  after(delayNs: number, run: () => void): Alarm;
  /** Like `after`, without the alarm: the cheap way to schedule what is never cancelled. */
  post(delayNs: number, run: () => void): void;
}

export type StopReason = 'idle' | 'until' | 'time-limit' | 'event-limit' | 'stopped';

export interface RunOptions {
  /** Run events up to and including this instant, then set `now` to it. */
  untilNs?: number;
  /** Asked after every event; true stops the run. */
  stop?: () => boolean;
}

const NOOP = (): void => {};
/** Stands where a cancelled event's callback stood. */
const CANCELLED = (): void => {};
/** Cancelled events that may lie in the heap whatever its size; beyond them at most as many as live ones. */
const MIN_GARBAGE = 64;

export class VirtualClock implements Clock {
  now = 0;
  /** Events run so far. */
  events = 0;
  private readonly eventLimit: number;
  private readonly timeLimitNs: number;
  private times = new Float64Array(1024);
  private sequences = new Float64Array(1024);
  private slots = new Int32Array(1024);
  private size = 0;
  /** Cancelled events that still lie in the heap, never first in it. */
  private garbage = 0;
  private nextSequence = 0;
  private readonly callbacks: (() => void)[] = [];
  private readonly serials: number[] = [];
  private readonly freeSlots: number[] = [];
  private failure: { error: unknown } | undefined;
  private running = false;

  /** @param options.startNs where time starts, 0 by default; before 0 is before the run proper, such as boot */
  constructor(options: { startNs?: number; eventLimit?: number; timeLimitNs?: number } = {}) {
    this.now = options.startNs ?? 0;
    this.eventLimit = options.eventLimit ?? Infinity;
    this.timeLimitNs = options.timeLimitNs ?? Infinity;
  }

  get pending(): number {
    return this.size - this.garbage;
  }

  /** When the next event is due; Infinity without one. */
  get nextNs(): number {
    return this.size === 0 ? Infinity : this.times[0]!;
  }

  at(timeNs: number, run: () => void): Alarm {
    const slot = this.push(timeNs, run);
    return new HeapAlarm(this, slot, this.serials[slot]!);
  }

  after(delayNs: number, run: () => void): Alarm {
    return this.at(this.now + delayNs, run);
  }

  post(delayNs: number, run: () => void): void {
    this.push(this.now + delayNs, run);
  }

  /** Records an exception that a subscriber threw; the run rethrows it at the end of the current event. */
  fail(error: unknown): void {
    this.failure ??= { error };
    if (!this.running) this.rethrow();
  }

  run(options: RunOptions = {}): StopReason {
    assert(!this.running, 'clock.run called from inside an event');
    const until = options.untilNs ?? Infinity;
    const stop = options.stop;
    this.running = true;
    try {
      while (this.size > 0) {
        const time = this.times[0]!;
        if (time > until) break;
        if (time > this.timeLimitNs) return 'time-limit';
        if (this.events >= this.eventLimit) return 'event-limit';
        this.runFirst();
        if (stop !== undefined && stop()) return 'stopped';
      }
    } finally {
      this.running = false;
    }
    if (until !== Infinity && until > this.now) this.now = until;
    return this.size > 0 ? 'until' : 'idle';
  }

  /** Time passes in which nothing happens: moves `now` to `timeNs`. No event may be due before; one of that instant may. */
  advance(timeNs: number): void {
    assert(!this.running, 'clock.advance called from inside an event');
    if (timeNs < this.now || timeNs > this.nextNs || !Number.isInteger(timeNs)) throw new SimulatorBug(`time cannot move from ${this.now} to ${timeNs} ns, the next event is due at ${this.nextNs} ns`);
    this.now = timeNs;
  }

  private runFirst(): void {
    const slot = this.slots[0]!;
    this.now = this.times[0]!;
    this.removeFirst();
    if (this.garbage > 0) this.dropCancelledFirst();
    const callback = this.callbacks[slot]!;
    this.callbacks[slot] = NOOP;
    this.serials[slot]!++;
    this.freeSlots.push(slot);
    this.events++;
    callback();
    if (this.failure !== undefined) this.rethrow();
  }

  private rethrow(): void {
    const { error } = this.failure!;
    this.failure = undefined;
    throw error;
  }

  private push(timeNs: number, run: () => void): number {
    if (timeNs < this.now || !Number.isInteger(timeNs)) this.refuse(timeNs);
    let slot = this.freeSlots.pop();
    if (slot === undefined) {
      slot = this.callbacks.length;
      this.callbacks.push(run);
      this.serials.push(0);
    } else {
      this.callbacks[slot] = run;
    }
    if (this.size === this.times.length) this.grow();
    const times = this.times, sequences = this.sequences, slots = this.slots;
    let i = this.size++;
    const sequence = this.nextSequence++;
    // sift up; a new event has the highest sequence, so only a later time moves down
    while (i > 0) {
      const parent = (i - 1) >> 1;
      if (times[parent]! <= timeNs) break;
      times[i] = times[parent]!;
      sequences[i] = sequences[parent]!;
      slots[i] = slots[parent]!;
      i = parent;
    }
    times[i] = timeNs;
    sequences[i] = sequence;
    slots[i] = slot;
    return slot;
  }

  private refuse(timeNs: number): never {
    const why = Number.isInteger(timeNs) ? `scheduled in the past, now is ${this.now} ns` : 'not at a whole number of nanoseconds';
    throw new SimulatorBug(`event at ${timeNs} ns: ${why}`);
  }

  private removeFirst(): void {
    const times = this.times, sequences = this.sequences, slots = this.slots;
    const last = --this.size;
    if (last === 0) return;
    times[0] = times[last]!;
    sequences[0] = sequences[last]!;
    slots[0] = slots[last]!;
    this.siftDown(0, last);
  }

  /** Moves the event at `from` down among the first `size` until none below it comes earlier. */
  private siftDown(from: number, size: number): void {
    const times = this.times, sequences = this.sequences, slots = this.slots;
    const time = times[from]!, sequence = sequences[from]!, slot = slots[from]!;
    let i = from;
    for (;;) {
      let child = 2 * i + 1;
      if (child >= size) break;
      const right = child + 1;
      if (right < size && before(times[right]!, sequences[right]!, times[child]!, sequences[child]!)) child = right;
      if (!before(times[child]!, sequences[child]!, time, sequence)) break;
      times[i] = times[child]!;
      sequences[i] = sequences[child]!;
      slots[i] = slots[child]!;
      i = child;
    }
    times[i] = time;
    sequences[i] = sequence;
    slots[i] = slot;
  }

  private grow(): void {
    const length = this.times.length * 2;
    const times = new Float64Array(length), sequences = new Float64Array(length), slots = new Int32Array(length);
    times.set(this.times);
    sequences.set(this.sequences);
    slots.set(this.slots);
    this.times = times;
    this.sequences = sequences;
    this.slots = slots;
  }

  /** @internal used by the alarms this clock hands out */
  alarmPending(slot: number, serial: number): boolean {
    return this.serials[slot] === serial;
  }

  /**
   * @internal The event of `slot` never runs and keeps no run alive. It leaves the heap when it comes up, or with all
   * others when they are more than the live ones, so that cancelling costs O(log n) on average.
   */
  cancelAlarm(slot: number, serial: number): boolean {
    if (this.serials[slot] !== serial) return false;
    this.serials[slot]!++;
    this.callbacks[slot] = CANCELLED;
    this.garbage++;
    this.dropCancelledFirst();
    if (this.garbage > MIN_GARBAGE && this.garbage > this.size / 2) this.compact();
    return true;
  }

  private dropCancelledFirst(): void {
    while (this.garbage > 0 && this.callbacks[this.slots[0]!] === CANCELLED) {
      const slot = this.slots[0]!;
      this.removeFirst();
      this.recycle(slot);
    }
  }

  private recycle(slot: number): void {
    this.callbacks[slot] = NOOP;
    this.freeSlots.push(slot);
    this.garbage--;
  }

  /** Live events only, then a heap again; the order of events depends on (time, sequence) alone. */
  private compact(): void {
    const { times, sequences, slots } = this;
    let kept = 0;
    for (let i = 0; i < this.size; i++) {
      const slot = slots[i]!;
      if (this.callbacks[slot] === CANCELLED) {
        this.recycle(slot);
        continue;
      }
      times[kept] = times[i]!;
      sequences[kept] = sequences[i]!;
      slots[kept] = slot;
      kept++;
    }
    this.size = kept;
    for (let i = (kept >> 1) - 1; i >= 0; i--) this.siftDown(i, kept);
  }
}

function before(timeA: number, sequenceA: number, timeB: number, sequenceB: number): boolean {
  return timeA < timeB || (timeA === timeB && sequenceA < sequenceB);
}

class HeapAlarm implements Alarm {
  private readonly clock: VirtualClock;
  private readonly slot: number;
  private readonly serial: number;

  constructor(clock: VirtualClock, slot: number, serial: number) {
    this.clock = clock;
    this.slot = slot;
    this.serial = serial;
  }

  get pending(): boolean {
    return this.clock.alarmPending(this.slot, this.serial);
  }

  cancel(): boolean {
    return this.clock.cancelAlarm(this.slot, this.serial);
  }
}
