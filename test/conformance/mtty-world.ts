/**
 * Worlds for the sample parent: a host with VFIO, type1 containers and mediated devices over a software IOMMU; a
 * program that holds a card; and the kernel of a guest that drives one, whose memory is memory of that program.
 */
import { Channel } from '../../sim/channel.js';
import { Errno } from '../../sim/errno.js';
import { PlainMmio, type AccessSize } from '../../sim/mmio.js';
import { Random } from '../../sim/random.js';
import type { Steps } from '../../sim/task.js';
import { MttyDriver } from '../../devices/mtty/driver/mtty-driver.js';
import { MttyParent } from '../../devices/mtty/parent/mtty-parent.js';
import type { MttyDevice } from '../../devices/mtty/parent/mtty-device.js';
import type { MttyConfig } from '../../devices/mtty/parent/services.js';
import { GuestMemory } from '../../guest/kvm/guest-memory.js';
import { EventFd } from '../../host/eventfd.js';
import { FrameAllocator } from '../../host/frames.js';
import { InterruptController, type InterruptMessage } from '../../host/interrupts.js';
import { Mm } from '../../host/mm/mm.js';
import { Process } from '../../host/process.js';
import { SystemBus, type Window } from '../../host/system-bus.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import { IommuGroups, PciCore, PciDrivers, type ConfigAccess, type ConfigSize, type PciFunctionDevice } from '../../host/pci/kernel/index.js';
import { barOffset, PCI_COMMAND, PCI_COMMAND_MEMORY, PCI_INTERRUPT_LINE } from '../../host/pci/spec/index.js';
import { DirectMapping } from '../../iommu/core/direct-mapping.js';
import { IommuCore } from '../../iommu/core/core.js';
import { MdevCore } from '../../mdev/core.js';
import { Vfio } from '../../vfio/core/vfio.js';
import { VfioClient, type ContainerHandle, type DeviceHandle, type GroupHandle } from '../../vfio/client/index.js';
import { Type1Driver } from '../../vfio/type1/type1.js';
import type { VfioPinning } from '../../vfio/device.js';
import { CoreWorld } from '../fixtures/core-world.js';

const CONFIG = 7;
const INTX = 0, MSI = 1;
const MSI_CAPABILITY = 0x50;
const DEVFN = 0x18;

/** A card whose user has no memory. */
export class NoPinning implements VfioPinning {
  // oxlint-disable-next-line require-yield -- others sleep
  *pinPages(): Steps<number[]> {
    throw new Errno('EINVAL', 'nothing is mapped');
  }

  unpinPages(): number {
    return 0;
  }

  // oxlint-disable-next-line require-yield -- others sleep
  *dmaRw(): Steps {
    throw new Errno('EINVAL', 'nothing is mapped');
  }

  registerNotifier(): void {}

  unregisterNotifier(): void {}
}

export function uuid(n: number): string {
  return `83b8f4f2-509f-382f-3c1e-${n.toString(16).padStart(12, '0')}`;
}

/** Where two byte strings differ first, -1 nowhere: comparing large arrays element by element is what tests spend their time with. */
export function firstDifference(a: Uint8Array, b: Uint8Array): number {
  if (Buffer.compare(a, b) === 0) return -1;
  const at = a.findIndex((byte, i) => byte !== b[i]);
  return at < 0 ? Math.min(a.length, b.length) : at;
}

export interface MttyWorldOptions {
  readonly config?: Partial<MttyConfig>;
  readonly defects?: readonly string[];
}

/** A program that holds a container, groups and cards. */
export interface MttyUser {
  readonly process: Process;
  readonly client: VfioClient;
  readonly container: ContainerHandle;
  readonly groups: GroupHandle[];
}

export class MttyWorld extends CoreWorld {
  readonly vfio: Vfio;
  readonly type1: Type1Driver;
  readonly mdevs: MdevCore;
  readonly parent: MttyParent;
  private nextPid = 100;

  constructor({ config = {}, defects = [] }: MttyWorldOptions = {}) {
    super();
    const { clock, scheduler, log, trace, core, frames } = this;
    this.type1 = new Type1Driver({ clock, scheduler, core, frames, log, trace, interruptRemapping: () => true });
    this.vfio = new Vfio({ scheduler, log, trace, owners: core, groupMembers: () => [], iommuDrivers: [this.type1] });
    this.mdevs = new MdevCore({ scheduler, log, trace, vfio: this.vfio, groups: new IommuGroups(new Map(), new Set()) });
    this.parent = new MttyParent({ clock, scheduler, memory: this.ram, vfio: this.vfio, trace, config, defects: new Set(defects) });
    this.mdevs.registerParent(this.parent.device, this.parent);
  }

  create(n: number, type = 'mtty-1'): void {
    this.run(this.mdevs.create(this.parent.device, type, uuid(n)));
  }

