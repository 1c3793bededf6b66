/**
 * An open /dev/vfio/vfio (C2–C4, E32; drivers/vfio/container.c, errnos of v5.10's vfio.c): groups that share one
 * address space, and the IOMMU driver that maps it. The container outlives its descriptor while groups are in it; its
 * IOMMU lives as long as it has groups. Left out: containers without an IOMMU (VFIO_NOIOMMU_IOMMU).
 */
import { assert } from '../../sim/assert.js';
import { isErrno, Errno } from '../../sim/errno.js';
import { Mutex, type Steps } from '../../sim/task.js';
import type { IoctlFile, Process } from '../../host/process.js';
import type { ContainerIommu, ContainerIommuDriver } from '../iommu-driver.js';
import { VFIO_API_VERSION, VFIO_CHECK_EXTENSION, VFIO_GET_API_VERSION, VFIO_SET_IOMMU } from '../uapi/ioctl.js';
import type { VfioContext } from './context.js';
import type { VfioGroup } from './group.js';

export class Container implements IoctlFile {
  readonly name = '/dev/vfio/vfio';
  readonly id: number;
  /** In the order in which they joined. */
  readonly groups: VfioGroup[] = [];
  /** Undefined until SET_IOMMU, and again when the last group has left. */
  iommu: ContainerIommu | undefined;
  private driver: ContainerIommuDriver | undefined;
  private readonly context: VfioContext;
  /** Held while groups join or leave and while the IOMMU is set (`container->group_lock`). */
  private readonly lock: Mutex;

  constructor(id: number, context: VfioContext) {
    this.id = id;
    this.context = context;
    this.lock = new Mutex(context.scheduler, `vfio_container ${id}`);
  }

  /** @param argument a number for CHECK_EXTENSION and SET_IOMMU */
  *ioctl(caller: Process, command: number, argument: number): Steps<number> {
    switch (command) {
      case VFIO_GET_API_VERSION:
        return VFIO_API_VERSION;
      case VFIO_CHECK_EXTENSION:
        return this.checkExtension(argument);
      case VFIO_SET_IOMMU:
        yield* this.lock.with(() => this.setIommu(argument));
        return 0;
      default:
        if (this.iommu === undefined) throw new Errno('EINVAL', `container ${this.id} has no IOMMU that could carry out a command`);
        return yield* this.iommu.ioctl(caller, command, argument);
    }
  }

  /** The descriptor is gone; groups keep what is in the container. */
  // oxlint-disable-next-line require-yield -- OpenFile.release may sleep
  *release(): Steps {
    assert(this.groups.length > 0 || this.iommu === undefined, `container ${this.id} has an IOMMU without groups`);
  }

  /**
   * Takes a group in: its DMA becomes the user's, and with an IOMMU set it is attached at once (C2).
   * EPERM and EBUSY as claimDmaOwner, or what the IOMMU driver says; nothing changes then.
   */
  *join(group: VfioGroup): Steps {
    yield* this.lock.with(() => this.joinLocked(group));
  }

  private *joinLocked(group: VfioGroup): Steps {
    const { owners, trace } = this.context;
    if (group.iommuGroup !== undefined) yield* owners.claimDmaOwner(group.iommuGroup, group.owner);
    try {
      if (this.iommu !== undefined) yield* this.iommu.attachGroup(group);
    } catch (error) {
      if (group.iommuGroup !== undefined) yield* owners.releaseDmaOwner(group.iommuGroup, group.owner);
      throw error;
    }
    this.groups.push(group);
    trace.groupEvent('set', group.id, this.id);
  }

  /** Lets a group go; the last one takes the IOMMU with it (C3). */
  *leave(group: VfioGroup): Steps {
    yield* this.lock.with(() => this.leaveLocked(group));
  }

  private *leaveLocked(group: VfioGroup): Steps {
    const { owners, trace, keepDmaOwner } = this.context;
    const { iommu } = this;
    if (iommu !== undefined) yield* iommu.detachGroup(group);
    if (group.iommuGroup !== undefined && !keepDmaOwner) yield* owners.releaseDmaOwner(group.iommuGroup, group.owner);
    this.groups.splice(this.groups.indexOf(group), 1);
    trace.groupEvent('unset', group.id, this.id);
    if (iommu === undefined || this.groups.length > 0) return;
    this.iommu = undefined;
    this.driver = undefined;
    yield* iommu.release();
  }

  /** Without an IOMMU any driver's first positive answer, later that of the IOMMU's driver. */
  private checkExtension(extension: number): number {
    for (const driver of this.driver === undefined ? this.context.iommuDrivers : [this.driver]) {
      const answer = driver.checkExtension(extension);
      if (answer > 0) return answer;
    }
    return 0;
  }

  /** C4, E32: the first driver that offers the type and takes every group; otherwise the last refusal. */
  private *setIommu(type: number): Steps {
    if (this.groups.length === 0) throw new Errno('EINVAL', `no group is in container ${this.id}`);
    if (this.driver !== undefined) throw new Errno('EINVAL', `container ${this.id} has its IOMMU already, ${this.driver.name}`);
    let refusal = new Errno('ENODEV', `no IOMMU driver offers type ${type}`);
    for (const driver of this.context.iommuDrivers) {
      if (driver.checkExtension(type) <= 0) continue;
      try {
        this.iommu = yield* this.openIommu(driver, type);
        this.driver = driver;
        this.context.trace.setIommu(this.id, type);
        return;
      } catch (error) {
        if (!isErrno(error)) throw error;
        refusal = error;
      }
    }
    throw refusal;
  }

  /** An IOMMU with every group attached, or none of them. */
  private *openIommu(driver: ContainerIommuDriver, type: number): Steps<ContainerIommu> {
    const iommu = driver.open(type, this.id);
    const attached: VfioGroup[] = [];
    try {
      for (const group of this.groups) {
        yield* iommu.attachGroup(group);
        attached.push(group);
      }
    } catch (error) {
      for (const group of attached.reverse()) yield* iommu.detachGroup(group);
      yield* iommu.release();
      throw error;
    }
    return iommu;
  }
}
