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
  /** Bit n is set when argument n is a string, which the hash knows by its text. */
  readonly strings: number;
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

export type TraceListener = (record: TraceRecord) => void;

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
  private listeners: readonly { readonly listener: TraceListener; readonly kinds: ReadonlySet<string> | undefined }[] = [];
  /** Who hears of each kind, by kind id; undefined where nobody listens, so that nothing is built for nobody. */
  private readonly heard: (readonly TraceListener[] | undefined)[] = [];
  /** Records made, by kind id. */
  private readonly counts: number[] = [];
  /** Where the next record goes in the ring. */
  private at = 0;
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
      strings: args.reduce((bits, [, k], i) => (k === 'str' ? bits | (1 << i) : bits), 0),
    };
    this.kinds.push(kind);
    this.counts.push(0);
    this.heard.push(this.listenersOf(kind));
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

  /**
   * Calls `listener` synchronously for every record of the named kinds, which may be declared later; for every record
   * without names. Checkers live here. What is returned ends it, also from inside the listener.
   */
  listen(listener: TraceListener, kinds?: Iterable<string>): () => void {
    const entry = { listener, kinds: kinds === undefined ? undefined : new Set(kinds) };
    this.listeners = [...this.listeners, entry];
    this.tellKinds();
    return () => {
      this.listeners = this.listeners.filter((other) => other !== entry);
      this.tellKinds();
    };
  }

  /** Records of a kind ever made. */
  countOf(kind: TraceKind): number {
    return this.counts[kind.id]!;
  }

  record(kind: TraceKind, correlation: number, a0 = 0, a1 = 0, a2 = 0, a3 = 0, a4 = 0, a5 = 0, a6 = 0, a7 = 0): void {
    const start = this.at;
    if (start >= this.ring.length) this.grow();
    const ring = this.ring;
    ring[start] = this.clock.now;
    ring[start + 1] = kind.id;
    ring[start + 2] = correlation;
    ring[start + 3] = a0;
    ring[start + 4] = a1;
    ring[start + 5] = a2;
    ring[start + 6] = a3;
    ring[start + 7] = a4;
    ring[start + 8] = a5;
    ring[start + 9] = a6;
    ring[start + 10] = a7;
    this.at = start + STRIDE === this.capacity * STRIDE ? 0 : start + STRIDE;
    this.count++;
    this.counts[kind.id]!++;
    if (kind.hashed) this.hashRecord(kind, start);
    const heard = this.heard[kind.id];
    if (heard !== undefined) {
      const record = this.view(this.count - 1, start);
      for (const listener of heard) listener(record);
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

  private tellKinds(): void {
    for (const kind of this.kinds) this.heard[kind.id] = this.listenersOf(kind);
  }

  private listenersOf(kind: TraceKind): readonly TraceListener[] | undefined {
    const listening = this.listeners.filter(({ kinds }) => kinds === undefined || kinds.has(kind.name));
    return listening.length === 0 ? undefined : listening.map(({ listener }) => listener);
  }

  private view(index: number, at: number): TraceRecord {
    const ring = this.ring;
    const kind = this.kinds[ring[at + 1]!]!;
    const args: number[] = [];
    for (let i = 0; i < kind.args.length; i++) args.push(ring[at + 3 + i]!);
    return { index, timeNs: ring[at]!, kind, correlation: ring[at + 2]!, args };
  }

  /** Mixes time, kind, correlation and arguments, in this order. */
  private hashRecord(kind: TraceKind, at: number): void {
    const { ring, word, halves, stringHashes } = this;
    const end = at + 3 + kind.kinds.length;
    // time, kind and correlation are no strings
    let strings = kind.strings << 3;
    let hashA = this.hashA, hashB = this.hashB;
    for (let i = at; i < end; i++) {
      let value = ring[i]!;
      if ((strings & 1) !== 0) value = stringHashes[value]!;
      strings >>= 1;
      let lo = value | 0, hi = 0;
      if (lo !== value) {
        word[0] = value;
        lo = halves[0]!;
        hi = halves[1]!;
      }
      hashA = Math.imul(hashA ^ lo, 0x85ebca6b) + hi | 0;
      hashA = (hashA << 13) | (hashA >>> 19);
      hashB = Math.imul(hashB ^ hi ^ (hashA >>> 7), 0xc2b2ae35) + lo | 0;
      hashB = (hashB << 15) | (hashB >>> 17);
    }
    this.hashA = hashA;
    this.hashB = hashB;
  }

  private grow(): void {
    const larger = new Float64Array(Math.min(this.ring.length * 2, this.capacity * STRIDE));
    larger.set(this.ring);
    this.ring = larger;
  }
}
