/** What a topology's `expect` asks for, held against what happened. */
import type { FlowSummary, GuestSummary } from './summary.js';
import type { Topology } from './topology/schema.js';
import { unknownName } from './topology/problems.js';

type Bound = number | { readonly min?: number | undefined; readonly max?: number | undefined };

interface Happened {
  readonly flows: readonly FlowSummary[];
  readonly guests: readonly GuestSummary[];
  readonly counters: Readonly<Record<string, number>>;
  readonly log: readonly string[];
}

/** One sentence per expectation that was not met. */
export function unmetExpectations(topology: Topology, happened: Happened): string[] {
  const { flows, guests, counters, log } = happened;
  const { expect } = topology;
  const unmet: string[] = [];
  const check = (what: string, got: number, bound: Bound | undefined): void => {
    if (bound !== undefined && !within(got, bound)) unmet.push(`${what} is ${got}, expected ${formatBound(bound)}`);
  };
  for (const [name, wanted] of Object.entries(expect.flows ?? {})) {
    const flow = flows.find((candidate) => candidate.name === name);
    if (flow === undefined) {
      unmet.push(unknownName('flow', name, flows.map((candidate) => candidate.name)));
      continue;
    }
    if (wanted.status !== undefined && flow.status !== wanted.status) unmet.push(`flow ${name} is ${flow.status}${flow.reason === '' ? '' : ` (${flow.reason})`}, expected ${wanted.status}`);
    check(`bytes of flow ${name}`, flow.bytes, wanted.bytes);
    check(`page requests of flow ${name}`, flow.pageRequests, wanted.pageRequests);
    check(`success responses of flow ${name}`, flow.responses.success, wanted.success);
    check(`invalid responses of flow ${name}`, flow.responses.invalid, wanted.invalid);
    check(`failure responses of flow ${name}`, flow.responses.failure, wanted.failure);
    check(`unrecoverable faults of flow ${name}`, flow.unrecoverable, wanted.unrecoverable);
  }
  for (const [name, state] of Object.entries(expect.guests ?? {})) {
    const guest = guests.find((candidate) => candidate.name === name);
    if (guest === undefined) unmet.push(unknownName('guest', name, guests.map((candidate) => candidate.name)));
    else if (guest.state !== state) unmet.push(`guest ${name} is ${guest.state}${guest.reason === '' ? '' : ` (${guest.reason})`}, expected ${state}`);
  }
  for (const [kind, bound] of Object.entries(expect.counters ?? {})) check(`count of ${kind}`, counters[kind] ?? 0, bound);
  for (const text of expect.log ?? []) if (!log.some((line) => line.includes(text))) unmet.push(`the kernel log has no line with "${text}"`);
  for (const text of expect['no-log'] ?? []) {
    const line = log.find((candidate) => candidate.includes(text));
    if (line !== undefined) unmet.push(`the kernel log has a line with "${text}": ${line.trim()}`);
  }
  return unmet;
}

function within(value: number, bound: Bound): boolean {
  if (typeof bound === 'number') return value === bound;
  return value >= (bound.min ?? -Infinity) && value <= (bound.max ?? Infinity);
}

function formatBound(bound: Bound): string {
  if (typeof bound === 'number') return String(bound);
  if (bound.min !== undefined && bound.max !== undefined) return `${bound.min} to ${bound.max}`;
  return bound.min !== undefined ? `at least ${bound.min}` : `at most ${bound.max ?? '?'}`;
}
