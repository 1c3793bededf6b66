/**
 * The smallest world around a VT-d front end: RAM, a clock, interrupts that are noted, and a back end that notes what
 * it is asked and ends device-TLB invalidations and drains when the test says so.
 */
import { Random } from '../../sim/random.js';
import { VirtualClock } from '../../sim/clock.js';
import { hex, hexPage } from '../../sim/address.js';
import { Ram } from '../../sim/memory.js';
import { read64, write64 } from '../../sim/mmio.js';
import { Trace, type TraceRecord } from '../../sim/trace.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import type { BackEnd, DeviceTlbResult, InterruptState, TranslationState } from '../../iommu/intel-vtd/hardware/back-end.js';
import { VtdFrontEnd } from '../../iommu/intel-vtd/hardware/front-end.js';
import { buildCapabilities, type VtdCapabilities, type VtdCapabilityOptions } from '../../iommu/intel-vtd/spec/capabilities.js';

export class NotingBackEnd implements BackEnd {
  /** Everything asked, in order, as text. */
  readonly calls: string[] = [];
  /** Ends of device-TLB invalidations that were sent. */
  readonly deviceTlb: ((result: DeviceTlbResult) => void)[] = [];
  readonly drains: (() => void)[] = [];
  drainAtOnce = true;

  setState(state: TranslationState): void {
    this.calls.push(`state enabled=${state.enabled} root=${hex(state.rootTable)} mode=${state.mode}`);
  }

  setInterruptState(state: InterruptState): void {
    this.calls.push(`interrupts enabled=${state.enabled} table=${hex(state.table)}+${state.entries} eime=${state.extended} cfi=${state.compatibility}`);
  }

  invalidateInterruptEntries(index: number, entries: number): void {
    this.calls.push(`interrupt-entries ${hex(index)}+${entries}`);
  }

  invalidateContext(granularity: string, domainId: number, sourceId: number, functionMask: number): void {
    this.calls.push(`context ${granularity} did=${domainId} sid=${hex(sourceId)} fm=${functionMask}`);
  }

  invalidateIotlb(granularity: string, domainId: number, page: number, pages: number, hint: boolean): void {
    this.calls.push(`iotlb ${granularity} did=${domainId} ${hexPage(page)}+${pages} ih=${hint}`);
  }

  invalidatePasidCache(granularity: string, domainId: number, pasid: number): void {
    this.calls.push(`pasid-cache ${granularity} did=${domainId} pasid=${hex(pasid)}`);
  }

  invalidatePasidIotlb(granularity: string, domainId: number, pasid: number, page: number, pages: number, hint: boolean): void {
    this.calls.push(`pasid-iotlb ${granularity} did=${domainId} pasid=${hex(pasid)} ${hexPage(page)}+${pages} ih=${hint}`);
  }

  invalidateDeviceTlb(sourceId: number, pasid: number, page: number, pages: number, global: boolean, done: (result: DeviceTlbResult) => void): void {
    this.calls.push(`device-tlb sid=${hex(sourceId)} pasid=${pasid} ${hexPage(page)}+${pages} g=${global}`);
    this.deviceTlb.push(done);
  }

  pageResponse(sourceId: number, pasid: number, pasidPresent: boolean, prgIndex: number, code: number, last: boolean): void {
    this.calls.push(`response sid=${hex(sourceId)} pasid=${pasid} pp=${pasidPresent} prg=${prgIndex} code=${code} last=${last}`);
  }

  drain(done: () => void): void {
    this.calls.push('drain');
    if (this.drainAtOnce) done();
    else this.drains.push(done);
  }

  /** Calls noted since the last time. */
  take(): string[] {
    return this.calls.splice(0);
  }
}

export interface WorldOptions {
  readonly capabilities?: VtdCapabilities;
  readonly options?: VtdCapabilityOptions;
  readonly defects?: readonly string[];
  /** Bytes of RAM; default 4 MiB. */
  readonly ram?: number;
}

