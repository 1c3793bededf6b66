/**
 * The smallest world of mediated devices: VFIO's core, a container backend that maps nothing, a parent whose create
 * and remove sleep as long as a test says, and users who open devices through /dev/vfio as a VMM does.
 */
import { MdevCore, type MdevCoreOptions } from '../../mdev/core.js';
import { MdevSysfs } from '../../mdev/sysfs.js';
import { IommuGroups } from '../../host/pci/kernel/groups.js';
import { Process } from '../../host/process.js';
import { Errno, type ErrnoName } from '../../sim/errno.js';
import { sleep, type Steps, type Task } from '../../sim/task.js';
import { Vfio } from '../../vfio/core/vfio.js';
import { VFIO_GROUP_GET_DEVICE_FD, VFIO_GROUP_SET_CONTAINER, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU } from '../../vfio/uapi/ioctl.js';
import { copyToUser, wordsToUser } from '../../vfio/uapi/user-memory.js';
import { CoreWorld } from '../fixtures/core-world.js';
import type { Device } from '../../host/device.js';
import type { MdevAttribute, MdevHandle, MdevInstance, MdevParentOps, MdevType } from '../../mdev/parent.js';
import type { Mmio } from '../../sim/mmio.js';
import type { VfioDeviceInfo, VfioDeviceOps, VfioIrqInfo, VfioRegionInfo } from '../../vfio/device.js';
import type { ContainerGroup, ContainerIommu, ContainerIommuDriver } from '../../vfio/iommu-driver.js';

/** UUIDs with a readable end. */
export const uuid = (n: number): string => `83b8f4f2-509f-382f-3c1e-${n.toString(16).padStart(12, '0')}`;

/** One device of a test's parent. */
export class SampleDevice implements VfioDeviceOps {
  readonly name: string;
  readonly requests: number[] = [];
  isOpen = false;
  /** What the next open is refused with. */
  refuseOpen: ErrnoName | undefined;
  registers = new Uint8Array(16);
  private readonly parent: SampleParent;

  constructor(name: string, parent: SampleParent) {
    this.name = name;
    this.parent = parent;
  }

  *open(): Steps {
    yield* this.parent.pause(this.parent.openNs);
    if (this.refuseOpen !== undefined) throw new Errno(this.refuseOpen, 'the parent does not open it');
    this.isOpen = true;
  }

  *close(): Steps {
    yield* this.parent.pause(this.parent.openNs);
    this.isOpen = false;
  }

  info(): VfioDeviceInfo {
    return { flags: 2, regions: 9, irqs: 5 };
  }

  regionInfo(index: number): VfioRegionInfo {
    return { flags: 3, sizeBytes: index === 0 ? 16 : 0 };
  }

  irqInfo(index: number): VfioIrqInfo {
    return { flags: 1, count: index === 0 ? 1 : 0 };
  }

  read(offset: number, target: Uint8Array): number {
    target.set(this.registers.subarray(offset, offset + target.length));
    return target.length;
  }

  write(offset: number, source: Uint8Array): number {
    this.registers.set(source, offset);
    return source.length;
  }

  mmap(): Mmio {
    throw new Errno('EINVAL', 'not mappable');
  }

  // oxlint-disable-next-line require-yield -- sleeps in other drivers
  *setIrqs(): Steps {}

  // oxlint-disable-next-line require-yield -- sleeps in other drivers
  *reset(): Steps {
    this.registers.fill(0);
  }

  request(count: number): void {
    this.requests.push(count);
  }
}

export interface SampleOptions {
  readonly hotUnplug?: boolean;
  /** Instances that the types `1` and `2` share. */
  readonly instances?: number;
  readonly driver?: string;
}

/** A parent's driver without hardware. */
export class SampleParent implements MdevParentOps {
  readonly device: Device;
  readonly driver: string;
  readonly types: readonly MdevType[];
  readonly hotUnplug: boolean;
  readonly live = new Map<MdevHandle, SampleDevice>();
  /** `create …`, `remove …`, and `remove … in use`, which must never be. */
  readonly calls: string[] = [];
  createNs = 0;
  removeNs = 0;
  openNs = 0;
  refuseCreate: ErrnoName | undefined;
  refuseRemove: ErrnoName | undefined;
  iommuDevice: Device | undefined;
  attributes: readonly MdevAttribute[] = [];
  private readonly world: MdevWorld;
  private taken = 0;

  constructor(world: MdevWorld, name: string, options: SampleOptions = {}) {
    this.world = world;
    this.device = { name };
    this.driver = options.driver ?? 'sample';
    this.hotUnplug = options.hotUnplug ?? true;
    const instances = options.instances ?? 4;
    const availableInstances = (): number => instances - this.taken;
    this.types = [
      { name: '1', label: 'One port', description: 'a card\nwith one port', deviceApi: 'vfio-pci', availableInstances },
      { name: '2', deviceApi: 'vfio-pci', availableInstances },
    ];
  }

  get available(): number {
    return this.types[0]!.availableInstances();
  }

  /** The one device of this UUID. */
  instance(name: string): SampleDevice {
    return [...this.live].find(([mdev]) => mdev.uuid === name)![1];
  }

  *create(mdev: MdevHandle): Steps<MdevInstance> {
    this.calls.push(`create ${mdev.uuid.slice(-2)}`);
    if (this.available <= 0) throw new Errno('ENOSPC', 'somebody was faster');
    this.taken++;
    yield* this.pause(this.createNs);
    if (this.refuseCreate !== undefined) {
      this.taken--;
      throw new Errno(this.refuseCreate, 'the parent refuses');
    }
    const ops = new SampleDevice(mdev.uuid, this);
    this.live.set(mdev, ops);
    return { ops, attributes: this.attributes, ...(this.iommuDevice === undefined ? {} : { iommuDevice: this.iommuDevice }) };
  }

