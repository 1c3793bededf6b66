/**
 * A guest of a topology: its VMM, a process of the host; its kernel, composed on what the VMM provides; its
 * processes. States: off → starting → running ⇄ paused → off; refused when the host lacks something; killed when the VMM died.
 */
import { NO_PASID } from '../../host/pci/dma-port.js';
import type { KernelLog } from '../../host/kernel-log.js';
import type { Process } from '../../host/process.js';
import { GuestBalloon } from '../../guest/balloon.js';
import { Vmm } from '../../guest/vmm/vmm.js';
import { Errno, isErrno } from '../../sim/errno.js';
import { Completion, type Scheduler, type Steps } from '../../sim/task.js';
import { boot, shutdown } from '../boot.js';
import type { DeviceModel } from '../compose/devices.js';
import { composeGuest, type VirtualSlot } from '../compose/guest.js';
import type { Host, Kernel } from '../compose/host.js';
import { layoutFor } from '../compose/layout.js';
import { KernelWorld, type OpenHandle } from '../scenario/kernel-world.js';
import type { Program } from '../scenario/program.js';
import type { SharedScenario } from '../scenario/world.js';
import type { GuestSummary } from '../summary.js';
import type { GuestTopology } from '../topology/schema.js';
import { unknownName } from '../topology/problems.js';
import { assignedDevices, guestSettings, type AssignedDevice } from './assigned.js';

export type GuestState = 'off' | 'starting' | 'running' | 'paused' | 'refused' | 'killed';

export interface GuestParts {
  readonly topology: GuestTopology;
  readonly host: Host;
  /** The host's processes, of which the VMM is one. */
  readonly world: KernelWorld;
  readonly scenario: SharedScenario;
  /** A number for each kernel that is composed. */
  readonly nextKernel: () => number;
}

export class Guest {
  readonly name: string;
  readonly topology: GuestTopology;
  private life: Exclude<GuestState, 'paused'> = 'off';
  /** Why it was refused or ended otherwise than by itself. */
  reason = '';
  process: Process | undefined;
  vmm: Vmm | undefined;
  kernel: Kernel | undefined;
  /** Of every kernel that it has run, in order. */
  readonly logs: KernelLog[] = [];
  world: KernelWorld | undefined;
  /** Programs of this boot and earlier ones. */
  readonly allPrograms: Program[] = [];
  boots = 0;
  /** A shutdown is under way. */
  private ending = false;
  /** `kernel` runs no more: the guest was reset or killed. */
  private abandoned = false;
  /** The balloon driver of the guest's kernel. */
  private ballooning: GuestBalloon | undefined;
  private readonly parts: GuestParts;
  private devices: readonly AssignedDevice[] = [];
  private disconnect: () => void = () => {};
  /** Of the host's tasks that wait for the guest's CPUs. */
  private readonly waiting = new Set<Completion>();

  constructor(parts: GuestParts) {
    this.parts = parts;
    this.name = parts.topology.name;
    this.topology = parts.topology;
  }

  /** Also paused when the VMM has stopped the guest because a device failed. */
  get state(): GuestState {
    return this.life === 'running' && this.vmm?.state === 'paused' ? 'paused' : this.life;
  }

  /** Its kernel exists. */
  get alive(): boolean {
    return this.state === 'running' || this.state === 'paused' || this.state === 'starting';
  }

  /** Starts the VMM and boots the guest; returns when its kernel is up. A refusal leaves nothing behind; it is the guest's state. */
  *start(): Steps {
    if (this.alive) throw new Errno('EBUSY', `guest ${this.name} is ${this.state}`);
    this.life = 'starting';
    const { host, world } = this.parts;
    const process = world.newProcess(this.name, this.topology['memlock-limit']);
    this.process = process;
    try {
      this.devices = assignedDevices(this.topology, host);
      this.vmm = this.newVmm(process);
      yield* this.vmm.start();
    } catch (error) {
      if (!isErrno(error)) throw error;
      yield* process.exit();
      // killed while it was being made: that is what became of it
      if (this.life !== 'starting') return;
      this.vmm = undefined;
      this.life = 'refused';
      this.reason = error.message;
      host.log.log('warn', `vmm ${this.name}: ${error.message}`);
      return;
    }
    yield* this.bootKernel();
  }

