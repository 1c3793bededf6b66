/** A guest that code drives: its life, its kernel's view, its processes, each call awaited. */
import { logText } from '../../host/kernel-log.js';
import { lspci, type LspciOptions } from '../../host/pci/kernel/lspci/lspci.js';
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import type { Kernel } from '../compose/host.js';
import type { Guest, GuestState } from '../guests/guest.js';
import type { KernelWorld } from '../scenario/kernel-world.js';
import type { MachineSession } from '../session.js';
import { bytes } from './numbers.js';
import { SimulatedProcess } from './process.js';

export class SimulatedGuest implements AsyncDisposable {
  /** The guest itself, for what is not here. */
  readonly model: Guest;
  private readonly session: MachineSession;

  constructor(session: MachineSession, model: Guest) {
    this.session = session;
    this.model = model;
  }

  get name(): string {
    return this.model.name;
  }

  get state(): GuestState {
    return this.model.state;
  }

  /** Why it was refused or killed; empty otherwise. */
  get reason(): string {
    return this.model.reason;
  }

  /** Starts the VMM and boots the kernel. A host that lacks something leaves the guest `refused`, with the reason. EBUSY it is running. */
  async start(): Promise<GuestState> {
    await this.perform('start', this.model.start());
    return this.state;
  }

  /** Holds the virtual CPUs. EINVAL it is not running. */
  async pause(): Promise<void> {
    this.model.pause();
  }

  /** EINVAL it is not paused. */
  async resume(): Promise<void> {
    this.model.resume();
  }

  /** A reset in the middle of everything, then a boot. EINVAL it is not running. */
  async reboot(): Promise<void> {
    await this.perform('reboot', this.model.reboot());
  }

  /** In order. EINVAL it is not running. */
  async shutdown(): Promise<void> {
    await this.perform('shutdown', this.model.shutdown());
  }

  /** SIGKILL of the VMM. ESRCH it is not there. */
  async kill(): Promise<void> {
    await this.perform('kill', this.model.kill());
  }

  /** Memory that the guest keeps, such as `48MiB`. EBUSY while devices pin its memory. */
  async balloon(size: string | number): Promise<void> {
    await this.perform('balloon', this.model.balloon(bytes(size)));
  }

  /** Plugs memory in. ENOMEM, EINVAL; nothing is added then. */
  async addMemory(size: string | number): Promise<void> {
    await this.perform('add memory', this.model.addMemory(bytes(size)));
  }

  /** A new process in the guest, which does nothing by itself. EEXIST, ENODEV the guest is not running. */
  async process(name: string): Promise<SimulatedProcess> {
    const { world } = this.running();
    if (world.programs.has(name)) throw new Errno('EEXIST', `there is a process "${name}" in ${this.name} already`);
    return new SimulatedProcess(this.session, world.newProgram(name));
  }

  /** Lines of the log of the guest's kernel, also of one that has ended. */
  dmesg(): string[] {
    return (this.model.logs.at(-1)?.lines ?? []).map(logText);
  }

  /** What the guest sees on its bus. */
  lspci(options: LspciOptions = {}): string {
    const { pci, drivers } = this.running().kernel;
    return lspci(pci.devices, { ...options, driverOf: (fn) => drivers.driverOf(fn as Parameters<typeof drivers.driverOf>[0])?.name });
  }

  /** Shuts it down, or kills it when it cannot. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (this.state === 'running') await this.shutdown();
    else if (this.model.alive) await this.kill();
  }

  private running(): { world: KernelWorld; kernel: Kernel } {
    const { world, kernel } = this.model;
    if (!this.model.alive || world === undefined || kernel === undefined) throw new Errno('ENODEV', `guest ${this.name} is ${this.state}`);
    return { world, kernel };
  }

  private perform<T>(what: string, steps: Steps<T>): Promise<T> {
    return this.session.perform(`${this.name}: ${what}`, steps);
  }
}
