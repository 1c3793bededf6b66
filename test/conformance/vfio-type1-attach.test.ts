import { describe, expect, it } from 'vitest';
import type { TraceRecord } from '../../sim/trace.js';
import type { Device } from '../../host/device.js';
import { NO_PASID } from '../../host/pci/dma-port.js';
import type { ContainerGroup } from '../../vfio/iommu-driver.js';
import { VFIO_TYPE1_NESTING_IOMMU, VFIO_TYPE1v2_IOMMU } from '../../vfio/uapi/index.js';
import { Type1World, bytesOfText, textOf, type User } from '../fixtures/type1-world.js';

const IOVA = 0x10_0000;

function mapped(world: Type1World, user: User, iova: number, pages: number, text = ''): number {
  const vaddr = world.buffer(user.process, pages, text);
  world.run(user.container.mapDma({ iova, vaddr, sizeBytes: pages * 4096 }));
  return vaddr;
}

/** A driver that pins nothing by itself; notifications are answered by unpinning. */
function listen(world: Type1World, user: User, group: ContainerGroup, device: Device, pages: readonly number[]): void {
  user.iommu.registerNotifier(device, {
    // oxlint-disable-next-line require-yield
    *dmaUnmap() {
      user.iommu.unpinPages(group, device, pages);
    },
  });
}

/** Texts of records of these kinds from now on. */
function story(world: Type1World, ...kinds: string[]): string[] {
  const told: string[] = [];
  world.trace.listen((record: TraceRecord) => {
    told.push(`${record.kind.name.slice(5)} ${world.trace.describe(record).map(([, text]) => text).join(' ')}`);
  }, kinds);
  return told;
}

