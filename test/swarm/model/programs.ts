/**
 * What a program may do with VFIO: processes with their descriptors, containers, groups, devices, mappings and binds (1.14 C1–C5, C8, C9, C18, 7.6,
 * V1–V3, E27–E32). See model.ts.
 */
import type { ErrnoName } from '../../../sim/errno.js';
import { Frame, ModelContainer, ModelDevice, ModelGroup, ModelMm, ModelProcess, State, type ModelFile, type Rights } from './state.js';
import { Type1Rules, type MapRequest, type Refusal, type UnmapRequest } from './type1.js';

/** What should come of a call: a value (undefined: any), a refusal with one of these errnos, or a wait for somebody else. */
export type Answer = { readonly value: number | undefined } | { readonly refused: readonly ErrnoName[] } | { readonly waits: true };

export const DONE: Answer = { value: 0 };
const WAITS: Answer = { waits: true };

export function refuse(...refused: readonly ErrnoName[]): Answer {
  return { refused };
}

/** @param value what the call returns when it happens; undefined: anything */
export function answer(refusal: Refusal, value: number | undefined): Answer {
  return refusal === undefined ? { value } : { refused: refusal };
}

/** How a record is wrong before anybody looks at what it asks (E27). */
export type Spoilt = 'fault' | 'argsz' | 'flags' | undefined;

function spoiltAnswer(how: Spoilt): Answer | undefined {
  return how === undefined ? undefined : refuse(how === 'fault' ? 'EFAULT' : 'EINVAL');
}

export class UserModel {
  readonly state = new State();
  readonly rules = new Type1Rules(this.state);

  // --- processes ---------------------------------------------------------------------------------------------------

  addProcess(name: string, rights: Rights, contents: readonly number[]): ModelProcess {
    const process = new ModelProcess(name, this.newMm(rights, contents));
    this.state.processes.push(process);
    return process;
  }

  /** Same open files, memory copied. */
  fork(parent: ModelProcess, name: string): ModelProcess {
    const child = this.addProcess(name, parent.mm.rights, parent.mm.frames.map(({ content }) => content));
    child.fds = [...parent.fds];
    for (const file of child.fds) if (file !== undefined) file.descriptors++;
    return child;
  }

  /** Of its own will or killed: the address space goes, then the descriptors, the lowest first. */
  exit(process: ModelProcess): Answer {
    process.alive = false;
    this.endMm(process.mm);
    for (let fd = 0; fd < process.fds.length; fd++) if (process.fds[fd] !== undefined) this.drop(process, fd);
    this.settle();
    return DONE;
  }

  /** Another program: a new address space, the old one is gone; device descriptors are closed (O_CLOEXEC). */
  exec(process: ModelProcess, contents: readonly number[]): Answer {
    const old = process.mm;
    this.endMm(old);
    process.mm = this.newMm(old.rights, contents);
    for (let fd = 0; fd < process.fds.length; fd++) if (process.fds[fd]?.of instanceof ModelDevice) this.drop(process, fd);
    this.settle();
    return DONE;
  }

  private newMm(rights: Rights, contents: readonly number[]): ModelMm {
    const mm = new ModelMm(rights);
    mm.frames.push(...contents.map((content) => new Frame(content)));
    this.state.mms.add(mm);
    return mm;
  }

  /** Its binds end; what is pinned of it stays pinned. */
  private endMm(mm: ModelMm): void {
    mm.alive = false;
    for (const { binds } of this.state.containers) binds.delete(mm);
    this.state.mms.delete(mm);
  }

  /** The process stores to a page of its arena. */
  write(process: ModelProcess, at: number, content: number): void {
    process.mm.frames[at]!.content = content;
  }

  /** The page is given back and touched again: another frame. What devices reach is the old one. */
  renew(process: ModelProcess, at: number, content: number): void {
    process.mm.frames[at] = new Frame(content);
  }

  close(process: ModelProcess, fd: number): Answer {
    if (process.file(fd) === undefined) return refuse('EBADF');
    this.drop(process, fd);
    this.settle();
    return DONE;
  }

  private drop(process: ModelProcess, fd: number): void {
    const file = process.fds[fd]!;
    process.fds[fd] = undefined;
    if (--file.descriptors > 0) return;
    const { of } = file;
    if (of instanceof ModelGroup) {
      of.opened = false;
      this.dropUser(of);
    } else if (of instanceof ModelDevice) {
      this.closeDevice(of);
    } else if (of.groups.length === 0) {
      this.state.containers.delete(of);
    }
  }

