/**
 * What a mediated device has of the accelerator: a dedicated queue, or a slot of a shared one, and one interrupt vector. The
 * parent's own commands act here, and only here does a PASID get into the hardware: the one that the IOMMU core gave to the
 * mediated device's aux domain. A dedicated queue carries it in its configuration; on a shared queue the descriptors do, so
 * the slot only remembers which are its own. Devices of one container have one domain and so one PASID: as the accelerator
 * aborts by PASID, a slot whose PASID others use too is drained instead.
 */
import { CMDSTS_ERR, DSA_CMD, wqMaskOperand } from '../spec/registers.js';
import type { Steps } from '../../../sim/task.js';
import type { IdxdDevice, IdxdWq } from '../driver/idxd-device.js';

/** A PASID that nobody has: requests without PASID use the entry of that number. */
const NOBODY = 0;

export class QueueLease {
  readonly device: IdxdDevice;
  readonly wq: IdxdWq;
  /** MSI-X vector of the accelerator. */
  readonly vector: number;
  /** Whose descriptors the queue takes from this lease; undefined while it is off. */
  pasid: number | undefined;
  private permitted = false;
  /** Being turned off: what is enqueued now would not be waited for. */
  private closing = false;
  private readonly othersHave: (pasid: number) => boolean;

  /** @param othersHave true when another lease of the device is on under that PASID */
  constructor(device: IdxdDevice, wq: IdxdWq, vector: number, othersHave: (pasid: number) => boolean) {
    this.device = device;
    this.wq = wq;
    this.vector = vector;
    this.othersHave = othersHave;
    device.hardware.setInterruptPermission(vector, NOBODY);
  }

  get enabled(): boolean {
    return this.pasid !== undefined;
  }

  /** True while a slot of a shared queue takes descriptors; a dedicated queue refuses by itself. */
  get accepts(): boolean {
    return this.pasid !== undefined && !this.closing;
  }

  /** Lets descriptors of the lease's PASID interrupt through the vector. */
  permitInterrupts(permitted: boolean): void {
    this.permitted = permitted;
    this.updatePermission();
  }

  /** The queue takes descriptors under `pasid` from now on; a command status. */
  *enable(pasid: number): Steps<number> {
    const { device, wq } = this;
    if (!device.alive) return CMDSTS_ERR.HW_ERR;
    if (wq.dedicated) {
      yield* wq.lock.lock();
      try {
        device.hardware.setWqPasid(wq.index, pasid);
        const error = yield* device.hardware.command(DSA_CMD.ENABLE_WQ, wq.index);
        if (error !== CMDSTS_ERR.SUCCESS) {
          if (device.alive) device.hardware.setWqPasid(wq.index, undefined);
          return error;
        }
        wq.enabled = true;
      } finally {
        wq.lock.unlock();
      }
    }
    this.pasid = pasid;
    this.updatePermission();
    return CMDSTS_ERR.SUCCESS;
  }

  /** Waits for the lease's descriptors. */
  *drain(): Steps<number> {
    return yield* this.command(DSA_CMD.DRAIN_WQ, DSA_CMD.DRAIN_PASID);
  }

  /** Drops the lease's descriptors, or lets them end where they cannot be told from others'. */
  *abort(): Steps<number> {
    return yield* this.command(DSA_CMD.ABORT_WQ, DSA_CMD.ABORT_PASID);
  }

  /** Nothing is taken any more; what was is done (`drain`) or dropped as by `abort`. The PASID is out of the hardware afterwards. */
  *disable(drain: boolean): Steps<number> {
    if (this.pasid === undefined) return CMDSTS_ERR.SUCCESS;
    const { device, wq } = this;
    this.closing = true;
    const error = yield* drain ? this.command(DSA_CMD.DISABLE_WQ, DSA_CMD.DRAIN_PASID) : this.command(DSA_CMD.RESET_WQ, DSA_CMD.ABORT_PASID);
    this.pasid = undefined;
    this.closing = false;
    if (wq.dedicated) wq.enabled = false;
    if (device.alive) {
      if (wq.dedicated) device.hardware.setWqPasid(wq.index, undefined);
      this.updatePermission();
    }
    return error;
  }

  private *command(dedicated: number, shared: number): Steps<number> {
    const { device, wq, pasid } = this;
    if (pasid === undefined) return CMDSTS_ERR.SUCCESS;
    if (!device.alive) return CMDSTS_ERR.HW_ERR;
    if (wq.dedicated) return yield* device.hardware.command(dedicated, wqMaskOperand(wq.index));
    return yield* device.hardware.command(this.othersHave(pasid) ? DSA_CMD.DRAIN_PASID : shared, pasid);
  }

  private updatePermission(): void {
    if (this.device.alive) this.device.hardware.setInterruptPermission(this.vector, this.permitted ? this.pasid ?? NOBODY : NOBODY);
  }
}
