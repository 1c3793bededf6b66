/** The summary as tables for people. Colours only where stdout is a terminal and NO_COLOR is not set. */
import Table from 'cli-table3';
import pc from 'picocolors';
import type { FlowSummary, Summary } from '../harness/summary.js';
import { formatSize, formatTime } from '../harness/topology/units.js';

const MANY_FLOWS = 24;

export function renderSummary(summary: Summary): string {
  const lines = [
    `${pc.bold(summary.topology)}  seed ${summary.seed}  ${formatTime(summary.virtualTimeNs)} simulated, ${summary.events} events`,
    '', flowTable(summary.flows), '', invariantTable(summary), '',
  ];
  const leaks = Object.entries(summary.leaks);
  lines.push(`leaks: ${leaks.map(([name, count]) => (count === 0 ? `${name} 0` : pc.red(`${name} ${count}`))).join(', ')}`);
  lines.push(`trace: ${summary.traceHash}`);
  for (const failure of summary.stepFailures) lines.push(pc.red(`step failed: ${failure}`));
  for (const unmet of summary.unmetExpectations) lines.push(pc.red(`expected: ${unmet}`));
  lines.push('', verdict(summary));
  return `${lines.join('\n')}\n`;
}

function flowTable(flows: readonly FlowSummary[]): string {
  const table = new Table({
    head: ['flow', 'device', 'status', 'bytes', 'page requests', 'success', 'invalid', 'failure', 'faults', 'p50', 'p99', 'max'],
    colAligns: ['left', 'left', 'left', 'right', 'right', 'right', 'right', 'right', 'right', 'right', 'right', 'right'],
    style: { head: [], border: [], compact: true },
  });
  for (const flow of flows.slice(0, MANY_FLOWS)) {
    const { responses, latencyNs } = flow;
    table.push([
      flow.name, flow.device, flow.status === 'ok' ? pc.green('ok') : pc.red(`failed: ${flow.reason}`), formatSize(flow.bytes), flow.pageRequests,
      responses.success, responses.invalid, responses.failure, flow.unrecoverable,
      formatTime(latencyNs.p50), formatTime(latencyNs.p99), formatTime(latencyNs.max),
    ]);
  }
  const rest = flows.slice(MANY_FLOWS);
  if (rest.length === 0) return table.toString();
  const failed = rest.filter((flow) => flow.status !== 'ok').length;
  return `${table.toString()}\n… and ${rest.length} more flows, ${failed === 0 ? 'all ok' : pc.red(`${failed} failed`)} (--json lists them)`;
}

function invariantTable(summary: Summary): string {
  const table = new Table({ head: ['invariant', 'checked', 'status'], colAligns: ['left', 'right', 'left'], style: { head: [], border: [], compact: true } });
  for (const { name, checked, status, violations } of summary.invariants) {
    table.push([name, checked, status === 'ok' ? pc.green('ok') : pc.red(`violated: ${violations[0] ?? ''}`)]);
  }
  return table.toString();
}

function verdict(summary: Summary): string {
  if (summary.end === 'time-limit' || summary.end === 'event-limit') return pc.yellow(`LIMIT: stopped at the ${summary.end === 'time-limit' ? 'simulated time' : 'event'} limit of the topology`);
  if (summary.end === 'stopped') return pc.yellow('STOPPED where asked');
  return summary.verdict === 'pass' ? pc.green(pc.bold('PASS')) : pc.red(pc.bold('FAIL'));
}
