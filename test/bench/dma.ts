/**
 * DMA bandwidth of a function's port with a VT-d unit behind it, by size of the request, against a plain
 * `Uint8Array.set` of the same sizes between buffers of the same sizes in the same run. Pages of 4 KiB, writes.
 */
import { ATTR_TRANSLATED, DMA_DONE, NO_PASID } from '../../host/pci/dma-port.js';
import { Random } from '../../sim/random.js';
import { BenchMachine } from './machine.js';
import { throughput } from './measure.js';
import type { Row } from './report.js';

const KIB = 1024;
/** Memory that the requests walk through: more than the processor's caches near it hold. */
const SPAN = 32 * KIB * KIB;
const SPAN_PAGES = SPAN / 4096;
const WANTED_SHARE = 0.6;

const SIZES = [4 * KIB, 64 * KIB, KIB * KIB] as const;

function sizeName(bytes: number): string {
  return bytes >= KIB * KIB ? `${bytes / KIB / KIB} MiB` : `${bytes / KIB} KiB`;
}

/** A process's buffer with every page there, mapped to frames in ascending or in random order. */
export class Target {
  readonly world = new BenchMachine();
  readonly pasid: number;
  readonly firstPage: number;
  readonly physicalPage: number;

  constructor(scattered: boolean) {
    const { world } = this;
    const mm = world.process();
    this.pasid = world.bind(mm);
    this.firstPage = world.do(mm.mmap(SPAN)) / 4096;
    const order = Array.from({ length: SPAN_PAGES }, (_, i) => i);
    if (scattered) new Random(1).shuffle(order);
    for (const page of order) world.do(mm.write((this.firstPage + page) * 4096, Uint8Array.of(page & 0xff)));
    // translated requests go to a block of their own: between the process's frames lie page tables
    this.physicalPage = world.machine.host.frames.alloc('target of translated requests', Math.log2(SPAN_PAGES)) / 4096;
  }

  /** One pass over the span in requests of `source.length` bytes. */
  write(source: Uint8Array, translated: boolean): void {
    const { port } = this.world;
    const pages = source.length / 4096;
    const first = translated ? this.physicalPage : this.firstPage;
    const pasid = translated ? NO_PASID : this.pasid;
    for (let page = 0; page < SPAN_PAGES; page += pages) {
      const status = port.write(first + page, 0, source, 0, source.length, pasid, translated ? ATTR_TRANSLATED : 0);
      if (status !== DMA_DONE) throw new Error(`DMA ended with ${status}`);
    }
  }
}

export function* dmaBandwidth(): Generator<Row> {
  const contiguous = new Target(false), scattered = new Target(true);
  const plain = new Uint8Array(SPAN);
  for (const size of SIZES) {
    const source = new Uint8Array(size).fill(0xa5);
    const bandwidth = (name: string, pass: () => void): Row => {
      const { value, samples } = throughput({ units: SPAN / 1e9, run: pass });
      return { group: 'DMA writes', name: `${sizeName(size)}, ${name}`, value, unit: 'GB/s', samples };
    };
    const copy = bandwidth('Uint8Array.set', () => {
      for (let at = 0; at < SPAN; at += size) plain.set(source, at);
    });
    const beside = (row: Row, wanted: boolean): Row => ({
      ...row, note: `${(row.value / copy.value * 100).toFixed(0)} % of Uint8Array.set`, ...(wanted ? { target: { atLeast: WANTED_SHARE * copy.value } } : {}),
    });
    yield copy;
    yield beside(bandwidth('translated requests (ATS)', () => contiguous.write(source, true)), false);
    yield beside(bandwidth('through the unit, contiguous frames', () => contiguous.write(source, false)), size >= 64 * KIB);
    yield beside(bandwidth('through the unit, scattered frames', () => scattered.write(source, false)), size >= 64 * KIB);
  }
}
