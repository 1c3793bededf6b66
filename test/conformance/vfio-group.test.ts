/* oxlint-disable require-yield -- devices that have nothing to wait for */
/** Groups: opening, containers, devices, viability and ownership of DMA, the end (C1–C3, C5, C6, C17, E30, E31; 2g). */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { EventFd } from '../../host/eventfd.js';
import { VFIO_GROUP_GET_DEVICE_FD, VFIO_GROUP_GET_STATUS, VFIO_GROUP_SET_CONTAINER, VFIO_IOMMU_MAP_DMA } from '../../vfio/uapi/ioctl.js';
import { VfioWorld, type VfioDevice } from '../fixtures/vfio-world.js';

const BDF = '0000:00:01.0';

function oneDevice(options: ConstructorParameters<typeof VfioWorld>[0] = {}) {
  const world = new VfioWorld(options);
  const one = world.registered(BDF);
  const client = world.client();
  return { world, one, client };
}

function inUse(options: ConstructorParameters<typeof VfioWorld>[0] = {}) {
  const { world, one, client } = oneDevice(options);
  return { world, one, client, ...world.inUse(client, one.device), iommuGroup: world.core.groupOf(one.device) };
}

describe('opening a group (C1)', () => {
  it('is refused with ENODEV when nothing of the group is registered', () => {
    const { world, client } = oneDevice();
    expect(world.refused(() => client.openGroup(9))).toBe('ENODEV');
    expect(world.vfio.groupIds).toEqual([1]);
    expect(client.process.descriptors()).toEqual([]);
  });

  it('is refused with EBUSY while it is open, and possible again afterwards (E30)', () => {
    const { world, client } = oneDevice();
    const group = client.openGroup(1);
    expect(world.refused(() => client.openGroup(1))).toBe('EBUSY');
    expect(world.refused(() => world.client().openGroup(1))).toBe('EBUSY');
    world.run(group.close());
    world.client().openGroup(1);
  });

  it('is refused with EBUSY while devices of the previous open are in use', () => {
    const { world, client, group } = inUse();
    const device = world.run(group.getDevice(BDF));
    world.run(group.close());
    expect(world.refused(() => client.openGroup(1))).toBe('EBUSY');
    world.run(device.close());
    world.run(client.openGroup(1).setContainer(client.openContainer()));
  });

  it('is refused with ESRCH for a process that is ending, and the group stays free', () => {
    const { world, client } = oneDevice();
    world.run(client.process.exit());
    expect(world.refused(() => client.openGroup(1))).toBe('ESRCH');
    world.client().openGroup(1);
  });
});

describe('GET_STATUS', () => {
  it('tells what is viable and in a container', () => {
    const { world, client } = oneDevice();
    const group = client.openGroup(1);
    expect(world.run(group.status())).toEqual({ viable: true, containerSet: false });
    world.run(group.setContainer(client.openContainer()));
    expect(world.run(group.status())).toEqual({ viable: true, containerSet: true });
  });

  it('writes argsz back and ignores flags that came in', () => {
    const { world, client } = oneDevice();
    const group = client.openGroup(1);
    const { bytes } = world.run(group.raw(VFIO_GROUP_GET_STATUS, Uint8Array.of(8, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x5a)));
    expect([...bytes]).toEqual([8, 0, 0, 0, 1, 0, 0, 0, 0x5a]);
  });

  it('is refused with EINVAL for a short argsz and EFAULT for bad memory (E27)', () => {
    const { world, client } = oneDevice();
    const group = client.openGroup(1);
    const { refusal, bytes } = world.run(group.raw(VFIO_GROUP_GET_STATUS, Uint8Array.of(7, 0, 0, 0, 9, 0, 0, 0)));
    expect([refusal?.code, bytes[4]]).toEqual(['EINVAL', 9]);
    expect(world.refused(client.process.ioctl(group.fd, VFIO_GROUP_GET_STATUS, 0))).toBe('EFAULT');
    const readOnly = world.run(client.process.mm.mmapFile(Uint8Array.of(8, 0, 0, 0, 0, 0, 0, 0), { prot: 1 }));
    expect(world.refused(client.process.ioctl(group.fd, VFIO_GROUP_GET_STATUS, readOnly))).toBe('EFAULT');
  });
});

