/** Runs a topology with a defect, or without any, and asks who complains. */
import { createMachineSync, type Machine } from '../../harness/machine.js';
import type { TopologyInput } from '../../harness/topology/schema.js';
import { SimulatorBug } from '../../sim/assert.js';

/** A machine that breaks down has told its checkers what it did before. */
export function run(topology: TopologyInput, defect?: string): Machine {
  const machine = createMachineSync(topology, defect === undefined ? {} : { defects: new Set([defect]) });
  try {
    machine.run();
  } catch (error) {
    if (defect === undefined || !(error instanceof SimulatorBug)) throw error;
  }
  return machine;
}

/** Names of violated invariants, and what failed steps and unmet expectations say. */
export function complaints(machine: Machine): { invariants: string[]; texts: string } {
  const { invariants, stepFailures, unmetExpectations } = machine.summary();
  return { invariants: invariants.filter(({ status }) => status === 'violated').map(({ name }) => name), texts: [...stepFailures, ...unmetExpectations].join('\n') };
}

/** An invariant by name, or a text of a step that failed or an expectation that was not met. */
export type Catcher = string | RegExp;
