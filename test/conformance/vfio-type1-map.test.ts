import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { ErrnoName } from '../../sim/errno.js';
import { PROT_READ } from '../../host/mm/vma.js';
import { VtdDomain } from '../../iommu/intel-vtd/driver/domain.js';
import {
  DMA_MAP, DMA_UNMAP, IOMMU_TYPE1_INFO, VFIO_CHECK_EXTENSION, VFIO_DMA_CC_IOMMU, VFIO_DMA_UNMAP_FLAG_ALL, VFIO_IOMMU_ENABLE, VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA,
  VFIO_TYPE1_IOMMU, VFIO_TYPE1_NESTING_IOMMU, VFIO_TYPE1v2_IOMMU, VFIO_UNMAP_ALL, bytesOf, wordsOfBytes,
} from '../../vfio/uapi/index.js';
import { Type1World, bytesOfText, textOf, type User } from '../fixtures/type1-world.js';

const IOVA = 0x10_0000;

function mapped(world: Type1World, user: User, iova: number, pages: number, text = ''): number {
  const vaddr = world.buffer(user.process, pages, text);
  world.run(user.container.mapDma({ iova, vaddr, sizeBytes: pages * 4096 }));
  return vaddr;
}

/** What the kernel says to a record of any bytes. */
function refusal(world: Type1World, user: User, command: number, bytes: Uint8Array): ErrnoName | undefined {
  return world.run(user.container.raw(command, bytes)).refusal?.code;
}

