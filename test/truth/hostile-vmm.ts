/**
 * The other attack: a process of the host that calls VFIO with any numbers and any bytes: records that are short, torn
 * by the end of mapped memory, or full of huge counts; descriptors closed, of the wrong kind, inherited by fork; several
 * calls at once. What it gets is an answer or an errno, never anything else.
 */
import { FLAG, OPCODE } from '../../devices/dsa/spec/descriptor.js';
import { encodeDescriptor } from '../../devices/dsa/spec/encode.js';
import { EventFd } from '../../host/eventfd.js';
import type { Process } from '../../host/process.js';
import { isErrno } from '../../sim/errno.js';
import type { Struct } from '../../sim/layout.js';
import type { AccessSize, Mmio } from '../../sim/mmio.js';
import type { Random } from '../../sim/random.js';
import type { Steps, Task } from '../../sim/task.js';
import { SegmentationFault } from '../../host/mm/mm.js';
import { Container } from '../../vfio/core/container.js';
import { DeviceFile } from '../../vfio/core/device-file.js';
import { GroupFile } from '../../vfio/core/group.js';
import { REGION_STRIDE } from '../../vfio/device.js';
import { MigrationDataFile } from '../../vfio/migration/data-file.js';
import * as uapi from '../../vfio/uapi/index.js';
import { LOOT, SIZES, type HostileMachine, type Loot } from './hostile-machine.js';

const PAGE = 4096;
/** Pages for records; some of them are taken away, or made read-only. */
const ARENA = 48;
/** Pages to map for devices. */
const HEAP = 64;
const CONTAINER = [
  uapi.VFIO_GET_API_VERSION, uapi.VFIO_CHECK_EXTENSION, uapi.VFIO_SET_IOMMU, uapi.VFIO_IOMMU_GET_INFO, uapi.VFIO_IOMMU_MAP_DMA, uapi.VFIO_IOMMU_MAP_DMA, uapi.VFIO_IOMMU_MAP_DMA,
  uapi.VFIO_IOMMU_UNMAP_DMA, uapi.VFIO_IOMMU_DIRTY_PAGES, uapi.VFIO_IOMMU_BIND, uapi.VFIO_IOMMU_UNBIND, uapi.VFIO_IOMMU_ENABLE,
];
const GROUP = [uapi.VFIO_GROUP_GET_STATUS, uapi.VFIO_GROUP_SET_CONTAINER, uapi.VFIO_GROUP_SET_CONTAINER, uapi.VFIO_GROUP_UNSET_CONTAINER, uapi.VFIO_GROUP_GET_DEVICE_FD, uapi.VFIO_GROUP_GET_DEVICE_FD];
const DEVICE = [
  uapi.VFIO_DEVICE_GET_INFO, uapi.VFIO_DEVICE_GET_REGION_INFO, uapi.VFIO_DEVICE_GET_IRQ_INFO, uapi.VFIO_DEVICE_SET_IRQS, uapi.VFIO_DEVICE_SET_IRQS, uapi.VFIO_DEVICE_RESET,
  uapi.VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, uapi.VFIO_DEVICE_PCI_HOT_RESET, uapi.VFIO_DEVICE_IOEVENTFD, uapi.VFIO_DEVICE_FEATURE, uapi.VFIO_DEVICE_FEATURE, uapi.VFIO_DEVICE_FEATURE,
];
const HUGE: readonly bigint[] = [1n << 31n, (1n << 31n) - 1n, 0xffff_ffffn, 0xffff_f000n, 1n << 32n, 1n << 40n, 1n << 46n, 1n << 47n, (1n << 47n) - 4096n, 1n << 52n, 1n << 53n, (1n << 53n) + 4096n, 1n << 63n, (1n << 64n) - 4096n, (1n << 64n) - 1n];

/** One of the processes, with what it knows of. */
interface Attacker {
  readonly process: Process;
  readonly arena: number;
  readonly heap: number;
}

export class HostileVmm {
  readonly processes: Attacker[] = [];
  /** Answers by errno, and how many calls went well. */
  readonly answers = new Map<string, number>();
  private readonly machine: HostileMachine;
  private readonly random: Random;
  private tasks: Task<unknown>[] = [];
  private windows: Mmio[] = [];
  private forks = 0;
  /** Calls that were refused in this step. */
  private readonly refused: string[] = [];
  private readonly names: readonly string[];
  private readonly loot: readonly { readonly loot: Loot; readonly group: number; readonly name: string }[];

