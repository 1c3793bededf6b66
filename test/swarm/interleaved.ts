/**
 * Everybody at once: threads of several programs, the administrator, vendors' drivers and killers make calls without waiting for each other,
 * and sleep between and inside of them, while functions do DMA. What a call answers is not looked at here; what must hold whatever the order is:
 * nobody waits for ever, nothing is left at the end, nothing breaks, no device reaches what its container has given back.
 */
import { Random } from '../../sim/random.js';
import { isErrno } from '../../sim/errno.js';
import { lockInversions, sleep, type Steps } from '../../sim/task.js';
import { ATTR_NO_WRITE, ATTR_TRANSLATED, DMA_DONE, NO_PASID } from '../../host/pci/dma-port.js';
import { Atc, ATC_READ, ATC_WRITE } from '../../host/pci/hardware/atc.js';
import type { Process } from '../../host/process.js';
import { DmaInsideContainers } from '../../harness/checkers/containers.js';
import { CheckerSet } from '../../harness/checkers/invariant.js';
import { TranslationsForgotten } from '../../harness/checkers/translations.js';
import { ContainerHandle, GroupHandle, type VfioClient } from '../../vfio/client/index.js';
import { DeviceFile } from '../../vfio/core/index.js';
import { PCI_CONFIG_REGION, REGION_STRIDE } from '../../vfio/device.js';
import { VFIO_DEVICE_RESET } from '../../vfio/uapi/index.js';
import { PassthroughMachine } from './machine.js';
import { uuidOf } from './runner.js';

const PAGES = 24;
const THREADS = 3;
const CALLS = 14;
const MINUTE_NS = 60_000_000_000;
const VFIO_FUNCTIONS = ['0000:00:01.0', '0000:00:02.0', '0000:00:02.1', '0000:00:04.0', '0000:00:07.0'];
const PLUGGABLE = ['0000:00:01.0', '0000:00:03.0', '0000:00:04.0', '0000:00:07.0'];
const PARENTS = { '0000:00:03.0': 'aux', '0000:00:05.0': 'plain' } as const;

/** Calls of threads; those that come often stand often. */
const CALL_KINDS = [
  'open container', 'open group', 'open group', 'set container', 'set container', 'set iommu', 'get device', 'get device', 'use', 'use', 'use',
  'map', 'map', 'map', 'map', 'map', 'unmap', 'unmap', 'unmap all', 'bind', 'bind', 'unbind', 'unset container', 'close', 'close', 'reset', 'renew', 'renew', 'fork',
] as const;

interface Program {
  readonly process: Process;
  readonly client: VfioClient;
  readonly memory: number;
  /** What its threads have mapped, as far as they know. */
  readonly mapped: { readonly iova: number; readonly sizeBytes: number }[];
}

export interface InterleavedReport {
  /** What must not be, in words. */
  readonly wrong: readonly string[];
  readonly counts: { calls: number; refused: number; dmas: number; reached: number; killed: number; plugged: number; checked: number };
}

export class Interleaved {
  readonly machine: PassthroughMachine;
  readonly counts = { calls: 0, refused: 0, dmas: 0, reached: 0, killed: 0, plugged: 0, checked: 0 };
  private readonly wrong: string[] = [];
  private readonly random: Random;
  private readonly checkers: CheckerSet;
  private readonly atcs = new Map<string, Atc>();
  private readonly buffer = new Uint8Array(64);
  private programs = 0;
  private pasids = [1];
  /** Page of the last mapping that a thread was interested in. */
  private focus = 0;

  constructor(seed: number, defects: readonly string[] = []) {
    this.random = new Random(seed);
    const machine = (this.machine = new PassthroughMachine({ watchDma: true, defects, type1: { dmaEntryLimit: 12 } }));
    const sources = new Map([...machine.functions].map(([bdf, fn]) => [machine.trace.intern(bdf), fn.requesterId]));
    const translations = new TranslationsForgotten();
    this.checkers = new CheckerSet(machine.trace, [translations, new DmaInsideContainers((name) => sources.get(name), translations)]);
    for (const [bdf, fn] of machine.functions) {
      const atc = new Atc({ entries: 64 });
      this.atcs.set(bdf, atc);
      // what a reset forgets, a completion does not bring back: this device asks anew each time
      fn.listen((change) => { if (change === 'reset' || change === 'removed' || (change === 'ats' && !fn.atsEnabled)) atc.clear(); });
      machine.clients.set(bdf, {
        invalidate: (tag, page, pages, pasid, global) => {
          atc.invalidate(page, pages, pasid, global);
          machine.clock.post(50 + this.random.below(600), () => fn.port.invalidateCompletion(tag));
        },
      });
    }
  }

