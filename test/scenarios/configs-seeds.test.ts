/** The topologies that ship with the product under other seeds: another story, the same verdict. */
import { describe, expect, it } from 'vitest';
import { CONFIGS, hasGuests, NO_LEAKS, runConfig } from './shipped.js';

describe.each(CONFIGS)('%s', (file) => {
  it('tells another story and comes to the same verdict with other seeds (scenario 35)', () => {
    // a machine with guests takes its time to run
    const seeds = hasGuests(file) ? [12, 15] : [11, 12, 13];
    const stories = seeds.map((seed) => runConfig(file, seed).summary());
    for (const summary of stories) expect(summary).toMatchObject({ verdict: 'pass', end: 'finished', leaks: NO_LEAKS, stepFailures: [], unmetExpectations: [] });
    expect(new Set(stories.map(({ traceHash }) => traceHash)).size).toBe(seeds.length);
  });
});

describe('quickstart.yaml', () => {
  it('has its concurrent page requests in an order that depends on the seed', () => {
    const [first, ...others] = [1, 2, 3].map((seed) => {
      const records = [...runConfig('quickstart.yaml', seed).trace.records()].filter(({ kind }) => kind.name === 'pci:page_request');
      return records.map(({ kind, args }) => args[kind.args.indexOf('page')]!);
    });
    // the same events
    for (const pages of others) expect(pages.toSorted((a, b) => a - b)).toEqual(first!.toSorted((a, b) => a - b));
    // in another order
    for (const pages of others) expect(pages).not.toEqual(first);
  });
});
