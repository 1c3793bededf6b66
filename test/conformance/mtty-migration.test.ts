/**
 * Migration of a card, version 2 (include/uapi/linux/vfio.h; samples/vfio-mdev/mtty.c, v6.12, for magic, states and
 * sizes), with logging of what its DMA writes: from one mediated device to another, in the middle of traffic.
 */
import { beforeEach, describe, expect, it } from 'vitest';
import { isErrno } from '../../sim/errno.js';
import type { DeviceHandle } from '../../vfio/client/index.js';
import type { MigrationDataFile } from '../../vfio/migration/data-file.js';
import { DMA_DONE, DMA_STATUS, firstDifference, MttyGuest, MttyWorld, startDma, type MttyUser } from './mtty-world.js';

const ERROR = 0, STOP = 1, RUNNING = 2, STOP_COPY = 3, RESUMING = 4, RUNNING_P2P = 5, PRE_COPY = 6, PRE_COPY_P2P = 7;
const HEADER = 24, CONFIG_BYTES = 256, PORT_BYTES = 72;
const IOVA = 0x10_0000;

function pattern(length: number, seed = 1): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 13 + (i >> 8) * 5 + seed) & 0xff);
}

class MigrationWorld extends MttyWorld {
  /** Everything that can be read now, as the VMM would send it. */
  drain(user: MttyUser, fd: number): Uint8Array {
    const file = user.process.file(fd) as MigrationDataFile;
    const bytes: number[] = [];
    const chunk = new Uint8Array(100);
    try {
      for (let count = -1; count !== 0; ) {
        count = this.run(file.read(chunk));
        bytes.push(...chunk.subarray(0, count));
      }
    } catch (error) {
      if (!isErrno(error, 'ENOMSG')) throw error;
    }
    return Uint8Array.from(bytes);
  }

  go(device: DeviceHandle, state: number): number | undefined {
    return this.run(device.migration.setState(state));
  }

  /** Hands a stream to a device, which is in RESUMING afterwards. */
  feed(user: MttyUser, device: DeviceHandle, stream: Uint8Array): void {
    const file = user.process.file(this.go(device, RESUMING)!) as MigrationDataFile;
    for (let at = 0; at < stream.length; at += 77) this.run(file.write(stream.subarray(at, at + 77)));
  }
}

