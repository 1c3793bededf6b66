/** The core's records in the story of a run, named as the kernel's trace events and the proposal's. */
import { FAULT_DMA_UNRECOV, type FaultReport, type PageResponseCode } from './ops.js';
import type { Trace, TraceKind } from '../../sim/trace.js';

export const CODE_NUMBER: Readonly<Record<PageResponseCode, number>> = { SUCCESS: 0, INVALID: 1, FAILURE: 2 };

export class CoreTrace {
  readonly trace: Trace;
  private readonly devFaultKind: TraceKind;
  private readonly devPageResponseKind: TraceKind;
  readonly svaBind: TraceKind;
  readonly svaUnbind: TraceKind;
  readonly mmExit: TraceKind;
  /** A driver's mm_exit is about to be called. */
  readonly mmExitCall: TraceKind;
  readonly pasidAlloc: TraceKind;
  readonly pasidFree: TraceKind;
  readonly map: TraceKind;
  readonly unmap: TraceKind;
  /** Nobody uses what was unmapped in the range before: the invalidation is done. */
  readonly flush: TraceKind;
  readonly attach: TraceKind;
  readonly detach: TraceKind;
  readonly discard: TraceKind;
  /** A flush of a fault queue begins; `holds` names a lock of the caller that its workers take. */
  readonly iopfFlush: TraceKind;
  /** A request of a group as it was handled: `mm` 0 when nobody owns the PASID. */
  readonly handle: TraceKind;
  private readonly scope: string;

  /** @param scope prefix of device names that tells one kernel's devices from another's; empty for the host */
  constructor(trace: Trace, scope: string) {
    this.trace = trace;
    this.scope = scope;
    this.devFaultKind = trace.define('iommu:dev_fault', [
      ['device', 'str'], ['type', 'dec'], ['reason', 'dec'], ['addr', 'page'], ['pasid', 'dec'], ['group', 'dec'], ['last', 'bool'], ['prot', 'hex'],
    ]);
    this.devPageResponseKind = trace.define('iommu:dev_page_response', [
      ['device', 'str'], ['code', 'dec'], ['addr', 'page'], ['pasid', 'dec'], ['group', 'dec'],
    ]);
    this.svaBind = trace.define('iommu:sva_bind', [['device', 'str'], ['pasid', 'dec'], ['mm', 'dec'], ['refs', 'dec']]);
    this.svaUnbind = trace.define('iommu:sva_unbind', [['device', 'str'], ['pasid', 'dec'], ['mm', 'dec'], ['refs', 'dec']]);
    this.mmExitCall = trace.define('iommu:mm_exit_call', [['device', 'str'], ['pasid', 'dec'], ['mm', 'dec']], { hashed: false });
    this.mmExit = trace.define('iommu:mm_exit', [['device', 'str'], ['pasid', 'dec'], ['mm', 'dec'], ['callback', 'bool'], ['result', 'dec']]);
    this.pasidAlloc = trace.define('iommu:pasid_alloc', [['kernel', 'str'], ['pasid', 'dec'], ['owner', 'str']]);
    this.pasidFree = trace.define('iommu:pasid_free', [['kernel', 'str'], ['pasid', 'dec'], ['owner', 'str']]);
    this.map = trace.define('iommu:map', [['domain', 'dec'], ['iova', 'page'], ['paddr', 'hex'], ['size', 'hex']]);
    this.unmap = trace.define('iommu:unmap', [['domain', 'dec'], ['iova', 'page'], ['size', 'hex'], ['unmapped_size', 'hex']]);
    this.flush = trace.define('iommu:flush', [['domain', 'dec'], ['iova', 'page'], ['pages', 'dec']], { hashed: false });
    this.attach = trace.define('iommu:attach_device_to_domain', [['device', 'str'], ['domain', 'dec'], ['type', 'str'], ['pasid', 'dec']]);
    this.detach = trace.define('iommu:detach_device_from_domain', [['device', 'str'], ['domain', 'dec'], ['type', 'str'], ['pasid', 'dec']]);
    this.handle = trace.define('iommu:iopf_handle', [['device', 'str'], ['pasid', 'dec'], ['mm', 'dec'], ['addr', 'page'], ['handled', 'bool']]);
    this.discard = trace.define('iommu:iopf_discard', [['device', 'str'], ['requests', 'dec']]);
    this.iopfFlush = trace.define('iommu:iopf_flush', [['device', 'str'], ['holds', 'str'], ['worker', 'bool']], { hashed: false });
  }

  get kernel(): number {
    return this.trace.intern(this.scope === '' ? 'host' : this.scope);
  }

  /** Number of a device's name. */
  nameOf(device: { readonly name: string }): number {
    return this.trace.intern(this.scope === '' ? device.name : `${this.scope}/${device.name}`);
  }

  devFault(name: number, report: FaultReport): void {
    const { fault } = report;
    if (fault.type === FAULT_DMA_UNRECOV) {
      this.trace.record(this.devFaultKind, report.correlation, name, fault.type, fault.reason, fault.page, fault.pasid, 0, 0, fault.access);
    } else {
      this.trace.record(
        this.devFaultKind, report.correlation, name, fault.type, 0, fault.page, fault.pasid, fault.prgIndex, fault.last ? 1 : 0, fault.access,
      );
    }
  }

  devPageResponse(name: number, correlation: number, code: PageResponseCode, page: number, pasid: number, prgIndex: number): void {
    this.trace.record(this.devPageResponseKind, correlation, name, CODE_NUMBER[code], page, pasid, prgIndex);
  }
}
