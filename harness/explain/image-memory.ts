/**
 * Physical memory of a stopped machine, read-only: pieces of files and byte strings by physical address. Files are
 * read window by window as they are needed, so an image of many GiB costs a few MiB. What no piece covers answers
 * *absent*, as do loads after the file shrank.
 */
import { assert } from '../../sim/assert.js';
import type { PhysicalMemory } from '../../sim/memory.js';

/** Bytes that an image piece holds; `read` copies into `target` from its start and answers false when it cannot. */
export interface ImageBytes {
  readonly length: number;
  read(offset: number, target: Uint8Array, length: number): boolean;
}

/** A piece of physical memory: `bytes` from `start` on. Starts and lengths need no alignment. */
export interface ImagePiece {
  readonly start: number;
  readonly bytes: ImageBytes;
}

const WINDOW_SHIFT = 16;
const WINDOW_BYTES = 1 << WINDOW_SHIFT;
const WINDOWS = 256;

class Window {
  readonly bytes = new Uint8Array(WINDOW_BYTES);
  readonly words = new Int32Array(this.bytes.buffer);
  /** First address / WINDOW_BYTES, -1 when unused. */
  number = -1;
  /** One bit of truth for the common case: every byte of the window is memory. */
  whole = false;
}

/** Bytes that are in this process already. */
export function bytesOf(data: Uint8Array): ImageBytes {
  return {
    length: data.length,
    read(offset, target, length) {
      target.set(data.subarray(offset, offset + length));
      return true;
    },
  };
}

export class ImageMemory implements PhysicalMemory {
  readonly generation = 0;
  lo = 0;
  hi = 0;
  /** Ascending, disjoint. */
  readonly pieces: readonly ImagePiece[];
  private readonly windows: (Window | undefined)[] = Array.from({ length: WINDOWS }, () => undefined);
  private readonly scratch = new Uint8Array(WINDOW_BYTES);

  /** @param pieces disjoint and below 2^53; in any order */
  constructor(pieces: readonly ImagePiece[]) {
    this.pieces = pieces.filter(({ bytes }) => bytes.length > 0).toSorted((a, b) => a.start - b.start);
    for (let i = 1; i < this.pieces.length; i++) {
      const before = this.pieces[i - 1]!;
      assert(before.start + before.bytes.length <= this.pieces[i]!.start, 'pieces of an image overlap');
    }
  }

  get sizeBytes(): number {
    return this.pieces.reduce((sum, { bytes }) => sum + bytes.length, 0);
  }

  has(address: number, length: number): boolean {
    let at = address, left = length;
    for (let i = this.pieceAt(address); left > 0; i++) {
      const piece = this.pieces[i];
      if (piece === undefined || at < piece.start || at >= piece.start + piece.bytes.length) return false;
      const count = Math.min(left, piece.start + piece.bytes.length - at);
      at += count;
      left -= count;
    }
    return true;
  }

  load64(address: number): boolean {
    if (address % 8 !== 0 || !(address < Number.MAX_SAFE_INTEGER)) return false;
    const window = this.window(address);
    if (!window.whole && !this.has(address, 8)) return false;
    const index = (address % WINDOW_BYTES) >>> 2;
    this.lo = window.words[index]!;
    this.hi = window.words[index + 1]!;
    return true;
  }

  load(address: number, size: 1 | 2 | 4): number {
    if (address % size !== 0 || !(address < Number.MAX_SAFE_INTEGER)) return -1;
    const window = this.window(address);
    if (!window.whole && !this.has(address, size)) return -1;
    const offset = address % WINDOW_BYTES;
    const { bytes } = window;
    if (size === 4) return window.words[offset >>> 2]! >>> 0;
    return size === 1 ? bytes[offset]! : bytes[offset]! | (bytes[offset + 1]! << 8);
  }

  read(address: number, target: Uint8Array, targetOffset: number, length: number): boolean {
    if (!this.has(address, length)) return false;
    while (length > 0) {
      const offset = address % WINDOW_BYTES;
      const count = Math.min(length, WINDOW_BYTES - offset);
      target.set(this.window(address).bytes.subarray(offset, offset + count), targetOffset);
      address += count;
      targetOffset += count;
      length -= count;
    }
    return true;
  }

  /** An image is never changed: stores answer *absent*. */
  store64(): boolean {
    return false;
  }

  compareExchange64(): boolean {
    return false;
  }

  store(): boolean {
    return false;
  }

  write(): boolean {
    return false;
  }

  fill(): boolean {
    return false;
  }

  copy(): boolean {
    return false;
  }

  /** Index of the last piece that starts at or below `address`; 0 when none does. */
  private pieceAt(address: number): number {
    let low = 0, high = this.pieces.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.pieces[middle]!.start <= address) low = middle + 1;
      else high = middle;
    }
    return Math.max(0, low - 1);
  }

  private window(address: number): Window {
    const number = Math.floor(address / WINDOW_BYTES);
    const slot = number % WINDOWS;
    const window = (this.windows[slot] ??= new Window());
    if (window.number !== number) this.fill64K(window, number);
    return window;
  }

  private fill64K(window: Window, number: number): void {
    const start = number * WINDOW_BYTES, end = start + WINDOW_BYTES;
    window.number = number;
    window.bytes.fill(0);
    let covered = 0;
    for (let i = this.pieceAt(start); i < this.pieces.length && this.pieces[i]!.start < end; i++) {
      const { start: pieceStart, bytes } = this.pieces[i]!;
      const from = Math.max(start, pieceStart), to = Math.min(end, pieceStart + bytes.length);
      if (from >= to || !bytes.read(from - pieceStart, this.scratch, to - from)) continue;
      window.bytes.set(this.scratch.subarray(0, to - from), from - start);
      covered += to - from;
    }
    window.whole = covered === WINDOW_BYTES;
  }
}
