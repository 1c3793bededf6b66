/* oxlint-disable require-yield -- memory of a guest without an IOMMU is mapped at once */
/**
 * A host with a VT-d unit, an accelerator and an educational device, VFIO over the real type1 and vfio-pci; a VMM on it;
 * and the smallest guest kernel over what the VMM provides: PCI core, interrupts, frames, the same driver.
 */
import { EduDriver } from '../../devices/edu/driver/edu-driver.js';
import { Vmm, type VmmOptions } from '../../guest/vmm/vmm.js';
import type { VfioDeviceOptions } from '../../guest/vmm/passthrough-device.js';
import { FrameAllocator } from '../../host/frames.js';
import { InterruptController, type InterruptMessage } from '../../host/interrupts.js';
import { KernelLog } from '../../host/kernel-log.js';
import { Mm } from '../../host/mm/mm.js';
import { Fabric } from '../../host/pci/hardware/fabric.js';
import { RootComplex } from '../../host/pci/hardware/root-complex.js';
import type { PciBus } from '../../host/pci/hardware/pci-node.js';
import { PciCore, PciDrivers, SegmentAccess, type PciFunctionDevice } from '../../host/pci/kernel/index.js';
import { Process } from '../../host/process.js';
import { SystemBus, X86_INTERRUPT_WINDOW } from '../../host/system-bus.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import { Channel, Mailbox } from '../../sim/channel.js';
import type { Errno } from '../../sim/errno.js';
import type { VirtualClock } from '../../sim/clock.js';
import type { MemoryRange } from '../../sim/memory.js';
import { Random } from '../../sim/random.js';
import { Scheduler, type Steps } from '../../sim/task.js';
import { VfioPciDriver } from '../../vfio/pci/index.js';
import { Type1Driver } from '../../vfio/type1/type1.js';
import { Vfio } from '../../vfio/core/vfio.js';
import { SvaWorld } from '../fixtures/sva-world.js';

export const MIB = 2 ** 20;
export const GIB = 2 ** 30;
export const EDU = '0000:00:02.0';
export const DSA = '0000:00:01.0';
/** 8 MiB below the hole and 4 MiB above. */
export const RAM: readonly MemoryRange[] = [{ start: 0, end: 8 * MIB }, { start: 4 * GIB, end: 4 * GIB + 4 * MIB }];
export const RAM_PAGES = 3072;

export class VmmWorld {
  readonly host: SvaWorld;
  readonly vfio: Vfio;
  readonly vfioPci: VfioPciDriver;
  readonly type1: Type1Driver;
  private nextPid = 1000;

  constructor(options: { defects?: readonly string[] } = {}) {
    const defects = new Set(options.defects);
    const host = (this.host = new SvaWorld({ idxd: { wqs: [] } }));
    const { clock, scheduler, core, frames, log, trace, pciCore, drivers } = host;
    this.type1 = new Type1Driver({ clock, scheduler, core, frames, log, trace, interruptRemapping: () => true, defects });
    this.vfio = new Vfio({
      scheduler, log, owners: core, iommuDrivers: [this.type1], trace, defects,
      groupMembers: (id) => pciCore.devices.filter((device) => pciCore.groupOf(device).id === id)
        .map((device) => ({ name: device.name, driver: drivers.driverOf(device)?.name, bridge: device.isBridge })),
    });
    this.vfioPci = new VfioPciDriver({ vfio: this.vfio, bus: pciCore, groups: core, scheduler, log, trace });
    this.run(drivers.registerDriver(this.vfioPci));
    for (const name of [EDU, DSA]) this.bind(name);
  }

  run<T>(steps: Steps<T>, name?: string): T {
    return this.host.run(steps, name);
  }

  settle(): void {
    this.host.settle();
  }

  bind(name: string): void {
    const device = this.host.pciCore.find(name)!;
    this.host.drivers.setDriverOverride(device, 'vfio-pci');
    this.run(this.host.drivers.bind('vfio-pci', device));
  }

  groupOf(name: string): number {
    return this.host.pciCore.groupOf(this.host.pciCore.find(name)!).id;
  }

  device(deviceName = EDU, options: Partial<VfioDeviceOptions> = {}): VfioDeviceOptions {
    return { groupId: this.groupOf(deviceName), deviceName, devfn: deviceName === EDU ? 0x18 : 0x20, name: deviceName === EDU ? 'edu' : 'dsa', ...options };
  }

  newProcess(memlockLimitPages?: number): Process {
    const { ram: memory, frames, scheduler, trace } = this.host;
    const pid = this.nextPid++;
    return new Process(pid, 'qemu', new Mm({ id: pid, name: 'qemu', memory, frames, scheduler, trace, ...(memlockLimitPages === undefined ? {} : { memlockLimitPages }) }));
  }

