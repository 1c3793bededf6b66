/**
 * What passthrough costs beside the same work of the host: a guest's memory against RAM, a register that traps, memory
 * mapped into a VFIO container, DMA of a device in a user's hands against that of a process's.
 */
import type { IdxdPinnedFile, PinnedOperation } from '../../devices/dsa/driver/idxd-pinned.js';
import { FrameAllocator } from '../../host/frames.js';
import { Mm } from '../../host/mm/mm.js';
import { DMA_DONE, NO_PASID } from '../../host/pci/dma-port.js';
import { Process } from '../../host/process.js';
import { Vm } from '../../guest/kvm/vm.js';
import { GuestClock } from '../../guest/clock.js';
import type { Kernel } from '../../harness/compose/host.js';
import { createMachineSync } from '../../harness/machine.js';
import type { KernelWorld } from '../../harness/scenario/kernel-world.js';
import { VirtualClock } from '../../sim/clock.js';
import { Ram, type PhysicalMemory } from '../../sim/memory.js';
import type { Mmio } from '../../sim/mmio.js';
import { Random } from '../../sim/random.js';
import { Scheduler, type Steps } from '../../sim/task.js';
import { VfioClient, type ContainerHandle } from '../../vfio/client/index.js';
import { crowd } from '../fixtures/guest-crowd.js';
import { BenchMachine } from './machine.js';
import { throughput } from './measure.js';
import type { Row } from './report.js';

const MIB = 2 ** 20;
const KIB = 1024;
const PAGE = 4096;

// --- memory of a guest ------------------------------------------------------------------------------------------

const LOADS = 1 << 16;
const GUEST_BYTES = 64 * MIB;

/** A virtual machine with 64 MiB that its VMM has touched in order, or in random order. */
function guestMemory(scattered: boolean): { guest: PhysicalMemory; ram: PhysicalMemory } {
  const clock = new VirtualClock();
  const scheduler = new Scheduler(clock, (error) => clock.fail(error));
  const ram = new Ram(128 * MIB);
  const frames = new FrameAllocator({ memory: ram, ranges: [{ start: 0, end: 128 * MIB }] });
  const process = new Process(1, 'vmm', new Mm({ id: 1, name: 'vmm', memory: ram, frames, scheduler }));
  const { memory: guest } = new Vm({ name: 'vm0', process, memory: ram, frames, clock: new GuestClock(clock), vcpus: 1 });
  const userspaceAddr = scheduler.runNow('mmap', process.mm.mmap(GUEST_BYTES));
  guest.setSlot({ slot: 0, guestPhysAddr: 0, memorySize: GUEST_BYTES, userspaceAddr });
  const order = Array.from({ length: GUEST_BYTES / PAGE }, (_, i) => i);
  if (scattered) new Random(1).shuffle(order);
  for (const page of order) guest.store64(page * PAGE, page, 0);
  return { guest, ram };
}

function loads(memory: PhysicalMemory, addresses: Float64Array): number {
  const { value } = throughput({
    units: LOADS,
    run: () => {
      let sum = 0;
      for (let i = 0; i < LOADS; i++) {
        memory.load64(addresses[i]!);
        sum += memory.lo;
      }
      if (sum === -1) throw new Error('impossible');
    },
  });
  return value;
}

/** GB/s of reads of `size` bytes, one after the other through the guest's memory. */
function reads(memory: PhysicalMemory, size: number): number {
  const target = new Uint8Array(size);
  return throughput({
    units: GUEST_BYTES / 1e9,
    run: () => {
      for (let at = 0; at < GUEST_BYTES; at += size) if (!memory.read(at, target, 0, size)) throw new Error('not readable');
    },
  }).value;
}

function* memoryRows(): Generator<Row> {
  const group = "a guest's memory";
  for (const pages of [64, GUEST_BYTES / PAGE]) {
    const random = new Random(pages);
    const addresses = Float64Array.from({ length: LOADS }, () => random.below(pages) * PAGE + random.below(512) * 8);
    // each kind alone in fresh objects: whoever calls both would make every call slower
    const ram = loads(guestMemory(false).ram, addresses), guest = loads(guestMemory(true).guest, addresses);
    yield { group, name: `load64 in ${pages.toLocaleString('en')} pages, RAM`, value: ram, unit: '/s' };
    yield { group, name: `load64 in ${pages.toLocaleString('en')} pages, guest`, value: guest, unit: '/s', note: `${(ram / guest).toFixed(1)} times the time of RAM` };
  }
  for (const size of [4 * KIB, 64 * KIB]) {
    const ram = reads(guestMemory(false).ram, size);
    yield { group, name: `read of ${size / KIB} KiB, RAM`, value: ram, unit: 'GB/s' };
    for (const scattered of [false, true]) {
      const value = reads(guestMemory(scattered).guest, size);
      yield { group, name: `read of ${size / KIB} KiB, guest, ${scattered ? 'scattered' : 'contiguous'} frames`, value, unit: 'GB/s', note: `${(value / ram * 100).toFixed(0)} % of RAM` };
    }
  }
}