  /** @param targets devices that it goes for */
  constructor(machine: HostileMachine, targets: readonly Loot[] = LOOT) {
    this.machine = machine;
    this.random = machine.random;
    this.loot = machine.loot().filter(({ loot }) => targets.includes(loot));
    this.names = this.loot.map(({ name }) => name);
    const process = machine.machine.scenario.world.newProcess('hostile', 2 ** 20);
    const { mm } = process;
    this.processes.push({ process, arena: machine.run(mm.mmap(ARENA * PAGE)), heap: machine.run(mm.mmap(HEAP * PAGE)) });
    machine.run(mm.munmap(this.processes[0]!.arena + 7 * PAGE, PAGE));
    machine.run(mm.mprotect(this.processes[0]!.arena + 11 * PAGE, PAGE, 1));
  }

  /** One call, which ends before this returns unless calls overlap. @param overlapping several at once */
  step(overlapping: boolean): void {
    const { random, machine } = this;
    const attacker = random.pick(this.processes.filter(({ process }) => process.state === 'running'));
    const before = overlapping ? '' : this.books();
    this.refused.length = 0;
    const calls: Steps[] = [this.guarded(this.call(attacker))];
    while (overlapping && calls.length < 4 && random.chance(0.4)) calls.push(this.guarded(this.call(random.pick(this.processes))));
    const tasks = calls.map((steps) => machine.host.scheduler.spawn('hostile', steps, { joined: true }) as Task<unknown>);
    this.tasks.push(...tasks);
    if (overlapping && random.chance(0.5)) machine.wait(random.below(3000));
    else this.settle();
    if (!overlapping && this.refused.length > 0 && this.books() !== before) throw new Error(`${this.refused.join()} changed ${before} to ${this.books()}`);
  }

  /** What a refusal leaves as it is. (Binds end by themselves some time after their process.) */
  private books(): string {
    const { vfio, type1 } = this.machine.host.passthrough;
    const { containers, mappings, domains } = type1.usage;
    return JSON.stringify([
      containers, mappings, domains, vfio.groupIds.map((id) => [id, vfio.group(id)!.container?.id]), this.processes.map(({ process }) => [process.pid, process.descriptors()]),
    ]);
  }

  /** Every call has ended. */
  settle(): void {
    const { clock } = this.machine.host;
    clock.run({ stop: () => this.tasks.every(({ ended }) => ended) });
    for (const task of this.tasks) if (!task.ended) throw new Error(`a call did not end: ${this.machine.machine.deadlockReport().join('; ')}`);
    for (const task of this.tasks) if (task.state === 'failed') throw task.error;
    this.tasks = [];
  }

  /** All of the processes are killed in the middle of their calls, also those that a call is just about to fork. */
  exit(): void {
    for (const { process } of this.processes) this.machine.run(process.exit());
    this.settle();
    for (const { process } of this.processes) this.machine.run(process.exit());
  }

  private count(answer: string): void {
    this.answers.set(answer, (this.answers.get(answer) ?? 0) + 1);
  }

  /** A refusal is an answer; a load or store of the process's own may fault. */
  private *guarded(steps: Steps<string>): Steps {
    try {
      this.count(`${yield* steps} ok`);
    } catch (error) {
      if (isErrno(error)) this.count(error.code);
      else if (error instanceof SegmentationFault) this.count('SIGSEGV');
      else throw error;
    }
  }

  private *call(attacker: Attacker): Steps<string> {
    const { random, machine } = this;
    const { process } = attacker;
    const { vfio } = machine.host.passthrough;
    switch (random.below(40)) {
      case 0: vfio.openContainer(process); return 'open container';
      case 1: case 2: vfio.openGroup(process, random.chance(0.9) ? random.pick(this.loot).group : random.below(40)); return 'open group';
      case 3: yield* process.close(random.chance(0.6) ? random.below(60) : this.descriptor(process)); return 'close';
      case 4: process.open(new EventFd(machine.host.scheduler, 'hostile')); return 'eventfd';
      case 5: return yield* this.fork(attacker);
      case 6: return yield* this.exitOne(attacker);
      case 7: case 8: case 9: return this.access(process);
      case 10: return yield* this.stream(process);
      case 11: return yield* this.changeMemory(attacker);
      case 12: return this.window();
      case 13: return yield* this.assemble(attacker);
      case 14: case 15: case 16: case 17: return this.drive(process);
      case 18: return yield* this.wire(attacker);
      case 19: return yield* this.log(attacker);
      default: return yield* this.ioctl(attacker);
    }
  }

