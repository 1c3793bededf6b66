/**
 * One port behind its BAR: the UART's eight byte registers, the DMA window at 0x100, all ones elsewhere. An access of a
 * user is cut into naturally aligned pieces of 4, 2 or 1 bytes (as `mtty_read` and `mtty_write` do); the UART takes a
 * piece byte by byte in ascending order.
 */
import type { AccessSize } from '../../../sim/mmio.js';
import type { Device } from '../../../host/device.js';
import { DMA_WINDOW, DMA_WINDOW_SIZE, UART_REGISTERS } from '../spec/registers.js';
import { MttyDma } from './dma-engine.js';
import type { MttyServices } from './services.js';
import type { PortState } from './state.js';
import { Uart16550 } from './uart.js';

/** Behind the UART's CAUSE_* bits. */
export const CAUSE_DMA = 1 << 5;

export interface PortSide {
  readonly device: Device;
  readonly busMaster: () => boolean;
  readonly wrote: (iova: number, sizeBytes: number) => void;
  /** Everything that is pending now. */
  readonly interrupt: (causes: number) => void;
}

export class MttyPort {
  readonly uart: Uart16550;
  readonly dma: MttyDma;
  private readonly side: PortSide;

  constructor(port: number, services: MttyServices, side: PortSide) {
    this.side = side;
    this.uart = new Uart16550(services.clock, () => this.changed());
    this.dma = new MttyDma(services, { device: side.device, port, busMaster: side.busMaster, wrote: side.wrote, changed: () => this.changed() });
  }

  readBytes(offset: number, target: Uint8Array, count: number): void {
    for (let done = 0; done < count; ) {
      const size = pieceAt(offset + done, count - done);
      const value = this.readPiece(offset + done, size);
      for (let i = 0; i < size; i++) target[done + i] = value >>> (i * 8);
      done += size;
    }
  }

  writeBytes(offset: number, source: Uint8Array, count: number): void {
    for (let done = 0; done < count; ) {
      const size = pieceAt(offset + done, count - done);
      let value = 0;
      for (let i = 0; i < size; i++) value |= source[done + i]! << (i * 8);
      this.writePiece(offset + done, size, value >>> 0);
      done += size;
    }
  }

  setRunning(running: boolean): void {
    this.uart.setRunning(running);
    this.dma.setRunning(running);
  }

  reset(): void {
    this.uart.reset();
    this.dma.reset();
  }

  save(): PortState {
    return { uart: this.uart.save(), dma: this.dma.save() };
  }

  load({ uart, dma }: PortState): void {
    this.uart.load(uart);
    this.dma.load(dma);
    this.changed();
  }

  private changed(): void {
    this.side.interrupt(this.uart.causes | (this.dma.pending ? CAUSE_DMA : 0));
  }

  private readPiece(offset: number, size: AccessSize): number {
    if (offset < UART_REGISTERS) {
      let value = 0;
      for (let i = 0; i < size; i++) value |= this.uart.read(offset + i) << (i * 8);
      return value >>> 0;
    }
    if (offset >= DMA_WINDOW && offset < DMA_WINDOW + DMA_WINDOW_SIZE) return this.dma.registers.read(offset - DMA_WINDOW, size);
    return size === 4 ? 0xffff_ffff : size === 2 ? 0xffff : 0xff;
  }

  private writePiece(offset: number, size: AccessSize, value: number): void {
    if (offset < UART_REGISTERS) for (let i = 0; i < size; i++) this.uart.write(offset + i, (value >>> (i * 8)) & 0xff);
    else if (offset >= DMA_WINDOW && offset < DMA_WINDOW + DMA_WINDOW_SIZE) this.dma.registers.write(offset - DMA_WINDOW, size, value);
  }
}

function pieceAt(offset: number, left: number): 1 | 2 | 4 {
  if (left >= 4 && offset % 4 === 0) return 4;
  return left >= 2 && offset % 2 === 0 ? 2 : 1;
}
