/**
 * Random calls. A call is five numbers, which mean something in the state in which it is made: so a sequence can be cut anywhere and
 * still makes sense, and most calls get beyond the first check. A few go to whatever descriptor there is.
 */
import fc from 'fast-check';
import { VFIO_GROUP_GET_DEVICE_FD, VFIO_GROUP_GET_STATUS, VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_UNSET_CONTAINER, VFIO_IOMMU_BIND, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNBIND, VFIO_IOMMU_UNMAP_DMA, VFIO_DEVICE_RESET, VFIO_SET_IOMMU } from '../../vfio/uapi/ioctl.js';
import { ContainerHandle } from '../../vfio/client/index.js';
import type { Steps } from '../../sim/task.js';
import type { Model, Spoilt } from './model/model.js';
import { ModelContainer, ModelDevice, ModelGroup, type ModelFile, type ModelFunction, type ModelParent, type ModelProcess } from './model/state.js';
import type { MapRequest } from './model/type1.js';
import { now, uuidOf, type Program, type Runner } from './runner.js';

export const KINDS = [
  'use', 'use', 'use', 'use', 'use mdev', 'use mdev', 'use mdev', 'map some', 'map some', 'map some', 'map some', 'share',
  'open container', 'open group', 'open group', 'close', 'close', 'close', 'set container', 'set container', 'set container', 'unset container', 'unset container',
  'set iommu', 'set iommu', 'set iommu', 'get device', 'get device', 'get device', 'status', 'info', 'reset', 'master', 'master',
  'map', 'map', 'map', 'map', 'map', 'map', 'map', 'unmap', 'unmap', 'unmap', 'unmap', 'bind', 'bind', 'unbind', 'pin', 'pin', 'pin', 'unpin', 'store', 'renew',
  'fork', 'exec', 'exit', 'spawn', 'spawn',
  'bind driver', 'bind driver', 'unbind driver', 'aux', 'create', 'create', 'create', 'remove', 'remove', 'refuse create', 'parent',
] as const;
export type Kind = (typeof KINDS)[number];
export type Call = readonly [kind: Kind, a: number, b: number, c: number, d: number];

const any = fc.nat(0xffff);
export const call: fc.Arbitrary<Call> = fc.tuple(fc.constantFrom(...KINDS), any, any, any, any);

const USERS = [
  { kind: 'alice', rights: { limit: Infinity, root: false, uid: 1 } },
  { kind: 'bob', rights: { limit: 6, root: false, uid: 1 } },
  { kind: 'eve', rights: { limit: 9, root: false, uid: 2 } },
  { kind: 'root', rights: { limit: 2, root: true, uid: 0 } },
] as const;
const MOST_PROCESSES = 4;

const IOVAS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 2, 4, 6, 8, 10, 12, 1, 3, 0xfedff, 0xfee00, 0xfeeff, 0xfef00, 2 ** 27 - 1, 2 ** 27, 2 ** 36 - 1, 2 ** 36, 2 ** 52 - 1];
const SIZES = [1, 1, 2, 2, 3, 4, 1, 2, 5, 1, 2, 3, 1, 2, 1, 2, 3, 1, 0, 2 ** 28, 2 ** 52 - 1];
const VADDRS = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 2, 4, 6, 8, 14, 15, 16, 18, 19, 20, 2 ** 51];
const TYPES = [1, 3, 3, 3, 3, 6, 7, 9];
const BAD_UUIDS = ['', 'no uuid', `${uuidOf(1)}00`, `${uuidOf(2)}x`, `{${uuidOf(1)}}`, uuidOf(1).replaceAll('-', '')];

/** Descriptors that calls are for. */
const NEEDS: { readonly [K in Kind]?: typeof ModelGroup | typeof ModelContainer | typeof ModelDevice } = {
  'set container': ModelGroup, 'unset container': ModelGroup, 'set iommu': ModelContainer, 'get device': ModelGroup, status: ModelGroup, reset: ModelDevice, master: ModelDevice,
  info: ModelContainer, 'map some': ModelContainer, share: ModelContainer, map: ModelContainer, unmap: ModelContainer, bind: ModelContainer, unbind: ModelContainer,
};

function at<T>(items: readonly T[], n: number): T {
  return items[n % items.length]!;
}

