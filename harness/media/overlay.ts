/** What was written over something that stays as it is: pages of 4 KiB, and whole mebibytes that were zeroed, which cost nothing. */

const PAGE = 4096;
const ZONE = 1 << 20;
const PAGES_PER_ZONE = ZONE / PAGE;

export class Overlay {
  private readonly sizeBytes: number;
  private readonly below: (offset: number, target: Uint8Array) => boolean;
  private readonly pages = new Map<number, Uint8Array>();
  /** Zones that read as zeros where no page lies over them. */
  private readonly zeroed = new Set<number>();

  /** @param below fills `target` with what lies at `offset`, never beyond `sizeBytes`. False: it cannot */
  constructor(sizeBytes: number, below: (offset: number, target: Uint8Array) => boolean) {
    this.sizeBytes = sizeBytes;
    this.below = below;
  }

  get changedBytes(): number {
    return this.pages.size * PAGE;
  }

  /** Runs of what lies below are read at once. */
  read(offset: number, target: Uint8Array): boolean {
    for (let at = 0; at < target.length; ) {
      const index = Math.floor((offset + at) / PAGE), inside = (offset + at) % PAGE, page = this.pages.get(index);
      let count = Math.min(PAGE - inside, target.length - at);
      if (page !== undefined) target.set(page.subarray(inside, inside + count), at);
      else if (this.zeroed.has(Math.floor(index / PAGES_PER_ZONE))) target.fill(0, at, at + count);
      else {
        for (let next = index + 1; at + count < target.length && this.isBelow(next); next++) count = Math.min(count + PAGE, target.length - at);
        if (!this.below(offset + at, target.subarray(at, at + count))) return false;
      }
      at += count;
    }
    return true;
  }

  /** False: what lies below a page that is written in part cannot be read. Pages before it are written then. */
  write(offset: number, source: Uint8Array): boolean {
    for (let at = 0; at < source.length; ) {
      const inside = (offset + at) % PAGE, count = Math.min(PAGE - inside, source.length - at);
      const page = this.pageAt(Math.floor((offset + at) / PAGE), count);
      if (page === undefined) return false;
      page.set(source.subarray(at, at + count), inside);
      at += count;
    }
    return true;
  }

  zero(offset: number, sizeBytes: number): boolean {
    for (let at = offset; at < offset + sizeBytes; ) {
      const zone = Math.floor(at / ZONE), count = Math.min(ZONE - at % ZONE, offset + sizeBytes - at);
      if (count === ZONE) this.zeroZone(zone);
      else if (!this.zeroPages(at, count)) return false;
      at += count;
    }
    return true;
  }

  private zeroZone(zone: number): void {
    this.zeroed.add(zone);
    if (this.pages.size === 0) return;
    for (let i = 0; i < PAGES_PER_ZONE; i++) this.pages.delete(zone * PAGES_PER_ZONE + i);
  }

  private zeroPages(offset: number, sizeBytes: number): boolean {
    for (let at = offset; at < offset + sizeBytes; ) {
      const index = Math.floor(at / PAGE), inside = at % PAGE, count = Math.min(PAGE - inside, offset + sizeBytes - at);
      if (this.isBelow(index) || this.pages.has(index)) {
        const page = this.pageAt(index, count);
        if (page === undefined) return false;
        page.fill(0, inside, inside + count);
      }
      at += count;
    }
    return true;
  }

  private isBelow(index: number): boolean {
    return !this.pages.has(index) && !this.zeroed.has(Math.floor(index / PAGES_PER_ZONE));
  }

  /** A page that holds its bytes, unless all of them are written now. */
  private pageAt(index: number, count: number): Uint8Array | undefined {
    const known = this.pages.get(index);
    if (known !== undefined) return known;
    const page = new Uint8Array(PAGE);
    if (count < PAGE && this.isBelow(index) && !this.below(index * PAGE, page.subarray(0, Math.min(PAGE, this.sizeBytes - index * PAGE)))) return undefined;
    this.pages.set(index, page);
    return page;
  }
}
