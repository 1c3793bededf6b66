/** Domains on VT-d: which tables they have, what attach, unmap and detach send, auxiliary domains (X1, X2, E22–E24), domain ids. */
import { describe, expect, it } from 'vitest';
import { PROT_READ, PROT_WRITE, type IommuDomain } from '../../iommu/core/ops.js';
import { DomainIds } from '../../iommu/intel-vtd/driver/domain-ids.js';
import type { VtdDomain } from '../../iommu/intel-vtd/driver/domain.js';
import { DriverWorld, type DriverWorldOptions, type TestFunction } from './vtd-driver-world.js';

const WAIT = 'd WAIT 0x200000025';
const RW = PROT_READ | PROT_WRITE;
const PLAIN = { sourceId: 0x18, pasidBits: 0, ats: false, pri: false };

function domainOf(world: DriverWorld, device: TestFunction): VtdDomain {
  return world.core.groupOf(device).domain as VtdDomain;
}

const MODES: [name: string, options: DriverWorldOptions, dma: string, unmanaged: string][] = [
  ['scalable', {}, 'first-level', 'second-level'],
  ['scalable, second level preferred', { driver: { firstLevel: false } }, 'second-level', 'second-level'],
  ['first level only', { capabilities: { 'second-level': false } }, 'first-level', 'first-level'],
  ['second level only', { capabilities: { 'first-level': false } }, 'second-level', 'second-level'],
  ['legacy', { capabilities: { scalable: false } }, 'second-level', 'second-level'],
];

describe.each(MODES)('in a %s unit', (_name, options, dma, unmanaged) => {
  it('DMA and unmanaged domains have their tables, and hardware walks them', () => {
    const world = new DriverWorld(options).start();
    const nvme = world.function(PLAIN);
    expect(domainOf(world, nvme).kind).toBe(dma);
    const own = world.driver.domainAlloc('unmanaged') as VtdDomain;
    expect(own.kind).toBe(unmanaged);
    world.run(world.driver.attach(own, nvme));
    own.map(0x200, 0x4000_0000, 512, RW);
    own.map(0x401, 0x1234_5000, 3, PROT_READ);
    expect([0x200, 0x2ff, 0x401, 0x403].map((page) => world.dma(nvme, page))).toEqual([0x40000, 0x400ff, 0x12345, 0x12347]);
    expect([world.dma(nvme, 0x2ff, true), world.dma(nvme, 0x402, true), world.dma(nvme, 0x404)]).toEqual([0x400ff, undefined, undefined]);
    expect([own.iovaToPhys(0x2ff, 5), own.iovaToPhys(0x404, 0)]).toEqual([0x400f_f005, undefined]);
  });

  it('an unmapped page is not reachable after the flush, and a table that went is returned', () => {
    const world = new DriverWorld(options).start();
    const nvme = world.function(PLAIN);
    const domain = domainOf(world, nvme);
    domain.map(0x200, 0x4000_0000, 512, RW);
    domain.map(0x400, 0x1234_5000, 1, RW);
    expect([world.dma(nvme, 0x200), world.dma(nvme, 0x400)]).toEqual([0x40000, 0x12345]);
    const before = domain.table!.tables;
    expect(domain.unmap(0x400, 512)).toBe(1);
    // still cached: that is why a flush is needed
    expect(world.dma(nvme, 0x400)).toBe(0x12345);
    world.run(world.driver.flush(domain, 0x400, 512));
    expect([world.dma(nvme, 0x400), world.dma(nvme, 0x200), domain.table!.tables]).toEqual([undefined, 0x40000, before - 1]);
    domain.map(0x400, 0x5000_0000, 1, RW);
    expect(world.dma(nvme, 0x400)).toBe(0x50000);
  });

  it('another domain replaces the one before, and detach blocks', () => {
    const world = new DriverWorld(options).start();
    const nvme = world.function(PLAIN);
    const [a, b] = [world.driver.domainAlloc('unmanaged'), world.driver.domainAlloc('unmanaged')];
    a.map(1, 0xa000, 1, RW);
    b.map(1, 0xb000, 1, RW);
    world.run(world.driver.attach(a, nvme));
    expect(world.dma(nvme, 1)).toBe(0xa);
    world.run(world.driver.attach(b, nvme));
    expect(world.dma(nvme, 1)).toBe(0xb);
    expect(world.refused(world.driver.detach(a, nvme))).toBe('EINVAL');
    world.run(world.driver.detach(b, nvme));
    expect(world.dma(nvme, 1)).toBe(undefined);
    world.run(world.driver.attach(world.driver.domainAlloc('blocked'), nvme));
    expect(world.dma(nvme, 1)).toBe(undefined);
    world.driver.domainFree(a);
    world.driver.domainFree(b);
  });

  it('an identity domain lets addresses through, with and without pass-through', () => {
    for (const driver of [{}, { passThrough: false }]) {
      const world = new DriverWorld({ ...options, driver: { ...options.driver, ...driver } }).start();
      const nvme = world.function(PLAIN);
      const identity = world.driver.domainAlloc('identity');
      world.run(world.driver.attach(identity, nvme));
      expect([world.dma(nvme, 0x1234, true), world.dma(nvme, 0xf_0000)]).toEqual([0x1234, 0xf_0000]);
      expect(identity.iovaToPhys(0x1234, 8)).toBe(0x123_4008);
    }
  });

  it('refuses mappings it cannot hold: overlap EEXIST, beyond ERANGE, no rights EINVAL, none at all EINVAL', () => {
    const world = new DriverWorld(options).start();
    const domain: IommuDomain = world.driver.domainAlloc('unmanaged');
    domain.map(8, 0x8000, 4, RW);
    expect(world.refused(() => domain.map(11, 0, 2, RW))).toBe('EEXIST');
    expect(world.refused(() => domain.map(domain.endPage - 1, 0, 2, RW))).toBe('ERANGE');
    expect(world.refused(() => domain.map(0x100, 0, 1, 0))).toBe('EINVAL');
    expect(world.refused(() => domain.map(0x100, 0x123, 1, RW))).toBe('EINVAL');
    expect(world.refused(() => world.driver.domainAlloc('blocked').map(1, 0, 1, RW))).toBe('EINVAL');
    expect(domain.iovaToPhys(12, 0)).toBe(undefined);
    domain.map(domain.endPage - 1, 0, 1, RW);
  });
});

