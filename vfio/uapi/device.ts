/**
 * Records of a device's descriptor (include/uapi/linux/vfio.h, v6.12): device, region and interrupt information,
 * SET_IRQS, hot reset and the header of DEVICE_FEATURE. Flags of the first three are in vfio/device.ts.
 */
import { struct } from '../../sim/layout.js';
import { u16, u32, u64, u8 } from './fields.js';

export const DEVICE_INFO = struct('vfio_device_info', 24, { argsz: u32(0), flags: u32(4), num_regions: u32(8), num_irqs: u32(12), cap_offset: u32(16), pad: u32(20) });
/** What every caller has to provide: up to and with num_irqs. */
export const DEVICE_INFO_MINSZ = 16;

export const REGION_INFO = struct('vfio_region_info', 32, {
  argsz: u32(0), flags: u32(4), index: u32(8), cap_offset: u32(12), size: u64(16), offset: u64(24),
});
export const VFIO_REGION_INFO_CAP_SPARSE_MMAP = 1;
export const VFIO_REGION_INFO_CAP_TYPE = 2;
export const VFIO_REGION_INFO_CAP_MSIX_MAPPABLE = 3;
/** Behind the header of SPARSE_MMAP: number of areas, then the areas. */
export const REGION_CAP_SPARSE_MMAP = struct('vfio_region_info_cap_sparse_mmap', 8, { nr_areas: u32(0), reserved: u32(4) });
export const SPARSE_MMAP_AREA = struct('vfio_region_sparse_mmap_area', 16, { offset: u64(0), size: u64(8) });
/** Behind the header of TYPE. */
export const REGION_CAP_TYPE = struct('vfio_region_info_cap_type', 8, { type: u32(0), subtype: u32(4) });

export const IRQ_INFO = struct('vfio_irq_info', 16, { argsz: u32(0), flags: u32(4), index: u32(8), count: u32(12) });

/** `count` bytes or signed 32-bit descriptors follow. */
export const IRQ_SET = struct('vfio_irq_set', 20, { argsz: u32(0), flags: u32(4), index: u32(8), start: u32(12), count: u32(16) });
export const VFIO_IRQ_SET_DATA_NONE = 1 << 0;
export const VFIO_IRQ_SET_DATA_BOOL = 1 << 1;
export const VFIO_IRQ_SET_DATA_EVENTFD = 1 << 2;
export const VFIO_IRQ_SET_ACTION_MASK = 1 << 3;
export const VFIO_IRQ_SET_ACTION_UNMASK = 1 << 4;
export const VFIO_IRQ_SET_ACTION_TRIGGER = 1 << 5;
export const VFIO_IRQ_SET_DATA_TYPE_MASK = VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_DATA_BOOL | VFIO_IRQ_SET_DATA_EVENTFD;
export const VFIO_IRQ_SET_ACTION_TYPE_MASK = VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_ACTION_UNMASK | VFIO_IRQ_SET_ACTION_TRIGGER;

/** `count` dependent devices follow. */
export const PCI_HOT_RESET_INFO = struct('vfio_pci_hot_reset_info', 12, { argsz: u32(0), flags: u32(4), count: u32(8) });
export const PCI_DEPENDENT_DEVICE = struct('vfio_pci_dependent_device', 8, { group_id: u32(0), segment: u16(4), bus: u8(6), devfn: u8(7) });
/** `count` signed 32-bit descriptors of groups follow. */
export const PCI_HOT_RESET = struct('vfio_pci_hot_reset', 12, { argsz: u32(0), flags: u32(4), count: u32(8) });

/** The feature's own record follows. */
export const DEVICE_FEATURE = struct('vfio_device_feature', 8, { argsz: u32(0), flags: u32(4) });
export const VFIO_DEVICE_FEATURE_MASK = 0xffff;
export const VFIO_DEVICE_FEATURE_GET = 1 << 16;
export const VFIO_DEVICE_FEATURE_SET = 1 << 17;
export const VFIO_DEVICE_FEATURE_PROBE = 1 << 18;
