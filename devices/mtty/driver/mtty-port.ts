/**
 * One serial port as the kernel drives it: a receive buffer that the interrupt fills, a transmitter that is fed a FIFO
 * at a time (drivers/tty/serial/8250/8250_port.c in spirit), and DMA transfers one after the other. When the receive
 * buffer is full the port leaves bytes in the FIFO, so that with the loopback plug the writer waits for the reader.
 * Left out: terminals, line settings, modem control.
 */
import { loOfPage, PAGE_SIZE } from '../../../sim/address.js';
import { Errno } from '../../../sim/errno.js';
import type { Mmio } from '../../../sim/mmio.js';
import { Mutex, sleep, WaitQueue, type Steps } from '../../../sim/task.js';
import type { PciDevice } from '../../../host/pci/kernel/pci-device.js';
import type { DmaSegment } from '../../../iommu/core/dma-api.js';
import {
  DMA_COMMAND_ABORT, DMA_COMMAND_START, DMA_ID_VALUE, DMA_INTERRUPT_DONE, DMA_REG, DMA_STATUS_DONE, DMA_STATUS_ERROR_MASK, DMA_STATUS_ERROR_SHIFT, DMA_WINDOW,
  dmaErrorName, UART_DLL, UART_DLM, UART_FCR, UART_FCR_CLEAR_RCVR, UART_FCR_CLEAR_XMIT, UART_FCR_ENABLE_FIFO, UART_FIFO_SIZE, UART_IER, UART_IER_RDI,
  UART_IER_RLSI, UART_IER_THRI, UART_IIR, UART_IIR_NO_INT, UART_LCR, UART_LCR_DLAB, UART_LCR_WLEN8, UART_LSR, UART_LSR_DR, UART_LSR_OE, UART_LSR_THRE, UART_MCR,
  UART_MCR_DTR, UART_MCR_OUT2, UART_MCR_RTS, UART_MSR, UART_RX, UART_SCR, UART_TX,
} from '../spec/registers.js';
import type { MttyDriverServices } from './mtty-driver.js';

/** Bytes that wait for a reader; when half of them are gone the port receives again. */
export const RECEIVE_BUFFER = 4096;
/** What a register gives when no device answers. */
const NOBODY = 0xff;
/** FIFO bytes that interrupt: 8, bits 10. */
const TRIGGER_8 = 0x80;

export class MttyPort {
  readonly index: number;
  /** Taken by who programs the DMA engine. */
  readonly dmaLock: Mutex;
  /** Open files. */
  users = 0;
  /** Characters that the receiver lost. */
  overruns = 0;
  /** The driver has let the device go. */
  gone = false;
  private readonly pci: PciDevice;
  private readonly mmio: Mmio;
  private readonly services: MttyDriverServices;
  private readonly changed: WaitQueue;
  private readonly transmitLock: Mutex;
  private ier = 0;
  private received: number[] = [];
  private throttled = false;
  /** Of the transfer under way: what its interrupt said. */
  private dmaStatus: number | undefined;
  private maxLength = 0;

  constructor(pci: PciDevice, index: number, mmio: Mmio, services: MttyDriverServices) {
    this.pci = pci;
    this.index = index;
    this.mmio = mmio;
    this.services = services;
    const name = `${pci.name} port ${index}`;
    this.changed = new WaitQueue(services.scheduler, name);
    this.transmitLock = new Mutex(services.scheduler, `transmitter of ${name}`);
    this.dmaLock = new Mutex(services.scheduler, `DMA of ${name}`);
  }

  /** ENODEV when there is no 16550 with our DMA window: the scratch register must hold what is written to it. */
  check(): void {
    for (const probe of [0x55, 0xaa]) {
      this.mmio.write(UART_SCR, 1, probe);
      const scratch = this.mmio.read(UART_SCR, 1);
      if (scratch !== probe) throw new Errno('ENODEV', `${this.pci.name}: the scratch register of port ${this.index} holds 0x${scratch.toString(16)}, not 0x${probe.toString(16)}`);
    }
    const id = this.readDma(DMA_REG.ID);
    if (id !== DMA_ID_VALUE) throw new Errno('ENODEV', `${this.pci.name}: port ${this.index} has no DMA window, its id is 0x${id.toString(16)}`);
    this.maxLength = this.readDma(DMA_REG.MAX_LENGTH);
    this.mmio.write(UART_IER, 1, 0);
    this.writeDma(DMA_REG.INTERRUPT_ENABLE, DMA_INTERRUPT_DONE);
  }

