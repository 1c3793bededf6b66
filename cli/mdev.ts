/** mdevctl's words on a topology file: types and devices of the machine as it boots, definitions as the file has them. */
import { readFileSync } from 'node:fs';
import type { Command } from 'commander';
import { MdevFile } from '../harness/mdev-file.js';
import { InvalidDefinition } from '../mdev/definitions.js';
import { MdevctlError } from '../mdev/mdevctl.js';
import { EXIT } from './exit.js';
import { withMachine, WrongUsage } from './failure.js';
import { say, type Io } from './io.js';

interface MdevOptions {
  readonly uuid?: string;
  readonly parent?: string;
  readonly type?: string;
  readonly auto?: boolean;
  readonly manual?: boolean;
  readonly jsonfile?: string;
  readonly defined?: boolean;
  readonly verbose?: boolean;
  readonly dumpjson?: boolean;
  readonly addattr?: string;
  readonly delattr?: boolean;
  readonly value?: string;
  readonly index?: number;
}

type Verb = 'types' | 'list' | 'define' | 'undefine' | 'modify' | 'start' | 'stop';

/** Adds `mdev` with mdevctl's commands to the program. */
export function addMdevCommands(parent: Command, io: Io, answer: (code: number) => void): void {
  const verb = (name: Verb, description: string): Command =>
    parent.command(name).description(description).argument('<file>', 'topology (YAML)').action(async (file: string, options) => answer(await mdev(io, name, file, options as MdevOptions)));
  const selected = (command: Command): Command => command.option('-u, --uuid <uuid>', 'UUID of the device').option('-p, --parent <parent>', 'parent device, by BDF or by its name in the topology');
  const index = (text: string): number => Number(text);
  verb('types', 'types of mediated devices, by parent').option('-p, --parent <parent>', 'only this parent').option('--dumpjson', 'print JSON');
  selected(verb('list', 'devices that are active after boot')).option('-d, --defined', 'definitions instead').option('-v, --verbose', 'with attributes').option('--dumpjson', 'print JSON, as definitions are written');
  selected(verb('define', 'add a definition to the file')).option('-t, --type <type>', 'type id').option('-a, --auto', 'start it at boot').option('--jsonfile <file>', 'definition as mdevctl writes it');
  selected(verb('undefine', 'remove a definition from the file'));
  selected(verb('modify', 'change a definition')).option('-t, --type <type>', 'type id').option('-a, --auto', 'start it at boot').option('-m, --manual', 'do not').option('--addattr <name>', 'add an attribute')
    .option('--delattr', 'delete an attribute').option('-i, --index <n>', 'which one', index).option('--value <text>', 'value of the attribute').option('--jsonfile <file>', 'definition that replaces it');
  selected(verb('start', 'start a device on the booted machine, and at every boot from now on')).option('-t, --type <type>', 'type id').option('--jsonfile <file>', 'definition as mdevctl writes it');
  selected(verb('stop', 'stop a device, and no longer start it at boot'));
}

/** Boots the file's machine, does what mdevctl would, and writes the file when its definitions have changed. */
function mdev(io: Io, verb: Verb, file: string, options: MdevOptions): Promise<number> {
  return withMachine(io, file, {}, (machine) => {
    machine.boot();
    const target = new MdevFile(machine, file, machine.host.settings.topology.mdevs);
    try {
      io.stdout.write(perform(target, verb, options));
      if (verb !== 'types' && verb !== 'list') target.save();
      return EXIT.ok;
    } catch (error) {
      if (!(error instanceof MdevctlError || error instanceof InvalidDefinition)) throw error;
      say(io, error.message);
      return error instanceof InvalidDefinition ? EXIT.input : EXIT.failed;
    }
  });
}

function perform(target: MdevFile, verb: Verb, { uuid: given, parent: name, jsonfile: path, ...options }: MdevOptions): string {
  const { mdevctl } = target;
  const uuid = given?.toLowerCase();
  if (uuid !== undefined && !/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(uuid)) throw new WrongUsage(`--uuid: "${given!}" is no UUID, such as 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001`);
  const common = { uuid, parent: name === undefined ? undefined : target.kernelName(name), jsonfile: path === undefined ? undefined : { name: path, text: textOf(path) } };
  const needed = (): string => {
    if (uuid === undefined) throw new WrongUsage(`mdev ${verb} needs --uuid`);
    return uuid;
  };
  switch (verb) {
    case 'types': return mdevctl.types({ ...options, parent: common.parent });
    case 'list': return mdevctl.list({ ...options, uuid, parent: common.parent });
    case 'define': return mdevctl.define({ ...options, ...common });
    case 'start': return target.start({ ...options, ...common });
    case 'undefine': mdevctl.undefine(needed(), common.parent); return '';
    case 'modify': mdevctl.modify({ ...options, ...common, uuid: needed() }); return '';
    case 'stop': target.stop(needed()); return '';
  }
}

function textOf(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw new WrongUsage(`--jsonfile: ${path} cannot be read (${(error as NodeJS.ErrnoException).code ?? String(error)})`);
  }
}
