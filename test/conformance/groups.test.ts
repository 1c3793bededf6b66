/** Groups, default domains, attach and ownership: requirements C6, X1, E24, R-RACE-10, 2g; scenario 30. */
import { describe, expect, it } from 'vitest';
import { PROT_READ, PROT_WRITE } from '../../iommu/core/ops.js';
import { CoreWorld } from '../fixtures/core-world.js';
import { SoftwareDevice } from '../fixtures/software-iommu.js';

function twoDevices() {
  const world = new CoreWorld();
  const one = world.device('dev0', {}, 7);
  const two = world.device('dev1', {}, 7);
  return { world, one, two, group: world.core.groupOf(one) };
}

const attached = (world: CoreWorld, device: SoftwareDevice) => world.iommu.tables.get(device)!.domain;

describe('a group', () => {
  it('has one default domain for all its devices', () => {
    const { world, one, two, group } = twoDevices();
    expect(world.core.groupOf(two)).toBe(group);
    expect(world.core.group(7)).toBe(group);
    expect(attached(world, one)).toBe(group.defaultDomain);
    expect(attached(world, two)).toBe(group.defaultDomain);
    expect(group.defaultDomain.type).toBe('dma');
    expect(new CoreWorld({ options: { defaultDomain: 'identity' } }).device('d').name).toBe('d');
  });

  it('ends with its last device, and its default domain with it', () => {
    const { world, one, two } = twoDevices();
    world.run(world.core.deviceRemove(one));
    expect(world.iommu.domains.size).toBe(1);
    world.run(world.core.deviceRemove(two));
    expect(world.iommu.domains.size).toBe(0);
    expect(world.core.group(7)).toBeUndefined();
  });

  it('refuses a device that no driver translates or that is there already', () => {
    const { world, one } = twoDevices();
    expect(world.refused(world.core.addDevice({ name: 'stranger' }, 1))).toBe('ENODEV');
    expect(world.refused(world.core.addDevice(one, 8))).toBe('EBUSY');
    expect(world.core.group(1)).toBeUndefined();
  });

  it('forgets a device whose attach failed', () => {
    const world = new CoreWorld();
    world.iommu.failNext = { call: 'attach', code: 'ENOMEM' };
    const device = new SoftwareDevice('dev0');
    expect(world.refused(world.core.addDevice(device, 7))).toBe('ENOMEM');
    expect(world.core.group(7)).toBeUndefined();
    expect(world.iommu.domains.size).toBe(0);
    world.run(world.core.addDevice(device, 7));
  });
});

describe('attaching a domain to a group', () => {
  it('moves every device and back', () => {
    const { world, one, two, group } = twoDevices();
    const domain = world.core.domainAlloc(one, 'unmanaged');
    world.run(world.core.attachGroup(domain, group));
    expect([attached(world, one), attached(world, two)]).toEqual([domain, domain]);
    expect(world.refused(() => world.core.domainFree(domain))).toBe('EBUSY');
    world.run(world.core.detachGroup(domain, group));
    expect([attached(world, one), attached(world, two)]).toEqual([group.defaultDomain, group.defaultDomain]);
    world.core.domainFree(domain);
    expect(world.core.usage.domains).toBe(0);
  });

  it('moves none when one fails', () => {
    const { world, one, two, group } = twoDevices();
    const domain = world.core.domainAlloc(one, 'unmanaged');
    world.iommu.failNext = { call: 'attach unmanaged dev1', code: 'EINVAL' };
    expect(world.refused(world.core.attachGroup(domain, group))).toBe('EINVAL');
    expect([attached(world, one), attached(world, two)]).toEqual([group.defaultDomain, group.defaultDomain]);
    world.core.domainFree(domain);
  });

  it('refuses a second domain, a detach of another, and a stranger\'s domain', () => {
    const { world, one, group } = twoDevices();
    const [domain, other] = [world.core.domainAlloc(one, 'unmanaged'), world.core.domainAlloc(one, 'unmanaged')];
    world.run(world.core.attachGroup(domain, group));
    expect(world.refused(world.core.attachGroup(other, group))).toBe('EBUSY');
    expect(world.refused(world.core.detachGroup(other, group))).toBe('EINVAL');
    const elsewhere = new CoreWorld();
    const foreign = elsewhere.core.domainAlloc(elsewhere.device('x'), 'unmanaged');
    expect(world.refused(world.core.attachGroup(foreign, group))).toBe('EINVAL');
    expect(attached(world, one)).toBe(domain);
  });

  it('refuses while a device is bound to an address space (X1, E24, R-RACE-10)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const pasid = world.run(world.core.svaBind(device, world.process('app')));
    const domain = world.core.domainAlloc(device, 'unmanaged');
    const group = world.core.groupOf(device);
    expect(world.refused(world.core.attachGroup(domain, group))).toBe('EBUSY');
    expect(attached(world, device)).toBe(group.defaultDomain);
    world.run(world.core.svaUnbind(device, pasid));
    world.run(world.core.attachGroup(domain, group));
  });

  it('refuses an unmanaged domain while AUX is enabled, used or not (X1, E24)', () => {
    const world = new CoreWorld();
    const device = world.device('dev0');
    const domain = world.core.domainAlloc(device, 'unmanaged');
    const group = world.core.groupOf(device);
    world.run(world.core.devEnableFeature(device, 'AUX'));
    expect(world.refused(world.core.attachGroup(domain, group))).toBe('EPERM');
    world.run(world.core.devDisableFeature(device, 'AUX'));
    world.run(world.core.attachGroup(domain, group));
  });
});

