/* oxlint-disable require-yield -- guests that have nothing to wait for */
import { describe, expect, it } from 'vitest';
import { EDU_REG } from '../../devices/edu/spec/registers.js';
import { GuestBalloon } from '../../guest/balloon.js';
import { Errno } from '../../sim/errno.js';
import { sleep, type Steps } from '../../sim/task.js';
import { DSA, EDU, GIB, GuestKernel, MIB, RAM, RAM_PAGES, VmmWorld } from './guest-vmm-world.js';

const PAGE = 4096;

function guest(options: Parameters<VmmWorld['started']>[0] = {}, kernel: { intxOnly?: boolean } = {}) {
  const world = new VmmWorld();
  const vmm = world.started(options);
  return { world, vmm, kernel: new GuestKernel(world, vmm, kernel) };
}

/** Sends bytes through the device and back, with the guest's driver. */
function roundTrip(kernel: GuestKernel, source = kernel.frames.alloc('buffer'), target = kernel.frames.alloc('buffer')): boolean {
  const { memory } = kernel.vmm;
  const bytes = Uint8Array.from({ length: 256 }, (_, i) => i ^ 0x5a), back = new Uint8Array(256);
  memory.write(source, bytes, 0, 256);
  kernel.run(kernel.instance.roundTrip(target, source, 256));
  memory.read(target, back, 0, 256);
  return Buffer.compare(bytes, back) === 0;
}