describe('type1: a whole device in a container', () => {
  it('refuses the same group twice (C7)', () => {
    const world = new Type1World();
    const group = world.group(0);
    const user = world.user('vmm', [group]);
    const before = world.books();
    expect(world.refused(user.iommu.attachGroup(group))).toBe('EINVAL');
    expect(world.books()).toEqual(before);
    expect(world.refused(user.iommu.detachGroup(world.group(1)))).toBe('EINVAL');
    world.end(user);
    world.expectNothingInUse();
  });

  it('refuses a device whose interrupts are not remapped, and says which option lets it in (E33)', () => {
    const world = new Type1World({ parts: { interruptRemapping: (device) => device.name !== '0000:00:02.0' } });
    const user = world.user('vmm', [world.group(0)]);
    const group = world.group(1), before = world.books();
    const error = world.refusal(user.iommu.attachGroup(group));
    expect(error.code).toBe('EPERM');
    expect(error.message).toContain('allow-unsafe-interrupts');
    expect(world.books()).toEqual(before);
    expect(group.iommuGroup!.owner).toBeUndefined();
    expect(world.log.lines.some(({ text }) => text.includes('No interrupt remapping support'))).toBe(true);
    world.end(user);
    world.expectNothingInUse();
    const unsafe = new Type1World({ parts: { interruptRemapping: () => false }, type1: { allowUnsafeInterrupts: true } });
    unsafe.end(unsafe.user('vmm', [unsafe.group(1)]));
    unsafe.expectNothingInUse();
  });

  it('refuses a whole device while AUX is enabled on it, or while others own its DMA (E24, C6)', () => {
    const world = new Type1World();
    const iommu = world.driver.open(VFIO_TYPE1v2_IOMMU);
    world.run(world.core.devEnableFeature(world.device(0), 'AUX'));
    expect(world.refused(iommu.attachGroup(world.group(0)))).toBe('EPERM');
    world.core.useDefaultDomain(world.device(1));
    expect(world.refused(iommu.attachGroup(world.group(1)))).toBe('EPERM');
    const other = {};
    world.run(world.core.claimDmaOwner(world.group(2).iommuGroup!, other));
    expect(world.refused(iommu.attachGroup(world.group(2)))).toBe('EPERM');
    world.run(world.core.releaseDmaOwner(world.group(2).iommuGroup!, other));
    world.run(iommu.release());
    expect(world.group(0).iommuGroup!.owner).toBeUndefined();
    world.expectNothingInUse();
  });

  it('uses the ownership that VFIO has taken, and leaves it with VFIO', () => {
    const world = new Type1World();
    const group = world.group(0);
    world.run(world.core.claimDmaOwner(group.iommuGroup!, group.owner));
    const user = world.user('vmm', [group]);
    world.run(user.iommu.detachGroup(group));
    expect(group.iommuGroup!.owner).toBe(group.owner);
    world.run(world.core.releaseDmaOwner(group.iommuGroup!, group.owner));
    world.end(user);
    world.expectNothingInUse();
  });

  it('is EIO when there is no domain (C7)', () => {
    const world = new Type1World({ memoryBytes: 2 ** 22 });
    const iommu = world.driver.open(VFIO_TYPE1v2_IOMMU);
    const id = world.frames.ownerId('everything');
    const taken: number[] = [];
    for (let frame = world.frames.tryAlloc(id, 0); frame >= 0; frame = world.frames.tryAlloc(id, 0)) taken.push(frame);
    expect(world.refused(iommu.attachGroup(world.group(0)))).toBe('EIO');
    for (const frame of taken) world.frames.free(frame);
    world.run(iommu.attachGroup(world.group(0)));
    world.run(iommu.release());
    world.expectNothingInUse();
  });

  it('refuses mappings that lie in reserved ranges or beyond the aperture of the new group, and takes others (C7)', () => {
    const world = new Type1World({ secondVtd: { 'aw-bits': 39 } });
    const vendor = world.mdev('vendor');
    const user = world.user('vmm', [vendor]);
    mapped(world, user, 0xfee0_0000, 1);
    expect(world.refused(user.iommu.attachGroup(world.group(0)))).toBe('EINVAL');
    world.run(user.container.unmapDma(0xfee0_0000, 4096));
    mapped(world, user, 2 ** 40, 1, 'high');
    world.run(user.iommu.attachGroup(world.group(0)));
    expect(textOf(world.dmaRead(0, 2 ** 40, 4))).toBe('high');
    const before = world.books();
    expect(world.refused(user.iommu.attachGroup(world.group(3)))).toBe('EINVAL');
    expect(world.books()).toEqual(before);
    world.run(user.container.unmapDma(2 ** 40, 4096));
    world.run(user.iommu.attachGroup(world.group(3)));
    const last = (): bigint | undefined => world.run(user.container.iommuInfo()).iovaRanges?.at(-1)?.last;
    expect(last()).toBe(2n ** 39n - 1n);
    expect(world.refused(user.container.mapDma({ iova: 2 ** 40, vaddr: world.buffer(user.process, 1), sizeBytes: 4096 }))).toBe('EINVAL');
    world.run(user.iommu.detachGroup(world.group(3)));
    expect(last()).toBe(2n ** 48n - 1n);
    world.end(user);
    world.expectNothingInUse();
  });

  it('blocks the device after it has left', () => {
    const world = new Type1World();
    const group = world.group(0);
    const user = world.user('vmm', [group, world.group(1)]);
    mapped(world, user, IOVA, 1, 'data');
    world.run(user.iommu.detachGroup(group));
    expect(world.dmaRead(0, IOVA, 1)).toBeUndefined();
    expect(textOf(world.dmaRead(1, IOVA, 4))).toBe('data');
    world.end(user);
    world.expectNothingInUse();
  });

  it('a NESTING container needs an IOMMU that nests (V3)', () => {
    const world = new Type1World({ vtd: { nested: false } });
    const iommu = world.driver.open(VFIO_TYPE1_NESTING_IOMMU);
    expect(world.refused(iommu.attachGroup(world.group(0)))).toBe('ENODEV');
    world.run(iommu.attachGroup(world.group(3)));
    world.run(iommu.release());
    world.expectNothingInUse();
  });
});

