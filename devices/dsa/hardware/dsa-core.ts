/**
 * The accelerator behind its PCI function: state, queues, submission, commands, interrupts. What it needs of the
 * function stands in `FunctionSide`, so that the core can be driven without a bus.
 */
import type { Clock } from '../../../sim/clock.js';
import type { EnqueueResult } from '../../../sim/mmio.js';
import { sleep, WaitQueue, type Scheduler, type Steps } from '../../../sim/task.js';
import type { Trace } from '../../../sim/trace.js';
import { NO_PASID } from '../../../host/pci/dma-port.js';
import type { Timing } from '../../../host/timing.js';
import { OPCAP_VALUE } from '../spec/descriptor.js';
import {
  CMD, CMDSTS, ENGCAP, GENCAP, GRPCAP, INTC_CMD, INTC_HALT_STATE, MSIXPERM, RESET_TYPE_FLR, STATE_ENABLED, STATE_HALT,
  SWERR, WQCAP, WQCFG_SIZE_FIELD, type DsaCapabilityValues, type DsaLayout,
} from '../spec/registers.js';
import type { MemoryAccess } from './access.js';
import { CommandUnit, type CommandOwner } from './commands.js';
import { Engines, type EngineOwner } from './engine.js';
import { Job, type DescriptorReport } from './job.js';
import { Portals, type PortalOwner } from './portals.js';
import { RegisterWindow, type ErrorDetails, type RegisterOwner } from './register-window.js';
import { WorkQueue, WQ_ENABLED, type Group } from './work-queue.js';

/** From a command's write to its effect. */
const COMMAND_NS = 200;

export interface DsaConfig {
  readonly wqs: number;
  readonly engines: number;
  readonly groups: number;
  /** Entries of all queues together. */
  readonly totalWqSize: number;
  /** Log2 of the largest transfer in bytes. */
  readonly maxTransferShift: number;
  /** Log2 of the most descriptors of a batch. */
  readonly maxBatchShift: number;
  readonly readBuffers: number;
  /** Descriptors that one engine works on at a time. */
  readonly descriptorsPerEngine: number;
  readonly blockOnFault: boolean;
  /** MSI-X vectors beside one for each queue and vector 0: for mediated devices that share a queue. */
  readonly mdevVectors: number;
}

/** Sizes of a Sapphire Rapids part: 8 queues, 4 engines, 4 groups, 128 entries. */
export const DEFAULT_DSA_CONFIG: DsaConfig = {
  wqs: 8, engines: 4, groups: 4, totalWqSize: 128, maxTransferShift: 31, maxBatchShift: 10, readBuffers: 32, descriptorsPerEngine: 8, blockOnFault: true,
  mdevVectors: 0,
};

/** What the core asks of its PCI function. */
export interface FunctionSide {
  readonly busMaster: boolean;
  readonly pasidEnabled: boolean;
  /** Privileged Mode Enable of the PASID capability. */
  readonly privilegedAllowed: boolean;
  /** Page requests are enabled with an allocation of 0. */
  readonly pageRequestsStarved: boolean;
  raise(vector: number): void;
  newAccess(): MemoryAccess;
}

export interface DsaCoreOptions {
  readonly name: string;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly timing: Timing;
  readonly trace: Trace;
  readonly config: DsaConfig;
  readonly side: FunctionSide;
  readonly onComplete?: (report: DescriptorReport) => void;
  readonly defects?: ReadonlySet<string>;
}

export class DsaCore implements PortalOwner, EngineOwner, CommandOwner, RegisterOwner {
  readonly registers: RegisterWindow;
  readonly portals: Portals;
  readonly queues: readonly WorkQueue[];
  groups: readonly Group[] = [];
  readonly limits;
  /** Descriptors that found no room in a shared queue. */
  retries = 0;
  private readonly options: DsaCoreOptions;
  private readonly side: FunctionSide;
  private readonly engines: Engines;
  private readonly commands: CommandUnit;
  private readonly finished: WaitQueue;
  private readonly jobs = new Set<Job>();
  private readonly deviceId: number;
  private readonly submitKind;
  private readonly commandKind;
  private readonly errorKind;
  private sequence = 0;
  /** Grows with every reset of the function: a command that began before it has no effect after it. */
  private life = 0;
  private readonly ignoreThreshold: boolean;

