/**
 * The controller behind its PCI function: enabling, shutting down and resetting (NVMe 1.4 sections 3.1.5, 7.3, 7.6), fetching
 * commands round robin, posting completions, interrupts, asynchronous events. Commands are tasks of their own: one whose
 * DMA is held holds up nothing but itself. What it needs of the function stands in `NvmeFunctionSide`.
 * A queue entry that cannot be read or written is fatal (CSTS.CFS), as in QEMU; while bus mastering is off nothing is
 * read or posted, and goes on when it is on again. Left out: weighted round robin, urgent priority, NVM subsystem reset.
 */
import { load32 } from '../../../sim/little-endian.js';
import { sleep, WaitQueue, type Steps } from '../../../sim/task.js';
import type { TraceKind } from '../../../sim/trace.js';
import { DNR, DW10, DW11, encodeCompletion, EVENT, IO, STATUS, STATUS_MASK } from '../spec/commands.js';
import { LOG } from '../spec/logs.js';
import {
  AQA, CAP, CC, CC_EN, CQE_SIZE, CSS_NVM, CSTS_CFS, CSTS_RDY, CSTS_SHST, CSTS_SHST_COMPLETE, CSTS_SHST_OCCURRING, SHN_ABRUPT, SQE_SIZE,
} from '../spec/registers.js';
import { AdminUnit } from './admin.js';
import { AsyncEvents } from './async-events.js';
import type { NvmeConfig, NvmeControllerOptions } from './controller-options.js';
import { Features } from './features.js';
import { IoUnit } from './io.js';
import { Logs } from './logs.js';
import { Command, CompletionQueue, newWords, placeOf, SubmissionQueue, type QueuePlace } from './queues.js';
import { NvmeRegisters } from './register-window.js';
import { FORGOTTEN, Transfer } from './transfer.js';

/** CAP.TO: 7.5 s. CAP.MPSMAX: 64 KiB. */
const TIMEOUT = 15;
const MPS_MAX = 4;

export class NvmeController {
  readonly registers: NvmeRegisters;
  readonly options: NvmeControllerOptions;
  readonly config: NvmeConfig;
  readonly logs = new Logs();
  features: Features;
  /** By identifier; 0 are the admin queues. */
  readonly sqs: (SubmissionQueue | undefined)[] = [];
  readonly cqs: (CompletionQueue | undefined)[] = [];
  /** Woken when a command has ended and when everything is forgotten. */
  readonly ended: WaitQueue;
  /** Grows with every reset: what began before has no effect after. */
  life = 0;
  readonly completionBeforeData: boolean;
  readonly events = new AsyncEvents((command, status) => this.complete(command, status));
  private readonly admin: AdminUnit;
  private readonly io: IoUnit;
  private readonly kinds: { state: TraceKind; fetch: TraceKind; complete: TraceKind };
  private readonly deviceId: number;
  private readonly readyClearsEarly: boolean;
  /** Tasks that may have requests under way. */
  private working = 0;
  private readonly quiet: WaitQueue;
  private readonly mastering: WaitQueue;
  private cc = 0;
  private running = false;
  private resetting = false;
  private changing = false;
  private shuttingDown = false;
  /** The life in which a shutdown waits for commands: software that asks again and again gets one. */
  private endsCommands = -1;
  private picking = false;
  private next = 0;
  private pageBytes = 4096;
  /** When the medium has done what it was given. */
  private mediumFreeNs = 0;

