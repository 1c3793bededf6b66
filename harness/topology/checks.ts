/** What a schema cannot say: names that must exist or be unique, numbers that must fit each other, files that must be there. */
import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import { buildCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { layoutFor } from '../compose/layout.js';
import { capabilityOptions } from './capability-options.js';
import { unknownName } from './problems.js';
import { formatBdf } from './units.js';
import type { DeviceTopology, Step, Topology } from './schema.js';

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
  checkDevices(topology, report);
  checkProcesses(topology, directory, report);
  checkInjections(topology, report);
  return problems;
}

type Report = (path: readonly PropertyKey[], message: string) => void;

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

function checkDevices({ host }: Topology, report: Report): void {
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
  });
}

function checkPlaceBehindSwitch(device: DeviceTopology, siblings: readonly DeviceTopology[], at: (key: string) => PropertyKey[], report: Report): void {
  const first = siblings[0]!.bdf.bus;
  const expected = formatBdf({ segment: 0, bus: first + siblings.indexOf(device), device: 0, function: 0 });
  if (first < SWITCH_DEPTH + 1) report(at('bdf'), `bus ${first.toString(16).padStart(2, '0')} leaves no room for the switch above; allowed: from bus 04 on`);
  else if (formatBdf(device.bdf) !== expected) report(at('bdf'), `"${formatBdf(device.bdf)}" is not where device ${siblings.indexOf(device)} behind switch "${device.port!}" sits; allowed: "${expected}"`);
}

function checkDsa(device: Extract<DeviceTopology, { model: 'dsa' }>, host: Topology['host'], at: (key: string) => PropertyKey[], report: Report): void {
  if (device.pri !== false && !device.ats) report(at('pri'), 'page requests (PRI) need ats: true');
  const port = host.ports.find((candidate) => candidate.name === device.port);
  if (port?.['translation-blocking'] === true && device.ats) report(at('ats'), `switch "${port.name}" blocks translated requests (ACS TB), so ATS cannot work behind it; set ats: false or translation-blocking: false`);
  const entries = device['work-queues'].reduce((sum, queue) => sum + queue.size, 0);
  if (entries > 1024) report(at('work-queues'), `queues have ${entries} entries together; allowed: at most 1024`);
  device['work-queues'].forEach((queue, i) => {
    const key = (name: string): PropertyKey[] => [...at('work-queues'), i, name];
    if (queue.group >= device.groups) report(key('group'), `${queue.group} does not exist; the device has ${device.groups} group(s), numbered from 0`);
    if (queue.threshold !== undefined && queue.mode === 'dedicated') report(key('threshold'), 'only shared queues have a threshold');
    if (queue.threshold !== undefined && queue.threshold > queue.size) report(key('threshold'), `${queue.threshold} is larger than the queue's size of ${queue.size}`);
  });
  unique(device['work-queues'].map((queue, i) => queue.name ?? `wq0.${i}`), (name) => name, (i, first) => report([...at('work-queues'), i, 'name'], `is taken by work-queues[${first}]`));
  if (device.engines < device.groups) report(at('engines'), `${device.engines} engines for ${device.groups} groups; every group needs one`);
}

function unique<T>(items: readonly T[], key: (item: T) => string, report: (index: number, first: number) => void): void {
  const seen = new Map<string, number>();
  items.forEach((item, i) => {
    const first = seen.get(key(item));
    if (first === undefined) seen.set(key(item), i);
    else report(i, first);
  });
}

/** Names a process may use: declared by its own steps so far, or inherited by fork. */
interface Scope {
  readonly buffers: Map<string, number>;
  readonly handles: Set<string>;
}

function checkProcesses(topology: Topology, directory: string, report: Report): void {
  const processes = processNames(topology);
  unique(topology.processes, (process) => process.name, (i, first) => report(['processes', i, 'name'], `is taken by processes[${first}]`));
  topology.processes.forEach((process, i) => {
    checkSteps(process.steps, ['processes', i, 'steps'], { buffers: new Map(), handles: new Set() }, { topology, directory, processes, report });
  });
}

/** Names of all processes, forked ones included. */
export function processNames(topology: Topology): string[] {
  const names: string[] = [];
  const walk = (steps: readonly Step[]): void => {
    for (const step of steps) {
      if (step.fork !== undefined) {
        names.push(step.fork.name);
        walk(step.fork.steps);
      }
      if (step.repeat !== undefined) walk(step.repeat.steps);
    }
  };
  for (const process of topology.processes) {
    names.push(process.name);
    if (process.count > 1) for (let i = 0; i < process.count; i++) names.push(`${process.name}-${i}`);
    walk(process.steps);
  }
  return names;
}

interface Context {
  readonly topology: Topology;
  readonly directory: string;
  readonly processes: readonly string[];
  readonly report: Report;
}

