/** What the parts of VFIO's core share: services of the kernel, and who else is in an IOMMU group. */
import type { KernelLog } from '../../host/kernel-log.js';
import type { IommuGroup } from '../../iommu/core/records.js';
import type { Scheduler, Steps } from '../../sim/task.js';
import type { ContainerIommuDriver } from '../iommu-driver.js';
import type { VfioTrace } from './trace-kinds.js';

/** A device of an IOMMU group, whoever drives it (C6). */
export interface GroupMember {
  readonly name: string;
  /** Undefined: no driver is bound. */
  readonly driver: string | undefined;
  /** Bridges and ports route, they do no DMA of their own; whatever drives them does not disturb a user. */
  readonly bridge: boolean;
}

/** Says who is in an IOMMU group of that number, now. */
export type GroupMembers = (id: number) => readonly GroupMember[];

/** Who owns the DMA of a group; the IOMMU core. */
export interface DmaOwners {
  claimDmaOwner(group: IommuGroup, owner: object): Steps;
  releaseDmaOwner(group: IommuGroup, owner: object): Steps;
}

export interface VfioContext {
  readonly scheduler: Scheduler;
  readonly log: KernelLog;
  readonly trace: VfioTrace;
  readonly owners: DmaOwners;
  readonly groupMembers: GroupMembers;
  /** In the order in which SET_IOMMU tries them. */
  readonly iommuDrivers: readonly ContainerIommuDriver[];
  /** Defect `vfio.unset-with-open-devices`: UNSET_CONTAINER does not look at open devices. */
  readonly unsetWithOpenDevices: boolean;
  /** Defect `vfio.keep-dma-owner`: a group that leaves its container stays owned. */
  readonly keepDmaOwner: boolean;
  /** Defect `vfio.unregister-does-not-wait`: a device goes while its user has it open. */
  readonly unregisterDoesNotWait: boolean;
}