  /** Sets a device to work on what is mapped, or is not mapped any more. */
  private drive(process: Process): string {
    const { random } = this;
    const device = this.anyDevice(process);
    if (device === undefined) return 'no device';
    const { file, loot } = device;
    const store = (region: number, at: number, ...words: number[]): void => void file.write(region * REGION_STRIDE + at, uapi.bytesOf(words));
    const iova = (): number => random.below(40) * PAGE + (random.chance(0.7) ? 0 : random.below(PAGE));
    store(7, 4, 6);
    switch (loot) {
      case 'tty':
        store(random.below(2), 0x108, iova(), 0, random.below(0x4000), random.below(0x4000), iova(), 0, random.pick([1, 1, 1, 3, 2]));
        break;
      case 'edu0':
        store(0, random.pick([0x60, 0x64]), random.below(4));
        for (const [at, value] of [[0x80, iova()], [0x88, 0x4_0000], [0x90, random.below(0x1001)], [0x98, random.pick([1, 5])]] as const) store(0, at, value);
        break;
      default: {
        if (random.chance(0.6)) store(0, 0xa0, (random.pick([1, 6, 6, 2, 3, 4, 5, 7, 8, 9, 10]) << 20) | random.below(2));
        const portal = file.mmap(2 * REGION_STRIDE + (loot === 'dsa1' ? 0 : PAGE), PAGE);
        this.windows.push(portal);
        const bytes = encodeDescriptor({
          opcode: random.pick([OPCODE.MEMMOVE, OPCODE.MEMFILL, OPCODE.NOOP, OPCODE.DRAIN, OPCODE.BATCH]), source: iova() & ~63, destination: iova(), size: random.below(0x2000), completion: iova() & ~31,
          flags: random.chance(0.3) ? FLAG.RCI : 0, pasid: random.below(8),
        });
        // its processor has no PASID for it: an ENQCMD is #GP
        portal.write64(0, bytes);
      }
    }
    return 'drive';
  }

  /** Interrupts of every kind, signals that lead to signals. */
  private *wire(attacker: Attacker): Steps<string> {
    const { random } = this;
    const device = this.anyDevice(attacker.process);
    if (device === undefined) return 'no device';
    const fd = device.fd, count = device.loot === 'dsa1' ? 9 : 1, index = random.pick([0, 0, 1, 2, 3, 4]);
    const action = index === 0 ? random.pick([32, 32, 16, 8]) : 32;
    const page = attacker.arena;
    const fds = Array.from({ length: count }, () => this.eventfd(attacker.process));
    yield* attacker.process.mm.write(page, uapi.bytesOf(uapi.concatWords(uapi.IRQ_SET.encode({ argsz: 20 + count * 4, flags: 4 | action, index, start: 0, count }), fds)));
    yield* attacker.process.ioctl(fd, uapi.VFIO_DEVICE_SET_IRQS, page);
    return 'wire';
  }

  /** A log of DMA writes over ranges that are whole pages. */
  private *log(attacker: Attacker): Steps<string> {
    const { random } = this;
    const device = this.anyDevice(attacker.process);
    if (device === undefined) return 'no device';
    const page = attacker.arena, list = page + PAGE;
    const ranges = Array.from({ length: random.between(1, 3) }, (_, i) => uapi.FEATURE_DMA_LOGGING_RANGE.encode({ iova: BigInt(i) << 50n, length: random.chance(0.5) ? 1n << BigInt(random.between(12, 49)) : 0x2_8000n }));
    const control = uapi.FEATURE_DMA_LOGGING_CONTROL.encode({ page_size: 1n << BigInt(random.pick([12, 12, 13, 21, 30])), num_ranges: ranges.length, ranges: list });
    const report = uapi.FEATURE_DMA_LOGGING_REPORT.encode({ iova: random.below(4) * PAGE, length: 1n << BigInt(random.between(12, 52)), page_size: 1n << BigInt(random.between(12, 40)), bitmap: list });
    const [feature, how, body] = random.pick([[6, 2, control], [7, 2, new Uint32Array(0)], [8, 1, report], [8, 1, report]] as const);
    yield* attacker.process.mm.write(list, uapi.bytesOf(uapi.concatWords(...ranges)));
    yield* attacker.process.mm.write(page, uapi.bytesOf(uapi.concatWords(uapi.DEVICE_FEATURE.encode({ argsz: 8 + body.length * 4, flags: feature | (how << 16) }), body)));
    yield* attacker.process.ioctl(device.fd, uapi.VFIO_DEVICE_FEATURE, page);
    return 'log';
  }

