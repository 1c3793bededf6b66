/** A range of bus addresses out of which bridge windows and BARs are given, first fit, aligned. */
import { alignUp } from '../../../sim/address.js';

interface Taken {
  readonly start: number;
  readonly end: number;
}

export class AddressRange {
  readonly start: number;
  readonly end: number;
  /** The range this one was taken from. */
  readonly parent: AddressRange | undefined;
  private readonly taken: Taken[] = [];

  constructor(start: number, sizeBytes: number, parent?: AddressRange) {
    this.start = start;
    this.end = start + sizeBytes;
    this.parent = parent;
  }

  /** The lowest aligned start of `sizeBytes` free bytes, undefined when there is none. */
  allocate(sizeBytes: number, alignment: number): number | undefined {
    let start = alignUp(this.start, alignment);
    let at = 0;
    for (; at < this.taken.length; at++) {
      const next = this.taken[at]!;
      if (start + sizeBytes <= next.start) break;
      start = Math.max(start, alignUp(next.end, alignment));
    }
    if (start + sizeBytes > this.end) return undefined;
    this.taken.splice(at, 0, { start, end: start + sizeBytes });
    return start;
  }

  /** Gives back what `allocate` returned. */
  free(start: number): void {
    const at = this.taken.findIndex((piece) => piece.start === start);
    if (at >= 0) this.taken.splice(at, 1);
  }

  get empty(): boolean {
    return this.taken.length === 0;
  }
}
