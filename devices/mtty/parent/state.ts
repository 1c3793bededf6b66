/**
 * The bytes of a card under migration. Like Linux' sample (samples/vfio-mdev/mtty.c v6.12, struct mtty_data): a header
 * with magic, version and number of ports, which a PRE_COPY already sends, then what software wrote to configuration
 * space, then a record for each port. These are ours, since the sample's records are a C structure of its driver and
 * know neither the chip's interrupt state nor DMA; hence another major version.
 */
import { Errno } from '../../../sim/errno.js';
import { bit, bits, struct } from '../../../sim/layout.js';
import { bytesOf, u16, u32, u64, u8, wordsOfBytes } from '../../../vfio/uapi/fields.js';
import { DMA_MAX_LENGTH, DMA_STATUS_BUSY, MTTY_CONFIG_SIZE, UART_FIFO_SIZE } from '../spec/registers.js';
import type { DmaState } from './dma-engine.js';
import type { UartState } from './uart.js';

/** Two versions read the same stream only if both numbers are equal. */
export const MTTY_MAGIC = 0x7e9d_0989_8c3e_2c4en;
export const MTTY_MAJOR_VERSION = 2;
export const MTTY_MINOR_VERSION = 0;

export const MTTY_STATE_HEADER = struct('mtty_data', 24, { magic: u64(0), major_ver: u32(8), minor_ver: u32(12), nr_ports: u32(16), flags: u32(20) });

export const MTTY_PORT_STATE = struct('serial_port', 72, {
  ier: u8(0), fcr: u8(1), lcr: u8(2), mcr: u8(3), scr: u8(4), msr: u8(5), divisor: u16(6),
  overrun: bit(64), transmit_pending: bit(65), timeout_pending: bit(66), count: u8(9), fifo0: u64(12), fifo1: u64(20),
  tx_offset: bits(235, 224), rx_offset: bits(251, 240),
  tx_page: u64(32), rx_page: u64(40), tx_length: u32(48), rx_length: u32(52), status: u32(56), bytes_done: u32(60), interrupt_enable: u32(64),
});

export interface PortState {
  readonly uart: UartState;
  readonly dma: DmaState;
}

/** Where a port's record begins in the stream: behind header and configuration space. */
export function portOffset(port: number): number {
  return MTTY_STATE_HEADER.sizeBytes + MTTY_CONFIG_SIZE + port * MTTY_PORT_STATE.sizeBytes;
}

/** Bytes of a whole state. */
export function stateSize(ports: number): number {
  return portOffset(ports);
}

export function encodeHeader(ports: number): Uint8Array {
  return bytesOf(MTTY_STATE_HEADER.encode({ magic: MTTY_MAGIC, major_ver: MTTY_MAJOR_VERSION, minor_ver: MTTY_MINOR_VERSION, nr_ports: ports, flags: 0 }));
}

/** EINVAL another device's, another version's, another number of ports. */
export function checkHeader(device: string, bytes: Uint8Array, ports: number): void {
  if (bytes.length < MTTY_STATE_HEADER.sizeBytes) throw new Errno('EINVAL', `${device}: a state of ${bytes.length} bytes has no header`);
  const header = MTTY_STATE_HEADER.decode(wordsOfBytes(bytes.subarray(0, MTTY_STATE_HEADER.sizeBytes)));
  if (header.magic !== MTTY_MAGIC) throw new Errno('EINVAL', `${device}: the state is not one of a serial card`);
  if (header.major_ver !== BigInt(MTTY_MAJOR_VERSION) || header.minor_ver !== BigInt(MTTY_MINOR_VERSION) || header.flags !== 0n) {
    const known = `${MTTY_MAJOR_VERSION}.${MTTY_MINOR_VERSION} without flags`;
    throw new Errno('EINVAL', `${device}: the state has version ${header.major_ver}.${header.minor_ver} and flags ${header.flags}, known is ${known}`);
  }
  if (header.nr_ports !== BigInt(ports)) throw new Errno('EINVAL', `${device}: the state has ${header.nr_ports} ports, the card ${ports}`);
}

export function encodePort({ uart, dma }: PortState): Uint8Array {
  const fifo = new DataView(new ArrayBuffer(UART_FIFO_SIZE));
  uart.fifo.forEach((value, i) => fifo.setUint8(i, value));
  return bytesOf(MTTY_PORT_STATE.encode({
    ier: uart.ier, fcr: uart.fcr, lcr: uart.lcr, mcr: uart.mcr, scr: uart.scr, msr: uart.msr, divisor: uart.divisor,
    overrun: Number(uart.overrun), transmit_pending: Number(uart.transmitPending), timeout_pending: Number(uart.timeoutPending),
    count: uart.fifo.length, fifo0: fifo.getBigUint64(0, true), fifo1: fifo.getBigUint64(8, true),
    tx_page: dma.txPage, tx_offset: dma.txOffset, rx_page: dma.rxPage, rx_offset: dma.rxOffset, tx_length: dma.txLength, rx_length: dma.rxLength,
    status: dma.status, bytes_done: dma.bytesDone, interrupt_enable: dma.interruptEnable,
  }));
}

/** @param at where the port's record begins. EINVAL fewer bytes, a FIFO with more than it holds, a transfer longer than any */
export function decodePort(device: string, bytes: Uint8Array, at: number): PortState {
  if (bytes.length < at + MTTY_PORT_STATE.sizeBytes) throw new Errno('EINVAL', `${device}: the state ends after ${bytes.length} bytes`);
  const words = wordsOfBytes(bytes.subarray(at, at + MTTY_PORT_STATE.sizeBytes));
  const { f } = MTTY_PORT_STATE;
  const count = f.count.get(words);
  // no transfer begins with such lengths
  const tooLong = (f.status.get(words) & DMA_STATUS_BUSY) !== 0 && (f.tx_length.get(words) > DMA_MAX_LENGTH || f.rx_length.get(words) > DMA_MAX_LENGTH);
  if (count > UART_FIFO_SIZE || tooLong || MTTY_PORT_STATE.reservedSet(words)) throw new Errno('EINVAL', `${device}: the state of a port makes no sense`);
  const fifo = new DataView(new ArrayBuffer(UART_FIFO_SIZE));
  fifo.setBigUint64(0, f.fifo0.getBig(words), true);
  fifo.setBigUint64(8, f.fifo1.getBig(words), true);
  return {
    uart: {
      ier: f.ier.get(words), fcr: f.fcr.get(words), lcr: f.lcr.get(words), mcr: f.mcr.get(words), scr: f.scr.get(words), divisor: f.divisor.get(words),
      overrun: f.overrun.get(words) !== 0, transmitPending: f.transmit_pending.get(words) !== 0, timeoutPending: f.timeout_pending.get(words) !== 0,
      msr: f.msr.get(words), fifo: Array.from({ length: count }, (_, i) => fifo.getUint8(i)),
    },
    dma: {
      txPage: f.tx_page.get(words), txOffset: f.tx_offset.get(words), rxPage: f.rx_page.get(words), rxOffset: f.rx_offset.get(words),
      txLength: f.tx_length.get(words), rxLength: f.rx_length.get(words), status: f.status.get(words), bytesDone: f.bytes_done.get(words),
      interruptEnable: f.interrupt_enable.get(words),
    },
  };
}
