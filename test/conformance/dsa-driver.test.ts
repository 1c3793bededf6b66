/** The accelerator's driver and a process's library over VT-d, in bytes (requirements 2a, 2b; drivers/dma/idxd). */
import { describe, expect, it } from 'vitest';
import type { Steps } from '../../sim/task.js';
import type { IdxdFile } from '../../devices/dsa/driver/idxd-file.js';
import type { IdxdOptions, IdxdWqOptions } from '../../devices/dsa/driver/idxd-options.js';
import type { DsaClient } from '../../devices/dsa/driver/user.js';
import { crc32c } from '../../devices/dsa/hardware/crc32c.js';
import { OPCODE } from '../../devices/dsa/spec/descriptor.js';
import { SvaWorld, type SvaWorldOptions } from '../fixtures/sva-world.js';

const DEDICATED: IdxdWqOptions = { name: 'wq0.0', mode: 'dedicated', type: 'user', size: 16, blockOnFault: true };
const SHARED: IdxdWqOptions = { name: 'wq0.1', mode: 'shared', type: 'user', size: 16, threshold: 12, blockOnFault: true };
const KERNEL: IdxdWqOptions = { name: 'wq0.2', mode: 'dedicated', type: 'kernel', size: 8, group: 1 };
const ALL: IdxdOptions = { wqs: [DEDICATED, SHARED, KERNEL] };

function started(options: Partial<SvaWorldOptions> = {}): SvaWorld {
  const world = new SvaWorld({ idxd: ALL, ...options });
  world.run(world.loadDrivers());
  return world;
}

function open(world: SvaWorld, name: string, wq: string): { client: DsaClient; file: IdxdFile; owner: ReturnType<SvaWorld['process']> } {
  const owner = world.process(name);
  const file = world.run(world.idxd.open(world.pci, owner.process, wq));
  return { client: world.client(owner, file), file, owner };
}

function bytes(size: number, seed = 1): Uint8Array {
  return Uint8Array.from({ length: size }, (_, i) => (i * 7 + seed + (i >> 9)) & 0xff);
}

describe('probe', () => {
  it('switches IOPF and SVA on and enables device and queues', () => {
    const world = started();
    const pci = world.pci;
    expect([pci.pasidEnabled, pci.atsEnabled, pci.priEnabled]).toEqual([true, true, true]);
    expect(world.idxd.device(pci).sva).toBe(true);
    expect(world.dsa.core.state).toBe(1);
    expect(world.dsa.core.queues.slice(0, 4).map((queue) => queue.state)).toEqual([1, 1, 1, 0]);
    expect(world.log.lines.map((line) => line.text)).toContain('idxd 0000:00:01.0: Intel(R) Accelerator Device (v100)');
  });

  it.each<[string, SvaWorldOptions['dsa'], string]>([
    ['PRI', { pri: false }, 'PRI'],
    ['PASID', { pasidBits: 0 }, 'PASID'],
    ['ATS', { ats: false }, 'ATS'],
  ])('without %s names the missing link and binds no user queue', (_name, dsa, link) => {
    const world = started({ dsa: dsa! });
    expect(world.drivers.driverOf(world.pci)).toBeUndefined();
    const text = world.log.lines.map((line) => line.text).join('\n');
    expect(text).toContain('Unable to turn on user SVA feature');
    expect(text).toContain(link);
    expect(text).toContain('user work queue wq0.0 cannot be enabled without SVA');
    expect(world.dsa.core.state).toBe(0);
  });

  it.each<[string, IdxdOptions, string]>([
    ['too many entries', { wqs: [{ ...DEDICATED, size: 200 }] }, 'the device has 128'],
    ['too many queues', { wqs: Array.from({ length: 9 }, (_, i) => ({ ...DEDICATED, name: `wq${i}`, size: 1 })) }, '8 work queues, 9'],
    ['a group that does not exist', { wqs: [{ ...DEDICATED, group: 4 }] }, '4 groups'],
    ['a shared kernel queue', { wqs: [{ ...SHARED, type: 'kernel' }] }, 'must be dedicated'],
    ['no queue at all', { wqs: [] }, 'no work queue is configured'],
  ])('refuses %s', (_name, idxd, text) => {
    const world = started({ idxd });
    expect(world.drivers.driverOf(world.pci)).toBeUndefined();
    expect(world.log.lines.some((line) => line.text.includes(text))).toBe(true);
  });

  it('lets everything go on remove', () => {
    const world = started();
    const before = world.frames.inUse;
    world.run(world.drivers.unbind('idxd', world.pci));
    expect([world.dsa.core.state, world.pci.priEnabled, world.core.devFeatureEnabled(world.pci, 'SVA')]).toEqual([0, false, false]);
    expect(world.core.usage.dmaPages).toBe(0);
    world.run(world.drivers.bind('idxd', world.pci));
    expect(world.frames.inUse).toBe(before);
  });
});

