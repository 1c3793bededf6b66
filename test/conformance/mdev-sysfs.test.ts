/** Mediated devices in sysfs: requirements C12–C14, E34, E35; Documentation/driver-api/vfio-mediated-device.rst, mdev_sysfs.c of v5.10. */
import { describe, expect, it } from 'vitest';
import { Errno } from '../../sim/errno.js';
import { MdevSysfs } from '../../mdev/sysfs.js';
import { MdevWorld, outcome, uuid } from './mdev-world.js';

const A = '0000:6a:01.0';
const TYPES = `/sys/class/mdev_bus/${A}/mdev_supported_types`;
const DEVICES = '/sys/bus/mdev/devices';

function oneParent() {
  const world = new MdevWorld();
  return { world, parent: world.parent(A), sysfs: world.sysfs };
}

describe('a parent in sysfs', () => {
  it('shows its types and what they say (C14)', () => {
    const { world, parent, sysfs } = oneParent();
    world.create(parent, 1);
    expect(sysfs.list('/sys/class/mdev_bus')).toEqual([A]);
    expect(sysfs.readlink(`/sys/class/mdev_bus/${A}`)).toBe(`../../devices/${A}`);
    expect(sysfs.list(TYPES)).toEqual(['sample-1', 'sample-2']);
    expect(sysfs.list(`${TYPES}/sample-1`)).toEqual(['available_instances', 'create', 'description', 'device_api', 'devices', 'name']);
    expect(sysfs.list(`${TYPES}/sample-2`)).toEqual(['available_instances', 'create', 'device_api', 'devices']);
    expect(['available_instances', 'device_api', 'name', 'description'].map((name) => sysfs.read(`${TYPES}/sample-1/${name}`))).toEqual(['3\n', 'vfio-pci\n', 'One port\n', 'a card\nwith one port\n']);
    expect([sysfs.list(`${TYPES}/sample-1/devices`), sysfs.list(`${TYPES}/sample-2/devices`)]).toEqual([[uuid(1)], []]);
  });

  it('lies where its bus says', () => {
    const { world, parent } = oneParent();
    world.create(parent, 1);
    const sysfs = new MdevSysfs(world.mdevs, { devicePath: ({ name }) => `/sys/devices/pci0000:6a/${name}` });
    expect(sysfs.list('/sys/devices')).toEqual(['pci0000:6a']);
    expect(sysfs.list(`/sys/devices/pci0000:6a/${A}`)).toEqual([uuid(1), 'mdev_supported_types']);
    expect(sysfs.readlink(`${DEVICES}/${uuid(1)}`)).toBe(`../../../devices/pci0000:6a/${A}/${uuid(1)}`);
    expect(sysfs.realpath(`${DEVICES}/${uuid(1)}/mdev_type/devices`)).toBe(`/sys/devices/pci0000:6a/${A}/mdev_supported_types/sample-1/devices`);
    expect(sysfs.realpath(`${DEVICES}/${uuid(1)}/..`)).toBe(`/sys/devices/pci0000:6a/${A}`);
  });

  it('leaves the class when its unregistration has begun, its directory when it has ended', () => {
    const { world, parent, sysfs } = oneParent();
    world.create(parent, 1);
    const user = world.run(world.use(uuid(1)));
    world.create(parent, 2);
    world.start(world.mdevs.unregisterParent(parent.device));
    expect([sysfs.list('/sys/class/mdev_bus'), sysfs.list(`/sys/devices/${A}`), sysfs.list(DEVICES)]).toEqual([[], [uuid(2), 'mdev_supported_types'], [uuid(2)]]);
    expect(world.refused(sysfs.write(`/sys/devices/${A}/mdev_supported_types/sample-1/create`, uuid(3)))).toBe('ENODEV');
    world.run(user.close());
    world.settle();
    expect(sysfs.list('/sys/devices')).toEqual([]);
  });
});

