/**
 * The DMA regions that a client has announced, and the client's memory as physical memory of a machine: what lies in
 * a window can be reached at once and by address. Regions without a window (no descriptor came, or one that is not
 * safe to touch) are absent here and reached by messages only. Regions never overlap (DMA_MAP is EEXIST).
 */
import { PAGE_SIZE } from '../../sim/address.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import type { DirtyLog } from './dirty-log.js';
import type { MemoryWindow } from './transport.js';

export interface ClientRegion {
  readonly address: number;
  readonly sizeBytes: number;
  readonly readable: boolean;
  readonly writable: boolean;
  /** Undefined: by messages. */
  readonly window: MemoryWindow | undefined;
}

/** Of one mapping. */
const PIECE_BYTES = 2 ** 30;

/** Mappings that a window of so many bytes needs. */
export function piecesOf(sizeBytes: number): number {
  return Math.ceil(sizeBytes / PIECE_BYTES);
}

/** Regions by address. */
export class ClientRegions {
  /** Ascending, disjoint. */
  readonly all: ClientRegion[] = [];
  /** Mappings of all windows. */
  pieces = 0;
  generation = 0;
  private last: ClientRegion | undefined;

  /** The region that holds the byte at `address`. */
  find(address: number): ClientRegion | undefined {
    const { last } = this;
    if (last !== undefined && address >= last.address && address - last.address < last.sizeBytes) return last;
    const region = this.all[this.indexAfter(address) - 1];
    if (region === undefined || address - region.address >= region.sizeBytes) return undefined;
    this.last = region;
    return region;
  }

  overlaps(address: number, sizeBytes: number): boolean {
    const next = this.all[this.indexAfter(address)];
    return this.find(address) !== undefined || (next !== undefined && next.address < address + sizeBytes);
  }

  add(region: ClientRegion): void {
    this.all.splice(this.indexAfter(region.address), 0, region);
    if (region.window !== undefined) this.pieces += piecesOf(region.sizeBytes);
    this.generation++;
  }

  /** Takes away the regions that lie in this range and closes their windows; nothing where the range cuts one in two. */
  remove(address: number, sizeBytes: number): readonly ClientRegion[] {
    const end = address + sizeBytes, before = this.indexAfter(address) - 1;
    const from = before >= 0 && this.all[before]!.address === address ? before : before + 1;
    const to = this.indexAfter(end - 1);
    const cut = from > 0 && this.all[from - 1]!.address + this.all[from - 1]!.sizeBytes > address;
    if (cut || (to > from && this.all[to - 1]!.address + this.all[to - 1]!.sizeBytes > end)) return [];
    const removed = this.all.splice(from, Math.max(0, to - from));
    for (const region of removed) this.forget(region);
    return removed;
  }

  clear(): void {
    for (const region of this.all.splice(0)) this.forget(region);
  }

  private forget(region: ClientRegion): void {
    this.generation++;
    this.last = undefined;
    if (region.window === undefined) return;
    this.pieces -= piecesOf(region.sizeBytes);
    region.window.close();
  }

  /** Index of the first region that begins behind `address`. */
  private indexAfter(address: number): number {
    const { all } = this;
    let low = 0, high = all.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (all[middle]!.address <= address) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

export class ForeignMemory implements PhysicalMemory {
  lo = 0;
  hi = 0;
  private readonly regions: ClientRegions;
  private readonly log: DirtyLog;

  constructor(regions: ClientRegions, log: DirtyLog) {
    this.regions = regions;
    this.log = log;
  }

  get generation(): number {
    return this.regions.generation;
  }

  has(address: number, length: number): boolean {
    return this.reachable(address, length, false);
  }

  /** True when all of the range may be written. */
  writable(address: number, length: number): boolean {
    return this.reachable(address, length, true);
  }

  load64(address: number): boolean {
    const region = this.readableRegion(address);
    if (region === undefined || !region.window!.load64(address - region.address)) return false;
    this.lo = region.window!.lo;
    this.hi = region.window!.hi;
    return true;
  }

  store64(address: number, lo: number, hi: number): boolean {
    const region = this.writableRegion(address);
    if (region === undefined || !region.window!.store64(address - region.address, lo, hi)) return false;
    if (this.log.active) this.log.mark(address, 8);
    return true;
  }

  compareExchange64(address: number, expectLo: number, expectHi: number, lo: number, hi: number): boolean {
    const region = this.writableRegion(address);
    if (region === undefined || !region.readable || !region.window!.compareExchange64(address - region.address, expectLo, expectHi, lo, hi)) return false;
    if (this.log.active) this.log.mark(address, 8);
    return true;
  }

  load(address: number, size: 1 | 2 | 4): number {
    const region = this.readableRegion(address);
    return region === undefined ? -1 : region.window!.load(address - region.address, size);
  }

  store(address: number, size: 1 | 2 | 4, value: number): boolean {
    const region = this.writableRegion(address);
    if (region === undefined || !region.window!.store(address - region.address, size, value)) return false;
    if (this.log.active) this.log.mark(address, size);
    return true;
  }

  read(address: number, target: Uint8Array, targetOffset: number, length: number): boolean {
    if (!this.reachable(address, length, false)) return false;
    for (let done = 0; done < length; ) {
      const region = this.regions.find(address + done)!, offset = address + done - region.address;
      const count = Math.min(length - done, region.sizeBytes - offset);
      if (!region.window!.read(offset, target, targetOffset + done, count)) return false;
      done += count;
    }
    return true;
  }

  write(address: number, source: Uint8Array, sourceOffset: number, length: number): boolean {
    if (!this.reachable(address, length, true)) return false;
    for (let done = 0; done < length; ) {
      const region = this.regions.find(address + done)!, offset = address + done - region.address;
      const count = Math.min(length - done, region.sizeBytes - offset);
      if (!region.window!.write(offset, source, sourceOffset + done, count)) return false;
      done += count;
    }
    if (this.log.active && length > 0) this.log.mark(address, length);
    return true;
  }

  fill(address: number, value: number, length: number): boolean {
    if (!this.reachable(address, length, true)) return false;
    for (let done = 0; done < length; ) {
      const region = this.regions.find(address + done)!, offset = address + done - region.address;
      const count = Math.min(length - done, region.sizeBytes - offset);
      if (!region.window!.fill(offset, value, count)) return false;
      done += count;
    }
    if (this.log.active && length > 0) this.log.mark(address, length);
    return true;
  }

  /** Through a buffer: the ranges may be in different windows and may overlap. */
  copy(target: number, source: number, length: number): boolean {
    if (!this.reachable(target, length, true)) return false;
    const bytes = new Uint8Array(length);
    return this.read(source, bytes, 0, length) && this.write(target, bytes, 0, length);
  }

  private readableRegion(address: number): ClientRegion | undefined {
    const region = this.regions.find(address);
    return region?.window !== undefined && region.readable ? region : undefined;
  }

  private writableRegion(address: number): ClientRegion | undefined {
    const region = this.regions.find(address);
    return region?.window !== undefined && region.writable ? region : undefined;
  }

  private reachable(address: number, length: number, write: boolean): boolean {
    const end = address + length;
    let region = write ? this.writableRegion(address) : this.readableRegion(address);
    while (region !== undefined) {
      const next = region.address + region.sizeBytes;
      if (end <= next) return true;
      region = write ? this.writableRegion(next) : this.readableRegion(next);
    }
    return false;
  }
}

/** DMA regions are made of these. */
export const DMA_PAGE_SIZE = PAGE_SIZE;
