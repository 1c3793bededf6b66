/** VFIO and mediated devices of the host: who offers devices to user space, and which the topology defines. */
import { ContainerModule } from 'inversify';
import { IdxdMdevParents } from '../../devices/dsa/parent/idxd-mdev.js';
import { MttyParent } from '../../devices/mtty/parent/mtty-parent.js';
import type { Device } from '../../host/device.js';
import type { FrameAllocator } from '../../host/frames.js';
import type { KernelLog } from '../../host/kernel-log.js';
import type { PciDrivers } from '../../host/pci/kernel/drivers.js';
import type { PciCore } from '../../host/pci/kernel/pci-core.js';
import type { ProcessTable } from '../../host/process.js';
import type { IommuCore } from '../../iommu/core/core.js';
import { MdevCore } from '../../mdev/core.js';
import { applyAttributes } from '../../mdev/definitions.js';
import { MdevSysfs } from '../../mdev/sysfs.js';
import type { Clock } from '../../sim/clock.js';
import { Errno } from '../../sim/errno.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import type { Scheduler, Steps } from '../../sim/task.js';
import type { Trace } from '../../sim/trace.js';
import type { GroupMember } from '../../vfio/core/context.js';
import { Vfio } from '../../vfio/core/vfio.js';
import { VfioPciDriver } from '../../vfio/pci/vfio-pci.js';
import { Type1Driver } from '../../vfio/type1/type1.js';
import type { MdevTopology, Topology } from '../topology/schema.js';
import type { DeviceModels } from './devices.js';
import type { IommuDriver } from './iommu.js';
import type { Settings } from './settings.js';
import { CLOCK, DEVICE_MODELS, FRAMES, IDXD_MDEV, IOMMU_CORE, IOMMU_DRIVER, LOG, MDEVS, MEMORY, PASSTHROUGH, PCI, PCI_DRIVERS, PROCESSES, SCHEDULER, SETTINGS, TRACE, VFIO, VFIO_TYPE1 } from './tokens.js';

export interface PassthroughParts {
  readonly vfio: Vfio;
  readonly type1: Type1Driver;
  readonly vfioPci: VfioPciDriver;
  readonly mdevs: MdevCore;
  readonly sysfs: MdevSysfs;
  readonly mttyParents: readonly MttyParent[];
  readonly topology: Topology;
  /** The parent device of a name in the topology; undefined when it is gone. */
  readonly parentOf: (name: string) => Device | undefined;
}

export class Passthrough {
  readonly vfio: Vfio;
  readonly type1: Type1Driver;
  readonly vfioPci: VfioPciDriver;
  readonly mdevs: MdevCore;
  readonly sysfs: MdevSysfs;
  readonly mttyParents: readonly MttyParent[];
  private readonly parts: PassthroughParts;
  private readonly byName = new Map<string, MdevTopology>();
  private readonly byUuid = new Map<string, MdevTopology>();

  constructor(parts: PassthroughParts) {
    this.parts = parts;
    for (const mdev of parts.topology.mdevs) {
      if (mdev.name !== undefined) this.byName.set(mdev.name, mdev);
      this.byUuid.set(mdev.uuid, mdev);
    }
    this.vfio = parts.vfio;
    this.type1 = parts.type1;
    this.vfioPci = parts.vfioPci;
    this.mdevs = parts.mdevs;
    this.sysfs = parts.sysfs;
    this.mttyParents = parts.mttyParents;
  }

  /** Devices that guests get as a whole. */
  get assigned(): readonly string[] {
    return this.parts.topology.guests.flatMap((guest) => guest.devices.flatMap(({ host }) => (host === undefined ? [] : [host])));
  }

  /** What the topology says about a mediated device, by name or UUID. ENOENT. */
  definition(reference: string): MdevTopology {
    const found = this.byName.get(reference) ?? this.byUuid.get(reference.toLowerCase());
    if (found === undefined) throw new Errno('ENOENT', `no mediated device "${reference}" is defined`);
    return found;
  }

  /** Creates what the topology defines, with its attributes. What the core or the parent's driver refuses. */
  *startMdev(reference: string): Steps {
    const { uuid, parent, mdev_type, attrs } = this.definition(reference);
    const device = this.parts.parentOf(parent);
    if (device === undefined) throw new Errno('ENODEV', `${parent} is not there`);
    yield* this.mdevs.create(device, mdev_type, uuid);
    yield* applyAttributes(this.sysfs, uuid, attrs.flatMap((attribute) => Object.entries(attribute)));
  }

