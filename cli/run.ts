import { closeSync, openSync, writeSync } from 'node:fs';
import { createMachineSync, type Machine } from '../harness/machine.js';
import { parseBreak, parseStopPoint, type StopPoint } from '../harness/stop-point.js';
import { traceToNdjson, traceToPerfetto } from '../sim/trace-export.js';
import { TRACE_SPANS } from '../harness/trace-spans.js';
import { formatTime } from '../harness/topology/units.js';
import { EXIT } from './exit.js';
import { Progress } from './progress.js';
import { renderSummary } from './render.js';

interface RunCommandOptions {
  readonly seed?: number;
  readonly json?: boolean;
  readonly trace?: string;
  readonly until?: string;
  readonly break?: string;
  readonly log?: boolean;
}

/** Runs a topology; the summary goes to stdout, progress and where a run stopped to stderr. */
export function run(file: string, options: RunCommandOptions): number {
  const machine = createMachineSync(file, options.seed === undefined ? {} : { seed: options.seed });
  const stop = stopPoint(machine, options);
  if (typeof stop === 'string') {
    process.stderr.write(`${stop}\n`);
    return EXIT.usage;
  }
  const progress = new Progress(machine);
  machine.run({ ...(stop === undefined ? {} : { stopAt: stop }), onSlice: () => progress.show() });
  progress.clear();
  const stopped = machine.end === 'stopped';
  if (stopped) process.stderr.write(`stopped at ${formatTime(machine.clock.now)}, event ${machine.clock.events}\n`);
  const summary = machine.summary();
  if (options.log === true) for (const line of machine.dmesg()) process.stderr.write(`${line}\n`);
  if (options.trace !== undefined) writeTrace(machine, options.trace);
  if (options.trace !== '-') process.stdout.write(options.json === true ? `${JSON.stringify(summary, null, 2)}\n` : renderSummary(summary));
  if (summary.verdict === 'limit') return EXIT.limit;
  return stopped || summary.verdict === 'pass' ? EXIT.ok : EXIT.failed;
}

function stopPoint(machine: Machine, options: RunCommandOptions): StopPoint | string | undefined {
  if (options.until !== undefined && options.break !== undefined) return '--until and --break exclude each other';
  if (options.until !== undefined) {
    const stop = parseStopPoint(options.until);
    return typeof stop === 'string' ? `--until: ${stop}` : stop;
  }
  if (options.break === undefined) return undefined;
  const stop = parseBreak(options.break, machine.trace.kinds.map((kind) => kind.name));
  return typeof stop === 'string' ? `--break: ${stop}` : stop;
}

function writeTrace(machine: Machine, out: string): void {
  const chunks = out.endsWith('.json') ? traceToPerfetto(machine.trace, TRACE_SPANS) : traceToNdjson(machine.trace);
  const fd = out === '-' ? 1 : openSync(out, 'w');
  try {
    let buffered = '';
    for (const chunk of chunks) {
      buffered += chunk;
      if (buffered.length > 1 << 16) {
        writeAll(fd, buffered);
        buffered = '';
      }
    }
    writeAll(fd, buffered);
  } finally {
    if (fd !== 1) closeSync(fd);
  }
  if (machine.trace.first > 0) process.stderr.write(`trace: the oldest ${machine.trace.first} records were dropped, the newest ${machine.trace.count - machine.trace.first} are kept\n`);
}

function writeAll(fd: number, text: string): void {
  const bytes = Buffer.from(text);
  for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at);
}