  *remove(mdev: MdevHandle): Steps {
    this.calls.push(`remove ${mdev.uuid.slice(-2)}${this.live.get(mdev)?.isOpen ? ' in use' : ''}`);
    yield* this.pause(this.removeNs);
    this.live.delete(mdev);
    this.taken--;
    if (this.refuseRemove !== undefined) throw new Errno(this.refuseRemove, 'the parent is not content');
  }

  *pause(ns: number): Steps {
    if (ns > 0) yield* sleep(this.world.clock, ns);
  }
}

/** Takes every group and maps nothing. */
class EmptyIommu implements ContainerIommu, ContainerIommuDriver {
  readonly name = 'none';
  readonly groups: ContainerGroup[] = [];

  checkExtension(): number {
    return 1;
  }

  open(): ContainerIommu {
    return this;
  }

  // oxlint-disable-next-line require-yield -- sleeps in other backends
  *attachGroup(group: ContainerGroup): Steps {
    this.groups.push(group);
  }

  // oxlint-disable-next-line require-yield -- sleeps in other backends
  *detachGroup(group: ContainerGroup): Steps {
    this.groups.splice(this.groups.indexOf(group), 1);
  }

  // oxlint-disable-next-line require-yield -- sleeps in other backends
  *ioctl(): Steps<number> {
    throw new Errno('ENOTTY', 'maps nothing');
  }

  // oxlint-disable-next-line require-yield -- sleeps in other backends
  *pinPages(): Steps<number[]> {
    throw new Errno('EINVAL', 'maps nothing');
  }

  unpinPages(): number {
    return 0;
  }

  // oxlint-disable-next-line require-yield -- sleeps in other backends
  *dmaRw(): Steps {
    throw new Errno('EINVAL', 'maps nothing');
  }

  registerNotifier(): void {}

  unregisterNotifier(): void {}

  pasidOf(): undefined {
    return undefined;
  }

  *release(): Steps {}
}

/** A VMM that has one device open; `close` is its end. */
export interface User {
  readonly process: Process;
  readonly deviceFd: number;
  close(): Steps;
}

export class MdevWorld extends CoreWorld {
  readonly iommuGroups = new IommuGroups(new Map(), new Set());
  readonly containerIommu = new EmptyIommu();
  readonly vfio: Vfio;
  readonly mdevs: MdevCore;
  readonly sysfs: MdevSysfs;
  private nextPid = 1;

  constructor(defects: readonly string[] = [], options: Partial<MdevCoreOptions> = {}) {
    super();
    const { scheduler, log, trace } = this;
    this.vfio = new Vfio({ scheduler, log, trace, owners: this.core, groupMembers: () => [], iommuDrivers: [this.containerIommu] });
    this.mdevs = new MdevCore({ scheduler, log, trace, vfio: this.vfio, groups: this.iommuGroups, defects: new Set(defects), ...options });
    this.sysfs = new MdevSysfs(this.mdevs);
  }

  /** A registered parent. */
  parent(name: string, options: SampleOptions = {}): SampleParent {
    const parent = new SampleParent(this, name, options);
    this.mdevs.registerParent(parent.device, parent);
    return parent;
  }

  create(parent: SampleParent, n: number, type = 'sample-1'): void {
    this.run(this.mdevs.create(parent.device, type, uuid(n)));
  }

  /** Opens a device as a VMM does. What VFIO refuses leaves no process behind. */
  *use(name: string): Steps<User> {
    const process = new Process(this.nextPid++, 'vmm', this.newMm());
    try {
      const deviceFd = yield* this.openDevice(process, name);
      return { process, deviceFd, close: () => process.exit() };
    } catch (error) {
      yield* process.exit();
      throw error;
    }
  }

  /** Starts a task and lets this instant happen; it may block. */
  start<T>(steps: Steps<T>, name = 'test'): Task<T> {
    const task = this.scheduler.spawn(name, steps, { joined: true });
    this.clock.run({ untilNs: this.clock.now });
    return task;
  }

  /** Runs what happens within the next `ns`. */
  pass(ns: number): void {
    this.clock.run({ untilNs: this.clock.now + ns });
  }

  /** Everything a refusal might change. */
  picture(): unknown {
    return {
      states: this.mdevs.parents.map(({ device, children }) => [device.name, [...children.values()].map(({ name, state, group, opens }) => [name, state, group, opens])]),
      groups: this.vfio.groupIds,
      available: this.mdevs.parents.map(({ types }) => types.map(({ type }) => type.availableInstances())),
    };
  }

  private newMm() {
    return this.process('vmm');
  }

  private *openDevice(process: Process, name: string): Steps<number> {
    const at = yield* process.mm.mmap(4096, { prot: 3 });
    const container = this.vfio.openContainer(process);
    const group = this.vfio.openGroup(process, this.mdevs.find(name)?.group ?? -1);
    yield* wordsToUser(process, at, [container]);
    yield* process.ioctl(group, VFIO_GROUP_SET_CONTAINER, at);
    yield* process.ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU);
    yield* copyToUser(process, at, new TextEncoder().encode(`${name}\0`));
    return yield* process.ioctl(group, VFIO_GROUP_GET_DEVICE_FD, at);
  }
}

/** What a task was refused with, or how it stands. */
export function outcome(task: Task<unknown>): string {
  return task.state === 'failed' && task.error instanceof Errno ? task.error.code : task.state;
}
