/** Servers on real sockets that are recorded, and replayed without any. */
import { readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { Scheduler, type Steps } from '../../sim/task.js';
import { WallClock } from '../../sim/wall-clock.js';
import { VfioUserServer, type VfioUserServerOptions } from '../../vfio/user/posix/index.js';
import { formatDifference, MachineRecorder } from '../../vfio/user/recording/index.js';
import { job, machine, OP, replay } from './recorded-world.js';
import { inSocketWorld, unavailable, type RawClient, type SocketWorld } from './socket-world.js';
import { CMD, concat, dmaMap, EVENTFD_TRIGGER, pack, QEMU_CAPABILITIES, regionAccess, regionWrite, setIrqs, u64 } from './wire.js';

const MEMORY = 2 ** 16;

/** Servers of a machine that is recorded; the world's own clock is that of who starts and stops them. */
async function recorded(w: SocketWorld, names: readonly string[], options: Partial<VfioUserServerOptions> = {}) {
  const clock = new WallClock((error) => w.bugs.push(error), { held: true });
  onTestFinished(() => clock.stop());
  const live = machine(clock, names), chunks: Uint8Array[] = [];
  const recorder = new MachineRecorder({ clock, devices: names, write: (chunk) => void chunks.push(chunk.slice()) });
  const servers = names.map((name) => new VfioUserServer({
    path: w.path(), device: live.devices.get(name)!, scheduler: live.scheduler, outside: w.scheduler, enter: (action) => clock.enter(action), recorder: recorder.device(name),
    onBug: (error) => w.bugs.push(error), ...options,
  }));
  clock.start();
  for (const server of servers) await w.run(server.start());
  const stop = async (): Promise<Uint8Array> => {
    for (const server of servers) await w.run(server.stop());
    recorder.finish();
    return concat(...chunks);
  };
  return { clock, live, recorder, servers, stop };
}

/** Reads of QEMU's kind: the machine's time, while events run. */
async function work(client: RawClient, doorbells: number): Promise<void> {
  for (let i = 0; i < doorbells; i++) {
    await client.ok(CMD.REGION_WRITE, regionWrite(0, 0, pack([4, 0x1000])));
    for (let reads = 0; reads < i % 4; reads++) await client.ok(CMD.REGION_READ, regionAccess(0, 0, 8));
  }
}

describe.skipIf(unavailable !== undefined)('a recorded server on a socket', () => {
  it('has a recording that needs no socket, memory or eventfd to be replayed', () => inSocketWorld(async (w) => {
    const { live, recorder, servers, stop } = await recorded(w, ['carrier', 'dsa']);
    const ram = w.guestMemory(MEMORY), event = w.eventFd(), unmask = w.eventFd();
    const put = (at: number, bytes: Uint8Array): void => void ram.window.write(at, bytes, 0, bytes.length);
    [OP.copy, OP.words, OP.exchange, OP.interrupt, OP.small].forEach((op, i, all) => put(0x1000 + 32 * i, job(op, { from: 0x2000, to: 0x3000, value: i, delay: 3000 * i, next: i + 1 < all.length ? 0x1020 + 32 * i : 0 })));
    const [carrier, dsa] = [await w.client(servers[0]!), await w.client(servers[1]!)];
    await carrier.ok(CMD.DMA_MAP, dmaMap(0, MEMORY), [ram.descriptor]);
    await dsa.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_TRIGGER), [event.fd]);
    await dsa.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, 0x14), [unmask.fd]);
    const [, dsaWalker] = live.walkers;
    const working = work(dsa, 12);
    // the guest's memory changes under the device
    for (let i = 0; i < 5; i++) {
      put(0x2000, Uint8Array.of(i, 3, 5));
      await new Promise((done) => void setTimeout(done, 1));
    }
    await working;
    unmask.write(1n);
    while (dsaWalker!.unmasked === 0) await new Promise((done) => void setImmediate(done));
    await w.leave(carrier, servers[0]!);
    const again = await w.client(servers[0]!);
    await again.ok(CMD.DMA_MAP, dmaMap(0, MEMORY), [ram.descriptor]);
    await work(dsa, 2);
    const file = await stop();
    const replayed = replay(file, ['carrier', 'dsa']);
    expect(replayed.differences.map(formatDifference)).toEqual([]);
    expect(replayed.ran).toEqual(live.walkers.map(({ ran }) => ran));
    expect([replayed.inputs, replayed.bytesRead, replayed.errors]).toEqual([recorder.inputs, recorder.bytesRead, []]);
    expect(replayed.ran[1]!.at(-1)).toMatch(/close$/);
    expect(event.take()).toBeGreaterThan(0);
  }));

  it('has its second channel, messages and all', () => inSocketWorld(async (w) => {
    const { live, servers, stop } = await recorded(w, ['carrier'], { policy: 'messages' });
    const client = w.rawClient(servers[0]!);
    const ram = w.guestMemory(MEMORY);
    await client.negotiate({ capabilities: { ...QEMU_CAPABILITIES.capabilities, twin_socket: { supported: true } } });
    await client.ok(CMD.DMA_MAP, dmaMap(0, MEMORY), [ram.descriptor]);
    const twin = w.twin(client);
    twin.onCommand = ({ id, command, payload }) => {
      const data = command === CMD.DMA_READ ? new Uint8Array(u64(payload, 8)).fill(7) : new Uint8Array(0);
      twin.write(concat(pack([2, id], [2, command], [4, 32 + data.length], [4, 1], [4, 0]), payload.slice(0, 16), data));
    };
    const { memory } = live.walkers[0]!;
    // only the machine may ask: a descriptor that is not there ends the walk, and the device reads by messages
    live.walkers[0]!.write = (_offset, source) => {
      const bytes = new Uint8Array(300);
      memory!.readByMessages(0x2000, bytes, (error) => {
        live.walkers[0]!.note(`${error?.code ?? 'read'} ${bytes[299]}`);
        memory!.writeByMessages(0x3000, bytes.subarray(0, 100), () => live.walkers[0]!.note('written'));
      });
      return source.length;
    };
    await client.ok(CMD.REGION_WRITE, regionWrite(0, 0, pack([4, 0x1000])));
    while (!live.walkers[0]!.ran.some((line) => line.endsWith('written'))) await new Promise((done) => void setImmediate(done));
    const file = await stop();
    // the same machine again would have the same device; this one has none that reads by messages
    expect(replay(file, ['carrier']).differences).toMatchObject([{ device: 'carrier', connection: 1, expected: expect.stringContaining('sends DMA_READ 0 of 32 bytes') }]);
  }));

  it('is started and stopped from outside of its machine only', () => inSocketWorld(async (w) => {
    const clock = new WallClock();
    onTestFinished(() => clock.stop());
    const live = machine(clock, ['one']), recorder = new MachineRecorder({ clock, devices: ['one'], write: () => {} });
    expect(() => new VfioUserServer({ path: w.path(), device: live.devices.get('one')!, scheduler: live.scheduler, recorder: recorder.device('one') })).toThrow(/no part of its machine/);
    const refusing = new Scheduler(clock, () => {});
    live.walkers[0]!.open = function* (): Steps {
      throw new TypeError('no device');
    };
    const server = new VfioUserServer({ path: w.path(), device: live.devices.get('one')!, scheduler: refusing, outside: w.scheduler, enter: (action) => clock.enter(action), recorder: recorder.device('one') });
    await expect(w.run(server.start())).rejects.toThrow('no device');
  }));
});

it('replaying loads nothing of the operating system’s interface', () => {
  const seen = new Set<string>();
  const visit = (file: string): void => {
    if (seen.has(file)) return;
    seen.add(file);
    for (const [, path] of readFileSync(file, 'utf8').matchAll(/from '(\.[^']+)\.js'/g)) visit(join(dirname(file), `${path}.ts`));
  };
  visit(resolve(import.meta.dirname, '../../vfio/user/recording/index.ts'));
  expect(seen.size).toBeGreaterThan(20);
  expect([...seen].filter((file) => file.includes('/posix/'))).toEqual([]);
});