  constructor(options: NvmeControllerOptions) {
    const { name, scheduler, trace, config } = options;
    this.options = options;
    this.config = config;
    this.completionBeforeData = options.defects?.has('nvme.completion-before-data') ?? false;
    this.readyClearsEarly = options.defects?.has('nvme.ready-clears-early') ?? false;
    this.features = new Features(config.ioQueues);
    this.ended = new WaitQueue(scheduler, `commands of ${name}`);
    this.quiet = new WaitQueue(scheduler, `requests of ${name}`);
    this.mastering = new WaitQueue(scheduler, `bus mastering of ${name}`);
    this.deviceId = trace.intern(name);
    this.kinds = {
      state: trace.define('nvme:state', [['device', 'str'], ['csts', 'hex'], ['cc', 'hex']]),
      fetch: trace.define('nvme:fetch', [['device', 'str'], ['sqid', 'dec'], ['cid', 'dec'], ['opcode', 'hex'], ['nsid', 'hex']]),
      complete: trace.define('nvme:complete', [['device', 'str'], ['sqid', 'dec'], ['cid', 'dec'], ['status', 'hex'], ['bytes', 'dec']]),
    };
    this.registers = new NvmeRegisters(config, { queueEntries: config.queueEntries, timeout: TIMEOUT, doorbellStride: config.doorbellStride, mpsMax: MPS_MAX }, this);
    const { r } = this.registers;
    r.CC.onWrite = () => this.writeCc();
    r.INTMS.onWrite = (lo) => this.mask(r.INTMS.lo | lo);
    r.INTMC.onWrite = (lo) => this.mask(r.INTMS.lo & ~lo);
    this.admin = new AdminUnit(this);
    this.io = new IoUnit(this);
  }

  /** Commands read and not completed, parked ones included. */
  get outstanding(): number {
    return this.sqs.reduce((sum, sq) => sum + (sq?.commands.size ?? 0), 0);
  }

  get ready(): boolean {
    return (this.registers.r.CSTS.lo & CSTS_RDY) !== 0;
  }

  /** Function level reset, or the function is gone: as after power-on, but for the medium and its counters. */
  functionReset(): void {
    this.forget();
    this.registers.reset();
    this.cc = 0;
    this.running = this.resetting = this.shuttingDown = false;
    this.trace();
  }

  /** Requests can leave the function again, or not any more. */
  masterChanged(): void {
    this.mastering.wakeAll();
    this.kick();
  }

  // --- enabling -------------------------------------------------------------------------------------------------

  private writeCc(): void {
    const { r } = this.registers;
    const cc = r.CC.lo, before = this.cc;
    this.cc = cc;
    const shn = CC.f.SHN.get([cc]), shnBefore = CC.f.SHN.get([before]);
    if ((cc & CC_EN) === 0 && (before & CC_EN) !== 0) {
      // a controller reset: every register but AQA, ASQ, ACQ begins anew
      this.forget();
      this.cc = r.CC.lo = 0;
      this.mask(0);
      this.resetting = true;
    } else if (shn !== 0 && shnBefore === 0) this.shutdown(shn === SHN_ABRUPT);
    else if (shn === 0 && shnBefore !== 0) r.CSTS.lo &= ~CSTS_SHST;
    this.trace();
    if (!this.changing && (this.resetting || ((this.cc & CC_EN) !== 0 && !this.running))) {
      this.changing = true;
      this.options.scheduler.spawn(`${this.options.name} enable`, this.change(), { daemon: true });
    }
  }

  /** Follows CC.EN until it says what is. */
  private *change(): Steps {
    try {
      for (;;) {
        if (this.resetting) yield* this.stop();
        else if ((this.cc & CC_EN) !== 0 && !this.running) yield* this.start();
        else return;
      }
    } finally {
      this.changing = false;
    }
  }

  private *stop(): Steps {
    const { life } = this;
    if (!this.readyClearsEarly) yield* this.quiet.until(() => this.working === 0 || life !== this.life);
    yield* sleep(this.options.clock, this.config.enableNs);
    if (life !== this.life) return;
    this.resetting = this.running = this.shuttingDown = false;
    this.registers.r.CSTS.lo = 0;
    this.trace();
  }

  private *start(): Steps {
    const { life } = this, { r } = this.registers;
    // what a function level reset cut off must have ended
    yield* this.quiet.until(() => this.working === 0 || life !== this.life);
    yield* sleep(this.options.clock, this.config.enableNs);
    if (life !== this.life || (this.cc & CC_EN) === 0) return;
    this.running = true;
    this.shuttingDown = CC.f.SHN.get([this.cc]) !== 0;
    if (!this.acceptable()) r.CSTS.lo = CSTS_CFS;
    else {
      this.pageBytes = 4096 << CC.f.MPS.get([this.cc]);
      const aqa = [r.AQA.lo];
      const cq = this.newCompletionQueue(0, placeOf(r.ACQ.lo, r.ACQ.hi, AQA.f.ACQS.get(aqa) + 1), 0, true);
      this.sqs[0] = new SubmissionQueue(0, placeOf(r.ASQ.lo, r.ASQ.hi, AQA.f.ASQS.get(aqa) + 1), cq);
      r.CSTS.lo = (r.CSTS.lo & CSTS_SHST) | CSTS_RDY;
    }
    this.trace();
  }

