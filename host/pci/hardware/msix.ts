/**
 * MSI-X: the table and the pending bit array as registers in a BAR (PCIe 6.0 section 7.7.2), and when a vector's
 * message is sent, held back by a mask, or sent late after unmasking (section 6.1.4.3).
 */
import { assert } from '../../../sim/assert.js';
import { PlainMmio, type AccessSize, type EnqueueResult, type Mmio } from '../../../sim/mmio.js';
import {
  PCI_CAP_ID_MSIX, PCI_CAP_MSIX_SIZEOF, PCI_MSIX_ENTRY_CTRL_MASKBIT, PCI_MSIX_ENTRY_SIZE, PCI_MSIX_FLAGS,
  PCI_MSIX_FLAGS_ENABLE, PCI_MSIX_FLAGS_MASKALL, PCI_MSIX_PBA, PCI_MSIX_TABLE,
} from '../spec/index.js';
import type { ConfigSpace } from './config-space.js';

export interface MsixOptions {
  /** 1..2048 */
  readonly vectors: number;
  readonly tableBar: number;
  readonly tableOffset: number;
  /** The BAR of the pending bits; the table's unless given. */
  readonly pbaBar?: number;
  readonly pbaOffset: number;
}

const WORDS_PER_ENTRY = PCI_MSIX_ENTRY_SIZE / 4;

export class Msix {
  readonly offset: number;
  readonly options: Required<MsixOptions>;
  readonly tableBytes: number;
  readonly pbaBytes: number;
  /** Address low, address high, data, vector control of each vector. */
  readonly table: Uint32Array;
  readonly pending: Uint32Array;
  enabled = false;
  functionMasked = false;
  /** Vectors raised while MSI-X was off: nobody hears them. */
  dropped = 0;
  /** Takes the vectors instead of messages on the fabric: a function that is served to somebody else's machine. */
  deliver: ((vector: number) => void) | undefined;
  private readonly config: ConfigSpace;
  private readonly send: (address: number, data: number) => void;
  private readonly ignoreMask: boolean;

  constructor(config: ConfigSpace, options: MsixOptions, send: (address: number, data: number) => void, ignoreMask = false) {
    assert(options.vectors >= 1 && options.vectors <= 2048, `${options.vectors} MSI-X vectors`);
    this.config = config;
    this.options = { pbaBar: options.tableBar, ...options };
    this.send = send;
    this.ignoreMask = ignoreMask;
    this.tableBytes = options.vectors * PCI_MSIX_ENTRY_SIZE;
    this.pbaBytes = Math.ceil(options.vectors / 64) * 8;
    this.table = new Uint32Array(options.vectors * WORDS_PER_ENTRY);
    this.pending = new Uint32Array(this.pbaBytes / 4);
    const at = config.addCapability(PCI_CAP_ID_MSIX, PCI_CAP_MSIX_SIZEOF);
    this.offset = at;
    config.define(at + PCI_MSIX_FLAGS, 2, options.vectors - 1, { rw: PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL });
    config.define(at + PCI_MSIX_TABLE, 4, options.tableOffset | options.tableBar);
    config.define(at + PCI_MSIX_PBA, 4, options.pbaOffset | this.options.pbaBar);
    config.onWrite(at + PCI_MSIX_FLAGS, 2, () => this.readControl());
    this.clearTable();
  }

  /** The function wants to interrupt: sends the message, or notes it as pending under a mask. */
  raise(vector: number): void {
    assert(vector >= 0 && vector < this.options.vectors, `MSI-X vector ${vector} of ${this.options.vectors}`);
    if (!this.enabled) {
      this.dropped++;
    } else if (!this.ignoreMask && this.masked(vector)) {
      this.pending[vector >>> 5]! |= 1 << (vector & 31);
    } else {
      this.message(vector);
    }
  }

  isPending(vector: number): boolean {
    return (this.pending[vector >>> 5]! & (1 << (vector & 31))) !== 0;
  }

  /** After the function's configuration bytes were reset: all vectors masked (section 7.7.2.9). */
  functionReset(): void {
    this.enabled = false;
    this.functionMasked = false;
    this.clearTable();
  }

  readTable(offset: number): number {
    return this.table[offset >>> 2] ?? 0;
  }

  writeTable(offset: number, value: number): void {
    const word = offset >>> 2;
    this.table[word] = word % WORDS_PER_ENTRY === 3 ? value & PCI_MSIX_ENTRY_CTRL_MASKBIT : value;
    this.flush(word / WORDS_PER_ENTRY | 0);
  }

