/**
 * MSI as the kernel sets it up: everything is in configuration space (PCIe Base 6.0 section 7.7.1; drivers/pci/msi).
 * Sequence of `msi_capability_init`: MSI off, all vectors masked, address and data, INTx off, MSI on, vectors unmasked.
 * Several vectors need consecutive numbers, which an x86 kernel gives only with interrupt remapping; here the
 * interrupt controller gives blocks always. Left out: changing affinity, masking one vector.
 */
import { Errno } from '../../../sim/errno.js';
import type { IrqVector } from '../../interrupts.js';
import {
  PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, PCI_MSI_ADDRESS_HI, PCI_MSI_ADDRESS_LO, PCI_MSI_DATA_32, PCI_MSI_DATA_64, PCI_MSI_FLAGS, PCI_MSI_FLAGS_64BIT,
  PCI_MSI_FLAGS_ENABLE, PCI_MSI_FLAGS_MASKBIT, PCI_MSI_FLAGS_QMASK, PCI_MSI_FLAGS_QSIZE, PCI_MSI_MASK_32, PCI_MSI_MASK_64,
} from '../spec/index.js';
import { updateWord } from './config-access.js';
import type { InterruptAllocator } from './msix.js';
import type { ConfigWindow, PciDevice } from './pci-device.js';

export class MsiVectors {
  /** The whole block, 2^n vectors; the first `used` have handlers. */
  private vectors: readonly IrqVector[] = [];
  private used = 0;
  private readonly name: string;
  private readonly config: ConfigWindow;
  private readonly capability: number | undefined;
  private readonly interrupts: InterruptAllocator;
  private readonly device: PciDevice;

  constructor(device: PciDevice, capability: number | undefined, interrupts: InterruptAllocator) {
    this.name = device.name;
    this.config = device.config;
    this.device = device;
    this.capability = capability;
    this.interrupts = interrupts;
  }

  /** Vectors with handlers. */
  get count(): number {
    return this.used;
  }

  /** Vectors that the function has (Multiple Message Capable); 0 without the capability. */
  get supported(): number {
    return this.capability === undefined ? 0 : 2 ** ((this.config.read(this.capability + PCI_MSI_FLAGS, 2) & PCI_MSI_FLAGS_QMASK) >> 1);
  }

  /** One vector for each handler. Errnos as `MsixVectors.enable`. */
  enable(name: string, handlers: readonly (() => void)[]): void {
    if (handlers.length === 0) throw new Errno('EINVAL', `MSI: no vector asked for ${this.name}`);
    if (this.capability === undefined) throw new Errno('EINVAL', `MSI: device ${this.name} has no MSI capability`);
    if (this.used > 0) throw new Errno('EINVAL', `MSI: device ${this.name} has it enabled already`);
    if (handlers.length > this.supported) throw new Errno('ENOSPC', `MSI: device ${this.name} has ${this.supported} vectors, ${handlers.length} asked for`);
    this.vectors = this.request(name, handlers);
    this.used = handlers.length;
    this.program(this.capability);
  }

  /** Disables MSI, lets INTx again and returns the vectors. */
  disable(): void {
    if (this.used === 0) return;
    updateWord(this.config, this.capability! + PCI_MSI_FLAGS, PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE, 0);
    updateWord(this.config, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, 0);
    for (const vector of this.vectors) this.interrupts.free(vector);
    this.vectors = [];
    this.used = 0;
  }

  /** Writes everything again after a reset. */
  restore(): void {
    if (this.used > 0) this.program(this.capability!);
  }

  private request(name: string, handlers: readonly (() => void)[]): readonly IrqVector[] {
    if (handlers.length === 1) return [this.interrupts.request(name, handlers[0]!, this.device)];
    if (this.interrupts.requestBlock === undefined) throw new Errno('ENOSPC', `MSI: this machine has no consecutive vectors for ${this.name}`);
    return this.interrupts.requestBlock(name, handlers, this.device);
  }

  private program(at: number): void {
    const { config } = this;
    const first = this.vectors[0]!;
    const flags = config.read(at + PCI_MSI_FLAGS, 2);
    const is64 = (flags & PCI_MSI_FLAGS_64BIT) !== 0;
    updateWord(config, at + PCI_MSI_FLAGS, PCI_MSI_FLAGS_ENABLE | PCI_MSI_FLAGS_QSIZE, 0);
    this.mask(at, 0xffff_ffff);
    config.write(at + PCI_MSI_ADDRESS_LO, 4, first.address);
    if (is64) config.write(at + PCI_MSI_ADDRESS_HI, 4, 0);
    config.write(at + (is64 ? PCI_MSI_DATA_64 : PCI_MSI_DATA_32), 2, first.data);
    updateWord(config, PCI_COMMAND, 0, PCI_COMMAND_INTX_DISABLE);
    updateWord(config, at + PCI_MSI_FLAGS, 0, PCI_MSI_FLAGS_ENABLE | (Math.log2(this.vectors.length) << 4));
    this.mask(at, ~(2 ** this.used - 1) >>> 0);
  }

  private mask(at: number, bits: number): void {
    const flags = this.config.read(at + PCI_MSI_FLAGS, 2);
    if ((flags & PCI_MSI_FLAGS_MASKBIT) !== 0) this.config.write(at + ((flags & PCI_MSI_FLAGS_64BIT) !== 0 ? PCI_MSI_MASK_64 : PCI_MSI_MASK_32), 4, bits);
  }
}
