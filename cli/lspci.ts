import { parseSlotFilter } from '../host/pci/kernel/lspci/slot-filter.js';
import type { Machine } from '../harness/machine.js';
import { unknownName } from '../harness/topology/problems.js';
import { lspci, type LspciOptions } from '../host/pci/kernel/lspci/lspci.js';
import type { PciDevice } from '../host/pci/kernel/pci-device.js';
import { EXIT } from './exit.js';
import { withMachine, WrongUsage } from './failure.js';
import { say, type Io } from './io.js';

interface LspciCommandOptions {
  readonly v: number;
  readonly n: number;
  readonly t?: boolean;
  readonly x: number;
  readonly D?: boolean;
  readonly s?: string;
  readonly guest?: string;
}

/** Boots the machine (enumeration, drivers), and a guest when one is named, and prints the functions as lspci does. */
export function lspciCommand(io: Io, file: string, options: LspciCommandOptions): Promise<number> {
  const filter = options.s === undefined ? undefined : parseSlotFilter(options.s);
  if (typeof filter === 'string') throw new WrongUsage(`-s: ${filter}`);
  return withMachine(io, file, {}, (machine) => {
    machine.boot();
    const shown: LspciOptions = {
      verbose: options.v >= 2 ? 2 : options.v === 1 ? 1 : 0, numeric: options.n >= 2 ? 2 : options.n === 1 ? 1 : 0, tree: options.t === true,
      hex: options.x >= 4 ? 4 : options.x === 3 ? 3 : options.x > 0 ? 1 : 0, ...(options.D === true ? { segments: true } : {}), ...(options.s === undefined ? {} : { slot: options.s }),
    };
    if (options.guest === undefined) {
      io.stdout.write(machine.lspci(shown));
      return EXIT.ok;
    }
    return guestLspci(io, machine, options.guest, shown);
  });
}

function guestLspci(io: Io, machine: Machine, name: string, shown: LspciOptions): number {
  const { guests } = machine.loaded.topology;
  const topology = guests.find((guest) => guest.name === name);
  if (topology === undefined) throw new WrongUsage(`--guest: ${unknownName('guest', name, guests.map((guest) => guest.name))}`);
  const guest = machine.scenario.newGuest(topology);
  machine.execute(`start of ${name}`, guest.start());
  if (guest.kernel === undefined) {
    say(io, `guest ${name} was ${guest.state}: ${guest.reason}`);
    return EXIT.failed;
  }
  const { pci, drivers } = guest.kernel;
  io.stdout.write(lspci(pci.devices, { ...shown, driverOf: (fn) => drivers.driverOf(fn as PciDevice)?.name }));
  return EXIT.ok;
}
