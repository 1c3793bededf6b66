/** The topologies that ship with the product under other seeds: another story, the same verdict. */
import { describe, expect, it } from 'vitest';
import { CONFIGS, NO_LEAKS, runConfig } from './shipped.js';

describe.each(CONFIGS)('%s', (file) => {
  it('tells another story and comes to the same verdict with other seeds (scenario 35)', () => {
    const stories = [11, 12, 13].map((seed) => runConfig(file, seed).summary());
    for (const summary of stories) expect(summary).toMatchObject({ verdict: 'pass', leaks: NO_LEAKS });
    expect(new Set(stories.map(({ traceHash }) => traceHash)).size).toBe(3);
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
