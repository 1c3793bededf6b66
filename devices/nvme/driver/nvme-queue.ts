/**
 * One pair of queues in coherent memory: commands go in at the tail with a doorbell, completions are taken by their phase bit
 * in the interrupt handler (drivers/nvme/host/pci.c, nvme_submit_cmds, nvme_process_cq). Identifiers are slots of the
 * queue; one entry less than the queue has is in flight, so that a full queue differs from an empty one.
 */
import type { Mmio } from '../../../sim/mmio.js';
import { Errno } from '../../../sim/errno.js';
import { storeSized } from '../../../sim/little-endian.js';
import { WaitQueue, type Steps } from '../../../sim/task.js';
import type { PciDevice } from '../../../host/pci/kernel/pci-device.js';
import { decodeCompletion, type Completion } from '../spec/commands.js';
import { CQE_SIZE, doorbellOf, SQE_SIZE } from '../spec/registers.js';
import type { CoherentMemory, NvmeServices } from './nvme-options.js';

/** A command that was submitted. */
export class PendingCommand {
  completion: Completion | undefined;
  /** The controller was reset, or is gone: there is no completion. */
  cancelled = false;
  aborted = false;

  get ended(): boolean {
    return this.cancelled || this.completion !== undefined;
  }
}

export interface NvmeQueueOptions {
  readonly pci: PciDevice;
  readonly services: NvmeServices;
  readonly mmio: Mmio;
  readonly id: number;
  readonly depth: number;
  /** CAP.DSTRD */
  readonly stride: number;
  readonly vector: number;
}

export class NvmeQueue {
  readonly id: number;
  readonly depth: number;
  readonly vector: number;
  readonly changed: WaitQueue;
  /** Completions whose identifier nobody waits for. */
  strays = 0;
  /** Takes what no slot stands for: asynchronous events of the admin queue. */
  onOther: ((completion: Completion) => void) | undefined;
  submissions: CoherentMemory | undefined;
  completions: CoherentMemory | undefined;
  private readonly options: NvmeQueueOptions;
  private readonly slots: (PendingCommand | undefined)[];
  private readonly entry = new Uint8Array(CQE_SIZE);
  private tail = 0;
  private head = 0;
  private phase = 1;
  private open = false;

  constructor(options: NvmeQueueOptions) {
    this.options = options;
    this.id = options.id;
    this.depth = options.depth;
    this.vector = options.vector;
    this.slots = Array.from({ length: options.depth - 1 }, () => undefined);
    this.changed = new WaitQueue(options.services.scheduler, `commands of ${options.pci.name} queue ${options.id}`);
  }

  /** Commands without a completion. */
  get inFlight(): number {
    return this.slots.reduce((count, pending) => count + (pending === undefined ? 0 : 1), 0);
  }

  /** The DMA API's refusals; nothing stays allocated then. */
  *allocate(): Steps {
    const { pci, services } = this.options;
    this.submissions = yield* services.dma.dmaAllocCoherent(pci, this.depth * SQE_SIZE);
    try {
      this.completions = yield* services.dma.dmaAllocCoherent(pci, this.depth * CQE_SIZE);
    } catch (error) {
      yield* this.free();
      throw error;
    }
  }

  *free(): Steps {
    const { pci, services } = this.options, { submissions, completions } = this;
    this.submissions = this.completions = undefined;
    if (completions !== undefined) yield* services.dma.dmaFreeCoherent(pci, completions);
    if (submissions !== undefined) yield* services.dma.dmaFreeCoherent(pci, submissions);
  }

  /** The controller knows the queues as empty ones: they begin anew. */
  start(): void {
    const { memory } = this.options.services;
    memory.fill(this.completions!.physical, 0, this.depth * CQE_SIZE);
    this.tail = this.head = 0;
    this.phase = 1;
    this.open = true;
  }

  /** Nothing is submitted any more; what waits for a slot is refused. */
  close(): void {
    this.open = false;
    this.changed.wakeAll();
  }

  /** Nothing that was submitted will complete. */
  cancel(): void {
    for (const [slot, pending] of this.slots.entries()) {
      if (pending === undefined) continue;
      pending.cancelled = true;
      this.slots[slot] = undefined;
    }
    this.changed.wakeAll();
  }

  /** Hands a command over, waiting for a slot while there is none. ECANCELED the queue is closed. */
  *submit(command: Uint8Array): Steps<PendingCommand> {
    yield* this.changed.until(() => !this.open || this.slots.includes(undefined));
    if (!this.open) throw new Errno('ECANCELED', `queue ${this.id} of ${this.options.pci.name} is closed`);
    const slot = this.slots.indexOf(undefined), pending = new PendingCommand();
    this.slots[slot] = pending;
    this.put(command, slot);
    return pending;
  }

  /** A command whose completion `onOther` gets. @param cid no slot's */
  submitOther(command: Uint8Array, cid: number): void {
    this.put(command, cid);
  }

  /** The identifier under which a command is in flight; undefined when it has ended. */
  cidOf(pending: PendingCommand): number | undefined {
    const slot = this.slots.indexOf(pending);
    return slot < 0 ? undefined : slot;
  }

  /** Takes completions; true when there were any. */
  process(): boolean {
    const { services: { memory }, mmio, stride } = this.options, { completions } = this;
    if (completions === undefined || !this.open) return false;
    let found = 0;
    for (;;) {
      memory.read(completions.physical + this.head * CQE_SIZE, this.entry, 0, CQE_SIZE);
      const completion = decodeCompletion(this.entry);
      if (completion.phase !== this.phase) break;
      found++;
      if (++this.head === this.depth) {
        this.head = 0;
        this.phase ^= 1;
      }
      this.take(completion);
    }
    if (found === 0) return false;
    mmio.write(doorbellOf(this.id, true, stride), 4, this.head);
    this.changed.wakeAll();
    return true;
  }

  private take(completion: Completion): void {
    const { cid } = completion, pending = this.slots[cid];
    if (cid >= this.slots.length && this.onOther !== undefined) this.onOther(completion);
    else if (pending === undefined) this.strays++;
    else {
      pending.completion = completion;
      this.slots[cid] = undefined;
    }
  }

  private put(command: Uint8Array, cid: number): void {
    const { services: { memory }, mmio, stride } = this.options;
    storeSized(command, 2, 2, cid);
    memory.write(this.submissions!.physical + this.tail * SQE_SIZE, command, 0, SQE_SIZE);
    this.tail = (this.tail + 1) % this.depth;
    mmio.write(doorbellOf(this.id, false, stride), 4, this.tail);
  }
}
