/**
 * What attacks on guests' isolation have found, each as the shortest sequence that showed it.
 */
import { describe, expect, it } from 'vitest';
import { EventFd } from '../../host/eventfd.js';
import type { Steps } from '../../sim/task.js';
import { isErrno } from '../../sim/errno.js';
import { VfioClient } from '../../vfio/client/index.js';
import { PCI_BAR2_REGION, PCI_CONFIG_REGION, PCI_INTX_IRQ, REGION_STRIDE } from '../../vfio/device.js';
import type { MigrationDataFile } from '../../vfio/migration/data-file.js';
import * as uapi from '../../vfio/uapi/index.js';
import { OPCODE } from '../../devices/dsa/spec/descriptor.js';
import { encodeDescriptor } from '../../devices/dsa/spec/encode.js';
import { DSA_CMD } from '../../devices/dsa/spec/registers.js';
import { DsaWorld } from '../fixtures/dsa-world.js';
import { VfioPciWorld } from '../fixtures/vfio-pci-world.js';
import { HostileMachine } from './hostile-machine.js';

function errno(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    if (isErrno(error)) return error.code;
    throw error;
  }
  return 'ok';
}

function spawn<T>(machine: HostileMachine, steps: Steps<T>) {
  return machine.host.scheduler.spawn('test', steps, { joined: true });
}

/** One event. */
function step({ host: { clock } }: HostileMachine): void {
  clock.run({ stop: () => true });
}

describe('descriptors', () => {
  it('leaves nothing of a group whose owner exits in the middle of a call, whichever the moment', () => {
    const machine = new HostileMachine(0, 'found');
    const { vfio, type1 } = machine.host.passthrough;
    const [first, second] = [machine.loot()[2]!, machine.loot()[3]!];
    let ended = false;
    for (let events = 0; !ended; events++) {
      const process = machine.machine.scenario.world.newProcess('user');
      const client = new VfioClient(vfio, process);
      // descriptors are closed in ascending order
      const other = client.openGroup(second.group), one = client.openGroup(first.group), container = client.openContainer();
      const vaddr = machine.run(process.mm.mmap(0x8000));
      machine.run(one.setContainer(container));
      machine.run(container.setIommu('type1v2'));
      machine.run(container.mapDma({ iova: 0, vaddr, sizeBytes: 0x8000 }));
      // one thread waits for an invalidation with the container's lock, the others for that lock
      const tasks = [
        spawn(machine, container.unmapDma(0, 0x8000)), spawn(machine, other.setContainer(container)), spawn(machine, container.mapDma({ iova: 0x8000, vaddr, sizeBytes: 0x8000 })),
        spawn(machine, other.getDevice(second.name)),
      ];
      for (let i = 0; i < events && tasks.some((task) => !task.ended); i++) step(machine);
      ended = tasks.every((task) => task.ended);
      machine.run(process.exit());
      machine.host.clock.run({ stop: () => tasks.every((task) => task.ended) });
      expect(machine.machine.deadlockReport(), `after ${events} events`).toEqual([]);
      expect([vfio.group(first.group)!.container?.id, vfio.group(second.group)!.container?.id, type1.usage.containers], `after ${events} events`).toEqual([undefined, undefined, 0]);
    }
    machine.look();
    machine.finish();
  });
});

describe('migration', () => {
  it('logs a range of the whole address space without room for all of it', () => {
    const machine = new HostileMachine(0, 'found');
    const { device, process } = machine.holding('tty');
    const { migration } = device;
    expect(errno(() => machine.run(migration.startLogging([{ iova: 0, sizeBytes: 2 ** 52 }])))).toBe('ok');
    expect(machine.run(migration.report(0, 0x10_0000))).toEqual(new Uint8Array(32));
    expect(errno(() => machine.run(migration.report(0, 2 ** 52, 2 ** 46)))).toBe('ok');
    // a bitmap of 2^37 bytes is nowhere
    const words = uapi.FEATURE_DMA_LOGGING_REPORT.encode({ iova: 0, length: 2 ** 52, page_size: 4096, bitmap: machine.run(process.mm.mmap(4096)) });
    expect(errno(() => machine.run(device.getFeature(uapi.VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT, uapi.bytesOf(words))))).toBe('EFAULT');
    machine.run(process.exit());
    machine.finish();
  });

  it('takes no state of a transfer that the card would never have begun', () => {
    const machine = new HostileMachine(0, 'found');
    const { device, process } = machine.holding('tty');
    const saving = machine.run(device.migration.setState(uapi.VFIO_DEVICE_STATE_STOP_COPY))!;
    const state = new Uint8Array(4096);
    const length = machine.run((process.file(saving) as MigrationDataFile).read(state));
    machine.run(device.reset());
    // lengths and status of the first port's DMA: 2 MiB, busy
    const port = 24 + 256;
    for (const [at, value] of [[48, 2 ** 21], [52, 2 ** 21], [56, 1]] as const) new DataView(state.buffer).setUint32(port + at, value, true);
    const resuming = machine.run(device.migration.setState(uapi.VFIO_DEVICE_STATE_RESUMING))!;
    machine.run((process.file(resuming) as MigrationDataFile).write(state.subarray(0, length)));
    expect(errno(() => machine.run(device.migration.setState(uapi.VFIO_DEVICE_STATE_STOP)))).toBe('EINVAL');
    machine.run(process.exit());
    machine.finish();
  });

  it('gives the data descriptor back when its number does not reach the caller', () => {
    const machine = new HostileMachine(0, 'found');
    const { device, process } = machine.holding('tty');
    const page = machine.run(process.mm.mmap(4096));
    machine.run(process.mm.write(page, uapi.bytesOf(uapi.concatWords(
      uapi.DEVICE_FEATURE.encode({ argsz: 16, flags: uapi.VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE | uapi.VFIO_DEVICE_FEATURE_SET }),
      uapi.FEATURE_MIG_STATE.encode({ device_state: uapi.VFIO_DEVICE_STATE_STOP_COPY, data_fd: 0xffff_ffff })))));
    machine.run(process.mm.mprotect(page, 4096, 1));
    const before = process.descriptors();
    expect(errno(() => machine.run(process.ioctl(device.fd, uapi.VFIO_DEVICE_FEATURE, page)))).toBe('EFAULT');
    expect(process.descriptors()).toEqual(before);
    machine.run(process.exit());
    machine.finish();
  });
});

