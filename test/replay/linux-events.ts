/**
 * What a driver did to a remapping unit, as comparable text: register accesses, descriptors and the function's
 * configuration writes, cut into phases. Addresses, domain ids, PASIDs, group indices, vectors and ring positions are
 * replaced by what they stand for; every other bit stays. Reads of FSTS that find nothing are left out: how often the
 * queue is polled depends on how fast the unit is; a repeated read of the same value counts once.
 */
import { REG } from '../../iommu/intel-vtd/spec/registers.js';
import { parseLinuxTrace, UNIT_DEVICE, type TraceLine } from '../../harness/replay/linux-trace.js';
import { textOf } from './linux-reports.js';

export const NVME = 0x18;
export const DSA = 0x20;

export type RawEvent =
  | { readonly kind: 'r' | 'w'; readonly offset: number; readonly size: number; readonly value: bigint }
  | { readonly kind: 'd'; readonly words: readonly bigint[] }
  | { readonly kind: 'cfg'; readonly register: string; readonly value: number }
  | { readonly kind: 'note'; readonly text: string };

export const PHASES = [
  'bring-up', 'DMA unmap', 'driver probe', 'bind', 'page requests', 'munmap', 'access after munmap', 'unbind', 'power-off',
] as const;
export type Phase = (typeof PHASES)[number];

/** What names stand for in one run. */
export interface Names {
  readonly processPasid: number;
  /** Domain ids of the functions' own DMA domains. */
  readonly domainIds: Readonly<Record<number, string>>;
  /** First page of the buffer that is unmapped; its first five pages have been written to, it has sixteen. */
  readonly bufferPage: bigint;
}

export type Phases = Readonly<Record<Phase, readonly RawEvent[]>>;

export interface Run {
  readonly phases: Phases;
  readonly names: Names;
}

/** Pages of the buffer, and how many of them the device touched. */
export const BUFFER_PAGES = 16n;
export const TOUCHED_PAGES = 5n;

export function emptyPhases(): Record<Phase, RawEvent[]> {
  return Object.fromEntries(PHASES.map((phase) => [phase, []])) as unknown as Record<Phase, RawEvent[]>;
}

// ---- a recorded run

const GCMD_TE = 0x8000_0000n;
/** The test program waits five seconds for what never completes, then closes the device. */
const GAP_NS = 1_000_000_000;

/** Reads a trace of the folder. @param explicitScope the unit served the two functions only, so that domain ids begin with them */
export function linuxRun(trace: string, explicitScope: boolean): Run {
  const { lines } = parseLinuxTrace(textOf(trace), trace);
  const domainIds: Record<number, string> = explicitScope ? { 2: 'nvme', 3: 'dsa' } : { 4: 'nvme', 5: 'dsa' };
  const submitted = lines.find((line) => line.device === 'dsa' && line.op === 'desc');
  const phases = new PhaseReader();
  for (const line of lines) phases.take(line);
  const cut = phases.phases;
  const broken = errorHandling(cut['DMA unmap']);
  cut['DMA unmap'] = broken.length > 0 ? broken : firstSubmission(cut['DMA unmap']);
  if (submitted === undefined) cut.bind.push({ kind: 'note', text: 'refused' });
  cut['bring-up'] = withoutForeign(cut['bring-up'], domainIds);
  return { phases: cut, names: { processPasid: 2, domainIds, bufferPage: submitted === undefined ? 0n : submitted.big('dst') >> 12n } };
}

class PhaseReader {
  readonly phases = emptyPhases();
  private phase: Phase = 'bring-up';
  private submissions = 0;
  private completions = 0;
  private abortedAtNs: number | undefined;

  take(line: TraceLine): void {
    if (line.device === 'dsa') this.deviceLine(line);
    else if (line.op === 'dma_abort') {
      this.completions++;
      this.abortedAtNs = line.timeNs;
    }
    if (this.abortedAtNs !== undefined && this.submissions === 4 && line.timeNs > this.abortedAtNs + GAP_NS && this.phase === 'access after munmap') this.phase = 'unbind';
    if (this.submissions === 3 && this.completions === 3 && this.phase === 'page requests') this.phase = 'munmap';
    if (line.device === UNIT_DEVICE) this.unitLine(line);
  }