  run(): InterleavedReport {
    const { machine, random } = this;
    const { scheduler, clock, parents } = machine;
    try {
      machine.run(this.base());
      for (const parent of Object.values(parents)) parent.pause = () => sleep(clock, random.below(3_000));
      for (let i = 0; i < 3; i++) this.start();
      for (const [name, steps] of [['drivers', this.drivers()], ['mediated devices', this.mediated()], ['parent', this.vendorParent()], ['vendor', this.vendor()], ['slots', this.slots()]] as const) scheduler.spawn(name, this.watched(name, steps));
      if (clock.run({ untilNs: clock.now + MINUTE_NS }) !== 'idle') this.say('the machine does not come to rest');
      this.wrong.push(...scheduler.deadlockReport());
      for (const parent of Object.values(parents)) parent.pause = undefined;
      if (this.wrong.length === 0) {
        machine.run(this.cleanUp());
        clock.run({ untilNs: clock.now + MINUTE_NS });
        this.checkBooks();
        this.checkUsable();
      }
    } catch (error) {
      this.say(error instanceof Error ? (error.stack ?? error.message) : String(error));
    }
    for (const { status, violations, checked } of this.checkers.finish()) {
      this.counts.checked += checked;
      if (status !== 'ok') this.wrong.push(...violations);
    }
    return { wrong: this.wrong, counts: this.counts };
  }

  private say(what: string): void {
    this.wrong.push(`${this.machine.clock.now} ns: ${what}`);
  }

  /** A refusal is an answer; anything else is a bug. */
  private *watched(name: string, steps: Steps<unknown>, process?: Process): Steps {
    try {
      yield* steps;
    } catch (error) {
      // memory of a process that has ended is gone
      if (process !== undefined && process.state !== 'running') return;
      if (!isErrno(error)) this.say(`${name}: ${error instanceof Error ? error.stack : String(error)}`);
      this.counts.refused++;
    }
  }

  /** Moments and eternities: what happens inside of a call, between calls, and during a reset. */
  private *pause(): Steps {
    const { random, machine } = this;
    const scale = random.below(10);
    yield* sleep(machine.clock, random.below(scale < 6 ? 2_500 : scale < 9 ? 200_000 : 150_000_000));
  }

  // --- the scene -----------------------------------------------------------------------------------------------------

  private *base(): Steps {
    const { machine } = this;
    const { mdevs, parents, drivers } = machine;
    for (const [bdf, driver] of Object.entries(PARENTS)) if (drivers.driverOf(machine.device(bdf)) === undefined) yield* machine.bindDriver(bdf, driver);
    if (!mdevs.parents.some(({ device }) => device === parents.vendor.device)) mdevs.registerParent(parents.vendor.device, parents.vendor);
    for (const bdf of VFIO_FUNCTIONS) {
      const bound = drivers.driverOf(machine.device(bdf));
      if (bound !== undefined && bound.name !== 'vfio-pci') yield* drivers.unbind(bound.name, machine.device(bdf));
      if (bound?.name !== 'vfio-pci') yield* machine.bindDriver(bdf, 'vfio-pci');
    }
  }

  /** A program with its threads, and its end. */
  private start(forked?: Process): void {
    const { machine, random } = this;
    const { scheduler } = machine;
    const name = `program ${++this.programs}`;
    const process = forked ?? machine.process(name, random.chance(0.4) ? { memlockLimitPages: 10 } : {});
    const program: Program = { process, client: machine.clientOf(process), memory: forked === undefined ? machine.run(layOut(process)) : MEMORY_OF.get(forked)!, mapped: [] };
    MEMORY_OF.set(process, program.memory);
    for (let i = 0; i < THREADS; i++) scheduler.spawn(`${name}, thread ${i}`, this.thread(program));
    scheduler.spawn(`end of ${name}`, this.killer(process));
  }

  private *thread(program: Program): Steps {
    const { random } = this;
    for (let i = 0; i < CALLS && program.process.state === 'running'; i++) {
      yield* this.pause();
      if (program.process.state !== 'running') return;
      this.counts.calls++;
      const kind = random.pick(CALL_KINDS);
      yield* this.watched(`${program.process.name}: ${kind}`, this.oneCall(program, kind), program.process);
    }
  }

