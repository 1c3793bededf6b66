/**
 * Where device accesses land, judged by what software decided and not by what the IOMMU's model thinks.
 */
import { hex, hexPage } from '../../sim/address.js';
import { NO_PASID } from '../../host/pci/dma-port.js';
import { bondKey, Checker, type SourceOf } from './invariant.js';
import { DomainSpace, IDENTITY, ProcessSpace, type Lingering, type Space } from './spaces.js';
import type { Given, TranslationsForgotten } from './translations.js';

/** Writes here without PASID are interrupts and are not translated. */
const INTERRUPT_PAGES = { first: 0xfee00, end: 0xfef00 };

export interface DmaCheckerParts {
  readonly sourceOf: SourceOf;
  /** False for the names of domain types without tables (identity). */
  readonly translates: (typeName: number) => boolean;
  /** An IOMMU stands before the devices: what is bound to nothing reaches nothing. */
  readonly guarded: boolean;
  /** Which translations devices hold; stands before this checker in the set. */
  readonly translations: TranslationsForgotten;
}

interface Binding {
  readonly space: Space;
  /** `mm 3`, `domain 1` */
  readonly owner: string;
}

/**
 * No DMA lands outside a live mapping (section 5 rule 4). An untranslated request is judged by its device, PASID and
 * address; a translated one by the translations of its device that lead to the frame: one of them must still be true.
 */
export class DmaInsideMappings extends Checker {
  readonly name = 'no DMA lands outside a live mapping';
  readonly kinds = [
    'pci:dma', 'mm:set_pte', 'mm:clear_pte', 'mm:invalidated', 'mm:exit_mmap', 'mm:free', 'iommu:sva_bind', 'iommu:sva_unbind',
    'iommu:map', 'iommu:unmap', 'iommu:flush', 'iommu:attach_device_to_domain', 'iommu:detach_device_from_domain',
  ];
  /** Frames that no table maps any more, but some device may reach. */
  readonly lingering: Lingering = new Map<number, number>();
  private readonly parts: DmaCheckerParts;
  private readonly processes = new Map<number, ProcessSpace>();
  private readonly domains = new Map<number, DomainSpace>();
  /** What stands under a PASID (or none) of a device. */
  private readonly bindings = new Map<number, Binding>();

  constructor(parts: DmaCheckerParts) {
    super();
    this.parts = parts;
  }

  observe(kind: string, value: (argument: string) => number): void {
    switch (kind) {
      case 'pci:dma': return value('translated') === 1 ? this.translated(value) : this.untranslated(value);
      case 'mm:set_pte': return this.process(value('mm')).set(value('address'), value('frame'), value('pages'), value('writable') === 1);
      case 'mm:clear_pte': return this.process(value('mm')).clear(value('address'));
      case 'mm:invalidated': return this.process(value('mm')).invalidated(value('start'), value('end'));
      case 'mm:exit_mmap': return void (this.process(value('mm')).exiting = true);
      case 'mm:free': return void this.processes.delete(value('mm'));
      case 'iommu:sva_bind': {
        const space = this.process(value('mm'));
        if (value('refs') === 1) space.bound();
        return this.bind(value('device'), value('pasid'), { space, owner: `mm ${value('mm')}` });
      }
      case 'iommu:sva_unbind': {
        if (value('refs') > 0) return;
        this.process(value('mm')).unbound();
        return this.unbind(value('device'), value('pasid'));
      }
      case 'iommu:map': return this.domain(value('domain')).map(value('iova'), value('paddr') / 4096, value('size') / 4096);
      case 'iommu:unmap': return this.domain(value('domain')).unmap(value('iova'), Math.max(value('size'), value('unmapped_size')) / 4096);
      case 'iommu:flush': return this.domain(value('domain')).flushed(value('iova'), value('pages'));
      case 'iommu:attach_device_to_domain': {
        const space = this.parts.translates(value('type')) ? this.domain(value('domain')) : IDENTITY;
        return this.bind(value('device'), value('pasid'), { space, owner: `domain ${value('domain')}` });
      }
      case 'iommu:detach_device_from_domain': return this.unbind(value('device'), value('pasid'));
    }
  }

  private untranslated(value: (argument: string) => number): void {
    const source = value('source'), pasid = value('pasid'), page = value('iova'), frame = value('physical');
    const write = value('write') === 1;
    if (pasid === NO_PASID && page === frame && page >= INTERRUPT_PAGES.first && page < INTERRUPT_PAGES.end) return;
    const binding = this.bindings.get(bondKey(source, pasid));
    if (binding === undefined && !this.parts.guarded) return;
    this.checked++;
    if (binding?.space.allows(page, frame, write) === true) return;
    const why = binding === undefined ? 'is bound to nothing' : `is ${binding.owner}, which does not map it`;
    this.violate(`${access(source, write, frame)} for address ${hexPage(page)}; ${pasid === NO_PASID ? 'no PASID' : `PASID ${pasid}`} ${why}`);
  }

  private translated(value: (argument: string) => number): void {
    const source = value('source'), frame = value('physical'), write = value('write') === 1;
    this.checked++;
    let last: Given | undefined;
    for (const given of this.parts.translations.given(source, frame)) {
      if (this.bindings.get(bondKey(source, given.pasid))?.space.allows(given.page + (frame - given.frame), frame, write) === true) return;
      last = given;
    }
    let why = 'no translation led there';
    if (last !== undefined) {
      const owner = this.bindings.get(bondKey(source, last.pasid))?.owner ?? 'bound to nothing';
      why = `the translation of ${hexPage(last.page + (frame - last.frame))} of PASID ${last.pasid} (${owner}) is no longer true`;
    }
    this.violate(`${access(source, write, frame)} with a translated request; ${why}`);
  }

  private bind(device: number, pasid: number, binding: Binding): void {
    const source = this.parts.sourceOf(device);
    if (source !== undefined) this.bindings.set(bondKey(source, pasid), binding);
  }

  private unbind(device: number, pasid: number): void {
    const source = this.parts.sourceOf(device);
    if (source !== undefined) this.bindings.delete(bondKey(source, pasid));
  }

  private process(id: number): ProcessSpace {
    let space = this.processes.get(id);
    if (space === undefined) this.processes.set(id, (space = new ProcessSpace(this.lingering)));
    return space;
  }

  private domain(id: number): DomainSpace {
    let domain = this.domains.get(id);
    if (domain === undefined) this.domains.set(id, (domain = new DomainSpace()));
    return domain;
  }
}

function access(source: number, write: boolean, frame: number): string {
  return `device ${hex(source)} ${write ? 'wrote' : 'read'} frame ${hexPage(frame)}`;
}

/** No frame is freed while a device may still reach it through an entry that is gone from the table but not invalidated. */
export class FramesFreedUnreachable extends Checker {
  readonly name = 'no frame is freed while a device may reach it';
  readonly kinds = ['mm:free_frames'];
  private readonly lingering: Lingering;

  constructor(dma: DmaInsideMappings) {
    super();
    this.lingering = dma.lingering;
  }

  observe(_kind: string, value: (argument: string) => number): void {
    this.checked++;
    const page = this.lingering.get(value('frame'));
    if (page !== undefined) this.violate(`frame ${hexPage(value('frame'))} was freed before the invalidation of ${hexPage(page)} had completed`);
  }
}
