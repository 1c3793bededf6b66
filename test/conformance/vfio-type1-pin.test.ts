import { describe, expect, it } from 'vitest';
import { sleep, type Steps } from '../../sim/task.js';
import type { DmaUnmapNotifier } from '../../vfio/device.js';
import { VFIO_TYPE1_IOMMU, VFIO_TYPE1v2_IOMMU } from '../../vfio/uapi/index.js';
import { Type1World, bytesOfText, textOf, type Type1WorldOptions, type User } from '../fixtures/type1-world.js';

const IOVA = 0x10_0000;
const READ = 1, WRITE = 2, BOTH = 3;

interface Setup extends Type1WorldOptions {
  readonly memlockLimitPages?: number;
  readonly pages?: number;
  readonly type?: number;
}

/** A mediated device whose driver isolates by itself, in the container of a process that maps a few pages. */
class Vendor {
  readonly world: Type1World;
  readonly group;
  readonly user: User;
  readonly vaddr: number;
  /** Ranges the driver was told to let go. */
  readonly told: string[] = [];

  constructor({ memlockLimitPages = Infinity, pages = 4, type = VFIO_TYPE1v2_IOMMU, ...options }: Setup = {}) {
    const world = (this.world = new Type1World(options));
    this.group = world.mdev('vendor');
    this.user = world.user('vmm', [this.group], { memlockLimitPages, type });
    this.vaddr = world.buffer(this.user.process, pages, 'text');
    world.run(this.user.container.mapDma({ iova: IOVA, vaddr: this.vaddr, sizeBytes: pages * 4096 }));
  }

  /** Registers a driver that does `react` when it is told. */
  listen(react?: () => Steps | undefined): DmaUnmapNotifier {
    const { told } = this;
    const notifier: DmaUnmapNotifier = {
      *dmaUnmap(iova, sizeBytes) {
        told.push(`${iova.toString(16)}+${sizeBytes.toString(16)}`);
        const steps = react?.();
        if (steps !== undefined) yield* steps;
      },
    };
    this.user.iommu.registerNotifier(this.group.device, notifier);
    return notifier;
  }

  steps(iovas: readonly number[], prot = BOTH): Steps<number[]> {
    return this.user.iommu.pinPages(this.group, this.group.device, iovas, prot);
  }

  pin(iovas: readonly number[], prot = BOTH): number[] {
    return this.world.run(this.steps(iovas, prot));
  }

  unpin(iovas: readonly number[]): number {
    return this.user.iommu.unpinPages(this.group, this.group.device, iovas);
  }

  unmap(): number {
    return this.world.run(this.user.container.unmapDma(IOVA, 0x4000));
  }

  /** Pages pinned, and pages charged to the process. */
  get pages(): [pinned: number, locked: number] {
    return [this.world.frames.pinnedPages, this.user.process.mm.lockedPages];
  }

  end(): void {
    this.world.end(this.user);
    this.world.expectNothingInUse();
  }
}

