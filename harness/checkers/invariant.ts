/** An invariant watched over the trace: how often it was checked, and the violations in words. */
import type { Trace, TraceRecord } from '../../sim/trace.js';
import type { InvariantSummary } from '../summary.js';

const KEPT = 10;

/** Source id of a device by the number of its name in the trace; undefined for a device of another kernel. */
export type SourceOf = (deviceName: number) => number | undefined;

/** One number for a PASID (20 bits, or NO_PASID, -1) of a device. */
export function bondKey(source: number, pasid: number): number {
  return source * 0x20_0000 + pasid + 1;
}

export abstract class Checker {
  abstract readonly name: string;
  checked = 0;
  violations = 0;
  readonly texts: string[] = [];

  /** Trace kinds it listens to. */
  abstract readonly kinds: readonly string[];
  /** One record of these kinds; `value` reads an argument by name. */
  abstract observe(kind: string, value: (argument: string) => number, record: TraceRecord): void;
  /** The run is over. */
  finish(): void {}

  summary(): InvariantSummary {
    return { name: this.name, status: this.violations === 0 ? 'ok' : 'violated', checked: this.checked, violations: this.texts };
  }

  protected violate(text: string): void {
    this.violations++;
    if (this.texts.length < KEPT) this.texts.push(text);
  }
}

/** Feeds records to checkers by kind. */
export class CheckerSet {
  readonly checkers: readonly Checker[];
  private readonly byKind = new Map<string, Checker[]>();
  private readonly positions = new Map<string, ReadonlyMap<string, number>>();
  private readonly detach: () => void;
  /** Of the record that is being looked at. */
  private at: ReadonlyMap<string, number> = new Map<string, number>();
  private args: readonly number[] = [];
  private readonly value = (argument: string): number => this.args[this.at.get(argument) ?? -1] ?? NaN;

  constructor(trace: Trace, checkers: readonly Checker[]) {
    this.checkers = checkers;
    for (const checker of checkers) {
      for (const kind of checker.kinds) this.byKind.set(kind, [...(this.byKind.get(kind) ?? []), checker]);
    }
    this.detach = trace.listen((record) => this.observe(record), this.byKind.keys());
  }

  /** Ends the watch and asks every checker for what only the end shows. */
  finish(): InvariantSummary[] {
    this.detach();
    for (const checker of this.checkers) checker.finish();
    return this.summaries();
  }

  summaries(): InvariantSummary[] {
    return this.checkers.map((checker) => checker.summary());
  }

  private observe(record: TraceRecord): void {
    const { name } = record.kind;
    const listening = this.byKind.get(name);
    if (listening === undefined) return;
    let positions = this.positions.get(name);
    if (positions === undefined) {
      positions = new Map(record.kind.args.map((argument, i) => [argument, i]));
      this.positions.set(name, positions);
    }
    this.at = positions;
    this.args = record.args;
    for (const checker of listening) checker.observe(name, this.value, record);
  }
}
