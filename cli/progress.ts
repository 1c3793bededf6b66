/** How far a long run is, as a bar on stderr, when that is a terminal and the run takes longer than half a second. */
import { SingleBar } from 'cli-progress';
import type { Machine } from '../harness/machine.js';
import { formatTime } from '../harness/topology/units.js';
import type { Output } from './io.js';

const FIRST_MS = 500;
const EVERY_MS = 200;

export class Progress {
  private readonly machine: Machine;
  private readonly stderr: Output;
  private readonly started = Date.now();
  private bar: SingleBar | undefined;
  private last = 0;

  constructor(machine: Machine, stderr: Output) {
    this.machine = machine;
    this.stderr = stderr;
  }

  /** To be called now and then: the run is synchronous, so no timer would fire. */
  show(): void {
    const now = Date.now();
    if (this.stderr.isTTY !== true || now - this.started < FIRST_MS || now - this.last < EVERY_MS) return;
    this.last = now;
    const { clock, progress } = this.machine;
    const shown = { time: formatTime(clock.now), events: clock.events, rate: Math.round(clock.events / Math.max(1, now - this.started)) };
    this.bar ??= this.newBar(progress.stepsTotal, shown);
    // a guest that is reset does its steps again
    this.bar.update(Math.min(progress.stepsDone, progress.stepsTotal), shown);
  }

  /** Takes the bar off the terminal; without it the bar's timer would keep the process alive. */
  clear(): void {
    this.bar?.stop();
    this.bar = undefined;
  }

  private newBar(total: number, shown: object): SingleBar {
    const bar = new SingleBar({
      // a signal could not be handled before the run's end, so the bar must not catch any
      stream: this.stderr as unknown as NodeJS.WritableStream, clearOnComplete: true, forceRedraw: true, gracefulExit: false, hideCursor: false, fps: 20,
      format: '{bar} {value} of {total} steps, {time} simulated, {events} events ({rate} k/s)', barsize: 20, barCompleteChar: '█', barIncompleteChar: '░',
    });
    bar.start(total, 0, shown);
    return bar;
  }
}
