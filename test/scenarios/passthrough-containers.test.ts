/** Containers on the whole machine: groups that share one address space, limits, pages that vendors' drivers pin, viability (7.6, C6). */
import { describe, expect, it } from 'vitest';
import { STATUS } from '../../devices/dsa/spec/descriptor.js';
import { DMA_COMMAND_START, DMA_REG, DMA_STATUS_BUSY, DMA_STATUS_DONE, DMA_WINDOW } from '../../devices/mtty/spec/registers.js';
import type { Steps } from '../../sim/task.js';
import type { ContainerHandle } from '../../vfio/client/index.js';
import { PCI_BAR0_REGION, PCI_CONFIG_REGION } from '../../vfio/device.js';
import { UserDsa } from './passthrough-dsa-user.js';
import { guestsOf, mdevDsa, MIB, PAGE, PassthroughWorld, pattern, same, slices, uuid, Worker } from './passthrough-world.js';
import { DSA0 } from './world.js';

const IOVA = 0x1000_0000;
const DSA1 = { ...DSA0, name: 'dsa1', bdf: '0000:6f:01.0' };
const SERIAL = { uuid: uuid(100), name: 'serial', parent: 'mtty0', mdev_type: 'mtty-1' };
const MTTY = { model: 'mtty' as const, name: 'mtty0' };

describe('a container with several groups', () => {
  it('scenario 17: of a VMM reuses one domain for a whole device and mediated ones of different parents: memory is pinned once', () => {
    const world = new PassthroughWorld({
      devices: [mdevDsa(1, 1), DSA1], mdevs: slices(1, 1),
      guests: guestsOf(1, { devices: [{ mdev: 'm0', name: 'own' }, { mdev: 'm1', name: 'shared' }, { host: 'dsa1', name: 'whole' }] }),
    });
    const guest = world.started();
    expect(world.host.passthrough.type1.usage).toMatchObject({ containers: 1, domains: 1 });
    expect(world.host.frames.pinnedPages).toBe(16 * MIB / PAGE);
    const attached = world.records('vfio:attach_group');
    expect(attached).toHaveLength(3);
    expect(new Set(attached.map(({ domain }) => domain)).size).toBe(1);
    // both mediated devices send under the one PASID of the domain, the whole one under none
    expect(world.pasidOf('m0')).toBe(world.pasidOf('m1'));
    expect(new Set(world.records('vfio:container_device').map(({ pasid }) => pasid))).toEqual(new Set([world.pasidOf('m0'), -1]));
    const worker = new Worker(world, guest);
    for (const device of ['own', 'shared', 'whole']) expect([device, worker.open(device).copies(device)]).toEqual([device, true]);
    world.finish();
  });

  it('scenario 17: that a process assembles: mappings are recorded, pinned and replayed when an IOMMU comes, shared with the next, kept until the last', () => {
    const world = new PassthroughWorld({ devices: [mdevDsa(1), DSA1], mdevs: [...slices(1), SERIAL], mdevParents: [MTTY] });
    world.give('dsa1');
    const user = world.user('vmm');
    const { frames, passthrough: { type1 } } = world.host;
    const { container } = user.assemble(['serial']);
    const memory = user.mmap(MIB);
    world.run(container.mapDma({ iova: IOVA, vaddr: memory, sizeBytes: MIB }));
    // the vendor isolates: nothing translates, nothing is pinned
    expect([frames.pinnedPages, type1.usage.domains, type1.usage.mappings]).toEqual([0, 0, 1]);

    const join = (name: string) => {
      const group = user.client.openGroup(world.groupId(name));
      world.run(group.setContainer(container));
      return { group, device: world.run(group.getDevice(world.vfioName(name))) };
    };
    const slice = join('m0');
    expect([frames.pinnedPages, type1.usage.domains]).toEqual([MIB / PAGE, 1]);
    const whole = join('dsa1');
    expect([frames.pinnedPages, type1.usage.domains]).toEqual([MIB / PAGE, 1]);

    // what one writes at an address the other reads at that address
    const data = pattern(8192, 3), record = memory + 0xf_0000;
    user.write(memory, data);
    const drivers = [new UserDsa(world, user, slice.device, { whole: false }), new UserDsa(world, user, whole.device, { whole: true })];
    for (const driver of drivers) world.run(driver.start());
    const copy = (driver: UserDsa, from: number, to: number): number => world.run(driver.copyIova(IOVA + from, IOVA + to, data.length, { iova: IOVA + 0xf_0000, address: record })).status;
    expect([copy(drivers[0]!, 0, 0x1_0000), copy(drivers[1]!, 0x1_0000, 0x2_0000)]).toEqual([STATUS.SUCCESS, STATUS.SUCCESS]);
    expect(same(user.read(memory + 0x2_0000, data.length), data)).toBe(true);

    for (const { group, device } of [slice, whole]) {
      world.run(device.close());
      world.run(group.unsetContainer());
    }
    // recorded again: the mapping outlives the IOMMU
    expect([frames.pinnedPages, type1.usage.domains, type1.usage.mappings]).toEqual([0, 0, 1]);
    user.exit();
    world.finish();
  });

  it('scenario 17: whose replay fails is as it was: the group stays outside, nothing is pinned', () => {
    const world = new PassthroughWorld({ mdevs: [...slices(1), SERIAL], mdevParents: [MTTY] });
    const user = world.user('vmm', 48 * PAGE);
    const { container } = user.assemble(['serial']);
    const memory = user.mmap(64 * PAGE);
    for (let i = 0; i < 4; i++) world.run(container.mapDma({ iova: IOVA + i * MIB, vaddr: memory + i * 16 * PAGE, sizeBytes: 16 * PAGE }));
    const group = user.client.openGroup(world.groupId('m0'));
    // the fourth mapping exceeds RLIMIT_MEMLOCK, after three were pinned and mapped
    expect(world.refused(group.setContainer(container), () => world.books())).toBe('ENOMEM');
    expect([world.host.frames.pinnedPages, world.pasidOf('m0'), world.run(group.status()).containerSet]).toEqual([0, undefined, false]);
    world.run(container.unmapDma(IOVA, MIB));
    world.run(group.setContainer(container));
    expect(world.host.frames.pinnedPages).toBe(48);
    user.exit();
    world.finish();
  });
});