describe('the stream of a card', () => {
  let world: MigrationWorld;
  let user: MttyUser;
  let device: DeviceHandle;

  beforeEach(() => {
    world = new MigrationWorld();
    world.create(1, 'mtty-2');
    world.create(2, 'mtty-2');
    user = world.user();
    device = world.open(user, 1);
  });

  it('offers STOP_COPY, P2P and PRE_COPY, and says its size', () => {
    expect([world.run(device.migration.flags()), world.run(device.migration.state()), world.run(device.migration.dataSize())]).toEqual([7, RUNNING, HEADER + CONFIG_BYTES + 2 * PORT_BYTES]);
  });

  it('begins with magic, version and number of ports', () => {
    const stream = world.drain(user, world.go(device, STOP_COPY)!);
    const view = new DataView(stream.buffer);
    expect([stream.length, view.getBigUint64(0, true), view.getUint32(8, true), view.getUint32(12, true), view.getUint32(16, true), view.getUint32(20, true)])
      .toEqual([HEADER + CONFIG_BYTES + 2 * PORT_BYTES, 0x7e9d09898c3e2c4en, 2, 0, 2, 0]);
  });

  it('sends the header in PRE_COPY and the rest once it stands; a pre-copy that was given up leaves no trace', () => {
    const first = world.go(device, PRE_COPY)!;
    expect(world.drain(user, first).length).toBe(HEADER);
    world.go(device, RUNNING);
    const fd = world.go(device, PRE_COPY)!;
    const before = world.drain(user, fd);
    expect(world.go(device, STOP_COPY)).toBeUndefined();
    const rest = world.drain(user, fd);
    expect([before.length, rest.length]).toEqual([HEADER, CONFIG_BYTES + 2 * PORT_BYTES]);
    world.go(device, STOP);
    expect(world.drain(user, world.go(device, STOP_COPY)!)).toEqual(Uint8Array.from([...before, ...rest]));
  });

  it('gives another card everything that software can read, FIFO and divisor included', () => {
    for (const [port, register, value] of [[0, 3, 0x83], [0, 0, 0x12], [0, 1, 0x34], [0, 3, 0x1b], [0, 2, 0xc1], [0, 1, 0x0f], [0, 4, 0x1b], [0, 7, 0x77], [1, 7, 0x88]] as const) device.writeValue(port, register, 1, value);
    for (const char of 'in flight') device.writeValue(0, 0, 1, char.charCodeAt(0));
    for (let i = 0; i < 17; i++) device.writeValue(1, 0, 1, i);
    device.writeValue(7, 4, 2, 6);
    device.writeValue(7, 0x10, 4, 0xc000_0000);
    device.writeValue(7, 0x54, 4, 0xfee0_1000);
    const stream = world.drain(user, world.go(device, STOP_COPY)!);
    const other = world.open(user, 2);
    world.feed(user, other, stream);
    world.go(other, RUNNING);
    for (const offset of [4, 0x10, 0x14, 0x54]) expect(other.readValue(7, offset, 4) & 0xfff7_ffff).toBe(device.readValue(7, offset, 4) & 0xfff7_ffff);
    for (const port of [0, 1]) for (const register of [2, 3, 4, 5, 6, 7, 1]) expect([port, register, other.readValue(port, register, 1)]).toEqual([port, register, device.readValue(port, register, 1)]);
    const text = Array.from({ length: 9 }, () => String.fromCharCode(other.readValue(0, 0, 1))).join('');
    other.writeValue(0, 3, 1, 0x9b);
    expect([text, other.readValue(0, 0, 1), other.readValue(0, 1, 1)]).toEqual(['in flight', 0x12, 0x34]);
  });

  it('brings the character timeout along', () => {
    device.writeValue(0, 2, 1, 0xc1);
    device.writeValue(0, 1, 1, 1);
    device.writeValue(0, 0, 1, 65);
    const stream = world.drain(user, world.go(device, STOP_COPY)!);
    world.settle();
    expect(device.readValue(0, 2, 1)).toBe(0xc1);
    const other = world.open(user, 2);
    world.feed(user, other, stream);
    world.go(other, STOP);
    world.settle();
    expect(other.readValue(0, 2, 1)).toBe(0xc1);
    world.go(other, RUNNING);
    world.settle();
    expect(other.readValue(0, 2, 1)).toBe(0xcc);
  });

  it('brings along what has come true and not been told: the timeout, the empty transmitter, the overrun', () => {
    device.writeValue(0, 2, 1, 0xc1);
    device.writeValue(0, 1, 1, 1);
    device.writeValue(0, 0, 1, 65);
    world.settle();
    device.writeValue(1, 1, 1, 6);
    for (let i = 0; i < 2; i++) device.writeValue(1, 0, 1, 65);
    device.readValue(1, 0, 1);
    const stream = world.drain(user, world.go(device, STOP_COPY)!);
    const other = world.open(user, 2);
    world.feed(user, other, stream);
    world.go(other, STOP);
    expect([other.readValue(0, 2, 1), other.readValue(1, 2, 1), other.readValue(1, 5, 1), other.readValue(1, 2, 1)]).toEqual([0xcc, 0x06, 0x62, 0x02]);
  });

  it.each([
    ['another magic', (s: Uint8Array) => s.fill(0, 0, 1)],
    ['another major version', (s: Uint8Array) => s.fill(9, 8, 9)],
    ['another minor version', (s: Uint8Array) => s.fill(9, 12, 13)],
    ['another number of ports', (s: Uint8Array) => s.fill(1, 16, 17)],
    ['flags', (s: Uint8Array) => s.fill(1, 20, 21)],
    ['an end in the header', (s: Uint8Array) => s.subarray(0, 20)],
    ['an end in a port', (s: Uint8Array) => s.subarray(0, s.length - 1)],
    ['a FIFO that holds too much', (s: Uint8Array) => s.fill(17, HEADER + CONFIG_BYTES + 9, HEADER + CONFIG_BYTES + 10)],
    ['bits that mean nothing', (s: Uint8Array) => s.fill(1, HEADER + CONFIG_BYTES + 10, HEADER + CONFIG_BYTES + 11)],
  ])('refuses a stream with %s: EINVAL, ERROR, and only a reset leads out', (_what, spoil) => {
    const stream = spoil(world.drain(user, world.go(device, STOP_COPY)!));
    const other = world.open(user, 2);
    other.writeValue(1, 7, 1, 0x5a);
    world.feed(user, other, stream);
    expect(world.refused(other.migration.setState(RUNNING))).toBe('EINVAL');
    expect([world.run(other.migration.state()), other.readValue(1, 7, 1)]).toEqual([ERROR, 0x5a]);
    world.run(other.reset());
    expect(world.run(other.migration.state())).toBe(RUNNING);
  });

  it('takes no more bytes than a state has: ENOMEM', () => {
    const file = user.process.file(world.go(device, RESUMING)!) as MigrationDataFile;
    expect(world.refused(file.write(new Uint8Array(HEADER + CONFIG_BYTES + 2 * PORT_BYTES + 1)))).toBe('ENOMEM');
  });

  it('goes back to RUNNING with a reset, whatever the state', () => {
    for (const state of [STOP, STOP_COPY, RESUMING, RUNNING_P2P, PRE_COPY, PRE_COPY_P2P]) {
      world.go(device, state);
      world.run(device.reset());
      expect(world.run(device.migration.state())).toBe(RUNNING);
      startDma(device, 0, 0, 0);
      expect(device.readValue(0, DMA_STATUS, 4)).toBe(0x102);
    }
  });
});

