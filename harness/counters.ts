/** What happened in a machine, in numbers. */
import type { Trace } from '../sim/trace.js';

/** Counts of the trace's kinds that occurred. */
export function countersOf(trace: Trace): Record<string, number> {
  return Object.fromEntries(trace.kinds.flatMap((kind) => (trace.countOf(kind) === 0 ? [] : [[kind.name, trace.countOf(kind)]])));
}
