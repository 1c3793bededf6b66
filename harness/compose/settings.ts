import type { Topology } from '../topology/schema.js';

/** The inputs of a run. */
export interface Settings {
  readonly topology: Topology;
  readonly seed: number;
  /** Named defects of the product, switched on by tests only. */
  readonly defects: ReadonlySet<string>;
  /** Trace records kept; older ones are dropped from the ring, never from the hash. */
  readonly traceRecords: number;
  /** Records every page that DMA moves and every page-table change, for checkers. */
  readonly watch: boolean;
}