  constructor(options: DsaCoreOptions) {
    this.options = options;
    this.side = options.side;
    const { config, trace } = options;
    const defects = options.defects ?? new Set<string>();
    this.limits = {
      groups: config.groups, engines: config.engines, totalSize: config.totalWqSize, readBuffers: config.readBuffers,
      descriptorsPerEngine: config.descriptorsPerEngine,
    };
    this.deviceId = trace.intern(options.name);
    this.submitKind = trace.define('dsa:submit', [['device', 'str'], ['wq', 'dec'], ['opcode', 'hex'], ['pasid', 'dec'], ['size', 'dec'], ['shared', 'bool'], ['sequence', 'dec']]);
    this.commandKind = trace.define('dsa:command', [['device', 'str'], ['command', 'dec'], ['operand', 'hex'], ['error', 'hex']]);
    this.errorKind = trace.define('dsa:sw_error', [['device', 'str'], ['error', 'hex'], ['wq', 'dec'], ['page', 'page']]);
    this.queues = Array.from({ length: config.wqs }, (_, i) => new WorkQueue(i));
    this.registers = new RegisterWindow(layoutOf(config), capabilities(config), this);
    this.portals = new Portals(config.wqs, this);
    this.finished = new WaitQueue(options.scheduler, `descriptors of ${options.name}`);
    this.engines = new Engines({
      clock: options.clock, scheduler: options.scheduler, timing: options.timing, trace, owner: this, finished: this.finished, name: options.name,
      deviceId: this.deviceId, onComplete: options.onComplete, defects,
    });
    this.commands = new CommandUnit(this, defects);
    this.ignoreThreshold = defects.has('dsa.ignore-threshold');
    this.registers.r['CMD']!.onWrite = (lo) => this.command(lo);
  }

  get state(): number {
    return this.registers.r['GENSTS']!.lo & 3;
  }

  set state(state: number) {
    this.registers.r['GENSTS']!.lo = state;
  }

  get busMaster(): boolean {
    return this.side.busMaster;
  }

  get pasidEnabled(): boolean {
    return this.side.pasidEnabled;
  }

  get privilegedAllowed(): boolean {
    return this.side.privilegedAllowed;
  }

  get pageRequestsStarved(): boolean {
    return this.side.pageRequestsStarved;
  }

  /** Descriptors accepted and not ended. */
  get outstanding(): number {
    return this.jobs.size;
  }

  // submission

  submitPosted(wq: number, _limited: boolean, ims: boolean, words: Uint32Array): void {
    const queue = this.queues[wq]!;
    if (!this.accepting(queue)) this.reportError(SWERR.WQ_NOT_ENABLED, { wq });
    else if (!queue.config.dedicated) this.reportError(SWERR.POSTED_TO_SHARED, { wq });
    else if (queue.occupancy >= queue.config.size) this.reportError(SWERR.WQ_FULL, { wq });
    else this.accept(queue, words, queue.config.pasid, queue.config.privileged, ims);
  }

  submitEnqueue(wq: number, limited: boolean, ims: boolean, words: Uint32Array): EnqueueResult {
    const queue = this.queues[wq]!;
    const room = limited && !this.ignoreThreshold ? queue.config.threshold : queue.config.size;
    if (!this.accepting(queue) || queue.config.dedicated || queue.occupancy >= room) {
      this.retries++;
      return 'retry';
    }
    this.accept(queue, words, words[0]! & 0xf_ffff, words[0]! >>> 31 === 1, ims);
    return 'accepted';
  }

  queueLife(wq: number): number {
    return this.queues[wq]!.life;
  }

  portalError(wq: number): void {
    this.reportError(SWERR.PORTAL_ACCESS, { wq });
  }

  private accepting(queue: WorkQueue): boolean {
    return this.state === STATE_ENABLED && queue.accepts;
  }

  private accept(queue: WorkQueue, words: Uint32Array, pasid: number, privileged: boolean, ims: boolean): void {
    const { trace, clock } = this.options;
    const job = new Job(words, queue, { pasid, privileged, ims }, { sequence: ++this.sequence, correlation: trace.nextCorrelation(), now: clock.now });
    this.jobs.add(job);
    queue.push(job);
    trace.record(this.submitKind, job.correlation, this.deviceId, queue.index, job.opcode, pasid, job.size, queue.config.dedicated ? 0 : 1, job.sequence);
    const group = this.groups.find((candidate) => candidate.queues.includes(queue));
    if (group !== undefined) this.engines.kick(group);
  }

  // engines

  newAccess(): MemoryAccess {
    return this.side.newAccess();
  }

  jobEnded(job: Job): void {
    this.jobs.delete(job);
    this.finished.wakeAll();
  }

  before(drain: Job): readonly Job[] {
    return [...this.jobs].filter((job) => job.sequence < drain.sequence && job.wq === drain.wq && (drain.wq.config.dedicated || job.pasid === drain.pasid));
  }

  handleAllowed(handle: number, job: Job): boolean {
    const entry = this.registers.r[`MSIXPERM${handle}`];
    if (entry === undefined) return false;
    const words = [entry.lo];
    if (MSIXPERM.f.Ignore.get(words) === 1) return true;
    return MSIXPERM.f.PasidEn.get(words) === 1 ? job.pasid === MSIXPERM.f.Pasid.get(words) : job.pasid === NO_PASID;
  }

