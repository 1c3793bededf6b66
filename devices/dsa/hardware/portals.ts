/**
 * BAR 2: where software submits descriptors. Each queue has four pages; any 64-byte line of a page will do.
 * A 64-byte posted write (MOVDIR64B) submits to a dedicated queue, an enqueue (ENQCMD) to a shared one. Eight stores
 * of 8 bytes (or sixteen of 4) that fill one line are taken as a posted write when the line is full: processors
 * without MOVDIR64B reach user queues of the Linux driver that way. Smaller stores are errors; reads return ones.
 */
import { load32 } from '../../../sim/little-endian.js';
import type { AccessSize, EnqueueResult, Mmio } from '../../../sim/mmio.js';
import { PORTAL_IMS, PORTAL_LIMITED, PORTAL_SIZE, PORTALS_PER_WQ } from '../spec/registers.js';

export interface PortalOwner {
  submitPosted(wq: number, limited: boolean, ims: boolean, words: Uint32Array): void;
  submitEnqueue(wq: number, limited: boolean, ims: boolean, words: Uint32Array): EnqueueResult;
  /** Grows whenever the queue is turned on or off. */
  queueLife(wq: number): number;
  /** An access that no portal takes. */
  portalError(wq: number): void;
}

interface Line {
  readonly words: Uint32Array;
  /** One bit for each 32-bit word that was written. */
  filled: number;
  address: number;
  /** Of the queue when the line was begun: whoever has it later completes nobody else's line. */
  life: number;
}

export class Portals implements Mmio {
  high = 0;
  readonly sizeBytes: number;
  private readonly wqs: number;
  private readonly owner: PortalOwner;
  /** The line being filled, by portal page. */
  private readonly lines: (Line | undefined)[] = [];

  constructor(wqs: number, owner: PortalOwner) {
    this.wqs = wqs;
    this.owner = owner;
    // BARs are powers of two
    this.sizeBytes = 2 ** Math.ceil(Math.log2(wqs * PORTALS_PER_WQ * PORTAL_SIZE));
  }

  read(_offset: number, size: AccessSize): number {
    this.high = size === 8 ? 0xffff_ffff : 0;
    return size === 1 ? 0xff : size === 2 ? 0xffff : 0xffff_ffff;
  }

  write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    const page = Math.floor(offset / PORTAL_SIZE);
    if (page >= this.wqs * PORTALS_PER_WQ) return;
    if (size < 4 || offset % size !== 0) {
      this.owner.portalError(Math.floor(page / PORTALS_PER_WQ));
      return;
    }
    const address = offset - (offset % 64), life = this.owner.queueLife(Math.floor(page / PORTALS_PER_WQ));
    let line = this.lines[page];
    if (line === undefined) {
      while (this.lines.length <= page) this.lines.push(undefined);
      line = this.lines[page] = { words: new Uint32Array(16), filled: 0, address, life };
    }
    if (line.address !== address || line.life !== life || offset === address) {
      line.address = address;
      line.life = life;
      line.filled = 0;
    }
    const word = (offset - address) / 4;
    line.words[word] = lo;
    line.filled |= 1 << word;
    if (size === 8) {
      line.words[word + 1] = hi;
      line.filled |= 2 << word;
    }
    if (line.filled !== 0xffff) return;
    line.filled = 0;
    this.submit(page, line.words.slice());
  }

  write64(offset: number, bytes: Uint8Array): void {
    const page = Math.floor(offset / PORTAL_SIZE);
    if (page < this.wqs * PORTALS_PER_WQ) this.submit(page, wordsOfBytes(bytes));
  }

  enqueue64(offset: number, bytes: Uint8Array): EnqueueResult {
    const page = Math.floor(offset / PORTAL_SIZE);
    if (page >= this.wqs * PORTALS_PER_WQ) return 'retry';
    return this.owner.submitEnqueue(Math.floor(page / PORTALS_PER_WQ), (page & PORTAL_LIMITED) !== 0, (page & PORTAL_IMS) !== 0, wordsOfBytes(bytes));
  }

  private submit(page: number, words: Uint32Array): void {
    this.owner.submitPosted(Math.floor(page / PORTALS_PER_WQ), (page & PORTAL_LIMITED) !== 0, (page & PORTAL_IMS) !== 0, words);
  }
}

function wordsOfBytes(bytes: Uint8Array): Uint32Array {
  const words = new Uint32Array(16);
  for (let i = 0; i < 16; i++) words[i] = load32(bytes, i * 4);
  return words;
}
