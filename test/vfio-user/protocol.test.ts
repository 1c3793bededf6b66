/** The vfio-user protocol with its refusals, on a session without a socket: versions, what a device is, its regions, order, the end. Memory, interrupts and features have files of their own. */
import { describe, expect, it } from 'vitest';
import { MemoryWorld } from './memory-world.js';
import {
  CMD, concat, dmaMap, ERROR, EVENTFD_TRIGGER, feature, infoRequest, jsonOf, message, NO_REPLY, pack, QEMU_CAPABILITIES, regionAccess, regionWrite, SET, setIrqs, u16, u32, u64, versionPayload, writeMulti,
} from './wire.js';

const EIO = 5, EINVAL = 22;
const MIB = 2 ** 20;

function connected(options: ConstructorParameters<typeof MemoryWorld>[0] = {}): MemoryWorld {
  return new MemoryWorld(options).negotiate();
}

describe('VERSION', () => {
  it('answers with the minor version that was offered, or its own if that is less', () => {
    for (const [offered, answered] of [[0, 0], [1, 1], [2, 2], [9, 2]] as const) {
      const payload = new MemoryWorld().ok(CMD.VERSION, versionPayload(offered, QEMU_CAPABILITIES));
      expect([u16(payload, 0), u16(payload, 2)]).toEqual([0, answered]);
      expect(payload.at(-1)).toBe(0);
    }
  });

  it('names only capabilities that the client named', () => {
    expect(jsonOf(new MemoryWorld().ok(CMD.VERSION, versionPayload(0, QEMU_CAPABILITIES))).capabilities).toEqual({
      max_msg_fds: 16, max_data_xfer_size: MIB, max_dma_maps: 65535, pgsizes: 4096, write_multiple: true,
    });
    expect(jsonOf(new MemoryWorld().ok(CMD.VERSION, versionPayload(0, { capabilities: { max_msg_fds: 8 } }))).capabilities).toEqual({ max_msg_fds: 16 });
    expect(jsonOf(new MemoryWorld().ok(CMD.VERSION, versionPayload(0))).capabilities).toEqual({});
    expect(jsonOf(new MemoryWorld().ok(CMD.VERSION, versionPayload(0, { capabilities: { twin_socket: { supported: true } } }))).capabilities).toEqual({ twin_socket: { supported: false } });
  });

  it.each([
    ['another major version', versionPayload(0, QEMU_CAPABILITIES, 1)],
    ['two bytes', new Uint8Array(2)],
    ['no NUL', concat(versionPayload(0), new TextEncoder().encode('{}'))],
    ['no JSON', concat(versionPayload(0), new TextEncoder().encode('{"cap\0'))],
    ['no UTF-8', concat(versionPayload(0), new Uint8Array([0x22, 0xff, 0xfe, 0x22, 0]))],
    ['an array', versionPayload(0, [])],
    ['capabilities that are a number', versionPayload(0, { capabilities: 3 })],
    ['a capability of a wrong type', versionPayload(0, { capabilities: { max_msg_fds: 'many' } })],
    ['a negative number', versionPayload(0, { capabilities: { max_data_xfer_size: -1 } })],
    ['no data at all to transfer', versionPayload(0, { capabilities: { max_data_xfer_size: 0 } })],
    ['a twin socket that is a number', versionPayload(0, { capabilities: { twin_socket: 1 } })],
    ['write_multiple that is a string', versionPayload(0, { capabilities: { write_multiple: 'yes' } })],
  ])('refuses %s with EINVAL and closes the connection', (_what, payload) => {
    const world = new MemoryWorld();
    expect(world.errno(CMD.VERSION, payload)).toBe(EINVAL);
    expect([world.closed, world.session.ended, world.memory.connected]).toEqual([true, true, false]);
  });

  it('takes no other command first, and no second VERSION', () => {
    const early = new MemoryWorld();
    expect(early.errno(CMD.GET_INFO, infoRequest(16))).toBe(EINVAL);
    expect(early.closed).toBe(true);
    const twice = connected();
    expect(twice.errno(CMD.VERSION, versionPayload(0))).toBe(EINVAL);
    expect(twice.ok(CMD.GET_INFO, infoRequest(16)).length).toBe(16);
  });
});