describe('type1: MAP_DMA', () => {
  it('lets the device reach what the process mapped, and nothing else (C8)', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    const vaddr = mapped(world, user, IOVA, 4, 'hello');
    expect(textOf(world.dmaRead(0, IOVA, 5))).toBe('hello');
    expect(world.dmaWrite(0, IOVA + 0x3000, bytesOfText('there'))).toBe(0);
    expect(world.read(user.process, vaddr + 0x3000, 5)).toBe('there');
    expect(world.dmaRead(0, IOVA + 0x4000, 1)).toBeUndefined();
    expect(world.dmaRead(0, IOVA - 1, 1)).toBeUndefined();
    expect(world.dmaRead(1, IOVA, 1)).toBeUndefined();
    expect(world.frames.pinnedPages).toBe(4);
    expect(user.process.mm.lockedPages).toBe(4);
    expect(world.run(user.container.unmapDma(IOVA, 0x4000))).toBe(0x4000);
    expect(world.dmaRead(0, IOVA, 5)).toBeUndefined();
    expect(user.process.mm.lockedPages).toBe(0);
    world.end(user);
    world.expectNothingInUse();
  });

  it('gives the device the permissions of the mapping (C8)', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    const vaddr = world.buffer(user.process, 2, 'data');
    world.run(user.container.mapDma({ iova: IOVA, vaddr, sizeBytes: 4096, write: false }));
    world.run(user.container.mapDma({ iova: IOVA + 4096, vaddr: vaddr + 4096, sizeBytes: 4096, read: false }));
    expect(textOf(world.dmaRead(0, IOVA, 4))).toBe('data');
    expect(world.dmaWrite(0, IOVA, bytesOfText('x'))).not.toBe(0);
    expect(world.dmaRead(0, IOVA + 4096, 1)).toBeUndefined();
    expect(world.dmaWrite(0, IOVA + 4096, bytesOfText('x'))).toBe(0);
    world.end(user);
    world.expectNothingInUse();
  });

  it('refuses short records, unknown flags and unreachable memory (E27)', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    const vaddr = world.buffer(user.process, 1);
    const before = world.books();
    const map = { argsz: 32, flags: 3, vaddr, iova: IOVA, size: 4096 };
    expect(refusal(world, user, VFIO_IOMMU_MAP_DMA, bytesOf(DMA_MAP.encode({ ...map, argsz: 31 })))).toBe('EINVAL');
    expect(refusal(world, user, VFIO_IOMMU_MAP_DMA, bytesOf(DMA_MAP.encode({ ...map, flags: 7 })))).toBe('EINVAL');
    expect(refusal(world, user, VFIO_IOMMU_UNMAP_DMA, bytesOf(DMA_UNMAP.encode({ argsz: 23, flags: 0, iova: 0, size: 4096 })))).toBe('EINVAL');
    expect(refusal(world, user, VFIO_IOMMU_UNMAP_DMA, bytesOf(DMA_UNMAP.encode({ argsz: 24, flags: 4, iova: 0, size: 4096 })))).toBe('EINVAL');
    expect(refusal(world, user, VFIO_IOMMU_GET_INFO, bytesOf(IOMMU_TYPE1_INFO.encode({ argsz: 15 })))).toBe('EINVAL');
    for (const command of [VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA, VFIO_IOMMU_GET_INFO]) expect(world.refused(user.container.number(command, 0x1000))).toBe('EFAULT');
    expect(world.refused(user.container.number(VFIO_IOMMU_ENABLE, 0))).toBe('ENOTTY');
    expect(world.books()).toEqual(before);
    expect(refusal(world, user, VFIO_IOMMU_MAP_DMA, bytesOf(DMA_MAP.encode({ ...map, argsz: 4000 })))).toBeUndefined();
    world.end(user);
  });

  it.each([
    ['neither read nor write', { flags: 0 }, 'EINVAL'],
    ['no bytes', { size: 0 }, 'EINVAL'],
    ['misaligned size', { size: 4095 }, 'EINVAL'],
    ['misaligned iova', { iova: 0x20_0001 }, 'EINVAL'],
    ['misaligned iova beyond doubles', { iova: 0xffff_ffff_ffff_0001n }, 'EINVAL'],
    ['misaligned vaddr', { vaddr: 0x7000_0001 }, 'EINVAL'],
    ['an iova that wraps', { iova: 0xffff_ffff_ffff_f000n, size: 0x2000 }, 'EINVAL'],
    ['a vaddr that wraps', { vaddr: 0xffff_ffff_ffff_f000n, size: 0x2000 }, 'EINVAL'],
    ['overlap at the start', { iova: IOVA - 0x1000, size: 0x2000 }, 'EEXIST'],
    ['overlap in the middle', { iova: IOVA + 0x1000 }, 'EEXIST'],
    ['overlap of all', { iova: 0, size: 0x100_0000 }, 'EEXIST'],
    ['beyond the aperture', { iova: 2 ** 48 }, 'EINVAL'],
    ['across the end of the aperture', { iova: 2 ** 48 - 0x1000, size: 0x2000 }, 'EINVAL'],
    ['the interrupt window', { iova: 0xfee0_0000 }, 'EINVAL'],
    ['across the interrupt window', { iova: 0xfed0_0000, size: 0x40_0000 }, 'EINVAL'],
    ['memory that is not there', { vaddr: 0x7000_0000 }, 'EFAULT'],
    ['memory of the kernel', { vaddr: 0xffff_8000_0000_0000n }, 'EFAULT'],
  ] as const)('refuses %s (C8, E28)', (_what, change, errno) => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    const vaddr = mapped(world, user, IOVA, 3, 'kept');
    const before = world.books(), locked = user.process.mm.lockedPages;
    expect(refusal(world, user, VFIO_IOMMU_MAP_DMA, bytesOf(DMA_MAP.encode({ argsz: 32, flags: 3, vaddr, iova: 0x20_0000, size: 4096, ...change })))).toBe(errno);
    expect(world.books()).toEqual(before);
    expect(user.process.mm.lockedPages).toBe(locked);
    expect(textOf(world.dmaRead(0, IOVA, 4))).toBe('kept');
    world.end(user);
    world.expectNothingInUse();
  });

  it('refuses in the order of Linux: overlap, then the limit, then the valid addresses, then the memory (E28)', () => {
    const world = new Type1World({ type1: { dmaEntryLimit: 1 } });
    const user = world.user('vmm', [world.group(0)]);
    mapped(world, user, IOVA, 1);
    expect(world.refused(user.container.mapDma({ iova: IOVA, vaddr: 0, sizeBytes: 4096 }))).toBe('EEXIST');
    expect(world.refused(user.container.mapDma({ iova: 0xfee0_0000, vaddr: 0, sizeBytes: 4096 }))).toBe('ENOSPC');
    world.run(user.container.unmapDma(IOVA, 4096));
    expect(world.refused(user.container.mapDma({ iova: 0xfee0_0000, vaddr: 0, sizeBytes: 4096 }))).toBe('EINVAL');
    expect(world.refused(user.container.mapDma({ iova: IOVA, vaddr: 0, sizeBytes: 4096 }))).toBe('EFAULT');
    world.end(user);
  });

  it('unwinds a mapping whose last page cannot be pinned (C8)', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    const vaddr = world.buffer(user.process, 8, 'data');
    world.run(user.process.mm.mprotect(vaddr + 7 * 4096, 4096, 0));
    expect(world.refused(user.container.mapDma({ iova: IOVA, vaddr, sizeBytes: 8 * 4096 }))).toBe('EFAULT');
    expect(world.frames.pinnedPages).toBe(0);
    expect(user.process.mm.lockedPages).toBe(0);
    expect(world.dmaRead(0, IOVA, 1)).toBeUndefined();
    world.run(user.container.mapDma({ iova: IOVA, vaddr, sizeBytes: 7 * 4096 }));
    expect(textOf(world.dmaRead(0, IOVA, 4))).toBe('data');
    world.end(user);
    world.expectNothingInUse();
  });

  it('needs writable memory for a mapping that devices write (FOLL_WRITE)', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    const vaddr = world.run(user.process.mm.mmap(4096, { prot: PROT_READ }));
    expect(world.refused(user.container.mapDma({ iova: IOVA, vaddr, sizeBytes: 4096 }))).toBe('EFAULT');
    world.run(user.container.mapDma({ iova: IOVA, vaddr, sizeBytes: 4096, write: false }));
    world.end(user);
    world.expectNothingInUse();
  });

  it('refuses the 65536th mapping with ENOSPC (18, E28)', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.mdev('vendor')]);
    const vaddr = world.buffer(user.process, 1);
    const record = world.buffer(user.process, 1), { mm } = user.process;
    world.run((function* () {
      for (let i = 0; i < 65_535; i++) {
        yield* mm.write(record, bytesOf(DMA_MAP.encode({ argsz: 32, flags: 3, vaddr, iova: i * 4096, size: 4096 })));
        yield* user.iommu.ioctl(user.process, VFIO_IOMMU_MAP_DMA, record);
      }
    })());
    expect(world.run(user.container.iommuInfo()).dmaAvailable).toBe(0);
    expect(world.refused(user.container.mapDma({ iova: 65_535 * 4096, vaddr, sizeBytes: 4096 }))).toBe('ENOSPC');
    expect(world.run(user.container.unmapDma(4096, 4096))).toBe(4096);
    world.run(user.container.mapDma({ iova: 65_535 * 4096, vaddr, sizeBytes: 4096 }));
    expect(world.refused(user.container.mapDma({ iova: 4096, vaddr, sizeBytes: 4096 }))).toBe('ENOSPC');
    expect(world.run(user.container.unmapDma(0, 0, { all: true }))).toBe(65_535 * 4096);
    world.end(user);
    world.expectNothingInUse();
  });

  it('refuses what exceeds RLIMIT_MEMLOCK with ENOMEM and leaks no pin (18)', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)], { memlockLimitPages: 10 });
    mapped(world, user, IOVA, 4);
    const vaddr = world.buffer(user.process, 7);
    const error = world.refusal(user.container.mapDma({ iova: 0x40_0000, vaddr, sizeBytes: 7 * 4096 }));
    expect(error.code).toBe('ENOMEM');
    expect(error.message).toContain('RLIMIT_MEMLOCK');
    expect(world.frames.pinnedPages).toBe(4);
    expect(user.process.mm.lockedPages).toBe(4);
    expect(world.dmaRead(0, 0x40_0000, 1)).toBeUndefined();
    world.run(user.container.mapDma({ iova: 0x40_0000, vaddr, sizeBytes: 6 * 4096 }));
    expect(user.process.mm.lockedPages).toBe(10);
    world.end(user);
    world.expectNothingInUse();
  });

  it('counts the limit for each address space, and not at all with CAP_IPC_LOCK', () => {
    const world = new Type1World({ parts: { mayPassMemlock: (caller) => caller.name === 'root' } });
    const group = world.group(0);
    const user = world.user('vmm', [group], { memlockLimitPages: 2 });
    mapped(world, user, IOVA, 2);
    const other = world.process('other', { memlockLimitPages: 2 }), root = world.process('root', { memlockLimitPages: 2 });
    const vaddr = world.buffer(other, 2), rootVaddr = world.buffer(root, 3);
    world.run(world.handle(other, user.iommu).mapDma({ iova: 0x40_0000, vaddr, sizeBytes: 0x2000 }));
    world.run(world.handle(root, user.iommu).mapDma({ iova: 0x80_0000, vaddr: rootVaddr, sizeBytes: 0x3000 }));
    expect([user.process, other, root].map(({ mm }) => mm.lockedPages)).toEqual([2, 2, 3]);
    world.run(other.exit());
    world.run(root.exit());
    world.end(user);
    world.expectNothingInUse();
  });

  it('the defect vfio.wrong-rlimit lets everybody pass the limit', () => {
    const world = new Type1World({ defects: ['vfio.wrong-rlimit'] });
    const user = world.user('vmm', [world.group(0)], { memlockLimitPages: 1 });
    mapped(world, user, IOVA, 2);
    expect(user.process.mm.lockedPages).toBeGreaterThan(1);
  });

  it('maps contiguous memory with the largest leaves that fit', () => {
    for (const [disableHugepages, runs, levels] of [[false, 1, [1, 1]], [true, 1024, [0, 0]]] as const) {
      const world = new Type1World({ type1: { disableHugepages } });
      const user = world.user('vmm', [world.group(0)]);
      const vaddr = world.run(user.process.mm.mmap(4 * 2 ** 20, { hugeLevel: 1 }));
      world.run(user.container.mapDma({ iova: 0x4000_0000, vaddr, sizeBytes: 4 * 2 ** 20 }));
      const { domain } = user.iommu.state.domains[0]!;
      if (!(domain instanceof VtdDomain)) throw new Error('no VT-d domain');
      const found = [0x4_0000, 0x4_0200].map((page) => (domain.table!.find(page) ? domain.table!.level : -1));
      expect(found).toEqual(levels);
      expect(user.iommu.state.mappings.find(0x4_0000)!.runs.count).toBe(runs);
      expect(world.frames.pinnedPages).toBe(1024);
      expect(world.run(user.container.unmapDma(0x4000_0000, 4 * 2 ** 20))).toBe(4 * 2 ** 20);
      expect(world.frames.pinnedPages).toBe(0);
      world.end(user);
      world.expectNothingInUse();
    }
  });

  it('maps 1 GiB with one leaf, without touching the host\'s memory', () => {
    const world = new Type1World({ memoryBytes: 3 * 2 ** 30, freshZero: true });
    const user = world.user('vmm', [world.group(0)]);
    const vaddr = world.run(user.process.mm.mmap(2 ** 30, { hugeLevel: 2 }));
    const arenas = [...world.ram.touched()].length;
    world.run(user.container.mapDma({ iova: 2 ** 32, vaddr, sizeBytes: 2 ** 30 }));
    expect([...world.ram.touched()]).toHaveLength(arenas);
    const { domain } = user.iommu.state.domains[0]!;
    if (!(domain instanceof VtdDomain)) throw new Error('no VT-d domain');
    expect([domain.table!.find(0x10_0001), domain.table!.level, world.frames.pinnedPages]).toEqual([true, 2, 0x4_0000]);
    expect(world.run(user.container.unmapDma(2 ** 32, 2 ** 30))).toBe(2 ** 30);
    world.end(user);
    world.expectNothingInUse();
  });

  it('keeps the memory of a process that exits until the container ends (2g)', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    mapped(world, user, IOVA, 2, 'last words');
    world.run(user.process.exit());
    expect(textOf(world.dmaRead(0, IOVA, 10))).toBe('last words');
    expect(world.frames.pinnedPages).toBe(2);
    world.run(user.iommu.release());
    expect(world.dmaRead(0, IOVA, 1)).toBeUndefined();
    world.expectNothingInUse();
    expect(world.frames.framesOf('user')).toBe(0);
  });
});

