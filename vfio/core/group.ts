/**
 * /dev/vfio/$group (C1–C3, C5, C6, E30, E31; drivers/vfio/vfio.c of v5.10, ownership of DMA as in v6.12's group.c).
 * A group is opened by one user at a time. It stays in its container until its own descriptor and those of its devices
 * are gone, in whatever order; `containerUsers` counts them. When its last device leaves, the group dies (v6.12):
 * it leaves its container, and what still has it open is refused.
 *
 * Left out: groups without an IOMMU, KVM's use of a group, VF tokens behind a device's name.
 */
import { hex } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import { Mutex, type Steps } from '../../sim/task.js';
import type { IommuGroup } from '../../iommu/core/records.js';
import type { IoctlFile, OpenFile, Process } from '../../host/process.js';
import type { VfioGroupIdentity, VfioRegistration } from '../device.js';
import type { ContainerGroup, ContainerIommu } from '../iommu-driver.js';
import { GROUP_STATUS, VFIO_GROUP_FLAGS_CONTAINER_SET, VFIO_GROUP_FLAGS_VIABLE } from '../uapi/group.js';
import { VFIO_GROUP_GET_DEVICE_FD, VFIO_GROUP_GET_STATUS, VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_UNSET_CONTAINER } from '../uapi/ioctl.js';
import { recordFromUser, stringFromUser, wordsFromUser, wordsToUser } from '../uapi/user-memory.js';
import { Container } from './container.js';
import type { GroupMember, VfioContext } from './context.js';
import { DeviceFile } from './device-file.js';
import { RegisteredDevice } from './device.js';

export class VfioGroup implements ContainerGroup {
  readonly id: number;
  readonly iommuGroup: IommuGroup | undefined;
  readonly owner: object = this;
  readonly registrations: VfioRegistration[] = [];
  readonly devices: RegisteredDevice[] = [];
  container: Container | undefined;
  /** Drivers that took a device back and still let go of it, by the device's name. */
  private readonly departed = new Map<string, string>();
  private containerUsers = 0;
  /** A user has it open. */
  private opened = false;
  /** The last device has left. */
  private dead = false;
  private readonly context: VfioContext;
  /** Held while the group joins or leaves a container. */
  private readonly lock: Mutex;

  constructor(identity: VfioGroupIdentity, context: VfioContext) {
    this.id = identity.id;
    this.iommuGroup = identity.iommuGroup;
    this.context = context;
    this.lock = new Mutex(context.scheduler, `vfio_group ${identity.id}`);
  }

  /** One more device; a container that the group is in hears nothing of it, its domains translate whole groups. */
  add(registration: VfioRegistration): RegisteredDevice {
    const device = new RegisteredDevice(registration, this, this.context);
    this.departed.delete(registration.device.name);
    this.devices.push(device);
    this.registrations.push(registration);
    return device;
  }

  /** The last device takes the group out of its container: nothing is left in it that could do DMA. */
  *remove(device: RegisteredDevice): Steps {
    const { name } = device.registration.device;
    const driver = this.members().find((member) => member.name === name)?.driver;
    if (driver !== undefined) this.departed.set(name, driver);
    this.devices.splice(this.devices.indexOf(device), 1);
    if (this.devices.length === 0) {
      this.dead = true;
      yield* this.lock.with(() => this.leaveContainer());
    }
    this.registrations.splice(this.registrations.indexOf(device.registration), 1);
  }

  /** The container's IOMMU, when the group is in use: in a container with an IOMMU, and viable. */
  get iommu(): ContainerIommu | undefined {
    return this.containerUsers > 0 && this.viable ? this.container?.iommu : undefined;
  }

  /** C6: no device of the group is in the hands of a kernel driver that could disturb its user. */
  get viable(): boolean {
    return this.intruder() === undefined;
  }

  private intruder(): GroupMember | undefined {
    return this.members().find(({ name, driver, bridge }) => driver !== undefined && !bridge && driver !== 'pci-stub' && !this.isOurs(name, driver));
  }

  private isOurs(name: string, driver: string): boolean {
    return this.departed.get(name) === driver || this.devices.some(({ registration }) => registration.device.name === name);
  }

  private members(): readonly GroupMember[] {
    return this.iommuGroup === undefined ? [] : this.context.groupMembers(this.id);
  }

  /** One file of the group. EBUSY open already, or still in a container of the previous user (C1, E30). */
  open(): GroupFile {
    if (this.opened) throw new Errno('EBUSY', `group ${this.id} is open already`);
    if (this.container !== undefined) throw new Errno('EBUSY', `devices of group ${this.id} are still in use from a previous open`);
    this.opened = true;
    return new GroupFile(this);
  }

  *close(): Steps {
    this.opened = false;
    yield* this.dropContainerUser();
  }

  /** GROUP_GET_STATUS flags. ENODEV after the last device has left. */
  get statusFlags(): number {
    if (this.dead) throw new Errno('ENODEV', `group ${this.id} has no devices any more`);
    const { iommuGroup } = this;
    const owned = iommuGroup !== undefined && iommuGroup.ownerCount > 0 && iommuGroup.owner !== this.owner;
    return (this.viable && !owned ? VFIO_GROUP_FLAGS_VIABLE : 0) | (this.container !== undefined ? VFIO_GROUP_FLAGS_CONTAINER_SET : 0);
  }

