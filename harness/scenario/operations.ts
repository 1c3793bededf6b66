/** What a program asks of a device, whatever the device: the joint between steps and the devices' user libraries. */
import type { Steps } from '../../sim/task.js';
import type { DescriptorEnd } from './flows.js';

/** A program that waits for a device looks at least this often, whatever it is told. */
export const IDLE_NS = 1_000_000;

export type OperationKind = 'copy' | 'fill' | 'compare' | 'crc' | 'noop';

/** Addresses are user virtual addresses of the process that submits, unless they are raw. */
export interface Operation {
  readonly kind: OperationKind;
  /** Source; the first buffer of a comparison. */
  readonly from: number;
  /** Destination; the second buffer of a comparison. */
  readonly to: number;
  readonly sizeBytes: number;
  /** 8 bytes that a fill repeats. */
  readonly pattern: bigint;
  /** Undefined: what the queue allows. */
  readonly blockOnFault: boolean | undefined;
  /** The address goes to the device as it is: nobody pins or translates it. */
  readonly rawFrom: boolean;
  readonly rawTo: boolean;
}

export type OperationStatus = 'success' | 'page-fault' | 'error' | 'mismatch' | 'aborted';

export interface OperationResult {
  readonly status: OperationStatus;
  /** The device's own code and words, for messages. */
  readonly detail: string;
  readonly bytes: number;
  /** What the operation computed: a CRC, the offset of a difference. */
  readonly value: number;
}

/** Operations under way. */
export interface Submission {
  readonly operations: number;
  /** True when every operation has ended; looks at the completion records as the program would. */
  poll(): Steps<boolean>;
  /** Results in order; valid once `poll` answered true. */
  results(): readonly OperationResult[];
}

/** Files of devices that hold data. Offsets and sizes in bytes; what they ask for in alignment is the device's. */
export interface DataFile {
  /** Into the process's memory; answers how many bytes, fewer at the end. EINVAL, EFAULT, ENOMEM, EIO, ENODEV. */
  pread(address: number, offset: number, sizeBytes: number): Steps<number>;
  /** From the process's memory. As `pread`; ENOSPC behind the end. */
  pwrite(address: number, offset: number, sizeBytes: number): Steps<number>;
  /** EIO, ENODEV. */
  fsync(): Steps;
}

/** One open file of a process on a device. */
export interface UserHandle {
  readonly device: string;
  /** Reads and writes that a program makes as of a file; undefined where there is nothing to read. */
  readonly data?: DataFile;
  readonly pasid: number;
  /** The device or its driver is gone; operations end as aborted. */
  readonly gone: boolean;
  /** True while the device may still write a completion record at that address. */
  awaits(completion: number): boolean;
  /** Something may have happened: `activity` grows, and who watches is woken. */
  notice(): void;
  /** True: it tells `onEnded` of every operation that ends; false: the device's reports count. */
  readonly countsItself: boolean;
  onEnded: ((end: DescriptorEnd) => void) | undefined;
  /** Grows when something may have happened to an operation: a reason to look, never an answer. */
  readonly activity: number;
  /** `wake` is called whenever `activity` grows. */
  watch(wake: () => void): void;
  /**
   * Submits operations, waiting while the queue is full; `batch`: as one batch, `noWait`: a full queue is EAGAIN.
   * ENODEV when the device is gone.
   */
  submit(operations: readonly Operation[], options: { batch: boolean; noWait: boolean }): Steps<Submission>;
}
