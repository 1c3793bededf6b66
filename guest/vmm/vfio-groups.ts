/**
 * A VMM's groups and containers (QEMU: hw/vfio/container.c, `vfio_get_group`, `vfio_connect_container`): a group joins
 * the first container that takes it, else a new one, in which all of the guest's RAM is mapped with IOVA = guest-physical
 * address. A group stays as long as a device of it is open, a container as long as it has groups.
 */
import { hex } from '../../sim/address.js';
import { Errno, isErrno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import type { ContainerHandle, DeviceHandle, GroupHandle, IommuType, VfioClient } from '../../vfio/client/index.js';
import { VFIO_API_VERSION, VFIO_TYPE1_IOMMU, VFIO_TYPE1_NESTING_IOMMU, VFIO_TYPE1v2_IOMMU } from '../../vfio/uapi/ioctl.js';
import type { VmmCounters } from './counters.js';
import type { RamBlock } from './ram.js';
import { named, namedNow, tolerant, Undo } from './undo.js';

interface OpenContainer {
  readonly handle: ContainerHandle;
  groups: number;
}

interface OpenGroup {
  readonly id: number;
  readonly handle: GroupHandle;
  readonly container: OpenContainer;
  devices: number;
}

const TYPES: { readonly [K in IommuType]: number } = { type1: VFIO_TYPE1_IOMMU, type1v2: VFIO_TYPE1v2_IOMMU, nesting: VFIO_TYPE1_NESTING_IOMMU };

export interface VfioGroupsOptions {
  readonly client: VfioClient;
  readonly iommuType: IommuType;
  /** What to map; the first is slot 0. */
  readonly blocks: () => readonly RamBlock[];
  readonly counters: VmmCounters;
  /** Defect `vmm.map-wrong-slot`: every block is mapped to the first one's memory. */
  readonly mapWrongSlot: boolean;
}

export class VfioGroups {
  private readonly options: VfioGroupsOptions;
  private readonly containers: OpenContainer[] = [];
  private readonly groups: OpenGroup[] = [];

  constructor(options: VfioGroupsOptions) {
    this.options = options;
  }

  /** Guest memory is mapped for devices, and pinned where an IOMMU translates for them. */
  get mapped(): boolean {
    return this.containers.length > 0;
  }

  /** VFIO_GROUP_GET_DEVICE_FD, with group and container as needed. What is refused leaves nothing behind. */
  *openDevice(groupId: number, name: string): Steps<DeviceHandle> {
    const group = this.groups.find(({ id }) => id === groupId) ?? (yield* this.openGroup(groupId));
    try {
      const device = yield* this.call(`VFIO_GROUP_GET_DEVICE_FD of group ${groupId}`, group.handle.getDevice(name));
      group.devices++;
      return device;
    } catch (error) {
      if (group.devices === 0) yield* this.closeGroup(group);
      throw error;
    }
  }

  /** Closes a device; with the last one of its group the group goes, with the last group its container. */
  *closeDevice(groupId: number, device: DeviceHandle): Steps {
    yield* tolerant(device.close());
    const group = this.groups.find(({ id }) => id === groupId);
    if (group !== undefined && --group.devices === 0) yield* this.closeGroup(group);
  }

  /** Maps memory that came later, in every container or in none. ENOMEM, and what VFIO_IOMMU_MAP_DMA says. */
  *mapBlock(block: RamBlock): Steps {
    const done: OpenContainer[] = [];
    try {
      for (const container of this.containers) {
        yield* this.map(container.handle, block);
        done.push(container);
      }
    } catch (error) {
      for (const { handle } of done) yield* tolerant(this.unmap(handle, block));
      throw error;
    }
  }

  private *openGroup(id: number): Steps<OpenGroup> {
    const { client } = this.options;
    const handle = namedNow(`open of /dev/vfio/${id}`, () => client.openGroup(id));
    try {
      const { viable } = yield* this.call(`VFIO_GROUP_GET_STATUS of group ${id}`, handle.status());
      if (!viable) throw new Errno('EINVAL', `group ${id} is not viable: all of its devices must be bound to a VFIO driver or to none`);
      const container = (yield* this.joinExisting(id, handle)) ?? (yield* this.joinNew(id, handle));
      container.groups++;
      const group = { id, handle, container, devices: 0 };
      this.groups.push(group);
      return group;
    } catch (error) {
      yield* tolerant(handle.close());
      throw error;
    }
  }

  private *joinExisting(id: number, handle: GroupHandle): Steps<OpenContainer | undefined> {
    for (const container of this.containers) {
      try {
        yield* this.call(`VFIO_GROUP_SET_CONTAINER of group ${id}`, handle.setContainer(container.handle));
        return container;
      } catch (error) {
        // one of its own may take it
        if (!isErrno(error)) throw error;
      }
    }
    return undefined;
  }

  private *joinNew(id: number, group: GroupHandle): Steps<OpenContainer> {
    const { client, iommuType } = this.options;
    const undo = new Undo();
    try {
      const handle = namedNow('open of /dev/vfio/vfio', () => client.openContainer());
      undo.push(() => handle.close());
      const version = yield* this.call('VFIO_GET_API_VERSION', handle.apiVersion());
      if (version !== VFIO_API_VERSION) throw new Errno('EINVAL', `VFIO has version ${version}, ${VFIO_API_VERSION} is known`);
      if ((yield* this.call('VFIO_CHECK_EXTENSION', handle.checkExtension(TYPES[iommuType]))) === 0) throw new Errno('ENODEV', `VFIO has no IOMMU of type ${iommuType}`);
      yield* this.call(`VFIO_GROUP_SET_CONTAINER of group ${id}`, group.setContainer(handle));
      undo.push(() => group.unsetContainer());
      yield* this.call(`VFIO_SET_IOMMU ${iommuType}`, handle.setIommu(iommuType));
      for (const block of this.options.blocks()) yield* this.map(handle, block);
      const container = { handle, groups: 0 };
      this.containers.push(container);
      return container;
    } catch (error) {
      yield* undo.run();
      throw error;
    }
  }

  private *closeGroup(group: OpenGroup): Steps {
    const { container } = group;
    this.groups.splice(this.groups.indexOf(group), 1);
    yield* tolerant(group.handle.unsetContainer());
    yield* tolerant(group.handle.close());
    if (--container.groups > 0) return;
    this.containers.splice(this.containers.indexOf(container), 1);
    yield* tolerant(container.handle.close());
  }

  private *map(container: ContainerHandle, { start, end, hva }: RamBlock): Steps {
    const vaddr = this.options.mapWrongSlot ? this.options.blocks()[0]!.hva : hva;
    yield* this.call(`VFIO_IOMMU_MAP_DMA of RAM [${hex(start)}, ${hex(end)})`, container.mapDma({ iova: start, vaddr, sizeBytes: end - start }));
  }

  private *unmap(container: ContainerHandle, { start, end }: RamBlock): Steps {
    yield* this.call('VFIO_IOMMU_UNMAP_DMA', container.unmapDma(start, end - start));
  }

  private *call<T>(what: string, steps: Steps<T>): Steps<T> {
    this.options.counters.ioctls++;
    return yield* named(what, steps);
  }
}
