/** A remapping unit alone with its memory, configured from a vector, that remembers what it sends. */
import { Random } from '../../sim/random.js';
import { VirtualClock } from '../../sim/clock.js';
import { Trace } from '../../sim/trace.js';
import { toU64 } from '../../sim/address.js';
import { write64 } from '../../sim/mmio.js';
import type { AccessSize } from '../../sim/mmio.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import { NO_PASID } from '../../host/pci/dma-port.js';
import { VtdUnit } from '../../iommu/intel-vtd/hardware/unit.js';
import type { VtdCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { SparseMemory } from './vector-memory.js';
import type { OutputStep, Vector } from './vector.js';

/** Hardware has done what it does at once when this time is over; steps without a time are that far apart. */
const SETTLE_NS = 1_000;

/** Delays as a file says, in turn; where it says none, without jitter. */
class RecordedTiming extends Timing {
  readonly delays: number[] = [];

  override jittered(delayNs: number): number {
    return this.delays.shift() ?? super.jittered(delayNs);
  }
}

export class VectorWorld {
  readonly memory: SparseMemory;
  readonly clock: VirtualClock;
  readonly unit: VtdUnit;
  readonly trace: Trace;
  /** What the unit sent and no step has asked for yet, oldest first. */
  readonly outputs: OutputStep[] = [];
  private readonly timing: RecordedTiming;

  /** @param iotlbEntries 0: without any cache */
  constructor(vector: Vector, capabilities: VtdCapabilities, iotlbEntries: number, defects: ReadonlySet<string>) {
    const { properties } = vector;
    const first = vector.steps.find(({ t }) => t !== undefined)?.t;
    this.memory = new SparseMemory(properties.ram);
    this.clock = new VirtualClock({ startNs: first ?? 0 });
    this.timing = new RecordedTiming({ ...DEFAULT_TIMING, jitter: 0, invalidationTimeoutNs: properties.invalidationTimeoutNs ?? DEFAULT_TIMING.invalidationTimeoutNs }, new Random(0));
    this.trace = new Trace(this.clock, 16);
    const { outputs } = this;
    this.unit = new VtdUnit({
      name: 'dmar0', capabilities, memory: this.memory, clock: this.clock, timing: this.timing, trace: this.trace, iotlbEntries, defects,
      interrupts: {
        message(address, data) {
          outputs.push({ op: 'interrupt', address, data });
        },
      },
      router: {
        invalidate(sourceId, tag, page, pages, pasid, global) {
          outputs.push({ op: 'deviceTlbInvalidate', sourceId, tag, pasid, page, pages, global });
          return true;
        },
        pageResponse(sourceId, group, code, pasid) {
          outputs.push({ op: 'pageResponse', sourceId, pasid, group, code });
          return true;
        },
        releaseHeld() {},
      },
    });
  }

  /** Lets time pass up to `t`, or long enough for the unit to settle. */
  advance(t: number | undefined): void {
    this.clock.run({ untilNs: t === undefined ? this.clock.now + SETTLE_NS : Math.max(t, this.clock.now) });
  }

  /** The next delay that the unit begins takes this long. */
  delay(ns: number): void {
    this.timing.delays.push(ns);
  }

  readRegister(offset: number, size: AccessSize): bigint {
    const lo = this.unit.read(offset, size);
    return size === 8 ? toU64(lo, this.unit.high) : BigInt(lo);
  }

  writeRegister(offset: number, size: AccessSize, value: bigint): void {
    if (size === 8) write64(this.unit, offset, value);
    else this.unit.write(offset, size, Number(value));
  }

  readMemory(at: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.memory.read(at, bytes, 0, length);
    return bytes;
  }

  /** Every cache forgets everything, as hardware may at any time. */
  evict(): void {
    const { backEnd } = this.unit;
    backEnd.invalidateContext('global', 0, 0, 0);
    backEnd.invalidatePasidCache('global', 0, NO_PASID);
    backEnd.invalidateIotlb('global', 0, 0, 1, false);
    backEnd.invalidateInterruptEntries(0, Infinity);
  }
}
