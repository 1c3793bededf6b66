/**
 * What a driver that isolates by itself (`VfioPinning`) may do with the memory of a vfio-user client, so that such a
 * driver can be served too. "Physical" addresses are the client's own: `ClientMemory.memory` is the memory they name.
 * Pages without a descriptor cannot be pinned. Left out: several devices on one client's memory; each has its own.
 */
import { hex, PAGE_SIZE } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import { Completion, type Scheduler, type Steps } from '../../sim/task.js';
import type { Device } from '../../host/device.js';
import { PROT_READ, PROT_WRITE } from '../../iommu/core/ops.js';
import type { DmaUnmapNotifier, VfioPinning } from '../device.js';
import type { ClientMemory } from './client-memory.js';

export class ClientPinning implements VfioPinning {
  private readonly memory: ClientMemory;
  private readonly scheduler: Scheduler;
  private notifiers: readonly DmaUnmapNotifier[] = [];
  /** Pins by page. */
  private readonly pins = new Map<number, number>();

  constructor(memory: ClientMemory, scheduler: Scheduler) {
    this.memory = memory;
    this.scheduler = scheduler;
    memory.listen({ unmapped: (address, sizeBytes) => this.unmapped(address, sizeBytes) });
  }

  get pinnedPages(): number {
    return this.pins.size;
  }

  /** EINVAL not mapped, or not reachable by address; EPERM protection. Nothing stays pinned on failure. */
  // oxlint-disable-next-line require-yield -- VfioPinning.pinPages may sleep
  *pinPages(device: Device, iovas: readonly number[], prot: number): Steps<number[]> {
    const { memory } = this.memory;
    for (const iova of iovas) {
      const readable = memory.has(iova, PAGE_SIZE), writable = memory.writable(iova, PAGE_SIZE);
      if (iova % PAGE_SIZE !== 0 || (!readable && !writable)) throw new Errno('EINVAL', `${device.name}: the client has no memory at ${hex(iova)} that can be pinned`);
      if (((prot & PROT_READ) !== 0 && !readable) || ((prot & PROT_WRITE) !== 0 && !writable)) throw new Errno('EPERM', `${device.name}: the client's memory at ${hex(iova)} is not for that`);
    }
    for (const iova of iovas) this.pins.set(iova, (this.pins.get(iova) ?? 0) + 1);
    return [...iovas];
  }

  unpinPages(_device: Device, iovas: readonly number[]): number {
    let unpinned = 0;
    for (const iova of iovas) {
      const pins = this.pins.get(iova);
      if (pins === undefined) continue;
      unpinned++;
      if (pins === 1) this.pins.delete(iova);
      else this.pins.set(iova, pins - 1);
    }
    return unpinned;
  }

  /** Also where there is no descriptor. EFAULT rights, ECONNRESET, and what the client refuses. */
  *dmaRw(_device: Device, iova: number, bytes: Uint8Array, write: boolean): Steps {
    const moved = new Completion(this.scheduler, `client's memory at ${hex(iova)}`);
    let failure: Errno | undefined;
    const done = (error: Errno | undefined): void => {
      failure = error;
      moved.complete();
    };
    if (write) this.memory.write(iova, bytes, done);
    else this.memory.read(iova, bytes, done);
    yield* moved.wait();
    if (failure !== undefined) throw failure;
  }

  registerNotifier(_device: Device, notifier: DmaUnmapNotifier): void {
    this.notifiers = [...this.notifiers, notifier];
  }

  unregisterNotifier(_device: Device, notifier: DmaUnmapNotifier): void {
    this.notifiers = this.notifiers.filter((other) => other !== notifier);
  }

  /** The memory is gone already: who is told late finds it absent, and its pins end here. */
  private unmapped(address: number, sizeBytes: number): void {
    for (const notifier of this.notifiers) this.scheduler.spawn(`dma_unmap ${hex(address)}`, notifier.dmaUnmap(address, sizeBytes), { daemon: true });
    if (sizeBytes / PAGE_SIZE > this.pins.size) {
      for (const iova of this.pins.keys()) if (iova >= address && iova < address + sizeBytes) this.pins.delete(iova);
    } else {
      for (let iova = address; iova < address + sizeBytes; iova += PAGE_SIZE) this.pins.delete(iova);
    }
  }
}
