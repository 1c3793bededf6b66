/**
 * A dedicated queue that the kernel itself uses: buffers mapped by the DMA API, no PASID, completion records in
 * coherent memory, one interrupt vector. Callers sleep until the interrupt for their descriptor.
 */
import { Errno } from '../../../sim/errno.js';
import { WaitQueue, type Steps } from '../../../sim/task.js';
import { COMPLETION_SIZE, FLAG, OPCODE, STATUS } from '../spec/descriptor.js';
import { decodeCompletion, encodeDescriptor, statusName, type CompletionRecord, type DescriptorFields } from '../spec/encode.js';
import { PORTAL_LIMITED, PORTAL_SIZE, PORTALS_PER_WQ } from '../spec/registers.js';
import type { DmaMemory } from './idxd-options.js';
import type { IdxdDevice, IdxdWq } from './idxd-device.js';

export class KernelQueue {
  private readonly device: IdxdDevice;
  private readonly wq: IdxdWq;
  private readonly changed: WaitQueue;
  private readonly busy: boolean[];
  private records: DmaMemory | undefined;
  private stopping = false;

  constructor(device: IdxdDevice, wq: IdxdWq) {
    this.device = device;
    this.wq = wq;
    this.busy = Array.from({ length: wq.options.size }, () => false);
    this.changed = new WaitQueue(device.services.scheduler, `descriptors of ${device.pci.name} ${wq.options.name}`);
  }

  *start(): Steps {
    this.records = yield* this.device.services.iommu.dma.dmaAllocCoherent(this.device.pci, this.busy.length * COMPLETION_SIZE);
  }

  /** The queue is off; who still waits is told. */
  *stop(): Steps {
    this.stopping = true;
    this.changed.wakeAll();
    yield* this.changed.until(() => !this.busy.includes(true));
    const records = this.records;
    this.records = undefined;
    if (records !== undefined) yield* this.device.services.iommu.dma.dmaFreeCoherent(this.device.pci, records);
  }

  interrupt(): void {
    this.changed.wakeAll();
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
    const { memory } = this.device.services;
    yield* this.changed.until(() => this.stopping || this.busy.includes(false));
    if (this.stopping) throw this.gone();
    const slot = this.busy.indexOf(false);
    this.busy[slot] = true;
    try {
      const records = this.records!;
      const at = records.physical + slot * COMPLETION_SIZE;
      memory.fill(at, 0, COMPLETION_SIZE);
      const bytes = encodeDescriptor({
        ...fields, flags: (fields.flags ?? 0) | FLAG.RCI, completion: records.address + slot * COMPLETION_SIZE, interruptHandle: this.wq.index + 1,
      });
      this.device.portalWindow.write64((this.wq.index * PORTALS_PER_WQ + PORTAL_LIMITED) * PORTAL_SIZE, bytes);
      yield* this.changed.until(() => this.stopping || memory.load(at, 1) > 0);
      if (memory.load(at, 1) <= 0) throw this.gone();
      const record = new Uint8Array(COMPLETION_SIZE);
      memory.read(at, record, 0, COMPLETION_SIZE);
      return decodeCompletion(record);
    } finally {
      this.busy[slot] = false;
      this.changed.wakeAll();
    }
  }

  private gone(): Errno {
    return new Errno('ENXIO', `${this.device.pci.name}: work queue ${this.wq.options.name} is gone`);
  }
}