function spoilt(n: number): Spoilt {
  return n % 60 === 0 ? 'fault' : n % 60 === 1 ? 'argsz' : n % 60 === 2 ? 'flags' : undefined;
}

/** Makes calls in one machine. */
export class Caller {
  private readonly runner: Runner;
  private readonly model: Model;

  constructor(runner: Runner) {
    this.runner = runner;
    this.model = runner.model;
  }

  make([kind, a, b, c, d]: Call): void {
    const { model, runner } = this;
    const living = model.state.processes.filter(({ alive }) => alive);
    if (kind === 'spawn' || living.length === 0) {
      if (living.length < MOST_PROCESSES) runner.spawn(at(USERS, a).kind, at(USERS, a).rights);
      return;
    }
    const process = this.processFor(living, kind, a);
    if (process === undefined) return;
    switch (kind) {
      case 'use': return this.use(process, b, c, d);
      case 'use mdev': return this.useMdev(process, b, c, d);
      case 'map some': return this.mapSome(process, b, c, d);
      case 'share': return this.share(process, b, c);
      case 'open container': return this.openContainer(process);
      case 'open group': return this.openGroup(process, at(model.state.groups, b));
      case 'close': return this.close(process, this.anyFd(process, b));
      case 'set container': return this.setContainer(process, this.fdOf(process, ModelGroup, b), d % 16 === 0 ? (c % 9) - 1 : this.fdOf(process, ModelContainer, c), spoilt(d) === 'fault' ? 'fault' : undefined);
      case 'unset container': return this.unsetContainer(process, this.fdOf(process, ModelGroup, b));
      case 'set iommu': return this.setIommu(process, this.fdOf(process, ModelContainer, b), at(TYPES, c));
      case 'get device': return this.getDevice(process, this.fdOf(process, ModelGroup, b), c, spoilt(d) === 'fault' ? 'fault' : undefined);
      case 'status': return this.status(process, this.fdOf(process, ModelGroup, b), spoilt(c) === 'flags' ? undefined : spoilt(c));
      case 'info': return this.info(process, this.fdOf(process, ModelContainer, b));
      case 'reset': return this.reset(process, this.fdOf(process, ModelDevice, b));
      case 'master': return this.master(process, b);
      case 'map': return this.map(process, this.fdOf(process, ModelContainer, b), b, c, d);
      case 'unmap': return this.unmap(process, this.fdOf(process, ModelContainer, b), b, c, d);
      case 'bind': return this.bindOrUnbind(process, this.fdOf(process, ModelContainer, b), true, c, spoilt(d));
      case 'unbind': return this.bindOrUnbind(process, this.fdOf(process, ModelContainer, b), false, c, spoilt(d));
      case 'pin': return this.pin(b, c, d);
      case 'unpin': return this.unpin(b, c);
      case 'store': return runner.store(process, b % 16, false);
      case 'renew': return runner.store(process, b % 16, true);
      case 'fork':
        if (living.length < MOST_PROCESSES) runner.fork(process);
        return;
      case 'exec': return runner.exec(process);
      case 'exit': return this.exit(process);
      case 'bind driver': return this.bindDriver(at(model.state.functions, b), c);
      case 'unbind driver': return this.unbindDriver(at(model.state.functions, b));
      case 'aux': return this.aux(at(model.state.functions, b), c % 2 === 0);
      case 'create': return this.create(b, c, d);
      case 'remove': return this.remove(uuidOf(1 + (b % 4)));
      case 'refuse create': return this.refuseCreate(b);
      case 'parent': return this.parent(b % 2 === 0);
    }
  }

  // --- operands ------------------------------------------------------------------------------------------------------

  /** Mostly one that has a descriptor of the kind that the call is for; undefined when nobody has. */
  private processFor(living: readonly ModelProcess[], kind: Kind, n: number): ModelProcess | undefined {
    const needs = NEEDS[kind];
    if (needs === undefined || n % 61 === 0) return at(living, n);
    const able = living.filter(({ fds }) => fds.some((file) => file?.of instanceof needs));
    return able.length > 0 ? at(able, n) : undefined;
  }

  /** Mostly a descriptor of that kind; now and then one of another, or a closed one. */
  private fdOf(process: ModelProcess, kind: typeof ModelGroup | typeof ModelContainer | typeof ModelDevice, n: number): number {
    const fits = process.fds.flatMap((file, fd) => (file?.of instanceof kind ? [fd] : []));
    return fits.length === 0 || n % 31 === 0 ? n % 7 : fits[Math.floor(n / 31) % fits.length]!;
  }