  /** C18 for the last one. */
  private closeDevice(device: ModelDevice): void {
    device.users--;
    if (device.users === 0) {
      if (device.function !== undefined) device.function.master = false;
      if (device.mdev !== undefined && device.group.container !== undefined) this.rules.unpinIn(device.group.container, device.mdev);
    }
    this.dropUser(device.group);
  }

  private dropUser(group: ModelGroup): void {
    if (group.users === 0 || --group.users > 0) return;
    this.leave(group);
  }

  private open(process: ModelProcess, of: ModelFile['of']): number {
    const fd = process.lowestFree();
    process.fds[fd] = { of, descriptors: 1 };
    return fd;
  }

  // --- containers and groups (C1–C4, E30–E32, 7.6) -----------------------------------------------------------------

  openContainer(process: ModelProcess): Answer {
    const container = new ModelContainer();
    this.state.containers.add(container);
    return { value: this.open(process, container) };
  }

  openGroup(process: ModelProcess, group: ModelGroup | undefined): Answer {
    if (group === undefined || !this.state.groups.includes(group)) return refuse('ENODEV');
    if (group.opened || group.container !== undefined) return refuse('EBUSY');
    group.opened = true;
    return { value: this.open(process, group) };
  }

  /** What a command of another kind of file is answered with. */
  private notA(process: ModelProcess, fd: number): Answer {
    const file = process.file(fd);
    if (file === undefined) return refuse('EBADF');
    return refuse(file.of instanceof ModelContainer && file.of.type === undefined ? 'EINVAL' : 'ENOTTY');
  }

  private groupAt(process: ModelProcess, fd: number): ModelGroup | undefined {
    const of = process.file(fd)?.of;
    return of instanceof ModelGroup ? of : undefined;
  }

  containerAt(process: ModelProcess, fd: number): ModelContainer | undefined {
    const of = process.file(fd)?.of;
    return of instanceof ModelContainer ? of : undefined;
  }

  /** C6: no member has a driver of the kernel. */
  viable(group: ModelGroup): boolean {
    return group.functions.every(({ driver }) => driver === undefined || driver === 'vfio-pci');
  }

  /** Bit 0 viable, bit 1 in a container. */
  status(process: ModelProcess, fd: number, spoilt: Spoilt): Answer {
    const group = this.groupAt(process, fd);
    if (group === undefined) return this.notA(process, fd);
    const wrong = spoiltAnswer(spoilt);
    if (wrong !== undefined) return wrong;
    return group.dead ? refuse('ENODEV') : { value: this.statusOf(group) };
  }

  statusOf(group: ModelGroup): number {
    return (this.viable(group) ? 1 : 0) | (group.container === undefined ? 0 : 2);
  }

  setContainer(process: ModelProcess, fd: number, containerFd: number, spoilt: Spoilt): Answer {
    const group = this.groupAt(process, fd);
    if (group === undefined) return this.notA(process, fd);
    if (spoilt === 'fault') return refuse('EFAULT');
    if (containerFd < 0 || group.container !== undefined) return refuse('EINVAL');
    if (group.dead) return refuse('ENODEV');
    const target = process.file(containerFd);
    if (target === undefined) return refuse('EBADF');
    if (!(target.of instanceof ModelContainer)) return refuse('EINVAL');
    const container = target.of;
    // C6: the kernel's drivers own the DMA
    if (!this.viable(group)) return refuse('EPERM');
    if (container.type !== undefined) {
      container.groups.push(group);
      const refusal = this.rules.attach(container, group);
      if (refusal !== undefined) {
        container.groups.pop();
        return { refused: refusal };
      }
    } else {
      container.groups.push(group);
    }
    group.container = container;
    group.users = 1;
    return DONE;
  }

  unsetContainer(process: ModelProcess, fd: number): Answer {
    const group = this.groupAt(process, fd);
    if (group === undefined) return this.notA(process, fd);
    if (group.users === 0) return refuse('EINVAL');
    if (group.users > 1) return refuse('EBUSY');
    this.leave(group);
    this.settle();
    return DONE;
  }

  protected leave(group: ModelGroup): void {
    const { container } = group;
    group.users = 0;
    if (container === undefined) return;
    if (container.type !== undefined) this.rules.detach(container, group);
    container.groups.splice(container.groups.indexOf(group), 1);
    group.container = undefined;
    if (container.groups.length > 0) return;
    container.type = undefined;
    if (!this.isOpen(container)) this.state.containers.delete(container);
  }

  private isOpen(of: ModelFile['of']): boolean {
    return this.state.processes.some(({ fds }) => fds.some((file) => file?.of === of));
  }