describe('a VMM with a whole device', () => {
  it('pins all of the guest\'s RAM in a container and lets the guest\'s driver work (C8, scenario 18)', () => {
    const { world, vmm, kernel } = guest();
    expect(world.host.frames.pinnedPages).toBe(RAM_PAGES);
    expect([vmm.state, kernel.drivers.driverOf(kernel.eduPci)?.name]).toEqual(['running', 'edu']);
    expect(kernel.run(kernel.instance.factorial(10))).toBe(3_628_800);
    expect(roundTrip(kernel)).toBe(true);
    // MSI: an eventfd of the host became a message to a virtual CPU, three times
    expect([vmm.injections, kernel.interrupts.list().map(({ count }) => count)]).toEqual([3, [3]]);
    expect(world.host.log.lines.filter(({ level }) => level === 'err')).toEqual([]);
  });

  it('gives the device guest-physical addresses that are real in three steps', () => {
    const { world, vmm, kernel } = guest();
    const source = kernel.frames.alloc('buffer');
    vmm.memory.store(source + 8, 4, 0xfeed_beef);
    const at = vmm.translate(source + 8)!;
    expect(vmm.process.mm.physicalOf(at.hva)).toBe(at.hpa);
    expect(world.host.ram.load(at.hpa!, 4)).toBe(0xfeed_beef);
    expect(roundTrip(kernel, source)).toBe(true);
    expect(vmm.translate(source + 8)).toEqual(at);
  });

  it('shows the device\'s identity and capabilities, and no ATS, PRI or PASID', () => {
    const { kernel } = guest({ devices: undefined as never });
    expect(kernel.pci.devices.length).toBe(0);
    const { kernel: second, world } = guest({});
    const { eduPci } = second;
    const real = world.host.eduPci;
    expect([eduPci.vendorId, eduPci.deviceId, eduPci.classCode, eduPci.revision]).toEqual([real.vendorId, real.deviceId, real.classCode, real.revision]);
    expect([eduPci.msiVectors, eduPci.interruptPin, eduPci.extCapabilities]).toEqual([1, 1, []]);
    const world2 = new VmmWorld();
    const vmm = world2.started({ devices: [world2.device(DSA)] });
    const kernel2 = new GuestKernel(world2, vmm);
    const dsa = kernel2.pci.find('0000:00:04.0')!;
    expect([dsa.pasidSupported, dsa.atsSupported, dsa.priSupported, dsa.msixVectors]).toEqual([false, false, false, world2.host.pci.msixVectors]);
    expect(dsa.bars.map(({ index, sizeBytes, is64 }) => [index, sizeBytes, is64])).toEqual(world2.host.pci.bars.map(({ index, sizeBytes, is64 }) => [index, sizeBytes, is64]));
    // registers of a mapped BAR
    expect(dsa.ioremap(0).read(0, 4)).toBe(world2.host.dsa.function.bars[0] === undefined ? -1 : 0x100);
  });

  it('forwards bus mastering and memory space, and hides the device\'s BAR addresses', () => {
    const { world, kernel } = guest();
    const { eduPci } = kernel, real = world.host.edu.function;
    expect([real.busMaster, real.memoryEnabled]).toEqual([true, true]);
    eduPci.setMaster(false);
    expect(real.busMaster).toBe(false);
    const before = real.bars[0]!.address;
    eduPci.config.write(0x10, 4, 0xd000_0000);
    expect([real.bars[0]!.address, eduPci.config.read(0x10, 4)]).toEqual([before, 0xd000_0000]);
  });

  it('delivers INTx until the guest has served it, where the guest\'s driver wants no MSI', () => {
    const { vmm, kernel, world } = guest({}, { intxOnly: true });
    expect(vmm.devices[0]!.interrupts.mode).toBe('intx');
    for (const n of [3, 4, 5]) expect(kernel.run(kernel.instance.factorial(n))).toBe([6, 24, 120][n - 3]);
    world.settle();
    expect([vmm.injections, kernel.interrupts.listLines().map(({ count }) => count)]).toEqual([3, [3]]);
    expect(roundTrip(kernel)).toBe(true);
  });

  it('switches between INTx and MSI as the guest does, and frees what it had wired', () => {
    const { vmm, kernel, world } = guest();
    const [device] = vmm.devices;
    const open = vmm.process.descriptors().length;
    expect([device!.interrupts.mode, device!.interrupts.count]).toEqual(['msi', 1]);
    kernel.run(kernel.drivers.unbind('edu', kernel.eduPci));
    world.settle();
    expect([device!.interrupts.mode, vmm.process.descriptors().length]).toEqual(['intx', open]);
    kernel.run(kernel.drivers.bind('edu', kernel.eduPci));
    world.settle();
    expect([device!.interrupts.mode, kernel.run(kernel.instance.factorial(4))]).toEqual(['msi', 24]);
  });

  it('resets the device when the guest resets its function', () => {
    const { world, kernel, vmm } = guest();
    kernel.run(kernel.instance.copyIn(kernel.frames.alloc('buffer'), 64));
    const window = kernel.eduPci.ioremap(0);
    window.write(EDU_REG.LIVENESS, 4, 5);
    expect(window.read(EDU_REG.LIVENESS, 4)).toBe(~5 >>> 0);
    kernel.run(kernel.eduPci.reset());
    world.settle();
    expect(window.read(EDU_REG.LIVENESS, 4)).not.toBe(~5 >>> 0);
    expect(kernel.run(kernel.instance.factorial(5))).toBe(120);
    expect(vmm.devices[0]!.interrupts.mode).toBe('msi');
  });

  it('holds the guest while its interrupts are wired', () => {
    const { vmm, kernel, world } = guest();
    kernel.run(kernel.drivers.unbind('edu', kernel.eduPci));
    const states: boolean[] = [];
    kernel.eduPci.config.write(4, 2, 6);
    kernel.scheduler.spawn('guest', (function* (): Steps {
      states.push(vmm.clock.runs);
      kernel.eduPci.allocIrqs('x', [() => {}]);
      states.push(vmm.clock.runs);
      yield* sleep(vmm.clock, 0);
      states.push(vmm.devices[0]!.interrupts.mode === 'msi');
    })());
    world.settle();
    expect(states).toEqual([true, false, true]);
  });
});

