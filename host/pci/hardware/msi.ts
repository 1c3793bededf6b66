/**
 * MSI: the capability's registers (PCIe 6.0 section 7.7.1) with 64-bit address, and when a vector's message is sent,
 * held back by a per-vector mask, or sent late after unmasking (section 6.1.4). The data of vector n is the message
 * data with its low bits replaced by n. Left out: 32-bit addresses, extended message data.
 */
import { assert } from '../../../sim/assert.js';
import { WORD } from '../../../sim/address.js';
import {
  PCI_CAP_ID_MSI, PCI_MSI_ADDRESS_HI, PCI_MSI_ADDRESS_LO, PCI_MSI_DATA_64, PCI_MSI_FLAGS, PCI_MSI_FLAGS_64BIT, PCI_MSI_FLAGS_ENABLE,
  PCI_MSI_FLAGS_MASKBIT, PCI_MSI_FLAGS_QSIZE, PCI_MSI_MASK_64, PCI_MSI_PENDING_64, PCI_MSI_SIZEOF, PCI_MSI_UNMASKABLE_64_SIZEOF,
} from '../spec/index.js';
import type { ConfigSpace } from './config-space.js';

export interface MsiOptions {
  /** Multiple Message Capable. */
  readonly vectors: 1 | 2 | 4 | 8 | 16 | 32;
  /** Per-vector masking. */
  readonly maskable?: boolean;
}

export class Msi {
  readonly offset: number;
  readonly vectors: number;
  readonly maskable: boolean;
  /** Vectors raised while MSI was off: nobody hears them. */
  dropped = 0;
  /** Takes the vectors instead of messages on the fabric: a function that is served to somebody else's machine. */
  deliver: ((vector: number) => void) | undefined;
  private readonly config: ConfigSpace;
  private readonly send: (address: number, data: number) => void;
  private readonly ignoreMask: boolean;

  constructor(config: ConfigSpace, options: MsiOptions, send: (address: number, data: number) => void, ignoreMask = false) {
    const log = Math.log2(options.vectors);
    assert(Number.isInteger(log) && log >= 0 && log <= 5, `${options.vectors} MSI vectors`);
    this.config = config;
    this.vectors = options.vectors;
    this.maskable = options.maskable ?? false;
    this.send = send;
    this.ignoreMask = ignoreMask;
    const at = config.addCapability(PCI_CAP_ID_MSI, this.maskable ? PCI_MSI_SIZEOF : PCI_MSI_UNMASKABLE_64_SIZEOF);
    this.offset = at;
    const capable = PCI_MSI_FLAGS_64BIT | (this.maskable ? PCI_MSI_FLAGS_MASKBIT : 0) | (log << 1);
    config.define(at + PCI_MSI_FLAGS, 2, capable, { rw: PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE });
    config.define(at + PCI_MSI_ADDRESS_LO, 4, 0, { rw: 0xffff_fffc });
    config.define(at + PCI_MSI_ADDRESS_HI, 4, 0, { rw: 0xffff_ffff });
    config.define(at + PCI_MSI_DATA_64, 2, 0, { rw: 0xffff });
    config.onWrite(at + PCI_MSI_FLAGS, 2, () => this.flush());
    if (!this.maskable) return;
    config.define(at + PCI_MSI_MASK_64, 4, 0, { rw: 2 ** options.vectors - 1 });
    config.define(at + PCI_MSI_PENDING_64, 4, 0);
    config.onWrite(at + PCI_MSI_MASK_64, 4, () => this.flush());
  }

  get enabled(): boolean {
    return (this.flags & PCI_MSI_FLAGS_ENABLE) !== 0;
  }

  /** Vectors that software allocated (Multiple Message Enable); never more than there are. */
  get allocated(): number {
    return Math.min(2 ** ((this.flags & PCI_MSI_FLAGS_QSIZE) >> 4), this.vectors);
  }

  /** The function wants to interrupt. With fewer vectors than it has, they are used in turn: vector modulo those. */
  raise(vector: number): void {
    assert(vector >= 0 && vector < this.vectors, `MSI vector ${vector} of ${this.vectors}`);
    if (!this.enabled) {
      this.dropped++;
      return;
    }
    const sent = vector % this.allocated;
    if (this.masked(sent)) this.config.setBits(this.offset + PCI_MSI_PENDING_64, 4, 1 << sent, true);
    else this.message(sent);
  }

  isPending(vector: number): boolean {
    return this.maskable && (this.config.get(this.offset + PCI_MSI_PENDING_64, 4) & (1 << vector)) !== 0;
  }

  private get flags(): number {
    return this.config.get(this.offset + PCI_MSI_FLAGS, 2);
  }

  private masked(vector: number): boolean {
    return this.maskable && !this.ignoreMask && (this.config.get(this.offset + PCI_MSI_MASK_64, 4) & (1 << vector)) !== 0;
  }

  private message(vector: number): void {
    if (this.deliver !== undefined) {
      this.deliver(vector);
      return;
    }
    const { config, offset } = this;
    const data = config.get(offset + PCI_MSI_DATA_64, 2);
    this.send(config.get(offset + PCI_MSI_ADDRESS_HI, 4) * WORD + config.get(offset + PCI_MSI_ADDRESS_LO, 4), (data & ~(this.allocated - 1)) | vector);
  }

  /** Sends what waited for its mask to go. */
  private flush(): void {
    if (!this.maskable || !this.enabled) return;
    for (let vector = 0; vector < this.allocated; vector++) {
      if (!this.isPending(vector) || this.masked(vector)) continue;
      this.config.setBits(this.offset + PCI_MSI_PENDING_64, 4, 1 << vector, false);
      this.message(vector);
    }
  }
}