  private anyDevice(process: Process): { readonly fd: number; readonly file: DeviceFile; readonly loot: Loot } | undefined {
    const devices = process.descriptors().flatMap((fd) => {
      const file = process.file(fd);
      const known = file instanceof DeviceFile ? this.loot.find(({ name }) => file.name.includes(name)) : undefined;
      return file instanceof DeviceFile && known !== undefined ? [{ fd, file, loot: known.loot }] : [];
    });
    return devices.length === 0 ? undefined : this.random.pick(devices);
  }

  /** What makes the rest worth while: a group in a container with an IOMMU, and its device. */
  private *assemble({ process, arena }: Attacker): Steps<string> {
    const { random, machine } = this;
    const { vfio } = machine.host.passthrough;
    const { group, name } = random.pick(this.loot);
    const known = process.descriptors().find((fd) => (process.file(fd) as Partial<GroupFile>).group?.id === group);
    const groupFd = known ?? vfio.openGroup(process, group);
    const containers = process.descriptors().filter((fd) => process.file(fd) instanceof Container);
    const containerFd = containers.length > 0 && random.chance(0.6) ? random.pick(containers) : vfio.openContainer(process);
    yield* process.mm.write(arena, uapi.bytesOf([containerFd]));
    yield* this.tolerant(process.ioctl(groupFd, uapi.VFIO_GROUP_SET_CONTAINER, arena));
    yield* this.tolerant(process.ioctl(containerFd, uapi.VFIO_SET_IOMMU, random.pick([1, 3, 3, 3, 6])));
    yield* process.mm.write(arena, new TextEncoder().encode(`${name}\0`));
    yield* process.ioctl(groupFd, uapi.VFIO_GROUP_GET_DEVICE_FD, arena);
    return 'assemble';
  }

  private *tolerant(steps: Steps<unknown>): Steps {
    try {
      yield* steps;
    } catch (error) {
      if (!isErrno(error)) throw error;
    }
  }

  private *fork({ process, arena, heap }: Attacker): Steps<string> {
    if (this.processes.length > 3) return 'no fork';
    const { machine } = this;
    const child = yield* machine.machine.scenario.world.forkProcess(process, `child${this.forks++}`);
    this.processes.push({ process: child, arena, heap });
    return 'fork';
  }

  private *exitOne({ process }: Attacker): Steps<string> {
    const living = this.processes.filter((other) => other.process.state === 'running');
    const index = this.processes.findIndex((other) => other.process === process);
    if (living.length < 2 || index < 0 || this.random.chance(0.6)) return 'no exit';
    this.processes.splice(index, 1);
    yield* process.exit();
    return 'exit';
  }

  /** Mostly one that does much. */
  private descriptor(process: Process): number {
    const { random } = this;
    const open = process.descriptors();
    const kind = random.chance(0.4) ? DeviceFile : random.chance(0.5) ? Container : undefined;
    const some = kind === undefined ? [] : open.filter((fd) => process.file(fd) instanceof kind);
    if (some.length > 0) return random.pick(some);
    return open.length > 0 && random.chance(0.95) ? random.pick(open) : random.below(64) - 2;
  }

