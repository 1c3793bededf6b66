/**
 * A controller on a bus and software that drives it by hand: registers, queues in memory built byte by byte, doorbells. There
 * is no IOMMU: DMA is physical. `NvmeDriverWorld` is a whole machine with VT-d, drivers and processes.
 */
import { VirtualClock } from '../../sim/clock.js';
import { Ram } from '../../sim/memory.js';
import type { Mmio } from '../../sim/mmio.js';
import { Random } from '../../sim/random.js';
import { Scheduler } from '../../sim/task.js';
import { Trace } from '../../sim/trace.js';
import { SystemBus, X86_INTERRUPT_WINDOW } from '../../host/system-bus.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import { Fabric } from '../../host/pci/hardware/fabric.js';
import { HoldingPort } from '../../host/pci/hardware/holding-port.js';
import { RootComplex } from '../../host/pci/hardware/root-complex.js';
import type { PciFunctionDevice } from '../../host/pci/kernel/index.js';
import { NvmeDriver } from '../../devices/nvme/driver/nvme-driver.js';
import type { NvmeServices } from '../../devices/nvme/driver/nvme-options.js';
import type { NvmeConfig } from '../../devices/nvme/hardware/controller-options.js';
import { MemoryMedium } from '../../devices/nvme/hardware/medium.js';
import { NvmeDevice } from '../../devices/nvme/hardware/nvme-device.js';
import { SvaWorld, type SvaWorldOptions } from '../fixtures/sva-world.js';

export const NVME_DEVFN = 0x18;
export const MEDIUM_BYTES = 8 * 2 ** 20;

// where the world's software keeps its queues, and a buffer
export const ASQ = 0x10_0000;
export const ACQ = 0x10_1000;
export const SQ1 = 0x11_0000;
export const CQ1 = 0x11_8000;
export const BUFFER = 0x20_0000;
export const LISTS = 0x18_0000;

export interface NvmeWorldOptions {
  readonly config?: Partial<NvmeConfig>;
  readonly defects?: readonly string[];
  readonly medium?: MemoryMedium;
  readonly seed?: number;
  /** Share of held operations. */
  readonly hold?: number;
}

/** A completion queue entry, word for word. */
export interface Cqe {
  readonly dw0: number;
  readonly sqHead: number;
  readonly sqId: number;
  readonly cid: number;
  readonly phase: number;
  /** Status code type and status code. */
  readonly status: number;
  readonly dnr: boolean;
}

interface Ring {
  readonly at: number;
  readonly size: number;
  next: number;
}

export class NvmeWorld {
  readonly clock = new VirtualClock({ eventLimit: 2_000_000 });
  readonly scheduler = new Scheduler(this.clock, (error) => this.clock.fail(error));
  readonly trace = new Trace(this.clock, 1 << 14);
  readonly ram = new Ram(64 * 1024 * 1024);
  readonly messages: { address: number; data: number }[] = [];
  readonly complex: RootComplex;
  readonly nvme: NvmeDevice;
  readonly medium: MemoryMedium;
  readonly rings = new Map<number, { sq: Ring; cq: Ring & { phase: number } }>();
  holding: HoldingPort | undefined;
  private nextCid = 0x100;

  constructor(options: NvmeWorldOptions = {}) {
    const random = new Random(options.seed ?? 1), { clock, scheduler, trace, ram } = this;
    const timing = new Timing(DEFAULT_TIMING, random.split('timing'));
    const fabric = new Fabric({
      clock, timing, memory: ram, bus: new SystemBus(), interruptWindow: X86_INTERRUPT_WINDOW, trace,
      interrupts: { message: (address, data) => void this.messages.push({ address, data }), setLine: (_line, _driver, high) => void (this.line = high) },
    });
    this.complex = new RootComplex({ fabric });
    this.medium = options.medium ?? new MemoryMedium(MEDIUM_BYTES);
    const { hold } = options;
    this.nvme = new NvmeDevice({
      name: 'nvme0', clock, scheduler, timing, trace, medium: this.medium, config: options.config ?? {}, defects: new Set(options.defects ?? []),
      ...(hold === undefined ? {} : { wrapPort: (port) => (this.holding = new HoldingPort({ port, clock, random: random.split('hold'), probability: hold, maxHoldNs: 3_000 })) }),
    });
    this.complex.insert(this.complex.addRootBus(0), NVME_DEVFN, this.nvme.function);
    this.config(4, 2, 0x0006);
  }

