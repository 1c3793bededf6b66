/** DEVICE_FEATURE, migration data and the log of what the server writes, with their refusals. */
import { describe, expect, it } from 'vitest';
import { MemoryWorld } from './memory-world.js';
import { CMD, concat, dmaMap, feature, GET, pack, PROBE, SET, u32 } from './wire.js';

const E2BIG = 7, EINVAL = 22, ENOTTY = 25;

function connected(options: ConstructorParameters<typeof MemoryWorld>[0] = {}): MemoryWorld {
  return new MemoryWorld(options).negotiate();
}

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
