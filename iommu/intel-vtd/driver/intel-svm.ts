/**
 * The interface that users of Intel SVM had before the generic calls (intel_svm_bind_mm, intel_svm_unbind_mm and
 * `struct svm_dev_ops` of include/linux/intel-svm.h, v5.10), over the core's bind (U1): the same bond, the same PASID,
 * and a callback that hears how each page request ended. The thread per unit that reads the queue is in
 * page-request-queue.ts.
 *
 * Left out: calls for requests that the driver refuses by rule before anybody handles them, private PASIDs (an mm has one PASID, B11), supervisor mode (no kernel address space can be bound), private
 * data (no device here sends any), and poisoning of the PASID entry, which is cleared.
 */
import { Errno } from '../../../sim/errno.js';
import type { Steps } from '../../../sim/task.js';
import type { Device } from '../../../host/device.js';
import type { AddressSpace } from '../../../host/mm/address-space.js';
import { ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE } from '../../../host/pci/dma-port.js';
import type { IommuCore } from '../../core/core.js';
import { FAULT_PAGE_REQ, type PageRequest, type PageResponse, type PageResponseCode } from '../../core/ops.js';
import { RESP_FAILURE, RESP_INVALID, RESP_SUCCESS } from '../spec/descriptors.js';

export const SVM_FLAG_PRIVATE_PASID = 1;
export const SVM_FLAG_SUPERVISOR_MODE = 2;

/** Bits of the `rwxp` argument. */
export const SVM_RD = 8;
export const SVM_WR = 4;
export const SVM_EXE = 2;
export const SVM_PM = 1;

export interface SvmDevOps {
  /**
   * A page request that came as far as the fault handler has been answered. `page`: page number of the address; `rwxp`: SVM_* bits; `response`: the wire's
   * code of its group, 0 success, 1 invalid, 15 failure.
   */
  faultCb(device: Device, pasid: number, page: number, rwxp: number, response: number): void;
}

const RESPONSES: Readonly<Record<PageResponseCode, number>> = { SUCCESS: RESP_SUCCESS, INVALID: RESP_INVALID, FAILURE: RESP_FAILURE };

interface Binding {
  readonly ops: SvmDevOps;
  refs: number;
}

export class IntelSvm {
  private readonly core: IommuCore;
  private readonly bindings = new Map<Device, Map<number, Binding>>();
  /** Requests of groups that have not been answered, by device and group index. */
  private readonly open = new Map<Device, Map<number, PageRequest[]>>();
  private readonly subscriptions;

  constructor(core: IommuCore) {
    this.core = core;
    this.subscriptions = [
      core.faults$.subscribe(({ device, fault }) => {
        if (fault.type === FAULT_PAGE_REQ && this.bindings.has(device)) this.note(device, fault);
      }),
      core.responses$.subscribe((response) => this.answered(response)),
    ];
  }

  /**
   * Binds an mm and returns its PASID. A second bind adds a reference.
   * @throws Errno EINVAL unknown flags, a private PASID, supervisor mode with a process's mm (B7); EBUSY bound with other
   * ops; otherwise as IommuCore.svaBind
   */
  *bindMm(device: Device, mm: AddressSpace, flags: number, ops: SvmDevOps): Steps<number> {
    if ((flags & ~(SVM_FLAG_PRIVATE_PASID | SVM_FLAG_SUPERVISOR_MODE)) !== 0) throw new Errno('EINVAL', `SVM: unknown flags 0x${flags.toString(16)}`);
    if ((flags & SVM_FLAG_SUPERVISOR_MODE) !== 0) throw new Errno('EINVAL', `SVM: supervisor mode is for the kernel's address space, ${mm.name} is a process`);
    if ((flags & SVM_FLAG_PRIVATE_PASID) !== 0) throw new Errno('EINVAL', `SVM: an address space has one PASID, ${mm.name} cannot have a private one`);
    const pasid = yield* this.core.svaBind(device, mm, undefined, ops);
    let ofDevice = this.bindings.get(device);
    if (ofDevice === undefined) this.bindings.set(device, (ofDevice = new Map<number, Binding>()));
    const binding = ofDevice.get(pasid);
    if (binding === undefined) ofDevice.set(pasid, { ops, refs: 1 });
    else binding.refs++;
    return pasid;
  }

  /** Drops one reference; callbacks for requests that the drain answers still come. @throws Errno EINVAL not bound here, otherwise as IommuCore.svaUnbind */
  *unbindMm(device: Device, pasid: number): Steps {
    const ofDevice = this.bindings.get(device);
    const binding = ofDevice?.get(pasid);
    if (ofDevice === undefined || binding === undefined) throw new Errno('EINVAL', `SVM: PASID ${pasid} is not bound to ${device.name}`);
    yield* this.core.svaUnbind(device, pasid);
    if (--binding.refs > 0) return;
    ofDevice.delete(pasid);
    if (ofDevice.size > 0) return;
    this.bindings.delete(device);
    this.open.delete(device);
  }

  /** Stops listening. */
  close(): void {
    for (const subscription of this.subscriptions) subscription.unsubscribe();
  }

  private note(device: Device, request: PageRequest): void {
    let groups = this.open.get(device);
    if (groups === undefined) this.open.set(device, (groups = new Map<number, PageRequest[]>()));
    const requests = groups.get(request.prgIndex);
    if (requests === undefined) groups.set(request.prgIndex, [request]);
    else requests.push(request);
  }

  private answered({ device, request, code }: PageResponse): void {
    const requests = this.open.get(device)?.get(request.prgIndex);
    if (requests === undefined) return;
    this.open.get(device)!.delete(request.prgIndex);
    for (const { pasid, page, access } of requests) {
      this.bindings.get(device)?.get(pasid)?.ops.faultCb(device, pasid, page, rwxpOf(access), RESPONSES[code]);
    }
  }
}

function rwxpOf(access: number): number {
  return ((access & ACCESS_READ) !== 0 ? SVM_RD : 0) | ((access & ACCESS_WRITE) !== 0 ? SVM_WR : 0)
    | ((access & ACCESS_EXECUTE) !== 0 ? SVM_EXE : 0) | ((access & ACCESS_PRIVILEGED) !== 0 ? SVM_PM : 0);
}
