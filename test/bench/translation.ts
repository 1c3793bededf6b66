/**
 * Translations per second of a VT-d unit: `TranslationAgent.translate` over real tables in simulated memory, by kind
 * of table and by how many pages the requests spread over, with an IOTLB of 512 entries and without any cache.
 */
import { Channel, Mailbox } from '../../sim/channel.js';
import { VirtualClock } from '../../sim/clock.js';
import { Ram } from '../../sim/memory.js';
import { Random } from '../../sim/random.js';
import { Trace } from '../../sim/trace.js';
import { FrameAllocator } from '../../host/frames.js';
import { InterruptController, type InterruptMessage } from '../../host/interrupts.js';
import { PageTable } from '../../host/page-table/page-table.js';
import { LEAF_USER, X86_64 } from '../../host/page-table/x86-64.js';
import { DMA_DONE, NO_PASID, type FunctionRouter } from '../../host/pci/dma-port.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import { VTD_SECOND_LEVEL } from '../../iommu/page-table/vtd-second-level.js';
import { VtdUnit } from '../../iommu/intel-vtd/hardware/unit.js';
import { buildCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { GCMD_SRTP, GCMD_TE, REG, TTM_SCALABLE } from '../../iommu/intel-vtd/spec/registers.js';
import { throughput } from './measure.js';
import type { Row } from './report.js';

const MIB = 2 ** 20;
const MEMORY_BYTES = 64 * MIB;
const SOURCE = 0x10;
const DOMAIN = 7;
/** Requests with this PASID use the tables; those without one too, through RID_PASID 0. */
const PASID = 5;
export const MOST_PAGES = 65_536;
/** Where the pages start: indices differ from zero on every level. */
const FIRST_PAGE = 0x7_f123_4000;
/** Guest-physical page of the first data page, and the distance to physical: no large leaf fits it. */
const GUEST_DATA_PAGE = 0x8000;
const GUEST_OFFSET = 0x1001;
const REQUESTS = 1 << 16;
const RIGHTS = 3;

export type TableKind = 'first-level' | 'second-level' | 'nested';

const PGTT = { 'first-level': 1, 'second-level': 2, nested: 3 } as const;

/** Nobody is at the other end of the wire. */
const NO_FUNCTIONS: FunctionRouter = { invalidate: () => false, pageResponse: () => false, releaseHeld: () => {} };

export class TranslationWorld {
  readonly unit: VtdUnit;
  readonly pasid: number;
  private readonly kind: TableKind;

  /** @param iotlbEntries 0: no cache of any kind */
  constructor(kind: TableKind, iotlbEntries: number) {
    this.kind = kind;
    this.pasid = kind === 'second-level' ? NO_PASID : PASID;
    const clock = new VirtualClock();
    const memory = new Ram(MEMORY_BYTES);
    const timing = new Timing(DEFAULT_TIMING, new Random(1));
    const interrupts = new InterruptController(clock, timing, new Channel<InterruptMessage>(new Mailbox((error) => clock.fail(error)), 'interrupts'));
    this.unit = new VtdUnit({
      name: 'dmar0', capabilities: buildCapabilities().capabilities, memory, clock, timing, trace: new Trace(clock, 1024), interrupts, router: NO_FUNCTIONS, iotlbEntries,
    });
    const frames = new FrameAllocator({ memory, ranges: [{ start: 32 * MIB, end: MEMORY_BYTES }] });
    this.buildTables(memory, frames);
  }

  /** Physical page that `page` has to translate to. */
  physicalOf(page: number): number {
    return page - FIRST_PAGE + GUEST_DATA_PAGE + (this.kind === 'first-level' ? 0 : GUEST_OFFSET);
  }

  private buildTables(memory: Ram, frames: FrameAllocator): void {
    const first = this.kind === 'second-level' ? 0 : this.firstLevel(memory, frames);
    const second = this.kind === 'first-level' ? 0 : this.secondLevel(memory, frames);
    const [root, contexts, directory, entries] = ['root', 'contexts', 'directory', 'entries'].map((owner) => frames.alloc(owner)) as [number, number, number, number];
    memory.store64(root, contexts | 1, 0);
    // a context entry with device TLB, PASIDs and page requests, PASID 0 for requests without one
    memory.store64(contexts + SOURCE * 32, directory | 0x1d, 0);
    memory.store64(directory, entries | 1, 0);
    for (const pasid of [0, PASID]) {
      const at = entries + pasid * 64;
      memory.store64(at, second | (PGTT[this.kind] << 6) | (2 << 2) | 1, 0);
      memory.store64(at + 8, DOMAIN, 0);
      memory.store64(at + 16, first, 0);
    }
    this.unit.write(REG.RTADDR, 8, root | (TTM_SCALABLE << 10), 0);
    this.unit.write(REG.GCMD, 4, GCMD_SRTP);
    this.unit.write(REG.GCMD, 4, GCMD_TE);
  }

  /** Four levels of 4 KiB leaves; guest-physical when nested, then the bytes stand where the second level leads. */
  private firstLevel(memory: Ram, frames: FrameAllocator): number {
    const nested = this.kind === 'nested';
    const guest = nested ? new Ram(32 * MIB) : memory;
    const tables = new PageTable({
      memory: guest, frames: nested ? new FrameAllocator({ memory: guest, ranges: [{ start: MIB, end: 4 * MIB }] }) : frames, format: X86_64, levels: 4, largestLeaf: 0,
    });
    tables.map(FIRST_PAGE, GUEST_DATA_PAGE * 4096, MOST_PAGES, RIGHTS | LEAF_USER);
    if (nested) {
      const bytes = new Uint8Array(3 * MIB);
      guest.read(MIB, bytes, 0, bytes.length);
      memory.write(MIB + GUEST_OFFSET * 4096, bytes, 0, bytes.length);
    }
    return tables.root;
  }

  private secondLevel(memory: Ram, frames: FrameAllocator): number {
    const tables = new PageTable({ memory, frames, format: VTD_SECOND_LEVEL, levels: 4, largestLeaf: 0 });
    if (this.kind === 'second-level') tables.map(FIRST_PAGE, (GUEST_DATA_PAGE + GUEST_OFFSET) * 4096, MOST_PAGES, RIGHTS);
    else tables.map(0, GUEST_OFFSET * 4096, GUEST_DATA_PAGE + MOST_PAGES, RIGHTS);
    return tables.root;
  }
}

/** A fixed sequence of requests, random over `pages` pages. */
export function requestsOver(pages: number): Float64Array {
  const random = new Random(pages);
  return Float64Array.from({ length: REQUESTS }, () => FIRST_PAGE + random.below(pages));
}

/** Reads through the unit; throws unless every page comes out where the tables say. Returns the share of hits. */
export function verify(world: TranslationWorld, requests: Float64Array): number {
  const { unit, pasid } = world;
  let hits = 0;
  // the first pass fills the caches
  for (let pass = 0; pass < 2; pass++) {
    hits = 0;
    for (const page of requests) {
      const status = unit.translate(SOURCE, pasid, 0, page, false);
      if (status !== DMA_DONE || unit.page !== world.physicalOf(page)) throw new Error(`page ${page.toString(16)} translates to ${unit.page.toString(16)} with status ${status}`);
      if (unit.walkAccesses === 0) hits++;
    }
  }
  return hits / requests.length;
}

export function translateAll({ unit, pasid }: TranslationWorld, requests: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < requests.length; i++) {
    unit.translate(SOURCE, pasid, 0, requests[i]!, false);
    sum += unit.page;
  }
  return sum;
}

