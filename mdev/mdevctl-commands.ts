/**
 * The commands of mdevctl 1.3 over a machine's definitions and its sysfs (mdevctl/mdevctl, src/main.rs, src/mdev.rs,
 * src/environment.rs). Each refuses what mdevctl refuses, in its words and its order, and returns what it prints.
 * Rules of the command line itself (which options exclude each other) are the caller's. Left out: callout and
 * notification scripts, with them `--force` and `modify --live`, which needs such a script.
 */
import { isErrno, type Errno } from '../sim/errno.js';
import type { Random } from '../sim/random.js';
import type { Steps } from '../sim/task.js';
import type { MdevCore } from './core.js';
import type { MdevDevice } from './device.js';
import { parseDefinition, writeAttributes, type DefinedMdev, type DefinitionStore, type MdevDefinition } from './definitions.js';
import { attributesText, listOutput, MdevctlError, supportedTypes, typesJson, typesText, type ListedMdev, type ListOptions } from './mdevctl.js';
import type { MdevSysfs } from './sysfs.js';
import { randomUuid } from './uuid.js';

/** A file with a definition, named for problems. */
export interface JsonFile {
  readonly name: string;
  readonly text: string;
}

/** UUIDs are in lower case everywhere. */
export interface MdevSelection {
  readonly uuid?: string | undefined;
  readonly parent?: string | undefined;
}

export interface StartOptions extends MdevSelection {
  readonly type?: string | undefined;
  readonly jsonfile?: JsonFile | undefined;
}

export interface DefineOptions extends StartOptions {
  readonly auto?: boolean;
}

export interface ModifyOptions {
  readonly uuid: string;
  readonly parent?: string | undefined;
  readonly type?: string | undefined;
  readonly addattr?: string | undefined;
  readonly value?: string | undefined;
  readonly delattr?: boolean;
  readonly index?: number | undefined;
  readonly auto?: boolean;
  readonly manual?: boolean;
  readonly jsonfile?: JsonFile | undefined;
}

export interface MdevctlOptions {
  readonly core: MdevCore;
  readonly sysfs: MdevSysfs;
  readonly definitions: DefinitionStore;
  /** Where UUIDs come from that nobody gave. */
  readonly random: Random;
}

export class Mdevctl {
  private readonly core: MdevCore;
  private readonly sysfs: MdevSysfs;
  private readonly definitions: DefinitionStore;
  private readonly random: Random;

  constructor(options: MdevctlOptions) {
    this.core = options.core;
    this.sysfs = options.sysfs;
    this.definitions = options.definitions;
    this.random = options.random;
  }

  /** `mdevctl types [-p PARENT] [--dumpjson]` */
  types(options: { readonly parent?: string | undefined; readonly dumpjson?: boolean } = {}): string {
    const types = supportedTypes(this.core, options.parent);
    return options.dumpjson ? typesJson(types) : typesText(types);
  }

  /** `mdevctl list [-d] [-v] [-u UUID] [-p PARENT] [--dumpjson]` */
  list(options: ListOptions & MdevSelection = {}): string {
    return listOutput(options.defined ? this.defined(options) : this.active(options), options);
  }

  /** Devices that run. Their attributes are not known: only a callout script could tell. */
  active(only: MdevSelection = {}): ListedMdev[] {
    return this.core.devices.filter((mdev) => selected({ uuid: mdev.name, parent: mdev.parent.device.name }, only)).map((mdev) => {
      const parent = mdev.parent.device.name;
      const definition = this.definitions.get(parent, mdev.name);
      return { parent, uuid: mdev.name, mdevType: mdev.typeId, start: definition?.start ?? 'manual', attrs: [], active: true, defined: definition !== undefined };
    });
  }

  /** Devices that are defined; active when one of the same UUID, parent and type runs. */
  defined(only: MdevSelection = {}): ListedMdev[] {
    return this.definitions.list(only).map((mdev) => {
      const running = this.running(mdev.uuid);
      return { ...mdev, active: running?.parent.device.name === mdev.parent && running.typeId === mdev.mdevType, defined: true };
    });
  }

  /** `mdevctl define`: the UUID and a newline when none was given. @throws MdevctlError, InvalidDefinition */
  define(options: DefineOptions): string {
    const { jsonfile } = options;
    const uuid = options.uuid ?? randomUuid(this.random);
    const mdev = jsonfile === undefined ? this.toDefine(uuid, options) : this.definedByFile(uuid, jsonfile, options);
    this.definitions.set(mdev.parent, uuid, definitionOf(mdev));
    return options.uuid === undefined ? `${uuid}\n` : '';
  }

