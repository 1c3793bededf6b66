/** Open and close, resets, hot resets, and functions that go away (drivers/vfio/pci/vfio_pci_core.c; C17, C18). */
import { describe, expect, it } from 'vitest';
import { PCI_CONFIG_REGION, PCI_MSIX_IRQ, PCI_REQ_IRQ } from '../../vfio/device.js';
import { bytesOf, concatWords, PCI_HOT_RESET, PCI_HOT_RESET_INFO, VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, VFIO_DEVICE_PCI_HOT_RESET, wordsOfBytes } from '../../vfio/uapi/index.js';
import { IDLE, Scratch } from '../fixtures/pci-world.js';
import { ConfigPokes, VfioPciWorld, type DeviceUser } from '../fixtures/vfio-pci-world.js';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import type { PciFunctionOptions } from '../../host/pci/hardware/pci-function.js';

const COMMAND = 0x04, MEMORY = 2, MASTER = 4, SECOND = 1_000_000_000;
const ISOLATED = 0x1d;

const WITH_MSIX: Partial<PciFunctionOptions> = {
  bars: [{ index: 0, sizeBytes: 0x2000, is64: false, prefetchable: false, mmio: new Scratch() }], msix: { vectors: 2, tableBar: 0, tableOffset: 0, pbaOffset: 0x1000 },
};

function poke(user: DeviceUser, offset: number, size: 1 | 2 | 4, value: number): void {
  new ConfigPokes(user.device.file).poke(offset, size, value);
}

/** Resets of a function, as its hardware feels them. */
function resets(fn: PciFunction): string[] {
  const story: string[] = [];
  fn.listen((change) => {
    if (change === 'reset') story.push('reset');
  });
  return story;
}

/** A function alone behind a root port, a pair of isolated functions behind another, and one on the root bus. */
function machine(pciDefects: readonly string[] = [], flr = false) {
  const world = new VfioPciWorld({ pciDefects });
  const alone = world.plug(world.rootPort(0x10).secondary, 0, { ...WITH_MSIX, flr });
  const shared = world.rootPort(0x18).secondary;
  const first = world.plug(shared, 0, { ...WITH_MSIX, acs: ISOLATED, flr }), second = world.plug(shared, 1, { ...WITH_MSIX, acs: ISOLATED, flr });
  const onRoot = world.plug(world.root, 0x08, { ...WITH_MSIX, flr });
  world.boot();
  return { world, alone, first, second, onRoot };
}

const ALONE = '0000:01:00.0', FIRST = '0000:02:00.0', SECOND_FN = '0000:02:00.1', ON_ROOT = '0000:00:01.0';

describe('VFIO_DEVICE_RESET', () => {
  it('resets a function by FLR, and keeps what the user set (interrupts, virtual BARs, command)', () => {
    const { world, onRoot } = machine([], true);
    world.bind(ON_ROOT);
    const user = world.open(ON_ROOT), { fd, event } = world.event(user);
    expect(world.run(user.device.canReset())).toBe(true);
    poke(user, 0x10, 4, 0x8000_0000);
    poke(user, COMMAND, 2, MEMORY | MASTER);
    world.run(user.device.setIrqs({ index: PCI_MSIX_IRQ, eventfds: [fd] }));
    const story = resets(onRoot);
    world.run(user.device.reset());
    expect([story, user.device.readValue(PCI_CONFIG_REGION, 0x10, 4), user.device.readValue(PCI_CONFIG_REGION, COMMAND, 2)]).toEqual([['reset'], 0x8000_0000, MEMORY | MASTER]);
    onRoot.raiseMsix(0);
    world.settle();
    expect([event.count, onRoot.busMaster]).toEqual([1, true]);
  });

  it('resets by the bus a function that is alone there', () => {
    const { world, alone } = machine();
    world.bind(ALONE);
    const user = world.open(ALONE), story = resets(alone);
    world.run(user.device.reset());
    expect([story, world.run(user.device.canReset())]).toEqual([['reset'], true]);
  });

  it('is EINVAL, and not announced, where the function cannot be reset without its neighbours', () => {
    const { world, first, second, onRoot } = machine();
    for (const [name, fn] of [[FIRST, first], [ON_ROOT, onRoot]] as const) {
      world.bind(name);
      const user = world.open(name), story = resets(fn);
      expect([world.run(user.device.canReset()), world.refused(user.device.reset()), story, second.config.get(COMMAND, 2)]).toEqual([false, 'EINVAL', [], MEMORY]);
    }
  });

  it('waits for a reset that the user has started by its configuration space', () => {
    const { world, onRoot } = machine([], true);
    world.bind(ON_ROOT);
    const user = world.open(ON_ROOT), story = resets(onRoot), at = world.fn(ON_ROOT).findCapability(0x10)! + 8;
    const before = world.clock.now;
    poke(user, at, 2, 0x8000);
    world.run(user.device.reset());
    expect([story, world.clock.now - before >= SECOND / 5]).toEqual([['reset', 'reset'], true]);
  });
});