  /** What CC and the admin queues' registers must say before the controller becomes ready. */
  private acceptable(): boolean {
    const { r } = this.registers;
    const cc = [this.cc], aqa = [r.AQA.lo], mps = CC.f.MPS.get(cc);
    const misaligned = (lo: number): boolean => lo % (4096 << mps) !== 0;
    if (CC.f.CSS.get(cc) !== 0 || (CAP.f.CSS.get([r.CAP.lo, r.CAP.hi]) & CSS_NVM) === 0) return false;
    if (mps > MPS_MAX || CC.f.AMS.get(cc) !== 0) return false;
    if (AQA.f.ASQS.get(aqa) === 0 || AQA.f.ACQS.get(aqa) === 0) return false;
    if ((r.ASQ.lo === 0 && r.ASQ.hi === 0) || (r.ACQ.lo === 0 && r.ACQ.hi === 0)) return false;
    return !misaligned(r.ASQ.lo) && !misaligned(r.ACQ.lo);
  }

  private shutdown(abrupt: boolean): void {
    const { CSTS } = this.registers.r;
    CSTS.lo = (CSTS.lo & ~CSTS_SHST) | CSTS_SHST_OCCURRING;
    this.shuttingDown = true;
    if (!abrupt && this.endsCommands === this.life) return;
    if (!abrupt) this.endsCommands = this.life;
    this.options.scheduler.spawn(`${this.options.name} shutdown`, this.finishShutdown(this.life, abrupt), { daemon: true });
  }

  /** Commands under way end unless it is abrupt; then the medium is flushed. */
  private *finishShutdown(life: number, abrupt: boolean): Steps {
    if (!abrupt) {
      yield* this.quiet.until(() => this.working === 0 || life !== this.life);
      if (this.endsCommands === life) this.endsCommands = -1;
    }
    yield* sleep(this.options.clock, this.config.flushNs);
    if (life !== this.life) return;
    this.options.medium.flush();
    const { CSTS } = this.registers.r;
    CSTS.lo = (CSTS.lo & ~CSTS_SHST) | CSTS_SHST_COMPLETE;
    this.trace();
  }

  /** No command and no queue any more; tasks notice when they wake. */
  private forget(): void {
    this.life++;
    for (const sq of this.sqs) {
      for (const command of sq?.commands.values() ?? []) {
        command.ended = true;
        command.signal.wakeAll();
      }
    }
    for (const cq of this.cqs) cq?.room.wakeAll();
    this.sqs.length = this.cqs.length = 0;
    this.events.forget();
    this.features = new Features(this.config.ioQueues);
    this.mastering.wakeAll();
    this.ended.wakeAll();
    this.quiet.wakeAll();
    this.updatePin();
  }

  /** Nothing works until the controller is reset. */
  private fatal(): void {
    this.registers.r.CSTS.lo |= CSTS_CFS;
    this.trace();
  }

  private get fetches(): boolean {
    return (this.registers.r.CSTS.lo & (CSTS_RDY | CSTS_CFS)) === CSTS_RDY && !this.shuttingDown && !this.resetting && this.options.side.reachable;
  }

  // --- doorbells and commands -----------------------------------------------------------------------------------

  doorbell(queue: number, completion: boolean, value: number): void {
    if (!this.ready) return;
    const q = completion ? this.cqs[queue] : this.sqs[queue];
    if (q === undefined) return this.events.happened(EVENT.ERROR, EVENT.INVALID_DOORBELL, LOG.ERROR);
    if (value >= q.size) return this.events.happened(EVENT.ERROR, EVENT.INVALID_DOORBELL_VALUE, LOG.ERROR);
    if (q instanceof SubmissionQueue) {
      q.tail = value;
      this.kick();
    } else {
      q.head = value;
      q.room.wakeAll();
      this.updatePin();
    }
  }

