/**
 * The interrupt remapping table of one unit, as software keeps it (VT-d 4.1, sections 5.1.3 and 9.10; Linux:
 * drivers/iommu/intel/irq_remapping.c): 65,536 entries in memory, each for one vector of one function, which it verifies.
 * Every change is followed by an invalidation of the entry cache. It is posted, for interrupts are taken and given back
 * by code that does not sleep (Linux waits under a spin lock); so an entry that is given back is free for somebody
 * else only when the invalidation has been executed.
 * Left out: other processors than the one a vector was made for, logical destinations, posted interrupts.
 */
import { alignUp } from '../../../sim/address.js';
import { Errno } from '../../../sim/errno.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { Trace, TraceKind } from '../../../sim/trace.js';
import type { FrameSource } from '../../../host/frame-source.js';
import type { IrqVector } from '../../../host/interrupts.js';
import { IdBitmap } from '../../core/id-bitmap.js';
import { IRTE, IRTE_SIZE, SVT_REQUESTER, XAPIC_DESTINATION_SHIFT } from '../spec/interrupt-remapping.js';
import type { InvalidationQueue } from './invalidation-queue.js';

/** IRTA.S: 2^(S + 1) entries, as Linux (INTR_REMAP_TABLE_REG_SIZE). */
export const TABLE_SIZE_CODE = 15;
const ENTRIES = 2 << TABLE_SIZE_CODE;
/** 1 MiB. */
const FRAME_ORDER = Math.log2((ENTRIES * IRTE_SIZE) / 4096);

export interface InterruptTableOptions {
  /** Of the unit. */
  readonly name: string;
  readonly memory: PhysicalMemory;
  readonly frames: FrameSource;
  readonly queue: InvalidationQueue;
  readonly trace: Trace;
  readonly defects?: ReadonlySet<string>;
}

export class InterruptTable {
  /** Physical address. */
  readonly base: number;
  private readonly options: InterruptTableOptions;
  private readonly indices = new IdBitmap(ENTRIES);
  private readonly kind: TraceKind;
  private readonly nameId: number;
  private readonly skipFlush: boolean;

  /** ENOMEM */
  constructor(options: InterruptTableOptions) {
    this.options = options;
    this.base = options.frames.alloc(`${options.name} interrupt remapping table`, FRAME_ORDER);
    this.skipFlush = options.defects?.has('vtd-driver.skip-iec-flush') ?? false;
    this.kind = options.trace.define('intel_iommu:irte', [['iommu', 'str'], ['index', 'hex'], ['source', 'hex'], ['vector', 'hex'], ['destination', 'dec'], ['present', 'bool']]);
    this.nameId = options.trace.intern(options.name);
  }

  /** Entries that are not free. */
  get used(): number {
    return this.indices.count;
  }

  /** First of `count` free entries, a power of two, aligned to it: subhandles are added to it. ENOSPC. */
  alloc(count: number): number {
    const { indices } = this;
    for (let first = 0; ; ) {
      const free = indices.lowestFree(first, ENTRIES - 1);
      const start = alignUp(free, count);
      if (free < 0 || start + count > ENTRIES) throw new Errno('ENOSPC', `${this.options.name}: no ${count} interrupt remapping entries left in a row`);
      let end = start;
      while (end < start + count && !indices.has(end)) end++;
      if (end === start + count) {
        for (let index = start; index < end; index++) indices.take(index);
        return start;
      }
      first = end + 1;
    }
  }

  /** An entry that never became present. */
  release(index: number): void {
    this.indices.release(index);
  }

  /** From now on the entry leads to the vector, for messages of that requester only. */
  activate(index: number, vector: IrqVector, sourceId: number): void {
    const destination = (vector.address >>> 12) & 0xff;
    const words = IRTE.encode({ P: 1, RH: 1, V: vector.vector, DST: destination << XAPIC_DESTINATION_SHIFT, SID: sourceId, SVT: SVT_REQUESTER });
    const { memory, trace } = this.options, at = this.base + index * IRTE_SIZE;
    // present with the last store
    memory.store64(at + 8, words[2]!, words[3]!);
    memory.store64(at, words[0]!, words[1]!);
    trace.record(this.kind, 0, this.nameId, index, sourceId, vector.vector, destination, 1);
    this.flush(index);
  }

  /** Messages that ask for the entry are faults from now on; `done` when hardware has forgotten it and it is free. */
  retire(index: number, done: () => void): void {
    const { memory, trace, queue } = this.options, at = this.base + index * IRTE_SIZE;
    memory.store64(at, 0, 0);
    memory.store64(at + 8, 0, 0);
    trace.record(this.kind, 0, this.nameId, index, 0, 0, 0, 0);
    const free = (): void => {
      this.indices.release(index);
      done();
    };
    this.flush(index);
    if (this.skipFlush) free();
    else queue.whenPostedDone(free);
  }

  private flush(index: number): void {
    const { queue } = this.options;
    if (!this.skipFlush) queue.postAll(queue.batch().interruptEntry(index));
  }
}
