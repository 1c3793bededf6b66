/**
 * The story of a run: typed records of numbers in a binary ring, each with time, kind, correlation id and up to
 * eight arguments. Strings are interned. The hash covers every hashed record ever made, also those the ring has
 * dropped; it does not depend on the ring's size or on who listens.
 */
import { assert } from './assert.js';
import { hex, hexPage } from './address.js';
import type { Clock } from './clock.js';

/** How an argument is printed: decimal, 0x…, a page number as its address, an interned string, a flag. */
export type ArgumentKind = 'dec' | 'hex' | 'page' | 'str' | 'bool';

export interface TraceKind<A extends string = string> {
  readonly id: number;
  /** ftrace-like, `iommu:dev_fault`. */
  readonly name: string;
  readonly args: readonly A[];
  readonly kinds: readonly ArgumentKind[];
  /** Records of kinds that are only watched by checkers or are too many to tell a story stay out of the hash. */
  readonly hashed: boolean;
}

/** A record as a listener or exporter sees it; valid during the call only. */
export interface TraceRecord {
  readonly index: number;
  readonly timeNs: number;
  readonly kind: TraceKind;
  /** 0: none. Records of one fault, one bind, one descriptor share their id. */
  readonly correlation: number;
  readonly args: readonly number[];
}

const MAX_ARGS = 8;
const STRIDE = 3 + MAX_ARGS;

const COLUMNS = 512;

/**
 * Correlation ids under what both ends of a byte format know (a requester id and a group index below 512), so that
 * records on either side of registers and memory tell one story. Nothing but the trace may depend on them.
 */
export class SharedIds {
  private readonly rows: (Float64Array | undefined)[] = [];
  private readonly next: () => number;

  constructor(next: () => number) {
    this.next = next;
  }

  /** The id at (row, column), a new one when there is none. */
  open(row: number, column: number): number {
    const ids = this.rows[row] ?? this.addRow(row);
    return ids[column]! || (ids[column] = this.next());
  }

  /** The id at (row, column), 0 when there is none. */
  find(row: number, column: number): number {
    return this.rows[row]?.[column] ?? 0;
  }

  /** Forgets the id and returns it. */
  close(row: number, column: number): number {
    const id = this.find(row, column);
    if (id !== 0) this.rows[row]![column] = 0;
    return id;
  }

  private addRow(row: number): Float64Array {
    while (this.rows.length <= row) this.rows.push(undefined);
    return (this.rows[row] = new Float64Array(COLUMNS));
  }
}

export class Trace {
  readonly kinds: TraceKind[] = [];
  readonly strings: string[] = [''];
  private readonly stringIds = new Map<string, number>([['', 0]]);
  private readonly stringHashes: number[] = [0];
  /** Ids that both ends of a byte format can find again. */
  readonly shared = new SharedIds(() => this.nextCorrelation());
  private readonly clock: Clock;
  private readonly capacity: number;
  private ring: Float64Array;
  /** Records ever made (that the ring keeps). */
  count = 0;
  private hashA = 0x811c9dc5 | 0;
  private hashB = 0x9747b28c | 0;
  private correlations = 0;
  private readonly listeners: ((record: TraceRecord) => void)[] = [];
  private readonly word = new Float64Array(1);
  private readonly halves = new Int32Array(this.word.buffer);

  /** @param capacity records kept; the ring grows up to it */
  constructor(clock: Clock, capacity = 1 << 20) {
    this.clock = clock;
    this.capacity = capacity;
    this.ring = new Float64Array(Math.min(capacity, 1024) * STRIDE);
  }

  /** Declares a kind of record; declaring the same name again returns the same kind. */
  define<const A extends readonly [name: string, kind: ArgumentKind][]>(
    name: string,
    args: A,
    options: { hashed?: boolean } = {},
  ): TraceKind<A[number][0]> {
    const existing = this.kinds.find((kind) => kind.name === name);
    if (existing !== undefined) return existing as TraceKind<A[number][0]>;
    assert(args.length <= MAX_ARGS, `trace kind ${name} has more than ${MAX_ARGS} arguments`);
    const kind: TraceKind<A[number][0]> = {
      id: this.kinds.length, name, args: args.map(([argument]) => argument), kinds: args.map(([, k]) => k), hashed: options.hashed ?? true,
    };
    this.kinds.push(kind);
    return kind;
  }