const NAMES: Readonly<Record<TableKind, string>> = {
  'first-level': 'first level, 4 levels, PASID', 'second-level': 'second level, 4 levels', nested: 'nested, 4 × 4 levels, PASID',
};

/** Wanted: multiples of the fastest figure of the field's C models (design table; they are not run here). */
const WANTED: Readonly<Partial<Record<TableKind, number>>> = { 'first-level': 4 * 4.3e6, nested: 5 * 0.93e6 };
const HIT_WANTED = 1.5 * 28e6;

export function* translations(): Generator<Row> {
  for (const entries of [512, 0]) {
    const group = entries > 0 ? `translate, IOTLB of ${entries} entries` : 'translate, every cache off';
    for (const kind of ['first-level', 'second-level', 'nested'] as const) {
      for (const pages of [1, 64, MOST_PAGES]) {
        if (entries === 0 && pages === 1) continue;
        const world = new TranslationWorld(kind, entries);
        const requests = requestsOver(pages);
        const hits = verify(world, requests);
        let sink = 0;
        const measured = throughput({ units: requests.length, run: () => void (sink += translateAll(world, requests)) });
        if (sink === 0) throw new Error('nothing was translated');
        const wanted = pages === 1 ? HIT_WANTED : pages === MOST_PAGES ? WANTED[kind] : undefined;
        yield {
          group, name: `${NAMES[kind]}, ${pages === 1 ? 'one page' : `${pages.toLocaleString('en')} pages`}`, value: measured.value, unit: '/s', samples: measured.samples,
          ...(wanted === undefined || entries === 0 ? {} : { target: { atLeast: wanted } }), note: `${(hits * 100).toFixed(1)} % hits`,
        };
      }
    }
  }
}