/** Addresses that the world's software uses. */
export const QUEUE = 0x10_0000;
export const PAGE_REQUESTS = 0x20_0000;
export const STATUS = 0x30_0000;

export class World {
  readonly clock = new VirtualClock({ eventLimit: 1_000_000 });
  readonly memory: Ram;
  readonly trace = new Trace(this.clock);
  readonly backEnd = new NotingBackEnd();
  /** `address data` of every interrupt message. */
  readonly interrupts: string[] = [];
  readonly unit: VtdFrontEnd;
  private tail = 0;

  constructor(options: WorldOptions = {}) {
    const built = buildCapabilities(options.options);
    if (built.problems.length > 0) throw new Error(built.problems.join('; '));
    this.memory = new Ram(options.ram ?? 0x40_0000);
    this.unit = new VtdFrontEnd({
      name: 'dmar0',
      capabilities: options.capabilities ?? built.capabilities,
      memory: this.memory,
      clock: this.clock,
      timing: new Timing(DEFAULT_TIMING, new Random(1)),
      trace: this.trace,
      interrupts: { message: (address, data) => this.interrupts.push(`${hex(address)} ${hex(data)}`) },
      sourceId: 0xf8,
      defects: new Set(options.defects ?? []),
    });
    this.unit.connect(this.backEnd);
  }

  read4(offset: number): number {
    return this.unit.read(offset, 4);
  }

  write4(offset: number, value: number): void {
    this.unit.write(offset, 4, value);
  }

  read8(offset: number): bigint {
    return read64(this.unit, offset);
  }

  write8(offset: number, value: bigint): void {
    write64(this.unit, offset, value);
  }

  /** Programs and unmasks one of the three events at `control` (FECTL 0x38, IECTL 0xa0, PECTL 0xe0). */
  enableEvent(control: number, data: number): void {
    this.write4(control + 4, data);
    this.write4(control + 8, 0xfee0_0000);
    this.write4(control + 12, 0);
    this.write4(control, 0);
  }

  /** A queue of one page with 256-bit descriptors in scalable mode, as the recorded driver sets it up. */
  enableQueue(): void {
    this.write4(0x88, 0);
    this.write8(0x90, BigInt(QUEUE) | 0x800n);
    this.write4(0x18, 0x0400_0000);
    this.write8(0x20, 0x40_0400n);
    this.write4(0x18, 0x4400_0000);
    this.tail = 0;
    this.backEnd.take();
  }

  /** Writes 256-bit descriptors (first words given) at the tail. */
  queue(...descriptors: (readonly bigint[])[]): void {
    for (const descriptor of descriptors) {
      this.poke(QUEUE + this.tail, [...descriptor, 0n, 0n, 0n, 0n].slice(0, 4));
      this.tail = (this.tail + 32) % 0x1000;
    }
  }

  /** Writes descriptors and moves the tail register. */
  submit(...descriptors: (readonly bigint[])[]): void {
    this.queue(...descriptors);
    this.write4(0x88, this.tail);
  }

  poke(address: number, words: readonly bigint[]): void {
    words.forEach((word, i) => this.memory.store64(address + 8 * i, Number(word & 0xffff_ffffn), Number(word >> 32n)));
  }

  peek(address: number): bigint {
    this.memory.load64(address);
    return (BigInt(this.memory.hi >>> 0) << 32n) | BigInt(this.memory.lo >>> 0);
  }

  /** Trace records of one kind, with printed arguments. */
  traced(name: string): { correlation: number; args: Record<string, string> }[] {
    return Array.from(this.trace.records())
      .filter((record: TraceRecord) => record.kind.name === name)
      .map((record) => ({ correlation: record.correlation, args: Object.fromEntries(this.trace.describe(record)) }));
  }
}

/** Wait descriptor with status write (data 2, as the recorded driver) to `address`. */
export function wait(address: number = STATUS, flags = 0x20n): readonly bigint[] {
  return [0x2_0000_0005n | flags, BigInt(address)];
}
