/** The kernel's log: what `dmesg` would print, with the texts people know from Linux. */
import type { Clock } from '../sim/clock.js';

export type LogLevel = 'err' | 'warn' | 'info';

export interface LogLine {
  readonly timeNs: number;
  readonly level: LogLevel;
  readonly text: string;
}

/** A line as dmesg prints it, with seconds. */
export function logText({ timeNs, text }: LogLine): string {
  return `[${(timeNs / 1e9).toFixed(6).padStart(12)}] ${text}`;
}

export class KernelLog {
  readonly lines: LogLine[] = [];
  /** Lines that a rate limit swallowed. */
  suppressed = 0;
  private readonly clock: Clock;
  private readonly onLine: ((line: LogLine) => void) | undefined;
  private readonly limits = new Map<string, { windowStart: number; printed: number }>();

  constructor(clock: Clock, onLine?: (line: LogLine) => void) {
    this.clock = clock;
    this.onLine = onLine;
  }

  log(level: LogLevel, text: string): void {
    const line = { timeNs: this.clock.now, level, text };
    this.lines.push(line);
    this.onLine?.(line);
  }

  /** At most `burst` lines per `intervalNs` for one `key` (Linux' default rate limit: 10 in 5 s). */
  limited(key: string, level: LogLevel, text: string, burst = 10, intervalNs = 5_000_000_000): void {
    let limit = this.limits.get(key);
    if (limit === undefined || this.clock.now - limit.windowStart >= intervalNs) {
      limit = { windowStart: this.clock.now, printed: 0 };
      this.limits.set(key, limit);
    }
    if (limit.printed++ < burst) this.log(level, text);
    else this.suppressed++;
  }
}
