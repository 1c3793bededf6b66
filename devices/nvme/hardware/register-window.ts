/** BAR 0 without the MSI-X structures: the controller's registers, and doorbells, which read as zero. */
import type { AccessSize } from '../../../sim/mmio.js';
import { RegisterFile } from '../../../sim/registers.js';
import { nvmeRegisterSpecs, REG, windowOf, type NvmeCapabilityValues, type NvmeLayout } from '../spec/registers.js';

export interface DoorbellOwner {
  /** A value written to the doorbell of a submission queue's tail or a completion queue's head. */
  doorbell(queue: number, completion: boolean, value: number): void;
}

type Names = keyof ReturnType<typeof nvmeRegisterSpecs>;

export class NvmeRegisters extends RegisterFile<Names> {
  private readonly stride: number;
  private readonly doorbellEnd: number;
  private readonly owner: DoorbellOwner;

  constructor(layout: NvmeLayout, values: NvmeCapabilityValues, owner: DoorbellOwner) {
    const window = windowOf(layout);
    super('nvme', window.barBytes, nvmeRegisterSpecs(values));
    this.stride = 4 << layout.doorbellStride;
    this.doorbellEnd = window.doorbellEnd;
    this.owner = owner;
  }

  override write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    if (offset < REG.DOORBELLS || offset >= this.doorbellEnd) return super.write(offset, size, lo, hi);
    const index = (offset - REG.DOORBELLS) / this.stride;
    if (size === 4 && Number.isInteger(index)) this.owner.doorbell(index >>> 1, (index & 1) !== 0, lo & 0xffff);
    else this.invalidAccesses++;
  }
}
