/**
 * A queue that the kernel itself uses: buffers mapped by the DMA API, completion records in coherent memory, one interrupt
 * vector. A dedicated queue takes descriptors without PASID; a shared one takes them by enqueue (ENQCMDS) with the PASID that
 * the kernel has, again and again while it is full. Callers sleep until the interrupt for their descriptor. Descriptors are
 * unprivileged, as the DMA API maps for user privilege (drivers/dma/idxd/dma.c, `idxd_prep_desc_common`).
 */
import { Errno } from '../../../sim/errno.js';
import { store32 } from '../../../sim/little-endian.js';
import type { EnqueueResult } from '../../../sim/mmio.js';
import { sleep, WaitQueue, type Steps } from '../../../sim/task.js';
import { COMPLETION_SIZE, DESCRIPTOR_SIZE, FLAG, OPCODE, STATUS } from '../spec/descriptor.js';
import { decodeCompletion, encodeDescriptor, statusName, type CompletionRecord, type DescriptorFields } from '../spec/encode.js';
import { DSA_CMD, PORTAL_LIMITED, PORTAL_SIZE, PORTALS_PER_WQ, wqMaskOperand } from '../spec/registers.js';
import type { DmaMemory } from './idxd-options.js';
import type { IdxdDevice, IdxdWq } from './idxd-device.js';

/** Longest pause between two enqueues of a descriptor, in units of `timing.pollNs`. */
const RETRY_BACKOFF = 32;

/** A descriptor that was submitted. */
export class PendingDescriptor {
  /** What the device wrote; undefined while it works. */
  record: CompletionRecord | undefined;
  /** The queue went away first. */
  failed = false;
  /** @internal its own, so that a completion wakes nobody else */
  readonly waiters: WaitQueue;

  /** @internal */
  constructor(waiters: WaitQueue) {
    this.waiters = waiters;
  }

  get ended(): boolean {
    return this.failed || this.record !== undefined;
  }
}

export class KernelQueue {
  /** Enqueues that a shared queue refused. */
  retries = 0;
  private readonly device: IdxdDevice;
  private readonly wq: IdxdWq;
  /** Have a record, and their interrupt is still under way. */
  private harvested: PendingDescriptor[] = [];
  /** For a free slot, one woken for each: there may be thousands. */
  private readonly vacant: WaitQueue;
  private readonly idle: WaitQueue;
  private readonly name: string;
  /** By slot: a completion record and who waits for it. */
  private readonly slots: (PendingDescriptor | undefined)[];
  /** Callers that are between `post` and the end of their wait. */
  private callers = 0;
  private records: DmaMemory | undefined;
  private readonly bytes = new Uint8Array(COMPLETION_SIZE);
  private readonly portal: number;
  private handle = 0;
  private stopping = false;

  constructor(device: IdxdDevice, wq: IdxdWq) {
    this.device = device;
    this.wq = wq;
    this.slots = Array.from({ length: wq.options.size }, () => undefined);
    const { scheduler } = device.services, name = `${device.pci.name} ${wq.options.name}`;
    this.name = name;
    this.vacant = new WaitQueue(scheduler, `room in ${name}`);
    this.idle = new WaitQueue(scheduler, `callers of ${name}`);
    this.portal = (wq.index * PORTALS_PER_WQ + PORTAL_LIMITED) * PORTAL_SIZE;
  }

  /** ENXIO the device gives no interrupt handle, or what the DMA API refuses. */
  *start(): Steps {
    this.records = yield* this.device.services.iommu.dma.dmaAllocCoherent(this.device.pci, this.slots.length * COMPLETION_SIZE);
    try {
      this.handle = yield* this.device.hardware.requestIntHandle(this.wq.index + 1);
    } catch (error) {
      yield* this.freeRecords();
      throw error;
    }
  }