describe('type1: UNMAP_DMA', () => {
  it.each([
    ['no bytes', IOVA, 0], ['misaligned', IOVA + 1, 0x1000], ['misaligned size', IOVA, 0x1001], ['wrapping', 0xffff_ffff_ffff_f000n, 0x2000],
    ['a cut at the start', IOVA + 0x1000, 0x3000], ['a cut at the end', IOVA, 0x1000], ['a cut in the middle', IOVA + 0x1000, 0x1000], ['a cut of the second', IOVA, 0x5000],
  ] as const)('refuses %s in version 2 (C9, E29)', (_what, iova, size) => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    mapped(world, user, IOVA, 4, 'one');
    mapped(world, user, IOVA + 0x4000, 2, 'two');
    const before = world.books();
    expect(world.refused(user.container.unmapDma(iova, size))).toBe('EINVAL');
    expect(world.books()).toEqual(before);
    expect([textOf(world.dmaRead(0, IOVA, 3)), textOf(world.dmaRead(0, IOVA + 0x4000, 3))]).toEqual(['one', 'two']);
    world.end(user);
  });

  it('returns the bytes unmapped: several mappings, and none (C9)', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    mapped(world, user, IOVA, 4);
    mapped(world, user, IOVA + 0x1_0000, 2);
    expect(world.run(user.container.unmapDma(0, 0x1000))).toBe(0);
    expect(world.run(user.container.unmapDma(0, 0x100_0000))).toBe(0x6000);
    expect(world.run(user.container.unmapDma(0, 0x100_0000))).toBe(0);
    expect(world.frames.pinnedPages).toBe(0);
    world.end(user);
    world.expectNothingInUse();
  });

  it('version 1 unmaps whole mappings from their first address on, and nothing from inside (C9, E29)', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)], { type: VFIO_TYPE1_IOMMU });
    mapped(world, user, IOVA, 4, 'one');
    expect(world.run(user.container.unmapDma(IOVA + 0x1000, 0x1000))).toBe(0);
    expect(textOf(world.dmaRead(0, IOVA, 3))).toBe('one');
    expect(world.run(user.container.unmapDma(IOVA, 0x1000))).toBe(0x4000);
    expect(world.dmaRead(0, IOVA, 3)).toBeUndefined();
    world.end(user);
    world.expectNothingInUse();
  });

  it('stops silently at a mapping of another address space (C9)', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    mapped(world, user, IOVA, 1);
    const other = world.process('other');
    const vaddr = world.buffer(other, 1, 'other');
    const handle = world.handle(other, user.iommu);
    world.run(handle.mapDma({ iova: IOVA + 0x1000, vaddr, sizeBytes: 4096 }));
    mapped(world, user, IOVA + 0x2000, 1);
    expect(world.run(user.container.unmapDma(IOVA, 0x3000))).toBe(0x1000);
    expect(textOf(world.dmaRead(0, IOVA + 0x1000, 5))).toBe('other');
    expect(world.run(handle.unmapDma(IOVA + 0x1000, 0x1000))).toBe(0x1000);
    expect(world.run(user.container.unmapDma(IOVA, 0x3000))).toBe(0x1000);
    world.run(other.exit());
    world.end(user);
    world.expectNothingInUse();
  });

  it('unmaps everything with FLAG_ALL, which takes no range and no bitmap (v5.12)', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    mapped(world, user, IOVA, 4);
    mapped(world, user, 2 ** 40, 2);
    expect(refusal(world, user, VFIO_IOMMU_UNMAP_DMA, bytesOf(DMA_UNMAP.encode({ argsz: 24, flags: VFIO_DMA_UNMAP_FLAG_ALL, iova: 0, size: 4096 })))).toBe('EINVAL');
    expect(refusal(world, user, VFIO_IOMMU_UNMAP_DMA, bytesOf(DMA_UNMAP.encode({ argsz: 48, flags: VFIO_DMA_UNMAP_FLAG_ALL | 1, iova: 0, size: 0 })))).toBe('EINVAL');
    expect(world.run(user.container.unmapDma(0, 0, { all: true }))).toBe(0x6000);
    expect(world.run(user.container.unmapDma(0, 0, { all: true }))).toBe(0);
    world.end(user);
    world.expectNothingInUse();
  });

  /** For each frame that is given back: had the invalidation been waited for? */
  function unmapOrder(defects: string[]): { flushes: number; safe: boolean; pinned: number } {
    const world = new Type1World({ defects });
    const user = world.user('vmm', [world.group(0)]);
    mapped(world, user, IOVA, 600, 'x');
    let flushes = 0, safe = true;
    world.trace.listen(({ kind }) => {
      if (kind.name === 'iommu:flush') flushes++;
      else if (flushes === 0) safe = false;
    }, ['iommu:flush', 'vfio:unpin_run']);
    world.run(user.container.unmapDma(IOVA, 600 * 4096));
    return { flushes, safe, pinned: world.frames.pinnedPages };
  }

  it('takes pages out of the tables, invalidates once for all of them, and only then unpins', () => {
    expect(unmapOrder([])).toEqual({ flushes: 1, safe: true, pinned: 0 });
  });

  it('the defects vfio.unpin-before-flush and vfio.skip-unpin break that order and leak', () => {
    expect(unmapOrder(['vfio.unpin-before-flush'])).toEqual({ flushes: 1, safe: false, pinned: 0 });
    expect(unmapOrder(['vfio.skip-unpin'])).toEqual({ flushes: 1, safe: true, pinned: 600 });
  });
});