describe('apertures and page sizes', () => {
  it('follow the kind of table and what units report', () => {
    const sizes = (options: DriverWorldOptions): [number, readonly number[]][] => {
      const world = new DriverWorld(options).start();
      return (['dma', 'unmanaged'] as const).map((type) => world.driver.domainAlloc(type)).map((domain) => [Math.log2(domain.endPage) + 12, domain.pageSizes]);
    };
    expect(sizes({})).toEqual([[47, [1, 512, 262144]], [48, [1, 512, 262144]]]);
    expect(sizes({ capabilities: { 'aw-bits': 39, 'second-level-superpages': ['2M'], 'first-level-1g': false } })).toEqual([[47, [1, 512]], [39, [1, 512]]]);
    expect(sizes({ capabilities: { 'aw-bits': 57, 'second-level-superpages': [] } })).toEqual([[47, [1, 512, 262144]], [57, [1]]]);
  });
});

describe('what is sent', () => {
  it('for an unmap: pages of the domain with the leaf-only hint; for everything, the whole domain (as recorded)', () => {
    const world = new DriverWorld().start();
    const nvme = world.function(PLAIN);
    const domain = domainOf(world, nvme);
    domain.map(0xffff0, 0x10_0000, 4, RW);
    domain.unmap(0xffff0, 4);
    world.take();
    world.run(world.driver.flush(domain, 0xffff0, 4));
    expect(world.takeDescriptors()).toEqual(['d P_IOTLB 0x20036 0xffff0042', WAIT]);
    world.run(world.driver.flush(domain, 0, domain.endPage));
    expect(world.takeDescriptors()).toEqual(['d P_IOTLB 0x20026 0x0', WAIT]);
  });

  it('for an unmap of second-level tables: IOTLB with drains, the domain when the range is too large', () => {
    const world = new DriverWorld({ capabilities: { scalable: false } }).start();
    const nvme = world.function(PLAIN);
    world.take();
    world.run(world.driver.flush(domainOf(world, nvme), 0xfffc0, 32));
    world.run(world.driver.flush(domainOf(world, nvme), 0, 2 ** 20));
    expect(world.takeDescriptors()).toEqual(['d IOTLB 0x200f2 0xfffc0045', WAIT, 'd IOTLB 0x200e2 0x0', WAIT]);
  });

  it('for an unmap without page-selective invalidation: always the domain', () => {
    const world = new DriverWorld({ capabilities: { scalable: false, psi: false } }).start();
    const nvme = world.function(PLAIN);
    world.take();
    world.run(world.driver.flush(domainOf(world, nvme), 0xfffc0, 1));
    expect(world.takeDescriptors()).toEqual(['d IOTLB 0x200e2 0x0', WAIT]);
  });

  it('for a domain of three devices: one IOTLB descriptor, and one per device TLB', () => {
    const world = new DriverWorld().start();
    const devices = [0x20, 0x28, 0x30].map((sourceId) => world.function({ sourceId, ats: sourceId !== 0x30 }));
    const domain = world.driver.domainAlloc('unmanaged');
    for (const device of devices) world.run(world.driver.attach(domain, device));
    world.take();
    world.run(world.driver.flush(domain, 0x100, 1));
    expect(world.takeDescriptors().map((note) => note.split(' ')[1])).toEqual(['IOTLB', 'DEVTLB', 'DEVTLB', 'WAIT']);
    expect(world.refused(() => world.driver.domainFree(domain))).toBe('EBUSY');
  });

  it('when a domain leaves: PASID cache, IOTLB of its kind, device TLB, each waited for', () => {
    const world = new DriverWorld().start();
    const dsa = world.function();
    world.take();
    world.run(world.driver.detach(domainOf(world, dsa), dsa));
    expect(world.takeDescriptors()).toEqual([
      'd PASIDC 0x20017 0x0', WAIT, 'd P_IOTLB 0x20026 0x0', WAIT, 'd DEVTLB 0x2000000003 0x7ffffffffffff001', WAIT,
    ]);
    const own = world.driver.domainAlloc('unmanaged');
    world.run(world.driver.attach(own, dsa));
    world.take();
    world.run(world.driver.detach(own, dsa));
    expect(world.takeDescriptors().slice(0, 4)).toEqual(['d PASIDC 0x20017 0x0', WAIT, 'd IOTLB 0x200e2 0x0', WAIT]);
  });

  it('when a domain leaves in legacy mode: context cache, IOTLB, device TLB', () => {
    const world = new DriverWorld({ capabilities: { scalable: false } }).start();
    const dsa = world.function();
    expect(dsa.switched).toEqual(['ats on 12']);
    world.take();
    world.run(world.driver.detach(domainOf(world, dsa), dsa));
    expect(world.takeDescriptors()).toEqual(['d CC 0x2000020031 0x0', WAIT, 'd IOTLB 0x200e2 0x0', WAIT, 'd DEVTLB 0x2000000003 0x7ffffffffffff001', WAIT]);
  });
});

