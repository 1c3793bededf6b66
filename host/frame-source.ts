/** Where kernel code takes 4 KiB frames from; host/frames.ts implements it over RAM. */
export interface FrameSource {
  /** 2^order zeroed, contiguous, naturally aligned frames; physical address of the first. ENOMEM. */
  alloc(owner: string, order?: number): number;
  free(address: number, order?: number): void;
}