describe('starting', () => {
  const refusals: [string, string, RegExp, (world: VmmWorld) => Parameters<VmmWorld['vmm']>[0]][] = [
    ['ENOMEM', 'RAM that exceeds RLIMIT_MEMLOCK', /^-ENOMEM: vm0: edu \(0000:00:02\.0\): VFIO_IOMMU_MAP_DMA of RAM \[0x100000000, 0x100400000\): /, (world) => ({ process: world.newProcess(2500) })],
    ['ENODEV', 'a group that does not exist', /vm0: edu \(0000:00:02\.0\): open of \/dev\/vfio\/99: /, (world) => ({ devices: [world.device(EDU, { groupId: 99 })] })],
    ['ENODEV', 'a device that is not in the group', /VFIO_GROUP_GET_DEVICE_FD of group \d+: /, (world) => ({ devices: [world.device(EDU, { deviceName: '0000:00:1f.0' })] })],
    ['EBUSY', 'two devices in one slot', /vm0: dsa \(0000:00:01\.0\): edu has that name or that slot/, (world) => ({ devices: [world.device(), world.device(DSA, { devfn: 0x18 })] })],
    ['ENODEV', 'a second device that is not there, after a first that is', /vm0: dsa /, (world) => ({ devices: [world.device(), world.device(DSA, { groupId: 77 })] })],
    ['EINVAL', 'a balloon beside a whole device', /mediated device only/, (world) => ({ devices: [world.device(EDU, { balloonAllowed: true })] })],
    ['EINVAL', 'no virtual CPU', /vm0: vm0: 0 virtual CPUs/, () => ({ vcpus: 0 })],
    ['EEXIST', 'RAM that overlaps', /RAM \[0x400000, 0xc00000\): KVM_SET_USER_MEMORY_REGION: /, () => ({ ram: [RAM[0]!, { start: 4 * MIB, end: 12 * MIB }] })],
    ['ENODEV', 'a host without VFIO', /the host has no VFIO/, () => ({ vfio: undefined })],
  ];
  for (const [code, what, sentence, options] of refusals) {
    it(`is refused for ${what} with ${code}, says so, and leaves nothing behind`, () => {
      const world = new VmmWorld();
      const process = world.newProcess();
      const vmm = world.vmm({ process, ...options(world) });
      // memory that records lay in stays the process's
      const books = () => ({ ...(world.books(vmm.process) as object), areas: undefined, user: undefined });
      const before = books();
      const refusal = world.refusal(vmm.start());
      expect([refusal.code, refusal.message]).toEqual([code, expect.stringMatching(sentence)]);
      world.settle();
      expect([books(), vmm.state, vmm.clock.state === 'running' && code !== 'EINVAL']).toEqual([before, 'off', false]);
      world.run(vmm.process.exit());
      world.run(process.exit());
      expect(world.host.frames.framesOf('user')).toBe(0);
    });
  }

  it('is refused while another VMM has the group (C1, E30)', () => {
    const world = new VmmWorld();
    world.started();
    const second = world.vmm({ name: 'vm1' });
    const refusal = world.refusal(second.start());
    expect([refusal.code, refusal.message]).toEqual(['EBUSY', expect.stringMatching(/^-EBUSY: vm1: edu \(0000:00:02\.0\): open of \/dev\/vfio\/\d+: /)]);
    world.run(second.process.exit());
  });

  it('is possible without devices: nothing is pinned, memory comes as it is touched', () => {
    const world = new VmmWorld();
    const vmm = world.started({ devices: [], vfio: undefined });
    expect([world.host.frames.pinnedPages, world.host.frames.framesOf('user')]).toEqual([0, 0]);
    vmm.memory.store(4 * GIB + 5 * PAGE, 4, 1);
    expect(world.host.frames.framesOf('user')).toBe(1);
  });

  it('puts devices of several groups into one container and maps RAM once', () => {
    const world = new VmmWorld();
    const vmm = world.started({ devices: [world.device(), world.device(DSA)] });
    expect([world.type1.usage.containers, world.type1.counters.maps, world.host.frames.pinnedPages]).toEqual([1, RAM.length, RAM_PAGES]);
    world.run(vmm.unplug('edu'));
    expect([world.type1.usage.containers, world.host.frames.pinnedPages]).toEqual([1, RAM_PAGES]);
    world.run(vmm.unplug('dsa'));
    expect([world.type1.usage.containers, world.host.frames.pinnedPages]).toEqual([0, 0]);
    expect(world.refusal(vmm.unplug('dsa')).code).toBe('ENODEV');
  });

  it('backs RAM with huge pages', () => {
    const world = new VmmWorld();
    const vmm = world.started({ hugePages: '2MiB' });
    expect(vmm.process.mm.tables.find(vmm.ram[0]!.hva / PAGE) && vmm.process.mm.tables.level).toBe(1);
    expect(vmm.translate(2 * MIB + 8)!.hpa! % (2 * MIB)).toBe(8);
    expect(roundTrip(new GuestKernel(world, vmm))).toBe(true);
  });

  it('gives the device somebody else\'s memory with the defect vmm.map-wrong-slot', () => {
    const high = (defects: readonly string[]) => {
      const world = new VmmWorld();
      const vmm = world.started({ defects: new Set(defects), ram: [{ start: 0, end: 8 * MIB }, { start: 0x80_0000, end: 0xc0_0000 }] });
      return roundTrip(new GuestKernel(world, vmm), 0x90_0000, 0x20_0000);
    };
    expect([high([]), high(['vmm.map-wrong-slot'])]).toEqual([true, false]);
  });
});

