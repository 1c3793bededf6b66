/** What libvfio-user's sample client expects of a server, item by item, on real sockets with real descriptors. */
import { describe, expect, it } from 'vitest';
import type { VfioUserServer } from '../../vfio/user/posix/index.js';
import { BAR1_BYTES, SampleDevice } from './sample-device.js';
import { inSocketWorld, unavailable, type RawClient, type SocketWorld } from './socket-world.js';
import { CMD, concat, dmaMap, dmaUnmap, EVENTFD_TRIGGER, feature, GET, infoRequest, jsonOf, message, pack, regionAccess, regionWrite, SET, setIrqs, u16, u32, u64, versionPayload } from './wire.js';

const CLIENT_CAPABILITIES = { capabilities: { max_msg_fds: 8, max_data_xfer_size: 1024, migration: { pgsize: 4096 } } };
const STATE_BYTES = BAR1_BYTES + 8;
const state = (number: number): Uint8Array => feature(SET | 2, pack([4, number], [4, -1]));

/** Items 1 to 8: a client, its memory and the server's view of it. */
async function attach(w: SocketWorld, server: VfioUserServer): Promise<{ client: RawClient; regions: number }> {
  const client = w.rawClient(server);
  const version = await client.ok(CMD.VERSION, versionPayload(2, CLIENT_CAPABILITIES));
  expect([u16(version, 0), u16(version, 2) <= 2, version.at(-1)]).toEqual([0, true, 0]);
  return { client, regions: 2 * Number(jsonOf(version).capabilities['max_msg_fds']) };
}

async function mapAll(w: SocketWorld, client: RawClient, regions: number): Promise<Uint8Array[]> {
  const ram = w.guestMemory(regions * 4096, false);
  for (let i = 0; i < regions; i++) await client.ok(CMD.DMA_MAP, dmaMap(i * 4096, 4096, i * 4096), [ram.descriptor]);
  return Array.from({ length: regions }, () => new Uint8Array(4096));
}

/** Answers the server's messages as the client does, and keeps what they wrote. */
function answerDma(client: RawClient): { order: number[]; memory: Uint8Array } {
  const seen = { order: [] as number[], memory: new Uint8Array(0x10000) };
  client.onCommand = ({ id, command, payload }) => {
    const address = u64(payload, 0), count = u64(payload, 8);
    seen.order.push(command);
    if (command === CMD.DMA_WRITE) {
      seen.memory.set(payload.subarray(16), address);
      client.write(message(id, command, payload.subarray(0, 16), 1));
    } else {
      client.write(message(id, command, concat(payload.subarray(0, 16), seen.memory.subarray(address, address + count)), 1));
    }
  };
  return seen;
}

