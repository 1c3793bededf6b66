/**
 * The accelerator as a parent of mediated devices, over the real VFIO core, type1, VT-d and mdev core (requirements 2c, 2g, C11 to
 * C14, X1, X2, Y1, 7.5; scenario 16), and the accelerator's own driver in a guest.
 */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { Steps } from '../../sim/task.js';
import type { IdxdWqOptions } from '../../devices/dsa/driver/idxd-options.js';
import type { PinnedOperation, PinnedResult } from '../../devices/dsa/driver/idxd-pinned.js';
import { FLAG, OPCODE, STATUS } from '../../devices/dsa/spec/descriptor.js';
import { encodeDescriptor } from '../../devices/dsa/spec/encode.js';
import { PCI_CONFIG_REGION } from '../../vfio/device.js';
import { MdevGuest } from './dsa-mdev-guest.js';
import { ALL_QUEUES, DsaMdevWorld, HOST_USER, IOVA, MDEV_DEDICATED, MDEV_SHARED, uuid, type DsaMdevWorldOptions, type VdsaUser } from './dsa-mdev-world.js';

const DEDICATED = '1dwq-v1', SHARED = '1swq-v1';

/** Mediated devices 1, 2, … of these types, each in the hands of a user and started. */
function running(types: readonly string[], options: DsaMdevWorldOptions = {}): { world: DsaMdevWorld; users: VdsaUser[] } {
  const world = new DsaMdevWorld(options);
  const users = types.map((type, i) => {
    world.create(i + 1, type);
    const user = world.open(i + 1);
    user.start();
    return user;
  });
  return { world, users };
}

const FILL = { opcode: OPCODE.MEMFILL, destination: IOVA, pattern: [0x5555_5555, 0x5555_5555] as const, size: 4096 };

describe('registration', () => {
  it('leaves queues of type mdev configured, dedicated ones off, shared ones on', () => {
    const world = new DsaMdevWorld();
    const { queues } = world.dsa.core;
    expect([0, 1, 2, 3, 4].map((i) => queues[i]!.state)).toEqual([0, 0, 1, 1, 1]);
    const wqcfg = (wq: number): number[] => [0, 4, 8, 12].map((at) => world.dsa.function.window(0)!.read(0x500 + wq * 64 + at, 4));
    expect([wqcfg(0), wqcfg(1)]).toEqual([[16, 0, 0xa1, 0xb5], [16, 0, 0xa1, 0xb0]]);
    expect(world.core.devFeatureEnabled(world.pci, 'AUX')).toBe(true);
  });

  it('offers both types with what is available (C14)', () => {
    const world = new DsaMdevWorld();
    expect(world.mdevs.parents[0]!.types.map(({ id, type }) => [id, type.deviceApi, type.availableInstances()])).toEqual([['idxd-1dwq-v1', 'vfio-pci', 2], ['idxd-1swq-v1', 'vfio-pci', 8]]);
    world.create(1, DEDICATED);
    world.create(2, SHARED);
    expect([world.instances(DEDICATED), world.instances(SHARED)]).toEqual([1, 7]);
    world.create(3, DEDICATED);
    expect(world.refusal(world.mdevs.create(world.pci, 'idxd-1dwq-v1', uuid(4))).code).toBe('EUSERS');
    expect(world.mdevs.find(uuid(3))!.instance!.attributes![0]!.read()).toBe('wq0.1');
    world.run(world.mdevs.remove(uuid(1)));
    expect(world.instances(DEDICATED)).toBe(1);
    world.create(4, DEDICATED);
    expect(world.mdevs.find(uuid(4))!.instance!.attributes![0]!.read()).toBe('wq0.0');
  });

  it('bounds devices on shared queues by the option, and by the vectors there are', () => {
    const bounded = new DsaMdevWorld({ idxd: { wqs: ALL_QUEUES, mdevSlots: 2 } });
    expect(bounded.instances(SHARED)).toBe(2);
    bounded.create(1, SHARED);
    bounded.create(2, SHARED);
    expect(bounded.refusal(bounded.mdevs.create(bounded.pci, 'idxd-1swq-v1', uuid(3))).code).toBe('EUSERS');
    // one vector for each of eight queues, five of which are configured
    expect(new DsaMdevWorld({ dsa: { mdevVectors: 0 } }).instances(SHARED)).toBe(4);
    expect(new DsaMdevWorld({ idxd: { wqs: [MDEV_DEDICATED] } }).instances(SHARED)).toBe(0);
  });

  it.each<[string, DsaMdevWorldOptions, string]>([
    ['a device that does not announce SIOV', { dsa: { siov: false } }, 'does not announce scalable I/O virtualization'],
    ['a device without PASID', { dsa: { pasidBits: 0 }, idxd: { wqs: [MDEV_DEDICATED, MDEV_SHARED] } }, 'AUX'],
  ])('of %s names the missing link and registers no types', (_name, options, text) => {
    const world = new DsaMdevWorld(options);
    expect(world.logText).toContain('no mediated devices: ');
    expect(world.logText).toContain(text);
    expect(world.mdevs.parents).toEqual([]);
    expect(world.drivers.driverOf(world.pci)?.name).toBe('idxd');
    expect(world.dsa.core.queues[2]!.state).toBe(0);
  });

  it('does not happen without queues of type mdev', () => {
    const world = new DsaMdevWorld({ idxd: { wqs: [HOST_USER] } });
    expect([world.mdevs.parents.length, world.core.devFeatureEnabled(world.pci, 'AUX')]).toEqual([0, false]);
  });
});

