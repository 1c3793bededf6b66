/**
 * The joint between VFIO and who offers a device to user space (`struct vfio_device_ops`, include/linux/vfio.h):
 * vfio-pci, and mediated devices' parents. Values here are typed; the core turns them into uapi records
 * (include/uapi/linux/vfio.h) and back. An offset into the device file is `index * 2^40 + offset in the region`
 * (VFIO_PCI_OFFSET_SHIFT), which a double holds exactly.
 */
import type { EventFd } from '../host/eventfd.js';
import type { Device } from '../host/device.js';
import type { Process } from '../host/process.js';
import type { IommuGroup } from '../iommu/core/records.js';
import type { Mmio } from '../sim/mmio.js';
import type { Steps } from '../sim/task.js';

/** Bytes of one region's part of the device file. */
export const REGION_STRIDE = 2 ** 40;

/** vfio_device_info.flags */
export const DEVICE_FLAGS_RESET = 1 << 0;
export const DEVICE_FLAGS_PCI = 1 << 1;
/** vfio_region_info.flags */
export const REGION_INFO_READ = 1 << 0;
export const REGION_INFO_WRITE = 1 << 1;
export const REGION_INFO_MMAP = 1 << 2;
export const REGION_INFO_CAPS = 1 << 3;
/** vfio_irq_info.flags */
export const IRQ_INFO_EVENTFD = 1 << 0;
export const IRQ_INFO_MASKABLE = 1 << 1;
export const IRQ_INFO_AUTOMASKED = 1 << 2;
export const IRQ_INFO_NORESIZE = 1 << 3;

/** Region and interrupt indices of a PCI device. */
export const PCI_BAR0_REGION = 0;
export const PCI_BAR2_REGION = 2;
export const PCI_ROM_REGION = 6;
export const PCI_CONFIG_REGION = 7;
export const PCI_VGA_REGION = 8;
export const PCI_NUM_REGIONS = 9;
export const PCI_INTX_IRQ = 0;
export const PCI_MSI_IRQ = 1;
export const PCI_MSIX_IRQ = 2;
export const PCI_ERR_IRQ = 3;
export const PCI_REQ_IRQ = 4;
export const PCI_NUM_IRQS = 5;

export interface VfioDeviceInfo {
  readonly flags: number;
  readonly regions: number;
  readonly irqs: number;
}

/** A part of a region that may be mapped (VFIO_REGION_INFO_CAP_SPARSE_MMAP); offsets inside the region, whole pages. */
export interface SparseArea {
  readonly offset: number;
  readonly sizeBytes: number;
}

export interface VfioRegionInfo {
  readonly flags: number;
  readonly sizeBytes: number;
  /** Without it a mappable region is mappable as a whole. */
  readonly sparse?: readonly SparseArea[];
  /** VFIO_REGION_INFO_CAP_TYPE, for regions beyond the fixed ones. */
  readonly type?: { readonly type: number; readonly subtype: number };
  /** VFIO_REGION_INFO_CAP_MSIX_MAPPABLE: the MSI-X table may be mapped with the rest. */
  readonly msixMappable?: boolean;
}

export interface VfioIrqInfo {
  readonly flags: number;
  readonly count: number;
}

/** What VFIO_DEVICE_SET_IRQS asks for. */
export interface VfioIrqSet {
  readonly index: number;
  readonly start: number;
  readonly count: number;
  readonly action: 'mask' | 'unmask' | 'trigger';
  /**
   * `none`: the action for all of them; with `trigger` and count 0: interrupts of this index are torn down.
   * `bool`: for those that are true. `eventfd`: one each, undefined (-1) takes it away.
   */
  readonly data: { readonly kind: 'none' } | { readonly kind: 'bool'; readonly values: readonly boolean[] } | { readonly kind: 'eventfd'; readonly fds: readonly (EventFd | undefined)[] };
}

/** What VFIO_DEVICE_FEATURE asks for. */
export interface VfioFeatureRequest {
  /** VFIO_DEVICE_FEATURE_* number. */
  readonly feature: number;
  readonly get: boolean;
  readonly set: boolean;
  readonly probe: boolean;
  /** The bytes behind the header; what a GET returns is written over them. */
  readonly data: Uint8Array;
  readonly caller: Process;
  /** Set by who made something whose name is in the answer, such as a descriptor: takes it back when the answer does not reach the caller. */
  undo?: () => Steps;
}

