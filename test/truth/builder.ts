/**
 * Random VT-d tables in a Ram, for the differential test: devices in legacy or scalable mode, PASIDs of every translation
 * type, second-level tables of three to five levels, first-level tables of four and five, nested ones, leaves of every
 * size, rights, accessed and dirty bits at random. Most of what is built is sound; mistakes are made one at a time by
 * `spoil`, on the way of a request, and taken back by `restore`. Words are written as literals: no layout of the product
 * is used.
 */
import type { Random } from '../../sim/random.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import { Ram } from '../../sim/memory.js';
import type { Hardware, Request, RequestKind } from './walker.js';

const bits = (...numbers: number[]): bigint => numbers.reduce((word, n) => word | (1n << BigInt(n)), 0n);

/** CAP: ND 2:0, SAGAW 12:8 (bit 9: 39, 10: 48, 11: 57), MGAW 21:16, SSLPS 34 and 35, FS1GP 56, FS5LP 60. */
const cap = (domains: bigint, mgaw: bigint, ...features: number[]): bigint => domains | ((mgaw - 1n) << 16n) | bits(...features);
/**
 * ECAP: C 0, QI 1, DT 2, PT 6, SC 7, NEST 26, PRS 29, ERS 30, SRS 31, NWFS 33, EAFS 34, PSS 39:35, PASID 40, SMTS 43, SSADS 45,
 * SSTS 46, FSTS 47, SMPWC 48, RPS 49, ADMS 52, RPRIVS 53.
 */
const ecap = (pss: bigint, ...features: number[]): bigint => (pss << 35n) | bits(0, 1, ...features);

/** What the worlds run on, most of them on the first. */
export const HARDWARE: readonly Hardware[] = [
  { cap: cap(6n, 57n, 9, 10, 11, 34, 35, 56, 60), ecap: ecap(19n, 2, 6, 7, 26, 29, 30, 31, 33, 34, 40, 43, 45, 46, 47, 48, 49, 52, 53), hostAddressWidth: 46 },
  // second-level addresses narrower than their tables; everything else there
  { cap: cap(6n, 44n, 9, 10, 34, 35, 56), ecap: ecap(19n, 2, 6, 7, 26, 29, 30, 31, 33, 40, 43, 45, 46, 47, 48, 49), hostAddressWidth: 52 },
  // few domains, narrow PASIDs and host, no 1 GiB pages, no execute or privileged requests, no RID_PASID, no NW flag
  { cap: cap(2n, 48n, 9, 10, 34), ecap: ecap(13n, 2, 6, 26, 29, 40, 43, 46, 47), hostAddressWidth: 39 },
  // first level only, no device TLB
  { cap: cap(6n, 48n, 10, 56, 60), ecap: ecap(19n, 7, 30, 31, 40, 43, 47, 48, 49), hostAddressWidth: 46 },
  // before scalable mode
  { cap: cap(4n, 39n, 9, 34, 35), ecap: ecap(0n, 2, 6), hostAddressWidth: 39 },
];

/** Low memory, and some above 4 GiB so that high halves of pointers count. */
const LOW_START = 0x10_0000, LOW_END = 0x80_0000;
const HIGH_START = 0x1_0000_0000, HIGH_END = 0x1_0040_0000;

/** RAM that notes what is stored and what is asked for outside of it. */
export class WatchedMemory implements PhysicalMemory {
  readonly ram: Ram;
  /** Words that changed since `forget`: address, then the halves before. */
  readonly log: { readonly address: number; readonly lo: number; readonly hi: number }[] = [];
  /** 64-bit loads: entries and descriptors that were read. */
  loads = 0;
  /** Accesses to what is not memory; all of them were answered so. */
  absent = 0;
  /** Address of a word whose compare-and-exchange never succeeds; -1: none. */
  stubborn = -1;

  constructor(ram: Ram) {
    this.ram = ram;
  }

  get generation(): number {
    return this.ram.generation;
  }

  get lo(): number {
    return this.ram.lo;
  }