describe('type1: several groups in a container', () => {
  it('a compatible group uses the domain that is there (17)', () => {
    const world = new Type1World();
    const [one, two] = [world.group(0), world.group(1)];
    const user = world.user('vmm', [one]);
    mapped(world, user, IOVA, 2, 'before');
    const pinned = world.frames.pinnedPages;
    world.run(user.iommu.attachGroup(two));
    expect(world.core.usage.domains).toBe(1);
    expect(world.frames.pinnedPages).toBe(pinned);
    mapped(world, user, IOVA + 0x2000, 1, 'after');
    for (const index of [0, 1]) expect([textOf(world.dmaRead(index, IOVA, 6)), textOf(world.dmaRead(index, IOVA + 0x2000, 5))]).toEqual(['before', 'after']);
    world.run(user.iommu.detachGroup(one));
    expect(textOf(world.dmaRead(1, IOVA, 6))).toBe('before');
    world.run(user.iommu.detachGroup(two));
    expect(world.frames.pinnedPages).toBe(0);
    expect(user.iommu.state.mappings.count).toBe(0);
    world.end(user);
    world.expectNothingInUse();
  });

  it('an incompatible group gets a domain of its own with every mapping replayed (17)', () => {
    const world = new Type1World();
    const [one, three] = [world.group(0), world.group(3)];
    const user = world.user('vmm', [one], { memlockLimitPages: 10 });
    mapped(world, user, IOVA, 3, 'before');
    world.run(user.iommu.attachGroup(three));
    expect(world.core.usage.domains).toBe(2);
    // one pin and one charge for a page, however many domains map it
    expect([world.frames.pinnedPages, user.process.mm.lockedPages]).toEqual([3, 3]);
    mapped(world, user, IOVA + 0x3000, 1, 'after');
    for (const index of [0, 3]) expect([textOf(world.dmaRead(index, IOVA, 6)), textOf(world.dmaRead(index, IOVA + 0x3000, 5))]).toEqual(['before', 'after']);
    expect(world.run(user.container.unmapDma(IOVA, 0x3000))).toBe(0x3000);
    for (const index of [0, 3]) expect([world.dmaRead(index, IOVA, 1), textOf(world.dmaRead(index, IOVA + 0x3000, 5))]).toEqual([undefined, 'after']);
    world.run(user.iommu.detachGroup(one));
    expect(world.core.usage.domains).toBe(1);
    expect(textOf(world.dmaRead(3, IOVA + 0x3000, 5))).toBe('after');
    world.end(user);
    world.expectNothingInUse();
  });

  it('an incompatible superpage size needs a domain of its own too, and the container has the sizes of both (17)', () => {
    const world = new Type1World({ secondVtd: { 'second-level-superpages': [] } });
    const user = world.user('vmm', [world.group(0)]);
    const vaddr = world.run(user.process.mm.mmap(2 ** 21, { hugeLevel: 1 }));
    world.run(user.process.mm.write(vaddr + 0x5000, bytesOfText('large')));
    world.run(user.container.mapDma({ iova: 0x4000_0000, vaddr, sizeBytes: 2 ** 21 }));
    world.run(user.iommu.attachGroup(world.group(3)));
    expect(world.run(user.container.iommuInfo()).pageSizes).toBe(4096n);
    for (const index of [0, 3]) expect(textOf(world.dmaRead(index, 0x4000_5000, 5))).toBe('large');
    world.end(user);
    world.expectNothingInUse();
  });

  it.each([
    ['RLIMIT_MEMLOCK', 'ENOMEM', 4, false],
    ['a page that is gone', 'EFAULT', 100, true],
  ] as const)('a replay that fails for %s leaves everything as it was (17)', (_why, errno, memlockLimitPages, hole) => {
    const world = new Type1World();
    const vendor = world.mdev('vendor');
    const user = world.user('vmm', [vendor], { memlockLimitPages });
    mapped(world, user, IOVA, 2, 'one');
    const vaddr = mapped(world, user, IOVA + 0x1_0000, 3, 'two');
    listen(world, user, vendor, vendor.device, [IOVA]);
    world.run(user.iommu.pinPages(vendor, vendor.device, [IOVA], 3));
    if (hole) world.run(user.process.mm.mprotect(vaddr + 0x2000, 4096, 0));
    const group = world.group(0);
    const before = world.books();
    expect(world.refused(user.iommu.attachGroup(group))).toBe(errno);
    expect(world.books()).toEqual(before);
    expect([world.frames.pinnedPages, user.process.mm.lockedPages]).toEqual([1, 1]);
    expect(group.iommuGroup!.owner).toBeUndefined();
    expect(user.iommu.state.mappings.count).toBe(2);
    // and nothing stands in the way of another try
    world.run(user.container.unmapDma(IOVA + 0x1_0000, 0x3000));
    world.run(user.iommu.attachGroup(group));
    expect(textOf(world.dmaRead(0, IOVA, 3))).toBe('one');
    world.end(user);
    world.expectNothingInUse();
  });

  it('a replay into a second domain that finds no memory for its tables leaves everything as it was (17)', () => {
    const world = new Type1World({ memoryBytes: 2 ** 23 });
    const user = world.user('vmm', [world.group(0)]);
    for (let i = 0; i < 8; i++) mapped(world, user, i * 2 ** 30, 1, `page ${i}`);
    const group = world.group(3);
    const id = world.frames.ownerId('everything');
    const taken: number[] = [];
    for (let frame = world.frames.tryAlloc(id, 0); frame >= 0; frame = world.frames.tryAlloc(id, 0)) taken.push(frame);
    for (let i = 0; i < 12; i++) world.frames.free(taken.pop()!);
    const before = world.books(), inUse = world.frames.inUse;
    expect(world.refused(user.iommu.attachGroup(group))).toBe('ENOMEM');
    expect(world.books()).toEqual(before);
    expect(textOf(world.dmaRead(0, 7 * 2 ** 30, 6))).toBe('page 7');
    expect(world.dmaRead(3, 0, 1)).toBeUndefined();
    for (const frame of taken) world.frames.free(frame);
    // the context of the function may keep its tables; the domain's are gone
    expect(world.frames.inUse + taken.length - inUse).toBeLessThanOrEqual(3);
    world.run(user.iommu.attachGroup(group));
    expect(textOf(world.dmaRead(3, 7 * 2 ** 30, 6))).toBe('page 7');
    world.end(user);
    world.expectNothingInUse();
  });

  it('the defect vfio.skip-replay-rollback leaks pins', () => {
    const world = new Type1World({ defects: ['vfio.skip-replay-rollback'] });
    const user = world.user('vmm', [world.mdev('vendor')], { memlockLimitPages: 4 });
    mapped(world, user, IOVA, 2);
    mapped(world, user, IOVA + 0x1_0000, 3);
    expect(world.refused(user.iommu.attachGroup(world.group(0)))).toBe('ENOMEM');
    expect(world.frames.pinnedPages).toBe(2);
  });

  it('release takes out what is still in it', () => {
    const world = new Type1World();
    const user = world.user('vmm', [world.group(0), world.group(3), world.mdev('vendor')]);
    mapped(world, user, IOVA, 5);
    world.end(user);
    world.expectNothingInUse();
  });

  it('tells whose requests reach a container, and what stands behind its addresses', () => {
    const world = new Type1World();
    const told = story(world, 'vfio:container_device', 'vfio:container_device_end', 'vfio:map_dma', 'vfio:unmap_dma', 'vfio:attach_group', 'vfio:detach_group');
    const runs: number[][] = [];
    world.trace.listen(({ kind, args }) => runs.push([kind.name === 'vfio:pin_run' ? 1 : -1, ...args]), ['vfio:pin_run', 'vfio:unpin_run']);
    const group = world.group(0);
    const user = world.user('vmm', [group]);
    const vaddr = mapped(world, user, IOVA, 2);
    const frame = user.process.mm.physicalOf(vaddr) / 4096;
    world.run(user.iommu.detachGroup(group));
    const page = `0x${vaddr.toString(16)}`, domain = told[1]!.split(' ')[3]!;
    expect(told).toEqual([
      `container_device 1 0000:00:01.0 ${NO_PASID}`, `attach_group 1 ${group.id} ${domain}`, `map_dma 1 0x100000 ${page} 2 0x3`,
      `detach_group 1 ${group.id} ${domain}`, `container_device_end 1 0000:00:01.0 ${NO_PASID}`,
    ]);
    expect(runs).toEqual([[1, 1, 0x100, frame, 2, 0], [-1, 1, 0x100, frame, 2, 0]]);
    world.end(user);
  });
});

