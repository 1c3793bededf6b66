/** Mediated devices on the whole machine: isolation by aux domains, flows 2c and 2g, races around create and remove. */
import { describe, expect, it } from 'vitest';
import { DSA_CMD, WQCFG } from '../../devices/dsa/spec/registers.js';
import { FLAG, OPCODE, STATUS } from '../../devices/dsa/spec/descriptor.js';
import { EventFd } from '../../host/eventfd.js';
import { ACCESS_READ, NO_PASID } from '../../host/pci/dma-port.js';
import { Errno } from '../../sim/errno.js';
import { sleep, type Steps } from '../../sim/task.js';
import { PCI_BAR2_REGION, PCI_MSIX_IRQ, REGION_INFO_MMAP } from '../../vfio/device.js';
import { UserDsa } from './passthrough-dsa-user.js';
import { guestsOf, mdevDsa, PAGE, PassthroughWorld, pattern, same, slices, uuid, Worker } from './passthrough-world.js';

describe('two mediated devices of one accelerator', () => {
  it('scenario 16: carry different PASIDs, reach different pages through the same address, and go one by one', () => {
    const world = new PassthroughWorld({ mdevs: slices(2), guests: guestsOf(2) });
    const guests = ['vm0', 'vm1'].map((name) => world.started(name));
    const [first, second] = ['m0', 'm1'].map((name) => world.pasidOf(name)!);
    expect(first).not.toBe(second);
    expect(world.core.usage.pasids).toBe(2);

    // a frame of the same guest-physical address in both
    const frames = guests.map(({ kernel }) => kernel!.frames.alloc('test'));
    expect(frames[0]).toBe(frames[1]);
    const gpa = frames[0]!;
    const hosts = guests.map(({ vmm }) => vmm!.translate(gpa)!.hpa);
    expect(hosts[0]).not.toBe(hosts[1]);
    // each guest's device writes there, as the device sees the address
    const workers = guests.map((guest) => new Worker(world, guest).open('wq'));
    const contents = guests.map((_, i) => pattern(PAGE, i + 1));
    workers.forEach((worker, i) => {
      const source = worker.malloc(PAGE);
      worker.write(source, contents[i]!);
      expect(worker.copy('wq', source, gpa, PAGE, { to: true }).status).toBe('success');
    });
    hosts.forEach((host, i) => {
      const bytes = new Uint8Array(PAGE);
      world.host.memory.read(host!, bytes, 0, PAGE);
      expect(bytes).toEqual(contents[i]);
    });
    // what is beyond a guest's memory is nobody's
    const source = workers[0]!.malloc(PAGE);
    expect(workers[0]!.copy('wq', source, 16 * 2 ** 20, PAGE, { to: true }).status).toBe('page-fault');

    world.run(world.host.passthrough.stopMdev('m0'));
    expect(world.core.usage.pasids).toBe(1);
    expect(world.pasidOf('m1')).toBe(second);
    expect(workers[1]!.copies('wq')).toBe(true);
    for (const [i, guest] of guests.entries()) guest.kernel!.frames.free(frames[i]!);
    world.finish();
  });
});