// --- a register that traps --------------------------------------------------------------------------------------

const ACCESSES = 1 << 12;

/** BAR 0 of a mediated accelerator as the guest's kernel reaches it, and of a whole one as the host's does. */
function registers(): { trapped: Mmio; direct: Mmio } {
  const machine = createMachineSync(crowd({ guests: 1, mdevs: 1, processes: 0 }), { checkers: false, traceRecords: 1024 });
  machine.run({ stopAt: { at: 'time', timeNs: 1e9 } });
  const guest = machine.scenario.guest('vm0').kernel!;
  const parent = machine.host.pci.find(machine.host.devices.models[0]!.bdf)!;
  return { trapped: guest.pci.devices[0]!.ioremap(0), direct: parent.ioremap(0) };
}

function* trapRows(): Generator<Row> {
  const group = 'a register that traps';
  const { trapped, direct } = registers();
  /** GENSTS: read by the driver, changed by nobody here. */
  const GENSTS = 0x90, GENCTRL = 0x88;
  const rate = (work: (i: number) => void): number => throughput({
    units: ACCESSES,
    run: () => {
      for (let i = 0; i < ACCESSES; i++) work(i);
    },
  }).value;
  const host = rate(() => direct.read(GENSTS, 4));
  yield { group, name: 'read by the host of the accelerator', value: host, unit: '/s' };
  yield { group, name: 'read by a guest, through VMM and VFIO, of the virtual one', value: rate(() => trapped.read(GENSTS, 4)), unit: '/s' };
  yield { group, name: 'write by a guest, the same way', value: rate((i) => trapped.write(GENCTRL, 4, i & 3)), unit: '/s' };
}

// --- copies -----------------------------------------------------------------------------------------------------

/** Copies that are under way together: as many as the queue takes. */
const AT_ONCE = 16;
const ROUNDS = 64;

/** A pass of copies of 4 KiB that one process asks its kernel's driver for, pins and interrupts included. */
function copies(kernel: Kernel, world: KernelWorld, execute: (steps: Steps) => void): () => void {
  const { process } = world.newProgram('bench');
  const { idxd } = kernel.kernelDrivers;
  const pci = kernel.pci.devices.find((device) => kernel.drivers.driverOf(device) === idxd)!;
  const wq = idxd.device(pci).wqs.find(({ options }) => options.type === 'kernel')!;
  const open: { file?: IdxdPinnedFile; from?: number } = {};
  execute((function* (): Steps {
    open.file = yield* idxd.openPinned(pci, process, wq.options.name);
    open.from = yield* process.mm.mmap(2 * AT_ONCE * PAGE);
    yield* process.mm.fill(open.from, 0xa5, 2 * AT_ONCE * PAGE);
  })());
  const { file, from } = open as Required<typeof open>;
  const operations = Array.from({ length: AT_ONCE }, (_, i): PinnedOperation => ({ kind: 'copy', from: from + i * PAGE, to: from + (AT_ONCE + i) * PAGE, sizeBytes: PAGE, pattern: 0n }));
  return () => execute((function* (): Steps {
    for (let round = 0; round < ROUNDS; round++) {
      const submissions = [];
      for (const operation of operations) submissions.push(yield* file.submit([operation]));
      for (const submission of submissions) for (const { status } of yield* submission.wait()) if (status !== 'success') throw new Error(`a copy ended with ${status}`);
    }
  })());
}

function* copyRows(): Generator<Row> {
  const topology = crowd({ guests: 1, mdevs: 1, processes: 0 });
  topology.host!.devices!.push({ model: 'dsa', name: 'own', bdf: '0000:1f:01.0', 'work-queues': [{ mode: 'dedicated', type: 'kernel', size: AT_ONCE }] });
  const machine = createMachineSync(topology, { checkers: false, traceRecords: 1024 });
  machine.run({ stopAt: { at: 'time', timeNs: 1e9 } });
  const { host, scenario } = machine, { kernel, world } = scenario.guest('vm0');
  const group = 'copies of 4 KiB by a kernel queue, 16 at once';
  for (const [name, pass] of [
    ['by the host', copies(host, scenario.world, (steps) => machine.execute('bench', steps))],
    ['by a guest on its mediated device', copies(kernel!, world!, (steps) => machine.execute('bench', steps, kernel!.scheduler))],
  ] as const) {
    const { value, samples } = throughput({ units: AT_ONCE * ROUNDS, run: pass });
    yield { group, name, value, unit: '/s', samples };
  }
}

// --- memory in a container --------------------------------------------------------------------------------------

const MAPPED = 512 * MIB;
const MAPPED_PAGES = MAPPED / PAGE;

/** The benchmark's function in the hands of a process, through vfio-pci. */
class UserDriver {
  readonly world: BenchMachine;
  readonly process: Process;
  readonly container: ContainerHandle;

