/** Bad input of requirements section 4 about VFIO and mediated devices, on the whole machine: the refusal, and that nothing changed. */
import { describe, expect, it } from 'vitest';
import type { ErrnoName } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import {
  bytesOf, concatWords, DEVICE_FEATURE, DEVICE_INFO, DIRTY_BITMAP, DMA_MAP, DMA_UNMAP, GROUP_STATUS, IOMMU_TYPE1_INFO, IRQ_INFO, IRQ_SET, REGION_INFO, TYPE1_BIND, TYPE1_BIND_PROCESS,
  VFIO_DEVICE_FEATURE, VFIO_DEVICE_GET_INFO, VFIO_DEVICE_GET_IRQ_INFO, VFIO_DEVICE_GET_REGION_INFO, VFIO_DEVICE_SET_IRQS, VFIO_GROUP_GET_DEVICE_FD, VFIO_GROUP_GET_STATUS,
  VFIO_GROUP_SET_CONTAINER, VFIO_IOMMU_BIND, VFIO_IOMMU_DIRTY_PAGES, VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA,
} from '../../vfio/uapi/index.js';
import { guestsOf, mdevDsa, PAGE, PassthroughWorld, slices, uuid, type Assembled, type VfioUser } from './passthrough-world.js';
import { DSA0, type WorldOptions } from './world.js';

const IOVA = 0x10_0000;
const NOWHERE = 0x1000;

/** A process that holds m0, with 16 pages mapped at IOVA. */
function holding(options: WorldOptions = {}, type: 'type1' | 'type1v2' = 'type1v2') {
  const world = new PassthroughWorld({ mdevs: slices(2), ...options });
  const user = world.user('vmm');
  const assembled = user.assemble(['m0'], type);
  const buffer = user.mmap(16 * PAGE);
  world.run(assembled.container.mapDma({ iova: IOVA, vaddr: buffer, sizeBytes: 16 * PAGE }));
  return { world, user, buffer, ...assembled, group: assembled.groups[0]!, device: assembled.devices[0]!, refused: (call: Steps<unknown> | (() => unknown)) => world.refused(call, () => world.books()) };
}

/** An ioctl with these bytes as its record; throws its refusal. */
function* record(file: { raw: Assembled['container']['raw'] }, command: number, words: ArrayLike<number>): Steps {
  const { refusal } = yield* file.raw(command, bytesOf(words));
  if (refusal !== undefined) throw refusal;
}

describe('a whole device while somebody uses it otherwise', () => {
  it('E24: is refused to a container while AUX is enabled (EPERM) and while address spaces are bound (EBUSY)', () => {
    const world = new PassthroughWorld({ devices: [], mdevs: [], probes: { probe: {} } });
    const probe = world.probe().enableSva();
    const { drivers, passthrough: { vfioPci } } = world.host;
    drivers.setDriverOverride(probe.pci, vfioPci.name);
    world.run(drivers.bind(vfioPci.name, probe.pci));
    const user = world.user('vmm');
    const container = user.client.openContainer(), group = user.client.openGroup(world.host.pci.groupOf(probe.pci).id);
    const app = world.process('app');
    const pasid = world.run(world.core.svaBind(probe.pci, app.process.mm));
    expect(world.refused(group.setContainer(container), () => world.books())).toBe('EBUSY');
    world.run(world.core.svaUnbind(probe.pci, pasid));
    world.run(world.core.devEnableFeature(probe.pci, 'AUX'));
    world.run(group.setContainer(container));
    expect(world.refused(container.setIommu('type1v2'), () => world.books())).toBe('EPERM');
    world.run(world.core.devDisableFeature(probe.pci, 'AUX'));
    world.run(container.setIommu('type1v2'));
    user.exit();
    world.finish();
  });

  it('E24, R-RACE-10: whose slices guests and whose queues processes use stays with its driver: a bind is EBUSY, and the group is nobody else\'s', () => {
    const world = new PassthroughWorld({ devices: [mdevDsa(1, 0, [{ mode: 'shared', type: 'user', size: 16 }])], mdevs: slices(1), guests: guestsOf(1) });
    const guest = world.started();
    const pci = world.pci('dsa0'), group = world.core.groupOf(pci);
    const { drivers, passthrough: { vfioPci, vfio } } = world.host;
    drivers.setDriverOverride(pci, vfioPci.name);
    expect(world.refused(drivers.bind(vfioPci.name, pci))).toBe('EBUSY');
    const user = world.user('vmm');
    expect(world.refused(() => user.client.openGroup(group.id))).toBe('ENODEV');
    expect(vfio.groupIds).not.toContain(group.id);
    expect(world.refused(world.core.claimDmaOwner(group, user))).toBe('EPERM');
    const domain = world.core.domainAlloc(pci, 'unmanaged');
    expect(world.refused(world.core.attachGroup(domain, group))).toBe('EPERM');
    world.core.domainFree(domain);
    expect(world.refused(world.core.devDisableFeature(pci, 'AUX'))).toBe('EBUSY');
    expect(guest.state).toBe('running');
    drivers.setDriverOverride(pci, undefined);
    world.finish();
  });
});

