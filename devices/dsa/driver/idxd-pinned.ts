/**
 * A process's door to a kernel queue, for kernels without shared virtual addressing: the driver pins the pages that an
 * operation names, maps them for the device through the DMA API in runs of contiguous pages, submits a descriptor for each
 * piece that is contiguous on both sides, sleeps until the interrupts, unmaps and unpins. Nothing the process says reaches
 * the device as an address, but for what tests of a malicious driver ask for (`deviceAddress`, `submitRaw`).
 * Linux has no such door; its idxd offers kernel queues through dmaengine, whose clients pin and map the same way.
 */
import { hex, PAGE_SIZE } from '../../../sim/address.js';
import { Errno, isErrno } from '../../../sim/errno.js';
import type { EnqueueResult } from '../../../sim/mmio.js';
import { WaitQueue, type Steps } from '../../../sim/task.js';
import type { Mm } from '../../../host/mm/mm.js';
import type { OpenFile, Process } from '../../../host/process.js';
import { OPCODE, STATUS } from '../spec/descriptor.js';
import { isPageFault, statusName, type CompletionRecord, type DescriptorFields } from '../spec/encode.js';
import { DEFAULT_WQ } from './idxd-options.js';
import type { IdxdDevice, IdxdWq } from './idxd-device.js';
import type { KernelQueue, PendingDescriptor } from './idxd-kernel.js';
import { orderOfPieces, piecesOf, runsOfPages, type Piece, type Run } from './pinned-pieces.js';
import { rotate } from './user.js';

/** An address as the device is to use it: neither pinned nor mapped. */
export interface DeviceAddress {
  readonly deviceAddress: number;
}

export interface PinnedOperation {
  readonly kind: 'copy' | 'fill' | 'compare' | 'crc' | 'noop';
  /** User virtual address of the source, or of the first buffer of a comparison. */
  readonly from: number | DeviceAddress;
  /** Of the target, or of the second buffer. */
  readonly to: number | DeviceAddress;
  readonly sizeBytes: number;
  /** 8 bytes that a fill repeats. */
  readonly pattern: bigint;
}

export interface PinnedResult {
  readonly status: 'success' | 'page-fault' | 'error' | 'mismatch' | 'aborted';
  /** The device's own code, for messages. */
  readonly detail: string;
  /** Bytes done; up to the first difference of a comparison. */
  readonly bytes: number;
  /** The CRC of a `crc`, the offset of the first difference, otherwise bytes done. */
  readonly value: number;
  /** Where the device met a fault, as it addresses memory. */
  readonly faultAddress: number | undefined;
}

/** Operations under way. */
export class PinnedSubmission {
  readonly operations: number;
  private readonly outcome: (PinnedResult | undefined)[];
  private readonly ended: WaitQueue;
  /** Every operation has ended, and nothing is pinned or mapped for them any more. */
  done = false;
  /** Called when it is, before those who watch the file. */
  onDone: (() => void) | undefined;

  /** @internal */
  constructor(operations: number, ended: WaitQueue) {
    this.operations = operations;
    this.outcome = Array.from({ length: operations }, () => undefined);
    this.ended = ended;
  }

  /** In order of the operations; valid once `done`. */
  results(): readonly PinnedResult[] {
    return this.outcome.map((result) => result ?? ABORTED);
  }

  /** Sleeps until all have ended. */
  *wait(): Steps<readonly PinnedResult[]> {
    yield* this.ended.until(() => this.done);
    return this.results();
  }

  /** @internal */
  settle(index: number, result: PinnedResult): void {
    this.outcome[index] ??= result;
  }
}

const ABORTED: PinnedResult = { status: 'aborted', detail: 'device gone', bytes: 0, value: 0, faultAddress: undefined };

const OPCODES = { copy: OPCODE.MEMMOVE, fill: OPCODE.MEMFILL, compare: OPCODE.COMPARE, crc: OPCODE.CRCGEN, noop: OPCODE.NOOP } as const;

/** Pages of one buffer. */
interface PinnedBuffer {
  readonly physical: readonly number[];
  /** Offset of the first byte in its page. */
  readonly offset: number;
  readonly sizeBytes: number;
  readonly write: boolean;
}

/** An operation whose pages are pinned. */
interface Prepared {
  readonly operation: PinnedOperation;
  readonly from: PinnedBuffer | DeviceAddress | undefined;
  readonly to: PinnedBuffer | DeviceAddress | undefined;
}

/** An operation whose descriptors are under way. */
interface Started {
  readonly index: number;
  readonly operation: PinnedOperation;
  readonly pieces: readonly Piece[];
  readonly pending: (PendingDescriptor | CompletionRecord)[];
}

