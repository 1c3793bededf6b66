/**
 * DMA of a function to a client that passed no descriptor of its memory: what cannot be reached at once is asked for by
 * messages, and the device waits as it would for an IOMMU that holds a transaction: until the answer, or until the
 * function is reset or must not act any more; an answer that comes after that changes nothing. For functions whose
 * addresses are the client's (no IOMMU of ours before them).
 */
import type { Clock } from '../../sim/clock.js';
import { PAGE_SIZE } from '../../sim/address.js';
import { DMA_DONE, DMA_HELD, DMA_REVOKED, DMA_UR, NO_PASID, type DmaStatus } from '../../host/pci/dma-port.js';
import type { FunctionPort } from '../../host/pci/hardware/function-port.js';
import { WrappedPort } from '../../host/pci/hardware/wrapped-port.js';
import type { ClientMemory } from './client-memory.js';
import type { RequestDone } from './client-requests.js';

export class MessagePort extends WrappedPort {
  private readonly clock: Clock;
  private readonly memory: ClientMemory;
  /** What the device waits for. */
  private readonly asked = new Set<number>();

  constructor(port: FunctionPort, memory: ClientMemory, clock: Clock) {
    super(port);
    this.memory = memory;
    this.clock = clock;
    port.onRevoke = () => {
      for (const token of this.asked) this.ended(token, DMA_REVOKED);
    };
  }

  /** Operations that wait for an answer. */
  get pending(): number {
    return this.asked.size;
  }

  read(page: number, offset: number, target: Uint8Array, targetOffset: number, length: number, pasid: number, attributes: number): DmaStatus {
    const status = this.inner.read(page, offset, target, targetOffset, length, pasid, attributes);
    if (!this.worthAsking(status, pasid)) return this.pass(status);
    // the device may use its buffer for something else when the answer comes
    const bytes = new Uint8Array(length);
    return this.ask((done) => this.memory.read(page * PAGE_SIZE + offset, bytes, done), () => target.set(bytes, targetOffset));
  }

  /** The device may use its buffer again when this returns only if nothing is held: the bytes are copied. */
  write(page: number, offset: number, source: Uint8Array, sourceOffset: number, length: number, pasid: number, attributes: number): DmaStatus {
    const status = this.inner.write(page, offset, source, sourceOffset, length, pasid, attributes);
    if (!this.worthAsking(status, pasid)) return this.pass(status);
    const bytes = source.slice(sourceOffset, sourceOffset + length);
    return this.ask((done) => this.memory.write(page * PAGE_SIZE + offset, bytes, done));
  }

  private worthAsking(status: DmaStatus, pasid: number): boolean {
    return status === DMA_UR && pasid === NO_PASID && !this.inner.revoked && this.memory.connected;
  }

  private ask(move: (done: RequestDone) => void, arrived?: () => void): DmaStatus {
    const token = this.newToken();
    this.asked.add(token);
    move((error) => {
      if (!this.asked.has(token)) return;
      if (error === undefined) arrived?.();
      this.ended(token, error === undefined ? DMA_DONE : DMA_UR);
    });
    return DMA_HELD;
  }

  private ended(token: number, status: DmaStatus): void {
    this.asked.delete(token);
    this.clock.post(0, () => this.client.heldDone(token, status));
  }
}
