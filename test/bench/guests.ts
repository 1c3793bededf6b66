/**
 * What a guest costs, and that it costs the same beside 10, 100 and 1,000 others: time to start and boot it, to copy
 * in it, to shut it down, heap, and memory of the simulated machine. Guests of 4 MiB, with all of their
 * RAM pinned for its mediated devices. Copies go through the guest's driver and are compared by the process.
 * Heap excludes simulated memory and other array buffers.
 */
import { createMachineSync, type Machine } from '../../harness/machine.js';
import { crowd, type CrowdOptions } from '../fixtures/guest-crowd.js';
import { heapBytes, timeMs } from './measure.js';
import type { Row } from './report.js';

const KIB = 1024;
/** Simulated times: guests have booted, processes have begun and ended long before. */
const BOOTED_NS = 1e9, ENDED_NS = 3e9;

/** Per guest. */
interface Cost {
  readonly startMs: number;
  readonly runMs: number;
  readonly endMs: number;
  readonly heap: number;
  readonly simulated: number;
  readonly events: number;
  readonly copies: number;
}

/** Composes, boots, starts, runs and ends a machine with so many guests; throws unless everything passed. */
function measure(options: CrowdOptions): Cost {
  const { guests } = options;
  const machine: Machine = createMachineSync(crowd({ ...options, processStart: '2s' }), { checkers: false, traceRecords: 1024 });
  machine.boot();
  const { frames } = machine.host;
  const heapBefore = heapBytes(), framesBefore = frames.inUse;
  const startMs = timeMs(() => void machine.run({ stopAt: { at: 'time', timeNs: BOOTED_NS } }));
  for (const guest of machine.scenario.guests.values()) if (guest.state !== 'running') throw new Error(`${guest.name} is ${guest.state}: ${guest.reason}`);
  const heap = heapBytes() - heapBefore, simulated = (frames.inUse - framesBefore) * 4096;
  const runMs = timeMs(() => void machine.clock.run({ untilNs: ENDED_NS }));
  const endMs = timeMs(() => void machine.run());
  const { verdict, flows } = machine.summary();
  if (verdict !== 'pass') throw new Error(`${guests} guests end with ${verdict}`);
  const copies = flows.reduce((sum, { descriptors }) => sum + descriptors, 0);
  return { startMs: startMs / guests, runMs: runMs / guests, endMs: endMs / guests, heap: heap / guests, simulated: simulated / guests, events: machine.clock.events / guests, copies: copies / guests };
}

interface Shape {
  readonly mdevs: number;
  readonly processes: number;
}

function rowsOf(guests: number, { mdevs, processes }: Shape, cost: Cost): Row[] {
  const group = `guests with ${mdevs} mdev${mdevs === 1 ? '' : 's'} and ${processes} process${processes === 1 ? '' : 'es'} each`;
  const row = (name: string, value: number, unit: Row['unit'], note?: string): Row => ({ group, name: `${guests.toLocaleString('en')} guests: ${name}`, value, unit, ...(note === undefined ? {} : { note }) });
  return [
    row('start and boot of one', cost.startMs, 'ms'),
    row('its processes', cost.runMs, 'ms', `${cost.copies} copies of 4 KiB, ${(cost.runMs * 1000 / cost.copies).toFixed(0)} µs each with all around them`),
    row('its shutdown', cost.endMs, 'ms', `${cost.events.toFixed(0)} events in all`),
    row('heap of one that runs', cost.heap, 'bytes', `and ${(cost.simulated / KIB).toFixed(0)} KiB of simulated memory`),
  ];
}

/** Growth of a figure of one guest from the smallest number of guests to the largest: 1 where the whole grows linearly. */
function growthOf(shape: Shape, costs: ReadonlyMap<number, Cost>): Row[] {
  const counts = [...costs.keys()], few = counts[0]!, many = counts.at(-1)!;
  const group = 'growth of what one guest costs';
  const ratio = (name: string, of: (cost: Cost) => number, atMost: number): Row => ({
    group, name: `${name}, ${shape.mdevs} × ${shape.processes}, ${many.toLocaleString('en')} guests to ${few.toLocaleString('en')}`, value: of(costs.get(many)!) / of(costs.get(few)!), unit: 'ratio', target: { atMost },
  });
  return [
    ratio('time', ({ startMs, runMs, endMs }) => startMs + runMs + endMs, 1.25), ratio('heap', ({ heap }) => heap, 1.25),
    ratio('simulated memory', ({ simulated }) => simulated, 1.01), ratio('events', ({ events }) => events, 1.01),
  ];
}

function* crowds(shape: Shape, counts: readonly number[]): Generator<Row> {
  const costs = new Map<number, Cost>();
  // what the code compiles and allocates once
  measure({ guests: 60, ...shape });
  for (const guests of counts) {
    const cost = measure({ guests, ...shape });
    costs.set(guests, cost);
    yield* rowsOf(guests, shape, cost);
  }
  yield* growthOf(shape, costs);
}

export function* guests(): Generator<Row> {
  yield* crowds({ mdevs: 8, processes: 4 }, [10, 100]);
  yield* crowds({ mdevs: 1, processes: 1 }, [10, 100, 1_000]);
}

/** A minute by itself. */
export function* manyGuests(): Generator<Row> {
  yield* crowds({ mdevs: 8, processes: 4 }, [10, 100, 1_000]);
}