describe('the PASID in the hardware (2c)', () => {
  it('is the aux domain\'s, another one for each device, and gone after close (X2)', () => {
    const { world, users } = running([DEDICATED, DEDICATED, SHARED]);
    const pasids = users.map((user) => user.pasid);
    expect(new Set(pasids).size).toBe(3);
    expect([world.physicalPasid(0), world.physicalPasid(1), world.physicalPasid(2)]).toEqual([[1, pasids[0]], [1, pasids[1]], [1, 0]]);
    users[0]!.close();
    expect([world.physicalPasid(0), world.physicalPasid(1), world.core.usage.pasids]).toEqual([[0, 0], [1, pasids[1]], 2]);
    expect(users[1]!.submit(FILL).status).toBe(STATUS.SUCCESS);
    users[1]!.close();
    users[2]!.close();
    expect([world.core.usage.pasids, world.core.usage.domains, world.frames.pinnedPages]).toEqual([0, 0, 0]);
  });

  it('is out of the queue before the aux domain goes, with descriptors under way', () => {
    const { world, users: [user] } = running([DEDICATED]);
    user!.put({ ...FILL, size: 0x3_0000 });
    const order: string[] = [];
    world.trace.listen(({ kind, args }) => {
      if (kind.name === 'dsa:command') order.push(`command ${args[1]}`);
      if (kind.name === 'dsa:complete') order.push(`end ${args[3]}`);
      if (kind.name === 'iommu:detach_device_from_domain' || kind.name.includes('detach')) order.push('detach');
    });
    user!.close();
    expect(order.filter((entry) => entry !== 'detach')).toEqual(['end 0', 'command 10']);
    expect(order.indexOf('detach')).toBeGreaterThan(order.indexOf('command 10'));
  });

  it('is never what the user wrote, in the configuration or in a descriptor', () => {
    const { world, users: [first, second] } = running([DEDICATED, DEDICATED]);
    second!.command(7, 1);
    second!.write(0x508, (0x1000_0000 | (first!.pasid << 8)) >>> 0);
    second!.command(6, 0);
    expect(world.physicalPasid(1)).toEqual([1, second!.pasid]);
    expect(second!.submit({ ...FILL, pasid: first!.pasid, privileged: true }).status).toBe(STATUS.SUCCESS);
    expect([first!.peek(0, 1)[0], second!.peek(0, 1)[0], world.reports.at(-1)!.pasid]).toEqual([0, 0x55, second!.pasid]);
  });
});