describe('flow 2c, step by step', () => {
  it('a queue of an accelerator becomes a device that a process holds, through an aux domain of its own', () => {
    const world = new PassthroughWorld();
    const pci = world.pci('dsa0');
    const { core, host: { passthrough: { sysfs, mdevs, vfio }, unit, frames, drivers, kernelDrivers: { idxd } } } = world;
    const refused = (call: Steps<unknown>) => world.refused(call, () => world.books());

    // 1. the parent's driver has switched AUX on and offers its types
    expect([core.devFeatureEnabled(pci, 'AUX'), mdevs.parents.map(({ device }) => device.name)]).toEqual([true, [pci.name]]);
    const type = `/sys/class/mdev_bus/${pci.name}/mdev_supported_types/idxd-1dwq-v1`;
    expect(sysfs.read(`${type}/available_instances`)).toBe('2\n');

    // 2. the administrator makes a device of one: it has an IOMMU group of its own
    world.run(sysfs.write(`${type}/create`, `${uuid(1)}\n`));
    const mdev = mdevs.find(uuid(1))!;
    expect([sysfs.read(`${type}/available_instances`), mdev.state, vfio.groupIds]).toEqual(['1\n', 'ACTIVE', [mdev.group]]);
    expect(mdev.group).not.toBe(core.groupOf(pci).id);

    // 3. a VMM opens container and group; type1 attaches an aux domain, which has a PASID
    const user = world.user('vmm');
    const container = user.client.openContainer(), group = user.client.openGroup(mdev.group!);
    world.run(group.setContainer(container));
    expect(vfio.pasidOf(mdev)).toBe(undefined);
    world.run(container.setIommu('type1v2'));
    const pasid = vfio.pasidOf(mdev)!;
    expect(world.records('iommu:attach_device_to_domain').at(-1)).toMatchObject({ pasid });
    expect([core.usage.pasids, refused(core.devDisableFeature(pci, 'AUX'))]).toEqual([1, 'EBUSY']);

    // 4. the parent's driver puts it into the queue when the VMM turns it on
    const device = world.run(group.getDevice(uuid(1)));
    const dsa = new UserDsa(world, user, device, { whole: false });
    world.run(dsa.start());
    const queue = idxd.device(pci).hardware.readWqConfig(0);
    expect([WQCFG.f.PasidEn.get(queue), WQCFG.f.Pasid.get(queue)]).toEqual([1, pasid]);

    // 5. memory is pinned, charged to the process, and mapped in the aux domain only
    const iova = 0x8000_0000, buffer = user.mmap(16 * PAGE);
    world.run(container.mapDma({ iova, vaddr: buffer, sizeBytes: 16 * PAGE }));
    expect([frames.pinnedPages, user.process.mm.lockedPages]).toEqual([16, 16]);
    const walked = unit!.backEnd.explainWalk(pci.sourceId, pasid, iova / PAGE, ACCESS_READ);
    expect(walked.page! * PAGE).toBe(user.process.mm.physicalOf(buffer));
    expect(unit!.backEnd.explainWalk(pci.sourceId, NO_PASID, iova / PAGE, ACCESS_READ).reason).not.toBe(0);

    // 6. regions and interrupts tell what to use, and DMA goes out as (RID of the parent, PASID, IOVA)
    const portal = world.run(device.region(PCI_BAR2_REGION));
    expect([portal.flags & REGION_INFO_MMAP, portal.sparse]).toEqual([REGION_INFO_MMAP, [{ offset: 0x1000, sizeBytes: 0x1000 }]]);
    expect(world.run(device.irq(PCI_MSIX_IRQ)).count).toBe(2);
    const [errors, completions] = ['misc', 'completion'].map((name) => new EventFd(world.host.scheduler, name));
    world.run(device.setIrqs({ index: PCI_MSIX_IRQ, eventfds: [errors!, completions!].map((eventfd) => user.process.open(eventfd)) }));
    const handle = world.run(dsa.command(DSA_CMD.REQUEST_INT_HANDLE, 1)) >>> 8;
    user.write(buffer, pattern(PAGE, 1));
    const before = world.records('pci:translation').length;
    dsa.submit({ opcode: OPCODE.MEMMOVE, source: iova, destination: iova + 4 * PAGE, size: PAGE, flags: FLAG.RCI, interruptHandle: handle }, iova + 8 * PAGE);
    expect(world.run(dsa.wait(buffer + 8 * PAGE)).status).toBe(STATUS.SUCCESS);
    world.settle();
    expect([same(user.read(buffer + 4 * PAGE, PAGE), pattern(PAGE, 1)), completions!.signals, errors!.signals]).toEqual([true, 1, 0]);
    const translations = world.records('pci:translation').slice(before);
    expect(new Set(translations.map(({ source, pasid: of }) => `${source} ${of}`))).toEqual(new Set([`${pci.sourceId} ${pasid}`]));

    // 7. an unmap takes it out of the tables, then out of IOTLB and device TLB, and only then unpins
    const invalidations = world.records('pci:invalidate').length;
    expect(world.run(container.unmapDma(iova, 16 * PAGE))).toBe(16 * PAGE);
    expect(world.records('pci:invalidate').slice(invalidations)).toEqual([expect.objectContaining({ source: pci.sourceId, pasid })]);
    expect([frames.pinnedPages, user.process.mm.lockedPages]).toEqual([0, 0]);
    const untouched = user.read(buffer, 16 * PAGE);
    dsa.submit({ opcode: OPCODE.MEMMOVE, source: iova, destination: iova + PAGE, size: PAGE }, iova + 8 * PAGE);
    world.settle();
    // not even the completion record could be written: the queue says so in SWERROR
    expect([same(user.read(buffer, 16 * PAGE), untouched), dsa.read(0xc0) & 1]).toEqual([true, 1]);

    // 8. device, group, container: the PASID goes when the last device leaves
    world.run(device.close());
    expect(core.usage.pasids).toBe(1);
    world.run(group.close());
    expect([core.usage.pasids, vfio.pasidOf(mdev)]).toEqual([0, undefined]);
    expect(WQCFG.f.PasidEn.get(idxd.device(pci).hardware.readWqConfig(0))).toBe(0);
    world.run(container.close());
    world.run(sysfs.write(`/sys/bus/mdev/devices/${uuid(1)}/remove`, '1'));
    expect([sysfs.read(`${type}/available_instances`), drivers.driverOf(pci)?.name]).toEqual(['2\n', 'idxd']);
    user.exit();
    world.finish();
  });
});