  private deviceLine(line: TraceLine): void {
    if (line.op === 'cfgw') this.push({ kind: 'cfg', register: line.text('reg').replace(/\+.$/, (suffix) => PCI_REGISTERS[suffix] ?? suffix), value: line.integer('val') });
    else if (line.op === 'desc_done') this.completions++;
    else if ((line.op === 'r' || line.op === 'w') && this.phase === 'DMA unmap') this.phase = 'driver probe';
    else if (line.op === 'command' && line.text('cmd') === 'ENABLE_WQ' && this.phase === 'driver probe') this.phase = 'bind';
    else if (line.op === 'submit') {
      if (this.submissions === 0) this.push({ kind: 'note', text: 'bound' });
      this.submissions++;
      if (this.submissions === 1) this.phase = 'page requests';
      if (this.submissions === 4) this.phase = 'access after munmap';
    }
  }

  private unitLine(line: TraceLine): void {
    if (line.op === 'desc' || (line.op === 'inject' && line.text('what') === 'ITE')) return this.push({ kind: 'd', words: line.words('raw') });
    if (line.op !== 'r' && line.op !== 'w') return;
    const offset = line.integer('off'), value = line.big('val');
    if (line.op === 'w' && offset === REG.GCMD && (value & GCMD_TE) === 0n && this.phase !== 'bring-up') this.phase = 'power-off';
    this.push({ kind: line.op, offset, size: line.integer('size'), value });
    if (offset === REG.GSTS && (value & GCMD_TE) !== 0n && this.phase === 'bring-up') this.phase = 'DMA unmap';
  }

  private push(event: RawEvent): void {
    this.phases[this.phase].push(event);
  }
}

/** Suffixes of the recorder's names of registers in a capability. */
const PCI_REGISTERS: Readonly<Record<string, string>> = { '+6': '', '+4': '_CTRL', '+c': '_ALLOC_REQ' };

/** Tail writes with the descriptors that they hand over; other events stand alone. */
function submissionsOf(events: readonly RawEvent[]): RawEvent[][] {
  const groups: RawEvent[][] = [];
  for (const event of events) {
    if (event.kind === 'd' && groups.length > 0) groups.at(-1)!.push(event);
    else groups.push([event]);
  }
  return groups;
}

function firstSubmission(events: readonly RawEvent[]): RawEvent[] {
  return submissionsOf(events).find(([first]) => first?.kind === 'w' && first.offset === REG.IQT) ?? [];
}

/** Leaves out what was done for functions other than the two, which our machine does not have (caching mode tells). */
function withoutForeign(events: readonly RawEvent[], domainIds: Readonly<Record<number, string>>): RawEvent[] {
  let foreignContext = false;
  return submissionsOf(events).filter((group) => {
    const descriptor = group.find((event) => event.kind === 'd');
    if (descriptor === undefined) return true;
    const q0 = descriptor.words[0]!;
    const type = Number(q0 & 0xfn), granularity = Number((q0 >> 4n) & 3n), domainId = Number((q0 >> 16n) & 0xffffn);
    if (type === 1 && granularity === 3) {
      foreignContext = ![NVME, DSA].includes(Number((q0 >> 32n) & 0xffffn));
      return !foreignContext;
    }
    if (type === 2 && domainId === 0 && granularity === 2) return !foreignContext;
    if ((type === 7 && granularity === 1) || type === 6) return domainIds[domainId] !== undefined;
    return true;
  }).flat();
}

// ---- text

const REGISTER_NAMES = new Map<number, string>([
  ...Object.entries(REG).map(([name, offset]): [number, string] => [offset, name]),
  [0x220, 'FRCD0.address'], [0x228, 'FRCD0.source'], [0x22c, 'FRCD0.reason'],
]);
const FRCD_ADDRESS = 0x220, FRCD_REASON = 0x22c;
/** Registers that hold the address of a table. */
const TABLE_REGISTERS: readonly number[] = [REG.IQA, REG.RTADDR, REG.PQA];

/** Descriptors that close every submission, and need no mention. */
const PLAIN_WAIT = 'WAIT 0x200000025 0x0';

