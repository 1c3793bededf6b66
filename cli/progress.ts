/** How far a long run is, on a terminal's stderr only. */
import type { Machine } from '../harness/machine.js';
import { formatTime } from '../harness/topology/units.js';

const FIRST_MS = 500;
const EVERY_MS = 200;

export class Progress {
  private readonly machine: Machine;
  private readonly started = Date.now();
  private last = 0;
  private shown = false;

  constructor(machine: Machine) {
    this.machine = machine;
  }

  show(): void {
    const now = Date.now();
    if (!process.stderr.isTTY || now - this.started < FIRST_MS || now - this.last < EVERY_MS) return;
    this.last = now;
    this.shown = true;
    const { clock, progress } = this.machine;
    const rate = Math.round(clock.events / Math.max(1, now - this.started));
    process.stderr.write(`\r\u001b[K${progress.stepsDone} of ${progress.stepsTotal} steps, ${formatTime(clock.now)} simulated, ${clock.events} events (${rate} k/s)`);
  }

  clear(): void {
    if (this.shown) process.stderr.write('\r\u001b[K');
  }
}
