/** Containers (C2–C4, E32; drivers/vfio/container.c, v5.10 vfio.c). */
import { describe, expect, it } from 'vitest';
import { EventFd } from '../../host/eventfd.js';
import { VFIO_GROUP_GET_STATUS, VFIO_IOMMU_MAP_DMA } from '../../vfio/uapi/ioctl.js';
import { VfioWorld } from '../fixtures/vfio-world.js';

function twoDevices() {
  const world = new VfioWorld();
  const a = world.registered('0000:00:01.0'), b = world.registered('0000:00:02.0');
  const client = world.client();
  const container = client.openContainer();
  return { world, a, b, client, container, groupA: client.openGroup(1), groupB: client.openGroup(2) };
}

describe('an open container', () => {
  it('speaks version 0 and knows what its drivers know', () => {
    const { world, container } = twoDevices();
    expect(world.run(container.apiVersion())).toBe(0);
    expect([1, 3, 6, 2].map((extension) => world.run(container.checkExtension(extension)))).toEqual([1, 1, 1, 0]);
  });

  it('asks only the driver of its IOMMU once it has one', () => {
    const { world, container, groupA } = twoDevices();
    world.run(groupA.setContainer(container));
    world.run(container.setIommu(1));
    expect([1, 3, 6].map((extension) => world.run(container.checkExtension(extension)))).toEqual([1, 1, 0]);
  });

  it('refuses what is for an IOMMU while it has none: EINVAL (7.6)', () => {
    const { world, container, groupA } = twoDevices();
    expect(world.refused(container.mapDma({ iova: 0, vaddr: 0x1000, sizeBytes: 4096 }))).toBe('EINVAL');
    world.run(groupA.setContainer(container));
    expect(world.refused(container.number(VFIO_GROUP_GET_STATUS, 0))).toBe('EINVAL');
    expect(world.calls).toEqual([]);
  });

  it('hands everything else to its IOMMU, with the caller\'s memory', () => {
    const { world, container, groupA } = twoDevices();
    world.run(groupA.setContainer(container));
    world.run(container.setIommu(1));
    const { result, refusal, bytes } = world.run(container.raw(VFIO_IOMMU_MAP_DMA, new Uint8Array(32)));
    expect([result, refusal, bytes[0]]).toEqual([3, undefined, 0xab]);
    expect(world.refused(container.number(0x3b00 + 99, 0))).toBe('ENOTTY');
  });

  it('is refused through a closed descriptor: EBADF', () => {
    const { world, container } = twoDevices();
    world.run(container.close());
    expect(world.refused(container.apiVersion())).toBe('EBADF');
  });

  it('takes ioctls only where the file does: ENOTTY', () => {
    const { world, client } = twoDevices();
    const fd = client.process.open(new EventFd(world.scheduler));
    expect(world.refused(client.process.ioctl(fd, VFIO_IOMMU_MAP_DMA, 0))).toBe('ENOTTY');
    expect(world.refused(client.process.ioctl(99, VFIO_IOMMU_MAP_DMA, 0))).toBe('EBADF');
  });
});

