/**
 * A sparse table from PASIDs (20 bits, PCIe 6.0 section 6.20) to records: two levels of arrays, so that a lookup
 * costs two loads and a million entries cost a million slots.
 */
const CHUNK_BITS = 10;
const CHUNK = 1 << CHUNK_BITS;

export class PasidTable<T> {
  size = 0;
  private readonly chunks: ((T | undefined)[] | undefined)[] = [];
  private readonly used: number[] = [];

  get(pasid: number): T | undefined {
    return this.chunks[pasid >> CHUNK_BITS]?.[pasid & (CHUNK - 1)];
  }

  set(pasid: number, value: T): void {
    const index = pasid >> CHUNK_BITS;
    while (this.chunks.length <= index) {
      this.chunks.push(undefined);
      this.used.push(0);
    }
    const chunk = (this.chunks[index] ??= Array.from<T | undefined>({ length: CHUNK }).fill(undefined));
    const slot = pasid & (CHUNK - 1);
    if (chunk[slot] === undefined) {
      this.size++;
      this.used[index]!++;
    }
    chunk[slot] = value;
  }

  delete(pasid: number): boolean {
    const index = pasid >> CHUNK_BITS;
    const chunk = this.chunks[index];
    const slot = pasid & (CHUNK - 1);
    if (chunk?.[slot] === undefined) return false;
    chunk[slot] = undefined;
    this.size--;
    if (--this.used[index]! === 0) this.chunks[index] = undefined;
    return true;
  }
}
