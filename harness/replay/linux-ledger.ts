/** Keeps count of what a replayed trace was compared with, and of what differed. */
import { KEPT_DISAGREEMENTS, type Disagreement, type StaleAnswer, type Unsupported } from './report.js';
import type { TraceLine } from './linux-trace.js';

export class Ledger {
  readonly checks: Record<string, number> = {};
  agreements = 0;
  readonly disagreements: Disagreement[] = [];
  readonly skipped: Unsupported[] = [];
  readonly stale: StaleAnswer[] = [];
  private dropped = 0;

  /** Counts one comparison. @param walk asked only when it differs */
  compare(kind: string, line: TraceLine, what: string, expected: string, got: string, walk?: () => readonly string[]): void {
    this.checks[kind] = (this.checks[kind] ?? 0) + 1;
    if (expected === got) {
      this.agreements++;
      return;
    }
    if (this.disagreements.length >= KEPT_DISAGREEMENTS) {
      this.dropped++;
      return;
    }
    this.disagreements.push({ step: line.number, op: line.op, what, expected, got, ...(walk === undefined ? {} : { walk: walk() }) });
  }

  /** Counts one comparison that differs because our unit's caches were not told of a change. */
  compareStale(kind: string, line: TraceLine, what: string, expected: string, got: string, why: string): void {
    this.checks[kind] = (this.checks[kind] ?? 0) + 1;
    this.stale.push({ step: line.number, what, side: 'model', expected, got, why });
  }

  unsupported(line: TraceLine, what: string, why: string): void {
    this.skipped.push({ step: line.number, op: line.op, what, why });
  }

  get remarks(): string[] {
    return this.dropped === 0 ? [] : [`${this.dropped} more disagreements`];
  }
}
