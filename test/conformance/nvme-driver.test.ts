/** The driver: bring-up, kernel users and processes under each policy of the DMA API, errors, timeouts, resets, removal. */
import { describe, expect, it } from 'vitest';
import type { NvmeFile } from '../../devices/nvme/driver/nvme-file.js';
import type { BlockMedium } from '../../devices/nvme/hardware/medium.js';
import { MemoryMedium } from '../../devices/nvme/hardware/medium.js';
import type { Process } from '../../host/process.js';
import type { Errno } from '../../sim/errno.js';
import { sleep, type Steps } from '../../sim/task.js';
import { NVME_BDF, NvmeDriverWorld, pattern, type NvmeDriverWorldOptions } from './nvme-world.js';

const POLICIES = { strict: { dma: 'strict' }, lazy: { dma: 'lazy' }, identity: { defaultDomain: 'identity' } } as const;

function opened(world: NvmeDriverWorld, name = 'app'): { process: Process; file: NvmeFile } {
  const { process } = world.process(name);
  return { process, file: world.run(world.nvmeDriver.open(world.nvmePci, process)) };
}

/** Memory of the process with these bytes, `inside` a page. */
function buffer(world: NvmeDriverWorld, process: Process, content: Uint8Array, inside = 0): number {
  return world.run((function* (): Steps<number> {
    const at = (yield* process.mm.mmap(Math.ceil((content.length + inside) / 4096) * 4096)) + inside;
    yield* process.mm.write(at, content);
    return at;
  })());
}

function contents(world: NvmeDriverWorld, process: Process, at: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  world.run(process.mm.read(at, bytes, 0, length));
  return bytes;
}

function stored(world: NvmeDriverWorld, offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  world.medium.read(offset, bytes);
  return bytes;
}

/** What the driver and the bus took is given back. */
function expectNothingLeft(world: NvmeDriverWorld): void {
  world.run(world.drivers.unregisterDriver('nvme'));
  world.settle();
  expect([world.frames.pinnedPages, world.core.usage.dmaPages, world.core.dma.mappedPages]).toEqual([0, 0, 0]);
  expect(world.log.lines.filter(({ text }) => text.includes('DMA-API'))).toEqual([]);
}

describe('the bring-up', () => {
  it('finds the controller, makes a pair of queues for each vector, and says what it found', () => {
    const world = new NvmeDriverWorld();
    const dev = world.nvmeDriver.device(world.nvmePci);
    world.settle();
    expect([dev.state, dev.queueCount, dev.identity]).toMatchObject(['live', 4, { model: 'vfiosim NVMe controller', serial: 'nvme0', blockShift: 9, maxTransfer: 524_288, writeCache: true }]);
    expect(world.nvme.controller.cqs.map((cq) => cq?.vector)).toEqual([0, 1, 2, 3, 4]);
    expect([world.nvme.controller.features.events, world.nvme.controller.outstanding]).toEqual([2, 1]);
    expect(world.log.lines.at(-1)!.text).toMatch(/^nvme 0000:00:03\.0: vfiosim NVMe controller, serial nvme0: 4 I\/O queues, 16384 blocks of 512 bytes/);
    expectNothingLeft(world);
  });

  it.each([[{ ioQueues: 2 }, {}, 2], [{}, { ioQueues: 1 }, 1], [{ ioQueues: 8 }, {}, 8]])('with %o makes %o', (config, services, expected) => {
    const world = new NvmeDriverWorld({ config, services });
    expect(world.nvmeDriver.device(world.nvmePci).queueCount).toBe(expected);
  });

  it('does without messages', () => {
    const world = new NvmeDriverWorld({ services: { intxOnly: true } });
    const { process, file } = opened(world);
    const at = buffer(world, process, pattern(8192));
    expect(world.run(file.pwrite(at, 0, 8192))).toBe(8192);
    expect(stored(world, 0, 8192)).toEqual(pattern(8192));
    expectNothingLeft(world);
  });

  it('refuses a controller that does not become ready, and leaves nothing', () => {
    const world = new NvmeDriverWorld();
    world.run(world.drivers.unregisterDriver('nvme'));
    // somebody else's hand holds the controller down
    world.nvme.controller.registers.r.CSTS.onRead = () => (world.nvme.controller.registers.r.CSTS.lo = 2);
    world.run(world.drivers.registerDriver(world.nvmeDriver));
    expect(world.drivers.driverOf(world.nvmePci)).toBeUndefined();
    expect([world.core.usage.dmaPages, world.nvme.function.busMaster]).toEqual([0, false]);
    expect(world.refusal(world.nvmeDriver.open(world.nvmePci, world.process('app').process)).code).toBe('ENODEV');
  });

  it('binds, unbinds and binds again', () => {
    const world = new NvmeDriverWorld();
    for (let i = 0; i < 3; i++) {
      world.run(world.drivers.unbind('nvme', world.nvmePci));
      expect([world.nvme.controller.registers.r.CSTS.lo, world.core.usage.dmaPages]).toEqual([0, 0]);
      world.run(world.drivers.bind('nvme', world.nvmePci));
    }
    expect(world.nvmeDriver.device(world.nvmePci).state).toBe('live');
  });
});

