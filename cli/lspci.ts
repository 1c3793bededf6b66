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
    verbose: options.v >= 2 ? 2 : options.v === 1 ? 1 : 0, numeric: options.n >= 2 ? 2 : options.n === 1 ? 1 : 0, tree: options.t === true,
    hex: options.x >= 4 ? 4 : options.x > 0 ? 3 : 0, ...(options.s === undefined ? {} : { slot: options.s }),
  });
  process.stdout.write(text);
  return EXIT.ok;
}
