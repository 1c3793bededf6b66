/**
 * The mediated device core (drivers/vfio/mdev/mdev_core.c, mdev_driver.c, vfio_mdev.c, v5.10): parents with their
 * types, and the life of mediated devices between ABSENT and ABSENT (requirements C11–C15, Y1, 7.5, R-RACE-12). Like
 * the kernel's it serializes nothing but a parent's unregistration against creates and removes (C15); a UUID is
 * taken from the first moment of its create to the last of its remove.
 *
 * Where it goes beyond v5.10: the parent says whether a device in use can be taken away (`hotUnplug`), and its user
 * is asked by `request`, which mdev parents have since v5.11. EUSERS is counted by the parent's type and asked by the
 * core, as in v6.1. Left out: the alternative of private PASIDs per mediated device (Y2, Y3), uevents.
 */
import { Errno, isErrno } from '../sim/errno.js';
import type { Device } from '../host/device.js';
import type { KernelLog } from '../host/kernel-log.js';
import type { Scheduler, Steps } from '../sim/task.js';
import type { Trace } from '../sim/trace.js';
import type { VfioCore } from '../vfio/device.js';
import { MdevDevice, MdevDeviceOps, MdevParent, type MdevState, type MdevTypeEntry } from './device.js';
import { mdevTrace, type MdevTrace } from './trace-kinds.js';
import { parseUuid } from './uuid.js';
import type { MdevAttribute, MdevInstance, MdevParentOps, MdevParents } from './parent.js';

/** Where numbers of IOMMU groups come from: one sequence with those of PCI devices. */
export interface GroupNumbers {
  /** Lowest number that is no group's; it is a group's from now on. */
  reserve(): number;
  release(id: number): void;
}

export interface MdevCoreOptions {
  readonly scheduler: Scheduler;
  readonly log: KernelLog;
  readonly vfio: VfioCore;
  readonly groups: GroupNumbers;
  readonly trace?: Trace;
  /** `mdev.uuid-unique-per-parent`, `mdev.instance-leak`, `mdev.remove-open-device` */
  readonly defects?: ReadonlySet<string>;
}

/** Names in an mdev's directory that are the core's and the driver core's. */
const OWN_NAMES = ['driver', 'iommu_group', 'mdev_type', 'power', 'remove', 'subsystem', 'uevent'];

export class MdevCore implements MdevParents {
  private readonly scheduler: Scheduler;
  private readonly log: KernelLog;
  private readonly vfio: VfioCore;
  private readonly groups: GroupNumbers;
  private readonly trace: MdevTrace | undefined;
  private readonly uniquePerParent: boolean;
  private readonly leakInstances: boolean;
  private readonly removeOpen: boolean;
  private readonly registered = new Map<Device, MdevParent>();

  constructor(options: MdevCoreOptions) {
    this.scheduler = options.scheduler;
    this.log = options.log;
    this.vfio = options.vfio;
    this.groups = options.groups;
    this.trace = options.trace === undefined ? undefined : mdevTrace(options.trace);
    const defects = options.defects ?? new Set<string>();
    this.uniquePerParent = defects.has('mdev.uuid-unique-per-parent');
    this.leakInstances = defects.has('mdev.instance-leak');
    this.removeOpen = defects.has('mdev.remove-open-device');
  }

  /** In the order of their registration; one that is being unregistered is still among them. */
  get parents(): readonly MdevParent[] {
    return [...this.registered.values()];
  }

  /** Devices that can be seen and used, by parent. */
  get devices(): readonly MdevDevice[] {
    return this.parents.flatMap(({ active }) => active);
  }

  /** The device of a UUID in whatever state, in either case. */
  find(uuid: string): MdevDevice | undefined {
    const name = uuid.toLowerCase();
    for (const { children } of this.registered.values()) {
      const mdev = children.get(name);
      if (mdev !== undefined) return mdev;
    }
    return undefined;
  }

  /** 7.5. */
  state(uuid: string): MdevState {
    return this.find(uuid)?.state ?? 'ABSENT';
  }

