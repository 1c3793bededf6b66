/**
 * DMA of the sample parent: the vendor's driver pins its user's pages (C10, Y1 without iommu_device), copies with the
 * CPU, unpins; unmaps under it (C9, scenario 19); then a guest's driver and processes on top.
 */
import fc from 'fast-check';
import { beforeEach, describe, expect, it } from 'vitest';
import { sleep, type Steps } from '../../sim/task.js';
import type { DeviceHandle } from '../../vfio/client/index.js';
import { DMA_DONE, DMA_STATUS, firstDifference, MttyGuest, MttyWorld, startDma, uuid, type MttyUser, type MttyWorldOptions } from './mtty-world.js';

const CONFIG = 7;
const MASTER = 4;
const IOVA = 0x4000_0000;
const BUSY = 1, OK = 2;
const ERROR = { length: 0x102, busMaster: 0x202, address: 0x302, resources: 0x402, overrun: 0x502, aborted: 0x602, unmapped: 0x702 };

function pattern(length: number, seed = 1): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 8) * 7 + seed) & 0xff);
}

/** A program that pokes a card itself. */
class DmaWorld extends MttyWorld {
  readonly vmm: MttyUser;
  readonly handle: DeviceHandle;
  readonly vaddr: number;

  constructor(options: MttyWorldOptions = {}, memlockLimitPages?: number) {
    super(options);
    this.create(1, 'mtty-2');
    this.vmm = this.user('vmm', memlockLimitPages);
    this.handle = this.open(this.vmm, 1);
    this.vaddr = this.map(this.vmm, IOVA, 64 * 4096);
    this.handle.writeValue(CONFIG, 4, 2, MASTER);
  }

  get pinned(): number {
    return this.frames.pinnedPages;
  }

  fill(offset: number, bytes: Uint8Array): void {
    this.run(this.vmm.process.mm.write(this.vaddr + offset, bytes));
  }

  content(offset: number, length: number): Uint8Array {
    return this.bytes(this.vmm.process, this.vaddr + offset, length);
  }

  status(port = 0): number {
    return this.handle.readValue(port, DMA_STATUS, 4);
  }

  done(port = 0): number {
    return this.handle.readValue(port, DMA_DONE, 4);
  }

  /** Lets `ns` pass. */
  pass(ns: number): void {
    this.clock.run({ untilNs: this.clock.now + ns });
  }
}

