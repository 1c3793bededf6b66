/**
 * What no honest client sends: messages whose lengths, counts, flags and descriptors lie, in pieces of any size. The
 * session answers each with an error or ends its own connection; nothing of it stays open, no bug shows, and the next
 * client is served.
 */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { FakeDescriptor, MemoryWorld } from './memory-world.js';
import { CMD, concat, dmaMap, dmaUnmap, ERROR, feature, GET, infoRequest, message, pack, PROBE, QEMU_CAPABILITIES, regionAccess, SET, setIrqs, u32, versionPayload, writeMulti } from './wire.js';

const RUNS = 1500;
const LIARS = 4;

/** Numbers on which sums overflow and signs turn. */
const word = fc.oneof(fc.integer({ min: 0, max: 40 }), fc.constantFrom(0x1000, 0x2000, 0x7fff_ffff, 0x8000_0000, 0xffff_f000, 0xffff_ffff), fc.integer({ min: 0, max: 0xffff_ffff }));
const long = fc.oneof(word.map(BigInt), fc.constantFrom(2n ** 40n, 2n ** 52n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 4096n, 2n ** 64n - 1n), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }));
const data = fc.uint8Array({ maxLength: 64 });
const flags = fc.tuple(word, fc.constantFrom(0, GET, SET, PROBE, GET | SET, PROBE | GET, PROBE | SET)).map(([low, high]) => ((low & 0xf) | high) >>> 0);

const payload = fc.oneof(
  data,
  fc.tuple(word, word, long, long, long).map(([argsz, bits, offset, address, size]) => pack([4, argsz], [4, bits & 7], [8, offset], [8, address], [8, size])),
  fc.tuple(word, word, long, long).map(([argsz, bits, address, size]) => pack([4, argsz], [4, bits & 3], [8, address], [8, size])),
  fc.tuple(word, word, word, word, word, data).map(([argsz, bits, index, start, count, rest]) => concat(pack([4, argsz], [4, bits & 0x7f], [4, index], [4, start], [4, count]), rest)),
  fc.tuple(word, long, word, data).map(([region, offset, count, rest]) => regionAccess(region & 15, offset, count, rest)),
  fc.tuple(long, data).map(([count, rest]) => concat(pack([8, count]), rest)),
  fc.tuple(word, flags, data).map(([argsz, bits, rest]) => feature(bits, rest, argsz)),
  fc.tuple(word, word, data).map(([argsz, size, rest]) => concat(pack([4, argsz], [4, size]), rest)),
);
const commands = Object.values(CMD);
const liar = fc.record({
  command: fc.oneof(fc.constantFrom(...commands), fc.integer({ min: 0, max: 0xffff })), payload,
  flags: fc.oneof(fc.constantFrom(0, 0, 0, 0x10, 1, 0x21, 2), word), errno: word,
  /** What the header says beyond the truth. */
  excess: fc.oneof(fc.constant(0), fc.constant(0), fc.constant(0), fc.integer({ min: -40, max: 40 }), fc.constantFrom(0x7fff_0000, 2 ** 20)),
  descriptors: fc.array(fc.constantFrom('memory' as const, 'eventfd' as const, 'pipe' as const), { maxLength: 20 }),
});

