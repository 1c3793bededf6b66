/** Pages that more than one party holds: fork and copy on write, MAP_SHARED, pins. */
import { describe, expect, it } from 'vitest';
import { PROT_READ, PROT_WRITE } from '../../host/mm/vma.js';
import { ACCESS_READ, ACCESS_WRITE } from '../../host/pci/dma-port.js';
import { sleep } from '../../sim/task.js';
import { Listener, MIB, MmWorld } from './mm-world.js';

const FRAME = 0xf_ffff_ffff_f000n;

describe('fork', () => {
  it('shares private pages read-only and copies on the first write of either side', () => {
    const world = new MmWorld(), parent = world.mm();
    const address = world.run(parent.mmap(3 * 4096));
    for (let i = 0; i < 3; i++) world.store(parent, address + i * 4096, 10 + i);
    const used = world.frames.framesOf('user');
    const child = world.run(parent.fork(99, 'child'));
    expect(world.frames.framesOf('user')).toBe(used);
    for (const mm of [parent, child]) expect(world.entry(mm, address) & 2n).toBe(0n);
    expect(world.entry(child, address) & FRAME).toBe(world.entry(parent, address) & FRAME);
    const frame = world.entry(parent, address) & FRAME;
    world.store(child, address, 77);
    expect(world.load(parent, address)).toEqual([10]);
    expect(world.load(child, address)).toEqual([77]);
    expect(world.entry(child, address) & FRAME).not.toBe(frame);
    // the parent is the last to hold it: its write reuses the frame
    world.store(parent, address, 11);
    expect(world.entry(parent, address)).toBe(0x8000_0000_0000_0067n | frame);
    expect(world.frames.framesOf('user')).toBe(used + 1);
    world.store(parent, address + 4096, 1);
    expect(world.load(child, address + 4096)).toEqual([11]);
    world.end(child, parent);
  });

  it('tells the parent\'s notifiers about write-protected ranges; the child has none of them', () => {
    const world = new MmWorld(), parent = world.mm();
    const address = world.run(parent.mmap(4 * 4096));
    const readOnly = world.run(parent.mmap(4096, { prot: PROT_READ }));
    world.store(parent, address, 1);
    world.load(parent, readOnly);
    const listener = new Listener(() => expect(world.entry(parent, address) & 2n).toBe(0n));
    parent.registerNotifier(listener);
    const child = world.run(parent.fork(2, 'child'));
    expect(listener.heard.splice(0)).toEqual([`${address.toString(16)}-${(address + 4 * 4096).toString(16)}`]);
    expect(child.hasNotifiers).toBe(false);
    const grandchild = world.run(parent.fork(3, 'child'));
    expect(listener.heard).toEqual([]);
    world.run(grandchild.put());
    parent.unregisterNotifier(listener);
    world.end(child, parent);
  });

  it('is caught leaving pages writable (defect mm.fork-stays-writable)', () => {
    const world = new MmWorld({ defects: ['mm.fork-stays-writable'] }), parent = world.mm();
    const address = world.run(parent.mmap(4096));
    world.store(parent, address, 1);
    const child = world.run(parent.fork(2, 'child'));
    world.store(child, address, 2);
    expect(world.load(parent, address)).toEqual([2]);
  });

  it('a device\'s read of a shared page is no copy, its write needs a second fault (scenario 5)', () => {
    const world = new MmWorld(), parent = world.mm();
    const address = world.run(parent.mmap(4096));
    world.store(parent, address, 5);
    const child = world.run(parent.fork(2, 'child'));
    const frame = world.entry(child, address) & FRAME;
    expect(world.run(child.handleFault(address, ACCESS_READ))).toBe('handled');
    expect(world.entry(child, address) & 2n).toBe(0n);
    expect(world.run(child.handleFault(address, ACCESS_READ | ACCESS_WRITE))).toBe('handled');
    expect(world.entry(child, address) & 2n).toBe(2n);
    expect(world.entry(child, address) & FRAME).not.toBe(frame);
    world.end(parent, child);
  });

  it('breaks sharing only after the invalidation of the old page, then maps the copy', () => {
    const world = new MmWorld(), parent = world.mm();
    const address = world.run(parent.mmap(4096));
    world.store(parent, address, 5);
    const child = world.run(parent.fork(2, 'child'));
    const frame = Number(world.entry(parent, address) & FRAME);
    const story: (string | number)[] = [];
    parent.registerNotifier({
      *invalidateRange(mm, start, end) {
        expect([start, end]).toEqual([address, address + 4096]);
        expect(world.word(world.slot(mm, address))).toBe(0n);
        yield* sleep(world.clock, 100);
        story.push(world.frames.references(frame), 'invalidated');
      },
      *release() {},
    });
    world.scheduler.spawn('first', (function* () {
      story.push(yield* parent.handleFault(address, ACCESS_WRITE), world.clock.now);
    })());
    world.scheduler.spawn('second', (function* () {
      story.push(yield* parent.handleFault(address, ACCESS_WRITE), world.clock.now);
    })());
    world.clock.run();
    expect(story).toEqual([2, 'invalidated', 'handled', 100, 'handled', 100]);
    expect(world.frames.references(frame)).toBe(1);
    expect(world.load(child, address)).toEqual([5]);
    world.task(parent.put());
    world.end(child);
  });

  it('copies huge pages whole', () => {
    const world = new MmWorld(), parent = world.mm();
    const address = world.run(parent.mmap(2 * MIB, { hugeLevel: 1 }));
    world.store(parent, address + 1_500_000, 3);
    const child = world.run(parent.fork(2, 'child'));
    world.store(child, address, 4);
    expect(world.load(child, address + 1_500_000)).toEqual([3]);
    expect(world.load(parent, address)).toEqual([0]);
    expect(world.entry(child, address) & 0x1f_ffffn).toBe(0xe7n);
    world.end(parent, child);
  });

  it('leaves no trace when memory runs out (ENOMEM), and the parent can still write', () => {
    const world = new MmWorld({ bytes: 32 * 4096 }), parent = world.mm();
    const address = world.run(parent.mmap(64 * MIB));
    for (let i = 0; i < 10; i++) world.store(parent, address + i * 4 * MIB, i + 1);
    const before = world.frames.usage();
    world.refuses('ENOMEM', () => parent.fork(2, 'child'));
    expect(world.frames.usage()).toEqual(before);
    for (let i = 0; i < 10; i++) world.store(parent, address + i * 4 * MIB, i + 2);
    expect(world.frames.usage()).toEqual(before);
    world.end(parent);
  });

  it('starts the child without locked pages and with the parent\'s limits', () => {
    const world = new MmWorld(), parent = world.mm({ memlockLimitPages: 4 });
    parent.accountLocked(4);
    const child = world.run(parent.fork(2, 'child'));
    expect(child.lockedPages).toBe(0);
    expect(() => child.accountLocked(5)).toThrow('ENOMEM');
    world.end(parent, child);
  });
});

