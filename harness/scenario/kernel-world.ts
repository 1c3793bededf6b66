/** One kernel's side of a scenario: its processes, what they open, and the devices as its topology names them. */
import type { IdxdWq } from '../../devices/dsa/driver/idxd-device.js';
import { Malloc } from '../../host/mm/malloc.js';
import { Mm } from '../../host/mm/mm.js';
import { Process } from '../../host/process.js';
import type { PciFunctionDevice } from '../../host/pci/kernel/function-device.js';
import { Errno } from '../../sim/errno.js';
import { sleep, type Steps } from '../../sim/task.js';
import type { DeviceModel } from '../compose/devices.js';
import type { Kernel } from '../compose/host.js';
import type { ProcessTopology, Step } from '../topology/schema.js';
import { DsaHandle } from './dsa-handle.js';
import type { Flow } from './flows.js';
import { MttyHandle } from './mtty-handle.js';
import { NvmeHandle } from './nvme-handle.js';
import { PinnedHandle } from './pinned-handle.js';
import type { UserHandle } from './operations.js';
import { Program } from './program.js';
import type { ScenarioWorld } from './world.js';
import type { SharedScenario } from './world.js';

/** An open handle and the flow it counts for. */
export interface OpenHandle {
  readonly handle: UserHandle;
  readonly flow: Flow;
}

/** Address spaces of different kernels have different numbers in the trace. */
const MM_IDS_PER_KERNEL = 1_000_000;

export class KernelWorld implements ScenarioWorld {
  readonly kernel: Kernel;
  /** Null for the host. */
  readonly guest: string | null;
  /** Handles by the device and PASID they work with, in order of opening. */
  readonly handles = new Map<DeviceModel, Map<number, OpenHandle[]>>();
  /** By name inside this kernel. */
  readonly programs = new Map<string, Program>();
  private readonly shared: SharedScenario;
  private readonly firstMmId: number;
  private nextPid = 100;

  /** @param index 0 for the host, a number of its own for every boot of a guest */
  constructor(shared: SharedScenario, kernel: Kernel, guest: string | null, index: number) {
    this.shared = shared;
    this.kernel = kernel;
    this.guest = guest;
    this.firstMmId = index * MM_IDS_PER_KERNEL;
  }

  get clock() { return this.kernel.clock; }
  get scheduler() { return this.kernel.scheduler; }
  get timing() { return this.kernel.timing; }
  get flows() { return this.shared.flows; }
  get failures() { return this.shared.failures; }
  get progress() { return this.shared.progress; }

  /** `vm0/app` in a guest, `app` on the host. */
  fullName(name: string): string {
    return this.guest === null ? name : `${this.guest}/${name}`;
  }

  file(path: string): Uint8Array {
    return this.shared.file(path);
  }

  /** Schedules processes; returns before any of them runs. */
  begin(processes: readonly ProcessTopology[]): void {
    for (const process of processes) {
      for (let i = 0; i < process.count; i++) {
        const name = process.count === 1 ? process.name : `${process.name}-${i}`;
        this.clock.post(process.start, () => this.start(this.newProgram(name), process.steps));
      }
    }
  }

  /** A process of this kernel without a program. */
  newProcess(name: string, memlockBytes?: number): Process {
    const { memory, frames, scheduler, trace, settings } = this.kernel;
    const pid = this.nextPid++;
    const memlock = memlockBytes ?? settings.topology.host.kernel['memlock-limit'];
    const mm = new Mm({
      id: this.firstMmId + pid, name, memory, frames, scheduler, trace, traceEntries: settings.watch, defects: settings.defects,
      ...(memlock === undefined ? {} : { memlockLimitPages: Math.floor(memlock / 4096) }),
    });
    const process = new Process(pid, name, mm);
    this.kernel.processes.add(process);
    return process;
  }

  /** A process with an empty program, for code that drives it step by step. */
  newProgram(name: string): Program {
    const process = this.newProcess(name);
    const program = new Program(this, process, new Malloc(process.mm));
    this.admit(program);
    return program;
  }

  /** The program counts among those of the run. */
  admit(program: Program): void {
    this.programs.set(program.name, program);
    this.shared.programs.set(this.fullName(program.name), program);
  }