  private masked(vector: number): boolean {
    return this.functionMasked || (this.table[vector * WORDS_PER_ENTRY + 3]! & PCI_MSIX_ENTRY_CTRL_MASKBIT) !== 0;
  }

  private message(vector: number): void {
    if (this.deliver !== undefined) {
      this.deliver(vector);
      return;
    }
    const at = vector * WORDS_PER_ENTRY;
    this.send(this.table[at + 1]! * 0x1_0000_0000 + ((this.table[at]! & ~3) >>> 0), this.table[at + 2]!);
  }

  /** Sends a vector that waited for its mask to go. */
  private flush(vector: number): void {
    if (!this.enabled || this.masked(vector) || !this.isPending(vector)) return;
    this.pending[vector >>> 5]! &= ~(1 << (vector & 31));
    this.message(vector);
  }

  private readControl(): void {
    const flags = this.config.get(this.offset + PCI_MSIX_FLAGS, 2);
    this.enabled = (flags & PCI_MSIX_FLAGS_ENABLE) !== 0;
    this.functionMasked = (flags & PCI_MSIX_FLAGS_MASKALL) !== 0;
    for (let vector = 0; vector < this.options.vectors; vector++) this.flush(vector);
  }

  private clearTable(): void {
    this.table.fill(0);
    for (let i = 3; i < this.table.length; i += WORDS_PER_ENTRY) this.table[i] = PCI_MSIX_ENTRY_CTRL_MASKBIT;
    this.pending.fill(0);
  }
}

/** A BAR that holds the MSI-X table or pending bits among the device's own registers. */
export class MsixWindow extends PlainMmio {
  private readonly msix: Msix;
  private readonly device: Mmio | undefined;
  /** Half-open ranges; empty when that structure is in another BAR. */
  private readonly tableStart: number;
  private readonly tableEnd: number;
  private readonly pbaStart: number;
  private readonly pbaEnd: number;

  constructor(msix: Msix, bar: number, device: Mmio | undefined) {
    super();
    this.msix = msix;
    this.device = device;
    const { tableBar, tableOffset, pbaBar, pbaOffset } = msix.options;
    this.tableStart = tableOffset;
    this.tableEnd = tableBar === bar ? tableOffset + msix.tableBytes : tableOffset;
    this.pbaStart = pbaOffset;
    this.pbaEnd = pbaBar === bar ? pbaOffset + msix.pbaBytes : pbaOffset;
  }

  read(offset: number, size: AccessSize): number {
    this.high = 0;
    if (offset >= this.tableStart && offset < this.tableEnd) {
      if (size === 8) this.high = this.msix.readTable(offset - this.tableStart + 4);
      return narrow(this.msix.readTable(offset - this.tableStart), offset, size);
    }
    if (offset >= this.pbaStart && offset < this.pbaEnd) {
      const word = (offset - this.pbaStart) >>> 2;
      if (size === 8) this.high = this.msix.pending[word + 1] ?? 0;
      return narrow(this.msix.pending[word]!, offset, size);
    }
    if (this.device === undefined) {
      this.high = size === 8 ? 0xffff_ffff : 0;
      return size === 1 ? 0xff : size === 2 ? 0xffff : 0xffff_ffff;
    }
    const value = this.device.read(offset, size);
    this.high = this.device.high;
    return value;
  }

  write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    if (offset >= this.tableStart && offset < this.tableEnd) {
      // only aligned 4- and 8-byte accesses are defined (section 7.7.2); others are dropped
      if (size < 4) return;
      this.msix.writeTable(offset - this.tableStart, lo);
      if (size === 8) this.msix.writeTable(offset - this.tableStart + 4, hi);
      return;
    }
    if (offset >= this.pbaStart && offset < this.pbaEnd) return;
    this.device?.write(offset, size, lo, hi);
  }

  override write64(offset: number, bytes: Uint8Array): void {
    if (this.inMsix(offset)) super.write64(offset, bytes);
    else this.device?.write64(offset, bytes);
  }

  override enqueue64(offset: number, bytes: Uint8Array): EnqueueResult {
    return this.inMsix(offset) || this.device === undefined ? 'retry' : this.device.enqueue64(offset, bytes);
  }

  private inMsix(offset: number): boolean {
    return (offset >= this.tableStart && offset < this.tableEnd) || (offset >= this.pbaStart && offset < this.pbaEnd);
  }
}

function narrow(word: number, offset: number, size: AccessSize): number {
  if (size >= 4) return word >>> 0;
  return (word >>> (8 * (offset & 3))) & (size === 1 ? 0xff : 0xffff);
}