  /** pread, pwrite and mmap of a device, anywhere. */
  private access(process: Process): string {
    const { random } = this;
    const devices = process.descriptors().map((fd) => process.file(fd)).filter((file): file is DeviceFile => file instanceof DeviceFile);
    if (devices.length === 0) return 'no device';
    const file = random.pick(devices);
    const region = random.chance(0.9) ? random.pick([0, 0, 1, 2, 7, 7, 8, 6]) : random.below(2 ** 20);
    const at = random.chance(0.7) ? random.below(0x200) : random.chance(0.8) ? random.below(0x3000) : random.pick([0xfff, 0x1000, 0xfff8, 0xfffc, 0xffff, 0x1_0000, 2 ** 32, 2 ** 40 - 8]);
    const offset = region * REGION_STRIDE + at;
    const bytes = Uint8Array.from({ length: random.chance(0.9) ? random.below(17) : random.below(0x2000) }, () => random.below(256));
    if (random.chance(0.3)) file.read(offset, bytes);
    else if (random.chance(0.7)) file.write(offset, bytes);
    else this.windows.push(file.mmap(region * REGION_STRIDE + random.below(5) * PAGE, random.pick([PAGE, PAGE, 0x1_0000, 0x2_0000, random.below(0x1_0000)])));
    return 'access';
  }

  /** A mapping of registers, which may be dead by now. */
  private window(): string {
    const { random } = this;
    if (this.windows.length === 0) return 'no window';
    const window = random.pick(this.windows), size: AccessSize = random.pick(SIZES), offset = random.below(0x2000);
    const bytes = Uint8Array.from({ length: 64 }, () => random.below(256));
    switch (random.below(3)) {
      case 0: window.read(offset, size); break;
      case 1: window.write(offset, size, random.u32(), random.u32()); break;
      default: window.write64(offset, bytes);
    }
    return 'window';
  }

  /** The stream of a migration. */
  private *stream(process: Process): Steps<string> {
    const { random } = this;
    const files = process.descriptors().map((fd) => process.file(fd)).filter((file): file is MigrationDataFile => file instanceof MigrationDataFile);
    if (files.length === 0) return 'no stream';
    const file = random.pick(files);
    if (random.chance(0.5)) yield* file.read(new Uint8Array(random.below(600)));
    else yield* file.write(Uint8Array.from({ length: random.below(300) }, () => random.below(256)));
    return 'stream';
  }

  private *changeMemory({ process: { mm }, heap, arena }: Attacker): Steps<string> {
    const { random } = this;
    const at = heap + random.below(HEAP) * PAGE;
    switch (random.below(5)) {
      case 0: yield* mm.munmap(at, PAGE); break;
      case 1: yield* mm.mmap(4 * PAGE, { address: at, fixed: 'replace' }); break;
      case 2: yield* mm.mprotect(at, PAGE, random.below(4)); break;
      case 3: yield* mm.mmap(PAGE, { address: arena + random.between(16, ARENA) * PAGE, fixed: 'replace', prot: random.below(4) }); break;
      default: yield* mm.write(at, Uint8Array.of(1));
    }
    return 'memory';
  }

  private *ioctl(attacker: Attacker): Steps<string> {
    const { random } = this;
    const { process } = attacker;
    const fd = this.descriptor(process);
    const file = process.file(fd);
    const usual = file instanceof Container ? CONTAINER : file instanceof GroupFile ? GROUP : file instanceof DeviceFile ? DEVICE : [uapi.VFIO_MIG_GET_PRECOPY_INFO];
    const command = random.chance(0.92) ? random.pick(usual) : random.chance(0.7) ? 0x3b64 + random.below(30) : random.u32();
    const argument = yield* this.argument(attacker, command, file instanceof DeviceFile);
    try {
      yield* process.ioctl(fd, command, argument);
    } catch (error) {
      // what was unmapped before an address of the record turned out to be wrong stays unmapped, as in Linux
      if (isErrno(error) && command !== uapi.VFIO_IOMMU_UNMAP_DMA) this.refused.push(`${error.message} of ioctl ${command - 0x3b64}`);
      throw error;
    }
    return `ioctl ${command - 0x3b64}`;
  }

