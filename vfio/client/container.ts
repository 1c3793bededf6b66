/** A container in the hands of a program: VFIO_* and VFIO_IOMMU_* of its descriptor, with values instead of records. */
import type { Struct } from '../../sim/layout.js';
import type { Steps } from '../../sim/task.js';
import { walkChain } from '../uapi/capability-chain.js';
import { concatWords } from '../uapi/fields.js';
import {
  VFIO_CHECK_EXTENSION, VFIO_GET_API_VERSION, VFIO_IOMMU_BIND, VFIO_IOMMU_DIRTY_PAGES, VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNBIND,
  VFIO_IOMMU_UNMAP_DMA, VFIO_SET_IOMMU, VFIO_TYPE1_IOMMU, VFIO_TYPE1_NESTING_IOMMU, VFIO_TYPE1v2_IOMMU,
} from '../uapi/ioctl.js';
import {
  BITMAP, DIRTY_BITMAP, DIRTY_BITMAP_GET, DMA_MAP, DMA_UNMAP, IOMMU_TYPE1_INFO, IOVA_RANGE, TYPE1_BIND, TYPE1_BIND_PROCESS, TYPE1_CAP_DMA_AVAIL,
  TYPE1_CAP_IOVA_RANGE, TYPE1_CAP_MIGRATION, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_ALL, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
  VFIO_IOMMU_BIND_PID, VFIO_IOMMU_BIND_PROCESS, VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP, VFIO_IOMMU_DIRTY_PAGES_FLAG_START, VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP,
  VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
} from '../uapi/type1.js';
import type { RawAnswer, VfioCalls } from './calls.js';

export type IommuType = 'type1' | 'type1v2' | 'nesting';

const TYPES: { readonly [K in IommuType]: number } = { type1: VFIO_TYPE1_IOMMU, type1v2: VFIO_TYPE1v2_IOMMU, nesting: VFIO_TYPE1_NESTING_IOMMU };

/** A 64-bit address or size; a bigint where a number would not be exact. */
export type U64 = number | bigint;

export interface DmaMapping {
  readonly iova: U64;
  readonly vaddr: U64;
  readonly sizeBytes: U64;
  /** Default: both. */
  readonly read?: boolean;
  readonly write?: boolean;
}

export interface IommuInfo {
  /** A bit for each page size. */
  readonly pageSizes: bigint;
  /** First and last byte of what may be mapped. */
  readonly iovaRanges: readonly { readonly first: bigint; readonly last: bigint }[] | undefined;
  readonly migration: { readonly pageSizes: bigint; readonly maxBitmapBytes: bigint } | undefined;
  /** Mappings that may still be made. */
  readonly dmaAvailable: number | undefined;
}

export class ContainerHandle {
  readonly fd: number;
  private readonly calls: VfioCalls;

  constructor(calls: VfioCalls, fd: number) {
    this.calls = calls;
    this.fd = fd;
  }

  *apiVersion(): Steps<number> {
    return yield* this.number(VFIO_GET_API_VERSION, 0);
  }

  /** 0: no. */
  *checkExtension(extension: number): Steps<number> {
    return yield* this.number(VFIO_CHECK_EXTENSION, extension);
  }

  /** C4, E32. */
  *setIommu(type: IommuType | number): Steps {
    yield* this.number(VFIO_SET_IOMMU, typeof type === 'number' ? type : TYPES[type]);
  }

  /** Asks once for the size of the answer and once for the answer. */
  *iommuInfo(): Steps<IommuInfo> {
    const { f, sizeBytes } = IOMMU_TYPE1_INFO;
    const first = yield* this.record(VFIO_IOMMU_GET_INFO, IOMMU_TYPE1_INFO.encode({ argsz: sizeBytes }));
    const argsz = Math.max(f.argsz.get(first), sizeBytes);
    const info = yield* this.record(VFIO_IOMMU_GET_INFO, concatWords(IOMMU_TYPE1_INFO.encode({ argsz }), new Uint32Array((argsz - sizeBytes) / 4)));
    let iovaRanges: IommuInfo['iovaRanges'], migration: IommuInfo['migration'], dmaAvailable: number | undefined;
    for (const { id, at } of walkChain(info, f.cap_offset.get(info))) {
      if (id === VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE) iovaRanges = rangesAt(info, at);
      if (id === VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION) {
        const { pgsize_bitmap, max_dirty_bitmap_size } = TYPE1_CAP_MIGRATION.decode(info, at);
        migration = { pageSizes: pgsize_bitmap, maxBitmapBytes: max_dirty_bitmap_size };
      }
      if (id === VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL) dmaAvailable = TYPE1_CAP_DMA_AVAIL.f.avail.get(info, at);
    }
    return { pageSizes: f.iova_pgsizes.getBig(info), iovaRanges, migration, dmaAvailable };
  }

  /** C8, E28. */
  *mapDma({ iova, vaddr, sizeBytes, read = true, write = true }: DmaMapping): Steps {
    const flags = (read ? VFIO_DMA_MAP_FLAG_READ : 0) | (write ? VFIO_DMA_MAP_FLAG_WRITE : 0);
    yield* this.record(VFIO_IOMMU_MAP_DMA, DMA_MAP.encode({ argsz: DMA_MAP.sizeBytes, flags, vaddr, iova, size: sizeBytes }));
  }