describe('what a user can repeat', () => {
  it('floods neither the host\'s log nor its driver with errors of a mediated device', () => {
    const machine = new HostileMachine(0, 'found');
    const { device, process } = machine.holding('mine');
    for (let i = 0; i < 400; i++) {
      // a store of one byte to the queue's portal
      device.write(PCI_BAR2_REGION, 0x1000, Uint8Array.of(1));
      machine.wait(3000);
    }
    const { idxd } = machine.host.kernelDrivers;
    expect(machine.host.log.lines.filter(({ text }) => text.includes('err['))).toHaveLength(10);
    expect(idxd.device(machine.pci('dsa0')).errors).toHaveLength(256);
    machine.run(process.exit());
    machine.finish();
  });

  it('reads as much as there is, however much a pread asks for', () => {
    const machine = new HostileMachine(0, 'found');
    const { device, process } = machine.holding('edu0');
    const address = machine.run(process.mm.mmap(0x4000));
    device.writeValue(PCI_CONFIG_REGION, 4, 2, 2);
    const { sizeBytes } = machine.run(device.region(0));
    expect(machine.run(device.file.pread(process, address, 2 ** 52, sizeBytes - 16))).toBe(16);
    expect(errno(() => machine.run(device.file.pread(process, address, 2 ** 52, PCI_CONFIG_REGION * REGION_STRIDE)))).toBe('EFAULT');
    expect(errno(() => machine.run(device.file.pwrite(process, address, 2 ** 52, 0)))).toBe('EFAULT');
    machine.run(process.exit());
    machine.finish();
  });
});

describe('eventfds', () => {
  it('lets one eventfd be an interrupt and its own unmasking, as a storm that time passes in', () => {
    const machine = new HostileMachine(0, 'found');
    const { device, process } = machine.holding('edu0');
    const eventfd = new EventFd(machine.host.scheduler);
    const fd = process.open(eventfd);
    device.writeValue(PCI_CONFIG_REGION, 4, 2, 2);
    machine.run(device.setIrqs({ index: PCI_INTX_IRQ, eventfds: [fd] }));
    machine.run(device.setIrqs({ index: PCI_INTX_IRQ, action: 'unmask', eventfds: [fd] }));
    device.write(0, 0x60, Uint8Array.of(1, 0, 0, 0));
    machine.wait(100_000);
    expect(eventfd.signals).toBeGreaterThan(1);
    expect(eventfd.signals).toBeLessThan(1000);
    device.write(0, 0x64, Uint8Array.of(1, 0, 0, 0));
    const { signals } = eventfd;
    machine.wait(100_000);
    expect(eventfd.signals - signals).toBeLessThan(3);
    machine.run(process.exit());
    machine.finish();
  });

  it('injects when somebody else has read the counter before', () => {
    const machine = new HostileMachine(0, 'found');
    const guest = machine.start('neighbour');
    const eventfd = new EventFd(machine.host.scheduler);
    eventfd.listen(() => void eventfd.read());
    let heard = 0;
    const end = guest.vmm!.vm.irqfd(eventfd, () => void heard++);
    eventfd.signal();
    expect(heard).toBe(1);
    end();
    machine.run(guest.kill());
    machine.finish();
  });
});

