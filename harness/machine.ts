/**
 * A simulated machine: composed from a topology, booted, run, looked at. Everything inside is synchronous; the
 * asynchronous methods of `createMachine`'s result exist for the look of it at the edge.
 */
import { readFileSync } from 'node:fs';
import { resolve } from 'node:path';
import { guestTraceKinds } from '../guest/trace-kinds.js';
import { logText } from '../host/kernel-log.js';
import { lspci, type LspciOptions } from '../host/pci/kernel/lspci/lspci.js';
import { NO_PASID } from '../host/pci/dma-port.js';
import { SimulatorBug } from '../sim/assert.js';
import { hexPage } from '../sim/address.js';
import type { VirtualClock } from '../sim/clock.js';
import { isErrno } from '../sim/errno.js';
import type { Scheduler, Steps } from '../sim/task.js';
import type { Trace } from '../sim/trace.js';
import { bootHost, shutdownHost } from './boot.js';
import { balance, subscriptionsEnd } from './checkers/books.js';
import { CheckerSet, type Checker } from './checkers/invariant.js';
import { standardCheckers } from './checkers/index.js';
import { composeHost, type Host } from './compose/host.js';
import type { UnitRegisters } from './compose/settings.js';
import { countersOf } from './counters.js';
import { checkDefects } from './defects.js';
import { unmetExpectations } from './expectations.js';
import { walkGuest, walkMdev } from './inspect-guest.js';
import { walk, type Inspectable, type WalkReport, type WalkTarget } from './inspect.js';
import type { VectorRecorder } from './replay/record.js';
import { LimitReached } from './limit-reached.js';
import { Scenario } from './scenario/scenario.js';
import type { StopPoint } from './stop-point.js';
import type { GuestSummary, InvariantSummary, Leaks, RunEnd, Summary } from './summary.js';
import { checkTopology, loadTopology, type LoadedTopology } from './topology/load.js';
import { InvalidInput } from './topology/problems.js';
import type { TopologyInput } from './topology/schema.js';

export interface MachineOptions {
  /** Default: the topology's. */
  readonly seed?: number;
  /** Files that processes name are relative to it; default: the topology file's directory, or the current one. */
  readonly directory?: string;
  /** Checkers and the records they need; default true. Without them a run is faster and proves less. */
  readonly checkers?: boolean;
  /** Trace records kept for export; default 2^20. */
  readonly traceRecords?: number;
  /** Named defects of the product, for tests of checkers. */
  readonly defects?: ReadonlySet<string>;
  /** CAP, ECAP and VER of a recorded unit, instead of what the topology's `iommu` makes. */
  readonly unitRegisters?: UnitRegisters;
  /** Records what happens at the IOMMU. */
  readonly recorder?: VectorRecorder;
}

export interface RunOptions {
  readonly stopAt?: StopPoint;
  /** Called about every 65,536 events. */
  readonly onSlice?: () => void;
}

const SLICE_EVENTS = 1 << 16;

export class Machine implements Inspectable {
  readonly name: string;
  readonly host: Host;
  readonly scenario: Scenario;
  readonly checkers: CheckerSet;
  /** Undefined while the machine can go on. */
  end: RunEnd | undefined;
  readonly loaded: LoadedTopology;
  private booted = false;
  private begun = false;
  private framesAtStart = 0;
  private leaks: Leaks = { pasids: 0, pinnedPages: 0, domains: 0, frames: 0 };
  private invariants: InvariantSummary[] = [];
  private readonly added: CheckerSet[] = [];
  private deadlock: string[] = [];
  /** How guests stood when everything had ended, before the machine was taken down. */
  private readonly guestStates: GuestSummary[] = [];

  constructor(loaded: LoadedTopology, options: MachineOptions = {}) {
    const { topology } = loaded;
    const watch = options.checkers ?? true;
    refuseExternalGuests(loaded);
    checkDefects(options.defects ?? []);
    this.loaded = loaded;
    this.name = topology.name ?? loaded.file;
    const directory = options.directory ?? loaded.directory;
    this.host = composeHost({
      scope: '', topology, seed: options.seed ?? topology.seed, defects: options.defects ?? new Set(), traceRecords: options.traceRecords ?? 1 << 20, watch,
      file: (path) => new Uint8Array(readFileSync(resolve(directory, path))),
      ...(options.unitRegisters === undefined ? {} : { unitRegisters: options.unitRegisters }),
      ...(options.recorder === undefined ? {} : { recorder: options.recorder }),
    });
    if (topology.guests.length > 0) guestTraceKinds(this.trace);
    this.scenario = new Scenario(this.host, directory);
    this.checkers = new CheckerSet(this.trace, watch ? standardCheckers(this.host) : []);
  }

