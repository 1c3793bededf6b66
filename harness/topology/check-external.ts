/** What a schema cannot say about external guests. */
import { buildCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { externalCapabilities } from './capability-options.js';
import { checkDsa, checkNvme } from './check-devices.js';
import { unique, type Report } from './problems.js';
import { DEFAULT_DISK_BYTES, type ExternalTopology, type GuestTopology, type Topology } from './schema.js';
import { formatBdf, formatSize } from './units.js';

/** Where the device sits that carries the registers of the IOMMU. */
export const CARRIER_SLOT = 2;
/** What it is called, beside the devices. */
export const CARRIER_NAME = 'iommu';
/** From here on slots are free for devices: 0 is the host bridge, 1 what a board brings along, 31 its chip set (QEMU's q35). */
export const FIRST_SLOT = 3, LAST_SLOT = 30;
const MIN_MEMORY = 256 * 2 ** 20;
const MAX_MEMORY = 2 ** 40;
/** What a simulated guest has and an external one brings along itself. */
const SIMULATED = ['devices', 'processes', 'huge-pages', 'memlock-limit'] as const;

export function checkExternalGuests(topology: Topology, directory: string, report: Report): void {
  const { guests } = topology;
  guests.forEach((guest, i) => {
    if (guest.external !== undefined) checkExternal(guest, guest.external, i, directory, report);
  });
  const first = guests.find(({ external }) => external !== undefined);
  if (first !== undefined) checkAlone(first.name, topology, report);
  const sockets = guests.flatMap((guest, i) => (guest.external?.devices ?? []).map((device, k) => ({ i, k, socket: `${guest.name}-${device.name}` })));
  unique(sockets, ({ socket }) => socket, (n, taken) => {
    const { i, k, socket } = sockets[n]!, other = sockets[taken]!;
    if (i !== other.i) report(['guests', i, 'external', 'devices', k, 'name'], `would have the socket ${socket}.sock, which is that of guests[${other.i}].external.devices[${other.k}]`);
  });
}

/** What is simulated lives in another time: one file has either. */
function checkAlone(external: string, { guests, processes, host, mdevs, inject }: Topology, report: Report): void {
  const refuse = (path: readonly PropertyKey[]): void => report(path, `is simulated, and "${external}" is an external guest, which lives in real time; one file has either`);
  guests.forEach((guest, i) => {
    if (guest.external === undefined) refuse(['guests', i]);
  });
  if (host.iommu !== undefined) refuse(['host', 'iommu']);
  for (const [key, things] of [['processes', processes], ['mdevs', mdevs], ['inject', inject]] as const) if (things.length > 0) refuse([key]);
  for (const key of ['devices', 'ports', 'mdev-parents'] as const) if (host[key].length > 0) refuse(['host', key]);
}

function checkExternal(guest: GuestTopology, external: ExternalTopology, i: number, directory: string, report: Report): void {
  for (const key of SIMULATED) {
    const value = guest[key];
    if (value !== undefined && !(Array.isArray(value) && value.length === 0)) report(['guests', i, key], `"${guest.name}" is external: what runs in it, and on what, is not this topology's; its devices are external.devices`);
  }
  if (guest.start !== 0) report(['guests', i, 'start'], `"${guest.name}" is external: it starts when somebody starts it`);
  if (guest.container !== 'type1v2') report(['guests', i, 'container'], `"${guest.name}" is external: its devices are in no VFIO container of this topology`);
  if (guest.memory < MIN_MEMORY || guest.memory > MAX_MEMORY || guest.memory % 2 ** 20 !== 0) {
    report(['guests', i, 'memory'], `${formatSize(guest.memory)}; an external guest has whole MiB from ${formatSize(MIN_MEMORY)} to ${formatSize(MAX_MEMORY)}`);
  }
  const { iommu, devices } = external;
  if (iommu !== undefined) for (const text of buildCapabilities(externalCapabilities(iommu)).problems) report(['guests', i, 'external', 'iommu'], text);
  if (iommu === undefined && external.inject.length > 0) report(['guests', i, 'external', 'inject'], 'errors of an IOMMU need external.iommu');
  unique(devices, ({ name }) => name, (k, first) => report(['guests', i, 'external', 'devices', k, 'name'], `is taken by devices[${first}]`));
  unique(devices, ({ bdf }) => formatBdf(bdf), (k, first) => report(['guests', i, 'external', 'devices', k, 'bdf'], `is taken by devices[${first}]`));
  devices.forEach((device, k) => {
    const at = (key: string): PropertyKey[] => ['guests', i, 'external', 'devices', k, key];
    const { bdf } = device;
    if (bdf.segment !== 0 || bdf.bus !== 0 || bdf.function !== 0 || bdf.device < FIRST_SLOT || bdf.device > LAST_SLOT) {
      report(at('bdf'), `"${formatBdf(bdf)}" is no free slot of the guest's root bus; allowed: "0000:00:${slotText(FIRST_SLOT)}.0" to "0000:00:${slotText(LAST_SLOT)}.0"`);
    }
    if (iommu !== undefined && device.name === CARRIER_NAME) report(at('name'), `"${CARRIER_NAME}" is the function that carries the registers of external.iommu; a device beside it has another name`);
    if (device.port !== undefined) report(at('port'), 'an external guest has no switches of ours');
    if (device.model === 'dsa') checkDsa(device, { ports: [] }, at, report);
    if (device.model !== 'nvme') return;
    checkNvme(device, directory, at, report);
    if (device.image !== undefined && device.size !== DEFAULT_DISK_BYTES) report(at('size'), 'the image is the whole disk of an external guest: its size is the file\'s');
    if (device['image-mode'] !== 'snapshot' && device.image === undefined) report(at('image-mode'), `"${device['image-mode']}" needs an image`);
  });
}

function slotText(slot: number): string {
  return slot.toString(16).padStart(2, '0');
}