describe('mapping', () => {
  it('translates, and after unmap returns nobody uses the old entry (section 5: 4)', () => {
    const stale = (defects: string[]): boolean => {
      const world = new CoreWorld({ defects });
      const device = world.device('dev0');
      const domain = world.core.domainAlloc(device, 'unmanaged');
      const iommuDomain = [...world.iommu.domains].find((candidate) => candidate === domain)!;
      world.run(world.core.attachGroup(domain, world.core.groupOf(device)));
      world.run(world.core.map(domain, 0x100, 0x20_0000, 2, PROT_READ | PROT_WRITE));
      expect(world.core.iovaToPhys(domain, 0x101, 12)).toBe(0x20_100c);
      expect(iommuDomain.translate(0x101)).toBe(0x201);
      expect(world.run(world.core.unmap(domain, 0x100, 2))).toBe(2);
      expect(world.core.iovaToPhys(domain, 0x101)).toBeUndefined();
      expect(world.story().filter((name) => name.endsWith('map'))).toEqual(['iommu:map', 'iommu:unmap']);
      return iommuDomain.translate(0x101) !== undefined;
    };
    expect(stale([])).toBe(false);
    expect(stale(['core.skip-unmap-flush'])).toBe(true);
  });

  it('refuses overlap, range and alignment and maps nothing (E28)', () => {
    const world = new CoreWorld();
    const domain = world.core.domainAlloc(world.device('dev0'), 'unmanaged');
    world.run(world.core.map(domain, 0x102, 0x1000, 1, PROT_READ));
    expect(world.refused(world.core.map(domain, 0x100, 0x20_0000, 3, PROT_READ))).toBe('EEXIST');
    expect(world.refused(world.core.map(domain, domain.endPage - 1, 0x20_0000, 2, PROT_READ))).toBe('ERANGE');
    expect(world.refused(world.core.map(domain, 0x200, 0x20_0001, 1, PROT_READ))).toBe('EINVAL');
    expect(world.core.iovaToPhys(domain, 0x100)).toBeUndefined();
    expect(world.run(world.core.unmap(domain, 0x300, 1))).toBe(0);
  });
});

