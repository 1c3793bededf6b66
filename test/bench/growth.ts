/**
 * What growth costs: heap and time of a bind for 1 to 100,000 processes that touched nothing, heap of a mapped page.
 * Simulated memory is counted apart from the heap: a process has a page table root, a page its frame.
 */
import type { Mm } from '../../host/mm/mm.js';
import { BenchMachine } from './machine.js';
import { heapBytes, timeMs } from './measure.js';
import type { Row } from './report.js';

const STEPS = [1, 10, 100, 1_000, 10_000, 100_000] as const;
const UNBINDS = 1_000;
const PAGES = 16_384;
const KIB = 1024;

/** A trace this short is no part of what grows. */
const TRACE = { traceRecords: 1024 } as const;

function* binds(): Generator<Row> {
  const world = new BenchMachine({ memory: '4GiB', ...TRACE });
  const { frames } = world.machine.host;
  const processes: Mm[] = [];
  // everything that the first bind compiles or allocates once
  world.bind(world.process('first'));
  const heapBefore = heapBytes(), framesBefore = frames.inUse;
  let previousMs = 0, previousCount = 0;
  for (const count of STEPS) {
    const ms = timeMs(() => {
      while (processes.length < count) {
        const mm = world.process();
        processes.push(mm);
        world.bind(mm);
      }
    });
    previousMs += ms;
    if (count >= 1_000) {
      yield { group: 'growth', name: `time of a bind, up to ${count.toLocaleString('en')} bound`, value: ms * 1000 / (count - previousCount), unit: 'µs' };
    }
    previousCount = count;
  }
  const heap = (heapBytes() - heapBefore) / processes.length;
  const simulated = (frames.inUse - framesBefore) * 4096 / processes.length;
  yield {
    group: 'growth', name: 'heap of a bound PASID, 100,000 processes that touched nothing', value: heap, unit: 'bytes', target: { atMost: 6 * KIB },
    note: `and ${(simulated / KIB).toFixed(2)} KiB simulated memory (root table, share of the PASID table); ${previousMs.toFixed(0)} ms for all`,
  };
  const { core } = world.machine.host;
  const unbindMs = timeMs(() => {
    for (let i = 0; i < UNBINDS; i++) world.do(core.svaUnbind(world.device, core.svaGetPasid(world.device, processes[i]!)));
  });
  yield { group: 'growth', name: 'time of an unbind with its drain, 100,000 bound', value: unbindMs * 1000 / UNBINDS, unit: 'µs' };
}

/** Touches every page of a new buffer from the CPU; heap and array buffers per page. */
function* pages(): Generator<Row> {
  const world = new BenchMachine(TRACE);
  const mm = world.process();
  world.bind(mm);
  const address = world.do(mm.mmap(PAGES * 4096));
  world.do(mm.write(address, Uint8Array.of(1)));
  const content = new Uint8Array(PAGES * 4096).fill(1);
  const heapBefore = heapBytes(), buffersBefore = process.memoryUsage().arrayBuffers, framesBefore = world.machine.host.frames.inUse;
  const ms = timeMs(() => world.do(mm.write(address, content)));
  const heap = heapBytes() - heapBefore, buffers = process.memoryUsage().arrayBuffers - buffersBefore;
  yield {
    group: 'growth', name: 'heap and tables of a mapped page', value: (heap + buffers) / PAGES, unit: 'bytes',
    note: `beside ${((world.machine.host.frames.inUse - framesBefore) * 4 / PAGES).toFixed(2)} KiB simulated memory; first touch from the CPU ${(ms * 1000 / PAGES).toFixed(2)} µs`,
  };
}

export function* growth(): Generator<Row> {
  yield* binds();
  yield* pages();
}
