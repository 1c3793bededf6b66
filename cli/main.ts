/** The `vfiosim` command: reads the command line, calls the harness, prints. It holds no logic. */
import { createRequire } from 'node:module';
import { Command, CommanderError, InvalidArgumentError } from 'commander';
import { InvalidInput, formatProblems } from '../harness/topology/problems.js';
import { check, schema } from './check.js';
import { inspect } from './inspect.js';
import { lspciCommand } from './lspci.js';
import { run } from './run.js';
import { EXIT } from './exit.js';

/** The package refers to itself by name, so this holds in a checkout and in an installed package. */
function packageVersion(): string {
  const require = createRequire(import.meta.url);
  return (require('vfiosim/package.json') as { version: string }).version;
}

function wholeNumber(text: string): number {
  const value = Number(text);
  if (!/^(0x[0-9a-fA-F]+|\d+)$/.test(text) || !Number.isSafeInteger(value) || value > 0xffff_ffff) {
    throw new InvalidArgumentError('expects a whole number from 0 to 4294967295.');
  }
  return value;
}

function build(answer: (code: number) => void): Command {
  const program = new Command('vfiosim')
    .description('A simulated machine with an IOMMU: shared virtual addressing and device passthrough without the hardware.')
    .version(packageVersion())
    .exitOverride()
    .showHelpAfterError('(vfiosim --help lists the commands)')
    .action(() => program.help({ error: true }));
  program.command('run').description('run a topology and print its flows, faults and invariants')
    .argument('<file>', 'topology (YAML)')
    .option('--seed <n>', 'seed of the run; default: the topology\'s', wholeNumber)
    .option('--json', 'print the summary as one JSON object')
    .option('--trace <out>', 'write the trace: *.json for ui.perfetto.dev, anything else NDJSON, - for stdout')
    .option('--until <time>', 'stop at a simulated time such as 120us')
    .option('--break <event>', 'stop at the first record of a trace kind, or at the Nth with KIND:N')
    .option('--log', 'print the kernel log (dmesg) as well')
    .action((file: string, options) => answer(run(file, options as Parameters<typeof run>[1])));
  program.command('check').description('check topologies without running them')
    .argument('<files...>', 'topologies (YAML)')
    .action((files: string[]) => answer(check(files)));
  program.command('schema').description('print the JSON Schema of topologies, for editors')
    .action(() => answer(schema()));
  program.command('lspci').description('list the PCI functions of a topology\'s host')
    .argument('<file>', 'topology (YAML)')
    .option('-v', 'verbose; twice for all capabilities', (_value: string, previous: number) => previous + 1, 0)
    .option('-n', 'numeric ids beside the names', (_value: string, previous: number) => previous + 1, 0)
    .option('-t', 'as a tree')
    .option('-x', 'dump config space; -xxx 256 bytes, -xxxx all 4096', (_value: string, previous: number) => previous + 1, 0)
    .option('-s <bdf>', 'only this function')
    .action((file: string, options) => answer(lspciCommand(file, options as Parameters<typeof lspciCommand>[1])));
  program.command('inspect').description('run to a place and show every table entry on the way of an address')
    .argument('<file>', 'topology (YAML)')
    .requiredOption('--walk <device/pasid/address>', 'for example dsa0/1/0x7ffff7fbb000; the PASID may be a process name, or - for none')
    .option('--at <place>', '120us, event:N, fault:K or before-teardown', 'before-teardown')
    .option('--seed <n>', 'seed of the run', wholeNumber)
    .option('--json', 'print JSON')
    .action((file: string, options) => answer(inspect(file, options as Parameters<typeof inspect>[1])));
  for (const command of program.commands) command.exitOverride();
  return program;
}

/**
 * Runs one command line.
 *
 * @param argv the arguments after the program's name
 * @returns the process exit code: 0 fine, 1 a flow or an invariant failed, 2 wrong usage, 3 invalid input, 42 a limit was hit
 */
export async function main(argv: readonly string[]): Promise<number> {
  let code: number = EXIT.ok;
  const program = build((answered) => { code = answered; });
  try {
    await program.parseAsync(argv, { from: 'user' });
    return code;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    if (error instanceof InvalidInput) {
      for (const line of formatProblems(error.problems)) process.stderr.write(`${line}\n`);
      return EXIT.input;
    }
    throw error;
  }
}