  /** First open: 115200 bits per second, 8 data bits, FIFO on and empty, receive interrupts. */
  startUp(): void {
    const { mmio } = this;
    mmio.write(UART_LCR, 1, UART_LCR_DLAB | UART_LCR_WLEN8);
    mmio.write(UART_DLL, 1, 1);
    mmio.write(UART_DLM, 1, 0);
    mmio.write(UART_LCR, 1, UART_LCR_WLEN8);
    mmio.write(UART_FCR, 1, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR | UART_FCR_CLEAR_XMIT | TRIGGER_8);
    mmio.write(UART_MCR, 1, UART_MCR_DTR | UART_MCR_RTS | UART_MCR_OUT2);
    this.lineStatus();
    mmio.read(UART_MSR, 1);
    this.received = [];
    this.throttled = false;
    this.setIer(UART_IER_RDI | UART_IER_RLSI);
  }

  /** Last close. */
  shutDown(): void {
    if (this.gone) return;
    this.setIer(0);
    this.mmio.write(UART_MCR, 1, 0);
    this.mmio.write(UART_FCR, 1, UART_FCR_ENABLE_FIFO | UART_FCR_CLEAR_RCVR | UART_FCR_CLEAR_XMIT);
    this.mmio.write(UART_FCR, 1, 0);
  }

  /** Everybody who waits looks again. */
  wake(): void {
    this.changed.wakeAll();
  }

  /** One look at the port. @returns whether it had interrupted */
  interrupt(): boolean {
    return this.serveUart() || this.serveDma();
  }

  /** Sends by programmed I/O, a FIFO at a time. EIO the device is gone or `stopped` says so. */
  *write(bytes: Uint8Array, stopped: () => boolean): Steps<number> {
    yield* this.transmitLock.lock();
    try {
      for (let sent = 0; sent < bytes.length; ) {
        this.checkGone(stopped);
        if ((this.lineStatus() & UART_LSR_THRE) === 0) {
          this.setIer(this.ier | UART_IER_THRI);
          yield* this.changed.wait();
          continue;
        }
        const burst = bytes.subarray(sent, sent + UART_FIFO_SIZE);
        for (const value of burst) this.mmio.write(UART_TX, 1, value);
        sent += burst.length;
        // the processor has written registers all the while
        yield* sleep(this.services.clock, this.services.timing.jittered(burst.length * this.services.timing.options.mmioNs));
      }
      return bytes.length;
    } finally {
      this.transmitLock.unlock();
    }
  }

  /** Takes what has been received, up to the target's length; sleeps until there is something. EIO as `write`. */
  *read(target: Uint8Array, stopped: () => boolean): Steps<number> {
    if (target.length === 0) return 0;
    yield* this.changed.until(() => this.received.length > 0 || this.gone || stopped());
    this.checkGone(stopped);
    const taken = this.received.splice(0, target.length);
    target.set(taken);
    if (this.throttled && this.received.length <= RECEIVE_BUFFER / 2) {
      this.throttled = false;
      this.setIer(this.ier | UART_IER_RDI);
    }
    return taken.length;
  }

  /**
   * Moves the bytes of `source` to `target`, lists of DMA addresses of the same length, piece after piece. The caller
   * holds `dmaLock`. EIO the device says no or is gone, or `stopped`; nothing moves any more when this returns.
   */
  *transfer(source: readonly DmaSegment[], target: readonly DmaSegment[], sizeBytes: number, stopped: () => boolean): Steps {
    const from = new SegmentCursor(source), to = new SegmentCursor(target);
    for (let done = 0; done < sizeBytes; ) {
      const count = Math.min(from.left, to.left, this.maxLength);
      yield* this.transferPiece(from.address, to.address, count, stopped);
      from.advance(count);
      to.advance(count);
      done += count;
    }
  }

