/* oxlint-disable require-yield -- notifiers and files that have nothing to wait for */
/** The address space: areas, demand faults, entries in memory, notifiers, lifetimes. */
import { describe, expect, it } from 'vitest';
import { MMAP_BASE, SegmentationFault } from '../../host/mm/mm.js';
import { PROT_EXEC, PROT_NONE, PROT_READ, PROT_WRITE } from '../../host/mm/vma.js';
import { ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE } from '../../host/pci/dma-port.js';
import { SimulatorBug } from '../../sim/assert.js';
import { sleep } from '../../sim/task.js';
import { GIB, Listener, MIB, MmWorld } from './mm-world.js';

const RW = PROT_READ | PROT_WRITE;

describe('demand faults', () => {
  it('maps nothing until a page is touched (flow 2a.2)', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(MIB));
    expect(address).toBe(MMAP_BASE - MIB);
    expect(mm.residentPages).toBe(0);
    expect(world.entries(mm, address)).toEqual([0n]);
    expect(mm.physicalOf(address)).toBe(-1);
    world.end(mm);
  });

  it('installs a written page with P RW US A D and XD, a read one clean', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(3 * 4096));
    expect(world.run(mm.handleFault(address + 5, ACCESS_WRITE))).toBe('handled');
    expect(world.run(mm.handleFault(address + 4096, ACCESS_READ))).toBe('handled');
    const flags = 0x8000_0000_0000_0fffn;
    expect(world.entry(mm, address) & flags).toBe(0x8000_0000_0000_0067n);
    expect(world.entry(mm, address + 4096) & flags).toBe(0x8000_0000_0000_0027n);
    expect(world.entries(mm, address).slice(0, 3).map((entry) => entry & flags)).toEqual([0x67n, 0x67n, 0x67n]);
    expect(mm.residentPages).toBe(2);
    expect(world.load(mm, address, 8192)).toEqual(Array(8192).fill(0));
    world.end(mm);
  });

  it('answers as P4 says: no area, wrong permission, privileged like user', () => {
    const world = new MmWorld(), mm = world.mm();
    const readOnly = world.run(mm.mmap(4096, { prot: PROT_READ }));
    const code = world.run(mm.mmap(4096, { prot: PROT_READ | PROT_EXEC }));
    const nothing = world.run(mm.mmap(4096, { prot: PROT_NONE }));
    const fault = (address: number, access: number) => world.run(mm.handleFault(address, access));
    expect(fault(0x1000, ACCESS_READ)).toBe('no-vma');
    expect(fault(2 ** 52, ACCESS_READ)).toBe('no-vma');
    expect(fault(readOnly, ACCESS_WRITE)).toBe('permission');
    expect(fault(readOnly, ACCESS_EXECUTE)).toBe('permission');
    expect(fault(nothing, 0)).toBe('permission');
    expect(fault(code, ACCESS_WRITE | ACCESS_PRIVILEGED)).toBe('permission');
    expect(mm.residentPages).toBe(0);
    expect(fault(code, ACCESS_READ | ACCESS_EXECUTE | ACCESS_PRIVILEGED)).toBe('handled');
    expect(world.entry(mm, code) & 0x8000_0000_0000_0fffn).toBe(0x25n);
    world.end(mm);
  });

  it('is caught ignoring the protection of areas (defect mm.ignore-area-protection)', () => {
    const world = new MmWorld({ defects: ['mm.ignore-area-protection'] }), mm = world.mm();
    const readOnly = world.run(mm.mmap(4096, { prot: PROT_READ }));
    expect(world.run(mm.handleFault(readOnly, ACCESS_WRITE))).toBe('handled');
    expect(world.entry(mm, readOnly) & 2n).toBe(2n);
  });

  it('sets A and D in the entry by the process\'s own loads and stores', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(4096));
    world.load(mm, address);
    const slot = world.slot(mm, address);
    const clean = world.word(slot) & ~0x60n;
    world.poke(slot, clean);
    world.load(mm, address + 100);
    expect(world.word(slot)).toBe(clean | 0x20n);
    world.store(mm, address + 4095, 7);
    expect(world.word(slot)).toBe(clean | 0x60n);
    world.end(mm);
  });

  it('throws SegmentationFault for a load or store that the areas forbid, after the bytes before it', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(8192));
    world.run(mm.mprotect(address + 4096, 4096, PROT_READ));
    expect(() => world.store(mm, address + 4095, 1, 2)).toThrow(SegmentationFault);
    expect(world.load(mm, address + 4095, 2)).toEqual([1, 0]);
    expect(() => world.load(mm, address + 8191, 2)).toThrow(/load from 0x7ffff7fff000: no-vma/);
    world.end(mm);
  });

  it('copies a file\'s content when a page is touched, and keeps writes private', () => {
    const world = new MmWorld(), mm = world.mm();
    const content = Uint8Array.from({ length: MIB + 100 }, (_, i) => (i * 7 + (i >> 12)) & 255);
    const address = world.run(mm.mmapFile(content, { prot: RW }));
    expect(mm.residentPages).toBe(0);
    const bytes = new Uint8Array(content.length);
    world.run(mm.read(address, bytes));
    expect(Buffer.compare(bytes, content)).toBe(0);
    expect(world.load(mm, address + content.length, 8)).toEqual(Array(8).fill(0));
    world.store(mm, address, 255);
    expect(content[0]).toBe(0);
    // in the middle of the file the offset of a split area still counts
    world.run(mm.munmap(address + 8192, 4096));
    world.run(mm.madviseDontNeed(address + 12288, 4096));
    expect(world.load(mm, address + 12288)).toEqual([content[12288]]);
    world.end(mm);
  });

  it('answers out-of-memory as a value, and goes on when memory is back', () => {
    const world = new MmWorld({ bytes: 20 * 4096 }), mm = world.mm();
    const address = world.run(mm.mmap(MIB));
    let page = 0;
    while (world.run(mm.handleFault(address + page * 4096, ACCESS_WRITE)) === 'handled') page++;
    expect(page).toBeLessThan(19);
    expect(world.run(mm.handleFault(address + page * 4096, ACCESS_WRITE))).toBe('out-of-memory');
    expect(() => world.store(mm, address + page * 4096, 1)).toThrow('out-of-memory');
    world.run(mm.madviseDontNeed(address, 4096));
    expect(world.run(mm.handleFault(address + page * 4096, ACCESS_WRITE))).toBe('handled');
    world.end(mm);
  });
});

