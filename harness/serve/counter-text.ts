/** What an external guest's machine has done so far, in words. */
import type { Trace } from '../../sim/trace.js';
import { countersOf } from '../counters.js';

const SHOWN: readonly (readonly [kind: string, one: string, many: string])[] = [
  ['vtd:descriptor', 'invalidation descriptor', 'invalidation descriptors'], ['vtd:page_request', 'page request', 'page requests'], ['vtd:fault', 'fault', 'faults'],
  ['nvme:complete', 'disk command', 'disk commands'], ['dsa:complete', 'accelerator descriptor', 'accelerator descriptors'],
];

/** `106 invalidation descriptors, 6 page requests, 56 disk commands` */
export function counterText(trace: Trace): string {
  const counters = countersOf(trace);
  const parts = SHOWN.flatMap(([kind, one, many]) => (counters[kind] === undefined ? [] : [`${counters[kind]} ${counters[kind] === 1 ? one : many}`]));
  return parts.length === 0 ? 'nothing has happened yet' : parts.join(', ');
}
