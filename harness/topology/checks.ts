/** What a schema cannot say: names that must exist or be unique, numbers that must fit each other, files that must be there. */
import { buildCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { layoutFor } from '../compose/layout.js';
import { capabilityOptions } from './capability-options.js';
import { checkGuests, checkMdevs } from './check-guests.js';
import { checkDsa, checkNvme } from './check-devices.js';
import { checkExternalGuests } from './check-external.js';
import { checkAllSteps, processNames } from './check-steps.js';
import { unique, unknownName, type Report } from './problems.js';
import { formatBdf } from './units.js';
import type { DeviceTopology, Topology } from './schema.js';

/** Buses from a switch's root bus to the bus of the first device behind it: root port, upstream port, downstream ports. */
export const SWITCH_DEPTH = 3;

const MAX_MEMORY = 2 ** 50;

export interface PathProblem {
  readonly path: readonly PropertyKey[];
  readonly message: string;
}

export function semanticProblems(topology: Topology, directory: string): PathProblem[] {
  const problems: PathProblem[] = [];
  const report = (path: readonly PropertyKey[], message: string): void => void problems.push({ path, message });
  checkHost(topology, report);
  checkDevices(topology, directory, report);
  checkMdevs(topology, report);
  checkGuests(topology, report);
  checkExternalGuests(topology, directory, report);
  checkAllSteps(topology, directory, report);
  checkInjections(topology, report);
  return problems;
}

function checkHost({ host }: Topology, report: Report): void {
  if (host.memory < 16 * 2 ** 20) report(['host', 'memory'], `${host.memory} bytes are too small; allowed: at least 16MiB`);
  if (host.memory > MAX_MEMORY) report(['host', 'memory'], `${host.memory} bytes are too large; allowed: at most 1024TiB`);
  if (host.memory % 4096 !== 0) report(['host', 'memory'], `${host.memory} bytes are no whole number of 4 KiB pages`);
  const unit = host.iommu;
  if (unit === undefined) return;
  // part of the memory lies above 4 GiB, behind the hole for registers
  if (layoutFor(host.memory).ram.at(-1)!.end > 2 ** unit.haw) report(['host', 'memory'], `lies beyond the IOMMU's host address width (haw) of ${unit.haw} bits`);
  const { problems } = buildCapabilities(capabilityOptions(unit));
  for (const text of problems) report(['host', 'iommu'], text);
}

function checkDevices({ host }: Topology, directory: string, report: Report): void {
  const names = new Map<string, number>();
  const places = new Map<string, number>();
  const ports = host.ports.map((port) => port.name);
  unique(host.ports, (port) => port.name, (i, first) => report(['host', 'ports', i, 'name'], `is taken by host.ports[${first}]`));
  host.devices.forEach((device, i) => {
    const at = (key: string): PropertyKey[] => ['host', 'devices', i, key];
    const sameName = names.get(device.name);
    if (sameName !== undefined) report(at('name'), `"${device.name}" is taken by host.devices[${sameName}]`);
    names.set(device.name, i);
    const bdf = formatBdf(device.bdf);
    const samePlace = places.get(bdf);
    if (samePlace !== undefined) report(at('bdf'), `"${bdf}" is taken by host.devices[${samePlace}]`);
    places.set(bdf, i);
    if (device.bdf.segment !== 0) report(at('bdf'), `segment ${device.bdf.segment} is not modelled; allowed: 0000`);
    if (device.bdf.device > 0x1f) report(at('bdf'), 'has a device number above 0x1f');
    if (device.port !== undefined && !ports.includes(device.port)) report(at('port'), unknownName('switch', device.port, ports));
    if (device.port !== undefined) checkPlaceBehindSwitch(device, host.devices.filter((other) => other.port === device.port), at, report);
    else if (device.bdf.function !== 0 && !host.devices.some((other) => other.port === undefined && formatBdf(other.bdf) === formatBdf({ ...device.bdf, function: 0 }))) {
      report(at('bdf'), `function ${device.bdf.function} needs a function 0 beside it`);
    }
    if (device.model === 'dsa') checkDsa(device, host, at, report);
    if (device.model === 'nvme') checkNvme(device, directory, at, report);
    if (device.model === 'nvme' && device['image-mode'] !== 'snapshot') report(at('image-mode'), `"${device['image-mode']}" would let a run change what the next one finds; allowed: snapshot`);
  });
}

function checkPlaceBehindSwitch(device: DeviceTopology, siblings: readonly DeviceTopology[], at: (key: string) => PropertyKey[], report: Report): void {
  const first = siblings[0]!.bdf.bus;
  const expected = formatBdf({ segment: 0, bus: first + siblings.indexOf(device), device: 0, function: 0 });
  if (first < SWITCH_DEPTH + 1) report(at('bdf'), `bus ${first.toString(16).padStart(2, '0')} leaves no room for the switch above; allowed: from bus 04 on`);
  else if (formatBdf(device.bdf) !== expected) report(at('bdf'), `"${formatBdf(device.bdf)}" is not where device ${siblings.indexOf(device)} behind switch "${device.port!}" sits; allowed: "${expected}"`);
}

function checkInjections(topology: Topology, report: Report): void {
  const devices = topology.host.devices.map((device) => device.name);
  const guests = topology.guests.map((guest) => guest.name);
  const mdevs = topology.mdevs.flatMap(({ uuid, name }) => (name === undefined ? [uuid] : [name, uuid]));
  const killable = [...processNames(topology.processes), ...guests, ...topology.guests.flatMap((guest) => processNames(guest.processes).map((name) => `${guest.name}/${name}`))];
  topology.inject.forEach((inject, i) => {
    const check = (verb: string, what: string, name: string | undefined, known: readonly string[]): void => {
      if (name !== undefined && !known.includes(name)) report(['inject', i, ...verb.split('.')], unknownName(what, name, known));
    };
    for (const verb of ['unplug', 'remove', 'reset'] as const) check(verb, 'device', inject[verb], devices);
    for (const verb of ['pause', 'resume', 'reboot', 'shutdown'] as const) check(verb, 'guest', inject[verb], guests);
    for (const verb of ['balloon', 'add-memory'] as const) check(`${verb}.guest`, 'guest', inject[verb]?.guest, guests);
    for (const verb of ['start-mdev', 'stop-mdev'] as const) check(verb, 'mediated device', inject[verb]?.toLowerCase(), mdevs);
    check('kill', 'process', inject.kill, killable);
  });
}
