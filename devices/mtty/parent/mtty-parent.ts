/**
 * Linux' sample parent of mediated devices (samples/vfio-mdev/mtty.c, v6.12): a device that exists in software only,
 * two types over a common stock of 24 ports, and isolation by the vendor's driver instead of an IOMMU (Y1: no
 * iommu_device), which keeps the second way of VFIO honest.
 */
import { Errno } from '../../../sim/errno.js';
import type { Clock } from '../../../sim/clock.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { Scheduler, Steps } from '../../../sim/task.js';
import type { Trace } from '../../../sim/trace.js';
import type { Device } from '../../../host/device.js';
import type { MdevHandle, MdevInstance, MdevParentOps, MdevType } from '../../../mdev/parent.js';
import type { VfioPinning } from '../../../vfio/device.js';
import { MAX_MTTYS, MTTY_TYPES } from '../spec/registers.js';
import { MttyDevice } from './mtty-device.js';
import { DEFAULT_MTTY_CONFIG, type MttyConfig, type MttyServices } from './services.js';
import { mttyTrace } from './trace-kinds.js';

export interface MttyParentOptions {
  /** Of the parent in sysfs; `mtty` by default. */
  readonly name?: string;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  /** Host physical memory. */
  readonly memory: PhysicalMemory;
  /** The VFIO core: how this driver reaches the memory of its devices' users. */
  readonly vfio: VfioPinning;
  readonly trace?: Trace;
  readonly config?: Partial<MttyConfig>;
  /** `mtty.never-unpin`, `mtty.pin-leak`, `mtty.lose-dirty` */
  readonly defects?: ReadonlySet<string>;
}

export class MttyParent implements MdevParentOps {
  /** The parent device: no PCI function, no IOMMU. */
  readonly device: Device;
  readonly driver = 'mtty';
  readonly types: readonly MdevType[];
  readonly hotUnplug: boolean;
  private freePorts = MAX_MTTYS;
  private readonly services: MttyServices;
  private readonly trace: Trace | undefined;
  private readonly created = new Map<string, MttyDevice>();

  constructor(options: MttyParentOptions) {
    const { clock, scheduler, memory, vfio, trace } = options;
    const config = { ...DEFAULT_MTTY_CONFIG, ...options.config };
    this.device = { name: options.name ?? 'mtty' };
    this.hotUnplug = config.hotUnplug;
    this.trace = trace;
    this.services = { clock, scheduler, memory, vfio, config, trace: trace === undefined ? undefined : mttyTrace(trace), defects: options.defects ?? new Set() };
    this.types = MTTY_TYPES.map(({ name, label, ports }) => ({
      name, label, deviceApi: 'vfio-pci', availableInstances: () => Math.floor(this.freePorts / ports),
    }));
  }

  /** Devices that exist now, in the order of their creation. */
  get devices(): readonly MttyDevice[] {
    return [...this.created.values()];
  }

  /** ENOSPC when another create took the last ports meanwhile. */
  // oxlint-disable-next-line require-yield -- MdevParentOps.create may sleep
  *create(mdev: MdevHandle): Steps<MdevInstance> {
    const ports = MTTY_TYPES[this.types.indexOf(mdev.type)]!.ports;
    if (this.freePorts < ports) throw new Errno('ENOSPC', `${this.device.name} has ${this.freePorts} of ${MAX_MTTYS} ports left, ${mdev.type.label!} needs ${ports}`);
    this.freePorts -= ports;
    const ops = new MttyDevice(mdev, ports, this.services, this.trace);
    this.created.set(mdev.uuid, ops);
    return { ops, attributes: [{ name: 'vendor/sample_mdev_dev', read: () => `This is MDEV ${mdev.uuid}` }] };
  }

  // oxlint-disable-next-line require-yield -- MdevParentOps.remove may sleep
  *remove(mdev: MdevHandle): Steps {
    const device = this.created.get(mdev.uuid);
    if (device === undefined) return;
    this.created.delete(mdev.uuid);
    this.freePorts += device.ports.length;
  }
}
