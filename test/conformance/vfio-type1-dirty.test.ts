import { describe, expect, it } from 'vitest';
import type { ErrnoName } from '../../sim/errno.js';
import {
  BITMAP, DIRTY_BITMAP, DIRTY_BITMAP_GET, DMA_UNMAP, VFIO_IOMMU_DIRTY_PAGES, VFIO_IOMMU_UNMAP_DMA, VFIO_TYPE1_IOMMU, bytesOf, concatWords,
} from '../../vfio/uapi/index.js';
import type { ContainerGroup } from '../../vfio/iommu-driver.js';
import { Type1World, type User } from '../fixtures/type1-world.js';

const IOVA = 0x10_0000;

function mapped(world: Type1World, user: User, iova: number, pages: number): number {
  const vaddr = world.buffer(user.process, pages);
  world.run(user.container.mapDma({ iova, vaddr, sizeBytes: pages * 4096 }));
  return vaddr;
}

/** Numbers of the pages that a bitmap marks. */
function pagesOf(bitmap: Uint8Array): number[] {
  return [...bitmap].flatMap((byte, i) => [0, 1, 2, 3, 4, 5, 6, 7].filter((bit) => (byte & (1 << bit)) !== 0).map((bit) => i * 8 + bit));
}

function dirty(world: Type1World, user: User, iova: number, pages: number): number[] {
  return pagesOf(world.run(user.container.dirtyBitmap(iova, pages * 4096)));
}

function vendorWorld(): { world: Type1World; user: User; vendor: ReturnType<Type1World['mdev']>; pin: (...iovas: number[]) => void; unpin: (...iovas: number[]) => void } {
  const world = new Type1World();
  const vendor = world.mdev('vendor');
  const user = world.user('vmm', [vendor]);
  // oxlint-disable-next-line require-yield
  user.iommu.registerNotifier(vendor.device, { *dmaUnmap() {} });
  return {
    world, user, vendor,
    pin: (...iovas) => void world.run(user.iommu.pinPages(vendor, vendor.device, iovas, 3)),
    unpin: (...iovas) => void user.iommu.unpinPages(vendor, vendor.device, iovas),
  };
}

function pinFor(world: Type1World, user: User, group: ContainerGroup, iova: number): void {
  const { device } = group.registrations[0]!;
  // oxlint-disable-next-line require-yield
  user.iommu.registerNotifier(device, { *dmaUnmap() {} });
  world.run(user.iommu.pinPages(group, device, [iova], 3));
}

