/**
 * Queued invalidation, the software side (VT-d 4.1, sections 6.5.2 and 6.5.4): a ring of 256 descriptors, each
 * submission ended by a wait descriptor whose status word the submitter polls. Errors are recovered as Linux does
 * (drivers/iommu/intel/dmar.c, qi_check_fault): a bad descriptor is replaced by a copy of the wait (E40), a
 * device-TLB time-out aborts the waits that were under way, which are submitted again unless the device is gone (E39).
 *
 * Differs from Linux in three ways, all on the safe side: a bad descriptor is looked for in the whole submission, not
 * only at its start; after a bad descriptor the slots are reused only when the wait has completed; and what a time-out
 * ends is decided for the submission that holds the device's invalidation (retried even if its own wait completes,
 * given up only if its own device is gone), while others are just submitted again.
 */
import { assert } from '../../../sim/assert.js';
import { Errno } from '../../../sim/errno.js';
import { hex } from '../../../sim/address.js';
import { WaitQueue, sleep, type Scheduler, type Steps } from '../../../sim/task.js';
import type { Clock } from '../../../sim/clock.js';
import type { Mmio } from '../../../sim/mmio.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { Trace, TraceKind } from '../../../sim/trace.js';
import type { FrameSource } from '../../../host/frame-source.js';
import type { KernelLog } from '../../../host/kernel-log.js';
import { FSTS_ICE, FSTS_IQE, FSTS_ITE, IQA, IQERCD, REG } from '../spec/registers.js';
import type { VtdCapabilities } from '../spec/capabilities.js';
import { DESCRIPTOR_WORDS, DescriptorBatch, STATUS_ABORTED, STATUS_DONE, STATUS_FREE, STATUS_IN_USE, waitWords } from './descriptor-batch.js';

export const QUEUE_LENGTH = 256;
/** Most descriptors of one posted submission: leaves room for others. */
const POSTED_BATCH = 128;
/** Polls at the full rate before the interval grows, and how far it grows. */
const FAST_POLLS = 64;
const SLOWEST_POLL_FACTOR = 128;

const TYPE_NAMES: readonly string[] = [
  'UNKNOWN', 'Context-cache Invalidation', 'IOTLB Invalidation', 'Device-TLB Invalidation', 'Interrupt Entry Cache Invalidation',
  'Invalidation Wait', 'PASID-based IOTLB Invalidation', 'PASID-cache Invalidation', 'PASID-based Device-TLB Invalidation',
  'Page Group Response',
];

export interface InvalidationQueueOptions {
  readonly name: string;
  readonly memory: PhysicalMemory;
  readonly frames: FrameSource;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly registers: Mmio;
  readonly capabilities: VtdCapabilities;
  readonly pollNs: number;
  readonly log: KernelLog;
  readonly trace: Trace;
  /** False when the function with that requester id is gone: nobody will complete its invalidations. */
  readonly devicePresent: (sourceId: number) => boolean;
}

interface Submission {
  readonly batch: DescriptorBatch;
  readonly first: number;
  readonly count: number;
  readonly waitIndex: number;
  invalid: boolean;
  /** Requester id of the device whose TLB did not answer, -1 none. */
  timedOut: number;
}

type Outcome = 'done' | 'again' | 'invalid' | 'gone';

export class InvalidationQueue {
  /** What IQA holds: address, size, and descriptor width. */
  readonly iqaLo: number;
  readonly iqaHi: number;
  /** Descriptors that went in, waits included. */
  submitted = 0;
  private readonly options: InvalidationQueueOptions;
  private readonly registers: Mmio;
  private readonly memory: PhysicalMemory;
  private readonly base: number;
  private readonly statusBase: number;
  /** Log2 of the bytes of a descriptor. */
  private readonly shift: 4 | 5;
  private readonly frameOrder: number;
  private readonly space: WaitQueue;
  private readonly inFlight: Submission[] = [];
  private freeHead = 0;
  private freeTail = 0;
  private freeCount = QUEUE_LENGTH;
  /** A descriptor as software hands it over; hardware's record of the same bytes is the one that is hashed. */
  private readonly submitKind: TraceKind;
  /** First word of the closing wait descriptor, without and with PD. */
  private readonly waitLo: number;
  private readonly drainingWaitLo: number;
  private readonly nameId: number;