describe('open and close', () => {
  it('gives the function without bus master, reset, with memory space enabled', () => {
    const { world, onRoot } = machine([], true);
    onRoot.config.write(COMMAND, 2, MASTER);
    world.bind(ON_ROOT);
    const story = resets(onRoot);
    const user = world.open(ON_ROOT);
    expect([story, user.device.readValue(PCI_CONFIG_REGION, COMMAND, 2), onRoot.busMaster]).toEqual([['reset'], MEMORY, false]);
  });

  it('takes back everything at the last close: DMA off, interrupts gone, state as before, reset (C18)', () => {
    const { world, onRoot } = machine([], true);
    const vdev = world.bind(ON_ROOT);
    const user = world.open(ON_ROOT), { fd } = world.event(user);
    const before = Array.from({ length: 16 }, (_, i) => onRoot.config.read(i * 4, 4));
    poke(user, COMMAND, 2, MASTER);
    poke(user, 0x0c, 1, 0x10);
    world.run(user.device.setIrqs({ index: PCI_MSIX_IRQ, eventfds: [fd] }));
    const story = resets(onRoot);
    world.run(user.device.close());
    expect([onRoot.busMaster, onRoot.msix!.enabled, world.interrupts.list(), story, vdev.needsReset]).toEqual([false, false, [], ['reset'], false]);
    expect(Array.from({ length: 16 }, (_, i) => onRoot.config.read(i * 4, 4))).toEqual(before);
    world.settle();
    expect(world.interrupts.spurious).toBe(0);
  });

  it('would be seen: the defect vfio-pci.master-stays-on', () => {
    const { world, onRoot } = machine(['vfio-pci.master-stays-on'], true);
    world.bind(ON_ROOT);
    const user = world.open(ON_ROOT);
    poke(user, COMMAND, 2, MASTER);
    world.run(user.device.close());
    expect(onRoot.busMaster).toBe(true);
  });

  it('forgets what the last user wrote: the next one finds virtual registers as new, and no eventfds', () => {
    const { world } = machine([], true);
    world.bind(ON_ROOT);
    const user = world.open(ON_ROOT), { fd } = world.event(user);
    const bar = user.device.readValue(PCI_CONFIG_REGION, 0x10, 4);
    poke(user, 0x10, 4, 0x1234_0000);
    poke(user, COMMAND + 1, 1, 4);
    world.run(user.device.setIrqs({ index: PCI_REQ_IRQ, eventfds: [fd] }));
    world.run(user.device.close());
    const next = world.run(user.group.getDevice(ON_ROOT));
    expect([next.readValue(PCI_CONFIG_REGION, 0x10, 4), next.readValue(PCI_CONFIG_REGION, COMMAND, 2)]).toEqual([bar, MEMORY]);
    expect(world.refused(next.setIrqs({ index: PCI_REQ_IRQ, count: 1 }))).toBe('EINVAL');
  });

  it('resets the whole bus once nobody on it is open, where a function cannot be reset alone (needs_reset)', () => {
    const { world, first, second } = machine();
    const one = world.bind(FIRST);
    world.bind(SECOND_FN);
    const a = world.open(FIRST), b = world.open(SECOND_FN), stories = [resets(first), resets(second)];
    world.run(a.device.close());
    expect([one.needsReset, stories]).toEqual([true, [[], []]]);
    world.run(b.device.close());
    expect([one.needsReset, stories]).toEqual([false, [['reset'], ['reset']]]);
  });

  it('leaves the bus alone when a neighbour is not vfio-pci’s', () => {
    const { world, first, second } = machine();
    const one = world.bind(FIRST);
    const user = world.open(FIRST), stories = [resets(first), resets(second)];
    world.run(user.device.close());
    expect([one.needsReset, stories]).toEqual([true, [[], []]]);
  });
});