describe.each(Object.entries(POLICIES))('reads and writes, %s', (_name, core) => {
  const make = (options: NvmeDriverWorldOptions = {}): NvmeDriverWorld => new NvmeDriverWorld({ core, ...options });

  it.each([[512, 0], [4096, 0], [4096, 512], [8192, 0], [8192, 3584], [65_536, 1024], [1_200_128, 2048]])('of a process: %d bytes, %d into a page', (size, inside) => {
    const world = make();
    const { process, file } = opened(world);
    const from = buffer(world, process, pattern(size, 3), inside), to = buffer(world, process, new Uint8Array(size), (inside + 512) % 4096);
    expect(world.run(file.pwrite(from, 512, size))).toBe(size);
    expect(Buffer.compare(stored(world, 512, size), pattern(size, 3))).toBe(0);
    expect([stored(world, 0, 512), stored(world, 512 + size, 512)]).toEqual([new Uint8Array(512), new Uint8Array(512)]);
    expect(world.run(file.pread(to, 512, size))).toBe(size);
    expect(Buffer.compare(contents(world, process, to, size), pattern(size, 3))).toBe(0);
    expectNothingLeft(world);
  });

  it('of the kernel: scattered memory, and a flush', () => {
    const world = make();
    const frames = Array.from({ length: 5 }, () => world.frames.alloc('test'));
    frames.forEach((frame, i) => world.ram.fill(frame, i + 1, 4096));
    const list = [{ physical: frames[3]! + 2048, length: 2048 }, { physical: frames[0]!, length: 4096 }, { physical: frames[2]! + 512, length: 512 }, { physical: frames[1]!, length: 4096 }];
    world.run(world.nvmeDriver.writeBlocks(world.nvmePci, 10, list));
    expect([stored(world, 5120, 1)[0], stored(world, 7167, 2), stored(world, 11_264, 1)[0], stored(world, 11_776, 1)[0], stored(world, 15_872, 1)[0]]).toEqual([4, Uint8Array.of(4, 1), 3, 2, 0]);
    world.run(world.nvmeDriver.flush(world.nvmePci));
    expect(world.medium.unflushedWrites).toBe(0);
    world.run(world.nvmeDriver.readBlocks(world.nvmePci, 10, [{ physical: frames[4]!, length: 4096 }]));
    expect([world.ram.load(frames[4]!, 1), world.ram.load(frames[4]! + 2048, 1)]).toEqual([4, 1]);
    for (const frame of frames) world.frames.free(frame);
    expectNothingLeft(world);
  });

  it('of many processes at once, with DMA that is held', () => {
    const world = make({ hold: 0.3, seed: 4, services: { queueDepth: 3 } });
    const users = Array.from({ length: 6 }, (_, i) => ({ ...opened(world, `app${i}`), i }));
    const buffers = users.map(({ process, i }) => buffer(world, process, pattern(40_960, i)));
    const tasks = users.map(({ file, i }) => world.scheduler.spawn(`writer ${i}`, (function* (): Steps {
      for (let round = 0; round < 3; round++) yield* file.pwrite(buffers[i]!, i * 65_536, 40_960);
    })(), { joined: true }));
    world.settle();
    expect(tasks.map(({ state }) => state)).toEqual(Array(6).fill('done'));
    for (const { i } of users) expect(Buffer.compare(stored(world, i * 65_536, 40_960), pattern(40_960, i))).toBe(0);
    expectNothingLeft(world);
  });
});

