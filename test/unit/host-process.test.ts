/* oxlint-disable require-yield -- notifiers and files that have nothing to wait for */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { HEAP_START } from '../../host/mm/mm.js';
import { Malloc, MMAP_THRESHOLD } from '../../host/mm/malloc.js';
import { Process, type OpenFile } from '../../host/process.js';
import type { Steps } from '../../sim/task.js';
import { MmWorld } from '../conformance/mm-world.js';

describe('process', () => {
  function world() {
    const mmWorld = new MmWorld();
    const story: string[] = [];
    const file = (name: string): OpenFile => ({
      name,
      *release(): Steps { story.push(`release ${name}`); },
    });
    const process = new Process(100, 'app', mmWorld.mm());
    process.mm.registerNotifier({
      *invalidateRange() {},
      *release(mm) { story.push(`mm ${mm.id}`); },
    });
    return { run: <T>(steps: Steps<T>) => mmWorld.run(steps), mmWorld, story, file, process };
  }

  it('drops the address space before it releases files, at exit and at a kill alike (M6)', () => {
    const { run, story, file, process, mmWorld } = world();
    process.open(file('a'));
    process.open(file('b'));
    run(process.exit());
    expect(story).toEqual(['mm 1', 'release a', 'release b']);
    expect(process.state).toBe('exited');
    run(process.exit());
    expect(story.length).toBe(3);
    expect(() => process.open(file('c'))).toThrow('ESRCH');
    expect(() => run(process.fork(2))).toThrow('ESRCH');
    expect(mmWorld.frames.inUse).toBe(0);
  });

  it('hands out the lowest descriptor and refuses closed ones', () => {
    const { run, story, file, process } = world();
    expect([process.open(file('a')), process.open(file('b')), process.open(file('c'))]).toEqual([0, 1, 2]);
    run(process.close(1));
    expect(story).toEqual(['release b']);
    expect(() => process.file(1)).toThrow('EBADF');
    expect(() => run(process.close(1))).toThrow('EBADF');
    expect(process.open(file('d'))).toBe(1);
    expect(process.file(1).name).toBe('d');
  });

  it('shares open files with a child until both have closed them (B13)', () => {
    const { run, story, file, process, mmWorld } = world();
    const fd = process.open(file('device'));
    const child = run(process.fork(101));
    expect(child.file(fd)).toBe(process.file(fd));
    run(process.exit());
    expect(story).toEqual(['mm 1']);
    run(child.exit());
    expect(story).toEqual(['mm 1', 'release device']);
    expect(mmWorld.frames.inUse).toBe(0);
  });

  it('exec takes a new address space and closes what is marked (B13)', () => {
    const { run, story, file, process, mmWorld } = world();
    process.open(file('kept'));
    process.open(file('device'), { closeOnExec: true });
    const old = process.mm;
    run(process.exec('other', { ...old.options, id: 7 }));
    expect(story).toEqual(['mm 1', 'release device']);
    expect(process.mm).not.toBe(old);
    expect(process.mm.name).toBe('other');
    expect(process.descriptors()).toEqual([0]);
    run(process.exit());
    expect(mmWorld.frames.inUse).toBe(0);
  });
});

describe('malloc', () => {
  it('touches no page: 64 KiB of a fresh heap start at a page, 1 MiB comes from mmap', () => {
    const world = new MmWorld(), mm = world.mm(), heap = new Malloc(mm);
    const small = world.run(heap.malloc(64 * 1024));
    const large = world.run(heap.malloc(1 << 20));
    expect(small).toBe(HEAP_START);
    expect(large).toBeGreaterThan(0x7fff_0000_0000);
    expect(large % 4096).toBe(0);
    expect(mm.residentPages).toBe(0);
    world.store(mm, large + (1 << 20) - 1, 1);
    world.run(heap.free(large));
    expect(() => world.load(mm, large)).toThrow('no-vma');
    expect(world.run(heap.malloc(100))).toBe(HEAP_START + 64 * 1024);
    world.end(mm);
  });

  it('gives the top of the heap back to the kernel', () => {
    const world = new MmWorld(), mm = world.mm(), heap = new Malloc(mm);
    const blocks = Array.from({ length: 10 }, () => world.run(heap.malloc(100_000)));
    expect(mm.brkAddress).toBe(HEAP_START + 8 * MMAP_THRESHOLD);
    world.run(mm.fill(blocks[9]!, 1, 100_000));
    for (const block of blocks) world.run(heap.free(block));
    expect(mm.brkAddress).toBe(HEAP_START);
    expect(mm.residentPages).toBe(0);
    expect(() => world.run(heap.free(blocks[0]!))).toThrow('invalid pointer');
    world.end(mm);
  });

  it('keeps blocks aligned and disjoint in random use', () => {
    const step = fc.record({ free: fc.boolean(), size: fc.oneof(fc.nat(300), fc.nat(200_000)), alignment: fc.constantFrom(1, 16, 64, 4096), pick: fc.nat(100) });
    fc.assert(fc.property(fc.array(step, { maxLength: 80 }), (steps) => {
      const world = new MmWorld(), mm = world.mm(), heap = new Malloc(mm);
      const blocks: { address: number; size: number; byte: number }[] = [];
      steps.forEach(({ free, size, alignment, pick }, i) => {
        if (free && blocks.length > 0) {
          const [block] = blocks.splice(pick % blocks.length, 1);
          if (block!.size > 0) expect(world.load(mm, block!.address + block!.size - 1)).toEqual([block!.byte]);
          world.run(heap.free(block!.address));
          return;
        }
        const address = world.run(heap.memalign(alignment, size));
        expect(address % Math.max(alignment, 16)).toBe(0);
        for (const other of blocks) {
          const apart = address + Math.max(size, 1) <= other.address || other.address + Math.max(other.size, 1) <= address;
          expect(apart).toBe(true);
        }
        if (size > 0) world.run(mm.fill(address + size - 1, i & 255, 1));
        blocks.push({ address, size, byte: i & 255 });
      });
      for (const { address } of blocks) world.run(heap.free(address));
      expect(heap.inUse).toBe(0);
      expect(mm.brkAddress).toBe(HEAP_START);
      expect(mm.areas.count).toBe(0);
      world.end(mm);
    }), { numRuns: 40, seed: 4 });
  });
});
