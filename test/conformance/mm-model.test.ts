/* oxlint-disable require-yield -- notifiers and files that have nothing to wait for */
/**
 * Random system calls on a family of address spaces against the plainest model: a map of pages to values. A cache of
 * translations like a device's hangs on every address space; after every call each of its entries must still be
 * what the tables say, or have been invalidated.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { AddressSpace, MmNotifier } from '../../host/mm/address-space.js';
import { SegmentationFault, type Mm } from '../../host/mm/mm.js';
import { ACCESS_READ, ACCESS_WRITE } from '../../host/pci/dma-port.js';
import type { Steps } from '../../sim/task.js';
import { MmWorld } from './mm-world.js';

const RUNS = process.env['VFIOSIM_NIGHTLY'] === '1' ? 3000 : 60;

/** A few pages around a 2 MiB boundary. */
const BASE = 0x1_0000_0000 - 5 * 4096;
const PAGES = 10;

interface Cell {
  prot: number;
  /** The value of the page's first byte, shared by everybody who shares the page. */
  value: { byte: number };
  shared: boolean;
  /** What a private file mapping shows again after MADV_DONTNEED. */
  initial: number;
}

class DeviceCache implements MmNotifier {
  readonly entries = new Map<number, { frame: number; writable: boolean }>();

  *invalidateRange(_mm: AddressSpace, start: number, end: number): Steps {
    for (const address of this.entries.keys()) if (address >= start && address < end) this.entries.delete(address);
  }

  *release(): Steps {
    this.entries.clear();
  }
}

interface Member {
  readonly mm: Mm;
  readonly cells: (Cell | undefined)[];
  readonly cache: DeviceCache;
}

const slots = fc.record({ start: fc.nat(PAGES - 1), count: fc.integer({ min: 1, max: 5 }) });
const prot = fc.constantFrom(0, 1, 3, 3, 3);
const who = fc.nat(100);
const step = fc.oneof(
  { weight: 3, arbitrary: fc.record({ op: fc.constant('mmap' as const), who, at: slots, prot, shared: fc.boolean(), file: fc.boolean() }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('munmap' as const), who, at: slots }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('mprotect' as const), who, at: slots, prot }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('dontneed' as const), who, at: slots }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('fork' as const), who }) },
  { weight: 1, arbitrary: fc.record({ op: fc.constant('exit' as const), who }) },
  { weight: 6, arbitrary: fc.record({ op: fc.constant('store' as const), who, page: fc.nat(PAGES - 1), byte: fc.nat(255) }) },
  { weight: 4, arbitrary: fc.record({ op: fc.constant('load' as const), who, page: fc.nat(PAGES - 1) }) },
  { weight: 5, arbitrary: fc.record({ op: fc.constant('device' as const), who, page: fc.nat(PAGES - 1), write: fc.boolean() }) },
  { weight: 2, arbitrary: fc.record({ op: fc.constant('pin' as const), who, page: fc.nat(PAGES - 1), write: fc.boolean() }) },
);
type Step = typeof step extends fc.Arbitrary<infer T> ? T : never;

class Family {
  readonly world: MmWorld;
  readonly members: Member[] = [];
  private readonly pins: { physical: number; mm: Mm; page: number; cells: Member['cells']; value: Cell['value'] }[] = [];
  private nextId = 10;

  constructor(defects: string[] = []) {
    this.world = new MmWorld({ defects, poison: 0xdb });
    this.adopt(this.world.mm(), Array.from({ length: PAGES }, () => undefined));
  }

  private adopt(mm: Mm, cells: (Cell | undefined)[]): void {
    const cache = new DeviceCache();
    mm.registerNotifier(cache);
    this.members.push({ mm, cells, cache });
  }

  apply(step: Step): void {
    const member = this.members[step.who % this.members.length]!;
    const { mm, cells } = member;
    if ('at' in step) {
      const start = step.at.start, end = Math.min(start + step.at.count, PAGES);
      this.range(step, mm, cells, start, end);
    } else if ('page' in step) this.access(step, member, BASE + step.page * 4096, cells[step.page]);
    else if (step.op === 'fork' && this.members.length < 4) this.fork(mm, cells);
    else if (step.op === 'exit' && this.members.length > 1) {
      this.unpin(mm);
      this.world.run(mm.put());
      this.members.splice(this.members.indexOf(member), 1);
    }
    this.check();
  }

  private range(step: Step & { at: unknown }, mm: Mm, cells: (Cell | undefined)[], start: number, end: number): void {
    const { world } = this;
    const address = BASE + start * 4096, length = (end - start) * 4096;
    const mapped = cells.slice(start, end).every((cell) => cell !== undefined);
    if (step.op === 'mmap') {
      const options = { address, fixed: 'replace' as const, prot: step.prot, shared: step.shared };
      const content = Uint8Array.from({ length }, (_, i) => (i % 4096 === 0 ? 100 + i / 4096 : 0));
      world.run(step.file ? mm.mmapFile(content, options) : mm.mmap(length, options));
      for (let i = start; i < end; i++) {
        const initial = step.file ? 100 + i - start : 0;
        cells[i] = { prot: step.prot, shared: step.shared, value: { byte: initial }, initial };
      }
    } else if (step.op === 'munmap') {
      world.run(mm.munmap(address, length));
      cells.fill(undefined, start, end);
    } else if (!mapped) {
      world.refuses('ENOMEM', () => (step.op === 'mprotect' ? mm.mprotect(address, length, step.prot) : mm.madviseDontNeed(address, length)));
    } else if (step.op === 'mprotect') {
      world.run(mm.mprotect(address, length, step.prot));
      for (let i = start; i < end; i++) cells[i] = { ...cells[i]!, prot: step.prot };
    } else {
      world.run(mm.madviseDontNeed(address, length));
      for (let i = start; i < end; i++) if (!cells[i]!.shared) cells[i] = { ...cells[i]!, value: { byte: cells[i]!.initial } };
    }
  }

