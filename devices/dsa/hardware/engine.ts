/**
 * Engines: take descriptors from their group's queues, check them, run them, complete them. A group has as many
 * slots as its engines can hold descriptors; a descriptor that waits for a page keeps its slot and nothing else.
 * A slot's task exists while there is work. Descriptors of a batch run one after the other in the batch's slot,
 * which also gives fences their meaning; across slots nothing is ordered but by drains.
 */
import type { Clock } from '../../../sim/clock.js';
import { sleep, type Scheduler, type Steps, type WaitQueue } from '../../../sim/task.js';
import type { Trace, TraceKind } from '../../../sim/trace.js';
import type { Timing } from '../../../host/timing.js';
import { COMPLETION_SIZE, DESCRIPTOR_SIZE, FLAG, OPCODE, STATUS, STATUS_MASK, WORD_COMPLETION, WORD_HANDLE, WORD_SRC } from '../spec/descriptor.js';
import { ACCESS_OK, ACCESS_REVOKED, type MemoryAccess } from './access.js';
import { Job, type DescriptorReport } from './job.js';
import { accessStatus, blocks, OperationUnit } from './operations.js';
import { checkDescriptor, Cursor, invalidFlags, type DeviceLimits } from './validate.js';
import type { ErrorDetails } from './register-window.js';
import type { Group } from './work-queue.js';

/** From taking a descriptor to its first memory access. */
const DECODE_NS = 20;

export interface EngineOwner extends DeviceLimits {
  newAccess(): MemoryAccess;
  reportError(error: number, details: ErrorDetails): void;
  completionInterrupt(handle: number): void;
  /** The job will do nothing more; called once for every accepted descriptor. */
  jobEnded(job: Job): void;
  /** Jobs of the drain's queue (and PASID, when shared) that were accepted before it and have not ended. */
  before(drain: Job): readonly Job[];
}

export interface EngineOptions {
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly timing: Timing;
  readonly trace: Trace;
  readonly owner: EngineOwner;
  /** Woken whenever a job ended. */
  readonly finished: WaitQueue;
  readonly name: string;
  readonly deviceId: number;
  readonly onComplete: ((report: DescriptorReport) => void) | undefined;
  readonly defects: ReadonlySet<string>;
}

/** Trace kinds of the accelerator, all hashed. */
export function traceKinds(trace: Trace): { start: TraceKind; complete: TraceKind } {
  return {
    start: trace.define('dsa:start', [['device', 'str'], ['wq', 'dec'], ['engine', 'dec'], ['opcode', 'hex'], ['pasid', 'dec'], ['size', 'dec']]),
    complete: trace.define('dsa:complete', [['device', 'str'], ['wq', 'dec'], ['opcode', 'hex'], ['status', 'hex'], ['bytes', 'dec'], ['fault_page', 'page'], ['page_requests', 'dec']]),
  };
}

class Slot {
  readonly index: number;
  readonly access: MemoryAccess;
  readonly operations: OperationUnit;
  readonly record = new Uint8Array(COMPLETION_SIZE);
  readonly view = new DataView(this.record.buffer);
  readonly cursor = new Cursor();
  /** One descriptor of a batch. */
  readonly fetched = new Uint8Array(DESCRIPTOR_SIZE);

  constructor(index: number, access: MemoryAccess) {
    this.index = index;
    this.access = access;
    this.operations = new OperationUnit(access);
  }
}

export class Engines {
  private readonly options: EngineOptions;
  private readonly kinds: { start: TraceKind; complete: TraceKind };
  private readonly freeSlots: Slot[] = [];
  private slotCount = 0;
  private readonly writeStatusFirst: boolean;
  private readonly completeOnAbort: boolean;

  constructor(options: EngineOptions) {
    this.options = options;
    this.kinds = traceKinds(options.trace);
    this.writeStatusFirst = options.defects.has('dsa.completion-before-data');
    this.completeOnAbort = options.defects.has('dsa.ignore-abort');
  }

  /** Starts idle slots of the group, one for each waiting descriptor. */
  kick(group: Group): void {
    let waiting = 0;
    for (const queue of group.queues) waiting += queue.occupancy;
    while (waiting > group.starting && group.active < group.slots) {
      group.active++;
      group.starting++;
      const slot = this.freeSlots.pop() ?? new Slot(this.slotCount++, this.options.owner.newAccess());
      this.options.scheduler.spawn(`${this.options.name} slot ${slot.index}`, this.work(group, slot), { daemon: true });
    }
  }

  private *work(group: Group, slot: Slot): Steps {
    group.starting--;
    try {
      for (let job = group.take(); job !== undefined; job = group.take()) {
        yield* this.process(job, slot, group.engines[slot.index % group.engines.length]!);
      }
    } finally {
      group.active--;
      this.freeSlots.push(slot);
    }
  }

  private *process(job: Job, slot: Slot, engine: number): Steps {
    const { trace, deviceId, owner } = this.options;
    trace.record(this.kinds.start, job.correlation, deviceId, job.wq.index, engine, job.opcode, job.pasid, job.size);
    yield* sleep(this.options.clock, DECODE_NS);
    if (!job.aborted) yield* this.execute(job, slot);
    this.end(job);
    owner.jobEnded(job);
  }

