/**
 * A guest in one object, for the accelerator's driver: a virtual machine whose memory is the VMM's, the kernel's PCI core over
 * config space reads and writes of a mediated device's file, BARs that are trapped or mapped as the region's information says,
 * interrupts from eventfds. Host and guest share the clock.
 */
import { GuestClock } from '../../guest/clock.js';
import { Vm } from '../../guest/kvm/vm.js';
import { FrameAllocator } from '../../host/frames.js';
import { InterruptController, type InterruptMessage } from '../../host/interrupts.js';
import { KernelLog } from '../../host/kernel-log.js';
import { Malloc } from '../../host/mm/malloc.js';
import { Mm } from '../../host/mm/mm.js';
import { allOnes, PciCore, PciDrivers, type ConfigSize, type PciFunctionDevice } from '../../host/pci/kernel/index.js';
import { Process } from '../../host/process.js';
import { SystemBus, type Window } from '../../host/system-bus.js';
import { IommuCore } from '../../iommu/core/core.js';
import { DirectMapping } from '../../iommu/core/direct-mapping.js';
import { Channel, Mailbox } from '../../sim/channel.js';
import { PlainMmio, type AccessSize, type EnqueueResult, type Mmio } from '../../sim/mmio.js';
import { Random } from '../../sim/random.js';
import { PCI_BAR0_REGION, PCI_BAR2_REGION } from '../../vfio/device.js';
import { IdxdDriver } from '../../devices/dsa/driver/idxd.js';
import type { IdxdOptions } from '../../devices/dsa/driver/idxd-options.js';
import { VdsaUser, type DsaMdevWorld } from './dsa-mdev-world.js';

const GUEST_BYTES = 16 * 1024 * 1024;
const DEVFN = 8;

/** A BAR: mapped pages go to the device, everything else to the file. */
class GuestBar extends PlainMmio {
  private readonly user: VdsaUser;
  private readonly region: number;
  private readonly mapped: { readonly offset: number; readonly mmio: Mmio } | undefined;

  constructor(user: VdsaUser, region: number, mapped?: { readonly offset: number; readonly mmio: Mmio }) {
    super();
    this.user = user;
    this.region = region;
    this.mapped = mapped;
  }

  read(offset: number, size: AccessSize): number {
    const view = new DataView(this.user.device.read(this.region, offset, size).slice().buffer);
    this.high = size === 8 ? view.getUint32(4, true) : 0;
    return size === 1 ? view.getUint8(0) : size === 2 ? view.getUint16(0, true) : view.getUint32(0, true);
  }

  write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    const mapping = this.mappingAt(offset);
    if (mapping !== undefined) {
      mapping.write(offset - this.mapped!.offset, size, lo, hi);
      return;
    }
    const view = new DataView(new ArrayBuffer(8));
    view.setUint32(0, lo, true);
    view.setUint32(4, hi, true);
    this.user.device.write(this.region, offset, new Uint8Array(view.buffer, 0, size));
  }

  override write64(offset: number, bytes: Uint8Array): void {
    const mapping = this.mappingAt(offset);
    if (mapping === undefined) super.write64(offset, bytes);
    else mapping.write64(offset - this.mapped!.offset, bytes);
  }

  override enqueue64(offset: number, bytes: Uint8Array): EnqueueResult {
    return this.mappingAt(offset)?.enqueue64(offset - this.mapped!.offset, bytes) ?? 'retry';
  }

  private mappingAt(offset: number): Mmio | undefined {
    const { mapped } = this;
    return mapped !== undefined && offset >= mapped.offset && offset < mapped.offset + 4096 ? mapped.mmio : undefined;
  }
}

export class MdevGuest {
  readonly user: VdsaUser;
  readonly vm: Vm;
  readonly log: KernelLog;
  readonly frames: FrameAllocator;
  readonly core: IommuCore;
  readonly pciCore: PciCore;
  readonly drivers: PciDrivers;
  readonly idxd: IdxdDriver;
  readonly interrupts: InterruptController;
  private readonly world: DsaMdevWorld;
  private readonly bus = new SystemBus();
  private readonly bars: { readonly register: number; readonly size: number; readonly mmio: Mmio; window: Window | undefined }[];
  private nextPid = 1;