describe('isolation (scenario 16)', () => {
  it.each([[DEDICATED, DEDICATED], [SHARED, SHARED], [DEDICATED, SHARED]])('%s and %s: the same I/O address is each one\'s own page', (...types) => {
    const { world, users } = running(types);
    users.forEach((user, i) => expect(user.submit({ ...FILL, pattern: [0x0101_0101 * (i + 1), 0x0101_0101 * (i + 1)] }).status).toBe(STATUS.SUCCESS));
    expect(users.map((user) => user.peek(100, 1)[0])).toEqual([1, 2]);
    users[0]!.close();
    expect(users[1]!.submit({ ...FILL, pattern: [0x0909_0909, 0x0909_0909] }).status).toBe(STATUS.SUCCESS);
    expect([users[1]!.peek(100, 1)[0], world.core.usage.pasids]).toEqual([9, 1]);
  });

  it('an address that only the other one mapped is a fault', () => {
    const { world, users: [first, second] } = running([DEDICATED, DEDICATED]);
    const far = IOVA + 0x100_0000;
    const extra = world.run(second!.process.mm.mmap(4096));
    world.run(second!.container.mapDma({ iova: far, vaddr: extra, sizeBytes: 4096 }));
    const record = first!.submit({ ...FILL, destination: far });
    expect([record.status === STATUS.PAGE_FAULT_NOBOF || record.status === STATUS.TRANSLATION_FAIL, record.bytesCompleted]).toEqual([true, 0]);
    expect(second!.submit({ ...FILL, destination: far }).status).toBe(STATUS.SUCCESS);
  });

  it('an interrupt handle of another one is invalid', () => {
    const { users: [first, second] } = running([SHARED, SHARED]);
    const handle = second!.world.vdsa(2).lease.vector;
    expect(first!.submit({ opcode: OPCODE.NOOP, flags: FLAG.RCI, interruptHandle: handle }).status).toBe(STATUS.INT_HANDLE_INVAL);
    expect([first!.completion.count, second!.completion.count]).toEqual([0, 0]);
  });

  it('commands of one on a shared queue leave the other\'s descriptors alone', () => {
    const { world, users: [first, second] } = running([SHARED, SHARED]);
    second!.put({ ...FILL, size: 0x3_0000 });
    first!.put({ ...FILL, size: 0x3_0000 });
    expect(first!.command(5)).toBe(0);
    world.settle();
    expect([first!.record().status, second!.record().status]).toEqual([0, STATUS.SUCCESS]);
  });

  it.each([DEDICATED, SHARED])('a reset leaves what the same container does through another device (%s) alone: they have one PASID (X2)', (type) => {
    const { world, users: [first] } = running([SHARED]);
    world.create(2, type);
    const second = world.openBeside(2, first!);
    second.start();
    expect(second.pasid).toBe(first!.pasid);
    second.put({ ...FILL, size: 0x3_0000 }, 1);
    first!.put({ ...FILL, size: 0x2_0000 });
    world.run(first!.device.reset());
    world.settle();
    expect(second.record(1).status).toBe(STATUS.SUCCESS);
    first!.close();
    expect([world.core.usage.pasids, world.frames.pinnedPages]).toEqual([0, 0]);
  });

  it('a portal that its user kept is dead after close, whoever has the queue then', () => {
    const { world, users: [first] } = running([DEDICATED]);
    const { portal } = first!;
    first!.close();
    world.run(world.mdevs.remove(uuid(1)));
    world.create(2, DEDICATED);
    const next = world.open(2);
    next.start();
    portal.write64(0, encodeDescriptor(FILL));
    expect(portal.enqueue64(0, encodeDescriptor(FILL))).toBe('retry');
    world.settle();
    expect([world.reports.length, next.peek(0, 1)[0]]).toEqual([0, 0]);
  });

  it('the host\'s SVA and kernel queues work beside', () => {
    const { world, users: [user] } = running([DEDICATED]);
    const owner = world.process('sva');
    const file = world.run(world.idxd.open(world.pci, owner.process, HOST_USER.name));
    const client = world.client(owner, file);
    const done = world.run((function* (): Steps<number[]> {
      const at = yield* owner.process.mm.mmap(8192);
      user!.put({ ...FILL, size: 0x2_0000 });
      const result = yield* client.run({ opcode: OPCODE.MEMFILL, destination: at, pattern: [3, 3], size: 8192, flags: 2 });
      const frame = world.frames.alloc('test');
      yield* world.idxd.kernelCopy(world.pci, frame, frame, 64);
      world.frames.free(frame);
      return [result.status, result.totalBytes];
    })());
    world.settle();
    expect([done, user!.record().status, file.pasid === user!.pasid]).toEqual([[STATUS.SUCCESS, 8192], STATUS.SUCCESS, false]);
    world.run(owner.process.exit());
    expect(user!.submit(FILL).status).toBe(STATUS.SUCCESS);
  });

  it('holds through random lives of three devices (property)', () => {
    const step = fc.record({ who: fc.nat(2), what: fc.constantFrom('fill', 'disable', 'enable', 'abort', 'reset', 'pasid', 'reopen', 'foreign' as const), at: fc.nat(60) });
    fc.assert(fc.property(fc.array(step, { maxLength: 25 }), (script) => {
      const { world, users } = running([DEDICATED, SHARED, SHARED]);
      for (const { who, what, at } of script) {
        const user = users[who]!;
        const other = users[(who + 1) % 3]!;
        switch (what) {
          case 'fill': user.put({ ...FILL, pattern: [0x1111_1111 * (who + 1), 0x1111_1111 * (who + 1)], destination: IOVA + at * 4096, pasid: user.pasid }); break;
          case 'foreign': user.put({ ...FILL, destination: IOVA, pattern: [0xeeee_eeee, 0xeeee_eeee], pasid: other.pasid }); break;
          case 'disable': user.command(7, 1); break;
          case 'enable': user.command(6, 0); break;
          case 'abort': user.command(9, 1); break;
          case 'pasid': user.write(0x508, (0x1000_0000 | (other.pasid << 8)) >>> 0); break;
          case 'reset':
            world.run(user.device.reset());
            user.start();
            break;
          case 'reopen':
            user.close();
            users[who] = world.open(who + 1);
            users[who].start();
        }
      }
      world.settle();
      users.forEach((user, who) => {
        const own = 0x11 * (who + 1);
        for (let page = 0; page < 61; page++) {
          const [byte] = user.peek(page * 4096, 1);
          // the dedicated queue ignores the PASID in a descriptor: what names another one's stays its own
          expect(byte === 0 || byte === own || (who === 0 && byte === 0xee)).toBe(true);
        }
        user.close();
      });
      expect([world.core.usage.pasids, world.frames.pinnedPages]).toEqual([0, 0]);
    }), { numRuns: 12 });
  });
});