  /** Removes it. ENODEV, EAGAIN, EBUSY. */
  *stopMdev(reference: string): Steps {
    yield* this.mdevs.remove(this.definition(reference).uuid);
  }
}

export const passthroughModule = new ContainerModule(({ bind }) => {
  bind(VFIO_TYPE1).toResolvedValue(
    (clock: Clock, scheduler: Scheduler, core: IommuCore, frames: FrameAllocator, log: KernelLog, trace: Trace, iommu: IommuDriver | undefined, processes: ProcessTable, { defects, topology }: Settings) => new Type1Driver({
      clock, scheduler, core, frames, log, trace, defects, interruptRemapping: () => iommu?.interruptRemapping ?? false, processes: (pid) => processes.find(pid),
      options: { allowUnsafeInterrupts: topology.host.kernel['allow-unsafe-interrupts'] },
    }),
    [CLOCK, SCHEDULER, IOMMU_CORE, FRAMES, LOG, TRACE, IOMMU_DRIVER, PROCESSES, SETTINGS],
  ).inSingletonScope();
  bind(VFIO).toResolvedValue(
    (scheduler: Scheduler, log: KernelLog, core: IommuCore, type1: Type1Driver, pci: PciCore, drivers: PciDrivers, trace: Trace, { defects }: Settings) => new Vfio({
      scheduler, log, owners: core, iommuDrivers: [type1], trace, defects,
      groupMembers: (id) => pci.devices.filter((device) => pci.groupOf(device).id === id)
        .map((device): GroupMember => ({ name: device.name, driver: drivers.driverOf(device)?.name, bridge: device.isBridge })),
    }),
    [SCHEDULER, LOG, IOMMU_CORE, VFIO_TYPE1, PCI, PCI_DRIVERS, TRACE, SETTINGS],
  ).inSingletonScope();
  bind(MDEVS).toResolvedValue(
    (scheduler: Scheduler, log: KernelLog, vfio: Vfio, { groups }: PciCore, trace: Trace, { defects }: Settings) => new MdevCore({ scheduler, log, vfio, groups, trace, defects }),
    [SCHEDULER, LOG, VFIO, PCI, TRACE, SETTINGS],
  ).inSingletonScope();
  bind(IDXD_MDEV).toResolvedValue(
    (scheduler: Scheduler, log: KernelLog, iommu: IommuCore, parents: MdevCore, vfio: Vfio, trace: Trace, { defects }: Settings) => new IdxdMdevParents({ parents, vfio, iommu, scheduler, log, trace, defects }),
    [SCHEDULER, LOG, IOMMU_CORE, MDEVS, VFIO, TRACE, SETTINGS],
  ).inSingletonScope();
  bind(PASSTHROUGH).toResolvedValue(
    (vfio: Vfio, type1: Type1Driver, mdevs: MdevCore, core: IommuCore, pci: PciCore, scheduler: Scheduler, clock: Clock, memory: PhysicalMemory, log: KernelLog, trace: Trace, { models }: DeviceModels, { defects, topology }: Settings) => {
      const mttyParents = topology.host['mdev-parents'].map((parent) => new MttyParent({
        name: parent.name, clock, scheduler, memory, vfio, trace, defects, config: { lateUnpin: parent['late-unpin'], hotUnplug: parent['hot-unplug'] },
      }));
      return new Passthrough({
        vfio, type1, mdevs, mttyParents, topology, sysfs: new MdevSysfs(mdevs, { devicePath: ({ name }) => (name.includes(':') ? `/sys/devices/pci0000:00/${name}` : `/sys/devices/virtual/mtty/${name}`) }),
        vfioPci: new VfioPciDriver({ vfio, bus: pci, groups: core, scheduler, log, trace, defects }),
        parentOf: (name) => mttyParents.find(({ device }) => device.name === name)?.device ?? pci.find(models.find((model) => model.name === name)?.bdf ?? ''),
      });
    },
    [VFIO, VFIO_TYPE1, MDEVS, IOMMU_CORE, PCI, SCHEDULER, CLOCK, MEMORY, LOG, TRACE, DEVICE_MODELS, SETTINGS],
  ).inSingletonScope();
});
