/**
 * A host with everything that passthrough needs, built with plain `new`: three VT-d units with a driver each, PCI functions whose only
 * behaviour is DMA, the kernel's PCI core and drivers, vfio-pci, VFIO with type1, and three parents of mediated devices.
 *
 *  function   unit  what it is
 *  00:01.0    0     a function alone in its group, with ATS, PRI, PASID and SIOV
 *  00:02.0/1  0     two functions that share a group; no function level reset
 *  00:03.0    0     parent `aux`: enables AUX, so that its mediated devices get aux domains (Y1)
 *  00:04.0    1     a function behind a unit with narrow tables and no first level: no SVA, no nesting, a domain of its own
 *  00:05.0    0     parent `plain`: mediated devices behind the whole function (Y1, AUX off)
 *  00:06.0    2     a function behind a unit that does not remap interrupts (E33)
 *  (none)           parent `vendor`: isolates by pinning (Y1)
 *  00:07.0    0     another function like the first, for swarms
 */
import { Channel, Mailbox } from '../../sim/channel.js';
import { VirtualClock } from '../../sim/clock.js';
import { Ram } from '../../sim/memory.js';
import { Random } from '../../sim/random.js';
import { Scheduler, type Steps } from '../../sim/task.js';
import { Trace } from '../../sim/trace.js';
import { FrameAllocator } from '../../host/frames.js';
import { InterruptController, type InterruptMessage } from '../../host/interrupts.js';
import { KernelLog } from '../../host/kernel-log.js';
import { Mm } from '../../host/mm/mm.js';
import type { DmaClient } from '../../host/pci/dma-port.js';
import { Fabric } from '../../host/pci/hardware/fabric.js';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { RootComplex } from '../../host/pci/hardware/root-complex.js';
import { BarWindow, PciCore, PciDrivers, SegmentAccess, type PciFunctionDevice } from '../../host/pci/kernel/index.js';
import type { PciBus } from '../../host/pci/hardware/pci-node.js';
import type { PciDriver } from '../../host/pci/kernel/drivers.js';
import type { PciDevice } from '../../host/pci/kernel/pci-device.js';
import { PCI_EXP_TYPE_RC_END } from '../../host/pci/spec/index.js';
import { Process, ProcessTable } from '../../host/process.js';
import { SystemBus, X86_INTERRUPT_WINDOW } from '../../host/system-bus.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import { IommuCore } from '../../iommu/core/core.js';
import { IntelIommu } from '../../iommu/intel-vtd/driver/intel-iommu.js';
import { VtdUnit } from '../../iommu/intel-vtd/hardware/unit.js';
import { buildCapabilities, type VtdCapabilityOptions } from '../../iommu/intel-vtd/spec/capabilities.js';
import { DMAR_INTR_REMAP, encodeDmar } from '../../iommu/intel-vtd/spec/dmar.js';
import { MdevCore } from '../../mdev/core.js';
import { VfioClient } from '../../vfio/client/index.js';
import { Vfio } from '../../vfio/core/vfio.js';
import { VfioPciDriver } from '../../vfio/pci/vfio-pci.js';
import { Type1Driver, type Type1Options } from '../../vfio/type1/type1.js';
import { IDLE, TRANSLATING } from '../fixtures/pci-world.js';
import { TaskWorld } from '../fixtures/task-world.js';
import { SwarmParent } from './parent.js';

interface FunctionPlan {
  readonly devfn: number;
  readonly unit: 0 | 1 | 2;
  readonly flr: boolean;
}

/** By BDF. */
const FUNCTIONS: Readonly<Record<string, FunctionPlan>> = {
  '0000:00:01.0': { devfn: 0x08, unit: 0, flr: true },
  '0000:00:02.0': { devfn: 0x10, unit: 0, flr: false },
  '0000:00:02.1': { devfn: 0x11, unit: 0, flr: false },
  '0000:00:03.0': { devfn: 0x18, unit: 0, flr: true },
  '0000:00:04.0': { devfn: 0x20, unit: 1, flr: true },
  '0000:00:05.0': { devfn: 0x28, unit: 0, flr: true },
  '0000:00:06.0': { devfn: 0x30, unit: 2, flr: true },
  '0000:00:07.0': { devfn: 0x38, unit: 0, flr: true },
};