  /** The interrupt pin's line. */
  line = false;

  config(offset: number, size: 1 | 2 | 4, value: number): void {
    this.complex.configWrite(0, NVME_DEVFN, offset, size, value);
  }

  configRead(offset: number, size: 1 | 2 | 4): number {
    return this.complex.configRead(0, NVME_DEVFN, offset, size);
  }

  get bar(): Mmio {
    return this.nvme.function.window(0)!;
  }

  read(offset: number): number {
    return this.bar.read(offset, 4);
  }

  write(offset: number, value: number): void {
    this.bar.write(offset, 4, value);
  }

  settle(): void {
    this.clock.run();
  }

  /** MSI-X on, vector n sends data 0x40 + n to 0xfee00000. */
  enableInterrupts(): void {
    for (let vector = 0; vector < 5; vector++) {
      this.write(0x2000 + vector * 16, 0xfee0_0000);
      this.write(0x2004 + vector * 16, 0);
      this.write(0x2008 + vector * 16, 0x40 + vector);
      this.write(0x200c + vector * 16, 0);
    }
    this.config(this.nvme.function.msix!.offset + 2, 2, 0x8000);
  }

  /** Data of the messages since the last time. */
  takeMessages(): number[] {
    return this.messages.splice(0).map(({ data }) => data);
  }

  /** Admin queues of 16 entries, CC as Linux writes it; returns CSTS. */
  enable(entries = 16, cc = 0x0046_0001): number {
    this.ram.fill(ASQ, 0, 0x2000);
    this.write(0x24, (entries - 1) | ((entries - 1) << 16));
    this.bar.write(0x28, 8, ASQ, 0);
    this.bar.write(0x30, 8, ACQ, 0);
    this.rings.clear();
    this.rings.set(0, { sq: { at: ASQ, size: entries, next: 0 }, cq: { at: ACQ, size: entries, next: 0, phase: 1 } });
    this.write(0x14, cc);
    this.settle();
    return this.read(0x1c);
  }

  /** Writes an entry at the queue's tail and rings. Words 0 and 1, PRPs, words 10 on; returns the identifier. */
  submit(queue: number, opcode: number, fields: { nsid?: number; prp1?: number; prp2?: number; cdw?: readonly number[]; cid?: number; flags?: number } = {}): number {
    const { sq } = this.rings.get(queue)!, cid = fields.cid ?? this.nextCid++, at = sq.at + sq.next * 64;
    this.ram.fill(at, 0, 64);
    this.ram.store(at, 4, (opcode | (fields.flags ?? 0) | (cid << 16)) >>> 0);
    this.ram.store(at + 4, 4, fields.nsid ?? 0);
    this.address(at + 24, fields.prp1 ?? 0);
    this.address(at + 32, fields.prp2 ?? 0);
    fields.cdw?.forEach((word, i) => this.ram.store(at + 40 + 4 * i, 4, word >>> 0));
    sq.next = (sq.next + 1) % sq.size;
    this.ring(queue);
    return cid;
  }

  /** The submission queue's doorbell. */
  ring(queue: number): void {
    this.write(0x1000 + 8 * queue, this.rings.get(queue)!.sq.next);
  }

  address(at: number, value: number): void {
    this.ram.store64(at, value % 2 ** 32, Math.floor(value / 2 ** 32));
  }

  /** Completions that are there, by their phase; the head's doorbell is rung unless `keep`. */
  take(queue: number, keep = false): Cqe[] {
    const { cq } = this.rings.get(queue)!;
    const found: Cqe[] = [];
    for (;;) {
      const at = cq.at + cq.next * 16, word = this.ram.load(at + 12, 4);
      if (((word >>> 16) & 1) !== cq.phase) break;
      found.push({
        dw0: this.ram.load(at, 4), sqHead: this.ram.load(at + 8, 2), sqId: this.ram.load(at + 10, 2), cid: word & 0xffff, phase: (word >>> 16) & 1,
        status: (word >>> 17) & 0x7ff, dnr: word >>> 31 === 1,
      });
      if (++cq.next === cq.size) {
        cq.next = 0;
        cq.phase ^= 1;
      }
    }
    if (!keep && found.length > 0) this.write(0x1004 + 8 * queue, cq.next);
    return found;
  }

