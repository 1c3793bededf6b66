/** Devices on Unix sockets: descriptors, memory and eventfds of another program, clients that come, go, and lie. */
import { closeSync, openSync, unlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { F_ADD_SEALS, F_SEAL_SHRINK } from '../../vfio/user/posix/calls.js';
import { listenUnix } from '../../vfio/user/posix/socket.js';
import { SampleDevice } from './sample-device.js';
import { inSocketWorld, RawClient, unavailable } from './socket-world.js';
import { CMD, concat, dmaMap, dmaUnmap, ERROR, EVENTFD_TRIGGER, infoRequest, jsonOf, message, NO_REPLY, pack, QEMU_CAPABILITIES, regionAccess, regionWrite, setIrqs, u32, versionPayload } from './wire.js';

const EACCES = 13, EINVAL = 22;
const MIB = 2 ** 20;

describe.skipIf(unavailable !== undefined)(`a vfio-user server on a socket${unavailable === undefined ? '' : ` (skipped: ${unavailable})`}`, () => {
  it('answers a client, with the descriptor of a region that may be mapped', () => inSocketWorld(async (w) => {
    const device = new SampleDevice(w.scheduler);
    const bar = w.guestMemory(0x3000);
    const server = await w.serve({ ops: device, regionFile: (index) => (index === 1 ? { descriptor: bar.descriptor, fileOffset: 0, sparse: [{ offset: 0x1000, sizeBytes: 0x1000 }] } : undefined) });
    const client = await w.client(server);
    expect(u32(await client.ok(CMD.GET_INFO, infoRequest(16)), 8)).toBe(9);
    expect((await client.ok(CMD.GET_REGION_INFO, infoRequest(32, 1))).length).toBe(32);
    expect(client.descriptors).toEqual([]);
    expect((await client.ok(CMD.GET_REGION_INFO, infoRequest(32, 1, 64))).length).toBe(64);
    expect(client.descriptors).toHaveLength(1);
    bar.window.store(0x1004, 4, 0x5678);
    const bytes = new Uint8Array(4);
    w.calls.pread(client.descriptors[0]!, bytes, 4, 0x1004);
    expect(u32(bytes, 0)).toBe(0x5678);
    w.calls.close(client.descriptors[0]!);
  }));

  it('maps sealed memory at any number of places, and gives all of it back', () => inSocketWorld(async (w) => {
    const server = await w.serve({ ops: new SampleDevice(w.scheduler) });
    const client = await w.client(server);
    const ram = w.guestMemory(4 * MIB);
    const before = w.mappings();
    await client.ok(CMD.DMA_MAP, dmaMap(0, MIB, 0), [ram.descriptor]);
    await client.ok(CMD.DMA_MAP, dmaMap(0x4000_0000, 3 * MIB, MIB), [ram.descriptor]);
    expect(w.mappings()).toBe(before + 2);
    const { memory } = server.memory;
    ram.window.store64(8, 0x1111_2222, -1);
    expect([memory.load64(8), memory.lo, memory.hi]).toEqual([true, 0x1111_2222, -1]);
    memory.store(0x4000_0004, 4, 77);
    expect(ram.window.load(MIB + 4, 4)).toBe(77);
    expect([memory.compareExchange64(8, 0x1111_2222, -1, 5, 6), memory.compareExchange64(8, 0x1111_2222, -1, 7, 8)]).toEqual([true, false]);
    expect([ram.window.load(8, 4), ram.window.load(12, 4)]).toEqual([5, 6]);
    await client.ok(CMD.DMA_UNMAP, dmaUnmap(0, MIB));
    expect([memory.load(8, 4), memory.load(0x4000_0004, 4), w.mappings()]).toEqual([-1, 77, before + 1]);
    await w.leave(client, server);
    expect([memory.load(0x4000_0004, 4), w.mappings()]).toEqual([-1, before]);
  }));

  it('reaches memory that may shrink through its file: a truncated one is absent and nobody dies', () => inSocketWorld(async (w) => {
    const server = await w.serve({ ops: new SampleDevice(w.scheduler) });
    const client = await w.client(server);
    const ram = w.guestMemory(MIB, false);
    const before = w.mappings();
    await client.ok(CMD.DMA_MAP, dmaMap(0, MIB), [ram.descriptor]);
    expect(w.mappings()).toBe(before);
    const { memory } = server.memory;
    expect([memory.store(0x8_0000, 4, 9), memory.load(0x8_0000, 4), ram.window.load(0x8_0000, 4)]).toEqual([true, 9, 9]);
    expect([memory.store64(16, 1, 2), memory.load64(16), memory.lo, memory.hi, memory.compareExchange64(16, 1, 2, 3, 4), memory.load(20, 4)]).toEqual([true, true, 1, 2, true, 4]);
    expect([memory.fill(0x1000, 7, 0x20000), memory.load(0x20fff, 1), memory.copy(0x4_0000, 0x1000, 100), memory.load(0x4_0063, 1)]).toEqual([true, 7, true, 7]);
    w.calls.ftruncate(ram.descriptor, 4096);
    expect([memory.load(0x8_0000, 4), memory.load64(0x8_0000), memory.load(16, 4)]).toEqual([-1, false, 3]);
    expect((await client.ok(CMD.GET_INFO, infoRequest(16))).length).toBe(16);
  }));

  it('believes no descriptor: pipes, sockets, directories, devices, short files, missing rights', () => inSocketWorld(async (w) => {
    const server = await w.serve({ ops: new SampleDevice(w.scheduler) });
    const client = await w.client(server);
    const ram = w.guestMemory(8192);
    const readOnly = openSync(`/proc/self/fd/${ram.descriptor}`, 'r'), nothing = openSync('/dev/null', 'r+'), directory = openSync('/', 'r'), event = w.eventFd();
    const pair = new Int32Array(2);
    w.calls.socketpair(1, 1, 0, pair);
    const refusals = [];
    for (const fd of [event.fd, pair[0]!, nothing]) refusals.push(await client.errno(CMD.DMA_MAP, dmaMap(0, 4096), [fd]));
    refusals.push(await client.errno(CMD.DMA_MAP, dmaMap(0, 12288), [ram.descriptor]));
    refusals.push(await client.errno(CMD.DMA_MAP, dmaMap(0, 4096, 8192), [ram.descriptor]));
    refusals.push(await client.errno(CMD.DMA_MAP, dmaMap(0, 4096), [readOnly]));
    expect(refusals.map((errno) => [EINVAL, EACCES].includes(errno))).toEqual(refusals.map(() => true));
    expect(refusals.slice(-3)).toEqual([EINVAL, EINVAL, EACCES]);
    await client.errno(CMD.DMA_MAP, dmaMap(0x10_0000, 4096, 0, 1), [directory]);
    // reading is what it gives
    await client.ok(CMD.DMA_MAP, dmaMap(0, 8192, 0, 1), [readOnly]);
    expect([server.memory.memory.load(0, 4), server.memory.memory.store(0, 4, 1)]).toEqual([0, false]);
    for (const fd of [ram.descriptor, pair[1]!, nothing]) expect(await client.errno(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_TRIGGER), [fd])).toBe(EINVAL);
    for (const fd of pair) w.calls.close(fd);
    for (const fd of [readOnly, nothing, directory]) closeSync(fd);
  }));

  it('a file on a disk is reached too', () => inSocketWorld(async (w) => {
    const server = await w.serve({ ops: new SampleDevice(w.scheduler) });
    const client = await w.client(server);
    const path = join(w.directory, 'memory');
    writeFileSync(path, new Uint8Array(4096).fill(3));
    const fd = openSync(path, 'r+');
    await client.ok(CMD.DMA_MAP, dmaMap(0, 4096), [fd]);
    closeSync(fd);
    // on a file system that is not known for answering by itself it is absent, and messages do
    expect([3, -1]).toContain(server.memory.memory.load(100, 1));
  }));

  it('signals eventfds, also one that is full, and never waits for it', () => inSocketWorld(async (w) => {
    const device = new SampleDevice(w.scheduler);
    const server = await w.serve({ ops: device });
    const client = await w.client(server);
    // blocking, as the sample client's is
    const events = [w.eventFd(0), w.eventFd(), w.eventFd()];
    await client.ok(CMD.SET_IRQS, setIrqs(2, 0, 3, EVENTFD_TRIGGER), events.map(({ fd }) => fd));
    for (let i = 0; i < 3; i++) device.triggers.get(`2.${i}.trigger`)!.signal(i + 1);
    expect(events.map((event) => event.take())).toEqual([1, 2, 3]);
    events[0]!.write(0xffff_ffff_ffff_fffen);
    device.triggers.get('2.0.trigger')!.signal();
    expect((await client.ok(CMD.GET_INFO, infoRequest(16))).length).toBe(16);
    const unmask = w.eventFd();
    await client.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, 0x14), [unmask.fd]);
    const heard = new Promise<void>((resolve) => void device.triggers.get('0.0.unmask')!.listen(resolve));
    unmask.write(1n);
    await heard;
    await w.leave(client, server);
    expect(device.triggers.size).toBe(0);
  }));

  it('keeps descriptors with the message that they came with', () => inSocketWorld(async (w) => {
    const server = await w.serve({ ops: new SampleDevice(w.scheduler) });
    const client = await w.client(server);
    const ram = w.guestMemory(8192);
    // without a descriptor, with one, without: in one go
    client.write(message(100, CMD.DMA_MAP, dmaMap(0, 4096)));
    client.write(message(101, CMD.DMA_MAP, dmaMap(0x1000, 4096)), [ram.descriptor]);
    client.write(message(102, CMD.DMA_MAP, dmaMap(0x2000, 4096)));
    await client.ok(CMD.GET_INFO, infoRequest(16));
    expect(server.memory.regions.map(({ window }) => window !== undefined)).toEqual([false, true, false]);
  }));

  it('closes descriptors that nobody asked for, too many, or in the middle of a message', () => inSocketWorld(async (w) => {
    const server = await w.serve({ ops: new SampleDevice(w.scheduler) }, { limits: { maxDescriptors: 4 } });
    const client = await w.client(server);
    const ram = w.guestMemory(4096);
    const before = w.openDescriptors();
    expect(await client.errno(CMD.GET_INFO, infoRequest(16), [ram.descriptor])).toBe(0);
    expect(await client.errno(CMD.GET_INFO, infoRequest(16), Array.from({ length: 40 }, () => ram.descriptor))).toBe(EINVAL);
    expect(await client.errno(CMD.DMA_MAP, dmaMap(0, 4096), [ram.descriptor, ram.descriptor])).toBe(EINVAL);
    const split = message(300, CMD.GET_INFO, infoRequest(16));
    client.write(split.subarray(0, 20), [ram.descriptor]);
    client.write(split.subarray(20), [ram.descriptor]);
    expect((await client.ok(CMD.GET_INFO, infoRequest(16))).length).toBe(16);
    expect(w.openDescriptors()).toEqual(before);
  }));

  it('takes a message byte by byte, and ends a connection whose next message cannot be found', () => inSocketWorld(async (w) => {
    const server = await w.serve({ ops: new SampleDevice(w.scheduler) });
    const client = await w.client(server);
    const bytes = message(500, CMD.REGION_WRITE, regionWrite(1, 0, new Uint8Array([1, 2, 3])), NO_REPLY);
    for (const byte of bytes) client.write(new Uint8Array([byte]));
    expect((await client.ok(CMD.REGION_READ, regionAccess(1, 0, 3))).subarray(16)).toEqual(new Uint8Array([1, 2, 3]));
    for (const size of [0, 15, 0x7fff_ffff, 0xffff_ffff]) {
      await w.run(server.until(() => !server.busy || !client.ended));
      const liar = server.busy && !client.ended ? client : await w.client(server);
      liar.write(message(1, CMD.GET_INFO, new Uint8Array(0), 0, 0, size));
      await liar.until(() => liar.ended);
      await w.run(server.until(() => !server.busy));
    }
    expect((await (await w.client(server)).ok(CMD.GET_INFO, infoRequest(16))).length).toBe(16);
  }));

  it('a flood without reading is stopped by its own socket, and other devices are served meanwhile', () => inSocketWorld(async (w) => {
    const flooded = await w.serve({ ops: new SampleDevice(w.scheduler) }), other = await w.serve({ ops: new SampleDevice(w.scheduler) });
    const liar = await w.client(flooded);
    const read = concat(...Array.from({ length: 64 }, (_, i) => message(i, CMD.REGION_READ, regionAccess(1, 0, 0x3000))));
    // reads nothing: its watcher sleeps while we write in one turn
    let taken = 0;
    for (let i = 0; i < 2000 && liar.write(read); i++) taken++;
    const client = await w.client(other);
    expect((await client.ok(CMD.GET_INFO, infoRequest(16))).length).toBe(16);
    expect(taken).toBeLessThan(2000);
    await w.leave(liar, flooded);
    expect((await (await w.client(flooded)).ok(CMD.GET_INFO, infoRequest(16))).length).toBe(16);
  }));

  it('a client that dies in the middle of a message leaves nothing, and the next one finds the device as it was', () => inSocketWorld(async (w) => {
    const device = new SampleDevice(w.scheduler);
    const server = await w.serve({ ops: device });
    const ram = w.guestMemory(MIB);
    const before = w.openDescriptors();
    for (let i = 0; i < 5; i++) {
      const client = await w.client(server);
      await client.ok(CMD.DMA_MAP, dmaMap(0, MIB), [ram.descriptor]);
      const event = w.eventFd();
      await client.ok(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_TRIGGER), [event.fd]);
      const bar1 = await client.ok(CMD.REGION_READ, regionAccess(1, 0, 1));
      expect(bar1[16]).toBe(i);
      await client.ok(CMD.REGION_WRITE, regionWrite(1, 0, new Uint8Array([i + 1])));
      client.write(message(9, CMD.DMA_MAP, dmaMap(MIB, MIB)).subarray(0, 30), [ram.descriptor]);
      await w.leave(client, server);
      event.close();
    }
    expect([w.openDescriptors(), server.connections, device.opens, server.memory.regions.length]).toEqual([before, 5, 1, 0]);
  }));

  it('defects are seen: a descriptor that stays open, memory that stays mapped', () => inSocketWorld(async (w) => {
    const server = await w.serve({ ops: new SampleDevice(w.scheduler) }, { defects: new Set(['vfio-user.leak-descriptors', 'vfio-user.keep-windows']) });
    const client = await w.client(server);
    const ram = w.guestMemory(4096), event = w.eventFd();
    const before = w.openDescriptors(), mapped = w.mappings();
    await client.ok(CMD.DMA_MAP, dmaMap(0, 4096), [ram.descriptor]);
    await client.ok(CMD.GET_INFO, infoRequest(16), [event.fd]);
    await w.leave(client, server);
    const left = w.openDescriptors().filter((one) => !before.includes(one));
    expect([left.length, left[0]?.includes('eventfd'), w.mappings()]).toEqual([1, true, mapped + 1]);
    server.memory.disconnect();
    w.calls.close(Number(left[0]!.split(' ')[0]));
  }));

  it('a second client waits until the first has left', () => inSocketWorld(async (w) => {
    const server = await w.serve({ ops: new SampleDevice(w.scheduler) });
    const first = await w.client(server);
    const second = w.rawClient(server);
    const agreed = second.negotiate();
    await first.ok(CMD.GET_INFO, infoRequest(16));
    expect(server.connections).toBe(1);
    first.close();
    await agreed;
    expect(server.connections).toBe(2);
  }));

  it('a server takes over the name that a dead one left, not that of a living one or of a file', () => inSocketWorld(async (w) => {
    const dead = w.path();
    w.calls.close(listenUnix(w.calls, dead, unlinkSync, () => false));
    const server = await w.serve({ ops: new SampleDevice(w.scheduler) }, { path: dead });
    await w.client(server);
    await expect(w.serve({ ops: new SampleDevice(w.scheduler) }, { path: dead })).rejects.toThrow('EADDRINUSE');
    const file = join(w.directory, 'file');
    writeFileSync(file, '');
    await expect(w.serve({ ops: new SampleDevice(w.scheduler) }, { path: file })).rejects.toThrow('EADDRINUSE');
    await expect(w.serve({ ops: new SampleDevice(w.scheduler) }, { path: `/tmp/${'x'.repeat(200)}` })).rejects.toThrow('ENAMETOOLONG');
  }));

  it('a server that stops closes its client, its socket and its device; another one takes its place', () => inSocketWorld(async (w) => {
    const device = new SampleDevice(w.scheduler);
    const before = w.openDescriptors();
    const server = await w.serve({ ops: device });
    const client = await w.client(server);
    await w.run(server.stop());
    await client.until(() => client.ended);
    client.close();
    expect([device.opens, w.openDescriptors()]).toEqual([0, before]);
    const again = await w.serve({ ops: device }, { path: server.path });
    expect((await (await w.client(again)).ok(CMD.GET_INFO, infoRequest(16))).length).toBe(16);
  }));

  it('many devices live in one process', () => inSocketWorld(async (w) => {
    const before = w.openDescriptors().length;
    const ram = w.guestMemory(MIB);
    const served = [];
    for (let i = 0; i < 40; i++) {
      const device = new SampleDevice(w.scheduler);
      const server = await w.serve({ ops: device });
      served.push({ device, server, client: await w.client(server) });
    }
    await Promise.all(served.map(async ({ client }, i) => {
      await client.ok(CMD.DMA_MAP, dmaMap(i * MIB, MIB), [ram.descriptor]);
      await client.ok(CMD.REGION_WRITE, regionWrite(1, 0, new Uint8Array([i])));
    }));
    for (const [i, { device, server }] of served.entries()) {
      expect([device.bar1[0], server.memory.memory.has(i * MIB, MIB), server.memory.memory.has(((i + 1) % 40) * MIB, 1)]).toEqual([i, true, false]);
    }
    for (const { client, server } of served) await w.leave(client, server);
    // one listening socket each, and the memory of the test
    expect(w.openDescriptors().length).toBe(before + 40 + 1);
  }));

  it('a client that can use a second socket gets one for the server\'s messages', () => inSocketWorld(async (w) => {
    const device = new SampleDevice(w.scheduler);
    const server = await w.serve({ ops: device });
    const client = w.rawClient(server);
    const capabilities = jsonOf(await client.ok(CMD.VERSION, versionPayload(2, { capabilities: { ...QEMU_CAPABILITIES.capabilities, twin_socket: { supported: true } } }))).capabilities;
    expect(capabilities['twin_socket']).toEqual({ supported: true, fd_index: 0 });
    expect(client.descriptors).toHaveLength(1);
    const twin = w.hold(new RawClient(w.calls, client.descriptors[0]!));
    const done = new Promise((resolve) => server.memory.write(0xfee0_0000, pack([4, 0x21]), resolve));
    await twin.until(() => twin.commands.length === 1);
    const { id, command, payload } = twin.commands[0]!;
    expect([command, payload, client.commands]).toEqual([CMD.DMA_WRITE, pack([8, 0xfee0_0000], [8, 4], [4, 0x21]), []]);
    twin.write(message(id, command, payload.subarray(0, 16), 1));
    expect(await done).toBeUndefined();
    // a command has no place there
    twin.write(message(1, CMD.GET_INFO, infoRequest(16)));
    await client.until(() => client.ended);
  }));

  it('refuses another version by a reply, and closes', () => inSocketWorld(async (w) => {
    const server = await w.serve({ ops: new SampleDevice(w.scheduler) });
    const client = w.rawClient(server);
    const answer = await client.ask(CMD.VERSION, versionPayload(0, QEMU_CAPABILITIES, 1));
    expect([answer.flags & ERROR, answer.errno]).toEqual([ERROR, EINVAL]);
    await client.until(() => client.ended);
  }));

  it('memory above one mapping\'s size: windows of 1 GiB', () => inSocketWorld(async (w) => {
    const server = await w.serve({ ops: new SampleDevice(w.scheduler) });
    const client = await w.client(server);
    const size = 3 * 2 ** 30;
    const fd = w.calls.memfd_create('vfio-user-large', 3);
    w.calls.ftruncate(fd, size);
    w.calls.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
    await client.ok(CMD.DMA_MAP, dmaMap(0, size), [fd]);
    const { memory } = server.memory;
    const edge = 2 ** 30, bytes = Uint8Array.from({ length: 16 }, (_, i) => i + 1), back = new Uint8Array(16);
    expect([memory.write(edge - 8, bytes, 0, 16), memory.read(edge - 8, back, 0, 16), [...back]]).toEqual([true, true, [...bytes]]);
    expect([memory.load(edge, 1), memory.store64(size - 8, 7, 8), memory.load(size - 4, 4), memory.load(size, 1)]).toEqual([9, true, 8, -1]);
    w.calls.close(fd);
  }));
});
