import { parseWalkTarget, type WalkReport } from '../harness/inspect.js';
import { parseStopPoint } from '../harness/stop-point.js';
import { formatTime } from '../harness/topology/units.js';
import { EXIT } from './exit.js';
import { withMachine, WrongUsage } from './failure.js';
import { say, type Colors, type Io } from './io.js';

interface InspectOptions {
  readonly walk: string;
  readonly at: string;
  readonly seed?: number;
  readonly json?: boolean;
}

/** Runs to a place and prints each table entry on the way of an address, raw and decoded. */
export function inspect(io: Io, file: string, options: InspectOptions): Promise<number> {
  const stop = parseStopPoint(options.at);
  if (typeof stop === 'string') throw new WrongUsage(`--at: ${stop}`);
  const target = parseWalkTarget(options.walk);
  if (typeof target === 'string') throw new WrongUsage(`--walk: ${target}`);
  return withMachine(io, file, options.seed === undefined ? {} : { seed: options.seed }, (machine) => {
    machine.run({ stopAt: stop });
    if (machine.end !== 'stopped') say(io, `${options.at} was not reached; this is the machine at its end, after its teardown`);
    const report = machine.walk(target);
    if (typeof report === 'string') throw new WrongUsage(`--walk: ${report}`);
    const { now: timeNs, events: event } = machine.clock;
    const json = (): string => `${JSON.stringify({ timeNs, event, ...report }, (_key, value: unknown) => (typeof value === 'bigint' ? hex(value) : value), 2)}\n`;
    io.stdout.write(options.json === true ? json() : render(report, timeNs, event, io.colors));
    return EXIT.ok;
  });
}

const LEVELS = ['PTE', 'PDE', 'PDPTE', 'PML4E', 'PML5E'];

function render(report: WalkReport, timeNs: number, event: number, colors: Colors): string {
  const lines = [`${colors.bold(report.device)} PASID ${report.pasid ?? 'none'} address ${hex(report.address)} at ${formatTime(timeNs)}, event ${event}`, ''];
  let stage: string | undefined;
  for (const step of report.steps) {
    if (step.stage !== stage) lines.push(...(stage === undefined ? [] : ['']), colors.bold((stage = step.stage) ?? ''));
    const name = ['first-level', 'second-level', 'guest', 'VMM'].includes(step.what) ? `${step.what} ${LEVELS[step.level] ?? step.level}` : step.what;
    const raw = step.qwords.length === 0 ? (['memory slot', 'pinned on demand'].some((what) => step.what.startsWith(what)) ? '' : '(not memory)') : step.qwords.map((qword) => qword.toString(16).padStart(16, '0')).join(' ');
    lines.push(`${name.padEnd(20)} ${hex(BigInt(step.address)).padStart(14)}  ${raw}`.trimEnd(), `${' '.repeat(37)}${colors.dim(step.text === '' ? 'all zero' : step.text)}`);
  }
  const rights = [report.read && 'read', report.write && 'write', report.execute && 'execute'].filter(Boolean).join(', ');
  lines.push('', report.physical === undefined
    ? colors.yellow(`no translation: ${report.text}${report.reason === 0 ? '' : ` (fault reason 0x${report.reason.toString(16)})`}`)
    : `→ ${colors.green(hex(report.physical))}  ${rights}, page of ${report.pages * 4} KiB`);
  return `${lines.join('\n')}\n`;
}

function hex(value: bigint): string {
  return `0x${value.toString(16)}`;
}