  /** `mdevctl undefine`: under every parent when none is given. @throws MdevctlError */
  undefine(uuid: string, parent?: string): void {
    const mdevs = this.definitions.list({ uuid, parent });
    if (mdevs.length === 0) throw new MdevctlError('No devices match the specified uuid');
    for (const mdev of mdevs) this.definitions.delete(mdev.parent, uuid);
  }

  /** `mdevctl modify` of the definition; a running device does not change. @throws MdevctlError, InvalidDefinition */
  modify(options: ModifyOptions): void {
    const { uuid, jsonfile, addattr, index } = options;
    const mdev = jsonfile === undefined ? this.toModify(options) : this.toReplace(jsonfile, options);
    const attrs = [...mdev.attrs];
    if (addattr !== undefined) {
      if (options.value === undefined) throw new MdevctlError('No attribute value provided');
      if (index !== undefined && index > attrs.length) throw new MdevctlError(`Attribute index ${index} is invalid\n${hint(mdev)}`);
      attrs.splice(index ?? attrs.length, 0, [addattr, options.value]);
    } else if (options.delattr) {
      if (index !== undefined && index >= attrs.length) throw new MdevctlError(`Attribute index ${index} is invalid\n${hint(mdev)}`);
      attrs.splice(index ?? -1, 1);
    }
    this.definitions.set(mdev.parent, uuid, { ...definitionOf(mdev), attrs });
  }

  /**
   * `mdevctl start`: creates the device, then writes its attributes in order; when one is refused the device is
   * removed again. The UUID and a newline when none was given. @throws MdevctlError, InvalidDefinition
   */
  *start(options: StartOptions): Steps<string> {
    const mdev = this.toStart(options);
    yield* this.startDefined(mdev);
    return options.uuid === undefined ? `${mdev.uuid}\n` : '';
  }

  /** `mdevctl stop`. @throws MdevctlError */
  *stop(uuid: string): Steps {
    if (this.running(uuid) === undefined) throw new MdevctlError('Device must have a defined mdev_type');
    yield* this.removeRunning(uuid);
  }

  /** `mdevctl start-parent-mdevs`, which udev runs when a parent appears: what is to start automatically. Warnings. */
  *startParentMdevs(parent: string): Steps<string[]> {
    const warnings: string[] = [];
    for (const mdev of this.definitions.list({ parent })) {
      if (mdev.start !== 'auto') continue;
      try {
        yield* this.startDefined(mdev);
      } catch (error) {
        if (!(error instanceof MdevctlError)) throw error;
        warnings.push(error.message);
      }
    }
    return warnings;
  }

  /** Creates a device and writes its attributes, as `start` does once it knows which. @throws MdevctlError */
  *startDefined(mdev: DefinedMdev): Steps {
    const { uuid, parent, mdevType } = mdev;
    this.checkStart(mdev);
    const refused = yield* this.written(`/sys/class/mdev_bus/${parent}/mdev_supported_types/${mdevType}/create`, uuid);
    if (refused !== undefined) throw new MdevctlError(`Failed to create mdev ${uuid}, type ${mdevType} on ${parent}`, refused);
    const attribute = yield* writeAttributes(this.sysfs, uuid, mdev.attrs);
    if (attribute === undefined) return;
    const { name, value, error } = attribute;
    const there = this.sysfs.exists(`/sys/bus/mdev/devices/${uuid}/${name}`);
    yield* this.removeRunning(uuid);
    throw there ? new MdevctlError(`Failed to write ${value} to attribute ${name}`, error) : new MdevctlError(`Invalid attribute '${name}'`);
  }

  /** What mdevctl looks at before it writes `create`. */
  private checkStart({ uuid, parent, mdevType }: DefinedMdev): void {
    const running = this.running(uuid);
    if (running !== undefined) {
      if (running.parent.device.name !== parent) throw new MdevctlError('Device exists under different parent');
      if (running.typeId !== mdevType) throw new MdevctlError('Device exists with different type');
      throw new MdevctlError('Device already exists');
    }
    const names = this.sysfs.list('/sys/class/mdev_bus');
    if (!names.includes(parent)) {
      const similar = names.find((name) => name.toLowerCase() === parent.toLowerCase());
      throw new MdevctlError(`Unable to find parent device '${parent}'${similar === undefined ? '' : `. Did you mean '${similar}'?`}`);
    }
    const type = supportedTypes(this.core, parent).find(({ typeId }) => typeId === mdevType);
    if (type === undefined) throw new MdevctlError(`Parent ${parent} does not support mdev type ${mdevType}`);
    if (type.availableInstances === 0) throw new MdevctlError(`No available instances of ${mdevType} on ${parent}`);
  }

  private *removeRunning(uuid: string): Steps {
    const refused = yield* this.written(`/sys/bus/mdev/devices/${uuid}/remove`, '1');
    if (refused !== undefined) throw new MdevctlError(`Error removing device ${uuid}`, refused);
  }