  /**
   * mdev_register_device (C11).
   * @throws Errno EINVAL no types, no operations, a type without a name; EEXIST the device is a parent, or two types of one name
   */
  registerParent(device: Device, ops: MdevParentOps): void {
    // callers in JavaScript may leave out what the type demands
    const given: Partial<MdevParentOps> = ops;
    if (typeof given.create !== 'function' || typeof given.remove !== 'function') throw new Errno('EINVAL', `parent ${device.name} has no create or no remove operation`);
    if (!given.types?.length || !given.driver) throw new Errno('EINVAL', `parent ${device.name} offers no types of mediated devices, or its driver has no name`);
    const old = this.registered.get(device);
    if (old !== undefined) throw new Errno('EEXIST', `${device.name} is ${old.unregistering ? 'a parent that is being unregistered' : 'a parent of mediated devices already'}`);
    const types: MdevTypeEntry[] = [];
    for (const type of ops.types) {
      const id = `${ops.driver}-${type.name}`;
      if (type.name === '') throw new Errno('EINVAL', `a type of parent ${device.name} has no name`);
      if (types.some((other) => other.id === id)) throw new Errno('EEXIST', `parent ${device.name} offers two types ${id}`);
      types.push({ id, type });
    }
    const parent = new MdevParent(device, ops, types, this.scheduler);
    this.registered.set(device, parent);
    this.log.log('info', `${ops.driver} ${device.name}: MDEV: Registered`);
    this.trace?.registerParent(parent);
  }

  /**
   * mdev_unregister_device: lets creates and removes that are under way end, refuses new ones with ENODEV, then
   * removes child after child; who has one open is asked for it and waited for. Nothing for a device that is no
   * parent or is being unregistered by somebody else.
   */
  *unregisterParent(device: Device): Steps {
    const parent = this.registered.get(device);
    if (parent === undefined || parent.unregistering) return;
    this.log.log('info', `${parent.ops.driver} ${device.name}: MDEV: Unregistering`);
    yield* parent.close();
    for (const mdev of parent.children.values()) yield* this.tearDown(mdev);
    this.registered.delete(device);
    this.trace?.unregisterParent(parent);
  }

  /**
   * Makes a mediated device (mdev_device_create): what a write to a type's `create` does (C12).
   * @param typeId as in sysfs, such as `idxd-1dwq-v1`
   * @param uuid as written, perhaps with a newline
   * @throws Errno in this order: EINVAL no UUID; EEXIST it is taken, whichever the parent; ENODEV the parent is not or no more registered;
   *   ENOENT no such type; EUSERS no instance left; then whatever the parent's driver or VFIO refuses with
   */
  *create(device: Device, typeId: string, uuid: string): Steps<MdevDevice> {
    const name = parseUuid(uuid);
    const parent = this.registered.get(device);
    const taken = this.uniquePerParent ? parent?.children.get(name) : this.find(name);
    if (taken !== undefined) throw new Errno('EEXIST', `mdev ${name} is ${describe(taken)} under ${taken.parent.device.name}`);
    if (parent === undefined) throw new Errno('ENODEV', `${device.name} is no parent of mediated devices`);
    const entry = parent.types.find(({ id }) => id === typeId);
    if (entry === undefined && !parent.unregistering) throw new Errno('ENOENT', `parent ${device.name} has no type ${typeId}; it has ${parent.types.map(({ id }) => id).join(', ')}`);
    parent.enter();
    const mdev = new MdevDevice(name, parent, entry!);
    try {
      if (mdev.type.availableInstances() <= 0) throw new Errno('EUSERS', `parent ${device.name} has no instance of ${typeId} left`);
      parent.children.set(name, mdev);
      yield* this.make(mdev);
    } finally {
      if (!mdev.active) parent.children.delete(name);
      parent.leave();
    }
    return mdev;
  }