  get clock(): VirtualClock {
    return this.host.clock;
  }

  get trace(): Trace {
    return this.host.trace;
  }

  get progress(): { readonly stepsDone: number; readonly stepsTotal: number } {
    return this.scenario.progress;
  }

  /** Runs `steps` as a task until it ends; what it throws is thrown here, or LimitReached. Others run meanwhile. */
  execute<T>(what: string, steps: Steps<T>, scheduler: Scheduler = this.host.scheduler): T {
    const task = scheduler.spawn(what, steps, { joined: true });
    while (!task.ended) {
      const reason = this.clock.run({ stop: () => task.ended });
      if (task.ended) break;
      if (reason === 'idle') throw new SimulatorBug(`deadlock: ${this.deadlockReport().join('; ')}`);
      if (reason === 'time-limit' || reason === 'event-limit') throw new LimitReached(what, reason);
    }
    if (task.state === 'failed') throw task.error;
    return task.result as T;
  }

  /** Enumeration, IOMMU, drivers. Time 0 is when this is done. */
  boot(): void {
    if (this.booted) return;
    this.booted = true;
    this.framesAtStart = this.host.frames.inUse;
    this.execute('boot', bootHost(this.host));
    this.clock.run({ untilNs: 0 });
  }

  /** Runs the topology's processes to their end, or to `stopAt`; may be called again to go on from there. */
  run(options: RunOptions = {}): RunEnd {
    try {
      this.boot();
      if (this.end !== undefined && this.end !== 'stopped') return this.end;
      if (!this.begun) this.scenario.begin(this.loaded.topology);
      this.begun = true;
      this.end = this.runEvents(options);
      if (this.end === 'finished' || this.end === 'deadlock') this.finish();
    } catch (error) {
      if (!(error instanceof LimitReached)) throw error;
      this.end = error.limit;
    }
    return this.end;
  }

  /** Ends what is under way and takes the machine down; processes that have not begun never will. */
  takeDown(): void {
    this.begun = true;
    for (const program of this.scenario.unfinished()) program.kill();
    this.run();
  }

  private runEvents({ stopAt, onSlice }: RunOptions): RunEnd {
    const reached = this.stopCondition(stopAt);
    const untilNs = stopAt?.at === 'time' ? stopAt.timeNs : undefined;
    for (;;) {
      const sliceEnd = this.clock.events + SLICE_EVENTS;
      const reason = this.clock.run({ ...(untilNs === undefined ? {} : { untilNs }), stop: () => reached() || this.clock.events >= sliceEnd });
      if (reason === 'time-limit' || reason === 'event-limit') return reason;
      if (reason === 'until') return 'stopped';
      if (reason === 'stopped') {
        if (reached()) return 'stopped';
        onSlice?.();
        continue;
      }
      // processes of code and guests live on when nothing happens any more
      const lives = this.scenario.unfinished().length > 0 || [...this.scenario.guests.values()].some(({ alive }) => alive);
      if (untilNs !== undefined && lives && this.schedulers.every((scheduler) => scheduler.blocked().length === 0)) return 'stopped';
      this.deadlock = this.deadlockReport();
      return this.deadlock.length > 0 ? 'deadlock' : 'finished';
    }
  }

  private stopCondition(stopAt: StopPoint | undefined): () => boolean {
    if (stopAt?.at === 'event') return () => this.clock.events >= stopAt.index;
    if (stopAt?.at === 'before-teardown') {
      this.scenario.pauseBeforeTeardown = true;
      return () => this.scenario.teardownBegun;
    }
    if (stopAt?.at === 'record') {
      const kind = this.trace.kinds.find((candidate) => candidate.name === stopAt.kind);
      return () => kind !== undefined && this.trace.countOf(kind) >= stopAt.count;
    }
    return () => false;
  }

