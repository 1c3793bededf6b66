/**
 * BARs of a function for its user (drivers/vfio/pci/vfio_pci_rdwr.c, vfio_pci_core.c): reads and writes by the kernel,
 * and windows for the user's own CPU. Both end while memory is not reachable (memory space disabled, D3hot, a reset):
 * reads and writes are refused, windows give all ones and lose what is written, for their pages are taken away.
 * Linux sends SIGBUS to who touches such a page. Left out: write combining, BARs smaller than a page.
 */
import { PAGE_SIZE } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import { load32, loadSized, store32, storeSized } from '../../sim/little-endian.js';
import type { AccessSize, EnqueueResult, Mmio } from '../../sim/mmio.js';
import { PCI_CAP_ID_MSIX, PCI_MSIX_ENTRY_SIZE, PCI_MSIX_TABLE, PCI_MSIX_TABLE_BIR, PCI_MSIX_TABLE_OFFSET } from '../../host/pci/spec/index.js';
import type { PciDevice } from '../../host/pci/kernel/pci-device.js';

/** One state for all windows of one open: looked at on every access. */
interface Gate {
  open: boolean;
}

export class BarRegions {
  private readonly device: PciDevice;
  private readonly mapped: (Mmio | undefined)[] = [];
  /** Where the MSI-X table lies: the kernel writes it, and nobody through `read` and `write`. */
  private readonly msixBar: number | undefined;
  private readonly msixStart: number = 0;
  private readonly msixEnd: number = 0;
  private readonly gate: Gate = { open: false };

  constructor(device: PciDevice) {
    this.device = device;
    const msix = device.findCapability(PCI_CAP_ID_MSIX);
    if (msix === undefined) return;
    const table = device.config.read(msix + PCI_MSIX_TABLE, 4);
    this.msixBar = table & PCI_MSIX_TABLE_BIR;
    this.msixStart = (table & PCI_MSIX_TABLE_OFFSET) >>> 0;
    this.msixEnd = this.msixStart + device.msixVectors * PCI_MSIX_ENTRY_SIZE;
  }

  /** False: accesses through the kernel are EIO and windows are dead. */
  set reachable(reachable: boolean) {
    this.gate.open = reachable;
  }

  get reachable(): boolean {
    return this.gate.open;
  }

  /** 0 for a BAR that is not implemented or has no address. */
  sizeOf(bar: number): number {
    return this.device.resource(bar)?.sizeBytes ?? 0;
  }

  /** Whole pages can be mapped. */
  mappable(bar: number): boolean {
    return this.sizeOf(bar) >= PAGE_SIZE;
  }

  hasMsixTable(bar: number): boolean {
    return bar === this.msixBar;
  }

  /** Bytes read, in the largest aligned accesses; fewer at the end of the BAR. EINVAL no such BAR or beyond it, EIO not reachable. */
  read(bar: number, offset: number, target: Uint8Array): number {
    const length = this.checkAccess(bar, offset, target.length);
    const mmio = this.mmio(bar);
    for (let at = 0; at < length; ) {
      const open = this.openBytes(bar, offset + at, length - at);
      if (open <= 0) {
        target.fill(0xff, at, at - open);
        at -= open;
        continue;
      }
      const size = accessSize(offset + at, open);
      const lo = mmio.read(offset + at, size);
      storeSized(target, at, size === 8 ? 4 : size, lo);
      if (size === 8) store32(target, at + 4, mmio.high);
      at += size;
    }
    return length;
  }

  /** As `read`; writes to the MSI-X table are dropped. */
  write(bar: number, offset: number, source: Uint8Array): number {
    const length = this.checkAccess(bar, offset, source.length);
    const mmio = this.mmio(bar);
    for (let at = 0; at < length; ) {
      const open = this.openBytes(bar, offset + at, length - at);
      if (open <= 0) {
        at -= open;
        continue;
      }
      const size = accessSize(offset + at, open);
      if (size === 8) mmio.write(offset + at, 8, load32(source, at), load32(source, at + 4));
      else mmio.write(offset + at, size, loadSized(source, at, size));
      at += size;
    }
    return length;
  }