  private *killer(process: Process): Steps {
    const { random, machine } = this;
    yield* sleep(machine.clock, random.chance(0.5) ? random.below(2_000_000) : random.below(900_000_000));
    this.counts.killed++;
    yield* process.exit();
  }

  // --- a thread's calls ----------------------------------------------------------------------------------------------

  private *oneCall(program: Program, kind: (typeof CALL_KINDS)[number]): Steps<unknown> {
    const { random, machine } = this;
    const { process, client, memory } = program;
    const container = this.pick(process, (name) => name === '/dev/vfio/vfio'), group = this.pick(process, (name) => /^\/dev\/vfio\/\d+$/.test(name));
    const device = this.pick(process, (name) => name.startsWith('[vfio-device]'));
    const containers = container === undefined ? undefined : new ContainerHandle(client.calls, container), groups = group === undefined ? undefined : new GroupHandle(client.calls, group);
    switch (kind) {
      case 'open container': return client.openContainer();
      case 'open group': return client.openGroup(random.pick(machine.vfio.groupIds));
      case 'set container': return container === undefined ? undefined : yield* groups?.setContainer(container) ?? nothing();
      case 'set iommu': return yield* containers?.setIommu(random.pick(['type1v2', 'type1v2', 'type1', 'nesting'])) ?? nothing();
      case 'get device': return groups === undefined ? undefined : yield* this.openDevice(process, groups);
      case 'use': return yield* this.use(program);
      case 'map': return containers === undefined ? undefined : yield* this.map(program, containers);
      case 'unmap': return containers === undefined ? undefined : yield* this.unmap(program, containers);
      case 'unmap all':
        this.burst();
        return yield* containers?.unmapDma(0, 0, { all: true }) ?? nothing();
      case 'bind': return yield* containers?.bind() ?? nothing();
      case 'unbind': return yield* containers?.unbind() ?? nothing();
      case 'unset container':
        this.burst();
        return yield* groups?.unsetContainer() ?? nothing();
      case 'close': return yield* this.close(process);
      case 'reset': return device === undefined ? undefined : yield* process.ioctl(device, VFIO_DEVICE_RESET, 0);
      case 'renew': return yield* process.mm.madviseDontNeed(memory + random.below(PAGES - 2) * 4096, random.between(1, 2) * 4096);
      case 'fork': return yield* this.fork(program);
    }
  }

  private pick(process: Process, kind: (name: string) => boolean): number | undefined {
    const fds = process.descriptors().filter((fd) => kind(process.file(fd).name));
    return fds.length === 0 ? undefined : this.random.pick(fds);
  }

  /** From nothing to mapped memory, with others in between. */
  private *use(program: Program): Steps {
    const { random } = this;
    const { process, client } = program;
    const existing = this.pick(process, (name) => name === '/dev/vfio/vfio');
    const container = existing === undefined || random.chance(0.4) ? client.openContainer() : new ContainerHandle(client.calls, existing);
    const group = this.openSomeGroup(client);
    if (group === undefined) return;
    yield* group.setContainer(container);
    yield* this.watched('SET_IOMMU', container.setIommu('type1v2'), process);
    for (let i = random.below(4); i > 0; i--) yield* this.watched('MAP', this.map(program, container), process);
    yield* this.openDevice(process, group);
  }

  private *map({ memory, mapped }: Program, container: ContainerHandle): Steps {
    const { random } = this;
    const iova = random.below(16) * 4096, sizeBytes = random.between(1, 4) * 4096;
    this.focus = iova / 4096;
    yield* container.mapDma({ iova, vaddr: memory + random.below(PAGES - 4) * 4096, sizeBytes, write: random.chance(0.8) });
    mapped.push({ iova, sizeBytes });
    this.burst();
  }

  /** Mostly of what was mapped, in this container or another; with the memory behind it given back before. */
  private *unmap({ mapped, memory, process }: Program, container: ContainerHandle): Steps {
    const { random } = this;
    const { iova, sizeBytes } = mapped.length > 0 && random.chance(0.85) ? random.pick(mapped) : { iova: random.below(16) * 4096, sizeBytes: 4096 };
    this.focus = iova / 4096;
    this.burst();
    yield* sleep(this.machine.clock, random.below(500));
    if (random.chance(0.2)) yield* process.mm.madviseDontNeed(memory, PAGES * 4096);
    yield* container.unmapDma(iova, sizeBytes);
  }

