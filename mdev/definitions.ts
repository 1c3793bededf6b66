/**
 * Definitions of mediated devices in the formats of mdevctl 1.3 (mdevctl/mdevctl, src/mdev.rs, README.md): the file of
 * one device in /etc/mdevctl.d/<parent>/<uuid>, and what `mdevctl list -d --dumpjson` prints for many.
 *
 * Written exactly as mdevctl writes them. Read more strictly: mdevctl takes any `start` for manual that is not
 * "auto", skips keys it does not know, and lets the last of two equal keys win; here each is a problem with its place.
 */
import { Errno, isErrno } from '../sim/errno.js';
import type { Steps } from '../sim/task.js';
import type { MdevSysfs } from './sysfs.js';
import { isUuid, readUuid } from './uuid.js';
import { JsonSyntaxError, printJson, readJson, type JsonAt, type JsonMember, type JsonValue, type Printable } from './json.js';

/** A value for a file of the device's directory, written after its create. */
export type DefinedAttribute = readonly [name: string, value: string];

export interface MdevDefinition {
  /** Type id, such as `idxd-1dwq-v1`. */
  readonly mdevType: string;
  readonly start: 'auto' | 'manual';
  /** In the order in which they are written; a name may come again. */
  readonly attrs: readonly DefinedAttribute[];
}

/** A definition with where it belongs. */
export interface DefinedMdev extends MdevDefinition {
  readonly parent: string;
  readonly uuid: string;
}

/** One thing that is wrong, with its place: the shape of problems in topologies. */
export interface DefinitionProblem {
  readonly file: string;
  readonly line: number;
  readonly column: number;
  /** `attrs[2].assign_domain` */
  readonly path: string;
  readonly message: string;
}

/** A definition that cannot be used; all its problems. */
export class InvalidDefinition extends Error {
  override readonly name = 'InvalidDefinition';
  readonly problems: readonly DefinitionProblem[];

  constructor(problems: readonly DefinitionProblem[]) {
    super(problems.map(({ file, line, column, path, message }) => `${file}:${line}:${column}: ${path === '' ? '' : `${path}: `}${message}`).join('\n'));
    this.problems = problems;
  }
}

/** Reads a definition file. @param file its name, for problems. @throws InvalidDefinition */
export function parseDefinition(text: string, file: string): MdevDefinition {
  return new DefinitionReader(file).read(text, (reader, value) => reader.definition(value, ''))!;
}

/**
 * Reads what `mdevctl list --dumpjson` prints: an array that holds one object of parents (none when there are no
 * devices), or that object alone; each parent an array of objects with one UUID each. @throws InvalidDefinition
 */
export function parseDefinitions(text: string, file: string): DefinedMdev[] {
  return new DefinitionReader(file).read(text, (reader, value) => reader.parents(value))!;
}

/** The text of a definition file, without a newline at its end. */
export function formatDefinition(definition: MdevDefinition): string {
  return printJson(printable(definition));
}

/** What `list --dumpjson` prints for many: parents and UUIDs in ascending order. */
export function formatDefinitions(mdevs: readonly DefinedMdev[]): string {
  const parents = new Map<string, Printable[]>();
  for (const mdev of inListOrder(mdevs)) {
    const children = parents.get(mdev.parent);
    const child = new Map([[mdev.uuid, printable(mdev)]]);
    if (children === undefined) parents.set(mdev.parent, [child]);
    else children.push(child);
  }
  return printJson(parents.size === 0 ? [] : [parents]);
}

/** By parent, then by UUID. */
export function inListOrder<T extends { readonly parent: string; readonly uuid: string }>(mdevs: readonly T[]): T[] {
  return mdevs.toSorted((a, b) => compare(a.parent, b.parent) || compare(a.uuid, b.uuid));
}

export function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

function printable({ mdevType, start, attrs }: MdevDefinition): Printable {
  return new Map<string, Printable>([['mdev_type', mdevType], ['start', start], ['attrs', attrs.map(([name, value]) => new Map([[name, value]]))]]);
}

const KEYS = ['mdev_type', 'start', 'attrs'];

class DefinitionReader {
  private readonly file: string;
  private readonly problems: DefinitionProblem[] = [];

