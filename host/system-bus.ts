/**
 * Physical addresses that are not RAM: register windows (BARs, IOMMU registers) and the interrupt window. The CPU
 * and the root complex both decode through it.
 */
import { assert } from '../sim/assert.js';
import { hex } from '../sim/address.js';
import type { Mmio } from '../sim/mmio.js';

export interface Window {
  readonly start: number;
  readonly end: number;
  readonly name: string;
  readonly mmio: Mmio;
}

/** Message-signalled interrupts of x86 are writes to this range (Intel SDM vol. 3, "Message Signalled Interrupts"). */
export const X86_INTERRUPT_WINDOW = { start: 0xfee0_0000, end: 0xfef0_0000 } as const;

export class SystemBus {
  /** Changes with every claim and release, so that a reader may keep what `find` returned. */
  generation = 0;
  private readonly windows: Window[] = [];

  /** Claims [start, start + size). Overlap with another window is a bug of the caller. */
  claim(start: number, sizeBytes: number, name: string, mmio: Mmio): Window {
    const window = { start, end: start + sizeBytes, name, mmio };
    for (const other of this.windows) {
      assert(window.end <= other.start || window.start >= other.end, `${name} at ${hex(start)} overlaps ${other.name} at ${hex(other.start)}`);
    }
    this.generation++;
    this.windows.push(window);
    this.windows.sort((a, b) => a.start - b.start);
    return window;
  }

  release(window: Window): void {
    const index = this.windows.indexOf(window);
    assert(index >= 0, `${window.name} released twice`);
    this.generation++;
    this.windows.splice(index, 1);
  }

  find(address: number): Window | undefined {
    return this.windows.find((window) => address >= window.start && address < window.end);
  }

  /** Register windows in address order. */
  list(): readonly Window[] {
    return this.windows;
  }
}