  get hi(): number {
    return this.ram.hi;
  }

  has(address: number, length: number): boolean {
    return this.ram.has(address, length);
  }

  load64(address: number): boolean {
    check(address, 8);
    this.loads++;
    return this.answer(this.ram.load64(address));
  }

  store64(address: number, lo: number, hi: number): boolean {
    check(address, 8);
    this.note(address);
    return this.answer(this.ram.store64(address, lo, hi));
  }

  compareExchange64(address: number, expectLo: number, expectHi: number, lo: number, hi: number): boolean {
    check(address, 8);
    if (address === this.stubborn) return false;
    this.note(address);
    return this.ram.compareExchange64(address, expectLo, expectHi, lo, hi);
  }

  load(address: number, size: 1 | 2 | 4): number {
    check(address, size);
    const value = this.ram.load(address, size);
    this.answer(value >= 0);
    return value;
  }

  store(address: number, size: 1 | 2 | 4, value: number): boolean {
    check(address, size);
    this.note(address - (address % 8));
    return this.answer(this.ram.store(address, size, value));
  }

  read(address: number, target: Uint8Array, targetOffset: number, length: number): boolean {
    check(address, 1);
    return this.answer(this.ram.read(address, target, targetOffset, length));
  }

  write(address: number, source: Uint8Array, sourceOffset: number, length: number): boolean {
    check(address, 1);
    return this.answer(this.ram.write(address, source, sourceOffset, length));
  }

  fill(address: number, value: number, length: number): boolean {
    return this.answer(this.ram.fill(address, value, length));
  }

  copy(target: number, source: number, length: number): boolean {
    return this.answer(this.ram.copy(target, source, length));
  }

  /** Puts back what the log says beyond its first `keep` entries, and forgets it. */
  undo(keep = 0): void {
    while (this.log.length > keep) {
      const { address, lo, hi } = this.log.pop()!;
      this.ram.store64(address, lo, hi);
    }
  }

  private note(address: number): void {
    if (this.ram.load64(address)) this.log.push({ address, lo: this.ram.lo, hi: this.ram.hi });
  }

  private answer(there: boolean): boolean {
    if (!there) this.absent++;
    return there;
  }
}

/** An access that no bus can make is a bug of whoever makes it. */
function check(address: number, size: number): void {
  if (!Number.isInteger(address) || address < 0 || address % size !== 0) throw new Error(`an access of ${size} bytes at ${address}`);
}

type Structure = 'root' | 'context' | 'directory' | 'pasid' | 'first' | 'second';

/** A word or structure on the way of a mapping. */
interface Place {
  readonly address: number;
  readonly words: number;
  readonly structure: Structure;
  /** Of a paging entry; 0 for leaves of 4 KiB. */
  readonly level: number;
}

/** One page of one address space of one device, and everything that leads to it. */
interface Mapping {
  readonly sourceId: number;
  readonly pasid: number | undefined;
  /** First page and pages that the leaf covers. */
  readonly page: bigint;
  readonly pages: bigint;
  readonly way: readonly Place[];
  /** RID_PASID of the device; undefined in legacy mode. */
  readonly ridPasid: number | undefined;
}

interface SecondLevel {
  readonly root: number;
  readonly levels: number;
  /** Width of input addresses. */
  readonly width: number;
}

/** Rights of a paging entry, mostly all of them. */
const MOSTLY = 0.94;

export class TableWorld {
  readonly memory = new WatchedMemory(new Ram([{ start: 0, end: LOW_END }, { start: HIGH_START, end: HIGH_END }]));
  hardware: Hardware = HARDWARE[0]!;
  rootTable = 0;
  mode = 0;
  private random!: Random;
  private mappings: Mapping[] = [];
  /** Of the device that is being built. */
  private ridPasid: number | undefined;
  private nextLow = LOW_START;
  private nextHigh = HIGH_START;

