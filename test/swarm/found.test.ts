/** What the swarm has found, in its shortest form. */
import { describe, expect, it } from 'vitest';
import { isErrno } from '../../sim/errno.js';
import { PassthroughMachine } from './machine.js';
import { uuidOf } from './runner.js';

describe('found by the swarm', () => {
  it('a kernel driver that binds while a user claims the group is refused, at whatever moment it comes (C6)', () => {
    const machine = new PassthroughMachine();
    const [mine, other] = ['0000:00:02.0', '0000:00:02.1'] as const;
    machine.run(machine.bindDriver(mine, 'vfio-pci'));
    const client = machine.clientOf(machine.process('vmm'));
    const container = client.openContainer(), group = client.openGroup(machine.pci.groupOf(machine.device(mine)).id);
    const iommuGroup = machine.core.groupOf(machine.device(mine));
    let claimed = 0, bound = 0;
    for (let afterNs = 0; afterNs < 3_000; afterNs += 50) {
      const claim = machine.scheduler.spawn('claim', group.setContainer(container), { joined: true });
      machine.clock.run({ untilNs: machine.clock.now + afterNs, stop: () => claim.ended });
      const bind = machine.scheduler.spawn('bind', machine.bindDriver(other, 'host'), { joined: true });
      machine.settle();
      // one of the two, and the group belongs to it
      expect([afterNs, [claim.state, bind.state].toSorted()]).toEqual([afterNs, ['done', 'failed']]);
      expect([claim, bind].every(({ state, error }) => state === 'done' || isErrno(error))).toBe(true);
      expect(iommuGroup.ownerCount).toBe(1);
      expect(iommuGroup.domain?.type).toBe(claim.state === 'done' ? undefined : 'dma');
      if (claim.state === 'done') {
        claimed++;
        machine.run(group.unsetContainer());
      } else {
        bound++;
        machine.run(machine.drivers.unbind('host', machine.device(other)));
      }
      expect(iommuGroup.ownerCount).toBe(0);
    }
    expect([claimed > 0, claimed + bound]).toEqual([true, 60]);
  });

  it('a page that cannot be reached is EFAULT before the limit is reached, also where a driver has pinned pages already (C7, C8, C10)', () => {
    const machine = new PassthroughMachine();
    machine.mdevs.registerParent(machine.parents.vendor.device, machine.parents.vendor);
    machine.run(machine.mdevs.create(machine.parents.vendor.device, 'vendor-1', uuidOf(1)));
    machine.run(machine.bindDriver('0000:00:01.0', 'vfio-pci'));
    const process = machine.process('vmm', { memlockLimitPages: 4 }), client = machine.clientOf(process);
    const vaddr = machine.run(process.mm.mmap(5 * 4096));
    // four pages may be locked; the fifth of the mapping is forbidden
    machine.run(process.mm.mprotect(vaddr + 4 * 4096, 4096, 0));
    const container = client.openContainer(), vendor = client.openGroup(machine.mdevs.find(uuidOf(1))!.group!);
    machine.run(vendor.setContainer(container));
    machine.run(container.setIommu('type1v2'));
    machine.run(container.mapDma({ iova: 0, vaddr, sizeBytes: 5 * 4096 }));
    machine.run(vendor.getDevice(uuidOf(1)));
    machine.run(machine.parents.vendor.live.get(uuidOf(1))!.pin([0, 4096], 3));
    const group = client.openGroup(machine.pci.groupOf(machine.device('0000:00:01.0')).id);
    const before = [machine.frames.pinnedPages, process.mm.lockedPages];
    expect(machine.refused(group.setContainer(container))).toBe('EFAULT');
    expect([machine.frames.pinnedPages, process.mm.lockedPages]).toEqual(before);
    machine.run(process.exit());
    expect(machine.frames.pinnedPages).toBe(0);
  });
});