describe('the life of a guest', () => {
  it('stands still when paused: DMA goes on, its interrupt waits', () => {
    const { world, vmm, kernel } = guest();
    const source = kernel.frames.alloc('buffer'), target = kernel.frames.alloc('buffer');
    vmm.memory.store(source, 4, 0x1234);
    let done = false;
    kernel.scheduler.spawn('io', (function* (): Steps {
      yield* kernel.instance.copyIn(source, 64);
      yield* kernel.instance.copyOut(target, 64);
      done = true;
    })());
    world.host.clock.run({ untilNs: world.host.clock.now + 10 });
    vmm.pause();
    vmm.pause();
    world.settle();
    expect([vmm.state, done, vmm.clock.waiting > 0]).toEqual(['paused', false, true]);
    vmm.resume();
    world.settle();
    expect([vmm.state, done, vmm.memory.load(target, 4)]).toEqual(['running', true, 0x1234]);
  });

  it('begins again: old events are gone, devices are reset, memory and PASIDs stay', () => {
    const { world, vmm, kernel } = guest();
    const page = kernel.frames.alloc('kept');
    vmm.memory.store(page, 4, 99);
    vmm.vm.setPasid(5, 6);
    let late = false;
    vmm.clock.after(1_000, () => (late = true));
    const fn = vmm.functions.get(0x18)!;
    const old = kernel.eduPci.ioremap(0);
    world.run(vmm.reset());
    world.settle();
    expect([late, vmm.memory.load(page, 4), vmm.vm.translatePasid(5), vmm.state]).toEqual([false, 99, 6, 'running']);
    expect(vmm.functions.get(0x18)).not.toBe(fn);
    expect(old.read(EDU_REG.ID, 4)).toBe(0xffff_ffff);
    expect(world.host.edu.function.busMaster).toBe(false);
    expect(roundTrip(new GuestKernel(world, vmm))).toBe(true);
    expect(world.host.frames.pinnedPages).toBe(RAM_PAGES);
  });

  it('ends in order and gives everything back (C3, C18)', () => {
    const world = new VmmWorld();
    const before = world.books();
    const vmm = world.started();
    const kernel = new GuestKernel(world, vmm);
    roundTrip(kernel);
    vmm.clock.after(1e9, () => expect.unreachable());
    world.run(vmm.powerOff());
    world.run(vmm.powerOff());
    expect([vmm.state, vmm.clock.state, vmm.process.state, vmm.process.descriptors()]).toEqual(['off', 'stopped', 'running', []]);
    expect([world.host.frames.pinnedPages, vmm.memory.has(0, 1)]).toEqual([0, false]);
    world.run(vmm.process.exit());
    world.settle();
    expect(world.books()).toEqual(before);
    for (const steps of [vmm.reset(), vmm.addMemory(GIB), vmm.balloon(0), vmm.plug(world.device())]) expect(world.refusal(steps).code).toBe('ESRCH');
  });

  it('ends at once when the VMM is killed, in whatever order its descriptors close (scenario 24)', () => {
    const world = new VmmWorld();
    const before = world.books();
    const vmm = world.started({ devices: [world.device(), world.device(DSA)] });
    const kernel = new GuestKernel(world, vmm);
    let turns = 0;
    kernel.scheduler.spawn('busy', (function* (): Steps {
      for (;;) {
        yield* sleep(vmm.clock, 100);
        turns++;
      }
    })(), { daemon: true });
    world.host.clock.run({ untilNs: world.host.clock.now + 1000 });
    const window = kernel.eduPci.ioremap(0);
    const seen = turns;
    world.run(vmm.process.exit());
    world.settle();
    expect([turns, vmm.state, vmm.clock.state]).toEqual([seen, 'off', 'stopped']);
    expect(window.read(EDU_REG.ID, 4)).toBe(0xffff_ffff);
    expect(world.books()).toEqual(before);
    // the next user finds a device
    const again = world.started({ name: 'vm1' });
    expect(roundTrip(new GuestKernel(world, again))).toBe(true);
  });

  it('ends in the middle of its start, whenever that is', () => {
    const world = new VmmWorld();
    const before = world.books();
    let moments = 0;
    for (let events = 1; ; events++, moments++) {
      const vmm = world.vmm({ devices: [world.device(), world.device(DSA)] });
      const task = world.host.scheduler.spawn('start', vmm.start(), { joined: true });
      const end = world.host.clock.events + events;
      world.host.clock.run({ stop: () => world.host.clock.events >= end || task.ended });
      const early = !task.ended;
      vmm.killed();
      world.run(vmm.process.exit());
      world.settle();
      expect([task.ended, vmm.clock.state, world.books()]).toEqual([true, 'stopped', before]);
      if (!early) break;
    }
    expect(moments).toBeGreaterThan(2);
  });
});

