/**
 * Programs that map and unmap, groups and mediated devices that move between containers, processes that are bound and unbound, memory that is
 * given back and handed to others: and all the time, between any two events of all that, devices that access whatever address they like, with
 * whatever PASID, through the IOMMU or with translations they hold. Every access is judged by `Space`s, and beside them by the harness' checkers.
 */
import { Random } from '../../sim/random.js';
import { isErrno } from '../../sim/errno.js';
import { sleep, type Steps } from '../../sim/task.js';
import { NO_PASID, type DmaPort } from '../../host/pci/dma-port.js';
import type { Process } from '../../host/process.js';
import { DmaInsideContainers } from '../../harness/checkers/containers.js';
import { CheckerSet } from '../../harness/checkers/invariant.js';
import { TranslationsForgotten } from '../../harness/checkers/translations.js';
import type { InvariantSummary } from '../../harness/summary.js';
import type { ContainerHandle, GroupHandle, VfioClient } from '../../vfio/client/index.js';
import { Contents, MOVING, READ, SLOTS, Space, WRITE } from './dma-oracle.js';
import { COUNTS, DmaStorm, SwarmDevice, type Count } from './dma-storm.js';
import { AUX_PARENT, PassthroughMachine, PLAIN_PARENT } from './machine.js';
import { uuidOf } from './runner.js';

const MEMORY_BYTES = 2 ** 27;
/** Small pages of a program, and behind them a huge page. */
const SMALL = 96;
const HUGE = 512;
/** Where huge pages go, so that a domain gets leaves of 2 MiB. */
const HUGE_IOVA = 1024;
const STORM_NS = 100;
const PER_STORM = 12;

export interface SwarmOptions {
  readonly seed: number;
  readonly dmas: number;
  readonly defects?: readonly string[];
  /** Violations after which nobody wants to know more. Default 20. */
  readonly stopAfter?: number;
  /** Devices only read: where they go around the IOMMU, no kernel would live on with what they write. */
  readonly readOnly?: boolean;
}

export interface SwarmReport {
  /** What the oracle found, in words. */
  readonly violations: readonly string[];
  readonly checkers: readonly InvariantSummary[];
  /** How often what happened. */
  readonly counts: Readonly<Record<Count, number>>;
}

/** A program with containers, or with its memory shared. */
interface Program {
  readonly process: Process;
  readonly client: VfioClient;
  readonly owner: number;
  /** First bytes of its areas. */
  readonly small: number;
  readonly huge: number;
}

interface ContainerState {
  readonly program: Program;
  readonly handle: ContainerHandle;
  readonly space: Space;
  readonly members: Member[];
}

/** A group that containers can have: of functions, or of a mediated device. */
interface Member {
  readonly name: string;
  readonly group: () => number;
  /** Functions whose requests without PASID are the group's. */
  readonly functions: readonly string[];
  readonly uuid: string | undefined;
  container: ContainerState | undefined;
  file: GroupHandle | undefined;
}

class Stop extends Error {}

export class DmaSwarm {
  readonly machine: PassthroughMachine;
  readonly counts = Object.fromEntries(COUNTS.map((name) => [name, 0])) as Record<Count, number>;
  readonly violations: string[] = [];
  private readonly options: SwarmOptions;
  private readonly random: Random;
  private readonly storms: DmaStorm;
  private readonly spaces: Space[] = [];
  private readonly contents = new Contents(MEMORY_BYTES / 4096);
  private readonly devices: SwarmDevice[] = [];
  private readonly programs: Program[] = [];
  private readonly containers: ContainerState[] = [];
  private readonly members: Member[] = [];
  private readonly bound = new Map<Program, Map<SwarmDevice, number>>();
  private readonly natives: { readonly program: Program; readonly space: Space }[] = [];
  private readonly checkers: CheckerSet;
  private bystander: Program | undefined;
  private storming = false;
  private churning = false;
  /** Pages of the bystander with a frame, and without. */
  private readonly touched: number[] = [...Array(SMALL).keys()];
  private readonly untouched: number[] = [];

