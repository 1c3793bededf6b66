/**
 * Records of a container's type1 IOMMU (include/uapi/linux/vfio.h, v6.12), and of the proposed BIND and UNBIND
 * ("vfio: Add support for Shared Virtual Addressing" v2, 11 May 2018; V1).
 */
import { struct } from '../../sim/layout.js';
import { u32, u64 } from './fields.js';

export const IOMMU_TYPE1_INFO = struct('vfio_iommu_type1_info', 24, { argsz: u32(0), flags: u32(4), iova_pgsizes: u64(8), cap_offset: u32(16), pad: u32(20) });
/** What every caller has to provide: up to and with iova_pgsizes. */
export const IOMMU_TYPE1_INFO_MINSZ = 16;
/** With this much the caller can take a capability's offset; the capabilities follow the whole record. */
export const IOMMU_TYPE1_INFO_CAPSZ = 20;
export const VFIO_IOMMU_INFO_PGSIZES = 1 << 0;
export const VFIO_IOMMU_INFO_CAPS = 1 << 1;
export const VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = 1;
export const VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION = 2;
export const VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL = 3;
/** Behind the header of IOVA_RANGE: number of ranges, then the ranges. */
export const TYPE1_CAP_IOVA_RANGE = struct('vfio_iommu_type1_info_cap_iova_range', 8, { nr_iovas: u32(0), reserved: u32(4) });
/** First and last byte. */
export const IOVA_RANGE = struct('vfio_iova_range', 16, { start: u64(0), end: u64(8) });
/** Behind the header of MIGRATION. */
export const TYPE1_CAP_MIGRATION = struct('vfio_iommu_type1_info_cap_migration', 24, { flags: u32(0), pgsize_bitmap: u64(8), max_dirty_bitmap_size: u64(16) });
/** Behind the header of DMA_AVAIL. */
export const TYPE1_CAP_DMA_AVAIL = struct('vfio_iommu_type1_info_dma_avail', 4, { avail: u32(0) });

export const DMA_MAP = struct('vfio_iommu_type1_dma_map', 32, { argsz: u32(0), flags: u32(4), vaddr: u64(8), iova: u64(16), size: u64(24) });
export const VFIO_DMA_MAP_FLAG_READ = 1 << 0;
export const VFIO_DMA_MAP_FLAG_WRITE = 1 << 1;
export const VFIO_DMA_MAP_FLAG_VADDR = 1 << 2;

/** With GET_DIRTY_BITMAP a vfio_bitmap follows. */
export const DMA_UNMAP = struct('vfio_iommu_type1_dma_unmap', 24, { argsz: u32(0), flags: u32(4), iova: u64(8), size: u64(16) });
export const VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP = 1 << 0;
export const VFIO_DMA_UNMAP_FLAG_ALL = 1 << 1;
export const VFIO_DMA_UNMAP_FLAG_VADDR = 1 << 2;

/** `size` bytes of bitmap at `data` in the caller's memory, a bit for each `pgsize` bytes. */
export const BITMAP = struct('vfio_bitmap', 24, { pgsize: u64(0), size: u64(8), data: u64(16) });

/** With GET_BITMAP a vfio_iommu_type1_dirty_bitmap_get follows. */
export const DIRTY_BITMAP = struct('vfio_iommu_type1_dirty_bitmap', 8, { argsz: u32(0), flags: u32(4) });
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_START = 1 << 0;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP = 1 << 1;
export const VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP = 1 << 2;
/** The range, and a vfio_bitmap. */
export const DIRTY_BITMAP_GET = struct('vfio_iommu_type1_dirty_bitmap_get', 40, {
  iova: u64(0), size: u64(8), bitmap_pgsize: u64(16), bitmap_size: u64(24), bitmap_data: u64(32),
});

/** With mode PROCESS a vfio_iommu_type1_bind_process follows. */
export const TYPE1_BIND = struct('vfio_iommu_type1_bind', 8, { argsz: u32(0), flags: u32(4) });
export const VFIO_IOMMU_BIND_PROCESS = 1 << 0;
/** `pasid` is written back by BIND; `pid` is signed and means something with the flag BIND_PID only. */
export const TYPE1_BIND_PROCESS = struct('vfio_iommu_type1_bind_process', 12, { flags: u32(0), pasid: u32(4), pid: u32(8) });
export const VFIO_IOMMU_BIND_PID = 1 << 0;
