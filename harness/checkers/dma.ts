/**
 * Where device accesses land, judged by what software decided and not by what the IOMMU's model thinks: a shadow of
 * every address space and kernel domain is kept from the records of their changes. An old entry stays allowed until
 * the invalidation that follows its removal has completed.
 */
import { hex, hexPage } from '../../sim/address.js';
import { Checker } from './invariant.js';

interface Entry {
  readonly frame: number;
  readonly pages: number;
  writable: boolean;
  /** Was writable until a moment ago, and the invalidation that says so is still under way. */
  lateWrite: boolean;
}

const LEAVES = [1, 512, 0x4_0000];

/** Leaf entries of one page table by first page; old ones linger until invalidated. */
class Shadow {
  private readonly live = new Map<number, Entry>();
  /** Live entries by first frame; of several the last one set. */
  private readonly byFrame = new Map<number, Entry>();
  private retired: { page: number; entry: Entry }[] = [];

  set(page: number, frame: number, pages: number, writable: boolean): void {
    const old = this.live.get(page);
    if (old !== undefined && old.frame === frame && old.pages === pages) {
      if (old.writable && !writable) old.lateWrite = true;
      old.writable = writable;
      return;
    }
    if (old !== undefined) this.clear(page, false);
    const entry = { frame, pages, writable, lateWrite: false };
    this.live.set(page, entry);
    this.byFrame.set(frame, entry);
  }

  /** @param final nobody may use the entry from now on */
  clear(page: number, final: boolean): void {
    const entry = this.live.get(page);
    if (entry === undefined) return;
    this.live.delete(page);
    if (this.byFrame.get(entry.frame) === entry) this.byFrame.delete(entry.frame);
    if (!final) this.retired.push({ page, entry });
  }

  invalidated(start: number, end: number): void {
    this.retired = this.retired.filter(({ page, entry }) => page + entry.pages <= start || page >= end);
    for (const entry of this.lateWriters(start, end)) entry.lateWrite = false;
  }

  allows(page: number, frame: number, write: boolean): boolean {
    for (const pages of LEAVES) {
      const base = page - (page % pages);
      const entry = this.live.get(base);
      if (entry !== undefined && entry.pages === pages && entry.frame + (page - base) === frame && (!write || entry.writable || entry.lateWrite)) return true;
    }
    return this.retired.some(({ page: base, entry }) => page >= base && page < base + entry.pages && entry.frame + (page - base) === frame);
  }

  /** True when some page maps the frame, or maps it no more but has not been invalidated. */
  reaches(frame: number, write: boolean): boolean {
    const base = this.byFrame.get(frame) ?? this.byFrame.get(frame - (frame % 512)) ?? this.byFrame.get(frame - (frame % 0x4_0000));
    if (base !== undefined && base.frame + base.pages > frame && (!write || base.writable || base.lateWrite)) return true;
    return this.retired.some(({ entry }) => frame >= entry.frame && frame < entry.frame + entry.pages);
  }

  private *lateWriters(start: number, end: number): Generator<Entry> {
    for (const [page, entry] of this.live) if (entry.lateWrite && page + entry.pages > start && page < end) yield entry;
  }
}

/** No DMA lands outside a live mapping; after an invalidation completed nobody uses the old translation. */
export class DmaInsideMappings extends Checker {
  readonly name = 'no DMA lands outside a live mapping';
  readonly kinds = [
    'pci:dma', 'mm:set_pte', 'mm:clear_pte', 'mm:invalidated', 'mm:exit_mmap', 'mm:free', 'iommu:sva_bind', 'iommu:sva_unbind',
  ];
  private readonly spaces = new Map<number, Shadow>();
  private readonly exiting = new Set<number>();
  private readonly owners = new Map<number, number>();
  /** source id → mms bound to the device */
  private readonly bound = new Map<number, Set<number>>();
  private readonly sourceOf: (deviceName: number) => number | undefined;

  /** @param sourceOf source id of a device by the number of its name in the trace */
  constructor(sourceOf: (deviceName: number) => number | undefined) {
    super();
    this.sourceOf = sourceOf;
  }

  observe(kind: string, value: (argument: string) => number): void {
    switch (kind) {
      case 'pci:dma': return this.dma(value);
      case 'iommu:sva_bind': return this.bind(value('device'), value('pasid'), value('mm'));
      case 'iommu:sva_unbind': return this.unbind(value('device'), value('mm'), value('refs'));
      case 'mm:exit_mmap': return void this.exiting.add(value('mm'));
      case 'mm:free': return void this.spaces.delete(value('mm'));
      case 'mm:invalidated': return this.space(value('mm')).invalidated(value('start'), value('end'));
      case 'mm:set_pte': return this.space(value('mm')).set(value('address'), value('frame'), value('pages'), value('writable') === 1);
      case 'mm:clear_pte': return this.space(value('mm')).clear(value('address'), this.exiting.has(value('mm')));
    }
  }