describe('SET_CONTAINER (C2)', () => {
  it('takes the DMA of the group from the kernel until UNSET_CONTAINER gives it back (C6)', () => {
    const { world, one, client } = oneDevice();
    const iommuGroup = world.core.groupOf(one.device);
    const container = client.openContainer(), group = client.openGroup(1);
    world.run(group.setContainer(container));
    expect([iommuGroup.ownerCount, iommuGroup.domain]).toEqual([1, undefined]);
    expect(world.refused(() => { world.core.useDefaultDomain(one.device); })).toBe('EBUSY');
    world.run(group.unsetContainer());
    expect([iommuGroup.ownerCount, iommuGroup.domain]).toEqual([0, iommuGroup.defaultDomain]);
    world.core.useDefaultDomain(one.device);
  });

  it('is refused with EINVAL inside a container', () => {
    const { world, client, group, iommuGroup } = inUse();
    const other = client.openContainer();
    expect(world.refused(group.setContainer(other))).toBe('EINVAL');
    expect(iommuGroup.domain?.type).toBe('unmanaged');
  });

  it.each([
    ['EBADF for a closed descriptor', 77, 'EBADF'],
    ['EINVAL for a negative one', -1, 'EINVAL'],
  ] as const)('is refused with %s', (_what, fd, code) => {
    const { world, one, client } = oneDevice();
    const group = client.openGroup(1);
    expect(world.refused(group.setContainer(fd))).toBe(code);
    expect(world.core.groupOf(one.device).ownerCount).toBe(0);
  });

  it('is refused with EINVAL for another kind of file, and with EFAULT for bad memory', () => {
    const { world, one, client } = oneDevice();
    const group = client.openGroup(1);
    expect(world.refused(group.setContainer(client.process.open(new EventFd(world.scheduler))))).toBe('EINVAL');
    expect(world.refused(group.setContainer(group.fd))).toBe('EINVAL');
    expect(world.refused(client.process.ioctl(group.fd, VFIO_GROUP_SET_CONTAINER, 4))).toBe('EFAULT');
    expect(world.core.groupOf(one.device).ownerCount).toBe(0);
  });

  it('is refused with EPERM while somebody else owns the DMA, and the group is not viable meanwhile (C6)', () => {
    const { world, one, client } = oneDevice();
    const group = client.openGroup(1), container = client.openContainer();
    world.core.useDefaultDomain(one.device);
    expect(world.run(group.status())).toEqual({ viable: false, containerSet: false });
    expect(world.refused(group.setContainer(container))).toBe('EPERM');
    world.core.unuseDefaultDomain(one.device);
    const owner = {};
    world.run(world.core.claimDmaOwner(world.core.groupOf(one.device), owner));
    expect(world.refused(group.setContainer(container))).toBe('EPERM');
    world.run(world.core.releaseDmaOwner(world.core.groupOf(one.device), owner));
    expect(world.run(group.status()).viable).toBe(true);
    world.run(group.setContainer(container));
  });

  it('is refused with EBUSY while address spaces are bound to the device', () => {
    const world = new VfioWorld();
    const device = world.svaDevice('sva');
    const { core } = world;
    const iommuGroup = core.groupOf(device);
    world.vfio.register({ device, ops: world.mediated('unused', 50).ops, group: { id: iommuGroup.id, iommuGroup } });
    const client = world.client();
    const group = client.openGroup(iommuGroup.id);
    const pasid = world.run(core.svaBind(device, client.process.mm));
    expect(world.refused(group.setContainer(client.openContainer()))).toBe('EBUSY');
    expect(world.run(group.status()).containerSet).toBe(false);
    world.run(core.svaUnbind(device, pasid));
  });
});

describe('UNSET_CONTAINER (C3, E31)', () => {
  it('is refused with EINVAL outside of a container', () => {
    const { world, client } = oneDevice();
    expect(world.refused(client.openGroup(1).unsetContainer())).toBe('EINVAL');
  });

  it('is refused with EBUSY while a device is open, one descriptor after the other', () => {
    const { world, group, iommuGroup } = inUse();
    const first = world.run(group.getDevice(BDF)), second = world.run(group.getDevice(BDF));
    expect(world.refused(group.unsetContainer())).toBe('EBUSY');
    world.run(first.close());
    expect(world.refused(group.unsetContainer())).toBe('EBUSY');
    expect(iommuGroup.domain?.type).toBe('unmanaged');
    world.run(second.close());
    world.run(group.unsetContainer());
    expect(world.run(group.status())).toEqual({ viable: true, containerSet: false });
  });

  it('with the defect vfio.unset-with-open-devices takes the domain from under an open device', () => {
    const { world, group, iommuGroup } = inUse({ vfioDefects: ['vfio.unset-with-open-devices'] });
    world.run(group.getDevice(BDF));
    world.run(group.unsetContainer());
    expect(iommuGroup.domain).toBe(iommuGroup.defaultDomain);
  });

  it('with the defect vfio.keep-dma-owner leaves the group blocked for everybody else', () => {
    const { world, one, group } = inUse({ vfioDefects: ['vfio.keep-dma-owner'] });
    world.run(group.close());
    expect(world.refused(() => { world.core.useDefaultDomain(one.device); })).toBe('EBUSY');
  });
});

