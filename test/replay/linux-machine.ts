/**
 * Our machine, doing what the recorded guest did, with the registers of the recorded unit: a kernel DMA mapping that
 * comes and goes, then a process that opens the accelerator, copies to memory nobody touched, copies and fills again,
 * unmaps the buffer, uses it once more, and closes the device or exits.
 */
import { DsaClient } from '../../devices/dsa/driver/user.js';
import type { IdxdFile } from '../../devices/dsa/driver/idxd-file.js';
import { createMachineSync, type Machine } from '../../harness/machine.js';
import type { UnitRegisters } from '../../harness/compose/settings.js';
import { Malloc } from '../../host/mm/malloc.js';
import type { PciFunctionDevice } from '../../host/pci/kernel/index.js';
import { PCI_EXT_CAP_ID_ATS, PCI_EXT_CAP_ID_PASID, PCI_EXT_CAP_ID_PRI } from '../../host/pci/spec/index.js';
import { isErrno } from '../../sim/errno.js';
import { REG } from '../../iommu/intel-vtd/spec/registers.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import type { Steps } from '../../sim/task.js';
import { BUFFER_PAGES, DSA, NVME, emptyPhases, errorHandling, type Names, type Phase, type RawEvent, type Run } from './linux-events.js';

export interface Variant {
  readonly registers: UnitRegisters;
  readonly mode: 'lazy' | 'strict' | 'passthrough';
  readonly pri: boolean;
  /** The process ends with the device open. */
  readonly exits: boolean;
  /** The unit refuses the invalidation of the kernel's DMA, or the device does not answer the one of munmap. */
  readonly breaks?: 'IQE' | 'ITE';
  /** Named defects of our driver. */
  readonly defects?: ReadonlySet<string>;
}

const GCMD_TE = 0x8000_0000;
/** Long after the flush queue's 10 ms. */
const QUIET_NS = 100_000_000;
const COPIED_BYTES = 20_000;

class Recorder {
  readonly phases = emptyPhases();
  phase: Phase | undefined = 'bring-up';
  /** The next descriptor that is handed over gets a type that does not exist. */
  spoilNext = false;
  private readonly memory: PhysicalMemory;
  private ring = { base: 0, entryBytes: 16, sizeBytes: 4096, tail: 0 };

  constructor(machine: Machine) {
    const { unit, tree: { complex } } = machine.host;
    this.memory = machine.host.memory;
    const registers = unit!;
    const read = registers.read.bind(registers), write = registers.write.bind(registers), configWrite = complex.configWrite.bind(complex);
    registers.read = (offset, size) => {
      const lo = read(offset, size);
      this.push({ kind: 'r', offset, size, value: size === 8 ? (BigInt(registers.high >>> 0) << 32n) | BigInt(lo >>> 0) : BigInt(lo >>> 0) });
      return lo;
    };
    registers.write = (offset, size, lo, hi) => {
      const value = (BigInt((hi ?? 0) >>> 0) << 32n) | BigInt(lo >>> 0);
      // only the last command of a power-off is compared: taking devices away is our machine's own care
      if (offset === REG.GCMD && this.phase === undefined && (lo & GCMD_TE) === 0) this.phase = 'power-off';
      this.push({ kind: 'w', offset, size, value });
      if (offset === REG.IQA) this.ring = { base: Number(value & ~0xfffn), entryBytes: (value & 0x800n) === 0n ? 16 : 32, sizeBytes: 4096 * 2 ** Number(value & 7n), tail: 0 };
      if (offset === REG.IQT && this.ring.base !== 0) this.takeDescriptors(lo);
      write(offset, size, lo, hi);
    };
    complex.configWrite = (bus, devfn, offset, size, value) => {
      const register = bus === 0 && devfn === DSA ? nameOf(machine, offset) : undefined;
      if (register !== undefined) this.push({ kind: 'cfg', register, value });
      configWrite(bus, devfn, offset, size, value);
    };
  }

  push(event: RawEvent): void {
    if (this.phase === undefined) return;
    this.phases[this.phase].push(event);
    if (event.kind === 'r' && event.offset === REG.GSTS && (event.value & BigInt(GCMD_TE)) !== 0n && this.phase === 'bring-up') this.phase = 'driver probe';
  }

  private takeDescriptors(tail: number): void {
    const { ring, memory } = this;
    for (; ring.tail !== tail; ring.tail = (ring.tail + ring.entryBytes) % ring.sizeBytes) {
      const words = Array.from({ length: ring.entryBytes / 8 }, (_, i) => {
        memory.load64(ring.base + ring.tail + 8 * i);
        return (BigInt(memory.hi >>> 0) << 32n) | BigInt(memory.lo >>> 0);
      });
      if (this.spoilNext) {
        this.spoilNext = false;
        memory.store(ring.base + ring.tail, 1, 0xff);
      }
      this.push({ kind: 'd', words });
    }
  }
}

/** Registers of the capabilities that the recorder named, of the accelerator. */
function nameOf(machine: Machine, offset: number): string | undefined {
  const pci = deviceOf(machine, DSA);
  if (pci === undefined) return undefined;
  const at = (id: number): number => pci.findExtCapability(id) ?? -1000;
  switch (offset) {
    case at(PCI_EXT_CAP_ID_ATS) + 6: return 'ATS_CTRL';
    case at(PCI_EXT_CAP_ID_PASID) + 6: return 'PASID_CTRL';
    case at(PCI_EXT_CAP_ID_PRI) + 4: return 'PRI_CTRL';
    case at(PCI_EXT_CAP_ID_PRI) + 0xc: return 'PRI_ALLOC_REQ';
    default: return undefined;
  }
}