  /** Most are somebody else's. */
  private openSomeGroup(client: VfioClient): GroupHandle | undefined {
    for (let i = 0; i < 5; i++) {
      try {
        return client.openGroup(this.random.pick(this.machine.vfio.groupIds));
      } catch (error) {
        if (!isErrno(error)) throw error;
      }
    }
    return undefined;
  }

  private *openDevice(process: Process, group: GroupHandle): Steps {
    const { random, machine } = this;
    const id = Number(process.file(group.fd).name.slice('/dev/vfio/'.length));
    const names = machine.vfio.group(id)?.devices.map(({ name }) => name) ?? [];
    if (names.length === 0) return;
    const { fd } = yield* group.getDevice(random.pick(names));
    const file = process.file(fd);
    if (file instanceof DeviceFile && file.name.includes(':') && random.chance(0.8)) file.write(PCI_CONFIG_REGION * REGION_STRIDE + 4, Uint8Array.of(4, 0));
    this.burst();
  }

  private *close(process: Process): Steps {
    const fds = process.descriptors();
    this.burst();
    if (fds.length > 0) yield* process.close(this.random.pick(fds));
  }

  private *fork({ process, memory }: Program): Steps {
    if (this.programs > 6) return;
    const child = yield* this.machine.fork(process, `${process.name}'s child`);
    MEMORY_OF.set(child, memory);
    this.start(child);
  }

  // --- the administrator and the vendor ------------------------------------------------------------------------------

  private *drivers(): Steps {
    const { random, machine } = this;
    const { drivers } = machine;
    for (let i = 0; i < 10; i++) {
      yield* this.pause();
      const bdf = random.pick([...VFIO_FUNCTIONS, ...Object.keys(PARENTS)]), device = machine.device(bdf);
      const bound = drivers.driverOf(device);
      const own = PARENTS[bdf as keyof typeof PARENTS] ?? 'vfio-pci';
      yield* this.watched('drivers', bound === undefined ? machine.bindDriver(bdf, random.chance(0.3) ? 'host' : own) : drivers.unbind(bound.name, device));
    }
  }

  private *mediated(): Steps {
    const { random, machine } = this;
    const { mdevs, parents } = machine;
    for (let i = 0; i < 25; i++) {
      yield* this.pause();
      const parent = random.pick([parents.aux, parents.aux, parents.plain, parents.vendor]), uuid = uuidOf(random.between(1, 5));
      const steps = random.chance(0.7) ? mdevs.create(parent.device, `${parent.driver}-1`, uuid) : mdevs.remove(uuid);
      // several at once: nobody serializes them (C15)
      machine.scheduler.spawn(`mdev ${uuid.slice(-1)}`, this.watched('mediated devices', steps));
    }
  }

  /** Functions are pulled out while they are in use, and come back. */
  private *slots(): Steps {
    const { random, machine } = this;
    for (let i = random.below(3); i > 0; i--) {
      yield* sleep(machine.clock, random.below(300_000_000));
      const bdf = random.pick(PLUGGABLE);
      this.burst();
      yield* this.watched('unplug', machine.unplug(bdf));
      yield* this.pause();
      yield* this.watched('plug', machine.plug(bdf));
      this.counts.plugged++;
    }
  }

  private *vendorParent(): Steps {
    const { machine } = this;
    const { mdevs, parents } = machine;
    for (let i = 0; i < 3; i++) {
      yield* sleep(machine.clock, this.random.below(200_000_000));
      yield* this.watched('parent', mdevs.unregisterParent(parents.vendor.device));
      yield* this.pause();
      if (!mdevs.parents.some(({ device }) => device === parents.vendor.device)) mdevs.registerParent(parents.vendor.device, parents.vendor);
    }
  }

  /** Pins and unpins what it likes, for devices that are open; what is unmapped it gives back when it is told. */
  private *vendor(): Steps {
    const { random, machine } = this;
    for (let i = 0; i < 60; i++) {
      yield* this.pause();
      for (const device of machine.parents.vendor.live.values()) {
        if (!device.opened) continue;
        if (random.chance(0.3) && device.pins.size > 0) device.unpin([random.pick([...device.pins.keys()])]);
        else yield* this.watched('vendor', device.pin(Array.from({ length: random.between(1, 3) }, () => random.below(16) * 4096), random.pick([1, 3])));
      }
    }
  }

  // --- DMA -----------------------------------------------------------------------------------------------------------

