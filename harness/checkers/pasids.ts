import { Checker } from './invariant.js';

/** A PASID never has two owners, and every use of it lies between its allocation and its end (section 5 rule 2). */
export class PasidSingleOwner extends Checker {
  readonly name = 'a PASID has one owner at a time';
  readonly kinds = ['iommu:pasid_alloc', 'iommu:pasid_free', 'iommu:sva_bind'];
  /** kernel and PASID → mm once bound, 0 before */
  private readonly owners = new Map<number, number>();

  observe(kind: string, value: (argument: string) => number): void {
    const kernel = kind === 'iommu:sva_bind' ? 0 : value('kernel');
    const pasid = value('pasid');
    this.checked++;
    if (kind === 'iommu:pasid_alloc') {
      if (this.owners.has(pasid)) this.violate(`PASID ${pasid} allocated again by kernel ${kernel} while in use`);
      this.owners.set(pasid, 0);
    } else if (kind === 'iommu:pasid_free') {
      if (!this.owners.delete(pasid)) this.violate(`PASID ${pasid} freed, but nobody had it`);
    } else {
      const owner = this.owners.get(pasid);
      if (owner === undefined) this.violate(`mm ${value('mm')} bound under PASID ${pasid}, which is not allocated`);
      else if (owner !== 0 && owner !== value('mm')) this.violate(`PASID ${pasid} of mm ${owner} bound to mm ${value('mm')}`);
      else this.owners.set(pasid, value('mm'));
    }
  }
}
