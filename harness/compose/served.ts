/** Composes hardware without a kernel: IOMMU and devices of an external guest, whose memory and time are not ours. */
import 'reflect-metadata/lite';
import { Container, ContainerModule } from 'inversify';
import type { Fabric } from '../../host/pci/hardware/fabric.js';
import type { InterruptSink } from '../../host/interrupts.js';
import type { Timing } from '../../host/timing.js';
import { VtdUnit } from '../../iommu/intel-vtd/hardware/unit.js';
import { buildCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { Mailbox } from '../../sim/channel.js';
import type { Clock } from '../../sim/clock.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import { Random } from '../../sim/random.js';
import { Scheduler } from '../../sim/task.js';
import { Trace } from '../../sim/trace.js';
import { externalCapabilities } from '../topology/capability-options.js';
import type { GuestTopology, Topology } from '../topology/schema.js';
import { devicesModule } from './devices.js';
import { groundModule } from './host-module.js';
import { pciModule } from './pci-module.js';
import type { Settings } from './settings.js';
import * as T from './tokens.js';

/** Real time, or recorded time. */
export interface FailingClock extends Clock {
  fail(error: unknown): void;
}

/** What an external guest provides, and who hears of its unit's interrupts. */
export interface ServedGround {
  readonly clock: FailingClock;
  readonly memory: PhysicalMemory;
  readonly interrupts: InterruptSink;
}

/** An external guest as the topology of a machine of its own. */
export function machineOf(topology: Topology, guest: GuestTopology): Topology {
  const { iommu, devices } = guest.external!;
  const host = { ...topology.host, memory: guest.memory, iommu, devices, ports: [], 'mdev-parents': [] };
  return { ...topology, host: host as Topology['host'], guests: [], mdevs: [], processes: [], inject: [] };
}

const unitModule = new ContainerModule(({ bind }) => {
  bind(T.IOMMU_HARDWARE).toResolvedValue(
    ({ topology, defects, inject }: Settings, memory: PhysicalMemory, clock: Clock, timing: Timing, trace: Trace, interrupts: InterruptSink, router: Fabric) => {
      const { iommu } = topology.host;
      if (iommu === undefined) return undefined;
      const { capabilities } = buildCapabilities(externalCapabilities(iommu as Parameters<typeof externalCapabilities>[0]));
      const unit = new VtdUnit({ name: 'dmar0', capabilities, memory, clock, timing, trace, interrupts, router, iotlbEntries: iommu['iotlb-entries'], defects, inject: inject ?? [] });
      router.setAgent(() => true, unit);
      return unit;
    },
    [T.SETTINGS, T.MEMORY, T.CLOCK, T.TIMING, T.TRACE, T.INTERRUPT_SINK, T.FABRIC],
  ).inSingletonScope();
});

export function composeServed(settings: Settings, { clock, memory, interrupts }: ServedGround) {
  const fail = (error: unknown): void => clock.fail(error);
  const container = new Container();
  container.bind(T.SETTINGS).toConstantValue({ ...settings, external: true });
  container.bind(T.CLOCK).toConstantValue(clock);
  container.bind(T.RANDOM).toResolvedValue(({ seed }: Settings) => new Random(seed), [T.SETTINGS]).inSingletonScope();
  container.bind(T.SCHEDULER).toResolvedValue(() => new Scheduler(clock, fail), []).inSingletonScope();
  container.bind(T.MAILBOX).toResolvedValue(() => new Mailbox(fail), []).inSingletonScope();
  container.bind(T.TRACE).toResolvedValue(({ traceRecords }: Settings) => new Trace(clock, traceRecords), [T.SETTINGS]).inSingletonScope();
  container.bind(T.MEMORY).toConstantValue(memory);
  container.bind(T.INTERRUPT_SINK).toConstantValue(interrupts);
  container.load(groundModule, pciModule, unitModule, devicesModule);
  return {
    scheduler: container.get(T.SCHEDULER), trace: container.get(T.TRACE), fabric: container.get(T.FABRIC), tree: container.get(T.PCI_TREE),
    unit: container.get(T.IOMMU_HARDWARE), devices: container.get(T.DEVICE_MODELS),
  };
}

/** Hardware under an external guest. */
export type ServedHardware = ReturnType<typeof composeServed>;
