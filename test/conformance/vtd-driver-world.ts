/**
 * The smallest machine for the VT-d driver: the real unit, the real core, processes, and functions that speak ATS and
 * page requests to the unit as a fabric would. Everything the driver does to registers and queues is noted in the
 * form `r GSTS 4 0x0`, `w IQT 4 0x40`, `d CC 0x11 0x0`.
 */
import { Channel, Mailbox } from '../../sim/channel.js';
import { VirtualClock } from '../../sim/clock.js';
import { Errno } from '../../sim/errno.js';
import { Ram } from '../../sim/memory.js';
import { PlainMmio, type AccessSize, type Mmio } from '../../sim/mmio.js';
import { Random } from '../../sim/random.js';
import { Scheduler, type Steps } from '../../sim/task.js';
import { Trace } from '../../sim/trace.js';
import { FrameAllocator } from '../../host/frames.js';
import { InterruptController, type InterruptMessage } from '../../host/interrupts.js';
import { KernelLog } from '../../host/kernel-log.js';
import { Mm } from '../../host/mm/mm.js';
import { DMA_DONE, NO_PASID, type FunctionRouter } from '../../host/pci/dma-port.js';
import { PASID_EXEC, PASID_PRIV, type ConfigWindow, type PciDevice } from '../../host/pci/kernel/pci-device.js';
import { DEFAULT_TIMING, Timing, type TimingOptions } from '../../host/timing.js';
import { IommuCore } from '../../iommu/core/core.js';
import { IntelIommu, type IntelIommuOptions } from '../../iommu/intel-vtd/driver/intel-iommu.js';
import { VtdUnit } from '../../iommu/intel-vtd/hardware/unit.js';
import { buildCapabilities, decodeCapabilities, type VtdCapabilities, type VtdCapabilityOptions } from '../../iommu/intel-vtd/spec/capabilities.js';
import { DMAR_INTR_REMAP, encodeDmar, type DmarStructure } from '../../iommu/intel-vtd/spec/dmar.js';
import { REG } from '../../iommu/intel-vtd/spec/registers.js';
import { TaskWorld } from '../fixtures/task-world.js';

export const UNIT_BASE = 0xfd00_0000;
const DMAR_ADDRESS = 0xe_0000;

export interface FunctionOptions {
  readonly sourceId?: number;
  readonly pasidBits?: number;
  readonly ats?: boolean;
  readonly pri?: boolean;
  readonly prgResponsePasid?: boolean;
  readonly siov?: boolean;
  readonly upstream?: PciDevice;
}

/** A function: capability flags for the kernel, and a device that translates, asks for pages and answers invalidations. */
export class TestFunction implements PciDevice {
  readonly name: string;
  readonly segment = 0;
  readonly bus: number;
  readonly devfn: number;
  readonly sourceId: number;
  readonly vendorId = 0x8086;
  readonly deviceId = 0x0b25;
  readonly classCode = 0x088000;
  readonly config: ConfigWindow = { read: () => 0xffff_ffff, write: () => {} };
  readonly physfn = undefined;
  readonly upstream: PciDevice | undefined;
  present = true;
  readonly pasidSupported: boolean;
  readonly pasidFeatures = PASID_EXEC | PASID_PRIV;
  readonly atsSupported: boolean;
  readonly atsQueueDepth = 32;
  readonly priSupported: boolean;
  readonly prgResponsePasidRequired: boolean;
  readonly siov: boolean;
  pasidEnabled = false;
  atsEnabled = false;
  priEnabled = false;
  /** Config writes by name, in order. */
  readonly switched: string[] = [];
  /** Page responses that arrived: `prg code pasid`. */
  readonly responses: string[] = [];
  /** Invalidations that arrived: `pasid page+pages`. */
  readonly invalidations: string[] = [];
  /** False: invalidation requests are never completed. */
  completes = true;
  private readonly options: FunctionOptions;