  /**
   * Ends a mediated device (mdev_device_remove): what a write to its `remove` does (C13). A device in use is asked
   * back and waited for when its parent can unplug it, refused otherwise (7.5).
   * @param value a number as kstrtoul reads it; 0 does nothing
   * @throws Errno EINVAL no number; ENODEV no such device; EAGAIN it is being made or removed; ENODEV its parent is being unregistered; EBUSY it is open
   */
  *remove(uuid: string, value = '1'): Steps {
    if (!asksForRemoval(value)) return;
    const mdev = this.find(uuid);
    if (mdev === undefined) throw new Errno('ENODEV', `there is no mdev ${uuid}`);
    if (!mdev.active) throw new Errno('EAGAIN', `mdev ${mdev.name} is ${describe(mdev)}`);
    const { parent } = mdev;
    parent.enter();
    try {
      if (mdev.opens > 0 && !parent.ops.hotUnplug && !this.removeOpen) throw new Errno('EBUSY', `mdev ${mdev.name} is open, and ${parent.ops.driver} cannot unplug a device in use`);
      mdev.active = false;
      yield* this.tearDown(mdev);
    } finally {
      parent.leave();
    }
  }

  /** From the parent's instance to a VFIO device in a group of its own; unwinds completely. */
  private *make(mdev: MdevDevice): Steps {
    const { parent } = mdev;
    const instance = yield* parent.ops.create(mdev);
    try {
      checkNames(mdev, instance.attributes ?? []);
      this.publish(mdev, instance);
    } catch (error) {
      yield* this.endInstance(mdev);
      throw error;
    }
    mdev.active = true;
    this.trace?.create(mdev);
  }

  private publish(mdev: MdevDevice, instance: MdevInstance): void {
    const id = this.groups.reserve();
    try {
      this.vfio.register({
        device: mdev, ops: new MdevDeviceOps(mdev, instance.ops), group: { id }, iommuDevice: () => instance.iommuDevice,
      });
    } catch (error) {
      this.groups.release(id);
      throw error;
    }
    mdev.instance = instance;
    mdev.group = id;
    this.log.log('info', `vfio_mdev ${mdev.name}: Adding to iommu group ${id}`);
    this.log.log('info', `vfio_mdev ${mdev.name}: MDEV: group_id = ${id}`);
  }

  /** The semaphore of the parent is held, for reading or for good. */
  private *tearDown(mdev: MdevDevice): Steps {
    mdev.removing = true;
    this.trace?.removing(mdev);
    if (this.removeOpen) yield* this.endInstance(mdev);
    yield* this.vfio.unregister(mdev);
    this.groups.release(mdev.group!);
    this.log.log('info', `vfio_mdev ${mdev.name}: Removing from iommu group ${mdev.group!}`);
    this.log.log('info', `vfio_mdev ${mdev.name}: MDEV: detaching iommu`);
    if (!this.removeOpen) yield* this.endInstance(mdev);
    mdev.parent.children.delete(mdev.name);
  }

  /** The parent's refusal is only logged (C13). */
  private *endInstance(mdev: MdevDevice): Steps {
    if (this.leakInstances) return;
    try {
      yield* mdev.parent.ops.remove(mdev);
    } catch (error) {
      if (!isErrno(error)) throw error;
      this.log.log('err', `mdev ${mdev.name}: Remove failed: err=${error.errno}`);
    }
    if (mdev.instance !== undefined) this.trace?.remove(mdev);
  }
}

function describe(mdev: MdevDevice): string {
  switch (mdev.state) {
    case 'CREATING': return 'being created';
    case 'REMOVING': return 'being removed';
    case 'OPEN': return 'in use';
    case 'ACTIVE':
    case 'ABSENT': return 'there';
  }
}

/** kstrtoul with base 0 (lib/kstrtox.c): decimal, 0x…, 0…; one newline may follow. EINVAL. */
function asksForRemoval(value: string): boolean {
  const digits = /^\+?(0x[0-9a-f]+|0[0-7]*|[1-9][0-9]*)\n?$/i.exec(value)?.[1];
  if (digits === undefined) throw new Errno('EINVAL', `${JSON.stringify(value)} is no number; 1 removes the device`);
  return /[1-9a-f]/i.test(digits.replace(/^0x/i, ''));
}

/** sysfs has one file of a name: EEXIST. */
function checkNames(mdev: MdevDevice, attributes: readonly MdevAttribute[]): void {
  const names = [...OWN_NAMES];
  for (const { name } of attributes) {
    if (names.includes(name)) throw new Errno('EEXIST', `mdev ${mdev.name} would have two attributes ${name}`);
    names.push(name);
  }
}
