/**
 * The DMA engine of one port, our extension of Linux' sample. The "device" is host software: it pins the pages of both
 * buffers in the address space of the mediated device's user (C10), copies with the CPU through host physical memory,
 * and unpins. What is sent comes back through the plug into the receive buffer. Pages stay pinned until their
 * transfer ends, or the user unmaps them (C9): then the transfer is aborted and they are unpinned before the
 * notification returns.
 */
import { loOfPage, PAGE_SIZE } from '../../../sim/address.js';
import { isErrno, type Errno } from '../../../sim/errno.js';
import type { AccessSize } from '../../../sim/mmio.js';
import { RegisterFile } from '../../../sim/registers.js';
import { sleep, WaitQueue, type Steps } from '../../../sim/task.js';
import type { Device } from '../../../host/device.js';
import { PROT_READ, PROT_WRITE } from '../../../iommu/core/ops.js';
import {
  DMA_COMMAND_ABORT, DMA_COMMAND_START, DMA_ERROR, DMA_ID_VALUE, DMA_INTERRUPT_DONE, DMA_MAX_LENGTH, DMA_REG, DMA_STATUS_BUSY, DMA_STATUS_DONE,
  DMA_STATUS_ERROR_SHIFT, DMA_WINDOW_SIZE, type DmaError,
} from '../spec/registers.js';
import type { MttyServices } from './services.js';

/** One call pins no more (VFIO_PIN_PAGES_MAX_ENTRIES: a page of pointers). */
const PIN_BATCH = 512;
const ALL64 = 0xffff_ffff_ffff_ffffn, ALL32 = 0xffff_ffffn;

/** What the engine needs of its device. */
export interface DmaSide {
  readonly device: Device;
  readonly port: number;
  readonly busMaster: () => boolean;
  /** The device wrote memory of its user. */
  readonly wrote: (iova: number, sizeBytes: number) => void;
  /** `pending` may have changed. */
  readonly changed: () => void;
}

/** A transfer that runs. What was stopped half-way begins again as another one. */
interface Transfer {
  readonly txPage: number;
  readonly rxPage: number;
  readonly txPages: number;
  readonly rxPages: number;
  /** I/O virtual addresses that are pinned now, in order. */
  pins: number[];
  /** Nothing moves any more, and nothing is pinned but by a call under way. */
  over: boolean;
  /** Notifications that it has let pass. */
  notified: number;
}

/** What migration carries. */
export interface DmaState {
  txPage: number;
  txOffset: number;
  rxPage: number;
  rxOffset: number;
  txLength: number;
  rxLength: number;
  status: number;
  bytesDone: number;
  interruptEnable: number;
}

type RegisterName = keyof typeof DMA_REG;

/** The window; the engine's address and length registers do not change under a transfer. */
class DmaRegisters extends RegisterFile<RegisterName> {
  constructor(name: string) {
    super(name, DMA_WINDOW_SIZE, {
      ID: { offset: DMA_REG.ID, size: 4, reset: BigInt(DMA_ID_VALUE) },
      MAX_LENGTH: { offset: DMA_REG.MAX_LENGTH, size: 4, reset: BigInt(DMA_MAX_LENGTH) },
      TX_ADDRESS: { offset: DMA_REG.TX_ADDRESS, size: 8, rw: ALL64 },
      TX_LENGTH: { offset: DMA_REG.TX_LENGTH, size: 4, rw: ALL32 },
      RX_LENGTH: { offset: DMA_REG.RX_LENGTH, size: 4, rw: ALL32 },
      RX_ADDRESS: { offset: DMA_REG.RX_ADDRESS, size: 8, rw: ALL64 },
      COMMAND: { offset: DMA_REG.COMMAND, size: 4, wo: ALL32 },
      STATUS: { offset: DMA_REG.STATUS, size: 4, w1c: BigInt(DMA_STATUS_DONE) },
      BYTES_DONE: { offset: DMA_REG.BYTES_DONE, size: 4 },
      INTERRUPT_ENABLE: { offset: DMA_REG.INTERRUPT_ENABLE, size: 4, rw: BigInt(DMA_INTERRUPT_DONE) },
    });
  }