describe('GET_DEVICE_FD (C5)', () => {
  it('opens the device once for all of its descriptors, which exec closes', () => {
    const { world, client, group } = inUse();
    const first = world.run(group.getDevice(BDF)), second = world.run(group.getDevice(BDF));
    expect(first.fd).not.toBe(second.fd);
    expect(world.calls.filter((call) => call.endsWith(BDF))).toEqual([`open ${BDF}`]);
    world.run(first.close());
    expect(world.calls.filter((call) => call.endsWith(BDF))).toEqual([`open ${BDF}`]);
    world.run(client.process.exec('other', { id: 900, name: 'other', memory: client.process.mm.memory, frames: world.frames, scheduler: world.scheduler }));
    expect(world.calls.filter((call) => call.endsWith(BDF))).toEqual([`open ${BDF}`, `close ${BDF}`]);
  });

  it('is refused with EINVAL without a container and without an IOMMU', () => {
    const { world, client } = oneDevice();
    const group = client.openGroup(1);
    expect(world.refusal(group.getDevice(BDF)).message).toBe('-EINVAL: group 1 is in no container');
    world.run(group.setContainer(client.openContainer()));
    expect(world.refusal(group.getDevice(BDF)).message).toBe('-EINVAL: group 1 is in a container without an IOMMU');
    expect(world.calls).toEqual([]);
  });

  it('is refused with ENODEV for a name that the group does not have', () => {
    const { world, group } = inUse();
    world.registered('0000:00:02.0');
    expect(world.refused(group.getDevice('0000:00:02.0'))).toBe('ENODEV');
    expect(world.refused(group.getDevice(''))).toBe('ENODEV');
    world.run(group.unsetContainer());
  });

  it('is refused with EFAULT for bad memory and EINVAL for a name without end', () => {
    const { world, client, group } = inUse();
    expect(world.refused(client.process.ioctl(group.fd, VFIO_GROUP_GET_DEVICE_FD, 1))).toBe('EFAULT');
    const page = world.malloc(client.process.mm, 2) * 4096;
    world.run(client.process.mm.fill(page, 0x30, 8192));
    expect(world.refused(client.process.ioctl(group.fd, VFIO_GROUP_GET_DEVICE_FD, page))).toBe('EINVAL');
  });

  it('passes the driver\'s refusal on, and the device is as before', () => {
    const { world, one, group, client } = inUse();
    const before = client.process.descriptors();
    one.ops.refuseOpen = 'EIO';
    expect(world.refused(group.getDevice(BDF))).toBe('EIO');
    expect(client.process.descriptors()).toEqual(before);
    world.run(group.unsetContainer());
    expect(world.calls).not.toContain(`open ${BDF}`);
    world.run(world.vfio.unregister(one.device));
    expect(one.ops.requests).toEqual([]);
  });

  it('closes the device again when the process ends while it opens', () => {
    const { world, group, client } = inUse();
    const opening = world.scheduler.spawn('open', group.getDevice(BDF), { joined: true });
    world.clock.run({ untilNs: world.clock.now + 50 });
    world.run(client.process.exit());
    world.settle();
    expect(opening.error).toMatchObject({ code: 'ESRCH' });
    expect(world.calls.slice(-4)).toEqual([`open ${BDF}`, `close ${BDF}`, 'first detach 1', 'first release']);
  });

  it('knows no other commands: ENOTTY', () => {
    const { world, client, group } = inUse();
    expect(world.refused(client.process.ioctl(group.fd, VFIO_IOMMU_MAP_DMA, 0))).toBe('ENOTTY');
  });
});

