/** A program's calls of VFIO, down to the type1 IOMMU and a domain (C8, C9, V1, E27–E29, E32): values in, records between, values out. */
import { describe, expect, it } from 'vitest';
import { DMA_MAP, DMA_UNMAP } from '../../vfio/uapi/type1.js';
import { bytesOf, wordsOfBytes } from '../../vfio/uapi/fields.js';
import { VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA } from '../../vfio/uapi/ioctl.js';
import type { SoftwareDomain } from '../fixtures/software-iommu.js';
import { VfioWorld } from '../fixtures/vfio-world.js';

function mapped(type: 'type1' | 'type1v2' | 'nesting' = 'type1v2') {
  const world = new VfioWorld({ type1: true });
  const { device, ops } = world.registered('0000:00:01.0');
  const client = world.client();
  const container = client.openContainer(), group = client.openGroup(1);
  world.run(group.setContainer(container));
  world.run(container.setIommu(type));
  const vaddr = world.malloc(client.process.mm, 8) * 4096;
  const domain = () => world.core.groupOf(device).domain as SoftwareDomain;
  return { world, device, ops, client, container, group, vaddr, domain };
}

describe('a container with a type1 IOMMU', () => {
  it('is offered as types 1, 3 and 6, with UNMAP_ALL', () => {
    const { world, container } = mapped();
    expect([1, 3, 6, 9, 10, 2].map((extension) => world.run(container.checkExtension(extension)))).toEqual([1, 1, 1, 1, 0, 0]);
    expect(world.refused(container.setIommu('nesting'))).toBe('EINVAL');
  });

  it('tells page sizes and, asked again with enough room, its capabilities', () => {
    const { world, container, vaddr } = mapped();
    const info = world.run(container.iommuInfo());
    expect(info.pageSizes).toBe(4096n);
    expect(info.dmaAvailable).toBe(65_535);
    expect(info.migration?.pageSizes).toBe(4096n);
    expect(info.iovaRanges?.[0]?.first).toBe(0n);
    expect(info.iovaRanges?.at(-1)?.last).toBe((1n << 48n) - 1n);
    world.run(container.mapDma({ iova: 0, vaddr, sizeBytes: 4096 }));
    expect(world.run(container.iommuInfo()).dmaAvailable).toBe(65_534);
  });

  it('maps the process\'s memory and unmaps it again, with the bytes that were mapped', () => {
    const { world, client, container, vaddr, domain } = mapped();
    world.run(client.process.mm.write(vaddr, Uint8Array.of(0x5a)));
    world.run(container.mapDma({ iova: 0x10_0000, vaddr, sizeBytes: 0x4000 }));
    expect(domain().iovaToPhys(0x100, 0)).toBe(client.process.mm.physicalOf(vaddr));
    world.run(container.mapDma({ iova: 0x20_0000, vaddr, sizeBytes: 0x1000, write: false }));
    expect(domain().entries.get(0x200)?.prot).toBe(1);
    expect(world.run(container.unmapDma(0x10_0000, 0x4000))).toBe(0x4000);
    expect(world.run(container.unmapDma(0x10_0000, 0x4000))).toBe(0);
    expect(world.run(container.unmapDma(0, 0, { all: true }))).toBe(0x1000);
    expect(domain().entries.size).toBe(0);
  });

  it('takes 64-bit addresses whole: one beyond the aperture is EINVAL, not a smaller one', () => {
    const { world, container, vaddr, domain } = mapped();
    expect(world.refused(container.mapDma({ iova: 2n ** 64n - 4096n, vaddr, sizeBytes: 4096 }))).toBe('EINVAL');
    expect(world.refused(container.mapDma({ iova: 2 ** 63, vaddr, sizeBytes: 4096 }))).toBe('EINVAL');
    expect(world.refused(container.mapDma({ iova: 0, vaddr, sizeBytes: 2n ** 64n - 4096n }))).toBe('EINVAL');
    expect(domain().entries.size).toBe(0);
  });

  it('refuses malformed records that a program lays out itself (E27)', () => {
    const { world, container, vaddr, domain } = mapped();
    const good = { argsz: 32, flags: 3, vaddr, iova: 0x1000, size: 0x1000 };
    const map = (change: object) => world.run(container.raw(VFIO_IOMMU_MAP_DMA, bytesOf(DMA_MAP.encode({ ...good, ...change })))).refusal?.code;
    expect([map({ argsz: 31 }), map({ flags: 0x13 }), map({ flags: 0 }), map({ size: 0 }), map({ iova: 0x1001 })]).toEqual(['EINVAL', 'EINVAL', 'EINVAL', 'EINVAL', 'EINVAL']);
    expect(world.refused(container.number(VFIO_IOMMU_MAP_DMA, 0))).toBe('EFAULT');
    expect(domain().entries.size).toBe(0);
    expect(map({})).toBeUndefined();
    expect(map({})).toBe('EEXIST');
    const { bytes } = world.run(container.raw(VFIO_IOMMU_UNMAP_DMA, bytesOf(DMA_UNMAP.encode({ argsz: 24, iova: 0, size: 0x10_0000 }))));
    expect(Array.from(wordsOfBytes(bytes))).toEqual([24, 0, 0, 0, 0x1000, 0]);
  });

  it('tells which pages may have been written', () => {
    const { world, container, group, vaddr, ops } = mapped();
    world.run(container.mapDma({ iova: 0x4000, vaddr, sizeBytes: 0x3000 }));
    expect(world.refused(container.dirtyBitmap(0x4000, 0x3000))).toBe('EINVAL');
    world.run(container.startDirtyTracking());
    world.run(group.getDevice(ops.name));
    expect([...world.run(container.dirtyBitmap(0x4000, 0x3000))]).toEqual([7, 0, 0, 0, 0, 0, 0, 0]);
    expect(world.run(container.unmapDmaDirty(0x4000, 0x3000))).toEqual({ unmappedBytes: 0x3000, dirty: Uint8Array.of(7, 0, 0, 0, 0, 0, 0, 0) });
    world.run(container.stopDirtyTracking());
  });

  it('binds the caller and, by pid, another process, and unbinds them (V1, V2)', () => {
    const { world, container } = mapped();
    const other = world.user('other');
    const pasid = world.run(container.bind());
    expect(world.run(container.bind())).toBe(pasid);
    const foreign = world.run(container.bind(other.pid));
    expect([pasid > 0, foreign !== pasid]).toEqual([true, true]);
    expect(world.refused(container.bind(4711))).toBe('ESRCH');
    world.run(container.unbind());
    expect(world.refused(container.unbind())).toBe('ESRCH');
    world.run(container.unbind(other.pid));
  });

  it('leaves nothing behind when its program is killed (2g)', () => {
    const { world, client, container, group, vaddr, ops, device } = mapped();
    const { inUse } = world.frames;
    world.run(group.getDevice(ops.name));
    world.run(container.mapDma({ iova: 0, vaddr, sizeBytes: 0x8000 }));
    world.run(container.bind());
    world.run(client.process.exit());
    world.settle();
    const iommuGroup = world.core.groupOf(device);
    expect([iommuGroup.ownerCount, iommuGroup.domain]).toEqual([0, iommuGroup.defaultDomain]);
    expect(world.type1.usage).toEqual({ containers: 0, mappings: 0, domains: 0, binds: 0 });
    expect(world.core.usage).toMatchObject({ bonds: 0, pasids: 0, domains: expect.any(Number) as number });
    expect(world.frames.inUse).toBeLessThan(inUse);
    world.run(world.vfio.unregister(device));
  });
});
