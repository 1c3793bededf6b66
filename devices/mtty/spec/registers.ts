/**
 * The virtual PCI serial card of Linux' sample of a mediated device (samples/vfio-mdev/mtty.c, v6.12): identity, types,
 * and the registers of its ports, which are 16550A (PC16550D data sheet; names as include/uapi/linux/serial_reg.h).
 * Two things are ours: the ports lie in memory BARs of a page each, because I/O BARs are not modelled, and behind each
 * UART there is a DMA window (`DMA_REG`), as real 8250 chips have one of their own make. Left out: a port's other BARs.
 */
export const MTTY_VENDOR_ID = 0x4348;
export const MTTY_DEVICE_ID = 0x3253;
export const MTTY_REVISION = 0x10;
/** Simple communication controller, serial, 16550-compatible. */
export const MTTY_CLASS_CODE = 0x07_0002;

/** Ports of all devices of a parent together. */
export const MAX_MTTYS = 24;
export const MTTY_TYPES = [
  { name: '1', label: 'Single port serial', ports: 1 },
  { name: '2', label: 'Dual port serial', ports: 2 },
] as const;

/** BAR n is port n. */
export const PORT_BAR_SIZE = 4096;
export const MTTY_CONFIG_SIZE = 256;
/** The sample has no capability list; ours holds MSI with one vector, so that a guest can use what the MSI index offers. */
export const MTTY_MSI_OFFSET = 0x50;

// --- 16550A, one byte each from the BAR's start
/** RBR when read, THR when written, DLL with DLAB. */
export const UART_RX = 0;
export const UART_TX = 0;
export const UART_DLL = 0;
/** DLM with DLAB. */
export const UART_IER = 1;
export const UART_DLM = 1;
/** IIR when read, FCR when written. */
export const UART_IIR = 2;
export const UART_FCR = 2;
export const UART_LCR = 3;
export const UART_MCR = 4;
export const UART_LSR = 5;
export const UART_MSR = 6;
export const UART_SCR = 7;
export const UART_REGISTERS = 8;

export const UART_IER_RDI = 0x01;
export const UART_IER_THRI = 0x02;
export const UART_IER_RLSI = 0x04;
export const UART_IER_MSI = 0x08;

export const UART_IIR_MSI = 0x00;
export const UART_IIR_NO_INT = 0x01;
export const UART_IIR_THRI = 0x02;
export const UART_IIR_RDI = 0x04;
export const UART_IIR_RLSI = 0x06;
export const UART_IIR_RX_TIMEOUT = 0x0c;
export const UART_IIR_ID_MASK = 0x0f;
/** Both set while the FIFO is on. */
export const UART_IIR_FIFO_ENABLED = 0xc0;

export const UART_FCR_ENABLE_FIFO = 0x01;
export const UART_FCR_CLEAR_RCVR = 0x02;
export const UART_FCR_CLEAR_XMIT = 0x04;
export const UART_FCR_TRIGGER_MASK = 0xc0;
/** Bytes in the FIFO that interrupt, by the two bits of UART_FCR_TRIGGER_MASK. */
export const UART_TRIGGER_LEVELS = [1, 4, 8, 14] as const;
export const UART_FIFO_SIZE = 16;

export const UART_LCR_DLAB = 0x80;
export const UART_LCR_WLEN8 = 0x03;
export const UART_LCR_WLEN_MASK = 0x03;
export const UART_LCR_STOP = 0x04;
export const UART_LCR_PARITY = 0x08;

export const UART_MCR_DTR = 0x01;
export const UART_MCR_RTS = 0x02;
export const UART_MCR_OUT1 = 0x04;
export const UART_MCR_OUT2 = 0x08;
export const UART_MCR_LOOP = 0x10;
export const UART_MCR_AFE = 0x20;

export const UART_LSR_DR = 0x01;
export const UART_LSR_OE = 0x02;
export const UART_LSR_THRE = 0x20;
export const UART_LSR_TEMT = 0x40;

export const UART_MSR_DCTS = 0x01;
export const UART_MSR_DDSR = 0x02;
export const UART_MSR_TERI = 0x04;
export const UART_MSR_DDCD = 0x08;
export const UART_MSR_CTS = 0x10;
export const UART_MSR_DSR = 0x20;
export const UART_MSR_RI = 0x40;
export const UART_MSR_DCD = 0x80;

/** Bits per second with divisor 1: a crystal of 1.8432 MHz over 16. */
export const UART_BASE_BAUD = 115_200;

// --- our DMA window, 32-bit registers; 64-bit ones take two halves
export const DMA_WINDOW = 0x100;
export const DMA_WINDOW_SIZE = 0x30;
/** Offsets inside the window. */
export const DMA_REG = {
  /** Read-only: DMA_ID_VALUE where there is a DMA engine. */
  ID: 0x00,
  /** Read-only: most bytes of one transfer. */
  MAX_LENGTH: 0x04,
  TX_ADDRESS: 0x08,
  TX_LENGTH: 0x10,
  RX_LENGTH: 0x14,
  RX_ADDRESS: 0x18,
  /** Write-only doorbell. */
  COMMAND: 0x20,
  STATUS: 0x24,
  /** Read-only: bytes that have arrived in the receive buffer. */
  BYTES_DONE: 0x28,
  INTERRUPT_ENABLE: 0x2c,
} as const;
/** `mDMA` */
export const DMA_ID_VALUE = 0x414d_446d;
export const DMA_MAX_LENGTH = 1 << 20;

export const DMA_COMMAND_START = 1 << 0;
export const DMA_COMMAND_ABORT = 1 << 1;
/** A transfer is under way: address and length registers ignore writes. */
export const DMA_STATUS_BUSY = 1 << 0;
/** It has ended, well or not; a written 1 clears it. With INTERRUPT_ENABLE bit 0 it interrupts. */
export const DMA_STATUS_DONE = 1 << 1;
/** Bits 15:8: why it ended early, 0 when all bytes arrived; stands until the next start. */
export const DMA_STATUS_ERROR_SHIFT = 8;
export const DMA_STATUS_ERROR_MASK = 0xff00;
export const DMA_INTERRUPT_DONE = 1 << 0;

export const DMA_ERROR = {
  NONE: 0,
  /** A length of 0 or above the maximum. */
  LENGTH: 1,
  /** The command register does not let the card be a bus master. */
  BUS_MASTER: 2,
  /** Memory that is not there, or may not be read or written. */
  ADDRESS: 3,
  /** The host could not pin the pages for want of something. */
  RESOURCES: 4,
  /** The receive buffer is shorter than what was sent; it has been filled. */
  OVERRUN: 5,
  /** DMA_COMMAND_ABORT. */
  ABORTED: 6,
  /** The memory was unmapped under the transfer. */
  UNMAPPED: 7,
} as const;
export type DmaError = (typeof DMA_ERROR)[keyof typeof DMA_ERROR];

/** Name of an error code, for messages. */
export function dmaErrorName(code: number): string {
  for (const [name, value] of Object.entries(DMA_ERROR)) if (value === code) return name;
  return `error ${code}`;
}
