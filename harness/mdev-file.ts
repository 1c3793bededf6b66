/**
 * mdevctl on a topology file. The file is a machine at boot: what it defines with `start: auto` is active there. So
 * `start` and `stop` do the thing on the booted machine first, and what the kernel did not refuse becomes the file's
 * `start: auto` or `manual`; `define`, `modify` and `undefine` change the list. Comments and the rest of the file stay.
 */
import { readFileSync, renameSync, writeFileSync } from 'node:fs';
import { isMap, isSeq, parseDocument, type Document, type YAMLMap, type YAMLSeq } from 'yaml';
import { DefinitionStore, type DefinedMdev } from '../mdev/definitions.js';
import { Mdevctl } from '../mdev/mdevctl-commands.js';
import type { Machine } from './machine.js';
import type { MdevTopology } from './topology/schema.js';
import { parseTopology } from './topology/load.js';
import { dirname, resolve } from 'node:path';

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

  /** A parent as the kernel names it; `name` itself when it is no device of the topology. */
  kernelName(name: string): string {
    return this.machine.host.devices.models.find((model) => model.name === name)?.bdf ?? name;
  }

  /** Starts a device, and keeps it in the file so that it is there after the next boot as well. What `start` printed. */
  start(options: Parameters<Mdevctl['start']>[0]): string {
    const known = new Set(this.mdevctl.active().map(({ uuid }) => uuid));
    const text = this.machine.execute('mdevctl start', this.mdevctl.start(options));
    for (const { uuid, parent, mdevType } of this.mdevctl.active()) {
      if (!known.has(uuid)) this.store.set(parent, uuid, { ...(this.store.get(parent, uuid) ?? { mdevType, attrs: [] }), start: 'auto' });
    }
    return text;
  }

  stop(uuid: string): void {
    this.machine.execute('mdevctl stop', this.mdevctl.stop(uuid));
    for (const { parent, ...definition } of this.store.list({ uuid })) this.store.set(parent, uuid, { ...definition, start: 'manual' });
  }

  /** Writes what has changed into the file, all or nothing. InvalidInput when the result would not be a topology. */
  save(): void {
    const document = parseDocument(readFileSync(this.file, 'utf8'), { intAsBigInt: true });
    const now = this.store.list();
    for (const { uuid } of this.before) if (!now.some((mdev) => mdev.uuid === uuid)) remove(document, uuid);
    for (const mdev of now) this.write(document, mdev);
    const text = document.toString({ lineWidth: 0 });
    parseTopology(text, this.file, dirname(resolve(this.file)));
    const beside = `${this.file}.tmp`;
    writeFileSync(beside, text);
    renameSync(beside, this.file);
  }

  private write(document: Document, { uuid, parent, mdevType, start, attrs }: DefinedMdev): void {
    const old = this.before.find((mdev) => mdev.uuid === uuid);
    const values = attrs.map(([key, value]) => ({ [key]: value }));
    if (old === undefined) {
      const name = this.machine.host.devices.models.find(({ bdf }) => bdf === parent)?.name ?? parent;
      listOf(document).add(document.createNode({ uuid, parent: name, mdev_type: mdevType, start, ...(values.length === 0 ? {} : { attrs: values }) }, { flow: values.length === 0 }));
      return;
    }
    const entry = entryOf(document, uuid)!;
    if (old.mdevType !== mdevType) entry.set('mdev_type', mdevType);
    if (old.start !== start) entry.set('start', start);
    if (JSON.stringify(old.attrs) !== JSON.stringify(attrs)) entry.set('attrs', document.createNode(values));
  }
}

function listOf(document: Document): YAMLSeq {
  const list = document.get('mdevs');
  if (isSeq(list)) return list;
  const made = document.createNode([]);
  made.flow = false;
  document.set('mdevs', made);
  return made;
}

function indexOf(document: Document, uuid: string): number {
  return listOf(document).items.findIndex((item) => isMap(item) && String(item.get('uuid')).toLowerCase() === uuid);
}

function entryOf(document: Document, uuid: string): YAMLMap | undefined {
  const item = listOf(document).items[indexOf(document, uuid)];
  return isMap(item) ? item : undefined;
}

function remove(document: Document, uuid: string): void {
  const list = listOf(document);
  list.items.splice(indexOf(document, uuid), 1);
  if (list.items.length === 0) document.delete('mdevs');
}
