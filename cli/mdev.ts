/** mdevctl's words on a topology file: types and devices of the machine as it boots, definitions as the file has them. */
import { readFileSync } from 'node:fs';
import { Option, type Command } from 'commander';
import { MdevFile } from '../harness/mdev-file.js';
import { InvalidInput } from '../harness/topology/problems.js';
import { InvalidDefinition } from '../mdev/definitions.js';
import { MdevctlError } from '../mdev/mdevctl.js';
import type { JsonFile } from '../mdev/mdevctl-commands.js';
import { wholeNumber } from './arguments.js';
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

const ABOUT = `
FILE is the machine at boot: what it defines with "start: auto" is active. start and stop try it on the booted machine,
and what is not refused becomes "start: auto" or "start: manual" in FILE; define, undefine and modify change FILE alone.
PARENT is a device's name in FILE or its BDF, UUID also a mediated device's name in FILE. A refusal leaves FILE as it is.`;

/** Adds `mdev` with mdevctl's commands to the program. */
export function addMdevCommands(parent: Command, io: Io, answer: (code: number) => void): void {
  parent.addHelpText('after', ABOUT);
  const verb = (name: Verb, description: string, options: readonly Option[]): void => {
    const command = parent.command(name).description(description).argument('<file>', 'topology (YAML)');
    for (const option of options) command.addOption(option);
    command.action(async (file: string, given) => answer(await mdev(io, name, file, given as MdevOptions)));
  };
  const option = (flags: string, description: string, ...conflicts: string[]): Option => new Option(flags, description).conflicts(conflicts);
  const [uuid, needed] = [option('-u, --uuid <uuid>', 'UUID of the device'), option('-u, --uuid <uuid>', 'UUID of the device').makeOptionMandatory()];
  const of = option('-p, --parent <parent>', 'parent device'), type = option('-t, --type <type>', 'type id, as types lists them'), dump = option('--dumpjson', 'print JSON');
  const auto = option('-a, --auto', 'start it at boot');
  verb('types', 'types of mediated devices, by parent', [of, dump]);
  verb('list', 'devices that are active after boot', [uuid, of, option('-d, --defined', 'definitions instead'), option('-v, --verbose', 'with attributes'), dump]);
  verb('define', 'add a definition', [uuid, of, type, auto, option('--jsonfile <file>', 'definition as mdevctl writes it', 'type', 'auto')]);
  verb('undefine', 'remove a definition', [needed, of]);
  verb('modify', 'change a definition', [
    needed, of, type, auto, option('-m, --manual', 'do not', 'auto'),
    option('--addattr <name>', 'add an attribute', 'delattr'), option('--delattr', 'delete an attribute'),
    option('-i, --index <n>', 'which one; default: the last').argParser(wholeNumber), option('--value <text>', 'value of the attribute'),
    option('--jsonfile <file>', 'definition that replaces it', 'type', 'addattr', 'delattr', 'index', 'value', 'auto', 'manual'),
  ]);
  verb('start', 'start a device, now and at boot', [uuid, of, type, option('--jsonfile <file>', 'definition as mdevctl writes it', 'type')]);
  verb('stop', 'stop a device, and no longer start it at boot', [needed]);
}

/** Boots the file's machine, does what mdevctl would, and writes the file when its definitions have changed. */
function mdev(io: Io, verb: Verb, file: string, options: MdevOptions): Promise<number> {
  checkUsage(verb, options);
  return withMachine(io, file, {}, (machine) => {
    machine.boot();
    const target = new MdevFile(machine, file, machine.host.settings.topology.mdevs);
    try {
      const text = perform(target, verb, options);
      save(io, target, file);
      io.stdout.write(text === '' || text.endsWith('\n') ? text : `${text}\n`);
      return EXIT.ok;
    } catch (error) {
      if (!(error instanceof MdevctlError || error instanceof InvalidDefinition)) throw error;
      // mdevctl says what the kernel answered as a word of strerror; here it says why
      say(io, error instanceof MdevctlError && error.cause !== undefined ? `${error.message}: ${error.cause.message}` : error.message.trimEnd());
      return error instanceof InvalidDefinition ? EXIT.input : EXIT.failed;
    }
  });
}

/** What belongs together, beyond what excludes each other. */
function checkUsage(verb: Verb, options: MdevOptions): void {
  if ((verb === 'define' || verb === 'start') && options.uuid === undefined && options.parent === undefined) throw new WrongUsage(`mdev ${verb} needs --uuid, --parent or both`);
  if (verb !== 'modify') return;
  if (options.addattr !== undefined && options.value === undefined) throw new WrongUsage('--addattr needs --value');
  if (options.value !== undefined && options.addattr === undefined) throw new WrongUsage('--value needs --addattr');
  if (options.index !== undefined && options.addattr === undefined && options.delattr !== true) throw new WrongUsage('--index needs --addattr or --delattr');
  const { type, auto, manual, addattr, delattr, jsonfile } = options;
  if ([type, auto, manual, addattr, delattr, jsonfile].every((one) => one === undefined)) throw new WrongUsage('mdev modify needs one of --type, --auto, --manual, --addattr, --delattr, --jsonfile');
}

function save(io: Io, target: MdevFile, file: string): void {
  try {
    target.save();
  } catch (error) {
    if (error instanceof InvalidInput) say(io, `${file} stays as it is, because it would become invalid:`);
    throw error;
  }
}

function perform(target: MdevFile, verb: Verb, { uuid: given, parent: name, jsonfile: path, ...options }: MdevOptions): string {
  const { mdevctl } = target;
  const uuid = given === undefined ? undefined : target.uuidOf(given);
  if (uuid !== undefined && !/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(uuid)) throw new WrongUsage(`--uuid: "${given!}" is no UUID, such as 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001`);
  const unknown = name === undefined ? undefined : target.unknownParent(name);
  if (unknown !== undefined) throw new WrongUsage(`--parent: ${unknown}`);
  const common = { uuid, parent: name === undefined ? undefined : target.kernelName(name), jsonfile: path === undefined ? undefined : jsonFile(path) };
  switch (verb) {
    case 'types': return mdevctl.types({ ...options, parent: common.parent });
    case 'list': return mdevctl.list({ ...options, uuid, parent: common.parent });
    case 'define': return mdevctl.define({ ...options, ...common });
    case 'start': return target.start({ ...options, ...common });
    case 'undefine': mdevctl.undefine(uuid!, common.parent); return '';
    case 'modify': mdevctl.modify({ ...options, ...common, uuid: uuid! }); return '';
    case 'stop': target.stop(uuid!); return '';
  }
}

function jsonFile(name: string): JsonFile {
  try {
    return { name, text: readFileSync(name, 'utf8') };
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new WrongUsage(`--jsonfile: ${name} cannot be read${code === 'ENOENT' ? ': no such file' : ` (${code ?? String(error)})`}`);
  }
}
