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
    const at = this.firstBehind(start);
    // they are disjoint: only the neighbours can overlap
    for (const other of [this.windows[at - 1], this.windows[at]]) {
      if (other === undefined || window.end <= other.start || window.start >= other.end) continue;
      assert(false, `${name} at ${hex(start)} overlaps ${other.name} at ${hex(other.start)}`);
    }
    this.generation++;
    this.windows.splice(at, 0, window);
    return window;
  }

  release(window: Window): void {
    const index = this.windows.indexOf(window);
    assert(index >= 0, `${window.name} released twice`);
    this.generation++;
    this.windows.splice(index, 1);
  }

  find(address: number): Window | undefined {
    const window = this.windows[this.firstBehind(address) - 1];
    return window !== undefined && address < window.end ? window : undefined;
  }

  /** Index of the first window that starts above `address`. */
  private firstBehind(address: number): number {
    let from = 0, to = this.windows.length;
    while (from < to) {
      const middle = (from + to) >> 1;
      if (this.windows[middle]!.start <= address) from = middle + 1;
      else to = middle;
    }
    return from;
  }

  /** Register windows in address order. */
  list(): readonly Window[] {
    return this.windows;
  }
}