describe('DMA ownership', () => {
  it('blocks the group until a domain is attached, and has one owner (C6)', () => {
    const { world, one, two, group } = twoDevices();
    const [vm1, vm2] = [{ name: 'vm1' }, { name: 'vm2' }];
    world.run(world.core.claimDmaOwner(group, vm1));
    expect([attached(world, one), attached(world, two)]).toEqual([undefined, undefined]);
    expect(world.refused(world.core.claimDmaOwner(group, vm2))).toBe('EPERM');
    expect(world.refused(world.core.claimDmaOwner(group, vm1))).toBe('EPERM');
    expect(world.refused(() => world.core.useDefaultDomain(one))).toBe('EBUSY');
    const domain = world.core.domainAlloc(one, 'unmanaged');
    world.run(world.core.attachGroup(domain, group));
    expect(world.refused(world.core.releaseDmaOwner(group, vm1))).toBe('EBUSY');
    world.run(world.core.detachGroup(domain, group));
    expect(attached(world, one)).toBeUndefined();
    expect(world.refused(world.core.releaseDmaOwner(group, vm2))).toBe('EINVAL');
    world.run(world.core.releaseDmaOwner(group, vm1));
    expect(attached(world, two)).toBe(group.defaultDomain);
    world.run(world.core.claimDmaOwner(group, vm2));
  });

  it('is refused while a kernel driver uses the group or an address space is bound (C6)', () => {
    const { world, one, group } = twoDevices();
    world.core.useDefaultDomain(one);
    expect(world.refused(world.core.claimDmaOwner(group, {}))).toBe('EPERM');
    world.core.unuseDefaultDomain(one);
    world.run(world.core.claimDmaOwner(group, {}));
    const device = world.svaDevice('dev2');
    world.run(world.core.svaBind(device, world.process('app')));
    expect(world.refused(world.core.claimDmaOwner(world.core.groupOf(device), {}))).toBe('EBUSY');
  });

  it('leaves the default domain alone when another domain is attached (C6)', () => {
    const { world, one, group } = twoDevices();
    const domain = world.core.domainAlloc(one, 'unmanaged');
    world.run(world.core.attachGroup(domain, group));
    expect(world.refused(world.core.claimDmaOwner(group, {}))).toBe('EBUSY');
    expect(attached(world, one)).toBe(domain);
  });
});

describe('removing a device', () => {
  it('answers and drops everything outstanding and ends its bonds without a drain each (2g)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const survivor = world.svaDevice('dev1');
    const mms = [1, 2, 3].map((n) => world.process(`app${n}`));
    const page = world.malloc(mms[0]!, 8);
    for (const mm of mms) world.run(world.core.svaBind(device, mm));
    world.run(world.core.svaBind(survivor, mms[0]!));
    world.core.registerDeviceFaultHandler(device, () => undefined);
    for (let i = 0; i < 4; i++) world.iommu.request(device, 1, i, page + i);
    world.iommu.request(device, 1, 8, page, { last: false });
    world.iommu.request(device, 500, 9, page);
    const start = world.clock.now;
    world.run(world.core.deviceRemove(device));
    expect(world.iommu.codes()).toEqual(Array<string>(5).fill('INVALID'));
    expect(world.clock.now - start).toBeLessThan(2000);
    expect(world.iommu.calls('svaDetach')).toEqual([]);
    expect(world.core.usage).toMatchObject({ bonds: 1, pendingRequests: 0 });
    expect([mms[0]!.hasNotifiers, mms[1]!.hasNotifiers]).toEqual([true, false]);
    expect(world.refused(world.core.svaUnbind(device, 1))).toBe('ENODEV');
    expect(world.refused(world.core.deviceRemove(device))).toBe('ENODEV');
    world.settle();
    expect(world.iommu.answers).toHaveLength(5);
    expect(world.scheduler.deadlockReport()).toEqual([]);
  });

  it('lets a bind that waits for the group see that it is gone (2g)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const removal = world.scheduler.spawn('remove', world.core.deviceRemove(device), { joined: true });
    const bind = world.scheduler.spawn('bind', world.core.svaBind(device, mm), { joined: true });
    world.settle();
    expect([removal.state, bind.state]).toEqual(['done', 'failed']);
    expect(String(bind.error)).toContain('-ENODEV');
    expect(world.core.usage).toMatchObject({ pasids: 0, bonds: 0 });
    expect(mm.users).toBe(1);
  });

  it('gives back its aux domains', () => {
    const world = new CoreWorld();
    const device = world.device('dev0');
    world.run(world.core.devEnableFeature(device, 'AUX'));
    const domain = world.core.domainAlloc(device, 'unmanaged');
    world.run(world.core.auxAttach(domain, device));
    world.run(world.core.auxAttach(domain, device));
    world.run(world.core.deviceRemove(device));
    expect(world.core.usage.pasids).toBe(0);
    world.core.domainFree(domain);
    expect(world.iommu.domains.size).toBe(0);
  });
});
