/**
 * Makes the same calls to the product and to the model, and compares what came of them: the result of every call, then everything that
 * can be seen from outside, then where the DMA of every function lands.
 */
import { isErrno, type ErrnoName } from '../../sim/errno.js';
import type { Steps, Task } from '../../sim/task.js';
import { DMA_DONE, DMA_REVOKED, NO_PASID } from '../../host/pci/dma-port.js';
import type { Process } from '../../host/process.js';
import type { VfioClient } from '../../vfio/client/index.js';
import type { DeviceFile } from '../../vfio/core/index.js';
import { PCI_CONFIG_REGION, REGION_STRIDE } from '../../vfio/device.js';
import { PassthroughMachine } from './machine.js';
import { ARENA_PAGES, DMA_ENTRIES, INSTANCES, READABLE_PAGES, WRITABLE_PAGES } from './model/facts.js';
import { Model, type Answer } from './model/model.js';
import type { Frame, ModelContainer, ModelFunction, ModelGroup, ModelMdev, ModelMm, ModelProcess, Rights, Waiting } from './model/state.js';

/** A call that blocks is given up on after this; less than the 10 s between two requests to a user (C17). */
const PATIENCE_NS = 5_000_000_000;
/** What calls leave for later (the end of binds, threads) is over by then. */
const AFTERMATH_NS = 1_000_000;

export const uuidOf = (n: number): string => `83b8f4f2-509f-382f-3c1e-${n.toString(16).padStart(12, '0')}`;

type Result = { readonly value: number } | { readonly errno: ErrnoName } | 'waits';

export interface Program {
  readonly process: Process;
  client: VfioClient;
  /** First byte of the arena. */
  arena: number;
}

/** A machine in which nobody uses anything, for one sequence of calls after the other. */
export function idleMachine(defects: readonly string[] = []): PassthroughMachine {
  const machine = new PassthroughMachine({ instances: INSTANCES, type1: { dmaEntryLimit: DMA_ENTRIES }, defects });
  machine.run(machine.bindDriver('0000:00:03.0', 'aux'));
  machine.run(machine.bindDriver('0000:00:05.0', 'plain'));
  machine.mdevs.registerParent(machine.parents.vendor.device, machine.parents.vendor);
  for (const bdf of ['0000:00:01.0', '0000:00:02.0', '0000:00:02.1', '0000:00:04.0', '0000:00:06.0', '0000:00:07.0']) machine.run(machine.bindDriver(bdf, 'vfio-pci'));
  machine.clock.run({ untilNs: machine.clock.now + AFTERMATH_NS });
  return machine;
}

export class Disagreement extends Error {
  override readonly name = 'Disagreement';
}

export class Runner {
  readonly machine: PassthroughMachine;
  readonly model = new Model();
  readonly programs = new Map<ModelProcess, Program>();
  /** Calls and what came of them, in words. */
  readonly story: string[] = [];
  private readonly tasks = new Map<Waiting, Task<unknown>>();
  private nextContent = 1;
  private checks = 0;
  private names = 0;

  /** @param machine in which nobody uses anything */
  constructor(machine: PassthroughMachine) {
    this.machine = machine;
    const { model } = this;
    const { state } = model;
    for (const fn of state.functions) model.bindDriver(fn, fn.facts.bdf === '0000:00:03.0' ? 'aux' : fn.facts.bdf === '0000:00:05.0' ? 'plain' : 'vfio-pci');
    model.registerParent(state.parents.find(({ facts }) => facts.name === 'vendor')!);
  }

  // --- calls ---------------------------------------------------------------------------------------------------------

  /** A call of both; afterwards both must look the same. */
  call(text: string, expect: () => Answer, steps: () => Steps<number | void>): Answer {
    const answer = expect();
    const waiting = 'waits' in answer ? this.model.state.waiting.at(-1) : undefined;
    const { result, task } = this.perform(text, steps, waiting !== undefined);
    this.story.push(`${text} -> ${typeof result === 'string' ? result : 'errno' in result ? `-${result.errno}` : result.value}`);
    if (!agrees(answer, result)) this.fail(`expected ${textOf(answer)}`);
    if (waiting !== undefined) this.tasks.set(waiting, task);
    this.settle();
    this.compare();
    return answer;
  }

  private perform(text: string, steps: () => Steps<number | void>, waits: boolean): { readonly result: Result; readonly task: Task<unknown> } {
    const { scheduler, clock } = this.machine;
    const task = scheduler.spawn(text, calling(steps), { joined: true });
    clock.run({ untilNs: clock.now + (waits ? PATIENCE_NS / 10 : PATIENCE_NS), stop: () => task.ended });
    if (!task.ended) return { result: 'waits', task };
    if (task.state === 'failed') {
      if (isErrno(task.error)) return { result: { errno: task.error.code }, task };
      this.story.push(`${text} -> failed`);
      throw new Disagreement(this.report(String(task.error instanceof Error ? task.error.stack : task.error)), { cause: task.error });
    }
    return { result: { value: task.result ?? 0 }, task: task as Task<unknown> };
  }

