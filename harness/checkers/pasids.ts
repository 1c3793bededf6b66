import { Checker } from './invariant.js';

/**
 * A PASID never has two owners, and every use of it lies between its allocation and its end (section 5 rule 2). A
 * process keeps its PASID until its mm is freed (M7).
 */
export class PasidSingleOwner extends Checker {
  readonly name = 'a PASID has one owner at a time';
  readonly kinds = ['iommu:pasid_alloc', 'iommu:pasid_free', 'iommu:sva_bind', 'mm:free'];
  /** PASID → mm once bound, 0 before */
  private readonly owners = new Map<number, number>();
  /** Owners that live. */
  private readonly mms = new Set<number>();

  observe(kind: string, value: (argument: string) => number): void {
    if (kind === 'mm:free') {
      this.mms.delete(value('mm'));
      return;
    }
    const pasid = value('pasid');
    this.checked++;
    if (kind === 'iommu:pasid_alloc') {
      if (this.owners.has(pasid)) this.violate(`PASID ${pasid} allocated again while in use`);
      this.owners.set(pasid, 0);
    } else if (kind === 'iommu:pasid_free') {
      const owner = this.owners.get(pasid);
      if (owner === undefined) this.violate(`PASID ${pasid} freed, but nobody had it`);
      else if (this.mms.has(owner)) this.violate(`PASID ${pasid} freed while mm ${owner}, which owns it, lives`);
      this.owners.delete(pasid);
    } else this.bound(pasid, value('mm'));
  }

  private bound(pasid: number, mm: number): void {
    const owner = this.owners.get(pasid);
    if (owner === undefined) this.violate(`mm ${mm} bound under PASID ${pasid}, which is not allocated`);
    else if (owner !== 0 && owner !== mm) this.violate(`PASID ${pasid} of mm ${owner} bound to mm ${mm}`);
    else {
      this.owners.set(pasid, mm);
      this.mms.add(mm);
    }
  }
}
