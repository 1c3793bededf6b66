/** What went wrong, said once and in the right words: bad input, wrong usage, a refused boot, a bug of ours. */
import { formatProblems, InvalidInput } from '../harness/topology/problems.js';
import { LimitReached } from '../harness/limit-reached.js';
import { tailOfTrace } from '../harness/machine-state.js';
import { createMachineSync, type Machine, type MachineOptions } from '../harness/machine.js';
import { isErrno } from '../sim/errno.js';
import { EXIT } from './exit.js';
import { say, type Io } from './io.js';

/** Arguments that parse but make no sense; nothing has started. */
export class WrongUsage extends Error {}

const TAIL_RECORDS = 20;

/**
 * Runs `use` with a machine composed from `file`. What it throws, other than bad input, is a bug of the simulator:
 * the seed that brings it back and the end of the trace go to stderr.
 */
export async function withMachine(io: Io, file: string, options: MachineOptions, use: (machine: Machine) => number | Promise<number>): Promise<number> {
  const machine = createMachineSync(file, options);
  try {
    return await use(machine);
  } catch (error) {
    if (error instanceof InvalidInput || error instanceof WrongUsage) throw error;
    if (error instanceof LimitReached) {
      say(io, `${file}: ${error.message}`);
      return EXIT.limit;
    }
    if (isErrno(error) && machine.end === undefined) {
      say(io, `${file}: the machine does not boot: ${error.message}`);
      return EXIT.failed;
    }
    reportBug(io, error, machine);
    return EXIT.bug;
  }
}

/** Says what a command threw; the exit code. */
export function explainFailure(io: Io, error: unknown): number {
  if (error instanceof WrongUsage) {
    say(io, error.message);
    return EXIT.usage;
  }
  if (error instanceof InvalidInput) {
    for (const line of formatProblems(error.problems)) say(io, line);
    return EXIT.input;
  }
  reportBug(io, error, undefined);
  return EXIT.bug;
}

export function reportBug(io: Io, error: unknown, machine: Machine | undefined): void {
  say(io, `bug in the simulator: ${error instanceof Error ? error.message : String(error)}`);
  if (machine !== undefined) {
    say(io, `topology ${machine.name}, seed ${machine.host.settings.seed}, at ${machine.clock.now} ns, event ${machine.clock.events}; the same seed brings it back`);
    const tail = tailOfTrace(machine.trace, TAIL_RECORDS);
    if (tail.length > 0) say(io, `the last ${tail.length} records of the trace:`);
    for (const line of tail) say(io, `  ${line}`);
  }
  if (error instanceof Error && error.stack !== undefined) say(io, error.stack);
}