  completionInterrupt(handle: number): void {
    this.side.raise(handle);
  }

  reportError(error: number, details: ErrorDetails): void {
    const { trace } = this.options;
    trace.record(this.errorKind, details.job?.correlation ?? 0, this.deviceId, error, details.job?.wq.index ?? details.wq ?? 0, details.page ?? 0);
    this.registers.reportError(error, details);
  }

  // registers

  queueInUse(wq: number): boolean {
    return this.queues[wq]!.state === WQ_ENABLED;
  }

  queueStatus(wq: number): number {
    const queue = this.queues[wq]!;
    return (queue.occupancy | (queue.state << 30)) >>> 0;
  }

  interrupt(): void {
    this.side.raise(0);
  }

  resetRegisters(): void {
    const status = this.registers.r['CMDSTS']!.lo;
    this.registers.reset();
    this.registers.r['CMDSTS']!.lo = status;
  }

  // commands

  private command(word: number): void {
    const { registers } = this;
    const status = registers.r['CMDSTS']!;
    const words = [word];
    if (CMDSTS.f.Active.get([status.lo]) === 1) {
      this.reportError(SWERR.CMD_REG, {});
      return;
    }
    if (this.state === STATE_HALT) return;
    status.lo = 0x8000_0000;
    const command = CMD.f.Cmd.get(words), operand = CMD.f.Operand.get(words);
    this.options.scheduler.spawn(`${this.options.name} command ${command}`, this.runCommand(command, operand, CMD.f.IntReq.get(words) === 1, this.life), { daemon: true });
  }

  private *runCommand(command: number, operand: number, interrupt: boolean, life: number): Steps {
    yield* sleep(this.options.clock, COMMAND_NS);
    if (life !== this.life) return;
    const error = yield* this.commands.execute(command, operand);
    if (life !== this.life) return;
    this.options.trace.record(this.commandKind, 0, this.deviceId, command, operand, error);
    this.registers.r['CMDSTS']!.lo = error;
    if (interrupt) this.registers.cause(INTC_CMD);
  }

  *drain(selected: (job: Job) => boolean): Steps {
    const waiting = [...this.jobs].filter(selected);
    yield* this.finished.until(() => waiting.every((job) => job.ended));
  }

  *abort(selected: (job: Job) => boolean): Steps {
    this.cutOff(selected);
    yield* this.drain(selected);
  }

  /** Waiting descriptors are dropped now; those in progress end at their next step. */
  private cutOff(selected: (job: Job) => boolean): void {
    for (const queue of this.queues) {
      for (const job of queue.remove(selected)) {
        this.engines.discard(job);
        this.jobs.delete(job);
      }
    }
    for (const job of this.jobs) if (selected(job)) job.aborted = true;
    this.finished.wakeAll();
  }

  // the function

  /** Function-level reset or removal: everything stops now, nothing is reported. */
  functionReset(): void {
    this.life++;
    for (const queue of this.queues) queue.closing = true;
    this.cutOff(() => true);
    for (const queue of this.queues) queue.turnOff();
    this.groups = [];
    this.registers.reset();
  }

  /** Bus mastering went off while the device was enabled: it halts until a function-level reset. */
  busMasterLost(): void {
    if (this.state !== STATE_ENABLED) return;
    this.cutOff(() => true);
    this.reportError(SWERR.PCI_CFG, {});
    this.registers.r['GENSTS']!.lo = STATE_HALT | (RESET_TYPE_FLR << 2);
    if ((this.registers.r['GENCTRL']!.lo & 2) !== 0) this.registers.cause(INTC_HALT_STATE);
  }
}

export function layoutOf(config: DsaConfig): Required<DsaLayout> {
  return { wqs: config.wqs, groups: config.groups, vectors: config.wqs + 1 + config.mdevVectors };
}

/** Capability registers of a configuration. */
export function capabilities(config: DsaConfig): DsaCapabilityValues {
  const words = (encoded: Uint32Array): bigint => BigInt(encoded[0]!) | (BigInt(encoded[1] ?? 0) << 32n);
  return {
    gencap: words(GENCAP.encode({
      BlockOnFault: config.blockOnFault ? 1 : 0, OverlapCopy: 1, CmdCap: 1, MaxXferShift: config.maxTransferShift, MaxBatchShift: config.maxBatchShift, ConfigEn: 1,
    })),
    wqcap: words(WQCAP.encode({
      TotalWqSize: config.totalWqSize, NumWqs: config.wqs, WqcfgSize: WQCFG_SIZE_FIELD, SharedMode: 1, DedicatedMode: 1, Priority: 1, Occupancy: 1,
    })),
    grpcap: words(GRPCAP.encode({ NumGroups: config.groups, TotalRdbufs: config.readBuffers })),
    engcap: words(ENGCAP.encode({ NumEngines: config.engines })),
    opcap: OPCAP_VALUE,
  };
}

