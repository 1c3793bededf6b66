/**
 * Runs of contiguous frames, in the order in which something uses them: what a large buffer is made of, without an
 * object for each page. Neighbours merge as they are appended, up to a length that the owner chooses.
 */
import { assert } from '../sim/assert.js';

export class FrameRuns {
  /** Runs. */
  count = 0;
  /** Frames of all runs. */
  pages = 0;
  private readonly longest: number;
  private frames = new Float64Array(4);
  private lengths = new Float64Array(4);

  /** @param longest frames that a run may have; 1: nothing merges */
  constructor(longest = Infinity) {
    this.longest = longest;
  }

  /** Adds `pages` frames from `frame` (a frame number) on. */
  append(frame: number, pages: number): void {
    this.pages += pages;
    while (pages > 0) {
      const last = this.count - 1;
      const length = last < 0 ? 0 : this.lengths[last]!;
      if (last >= 0 && this.frames[last]! + length === frame && length < this.longest) {
        const taken = Math.min(pages, this.longest - length);
        this.lengths[last] = length + taken;
        frame += taken;
        pages -= taken;
        continue;
      }
      if (this.count === this.frames.length) this.grow();
      const taken = Math.min(pages, this.longest);
      this.frames[this.count] = frame;
      this.lengths[this.count++] = taken;
      frame += taken;
      pages -= taken;
    }
  }

  /** First frame number of run `index`. */
  frameOf(index: number): number {
    assert(index < this.count, `run ${index} of ${this.count}`);
    return this.frames[index]!;
  }

  pagesOf(index: number): number {
    assert(index < this.count, `run ${index} of ${this.count}`);
    return this.lengths[index]!;
  }

  clear(): void {
    this.count = 0;
    this.pages = 0;
    this.frames = new Float64Array(4);
    this.lengths = new Float64Array(4);
  }

  private grow(): void {
    const frames = new Float64Array(this.frames.length * 2), lengths = new Float64Array(this.frames.length * 2);
    frames.set(this.frames);
    lengths.set(this.lengths);
    this.frames = frames;
    this.lengths = lengths;
  }
}
