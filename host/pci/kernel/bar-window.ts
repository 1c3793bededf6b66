/**
 * `ioremap` of a BAR: CPU accesses to the bus address that enumeration assigned, decoded anew whenever the bus
 * changes. When nobody claims the address (memory decode off, function removed) reads give all ones, writes are
 * lost, an enqueue is not accepted.
 */
import type { AccessSize, EnqueueResult, Mmio } from '../../../sim/mmio.js';
import type { SystemBus, Window } from '../../system-bus.js';

export class BarWindow implements Mmio {
  high = 0;
  private readonly systemBus: SystemBus;
  private readonly start: number;
  private window: Window | undefined;
  private generation = -1;

  constructor(systemBus: SystemBus, start: number) {
    this.systemBus = systemBus;
    this.start = start;
  }

  read(offset: number, size: AccessSize): number {
    const window = this.decode();
    if (window === undefined) {
      this.high = size === 8 ? 0xffff_ffff : 0;
      return size === 1 ? 0xff : size === 2 ? 0xffff : 0xffff_ffff;
    }
    const value = window.mmio.read(this.start - window.start + offset, size);
    this.high = window.mmio.high;
    return value;
  }

  write(offset: number, size: AccessSize, lo: number, hi?: number): void {
    const window = this.decode();
    window?.mmio.write(this.start - window.start + offset, size, lo, hi);
  }

  write64(offset: number, bytes: Uint8Array): void {
    const window = this.decode();
    window?.mmio.write64(this.start - window.start + offset, bytes);
  }

  enqueue64(offset: number, bytes: Uint8Array): EnqueueResult {
    const window = this.decode();
    return window === undefined ? 'retry' : window.mmio.enqueue64(this.start - window.start + offset, bytes);
  }

  private decode(): Window | undefined {
    if (this.generation !== this.systemBus.generation) {
      this.window = this.systemBus.find(this.start);
      this.generation = this.systemBus.generation;
    }
    return this.window;
  }
}