describe('viability (C6)', () => {
  it.each([
    ['without a driver', undefined, false, true],
    ['with pci-stub', 'pci-stub', false, true],
    ['that is a bridge', 'pcieport', true, true],
    ['with a kernel driver', 'idxd', false, false],
  ] as const)('of a group with another device %s', (_what, driver, bridge, viable) => {
    const { world, client, container, group } = inUse();
    world.strangers.set(1, [{ name: '0000:00:01.1', driver, bridge }]);
    expect(world.run(group.status()).viable).toBe(viable);
    if (viable) {
      world.run(group.getDevice(BDF));
      return;
    }
    expect(world.refusal(group.getDevice(BDF)).message).toBe('-EINVAL: group 1 is not viable: 0000:00:01.1 belongs to idxd');
    expect(client.process.descriptors()).toEqual([container.fd, group.fd]);
    world.strangers.clear();
    world.run(group.getDevice(BDF));
  });

  it('outlasts the driver of a member that takes it back, and ends when another driver takes it', () => {
    const world = new VfioWorld();
    const a = world.registered(BDF, 1);
    world.strangers.set(1, [{ name: 'late', driver: 'vfio-pci', bridge: false }]);
    const { group } = world.inUse(world.client(), a.device);
    expect(world.run(group.status()).viable).toBe(false);
    const late = world.mediated('late', 60);
    world.vfio.register({ device: { name: 'late' }, ops: late.ops, group: { id: 1, iommuGroup: world.core.groupOf(a.device) } });
    expect(world.run(group.status()).viable).toBe(true);
    world.run(world.vfio.unregister(world.vfio.group(1)!.devices[1]!.registration.device));
    expect(world.run(group.status()).viable).toBe(true);
    world.strangers.set(1, [{ name: 'late', driver: 'idxd', bridge: false }]);
    expect(world.run(group.status()).viable).toBe(false);
    expect(world.refused(group.getDevice(BDF))).toBe('EINVAL');
  });

  it('is never in question for a mediated device', () => {
    const world = new VfioWorld();
    world.mediated('uuid', 40);
    world.strangers.set(40, [{ name: 'x', driver: 'y', bridge: false }]);
    const client = world.client(), group = client.openGroup(40), container = client.openContainer();
    world.run(group.setContainer(container));
    world.run(container.setIommu('type1'));
    expect(world.run(group.status())).toEqual({ viable: true, containerSet: true });
    world.run(group.getDevice('uuid'));
  });
});

describe('the end of a process (2g)', () => {
  it('leaves nothing behind, whoever is closed first', () => {
    fc.assert(fc.property(fc.shuffledSubarray([0, 1, 2, 3], { minLength: 4 }), (order) => {
      const { world, one, client, container, group, iommuGroup } = inUse();
      const device = world.run(group.getDevice(BDF)), again = world.run(group.getDevice(BDF));
      const open = [container, group, device, again];
      order.forEach((which, i) => {
        world.run(open[which]!.close());
        const users = [group, device, again].filter((handle) => !order.slice(0, i + 1).some((closed) => open[closed] === handle));
        expect(iommuGroup.domain?.type === 'unmanaged').toBe(users.length > 0);
      });
      expect(world.calls.slice(-3)).toEqual([`close ${BDF}`, 'first detach 1', 'first release']);
      expect([iommuGroup.ownerCount, iommuGroup.domain]).toEqual([0, iommuGroup.defaultDomain]);
      expect(client.process.descriptors()).toEqual([]);
      world.run(world.vfio.unregister(one.device));
      expect(one.ops.requests).toEqual([]);
    }), { numRuns: 24 });
  });

  it('releases everything when it is killed', () => {
    const { world, client, group, iommuGroup } = inUse();
    world.run(group.getDevice(BDF));
    world.run(client.process.exit());
    expect(world.calls.slice(-3)).toEqual([`close ${BDF}`, 'first detach 1', 'first release']);
    expect(iommuGroup.ownerCount).toBe(0);
    expect(world.core.usage).toMatchObject({ bonds: 0, pasids: 0 });
  });

  it('leaves a forked child with what it has open', () => {
    const { world, client, group, iommuGroup } = inUse();
    const device = world.run(group.getDevice(BDF));
    const child = world.run(client.process.fork(500));
    world.run(client.process.exit());
    expect(iommuGroup.domain?.type).toBe('unmanaged');
    expect(world.run(world.client(child).calls.raw(device.fd, 0x3b00 + 107, Uint8Array.of(16, ...Array.from({ length: 15 }, () => 0)))).result).toBe(0);
    world.run(child.exit());
    expect(iommuGroup.ownerCount).toBe(0);
  });
});