  /** Checks, runs and completes one descriptor, of a queue or of a batch. */
  private *execute(job: Job, slot: Slot): Steps {
    const refused = checkDescriptor(job, this.options.owner);
    if (refused !== STATUS.SUCCESS) {
      job.status = refused;
      if (refused === STATUS.INVALID_FLAGS) job.specific = invalidFlags(job);
    } else if (this.writeStatusFirst) {
      job.status = STATUS.SUCCESS;
      job.bytes = job.size;
      yield* this.writeRecord(job, slot);
      job.bytes = 0;
      yield* this.operate(job, slot);
    } else {
      yield* this.operate(job, slot);
    }
    if (job.status === 0 || (job.aborted && !this.completeOnAbort)) {
      job.status = 0;
      return;
    }
    yield* this.complete(job, slot);
  }

  private *operate(job: Job, slot: Slot): Steps {
    if (job.opcode === OPCODE.BATCH) return yield* this.batch(job, slot);
    if (job.opcode === OPCODE.DRAIN) {
      const before = this.options.owner.before(job);
      yield* this.options.finished.until(() => job.aborted || before.every((other) => other.ended));
      job.status = STATUS.SUCCESS;
      return;
    }
    yield* slot.operations.run(job);
  }

  private *batch(job: Job, slot: Slot): Steps {
    const { access, cursor, fetched } = slot;
    const view = new DataView(fetched.buffer);
    job.status = STATUS.SUCCESS;
    let failed = false;
    for (let index = 0; index < job.size; index++) {
      cursor.set(job.words, WORD_SRC);
      cursor.advance(index * DESCRIPTOR_SIZE);
      const outcome = yield* access.read(job, cursor.page, cursor.offset, fetched, 0, DESCRIPTOR_SIZE, blocks(job));
      if (outcome !== ACCESS_OK) {
        const status = accessStatus(outcome, false);
        const pageFault = status === STATUS.PAGE_FAULT_NOBOF || status === STATUS.PAGE_FAULT_IR;
        job.fault(pageFault ? STATUS.BATCH_PAGE_FAULT : status, cursor.page, cursor.offset);
        return;
      }
      const words = new Uint32Array(16);
      for (let i = 0; i < 16; i++) words[i] = view.getUint32(i * 4, true);
      // a fence after a failure abandons the rest of the batch
      if (failed && (words[1]! & FLAG.FENCE) !== 0) break;
      const part = new Job(words, job.wq, job, { sequence: job.sequence, correlation: job.correlation, now: this.options.clock.now, batchIndex: index });
      yield* this.execute(part, slot);
      job.pageRequests += part.pageRequests;
      job.success += part.success;
      job.invalid += part.invalid;
      job.failure += part.failure;
      if (job.aborted || part.status === 0) {
        job.status = 0;
        return;
      }
      job.bytes++;
      if (part.status !== STATUS.SUCCESS) failed = true;
    }
    if (failed) job.status = STATUS.BATCH_FAIL;
  }

  /** Completion record and interrupt, as the descriptor asked; errors without a record go to SWERROR. */
  private *complete(job: Job, slot: Slot): Steps {
    const { owner } = this.options;
    const flags = job.flags;
    const plain = (job.status & STATUS_MASK) === STATUS.SUCCESS;
    if (job.status === STATUS.CRA_ALIGN || (!plain && (flags & FLAG.CRAV) === 0)) {
      owner.reportError(job.status & STATUS_MASK, this.details(job));
    } else if ((flags & FLAG.CRAV) !== 0 && (!plain || (flags & FLAG.RCR) !== 0)) {
      if (!(yield* this.writeRecord(job, slot))) return;
    }
    if ((flags & FLAG.RCI) === 0) return;
    // the handle is the last thing that is checked: of a descriptor that failed before, it may be anything
    const handle = job.words[WORD_HANDLE]! & 0xffff;
    if (plain || (job.status !== STATUS.INT_HANDLE_INVAL && !job.ims && owner.handleAllowed(handle, job))) owner.completionInterrupt(handle);
  }

  /** A fault on the completion record waits where the queue may block, whatever the descriptor's flag; otherwise SWERROR. */
  private *writeRecord(job: Job, slot: Slot): Steps<boolean> {
    const { record, view, cursor, access } = slot;
    record.fill(0);
    record[0] = job.status;
    record[1] = job.result;
    view.setUint32(4, job.bytes, true);
    if (job.faulted) {
      cursor.page = job.faultPage;
      cursor.offset = job.faultOffset;
      view.setUint32(8, cursor.lo, true);
      view.setUint32(12, cursor.hi, true);
    }
    view.setUint32(16, job.specific, true);
    cursor.set(job.words, WORD_COMPLETION);
    const outcome = yield* access.write(job, cursor.page, cursor.offset, record, 0, COMPLETION_SIZE, job.wq.config.blockOnFault);
    if (outcome === ACCESS_OK) return true;
    if (outcome === ACCESS_REVOKED) job.status = 0;
    else this.options.owner.reportError(STATUS.CRA_XLAT, { job, page: cursor.page, offset: cursor.offset, write: true });
    return false;
  }

  private details(job: Job): ErrorDetails {
    return {
      job,
      ...(job.status === STATUS.INVALID_FLAGS ? { invalidFlags: job.specific } : {}),
      ...(job.faulted ? { page: job.faultPage, offset: job.faultOffset, write: (job.status & 0x80) !== 0 } : {}),
    };
  }

  private end(job: Job): void {
    const { trace, deviceId, clock, onComplete } = this.options;
    job.ended = true;
    trace.record(this.kinds.complete, job.correlation, deviceId, job.wq.index, job.opcode, job.status, job.bytes, job.faulted ? job.faultPage : 0, job.pageRequests);
    onComplete?.(job.report(clock.now));
  }

  /** A descriptor that no engine took: aborted while it waited. */
  discard(job: Job): void {
    job.aborted = true;
    job.status = 0;
    this.end(job);
  }
}

