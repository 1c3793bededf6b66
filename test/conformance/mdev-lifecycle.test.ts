/** The life of one mediated device: requirements C12–C15, C17, Y1, 7.5, E34, E35; drivers/vfio/mdev of v5.10. */
import { describe, expect, it } from 'vitest';
import { ERRNO, Errno } from '../../sim/errno.js';
import { Random } from '../../sim/random.js';
import { isUuid, parseUuid, randomUuid, readUuid } from '../../mdev/uuid.js';
import type { VfioRegistration } from '../../vfio/device.js';
import { Vfio } from '../../vfio/core/vfio.js';
import { MdevWorld, outcome, uuid, type SampleOptions, type SampleParent } from './mdev-world.js';

const SECOND = 1_000_000_000;
const PARENT = '0000:6a:01.0';

function oneParent(options: SampleOptions = {}, defects: string[] = []): { world: MdevWorld; parent: SampleParent } {
  const world = new MdevWorld(defects);
  return { world, parent: world.parent(PARENT, options) };
}

describe('a UUID', () => {
  it('has 36 characters, and one more may follow, whichever (C12, create_store)', () => {
    const text = '83B8F4F2-509F-382F-3C1E-E6BFE0FA1001';
    for (const written of [text, `${text}\n`, `${text}x`]) expect(parseUuid(written)).toBe(text.toLowerCase());
    expect(readUuid(text)).toBe(text.toLowerCase());
    expect(readUuid(`${text}\n`)).toBeUndefined();
  });

  it.each([
    ['empty', ''], ['one short', '83b8f4f2-509f-382f-3c1e-e6bfe0fa100'], ['two long', '83b8f4f2-509f-382f-3c1e-e6bfe0fa1001\n\n'],
    ['no hexadecimal digit', '83b8f4f2-509f-382f-3c1e-e6bfe0fa100g'], ['a hyphen elsewhere', '83b8f4f-2509f-382f-3c1e-e6bfe0fa1001'],
    ['no hyphens', '83b8f4f2509f382f3c1ee6bfe0fa10010000'], ['a space in front', ' 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001'],
  ])('is refused when it is %s (C12, E34)', (_what, written) => {
    const { world, parent } = oneParent();
    const before = world.picture();
    expect(world.refusal(world.mdevs.create(parent.device, 'sample-1', written)).errno).toBe(-22);
    expect(world.picture()).toEqual(before);
    expect(parent.calls).toEqual([]);
  });

  it('out of a seed is version 4, and the same for the same seed', () => {
    const many = (seed: number): string[] => {
      const random = new Random(seed);
      return Array.from({ length: 50 }, () => randomUuid(random));
    };
    expect(many(7)).toEqual(many(7));
    expect(many(7)).not.toEqual(many(8));
    expect(new Set(many(7)).size).toBe(50);
    for (const one of many(7)) {
      expect(isUuid(one)).toBe(true);
      expect(one).toMatch(/^.{14}4.{4}[89ab]/);
    }
  });
});