  /** Takes the machine down and balances the books. */
  private finish(): void {
    const { frames, core } = this.host;
    if (this.end === 'finished') {
      for (const program of this.scenario.unfinished()) this.scenario.failures.push(`${program.world.fullName(program.name)}: the run ended before the process did`);
      for (const guest of this.scenario.guests.values()) {
        this.guestStates.push(guest.summary());
        if (guest.state === 'running') this.execute(`shutdown of ${guest.name}`, guest.shutdown());
        else if (guest.alive) this.execute(`end of ${guest.name}`, guest.kill());
      }
      for (const program of this.scenario.unfinished()) this.execute(`exit of ${program.name}`, program.exit(), program.world.scheduler);
      try {
        this.execute('shutdown', shutdownHost(this.host));
      } catch (error) {
        // what a process has left bound keeps a driver from letting go
        if (!isErrno(error)) throw error;
        this.scenario.failures.push(`shutdown: ${error.message}`);
      }
    }
    const { pasids, domains } = core.usage;
    this.leaks = { pasids, pinnedPages: frames.pinnedPages, domains, frames: this.end === 'finished' ? frames.inUse - this.framesAtStart - this.kernelFrames() : 0 };
    this.invariants = [...[this.checkers, ...this.added].flatMap((set) => set.finish()), balance(this.leaks), ...(this.end === 'finished' ? [subscriptionsEnd(this.host.mailbox)] : [])];
  }

  /** Tasks of any kernel that wait for something that never comes, a line each. */
  deadlockReport(): string[] {
    return this.schedulers.flatMap((scheduler) => scheduler.deadlockReport());
  }

  /** Of every kernel that runs. */
  private get schedulers(): Scheduler[] {
    return [this.host.scheduler, ...[...this.scenario.guests.values()].flatMap(({ scheduler }) => (scheduler === undefined ? [] : [scheduler]))];
  }

  /** Frames that belong to the IOMMU driver as long as the kernel runs: queues and root tables. */
  private kernelFrames(): number {
    return this.host.frames.usage().filter(({ owner }) => owner.startsWith('dmar')).reduce((sum, { frames }) => sum + frames, 0);
  }

  summary(): Summary {
    const { topology } = this.loaded;
    const flows = [...this.scenario.flows].map((flow) => flow.summary());
    const counters = countersOf(this.trace);
    const ended = this.end === 'finished' || this.end === 'deadlock';
    const invariants: InvariantSummary[] = [
      ...(ended ? this.invariants : [this.checkers, ...this.added].flatMap((set) => set.summaries())),
      { name: 'no deadlock', status: this.deadlock.length === 0 ? 'ok' : 'violated', checked: 1, violations: this.deadlock },
    ];
    const guests = this.guestStates.length > 0 ? this.guestStates : [...this.scenario.guests.values()].map((guest) => guest.summary());
    const unmet = ended ? unmetExpectations(topology, { flows, guests, counters, log: this.dmesg() }) : [];
    // a flow that was told to fail is judged by `expect`
    const expected = topology.expect.flows ?? {};
    const failed = flows.some((flow) => flow.status === 'failed' && expected[flow.name]?.status !== 'failed');
    const refused = guests.some((guest) => guest.state === 'refused' && topology.expect.guests?.[guest.name] !== 'refused');
    const leaking = Object.values(this.leaks).some((count) => count !== 0);
    const passed = !failed && !refused && unmet.length === 0 && this.scenario.failures.length === 0 && !leaking && invariants.every(({ status }) => status === 'ok');
    return {
      topology: this.name, seed: this.host.settings.seed, end: this.end ?? 'stopped', virtualTimeNs: this.clock.now, events: this.clock.events,
      flows, guests, stepFailures: this.scenario.failures, unmetExpectations: unmet, invariants, counters, leaks: this.leaks, traceHash: this.trace.hash,
      verdict: this.end === 'time-limit' || this.end === 'event-limit' ? 'limit' : passed ? 'pass' : 'fail',
    };
  }

