/**
 * What a device that a user holds may reach: the frames that its VFIO container pinned, at the addresses at which they
 * were mapped, as long as they are pinned. Judged by VFIO's records of pinning, not by the IOMMU's tables or domains.
 */
import { hex, hexPage } from '../../sim/address.js';
import { NO_PASID } from '../../host/pci/dma-port.js';
import { bondKey, Checker, type SourceOf } from './invariant.js';
import { DomainSpace } from './spaces.js';
import type { TranslationsForgotten } from './translations.js';

interface Membership {
  readonly container: number;
  /** Mediated devices of one parent share a PASID. */
  devices: number;
}

/** No device access lands outside what its container mapped, and none after the pages were given back. */
export class DmaInsideContainers extends Checker {
  readonly name = 'DMA of assigned devices stays in what their container mapped';
  readonly kinds = ['pci:dma', 'vfio:pin_run', 'vfio:unpin_run', 'vfio:container_device', 'vfio:container_device_end'];
  private readonly sourceOf: SourceOf;
  private readonly translations: TranslationsForgotten;
  private readonly spaces = new Map<number, DomainSpace>();
  private readonly members = new Map<number, Membership>();
  /** Sources that are in a container under any PASID. */
  private readonly sources = new Map<number, number>();

  /** @param translations which translations devices hold; stands before this checker in the set */
  constructor(sourceOf: SourceOf, translations: TranslationsForgotten) {
    super();
    this.sourceOf = sourceOf;
    this.translations = translations;
  }

  observe(kind: string, value: (argument: string) => number): void {
    switch (kind) {
      case 'pci:dma': return this.dma(value);
      case 'vfio:pin_run': return value('vendor') === 1 ? undefined : this.space(value('container')).map(value('iova'), value('frame'), value('pages'));
      case 'vfio:unpin_run': return value('vendor') === 1 ? undefined : this.unpin(this.space(value('container')), value('iova'), value('pages'));
      case 'vfio:container_device': return this.join(value('device'), value('pasid'), value('container'));
      case 'vfio:container_device_end': return this.leave(value('device'), value('pasid'));
    }
  }

  private dma(value: (argument: string) => number): void {
    const source = value('source');
    if (!this.sources.has(source)) return;
    const frame = value('physical');
    if (value('translated') === 1) return this.translated(source, frame);
    const pasid = value('pasid'), page = value('iova');
    const member = this.members.get(bondKey(source, pasid));
    // an interrupt, or a PASID that a process of the host is bound to
    if (member === undefined || (pasid === NO_PASID && page === frame && page >= 0xfee00 && page < 0xfef00)) return;
    this.judge(source, member, page, frame);
  }

  /** A translated request carries no PASID: one of the translations that the device holds must have led there. */
  private translated(source: number, frame: number): void {
    let outside: { member: Membership; page: number } | undefined;
    for (const given of this.translations.given(source, frame)) {
      const member = this.members.get(bondKey(source, given.pasid));
      const page = given.page + (frame - given.frame);
      if (member === undefined || this.space(member.container).allows(page, frame)) {
        this.checked += member === undefined ? 0 : 1;
        return;
      }
      outside = { member, page };
    }
    if (outside !== undefined) this.judge(source, outside.member, outside.page, frame);
  }

  private judge(source: number, { container }: Membership, page: number, frame: number): void {
    this.checked++;
    if (this.space(container).allows(page, frame)) return;
    this.violate(`device ${hex(source)} reached frame ${hexPage(frame)} through ${hexPage(page)}, which container ${container} does not map there`);
  }

  private unpin(space: DomainSpace, iova: number, pages: number): void {
    space.unmap(iova, pages);
    // pages are given back after the invalidation: nothing lingers
    space.flushed(iova, pages);
  }

  private join(device: number, pasid: number, container: number): void {
    const source = this.sourceOf(device);
    if (source === undefined) return;
    const key = bondKey(source, pasid);
    const member = this.members.get(key);
    if (member !== undefined && member.container === container) member.devices++;
    else this.members.set(key, { container, devices: 1 });
    this.sources.set(source, (this.sources.get(source) ?? 0) + 1);
  }

  private leave(device: number, pasid: number): void {
    const source = this.sourceOf(device);
    if (source === undefined) return;
    const key = bondKey(source, pasid);
    const member = this.members.get(key);
    if (member !== undefined && --member.devices === 0) this.members.delete(key);
    const left = (this.sources.get(source) ?? 1) - 1;
    if (left === 0) this.sources.delete(source);
    else this.sources.set(source, left);
  }

  private space(container: number): DomainSpace {
    let space = this.spaces.get(container);
    if (space === undefined) this.spaces.set(container, (space = new DomainSpace()));
    return space;
  }
}