describe('create', () => {
  it('makes a VFIO device in a group of its own (C12, Y1)', () => {
    const { world, parent } = oneParent();
    expect(world.mdevs.state(uuid(1))).toBe('ABSENT');
    const mdev = world.run(world.mdevs.create(parent.device, 'sample-1', `${uuid(1).toUpperCase()}\n`));
    expect([mdev.name, mdev.uuid, mdev.typeId, mdev.type.name, mdev.group]).toEqual([uuid(1), uuid(1), 'sample-1', '1', 0]);
    expect(world.mdevs.state(uuid(1))).toBe('ACTIVE');
    expect(world.mdevs.find(uuid(1).toUpperCase())).toBe(mdev);
    world.create(parent, 2, 'sample-2');
    expect(world.vfio.groupIds).toEqual([0, 1]);
    expect(parent.available).toBe(2);
    expect(world.log.lines.map(({ text }) => text)).toEqual([
      `sample ${PARENT}: MDEV: Registered`, `vfio_mdev ${uuid(1)}: Adding to iommu group 0`, `vfio_mdev ${uuid(1)}: MDEV: group_id = 0`,
      `vfio_mdev ${uuid(2)}: Adding to iommu group 1`, `vfio_mdev ${uuid(2)}: MDEV: group_id = 1`,
    ]);
    expect(world.story('mdev:')).toEqual(['mdev:register_parent', 'mdev:create', 'mdev:create']);
  });

  it('takes the lowest group number that is free, beside those of PCI devices', () => {
    const { world, parent } = oneParent();
    expect(world.iommuGroups.reserve()).toBe(0);
    world.create(parent, 1);
    expect(world.iommuGroups.reserve()).toBe(2);
    expect(world.mdevs.find(uuid(1))!.group).toBe(1);
    expect(world.iommuGroups.list).toEqual([]);
    world.run(world.mdevs.remove(uuid(1)));
    world.create(parent, 2);
    expect(world.mdevs.find(uuid(2))!.group).toBe(1);
    expect(() => world.iommuGroups.release(7)).toThrow('IOMMU group 7 was not reserved');
  });

  it('refuses a UUID that is taken anywhere, in whatever state (C12, E34)', () => {
    const { world, parent } = oneParent();
    const other = world.parent('0000:6a:02.0');
    parent.createNs = parent.removeNs = 100;
    const again = (): string => `${world.refused(world.mdevs.create(other.device, 'sample-2', uuid(1)))} ${world.refused(world.mdevs.create(parent.device, 'sample-1', uuid(1)))}`;
    world.start(world.mdevs.create(parent.device, 'sample-1', uuid(1)));
    expect([world.mdevs.state(uuid(1)), again()]).toEqual(['CREATING', 'EEXIST EEXIST']);
    world.pass(100);
    const before = world.picture();
    expect([world.mdevs.state(uuid(1)), again()]).toEqual(['ACTIVE', 'EEXIST EEXIST']);
    expect(world.picture()).toEqual(before);
    world.start(world.mdevs.remove(uuid(1)));
    expect([world.mdevs.state(uuid(1)), again()]).toEqual(['REMOVING', 'EEXIST EEXIST']);
    world.settle();
    world.run(world.mdevs.create(other.device, 'sample-2', uuid(1)));
    expect(other.calls).toEqual(['create 01']);
  });

  it('refuses when no instance is left, and has one more after a remove (C12, E34)', () => {
    const { world, parent } = oneParent({ instances: 2 });
    world.create(parent, 1);
    world.create(parent, 2, 'sample-2');
    const before = world.picture();
    expect(world.refusal(world.mdevs.create(parent.device, 'sample-1', uuid(3)))).toMatchObject({ code: 'EUSERS', errno: -87, message: expect.stringContaining('no instance of sample-1 left') as string });
    expect(world.picture()).toEqual(before);
    world.run(world.mdevs.remove(uuid(1)));
    world.create(parent, 3);
  });

  it('refuses in the kernel\'s order: UUID, duplicate, parent, type, instances, the parent\'s driver (C12)', () => {
    const { world, parent } = oneParent({ instances: 1 });
    const stranger = { name: 'stranger' };
    parent.refuseCreate = 'ENOMEM';
    expect(world.refused(world.mdevs.create(stranger, 'none', 'bad'))).toBe('EINVAL');
    expect(world.refused(world.mdevs.create(stranger, 'none', uuid(1)))).toBe('ENODEV');
    expect(world.refused(world.mdevs.create(parent.device, 'none', uuid(1)))).toBe('ENOENT');
    expect(world.refused(world.mdevs.create(parent.device, 'sample-1', uuid(1)))).toBe('ENOMEM');
    parent.refuseCreate = undefined;
    world.create(parent, 1);
    parent.refuseCreate = 'ENOMEM';
    expect(world.refused(world.mdevs.create(stranger, 'none', uuid(1)))).toBe('EEXIST');
    expect(world.refused(world.mdevs.create(parent.device, 'sample-1', uuid(2)))).toBe('EUSERS');
    expect([ERRNO.EEXIST, ERRNO.EUSERS, ERRNO.ENODEV, ERRNO.EAGAIN]).toEqual([17, 87, 19, 11]);
  });

  it('passes on what the parent\'s driver says and leaves nothing behind (C12)', () => {
    const { world, parent } = oneParent();
    const before = world.picture();
    parent.refuseCreate = 'EIO';
    parent.createNs = 50;
    const task = world.start(world.mdevs.create(parent.device, 'sample-1', uuid(1)));
    expect(world.mdevs.state(uuid(1))).toBe('CREATING');
    expect(world.sysfs.exists(`/sys/bus/mdev/devices/${uuid(1)}`)).toBe(false);
    world.pass(50);
    expect(outcome(task)).toBe('EIO');
    expect(world.picture()).toEqual(before);
    parent.refuseCreate = undefined;
    world.create(parent, 1);
    expect(world.mdevs.find(uuid(1))!.group).toBe(0);
  });

  it('ends the instance again when VFIO does not take it', () => {
    class FullVfio extends Vfio {
      override register(registration: VfioRegistration): void {
        throw new Errno('EBUSY', `no room for ${registration.ops.name}`);
      }
    }
    const plain = new MdevWorld();
    const vfio = new FullVfio({ scheduler: plain.scheduler, log: plain.log, owners: plain.core, groupMembers: () => [], iommuDrivers: [] });
    const world = new MdevWorld([], { vfio });
    const parent = world.parent(PARENT);
    const before = world.picture();
    expect(world.refused(world.mdevs.create(parent.device, 'sample-1', uuid(1)))).toBe('EBUSY');
    expect(parent.calls).toEqual(['create 01', 'remove 01']);
    expect(world.picture()).toEqual(before);
    expect(world.iommuGroups.reserve()).toBe(0);
  });

  it.each([['remove'], ['mdev_type'], ['iommu_group'], ['vendor']])('refuses a second file %s in the device\'s directory', (name) => {
    const { world, parent } = oneParent();
    const before = world.picture();
    parent.attributes = [{ name: 'vendor', read: () => '' }, { name, read: () => '' }];
    expect(world.refused(world.mdevs.create(parent.device, 'sample-1', uuid(1)))).toBe('EEXIST');
    expect(parent.calls).toEqual(['create 01', 'remove 01']);
    expect(world.picture()).toEqual(before);
  });

  it('is not serialized against other creates (C15)', () => {
    const { world, parent } = oneParent({ instances: 1 });
    parent.createNs = 100;
    const slow = world.start(world.mdevs.create(parent.device, 'sample-1', uuid(1)));
    // the parent counts the instance when its create starts, so the core sees that none is left
    expect(world.refused(world.mdevs.create(parent.device, 'sample-1', uuid(2)))).toBe('EUSERS');
    expect(outcome(slow)).toBe('blocked');
    world.settle();
    expect(outcome(slow)).toBe('done');
    expect(world.mdevs.devices.map(({ name }) => name)).toEqual([uuid(1)]);
  });

  it('tells VFIO on which device the isolation rests, or that there is none (Y1)', () => {
    const { world, parent } = oneParent();
    const asked = (n: number) => {
      world.run(world.use(uuid(n)));
      const registration = world.containerIommu.groups.at(-1)!.registrations[0]!;
      expect(registration.group).toEqual({ id: world.mdevs.find(uuid(n))!.group });
      return registration.iommuDevice!();
    };
    world.create(parent, 1);
    expect(asked(1)).toBeUndefined();
    parent.iommuDevice = parent.device;
    world.create(parent, 2);
    expect(asked(2)).toBe(parent.device);
  });
});