describe('unplugging (2g, 7.5, C17)', () => {
  it('asks the user of a device, waits, and gives the accelerator back to the host', () => {
    const { world, users: [user] } = running([DEDICATED]);
    const unbinding = world.scheduler.spawn('unbind', world.drivers.unbind('idxd', world.pci), { joined: true });
    world.clock.run({ untilNs: world.clock.now + 1_000_000 });
    expect([unbinding.ended, user!.asked.count]).toEqual([false, 1]);
    user!.put(FILL);
    world.clock.run({ untilNs: world.clock.now + 1_000_000 });
    expect(user!.record().status).toBe(STATUS.SUCCESS);
    user!.close();
    world.settle();
    expect([unbinding.state, world.mdevs.parents.length, world.core.devFeatureEnabled(world.pci, 'AUX'), world.dsa.core.state]).toEqual(['done', 0, false, 0]);
    world.run(world.drivers.bind('idxd', world.pci));
    expect(world.instances(DEDICATED)).toBe(2);
  });

  it('removes one device alone while the other works', () => {
    const { world, users: [first, second] } = running([DEDICATED, SHARED]);
    const removing = world.scheduler.spawn('remove', world.mdevs.remove(uuid(1)), { joined: true });
    world.clock.run({ untilNs: world.clock.now + 1_000_000 });
    expect([first!.asked.count, second!.asked.count]).toEqual([1, 0]);
    first!.close();
    world.settle();
    expect([removing.state, world.instances(DEDICATED)]).toEqual(['done', 2]);
    expect(second!.submit(FILL).status).toBe(STATUS.SUCCESS);
  });

  it('by surprise: everything reads as ones, portals are dead, users are asked and can close', () => {
    const { world, users } = running([DEDICATED, SHARED]);
    for (const user of users) user.put({ ...FILL, size: 0x3_0000 });
    world.complex.remove(world.dsa.function, { surprise: true });
    const removing = world.scheduler.spawn('removal', world.pciCore.removeAbsent(), { joined: true });
    world.clock.run({ untilNs: world.clock.now + 1_000_000 });
    for (const user of users) {
      expect([user.error.count, user.config(0, 4), user.read(0)]).toEqual([0, 0xffff_ffff, 0xffff_ffff]);
      expect(user.device.write(PCI_CONFIG_REGION, 4, Uint8Array.of(0, 0))).toBe(2);
      user.portal.write64(0, encodeDescriptor({ opcode: OPCODE.NOOP }));
    }
    // one after the other is asked for
    expect([removing.ended, users[0]!.asked.count]).toEqual([false, 1]);
    for (const user of users) user.close();
    world.settle();
    expect([removing.state, world.mdevs.parents.length, world.frames.pinnedPages, world.core.usage.pasids]).toEqual(['done', 0, 0, 0]);
    expect(world.scheduler.deadlockReport()).toEqual([]);
  });

  it('a halted parent reads as ones and opens no more (ENODEV)', () => {
    const { world, users: [user] } = running([DEDICATED]);
    world.pci.setMaster(false);
    world.idxd.device(world.pci).hardware.miscInterrupt();
    expect([user!.config(0, 4), user!.read(0x90), user!.error.count]).toEqual([0xffff_ffff, 0xffff_ffff, 1]);
    user!.close();
    expect(world.refusal((function* (): Steps {
      yield* world.vdsa(1).open();
    })()).code).toBe('ENODEV');
    expect(world.refusal(world.mdevs.create(world.pci, 'idxd-1swq-v1', uuid(7))).code).toBe('ENODEV');
  });
});