describe('unregistering a device (C17)', () => {
  function leaving(world: VfioWorld, { device }: VfioDevice) {
    const task = world.scheduler.spawn('rmmod', world.vfio.unregister(device), { joined: true });
    world.clock.run({ untilNs: world.clock.now });
    return task;
  }

  it('takes no time when nobody has it open, and its group disappears', () => {
    const { world, one } = oneDevice();
    const started = world.clock.now;
    world.run(world.vfio.unregister(one.device));
    expect([world.clock.now, one.ops.requests, world.vfio.groupIds]).toEqual([started, [], []]);
    expect(world.log.lines).toEqual([]);
    expect(world.refused(world.vfio.unregister(one.device))).toBe('ENODEV');
  });

  it('asks at once and every 10 s, logs once, and ends with the last descriptor', () => {
    const { world, one, group } = inUse();
    const first = world.run(group.getDevice(BDF)), second = world.run(group.getDevice(BDF));
    const started = world.clock.now;
    const task = leaving(world, one);
    world.clock.run({ untilNs: started + 25e9 });
    expect(one.ops.requests.map(({ count, timeNs }) => [count, timeNs - started])).toEqual([[0, 0], [1, 10e9], [2, 20e9]]);
    expect(world.log.lines.map(({ text }) => text)).toEqual([`${BDF}: Device is currently in use, task "rmmod" blocked until device is released`]);
    world.run(first.close());
    expect(task.ended).toBe(false);
    world.run(second.close());
    world.clock.run({ stop: () => task.ended });
    expect([task.state, world.clock.now - started < 26e9]).toEqual(['done', true]);
  });

  it('lets others open it as long as somebody has it open, and nobody afterwards', () => {
    const { world, one, group } = inUse();
    const first = world.run(group.getDevice(BDF));
    const task = leaving(world, one);
    const second = world.run(group.getDevice(BDF));
    world.run(first.close());
    expect(task.ended).toBe(false);
    world.run(second.close());
    world.clock.run({ stop: () => task.ended });
    expect(world.refused(group.getDevice(BDF))).toBe('EINVAL');
  });

  it('takes the group out of its container, whose user then finds it dead (v6.12)', () => {
    const { world, one, container, group, iommuGroup } = inUse();
    world.run(world.vfio.unregister(one.device));
    expect(world.calls.slice(-2)).toEqual(['first detach 1', 'first release']);
    expect(iommuGroup.ownerCount).toBe(0);
    expect(world.refused(group.status())).toBe('ENODEV');
    expect(world.refused(group.setContainer(container))).toBe('ENODEV');
    expect(world.refused(group.unsetContainer())).toBe('EINVAL');
    world.run(group.close());
  });

  it('leaves the group alone while it has other devices', () => {
    const world = new VfioWorld();
    const a = world.registered(BDF, 1), b = world.registered('0000:00:01.1', 1);
    const { group } = world.inUse(world.client(), a.device);
    world.run(world.vfio.unregister(b.device));
    expect(world.run(group.status()).containerSet).toBe(true);
    expect(world.vfio.groupIds).toEqual([1]);
    expect(world.vfio.group(1)!.registrations.map(({ device }) => device.name)).toEqual([BDF]);
    expect(world.refused(group.getDevice('0000:00:01.1'))).toBe('ENODEV');
  });

  it('makes place for a new group of the same number while the old one is still open', () => {
    const { world, one, client, group } = inUse();
    world.run(world.vfio.unregister(one.device));
    world.vfio.register({ device: one.device, ops: one.ops, group: { id: 1, iommuGroup: world.core.groupOf(one.device) } });
    const again = client.openGroup(1);
    expect(world.run(again.status())).toEqual({ viable: true, containerSet: false });
    expect(world.refused(group.status())).toBe('ENODEV');
  });

  it('with the defect vfio.unregister-does-not-wait goes while its user has it open', () => {
    const { world, one, group } = inUse({ vfioDefects: ['vfio.unregister-does-not-wait'] });
    world.run(group.getDevice(BDF));
    world.run(world.vfio.unregister(one.device));
    expect(world.calls).not.toContain(`close ${BDF}`);
  });

  it('is told in the trace', () => {
    const { world, one, group } = inUse();
    const device = world.run(group.getDevice(BDF));
    const task = leaving(world, one);
    world.run(device.close());
    world.clock.run({ stop: () => task.ended });
    expect(world.story('vfio:')).toEqual([
      'vfio:register', 'vfio:group_set_container', 'vfio:set_iommu', 'vfio:open_device', 'vfio:request', 'vfio:close_device', 'vfio:group_unset_container', 'vfio:unregister',
    ]);
  });
});