describe('what a process may ask for', () => {
  it('is aligned to blocks, and ends with the device', () => {
    const world = new NvmeDriverWorld({ medium: new MemoryMedium(65_536) });
    const { process, file } = opened(world);
    const at = buffer(world, process, pattern(8192));
    for (const [address, offset, size] of [[at + 4, 0, 512], [at, 100, 512], [at, 0, 100], [at, -512, 512]] as const) {
      expect([world.refusal(file.pread(address, offset, size)).code, world.refusal(file.pwrite(address, offset, size)).code]).toEqual(['EINVAL', 'EINVAL']);
    }
    expect([world.run(file.pread(at, 61_440, 8192)), world.run(file.pread(at, 65_536, 512)), world.run(file.pwrite(at, 61_440, 8192)), world.run(file.pread(at, 0, 0))]).toEqual([4096, 0, 4096, 0]);
    expect([world.refusal(file.pwrite(at, 65_536, 512)).code, world.frames.pinnedPages]).toEqual(['ENOSPC', 0]);
  });

  it('is its own memory: read-only pages are not read into, missing ones refused, nothing stays pinned', () => {
    const world = new NvmeDriverWorld();
    const { process, file } = opened(world);
    const readOnly = world.run(process.mm.mmap(8192, { prot: 1 }));
    expect([world.refusal(file.pread(readOnly, 0, 8192)).code, world.refusal(file.pread(0x1000_0000, 0, 512)).code]).toEqual(['EFAULT', 'EFAULT']);
    expect(world.run(file.pwrite(readOnly, 0, 8192))).toBe(8192);
    const half = buffer(world, process, pattern(8192));
    world.run(process.mm.munmap(half + 4096, 4096));
    expect([world.refusal(file.pwrite(half, 0, 8192)).code, world.frames.pinnedPages]).toEqual(['EFAULT', 0]);
  });

  it('goes on in a child with the memory of who opened it, until the last descriptor is closed', () => {
    const world = new NvmeDriverWorld();
    const { process, file } = opened(world);
    world.run(process.fork(900));
    world.run(process.close(file.fd));
    expect(file.gone).toBe(false);
    expect(world.nvmeDriver.device(world.nvmePci).files.size).toBe(1);
  });

  it('ends with the process: nothing is pinned after it', () => {
    const world = new NvmeDriverWorld({ config: { readNs: 1_000_000 } });
    const { process, file } = opened(world);
    const at = buffer(world, process, pattern(65_536));
    const reading = world.scheduler.spawn('read', file.pread(at, 0, 65_536), { joined: true });
    world.clock.run({ stop: () => world.frames.pinnedPages > 0 });
    world.run(process.exit());
    world.settle();
    expect([reading.state, world.frames.pinnedPages, process.state]).toEqual(['done', 0, 'exited']);
    expectNothingLeft(world);
  });
});