const UNITS: readonly VtdCapabilityOptions[] = [
  { 'interrupt-remapping': true },
  { 'interrupt-remapping': true, 'aw-bits': 39, 'first-level': false, nested: false },
  { 'interrupt-remapping': false },
];
const REGISTERS = 0xfed9_0000;

export const AUX_PARENT = '0000:00:03.0';
export const PLAIN_PARENT = '0000:00:05.0';

export interface MachineOptions {
  readonly memoryBytes?: number;
  readonly defects?: readonly string[];
  readonly type1?: Type1Options;
  /** Every DMA leaves a record. */
  readonly watchDma?: boolean;
  readonly freshZero?: boolean;
  /** Instances that the types of a parent share. */
  readonly instances?: number;
}

/** A program's rights. */
export interface Credentials {
  readonly memlockLimitPages?: number;
  /** CAP_IPC_LOCK and the right to attach to everybody. */
  readonly root?: boolean;
  /** Programs of one user may attach to each other. */
  readonly uid?: number;
}

export class PassthroughMachine extends TaskWorld {
  readonly clock = new VirtualClock();
  readonly scheduler = new Scheduler(this.clock, (error) => this.clock.fail(error));
  readonly trace: Trace;
  readonly log = new KernelLog(this.clock);
  readonly ram: Ram;
  readonly frames: FrameAllocator;
  readonly fabric: Fabric;
  readonly complex: RootComplex;
  readonly functions = new Map<string, PciFunction>();
  readonly core: IommuCore;
  readonly units: VtdUnit[] = [];
  readonly pci: PciCore;
  readonly drivers: PciDrivers;
  readonly type1: Type1Driver;
  readonly vfio: Vfio;
  readonly vfioPci: VfioPciDriver;
  readonly mdevs: MdevCore;
  readonly parents: { readonly aux: SwarmParent; readonly plain: SwarmParent; readonly vendor: SwarmParent };
  readonly processes = new ProcessTable();
  /** What a function does about messages; by default invalidations are completed. */
  readonly clients = new Map<string, Partial<DmaClient>>();
  readonly defects: ReadonlySet<string>;
  private readonly credentials = new Map<Process, Credentials>();
  private readonly iommus: IntelIommu[] = [];
  private readonly devices = new Map<string, PciFunctionDevice>();
  private readonly root: PciBus;
  private nextPid = 100;

