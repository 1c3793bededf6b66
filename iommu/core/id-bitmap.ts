/**
 * Which ids of a bounded space are taken: bits in chunks that exist only where ids are in use, so that an empty
 * space costs nothing and a million ids cost 128 KiB of bits. Finding a free id skips full chunks, and the one run
 * of taken ids that earlier searches have walked.
 */
const CHUNK_BITS = 12;
const CHUNK = 1 << CHUNK_BITS;
const WORDS = CHUNK / 32;

class Chunk {
  readonly bits = new Int32Array(WORDS);
  used = 0;
}

export class IdBitmap {
  /** First id that cannot be taken. */
  readonly endId: number;
  count = 0;
  private readonly chunks: (Chunk | undefined)[] = [];
  /** All ids of [runStart, runEnd) are taken. */
  private runStart = 0;
  private runEnd = 0;

  constructor(endId: number) {
    this.endId = endId;
  }

  has(id: number): boolean {
    const chunk = this.chunks[id >>> CHUNK_BITS];
    return chunk !== undefined && (chunk.bits[(id & (CHUNK - 1)) >> 5]! & (1 << (id & 31))) !== 0;
  }

  /** False when the id was taken already. */
  take(id: number): boolean {
    const index = id >>> CHUNK_BITS;
    while (this.chunks.length <= index) this.chunks.push(undefined);
    const chunk = (this.chunks[index] ??= new Chunk());
    const word = (id & (CHUNK - 1)) >> 5;
    const bit = 1 << (id & 31);
    if ((chunk.bits[word]! & bit) !== 0) return false;
    chunk.bits[word]! |= bit;
    this.count++;
    chunk.used++;
    return true;
  }

  /** False when the id was free. */
  release(id: number): boolean {
    if (!this.has(id)) return false;
    const index = id >>> CHUNK_BITS;
    const chunk = this.chunks[index]!;
    chunk.bits[(id & (CHUNK - 1)) >> 5]! &= ~(1 << (id & 31));
    this.count--;
    if (id >= this.runStart && id < this.runEnd) this.runEnd = id;
    if (--chunk.used === 0) this.chunks[index] = undefined;
    return true;
  }

  /** Lowest free id of first .. last, both included; -1 when all are taken. */
  lowestFree(first: number, last: number): number {
    const end = Math.min(last + 1, this.endId);
    const known = first >= this.runStart && first <= this.runEnd;
    const found = this.search(known ? this.runEnd : first, end);
    const walkedTo = found < 0 ? end : found;
    if (known) this.runEnd = Math.max(this.runEnd, walkedTo);
    else if (walkedTo - first > this.runEnd - this.runStart) {
      this.runStart = first;
      this.runEnd = walkedTo;
    }
    return found;
  }

  private search(start: number, end: number): number {
    for (let id = start; id < end; ) {
      const base = id - (id & (CHUNK - 1));
      const chunk = this.chunks[base >>> CHUNK_BITS];
      if (chunk === undefined) return id;
      const found = chunk.used === CHUNK ? -1 : lowestInChunk(chunk, id & (CHUNK - 1));
      if (found >= 0) return base + found < end ? base + found : -1;
      id = base + CHUNK;
    }
    return -1;
  }
}

function lowestInChunk(chunk: Chunk, from: number): number {
  let word = from >> 5;
  // bits below `from` in its own word do not count
  let open = ~chunk.bits[word]! & (-1 << (from & 31));
  while (open === 0) {
    if (++word === WORDS) return -1;
    open = ~chunk.bits[word]!;
  }
  return (word << 5) + 31 - Math.clz32(open & -open);
}