  /** Opens the device, boots the kernel up to the driver's probe. */
  constructor(world: DsaMdevWorld, n: number, options: IdxdOptions = { wqs: [] }, defects: readonly string[] = []) {
    this.world = world;
    const user = (this.user = new VdsaUser(world, n));
    world.run(user.open(false));
    const { scheduler, timing, trace, ram, clock } = world;
    this.vm = new Vm({ name: `guest${n}`, process: user.process, memory: ram, frames: world.frames, clock: new GuestClock(clock), vcpus: 1, trace });
    user.process.open(this.vm);
    const userspaceAddr = world.run(user.process.mm.mmap(GUEST_BYTES));
    this.vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: GUEST_BYTES, userspaceAddr });
    world.run(user.container.mapDma({ iova: 0, vaddr: userspaceAddr, sizeBytes: GUEST_BYTES }));
    this.vm.setPasid(0, user.pasid);
    const { memory } = this.vm;
    const log = (this.log = new KernelLog(clock));
    this.frames = new FrameAllocator({ memory, ranges: [{ start: 0x10_0000, end: GUEST_BYTES }] });
    const mailbox = new Mailbox((error) => clock.fail(error));
    const interrupts = (this.interrupts = new InterruptController(clock, timing, new Channel<InterruptMessage>(mailbox, 'guest interrupts')));
    [user.misc, user.completion].forEach((event, vector) => this.vm.irqfd(event, () => interrupts.message(user.read(0x2000 + vector * 16), user.read(0x2008 + vector * 16), DEVFN)));
    const portal = this.vm.window(user.portal);
    this.bars = [
      { register: 0x10, size: 0x1_0000, mmio: new GuestBar(user, PCI_BAR0_REGION), window: undefined },
      { register: 0x18, size: 0x4000, mmio: new GuestBar(user, PCI_BAR2_REGION, { offset: 0x1000, mmio: portal }), window: undefined },
    ];
    this.core = new IommuCore({ clock, scheduler, mailbox, trace, timing, log, random: new Random(n), frames: this.frames, options: { scope: `guest${n}`, defaultDomain: 'identity' } });
    this.core.registerDriver(new DirectMapping(mailbox));
    this.pciCore = new PciCore({
      access: {
        read: (_segment, bus, devfn, offset, size) => (bus === 0 && devfn === DEVFN ? user.config(offset, size) : allOnes(size)),
        write: (_segment, bus, devfn, offset, size, value) => (bus === 0 && devfn === DEVFN ? this.configWrite(offset, size, value) : undefined),
      },
      systemBus: this.bus, interrupts, clock, log, memory: { start: 0xc000_0000, sizeBytes: 0x1000_0000 }, prefetchable: { start: 0x10_0000_0000, sizeBytes: 0x1000_0000 },
    });
    this.idxd = new IdxdDriver({ clock, scheduler, timing, log, iommu: this.core, memory, defects: new Set(defects) }, () => options);
    const { core, pciCore } = this;
    this.pciCore.subscribe({
      *deviceAdded(device) {
        yield* core.addDevice(device, pciCore.groupOf(device).id);
      },
      deviceRemoved: (device) => core.deviceRemove(device),
    });
    this.drivers = new PciDrivers({ bus: this.pciCore, scheduler, log });
    world.run(this.pciCore.rescan());
    world.run(this.drivers.registerDriver(this.idxd));
  }

  get pci(): PciFunctionDevice {
    return this.pciCore.devices[0]!;
  }

  process(name: string): { process: Process; malloc: Malloc } {
    const pid = this.nextPid++;
    const mm = new Mm({ id: pid, name, memory: this.vm.memory, frames: this.frames, scheduler: this.world.scheduler });
    return { process: new Process(pid, name, mm), malloc: new Malloc(mm) };
  }

  private configWrite(offset: number, size: ConfigSize, value: number): void {
    this.user.configWrite(offset, size, value);
    if (offset >= 0x28) return;
    for (const bar of this.bars) {
      const start = ((this.user.config(bar.register, 4) & 0xffff_fff0) >>> 0) + this.user.config(bar.register + 4, 4) * 2 ** 32;
      const decodes = (this.user.config(4, 2) & 2) !== 0 && start !== 0;
      if (bar.window !== undefined && (!decodes || bar.window.start !== start)) {
        this.bus.release(bar.window);
        bar.window = undefined;
      }
      if (decodes) bar.window ??= this.bus.claim(start, bar.size, `BAR at ${bar.register}`, bar.mmio);
    }
  }
}
