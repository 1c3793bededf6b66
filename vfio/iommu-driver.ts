/**
 * The joint inside VFIO between a container and what maps memory for it (`struct vfio_iommu_driver_ops`): type1 is
 * the only one. The container hands on every ioctl it does not know itself; arguments are addresses in the caller's
 * memory, where the uapi records lie as bytes.
 */
import type { Process } from '../host/process.js';
import type { IommuGroup } from '../iommu/core/records.js';
import type { Steps } from '../sim/task.js';
import type { Device } from '../host/device.js';
import type { DmaUnmapNotifier, VfioRegistration } from './device.js';

/** A group in a container, as the container's IOMMU driver sees it. */
export interface ContainerGroup {
  readonly id: number;
  /** Undefined for the group of a mediated device. */
  readonly iommuGroup: IommuGroup | undefined;
  /** Registered devices of the group. */
  readonly registrations: readonly VfioRegistration[];
  /** Who owns the group's DMA while it is in a container: VFIO's core claims it before `attachGroup` and releases it after `detachGroup`. */
  readonly owner: object;
}

/** What maps for one container; made by SET_IOMMU. Refusals as C7–C10; state unchanged. */
export interface ContainerIommu {
  attachGroup(group: ContainerGroup): Steps;
  /** The last group takes every mapping, pin, bond and domain with it. */
  detachGroup(group: ContainerGroup): Steps;
  /** VFIO_IOMMU_*; ENOTTY for anything else. */
  ioctl(caller: Process, command: number, argument: number): Steps<number>;
  pinPages(group: ContainerGroup, device: Device, iovas: readonly number[], prot: number): Steps<number[]>;
  unpinPages(group: ContainerGroup, device: Device, iovas: readonly number[]): number;
  dmaRw(group: ContainerGroup, iova: number, bytes: Uint8Array, write: boolean): Steps;
  registerNotifier(device: Device, notifier: DmaUnmapNotifier): void;
  unregisterNotifier(device: Device, notifier: DmaUnmapNotifier): void;
  /** PASID of the aux domain that carries the device's DMA; undefined without one. */
  pasidOf(device: Device): number | undefined;
  /** The last group has left (C3), or SET_IOMMU was refused; called once, nothing comes after it. */
  release(): Steps;
}

/** A kind of container backend: VFIO_TYPE1_IOMMU, VFIO_TYPE1v2_IOMMU, VFIO_TYPE1_NESTING_IOMMU. */
export interface ContainerIommuDriver {
  readonly name: string;
  /** Answer to VFIO_CHECK_EXTENSION, 0 for no. */
  checkExtension(extension: number): number;
  /**
   * @param container number that the trace knows the container by; the driver counts when it is left out
   * @throws Errno EINVAL a type it does not offer
   */
  open(type: number, container?: number): ContainerIommu;
}