function checkSteps(steps: readonly Step[], path: readonly PropertyKey[], scope: Scope, context: Context): void {
  const { topology, report } = context;
  const devices = topology.host.devices.map((device) => device.name);
  steps.forEach((step, i) => {
    const at = (...keys: PropertyKey[]): PropertyKey[] => [...path, i, ...keys];
    const device = step.open?.device ?? step.bind?.device ?? step.unbind?.device;
    if (device !== undefined && !devices.includes(device)) {
      report(at(step.open !== undefined ? 'open' : step.bind !== undefined ? 'bind' : 'unbind', 'device'), unknownName('device', device, devices));
    }
    checkBufferUse(step, at, scope, report);
    if (step.open !== undefined) {
      checkQueue(step.open, topology, at, report);
      scope.handles.add(step.open.as ?? step.open.device);
    }
    for (const [verb, key, handle] of [['close', 'handle', step.close?.handle], ['submit', 'to', step.submit?.to], ['wait', 'for', step.wait?.for]] as const) {
      if (handle !== undefined && !scope.handles.has(handle)) report(at(verb, key), unknownName('handle', handle, [...scope.handles]));
    }
    if (step.submit !== undefined) checkSubmit(step.submit, at, scope, report);
    for (const [verb, file] of [['mmap', step.mmap?.file], ['verify', step.verify?.file]] as const) if (file !== undefined) checkFile(file, context, at(verb, 'file'));
    if (step.mmap !== undefined && step.mmap.file === undefined && step.mmap.size === undefined) report(at('mmap'), 'needs size, or file');
    for (const [verb, name] of [['kill', step.kill?.process], ['join', step.join?.process]] as const) {
      if (name !== undefined && !context.processes.includes(name)) report(at(verb, 'process'), unknownName('process', name, context.processes));
    }
    if (step.fork !== undefined) {
      checkSteps(step.fork.steps, at('fork', 'steps'), { buffers: new Map(scope.buffers), handles: new Set(scope.handles) }, context);
    }
    if (step.repeat !== undefined) checkSteps(step.repeat.steps, at('repeat', 'steps'), scope, context);
  });
}

function checkQueue(open: NonNullable<Step['open']>, topology: Topology, at: (...keys: PropertyKey[]) => PropertyKey[], report: Report): void {
  const device = topology.host.devices.find((candidate) => candidate.name === open.device);
  if (device === undefined || open.queue === undefined) return;
  const queues = device.model === 'dsa' ? queueNames(device) : [];
  if (!queues.includes(open.queue)) report(at('open', 'queue'), queues.length === 0 ? `device "${device.name}" has no queues` : unknownName('queue', open.queue, queues));
}

/** Names of a DSA's work queues, as in /dev/dsa. */
export function queueNames(device: Extract<DeviceTopology, { model: 'dsa' }>): string[] {
  return device['work-queues'].length === 0 ? ['wq0.0'] : device['work-queues'].map((queue, i) => queue.name ?? `wq0.${i}`);
}

function checkBufferUse(step: Step, at: (...keys: PropertyKey[]) => PropertyKey[], scope: Scope, report: Report): void {
  const use = (ref: string | { buffer: string; offset: number; size?: number | undefined } | undefined, ...keys: PropertyKey[]): void => {
    if (ref === undefined) return;
    const name = typeof ref === 'string' ? ref : ref.buffer;
    const whole = typeof ref !== 'string';
    const sizeBytes = scope.buffers.get(name);
    if (sizeBytes === undefined) report(at(...keys, ...(whole ? ['buffer'] : [])), unknownName('buffer', name, [...scope.buffers.keys()]));
    else if (whole && ref.offset + (ref.size ?? 0) > sizeBytes) report(at(...keys), `bytes ${ref.offset} to ${ref.offset + (ref.size ?? 0)} lie outside "${name}", which has ${sizeBytes}`);
  };
  use(step.munmap, 'munmap');
  use(step.mremap?.buffer, 'mremap', 'buffer');
  if (step.mprotect !== undefined) use({ buffer: step.mprotect.buffer, offset: step.mprotect.offset, size: step.mprotect.size }, 'mprotect');
  use(step.touch?.buffer, 'touch', 'buffer');
  use(step.fill?.buffer, 'fill', 'buffer');
  use(step.verify?.buffer, 'verify', 'buffer');
  use(step.verify?.equals, 'verify', 'equals');
  const submit = step.submit;
  use(submit?.copy?.from, 'submit', 'copy', 'from');
  use(submit?.copy?.to, 'submit', 'copy', 'to');
  use(submit?.fill?.buffer, 'submit', 'fill', 'buffer');
  use(submit?.compare?.a, 'submit', 'compare', 'a');
  use(submit?.compare?.b, 'submit', 'compare', 'b');
  use(submit?.crc?.from, 'submit', 'crc', 'from');
  const made = step.malloc ?? step.mmap;
  if (made !== undefined) scope.buffers.set(made.name, made.size ?? Infinity);
  if (step.mremap !== undefined) scope.buffers.set(step.mremap.buffer, step.mremap.size);
}

const OPERATIONS = ['copy', 'fill', 'compare', 'crc', 'noop'] as const;

function checkSubmit(submit: NonNullable<Step['submit']>, at: (...keys: PropertyKey[]) => PropertyKey[], scope: Scope, report: Report): void {
  const operations = OPERATIONS.filter((operation) => submit[operation] !== undefined);
  if (operations.length !== 1) report(at('submit'), `needs exactly one of ${OPERATIONS.join(', ')}`);
  if (submit.to === undefined && scope.handles.size > 1) report(at('submit'), `needs \`to\`: ${[...scope.handles].join(', ')} are open`);
  if (submit.chunk === 0) report(at('submit', 'chunk'), '0 is too small; allowed: at least 1');
}

function checkFile(file: string, { directory, report }: Context, path: readonly PropertyKey[]): void {
  try {
    if (!statSync(resolve(directory, file)).isFile()) report(path, `"${file}" is no regular file`);
  } catch {
    report(path, `no such file: "${file}"`);
  }
}

function checkInjections(topology: Topology, report: Report): void {
  const devices = topology.host.devices.map((device) => device.name);
  const processes = processNames(topology);
  topology.inject.forEach((inject, i) => {
    for (const verb of ['unplug', 'remove', 'reset'] as const) {
      const device = inject[verb];
      if (device !== undefined && !devices.includes(device)) report(['inject', i, verb], unknownName('device', device, devices));
    }
    if (inject.kill !== undefined && !processes.includes(inject.kill)) report(['inject', i, 'kill'], unknownName('process', inject.kill, processes));
  });
}