  constructor(options: SwarmOptions) {
    this.options = options;
    const random = new Random(options.seed);
    this.random = random.split('calls');
    const { devices, spaces, contents, counts } = this;
    this.storms = new DmaStorm({ random: random.split('dma'), devices, spaces, contents, counts, violate: (text) => this.violate(text), readOnly: options.readOnly ?? false });
    const machine = (this.machine = new PassthroughMachine({ memoryBytes: MEMORY_BYTES, watchDma: true, instances: 4, ...(options.defects === undefined ? {} : { defects: options.defects }) }));
    const sources = new Map([...machine.functions].map(([bdf, fn]) => [machine.trace.intern(bdf), fn.requesterId]));
    const sourceOf = (name: number): number | undefined => sources.get(name);
    const translations = new TranslationsForgotten();
    this.checkers = new CheckerSet(machine.trace, [translations, new DmaInsideContainers(sourceOf, translations)]);
    this.setUp();
  }

  // --- the scene -----------------------------------------------------------------------------------------------------

  private setUp(): void {
    const { machine } = this;
    machine.run(machine.bindDriver(AUX_PARENT, 'aux'));
    for (const bdf of ['0000:00:01.0', '0000:00:02.0', '0000:00:02.1', '0000:00:04.0', '0000:00:07.0']) machine.run(machine.bindDriver(bdf, 'vfio-pci'));
    for (const bdf of machine.functions.keys()) machine.device(bdf).setMaster(true);
    for (const [bdf, fn] of machine.functions) this.addDevice(bdf, fn.port);
    for (const [name, functions] of [['A', ['0000:00:01.0']], ['B', ['0000:00:02.0', '0000:00:02.1']], ['C', ['0000:00:04.0']], ['E', ['0000:00:07.0']]] as const) {
      this.members.push({ name, functions, uuid: undefined, group: () => machine.pci.groupOf(machine.device(functions[0])).id, container: undefined, file: undefined });
    }
    for (let n = 1; n <= 4; n++) {
      const uuid = uuidOf(n);
      machine.run(machine.mdevs.create(machine.device(AUX_PARENT), 'aux-1', uuid));
      this.members.push({ name: `mdev ${n}`, functions: [], uuid, group: () => machine.mdevs.find(uuid)!.group!, container: undefined, file: undefined });
    }
    for (const bdf of [AUX_PARENT, PLAIN_PARENT]) {
      machine.run(machine.core.devEnableFeature(machine.device(bdf), 'IOPF'));
      machine.run(machine.core.devEnableFeature(machine.device(bdf), 'SVA'));
    }
    const programs = ['vmm0', 'vmm1', 'vmm2', 'native0', 'native1', 'bystander'].map((name) => this.program(name));
    for (const program of [programs[0]!, programs[0]!, programs[1]!, programs[2]!]) {
      const handle = program.client.openContainer();
      const space = new Space(`container ${this.containers.length}`, program.owner);
      this.spaces.push(space);
      this.containers.push({ program, handle, space, members: [] });
    }
    for (const program of programs.slice(3, 5)) {
      const space = new Space(program.process.name, program.owner, program.small / 4096, true);
      for (let at = 0; at < SMALL; at++) space.set(program.small / 4096 + at, this.frameOf(program.process, program.small + at * 4096), READ | WRITE);
      space.mapped.push({ page: program.small / 4096, pages: SMALL });
      this.natives.push({ program, space });
    }
    this.bystander = programs[5]!;
    for (let i = SMALL / 4; i > 0; i--) machine.run(this.giveBack());
  }

  private addDevice(bdf: string, port: DmaPort): void {
    const device = new SwarmDevice(bdf, port);
    this.devices.push(device);
    this.machine.clients.set(bdf, {
      invalidate: (tag, page, pages, pasid, global) => {
        device.atc.invalidate(page, pages, pasid, global);
        this.machine.clock.post(200, () => port.invalidateCompletion(tag));
      },
    });
  }