describe('MAP_SHARED', () => {
  it('shows one side\'s writes to the other, and frees the pages with the last mapping', () => {
    const world = new MmWorld(), parent = world.mm();
    const address = world.run(parent.mmap(8 * 4096, { shared: true }));
    world.store(parent, address, 1);
    const child = world.run(parent.fork(2, 'child'));
    world.store(child, address + 4096, 2);
    world.store(child, address, 3);
    expect([0, 1].map((i) => world.load(parent, address + i * 4096)[0])).toEqual([3, 2]);
    // a hole in the middle: what is left of both parts still finds its pages
    world.store(parent, address + 7 * 4096, 9);
    world.run(parent.munmap(address + 4096, 4096));
    world.run(parent.madviseDontNeed(address + 2 * 4096, 6 * 4096));
    expect(world.load(parent, address + 7 * 4096)).toEqual([9]);
    world.run(child.put());
    expect(world.load(parent, address + 7 * 4096)).toEqual([9]);
    const moved = world.run(parent.mremap(address + 6 * 4096, 8192, 64 * 4096));
    expect(world.load(parent, moved + 4096)).toEqual([9]);
    world.run(parent.munmap(address, 4096));
    expect(world.frames.framesOf('shared')).toBe(3);
    world.end(parent);
  });

  it('gives all heirs of a shared file mapping one copy of its content', () => {
    const world = new MmWorld(), parent = world.mm();
    const address = world.run(parent.mmapFile(Uint8Array.of(1, 2, 3), { shared: true }));
    const child = world.run(parent.fork(2, 'child'));
    expect(world.load(child, address, 4)).toEqual([1, 2, 3, 0]);
    world.store(parent, address, 8);
    expect(world.load(child, address, 3)).toEqual([8, 2, 3]);
    world.end(parent, child);
  });
});

