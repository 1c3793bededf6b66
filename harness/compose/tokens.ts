/** What a kernel's container binds. Guests bind the same tokens to what their VMM provides. */
import type { ServiceIdentifier } from 'inversify';
import type { IdxdMdevHooks } from '../../devices/dsa/driver/idxd-options.js';
import type { FrameAllocator } from '../../host/frames.js';
import type { InterruptController, InterruptSink } from '../../host/interrupts.js';
import type { KernelLog } from '../../host/kernel-log.js';
import type { Fabric } from '../../host/pci/hardware/fabric.js';
import type { ConfigAccess } from '../../host/pci/kernel/config-access.js';
import type { PciCore } from '../../host/pci/kernel/pci-core.js';
import type { PciDrivers } from '../../host/pci/kernel/drivers.js';
import type { ProcessTable } from '../../host/process.js';
import type { SystemBus } from '../../host/system-bus.js';
import type { Timing } from '../../host/timing.js';
import type { IommuCore } from '../../iommu/core/core.js';
import type { Mailbox } from '../../sim/channel.js';
import type { Clock, VirtualClock } from '../../sim/clock.js';
import type { MdevCore } from '../../mdev/core.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import type { Random } from '../../sim/random.js';
import type { Scheduler } from '../../sim/task.js';
import type { Trace } from '../../sim/trace.js';
import type { Vfio } from '../../vfio/core/vfio.js';
import type { Type1Driver } from '../../vfio/type1/type1.js';
import type { IommuBinding } from '../boot.js';
import type { DeviceModels } from './devices.js';
import type { KernelDrivers } from './drivers.js';
import type { IommuDriver, IommuHardware } from './iommu.js';
import type { Passthrough } from './passthrough.js';
import type { PciTree } from './pci-tree.js';
import type { MachineLayout } from './layout.js';
import type { Settings } from './settings.js';

function token<T>(name: string): ServiceIdentifier<T> {
  return Symbol(name) as ServiceIdentifier<T>;
}

export const SETTINGS = token<Settings>('Settings');
export const LAYOUT = token<MachineLayout>('MachineLayout');

/** The clock of the whole machine: the host's container only. */
export const MACHINE_CLOCK = token<VirtualClock>('VirtualClock');
/** What a kernel lives by; a guest's can stand still. */
export const CLOCK = token<Clock>('Clock');
export const RANDOM = token<Random>('Random');
export const SCHEDULER = token<Scheduler>('Scheduler');
export const MAILBOX = token<Mailbox>('Mailbox');
export const TRACE = token<Trace>('Trace');
export const MEMORY = token<PhysicalMemory>('PhysicalMemory');

export const TIMING = token<Timing>('Timing');
export const LOG = token<KernelLog>('KernelLog');
export const PROCESSES = token<ProcessTable>('ProcessTable');
export const FRAMES = token<FrameAllocator>('FrameAllocator');
export const SYSTEM_BUS = token<SystemBus>('SystemBus');
export const INTERRUPTS = token<InterruptController>('InterruptController');
/** Where hardware sends its interrupts: the controller, or somebody else's machine. */
export const INTERRUPT_SINK = token<InterruptSink>('InterruptSink');

export const FABRIC = token<Fabric>('Fabric');
export const PCI_TREE = token<PciTree>('PciTree');
export const CONFIG_ACCESS = token<ConfigAccess>('ConfigAccess');
export const PCI = token<PciCore>('PciCore');
export const IOMMU_BINDING = token<IommuBinding>('IommuBinding');
export const PCI_DRIVERS = token<PciDrivers>('PciDrivers');

export const IOMMU_HARDWARE = token<IommuHardware | undefined>('IommuHardware');
export const IOMMU_CORE = token<IommuCore>('IommuCore');
export const IOMMU_DRIVER = token<IommuDriver | undefined>('IommuDriver');
/** What stands in the slots. */
export const DEVICE_MODELS = token<DeviceModels>('DeviceModels');
/** VFIO and mediated devices: the host's container only. */
export const VFIO = token<Vfio>('Vfio');
export const VFIO_TYPE1 = token<Type1Driver>('Type1Driver');
export const MDEVS = token<MdevCore>('MdevCore');
/** What makes mediated devices of accelerators; a kernel without VFIO has nothing of the kind. */
export const IDXD_MDEV = token<IdxdMdevHooks | undefined>('IdxdMdevHooks');
export const PASSTHROUGH = token<Passthrough>('Passthrough');
export const KERNEL_DRIVERS = token<KernelDrivers>('KernelDrivers');