describe('leaves of all sizes', () => {
  it('maps a MAP_HUGETLB area with one 2 MiB leaf per fault (flow 2a variant i)', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(3 * MIB, { hugeLevel: 1 }));
    expect(address % (2 * MIB)).toBe(0);
    world.store(mm, address + MIB, 42);
    const entries = world.entries(mm, address);
    expect(entries.length).toBe(3);
    expect(entries[2]! & 0x8000_0000_001f_ffffn).toBe(0x8000_0000_0000_00e7n);
    expect(mm.residentPages).toBe(512);
    expect(world.memory.load(Number(entries[2]! & 0xf_ffff_ffe0_0000n) + MIB, 1)).toBe(42);
    expect(world.load(mm, address + MIB)).toEqual([42]);
    world.refuses('EINVAL', () => mm.munmap(address, 4096));
    world.refuses('EINVAL', () => mm.mprotect(address + 4096, 2 * MIB - 4096, PROT_READ));
    world.run(mm.munmap(address, 4 * MIB));
    world.end(mm);
  });

  it('maps 1 GiB leaves where the CPU has them (U7)', () => {
    const world = new MmWorld({ bytes: 3 * GIB }), mm = world.mm();
    const address = world.run(mm.mmap(GIB, { hugeLevel: 2 }));
    world.store(mm, address + 0x1234_5678, 9);
    const entries = world.entries(mm, address);
    expect(entries.length).toBe(2);
    expect(entries[1]! & 0x8000_0000_3fff_ffffn).toBe(0x8000_0000_0000_00e7n);
    expect(mm.physicalOf(address + 0x1234_5678) % GIB).toBe(0x1234_5678);
    const old = world.mm({ gigantic: false });
    expect(old.usesGigantic).toBe(false);
    world.refuses('EINVAL', () => old.mmap(GIB, { hugeLevel: 2 }));
    world.end(mm, old);
  });

  it('reuses the address of small pages for a huge one once their tables are gone', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(4 * MIB, { hugeLevel: 1 }));
    world.run(mm.munmap(address, 4 * MIB));
    world.run(mm.mmap(16 * 4096, { address, fixed: 'noreplace' }));
    world.store(mm, address + 5 * 4096, 1);
    world.run(mm.munmap(address, 16 * 4096));
    world.run(mm.mmap(2 * MIB, { address, fixed: 'noreplace', hugeLevel: 1 }));
    world.store(mm, address, 1);
    expect(world.entries(mm, address).length).toBe(3);
    world.end(mm);
  });

  it('walks five levels on a CPU that has them', () => {
    const world = new MmWorld(), mm = world.mm({ levels: 5 });
    const address = world.run(mm.mmap(4096));
    world.store(mm, address, 5);
    expect(world.load(mm, address)).toEqual([5]);
    expect(mm.tables.tables).toBe(5);
    // the fifth level's index of a 47-bit address is 0
    expect(world.word(mm.pgd) & 0xfffn).toBe(0x67n);
    world.end(mm);
  });
});

