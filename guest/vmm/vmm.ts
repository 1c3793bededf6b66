/**
 * A virtual machine monitor: a process of the host, like QEMU, that gives a guest its memory, its devices and its time.
 * It uses nothing but system calls of its process: mmap, KVM, VFIO. What runs in the guest is composed by somebody else
 * over `clock`, `memory` and `functions`.
 *
 * Two clocks meet here: the host's, by which the VMM's own tasks run, and the guest's, which stands still while the
 * guest is paused, or while its virtual CPUs wait for the VMM.
 *
 * Left out: firmware, virtual devices of its own, migration, a monitor to talk to.
 */
import { assert } from '../../sim/assert.js';
import { alignUp, hex } from '../../sim/address.js';
import type { Clock } from '../../sim/clock.js';
import { Errno, isErrno } from '../../sim/errno.js';
import type { MemoryRange, PhysicalMemory } from '../../sim/memory.js';
import type { Scheduler, Steps, Task } from '../../sim/task.js';
import type { Trace } from '../../sim/trace.js';
import type { FrameSource } from '../../host/frame-source.js';
import type { KernelLog } from '../../host/kernel-log.js';
import type { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { deviceOf, PCI_INTERRUPT_PIN, rootIntxLine, type IntxPin } from '../../host/pci/spec/index.js';
import type { Process } from '../../host/process.js';
import { VfioClient, type IommuType } from '../../vfio/client/index.js';
import type { Vfio } from '../../vfio/core/vfio.js';
import { GuestClock } from '../clock.js';
import type { GuestMemory, GuestTranslation } from '../kvm/guest-memory.js';
import { Vm } from '../kvm/vm.js';
import { guestTraceKinds, type GuestTraceKinds } from '../trace-kinds.js';
import { VmmCounters } from './counters.js';
import { PassthroughDevice, type VfioDeviceOptions } from './passthrough-device.js';
import { GuestRam, type HugePages, type RamBlock } from './ram.js';
import { named, tolerant, Undo } from './undo.js';
import { VfioGroups } from './vfio-groups.js';
import { VmmWork } from './work.js';

export interface VmmOptions {
  /** Of the guest. */
  readonly name: string;
  /** The VMM's. */
  readonly process: Process;
  /** Undefined on a host without VFIO: then there are no devices. */
  readonly vfio?: Vfio | undefined;
  /** The host's. */
  readonly memory: PhysicalMemory;
  readonly frames: FrameSource;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly log?: KernelLog;
  readonly trace?: Trace | undefined;
  readonly vcpus: number;
  /** Guest-physical ranges of RAM, ascending, around the hole below 4 GiB. */
  readonly ram: readonly MemoryRange[];
  readonly devices?: readonly VfioDeviceOptions[];
  /** type1v2 by default. */
  readonly iommuType?: IommuType;
  readonly hugePages?: HugePages;
  /** Makes the guest's kernel let a device go, by the device's name; returns when it has. A refusal leaves the device where it is. */
  readonly onEject?: (name: string) => Steps;
  /** Asks the guest's kernel to give up that many pages, or to take back (below 0): which ones, by guest page number. */
  readonly onBalloon?: (pages: number) => Steps<readonly number[]>;
  /** `kvm.stale-translation`, `kvm.enqcmd-untranslated`, `vmm.map-wrong-slot` */
  readonly defects?: ReadonlySet<string>;
}

export type VmmState = 'new' | 'running' | 'paused' | 'off';

/** Hears ends of interrupt; the guest's interrupt controller. */
export interface EoiSource {
  listenEoi(line: number, listener: () => void): () => void;
}

const GIB = 2 ** 30;
/** Without a virtual IOMMU a guest knows of no PASID: this is what its kernel puts into ENQCMDS. */
const KERNEL_PASID = 0;
const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

export class Vmm {
  readonly name: string;
  /** The guest's time. */
  readonly clock: GuestClock;
  readonly counters = new VmmCounters();
  private readonly options: VmmOptions;
  private readonly kinds: GuestTraceKinds | undefined;
  private readonly work: VmmWork;
  private off = false;
  private machine: { readonly vm: Vm; readonly fd: number; readonly ram: GuestRam; readonly groups: VfioGroups | undefined } | undefined;
  private passthrough: PassthroughDevice[] = [];
  private ejects: readonly Task[] = [];

  constructor(options: VmmOptions) {
    const { trace } = options;
    this.options = options;
    this.name = options.name;
    this.clock = new GuestClock(options.clock);
    this.work = new VmmWork(options.name, options.scheduler, this.clock, options.log);
    this.kinds = trace === undefined ? undefined : guestTraceKinds(trace);
  }

  get state(): VmmState {
    if (this.off) return 'off';
    return this.machine === undefined ? 'new' : this.clock.state === 'paused' ? 'paused' : 'running';
  }

  get process(): Process {
    return this.options.process;
  }

  /** The virtual machine; from `start` on. */
  get vm(): Vm {
    assert(this.machine !== undefined, `${this.name} has not been started`);
    return this.machine.vm;
  }

  /** Guest-physical memory; from `start` on. */
  get memory(): GuestMemory {
    return this.vm.memory;
  }

  get devices(): readonly PassthroughDevice[] {
    return this.passthrough;
  }

  /** What the guest finds in its slots; other functions after every `reset`. */
  get functions(): ReadonlyMap<number, PciFunction> {
    return new Map(this.passthrough.map(({ options, fn }) => [options.devfn, fn]));
  }

  /** Guest-physical RAM now, in order of its making. */
  get ram(): readonly RamBlock[] {
    return this.machine?.ram.blocks ?? [];
  }

  /** Pages that the guest has given to the balloon. */
  get ballooned(): number {
    return this.machine?.ram.ballooned ?? 0;
  }

  /** Injected interrupts, for reports. */
  get injections(): number {
    return this.machine?.vm.injections ?? 0;
  }

  /** Where a guest-physical address leads: slot, address in the VMM, host-physical address. */
  translate(guestPhysical: number): GuestTranslation | undefined {
    return this.machine?.vm.translate(guestPhysical);
  }

  // --- lifecycle ----------------------------------------------------------------------------------------------

  /**
   * Memory, virtual machine, devices. A refusal names the step, the device or the range of RAM it is about, and leaves
   * nothing behind; the process lives on.
   */
  *start(): Steps {
    assert(this.machine === undefined && !this.off, `${this.name} is started twice`);
    const undo = new Undo();
    try {
      yield* named(this.name, this.build(undo));
      this.running('start');
    } catch (error) {
      this.work.stop();
      this.off = true;
      yield* undo.run();
      this.machine = undefined;
      throw error;
    }
    this.record('running');
  }

  private *build(undo: Undo): Steps {
    const { process, memory, frames, log, trace, vcpus, vfio, iommuType, hugePages, defects = new Set<string>() } = this.options;
    const vm = new Vm({
      name: this.name, process, memory, frames, clock: this.clock, vcpus, trace, defects, onGone: () => this.gone(), ...(log === undefined ? {} : { log }),
    });
    const fd = process.open(vm);
    undo.push(() => process.close(fd));
    const ram = new GuestRam(process, vm, this.counters, hugePages);
    undo.push(() => ram.removeAll());
    const groups = vfio === undefined ? undefined : new VfioGroups({
      client: new VfioClient(vfio, process), iommuType: iommuType ?? 'type1v2', blocks: () => ram.blocks, counters: this.counters, mapWrongSlot: defects.has('vmm.map-wrong-slot'),
    });
    this.machine = { vm, fd, ram, groups };
    for (const range of this.options.ram) yield* ram.add(range);
    for (const device of this.options.devices ?? []) {
      const added = yield* this.add(device);
      undo.push(() => this.take(added));
    }
  }

  /** The guest stands still; devices and DMA go on. */
  pause(): void {
    if (this.state !== 'running') return;
    this.clock.pause();
    this.record('paused');
  }

  resume(): void {
    if (this.state !== 'paused') return;
    this.clock.resume();
    this.record('running');
  }

  /**
   * The guest begins again (a reboot): everything it was about to do is forgotten, devices are reset, `functions` are
   * new. Memory keeps its content, and PASIDs of the virtual CPUs their meaning.
   */
  *reset(): Steps {
    const { ram } = this.running('reset');
    const goOn = this.clock.hold();
    try {
      this.clock.restart();
      yield* this.work.flush();
      // what the guest was asked to let go has gone with what it was doing
      yield* this.ejectsEnd();
      for (const device of this.passthrough) yield* this.restart(device);
      yield* this.ejectsEnd();
      ram.forgetBalloon();
      this.record('reset');
    } finally {
      goOn();
    }
  }

  private *ejectsEnd(): Steps {
    for (const eject of this.ejects) yield* eject.join();
  }

  /** A device that leaves meanwhile need not be restarted; one that is lost is taken away. */
  private *restart(device: PassthroughDevice): Steps {
    try {
      if (this.passthrough.includes(device)) yield* device.restart();
    } catch (error) {
      if (!isErrno(error)) throw error;
      if (this.off || !this.passthrough.includes(device)) return;
      this.options.log?.log('warn', `${this.name}: ${device.options.name} does not come back from its reset: ${error.message}`);
      yield* this.take(device);
    }
  }

  /** Ends the guest in order: devices, groups, containers, memory. The process lives on. Nothing happens when it is off already. */
  *powerOff(): Steps {
    const { machine } = this;
    if (this.off || machine === undefined) return;
    this.off = true;
    this.clock.stop();
    this.record('off');
    yield* this.work.flush();
    this.work.stop();
    for (const device of [...this.passthrough].reverse()) yield* this.take(device);
    yield* tolerant(machine.ram.removeAll());
    yield* tolerant(this.options.process.close(machine.fd));
  }

  /** The process gets SIGKILL: the guest stops here and now. The kernel then ends the process (`Process.exit`), which closes everything. */
  killed(): void {
    this.clock.stop();
    this.gone();
  }

  // --- devices ------------------------------------------------------------------------------------------------

  /** Hot-plugs a device: the composition inserts `fn` into the guest's slot. Refusals as `start`; nothing is left behind. */
  *plug(device: VfioDeviceOptions): Steps<PassthroughDevice> {
    this.running('plug');
    return yield* named(this.name, this.add(device));
  }

  /** Takes a device away, which the guest has let go: descriptor, group and container go with the last user. ENODEV. */
  *unplug(name: string): Steps {
    this.running('unplug');
    const device = this.passthrough.find(({ options }) => options.name === name);
    if (device === undefined) throw new Errno('ENODEV', `${this.name} has no device ${name}`);
    yield* this.work.flush();
    yield* this.take(device);
  }

  /** Lets functions with an interrupt pin hear that the guest has served their line. What is returned ends it. */
  connectInterrupts(source: EoiSource): () => void {
    const ends = this.passthrough.flatMap((device) => {
      const pin = device.fn.config.get(PCI_INTERRUPT_PIN, 1);
      return pin === 0 ? [] : [source.listenEoi(rootIntxLine(deviceOf(device.options.devfn), pin as IntxPin), () => device.endOfInterrupt())];
    });
    return () => {
      for (const end of ends) end();
    };
  }

  private *add(options: VfioDeviceOptions): Steps<PassthroughDevice> {
    const { vm, groups } = this.machine!;
    const { process, scheduler, trace } = this.options;
    const what = `${options.name} (${options.deviceName})`;
    if (groups === undefined) throw new Errno('ENODEV', `${what}: the host has no VFIO`);
    const taken = this.passthrough.find((other) => other.options.devfn === options.devfn || other.options.name === options.name);
    if (taken !== undefined) throw new Errno('EBUSY', `${what}: ${taken.options.name} has that name or that slot`);
    if (options.balloonAllowed === true && !UUID.test(options.deviceName)) throw new Errno('EINVAL', `${what}: a balloon beside it is possible with a mediated device only`);
    const handle = yield* named(what, groups.openDevice(options.groupId, options.deviceName));
    let device: PassthroughDevice | undefined;
    try {
      device = yield* named(what, PassthroughDevice.realize({
        guest: this.name, options, device: handle, process, scheduler, vm, work: this.work, counters: this.counters, trace,
        onRequest: () => this.startEject(options.name),
        onError: () => this.deviceError(options.name),
      }));
      yield* this.wireInterrupts(device);
      // killed while it waited
      this.running(what);
      const pasid = this.auxPasid(options.groupId);
      if (pasid !== undefined) vm.setPasid(KERNEL_PASID, pasid);
      this.passthrough.push(device);
      return device;
    } catch (error) {
      yield* device?.unrealize() ?? [];
      yield* groups.closeDevice(options.groupId, handle);
      throw error;
    }
  }

  /** A device whose legacy interrupt cannot be had is shown nevertheless. */
  private *wireInterrupts(device: PassthroughDevice): Steps {
    try {
      yield* device.interrupts.follow();
    } catch (error) {
      if (!isErrno(error)) throw error;
      this.options.log?.log('warn', `${this.name}: interrupts of ${device.options.name}: ${error.message}`);
    }
  }

  private *take(device: PassthroughDevice): Steps {
    if (!this.passthrough.includes(device)) return;
    this.passthrough = this.passthrough.filter((other) => other !== device);
    yield* device.unrealize();
    const { vm, groups } = this.machine!;
    yield* groups!.closeDevice(device.options.groupId, device.handle);
    if (!this.passthrough.some(({ options }) => this.auxPasid(options.groupId) !== undefined)) vm.clearPasid(KERNEL_PASID);
  }

  /**
   * The PASID of the aux domain that carries a group's DMA. A VMM never sees it: the kernel tells itself, as KVM would
   * ask VFIO for a group that it was given (KVM_DEV_VFIO_GROUP_ADD).
   */
  private auxPasid(groupId: number): number | undefined {
    const { vfio } = this.options;
    const device = vfio?.group(groupId)?.devices[0]?.registration.device;
    return device === undefined ? undefined : vfio!.pasidOf(device);
  }

  private startEject(name: string): void {
    const task = this.options.scheduler.spawn(`${this.name} eject ${name}`, this.eject(name));
    this.ejects = [...this.ejects.filter(({ ended }) => !ended), task];
  }

  /** The host wants a device back: the guest is asked for it. */
  private *eject(name: string): Steps {
    const device = this.passthrough.find(({ options }) => options.name === name);
    if (device === undefined || device.ejecting || this.off) return;
    const { onEject, log } = this.options;
    device.ejecting = true;
    this.recordEject(name, 'asked');
    try {
      if (onEject !== undefined) yield* onEject(name);
      if (!this.off) yield* this.unplug(name);
      this.recordEject(name, 'released');
    } catch (error) {
      if (!isErrno(error)) throw error;
      device.ejecting = false;
      this.recordEject(name, 'kept');
      log?.log('warn', `${this.name}: ${name} is not released: ${error.message}`);
    }
  }

  private deviceError(name: string): void {
    this.options.log?.log('err', `${this.name}: vfio_err_notifier_handler(${name}) Unrecoverable error detected. Please collect any data possible and then kill the guest`);
    this.pause();
  }

  // --- memory -------------------------------------------------------------------------------------------------

  /**
   * Hot-adds RAM, at the next whole GiB above 4 GiB and everything there is; where it lies. ENOMEM when the host, or
   * VFIO's accounting, has no room for it; EINVAL size; nothing has changed then.
   */
  *addMemory(sizeBytes: number): Steps<RamBlock> {
    const { ram, groups } = this.running('addMemory');
    const start = alignUp(Math.max(4 * GIB, ...ram.blocks.map(({ end }) => end)), GIB);
    return yield* named(this.name, this.addBlock(ram, groups, { start, end: start + sizeBytes }));
  }

  private *addBlock(ram: GuestRam, groups: VfioGroups | undefined, range: MemoryRange): Steps<RamBlock> {
    const block = yield* ram.add(range);
    try {
      yield* groups?.mapBlock(block) ?? [];
    } catch (error) {
      yield* tolerant(ram.remove(block));
      throw error;
    }
    return block;
  }

  /**
   * The guest has `targetBytes` from now on: the pages (guest page numbers) are those that it gives up, or takes back
   * when the target is above what it has; without them the guest is asked. EBUSY while a device has guest memory mapped:
   * what the host took away would still be the device's (ram_block_discard_disable). EINVAL a target that is no whole
   * pages or above the RAM, pages that do not make up the difference, or are no RAM; ENODEV nobody to ask.
   */
  *balloon(targetBytes: number, given?: readonly number[]): Steps {
    const { ram } = this.running('balloon');
    const now = ram.sizeBytes - ram.ballooned * 4096;
    if (targetBytes % 4096 !== 0 || targetBytes < 0 || targetBytes > ram.sizeBytes) throw new Errno('EINVAL', `${this.name}: a balloon cannot leave ${hex(targetBytes)} of ${hex(ram.sizeBytes)} bytes`);
    const pinned = targetBytes < now ? this.passthrough.find(({ options }) => options.balloonAllowed !== true) : undefined;
    if (pinned !== undefined) throw new Errno('EBUSY', `${this.name}: the balloon is inhibited while ${pinned.options.name} has the guest's memory mapped for DMA`);
    const change = (now - targetBytes) / 4096;
    const pages = given ?? (change === 0 ? [] : yield* this.askForPages(change));
    if (Math.abs(change) !== pages.length) {
      throw new Errno('EINVAL', `${this.name}: balloon to ${hex(targetBytes)} from ${hex(now)} bytes takes ${Math.abs(change)} pages, ${pages.length} are given`);
    }
    if (change > 0) yield* ram.inflate(pages);
    else ram.deflate(pages);
    if (this.kinds !== undefined) this.options.trace!.record(this.kinds.balloon, 0, this.options.trace!.intern(this.name), targetBytes, pages.length);
  }

  private *askForPages(pages: number): Steps<readonly number[]> {
    const { onBalloon } = this.options;
    if (onBalloon === undefined) throw new Errno('ENODEV', `${this.name} has no balloon device`);
    return yield* onBalloon(pages);
  }

  // --- inside -------------------------------------------------------------------------------------------------

  private running(what: string): NonNullable<Vmm['machine']> {
    const { machine } = this;
    if (machine === undefined || this.off) throw new Errno('ESRCH', `${what}: ${this.name} is not running`);
    return machine;
  }

  /** Address space or virtual machine are gone: the guest has ended, and nobody serves its devices. */
  private gone(): void {
    this.work.stop();
    if (this.off || this.machine === undefined) return;
    this.off = true;
    for (const device of this.passthrough) device.abandon();
    this.record('off');
  }

  private record(state: string): void {
    const { trace } = this.options;
    if (this.kinds !== undefined) trace!.record(this.kinds.state, 0, trace!.intern(this.name), trace!.intern(state));
  }

  private recordEject(device: string, answer: string): void {
    const { trace } = this.options;
    if (this.kinds !== undefined) trace!.record(this.kinds.deviceRequest, 0, trace!.intern(this.name), trace!.intern(device), trace!.intern(answer));
  }
}
