/**
 * Interrupts of a virtual accelerator: two MSI-X vectors, whose table and pending bits lie in its BAR 0, and the error and
 * request notifications. A vector signals the eventfd that the user installed; what is signalled while the vector is masked,
 * or while nobody listens, is pending. Entries start unmasked, as in the idxd VDCM patches: a user that emulates the table
 * itself never writes to this one. VFIO_DEVICE_SET_IRQS as drivers/vfio/pci/vfio_pci_intrs.c.
 */
import type { EventFd } from '../../../host/eventfd.js';
import { PCI_MSIX_ENTRY_CTRL_MASKBIT, PCI_MSIX_ENTRY_SIZE } from '../../../host/pci/spec/index.js';
import { Errno } from '../../../sim/errno.js';
import { PCI_ERR_IRQ, PCI_MSIX_IRQ, PCI_REQ_IRQ, type VfioIrqSet } from '../../../vfio/device.js';

/** Vector 0: commands and errors; vector 1: completions of the queue. */
export const VDSA_VECTORS = 2;

const WORDS_PER_ENTRY = PCI_MSIX_ENTRY_SIZE / 4;

export class VdsaInterrupts {
  /** The MSI-X table; only the mask bits mean anything here. */
  readonly table = new Uint32Array(VDSA_VECTORS * WORDS_PER_ENTRY);
  /** The pending bits. */
  pending = 0;
  private readonly eventfds: (EventFd | undefined)[] = [];
  private readonly notifications: (EventFd | undefined)[] = [];
  private readonly name: string;
  private readonly functionMasked: () => boolean;

  constructor(name: string, functionMasked: () => boolean) {
    this.name = name;
    this.functionMasked = functionMasked;
  }

  /** The device interrupts through a vector. */
  raise(vector: number): void {
    this.pending |= 1 << vector;
    this.flush();
  }

  /** Signals what is pending and may be signalled now. */
  flush(): void {
    if (this.pending === 0 || this.functionMasked()) return;
    for (let vector = 0; vector < VDSA_VECTORS; vector++) {
      const eventfd = this.eventfds[vector];
      if (eventfd === undefined || (this.pending & (1 << vector)) === 0 || (this.table[vector * WORDS_PER_ENTRY + 3]! & PCI_MSIX_ENTRY_CTRL_MASKBIT) !== 0) continue;
      this.pending &= ~(1 << vector);
      eventfd.signal();
    }
  }

  /** A store to the table. */
  writeTable(offset: number, value: number): void {
    this.table[offset >>> 2] = value;
    this.flush();
  }

  /** Registers only: eventfds stay. */
  reset(): void {
    this.table.fill(0);
    this.pending = 0;
  }

  /** Nobody listens any more. */
  tearDown(): void {
    this.reset();
    this.eventfds.length = 0;
    this.notifications.length = 0;
  }

  /** True when the user hears of it. @param index PCI_ERR_IRQ or PCI_REQ_IRQ */
  notify(index: number): boolean {
    this.notifications[index]?.signal();
    return this.notifications[index] !== undefined;
  }

  /** @throws Errno EINVAL no such interrupt, or a range outside of it; ENOTTY an action that it does not know */
  set(request: VfioIrqSet): void {
    const { index, start, count, action, data } = request;
    const single = index === PCI_ERR_IRQ || index === PCI_REQ_IRQ;
    if (!single && index !== PCI_MSIX_IRQ) throw new Errno('EINVAL', `${this.name} has no interrupt index ${index}`);
    const vectors = single ? 1 : VDSA_VECTORS;
    if (start + count > vectors || start >= vectors) throw new Errno('EINVAL', `interrupts ${start} to ${start + count - 1} of index ${index}: ${this.name} has ${vectors}`);
    if (action !== 'trigger') throw new Errno('ENOTTY', `interrupt index ${index} of ${this.name} cannot be masked here`);
    const at = (i: number): number => (single ? index : start + i);
    const list = single ? this.notifications : this.eventfds;
    switch (data.kind) {
      case 'none':
        if (count === 0) list.length = 0;
        for (let i = 0; i < count; i++) list[at(i)]?.signal();
        break;
      case 'bool':
        for (let i = 0; i < count; i++) if (data.values[i] === true) list[at(i)]?.signal();
        break;
      case 'eventfd':
        for (let i = 0; i < count; i++) list[at(i)] = data.fds[i];
        this.flush();
    }
  }
}