describe('device, regions, interrupts', () => {
  it('DEVICE_GET_INFO answers with as much as the client sent: rust-vmm\'s reads its 20 bytes', () => {
    for (const [sent, argsz, answered] of [[20, 36, 20], [24, 24, 24], [64, 64, 24], [19, 16, 16]] as const) {
      const payload = connected().ok(CMD.GET_INFO, infoRequest(sent, 0, argsz));
      expect([payload.length, u32(payload, 0), u32(payload, 8), [...payload.subarray(16)]]).toEqual([answered, answered, 9, Array.from({ length: answered - 16 }, () => 0)]);
    }
  });

  it('DEVICE_GET_INFO', () => {
    const payload = connected().ok(CMD.GET_INFO, infoRequest(16));
    expect([u32(payload, 0), u32(payload, 4), u32(payload, 8), u32(payload, 12), payload.length]).toEqual([16, 3, 9, 5, 16]);
  });

  it('DEVICE_GET_REGION_INFO for every index, empty where the device has none', () => {
    const world = connected();
    const sizes = Array.from({ length: 9 }, (_, index) => {
      const payload = world.ok(CMD.GET_REGION_INFO, infoRequest(32, index));
      expect([u32(payload, 0), u32(payload, 8), u32(payload, 12), payload.length]).toEqual([32, index, 0, 32]);
      return u64(payload, 16);
    });
    expect(sizes).toEqual([8, 0x3000, 0, 0, 0, 0, 0, 256, 0]);
  });

  it('gives capabilities and their descriptor only when argsz has room', () => {
    const descriptors: (readonly number[] | undefined)[] = [];
    const world = new MemoryWorld({
      device: ({ device }) => ({ ops: device, regionFile: (index) => (index === 1 ? { descriptor: 77, fileOffset: 4096, sparse: [{ offset: 0x1000, sizeBytes: 0x1000 }] } : undefined) }),
    });
    const send = world.send.bind(world);
    world.send = (bytes: Uint8Array, fds?: readonly number[]) => {
      descriptors.push(fds);
      send(bytes);
    };
    world.negotiate();
    const short = world.ok(CMD.GET_REGION_INFO, infoRequest(32, 1));
    // argsz, flags READ WRITE MMAP CAPS, cap_offset, offset
    expect([u32(short, 0), u32(short, 4), u32(short, 12), u64(short, 24), short.length]).toEqual([64, 0xf, 0, 4096, 32]);
    expect(descriptors.at(-1)).toBeUndefined();
    const full = world.ok(CMD.GET_REGION_INFO, infoRequest(32, 1, 64));
    expect([u32(full, 0), u32(full, 12), full.length]).toEqual([64, 32, 64]);
    // id 1, version 1, next 0, one area
    expect([u16(full, 32), u16(full, 34), u32(full, 36), u32(full, 40), u64(full, 48), u64(full, 56)]).toEqual([1, 1, 0, 1, 0x1000, 0x1000]);
    expect(descriptors.at(-1)).toEqual([77]);
  });

  it('DEVICE_GET_IRQ_INFO for every index, also those that the device lacks', () => {
    const world = connected();
    const counts = Array.from({ length: 5 }, (_, index) => u32(world.ok(CMD.GET_IRQ_INFO, infoRequest(16, index)), 12));
    expect(counts).toEqual([1, 0, 4, 0, 1]);
  });

  it('DEVICE_GET_REGION_IO_FDS has no descriptors to offer', () => {
    const payload = connected().ok(CMD.GET_REGION_IO_FDS, pack([4, 64], [4, 0], [4, 1], [4, 0]));
    expect([u32(payload, 0), u32(payload, 4), u32(payload, 8), u32(payload, 12), payload.length]).toEqual([16, 0, 1, 0, 16]);
  });

  it.each([
    ['GET_INFO: short payload', CMD.GET_INFO, new Uint8Array(8)],
    ['GET_INFO: argsz 15', CMD.GET_INFO, infoRequest(16, 0, 15)],
    ['GET_REGION_INFO: short payload', CMD.GET_REGION_INFO, infoRequest(16)],
    ['GET_REGION_INFO: argsz 31', CMD.GET_REGION_INFO, infoRequest(32, 0, 31)],
    ['GET_REGION_INFO: region 9', CMD.GET_REGION_INFO, infoRequest(32, 9)],
    ['GET_REGION_INFO: region 0xffffffff', CMD.GET_REGION_INFO, infoRequest(32, 0xffff_ffff)],
    ['GET_IRQ_INFO: short payload', CMD.GET_IRQ_INFO, new Uint8Array(4)],
    ['GET_IRQ_INFO: argsz 0', CMD.GET_IRQ_INFO, infoRequest(16, 0, 0)],
    ['GET_IRQ_INFO: index 5', CMD.GET_IRQ_INFO, infoRequest(16, 5)],
    ['GET_REGION_IO_FDS: short payload', CMD.GET_REGION_IO_FDS, new Uint8Array(8)],
    ['GET_REGION_IO_FDS: flags', CMD.GET_REGION_IO_FDS, pack([4, 16], [4, 1], [4, 0], [4, 0])],
    ['GET_REGION_IO_FDS: region 9', CMD.GET_REGION_IO_FDS, pack([4, 16], [4, 0], [4, 9], [4, 0])],
    ['a command that is no more', CMD.DIRTY_PAGES, new Uint8Array(8)],
    ['command 0', 0, new Uint8Array(0)],
    ['command 0xffff', 0xffff, new Uint8Array(0)],
    ['a DMA_READ from the client', CMD.DMA_READ, pack([8, 0], [8, 8])],
  ])('EINVAL %s', (_what, command, payload) => {
    const world = connected();
    expect(world.errno(command, payload)).toBe(EINVAL);
    expect(world.closed).toBe(false);
  });
});