describe('a port\'s DMA window', () => {
  let world: DmaWorld;

  beforeEach(() => {
    world = new DmaWorld();
  });

  it('tells its id and its longest transfer', () => {
    expect([world.handle.readValue(0, 0x100, 4), world.handle.readValue(0, 0x104, 4)]).toEqual([0x414d_446d, 1 << 20]);
    world.handle.writeValue(0, 0x100, 4, 0);
    expect(world.handle.readValue(0, 0x100, 4)).toBe(0x414d_446d);
  });

  it('moves what it sends into the receive buffer, and pins nothing afterwards (C10)', () => {
    world.fill(100, pattern(10_000));
    startDma(world.handle, IOVA + 100, IOVA + 0x8003, 10_000);
    expect(world.status()).toBe(BUSY);
    world.settle();
    expect([world.status(), world.done(), world.pinned]).toEqual([OK, 10_000, 0]);
    expect(firstDifference(world.content(0x8003, 10_000), pattern(10_000))).toBe(-1);
    expect([world.content(0x8002, 1), world.content(0x8003 + 10_000, 1)]).toEqual([Uint8Array.of(0), Uint8Array.of(0)]);
  });

  it('moves any piece of memory to any other', () => {
    fc.assert(fc.property(fc.nat(20_000), fc.nat(9000), fc.integer({ min: 1, max: 40_000 }), (from, gap, length) => {
      const to = from + length + gap;
      world.fill(from, pattern(length, from));
      startDma(world.handle, IOVA + from, IOVA + to, length);
      world.settle();
      expect([world.status(), firstDifference(world.content(to, length), pattern(length, from)), world.pinned]).toEqual([OK, -1, 0]);
    }), { numRuns: 20 });
  });

  it('moves as much as it says at most, from and to the middle of pages: 514 of them, all given back', () => {
    const vaddr = world.map(world.vmm, 0x8000_0000, 4 * 2 ** 20);
    world.run(world.vmm.process.mm.write(vaddr + 7, pattern(2 ** 20)));
    startDma(world.handle, 0x8000_0007, 0x8000_0009 + 2 * 2 ** 20, 2 ** 20);
    world.pass(1000);
    expect(world.pinned).toBe(514);
    world.settle();
    expect([world.status(), world.done(), world.pinned]).toEqual([OK, 2 ** 20, 0]);
    expect(firstDifference(world.bytes(world.vmm.process, vaddr + 9 + 2 * 2 ** 20, 2 ** 20), pattern(2 ** 20))).toBe(-1);
  });

  it('keeps both buffers pinned for as long as its bytes take, and no page more', () => {
    startDma(world.handle, IOVA, IOVA + 0x8000, 3 * 4096);
    world.pass(500 + 4096 * 3 - 1);
    expect([world.status(), world.done(), world.pinned, world.card(1).pinnedPages]).toEqual([BUSY, 2 * 4096, 6, 6]);
    world.pass(1);
    expect([world.status(), world.done(), world.pinned, world.card(1).pinnedPages]).toEqual([OK, 3 * 4096, 0, 0]);
  });

  it('interrupts at the end when it may, until the end is acknowledged', () => {
    startDma(world.handle, IOVA, IOVA + 0x8000, 16);
    world.settle();
    expect(world.handle.readValue(CONFIG, 6, 2) & 8).toBe(8);
    world.handle.writeValue(0, DMA_STATUS, 4, OK);
    expect([world.handle.readValue(CONFIG, 6, 2) & 8, world.status()]).toEqual([0, 0]);
  });

  it('does not let a transfer\'s addresses change under it', () => {
    startDma(world.handle, IOVA, IOVA + 0x8000, 4096);
    for (const offset of [0x108, 0x10c, 0x110, 0x114, 0x118, 0x11c]) world.handle.writeValue(0, offset, 4, 0xffff_ffff);
    startDma(world.handle, IOVA + 4096, IOVA, 4096);
    world.settle();
    expect([0x108, 0x110, 0x114, 0x118].map((offset) => world.handle.readValue(0, offset, 4))).toEqual([IOVA, 4096, 4096, IOVA + 0x8000]);
  });

  it('runs both ports side by side', () => {
    world.fill(0, pattern(4096, 1));
    world.fill(4096, pattern(4096, 2));
    startDma(world.handle, IOVA, IOVA + 0x8000, 4096, 4096, 0);
    startDma(world.handle, IOVA + 4096, IOVA + 0x9000, 4096, 4096, 1);
    world.settle();
    expect([world.status(0), world.status(1), firstDifference(world.content(0x8000, 4096), pattern(4096, 1)), firstDifference(world.content(0x9000, 4096), pattern(4096, 2)), world.pinned]).toEqual([OK, OK, -1, -1, 0]);
  });

  it.each([
    ['no length', 'length', 0, 0, 0, 0, 0],
    ['more than its maximum', 'length', 0, 0, (1 << 20) + 1, 16, 0],
    ['a receive buffer beyond its maximum', 'length', 0, 0, 16, (1 << 20) + 1, 0],
    ['memory that is not mapped', 'address', 64 * 4096, 0, 16, 16, 0],
    ['a receive buffer whose end is not mapped', 'address', 0, 63 * 4096, 4097, 4097, 0],
    ['a shorter receive buffer, which it fills', 'overrun', 0, 0x8000, 4096, 1000, 1000],
    ['no receive buffer', 'overrun', 0, 0x8000, 16, 0, 0],
  ] as const)('ends %s with error %s', (_what, error, tx, rx, length, rxLength, done) => {
    startDma(world.handle, IOVA + tx, IOVA + rx, length, rxLength);
    world.settle();
    expect([world.status(), world.done(), world.pinned]).toEqual([ERROR[error], done, 0]);
  });

  it('does nothing without bus master, and stops when it is taken away', () => {
    world.handle.writeValue(CONFIG, 4, 2, 0);
    startDma(world.handle, IOVA, IOVA + 0x8000, 8192);
    expect([world.status(), world.pinned]).toEqual([ERROR.busMaster, 0]);
    world.handle.writeValue(CONFIG, 4, 2, MASTER);
    startDma(world.handle, IOVA, IOVA + 0x8000, 8192);
    world.pass(5000);
    world.handle.writeValue(CONFIG, 4, 2, 0);
    world.settle();
    expect([world.status(), world.done(), world.pinned]).toEqual([ERROR.busMaster, 4096, 0]);
  });

  it('respects the rights of a mapping (C10)', () => {
    world.map(world.vmm, 0x1000, 4096, { write: false });
    startDma(world.handle, 0x1000, IOVA, 16);
    world.settle();
    expect(world.status()).toBe(OK);
    startDma(world.handle, IOVA, 0x1000, 16);
    world.settle();
    expect([world.status(), world.pinned]).toEqual([ERROR.address, 0]);
  });

  it('gives up cleanly when the user may lock no more memory', () => {
    const limited = new DmaWorld({}, 3);
    startDma(limited.handle, IOVA, IOVA + 0x8000, 4 * 4096);
    limited.settle();
    expect([limited.status(), limited.pinned, limited.vmm.process.mm.lockedPages]).toEqual([ERROR.resources, 0, 0]);
  });

  it('aborts on command, at once', () => {
    startDma(world.handle, IOVA, IOVA + 0x8000, 8 * 4096);
    world.pass(6000);
    world.handle.writeValue(0, 0x120, 4, 2);
    expect([world.status(), world.done(), world.pinned]).toEqual([ERROR.aborted, 4096, 0]);
    startDma(world.handle, IOVA, IOVA + 0x8000, 16);
    world.settle();
    expect([world.status(), world.done()]).toEqual([OK, 16]);
  });

  it.each([['close', (w: DmaWorld) => w.handle.close()], ['reset', (w: DmaWorld) => w.handle.reset()], ['the end of its user', (w: DmaWorld) => w.vmm.process.exit()]])('has nothing pinned after %s, also in the middle of a transfer', (_what, end) => {
    for (const ns of [0, 100, 6000]) {
      const busy = new DmaWorld();
      startDma(busy.handle, IOVA, IOVA + 0x8000, 8 * 4096);
      busy.pass(ns);
      busy.run(end(busy));
      expect([busy.pinned, busy.card(1).pinnedPages]).toEqual([0, 0]);
      busy.settle();
      expect([busy.pinned, busy.type1.counters.violations]).toEqual([0, 0]);
    }
  });
});