  /** C2. @throws Errno EINVAL in a container, negative or another kind of descriptor; EBADF; ENODEV; as Container.join */
  *setContainer(caller: Process, fd: number): Steps {
    if (fd < 0) throw new Errno('EINVAL', `${fd} is no descriptor of a container`);
    yield* this.lock.with(() => this.joinContainer(caller, fd));
  }

  private *joinContainer(caller: Process, fd: number): Steps {
    if (this.container !== undefined) throw new Errno('EINVAL', `group ${this.id} is in container ${this.container.id} already`);
    if (this.dead) throw new Errno('ENODEV', `group ${this.id} has no devices any more`);
    const file = caller.file(fd);
    if (!(file instanceof Container)) throw new Errno('EINVAL', `descriptor ${fd} is ${file.name}, not a container`);
    yield* file.join(this);
    this.container = file;
    this.containerUsers = 1;
  }

  /** C3, E31. @throws Errno EINVAL in no container, EBUSY devices are open */
  *unsetContainer(): Steps {
    yield* this.lock.with(() => this.unsetLocked());
  }

  private *unsetLocked(): Steps {
    if (this.containerUsers === 0) throw new Errno('EINVAL', `group ${this.id} is in no container`);
    if (this.containerUsers > 1 && !this.context.unsetWithOpenDevices) {
      throw new Errno('EBUSY', `devices of group ${this.id} have ${this.containerUsers - 1} users, so it cannot leave its container`);
    }
    yield* this.leaveContainer();
  }

  private *leaveContainer(): Steps {
    const { container } = this;
    if (container === undefined) return;
    this.containerUsers = 0;
    yield* container.leave(this);
    this.container = undefined;
  }

  /** Keeps the group in its container. EINVAL no container, no IOMMU, or not viable (C5). */
  useContainer(): ContainerIommu {
    const { iommu } = this;
    if (iommu === undefined) throw new Errno('EINVAL', `group ${this.id} ${this.whyUnusable()}`);
    this.containerUsers++;
    return iommu;
  }

  /** The last user takes the group out of its container. */
  *dropContainerUser(): Steps {
    if (this.containerUsers === 0 || --this.containerUsers > 0) return;
    yield* this.lock.with(() => this.leaveContainer());
  }

  /** C5. @throws Errno EFAULT; EINVAL as `useContainer`; ENODEV no such device; or what its driver's open says */
  *getDeviceFd(caller: Process, address: number): Steps<number> {
    const name = yield* stringFromUser(caller, address);
    this.useContainer();
    let device: RegisteredDevice | undefined;
    try {
      device = this.find(name);
      device.users++;
      yield* device.open();
    } catch (error) {
      device?.putUser();
      yield* this.dropContainerUser();
      throw error;
    }
    return yield* this.installFile(caller, new DeviceFile(device));
  }

  private *installFile(caller: Process, file: DeviceFile): Steps<number> {
    try {
      return caller.open(file, { closeOnExec: true });
    } catch (error) {
      yield* file.release();
      throw error;
    }
  }

  /** A device that its driver has taken back, and that nobody has open, is not found any more. */
  private find(name: string): RegisteredDevice {
    const device = this.devices.find((one) => one.name === name);
    if (device === undefined || (device.leaving && device.users === 0)) throw new Errno('ENODEV', `group ${this.id} has no device ${JSON.stringify(name)}`);
    return device;
  }

  private whyUnusable(): string {
    if (this.containerUsers === 0) return 'is in no container';
    if (this.container?.iommu === undefined) return 'is in a container without an IOMMU';
    const { name, driver } = this.intruder()!;
    return `is not viable: ${name} belongs to ${driver}`;
  }
}

/** An open /dev/vfio/$group. */
export class GroupFile implements IoctlFile {
  readonly name: string;
  readonly group: VfioGroup;

  constructor(group: VfioGroup) {
    this.group = group;
    this.name = `/dev/vfio/${group.id}`;
  }

  /** @param argument GET_STATUS: record; SET_CONTAINER: address of a descriptor; GET_DEVICE_FD: address of a name */
  *ioctl(caller: Process, command: number, argument: number): Steps<number> {
    switch (command) {
      case VFIO_GROUP_GET_STATUS:
        return yield* this.getStatus(caller, argument);
      case VFIO_GROUP_SET_CONTAINER: {
        const fd = (yield* wordsFromUser(caller, argument, 1))[0]! | 0;
        yield* this.group.setContainer(caller, fd);
        return 0;
      }
      case VFIO_GROUP_UNSET_CONTAINER:
        yield* this.group.unsetContainer();
        return 0;
      case VFIO_GROUP_GET_DEVICE_FD:
        return yield* this.group.getDeviceFd(caller, argument);
      default:
        throw new Errno('ENOTTY', `${this.name} knows no command ${hex(command)}`);
    }
  }

  *release(): Steps {
    yield* this.group.close();
  }

  private *getStatus(caller: Process, address: number): Steps<number> {
    const status = yield* recordFromUser(caller, address, GROUP_STATUS);
    GROUP_STATUS.f.flags.set(status, this.group.statusFlags);
    yield* wordsToUser(caller, address, status);
    return 0;
  }
}

/** The group of an open file, for who takes group descriptors (hot reset). EINVAL another kind of file. */
export function groupOfFile(file: OpenFile): VfioGroup {
  if (!(file instanceof GroupFile)) throw new Errno('EINVAL', `${file.name} is not a group`);
  return file.group;
}
