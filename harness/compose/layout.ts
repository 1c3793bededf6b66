/** Where things lie in a machine's physical address space: RAM around the hole below 4 GiB, registers in the hole. */
import type { MemoryRange } from '../../sim/memory.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;

export interface MachineLayout {
  readonly ram: readonly MemoryRange[];
  /** RAM the kernel may hand out; the first MiB is the firmware's. */
  readonly usable: readonly MemoryRange[];
  /** 32-bit window for BARs. */
  readonly pciMemory: { readonly start: number; readonly sizeBytes: number };
  /** Window for 64-bit prefetchable BARs. */
  readonly pciPrefetchable: { readonly start: number; readonly sizeBytes: number };
  /** Registers of the remapping unit. */
  readonly iommuRegisters: number;
  /** Where firmware leaves its tables. */
  readonly firmwareTables: number;
}

/** RAM below the hole ends here at the latest. */
const HOLE = 0xc000_0000;

export function layoutFor(memoryBytes: number): MachineLayout {
  const low = Math.min(memoryBytes, HOLE);
  const high = memoryBytes - low;
  const above: MemoryRange[] = high > 0 ? [{ start: 4 * GIB, end: 4 * GIB + high }] : [];
  const top = Math.max(4 * GIB, 4 * GIB + high);
  return {
    ram: [{ start: 0, end: low }, ...above],
    usable: [{ start: MIB, end: low }, ...above],
    pciMemory: { start: HOLE, sizeBytes: 0x2000_0000 },
    pciPrefetchable: { start: Math.ceil(top / (64 * GIB)) * 64 * GIB, sizeBytes: 64 * GIB },
    iommuRegisters: 0xfed9_0000,
    firmwareTables: 0xf_0000,
  };
}
