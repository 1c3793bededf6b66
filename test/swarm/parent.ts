/** A parent of mediated devices without hardware of its own: two types from one stock, and, where it pins, the rules of C9 and C10 kept. */
import { Errno, type ErrnoName } from '../../sim/errno.js';
import type { Mmio } from '../../sim/mmio.js';
import type { Steps } from '../../sim/task.js';
import type { Device } from '../../host/device.js';
import type { MdevHandle, MdevInstance, MdevParentOps, MdevType } from '../../mdev/parent.js';
import type { DmaUnmapNotifier, VfioCore, VfioDeviceInfo, VfioDeviceOps, VfioIrqInfo, VfioRegionInfo } from '../../vfio/device.js';

export interface SwarmParentOptions {
  readonly device: Device;
  readonly driver: string;
  readonly vfio: VfioCore;
  /** Type `1` takes one, type `2` two. */
  readonly instances: number;
  readonly hotUnplug: boolean;
  /** Mediated devices' requests are the parent's (Y1). */
  readonly isolated: boolean;
  /** Its devices listen to unmaps while they are open, as those do that pin. */
  readonly pins: boolean;
}

export class SwarmParent implements MdevParentOps {
  /** Another one after its function was plugged in again. */
  device: Device;
  readonly driver: string;
  readonly hotUnplug: boolean;
  readonly types: readonly MdevType[];
  readonly live = new Map<string, SwarmMdev>();
  /** What the next create is refused with. */
  refuseCreate: ErrnoName | undefined;
  /** Sleeps before it does anything; for tests of what happens meanwhile. */
  pause: (() => Steps) | undefined;
  readonly options: SwarmParentOptions;
  private left: number;

  constructor(options: SwarmParentOptions) {
    this.options = options;
    this.device = options.device;
    this.driver = options.driver;
    this.hotUnplug = options.hotUnplug;
    this.left = options.instances;
    this.types = [1, 2].map((takes) => ({ name: `${takes}`, deviceApi: 'vfio-pci' as const, availableInstances: () => Math.floor(this.left / takes) }));
  }

  *create(mdev: MdevHandle): Steps<MdevInstance> {
    const takes = Number(mdev.type.name);
    const { refuseCreate } = this;
    this.refuseCreate = undefined;
    if (this.left < takes) throw new Errno('ENOSPC', 'somebody was faster');
    this.left -= takes;
    if (this.pause !== undefined) yield* this.pause();
    if (refuseCreate !== undefined) {
      this.left += takes;
      throw new Errno(refuseCreate, 'the parent refuses');
    }
    const ops = new SwarmMdev(mdev, this);
    this.live.set(mdev.uuid, ops);
    return { ops, ...(this.options.isolated ? { iommuDevice: this.device } : {}) };
  }

  *remove(mdev: MdevHandle): Steps {
    const device = this.live.get(mdev.uuid)!;
    if (device.opened) throw new Error(`${mdev.uuid} is removed while it is open`);
    if (this.pause !== undefined) yield* this.pause();
    this.live.delete(mdev.uuid);
    this.left += Number(mdev.type.name);
  }
}

export class SwarmMdev implements VfioDeviceOps, DmaUnmapNotifier {
  readonly name: string;
  readonly requests: number[] = [];
  opened = false;
  /** Pins that this driver holds: how often, by I/O virtual address. */
  readonly pins = new Map<number, number>();
  private readonly mdev: MdevHandle;
  private readonly parent: SwarmParent;

  constructor(mdev: MdevHandle, parent: SwarmParent) {
    this.name = mdev.uuid;
    this.mdev = mdev;
    this.parent = parent;
  }

  *open(): Steps {
    if (this.parent.pause !== undefined) yield* this.parent.pause();
    if (this.parent.options.pins) this.vfio.registerNotifier(this.mdev, this);
    this.opened = true;
  }

  *close(): Steps {
    if (this.parent.pause !== undefined) yield* this.parent.pause();
    this.unpinAll(() => true);
    if (this.parent.options.pins) this.vfio.unregisterNotifier(this.mdev, this);
    this.opened = false;
  }

  /** Pins pages for the device's DMA; what it returns are physical addresses. */
  *pin(iovas: readonly number[], prot: number): Steps<number[]> {
    const physical = yield* this.vfio.pinPages(this.mdev, iovas, prot);
    for (const iova of iovas) this.pins.set(iova, (this.pins.get(iova) ?? 0) + 1);
    return physical;
  }

  unpin(iovas: readonly number[]): number {
    const count = this.vfio.unpinPages(this.mdev, iovas);
    for (const iova of iovas.slice(0, count)) {
      const left = (this.pins.get(iova) ?? 1) - 1;
      if (left > 0) this.pins.set(iova, left);
      else this.pins.delete(iova);
    }
    return count;
  }

  *dmaUnmap(iova: number, sizeBytes: number): Steps {
    if (this.parent.pause !== undefined) yield* this.parent.pause();
    this.unpinAll((at) => at >= iova && at < iova + sizeBytes);
  }

  private unpinAll(which: (iova: number) => boolean): void {
    for (const [iova, count] of this.pins) {
      if (!which(iova)) continue;
      this.pins.delete(iova);
      for (let i = 0; i < count; i++) this.vfio.unpinPages(this.mdev, [iova]);
    }
  }

  request(count: number): void {
    this.requests.push(count);
  }

  info(): VfioDeviceInfo {
    return { flags: 2, regions: 9, irqs: 5 };
  }

  regionInfo(): VfioRegionInfo {
    return { flags: 0, sizeBytes: 0 };
  }

  irqInfo(): VfioIrqInfo {
    return { flags: 0, count: 0 };
  }

  read(): number {
    return 0;
  }

  write(): number {
    return 0;
  }

  mmap(): Mmio {
    throw new Errno('EINVAL', 'not mappable');
  }

  // oxlint-disable-next-line require-yield -- the joint's signature
  *setIrqs(): Steps {}

  // oxlint-disable-next-line require-yield -- the joint's signature
  *reset(): Steps {}

  private get vfio(): VfioCore {
    return this.parent.options.vfio;
  }
}
