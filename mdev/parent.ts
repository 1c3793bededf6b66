/**
 * The joint between the mediated device core and a parent's driver (include/linux/mdev.h, v5.10: mdev_parent_ops,
 * mdev_set_iommu_device). A parent offers types; an mdev is made of a type under a UUID, and what the parent gives
 * back for it is an ordinary VFIO device.
 */
import type { Device } from '../host/device.js';
import type { Steps } from '../sim/task.js';
import type { VfioDeviceOps } from '../vfio/device.js';

/** A type of mediated device (C14). */
export interface MdevType {
  /** Group name; the type id is `<driver>-<name>`, such as `idxd-1dwq-v1`. */
  readonly name: string;
  /** Attribute `name`, for people. */
  readonly label?: string;
  readonly description?: string;
  readonly deviceApi: 'vfio-pci';
  /** How many more can be made now. */
  availableInstances(): number;
}

/** A mediated device as its parent's driver sees it. Its `name` is the UUID. */
export interface MdevHandle extends Device {
  readonly uuid: string;
  readonly type: MdevType;
}

/** An attribute of one mediated device, as in its sysfs directory. */
export interface MdevAttribute {
  readonly name: string;
  read(): string;
  /** Without it: read-only. EINVAL, ENODEV. */
  write?(value: string): void;
}

/** What a parent's driver returns from `create`. */
export interface MdevInstance {
  readonly ops: VfioDeviceOps;
  /** mdev_set_iommu_device (Y1): undefined means the driver isolates by itself, through pinned pages. */
  readonly iommuDevice?: Device;
  readonly attributes?: readonly MdevAttribute[];
}

/** A parent's driver (C11). Calls of different mdevs may overlap: the core serializes nothing (C15). */
export interface MdevParentOps {
  /** First part of every type id: `idxd`, `mtty`. */
  readonly driver: string;
  readonly types: readonly MdevType[];
  /** Makes the device; an Errno unwinds everything. */
  create(mdev: MdevHandle): Steps<MdevInstance>;
  /** Ends it; nobody has it open any more. An Errno is only logged (C13). */
  remove(mdev: MdevHandle): Steps;
  /** True: `remove` of an mdev in use asks its user to let go and waits; false: it is refused with EBUSY (7.5). */
  readonly hotUnplug: boolean;
}

/** What the mdev core offers to parents' drivers. */
export interface MdevParents {
  /** C11. EINVAL missing types or ops, EEXIST registered already. */
  registerParent(device: Device, ops: MdevParentOps): void;
  /** Removes every mdev of the parent, then forgets it; a create meanwhile is ENODEV. */
  unregisterParent(device: Device): Steps;
}