describe('SET_IOMMU (C4, E32)', () => {
  it('is refused without a group, with EINVAL', () => {
    const { world, container } = twoDevices();
    expect(world.refused(container.setIommu('type1'))).toBe('EINVAL');
    expect(world.calls).toEqual([]);
  });

  it('is refused the second time, with EINVAL, and the first stays', () => {
    const { world, container, groupA } = twoDevices();
    world.run(groupA.setContainer(container));
    world.run(container.setIommu('type1'));
    expect(world.refusal(container.setIommu('type1v2')).message).toContain('has its IOMMU already, first');
    expect(world.calls).toEqual(['first open 1', 'first attach 1']);
  });

  it('is refused with ENODEV when no driver offers the type', () => {
    const { world, container, groupA } = twoDevices();
    world.run(groupA.setContainer(container));
    expect(world.refused(container.setIommu(2))).toBe('ENODEV');
    expect(world.calls).toEqual([]);
    world.run(container.setIommu('type1'));
  });

  it('attaches every group, in the order in which they joined', () => {
    const { world, container, groupA, groupB } = twoDevices();
    world.run(groupB.setContainer(container));
    world.run(groupA.setContainer(container));
    world.run(container.setIommu('type1'));
    expect(world.calls).toEqual(['first open 1', 'first attach 2', 'first attach 1']);
  });

  it('tries the next driver when one does not take the groups, and undoes that one\'s part', () => {
    const { world, container, groupA, groupB } = twoDevices();
    world.first.refuseGroup = 2;
    world.run(groupA.setContainer(container));
    world.run(groupB.setContainer(container));
    world.run(container.setIommu('type1v2'));
    expect(world.calls).toEqual(['first open 3', 'first attach 1', 'first detach 1', 'first release', 'second open 3', 'second attach 1', 'second attach 2']);
  });

  it('passes the last driver\'s refusal on and leaves the container without an IOMMU', () => {
    const { world, a, container, groupA } = twoDevices();
    world.first.refuseOpen = 'ENOMEM';
    world.second.refuseGroup = 1;
    world.run(groupA.setContainer(container));
    expect(world.refused(container.setIommu(3))).toBe('EPERM');
    expect(world.refused(container.setIommu(1))).toBe('ENOMEM');
    expect(world.run(container.checkExtension(6))).toBe(1);
    expect(world.core.groupOf(a.device).domain).toBeUndefined();
    world.first.refuseOpen = undefined;
    world.run(container.setIommu(1));
  });
});

describe('groups of a container', () => {
  it('attach at once when the IOMMU is set, and the IOMMU\'s refusal is SET_CONTAINER\'s (C2)', () => {
    const { world, b, container, groupA, groupB } = twoDevices();
    world.run(groupA.setContainer(container));
    world.run(container.setIommu(1));
    world.first.refuseGroup = 2;
    expect(world.refused(groupB.setContainer(container))).toBe('EPERM');
    expect(world.run(groupB.status())).toEqual({ viable: true, containerSet: false });
    expect(world.core.groupOf(b.device).ownerCount).toBe(0);
    world.first.refuseGroup = undefined;
    world.run(groupB.setContainer(container));
    expect(world.calls).toEqual(['first open 1', 'first attach 1', 'first attach 2']);
  });

  it('leave, and the last one takes the IOMMU and all of its state with it (C3)', () => {
    const { world, a, container, groupA, groupB } = twoDevices();
    world.run(groupA.setContainer(container));
    world.run(groupB.setContainer(container));
    world.run(container.setIommu(1));
    world.calls.length = 0;
    world.run(groupA.unsetContainer());
    expect(world.calls).toEqual(['first detach 1']);
    world.run(groupB.unsetContainer());
    expect(world.calls).toEqual(['first detach 1', 'first detach 2', 'first release']);
    expect(world.core.groupOf(a.device).domain).toBe(world.core.groupOf(a.device).defaultDomain);
    expect(world.refused(container.setIommu(1))).toBe('EINVAL');
    world.run(groupA.setContainer(container));
    world.run(container.setIommu(3));
  });

  it('keep the container and its IOMMU when its descriptor is closed first (2g)', () => {
    const { world, a, container, groupA, client } = twoDevices();
    world.run(groupA.setContainer(container));
    world.run(container.setIommu(1));
    world.run(container.close());
    expect(world.core.groupOf(a.device).domain?.type).toBe('unmanaged');
    const device = world.run(groupA.getDevice(a.ops.name));
    world.run(device.close());
    world.run(groupA.close());
    expect(world.calls).toEqual(['first open 1', 'first attach 1', `open ${a.ops.name}`, `close ${a.ops.name}`, 'first detach 1', 'first release']);
    expect(client.process.descriptors()).toEqual([2]);
  });
});