describe('type1: pages pinned by vendors\' drivers', () => {
  it('pins the pages that the process sees, and charges them to it (C10)', () => {
    const vendor = new Vendor();
    const { world, user } = vendor;
    vendor.listen();
    const physical = vendor.pin([IOVA, IOVA + 0x2000]);
    expect(physical).toEqual([world.run(addressOf(vendor, 0)), world.run(addressOf(vendor, 2))]);
    expect(vendor.pages).toEqual([2, 2]);
    world.ram.write(physical[0]!, bytesOfText('wrote'), 0, 5);
    expect(world.read(user.process, vendor.vaddr, 5)).toBe('wrote');
    expect(vendor.unpin([IOVA, IOVA + 0x2000])).toBe(2);
    expect(vendor.pages).toEqual([0, 0]);
    vendor.end();
  });

  // oxlint-disable-next-line require-yield
  function* addressOf(vendor: Vendor, page: number): Steps<number> {
    return vendor.user.process.mm.physicalOf(vendor.vaddr + page * 4096);
  }

  it('counts the pins of a page (C10)', () => {
    const vendor = new Vendor();
    vendor.listen();
    const [first] = vendor.pin([IOVA]), [again, , other] = vendor.pin([IOVA, IOVA + 0x1000, IOVA]);
    expect([again, other]).toEqual([first, first]);
    expect(vendor.pages).toEqual([2, 2]);
    expect(vendor.unpin([IOVA, IOVA])).toBe(2);
    expect(vendor.pages).toEqual([2, 2]);
    expect(vendor.unpin([IOVA, IOVA])).toBe(1);
    expect(vendor.pages).toEqual([1, 1]);
    // where nothing is pinned nothing happens, and where nothing is mapped it ends
    expect(vendor.unpin([IOVA + 0x2000, 0x100_0000, IOVA + 0x1000])).toBe(0);
    expect(vendor.unpin([IOVA + 0x1000])).toBe(1);
    vendor.end();
  });

  it('refuses a driver that does not listen, and version 1 (C10)', () => {
    const vendor = new Vendor();
    expect(vendor.world.refused(vendor.steps([IOVA]))).toBe('EINVAL');
    const notifier = vendor.listen();
    expect(vendor.world.refused(() => vendor.listen())).toBe('EBUSY');
    vendor.user.iommu.unregisterNotifier(vendor.group.device, notifier);
    expect(vendor.world.refused(vendor.steps([IOVA]))).toBe('EINVAL');
    vendor.end();
    const old = new Vendor({ type: VFIO_TYPE1_IOMMU });
    old.listen();
    expect([old.world.refused(old.steps([IOVA])), old.world.refused(() => old.unpin([IOVA]))]).toEqual(['EACCES', 'EACCES']);
    old.end();
  });

  it.each([
    ['an address that is not mapped', [IOVA, IOVA + 0x4000], BOTH, 'EINVAL'],
    ['an address that is no page', [IOVA, IOVA + 0x800], BOTH, 'EINVAL'],
    ['more than the mapping permits', [IOVA, 0x80_0000], WRITE, 'EPERM'],
    ['memory that is gone', [IOVA, 0x90_0000], READ, 'EFAULT'],
    ['more than RLIMIT_MEMLOCK', [IOVA, IOVA + 0x1000, IOVA + 0x2000, IOVA + 0x3000], BOTH, 'ENOMEM'],
  ] as const)('refuses %s and unwinds what it had pinned (C10)', (_what, iovas, prot, errno) => {
    const vendor = new Vendor({ memlockLimitPages: 3 });
    const { world, user } = vendor;
    const readOnly = world.buffer(user.process, 1), gone = world.buffer(user.process, 1);
    world.run(user.container.mapDma({ iova: 0x80_0000, vaddr: readOnly, sizeBytes: 4096, write: false }));
    world.run(user.container.mapDma({ iova: 0x90_0000, vaddr: gone, sizeBytes: 4096 }));
    world.run(user.process.mm.mprotect(gone, 4096, 0));
    vendor.listen();
    vendor.pin([IOVA + 0x1000]);
    expect(world.refused(vendor.steps(iovas, prot))).toBe(errno);
    expect(vendor.pages).toEqual([1, 1]);
    vendor.unpin([IOVA + 0x1000]);
    vendor.end();
  });

  it('does not charge a page twice that the IOMMU pinned, in whichever order they came (C8)', () => {
    const vendor = new Vendor({ memlockLimitPages: 4 });
    const { world, user } = vendor;
    vendor.listen();
    vendor.pin([IOVA, IOVA + 0x1000]);
    const group = world.group(0);
    world.run(user.iommu.attachGroup(group));
    expect(vendor.pages).toEqual([6, 4]);
    vendor.pin([IOVA + 0x2000]);
    expect(vendor.pages).toEqual([7, 4]);
    vendor.unpin([IOVA]);
    expect(vendor.pages).toEqual([6, 4]);
    world.run(user.iommu.detachGroup(group));
    expect(vendor.pages).toEqual([2, 2]);
    vendor.unpin([IOVA + 0x1000, IOVA + 0x2000]);
    expect(vendor.pages).toEqual([0, 0]);
    vendor.end();
  });

  it('finds nobody behind the mapping of a process that is gone (C10)', () => {
    const vendor = new Vendor();
    vendor.listen();
    vendor.world.run(vendor.user.process.exit());
    expect(vendor.world.refused(vendor.steps([IOVA]))).toBe('ENODEV');
    expect(vendor.world.refused(vendor.user.iommu.dmaRw(vendor.group, IOVA, new Uint8Array(4), false))).toBe('EPERM');
    vendor.end();
  });
});