describe('the accelerator\'s driver in a guest', () => {
  const operation = (fields: Partial<PinnedOperation> & Pick<PinnedOperation, 'kind'>): PinnedOperation => ({ from: 0, to: 0, sizeBytes: 0, pattern: 0n, ...fields });

  function copies(world: DsaMdevWorld, guest: MdevGuest, wq = 'wq0.0', size = 50_000): { results: readonly PinnedResult[]; same: boolean } {
    const { process, malloc } = guest.process('app');
    return world.run((function* (): Steps<{ results: readonly PinnedResult[]; same: boolean }> {
      const file = yield* guest.idxd.openPinned(guest.pci, process, wq);
      const from = yield* malloc.malloc(size), to = yield* malloc.malloc(size);
      const data = Uint8Array.from({ length: size }, (_, i) => (i * 7) & 0xff), copied = new Uint8Array(size);
      yield* process.mm.write(from, data);
      const submission = yield* file.submit([operation({ kind: 'copy', from, to, sizeBytes: size }), operation({ kind: 'crc', from, sizeBytes: size })]);
      const results = yield* submission.wait();
      yield* process.mm.read(to, copied);
      yield* process.exit();
      return { results, same: Buffer.compare(copied, data) === 0 };
    })());
  }

  it.each([[DEDICATED, 'dedicated'], [SHARED, 'shared']])('finds a queue of %s and its configuration, without being told', (type, mode) => {
    const world = new DsaMdevWorld();
    world.create(1, type);
    const guest = new MdevGuest(world, 1);
    expect(guest.drivers.driverOf(guest.pci)?.name).toBe('idxd');
    const { wqs } = guest.idxd.device(guest.pci);
    expect(wqs.map(({ options }) => options)).toMatchObject([{ name: 'wq0.0', type: 'kernel', mode, size: 16, priority: 10, maxTransfer: 2 ** 21, maxBatch: 32, blockOnFault: false }]);
    expect([guest.pci.siov, guest.pci.pasidSupported, guest.pci.atsSupported]).toEqual([false, false, false]);
  });

  it.each([DEDICATED, SHARED])('copies memory of the guest\'s processes on %s, woken by interrupts', (type) => {
    const world = new DsaMdevWorld();
    world.create(1, type);
    const guest = new MdevGuest(world, 1, { wqs: [{ name: 'copies', mode: 'dedicated', type: 'kernel', size: 0 }] });
    const { results, same } = copies(world, guest, 'copies');
    expect([results.map(({ status }) => status), same, guest.frames.pinnedPages]).toEqual([['success', 'success'], true, 0]);
    // what the device did, it did with the aux domain's PASID; what the guest's driver waited for were injected interrupts
    expect(new Set(world.reports.map(({ pasid }) => pasid))).toEqual(new Set([guest.user.pasid]));
    expect(guest.vm.injections).toBeGreaterThan(2);
    expect(guest.vm.enqcmdExits).toBe(0);
  });

  it('two guests with the same guest-physical addresses do not meet (scenario 16)', () => {
    const world = new DsaMdevWorld();
    world.create(1, SHARED);
    world.create(2, SHARED);
    const guests = [new MdevGuest(world, 1), new MdevGuest(world, 2)];
    expect(guests.map((guest) => copies(world, guest)).map(({ same }) => same)).toEqual([true, true]);
    const pasids = guests.map((guest) => guest.user.pasid);
    expect(pasids[0]).not.toBe(pasids[1]);
    for (const guest of guests) world.run(guest.user.process.exit());
    expect([world.frames.pinnedPages, world.core.usage.pasids]).toEqual([0, 0]);
  });

  it('has no user queue there: SVA names the missing link', () => {
    const world = new DsaMdevWorld();
    world.create(1, DEDICATED);
    const guest = new MdevGuest(world, 1, { wqs: [{ name: 'wq0.0', mode: 'dedicated', type: 'user', size: 0 }] });
    expect(guest.drivers.driverOf(guest.pci)).toBeUndefined();
    const text = guest.log.lines.map((line) => line.text).join('\n');
    expect(text).toContain('Unable to turn on user SVA feature. -ENODEV');
    expect(text).toContain('user work queue wq0.0 cannot be enabled without SVA');
  });

  it('makes no mediated devices of a queue that it cannot configure (EINVAL)', () => {
    const world = new DsaMdevWorld();
    world.create(1, DEDICATED);
    const guest = new MdevGuest(world, 1, { wqs: [MDEV_DEDICATED] });
    expect(guest.drivers.driverOf(guest.pci)).toBeUndefined();
    expect(guest.log.lines.map((line) => line.text).join('\n')).toContain('cannot be given to mediated devices');
  });

  it('unbinds, binds again, and survives a function level reset in between', () => {
    const world = new DsaMdevWorld();
    world.create(1, SHARED);
    const guest = new MdevGuest(world, 1);
    expect(copies(world, guest).same).toBe(true);
    world.run(guest.drivers.unbind('idxd', guest.pci));
    expect([guest.core.usage.dmaPages, world.vdsa(1).lease.enabled]).toEqual([0, false]);
    world.run(guest.pci.reset());
    world.run(guest.drivers.bind('idxd', guest.pci));
    expect(copies(world, guest).same).toBe(true);
  });

  it('a lie about an address ends in a fault, wherever it points', () => {
    const world = new DsaMdevWorld();
    world.create(1, DEDICATED);
    const guest = new MdevGuest(world, 1);
    const { process, malloc } = guest.process('liar');
    const result = world.run((function* (): Steps<PinnedResult> {
      const file = yield* guest.idxd.openPinned(guest.pci, process, 'wq0.0');
      const from = yield* malloc.malloc(64);
      // beyond the guest's memory
      const submission = yield* file.submit([operation({ kind: 'copy', from, to: { deviceAddress: 0x800_0000 }, sizeBytes: 64 })]);
      return (yield* submission.wait())[0]!;
    })());
    expect(['page-fault', 'error']).toContain(result.status);
    expect(result.faultAddress).toBe(0x800_0000);
  });

  it('a shared queue that is full is tried again', () => {
    const shared: IdxdWqOptions = { ...MDEV_SHARED, size: 4, threshold: 2 };
    const world = new DsaMdevWorld({ idxd: { wqs: [shared] }, dsa: { engines: 1, descriptorsPerEngine: 1 } });
    world.create(1, SHARED);
    const guest = new MdevGuest(world, 1);
    const { process, malloc } = guest.process('app');
    const results = world.run((function* (): Steps<readonly PinnedResult[]> {
      const file = yield* guest.idxd.openPinned(guest.pci, process, 'wq0.0');
      const at = yield* malloc.malloc(0x8000);
      const submission = yield* file.submit(Array.from({ length: 12 }, () => operation({ kind: 'crc', from: at, sizeBytes: 0x8000 })));
      return yield* submission.wait();
    })());
    expect(results.every(({ status }) => status === 'success')).toBe(true);
    expect(guest.idxd.device(guest.pci).wqs[0]!.kernel!.retries).toBeGreaterThan(0);
  });
});

