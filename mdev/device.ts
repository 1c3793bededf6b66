/**
 * A mediated device and its parent as the core keeps them (struct mdev_device, struct mdev_parent of
 * drivers/vfio/mdev/mdev_private.h, v5.10), and what stands between VFIO and the parent's driver: it knows whether
 * somebody has the device open (requirement 7.5). The parent's semaphore is a count of those who read-hold it and
 * one writer, the unregistration, which is asked for by a flag: try-locks fail from that moment on.
 */
import { Errno } from '../sim/errno.js';
import { WaitQueue, type Scheduler, type Steps } from '../sim/task.js';
import type { Device } from '../host/device.js';
import type { Process } from '../host/process.js';
import type { Mmio } from '../sim/mmio.js';
import type { VfioDeviceInfo, VfioDeviceOps, VfioFeatureRequest, VfioIrqInfo, VfioIrqSet, VfioRegionInfo } from '../vfio/device.js';
import type { MdevAttribute, MdevHandle, MdevInstance, MdevParentOps, MdevType } from './parent.js';

/** Life of a mediated device (7.5). */
export type MdevState = 'ABSENT' | 'CREATING' | 'ACTIVE' | 'OPEN' | 'REMOVING';

/** A type with its name in sysfs (C14). */
export interface MdevTypeEntry {
  /** `<driver>-<name>` */
  readonly id: string;
  readonly type: MdevType;
}

/** A registered parent (C11). */
export class MdevParent {
  readonly device: Device;
  readonly ops: MdevParentOps;
  /** In the order in which the driver offers them. */
  readonly types: readonly MdevTypeEntry[];
  /** By UUID, in the order of their creation; those being made or removed as well. */
  readonly children = new Map<string, MdevDevice>();
  /** The writer of the semaphore waits or has it. */
  unregistering = false;
  /** The writer has it: the parent is no more in /sys/class/mdev_bus. */
  closed = false;
  private readers = 0;
  private readonly quiet: WaitQueue;

  constructor(device: Device, ops: MdevParentOps, types: readonly MdevTypeEntry[], scheduler: Scheduler) {
    this.device = device;
    this.ops = ops;
    this.types = types;
    this.quiet = new WaitQueue(scheduler, `creates and removes under ${device.name} to end`);
  }

  /** Children that can be seen and used: not being made, not being removed. */
  get active(): MdevDevice[] {
    return [...this.children.values()].filter(({ state }) => state === 'ACTIVE' || state === 'OPEN');
  }

  /** down_read_trylock: ENODEV once the unregistration has been asked for (R-RACE-12). Pairs with `leave`. */
  enter(): void {
    if (this.unregistering) throw new Errno('ENODEV', `parent ${this.device.name} is being unregistered`);
    this.readers++;
  }

  /** up_read. */
  leave(): void {
    if (--this.readers === 0) this.quiet.wakeAll();
  }

  /** down_write, for good: nobody enters any more. */
  *close(): Steps {
    this.unregistering = true;
    yield* this.quiet.until(() => this.readers === 0);
    this.closed = true;
  }
}

export class MdevDevice implements MdevHandle {
  /** The UUID. */
  readonly name: string;
  readonly parent: MdevParent;
  readonly type: MdevType;
  readonly typeId: string;
  /** Undefined until the parent's driver has made it. */
  instance: MdevInstance | undefined;
  /** Number of its own IOMMU group (Y1), undefined while it has none. */
  group: number | undefined;
  /** Nobody has called `remove` yet, and it is made: what `mdev->active` is. */
  active = false;
  removing = false;
  /** Opens that have not been closed to the end; an open or a close that sleeps counts. */
  opens = 0;

  constructor(uuid: string, parent: MdevParent, { id, type }: MdevTypeEntry) {
    this.name = uuid;
    this.parent = parent;
    this.type = type;
    this.typeId = id;
  }

  get uuid(): string {
    return this.name;
  }

  get state(): MdevState {
    if (this.removing) return 'REMOVING';
    if (!this.active) return 'CREATING';
    return this.opens > 0 ? 'OPEN' : 'ACTIVE';
  }

  /** Of the parent's driver, in its order. */
  get attributes(): readonly MdevAttribute[] {
    return this.instance?.attributes ?? [];
  }
}

/** What VFIO holds: the parent's operations, with a watch on who has the device open. */
export class MdevDeviceOps implements VfioDeviceOps {
  readonly name: string;
  readonly feature?: (request: VfioFeatureRequest) => Steps<number>;
  readonly ioctl?: (caller: Process, command: number, argument: number) => Steps<number>;
  private readonly mdev: MdevDevice;
  private readonly ops: VfioDeviceOps;

  constructor(mdev: MdevDevice, ops: VfioDeviceOps) {
    this.name = mdev.name;
    this.mdev = mdev;
    this.ops = ops;
    // VFIO asks whether they exist
    if (ops.feature !== undefined) this.feature = (request) => ops.feature!(request);
    if (ops.ioctl !== undefined) this.ioctl = (caller, command, argument) => ops.ioctl!(caller, command, argument);
  }

  /** ENODEV while it is being removed. */
  *open(): Steps {
    const { mdev } = this;
    if (mdev.removing) throw new Errno('ENODEV', `mdev ${mdev.name} is being removed`);
    mdev.opens++;
    let open = false;
    try {
      yield* this.ops.open();
      open = true;
    } finally {
      if (!open) mdev.opens--;
    }
  }

  *close(): Steps {
    try {
      yield* this.ops.close();
    } finally {
      this.mdev.opens--;
    }
  }

  request(count: number): void {
    this.ops.request(count);
  }

  info(): VfioDeviceInfo {
    return this.ops.info();
  }

  regionInfo(index: number): VfioRegionInfo {
    return this.ops.regionInfo(index);
  }

  irqInfo(index: number): VfioIrqInfo {
    return this.ops.irqInfo(index);
  }

  read(offset: number, target: Uint8Array): number {
    return this.ops.read(offset, target);
  }

  write(offset: number, source: Uint8Array): number {
    return this.ops.write(offset, source);
  }

  mmap(offset: number, sizeBytes: number): Mmio {
    return this.ops.mmap(offset, sizeBytes);
  }

  setIrqs(request: VfioIrqSet): Steps {
    return this.ops.setIrqs(request);
  }

  reset(): Steps {
    return this.ops.reset();
  }
}
