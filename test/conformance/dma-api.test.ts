/** The DMA API of kernel drivers over default domains; section 5: 4; requirement A3 (order of an unmap). */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { IovaAllocator } from '../../iommu/core/iova.js';
import { PROT_READ, PROT_WRITE } from '../../iommu/core/ops.js';
import type { CoherentMemory } from '../../iommu/core/dma-api.js';
import { CoreWorld, type CoreWorldOptions } from '../fixtures/core-world.js';
import { SoftwareDevice, type SoftwareDeviceOptions, type SoftwareDomain } from '../fixtures/software-iommu.js';

function dmaWorld(options: CoreWorldOptions = {}, deviceOptions: SoftwareDeviceOptions = {}) {
  const world = new CoreWorld(options);
  const device = world.device('dev0', deviceOptions);
  const domain = world.core.groupOf(device).defaultDomain as SoftwareDomain;
  return { world, device, domain, dma: world.core.dma };
}

describe('dma_map_single', () => {
  it('maps the pages that hold the bytes, below the mask, and keeps the offset', () => {
    const { world, device, domain, dma } = dmaWorld();
    const address = world.run(dma.dmaMap(device, 0x12_3f00, 0x300, 'to-device'));
    expect(address % 4096).toBe(0xf00);
    expect(address + 0x300).toBeLessThanOrEqual(2 ** 32);
    const page = Math.floor(address / 4096);
    expect([domain.entries.get(page), domain.entries.get(page + 1)]).toEqual([{ page: 0x123, prot: PROT_READ }, { page: 0x124, prot: PROT_READ }]);
    expect(domain.entries.size).toBe(2);
    expect(world.core.usage.dmaPages).toBe(2);
    world.run(dma.dmaUnmap(device, address, 0x300));
    expect(domain.entries.size).toBe(0);
    expect(world.core.usage.dmaPages).toBe(0);
  });

  it.each([['to-device', PROT_READ], ['from-device', PROT_WRITE], ['bidirectional', PROT_READ | PROT_WRITE]] as const)('%s has rights %i', (direction, prot) => {
    const { world, device, domain, dma } = dmaWorld();
    const address = world.run(dma.dmaMap(device, 0x1000, 1, direction));
    expect(domain.entries.get(address / 4096)!.prot).toBe(prot);
  });

  it('hands out addresses top-down under the mask the driver set', () => {
    const { world, device, dma } = dmaWorld();
    expect(world.run(dma.dmaMap(device, 0, 4096, 'to-device'))).toBe(2 ** 32 - 4096);
    expect(world.run(dma.dmaMap(device, 0, 4096, 'to-device'))).toBe(2 ** 32 - 2 * 4096);
    dma.dmaSetMask(device, 40);
    expect(world.run(dma.dmaMap(device, 0, 4096, 'to-device'))).toBe(2 ** 40 - 4096);
    expect(world.refused(() => dma.dmaSetMask(device, 12))).toBe('EIO');
    expect(world.refused(() => dma.dmaSetMask(device, 65))).toBe('EIO');
  });

  it('stays out of what the IOMMU never translates', () => {
    const { world, device, dma } = dmaWorld({}, { reserved: [{ firstPage: 0xf_ff00, endPage: 0x10_0000, name: 'msi' }] });
    expect(world.run(dma.dmaMap(device, 0, 4096, 'to-device'))).toBe(0xfff0_0000 - 4096);
  });

  it('refuses nothing to map, a stranger, no room, and a group that a user owns', () => {
    const { world, device, domain, dma } = dmaWorld();
    expect(world.refused(dma.dmaMap(device, 0, 0, 'to-device'))).toBe('EINVAL');
    expect(world.refused(dma.dmaMap(new SoftwareDevice('x'), 0, 1, 'to-device'))).toBe('ENODEV');
    dma.dmaSetMask(device, 14);
    for (let i = 0; i < 3; i++) world.run(dma.dmaMap(device, 0, 4096, 'to-device'));
    expect(world.refused(dma.dmaMap(device, 0, 4096, 'to-device'))).toBe('ENOSPC');
    world.run(world.core.claimDmaOwner(world.core.groupOf(device), {}));
    expect(world.refused(dma.dmaMap(device, 0, 4096, 'to-device'))).toBe('EIO');
    expect(domain.entries.size).toBe(3);
  });
});