describe('hot reset', () => {
  it('names the functions that are affected, with their groups', () => {
    const { world } = machine();
    world.bind(FIRST);
    const user = world.open(FIRST);
    const group = (name: string): number => world.bus.groupOf(world.fn(name)).id;
    expect(world.run(user.device.hotResetInfo())).toEqual([
      { groupId: group(FIRST), segment: 0, bus: 2, devfn: 0 }, { groupId: group(SECOND_FN), segment: 0, bus: 2, devfn: 1 },
    ]);
    expect(group(FIRST)).not.toBe(group(SECOND_FN));
  });

  it('refuses the list with -ENOSPC and the number when there is too little room, -EINVAL below the header', () => {
    const { world } = machine();
    world.bind(FIRST);
    const user = world.open(FIRST);
    const ask = (argsz: number) => world.run(user.device.raw(VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, bytesOf(concatWords(PCI_HOT_RESET_INFO.encode({ argsz }), new Uint32Array(4)))));
    const small = ask(12 + 8);
    expect([small.refusal?.code, PCI_HOT_RESET_INFO.f.count.get(wordsOfBytes(small.bytes))]).toEqual(['ENOSPC', 2]);
    expect([ask(11).refusal?.code, ask(12 + 16).refusal?.code]).toEqual(['EINVAL', undefined]);
  });

  it('resets everything on the bus for who has all groups, and keeps windows dead meanwhile', () => {
    const { world, first, second } = machine();
    world.bind(FIRST);
    world.bind(SECOND_FN);
    const a = world.open(FIRST), b = world.open(SECOND_FN, a.client, a.container);
    const stories = [resets(first), resets(second)], window = b.device.mmap(0, 0, 0x1000), seen: number[] = [];
    for (const fn of [first, second]) fn.listen((change) => change === 'reset' && seen.push(window.read(0x20, 4)));
    window.write(0x20, 4, 5);
    world.run(a.device.hotReset([a.group, b.group]));
    expect([stories, seen, window.read(0x20, 4)]).toEqual([[['reset'], ['reset']], [0xffff_ffff, 0xffff_ffff], 5]);
    expect([first.config.get(COMMAND, 2) & MEMORY, second.config.get(0x10, 4)]).toEqual([MEMORY, world.fn(SECOND_FN).resource(0)!.start]);
  });

  it('refuses a caller who lacks a group, neighbours of other drivers, wrong descriptors, and a root bus', () => {
    const { world, first, second } = machine();
    for (const name of [FIRST, ON_ROOT]) world.bind(name);
    const a = world.open(FIRST), root = world.open(ON_ROOT), stories = [resets(first), resets(second)];
    const raw = (words: ArrayLike<number>) => world.run(a.device.raw(VFIO_DEVICE_PCI_HOT_RESET, bytesOf(words))).refusal?.code;
    const request = (fds: number[], more = {}) => concatWords(PCI_HOT_RESET.encode({ argsz: 12 + fds.length * 4, count: fds.length, ...more }), fds);
    expect(world.refused(a.device.hotReset([a.group]))).toBe('EINVAL');
    world.bind(SECOND_FN);
    expect(world.refused(a.device.hotReset([a.group]))).toBe('EINVAL');
    expect(world.refused(a.device.hotReset([]))).toBe('EINVAL');
    expect(world.refused(a.device.hotReset([a.group, a.group, a.group]))).toBe('EINVAL');
    expect(raw(request([a.group.fd, 77]))).toBe('EBADF');
    expect(raw(request([a.group.fd, a.container.fd]))).toBe('EINVAL');
    expect(raw(request([a.group.fd], { flags: 1 }))).toBe('EINVAL');
    expect(raw(request([a.group.fd], { argsz: 11 }))).toBe('EINVAL');
    expect(world.refused(root.device.hotReset([root.group]))).toBe('ENODEV');
    expect(world.refused(root.device.hotResetInfo())).toBe('ENODEV');
    expect(world.run(a.device.raw(0x1234, new Uint8Array(4))).refusal?.code).toBe('ENOTTY');
    expect(stories).toEqual([[], []]);
  });
});

