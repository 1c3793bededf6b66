/**
 * Registers of QEMU's educational PCI device (docs/specs/edu.rst, hw/misc/edu.c). BAR 0 is 1 MiB; offsets below 0x80
 * take 4-byte accesses, the others 4 or 8.
 */
export const EDU_VENDOR_ID = 0x1234;
export const EDU_DEVICE_ID = 0x11e8;
export const EDU_REVISION = 0x10;
/** Unclassified device, other. */
export const EDU_CLASS_CODE = 0x00ff00;
export const EDU_BAR = 0;
export const EDU_BAR_SIZE = 0x10_0000;

export const EDU_ID = 0x0100_00ed;

export const EDU_REG = {
  ID: 0x00, LIVENESS: 0x04, FACTORIAL: 0x08, STATUS: 0x20, IRQ_STATUS: 0x24, IRQ_RAISE: 0x60, IRQ_ACK: 0x64,
  DMA_SRC: 0x80, DMA_DST: 0x88, DMA_COUNT: 0x90, DMA_CMD: 0x98,
} as const;

export const STATUS_COMPUTING = 0x01;
export const STATUS_IRQ_FACTORIAL = 0x80;

/** Bits of the interrupt status that the device sets itself. */
export const IRQ_FACTORIAL = 0x001;
export const IRQ_DMA = 0x100;

export const DMA_RUN = 0x1;
/** From the device's buffer to memory; clear: from memory to the buffer. */
export const DMA_TO_MEMORY = 0x2;
export const DMA_IRQ = 0x4;

/** The device's own buffer, in its private address space. */
export const BUFFER_ADDRESS = 0x4_0000;
export const BUFFER_SIZE = 4096;
/** The device drives this many address bits unless told otherwise. */
export const DEFAULT_DMA_MASK = 2 ** 28 - 1;