describe('a mapping that fails half-way', () => {
  it('leaves nothing mapped and gives its addresses back', () => {
    const { world, device, domain, dma } = dmaWorld();
    const list = [{ physical: 0x1_0000, length: 4096 }, { physical: 0x2_0000, length: 4096 }];
    domain.map(0xf_ffff, 0x9000, 1, PROT_READ);
    expect(world.refused(dma.dmaMapSg(device, list, 'to-device'))).toBe('EEXIST');
    expect([...domain.entries.keys()]).toEqual([0xf_ffff]);
    expect(world.core.usage.dmaPages).toBe(0);
    domain.unmap(0xf_ffff, 1);
    expect(world.run(dma.dmaMapSg(device, list, 'to-device'))).toEqual([{ address: 0xffff_e000, length: 8192 }]);
  });
});

describe('dma_unmap_single', () => {
  it('returns after the invalidation: nobody reaches the old page (A3)', () => {
    const { world, device, domain, dma } = dmaWorld();
    const address = world.run(dma.dmaMap(device, 0x5000, 4096, 'to-device'));
    expect(domain.translate(address / 4096)).toBe(5);
    world.run(dma.dmaUnmap(device, address, 4096));
    expect(domain.translate(address / 4096)).toBeUndefined();
    expect(world.run(dma.dmaMap(device, 0x6000, 4096, 'to-device'))).toBe(address);
    expect(domain.translate(address / 4096)).toBe(6);
  });

  it('does not reuse the address before the invalidation', () => {
    const { world, device, dma } = dmaWorld();
    const address = world.run(dma.dmaMap(device, 0x5000, 4096, 'to-device'));
    world.scheduler.spawn('unmap', dma.dmaUnmap(device, address, 4096));
    const other = world.run((function* () { return yield* dma.dmaMap(device, 0x6000, 4096, 'to-device'); })());
    expect(other).not.toBe(address);
  });

  it('twice is logged and counted and changes nothing', () => {
    const { world, device, dma } = dmaWorld();
    const address = world.run(dma.dmaMap(device, 0x5000, 4096, 'to-device'));
    const keep = world.run(dma.dmaMap(device, 0x6000, 4096, 'to-device'));
    world.run(dma.dmaUnmap(device, address, 4096));
    world.run(dma.dmaUnmap(device, address, 4096));
    expect(world.core.counters.violations).toBe(1);
    expect(world.log.lines.at(-1)).toMatchObject({ level: 'err', text: expect.stringContaining('dev0: device driver tries to free DMA memory it has not allocated') as string });
    expect(world.core.iovaToPhys(world.core.groupOf(device).defaultDomain, keep / 4096)).toBe(0x6000);
  });

  it('with another size or function is a violation', () => {
    const { world, device, domain, dma } = dmaWorld();
    const address = world.run(dma.dmaMap(device, 0x5000, 8192, 'to-device'));
    world.run(dma.dmaUnmapSg(device, [{ address, length: 8192 }]));
    expect([world.core.counters.violations, domain.entries.size]).toEqual([1, 2]);
    world.run(dma.dmaUnmap(device, address, 4096));
    expect([world.core.counters.violations, domain.entries.size]).toEqual([2, 0]);
  });

  it('by another device of the group is a violation', () => {
    const { world, device, domain, dma } = dmaWorld();
    const neighbour = world.device('dev1', {}, world.core.groupOf(device).id);
    const address = world.run(dma.dmaMap(device, 0x5000, 4096, 'to-device'));
    world.run(dma.dmaUnmap(neighbour, address, 4096));
    expect([world.core.counters.violations, domain.entries.size]).toEqual([1, 1]);
  });
});

