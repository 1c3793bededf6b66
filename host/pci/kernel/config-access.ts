/**
 * How the kernel reaches configuration space: by segment, bus, device and function, as ECAM does (PCIe Base 6.0
 * section 7.2.2). A root complex implements it, and a virtual machine monitor does for a guest. Nobody answers:
 * reads give all ones, writes are lost (section 2.3.2, Configuration Request with UR).
 */
import type { Mmio } from '../../../sim/mmio.js';
import type { ConfigWindow } from './pci-device.js';

export type ConfigSize = 1 | 2 | 4;

export interface ConfigAccess {
  /** Unsigned value; `offset` is a multiple of `size`, below 4096. */
  read(segment: number, bus: number, devfn: number, offset: number, size: ConfigSize): number;
  write(segment: number, bus: number, devfn: number, offset: number, size: ConfigSize, value: number): void;
}

/** Configuration space of one segment, as a root complex offers it. */
export interface SegmentConfig {
  configRead(bus: number, devfn: number, offset: number, size: ConfigSize): number;
  configWrite(bus: number, devfn: number, offset: number, size: ConfigSize, value: number): void;
}

/** Several segments side by side, by number. */
export class SegmentAccess implements ConfigAccess {
  private readonly segments: ReadonlyMap<number, SegmentConfig>;

  constructor(segments: ReadonlyMap<number, SegmentConfig>) {
    this.segments = segments;
  }

  read(segment: number, bus: number, devfn: number, offset: number, size: ConfigSize): number {
    return this.segments.get(segment)?.configRead(bus, devfn, offset, size) ?? allOnes(size);
  }

  write(segment: number, bus: number, devfn: number, offset: number, size: ConfigSize, value: number): void {
    this.segments.get(segment)?.configWrite(bus, devfn, offset, size, value);
  }
}

/**
 * One segment through its ECAM window (PCIe 6.0 section 7.2.2: offset = bus << 20 | devfn << 12 | register), the
 * way of a guest and of every kernel that found an MCFG table.
 */
export class EcamAccess implements ConfigAccess {
  private readonly window: Mmio;
  private readonly segment: number;
  private readonly firstBus: number;
  private readonly lastBus: number;

  constructor(window: Mmio, segment: number, firstBus: number, lastBus: number) {
    this.window = window;
    this.segment = segment;
    this.firstBus = firstBus;
    this.lastBus = lastBus;
  }

  read(segment: number, bus: number, devfn: number, offset: number, size: ConfigSize): number {
    return this.reaches(segment, bus) ? this.window.read(this.at(bus, devfn, offset), size) : allOnes(size);
  }

  write(segment: number, bus: number, devfn: number, offset: number, size: ConfigSize, value: number): void {
    if (this.reaches(segment, bus)) this.window.write(this.at(bus, devfn, offset), size, value);
  }

  private reaches(segment: number, bus: number): boolean {
    return segment === this.segment && bus >= this.firstBus && bus <= this.lastBus;
  }

  private at(bus: number, devfn: number, offset: number): number {
    return (bus - this.firstBus) * 0x10_0000 + (devfn << 12) + offset;
  }
}

/** What a read of `size` bytes gives when nobody answers. */
export function allOnes(size: ConfigSize): number {
  return size === 4 ? 0xffff_ffff : size === 2 ? 0xffff : 0xff;
}

/** One function's configuration space. */
export class FunctionConfig implements ConfigWindow {
  /** The kernel knows that the function is gone and asks the bus no more. */
  disconnected = false;
  private readonly access: ConfigAccess;
  private readonly segment: number;
  private readonly bus: number;
  private readonly devfn: number;

  constructor(access: ConfigAccess, segment: number, bus: number, devfn: number) {
    this.access = access;
    this.segment = segment;
    this.bus = bus;
    this.devfn = devfn;
  }

  read(offset: number, size: ConfigSize): number {
    return this.disconnected ? allOnes(size) : this.access.read(this.segment, this.bus, this.devfn, offset, size);
  }

  write(offset: number, size: ConfigSize, value: number): void {
    if (!this.disconnected) this.access.write(this.segment, this.bus, this.devfn, offset, size, value);
  }
}

/** Sets and clears bits of a 16-bit register. */
export function updateWord(config: ConfigWindow, offset: number, clear: number, set: number): void {
  config.write(offset, 2, ((config.read(offset, 2) & ~clear) | set) & 0xffff);
}