describe('the host wants a device back (C17, section 2g)', () => {
  function unbind(world: VmmWorld, name = EDU) {
    const task = world.host.scheduler.spawn('unbind', world.host.drivers.unbind('vfio-pci', world.host.pciCore.find(name)!), { joined: true });
    world.host.clock.run({ untilNs: world.host.clock.now + 1_000_000_000 });
    return task;
  }

  it('asks the guest to eject it, then closes it and leaves the group', () => {
    const world = new VmmWorld();
    const asked: string[] = [];
    const box: { kernel?: GuestKernel } = {};
    const vmm = world.started({ devices: [world.device()], onEject: function* (name): Steps {
      asked.push(name);
      const kernel = box.kernel!;
      yield* sleep(world.host.clock, 1_000);
      const removal = kernel.scheduler.spawn('remove', kernel.pci.remove(kernel.eduPci), { joined: true });
      while (!removal.ended) yield* sleep(world.host.clock, 1_000);
      kernel.complex.remove(vmm.functions.get(0x18)!, { surprise: false });
    } });
    const kernel = (box.kernel = new GuestKernel(world, vmm));
    const task = unbind(world);
    expect([task.state, asked, vmm.devices.length, kernel.pci.devices.length, world.host.frames.pinnedPages]).toEqual(['done', ['edu'], 0, 0, 0]);
    expect([vmm.state, world.type1.usage.containers]).toEqual(['running', 0]);
    // and it may come again
    world.bind(EDU);
    const again = world.run(vmm.plug(world.device()));
    kernel.complex.insert(kernel.root, 0x18, again.fn);
    kernel.run(kernel.pci.rescan());
    expect(roundTrip(kernel)).toBe(true);
  });

  it('waits while the guest does not let go, and asks again', () => {
    const world = new VmmWorld();
    const asked: string[] = [];
    const vmm = world.started({ onEject: function* (name): Steps {
      asked.push(name);
      throw new Errno('EBUSY', 'the guest is busy with it');
    } });
    const task = unbind(world);
    expect([task.state, asked, vmm.devices.length]).toEqual(['blocked', ['edu'], 1]);
    world.host.clock.run({ untilNs: world.host.clock.now + 15_000_000_000 });
    expect(asked.length).toBe(2);
    expect(world.host.log.lines.some(({ text }) => text === 'vm0: edu is not released: -EBUSY: the guest is busy with it')).toBe(true);
    world.run(vmm.powerOff());
    world.host.clock.run({ untilNs: world.host.clock.now + 1_000_000_000 });
    expect(task.state).toBe('done');
  });

  it('waits until the guest ends when the VMM ignores it', () => {
    const world = new VmmWorld();
    const vmm = world.started({ devices: [world.device(EDU, { onRequest: 'ignore' })], onEject: () => expect.unreachable() });
    const task = unbind(world);
    expect([task.state, vmm.devices.length]).toEqual(['blocked', 1]);
    world.run(vmm.process.exit());
    world.host.clock.run({ untilNs: world.host.clock.now + 1_000_000_000 });
    expect(task.state).toBe('done');
  });
});