describe('a device in use', () => {
  it('is OPEN from the first open to the end of the last close (7.5)', () => {
    const { world, parent } = oneParent();
    world.create(parent, 1);
    parent.openNs = 100;
    const opening = world.start(world.use(uuid(1)));
    expect([world.mdevs.state(uuid(1)), opening.state]).toEqual(['OPEN', 'blocked']);
    world.pass(100);
    const user = opening.result!;
    expect([world.mdevs.state(uuid(1)), parent.instance(uuid(1)).isOpen]).toEqual(['OPEN', true]);
    world.start(user.close());
    expect(world.mdevs.state(uuid(1))).toBe('OPEN');
    world.pass(100);
    expect([world.mdevs.state(uuid(1)), parent.instance(uuid(1)).isOpen]).toEqual(['ACTIVE', false]);
  });

  it('stays ACTIVE when its parent refuses the open', () => {
    const { world, parent } = oneParent();
    world.create(parent, 1);
    parent.instance(uuid(1)).refuseOpen = 'EPERM';
    const before = world.picture();
    expect(world.refused(world.use(uuid(1)))).toBe('EPERM');
    expect(world.picture()).toEqual(before);
  });

  it('is the parent\'s own device to its user', () => {
    const { world, parent } = oneParent();
    world.create(parent, 1);
    world.run(world.use(uuid(1)));
    const { ops } = world.containerIommu.groups[0]!.registrations[0]!;
    expect([ops.name, ops.info().regions, ops.regionInfo(0).sizeBytes, ops.irqInfo(0).count]).toEqual([uuid(1), 9, 16, 1]);
    expect([ops.write(4, Uint8Array.of(1, 2)), ops.read(3, new Uint8Array(4))]).toEqual([2, 4]);
    expect([...parent.instance(uuid(1)).registers.subarray(4, 6)]).toEqual([1, 2]);
    world.run(ops.reset());
    expect(parent.instance(uuid(1)).registers[4]).toBe(0);
    expect(world.refused(() => ops.mmap(0, 4096))).toBe('EINVAL');
    expect(ops).toMatchObject({ feature: undefined, ioctl: undefined });
  });
});

