/** The `vfiosim` command: reads the command line, calls the harness, prints. It holds no logic. */
import { createRequire } from 'node:module';
import { Command, CommanderError } from 'commander';
import { counted, gathered, wholeNumber } from './arguments.js';
import { check, schema } from './check.js';
import { EXIT } from './exit.js';
import { explain } from './explain.js';
import { explainFailure } from './failure.js';
import { inspect } from './inspect.js';
import { ioFor, type Io } from './io.js';
import { linux } from './linux.js';
import { lspciCommand } from './lspci.js';
import { addMdevCommands } from './mdev.js';
import { replay } from './replay.js';
import { run } from './run.js';
import { serve } from './serve.js';

/** The package refers to itself by name, so this holds in a checkout and in an installed package. */
function packageVersion(): string {
  const require = createRequire(import.meta.url);
  return (require('vfiosim/package.json') as { version: string }).version;
}

const CODES = `
Exit codes: 0 fine; 1 a flow, an expectation, an invariant or a guest failed, or a replay disagrees; 2 wrong usage;
3 invalid topology, vector or recording; 42 the simulated time or event limit was hit; 70 a bug in the simulator.`;

function build(io: Io, answer: (code: number) => void): Command {
  const program = new Command('vfiosim')
    .description('A simulated machine with an IOMMU: shared virtual addressing without the hardware.')
    .version(packageVersion())
    .addHelpText('after', CODES);
  const command = (name: string, description: string): Command => program.command(name).description(description);
  command('run', 'run a topology and print its flows, faults and invariants')
    .argument('<file>', 'topology (YAML)')
    .option('--seed <n>', 'seed of the run; default: the topology\'s', wholeNumber)
    .option('--json', 'print the summary as one JSON object')
    .option('--trace <out>', 'write the trace: *.json for ui.perfetto.dev, anything else NDJSON, - for stdout')
    .option('--until <place>', 'stop and show where: 120us, event:N, fault:K or before-teardown')
    .option('--break <event>', 'stop at the first record of a trace kind, or at the Nth with KIND:N')
    .option('--log', 'print the kernel\'s log (dmesg) as well, and those of guests, each line with its guest in brackets')
    .option('--record <out>', 'write what happened at the IOMMU as a vector for replay; *.gz is packed')
    .option('--dump <dir>', 'write memory and IOMMU registers as explain reads them')
    .action(async (file: string, options) => answer(await run(io, file, { ...options as Parameters<typeof run>[2], version: packageVersion() })));
  command('check', 'check topologies without running them')
    .argument('<files...>', 'topologies (YAML)')
    .action((files: string[]) => answer(check(io, files)));
  command('schema', 'print the JSON Schema of topologies, for editors')
    .action(() => answer(schema(io)));
  command('lspci', 'list the PCI functions of a topology\'s host, or of a guest')
    .argument('<file>', 'topology (YAML)')
    .option('-v', 'verbose; twice for all capabilities', counted, 0)
    .option('-n', 'numeric ids; twice for numbers and names', counted, 0)
    .option('-t', 'as a tree')
    .option('-x', 'dump config space: -x 64 bytes, -xxx 256, -xxxx all 4096', counted, 0)
    .option('-D', 'always print the segment')
    .option('-s <slot>', 'only these functions: [[[segment:]bus:][device][.function]]')
    .option('--guest <name>', 'what this guest sees on its bus once it has booted, instead')
    .action(async (file: string, options) => answer(await lspciCommand(io, file, options as Parameters<typeof lspciCommand>[2])));
  command('inspect', 'run to a place and show every table entry on the way of an address')
    .argument('<file>', 'topology (YAML)')
    .requiredOption('--walk <device/pasid/address>', 'PASID: a number, a process, or - for none; ADDRESS: 0x…, or with a process buffer+offset. In a guest: guest/process/address or guest:device/process/address. Of a mediated device: mdev/-/address')
    .option('--at <place>', '120us, event:N, fault:K or before-teardown', 'before-teardown')
    .option('--seed <n>', 'seed of the run; default: the topology\'s', wholeNumber)
    .option('--json', 'print JSON')
    .action(async (file: string, options) => answer(await inspect(io, file, options as Parameters<typeof inspect>[2])));
  command('explain', 'explain a stopped machine\'s IOMMU from memory and registers, or the lines of a kernel log')
    .option('--image <file>', 'physical memory: raw with the address as offset, raw FILE@0xBASE, an ELF core, or lines 0xADDRESS: hex bytes; may be repeated', gathered, [])
    .option('--registers <file>', 'registers of the unit: YAML, Linux\' iommu_regset, or the raw register page')
    .option('--unit <name>', 'which unit of an iommu_regset, such as dmar0')
    .option('--walk <bdf/pasid/address>', 'the entries on the way of an address, such as 6a:01.0/1/0x7ffff7fbb000; PASID - for none; :w or :x behind it to write or execute')
    .option('--log [file]', 'a kernel log instead; - or nothing for standard input')
    .option('--json', 'print JSON')
    .action((options) => answer(explain(io, options as Parameters<typeof explain>[1])));
  command('serve', 'offer the IOMMU and devices of an external guest to a virtual machine monitor, over vfio-user')
    .argument('<file>', 'topology (YAML) with a guest that is external')
    .option('--dir <dir>', 'folder of sockets and ACPI tables; default: one of its own, removed at the end')
    .option('--guest <dir>', 'prepared guest whose kernel stands in the command that is printed')
    .option('--once', 'end when every guest has come and gone, however it went')
    .option('--record <out>', 'write everything that comes from outside, for replay')
    .option('--trace <out>', 'write the trace of our hardware: *.json for ui.perfetto.dev, anything else NDJSON')
    .option('--seed <n>', 'seed of the machines; default: the topology\'s', wholeNumber)
    .action(async (file: string, options) => answer(await serve(io, file, { ...options as Parameters<typeof serve>[2], version: packageVersion() })));
  command('linux', 'boot an unmodified Linux in QEMU on the devices of an external guest, and judge what it says')
    .argument('<file>', 'topology (YAML) with a guest that is external')
    .option('--guest <dir>', 'prepared guest; default: $VFIOSIM_LINUX, or vfiosim/linux in the user\'s cache')
    .option('--qemu <program>', 'this QEMU, 10.1 or newer')
    .option('--console', 'show all of the guest\'s console')
    .option('--dir <dir>', 'folder of sockets and ACPI tables; default: one of its own, removed at the end')
    .option('--record <out>', 'write everything that comes from outside, for replay')
    .option('--trace <out>', 'write the trace of our hardware: *.json for ui.perfetto.dev, anything else NDJSON')
    .option('--seed <n>', 'seed of the machine; default: the topology\'s', wholeNumber)
    .option('--json', 'print the result as one JSON object')
    .action(async (file: string, options) => answer(await linux(io, file, { ...options as Parameters<typeof linux>[2], version: packageVersion() })));
  addMdevCommands(command('mdev', 'mediated devices of a topology, in the words of mdevctl'), io, answer);
  command('replay', 'do again what another IOMMU, or this one, was recorded doing, and compare every answer')
    .argument('<files...>', 'vectors and recordings (JSON, also .gz), traces of Linux (.jsonl, also .gz), recordings of guests (.rec), or folders of them')
    .option('--known <file>', 'list of disagreements whose reason is known; default: disagreements.yaml beside each file, else the one shipped with vfiosim')
    .option('-v, --verbose', 'print known disagreements, stale answers and unsupported steps as well')
    .option('--json', 'print everything as one JSON object')
    .action(async (files: string[], options) => answer(await replay(io, files, options as Parameters<typeof replay>[2])));
  for (const one of [program, ...program.commands, ...program.commands.flatMap(({ commands }) => commands)]) {
    one.exitOverride().showHelpAfterError('(vfiosim --help lists the commands)')
      .configureOutput({ writeOut: (text) => void io.stdout.write(text), writeErr: (text) => void io.stderr.write(text) });
  }
  return program;
}

/**
 * Runs one command line.
 *
 * @param argv the arguments after the program's name
 * @param io where to write; default: the process's own streams
 * @returns the process exit code: 0 fine, 1 a flow or an invariant failed, 2 wrong usage, 3 invalid input, 42 a limit was hit
 */
export async function main(argv: readonly string[], io: Io = ioFor(process.stdout, process.stderr, process.env)): Promise<number> {
  let code: number = EXIT.ok;
  try {
    await build(io, (answer) => { code = answer; }).parseAsync(argv, { from: 'user' });
    return code;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
    return explainFailure(io, error);
  }
}
