/**
 * Carries a window of registers in BAR 0; the rest of the BAR is nobody's. Bus mastering is always on: no driver binds
 * to a host bridge, and what the registers' owner sends (its interrupts) goes out under this function. No interrupts
 * of its own, no DMA.
 */
import { PlainMmio, type AccessSize, type Mmio } from '../../../sim/mmio.js';
import type { DmaClient } from '../../../host/pci/dma-port.js';
import { PciFunction } from '../../../host/pci/hardware/pci-function.js';
import { UnclaimedMmio } from '../../../host/pci/hardware/unclaimed-mmio.js';
import { PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY } from '../../../host/pci/spec/index.js';
import { CARRIER_BAR, CARRIER_BAR_SIZE, CARRIER_CLASS, CARRIER_DEVICE_ID, CARRIER_VENDOR_ID } from '../spec/identity.js';

export interface RegisterCarrierOptions {
  readonly name: string;
  readonly registers: Mmio;
  /** Bytes of the window at the start of the BAR. */
  readonly sizeBytes: number;
  /** The machine is reset: so are the registers. */
  readonly onReset: () => void;
}

/** Nothing is ever sent to a function that asks for nothing. */
const NO_DMA: DmaClient = { pageResponse() {}, invalidate() {}, heldDone() {} };

export function registerCarrier(options: RegisterCarrierOptions): PciFunction {
  const carrier = new PciFunction({
    name: options.name, vendorId: CARRIER_VENDOR_ID, deviceId: CARRIER_DEVICE_ID, classCode: CARRIER_CLASS, flr: true, e2eTlpPrefix: false, client: NO_DMA,
    bars: [{ index: CARRIER_BAR, sizeBytes: CARRIER_BAR_SIZE, prefetchable: false, is64: false, mmio: new CarriedRegisters(options.registers, options.sizeBytes) }],
    onReset: options.onReset,
  });
  carrier.config.define(PCI_COMMAND, 2, PCI_COMMAND_MASTER, { rw: PCI_COMMAND_MEMORY });
  carrier.config.seal();
  return carrier;
}

class CarriedRegisters extends PlainMmio {
  private readonly registers: Mmio;
  private readonly sizeBytes: number;
  private readonly nobody = new UnclaimedMmio();

  constructor(registers: Mmio, sizeBytes: number) {
    super();
    this.registers = registers;
    this.sizeBytes = sizeBytes;
  }

  read(offset: number, size: AccessSize): number {
    const target = offset + size <= this.sizeBytes ? this.registers : this.nobody;
    const value = target.read(offset, size);
    this.high = target.high;
    return value;
  }

  write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    if (offset + size <= this.sizeBytes) this.registers.write(offset, size, lo, hi);
  }
}