  private anyFd(process: ModelProcess, n: number): number {
    const open = process.fds.flatMap((file, fd) => (file === undefined ? [] : [fd]));
    return open.length === 0 ? 0 : at(open, n);
  }

  private file(process: ModelProcess, fd: number): ModelFile['of'] | undefined {
    return process.file(fd)?.of;
  }

  private program(process: ModelProcess): Program {
    return this.runner.programs.get(process)!;
  }

  /** ioctl with a record in memory, at an address that is not mapped when it is spoilt so; the address of the record is handed on for what comes back. */
  private *ioctl(process: ModelProcess, fd: number, command: number, record: Uint8Array, how: Spoilt, back?: (bytes: Uint8Array) => number): Steps<number> {
    const { process: real, client, arena } = this.program(process);
    if (how === 'fault') return yield* real.ioctl(fd, command, arena + 22 * 4096);
    const { result, refusal, bytes } = yield* client.calls.raw(fd, command, record);
    if (refusal !== undefined) throw refusal;
    return back?.(bytes) ?? result!;
  }

  // --- a program's calls ---------------------------------------------------------------------------------------------

  /** What every user of VFIO does first. */
  private use(process: ModelProcess, b: number, c: number, d: number): void {
    const groups = this.model.state.groups.filter(({ opened, container }) => !opened && container === undefined);
    if (groups.length === 0 || process.fds.length > 9) return;
    // one group is refused always: not every time
    this.useGroup(process, at(b % 4 === 0 ? groups : groups.filter(({ name }) => name !== 'D'), b) ?? groups[0]!, c, d);
  }

  /** The same with a new mediated device. */
  private useMdev(process: ModelProcess, b: number, c: number, d: number): void {
    const free = [1, 2, 3, 4].filter((n) => this.model.state.mdev(uuidOf(n)) === undefined);
    const parents = this.model.state.parents.filter(({ left, registered, unregistering }) => left > 0 && registered && !unregistering);
    if (free.length === 0 || parents.length === 0 || process.fds.length > 9) return;
    const parent = at(parents, b), n = at(free, Math.floor(b / 3));
    this.createMdev(parent, `${parent.facts.name}-1`, uuidOf(n));
    const mdev = this.model.state.mdev(uuidOf(n));
    if (mdev !== undefined) this.useGroup(process, mdev.device.group, c, d);
  }

  private useGroup(process: ModelProcess, group: ModelGroup, c: number, d: number): void {
    const containers = process.fds.flatMap((file, fd) => (file?.of instanceof ModelContainer ? [fd] : []));
    let container = c % 2 === 0 ? undefined : containers[Math.floor(c / 2) % Math.max(1, containers.length)];
    if (container === undefined) {
      container = process.lowestFree();
      this.openContainer(process);
    }
    const fd = process.lowestFree();
    this.openGroup(process, group);
    this.setContainer(process, fd, container, undefined);
    if (group.container === undefined) return;
    if (group.container.type === undefined) this.setIommu(process, container, d % 5 === 0 ? 1 : d % 5 === 1 ? 6 : 3);
    if (group.container.type === undefined || d % 3 === 0) return;
    const device = process.lowestFree();
    this.getDevice(process, fd, Math.floor(d / 5), undefined);
    if (this.file(process, device) instanceof ModelDevice) this.masterOf(process, device);
  }

  private openContainer(process: ModelProcess): void {
    this.runner.call(`${process.name}: open container`, () => this.model.openContainer(process), () => now(() => this.program(process).client.openContainer().fd));
  }

  private openGroup(process: ModelProcess, group: ModelGroup | undefined): void {
    const id = group === undefined ? 999 : this.runner.groupId(group);
    this.runner.call(`${process.name}: open group ${group?.name ?? id}`, () => this.model.openGroup(process, group), () => now(() => this.program(process).client.openGroup(id).fd));
  }

  private close(process: ModelProcess, fd: number): void {
    this.runner.call(`${process.name}: close ${fd}`, () => this.model.close(process, fd), () => this.program(process).process.close(fd));
  }

  private exit(process: ModelProcess): void {
    this.runner.call(`${process.name}: exit`, () => this.model.exit(process), () => this.program(process).process.exit());
  }