  /** Other tables at random; the memory object stays. */
  rebuild(random: Random, hardware: Hardware): void {
    this.random = random;
    this.hardware = hardware;
    this.memory.log.length = 0;
    this.memory.ram.fill(LOW_START, 0, this.nextLow - LOW_START);
    this.memory.ram.fill(HIGH_START, 0, this.nextHigh - HIGH_START);
    this.nextLow = LOW_START;
    this.nextHigh = HIGH_START;
    this.mappings = [];
    this.rootTable = this.table();
    const scalable = this.has(hardware.ecap, 43);
    this.mode = scalable && random.chance(0.78) ? 1 : 0;
    const count = random.between(1, 3);
    for (let i = 0; i < count; i++) {
      const sourceId = random.below(0x1_0000);
      if (this.mode === 0) this.legacyDevice(sourceId);
      else this.scalableDevice(sourceId);
    }
    if (random.chance(0.03)) this.mode = random.below(4);
    if (random.chance(0.005)) this.rootTable = this.elsewhere();
    this.memory.log.length = 0;
  }

  /** A request, most often to something that is mapped. */
  request(): Request & { readonly way: readonly Place[] } {
    const { random } = this;
    const mapping = random.pick(this.mappings);
    let { sourceId, pasid } = mapping;
    let page = mapping.page + BigInt(random.below(Number(mapping.pages)));
    if (random.chance(0.03)) page = this.strangePage();
    if (random.chance(0.02)) sourceId = random.below(0x1_0000);
    if (random.chance(0.04)) pasid = random.chance(0.4) ? undefined : random.chance(0.5) ? (pasid ?? 0) ^ (1 << random.below(20)) : random.below(0x10_0000);
    if (mapping.ridPasid !== undefined && random.chance(0.01)) pasid = mapping.ridPasid;
    const roll = random.below(100);
    const kind: RequestKind = roll < 62 ? 'untranslated' : roll < 92 ? 'translation' : roll < 95 ? 'translated' : 'page';
    if (kind === 'translated') {
      if (random.chance(0.9)) pasid = undefined;
      if (random.chance(0.8)) page = BigInt(random.below(2 ** 27));
    }
    return {
      sourceId, pasid, kind, way: mapping.way,
      address: page << 12n,
      write: kind === 'untranslated' || kind === 'translated' ? random.chance(0.5) : false,
      execute: random.chance(0.12),
      privileged: random.chance(0.15),
      noWrite: random.chance(0.25),
    };
  }

  /** Makes a mistake somewhere on the way; the memory's log can take it back. */
  spoil(way: readonly Place[]): void {
    const { random } = this;
    // structures are rarer on the way than paging entries, so they are picked first
    const structure = random.pick([...new Set(way.map((place) => place.structure))]);
    const place = random.pick(way.filter((candidate) => candidate.structure === structure));
    const word = place.words === 1 ? 0 : random.chance(0.55) ? 0 : random.below(Math.min(place.words, random.chance(0.85) ? 3 : 8));
    const address = place.address + word * 8;
    const before = this.peek(address);
    this.poke(address, this.mistake(before, place, word));
  }

  private mistake(word: bigint, place: Place, index: number): bigint {
    const { random } = this;
    const pointer = word & 0xfffn;
    const paging = place.structure === 'first' || place.structure === 'second';
    switch (random.below(10)) {
      case 0: return place.structure === 'second' ? word & ~3n : word & ~1n; // not present
      case 1: return pointer | BigInt(this.elsewhere()); // no memory there
      case 2: return word | (1n << BigInt(random.between(Math.min(this.hardware.hostAddressWidth, 51), 51))); // beyond the host
      case 3: return word ^ (1n << BigInt(random.below(12)));
      case 4: return word ^ (1n << BigInt(random.below(64)));
      case 5:
        // into the interrupt range, rights, or fields of a structure
        if (paging) return random.chance(0.5) ? pointer | 0xfee0_0000n | (BigInt(random.below(256)) << 12n) : word ^ random.pick([1n, 2n, 3n, 4n, 6n, 0x80n, 1n << 63n]);
        if (place.structure === 'context') return index === 0 ? word ^ (BigInt(random.pick([1, 2, 4, 5, 0x80, 0x100, random.below(0x400)])) << 2n) : word ^ BigInt(random.below(0x20_0000));
        return place.structure === 'pasid' ? word ^ (BigInt(random.below(0x80)) << 2n) : word ^ 2n;
      case 6: return place.structure === 'pasid' && index === 2 ? word ^ BigInt(random.below(0x100)) : word ^ 2n; // FPD, R/W
      case 7: return paging ? (word & ~0x80n) | (BigInt(random.below(2)) << 7n) | (BigInt(random.below(0x200)) << 12n) : word ^ 2n;
      case 8: return (BigInt(random.u32()) << 32n) | BigInt(random.u32()) | (random.chance(0.7) ? 1n : 0n);
      default: return word & ~(1n << BigInt(random.below(8))); // one right or flag less
    }
  }