describe('areas', () => {
  it('places mappings top-down and merges what the kernel would merge', () => {
    const world = new MmWorld(), mm = world.mm();
    const a = world.run(mm.mmap(4096)), b = world.run(mm.mmap(8192));
    expect(b).toBe(a - 8192);
    expect(mm.areas.count).toBe(1);
    const c = world.run(mm.mmap(4096, { prot: PROT_READ }));
    expect(mm.areas.count).toBe(2);
    world.run(mm.mprotect(c, 4096, RW));
    expect(mm.areas.count).toBe(1);
    world.run(mm.munmap(a - 4096, 4096));
    expect(mm.areas.count).toBe(2);
    expect(world.run(mm.mmap(4096))).toBe(a - 4096);
    expect(mm.areas.count).toBe(1);
    world.end(mm);
  });

  it('refuses as mmap(2) does, and changes nothing', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(4096));
    world.refuses('EINVAL', () => mm.mmap(0));
    world.refuses('EINVAL', () => mm.mmap(4096, { address: 0x1234, fixed: 'replace' }));
    world.refuses('ENOMEM', () => mm.mmap(4096, { address: 0, fixed: 'replace' }));
    world.refuses('EEXIST', () => mm.mmap(8192, { address: address - 4096, fixed: 'noreplace' }));
    world.refuses('ENOMEM', () => mm.mmap(2 ** 47));
    world.refuses('EINVAL', () => mm.munmap(address + 1, 4096));
    world.refuses('EINVAL', () => mm.munmap(address, 0));
    world.refuses('ENOMEM', () => mm.mprotect(address, 8192, PROT_READ));
    world.refuses('ENOMEM', () => mm.madviseDontNeed(address - 4096, 8192));
    world.refuses('EFAULT', () => mm.mremap(address - 4096, 4096, 8192));
    world.refuses('EINVAL', () => mm.mremap(address, 4096, 0));
    world.refuses('EINVAL', () => mm.brk(4096));
    expect([...mm.areas].map((area) => [area.start * 4096, area.end * 4096, area.prot])).toEqual([[address, address + 4096, RW]]);
    world.end(mm);
  });

  it('MAP_FIXED replaces what was there', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(3 * 4096));
    for (let i = 0; i < 3; i++) world.store(mm, address + i * 4096, i + 1);
    expect(world.run(mm.mmap(4096, { address: address + 4096, fixed: 'replace', prot: PROT_READ }))).toBe(address + 4096);
    expect([0, 1, 2].map((i) => world.load(mm, address + i * 4096)[0])).toEqual([1, 0, 3]);
    world.end(mm);
  });

  it('PROT_NONE keeps the frame and its content out of reach', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(4096));
    world.store(mm, address, 11);
    const frame = world.entry(mm, address) & 0xf_ffff_ffff_f000n;
    world.run(mm.mprotect(address, 4096, PROT_NONE));
    // P and RW clear, bit 8 set, A and D and the frame kept
    expect(world.word(world.slot(mm, address))).toBe(0x8000_0000_0000_0160n | frame);
    expect(() => world.load(mm, address)).toThrow('permission');
    world.run(mm.mprotect(address, 4096, PROT_READ));
    expect(world.load(mm, address)).toEqual([11]);
    expect(() => world.store(mm, address, 1)).toThrow('permission');
    world.run(mm.mprotect(address, 4096, RW));
    world.store(mm, address, 12);
    expect(world.entry(mm, address) & 0xf_ffff_ffff_f000n).toBe(frame);
    world.end(mm);
  });

  it('mremap grows in place, moves entries and not bytes, and shrinks', () => {
    const world = new MmWorld(), mm = world.mm();
    const blocker = world.run(mm.mmap(4096, { prot: PROT_READ }));
    const address = world.run(mm.mmap(8192));
    world.store(mm, address + 4096, 21);
    const physical = mm.physicalOf(address + 4096);
    world.refuses('ENOMEM', () => mm.mremap(address, 8192, 3 * MIB, false));
    const moved = world.run(mm.mremap(address, 8192, 3 * MIB));
    expect(moved).not.toBe(address);
    expect(mm.physicalOf(moved + 4096)).toBe(physical);
    expect(world.load(mm, moved + 4096)).toEqual([21]);
    expect(() => world.load(mm, address + 4096)).toThrow('no-vma');
    expect(world.run(mm.mremap(moved, 3 * MIB, 4096))).toBe(moved);
    expect(() => world.load(mm, moved + 4096)).toThrow('no-vma');
    expect(world.run(mm.mremap(moved, 4096, 8192))).toBe(moved);
    expect(world.load(mm, moved + 4096)).toEqual([0]);
    world.run(mm.munmap(blocker, 4096));
    world.end(mm);
  });

  it('madvise(DONTNEED) gives private pages back and shows zeros again', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(4 * MIB));
    for (let i = 0; i < 1024; i++) world.store(mm, address + i * 4096, 1);
    const used = world.frames.inUse;
    world.run(mm.madviseDontNeed(address + 4096, 4 * MIB - 4096));
    expect(mm.residentPages).toBe(1);
    expect(used - world.frames.inUse).toBeGreaterThanOrEqual(1023);
    expect(world.load(mm, address + 4096)).toEqual([0]);
    expect(world.load(mm, address)).toEqual([1]);
    world.end(mm);
  });
});