  constructor(memory: string) {
    const world = (this.world = new BenchMachine({ memory, traceRecords: 1024, sva: false }));
    const { pci, passthrough, drivers } = world.machine.host;
    this.process = new Process(1, 'user', world.process('user'));
    const client = new VfioClient(passthrough.vfio, this.process);
    drivers.setDriverOverride(world.device, passthrough.vfioPci.name);
    world.do(drivers.bind(passthrough.vfioPci.name, world.device));
    this.container = client.openContainer();
    const { container } = this;
    world.do((function* (): Steps {
      const group = client.openGroup(pci.groupOf(world.device).id);
      yield* group.setContainer(container);
      yield* container.setIommu('type1v2');
      yield* group.getDevice(world.device.name);
    })());
    world.device.setMaster(true);
  }

  /** Memory with every page there: neighbours in neighbouring frames, in random frames, or 2 MiB pages. */
  touched(sizeBytes: number, how: 'contiguous' | 'scattered' | 'huge'): number {
    const { world, process: { mm } } = this;
    const address = world.do(mm.mmap(sizeBytes, how === 'huge' ? { hugeLevel: 1 } : {}));
    const step = how === 'huge' ? 512 : 1;
    const order = Array.from({ length: sizeBytes / PAGE / step }, (_, i) => i * step);
    if (how === 'scattered') new Random(1).shuffle(order);
    const byte = Uint8Array.of(1);
    for (const page of order) world.do(mm.write(address + page * PAGE, byte));
    return address;
  }

  map(iova: number, vaddr: number, sizeBytes: number): void {
    this.world.do(this.container.mapDma({ iova, vaddr, sizeBytes }));
  }

  unmap(iova: number, sizeBytes: number): void {
    if (this.world.do(this.container.unmapDma(iova, sizeBytes)) !== sizeBytes) throw new Error('not everything was unmapped');
  }
}

const LAYOUTS = { contiguous: '4 KiB pages, contiguous frames', scattered: '4 KiB pages, scattered frames', huge: '2 MiB pages' } as const;

function* containerRows(): Generator<Row> {
  for (const [how, name] of Object.entries(LAYOUTS) as [keyof typeof LAYOUTS, string][]) {
    const user = new UserDriver('2GiB');
    const { frames } = user.world.machine.host;
    const vaddr = user.touched(MAPPED, how);
    const group = 'container, map and unmap of 512 MiB', before = frames.inUse;
    user.map(0, vaddr, MAPPED);
    const tables = frames.inUse - before;
    if (frames.pinnedPages < MAPPED_PAGES) throw new Error(`${frames.pinnedPages} pages are pinned`);
    const map = throughput({ units: MAPPED_PAGES, prepare: () => user.unmap(0, MAPPED), run: () => user.map(0, vaddr, MAPPED) }, { warmUpMs: 100 });
    yield { group, name: `map, ${name}`, value: map.value, unit: '/s', samples: map.samples, note: `pages of 4 KiB; ${tables * 4} KiB of tables` };
    user.unmap(0, MAPPED);
    const unmap = throughput({ units: MAPPED_PAGES, prepare: () => user.map(0, vaddr, MAPPED), run: () => user.unmap(0, MAPPED) }, { warmUpMs: 100 });
    yield { group, name: `unmap, ${name}`, value: unmap.value, unit: '/s', samples: unmap.samples };
  }
}

// --- DMA --------------------------------------------------------------------------------------------------------

const SPAN = 32 * MIB;

/** GB/s of writes of whole requests that walk through the span. */
function dma(world: BenchMachine, firstPage: number, pasid: number, size: number): { value: number; samples: readonly number[] } {
  const source = new Uint8Array(size).fill(0xa5);
  return throughput({
    units: SPAN / 1e9,
    run: () => {
      for (let at = 0; at < SPAN / PAGE; at += size / PAGE) {
        const status = world.port.write(firstPage + at, 0, source, 0, size, pasid, 0);
        if (status !== DMA_DONE) throw new Error(`DMA ended with ${status}`);
      }
    },
  });
}

function* dmaRows(): Generator<Row> {
  const IOVA = 0x1_0000_0000;
  for (const size of [4 * KIB, 64 * KIB]) {
    const group = `DMA writes of ${size / KIB} KiB`;
    const host = new BenchMachine({ traceRecords: 1024 });
    const mm = host.process();
    const pasid = host.bind(mm);
    const address = host.do(mm.mmap(SPAN));
    for (let page = 0; page < SPAN / PAGE; page++) host.do(mm.write(address + page * PAGE, Uint8Array.of(1)));
    const process = dma(host, address / PAGE, pasid, size);
    yield { group, name: "a process's memory, shared address space", ...process, unit: 'GB/s' };
    for (const how of ['contiguous', 'huge'] as const) {
      const user = new UserDriver('1GiB');
      user.map(IOVA, user.touched(SPAN, how), SPAN);
      const assigned = dma(user.world, IOVA / PAGE, NO_PASID, size);
      yield { group, name: `the same device in a container, ${LAYOUTS[how]}`, ...assigned, unit: 'GB/s', note: `${(assigned.value / process.value * 100).toFixed(0)} % of the host's` };
    }
  }
}

export function* passthrough(): Generator<Row> {
  yield* memoryRows();
  yield* trapRows();
  yield* copyRows();
  yield* containerRows();
  yield* dmaRows();
}