  private readonly postedBatch: DescriptorBatch;
  private posted = new Int32Array(4 * POSTED_BATCH);
  private postedCount = 0;
  /** Serial numbers of the last posted and the last completed descriptor. */
  private postedSerial = 0;
  private completedSerial = 0;
  /** What to do when the descriptors up to a serial number have been executed, oldest first. */
  private readonly postedEnds: { readonly serial: number; readonly run: () => void }[] = [];
  private readonly postedWork: WaitQueue;
  private readonly postedDone: WaitQueue;

  /** ENOMEM when the frames for queue and status words are not there. */
  constructor(options: InvalidationQueueOptions) {
    this.options = options;
    this.registers = options.registers;
    this.memory = options.memory;
    // 256-bit descriptors whenever the unit has scalable mode, also when it is not used
    const wide = options.capabilities.scalable;
    this.shift = wide ? 5 : 4;
    this.frameOrder = wide ? 1 : 0;
    this.base = options.frames.alloc(`${options.name} invalidation queue`, this.frameOrder);
    this.statusBase = options.frames.alloc(`${options.name} invalidation status`);
    const iqa = IQA.encode({ QS: this.frameOrder, DW: wide ? 1 : 0, IQA: this.base });
    this.iqaLo = iqa[0]!;
    this.iqaHi = iqa[1]!;
    this.space = new WaitQueue(options.scheduler, `room in the invalidation queue of ${options.name}`);
    this.postedWork = new WaitQueue(options.scheduler, `descriptors posted to ${options.name}`);
    this.postedDone = new WaitQueue(options.scheduler, `posted descriptors of ${options.name} to complete`);
    this.postedBatch = this.batch();
    this.submitKind = options.trace.define('intel_iommu:qi_submit', [
      ['iommu', 'str'], ['type', 'dec'], ['qw0_hi', 'hex'], ['qw0_lo', 'hex'], ['qw1_hi', 'hex'], ['qw1_lo', 'hex'],
    ], { hashed: false });
    this.waitLo = waitWords(0, false)[0]!;
    this.drainingWaitLo = waitWords(0, true)[0]!;
    this.nameId = options.trace.intern(options.name);
  }

  /** The ring starts empty: the caller programs IQT, IQA and QIE. */
  reset(): void {
    this.freeHead = this.freeTail = 0;
    this.freeCount = QUEUE_LENGTH;
    this.memory.fill(this.base, 0, QUEUE_LENGTH << this.shift);
    for (let i = 0; i < QUEUE_LENGTH; i++) this.setStatus(i, STATUS_FREE);
  }

  /** Starts the thread that carries posted descriptors. */
  startPosting(): void {
    this.options.scheduler.spawn(`${this.options.name}-qi`, this.carryPosted(), { daemon: true });
  }

  batch(): DescriptorBatch {
    return new DescriptorBatch(this.options.capabilities);
  }

  /**
   * Puts the batch into the queue and waits until hardware has executed it. Many tasks may do so at once.
   * EINVAL: hardware refused a descriptor; the queue goes on (E40). ETIMEDOUT: a device TLB did not answer and its
   * device is gone (E39).
   * @param drain the closing wait also drains page requests (PD, section 7.10)
   * @param placed the batch, when it is in the queue already
   */
  *submitSync(batch: DescriptorBatch, drain = false, placed?: Submission): Steps {
    assert(batch.count + 2 <= QUEUE_LENGTH, `${batch.count} descriptors do not fit the invalidation queue`);
    for (;;) {
      if (placed === undefined && !this.fits(batch)) yield* this.space.until(() => this.fits(batch));
      const submission = placed ?? this.place(batch, drain);
      placed = undefined;
      const outcome = yield* this.wait(submission);
      this.reclaim(submission);
      if (outcome === 'done') return;
      if (outcome === 'invalid') throw new Errno('EINVAL', `${this.options.name} refused an invalidation descriptor`);
      if (outcome === 'gone') {
        throw new Errno('ETIMEDOUT', `${this.options.name}: the device ${hex(submission.timedOut)} is gone and completes no invalidation`);
      }
    }
  }

