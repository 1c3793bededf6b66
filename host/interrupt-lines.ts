/**
 * Level-triggered interrupt lines: the inputs of an I/O APIC as far as PCI's legacy interrupts need them. A line is
 * high while anybody drives it (wired OR); its handlers run `interruptNs` after it rose, and again after each end of
 * interrupt as long as it is high and not disabled (`handle_fasteoi_irq`). Handlers share a line and say whether it
 * was their device; when nobody says so for long, the line is switched off (`note_interrupt`: 99 900 of 100 000).
 * Left out: edges, priorities, redirection entries as registers, remapping.
 */
import { Errno } from '../sim/errno.js';
import type { Clock } from '../sim/clock.js';
import type { Timing } from './timing.js';

/** A handler on a line, as `request` gave it out. */
export interface LineAction {
  readonly line: number;
  readonly name: string;
  /** True: it was this handler's device. */
  readonly handler: () => boolean;
  readonly shared: boolean;
}

interface Line {
  readonly number: number;
  /** Who drives it now. */
  readonly drivers: Set<object>;
  /** Replaced, never changed: a handler may free itself. */
  actions: readonly LineAction[];
  listeners: readonly (() => void)[];
  /** `disable` without `enable`. */
  depth: number;
  /** A delivery is on its way, or handlers run. */
  busy: boolean;
  count: number;
  window: number;
  unhandled: number;
}

const WINDOW = 100_000;
const UNHANDLED_LIMIT = 99_900;

export class InterruptLines {
  /** Lines that were switched off because nobody cared, by number. */
  readonly nobodyCared: number[] = [];
  private readonly clock: Clock;
  private readonly timing: Timing;
  private readonly onNobodyCared: ((line: number) => void) | undefined;
  private readonly lines: (Line | undefined)[] = [];

  constructor(clock: Clock, timing: Timing, onNobodyCared?: (line: number) => void) {
    this.clock = clock;
    this.timing = timing;
    this.onNobodyCared = onNobodyCared;
  }

  /** Hardware: `driver` pulls the line up or lets it go. */
  set(number: number, driver: object, high: boolean): void {
    const line = this.at(number);
    if (high) line.drivers.add(driver);
    else line.drivers.delete(driver);
    this.consider(line);
  }

  isHigh(number: number): boolean {
    return this.at(number).drivers.size > 0;
  }

  /** Adds a handler. EBUSY when it or somebody who is there does not share. */
  request(number: number, name: string, handler: () => boolean, shared: boolean): LineAction {
    const line = this.at(number);
    const other = line.actions.find((action) => !shared || !action.shared);
    if (other !== undefined) throw new Errno('EBUSY', `interrupt line ${number} of ${name} is in use by ${other.name}, and not shared by both`);
    if (line.actions.length === 0) {
      line.depth = 0;
      line.window = line.unhandled = 0;
    }
    const action = { line: number, name, handler, shared };
    line.actions = [...line.actions, action];
    this.consider(line);
    return action;
  }

  free(action: LineAction): void {
    const line = this.at(action.line);
    line.actions = line.actions.filter((other) => other !== action);
  }

  /** No handler runs until as many `enable`; one that runs now goes on. */
  disable(number: number): void {
    this.at(number).depth++;
  }

  /** A line that is still high interrupts again. Nothing when it is not disabled. */
  enable(number: number): void {
    const line = this.at(number);
    if (line.depth === 0) return;
    line.depth--;
    this.consider(line);
  }

  /** Calls `listener` at every end of interrupt of a line, before it is looked at again; the result ends that. */
  listenEoi(number: number, listener: () => void): () => void {
    const line = this.at(number);
    line.listeners = [...line.listeners, listener];
    return () => {
      line.listeners = line.listeners.filter((other) => other !== listener);
    };
  }

  /** Lines with handlers, as in /proc/interrupts. */
  list(): { line: number; count: number; names: string[] }[] {
    return this.lines.flatMap((line) => (line === undefined || line.actions.length === 0 ? [] : [{ line: line.number, count: line.count, names: line.actions.map(({ name }) => name) }]));
  }

  private at(number: number): Line {
    const known = this.lines[number];
    if (known !== undefined) return known;
    while (this.lines.length <= number) this.lines.push(undefined);
    return (this.lines[number] = { number, drivers: new Set(), actions: [], listeners: [], depth: 0, busy: false, count: 0, window: 0, unhandled: 0 });
  }

  private consider(line: Line): void {
    if (line.busy || line.depth > 0 || line.actions.length === 0 || line.drivers.size === 0) return;
    line.busy = true;
    this.clock.post(this.timing.jittered(this.timing.options.interruptNs), () => this.deliver(line));
  }

  private deliver(line: Line): void {
    // disabled on the way: it waits for `enable`
    if (line.depth === 0 && line.actions.length > 0) {
      line.count++;
      let handled = false;
      for (const { handler } of line.actions) if (handler()) handled = true;
      this.note(line, handled);
      for (const listener of line.listeners) listener();
    }
    line.busy = false;
    this.consider(line);
  }

  private note(line: Line, handled: boolean): void {
    if (!handled) line.unhandled++;
    if (++line.window < WINDOW) return;
    if (line.unhandled > UNHANDLED_LIMIT) {
      line.depth++;
      this.nobodyCared.push(line.number);
      this.onNobodyCared?.(line.number);
    }
    line.window = line.unhandled = 0;
  }
}