  private setContainer(process: ModelProcess, fd: number, container: number, how: Spoilt): void {
    const record = new Uint8Array(4);
    new DataView(record.buffer).setInt32(0, container, true);
    this.runner.call(`${process.name}: SET_CONTAINER(${fd}, ${container})${how ?? ''}`, () => this.model.setContainer(process, fd, container, how), () => this.ioctl(process, fd, VFIO_GROUP_SET_CONTAINER, record, how));
  }

  private unsetContainer(process: ModelProcess, fd: number): void {
    this.runner.call(`${process.name}: UNSET_CONTAINER(${fd})`, () => this.model.unsetContainer(process, fd), () => this.program(process).process.ioctl(fd, VFIO_GROUP_UNSET_CONTAINER, 0));
  }

  private setIommu(process: ModelProcess, fd: number, type: number): void {
    this.runner.call(`${process.name}: SET_IOMMU(${fd}, ${type})`, () => this.model.setIommu(process, fd, type), () => this.program(process).process.ioctl(fd, VFIO_SET_IOMMU, type));
  }

  private getDevice(process: ModelProcess, fd: number, n: number, how: Spoilt): void {
    const of = this.file(process, fd);
    const names = of instanceof ModelGroup ? of.devices.map(({ name }) => name) : [];
    const name = names.length === 0 || n % 23 === 0 ? at(['0000:00:01.0', '0000:00:02.1', uuidOf(1), 'nothing'], n) : at(names, n);
    this.runner.call(`${process.name}: GET_DEVICE_FD(${fd}, ${name})${how ?? ''}`, () => this.model.getDevice(process, fd, name, how), () => this.ioctl(process, fd, VFIO_GROUP_GET_DEVICE_FD, new TextEncoder().encode(`${name}\0`), how));
  }

  private status(process: ModelProcess, fd: number, how: Spoilt): void {
    const record = Uint8Array.of(how === 'argsz' ? 7 : 8, 0, 0, 0, 0, 0, 0, 0);
    this.runner.call(`${process.name}: GET_STATUS(${fd})${how ?? ''}`, () => this.model.status(process, fd, how), () => this.ioctl(process, fd, VFIO_GROUP_GET_STATUS, record, how, (bytes) => bytes[4]!));
  }

  /** What may be mapped, and how often. */
  private info(process: ModelProcess, fd: number): void {
    const container = this.file(process, fd);
    if (container instanceof ModelDevice) return; // the number is another command there
    const expected = container instanceof ModelContainer ? this.model.rules.info(container) : undefined;
    this.runner.call(`${process.name}: GET_INFO(${fd})`, () => this.model.info(process, fd), function* (this: Caller) {
      const { iovaRanges, dmaAvailable } = yield* new ContainerHandle(this.program(process).client.calls, fd).iommuInfo();
      const ranges = iovaRanges?.map(({ first, last }) => [Number(first / 4096n), Number((last + 1n) / 4096n)]);
      this.runner.equal('what GET_INFO tells', JSON.stringify({ ranges, available: dmaAvailable }), JSON.stringify(expected));
    }.bind(this));
  }

  private reset(process: ModelProcess, fd: number): void {
    this.runner.call(`${process.name}: RESET(${fd})`, () => this.model.reset(process, fd), () => this.program(process).process.ioctl(fd, VFIO_DEVICE_RESET, 0));
  }

  private master(process: ModelProcess, n: number): void {
    const devices = process.fds.flatMap((file, fd) => (file?.of instanceof ModelDevice ? [fd] : []));
    if (devices.length > 0) this.masterOf(process, at(devices, n));
  }

  private masterOf(process: ModelProcess, fd: number): void {
    const of = this.file(process, fd);
    if (of instanceof ModelDevice && of.function !== undefined) this.runner.master(process, fd, of.function);
  }

  /** A mapping that fits, in a container that has an IOMMU. */
  private mapSome(process: ModelProcess, b: number, c: number, d: number): void {
    const fd = this.withIommu(process, b);
    const container = fd === undefined ? undefined : this.model.containerAt(process, fd)!;
    if (fd === undefined || container === undefined) return;
    const pages = 1 + (c % 3);
    const start = [...Array(12).keys()].map((n) => (n + Math.floor(c / 3)) % 12).find((page) => container.mappings.every((other) => other.start >= page + pages || other.end <= page));
    if (start === undefined) return;
    const prot = d % 8 === 0 ? 1 : 3;
    this.mapRecord(process, fd, { start, pages, odd: 0, vaddr: Math.floor(d / 8) % (prot === 1 ? 18 : 14), read: true, write: prot === 3 }, prot, undefined);
  }