/** The phase as lines of text; a write of the tail and what it hands over are one line. */
export function describe(events: readonly RawEvent[], names: Names): string[] {
  const lines: { text: string; readonly descriptors: string[] }[] = [];
  let submission: (typeof lines)[number] | undefined;
  for (const [i, event] of events.entries()) {
    if (event.kind === 'r' && event.offset === REG.FSTS && event.value === 0n) continue;
    if (event.kind === 'd') {
      const text = describeDescriptor(event.words, names);
      if (text !== PLAIN_WAIT) submission?.descriptors.push(text);
      continue;
    }
    const line = { text: describeEvent(event, names), descriptors: [] };
    if (event.kind === 'w' && event.offset === REG.IQT && events[i + 1]?.kind === 'd') {
      line.text = 'submit';
      submission = line;
    }
    if (line.text.startsWith('r FSTS') && lines.at(-1)?.text === line.text) continue;
    lines.push(line);
  }
  return lines.map(({ text, descriptors }) => (text === 'submit' ? `submit ${descriptors.join(', ')}` : text));
}

function describeEvent(event: Exclude<RawEvent, { kind: 'd' }>, names: Names): string {
  switch (event.kind) {
    case 'note': return event.text;
    case 'cfg': return `config ${event.register} 0x${event.value.toString(16)}`;
    case 'r':
    case 'w': return `${event.kind} ${REGISTER_NAMES.get(event.offset) ?? `0x${event.offset.toString(16)}`} ${event.size} ${describeValue(event.offset, event.value, names)}`;
  }
}

/** From the first read of FSTS that finds a queue error to the write that clears it. */
export function errorHandling(events: readonly RawEvent[]): RawEvent[] {
  const start = events.findIndex((event) => event.kind === 'r' && event.offset === REG.FSTS && event.value !== 0n);
  const end = events.findIndex((event, i) => i > start && event.kind === 'w' && event.offset === REG.FSTS);
  return start < 0 || end < 0 ? [] : events.slice(start, end + 1);
}

function describeValue(offset: number, value: bigint, names: Names): string {
  if (offset === REG.CAP || offset === REG.ECAP) return 'as recorded';
  if (offset === REG.IQH || offset === REG.IQT) return ringPlace(value);
  if (offset === REG.IQERCD) return value >> 32n === 0n ? 'reason' : `device=${value >> 32n === BigInt(DSA) ? 'dsa' : 'other'}`;
  if (offset === REG.FEDATA || offset === REG.PEDATA) return 'vector';
  if (TABLE_REGISTERS.includes(offset)) return `table|0x${(value & 0xfffn).toString(16)}`;
  if (offset === FRCD_ADDRESS) return value >> 12n === names.bufferPage ? 'buffer' : `0x${value.toString(16)}`;
  if (offset === FRCD_REASON) {
    const pasid = Number((value >> 8n) & 0xfffffn);
    return `0x${(value & ~0xfffff00n).toString(16)}${pasid === 0 ? '' : ` PASID ${pasidName(pasid, names)}`}`;
  }
  return `0x${value.toString(16)}`;
}

/** A place in the ring depends on all that was submitted before; only the start is the same. */
function ringPlace(value: bigint): string {
  return value === 0n ? '0x0' : 'place';
}

const TYPES = ['?', 'CC', 'IOTLB', 'DEVTLB', 'IEC', 'WAIT', 'P_IOTLB', 'PASIDC', 'P_DEVTLB', 'PGRP'] as const;

function field(word: bigint, hi: number, lo: number): number {
  return Number((word >> BigInt(lo)) & ((1n << BigInt(hi - lo + 1)) - 1n));
}

function mask(hi: number, lo: number): bigint {
  return ((1n << BigInt(hi - lo + 1)) - 1n) << BigInt(lo);
}

