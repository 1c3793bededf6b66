/** Interrupts of devices behind interrupt remapping, judged by what software wrote into the table. */
import { DESCRIPTOR, INTERRUPT_ENTRY_CACHE_INVALIDATE } from '../../iommu/intel-vtd/spec/descriptors.js';
import { hex } from '../../sim/address.js';
import { Checker } from './invariant.js';

interface Entry {
  readonly source: number;
  readonly vector: number;
}

/**
 * A device reaches the vectors of its own entries and nobody else's, and an entry is somebody else's only when hardware has
 * forgotten what it was (VT-d 4.1, sections 5.1.5 and 6.5.2.7).
 */
export class InterruptsAsRemapped extends Checker {
  readonly name = 'an interrupt leads where the entry of its device says';
  readonly kinds = ['intel_iommu:irte', 'vtd:interrupt', 'vtd:descriptor'];
  /** Contents by index: the one in memory, and those that hardware may still have. */
  private readonly current = new Map<number, Entry>();
  private readonly cached = new Map<number, Entry[]>();

  observe(kind: string, value: (argument: string) => number): void {
    switch (kind) {
      case 'intel_iommu:irte': return this.written(value('index'), value('present') === 1 ? { source: value('source'), vector: value('vector') } : undefined);
      case 'vtd:interrupt': return this.sent(value('index'), { source: value('source'), vector: value('vector') });
      default: this.forgotten([value('q0_lo'), value('q0_hi')]);
    }
  }

  private written(index: number, entry: Entry | undefined): void {
    this.checked++;
    const old = this.current.get(index);
    if (old !== undefined) this.cached.set(index, [...(this.cached.get(index) ?? []), old]);
    if (entry === undefined) return void this.current.delete(index);
    const stale = old === undefined ? this.cached.get(index)?.[0] : undefined;
    if (stale !== undefined) {
      this.violate(`entry ${index} was given to device ${hex(entry.source)} before hardware had forgotten that it was vector ${hex(stale.vector)} of device ${hex(stale.source)}`);
    }
    this.current.set(index, entry);
  }

  private sent(index: number, { source, vector }: Entry): void {
    this.checked++;
    const known = [...(this.cached.get(index) ?? [])];
    const now = this.current.get(index);
    if (now !== undefined) known.push(now);
    if (known.some((entry) => entry.source === source && entry.vector === vector)) return;
    const [whose] = known.slice(-1);
    this.violate(`device ${hex(source)} sent vector ${hex(vector)} through entry ${index}, which ${whose === undefined ? 'is nobody\'s' : `is vector ${hex(whose.vector)} of device ${hex(whose.source)}`}`);
  }

  /** @param words of a descriptor that hardware executes */
  private forgotten(words: readonly number[]): void {
    const { Type, TypeHi, G, IM, IIDX } = INTERRUPT_ENTRY_CACHE_INVALIDATE.f;
    if (Type.get(words) !== DESCRIPTOR.INTERRUPT_ENTRY_CACHE || TypeHi.get(words) !== 0) return;
    if (G.get(words) === 0) return this.cached.clear();
    // 2^IM entries around IIDX
    const entries = 2 ** IM.get(words);
    for (const index of this.cached.keys()) if (Math.floor(index / entries) === Math.floor(IIDX.get(words) / entries)) this.cached.delete(index);
  }
}
