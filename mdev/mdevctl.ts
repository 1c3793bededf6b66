/**
 * What mdevctl 1.3 prints (mdevctl/mdevctl, src/main.rs list_command and types_command, src/mdev.rs to_text): pure
 * functions from listing data to the bytes on its standard output, and the text of its errors. Text ends with a
 * newline, JSON does not.
 */
import { ERRNO, isErrno, type Errno, type ErrnoName } from '../sim/errno.js';
import { compare, formatDefinition, formatDefinitions, inListOrder, type DefinedAttribute, type DefinedMdev } from './definitions.js';
import { printJson, type Printable } from './json.js';
import type { MdevCore } from './core.js';

/** A type as `mdevctl types` shows it; an empty name or description is not shown. */
export interface ListedType {
  readonly parent: string;
  readonly typeId: string;
  readonly availableInstances: number;
  readonly deviceApi: string;
  readonly name: string;
  readonly description: string;
}

/** A device as `mdevctl list` shows it. */
export interface ListedMdev extends DefinedMdev {
  readonly active: boolean;
  readonly defined: boolean;
}

export interface ListOptions {
  /** `-d`: the devices are those that are defined. */
  readonly defined?: boolean;
  /** `-v`: with attributes. */
  readonly verbose?: boolean;
  readonly dumpjson?: boolean;
  /** `-u` was given: JSON of one device is then its definition alone. */
  readonly uuid?: string | undefined;
}

/** The types of every parent in /sys/class/mdev_bus, or of one. */
export function supportedTypes(core: MdevCore, parent?: string): ListedType[] {
  return core.parents.filter(({ closed, device }) => !closed && (parent === undefined || device.name === parent)).flatMap(({ device, types }) => types.map(({ id, type }): ListedType => ({
    parent: device.name, typeId: id, availableInstances: type.availableInstances(), deviceApi: type.deviceApi,
    name: (type.label ?? '').trim(), description: (type.description ?? '').trim().replaceAll('\n', ', '),
  })));
}

/** `mdevctl types`. */
export function typesText(types: readonly ListedType[]): string {
  return byParent(types).map(([parent, children]) => `${parent}\n${children.map(typeText).join('')}`).join('');
}

/** `mdevctl types --dumpjson`. */
export function typesJson(types: readonly ListedType[]): string {
  const parents = byParent(types);
  return printJson(parents.length === 0 ? [] : [new Map(parents.map(([parent, children]) => [parent, children.map(typePrintable)]))]);
}

function typeText(type: ListedType): string {
  const lines = [`  ${type.typeId}`, `    Available instances: ${type.availableInstances}`, `    Device API: ${type.deviceApi}`];
  if (type.name !== '') lines.push(`    Name: ${type.name}`);
  if (type.description !== '') lines.push(`    Description: ${type.description}`);
  return `${lines.join('\n')}\n`;
}

function typePrintable(type: ListedType): Printable {
  const members = new Map<string, Printable>([['available_instances', type.availableInstances], ['device_api', type.deviceApi]]);
  if (type.name !== '') members.set('name', type.name);
  if (type.description !== '') members.set('description', type.description);
  return new Map([[type.typeId, members]]);
}

function byParent(types: readonly ListedType[]): [parent: string, types: ListedType[]][] {
  const parents = new Map<string, ListedType[]>();
  for (const type of types.toSorted((a, b) => compare(a.parent, b.parent) || compare(a.typeId, b.typeId))) {
    const children = parents.get(type.parent);
    if (children === undefined) parents.set(type.parent, [type]);
    else children.push(type);
  }
  return [...parents];
}

/** `mdevctl list` (lsmdev) of devices that have been selected already. */
export function listOutput(mdevs: readonly ListedMdev[], options: ListOptions = {}): string {
  if (!options.dumpjson) return listText(mdevs, options);
  if (options.uuid === undefined || mdevs.length > 1) return formatDefinitions(mdevs);
  const [only] = mdevs;
  return only === undefined ? printJson([]) : formatDefinition(only);
}

/** One line a device, with its other half in brackets: `(active)` among the defined, `(defined)` among the active. */
export function listText(mdevs: readonly ListedMdev[], options: ListOptions = {}): string {
  return inListOrder(mdevs).map((mdev) => {
    const other = options.defined ? (mdev.active ? ' (active)' : '') : mdev.defined ? ' (defined)' : '';
    return `${mdev.uuid} ${mdev.parent} ${mdev.mdevType} ${mdev.start}${other}\n${options.verbose ? attributesText(mdev.attrs) : ''}`;
  }).join('');
}

/** Attributes as `list -v` shows them, with the index that `modify --index` takes; empty without any. */
export function attributesText(attrs: readonly DefinedAttribute[]): string {
  return attrs.length === 0 ? '' : `  Attrs:\n${attrs.map(([name, value], i) => `    @{${i}}: {"${name}":"${value}"}\n`).join('')}`;
}

/** What mdevctl refuses, in its words; `cause` is the kernel's refusal when there was one. */
export class MdevctlError extends Error {
  override readonly name = 'MdevctlError';
  override readonly cause: Errno | undefined;

  constructor(message: string, cause?: unknown) {
    super(message);
    this.cause = isErrno(cause) ? cause : undefined;
  }
}

/** What mdevctl writes to standard error before it exits with 1 (anyhow's Debug form). */
export function errorText(error: MdevctlError): string {
  return `Error: ${error.message}\n${error.cause === undefined ? '' : `\nCaused by:\n    ${osError(error.cause)}\n`}`;
}

/** glibc's strerror, of what sysfs files are refused with. */
const STRERROR: Partial<Record<ErrnoName, string>> = {
  EPERM: 'Operation not permitted', ENOENT: 'No such file or directory', EINTR: 'Interrupted system call', EIO: 'Input/output error', ENXIO: 'No such device or address',
  EAGAIN: 'Resource temporarily unavailable', ENOMEM: 'Cannot allocate memory', EACCES: 'Permission denied', EFAULT: 'Bad address', EBUSY: 'Device or resource busy',
  EEXIST: 'File exists', ENODEV: 'No such device', ENOTDIR: 'Not a directory', EISDIR: 'Is a directory', EINVAL: 'Invalid argument', ENOTTY: 'Inappropriate ioctl for device',
  ENOSPC: 'No space left on device', ERANGE: 'Numerical result out of range', EUSERS: 'Too many users', EOPNOTSUPP: 'Operation not supported', ETIMEDOUT: 'Connection timed out',
};

function osError({ code }: Errno): string {
  return `${STRERROR[code] ?? `Unknown error ${ERRNO[code]}`} (os error ${ERRNO[code]})`;
}
