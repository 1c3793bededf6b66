/** The topologies that ship with the product, run whole. */
import { readdirSync } from 'node:fs';
import { resolve } from 'node:path';
import { createMachineSync, type Machine } from '../../harness/machine.js';

const DIRECTORY = resolve(import.meta.dirname, '../../configs');
export const CONFIGS = readdirSync(DIRECTORY).filter((file) => file.endsWith('.yaml')).sort();
export const NO_LEAKS = { pasids: 0, pinnedPages: 0, domains: 0, frames: 0 };

export function runConfig(file: string, seed?: number): Machine {
  const machine = createMachineSync(resolve(DIRECTORY, file), seed === undefined ? {} : { seed });
  machine.run();
  return machine;
}