describe('an error that a device cannot recover from', () => {
  it('stops the guest and says so, as QEMU does (C18)', () => {
    const { world, vmm } = guest();
    world.vfioPci.instance(world.host.eduPci)!.errorDetected();
    expect(vmm.state).toBe('paused');
    expect(world.host.log.lines.at(-1)!.text).toBe('vm0: vfio_err_notifier_handler(edu) Unrecoverable error detected. Please collect any data possible and then kill the guest');
  });
});

describe('devices that come and go', () => {
  it('plugs a device into a running guest, which pins its RAM then', () => {
    const world = new VmmWorld();
    const vmm = world.started({ devices: [] });
    const kernel = new GuestKernel(world, vmm);
    expect(world.host.frames.pinnedPages).toBe(0);
    const device = world.run(vmm.plug(world.device()));
    kernel.complex.insert(kernel.root, 0x18, device.fn);
    kernel.run(kernel.pci.rescan());
    expect([world.host.frames.pinnedPages, roundTrip(kernel)]).toEqual([RAM_PAGES, true]);
  });

  it('refuses a device and stays as it was', () => {
    const world = new VmmWorld();
    const vmm = world.started();
    const before = world.books(vmm.process);
    expect(world.refusal(vmm.plug(world.device(DSA, { groupId: 99 }))).message).toMatch(/^-ENODEV: vm0: dsa /);
    expect(world.refusal(vmm.plug(world.device())).code).toBe('EBUSY');
    expect([world.books(vmm.process), vmm.devices.length]).toEqual([before, 1]);
  });
});

