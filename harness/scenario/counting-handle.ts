/** What handles have in common whose device knows no processes: no PASID, and each tells of its own operations when they end. */
import { NO_PASID } from '../../host/pci/dma-port.js';
import type { Steps } from '../../sim/task.js';
import type { DescriptorEnd } from './flows.js';
import type { Operation, Submission, UserHandle } from './operations.js';

export abstract class CountingHandle implements UserHandle {
  readonly device: string;
  readonly pasid = NO_PASID;
  readonly countsItself = true;
  onEnded: ((end: DescriptorEnd) => void) | undefined;
  activity = 0;
  /** Operations under way. */
  protected inFlight = 0;
  private readonly file: { readonly gone: boolean };
  private readonly watchers: (() => void)[] = [];

  /** @param device its name in the topology */
  constructor(device: string, file: { readonly gone: boolean }) {
    this.device = device;
    this.file = file;
  }

  get gone(): boolean {
    return this.file.gone;
  }

  abstract submit(operations: readonly Operation[]): Steps<Submission>;

  watch(wake: () => void): void {
    this.watchers.push(wake);
  }

  notice(): void {
    this.activity++;
    for (const wake of this.watchers) wake();
  }

  awaits(): boolean {
    return this.inFlight > 0;
  }
}
