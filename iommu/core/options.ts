/** What the parts of the core share: collaborators, options, counters. */
import { assert } from '../../sim/assert.js';
import type { FrameSource } from '../../host/frame-source.js';
import type { KernelLog } from '../../host/kernel-log.js';
import type { Timing } from '../../host/timing.js';
import type { Mailbox } from '../../sim/channel.js';
import type { Clock } from '../../sim/clock.js';
import type { Random } from '../../sim/random.js';
import type { Scheduler } from '../../sim/task.js';
import type { Trace } from '../../sim/trace.js';
import type { Observable } from 'rxjs';
import type { PasidPolicy } from './ioasid.js';
import type { FaultReport, PageResponse } from './ops.js';
import type { Registry } from './records.js';
import type { CoreTrace } from './trace-kinds.js';

export interface IommuCoreOptions {
  /** How PASIDs are chosen (I4). Default `lowest`. */
  readonly pasidPolicy?: PasidPolicy;
  /** Seconds until a handler's answer is overdue, 1..100, 0: never (R9). Default 10. */
  readonly prqTimeoutSeconds?: number;
  /** What happens then: a warning, or also an answer (2d step 8). Default `warn`. */
  readonly prqTimeoutPolicy?: 'warn' | 'invalid' | 'failure';
  /** Reports the reuse of a page request group index that is still in use as a protocol violation (P2, E20). */
  readonly strictPrg?: boolean;
  /** Workers of each page-request queue. Default 4. */
  readonly iopfWorkers?: number;
  /** Groups, and separately partial requests per device, that a queue holds before it answers ENOMEM (P5). Default 65536. */
  readonly iopfLimit?: number;
  /** Whether a DMA unmap waits for its invalidation. Default `strict`. */
  readonly dma?: 'strict' | 'lazy';
  /** What translates requests without PASID that nobody attached a domain for. Default `dma`. */
  readonly defaultDomain?: 'dma' | 'identity';
  /** Tells this kernel's devices and PASIDs from another kernel's in the trace. Empty for the host. */
  readonly scope?: string;
  /** Tests may delay, drop or forge on the wires. */
  readonly faultWire?: (faults$: Observable<FaultReport>) => Observable<FaultReport>;
  readonly responseWire?: (responses$: Observable<PageResponse>) => Observable<PageResponse>;
}

export interface IommuCoreParts {
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly mailbox: Mailbox;
  readonly trace: Trace;
  readonly timing: Timing;
  readonly log: KernelLog;
  readonly random: Random;
  /** For coherent DMA memory. */
  readonly frames?: FrameSource;
  readonly options?: IommuCoreOptions;
  /** Named defects, switched on by tests only. */
  readonly defects?: ReadonlySet<string>;
}

/** What went past the core, and what went wrong, since the start. */
export interface CoreCounters {
  pageRequests: number;
  groups: number;
  responses: { success: number; invalid: number; failure: number };
  unrecoverable: number;
  discarded: number;
  lateResponses: number;
  timeouts: number;
  /** Broken rules of devices and drivers: reused group index, double DMA unmap, … */
  violations: number;
}

export interface CoreContext {
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly mailbox: Mailbox;
  readonly timing: Timing;
  readonly log: KernelLog;
  readonly random: Random;
  readonly frames: FrameSource | undefined;
  readonly options: IommuCoreOptions;
  readonly defects: ReadonlySet<string>;
  readonly trace: CoreTrace;
  readonly registry: Registry;
  readonly counters: CoreCounters;
}

export function checkOptions(options: IommuCoreOptions): void {
  const seconds = options.prqTimeoutSeconds ?? 10;
  assert(Number.isInteger(seconds) && seconds >= 0 && seconds <= 100, `prqTimeoutSeconds ${seconds} is not 0..100`);
  const workers = options.iopfWorkers ?? 4;
  assert(Number.isInteger(workers) && workers >= 1, `iopfWorkers ${workers} is not a positive integer`);
}

export function newCounters(): CoreCounters {
  return {
    pageRequests: 0, groups: 0, responses: { success: 0, invalid: 0, failure: 0 }, unrecoverable: 0, discarded: 0, lateResponses: 0, timeouts: 0, violations: 0,
  };
}
