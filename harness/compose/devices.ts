/** Device models and their drivers, chosen by the topology's `model` through a map of factories. */
import { ContainerModule } from 'inversify';
import { DsaDevice } from '../../devices/dsa/hardware/dsa-device.js';
import type { DescriptorReport } from '../../devices/dsa/hardware/job.js';
import { IdxdDriver } from '../../devices/dsa/driver/idxd.js';
import type { IdxdOptions, IdxdWqOptions } from '../../devices/dsa/driver/idxd-options.js';
import { EduDevice } from '../../devices/edu/hardware/edu-device.js';
import { EduDriver } from '../../devices/edu/driver/edu-driver.js';
import type { KernelLog } from '../../host/kernel-log.js';
import type { PciFunction } from '../../host/pci/hardware/pci-function.js';
import type { PciDriver } from '../../host/pci/kernel/drivers.js';
import type { PciDevice } from '../../host/pci/kernel/pci-device.js';
import type { Timing } from '../../host/timing.js';
import type { IommuCore } from '../../iommu/core/core.js';
import type { VirtualClock } from '../../sim/clock.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import type { Scheduler } from '../../sim/task.js';
import type { Trace } from '../../sim/trace.js';
import type { DeviceTopology } from '../topology/schema.js';
import { formatBdf } from '../topology/units.js';
import type { PciTree } from './pci-tree.js';
import type { Settings } from './settings.js';
import { CLOCK, DEVICE_MODELS, IOMMU_CORE, LOG, MEMORY, PCI_TREE, SCHEDULER, SETTINGS, TIMING, TRACE } from './tokens.js';

type DsaTopology = Extract<DeviceTopology, { model: 'dsa' }>;

/** A device model plugged into its place. */
export interface DeviceModel {
  readonly topology: DeviceTopology;
  /** `0000:6a:01.0` */
  readonly bdf: string;
  readonly function: PciFunction;
  /** Called at the end of every descriptor; set by whoever counts flows. */
  onDescriptor: ((report: DescriptorReport) => void) | undefined;
}

export interface DeviceModels {
  readonly models: readonly DeviceModel[];
  readonly drivers: readonly PciDriver[];
  readonly idxd: IdxdDriver;
  readonly edu: EduDriver;
}

interface Parts {
  readonly clock: VirtualClock;
  readonly scheduler: Scheduler;
  readonly timing: Timing;
  readonly trace: Trace;
  readonly defects: ReadonlySet<string>;
}

const FACTORIES: { readonly [M in DeviceTopology['model']]: (device: Extract<DeviceTopology, { model: M }>, parts: Parts, onDescriptor: (report: DescriptorReport) => void) => PciFunction } = {
  dsa: (device, parts, onDescriptor) => {
    const queues = workQueues(device);
    const integrated = device.port === undefined;
    const pri = device.pri === false ? false : device.pri === true ? {} : { maxRequests: device.pri['max-requests'], prgResponsePasidRequired: device.pri['pasid-required'] };
    return new DsaDevice({
      ...parts, name: device.name, onComplete: onDescriptor,
      config: {
        wqs: queues.length, engines: device.engines, groups: device.groups, totalWqSize: queues.reduce((sum, queue) => sum + queue.size, 0),
        descriptorsPerEngine: device['engine-slots'], ats: device.ats, pri: pri === false ? false : { ...pri, groupPages: device['prefetch-pages'] },
        pasidBits: device['pasid-bits'], siov: device.siov, integrated,
      },
    }).function;
  },
  edu: (device, parts) => new EduDevice({ ...parts, name: device.name, config: { dmaMask: 2 ** Math.min(device['dma-mask-bits'], 52) - 1 } }).function,
};

/** Work queues as the driver is told; a topology that names none has one dedicated user queue. */
export function workQueues(device: DsaTopology): IdxdWqOptions[] {
  const queues = device['work-queues'];
  if (queues.length === 0) return [{ name: 'wq0.0', mode: 'dedicated', type: 'user', size: 32, blockOnFault: true }];
  return queues.map((queue, i) => ({
    name: queue.name ?? `wq0.${i}`, mode: queue.mode, type: queue.type, size: queue.size, priority: queue.priority, group: queue.group, blockOnFault: queue['block-on-fault'],
    ...(queue.threshold === undefined ? {} : { threshold: queue.threshold }),
  }));
}

function plug(tree: PciTree, device: DeviceTopology, parts: Parts): DeviceModel {
  const factory = FACTORIES[device.model] as (device: DeviceTopology, parts: Parts, onDescriptor: (report: DescriptorReport) => void) => PciFunction;
  const model: DeviceModel = {
    topology: device, bdf: formatBdf(device.bdf), onDescriptor: undefined,
    function: factory(device, parts, (report) => model.onDescriptor?.(report)),
  };
  tree.insert(device, model.function);
  return model;
}

export const devicesModule = new ContainerModule(({ bind }) => {
  bind(DEVICE_MODELS).toResolvedValue(
    (tree: PciTree, clock: VirtualClock, scheduler: Scheduler, timing: Timing, trace: Trace, log: KernelLog, memory: PhysicalMemory, core: IommuCore, { topology, defects }: Settings): DeviceModels => {
      const parts = { clock, scheduler, timing, trace, defects };
      const models = topology.host.devices.map((device) => plug(tree, device, parts));
      const configured = new Map(models.map((model) => [model.bdf, model.topology]));
      const idxd = new IdxdDriver({ clock, scheduler, timing, log, iommu: core, memory, defects }, (pci) => idxdOptions(pci, configured));
      const edu = new EduDriver({ clock, scheduler, log, dma: core.dma });
      return { models, drivers: [idxd, edu], idxd, edu };
    },
    [PCI_TREE, CLOCK, SCHEDULER, TIMING, TRACE, LOG, MEMORY, IOMMU_CORE, SETTINGS],
  ).inSingletonScope();
});

function idxdOptions(pci: PciDevice, configured: ReadonlyMap<string, DeviceTopology>): IdxdOptions {
  const device = configured.get(pci.name);
  if (device?.model !== 'dsa') return { wqs: [] };
  return { wqs: workQueues(device), mmExit: device['mm-exit'] ? 'abort' : 'none' };
}