describe('memory', () => {
  it('is added where the guest had none, for its virtual CPUs and for its devices', () => {
    const { world, vmm, kernel } = guest();
    const block = world.run(vmm.addMemory(2 * MIB));
    expect([block.start, block.end, world.host.frames.pinnedPages]).toEqual([5 * GIB, 5 * GIB + 2 * MIB, RAM_PAGES + 512]);
    vmm.memory.store(5 * GIB + 64, 4, 7);
    expect(vmm.memory.load(5 * GIB + 64, 4)).toBe(7);
    expect(vmm.ram.map(({ slot }) => slot)).toEqual([0, 1, 2]);
    expect(world.host.core.groupOf(world.host.eduPci).domain).toBeDefined();
    expect(roundTrip(kernel)).toBe(true);
  });

  it('is not added beyond RLIMIT_MEMLOCK: ENOMEM, and nothing has changed', () => {
    const world = new VmmWorld();
    const vmm = world.started({ process: world.newProcess(RAM_PAGES + 100) });
    const before = world.books(vmm.process);
    const refusal = world.refusal(vmm.addMemory(2 * MIB));
    expect([refusal.code, refusal.message]).toEqual(['ENOMEM', expect.stringMatching(/^-ENOMEM: vm0: VFIO_IOMMU_MAP_DMA of RAM \[0x140000000, 0x140200000\): /)]);
    expect([world.books(vmm.process), vmm.memory.has(5 * GIB, 1), vmm.ram.length]).toEqual([before, false, 2]);
    expect(world.refusal(vmm.addMemory(100)).code).toBe('EINVAL');
    expect(world.books(vmm.process)).toEqual(before);
  });

  it('is not given to a balloon while a device has it: EBUSY', () => {
    const { world, vmm } = guest();
    const before = [world.books(vmm.process), vmm.memory.load(0, 4)];
    const refusal = world.refusal(vmm.balloon(11 * MIB, Array.from({ length: 256 }, (_, i) => 1024 + i)));
    expect([refusal.code, refusal.message]).toEqual(['EBUSY', '-EBUSY: vm0: the balloon is inhibited while edu has the guest\'s memory mapped for DMA']);
    expect([world.books(vmm.process), vmm.memory.load(0, 4)]).toEqual(before);
    world.run(vmm.unplug('edu'));
    world.run(vmm.balloon(11 * MIB, Array.from({ length: 256 }, (_, i) => 1024 + i)));
    expect(vmm.ballooned).toBe(256);
  });

  it('goes to the balloon and comes back as zeros', () => {
    const world = new VmmWorld();
    const box: { balloon?: GuestBalloon } = {};
    const vmm = world.started({ devices: [], onBalloon: function* (pages): Steps<readonly number[]> {
      return pages > 0 ? box.balloon!.inflate(pages) : box.balloon!.deflate(-pages);
    } });
    const { memory } = vmm;
    box.balloon = new GuestBalloon(new GuestKernel(world, vmm).frames);
    for (let page = 0; page < RAM_PAGES; page++) memory.store(page < 2048 ? page * PAGE : 4 * GIB + (page - 2048) * PAGE, 4, page + 1);
    const full = world.host.frames.framesOf('user');
    world.run(vmm.balloon(10 * MIB));
    expect([box.balloon.size, vmm.ballooned, full - world.host.frames.framesOf('user')]).toEqual([512, 512, 512]);
    const given = box.balloon.deflate(1)[0]!;
    world.run(vmm.balloon(10 * MIB + PAGE, [given]));
    expect([memory.load(given * PAGE, 4), vmm.ballooned]).toEqual([0, 511]);
    world.run(vmm.balloon(12 * MIB));
    expect([box.balloon.size, vmm.ballooned]).toEqual([0, 0]);
    expect(memory.load(PAGE, 4)).toBe(2);
  });

  it('refuses balloon pages that make no sense', () => {
    const world = new VmmWorld();
    const vmm = world.started({ devices: [] });
    const refuses = (target: number, pages?: number[]) => world.refusal(vmm.balloon(target, pages)).code;
    expect(refuses(12 * MIB - PAGE, [])).toBe('EINVAL');
    expect(refuses(12 * MIB - PAGE, [2048])).toBe('EINVAL');
    expect(refuses(12 * MIB - 2 * PAGE, [1, 1])).toBe('EINVAL');
    expect(refuses(12 * MIB + PAGE, [1])).toBe('EINVAL');
    expect(refuses(12 * MIB - 7, [1])).toBe('EINVAL');
    expect(refuses(12 * MIB - PAGE)).toBe('ENODEV');
    world.run(vmm.balloon(12 * MIB - PAGE, [1]));
    expect(refuses(12 * MIB - 2 * PAGE, [1])).toBe('EINVAL');
    expect(refuses(12 * MIB, [2])).toBe('EINVAL');
    expect(vmm.ballooned).toBe(1);
  });

  it('of huge pages goes when all of one is in the balloon', () => {
    const world = new VmmWorld();
    const vmm = world.started({ devices: [], hugePages: '2MiB' });
    vmm.memory.store(2 * MIB, 4, 1);
    const pages = Array.from({ length: 512 }, (_, i) => 512 + i);
    world.run(vmm.balloon(12 * MIB - 511 * PAGE, pages.slice(1)));
    expect(vmm.memory.load(2 * MIB, 4)).toBe(1);
    expect(world.host.frames.framesOf('user')).toBe(512);
    world.run(vmm.balloon(10 * MIB, pages.slice(0, 1)));
    expect(world.host.frames.framesOf('user')).toBe(0);
    expect(vmm.memory.load(2 * MIB, 4)).toBe(0);
  });

  it('is refused to a device when the guest has ballooned and the host has no room: all or nothing', () => {
    const world = new VmmWorld();
    const vmm = world.started({ devices: [], process: world.newProcess(100) });
    const before = world.books();
    expect(world.refusal(vmm.plug(world.device())).code).toBe('ENOMEM');
    expect([{ ...(world.books() as object), inUse: 0, user: 0 }]).toEqual([{ ...(before as object), inUse: 0, user: 0 }]);
    expect(vmm.devices).toEqual([]);
  });
});

describe('reports', () => {
  it('counts traps, region accesses, interrupts and calls', () => {
    const { vmm, kernel, world } = guest();
    const { counters } = vmm;
    expect(counters.ioctls).toBeGreaterThan(10);
    const { traps, regionReads, ioctls } = counters;
    kernel.run(kernel.instance.factorial(3));
    // the BAR is mapped: nothing traps
    expect([counters.traps, counters.ioctls, vmm.injections]).toEqual([traps, ioctls, 1]);
    kernel.eduPci.config.read(0, 2);
    expect(counters.regionReads).toBe(regionReads + 1);
    const states: string[] = [];
    world.host.trace.listen((record) => states.push(world.host.trace.describe(record)[1]![1]), ['vmm:state']);
    vmm.pause();
    vmm.resume();
    world.run(vmm.powerOff());
    expect(states).toEqual(['paused', 'running', 'off']);
  });
});
