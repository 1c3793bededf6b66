/** Cards of the mtty sample, served to a client whose memory they reach through its descriptors, move from server to server. */
import { describe, expect, it } from 'vitest';
import { MttyParent } from '../../devices/mtty/parent/mtty-parent.js';
import type { MdevHandle } from '../../mdev/parent.js';
import { ClientMemory, ClientPinning, type ServedDevice } from '../../vfio/user/index.js';
import { inSocketWorld, unavailable, type RawClient, type SocketWorld } from './socket-world.js';
import { CMD, concat, dmaMap, dmaUnmap, EVENTFD_TRIGGER, feature, GET, pack, regionAccess, regionWrite, SET, setIrqs, u32 } from './wire.js';

const STOP = 1, RUNNING = 2, STOP_COPY = 3, RESUMING = 4, PRE_COPY = 6;
const IOVA = 0x10_0000;

interface Card {
  readonly device: ServedDevice;
  readonly pinning: ClientPinning;
}

async function card(w: SocketWorld): Promise<Card> {
  const memory = new ClientMemory();
  const pinning = new ClientPinning(memory, w.scheduler);
  const parent = new MttyParent({ clock: w.clock, scheduler: w.scheduler, memory: memory.memory, vfio: pinning });
  const { ops } = await w.run(parent.create({ name: 'card', uuid: 'card', type: parent.types[1]! } satisfies MdevHandle));
  return { device: { ops, memory }, pinning };
}

async function state(client: RawClient, number: number): Promise<void> {
  const request = feature(SET | 2, pack([4, number], [4, -1]));
  expect(await client.ok(CMD.FEATURE, request)).toEqual(request);
  expect(u32(await client.ok(CMD.FEATURE, feature(GET | 2, undefined, 16)), 8)).toBe(number);
}

async function drain(client: RawClient, size: number): Promise<Uint8Array> {
  const pieces: Uint8Array[] = [];
  for (;;) {
    const answer = await client.ok(CMD.MIG_READ, pack([4, 8 + size], [4, size]));
    pieces.push(answer.subarray(8, 8 + u32(answer, 4)));
    if (u32(answer, 4) < size) return concat(...pieces);
  }
}

async function poke(client: RawClient, region: number, offset: number, value: number): Promise<void> {
  await client.ok(CMD.REGION_WRITE, regionWrite(region, offset, pack([4, value])));
}

async function transfer(client: RawClient, tx: number, rx: number, length: number): Promise<void> {
  for (const [offset, value] of [[0x108, tx], [0x10c, 0], [0x110, length], [0x114, length], [0x118, rx], [0x11c, 0], [0x12c, 1], [0x120, 1]] as const) await poke(client, 0, offset, value);
}

async function moved(client: RawClient): Promise<number> {
  for (;;) {
    const answer = await client.ok(CMD.REGION_READ, regionAccess(0, 0x124, 8));
    if ((u32(answer, 16) & 1) === 0) return u32(answer, 20);
  }
}

describe.skipIf(unavailable !== undefined)(`migration over vfio-user${unavailable === undefined ? '' : ` (skipped: ${unavailable})`}`, () => {
  it('a card pins, copies and interrupts in a client\'s memory, and goes on with another server', () => inSocketWorld(async (w) => {
    const here = await card(w), there = await card(w);
    const source = await w.serve(here.device), target = await w.serve(there.device);
    const ram = w.guestMemory(2 ** 20);
    const client = await w.client(source);
    await client.ok(CMD.DMA_MAP, dmaMap(IOVA, 2 ** 20), [ram.descriptor]);
    const event = w.eventFd();
    await client.ok(CMD.SET_IRQS, setIrqs(1, 0, 1, EVENTFD_TRIGGER), [event.fd]);
    await client.ok(CMD.REGION_WRITE, regionWrite(7, 4, pack([2, 6])));
    await poke(client, 7, 0x3c, 0x0b);
    await client.ok(CMD.FEATURE, feature(SET | 6, pack([8, 4096], [4, 1], [4, 0], [8, IOVA], [8, 2 ** 20])));
    ram.window.write(100, Uint8Array.from({ length: 5000 }, (_, i) => i * 11), 0, 5000);
    await transfer(client, IOVA + 100, IOVA + 0x8000, 5000);
    expect(await moved(client)).toBe(5000);
    const copy = new Uint8Array(5000), original = new Uint8Array(5000);
    ram.window.read(0x8000, copy, 0, 5000);
    ram.window.read(100, original, 0, 5000);
    expect([Buffer.compare(copy, original), event.take(), here.pinning.pinnedPages]).toEqual([0, 1, 0]);
    const report = await client.ok(CMD.FEATURE, feature(GET | 8, pack([8, IOVA], [8, 2 ** 20], [8, 4096]), 128));
    expect(u32(report, 32)).toBe(0b11 << 8);

    await state(client, PRE_COPY);
    const first = await drain(client, 7);
    await state(client, STOP_COPY);
    const rest = await drain(client, 7);
    await state(client, STOP);
    await w.leave(client, source);
    const other = await w.client(target);
    await state(other, RESUMING);
    const stream = concat(first, rest);
    for (let at = 0; at < stream.length; at += 50) {
      const piece = stream.subarray(at, at + 50);
      await other.ok(CMD.MIG_WRITE, concat(pack([4, 8 + piece.length], [4, piece.length]), piece));
    }
    await state(other, STOP);
    expect([(await other.ok(CMD.REGION_READ, regionAccess(7, 0x3c, 1)))[16], u32(await other.ok(CMD.REGION_READ, regionAccess(0, 0x110, 4)), 16)]).toEqual([0x0b, 5000]);
    await other.ok(CMD.DMA_MAP, dmaMap(IOVA, 2 ** 20), [ram.descriptor]);
    await state(other, RUNNING);
    await transfer(other, IOVA + 100, IOVA + 0x2_0000, 3000);
    expect(await moved(other)).toBe(3000);
    ram.window.read(0x2_0000, copy, 0, 3000);
    expect(Buffer.compare(copy.subarray(0, 3000), original.subarray(0, 3000))).toBe(0);
  }));

  it('a card cannot pin what its client took away, or gave no descriptor for', () => inSocketWorld(async (w) => {
    const { device, pinning } = await card(w);
    const server = await w.serve(device);
    const client = await w.client(server);
    const ram = w.guestMemory(2 ** 20);
    await client.ok(CMD.REGION_WRITE, regionWrite(7, 4, pack([2, 6])));
    await client.ok(CMD.DMA_MAP, dmaMap(IOVA, 2 ** 20), [ram.descriptor]);
    await client.ok(CMD.DMA_MAP, dmaMap(2 * IOVA, 2 ** 20));
    await transfer(client, 2 * IOVA, IOVA, 100);
    expect(await moved(client)).toBe(0);
    await client.ok(CMD.DMA_UNMAP, dmaUnmap(IOVA, 2 ** 20));
    await transfer(client, IOVA, IOVA, 100);
    expect([await moved(client), pinning.pinnedPages]).toEqual([0, 0]);
  }));
});
