/** A bit for each page of a range of any length; only pieces with a bit that was ever set take room. */
const PIECE_BITS = 1 << 15;

export class SparseBits {
  private readonly pieces = new Map<number, Uint8Array>();

  set(bit: number): void {
    const piece = Math.floor(bit / PIECE_BITS), at = bit % PIECE_BITS;
    let bytes = this.pieces.get(piece);
    if (bytes === undefined) this.pieces.set(piece, (bytes = new Uint8Array(PIECE_BITS / 8)));
    bytes[at >>> 3]! |= 1 << (at & 7);
  }

  clear(bit: number): void {
    const bytes = this.pieces.get(Math.floor(bit / PIECE_BITS)), at = bit % PIECE_BITS;
    if (bytes !== undefined) bytes[at >>> 3]! &= ~(1 << (at & 7));
  }

  /** Bits of [first, end) that are set; ascending inside of a piece, pieces in the order in which they came. */
  *within(first: number, end: number): Generator<number> {
    for (const [piece, bytes] of this.pieces) {
      const base = piece * PIECE_BITS;
      const stop = Math.min(end - base, PIECE_BITS);
      for (let at = Math.max(first - base, 0); at < stop; at++) {
        if ((at & 7) === 0 && bytes[at >>> 3] === 0) at += 7;
        else if ((bytes[at >>> 3]! & (1 << (at & 7))) !== 0) yield base + at;
      }
    }
  }
}