describe('VFIO\'s ioctls', () => {
  const map = { argsz: DMA_MAP.sizeBytes, flags: 3, vaddr: 0x10_0000, iova: 0x100_0000, size: PAGE };
  it('E27: short records and unknown flags, modes, regions and features are EINVAL, memory that is not there EFAULT', () => {
    const { refused, ...made } = holding();
    const rows: readonly [what: string, file: 'container' | 'group' | 'device', command: number, words: ArrayLike<number>, code: ErrnoName][] = [
      ['GET_STATUS, short', 'group', VFIO_GROUP_GET_STATUS, GROUP_STATUS.encode({ argsz: 7 }), 'EINVAL'],
      ['IOMMU_GET_INFO, short', 'container', VFIO_IOMMU_GET_INFO, IOMMU_TYPE1_INFO.encode({ argsz: 15 }), 'EINVAL'],
      ['MAP_DMA, short', 'container', VFIO_IOMMU_MAP_DMA, DMA_MAP.encode({ ...map, argsz: 31 }), 'EINVAL'],
      ['MAP_DMA, unknown flag', 'container', VFIO_IOMMU_MAP_DMA, DMA_MAP.encode({ ...map, flags: 8 | 3 }), 'EINVAL'],
      ['MAP_DMA, vaddr nowhere', 'container', VFIO_IOMMU_MAP_DMA, DMA_MAP.encode({ ...map, vaddr: NOWHERE }), 'EFAULT'],
      ['UNMAP_DMA, short', 'container', VFIO_IOMMU_UNMAP_DMA, DMA_UNMAP.encode({ argsz: 23, iova: IOVA, size: PAGE }), 'EINVAL'],
      ['UNMAP_DMA, unknown flag', 'container', VFIO_IOMMU_UNMAP_DMA, DMA_UNMAP.encode({ argsz: 24, flags: 8, iova: IOVA, size: 16 * PAGE }), 'EINVAL'],
      ['DIRTY_PAGES, two actions', 'container', VFIO_IOMMU_DIRTY_PAGES, DIRTY_BITMAP.encode({ argsz: 8, flags: 3 }), 'EINVAL'],
      ['BIND, unknown mode', 'container', VFIO_IOMMU_BIND, concatWords(TYPE1_BIND.encode({ argsz: 20, flags: 2 }), TYPE1_BIND_PROCESS.encode({})), 'EINVAL'],
      ['BIND, mediated device', 'container', VFIO_IOMMU_BIND, concatWords(TYPE1_BIND.encode({ argsz: 20, flags: 1 }), TYPE1_BIND_PROCESS.encode({})), 'ENODEV'],
      ['DEVICE_GET_INFO, short', 'device', VFIO_DEVICE_GET_INFO, DEVICE_INFO.encode({ argsz: 15 }), 'EINVAL'],
      ['GET_REGION_INFO, short', 'device', VFIO_DEVICE_GET_REGION_INFO, REGION_INFO.encode({ argsz: 31 }), 'EINVAL'],
      ['GET_REGION_INFO, no such region', 'device', VFIO_DEVICE_GET_REGION_INFO, REGION_INFO.encode({ argsz: 32, index: 99 }), 'EINVAL'],
      ['GET_IRQ_INFO, short', 'device', VFIO_DEVICE_GET_IRQ_INFO, IRQ_INFO.encode({ argsz: 15 }), 'EINVAL'],
      ['SET_IRQS, unknown flag', 'device', VFIO_DEVICE_SET_IRQS, IRQ_SET.encode({ argsz: 20, flags: 0x100 }), 'EINVAL'],
      ['SET_IRQS, data missing', 'device', VFIO_DEVICE_SET_IRQS, IRQ_SET.encode({ argsz: 20, flags: 0x24, index: 2, count: 1 }), 'EINVAL'],
      ['FEATURE, unknown', 'device', VFIO_DEVICE_FEATURE, DEVICE_FEATURE.encode({ argsz: 8, flags: 0x1_7777 }), 'ENOTTY'],
    ];
    for (const [what, file, command, words, code] of rows) expect([what, refused(record(made[file], command, words))]).toEqual([what, code]);
    made.user.exit();
    made.world.finish();
  });

  it('E27: records in memory that is not there are EFAULT', () => {
    const { world, user, container, group, device, refused } = holding();
    for (const command of [VFIO_IOMMU_GET_INFO, VFIO_IOMMU_MAP_DMA, VFIO_IOMMU_UNMAP_DMA, VFIO_IOMMU_DIRTY_PAGES, VFIO_IOMMU_BIND]) expect(refused(container.number(command, NOWHERE))).toBe('EFAULT');
    for (const command of [VFIO_GROUP_GET_STATUS, VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_GET_DEVICE_FD]) expect(refused(user.process.ioctl(group.fd, command, NOWHERE))).toBe('EFAULT');
    for (const command of [VFIO_DEVICE_GET_INFO, VFIO_DEVICE_GET_REGION_INFO, VFIO_DEVICE_SET_IRQS]) expect(refused(user.process.ioctl(device.fd, command, NOWHERE))).toBe('EFAULT');
    user.exit();
    world.finish();
  });

  it('E28: MAP over a mapping is EEXIST; misaligned, empty, wrapping or beyond the aperture EINVAL', () => {
    const { world, user, buffer, container, refused } = holding();
    const at = (iova: number | bigint, sizeBytes: number | bigint = PAGE, vaddr = buffer): Steps => container.mapDma({ iova, vaddr, sizeBytes });
    expect(refused(at(IOVA + 15 * PAGE, 2 * PAGE))).toBe('EEXIST');
    expect(refused(at(IOVA - PAGE, 2 * PAGE))).toBe('EEXIST');
    expect(refused(at(0x800))).toBe('EINVAL');
    expect(refused(at(0x20_0000, 0x800))).toBe('EINVAL');
    expect(refused(at(0x20_0000, PAGE, buffer + 1))).toBe('EINVAL');
    expect(refused(at(0x20_0000, 0))).toBe('EINVAL');
    expect(refused(at(0xffff_ffff_ffff_f000n, 0x2000n))).toBe('EINVAL');
    expect(refused(at(2n ** 48n))).toBe('EINVAL');
    expect(refused(container.mapDma({ iova: 0x20_0000, vaddr: buffer, sizeBytes: PAGE, read: false, write: false }))).toBe('EINVAL');
    user.exit();
    world.finish();
  });

  it('E29: UNMAP that cuts a mapping is EINVAL in version 2, and unmaps nothing in version 1', () => {
    const v2 = holding();
    expect(v2.refused(v2.container.unmapDma(IOVA, PAGE))).toBe('EINVAL');
    expect(v2.refused(v2.container.unmapDma(IOVA + 4 * PAGE, 12 * PAGE))).toBe('EINVAL');
    v2.user.exit();
    v2.world.finish();
    const v1 = holding({}, 'type1');
    const before = v1.world.books();
    expect(v1.world.run(v1.container.unmapDma(IOVA + 4 * PAGE, PAGE))).toBe(0);
    expect(v1.world.books()).toEqual(before);
    v1.user.exit();
    v1.world.finish();
  });

  it('E30, E31, E32: a group opened twice, a group that leaves with open devices, an IOMMU set twice or without a group', () => {
    const { world, user, container, group, device, refused } = holding();
    const other = world.user('other');
    expect(refused(() => other.client.openGroup(world.groupId('m0')))).toBe('EBUSY');
    expect(refused(group.unsetContainer())).toBe('EBUSY');
    expect(refused(container.setIommu('type1v2'))).toBe('EINVAL');
    expect(refused(other.client.openContainer().setIommu('type1v2'))).toBe('EINVAL');
    world.run(device.close());
    world.run(group.unsetContainer());
    expect(refused(group.unsetContainer())).toBe('EINVAL');
    // the container's IOMMU went with its last group
    expect(refused(container.setIommu('type1v2'))).toBe('EINVAL');
    user.exit();
    world.finish();
  });
});

