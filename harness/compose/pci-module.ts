import { ContainerModule } from 'inversify';
import type { InterruptController, InterruptSink } from '../../host/interrupts.js';
import type { KernelLog } from '../../host/kernel-log.js';
import { Fabric } from '../../host/pci/hardware/fabric.js';
import { SegmentAccess, type ConfigAccess } from '../../host/pci/kernel/config-access.js';
import { PciDrivers } from '../../host/pci/kernel/drivers.js';
import { PciCore } from '../../host/pci/kernel/pci-core.js';
import { X86_INTERRUPT_WINDOW, type SystemBus } from '../../host/system-bus.js';
import type { Timing } from '../../host/timing.js';
import type { IommuCore } from '../../iommu/core/core.js';
import type { Clock } from '../../sim/clock.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import type { Scheduler } from '../../sim/task.js';
import type { Trace } from '../../sim/trace.js';
import { IommuBinding } from '../boot.js';
import type { IommuDriver } from './iommu.js';
import { PciTree } from './pci-tree.js';
import type { MachineLayout } from './layout.js';
import type { Settings } from './settings.js';
import { CLOCK, CONFIG_ACCESS, FABRIC, INTERRUPT_SINK, INTERRUPTS, IOMMU_BINDING, IOMMU_CORE, IOMMU_DRIVER, LAYOUT, LOG, MEMORY, PCI, PCI_DRIVERS, PCI_TREE, SCHEDULER, SETTINGS, SYSTEM_BUS, TIMING, TRACE } from './tokens.js';

/** Fabric and root complex on the hardware's side, bus core and driver core on the kernel's. */
export const pciModule = new ContainerModule(({ bind }) => {
  bind(FABRIC).toResolvedValue(
    (clock: Clock, timing: Timing, memory: PhysicalMemory, bus: SystemBus, interrupts: InterruptSink, trace: Trace, { watch }: Settings) => {
      const fabric = new Fabric({ clock, timing, memory, bus, interrupts, interruptWindow: X86_INTERRUPT_WINDOW, trace });
      fabric.watchDma = watch;
      return fabric;
    },
    [CLOCK, TIMING, MEMORY, SYSTEM_BUS, INTERRUPT_SINK, TRACE, SETTINGS],
  ).inSingletonScope();
  bind(PCI_TREE).toResolvedValue((fabric: Fabric, { topology }: Settings) => new PciTree(fabric, topology.host), [FABRIC, SETTINGS]).inSingletonScope();
  bind(CONFIG_ACCESS).toResolvedValue(({ complex }: PciTree): ConfigAccess => new SegmentAccess(new Map([[complex.segment, complex]])), [PCI_TREE]).inSingletonScope();
  bind(PCI).toResolvedValue(
    (access: ConfigAccess, systemBus: SystemBus, interrupts: InterruptController, iommu: IommuDriver | undefined, clock: Clock, log: KernelLog, tree: PciTree, layout: MachineLayout, { defects, topology }: Settings) => new PciCore({
      access, systemBus, interrupts: iommu?.deviceInterrupts ?? interrupts, clock, log, rootBuses: tree.rootBuses, memory: layout.pciMemory, prefetchable: layout.pciPrefetchable, requestAcs: topology.host.iommu !== undefined, defects,
    }),
    [CONFIG_ACCESS, SYSTEM_BUS, INTERRUPTS, IOMMU_DRIVER, CLOCK, LOG, PCI_TREE, LAYOUT, SETTINGS],
  ).inSingletonScope();
  bind(IOMMU_BINDING).toResolvedValue((pci: PciCore, core: IommuCore) => {
    const binding = new IommuBinding(pci, core);
    pci.subscribe(binding);
    return binding;
  }, [PCI, IOMMU_CORE]).inSingletonScope();
  bind(PCI_DRIVERS).toResolvedValue(
    (bus: PciCore, scheduler: Scheduler, log: KernelLog, core: IommuCore, _binding: IommuBinding) => new PciDrivers({
      bus, scheduler, log, dmaOwnership: { claimDma: (device) => core.useDefaultDomain(device), releaseDma: (device) => core.unuseDefaultDomain(device) },
    }),
    // what sets the IOMMU up for a function has to hear of it before the drivers do
    [PCI, SCHEDULER, LOG, IOMMU_CORE, IOMMU_BINDING],
  ).inSingletonScope();
});