describe('notifiers', () => {
  it('hears of every removed or restricted entry, and of nothing else', () => {
    const world = new MmWorld(), mm = world.mm();
    const listener = new Listener();
    mm.registerNotifier(listener);
    const address = world.run(mm.mmap(8 * 4096));
    world.run(mm.munmap(address + 7 * 4096, 4096));
    world.store(mm, address, 1);
    world.run(mm.mprotect(address, 4096, RW));
    expect(listener.heard).toEqual([]);
    const at = (page: number) => (address + page * 4096).toString(16);
    world.run(mm.mprotect(address, 4096, PROT_READ));
    expect(listener.heard.splice(0)).toEqual([`${at(0)}-${at(1)}`]);
    world.run(mm.mprotect(address, 4096, RW));
    world.store(mm, address, 1);
    expect(listener.heard).toEqual([]);
    world.run(mm.madviseDontNeed(address, 8192));
    expect(listener.heard.splice(0)).toEqual([`${at(0)}-${at(2)}`]);
    world.store(mm, address, 1);
    const moved = world.run(mm.mremap(address, 4096, 16 * 4096));
    expect(listener.heard.splice(0)).toEqual([`${at(0)}-${at(1)}`]);
    world.store(mm, moved, 1);
    world.run(mm.munmap(moved, 16 * 4096));
    expect(listener.heard.splice(0)).toEqual([`${moved.toString(16)}-${(moved + 16 * 4096).toString(16)}`]);
    mm.unregisterNotifier(listener);
    world.end(mm);
    expect(listener.heard).toEqual([]);
  });

  it.each([
    ['', true, false], ['mm.free-before-notify', true, true], ['mm.skip-notify', false, false],
  ])('tells before the frame is free, entries cleared already (defect "%s")', (defect, told, freed) => {
    const world = new MmWorld({ defects: [defect] }), mm = world.mm();
    let heard = false, frameWasFree = false;
    const address = world.run(mm.mmap(4096));
    world.store(mm, address, 1);
    const frame = mm.physicalOf(address);
    mm.registerNotifier(new Listener(() => {
      heard = true;
      frameWasFree = world.frames.references(frame) === 0;
      expect(mm.physicalOf(address)).toBe(-1);
    }));
    world.run(mm.munmap(address, 4096));
    expect([heard, frameWasFree]).toEqual([told, freed]);
    expect(world.frames.references(frame)).toBe(0);
  });

  it('keeps a fault of another task waiting while an invalidation is under way', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(8192));
    world.store(mm, address, 1);
    const story: string[] = [];
    mm.registerNotifier({
      *invalidateRange() {
        story.push('invalidate');
        yield* sleep(world.clock, 1000);
        story.push('invalidated');
      },
      *release() {},
    });
    world.scheduler.spawn('unmapper', mm.munmap(address, 4096));
    world.scheduler.spawn('faulter', (function* () {
      story.push(`${yield* mm.handleFault(address, ACCESS_READ)} at ${world.clock.now}`);
      story.push(`${yield* mm.handleFault(address + 4096, ACCESS_READ)} at ${world.clock.now}`);
    })());
    world.clock.run();
    expect(story).toEqual(['invalidate', 'invalidated', 'no-vma at 1000', 'handled at 1000']);
    expect(world.scheduler.deadlockReport()).toEqual([]);
    world.task(mm.put());
    expect(world.frames.inUse).toBe(0);
  });
});