describe('an unmap under a transfer (C9)', () => {
  it('aborts it and has its pages back before the unmap returns', () => {
    const world = new DmaWorld();
    startDma(world.handle, IOVA, IOVA + 0x8000, 8 * 4096);
    world.pass(6000);
    expect(world.pinned).toBe(16);
    const before = world.clock.now;
    expect(world.run(world.vmm.container.unmapDma(IOVA, 64 * 4096))).toBe(64 * 4096);
    expect([world.clock.now, world.pinned, world.status(), world.done(), world.type1.counters.violations]).toEqual([before, 0, ERROR.unmapped, 4096, 0]);
  });

  it('leaves transfers in other memory alone', () => {
    const world = new DmaWorld();
    world.map(world.vmm, 0x10_0000, 4096);
    world.map(world.vmm, 0x20_0000, 4096);
    for (const [tx, rx] of [[0x10_0000, IOVA], [IOVA, 0x10_0000]] as const) {
      startDma(world.handle, 0x20_0000, 0x20_0800, 1024, 1024, 1);
      startDma(world.handle, tx, rx, 4096);
      world.pass(600);
      world.run(world.vmm.container.unmapDma(0x10_0000, 4096));
      world.settle();
      expect([world.status(0), world.status(1), world.pinned, world.told('mtty:dma_unmap').length]).toEqual([ERROR.unmapped, OK, 0, tx === IOVA ? 2 : 1]);
      world.map(world.vmm, 0x10_0000, 4096);
    }
  });

  it.each([
    ['an unmap', (w: DmaWorld) => w.vmm.container.unmapDma(IOVA, 64 * 4096), ERROR.unmapped],
    ['close', (w: DmaWorld) => w.handle.close(), undefined],
    ['reset', (w: DmaWorld) => w.handle.reset(), 0],
    ['STOP', (w: DmaWorld) => w.handle.migration.setState(1), BUSY],
  ] as const)('or %s that comes while the pages are being pinned waits for that, and gives them back', (_what, end, status) => {
    const world = new DmaWorld();
    const { mm } = world.vmm.process;
    // somebody changes the user's address space for 10 us
    world.scheduler.spawn('mmap', mm.lock.with(() => sleep(world.clock, 10_000)));
    world.pass(0);
    startDma(world.handle, IOVA, IOVA + 0x8000, 8 * 4096);
    const start = world.clock.now;
    world.pass(100);
    const ending = world.scheduler.spawn('end', end(world) as Steps, { joined: true });
    world.pass(100);
    expect([ending.state, world.pinned]).toEqual(['blocked', 0]);
    world.run(ending.join());
    expect([world.clock.now - start >= 10_000, world.pinned, world.card(1).pinnedPages, world.type1.counters.violations]).toEqual([true, 0, 0, 0]);
    if (status !== undefined) expect(world.status()).toBe(status);
    world.settle();
    expect(world.pinned).toBe(0);
  });

  it.each([1, 3, 10])('is asked again when the driver unpins only after %i notifications (scenario 19)', (lateUnpin) => {
    const world = new DmaWorld({ config: { lateUnpin, bytesPerNs: 1e-6 } });
    startDma(world.handle, IOVA, IOVA + 0x8000, 4096);
    world.pass(600);
    world.run(world.vmm.container.unmapDma(IOVA, 64 * 4096));
    expect([world.told('mtty:dma_unmap').length, world.pinned, world.status(), world.type1.counters.violations]).toEqual([lateUnpin + 1, 0, ERROR.unmapped, 0]);
  });

  it('is a violation when the driver never unpins: more than 10 retries (scenario 19)', () => {
    const world = new DmaWorld({ config: { lateUnpin: Infinity, bytesPerNs: 1e-6 } });
    startDma(world.handle, IOVA, IOVA + 0x8000, 4096);
    world.pass(600);
    world.run(world.vmm.container.unmapDma(IOVA, 64 * 4096));
    expect([world.told('mtty:dma_unmap').length, world.type1.counters.violations]).toEqual([11, 1]);
    world.run(world.handle.close());
    expect(world.pinned).toBe(0);
  });
});