  /** The queue is off; who still waits is told. */
  *stop(): Steps {
    this.harvest();
    this.fail();
    yield* this.idle.until(() => this.callers === 0);
    if (this.device.alive) yield* this.device.hardware.releaseIntHandle(this.handle);
    yield* this.freeRecords();
  }

  /** Nothing more will complete: the device is halted or gone. */
  fail(): void {
    this.stopping = true;
    for (const [slot, pending] of this.slots.entries()) {
      if (pending === undefined) continue;
      pending.failed = true;
      this.slots[slot] = undefined;
      pending.waiters.wakeAll();
    }
    this.wakeHarvested();
    this.vacant.wakeAll();
  }

  interrupt(): void {
    this.harvest();
    this.wakeHarvested();
  }

  private wakeHarvested(): void {
    const { harvested } = this;
    this.harvested = [];
    for (const pending of harvested) pending.waiters.wakeAll();
  }

  private leave(): void {
    if (--this.callers === 0) this.idle.wakeAll();
  }

  /** True when a descriptor can be submitted without waiting for another one to complete. */
  get room(): boolean {
    return this.slots.includes(undefined);
  }

  /**
   * Copies `sizeBytes` between physical addresses with the device.
   * @throws Errno EIO the device completed with an error; ENXIO the queue goes away; what the DMA API refuses
   */
  *copy(target: number, source: number, sizeBytes: number): Steps {
    const { dma } = this.device.services.iommu;
    const { pci } = this.device;
    const from = yield* dma.dmaMap(pci, source, sizeBytes, 'to-device');
    try {
      const to = yield* dma.dmaMap(pci, target, sizeBytes, 'from-device');
      try {
        const record = yield* this.submit({ opcode: OPCODE.MEMMOVE, source: from, destination: to, size: sizeBytes });
        if (record.status !== STATUS.SUCCESS) throw new Errno('EIO', `${pci.name} ${this.wq.options.name}: copy completed with ${statusName(record.status)}`);
      } finally {
        yield* dma.dmaUnmap(pci, to, sizeBytes);
      }
    } finally {
      yield* dma.dmaUnmap(pci, from, sizeBytes);
    }
  }

  /** Submits one descriptor with DMA addresses and sleeps until it is complete. ENXIO when the queue goes away. */
  *submit(fields: DescriptorFields): Steps<CompletionRecord> {
    return yield* this.wait(yield* this.post(fields));
  }

  /** Submits one descriptor; waits for a free slot, and while a shared queue is full. ENXIO when the queue goes away. */
  *post(fields: DescriptorFields): Steps<PendingDescriptor> {
    const { memory } = this.device.services;
    this.callers++;
    try {
      this.harvest();
      yield* this.vacant.until(() => this.stopping || this.room);
      if (this.stopping) throw this.gone();
      const slot = this.slots.indexOf(undefined);
      const pending = (this.slots[slot] = new PendingDescriptor(new WaitQueue(this.device.services.scheduler, `descriptors of ${this.name}`)));
      memory.fill(this.records!.physical + slot * COMPLETION_SIZE, 0, COMPLETION_SIZE);
      let accepted = false;
      try {
        yield* this.put(encodeDescriptor({
          ...fields, flags: (fields.flags ?? 0) | FLAG.RCI, completion: this.records!.address + slot * COMPLETION_SIZE, interruptHandle: this.handle,
        }));
        accepted = true;
      } finally {
        if (!accepted && this.slots[slot] === pending) this.slots[slot] = undefined;
      }
      return pending;
    } finally {
      // a wake that was meant for a slot which another one took, or gave back
      if (this.room) this.vacant.wakeOne();
      this.leave();
    }
  }

  /** Sleeps until the descriptor has ended. ENXIO when the queue went away first. */
  *wait(pending: PendingDescriptor): Steps<CompletionRecord> {
    this.callers++;
    try {
      yield* pending.waiters.until(() => pending.ended);
      if (pending.record === undefined) throw this.gone();
      return pending.record;
    } finally {
      this.leave();
    }
  }

