/** What a schema cannot say about steps: buffers, handles, devices, queues and processes that must exist, files that must be there. */
import { statSync } from 'node:fs';
import { resolve } from 'node:path';
import { unique, unknownName, type Report } from './problems.js';
import type { DeviceTopology, GuestDeviceTopology, Operand, ProcessTopology, Step, Topology } from './schema.js';

/** Names a process may use: declared by its own steps so far, or inherited by fork. */
interface Scope {
  readonly buffers: Map<string, number>;
  readonly handles: Set<string>;
}

/** A device that processes may open; its queues as far as they are known. */
interface Openable {
  readonly name: string;
  readonly queues: readonly string[] | undefined;
}

/** Steps of the host's processes and of every guest's. */
export function checkAllSteps(topology: Topology, directory: string, report: Report): void {
  const own = topology.host.devices.map((device): Openable => ({ name: device.name, queues: device.model === 'dsa' ? queueNames(device) : [] }));
  checkProcesses(topology.processes, ['processes'], own, directory, report);
  topology.guests.forEach((guest, i) => checkProcesses(guest.processes, ['guests', i, 'processes'], guest.devices.map((device) => openableInGuest(device, topology)), directory, report));
}

function openableInGuest(device: GuestDeviceTopology, topology: Topology): Openable {
  const mdev = topology.mdevs.find(({ uuid, name }) => name === device.mdev || uuid === device.mdev?.toLowerCase());
  return { name: device.name ?? device.host ?? mdev?.name ?? mdev?.uuid ?? '', queues: device['work-queues']?.map((queue, i) => queue.name ?? `wq0.${i}`) };
}

function checkProcesses(all: readonly ProcessTopology[], path: readonly PropertyKey[], devices: readonly Openable[], directory: string, report: Report): void {
  const processes = processNames(all);
  unique(all, (process) => process.name, (i, first) => report([...path, i, 'name'], `is taken by ${path.at(-1) as string}[${first}]`));
  all.forEach((process, i) => checkSteps(process.steps, [...path, i, 'steps'], { buffers: new Map(), handles: new Set() }, { devices, directory, processes, report }));
}

/** Names of all processes, forked ones included. */
export function processNames(processes: readonly ProcessTopology[]): string[] {
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
  for (const process of processes) {
    names.push(process.name);
    if (process.count > 1) for (let i = 0; i < process.count; i++) names.push(`${process.name}-${i}`);
    walk(process.steps);
  }
  return names;
}

interface Context {
  readonly devices: readonly Openable[];
  readonly directory: string;
  readonly processes: readonly string[];
  readonly report: Report;
}

function checkSteps(steps: readonly Step[], path: readonly PropertyKey[], scope: Scope, context: Context): void {
  const { report } = context;
  const devices = context.devices.map((device) => device.name);
  steps.forEach((step, i) => {
    const at = (...keys: PropertyKey[]): PropertyKey[] => [...path, i, ...keys];
    for (const verb of ['open', 'bind', 'unbind', 'peek', 'poke'] as const) {
      const device = step[verb]?.device;
      if (device !== undefined && !devices.includes(device)) report(at(verb, 'device'), unknownName('device', device, devices));
    }
    if (step.poke !== undefined && (step.poke.value === undefined) === (step.poke.bytes === undefined)) report(at('poke'), 'needs exactly one of value, bytes');
    if (step.poke?.bytes !== undefined && step.poke.space === 'config') report(at('poke', 'space'), '64 bytes cannot be written to config space; allowed: bar0 to bar5');
    checkBufferUse(step, at, scope, report);
    if (step.open !== undefined) {
      checkQueue(step.open, context.devices, at, report);
      scope.handles.add(step.open.as ?? step.open.device);
    }
    for (const [verb, key, handle] of [['close', 'handle', step.close?.handle], ['submit', 'to', step.submit?.to], ['wait', 'for', step.wait?.for],
      ['pread', 'from', step.pread?.from], ['pwrite', 'to', step.pwrite?.to], ['fsync', 'handle', step.fsync?.handle]] as const) {
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

function checkQueue(open: NonNullable<Step['open']>, devices: readonly Openable[], at: (...keys: PropertyKey[]) => PropertyKey[], report: Report): void {
  const device = devices.find((candidate) => candidate.name === open.device);
  const queues = device?.queues;
  if (device === undefined || queues === undefined || open.queue === undefined) return;
  if (!queues.includes(open.queue)) report(at('open', 'queue'), queues.length === 0 ? `device "${device.name}" has no queues` : unknownName('queue', open.queue, queues));
}

/** Names of a DSA's work queues, as in /dev/dsa. */
export function queueNames(device: Extract<DeviceTopology, { model: 'dsa' }>): string[] {
  return device['work-queues'].length === 0 ? ['wq0.0'] : device['work-queues'].map((queue, i) => queue.name ?? `wq0.${i}`);
}

function checkBufferUse(step: Step, at: (...keys: PropertyKey[]) => PropertyKey[], scope: Scope, report: Report): void {
  const use = (ref: Operand | undefined, ...keys: PropertyKey[]): void => {
    if (ref === undefined || (typeof ref !== 'string' && 'address' in ref)) return;
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
  use(step.pread?.buffer, 'pread', 'buffer');
  use(step.pwrite?.buffer, 'pwrite', 'buffer');
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

/** A file that the topology names must be there. */
export function checkFile(file: string, { directory, report }: Pick<Context, 'directory' | 'report'>, path: readonly PropertyKey[]): void {
  try {
    if (!statSync(resolve(directory, file)).isFile()) report(path, `"${file}" is no regular file`);
  } catch {
    report(path, `no such file: "${file}"`);
  }
}
