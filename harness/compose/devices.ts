/** Device models in their slots, chosen by the topology's `model` through a map of factories. */
import { ContainerModule } from 'inversify';
import { DsaDevice } from '../../devices/dsa/hardware/dsa-device.js';
import type { DescriptorReport } from '../../devices/dsa/hardware/job.js';
import type { IdxdWqOptions } from '../../devices/dsa/driver/idxd-options.js';
import { EduDevice } from '../../devices/edu/hardware/edu-device.js';
import { MemoryMedium } from '../../devices/nvme/hardware/medium.js';
import { NvmeDevice } from '../../devices/nvme/hardware/nvme-device.js';
import type { DmaPort } from '../../host/pci/dma-port.js';
import type { FunctionPort } from '../../host/pci/hardware/function-port.js';
import type { PciFunction } from '../../host/pci/hardware/pci-function.js';
import type { Timing } from '../../host/timing.js';
import type { Clock } from '../../sim/clock.js';
import type { Scheduler } from '../../sim/task.js';
import type { Trace } from '../../sim/trace.js';
import type { DeviceTopology, MdevParentTopology, Topology } from '../topology/schema.js';
import { formatBdf } from '../topology/units.js';
import type { PciTree } from './pci-tree.js';
import type { Settings } from './settings.js';
import { CLOCK, DEVICE_MODELS, PCI_TREE, SCHEDULER, SETTINGS, TIMING, TRACE } from './tokens.js';

export type DsaTopology = Extract<DeviceTopology, { model: 'dsa' }>;

/** A device in its slot, as this machine's topology and kernel know it. */
export interface DeviceModel {
  readonly name: string;
  readonly model: DeviceTopology['model'] | MdevParentTopology['model'];
  /** `0000:6a:01.0` */
  readonly bdf: string;
  readonly function: PciFunction;
  /** How the administrator sets it up; undefined for one that brings its configuration with it. */
  readonly topology: DeviceTopology | undefined;
  /** Called at the end of every descriptor; set by whoever counts flows. */
  onDescriptor: ((report: DescriptorReport) => void) | undefined;
}

export interface DeviceModels {
  readonly models: readonly DeviceModel[];
}

interface Parts {
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly timing: Timing;
  readonly trace: Trace;
  readonly defects: ReadonlySet<string>;
  readonly file: Settings['file'];
  /** Disks whose content is a file's. */
  readonly medium: Settings['medium'];
  readonly wrapPort?: (port: FunctionPort) => DmaPort;
  /** Nobody knows how the kernel of somebody else sets the hardware up. */
  readonly external: boolean;
  /** How guests set up devices that they get as a whole: the hardware must be able to. */
  readonly queuesInGuests: ReadonlyMap<string, readonly (readonly { readonly size: number }[])[]>;
}

function most<T>(items: readonly T[], measure: (item: T) => number): number {
  return Math.max(...items.map(measure));
}

function queuesInGuests({ guests }: Topology): Parts['queuesInGuests'] {
  const found = new Map<string, (readonly { readonly size: number }[])[]>();
  for (const { host, 'work-queues': queues } of guests.flatMap(({ devices }) => devices)) {
    if (host !== undefined && queues !== undefined) found.set(host, [...(found.get(host) ?? []), queues]);
  }
  return found;
}

const FACTORIES: { readonly [M in DeviceTopology['model']]: (device: Extract<DeviceTopology, { model: M }>, parts: Parts, onDescriptor: (report: DescriptorReport) => void) => PciFunction } = {
  dsa: (device, parts, onDescriptor) => {
    const queues = [workQueues(device), ...parts.queuesInGuests.get(device.name) ?? []];
    const integrated = device.port === undefined;
    const pri = device.pri === false ? false : device.pri === true ? {} : { maxRequests: device.pri['max-requests'], prgResponsePasidRequired: device.pri['pasid-required'] };
    return new DsaDevice({
      ...parts, name: device.name, onComplete: onDescriptor,
      config: {
        ...(parts.external ? {} : { wqs: most(queues, (of) => of.length), groups: device.groups, totalWqSize: most(queues, (of) => of.reduce((sum, { size }) => sum + size, 0)) }),
        engines: device.engines,
        descriptorsPerEngine: device['engine-slots'], ats: device.ats, pri: pri === false ? false : { ...pri, groupPages: device['prefetch-pages'] },
        pasidBits: device['pasid-bits'], siov: device.siov, integrated, mdevVectors: mdevSlots(device),
      },
    }).function;
  },
  nvme: (device, parts) => {
    const medium = parts.medium?.(device) ?? new MemoryMedium(device.size, device.image === undefined ? undefined : parts.file?.(device.image));
    return new NvmeDevice({ ...parts, name: device.name, medium, config: { ioQueues: device['io-queues'] } }).function;
  },
  edu: (device, parts) => new EduDevice({ ...parts, name: device.name, config: { dmaMask: 2 ** Math.min(device['dma-mask-bits'], 52) - 1 } }).function,
};

/** Work queues as the driver is told; a topology that names none has one dedicated user queue. */
export function workQueues(device: Pick<DsaTopology, 'work-queues'>): IdxdWqOptions[] {
  const queues = device['work-queues'];
  if (queues.length === 0) return [{ name: 'wq0.0', mode: 'dedicated', type: 'user', size: 32, blockOnFault: true }];
  return queues.map((queue, i) => ({
    name: queue.name ?? `wq0.${i}`, mode: queue.mode, type: queue.type, size: queue.size, priority: queue.priority, group: queue.group, blockOnFault: queue['block-on-fault'],
    ...(queue.threshold === undefined ? {} : { threshold: queue.threshold }),
  }));
}

/** Interrupt vectors that mediated devices on shared queues need; none without such a queue. */
export function mdevSlots(device: DsaTopology): number {
  return device['work-queues'].some((queue) => queue.type === 'mdev' && queue.mode === 'shared') ? device['mdev-slots'] : 0;
}

function plug(tree: PciTree, device: DeviceTopology, parts: Parts): DeviceModel {
  const factory = FACTORIES[device.model] as (device: DeviceTopology, parts: Parts, onDescriptor: (report: DescriptorReport) => void) => PciFunction;
  const model: DeviceModel = {
    name: device.name, model: device.model, topology: device, bdf: formatBdf(device.bdf), onDescriptor: undefined,
    function: factory(device, parts, (report) => model.onDescriptor?.(report)),
  };
  tree.insert(device, model.function);
  return model;
}

export const devicesModule = new ContainerModule(({ bind }) => {
  bind(DEVICE_MODELS).toResolvedValue(
    (tree: PciTree, clock: Clock, scheduler: Scheduler, timing: Timing, trace: Trace, { topology, defects, file, medium, external, wrapPort }: Settings): DeviceModels => {
      const parts = { clock, scheduler, timing, trace, defects, file, medium, external: external ?? false, queuesInGuests: queuesInGuests(topology), ...(wrapPort === undefined ? {} : { wrapPort: (port: FunctionPort) => wrapPort(port, clock) }) };
      return { models: topology.host.devices.map((device) => plug(tree, device, parts)) };
    },
    [PCI_TREE, CLOCK, SCHEDULER, TIMING, TRACE, SETTINGS],
  ).inSingletonScope();
});