  private fork(mm: Mm, cells: (Cell | undefined)[]): void {
    const child = this.world.run(mm.fork(this.nextId++, 'child'));
    this.adopt(child, cells.map((cell) => cell && { ...cell, value: cell.shared ? cell.value : { ...cell.value } }));
  }

  private access(step: Step & { page: number }, { mm, cells, cache }: Member, address: number, cell: Cell | undefined): void {
    const { world } = this;
    const write = step.op === 'store' || ('write' in step && step.write);
    const allowed = cell !== undefined && (cell.prot & (write ? 2 : 1)) !== 0;
    if (step.op === 'pin') {
      if (!allowed) return world.refuses('EFAULT', () => mm.pinPages(address, 1, write));
      const [physical] = world.run(mm.pinPages(address, 1, write));
      this.pins.push({ physical: physical!, mm, page: step.page, cells, value: cell.value });
      if (this.pins.length > 6) this.world.frames.unpin(this.pins.shift()!.physical);
    } else if (step.op === 'device') {
      const outcome = world.run(mm.handleFault(address, write ? ACCESS_WRITE : ACCESS_READ));
      expect(outcome).toBe(cell === undefined ? 'no-vma' : allowed ? 'handled' : 'permission');
      if (allowed) cache.entries.set(address, this.translation(mm, address)!);
    } else if (!allowed) {
      expect(() => (step.op === 'store' ? world.store(mm, address, step.byte) : world.load(mm, address))).toThrow(SegmentationFault);
    } else if (step.op === 'store') {
      world.store(mm, address, step.byte);
      cell.value.byte = step.byte;
    } else expect(world.load(mm, address)).toEqual([cell.value.byte]);
  }

  private translation(mm: Mm, address: number): { frame: number; writable: boolean } | undefined {
    if (!mm.tables.find(address / 4096) || (mm.tables.lo & 1) === 0) return undefined;
    return { frame: mm.physicalOf(address), writable: (mm.tables.lo & 2) !== 0 };
  }

  /** No cached translation outlives its entry, every present page shows its value, and so does every pinned one. */
  private check(): void {
    const { memory } = this.world;
    for (const { mm, cells, cache } of this.members) {
      for (const [address, cached] of cache.entries) {
        const now = this.translation(mm, address);
        must(now?.frame === cached.frame && (now.writable || !cached.writable), `stale translation of ${address.toString(16)}`);
      }
      cells.forEach((cell, i) => {
        const now = this.translation(mm, BASE + i * 4096);
        if (now === undefined) return;
        must(cell !== undefined && cell.prot > 0 && (!now.writable || (cell.prot & 2) !== 0), `page ${i} has too many rights`);
        must(memory.load(now.frame, 1) === cell.value.byte, `page ${i} shows ${memory.load(now.frame, 1)}, not ${cell.value.byte}`);
      });
    }
    for (const { physical, value, cells, page } of this.pins) {
      // as long as the process has the page, what was pinned is what it sees
      if (cells[page]?.value === value) must(memory.load(physical, 1) === value.byte, `pinned page ${page} was left behind`);
    }
  }

  private unpin(mm?: Mm): void {
    for (let i = this.pins.length - 1; i >= 0; i--) {
      if (mm !== undefined && this.pins[i]!.mm !== mm) continue;
      this.world.frames.unpin(this.pins[i]!.physical);
      this.pins.splice(i, 1);
    }
  }

  end(): void {
    this.unpin();
    this.world.end(...this.members.map(({ mm }) => mm));
  }
}

function must(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(message);
}

function runs(defects: string[], shrink = false): fc.RunDetails<[Step[]]> {
  return fc.check(fc.property(fc.array(step, { minLength: 10, maxLength: 120, size: 'max' }), (steps) => {
    const family = new Family(defects);
    for (const each of steps) family.apply(each);
    family.end();
  }), { numRuns: RUNS, seed: 3, endOnFailure: !shrink });
}

describe('address spaces', () => {
  it('behave like maps of pages, whatever is called in whatever order', () => {
    const result = runs([], true);
    expect(fc.defaultReportMessage(result) ?? 'held').toBe('held');
  });

  it.each(['mm.skip-notify', 'mm.fork-stays-writable', 'mm.ignore-area-protection', 'frames.skip-zeroing'])(
    'the model catches the defect %s', (defect) => {
      expect(runs([defect]).failed).toBe(true);
    });
});
