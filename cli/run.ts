import { basename } from 'node:path';
import type { Machine } from '../harness/machine.js';
import { dumpMachine, dumpText } from '../harness/explain/dump.js';
import { stateOf } from '../harness/machine-state.js';
import { VectorRecorder } from '../harness/replay/record.js';
import { parseBreak, parseStopPoint, type StopPoint } from '../harness/stop-point.js';
import { EXIT } from './exit.js';
import { withMachine, WrongUsage } from './failure.js';
import { say, writePieces, type Io } from './io.js';
import { inBlocks, OutputFile, tracePieces } from './output-file.js';
import { Progress } from './progress.js';
import { renderSummary } from './render.js';

interface RunCommandOptions {
  readonly seed?: number;
  readonly json?: boolean;
  readonly trace?: string;
  readonly until?: string;
  readonly break?: string;
  readonly log?: boolean;
  readonly record?: string;
  /** Of the program, for the recording. */
  readonly version?: string;
  readonly dump?: string;
}

/** Runs a topology; the summary goes to stdout, or to stderr when the trace is on stdout. */
export function run(io: Io, file: string, options: RunCommandOptions): Promise<number> {
  const recorder = options.record === undefined ? undefined : new VectorRecorder(`vfiosim ${options.version ?? ''}`, basename(file));
  return withMachine(io, file, { ...(options.seed === undefined ? {} : { seed: options.seed }), ...(recorder === undefined ? {} : { recorder }) }, async (machine) => {
    const stop = stopPoint(machine, options);
    if (options.json === true && options.trace === '-') throw new WrongUsage('--json and --trace - both write to stdout');
    const trace = options.trace === undefined || options.trace === '-' ? undefined : new OutputFile('--trace', options.trace);
    if (recorder !== undefined && machine.host.unit === undefined) throw new WrongUsage('--record: the topology has no IOMMU');
    const record = options.record === undefined ? undefined : new OutputFile('--record', options.record);
    const progress = new Progress(machine, io.stderr);
    try {
      machine.run({ ...(stop === undefined ? {} : { stopAt: stop }), onSlice: () => progress.show() });
    } finally {
      progress.clear();
      trace?.write(tracePieces(machine.trace, options.trace!));
      if (recorder !== undefined) record?.write(recorder.text());
    }
    if (options.trace === '-') await writePieces(io.stdout, inBlocks(tracePieces(machine.trace, '-')));
    if (options.trace !== undefined && machine.trace.first > 0) say(io, `trace: the oldest ${machine.trace.first} records were dropped, the newest ${machine.trace.count - machine.trace.first} are kept`);
    if (stop !== undefined && machine.end === 'finished') say(io, `the run ended before ${options.until ?? options.break ?? ''}`);
    if (options.log === true) for (const line of machine.dmesg()) say(io, line);
    if (options.dump !== undefined) say(io, dumpText(dumpMachine(machine.host, options.dump)));
    const summary = machine.summary();
    const state = machine.end === 'finished' ? undefined : stateOf(machine);
    if (options.json === true) io.stdout.write(`${JSON.stringify(state === undefined ? summary : { ...summary, state }, null, 2)}\n`);
    else (options.trace === '-' ? io.stderr : io.stdout).write(renderSummary(summary, io.colors, state));
    if (summary.verdict === 'limit') return EXIT.limit;
    return machine.end === 'stopped' || summary.verdict === 'pass' ? EXIT.ok : EXIT.failed;
  });
}

function stopPoint(machine: Machine, options: RunCommandOptions): StopPoint | undefined {
  if (options.until !== undefined && options.break !== undefined) throw new WrongUsage('--until and --break exclude each other');
  const [option, stop] = options.until !== undefined
    ? ['--until', parseStopPoint(options.until)]
    : ['--break', options.break === undefined ? undefined : parseBreak(options.break, machine.trace.kinds.map((kind) => kind.name))];
  if (typeof stop === 'string') throw new WrongUsage(`${option}: ${stop}`);
  return stop;
}
