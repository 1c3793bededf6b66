/**
 * Data between the controller and memory: where PRP entries and lists say that it lies (NVMe 1.4 section 4.3), and moving it.
 * The first entry may begin anywhere in its page at a multiple of four; every other one begins its page. A list may
 * begin inside a page; the last entry of a page of it leads to the next page while more follow. It should begin at a
 * multiple of eight, but SeaBIOS has lists at odd multiples of four (nvme_namespace.prpl in src/hw/nvme-int.h, where
 * 64-bit words have the i386's alignment) and QEMU reads them there, so they are read there.
 */
import { pageOfWords } from '../../../sim/address.js';
import { load32 } from '../../../sim/little-endian.js';
import type { Steps } from '../../../sim/task.js';
import { DNR, DW_PRP1, DW_PRP2, STATUS } from '../spec/commands.js';

/** `revoked`: bus mastering off, reset or removed. */
export type Moved = 'done' | 'error' | 'revoked';

/** The function's requests, as the controller uses them. `costNs` of the last one is to be slept by the caller. */
export interface MemoryAccess {
  readonly costNs: number;
  /** Time that requests one after the other do not take again. */
  overlapNs(write: boolean): number;
  read(page: number, offset: number, target: Uint8Array, targetOffset: number, length: number): Steps<Moved>;
  write(page: number, offset: number, source: Uint8Array, sourceOffset: number, length: number): Steps<Moved>;
}

/** Contiguous bytes in memory: 4 KiB page, offset in it. */
export interface Extent {
  readonly page: number;
  readonly offset: number;
  length: number;
}

/** The controller forgot the command. */
export const FORGOTTEN = -1;
const ENTRY_BYTES = 8;

/** One command's transfers. */
export class Transfer {
  readonly extents: Extent[] = [];
  /** Time of the requests since it was last taken. */
  private costNs = 0;
  private readonly access: MemoryAccess;
  private readonly words: Uint32Array;
  private readonly pageBytes: number;
  private readonly alive: () => boolean;

  /**
   * @param pageBytes memory page size, CC.MPS
   * @param alive false once the command is to be forgotten
   */
  constructor(access: MemoryAccess, words: Uint32Array, pageBytes: number, alive: () => boolean) {
    this.access = access;
    this.words = words;
    this.pageBytes = pageBytes;
    this.alive = alive;
  }

  /** What the transfers took and nobody has slept yet. */
  takeCostNs(): number {
    const { costNs } = this;
    this.costNs = 0;
    return costNs;
  }

  /** Collects where `sizeBytes` lie. Answers a status, or FORGOTTEN. */
  *locate(sizeBytes: number): Steps<number> {
    const { words, pageBytes } = this;
    const lo = words[DW_PRP1]!, offset = lo & (pageBytes - 1);
    if ((lo & 3) !== 0) return STATUS.INVALID_PRP_OFFSET | DNR;
    const first = Math.min(pageBytes - offset, sizeBytes);
    this.add(lo, words[DW_PRP1 + 1]!, first);
    const left = sizeBytes - first;
    if (left === 0) return STATUS.SUCCESS;
    const lo2 = words[DW_PRP2]!, hi2 = words[DW_PRP2 + 1]!;
    if (left > pageBytes) return yield* this.locateList(lo2, hi2, left);
    if ((lo2 & (pageBytes - 1)) !== 0) return STATUS.INVALID_PRP_OFFSET | DNR;
    this.add(lo2, hi2, left);
    return STATUS.SUCCESS;
  }

  private *locateList(lo: number, hi: number, sizeBytes: number): Steps<number> {
    const { pageBytes } = this;
    if ((lo & 3) !== 0 || pageBytes - (lo & (pageBytes - 1)) < ENTRY_BYTES) return STATUS.INVALID_PRP_OFFSET | DNR;
    for (let left = sizeBytes; ; ) {
      const needed = Math.ceil(left / pageBytes), room = Math.floor((pageBytes - (lo & (pageBytes - 1))) / ENTRY_BYTES);
      const count = Math.min(needed, room);
      const bytes = new Uint8Array(count * ENTRY_BYTES);
      const status = yield* this.request(false, pageOfWords(lo, hi), lo & 0xfff, bytes, 0, bytes.length);
      if (status !== STATUS.SUCCESS) return status;
      const entries = count < needed ? count - 1 : count;
      for (let i = 0; i < entries; i++) {
        const entry = load32(bytes, i * ENTRY_BYTES);
        if ((entry & (pageBytes - 1)) !== 0) return STATUS.INVALID_PRP_OFFSET | DNR;
        const length = Math.min(pageBytes, left);
        this.add(entry, load32(bytes, i * ENTRY_BYTES + 4), length);
        left -= length;
      }
      if (left === 0) return STATUS.SUCCESS;
      lo = load32(bytes, entries * ENTRY_BYTES);
      hi = load32(bytes, entries * ENTRY_BYTES + 4);
      if ((lo & (pageBytes - 1)) !== 0) return STATUS.INVALID_PRP_OFFSET | DNR;
    }
  }

  /** Memory to `buffer`. Answers a status, or FORGOTTEN. */
  fetch(buffer: Uint8Array): Steps<number> {
    return this.move(false, buffer);
  }

  /** `buffer` to memory. */
  store(buffer: Uint8Array): Steps<number> {
    return this.move(true, buffer);
  }

  private *move(write: boolean, buffer: Uint8Array): Steps<number> {
    let at = 0;
    for (const { page, offset, length } of this.extents) {
      const status = yield* this.request(write, page, offset, buffer, at, length);
      if (status !== STATUS.SUCCESS) return status;
      at += length;
    }
    return STATUS.SUCCESS;
  }

  private *request(write: boolean, page: number, offset: number, buffer: Uint8Array, at: number, length: number): Steps<number> {
    const { access } = this;
    const moved = yield* write ? access.write(page, offset, buffer, at, length) : access.read(page, offset, buffer, at, length);
    // what had been held may have ended in another life
    if (!this.alive()) return FORGOTTEN;
    this.costNs += this.costNs > 0 ? Math.max(access.costNs - access.overlapNs(write), 0) : access.costNs;
    return moved === 'done' ? STATUS.SUCCESS : STATUS.DATA_TRANSFER;
  }

  /** Neighbours become one request. */
  private add(lo: number, hi: number, length: number): void {
    const page = pageOfWords(lo, hi), offset = lo & 0xfff;
    const last = this.extents.at(-1);
    const end = last === undefined ? 0 : last.offset + last.length;
    if (last !== undefined && end % 4096 === offset && last.page + Math.floor(end / 4096) === page) last.length += length;
    else this.extents.push({ page, offset, length });
  }
}