  /** Lets what the call set off come to its end. */
  private settle(): void {
    const { clock } = this.machine;
    clock.run({ untilNs: clock.now + AFTERMATH_NS });
    for (const [waiting, task] of this.tasks) {
      if (waiting.done && !task.ended) clock.run({ untilNs: clock.now + PATIENCE_NS / 10, stop: () => task.ended });
      if (waiting.done !== task.ended) this.fail(`${waiting.what} ${waiting.done ? 'still waits, though nothing is in its way' : 'went on, though somebody is in its way'}`);
      if (!waiting.done) continue;
      this.tasks.delete(waiting);
      if (task.state === 'failed') this.fail(`${waiting.what} failed: ${String(task.error)}`);
    }
  }

  private fail(what: string): never {
    throw new Disagreement(this.report(what));
  }

  private report(what: string): string {
    return `${what}, after\n  ${this.story.join('\n  ')}`;
  }

  // --- programs ------------------------------------------------------------------------------------------------------

  /** A new program with its arena: writable pages, readable ones, forbidden ones. */
  spawn(kind: string, rights: Rights): ModelProcess {
    const { machine } = this;
    const name = `${kind}${++this.names}`;
    const process = machine.process(name, { root: rights.root, uid: rights.uid, ...(rights.limit === Infinity ? {} : { memlockLimitPages: rights.limit }) });
    const contents = this.contents();
    const arena = machine.run(layOut(process, contents));
    const program = this.model.addProcess(name, rights, contents);
    this.programs.set(program, { process, client: machine.clientOf(process), arena });
    return program;
  }

  fork(parent: ModelProcess): void {
    const name = `${parent.name}.${++this.names}`;
    const { process, arena } = this.programs.get(parent)!;
    let child: ModelProcess | undefined;
    this.call(`${parent.name}: fork ${name}`, () => {
      child = this.model.fork(parent, name);
      return { value: 0 };
    }, function* (this: Runner) {
      const forked = yield* this.machine.fork(process, name);
      this.programs.set(child!, { process: forked, client: this.machine.clientOf(forked), arena });
    }.bind(this));
  }

  exec(process: ModelProcess): void {
    const program = this.programs.get(process)!;
    const contents = this.contents();
    this.call(`${process.name}: exec`, () => this.model.exec(process, contents), function* (this: Runner) {
      yield* program.process.exec(process.name, { ...program.process.mm.options, id: 1000 + ++this.names });
      program.arena = yield* layOut(program.process, contents);
      program.client = this.machine.clientOf(program.process);
    }.bind(this));
  }

  private contents(): number[] {
    return Array.from({ length: READABLE_PAGES }, () => this.nextContent++);
  }

  /** The program stores to a page; `renew`: it gives the page back first. */
  store(process: ModelProcess, at: number, renew: boolean): void {
    const { process: real, arena } = this.programs.get(process)!;
    const content = this.nextContent++;
    this.call(`${process.name}: ${renew ? 'renews' : 'stores to'} page ${at}`, () => {
      if (renew) this.model.renew(process, at, content);
      else this.model.write(process, at, content);
      return { value: 0 };
    }, function* () {
      if (renew) yield* real.mm.madviseDontNeed(arena + at * 4096, 4096);
      yield* real.mm.write(arena + at * 4096, word(content));
    });
  }

  // --- what can be seen ----------------------------------------------------------------------------------------------

  /** Fails when the two are not the same. */
  equal(what: string, actual: unknown, expected: unknown): void {
    if (actual !== expected) this.fail(`${what}: the product has ${String(actual)}, the model ${String(expected)}`);
  }