describe('region accesses', () => {
  it('REGION_READ and REGION_WRITE echo the access, and carry any length', () => {
    const world = connected();
    const data = Uint8Array.from({ length: 0x3000 }, (_, i) => i * 7);
    expect(world.ok(CMD.REGION_WRITE, regionWrite(1, 0, data))).toEqual(regionAccess(1, 0, 0x3000));
    expect(world.ok(CMD.REGION_READ, regionAccess(1, 5, 11))).toEqual(regionAccess(1, 5, 11, data.subarray(5, 16)));
    expect(world.ok(CMD.REGION_READ, regionAccess(1, 0x3000, 0))).toEqual(regionAccess(1, 0x3000, 0));
    // identity in one access, as the sample client reads it
    const config = world.ok(CMD.REGION_READ, regionAccess(7, 0, 64)).subarray(16);
    expect([u16(config, 0), u16(config, 2), u16(config, 0x2c), u16(config, 0x2e)]).toEqual([0xdead, 0xbeef, 0xcafe, 0xbabe]);
  });

  it('posted writes have no reply, and a later read comes behind them', () => {
    const world = connected();
    const write = (value: number): Uint8Array => message(value, CMD.REGION_WRITE, regionWrite(1, 0, pack([4, value])), NO_REPLY);
    world.push(concat(write(1), write(2), message(9, CMD.REGION_READ, regionAccess(1, 0, 4))));
    expect(world.sent).toHaveLength(1);
    expect(u32(world.sent[0]!.payload, 16)).toBe(2);
  });

  it('a posted write that is refused stays silent', () => {
    const world = connected();
    expect(world.ask(CMD.REGION_WRITE, regionWrite(3, 0, pack([4, 1])), [], NO_REPLY)).toBeUndefined();
    expect(world.session.refusals).toBe(1);
  });

  it('REGION_WRITE_MULTI writes in order', () => {
    const world = connected();
    const writes = Array.from({ length: 200 }, (_, i) => ({ region: 1, offset: (i % 100) * 8, data: pack([8, i]) }));
    expect(world.ok(CMD.WRITE_MULTI, writeMulti(writes))).toEqual(pack([8, 200]));
    expect(world.device.bar1[8]).toBe(101);
    expect(world.ok(CMD.WRITE_MULTI, writeMulti([]))).toEqual(pack([8, 0]));
    expect(world.ok(CMD.WRITE_MULTI, writeMulti([{ region: 1, offset: 3, data: new Uint8Array([0xaa]) }]))).toEqual(pack([8, 1]));
    expect([...world.device.bar1.subarray(2, 5)]).toEqual([0, 0xaa, 0]);
  });

  it.each([
    ['read: region 0xdeadbeef', CMD.REGION_READ, regionAccess(0xdead_beef, 0, 4)],
    ['read: a region that the device lacks', CMD.REGION_READ, regionAccess(3, 0, 4)],
    ['read: beyond the end', CMD.REGION_READ, regionAccess(1, 0x2ffd, 4)],
    ['read: offset 2^64 - 4', CMD.REGION_READ, regionAccess(1, 2n ** 64n - 4n, 8)],
    ['read: offset 2^40', CMD.REGION_READ, regionAccess(0, 2 ** 40, 4)],
    ['read: count 0xffffffff', CMD.REGION_READ, regionAccess(1, 0, 0xffff_ffff)],
    ['read: short payload', CMD.REGION_READ, new Uint8Array(15)],
    ['read: region without rights', CMD.REGION_READ, regionAccess(2, 0, 1)],
    ['write: less data than said', CMD.REGION_WRITE, regionAccess(1, 0, 8, new Uint8Array(4))],
    ['write: more data than said', CMD.REGION_WRITE, regionAccess(1, 0, 4, new Uint8Array(8))],
    ['write: count 0xfffffff0 without data', CMD.REGION_WRITE, regionAccess(1, 0, 0xffff_fff0)],
    ['write: beyond the end', CMD.REGION_WRITE, regionWrite(1, 0x3000, new Uint8Array(1))],
    ['write: region 9', CMD.REGION_WRITE, regionWrite(9, 0, new Uint8Array(1))],
    ['write-multi: nothing', CMD.WRITE_MULTI, new Uint8Array(4)],
    ['write-multi: fewer than said', CMD.WRITE_MULTI, writeMulti([{ region: 1, offset: 0, data: new Uint8Array(4) }], 2)],
    ['write-multi: 2^61 of them', CMD.WRITE_MULTI, pack([8, 2n ** 61n])],
    ['write-multi: 9 bytes', CMD.WRITE_MULTI, writeMulti([{ region: 1, offset: 0, data: new Uint8Array(8), count: 9 }])],
    ['write-multi: region 9', CMD.WRITE_MULTI, writeMulti([{ region: 9, offset: 0, data: new Uint8Array(4) }])],
  ])('EINVAL %s', (_what, command, payload) => {
    const world = connected();
    expect(world.errno(command, payload)).toBe(EINVAL);
    expect(world.device.bar1.every((byte) => byte === 0)).toBe(true);
  });

  it('passes on what the device refuses, and survives its bugs with EIO', () => {
    const world = connected();
    expect(world.errno(CMD.REGION_WRITE, regionWrite(7, 4, pack([2, 6])))).toBe(EIO);
    expect(world.bugs).toEqual([]);
    world.device.broken = true;
    expect(world.errno(CMD.REGION_READ, regionAccess(0, 0, 8))).toBe(EIO);
    expect(world.bugs).toHaveLength(1);
    world.device.broken = false;
    expect(world.ok(CMD.REGION_READ, regionAccess(0, 0, 8)).length).toBe(24);
  });

  it('refuses more than a message may hold, and keeps that promise itself', () => {
    const world = connected({ limits: { maxTransferBytes: 4096 } });
    expect(world.errno(CMD.REGION_READ, regionAccess(1, 0, 4097))).toBe(EINVAL);
    expect(world.ok(CMD.REGION_READ, regionAccess(1, 0, 4096)).length).toBe(4112);
    expect(world.errno(CMD.REGION_WRITE, regionWrite(1, 0, new Uint8Array(4097)))).toBe(EINVAL);
  });
});