describe('errors', () => {
  it('of the medium end a request; the next one is carried out', () => {
    let broken = 3;
    const inner = new MemoryMedium(65_536);
    const medium: BlockMedium = { sizeBytes: 65_536, read: (offset, target) => inner.read(offset, target), write: (offset, source) => broken-- <= 0 && inner.write(offset, source), flush: () => true };
    const world = new NvmeDriverWorld({ medium: medium as MemoryMedium });
    const { process, file } = opened(world);
    const at = buffer(world, process, pattern(512));
    // write faults may pass: tried again up to five times
    expect(world.run(file.pwrite(at, 0, 512))).toBe(512);
    broken = 100;
    const error = world.refusal(file.pwrite(at, 0, 512));
    expect([error.code, error.message, broken, world.frames.pinnedPages]).toEqual(['EIO', `-EIO: ${NVME_BDF}: command ended with WRITE_FAULT (0x280)`, 94, 0]);
  });

  it('of the IOMMU are transfer errors: pages that go while the controller works on them (nvme-driver.unmap-before-completion)', () => {
    const run = (defects: readonly string[]): [string, number] => {
      const world = new NvmeDriverWorld({ core: POLICIES.strict, nvmeDefects: defects });
      const { process, file } = opened(world);
      const at = buffer(world, process, pattern(8192));
      let code = 'done';
      try {
        world.run(file.pwrite(at, 0, 8192));
      } catch (error) {
        code = (error as Errno).code;
      }
      world.settle();
      return [code, world.log.lines.filter(({ text }) => /DMAR.*[Ff]ault/.test(text)).length > 0 ? 1 : 0];
    };
    expect([run([]), run(['nvme-driver.unmap-before-completion'])]).toEqual([['done', 0], ['EIO', 1]]);
  });

  it('of the controller reset it: what was in flight is carried out afterwards', () => {
    const world = new NvmeDriverWorld({ services: { ioTimeoutNs: 10_000_000 } });
    const { process, file } = opened(world);
    const at = buffer(world, process, pattern(4096));
    world.nvme.controller.registers.r.CSTS.lo |= 2;
    expect(world.run(file.pwrite(at, 0, 4096))).toBe(4096);
    expect([world.nvmeDriver.device(world.nvmePci).resets, stored(world, 0, 4096)]).toEqual([1, pattern(4096)]);
    expect(world.log.lines.some(({ text }) => /timeout, status 0x3, reset controller/.test(text))).toBe(true);
    expectNothingLeft(world);
  });

  it('a command that takes too long is aborted, tried again, and at last reported', () => {
    const world = new NvmeDriverWorld({ config: { writeNs: 50_000_000 }, services: { ioTimeoutNs: 10_000_000 } });
    const { process, file } = opened(world);
    const at = buffer(world, process, pattern(512));
    expect(world.refusal(file.pwrite(at, 0, 512)).message).toContain('ABORT_REQUESTED');
    expect([world.log.lines.filter(({ text }) => text.includes('timeout, aborting')).length, world.nvmeDriver.device(world.nvmePci).resets, stored(world, 0, 1)[0]]).toEqual([6, 0, 0]);
    expectNothingLeft(world);
  });

  it('a lost interrupt is found by looking', () => {
    const world = new NvmeDriverWorld({ services: { ioTimeoutNs: 10_000_000 } });
    const { process, file } = opened(world);
    const at = buffer(world, process, pattern(512));
    for (let vector = 1; vector <= 4; vector++) world.nvme.function.window(0)!.write(0x200c + 16 * vector, 4, 1);
    expect(world.run(file.pwrite(at, 0, 512))).toBe(512);
    expect(world.log.lines.some(({ text }) => text.includes('timeout, completion polled'))).toBe(true);
  });

  it('an asynchronous event is taken, and the next one asked for', () => {
    const world = new NvmeDriverWorld();
    const dev = world.nvmeDriver.device(world.nvmePci);
    world.run(dev.adminCommand({ opcode: 9, cdw: [4, 300] }));
    world.settle();
    expect([dev.asyncEvents, world.nvme.controller.outstanding]).toEqual([[0x0002_0101], 1]);
    expect(world.run(dev.logPage(2, 512))[0]).toBe(2);
  });
});

