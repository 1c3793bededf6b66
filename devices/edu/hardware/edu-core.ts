/**
 * QEMU's educational device behind its PCI function: liveness, factorial, interrupt raise and acknowledge, and a DMA
 * engine between memory and its own 4 KiB buffer (docs/specs/edu.rst). What it needs of the function stands in
 * `EduFunctionSide`.
 * Differences from QEMU: a transfer that leaves the buffer moves nothing (QEMU logs it), and takes `dmaNs` instead of
 * 100 ms.
 */
import type { Clock } from '../../../sim/clock.js';
import type { AccessSize } from '../../../sim/mmio.js';
import { RegisterFile } from '../../../sim/registers.js';
import { sleep, type Scheduler, type Steps } from '../../../sim/task.js';
import type { Trace, TraceKind } from '../../../sim/trace.js';
import {
  BUFFER_ADDRESS, BUFFER_SIZE, DEFAULT_DMA_MASK, DMA_IRQ, DMA_RUN, DMA_TO_MEMORY, EDU_ID, EDU_REG, IRQ_DMA, IRQ_FACTORIAL, STATUS_COMPUTING, STATUS_IRQ_FACTORIAL,
} from '../spec/registers.js';

const ALL = 0xffff_ffff_ffff_ffffn;

export interface EduConfig {
  /** Address bits that the device drives. */
  readonly dmaMask: number;
  /** From the command's write to the first byte. */
  readonly dmaNs: number;
  /** One multiplication. */
  readonly stepNs: number;
}

export const DEFAULT_EDU_CONFIG: EduConfig = { dmaMask: DEFAULT_DMA_MASK, dmaNs: 10_000, stepNs: 20 };

export interface EduFunctionSide {
  /** Interrupt status has bits: a message, or the level of the interrupt pin. */
  raise(): void;
  /** Interrupt status is empty again. */
  lower(): void;
  /** Moves bytes; true when all arrived. */
  read(page: number, offset: number, target: Uint8Array, targetOffset: number, length: number): Steps<boolean>;
  write(page: number, offset: number, source: Uint8Array, sourceOffset: number, length: number): Steps<boolean>;
}

export interface EduCoreOptions {
  readonly name: string;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly trace: Trace;
  readonly config: EduConfig;
  readonly side: EduFunctionSide;
  /** `edu.ignore-dma-mask`: drives all address bits. */
  readonly defects?: ReadonlySet<string>;
}

/** The registers of BAR 0; everything else reads as ones. */
export class EduRegisters extends RegisterFile {
  private readonly dmaRunning: () => boolean;

  constructor(dmaRunning: () => boolean) {
    super('edu', 0x100, {
      ID: { offset: EDU_REG.ID, size: 4, reset: BigInt(EDU_ID) },
      LIVENESS: { offset: EDU_REG.LIVENESS, size: 4, wo: 0xffff_ffffn },
      FACTORIAL: { offset: EDU_REG.FACTORIAL, size: 4, wo: 0xffff_ffffn },
      STATUS: { offset: EDU_REG.STATUS, size: 4, rw: BigInt(STATUS_IRQ_FACTORIAL) },
      IRQ_STATUS: { offset: EDU_REG.IRQ_STATUS, size: 4 },
      IRQ_RAISE: { offset: EDU_REG.IRQ_RAISE, size: 4, wo: 0xffff_ffffn },
      IRQ_ACK: { offset: EDU_REG.IRQ_ACK, size: 4, wo: 0xffff_ffffn },
      DMA_SRC: { offset: EDU_REG.DMA_SRC, size: 8, rw: ALL },
      DMA_DST: { offset: EDU_REG.DMA_DST, size: 8, rw: ALL },
      DMA_COUNT: { offset: EDU_REG.DMA_COUNT, size: 8, rw: ALL },
      DMA_CMD: { offset: EDU_REG.DMA_CMD, size: 8, wo: ALL },
    });
    this.dmaRunning = dmaRunning;
  }

  override read(offset: number, size: AccessSize): number {
    if (this.answers(offset, size) && offset !== EDU_REG.IRQ_RAISE && offset !== EDU_REG.IRQ_ACK) return super.read(offset, size);
    this.high = size === 8 ? 0xffff_ffff : 0;
    return size === 1 ? 0xff : size === 2 ? 0xffff : 0xffff_ffff;
  }

  override write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    if (!this.answers(offset, size)) return;
    // a transfer in progress owns its registers
    if (offset >= EDU_REG.DMA_SRC && this.dmaRunning()) return;
    super.write(offset, size, lo, hi);
  }

  /** 4 bytes below 0x80, 4 or 8 from there on; only where a register begins. */
  private answers(offset: number, size: AccessSize): boolean {
    if (size !== 4 && (size !== 8 || offset < 0x80)) return false;
    for (const start of Object.values(EDU_REG)) if (start === offset) return true;
    return false;
  }
}