describe('type1: GET_INFO and CHECK_EXTENSION', () => {
  it('tells page sizes, valid addresses without the interrupt window, what may be mapped still, and migration', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    mapped(world, user, IOVA, 1);
    expect(world.run(user.container.iommuInfo())).toEqual({
      pageSizes: 0x4020_1000n, dmaAvailable: 65_534, migration: { pageSizes: 4096n, maxBitmapBytes: 2n ** 28n },
      iovaRanges: [{ first: 0n, last: 0xfedf_ffffn }, { first: 0xfef0_0000n, last: 2n ** 48n - 1n }],
    });
    world.end(user);
  });

  it('has every page size and no valid addresses without a domain', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.mdev('vendor')]);
    expect(world.run(user.container.iommuInfo())).toMatchObject({ pageSizes: 0xffff_ffff_ffff_f000n, iovaRanges: undefined });
    world.end(user);
  });

  it('says in argsz what the capabilities need when the caller has no room for them', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    const ask = (argsz: number): Uint32Array => wordsOfBytes(world.run(user.container.raw(VFIO_IOMMU_GET_INFO, bytesOf(IOMMU_TYPE1_INFO.encode({ argsz, pad: 0xdead_beef, cap_offset: 0x77 })))).bytes);
    const { argsz, flags, cap_offset, pad } = IOMMU_TYPE1_INFO.f;
    const needed = argsz.get(ask(24));
    expect(needed).toBeGreaterThan(24);
    expect([flags.get(ask(24)), cap_offset.get(ask(24)), pad.get(ask(24))]).toEqual([3, 0, 0xdead_beef]);
    // an old caller, which knows nothing of capabilities, finds its memory untouched behind its record
    expect([argsz.get(ask(16)), cap_offset.get(ask(16))]).toEqual([needed, 0x77]);
    world.end(user);
  });

  it('offers types 1, 3 and 6, and no other', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0)]);
    const types = [VFIO_TYPE1_IOMMU, VFIO_TYPE1v2_IOMMU, VFIO_TYPE1_NESTING_IOMMU, VFIO_UNMAP_ALL, VFIO_DMA_CC_IOMMU, 2, 7];
    expect(types.map((type) => world.driver.checkExtension(type))).toEqual([1, 1, 1, 1, 0, 0, 0]);
    expect(world.run(user.container.number(VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU))).toBe(1);
    for (const type of [0, 2, 7]) expect(world.refused(() => world.driver.open(type))).toBe('EINVAL');
    world.end(user);
  });
});

