/** Every message of the vfio-user protocol with its refusals, on a session without a socket. */
import { describe, expect, it } from 'vitest';
import { MemoryWorld } from './memory-world.js';
import {
  CMD, concat, dmaMap, dmaUnmap, ERROR, EVENTFD_TRIGGER, feature, GET, infoRequest, jsonOf, message, NO_REPLY, NONE_TRIGGER, pack, PROBE, QEMU_CAPABILITIES, regionAccess, regionWrite, SET,
  setIrqs, u16, u32, u64, versionPayload, writeMulti,
} from './wire.js';

const ENOENT = 2, EIO = 5, E2BIG = 7, EEXIST = 17, EINVAL = 22, ENOTTY = 25, ENOSPC = 28;
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

describe('client memory', () => {
  it('DMA_MAP with a descriptor makes a window, DMA_UNMAP repeats the request and lets it go', () => {
    const world = connected();
    const { memory } = world.memory;
    expect(world.ok(CMD.DMA_MAP, dmaMap(0x10_0000, 0x2000, 0x1000), [world.fd()])).toEqual(new Uint8Array(0));
    expect(world.table.open).toBe(1);
    world.ram.store(0x1004, 4, 0x1234);
    expect([memory.load(0x10_0004, 4), memory.load(0x10_2000, 1), memory.load(0xf_ffff, 1)]).toEqual([0x1234, -1, -1]);
    expect(memory.write(0x10_1ffe, new Uint8Array([1, 2]), 0, 2)).toBe(true);
    expect(memory.write(0x10_1fff, new Uint8Array([1, 2]), 0, 2)).toBe(false);
    const generation = memory.generation;
    expect(world.ok(CMD.DMA_UNMAP, dmaUnmap(0x10_0000, 0x2000))).toEqual(dmaUnmap(0x10_0000, 0x2000));
    expect([memory.load(0x10_0004, 4), world.table.open, memory.generation > generation]).toEqual([-1, 0, true]);
  });

  it('a region without a descriptor is absent at once and reached by messages', () => {
    const world = connected();
    world.ok(CMD.DMA_MAP, dmaMap(0x4000, 0x1000));
    expect(world.memory.memory.has(0x4000, 1)).toBe(false);
    const bytes = new Uint8Array(4);
    let done: unknown = 'not yet';
    world.memory.read(0x4010, bytes, (error) => (done = error));
    expect([world.sent[0]!.command, world.sent[0]!.flags, world.sent[0]!.payload]).toEqual([CMD.DMA_READ, 0, pack([8, 0x4010], [8, 4])]);
    world.push(message(world.sent[0]!.id, CMD.DMA_READ, concat(pack([8, 0x4010], [8, 4]), new Uint8Array([9, 8, 7, 6])), 1));
    expect([done, [...bytes]]).toEqual([undefined, [9, 8, 7, 6]]);
  });

  it('splits what is longer than a message of the client, one after the other', () => {
    const world = connected();
    const narrow = new MemoryWorld().negotiate({ capabilities: { max_data_xfer_size: 1024 } });
    let done = 0;
    narrow.memory.write(0x9000, new Uint8Array(2500).fill(5), () => done++);
    const counts: number[] = [];
    while (narrow.sent.length > 0) {
      const { id, command, payload } = narrow.sent.shift()!;
      expect(narrow.sent).toHaveLength(0);
      counts.push(payload.length - 16);
      narrow.push(message(id, command, payload.subarray(0, 16), 1));
    }
    expect([counts, done]).toEqual([[1024, 1024, 452], 1]);
    world.memory.write(0x9000, new Uint8Array(2500), () => done++);
    expect(world.sent[0]!.payload.length).toBe(2516);
  });

  it('an interrupt message goes to an address that is no region', () => {
    const world = connected();
    world.memory.write(0xfee0_0000, pack([4, 0x21]), () => {});
    expect(world.sent[0]).toMatchObject({ command: CMD.DMA_WRITE, payload: pack([8, 0xfee0_0000], [8, 4], [4, 0x21]) });
  });

  it('takes replies to a write with a short count, a long one, or nothing but a header, as QEMU sends', () => {
    for (const reply of [pack([8, 0x4000], [4, 4]), pack([8, 0x4000], [8, 4]), undefined]) {
      const world = connected();
      let done: unknown = 'not yet';
      world.memory.write(0x4000, new Uint8Array(4), (error) => (done = error));
      world.push(message(world.sent[0]!.id, CMD.DMA_WRITE, reply, 1));
      expect(done).toBeUndefined();
    }
  });

  it.each([
    ['an error', 'EFAULT', (id: number) => message(id, CMD.DMA_READ, undefined, 1 | ERROR, 14)],
    ['an error without a number', 'EIO', (id: number) => message(id, CMD.DMA_READ, undefined, 1 | ERROR, 0)],
    ['another address', 'EPROTO', (id: number) => message(id, CMD.DMA_READ, concat(pack([8, 0x5000], [8, 4]), new Uint8Array(4)), 1)],
    ['another count', 'EPROTO', (id: number) => message(id, CMD.DMA_READ, concat(pack([8, 0x4000], [8, 5]), new Uint8Array(4)), 1)],
    ['too few bytes', 'EPROTO', (id: number) => message(id, CMD.DMA_READ, concat(pack([8, 0x4000], [8, 4]), new Uint8Array(3)), 1)],
    ['no payload', 'EPROTO', (id: number) => message(id, CMD.DMA_READ, undefined, 1)],
    ['a count of 2^63', 'EINVAL', (id: number) => message(id, CMD.DMA_READ, concat(pack([8, 0x4000], [8, 2n ** 63n]), new Uint8Array(4)), 1)],
  ])('a reply with %s ends the request with %s', (_what, code, reply) => {
    const world = connected();
    const bytes = new Uint8Array(4);
    let done: { code?: string } | undefined;
    world.memory.read(0x4000, bytes, (error) => (done = error));
    world.push(reply(world.sent[0]!.id));
    expect([done?.code, [...bytes], world.closed]).toEqual([code, [0, 0, 0, 0], false]);
  });

  it('replies to nothing, or to another command, are passed over', () => {
    const world = connected();
    let done = 0;
    world.memory.read(0x4000, new Uint8Array(4), () => done++);
    const { id } = world.sent.shift()!;
    world.push(message(id, CMD.DMA_WRITE, pack([8, 0x4000], [8, 4]), 1));
    world.push(message(id + 1, CMD.DMA_READ, new Uint8Array(20), 1));
    world.push(message(id, CMD.REGION_READ, new Uint8Array(20), 1), [world.fd()]);
    expect([done, world.table.open, world.closed]).toEqual([0, 0, false]);
  });

  it('what waits for a client that leaves fails with ECONNRESET', () => {
    const world = connected();
    const codes: (string | undefined)[] = [];
    for (let i = 0; i < 300; i++) world.memory.readByMessages(i * 8, new Uint8Array(8), (error) => codes.push(error?.code));
    expect(world.sent.length).toBe(256);
    world.session.disconnected();
    expect([codes.length, new Set(codes)]).toEqual([300, new Set(['ECONNRESET'])]);
    world.memory.write(0, new Uint8Array(1), (error) => codes.push(error?.code));
    expect(codes.at(-1)).toBe('ECONNRESET');
  });

  it('honours the rights of a region', () => {
    const world = connected();
    const { memory } = world.memory;
    world.ok(CMD.DMA_MAP, dmaMap(0xf_0000, 0x1000, 0, 1), [world.fd()]);
    world.ok(CMD.DMA_MAP, dmaMap(0xf_1000, 0x1000, 0, 2), [world.fd()]);
    world.ok(CMD.DMA_MAP, dmaMap(0xf_2000, 0x1000, 0, 0), [world.fd()]);
    expect([memory.load(0xf_0000, 4), memory.store(0xf_0000, 4, 1), memory.load(0xf_1000, 4), memory.store(0xf_1000, 4, 1), memory.load(0xf_2000, 4)]).toEqual([0, false, -1, true, -1]);
    const codes: (string | undefined)[] = [];
    world.memory.write(0xf_0000, new Uint8Array(4), (error) => codes.push(error?.code));
    world.memory.read(0xf_1000, new Uint8Array(4), (error) => codes.push(error?.code));
    expect([codes, world.sent]).toEqual([['EFAULT', 'EFAULT'], []]);
  });

  it('DMA_UNMAP of all regions', () => {
    const world = connected();
    for (let i = 0; i < 8; i++) world.ok(CMD.DMA_MAP, dmaMap(i * 0x2000, 0x1000), i % 2 === 0 ? [world.fd()] : []);
    expect(world.ok(CMD.DMA_UNMAP, dmaUnmap(0, 0, 2))).toEqual(dmaUnmap(0, 0, 2));
    expect([world.memory.regions.length, world.table.open]).toEqual([0, 0]);
    expect(world.ok(CMD.DMA_UNMAP, dmaUnmap(0, 0, 2)).length).toBe(24);
  });

  it('DMA_UNMAP of a range takes the regions in it, as QEMU\'s own IOMMUs ask for', () => {
    const world = connected();
    const gone: number[] = [];
    world.memory.listen({ unmapped: (address, sizeBytes) => gone.push(address, sizeBytes) });
    for (let i = 1; i < 6; i++) world.ok(CMD.DMA_MAP, dmaMap(i * 0x2000, 0x1000), [world.fd()]);
    expect([world.errno(CMD.DMA_UNMAP, dmaUnmap(0x3000, 0x1000)), world.memory.regions.length]).toEqual([ENOENT, 5]);
    expect(world.ok(CMD.DMA_UNMAP, dmaUnmap(0x3000, 0x4000))).toEqual(dmaUnmap(0x3000, 0x4000));
    expect([gone, world.table.open, world.memory.regions.map(({ address }) => address)]).toEqual([[0x4000, 0x1000, 0x6000, 0x1000], 3, [0x2000, 0x8000, 0xa000]]);
    world.ok(CMD.DMA_UNMAP, dmaUnmap(0, 2 ** 48));
    expect([world.memory.regions.length, world.table.open, world.errno(CMD.DMA_UNMAP, dmaUnmap(0, 2 ** 48))]).toEqual([0, 0, ENOENT]);
  });

  it.each([
    ['MAP: short payload', CMD.DMA_MAP, new Uint8Array(31), EINVAL],
    ['MAP: argsz', CMD.DMA_MAP, dmaMap(0, 0x1000, 0, 3, 31), EINVAL],
    ['MAP: unknown flags', CMD.DMA_MAP, dmaMap(0, 0x1000, 0, 7), EINVAL],
    ['MAP: no bytes', CMD.DMA_MAP, dmaMap(0x1_0000, 0), EINVAL],
    ['MAP: half a page', CMD.DMA_MAP, dmaMap(0x1_0000, 0x800), EINVAL],
    ['MAP: half a page on', CMD.DMA_MAP, dmaMap(0x1_0800, 0x1000), EINVAL],
    ['MAP: beyond 2^52', CMD.DMA_MAP, dmaMap(2 ** 52, 0x1000), EINVAL],
    ['MAP: 2^64 - 4096 bytes', CMD.DMA_MAP, pack([4, 32], [4, 3], [8, 0], [8, 0x1_0000], [8, 2n ** 64n - 4096n]), EINVAL],
    ['MAP: over a region', CMD.DMA_MAP, dmaMap(0x8000, 0x1000), EEXIST],
    ['MAP: around a region', CMD.DMA_MAP, dmaMap(0, 0x10_0000), EEXIST],
    ['MAP: into the end of a region', CMD.DMA_MAP, dmaMap(0x9000, 0x4000), EEXIST],
    ['UNMAP: short payload', CMD.DMA_UNMAP, new Uint8Array(20), EINVAL],
    ['UNMAP: argsz', CMD.DMA_UNMAP, dmaUnmap(0x8000, 0x2000, 0, 8), EINVAL],
    ['UNMAP: the flag of old for dirty pages', CMD.DMA_UNMAP, dmaUnmap(0x8000, 0x2000, 1), EINVAL],
    ['UNMAP: all, and a range', CMD.DMA_UNMAP, dmaUnmap(0x8000, 0x2000, 2), EINVAL],
    ['UNMAP: part of a region', CMD.DMA_UNMAP, dmaUnmap(0x8000, 0x1000), ENOENT],
    ['UNMAP: the end of a region', CMD.DMA_UNMAP, dmaUnmap(0x9000, 0x1000), ENOENT],
    ['UNMAP: into a region', CMD.DMA_UNMAP, dmaUnmap(0x7000, 0x2000), ENOENT],
    ['UNMAP: out of a region', CMD.DMA_UNMAP, dmaUnmap(0x9000, 0x2000), ENOENT],
    ['UNMAP: no bytes', CMD.DMA_UNMAP, dmaUnmap(0x8000, 0), ENOENT],
    ['UNMAP: no region', CMD.DMA_UNMAP, dmaUnmap(0x1_0000, 0x1000), ENOENT],
  ])('%s', (_what, command, payload, errno) => {
    const world = connected();
    world.ok(CMD.DMA_MAP, dmaMap(0x8000, 0x2000), [world.fd()]);
    expect(world.errno(command, payload, command === CMD.DMA_MAP ? [world.fd()] : [])).toBe(errno);
    expect([world.memory.regions.length, world.table.open, world.memory.memory.has(0x8000, 0x2000)]).toEqual([1, 1, true]);
  });

  it('refuses descriptors that are no memory, too short, or two of them; ENOSPC above the agreed number of regions', () => {
    const world = connected({ limits: { maxDmaMaps: 2 } });
    expect(world.errno(CMD.DMA_MAP, dmaMap(0, 0x1000), [world.fd('pipe')])).toBe(EINVAL);
    expect(world.errno(CMD.DMA_MAP, dmaMap(0, 0x1000, 2 ** 24), [world.fd()])).toBe(EINVAL);
    expect(world.errno(CMD.DMA_MAP, dmaMap(0, 0x1000, 12), [world.fd()])).toBe(EINVAL);
    expect(world.errno(CMD.DMA_MAP, dmaMap(0, 0x1000), [world.fd(), world.fd()])).toBe(EINVAL);
    world.ok(CMD.DMA_MAP, dmaMap(0, 0x1000));
    world.ok(CMD.DMA_MAP, dmaMap(0x1000, 0x1000));
    expect(world.errno(CMD.DMA_MAP, dmaMap(0x2000, 0x1000), [world.fd()])).toBe(ENOSPC);
    expect(world.table.open).toBe(0);
  });
});