describe('type1: UNMAP_DMA of pages that a vendor\'s driver pinned', () => {
  it('tells the driver, which unpins before it returns (19)', () => {
    const vendor = new Vendor();
    vendor.listen(() => void vendor.unpin([IOVA, IOVA + 0x1000]));
    vendor.pin([IOVA, IOVA + 0x1000]);
    expect(vendor.unmap()).toBe(0x4000);
    expect(vendor.told).toEqual(['100000+4000']);
    expect(vendor.pages).toEqual([0, 0]);
    expect(vendor.world.driver.counters.violations).toBe(0);
    vendor.end();
  });

  it('tells nobody when nothing is pinned', () => {
    const vendor = new Vendor();
    vendor.listen();
    expect(vendor.unmap()).toBe(0x4000);
    expect(vendor.told).toEqual([]);
    vendor.end();
  });

  it('asks again when the driver unpins late, from inside or from a task of its own (19)', () => {
    const vendor = new Vendor();
    const { world } = vendor;
    vendor.listen(() => (vendor.told.length === 4 ? void vendor.unpin([IOVA]) : undefined));
    vendor.pin([IOVA]);
    expect(vendor.unmap()).toBe(0x4000);
    expect(vendor.told).toHaveLength(4);
    const later = new Vendor();
    later.listen(() => {
      if (later.told.length > 1) return undefined;
      later.world.scheduler.spawn('late', (function* () {
        yield* sleep(later.world.clock, 3_500);
        later.unpin([IOVA]);
      })());
      return undefined;
    });
    later.pin([IOVA]);
    expect(later.unmap()).toBe(0x4000);
    expect(later.told.length).toBeGreaterThan(1);
    expect([world.driver.counters.violations, later.world.driver.counters.violations]).toEqual([0, 0]);
    vendor.end();
    later.end();
  });

  it('drops its lock meanwhile: the driver may pin, unpin and copy (C9)', () => {
    const vendor = new Vendor();
    const { user, group, world } = vendor;
    const copied = new Uint8Array(4);
    vendor.listen(function* () {
      yield* vendor.steps([IOVA + 0x1000]);
      yield* user.iommu.dmaRw(group, IOVA, copied, false);
      vendor.unpin([IOVA, IOVA + 0x1000]);
    });
    vendor.pin([IOVA]);
    expect(vendor.unmap()).toBe(0x4000);
    expect(textOf(copied)).toBe('text');
    expect(world.driver.counters.violations).toBe(0);
    vendor.end();
  });

  it('reports a driver that never unpins after more than ten retries, and unmaps nevertheless (19)', () => {
    const vendor = new Vendor();
    const { world } = vendor;
    const violations: string[] = [];
    world.trace.listen((record) => violations.push(world.trace.describe(record).map(([, text]) => text).join(' ')), ['vfio:violation']);
    vendor.listen();
    vendor.pin([IOVA, IOVA + 0x1000]);
    expect(vendor.unmap()).toBe(0x4000);
    expect(vendor.told).toHaveLength(11);
    expect(world.driver.counters.violations).toBe(1);
    expect(violations).toEqual(['1 2 pages are still pinned by a vendor\'s driver 0x100000']);
    expect(world.log.lines.some(({ level, text }) => level === 'warn' && text.includes('still pinned'))).toBe(true);
    expect(vendor.pages).toEqual([0, 0]);
    expect(vendor.unpin([IOVA])).toBe(0);
    vendor.end();
  });

  it('the defect vfio.skip-dma-unmap-notify takes pages away under the driver', () => {
    const vendor = new Vendor({ defects: ['vfio.skip-dma-unmap-notify'] });
    vendor.listen(() => void vendor.unpin([IOVA]));
    vendor.pin([IOVA]);
    expect(vendor.unmap()).toBe(0x4000);
    expect(vendor.told).toEqual([]);
    expect(vendor.world.driver.counters.violations).toBe(1);
  });

  it('a group that leaves with pins of its driver is a violation and leaks nothing', () => {
    const vendor = new Vendor();
    vendor.listen();
    vendor.pin([IOVA]);
    vendor.world.run(vendor.user.iommu.detachGroup(vendor.group));
    expect(vendor.world.driver.counters.violations).toBe(1);
    expect(vendor.pages).toEqual([0, 0]);
    vendor.end();
  });
});

describe('type1: copies by the CPU', () => {
  it('read and write the process\'s memory across mappings (C10)', () => {
    const vendor = new Vendor();
    const { world, user, group } = vendor;
    const behind = world.buffer(user.process, 1, 'behind');
    world.run(user.container.mapDma({ iova: IOVA + 0x4000, vaddr: behind, sizeBytes: 4096 }));
    world.run(user.iommu.dmaRw(group, IOVA + 0x3ffe, bytesOfText('<><>'), true));
    expect([world.read(user.process, vendor.vaddr + 0x3ffe, 2), world.read(user.process, behind, 6)]).toEqual(['<>', '<>hind']);
    const bytes = new Uint8Array(8);
    world.run(user.iommu.dmaRw(group, IOVA + 0x3ffe, bytes, false));
    expect(textOf(bytes)).toBe('<><>hind');
    expect(vendor.pages).toEqual([0, 0]);
    vendor.end();
  });

  it('need a mapping, its permission, and memory (C10)', () => {
    const vendor = new Vendor();
    const { world, user, group } = vendor;
    const other = world.buffer(user.process, 2);
    world.run(user.container.mapDma({ iova: 0x80_0000, vaddr: other, sizeBytes: 4096, write: false }));
    world.run(user.container.mapDma({ iova: 0x90_0000, vaddr: other + 4096, sizeBytes: 4096 }));
    world.run(user.process.mm.mprotect(other + 4096, 4096, 0));
    const refused = (iova: number, write: boolean): string => world.refused(user.iommu.dmaRw(group, iova, new Uint8Array(4), write));
    expect([refused(0x10, false), refused(IOVA + 0x3ffe, true), refused(0x80_0000, true), refused(0x90_0000, false)]).toEqual(['EINVAL', 'EINVAL', 'EPERM', 'EFAULT']);
    world.run(user.iommu.dmaRw(group, 0x80_0000, new Uint8Array(4), false));
    vendor.end();
  });
});
