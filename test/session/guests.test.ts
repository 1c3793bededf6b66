/** Guests, mediated devices and VFIO driven by code: what each call does, what it refuses, and that nothing is left behind. */
import { describe, expect, it } from 'vitest';
import { createMachine, Killed, PCI_CONFIG_REGION, vfioUapi, type MachineSession, type TopologyInput } from '../../harness/index.js';
import '../../harness/vitest.js';

const uuid = (n: number): string => `83b8f4f2-509f-382f-3c1e-e6bfe0fa10${String(n).padStart(2, '0')}`;

/** Two guests with a slice of one accelerator each, a slice that is only defined, and a serial card whose driver pins. */
const TOPOLOGY: TopologyInput = {
  version: 1, name: 'guests',
  host: {
    memory: '1GiB', iommu: { model: 'intel-vtd' },
    devices: [{ model: 'dsa', name: 'dsa0', bdf: '6a:01.0', 'work-queues': [{ type: 'mdev', size: 16 }, { type: 'mdev', size: 16 }, { type: 'mdev', size: 16 }] }, { model: 'edu', name: 'edu0', bdf: '00:03.0' }],
    'mdev-parents': [{ model: 'mtty', name: 'mtty0', 'hot-unplug': true }],
  },
  mdevs: [
    { uuid: uuid(1), name: 'slice0', parent: 'dsa0', mdev_type: 'idxd-1dwq-v1' }, { uuid: uuid(2), name: 'slice1', parent: 'dsa0', mdev_type: 'idxd-1dwq-v1' },
    { uuid: uuid(3), name: 'later', parent: 'dsa0', mdev_type: 'idxd-1dwq-v1', start: 'manual' }, { uuid: uuid(4), name: 'serial0', parent: 'mtty0', mdev_type: 'mtty-1' },
  ],
  guests: [
    { name: 'vm0', devices: [{ mdev: 'slice0', name: 'dsa0' }] }, { name: 'vm1', devices: [{ mdev: 'slice1', name: 'dsa0' }] },
    { name: 'later', devices: [{ mdev: 'later', name: 'dsa0' }] }, { name: 'serial', devices: [{ mdev: 'serial0', name: 'serial' }] },
    { name: 'limited', 'memlock-limit': '32MiB', devices: [{ mdev: 'slice1', name: 'dsa0' }] },
  ],
};

/** Guests that nobody starts do not run: every test says which do. */
async function machineWith(...guests: string[]): Promise<MachineSession> {
  return createMachine({ ...TOPOLOGY, guests: TOPOLOGY.guests!.filter(({ name }) => guests.includes(name)) });
}

const pattern = (size: number, seed = 1): Uint8Array => Uint8Array.from({ length: size }, (_, i) => (i * 31 + (i >> 8) * 7 + seed) & 0xff);

/** A process in a running guest with an open queue and two buffers, the first one filled. */
async function ready(machine: MachineSession, guest = 'vm0', size = 65_536) {
  const vm = machine.guest(guest);
  expect(await vm.start()).toBe('running');
  const app = await vm.process('app');
  const device = await app.open(guest === 'serial' ? 'serial' : 'dsa0');
  const [src, dst] = [await app.malloc(size), await app.malloc(size)];
  await app.write(src, pattern(size));
  return { vm, app, device, src, dst, size };
}