  /**
   * Submits a list of descriptors as one batch and sleeps until it has ended; their completion records in order, status 0 where
   * the device wrote none. EINVAL fewer than two, ENXIO when the queue goes away, or what the DMA API refuses.
   */
  *submitBatch(list: readonly DescriptorFields[]): Steps<CompletionRecord[]> {
    const { services, pci } = this.device;
    const { memory, iommu: { dma } } = services;
    if (list.length < 2) throw new Errno('EINVAL', `${pci.name}: a batch of ${list.length} descriptors`);
    const recordsAt = list.length * DESCRIPTOR_SIZE;
    this.callers++;
    try {
      if (this.stopping) throw this.gone();
      const shared = yield* dma.dmaAllocCoherent(pci, recordsAt + list.length * COMPLETION_SIZE);
      try {
        list.forEach((fields, i) => {
          const completion = shared.address + recordsAt + i * COMPLETION_SIZE;
          memory.write(shared.physical + i * DESCRIPTOR_SIZE, encodeDescriptor({ ...fields, completion }), 0, DESCRIPTOR_SIZE);
        });
        yield* this.submit({ opcode: OPCODE.BATCH, source: shared.address, size: list.length });
        return list.map((_, i) => {
          memory.read(shared.physical + recordsAt + i * COMPLETION_SIZE, this.bytes, 0, COMPLETION_SIZE);
          return decodeCompletion(this.bytes);
        });
      } finally {
        yield* dma.dmaFreeCoherent(pci, shared);
      }
    } finally {
      this.leave();
    }
  }

  /** Puts 64 bytes into the portal as they are: nobody waits for them, and a full dedicated queue drops them. */
  raw(bytes: Uint8Array): EnqueueResult {
    const { portalWindow } = this.device;
    if (!this.wq.dedicated) return portalWindow.enqueue64(this.portal, bytes);
    portalWindow.write64(this.portal, bytes);
    return 'accepted';
  }

  /** Waits until the device has done with everything that this queue was given before. */
  *drain(): Steps {
    if (!this.stopping && this.wq.enabled) yield* this.device.hardware.command(DSA_CMD.DRAIN_WQ, wqMaskOperand(this.wq.index));
  }

  /** Gives a descriptor to the device: ENQCMDS takes the PASID from the first four bytes. ENXIO when the queue goes away. */
  private *put(bytes: Uint8Array): Steps {
    const { clock, timing } = this.device.services;
    if (!this.wq.dedicated) store32(bytes, 0, this.device.kernelPasid!);
    for (let tries = 1; this.raw(bytes) === 'retry'; tries++) {
      this.retries++;
      yield* sleep(clock, timing.options.mmioNs + timing.options.pollNs * Math.min(tries, RETRY_BACKOFF));
      if (this.stopping || !this.device.alive) throw this.gone();
    }
  }

  /** Takes completion records out of memory and frees their slots. */
  private harvest(): void {
    const { records } = this;
    if (records === undefined) return;
    const { memory } = this.device.services;
    for (let slot = 0; slot < this.slots.length; slot++) {
      const pending = this.slots[slot];
      if (pending === undefined) continue;
      const at = records.physical + slot * COMPLETION_SIZE;
      if (memory.load(at, 1) <= 0) continue;
      memory.read(at, this.bytes, 0, COMPLETION_SIZE);
      pending.record = decodeCompletion(this.bytes);
      this.slots[slot] = undefined;
      this.harvested.push(pending);
      this.vacant.wakeOne();
    }
  }

  private *freeRecords(): Steps {
    const { records } = this;
    this.records = undefined;
    if (records !== undefined) yield* this.device.services.iommu.dma.dmaFreeCoherent(this.device.pci, records);
  }

  private gone(): Errno {
    return new Errno('ENXIO', `${this.device.pci.name}: work queue ${this.wq.options.name} is gone`);
  }
}