  private bind(device: number, pasid: number, mm: number): void {
    this.owners.set(pasid, mm);
    const source = this.sourceOf(device);
    if (source === undefined) return;
    const mms = this.bound.get(source);
    if (mms === undefined) this.bound.set(source, new Set([mm]));
    else mms.add(mm);
  }

  private unbind(device: number, mm: number, refs: number): void {
    const source = this.sourceOf(device);
    if (refs === 0 && source !== undefined) this.bound.get(source)?.delete(mm);
  }

  private dma(value: (argument: string) => number): void {
    const pasid = value('pasid'), source = value('source');
    const write = value('write') === 1;
    const page = value('iova'), frame = value('physical');
    // a translated request carries no PASID: the frame must be reachable in some mm bound to the device
    if (value('translated') === 1) {
      const mms = this.bound.get(source);
      if (mms === undefined) return;
      this.checked++;
      for (const mm of mms) if (this.space(mm).reaches(frame, write)) return;
      this.violate(`device ${hex(source)} ${write ? 'wrote' : 'read'} frame ${hexPage(frame)}, which no mm bound to it maps`);
      return;
    }
    const mm = this.owners.get(pasid);
    if (mm === undefined) return;
    this.checked++;
    if (this.space(mm).allows(page, frame, write)) return;
    this.violate(`device ${hex(source)} ${write ? 'wrote' : 'read'} frame ${hexPage(frame)} for address ${hexPage(page)} of PASID ${pasid} (mm ${mm}), which does not map it`);
  }

  private space(mm: number): Shadow {
    let space = this.spaces.get(mm);
    if (space === undefined) this.spaces.set(mm, (space = new Shadow()));
    return space;
  }
}

/** Requests without PASID land where the domain of their device maps them (kernel buffers through the DMA API). */
export class KernelDmaInsideDomains extends Checker {
  readonly name = 'no kernel DMA lands outside its domain';
  readonly kinds = ['pci:dma', 'iommu:map', 'iommu:unmap', 'iommu:flush', 'iommu:attach_device_to_domain'];
  private readonly domains = new Map<number, Shadow>();
  /** source id and PASID → domain, undefined where requests pass untranslated */
  private readonly attached = new Map<string, number | undefined>();
  private readonly sourceOf: (deviceName: number) => number | undefined;
  private readonly translates: (typeName: number) => boolean;

  /**
   * @param sourceOf source id of a device by the number of its name in the trace
   * @param translates false for the names of domain types without tables (identity)
   */
  constructor(sourceOf: (deviceName: number) => number | undefined, translates: (typeName: number) => boolean) {
    super();
    this.sourceOf = sourceOf;
    this.translates = translates;
  }

  observe(kind: string, value: (argument: string) => number): void {
    switch (kind) {
      case 'pci:dma': return this.dma(value);
      case 'iommu:map': {
        const pages = value('size') / 4096;
        for (let i = 0; i < pages; i++) this.domain(value('domain')).set(value('iova') + i, value('paddr') / 4096 + i, 1, true);
        return;
      }
      case 'iommu:unmap': {
        for (let i = 0; i < value('size') / 4096; i++) this.domain(value('domain')).clear(value('iova') + i, false);
        return;
      }
      case 'iommu:flush': return this.domain(value('domain')).invalidated(value('iova'), value('iova') + value('pages'));
      case 'iommu:attach_device_to_domain': {
        const source = this.sourceOf(value('device'));
        if (source !== undefined) this.attached.set(`${source}/${value('pasid')}`, this.translates(value('type')) ? value('domain') : undefined);
      }
    }
  }

  private dma(value: (argument: string) => number): void {
    const domain = this.attached.get(`${value('source')}/${value('pasid')}`);
    // translated requests carry no PASID and a physical address: DmaInsideMappings judges them
    if (domain === undefined || value('translated') === 1) return;
    this.checked++;
    const page = value('iova'), frame = value('physical');
    if (page >= 0xfee00 && page < 0xfef00 && page === frame) return;
    if (this.domain(domain).allows(page, frame, value('write') === 1)) return;
    this.violate(`device ${hex(value('source'))} reached frame ${hexPage(frame)} for address ${hexPage(page)}, which domain ${domain} does not map`);
  }

  private domain(id: number): Shadow {
    let domain = this.domains.get(id);
    if (domain === undefined) this.domains.set(id, (domain = new Shadow()));
    return domain;
  }
}
