import { describe, expect, it } from 'vitest';
import { FrameRuns } from '../../host/frame-runs.js';
import { PROT_READ } from '../../host/mm/vma.js';
import { Type1World } from '../fixtures/type1-world.js';

function runsOf(runs: FrameRuns): [frame: number, pages: number][] {
  return Array.from({ length: runs.count }, (_, i) => [runs.frameOf(i), runs.pagesOf(i)]);
}

describe('runs of frames', () => {
  it('merge neighbours in order, up to a length', () => {
    const runs = new FrameRuns();
    for (const [frame, pages] of [[10, 1], [11, 3], [20, 1], [19, 1], [20, 2]] as const) runs.append(frame, pages);
    expect(runsOf(runs)).toEqual([[10, 4], [20, 1], [19, 3]]);
    expect(runs.pages).toBe(8);
    const short = new FrameRuns(3);
    short.append(100, 2);
    short.append(102, 5);
    expect(runsOf(short)).toEqual([[100, 3], [103, 3], [106, 1]]);
    short.clear();
    expect([short.count, short.pages]).toEqual([0, 0]);
    for (let i = 0; i < 100; i++) short.append(i * 2, 1);
    expect([short.count, short.frameOf(99), short.pagesOf(99)]).toEqual([100, 198, 1]);
  });
});

describe('pinning ranges of an address space', () => {
  it('pins what the process sees, as runs, and parts of huge pages', () => {
    const world = new Type1World();
    const { mm } = world.process('p');
    const small = world.run(mm.mmap(5 * 4096)), huge = world.run(mm.mmap(2 ** 22, { hugeLevel: 1 }));
    const runs = new FrameRuns(), part = new FrameRuns();
    world.run(mm.pinRange(small, 5, true, runs));
    world.run(mm.pinRange(huge + 0x1f_e000, 4, true, part));
    expect(world.frames.pinnedPages).toBe(9);
    for (const [address, pinned] of [[small, runs], [huge + 0x1f_e000, part]] as const) {
      let page = 0;
      for (const [frame, pages] of runsOf(pinned)) for (let i = 0; i < pages; i++) expect(mm.physicalOf(address + page++ * 4096)).toBe((frame + i) * 4096);
    }
    // the pages go with the pins when the process has let go of them
    world.run(mm.munmap(small, 5 * 4096));
    expect(world.frames.framesOf('user')).toBe(5 + 1024);
    mm.unpinRuns(runs);
    mm.unpinRuns(part);
    expect([world.frames.pinnedPages, world.frames.framesOf('user')]).toEqual([0, 1024]);
  });

  it('copies pages that another address space shares, as for single pages (FOLL_PIN)', () => {
    const world = new Type1World();
    const parent = world.process('p');
    const address = world.buffer(parent, 2, 'before');
    const child = world.run(parent.fork(500));
    const runs = new FrameRuns();
    world.run(child.mm.pinRange(address, 1, false, runs));
    expect(child.mm.physicalOf(address)).toBe(runs.frameOf(0) * 4096);
    expect(parent.mm.physicalOf(address)).not.toBe(runs.frameOf(0) * 4096);
    world.run(child.mm.write(address, new TextEncoder().encode('child!')));
    expect(child.mm.physicalOf(address)).toBe(runs.frameOf(0) * 4096);
    expect([world.read(parent, address, 6), world.read(child, address, 6)]).toEqual(['before', 'child!']);
    child.mm.unpinRuns(runs);
  });

  it('leaves nothing pinned when a page cannot be', () => {
    const world = new Type1World();
    const { mm } = world.process('p', { memlockLimitPages: 1 });
    const address = world.run(mm.mmap(4 * 4096));
    world.run(mm.mprotect(address + 3 * 4096, 4096, PROT_READ));
    const runs = new FrameRuns();
    expect(world.refused(mm.pinRange(address, 4, true, runs))).toBe('EFAULT');
    expect(world.refused(mm.pinRange(address + 1, 1, true, runs))).toBe('EINVAL');
    expect([runs.count, world.frames.pinnedPages]).toEqual([0, 0]);
    world.run(mm.pinRange(address, 4, false, runs));
    mm.unpinRuns(runs);
    expect(mm.lockablePages).toBe(1);
    expect(world.refused(() => mm.accountLocked(2))).toBe('ENOMEM');
    mm.accountLocked(2, true);
    expect([mm.lockedPages, mm.lockablePages]).toEqual([2, 0]);
  });
});
