/**
 * Vitest matchers for machines: `import 'vfiosim/vitest'` in a test file or a set-up file.
 * `toPass()`: every flow, expectation and invariant held and nothing leaked; a machine that has not ended is run to
 * its end first, because what leaks shows only then. `toHaveFlow(name, partial)`: one flow, with the given values.
 * `toRefuse(code)`: a promise rejected, or a function threw, with that errno.
 */
import { expect } from 'vitest';
import { isErrno, type ErrnoName } from '../sim/errno.js';
import { Machine } from './machine.js';
import { MachineSession } from './session.js';
import type { FlowSummary, Summary } from './summary.js';

type Judged = Summary | Machine | MachineSession;

function machineOf(received: Judged): Machine | undefined {
  if (received instanceof MachineSession) return received.model;
  return received instanceof Machine ? received : undefined;
}

function summaryOf(received: Judged): Summary {
  return received instanceof MachineSession || received instanceof Machine ? received.summary() : received;
}

/** Everything that keeps a run from passing, one line each. */
function complaints(summary: Summary): string[] {
  return [
    ...(summary.end === 'finished' || summary.end === 'deadlock' ? [] : [`the run ended early: ${summary.end}`]),
    ...summary.stepFailures,
    ...summary.unmetExpectations.map((text) => `expected: ${text}`),
    ...summary.guests.filter((guest) => guest.state === 'refused').map((guest) => `guest ${guest.name} was refused: ${guest.reason}`),
    ...summary.flows.filter((flow) => flow.status === 'failed').map((flow) => `flow ${flow.name} failed: ${flow.reason}`),
    ...summary.invariants.filter((invariant) => invariant.status === 'violated').map((invariant) => `${invariant.name}: ${invariant.violations.join('; ')}`),
    ...Object.entries(summary.leaks).filter(([, count]) => count !== 0).map(([what, count]) => `${count} ${what} leaked`),
  ];
}

expect.extend({
  toPass(received: Judged) {
    const machine = machineOf(received);
    if (machine?.end === undefined) machine?.run();
    const summary = summaryOf(received);
    const pass = summary.verdict === 'pass' && summary.end === 'finished';
    return {
      pass,
      message: () => (pass ? `${summary.topology} (seed ${summary.seed}) passed, but should not` : `${summary.topology} (seed ${summary.seed}):\n${complaints(summary).map((line) => `  ${line}`).join('\n')}`),
    };
  },
  toHaveFlow(received: Judged, name: string, values: Partial<FlowSummary> = {}) {
    const { flows } = summaryOf(received);
    const flow = flows.find((candidate) => candidate.name === name);
    const pass = flow !== undefined && this.equals(flow, expect.objectContaining(values));
    return {
      pass,
      message: () => (flow === undefined
        ? `no flow "${name}"; there are: ${flows.map((candidate) => candidate.name).join(', ')}`
        : `flow ${name} is ${this.utils.printReceived(flow)}, expected ${pass ? 'anything but ' : ''}${this.utils.printExpected(values)}`),
    };
  },
  async toRefuse(received: Promise<unknown> | (() => unknown), code: ErrnoName) {
    let got: unknown;
    try {
      got = `no error, but ${String(await (typeof received === 'function' ? received() : received))}`;
    } catch (error) {
      got = error;
    }
    const pass = isErrno(got, code);
    return { pass, message: () => `expected ${pass ? 'anything but ' : ''}-${code}, got ${got instanceof Error ? got.message : String(got)}` };
  },
});

declare module 'vitest' {
  interface Matchers<T> {
    toPass(): T;
    toHaveFlow(name: string, values?: Partial<FlowSummary>): T;
    toRefuse(code: ErrnoName): Promise<T>;
  }
}