  /** One command, its completion. */
  command(queue: number, opcode: number, fields: Parameters<NvmeWorld['submit']>[2] = {}): Cqe {
    const cid = this.submit(queue, opcode, fields);
    this.settle();
    const found = this.take(queue);
    if (found.length !== 1 || found[0]!.cid !== cid) throw new Error(`${found.length} completions for command ${cid}`);
    return found[0]!;
  }

  /** The status of one command, with `!` when it must not be retried. */
  status(queue: number, opcode: number, fields: Parameters<NvmeWorld['submit']>[2] = {}): string {
    const { status, dnr } = this.command(queue, opcode, fields);
    return status.toString(16) + (dnr ? '!' : '');
  }

  /** I/O queues `id`, with vector `id` where messages are on. */
  createQueues(id = 1, entries = 16, sq = SQ1, cq = CQ1, vector = this.nvme.function.messageSignalled ? id : 0): void {
    this.ram.fill(cq, 0, entries * 16);
    const size = ((entries - 1) << 16) | id;
    const made = [this.status(0, 5, { prp1: cq, cdw: [size, 3 | (vector << 16)] }), this.status(0, 1, { prp1: sq, cdw: [size, 1 | (id << 16)] })];
    if (made.join() !== '0,0') throw new Error(`creating queues ${id}: ${made.join()}`);
    this.rings.set(id, { sq: { at: sq, size: entries, next: 0 }, cq: { at: cq, size: entries, next: 0, phase: 1 } });
  }

  /** Enabled, with interrupts and one pair of I/O queues. */
  started(entries = 16): this {
    this.enableInterrupts();
    this.enable();
    this.createQueues(1, entries);
    this.takeMessages();
    return this;
  }

  bytes(at: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.ram.read(at, bytes, 0, length);
    return bytes;
  }

  fill(at: number, content: Uint8Array): void {
    this.ram.write(at, content, 0, content.length);
  }

  /** What is on the medium. */
  stored(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.medium.read(offset, bytes);
    return bytes;
  }
}

export function pattern(length: number, seed = 1): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 7 + seed + (i >> 8) * 3) & 0xff);
}

export const NVME_BDF = '0000:00:03.0';

export interface NvmeDriverWorldOptions extends Partial<SvaWorldOptions> {
  readonly config?: Partial<NvmeConfig>;
  readonly medium?: MemoryMedium;
  readonly services?: Partial<NvmeServices>;
  readonly nvmeDefects?: readonly string[];
  readonly hold?: number;
}

/** The machine of SvaWorld with a controller and its driver, bound unless the probe is refused. */
export class NvmeDriverWorld extends SvaWorld {
  readonly nvme: NvmeDevice;
  readonly medium: MemoryMedium;
  readonly nvmeDriver: NvmeDriver;

  constructor(options: NvmeDriverWorldOptions = {}) {
    super({ idxd: { wqs: [{ name: 'wq0.0', mode: 'dedicated', type: 'user', size: 8 }] }, ...options });
    const { clock, scheduler, trace, timing, log } = this, { hold } = options;
    const defects = new Set(options.nvmeDefects ?? []);
    this.medium = options.medium ?? new MemoryMedium(MEDIUM_BYTES);
    this.nvme = new NvmeDevice({
      name: 'nvme0', clock, scheduler, timing, trace, medium: this.medium, config: options.config ?? {}, defects,
      ...(hold === undefined ? {} : { wrapPort: (port) => new HoldingPort({ port, clock, random: new Random(options.seed ?? 1), probability: hold, maxHoldNs: 3_000 }) }),
    });
    this.complex.insert(this.complex.rootBuses[0]!, NVME_DEVFN, this.nvme.function);
    this.run(this.pciCore.rescan());
    this.nvmeDriver = new NvmeDriver({ clock, scheduler, log, dma: this.core.dma, memory: this.ram, defects, ...options.services });
    this.run(this.drivers.registerDriver(this.nvmeDriver));
  }

  get nvmePci(): PciFunctionDevice {
    return this.pciCore.find(NVME_BDF)!;
  }
}