describe('the driver', () => {
  it('takes no bridge, and no physical function whose virtual ones are enabled', () => {
    const { world } = machine();
    const port = world.fn('0000:00:02.0');
    world.drivers.setDriverOverride(port, 'vfio-pci');
    expect(world.refused(world.drivers.bind('vfio-pci', port))).toBe('EINVAL');
    const other = new VfioPciWorld();
    other.plug(other.root, 0x08, { sriov: { totalVfs: 1, vfDeviceId: 1, createVf: (physfn) => new PciFunction({ ...IDLE, name: 'vf', physfn }) } });
    other.boot();
    other.run(other.bus.enableSriov(other.fn(ON_ROOT), 1));
    expect(() => other.bind(ON_ROOT)).toThrow('EBUSY');
    expect(other.vfio.groupIds).toEqual([]);
  });

  it('waits at unbind until the user lets go, asking by the request eventfd at once and every 10 s (C17)', () => {
    const { world } = machine([], true);
    world.bind(ON_ROOT);
    const user = world.open(ON_ROOT), { fd, event } = world.event(user);
    world.run(user.device.setIrqs({ index: PCI_REQ_IRQ, eventfds: [fd] }));
    const unbound = world.scheduler.spawn('unbind', world.drivers.unbind('vfio-pci', world.fn(ON_ROOT)), { joined: true });
    world.clock.run({ untilNs: world.clock.now + 25 * SECOND });
    expect([unbound.ended, event.signals]).toEqual([false, 3]);
    expect(world.log.lines.filter(({ text }) => text.includes('Relaying device request')).map(({ text }) => text)).toEqual([`vfio-pci ${ON_ROOT}: Relaying device request to user (#0)`]);
    world.run(user.device.close());
    world.settle();
    expect([unbound.state, world.drivers.driverOf(world.fn(ON_ROOT))]).toEqual(['done', undefined]);
  });

  it('warns once when the user has no request eventfd (C17)', () => {
    const { world } = machine([], true);
    world.bind(ON_ROOT);
    const user = world.open(ON_ROOT);
    world.scheduler.spawn('unbind', world.drivers.unbind('vfio-pci', world.fn(ON_ROOT)));
    world.clock.run({ untilNs: world.clock.now + 35 * SECOND });
    expect(world.log.lines.filter(({ text }) => text.includes('No device request channel')).length).toBe(1);
    world.run(user.device.close());
    world.settle();
  });

  it('lets a function that is pulled out go when its user has closed it; its group is gone', () => {
    const { world, alone } = machine();
    world.bind(ALONE);
    const user = world.open(ALONE), { fd, event } = world.event(user);
    world.run(user.device.setIrqs({ index: PCI_REQ_IRQ, eventfds: [fd] }));
    world.run(user.device.setIrqs({ index: PCI_MSIX_IRQ, eventfds: [-1, fd] }));
    world.complex.remove(alone, { surprise: true });
    const removal = world.scheduler.spawn('removal', world.bus.removeAbsent(), { joined: true });
    world.clock.run({ untilNs: world.clock.now + SECOND });
    expect([removal.ended, event.signals, user.device.readValue(PCI_CONFIG_REGION, 0, 4), user.device.readValue(0, 0, 4)]).toEqual([false, 1, 0xffff_ffff, 0xffff_ffff]);
    world.run(user.device.close());
    world.settle();
    expect([removal.state, world.bus.find(ALONE), world.interrupts.list()]).toEqual(['done', undefined, []]);
    expect(world.refused(user.group.getDevice(ALONE))).toBe('EINVAL');
    expect(world.vfio.groupIds).toEqual([]);
  });

  it('refuses to open a function that is gone already', () => {
    const { world, alone } = machine();
    world.bind(ALONE);
    world.complex.remove(alone, { surprise: true });
    expect(() => world.open(ALONE)).toThrow('ENODEV');
  });
});