  constructor(file: string) {
    this.file = file;
  }

  /** Nothing comes out unless nothing is wrong. */
  read<T>(text: string, from: (reader: this, value: JsonValue) => T): T {
    let result: T | undefined;
    try {
      result = from(this, readJson(text));
    } catch (error) {
      if (!(error instanceof JsonSyntaxError)) throw error;
      this.problem(error.at, '', `not JSON: ${error.message}`);
    }
    if (this.problems.length > 0) throw new InvalidDefinition(this.problems);
    return result!;
  }

  definition(value: JsonValue, path: string): MdevDefinition | undefined {
    if (value.kind !== 'object') return this.problem(value.at, path, `is ${named(value)}; a definition is an object with ${KEYS.join(', ')}`);
    const members = this.unique(value.members, path);
    for (const { key, at } of members) if (!KEYS.includes(key)) this.problem(at, join(path, key), `unknown key; allowed: ${KEYS.join(', ')}`);
    const mdevType = this.text(value, members, path, 'mdev_type', 'the id of a type, such as "idxd-1dwq-v1"');
    const start = this.text(value, members, path, 'start', '"auto" or "manual"');
    const attrs = this.attributes(members.find(({ key }) => key === 'attrs')?.value, join(path, 'attrs'));
    if (mdevType === undefined || start === undefined) return undefined;
    return { mdevType, start: start === 'auto' ? 'auto' : 'manual', attrs };
  }

  parents(value: JsonValue): DefinedMdev[] {
    const all: DefinedMdev[] = [];
    const lists = value.kind === 'array' ? value.items : [value];
    lists.forEach((item, i) => {
      const path = value.kind === 'array' ? `[${i}]` : '';
      if (item.kind !== 'object') this.problem(item.at, path, `is ${named(item)}; allowed is an object of parents, each an array of devices`);
      else for (const { key, value: children } of this.unique(item.members, path)) this.children(children, key, join(path, key), all);
    });
    return all;
  }

  private children(value: JsonValue, parent: string, path: string, all: DefinedMdev[]): void {
    if (value.kind !== 'array') return this.problem(value.at, path, `is ${named(value)}; a parent has an array of objects, each with the UUID of one device`);
    value.items.forEach((item, i) => {
      const here = `${path}[${i}]`;
      if (item.kind !== 'object' || item.members.length !== 1) return this.problem(item.at, here, `is ${named(item)}; allowed is an object with one key, the UUID of a device`);
      const { key, at, value: definition } = item.members[0]!;
      const read = this.definition(definition, join(here, key));
      const uuid = readUuid(key);
      if (uuid === undefined) this.problem(at, join(here, key), 'is no UUID');
      else if (all.some((other) => other.parent === parent && other.uuid === uuid)) this.problem(at, join(here, key), `parent ${parent} has this device twice`);
      else if (read !== undefined) all.push({ parent, uuid, ...read });
    });
  }

  private text(object: JsonValue, members: readonly JsonMember[], path: string, key: string, allowed: string): string | undefined {
    const value = members.find((member) => member.key === key)?.value;
    if (value === undefined) return this.problem(object.at, path, `${key} is missing; it is ${allowed}`);
    const fits = value.kind === 'string' && (key === 'start' ? value.value === 'auto' || value.value === 'manual' : value.value !== '');
    return fits ? value.value : this.problem(value.at, join(path, key), `is ${named(value)}; allowed is ${allowed}`);
  }

  private attributes(value: JsonValue | undefined, path: string): DefinedAttribute[] {
    if (value === undefined || value.kind === 'null') return [];
    if (value.kind !== 'array') return this.problem(value.at, path, `is ${named(value)}; allowed is an array of objects such as {"name": "value"}`) ?? [];
    return value.items.flatMap((item, i) => {
      const here = `${path}[${i}]`;
      if (item.kind !== 'object') return this.problem(item.at, here, `is ${named(item)}; an attribute is an object such as {"name": "value"}`) ?? [];
      if (item.members.length !== 1) return this.problem(item.at, here, `has ${item.members.length} keys; an attribute is an object with one, its name`) ?? [];
      const { key, at, value: text } = item.members[0]!;
      if (key === '') return this.problem(at, here, 'an attribute has a name') ?? [];
      if (text.kind !== 'string') return this.problem(text.at, join(here, key), `is ${named(text)}; values are strings, such as "5"`) ?? [];
      return [[key, text.value] as const];
    });
  }