  /** Like `submitSync`; what hardware refuses is in the log, and the caller goes on, as the kernel does. */
  *invalidate(batch: DescriptorBatch, drain = false, placed?: Submission): Steps {
    if (batch.count === 0) return;
    try {
      yield* this.submitSync(batch, drain, placed);
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
      this.options.log.log('warn', `DMAR: ${this.options.name}: invalidation failed (${error.code})`);
    }
  }

  /** Queues one descriptor from code that must not sleep; a thread submits what has gathered, and waits. */
  post(word0: number, word1: number, word2: number, word3: number): void {
    if (this.postedCount * 4 === this.posted.length) {
      const larger = new Int32Array(this.posted.length * 2);
      larger.set(this.posted);
      this.posted = larger;
    }
    const at = this.postedCount++ * 4;
    this.posted[at] = word0;
    this.posted[at + 1] = word1;
    this.posted[at + 2] = word2;
    this.posted[at + 3] = word3;
    this.postedSerial++;
    this.postedWork.wakeAll();
  }

  /** Posts every descriptor of a batch. */
  postAll(batch: DescriptorBatch): void {
    const { words } = batch;
    for (let at = 0; at < batch.count * DESCRIPTOR_WORDS; at += DESCRIPTOR_WORDS) this.post(words[at]!, words[at + 1]!, words[at + 2]!, words[at + 3]!);
  }

  /** Waits until everything posted so far has been executed. */
  *flushPosted(): Steps {
    const serial = this.postedSerial;
    yield* this.postedDone.until(() => this.completedSerial >= serial);
  }

  /** Calls `run` when everything posted so far has been executed; for code that must not sleep. */
  whenPostedDone(run: () => void): void {
    if (this.completedSerial === this.postedSerial) run();
    else this.postedEnds.push({ serial: this.postedSerial, run });
  }

  private *carryPosted(): Steps {
    for (;;) {
      while (this.postedCount === 0) yield this.postedWork;
      const count = Math.min(this.postedCount, POSTED_BATCH);
      const batch = this.postedBatch.clear();
      const posted = this.posted;
      for (let i = 0; i < count; i++) batch.raw(posted[4 * i]!, posted[4 * i + 1]!, posted[4 * i + 2]!, posted[4 * i + 3]!);
      if (this.postedCount > count) posted.copyWithin(0, count * 4, this.postedCount * 4);
      this.postedCount -= count;
      // hardware has mostly executed responses before the write of its tail returns
      const placed = this.fits(batch) ? this.place(batch, false) : undefined;
      if (placed !== undefined && this.status(placed.waitIndex) === STATUS_DONE && this.outcome(placed, STATUS_DONE) === 'done') this.reclaim(placed);
      else yield* this.invalidate(batch, false, placed);
      this.completedSerial += count;
      while (this.postedEnds.length > 0 && this.postedEnds[0]!.serial <= this.completedSerial) this.postedEnds.shift()!.run();
      this.postedDone.wakeAll();
    }
  }

  private fits(batch: DescriptorBatch): boolean {
    return this.freeCount >= batch.count + 2;
  }