describe('domain ids', () => {
  it('are handed out from 2 on, reused, and run out with ENOSPC; what was attached stays (CAP.ND)', () => {
    const world = new DriverWorld({ capabilities: { 'domain-ids': 16 } }).start();
    const devices = Array.from({ length: 14 }, (_, i) => world.function({ ...PLAIN, sourceId: 0x20 + 8 * i }));
    const [first] = devices;
    domainOf(world, first!).map(5, 0x5000, 1, RW);
    const fresh = world.driver.domainAlloc('unmanaged');
    expect(world.refused(world.driver.attach(fresh, first!))).toBe('ENOSPC');
    expect(world.dma(first!, 5)).toBe(5);
    world.run(world.core.deviceRemove(devices[3]!));
    world.run(world.driver.attach(fresh, first!));
    expect((fresh as VtdDomain).idIn(world.driver.units[0]!)).toBe(5);
  });

  it('are per unit and counted', () => {
    const ids = new DomainIds('dmar9', 4);
    expect([ids.alloc(), ids.alloc(), ids.alloc()]).toEqual([2, 3, 4]);
    ids.free(3);
    expect([ids.alloc(), ids.alloc(), ids.used]).toEqual([3, 5, 4]);
    expect(() => ids.free(9)).toThrow('nobody has it');
  });
});