  load = (address: bigint): bigint | undefined => {
    if (address >= 1n << 52n) return undefined;
    const { ram } = this.memory;
    return ram.load64(Number(address)) ? (BigInt(ram.hi >>> 0) << 32n) | BigInt(ram.lo >>> 0) : undefined;
  };

  // ---- devices

  private legacyDevice(sourceId: number): void {
    const { random, hardware } = this;
    this.ridPasid = undefined;
    const { address: root, table } = this.rootFor(sourceId, 0);
    const context = table + (sourceId & 0xff) * 16;
    const type = random.pick(this.has(hardware.ecap, 2) ? [0n, 1n, 1n, 2n] : [0n, 0n, 2n]);
    const second = this.secondLevel();
    const fpd = random.chance(0.1) ? 2n : 0n;
    this.poke(context, BigInt(second.root) | 1n | fpd | (type << 2n));
    this.poke(context + 8, BigInt(second.levels - 2) | (this.domainId() << 8n) | (BigInt(random.below(16)) << 3n));
    const start: Place[] = [place(root, 2, 'root'), place(context, 2, 'context')];
    for (let i = 0; i < 4; i++) this.add(sourceId, undefined, start, (way) => this.mapSecond(second, this.guestPage(second), random.pick([0, 0, 1, 2]), way, this.hostPage()));
    this.passThrough(sourceId, undefined, start);
  }

  private scalableDevice(sourceId: number): void {
    const { random, hardware } = this;
    const { address: root, table } = this.rootFor(sourceId, (sourceId & 0x80) === 0 ? 0 : 8);
    const context = table + (sourceId & 0x7f) * 32;
    const pdts = random.pick([0, 0, 1, 2, 3, 5, 7]);
    const directory = this.table(Math.max(1, 2 ** (pdts + 7 + 3 - 12)));
    const pasidBits = Math.min(Number((hardware.ecap >> 35n) & 31n) + 1, pdts + 13);
    const ridPasid = this.has(hardware.ecap, 49) && random.chance(0.5) ? random.below(2 ** pasidBits) : 0;
    this.ridPasid = ridPasid;
    const has = (n: number): bigint => (this.has(hardware.ecap, n) ? 1n : 0n);
    const deviceTlb = has(2) * BigInt(random.chance(0.95)), pageRequests = has(29) * deviceTlb * BigInt(random.chance(0.8));
    this.poke(context, BigInt(directory) | 1n | (random.chance(0.06) ? 2n : 0n) | (deviceTlb << 2n) | (BigInt(random.chance(0.97)) << 3n) | (pageRequests << 4n) | (BigInt(pdts) << 9n));
    this.poke(context + 8, BigInt(ridPasid) | (has(53) * BigInt(random.chance(0.2)) << 20n));
    const start: Place[] = [place(root, 1, 'root'), place(context, 4, 'context')];
    const tables = new Map<number, number>();
    const pasids = new Set<number | undefined>([undefined]);
    for (let i = 0; i < 3; i++) {
      const pasid = random.below(2 ** pasidBits);
      if (pasid !== ridPasid) pasids.add(pasid);
    }
    for (const pasid of pasids) {
      const number = pasid ?? ridPasid;
      const entry = directory + (number >> 6) * 8;
      let pasidTable = tables.get(number >> 6);
      if (pasidTable === undefined) {
        pasidTable = this.table();
        tables.set(number >> 6, pasidTable);
        this.poke(entry, BigInt(pasidTable) | 1n | (random.chance(0.04) ? 2n : 0n));
      }
      this.pasidEntry(sourceId, pasid, pasidTable + (number & 0x3f) * 64, [...start, place(entry, 1, 'directory'), place(pasidTable + (number & 0x3f) * 64, 8, 'pasid')]);
    }
  }

