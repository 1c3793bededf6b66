/** What a schema cannot say about mediated devices and guests. */
import { unique, unknownName, type Report } from './problems.js';
import type { GuestTopology, MdevTopology, Topology } from './schema.js';
import { formatBdf, formatSize } from './units.js';

/** Types by the model of the parent, as its driver offers them. */
const MDEV_TYPES = { dsa: ['idxd-1dwq-v1', 'idxd-1swq-v1'], mtty: ['mtty-1', 'mtty-2'] } as const;
const MIN_GUEST_MEMORY = 4 * 2 ** 20;

export function checkMdevs(topology: Topology, report: Report): void {
  const { mdevs, host } = topology;
  unique(mdevs, ({ uuid }) => uuid, (i, first) => report(['mdevs', i, 'uuid'], `is taken by mdevs[${first}]`));
  const named = mdevs.flatMap(({ name }, i) => (name === undefined ? [] : [{ name, i }]));
  unique(named, ({ name }) => name, (i, first) => report(['mdevs', named[i]!.i, 'name'], `"${named[i]!.name}" is taken by mdevs[${named[first]!.i}]`));
  unique(host['mdev-parents'], ({ name }) => name, (i, first) => report(['host', 'mdev-parents', i, 'name'], `is taken by host.mdev-parents[${first}]`));
  host['mdev-parents'].forEach(({ name }, i) => {
    if (host.devices.some((device) => device.name === name)) report(['host', 'mdev-parents', i, 'name'], `"${name}" is taken by a device`);
  });
  const taken = new Map<string, number>();
  mdevs.forEach((mdev, i) => checkMdev(mdev, i, topology, taken, report));
}

/** @param taken instances that mediated devices before this one take, by parent and type */
function checkMdev(mdev: MdevTopology, i: number, { host }: Topology, taken: Map<string, number>, report: Report): void {
  const parents = [...host.devices, ...host['mdev-parents']];
  const parent = parents.find(({ name }) => name === mdev.parent);
  if (parent === undefined) return report(['mdevs', i, 'parent'], unknownName('device', mdev.parent, parents.map(({ name }) => name)));
  if (parent.model === 'edu' || parent.model === 'nvme') return report(['mdevs', i, 'parent'], `"${parent.name}" is an ${parent.model}, which is no parent of mediated devices`);
  const types: readonly string[] = MDEV_TYPES[parent.model];
  if (!types.includes(mdev.mdev_type)) return report(['mdevs', i, 'mdev_type'], unknownName('type', mdev.mdev_type, types));
  if (parent.model !== 'dsa') return;
  const mode = mdev.mdev_type === 'idxd-1dwq-v1' ? 'dedicated' : 'shared';
  const queues = parent['work-queues'].filter((queue) => queue.type === 'mdev' && queue.mode === mode).length;
  if (queues === 0) report(['mdevs', i, 'mdev_type'], `needs a ${mode} work queue of type mdev on "${parent.name}", which has none`);
  if (host.iommu === undefined) report(['mdevs', i, 'parent'], `mediated devices of "${parent.name}" are isolated by auxiliary domains, which need host.iommu`);
  else if (!parent.siov) report(['mdevs', i, 'parent'], `mediated devices of "${parent.name}" are isolated by auxiliary domains, which need siov: true on it`);
  else if (!host.iommu.scalable || !host.kernel['scalable-mode']) report(['mdevs', i, 'parent'], `mediated devices of "${parent.name}" are isolated by auxiliary domains, which need scalable mode of the IOMMU`);
  const kind = `${mdev.parent} ${mdev.mdev_type}`, before = taken.get(kind) ?? 0;
  if (mdev.start === 'auto') taken.set(kind, before + 1);
  const instances = mode === 'dedicated' ? queues : parent['mdev-slots'];
  if (mdev.start === 'auto' && queues > 0 && before >= instances) report(['mdevs', i, 'mdev_type'], `"${parent.name}" has ${instances} instance(s) of ${mdev.mdev_type}, and all are taken`);
}

export function checkGuests(topology: Topology, report: Report): void {
  const { guests, processes } = topology;
  unique(guests, ({ name }) => name, (i, first) => report(['guests', i, 'name'], `is taken by guests[${first}]`));
  const ofHost = new Set(processes.map(({ name }) => name));
  const references = mdevReferences(topology.mdevs);
  guests.forEach((guest, i) => {
    if (ofHost.has(guest.name)) report(['guests', i, 'name'], `"${guest.name}" is taken by a process of the host`);
    checkGuest(guest, i, topology, references, report);
  });
  checkExclusive(topology, report);
}