describe('a transfer under migration', () => {
  let world: MigrationWorld;
  let user: MttyUser;
  let device: DeviceHandle;
  let vaddr: number;
  const PAGES = 16;

  beforeEach(() => {
    world = new MigrationWorld();
    world.create(1);
    world.create(2);
    user = world.user('source');
    device = world.open(user, 1);
    vaddr = world.map(user, IOVA, 2 * PAGES * 4096);
    world.run(user.process.mm.write(vaddr, pattern(PAGES * 4096)));
    device.writeValue(7, 4, 2, 4);
  });

  it.each([RUNNING_P2P, STOP, PRE_COPY_P2P])('stands in state %i with nothing pinned, and goes on where it was', (state) => {
    startDma(device, IOVA, IOVA + PAGES * 4096, PAGES * 4096);
    world.clock.run({ untilNs: world.clock.now + 5 * 4096 });
    world.go(device, state);
    const done = device.readValue(0, DMA_DONE, 4);
    world.settle();
    expect([done, device.readValue(0, DMA_STATUS, 4), device.readValue(0, DMA_DONE, 4), world.frames.pinnedPages]).toEqual([4 * 4096, 1, done, 0]);
    world.go(device, RUNNING);
    world.settle();
    expect([device.readValue(0, DMA_STATUS, 4), firstDifference(world.bytes(user.process, vaddr + PAGES * 4096, PAGES * 4096), pattern(PAGES * 4096))]).toEqual([2, -1]);
  });

  it('may begin while the card stands, and does when it runs', () => {
    world.go(device, STOP);
    startDma(device, IOVA, IOVA + PAGES * 4096, 100);
    world.settle();
    expect([device.readValue(0, DMA_STATUS, 4), world.frames.pinnedPages]).toEqual([1, 0]);
    world.go(device, RUNNING);
    world.settle();
    expect(device.readValue(0, DMA_STATUS, 4)).toBe(2);
  });

  it('moves to another card and another program; only pages that were logged as written are sent again', () => {
    const SIZE = 2 * PAGES * 4096;
    const target = world.user('target');
    const other = world.open(target, 2);
    const there = world.map(target, IOVA, SIZE);
    const logged = world.run(device.migration.startLogging([{ iova: IOVA, sizeBytes: SIZE }]));
    startDma(device, IOVA, IOVA + PAGES * 4096 + 100, PAGES * 4096 - 100);
    // all memory is copied while the device works
    world.clock.run({ untilNs: world.clock.now + 3 * 4096 });
    const fd = world.go(device, PRE_COPY)!;
    const early = world.drain(user, fd);
    const first = world.bytes(user.process, vaddr, SIZE);
    world.run(target.process.mm.write(there, first));
    const before = world.run(device.migration.report(IOVA, SIZE));
    world.clock.run({ untilNs: world.clock.now + 4 * 4096 });
    // blackout
    world.go(device, STOP_COPY);
    const stream = Uint8Array.from([...early, ...world.drain(user, fd)]);
    const dirty = world.run(device.migration.report(IOVA, SIZE));
    const pages: number[] = [];
    for (let page = 0; page < 2 * PAGES; page++) if ((dirty[page >> 3]! & (1 << (page & 7))) !== 0) pages.push(page);
    for (const page of pages) world.run(target.process.mm.write(there + page * 4096, world.bytes(user.process, vaddr + page * 4096, 4096)));
    expect([logged, before.some((byte) => byte !== 0), pages.length > 2, pages.every((page) => page >= PAGES)]).toEqual([4096, true, true, true]);
    expect(firstDifference(world.bytes(target.process, there, SIZE), world.bytes(user.process, vaddr, SIZE))).toBe(-1);
    world.feed(target, other, stream);
    const done = device.readValue(0, DMA_DONE, 4);
    expect(done > 0 && done < PAGES * 4096 - 100).toBe(true);
    world.run(user.process.exit());
    world.go(other, RUNNING);
    world.settle();
    expect([other.readValue(0, DMA_STATUS, 4), other.readValue(0, DMA_DONE, 4), world.frames.pinnedPages]).toEqual([2, PAGES * 4096 - 100, 0]);
    expect(firstDifference(world.bytes(target.process, there + PAGES * 4096 + 100, PAGES * 4096 - 100), pattern(PAGES * 4096 - 100))).toBe(-1);
  });

  it('mtty.lose-dirty: the log misses what the device wrote', () => {
    for (const defects of [[], ['mtty.lose-dirty']]) {
      const faulty = new MigrationWorld({ defects });
      faulty.create(1);
      const vmm = faulty.user();
      const card = faulty.open(vmm, 1);
      faulty.map(vmm, IOVA, 8192);
      card.writeValue(7, 4, 2, 4);
      faulty.run(card.migration.startLogging([{ iova: IOVA, sizeBytes: 8192 }]));
      startDma(card, IOVA, IOVA + 4096, 16);
      faulty.settle();
      expect(faulty.run(card.migration.report(IOVA, 8192))[0]).toBe(defects.length === 0 ? 2 : 0);
    }
  });
});

