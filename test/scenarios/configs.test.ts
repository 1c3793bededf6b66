/** The topologies that ship with the product: they pass, they are functions of their seed, and their races are real. */
import { readdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { describe, expect, it } from 'vitest';
import { createMachineSync, type Machine } from '../../harness/machine.js';
import type { Summary } from '../../harness/summary.js';

const DIRECTORY = resolve(import.meta.dirname, '../../configs');
const CONFIGS = readdirSync(DIRECTORY).filter((file) => file.endsWith('.yaml')).sort();
const NO_LEAKS = { pasids: 0, pinnedPages: 0, domains: 0, frames: 0 };

function run(file: string, seed?: number): Machine {
  const machine = createMachineSync(resolve(DIRECTORY, file), seed === undefined ? {} : { seed });
  machine.run();
  return machine;
}

/** Invariants that saw nothing prove nothing. */
function idle(summary: Summary): string[] {
  return summary.invariants.filter(({ checked }) => checked === 0).map(({ name }) => name);
}

describe.each(CONFIGS)('%s', (file) => {
  it('passes, leaks nothing, keeps every invariant busy, and does the same again', () => {
    const summary = run(file).summary();
    expect(summary).toMatchObject({ verdict: 'pass', end: 'finished', leaks: NO_LEAKS, stepFailures: [], unmetExpectations: [] });
    expect(idle(summary)).toEqual([]);
    expect(run(file).summary()).toEqual(summary);
  });

  it('tells another story and comes to the same verdict with other seeds (scenario 35)', () => {
    const stories = [11, 12, 13].map((seed) => run(file, seed).summary());
    for (const summary of stories) expect(summary).toMatchObject({ verdict: 'pass', leaks: NO_LEAKS });
    expect(new Set(stories.map(({ traceHash }) => traceHash)).size).toBe(3);
  });
});

describe('quickstart.yaml', () => {
  it('has its concurrent page requests in an order that depends on the seed', () => {
    const orders = [1, 2, 3].map((seed) => {
      const records = [...run('quickstart.yaml', seed).trace.records()].filter(({ kind }) => kind.name === 'pci:page_request');
      return records.map(({ kind, args }) => args[kind.args.indexOf('page')]!);
    });
    const [first, ...others] = orders;
    // the same events
    for (const pages of others) expect(pages.toSorted((a, b) => a - b)).toEqual(first!.toSorted((a, b) => a - b));
    // in another order
    for (const pages of others) expect(pages).not.toEqual(first);
  });
});
