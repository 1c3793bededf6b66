/**
 * Operations of a program on a DSA user queue: descriptors and completion records in the process's memory, portal
 * writes or enqueues, polling. A dedicated queue drops what does not fit, so its user keeps count.
 */
import { DEFAULT_WQ } from '../../devices/dsa/driver/idxd-options.js';
import type { IdxdDevice } from '../../devices/dsa/driver/idxd-device.js';
import type { IdxdFile } from '../../devices/dsa/driver/idxd-file.js';
import { COMPLETION_SIZE, DESCRIPTOR_SIZE, FLAG, OPCODE, STATUS } from '../../devices/dsa/spec/descriptor.js';
import { decodeCompletion, encodeDescriptor, statusName, type CompletionRecord, type DescriptorFields } from '../../devices/dsa/spec/encode.js';
import type { Malloc } from '../../host/mm/malloc.js';
import type { Process } from '../../host/process.js';
import type { Timing } from '../../host/timing.js';
import { hex } from '../../sim/address.js';
import type { Clock } from '../../sim/clock.js';
import { Errno } from '../../sim/errno.js';
import { sleep, WaitQueue, type Scheduler, type Steps } from '../../sim/task.js';
import type { DescriptorEnd } from './flows.js';
import { IDLE_NS, type Operation, type OperationResult, type OperationStatus, type Submission, type UserHandle } from './operations.js';

const OPCODES = { copy: OPCODE.MEMMOVE, fill: OPCODE.MEMFILL, compare: OPCODE.COMPARE, crc: OPCODE.CRCGEN, noop: OPCODE.NOOP } as const;

/** Enqueues that a full shared queue refused are repeated after up to 2^5 polls. */
const BACKOFF_STEPS = 5;

/** One descriptor that awaits its completion record. */
interface Awaited {
  readonly record: number;
  readonly operation: Operation;
  result: OperationResult | undefined;
}

export interface DsaHandleParts {
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly timing: Timing;
  /** Name of the topology. */
  readonly device: string;
  readonly idxd: IdxdDevice;
  readonly file: IdxdFile;
  readonly process: Process;
  readonly malloc: Malloc;
}

export class DsaHandle implements UserHandle {
  readonly device: string;
  readonly pasid: number;
  readonly countsItself = false;
  onEnded: ((end: DescriptorEnd) => void) | undefined;
  activity = 0;
  private readonly watchers: (() => void)[] = [];
  private readonly noticed: WaitQueue;
  private readonly parts: DsaHandleParts;
  private readonly blocks: boolean;
  private readonly awaited: Awaited[] = [];
  private readonly freeRecords: number[] = [];
  private readonly bytes = new Uint8Array(COMPLETION_SIZE);

  constructor(parts: DsaHandleParts) {
    this.parts = parts;
    this.device = parts.device;
    this.pasid = parts.file.pasid;
    this.blocks = parts.file.wq.options.blockOnFault === true;
    this.noticed = new WaitQueue(parts.scheduler, `a completion of ${parts.device}`);
  }

  watch(wake: () => void): void {
    this.watchers.push(wake);
  }

  /**
   * A completion record may have been written, or the device is gone: whoever monitors its line (UMWAIT) wakes. What
   * happened is read from the record.
   */
  notice(): void {
    this.activity++;
    this.noticed.wakeAll();
    for (const wake of this.watchers) wake();
  }

  get gone(): boolean {
    const { idxd } = this.parts;
    return !idxd.pci.present || idxd.halted;
  }

  /** True while the device may still write the completion record at `address`. */
  awaits(address: number): boolean {
    return this.awaited.some(({ record }) => record === address);
  }

  *submit(operations: readonly Operation[], options: { batch: boolean; noWait: boolean }): Steps<Submission> {
    if (this.gone) throw new Errno('ENODEV', `${this.device} is gone`);
    const pieces = operations.flatMap((operation) => split(operation, this.parts.file.wq.options.maxTransfer ?? DEFAULT_WQ.maxTransfer));
    const awaited: Awaited[] = [];
    const size = options.batch ? (this.parts.file.wq.options.maxBatch ?? DEFAULT_WQ.maxBatch) : 1;
    for (let at = 0; at < pieces.length; at += size) {
      const group = pieces.slice(at, at + size);
      const submitted = group.length > 1 ? yield* this.submitBatch(group, options.noWait) : [yield* this.submitOne(group[0]!, options.noWait)];
      awaited.push(...submitted);
    }
    return {
      operations: awaited.length,
      poll: () => this.poll(awaited, true),
      results: () => awaited.map(({ result }) => result!),
    };
  }

  private *submitOne(operation: Operation, noWait: boolean): Steps<Awaited> {
    const record = yield* this.takeRecord();
    yield* this.enqueue(fieldsOf(operation, record, this.blocks), noWait);
    const awaited = { record, operation, result: undefined };
    this.awaited.push(awaited);
    return awaited;
  }

  /** A list of descriptors in memory and one batch descriptor for it; each has its own completion record. */
  private *submitBatch(operations: readonly Operation[], noWait: boolean): Steps<Awaited[]> {
    const { process, malloc } = this.parts;
    const list = yield* malloc.memalign(DESCRIPTOR_SIZE, operations.length * DESCRIPTOR_SIZE);
    const awaited: Awaited[] = [];
    for (const [i, operation] of operations.entries()) {
      const record = yield* this.takeRecord();
      yield* process.mm.write(list + i * DESCRIPTOR_SIZE, encodeDescriptor(fieldsOf(operation, record, this.blocks)));
      awaited.push({ record, operation, result: undefined });
    }
    const own = yield* this.takeRecord();
    yield* this.enqueue({ opcode: OPCODE.BATCH, source: list, size: operations.length, completion: own }, noWait);
    this.awaited.push(...awaited);
    // the list must stay until the batch has ended
    const parent: Awaited = { record: own, operation: { ...operations[0]!, kind: 'noop' }, result: undefined };
    this.awaited.push(parent);
    return awaited;
  }