describe('type1: dirty pages', () => {
  it('are all mapped ones behind an IOMMU, which cannot tell, as often as one asks', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    mapped(world, user, IOVA, 3);
    mapped(world, user, IOVA + 0x5000, 2);
    world.run(user.container.startDirtyTracking());
    mapped(world, user, IOVA + 0x8000, 1);
    for (let i = 0; i < 2; i++) expect(dirty(world, user, IOVA, 16)).toEqual([0, 1, 2, 5, 6, 8]);
    expect(dirty(world, user, IOVA + 0x5000, 2)).toEqual([0, 1]);
    expect(dirty(world, user, 0x100_0000, 16)).toEqual([]);
    world.run(user.container.stopDirtyTracking());
    world.end(user);
    world.expectNothingInUse();
  });

  it('are what was pinned where only vendors\' drivers write (pinned_page_dirty_scope)', () => {
    const { world, user, pin, unpin } = vendorWorld();
    mapped(world, user, IOVA, 8);
    pin(IOVA + 0x1000);
    world.run(user.container.startDirtyTracking());
    pin(IOVA + 0x3000, IOVA + 0x4000);
    unpin(IOVA + 0x4000);
    // pinned then and now; what was unpinned meanwhile is told once
    expect(dirty(world, user, IOVA, 8)).toEqual([1, 3, 4]);
    expect(dirty(world, user, IOVA, 8)).toEqual([1, 3]);
    unpin(IOVA + 0x1000, IOVA + 0x3000);
    // they were pinned, so they may have been written, since the last question
    expect(dirty(world, user, IOVA, 8)).toEqual([1, 3]);
    expect(dirty(world, user, IOVA, 8)).toEqual([]);
    world.end(user);
    world.expectNothingInUse();
  });

  it('include what the CPU wrote for a device, once', () => {
    const { world, user, vendor } = vendorWorld();
    mapped(world, user, IOVA, 8);
    world.run(user.container.startDirtyTracking());
    world.run(user.iommu.dmaRw(vendor, IOVA + 0x1ffe, new Uint8Array(4), true));
    world.run(user.iommu.dmaRw(vendor, IOVA + 0x5000, new Uint8Array(4), false));
    expect(dirty(world, user, IOVA, 8)).toEqual([1, 2]);
    expect(dirty(world, user, IOVA, 8)).toEqual([]);
    world.end(user);
  });

  it('are all again as soon as a group with an IOMMU joins, until its driver pins, too', () => {
    const { world, user, pin } = vendorWorld();
    mapped(world, user, IOVA, 4);
    pin(IOVA);
    world.run(user.container.startDirtyTracking());
    expect(dirty(world, user, IOVA, 4)).toEqual([0]);
    world.run(world.core.devEnableFeature(world.device(0), 'AUX'));
    const aux = world.mdev('aux', world.device(0));
    world.run(user.iommu.attachGroup(aux));
    expect(dirty(world, user, IOVA, 4)).toEqual([0, 1, 2, 3]);
    pinFor(world, user, aux, IOVA + 0x2000);
    expect(dirty(world, user, IOVA, 4)).toEqual([0, 2]);
    user.iommu.unpinPages(aux, aux.device, [IOVA, IOVA + 0x2000]);
    world.end(user);
    world.expectNothingInUse();
  });

  it('are bytes of 64-bit words: bits of one mapping end where those of the next begin', () => {
    const { world, user, pin } = vendorWorld();
    mapped(world, user, IOVA, 63);
    mapped(world, user, IOVA + 63 * 4096, 4);
    mapped(world, user, IOVA + 70 * 4096, 130);
    world.run(user.container.startDirtyTracking());
    const wanted = [0, 62, 63, 66, 70, 127, 128, 199];
    pin(...wanted.map((page) => IOVA + page * 4096));
    expect(dirty(world, user, IOVA, 200)).toEqual(wanted);
    const bitmap = world.run(user.container.dirtyBitmap(IOVA + 63 * 4096, 4 * 4096));
    expect([bitmap.length, pagesOf(bitmap)]).toEqual([8, [0, 3]]);
    user.iommu.state.notifiers.clear();
    world.end(user);
  });

  it('are told once more when the mapping goes, with the size (UNMAP_FLAG_GET_DIRTY_BITMAP)', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    mapped(world, user, IOVA, 70);
    expect(world.refused(user.container.unmapDmaDirty(IOVA, 70 * 4096))).toBe('EINVAL');
    world.run(user.container.startDirtyTracking());
    const { unmappedBytes, dirty: bitmap } = world.run(user.container.unmapDmaDirty(IOVA, 70 * 4096));
    expect([unmappedBytes, pagesOf(bitmap)]).toEqual([70 * 4096, Array.from({ length: 70 }, (_, i) => i)]);
    expect(world.frames.pinnedPages).toBe(0);
    world.end(user);
    world.expectNothingInUse();
  });
});