  /** C9, E29: bytes that were unmapped. With `all`, iova and size are 0. */
  *unmapDma(iova: U64, sizeBytes: U64, options: { readonly all?: boolean } = {}): Steps<number> {
    const flags = options.all === true ? VFIO_DMA_UNMAP_FLAG_ALL : 0;
    const after = yield* this.record(VFIO_IOMMU_UNMAP_DMA, DMA_UNMAP.encode({ argsz: DMA_UNMAP.sizeBytes, flags, iova, size: sizeBytes }));
    return DMA_UNMAP.f.size.get(after);
  }

  /** Unmaps exactly one mapping and tells which of its pages were written; a bit for each `pageBytes`. */
  *unmapDmaDirty(iova: U64, sizeBytes: number, pageBytes = 4096): Steps<{ readonly unmappedBytes: number; readonly dirty: Uint8Array }> {
    const flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
    const header = DMA_UNMAP.encode({ argsz: DMA_UNMAP.sizeBytes + BITMAP.sizeBytes, flags, iova, size: sizeBytes });
    const size = bitmapBytes(sizeBytes, pageBytes);
    return yield* this.calls.withMemory(size, (data) => this.unmapInto(concatWords(header, BITMAP.encode({ pgsize: pageBytes, size, data })), data, size));
  }

  private *unmapInto(words: Uint32Array, data: number, size: number): Steps<{ readonly unmappedBytes: number; readonly dirty: Uint8Array }> {
    const after = yield* this.record(VFIO_IOMMU_UNMAP_DMA, words);
    return { unmappedBytes: DMA_UNMAP.f.size.get(after), dirty: yield* this.readBack(data, size) };
  }

  *startDirtyTracking(): Steps {
    yield* this.record(VFIO_IOMMU_DIRTY_PAGES, DIRTY_BITMAP.encode({ argsz: DIRTY_BITMAP.sizeBytes, flags: VFIO_IOMMU_DIRTY_PAGES_FLAG_START }));
  }

  *stopDirtyTracking(): Steps {
    yield* this.record(VFIO_IOMMU_DIRTY_PAGES, DIRTY_BITMAP.encode({ argsz: DIRTY_BITMAP.sizeBytes, flags: VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP }));
  }

  /** Which pages of the range were written since the last question; a bit for each `pageBytes`. */
  *dirtyBitmap(iova: U64, sizeBytes: number, pageBytes = 4096): Steps<Uint8Array> {
    const header = DIRTY_BITMAP.encode({ argsz: DIRTY_BITMAP.sizeBytes + DIRTY_BITMAP_GET.sizeBytes, flags: VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP });
    const size = bitmapBytes(sizeBytes, pageBytes);
    return yield* this.calls.withMemory(size, (data) => this.bitmapInto(
      concatWords(header, DIRTY_BITMAP_GET.encode({ iova, size: sizeBytes, bitmap_pgsize: pageBytes, bitmap_size: size, bitmap_data: data })), data, size));
  }

  private *bitmapInto(words: Uint32Array, data: number, size: number): Steps<Uint8Array> {
    yield* this.record(VFIO_IOMMU_DIRTY_PAGES, words);
    return yield* this.readBack(data, size);
  }

  /** V1: binds the caller's address space, or that of `pid`; the PASID. */
  *bind(pid?: number): Steps<number> {
    const after = yield* this.record(VFIO_IOMMU_BIND, bindRecord(pid));
    return TYPE1_BIND_PROCESS.f.pasid.get(after, TYPE1_BIND.sizeWords);
  }

  /** V2. */
  *unbind(pid?: number): Steps {
    yield* this.record(VFIO_IOMMU_UNBIND, bindRecord(pid));
  }

  /** Any command with any bytes as its record. */
  *raw(command: number, bytes: Uint8Array): Steps<RawAnswer> {
    return yield* this.calls.raw(this.fd, command, bytes);
  }

  /** Any command with a number or address as its argument. */
  *number(command: number, argument: number): Steps<number> {
    return yield* this.calls.process.ioctl(this.fd, command, argument);
  }

  *close(): Steps {
    yield* this.calls.process.close(this.fd);
  }

  private *record(command: number, words: Uint32Array): Steps<Uint32Array> {
    return yield* this.calls.record(this.fd, command, words);
  }

  private *readBack(address: number, length: number): Steps<Uint8Array> {
    const bytes = new Uint8Array(length);
    yield* this.calls.process.mm.read(address, bytes);
    return bytes;
  }
}

/** Bytes of a bitmap of whole 64-bit words. */
export function bitmapBytes(sizeBytes: number, pageBytes: number): number {
  return Math.ceil(sizeBytes / pageBytes / 64) * 8;
}

function bindRecord(pid: number | undefined): Uint32Array {
  const argsz = TYPE1_BIND.sizeBytes + TYPE1_BIND_PROCESS.sizeBytes;
  const process = pid === undefined ? {} : { flags: VFIO_IOMMU_BIND_PID, pid: pid >>> 0 };
  return concatWords(TYPE1_BIND.encode({ argsz, flags: VFIO_IOMMU_BIND_PROCESS }), TYPE1_BIND_PROCESS.encode(process));
}

function rangesAt(words: Uint32Array, at: number): { first: bigint; last: bigint }[] {
  const first = at + (TYPE1_CAP_IOVA_RANGE as Struct).sizeWords;
  return Array.from({ length: TYPE1_CAP_IOVA_RANGE.f.nr_iovas.get(words, at) }, (_, i) => {
    const { start, end } = IOVA_RANGE.decode(words, first + i * IOVA_RANGE.sizeWords);
    return { first: start, last: end };
  });
}