describe.skipIf(unavailable !== undefined)(`a third party's client${unavailable === undefined ? '' : ` (skipped: ${unavailable})`}`, () => {
  it('items 1 to 12: attaches, is interrupted, answers eight messages of DMA, logs, and leaves', () => inSocketWorld(async (w) => {
    const device = new SampleDevice(w.scheduler);
    const bar1 = w.guestMemory(BAR1_BYTES);
    const server = await w.serve({ ops: device, connectDma: (memory) => device.connectDma(memory), regionFile: (index) => (index === 1 ? { descriptor: bar1.descriptor, fileOffset: 0, sparse: [{ offset: 0, sizeBytes: BAR1_BYTES }] } : undefined) });
    const { client, regions } = await attach(w, server);
    expect(await client.errno(CMD.REGION_READ, regionAccess(0xdead_beef, 0, 4))).toBe(22);
    const info = await client.ok(CMD.GET_INFO, infoRequest(16));
    expect([u32(info, 8), u32(info, 12)]).toEqual([9, 5]);
    for (let index = 0; index < 9; index++) {
      client.descriptors = [];
      const region = await client.ok(CMD.GET_REGION_INFO, infoRequest(32, index));
      expect([region.length, client.descriptors.length, u32(region, 0) > 32]).toEqual([32, 0, index === 1]);
      if (index !== 1) continue;
      const full = await client.ok(CMD.GET_REGION_INFO, infoRequest(32, index, u32(region, 0)));
      expect([u16(full, 32), u32(full, 36), client.descriptors.length]).toEqual([1, 0, 1]);
      w.calls.close(client.descriptors[0]!);
    }
    const config = (await client.ok(CMD.REGION_READ, regionAccess(7, 0, 64))).subarray(16);
    expect([u16(config, 0), u16(config, 2), u16(config, 0x2c), u16(config, 0x2e)]).toEqual([0xdead, 0xbeef, 0xcafe, 0xbabe]);
    await client.ok(CMD.RESET);
    await mapAll(w, client, regions);
    for (let index = 0; index < 5; index++) await client.ok(CMD.GET_IRQ_INFO, infoRequest(16, index));
    const event = w.eventFd();
    await client.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_TRIGGER), [event.fd]);
    const start = feature(SET | 6, pack([8, 4096], [4, 1], [4, 0], [8, 0], [8, regions * 4096]));
    expect(await client.ok(CMD.FEATURE, start)).toEqual(start);
    const seen = answerDma(client);
    await client.ok(CMD.REGION_WRITE, regionWrite(0, 0, pack([8, 1])));
    await client.until(() => seen.order.length === 8);
    expect([seen.order, event.take()]).toEqual([[...Array.from({ length: 4 }, () => CMD.DMA_WRITE), ...Array.from({ length: 4 }, () => CMD.DMA_READ)], 1]);
    expect([...new Set(seen.memory.subarray(0, 4096))]).toEqual([0x41, 0x42, 0x43, 0x44]);
    for (let page = 0; page < 3; page++) {
      const report = await client.ok(CMD.FEATURE, feature(GET | 8, pack([8, page * 4096], [8, 4096], [8, 4096]), 8 + 24 + 8));
      expect([report.length, u32(report, 32)]).toEqual([40, page < 2 ? 1 : 0]);
    }
    expect(await client.ok(CMD.FEATURE, feature(SET | 7))).toEqual(feature(SET | 7));
    for (let i = 0; i < regions / 2; i++) expect(await client.ok(CMD.DMA_UNMAP, dmaUnmap(i * 4096, 4096))).toEqual(dmaUnmap(i * 4096, 4096));
    expect(device.moved.filter((error) => error !== undefined)).toEqual(['done']);
  }));

  it('items 13 and 14: the device moves to another server, and goes on there', () => inSocketWorld(async (w) => {
    const from = new SampleDevice(w.scheduler), to = new SampleDevice(w.scheduler);
    const source = await w.serve({ ops: from, connectDma: (memory) => from.connectDma(memory) }), target = await w.serve({ ops: to, connectDma: (memory) => to.connectDma(memory) });
    const { client } = await attach(w, source);
    await client.ok(CMD.REGION_WRITE, regionWrite(0, 0, pack([8, 1])));
    // as QEMU and the sample write it: more than the client itself would take at once
    await client.ok(CMD.REGION_WRITE, regionWrite(1, 0, new Uint8Array(BAR1_BYTES).fill(1)));
    expect(await client.ok(CMD.FEATURE, state(6))).toEqual(state(6));
    const read = async (): Promise<Uint8Array> => {
      const answer = await client.ok(CMD.MIG_READ, pack([4, 8 + 1024], [4, 1024]));
      expect(answer.length).toBe(8 + 1024);
      return answer.subarray(8, 8 + u32(answer, 4));
    };
    for (let i = 0; i < 12; i++) {
      expect((await read()).length).toBe(1024);
      await client.ok(CMD.REGION_WRITE, regionWrite(1, 0, Uint8Array.from({ length: BAR1_BYTES }, (_, j) => j * (i + 1))));
    }
    expect((await read()).length).toBe(0);
    expect(await client.ok(CMD.FEATURE, state(3))).toEqual(state(3));
    const pieces: Uint8Array[] = [];
    for (let piece = await read(); ; piece = await read()) {
      pieces.push(piece);
      if (piece.length < 1024) break;
    }
    expect([pieces.length, concat(...pieces).length]).toEqual([13, STATE_BYTES]);
    await w.leave(client, source);

    const { client: there, regions } = await attach(w, target);
    await there.ok(CMD.FEATURE, state(4));
    for (const piece of pieces) expect((await there.ok(CMD.MIG_WRITE, concat(pack([4, 8 + piece.length], [4, piece.length]), piece))).length).toBe(0);
    await there.ok(CMD.FEATURE, state(1));
    const bar1 = (await there.ok(CMD.REGION_READ, regionAccess(1, 0, BAR1_BYTES))).subarray(16);
    expect([Buffer.compare(bar1, from.bar1), bar1[5]]).toEqual([0, (5 * 12) & 0xff]);
    await mapAll(w, there, regions);
    const event = w.eventFd(), seen = answerDma(there);
    await there.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_TRIGGER), [event.fd]);
    await there.ok(CMD.FEATURE, state(2));
    await there.until(() => seen.order.length === 8);
    expect([event.take(), to.bar0[0]]).toEqual([1, 1]);
    expect(await there.ok(CMD.DMA_UNMAP, dmaUnmap(0, 0, 2))).toEqual(dmaUnmap(0, 0, 2));
  }));
});