describe('containers', () => {
  it('counts the memory of dirty bitmaps: mappings of the whole address space are refused a log', () => {
    const machine = new HostileMachine(0, 'found');
    const { container, process } = machine.holding('tty');
    for (let i = 0; i < 8; i++) machine.run(container.mapDma({ iova: i * 2 ** 42, vaddr: 0, sizeBytes: 2 ** 42 }));
    expect(errno(() => machine.run(container.startDirtyTracking()))).toBe('ENOMEM');
    machine.run(container.unmapDma(0, 0, { all: true }));
    machine.run(container.mapDma({ iova: 0, vaddr: 0, sizeBytes: 2 ** 30 }));
    expect(errno(() => machine.run(container.startDirtyTracking()))).toBe('ok');
    machine.run(container.mapDma({ iova: 2 ** 42, vaddr: 0, sizeBytes: 2 ** 42 }));
    expect(errno(() => machine.run(container.mapDma({ iova: 2 ** 43, vaddr: 0, sizeBytes: 2 ** 42 })))).toBe('ENOMEM');
    machine.run(container.unmapDma(2 ** 42, 2 ** 42));
    expect(errno(() => machine.run(container.mapDma({ iova: 2 ** 43, vaddr: 0, sizeBytes: 2 ** 42 })))).toBe('ok');
    machine.run(process.exit());
    machine.finish();
  });
});

describe('resets of a bus', () => {
  const FIRST = '0000:01:00.0', SECOND = '0000:01:00.1';

  /** Two functions that share their bus and no group. */
  function pair(flr: readonly [boolean, boolean]) {
    const world = new VfioPciWorld();
    const { secondary } = world.rootPort(0x10);
    const fns = flr.map((one, i) => world.plug(secondary, i, { acs: 0x1d, flr: one }));
    world.boot();
    for (const name of [FIRST, SECOND]) world.bind(name);
    const resets: number[] = [0, 0];
    fns.forEach((fn, i) => fn.listen((change) => change === 'reset' && resets[i]!++));
    return { world, resets };
  }

  it('takes no group for the caller\'s that somebody else has by the time of the reset', () => {
    const { world, resets } = pair([true, true]);
    const client = world.client(), one = world.open(FIRST, client), two = world.open(SECOND, client);
    const go = <T>(steps: Steps<T>) => world.scheduler.spawn('test', steps, { joined: true });
    const waiting = [go(two.device.reset()), go(two.device.hotReset([one.group, two.group]))];
    world.clock.run({ untilNs: world.clock.now + 1_000_000 });
    world.run(one.device.close());
    world.run(one.group.unsetContainer());
    world.run(one.group.close());
    // the reset that is on its way still has the group
    expect(errno(() => world.open(FIRST))).toBe('EBUSY');
    world.clock.run({ stop: () => waiting.every(({ ended }) => ended) });
    const victim = world.open(FIRST), before = resets[0];
    world.settle();
    expect([waiting.map(({ state }) => state), resets[0] === before, victim.device.file.name.includes(FIRST)]).toEqual([['done', 'done'], true, true]);
  });

  it('does not reset the bus for want of users when one is just opening', () => {
    const { world, resets } = pair([false, true]);
    const first = world.open(FIRST);
    const opening = world.client();
    const container = opening.openContainer(), group = opening.openGroup(world.bus.groupOf(world.fn(SECOND)).id);
    world.run(group.setContainer(container));
    world.run(container.setIommu('type1v2'));
    // the second function's reset at its opening takes 100 ms
    const task = world.scheduler.spawn('open', group.getDevice(SECOND), { joined: true });
    world.clock.run({ untilNs: world.clock.now + 1_000_000 });
    const closing = world.scheduler.spawn('close', first.device.close(), { joined: true });
    world.clock.run({ stop: () => task.ended });
    const before = resets[1];
    world.settle();
    expect([closing.state, resets[1]]).toEqual(['done', before]);
  });
});

describe('portals', () => {
  it('forget a line that was begun before the queue was reset: the next user submits nothing of it', () => {
    const world = new DsaWorld();
    world.start({ mode: 'dedicated' });
    const bytes = encodeDescriptor({ opcode: OPCODE.MEMMOVE, source: 0x10_0000, destination: 0x20_0000, size: 64, completion: 0x30_0000 });
    const view = new DataView(bytes.buffer);
    const store = (at: number): void => world.bar2.write(at, 8, view.getUint32(at, true), view.getUint32(at + 4, true));
    for (let at = 0; at < 56; at += 8) store(at);
    expect([world.command(DSA_CMD.RESET_WQ, 1) & 0xff, world.command(DSA_CMD.ENABLE_WQ) & 0xff]).toEqual([0, 0]);
    store(56);
    world.settle();
    expect(world.reports).toEqual([]);
    // nor of what came while it was off
    expect(world.command(DSA_CMD.RESET_WQ, 1) & 0xff).toBe(0);
    for (let at = 0; at < 56; at += 8) store(at);
    expect(world.command(DSA_CMD.ENABLE_WQ) & 0xff).toBe(0);
    store(56);
    world.settle();
    expect(world.reports).toEqual([]);
    for (let at = 0; at < 64; at += 8) store(at);
    world.settle();
    expect(world.reports).toHaveLength(1);
  });
});