  /** A number, or the address of a record, which may end where memory does. */
  private *argument(attacker: Attacker, command: number, device: boolean): Steps<number> {
    const { random } = this;
    if (command === uapi.VFIO_SET_IOMMU || command === uapi.VFIO_CHECK_EXTENSION) return random.chance(0.9) ? random.pick([1, 3, 3, 3, 6, 9]) : random.u32();
    if (random.chance(0.03)) return Number(random.pick(HUGE));
    const bytes = random.chance(0.05) ? Uint8Array.from({ length: 128 }, () => random.below(256)) : this.record(attacker, command, device);
    // at the start of a page; or so that the record reaches into the page behind, where there may be none
    const page = attacker.arena + random.below(ARENA) * PAGE;
    const address = random.chance(0.8) ? page : page + PAGE - random.below(bytes.length + 1);
    for (let done = 0; done < bytes.length; done += 8) {
      try {
        yield* attacker.process.mm.write(address + done, bytes.subarray(done, done + 8));
      } catch (error) {
        if (!(error instanceof SegmentationFault)) throw error;
      }
    }
    return address;
  }

  /** The bytes of a record that makes sense, with some fields that do not. */
  private record(attacker: Attacker, command: number, device: boolean): Uint8Array {
    const { random } = this;
    const { process } = attacker;
    const heap = attacker.heap + random.below(HEAP) * PAGE;
    const fds = process.descriptors();
    const fd = (): number => (fds.length > 0 && random.chance(0.9) ? random.pick(fds) : random.below(50) - 3) >>> 0;
    const iova = random.chance(0.8) ? BigInt(random.below(40)) * 4096n : this.wild();
    const size = random.chance(0.8) ? BigInt(random.between(1, 16)) * 4096n : this.wild();
    switch (command) {
      case uapi.VFIO_IOMMU_GET_INFO: return device ? this.encoded(uapi.PCI_HOT_RESET_INFO, {}, 40) : this.encoded(uapi.IOMMU_TYPE1_INFO, {}, 200);
      case uapi.VFIO_IOMMU_MAP_DMA:
        if (device) return this.encoded(uapi.PCI_HOT_RESET, { count: random.below(3) }, 0, [fd(), fd()]);
        return this.encoded(uapi.DMA_MAP, { flags: random.chance(0.9) ? random.between(1, 4) : random.u32(), vaddr: random.chance(0.9) ? BigInt(heap) : this.wild(), iova, size });
      case uapi.VFIO_IOMMU_UNMAP_DMA: {
        const flags = random.chance(0.6) ? 0 : random.chance(0.8) ? random.pick([1, 1, 1, 2]) : random.u32();
        return this.encoded(uapi.DMA_UNMAP, { flags, iova: flags === 2 ? 0n : iova, size: flags === 2 ? 0n : size }, 0, uapi.BITMAP.encode({ pgsize: this.pageSize(), size: this.bitmapSize(), data: this.pointer(attacker) }));
      }
      case uapi.VFIO_IOMMU_DIRTY_PAGES:
        return this.encoded(uapi.DIRTY_BITMAP, { flags: random.chance(0.9) ? random.pick([1, 4, 4, 4, 2]) : random.u32() }, 0,
          uapi.DIRTY_BITMAP_GET.encode({ iova, size, bitmap_pgsize: this.pageSize(), bitmap_size: this.bitmapSize(), bitmap_data: this.pointer(attacker) }));
      case uapi.VFIO_IOMMU_BIND:
      case uapi.VFIO_IOMMU_UNBIND:
        return this.encoded(uapi.TYPE1_BIND, { flags: random.chance(0.9) ? 1 : random.u32() }, 0,
          uapi.TYPE1_BIND_PROCESS.encode({ flags: random.below(random.chance(0.9) ? 2 : 8), pid: random.chance(0.8) ? random.pick(this.processes).process.pid : random.u32() }));
      case uapi.VFIO_GROUP_GET_STATUS: return this.encoded(uapi.GROUP_STATUS, {});
      case uapi.VFIO_GROUP_SET_CONTAINER: return uapi.bytesOf([fd()]);
      case uapi.VFIO_GROUP_GET_DEVICE_FD: return new TextEncoder().encode(`${random.chance(0.9) ? random.pick(this.names) : 'x'.repeat(random.below(5000))}${random.chance(0.95) ? '\0' : 'y'}`);
      case uapi.VFIO_DEVICE_GET_INFO: return this.encoded(uapi.DEVICE_INFO, {});
      case uapi.VFIO_DEVICE_GET_REGION_INFO: return this.encoded(uapi.REGION_INFO, { index: this.index(9) }, 64);
      case uapi.VFIO_DEVICE_GET_IRQ_INFO: return this.encoded(uapi.IRQ_INFO, { index: this.index(5) });
      case uapi.VFIO_DEVICE_SET_IRQS: {
        const count = random.chance(0.9) ? random.below(5) : random.u32();
        const flags = random.chance(0.9) ? random.pick([1, 2, 4, 4, 4]) | random.pick([8, 16, 32, 32, 32]) : random.u32();
        return this.encoded(uapi.IRQ_SET, { flags, index: this.index(5), start: random.chance(0.8) ? 0 : random.chance(0.7) ? random.below(12) : random.u32(), count }, 0,
          Array.from({ length: 5 }, () => (random.chance(0.8) ? this.eventfd(process) : fd())));
      }
      case uapi.VFIO_DEVICE_FEATURE: return this.feature(attacker);
      default: return this.encoded(uapi.PRECOPY_INFO, {});
    }
  }

