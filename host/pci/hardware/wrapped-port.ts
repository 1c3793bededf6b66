/** What stands between a device and its port on the fabric: passes everything on, in both directions, until a subclass says otherwise. */
import type { DmaClient, DmaPort, DmaStatus, TranslationCompletion } from '../dma-port.js';
import type { FunctionPort } from './function-port.js';

/** Tokens of a fabric are small; those of a wrapper do not meet them. */
const FIRST_TOKEN = 2 ** 40;

/** Made in `PciFunctionOptions.wrapPort`; it puts itself between the fabric and the function's client, too. */
export abstract class WrappedPort implements DmaPort, DmaClient {
  heldToken = 0;
  doneBytes = 0;
  costNs = 0;
  protected readonly inner: FunctionPort;
  protected readonly client: DmaClient;
  private nextToken = FIRST_TOKEN;

  constructor(port: FunctionPort) {
    this.inner = port;
    this.client = port.client;
    port.client = this;
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

  abstract read(page: number, offset: number, target: Uint8Array, targetOffset: number, length: number, pasid: number, attributes: number): DmaStatus;
  abstract write(page: number, offset: number, source: Uint8Array, sourceOffset: number, length: number, pasid: number, attributes: number): DmaStatus;

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
    this.client.heldDone(token, status);
  }

  /** Answers an operation with DMA_HELD: a new token, and nothing moved yet. */
  protected newToken(): number {
    this.heldToken = this.nextToken++;
    this.doneBytes = 0;
    this.costNs = 0;
    return this.heldToken;
  }

  /** Answers as the fabric did. */
  protected pass(status: DmaStatus): DmaStatus {
    this.doneBytes = this.inner.doneBytes;
    this.costNs = this.inner.costNs;
    this.heldToken = this.inner.heldToken;
    return status;
  }
}
