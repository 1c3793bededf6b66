/**
 * A machine that code drives: what `createMachine` returns. Every method that takes simulated time is awaited; it
 * becomes a task of the machine, and the clock runs until that task has ended. There is no second way inside: the
 * processes are programs of the scenario, the handles are its handles, and the summary counts them like any other.
 */
import { map, type Observable } from 'rxjs';
import type { LspciOptions } from '../host/pci/kernel/lspci/lspci.js';
import type { Device } from '../host/device.js';
import type { PciFunctionDevice } from '../host/pci/kernel/function-device.js';
import { Errno } from '../sim/errno.js';
import { sleep, type Scheduler, type Steps } from '../sim/task.js';
import type { Trace } from '../sim/trace.js';
import type { Checker } from './checkers/invariant.js';
import { parseWalkTarget, type WalkReport, type WalkTarget } from './inspect.js';
import type { Machine } from './machine.js';
import { stateOf, type MachineState } from './machine-state.js';
import { SimulatedGuest } from './session/guest.js';
import { KernelApi } from './session/kernel.js';
import { duration } from './session/numbers.js';
import { SimulatedProcess } from './session/process.js';
import { faultRecord, interruptRecord, responseRecord, type FaultRecord, type InterruptRecord, type PageResponseRecord } from './session/records.js';
import { Turns } from './session/turns.js';
import { parseStopPoint, type StopPoint } from './stop-point.js';
import type { RunEnd, Summary } from './summary.js';

export class MachineSession implements AsyncDisposable, Disposable {
  /** The machine itself, whose methods do not return promises. */
  readonly model: Machine;
  readonly kernel: KernelApi;
  /** Faults of all devices, as their IOMMU's driver decoded them. */
  readonly faults$: Observable<FaultRecord>;
  /** Answers to page request groups, on their way to the hardware. */
  readonly responses$: Observable<PageResponseRecord>;
  /** Message-signalled interrupts as they arrive. */
  readonly interrupts$: Observable<InterruptRecord>;
  private readonly turns: Turns;

  /** Boots the machine. */
  constructor(model: Machine) {
    this.model = model;
    const { core, interrupts } = model.host;
    this.turns = new Turns(model.clock, () => model.deadlockReport());
    this.kernel = new KernelApi(this);
    this.faults$ = core.faults$.pipe(map((report) => faultRecord(report, this.nameOf(report.device))));
    this.responses$ = core.responses$.pipe(map((response) => responseRecord(response, this.nameOf(response.device))));
    this.interrupts$ = interrupts.messages$.pipe(map(interruptRecord));
    model.boot();
  }

  get name(): string {
    return this.model.name;
  }

  get seed(): number {
    return this.model.host.settings.seed;
  }

  /** Simulated nanoseconds since the end of boot. */
  get nowNs(): number {
    return this.model.clock.now;
  }

  get trace(): Trace {
    return this.model.trace;
  }

  /** A new process, which does nothing by itself. EEXIST when there is one of that name. */
  async process(name: string): Promise<SimulatedProcess> {
    this.refuseEnded(`process ${name}`);
    this.refuseTakenName(name);
    return new SimulatedProcess(this, this.model.scenario.world.newProgram(name));
  }

  /** A guest of the topology, in whatever state. ENODEV no guest of that name. */
  guest(name: string): SimulatedGuest {
    const { scenario, loaded } = this.model;
    const topology = loaded.topology.guests.find((guest) => guest.name === name);
    if (topology === undefined) throw new Errno('ENODEV', `there is no guest ${name}`);
    return new SimulatedGuest(this, scenario.guests.get(name) ?? scenario.newGuest(topology));
  }

  /** Creates a mediated device that the topology defines, by name or UUID. ENOENT, or what its parent refuses. */
  async startMdev(reference: string): Promise<void> {
    await this.perform(`start of ${reference}`, this.model.host.passthrough.startMdev(reference));
  }

  /** Removes it; its user is asked for it. ENODEV, EAGAIN, EBUSY. */
  async stopMdev(reference: string): Promise<void> {
    await this.perform(`stop of ${reference}`, this.model.host.passthrough.stopMdev(reference));
  }

  /** Lets simulated time pass. @param time `10us`, or nanoseconds */
  async sleep(time: string | number): Promise<void> {
    await this.perform('sleep', sleep(this.model.clock, duration(time)));
  }