  private program(name: string): Program {
    const { machine } = this;
    const process = machine.process(name);
    const owner = this.programs.length + 1;
    const huge = machine.run(process.mm.mmap(HUGE * 4096, { hugeLevel: 1 }));
    const small = machine.run(process.mm.mmap(SMALL * 4096));
    const program = { process, client: machine.clientOf(process), owner, small, huge };
    for (let at = 0; at < SMALL; at++) machine.run(this.mark(program, small + at * 4096));
    for (let at = 0; at < HUGE; at++) machine.run(this.mark(program, huge + at * 4096));
    this.programs.push(program);
    return program;
  }

  /** The program stores a word of its own into every slot of a page. */
  private *mark(program: Program, address: number): Steps {
    const words = SLOTS.map(() => this.contents.fresh(program.owner));
    const bytes = new Uint8Array(4);
    for (const [slot, offset] of SLOTS.entries()) {
      new DataView(bytes.buffer).setUint32(0, words[slot]!, true);
      yield* program.process.mm.write(address + offset, bytes);
    }
    const frame = this.frameOf(program.process, address);
    words.forEach((word, slot) => { this.contents.set(frame, slot, word); });
  }

  private frameOf({ mm }: Process, address: number): number {
    return Math.floor(mm.physicalOf(address) / 4096);
  }

  // --- calls ---------------------------------------------------------------------------------------------------------

  run(): SwarmReport {
    const { machine, counts } = this;
    const { clock } = machine;
    this.storming = true;
    clock.post(STORM_NS, this.storm);
    const task = machine.scheduler.spawn('swarm', this.calls(), { joined: true });
    machine.scheduler.spawn('churn', this.churn());
    try {
      clock.run({ stop: () => task.ended });
      if (task.state === 'failed') throw task.error;
      this.storming = false;
      machine.run(this.finish());
    } catch (error) {
      if (!(error instanceof Stop)) throw error;
    } finally {
      this.storming = false;
    }
    return { violations: this.violations, checkers: this.checkers.finish(), counts };
  }

  private *calls(): Steps {
    const { random, machine } = this;
    let sinceSweep = 0;
    while (this.counts.dmas < this.options.dmas) {
      yield* this.oneCall(random.below(100));
      if (random.chance(0.6)) yield* sleep(machine.clock, random.below(4_000));
      if (++sinceSweep % 64 === 0) this.sweep();
    }
    this.sweep();
  }

  private *oneCall(what: number): Steps {
    if (what < 36) return yield* this.map();
    if (what < 64) return yield* this.unmap();
    if (what < 76) return yield* this.attach();
    if (what < 82) return yield* this.detach();
    if (what < 87) return yield* this.bind();
    if (what < 91) return yield* this.unbind();
    return yield* this.renew();
  }

  private *map(): Steps {
    const { random } = this;
    const container = random.pick(this.containers.filter(({ members }) => members.length > 0).concat(this.containers[0]!));
    const { program, space, handle } = container;
    const large = random.chance(0.15);
    const pages = large ? random.pick([HUGE, HUGE, 64, 3]) : random.between(1, 8);
    const iova = large ? HUGE_IOVA + (pages === HUGE ? 0 : random.below(HUGE - pages)) : random.below(200);
    const from = large ? program.huge + (pages === HUGE ? 0 : random.below(HUGE - pages)) * 4096 : program.small + random.below(SMALL - pages) * 4096;
    const prot = random.chance(0.25) ? READ : READ | WRITE;
    const free = container.members.length > 0 && space.mapped.every((other) => other.page >= iova + pages || other.page + other.pages <= iova);
    // without a group or over another mapping it is refused, and nothing moves
    if (free) for (let at = 0; at < pages; at++) space.set(iova + at, this.frameOf(program.process, from + at * 4096), prot | MOVING);
    if (free) this.storms.hot = { space, page: iova, pages };
    const done = yield* this.allowed(handle.mapDma({ iova: iova * 4096, vaddr: from, sizeBytes: pages * 4096, write: prot !== READ }));
    if (done !== free) this.violate(`a mapping at ${iova} of ${space.name} ${done ? 'was made over another' : 'was refused'}`);
    if (!done) return free ? space.clear(iova, pages) : undefined;
    this.counts.maps++;
    for (let at = 0; at < pages; at++) space.flags[iova + at] = prot;
    space.mapped.push({ page: iova, pages });
  }