  private newVmm(process: Process): Vmm {
    const { host } = this.parts;
    const { topology } = this;
    return new Vmm({
      process, name: this.name, vfio: host.passthrough.vfio,
      clock: host.clock, scheduler: host.scheduler, memory: host.memory, frames: host.frames, log: host.log, trace: host.trace, defects: host.settings.defects,
      ram: layoutFor(topology.memory).ram, vcpus: topology.vcpus, iommuType: topology.container,
      ...(topology['huge-pages'] === undefined ? {} : { hugePages: topology['huge-pages'] }),
      devices: this.devices.map(({ groupId, deviceName, bdf, name, onRequest, hostModel }) => ({
        kind: 'vfio' as const, groupId, deviceName, devfn: (bdf.device << 3) | bdf.function, name, onRequest, balloonAllowed: hostModel === undefined,
      })),
      onEject: (name) => this.eject(name),
      onBalloon: (pages) => this.resizeBalloon(pages),
    });
  }

  /** Composes the kernel and boots it on the virtual CPUs. */
  private *bootKernel(): Steps {
    const { host, scenario, nextKernel } = this.parts;
    const vmm = this.vmm!;
    const index = nextKernel();
    const slots = this.devices.flatMap((device): VirtualSlot[] => {
      const fn = vmm.functions.get((device.bdf.device << 3) | device.bdf.function);
      return fn === undefined ? [] : [{ name: device.name, model: device.model, bdf: device.bdf, function: fn, topology: device.topology }];
    });
    const kernel = composeGuest({
      settings: guestSettings(this.topology, host.settings, this.devices), clock: vmm.clock, memory: vmm.memory, slots,
      random: host.random.split(`guest ${this.name} ${this.boots}`), mailbox: host.mailbox, trace: host.trace, fail: (error) => host.clock.fail(error),
    });
    // what was plugged in before a reboot is still there
    for (const block of vmm.ram.slice(layoutFor(this.topology.memory).ram.length)) kernel.frames.addRange(block);
    this.boots++;
    this.disconnect = vmm.connectInterrupts(kernel.interrupts);
    this.kernel = kernel;
    this.abandoned = false;
    this.logs.push(kernel.log);
    this.ballooning = new GuestBalloon(kernel.frames);
    this.world = new KernelWorld(scenario, kernel, this.name, index);
    yield* this.onCpus('boot', boot(kernel));
    if (this.life !== 'starting') return;
    this.life = 'running';
    this.world.begin(this.topology.processes);
  }

  /** Runs steps on the guest's CPUs while the caller, on the host, waits; returns early when the guest dies. */
  private *onCpus(what: string, steps: Steps): Steps {
    const done = new Completion(this.parts.host.scheduler, `${what} of ${this.name}`);
    this.waiting.add(done);
    const failed: { error?: Error } = {};
    this.kernel!.scheduler.spawn(`${this.name}: ${what}`, (function* (): Steps {
      try {
        yield* steps;
      } catch (error) {
        failed.error = error as Error;
      }
      done.complete();
    })());
    yield* done.wait();
    this.waiting.delete(done);
    if (failed.error !== undefined) throw failed.error;
  }

  pause(): void {
    if (this.state !== 'running') throw new Errno('EINVAL', `guest ${this.name} is ${this.state}`);
    this.vmm!.pause();
  }

  resume(): void {
    if (this.state !== 'paused') throw new Errno('EINVAL', `guest ${this.name} is ${this.state}`);
    this.vmm!.resume();
  }

  /** A reset in the middle of everything: processes and kernel vanish, devices are reset, the kernel boots again and runs its processes anew. */
  *reboot(): Steps {
    this.checkRunning();
    this.life = 'starting';
    this.abandonKernel('the guest was reset');
    try {
      yield* this.vmm!.reset();
    } catch (error) {
      // a VMM that was killed meanwhile resets nothing any more
      if (this.life === 'starting' || !isErrno(error)) throw error;
    }
    if (this.life === 'starting') yield* this.bootKernel();
  }

  /** In order: processes end, drivers let their devices go, the VMM exits. */
  *shutdown(): Steps {
    this.checkRunning();
    this.ending = true;
    try {
      yield* this.onCpus('shutdown', this.endAll());
      if (this.life !== 'running') return;
      yield* this.vmm!.powerOff();
      yield* this.process!.exit();
      if (this.life === 'running') this.life = 'off';
    } finally {
      this.ending = false;
    }
  }

  private *endAll(): Steps {
    const { world, kernel } = this;
    for (const program of world!.programs.values()) {
      if (program.exited) continue;
      program.kill();
      if (program.task === undefined) yield* program.exit();
      else yield* program.join();
    }
    yield* shutdown(kernel!);
    const { pinnedPages } = kernel!.frames;
    if (pinnedPages > 0) this.parts.scenario.failures.push(`${this.name}: ${pinnedPages} pages are still pinned after its shutdown`);
  }