  constructor(options: FunctionOptions = {}) {
    this.options = options;
    this.sourceId = options.sourceId ?? 0x20;
    this.bus = this.sourceId >>> 8;
    this.devfn = this.sourceId & 0xff;
    this.name = `0000:${this.bus.toString(16).padStart(2, '0')}:${(this.devfn >>> 3).toString(16).padStart(2, '0')}.${this.devfn & 7}`;
    this.pasidSupported = (options.pasidBits ?? 20) > 0;
    this.atsSupported = options.ats ?? true;
    this.priSupported = options.pri ?? true;
    this.prgResponsePasidRequired = options.prgResponsePasid ?? true;
    this.siov = options.siov ?? false;
    this.upstream = options.upstream;
  }

  findCapability(): undefined {}
  findExtCapability(): undefined {}

  maxPasids(): number {
    return 2 ** (this.options.pasidBits ?? 20);
  }

  enablePasid(features: number): void {
    this.note('PASID', this.pasidEnabled || this.atsEnabled, `pasid on ${features}`);
    this.pasidEnabled = true;
  }

  disablePasid(): void {
    this.note('PASID', this.atsEnabled, 'pasid off');
    this.pasidEnabled = false;
  }

  enableAts(pageShift: number): void {
    this.note('ATS', this.atsEnabled, `ats on ${pageShift}`);
    this.atsEnabled = true;
  }

  disableAts(): void {
    this.note('ATS', false, 'ats off');
    this.atsEnabled = false;
  }

  enablePri(maxRequests: number): void {
    this.note('PRI', this.priEnabled, `pri on ${maxRequests}`);
    this.priEnabled = true;
  }

  disablePri(): void {
    this.note('PRI', false, 'pri off');
    this.priEnabled = false;
  }

  resetPri(): void {
    this.note('PRI', this.priEnabled, 'pri reset');
  }

  setMaster(): void {}

  ioremap(): Mmio {
    throw new Errno('EINVAL', `${this.name} has no BAR`);
  }

  resource(): undefined {}

  readonly msixVectors = 0;
  readonly msiVectors = 0;
  readonly interruptPin = 0;
  readonly intxMaskSupported = false;
  readonly resetMethods = [];
  allocIrqs(): void {}
  allocMsi(): void {}
  freeIrqs(): void {}
  requestIntx(): void {}
  freeIntx(): void {}
  intx(): void {}
  checkAndMaskIntx(): boolean {
    return false;
  }

  checkAndUnmaskIntx(): boolean {
    return false;
  }

  disableIntxLine(): void {}
  enableIntxLine(): void {}

  // eslint-disable-next-line require-yield
  *reset(): Steps {
    throw new Errno('ENOTTY', `${this.name} has no reset`);
  }

  private note(feature: string, refused: boolean, what: string): void {
    if (refused) throw new Errno('EBUSY', `${feature} of ${this.name}`);
    this.switched.push(what);
  }
}

/** Delivers what the unit sends, one TLP later; completions go back the same way. */
class TestFabric implements FunctionRouter {
  readonly functions = new Map<number, TestFunction>();
  unit: VtdUnit | undefined;
  private readonly clock: VirtualClock;
  private readonly tlpNs: number;

  constructor(clock: VirtualClock, tlpNs: number) {
    this.clock = clock;
    this.tlpNs = tlpNs;
  }

  invalidate(sourceId: number, tag: number, page: number, pages: number, pasid: number): boolean {
    const target = this.functions.get(sourceId);
    if (target?.present !== true) return false;
    this.clock.post(this.tlpNs, () => {
      target.invalidations.push(`${pasid} ${page.toString(16)}+${pages}`);
      if (target.completes && target.present) this.clock.post(this.tlpNs, () => this.unit!.invalidateCompletion(sourceId, tag));
    });
    return true;
  }

  pageResponse(sourceId: number, prgIndex: number, code: number, pasid: number): boolean {
    const target = this.functions.get(sourceId);
    if (target?.present !== true) return false;
    this.clock.post(this.tlpNs, () => target.responses.push(`${prgIndex} ${code} ${pasid}`));
    return true;
  }

  releaseHeld(): void {}
}

const NAMES = new Map<number, string>(Object.entries(REG).map(([name, offset]) => [offset, name]));
const DESCRIPTOR_NAMES = ['?', 'CC', 'IOTLB', 'DEVTLB', 'IEC', 'WAIT', 'P_IOTLB', 'PASIDC', 'P_DEVTLB', 'PGRP'];

