/**
 * What mediated devices look like in sysfs (drivers/vfio/mdev/mdev_sysfs.c, v5.10;
 * Documentation/driver-api/vfio-mediated-device.rst; C14):
 *
 *   /sys/class/mdev_bus/<parent>                      -> /sys/devices/…/<parent>
 *   /sys/devices/…/<parent>/mdev_supported_types/<type-id>/{available_instances,create,description,device_api,devices/<uuid>,name}
 *   /sys/devices/…/<parent>/<uuid>/{iommu_group,mdev_type,remove,<attributes of the parent's driver>}
 *   /sys/bus/mdev/devices/<uuid>                      -> /sys/devices/…/<parent>/<uuid>
 *   /sys/kernel/iommu_groups/<number>/devices/<uuid>  -> /sys/devices/…/<parent>/<uuid>
 *
 * A device is there from the end of its create to the start of its remove, as in Linux, where the driver core takes
 * the links away before it waits for the user. Nothing is stored: a path is looked up in what the core knows now.
 * Left out: everything that the driver core adds (uevent, power, driver, subsystem) and groups of other devices.
 */
import { Errno } from '../sim/errno.js';
import type { Device } from '../host/device.js';
import type { Steps } from '../sim/task.js';
import type { MdevCore } from './core.js';
import type { MdevDevice, MdevParent, MdevTypeEntry } from './device.js';
import type { MdevAttribute } from './parent.js';

interface Directory {
  readonly kind: 'directory';
  entry(name: string): Node | undefined;
  names(): string[];
}

interface File {
  readonly kind: 'file';
  readonly read?: () => string;
  readonly write?: (text: string) => Steps;
}

interface Link {
  readonly kind: 'link';
  /** Absolute path. */
  readonly target: string;
}

type Node = Directory | File | Link;

/** Where a path leads: the node, and the names on the way there with every link followed. */
interface Place {
  readonly node: Node;
  readonly names: readonly string[];
}

export interface MdevSysfsOptions {
  /** Absolute path of a parent's directory; `/sys/devices/<name>` without it. The last name is the device's. */
  readonly devicePath?: (device: Device) => string;
}

export class MdevSysfs {
  private readonly core: MdevCore;
  private readonly devicePath: (device: Device) => string;

  constructor(core: MdevCore, options: MdevSysfsOptions = {}) {
    this.core = core;
    this.devicePath = options.devicePath ?? (({ name }) => `/sys/devices/${name}`);
  }

  exists(path: string): boolean {
    return this.walk(path, true) !== undefined;
  }

  /** Names in a directory, sorted. ENOENT, ENOTDIR. */
  list(path: string): string[] {
    const { node } = this.place(path, true);
    if (node.kind !== 'directory') throw new Errno('ENOTDIR', `${path} is a file`);
    return node.names().toSorted();
  }

  /** Text of a file, with its newline. ENOENT, EISDIR, EACCES a file that can only be written. */
  read(path: string): string {
    const file = this.file(path);
    if (file.read === undefined) throw new Errno('EACCES', `${path} can only be written`);
    return file.read();
  }

  /** Writes a file, all of it at once. ENOENT, EISDIR, EACCES a file that can only be read; else what the file refuses with. */
  *write(path: string, text: string): Steps {
    const file = this.file(path);
    if (file.write === undefined) throw new Errno('EACCES', `${path} can only be read`);
    yield* file.write(text);
  }

  /** Target of a link, relative as in Linux. ENOENT; EINVAL no link. */
  readlink(path: string): string {
    const { node, names } = this.place(path, false);
    if (node.kind !== 'link') throw new Errno('EINVAL', `${path} is no link`);
    const target = components(node.target);
    const from = names.slice(0, -1);
    let common = 0;
    while (common < from.length && from[common] === target[common]) common++;
    return [...from.slice(common).map(() => '..'), ...target.slice(common)].join('/');
  }

  /** The path with every link followed. ENOENT. */
  realpath(path: string): string {
    return `/${this.place(path, true).names.join('/')}`;
  }

  private file(path: string): File {
    const { node } = this.place(path, true);
    if (node.kind !== 'file') throw new Errno('EISDIR', `${path} is a directory`);
    return node;
  }

  private place(path: string, follow: boolean): Place {
    const place = this.walk(path, follow);
    if (place === undefined) throw new Errno('ENOENT', `there is no ${path}`);
    return place;
  }

  /** @param follow whether a link at the very end is followed */
  private walk(path: string, follow: boolean): Place | undefined {
    const rest = components(path);
    const way: Place[] = [{ node: this.root(), names: [] }];
    while (rest.length > 0) {
      const name = rest.shift()!;
      if (name === '.') continue;
      if (name === '..') {
        if (way.length > 1) way.pop();
        continue;
      }
      const { node, names } = way.at(-1)!;
      const next = node.kind === 'directory' ? node.entry(name) : undefined;
      if (next === undefined) return undefined;
      if (next.kind === 'link' && (follow || rest.length > 0)) {
        rest.unshift(...components(next.target));
        way.length = 1;
      } else {
        way.push({ node: next, names: [...names, name] });
      }
    }
    return way.at(-1)!;
  }

