/* oxlint-disable require-yield -- notifiers and files that have nothing to wait for */
/** The smallest world with an address space: RAM, frames, a scheduler. Entries are read as raw bytes. */
import { expect } from 'vitest';
import { FrameAllocator } from '../../host/frames.js';
import type { AddressSpace, MmNotifier } from '../../host/mm/address-space.js';
import { Mm } from '../../host/mm/mm.js';
import { VirtualClock } from '../../sim/clock.js';
import { isErrno, type ErrnoName } from '../../sim/errno.js';
import { Ram } from '../../sim/memory.js';
import { Scheduler, type Steps } from '../../sim/task.js';
import { Trace } from '../../sim/trace.js';

export const MIB = 2 ** 20;
export const GIB = 2 ** 30;

export class MmWorld {
  readonly clock = new VirtualClock({ eventLimit: 1_000_000 });
  readonly scheduler = new Scheduler(this.clock, (error) => this.clock.fail(error));
  readonly trace = new Trace(this.clock, 4096);
  readonly memory: Ram;
  readonly frames: FrameAllocator;
  private readonly defects: ReadonlySet<string>;
  private nextId = 1;

  constructor(options: { bytes?: number; defects?: string[]; poison?: number } = {}) {
    const bytes = options.bytes ?? 64 * MIB;
    this.defects = new Set(options.defects);
    this.memory = new Ram(bytes);
    this.frames = new FrameAllocator({
      memory: this.memory, ranges: [{ start: 0, end: bytes }], defects: this.defects, ...(options.poison === undefined ? {} : { poison: options.poison }),
    });
  }

  mm(options: { memlockLimitPages?: number; levels?: 4 | 5; gigantic?: boolean } = {}): Mm {
    const id = this.nextId++;
    return new Mm({
      id, name: `process ${id}`, memory: this.memory, frames: this.frames, scheduler: this.scheduler, defects: this.defects, trace: this.trace, traceEntries: true, ...options,
    });
  }

  /** Runs kernel code that does not sleep here. */
  run<T>(steps: Steps<T>): T {
    return this.scheduler.runNow('test', steps);
  }

  /** Runs kernel code as a task, until the machine is idle. */
  task<T>(steps: Steps<T>): T {
    const task = this.scheduler.spawn('test', steps, { joined: true });
    this.clock.run();
    if (task.state === 'failed') throw task.error;
    expect(task.state).toBe('done');
    return task.result as T;
  }

  refuses(code: ErrnoName, steps: () => Steps<unknown>): void {
    let error: unknown;
    try {
      this.run(steps());
    } catch (thrown) {
      error = thrown;
    }
    expect(isErrno(error, code) ? code : error).toBe(code);
  }

  /** Raw 64-bit entries of a 4-level walk from the root down, computed by hand from the address bits. */
  entries(mm: AddressSpace, address: number): bigint[] {
    const found: bigint[] = [];
    let table = BigInt(mm.pgd);
    for (const shift of [39n, 30n, 21n, 12n]) {
      const slot = Number(table + ((BigInt(address) >> shift) & 511n) * 8n);
      const entry = this.word(slot);
      found.push(entry);
      if ((entry & 1n) === 0n || (shift < 39n && (entry & 0x80n) !== 0n)) break;
      table = entry & 0x000f_ffff_ffff_f000n;
    }
    return found;
  }

  /** The last entry of the walk. */
  entry(mm: AddressSpace, address: number): bigint {
    return this.entries(mm, address).at(-1)!;
  }

  /** Physical address of the last entry of the walk. */
  slot(mm: AddressSpace, address: number): number {
    const shifts = [39n, 30n, 21n, 12n];
    const entries = this.entries(mm, address);
    const table = entries.length === 1 ? BigInt(mm.pgd) : entries.at(-2)! & 0x000f_ffff_ffff_f000n;
    return Number(table + ((BigInt(address) >> shifts[entries.length - 1]!) & 511n) * 8n);
  }

  word(physical: number): bigint {
    expect(this.memory.load64(physical)).toBe(true);
    return (BigInt(this.memory.hi >>> 0) << 32n) | BigInt(this.memory.lo >>> 0);
  }

  poke(physical: number, value: bigint): void {
    this.memory.store64(physical, Number(value & 0xffff_ffffn), Number(value >> 32n));
  }

  load(mm: Mm, address: number, length = 1): number[] {
    const bytes = new Uint8Array(length);
    this.run(mm.read(address, bytes));
    return [...bytes];
  }

  store(mm: Mm, address: number, ...bytes: number[]): void {
    this.run(mm.write(address, Uint8Array.from(bytes)));
  }

  /** Ends an address space and checks that nothing is left of it. */
  end(...spaces: Mm[]): void {
    for (const mm of spaces) {
      this.run(mm.put());
      expect(mm.residentPages).toBe(0);
    }
    expect(this.frames.usage()).toEqual([]);
    expect(this.frames.inUse).toBe(0);
    expect(this.frames.pinnedPages).toBe(0);
  }
}

/** What an IOMMU does with invalidations, as a record of what it heard. */
export class Listener implements MmNotifier {
  readonly heard: string[] = [];
  private readonly onInvalidate: ((mm: AddressSpace, start: number, end: number) => void) | undefined;

  constructor(onInvalidate?: (mm: AddressSpace, start: number, end: number) => void) {
    this.onInvalidate = onInvalidate;
  }

  *invalidateRange(mm: AddressSpace, start: number, end: number): Steps {
    this.heard.push(`${start.toString(16)}-${end.toString(16)}`);
    this.onInvalidate?.(mm, start, end);
  }

  *release(): Steps {
    this.heard.push('release');
  }
}