interface Mapping {
  readonly address: number;
  readonly sizeBytes: number;
}

export class IdxdPinnedFile implements OpenFile {
  readonly name: string;
  readonly wq: IdxdWq;
  /** Put into the process's table; close it there. */
  fd = -1;
  /** Grows whenever a submission has ended. */
  activity = 0;
  private readonly device: IdxdDevice;
  /** Of the process that opened: its address space is what operations name, also when a child holds the file. */
  private readonly mm: Mm;
  private readonly changed: WaitQueue;
  private readonly watchers: (() => void)[] = [];
  private inFlight = 0;
  private refused = false;
  private released = false;
  private readonly unpinEarly: boolean;

  constructor(device: IdxdDevice, wq: IdxdWq, process: Process) {
    this.device = device;
    this.wq = wq;
    this.mm = process.mm;
    this.name = `/dev/dsa/${wq.options.name}`;
    this.changed = new WaitQueue(device.services.scheduler, `submissions to ${device.pci.name} ${wq.options.name}`);
    this.unpinEarly = device.services.defects?.has('idxd.unpin-before-completion') ?? false;
  }

  /** The device or its driver is gone. */
  get gone(): boolean {
    return this.refused || !this.device.alive || this.wq.kernel === undefined;
  }

  /** Called whenever a submission has ended. */
  watch(wake: () => void): void {
    this.watchers.push(wake);
  }

  /**
   * Pins what the operations name and starts them; returns before they end. `batch`: descriptors go in lists, as far as the
   * queue takes them; `noWait`: a full queue is EAGAIN.
   * @throws Errno ENODEV the device is gone; EFAULT a page that the process may not reach so; ENOMEM; EINVAL a size below 1
   */
  *submit(operations: readonly PinnedOperation[], options: { readonly batch?: boolean; readonly noWait?: boolean } = {}): Steps<PinnedSubmission> {
    const queue = this.queue();
    if (options.noWait === true && !queue.room) throw new Errno('EAGAIN', `work queue ${this.wq.options.name} of ${this.device.pci.name} is full`);
    const prepared: Prepared[] = [];
    let handedOver = false;
    try {
      for (const operation of operations) yield* this.prepare(operation, prepared);
      this.queue();
      const submission = new PinnedSubmission(operations.length, this.changed);
      this.inFlight++;
      handedOver = true;
      this.device.services.scheduler.spawn(`${this.name} submission`, this.perform(submission, prepared, queue, options.batch ?? false), { daemon: true });
      return submission;
    } finally {
      if (!handedOver) for (const one of prepared) this.unpin(one);
    }
  }

  /** One descriptor as it is, addresses and all, with a completion record and an interrupt of the driver's. ENODEV, ENXIO. */
  *submitDescriptor(fields: DescriptorFields): Steps<CompletionRecord> {
    return yield* this.queue().submit(fields);
  }

  /** 64 bytes straight into the portal: no completion record is looked at, and a full dedicated queue drops them. ENODEV. */
  submitRaw(bytes: Uint8Array): EnqueueResult {
    return this.queue().raw(bytes);
  }

  /** Waits for what is in flight, raw descriptors included. */
  *release(): Steps {
    if (this.released) return;
    this.released = this.refused = true;
    yield* this.idle();
    if (this.device.alive) yield* this.wq.kernel?.drain() ?? nothing();
    this.device.pinnedFiles.delete(this);
    this.wq.users--;
  }

  /** No further submissions: the driver lets the device go. */
  refuse(): void {
    this.refused = true;
  }

  /** Waits for submissions in flight. */
  idle(): Steps {
    return this.changed.until(() => this.inFlight === 0);
  }

  private queue(): KernelQueue {
    const { kernel } = this.wq;
    if (this.gone || kernel === undefined) throw new Errno('ENODEV', `${this.device.pci.name}: the device of ${this.name} is gone`);
    return kernel;
  }

  // pages

  private *prepare(operation: PinnedOperation, prepared: Prepared[]): Steps {
    const { kind, sizeBytes } = operation;
    if (kind === 'noop') {
      prepared.push({ operation, from: undefined, to: undefined });
      return;
    }
    if (!(sizeBytes >= 1)) throw new Errno('EINVAL', `${kind} of ${sizeBytes} bytes`);
    const from = kind === 'fill' ? undefined : yield* this.pin(operation.from, sizeBytes, false);
    let complete = false;
    try {
      const to = kind === 'crc' ? undefined : yield* this.pin(operation.to, sizeBytes, kind !== 'compare');
      prepared.push({ operation, from, to });
      complete = true;
    } finally {
      if (!complete) this.unpinBuffer(from);
    }
  }