export class EduCore {
  readonly registers: EduRegisters;
  /** Transfers that were refused because they left the device's buffer. */
  rangeErrors = 0;
  /** Transfers that the bus refused. */
  dmaErrors = 0;
  private readonly buffer = new Uint8Array(BUFFER_SIZE);
  private readonly options: EduCoreOptions;
  private readonly deviceId: number;
  private readonly dmaKind: TraceKind;
  private readonly maskLo: number;
  private readonly maskHi: number;
  /** Grows with every reset: what began before has no effect after. */
  private life = 0;

  constructor(options: EduCoreOptions) {
    this.options = options;
    const { trace, config } = options;
    this.deviceId = trace.intern(options.name);
    this.dmaKind = trace.define('edu:dma', [['device', 'str'], ['to_memory', 'bool'], ['page', 'page'], ['offset', 'dec'], ['count', 'dec'], ['done', 'bool']]);
    const mask = options.defects?.has('edu.ignore-dma-mask') === true ? ALL : BigInt(config.dmaMask);
    this.maskLo = Number(mask & 0xffff_ffffn) | 0;
    this.maskHi = Number(mask >> 32n) | 0;
    const registers = new EduRegisters(() => (this.registers.r['DMA_CMD']!.lo & DMA_RUN) !== 0);
    this.registers = registers;
    registers.r['LIVENESS']!.onWrite = (lo) => {
      registers.r['LIVENESS']!.lo = ~lo >>> 0;
    };
    registers.r['FACTORIAL']!.onWrite = (lo) => this.startFactorial(lo);
    registers.r['IRQ_RAISE']!.onWrite = (lo) => this.raise(lo);
    registers.r['IRQ_ACK']!.onWrite = (lo) => {
      const status = registers.r['IRQ_STATUS']!;
      status.lo &= ~lo;
      if (status.lo === 0) options.side.lower();
    };
    registers.r['DMA_CMD']!.onWrite = (lo) => {
      if ((lo & DMA_RUN) === 0) return;
      registers.r['DMA_CMD']!.lo = lo;
      this.options.scheduler.spawn(`${this.options.name} dma`, this.transfer(lo, this.life), { daemon: true });
    };
  }

  /** Function-level reset: registers and buffer as after power-on, work in progress forgotten. */
  reset(): void {
    this.life++;
    this.registers.reset();
    this.buffer.fill(0);
  }

  private raise(bits: number): void {
    const status = this.registers.r['IRQ_STATUS']!;
    status.lo |= bits;
    if (status.lo !== 0) this.options.side.raise();
  }

  private startFactorial(value: number): void {
    const { r } = this.registers;
    if ((r['STATUS']!.lo & STATUS_COMPUTING) !== 0) return;
    r['FACTORIAL']!.lo = value;
    r['STATUS']!.lo |= STATUS_COMPUTING;
    this.options.scheduler.spawn(`${this.options.name} factorial`, this.factorial(value, this.life), { daemon: true });
  }

  private *factorial(value: number, life: number): Steps {
    let result = 1, steps = 0;
    // modulo 2^32; once zero it stays zero
    for (let n = value; n > 0 && result !== 0; n--, steps++) result = Math.imul(result, n) >>> 0;
    yield* sleep(this.options.clock, (steps + 1) * this.options.config.stepNs);
    if (life !== this.life) return;
    const { r } = this.registers;
    r['FACTORIAL']!.lo = result;
    r['STATUS']!.lo &= ~STATUS_COMPUTING;
    if ((r['STATUS']!.lo & STATUS_IRQ_FACTORIAL) !== 0) this.raise(IRQ_FACTORIAL);
  }

  private *transfer(command: number, life: number): Steps {
    const { options, registers, buffer } = this;
    const toMemory = (command & DMA_TO_MEMORY) !== 0;
    yield* sleep(options.clock, options.config.dmaNs);
    if (life !== this.life) return;
    const own = registers.r[toMemory ? 'DMA_SRC' : 'DMA_DST']!, other = registers.r[toMemory ? 'DMA_DST' : 'DMA_SRC']!, count = registers.r['DMA_COUNT']!;
    const start = own.hi * 0x1_0000_0000 + own.lo - BUFFER_ADDRESS, length = count.hi * 0x1_0000_0000 + count.lo;
    const lo = (other.lo & this.maskLo) >>> 0, hi = (other.hi & this.maskHi) >>> 0;
    const page = hi * 0x10_0000 + (lo >>> 12), offset = lo & 0xfff;
    let done = false;
    if (start < 0 || length > BUFFER_SIZE || start + length > BUFFER_SIZE) this.rangeErrors++;
    else if (length === 0) done = true;
    else {
      done = yield* toMemory ? options.side.write(page, offset, buffer, start, length) : options.side.read(page, offset, buffer, start, length);
      if (life !== this.life) return;
      if (!done) this.dmaErrors++;
    }
    options.trace.record(this.dmaKind, 0, this.deviceId, toMemory ? 1 : 0, page, offset, length, done ? 1 : 0);
    registers.r['DMA_CMD']!.lo &= ~DMA_RUN;
    if ((command & DMA_IRQ) !== 0) this.raise(IRQ_DMA);
  }
}
