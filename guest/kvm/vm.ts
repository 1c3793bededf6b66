/**
 * A virtual machine as the host's kernel has it: what KVM_CREATE_VM gives to a VMM (virt/kvm/kvm_main.c). Memory slots,
 * eventfds that become interrupts, PASIDs for ENQCMD. Its virtual CPUs are the guest's clock: they stop when the VMM's
 * address space is gone or the descriptor is closed, whichever comes first.
 *
 * Left out: vCPU descriptors and KVM_RUN, in-kernel interrupt controllers as objects of their own, ioeventfds.
 */
import { Errno } from '../../sim/errno.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import type { Steps } from '../../sim/task.js';
import type { Trace } from '../../sim/trace.js';
import type { EventFd } from '../../host/eventfd.js';
import type { FrameSource } from '../../host/frame-source.js';
import type { KernelLog } from '../../host/kernel-log.js';
import type { OpenFile, Process } from '../../host/process.js';
import type { GuestClock } from '../clock.js';
import { guestTraceKinds, type GuestTraceKinds } from '../trace-kinds.js';
import { GuestMemory, type GuestFault, type GuestTranslation } from './guest-memory.js';
import type { UserMemoryRegion } from './memory-slots.js';
import { PasidTranslation } from './pasid-translation.js';
import { VcpuWindow, type EnqueueTranslation } from './vcpu-window.js';
import type { Mmio } from '../../sim/mmio.js';

/** KVM_MAX_VCPUS of x86, v5.10. */
const MAX_VCPUS = 288;

export interface VmOptions {
  /** Of the guest. */
  readonly name: string;
  /** The VMM. */
  readonly process: Process;
  /** The host's. */
  readonly memory: PhysicalMemory;
  readonly frames: FrameSource;
  /** Of the guest; the virtual machine stops it. */
  readonly clock: GuestClock;
  readonly vcpus: number;
  readonly log?: KernelLog;
  readonly trace?: Trace | undefined;
  /** The host cannot give the guest a page: its virtual CPUs have been paused. */
  readonly onInternalError?: (failure: GuestFault) => void;
  /** The VMM's address space is gone, or the descriptor. Called once. */
  readonly onGone?: () => void;
  /** `kvm.stale-translation`, `kvm.enqcmd-untranslated` */
  readonly defects?: ReadonlySet<string>;
}

interface Irqfd {
  readonly eventfd: EventFd;
  readonly end: () => void;
}

export class Vm implements OpenFile, EnqueueTranslation {
  readonly name: string;
  readonly vcpus: number;
  readonly memory: GuestMemory;
  readonly pasids: PasidTranslation;
  /** Interrupts that eventfds became. */
  injections = 0;
  /** ENQCMDs of the guest that ended in a VM exit. */
  enqcmdExits = 0;
  private readonly options: VmOptions;
  private readonly id: number;
  private readonly kinds: GuestTraceKinds | undefined;
  private irqfds: readonly Irqfd[] = [];

  /** EINVAL number of virtual CPUs, ESRCH the VMM is ending, ENOMEM. */
  constructor(options: VmOptions) {
    const { trace, process } = options;
    if (!Number.isInteger(options.vcpus) || options.vcpus < 1 || options.vcpus > MAX_VCPUS) throw new Errno('EINVAL', `${options.name}: ${options.vcpus} virtual CPUs, 1 to ${MAX_VCPUS} are possible`);
    if (process.state !== 'running') throw new Errno('ESRCH', `${options.name}: ${process.name} is ${process.state}`);
    this.options = options;
    this.name = `kvm-vm ${options.name}`;
    this.vcpus = options.vcpus;
    this.id = trace?.intern(options.name) ?? 0;
    this.kinds = trace === undefined ? undefined : guestTraceKinds(trace);
    this.pasids = new PasidTranslation(options.memory, options.frames);
    this.memory = new GuestMemory({
      host: options.memory, mm: process.mm, trace, vm: this.id, onGone: () => this.stop(), stall: () => options.clock.hold(), onFailure: (failure) => this.fail(failure),
      ...(options.defects === undefined ? {} : { defects: options.defects }),
    });
  }

  /** KVM_SET_USER_MEMORY_REGION; refusals as `MemorySlots.set`. */
  setUserMemoryRegion(region: UserMemoryRegion): void {
    this.memory.setSlot(region);
    if (this.kinds !== undefined) {
      this.options.trace!.record(this.kinds.setMemoryRegion, 0, this.id, region.slot, region.guestPhysAddr / 4096, region.memorySize / 4096, region.userspaceAddr / 4096);
    }
  }

  translate(guestPhysical: number): GuestTranslation | undefined {
    return this.memory.translate(guestPhysical);
  }

  /**
   * KVM_IRQFD: from now on a signal of the eventfd is an interrupt: its counter is taken and `deliver` runs, in the event
   * of the signal. What is returned ends it. EBUSY the eventfd has one already.
   */
  irqfd(eventfd: EventFd, deliver: () => void): () => void {
    if (this.irqfds.some((other) => other.eventfd === eventfd)) throw new Errno('EBUSY', `${eventfd.name} is an interrupt of ${this.name} already`);
    const take = (): void => {
      // somebody else who has the eventfd may have read it before
      if (eventfd.count > 0) eventfd.read();
      this.injections++;
      if (this.kinds !== undefined) this.options.trace!.record(this.kinds.irqfd, 0, this.id, this.options.trace!.intern(eventfd.name));
      deliver();
    };
    const irqfd = { eventfd, end: eventfd.listen(take) };
    this.irqfds = [...this.irqfds, irqfd];
    // signals from before it was an interrupt are not lost
    if (eventfd.count > 0) take();
    return () => {
      irqfd.end();
      this.irqfds = this.irqfds.filter((other) => other !== irqfd);
    };
  }

  /** EINVAL, EBUSY, ENOMEM as `PasidTranslation.set`. */
  setPasid(guestPasid: number, hostPasid: number): void {
    this.pasids.set(guestPasid, hostPasid);
  }

  clearPasid(guestPasid: number): void {
    this.pasids.clear(guestPasid);
  }

  translatePasid(guestPasid: number): number {
    return this.pasids.translate(guestPasid);
  }

  enqcmdExit(guestPasid: number, reason: number): void {
    this.enqcmdExits++;
    if (this.kinds !== undefined) this.options.trace!.record(this.kinds.enqcmdExit, 0, this.id, guestPasid, reason);
  }

  /** Registers of a device as this machine's virtual CPUs reach them. */
  window(target: Mmio): VcpuWindow {
    return new VcpuWindow(target, this, this.options.defects);
  }

  // oxlint-disable-next-line require-yield -- OpenFile.release may sleep
  *release(): Steps {
    this.stop();
    for (const { end } of this.irqfds) end();
    this.irqfds = [];
    this.memory.close();
    this.pasids.destroy();
  }

  private stop(): void {
    const { clock, onGone } = this.options;
    if (clock.state === 'stopped') return;
    clock.stop();
    onGone?.();
  }

  /** KVM_RUN fails; QEMU pauses the guest with an internal error. */
  private fail(failure: GuestFault): void {
    const { clock, log, onInternalError } = this.options;
    log?.limited(`kvm run ${this.name}`, 'err', `error: kvm run failed Bad address: guest-physical 0x${failure.guestPhysical.toString(16)} of ${this.options.name}: ${failure.outcome}`);
    clock.pause();
    onInternalError?.(failure);
  }
}
