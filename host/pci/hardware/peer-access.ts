/** DMA whose target is another function's registers (peer-to-peer). */
import type { Mmio } from '../../../sim/mmio.js';

/** Pages [startPage, endPage) of a peer's BAR that a switch routes to without the root complex. */
export interface PeerWindow {
  readonly startPage: number;
  readonly endPage: number;
  /** Egress control refuses the request instead (an ACS violation). */
  readonly blocked: boolean;
}

/** Splits into aligned accesses of at most 8 bytes; 64 aligned bytes travel as one posted write. */
export function moveThroughMmio(write: boolean, mmio: Mmio, offset: number, buffer: Uint8Array, bufferOffset: number, length: number): void {
  while (length > 0) {
    if (write && length >= 64 && offset % 64 === 0) {
      mmio.write64(offset, buffer.subarray(bufferOffset, bufferOffset + 64));
      offset += 64;
      bufferOffset += 64;
      length -= 64;
      continue;
    }
    const size = length >= 8 && offset % 8 === 0 ? 8 : length >= 4 && offset % 4 === 0 ? 4 : length >= 2 && offset % 2 === 0 ? 2 : 1;
    if (write) {
      mmio.write(offset, size, littleEndian(buffer, bufferOffset, Math.min(size, 4)), size === 8 ? littleEndian(buffer, bufferOffset + 4, 4) : 0);
    } else {
      const lo = mmio.read(offset, size), hi = mmio.high;
      for (let i = 0; i < size; i++) buffer[bufferOffset + i] = (i < 4 ? lo : hi) >>> (8 * (i & 3));
    }
    offset += size;
    bufferOffset += size;
    length -= size;
  }
}

function littleEndian(bytes: Uint8Array, at: number, size: number): number {
  let value = 0;
  for (let i = 0; i < size; i++) value |= bytes[at + i]! << (8 * i);
  return value >>> 0;
}