describe('a user queue', () => {
  it('moves malloc memory that nobody has touched, by page requests', () => {
    const world = started();
    const { client, file, owner } = open(world, 'copy', 'wq0.0');
    const data = bytes(20_000);
    const result = world.run((function* (): Steps<[number, number, Uint8Array]> {
      const source = yield* owner.malloc.malloc(data.length), target = yield* owner.malloc.malloc(200_000);
      yield* owner.process.mm.write(source, data);
      const done = yield* client.run({ opcode: OPCODE.MEMMOVE, source, destination: target, size: data.length, flags: 2 });
      const copied = new Uint8Array(data.length);
      yield* owner.process.mm.read(target, copied);
      return [done.status, done.totalBytes, copied];
    })());
    expect(result.slice(0, 2)).toEqual([1, 20_000]);
    expect(Buffer.compare(result[2], data)).toBe(0);
    const report = world.reports.at(-1)!;
    expect(report).toMatchObject({ pasid: file.pasid, status: 1, bytes: 20_000, responses: { invalid: 0, failure: 0 } });
    // the five pages of the target; the source has been written
    expect([report.pageRequests, report.responses.success]).toEqual([5, 5]);
  });

  it('has the PASID of its process in the recorded place, and none after close', () => {
    const world = started();
    const { file, owner } = open(world, 'owner', 'wq0.0');
    const word = (): number => world.dsa.function.window(0)!.read(0x508, 4);
    expect(word()).toBe((0x1000_00a3 | (file.pasid << 8)) >>> 0);
    world.run(owner.process.close(file.fd));
    expect(word()).toBe(0xa3);
    expect(world.core.bondState(world.pci, file.pasid)).toBe('NONE');
  });

  it('is one process\'s when dedicated: EBUSY for the second', () => {
    const world = started();
    const first = open(world, 'first', 'wq0.0');
    const second = world.process('second');
    expect(world.refusal(world.idxd.open(world.pci, second.process, 'wq0.0')).code).toBe('EBUSY');
    expect([world.core.usage.bonds, second.process.descriptors()]).toEqual([1, []]);
    world.run(first.owner.process.close(first.file.fd));
    expect(world.run(world.idxd.open(world.pci, second.process, 'wq0.0')).pasid).toBeGreaterThan(0);
  });

  it.each([['wq0.2', 'EPERM'], ['wq9', 'ENODEV']])('%s is refused with %s', (name, code) => {
    const world = started();
    expect(world.refusal(world.idxd.open(world.pci, world.process('p').process, name)).code).toBe(code);
    expect(world.core.usage.bonds).toBe(0);
  });

  it('is shared by processes, each in its own memory', () => {
    const world = started();
    const users = [open(world, 'a', 'wq0.1'), open(world, 'b', 'wq0.1')];
    expect(users[0]!.file.pasid).not.toBe(users[1]!.file.pasid);
    const tasks = users.map(({ client, owner }, i) => world.scheduler.spawn(`user ${i}`, (function* (): Steps<Uint8Array> {
      const { mm } = owner.process;
      const source = yield* owner.malloc.malloc(40_000), target = yield* owner.malloc.malloc(40_000);
      yield* mm.write(source, bytes(40_000, i));
      for (let round = 0; round < 4; round++) yield* client.run({ opcode: OPCODE.MEMMOVE, source, destination: target, size: 40_000, flags: 2 });
      const copied = new Uint8Array(40_000);
      yield* mm.read(target, copied);
      return copied;
    })(), { joined: true }));
    world.settle();
    tasks.forEach((task, i) => expect(Buffer.compare(task.result!, bytes(40_000, i))).toBe(0));
  });

  it('without block on fault leaves the pages to the library', () => {
    const world = started({ idxd: { wqs: [{ ...DEDICATED, blockOnFault: false }] } });
    const { client, owner } = open(world, 'lib', 'wq0.0');
    const data = bytes(30_000);
    const [copied, resumptions, filled, crc, compared] = world.run((function* (): Steps<[Uint8Array, number, Uint8Array, number, number]> {
      const { mm } = owner.process;
      const source = yield* owner.malloc.malloc(data.length), target = yield* owner.malloc.malloc(150_000), pattern = yield* owner.malloc.malloc(150_000);
      yield* mm.write(source, data);
      const move = yield* client.memcpy(target + 5, source, data.length);
      const copy = new Uint8Array(data.length);
      yield* mm.read(target + 5, copy);
      yield* client.fill(pattern + 3, [0x03020100, 0x07060504], 20_000);
      const fill = new Uint8Array(20_000);
      yield* mm.read(pattern + 3, fill);
      const sum = yield* client.crc(source, data.length);
      const same = yield* client.compare(source, target + 5, data.length);
      return [copy, move.resumptions, fill, sum.specific, same.result];
    })());
    expect(Buffer.compare(copied, data)).toBe(0);
    expect(resumptions).toBe(8);
    expect(filled.every((byte, i) => byte === i % 8)).toBe(true);
    expect([crc, compared]).toEqual([crc32c(data), 0]);
    expect(world.core.counters.pageRequests).toBe(0);
  });

  it('reports the fault when memory was unmapped: Invalid, status 0x04', () => {
    const world = started();
    const { client, owner } = open(world, 'unmapped', 'wq0.0');
    const result = world.run((function* () {
      const { mm } = owner.process;
      const area = yield* mm.mmap(0x10000);
      yield* mm.write(area, bytes(0x10000));
      yield* client.run({ opcode: OPCODE.CRCGEN, source: area, size: 0x10000, flags: 2 });
      yield* mm.munmap(area + 0x4000, 0x4000);
      return { area, done: yield* client.run({ opcode: OPCODE.CRCGEN, source: area, size: 0x10000, flags: 2 }) };
    })());
    expect(result.done).toMatchObject({ status: 4, bytesCompleted: 0x4000, faultAddress: result.area + 0x4000 });
    expect(world.reports.at(-1)!.responses).toEqual({ success: 0, invalid: 1, failure: 0 });
  });

  it('close waits for what is in flight (B2)', () => {
    const world = started();
    const { file, owner } = open(world, 'closer', 'wq0.1');
    const { mm } = owner.process;
    const area = world.run(mm.mmap(0x20_0000));
    world.run((function* () {
      const client = world.client(owner, file);
      const record = yield* owner.malloc.memalign(32, 32);
      yield* client.submit({ opcode: OPCODE.MEMFILL, destination: area, pattern: [1, 1], size: 0x10_0000, flags: 2 }, record);
      yield* owner.process.close(file.fd);
    })());
    expect(world.reports).toHaveLength(1);
    expect(world.reports[0]).toMatchObject({ status: 1, bytes: 0x10_0000 });
    expect(() => file.portal.submit(new Uint8Array(64))).toThrow('EFAULT');
    expect(world.core.usage).toMatchObject({ bonds: 0, pendingRequests: 0 });
  });
});

