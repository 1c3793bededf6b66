/** Where a machine stands: time, tasks and what they wait for, the last records of its trace. For people. */
import type { Task } from '../sim/task.js';
import type { Trace, TraceRecord } from '../sim/trace.js';
import type { Machine } from './machine.js';

export interface TaskState {
  readonly name: string;
  readonly state: 'ready' | 'running' | 'blocked';
  /** A kernel thread that may wait for work for ever. */
  readonly daemon: boolean;
  /** The step a process is in, `step 5 (wait)`; empty for anything else. */
  readonly step: string;
  /** Completes "waits for …"; empty when it does not wait. */
  readonly waitsFor: string;
  readonly holds: readonly string[];
}

export interface MachineState {
  readonly timeNs: number;
  /** Events run so far. */
  readonly event: number;
  readonly tasks: readonly TaskState[];
  /** The newest records, oldest first, as `recordText` prints them. */
  readonly records: readonly string[];
}

/** @param records how many of the newest trace records */
export function stateOf(machine: Machine, records = 12): MachineState {
  const { clock, trace, scenario, host } = machine;
  const steps = new Map([...scenario.programs.values()].map((program) => [program.task, program.current]));
  const kernels = [{ guest: '', scheduler: host.scheduler }, ...[...scenario.guests.values()].flatMap(({ name, scheduler }) => (scheduler === undefined ? [] : [{ guest: name, scheduler }]))];
  // what is a path in the guest reads as a path on another machine does: vm0:/dev/dsa/wq0.0
  const named = (guest: string, name: string): string => (guest === '' || name.startsWith(`${guest}/`) || name.startsWith(`${guest}:`) ? name : name.startsWith('/') ? `${guest}:${name}` : `${guest}/${name}`);
  const tasks = kernels.flatMap(({ guest, scheduler }) => scheduler.live().map((task): TaskState => ({
    name: named(guest, task.name), state: task.state as TaskState['state'], daemon: task.daemon, step: steps.get(task as Task) ?? '',
    waitsFor: task.blockedOn?.describe() ?? '', holds: task.heldLocks.map((lock) => lock.name),
  })));
  return { timeNs: clock.now, event: clock.events, tasks, records: tailOfTrace(trace, records) };
}

/** The newest `count` records, oldest first. */
export function tailOfTrace(trace: Trace, count: number): string[] {
  return [...trace.records(Math.max(0, trace.count - count))].map((record) => recordText(trace, record));
}

/** One record as ftrace prints it: `[    0.000050123] pci:page_request: page=0x… … id=12`. */
export function recordText(trace: Trace, record: TraceRecord): string {
  const fields = trace.describe(record).map(([name, text]) => `${name}=${text}`);
  if (record.correlation !== 0) fields.push(`id=${record.correlation}`);
  return `[${(record.timeNs / 1e9).toFixed(9).padStart(14)}] ${record.kind.name}: ${fields.join(' ')}`;
}