  /**
   * Runs the topology's processes, and whatever code has under way. Without `until` to the end of it all, after which
   * the machine is taken down and the books are balanced; a process of code's that has not exited then is a failure.
   * @param until `120us`, `event:N`, `fault:K`, `before-teardown`: the run stops there and may be gone on with
   */
  async run(until?: string | StopPoint): Promise<RunEnd> {
    const stopAt = typeof until === 'string' ? parseStopPoint(until) : until;
    if (typeof stopAt === 'string') throw new Errno('EINVAL', stopAt);
    try {
      return this.model.run(stopAt === undefined ? {} : { stopAt });
    } finally {
      this.turns.settle();
    }
  }

  summary(): Summary {
    return this.model.summary();
  }

  /** Where the machine stands: time, tasks and what they wait for, the last records. */
  state(): MachineState {
    return stateOf(this.model);
  }

  /** Lines of the kernel log. */
  dmesg(): string[] {
    return this.model.dmesg();
  }

  lspci(options: LspciOptions = {}): string {
    return this.model.lspci(options);
  }

  /**
   * The table entries that translate an address now.
   * @param target `dsa0/1/0x7f…`, `dsa0/app/buffer+0x10`, or its parts
   * @throws Errno EINVAL unknown device, process or buffer
   */
  walk(target: string | WalkTarget): WalkReport {
    const parsed = typeof target === 'string' ? parseWalkTarget(target) : target;
    const report = typeof parsed === 'string' ? parsed : this.model.walk(parsed);
    if (typeof report === 'string') throw new Errno('EINVAL', report);
    return report;
  }

  /** A checker of one's own, which sees the records from now on; the summary counts it. */
  addChecker(checker: Checker): void {
    this.model.addChecker(checker);
  }

  /** Function-level reset. */
  async reset(device: string): Promise<void> {
    await this.perform(`reset ${device}`, this.model.scenario.disturb('reset', device));
  }

  /** The kernel removes the device in order: its driver first. */
  async remove(device: string): Promise<void> {
    await this.perform(`remove ${device}`, this.model.scenario.disturb('remove', device));
  }

  /** The device is gone at once; the kernel notices a little later. */
  async unplug(device: string): Promise<void> {
    await this.perform(`unplug ${device}`, this.model.scenario.disturb('unplug', device));
  }

  /** Ends what is left, takes the machine down, and judges nothing. */
  async [Symbol.asyncDispose](): Promise<void> {
    this[Symbol.dispose]();
  }

  [Symbol.dispose](): void {
    this.model.takeDown();
    this.turns.settle();
  }

  /** Runs kernel or process code as a task until it has ended. For what the methods above do not offer. */
  async perform<T>(what: string, steps: Steps<T>, scheduler: Scheduler = this.model.host.scheduler): Promise<T> {
    this.refuseEnded(what);
    if (this.isGone(scheduler)) throw new Errno('ENODEV', `${what}: the guest it ran in is no more`);
    return this.turns.perform(what, steps, scheduler, () => this.isGone(scheduler));
  }

  /** @internal the scheduler is of a guest's kernel that has ended */
  isGone(scheduler: Scheduler): boolean {
    const { host, scenario } = this.model;
    if (scheduler === host.scheduler) return false;
    for (const guest of scenario.guests.values()) if (guest.scheduler === scheduler) return false;
    return true;
  }

  /** @internal ENODEV */
  deviceOf(name: string): PciFunctionDevice {
    const { devices, pci } = this.model.host;
    const device = pci.find(devices.models.find((model) => model.name === name)?.bdf ?? name);
    if (device === undefined) throw new Errno('ENODEV', `${name} is not there`);
    return device;
  }

  /** @internal the topology's name of a device, or its BDF */
  nameOf(device: Device): string {
    return this.model.host.devices.models.find(({ bdf }) => bdf === device.name)?.name ?? device.name;
  }

  /** @internal */
  refuseTakenName(name: string): void {
    if (this.model.scenario.programs.has(name)) throw new Errno('EEXIST', `there is a process "${name}" already`);
  }

  private refuseEnded(what: string): void {
    const { end } = this.model;
    if (end !== undefined && end !== 'stopped') throw new Errno('ENODEV', `${what}: the machine has ended (${end})`);
  }
}
