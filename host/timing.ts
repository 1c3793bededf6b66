/**
 * How long things take. The numbers give a run its order of events and plausible proportions; they predict no
 * silicon (docs/TIMING.md says where each default comes from). Jitter is seeded and is what lets another seed
 * produce another interleaving.
 */
import type { Random } from '../sim/random.js';

export interface TimingOptions {
  /** One transaction-layer packet between a function and the root complex, one way. */
  readonly tlpNs: number;
  /** One memory access of a table walk. */
  readonly memoryAccessNs: number;
  /** From the message-signalled interrupt's write to the first instruction of the handler. */
  readonly interruptNs: number;
  /** From waking a kernel thread to its first instruction. */
  readonly threadWakeNs: number;
  /** The kernel's work for one page fault. */
  readonly faultServiceNs: number;
  /** A CPU's register read or write over PCIe. */
  readonly mmioNs: number;
  /** From a device-TLB invalidation request to its completion, without the TLPs. */
  readonly deviceTlbInvalidationNs: number;
  /** How often a driver that spins on a status word looks at it. */
  readonly pollNs: number;
  /** Time after which an IOMMU gives up waiting for a device-TLB invalidation completion. */
  readonly invalidationTimeoutNs: number;
  /** Bytes per nanosecond that DMA moves. */
  readonly copyBytesPerNs: number;
  /** Upper bound of the random share added to a delay: 0.1 is up to ten percent. */
  readonly jitter: number;
}

export const DEFAULT_TIMING: TimingOptions = {
  tlpNs: 150,
  memoryAccessNs: 80,
  interruptNs: 1_000,
  threadWakeNs: 700,
  faultServiceNs: 1_200,
  mmioNs: 100,
  deviceTlbInvalidationNs: 400,
  pollNs: 100,
  invalidationTimeoutNs: 60_000_000,
  copyBytesPerNs: 24,
  jitter: 0.1,
};

export class Timing {
  readonly options: TimingOptions;
  private readonly random: Random;

  constructor(options: TimingOptions, random: Random) {
    this.options = options;
    this.random = random;
  }

  /** `delayNs` plus this run's jitter, in whole nanoseconds. */
  jittered(delayNs: number): number {
    const { jitter } = this.options;
    return jitter === 0 || delayNs === 0 ? Math.round(delayNs) : Math.round(delayNs * (1 + jitter * (this.random.u32() / 0x1_0000_0000)));
  }

  copyNs(bytes: number): number {
    return Math.ceil(bytes / this.options.copyBytesPerNs);
  }
}