describe('lazy unmaps', () => {
  it('clear the entry at once and flush all after 10 ms, then reuse', () => {
    const { world, device, domain, dma } = dmaWorld({ options: { dma: 'lazy' } });
    const address = world.run(dma.dmaMap(device, 0x5000, 4096, 'to-device'));
    domain.translate(address / 4096);
    world.run(dma.dmaUnmap(device, address, 4096));
    const start = world.clock.now;
    expect(domain.entries.size).toBe(0);
    // the hole that lazy mode is: the device still gets there
    expect(domain.translate(address / 4096)).toBe(5);
    expect(world.run(dma.dmaMap(device, 0x6000, 4096, 'to-device'))).not.toBe(address);
    world.settle();
    expect(domain.translate(address / 4096)).toBeUndefined();
    expect(world.iommu.calls('flush')).toHaveLength(1);
    expect(world.clock.now - start).toBe(10_000_000 + world.iommu.invalidationNs);
    expect(world.run(dma.dmaMap(device, 0x7000, 4096, 'to-device'))).toBe(address);
  });

  it('flush after 256 entries without waiting for the timer', () => {
    const { world, device, dma } = dmaWorld({ options: { dma: 'lazy' } });
    const start = world.clock.now;
    for (let i = 0; i < 256; i++) world.run(dma.dmaUnmap(device, world.run(dma.dmaMap(device, 0x5000, 4096, 'to-device')), 4096));
    expect(world.iommu.calls('flush')).toHaveLength(1);
    world.settle();
    expect(world.clock.now - start).toBeLessThan(10_000_000);
  });

  it('flush when the addresses run out', () => {
    const { world, device, dma } = dmaWorld({ options: { dma: 'lazy' } });
    dma.dmaSetMask(device, 14);
    for (let i = 0; i < 7; i++) world.run(dma.dmaUnmap(device, world.run(dma.dmaMap(device, 0x5000, 4096, 'to-device')), 4096));
    expect(world.iommu.calls('flush')).toHaveLength(2);
  });

  it('free coherent frames only after their own flush', () => {
    const { world, device, domain, dma } = dmaWorld({ options: { dma: 'lazy' } });
    const memory = world.run(dma.dmaAllocCoherent(device, 4096));
    domain.translate(memory.address / 4096);
    world.run(dma.dmaFreeCoherent(device, memory));
    expect(domain.translate(memory.address / 4096)).toBeUndefined();
  });
});

describe('dma_map_sg', () => {
  it('makes one segment of pieces that meet at page boundaries and keeps offsets', () => {
    const { world, device, domain, dma } = dmaWorld();
    const segments = world.run(dma.dmaMapSg(device, [
      { physical: 0x1_0800, length: 0x800 }, { physical: 0x2_0000, length: 0x1000 }, { physical: 0x3_0000, length: 0x100 },
      { physical: 0x4_0010, length: 0x20 },
    ], 'bidirectional'));
    const base = segments[0]!.address - 0x800;
    expect(base % 4096).toBe(0);
    expect(segments).toEqual([{ address: base + 0x800, length: 0x1900 }, { address: base + 0x3010, length: 0x20 }]);
    expect([0, 1, 2, 3].map((i) => domain.entries.get(base / 4096 + i)!.page)).toEqual([0x10, 0x20, 0x30, 0x40]);
    world.run(dma.dmaUnmapSg(device, segments));
    expect(domain.entries.size).toBe(0);
    expect(world.core.counters.violations).toBe(0);
    expect(world.core.usage.dmaPages).toBe(0);
  });

  it('limits a segment to 64 KiB', () => {
    const { world, device, dma } = dmaWorld();
    const list = Array.from({ length: 20 }, (_, i) => ({ physical: 0x10_0000 + i * 0x2000, length: 0x1000 }));
    const segments = world.run(dma.dmaMapSg(device, list, 'to-device'));
    expect(segments.map(({ length }) => length)).toEqual([0x1_0000, 0x4000]);
    expect(segments[1]!.address).toBe(segments[0]!.address + 0x1_0000);
  });

  it('refuses empty lists and pieces', () => {
    const { world, device, dma } = dmaWorld();
    expect(world.refused(dma.dmaMapSg(device, [], 'to-device'))).toBe('EINVAL');
    expect(world.refused(dma.dmaMapSg(device, [{ physical: 0, length: 0 }], 'to-device'))).toBe('EINVAL');
    expect(world.core.usage.dmaPages).toBe(0);
  });

  it('keeps every byte where it belongs, for any list', () => {
    const piece = fc.record({ physical: fc.nat(0xff_ffff), length: fc.integer({ min: 1, max: 20_000 }) });
    fc.assert(fc.property(fc.array(piece, { minLength: 1, maxLength: 12 }), (list) => {
      const { world, device, domain, dma } = dmaWorld();
      const segments = world.run(dma.dmaMapSg(device, list, 'to-device'));
      // walk both sides byte range by byte range
      const device0 = segments.flatMap(({ address, length }) => sample(address, length)).map((a) => domain.iovaToPhys(Math.floor(a / 4096), a % 4096));
      const lengths = segments.reduce((sum, { length }) => sum + length, 0);
      expect(lengths).toBe(list.reduce((sum, { length }) => sum + length, 0));
      const physical = new Set(list.flatMap(({ physical: p, length }) => Array.from({ length: Math.ceil((p % 4096 + length) / 4096) }, (_, i) => Math.floor(p / 4096) + i)));
      for (const p of device0) expect(physical.has(Math.floor(p! / 4096))).toBe(true);
      let offset = 0;
      for (const { physical: p, length } of list) {
        expect(byteAt(domain, segments, offset)).toBe(p);
        expect(byteAt(domain, segments, offset + length - 1)).toBe(p + length - 1);
        offset += length;
      }
      world.run(dma.dmaUnmapSg(device, segments));
      expect([domain.entries.size, world.core.counters.violations]).toEqual([0, 0]);
    }), { numRuns: 40 });
  });
});