describe('limits of a container', () => {
  it('scenario 18: the 65,536th mapping is ENOSPC, and one that went makes room', () => {
    const world = new PassthroughWorld({ mdevs: slices(1), checkers: false });
    const user = world.user('vmm');
    const { container } = user.assemble(['m0']);
    const page = user.mmap(PAGE);
    world.run((function* (): Steps {
      for (let i = 0; i < 65_535; i++) yield* container.mapDma({ iova: IOVA + i * 2 * PAGE, vaddr: page, sizeBytes: PAGE });
    })());
    expect(world.run(container.iommuInfo()).dmaAvailable).toBe(0);
    expect(world.refused(container.mapDma({ iova: PAGE, vaddr: page, sizeBytes: PAGE }), () => world.books())).toBe('ENOSPC');
    world.run(container.unmapDma(IOVA, PAGE));
    world.run(container.mapDma({ iova: PAGE, vaddr: page, sizeBytes: PAGE }));
    user.exit();
    world.finish();
  });

  it('scenario 18: beyond RLIMIT_MEMLOCK a mapping is ENOMEM, no page stays pinned, and what fits still does', () => {
    const world = new PassthroughWorld({ mdevs: slices(2) });
    const user = world.user('vmm', 16 * PAGE), other = world.user('other', 16 * PAGE);
    const { container } = user.assemble(['m0']), beside = other.assemble(['m1']);
    const memory = user.mmap(32 * PAGE), its = other.mmap(16 * PAGE);
    expect(world.refused(container.mapDma({ iova: IOVA, vaddr: memory, sizeBytes: 17 * PAGE }), () => world.books())).toBe('ENOMEM');
    expect([world.host.frames.pinnedPages, user.process.mm.lockedPages]).toEqual([0, 0]);
    world.run(container.mapDma({ iova: IOVA, vaddr: memory, sizeBytes: 10 * PAGE }));
    expect(world.refused(container.mapDma({ iova: IOVA + MIB, vaddr: memory + 10 * PAGE, sizeBytes: 7 * PAGE }), () => world.books())).toBe('ENOMEM');
    // the limit is one of an address space, not of the machine
    world.run(beside.container.mapDma({ iova: IOVA, vaddr: its, sizeBytes: 16 * PAGE }));
    world.run(container.unmapDma(IOVA, 10 * PAGE));
    world.run(container.mapDma({ iova: IOVA, vaddr: memory, sizeBytes: 16 * PAGE }));
    expect(user.process.mm.lockedPages).toBe(16);
    expect(world.log('RLIMIT_MEMLOCK')).toHaveLength(2);
    user.exit();
    other.exit();
    world.finish();
  });

  it('scenario 18: a VMM whose guest does not fit into its limit, or into the host, is refused and leaves nothing', () => {
    const world = new PassthroughWorld({
      mdevs: slices(2), memory: '64MiB',
      guests: [...guestsOf(1, { 'memlock-limit': '8MiB' }), { name: 'big', memory: '128MiB', devices: [{ mdev: 'm1', name: 'wq' }] }],
    });
    const before = world.books(), inUse = world.host.frames.inUse;
    for (const [name, why] of [['vm0', /-ENOMEM.*RLIMIT_MEMLOCK/], ['big', /-ENOMEM/]] as const) {
      const guest = world.guest(name);
      world.run(guest.start());
      expect([guest.state, guest.reason]).toEqual(['refused', expect.stringMatching(why)]);
      expect([world.books(), world.host.frames.inUse]).toEqual([before, inUse]);
    }
    world.finish();
  });
});