/** Mediated devices by what a guest may call them: name or UUID. */
function mdevReferences(mdevs: readonly MdevTopology[]): ReadonlyMap<string, MdevTopology> {
  const references = new Map<string, MdevTopology>();
  for (const mdev of mdevs) {
    if (mdev.name !== undefined) references.set(mdev.name, mdev);
    references.set(mdev.uuid, mdev);
  }
  return references;
}

function checkGuest(guest: GuestTopology, i: number, { host }: Topology, mdevs: ReadonlyMap<string, MdevTopology>, report: Report): void {
  const at = (...keys: PropertyKey[]): PropertyKey[] => ['guests', i, ...keys];
  if (guest.memory < MIN_GUEST_MEMORY) report(at('memory'), `${formatSize(guest.memory)} are too small; allowed: at least ${formatSize(MIN_GUEST_MEMORY)}`);
  const unit = guest['huge-pages'] === '1GiB' ? 2 ** 30 : guest['huge-pages'] === '2MiB' ? 2 ** 21 : 4096;
  if (guest.memory % unit !== 0) report(at('memory'), `${guest.memory} bytes are no whole number of ${formatSize(unit)} pages`);
  guest.devices.forEach((device, k) => {
    const { mdev } = device;
    if (mdev !== undefined && !mdevs.has(mdev) && !mdevs.has(mdev.toLowerCase())) report(at('devices', k, 'mdev'), unknownName('mediated device', mdev, [...mdevs.keys()]));
    const whole = device.host === undefined ? undefined : host.devices.find(({ name }) => name === device.host);
    if (device.host !== undefined && whole === undefined) report(at('devices', k, 'host'), unknownName('device', device.host, host.devices.map(({ name }) => name)));
    if (device['work-queues'] !== undefined && whole?.model !== 'dsa') report(at('devices', k, 'work-queues'), 'only a whole accelerator (host: a dsa) is set up by the guest');
    device['work-queues']?.forEach((queue, q) => {
      if (queue.type !== 'kernel') report(at('devices', k, 'work-queues', q, 'type'), `${queue.type} queues need an IOMMU in the guest, which it does not have; allowed: kernel`);
      if (queue.mode === 'shared') report(at('devices', k, 'work-queues', q, 'mode'), 'a kernel queue of a whole device is dedicated');
    });
    const { bdf } = device;
    if (bdf !== undefined && (bdf.segment !== 0 || bdf.bus !== 0 || bdf.function !== 0)) report(at('devices', k, 'bdf'), `"${formatBdf(bdf)}" is not on the guest's bus; allowed: "0000:00:01.0" to "0000:00:1f.0"`);
  });
  const placed = guest.devices.flatMap(({ bdf }, k) => (bdf === undefined ? [] : [{ bdf: formatBdf(bdf), k }]));
  unique(placed, ({ bdf }) => bdf, (k, first) => report(at('devices', placed[k]!.k, 'bdf'), `is taken by devices[${placed[first]!.k}]`));
  const names = guest.devices.map((device) => device.name ?? device.host ?? mdevs.get(device.mdev ?? '')?.name ?? device.mdev ?? '');
  unique(names, (name) => name, (k, first) => report(at('devices', k), `is called "${names[k]!}" like devices[${first}]; give it a name`));
}

/** A whole device is nobody's parent and not twice one guest's. Two guests may name it: the second is refused, or comes after the first has ended. */
function checkExclusive({ guests, host, mdevs }: Topology, report: Report): void {
  const whole = new Map<string, string>();
  const parents = new Set(mdevs.map(({ parent }) => parent));
  guests.forEach((guest, i) => guest.devices.forEach((device, k) => {
    if (device.host === undefined) return;
    const taken = whole.get(device.host);
    if (taken === guest.name) report(['guests', i, 'devices', k, 'host'], `"${device.host}" is this guest's already`);
    whole.set(device.host, guest.name);
    if (parents.has(device.host)) report(['guests', i, 'devices', k, 'host'], `"${device.host}" is the parent of mediated devices, so nobody can have it as a whole`);
    if (host.iommu === undefined) report(['guests', i, 'devices', k, 'host'], 'a whole device needs host.iommu: without it nothing isolates the guest');
  }));
}