function deviceOf(machine: Machine, sourceId: number): PciFunctionDevice | undefined {
  return machine.host.pci.findBySourceId(0, sourceId);
}

/** Runs the whole story. */
export function ourRun(variant: Variant): Run {
  const { registers } = variant;
  const machine = createMachineSync({
    version: 1, name: 'as-recorded', processes: [],
    host: {
      memory: '512MiB', iommu: { model: 'intel-vtd', haw: 48 }, kernel: { 'iommu-mode': variant.mode },
      devices: [
        { model: 'edu', name: 'nvme', bdf: '0000:00:03.0' },
        { model: 'dsa', name: 'dsa0', bdf: '0000:00:04.0', pri: variant.pri, engines: 1, 'work-queues': [{ mode: 'dedicated', size: 16 }] },
      ],
    },
  }, { unitRegisters: registers, checkers: false, defects: variant.defects ?? new Set() });
  const recorder = new Recorder(machine);
  machine.boot();
  settle(machine);
  recorder.phase = 'DMA unmap';
  recorder.spoilNext = variant.breaks === 'IQE';
  kernelDma(machine);
  recorder.phase = 'bind';
  const names = new Guest(machine, recorder).run(variant);
  if (variant.breaks === 'IQE') recorder.phases['DMA unmap'] = errorHandling(recorder.phases['DMA unmap']);
  recorder.phase = undefined;
  machine.run();
  return { phases: recorder.phases, names };
}

function settle(machine: Machine): void {
  machine.host.clock.run({ untilNs: machine.host.clock.now + QUIET_NS });
}

/** One page for the controller, mapped and unmapped. */
function kernelDma(machine: Machine): void {
  const { core, frames } = machine.host;
  const device = deviceOf(machine, NVME)!;
  const frame = frames.alloc('test');
  machine.execute('kernel DMA', (function* (): Steps {
    const address = yield* core.dma.dmaMap(device, frame, 4096, 'from-device');
    yield* core.dma.dmaUnmap(device, address, 4096);
  })());
  settle(machine);
  frames.free(frame);
}

class Guest {
  private readonly machine: Machine;
  private readonly recorder: Recorder;

  constructor(machine: Machine, recorder: Recorder) {
    this.machine = machine;
    this.recorder = recorder;
  }

  run({ exits, breaks }: Variant): Names {
    const { machine, recorder } = this;
    const { process } = machine.scenario.world.newProgram('dsa-test');
    const names = { domainIds: { 2: 'nvme', 3: 'dsa' }, processPasid: -1, bufferPage: 0n };
    const file = this.open(process);
    if (file === undefined) {
      this.execute(process.exit());
      return names;
    }
    const malloc = new Malloc(process.mm);
    const client = new DsaClient({
      process, file, clock: machine.host.clock, timing: machine.host.timing, blockOnFault: true,
      memalign: (alignment, size) => malloc.memalign(alignment, size), free: (address) => malloc.free(address),
    });
    const source = this.execute(malloc.malloc(1 << 16));
    this.execute(process.mm.fill(source, 7, 1 << 16));
    // one page further than an aligned place, so that the whole buffer and its touched pages need different ranges
    const place = this.execute(process.mm.mmap(4096 * 40)) + 4096;
    const aligned = Math.ceil(place / 65_536) * 65_536 + 4096;
    const buffer = { ...names, processPasid: file.pasid, bufferPage: BigInt(aligned / 4096) };
    recorder.phase = 'page requests';
    this.execute(client.memcpy(aligned, source, COPIED_BYTES));
    this.execute(client.memcpy(aligned, source, COPIED_BYTES));
    this.execute(client.fill(aligned + 8192, [0x5566_7788, 0x1122_3344], 4096));
    recorder.phase = 'munmap';
    const answers = breaks === 'ITE' ? this.silence() : () => {};
    this.execute(process.mm.munmap(aligned, Number(BUFFER_PAGES) * 4096));
    answers();
    recorder.phase = 'access after munmap';
    this.execute(client.memcpy(aligned, source, 64));
    this.untranslatedWrite(file.pasid, aligned / 4096);
    recorder.phase = 'unbind';
    this.execute(exits ? process.exit() : process.close(file.fd));
    recorder.phase = undefined;
    if (!exits) this.execute(process.exit());
    return buffer;
  }

  private open(process: Parameters<Machine['host']['kernelDrivers']['idxd']['open']>[1]): IdxdFile | undefined {
    const { machine, recorder } = this;
    try {
      const file = this.execute(machine.host.kernelDrivers.idxd.open(deviceOf(machine, DSA)!, process, 'wq0.0'));
      recorder.push({ kind: 'note', text: 'bound' });
      return file;
    } catch (error) {
      if (!isErrno(error)) throw error;
      recorder.push({ kind: 'note', text: 'refused' });

      return undefined;
    }
  }

  /** The first completion of a device-TLB invalidation from now on is lost. */
  private silence(): () => void {
    const unit = this.machine.host.unit!;
    const complete = unit.invalidateCompletion.bind(unit);
    unit.invalidateCompletion = () => {
      unit.invalidateCompletion = complete;
    };
    return () => {
      unit.invalidateCompletion = complete;
    };
  }

  /** What the recorded device did when its page was refused: it wrote all the same, without a translation. */
  private untranslatedWrite(pasid: number, page: number): void {
    this.machine.host.unit!.translate(DSA, pasid, 0, page, true);
    settle(this.machine);
  }

  private execute<T>(steps: Steps<T>): T {
    const result = this.machine.execute('test', steps);
    settle(this.machine);
    return result;
  }
}