  private pasidEntry(sourceId: number, pasid: number | undefined, at: number, start: readonly Place[]): void {
    const { random, hardware } = this;
    const { ecap: e } = hardware;
    const types = [
      ...(this.has(e, 47) ? [1, 1] : []), ...(this.has(e, 46) ? [2, 2] : []), ...(this.has(e, 26) ? [3, 3, 3] : []), ...(this.has(e, 6) ? [4] : []),
    ];
    const type = random.pick(types);
    const second = type === 2 || type === 3 ? this.secondLevel() : undefined;
    const five = (type === 1 || type === 3) && this.has(hardware.cap, 60) && random.chance(0.4);
    const allowed = (n: number, probability: number): bigint => (this.has(e, n) && random.chance(probability) ? 1n : 0n);
    const first = type === 1 || type === 3 ? this.table() : 0;
    let firstGuest = first;
    const way = [...start];
    if (type === 3) {
      // the table of the first level is where the second level says
      const guest = this.guestPage(second!);
      firstGuest = Number(guest) * 4096;
      if (this.mapSecond(second!, guest, 0, way, BigInt(first) >> 12n) === undefined) return;
    }
    this.poke(at, BigInt(second?.root ?? 0) | 1n | (random.chance(0.06) ? 2n : 0n) | (BigInt(second === undefined ? 0 : second.levels - 2) << 2n) | (BigInt(type) << 6n) | (type === 2 || type === 3 ? allowed(45, 0.6) << 9n : 0n));
    this.poke(at + 8, this.domainId() | (allowed(48, 0.7) << 23n) | (allowed(7, 0.3) << 24n));
    const flags = allowed(31, 0.85) | (allowed(30, 0.85) << 1n) | (five ? 4n : 0n) | (BigInt(random.chance(0.6)) << 4n) | (BigInt(random.chance(0.6)) << 5n) | (BigInt(random.chance(0.4)) << 6n) | (allowed(34, 0.5) << 7n);
    this.poke(at + 16, BigInt(firstGuest) | flags);
    const count = random.between(2, 4);
    for (let i = 0; i < count; i++) {
      if (type === 4) this.passThrough(sourceId, pasid, way);
      else if (type === 2) this.add(sourceId, pasid, way, (steps) => this.mapSecond(second!, this.guestPage(second!), random.pick([0, 0, 1, 2]), steps, this.hostPage()));
      else this.add(sourceId, pasid, way, (steps) => this.mapFirst(first, five ? 5 : 4, second, steps));
    }
  }

  // ---- paging

  private secondLevel(): SecondLevel {
    const levels = this.random.pick([1, 2, 3].filter((aw) => this.has(this.hardware.cap, 8 + aw)).map((aw) => aw + 2));
    return { root: this.table(), levels, width: Math.min(levels * 9 + 12, Number((this.hardware.cap >> 16n) & 63n) + 1) };
  }

