/**
 * The smallest world around a VT-d back end: RAM with tables written as raw words, a sink and a router that note what
 * reaches them. One device 00:02.0 (0x10); the layout of memory stands in the constants.
 */
import { Random } from '../../sim/random.js';
import { VirtualClock } from '../../sim/clock.js';
import { Ram } from '../../sim/memory.js';
import { toU64 } from '../../sim/address.js';
import { NO_PASID } from '../../host/pci/dma-port.js';
import type { FunctionRouter } from '../../host/pci/dma-port.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import type { FaultRecord, FrontEndSink } from '../../iommu/intel-vtd/hardware/back-end.js';
import { TranslationBackEnd } from '../../iommu/intel-vtd/hardware/translation.js';
import { buildCapabilities, decodeCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import type { VtdCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';

export const DEVICE = 0x10;
export const ROOT = 0x1000;
/** Context tables: lower half (also legacy) and upper half. */
export const CONTEXTS = 0x2000;
export const DIRECTORY = 0x4000;
export const PASIDS = 0x5000;
/** First-level tables from the root down; page 0x7f_0123_4567 of `PAGE` uses entry 0 of each when shifted there. */
export const FL = [0x2_0000, 0x2_1000, 0x2_2000, 0x2_3000, 0x2_4000] as const;
/** Second-level tables, level 0 first as in FL. */
export const SL = [0x3_0000, 0x3_1000, 0x3_2000, 0x3_3000, 0x3_4000] as const;
/** What the leaf points to. */
export const TARGET = 0x1234;
/** A page below 2^47 whose indices are 0xfe, 0x4, 0x1a, 0x56 (levels 3 to 0). */
export const PAGE = ((0xfe * 512 + 0x4) * 512 + 0x1a) * 512 + 0x56;

export const P = 1n, RW = 2n, US = 4n, A = 0x20n, D = 0x40n, PS = 0x80n, EA = 0x400n, XD = 1n << 63n;

/** Every feature that a topology can ask for, and RPRIVS (53), which only a recording has. */
export function everything(haw = 46): VtdCapabilities {
  const { capabilities } = buildCapabilities({ 'accessed-dirty': true, 'five-level': true, 'aw-bits': 57, 'abort-dma': true, 'extended-accessed': true });
  return decodeCapabilities(capabilities.cap, capabilities.ecap | (1n << 53n), { hostAddressWidth: haw });
}

export interface TranslationWorldOptions {
  readonly capabilities?: VtdCapabilities;
  readonly iotlbEntries?: number;
  readonly defects?: readonly string[];
  /** Default 32 MiB. */
  readonly memory?: Ram;
  /** False: no device answers. */
  readonly reachable?: boolean;
}

export class TranslationWorld implements FrontEndSink, FunctionRouter {
  readonly memory: Ram;
  readonly clock = new VirtualClock();
  readonly backEnd: TranslationBackEnd;
  readonly faults: FaultRecord[] = [];
  readonly requests: number[][] = [];
  readonly responses: number[][] = [];
  readonly invalidations: { sourceId: number; tag: number; page: number; pages: number; pasid: number }[] = [];
  unexpected = 0;
  reachable: boolean;

  constructor(options: TranslationWorldOptions = {}) {
    this.reachable = options.reachable ?? true;
    this.memory = options.memory ?? new Ram(0x200_0000);
    this.backEnd = new TranslationBackEnd({
      memory: this.memory,
      capabilities: options.capabilities ?? everything(),
      clock: this.clock,
      timing: new Timing({ ...DEFAULT_TIMING, jitter: 0 }, new Random(1)),
      router: this,
      ...(options.iotlbEntries === undefined ? {} : { iotlbEntries: options.iotlbEntries }),
      defects: new Set(options.defects),
    });
    this.backEnd.connect(this);
  }

  // FrontEndSink
  fault(record: FaultRecord): void {
    this.faults.push(record);
  }

  pageRequest(...request: [number, number, number, number, boolean, number]): void {
    this.requests.push(request.map(Number));
  }

  invalidCompletion(): void {
    this.unexpected++;
  }

  // FunctionRouter
  invalidate(sourceId: number, tag: number, page: number, pages: number, pasid: number): boolean {
    this.invalidations.push({ sourceId, tag, page, pages, pasid });
    return this.reachable;
  }

  pageResponse(...response: [number, number, number, number]): boolean {
    this.responses.push(response);
    return true;
  }

  releaseHeld(): void {}

  // memory
  poke(address: number, ...words: bigint[]): void {
    words.forEach((word, i) => this.memory.store64(address + 8 * i, Number(word & 0xffff_ffffn), Number((word >> 32n) & 0xffff_ffffn)));
  }

  peek(address: number): bigint {
    this.memory.load64(address);
    return toU64(this.memory.lo, this.memory.hi);
  }

  /** Sets bits of one word. */
  or(address: number, bits: bigint): void {
    this.poke(address, this.peek(address) | bits);
  }

  clear(address: number, bits: bigint): void {
    this.poke(address, this.peek(address) & ~bits);
  }

  on(mode: number): void {
    this.backEnd.setState({ enabled: true, rootTable: ROOT, mode });
  }

  /** Legacy mode, 48 bits, domain 5; the context entry's low word carries `context`. */
  legacy(context = 0n, aw = 2n): this {
    this.poke(ROOT, BigInt(CONTEXTS) | 1n, 0n);
    this.poke(CONTEXTS + DEVICE * 16, BigInt(SL[3]) | 1n | context, aw | (5n << 8n));
    this.secondLevel();
    this.on(0);
    return this;
  }

  /** Scalable mode: DTE, PASIDE, PRE, a directory of 128 entries; PASID 5 (and RID_PASID 0) of the given type in domain 7. */
  scalable(type: bigint, options: { entry0?: bigint; entry1?: bigint; entry2?: bigint } = {}): this {
    this.poke(ROOT, BigInt(CONTEXTS) | 1n, BigInt(CONTEXTS + 0x1000) | 1n);
    this.poke(CONTEXTS + DEVICE * 32, BigInt(DIRECTORY) | 0x1dn, 0n, 0n, 0n);
    this.poke(DIRECTORY, BigInt(PASIDS) | 1n);
    for (const pasid of [0, 5]) {
      this.poke(PASIDS + pasid * 64, BigInt(SL[3]) | 1n | (2n << 2n) | (type << 6n) | (options.entry0 ?? 0n), 7n | (options.entry1 ?? 0n), BigInt(FL[3]) | (options.entry2 ?? 0n), 0n, 0n, 0n, 0n, 0n);
    }
    if (type === 1n || type === 3n) this.firstLevel();
    if (type === 2n || type === 3n) this.secondLevel();
    this.on(1);
    return this;
  }

  /** Four levels that lead PAGE to TARGET, user, writable; no accessed bits. */
  firstLevel(): void {
    this.poke(flAt(3), BigInt(FL[2]) | P | RW | US);
    this.poke(flAt(2), BigInt(FL[1]) | P | RW | US);
    this.poke(flAt(1), BigInt(FL[0]) | P | RW | US);
    this.poke(flAt(0), (BigInt(TARGET) << 12n) | P | RW | US);
  }

  /** Second level: PAGE to TARGET, and everything below 4 MiB of guest memory and TARGET's region to itself. */
  secondLevel(): void {
    this.poke(slAt(3), BigInt(SL[2]) | 3n);
    this.poke(slAt(2), BigInt(SL[1]) | 3n);
    this.poke(slAt(1), BigInt(SL[0]) | 3n);
    this.poke(slAt(0), (BigInt(TARGET) << 12n) | 3n);
    // identity for the first 32 MiB by 4 KiB pages: level 3 and 2 entry 0 lead to a level-1 table at 0x40000
    this.poke(SL[3], 0x4_1000n | 3n);
    this.poke(0x4_1000, 0x4_0000n | 3n);
    for (let i = 0; i < 16; i++) {
      this.poke(0x4_0000 + i * 8, BigInt(0x5_0000 + i * 0x1000) | 3n);
      for (let k = 0; k < 512; k++) this.poke(0x5_0000 + i * 0x1000 + k * 8, (BigInt(i * 512 + k) << 12n) | 3n);
    }
  }

  // requests: the page, or the fault reason as a negative number
  read(page = PAGE, pasid = NO_PASID, attributes = 0): number {
    return this.request(page, pasid, attributes, false);
  }

  write(page = PAGE, pasid = NO_PASID, attributes = 0): number {
    return this.request(page, pasid, attributes, true);
  }

  private request(page: number, pasid: number, attributes: number, write: boolean): number {
    const before = this.faults.length;
    const status = this.backEnd.translate(DEVICE, pasid, attributes, page, write);
    if (status === 0) return this.backEnd.page;
    return this.faults.length === before ? SILENT : -this.faults.at(-1)!.reason;
  }

  /** R, W, X of a translation request, `…` when refused. */
  ats(page = PAGE, pasid = 5, attributes = 0): string {
    const status = this.backEnd.translationRequest(DEVICE, pasid, attributes, page);
    if (status !== 0) return status === 1 ? 'UR' : 'CA';
    const { read, write, execute } = this.backEnd.completion;
    return `${read ? 'R' : '-'}${write ? 'W' : '-'}${execute ? 'X' : '-'}`;
  }
}

/** A request that was refused without a record. */
export const SILENT = -1000;

/** Address of the first-level entry of PAGE at a level. */
export function flAt(level: number): number {
  return FL[level]! + (Math.floor(PAGE / 512 ** level) % 512) * 8;
}

/** Address of the second-level entry of PAGE at a level. */
export function slAt(level: number): number {
  return SL[level]! + (Math.floor(PAGE / 512 ** level) % 512) * 8;
}
