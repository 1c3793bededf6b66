/**
 * The pages of a MAP_SHARED mapping (an anonymous one, or a file's page cache): found by their index, allocated when
 * first touched, freed with the last area that maps them (mm/shmem.c). Nothing is written back to a file.
 */
import { assert } from '../../sim/assert.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import type { FrameAllocator } from '../frames.js';

const SLOTS = 512;

export class SharedPages {
  /** Order of each page: 0, 9 or 18. */
  readonly order: number;
  private readonly memory: PhysicalMemory;
  private readonly frames: FrameAllocator;
  private readonly content: Uint8Array | undefined;
  /** Physical addresses in chunks; 0 where there is no page yet. */
  private readonly chunks: (Float64Array | undefined)[] = [];
  /** Pages of areas that map it: a count that splitting and merging areas does not change. */
  private mapped = 0;

  /** @param content what a file holds; zeros follow it */
  constructor(memory: PhysicalMemory, frames: FrameAllocator, order = 0, content?: Uint8Array) {
    this.memory = memory;
    this.frames = frames;
    this.order = order;
    this.content = content;
  }

  /** `pages` more pages of an area map it. */
  open(pages: number): void {
    this.mapped += pages;
  }

  /** `pages` pages of an area are gone; after the last one, pages that nothing else references are freed. */
  close(pages: number): void {
    assert(this.mapped >= pages, 'shared pages closed too often');
    this.mapped -= pages;
    if (this.mapped > 0) return;
    for (const chunk of this.chunks) chunk?.forEach((frame) => frame !== 0 && this.frames.put(frame));
    this.chunks.length = 0;
  }

  /** Physical address of page `index` (in pages of `order`), allocated if need be; -1 without memory. */
  frameAt(index: number): number {
    const number = Math.floor(index / SLOTS);
    while (this.chunks.length <= number) this.chunks.push(undefined);
    const chunk = (this.chunks[number] ??= new Float64Array(SLOTS));
    const existing = chunk[index % SLOTS]!;
    if (existing !== 0) return existing;
    const frame = this.frames.tryAlloc(this.frames.ownerId('shared'), this.order);
    if (frame < 0) return -1;
    copyContent(this.memory, frame, this.content, index * 4096);
    chunk[index % SLOTS] = frame;
    return frame;
  }
}

/** Copies one page of a file's content into a zeroed frame. */
export function copyContent(memory: PhysicalMemory, frame: number, content: Uint8Array | undefined, offset: number): void {
  if (content === undefined || offset >= content.length) return;
  memory.write(frame, content, offset, Math.min(4096, content.length - offset));
}