describe('pins', () => {
  it('faults pages in, counts them, and keeps the frames after munmap', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(3 * 4096));
    const pages = world.run(mm.pinPages(address, 3, true));
    expect(pages).toEqual([0, 1, 2].map((i) => mm.physicalOf(address + i * 4096)));
    expect(world.frames.pinnedPages).toBe(3);
    world.run(mm.munmap(address, 3 * 4096));
    expect(world.frames.framesOf('user')).toBe(3);
    mm.unpinPages(pages);
    world.end(mm);
  });

  it('refuses what the process may not access, and unpins what it had', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(8192));
    world.run(mm.mprotect(address + 4096, 4096, PROT_READ));
    world.refuses('EFAULT', () => mm.pinPages(address, 2, true));
    world.refuses('EFAULT', () => mm.pinPages(address, 3, false));
    world.refuses('EINVAL', () => mm.pinPages(address + 1, 1, false));
    expect(world.frames.pinnedPages).toBe(0);
    mm.unpinPages(world.run(mm.pinPages(address, 2, false)));
    world.end(mm);
  });

  it('leaves a pinned page with the parent at fork, so that DMA under way stays the parent\'s', () => {
    const world = new MmWorld(), parent = world.mm();
    const address = world.run(parent.mmap(4096));
    world.store(parent, address, 1);
    const [pinned] = world.run(parent.pinPages(address, 1, true));
    const child = world.run(parent.fork(2, 'child'));
    world.store(parent, address, 2);
    expect(parent.physicalOf(address)).toBe(pinned);
    expect(world.load(child, address)).toEqual([1]);
    world.store(child, address, 3);
    expect(world.memory.load(pinned!, 1)).toBe(2);
    parent.unpinPages([pinned!]);
    world.end(parent, child);
  });

  it('keeps a pinned page in place through mprotect and the write that follows', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(4096));
    const [pinned] = world.run(mm.pinPages(address, 1, true));
    world.run(mm.mprotect(address, 4096, PROT_READ));
    world.run(mm.mprotect(address, 4096, PROT_READ | PROT_WRITE));
    world.store(mm, address, 6);
    expect(mm.physicalOf(address)).toBe(pinned);
    mm.unpinPages([pinned!]);
    world.end(mm);
  });

  it('breaks sharing before it pins, also for reading', () => {
    const world = new MmWorld(), parent = world.mm();
    const address = world.run(parent.mmap(4096));
    world.store(parent, address, 1);
    const child = world.run(parent.fork(2, 'child'));
    const [pinned] = world.run(child.pinPages(address, 1, false));
    expect(pinned).not.toBe(parent.physicalOf(address));
    world.store(child, address, 2);
    expect(world.memory.load(pinned!, 1)).toBe(2);
    child.unpinPages([pinned!]);
    world.end(parent, child);
  });

  it('pins single pages of a huge page by their own addresses', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(2 * MIB, { hugeLevel: 1 }));
    const pages = world.run(mm.pinPages(address + 510 * 4096, 2, true));
    expect(pages).toEqual([510, 511].map((i) => mm.physicalOf(address) + i * 4096));
    expect(world.frames.pinnedPages).toBe(2);
    mm.unpinPages(pages);
    world.end(mm);
  });
});

describe('write access through PROT_WRITE only', () => {
  it('refuses a device\'s read, as the areas decide (P4)', () => {
    const world = new MmWorld(), mm = world.mm();
    const address = world.run(mm.mmap(4096, { prot: PROT_WRITE }));
    expect(world.run(mm.handleFault(address, ACCESS_READ))).toBe('permission');
    expect(world.run(mm.handleFault(address, ACCESS_WRITE))).toBe('handled');
    world.end(mm);
  });
});