  /** Writes a file; the refusal, if any. */
  private *written(path: string, text: string): Steps<Errno | undefined> {
    try {
      yield* this.sysfs.write(path, text);
      return undefined;
    } catch (error) {
      if (!isErrno(error)) throw error;
      return error;
    }
  }

  private running(uuid: string): MdevDevice | undefined {
    return this.core.devices.find(({ name }) => name === uuid);
  }

  private definedByFile(uuid: string, file: JsonFile, options: StartOptions): DefinedMdev {
    if (options.type !== undefined) throw new MdevctlError(`Device type cannot be specified separately from ${JSON.stringify(file.name)}`);
    const { parent } = options;
    if (parent === undefined) throw new MdevctlError(`Parent device required to define device via ${JSON.stringify(file.name)}`);
    if (this.definitions.get(parent, uuid) !== undefined) throw new MdevctlError(`Cowardly refusing to overwrite existing config for ${parent}/${uuid}`);
    return { uuid, parent, ...parseDefinition(file.text, file.name) };
  }

  /** What a running device of the UUID is stands for what the caller left out. */
  private toDefine(uuid: string, options: DefineOptions): DefinedMdev {
    const running = options.uuid === undefined ? undefined : this.running(uuid);
    if (options.uuid !== undefined && options.parent === undefined && (running === undefined || options.type !== undefined)) throw new MdevctlError('No parent specified');
    const parent = options.parent ?? running?.parent.device.name;
    const mdevType = options.type ?? running?.typeId;
    if (parent === undefined) throw new MdevctlError('No parent specified');
    if (mdevType === undefined) throw new MdevctlError('No type specified');
    if (this.definitions.get(parent, uuid) !== undefined) throw new MdevctlError(`Device ${uuid} on ${parent} already defined`);
    return { uuid, parent, mdevType, start: options.auto ? 'auto' : 'manual', attrs: [] };
  }

  private toReplace(file: JsonFile, { uuid, parent }: ModifyOptions): DefinedMdev {
    if (parent === undefined) throw new MdevctlError('Parent device required to modify device via json file');
    return { uuid, parent, ...parseDefinition(file.text, file.name) };
  }

  private toModify({ uuid, parent, type, auto, manual }: ModifyOptions): DefinedMdev {
    const found = this.definitions.list({ uuid, parent });
    if (found.length > 1) throw new MdevctlError(`Multiple definitions found for ${uuid}, specify a parent`);
    const [mdev] = found;
    if (mdev === undefined) throw new MdevctlError(`Mediated device ${parent === undefined ? '' : `${parent}/`}${uuid} is not defined`);
    if (auto && manual) throw new MdevctlError("'auto' and 'manual' are mutually exclusive");
    return { ...mdev, mdevType: type ?? mdev.mdevType, start: auto ? 'auto' : manual ? 'manual' : mdev.start };
  }

  private toStart({ uuid, parent, type, jsonfile }: StartOptions): DefinedMdev {
    const name = uuid ?? randomUuid(this.random);
    if (jsonfile !== undefined) {
      const definition = parseDefinition(jsonfile.text, jsonfile.name);
      if (type !== undefined) throw new MdevctlError('Device type cannot be specified separately from json file');
      if (parent === undefined) throw new MdevctlError('Parent device required to start device via json file');
      return { uuid: name, parent, ...definition };
    }
    const found = uuid === undefined ? [] : this.definitions.list({ uuid, parent });
    if (found.length > 1) throw new MdevctlError(`Multiple definitions found for device ${name}. Please specify a parent.`);
    const [defined] = found;
    if (defined !== undefined) {
      if (type !== undefined && type !== defined.mdevType) throw new MdevctlError(`Device ${name} already exists on parent ${defined.parent} with type ${defined.mdevType}`);
      return defined;
    }
    if (type !== undefined && parent === undefined) throw new MdevctlError("can't provide type without parent");
    if (type === undefined || parent === undefined) throw new MdevctlError('Device is insufficiently specified');
    return { uuid: name, parent, mdevType: type, start: 'manual', attrs: [] };
  }
}

function selected(mdev: { readonly uuid: string; readonly parent: string }, only: MdevSelection): boolean {
  return (only.uuid === undefined || only.uuid === mdev.uuid) && (only.parent === undefined || only.parent === mdev.parent);
}

function definitionOf({ mdevType, start, attrs }: DefinedMdev): MdevDefinition {
  return { mdevType, start, attrs };
}

function hint({ uuid, attrs }: DefinedMdev): string {
  return attrs.length === 0 ? `Device ${uuid} has no attributes` : attributesText(attrs);
}