describe('type1: mediated devices', () => {
  function auxWorld(): Type1World {
    const world = new Type1World();
    world.run(world.core.devEnableFeature(world.device(0), 'AUX'));
    return world;
  }

  it('two of one parent are isolated by their PASIDs: same address, other pages (16, X2, Y1)', () => {
    const world = auxWorld();
    const parent = world.device(0);
    const [m1, m2] = [world.mdev('mdev1', parent), world.mdev('mdev2', parent)];
    const [u1, u2] = [world.user('vm1', [m1]), world.user('vm2', [m2])];
    const [v1, v2] = [mapped(world, u1, IOVA, 2, 'of vm1'), mapped(world, u2, IOVA, 1, 'of vm2')];
    const p1 = u1.iommu.pasidOf(m1.device)!, p2 = u2.iommu.pasidOf(m2.device)!;
    expect(p1).toBeGreaterThan(0);
    expect(p2).toBeGreaterThan(0);
    expect(p1).not.toBe(p2);
    expect([textOf(world.dmaRead(0, IOVA, 6, p1)), textOf(world.dmaRead(0, IOVA, 6, p2))]).toEqual(['of vm1', 'of vm2']);
    expect(world.dmaWrite(0, IOVA, bytesOfText('by dev1'), p1)).toBe(0);
    expect([world.read(u1.process, v1, 7), world.read(u2.process, v2, 6)]).toEqual(['by dev1', 'of vm2']);
    // the second page is mapped for the one only, and requests without PASID or with another device's reach neither
    expect(world.dmaRead(0, IOVA + 0x1000, 1, p1)).toBeDefined();
    expect(world.dmaRead(0, IOVA + 0x1000, 1, p2)).toBeUndefined();
    expect(world.dmaRead(0, IOVA, 1)).toBeUndefined();
    expect(world.dmaRead(1, IOVA, 1, p1)).toBeUndefined();
    expect(world.core.usage).toMatchObject({ pasids: 2, domains: 2 });
    world.end(u1);
    // only p1 is free, and nothing of it is left in the tables
    expect(world.core.usage).toMatchObject({ pasids: 1, domains: 1 });
    expect(world.dmaRead(0, IOVA, 1, p1)).toBeUndefined();
    expect(textOf(world.dmaRead(0, IOVA, 6, p2))).toBe('of vm2');
    expect(u1.iommu.pasidOf(m1.device)).toBeUndefined();
    world.end(u2);
    world.expectNothingInUse();
    world.run(world.core.devDisableFeature(parent, 'AUX'));
  });

  it('two of one parent in one container have one domain and one PASID, until the last one leaves (X2)', () => {
    const world = auxWorld();
    const told = story(world, 'vfio:container_device', 'vfio:container_device_end');
    const parent = world.device(0);
    const [m1, m2] = [world.mdev('mdev1', parent), world.mdev('mdev2', parent)];
    const user = world.user('vmm', [m1]);
    mapped(world, user, IOVA, 1, 'shared');
    world.run(user.iommu.attachGroup(m2));
    const pasid = user.iommu.pasidOf(m1.device)!;
    expect(user.iommu.pasidOf(m2.device)).toBe(pasid);
    expect(world.core.usage).toMatchObject({ pasids: 1, domains: 1 });
    world.run(user.iommu.detachGroup(m1));
    expect([user.iommu.pasidOf(m1.device), user.iommu.pasidOf(m2.device)]).toEqual([undefined, pasid]);
    expect(textOf(world.dmaRead(0, IOVA, 6, pasid))).toBe('shared');
    expect(world.refused(world.core.devDisableFeature(parent, 'AUX'))).toBe('EBUSY');
    world.run(user.iommu.detachGroup(m2));
    expect(told).toEqual([`container_device 1 0000:00:01.0 ${pasid}`, `container_device_end 1 0000:00:01.0 ${pasid}`]);
    world.end(user);
    world.expectNothingInUse();
  });

  it('a whole device and a mediated one share a compatible domain', () => {
    const world = auxWorld();
    const mdev = world.mdev('mdev1', world.device(0));
    const user = world.user('vmm', [world.group(1), mdev]);
    mapped(world, user, IOVA, 1, 'both');
    expect(world.core.usage).toMatchObject({ pasids: 1, domains: 1 });
    expect([textOf(world.dmaRead(1, IOVA, 4)), textOf(world.dmaRead(0, IOVA, 4, user.iommu.pasidOf(mdev.device)!))]).toEqual(['both', 'both']);
    world.end(user);
    world.expectNothingInUse();
  });

  it('a parent without AUX is attached as a whole, once (Y1)', () => {
    const world = new Type1World();
    const parent = world.device(0);
    const [m1, m2] = [world.mdev('mdev1', parent), world.mdev('mdev2', parent)];
    const user = world.user('vmm', [m1]);
    mapped(world, user, IOVA, 1, 'data');
    expect(textOf(world.dmaRead(0, IOVA, 4))).toBe('data');
    expect(user.iommu.pasidOf(m1.device)).toBeUndefined();
    const before = world.books();
    expect(world.refused(user.iommu.attachGroup(m2))).toBe('EBUSY');
    expect(world.books()).toEqual(before);
    world.end(user);
    expect(world.group(0).iommuGroup!.domain).toBe(world.group(0).iommuGroup!.defaultDomain);
    world.expectNothingInUse();
  });

  it('without an iommu_device, or with several, nothing is pinned or mapped: the vendor isolates (Y1, C8)', () => {
    const world = auxWorld();
    const mixed = world.mdev('mixed', world.device(0));
    const two: ContainerGroup = { ...mixed, registrations: [...mixed.registrations, ...world.mdev('other', world.device(1)).registrations] };
    const some: ContainerGroup = { ...world.mdev('some'), registrations: [...mixed.registrations, ...world.mdev('none').registrations] };
    for (const group of [world.mdev('vendor'), two, some]) {
      const user = world.user('vmm', [group], { memlockLimitPages: 0 });
      mapped(world, user, IOVA, 4);
      expect(world.books()).toMatchObject({ pinned: 0, core: { domains: 0, pasids: 0 } });
      expect(world.run(user.container.unmapDma(IOVA, 0x4000))).toBe(0x4000);
      world.end(user);
      world.expectNothingInUse();
    }
  });

  it('E33 holds for what carries their requests, too', () => {
    const world = new Type1World({ parts: { interruptRemapping: () => false } });
    world.run(world.core.devEnableFeature(world.device(0), 'AUX'));
    const iommu = world.driver.open(VFIO_TYPE1v2_IOMMU);
    expect(world.refused(iommu.attachGroup(world.mdev('mdev1', world.device(0))))).toBe('EPERM');
    world.run(iommu.attachGroup(world.mdev('vendor')));
    world.run(iommu.release());
    world.expectNothingInUse();
  });

  it('mappings outlive the last IOMMU while a vendor isolates: unpinned, and pinned again with the next one', () => {
    const world = new Type1World();
    const vendor = world.mdev('vendor');
    const group = world.group(0);
    const user = world.user('vmm', [group, vendor]);
    mapped(world, user, IOVA, 4, 'kept');
    listen(world, user, vendor, vendor.device, [IOVA + 0x1000]);
    const [physical] = world.run(user.iommu.pinPages(vendor, vendor.device, [IOVA + 0x1000], 3));
    expect([world.frames.pinnedPages, user.process.mm.lockedPages]).toEqual([5, 4]);
    world.run(user.iommu.detachGroup(group));
    // what the vendor pinned stays, and is charged now because nothing else is
    expect([world.frames.pinnedPages, user.process.mm.lockedPages, user.iommu.state.mappings.count]).toEqual([1, 1, 1]);
    expect(world.dmaRead(0, IOVA, 1)).toBeUndefined();
    expect(world.frames.pins(physical!)).toBe(1);
    world.run(user.iommu.attachGroup(world.group(1)));
    expect([world.frames.pinnedPages, user.process.mm.lockedPages]).toEqual([5, 4]);
    expect(textOf(world.dmaRead(1, IOVA, 4))).toBe('kept');
    expect(world.run(user.container.unmapDma(IOVA, 0x4000))).toBe(0x4000);
    expect([world.frames.pinnedPages, user.process.mm.lockedPages]).toEqual([0, 0]);
    world.end(user);
    world.expectNothingInUse();
  });

  it('the last group takes the mappings with it, whichever kind it is', () => {
    const world = new Type1World();
    const vendor = world.mdev('vendor'), group = world.group(0);
    const user = world.user('vmm', [group, vendor]);
    mapped(world, user, IOVA, 2, 'x');
    world.run(user.iommu.detachGroup(vendor));
    expect(textOf(world.dmaRead(0, IOVA, 1))).toBe('x');
    world.run(user.iommu.attachGroup(vendor));
    world.run(user.iommu.detachGroup(group));
    expect(user.iommu.state.mappings.count).toBe(1);
    world.run(user.iommu.detachGroup(vendor));
    expect(user.iommu.state.mappings.count).toBe(0);
    world.end(user);
    world.expectNothingInUse();
  });
});