  private *enqueue(fields: DescriptorFields, noWait: boolean): Steps {
    const { file, clock, timing } = this.parts;
    const descriptor = encodeDescriptor(fields);
    for (let tries = 0; ; tries++) {
      if (this.gone) throw new Errno('ENODEV', `${this.device} is gone`);
      yield* sleep(clock, timing.jittered(timing.options.mmioNs));
      if (!file.portal.dedicated || this.inFlight() < file.wq.options.size) {
        if (file.portal.submit(descriptor) === 'accepted') return;
      }
      if (noWait) throw new Errno('EAGAIN', `work queue ${file.wq.options.name} of ${this.device} is full`);
      const { activity } = this;
      // only other processes' completions make room in a shared queue, and nobody tells: look again, ever less often
      if (!file.portal.dedicated) yield* sleep(clock, timing.jittered(timing.options.pollNs * 2 ** Math.min(tries, BACKOFF_STEPS)));
      else yield* this.noticed.untilOrTimeout(() => this.activity !== activity, IDLE_NS);
      yield* this.reap();
    }
  }

  /** Takes note of completions, oldest first, up to the first that is open: who waits for room looks no further. */
  private *reap(): Steps {
    while (this.awaited.length > 0) if (!(yield* this.poll([this.awaited[0]!]))) return;
  }

  private inFlight(): number {
    return this.awaited.filter(({ result }) => result === undefined).length;
  }

  /**
   * Looks at the records that are still open; true when none is.
   * @param inOrder goes no further than the first open one, as a program that waits for all of them does
   */
  private *poll(awaited: readonly Awaited[], inOrder = false): Steps<boolean> {
    const { mm } = this.parts.process;
    let open = false;
    for (const one of awaited) {
      if (one.result !== undefined) continue;
      yield* mm.read(one.record, this.bytes, 0, COMPLETION_SIZE);
      if (this.bytes[0] !== 0) this.finish(one, resultOf(one.operation, decodeCompletion(this.bytes)));
      else if (this.gone) this.finish(one, { status: 'aborted', detail: 'device gone', bytes: 0, value: 0 });
      else if (inOrder) return false;
      else open = true;
    }
    return !open;
  }

  private finish(one: Awaited, result: OperationResult): void {
    one.result = result;
    this.awaited.splice(this.awaited.indexOf(one), 1);
    // a record the device may still write to is never used again
    if (result.status !== 'aborted') this.freeRecords.push(one.record);
  }

  /** A completion record in the process's memory, zero. */
  private *takeRecord(): Steps<number> {
    const { process, malloc } = this.parts;
    const record = this.freeRecords.pop() ?? (yield* malloc.memalign(COMPLETION_SIZE, COMPLETION_SIZE));
    yield* process.mm.fill(record, 0, COMPLETION_SIZE);
    return record;
  }
}

function split(operation: Operation, maxBytes: number): Operation[] {
  if (operation.sizeBytes <= maxBytes) return [operation];
  const pieces: Operation[] = [];
  for (let at = 0; at < operation.sizeBytes; at += maxBytes) {
    pieces.push({ ...operation, from: operation.from + at, to: operation.to + at, sizeBytes: Math.min(maxBytes, operation.sizeBytes - at) });
  }
  return pieces;
}

/** @param blocks the queue blocks on faults unless the operation says otherwise */
function fieldsOf(operation: Operation, completion: number, blocks: boolean): DescriptorFields {
  const { kind, from, to, sizeBytes, pattern } = operation;
  const flags = (operation.blockOnFault ?? blocks) ? FLAG.BOF : 0;
  const base = { opcode: OPCODES[kind], completion };
  switch (kind) {
    case 'noop': return base;
    case 'copy': return { ...base, flags: flags | FLAG.CC, source: from, destination: to, size: sizeBytes };
    case 'fill': return { ...base, flags: flags | FLAG.CC, pattern: [Number(pattern & 0xffff_ffffn), Number(pattern >> 32n)], destination: to, size: sizeBytes };
    case 'compare': return { ...base, flags, source: from, destination: to, size: sizeBytes };
    case 'crc': return { ...base, flags, source: from, size: sizeBytes };
  }
}

function resultOf(operation: Operation, completion: CompletionRecord): OperationResult {
  const { status: code } = completion;
  const differs = operation.kind === 'compare' && completion.result !== 0;
  const pageFault = code === STATUS.PAGE_FAULT_NOBOF || code === STATUS.PAGE_FAULT_IR || code === STATUS.BATCH_PAGE_FAULT;
  const status: OperationStatus = pageFault ? 'page-fault' : code !== STATUS.SUCCESS ? 'error' : differs ? 'mismatch' : 'success';
  const fault = status === 'page-fault' ? ` at ${hex(completion.faultAddress)} (${completion.faultWrite ? 'write' : 'read'})` : '';
  const bytes = operation.kind === 'noop' ? 0 : status === 'success' ? operation.sizeBytes : completion.bytesCompleted;
  return { status, detail: `${statusName(code)}${fault}`, bytes, value: operation.kind === 'crc' ? completion.specific : completion.bytesCompleted };
}