describe('the death of a process with work in flight', () => {
  it.each(['none', 'drain', 'abort'] as const)('with mm_exit %s: nothing leaks, nothing is blocked (M1–M6)', (mmExit) => {
    const world = started({ idxd: { wqs: [DEDICATED, SHARED], mmExit } });
    for (const wq of ['wq0.0', 'wq0.1']) {
      const { client, owner, file } = open(world, `victim of ${wq}`, wq);
      world.run((function* () {
        const record = yield* owner.malloc.memalign(32, 32);
        const area = yield* owner.process.mm.mmap(0x20_0000);
        for (let i = 0; i < 4; i++) yield* client.submit({ opcode: OPCODE.MEMFILL, destination: area + i * 0x8_0000, pattern: [i, i], size: 0x8_0000, flags: 2 }, record);
        yield* owner.process.exit();
      })());
      expect(world.core.bondState(world.pci, file.pasid)).toBe('NONE');
    }
    world.settle();
    expect(world.scheduler.deadlockReport()).toEqual([]);
    expect(world.dsa.core.outstanding).toBe(0);
    expect(world.core.usage).toMatchObject({ pasids: 0, bonds: 0, pendingRequests: 0 });
    expect(world.dsa.requester.outstandingGroups).toBe(0);
  });
});

describe('surprise removal', () => {
  it('ends waits for commands, files and descriptors', () => {
    const world = started();
    const { client, owner, file } = open(world, 'user', 'wq0.1');
    world.run((function* () {
      const record = yield* owner.malloc.memalign(32, 32);
      const area = yield* owner.process.mm.mmap(0x20_0000);
      yield* client.submit({ opcode: OPCODE.MEMFILL, destination: area, pattern: [1, 1], size: 0x20_0000, flags: 2 }, record);
    })());
    const closing = world.scheduler.spawn('close', owner.process.close(file.fd), { joined: true });
    world.clock.run({ untilNs: world.clock.now + 3_000 });
    world.complex.remove(world.dsa.function, { surprise: true });
    world.run(world.pciCore.removeAbsent());
    world.settle();
    expect(closing.state).toBe('done');
    expect(world.scheduler.deadlockReport()).toEqual([]);
    expect(world.dsa.core.outstanding).toBe(0);
  });
});