  /** Takes up commands as long as there are any. */
  private kick(): void {
    if (this.picking) return;
    this.picking = true;
    this.options.clock.post(0, () => this.pick());
  }

  /** The next queue in turn with an entry and room for it: one command, then the next queue. */
  private pick(): void {
    const queues = this.sqs.length;
    for (let i = 0; i < queues && this.fetches; i++) {
      const sq = this.sqs[(this.next + i) % queues];
      if (sq === undefined || sq.fetching || sq.deleting || sq.head === sq.tail || sq.inFlight >= this.config.commandsPerQueue) continue;
      this.next = (sq.id + 1) % queues;
      sq.fetching = true;
      sq.inFlight++;
      this.options.scheduler.spawn(`${this.options.name} queue ${sq.id}`, this.counted(this.serve(sq, this.life)), { daemon: true });
      this.options.clock.post(this.config.commandNs, () => this.pick());
      return;
    }
    this.picking = false;
  }

  private *counted(steps: Steps): Steps {
    this.working++;
    try {
      yield* steps;
    } finally {
      if (--this.working === 0) this.quiet.wakeAll();
    }
  }

  private *serve(sq: SubmissionQueue, life: number): Steps {
    const access = this.options.side.access(), { clock } = this.options;
    const bytes = new Uint8Array(SQE_SIZE), byte = sq.head * SQE_SIZE;
    const moved = yield* access.read(sq.page + Math.floor(byte / 4096), byte % 4096, bytes, 0, SQE_SIZE);
    if (life === this.life && moved === 'done') yield* sleep(clock, access.costNs);
    if (life !== this.life) return;
    sq.fetching = false;
    if (moved !== 'done' || sq.deleting) {
      sq.inFlight--;
      if (moved === 'error') this.fatal();
      this.ended.wakeAll();
      if (moved === 'revoked' && this.fetches) this.kick();
      return;
    }
    sq.head = (sq.head + 1) % sq.size;
    this.kick();
    const words = newWords();
    for (let i = 0; i < words.length; i++) words[i] = load32(bytes, 4 * i);
    const command = new Command(sq, words, this.options.scheduler);
    this.options.trace.record(this.kinds.fetch, 0, this.deviceId, sq.id, command.cid, command.opcode, command.nsid);
    const known = sq.commands.has(command.cid);
    if (!known) sq.commands.set(command.cid, command);
    const status = known ? STATUS.CID_CONFLICT | DNR : yield* sq.id === 0 ? this.admin.execute(command, life) : this.io.execute(command, life);
    if (life !== this.life || status === FORGOTTEN) return;
    if (command.parked) {
      // it takes no place in the queue's share of commands
      sq.inFlight--;
      this.events.deliver();
    } else this.complete(command, command.cancelled === 0 ? status : command.cancelled);
  }

  /** A transfer of this command's data. */
  transfer(command: Command, life: number): Transfer {
    return new Transfer(this.options.side.access(), command.words, this.pageBytes, () => life === this.life);
  }

  /** Lets a transfer's time pass. False: the command is forgotten. */
  *pay(transfer: Transfer, life: number): Steps<boolean> {
    const costNs = transfer.takeCostNs();
    if (costNs > 0) yield* sleep(this.options.clock, costNs);
    return life === this.life;
  }

  /** The command is at the medium, behind what others have given to it. False: it was taken back, or is forgotten. */
  *atMedium(command: Command, latencyNs: number, sizeBytes: number, life: number): Steps<boolean> {
    const { now } = this.options.clock;
    this.mediumFreeNs = Math.max(now, this.mediumFreeNs) + sizeBytes / this.config.bytesPerNs;
    command.waiting = true;
    yield* command.signal.untilOrTimeout(() => command.cancelled !== 0 || life !== this.life, Math.ceil(this.mediumFreeNs - now + latencyNs));
    command.waiting = false;
    return command.cancelled === 0 && life === this.life;
  }

  // --- completions ----------------------------------------------------------------------------------------------