  private place(batch: DescriptorBatch, drain: boolean): Submission {
    const { count, words } = batch;
    const first = this.freeHead;
    const waitIndex = (first + count) % QUEUE_LENGTH;
    const { trace } = this.options;
    for (let i = 0; i < count; i++) {
      const index = (first + i) % QUEUE_LENGTH;
      const at = i * DESCRIPTOR_WORDS;
      this.storeDescriptor(index, words[at]!, words[at + 1]!, words[at + 2]!, words[at + 3]!);
      this.setStatus(index, STATUS_IN_USE);
      trace.record(this.submitKind, 0, this.nameId, words[at]! & 0xf, words[at + 1]! >>> 0, words[at]! >>> 0, words[at + 3]! >>> 0, words[at + 2]! >>> 0);
    }
    this.setStatus(waitIndex, STATUS_IN_USE);
    const status = this.statusBase + waitIndex * 4;
    this.storeDescriptor(waitIndex, drain ? this.drainingWaitLo : this.waitLo, STATUS_DONE, status | 0, Math.floor(status / 0x1_0000_0000));
    this.freeHead = (waitIndex + 1) % QUEUE_LENGTH;
    this.freeCount -= count + 1;
    this.submitted += count + 1;
    const submission = { batch, first, count, waitIndex, invalid: false, timedOut: -1 };
    this.inFlight.push(submission);
    this.registers.write(REG.IQT, 4, this.freeHead << this.shift);
    return submission;
  }

  private *wait(submission: Submission): Steps<Outcome> {
    const { clock, pollNs } = this.options;
    const slowest = Math.max(pollNs, 1) * SLOWEST_POLL_FACTOR;
    let interval = Math.max(pollNs, 1), polls = 0;
    for (;;) {
      let status = this.status(submission.waitIndex);
      if (status === STATUS_IN_USE) {
        this.checkFault();
        status = this.status(submission.waitIndex);
      }
      if (status !== STATUS_IN_USE) return this.outcome(submission, status);
      if (++polls > FAST_POLLS && interval < slowest) interval *= 2;
      yield* sleep(clock, interval);
    }
  }

  private outcome(submission: Submission, status: number): Outcome {
    if (submission.invalid) return 'invalid';
    if (submission.timedOut >= 0) return this.options.devicePresent(submission.timedOut) ? 'again' : 'gone';
    return status === STATUS_DONE ? 'done' : 'again';
  }

  private reclaim(submission: Submission): void {
    if (this.inFlight.at(-1) === submission) this.inFlight.pop();
    else this.inFlight.splice(this.inFlight.indexOf(submission), 1);
    for (let i = 0; i <= submission.count; i++) this.setStatus((submission.first + i) % QUEUE_LENGTH, STATUS_FREE);
    const before = this.freeCount;
    while (this.freeCount < QUEUE_LENGTH && this.status(this.freeTail) === STATUS_FREE) {
      this.freeTail = (this.freeTail + 1) % QUEUE_LENGTH;
      this.freeCount++;
    }
    if (this.freeCount > before) this.space.wakeAll();
  }

  /** Looks for queue errors in FSTS and lets the queue run on (11.4.7.1: it stands still until IQE or ITE is cleared). */
  private checkFault(): void {
    const fault = this.registers.read(REG.FSTS, 4);
    if ((fault & (FSTS_IQE | FSTS_ITE | FSTS_ICE)) === 0) return;
    const timedOut = this.dumpFault(fault);
    if ((fault & FSTS_IQE) !== 0) this.replaceInvalid();
    if ((fault & FSTS_ITE) !== 0) this.abortFetched(timedOut);
    if ((fault & FSTS_ICE) !== 0) {
      this.registers.write(REG.FSTS, 4, FSTS_ICE);
      this.options.log.log('info', 'DMAR: Invalidation Completion Error (ICE) cleared');
    }
  }