  private *unmap(): Steps {
    const { random } = this;
    const container = random.pick(this.containers);
    const { space, handle } = container;
    if (space.mapped.length === 0) return;
    const all = random.chance(0.03);
    const gone = all ? [...space.mapped] : [random.pick(space.mapped)];
    yield* this.warmUp(space, gone[0]!);
    for (const { page, pages } of gone) space.moving(page, pages);
    if (random.chance(0.5)) for (const { page, pages } of gone) yield* this.renewBehind(container, page, pages);
    const { page, pages } = gone[0]!;
    this.churning = true;
    if (!(yield* this.allowed(all ? handle.unmapDma(0, 0, { all }) : handle.unmapDma(page * 4096, pages * 4096)))) this.violate(`an unmap of ${space.name} was refused`);
    this.churning = false;
    for (const one of gone) {
      space.clear(one.page, one.pages);
      space.mapped.splice(space.mapped.indexOf(one), 1);
    }
    this.counts.unmaps++;
  }

  /** Devices fill their caches with what is about to go. */
  private *warmUp(space: Space, { page, pages }: { readonly page: number; readonly pages: number }): Steps {
    this.storms.hot = { space, page, pages };
    if (this.random.chance(0.5)) yield* sleep(this.machine.clock, 3 * STORM_NS);
  }

  /** Somebody who takes frames and gives them back all the time that something is unmapped: what is freed too early has a new owner at once. */
  private *churn(): Steps {
    while (this.storming) {
      if (this.churning) {
        yield* this.take();
        yield* this.giveBack();
      }
      yield* sleep(this.machine.clock, 130);
    }
  }

  /** The program gives the pages behind a mapping back: their frames are held by nothing but the pins. */
  private *renewBehind({ program, space }: ContainerState, page: number, pages: number): Steps {
    if (pages > 8) return;
    for (let at = 0; at < SMALL; at++) {
      const frame = this.frameOf(program.process, program.small + at * 4096);
      for (let i = 0; i < pages; i++) if (space.frames[page + i] === frame) yield* this.renewPage(program, at);
    }
  }

  private *attach(): Steps {
    const { random, machine } = this;
    const member = random.pick(this.members.filter(({ container }) => container === undefined).concat(random.pick(this.members)));
    if (member.container !== undefined) yield* this.leave(member);
    const container = random.pick(this.containers);
    const { program, handle, members, space } = container;
    member.file = program.client.openGroup(member.group());
    const devices = this.devicesOf(member);
    for (const device of devices) {
      if (member.uuid !== undefined) device.arriving = space;
      else {
        device.moving = true;
        device.alternative = space;
      }
    }
    if (space.mapped.length > 0) this.storms.hot = { space, ...random.pick(space.mapped) };
    const joined = yield* this.allowed(member.file.setContainer(handle));
    const ready = joined && (members.length > 0 || (yield* this.allowed(handle.setIommu('type1v2'))));
    if (!ready) {
      this.violate(`${member.name} was not let into ${space.name}`);
      throw new Stop();
    }
    members.push(member);
    member.container = container;
    for (const device of devices) {
      device.moving = false;
      device.alternative = device.arriving = undefined;
      if (member.uuid === undefined) device.space = space;
      else device.byPasid.set(machine.vfio.pasidOf(machine.mdevs.find(member.uuid)!)!, space);
    }
    this.counts.attaches++;
  }

