/** Runs the processes of a topology on a booted host, injects what the topology injects, and counts flows. */
import { resolve } from 'node:path';
import { readFileSync } from 'node:fs';
import type { DescriptorReport } from '../../devices/dsa/hardware/job.js';
import { Malloc } from '../../host/mm/malloc.js';
import { Mm } from '../../host/mm/mm.js';
import { Process } from '../../host/process.js';
import type { PciDevice } from '../../host/pci/kernel/pci-device.js';
import { FAULT_DMA_UNRECOV } from '../../iommu/core/ops.js';
import { Errno, isErrno } from '../../sim/errno.js';
import { sleep, type Steps } from '../../sim/task.js';
import type { DeviceModel } from '../compose/devices.js';
import type { Host } from '../compose/host.js';
import type { Step, Topology } from '../topology/schema.js';
import { queueNames } from '../topology/checks.js';
import { DsaHandle } from './dsa-handle.js';
import { Flows, type Flow } from './flows.js';
import type { UserHandle } from './operations.js';
import { Program } from './program.js';
import type { ScenarioWorld } from './world.js';

/** From a function's disappearance to the kernel's notice (presence detect). */
const PRESENCE_NS = 20_000;

/** Flows of one PASID on one device, in order of opening. */
interface PasidFlows {
  readonly handles: { readonly handle: DsaHandle; readonly flow: Flow }[];
}

export class Scenario implements ScenarioWorld {
  readonly flows = new Flows();
  readonly failures: string[] = [];
  readonly progress = { stepsDone: 0, stepsTotal: 0 };
  readonly programs = new Map<string, Program>();
  /** Something that tears a bond down has begun. */
  teardownBegun = false;
  /** Makes `beforeTeardown` give the run a chance to stop. */
  pauseBeforeTeardown = false;
  private readonly host: Host;
  private readonly directory: string;
  private readonly files = new Map<string, Uint8Array>();
  private readonly pasidFlows = new Map<DeviceModel, Map<number, PasidFlows>>();
  private nextPid = 100;

  constructor(host: Host, directory: string) {
    this.host = host;
    this.directory = directory;
    for (const model of host.devices.models) model.onDescriptor = (report) => this.descriptorEnded(model, report);
    host.core.faults$.subscribe(({ device, fault }) => {
      if (fault.type === FAULT_DMA_UNRECOV) this.unrecoverable(device.name, fault.pasid);
    });
  }

  get clock() { return this.host.clock; }
  get scheduler() { return this.host.scheduler; }
  get timing() { return this.host.timing; }

  /** Schedules processes and injections; returns before any of them runs. */
  begin(topology: Topology): void {
    for (const process of topology.processes) {
      for (let i = 0; i < process.count; i++) {
        const name = process.count === 1 ? process.name : `${process.name}-${i}`;
        this.progress.stepsTotal += countSteps(process.steps);
        this.clock.post(process.start, () => this.startProcess(name, process.steps));
      }
    }
    topology.inject.forEach((inject, i) => {
      const run = (): void => void this.scheduler.spawn(`inject[${i}]`, this.inject(inject));
      if (inject.at !== undefined) this.clock.post(inject.at, run);
      else this.onRecord(inject.when!.event, inject.when!.count, run);
    });
  }

  /** Programs that have not ended. */
  unfinished(): string[] {
    return [...this.programs.values()].filter((program) => !program.exited).map((program) => program.name);
  }

  /** Ends every program and waits for it. */
  *endAll(): Steps {
    for (const program of this.programs.values()) {
      program.kill();
      yield* program.join();
    }
  }

  file(path: string): Uint8Array {
    const full = resolve(this.directory, path);
    let content = this.files.get(full);
    if (content === undefined) {
      content = new Uint8Array(readFileSync(full));
      this.files.set(full, content);
    }
    return content;
  }

  /** A process with an empty program, for code that drives it step by step. */
  newProgram(name: string): Program {
    const { memory, frames, scheduler, trace, settings } = this.host;
    const pid = this.nextPid++;
    const memlock = settings.topology.host.kernel['memlock-limit'];
    const mm = new Mm({
      id: pid, name, memory, frames, scheduler, trace, traceEntries: settings.watch, defects: settings.defects,
      ...(memlock === undefined ? {} : { memlockLimitPages: Math.floor(memlock / 4096) }),
    });
    const program = new Program(this, new Process(pid, name, mm), new Malloc(mm));
    this.programs.set(name, program);
    return program;
  }

  *open(process: Process, device: string, queue: string | undefined, malloc: Malloc): Steps<{ fd: number; user: UserHandle }> {
    const { model, pci } = this.device(device);
    if (model.topology.model !== 'dsa') throw new Errno('ENOTTY', `${device} has no user queues; its driver works for the kernel only`);
    const { idxd } = this.host.devices;
    if (this.host.drivers.driverOf(pci) === undefined) throw new Errno('ENODEV', `${device} has no driver; ${this.whyUnbound(pci)}`);
    const file = yield* idxd.open(pci, process, queue ?? queueNames(model.topology)[0]!);
    const user = new DsaHandle({ clock: this.clock, scheduler: this.scheduler, timing: this.timing, device, idxd: idxd.device(pci), file, process, malloc });
    return { fd: file.fd, user };
  }

  /** The first thing the kernel said about a device that went wrong. */
  private whyUnbound(pci: PciDevice): string {
    const line = this.host.log.lines.find(({ level, text }) => level !== 'info' && text.includes(pci.name));
    return line === undefined ? 'no driver matches it' : `the kernel log says "${line.text}"`;
  }