/** Register window that notes accesses, and the descriptors that an IQT write hands over. */
class NotedMmio extends PlainMmio {
  readonly notes: string[] = [];
  private readonly inner: Mmio;
  private readonly memory: Ram;
  private tail = 0;
  private iqa = 0n;

  constructor(inner: Mmio, memory: Ram) {
    super();
    this.inner = inner;
    this.memory = memory;
  }

  read(offset: number, size: AccessSize): number {
    const lo = this.inner.read(offset, size);
    this.high = this.inner.high;
    const value = size === 8 ? (BigInt(this.high >>> 0) << 32n) | BigInt(lo >>> 0) : BigInt(lo >>> 0);
    this.notes.push(`r ${name(offset)} ${size} 0x${value.toString(16)}`);
    return lo;
  }

  write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    const value = (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
    this.notes.push(`w ${name(offset)} ${size} 0x${value.toString(16)}`);
    if (offset === REG.IQA) this.iqa = value;
    if (offset === REG.IQT) this.noteDescriptors(lo);
    this.inner.write(offset, size, lo, hi);
  }

  private noteDescriptors(tail: number): void {
    const size = (this.iqa & 0x800n) !== 0n ? 32 : 16;
    const ring = 4096 * 2 ** Number(this.iqa & 7n);
    const base = Number(this.iqa & ~0xfffn);
    for (; this.tail !== tail; this.tail = (this.tail + size) % ring) {
      const qword = (at: number): bigint => {
        this.memory.load64(base + this.tail + at);
        return (BigInt(this.memory.hi >>> 0) << 32n) | BigInt(this.memory.lo >>> 0);
      };
      const q0 = qword(0), q1 = qword(8);
      const type = DESCRIPTOR_NAMES[Number(q0 & 0xfn)] ?? '?';
      // where the status word of a wait stands is nobody's business
      this.notes.push(`d ${type} 0x${q0.toString(16)}${type === 'WAIT' ? '' : ` 0x${q1.toString(16)}`}`);
    }
  }
}

function name(offset: number): string {
  return NAMES.get(offset) ?? `0x${offset.toString(16)}`;
}

export interface DriverWorldOptions {
  readonly capabilities?: VtdCapabilityOptions;
  /** Instead of `capabilities`: CAP and ECAP of a recording. */
  readonly registers?: { readonly cap: bigint; readonly ecap: bigint; readonly version?: number };
  readonly driver?: IntelIommuOptions;
  readonly structures?: readonly DmarStructure[];
  /** Flags of the table; default: interrupt remapping when the unit has it. */
  readonly dmarFlags?: number;
  readonly driverDefects?: readonly string[];
  readonly unitDefects?: readonly string[];
  readonly timing?: Partial<TimingOptions>;
  readonly core?: ConstructorParameters<typeof IommuCore>[0]['options'];
  /** What stands at the unit's address instead of the unit. */
  readonly mmio?: Mmio;
}

/** Registers that all read as the same 32 bits. */
export class DeadMmio extends PlainMmio {
  private readonly value: number;

  constructor(value: number) {
    super();
    this.value = value;
  }

  read(): number {
    this.high = this.value;
    return this.value;
  }

  write(): void {}
}

export class DriverWorld extends TaskWorld {
  readonly clock = new VirtualClock({ eventLimit: 2_000_000 });
  readonly scheduler = new Scheduler(this.clock, (error) => this.clock.fail(error));
  readonly mailbox = new Mailbox((error) => this.clock.fail(error));
  readonly trace = new Trace(this.clock, 1 << 14);
  readonly log = new KernelLog(this.clock);
  readonly ram = new Ram(2 ** 30);
  readonly frames = new FrameAllocator({ memory: this.ram, ranges: [{ start: 2 ** 20, end: 2 ** 30 }] });
  readonly timing: Timing;
  readonly interrupts: InterruptController;
  readonly core: IommuCore;
  readonly capabilities: VtdCapabilities;
  readonly unit: VtdUnit;
  readonly fabric: TestFabric;
  readonly driver: IntelIommu;
  readonly registers: NotedMmio;
  private nextGroup = 1;
  private nextMm = 1;

