import { loadTopology } from '../harness/topology/load.js';
import { formatProblems, InvalidInput } from '../harness/topology/problems.js';
import { topologyJsonSchema } from '../harness/topology/schema.js';
import { EXIT } from './exit.js';

/** Checks every file; problems go to stderr, one line per sound file to stdout. */
export function check(files: readonly string[]): number {
  let code: number = EXIT.ok;
  for (const file of files) {
    try {
      const { topology } = loadTopology(file);
      const { devices } = topology.host;
      process.stdout.write(`${file}: ok (${devices.length} device${devices.length === 1 ? '' : 's'}, ${topology.processes.length} process${topology.processes.length === 1 ? '' : 'es'})\n`);
    } catch (error) {
      if (!(error instanceof InvalidInput)) throw error;
      for (const line of formatProblems(error.problems)) process.stderr.write(`${line}\n`);
      code = EXIT.input;
    }
  }
  return code;
}

export function schema(): number {
  process.stdout.write(`${JSON.stringify(topologyJsonSchema(), null, 2)}\n`);
  return EXIT.ok;
}