  compare(): void {
    const { machine, model } = this;
    const { state } = model;
    this.checks++;
    for (const [process, { process: real }] of this.programs) {
      this.equal(`state of ${process.name}`, real.state === 'running', process.alive);
      const open = process.fds.flatMap((file, fd) => (file === undefined ? [] : [fd]));
      this.equal(`descriptors of ${process.name}`, real.descriptors().join(), open.join());
      if (process.alive) this.equal(`pages that ${process.name} has locked`, real.mm.lockedPages, model.rules.locked(process.mm));
    }
    this.equal('pins', machine.frames.pinnedPages, model.pins);
    const { core, type1 } = machine;
    const { pasids, domains, bonds, pendingRequests, dmaPages } = core.usage;
    this.equal('domains', domains, model.domains);
    this.equal('PASIDs', pasids, model.pasids);
    this.equal('bonds', bonds, model.bonds);
    this.equal('requests and DMA mappings of the kernel', pendingRequests + dmaPages, 0);
    this.equal('containers with an IOMMU', type1.usage.containers, [...state.containers].filter(({ type }) => type !== undefined).length);
    this.equal('mappings', type1.usage.mappings, model.mappings);
    this.equal('binds', type1.usage.binds, model.binds);
    this.equal('broken rules', type1.counters.violations, 0);
    this.equal('groups that VFIO shows', machine.vfio.groupIds.length, state.groups.length);
    for (const group of state.groups) this.compareGroup(group);
    for (const fn of state.functions) this.compareFunction(fn);
    for (const parent of state.parents) {
      const real = machine.parents[parent.facts.name];
      for (const type of real.types) this.equal(`instances of ${parent.facts.name}-${type.name}`, type.availableInstances(), Math.floor(parent.left / Number(type.name)));
    }
    for (let n = 1; n <= 4; n++) this.equal(`state of mdev ${n}`, machine.mdevs.state(uuidOf(n)), state.mdev(uuidOf(n))?.state ?? 'ABSENT');
    this.comparePasids();
  }

  groupId(group: ModelGroup): number {
    const { machine } = this;
    const { functions, devices } = group;
    return functions.length > 0 ? machine.pci.groupOf(machine.device(functions[0]!.facts.bdf)).id : (machine.mdevs.find(devices[0]?.mdev?.uuid ?? '')?.group ?? -1);
  }

  private compareGroup(group: ModelGroup): void {
    this.equal(`status of group ${group.name}`, this.machine.vfio.group(this.groupId(group))?.statusFlags, this.model.statusOf(group));
  }

  private compareFunction(fn: ModelFunction): void {
    const { machine, model } = this;
    const { bdf } = fn.facts;
    const device = machine.device(bdf), iommuGroup = machine.core.groupOf(device);
    this.equal(`driver of ${bdf}`, machine.drivers.driverOf(device)?.name, fn.driver);
    this.equal(`bus mastering of ${bdf}`, machine.functions.get(bdf)!.busMaster, fn.master);
    this.equal(`AUX of ${bdf}`, machine.core.devFeatureEnabled(device, 'AUX'), fn.aux);
    const group = model.groupOf(fn);
    const container = group?.container;
    const whole = this.containerOfParent(fn);
    const type = whole !== undefined ? 'unmanaged' : container === undefined ? 'dma' : container.type === undefined ? undefined : 'unmanaged';
    this.equal(`domain of ${bdf}`, iommuGroup.domain?.type, type);
    const kernel = model.state.functions.filter(({ facts, driver }) => facts.group === fn.facts.group && driver !== undefined && driver !== 'vfio-pci').length;
    this.equal(`owners of the group of ${bdf}`, iommuGroup.ownerCount, container === undefined ? kernel : 1);
    if (container === undefined && kernel === 0) this.equal(`SVA of ${bdf}, which nobody uses`, machine.core.devFeatureEnabled(device, 'SVA'), false);
    this.probe(bdf, NO_PASID, fn.master, whole ?? (container?.type === undefined ? undefined : container));
    for (const mm of container?.domains.some(({ groups }) => groups.includes(group!)) === true ? container.binds : []) this.probeProcess(bdf, mm, fn.master);
  }

  /** The container whose domain translates all requests of a parent without AUX. */
  private containerOfParent(fn: ModelFunction): ModelContainer | undefined {
    return this.model.state.groups.find(({ backing, devices }) => backing === 'parent' && devices[0]?.mdev?.parent.facts.bdf === fn.facts.bdf)?.container;
  }

  /** Aux domains have a PASID each, which no address space has; their DMA lands in what the container maps. */
  private comparePasids(): void {
    const { machine, model } = this;
    const owners = new Map<number, unknown>();
    for (const mm of model.state.mms) if (mm.pasid !== undefined) owners.set(mm.pasid, mm);
    for (const { children } of model.state.parents) {
      for (const mdev of children) this.comparePasid(mdev, owners);
    }
    this.equal('processes and domains with a PASID', owners.size <= machine.core.usage.pasids, true);
  }

  private comparePasid(mdev: ModelMdev, owners: Map<number, unknown>): void {
    const { machine } = this;
    const { group } = mdev.device;
    const pasid = machine.vfio.pasidOf(machine.mdevs.find(mdev.uuid)!);
    if (group.backing !== 'aux') return this.equal(`PASID of ${mdev.uuid}`, pasid, undefined);
    const domain = group.container!.domains.find(({ groups }) => groups.includes(group));
    if (pasid === undefined || (owners.get(pasid) ?? domain) !== domain) this.fail(`PASID ${pasid} of ${mdev.uuid} is somebody else's`);
    owners.set(pasid, domain);
    this.probe(mdev.parent.facts.bdf!, pasid, this.model.state.function(mdev.parent.facts.bdf!).master, group.container);
  }