  /** @param status with DNR, without phase */
  complete(command: Command, status: number): void {
    const { sq } = command, { completions: cq } = sq;
    this.options.trace.record(this.kinds.complete, 0, this.deviceId, sq.id, command.cid, status & STATUS_MASK, command.bytes);
    if (status !== STATUS.SUCCESS) this.noteError(command, status);
    cq.backlog.push({ command, status });
    if (cq.posting) return;
    cq.posting = true;
    this.options.scheduler.spawn(`${this.options.name} completions ${cq.id}`, this.counted(this.post(cq, this.life)), { daemon: true });
  }

  private noteError(command: Command, status: number): void {
    const { words, sq, opcode } = command;
    const blocks = sq.id !== 0 && opcode !== IO.FLUSH && opcode !== IO.DSM;
    this.logs.noteError({ sqid: sq.id, cid: command.cid, status, nsid: command.nsid, lba: blocks ? words[DW11]! * 0x1_0000_0000 + words[DW10]! : 0 });
  }

  /** Writes completions in order, as the queue has room; each interrupts. */
  private *post(cq: CompletionQueue, life: number): Steps {
    const access = this.options.side.access(), bytes = new Uint8Array(CQE_SIZE), { side } = this.options;
    while (cq.backlog.length > 0) {
      if (cq.full) yield* cq.room.until(() => !cq.full || life !== this.life);
      if (life === this.life && !side.reachable) yield* this.mastering.until(() => side.reachable || life !== this.life);
      if (life !== this.life) return;
      const { command, status } = cq.backlog[0]!, { sq } = command;
      encodeCompletion(bytes, { result: command.result, sqHead: sq.head, sqId: sq.id, cid: command.cid, status, phase: cq.phase });
      const byte = cq.tail * CQE_SIZE;
      const moved = yield* access.write(cq.page + Math.floor(byte / 4096), byte % 4096, bytes, 0, CQE_SIZE);
      if (life !== this.life) return;
      if (moved === 'error') return this.fatal();
      if (moved === 'revoked') continue;
      cq.backlog.shift();
      cq.advance();
      this.end(command);
      yield* sleep(this.options.clock, access.costNs);
      if (life !== this.life) return;
      if (cq.interrupts) this.interrupt(cq);
    }
    cq.posting = false;
  }

  private end(command: Command): void {
    const { sq } = command;
    if (sq.commands.get(command.cid) === command) sq.commands.delete(command.cid);
    if (!command.parked) sq.inFlight--;
    command.ended = true;
    this.ended.wakeAll();
    this.kick();
  }

  // --- interrupts -----------------------------------------------------------------------------------------------

  private interrupt(cq: CompletionQueue): void {
    if (this.options.side.messageSignalled) this.options.side.raise(cq.vector);
    else this.updatePin();
  }

  /** INTMS and INTMC read as the mask. It holds for the pin; messages have masks of their own. */
  private mask(bits: number): void {
    const { INTMS, INTMC } = this.registers.r;
    INTMS.lo = INTMC.lo = bits;
    this.updatePin();
  }

  /** The pin is high while an unmasked queue that interrupts has entries, and no messages are enabled. */
  updatePin(): void {
    const { side } = this.options, mask = this.registers.r.INTMS.lo;
    side.pin(!side.messageSignalled && this.cqs.some((cq) => cq !== undefined && cq.interrupts && cq.tail !== cq.head && ((mask >>> (cq.vector & 31)) & 1) === 0));
  }

  // --- queues ---------------------------------------------------------------------------------------------------

  newCompletionQueue(id: number, place: QueuePlace, vector: number, interrupts: boolean): CompletionQueue {
    const { scheduler, name } = this.options;
    const cq = new CompletionQueue(id, place, { vector, interrupts, scheduler, name });
    this.cqs[id] = cq;
    return cq;
  }

  /** Nobody completes there any more. */
  dropCompletionQueue(cq: CompletionQueue): void {
    this.cqs[cq.id] = undefined;
    this.updatePin();
  }

  /** Memory page size, CC.MPS. */
  get memoryPageBytes(): number {
    return this.pageBytes;
  }

  get controllerConfiguration(): number {
    return this.cc;
  }

  get messageSignalled(): boolean {
    return this.options.side.messageSignalled;
  }

  private trace(): void {
    this.options.trace.record(this.kinds.state, 0, this.deviceId, this.registers.r.CSTS.lo, this.cc);
  }
}
