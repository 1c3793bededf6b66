/** Every topology that ships with the product passes, and is a function of its seed. */
import { describe, expect, it } from 'vitest';
import { CONFIGS, NO_LEAKS, runConfig } from './shipped.js';

describe.each(CONFIGS)('%s', (file) => {
  it('passes, leaks nothing, keeps every invariant busy, and does the same again (scenario 35)', () => {
    const summary = runConfig(file).summary();
    expect(summary).toMatchObject({ verdict: 'pass', end: 'finished', leaks: NO_LEAKS, stepFailures: [], unmetExpectations: [] });
    // invariants that saw nothing prove nothing
    expect(summary.invariants.filter(({ checked }) => checked === 0)).toEqual([]);
    expect(runConfig(file).summary()).toEqual(summary);
  });
});
