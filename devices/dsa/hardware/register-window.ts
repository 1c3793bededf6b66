/**
 * BAR 0 without the MSI-X structures: the declared registers, the rule that configuration is read-only while in use,
 * the software error register and the cause of interrupts.
 */
import type { AccessSize } from '../../../sim/mmio.js';
import { RegisterFile } from '../../../sim/registers.js';
import { hiOfPage, loOfPage } from '../../../sim/address.js';
import { NO_PASID } from '../../../host/pci/dma-port.js';
import {
  dsaRegisterSpecs, GENCFG, GRPCFG_STRIDE, GRPCFG_TABLE, INTC_ERR, msixPlace, STATE_DISABLED, SWERROR, WQCFG_STRIDE, WQCFG_TABLE,
  type DsaCapabilityValues, type DsaLayout,
} from '../spec/registers.js';
import type { Job } from './job.js';

const GENCFG_OFFSET = 0x80;
const GENCTRL_SOFTERR = 1;

export interface RegisterOwner {
  readonly state: number;
  /** True while WQCFG of the queue must not change. */
  queueInUse(wq: number): boolean;
  /** Current values of the read-only word 6 of a queue's configuration: occupancy and state. */
  queueStatus(wq: number): number;
  /** A cause was added to INTCAUSE: vector 0. */
  interrupt(): void;
}

export interface ErrorDetails {
  /** The descriptor, where there was one. */
  readonly job?: Job;
  readonly wq?: number;
  readonly invalidFlags?: number;
  readonly page?: number;
  readonly offset?: number;
  readonly write?: boolean;
}

export class RegisterWindow extends RegisterFile {
  private readonly layout: DsaLayout;
  private readonly owner: RegisterOwner;

  constructor(layout: DsaLayout, values: DsaCapabilityValues, owner: RegisterOwner) {
    super('dsa', msixPlace(layout).barBytes, dsaRegisterSpecs(layout, values));
    this.layout = layout;
    this.owner = owner;
    for (let wq = 0; wq < layout.wqs; wq++) {
      const register = this.r[`WQCFG${wq}_6`]!;
      register.onRead = () => {
        register.lo = this.owner.queueStatus(wq);
      };
    }
  }

  override write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    if (size === 8 && offset % 8 === 0 && this.inWqcfg(offset)) {
      this.write(offset, 4, lo);
      this.write(offset + 4, 4, hi);
    } else if (!this.locked(offset)) {
      super.write(offset, size, lo, hi);
    }
  }

  /**
   * Records an error that no completion record can carry: the first stays until software clears Valid, later ones
   * only set Overflow.
   */
  reportError(error: number, details: ErrorDetails = {}): void {
    const { job } = details;
    const first = this.r['SWERROR0']!;
    if ((first.lo & 1) !== 0) {
      if ((first.lo & 2) !== 0) return;
      first.lo |= 2;
    } else {
      const wq = job?.wq.index ?? details.wq;
      const words = SWERROR.encode({
        Valid: 1, Error: error, WqIdxValid: wq === undefined ? 0 : 1, WqIdx: wq ?? 0,
        ...(job === undefined ? {} : {
          DescValid: 1, Operation: job.opcode, Priv: job.privileged ? 1 : 0, Pasid: job.pasid === NO_PASID ? 0 : job.pasid,
          Batch: job.batchIndex >= 0 ? 1 : 0, BatchIdx: Math.max(job.batchIndex, 0), InvalidFlags: details.invalidFlags ?? 0,
        }),
        FaultRw: details.write === true ? 1 : 0,
      });
      if (details.page !== undefined) {
        words[4] = loOfPage(details.page, details.offset ?? 0);
        words[5] = hiOfPage(details.page);
      }
      for (let i = 0; i < 4; i++) {
        const register = this.r[`SWERROR${i}`]!;
        register.lo = words[2 * i]!;
        register.hi = words[2 * i + 1]!;
      }
    }
    if ((this.r['GENCTRL']!.lo & GENCTRL_SOFTERR) !== 0) this.cause(INTC_ERR);
  }

  /** Adds a cause and interrupts through vector 0. */
  cause(bits: number): void {
    this.r['INTCAUSE']!.lo |= bits;
    this.owner.interrupt();
  }

  /** General and group configuration is fixed while the device is on, a queue's while the queue is. */
  private locked(offset: number): boolean {
    if (this.inWqcfg(offset)) {
      const inside = offset - WQCFG_TABLE;
      // sizes count against the device's total
      if (inside % WQCFG_STRIDE < 4 && this.owner.state !== STATE_DISABLED) return true;
      return this.owner.queueInUse(Math.floor(inside / WQCFG_STRIDE));
    }
    if (this.owner.state === STATE_DISABLED) return false;
    if (offset >= GRPCFG_TABLE && offset < GRPCFG_TABLE + this.layout.groups * GRPCFG_STRIDE) return true;
    return offset >= GENCFG_OFFSET && offset < GENCFG_OFFSET + GENCFG.sizeBytes;
  }

  private inWqcfg(offset: number): boolean {
    return offset >= WQCFG_TABLE && offset < WQCFG_TABLE + this.layout.wqs * WQCFG_STRIDE;
  }
}