  /** A bind in a container that has an IOMMU. */
  private share(process: ModelProcess, b: number, c: number): void {
    const fd = this.withIommu(process, b);
    if (fd !== undefined) this.bindOrUnbind(process, fd, c % 4 !== 0, Math.floor(c / 4), undefined);
  }

  private withIommu(process: ModelProcess, n: number): number | undefined {
    const fds = process.fds.flatMap((file, fd) => (file?.of instanceof ModelContainer && file.of.type !== undefined ? [fd] : []));
    return fds.length === 0 ? undefined : at(fds, n);
  }

  private mapRecord(process: ModelProcess, fd: number, request: Omit<MapRequest, 'arena'>, prot: number, how: Spoilt): void {
    const { arena } = this.program(process);
    const { start, pages, odd, vaddr } = request;
    const record = dmaRecord(how === 'argsz' ? 31 : 32, how === 'flags' ? 0x80 | prot : prot, [
      BigInt(arena) + BigInt(vaddr) * 4096n + (odd === 1 ? 8n : 0n), BigInt(start) * 4096n + (odd === 2 ? 0x800n : 0n), BigInt(pages) * 4096n + (odd === 3 ? 1n : 0n),
    ]);
    this.runner.call(`${process.name}: MAP(${fd}, iova 0x${start.toString(16)}, ${pages} pages of arena ${vaddr}${odd === 0 ? '' : ' misaligned'}, prot ${prot})${how ?? ''}`,
      () => this.model.map(process, fd, { ...request, arena: arena / 4096 }, how), () => this.ioctl(process, fd, VFIO_IOMMU_MAP_DMA, record, how));
  }

  private map(process: ModelProcess, fd: number, b: number, c: number, d: number): void {
    if (this.file(process, fd) instanceof ModelDevice) return; // the number is another command there
    const start = at(IOVAS, c), pages = at(SIZES, Math.floor(c / 64)), vaddr = at(VADDRS, d), prot = at([3, 3, 3, 3, 3, 3, 1, 1, 2, 3, 3, 0], Math.floor(d / 32));
    const odd = b % 37 >= 1 && b % 37 <= 3 ? b % 37 : 0;
    this.mapRecord(process, fd, { start, pages, odd, vaddr, read: (prot & 1) !== 0, write: (prot & 2) !== 0 }, prot, spoilt(Math.floor(d / 32)));
  }

  private unmap(process: ModelProcess, fd: number, b: number, c: number, d: number): void {
    const of = this.file(process, fd);
    const known = of instanceof ModelContainer && d % 3 !== 0 ? of.mappings : [];
    const chosen = known.length === 0 ? undefined : at(known, c);
    const all = d % 11 === 0;
    const start = all ? (d % 7 === 0 ? 1 : 0) : (chosen?.start ?? at(IOVAS, c));
    const pages = all ? 0 : chosen === undefined ? at(SIZES, Math.floor(c / 64)) : chosen.end - chosen.start + (d % 5 === 0 ? 1 : 0);
    const odd = b % 37 === 1 ? 1 : 0, how = spoilt(Math.floor(d / 32));
    const flags = (all ? 2 : 0) | (how === 'flags' ? 0x80 : 0);
    const record = dmaRecord(how === 'argsz' ? 23 : 24, flags, [BigInt(start) * 4096n + BigInt(odd), BigInt(pages) * 4096n]);
    this.runner.call(`${process.name}: UNMAP(${fd}, ${all ? 'all, ' : ''}iova 0x${start.toString(16)}, ${pages} pages${odd === 0 ? '' : ' misaligned'})${how ?? ''}`,
      () => this.model.unmap(process, fd, { start, pages, odd, all }, how), () => this.ioctl(process, fd, VFIO_IOMMU_UNMAP_DMA, record, how, (bytes) => Number(new DataView(bytes.buffer).getBigUint64(16, true))));
  }