describe('defects of the driver', () => {
  it('mtty.never-unpin: an unmap finds the pages pinned after all its retries', () => {
    const world = new DmaWorld({ defects: ['mtty.never-unpin'] });
    startDma(world.handle, IOVA, IOVA + 0x8000, 4096);
    world.settle();
    expect([world.status(), world.pinned]).toEqual([OK, 2]);
    world.run(world.vmm.container.unmapDma(IOVA, 64 * 4096));
    expect(world.type1.counters.violations).toBe(1);
  });

  it('mtty.pin-leak: a page stays pinned behind each transfer', () => {
    const world = new DmaWorld({ defects: ['mtty.pin-leak'] });
    for (const page of [8, 9, 10]) {
      startDma(world.handle, IOVA, IOVA + page * 4096, 4096);
      world.settle();
    }
    expect(world.pinned).toBe(3);
  });
});

describe.each([['MSI', true], ['INTx', false]])('the card\'s driver in a guest, with %s', (_name, msi) => {
  let world: MttyWorld;
  let guest: MttyGuest;

  beforeEach(() => {
    world = new MttyWorld();
    world.create(1, 'mtty-2');
    guest = new MttyGuest(world, 1, { msi });
  });

  it('binds to it and says so in configuration space', () => {
    expect(guest.drivers.driverOf(guest.function)).toBe(guest.driver);
    expect(guest.driver.ports(guest.function)!.map(({ index }) => index)).toEqual([0, 1]);
    const command = guest.function.config.read(4, 2), msiFlags = guest.function.config.read(0x52, 2);
    expect([command & 0x406, msiFlags & 1]).toEqual(msi ? [0x406, 1] : [0x006, 0]);
  });

  it('carries bytes from a writer to a reader, more than all buffers hold', () => {
    const app = guest.newProcess();
    const file = world.run(guest.driver.open(guest.function, app, 1));
    const sent = pattern(10_000);
    const got: number[] = [];
    const reader = world.scheduler.spawn('reader', (function* () {
      while (got.length < sent.length) got.push(...(yield* file.read(333)));
    })(), { joined: true });
    expect(world.run(file.write(sent))).toBe(10_000);
    world.run(reader.join());
    expect([firstDifference(Uint8Array.from(got), sent), file.port.overruns]).toEqual([-1, 0]);
  });

  it('delivers a few bytes below the trigger level by the timeout', () => {
    const file = world.run(guest.driver.open(guest.function, guest.newProcess()));
    world.run(file.write(Uint8Array.of(1, 2, 3)));
    expect(world.run(file.read(10))).toEqual(Uint8Array.of(1, 2, 3));
  });

  it('makes the writer wait when nobody reads', () => {
    const app = guest.newProcess();
    const file = world.run(guest.driver.open(guest.function, app));
    const writer = world.scheduler.spawn('writer', file.write(pattern(5000)), { joined: true });
    world.settle();
    expect([writer.state, file.port.overruns]).toEqual(['blocked', 0]);
    const got: number[] = [];
    while (got.length < 5000) got.push(...world.run(file.read(5000)));
    world.run(writer.join());
    expect(firstDifference(Uint8Array.from(got), pattern(5000))).toBe(-1);
  });

  it('moves a process\'s buffer by DMA: guest-virtual, guest-physical, host-physical, and nothing stays pinned', () => {
    const app = guest.newProcess();
    const file = world.run(guest.driver.open(guest.function, app));
    const buffer = world.run(app.mm.mmap(200_000));
    const hostPins = world.frames.pinnedPages;
    world.run(app.mm.write(buffer + 5, pattern(90_000)));
    world.run(file.transfer(buffer + 5, buffer + 100_001, 90_000));
    expect(firstDifference(world.bytes(app, buffer + 100_001, 90_000), pattern(90_000))).toBe(-1);
    expect([guest.frames.pinnedPages, guest.core.dma.mappedPages, world.frames.pinnedPages - hostPins]).toEqual([0, 0, 0]);
  });

  it('serves transfers of several processes on one port one after the other', () => {
    const files = [1, 2, 3].map(() => {
      const app = guest.newProcess();
      const file = world.run(guest.driver.open(guest.function, app));
      return { app, file, buffer: world.run(app.mm.mmap(16_384)) };
    });
    files.forEach(({ app, buffer }, i) => world.run(app.mm.write(buffer, pattern(8192, i))));
    const tasks = files.map(({ file, buffer }) => world.scheduler.spawn('transfer', file.transfer(buffer, buffer + 8192, 8192), { joined: true }));
    for (const task of tasks) world.run(task.join());
    files.forEach(({ app, buffer }, i) => expect(firstDifference(world.bytes(app, buffer + 8192, 8192), pattern(8192, i))).toBe(-1));
  });

  it.each([[0, 'EINVAL'], [4097, 'EFAULT']] as const)('refuses a transfer of %i bytes with %s and pins nothing', (length, code) => {
    const app = guest.newProcess();
    const file = world.run(guest.driver.open(guest.function, app));
    const buffer = world.run(app.mm.mmap(4096));
    expect(world.refused(file.transfer(buffer, buffer, length))).toBe(code);
    expect([guest.frames.pinnedPages, guest.core.dma.mappedPages]).toEqual([0, 0]);
  });

  it.each([0, 300, 1000, 30_000])('leaves nothing behind when its process is killed %i ns into a transfer', (ns) => {
    const app = guest.newProcess();
    const file = world.run(guest.driver.open(guest.function, app));
    const buffer = world.run(app.mm.mmap(200_000));
    const calls = [file.transfer(buffer, buffer + 100_000, 90_000), file.write(pattern(6000)), file.write(pattern(10)), file.read(1), file.read(1)];
    const tasks = calls.map((steps) => world.scheduler.spawn('app', steps as ReturnType<typeof file.transfer>, { joined: true }));
    world.clock.run({ untilNs: world.clock.now + ns });
    for (const task of tasks) task.kill();
    const before = world.clock.now;
    world.run(app.exit());
    expect(world.clock.now - before).toBeLessThan(100);
    expect([guest.frames.pinnedPages, guest.core.dma.mappedPages, world.card(1).pinnedPages, file.port.users]).toEqual([0, 0, 0, 0]);
    world.settle();
    expect(guest.frames.framesOf('user')).toBe(0);
    const again = guest.newProcess();
    const other = world.run(guest.driver.open(guest.function, again));
    const fresh = world.run(again.mm.mmap(8192));
    world.run(again.mm.write(fresh, pattern(4096)));
    world.run(other.transfer(fresh, fresh + 4096, 4096));
    expect(firstDifference(world.bytes(again, fresh + 4096, 4096), pattern(4096))).toBe(-1);
  });

  it.each([['unbound', false], ['pulled out', true]])('ends what is under way with EIO when the card is %s', (_what, pulled) => {
    const app = guest.newProcess();
    const file = world.run(guest.driver.open(guest.function, app));
    const buffer = world.run(app.mm.mmap(200_000));
    const tasks = [file.transfer(buffer, buffer + 100_000, 90_000), file.read(1), file.write(pattern(6000))].map((steps) => world.scheduler.spawn('app', steps as ReturnType<typeof file.transfer>, { joined: true }));
    world.clock.run({ untilNs: world.clock.now + 5000 });
    const device = guest.function;
    if (pulled) {
      guest.unplug();
      world.run(guest.pci.removeAbsent());
    } else world.run(guest.drivers.unbind('mtty', device));
    for (const task of [tasks[0]!, tasks[2]!]) expect(world.refused(task.join())).toBe('EIO');
    expect([guest.frames.pinnedPages, guest.core.dma.mappedPages, file.gone]).toEqual([0, 0, true]);
    expect(world.refused(guest.driver.open(device, app))).toBe('ENODEV');
    world.run(app.exit());
    if (!pulled) world.run(guest.drivers.bind('mtty', device));
  });

  it('refuses a port that is not there with ENXIO', () => {
    const app = guest.newProcess();
    expect(world.refused(guest.driver.open(guest.function, app, 2))).toBe('ENXIO');
    expect(app.descriptors()).toEqual([]);
    expect(world.run(guest.driver.open(guest.function, app, '1')).port.index).toBe(1);
  });

  it('fails the transfer with EIO when the VMM unmaps the guest\'s memory under it', () => {
    const app = guest.newProcess();
    const file = world.run(guest.driver.open(guest.function, app));
    const buffer = world.run(app.mm.mmap(200_000));
    const task = world.scheduler.spawn('app', file.transfer(buffer, buffer + 100_000, 90_000), { joined: true });
    world.clock.run({ untilNs: world.clock.now + 5000 });
    world.run(guest.user.container.unmapDma(0, 2 ** 24));
    expect(world.refusal(task.join()).message).toContain('UNMAPPED');
    expect([guest.frames.pinnedPages, guest.core.dma.mappedPages, world.frames.pinnedPages]).toEqual([0, 0, 0]);
  });

  it('tells the same story twice', () => {
    const story = (): string => {
      const again = new MttyWorld();
      again.create(1);
      const kernel = new MttyGuest(again, 1, { msi });
      const app = kernel.newProcess();
      const file = again.run(kernel.driver.open(kernel.function, app));
      const buffer = again.run(app.mm.mmap(16_384));
      again.run(file.transfer(buffer, buffer + 8192, 8192));
      again.run(file.write(pattern(100)));
      again.settle();
      return `${again.clock.now} ${again.trace.hash}`;
    };
    expect(story()).toBe(story());
  });
});

describe('a parent with vendor pinning', () => {
  it('keeps two users apart: the same address is each one\'s own memory, and none of another\'s (Y1)', () => {
    const world = new MttyWorld();
    world.create(1);
    world.create(2);
    const users = [1, 2].map((n) => {
      const user = world.user(`vmm${n}`);
      const device = world.open(user, n);
      const vaddr = world.map(user, IOVA, 8192);
      device.writeValue(CONFIG, 4, 2, MASTER);
      world.run(user.process.mm.write(vaddr, pattern(4096, n)));
      startDma(device, IOVA, IOVA + 4096, 4096);
      return { user, vaddr };
    });
    world.settle();
    users.forEach(({ user, vaddr }, i) => expect(firstDifference(world.bytes(user.process, vaddr + 4096, 4096), pattern(4096, i + 1))).toBe(-1));
    expect([world.frames.pinnedPages, world.vfio.pasidOf(world.mdevs.find(uuid(1))!)]).toEqual([0, undefined]);
  });
});