  // --- where DMA lands -----------------------------------------------------------------------------------------------

  /** First and last page of what is mapped, sometimes a page that is not. */
  private probe(bdf: string, pasid: number, master: boolean, container: ModelContainer | undefined): void {
    for (const { start, end, frames, read, write } of container?.mappings ?? []) {
      if (frames === undefined) continue;
      for (const page of end - start > 1 ? [start, end - 1] : [start]) this.access(bdf, pasid, page, master, frames[page - start]!, read, write);
    }
    if (this.checks % 8 !== 0) return;
    const page = [0, 2, 4, 6, 8, 10, 12, 14, 15].find((candidate) => container?.mappings.some(({ start, end }) => candidate >= start && candidate < end) !== true);
    if (page !== undefined) this.access(bdf, pasid, page, master, undefined, true, true);
  }

  /** A bound process is reached at its own addresses. */
  private probeProcess(bdf: string, mm: ModelMm, master: boolean): void {
    const program = [...this.programs].find(([{ mm: own, alive }]) => own === mm && alive)![1];
    // whoever writes to a page that a child shares copies it first: devices do so by page requests, which this one does not make
    this.access(bdf, mm.pasid!, program.arena / 4096 + 3, master, mm.frames[3], true, undefined);
  }

  private access(bdf: string, pasid: number, page: number, master: boolean, frame: Frame | undefined, read: boolean, write: boolean | undefined): void {
    const { port } = this.machine.functions.get(bdf)!;
    const where = `${bdf}${pasid === NO_PASID ? '' : ` with PASID ${pasid}`} at page 0x${page.toString(16)}`;
    const bytes = new Uint8Array(4);
    const status = port.read(page, 0, bytes, 0, 4, pasid, 0);
    if (!master) return this.equal(`DMA of ${where}, which is no bus master`, status, DMA_REVOKED);
    this.equal(`reading by ${where} succeeds`, status === DMA_DONE, read && frame !== undefined);
    if (status === DMA_DONE) this.equal(`content that ${where} reads`, new DataView(bytes.buffer).getUint32(0, true), frame!.content);
    if (frame === undefined || write === undefined || this.checks % 4 !== 0) return;
    const content = this.nextContent++;
    const written = port.write(page, 0, word(content), 0, 4, pasid, 0);
    this.equal(`writing by ${where} succeeds`, written === DMA_DONE, write);
    if (written === DMA_DONE) frame.content = content;
  }

  /** The user lets the device do DMA. */
  master(process: ModelProcess, fd: number, fn: ModelFunction): void {
    const { process: real } = this.programs.get(process)!;
    this.call(`${process.name}: bus mastering of ${fn.facts.bdf} on`, () => {
      fn.master = true;
      return { value: 2 };
    }, () => now(() => (real.file(fd) as DeviceFile).write(PCI_CONFIG_REGION * REGION_STRIDE + 4, Uint8Array.of(4, 0))));
  }
}

/** Steps of what does not sleep. */
// oxlint-disable-next-line require-yield -- nothing to wait for
export function* now<T>(act: () => T): Steps<T> {
  return act();
}

function* calling(steps: () => Steps<number | void>): Steps<number | undefined> {
  return (yield* steps()) ?? undefined;
}

export function word(content: number): Uint8Array {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setUint32(0, content, true);
  return bytes;
}

/** The arena of a process; its first byte. */
function* layOut(process: Process, contents: readonly number[]): Steps<number> {
  const { mm } = process;
  const arena = yield* mm.mmap(ARENA_PAGES * 4096);
  for (const [at, content] of contents.entries()) yield* mm.write(arena + at * 4096, word(content));
  yield* mm.mprotect(arena + WRITABLE_PAGES * 4096, (READABLE_PAGES - WRITABLE_PAGES) * 4096, 1);
  yield* mm.mprotect(arena + READABLE_PAGES * 4096, (ARENA_PAGES - READABLE_PAGES) * 4096, 0);
  return arena;
}

function agrees(answer: Answer, result: Result): boolean {
  if ('waits' in answer) return result === 'waits';
  if (result === 'waits') return false;
  if ('refused' in answer) return 'errno' in result && answer.refused.includes(result.errno);
  return 'value' in result && (answer.value === undefined || answer.value === result.value);
}

function textOf(answer: Answer): string {
  if ('waits' in answer) return 'a wait';
  return 'refused' in answer ? answer.refused.map((errno) => `-${errno}`).join(' or ') : answer.value === undefined ? 'success' : `${answer.value}`;
}
