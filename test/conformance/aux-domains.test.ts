/** Aux domains: requirements X1, X2, E22, E23; flow 2c. */
import { describe, expect, it } from 'vitest';
import { PROT_READ } from '../../iommu/core/ops.js';
import { CoreWorld } from '../fixtures/core-world.js';
import { SoftwareDevice } from '../fixtures/software-iommu.js';

function auxWorld() {
  const world = new CoreWorld();
  const device = world.device('dev0');
  world.run(world.core.devEnableFeature(device, 'AUX'));
  return { world, device };
}

describe('an aux domain', () => {
  it('gets one PASID on its first attach, keeps it on further devices, loses it with the last (X2)', () => {
    const { world, device } = auxWorld();
    const second = world.device('dev1');
    world.run(world.core.devEnableFeature(second, 'AUX'));
    const domain = world.core.domainAlloc(device, 'unmanaged');
    world.run(world.core.auxAttach(domain, device));
    const pasid = world.core.auxGetPasid(domain, device);
    expect(pasid).toBeGreaterThan(0);
    world.run(world.core.auxAttach(domain, second));
    expect(world.core.auxGetPasid(domain, second)).toBe(pasid);
    world.run(world.core.auxDetach(domain, device));
    expect(world.core.usage.pasids).toBe(1);
    expect(world.core.auxGetPasid(domain, second)).toBe(pasid);
    world.run(world.core.auxDetach(domain, second));
    expect(world.core.usage.pasids).toBe(0);
  });

  it('has a PASID of its own beside other aux domains and bound address spaces (X2, section 5: 2)', () => {
    const { world, device } = auxWorld();
    world.run(world.core.devEnableFeature(device, 'IOPF'));
    world.run(world.core.devEnableFeature(device, 'SVA'));
    const domains = [1, 2].map(() => world.core.domainAlloc(device, 'unmanaged'));
    for (const domain of domains) world.run(world.core.auxAttach(domain, device));
    const pasids = domains.map((domain) => world.core.auxGetPasid(domain, device));
    pasids.push(world.run(world.core.svaBind(device, world.process('app'))));
    expect(new Set(pasids).size).toBe(3);
    expect(world.core.findMm(pasids[0]!)).toBeUndefined();
  });

  it('is refused where AUX is off (E22), for another type (E23), and for a stranger (X1)', () => {
    const { world, device } = auxWorld();
    const off = world.device('dev1');
    const domain = world.core.domainAlloc(device, 'unmanaged');
    expect(world.refused(world.core.auxAttach(domain, off))).toBe('EPERM');
    for (const type of ['dma', 'identity', 'blocked'] as const) {
      expect(world.refused(world.core.auxAttach(world.core.domainAlloc(device, type), device))).toBe('EPERM');
    }
    expect(world.refused(world.core.auxAttach(domain, new SoftwareDevice('x')))).toBe('ENODEV');
    expect(world.iommu.calls('auxAttach')).toEqual([]);
    expect(world.core.usage.pasids).toBe(0);
  });

  it('answers EINVAL for a PASID or a detach it has not (X2)', () => {
    const { world, device } = auxWorld();
    const domain = world.core.domainAlloc(device, 'unmanaged');
    expect(world.refused(() => world.core.auxGetPasid(domain, device))).toBe('EINVAL');
    expect(world.refused(world.core.auxDetach(domain, device))).toBe('EINVAL');
    world.run(world.core.auxAttach(domain, device));
    world.run(world.core.auxDetach(domain, device));
    expect(world.refused(() => world.core.auxGetPasid(domain, device))).toBe('EINVAL');
  });

  it('counts attaches of one device: two mediated devices of one container (X2)', () => {
    const { world, device } = auxWorld();
    const domain = world.core.domainAlloc(device, 'unmanaged');
    world.run(world.core.auxAttach(domain, device));
    world.run(world.core.auxAttach(domain, device));
    expect(world.iommu.calls('auxAttach')).toHaveLength(1);
    world.run(world.core.auxDetach(domain, device));
    expect(world.core.auxGetPasid(domain, device)).toBeGreaterThan(0);
    expect(world.refused(() => world.core.domainFree(domain))).toBe('EBUSY');
    world.run(world.core.auxDetach(domain, device));
    world.core.domainFree(domain);
  });

  it('is attached to nothing when the driver finds no PASID (X1)', () => {
    const { world, device } = auxWorld();
    const domain = world.core.domainAlloc(device, 'unmanaged');
    world.iommu.failNext = { call: 'auxAttach', code: 'ENODEV' };
    expect(world.refused(world.core.auxAttach(domain, device))).toBe('ENODEV');
    world.core.domainFree(domain);
  });

  it('maps like any domain, and leaves the device\'s own domain alone (X2, 2c)', () => {
    const { world, device } = auxWorld();
    const domains = [1, 2].map(() => world.core.domainAlloc(device, 'unmanaged'));
    for (const domain of domains) world.run(world.core.auxAttach(domain, device));
    world.run(world.core.map(domains[0]!, 0x10, 0x1000, 1, PROT_READ));
    world.run(world.core.map(domains[1]!, 0x10, 0x2000, 1, PROT_READ));
    expect(domains.map((domain) => world.core.iovaToPhys(domain, 0x10))).toEqual([0x1000, 0x2000]);
    const group = world.core.groupOf(device);
    expect(world.iommu.tables.get(device)!.domain).toBe(group.defaultDomain);
    world.run(world.core.auxDetach(domains[0]!, device));
    expect(world.core.iovaToPhys(domains[1]!, 0x10)).toBe(0x2000);
  });
});