  opened(user: UserHandle, flow: Flow): void {
    if (!(user instanceof DsaHandle)) return;
    const { model } = this.device(user.device);
    let byPasid = this.pasidFlows.get(model);
    if (byPasid === undefined) this.pasidFlows.set(model, (byPasid = new Map<number, PasidFlows>()));
    const known = byPasid.get(user.pasid)?.handles.filter(({ flow: other }) => other.process === flow.process) ?? [];
    byPasid.set(user.pasid, { handles: [...known, { handle: user, flow }] });
  }

  *bind(process: Process, device: string, mmExit: boolean): Steps {
    const { pci } = this.device(device);
    yield* this.host.core.svaBind(pci, process.mm, mmExit ? acknowledgeExit : undefined);
  }

  *unbind(process: Process, device: string): Steps {
    const { pci } = this.device(device);
    const pasid = this.host.core.svaGetPasid(pci, process.mm);
    yield* this.host.core.svaUnbind(pci, pasid);
  }

  *forkProcess(parent: Process, name: string): Steps<Process> {
    return yield* parent.fork(this.nextPid++, name);
  }

  start(program: Program, steps: readonly Step[]): void {
    this.programs.set(program.name, program);
    program.task = this.scheduler.spawn(program.name, program.run(steps));
  }

  *join(process: string): Steps {
    while (!this.programs.has(process)) yield* sleep(this.clock, this.timing.options.pollNs);
    yield* this.programs.get(process)!.join();
  }

  kill(process: string): void {
    this.programs.get(process)?.kill();
  }

  *beforeTeardown(): Steps {
    if (this.teardownBegun) return;
    this.teardownBegun = true;
    if (this.pauseBeforeTeardown) yield* sleep(this.clock, 0);
  }

  /** Model and kernel device of a topology's name. ENODEV when it is gone. */
  device(name: string): { model: DeviceModel; pci: PciDevice } {
    const model = this.host.devices.models.find((candidate) => candidate.topology.name === name);
    const pci = model === undefined ? undefined : this.host.pci.find(model.bdf);
    if (model === undefined || pci === undefined) throw new Errno('ENODEV', `${name} is not there`);
    return { model, pci };
  }

  private startProcess(name: string, steps: readonly Step[]): void {
    this.start(this.newProgram(name), steps);
  }

  private onRecord(kind: string, count: number, run: () => void): void {
    let seen = 0;
    const stop = this.host.trace.listen(() => {
      if (++seen !== count) return;
      stop();
      this.clock.post(0, run);
    }, [kind]);
  }

  private *inject(inject: Topology['inject'][number]): Steps {
    if (inject.kill !== undefined) return this.kill(inject.kill);
    const how = inject.reset !== undefined ? 'reset' : inject.remove !== undefined ? 'remove' : 'unplug';
    try {
      yield* this.disturb(how, inject[how]!);
    } catch (error) {
      if (!isErrno(error)) throw error;
      this.failures.push(`inject ${how} ${inject[how]!}: ${error.message}`);
    }
  }

  /** A function-level reset, a removal in order, or a device that is gone at once. What the kernel refuses. */
  *disturb(how: 'reset' | 'remove' | 'unplug', name: string): Steps {
    const { model, pci } = this.device(name);
    // unplugged already, and the kernel has not taken notice
    if (model.function.bus === undefined) throw new Errno('ENODEV', `${name} is not there`);
    if (how === 'reset') return yield* pci.reset();
    if (how === 'remove') yield* this.host.pci.remove(pci);
    this.host.tree.complex.remove(model.function, { surprise: how === 'unplug' });
    this.noticeGone(model);
    yield* sleep(this.clock, this.timing.jittered(PRESENCE_NS));
    yield* this.host.pci.removeAbsent();
    this.noticeGone(model);
  }

  private descriptorEnded(model: DeviceModel, report: DescriptorReport): void {
    const found = this.handleOf(model, report.pasid, report.completion);
    found?.flow.ended({ bytes: report.bytes, pageRequests: report.pageRequests, responses: report.responses, latencyNs: report.completedNs - report.submittedNs });
    found?.handle.notice();
  }

  private handleOf(model: DeviceModel, pasid: number, completion: number): PasidFlows['handles'][number] | undefined {
    const handles = this.pasidFlows.get(model)?.get(pasid)?.handles;
    return handles?.find(({ handle }) => handle.awaits(completion)) ?? handles?.at(-1);
  }

  /** Programs that wait for a device look again: it is gone. */
  private noticeGone(model: DeviceModel): void {
    for (const { handles } of this.pasidFlows.get(model)?.values() ?? []) for (const { handle } of handles) handle.notice();
  }

  private unrecoverable(device: string, pasid: number): void {
    const model = this.host.devices.models.find((candidate) => candidate.bdf === device);
    const flow = model === undefined ? undefined : this.handleOf(model, pasid, 0)?.flow;
    if (flow !== undefined) flow.unrecoverable++;
  }
}

/** mm_exit of a bind whose device submits nothing on its own: there is nothing to stop. */
// oxlint-disable-next-line require-yield -- the callback may sleep, this one has no reason to
function* acknowledgeExit(): Steps<number> {
  return 0;
}

/** Steps that will run, repeats and forks included. */
function countSteps(steps: readonly Step[]): number {
  let count = 0;
  for (const step of steps) {
    count++;
    if (step.repeat !== undefined) count += step.repeat.times * countSteps(step.repeat.steps);
    if (step.fork !== undefined) count += countSteps(step.fork.steps);
  }
  return count;
}
