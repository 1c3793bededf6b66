/**
 * A port that suspends reads and writes at random and carries them out later: every device has to work behind it,
 * because an IOMMU may hold any of its transactions (a stall). For tests.
 */
import type { Clock } from '../../../sim/clock.js';
import type { Random } from '../../../sim/random.js';
import {
  DMA_HELD, DMA_REVOKED, type DmaClient, type DmaPort, type DmaStatus, type TranslationCompletion,
} from '../dma-port.js';
import type { FunctionPort } from './function-port.js';

export interface HoldingPortOptions {
  readonly port: FunctionPort;
  readonly clock: Clock;
  readonly random: Random;
  /** Share of reads and writes that are held, 0..1. */
  readonly probability: number;
  /** Longest time one is held. */
  readonly maxHoldNs: number;
}

/** Tokens of a fabric are small; these do not meet them. */
const FIRST_TOKEN = 2 ** 40;

/** Made in `PciFunctionOptions.wrapPort`; it puts itself between the fabric and the function's client, too. */
export class HoldingPort implements DmaPort, DmaClient {
  heldToken = 0;
  doneBytes = 0;
  costNs = 0;
  /** Operations held so far. */
  holds = 0;
  private readonly options: HoldingPortOptions;
  private readonly inner: FunctionPort;
  private readonly client: DmaClient;
  private nextToken = FIRST_TOKEN;
  /** Ours by the fabric's token, for operations that the agent holds after we let them go. */
  private readonly renamed = new Map<number, number>();

  constructor(options: HoldingPortOptions) {
    this.options = options;
    this.inner = options.port;
    this.client = options.port.client;
    options.port.client = this;
  }

  get requesterId(): number {
    return this.inner.requesterId;
  }

  get revoked(): boolean {
    return this.inner.revoked;
  }

  get translation(): TranslationCompletion {
    return this.inner.translation;
  }

  read(page: number, offset: number, target: Uint8Array, targetOffset: number, length: number, pasid: number, attributes: number): DmaStatus {
    return this.run(() => this.inner.read(page, offset, target, targetOffset, length, pasid, attributes));
  }

  write(page: number, offset: number, source: Uint8Array, sourceOffset: number, length: number, pasid: number, attributes: number): DmaStatus {
    return this.run(() => this.inner.write(page, offset, source, sourceOffset, length, pasid, attributes));
  }

  translate(page: number, pasid: number, attributes: number): DmaStatus {
    return this.pass(this.inner.translate(page, pasid, attributes));
  }

  pageRequest(page: number, access: number, last: boolean, prgIndex: number, pasid: number): DmaStatus {
    return this.pass(this.inner.pageRequest(page, access, last, prgIndex, pasid));
  }

  messageInterrupt(address: number, data: number): DmaStatus {
    return this.pass(this.inner.messageInterrupt(address, data));
  }

  invalidateCompletion(tag: number): void {
    this.inner.invalidateCompletion(tag);
  }

  pageResponse(prgIndex: number, code: number, pasid: number): void {
    this.client.pageResponse(prgIndex, code, pasid);
  }

  invalidate(tag: number, page: number, pages: number, pasid: number, global: boolean): void {
    this.client.invalidate(tag, page, pages, pasid, global);
  }

  heldDone(token: number, status: DmaStatus): void {
    const ours = this.renamed.get(token);
    this.renamed.delete(token);
    this.client.heldDone(ours ?? token, status);
  }

  private run(operation: () => DmaStatus): DmaStatus {
    const { random, probability, maxHoldNs, clock } = this.options;
    if (this.inner.revoked || !random.chance(probability)) return this.pass(operation());
    const token = this.nextToken++;
    this.holds++;
    clock.post(1 + random.below(maxHoldNs), () => this.carryOut(token, operation));
    this.heldToken = token;
    this.doneBytes = 0;
    this.costNs = 0;
    return DMA_HELD;
  }

  private carryOut(token: number, operation: () => DmaStatus): void {
    const status = this.inner.revoked ? DMA_REVOKED : operation();
    if (status === DMA_HELD) this.renamed.set(this.inner.heldToken, token);
    else this.client.heldDone(token, status);
  }

  private pass(status: DmaStatus): DmaStatus {
    this.doneBytes = this.inner.doneBytes;
    this.costNs = this.inner.costNs;
    this.heldToken = this.inner.heldToken;
    return status;
  }
}
