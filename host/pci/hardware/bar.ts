/** Base address registers of a function and the windows behind them (PCIe 6.0 section 7.5.1.2.1). */
import { assert } from '../../../sim/assert.js';
import { PlainMmio, type AccessSize, type EnqueueResult, type Mmio } from '../../../sim/mmio.js';
import {
  barOffset, PCI_BASE_ADDRESS_MEM_MASK, PCI_BASE_ADDRESS_MEM_PREFETCH, PCI_BASE_ADDRESS_MEM_TYPE_64, PCI_STD_NUM_BARS,
} from '../spec/index.js';
import type { ConfigSpace } from './config-space.js';

export interface BarOptions {
  /** 0..5; a 64-bit BAR takes the next one too. */
  readonly index: number;
  /** A power of two, at least 4096. */
  readonly sizeBytes: number;
  readonly prefetchable: boolean;
  readonly is64: boolean;
  /** The device's registers; without them only what MSI-X puts there answers. */
  readonly mmio?: Mmio;
}

/** A memory BAR: sizing works because the low address bits are not writable. */
export class Bar {
  readonly index: number;
  readonly sizeBytes: number;
  readonly prefetchable: boolean;
  readonly is64: boolean;
  /** Where the registers stand in configuration space. */
  readonly offset: number;
  private readonly config: ConfigSpace;

  /** @param first offset of BAR 0: the header's, or the SR-IOV capability's */
  constructor(config: ConfigSpace, options: Omit<BarOptions, 'mmio'>, first = barOffset(0)) {
    const { index, sizeBytes, is64 } = options;
    assert(sizeBytes >= 4096 && Number.isInteger(Math.log2(sizeBytes)) && (is64 || sizeBytes <= 2 ** 31), `BAR ${index}: size ${sizeBytes}`);
    assert(index + (is64 ? 2 : 1) <= PCI_STD_NUM_BARS, `BAR ${index} does not exist`);
    this.config = config;
    this.index = index;
    this.sizeBytes = sizeBytes;
    this.prefetchable = options.prefetchable;
    this.is64 = is64;
    this.offset = first + index * 4;
    const flags = (is64 ? PCI_BASE_ADDRESS_MEM_TYPE_64 : 0) | (options.prefetchable ? PCI_BASE_ADDRESS_MEM_PREFETCH : 0);
    const low = sizeBytes >= 2 ** 32 ? 0 : (~(sizeBytes - 1) & PCI_BASE_ADDRESS_MEM_MASK) >>> 0;
    config.define(this.offset, 4, flags, { rw: low });
    if (is64) config.define(this.offset + 4, 4, 0, { rw: (0x1_0000_0000 - Math.max(1, sizeBytes / 2 ** 32)) >>> 0 });
  }

  /** What software programmed; undefined for 0, which no allocator assigns, and while it is being sized. */
  get address(): number | undefined {
    const lo = (this.config.get(this.offset, 4) & PCI_BASE_ADDRESS_MEM_MASK) >>> 0;
    const hi = this.is64 ? this.config.get(this.offset + 4, 4) : 0;
    const address = hi * 2 ** 32 + lo;
    return address === 0 || address >= 2 ** 52 ? undefined : address;
  }
}

/** The window that a BAR decodes; all ones, and nobody listens, while `decodes` says no. */
export class BarWindow extends PlainMmio {
  private readonly target: Mmio;
  private readonly decodes: () => boolean;

  constructor(target: Mmio, decodes: () => boolean) {
    super();
    this.target = target;
    this.decodes = decodes;
  }

  read(offset: number, size: AccessSize): number {
    if (!this.decodes()) {
      this.high = size === 8 ? 0xffff_ffff : 0;
      return size === 1 ? 0xff : size === 2 ? 0xffff : 0xffff_ffff;
    }
    const value = this.target.read(offset, size);
    this.high = this.target.high;
    return value;
  }

  write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    if (this.decodes()) this.target.write(offset, size, lo, hi);
  }

  override write64(offset: number, bytes: Uint8Array): void {
    if (this.decodes()) this.target.write64(offset, bytes);
  }

  override enqueue64(offset: number, bytes: Uint8Array): EnqueueResult {
    return this.decodes() ? this.target.enqueue64(offset, bytes) : 'retry';
  }
}