/** Type, the bits that are not named, and the names: `P_IOTLB 0x36 0x0 domain=sva pasid=process pages=…`. */
function describeDescriptor(words: readonly bigint[], names: Names): string {
  let q0 = words[0]!, q1 = words[1]!;
  const type = Number(q0 & 0xfn), granularity = field(q0, 5, 4);
  const parts: string[] = [];
  const domain = (): void => {
    const id = field(q0, 31, 16);
    q0 &= ~mask(31, 16);
    parts.push(`domain=${id === 0 ? '0' : id === 1 ? 'sva' : names.domainIds[id] ?? 'other'}`);
  };
  const pasid = (): void => {
    const value = field(q0, 51, 32);
    q0 &= ~mask(51, 32);
    parts.push(`pasid=${pasidName(value, names)}`);
  };
  const source = (hi: number, lo: number): void => {
    const value = field(q0, hi, lo);
    q0 &= ~mask(hi, lo);
    parts.push(`device=${value === NVME ? 'nvme' : value === DSA ? 'dsa' : value.toString(16)}`);
  };
  const pages = (first: bigint, order: number): void => {
    parts.push(`pages=${rangeName(first, order, names)}`);
  };
  switch (TYPES[type]) {
    case 'CC':
      if (granularity !== 1) domain();
      if (granularity === 3) source(47, 32);
      break;
    case 'IOTLB':
    case 'P_IOTLB':
      if (granularity !== 1) domain();
      if (TYPES[type] === 'P_IOTLB') pasid();
      if (granularity === 3) {
        pages(q1 >> 12n, field(q1, 5, 0));
        q1 &= ~(mask(63, 12) | mask(5, 0));
      }
      break;
    case 'PASIDC':
      if (granularity !== 3) domain();
      if (granularity === 1) pasid();
      break;
    case 'DEVTLB':
    case 'P_DEVTLB': {
      // the size bit stands elsewhere with PASID
      const withPasid = TYPES[type] === 'P_DEVTLB', sizeBit = withPasid ? 0x800n : 1n;
      if (withPasid) source(31, 16);
      else source(47, 32);
      if (withPasid) pasid();
      const page = q1 >> 12n;
      let order = 0;
      if ((q1 & sizeBit) !== 0n) {
        order = 1;
        while (order < 52 && ((page >> BigInt(order - 1)) & 1n) === 1n) order++;
      }
      pages(page & ~((1n << BigInt(order)) - 1n), order);
      q1 &= ~(mask(63, 12) | sizeBit);
      break;
    }
    case 'PGRP':
      source(31, 16);
      pasid();
      q1 &= ~mask(11, 3);
      break;
    case 'WAIT':
      q1 = 0n;
      break;
    default:
      break;
  }
  return [TYPES[type] ?? '?', `0x${q0.toString(16)}`, `0x${q1.toString(16)}`, ...parts].join(' ');
}

function pasidName(pasid: number, names: Names): string {
  return pasid === names.processPasid ? 'process' : pasid === 0 ? 'rid' : pasid === 1 ? 'kernel' : String(pasid);
}

/** Smallest aligned power of two that covers a range. */
function cover(first: bigint, count: bigint): { first: bigint; order: number } {
  let order = 0;
  while ((first >> BigInt(order)) !== ((first + count - 1n) >> BigInt(order))) order++;
  return { first: (first >> BigInt(order)) << BigInt(order), order };
}

function rangeName(first: bigint, order: number, names: Names): string {
  if (order >= 40) return 'all';
  for (const [name, count] of [['touched', TOUCHED_PAGES], ['buffer', BUFFER_PAGES]] as const) {
    const covering = cover(names.bufferPage, count);
    if (covering.first === first && covering.order === order) return name;
  }
  return order === 0 ? 'one' : `2^${order}`;
}

// ---- comparison

/** A place where the two sequences differ. */
export interface Hunk {
  readonly linux: readonly string[];
  readonly ours: readonly string[];
}

/** Differences by a longest common subsequence. */
export function differ(linux: readonly string[], ours: readonly string[]): Hunk[] {
  const length = Array.from({ length: linux.length + 1 }, () => Array.from({ length: ours.length + 1 }, () => 0));
  for (let i = linux.length - 1; i >= 0; i--) {
    for (let j = ours.length - 1; j >= 0; j--) {
      length[i]![j] = linux[i] === ours[j] ? length[i + 1]![j + 1]! + 1 : Math.max(length[i + 1]![j]!, length[i]![j + 1]!);
    }
  }
  const hunks: Hunk[] = [];
  let i = 0, j = 0;
  while (i < linux.length || j < ours.length) {
    if (i < linux.length && j < ours.length && linux[i] === ours[j]) {
      i++;
      j++;
      continue;
    }
    const left: string[] = [], right: string[] = [];
    while (i < linux.length || j < ours.length) {
      if (i < linux.length && j < ours.length && linux[i] === ours[j]) break;
      if (j >= ours.length || (i < linux.length && length[i + 1]![j]! >= length[i]![j + 1]!)) left.push(linux[i++]!);
      else right.push(ours[j++]!);
    }
    hunks.push({ linux: left, ours: right });
  }
  return hunks;
}