  setIommu(process: ModelProcess, fd: number, type: number): Answer {
    const container = this.containerAt(process, fd);
    if (container === undefined) return this.notA(process, fd);
    if (container.groups.length === 0 || container.type !== undefined) return refuse('EINVAL');
    // an extension that is no type is taken for one, and opening it fails
    if (type === 9) return refuse('EINVAL');
    if (type !== 1 && type !== 3 && type !== 6) return refuse('ENODEV');
    container.type = type;
    const attached: ModelGroup[] = [];
    for (const group of container.groups) {
      const refusal = this.rules.attach(container, group);
      if (refusal !== undefined) {
        for (const undo of attached) this.rules.detach(container, undo);
        container.type = undefined;
        return { refused: refusal };
      }
      attached.push(group);
    }
    return DONE;
  }

  getDevice(process: ModelProcess, fd: number, name: string, spoilt: Spoilt): Answer {
    const group = this.groupAt(process, fd);
    if (group === undefined) return this.notA(process, fd);
    if (spoilt === 'fault') return refuse('EFAULT');
    if (group.container?.type === undefined || !this.viable(group)) return refuse('EINVAL');
    const device = group.devices.find((one) => one.name === name);
    if (device === undefined) return refuse('ENODEV');
    device.users++;
    group.users++;
    if (device.users === 1 && device.function !== undefined) device.function.master = false;
    return { value: this.open(process, device) };
  }

  // --- devices ------------------------------------------------------------------------------------------------------

  reset(process: ModelProcess, fd: number): Answer {
    const of = process.file(fd)?.of;
    if (!(of instanceof ModelDevice)) return this.notA(process, fd);
    return of.function?.facts.resets === false ? refuse('EINVAL') : DONE;
  }

  // --- mappings and binds -------------------------------------------------------------------------------------------

  info(process: ModelProcess, fd: number): Answer {
    return this.containerAt(process, fd)?.type === undefined ? this.notA(process, fd) : DONE;
  }

  map(process: ModelProcess, fd: number, request: MapRequest, spoilt: Spoilt): Answer {
    const container = this.containerAt(process, fd);
    if (container?.type === undefined) return this.notA(process, fd);
    return spoiltAnswer(spoilt) ?? answer(this.rules.map(container, process, request), 0);
  }

  unmap(process: ModelProcess, fd: number, request: UnmapRequest, spoilt: Spoilt): Answer {
    const container = this.containerAt(process, fd);
    if (container?.type === undefined) return this.notA(process, fd);
    const wrong = spoiltAnswer(spoilt);
    if (wrong !== undefined) return wrong;
    const unmapped = this.rules.unmap(container, process, request);
    return typeof unmapped === 'number' ? { value: unmapped * 4096 } : { refused: unmapped };
  }

  /** Whose address space a bind names. */
  private target(caller: ModelProcess, who: ModelProcess | undefined): ModelMm | Answer {
    if (who === undefined) return caller.mm;
    if (!who.alive) return refuse('ESRCH');
    const { rights } = caller.mm;
    // mm_access refuses with EACCES; one's own address space is never refused
    if (who !== caller && !rights.root && rights.uid !== who.mm.rights.uid) return refuse('EACCES');
    return who.mm;
  }

  /** @param who undefined: the caller, without BIND_PID */
  bind(process: ModelProcess, fd: number, who: ModelProcess | undefined, spoilt: Spoilt): Answer {
    const container = this.containerAt(process, fd);
    if (container?.type === undefined) return this.notA(process, fd);
    const mm = spoiltAnswer(spoilt) ?? this.target(process, who);
    if (!(mm instanceof ModelMm)) return mm;
    return answer(this.rules.bind(container, mm), mm.pasid);
  }

  unbind(process: ModelProcess, fd: number, who: ModelProcess | undefined, spoilt: Spoilt): Answer {
    const container = this.containerAt(process, fd);
    if (container?.type === undefined) return this.notA(process, fd);
    const mm = spoiltAnswer(spoilt) ?? this.target(process, who);
    if (!(mm instanceof ModelMm)) return mm;
    return answer(this.rules.unbind(container, mm), 0);
  }

  // --- waiting ------------------------------------------------------------------------------------------------------

  /** Does it now, or when those who are in the way have gone. */
  protected wait(what: string, proceed: () => boolean): Answer {
    const waiting = { what, proceed, done: false };
    this.state.waiting.push(waiting);
    this.settle();
    return waiting.done ? DONE : WAITS;
  }

  protected settle(): void {
    for (let moved = true; moved; ) {
      moved = false;
      for (const waiting of this.state.waiting.slice()) {
        if (waiting.done || !waiting.proceed()) continue;
        waiting.done = true;
        this.state.waiting.splice(this.state.waiting.indexOf(waiting), 1);
        moved = true;
      }
    }
  }
}