  private *pin(address: number | DeviceAddress, sizeBytes: number, write: boolean): Steps<PinnedBuffer | DeviceAddress> {
    if (typeof address !== 'number') return address;
    const offset = address % PAGE_SIZE;
    const physical = yield* this.mm.pinPages(address - offset, Math.ceil((offset + sizeBytes) / PAGE_SIZE), write);
    return { physical, offset, sizeBytes, write };
  }

  private unpin({ from, to }: Prepared): void {
    this.unpinBuffer(from);
    this.unpinBuffer(to);
  }

  private unpinBuffer(buffer: PinnedBuffer | DeviceAddress | undefined): void {
    if (buffer !== undefined && 'physical' in buffer) this.mm.unpinPages(buffer.physical);
  }

  // work

  private *perform(submission: PinnedSubmission, prepared: readonly Prepared[], queue: KernelQueue, batch: boolean): Steps {
    const mappings: Mapping[] = [];
    const started: Started[] = [];
    try {
      for (const [index, one] of prepared.entries()) yield* this.start(submission, index, one, mappings, started, { queue, batch });
    } catch (error) {
      if (!isErrno(error)) throw error;
      prepared.forEach((_, index) => {
        if (!started.some((other) => other.index === index)) submission.settle(index, this.alive ? { ...ABORTED, status: 'error', detail: error.message } : ABORTED);
      });
    }
    if (this.unpinEarly) for (const one of prepared) this.unpin(one);
    for (const one of started) submission.settle(one.index, yield* this.collect(one, queue));
    const { dma } = this.device.services.iommu;
    for (const { address, sizeBytes } of mappings) yield* dma.dmaUnmap(this.device.pci, address, sizeBytes);
    if (!this.unpinEarly) for (const one of prepared) this.unpin(one);
    submission.done = true;
    this.inFlight--;
    this.activity++;
    this.changed.wakeAll();
    submission.onDone?.();
    for (const wake of this.watchers) wake();
  }

  private get alive(): boolean {
    return this.device.alive && this.wq.kernel !== undefined;
  }

  /** Maps and submits one operation. What must not run beside the rest of it is waited for here. */
  private *start(submission: PinnedSubmission, index: number, { operation, from, to }: Prepared, mappings: Mapping[], started: Started[], by: { queue: KernelQueue; batch: boolean }): Steps {
    const { maxTransfer = DEFAULT_WQ.maxTransfer, maxBatch = DEFAULT_WQ.maxBatch } = this.wq.options;
    const source = yield* this.map(from, operation, mappings), target = yield* this.map(to, operation, mappings);
    const pieces = operation.kind === 'noop' ? [{ at: 0, from: 0, to: 0, sizeBytes: 0 }] : piecesOf(source, target, Math.min(maxTransfer, this.device.hardware.capabilities.maxTransfer));
    const one: Started = { index, operation, pieces: orderOfPieces(pieces, operation), pending: [] };
    const chained = pieces.length > 1 && (operation.kind === 'crc' || one.pieces !== pieces || overlaps(operation));
    if (chained) {
      submission.settle(index, yield* this.runChained(one, by.queue));
      started.push({ ...one, pieces: [] });
      return;
    }
    started.push(one);
    const most = by.batch ? Math.min(maxBatch, this.device.hardware.capabilities.maxBatch) : 1;
    for (let at = 0; at < one.pieces.length; at += most) {
      const list = one.pieces.slice(at, at + most).map((piece) => fieldsOf(operation, piece));
      if (list.length > 1) one.pending.push(...(yield* by.queue.submitBatch(list)));
      else one.pending.push(yield* by.queue.post(list[0]!));
    }
  }

  /** Makes a buffer reachable for the device; where it is, run by run. */
  private *map(buffer: PinnedBuffer | DeviceAddress | undefined, operation: PinnedOperation, mappings: Mapping[]): Steps<Run[]> {
    if (buffer === undefined) return [];
    if ('deviceAddress' in buffer) return [{ address: buffer.deviceAddress, sizeBytes: operation.sizeBytes }];
    const { dma } = this.device.services.iommu;
    const runs: Run[] = [];
    for (const { address: physical, sizeBytes } of runsOfPages(buffer.physical, buffer.offset, buffer.sizeBytes)) {
      const address = yield* dma.dmaMap(this.device.pci, physical, sizeBytes, buffer.write ? 'from-device' : 'to-device');
      mappings.push({ address, sizeBytes });
      runs.push({ address, sizeBytes });
    }
    return runs;
  }