  constructor(options: DriverWorldOptions = {}) {
    super();
    const random = new Random(1);
    this.timing = new Timing({ ...DEFAULT_TIMING, jitter: 0, ...options.timing }, random);
    this.interrupts = new InterruptController(this.clock, this.timing, new Channel<InterruptMessage>(this.mailbox, 'interrupts'));
    this.core = new IommuCore({
      clock: this.clock, scheduler: this.scheduler, mailbox: this.mailbox, trace: this.trace, timing: this.timing, log: this.log, random,
      frames: this.frames, options: options.core ?? {},
    });
    const { registers } = options;
    const built = buildCapabilities(options.capabilities);
    if (built.problems.length > 0) throw new Error(built.problems.join('; '));
    this.capabilities = registers === undefined
      ? built.capabilities
      : decodeCapabilities(registers.cap, registers.ecap, { hostAddressWidth: 48, ...(registers.version === undefined ? {} : { version: registers.version }) });
    this.fabric = new TestFabric(this.clock, this.timing.options.tlpNs);
    this.unit = new VtdUnit({
      name: 'dmar0', capabilities: this.capabilities, memory: this.ram, clock: this.clock, timing: this.timing, trace: this.trace,
      interrupts: this.interrupts, router: this.fabric, defects: new Set(options.unitDefects ?? []),
    });
    this.fabric.unit = this.unit;
    this.registers = new NotedMmio(this.unit, this.ram);
    const structures = options.structures ?? [{ kind: 'DRHD', includeAll: true, segment: 0, base: UNIT_BASE, sizeOrder: 0, scopes: [] }];
    const bytes = encodeDmar({ hostAddressWidth: 48, flags: options.dmarFlags ?? (this.capabilities.interruptRemapping ? DMAR_INTR_REMAP : 0), structures });
    this.ram.write(DMAR_ADDRESS, bytes, 0, bytes.length);
    this.driver = new IntelIommu({
      memory: this.ram, frames: this.frames, clock: this.clock, scheduler: this.scheduler, trace: this.trace, timing: this.timing, log: this.log,
      interrupts: this.interrupts, core: this.core, mailbox: this.mailbox, dmar: DMAR_ADDRESS,
      mapRegisters: () => options.mmio ?? this.registers, options: options.driver ?? {}, defects: new Set(options.driverDefects ?? []),
    });
    this.core.registerDriver(this.driver);
  }

  /** Brings the units up. */
  start(): this {
    this.run(this.driver.start());
    this.run(this.driver.enableTranslation());
    return this;
  }

  /** Register accesses and descriptors since the last time. */
  take(): string[] {
    return this.registers.notes.splice(0);
  }

  /** Descriptors only. */
  takeDescriptors(): string[] {
    return this.take().filter((note) => note.startsWith('d '));
  }

  /** A function behind the unit, in a group of its own with a DMA domain. */
  function(options: FunctionOptions = {}): TestFunction {
    const added = new TestFunction(options);
    this.fabric.functions.set(added.sourceId, added);
    this.run(this.core.addDevice(added, this.nextGroup++));
    return added;
  }

  /** With IOPF and SVA on. */
  svaFunction(options: FunctionOptions = {}): TestFunction {
    const added = this.function(options);
    this.run(this.core.devEnableFeature(added, 'IOPF'));
    this.run(this.core.devEnableFeature(added, 'SVA'));
    this.take();
    return added;
  }

  process(): Mm {
    return new Mm({ id: this.nextMm++, name: 'proc', memory: this.ram, frames: this.frames, scheduler: this.scheduler });
  }

  /** The function's ATS translation request: physical page and rights, undefined without translation. */
  ats(target: TestFunction, page: number, pasid: number): { page: number; read: boolean; write: boolean } | undefined {
    const status = this.unit.translationRequest(target.sourceId, pasid, 0, page);
    const { completion } = this.unit;
    if (status !== DMA_DONE || !completion.read) return undefined;
    return { page: completion.page, read: completion.read, write: completion.write };
  }

  /** An untranslated access: the physical page, or undefined when it faults. */
  dma(target: TestFunction, page: number, write = false, pasid = NO_PASID): number | undefined {
    return this.unit.translate(target.sourceId, pasid, 0, page, write) === DMA_DONE ? this.unit.page : undefined;
  }

  lines(pattern: RegExp): string[] {
    return this.log.lines.map(({ text }) => text).filter((text) => pattern.test(text));
  }
}