describe('a guest driven by code', () => {
  it('copies through its slice of an accelerator and passes', async () => {
    const machine = await machineWith('vm0');
    const { vm, app, device, src, dst, size } = await ready(machine);
    expect(await device.copy(src, dst, size)).toMatchObject({ status: 'success', bytes: size });
    expect(await app.read(dst, size)).toEqual(pattern(size));
    await device.close();
    await app.exit();
    await vm.shutdown();
    expect(vm.state).toBe('off');
    expect(machine).toPass();
    expect(machine).toHaveFlow('vm0/app/dsa0', { guest: 'vm0', status: 'ok', bytes: size, pageRequests: 0, unrecoverable: 0 });
  });

  it('computes, compares and batches there as on the host', async () => {
    const machine = await machineWith('vm0');
    const { app, device, src, dst, size } = await ready(machine);
    expect(await device.fill(dst, size, 0x0807_0605_0403_0201n)).toMatchObject({ status: 'success' });
    expect([...(await app.read(dst + 8n, 3))]).toEqual([1, 2, 3]);
    expect(await device.batch([{ copy: { from: src, to: dst, size: 4096 } }, { compare: { a: src, b: dst, size: 8192 } }])).toMatchObject([{ status: 'success' }, { status: 'mismatch', value: 4096 }]);
    await app.write(src, new TextEncoder().encode('123456789'));
    expect((await device.crc(src, 9)).value >>> 0).toBe(0xe306_9283);
    await app.exit();
    expect(machine).toPass();
  });

  it('shares the accelerator with another guest at the same time', async () => {
    const machine = await machineWith('vm0', 'vm1');
    const one = await ready(machine, 'vm0'), two = await ready(machine, 'vm1');
    await two.app.write(two.src, pattern(two.size, 9));
    await Promise.all([one, two].map(({ device, src, dst, size }) => device.copy(src, dst, size)));
    expect(await one.app.read(one.dst, one.size)).toEqual(pattern(one.size));
    expect(await two.app.read(two.dst, two.size)).toEqual(pattern(two.size, 9));
    const [a, b] = [machine.walk(`vm0/app/0x${one.dst.toString(16)}`), machine.walk(`vm1/app/0x${two.dst.toString(16)}`)];
    expect(a.pasid).not.toBe(b.pasid);
    expect(a.physical).not.toBe(b.physical);
    await Promise.all([one.app.exit(), two.app.exit()]);
    expect(machine).toPass();
  });

  it('stands still while it is paused', async () => {
    const machine = await machineWith('vm0');
    const { vm, app, device, src, dst, size } = await ready(machine);
    let ended = false;
    const copying = device.copy(src, dst, size).then((result) => { ended = true; return result; });
    await machine.sleep('1us');
    await vm.pause();
    expect(vm.state).toBe('paused');
    await machine.sleep('5ms');
    expect(ended).toBe(false);
    await expect(vm.pause()).toRefuse('EINVAL');
    await vm.resume();
    expect((await copying).status).toBe('success');
    await expect(vm.resume()).toRefuse('EINVAL');
    await app.exit();
    expect(machine).toPass();
  });

  it('is killed: waiting calls are rejected, memory and PASID are free, and it starts again', async () => {
    const machine = await machineWith('vm0');
    const { vm, device, src, dst, size } = await ready(machine, 'vm0', 1 << 20);
    const copying = device.copy(src, dst, size).catch((error: unknown) => error);
    await machine.sleep('10us');
    await vm.kill();
    expect(await copying).toBeInstanceOf(Killed);
    expect([vm.state, vm.reason]).toEqual(['killed', 'VMM killed']);
    await expect(vm.kill()).toRefuse('ESRCH');
    await expect(vm.process('again')).toRefuse('ENODEV');
    await expect(device.noop()).toRefuse('ENODEV');
    expect(machine.model.host.frames.pinnedPages).toBe(0);
    expect(await vm.start()).toBe('running');
    await machine.run();
    expect(machine.summary()).toMatchObject({ end: 'finished', leaks: { pasids: 0, pinnedPages: 0, domains: 0, frames: 0 } });
    expect(machine).toHaveFlow('vm0/app/dsa0', { status: 'failed', reason: 'VMM killed' });
    expect(machine.summary().invariants.filter(({ status }) => status !== 'ok')).toEqual([]);
  });

  it('is reset: its processes are gone, names are free, the device works again', async () => {
    const machine = await machineWith('vm0');
    const first = await ready(machine);
    await first.vm.reboot();
    expect(first.app.exited).toBe(true);
    const app = await first.vm.process('app');
    const device = await app.open('dsa0');
    const [src, dst] = [await app.malloc(4096), await app.malloc(4096)];
    await app.write(src, pattern(4096));
    expect((await device.copy(src, dst, 4096)).status).toBe('success');
    expect(await app.read(dst, 4096)).toEqual(pattern(4096));
    await app.exit();
    await machine.run();
    expect(machine.summary().guests).toMatchObject([{ name: 'vm0', boots: 2 }]);
    expect(machine.summary().leaks).toEqual({ pasids: 0, pinnedPages: 0, domains: 0, frames: 0 });
  });

  it('gets memory, and gives none back while a device pins it', async () => {
    const machine = await machineWith('vm0', 'serial');
    const { vm, app } = await ready(machine);
    await vm.addMemory('32MiB');
    await expect(vm.balloon('48MiB')).toRefuse('EBUSY');
    const serial = await ready(machine, 'serial', 4096);
    await serial.vm.balloon('48MiB');
    expect((await serial.device.copy(serial.src, serial.dst, 4096)).status).toBe('success');
    await serial.vm.balloon('64MiB');
    await Promise.all([app.exit(), serial.app.exit()]);
    expect(machine).toPass();
  });

  it('is refused with the missing link in words, and leaves nothing behind', async () => {
    const machine = await machineWith('later', 'limited');
    const { frames } = machine.model.host;
    const before = frames.inUse;
    const [later, limited] = [machine.guest('later'), machine.guest('limited')];
    expect(await limited.start()).toBe('refused');
    expect(limited.reason).toMatch(/^-ENOMEM: .*VFIO_IOMMU_MAP_DMA of RAM .* may lock 8192 pages \(RLIMIT_MEMLOCK\)/);
    expect(await later.start()).toBe('refused');
    expect(later.reason).toBe('-ENODEV: mediated device later has not been started');
    expect([frames.inUse, frames.pinnedPages]).toEqual([before, 0]);
    await machine.startMdev('later');
    expect(await later.start()).toBe('running');
    await expect(later.start()).toRefuse('EBUSY');
    await expect(() => machine.guest('nobody')).toRefuse('ENODEV');
  });

  it('loses a mediated device that the host wants back', async () => {
    const machine = await machineWith('vm0');
    const { vm, app, device } = await ready(machine);
    await device.close();
    await machine.stopMdev('slice0');
    expect(vm.state).toBe('running');
    expect(vm.lspci()).toBe('');
    await expect(app.open('dsa0')).toRefuse('ENODEV');
    await expect(machine.stopMdev('slice0')).toRefuse('ENODEV');
    await expect(machine.startMdev('slice7')).toRefuse('ENOENT');
    await machine.startMdev('slice0');
    await app.exit();
    expect(machine).toPass();
  });

  it('shows its bus and its log, and the host\'s log shows both', async () => {
    const machine = await machineWith('vm0');
    const { vm } = await ready(machine);
    expect(vm.lspci({ numeric: 2 })).toBe('00:04.0 System peripheral [0880]: Intel Corporation Device [8086:0b25]\n');
    const lines = vm.dmesg();
    expect(lines.at(-1)).toMatch(/^\[ {4}0\.0000\d\d\] idxd 0000:00:04\.0: Intel\(R\) Accelerator Device \(v100\)$/);
    expect(machine.dmesg().filter((line) => line.startsWith('[vm0] '))).toEqual(lines.map((line) => `[vm0] ${line}`));
    expect(machine.dmesg()[0]).toMatch(/^\[ +-1\.000000\] DMAR: /);
    await vm.kill();
    expect(vm.dmesg()).toEqual(lines);
  });

  it('refuses what needs it to run, and names that are taken', async () => {
    const machine = await machineWith('vm0');
    const vm = machine.guest('vm0');
    expect([vm.name, vm.state, vm.reason, vm.dmesg()]).toEqual(['vm0', 'off', '', []]);
    for (const refused of [vm.shutdown(), vm.reboot(), vm.pause(), vm.balloon(1), vm.addMemory('2MiB')]) await expect(refused).toRefuse('EINVAL');
    await expect(vm.process('app')).toRefuse('ENODEV');
    await expect(() => vm.lspci()).toRefuse('ENODEV');
    await vm.start();
    const app = await vm.process('app');
    await expect(vm.process('app')).toRefuse('EEXIST');
    // a process of the host may have that name
    const host = await machine.process('app');
    await expect(app.open('dsa1')).toRefuse('ENODEV');
    await expect(() => app.vfio()).toRefuse('ENODEV');
    await Promise.all([app.exit(), host.exit()]);
    expect(machine).toPass();
  });

  it('is started by the run when code has not touched it, and not twice when it has', async () => {
    const machine = await machineWith('vm0', 'vm1');
    const { vm, app } = await ready(machine, 'vm0');
    await app.exit();
    expect(machine.guest('vm1').state).toBe('off');
    await machine.run('1ms');
    expect([vm.state, machine.guest('vm1').state]).toEqual(['running', 'running']);
    await machine.run();
    expect(machine).toPass();
    expect(machine.summary().guests.map(({ name, boots }) => [name, boots])).toEqual([['vm0', 1], ['vm1', 1]]);
  });

  it('shuts down when its scope ends', async () => {
    await using machine = await machineWith('vm0', 'later');
    const vm = machine.guest('vm0');
    {
      await using scoped = vm;
      await scoped.start();
      await using app = await scoped.process('app');
      await using device = await app.open('dsa0');
      expect((await device.noop()).status).toBe('success');
    }
    expect(vm.state).toBe('off');
    {
      await using refused = machine.guest('later');
      expect(await refused.start()).toBe('refused');
    }
    {
      await using paused = vm;
      await paused.start();
      await paused.pause();
    }
    expect(vm.state).toBe('killed');
  });

  it('gives the same run for the same seed', async () => {
    const hash = async (): Promise<string> => {
      const machine = await machineWith('vm0', 'vm1');
      const one = await ready(machine, 'vm0'), two = await ready(machine, 'vm1');
      await Promise.all([one.device.copy(one.src, one.dst, one.size), two.device.copy(two.src, two.dst, two.size)]);
      await Promise.all([one.app.exit(), two.app.exit()]);
      expect(machine).toPass();
      return machine.summary().traceHash;
    };
    expect(await hash()).toBe(await hash());
  });
});