describe('pinning by a vendor driver (C10)', () => {
  const quiet = { *dmaUnmap() {} };

  function vendor() {
    const world = new VfioWorld();
    const { device, ops } = world.mediated('uuid', 40);
    const client = world.client(), group = client.openGroup(40), container = client.openContainer();
    return { world, device, ops, group, container, vfio: world.vfio };
  }

  it('goes to the container\'s IOMMU while the device opens and until it has closed', () => {
    const { world, device, ops, group, container, vfio } = vendor();
    world.first.pasid = 5;
    let addresses: number[] = [];
    ops.onOpen = function* () {
      vfio.registerNotifier(device, quiet);
      addresses = yield* vfio.pinPages(device, [0x1000, 0x3000], 3);
    };
    world.run(group.setContainer(container));
    expect(vfio.pasidOf(device)).toBeUndefined();
    world.run(container.setIommu(1));
    expect(vfio.pasidOf(device)).toBe(5);
    world.run(group.getDevice('uuid'));
    expect(addresses).toEqual([0x10_1000, 0x10_3000]);
    expect(vfio.unpinPages(device, [0x1000, 0x2000])).toBe(1);
    world.run(vfio.dmaRw(device, 0x5000, new Uint8Array(3), true));
    expect(world.calls.at(-1)).toBe('dmaRw 20480 3 true');
    vfio.unregisterNotifier(device, quiet);
    expect(world.first.iommus[0]!.notifiers.size).toBe(0);
  });

  it('is refused without an IOMMU, for an unknown device, and for no or too many pages', () => {
    const { world, device, vfio, group, container } = vendor();
    world.run(group.setContainer(container));
    expect(world.refused(vfio.pinPages(device, [0], 3))).toBe('EINVAL');
    expect(world.refused(() => vfio.unpinPages(device, [0]))).toBe('EINVAL');
    expect(world.refused(vfio.dmaRw(device, 0, new Uint8Array(1), false))).toBe('EINVAL');
    expect(world.refused(() => { vfio.registerNotifier(device, quiet); })).toBe('ENODEV');
    expect(world.refused(vfio.pinPages({ name: 'stranger' }, [0], 3))).toBe('ENODEV');
    expect(vfio.pasidOf({ name: 'stranger' })).toBeUndefined();
    world.run(container.setIommu(1));
    expect(world.refused(vfio.pinPages(device, [], 3))).toBe('EINVAL');
    expect(world.refused(vfio.pinPages(device, Array.from({ length: 513 }, (_, i) => i * 4096), 3))).toBe('E2BIG');
    world.run(group.unsetContainer());
  });

  it('is refused with EINVAL when the group has other devices', () => {
    const { world, device, vfio, group, container } = vendor();
    world.mediated('second', 40);
    world.run(group.setContainer(container));
    world.run(container.setIommu(1));
    expect(world.refused(vfio.pinPages(device, [0], 3))).toBe('EINVAL');
  });

  it('keeps the group in its container while pages are being pinned', () => {
    const { world, device, vfio, group, container } = vendor();
    world.run(group.setContainer(container));
    world.run(container.setIommu(1));
    vfio.registerNotifier(device, quiet);
    const pinning = world.scheduler.spawn('pin', vfio.pinPages(device, [0x1000], 3), { joined: true });
    world.clock.run({ untilNs: world.clock.now + 10 });
    expect(world.refused(group.unsetContainer())).toBe('EBUSY');
    world.run(group.close());
    expect(pinning.state).toBe('blocked');
    world.settle();
    expect([pinning.result, world.calls.slice(-2)]).toEqual([[0x10_1000], ['first detach 40', 'first release']]);
  });
});

describe('registration', () => {
  it('is refused with EBUSY the second time', () => {
    const { world, one } = oneDevice();
    const iommuGroup = world.core.groupOf(one.device);
    expect(world.refused(() => { world.vfio.register({ device: one.device, ops: one.ops, group: { id: 1, iommuGroup } }); })).toBe('EBUSY');
    expect(world.vfio.group(1)!.devices.length).toBe(1);
  });
});