  private feature(attacker: Attacker): Uint8Array {
    const { random } = this;
    const feature = random.chance(0.95) ? random.pick([1, 2, 2, 2, 6, 7, 8, 9]) : random.below(0x1_0000);
    const how = random.chance(0.85) ? random.pick([1, 2, 2]) << 16 : random.below(16) << 16;
    const pageSize = this.pageSize();
    let body: ArrayLike<number>;
    switch (feature) {
      case 6: body = uapi.FEATURE_DMA_LOGGING_CONTROL.encode({ page_size: pageSize, num_ranges: random.chance(0.9) ? random.below(3) : random.u32(), ranges: this.pointer(attacker) }); break;
      case 8: body = uapi.FEATURE_DMA_LOGGING_REPORT.encode({
        iova: random.chance(0.7) ? BigInt(random.below(64)) * 4096n : this.wild(), length: random.chance(0.7) ? BigInt(random.below(64)) * 4096n : this.wild(), page_size: pageSize, bitmap: this.pointer(attacker),
      }); break;
      default: body = uapi.FEATURE_MIG_STATE.encode({ device_state: random.chance(0.95) ? random.below(9) : random.u32(), data_fd: random.u32() });
    }
    return this.encoded(uapi.DEVICE_FEATURE, { flags: (feature | how) >>> 0 }, 0, body);
  }

  /** argsz as it should be, or short, or huge. */
  private encoded(layout: Struct, fields: Readonly<Record<string, number | bigint>>, room = 0, behind: ArrayLike<number> = []): Uint8Array {
    const { random } = this;
    const right = layout.sizeBytes + room + behind.length * 4;
    const argsz = random.chance(0.85) ? right : random.chance(0.5) ? random.below(right) : random.chance(0.5) ? right + random.below(0x1000) : random.u32();
    const bytes = new Uint8Array(right);
    bytes.set(uapi.bytesOf(uapi.concatWords(layout.encode({ argsz, ...fields }), behind)));
    return bytes;
  }

  private wild(): bigint {
    const { random } = this;
    if (random.chance(0.6)) return random.pick(HUGE);
    return random.chance(0.5) ? ((BigInt(random.u32()) << 32n) | BigInt(random.u32())) & ~0xfffn : (BigInt(random.u32()) << 32n) | BigInt(random.u32());
  }

  private pageSize(): bigint {
    return this.random.chance(0.8) ? 4096n : this.random.chance(0.5) ? 1n << BigInt(this.random.below(64)) : this.wild();
  }

  private bitmapSize(): bigint {
    return this.random.chance(0.8) ? BigInt(this.random.between(1, 64)) * 8n : this.wild();
  }

  private pointer({ arena, heap }: Attacker): bigint {
    const { random } = this;
    if (random.chance(0.1)) return this.wild();
    const page = BigInt((random.chance(0.5) ? arena : heap) + random.below(ARENA) * PAGE);
    return random.chance(0.8) ? page : page + BigInt(random.below(PAGE));
  }

  private index(count: number): number {
    return this.random.chance(0.9) ? this.random.below(count) : this.random.u32();
  }

  private eventfd(process: Process): number {
    const eventfds = process.descriptors().filter((fd) => process.file(fd) instanceof EventFd);
    return eventfds.length === 0 ? 0xffff_ffff : this.random.pick(eventfds);
  }
}