describe('a mediated device that is taken back (2g, C17)', () => {
  it('is ejected by a guest that is asked for it; the guest lives on, and so does its neighbour', () => {
    const world = new PassthroughWorld({ devices: [mdevDsa(2, 1)], mdevs: slices(2, 1), guests: [{ name: 'vm0', memory: '16MiB', devices: [{ mdev: 'm0', name: 'a' }, { mdev: 'm2', name: 'b' }] }, ...guestsOf(2).slice(1)] });
    const [one, two] = ['vm0', 'vm1'].map((name) => world.started(name));
    const workers = [new Worker(world, one).open('a').open('b'), new Worker(world, two).open('wq')];
    const mine = world.pasidOf('m0');
    world.run(world.host.passthrough.stopMdev('m0'));
    expect([world.records('vfio:request').length, one!.state, one!.kernel!.pci.devices.length]).toEqual([1, 'running', 1]);
    // its container goes on with the other device, under the same PASID
    expect([world.pasidOf('m2'), workers[0]!.copies('b'), workers[1]!.copies('wq')]).toEqual([mine, true, true]);
    expect(() => workers[0]!.copies('a')).toThrow('ENODEV');
    // what is free again is somebody else's next
    world.run(world.host.passthrough.startMdev('m0'));
    expect(world.mdev('m0').state).toBe('ACTIVE');
    world.finish();
  });

  it('is waited for as long as its user likes, who is asked at once and then every 10 s', () => {
    const world = new PassthroughWorld({ mdevs: slices(1) });
    const user = world.user('vmm');
    const { groups, devices } = user.assemble(['m0']);
    const asked: number[] = [];
    user.onRequest(devices[0]!, () => void asked.push(Math.round((world.host.clock.now - start) / 1e9)));
    const start = world.host.clock.now;
    const removal = world.start('remove', world.host.passthrough.stopMdev('m0'));
    world.wait(25e9);
    expect([asked, world.mdev('m0').state, removal.ended]).toEqual([[0, 10, 20], 'REMOVING', false]);
    // its last descriptor ends it, container and group or not
    world.run(devices[0]!.close());
    world.until(() => removal.ended);
    expect(world.host.passthrough.mdevs.state(uuid(1))).toBe('ABSENT');
    expect(world.refused(groups[0]!.getDevice(uuid(1)), () => world.books())).not.toBe('no error');
    user.exit();
    world.finish();
  });

  it('stays with a VMM that ignores the request, until that is killed', () => {
    const world = new PassthroughWorld({ mdevs: slices(1), guests: guestsOf(1, { devices: [{ mdev: 'm0', name: 'wq', 'on-request': 'ignore' }] }) });
    const guest = world.started();
    const worker = new Worker(world, guest).open('wq');
    const removal = world.start('remove', world.host.passthrough.stopMdev('m0'));
    world.wait(15e9);
    expect([removal.ended, world.records('vfio:request').length, worker.copies('wq')]).toEqual([false, 2, true]);
    world.run(guest.kill());
    world.until(() => removal.ended);
    expect(world.core.usage.pasids).toBe(0);
    world.finish();
  });

  it('goes with its parent\'s driver: every user is asked, and the driver waits for the last', () => {
    const world = new PassthroughWorld({ mdevs: slices(2), guests: guestsOf(1) });
    const guest = world.started();
    const user = world.user('vmm');
    const { devices } = user.assemble(['m1']);
    const { drivers } = world.host, pci = world.pci('dsa0');
    let asked = 0;
    user.onRequest(devices[0]!, () => void asked++);
    const unbinding = world.start('unbind', drivers.unbind('idxd', pci));
    world.wait(1e9);
    expect([asked, unbinding.ended, guest.state, guest.kernel!.pci.devices.length]).toEqual([1, false, 'running', 0]);
    expect(world.refused(world.host.passthrough.mdevs.create(pci, 'idxd-1dwq-v1', uuid(9)), () => world.books())).toBe('ENODEV');
    world.run(devices[0]!.close());
    world.until(() => unbinding.ended);
    expect([drivers.driverOf(pci), world.core.devFeatureEnabled(pci, 'AUX'), world.host.passthrough.mdevs.parents.length]).toEqual([undefined, false, 0]);
    user.exit();
    world.finish();
  });

  it('is reset under load by its user: what was under way ends, PASID and mappings stay (VFIO_DEVICE_RESET)', () => {
    const world = new PassthroughWorld({ mdevs: slices(2) });
    const user = world.user('vmm');
    const { container, devices: [device] } = user.assemble(['m0']);
    const size = 1 << 20, memory = user.mmap(2 * size), record = user.mmap(PAGE);
    world.run(container.mapDma({ iova: 0, vaddr: memory, sizeBytes: 2 * size }));
    world.run(container.mapDma({ iova: 2 * size, vaddr: record, sizeBytes: PAGE }));
    user.write(memory, pattern(size, 1));
    const dsa = new UserDsa(world, user, device!, { whole: false });
    world.run(dsa.start());
    const pasid = world.pasidOf('m0');
    for (let i = 0; i < 8; i++) dsa.submit({ opcode: OPCODE.MEMMOVE, source: i * size / 8, destination: size + i * size / 8, size: size / 8 }, 2 * size + i * 32);
    world.until(() => world.records('dsa:start').length === 4);
    world.run(device!.reset());
    const done = world.records('pci:dma').length;
    world.wait(1e9);
    expect([world.records('pci:dma').length, dsa.state, world.pasidOf('m0'), world.host.frames.pinnedPages]).toEqual([done, 0, pasid, 2 * size / PAGE + 1]);
    world.run(dsa.start());
    expect(world.run(dsa.copyIova(0, size, size / 8, { iova: 2 * size, address: record })).status).toBe(STATUS.SUCCESS);
    user.exit();
    world.finish();
  });
});