describe('auxiliary domains (X1, X2)', () => {
  function parent(): { world: DriverWorld; dsa: TestFunction } {
    const world = new DriverWorld().start();
    const dsa = world.function({ siov: true });
    world.run(world.driver.enableFeature(dsa, 'AUX'));
    world.take();
    return { world, dsa };
  }

  it('have a PASID each and are isolated from each other and from the whole device (scenario 16)', () => {
    const { world, dsa } = parent();
    const [a, b] = [world.driver.domainAlloc('unmanaged'), world.driver.domainAlloc('unmanaged')];
    a.map(0x10, 0xa000, 1, RW);
    b.map(0x10, 0xb000, 1, RW);
    world.run(world.driver.auxAttach(a, dsa));
    world.run(world.driver.auxAttach(b, dsa));
    const [pa, pb] = [world.driver.auxGetPasid(a, dsa), world.driver.auxGetPasid(b, dsa)];
    expect(pa).not.toBe(pb);
    expect([world.dma(dsa, 0x10, true, pa), world.dma(dsa, 0x10, true, pb), world.dma(dsa, 0x10)]).toEqual([0xa, 0xb, undefined]);
    world.run(world.driver.auxDetach(a, dsa));
    expect([world.dma(dsa, 0x10, true, pa), world.dma(dsa, 0x10, true, pb)]).toEqual([undefined, 0xb]);
    expect(world.refused(() => world.driver.auxGetPasid(a, dsa))).toBe('EINVAL');
    expect(world.core.usage.pasids).toBe(1);
  });

  it('keep one PASID on every device, until the last one', () => {
    const { world, dsa } = parent();
    const second = world.function({ sourceId: 0x28, siov: true });
    world.run(world.driver.enableFeature(second, 'AUX'));
    const domain = world.driver.domainAlloc('unmanaged');
    world.run(world.driver.auxAttach(domain, dsa));
    world.run(world.driver.auxAttach(domain, second));
    const pasid = world.driver.auxGetPasid(domain, dsa);
    expect(world.driver.auxGetPasid(domain, second)).toBe(pasid);
    world.run(world.driver.auxDetach(domain, dsa));
    expect([world.driver.auxGetPasid(domain, second), world.core.usage.pasids]).toEqual([pasid, 1]);
    world.run(world.driver.auxDetach(domain, second));
    expect(world.core.usage.pasids).toBe(0);
  });

  it('are flushed with their PASID', () => {
    const { world, dsa } = parent();
    const domain = world.driver.domainAlloc('unmanaged');
    domain.map(0x10, 0xa000, 1, RW);
    world.run(world.driver.auxAttach(domain, dsa));
    const pasid = world.driver.auxGetPasid(domain, dsa);
    expect(world.dma(dsa, 0x10, false, pasid)).toBe(0xa);
    domain.unmap(0x10, 1);
    world.take();
    world.run(world.driver.flush(domain, 0x10, 1));
    expect(world.takeDescriptors()).toEqual(['d IOTLB 0x300f2 0x10040', `d P_DEVTLB 0x${pasid}00200008 0x10000`, WAIT]);
    expect(world.dma(dsa, 0x10, false, pasid)).toBe(undefined);
  });

  it('are refused: AUX off and wrong type EPERM (E22, E23), twice EBUSY, no PASID left ENODEV; nothing changes', () => {
    const { world, dsa } = parent();
    const plain = world.function({ sourceId: 0x28, siov: true });
    const domain = world.driver.domainAlloc('unmanaged');
    expect(world.refused(world.driver.auxAttach(domain, plain))).toBe('EPERM');
    expect(world.refused(world.driver.auxAttach(world.driver.domainAlloc('dma'), dsa))).toBe('EPERM');
    expect(world.refused(world.driver.auxDetach(domain, dsa))).toBe('EINVAL');
    world.run(world.driver.auxAttach(domain, dsa));
    expect(world.refused(world.driver.auxAttach(domain, dsa))).toBe('EBUSY');
    const narrow = world.function({ sourceId: 0x30, siov: true, pasidBits: 1 });
    world.run(world.driver.enableFeature(narrow, 'AUX'));
    const other = world.driver.domainAlloc('unmanaged');
    expect(world.refused(world.driver.auxAttach(other, narrow))).toBe('ENODEV');
    expect([world.core.usage.pasids, (other as VtdDomain).attachments]).toEqual([1, []]);
    world.driver.domainFree(other);
  });

  it('keep whole-device domains of users away, but not the kernel\'s own (E24)', () => {
    const { world, dsa } = parent();
    expect(world.refused(world.driver.attach(world.driver.domainAlloc('unmanaged'), dsa))).toBe('EPERM');
    world.run(world.driver.attach(world.driver.domainAlloc('dma'), dsa));
  });

  it('go with the function, and give their PASID back', () => {
    const { world, dsa } = parent();
    const domain = world.driver.domainAlloc('unmanaged');
    world.run(world.driver.auxAttach(domain, dsa));
    world.run(world.driver.release(dsa));
    expect(world.core.usage.pasids).toBe(0);
    world.driver.domainFree(domain);
    // the same slot can be filled again
    world.driver.probe(dsa);
    world.run(world.driver.attach(world.driver.domainAlloc('dma'), dsa));
  });
});

describe('refusals of the driver', () => {
  it('before start, for process domains, and for devices it does not know', () => {
    const early = new DriverWorld();
    expect(early.refused(() => early.driver.domainAlloc('dma'))).toBe('ENODEV');
    const world = early.start();
    expect(world.refused(() => world.driver.domainAlloc('sva'))).toBe('EINVAL');
    const domain = world.driver.domainAlloc('dma');
    expect(world.refused(world.driver.attach(domain, { name: 'stranger' }))).toBe('ENODEV');
    world.run(world.driver.release({ name: 'stranger' }));
  });
});