/** A process that drives a serial card of the sample parent: its DMA pins pages for as long as it takes. */
function serial(lateUnpin: number) {
  const world = new PassthroughWorld({ devices: [], mdevs: [SERIAL], mdevParents: [{ ...MTTY, 'late-unpin': lateUnpin }] });
  const user = world.user('vmm');
  const { container, devices: [device] } = user.assemble(['serial']);
  const memory = user.mmap(MIB);
  world.run(container.mapDma({ iova: IOVA, vaddr: memory, sizeBytes: MIB }));
  device!.writeValue(PCI_CONFIG_REGION, 4, 2, 4);
  const register = (name: keyof typeof DMA_REG, value: number): void => device!.writeValue(PCI_BAR0_REGION, DMA_WINDOW + DMA_REG[name], 4, value);
  const status = (): number => device!.readValue(PCI_BAR0_REGION, DMA_WINDOW + DMA_REG.STATUS, 4);
  /** 256 KiB from the first half of the memory to the second. */
  const startDma = (): void => {
    register('TX_ADDRESS', IOVA);
    register('TX_LENGTH', 0x4_0000);
    register('RX_ADDRESS', IOVA + MIB / 2);
    register('RX_LENGTH', 0x4_0000);
    register('COMMAND', DMA_COMMAND_START);
  };
  return { world, user, container, device: device!, memory, startDma, status };
}