  /** Pieces one after the other: a CRC continues from piece to piece, a copy over itself must not be overtaken. */
  private *runChained({ operation, pieces }: Started, queue: KernelQueue): Steps<PinnedResult> {
    let bytes = 0, crc = 0;
    for (const piece of pieces) {
      const record = yield* queue.submit(fieldsOf(operation, piece, crc));
      if (record.status !== STATUS.SUCCESS || (operation.kind === 'compare' && record.result !== 0)) return resultOf(operation, record, bytes);
      crc = record.specific;
      bytes += piece.sizeBytes;
    }
    return { status: 'success', detail: statusName(STATUS.SUCCESS), bytes, value: operation.kind === 'crc' ? crc : bytes, faultAddress: undefined };
  }

  /** Waits for the descriptors of an operation. The first that did not succeed, in order of addresses, says how it ended. */
  private *collect({ operation, pieces, pending }: Started, queue: KernelQueue): Steps<PinnedResult> {
    let bad: PinnedResult | undefined;
    let bytes = 0, value = 0;
    for (const [i, piece] of pieces.entries()) {
      const one = pending[i];
      let result = ABORTED;
      if (one !== undefined) {
        try {
          result = resultOf(operation, 'record' in one || 'failed' in one ? yield* queue.wait(one as PendingDescriptor) : one, piece.at);
        } catch (error) {
          if (!isErrno(error)) throw error;
        }
      }
      if (bad !== undefined) continue;
      if (result.status !== 'success') bad = { ...result, bytes: result.status === 'aborted' ? bytes : result.bytes };
      bytes += piece.sizeBytes;
      value = operation.kind === 'crc' ? result.value : bytes;
    }
    return bad ?? { status: 'success', detail: statusName(STATUS.SUCCESS), bytes, value, faultAddress: undefined };
  }
}

function overlaps({ kind, from, to, sizeBytes }: PinnedOperation): boolean {
  return kind === 'copy' && typeof from === 'number' && typeof to === 'number' && Math.abs(from - to) < sizeBytes;
}

function fieldsOf({ kind, pattern }: PinnedOperation, { at, from, to, sizeBytes: size }: Piece, crc = 0): DescriptorFields {
  const opcode = OPCODES[kind];
  switch (kind) {
    case 'noop': return { opcode };
    case 'copy':
    case 'compare': return { opcode, source: from, destination: to, size };
    case 'fill': return { opcode, pattern: rotate([Number(pattern & 0xffff_ffffn), Number((pattern >> 32n) & 0xffff_ffffn)], at % 8), destination: to, size };
    case 'crc': return { opcode, source: from, size, specific: [crc] };
  }
}

/** @param before bytes of the operation before this piece */
function resultOf({ kind }: PinnedOperation, record: CompletionRecord, before: number): PinnedResult {
  const { status: code, bytesCompleted } = record;
  const differs = kind === 'compare' && code === STATUS.SUCCESS && record.result !== 0;
  const fault = isPageFault(code);
  if (code === STATUS.NONE) return { ...ABORTED, detail: 'not executed' };
  return {
    status: fault ? 'page-fault' : code !== STATUS.SUCCESS ? 'error' : differs ? 'mismatch' : 'success',
    detail: fault ? `${statusName(code)} at ${hex(record.faultAddress)} (${record.faultWrite ? 'write' : 'read'})` : statusName(code),
    bytes: before + bytesCompleted, value: kind === 'crc' ? record.specific : before + bytesCompleted,
    faultAddress: fault || code === STATUS.TRANSLATION_FAIL ? record.faultAddress : undefined,
  };
}

function* nothing(): Steps {}

/**
 * open(2) of a kernel queue by a process.
 * @throws Errno EPERM the queue is not the kernel's; ENXIO the device is halted or gone
 */
export function openPinned(device: IdxdDevice, wq: IdxdWq, process: Process): IdxdPinnedFile {
  const { name, type } = wq.options;
  if (type !== 'kernel') throw new Errno('EPERM', `${device.pci.name}: work queue ${name} is of type ${type}, not the kernel's`);
  if (!device.alive || wq.kernel === undefined) throw new Errno('ENXIO', `${device.pci.name} is ${device.halted ? 'halted' : 'gone'}`);
  const file = new IdxdPinnedFile(device, wq, process);
  file.fd = process.open(file);
  device.pinnedFiles.add(file);
  wq.users++;
  return file;
}