describe('type1: mappings', () => {
  it('behave like a list of ranges, whatever is called in whatever order (C8, C9)', () => {
    const call = fc.record({ map: fc.boolean(), page: fc.nat(24), pages: fc.integer({ min: 1, max: 6 }) });
    fc.assert(fc.property(fc.array(call, { maxLength: 25 }), (calls) => {
      const world = new Type1World({ memoryBytes: 2 ** 24 });
      const user = world.user('vmm', [world.group(0)]);
      const vaddr = world.buffer(user.process, 30);
      for (let page = 0; page < 30; page++) world.run(user.process.mm.write(vaddr + page * 4096, new Uint8Array([page + 1])));
      let model: { start: number; end: number }[] = [];
      for (const { map, page, pages } of calls) {
        const end = page + pages;
        const touched = model.filter((one) => one.start < end && one.end > page);
        if (map) {
          const free = touched.length === 0;
          const steps = user.container.mapDma({ iova: page * 4096, vaddr: vaddr + page * 4096, sizeBytes: pages * 4096 });
          if (free) world.run(steps);
          else expect(world.refused(steps)).toBe('EEXIST');
          if (free) model.push({ start: page, end });
        } else {
          const cut = touched.some((one) => one.start < page || one.end > end);
          const steps = user.container.unmapDma(page * 4096, pages * 4096);
          if (cut) expect(world.refused(steps)).toBe('EINVAL');
          else expect(world.run(steps)).toBe(touched.reduce((sum, one) => sum + one.end - one.start, 0) * 4096);
          if (!cut) model = model.filter((one) => !touched.includes(one));
        }
        const inModel = (at: number): boolean => model.some((one) => at >= one.start && at < one.end);
        for (let at = 0; at < 30; at++) expect(world.dmaRead(0, at * 4096, 1)?.[0]).toBe(inModel(at) ? at + 1 : undefined);
        expect(world.frames.pinnedPages).toBe(model.reduce((sum, one) => sum + one.end - one.start, 0));
      }
      world.end(user);
      world.expectNothingInUse();
    }), { numRuns: 15, seed: 5 });
  });
});
