/** One boot of the prepared guest on a topology built here, and what is left of it: console, trace of our hardware, disk. */
import { createHash } from 'node:crypto';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect } from 'vitest';
import { factsOf, type GuestFact } from '../../harness/linux/guest-report.js';
import { runLinux, type LinuxGuestResult } from '../../harness/linux/linux-run.js';
import { findLinux, type PreparedLinux } from '../../harness/linux/prepared.js';
import { checkTopology } from '../../harness/topology/load.js';
import type { TopologyInput } from '../../harness/topology/schema.js';
import { Random } from '../../sim/random.js';
import type { Trace } from '../../sim/trace.js';

type External = NonNullable<NonNullable<TopologyInput['guests']>[number]['external']>;
type Device = External['devices'][number];

export interface Machine {
  /** Beside `model`. */
  readonly iommu?: Partial<External['iommu']>;
  readonly kernel?: External['kernel'];
  readonly disk?: Partial<Extract<Device, { model: 'nvme' }>>;
  readonly accelerator?: Partial<Extract<Device, { model: 'dsa' }>>;
  readonly accelerators?: number;
  readonly vcpus?: number;
  readonly inject?: External['inject'];
  readonly linux?: External['linux'];
  readonly timing?: TopologyInput['timing'];
}

/** One record of our hardware's trace, arguments as they are printed. */
export interface Row {
  readonly kind: string;
  readonly [argument: string]: string;
}

/** 2.29 MB of random bytes, and zeros up to the end of the disk. */
const CONTENT_BYTES = 2_290_000, DISK_BYTES = 4 * 2 ** 20;
/** Where the guest writes unless it is told otherwise. */
export const BLOCK = 7;

export class Boot {
  readonly result: LinuxGuestResult;
  readonly rows: readonly Row[];
  /** The disk before and after. */
  readonly before: Uint8Array;
  readonly after: Uint8Array;

  constructor(result: LinuxGuestResult, rows: readonly Row[], before: Uint8Array, after: Uint8Array) {
    this.result = result;
    this.rows = rows;
    this.before = before;
    this.after = after;
  }

  get shortcomings(): readonly string[] {
    return this.result.shortcomings;
  }

  /** Messages of the guest's kernel. */
  get log(): readonly string[] {
    return this.result.report.dmesg.map(({ text }) => text);
  }

  count(kind: string): number {
    return this.result.counters[kind] ?? 0;
  }

  facts(topic: string, ...words: readonly string[]): GuestFact[] {
    return factsOf(this.result.report, topic, ...words);
  }

  /** The values of the only fact of its kind. */
  fact(topic: string, ...words: readonly string[]): Readonly<Record<string, string>> {
    const found = this.facts(topic, ...words);
    expect(found.map(({ text }) => text), `${topic} ${words.join(' ')}`).toHaveLength(1);
    return found[0]!.values;
  }

  of(kind: string): Row[] {
    return this.rows.filter((row) => row.kind === kind);
  }

  /** How often each kind of descriptor was fetched: `IOTLB global: 1`; what has no granularity by its name alone. */
  get descriptors(): Record<string, number> {
    const counts: Record<string, number> = {};
    for (const row of this.of('vtd:descriptor')) {
      const name = descriptorName(row);
      counts[name] = (counts[name] ?? 0) + 1;
    }
    return counts;
  }

  /** Times that the interrupt with this name has occurred, as the guest's kernel counts. */
  interrupts(name: string): number {
    const line = this.facts('irq').find(({ values }) => values['name'] === name);
    return line === undefined ? 0 : Number(line.values['total']);
  }

  /** The guest has read what lies on the disk, and what it wrote lies there: in its place, and nothing beside it. */
  expectGoodDisk(): void {
    expect(this.facts('nvme').find(({ values }) => values['md5'] !== undefined && values['block'] === undefined)?.values['md5']).toBe(md5(this.before));
    const block = Buffer.from(`vfiosim block ${BLOCK}\n`.repeat(32)).subarray(0, 512);
    expect(this.fact('nvme', 'written')).toMatchObject({ block: String(BLOCK), md5: md5(block), direct: 'yes', cached: 'yes' });
    const expected = Uint8Array.from(this.before);
    expected.set(block, BLOCK * 512);
    expect(md5(this.after)).toBe(md5(expected));
  }
}

const GRANULARITIES: Readonly<Record<string, readonly string[]>> = {
  CC: ['', 'global', 'domain', 'device'], IOTLB: ['', 'global', 'domain', 'page'], 'P-IOTLB': ['', '', 'pasid', 'page'], 'PC-inv': ['domain', 'pasid', '', 'global'],
};

function descriptorName(row: Row): string {
  const granularity = GRANULARITIES[row['type']!]?.[(Number(row['q0_lo']) >>> 4) & 3];
  return granularity === undefined ? row['type']! : `${row['type']!} ${granularity}`;
}

export function md5(bytes: Uint8Array): string {
  return createHash('md5').update(bytes).digest('hex');
}

/** Boots the guest to its end. Errors of ours fail the test. */
export async function boot(machine: Machine): Promise<Boot> {
  const linux = preparedLinux();
  const directory = mkdtempSync(join(tmpdir(), 'vfiosim-linux-test-'));
  const sockets = join(directory, 'sockets');
  mkdirSync(sockets);
  try {
    const before = diskContent(1);
    writeFileSync(join(directory, 'disk.img'), before);
    const bugs: unknown[] = [];
    let trace: Trace | undefined;
    const { guests: [result] } = await runLinux(checkTopology(topologyOf(machine), directory), {
      directory: sockets, linux, traceRecords: 1 << 20, onBug: (error) => bugs.push(error), onStart: (guest) => { trace = guest.server.guest.trace; },
    });
    expect(bugs).toEqual([]);
    return new Boot(result!, rowsOf(trace!), before, new Uint8Array(readFileSync(join(directory, 'disk.img'))));
  } finally {
    rmSync(directory, { recursive: true });
  }
}

export function preparedLinux(): PreparedLinux {
  const found = findLinux();
  if ('missing' in found) throw new Error(found.missing.join('\n'));
  return found.linux;
}

function topologyOf({ iommu, kernel = {}, disk, accelerator, accelerators = 1, vcpus = 1, inject = [], linux = {}, timing = {} }: Machine): TopologyInput {
  const devices: External['devices'] = [
    { model: 'nvme', name: 'disk', bdf: '0000:00:03.0', image: 'disk.img', 'image-mode': 'write', ...disk },
    ...Array.from({ length: accelerators }, (_, i) => ({ model: 'dsa' as const, name: `dsa${i}`, bdf: `0000:00:0${4 + i}.0`, ...accelerator })),
  ];
  return { version: 1, timing, guests: [{ name: 'linux', vcpus, external: { iommu: { model: 'intel-vtd', ...iommu }, kernel, devices, inject, linux } }] };
}

function diskContent(seed: number): Uint8Array {
  const bytes = new Uint8Array(DISK_BYTES);
  const random = new Random(seed);
  for (let at = 0; at < CONTENT_BYTES; at++) bytes[at] = random.u32() & 0xff;
  return bytes;
}

function rowsOf(trace: Trace): Row[] {
  expect(trace.first, 'records that were dropped').toBe(0);
  return [...trace.records()].map((record) => ({ kind: record.kind.name, ...Object.fromEntries(trace.describe(record)) }));
}
