/** Messages about a client's memory, in both directions, with their refusals. */
import { describe, expect, it } from 'vitest';
import { MemoryWorld } from './memory-world.js';
import { CMD, concat, dmaMap, dmaUnmap, ERROR, message, pack } from './wire.js';

const ENOENT = 2, EEXIST = 17, EINVAL = 22, ENOSPC = 28;

function connected(options: ConstructorParameters<typeof MemoryWorld>[0] = {}): MemoryWorld {
  return new MemoryWorld(options).negotiate();
}

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
