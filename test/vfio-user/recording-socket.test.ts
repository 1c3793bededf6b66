/** Servers on real sockets that are recorded, and replayed without any. */
import { readFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { describe, expect, it, onTestFinished } from 'vitest';
import { Scheduler, type Steps } from '../../sim/task.js';
import { WallClock } from '../../sim/wall-clock.js';
import { VfioUserServer, type VfioUserServerOptions } from '../../vfio/user/posix/index.js';
import { formatDifference, MachineRecorder } from '../../vfio/user/recording/index.js';
import { job, machine, OP, replay, Walker } from './recorded-world.js';
import { inSocketWorld, RawClient, unavailable, type SocketWorld } from './socket-world.js';
import { CMD, concat, dmaMap, EVENTFD_TRIGGER, message, pack, QEMU_CAPABILITIES, regionAccess, regionWrite, REPLY, setIrqs, u64 } from './wire.js';

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

  it('has its second channel, and messages that go there', () => inSocketWorld(async (w) => {
    const { live, servers, stop } = await recorded(w, ['carrier']);
    const client = w.rawClient(servers[0]!);
    const ram = w.guestMemory(MEMORY), descriptor = job(OP.byMessage, { from: 0x2000, to: 0x3000, length: 200 });
    ram.window.write(0x1000, descriptor, 0, descriptor.length);
    await client.negotiate({ capabilities: { ...QEMU_CAPABILITIES.capabilities, twin_socket: { supported: true } } });
    const twin = w.hold(new RawClient(w.calls, client.descriptors[0]!));
    await client.ok(CMD.DMA_MAP, dmaMap(0, MEMORY), [ram.descriptor]);
    twin.onCommand = ({ id, command, payload }) => {
      twin.write(message(id, command, concat(payload.slice(0, 16), new Uint8Array(command === CMD.DMA_READ ? u64(payload, 8) : 0).fill(7)), REPLY));
    };
    await work(client, 2);
    const [walker] = live.walkers;
    while (walker!.ran.filter((line) => line.endsWith('written')).length < 2) await new Promise((done) => void setImmediate(done));
    const file = await stop();
    const replayed = replay(file, ['carrier']);
    expect(replayed.differences.map(formatDifference)).toEqual([]);
    expect(replayed.ran).toEqual([walker!.ran]);
    expect(walker!.ran.some((line) => line.endsWith('read 7'))).toBe(true);
  }));

  it('an input that fails reaches who looks after bugs, and the next client is served', () => inSocketWorld(async (w) => {
    const failures: unknown[] = [];
    let first = true;
    const server = await w.serve({ ops: new Walker('one', w.scheduler) }, {
      onBug: (error) => failures.push(error),
      enter: (action) => {
        if (!first) return action();
        first = false;
        throw new TypeError('not now');
      },
    });
    const lost = w.rawClient(server);
    while (!lost.ended) await new Promise((done) => void setImmediate(done));
    expect(failures.map(String)).toEqual(['TypeError: not now']);
    await w.client(server);
    expect(server.connections).toBe(1);
  }));

  it('is started and stopped from outside of its machine only', () => inSocketWorld(async (w) => {
    const clock = new WallClock();
    onTestFinished(() => clock.stop());
    const live = machine(clock, ['one']), recorder = new MachineRecorder({ clock, devices: ['one'], write: () => {} });
    expect(() => new VfioUserServer({ path: w.path(), device: live.devices.get('one')!, scheduler: live.scheduler, recorder: recorder.device('one') })).toThrow(/no part of its machine/);
    const refusing = new Scheduler(clock, () => {});
    // oxlint-disable-next-line require-yield -- VfioDeviceOps.open may sleep
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
