/** The public API of vfiosim. */
import { createMachineSync, Machine, type MachineOptions } from './machine.js';
import type { TopologyInput } from './topology/schema.js';

/**
 * Composes a machine from a topology file or a topology in code; nothing runs yet.
 * @throws InvalidInput with every problem and its place
 */
export async function createMachine(source: string | TopologyInput, options: MachineOptions = {}): Promise<Machine> {
  return createMachineSync(source, options);
}

export { createMachineSync, Machine, type MachineOptions };
export { Errno, ERRNO, isErrno, type ErrnoName } from '../sim/errno.js';
export { InvalidInput, formatProblems, type Problem } from './topology/problems.js';
export { loadTopology, checkTopology } from './topology/load.js';
export { topologyJsonSchema, type Topology, type TopologyInput } from './topology/schema.js';
export type { FlowSummary, InvariantSummary, Leaks, RunEnd, Summary } from './summary.js';
export { Checker } from './checkers/invariant.js';
export type { WalkReport, WalkTarget } from './inspect.js';
export { parseStopPoint, type StopPoint } from './stop-point.js';
export { traceToNdjson, traceToPerfetto } from '../sim/trace-export.js';