describe('the life of a mediated device', () => {
  it('goes ABSENT, CREATING, ACTIVE, OPEN, ACTIVE, REMOVING, ABSENT (7.5)', () => {
    const world = new PassthroughWorld({ mdevs: slices(1, 0, { start: 'manual' }) });
    const { mdevs } = world.host.passthrough;
    const states: string[] = [];
    const note = (): void => void states.push(mdevs.state(uuid(1)));
    note();
    world.run(world.host.passthrough.startMdev('m0'));
    note();
    const user = world.user('vmm');
    const { devices } = user.assemble(['m0']);
    note();
    world.run(devices[0]!.close());
    note();
    user.exit();
    // REMOVING while somebody has it open
    const other = world.user('other');
    other.onRequest(other.assemble(['m0']).devices[0]!, () => {
      note();
      world.start('exit', other.process.exit());
    });
    world.run(world.host.passthrough.stopMdev('m0'));
    note();
    expect(states).toEqual(['ABSENT', 'ACTIVE', 'OPEN', 'ACTIVE', 'REMOVING', 'ABSENT']);
    world.finish();
  });

  it('R-RACE-12: create, remove, use and the end of the parent at once: each is done or refused by name, and nothing is left', () => {
    const runs = [1, 2, 3].map(race);
    const codes = runs.flatMap((run) => run.codes);
    expect(new Set(codes)).toEqual(new Set(['done', 'ENODEV', 'EAGAIN', 'EEXIST', 'EUSERS']));
    // the same calls, other races
    expect(new Set(runs.map((run) => run.codes.join())).size).toBe(3);
    expect(race(1)).toEqual(runs[0]);
  });
});

/** Administrators make and remove devices, users open and close them, and in the middle the driver is unbound. */
function race(seed: number): { codes: string[]; hash: string } {
  const world = new PassthroughWorld({ seed, devices: [mdevDsa(3)] });
  const pci = world.pci('dsa0'), { clock } = world.host;
  const random = world.host.random.split('race');
  const { mdevs } = world.host.passthrough;
  const codes: string[] = [];
  const at = (what: string, ns: number, steps: () => Steps<unknown>, refusals: string[]): void => void world.start(what, (function* (): Steps {
    yield* sleep(clock, ns);
    try {
      yield* steps();
      refusals.push('done');
    } catch (error) {
      if (!(error instanceof Errno)) throw error;
      refusals.push(error.code);
    }
  })());
  for (let i = 0; i < 40; i++) {
    const name = uuid(1 + random.below(5));
    at(`admin ${i}`, random.below(60) * 100, () => (i % 3 > 0 ? mdevs.create(pci, 'idxd-1dwq-v1', name) : mdevs.remove(name)), codes);
  }
  for (let i = 0; i < 10; i++) {
    const user = world.user(`user ${i}`), name = uuid(1 + random.below(5)), holdNs = random.below(20) * 100;
    at(`user ${i}`, random.below(40) * 100, function* () {
      const container = user.client.openContainer(), group = user.client.openGroup(mdevs.find(name)?.group ?? 99);
      yield* group.setContainer(container);
      yield* container.setIommu('type1v2');
      yield* group.getDevice(name);
      yield* sleep(clock, holdNs);
      yield* user.process.exit();
    }, []);
  }
  at('unbind', 4_000, () => world.host.drivers.unbind('idxd', pci), codes);
  // who was refused has left its files open
  world.wait(100_000);
  for (const { process } of world.machine.scenario.world.programs.values()) world.run(process.exit());
  world.settle();
  expect([codes.length, mdevs.devices, mdevs.parents, world.core.usage.pasids]).toEqual([41, [], [], 0]);
  return { codes, hash: world.finish().traceHash };
}
