import { createMachineSync } from '../harness/machine.js';
import { EXIT } from './exit.js';

interface LspciCommandOptions {
  readonly v: number;
  readonly n: number;
  readonly t?: boolean;
  readonly x: number;
  readonly s?: string;
}

/** Boots the machine (enumeration, drivers) and prints its functions as lspci does. */
export function lspciCommand(file: string, options: LspciCommandOptions): number {
  const machine = createMachineSync(file);
  machine.boot();
  const text = machine.lspci({
    verbose: options.v, numeric: options.n, tree: options.t === true, hex: options.x, ...(options.s === undefined ? {} : { slot: options.s }),
  });
  process.stdout.write(text);
  return EXIT.ok;
}
