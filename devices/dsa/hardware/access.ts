/** How an operation touches memory: one accessor for each descriptor in progress. */
import type { Steps } from '../../../sim/task.js';
import type { Job } from './job.js';

/** All bytes moved. */
export const ACCESS_OK = 0;
/** No translation, and the descriptor does not block on faults (or the function cannot request pages). */
export const ACCESS_FAULT = 1;
/** The page request was answered Invalid or Response Failure. */
export const ACCESS_REFUSED = 2;
/** Unsupported Request or Completer Abort. */
export const ACCESS_ERROR = 3;
/** The function may not act any more: bus mastering off, reset, removal, abort. */
export const ACCESS_REVOKED = 4;
export type AccessOutcome = 0 | 1 | 2 | 3 | 4;

export interface MemoryAccess {
  /** Bytes that the last access moved before it ended. */
  readonly doneBytes: number;
  /** @param block wait for page requests instead of reporting a fault */
  read(job: Job, page: number, offset: number, target: Uint8Array, targetOffset: number, length: number, block: boolean): Steps<AccessOutcome>;
  write(job: Job, page: number, offset: number, source: Uint8Array, sourceOffset: number, length: number, block: boolean): Steps<AccessOutcome>;
}
