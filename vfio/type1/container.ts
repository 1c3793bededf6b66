/** The IOMMU of one container (`struct vfio_iommu`): its ioctls, and what VFIO's core and drivers ask of it. */
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import type { Device } from '../../host/device.js';
import type { Process } from '../../host/process.js';
import type { DmaUnmapNotifier } from '../device.js';
import type { ContainerGroup, ContainerIommu } from '../iommu-driver.js';
import { VFIO_CHECK_EXTENSION, VFIO_IOMMU_BIND, VFIO_IOMMU_DIRTY_PAGES, VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNBIND, VFIO_IOMMU_UNMAP_DMA } from '../uapi/index.js';
import { bind, unbind } from './binds.js';
import { dirtyPages } from './dirty.js';
import { attachGroup, detachGroup, pasidOf, removeAllMappings } from './groups.js';
import { getInfo } from './info.js';
import { mapDma, unmapDma } from './map.js';
import type { AttachedGroup, ContainerState } from './state.js';
import { dmaRw, pinPages, registerNotifier, unpinPages, unregisterNotifier } from './vendor-pins.js';

export interface ContainerHooks {
  readonly checkExtension: (extension: number) => number;
  readonly released: () => void;
}

export class Type1Container implements ContainerIommu {
  /** For looking at; changes go through the calls below. */
  readonly state: ContainerState;
  private readonly hooks: ContainerHooks;

  constructor(state: ContainerState, hooks: ContainerHooks) {
    this.state = state;
    this.hooks = hooks;
  }

  /** The trace knows the container by it. */
  get number(): number {
    return this.state.number;
  }

  /** See `attachGroup` in groups.ts. */
  *attachGroup(group: ContainerGroup): Steps {
    yield* this.state.lock.with(() => attachGroup(this.state, group));
  }

  *detachGroup(group: ContainerGroup): Steps {
    yield* this.state.lock.with(() => detachGroup(this.state, group));
  }

  *ioctl(caller: Process, command: number, argument: number): Steps<number> {
    const { state } = this;
    switch (command) {
      case VFIO_CHECK_EXTENSION: return this.hooks.checkExtension(argument);
      case VFIO_IOMMU_GET_INFO: return yield* getInfo(state, caller, argument);
      case VFIO_IOMMU_MAP_DMA: return yield* mapDma(state, caller, argument);
      case VFIO_IOMMU_UNMAP_DMA: return yield* unmapDma(state, caller, argument);
      case VFIO_IOMMU_DIRTY_PAGES: return yield* dirtyPages(state, caller, argument);
      case VFIO_IOMMU_BIND: return yield* bind(state, caller, argument);
      case VFIO_IOMMU_UNBIND: return yield* unbind(state, caller, argument);
      default: throw new Errno('ENOTTY', `type1 has no ioctl 0x${command.toString(16)}`);
    }
  }

  *pinPages(group: ContainerGroup, device: Device, iovas: readonly number[], prot: number): Steps<number[]> {
    return yield* pinPages(this.state, this.attached(group), device, iovas, prot);
  }

  unpinPages(_group: ContainerGroup, device: Device, iovas: readonly number[]): number {
    return unpinPages(this.state, device, iovas);
  }

  *dmaRw(_group: ContainerGroup, iova: number, bytes: Uint8Array, write: boolean): Steps {
    yield* dmaRw(this.state, iova, bytes, write);
  }

  registerNotifier(device: Device, notifier: DmaUnmapNotifier): void {
    registerNotifier(this.state, device, notifier);
  }

  unregisterNotifier(device: Device, notifier: DmaUnmapNotifier): void {
    unregisterNotifier(this.state, device, notifier);
  }

  pasidOf(device: Device): number | undefined {
    return pasidOf(this.state, device);
  }

  *release(): Steps {
    const { state } = this;
    yield* state.lock.with(function* () {
      for (let next = state.groups().next(); next.done !== true; next = state.groups().next()) yield* detachGroup(state, next.value.group);
      yield* removeAllMappings(state);
    });
    this.hooks.released();
  }

  private attached(group: ContainerGroup): AttachedGroup {
    const attached = this.state.find(group);
    if (attached === undefined) throw new Errno('EINVAL', `group ${group.id} is not in ${this.state.name}`);
    return attached;
  }
}