describe('remove', () => {
  it('ends the device, its group and its instance (C13)', () => {
    const { world, parent } = oneParent();
    world.create(parent, 1);
    world.run(world.mdevs.remove(uuid(1)));
    expect([world.mdevs.state(uuid(1)), world.vfio.groupIds, parent.available]).toEqual(['ABSENT', [], 4]);
    expect(parent.calls).toEqual(['create 01', 'remove 01']);
    expect(world.log.lines.slice(-2).map(({ text }) => text)).toEqual([`vfio_mdev ${uuid(1)}: Removing from iommu group 0`, `vfio_mdev ${uuid(1)}: MDEV: detaching iommu`]);
    expect(world.story('mdev:').slice(-2)).toEqual(['mdev:removing', 'mdev:remove']);
  });

  it.each([['1', true], ['1\n', true], ['0x1', true], ['+2', true], ['010', true], ['0', false], ['0x0\n', false], ['00', false]])('of %j: removed %s (kstrtoul)', (value, removed) => {
    const { world, parent } = oneParent();
    world.create(parent, 1);
    world.run(world.mdevs.remove(uuid(1), value));
    expect(world.mdevs.state(uuid(1))).toBe(removed ? 'ABSENT' : 'ACTIVE');
  });

  it.each([[''], ['-1'], ['yes'], ['1 '], ['1\n\n'], ['08'], ['0x']])('refuses %j', (value) => {
    const { world, parent } = oneParent();
    world.create(parent, 1);
    const before = world.picture();
    expect(world.refused(world.mdevs.remove(uuid(1), value))).toBe('EINVAL');
    expect(world.picture()).toEqual(before);
  });

  it('is refused with EAGAIN while another removes or creates, with ENODEV afterwards (C13, E35)', () => {
    const { world, parent } = oneParent();
    parent.createNs = parent.removeNs = 100;
    world.start(world.mdevs.create(parent.device, 'sample-1', uuid(1)));
    expect(world.refusal(world.mdevs.remove(uuid(1))).errno).toBe(-11);
    expect(world.mdevs.state(uuid(1))).toBe('CREATING');
    world.pass(100);
    const first = world.start(world.mdevs.remove(uuid(1)));
    expect(world.refusal(world.mdevs.remove(uuid(1))).errno).toBe(-11);
    expect(parent.calls).toEqual(['create 01', 'remove 01']);
    world.settle();
    expect(outcome(first)).toBe('done');
    expect(world.refusal(world.mdevs.remove(uuid(1))).errno).toBe(-19);
    expect(parent.available).toBe(4);
  });

  it('only logs what the parent\'s driver says against it (C13)', () => {
    const { world, parent } = oneParent();
    world.create(parent, 1);
    parent.refuseRemove = 'EBUSY';
    world.run(world.mdevs.remove(uuid(1)));
    expect(world.mdevs.state(uuid(1))).toBe('ABSENT');
    expect(world.log.lines.at(-1)).toMatchObject({ level: 'err', text: `mdev ${uuid(1)}: Remove failed: err=-16` });
  });

  it('of a device in use is refused by a parent that cannot unplug (7.5)', () => {
    const { world, parent } = oneParent({ hotUnplug: false });
    world.create(parent, 1);
    const user = world.run(world.use(uuid(1)));
    const before = world.picture();
    expect(world.refusal(world.mdevs.remove(uuid(1)))).toMatchObject({ code: 'EBUSY', message: expect.stringContaining('sample cannot unplug') as string });
    expect(world.picture()).toEqual(before);
    expect([world.mdevs.state(uuid(1)), parent.instance(uuid(1)).requests]).toEqual(['OPEN', []]);
    world.run(user.close());
    world.run(world.mdevs.remove(uuid(1)));
    expect(world.mdevs.state(uuid(1))).toBe('ABSENT');
  });

  it('of a device in use asks its user at once and every 10 s, and waits (7.5, C17)', () => {
    const { world, parent } = oneParent();
    world.create(parent, 1);
    const user = world.run(world.use(uuid(1)));
    const removing = world.start(world.mdevs.remove(uuid(1)));
    const { requests } = parent.instance(uuid(1));
    expect([world.mdevs.state(uuid(1)), requests]).toEqual(['REMOVING', [0]]);
    world.pass(25 * SECOND);
    expect([world.mdevs.state(uuid(1)), requests]).toEqual(['REMOVING', [0, 1, 2]]);
    expect(world.sysfs.exists(`/sys/bus/mdev/devices/${uuid(1)}`)).toBe(false);
    expect(world.refused(world.mdevs.remove(uuid(1)))).toBe('EAGAIN');
    expect(parent.calls).toEqual(['create 01']);
    world.run(user.close());
    world.settle();
    expect([outcome(removing), world.mdevs.state(uuid(1)), parent.calls]).toEqual(['done', 'ABSENT', ['create 01', 'remove 01']]);
  });

  it('refuses an open that comes too late, with ENODEV', () => {
    const { world, parent } = oneParent();
    world.create(parent, 1);
    const { ops } = (() => {
      const user = world.run(world.use(uuid(1)));
      const registration = world.containerIommu.groups[0]!.registrations[0]!;
      world.run(user.close());
      return registration;
    })();
    parent.removeNs = 100;
    world.start(world.mdevs.remove(uuid(1)));
    expect(world.refused(world.use(uuid(1)))).toBe('ENODEV');
    expect(world.refused(ops.open())).toBe('ENODEV');
  });
});