  /** The parent's side of a card. */
  card(n: number): MttyDevice {
    return this.parent.devices.find(({ name }) => name === uuid(n))!;
  }

  user(name = 'vmm', memlockLimitPages?: number): MttyUser {
    const { ram: memory, frames, scheduler } = this;
    const pid = this.nextPid++;
    const process = new Process(pid, name, new Mm({ id: pid, name, memory, frames, scheduler, ...(memlockLimitPages === undefined ? {} : { memlockLimitPages }) }));
    const client = new VfioClient(this.vfio, process);
    return { process, client, container: client.openContainer(), groups: [] };
  }

  /** Puts a card into the user's container and opens it. */
  open(user: MttyUser, n: number): DeviceHandle {
    const group = user.client.openGroup(this.mdevs.find(uuid(n))!.group!);
    this.run(group.setContainer(user.container));
    if (user.groups.length === 0) this.run(user.container.setIommu('type1v2'));
    user.groups.push(group);
    return this.run(group.getDevice(uuid(n)));
  }

  /** Memory of the user's, mapped in its container; its address there. */
  map(user: MttyUser, iova: number, sizeBytes: number, rights: { read?: boolean; write?: boolean } = {}): number {
    const vaddr = this.run(user.process.mm.mmap(sizeBytes));
    this.run(user.container.mapDma({ iova, vaddr, sizeBytes, ...rights }));
    return vaddr;
  }

  bytes(process: Process, address: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.run(process.mm.read(address, bytes));
    return bytes;
  }

  /** Arguments of the trace's records of a kind, as text. */
  told(kind: string): string[] {
    return [...this.trace.records()].filter((record) => record.kind.name === kind).map((record) => this.trace.describe(record).map(([, text]) => text).join(' '));
  }
}

/** What a test pokes into a port's DMA window. */
export function startDma(device: DeviceHandle, tx: number, rx: number, length: number, rxLength = length, port = 0): void {
  for (const [offset, value] of [[0x108, tx], [0x10c, Math.floor(tx / 2 ** 32)], [0x110, length], [0x114, rxLength], [0x118, rx], [0x11c, Math.floor(rx / 2 ** 32)], [0x12c, 1], [0x120, 1]] as const) {
    device.writeValue(port, offset, 4, value % 2 ** 32);
  }
}

export const DMA_STATUS = 0x124, DMA_DONE = 0x128;

/** A BAR of a card on the guest's bus: every access is one of the VMM's to the region. */
class TrappedBar extends PlainMmio {
  private readonly guest: MttyGuest;
  private readonly bar: number;

  constructor(guest: MttyGuest, bar: number) {
    super();
    this.guest = guest;
    this.bar = bar;
  }

  read(offset: number, size: AccessSize): number {
    return this.guest.device.readValue(this.bar, offset, size === 8 ? 4 : size);
  }

  write(offset: number, size: AccessSize, lo: number): void {
    this.guest.device.writeValue(this.bar, offset, size === 8 ? 4 : size, lo);
  }
}

/** A VMM with a card, and the kernel of its guest: PCI bus, DMA API without IOMMU, the card's driver, processes. */
export class MttyGuest implements ConfigAccess {
  readonly memory: GuestMemory;
  readonly frames: FrameAllocator;
  readonly driver: MttyDriver;
  readonly drivers: PciDrivers;
  readonly pci: PciCore;
  readonly interrupts: InterruptController;
  readonly core: IommuCore;
  readonly user: MttyUser;
  device: DeviceHandle;
  /** The card answers. */
  present = true;
  private readonly world: MttyWorld;
  private readonly bus = new SystemBus();
  private readonly windows: (Window | undefined)[] = [];
  private msiFd: EventFd | undefined;
  private nextPid = 1;

  constructor(world: MttyWorld, n: number, options: { memoryBytes?: number; msi?: boolean } = {}) {
    this.world = world;
    const { clock, scheduler, log, trace, mailbox } = world;
    const bytes = options.memoryBytes ?? 2 ** 24;
    this.user = world.user();
    this.device = world.open(this.user, n);
    const vaddr = world.map(this.user, 0, bytes);
    this.memory = new GuestMemory({ host: world.ram, mm: this.user.process.mm });
    this.memory.setSlot({ slot: 0, guestPhysAddr: 0, memorySize: bytes, userspaceAddr: vaddr });
    this.frames = new FrameAllocator({ memory: this.memory, ranges: [{ start: 0x10_0000, end: bytes }] });
    const random = new Random(7);
    const timing = new Timing(DEFAULT_TIMING, random.split('timing'));
    this.interrupts = new InterruptController(clock, timing, new Channel<InterruptMessage>(mailbox, 'guest interrupts'));
    this.core = new IommuCore({ clock, scheduler, mailbox, trace, timing, log, random, frames: this.frames, options: { defaultDomain: 'identity' } });
    this.core.registerDriver(new DirectMapping(mailbox));
    this.pci = new PciCore({ access: this, systemBus: this.bus, interrupts: this.interrupts, clock, log, memory: { start: 0xc000_0000, sizeBytes: 0x1000_0000 } });
    const { core, pci } = this;
    pci.subscribe({
      *deviceAdded(device) {
        yield* core.addDevice(device, pci.groupOf(device).id);
      },
      deviceRemoved: (device) => core.deviceRemove(device),
    });
    this.drivers = new PciDrivers({ bus: pci, scheduler, log });
    this.driver = new MttyDriver({ clock, scheduler, timing, log, dma: core.dma, msi: options.msi ?? true });
    this.wireIntx();
    world.run(this.drivers.registerDriver(this.driver));
    world.run(pci.rescan());
  }