describe('pages that a vendor\'s driver has pinned', () => {
  it('scenario 19: are the vendor\'s while it copies, and nobody\'s afterwards', () => {
    const { world, user, memory, startDma, status } = serial(0);
    user.write(memory, pattern(0x4_0000, 5));
    startDma();
    world.until(() => world.host.frames.pinnedPages === 128);
    world.settle();
    expect([status() & DMA_STATUS_DONE, world.host.frames.pinnedPages]).toEqual([DMA_STATUS_DONE, 0]);
    expect(same(user.read(memory + MIB / 2, 0x4_0000), pattern(0x4_0000, 5))).toBe(true);
    user.exit();
    world.finish();
  });

  it.each([0, 1, 10])('scenario 19: that are unmapped are asked for until the driver unpins, late by %i notifications', (late) => {
    const { world, user, container, startDma, status } = serial(late);
    startDma();
    world.until(() => world.host.frames.pinnedPages === 128);
    expect(world.run(container.unmapDma(IOVA, MIB))).toBe(MIB);
    expect(world.records('mtty:dma_unmap')).toHaveLength(late + 1);
    expect([status() & DMA_STATUS_BUSY, world.host.frames.pinnedPages, world.host.passthrough.type1.counters.violations]).toEqual([0, 0, 0]);
    user.exit();
    world.finish();
  });

  it('scenario 19: and never given back are a violation after more than 10 retries: the mapping goes, and its pins with it', () => {
    const { world, user, container, startDma } = serial(1000);
    startDma();
    world.until(() => world.host.frames.pinnedPages === 128);
    expect(world.run(container.unmapDma(IOVA, MIB))).toBe(MIB);
    expect(world.records('mtty:dma_unmap')).toHaveLength(11);
    expect([world.host.frames.pinnedPages, world.host.passthrough.type1.counters.violations]).toEqual([0, 1]);
    expect(world.log('still pinned by a vendor\'s driver')).toHaveLength(1);
    user.exit();
    world.finish(['container 1 from 0x10000000 on: 128 pages are still pinned by a vendor\'s driver']);
  });
});

describe('the life of a container', () => {
  it('goes EMPTY, HAS_GROUPS, IOMMU_SET and back; MAP, UNMAP and BIND only in the last (7.6)', () => {
    const world = new PassthroughWorld({ mdevs: slices(2) });
    const user = world.user('vmm');
    const container = user.client.openContainer();
    const groups = ['m0', 'm1'].map((name) => user.client.openGroup(world.groupId(name)));
    const memory = user.mmap(PAGE);
    const calls = (of: ContainerHandle): Steps<unknown>[] => [of.mapDma({ iova: IOVA, vaddr: memory, sizeBytes: PAGE }), of.unmapDma(IOVA, PAGE), of.bind(), of.unbind()];
    const refuseAll = (): void => {
      for (const call of calls(container)) expect(world.refused(call, () => world.books())).toBe('EINVAL');
    };
    refuseAll();
    world.run(groups[0]!.setContainer(container));
    refuseAll();
    world.run(container.setIommu('type1v2'));
    world.run(groups[1]!.setContainer(container));
    world.run(container.mapDma({ iova: IOVA, vaddr: memory, sizeBytes: PAGE }));
    world.run(groups[0]!.unsetContainer());
    expect(world.host.passthrough.type1.usage).toMatchObject({ containers: 1, mappings: 1 });
    world.run(groups[1]!.unsetContainer());
    expect([world.host.passthrough.type1.usage, world.core.usage.pasids]).toEqual([{ containers: 0, mappings: 0, domains: 0, binds: 0 }, 0]);
    refuseAll();
    // and begins again with nothing of before
    world.run(groups[0]!.setContainer(container));
    world.run(container.setIommu('type1v2'));
    expect(world.run(container.unmapDma(IOVA, PAGE))).toBe(0);
    user.exit();
    world.finish();
  });

  it('ends with the last of its files, in whatever order a process closes them (2g)', () => {
    for (const order of [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]) {
      const world = new PassthroughWorld({ mdevs: slices(1) });
      const user = world.user('vmm');
      const { container, groups, devices } = user.assemble(['m0']);
      world.run(container.mapDma({ iova: IOVA, vaddr: user.mmap(PAGE), sizeBytes: PAGE }));
      const files = [container, groups[0]!, devices[0]!];
      for (const [i, index] of order.entries()) {
        expect([order, i, world.core.usage.pasids]).toEqual([order, i, i < 3 && heldBy(order.slice(i)) ? 1 : 0]);
        world.run(files[index]!.close());
      }
      expect([world.host.frames.pinnedPages, world.core.usage.pasids]).toEqual([0, 0]);
      user.exit();
      world.finish();
    }
  });
});