  vmm(options: Partial<VmmOptions> = {}): Vmm {
    const { clock, scheduler, ram: memory, frames, log, trace } = this.host;
    return new Vmm({ name: 'vm0', process: this.newProcess(), vfio: this.vfio, memory, frames, clock, scheduler, log, trace, vcpus: 1, ram: RAM, devices: [this.device()], ...options });
  }

  /** A VMM that has started. */
  started(options: Partial<VmmOptions> = {}): Vmm {
    const vmm = this.vmm(options);
    this.run(vmm.start());
    return vmm;
  }

  refusal(steps: Steps<unknown>): Errno {
    return this.host.refusal(steps);
  }

  /** What the host holds: to be the same before and after. */
  books(process?: Process): unknown {
    const { frames, core } = this.host;
    return {
      pinned: frames.pinnedPages, user: frames.framesOf('user'), kvm: frames.framesOf('kvm-table'), inUse: process === undefined ? frames.inUse : undefined,
      containers: this.type1.usage.containers, areas: process === undefined ? undefined : [...process.mm.areas].length, descriptors: process?.descriptors(),
      owners: [EDU, DSA].map((name) => core.groupOf(this.host.pciCore.find(name)!).owner !== undefined),
    };
  }
}

/** A kernel on virtual CPUs, without drivers; a new one for every boot. */
export class BareGuest {
  readonly scheduler: Scheduler;
  readonly log: KernelLog;
  readonly timing = new Timing({ ...DEFAULT_TIMING, jitter: 0 }, new Random(7));
  readonly interrupts: InterruptController;
  readonly frames: FrameAllocator;
  readonly complex: RootComplex;
  readonly root: PciBus;
  readonly pci: PciCore;
  readonly drivers: PciDrivers;
  readonly vmm: Vmm;
  private readonly machine: VirtualClock;

  constructor(machine: VirtualClock, vmm: Vmm, usable: readonly MemoryRange[] = [{ start: MIB, end: 8 * MIB }, ...RAM.slice(1)]) {
    this.machine = machine;
    this.vmm = vmm;
    const { timing } = this, { clock, memory } = vmm;
    this.scheduler = new Scheduler(clock, (error) => machine.fail(error));
    this.log = new KernelLog(clock);
    const bus = new SystemBus();
    this.interrupts = new InterruptController(clock, timing, new Channel<InterruptMessage>(new Mailbox((error) => machine.fail(error)), 'interrupts'));
    this.frames = new FrameAllocator({ memory, ranges: usable });
    const fabric = new Fabric({ clock, timing, memory, bus, interrupts: this.interrupts, interruptWindow: X86_INTERRUPT_WINDOW });
    this.complex = new RootComplex({ fabric });
    this.root = this.complex.addRootBus(0);
    for (const [devfn, fn] of vmm.functions) this.complex.insert(this.root, devfn, fn);
    vmm.connectInterrupts(this.interrupts);
    this.pci = new PciCore({
      access: new SegmentAccess(new Map([[0, this.complex]])), systemBus: bus, interrupts: this.interrupts, clock, log: this.log,
      memory: { start: 0xc000_0000, sizeBytes: 0x2000_0000 }, prefetchable: { start: 64 * GIB, sizeBytes: 64 * GIB },
    });
    this.drivers = new PciDrivers({ bus: this.pci, scheduler: this.scheduler, log: this.log });
  }

  /** Runs steps on the virtual CPUs, with everything that happens meanwhile. */
  run<T>(steps: Steps<T>): T {
    const task = this.scheduler.spawn('guest', steps, { joined: true });
    this.machine.run({ stop: () => task.ended });
    if (task.state === 'failed') throw task.error;
    if (task.state !== 'done') throw new Error(`guest task is ${task.state}: ${this.scheduler.deadlockReport().join('; ')}`);
    return task.result as T;
  }
}

/** With the educational device's driver. */
export class GuestKernel extends BareGuest {
  readonly edu: EduDriver;

  constructor(world: VmmWorld, vmm: Vmm, options: { intxOnly?: boolean } = {}) {
    super(world.host.clock, vmm);
    // no virtual IOMMU: guest-physical addresses are what the device is given
    const dma = { dmaSetMask: () => {}, *dmaMap(_device: unknown, physical: number): Steps<number> { return physical; }, *dmaUnmap(): Steps {} };
    this.edu = new EduDriver({ clock: vmm.clock, scheduler: this.scheduler, log: this.log, dma, ...options });
    this.run(this.pci.rescan());
    this.run(this.drivers.registerDriver(this.edu));
    world.settle();
  }

  get eduPci(): PciFunctionDevice {
    return this.pci.find('0000:00:03.0')!;
  }

  get instance() {
    return this.edu.instance(this.eduPci)!;
  }
}