  private bindOrUnbind(process: ModelProcess, fd: number, bind: boolean, c: number, how: Spoilt): void {
    const { processes } = this.model.state;
    const who = c % 3 === 0 ? undefined : at(processes, Math.floor(c / 3));
    const record = new Uint8Array(20);
    const view = new DataView(record.buffer);
    view.setUint32(0, how === 'argsz' ? 19 : 20, true);
    view.setUint32(4, 1, true);
    view.setUint32(8, (who === undefined ? 0 : 1) | (how === 'flags' ? 0x80 : 0), true);
    view.setInt32(16, who === undefined ? 0 : this.program(who).process.pid, true);
    const container = this.file(process, fd);
    const mm = (who ?? process).mm;
    const before = mm.pasid;
    let returned = 0;
    const answer = this.runner.call(`${process.name}: ${bind ? 'BIND' : 'UNBIND'}(${fd}${who === undefined ? '' : `, ${who.name}`})${how ?? ''}`,
      () => (bind ? this.model.bind(process, fd, who, how) : this.model.unbind(process, fd, who, how)),
      () => this.ioctl(process, fd, bind ? VFIO_IOMMU_BIND : VFIO_IOMMU_UNBIND, record, how, (bytes) => {
        if (!bind) return 0;
        returned = new DataView(bytes.buffer).getUint32(12, true);
        // compared with everybody's DMA right after the call
        if (before === undefined && container instanceof ModelContainer && container.binds.has(mm)) mm.pasid = returned;
        return returned;
      }));
    if ('value' in answer && bind && returned === 0) throw new Error('a bind returned PASID 0');
  }

  // --- a vendor's driver ---------------------------------------------------------------------------------------------

  private pin(b: number, c: number, d: number): void {
    const mdevs = this.model.state.mdevs.filter(({ parent }) => parent.facts.name === 'vendor');
    if (mdevs.length === 0) return;
    const mdev = at(mdevs, b);
    const { container } = mdev.device.group;
    // a driver that pins without listening to unmaps breaks the rules, unless it is refused for that
    if (container !== undefined && mdev.device.users === 0 && this.model.rules.listeners(container).length > 0) return;
    const known = container?.mappings.filter(({ end }) => end < 64).flatMap(({ start, end }) => Array.from({ length: end - start }, (_, i) => start + i)) ?? [];
    const pages = [c, c + 1, c + 2].slice(0, 1 + (d % 3)).map((n) => (known.length === 0 || n % 11 === 0 ? n % 9 : at(known, n)));
    const prot = at([1, 3, 2], Math.floor(d / 3));
    const real = this.runner.machine.parents.vendor.live.get(mdev.uuid)!;
    this.runner.call(`driver of ${mdev.uuid.slice(-1)}: pin ${pages.join()} prot ${prot}`, () => this.model.pin(mdev, pages, { read: (prot & 1) !== 0, write: (prot & 2) !== 0 }), function* () {
      yield* real.pin(pages.map((page) => page * 4096), prot);
    });
  }

  private unpin(b: number, c: number): void {
    const mdevs = this.model.state.mdevs.filter(({ pins }) => pins.size > 0);
    if (mdevs.length === 0) return;
    const mdev = at(mdevs, b), page = at([...mdev.pins.keys()], c);
    const real = this.runner.machine.parents.vendor.live.get(mdev.uuid)!;
    this.runner.call(`driver of ${mdev.uuid.slice(-1)}: unpin ${page}`, () => {
      this.model.rules.unpin(mdev.device.group.container!, mdev, page);
      return { value: 1 };
    }, () => now(() => real.unpin([page * 4096])));
  }

  // --- an administrator's calls --------------------------------------------------------------------------------------

  private bindDriver(fn: ModelFunction, n: number): void {
    const { bdf } = fn.facts;
    const own = bdf === '0000:00:03.0' ? 'aux' : bdf === '0000:00:05.0' ? 'plain' : 'vfio-pci';
    const driver = n % 3 === 0 ? 'host' : own;
    // who binds and unbinds one device waits for each other
    if (fn.unbinding || (driver === 'aux' && fn.aux)) return;
    this.runner.call(`bind ${driver} to ${bdf}`, () => this.model.bindDriver(fn, driver), () => this.runner.machine.bindDriver(bdf, driver));
  }