function sample(address: number, length: number): number[] {
  return [address, address + length - 1];
}

function byteAt(domain: SoftwareDomain, segments: readonly { address: number; length: number }[], offset: number): number | undefined {
  let rest = offset;
  for (const { address, length } of segments) {
    if (rest < length) return domain.iovaToPhys(Math.floor((address + rest) / 4096), (address + rest) % 4096);
    rest -= length;
  }
  return undefined;
}

describe('coherent memory', () => {
  it('is zeroed frames mapped for both directions, and balances', () => {
    const { world, device, domain, dma } = dmaWorld();
    const before = world.frames.inUse;
    const memory = world.run(dma.dmaAllocCoherent(device, 5000));
    expect(memory.sizeBytes).toBe(8192);
    expect(domain.entries.get(memory.address / 4096)).toEqual({ page: memory.physical / 4096, prot: PROT_READ | PROT_WRITE });
    world.run(dma.dmaFreeCoherent(device, memory));
    expect(world.frames.inUse).toBe(before);
    world.run(dma.dmaFreeCoherent(device, memory));
    expect(world.core.counters.violations).toBe(1);
    expect(world.frames.inUse).toBe(before);
  });

  it('refuses no bytes and more than there is, and keeps nothing', () => {
    const { world, device, dma } = dmaWorld();
    const before = world.frames.inUse;
    expect(world.refused(dma.dmaAllocCoherent(device, 0))).toBe('EINVAL');
    dma.dmaSetMask(device, 13);
    expect(world.refused(dma.dmaAllocCoherent(device, 3 * 4096))).toBe('ENOSPC');
    expect(world.frames.inUse).toBe(before);
  });
});

describe('an identity default domain', () => {
  it('makes DMA addresses physical, within the mask', () => {
    const { world, device, domain, dma } = dmaWorld({ options: { defaultDomain: 'identity' } });
    expect(domain.type).toBe('identity');
    const address = world.run(dma.dmaMap(device, 0x12_3456, 100, 'to-device'));
    expect(address).toBe(0x12_3456);
    expect(world.run(dma.dmaMap(device, 0x12_3456, 100, 'to-device'))).toBe(address);
    expect(world.refused(dma.dmaMap(device, 2 ** 32 - 50, 100, 'to-device'))).toBe('EIO');
    const segments = world.run(dma.dmaMapSg(device, [{ physical: 0x1000, length: 1 }, { physical: 0x2000, length: 2 }], 'to-device'));
    expect(segments).toEqual([{ address: 0x1000, length: 1 }, { address: 0x2000, length: 2 }]);
    const memory: CoherentMemory = world.run(dma.dmaAllocCoherent(device, 4096));
    expect(memory.address).toBe(memory.physical);
    world.run(dma.dmaFreeCoherent(device, memory));
    world.run(dma.dmaUnmapSg(device, segments));
    world.run(dma.dmaUnmap(device, address, 100));
    world.run(dma.dmaUnmap(device, address, 100));
    expect([world.core.counters.violations, world.core.usage.dmaPages]).toEqual([0, 0]);
    world.run(dma.dmaUnmap(device, address, 100));
    expect(world.core.counters.violations).toBe(1);
    expect(world.iommu.calls('flush')).toEqual([]);
  });

  it('tells mappings that start at one address apart by device, function and size', () => {
    const { world, device, dma } = dmaWorld({ options: { defaultDomain: 'identity' } });
    const neighbour = world.device('dev1', {}, world.core.groupOf(device).id);
    world.run(dma.dmaMap(device, 0x5000, 100, 'to-device'));
    world.run(dma.dmaMap(device, 0x5000, 200, 'to-device'));
    world.run(dma.dmaMap(neighbour, 0x5000, 100, 'to-device'));
    world.run(dma.dmaMapSg(device, [{ physical: 0x5000, length: 100 }], 'to-device'));
    world.run(dma.dmaUnmap(device, 0x5000, 200));
    world.run(dma.dmaUnmapSg(device, [{ address: 0x5000, length: 100 }]));
    world.run(dma.dmaUnmap(neighbour, 0x5000, 100));
    expect([world.core.counters.violations, world.core.usage.dmaPages]).toEqual([0, 1]);
    world.run(dma.dmaUnmap(neighbour, 0x5000, 100));
    expect([world.core.counters.violations, world.core.usage.dmaPages]).toEqual([1, 1]);
    world.run(dma.dmaUnmap(device, 0x5000, 100));
    expect([world.core.counters.violations, world.core.usage.dmaPages]).toEqual([1, 0]);
  });
});