describe('order, reset', () => {
  it('commands behind one that sleeps wait for it, replies of the client do not', () => {
    const world = connected();
    world.device.resetNs = 1000;
    let read: unknown = 'not yet';
    world.memory.readByMessages(0, new Uint8Array(4), (error) => (read = error));
    const { id } = world.sent.shift()!;
    world.push(concat(message(50, CMD.RESET), message(51, CMD.REGION_READ, regionAccess(0, 0, 8)), message(id, CMD.DMA_READ, concat(pack([8, 0], [8, 4]), new Uint8Array(4)), 1)));
    expect([read, world.sent]).toEqual([undefined, []]);
    world.clock.run();
    expect(world.sent.map((answer) => answer.id)).toEqual([50, 51]);
    expect(world.device.resets).toBe(1);
  });

  it('a region access is answered before a message to the client that it caused', () => {
    const world = connected();
    world.ok(CMD.DMA_MAP, dmaMap(0, 0x1000));
    world.push(message(7, CMD.REGION_WRITE, regionWrite(0, 0, pack([8, 1]))));
    world.clock.run();
    expect(world.sent.map((answer) => answer.command)).toEqual([CMD.REGION_WRITE, CMD.DMA_WRITE]);
  });

  it('reads no more when too much waits, and says when it goes on', () => {
    const world = connected({ limits: { maxWaiting: 3 } });
    world.device.resetNs = 1000;
    for (let i = 0; i < 4; i++) world.push(message(i, CMD.RESET));
    expect([world.session.accepting, world.resumed]).toEqual([false, 0]);
    world.clock.run();
    expect([world.session.accepting, world.resumed > 0, world.device.resets]).toEqual([true, true, 4]);
  });

  it('a client that leaves during a reset is tidied up behind it', () => {
    const world = connected();
    world.device.resetNs = 1000;
    const fd = world.fd('eventfd');
    world.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_TRIGGER), [fd]);
    world.push(concat(message(1, CMD.RESET), message(2, CMD.DMA_MAP, dmaMap(0, 0x1000))), []);
    world.session.disconnected();
    expect(world.session.ended).toBe(false);
    world.clock.run();
    expect([world.session.ended, world.table.open, world.device.triggers.size, world.sent.length]).toEqual([true, 0, 0, 0]);
  });

  it('a message that is neither command nor reply is EINVAL', () => {
    const world = connected();
    world.push(message(3, CMD.GET_INFO, infoRequest(16), 2));
    expect(world.sent.map(({ flags, errno }) => [flags & ERROR, errno])).toEqual([[ERROR, EINVAL]]);
    expect(world.ok(CMD.GET_INFO, infoRequest(16)).length).toBe(16);
  });
});