  /** SIGKILL of the VMM: the virtual CPUs stop at once, the host kernel closes what it had open. */
  *kill(): Steps {
    if (!this.alive) throw new Errno('ESRCH', `guest ${this.name} is ${this.state}`);
    this.life = 'killed';
    this.reason = 'VMM killed';
    this.abandonKernel('VMM killed');
    this.vmm!.killed();
    yield* this.process!.exit();
  }

  /** Memory that the guest keeps. EBUSY while devices pin its memory. */
  *balloon(targetBytes: number): Steps {
    this.checkRunning();
    yield* this.vmm!.balloon(targetBytes);
  }

  // oxlint-disable-next-line require-yield -- the guest's kernel may have to reclaim first
  private *resizeBalloon(pages: number): Steps<number[]> {
    return pages < 0 ? this.ballooning!.deflate(-pages) : this.ballooning!.inflate(pages);
  }

  /** ENOMEM, EINVAL; nothing is added then. */
  *addMemory(sizeBytes: number): Steps {
    this.checkRunning();
    this.kernel!.frames.addRange(yield* this.vmm!.addMemory(sizeBytes));
  }

  /** Who asks for a device gets it: the guest's kernel lets it go, then it is pulled. */
  private *eject(name: string): Steps {
    const { kernel, world } = this;
    const model = kernel?.devices.models.find((candidate) => candidate.name === name);
    const pci = model === undefined ? undefined : kernel!.pci.find(model.bdf);
    if (model === undefined || pci === undefined || !this.alive || this.abandoned) return;
    yield* this.onCpus(`eject of ${name}`, kernel!.pci.remove(pci));
    // a kernel that was reset or killed meanwhile has nothing to be told
    if (this.kernel !== kernel || this.abandoned) return;
    kernel!.tree.complex.remove(model.function, { surprise: false });
    world!.noticeGone(model);
  }

  /** The guest's kernel is gone from one moment to the next; its programs stop where they are. */
  private abandonKernel(reason: string): void {
    this.abandoned = true;
    this.disconnect();
    this.kernel?.core.close();
    this.kernel?.interrupts.close();
    for (const program of this.world?.programs.values() ?? []) {
      if (program.exited) continue;
      program.abandon(reason);
      this.allPrograms.push(program);
    }
    for (const done of this.waiting) done.complete();
  }

  private checkRunning(): void {
    if (this.ending) throw new Errno('EBUSY', `guest ${this.name} is shutting down`);
    if (this.state !== 'running') throw new Errno('EINVAL', `guest ${this.name} is ${this.state}`);
  }

  /** The open handle whose request on a host device carried this PASID. */
  handleOf(model: DeviceModel, pasid: number): OpenHandle | undefined {
    const { vfio } = this.parts.host.passthrough;
    for (const device of this.devices) {
      if (device.hostModel !== model) continue;
      const own = device.mdev === undefined ? NO_PASID : vfio.pasidOf(device.mdev);
      if (own !== pasid) continue;
      const guestModel = this.kernel?.devices.models.find(({ name }) => name === device.name);
      for (const handles of (guestModel === undefined ? undefined : this.world?.handles.get(guestModel))?.values() ?? []) {
        const busy = handles.find(({ handle }) => handle.awaits(0)) ?? handles.at(-1);
        if (busy !== undefined) return busy;
      }
    }
    return undefined;
  }

  /** One of its devices, by default the first, as the host's IOMMU knows it; a sentence when there is none. */
  deviceFor(name: string | undefined): { readonly name: string; readonly sourceId: number | undefined; readonly pasid: number } | string {
    const names = this.devices.map((device) => device.name);
    const device = name === undefined ? this.devices[0] : this.devices.find((candidate) => candidate.name === name);
    if (device === undefined) return name === undefined ? `guest ${this.name} has no device` : unknownName(`device of ${this.name}`, name, names);
    const pasid = device.mdev === undefined ? NO_PASID : (this.parts.host.passthrough.vfio.pasidOf(device.mdev) ?? NO_PASID);
    return { name: device.name, sourceId: device.hostModel?.function.requesterId, pasid };
  }

  /** Whose tasks a deadlock report must look at. */
  get scheduler(): Scheduler | undefined {
    return this.alive ? this.kernel?.scheduler : undefined;
  }

  summary(): GuestSummary {
    return {
      name: this.name, state: this.state, reason: this.reason, memoryBytes: this.topology.memory, boots: this.boots,
      devices: this.devices.map(({ name, deviceName }) => `${name} (${deviceName})`),
    };
  }
}