describe.each([['MSI', true], ['INTx', false]])('a guest with %s does not notice', (_name, msi) => {
  it.each([0, 700, 20_000, 60_000])('that its card is another one %i ns into a transfer, with bytes in the FIFO', (ns) => {
    const world = new MigrationWorld();
    world.create(1);
    world.create(2);
    const guest = new MttyGuest(world, 1, { msi });
    const app = guest.newProcess();
    const file = world.run(guest.driver.open(guest.function, app));
    const buffer = world.run(app.mm.mmap(200_000));
    world.run(app.mm.write(buffer, pattern(90_000)));
    const transfer = world.scheduler.spawn('transfer', file.transfer(buffer, buffer + 100_001, 90_000), { joined: true });
    const writer = world.scheduler.spawn('writer', file.write(pattern(9000, 3)), { joined: true });
    world.clock.run({ untilNs: world.clock.now + ns });
    const source = guest.device;
    const stream = world.drain(guest.user, world.go(source, STOP_COPY)!);
    const target = world.open(guest.user, 2);
    world.feed(guest.user, target, stream);
    world.go(target, STOP);
    guest.replace(target);
    world.go(target, RUNNING);
    world.run(source.close());
    const got: number[] = [];
    while (got.length < 9000) got.push(...world.run(file.read(1000)));
    world.run(writer.join());
    world.run(transfer.join());
    expect(firstDifference(Uint8Array.from(got), pattern(9000, 3))).toBe(-1);
    expect(firstDifference(world.bytes(app, buffer + 100_001, 90_000), pattern(90_000))).toBe(-1);
    expect([guest.frames.pinnedPages, guest.core.dma.mappedPages, world.card(1).pinnedPages, world.card(2).pinnedPages, file.port.overruns]).toEqual([0, 0, 0, 0, 0]);
  });
});
