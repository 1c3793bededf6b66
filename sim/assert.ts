/**
 * Checks on the simulator itself. A failed assertion is a bug in vfiosim, never a refused request (`Errno`),
 * never something hardware does (a value), never bad input from people (a problem list).
 */

/** A bug in the simulator: the run stops, the harness adds the seed and the tail of the trace. */
export class SimulatorBug extends Error {
  override readonly name = 'SimulatorBug';
}

export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new SimulatorBug(message);
}
