/**
 * A port that suspends reads and writes at random and carries them out later: every device has to work behind it,
 * because an IOMMU may hold any of its transactions (a stall). For tests.
 */
import type { Clock } from '../../../sim/clock.js';
import type { Random } from '../../../sim/random.js';
import { DMA_HELD, DMA_REVOKED, type DmaStatus } from '../dma-port.js';
import type { FunctionPort } from './function-port.js';
import { WrappedPort } from './wrapped-port.js';

export interface HoldingPortOptions {
  readonly port: FunctionPort;
  readonly clock: Clock;
  readonly random: Random;
  /** Share of reads and writes that are held, 0..1. */
  readonly probability: number;
  /** Longest time one is held. */
  readonly maxHoldNs: number;
}

export class HoldingPort extends WrappedPort {
  /** Operations held so far. */
  holds = 0;
  private readonly options: HoldingPortOptions;
  /** Ours by the fabric's token, for operations that the agent holds after we let them go. */
  private readonly renamed = new Map<number, number>();

  constructor(options: HoldingPortOptions) {
    super(options.port);
    this.options = options;
  }

  read(page: number, offset: number, target: Uint8Array, targetOffset: number, length: number, pasid: number, attributes: number): DmaStatus {
    return this.run(() => this.inner.read(page, offset, target, targetOffset, length, pasid, attributes));
  }

  write(page: number, offset: number, source: Uint8Array, sourceOffset: number, length: number, pasid: number, attributes: number): DmaStatus {
    return this.run(() => this.inner.write(page, offset, source, sourceOffset, length, pasid, attributes));
  }

  override heldDone(token: number, status: DmaStatus): void {
    const ours = this.renamed.get(token);
    this.renamed.delete(token);
    this.client.heldDone(ours ?? token, status);
  }

  private run(operation: () => DmaStatus): DmaStatus {
    const { random, probability, maxHoldNs, clock } = this.options;
    if (this.inner.revoked || !random.chance(probability)) return this.pass(operation());
    this.holds++;
    const delayNs = 1 + random.below(maxHoldNs), token = this.newToken();
    clock.post(delayNs, () => this.carryOut(token, operation));
    return DMA_HELD;
  }

  private carryOut(token: number, operation: () => DmaStatus): void {
    const status = this.inner.revoked ? DMA_REVOKED : operation();
    if (status === DMA_HELD) this.renamed.set(this.inner.heldToken, token);
    else this.client.heldDone(token, status);
  }
}
