/**
 * Vitest matchers for machines: `import 'vfiosim/vitest'` in a test file or a set-up file.
 * `toPass()`: every flow, expectation and invariant held and nothing leaked. `toHaveFlow(name, partial)`: one flow,
 * with the given values. `toRefuse(code)`: a promise rejected with that errno.
 */
import { expect } from 'vitest';
import { isErrno, type ErrnoName } from '../sim/errno.js';
import type { FlowSummary, Summary } from './summary.js';

interface HasSummary {
  summary(): Summary;
}

function summaryOf(received: Summary | HasSummary): Summary {
  return 'verdict' in received ? received : received.summary();
}

/** Everything that keeps a run from passing, one line each. */
function complaints(summary: Summary): string[] {
  return [
    ...(summary.end === 'finished' || summary.end === 'deadlock' ? [] : [`the run ended early: ${summary.end}`]),
    ...summary.stepFailures,
    ...summary.unmetExpectations.map((text) => `expected: ${text}`),
    ...summary.flows.filter((flow) => flow.status === 'failed').map((flow) => `flow ${flow.name} failed: ${flow.reason}`),
    ...summary.invariants.filter((invariant) => invariant.status === 'violated').map((invariant) => `${invariant.name}: ${invariant.violations.join('; ')}`),
    ...Object.entries(summary.leaks).filter(([, count]) => count > 0).map(([what, count]) => `${count} ${what} leaked`),
  ];
}

expect.extend({
  toPass(received: Summary | HasSummary) {
    const summary = summaryOf(received);
    const found = summary.verdict === 'pass' ? [] : complaints(summary);
    return {
      pass: summary.verdict === 'pass',
      message: () => (found.length === 0 ? `${summary.topology} passed, but should not` : `${summary.topology} (seed ${summary.seed}):\n${found.map((line) => `  ${line}`).join('\n')}`),
    };
  },
  toHaveFlow(received: Summary | HasSummary, name: string, values: Partial<FlowSummary> = {}) {
    const { flows } = summaryOf(received);
    const flow = flows.find((candidate) => candidate.name === name);
    const pass = flow !== undefined && this.equals(flow, expect.objectContaining(values));
    return {
      pass,
      message: () => (flow === undefined ? `no flow "${name}"; there are: ${flows.map((candidate) => candidate.name).join(', ')}` : `flow ${name} is ${this.utils.printReceived(flow)}, expected ${this.utils.printExpected(values)}`),
    };
  },
  async toRefuse(received: Promise<unknown>, code: ErrnoName) {
    const got = await received.then((value: unknown) => `no error, but ${String(value)}`, (error: unknown) => error);
    return { pass: isErrno(got, code), message: () => `expected -${code}, got ${got instanceof Error ? got.message : String(got)}` };
  },
});

declare module 'vitest' {
  interface Matchers<T> {
    toPass(): T;
    toHaveFlow(name: string, values?: Partial<FlowSummary>): T;
    toRefuse(code: ErrnoName): Promise<T>;
  }
}
