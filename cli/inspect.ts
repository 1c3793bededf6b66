import pc from 'picocolors';
import { createMachineSync } from '../harness/machine.js';
import { parseWalkTarget, type WalkReport } from '../harness/inspect.js';
import { parseStopPoint } from '../harness/stop-point.js';
import { formatTime } from '../harness/topology/units.js';
import { EXIT } from './exit.js';

interface InspectOptions {
  readonly walk: string;
  readonly at: string;
  readonly seed?: number;
  readonly json?: boolean;
}

/** Runs to a place and prints each table entry on the way of an address, raw and decoded. */
export function inspect(file: string, options: InspectOptions): number {
  const stop = parseStopPoint(options.at);
  if (typeof stop === 'string') return usage(`--at: ${stop}`);
  const target = parseWalkTarget(options.walk);
  if (typeof target === 'string') return usage(`--walk: ${target}`);
  const machine = createMachineSync(file, options.seed === undefined ? {} : { seed: options.seed });
  machine.run({ stopAt: stop });
  if (machine.end !== 'stopped') process.stderr.write(`${options.at} was not reached; this is the machine at its end\n`);
  const report = machine.walk(target);
  if (typeof report === 'string') return usage(`--walk: ${report}`);
  process.stdout.write(options.json === true ? `${JSON.stringify(report, (_key, value: unknown) => (typeof value === 'bigint' ? `0x${value.toString(16)}` : value), 2)}\n` : render(report, machine.clock.now));
  return EXIT.ok;
}

function usage(message: string): number {
  process.stderr.write(`${message}\n`);
  return EXIT.usage;
}

const LEVELS = ['PTE', 'PDE', 'PDPTE', 'PML4E', 'PML5E'];

function render(report: WalkReport, nowNs: number): string {
  const lines = [`${pc.bold(report.device)} PASID ${report.pasid ?? 'none'} address ${hex(report.address)} at ${formatTime(nowNs)}`, ''];
  for (const step of report.steps) {
    const name = step.what === 'first-level' || step.what === 'second-level' ? `${step.what} ${LEVELS[step.level] ?? step.level}` : step.what;
    const raw = step.qwords.length === 0 ? '(not memory)' : step.qwords.map((qword) => qword.toString(16).padStart(16, '0')).join(' ');
    lines.push(`${name.padEnd(20)} ${hex(BigInt(step.address)).padStart(14)}  ${raw}`, `${' '.repeat(37)}${pc.dim(step.text === '' ? 'all zero' : step.text)}`);
  }
  lines.push('', report.physical === undefined
    ? pc.yellow(`no translation: ${report.text}${report.reason === 0 ? '' : ` (fault reason 0x${report.reason.toString(16)})`}`)
    : `→ ${pc.green(hex(report.physical))}  ${[report.read && 'read', report.write && 'write', report.execute && 'execute'].filter(Boolean).join(', ')}, page of ${report.pages * 4} KiB`);
  return `${lines.join('\n')}\n`;
}

function hex(value: bigint): string {
  return `0x${value.toString(16)}`;
}
