/**
 * A region of a device as a BAR of the guest (QEMU: hw/vfio/region.c, `vfio_region_ops`): the parts that the VMM has
 * mapped are reached by the virtual CPU itself, everything else leaves the guest and becomes pread and pwrite of the
 * device file. What the kernel refuses reads as ones and is lost as a write.
 */
import { isErrno } from '../../sim/errno.js';
import { PlainMmio, type AccessSize, type EnqueueResult, type Mmio } from '../../sim/mmio.js';
import type { DeviceHandle } from '../../vfio/client/index.js';
import type { VmmCounters } from './counters.js';

/** A mapped part of a region, in bytes from the region's start. */
export interface MappedPart {
  readonly start: number;
  readonly end: number;
  readonly mmio: Mmio;
}

export interface RegionWindowOptions {
  readonly device: DeviceHandle;
  readonly region: number;
  readonly sizeBytes: number;
  readonly mapped: readonly MappedPart[];
  readonly counters: VmmCounters;
  /** An access that trapped has ended. */
  readonly onTrap?: () => void;
}

export class RegionWindow extends PlainMmio {
  private readonly options: RegionWindowOptions;
  private mapped: readonly MappedPart[];
  private closed = false;

  constructor(options: RegionWindowOptions) {
    super();
    this.options = options;
    this.mapped = options.mapped;
  }

  /** The device has been closed: nobody answers any more. */
  close(): void {
    this.closed = true;
    this.mapped = [];
  }

  read(offset: number, size: AccessSize): number {
    const part = this.partAt(offset);
    if (part !== undefined) {
      const value = part.mmio.read(offset - part.start, size);
      this.high = part.mmio.high;
      return value;
    }
    return this.pread(offset, size);
  }

  write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    const part = this.partAt(offset);
    if (part !== undefined) {
      part.mmio.write(offset - part.start, size, lo, hi);
      return;
    }
    this.pwrite(offset, size, lo, hi);
  }

  override write64(offset: number, bytes: Uint8Array): void {
    const part = this.partAt(offset);
    if (part === undefined) super.write64(offset, bytes);
    else part.mmio.write64(offset - part.start, bytes);
  }

  /** Where the region is not mapped no queue takes anything: a VMM cannot carry out an ENQCMD by pwrite. */
  override enqueue64(offset: number, bytes: Uint8Array): EnqueueResult {
    const part = this.partAt(offset);
    return part === undefined ? 'retry' : part.mmio.enqueue64(offset - part.start, bytes);
  }

  private partAt(offset: number): MappedPart | undefined {
    for (const part of this.mapped) if (offset >= part.start && offset < part.end) return part;
    return undefined;
  }

  private pread(offset: number, size: AccessSize): number {
    const { device, region, counters, onTrap } = this.options;
    this.high = size === 8 ? 0xffff_ffff : 0;
    const ones = size === 1 ? 0xff : size === 2 ? 0xffff : 0xffff_ffff;
    counters.traps++;
    if (this.closed) return ones;
    counters.regionReads++;
    try {
      const value = device.readValue(region, offset, size);
      this.high = device.high;
      return value;
    } catch (error) {
      if (!isErrno(error)) throw error;
      return ones;
    } finally {
      onTrap?.();
    }
  }

  private pwrite(offset: number, size: AccessSize, lo: number, hi: number): void {
    const { device, region, counters, onTrap } = this.options;
    counters.traps++;
    if (this.closed) return;
    counters.regionWrites++;
    try {
      device.writeValue(region, offset, size, lo, hi);
    } catch (error) {
      if (!isErrno(error)) throw error;
    } finally {
      onTrap?.();
    }
  }
}
