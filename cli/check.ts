import { loadTopology } from '../harness/topology/load.js';
import { formatProblems, InvalidInput } from '../harness/topology/problems.js';
import { topologyJsonSchema } from '../harness/topology/schema.js';
import { EXIT } from './exit.js';
import { say, type Io } from './io.js';

/** Checks every file; problems go to stderr, one line per sound file to stdout. */
export function check(io: Io, files: readonly string[]): number {
  let code: number = EXIT.ok;
  for (const file of files) {
    try {
      const { topology } = loadTopology(file);
      const { devices } = topology.host;
      const processes = topology.processes.reduce((sum, process) => sum + process.count, 0);
      io.stdout.write(`${file}: ok (${devices.length} device${devices.length === 1 ? '' : 's'}, ${processes} process${processes === 1 ? '' : 'es'})\n`);
    } catch (error) {
      if (!(error instanceof InvalidInput)) throw error;
      for (const line of formatProblems(error.problems)) say(io, line);
      code = EXIT.input;
    }
  }
  return code;
}

export function schema(io: Io): number {
  io.stdout.write(`${JSON.stringify(topologyJsonSchema(), null, 2)}\n`);
  return EXIT.ok;
}