  override write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    if (offset < DMA_REG.COMMAND && (this.r.STATUS.lo & DMA_STATUS_BUSY) !== 0) return;
    super.write(offset, size, lo, hi);
  }
}

export class MttyDma {
  readonly registers: RegisterFile<RegisterName>;
  /** Pages pinned by transfers under way. */
  pinnedPages = 0;
  private readonly services: MttyServices;
  private readonly side: DmaSide;
  private readonly neverUnpin: boolean;
  private readonly pinLeak: boolean;
  private readonly loseDirty: boolean;
  private transfer: Transfer | undefined;
  /** Transfers that wait for pages, also those that are over. */
  private pinning = 0;
  private running = true;
  private readonly quiet: WaitQueue;

  constructor(services: MttyServices, side: DmaSide) {
    this.services = services;
    this.side = side;
    this.neverUnpin = services.defects.has('mtty.never-unpin');
    this.pinLeak = services.defects.has('mtty.pin-leak');
    this.loseDirty = services.defects.has('mtty.lose-dirty');
    this.quiet = new WaitQueue(services.scheduler, `DMA of ${side.device.name} port ${side.port}`);
    const registers = (this.registers = new DmaRegisters(`${side.device.name} dma${side.port}`));
    registers.r.COMMAND.onWrite = (lo) => {
      if ((lo & DMA_COMMAND_ABORT) !== 0) this.abort();
      if ((lo & DMA_COMMAND_START) !== 0) this.start();
    };
    registers.r.STATUS.onWrite = registers.r.INTERRUPT_ENABLE.onWrite = () => side.changed();
  }

  /** It interrupts. */
  get pending(): boolean {
    return (this.registers.r.STATUS.lo & DMA_STATUS_DONE) !== 0 && (this.registers.r.INTERRUPT_ENABLE.lo & DMA_INTERRUPT_DONE) !== 0;
  }

  get busy(): boolean {
    return (this.registers.r.STATUS.lo & DMA_STATUS_BUSY) !== 0;
  }

  /** A stopped engine gives its pages back and goes on where it was when it runs again. */
  setRunning(running: boolean): void {
    if (this.running === running) return;
    this.running = running;
    if (running) this.proceed();
    else this.stop();
  }

  /**
   * The user unmaps a range: transfers that reach into it end now (C9), or after as many notifications as they are
   * allowed to let pass. @returns 1 when a transfer was concerned
   */
  unmapped(iova: number, sizeBytes: number): number {
    const { transfer } = this;
    if (transfer === undefined || !touches(transfer, iova / PAGE_SIZE, (iova + sizeBytes) / PAGE_SIZE)) return 0;
    if (this.neverUnpin || transfer.notified++ < this.services.config.lateUnpin) return 1;
    this.end(DMA_ERROR.UNMAPPED);
    return 1;
  }

  /** Registers as after power-on; what was under way is forgotten and unpinned. */
  reset(): void {
    this.stop();
    this.registers.reset();
    this.side.changed();
  }

  /** Waits until no call that pins is under way any more: whatever it got is given back then. */
  *drained(): Steps {
    yield* this.quiet.until(() => this.pinning === 0);
  }

  save(): DmaState {
    const { r } = this.registers;
    return {
      txPage: pageOf(r.TX_ADDRESS), txOffset: r.TX_ADDRESS.lo & 0xfff, rxPage: pageOf(r.RX_ADDRESS), rxOffset: r.RX_ADDRESS.lo & 0xfff,
      txLength: r.TX_LENGTH.lo, rxLength: r.RX_LENGTH.lo, status: r.STATUS.lo, bytesDone: r.BYTES_DONE.lo, interruptEnable: r.INTERRUPT_ENABLE.lo,
    };
  }