  constructor(options: MachineOptions = {}) {
    super();
    const { clock, scheduler, log } = this;
    const defects = (this.defects = new Set(options.defects ?? []));
    const bytes = options.memoryBytes ?? 2 ** 25;
    const ram = (this.ram = new Ram(bytes));
    const trace = (this.trace = new Trace(clock, 1 << 10));
    const random = new Random(1);
    const mailbox = new Mailbox((error) => clock.fail(error));
    const timing = new Timing({ ...DEFAULT_TIMING, jitter: 0 }, random.split('timing'));
    const frames = (this.frames = new FrameAllocator({ memory: ram, ranges: [{ start: 0x10_0000, end: bytes }], freshZero: options.freshZero ?? false, defects }));
    const bus = new SystemBus();
    const interrupts = new InterruptController(clock, timing, new Channel<InterruptMessage>(mailbox, 'interrupts'));
    const fabric = (this.fabric = new Fabric({ clock, timing, memory: ram, bus, interrupts, interruptWindow: X86_INTERRUPT_WINDOW, trace }));
    fabric.watchDma = options.watchDma ?? false;
    const complex = (this.complex = new RootComplex({ fabric }));
    const root = (this.root = complex.addRootBus(0));
    for (const [bdf, { devfn, flr }] of Object.entries(FUNCTIONS)) {
      const fn = new PciFunction({ ...IDLE, ...TRANSLATING, name: bdf, flr, siov: true, deviceType: PCI_EXP_TYPE_RC_END, defects, client: this.client(bdf) });
      complex.insert(root, devfn, fn);
      this.functions.set(bdf, fn);
    }
    this.core = new IommuCore({ clock, scheduler, mailbox, trace, timing, log, random: random.split('iommu'), frames, defects });
    for (const [i, capabilities] of UNITS.entries()) {
      const base = REGISTERS + i * 0x1_0000;
      const devfns = Object.values(FUNCTIONS).filter(({ unit }) => unit === i).map(({ devfn }) => devfn);
      const unit = new VtdUnit({ name: `dmar${i}`, capabilities: buildCapabilities(capabilities).capabilities, memory: ram, clock, timing, trace, interrupts, router: fabric, defects });
      bus.claim(base, unit.sizeBytes, unit.name, unit);
      fabric.setAgent((id) => devfns.includes(id), unit);
      this.units.push(unit);
      const dmar = encodeDmar({
        hostAddressWidth: 46, flags: capabilities['interrupt-remapping'] === true ? DMAR_INTR_REMAP : 0,
        structures: [{ kind: 'DRHD', includeAll: false, segment: 0, base, sizeOrder: Math.ceil(Math.log2(unit.sizeBytes / 4096)), scopes: devfns.map((devfn) => ({ type: 1, enumerationId: 0, startBus: 0, path: [{ device: devfn >> 3, function: devfn & 7 }] })) }],
      });
      const iommu = new IntelIommu({
        memory: ram, frames, clock, scheduler, trace, timing, log, interrupts, core: this.core, mailbox, dmar, defects, mapRegisters: (address) => new BarWindow(bus, address),
      });
      this.core.registerDriver(iommu);
      this.iommus.push(iommu);
    }
    this.pci = new PciCore({
      access: new SegmentAccess(new Map([[0, complex]])), systemBus: bus, interrupts, clock, log,
      memory: { start: 0xc000_0000, sizeBytes: 0x2000_0000 }, prefetchable: { start: 0x10_0000_0000, sizeBytes: 0x10_0000_0000 },
    });
    const { core, pci } = this;
    pci.subscribe({
      *deviceAdded(device) { yield* core.addDevice(device, pci.groupOf(device).id); },
      deviceRemoved: (device) => core.deviceRemove(device),
    });
    const drivers = (this.drivers = new PciDrivers({
      bus: pci, scheduler, log, dmaOwnership: { claimDma: (device) => core.useDefaultDomain(device), releaseDma: (device) => core.unuseDefaultDomain(device) },
    }));
    this.type1 = new Type1Driver({
      clock, scheduler, core, frames, log, trace, defects, interruptRemapping: ({ name }) => this.iommus[FUNCTIONS[name]!.unit]!.interruptRemapping,
      processes: (pid) => this.processes.find(pid), mayPassMemlock: (process) => this.credentials.get(process)?.root === true,
      mayAttach: (caller, target) => this.credentials.get(caller)?.root === true || this.credentials.get(caller)?.uid === this.credentials.get(target)?.uid,
      options: options.type1 ?? {},
    });
    this.vfio = new Vfio({
      scheduler, log, trace, owners: core, iommuDrivers: [this.type1], defects,
      groupMembers: (id) => pci.devices.filter((device) => pci.groupOf(device).id === id)
        .map((device) => ({ name: device.name, driver: drivers.driverOf(device)?.name, bridge: device.isBridge })),
    });
    this.vfioPci = new VfioPciDriver({ vfio: this.vfio, bus: pci, groups: core, scheduler, log, trace, defects });
    this.mdevs = new MdevCore({ scheduler, log, trace, vfio: this.vfio, groups: pci.groups, defects });
    this.run(this.boot());
    const instances = options.instances ?? 3;
    const { vfio } = this;
    this.parents = {
      aux: new SwarmParent({ device: this.device(AUX_PARENT), driver: 'aux', vfio, instances, hotUnplug: true, isolated: true, pins: false }),
      plain: new SwarmParent({ device: this.device(PLAIN_PARENT), driver: 'plain', vfio, instances, hotUnplug: false, isolated: true, pins: false }),
      vendor: new SwarmParent({ device: { name: 'vendor' }, driver: 'vendor', vfio, instances, hotUnplug: false, isolated: false, pins: true }),
    };
    for (const driver of [this.vfioPci, hostDriver(), this.parentDriver(this.parents.aux, true), this.parentDriver(this.parents.plain, false)]) this.run(drivers.registerDriver(driver));
  }