/** A device that a user may hold. Reads, writes and mappings do not sleep: they are loads and stores of a CPU. */
export interface VfioDeviceOps {
  /** As VFIO_GROUP_GET_DEVICE_FD takes it: a BDF or a UUID. */
  readonly name: string;
  /** The first descriptor. A refusal reaches the caller of GET_DEVICE_FD. */
  open(): Steps;
  /** The last descriptor is gone (C18): DMA off, interrupts torn down, state restored, reset where possible. */
  close(): Steps;
  info(): VfioDeviceInfo;
  /** EINVAL no such region. */
  regionInfo(index: number): VfioRegionInfo;
  /** EINVAL no such index. */
  irqInfo(index: number): VfioIrqInfo;
  /** pread: bytes read. EINVAL offset outside of every region, EIO the region cannot be reached now. */
  read(offset: number, target: Uint8Array): number;
  /** pwrite: bytes written. */
  write(offset: number, source: Uint8Array): number;
  /** mmap of a part of a region: CPU accesses then go to the hardware. EINVAL not mappable. */
  mmap(offset: number, sizeBytes: number): Mmio;
  /** EINVAL as drivers/vfio/pci/vfio_pci_intrs.c; all of the request or nothing. */
  setIrqs(request: VfioIrqSet): Steps;
  /** VFIO_DEVICE_RESET. EINVAL (vfio-pci) or ENOTTY when it has none. */
  reset(): Steps;
  /** Somebody wants the device back; called every 10 s until it is closed (C17). @param count 0 the first time */
  request(count: number): void;
  /** VFIO_DEVICE_FEATURE; bytes written into `data` for GET. ENOTTY unknown feature. */
  feature?(request: VfioFeatureRequest): Steps<number>;
  /** Any other ioctl of the device; `argument` is the caller's pointer or number. ENOTTY. */
  ioctl?(caller: Process, command: number, argument: number): Steps<number>;
}

/** How VFIO sees the group of a device: one of the IOMMU core's, or, for a mediated device, a number of its own. */
export interface VfioGroupIdentity {
  /** As in /dev/vfio/$id. */
  readonly id: number;
  /** The core's group; undefined for a mediated device, which no IOMMU translates by itself. */
  readonly iommuGroup?: IommuGroup;
}

/** What a driver hands to VFIO at registration. */
export interface VfioRegistration {
  readonly device: Device;
  readonly ops: VfioDeviceOps;
  readonly group: VfioGroupIdentity;
  /**
   * Mediated devices only (Y1): the device whose requests carry the mediated device's DMA, in an aux domain when AUX is
   * enabled on it. Undefined: the vendor's driver isolates, through pinned pages.
   */
  readonly iommuDevice?: () => Device | undefined;
}

/** Told to a vendor driver that pins pages (VFIO_IOMMU_NOTIFY_DMA_UNMAP); it must unpin what lies in the range before it returns, or soon after. */
export interface DmaUnmapNotifier {
  dmaUnmap(iova: number, sizeBytes: number): Steps;
}

/** What a vendor driver may do with the memory of the device's user (C10; vfio_pin_pages and friends). */
export interface VfioPinning {
  /**
   * Pins single pages of the container's address space; host physical addresses in the same order.
   * EACCES a v1 container, EINVAL no notifier or iova not mapped, EPERM protection, ENOMEM limit; nothing stays pinned on failure.
   */
  pinPages(device: Device, iovas: readonly number[], prot: number): Steps<number[]>;
  /** Number of pages that were pinned and are no more. */
  unpinPages(device: Device, iovas: readonly number[]): number;
  /** vfio_dma_rw: the CPU copies from or to the user's memory. EINVAL not mapped, EPERM, EFAULT. */
  dmaRw(device: Device, iova: number, bytes: Uint8Array, write: boolean): Steps;
  /** ENODEV the device is not in use, EBUSY it has one. */
  registerNotifier(device: Device, notifier: DmaUnmapNotifier): void;
  unregisterNotifier(device: Device, notifier: DmaUnmapNotifier): void;
}

/** What VFIO offers to drivers. */
export interface VfioCore extends VfioPinning {
  /** Makes /dev/vfio/$group appear. EBUSY registered already. */
  register(registration: VfioRegistration): void;
  /** Waits until no descriptor is open (C17), asking the user by `request` at once and then every 10 s; then the device leaves its group. */
  unregister(device: Device): Steps;
  /**
   * The aux domain's PASID that carries the DMA of a mediated device which is open or whose group is in a container,
   * undefined without one (vendor isolation, or no IOMMU set yet).
   */
  pasidOf(device: Device): number | undefined;
}
