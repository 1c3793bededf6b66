/**
 * Many guests on one machine, with 8 mediated devices and 4 processes each, a hundred of them in the nightly run: all of
 * them pass, nothing leaks, and what one of them causes does not depend on how many others there are. Counts only;
 * times are the benchmark's (docs/BENCHMARKS.md, "Guests").
 */
import { describe, expect, it } from 'vitest';
import { createMachineSync } from '../../harness/machine.js';
import type { Summary } from '../../harness/summary.js';
import { crowd } from '../fixtures/guest-crowd.js';

const NIGHTLY = process.env['VFIOSIM_NIGHTLY'] === '1';
const MANY = NIGHTLY ? 100 : 20;
const MDEVS = 8, PROCESSES = 4;

/** Runs so many guests with every checker; events and trace records of one of them on average. */
function run(guests: number): { summary: Summary; events: number; records: number } {
  const machine = createMachineSync(crowd({ guests, mdevs: MDEVS, processes: PROCESSES }), { traceRecords: 1024 });
  machine.run();
  const summary = machine.summary();
  expect(summary.invariants.flatMap(({ violations }) => violations)).toEqual([]);
  expect(summary.leaks).toEqual({ pasids: 0, pinnedPages: 0, domains: 0, frames: 0 });
  expect(summary.verdict).toBe('pass');
  const records = Object.values(summary.counters).reduce((sum, count) => sum + count, 0);
  return { summary, events: machine.clock.events / guests, records: records / guests };
}

function passes(guests: number): { events: number; records: number } {
  const { summary, events, records } = run(guests);
  expect(summary.guests.map(({ state }) => state)).toEqual(Array.from({ length: guests }, () => 'running'));
  expect(summary.flows).toHaveLength(guests * MDEVS);
  for (const { status, bytes, unrecoverable } of summary.flows) expect([status, bytes, unrecoverable]).toEqual(['ok', 16_384, 0]);
  return { events, records };
}

/** `many` is `few`, up to what the machine does once. */
function expectAlike(few: { events: number; records: number }, many: { events: number; records: number }): void {
  expect(many.events / few.events).toBeCloseTo(1, 1);
  expect(many.events).toBeLessThanOrEqual(few.events);
  expect(many.records).toBeLessThanOrEqual(few.records);
}

describe('many guests', () => {
  it(`run side by side, ${MANY} of them, each as if it were alone`, () => {
    expectAlike(passes(5), passes(MANY));
  });

  it('copy at the same number of events for each copy, however many wait for the queue', () => {
    const events = (copies: number): number => {
      const machine = createMachineSync(crowd({ guests: 1, mdevs: 1, processes: 1, memoryBytes: 16 * 2 ** 20, copyBytes: copies * 4096 }), { traceRecords: 1024 });
      machine.run();
      expect(machine.summary().verdict).toBe('pass');
      return machine.clock.events;
    };
    const [few, some, many] = [events(16), events(64), events(512)] as const;
    expect((many - some) / 448).toBeLessThan((some - few) / 48 * 1.1);
  });

  it('are a function of their seed', () => {
    const guests = NIGHTLY ? MANY : 3;
    expect(run(guests).summary.traceHash).toBe(run(guests).summary.traceHash);
  });
});
