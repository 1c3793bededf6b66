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
      const count = (all: readonly { readonly count: number }[]): number => all.reduce((sum, process) => sum + process.count, 0);
      const { mdevs } = topology;
      const external = topology.guests.flatMap((guest) => guest.external ?? []), guests = topology.guests.filter((guest) => guest.external === undefined);
      const parts = external.length > 0 ? [counted(external.length, 'external guest'), counted(external.reduce((sum, { devices }) => sum + devices.length, 0), 'device')] : [
        counted(topology.host.devices.length, 'device'), ...(mdevs.length === 0 ? [] : [counted(mdevs.length, 'mediated device')]), ...(guests.length === 0 ? [] : [counted(guests.length, 'guest')]),
        counted(count(topology.processes) + guests.reduce((sum, guest) => sum + count(guest.processes), 0), 'process', 'processes'),
      ];
      io.stdout.write(`${file}: ok (${parts.join(', ')})\n`);
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

function counted(count: number, one: string, many = `${one}s`): string {
  return `${count} ${count === 1 ? one : many}`;
}