  /** Maps one page; the first page and the size of its leaf, undefined where another leaf is in the way. */
  private mapSecond(second: SecondLevel, page: bigint, wanted: number, way: Place[], target: bigint): { page: bigint; pages: bigint } | undefined {
    const { random, hardware } = this;
    const leafLevel = wanted === 2 && this.has(hardware.cap, 35) ? 2 : wanted >= 1 && this.has(hardware.cap, 34) ? 1 : 0;
    let table = second.root;
    for (let level = second.levels - 1; ; level--) {
      const at = table + Number((page >> BigInt(9 * level)) & 511n) * 8;
      way.push(place(at, 1, 'second', level));
      const before = this.peek(at);
      const flags = this.rights() | this.preset(0x100n) | (this.ignored() & 0xbff0_0000_0000_047cn);
      if (level === leafLevel) {
        if (before !== 0n) return undefined;
        const pages = 1n << BigInt(9 * level);
        const snoop = this.has(hardware.ecap, 7) && random.chance(0.3) ? 0x800n : 0n;
        this.poke(at, ((target & ~(pages - 1n)) << 12n) | flags | this.preset(0x200n) | snoop | (level > 0 ? 0x80n : 0n));
        return { page: page & ~(pages - 1n), pages };
      }
      if (before === 0n) {
        const next = this.table();
        this.poke(at, BigInt(next) | flags);
        table = next;
      } else if (level <= 2 && (before & 0x80n) !== 0n) return undefined;
      else table = Number(before & 0xf_ffff_ffff_f000n);
    }
  }

  /** Maps one page of a first level whose root table stands at `root`; tables and target through `second` when nested. */
  private mapFirst(root: number, levels: number, second: SecondLevel | undefined, way: Place[]): { page: bigint; pages: bigint } | undefined {
    const { random, hardware } = this;
    const wanted = random.pick([0, 0, 1, 2]);
    const leafLevel = wanted === 2 && this.has(hardware.cap, 56) ? 2 : wanted >= 1 ? 1 : 0;
    const half = BigInt(levels * 9 - 1);
    let page = ((BigInt(random.u32()) << 32n) | BigInt(random.u32())) & ((1n << half) - 1n);
    const upper = random.chance(0.2);
    if (upper) page |= ((1n << 52n) - 1n) ^ ((1n << half) - 1n);
    let table = root;
    for (let level = levels - 1; ; level--) {
      const at = table + Number((page >> BigInt(9 * level)) & 511n) * 8;
      way.push(place(at, 1, 'first', level));
      const before = this.peek(at);
      const flags = 1n | (random.chance(MOSTLY) ? 2n : 0n) | (random.chance(MOSTLY) ? 4n : 0n) | this.preset(0x20n) | this.preset(0x400n) | (random.chance(0.05) ? 1n << 63n : 0n) | (this.ignored() & 0x7ff0_0000_0000_0b18n);
      if (level === leafLevel) {
        if (before !== 0n) return undefined;
        const pages = 1n << BigInt(9 * level);
        let target = this.hostPage();
        if (second !== undefined) {
          target = this.guestPage(second);
          if (this.mapSecond(second, target, random.pick([0, 0, 1, 2]), way, this.hostPage()) === undefined) return undefined;
        }
        this.poke(at, ((target & ~(pages - 1n)) << 12n) | flags | this.preset(0x40n) | (level > 0 ? 0x80n | (random.chance(0.2) ? 0x1000n : 0n) : 0n));
        // of a nested leaf only this page is sure to be mapped by the second level
        return second === undefined ? { page: page & ~(pages - 1n), pages } : { page: (page & ~(pages - 1n)) | (target & (pages - 1n)), pages: 1n };
      }
      if (before === 0n) {
        const next = this.table();
        let named = BigInt(next) >> 12n;
        if (second !== undefined) {
          named = this.guestPage(second);
          if (this.mapSecond(second, named, 0, way, BigInt(next) >> 12n) === undefined) return undefined;
        }
        this.poke(at, (named << 12n) | flags);
        table = next;
      } else if (second !== undefined || (level <= 2 && (before & 0x80n) !== 0n)) return undefined;
      else table = Number(before & 0xf_ffff_ffff_f000n);
    }
  }

