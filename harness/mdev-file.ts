/**
 * mdevctl on a topology file. The file is a machine at boot: what it defines with `start: auto` is active there. So
 * `start` and `stop` do the thing on the booted machine first, and what the kernel did not refuse becomes the file's
 * `start: auto` or `manual`; `define`, `modify` and `undefine` change the list. Comments and the rest of the file stay.
 */
import { readFileSync, realpathSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { DefinitionStore, parseDefinition, type DefinedMdev } from '../mdev/definitions.js';
import { MdevctlError } from '../mdev/mdevctl.js';
import { Mdevctl } from '../mdev/mdevctl-commands.js';
import type { Machine } from './machine.js';
import { editMdevs, type MdevList } from './mdev-text.js';
import { parseTopology } from './topology/load.js';
import { InvalidInput, unknownName } from './topology/problems.js';
import type { MdevTopology } from './topology/schema.js';
import { formatBdf, parseBdf } from './topology/units.js';

export class MdevFile {
  readonly mdevctl: Mdevctl;
  private readonly machine: Machine;
  private readonly file: string;
  private readonly store = new DefinitionStore();
  private readonly before: readonly DefinedMdev[];

  /** @param machine of the file, booted */
  constructor(machine: Machine, file: string, mdevs: readonly MdevTopology[]) {
    this.machine = machine;
    this.file = file;
    const { passthrough, random } = machine.host;
    for (const { uuid, parent, mdev_type: mdevType, start, attrs } of mdevs) {
      this.store.set(this.kernelName(parent), uuid, { mdevType, start, attrs: attrs.flatMap((attribute) => Object.entries(attribute)) });
    }
    this.before = this.store.list();
    this.mdevctl = new Mdevctl({ core: passthrough.mdevs, sysfs: passthrough.sysfs, definitions: this.store, random: random.split('mdevctl') });
  }

  /** A parent as the kernel names it, from its name in the topology or a BDF in any spelling; `name` itself when it is neither. */
  kernelName(name: string): string {
    const bdf = parseBdf(name);
    return this.machine.host.devices.models.find((model) => model.name === name)?.bdf ?? (bdf === undefined ? name : formatBdf(bdf));
  }

  /** A sentence when the topology has no device of that name or BDF that could be a parent. */
  unknownParent(name: string): string | undefined {
    const { devices, passthrough } = this.machine.host;
    const virtual = passthrough.mttyParents.map(({ device }) => device.name);
    if (virtual.includes(name) || devices.models.some(({ bdf }) => bdf === this.kernelName(name))) return undefined;
    return unknownName('device', name, [...devices.models.map((model) => model.name), ...virtual]);
  }

  /** A device by its name in the topology; `text` itself when there is none of that name. */
  uuidOf(text: string): string {
    return this.machine.loaded.topology.mdevs.find(({ name }) => name === text)?.uuid ?? text.toLowerCase();
  }

  /** Starts a device, and keeps it in the file so that it is there after the next boot as well. What `start` printed. */
  start(options: Parameters<Mdevctl['start']>[0]): string {
    const known = new Set(this.mdevctl.active().map(({ uuid }) => uuid));
    const { jsonfile } = options;
    const text = this.machine.execute('mdevctl start', this.mdevctl.start(options));
    for (const { uuid, parent, mdevType } of this.mdevctl.active()) {
      if (known.has(uuid)) continue;
      const definition = jsonfile === undefined ? this.store.get(parent, uuid) : parseDefinition(jsonfile.text, jsonfile.name);
      this.store.set(parent, uuid, { ...(definition ?? { mdevType, attrs: [] }), start: 'auto' });
    }
    return text;
  }

  /** @throws MdevctlError it does not run, or its removal was refused */
  stop(uuid: string): void {
    if (this.mdevctl.active({ uuid }).length === 0) throw new MdevctlError(`Device ${uuid} is not active`);
    this.machine.execute('mdevctl stop', this.mdevctl.stop(uuid));
    for (const { parent, ...definition } of this.store.list({ uuid })) this.store.set(parent, uuid, { ...definition, start: 'manual' });
  }

  /** Writes what has changed into the file, all or nothing. InvalidInput when the result would not be a topology, or cannot be written. */
  save(): void {
    const now = this.store.list();
    if (JSON.stringify(now) === JSON.stringify(this.before)) return;
    const text = this.edited(now);
    parseTopology(text, this.file, dirname(resolve(this.file)));
    this.replace(text);
  }

  private edited(now: readonly DefinedMdev[]): string {
    try {
      return editMdevs(readFileSync(this.file, 'utf8'), (list) => {
        for (const mdev of this.before) if (!now.some((other) => same(mdev, other)) && !list.remove(mdev.uuid)) this.refuseAlias(mdev.uuid);
        for (const mdev of now) this.write(list, mdev);
      });
    } catch (error) {
      if (error instanceof Error && /alias/i.test(error.message) && !(error instanceof InvalidInput)) throw new InvalidInput([{ file: this.file, message: `mdevs: what goes defines an anchor that is used elsewhere (${error.message})` }]);
      throw error;
    }
  }

  private write(list: MdevList, mdev: DefinedMdev): void {
    const { uuid, parent, mdevType, start, attrs } = mdev;
    const old = this.before.find((other) => same(mdev, other));
    const values = attrs.map(([key, value]) => ({ [key]: value }));
    if (old === undefined) {
      const name = this.machine.host.devices.models.find(({ bdf }) => bdf === parent)?.name ?? parent;
      return list.add({ uuid, parent: name, mdev_type: mdevType, start, ...(values.length === 0 ? {} : { attrs: values }) }, values.length === 0);
    }
    if (JSON.stringify(old) === JSON.stringify(mdev)) return;
    const entry = list.entry(uuid) ?? this.refuseAlias(uuid);
    if (old.mdevType !== mdevType) entry.set('mdev_type', mdevType);
    if (old.start !== start) entry.set('start', start);
    if (JSON.stringify(old.attrs) === JSON.stringify(attrs)) return;
    if (attrs.length === 0) entry.delete('attrs');
    else entry.set('attrs', list.node(values));
  }

  private refuseAlias(uuid: string): never {
    throw new InvalidInput([{ file: this.file, message: `mdevs: ${uuid} stands there as an alias of something else; write it out first` }]);
  }

  /** The new text is complete beside the file before it takes its place. */
  private replace(text: string): void {
    const target = realpathSync(this.file), beside = `${target}.tmp`;
    try {
      writeFileSync(beside, text, { mode: statSync(target).mode });
      renameSync(beside, target);
    } catch (error) {
      rmSync(beside, { force: true });
      throw new InvalidInput([{ file: this.file, message: `cannot be written (${(error as NodeJS.ErrnoException).code ?? String(error)})` }]);
    }
  }
}

function same(a: DefinedMdev, b: DefinedMdev): boolean {
  return a.uuid === b.uuid && a.parent === b.parent;
}
