/**
 * What a replay found, for every kind of file: golden vectors, recordings of this simulator, traces of Linux. Every
 * check is counted once, as an agreement, a disagreement, a known disagreement, a stale answer or unsupported.
 */

/** One step where the model and the file differ. */
export interface Disagreement {
  /** Steps of vectors and lines of traces count from 1; 0: before the first (reset values, capability registers). */
  readonly step: number;
  /** `op` of the step, such as `dma` or `mmioRead`. */
  readonly op: string;
  /** What was done, in words: `0000:00:03.0 reads 0x1000`, `FSTS (0x34)`. */
  readonly what: string;
  readonly expected: string;
  readonly got: string;
  /** Table entries and sentences that led there, one line each, as `inspect` prints them. */
  readonly walk?: readonly string[];
  /** Which of the two replays of a vector differs; absent where there is one. */
  readonly caches?: 'off' | 'on';
}

/** A disagreement that is listed with its reason (see docs/disagreements.md). */
export interface KnownDisagreement extends Disagreement {
  readonly clause: string;
  readonly why: string;
}

/** An answer out of a cache that no invalidation has reached yet: both answers are right. */
export interface StaleAnswer {
  readonly step: number;
  readonly what: string;
  /** Whose answer came out of its cache. */
  readonly side: 'file' | 'model';
  readonly expected: string;
  readonly got: string;
  /** The cached entry, and the invalidation that would end it. */
  readonly why: string;
}

/** A step that touches what the model does not have; neither agreement nor disagreement. */
export interface Unsupported {
  readonly step: number;
  readonly op: string;
  readonly what: string;
  readonly why: string;
}

export type ReplayKind = 'vector' | 'recording' | 'linux-trace' | 'guest';

export interface ReplayReport {
  /** As the caller named it. */
  readonly file: string;
  readonly kind: ReplayKind;
  /** What produced the file: `QEMU 11.1.3`, `Linux 7.3.4`, `vfiosim 0.1.0`. */
  readonly source: string;
  /** Steps, lines. */
  readonly steps: number;
  /** Things compared, by kind, for example `DMA`, `register reads`, `memory checks`, `interrupts`, in order of printing. */
  readonly checks: Readonly<Record<string, number>>;
  readonly agreements: number;
  readonly disagreements: readonly Disagreement[];
  readonly known: readonly KnownDisagreement[];
  readonly stale: readonly StaleAnswer[];
  readonly unsupported: readonly Unsupported[];
  /** Capability bits of the file whose feature the model does not have, as `ECAP.IR`. */
  readonly notModelled: readonly string[];
  /** Sentences worth printing once per file. */
  readonly remarks: readonly string[];
}

/** Disagreements kept per file; more are counted in a remark. */
export const KEPT_DISAGREEMENTS = 100;