describe('a removed device', () => {
  it('leaves no mapping; what its driver forgot is reported', () => {
    const { world, device, domain, dma } = dmaWorld();
    world.device('dev1', {}, world.core.groupOf(device).id);
    for (let i = 0; i < 3; i++) world.run(dma.dmaMap(device, 0x5000, 4096, 'to-device'));
    world.run(world.core.deviceRemove(device));
    expect(world.log.lines.at(-1)!.text).toContain('pending DMA allocations while released from device [count=3]');
    expect([domain.entries.size, world.core.usage.dmaPages]).toEqual([0, 0]);
  });
});

describe('a removed last device of a group', () => {
  it('has its lazy unmaps flushed before the default domain goes', () => {
    const { world, device, dma } = dmaWorld({ options: { dma: 'lazy' } });
    world.run(dma.dmaUnmap(device, world.run(dma.dmaMap(device, 0x5000, 4096, 'to-device')), 4096));
    world.run(world.core.deviceRemove(device));
    const start = world.clock.now;
    expect(world.iommu.calls('flush')).toHaveLength(1);
    world.settle();
    expect(world.clock.now).toBe(start);
    expect(world.log.lines).toEqual([]);
  });
});

describe('I/O virtual addresses', () => {
  it('freed ones above the limit wait for who can reach them', () => {
    const iova = new IovaAllocator(1024);
    const high = iova.alloc(1, 1024)!;
    iova.free(high, 1);
    expect(iova.alloc(1, 512)).toBe(511);
    expect(iova.alloc(1, 1024)).toBe(high);
  });

  it('never overlap, respect limit, reservation and alignment, and come back whole', () => {
    const step = fc.tuple(fc.boolean(), fc.integer({ min: 1, max: 90 }), fc.constantFrom(256, 512, 1024));
    fc.assert(fc.property(fc.array(step, { maxLength: 150 }), (steps) => {
      const iova = new IovaAllocator(1024);
      iova.reserve(300, 320);
      const live: { page: number; pages: number }[] = [];
      for (const [take, pages, limit] of steps) {
        if (!take) {
          const victim = live.splice(pages % (live.length + 1), 1)[0];
          if (victim !== undefined) iova.free(victim.page, victim.pages);
          continue;
        }
        const page = iova.alloc(pages, limit);
        if (page === undefined) continue;
        const alignment = 2 ** Math.ceil(Math.log2(pages));
        expect(page % alignment).toBe(0);
        expect(page > 0 && page + pages <= limit && (page + pages <= 300 || page >= 320)).toBe(true);
        for (const other of live) expect(page + pages <= other.page || other.page + other.pages <= page).toBe(true);
        live.push({ page, pages });
      }
      for (const { page, pages } of live) iova.free(page, pages);
      expect(iova.used).toBe(0);
      expect(iova.alloc(512, 1024)).toBe(512);
    }), { numRuns: 100 });
  });
});