describe('a mediated device in sysfs', () => {
  it('is made by a write to create, ended by a write to remove (C12, C13)', () => {
    const { world, sysfs } = oneParent();
    world.run(sysfs.write(`${TYPES}/sample-2/create`, `${uuid(1)}\n`));
    expect(sysfs.list(DEVICES)).toEqual([uuid(1)]);
    expect(sysfs.list(`${DEVICES}/${uuid(1)}`)).toEqual(['iommu_group', 'mdev_type', 'remove']);
    expect(sysfs.readlink(`${DEVICES}/${uuid(1)}/mdev_type`)).toBe('../mdev_supported_types/sample-2');
    expect(sysfs.readlink(`${DEVICES}/${uuid(1)}/iommu_group`)).toBe('../../../kernel/iommu_groups/0');
    expect(sysfs.list('/sys/kernel/iommu_groups/0/devices')).toEqual([uuid(1)]);
    world.run(sysfs.write(`${DEVICES}/${uuid(1)}/remove`, '0\n'));
    expect(world.mdevs.state(uuid(1))).toBe('ACTIVE');
    world.run(sysfs.write(`${DEVICES}/${uuid(1)}/remove`, '1\n'));
    expect([world.mdevs.state(uuid(1)), sysfs.list(DEVICES), sysfs.list('/sys/kernel/iommu_groups')]).toEqual(['ABSENT', [], []]);
  });

  it('passes on every refusal of create and remove (E34, E35)', () => {
    const { world, parent, sysfs } = oneParent();
    const create = (text: string) => world.refused(sysfs.write(`${TYPES}/sample-1/create`, text));
    for (const n of [1, 2, 3, 4]) world.create(parent, n);
    expect([create('bad'), create(uuid(1)), create(uuid(5))]).toEqual(['EINVAL', 'EEXIST', 'EUSERS']);
    expect(world.refused(sysfs.write(`${DEVICES}/${uuid(1)}/remove`, 'yes'))).toBe('EINVAL');
    parent.removeNs = 100;
    // both have found the file before the first write takes it away
    const writes = [1, 2].map(() => world.scheduler.spawn('write', sysfs.write(`/sys/devices/${A}/${uuid(1)}/remove`, '1'), { joined: true }));
    world.settle();
    expect(writes.map((task) => outcome(task))).toEqual(['done', 'ENOENT']);
    expect(world.refused(sysfs.write(`${DEVICES}/${uuid(1)}/remove`, '1'))).toBe('ENOENT');
  });

  it('has the files of its parent\'s driver', () => {
    const { world, parent, sysfs } = oneParent();
    let priority = '5';
    parent.attributes = [
      { name: 'state', read: () => 'idle\n' },
      { name: 'priority', read: () => priority, write: (value) => {
        if (!/^[0-9]+$/.test(value)) throw new Errno('EINVAL', `priority ${value}`);
        priority = value;
      } },
    ];
    world.create(parent, 1);
    const at = `${DEVICES}/${uuid(1)}`;
    expect(sysfs.list(at)).toEqual(['iommu_group', 'mdev_type', 'priority', 'remove', 'state']);
    world.run(sysfs.write(`${at}/priority`, '7\n'));
    expect([sysfs.read(`${at}/priority`), sysfs.read(`${at}/state`)]).toEqual(['7\n', 'idle\n']);
    expect(world.refused(sysfs.write(`${at}/priority`, 'high'))).toBe('EINVAL');
    expect(world.refused(sysfs.write(`${at}/state`, 'busy'))).toBe('EACCES');
    expect(priority).toBe('7');
  });

  it('has a directory for each named group of attributes', () => {
    const { world, parent, sysfs } = oneParent();
    const written: string[] = [];
    parent.attributes = [
      { name: 'vendor/name', read: () => 'sample' }, { name: 'state', read: () => 'idle' }, { name: 'vendor/limit', read: () => '1', write: (value) => void written.push(value) },
    ];
    world.create(parent, 1);
    const at = `${DEVICES}/${uuid(1)}`;
    expect([sysfs.list(at), sysfs.list(`${at}/vendor`)]).toEqual([['iommu_group', 'mdev_type', 'remove', 'state', 'vendor'], ['limit', 'name']]);
    expect(sysfs.read(`${at}/vendor/name`)).toBe('sample\n');
    world.run(sysfs.write(`${at}/vendor/limit`, '2'));
    expect(written).toEqual(['2']);
    expect([world.refused(sysfs.write(`${at}/vendor/name`, 'x')), world.refused(sysfs.write(`${at}/vendor`, 'x')), world.refused(sysfs.write(`${at}/vendor/none`, 'x'))]).toEqual(['EACCES', 'EISDIR', 'ENOENT']);
  });
});

describe('a path', () => {
  it.each([
    ['read', '/sys/bus/mdev/devices/none/remove', 'ENOENT'], ['read', `${TYPES}/sample-1/none`, 'ENOENT'], ['read', `${TYPES}/sample-1/name/below`, 'ENOENT'], ['read', '/proc', 'ENOENT'],
    ['read', `${TYPES}/sample-1`, 'EISDIR'], ['read', `${TYPES}/sample-1/create`, 'EACCES'], ['write', `${TYPES}/sample-1/device_api`, 'EACCES'], ['write', TYPES, 'EISDIR'],
    ['list', `${TYPES}/sample-1/name`, 'ENOTDIR'], ['list', '/sys/class/none', 'ENOENT'], ['list', '/sys/class/constructor', 'ENOENT'], ['readlink', TYPES, 'EINVAL'],
  ] as const)('that cannot be used: %s %s is %s', (verb, path, code) => {
    const { world, sysfs } = oneParent();
    const before = world.picture();
    expect(world.refused(verb === 'write' ? sysfs.write(path, '1') : () => sysfs[verb](path))).toBe(code);
    expect(world.picture()).toEqual(before);
  });

  it('may be written with dots and doubled slashes', () => {
    const { sysfs } = oneParent();
    expect(sysfs.read(`//sys/./class/mdev_bus/../mdev_bus/${A}//mdev_supported_types/sample-1/device_api`)).toBe('vfio-pci\n');
    expect([sysfs.list('/'), sysfs.list('/..'), sysfs.exists('/sys/class'), sysfs.exists('/sys/none')]).toEqual([['sys'], ['sys'], true, false]);
  });
});