  /** Devices are busy for the next microseconds. */
  private burst(): void {
    const { clock, mdevs, vfio } = this.machine;
    this.pasids = [1, 2, 3];
    for (const mdev of mdevs.devices) {
      const pasid = vfio.pasidOf(mdev);
      if (pasid !== undefined) this.pasids.push(pasid, pasid);
    }
    for (let i = 0; i < 16; i++) clock.post(i * 150, this.access);
  }

  private readonly access = (): void => {
    const { random, machine, buffer, counts } = this;
    for (let i = 0; i < 4; i++) {
      const masters = [...machine.functions].filter(([, { busMaster }]) => busMaster);
      if (masters.length === 0) return;
      const [bdf, fn] = random.pick(masters);
      const { port } = fn, atc = this.atcs.get(bdf)!;
      const pasid = random.chance(0.5) ? NO_PASID : random.pick(this.pasids), page = random.chance(0.7) ? this.focus : random.below(20), write = random.chance(0.4);
      counts.dmas++;
      if (!fn.atsEnabled || random.chance(0.5)) {
        const status = write ? port.write(page, 64, buffer, 0, 16, pasid, 0) : port.read(page, 64, buffer, 0, 16, pasid, 0);
        if (status === DMA_DONE) counts.reached++;
        continue;
      }
      let entry = atc.lookup(page, pasid, false);
      if (entry < 0) {
        if (port.translate(page, pasid, write ? 0 : ATTR_NO_WRITE) !== DMA_DONE || !port.translation.read) continue;
        atc.insert(page, pasid, false, port.translation);
        entry = atc.lookup(page, pasid, false);
      }
      if ((atc.flagsAt(entry) & (write ? ATC_WRITE : ATC_READ)) === 0) continue;
      const at = atc.pageAt(entry, page);
      const status = write ? port.write(at, 64, buffer, 0, 16, NO_PASID, ATTR_TRANSLATED) : port.read(at, 64, buffer, 0, 16, NO_PASID, ATTR_TRANSLATED);
      if (status === DMA_DONE) counts.reached++;
    }
  };

  // --- the end -------------------------------------------------------------------------------------------------------

  private *cleanUp(): Steps {
    const { machine } = this;
    for (const { name } of machine.mdevs.devices) yield* machine.mdevs.remove(name);
    yield* this.base();
  }

  private checkBooks(): void {
    const { machine } = this;
    const { frames, core, type1, scheduler } = machine;
    const books = { pinned: frames.pinnedPages, user: frames.framesOf('user'), ...core.usage, ...type1.usage, violations: type1.counters.violations, mdevs: machine.mdevs.devices.length };
    for (const [what, left] of Object.entries(books)) if (left !== 0) this.say(`${left} ${what} are left`);
    this.wrong.push(...lockInversions(scheduler), ...scheduler.deadlockReport());
    for (const parent of Object.values(machine.parents)) if (parent.types[0]!.availableInstances() !== 3) this.say(`${parent.driver} has ${parent.types[0]!.availableInstances()} instances of 3`);
    for (const bdf of VFIO_FUNCTIONS) {
      const group = machine.core.groupOf(machine.device(bdf));
      if (group.ownerCount !== 0 || group.domain?.type !== 'dma') this.say(`the group of ${bdf} is still somebody's`);
    }
  }

  /** A new program gets every group, as if nothing had been. */
  private checkUsable(): void {
    const { machine } = this;
    const process = machine.process('last'), client = machine.clientOf(process);
    const memory = machine.run(layOut(process));
    const container = client.openContainer();
    for (const id of machine.vfio.groupIds) {
      machine.run(client.openGroup(id).setContainer(container));
      if (id === machine.vfio.groupIds[0]) machine.run(container.setIommu('type1v2'));
    }
    machine.run(container.mapDma({ iova: 0, vaddr: memory, sizeBytes: 4096 }));
    for (const bdf of VFIO_FUNCTIONS) {
      machine.device(bdf).setMaster(true);
      if (machine.functions.get(bdf)!.port.read(0, 0, this.buffer, 0, 4, NO_PASID, 0) !== DMA_DONE) this.say(`${bdf} does not reach its container`);
    }
    machine.run(process.exit());
    if (machine.frames.pinnedPages !== 0) this.say('the last program left pins');
  }
}

/** A fork's memory lies where its parent's does. */
const MEMORY_OF = new WeakMap<Process, number>();

function* layOut({ mm }: Process): Steps<number> {
  const memory = yield* mm.mmap(PAGES * 4096);
  yield* mm.fill(memory, 7, PAGES * 4096);
  return memory;
}

function* nothing(): Steps {}