  /** Takes a state over while stopped; a transfer that was under way goes on when the engine runs. */
  load(state: DmaState): void {
    const { r } = this.registers;
    setAddress(r.TX_ADDRESS, state.txPage, state.txOffset);
    setAddress(r.RX_ADDRESS, state.rxPage, state.rxOffset);
    r.TX_LENGTH.lo = state.txLength;
    r.RX_LENGTH.lo = state.rxLength;
    r.STATUS.lo = state.status;
    r.BYTES_DONE.lo = state.bytesDone;
    r.INTERRUPT_ENABLE.lo = state.interruptEnable;
  }

  // --- one transfer

  private start(): void {
    const { r } = this.registers;
    if (this.busy) return;
    r.STATUS.lo = DMA_STATUS_BUSY;
    r.BYTES_DONE.lo = 0;
    const { TX_LENGTH: { lo: tx }, RX_LENGTH: { lo: rx } } = r;
    if (tx === 0 || tx > DMA_MAX_LENGTH || rx > DMA_MAX_LENGTH) this.complete(DMA_ERROR.LENGTH);
    else if (!this.side.busMaster()) this.complete(DMA_ERROR.BUS_MASTER);
    else this.proceed();
  }

  private abort(): void {
    if (this.transfer !== undefined) this.end(DMA_ERROR.ABORTED);
    else if (this.busy) this.complete(DMA_ERROR.ABORTED);
  }

  /** Begins, or goes on behind what is done, when there is something to do. */
  private proceed(): void {
    if (!this.busy || !this.running) return;
    const { r } = this.registers;
    const transfer: Transfer = {
      txPage: pageOf(r.TX_ADDRESS), txPages: pagesOf(r.TX_ADDRESS.lo & 0xfff, r.TX_LENGTH.lo),
      rxPage: pageOf(r.RX_ADDRESS), rxPages: pagesOf(r.RX_ADDRESS.lo & 0xfff, Math.min(r.RX_LENGTH.lo, r.TX_LENGTH.lo)),
      pins: [], over: false, notified: 0,
    };
    this.transfer = transfer;
    this.services.trace?.dmaStart(this.side.device.name, this.side.port, transfer.txPage, transfer.rxPage, r.TX_LENGTH.lo);
    this.services.scheduler.spawn(`${this.side.device.name} dma${this.side.port}`, this.work(transfer), { daemon: true });
  }

  private *work(transfer: Transfer): Steps {
    const source: number[] = [], target: number[] = [];
    this.pinning++;
    try {
      yield* this.pin(transfer, transfer.txPage, transfer.txPages, PROT_READ, source);
      yield* this.pin(transfer, transfer.rxPage, transfer.rxPages, PROT_WRITE, target);
    } catch (error) {
      if (!isErrno(error)) throw error;
      if (!transfer.over) this.end(errorOf(error));
    } finally {
      this.pinning--;
      this.quiet.wakeAll();
    }
    if (!transfer.over) yield* this.move(transfer, source, target);
  }

  /** Nothing more when the transfer is over meanwhile: what a late call got goes back at once. */
  private *pin(transfer: Transfer, page: number, pages: number, prot: number, physical: number[]): Steps {
    const { vfio, trace } = this.services;
    const { device, port } = this.side;
    for (let first = 0; first < pages && !transfer.over; first += PIN_BATCH) {
      const iovas = Array.from({ length: Math.min(PIN_BATCH, pages - first) }, (_, i) => (page + first + i) * PAGE_SIZE);
      const frames = yield* vfio.pinPages(device, iovas, prot);
      for (const address of frames) physical.push(address);
      for (const iova of iovas) transfer.pins.push(iova);
      this.pinnedPages += iovas.length;
      trace?.pinned(device.name, port, iovas[0]!, iovas.length);
      if (transfer.over) this.unpin(transfer);
    }
  }