describe('type1: VFIO_IOMMU_DIRTY_PAGES', () => {
  function ask(world: Type1World, user: User, words: ArrayLike<number>): ErrnoName | undefined {
    return world.run(user.container.raw(VFIO_IOMMU_DIRTY_PAGES, bytesOf(words))).refusal?.code;
  }

  it('refuses version 1, short records, unknown flags, and not exactly one action (E27)', () => {
    const world = new Type1World();
    const old = world.user('old', [world.group(1)], { type: VFIO_TYPE1_IOMMU });
    expect(ask(world, old, DIRTY_BITMAP.encode({ argsz: 8, flags: 1 }))).toBe('EACCES');
    const user = world.user('vmm', [world.group(0)]);
    for (const [argsz, flags] of [[7, 1], [8, 0], [8, 3], [8, 8], [8, 9], [8, 7]] as const) expect(ask(world, user, DIRTY_BITMAP.encode({ argsz, flags }))).toBe('EINVAL');
    expect(world.refused(user.container.number(VFIO_IOMMU_DIRTY_PAGES, 0x1000))).toBe('EFAULT');
    expect(ask(world, user, DIRTY_BITMAP.encode({ argsz: 8, flags: 2 }))).toBeUndefined();
    for (let i = 0; i < 2; i++) expect(ask(world, user, DIRTY_BITMAP.encode({ argsz: 8, flags: 1 }))).toBeUndefined();
    world.end(user);
    world.end(old);
  });

  it.each([
    ['no range', { argsz: 47 }, 'EINVAL'],
    ['pages of no size', { bitmap_pgsize: 0 }, 'EINVAL'],
    ['pages of another size', { bitmap_pgsize: 8192 }, 'EINVAL'],
    ['no bytes', { size: 0 }, 'EINVAL'],
    ['misaligned bytes', { size: 0x3001 }, 'EINVAL'],
    ['a misaligned address', { iova: IOVA + 8 }, 'EINVAL'],
    ['a range that wraps', { iova: 0xffff_ffff_ffff_f000n }, 'EINVAL'],
    ['a small bitmap', { bitmap_size: 7 }, 'EINVAL'],
    ['no bitmap', { bitmap_size: 0 }, 'EINVAL'],
    ['a huge bitmap', { bitmap_size: 2 ** 28 + 8 }, 'EINVAL'],
    ['a bitmap of the kernel', { bitmap_data: 0x8000_0000_0000 }, 'EINVAL'],
    ['a bitmap that is not there', { bitmap_data: 0x1000 }, 'EFAULT'],
    ['a part of a mapping', { size: 0x2000 }, 'EINVAL'],
    ['the end of a mapping', { iova: IOVA + 0x1000, size: 0x2000 }, 'EINVAL'],
  ] as const)('refuses %s (E27, E29)', (_what, change, errno) => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    mapped(world, user, IOVA, 3);
    const data = world.buffer(user.process, 1);
    const { argsz, ...range } = { argsz: 48, iova: IOVA, size: 0x3000, bitmap_pgsize: 4096, bitmap_size: 8, bitmap_data: data, ...change };
    const words = concatWords(DIRTY_BITMAP.encode({ argsz, flags: 4 }), DIRTY_BITMAP_GET.encode(range));
    expect(ask(world, user, words)).toBe(errno === 'EFAULT' ? 'EINVAL' : errno);
    world.run(user.container.startDirtyTracking());
    expect(ask(world, user, words)).toBe(errno);
    expect(world.read(user.process, data, 1)).toBe('\0');
    world.end(user);
    world.expectNothingInUse();
  });

  it('has no bitmap for more pages than an int counts', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.mdev('vendor')]);
    const vaddr = world.buffer(user.process, 1);
    world.run(user.container.mapDma({ iova: 0, vaddr, sizeBytes: 2 ** 43 }));
    expect(world.refused(user.container.startDirtyTracking())).toBe('EINVAL');
    expect(world.run(user.container.unmapDma(0, 0, { all: true }))).toBe(2 ** 43);
    world.run(user.container.startDirtyTracking());
    expect(world.refused(user.container.mapDma({ iova: 0, vaddr, sizeBytes: 2 ** 43 }))).toBe('EINVAL');
    expect(user.iommu.state.mappings.count).toBe(0);
    world.end(user);
  });

  it('refuses an unmap with a bad bitmap before anything is unmapped', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    mapped(world, user, IOVA, 3);
    world.run(user.container.startDirtyTracking());
    const data = world.buffer(user.process, 1);
    const unmap = (argsz: number, bitmap: { pgsize: number; size: number; data: number }): ErrnoName | undefined => world.run(user.container.raw(VFIO_IOMMU_UNMAP_DMA,
      bytesOf(concatWords(DMA_UNMAP.encode({ argsz, flags: 1, iova: IOVA, size: 0x3000 }), BITMAP.encode(bitmap))))).refusal?.code;
    expect(unmap(47, { pgsize: 4096, size: 8, data })).toBe('EINVAL');
    expect(unmap(48, { pgsize: 8192, size: 8, data })).toBe('EINVAL');
    expect(unmap(48, { pgsize: 4096, size: 0, data })).toBe('EINVAL');
    expect(unmap(48, { pgsize: 4096, size: 8, data: 0x1000 })).toBe('EFAULT');
    expect(user.iommu.state.mappings.count).toBe(1);
    expect(unmap(48, { pgsize: 4096, size: 8, data })).toBeUndefined();
    expect(user.iommu.state.mappings.count).toBe(0);
    world.end(user);
    world.expectNothingInUse();
  });
});
