/** What holds after a process died while devices were bound to it (M1–M6). */
import { hex } from '../../sim/address.js';
import { FAULT_DMA_UNRECOV } from '../../iommu/core/ops.js';
import { bondKey, Checker, type SourceOf } from './invariant.js';

/** A driver's mm_exit is called once for a bond, and afterwards the device sends nothing under the PASID (M1, M2, M4). */
export class SilentAfterMmExit extends Checker {
  readonly name = 'a device is silent after its mm_exit';
  readonly kinds = ['iommu:sva_bind', 'iommu:sva_unbind', 'iommu:mm_exit_call', 'iommu:mm_exit', 'pci:dma', 'pci:translation', 'pci:page_request'];
  /** Bonds whose callback was called, and whether it has returned. */
  private readonly exits = new Map<number, { returned: boolean }>();
  private readonly sourceOf: SourceOf;

  constructor(sourceOf: SourceOf) {
    super();
    this.sourceOf = sourceOf;
  }

  observe(kind: string, value: (argument: string) => number): void {
    const pasid = value('pasid');
    if (kind.startsWith('pci:')) {
      if (kind === 'pci:dma' && value('translated') === 1) return;
      this.checked++;
      if (this.exits.get(bondKey(value('source'), pasid))?.returned === true) {
        this.violate(`device ${hex(value('source'))} sent ${kind === 'pci:page_request' ? 'a page request' : 'a request'} of PASID ${pasid} after its mm_exit had returned`);
      }
      return;
    }
    const source = this.sourceOf(value('device'));
    if (source === undefined) return;
    const bond = bondKey(source, pasid);
    if (kind === 'iommu:mm_exit_call') {
      this.checked++;
      if (this.exits.has(bond)) this.violate(`mm_exit of device ${hex(source)} was called again for PASID ${pasid}`);
      this.exits.set(bond, { returned: false });
    } else if (kind === 'iommu:mm_exit') {
      if (value('callback') === 1) this.exits.set(bond, { returned: true });
    } else if (kind === 'iommu:sva_bind' || value('refs') === 0) this.exits.delete(bond);
  }
}

/** Between the end of an mm and the unbind, requests of its PASID are aborted silently: nothing is recorded (M6, R-RACE-11). */
export class QuietAfterMmExit extends Checker {
  readonly name = 'nothing is logged for a PASID whose process has died';
  readonly kinds = ['iommu:sva_bind', 'iommu:sva_unbind', 'iommu:mm_exit', 'iommu:dev_fault', 'vtd:fault'];
  private readonly dead = new Set<number>();
  private readonly sourceOf: SourceOf;

  constructor(sourceOf: SourceOf) {
    super();
    this.sourceOf = sourceOf;
  }

  observe(kind: string, value: (argument: string) => number): void {
    const source = kind === 'vtd:fault' ? value('source') : this.sourceOf(value('device'));
    if (source === undefined) return;
    const bond = bondKey(source, value('pasid'));
    switch (kind) {
      case 'iommu:mm_exit': return void this.dead.add(bond);
      case 'iommu:sva_bind': return void this.dead.delete(bond);
      case 'iommu:sva_unbind': {
        this.checked++;
        if (value('refs') === 0) this.dead.delete(bond);
        return;
      }
      case 'iommu:dev_fault': if (value('type') !== FAULT_DMA_UNRECOV) return;
    }
    this.checked++;
    if (this.dead.has(bond)) this.violate(`a fault of device ${hex(source)} under PASID ${value('pasid')} was recorded after its process had died`);
  }
}