  get function(): PciFunctionDevice {
    return this.pci.find(`0000:00:03.0`)!;
  }

  newProcess(name = 'app'): Process {
    const { memory, frames } = this;
    return new Process(this.nextPid++, name, new Mm({ id: 1000 + this.nextPid, name, memory, frames, scheduler: this.world.scheduler }));
  }

  read(_segment: number, bus: number, devfn: number, offset: number, size: ConfigSize): number {
    if (!this.present || bus !== 0 || devfn !== DEVFN) return size === 4 ? 0xffff_ffff : size === 2 ? 0xffff : 0xff;
    return offset < 256 ? this.device.readValue(CONFIG, offset, size) : 0;
  }

  write(_segment: number, bus: number, devfn: number, offset: number, size: ConfigSize, value: number): void {
    if (!this.present || bus !== 0 || devfn !== DEVFN || offset >= 256) return;
    this.device.writeValue(CONFIG, offset, size, value);
    this.mapBars();
    this.wireMsi();
  }

  /** The card is pulled from the guest's bus. */
  unplug(): void {
    this.present = false;
    this.mapBars();
  }

  /** Another card takes the place of this one under the running guest, with the configuration that the guest gave it. */
  replace(device: DeviceHandle): void {
    this.device = device;
    this.msiFd = undefined;
    this.wireIntx();
    this.wireMsi();
  }

  private mapBars(): void {
    const decode = this.present && (this.device.readValue(CONFIG, PCI_COMMAND, 2) & PCI_COMMAND_MEMORY) !== 0;
    for (const bar of [0, 1]) {
      const start = decode ? this.device.readValue(CONFIG, barOffset(bar), 4) : 0;
      const old = this.windows[bar];
      if (old?.start === start || (old === undefined && start === 0)) continue;
      if (old !== undefined) this.bus.release(old);
      this.windows[bar] = start === 0 ? undefined : this.bus.claim(start, 4096, `bar ${bar}`, new TrappedBar(this, bar));
    }
  }

  /** The VMM wires the vector once the guest has enabled MSI. */
  private wireMsi(): void {
    const enabled = this.present && (this.device.readValue(CONFIG, MSI_CAPABILITY + 2, 2) & 1) !== 0;
    if (enabled === (this.msiFd !== undefined)) return;
    this.msiFd = enabled ? new EventFd(this.world.scheduler, 'msi') : undefined;
    this.msiFd?.listen(() => this.interrupts.message(this.device.readValue(CONFIG, MSI_CAPABILITY + 4, 4), this.device.readValue(CONFIG, MSI_CAPABILITY + 12, 2), DEVFN));
    this.world.scheduler.spawn('vmm', this.setEventFd(this.msiFd));
  }

  private *setEventFd(eventFd: EventFd | undefined): Steps {
    yield* this.device.setIrqs({ index: eventFd === undefined ? MSI : INTX, count: 0 });
    if (eventFd !== undefined) yield* this.device.setIrqs({ index: MSI, eventfds: [this.user.process.open(eventFd)] });
  }

  /** A line that rises with the eventfd and falls at the guest's end of interrupt, when the VMM unmasks (resampling irqfd). */
  private wireIntx(): void {
    const eventFd = new EventFd(this.world.scheduler, 'intx');
    const line = (): number => this.device.readValue(CONFIG, PCI_INTERRUPT_LINE, 1);
    eventFd.listen(() => {
      const end = this.interrupts.listenEoi(line(), () => {
        end();
        this.interrupts.setLine(line(), this, false);
        this.world.scheduler.spawn('vmm', this.device.setIrqs({ index: INTX, action: 'unmask', count: 1 }));
      });
      this.interrupts.setLine(line(), this, true);
    });
    this.world.run(this.device.setIrqs({ index: INTX, eventfds: [this.user.process.open(eventFd)] }));
  }
}