  /**
   * The window of [offset, offset + size) of a BAR. The MSI-X table may be in it: which interrupts a function can send
   * is decided by interrupt remapping, not by who writes the table. EINVAL not whole pages, or beyond the BAR.
   */
  mmap(bar: number, offset: number, sizeBytes: number): Mmio {
    const size = this.sizeOf(bar);
    if (!this.mappable(bar)) throw new Errno('EINVAL', `BAR ${bar} of ${this.device.name} cannot be mapped`);
    const whole = sizeBytes > 0 && offset % PAGE_SIZE === 0 && sizeBytes % PAGE_SIZE === 0;
    if (!whole || offset + sizeBytes > size) throw new Errno('EINVAL', `[${offset}, ${offset + sizeBytes}) are not pages of BAR ${bar} of ${this.device.name}, which has ${size} bytes`);
    return new RevocableWindow(this.mmio(bar), this.gate, offset, sizeBytes);
  }

  private mmio(bar: number): Mmio {
    return (this.mapped[bar] ??= this.device.ioremap(bar));
  }

  private checkAccess(bar: number, offset: number, length: number): number {
    const size = this.sizeOf(bar);
    if (size === 0) throw new Errno('EINVAL', `${this.device.name} has no BAR ${bar}`);
    if (offset >= size) throw new Errno('EINVAL', `offset ${offset} is beyond BAR ${bar} of ${this.device.name}, which has ${size} bytes`);
    if (!this.gate.open) throw new Errno('EIO', `memory space of ${this.device.name} is disabled or the function is being reset`);
    return Math.min(length, size - offset);
  }

  /** Bytes from `at` that the hardware is asked for; not positive: minus the bytes that belong to the MSI-X table. */
  private openBytes(bar: number, at: number, length: number): number {
    if (bar !== this.msixBar || at >= this.msixEnd) return length;
    if (at < this.msixStart) return Math.min(length, this.msixStart - at);
    return -Math.min(length, this.msixEnd - at);
  }
}

/** What the user's CPU sees of a BAR, until the driver takes it away. */
class RevocableWindow implements Mmio {
  high = 0;
  private readonly mmio: Mmio;
  private readonly gate: Gate;
  private readonly start: number;
  private readonly sizeBytes: number;

  constructor(mmio: Mmio, gate: Gate, start: number, sizeBytes: number) {
    this.mmio = mmio;
    this.gate = gate;
    this.start = start;
    this.sizeBytes = sizeBytes;
  }

  read(offset: number, size: AccessSize): number {
    if (!this.gate.open || offset + size > this.sizeBytes) {
      this.high = size === 8 ? 0xffff_ffff : 0;
      return size === 1 ? 0xff : size === 2 ? 0xffff : 0xffff_ffff;
    }
    const value = this.mmio.read(this.start + offset, size);
    this.high = this.mmio.high;
    return value;
  }

  write(offset: number, size: AccessSize, lo: number, hi?: number): void {
    if (this.gate.open && offset + size <= this.sizeBytes) this.mmio.write(this.start + offset, size, lo, hi);
  }

  write64(offset: number, bytes: Uint8Array): void {
    if (this.gate.open && offset + 64 <= this.sizeBytes) this.mmio.write64(this.start + offset, bytes);
  }

  enqueue64(offset: number, bytes: Uint8Array): EnqueueResult {
    return this.gate.open && offset + 64 <= this.sizeBytes ? this.mmio.enqueue64(this.start + offset, bytes) : 'retry';
  }
}

function accessSize(offset: number, length: number): AccessSize {
  if (length >= 8 && offset % 8 === 0) return 8;
  if (length >= 4 && offset % 4 === 0) return 4;
  return length >= 2 && offset % 2 === 0 ? 2 : 1;
}