  private *detach(): Steps {
    const inside = this.members.filter(({ container }) => container !== undefined);
    if (inside.length > 0) yield* this.leave(this.random.pick(inside));
  }

  /** By its call, or by the end of its descriptor. The last group takes everything with it. */
  private *leave(member: Member): Steps {
    const { machine, random } = this;
    const { members, space } = member.container!;
    const last = members.length === 1;
    const pasid = member.uuid === undefined ? NO_PASID : machine.vfio.pasidOf(machine.mdevs.find(member.uuid)!)!;
    const shared = members.some((other) => other !== member && other.uuid !== undefined);
    if (space.mapped.length > 0) yield* this.warmUp(space, random.pick(space.mapped));
    if (last) for (const { page, pages } of space.mapped) space.moving(page, pages);
    this.churning = last;
    for (const device of this.devicesOf(member)) {
      if (member.uuid === undefined) device.moving = true;
      else if (!shared) device.leaving.add(pasid);
    }
    const unset = random.chance(0.5) ? member.file!.unsetContainer() : undefined;
    if (unset !== undefined) yield* unset;
    yield* member.file!.close();
    this.churning = false;
    member.file = undefined;
    members.splice(members.indexOf(member), 1);
    member.container = undefined;
    for (const device of this.devicesOf(member)) {
      if (member.uuid === undefined) {
        device.moving = false;
        device.space = undefined;
      } else if (!shared) {
        device.leaving.delete(pasid);
        device.byPasid.delete(pasid);
      }
    }
    if (last) for (const { page, pages } of space.mapped.splice(0)) space.clear(page, pages);
    this.counts.detaches++;
  }

  private devicesOf({ functions, uuid }: Member): SwarmDevice[] {
    return this.devices.filter(({ bdf }) => (uuid === undefined ? functions.includes(bdf) : bdf === AUX_PARENT));
  }

  /** Host processes beside the guests' devices, on the same functions. */
  private *bind(): Steps {
    const { random, machine } = this;
    const { program, space } = random.pick(this.natives);
    const chosen = random.pick([AUX_PARENT, PLAIN_PARENT]);
    const device = this.devices.find(({ bdf }) => bdf === chosen)!;
    const bound = this.bound.get(program) ?? new Map<SwarmDevice, number>();
    this.bound.set(program, bound);
    if (bound.has(device)) return;
    device.arriving = space;
    const pasid = yield* machine.core.svaBind(machine.device(device.bdf), program.process.mm);
    device.arriving = undefined;
    device.byPasid.set(pasid, space);
    bound.set(device, pasid);
    this.counts.binds++;
  }

  private *unbind(): Steps {
    const { program } = this.random.pick(this.natives);
    const [device, pasid] = [...(this.bound.get(program) ?? [])][0] ?? [];
    if (device === undefined || pasid === undefined) return;
    device.leaving.add(pasid);
    yield* this.machine.core.svaUnbind(this.machine.device(device.bdf), pasid);
    device.leaving.delete(pasid);
    device.byPasid.delete(pasid);
    this.bound.get(program)!.delete(device);
    this.counts.unbinds++;
  }

  /** Frames are given back and go to whoever comes next. */
  private *renew(): Steps {
    const { random } = this;
    for (let i = random.between(1, 6); i > 0; i--) yield* this.renewPage(random.pick(this.programs.filter((program) => program !== this.bystander)), random.below(SMALL));
  }

  private *renewPage(program: Program, at: number): Steps {
    const address = program.small + at * 4096, page = address / 4096;
    const native = this.natives.find((other) => other.program === program)?.space;
    if (native !== undefined) yield* this.warmUp(native, { page, pages: 1 });
    native?.moving(page, 1);
    yield* program.process.mm.madviseDontNeed(address, 4096);
    yield* this.take();
    yield* this.mark(program, address);
    if (native !== undefined) this.arrive(native, program, page);
    yield* this.giveBack();
    this.counts.renewed++;
  }

