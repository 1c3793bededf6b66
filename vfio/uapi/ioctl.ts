/**
 * Numbers of VFIO's ioctls (include/uapi/linux/vfio.h, v6.12): `_IO(';', 100 + n)`, so the direction and size bits
 * are zero. Some numbers are used twice, by containers and by devices. BIND and UNBIND were proposed and never
 * merged (V1).
 */
const VFIO_TYPE = ';'.charCodeAt(0);
const VFIO_BASE = 100;

/** `_IO(type, number)` of include/uapi/asm-generic/ioctl.h. */
function io(number: number): number {
  return (VFIO_TYPE << 8) | (VFIO_BASE + number);
}

// Containers
export const VFIO_GET_API_VERSION = io(0);
export const VFIO_CHECK_EXTENSION = io(1);
export const VFIO_SET_IOMMU = io(2);
export const VFIO_IOMMU_GET_INFO = io(12);
export const VFIO_IOMMU_MAP_DMA = io(13);
export const VFIO_IOMMU_UNMAP_DMA = io(14);
export const VFIO_IOMMU_ENABLE = io(15);
export const VFIO_IOMMU_DISABLE = io(16);
export const VFIO_IOMMU_DIRTY_PAGES = io(17);
export const VFIO_IOMMU_BIND = io(22);
export const VFIO_IOMMU_UNBIND = io(23);

// Groups
export const VFIO_GROUP_GET_STATUS = io(3);
export const VFIO_GROUP_SET_CONTAINER = io(4);
export const VFIO_GROUP_UNSET_CONTAINER = io(5);
export const VFIO_GROUP_GET_DEVICE_FD = io(6);

// Devices
export const VFIO_DEVICE_GET_INFO = io(7);
export const VFIO_DEVICE_GET_REGION_INFO = io(8);
export const VFIO_DEVICE_GET_IRQ_INFO = io(9);
export const VFIO_DEVICE_SET_IRQS = io(10);
export const VFIO_DEVICE_RESET = io(11);
export const VFIO_DEVICE_GET_PCI_HOT_RESET_INFO = io(12);
export const VFIO_DEVICE_PCI_HOT_RESET = io(13);
export const VFIO_DEVICE_IOEVENTFD = io(16);
export const VFIO_DEVICE_FEATURE = io(17);

/** On the descriptor of a migration's data, while it pre-copies. */
export const VFIO_MIG_GET_PRECOPY_INFO = io(21);

/** Answer to VFIO_GET_API_VERSION. */
export const VFIO_API_VERSION = 0;

// Extensions and types of container IOMMUs
export const VFIO_TYPE1_IOMMU = 1;
export const VFIO_TYPE1v2_IOMMU = 3;
export const VFIO_DMA_CC_IOMMU = 4;
export const VFIO_TYPE1_NESTING_IOMMU = 6;
export const VFIO_UNMAP_ALL = 9;
export const VFIO_UPDATE_VADDR = 10;
