/** Runs the processes and guests of a topology on a booted host, injects what the topology injects, and counts flows. */
import { resolve } from 'node:path';
import { readFileSync } from 'node:fs';
import type { DescriptorReport } from '../../devices/dsa/hardware/job.js';
import { FAULT_DMA_UNRECOV } from '../../iommu/core/ops.js';
import { Errno, isErrno } from '../../sim/errno.js';
import { sleep, type Steps } from '../../sim/task.js';
import type { DeviceModel } from '../compose/devices.js';
import type { Host } from '../compose/host.js';
import { Guest } from '../guests/guest.js';
import { INJECTIONS, type Injection, type Step, type Topology } from '../topology/schema.js';
import { Flows } from './flows.js';
import { KernelWorld, type OpenHandle } from './kernel-world.js';
import type { Program } from './program.js';
import type { SharedScenario } from './world.js';

/** From a function's disappearance to the kernel's notice (presence detect). */
const PRESENCE_NS = 20_000;

export class Scenario implements SharedScenario {
  readonly flows = new Flows();
  readonly failures: string[] = [];
  readonly progress = { stepsDone: 0, stepsTotal: 0 };
  readonly programs = new Map<string, Program>();
  readonly guests = new Map<string, Guest>();
  /** The host's processes. */
  readonly world: KernelWorld;
  /** Something that tears a bond down has begun. */
  teardownBegun = false;
  /** Makes `beforeTeardown` give the run a chance to stop. */
  pauseBeforeTeardown = false;
  private readonly host: Host;
  private readonly directory: string;
  private readonly files = new Map<string, Uint8Array>();
  private kernels = 0;

  constructor(host: Host, directory: string) {
    this.host = host;
    this.directory = directory;
    this.world = new KernelWorld(this, host, null, this.kernels++);
    for (const model of host.devices.models) model.onDescriptor = (report) => this.descriptorEnded(model, report);
    host.core.faults$.subscribe(({ device, fault }) => {
      if (fault.type === FAULT_DMA_UNRECOV) this.unrecoverable(device.name, fault.pasid);
    });
  }

  get clock() { return this.host.clock; }

  /** Schedules processes, guests and injections; returns before any of them runs. */
  begin(topology: Topology): void {
    for (const process of [...topology.processes, ...topology.guests.flatMap((guest) => guest.processes)]) this.progress.stepsTotal += process.count * countSteps(process.steps);
    this.world.begin(topology.processes);
    for (const guest of topology.guests) {
      const made = this.guests.get(guest.name) ?? this.newGuest(guest);
      // code has it in its hands
      if (made.state !== 'off' || made.boots > 0) continue;
      this.clock.post(guest.start, () => void this.host.scheduler.spawn(`start of ${guest.name}`, made.start()));
    }
    topology.inject.forEach((inject, i) => {
      const run = (): void => void this.host.scheduler.spawn(`inject[${i}]`, this.inject(inject));
      if (inject.at !== undefined) this.clock.post(inject.at, run);
      else this.onRecord(inject.when!.event, inject.when!.count, run);
    });
  }

  /** A guest that is off. */
  newGuest(topology: Topology['guests'][number]): Guest {
    const guest = new Guest({ topology, host: this.host, world: this.world, scenario: this, nextKernel: () => this.kernels++ });
    this.guests.set(topology.name, guest);
    return guest;
  }

  /** ENODEV no guest of that name. */
  guest(name: string): Guest {
    const guest = this.guests.get(name);
    if (guest === undefined) throw new Errno('ENODEV', `there is no guest ${name}`);
    return guest;
  }