describe('SET_IRQS', () => {
  it('signals the client through its eventfd, and takes one away where none comes', () => {
    const world = connected();
    const fds = [world.fd('eventfd'), world.fd('eventfd')];
    expect(world.ok(CMD.SET_IRQS, setIrqs(2, 1, 2, EVENTFD_TRIGGER), fds)).toEqual(new Uint8Array(0));
    world.device.triggers.get('2.2.trigger')!.signal(3);
    expect([fds[0]!.signals, fds[1]!.signals, world.session.wiredInterrupts]).toEqual([0, 3, 2]);
    world.ok(CMD.SET_IRQS, setIrqs(2, 2, 1, EVENTFD_TRIGGER));
    expect([world.device.triggers.has('2.2.trigger'), world.table.open]).toEqual([false, 1]);
  });

  it('replaces an eventfd, and tears a whole index down', () => {
    const world = connected();
    const first = world.fd('eventfd'), second = world.fd('eventfd');
    world.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_TRIGGER), [first]);
    world.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_TRIGGER), [second]);
    expect(world.table.open).toBe(1);
    world.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, NONE_TRIGGER));
    world.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, 0x22, new Uint8Array([1])));
    world.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, 0x22, new Uint8Array([0])));
    expect([first.signals, second.signals]).toEqual([0, 2]);
    world.ok(CMD.SET_IRQS, setIrqs(0, 0, 0, NONE_TRIGGER));
    expect([world.table.open, world.device.triggers.size, world.session.wiredInterrupts]).toEqual([0, 0, 0]);
  });

  it('an eventfd for unmasking passes the client\'s signals to the device', () => {
    const world = connected();
    const fd = world.fd('eventfd');
    world.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, 0x14), [fd]);
    let heard = 0;
    world.device.triggers.get('0.0.unmask')!.listen(() => heard++);
    fd.listener!();
    expect(heard).toBe(1);
  });

  it.each([
    ['short payload', new Uint8Array(19), EINVAL],
    ['argsz below the record', setIrqs(0, 0, 1, NONE_TRIGGER, undefined, 19), EINVAL],
    ['argsz beyond the message', setIrqs(0, 0, 1, NONE_TRIGGER, undefined, 24), EINVAL],
    ['unknown flags', setIrqs(0, 0, 1, 0x61), EINVAL],
    ['no kind of data', setIrqs(0, 0, 1, 0x20), EINVAL],
    ['two kinds of data', setIrqs(0, 0, 1, 0x23), EINVAL],
    ['no action', setIrqs(0, 0, 1, 0x01), ENOTTY],
    ['two actions', setIrqs(0, 0, 1, 0x31), ENOTTY],
    ['index 5', setIrqs(5, 0, 1, NONE_TRIGGER), EINVAL],
    ['an index without interrupts', setIrqs(1, 0, 1, NONE_TRIGGER), EINVAL],
    ['start behind the last', setIrqs(2, 4, 1, NONE_TRIGGER), EINVAL],
    ['more than there are', setIrqs(2, 2, 3, NONE_TRIGGER), EINVAL],
    ['count 0xffffffff', setIrqs(2, 1, 0xffff_ffff, NONE_TRIGGER), EINVAL],
    ['less data than interrupts', setIrqs(2, 0, 4, 0x22, new Uint8Array(3)), EINVAL],
    ['a mask that the device does not have', setIrqs(2, 0, 1, 0x09), ENOTTY],
  ])('%s', (_what, payload, errno) => {
    const world = connected();
    expect(world.errno(CMD.SET_IRQS, payload)).toBe(errno);
    expect(world.device.triggers.size).toBe(0);
  });

  it('refuses descriptors that are no eventfds, too few, too many, or not asked for, and closes them', () => {
    const world = connected();
    expect(world.errno(CMD.SET_IRQS, setIrqs(2, 0, 2, EVENTFD_TRIGGER), [world.fd('eventfd'), world.fd('pipe')])).toBe(EINVAL);
    expect(world.errno(CMD.SET_IRQS, setIrqs(2, 0, 2, EVENTFD_TRIGGER), [world.fd('eventfd')])).toBe(EINVAL);
    expect(world.errno(CMD.SET_IRQS, setIrqs(2, 0, 1, EVENTFD_TRIGGER), [world.fd('eventfd'), world.fd('eventfd')])).toBe(EINVAL);
    expect(world.errno(CMD.SET_IRQS, setIrqs(2, 0, 1, NONE_TRIGGER), [world.fd('eventfd')])).toBe(EINVAL);
    expect(world.errno(CMD.SET_IRQS, setIrqs(2, 0, 1, 0x0c), [world.fd('eventfd')])).toBe(ENOTTY);
    expect([world.table.open, world.device.triggers.size]).toEqual([0, 0]);
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

describe('device features', () => {
  const state = (number: number, fd = -1): Uint8Array => pack([4, number], [4, fd]);

  it('MIGRATION, MIG_DEVICE_STATE and probes', () => {
    const world = connected();
    expect(world.ok(CMD.FEATURE, feature(GET | 1, undefined, 16))).toEqual(feature(GET | 1, pack([8, 5])));
    expect(world.ok(CMD.FEATURE, feature(GET | 2, undefined, 64))).toEqual(feature(GET | 2, state(2)));
    const set = feature(SET | 2, state(3));
    expect(world.ok(CMD.FEATURE, set)).toEqual(set);
    expect(world.ok(CMD.FEATURE, feature(GET | 2, undefined, 16))).toEqual(feature(GET | 2, state(3)));
    for (const flags of [PROBE | GET | 1, PROBE | GET | SET | 2, PROBE | SET | 6, PROBE | SET | 7, PROBE | GET | 8]) expect(world.ok(CMD.FEATURE, feature(flags))).toEqual(feature(flags));
  });

  it.each([
    ['short payload', new Uint8Array(4), EINVAL],
    ['argsz', feature(GET | 1, undefined, 7), EINVAL],
    ['GET and SET', feature(GET | SET | 2, state(1)), EINVAL],
    ['neither', feature(2, state(1)), EINVAL],
    ['unknown flags', feature(GET | (1 << 20) | 1, undefined, 16), EINVAL],
    ['no room for the answer', feature(GET | 1), EINVAL],
    ['unknown feature', feature(GET | 77, undefined, 16), ENOTTY],
    ['probe of an unknown feature', feature(PROBE | GET | 0xffff), ENOTTY],
    ['probe for setting what is only read', feature(PROBE | SET | 1), EINVAL],
    ['state ERROR', feature(SET | 2, state(0)), EINVAL],
    ['state 9', feature(SET | 2, state(9)), EINVAL],
    ['a state that the device lacks', feature(SET | 2, state(5)), EINVAL],
    ['state without data', feature(SET | 2), EINVAL],
    ['log: no data', feature(SET | 6), EINVAL],
    ['log: page size 3', feature(SET | 6, pack([8, 3], [4, 0], [4, 0])), EINVAL],
    ['log: page size 2^60', feature(SET | 6, pack([8, 2n ** 60n], [4, 0], [4, 0])), EINVAL],
    ['log: ranges that are not there', feature(SET | 6, pack([8, 4096], [4, 2], [4, 0], [8, 0], [8, 4096])), EINVAL],
    ['log: 2^32 - 1 ranges', feature(SET | 6, pack([8, 4096], [4, 0xffff_ffff], [4, 0])), E2BIG],
    ['log: half pages', feature(SET | 6, pack([8, 4096], [4, 1], [4, 0], [8, 0], [8, 100])), EINVAL],
    ['log: overlap', feature(SET | 6, pack([8, 4096], [4, 2], [4, 0], [8, 0], [8, 8192], [8, 4096], [8, 4096])), EINVAL],
    ['log: read', feature(GET | 6, undefined, 64), EINVAL],
    ['report: no log', feature(GET | 8, pack([8, 0], [8, 4096], [8, 4096]), 64), EINVAL],
    ['report: no data', feature(GET | 8, undefined, 64), EINVAL],
  ])('%s', (_what, payload, errno) => {
    expect(connected().errno(CMD.FEATURE, payload)).toBe(errno);
  });

  it('logs what the server writes, and forgets what it reported', () => {
    const world = connected();
    world.ok(CMD.DMA_MAP, dmaMap(0x10_0000, 0x10_0000), [world.fd()]);
    const start = feature(SET | 6, pack([8, 4096], [4, 1], [4, 0], [8, 0x10_0000], [8, 0x8_0000]));
    expect(world.ok(CMD.FEATURE, start)).toEqual(start);
    expect(world.errno(CMD.FEATURE, start)).toBe(EINVAL);
    const { memory } = world.memory;
    memory.store(0x10_1000, 4, 1);
    memory.store64(0x10_2ff8, 1, 1);
    memory.write(0x10_4ffe, new Uint8Array(4), 0, 4);
    memory.compareExchange64(0x10_6000, 0, 0, 1, 0);
    memory.fill(0x10_8000, 1, 1);
    memory.copy(0x10_9000, 0x10_0000, 1);
    memory.write(0x18_0000, new Uint8Array(4), 0, 4);
    world.memory.writeByMessages(0x10_a000, new Uint8Array(4), () => {});
    const report = (length: number, unit: number): Uint8Array => feature(GET | 8, pack([8, 0x10_0000], [8, length], [8, unit]), 1024);
    expect(u32(world.ok(CMD.FEATURE, report(0x10_0000, 4096)), 32)).toBe(0b111_0111_0110);
    expect(u32(world.ok(CMD.FEATURE, report(0x10_0000, 4096)), 32)).toBe(0);
    memory.store(0x10_1000, 1, 1);
    memory.store(0x10_5000, 1, 1);
    const coarse = world.ok(CMD.FEATURE, report(0x10_0000, 16384));
    expect([u32(coarse, 0), u32(coarse, 32), coarse.length]).toEqual([40, 0b11, 40]);
    expect(world.errno(CMD.FEATURE, feature(GET | 8, pack([8, 0], [8, 2 ** 40], [8, 4096]), 1024))).toBe(E2BIG);
    expect(world.errno(CMD.FEATURE, report(100, 4096))).toBe(EINVAL);
    expect(world.ok(CMD.FEATURE, feature(SET | 7))).toEqual(feature(SET | 7));
    expect(world.errno(CMD.FEATURE, report(0x1000, 4096))).toBe(EINVAL);
  });

  it('without ranges every write is logged', () => {
    const world = connected();
    world.ok(CMD.DMA_MAP, dmaMap(0, 0x1000), [world.fd()]);
    world.ok(CMD.FEATURE, feature(SET | 6, pack([8, 4096], [4, 0], [4, 0])));
    world.memory.memory.store(0, 4, 1);
    expect(u32(world.ok(CMD.FEATURE, feature(GET | 8, pack([8, 0], [8, 4096], [8, 4096]), 64)), 32)).toBe(1);
  });

  it('migration data flows only in the states that have a stream', () => {
    const world = connected();
    const read = (size: number): Uint8Array => pack([4, 8 + size], [4, size]);
    expect(world.errno(CMD.MIG_READ, read(16))).toBe(EINVAL);
    expect(world.errno(CMD.MIG_WRITE, concat(read(4), new Uint8Array(4)))).toBe(EINVAL);
    world.ok(CMD.FEATURE, feature(SET | 2, state(6)));
    const first = world.ok(CMD.MIG_READ, read(0x4000));
    // padded to what was asked for
    expect([u32(first, 0), u32(first, 4), first.length]).toEqual([0x3008, 0x3000, 0x4008]);
    const none = world.ok(CMD.MIG_READ, read(16));
    expect([u32(none, 0), u32(none, 4), none.length]).toEqual([8, 0, 24]);
    expect(world.errno(CMD.MIG_WRITE, concat(read(4), new Uint8Array(4)))).toBe(EINVAL);
    world.ok(CMD.FEATURE, feature(SET | 2, state(3)));
    expect(u32(world.ok(CMD.MIG_READ, read(0x4000)), 4)).toBe(0x3008);
    world.ok(CMD.FEATURE, feature(SET | 2, state(1)));
    expect(world.errno(CMD.MIG_READ, read(16))).toBe(EINVAL);
    world.ok(CMD.FEATURE, feature(SET | 2, state(4)));
    expect(world.errno(CMD.MIG_WRITE, concat(read(4), new Uint8Array(3)))).toBe(EINVAL);
    expect(world.errno(CMD.MIG_WRITE, new Uint8Array(4))).toBe(EINVAL);
    expect(world.errno(CMD.MIG_WRITE, concat(read(60_000), new Uint8Array(60_000)))).toBe(0);
    expect(world.errno(CMD.MIG_WRITE, concat(read(60_000), new Uint8Array(60_000)))).toBe(12);
    expect(world.errno(CMD.MIG_READ, read(2 ** 21))).toBe(EINVAL);
    // an incomplete state is refused, and only a reset leads out
    expect(world.errno(CMD.FEATURE, feature(SET | 2, state(2)))).toBe(EINVAL);
    expect(u32(world.ok(CMD.FEATURE, feature(GET | 2, undefined, 16)), 8)).toBe(0);
    world.ok(CMD.RESET);
    expect(u32(world.ok(CMD.FEATURE, feature(GET | 2, undefined, 16)), 8)).toBe(2);
  });

  it('a device without features refuses with ENOTTY', () => {
    const world = connected({ device: ({ device }) => ({ ops: Object.assign(Object.create(device) as MemoryWorld['device'], { feature: undefined }) }) });
    expect(world.errno(CMD.FEATURE, feature(GET | 1, undefined, 16))).toBe(ENOTTY);
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
