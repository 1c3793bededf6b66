/** The `vfiosim` command: reads the command line and answers with an exit code. It holds no logic. */
import { createRequire } from 'node:module';
import { Command, CommanderError } from 'commander';

const EXIT_OK = 0;
const EXIT_USAGE = 2;

/** The package refers to itself by name, so this holds in a checkout and in an installed package. */
function packageVersion(): string {
  const require = createRequire(import.meta.url);
  return (require('vfiosim/package.json') as { version: string }).version;
}

/**
 * Runs one command line.
 *
 * @param argv the arguments after the program's name
 * @returns the process exit code
 */
export async function main(argv: readonly string[]): Promise<number> {
  const program = new Command('vfiosim')
    .description('A deterministic simulator of VFIO, IOMMUs and mediated devices')
    .version(packageVersion())
    .exitOverride()
    .allowExcessArguments(false)
    .action(() => {
      program.help({ error: true });
    });
  try {
    await program.parseAsync(argv, { from: 'user' });
    return EXIT_OK;
  } catch (error) {
    if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT_OK : EXIT_USAGE;
    throw error;
  }
}