  /** Programs that have not ended, in kernels that are still there. */
  unfinished(): Program[] {
    const gone = new Set([...this.guests.values()].filter((guest) => !guest.alive).flatMap((guest) => guest.allPrograms));
    return [...this.programs.values()].filter((program) => !program.exited && !gone.has(program));
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

  *beforeTeardown(): Steps {
    if (this.teardownBegun) return;
    this.teardownBegun = true;
    if (this.pauseBeforeTeardown) yield* sleep(this.clock, 0);
  }

  private onRecord(kind: string, count: number, run: () => void): void {
    let seen = 0;
    const stop = this.host.trace.listen(() => {
      if (++seen !== count) return;
      stop();
      this.clock.post(0, run);
    }, [kind]);
  }

  private *inject(inject: Injection): Steps {
    const verb = INJECTIONS.find((candidate) => inject[candidate] !== undefined)!;
    const what = `inject ${verb} ${subjectOf(inject[verb]!)}`;
    try {
      yield* this.perform(inject);
      if (inject.expect !== undefined) this.failures.push(`${what}: expected ${inject.expect}, but it went well`);
    } catch (error) {
      if (!isErrno(error)) throw error;
      if (error.code !== inject.expect) this.failures.push(`${what}: ${inject.expect === undefined ? '' : `expected ${inject.expect}, got `}${error.message}`);
    }
  }

  private *perform(inject: Injection): Steps {
    if (inject.kill !== undefined) return yield* this.kill(inject.kill);
    if (inject.pause !== undefined) return this.guest(inject.pause).pause();
    if (inject.resume !== undefined) return this.guest(inject.resume).resume();
    if (inject.reboot !== undefined) return yield* this.guest(inject.reboot).reboot();
    if (inject.shutdown !== undefined) return yield* this.guest(inject.shutdown).shutdown();
    if (inject.balloon !== undefined) return yield* this.guest(inject.balloon.guest).balloon(inject.balloon.size);
    if (inject['add-memory'] !== undefined) return yield* this.guest(inject['add-memory'].guest).addMemory(inject['add-memory'].size);
    if (inject['start-mdev'] !== undefined) return yield* this.host.passthrough.startMdev(inject['start-mdev']);
    if (inject['stop-mdev'] !== undefined) return yield* this.host.passthrough.stopMdev(inject['stop-mdev']);
    const how = inject.reset !== undefined ? 'reset' : inject.remove !== undefined ? 'remove' : 'unplug';
    yield* this.disturb(how, inject[how]!);
  }

  /** A process of the host, `guest/process`, or a guest's VMM. */
  private *kill(subject: string): Steps {
    const guest = this.guests.get(subject);
    if (guest !== undefined) return yield* guest.kill();
    this.programs.get(subject)?.kill();
  }

  /** A function-level reset, a removal in order, or a device that is gone at once. What the kernel refuses. */
  *disturb(how: 'reset' | 'remove' | 'unplug', name: string): Steps {
    const { model, pci } = this.world.device(name);
    // unplugged already, and the kernel has not taken notice
    if (model.function.bus === undefined) throw new Errno('ENODEV', `${name} is not there`);
    if (how === 'reset') return yield* pci.reset();
    if (how === 'remove') yield* this.host.pci.remove(pci);
    // somebody else may have been quicker while the driver let go of it
    if (model.function.bus !== undefined) this.host.tree.complex.remove(model.function, { surprise: how === 'unplug' });
    this.world.noticeGone(model);
    yield* sleep(this.clock, this.host.timing.jittered(PRESENCE_NS));
    yield* this.host.pci.removeAbsent();
    this.world.noticeGone(model);
  }

  private descriptorEnded(model: DeviceModel, report: DescriptorReport): void {
    const found = this.world.handleOf(model, report.pasid, report.completion);
    if (found === undefined || found.handle.countsItself) return;
    found.flow.ended({ bytes: report.bytes, pageRequests: report.pageRequests, responses: report.responses, latencyNs: report.completedNs - report.submittedNs });
    found.handle.notice();
  }

  /** A fault counts for the flow whose request it was: a host process's, or one of the guest that owns the PASID or device. */
  private unrecoverable(device: string, pasid: number): void {
    const model = this.host.devices.models.find((candidate) => candidate.bdf === device);
    if (model === undefined) return;
    const found = this.world.handleOf(model, pasid, 0) ?? this.handleOfGuests(model, pasid);
    if (found !== undefined) found.flow.unrecoverable++;
  }

  private handleOfGuests(model: DeviceModel, pasid: number): OpenHandle | undefined {
    for (const guest of this.guests.values()) {
      const found = guest.handleOf(model, pasid);
      if (found !== undefined) return found;
    }
    return undefined;
  }
}

function subjectOf(value: string | { readonly guest: string }): string {
  return typeof value === 'string' ? value : value.guest;
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
