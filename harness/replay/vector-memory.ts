/**
 * RAM of a replay: ranges of gigabytes of which a few hundred pages are touched, kept page by page. Remembers which
 * words the unit changed, so that a replay can ask whether the file mentions them.
 */
import type { MemoryRange, PhysicalMemory } from '../../sim/memory.js';

const PAGE = 4096;

export class SparseMemory implements PhysicalMemory {
  readonly generation = 0;
  lo = 0;
  hi = 0;
  /** Addresses of 32-bit words that `store`, `store64` and `compareExchange64` changed, for the caller to clear. */
  readonly changed = new Set<number>();
  private readonly ranges: readonly MemoryRange[];
  private readonly pages = new Map<number, DataView>();
  private lastIndex = -1;
  private lastPage: DataView = new DataView(new ArrayBuffer(PAGE));

  /** @param ranges ascending, disjoint, aligned to 4 KiB; bytes */
  constructor(ranges: readonly MemoryRange[]) {
    this.ranges = ranges;
  }

  has(address: number, length: number): boolean {
    for (const { start, end } of this.ranges) if (address >= start && address + length <= end) return true;
    return false;
  }

  load64(address: number): boolean {
    if (!this.has(address, 8)) return false;
    const page = this.page(address), offset = address % PAGE;
    this.lo = page.getInt32(offset, true);
    this.hi = page.getInt32(offset + 4, true);
    return true;
  }

  store64(address: number, lo: number, hi: number): boolean {
    if (!this.has(address, 8)) return false;
    this.storeWord(address, lo);
    this.storeWord(address + 4, hi);
    return true;
  }

  compareExchange64(address: number, expectLo: number, expectHi: number, lo: number, hi: number): boolean {
    if (!this.load64(address) || this.lo !== (expectLo | 0) || this.hi !== (expectHi | 0)) return false;
    return this.store64(address, lo, hi);
  }

  load(address: number, size: 1 | 2 | 4): number {
    if (!this.has(address, size)) return -1;
    const page = this.page(address), offset = address % PAGE;
    return size === 4 ? page.getUint32(offset, true) : size === 2 ? page.getUint16(offset, true) : page.getUint8(offset);
  }

  store(address: number, size: 1 | 2 | 4, value: number): boolean {
    if (!this.has(address, size)) return false;
    if (size === 4) {
      this.storeWord(address, value);
      return true;
    }
    const page = this.page(address), offset = address % PAGE;
    if (size === 2) page.setUint16(offset, value, true);
    else page.setUint8(offset, value);
    this.changed.add(address - (address % 4));
    return true;
  }

  read(address: number, target: Uint8Array, targetOffset: number, length: number): boolean {
    if (!this.has(address, length)) return false;
    for (let i = 0; i < length; i++) target[targetOffset + i] = this.page(address + i).getUint8((address + i) % PAGE);
    return true;
  }

  /** Software's writes: not among `changed`. */
  write(address: number, source: Uint8Array, sourceOffset: number, length: number): boolean {
    if (!this.has(address, length)) return false;
    for (let i = 0; i < length; i++) this.page(address + i).setUint8((address + i) % PAGE, source[sourceOffset + i]!);
    return true;
  }

  fill(address: number, value: number, length: number): boolean {
    return this.write(address, new Uint8Array(length).fill(value), 0, length);
  }

  copy(target: number, source: number, length: number): boolean {
    const bytes = new Uint8Array(length);
    return this.has(target, length) && this.read(source, bytes, 0, length) && this.write(target, bytes, 0, length);
  }

  private storeWord(address: number, value: number): void {
    const page = this.page(address), offset = address % PAGE;
    if (page.getInt32(offset, true) === (value | 0)) return;
    page.setInt32(offset, value, true);
    this.changed.add(address);
  }

  private page(address: number): DataView {
    const index = Math.floor(address / PAGE);
    if (index === this.lastIndex) return this.lastPage;
    let page = this.pages.get(index);
    if (page === undefined) {
      page = new DataView(new ArrayBuffer(PAGE));
      this.pages.set(index, page);
    }
    this.lastIndex = index;
    this.lastPage = page;
    return page;
  }
}
