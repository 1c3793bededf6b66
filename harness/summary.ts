/** The result of a run: one object, the same for `run --json`, the table on a terminal and tests. */

export interface Latency {
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
}

/** What one process did with one handle of one device. */
export interface FlowSummary {
  /** `process/handle`, of a guest `guest/process/handle` */
  readonly name: string;
  /** Name of the guest, null for a process of the host. */
  readonly guest: string | null;
  readonly process: string;
  readonly device: string;
  /** `ok` when every descriptor ended as its `wait` expected and every `verify` held. */
  readonly status: 'ok' | 'failed';
  /** Why it failed, the first reason; empty when it did not. */
  readonly reason: string;
  readonly descriptors: number;
  readonly bytes: number;
  readonly pageRequests: number;
  /** Answers to page request groups. */
  readonly responses: { readonly success: number; readonly invalid: number; readonly failure: number };
  /** Non-recoverable faults under this flow's PASID. */
  readonly unrecoverable: number;
  /** From submission to completion. */
  readonly latencyNs: Latency;
}

export interface InvariantSummary {
  readonly name: string;
  readonly status: 'ok' | 'violated';
  /** How many things were checked; an invariant that saw nothing proves nothing. */
  readonly checked: number;
  /** The first violations, in words. */
  readonly violations: readonly string[];
}

export interface Leaks {
  readonly pasids: number;
  readonly pinnedPages: number;
  readonly domains: number;
  readonly frames: number;
}

/** How a guest ended. */
export interface GuestSummary {
  readonly name: string;
  readonly state: 'off' | 'starting' | 'running' | 'paused' | 'refused' | 'killed';
  /** Why it was refused or killed; empty otherwise. */
  readonly reason: string;
  readonly memoryBytes: number;
  /** How often its kernel was composed. */
  readonly boots: number;
  /** `name (as VFIO names it)` */
  readonly devices: readonly string[];
}

export type RunEnd = 'finished' | 'time-limit' | 'event-limit' | 'stopped' | 'deadlock';

export interface Summary {
  readonly topology: string;
  readonly seed: number;
  readonly end: RunEnd;
  readonly virtualTimeNs: number;
  readonly events: number;
  readonly flows: readonly FlowSummary[];
  readonly guests: readonly GuestSummary[];
  /** Steps of processes that did not go as written, `process: step 3 (verify): …`. */
  readonly stepFailures: readonly string[];
  /** What `expect` of the topology asked for and did not get. */
  readonly unmetExpectations: readonly string[];
  readonly invariants: readonly InvariantSummary[];
  /** Records per trace kind. */
  readonly counters: Readonly<Record<string, number>>;
  readonly leaks: Leaks;
  readonly traceHash: string;
  readonly verdict: 'pass' | 'fail' | 'limit';
}

/** Nearest-rank percentiles of latencies in nanoseconds; zeros when there are none. */
export function latencyOf(samples: readonly number[]): Latency {
  if (samples.length === 0) return { p50: 0, p99: 0, max: 0 };
  const sorted = Float64Array.from(samples).sort();
  const rank = (share: number): number => sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)]!;
  return { p50: rank(0.5), p99: rank(0.99), max: sorted.at(-1)! };
}
