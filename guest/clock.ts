/**
 * The time of one guest: the machine's, as long as its virtual CPUs run. Everything of a guest (its scheduler, timers,
 * interrupts, device models of its own) is scheduled here, so that one switch holds the guest (pause) or ends it (power
 * off, reset, kill), whatever it was about to do.
 *
 * A paused guest's events stay in their order and run when it resumes, none of them lost. Time goes on meanwhile: a
 * guest sees that it was paused, as with a TSC that no VMM adjusts. Left out: kvmclock, steal time.
 */
import { assert } from '../sim/assert.js';
import type { Alarm, Clock } from '../sim/clock.js';

export type GuestClockState = 'running' | 'paused' | 'stopped';

/** An alarm of a guest, in the list of those that are pending. It stays pending while its event is kept by a pause. */
class GuestAlarm implements Alarm {
  previous: GuestAlarm | undefined;
  next: GuestAlarm | undefined;
  base: Alarm | undefined;
  pending = true;
  readonly ring: () => void;
  private readonly clock: GuestClock;

  constructor(clock: GuestClock, run: () => void) {
    this.clock = clock;
    this.ring = () => {
      if (!this.pending) return;
      this.clock.forget(this);
      run();
    };
  }

  cancel(): boolean {
    if (!this.pending) return false;
    this.clock.forget(this);
    this.base!.cancel();
    return true;
  }
}

export class GuestClock implements Clock {
  state: GuestClockState = 'running';
  private readonly base: Clock;
  /** Who holds the guest beside a pause: virtual CPUs that wait for their VMM or for the host. */
  private holds = 0;
  /** Changes with every start of the guest; events of an earlier one never run. */
  private boot = 0;
  /** Events that became due and have not run, oldest first: everything that becomes due meanwhile goes behind them. */
  private kept: (() => void)[] = [];
  private firstAlarm: GuestAlarm | undefined;
  private readonly drain = (): void => {
    if (this.runs) this.kept.shift()?.();
  };

  constructor(base: Clock) {
    this.base = base;
  }

  get now(): number {
    return this.base.now;
  }

  /** Events that wait for the guest to go on. */
  get waiting(): number {
    return this.kept.length;
  }

  /** Neither paused nor held nor stopped. */
  get runs(): boolean {
    return this.state === 'running' && this.holds === 0;
  }

  at(timeNs: number, run: () => void): Alarm {
    const alarm = new GuestAlarm(this, run);
    if (this.state === 'stopped') {
      alarm.pending = false;
      return alarm;
    }
    alarm.base = this.base.at(timeNs, () => this.due(alarm.ring));
    alarm.next = this.firstAlarm;
    if (alarm.next !== undefined) alarm.next.previous = alarm;
    this.firstAlarm = alarm;
    return alarm;
  }

  after(delayNs: number, run: () => void): Alarm {
    return this.at(this.base.now + delayNs, run);
  }

  post(delayNs: number, run: () => void): void {
    const { boot } = this;
    if (this.state === 'stopped') return;
    this.base.post(delayNs, () => {
      if (boot === this.boot) this.due(run);
    });
  }

  /** Holds every event from now on; what runs right now ends first. Nothing happens when it is not running. */
  pause(): void {
    if (this.state === 'running') this.state = 'paused';
  }

  /** Runs what became due meanwhile, in its order, one event each, before anything that becomes due from now on. */
  resume(): void {
    if (this.state !== 'paused') return;
    this.state = 'running';
    this.goOn();
  }

  /** Like a pause, for as long as what is returned has not been called; any number at a time, beside `pause`. */
  hold(): () => void {
    let held = true;
    this.holds++;
    return () => {
      if (!held) return;
      held = false;
      this.holds--;
      this.goOn();
    };
  }

  /** The guest starts again: nothing that is pending ever runs. Running, paused or held stay as they are. */
  restart(): void {
    this.boot++;
    this.kept = [];
    for (let alarm = this.firstAlarm; alarm !== undefined; alarm = alarm.next) {
      alarm.pending = false;
      alarm.base!.cancel();
    }
    this.firstAlarm = undefined;
  }

  /** Ends the guest: nothing that is pending or scheduled later ever runs. Alarms leave the machine's queue at once. */
  stop(): void {
    this.state = 'stopped';
    this.restart();
  }

  /** @internal the alarm has rung or was cancelled */
  forget(alarm: GuestAlarm): void {
    assert(alarm.pending, 'an alarm ends twice');
    alarm.pending = false;
    if (alarm.previous === undefined) this.firstAlarm = alarm.next;
    else alarm.previous.next = alarm.next;
    if (alarm.next !== undefined) alarm.next.previous = alarm.previous;
    alarm.previous = alarm.next = undefined;
  }

  private due(run: () => void): void {
    if (this.kept.length === 0 && this.runs) run();
    else this.keep(run);
  }

  /** Behind those that wait; with a resume under way, in an event of its own behind theirs. */
  private keep(run: () => void): void {
    this.kept.push(run);
    if (this.runs) this.base.post(0, this.drain);
  }

  private goOn(): void {
    if (this.runs) for (let i = 0; i < this.kept.length; i++) this.base.post(0, this.drain);
  }
}