describe('a kernel queue', () => {
  it('copies through the DMA API with interrupts', () => {
    const world = started();
    const source = world.frames.alloc('test', 5), target = world.frames.alloc('test', 5);
    const data = bytes(100_000);
    world.ram.write(source + 17, data, 0, data.length);
    world.run(world.idxd.kernelCopy(world.pci, target + 33, source + 17, data.length));
    const copied = new Uint8Array(data.length);
    world.ram.read(target + 33, copied, 0, data.length);
    expect(Buffer.compare(copied, data)).toBe(0);
    expect(world.reports.at(-1)!.pasid).toBe(-1);
    expect(world.core.usage.dmaPages).toBe(1);
  });

  it('serves more callers than it has entries', () => {
    const world = started();
    const source = world.frames.alloc('test', 5), target = world.frames.alloc('test', 5);
    const data = bytes(40 * 1000);
    world.ram.write(source, data, 0, data.length);
    const tasks = Array.from({ length: 40 }, (_, i) => world.scheduler.spawn(`copy ${i}`, world.idxd.kernelCopy(world.pci, target + i * 1000, source + i * 1000, 1000), { joined: true }));
    world.settle();
    expect(tasks.map((task) => task.state)).toEqual(tasks.map(() => 'done'));
    const copied = new Uint8Array(data.length);
    world.ram.read(target, copied, 0, data.length);
    expect(Buffer.compare(copied, data)).toBe(0);
  });

  it('turns a refused transfer into EIO', () => {
    const world = started();
    const source = world.frames.alloc('test', 0);
    expect(world.refusal(world.idxd.kernelCopy(world.pci, source, source, 4 * 1024 * 1024)).code).toBe('EIO');
    expect(world.core.usage.dmaPages).toBe(1);
  });
});

describe('software errors', () => {
  it('reach the driver with the name of the queue', () => {
    const world = started();
    const { file } = open(world, 'wrong', 'wq0.0');
    const descriptor = new Uint8Array(64);
    descriptor[7] = 0x55;
    file.portal.submit(descriptor);
    world.settle();
    const device = world.idxd.device(world.pci);
    expect(device.errors).toMatchObject([{ error: 0x10, wq: 'wq0.0', operation: 0x55, pasid: file.pasid, overflow: false }]);
    expect(world.log.lines.filter((line) => line.text.includes('err[')).length).toBe(4);
  });
});

describe('a run', () => {
  const story = (seed: number): string => {
    const world = started({ seed, dsa: { pri: { groupPages: 4 } } });
    const { client, owner } = open(world, 'story', 'wq0.1');
    world.run((function* () {
      const area = yield* owner.process.mm.mmap(0x40_0000);
      yield* client.run({ opcode: OPCODE.MEMFILL, destination: area, pattern: [7, 7], size: 0x4_0000, flags: 2 });
      yield* client.run({ opcode: OPCODE.MEMMOVE, source: area, destination: area + 0x10_0000, size: 0x4_0000, flags: 2 });
      yield* owner.process.exit();
    })());
    return world.trace.hash;
  };

  it('is a function of its seed', () => {
    expect(story(3)).toBe(story(3));
    expect(story(3)).not.toBe(story(4));
  });
});
