import { describe, expect, it } from 'vitest';
import { NO_PASID } from '../../host/pci/dma-port.js';
import {
  TYPE1_BIND, TYPE1_BIND_PROCESS, VFIO_IOMMU_BIND, VFIO_IOMMU_BIND_PID, VFIO_IOMMU_BIND_PROCESS, VFIO_IOMMU_UNBIND, VFIO_TYPE1_NESTING_IOMMU, bytesOf, concatWords,
} from '../../vfio/uapi/index.js';
import { PROT_READ } from '../../host/mm/vma.js';
import { Type1World, bytesOfText, textOf } from '../fixtures/type1-world.js';

const IOVA = 0x10_0000;

describe('type1: BIND and UNBIND', () => {
  it('lets every device of the container use the process\'s addresses under one PASID (V1)', () => {
    const world = new Type1World();
    const user = world.user('prog', [world.group(0), world.group(1)]);
    const address = world.buffer(user.process, 1, 'shared');
    const pasid = world.run(user.container.bind());
    expect(pasid).toBeGreaterThan(0);
    for (const index of [0, 1]) expect(textOf(world.dmaRead(index, address, 6, pasid))).toBe('shared');
    expect(world.dmaWrite(1, address, bytesOfText('by fn1'), pasid)).toBe(0);
    expect(world.read(user.process, address, 6)).toBe('by fn1');
    expect(world.dmaRead(2, address, 1, pasid)).toBeUndefined();
    expect(world.frames.pinnedPages).toBe(0);
    world.run(user.container.unbind());
    for (const index of [0, 1]) expect(world.dmaRead(index, address, 1, pasid)).toBeUndefined();
    world.end(user);
    world.expectNothingInUse();
  });

  it('goes together with mappings: those for requests without PASID, the process for those with one (V3)', () => {
    const world = new Type1World();
    for (const type of [undefined, VFIO_TYPE1_NESTING_IOMMU]) {
      const user = world.user('prog', [world.group(0)], type === undefined ? {} : { type });
      const address = world.buffer(user.process, 1, 'data');
      world.run(user.container.mapDma({ iova: IOVA, vaddr: address, sizeBytes: 4096 }));
      const pasid = world.run(user.container.bind());
      expect([textOf(world.dmaRead(0, IOVA, 4)), textOf(world.dmaRead(0, address, 4, pasid))]).toEqual(['data', 'data']);
      expect([world.dmaRead(0, address, 4, NO_PASID), world.dmaRead(0, IOVA, 4, pasid)]).toEqual([undefined, undefined]);
      world.run(user.container.unmapDma(IOVA, 4096));
      expect(textOf(world.dmaRead(0, address, 4, pasid))).toBe('data');
      world.end(user);
      world.expectNothingInUse();
    }
  });

  it('gives the same PASID again, and one unbind ends it (V1)', () => {
    const world = new Type1World();
    const user = world.user('prog', [world.group(0)]);
    const pasid = world.run(user.container.bind());
    expect(world.run(user.container.bind())).toBe(pasid);
    expect(world.core.usage.bonds).toBe(1);
    world.run(user.container.unbind());
    expect(world.core.usage.bonds).toBe(0);
    expect(world.refused(user.container.unbind())).toBe('ESRCH');
    world.end(user);
    world.expectNothingInUse();
  });

  it('binds another process by pid where ptrace would be allowed (V1, V2)', () => {
    const world = new Type1World({ parts: { mayAttach: (caller, target) => caller.name === 'debugger' && target.name !== 'init' } });
    const user = world.user('debugger', [world.group(0)]);
    const [target, init] = [world.process('target'), world.process('init')];
    const address = world.buffer(target, 1, 'of target');
    expect(world.refused(user.container.bind(init.pid))).toBe('EACCES');
    expect(world.refused(user.container.bind(9_999))).toBe('ESRCH');
    expect(world.refused(user.container.bind(-1))).toBe('ESRCH');
    const pasid = world.run(user.container.bind(target.pid)), own = world.run(user.container.bind(user.process.pid));
    expect(own).not.toBe(pasid);
    expect(world.run(user.container.bind())).toBe(own);
    expect(textOf(world.dmaRead(0, address, 9, pasid))).toBe('of target');
    // by process, not by PASID, which may be somebody else's
    world.run(user.container.unbind(target.pid));
    expect(world.dmaRead(0, address, 1, pasid)).toBeUndefined();
    expect(world.refused(user.container.unbind(target.pid))).toBe('ESRCH');
    expect(world.core.usage.bonds).toBe(1);
    world.run(target.exit());
    expect(world.refused(user.container.bind(target.pid))).toBe('ESRCH');
    world.run(init.exit());
    world.end(user);
    world.expectNothingInUse();
  });

  it('is allowed to nobody but the process itself where nothing is said of ptrace', () => {
    const world = new Type1World();
    const user = world.user('prog', [world.group(0)]);
    const other = world.process('other');
    expect(world.refused(user.container.bind(other.pid))).toBe('EACCES');
    expect(world.core.usage.bonds).toBe(0);
    world.end(user);
  });

  it('refuses short records, unknown modes and flags, unreachable memory, and containers without an IOMMU (V1, E27)', () => {
    const world = new Type1World();
    const user = world.user('prog', [world.group(0)]);
    const vendor = world.user('vendor', [world.mdev('vendor')]);
    for (const command of [VFIO_IOMMU_BIND, VFIO_IOMMU_UNBIND]) {
      for (const [argsz, mode, flags] of [[7, 1, 0], [19, 1, 0], [20, 0, 0], [20, 2, 0], [20, 3, 0], [20, 1, 2]] as const) {
        const words = concatWords(TYPE1_BIND.encode({ argsz, flags: mode }), TYPE1_BIND_PROCESS.encode({ flags }));
        expect(world.run(user.container.raw(command, bytesOf(words))).refusal?.code).toBe('EINVAL');
      }
      expect(world.refused(user.container.number(command, 0x1000))).toBe('EFAULT');
    }
    expect(world.refused(vendor.container.bind())).toBe('EINVAL');
    expect(world.core.usage).toMatchObject({ bonds: 0, pasids: 0 });
    expect([VFIO_IOMMU_BIND_PROCESS, VFIO_IOMMU_BIND_PID]).toEqual([1, 1]);
    world.end(user);
    world.end(vendor);
    world.expectNothingInUse();
  });

  it('is undone when the PASID cannot be told (V1)', () => {
    const world = new Type1World();
    const user = world.user('prog', [world.group(0)]);
    const record = world.buffer(user.process, 1);
    world.run(user.process.mm.write(record, bytesOf(concatWords(TYPE1_BIND.encode({ argsz: 20, flags: 1 }), TYPE1_BIND_PROCESS.encode({})))));
    world.run(user.process.mm.mprotect(record, 4096, PROT_READ));
    expect(world.refused(user.container.number(VFIO_IOMMU_BIND, record))).toBe('EFAULT');
    expect(world.core.usage.bonds).toBe(0);
    // a bind that was there before stays
    const pasid = world.run(user.container.bind());
    expect(world.refused(user.container.number(VFIO_IOMMU_BIND, record))).toBe('EFAULT');
    expect(world.core.usage.bonds).toBe(1);
    expect(world.core.bondState(world.device(0), pasid)).toBe('BOUND');
    world.end(user);
    world.expectNothingInUse();
  });

  it('binds all groups or none (V1)', () => {
    const world = new Type1World({ secondVtd: { 'page-requests': false } });
    const user = world.user('prog', [world.group(0), world.group(3)]);
    expect(world.refused(user.container.bind())).toBe('EINVAL');
    expect(world.core.usage.bonds).toBe(0);
    expect([world.core.devFeatureEnabled(world.device(0), 'SVA'), world.core.devFeatureEnabled(world.device(0), 'IOPF')]).toEqual([false, false]);
    world.run(user.iommu.detachGroup(world.group(3)));
    world.run(user.container.bind());
    // and a group that cannot be bound does not come in any more
    const before = world.books();
    expect(world.refused(user.iommu.attachGroup(world.group(3)))).toBe('EINVAL');
    expect(world.books()).toEqual(before);
    expect(world.group(3).iommuGroup!.owner).toBeUndefined();
    world.end(user);
    world.expectNothingInUse();
  });

  it('reaches groups that come later, and leaves with those that go (V3)', () => {
    const world = new Type1World();
    const user = world.user('prog', [world.group(0)]);
    const address = world.buffer(user.process, 1, 'shared');
    const pasid = world.run(user.container.bind());
    world.run(user.iommu.attachGroup(world.group(1)));
    world.run(user.iommu.attachGroup(world.group(3)));
    for (const index of [0, 1, 3]) expect(textOf(world.dmaRead(index, address, 6, pasid))).toBe('shared');
    world.run(user.iommu.detachGroup(world.group(1)));
    expect(world.dmaRead(1, address, 1, pasid)).toBeUndefined();
    expect([world.core.devFeatureEnabled(world.device(1), 'SVA'), world.core.devFeatureEnabled(world.device(1), 'IOPF')]).toEqual([false, false]);
    expect(textOf(world.dmaRead(3, address, 6, pasid))).toBe('shared');
    world.run(user.iommu.detachGroup(world.group(0)));
    world.run(user.iommu.detachGroup(world.group(3)));
    expect(world.core.usage.bonds).toBe(0);
    // the last group took the bind along
    world.run(user.iommu.attachGroup(world.group(0)));
    expect(world.refused(user.container.unbind())).toBe('ESRCH');
    world.end(user);
    world.expectNothingInUse();
  });

  it('ends with the container, and with the address space (V1, M7)', () => {
    const world = new Type1World();
    const user = world.user('prog', [world.group(0), world.group(1)]);
    const address = world.buffer(user.process, 1, 'shared');
    const pasid = world.run(user.container.bind());
    world.run(user.process.exit());
    world.settle();
    expect(world.core.usage).toMatchObject({ bonds: 0, pasids: 0 });
    expect(user.iommu.state.binds).toEqual([]);
    for (const index of [0, 1]) expect(world.dmaRead(index, address, 1, pasid)).toBeUndefined();
    // somebody else who has the container may go on
    const heir = world.process('heir');
    world.run(world.handle(heir, user.iommu).bind());
    expect(world.core.usage).toMatchObject({ bonds: 2, pasids: 1 });
    world.run(user.iommu.release());
    expect(world.core.usage).toMatchObject({ bonds: 0 });
    world.run(heir.exit());
    world.settle();
    world.expectNothingInUse();
  });

  it('is for devices that send requests of their own', () => {
    const world = new Type1World();
    world.run(world.core.devEnableFeature(world.device(0), 'AUX'));
    const user = world.user('vmm', [world.mdev('mdev1', world.device(0))]);
    expect(world.refused(user.container.bind())).toBe('ENODEV');
    world.end(user);
    world.expectNothingInUse();
  });

  it('pins nothing: a page that the process unmaps is gone for the device', () => {
    const world = new Type1World();
    const user = world.user('prog', [world.group(0)]);
    const address = world.buffer(user.process, 2, 'shared');
    const pasid = world.run(user.container.bind());
    expect(textOf(world.dmaRead(0, address, 6, pasid))).toBe('shared');
    world.run(user.process.mm.munmap(address, 4096));
    expect(world.dmaRead(0, address, 6, pasid)).toBeUndefined();
    world.end(user);
    world.expectNothingInUse();
  });
});
