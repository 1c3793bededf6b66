import { ContainerModule } from 'inversify';
import type { FrameAllocator } from '../../host/frames.js';
import type { InterruptController, InterruptSink } from '../../host/interrupts.js';
import type { KernelLog } from '../../host/kernel-log.js';
import type { Fabric } from '../../host/pci/hardware/fabric.js';
import type { InterruptAllocator } from '../../host/pci/kernel/msix.js';
import { BarWindow } from '../../host/pci/kernel/bar-window.js';
import type { SystemBus } from '../../host/system-bus.js';
import type { Timing } from '../../host/timing.js';
import { IommuCore } from '../../iommu/core/core.js';
import { IntelIommu } from '../../iommu/intel-vtd/driver/intel-iommu.js';
import { VtdUnit, type VtdUnitOptions } from '../../iommu/intel-vtd/hardware/unit.js';
import { buildCapabilities, decodeCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { DMAR_INTR_REMAP, encodeDmar } from '../../iommu/intel-vtd/spec/dmar.js';
import type { IommuOps } from '../../iommu/core/ops.js';
import type { Mailbox } from '../../sim/channel.js';
import type { Clock } from '../../sim/clock.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import type { Random } from '../../sim/random.js';
import type { Scheduler, Steps } from '../../sim/task.js';
import type { Trace } from '../../sim/trace.js';
import { capabilityOptions } from '../topology/capability-options.js';
import type { MachineLayout } from './layout.js';
import type { Settings } from './settings.js';
import {
  CLOCK, FABRIC, FRAMES, INTERRUPT_SINK, INTERRUPTS, IOMMU_CORE, IOMMU_DRIVER, IOMMU_HARDWARE, LAYOUT, LOG, MAILBOX, MEMORY, RANDOM, SCHEDULER, SETTINGS, SYSTEM_BUS, TIMING, TRACE,
} from './tokens.js';

/** The remapping hardware of a machine; what the harness looks at from outside. */
export type IommuHardware = VtdUnit;

/** A driver and how it is started and stopped. */
export interface IommuDriver extends IommuOps {
  /** Brings the hardware up; DMA is not translated yet. */
  start(): Steps;
  /** Interrupts of devices are remapped, so that none can forge another's. */
  readonly interruptRemapping: boolean;
  /** Where the PCI core gets the interrupts of devices: remapped ones from `start` to `stop`, plain vectors otherwise. */
  readonly deviceInterrupts: InterruptAllocator;
  /** After the devices that are there have been given their domains. */
  enableTranslation(): Steps;
  stop(): Steps;
}

/** The kernel's core, and hardware and driver of the architecture that the topology names. */
export const iommuModule = new ContainerModule(({ bind }) => {
  bind(IOMMU_CORE).toResolvedValue(
    (clock: Clock, scheduler: Scheduler, mailbox: Mailbox, trace: Trace, timing: Timing, log: KernelLog, random: Random, frames: FrameAllocator, { topology, defects, scope }: Settings) => {
      const { kernel } = topology.host;
      return new IommuCore({
        clock, scheduler, mailbox, trace, timing, log, random: random.split('iommu'), frames, defects,
        options: {
          scope, pasidPolicy: kernel['pasid-policy'], prqTimeoutSeconds: kernel['prq-timeout'], iopfWorkers: kernel['iopf-workers'], strictPrg: kernel['strict-prg'],
          dma: kernel['iommu-mode'] === 'lazy' ? 'lazy' : 'strict', defaultDomain: topology.host.iommu === undefined || kernel['iommu-mode'] === 'passthrough' ? 'identity' : 'dma',
        },
      });
    },
    [CLOCK, SCHEDULER, MAILBOX, TRACE, TIMING, LOG, RANDOM, FRAMES, SETTINGS],
  ).inSingletonScope();
  bind(IOMMU_HARDWARE).toResolvedValue(
    ({ topology, defects, unitRegisters, recorder }: Settings, memory: PhysicalMemory, clock: Clock, timing: Timing, trace: Trace, interrupts: InterruptSink, fabric: Fabric, bus: SystemBus, layout: MachineLayout): IommuHardware | undefined => {
      const { iommu } = topology.host;
      if (iommu === undefined) return undefined;
      const capabilities = unitRegisters === undefined
        ? buildCapabilities(capabilityOptions(iommu)).capabilities
        : decodeCapabilities(unitRegisters.cap, unitRegisters.ecap, { version: unitRegisters.version, hostAddressWidth: iommu.haw });
      const options: VtdUnitOptions = { name: 'dmar0', capabilities, memory, clock, timing, trace, interrupts, router: fabric, iotlbEntries: iommu['iotlb-entries'], defects };
      const unit = new VtdUnit(recorder === undefined ? options : recorder.observe(options, layout.ram));
      const { window, agent } = recorder === undefined ? { window: unit, agent: unit } : recorder.attach(unit);
      bus.claim(layout.iommuRegisters, unit.sizeBytes, 'dmar0', window);
      fabric.setAgent(() => true, agent);
      const sizeOrder = Math.ceil(Math.log2(unit.sizeBytes / 4096));
      const table = encodeDmar({
        hostAddressWidth: iommu.haw, flags: capabilities.interruptRemapping ? DMAR_INTR_REMAP : 0,
        structures: [
          { kind: 'DRHD', includeAll: true, segment: 0, base: layout.iommuRegisters, sizeOrder, scopes: [] },
          { kind: 'ATSR', allPorts: true, segment: 0, scopes: [] },
        ],
      });
      memory.write(layout.firmwareTables, table, 0, table.length);
      return unit;
    },
    [SETTINGS, MEMORY, CLOCK, TIMING, TRACE, INTERRUPT_SINK, FABRIC, SYSTEM_BUS, LAYOUT],
  ).inSingletonScope();
  bind(IOMMU_DRIVER).toResolvedValue(
    (hardware: IommuHardware | undefined, core: IommuCore, memory: PhysicalMemory, frames: FrameAllocator, clock: Clock, scheduler: Scheduler, trace: Trace, timing: Timing, log: KernelLog, interrupts: InterruptController, mailbox: Mailbox, bus: SystemBus, layout: MachineLayout, { topology, defects }: Settings): IommuDriver | undefined => {
      const { iommu, kernel } = topology.host;
      if (hardware === undefined || iommu === undefined) return undefined;
      return new IntelIommu({
        memory, frames, clock, scheduler, trace, timing, log, interrupts, core, mailbox, dmar: layout.firmwareTables, defects,
        mapRegisters: (address) => new BarWindow(bus, address),
        options: { scalable: kernel['scalable-mode'], prqOrder: Math.log2(iommu['page-request-queue'] / 128) },
      });
    },
    [IOMMU_HARDWARE, IOMMU_CORE, MEMORY, FRAMES, CLOCK, SCHEDULER, TRACE, TIMING, LOG, INTERRUPTS, MAILBOX, SYSTEM_BUS, LAYOUT, SETTINGS],
  ).inSingletonScope();
});
