/** Loads and stores of a program, through its page tables, with the time they take. */
import type { Mm } from '../../host/mm/mm.js';
import type { Timing } from '../../host/timing.js';
import type { Clock } from '../../sim/clock.js';
import { sleep, type Steps } from '../../sim/task.js';

/** Time passes at least this often, so that others run in between. */
const SLICE_BYTES = 64 * 1024;

export class CpuMemory {
  private readonly clock: Clock;
  private readonly timing: Timing;
  private readonly mm: Mm;
  private readonly byte = new Uint8Array(1);

  constructor(clock: Clock, timing: Timing, mm: Mm) {
    this.clock = clock;
    this.timing = timing;
    this.mm = mm;
  }

  /** Throws SegmentationFault, as the other accesses. */
  *read(address: number, sizeBytes: number): Steps<Uint8Array> {
    const bytes = new Uint8Array(sizeBytes);
    yield* this.sliced(sizeBytes, (at, count) => this.mm.read(address + at, bytes, at, count));
    return bytes;
  }

  *write(address: number, bytes: Uint8Array): Steps {
    yield* this.sliced(bytes.length, (at, count) => this.mm.write(address + at, bytes, at, count));
  }

  *fill(address: number, sizeBytes: number, value: number): Steps {
    yield* this.sliced(sizeBytes, (at, count) => this.mm.fill(address + at, value, count));
  }

  /** One byte of every page; a write keeps the byte's value. */
  *touch(address: number, sizeBytes: number, write: boolean): Steps {
    const end = address + sizeBytes;
    for (let at = address; at < end; at += 4096 - (at % 4096)) {
      yield* this.mm.read(at, this.byte, 0, 1);
      if (write) yield* this.mm.write(at, this.byte, 0, 1);
      yield* sleep(this.clock, this.timing.jittered(this.timing.options.memoryAccessNs));
    }
  }

  private *sliced(sizeBytes: number, access: (at: number, count: number) => Steps): Steps {
    for (let at = 0; at < sizeBytes; at += SLICE_BYTES) {
      const count = Math.min(SLICE_BYTES, sizeBytes - at);
      yield* access(at, count);
      yield* sleep(this.clock, this.timing.jittered(this.timing.copyNs(count)));
    }
  }
}