  *open(process: Process, device: string, queue: string | undefined, malloc: Malloc): Steps<{ fd: number; user: UserHandle }> {
    const { pci } = this.device(device);
    const { clock, scheduler, timing } = this;
    const { idxd, mtty, nvme } = this.kernel.kernelDrivers;
    const driver = this.kernel.drivers.driverOf(pci);
    if (driver === undefined) throw new Errno('ENODEV', `${device} has no driver; ${this.whyUnbound(pci)}`);
    if (driver === mtty) {
      const file = yield* mtty.open(pci, process, queue);
      return { fd: file.fd, user: new MttyHandle({ clock, scheduler, device, file }) };
    }
    if (driver === nvme) {
      const file = yield* nvme.open(pci, process);
      return { fd: file.fd, user: new NvmeHandle({ clock, device, file }) };
    }
    if (driver !== idxd) throw new Errno('ENOTTY', `${device} has no user queues: its driver is ${driver.name}`);
    const wq = this.queue(pci, queue);
    if (wq.options.type === 'kernel') {
      const file = yield* idxd.openPinned(pci, process, wq.options.name);
      return { fd: file.fd, user: new PinnedHandle({ clock, device, file }) };
    }
    const file = yield* idxd.open(pci, process, wq.options.name);
    const user = new DsaHandle({ clock, scheduler, timing, device, idxd: idxd.device(pci), file, process, malloc });
    return { fd: file.fd, user };
  }

  /** The queue of that name, or the first one. ENODEV. */
  private queue(pci: PciFunctionDevice, name: string | undefined): IdxdWq {
    const device = this.kernel.kernelDrivers.idxd.device(pci);
    const first = device.wqs[0];
    if (first === undefined) throw new Errno('ENODEV', `${pci.name} has no work queue`);
    return name === undefined ? first : device.wq(name);
  }

  opened(user: UserHandle, flow: Flow): void {
    const { model } = this.device(user.device);
    let byPasid = this.handles.get(model);
    if (byPasid === undefined) this.handles.set(model, (byPasid = new Map<number, OpenHandle[]>()));
    const known = byPasid.get(user.pasid)?.filter(({ flow: other }) => other.process === flow.process) ?? [];
    // handles without a PASID of their own share the device with those of other processes
    const others = user instanceof DsaHandle ? [] : (byPasid.get(user.pasid)?.filter(({ flow: other }) => other.process !== flow.process) ?? []);
    byPasid.set(user.pasid, [...others, ...known, { handle: user, flow }]);
  }

  newFlow(process: string, handle: string, device: string): Flow {
    return this.flows.open(this.guest, process, handle, device);
  }

  /** The handle that waits for a completion record at that address, or the newest of the PASID. */
  handleOf(model: DeviceModel, pasid: number, completion: number): OpenHandle | undefined {
    const handles = this.handles.get(model)?.get(pasid);
    return handles?.find(({ handle }) => handle.awaits(completion)) ?? handles?.at(-1);
  }

  *bind(process: Process, device: string, mmExit: boolean): Steps {
    const { pci } = this.device(device);
    yield* this.kernel.core.svaBind(pci, process.mm, mmExit ? acknowledgeExit : undefined);
  }

  *unbind(process: Process, device: string): Steps {
    const { pci } = this.device(device);
    const pasid = this.kernel.core.svaGetPasid(pci, process.mm);
    yield* this.kernel.core.svaUnbind(pci, pasid);
  }

  *forkProcess(parent: Process, name: string): Steps<Process> {
    const pid = this.nextPid++;
    const child = yield* parent.fork(pid, name, this.firstMmId + pid);
    this.kernel.processes.add(child);
    return child;
  }

  start(program: Program, steps: readonly Step[]): void {
    this.admit(program);
    program.task = this.scheduler.spawn(this.fullName(program.name), program.run(steps));
  }

  *join(process: string): Steps {
    while (!this.programs.has(process)) yield* sleep(this.clock, this.timing.options.pollNs);
    yield* this.programs.get(process)!.join();
  }

  kill(process: string): void {
    this.programs.get(process)?.kill();
  }

  *beforeTeardown(): Steps {
    yield* this.shared.beforeTeardown();
  }

  /** Model and kernel device of a topology's name. ENODEV when it is gone. */
  device(name: string): { model: DeviceModel; pci: PciFunctionDevice } {
    const model = this.kernel.devices.models.find((candidate) => candidate.name === name);
    const pci = model === undefined ? undefined : this.kernel.pci.find(model.bdf);
    if (model === undefined || pci === undefined) throw new Errno('ENODEV', `${name} is not there`);
    return { model, pci };
  }

  /** Programs that wait for a device look again: it is gone. */
  noticeGone(model: DeviceModel): void {
    for (const handles of this.handles.get(model)?.values() ?? []) for (const { handle } of handles) handle.notice();
  }

  /** The first thing the kernel said about a device that went wrong. */
  private whyUnbound(pci: PciFunctionDevice): string {
    const line = this.kernel.log.lines.find(({ level, text }) => level !== 'info' && text.includes(pci.name));
    return line === undefined ? 'no driver matches it' : `the kernel log says "${line.text}"`;
  }
}

/** mm_exit of a bind whose device submits nothing on its own: there is nothing to stop. */
// oxlint-disable-next-line require-yield -- the callback may sleep, this one has no reason to
function* acknowledgeExit(): Steps<number> {
  return 0;
}