describe('the end of a client', () => {
  it.each(['disconnected', 'close'] as const)('%s gives back memory and eventfds, and the device keeps its state', (how) => {
    const world = connected();
    world.ok(CMD.DMA_MAP, dmaMap(0, 0x1000), [world.fd()]);
    world.ok(CMD.SET_IRQS, setIrqs(2, 0, 2, EVENTFD_TRIGGER), [world.fd('eventfd'), world.fd('eventfd')]);
    world.ok(CMD.FEATURE, feature(SET | 6, pack([8, 4096], [4, 0], [4, 0])));
    world.ok(CMD.REGION_WRITE, regionWrite(1, 0, new Uint8Array([5])));
    world.push(message(1, CMD.DMA_MAP, dmaMap(0x1000, 0x1000)).subarray(0, 20), [world.fd()]);
    expect(world.table.open).toBe(4);
    world.session[how]();
    world.clock.run();
    expect([world.session.ended, world.table.open, world.memory.regions.length, world.memory.log.active, world.device.triggers.size, world.device.bar1[0]]).toEqual([true, 0, 0, false, 0, 5]);
    world.push(message(2, CMD.GET_INFO, infoRequest(16)), [world.fd()]);
    expect([world.sent, world.table.open]).toEqual([[], 0]);
  });

  it('defects are seen: a leaked descriptor, a window that outlives its client', () => {
    const leak = new MemoryWorld({ defects: ['vfio-user.leak-descriptors'] }).negotiate();
    leak.errno(CMD.GET_INFO, infoRequest(16), [leak.fd()]);
    expect(leak.table.open).toBe(1);
    const keep = new MemoryWorld({ defects: ['vfio-user.keep-windows'] }).negotiate();
    keep.ok(CMD.DMA_MAP, dmaMap(0, 0x1000), [keep.fd()]);
    keep.session.disconnected();
    keep.clock.run();
    expect(keep.memory.memory.has(0, 1)).toBe(true);
  });
});
