/** What a guest's topology says about its devices, resolved against the host: VFIO group, place on the guest's bus, configuration. */
import type { Device } from '../../host/device.js';
import { Errno } from '../../sim/errno.js';
import type { DeviceModel } from '../compose/devices.js';
import type { Host } from '../compose/host.js';
import type { Settings } from '../compose/settings.js';
import type { DeviceTopology, GuestDeviceTopology, GuestTopology, Topology } from '../topology/schema.js';
import type { Bdf } from '../topology/units.js';

export interface AssignedDevice {
  /** In the guest. */
  readonly name: string;
  readonly model: DeviceModel['model'];
  /** On the guest's bus. */
  readonly bdf: Bdf;
  /** As VFIO names it: a BDF or a UUID. */
  readonly deviceName: string;
  readonly groupId: number;
  readonly onRequest: 'eject' | 'ignore';
  /** Whose requests carry its DMA; undefined for a device of software only. */
  readonly hostModel: DeviceModel | undefined;
  /** The mediated device; undefined for a whole one. */
  readonly mdev: Device | undefined;
  /** The guest's administrator's configuration. */
  readonly topology: DeviceTopology | undefined;
}

/** Slots 0 to 3 of QEMU's boards are the chipset's. */
const FIRST_SLOT = 4;

/** ENODEV a device is not there, or not in VFIO's hands. */
export function assignedDevices(guest: GuestTopology, host: Host): AssignedDevice[] {
  const taken = new Set(guest.devices.flatMap(({ bdf }) => (bdf === undefined ? [] : [bdf.device])));
  let slot = FIRST_SLOT;
  return guest.devices.map((device) => {
    while (device.bdf === undefined && taken.has(slot)) slot++;
    const bdf = device.bdf ?? { segment: 0, bus: 0, device: slot++, function: 0 };
    return device.mdev === undefined ? wholeDevice(device, bdf, host) : mediatedDevice(device, device.mdev, bdf, host);
  });
}

function wholeDevice(device: GuestDeviceTopology, bdf: Bdf, host: Host): AssignedDevice {
  const hostModel = host.devices.models.find(({ name }) => name === device.host)!;
  const pci = host.pci.find(hostModel.bdf);
  if (pci === undefined) throw new Errno('ENODEV', `${hostModel.name} (${hostModel.bdf}) is not there`);
  const name = device.name ?? hostModel.name;
  return {
    name, model: hostModel.model, bdf, deviceName: pci.name, groupId: host.pci.groupOf(pci).id, onRequest: device['on-request'], hostModel, mdev: undefined,
    topology: hostModel.topology === undefined ? undefined : configuredInGuest(hostModel.topology, device, name, bdf),
  };
}

/** In a guest without an IOMMU of its own no process opens a queue by itself: queues are the kernel's. */
function configuredInGuest(topology: DeviceTopology, device: GuestDeviceTopology, name: string, bdf: Bdf): DeviceTopology {
  const { port: _port, ...rest } = topology;
  if (rest.model !== 'dsa') return { ...rest, name, bdf };
  const queues = device['work-queues'] ?? [{ mode: 'dedicated' as const, type: 'kernel' as const, size: 32, priority: 10, 'block-on-fault': false, group: 0 }];
  return { ...rest, name, bdf, 'work-queues': queues };
}

function mediatedDevice(device: GuestDeviceTopology, reference: string, bdf: Bdf, host: Host): AssignedDevice {
  const { passthrough, devices } = host;
  const definition = passthrough.definition(reference);
  const mdev = passthrough.mdevs.find(definition.uuid);
  if (mdev === undefined) throw new Errno('ENODEV', `mediated device ${definition.name ?? definition.uuid} has not been started`);
  const hostModel = devices.models.find(({ name }) => name === definition.parent);
  return {
    name: device.name ?? definition.name ?? definition.uuid, model: hostModel?.model ?? 'mtty', bdf, deviceName: mdev.name, groupId: mdev.group!, onRequest: device['on-request'],
    hostModel, mdev, topology: undefined,
  };
}

/** The inputs of a guest's kernel: the same topology language, for the virtual machine. */
export function guestSettings(guest: GuestTopology, host: Settings, devices: readonly AssignedDevice[]): Settings {
  const kernel: Topology['host']['kernel'] = { ...host.topology.host.kernel };
  delete kernel['memlock-limit'];
  return {
    scope: guest.name, seed: host.seed, defects: host.defects, traceRecords: host.traceRecords, watch: false,
    topology: {
      ...host.topology, mdevs: [], guests: [], processes: guest.processes, inject: [],
      host: { memory: guest.memory, iommu: undefined, kernel, ports: [], 'mdev-parents': [], devices: devices.flatMap(({ topology }) => (topology === undefined ? [] : [topology])) },
    },
  };
}