describe('defects are caught', () => {
  it('vdsa.guest-pasid-trusted: a user reaches another one\'s memory', () => {
    const { world, users: [first, second] } = running([DEDICATED, DEDICATED], { defects: ['vdsa.guest-pasid-trusted'] });
    second!.command(7, 1);
    second!.write(0x508, (0x1000_0000 | (first!.pasid << 8)) >>> 0);
    second!.command(6, 0);
    expect(world.physicalPasid(1)).toEqual([1, first!.pasid]);
  });

  it('vdsa.posted-to-shared: plain stores reach the shared portal', () => {
    const { world, users: [user] } = running([SHARED], { defects: ['vdsa.posted-to-shared'] });
    user!.portal.write64(0, encodeDescriptor({ opcode: OPCODE.NOOP }));
    world.settle();
    expect(world.idxd.device(world.pci).errors).toHaveLength(1);
  });

  it('vdsa.portal-stays-mapped: who had a queue submits to who has it now', () => {
    const { world, users: [first] } = running([DEDICATED], { defects: ['vdsa.portal-stays-mapped'] });
    const { portal } = first!;
    first!.close();
    const next = world.open(1);
    next.start();
    portal.write64(0, encodeDescriptor(FILL));
    world.settle();
    expect(next.peek(0, 1)[0]).toBe(0x55);
  });
});
