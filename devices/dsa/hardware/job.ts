/** One descriptor on its way through the accelerator, from the portal to its completion. */
import { FLAG } from '../spec/descriptor.js';
import type { WorkQueue } from './work-queue.js';

/** What a descriptor did, for whoever watches flows. */
export interface DescriptorReport {
  readonly correlation: number;
  readonly wq: number;
  readonly opcode: number;
  /** NO_PASID without one. */
  readonly pasid: number;
  /** As in the completion record, with the write bit; 0 when the descriptor was dropped (abort, reset, removal). */
  readonly status: number;
  readonly result: number;
  /** Bytes completed; descriptors completed of a batch. */
  readonly bytes: number;
  readonly pageRequests: number;
  readonly responses: { readonly success: number; readonly invalid: number; readonly failure: number };
  readonly submittedNs: number;
  readonly completedNs: number;
  /** Address of the completion record, by which software knows the descriptor; 0 without one. */
  readonly completion: number;
}

export class Job {
  /** The descriptor, 16 little-endian words. */
  readonly words: Uint32Array;
  readonly wq: WorkQueue;
  /** NO_PASID without one. */
  readonly pasid: number;
  readonly privileged: boolean;
  /** Submitted through a portal for interrupt message storage. */
  readonly ims: boolean;
  /** Order of acceptance in the device. */
  readonly sequence: number;
  readonly correlation: number;
  readonly submittedNs: number;
  /** Index in its batch, -1 outside one. */
  readonly batchIndex: number;
  /** No completion, no further DMA: the queue was aborted or the device reset. */
  aborted = false;
  ended = false;
  // what the operation found
  status = 0;
  result = 0;
  bytes = 0;
  faultPage = 0;
  faultOffset = 0;
  faulted = false;
  specific = 0;
  pageRequests = 0;
  success = 0;
  invalid = 0;
  failure = 0;

  constructor(words: Uint32Array, wq: WorkQueue, identity: { pasid: number; privileged: boolean; ims: boolean }, at: { sequence: number; correlation: number; now: number; batchIndex?: number }) {
    this.words = words;
    this.wq = wq;
    this.pasid = identity.pasid;
    this.privileged = identity.privileged;
    this.ims = identity.ims;
    this.sequence = at.sequence;
    this.correlation = at.correlation;
    this.submittedNs = at.now;
    this.batchIndex = at.batchIndex ?? -1;
  }

  get opcode(): number {
    return this.words[1]! >>> 24;
  }

  get flags(): number {
    return this.words[1]! & 0xff_ffff;
  }

  get size(): number {
    return this.words[8]!;
  }

  /** Records why and where an access ended; `write` sets the fault's direction. */
  fault(status: number, page: number, offset: number): void {
    this.status = status;
    this.faulted = true;
    this.faultPage = page;
    this.faultOffset = offset;
  }

  report(now: number): DescriptorReport {
    return {
      correlation: this.correlation, wq: this.wq.index, opcode: this.opcode, pasid: this.pasid, status: this.status, result: this.result,
      bytes: this.bytes, pageRequests: this.pageRequests, responses: { success: this.success, invalid: this.invalid, failure: this.failure },
      submittedNs: this.submittedNs, completedNs: now,
      completion: (this.flags & FLAG.CRAV) === 0 ? 0 : this.words[2]! + this.words[3]! * 0x1_0000_0000,
    };
  }
}