  private *boot(): Steps {
    for (const iommu of this.iommus) {
      yield* iommu.start();
      yield* iommu.enableTranslation();
    }
    yield* this.pci.rescan();
    for (const bdf of this.functions.keys()) this.devices.set(bdf, this.pci.find(bdf)!);
  }

  /** Messages go to whoever stands in `clients`. */
  private client(bdf: string): DmaClient {
    return {
      pageResponse: (prgIndex, code, pasid) => this.clients.get(bdf)?.pageResponse?.(prgIndex, code, pasid),
      heldDone: (token, status) => this.clients.get(bdf)?.heldDone?.(token, status),
      invalidate: (tag, page, pages, pasid, global) => {
        const client = this.clients.get(bdf);
        if (client?.invalidate !== undefined) client.invalidate(tag, page, pages, pasid, global);
        else this.clock.post(100, () => this.functions.get(bdf)!.port.invalidateCompletion(tag));
      },
    };
  }

  /** A driver of the kernel that offers mediated devices of its function. */
  private parentDriver(parent: SwarmParent, aux: boolean): PciDriver {
    const { core, mdevs } = this;
    return {
      name: parent.driver, ids: [],
      *probe(device: PciDevice) {
        if (aux) yield* core.devEnableFeature(device, 'AUX');
        device.setMaster(true);
        parent.device = device;
        mdevs.registerParent(device, parent);
      },
      *remove(device: PciDevice) {
        yield* mdevs.unregisterParent(device);
        device.setMaster(false);
        if (aux && core.devFeatureEnabled(device, 'AUX')) yield* core.devDisableFeature(device, 'AUX');
      },
    };
  }

  /** The function is pulled out, without a word to the kernel before; its users are waited for. */
  *unplug(bdf: string): Steps {
    this.complex.remove(this.functions.get(bdf)!, { surprise: true });
    yield* this.pci.removeAbsent();
  }

  /** It is plugged in again, where it was. */
  *plug(bdf: string): Steps {
    const fn = this.functions.get(bdf)!;
    if (fn.bus !== undefined) return;
    this.complex.insert(this.root, FUNCTIONS[bdf]!.devfn, fn);
    yield* this.pci.rescan();
    this.devices.set(bdf, this.pci.find(bdf)!);
  }

  /** The kernel's side of a function. */
  device(bdf: string): PciFunctionDevice {
    return this.devices.get(bdf)!;
  }

  /** What an administrator writes to `driver_override` and `bind`. */
  *bindDriver(bdf: string, driver: string): Steps {
    this.drivers.setDriverOverride(this.device(bdf), driver);
    yield* this.drivers.bind(driver, this.device(bdf));
  }

  process(name: string, credentials: Credentials = {}): Process {
    const pid = this.nextPid++;
    const { memlockLimitPages } = credentials;
    const mm = new Mm({ id: pid, name, memory: this.ram, frames: this.frames, scheduler: this.scheduler, defects: this.defects, ...(memlockLimitPages === undefined ? {} : { memlockLimitPages }) });
    return this.admit(new Process(pid, name, mm), credentials);
  }

  *fork(parent: Process, name: string): Steps<Process> {
    const pid = this.nextPid++;
    return this.admit(yield* parent.fork(pid, name, pid), this.credentials.get(parent)!);
  }

  clientOf(process: Process): VfioClient {
    return new VfioClient(this.vfio, process);
  }

  private admit(process: Process, credentials: Credentials): Process {
    this.processes.add(process);
    this.credentials.set(process, credentials);
    return process;
  }
}

/** A driver that uses its function for the kernel itself. */
function hostDriver(): PciDriver {
  // oxlint-disable-next-line require-yield -- PciDriver's signatures
  return { name: 'host', ids: [], *probe() {}, *remove() {} };
}
