/**
 * MSI-X as the kernel sets it up: the capability's control word in config space, the table in a BAR
 * (PCIe Base 6.0 section 7.7.2; drivers/pci/msi). Sequence of `msix_capability_init`: enable with everything masked,
 * write the entries, switch INTx off, unmask the function. MSI stands in msi.ts.
 * Left out: changing affinity, masking one vector.
 */
import { Errno } from '../../../sim/errno.js';
import type { Mmio } from '../../../sim/mmio.js';
import type { LineAction } from '../../interrupt-lines.js';
import type { IrqVector } from '../../interrupts.js';
import {
  PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, PCI_MSIX_ENTRY_CTRL_MASKBIT, PCI_MSIX_ENTRY_DATA, PCI_MSIX_ENTRY_LOWER_ADDR,
  PCI_MSIX_ENTRY_SIZE, PCI_MSIX_ENTRY_UPPER_ADDR, PCI_MSIX_ENTRY_VECTOR_CTRL, PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE,
  PCI_MSIX_FLAGS_MASKALL, PCI_MSIX_FLAGS_QSIZE, PCI_MSIX_TABLE, PCI_MSIX_TABLE_BIR, PCI_MSIX_TABLE_OFFSET,
} from '../spec/index.js';
import { updateWord } from './config-access.js';
import type { ConfigWindow, PciDevice } from './pci-device.js';

/** Where vectors come from; `InterruptController` is one, an IOMMU's that remaps interrupts another. */
export interface InterruptAllocator {
  /** @param device who will send the message: an allocator that remaps lets nobody else use it */
  request(name: string, handler: () => void, device?: PciDevice): IrqVector;
  free(vector: IrqVector): void;
  /**
   * 2^n vectors for MSI that differ in the low bits of their data only, at least as many as handlers; without it a
   * function gets one at most.
   */
  requestBlock?(name: string, handlers: readonly (() => void)[], device?: PciDevice): IrqVector[];
  /** Level-triggered lines; without them there are no legacy interrupts. */
  requestLine?(line: number, name: string, handler: () => boolean, shared: boolean): LineAction;
  freeLine?(action: LineAction): void;
  disableLine?(line: number): void;
  enableLine?(line: number): void;
}

export class MsixVectors {
  private vectors: IrqVector[] = [];
  private readonly name: string;
  private readonly config: ConfigWindow;
  private readonly capability: number | undefined;
  private readonly interrupts: InterruptAllocator;
  private readonly device: PciDevice;

  constructor(device: PciDevice, capability: number | undefined, interrupts: InterruptAllocator) {
    this.name = device.name;
    this.config = device.config;
    this.capability = capability;
    this.interrupts = interrupts;
    this.device = device;
  }

  get count(): number {
    return this.vectors.length;
  }

  /** Vectors in the function's table; 0 without the capability. */
  get supported(): number {
    return this.capability === undefined ? 0 : (this.config.read(this.capability + PCI_MSIX_FLAGS, 2) & PCI_MSIX_FLAGS_QSIZE) + 1;
  }

  /** Vectors as programmed, for printing. */
  get list(): readonly IrqVector[] {
    return this.vectors;
  }

  /**
   * One vector for each handler. EINVAL without handlers, without the capability, or enabled already; ENOSPC when the
   * table is smaller or the machine is out of vectors.
   */
  enable(name: string, handlers: readonly (() => void)[]): void {
    if (handlers.length === 0) throw new Errno('EINVAL', `MSI-X: no vector asked for ${this.name}`);
    if (this.capability === undefined) throw new Errno('EINVAL', `MSI-X: device ${this.name} has no MSI-X capability`);
    if (this.vectors.length > 0) throw new Errno('EINVAL', `MSI-X: device ${this.name} has it enabled already`);
    const size = this.supported;
    if (handlers.length > size) throw new Errno('ENOSPC', `MSI-X: device ${this.name} has ${size} vectors, ${handlers.length} asked for`);
    const table = this.table();
    const vectors: IrqVector[] = [];
    try {
      for (const [i, handler] of handlers.entries()) {
        vectors.push(this.interrupts.request(handlers.length === 1 ? name : `${name}-${i}`, handler, this.device));
      }
    } catch (error) {
      for (const vector of vectors) this.interrupts.free(vector);
      throw error;
    }
    this.vectors = vectors;
    this.program(table, size);
  }

  /** Masks and disables MSI-X and returns the vectors. */
  disable(): void {
    if (this.vectors.length === 0) return;
    updateWord(this.config, this.capability! + PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL, 0);
    updateWord(this.config, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, 0);
    for (const vector of this.vectors) this.interrupts.free(vector);
    this.vectors = [];
  }

  /** Writes everything again after a reset. */
  restore(): void {
    if (this.vectors.length === 0) return;
    this.program(this.table(), this.vectors.length);
  }

  private table(): { mmio: Mmio; offset: number } {
    const word = this.config.read(this.capability! + PCI_MSIX_TABLE, 4);
    return { mmio: this.device.ioremap(word & PCI_MSIX_TABLE_BIR), offset: (word & PCI_MSIX_TABLE_OFFSET) >>> 0 };
  }

  private program(table: { mmio: Mmio; offset: number }, entries: number): void {
    const flags = this.capability! + PCI_MSIX_FLAGS;
    updateWord(this.config, flags, 0, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    for (let i = 0; i < entries; i++) {
      const at = table.offset + i * PCI_MSIX_ENTRY_SIZE;
      const vector = this.vectors[i];
      table.mmio.write(at + PCI_MSIX_ENTRY_VECTOR_CTRL, 4, PCI_MSIX_ENTRY_CTRL_MASKBIT);
      if (vector === undefined) continue;
      table.mmio.write(at + PCI_MSIX_ENTRY_LOWER_ADDR, 4, vector.address);
      table.mmio.write(at + PCI_MSIX_ENTRY_UPPER_ADDR, 4, 0);
      table.mmio.write(at + PCI_MSIX_ENTRY_DATA, 4, vector.data);
      table.mmio.write(at + PCI_MSIX_ENTRY_VECTOR_CTRL, 4, 0);
    }
    updateWord(this.config, PCI_COMMAND, 0, PCI_COMMAND_INTX_DISABLE);
    updateWord(this.config, flags, PCI_MSIX_FLAGS_MASKALL, 0);
  }
}