describe('interrupts that are not remapped', () => {
  const without = { iommu: { 'interrupt-remapping': false } };
  const unsafe = { kernel: { 'allow-unsafe-interrupts': true } };

  it.each([
    ['a whole device', { devices: [DSA0] }, 'dsa0'],
    ['a mediated device', { mdevs: slices(1) }, 'm0'],
  ] satisfies [string, WorldOptions, string][])('E33: %s is EPERM, and the refusal names the option that lets it in', (_what, options, name) => {
    const world = new PassthroughWorld({ ...without, ...options });
    if (name === 'dsa0') world.give(name);
    const user = world.user('vmm');
    const container = user.client.openContainer(), group = user.client.openGroup(world.groupId(name));
    world.run(group.setContainer(container));
    expect(world.refused(container.setIommu('type1v2'), () => world.books())).toBe('EPERM');
    expect(() => world.run(container.setIommu('type1v2'))).toThrow(/allow.unsafe.interrupts/);
    user.exit();
    world.finish();

    const allowed = new PassthroughWorld({ ...without, ...unsafe, ...options });
    if (name === 'dsa0') allowed.give(name);
    const second = allowed.user('vmm');
    expect(second.assemble([name]).devices).toHaveLength(1);
    second.exit();
    allowed.finish();
  });

  it('E33: a guest with such a device is refused, its VMM says why, and nothing of it is left', () => {
    const world = new PassthroughWorld({ ...without, mdevs: slices(1), guests: guestsOf(1) });
    const before = world.books();
    const guest = world.guest();
    world.run(guest.start());
    expect([guest.state, guest.reason]).toEqual(['refused', expect.stringMatching(/EPERM.*wq.*allow.unsafe.interrupts/)]);
    expect(world.books()).toEqual(before);
    world.finish();
  });
});