describe('defects', () => {
  it('mdev.uuid-unique-per-parent: two devices of one UUID', () => {
    const twice = (defects: string[]): boolean => {
      const { world, parent } = oneParent({}, defects);
      const other = world.parent('0000:6a:02.0');
      world.create(parent, 1);
      expect(world.refused(world.mdevs.create(parent.device, 'sample-1', uuid(1)))).toBe('EEXIST');
      const second = world.start(world.mdevs.create(other.device, 'sample-1', uuid(1)));
      return outcome(second) === 'done';
    };
    expect([twice([]), twice(['mdev.uuid-unique-per-parent'])]).toEqual([false, true]);
  });

  it('mdev.instance-leak: instances do not come back', () => {
    const left = (defects: string[]): number => {
      const { world, parent } = oneParent({}, defects);
      world.create(parent, 1);
      world.run(world.mdevs.remove(uuid(1)));
      return parent.available;
    };
    expect([left([]), left(['mdev.instance-leak'])]).toEqual([4, 3]);
  });

  it('mdev.remove-open-device: the parent ends what a user has open', () => {
    const calls = (defects: string[]): string[] => {
      const { world, parent } = oneParent({ hotUnplug: false }, defects);
      world.create(parent, 1);
      world.run(world.use(uuid(1)));
      world.start(world.mdevs.remove(uuid(1)));
      return parent.calls;
    };
    expect([calls([]), calls(['mdev.remove-open-device'])]).toEqual([['create 01'], ['create 01', 'remove 01 in use']]);
  });
});
