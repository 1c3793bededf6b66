import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { describe, expect, it, onTestFinished } from 'vitest';
import { ioFor, type Output } from '../../cli/io.js';
import { serve } from '../../cli/serve.js';
import { posixCalls, SharedMemory } from '../../vfio/user/posix/index.js';
import { RawClient, SocketWorld, unavailable } from '../vfio-user/socket-world.js';
import { CMD, dmaMap, QEMU_CAPABILITIES } from '../vfio-user/wire.js';
import { MIB } from './served-world.js';

class Text implements Output {
  text = '';

  write(more: string): boolean {
    this.text += more;
    return true;
  }

  once(): void {}
}

const TOPOLOGY = `
version: 1
guests:
  - name: linux
    external:
      iommu: { model: intel-vtd }
      devices:
        - { model: nvme, name: disk, bdf: "0000:00:03.0", size: 1MiB }
`;

describe.skipIf(unavailable !== undefined)('vfiosim serve', () => {
  it.each([[true, 0], [false, 1]])('serves one machine to its end (memory with a descriptor: %s); says once what is missing', async (descriptor, warnings) => {
    const world = new SocketWorld();
    onTestFinished(() => world.end());
    const file = join(world.directory, 'guest.yaml'), out = new Text(), err = new Text();
    writeFileSync(file, TOPOLOGY);
    const listeners = (): number => ['SIGINT', 'SIGTERM', 'SIGHUP'].reduce((sum, signal) => sum + process.listenerCount(signal), 0);
    const before = listeners();
    const code = serve(ioFor(out, err, {}), file, { dir: join(world.directory, 'sockets'), once: true });
    while (!out.text.includes('disk.sock')) await turn();
    const ram = world.hold(new SharedMemory(posixCalls(), world.name, MIB));
    const clients: RawClient[] = [];
    for (const name of ['iommu', 'disk']) {
      const client = world.hold(new RawClient(world.calls, join(world.directory, 'sockets', `linux-${name}.sock`)));
      clients.push(await client.negotiate(QEMU_CAPABILITIES));
      await client.ok(CMD.DMA_MAP, dmaMap(0, MIB), descriptor ? [ram.descriptor] : []);
    }
    while (!err.text.includes('attached')) await turn();
    for (const client of clients) client.close();
    expect(await code).toBe(0);
    expect(err.text.split('passed no descriptor for its memory').length - 1).toBe(warnings);
    expect(err.text).toContain('left');
    expect(listeners()).toBe(before);
  });

  it('ends, too, when a monitor has died between two of its connections', async () => {
    const world = new SocketWorld();
    onTestFinished(() => world.end());
    const file = join(world.directory, 'guest.yaml'), out = new Text(), err = new Text();
    writeFileSync(file, TOPOLOGY);
    const code = serve(ioFor(out, err, {}), file, { dir: join(world.directory, 'sockets'), once: true });
    while (!out.text.includes('disk.sock')) await turn();
    const client = world.hold(new RawClient(world.calls, join(world.directory, 'sockets', 'linux-iommu.sock')));
    await client.negotiate(QEMU_CAPABILITIES);
    client.close();
    expect(await code).toBe(0);
    expect(err.text).toContain('left');
  });

  it('goes on when its recording cannot be written any more, and says so at once', async () => {
    const world = new SocketWorld();
    onTestFinished(() => world.end());
    const file = join(world.directory, 'guest.yaml'), out = new Text(), err = new Text();
    writeFileSync(file, TOPOLOGY);
    const code = serve(ioFor(out, err, {}), file, { dir: join(world.directory, 'sockets'), record: '/dev/full' });
    while (!out.text.includes('Start it with')) await turn();
    expect(err.text).toMatch(/^--record: \/dev\/full cannot be written: no space left\n$/);
    process.emit('SIGTERM');
    expect(await code).toBe(2);
  });
});

describe.skipIf(unavailable !== undefined)('what the event loop calls', () => {
  it('hands its errors to who reports them, and is called again', async () => {
    const world = new SocketWorld();
    onTestFinished(() => world.end());
    const event = world.eventFd();
    const bugs: unknown[] = [];
    const watcher = world.calls.watch(event.fd, { readable: true }, () => {
      if (bugs.length === 1) event.take();
      throw new Error('ours');
    }, (error) => bugs.push(error));
    event.write(1n);
    while (bugs.length < 2) await turn();
    watcher.close();
    expect(String(bugs[1])).toContain('ours');
  });
});