  /** The bystander touches a page: the frame that was freed last is its own now. */
  private *take(): Steps {
    const at = this.untouched.pop();
    if (at === undefined) return;
    yield* this.mark(this.bystander!, this.bystander!.small + at * 4096);
    this.touched.push(at);
  }

  private *giveBack(): Steps {
    if (this.untouched.length > SMALL / 2) return;
    const at = this.touched.splice(this.random.below(this.touched.length), 1)[0]!;
    yield* this.bystander!.process.mm.madviseDontNeed(this.bystander!.small + at * 4096, 4096);
    this.untouched.push(at);
  }

  /** A new frame of a process that devices share: what they wrote to it since it came is theirs, and nobody else's. */
  private arrive(space: Space, { process, owner }: Program, page: number): void {
    const frame = this.frameOf(process, page * 4096);
    for (const [slot, offset] of SLOTS.entries()) {
      const found = this.machine.ram.load(frame * 4096 + offset, 4) >>> 0;
      if (found >>> 24 !== owner) this.violate(`a new frame of ${process.name} has ${found.toString(16)} of owner ${found >>> 24}`);
      this.contents.set(frame, slot, found);
    }
    space.set(page, frame, READ | WRITE);
  }

  private *allowed(steps: Steps<unknown>): Steps<boolean> {
    try {
      yield* steps;
      return true;
    } catch (error) {
      if (!isErrno(error)) throw error;
      this.counts.refusedCalls++;
      return false;
    }
  }

  /** Everybody goes; nothing stays. */
  private *finish(): Steps {
    for (const program of this.natives.map((native) => native.program)) while ((this.bound.get(program)?.size ?? 0) > 0) yield* this.unbindOf(program);
    for (const member of this.members) if (member.container !== undefined) yield* this.leave(member);
    for (const { process } of this.programs) yield* process.exit();
    const { frames, core } = this.machine;
    if (frames.pinnedPages !== 0) this.violate(`${frames.pinnedPages} pages are pinned for nobody`);
    if (core.usage.domains !== 0 || core.usage.bonds !== 0) this.violate('domains or bonds are left');
  }

  private *unbindOf(program: Program): Steps {
    for (const [device, pasid] of this.bound.get(program)!) {
      yield* this.machine.core.svaUnbind(this.machine.device(device.bdf), pasid);
      this.bound.get(program)!.delete(device);
    }
  }

  // --- DMA -----------------------------------------------------------------------------------------------------------

  private readonly storm = (): void => {
    if (!this.storming) return;
    for (let i = 0; i < PER_STORM; i++) this.storms.dma();
    this.machine.clock.post(STORM_NS, this.storm);
  };

  private violate(text: string): void {
    this.violations.push(`${this.machine.clock.now} ns: ${text}`);
    if (this.violations.length >= (this.options.stopAfter ?? 20)) throw new Stop();
  }

  /** Every word of every program, and of every frame that a container holds, is what its owner or its devices put there last. */
  private sweep(): void {
    this.counts.sweeps++;
    for (const { process, small, huge } of this.programs) {
      for (let at = 0; at < SMALL; at++) {
        const frame = this.frameOf(process, small + at * 4096);
        if (frame >= 0) this.checkFrame(process.name, frame);
      }
      for (let at = 0; at < HUGE; at += 37) this.checkFrame(process.name, this.frameOf(process, huge + at * 4096));
    }
    for (const { space } of this.containers) for (const { page, pages } of space.mapped) for (let at = 0; at < Math.min(pages, 8); at++) this.checkFrame(space.name, space.frames[page + at]!);
  }

  private checkFrame(name: string, frame: number): void {
    const { ram } = this.machine;
    for (const [slot, offset] of SLOTS.entries()) {
      const found = ram.load(frame * 4096 + offset, 4) >>> 0;
      if (found !== this.contents.get(frame, slot)) this.violate(`frame ${frame.toString(16)} of ${name} has ${found.toString(16)} where ${this.contents.get(frame, slot).toString(16)} was written last`);
    }
  }
}
