/**
 * Where DMA may land, said by those who decide it: the programs' own calls. Kept in flat arrays, because it is asked for every DMA. It
 * knows frames only from the page tables of the programs at the moment of a call, and nothing of domains, tables, PASIDs of drivers or caches.
 */

/** Pages that a space looks at; addresses outside are mapped by nobody. */
export const WINDOW = 2048;
/** Words of a page that have a content: byte offsets. */
export const SLOTS = [0, 1024, 2048, 4092] as const;

export const READ = 1;
export const WRITE = 2;
/** A call is under way that maps or unmaps the page: both outcomes are right. */
export const MOVING = 4;

/** What one container maps, or one process's memory. */
export class Space {
  readonly owner: number;
  readonly name: string;
  /** First page of the window. */
  readonly base: number;
  readonly flags = new Uint8Array(WINDOW);
  readonly frames = new Int32Array(WINDOW);
  /** Pages may be exchanged for others at any time; contents are judged by owner only while they move. */
  readonly process: boolean;
  /** First pages and lengths of what is mapped, for who looks for a good address. */
  readonly mapped: { readonly page: number; readonly pages: number }[] = [];

  constructor(name: string, owner: number, base = 0, process = false) {
    this.name = name;
    this.owner = owner;
    this.base = base;
    this.process = process;
  }

  set(page: number, frame: number, flags: number): void {
    this.frames[page - this.base] = frame;
    this.flags[page - this.base] = flags;
  }

  /** From now on until the call returns, both outcomes are right. */
  moving(page: number, pages: number): void {
    for (let at = page - this.base; at < page - this.base + pages; at++) this.flags[at]! |= MOVING;
  }

  clear(page: number, pages: number): void {
    this.flags.fill(0, page - this.base, page - this.base + pages);
  }

  flagsOf(page: number): number {
    const at = page - this.base;
    return at >= 0 && at < WINDOW ? this.flags[at]! : 0;
  }
}

/** What stands in every frame: four words each, whose upper byte names the owner. */
export class Contents {
  private readonly words: Uint32Array;
  private next = 1;

  constructor(frames: number) {
    this.words = new Uint32Array(frames * SLOTS.length);
  }

  /** A word that was never used before. */
  fresh(owner: number): number {
    this.next = (this.next + 1) & 0xff_ffff;
    return ((owner << 24) | this.next) >>> 0;
  }

  get(frame: number, slot: number): number {
    return this.words[frame * SLOTS.length + slot]!;
  }

  set(frame: number, slot: number, word: number): void {
    this.words[frame * SLOTS.length + slot] = word;
  }
}