  private *transferPiece(source: number, target: number, sizeBytes: number, stopped: () => boolean): Steps {
    this.checkGone(stopped);
    this.dmaStatus = undefined;
    this.writeDmaAddress(DMA_REG.TX_ADDRESS, source);
    this.writeDma(DMA_REG.TX_LENGTH, sizeBytes);
    this.writeDmaAddress(DMA_REG.RX_ADDRESS, target);
    this.writeDma(DMA_REG.RX_LENGTH, sizeBytes);
    this.writeDma(DMA_REG.COMMAND, DMA_COMMAND_START);
    yield* this.changed.until(() => this.dmaStatus !== undefined || this.gone || stopped());
    if (this.dmaStatus === undefined) this.abortDma();
    this.checkGone(stopped);
    const error = (this.dmaStatus! & DMA_STATUS_ERROR_MASK) >> DMA_STATUS_ERROR_SHIFT;
    if (error === 0) return;
    throw new Errno('EIO', `${this.pci.name} port ${this.index}: DMA ended with ${dmaErrorName(error)} after ${this.readDma(DMA_REG.BYTES_DONE)} of ${sizeBytes} bytes`);
  }

  /** The engine has stopped when the write has arrived; reading makes sure of that. */
  private abortDma(): void {
    this.writeDma(DMA_REG.COMMAND, DMA_COMMAND_ABORT);
    this.writeDma(DMA_REG.STATUS, DMA_STATUS_DONE);
    this.readDma(DMA_REG.STATUS);
  }

  private serveUart(): boolean {
    const iir = this.mmio.read(UART_IIR, 1);
    if (iir === NOBODY || (iir & UART_IIR_NO_INT) !== 0) return false;
    let lsr = this.lineStatus();
    while ((lsr & UART_LSR_DR) !== 0 && this.received.length < RECEIVE_BUFFER) {
      this.received.push(this.mmio.read(UART_RX, 1));
      lsr = this.lineStatus();
    }
    if ((lsr & UART_LSR_DR) !== 0) {
      this.throttled = true;
      this.setIer(this.ier & ~UART_IER_RDI);
    }
    if ((lsr & UART_LSR_THRE) !== 0) this.setIer(this.ier & ~UART_IER_THRI);
    this.mmio.read(UART_MSR, 1);
    this.changed.wakeAll();
    return true;
  }

  private serveDma(): boolean {
    const status = this.readDma(DMA_REG.STATUS);
    if (status === 0xffff_ffff || (status & DMA_STATUS_DONE) === 0) return false;
    this.writeDma(DMA_REG.STATUS, DMA_STATUS_DONE);
    this.dmaStatus = status;
    this.changed.wakeAll();
    return true;
  }

  /** Reading clears the overrun bit, so that it is counted here. */
  private lineStatus(): number {
    const lsr = this.mmio.read(UART_LSR, 1);
    if (lsr !== NOBODY && (lsr & UART_LSR_OE) !== 0) this.overruns++;
    return lsr;
  }

  private setIer(value: number): void {
    if (this.ier === value) return;
    this.ier = value;
    this.mmio.write(UART_IER, 1, value);
  }

  private checkGone(stopped: () => boolean): void {
    if (this.gone || !this.pci.present) throw new Errno('EIO', `${this.pci.name} is gone`);
    if (stopped()) throw new Errno('EIO', `port ${this.index} of ${this.pci.name} was closed`);
  }

  private readDma(register: number): number {
    return this.mmio.read(DMA_WINDOW + register, 4);
  }

  private writeDma(register: number, value: number): void {
    this.mmio.write(DMA_WINDOW + register, 4, value);
  }

  /** As halves: not every way to a device carries 8 bytes. */
  private writeDmaAddress(register: number, address: number): void {
    const page = Math.floor(address / PAGE_SIZE);
    this.writeDma(register, loOfPage(page, address % PAGE_SIZE));
    this.writeDma(register + 4, Math.floor(page / 0x10_0000));
  }
}

/** Where a transfer stands in a list of segments. */
class SegmentCursor {
  private readonly segments: readonly DmaSegment[];
  private index = 0;
  private offset = 0;

  constructor(segments: readonly DmaSegment[]) {
    this.segments = segments;
  }

  get address(): number {
    return this.segments[this.index]!.address + this.offset;
  }

  /** Bytes up to the end of the segment. */
  get left(): number {
    return this.segments[this.index]!.length - this.offset;
  }

  advance(count: number): void {
    this.offset += count;
    if (this.offset < this.segments[this.index]!.length) return;
    this.index++;
    this.offset = 0;
  }
}
