/**
 * VFIO's core (drivers/vfio of v5.10, with the ownership of DMA and the end of groups of v6.12): devices that drivers
 * offer to user space, in groups under /dev/vfio, in containers with an IOMMU. What maps memory is behind
 * vfio/iommu-driver.ts, what a device is behind vfio/device.ts.
 */
import { assert } from '../../sim/assert.js';
import { Errno } from '../../sim/errno.js';
import type { Scheduler, Steps } from '../../sim/task.js';
import type { Trace } from '../../sim/trace.js';
import type { Device } from '../../host/device.js';
import type { KernelLog } from '../../host/kernel-log.js';
import type { Process } from '../../host/process.js';
import type { DmaUnmapNotifier, VfioCore, VfioRegistration } from '../device.js';
import type { ContainerIommuDriver } from '../iommu-driver.js';
import { Container } from './container.js';
import type { DmaOwners, GroupMembers, VfioContext } from './context.js';
import type { RegisteredDevice } from './device.js';
import { VfioGroup } from './group.js';
import { VfioTrace } from './trace-kinds.js';

/** VFIO_PIN_PAGES_MAX_ENTRIES: what fits into a page of pointers. */
const MAX_PINNED_AT_ONCE = 512;

export interface VfioOptions {
  readonly scheduler: Scheduler;
  readonly log: KernelLog;
  /** The IOMMU core. */
  readonly owners: DmaOwners;
  /** Who is in an IOMMU group; asked for groups of the IOMMU core only. */
  readonly groupMembers: GroupMembers;
  /** In the order in which SET_IOMMU tries them. */
  readonly iommuDrivers: readonly ContainerIommuDriver[];
  readonly trace?: Trace | undefined;
  readonly defects?: ReadonlySet<string>;
}

export class Vfio implements VfioCore {
  private readonly context: VfioContext;
  private readonly groups = new Map<number, VfioGroup>();
  private readonly devices = new Map<Device, RegisteredDevice>();
  private containers = 0;

  constructor(options: VfioOptions) {
    const { trace, defects = new Set<string>(), ...services } = options;
    this.context = {
      ...services, trace: new VfioTrace(trace), unsetWithOpenDevices: defects.has('vfio.unset-with-open-devices'),
      keepDmaOwner: defects.has('vfio.keep-dma-owner'), unregisterDoesNotWait: defects.has('vfio.unregister-does-not-wait'),
    };
  }

  // --- drivers ------------------------------------------------------------------------------------------------

  register(registration: VfioRegistration): void {
    const { device, group: identity } = registration;
    if (this.devices.has(device)) throw new Errno('EBUSY', `${device.name} is registered already`);
    let group = this.groups.get(identity.id);
    if (group === undefined) this.groups.set(identity.id, (group = new VfioGroup(identity, this.context)));
    assert(group.iommuGroup === identity.iommuGroup, `number ${identity.id} stands for two groups`);
    this.devices.set(device, group.add(registration));
    this.context.trace.deviceEvent('register', registration.ops.name, group.id);
  }

  /** @throws Errno ENODEV not registered, or unregistered already */
  *unregister(device: Device): Steps {
    const registered = this.devices.get(device);
    if (registered === undefined || registered.leaving) throw new Errno('ENODEV', `${device.name} is not registered`);
    registered.leaving = true;
    yield* registered.waitUnused();
    const { group } = registered;
    this.devices.delete(device);
    if (group.devices.length === 1) this.groups.delete(group.id);
    yield* group.remove(registered);
    this.context.trace.deviceEvent('unregister', registered.name, group.id);
  }

  // --- user space ---------------------------------------------------------------------------------------------

  /** open of /dev/vfio/vfio; its descriptor. ESRCH. */
  openContainer(process: Process): number {
    return process.open(new Container(++this.containers, this.context));
  }

  /** open of /dev/vfio/$group; its descriptor. ENODEV no such group, EBUSY (C1, E30), ESRCH. */
  openGroup(process: Process, id: number): number {
    const group = this.groups.get(id);
    if (group === undefined) throw new Errno('ENODEV', `no device of group ${id} is registered`);
    if (process.state !== 'running') throw new Errno('ESRCH', `process ${process.pid} (${process.name}) is ${process.state}`);
    return process.open(group.open());
  }

  /** What /dev/vfio shows beside `vfio`: numbers of groups, ascending. */
  get groupIds(): number[] {
    return [...this.groups.keys()].sort((a, b) => a - b);
  }

  /** A group with devices, for reports; undefined for none. */
  group(id: number): VfioGroup | undefined {
    return this.groups.get(id);
  }

  // --- pinning (C10) ------------------------------------------------------------------------------------------

  *pinPages(device: Device, iovas: readonly number[], prot: number): Steps<number[]> {
    checkPinCount(iovas);
    const { group } = this.registered(device);
    if (group.devices.length > 1) throw new Errno('EINVAL', `group ${group.id} has other devices beside ${device.name}`);
    const iommu = group.useContainer();
    try {
      return yield* iommu.pinPages(group, device, iovas, prot);
    } finally {
      yield* group.dropContainerUser();
    }
  }

  unpinPages(device: Device, iovas: readonly number[]): number {
    checkPinCount(iovas);
    const { group } = this.registered(device);
    const { iommu } = group;
    if (iommu === undefined) throw new Errno('EINVAL', `group ${group.id} is in no container with an IOMMU`);
    return iommu.unpinPages(group, device, iovas);
  }

  *dmaRw(device: Device, iova: number, bytes: Uint8Array, write: boolean): Steps {
    const { group } = this.registered(device);
    const iommu = group.useContainer();
    try {
      yield* iommu.dmaRw(group, iova, bytes, write);
    } finally {
      yield* group.dropContainerUser();
    }
  }

  registerNotifier(device: Device, notifier: DmaUnmapNotifier): void {
    const { iommu } = this.registered(device).group;
    if (iommu === undefined) throw new Errno('ENODEV', `${device.name} is in no container with an IOMMU`);
    iommu.registerNotifier(device, notifier);
  }

  unregisterNotifier(device: Device, notifier: DmaUnmapNotifier): void {
    this.registered(device).group.container?.iommu?.unregisterNotifier(device, notifier);
  }

  pasidOf(device: Device): number | undefined {
    return this.devices.get(device)?.group.container?.iommu?.pasidOf(device);
  }

  private registered(device: Device): RegisteredDevice {
    const registered = this.devices.get(device);
    if (registered === undefined) throw new Errno('ENODEV', `${device.name} is not registered`);
    return registered;
  }
}

function checkPinCount(iovas: readonly number[]): void {
  if (iovas.length === 0) throw new Errno('EINVAL', 'no pages to pin or unpin');
  if (iovas.length > MAX_PINNED_AT_ONCE) throw new Errno('E2BIG', `${iovas.length} pages at once, at most ${MAX_PINNED_AT_ONCE}`);
}