describe('malformed input', () => {
  it(`${RUNS} conversations of lies harm nobody else`, () => {
    let messages = 0, refused = 0, ended = 0;
    fc.assert(fc.property(fc.array(liar, { minLength: 1, maxLength: LIARS }), fc.boolean(), fc.constantFrom(1, 3, 16, 17, Infinity), (lies, agreed, piece) => {
      const world = new MemoryWorld();
      if (agreed) world.negotiate();
      for (const { command, payload: bytes, flags: bits, errno, excess, descriptors } of lies) {
        const size = Math.max(0, 16 + bytes.length + excess);
        world.push(message(7, command, bytes, bits >>> 0, errno, size), descriptors.map((what) => new FakeDescriptor(world.table, what === 'memory' ? world.ram : what)), piece);
        world.clock.run();
        messages++;
      }
      expect(world.bugs).toEqual([]);
      refused += world.session.refusals;
      if (world.session.ended) ended++;
      // whoever is still connected is still served, once the end of a half message has come
      if (!world.session.ended && !world.session.midMessage) {
        if (!agreed) world.negotiate();
        expect(world.ok(CMD.GET_INFO, infoRequest(16)).length).toBe(16);
      }
      for (const answer of world.sent) expect((answer.flags & ERROR) === 0 || answer.payload.length === 0).toBe(true);
      world.session.disconnected();
      world.clock.run();
      expect([world.session.ended, world.table.open, world.memory.regions.length, world.device.triggers.size]).toEqual([true, 0, 0, 0]);
    }), { numRuns: RUNS, seed: 20 });
    expect(messages).toBeGreaterThan(1000);
    expect(refused).toBeGreaterThan(500);
    expect(ended).toBeGreaterThan(50);
  });

  it('every true message, cut off anywhere or changed in one word, ends in an answer or waits for its rest', () => {
    const truths: readonly (readonly [number, Uint8Array])[] = [
      [CMD.DMA_MAP, dmaMap(0x1000, 0x1000)], [CMD.DMA_UNMAP, dmaUnmap(0x1000, 0x1000)], [CMD.GET_INFO, infoRequest(16)], [CMD.GET_REGION_INFO, infoRequest(32, 1)],
      [CMD.GET_REGION_IO_FDS, pack([4, 16], [4, 0], [4, 0], [4, 0])], [CMD.GET_IRQ_INFO, infoRequest(16, 1)], [CMD.SET_IRQS, setIrqs(2, 0, 2, 0x22, new Uint8Array(2))],
      [CMD.REGION_READ, regionAccess(1, 0, 16)], [CMD.REGION_WRITE, regionAccess(1, 0, 8, new Uint8Array(8))], [CMD.RESET, new Uint8Array(0)],
      [CMD.WRITE_MULTI, writeMulti([{ region: 1, offset: 0, data: new Uint8Array(8) }])], [CMD.FEATURE, feature(GET | 2, undefined, 16)],
      [CMD.FEATURE, feature(SET | 6, pack([8, 4096], [4, 1], [4, 0], [8, 0], [8, 4096]))], [CMD.MIG_READ, pack([4, 24], [4, 16])], [CMD.MIG_WRITE, pack([4, 24], [4, 4], [4, 0])],
      [CMD.VERSION, versionPayload(0, QEMU_CAPABILITIES)],
    ];
    let inputs = 0;
    for (const [command, payloadBytes] of truths) {
      const whole = message(9, command, payloadBytes);
      for (let length = 1; length <= whole.length; length++, inputs++) {
        const world = new MemoryWorld().negotiate();
        world.push(whole.subarray(0, length), [world.fd()]);
        world.clock.run();
        expect(world.sent.length).toBe(length === whole.length ? 1 : 0);
        world.session.disconnected();
        world.clock.run();
        expect([world.bugs, world.table.open]).toEqual([[], 0]);
      }
      for (let at = 0; at + 4 <= payloadBytes.length; at += 4) {
        for (const value of [0, 1, 0xffff_ffff, 0x8000_0000]) {
          const changed = payloadBytes.slice();
          changed.set(pack([4, value]), at);
          const world = new MemoryWorld().negotiate();
          world.push(message(9, command, changed));
          world.clock.run();
          expect([world.sent.length, world.bugs, world.closed]).toEqual([1, [], false]);
          inputs++;
        }
      }
    }
    expect(inputs).toBeGreaterThan(1000);
  });

  it('a size that cannot be ends the connection with a reply', () => {
    for (const size of [0, 1, 15, 2 ** 20 + 16 + 65, 0x7fff_ffff, 0xffff_ffff]) {
      const world = new MemoryWorld().negotiate();
      world.push(message(3, CMD.REGION_WRITE, new Uint8Array(0), 0, 0, size));
      world.clock.run();
      expect([world.sent.map(({ id, errno }) => [id, errno]), world.closed, world.session.ended]).toEqual([[[3, 22]], true, true]);
    }
    // before versions are agreed on a message is short
    const early = new MemoryWorld();
    early.push(message(3, CMD.VERSION, new Uint8Array(0), 0, 0, 8192));
    expect(early.closed).toBe(true);
  });

  it('a flood of commands behind one that sleeps is not even read', () => {
    const world = new MemoryWorld({ limits: { maxWaiting: 8 } }).negotiate();
    world.device.resetNs = 1000;
    let read = 0;
    for (; read < 100_000 && world.session.accepting; read++) world.push(message(1, CMD.RESET));
    expect(read).toBe(9);
  });

  it('lost descriptors refuse their message only', () => {
    const world = new MemoryWorld().negotiate();
    const bytes = message(5, CMD.DMA_MAP, dmaMap(0, 0x1000));
    const { space } = world.session;
    space.set(bytes.subarray(0, 16));
    world.session.received(16, [world.fd()], true);
    world.push(bytes.subarray(16));
    expect([world.sent[0]!.errno, world.table.open, world.memory.regions.length, u32(world.ok(CMD.GET_INFO, infoRequest(16)), 8)]).toEqual([22, 0, 0, 9]);
  });
});
