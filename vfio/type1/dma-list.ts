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
  /** Whose memory it is. No use is held, so that a process may end while its pages stay pinned. */
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

/** Mappings in one piece of the list. */
const PIECE = 256;

/** Ordered in pieces, so that coming and going anywhere among 65,535 moves few. */
export class DmaList {
  count = 0;
  /** Ascending, none empty. */
  private readonly pieces: DmaMapping[][] = [];

  get last(): DmaMapping | undefined {
    return this.pieces.at(-1)?.at(-1);
  }

  /** Ascending; the list must not change meanwhile. */
  *[Symbol.iterator](): Generator<DmaMapping> {
    for (const piece of this.pieces) yield* piece;
  }

  /** The lowest mapping that touches [start, end). */
  first(start: number, end: number): DmaMapping | undefined {
    const piece = this.pieces[firstEndingAfter(this.pieces, start, endOfPiece)];
    const mapping = piece?.[firstEndingAfter(piece, start, endOfMapping)];
    return mapping !== undefined && mapping.page < end ? mapping : undefined;
  }

  find(page: number): DmaMapping | undefined {
    return this.first(page, page + 1);
  }

  insert(mapping: DmaMapping): void {
    assert(this.first(mapping.page, mapping.end) === undefined, 'overlapping mappings');
    if (this.pieces.length === 0) this.pieces.push([]);
    const at = Math.min(firstEndingAfter(this.pieces, mapping.page, endOfPiece), this.pieces.length - 1);
    const piece = this.pieces[at]!;
    piece.splice(firstEndingAfter(piece, mapping.page, endOfMapping), 0, mapping);
    if (piece.length > PIECE) this.pieces.splice(at + 1, 0, piece.splice(PIECE / 2));
    this.count++;
  }

  remove(mapping: DmaMapping): void {
    const at = firstEndingAfter(this.pieces, mapping.page, endOfPiece);
    const piece = this.pieces[at] ?? [];
    const index = firstEndingAfter(piece, mapping.page, endOfMapping);
    assert(piece[index] === mapping, 'a mapping of another container');
    piece.splice(index, 1);
    if (piece.length === 0) this.pieces.splice(at, 1);
    this.count--;
  }
}

function endOfPiece(piece: readonly DmaMapping[]): number {
  return piece.length === 0 ? 0 : piece[piece.length - 1]!.end;
}

function endOfMapping(mapping: DmaMapping): number {
  return mapping.end;
}

/** Index of the first of some ordered things that ends behind `page`; their number when none does. */
function firstEndingAfter<T>(items: readonly T[], page: number, endOf: (item: T) => number): number {
  let low = 0, high = items.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (endOf(items[middle]!) > page) high = middle;
    else low = middle + 1;
  }
  return low;
}
