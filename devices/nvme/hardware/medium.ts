/**
 * What a namespace's blocks lie on. Everything happens at once: the controller lets the time pass. `MemoryMedium` keeps what
 * was written and shows content below it that it never changes; media on files belong to who may touch files.
 */
import { assert } from '../../../sim/assert.js';

export interface BlockMedium {
  readonly sizeBytes: number;
  /** Writes are refused before they are tried (Namespace is Write Protected). */
  readonly readOnly?: boolean;
  /** Fills `target` from `offset` on. False: the medium could not (the command ends with an unrecovered read error). */
  read(offset: number, target: Uint8Array): boolean;
  /** False: the medium could not (write fault); what it holds there is then undefined. */
  write(offset: number, source: Uint8Array): boolean;
  /** Everything written before is safe when this returns. False: write fault. */
  flush(): boolean;
  /** Makes a range read as zeros without moving them. Without it zeros are written. */
  zero?(offset: number, sizeBytes: number): boolean;
}

const CHUNK = 4096;
const ZEROS = new Uint8Array(CHUNK);

/** Sparse: chunks that were written, above `content`, above zeros. */
export class MemoryMedium implements BlockMedium {
  readonly sizeBytes: number;
  /** Writes since the last flush. */
  unflushedWrites = 0;
  private readonly content: Uint8Array;
  private readonly chunks = new Map<number, Uint8Array>();

  /** @param content of the first bytes; never written to. What lies beyond `sizeBytes` is not part of the medium */
  constructor(sizeBytes: number, content: Uint8Array = new Uint8Array(0)) {
    this.sizeBytes = sizeBytes;
    this.content = content.subarray(0, sizeBytes);
  }

  /** Bytes held for what was written. */
  get changedBytes(): number {
    return this.chunks.size * CHUNK;
  }

  read(offset: number, target: Uint8Array): boolean {
    this.check(offset, target.length);
    for (let at = 0; at < target.length; ) {
      const inside = (offset + at) % CHUNK, count = Math.min(CHUNK - inside, target.length - at);
      const chunk = this.chunks.get(Math.floor((offset + at) / CHUNK));
      if (chunk === undefined) this.readContent(offset + at, target.subarray(at, at + count));
      else target.set(chunk.subarray(inside, inside + count), at);
      at += count;
    }
    return true;
  }

  write(offset: number, source: Uint8Array): boolean {
    this.check(offset, source.length);
    this.unflushedWrites++;
    for (let at = 0; at < source.length; ) {
      const inside = (offset + at) % CHUNK, count = Math.min(CHUNK - inside, source.length - at);
      this.chunkAt(Math.floor((offset + at) / CHUNK)).set(source.subarray(at, at + count), inside);
      at += count;
    }
    return true;
  }

  flush(): boolean {
    this.unflushedWrites = 0;
    return true;
  }

  zero(offset: number, sizeBytes: number): boolean {
    this.check(offset, sizeBytes);
    this.unflushedWrites++;
    for (let at = offset; at < offset + sizeBytes; ) {
      const index = Math.floor(at / CHUNK), inside = at % CHUNK, count = Math.min(CHUNK - inside, offset + sizeBytes - at);
      // nothing below a whole chunk beyond the content: it may go
      if (count === CHUNK && index * CHUNK >= this.content.length) this.chunks.delete(index);
      else if (this.chunks.has(index) || index * CHUNK < this.content.length) this.chunkAt(index).fill(0, inside, inside + count);
      at += count;
    }
    return true;
  }

  private readContent(offset: number, target: Uint8Array): void {
    const part = this.content.subarray(offset, offset + target.length);
    target.set(part);
    target.fill(0, part.length);
  }

  private chunkAt(index: number): Uint8Array {
    let chunk = this.chunks.get(index);
    if (chunk === undefined) {
      this.chunks.set(index, (chunk = new Uint8Array(CHUNK)));
      this.readContent(index * CHUNK, chunk);
    }
    return chunk;
  }

  private check(offset: number, sizeBytes: number): void {
    assert(offset >= 0 && offset + sizeBytes <= this.sizeBytes, `bytes ${offset}+${sizeBytes} of a medium of ${this.sizeBytes}`);
  }
}

/** Zeros a range of any medium. */
export function zeroRange(medium: BlockMedium, offset: number, sizeBytes: number): boolean {
  if (medium.zero !== undefined) return medium.zero(offset, sizeBytes);
  for (let at = 0; at < sizeBytes; at += CHUNK) {
    if (!medium.write(offset + at, ZEROS.subarray(0, Math.min(CHUNK, sizeBytes - at)))) return false;
  }
  return true;
}