  private unbindDriver(fn: ModelFunction): void {
    const { bdf } = fn.facts;
    if (fn.unbinding) return;
    const { driver } = fn;
    const { machine } = this.runner;
    this.runner.call(`unbind ${driver} from ${bdf}`, () => this.model.unbindDriver(fn), () => machine.drivers.unbind(driver ?? 'vfio-pci', machine.device(bdf)));
  }

  private aux(fn: ModelFunction, on: boolean): void {
    if (fn.facts.unit !== this.model.state.functions[0]!.facts.unit || fn.unbinding) return;
    const { core } = this.runner.machine, device = this.runner.machine.device(fn.facts.bdf);
    this.runner.call(`${on ? 'enable' : 'disable'} AUX on ${fn.facts.bdf}`, () => this.model.setAux(fn, on), () => (on ? core.devEnableFeature(device, 'AUX') : core.devDisableFeature(device, 'AUX')));
  }

  private create(b: number, c: number, d: number): void {
    const parent = at(this.model.state.parents, b);
    const uuid = d % 12 === 0 ? at(BAD_UUIDS, c) : d % 12 === 1 ? `${uuidOf(1 + (c % 4)).toUpperCase()}\n` : uuidOf(1 + (c % 4));
    const type = `${parent.facts.name}-${at(['1', '1', '2', '2', '1', '3'], Math.floor(c / 4))}`;
    this.createMdev(parent, type, uuid);
  }

  private createMdev(parent: ModelParent, type: string, uuid: string): void {
    const { mdevs, parents } = this.runner.machine;
    this.runner.call(`create ${type} ${JSON.stringify(uuid.slice(-2))}`, () => this.model.create(parent, type, uuid), function* () {
      yield* mdevs.create(parents[parent.facts.name].device, type, uuid);
    });
  }

  private remove(uuid: string): void {
    this.runner.call(`remove ${uuid.slice(-1)}`, () => this.model.remove(uuid), () => this.runner.machine.mdevs.remove(uuid));
  }

  private refuseCreate(b: number): void {
    const parent = at(this.model.state.parents, b);
    parent.refuseCreate = true;
    this.runner.machine.parents[parent.facts.name].refuseCreate = 'EIO';
    this.runner.story.push(`${parent.facts.name} will refuse the next create`);
  }

  /** The parent without hardware comes and goes by itself. */
  private parent(comes: boolean): void {
    const parent = this.model.state.parents.find(({ facts }) => facts.name === 'vendor')!;
    const { mdevs, parents } = this.runner.machine;
    if (comes) {
      this.runner.call('register vendor', () => this.model.registerParent(parent), () => now(() => mdevs.registerParent(parents.vendor.device, parents.vendor)));
    } else {
      this.runner.call('unregister vendor', () => this.model.unregisterParent(parent), () => mdevs.unregisterParent(parents.vendor.device));
    }
  }

  // --- the end -------------------------------------------------------------------------------------------------------

  /** Everybody goes, and everything is as before the first call. */
  finish(): void {
    const { model, runner } = this;
    const { state } = model;
    runner.story.push('--- everybody goes');
    for (const process of state.processes) if (process.alive) this.exit(process);
    for (const { uuid } of state.mdevs) this.remove(uuid);
    for (const parent of state.parents) {
      if (parent.facts.name === 'vendor' && !parent.registered) this.parent(true);
      parent.refuseCreate = false;
      runner.machine.parents[parent.facts.name].refuseCreate = undefined;
    }
    for (const fn of state.functions) {
      const { bdf } = fn.facts;
      const own = bdf === '0000:00:03.0' ? 'aux' : bdf === '0000:00:05.0' ? 'plain' : 'vfio-pci';
      if (fn.driver !== undefined && (fn.driver !== own || (own === 'aux') !== fn.aux)) this.unbindDriver(fn);
      if (fn.aux && fn.driver === undefined) this.aux(fn, false);
      if (fn.driver === undefined) this.bindDriver(fn, 1);
    }
  }
}

/** argsz, flags and 64-bit fields. */
function dmaRecord(argsz: number, flags: number, fields: readonly bigint[]): Uint8Array {
  const bytes = new Uint8Array(8 + fields.length * 8);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, argsz, true);
  view.setUint32(4, flags, true);
  fields.forEach((field, i) => { view.setBigUint64(8 + i * 8, BigInt.asUintN(64, field), true); });
  return bytes;
}

