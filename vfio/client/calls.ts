/**
 * How a program calls VFIO: records are laid into memory of its own, the ioctl gets their address, answers are read
 * back. Memory for records comes from mmap in whole pages and is used again; calls that overlap have each its own.
 */
import { alignUp } from '../../sim/address.js';
import { Errno, isErrno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import { SegmentationFault } from '../../host/mm/mm.js';
import type { Process } from '../../host/process.js';
import { bytesOf, wordsOfBytes } from '../uapi/fields.js';

/** What came of a call with a record. */
export interface RawAnswer {
  /** What the call returned; undefined when it was refused. */
  readonly result: number | undefined;
  readonly refusal: Errno | undefined;
  /** The record's memory after the call. */
  readonly bytes: Uint8Array;
}

const PAGE = 4096;

export class VfioCalls {
  readonly process: Process;
  /** Addresses of areas that are not in use, by their size in bytes. */
  private readonly free = new Map<number, number[]>();

  /** The process must not exec while calls are made through this. */
  constructor(process: Process) {
    this.process = process;
  }

  /** ioctl(fd, command, record); the record's words after the call. */
  *record(fd: number, command: number, words: ArrayLike<number>): Steps<Uint32Array> {
    return (yield* this.recordWithResult(fd, command, words)).words;
  }

  *recordWithResult(fd: number, command: number, words: ArrayLike<number>): Steps<{ readonly result: number; readonly words: Uint32Array }> {
    const { result, refusal, bytes } = yield* this.raw(fd, command, bytesOf(words));
    if (refusal !== undefined) throw refusal;
    return { result: result!, words: wordsOfBytes(bytes) };
  }

  /** ioctl(fd, command, &bytes), whatever the bytes are; a refusal is returned, and what the kernel wrote nevertheless. */
  *raw(fd: number, command: number, bytes: Uint8Array): Steps<RawAnswer> {
    return yield* this.withMemory(bytes.length, (address) => this.rawAt(fd, command, address, bytes));
  }

  private *rawAt(fd: number, command: number, address: number, bytes: Uint8Array): Steps<RawAnswer> {
    const { process } = this;
    yield* process.mm.write(address, bytes);
    let result: number | undefined, refusal: Errno | undefined;
    try {
      result = yield* process.ioctl(fd, command, address);
    } catch (error) {
      if (!isErrno(error)) throw error;
      if (process.state !== 'running') throw error;
      refusal = error;
    }
    const after = new Uint8Array(bytes.length);
    yield* process.mm.read(address, after);
    return { result, refusal, bytes: after };
  }

  /** Lends `length` bytes of zeros of the process's memory. ESRCH when the process is killed in the middle of the call. */
  *withMemory<T>(length: number, use: (address: number) => Steps<T>): Steps<T> {
    const { process } = this;
    try {
      return yield* this.lend(length, use);
    } catch (error) {
      if (!(error instanceof SegmentationFault) || process.state === 'running') throw error;
      throw new Errno('ESRCH', `process ${process.pid} (${process.name}) is ${process.state}`);
    }
  }

  private *lend<T>(length: number, use: (address: number) => Steps<T>): Steps<T> {
    const { mm } = this.process;
    const size = Math.max(alignUp(length, PAGE), PAGE);
    let free = this.free.get(size);
    if (free === undefined) this.free.set(size, (free = []));
    const recycled = free.pop();
    const address = recycled ?? (yield* mm.mmap(size));
    try {
      if (recycled !== undefined) yield* mm.fill(address, 0, size);
      return yield* use(address);
    } finally {
      free.push(address);
    }
  }
}
