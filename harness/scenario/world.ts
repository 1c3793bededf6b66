/** What programs need of the machine around them. */
import type { Malloc } from '../../host/mm/malloc.js';
import type { Process } from '../../host/process.js';
import type { PciFunctionDevice } from '../../host/pci/kernel/function-device.js';
import type { Timing } from '../../host/timing.js';
import type { Clock } from '../../sim/clock.js';
import type { Scheduler, Steps } from '../../sim/task.js';
import type { Step } from '../topology/schema.js';
import type { Flow, Flows } from './flows.js';
import type { UserHandle } from './operations.js';
import type { Program } from './program.js';

/** What all kernels of a run share: its report, and the files it names. */
export interface SharedScenario {
  readonly flows: Flows;
  /** Steps that did not go as written. */
  readonly failures: string[];
  readonly progress: { stepsDone: number; stepsTotal: number };
  /** By full name, `vm0/app` for a guest's. */
  readonly programs: Map<string, Program>;
  /** Content of a file the topology names. */
  file(path: string): Uint8Array;
  /** Something that tears a bond down is about to happen; a run may stop here. */
  beforeTeardown(): Steps;
}

export interface ScenarioWorld {
  readonly programs: ReadonlyMap<string, Program>;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly timing: Timing;
  readonly failures: string[];
  readonly progress: { stepsDone: number };
  /** Name of a process in reports. */
  fullName(process: string): string;
  file(path: string): Uint8Array;
  newFlow(process: string, handle: string, device: string): Flow;
  /** Opens a user queue; completion records come from `malloc`. ENOTTY no user queues; otherwise what the driver refuses. */
  open(process: Process, device: string, queue: string | undefined, malloc: Malloc): Steps<{ fd: number; user: UserHandle }>;
  /** From now on what the handle's operations do counts for `flow`. */
  opened(user: UserHandle, flow: Flow): void;
  /** The kernel's device of that name. ENODEV. */
  device(name: string): { readonly pci: PciFunctionDevice };
  bind(process: Process, device: string, mmExit: boolean): Steps;
  unbind(process: Process, device: string): Steps;
  forkProcess(parent: Process, name: string): Steps<Process>;
  start(program: Program, steps: readonly Step[]): void;
  join(process: string): Steps;
  /** The program counts among those of the run. */
  admit(program: Program): void;
  kill(process: string): void;
  beforeTeardown(): Steps;
}