  private unpin(transfer: Transfer): void {
    const { vfio, trace } = this.services;
    let { pins } = transfer;
    if (this.neverUnpin || pins.length === 0) return;
    transfer.pins = [];
    this.pinnedPages -= pins.length;
    if (this.pinLeak) pins = pins.slice(0, -1);
    for (let first = 0; first < pins.length; first += PIN_BATCH) vfio.unpinPages(this.side.device, pins.slice(first, first + PIN_BATCH));
    trace?.unpinned(this.side.device.name, this.side.port, pins.length);
  }

  /** Page by page; a page has arrived when its time has passed. */
  private *move(transfer: Transfer, source: readonly number[], target: readonly number[]): Steps {
    const { clock, memory, config } = this.services;
    const { r } = this.registers;
    const { side } = this;
    const txOffset = r.TX_ADDRESS.lo & 0xfff, rxOffset = r.RX_ADDRESS.lo & 0xfff;
    const length = Math.min(r.TX_LENGTH.lo, r.RX_LENGTH.lo);
    yield* sleep(clock, config.startNs);
    while (!transfer.over && r.BYTES_DONE.lo < length) {
      const done = r.BYTES_DONE.lo, from = txOffset + done, to = rxOffset + done;
      const count = Math.min(length - done, PAGE_SIZE - (from % PAGE_SIZE), PAGE_SIZE - (to % PAGE_SIZE));
      yield* sleep(clock, Math.ceil(count / config.bytesPerNs));
      if (transfer.over) return;
      if (!side.busMaster()) return this.end(DMA_ERROR.BUS_MASTER);
      const copied = memory.copy(target[Math.floor(to / PAGE_SIZE)]! + (to % PAGE_SIZE), source[Math.floor(from / PAGE_SIZE)]! + (from % PAGE_SIZE), count);
      if (!copied) return this.end(DMA_ERROR.ADDRESS);
      r.BYTES_DONE.lo = done + count;
      if (!this.loseDirty) side.wrote((transfer.rxPage + Math.floor(to / PAGE_SIZE)) * PAGE_SIZE + (to % PAGE_SIZE), count);
    }
    if (!transfer.over) this.end(r.TX_LENGTH.lo > r.RX_LENGTH.lo ? DMA_ERROR.OVERRUN : DMA_ERROR.NONE);
  }

  /** Ends the transfer under way and tells the guest. */
  private end(error: DmaError): void {
    this.stop();
    this.complete(error);
  }

  /** The transfer under way moves nothing any more and has nothing pinned; the registers still say that it is busy. */
  private stop(): void {
    const { transfer } = this;
    if (transfer === undefined) return;
    this.transfer = undefined;
    transfer.over = true;
    this.unpin(transfer);
  }

  private complete(error: DmaError): void {
    const { r } = this.registers;
    r.STATUS.lo = DMA_STATUS_DONE | (error << DMA_STATUS_ERROR_SHIFT);
    this.services.trace?.dmaEnd(this.side.device.name, this.side.port, error, r.BYTES_DONE.lo);
    this.side.changed();
  }
}

function errorOf(error: Errno): DmaError {
  return error.code === 'EINVAL' || error.code === 'EPERM' || error.code === 'EFAULT' ? DMA_ERROR.ADDRESS : DMA_ERROR.RESOURCES;
}

/** Either buffer has a page in [start, end). */
function touches(transfer: Transfer, start: number, end: number): boolean {
  return (transfer.txPage < end && start < transfer.txPage + transfer.txPages) || (transfer.rxPage < end && start < transfer.rxPage + transfer.rxPages);
}

function pagesOf(offset: number, length: number): number {
  return length === 0 ? 0 : Math.ceil((offset + length) / PAGE_SIZE);
}

/** Page number of a 64-bit address register. */
function pageOf(register: { readonly lo: number; readonly hi: number }): number {
  return register.hi * 0x10_0000 + (register.lo >>> 12);
}

function setAddress(register: { lo: number; hi: number }, page: number, offset: number): void {
  register.lo = loOfPage(page, offset);
  register.hi = Math.floor(page / 0x10_0000);
}
