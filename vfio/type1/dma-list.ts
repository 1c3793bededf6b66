/** The mappings of a container (`struct vfio_dma`), ordered by I/O virtual address; they do not overlap. Addresses are page numbers. */
import { assert } from '../../sim/assert.js';
import { FrameRuns } from '../../host/frame-runs.js';
import type { Mm } from '../../host/mm/mm.js';

/** A page that vendors' drivers pinned, counted (`struct vfio_pfn`). */
export interface VendorPin {
  /** Physical address. */
  readonly physical: number;
  references: number;
}

export interface DmaMappingOptions {
  readonly page: number;
  readonly pages: number;
  /** In the mapper's address space; aligned. */
  readonly vaddr: number;
  /** PROT_* of iommu/core/ops.ts. */
  readonly prot: number;
  readonly mm: Mm;
  /** The mapper had CAP_IPC_LOCK: RLIMIT_MEMLOCK does not stop it. */
  readonly ipcLock: boolean;
  /** Frames that a run may have. */
  readonly longestRun: number;
}

export class DmaMapping {
  readonly page: number;
  readonly pages: number;
  readonly vaddr: number;
  readonly prot: number;
  /** Whose memory it is; the container keeps its structure. */
  readonly mm: Mm;
  readonly ipcLock: boolean;
  /** Mapped in every domain of the container; without one it is only recorded. */
  iommuMapped = false;
  /** Every page is charged to `mm`, not only what vendors pinned. */
  charged = false;
  /** Frames that the container pinned for its domains, in order. */
  readonly runs: FrameRuns;
  readonly vendorPins = new Map<number, VendorPin>();
  /** A bit for each page while dirty pages are logged. */
  bitmap: Uint8Array | undefined;

  constructor(options: DmaMappingOptions) {
    this.page = options.page;
    this.pages = options.pages;
    this.vaddr = options.vaddr;
    this.prot = options.prot;
    this.mm = options.mm;
    this.ipcLock = options.ipcLock;
    this.runs = new FrameRuns(options.longestRun);
  }

  get end(): number {
    return this.page + this.pages;
  }
}

export class DmaList {
  private readonly items: DmaMapping[] = [];

  get count(): number {
    return this.items.length;
  }

  /** Ascending. */
  [Symbol.iterator](): Iterator<DmaMapping> {
    return this.items[Symbol.iterator]();
  }

  /** The lowest mapping that touches [start, end). */
  first(start: number, end: number): DmaMapping | undefined {
    const mapping = this.items[this.firstEndingAfter(start)];
    return mapping !== undefined && mapping.page < end ? mapping : undefined;
  }

  find(page: number): DmaMapping | undefined {
    return this.first(page, page + 1);
  }

  insert(mapping: DmaMapping): void {
    const at = this.firstEndingAfter(mapping.page);
    assert(at === this.items.length || this.items[at]!.page >= mapping.end, 'overlapping mappings');
    this.items.splice(at, 0, mapping);
  }

  remove(mapping: DmaMapping): void {
    const at = this.firstEndingAfter(mapping.page);
    assert(this.items[at] === mapping, 'a mapping of another container');
    this.items.splice(at, 1);
  }

  private firstEndingAfter(page: number): number {
    const { items } = this;
    let low = 0, high = items.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (items[middle]!.end > page) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}
