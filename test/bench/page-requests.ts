/**
 * Page requests per second of real time, each the whole way through bytes: translation request, page request, queue
 * in memory, interrupt, driver, core, page fault of the process, page-group response descriptor, response, translation
 * again, data. Every access is the first one to its page.
 */
import type { Mm } from '../../host/mm/mm.js';
import { ACCESS_WRITE, PRG_SUCCESS } from '../../host/pci/dma-port.js';
import { createMachineSync } from '../../harness/machine.js';
import type { Steps } from '../../sim/task.js';
import { BenchMachine, type BenchMachineOptions } from './machine.js';
import { median, throughput, timeMs } from './measure.js';
import type { Row } from './report.js';

/** Pages of a round: 64 MiB. */
const PAGES = 16_384;
const WANTED = { atLeast: 1e6 } as const;

export class Storm {
  readonly world: BenchMachine;
  private readonly mm: Mm;
  private readonly pasid: number;
  private readonly firstPage: number;
  private readonly data = Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8);
  private next = 0;

  constructor(options: BenchMachineOptions) {
    this.world = new BenchMachine(options);
    this.mm = this.world.process();
    this.pasid = this.world.bind(this.mm);
    this.firstPage = this.world.do(this.mm.mmap(PAGES * 4096)) / 4096;
  }

  /** The process gives the pages back: the next round finds none. */
  forget(): void {
    this.world.do(this.mm.madviseDontNeed(this.firstPage * 4096, PAGES * 4096));
    this.next = 0;
  }

  /** Writes to every page: `engines` of them at a time, asking for `groupPages` in a group. */
  round(engines: number, groupPages: number): void {
    this.world.do(this.all(engines, groupPages));
    if (this.mm.residentPages !== PAGES) throw new Error(`${this.mm.residentPages} pages are there, not ${PAGES}`);
  }

  private *all(engines: number, groupPages: number): Steps {
    const { scheduler } = this.world.machine.host;
    const tasks = Array.from({ length: engines }, (_, i) => scheduler.spawn(`engine ${i}`, this.engine(groupPages), { joined: true }));
    for (const task of tasks) yield* task.join();
  }

  private *engine(groupPages: number): Steps {
    const { requester } = this.world;
    while (this.next < PAGES) {
      const page = this.firstPage + this.next;
      this.next += groupPages;
      if (groupPages > 1) {
        const code = yield* requester.prefetchPages(page, groupPages, ACCESS_WRITE, this.pasid);
        if (code !== PRG_SUCCESS) throw new Error(`page request group answered with ${code}`);
      }
      for (let i = 0; i < groupPages; i++) {
        const { status } = yield* requester.write(page + i, 0, this.data, 0, 8, this.pasid, 0, true);
        if (status !== 'done') throw new Error(`access to page ${i} ended with ${status}`);
      }
    }
  }
}

function storm(name: string, engines: number, groupPages: number, options: BenchMachineOptions, target?: Row['target']): Row {
  const storms = new Storm(options);
  const { clock, trace } = storms.world.machine;
  const { value, samples } = throughput({ units: PAGES, run: () => storms.round(engines, groupPages), prepare: () => storms.forget() }, { repetitionMs: 300, warmUpMs: 500 });
  storms.forget();
  const events = clock.events, records = trace.count, start = clock.now;
  storms.round(engines, groupPages);
  const perRequest = (count: number): string => (count / PAGES).toFixed(1);
  return {
    group: 'page requests', name, value, unit: '/s', samples, ...(target === undefined ? {} : { target }),
    note: `per request: ${perRequest(clock.events - events)} events, ${perRequest(trace.count - records)} records, ${perRequest(clock.now - start)} ns simulated`,
  };
}

/** The shipped accelerator fills untouched memory: from the program's first step to the end of its teardown. */
function accelerator(): Row {
  const megabytes = 64;
  const samples: number[] = [];
  let note = '';
  for (let i = 0; i < 4; i++) {
    const machine = createMachineSync({
      version: 1,
      host: { memory: '1GiB', iommu: { model: 'intel-vtd' }, devices: [{ model: 'dsa', name: 'dsa0', bdf: '0000:00:01.0', 'work-queues': [{ mode: 'dedicated', size: 128 }] }] },
      processes: [{
        name: 'app',
        steps: [{ open: { device: 'dsa0' } }, { malloc: { name: 'memory', size: `${megabytes}MiB` } }, { submit: { fill: { buffer: 'memory', pattern: '0x1122334455667788' }, chunk: '64KiB' } }, { wait: {} }, { close: {} }],
      }],
    }, { checkers: false });
    machine.boot();
    const ms = timeMs(() => machine.run());
    const flow = machine.summary().flows[0];
    if (flow?.status !== 'ok' || flow.pageRequests < megabytes * 256) throw new Error(`the accelerator asked for ${flow?.pageRequests ?? 0} pages`);
    if (i > 0) samples.push(flow.pageRequests / (ms / 1000));
    note = `${flow.pageRequests.toLocaleString('en')} requests for ${megabytes} MiB, 4 KiB of data each`;
  }
  return { group: 'page requests', name: 'accelerator (dsa) fills untouched memory, 64 KiB descriptors', value: median(samples), unit: '/s', samples, note };
}

export function* pageRequests(): Generator<Row> {
  yield storm('one at a time', 1, 1, {});
  yield storm('256 in flight, groups of one page', 256, 1, {}, WANTED);
  yield storm('32 groups in flight, 16 pages each', 32, 16, {}, WANTED);
  yield storm('256 in flight, groups of one page, checkers on', 256, 1, { checkers: true });
  yield accelerator();
}