  private add(sourceId: number, pasid: number | undefined, start: readonly Place[], map: (way: Place[]) => { page: bigint; pages: bigint } | undefined): void {
    const way = [...start];
    const mapped = map(way);
    // a way that is only half built is worth requests too
    const page = mapped ?? { page: BigInt(this.random.u32()), pages: 1n };
    this.mappings.push({ sourceId, pasid, ...page, way, ridPasid: this.ridPasid });
  }

  private passThrough(sourceId: number, pasid: number | undefined, way: readonly Place[]): void {
    const wide = this.random.chance(0.1) ? BigInt(this.random.u32()) << 20n : 0n;
    const page = this.random.chance(0.1) ? 0xfee00n + BigInt(this.random.below(256)) : BigInt(this.random.below(2 ** 27)) | wide;
    this.mappings.push({ sourceId, pasid, page, pages: 1n, way, ridPasid: this.ridPasid });
  }

  // ---- words

  private rootFor(sourceId: number, half: number): { address: number; table: number } {
    const address = this.rootTable + (sourceId >> 8) * 16 + half;
    const before = this.peek(address);
    const table = before === 0n ? this.table() : Number(before & ~0xfffn);
    if (before === 0n) this.poke(address, BigInt(table) | 1n);
    return { address, table };
  }

  private rights(): bigint {
    return this.random.chance(MOSTLY) ? 3n : BigInt(this.random.between(1, 3));
  }

  private preset(flag: bigint): bigint {
    return this.random.chance(0.5) ? flag : 0n;
  }

  /** Bits for ignored fields, rarely any. */
  private ignored(): bigint {
    return this.random.chance(0.3) ? (BigInt(this.random.u32()) << 32n) | BigInt(this.random.u32()) : 0n;
  }

  private domainId(): bigint {
    return BigInt(this.random.below(2 ** (4 + 2 * Number(this.hardware.cap & 7n))));
  }

  /** A page within the second level's width (and the host's, as entries have no more bits). */
  private guestPage(second: SecondLevel): bigint {
    const width = Math.min(second.width, this.hardware.hostAddressWidth) - 12;
    return ((BigInt(this.random.u32()) << 32n) | BigInt(this.random.u32())) & ((1n << BigInt(width)) - 1n);
  }

  private hostPage(): bigint {
    return ((BigInt(this.random.u32()) << 32n) | BigInt(this.random.u32())) & ((1n << BigInt(this.hardware.hostAddressWidth - 12)) - 1n);
  }

  private strangePage(): bigint {
    const { random } = this;
    switch (random.below(4)) {
      case 0: return 0xfee00n + BigInt(random.below(256));
      case 1: return ((BigInt(random.u32()) << 32n) | BigInt(random.u32())) & ((1n << 52n) - 1n);
      case 2: return 1n << BigInt(random.below(52));
      default: return BigInt(random.u32());
    }
  }

  /** An address that no memory has. */
  private elsewhere(): number {
    return (HIGH_END + this.random.below(2 ** 26) * 4096) % 2 ** Math.min(this.hardware.hostAddressWidth, 40);
  }

  private table(pages = 1): number {
    const high = this.random.chance(0.3) && this.nextHigh + pages * 4096 <= HIGH_END;
    const address = high ? this.nextHigh : this.nextLow;
    if (high) this.nextHigh += pages * 4096;
    else this.nextLow += pages * 4096;
    if (this.nextLow > LOW_END) throw new Error('the builder needs more memory');
    return address;
  }

  private has(word: bigint, n: number): boolean {
    return ((word >> BigInt(n)) & 1n) === 1n;
  }

  private peek(address: number): bigint {
    return this.load(BigInt(address)) ?? 0n;
  }

  /** Through the log, so that a mistake can be taken back. */
  private poke(address: number, word: bigint): void {
    this.memory.store64(address, Number(word & 0xffff_ffffn) | 0, Number((word >> 32n) & 0xffff_ffffn) | 0);
  }
}

function place(address: number, words: number, structure: Structure, level = 0): Place {
  return { address, words, structure, level };
}