describe('resets and removal', () => {
  it('a reset of the function under load loses nothing', () => {
    const world = new NvmeDriverWorld({ config: { writeNs: 200_000 } });
    const { process, file } = opened(world);
    const at = buffer(world, process, pattern(262_144));
    const writing = world.scheduler.spawn('write', (function* (): Steps {
      for (let i = 0; i < 4; i++) yield* file.pwrite(at, i * 262_144, 262_144);
    })(), { joined: true });
    world.clock.run({ untilNs: world.clock.now + 100_000 });
    world.run(world.nvmePci.reset());
    world.settle();
    expect([writing.state, world.nvmeDriver.device(world.nvmePci).resets]).toEqual(['done', 1]);
    for (let i = 0; i < 4; i++) expect(Buffer.compare(stored(world, i * 262_144, 262_144), pattern(262_144))).toBe(0);
    expectNothingLeft(world);
  });

  it.each([10_000, 60_000, 150_000, 400_000])('pulled out after %d ns: requests fail, files are dead, nothing is left', (afterNs) => {
    const world = new NvmeDriverWorld({ hold: 0.3, config: { writeNs: 100_000 } });
    const { process, file } = opened(world);
    const at = buffer(world, process, pattern(131_072));
    let code = '';
    world.scheduler.spawn('write', (function* (): Steps {
      try {
        for (;;) yield* file.pwrite(at, 0, 131_072);
      } catch (error) {
        code = (error as Errno).code;
      }
    })());
    world.clock.run({ untilNs: world.clock.now + afterNs });
    const { nvmePci } = world;
    world.complex.remove(world.nvme.function, { surprise: true });
    world.run(world.pciCore.removeAbsent());
    world.settle();
    expect(['EIO', 'ENODEV']).toContain(code);
    expect([file.gone, world.refusal(file.fsync()).code, world.refusal(world.nvmeDriver.open(nvmePci, process)).code]).toEqual([true, 'ENODEV', 'ENODEV']);
    world.run(process.exit());
    expect([world.frames.pinnedPages, world.core.usage.dmaPages, world.scheduler.live().filter(({ name }) => name.includes('nvme')).length]).toEqual([0, 0, 0]);
  });

  it('unbound under load: what is in flight ends first', () => {
    const world = new NvmeDriverWorld({ config: { readNs: 200_000 } });
    const { process, file } = opened(world);
    const at = buffer(world, process, pattern(65_536));
    const reading = world.scheduler.spawn('read', file.pread(at, 0, 65_536), { joined: true });
    world.clock.run({ untilNs: world.clock.now + 50_000 });
    world.run(world.drivers.unbind('nvme', world.nvmePci));
    expect([reading.state, reading.result, file.gone, world.nvme.controller.registers.r.CSTS.lo]).toEqual(['done', 65_536, true, 0]);
    expect([world.refusal(file.pread(at, 0, 512)).code, world.core.usage.dmaPages]).toEqual(['ENODEV', 0]);
  });

  it('unbound while a reset is under way', () => {
    const world = new NvmeDriverWorld();
    const { nvmePci } = world;
    const resetting = world.scheduler.spawn('reset', nvmePci.reset(), { joined: true });
    world.clock.run({ untilNs: world.clock.now + 1_000_000 });
    world.run((function* (): Steps {
      yield* sleep(world.clock, 99_500_000);
      yield* world.drivers.unbind('nvme', nvmePci);
    })());
    world.settle();
    expect([resetting.state, world.core.usage.dmaPages, world.drivers.driverOf(nvmePci), world.nvme.controller.registers.r.CSTS.lo]).toEqual(['done', 0, undefined, 0]);
  });

  it('what a fatal error of the bus stopped comes back with the link', () => {
    const world = new NvmeDriverWorld();
    const { process, file } = opened(world);
    const at = buffer(world, process, pattern(512));
    expect(world.run(world.nvmeDriver.errorDetected(world.nvmePci, 'nonfatal'))).toBe('can-recover');
    expect(world.run(world.nvmeDriver.errorDetected(world.nvmePci, 'fatal'))).toBe('need-reset');
    const writing = world.scheduler.spawn('write', file.pwrite(at, 0, 512), { joined: true });
    world.clock.run({ untilNs: world.clock.now + 1_000_000 });
    expect(writing.state).toBe('blocked');
    expect(world.run(world.nvmeDriver.slotReset(world.nvmePci))).toBe('recovered');
    world.settle();
    expect(writing.state).toBe('done');
  });
});
