/**
 * Base address registers: sizing (PCIe Base 6.0 section 7.5.1.2.1: write all ones, read back which address bits
 * exist) and programming. Used for a function's own BARs and for the VF BARs of its SR-IOV capability. Left out:
 * I/O BARs (reported as absent) and expansion ROMs.
 */
import { WORD } from '../../../sim/address.js';
import {
  PCI_BASE_ADDRESS_MEM_MASK, PCI_BASE_ADDRESS_MEM_PREFETCH, PCI_BASE_ADDRESS_MEM_TYPE_64, PCI_BASE_ADDRESS_MEM_TYPE_MASK,
  PCI_BASE_ADDRESS_SPACE_IO,
} from '../spec/index.js';
import type { AddressRange } from './address-range.js';
import type { ConfigWindow } from './pci-device.js';

/** A memory BAR and what enumeration gave it. */
export interface BarResource {
  readonly index: number;
  /** Config offset of its (low) register. */
  readonly register: number;
  /** Of one function's BAR; a power of two, also its alignment. */
  readonly sizeBytes: number;
  /** How many of them lie back to back: 1, or TotalVFs for a VF BAR. */
  readonly count: number;
  readonly is64: boolean;
  readonly prefetchable: boolean;
  /** Undefined while no address is assigned. */
  start: number | undefined;
  /** What `start` was taken from. */
  range: AddressRange | undefined;
}

/**
 * Sizes up to `slots` BARs from config offset `first`; the registers hold their old value afterwards. The caller has
 * switched memory decode off.
 */
export function sizeBars(config: ConfigWindow, first: number, slots: number, count: number): BarResource[] {
  const found: BarResource[] = [];
  for (let index = 0; index < slots; index++) {
    const register = first + index * 4;
    const [mask, old] = probe(config, register);
    if (mask === 0 || (old & PCI_BASE_ADDRESS_SPACE_IO) !== 0 || (mask & PCI_BASE_ADDRESS_SPACE_IO) !== 0) continue;
    const is64 = (mask & PCI_BASE_ADDRESS_MEM_TYPE_MASK) === PCI_BASE_ADDRESS_MEM_TYPE_64;
    const lo = (mask & PCI_BASE_ADDRESS_MEM_MASK) >>> 0;
    let sizeBytes = lowestBit(lo);
    if (is64) {
      if (index === slots - 1) break; // no register for the upper half
      const [hi] = probe(config, register + 4);
      if (lo === 0) sizeBytes = lowestBit(hi) * WORD;
    }
    if (sizeBytes > 0) {
      const prefetchable = (mask & PCI_BASE_ADDRESS_MEM_PREFETCH) !== 0;
      found.push({ index, register, sizeBytes, count, is64, prefetchable, start: undefined, range: undefined });
    }
    if (is64) index++;
  }
  return found;
}

/** Writes the assigned address, or 0 when there is none. */
export function programBar(config: ConfigWindow, bar: BarResource): void {
  const start = bar.start ?? 0;
  config.write(bar.register, 4, start >>> 0);
  if (bar.is64) config.write(bar.register + 4, 4, Math.floor(start / WORD));
}

function probe(config: ConfigWindow, register: number): [mask: number, old: number] {
  const old = config.read(register, 4);
  config.write(register, 4, 0xffff_ffff);
  const mask = config.read(register, 4);
  config.write(register, 4, old);
  return mask === 0xffff_ffff && old === 0xffff_ffff ? [0, 0] : [mask, old];
}

function lowestBit(word: number): number {
  return (word & -word) >>> 0;
}