describe('lifetimes', () => {
  it('calls release once on the last put, with the tables still whole (M1)', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(4096));
    world.store(mm, address, 1);
    const seen: number[] = [];
    mm.registerNotifier({
      *invalidateRange() { seen.push(-1); },
      *release(space) { seen.push(space.users, world.word(world.slot(space, address)) === 0n ? 0 : 1, space.exiting ? 1 : 0); },
    });
    expect(mm.get()).toBe(true);
    world.run(mm.put());
    expect(seen).toEqual([]);
    world.run(mm.put());
    expect(seen).toEqual([0, 1, 1]);
    expect(mm.get()).toBe(false);
    expect(world.run(mm.handleFault(address, ACCESS_READ))).toBe('exiting');
    expect(() => world.run(mm.put())).toThrow(SimulatorBug);
    expect(world.frames.inUse).toBe(0);
  });

  it('keeps the root table and the structure until the last drop (M7)', () => {
    const world = new MmWorld(), mm = world.mm();
    const freed: string[] = [];
    mm.onFreed(() => freed.push(`frames ${world.frames.inUse}`));
    mm.grab();
    world.store(mm, world.run(mm.mmap(4096)), 1);
    world.run(mm.put());
    expect(freed).toEqual([]);
    // only the root is left, and it is empty: a device that still walks it finds nothing
    expect(world.frames.usage()).toEqual([{ owner: 'page-table', frames: 1 }]);
    expect(Array.from({ length: 512 }, (_, i) => world.word(mm.pgd + i * 8)).every((entry) => entry === 0n)).toBe(true);
    mm.drop();
    expect(freed).toEqual(['frames 0']);
    expect(() => mm.drop()).toThrow(SimulatorBug);
  });

  it('putAsync tears down in a task of its own, so that a fault worker may drop the last user (M5)', () => {
    const world = new MmWorld(), mm = world.mm();
    let released = false;
    mm.registerNotifier({
      *invalidateRange() {},
      *release() {
        yield* sleep(world.clock, 50);
        released = true;
      },
    });
    mm.get();
    mm.putAsync();
    expect(mm.exiting).toBe(false);
    mm.putAsync();
    expect(mm.exiting).toBe(true);
    expect(released).toBe(false);
    world.clock.run();
    expect(released).toBe(true);
    expect(world.frames.inUse).toBe(0);
  });

  it('charges locked pages up to RLIMIT_MEMLOCK (C8)', () => {
    const world = new MmWorld(), mm = world.mm({ memlockLimitPages: 10 });
    mm.accountLocked(8);
    expect(() => mm.accountLocked(3)).toThrow('ENOMEM');
    expect(mm.lockedPages).toBe(8);
    mm.accountLocked(2);
    mm.unaccountLocked(10);
    expect(() => mm.unaccountLocked(1)).toThrow(SimulatorBug);
  });

  it('stays below 2 KiB for a process that touched nothing, the root table aside', () => {
    const world = new MmWorld();
    const spaces = Array.from({ length: 2000 }, () => world.mm());
    const before = process.memoryUsage();
    spaces.push(...Array.from({ length: 8000 }, () => world.mm()));
    const after = process.memoryUsage();
    expect((after.heapUsed + after.arrayBuffers - before.heapUsed - before.arrayBuffers) / 8000).toBeLessThan(2048);
    expect(world.frames.inUse).toBe(10_000);
  });
});
