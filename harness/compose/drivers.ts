/** The device drivers of a kernel, the same for a host and a guest. */
import { ContainerModule } from 'inversify';
import { IdxdDriver } from '../../devices/dsa/driver/idxd.js';
import type { IdxdMdevHooks, IdxdOptions } from '../../devices/dsa/driver/idxd-options.js';
import { EduDriver } from '../../devices/edu/driver/edu-driver.js';
import { MttyDriver } from '../../devices/mtty/driver/mtty-driver.js';
import { NvmeDriver } from '../../devices/nvme/driver/nvme-driver.js';
import type { KernelLog } from '../../host/kernel-log.js';
import type { PciDriver } from '../../host/pci/kernel/drivers.js';
import type { PciDevice } from '../../host/pci/kernel/pci-device.js';
import type { Timing } from '../../host/timing.js';
import type { IommuCore } from '../../iommu/core/core.js';
import type { Clock } from '../../sim/clock.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import type { Scheduler } from '../../sim/task.js';
import type { DeviceModel, DeviceModels } from './devices.js';
import { workQueues } from './devices.js';
import type { Settings } from './settings.js';
import { CLOCK, DEVICE_MODELS, IDXD_MDEV, IOMMU_CORE, KERNEL_DRIVERS, LOG, MEMORY, SCHEDULER, SETTINGS, TIMING } from './tokens.js';

export interface KernelDrivers {
  /** In order of registration. */
  readonly list: readonly PciDriver[];
  readonly idxd: IdxdDriver;
  readonly edu: EduDriver;
  readonly mtty: MttyDriver;
  readonly nvme: NvmeDriver;
}

/** What a guest's kernel puts into the PASID field of what it enqueues: its virtual CPU knows the real one. */
const GUEST_KERNEL_PASID = 0;

export const driversModule = new ContainerModule(({ bind }) => {
  bind(KERNEL_DRIVERS).toResolvedValue(
    ({ models }: DeviceModels, clock: Clock, scheduler: Scheduler, timing: Timing, log: KernelLog, memory: PhysicalMemory, core: IommuCore, mdev: IdxdMdevHooks | undefined, { defects, scope }: Settings): KernelDrivers => {
      const configured = new Map(models.map((model) => [model.bdf, model]));
      const idxd = new IdxdDriver({ clock, scheduler, timing, log, iommu: core, memory, defects, ...(mdev === undefined ? {} : { mdev }) }, (pci) => idxdOptions(pci, configured, scope !== ''));
      const edu = new EduDriver({ clock, scheduler, log, dma: core.dma });
      const mtty = new MttyDriver({ clock, scheduler, timing, log, dma: core.dma });
      const nvme = new NvmeDriver({ clock, scheduler, log, dma: core.dma, memory, defects });
      return { list: [idxd, edu, mtty, nvme], idxd, edu, mtty, nvme };
    },
    [DEVICE_MODELS, CLOCK, SCHEDULER, TIMING, LOG, MEMORY, IOMMU_CORE, IDXD_MDEV, SETTINGS],
  ).inSingletonScope();
});

function idxdOptions(pci: PciDevice, configured: ReadonlyMap<string, DeviceModel>, inGuest: boolean): IdxdOptions {
  const device = configured.get(pci.name)?.topology;
  const kernelPasid = inGuest ? { kernelPasid: GUEST_KERNEL_PASID } : {};
  if (device?.model !== 'dsa') return { wqs: [], ...kernelPasid };
  return { wqs: workQueues(device), mmExit: device['mm-exit'] ? 'abort' : 'none', mdevSlots: device['mdev-slots'], ...kernelPasid };
}
