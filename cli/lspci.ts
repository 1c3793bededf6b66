import { parseSlotFilter } from '../host/pci/kernel/lspci/slot-filter.js';
import { EXIT } from './exit.js';
import { withMachine, WrongUsage } from './failure.js';
import type { Io } from './io.js';

interface LspciCommandOptions {
  readonly v: number;
  readonly n: number;
  readonly t?: boolean;
  readonly x: number;
  readonly D?: boolean;
  readonly s?: string;
}

/** Boots the machine (enumeration, drivers) and prints its functions as lspci does. */
export function lspciCommand(io: Io, file: string, options: LspciCommandOptions): Promise<number> {
  const filter = options.s === undefined ? undefined : parseSlotFilter(options.s);
  if (typeof filter === 'string') throw new WrongUsage(`-s: ${filter}`);
  return withMachine(io, file, {}, (machine) => {
    machine.boot();
    io.stdout.write(machine.lspci({
      verbose: options.v >= 2 ? 2 : options.v === 1 ? 1 : 0, numeric: options.n >= 2 ? 2 : options.n === 1 ? 1 : 0, tree: options.t === true,
      hex: options.x >= 4 ? 4 : options.x === 3 ? 3 : options.x > 0 ? 1 : 0, ...(options.D === true ? { segments: true } : {}), ...(options.s === undefined ? {} : { slot: options.s }),
    }));
    return EXIT.ok;
  });
}