describe('mediated devices', () => {
  it('E34: a UUID that is taken is EEXIST, one that is none EINVAL, one too many EUSERS', () => {
    const world = new PassthroughWorld({ devices: [mdevDsa(2), { ...mdevDsa(1), name: 'dsa1', bdf: '0000:6f:01.0' }], mdevs: slices(2) });
    const { mdevs } = world.host.passthrough;
    const create = (value: string, parent = 'dsa0', type = 'idxd-1dwq-v1'): ErrnoName | 'no error' => world.refused(mdevs.create(world.pci(parent), type, value), () => world.books());
    expect(create(uuid(1))).toBe('EEXIST');
    // whichever the parent
    expect(create(uuid(1).toUpperCase(), 'dsa1')).toBe('EEXIST');
    for (const value of ['', 'x', uuid(9).slice(1), `${uuid(9)}00`, uuid(9).replace('3', 'g')]) expect(create(value)).toBe('EINVAL');
    expect(create(uuid(9))).toBe('EUSERS');
    expect(create(uuid(9), 'dsa1', 'idxd-1swq-v1')).toBe('EUSERS');
    expect(create(uuid(9), 'dsa1', 'mtty-1')).toBe('ENOENT');
    world.finish();
  });

  it('E35: a second remove is EAGAIN while the first waits, and ENODEV when it has ended', () => {
    const { world, user, device } = holding();
    const { mdevs } = world.host.passthrough;
    let released = false;
    user.onRequest(device, () => void (released = true));
    const first = world.start('remove', mdevs.remove(uuid(1)));
    world.until(() => released);
    expect(world.refused(mdevs.remove(uuid(1)), () => world.books())).toBe('EAGAIN');
    expect(world.refused(mdevs.create(world.pci('dsa0'), 'idxd-1dwq-v1', uuid(1)), () => world.books())).toBe('EEXIST');
    user.exit();
    world.until(() => first.ended);
    expect(world.refused(mdevs.remove(uuid(1)), () => world.books())).toBe('ENODEV');
    world.finish();
  });

  it('E35: a device in use of a parent that cannot unplug is EBUSY', () => {
    const world = new PassthroughWorld({ devices: [], mdevParents: [{ model: 'mtty', name: 'mtty0' }], mdevs: [{ uuid: uuid(1), name: 'm0', parent: 'mtty0', mdev_type: 'mtty-1' }] });
    const user: VfioUser = world.user('vmm');
    user.assemble(['m0']);
    expect(world.refused(world.host.passthrough.mdevs.remove(uuid(1)), () => world.books())).toBe('EBUSY');
    user.exit();
    world.run(world.host.passthrough.mdevs.remove(uuid(1)));
    world.finish();
  });
});
