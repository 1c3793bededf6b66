/**
 * Register traces of a real Linux that drives a remapping unit which lives in another process: one JSON object a line, with the time in
 * seconds, the device, and what happened. Register accesses, descriptors as the unit fetched them, the table words
 * it met, page requests, responses, faults, messages, and the DMA of other devices. This file reads the lines that
 * matter for VT-d and refuses what is no such trace; docs/linux-differences.md tells what the traces hold.
 */
import { clip, InvalidInput, type Problem } from '../topology/problems.js';

/** How a field of a line is written. */
type FieldKind = 'hex' | 'integer' | 'flag' | 'text' | 'words' | 'rest';

/** Fields that a line of each kind must have. `hex` is a string of up to 64 bits, `words` an array of them. */
const UNIT_FIELDS: Readonly<Record<string, Readonly<Record<string, FieldKind>>>> = {
  caps: { cap: 'hex', ecap: 'hex' },
  r: { off: 'hex', size: 'integer', val: 'hex' },
  w: { off: 'hex', size: 'integer', val: 'hex' },
  desc: { type: 'text', raw: 'words' },
  walk: { rid: 'hex', tables: 'rest' },
  page_request: { rid: 'hex', pasid: 'integer', addr: 'hex', write: 'flag', prgi: 'integer', pqt: 'hex' },
  page_response: { prgi: 'integer', resp: 'integer' },
  fault: { rid: 'hex', addr: 'hex', write: 'flag', reason: 'hex' },
  msi: { ctl: 'text', addr: 'hex', data: 'hex' },
  inject: { what: 'text', raw: 'words' },
  TE: { root: 'hex' },
  DMA_MAP: { iova: 'hex', size: 'hex', flags: 'integer' },
};
const DEVICE_FIELDS: Readonly<Record<string, Readonly<Record<string, FieldKind>>>> = {
  dma_r: { iova: 'hex', gpa: 'hex', n: 'integer' },
  dma_w: { iova: 'hex', gpa: 'hex', n: 'integer' },
  cfgw: { reg: 'text', val: 'hex' },
};

/** The unit's name in the traces. */
export const UNIT_DEVICE = 'iommu';

export class TraceLine {
  /** From 1. */
  readonly number: number;
  readonly timeNs: number;
  /** `iommu`, or the device; empty where the recorder named none. */
  readonly device: string;
  readonly op: string;
  private readonly fields: Readonly<Record<string, unknown>>;

  constructor(number: number, fields: Readonly<Record<string, unknown>>) {
    this.number = number;
    this.timeNs = Math.round((fields['t'] as number) * 1e9);
    this.device = (fields['dev'] as string | undefined) ?? '';
    this.op = fields['op'] as string;
    this.fields = fields;
  }

  has(field: string): boolean {
    return this.fields[field] !== undefined && this.fields[field] !== null;
  }

  text(field: string): string {
    return this.fields[field] as string;
  }

  flag(field: string): boolean {
    return this.fields[field] === true;
  }

  /** A number below 2^53, written as one or as `0x…`. */
  integer(field: string): number {
    return Number(this.fields[field] as number | string);
  }

  big(field: string): bigint {
    return BigInt(this.fields[field] as number | string);
  }

  /** 64-bit words of `raw`; a queue of 128-bit descriptors has two of them. */
  words(field: string): bigint[] {
    return (this.fields[field] as string[]).map((word) => BigInt(word));
  }

  list(field: string): readonly string[] {
    return this.fields[field] as string[];
  }
}

export interface LinuxTrace {
  readonly lines: readonly TraceLine[];
  readonly cap: bigint;
  readonly ecap: bigint;
  /** VER as the kernel read it; undefined when it never did. */
  readonly version: number | undefined;
  /** End of the writable memory that the recorder was given. */
  readonly memoryEnd: number;
}

const VER_OFFSET = 0;
/** Without DMA_MAP lines: what every recording so far had. */
const DEFAULT_MEMORY_END = 0x2000_0000;

/** Reads a trace. Throws InvalidInput with every line that cannot be used. */
export function parseLinuxTrace(text: string, name: string): LinuxTrace {
  const problems: Problem[] = [];
  const lines: TraceLine[] = [];
  text.split('\n').forEach((source, index) => {
    if (source.trim() === '') return;
    const line = parseLine(source, index + 1, (message) => problems.push({ file: name, line: index + 1, message }));
    if (line !== undefined) lines.push(line);
  });
  const unit = lines.filter((line) => line.device === UNIT_DEVICE);
  const caps = unit.find(({ op }) => op === 'caps');
  if (problems.length === 0 && caps === undefined) {
    problems.push({ file: name, message: 'no line gives CAP and ECAP ("op": "caps" of "dev": "iommu"): this is no trace of a VT-d unit' });
  }
  if (problems.length > 0) throw new InvalidInput(problems);
  const version = unit.find((line) => line.op === 'r' && line.integer('off') === VER_OFFSET);
  const ends = unit.filter((line) => line.op === 'DMA_MAP' && (line.integer('flags') & 2) !== 0).map((line) => line.integer('iova') + line.integer('size'));
  return {
    lines, cap: caps!.big('cap'), ecap: caps!.big('ecap'), version: version?.integer('val'),
    memoryEnd: ends.length === 0 ? DEFAULT_MEMORY_END : Math.max(...ends),
  };
}

function parseLine(source: string, number: number, report: (message: string) => void): TraceLine | undefined {
  let fields: unknown;
  try {
    fields = JSON.parse(source);
  } catch {
    report(`"${clip(source)}" is not a JSON object`);
    return undefined;
  }
  if (typeof fields !== 'object' || fields === null || Array.isArray(fields)) {
    report(`"${clip(source)}" is not a JSON object`);
    return undefined;
  }
  const record = fields as Record<string, unknown>;
  const { t, op, dev } = record;
  if (typeof t !== 'number' || !(t >= 0) || typeof op !== 'string' || (dev !== undefined && typeof dev !== 'string')) {
    report('a line needs "t" (seconds), "op" (text), and "dev" (text) unless nobody is meant');
    return undefined;
  }
  const required = (dev === UNIT_DEVICE ? UNIT_FIELDS : DEVICE_FIELDS)[op] ?? {};
  const wrong = Object.entries(required).filter(([field, kind]) => !isKind(record[field], kind));
  for (const [field, kind] of wrong) report(`${op}: "${field}" must be ${KIND_TEXT[kind]}`);
  return wrong.length === 0 ? new TraceLine(number, record) : undefined;
}

const HEX = /^0x[0-9a-fA-F]{1,16}$/;

const KIND_TEXT: Readonly<Record<FieldKind, string>> = {
  hex: 'a string such as "0x20" of at most 64 bits', integer: 'a whole number', flag: 'true or false', text: 'text', words: 'two or four strings such as "0x20"', rest: 'a list of texts',
};

function isKind(value: unknown, kind: FieldKind): boolean {
  switch (kind) {
    case 'hex': return typeof value === 'string' && HEX.test(value);
    case 'integer': return Number.isSafeInteger(value);
    case 'flag': return typeof value === 'boolean';
    case 'text': return typeof value === 'string';
    case 'words': return Array.isArray(value) && (value.length === 2 || value.length === 4) && value.every((word) => isKind(word, 'hex'));
    case 'rest': return Array.isArray(value) && value.every((word) => typeof word === 'string');
  }
}
