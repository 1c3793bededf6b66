import { FAULT_DMA_UNRECOV } from '../../iommu/core/ops.js';
import { Checker } from './invariant.js';

/** A page request of a PASID is served from the mm that owns the PASID, never from another (section 5; scenario 13). */
export class FaultsStayWithTheirMm extends Checker {
  readonly name = 'a fault never reaches another mm';
  readonly kinds = ['iommu:sva_bind', 'iommu:pasid_free', 'iommu:iopf_handle'];
  private readonly owners = new Map<number, number>();

  observe(kind: string, value: (argument: string) => number): void {
    if (kind === 'iommu:sva_bind') this.owners.set(value('pasid'), value('mm'));
    else if (kind === 'iommu:pasid_free') this.owners.delete(value('pasid'));
    else if (value('mm') !== 0) {
      this.checked++;
      const owner = this.owners.get(value('pasid'));
      if (owner !== value('mm')) this.violate(`a request of PASID ${value('pasid')} was served from mm ${value('mm')}, its owner is mm ${owner ?? 'nobody'}`);
    }
  }
}

/** After its unbind a PASID is silent on the device: no request, no fault (B2, E9, R-RACE-7). */
export class SilentAfterUnbind extends Checker {
  readonly name = 'no use of a PASID after unbind';
  readonly kinds = ['iommu:sva_bind', 'iommu:sva_unbind', 'iommu:dev_fault'];
  private readonly bound = new Set<string>();
  private readonly ended = new Set<string>();

  observe(kind: string, value: (argument: string) => number): void {
    const bond = `${value('device')}/${value('pasid')}`;
    if (kind === 'iommu:sva_bind') {
      this.bound.add(bond);
      this.ended.delete(bond);
    } else if (kind === 'iommu:sva_unbind') {
      if (value('refs') === 0 && this.bound.delete(bond)) this.ended.add(bond);
    } else {
      this.checked++;
      if (!this.ended.has(bond)) return;
      // the driver has not stopped its device before it unbound
      const what = value('type') === FAULT_DMA_UNRECOV ? 'DMA' : 'a page request';
      this.violate(`${what} of PASID ${value('pasid')} was reported after its unbind had returned`);
    }
  }
}
