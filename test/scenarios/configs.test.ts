/** Every topology that ships with the product passes, and is a function of its seed. */
import { describe, expect, it } from 'vitest';
import type { Summary } from '../../harness/summary.js';
import { InvalidInput } from '../../harness/topology/problems.js';
import { CONFIGS, idleInvariants, NO_LEAKS, RARELY_BUSY, runConfig, SERVED, SOMETIMES_IDLE } from './shipped.js';

/** First runs, by file. */
const first = new Map<string, Summary>();
function firstRun(file: string): Summary {
  const known = first.get(file) ?? runConfig(file).summary();
  first.set(file, known);
  return known;
}

describe.each(CONFIGS)('%s', (file) => {
  it('passes, leaks nothing, keeps every invariant busy that has something to judge, and does the same again (scenario 35)', () => {
    const summary = firstRun(file);
    expect(summary).toMatchObject({ verdict: 'pass', end: 'finished', leaks: NO_LEAKS, stepFailures: [], unmetExpectations: [] });
    // invariants that saw nothing prove nothing
    expect(idleInvariants(summary)).toEqual([]);
    expect(runConfig(file).summary()).toEqual(summary);
  });
});

describe.each(SERVED)('%s', (file) => {
  it('is a topology, and nothing to simulate', () => {
    expect(() => runConfig(file)).toThrow(InvalidInput);
  });
});

describe('all of them together', () => {
  it('keep every invariant busy somewhere, nearly each in more than one story', () => {
    const summaries = CONFIGS.map(firstRun);
    const names = [...new Set(summaries.flatMap(({ invariants }) => invariants.map(({ name }) => name)))];
    const busy = (name: string): number => summaries.filter(({ invariants }) => invariants.some((one) => one.name === name && one.checked > 0)).length;
    expect(names.filter((name) => busy(name) < (RARELY_BUSY.includes(name) ? 1 : 2))).toEqual([]);
    // every exception is one of an invariant that exists
    expect(names).toEqual(expect.arrayContaining([...SOMETIMES_IDLE, ...RARELY_BUSY]));
  });
});