  /** Number that stands for `text` in a `str` argument. */
  intern(text: string): number {
    let id = this.stringIds.get(text);
    if (id === undefined) {
      id = this.strings.length;
      this.strings.push(text);
      this.stringIds.set(text, id);
      let hash = 0x811c9dc5;
      for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193);
      this.stringHashes.push(hash | 0);
    }
    return id;
  }

  nextCorrelation(): number {
    return ++this.correlations;
  }


  /** Called synchronously for every record; checkers live here. */
  listen(listener: (record: TraceRecord) => void): () => void {
    this.listeners.push(listener);
    return () => {
      const i = this.listeners.indexOf(listener);
      if (i >= 0) this.listeners.splice(i, 1);
    };
  }

  record(kind: TraceKind, correlation: number, a0 = 0, a1 = 0, a2 = 0, a3 = 0, a4 = 0, a5 = 0, a6 = 0, a7 = 0): void {
    const slot = this.count % this.capacity;
    let at = slot * STRIDE;
    if (at >= this.ring.length) this.grow();
    const ring = this.ring;
    const start = at;
    ring[at++] = this.clock.now;
    ring[at++] = kind.id;
    ring[at++] = correlation;
    ring[at++] = a0;
    ring[at++] = a1;
    ring[at++] = a2;
    ring[at++] = a3;
    ring[at++] = a4;
    ring[at++] = a5;
    ring[at++] = a6;
    ring[at] = a7;
    this.count++;
    if (kind.hashed) this.hashRecord(kind, start);
    if (this.listeners.length > 0) {
      const record = this.view(this.count - 1, start);
      for (const listener of this.listeners) listener(record);
    }
  }

  /** 64 bits as 16 hex digits. */
  get hash(): string {
    return (this.hashA >>> 0).toString(16).padStart(8, '0') + (this.hashB >>> 0).toString(16).padStart(8, '0');
  }

  /** Index of the oldest record still in the ring. */
  get first(): number {
    return Math.max(0, this.count - this.capacity);
  }

  /** Records still in the ring, oldest first. */
  *records(from = this.first): Generator<TraceRecord> {
    for (let index = Math.max(from, this.first); index < this.count; index++) {
      yield this.view(index, (index % this.capacity) * STRIDE);
    }
  }

  /** Arguments of a record by name, printed. */
  describe(record: TraceRecord): [name: string, text: string][] {
    return record.kind.args.map((name, i) => [name, this.text(record.kind.kinds[i]!, record.args[i]!)]);
  }

  text(kind: ArgumentKind, value: number): string {
    switch (kind) {
      case 'dec': return String(value);
      case 'hex': return hex(value);
      case 'page': return hexPage(value);
      case 'str': return this.strings[value] ?? '?';
      case 'bool': return value === 0 ? 'no' : 'yes';
    }
  }

  private view(index: number, at: number): TraceRecord {
    const ring = this.ring;
    const kind = this.kinds[ring[at + 1]!]!;
    return {
      index, timeNs: ring[at]!, kind, correlation: ring[at + 2]!,
      args: Array.from(ring.subarray(at + 3, at + 3 + kind.args.length)),
    };
  }

  private hashRecord(kind: TraceKind, at: number): void {
    this.mix(this.ring[at]!);
    this.mix(kind.id);
    this.mix(this.ring[at + 2]!);
    const kinds = kind.kinds;
    for (let i = 0; i < kinds.length; i++) {
      const value = this.ring[at + 3 + i]!;
      this.mix(kinds[i] === 'str' ? this.stringHashes[value]! : value);
    }
  }

  private mix(value: number): void {
    let lo: number, hi: number;
    const small = value | 0;
    if (small === value) {
      lo = small;
      hi = 0;
    } else {
      this.word[0] = value;
      lo = this.halves[0]!;
      hi = this.halves[1]!;
    }
    this.hashA = Math.imul(this.hashA ^ lo, 0x85ebca6b) + hi | 0;
    this.hashA = (this.hashA << 13) | (this.hashA >>> 19);
    this.hashB = Math.imul(this.hashB ^ hi ^ (this.hashA >>> 7), 0xc2b2ae35) + lo | 0;
    this.hashB = (this.hashB << 15) | (this.hashB >>> 17);
  }

  private grow(): void {
    const larger = new Float64Array(Math.min(this.ring.length * 2, this.capacity * STRIDE));
    larger.set(this.ring);
    this.ring = larger;
  }
}
