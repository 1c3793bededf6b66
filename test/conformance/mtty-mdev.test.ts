/** The sample parent under the mediated device core: types over a common stock of ports, attributes, and who may be removed (C11–C14, 7.5, E34). */
import { beforeEach, describe, expect, it } from 'vitest';
import { EventFd } from '../../host/eventfd.js';
import { MttyWorld, uuid } from './mtty-world.js';

const REQ = 4;
const SECOND = 1_000_000_000;

describe('types of the sample parent (C14)', () => {
  let world: MttyWorld;
  const available = (): number[] => world.parent.types.map((type) => type.availableInstances());

  beforeEach(() => {
    world = new MttyWorld();
  });

  it('are mtty-1 and mtty-2 of a parent that is no PCI function', () => {
    const [parent] = world.mdevs.parents;
    expect([parent!.device.name, parent!.types.map(({ id, type }) => [id, type.label, type.deviceApi])]).toEqual(['mtty', [['mtty-1', 'Single port serial', 'vfio-pci'], ['mtty-2', 'Dual port serial', 'vfio-pci']]]);
  });

  it('share 24 ports', () => {
    expect(available()).toEqual([24, 12]);
    world.create(1, 'mtty-2');
    expect(available()).toEqual([22, 11]);
    world.create(2, 'mtty-1');
    expect(available()).toEqual([21, 10]);
    world.run(world.mdevs.remove(uuid(1)));
    world.run(world.mdevs.remove(uuid(2)));
    expect(available()).toEqual([24, 12]);
  });

  it('refuse when the ports are gone: EUSERS, and nothing changed (C12, E34)', () => {
    for (let n = 0; n < 23; n++) world.create(n);
    expect(available()).toEqual([1, 0]);
    expect(world.refused(world.mdevs.create(world.parent.device, 'mtty-2', uuid(99)))).toBe('EUSERS');
    expect([available(), world.mdevs.find(uuid(99)), world.parent.devices.length]).toEqual([[1, 0], undefined, 23]);
    world.create(23);
    expect(world.refused(world.mdevs.create(world.parent.device, 'mtty-1', uuid(99)))).toBe('EUSERS');
  });

  it('count ports, not devices, when creates overlap: ENOSPC of the driver behind the core\'s back', () => {
    for (let n = 0; n < 23; n++) world.create(n);
    const mdev = { name: uuid(50), uuid: uuid(50), type: world.parent.types[1]! };
    expect(world.refused(world.parent.create(mdev))).toBe('ENOSPC');
    expect(available()).toEqual([1, 0]);
  });
});

describe('a card as mediated device', () => {
  it('has the sample\'s vendor attribute, a group of its own, and no iommu_device (Y1)', () => {
    const world = new MttyWorld();
    world.create(7);
    const mdev = world.mdevs.find(uuid(7))!;
    expect([mdev.attributes.map((attribute) => [attribute.name, attribute.read(), 'write' in attribute]), mdev.instance!.iommuDevice]).toEqual([[['vendor/sample_mdev_dev', `This is MDEV ${uuid(7)}`, false]], undefined]);
    expect(world.vfio.groupIds).toEqual([mdev.group]);
  });

  it('is not removed while it is open: EBUSY (7.5)', () => {
    const world = new MttyWorld();
    world.create(1);
    const user = world.user();
    const device = world.open(user, 1);
    expect(world.refused(world.mdevs.remove(uuid(1)))).toBe('EBUSY');
    expect([world.mdevs.state(uuid(1)), world.parent.devices.length]).toEqual(['OPEN', 1]);
    world.run(device.close());
    world.run(world.mdevs.remove(uuid(1)));
    expect([world.mdevs.state(uuid(1)), world.parent.devices.length]).toEqual(['ABSENT', 0]);
    world.run(user.process.exit());
  });

  it('is asked back every 10 s when its parent can unplug it (C17, 7.5)', () => {
    const world = new MttyWorld({ config: { hotUnplug: true } });
    world.create(1);
    const user = world.user();
    const device = world.open(user, 1);
    const eventFd = new EventFd(world.scheduler);
    world.run(device.setIrqs({ index: REQ, eventfds: [user.process.open(eventFd)] }));
    const removal = world.scheduler.spawn('remove', world.mdevs.remove(uuid(1)), { joined: true });
    world.clock.run({ untilNs: world.clock.now + 25 * SECOND });
    expect([eventFd.signals, removal.state, world.mdevs.state(uuid(1))]).toEqual([3, 'blocked', 'REMOVING']);
    world.run(device.close());
    world.run(removal.join());
    expect([world.mdevs.state(uuid(1)), world.parent.types[0]!.availableInstances()]).toEqual(['ABSENT', 24]);
  });

  it('ends with its parent', () => {
    const world = new MttyWorld();
    world.create(1);
    world.create(2, 'mtty-2');
    world.run(world.mdevs.unregisterParent(world.parent.device));
    expect([world.parent.devices, world.vfio.groupIds, world.mdevs.parents]).toEqual([[], [], []]);
    expect(world.refused(world.mdevs.create(world.parent.device, 'mtty-1', uuid(3)))).toBe('ENODEV');
  });

  it('works in a container of version 1, without DMA: no driver pins there (C10)', () => {
    const world = new MttyWorld();
    world.create(1);
    const user = world.user();
    const group = user.client.openGroup(world.mdevs.find(uuid(1))!.group!);
    world.run(group.setContainer(user.container));
    world.run(user.container.setIommu('type1'));
    const device = world.run(group.getDevice(uuid(1)));
    const vaddr = world.run(user.process.mm.mmap(8192));
    world.run(user.container.mapDma({ iova: 0, vaddr, sizeBytes: 8192 }));
    device.writeValue(7, 4, 2, 4);
    for (const [offset, value] of [[0x110, 16], [0x114, 16], [0x118, 4096], [0x120, 1]] as const) device.writeValue(0, offset, 4, value);
    world.settle();
    expect([device.readValue(0, 0x124, 4), world.frames.pinnedPages]).toEqual([0x402, 0]);
    device.writeValue(0, 7, 1, 0x5a);
    expect(device.readValue(0, 7, 1)).toBe(0x5a);
  });
});
