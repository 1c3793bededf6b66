/**
 * Processes whose address spaces the devices of a container share (V1–V3; "vfio: Add support for Shared Virtual
 * Addressing" v2): all devices of the container or none, under one PASID, until the process unbinds, the group leaves,
 * the container ends or the address space dies. MAP acts on requests without PASID, BIND on those with one.
 *
 * A bind of a NESTING container installs the process's tables as they are: a first stage, whose addresses are the
 * host's. What a guest binds comes over other calls (G3). Left out: binds of mediated devices, which send no requests.
 */
import { Errno, isErrno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import type { Device } from '../../host/device.js';
import type { Mm } from '../../host/mm/mm.js';
import type { Process } from '../../host/process.js';
import { TYPE1_BIND, TYPE1_BIND_PROCESS, VFIO_IOMMU_BIND_PID, VFIO_IOMMU_BIND_PROCESS, checkArgsz, checkFlags, recordFromUser, wordsFromUser, wordsToUser } from '../uapi/index.js';
import type { AttachedGroup, BoundProcess, ContainerState } from './state.js';

interface BindRequest {
  /** Of the process's part, behind the header. */
  readonly address: number;
  readonly words: Uint32Array;
  /** The caller's own, or another's that it may attach to; a use is held. */
  readonly mm: Mm;
}

/**
 * VFIO_IOMMU_BIND with mode PROCESS: the PASID is written back. Binding again gives the same PASID. EFAULT; EINVAL argsz, flags, mode,
 * no IOMMU behind the container; ESRCH no such process; EACCES ptrace would not be allowed (mm_access); or what the core says of a device. Nothing stays on failure.
 */
export function* bind(state: ContainerState, caller: Process, argument: number): Steps<number> {
  const request = yield* requestOf(state, caller, argument);
  try {
    yield* state.lock.with(() => bindLocked(state, caller, request));
  } finally {
    // the last put would call back into this container, whose lock is free now, but also into others
    request.mm.putAsync();
  }
  return 0;
}

/** VFIO_IOMMU_UNBIND: by process, not by PASID, which may be somebody else's by now (V2). ESRCH not bound; others as `bind`. */
export function* unbind(state: ContainerState, caller: Process, argument: number): Steps<number> {
  const request = yield* requestOf(state, caller, argument);
  try {
    yield* state.lock.with(function* () {
      const bound = state.binds.find(({ mm }) => mm === request.mm);
      if (bound === undefined) throw new Errno('ESRCH', `${request.mm.name} is not bound to ${state.name}`);
      yield* remove(state, bound);
    });
  } finally {
    request.mm.putAsync();
  }
  return 0;
}

function* requestOf(state: ContainerState, caller: Process, argument: number): Steps<BindRequest> {
  const header = yield* recordFromUser(caller, argument, TYPE1_BIND);
  const { flags, argsz } = TYPE1_BIND.f;
  if (flags.get(header) !== VFIO_IOMMU_BIND_PROCESS) throw new Errno('EINVAL', `${TYPE1_BIND.name}: mode ${flags.get(header)} is not BIND_PROCESS`);
  checkArgsz(TYPE1_BIND.name, argsz.get(header), TYPE1_BIND.sizeBytes + TYPE1_BIND_PROCESS.sizeBytes);
  const address = argument + TYPE1_BIND.sizeBytes;
  const words = yield* wordsFromUser(caller, address, TYPE1_BIND_PROCESS.sizeWords);
  const processFlags = TYPE1_BIND_PROCESS.f.flags.get(words);
  checkFlags(TYPE1_BIND_PROCESS.name, processFlags, VFIO_IOMMU_BIND_PID);
  const process = (processFlags & VFIO_IOMMU_BIND_PID) === 0 ? caller : target(state, caller, TYPE1_BIND_PROCESS.f.pid.get(words) | 0);
  const { mm } = process;
  if (!mm.get()) throw new Errno('ESRCH', `process ${process.pid} (${process.name}) has no address space any more`);
  return { address, words, mm };
}

function target(state: ContainerState, caller: Process, pid: number): Process {
  const { processes, mayAttach } = state.context.parts;
  const process = pid === caller.pid ? caller : processes?.(pid);
  if (process === undefined || process.state === 'exited') throw new Errno('ESRCH', `there is no process ${pid}`);
  if (process !== caller && !(mayAttach?.(caller, process) ?? false)) {
    throw new Errno('EACCES', `process ${caller.pid} (${caller.name}) may not attach to process ${pid} (${process.name}) as ptrace would`);
  }
  return process;
}

function* bindLocked(state: ContainerState, caller: Process, { address, words, mm }: BindRequest): Steps {
  if (state.domains.length === 0) throw new Errno('EINVAL', `${state.name} has no IOMMU behind it that could bind ${mm.name}`);
  let bound = state.binds.find((candidate) => candidate.mm === mm);
  const fresh = bound === undefined;
  if (bound === undefined) {
    bound = newBind(state, mm);
    yield* bindEverywhere(state, bound);
    state.binds.push(bound);
  }
  try {
    TYPE1_BIND_PROCESS.f.pasid.set(words, bound.pasid);
    yield* wordsToUser(caller, address, words);
  } catch (error) {
    if (fresh) yield* remove(state, bound);
    throw error;
  }
  const { trace } = state.context;
  if (fresh) trace?.trace.record(trace.bind, 0, state.number, mm.id, bound.pasid);
}

function newBind(state: ContainerState, mm: Mm): BoundProcess {
  const bound: BoundProcess = {
    mm, pasid: -1,
    // must not unbind (M1), and must not wait for a container that waits for a device: a task of its own does
    // oxlint-disable-next-line require-yield
    *exit() {
      state.context.parts.scheduler.spawn(`vfio unbind of ${mm.name}`, state.lock.with(() => remove(state, bound)));
      return 0;
    },
  };
  return bound;
}

/** Binds to the devices of every group, or to none. */
function* bindEverywhere(state: ContainerState, bound: BoundProcess): Steps {
  const done: AttachedGroup[] = [], prepared: AttachedGroup[] = [];
  try {
    for (const { groups } of state.domains) {
      for (const attached of groups) {
        if (!attached.svaEnabled) {
          yield* enableSva(state, attached);
          prepared.push(attached);
        }
        yield* bindGroup(state, attached, bound);
        done.push(attached);
      }
    }
  } catch (error) {
    for (const attached of done) yield* unbindGroup(state, attached, bound);
    for (const attached of prepared) yield* disableSva(state, attached);
    throw error;
  }
}

/** A group that comes later gets what is bound already (V3). Nothing stays on failure. */
export function* replayBinds(state: ContainerState, attached: AttachedGroup): Steps {
  // an address space that is on its way out has its own task to end the bind
  const alive = state.binds.filter(({ mm }) => !mm.exiting);
  if (alive.length === 0) return;
  yield* enableSva(state, attached);
  const done: BoundProcess[] = [];
  try {
    for (const bound of alive) {
      yield* bindGroup(state, attached, bound);
      done.push(bound);
    }
  } catch (error) {
    for (const bound of done) yield* unbindGroup(state, attached, bound);
    yield* disableSva(state, attached);
    throw error;
  }
}

/** Ends every bind of a group that leaves, then switches off what was switched on for them. */
export function* endBinds(state: ContainerState, attached: AttachedGroup): Steps {
  if (!attached.svaEnabled) return;
  for (const bound of state.binds) yield* unbindGroup(state, attached, bound);
  yield* disableSva(state, attached);
}

/** The last group with an IOMMU has left: there is nothing to be bound to. */
export function forgetBinds(state: ContainerState): void {
  for (const bound of state.binds.splice(0)) traceEnd(state, bound);
}

function* remove(state: ContainerState, bound: BoundProcess): Steps {
  const index = state.binds.indexOf(bound);
  if (index < 0) return;
  for (const { groups } of state.domains) for (const attached of groups) yield* unbindGroup(state, attached, bound);
  state.binds.splice(state.binds.indexOf(bound), 1);
  traceEnd(state, bound);
}

/** Devices that send requests of their own. ENODEV for a mediated one. */
function devicesOf({ backing, iommuGroup, group }: AttachedGroup): Device[] {
  if (backing === 'group') return iommuGroup!.devices.map(({ device }) => device);
  const name = group.registrations[0]?.device.name ?? `group ${group.id}`;
  throw new Errno('ENODEV', `SVA: mediated device ${name} sends no requests of its own that an address space could be bound to`);
}

function* bindGroup(state: ContainerState, attached: AttachedGroup, bound: BoundProcess): Steps {
  const { core } = state.context;
  const devices = devicesOf(attached);
  if (devices.length !== 1) throw new Errno('EINVAL', `SVA: group ${attached.group.id} has ${devices.length} devices`);
  bound.pasid = yield* core.svaBind(devices[0]!, bound.mm, bound.exit, bound);
}

function* unbindGroup(state: ContainerState, attached: AttachedGroup, bound: BoundProcess): Steps {
  const { core } = state.context;
  if (attached.backing !== 'group') return;
  for (const device of devicesOf(attached)) {
    if (core.bondState(device, bound.pasid) === 'NONE') continue;
    try {
      yield* core.svaUnbind(device, bound.pasid);
    } catch (error) {
      // the device left while this waited: its bonds went with it
      if (!isErrno(error, 'ESRCH') && !isErrno(error, 'ENODEV')) throw error;
    }
  }
}

/** I/O page faults, then SVA, on every device of the group; what is on already stays whoever's it is. Nothing stays on failure. */
function* enableSva(state: ContainerState, attached: AttachedGroup): Steps {
  const { core } = state.context;
  if (attached.svaEnabled) return;
  try {
    for (const device of devicesOf(attached)) {
      for (const feature of ['IOPF', 'SVA'] as const) {
        if (core.devFeatureEnabled(device, feature) || (feature === 'IOPF' && !core.devHasFeature(device, 'IOPF'))) continue;
        yield* core.devEnableFeature(device, feature);
        attached.svaFeatures.push({ device, feature });
      }
    }
    attached.svaEnabled = true;
  } catch (error) {
    yield* disableSva(state, attached);
    throw error;
  }
}

function* disableSva(state: ContainerState, attached: AttachedGroup): Steps {
  const { core } = state.context;
  for (let on = attached.svaFeatures.pop(); on !== undefined; on = attached.svaFeatures.pop()) {
    if (core.devFeatureEnabled(on.device, on.feature)) yield* core.devDisableFeature(on.device, on.feature);
  }
  attached.svaEnabled = false;
}

function traceEnd({ context, number }: ContainerState, { mm, pasid }: BoundProcess): void {
  const { trace } = context;
  trace?.trace.record(trace.unbind, 0, number, mm.id, pasid);
}