  private unique(members: readonly JsonMember[], path: string): readonly JsonMember[] {
    members.forEach(({ key, at }, i) => {
      if (members.findIndex((other) => other.key === key) < i) this.problem(at, join(path, key), 'the key is there twice');
    });
    return members;
  }

  private problem(at: JsonAt, path: string, message: string): undefined {
    this.problems.push({ file: this.file, line: at.line, column: at.column, path, message });
  }
}

function join(path: string, key: string): string {
  if (!/^[\w-]+$/.test(key)) return `${path}[${JSON.stringify(key)}]`;
  return path === '' ? key : `${path}.${key}`;
}

function named(value: JsonValue): string {
  switch (value.kind) {
    case 'null': return 'null';
    case 'boolean':
    case 'number': return String(value.value);
    case 'string': return JSON.stringify(value.value);
    case 'array': return 'an array';
    case 'object': return value.members.length === 1 ? 'an object' : `an object of ${value.members.length} keys`;
  }
}

/** An attribute that a device did not take; `error` is ENOENT when it has no such file. */
export interface RefusedAttribute {
  readonly name: string;
  readonly value: string;
  readonly error: Errno;
}

/** Writes attributes to a running device, in order, up to the first that is refused. */
export function* writeAttributes(sysfs: MdevSysfs, uuid: string, attrs: readonly DefinedAttribute[]): Steps<RefusedAttribute | undefined> {
  for (const [name, value] of attrs) {
    try {
      yield* sysfs.write(`/sys/bus/mdev/devices/${uuid}/${name}`, value);
    } catch (error) {
      if (!isErrno(error)) throw error;
      return { name, value, error };
    }
  }
  return undefined;
}

/**
 * Writes the attributes of a definition after the create, as `mdevctl start` does: when one is refused the device is
 * removed again, and that refusal is thrown. ENOENT no such attribute, EACCES it can only be read, or what its driver says.
 */
export function* applyAttributes(sysfs: MdevSysfs, uuid: string, attrs: readonly DefinedAttribute[]): Steps {
  const refused = yield* writeAttributes(sysfs, uuid, attrs);
  if (refused === undefined) return;
  yield* sysfs.write(`/sys/bus/mdev/devices/${uuid}/remove`, '1');
  const { name, value, error } = refused;
  throw new Errno(error.code, `mdev ${uuid} is removed again, its attribute ${name} did not take ${JSON.stringify(value)}: ${error.message.slice(error.code.length + 3)}`);
}

/** The definitions of a machine, /etc/mdevctl.d. The same UUID may be defined under several parents. */
export class DefinitionStore {
  private readonly parents = new Map<string, Map<string, MdevDefinition>>();

  get(parent: string, uuid: string): MdevDefinition | undefined {
    return this.parents.get(parent)?.get(uuid);
  }

  /** Adds or replaces; `uuid` in lower case. */
  set(parent: string, uuid: string, definition: MdevDefinition): void {
    if (!isUuid(uuid)) throw new RangeError(`${uuid} is no UUID in lower case`);
    let children = this.parents.get(parent);
    if (children === undefined) this.parents.set(parent, (children = new Map<string, MdevDefinition>()));
    children.set(uuid, definition);
  }

  /** True when it was there. */
  delete(parent: string, uuid: string): boolean {
    return this.parents.get(parent)?.delete(uuid) ?? false;
  }

  /** By parent, then by UUID, all or those of a UUID or a parent. */
  list(only: { readonly uuid?: string | undefined; readonly parent?: string | undefined } = {}): DefinedMdev[] {
    const all: DefinedMdev[] = [];
    for (const [parent, children] of this.parents) {
      if (only.parent !== undefined && only.parent !== parent) continue;
      for (const [uuid, definition] of children) if (only.uuid === undefined || only.uuid === uuid) all.push({ parent, uuid, ...definition });
    }
    return inListOrder(all);
  }
}
