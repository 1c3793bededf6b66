/** The summary as tables for people, and where a machine stopped. */
import Table from 'cli-table3';
import type { MachineState, TaskState } from '../harness/machine-state.js';
import type { FlowSummary, GuestSummary, Summary } from '../harness/summary.js';
import { formatSize, formatTime } from '../harness/topology/units.js';
import type { Colors } from './io.js';

const MANY_FLOWS = 24;
const MANY_DEVICES = 8;
const MANY_TASKS = 24;

/** @param state where the machine stands, when the run did not end by itself */
export function renderSummary(summary: Summary, colors: Colors, state?: MachineState): string {
  const lines = [`${colors.bold(summary.topology)}  seed ${summary.seed}  ${formatTime(summary.virtualTimeNs)} simulated, ${summary.events} events`, ''];
  if (state !== undefined) lines.push(...stateLines(state, colors), '');
  lines.push(...guestTable(summary.guests, colors), ...flowTable(summary.flows, colors), '', invariantTable(summary, colors), '');
  const leaks = Object.entries(summary.leaks);
  // what is still in use has leaked only after teardown
  if (summary.end === 'finished') lines.push(`leaks: ${leaks.map(([name, count]) => (count === 0 ? `${name} 0` : colors.red(`${name} ${count}`))).join(', ')}`);
  lines.push(`trace: ${summary.traceHash}`);
  for (const failure of summary.stepFailures) lines.push(colors.red(`step failed: ${failure}`));
  for (const unmet of summary.unmetExpectations) lines.push(colors.red(`expected: ${unmet}`));
  lines.push('', verdict(summary, colors));
  return `${lines.join('\n')}\n`;
}

/** Tasks and what they wait for, then the last records. */
function stateLines(state: MachineState, colors: Colors): string[] {
  const processes = state.tasks.filter((task) => !task.daemon), threads = state.tasks.filter((task) => task.daemon);
  return [
    `stopped at ${formatTime(state.timeNs)}, event ${state.event}`,
    ...taskLines('tasks', processes, colors), ...taskLines('kernel threads', threads, colors),
    colors.bold('last records'), ...state.records.map((record) => `  ${record}`),
  ];
}

function taskLines(title: string, tasks: readonly TaskState[], colors: Colors): string[] {
  if (tasks.length === 0) return [];
  // many workers that wait for the same are one line
  const lines = new Map<string, number>();
  for (const task of tasks) {
    const held = task.holds.length === 0 ? '' : `, holds ${task.holds.join(', ')}`;
    const does = task.waitsFor === '' ? `is ${task.state}` : `waits for ${task.waitsFor}`;
    const line = `  ${task.name}${task.step === '' ? '' : `, ${task.step}`}: ${does}${held}`;
    lines.set(line, (lines.get(line) ?? 0) + 1);
  }
  const shown = [...lines].slice(0, MANY_TASKS);
  const rest = [...lines].slice(MANY_TASKS).reduce((sum, [, count]) => sum + count, 0);
  return [colors.bold(title), ...shown.map(([line, count]) => (count === 1 ? line : `${line} (${count} times)`)), ...(rest > 0 ? [`  … and ${rest} more`] : [])];
}

function guestTable(guests: readonly GuestSummary[], colors: Colors): string[] {
  if (guests.length === 0) return [];
  const table = new Table({ head: ['guest', 'state', 'memory', 'devices'], colAligns: ['left', 'left', 'right', 'left'], style: { head: [], border: [], compact: true } });
  const shown = guests.slice(0, MANY_FLOWS);
  for (const { name, state, memoryBytes, devices } of shown) {
    const color = state === 'running' || state === 'off' ? colors.green : state === 'refused' ? colors.red : colors.yellow;
    table.push([name, color(state), formatSize(memoryBytes), devices.slice(0, MANY_DEVICES).join('\n') + (devices.length > MANY_DEVICES ? `\n… and ${devices.length - MANY_DEVICES} more` : '')]);
  }
  const lines = [table.toString()];
  if (guests.length > shown.length) lines.push(`… and ${guests.length - shown.length} more guests (--json lists them)`);
  lines.push(...guests.filter(({ reason }) => reason !== '').slice(0, MANY_FLOWS).map(({ name, state, reason }) => (state === 'refused' ? `${name} was refused: ${reason}` : `${name}: ${reason}`)));
  return [...lines, ''];
}

function flowTable(flows: readonly FlowSummary[], colors: Colors): string[] {
  if (flows.length === 0) return ['no process has opened a device'];
  const table = new Table({
    head: ['flow', 'device', 'status', 'bytes', 'page requests', 'success', 'invalid', 'failure', 'faults', 'p50', 'p99', 'max'],
    colAligns: ['left', 'left', 'left', 'right', 'right', 'right', 'right', 'right', 'right', 'right', 'right', 'right'],
    style: { head: [], border: [], compact: true },
  });
  for (const flow of flows.slice(0, MANY_FLOWS)) {
    const { responses, latencyNs } = flow;
    table.push([
      flow.name, flow.device, flow.status === 'ok' ? colors.green('ok') : colors.red('failed'), formatSize(flow.bytes), flow.pageRequests,
      responses.success, responses.invalid, responses.failure, flow.unrecoverable,
      formatTime(latencyNs.p50), formatTime(latencyNs.p99), formatTime(latencyNs.max),
    ]);
  }
  const lines = [table.toString()];
  const rest = flows.slice(MANY_FLOWS);
  if (rest.length > 0) {
    const failed = rest.filter((flow) => flow.status !== 'ok').length;
    lines.push(`… and ${rest.length} more flows, ${failed === 0 ? 'all ok' : colors.red(`${failed} failed`)} (--json lists them)`);
  }
  const failures = flows.filter((flow) => flow.status === 'failed');
  lines.push(...failures.slice(0, MANY_FLOWS).map((flow) => `${flow.name}: ${flow.reason}`));
  return lines;
}

function invariantTable(summary: Summary, colors: Colors): string {
  const table = new Table({ head: ['invariant', 'checked', 'status'], colAligns: ['left', 'right', 'left'], style: { head: [], border: [], compact: true } });
  for (const { name, checked, status } of summary.invariants) table.push([name, checked, status === 'ok' ? colors.green('ok') : colors.red('violated')]);
  const violations = summary.invariants.flatMap(({ name, violations: texts }) => texts.map((text) => colors.red(`${name}: ${text}`)));
  return [table.toString(), ...violations].join('\n');
}

function verdict(summary: Summary, colors: Colors): string {
  if (summary.verdict === 'limit') return colors.yellow(`LIMIT: stopped at the ${summary.end === 'time-limit' ? 'simulated time' : 'event'} limit of the topology`);
  if (summary.end === 'stopped') return colors.yellow('STOPPED where asked');
  return summary.verdict === 'pass' ? colors.green(colors.bold('PASS')) : colors.red(colors.bold('FAIL'));
}