  /** Logs what hardware says; returns the requester id of a time-out, meaningful with ITE only. */
  private dumpFault(fault: number): number {
    const { log } = this.options;
    const head = this.index(this.registers.read(REG.IQH, 4));
    const words = [this.registers.read(REG.IQERCD, 8), this.registers.high];
    const timedOut = IQERCD.f.ITESID.get(words);
    if ((fault & FSTS_IQE) !== 0) log.log('err', `DMAR: VT-d detected Invalidation Queue Error: Reason ${IQERCD.f.IQEI.get(words).toString(16)}`);
    if ((fault & FSTS_ITE) !== 0) log.log('err', `DMAR: VT-d detected Invalidation Time-out Error: SID ${timedOut.toString(16)}`);
    if ((fault & FSTS_ICE) !== 0) log.log('err', `DMAR: VT-d detected Invalidation Completion Error: SID ${IQERCD.f.ICESID.get(words).toString(16)}`);
    log.log('err', `DMAR: QI HEAD: ${this.describe(head)}`);
    log.log('err', `DMAR: QI PRIOR: ${this.describe((head + QUEUE_LENGTH - 1) % QUEUE_LENGTH)}`);
    return timedOut;
  }

  /** IQH points at the refused descriptor: it becomes a copy of its submission's wait, which is always valid. */
  private replaceInvalid(): void {
    const head = this.index(this.registers.read(REG.IQH, 4));
    for (const submission of this.inFlight) {
      if ((head - submission.first + QUEUE_LENGTH) % QUEUE_LENGTH >= submission.count) continue;
      submission.invalid = true;
      this.memory.copy(this.base + (head << this.shift), this.base + (submission.waitIndex << this.shift), 1 << this.shift);
    }
    this.registers.write(REG.FSTS, 4, FSTS_IQE);
    this.options.log.log('info', 'DMAR: Invalidation Queue Error (IQE) cleared');
  }

  /** Waits that hardware has fetched (behind IQH) will never write their status: they count as aborted. */
  private abortFetched(timedOut: number): void {
    const head = this.index(this.registers.read(REG.IQH, 4));
    const tail = this.index(this.registers.read(REG.IQT, 4));
    for (const submission of this.inFlight) {
      if (submission.batch.deviceTlbs.includes(timedOut)) submission.timedOut = timedOut;
    }
    this.registers.write(REG.FSTS, 4, FSTS_ITE);
    this.options.log.log('info', 'DMAR: Invalidation Time-out Error (ITE) cleared');
    // backwards from the last fetched one to the oldest; a full circle when everything has been fetched
    const end = (tail + QUEUE_LENGTH - 1) % QUEUE_LENGTH;
    let i = (head + QUEUE_LENGTH - 1) % QUEUE_LENGTH;
    do {
      if (this.status(i) === STATUS_IN_USE) this.setStatus(i, STATUS_ABORTED);
      i = (i + QUEUE_LENGTH - 1) % QUEUE_LENGTH;
    } while (i !== end);
  }

  private index(pointer: number): number {
    return (pointer >>> this.shift) % QUEUE_LENGTH;
  }

  private status(index: number): number {
    return this.memory.load(this.statusBase + index * 4, 4);
  }

  private setStatus(index: number, status: number): void {
    this.memory.store(this.statusBase + index * 4, 4, status);
  }

  /** The upper half of a 256-bit descriptor is zero in every kind that is used, and has been since `reset`. */
  private storeDescriptor(index: number, word0: number, word1: number, word2: number, word3: number): void {
    const address = this.base + (index << this.shift);
    this.memory.store64(address, word0, word1);
    this.memory.store64(address + 8, word2, word3);
  }

  private describe(index: number): string {
    const address = this.base + (index << this.shift);
    this.memory.load64(address);
    const type = this.memory.lo & 0xf;
    const q0 = `${(this.memory.hi >>> 0).toString(16)}${(this.memory.lo >>> 0).toString(16).padStart(8, '0')}`;
    this.memory.load64(address + 8);
    const q1 = `${(this.memory.hi >>> 0).toString(16)}${(this.memory.lo >>> 0).toString(16).padStart(8, '0')}`;
    return `${TYPE_NAMES[type] ?? 'UNKNOWN'} qw0 = 0x${trim(q0)}, qw1 = 0x${trim(q1)}`;
  }
}

function trim(digits: string): string {
  return digits.replace(/^0+(?=.)/, '');
}
