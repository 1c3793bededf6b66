/**
 * Which ids of a bounded space are taken: bits in chunks that exist only where ids are in use, so that an empty
 * space costs nothing and a million ids cost 128 KiB of bits. Finding a free id skips full chunks and full words.
 */
const CHUNK_BITS = 12;
const CHUNK = 1 << CHUNK_BITS;
const WORDS = CHUNK / 32;

class Chunk {
  readonly bits = new Int32Array(WORDS);
  used = 0;
  /** No word before this one has a free bit. */
  firstOpenWord = 0;
}

export class IdBitmap {
  /** First id that cannot be taken. */
  readonly endId: number;
  count = 0;
  private readonly chunks: (Chunk | undefined)[] = [];
  /** No chunk before this one has a free id. */
  private firstOpenChunk = 0;

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
    if (++chunk.used === CHUNK && index === this.firstOpenChunk) this.firstOpenChunk = index + 1;
    while (chunk.firstOpenWord < WORDS && chunk.bits[chunk.firstOpenWord] === -1) chunk.firstOpenWord++;
    return true;
  }

  /** False when the id was free. */
  release(id: number): boolean {
    if (!this.has(id)) return false;
    const index = id >>> CHUNK_BITS;
    const chunk = this.chunks[index]!;
    const word = (id & (CHUNK - 1)) >> 5;
    chunk.bits[word]! &= ~(1 << (id & 31));
    this.count--;
    if (word < chunk.firstOpenWord) chunk.firstOpenWord = word;
    if (index < this.firstOpenChunk) this.firstOpenChunk = index;
    if (--chunk.used === 0) this.chunks[index] = undefined;
    return true;
  }

  /** Lowest free id of first .. last, both included; -1 when all are taken. */
  lowestFree(first: number, last: number): number {
    const end = Math.min(last + 1, this.endId);
    let id = Math.max(first, this.firstOpenChunk << CHUNK_BITS);
    while (id < end) {
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
  if (word < chunk.firstOpenWord) {
    word = chunk.firstOpenWord;
    if (word === WORDS) return -1;
    open = ~chunk.bits[word]!;
  }
  while (open === 0) {
    if (++word === WORDS) return -1;
    open = ~chunk.bits[word]!;
  }
  return (word << 5) + 31 - Math.clz32(open & -open);
}