describe('a driver in user space', () => {
  const HOST: TopologyInput = { version: 1, name: 'user-space', host: { memory: '1GiB', iommu: { model: 'intel-vtd' }, devices: [{ model: 'edu', name: 'edu0', bdf: '00:03.0' }] } };

  it('opens container, group and device, maps memory and unmaps it', async () => {
    const machine = await createMachine(HOST);
    const { kernel } = machine;
    await kernel.setDriver('edu0', 'vfio-pci');
    const app = await machine.process('app');
    const vfio = app.vfio();
    const container = vfio.openContainer(), group = vfio.openGroup(kernel.iommuGroup('edu0'));
    expect(await app.call(group.status())).toEqual({ viable: true, containerSet: false });
    await app.call(group.setContainer(container));
    await app.call(container.setIommu('type1v2'));
    const buffer = await app.mmap(65_536);
    await app.call(container.mapDma({ iova: 0x10_0000, vaddr: buffer, sizeBytes: 65_536 }));
    expect(machine.model.host.frames.pinnedPages).toBe(16);
    expect(machine.walk('edu0/-/0x101000').physical).toBe(app.physicalOf(buffer + 4096n));
    const device = await app.call(group.getDevice('0000:00:03.0'));
    expect(device.readValue(PCI_CONFIG_REGION, 0, 4)).toBe(0x11e8_1234);
    expect(await app.call(container.unmapDma(0x10_0000, 65_536))).toBe(65_536);
    expect(machine.walk('edu0/-/0x101000').physical).toBeUndefined();
    await app.exit();
    await kernel.setDriver('edu0');
    expect(machine).toPass();
  });

  it('gets an errno for a record that is too short, and nothing has changed (E27)', async () => {
    const machine = await createMachine(HOST);
    await machine.kernel.setDriver('edu0', 'vfio-pci');
    const app = await machine.process('app');
    const vfio = app.vfio();
    const container = vfio.openContainer();
    await app.call(vfio.openGroup(machine.kernel.iommuGroup('edu0')).setContainer(container));
    await app.call(container.setIommu('type1v2'));
    const { DMA_MAP, VFIO_IOMMU_MAP_DMA, bytesOf } = vfioUapi;
    const record = { argsz: DMA_MAP.sizeBytes, flags: 3, vaddr: await app.mmap(4096), iova: 0x1000, size: 4096 };
    const map = async (change: object) => (await app.call(container.raw(VFIO_IOMMU_MAP_DMA, bytesOf(DMA_MAP.encode({ ...record, ...change }))))).refusal?.code;
    expect(await map({ argsz: DMA_MAP.sizeBytes - 1 })).toBe('EINVAL');
    expect(machine.model.host.frames.pinnedPages).toBe(0);
    expect(await map({})).toBeUndefined();
    await expect(app.call(container.mapDma({ iova: 0x1000, vaddr: record.vaddr, sizeBytes: 4096 }))).toRefuse('EEXIST');
    expect(machine.model.host.frames.pinnedPages).toBe(1);
    await app.exit();
    expect(machine).toPass();
  });

  it('is refused a group whose device another driver has, and a driver that is not there', async () => {
    const machine = await createMachine(HOST);
    const { kernel } = machine;
    const app = await machine.process('app');
    await expect(() => app.vfio().openGroup(kernel.iommuGroup('edu0'))).toRefuse('ENODEV');
    await expect(kernel.setDriver('edu0', 'vfio-platform')).toRefuse('ENODEV');
    expect(machine.lspci({ verbose: 1 })).not.toContain('Kernel driver in use');
    await kernel.setDriver('edu0');
    expect(machine.lspci({ verbose: 1 })).toContain('Kernel driver in use: edu');
    await expect(() => kernel.iommuGroup('edu7')).toRefuse('ENODEV');
    await app.exit();
    expect(machine).toPass();
  });

  it('knows the groups of mediated devices', async () => {
    const machine = await machineWith();
    expect(machine.kernel.iommuGroup('slice0')).toBe(machine.kernel.iommuGroup(uuid(1)));
    expect(machine.kernel.iommuGroup('slice1')).not.toBe(machine.kernel.iommuGroup('slice0'));
    await expect(() => machine.kernel.iommuGroup('later')).toRefuse('ENODEV');
  });
});
