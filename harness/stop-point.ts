/** Places at which a run can be stopped: a simulated time, an event, a fault, a trace kind, or just before teardown. */
import { parseTime } from './topology/units.js';
import { unknownName } from './topology/problems.js';

export type StopPoint =
  | { readonly at: 'time'; readonly timeNs: number }
  | { readonly at: 'event'; readonly index: number }
  /** The Kth record of a trace kind. */
  | { readonly at: 'record'; readonly kind: string; readonly count: number }
  /** Before the first process closes, unbinds, exits or ends. */
  | { readonly at: 'before-teardown' };

/** Trace kind of page requests that reached the kernel. */
const FAULT_KIND = 'iommu:dev_fault';

/** `120us`, `event:N`, `fault:K`, `before-teardown`; a sentence when the text is none of them. */
export function parseStopPoint(text: string): StopPoint | string {
  if (text === 'before-teardown') return { at: 'before-teardown' };
  const numbered = /^(event|fault):(\d+)$/.exec(text);
  if (numbered !== null) {
    const count = Number(numbered[2]);
    return numbered[1] === 'event' ? { at: 'event', index: count } : { at: 'record', kind: FAULT_KIND, count: Math.max(1, count) };
  }
  const timeNs = parseTime(text);
  if (timeNs !== undefined) return { at: 'time', timeNs };
  return `"${text}" is no place in a run; allowed: a time such as 120us, event:N, fault:K, before-teardown`;
}

/** `KIND` or `KIND:N` of a trace kind, e.g. `pci:page_request:3`; a sentence when no such kind is known. */
export function parseBreak(text: string, kinds: readonly string[]): StopPoint | string {
  const match = /^(.*?)(?::(\d+))?$/.exec(text)!;
  const kind = kinds.includes(text) ? text : match[1]!;
  const count = kind === text ? 1 : Math.max(1, Number(match[2] ?? 1));
  return kinds.includes(kind) ? { at: 'record', kind, count } : unknownName('event', kind, kinds);
}