/** Group or device are still open: the container's descriptor alone holds nothing. */
function heldBy(open: readonly number[]): boolean {
  return open.includes(1) || open.includes(2);
}

describe('IOMMU groups', () => {
  const behindSwitch = (acs: boolean) => new PassthroughWorld({
    ports: [{ name: 'sw', acs }], devices: [{ ...DSA0, port: 'sw', bdf: '0000:04:00.0' }, { ...DSA0, name: 'dsa1', port: 'sw', bdf: '0000:05:00.0' }],
  });

  it('scenario 30: two devices that are not isolated are one group: not viable while a kernel driver has one of them, and nothing to bind (C6, V1)', () => {
    const world = behindSwitch(false);
    world.give('dsa0');
    const user = world.user('vmm');
    const container = user.client.openContainer(), group = user.client.openGroup(world.groupId('dsa0'));
    expect(world.groupId('dsa0')).toBe(world.groupId('dsa1'));
    expect(world.run(group.status()).viable).toBe(false);
    expect(world.refused(group.setContainer(container), () => world.books())).toBe('EPERM');

    const { drivers } = world.host;
    world.run(drivers.unbind('idxd', world.pci('dsa1')));
    expect(world.run(group.status()).viable).toBe(true);
    world.run(group.setContainer(container));
    world.run(container.setIommu('type1v2'));
    const device = world.run(group.getDevice(world.vfioName('dsa0')));
    // the user owns the DMA of both now
    expect(world.refused(drivers.bind('idxd', world.pci('dsa1')), () => world.books())).toBe('EBUSY');
    expect(world.refused(container.bind(), () => world.books())).toBe('EINVAL');
    world.run(device.close());
    world.run(group.unsetContainer());
    world.run(drivers.bind('idxd', world.pci('dsa1')));
    expect(world.run(group.status()).viable).toBe(false);
    user.exit();
    world.finish();
  });

  it('scenario 30: with ACS they are two: one is a user\'s and bound to its process, the other the kernel\'s', () => {
    const world = behindSwitch(true);
    world.give('dsa0');
    expect(world.groupId('dsa0')).not.toBe(world.groupId('dsa1'));
    const user = world.user('spdk');
    const { container, devices: [device] } = user.assemble(['dsa0']);
    const pasid = world.run(container.bind());
    const dsa = new UserDsa(world, user, device!, { whole: true });
    world.run(dsa.start(pasid));
    const source = user.mmap(8192), target = user.mmap(8192), record = user.mmap(PAGE);
    user.write(source, pattern(8192, 9));
    expect(world.run(dsa.copy(source, target, 8192, record)).status).toBe(STATUS.SUCCESS);
    const worker = new Worker(world, undefined).open('dsa1');
    expect([same(user.read(target, 8192), pattern(8192, 9)), worker.copies('dsa1')]).toEqual([true, true]);
    user.exit();
    world.finish();
  });

  it('scenario 30: a guest is refused a device whose neighbour a kernel driver has', () => {
    const world = new PassthroughWorld({
      ports: [{ name: 'sw', acs: false }], devices: [{ ...DSA0, port: 'sw', bdf: '0000:04:00.0' }, { ...DSA0, name: 'dsa1', port: 'sw', bdf: '0000:05:00.0' }],
      guests: guestsOf(1, { devices: [{ host: 'dsa0' }] }),
    });
    const guest = world.guest();
    world.run(guest.start());
    expect([guest.state, guest.reason]).toEqual(['refused', expect.stringMatching(/viable/)]);
    world.finish();
  });
});
