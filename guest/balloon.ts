/**
 * A guest kernel's side of the balloon (drivers/virtio/virtio_balloon.c, `fill_balloon`, `leak_balloon`): pages that the
 * kernel allocates and does not use, so that the host may have what is behind them. Left out: the device's queues and
 * config, statistics, free page reporting.
 */
import { isErrno } from '../sim/errno.js';
import type { FrameSource } from '../host/frame-source.js';

const OWNER = 'balloon';

export class GuestBalloon {
  private readonly frames: FrameSource;
  private readonly pages: number[] = [];

  /** @param frames the guest's */
  constructor(frames: FrameSource) {
    this.frames = frames;
  }

  /** Pages in the balloon. */
  get size(): number {
    return this.pages.length;
  }

  /** Guest page numbers that the guest gives up: as many as asked for, or as it has. */
  inflate(pages: number): number[] {
    const given: number[] = [];
    try {
      while (given.length < pages) given.push(this.frames.alloc(OWNER) / 4096);
    } catch (error) {
      if (!isErrno(error, 'ENOMEM')) throw error;
    }
    this.pages.push(...given);
    return given;
  }

  /** Guest page numbers that the guest uses again, latest first. */
  deflate(pages: number): number[] {
    const taken = this.pages.splice(Math.max(this.pages.length - pages, 0)).reverse();
    for (const page of taken) this.frames.free(page * 4096);
    return taken;
  }
}