  private root(): Directory {
    const { core } = this;
    return directory({
      sys: () => directory({
        class: () => directory({
          mdev_bus: () => directory(Object.fromEntries(core.parents.filter(({ closed }) => !closed).map(({ device }) => [device.name, () => link(this.devicePath(device))]))),
        }),
        bus: () => directory({ mdev: () => directory({ devices: () => this.links(core.devices) }) }),
        kernel: () => directory({ iommu_groups: () => this.groups() }),
        devices: () => this.below(['sys', 'devices']),
      }),
    });
  }

  /** A directory on the way to parents, or a parent itself. */
  private below(names: readonly string[]): Directory {
    const entries: Record<string, () => Node> = {};
    for (const parent of this.core.parents) {
      const way = components(this.devicePath(parent.device));
      if (way.length < names.length || names.some((name, i) => way[i] !== name)) continue;
      if (way.length === names.length) Object.assign(entries, this.parentEntries(parent));
      else entries[way[names.length]!] = () => this.below(way.slice(0, names.length + 1));
    }
    return directory(entries);
  }

  private parentEntries(parent: MdevParent): Record<string, () => Node> {
    const entries: Record<string, () => Node> = {
      mdev_supported_types: () => directory(Object.fromEntries(parent.types.map((entry) => [entry.id, () => this.type(parent, entry)]))),
    };
    for (const mdev of parent.active) entries[mdev.name] = () => this.mdev(mdev);
    return entries;
  }

  private type(parent: MdevParent, { id, type }: MdevTypeEntry): Directory {
    const entries: Record<string, () => Node> = {
      available_instances: () => file(() => String(type.availableInstances())),
      create: () => ({ kind: 'file', write: (text) => this.create(parent.device, id, text) }),
      device_api: () => file(() => type.deviceApi),
      devices: () => this.links(parent.active.filter((mdev) => mdev.typeId === id)),
    };
    const { label, description } = type;
    if (label !== undefined) entries['name'] = () => file(() => label);
    if (description !== undefined) entries['description'] = () => file(() => description);
    return directory(entries);
  }

  private mdev(mdev: MdevDevice): Directory {
    return directory({
      ...attributeEntries(mdev.attributes.map((attribute) => [attribute.name, attribute])),
      iommu_group: () => link(`/sys/kernel/iommu_groups/${mdev.group!}`),
      mdev_type: () => link(`${this.devicePath(mdev.parent.device)}/mdev_supported_types/${mdev.typeId}`),
      remove: () => ({ kind: 'file', write: (text) => this.core.remove(mdev.name, text) }),
    });
  }

  private groups(): Directory {
    return directory(Object.fromEntries(this.core.devices.map((mdev) => [String(mdev.group!), () => directory({ devices: () => this.links([mdev]) })])));
  }

  private links(mdevs: readonly MdevDevice[]): Directory {
    return directory(Object.fromEntries(mdevs.map((mdev) => [mdev.name, () => link(`${this.devicePath(mdev.parent.device)}/${mdev.name}`)])));
  }

  private *create(device: Device, typeId: string, text: string): Steps {
    yield* this.core.create(device, typeId, text);
  }
}

function components(path: string): string[] {
  return path.split('/').filter((name) => name !== '');
}

function directory(entries: Readonly<Record<string, () => Node>>): Directory {
  return { kind: 'directory', names: () => Object.keys(entries), entry: (name) => (Object.hasOwn(entries, name) ? entries[name]!() : undefined) };
}

function link(target: string): Link {
  return { kind: 'link', target };
}

/** A file that can only be read; its text ends with a newline. */
function file(read: () => string): File {
  return { kind: 'file', read: () => line(read()) };
}

/** Attributes of a named group lie in a directory of its name: `vendor/sample_mdev_dev`. */
function attributeEntries(attributes: readonly (readonly [path: string, attribute: MdevAttribute])[]): Record<string, () => Node> {
  const entries: Record<string, () => Node> = {};
  for (const [path, attribute] of attributes) {
    const group = path.split('/', 1)[0]!;
    if (group === path) entries[path] = () => attributeFile(attribute);
    else entries[group] ??= () => directory(attributeEntries(attributes.filter(([other]) => other.startsWith(`${group}/`)).map(([other, member]) => [other.slice(group.length + 1), member])));
  }
  return entries;
}

/** Drivers see what `echo` wrote without its newline. */
function attributeFile(attribute: MdevAttribute): File {
  const read = (): string => line(attribute.read());
  if (attribute.write === undefined) return { kind: 'file', read };
  // oxlint-disable-next-line require-yield -- a file's write may sleep
  return { kind: 'file', read, *write(text) { attribute.write!(text.endsWith('\n') ? text.slice(0, -1) : text); } };
}

function line(text: string): string {
  return text.endsWith('\n') ? text : `${text}\n`;
}