  /** Lines of every kernel's log by time, as dmesg prints them; the host's boot has negative times. A guest's lines start with its name in brackets. */
  dmesg(): string[] {
    const guests = [...this.scenario.guests.values()].flatMap(({ name, logs }) => logs.flatMap(({ lines }) => lines.map((line) => ({ line, prefix: `[${name}] ` }))));
    const all = [...this.host.log.lines.map((line) => ({ line, prefix: '' })), ...guests];
    if (guests.length > 0) all.sort((a, b) => a.line.timeNs - b.line.timeNs);
    return all.map(({ line, prefix }) => `${prefix}${logText(line)}`);
  }

  lspci(options: LspciOptions = {}): string {
    const { pci, drivers } = this.host;
    return lspci(pci.devices, {
      ...options,
      iommuGroupOf: (fn) => this.groupOf(fn),
      driverOf: (fn) => drivers.driverOf(fn as Parameters<typeof drivers.driverOf>[0])?.name,
    });
  }

  private groupOf(fn: unknown): number | undefined {
    const { pci, iommu } = this.host;
    const device = pci.devices.find((candidate) => candidate === fn);
    return device === undefined || iommu === undefined ? undefined : pci.groupOf(device).id;
  }

  /** Table entries that translate an address now; a sentence when the target is unknown. */
  walk(target: WalkTarget): WalkReport | string {
    const [name, device] = target.device.split(':', 2) as [string, string | undefined];
    const guest = device?.includes(':') === true ? undefined : this.scenario.guests.get(name);
    if (guest !== undefined) return walkGuest(this, guest, device, target);
    const mdev = this.loaded.topology.mdevs.find((candidate) => candidate.name === target.device || candidate.uuid === target.device.toLowerCase());
    if (mdev === undefined) return walk(this, target);
    const { passthrough } = this.host;
    const started = passthrough.mdevs.find(mdev.uuid);
    return walkMdev(this, { name: target.device, parent: mdev.parent, pasid: started === undefined ? undefined : passthrough.vfio.pasidOf(started) }, target);
  }

  // --- Inspectable ---

  get deviceNames(): string[] {
    const { guests, mdevs } = this.loaded.topology;
    return [...this.host.devices.models.map((model) => model.name), ...mdevs.map(({ name, uuid }) => name ?? uuid), ...guests.map(({ name }) => name)];
  }

  sourceIdOf(device: string): number | undefined {
    return this.host.devices.models.find((model) => model.name === device || model.bdf === device)?.function.requesterId;
  }

  get processNames(): string[] {
    return [...this.scenario.world.programs.keys()];
  }

  pasidOf(process: string): number | undefined {
    const program = this.scenario.world.programs.get(process);
    for (const device of this.host.pci.devices) {
      const pasid = program === undefined ? NO_PASID : this.host.core.svaGetPasid(device, program.process.mm);
      if (pasid > 0 && pasid < 2 ** 20) return pasid;
    }
    return undefined;
  }

  bufferAddress(process: string, buffer: string): number | undefined {
    return this.scenario.world.programs.get(process)?.addressOf(buffer);
  }

  explainWalk(sourceId: number, pasid: number, page: number, access: number): ReturnType<Inspectable['explainWalk']> {
    const { unit } = this.host;
    if (unit !== undefined) return unit.backEnd.explainWalk(sourceId, pasid, page, access);
    return { steps: [], page, pages: 1, read: true, write: true, execute: true, reason: 0, text: `no IOMMU: ${hexPage(page)} is physical` };
  }

  /** Adds a checker of one's own, which sees the records from now on; its invariant counts like the others. */
  addChecker(checker: Checker): void {
    this.added.push(new CheckerSet(this.trace, [checker]));
  }
}

/** Somebody else's virtual machine lives in real time, and not in ours. */
function refuseExternalGuests({ topology, file }: LoadedTopology): void {
  const at = topology.guests.findIndex(({ external }) => external !== undefined);
  if (at < 0) return;
  const message = `"${topology.guests[at]!.name}" is external: its machine is served and not simulated. vfiosim serve FILE waits for it, vfiosim linux FILE boots a Linux on it`;
  throw new InvalidInput([{ file, path: `guests[${at}].external`, message }]);
}

/** Loads or checks a topology and composes the machine. Throws InvalidInput with every problem. */
export function createMachineSync(source: string | TopologyInput, options: MachineOptions = {}): Machine {
  const loaded = typeof source === 'string' ? loadTopology(source) : checkTopology(source, options.directory);
  return new Machine(loaded, options);
}
