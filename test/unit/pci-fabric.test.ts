/** The fabric: splitting, rights, interrupts, peer-to-peer, held operations, removal, ordering. */
import { describe, expect, it } from 'vitest';
import { PlainMmio, type AccessSize } from '../../sim/mmio.js';
import { Random } from '../../sim/random.js';
import { DMA_DONE, DMA_HELD, DMA_REVOKED, DMA_UR, NO_PASID, ATTR_EXECUTE, ATTR_TRANSLATED } from '../../host/pci/dma-port.js';
import { HoldingPort } from '../../host/pci/hardware/holding-port.js';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { bytes, createWorld, enableSva, findExtCapability, Listener, plugSva, svaFunction, type World } from './pci-world.js';

function plug(world: World, more: Parameters<typeof svaFunction>[1] = {}, devfn = 8) {
  const client = new Listener(world.clock);
  const fn = new PciFunction(svaFunction(client, { name: `dev${devfn}`, ...more }));
  world.complex.insert(world.root, devfn, fn);
  enableSva(fn);
  return { client, fn, port: fn.port };
}

describe('memory requests', () => {
  it('move bytes untranslated where no agent is', () => {
    const world = createWorld(), { port } = plug(world);
    const data = bytes(10_000), back = new Uint8Array(10_000);
    expect(port.write(3, 0x123, data, 0, 10_000, NO_PASID, 0)).toBe(DMA_DONE);
    world.memory.read(0x3123, back, 0, 10_000);
    expect(back).toEqual(data);
    expect(port.doneBytes).toBe(10_000);
    expect(port.costNs).toBe(150 + Math.ceil(10_000 / 24));
    back.fill(0);
    expect(port.read(3, 0x123, back, 0, 10_000, NO_PASID, 0)).toBe(DMA_DONE);
    expect(back).toEqual(data);
    expect(port.costNs).toBe(300 + Math.ceil(10_000 / 24));
  });

  it('translate each page, merge neighbours, and stop at the first page that is refused', () => {
    const world = createWorld(), { port } = plug(world);
    world.fabric.setAgent(8, world.agent);
    world.agent.map(5, 0x7000, 0x20);
    world.agent.map(5, 0x7001, 0x21);
    world.agent.map(5, 0x7002, 0x40);
    const data = bytes(4 * 4096);
    expect(port.write(0x7000, 100, data, 0, 4 * 4096 - 100, 5, 0)).toBe(DMA_UR);
    expect(port.doneBytes).toBe(3 * 4096 - 100);
    expect(port.costNs).toBe(150 + 4 * 4 * 80 + Math.ceil((3 * 4096 - 100) / 24));
    const back = new Uint8Array(8192 - 100);
    world.memory.read(0x20 * 4096 + 100, back, 0, back.length);
    expect(back).toEqual(data.subarray(0, back.length));
    world.memory.read(0x40 * 4096, back, 0, 4096);
    expect(back.subarray(0, 4096)).toEqual(data.subarray(8092, 8092 + 4096));
  });

  it('record every page that moves while a checker watches, and only then', () => {
    const world = createWorld(), { port } = plug(world);
    port.write(3, 0, bytes(8192), 0, 8192, NO_PASID, 0);
    expect(world.records('pci:dma')).toHaveLength(0);
    const hash = world.trace.hash;
    world.fabric.watchDma = true;
    port.write(3, 0, bytes(8192), 0, 8192, NO_PASID, 0);
    expect(world.records('pci:dma')).toEqual([[8, -1, 3, 3, 4096, 1, 0], [8, -1, 4, 4, 4096, 1, 0]]);
    expect(world.trace.hash).toBe(hash);
  });

  it('are refused where nothing is, all or nothing per page', () => {
    const world = createWorld({ memoryBytes: 0x10_000 }), { port } = plug(world);
    expect(port.write(0xf, 0, bytes(8192), 0, 8192, NO_PASID, 0)).toBe(DMA_UR);
    expect(port.doneBytes).toBe(0);
  });

  it('are revoked without bus mastering, and again possible with it', () => {
    const world = createWorld(), { fn, port } = plug(world);
    fn.config.write(0x04, 2, 0x2);
    expect(port.revoked).toBe(true);
    expect(port.write(3, 0, bytes(4), 0, 4, NO_PASID, 0)).toBe(DMA_REVOKED);
    expect(world.memory.load(0x3000, 4)).toBe(0);
    fn.config.write(0x04, 2, 0x6);
    expect(port.write(3, 0, bytes(4), 0, 4, NO_PASID, 0)).toBe(DMA_DONE);
  });

  it('are caught when a device ignores bus mastering (defect pci.ignore-bus-master)', () => {
    const world = createWorld(), { fn, port } = plug(world, { defects: new Set(['pci.ignore-bus-master']) });
    fn.config.write(0x04, 2, 0x2);
    expect(port.write(3, 0, bytes(4), 0, 4, NO_PASID, 0)).toBe(DMA_DONE);
  });
});

describe('what a function may send', () => {
  it('no PASID before it is enabled, none beyond its width, no mode bits that are off (PCIe 6.0 section 7.8.9.3)', () => {
    const world = createWorld(), { fn, port } = plug(world, { pasid: { width: 8, exec: true, priv: false } });
    const pasid = findExtCapability(fn, 0x1b) + 6;
    const write = (value: number, attributes = 0) => port.write(3, 0, bytes(4), 0, 4, value, attributes);
    expect([write(1), write(255), write(256), write(1, ATTR_EXECUTE), write(1, 1)]).toEqual([DMA_DONE, DMA_DONE, DMA_UR, DMA_DONE, DMA_UR]);
    fn.config.write(pasid, 2, 0x1);
    expect([write(1), write(1, ATTR_EXECUTE)]).toEqual([DMA_DONE, DMA_UR]);
    fn.config.write(pasid, 2, 0x0);
    expect([write(1), write(NO_PASID)]).toEqual([DMA_UR, DMA_DONE]);
  });

  it('no PASID where it cannot send prefixes (E38)', () => {
    const world = createWorld(), { port } = plug(world, { e2eTlpPrefix: false });
    expect(port.write(3, 0, bytes(4), 0, 4, 1, 0)).toBe(DMA_UR);
  });

  it('no translation requests and no translated requests without ATS (section 10.2)', () => {
    const world = createWorld(), { fn, port } = plug(world);
    world.fabric.setAgent(8, world.agent);
    world.agent.map(1, 7, 9);
    expect(port.translate(7, 1, 0)).toBe(DMA_DONE);
    expect([port.translation.page, port.translation.read, port.costNs]).toEqual([9, true, 300 + 320]);
    expect(port.write(9, 0, bytes(4), 0, 4, NO_PASID, ATTR_TRANSLATED)).toBe(DMA_DONE);
    fn.config.write(findExtCapability(fn, 0x0f) + 6, 2, 0);
    expect(port.translate(7, 1, 0)).toBe(DMA_UR);
    expect(port.write(9, 0, bytes(4), 0, 4, NO_PASID, ATTR_TRANSLATED)).toBe(DMA_UR);
  });

  it('is caught when a device bypasses its ATS enable (defect pci.translated-without-ats)', () => {
    const world = createWorld(), { fn, port } = plug(world, { defects: new Set(['pci.translated-without-ats']) });
    world.fabric.setAgent(8, world.agent);
    fn.config.write(findExtCapability(fn, 0x0f) + 6, 2, 0);
    expect(port.write(9, 0, bytes(4), 0, 4, NO_PASID, ATTR_TRANSLATED)).toBe(DMA_DONE);
  });

  it('no page requests while PRI is off', () => {
    const world = createWorld(), { fn, port } = plug(world);
    world.fabric.setAgent(8, world.agent);
    expect(port.pageRequest(7, 1, true, 3, 1)).toBe(DMA_DONE);
    fn.config.write(findExtCapability(fn, 0x13) + 4, 2, 0);
    expect(port.pageRequest(7, 1, true, 3, 1)).toBe(DMA_UR);
    expect(world.agent.requests).toHaveLength(1);
  });
});

describe('targets that are not memory', () => {
  it('takes an aligned 4-byte write to the interrupt window as a message, nothing else (section 6.1.4)', () => {
    const world = createWorld(), { port } = plug(world);
    expect(port.messageInterrupt(0xfee0_1000, 0x8041)).toBe(DMA_DONE);
    expect(world.messages).toEqual([{ address: 0xfee0_1000, data: 0x8041, sourceId: 8 }]);
    expect(port.write(0xfee01, 0, bytes(8), 0, 8, NO_PASID, 0)).toBe(DMA_UR);
    expect(port.write(0xfee01, 2, bytes(4), 0, 4, NO_PASID, 0)).toBe(DMA_UR);
    expect(port.read(0xfee01, 0, new Uint8Array(4), 0, 4, NO_PASID, 0)).toBe(DMA_UR);
    expect(world.messages).toHaveLength(1);
  });

  it('reaches another function\'s registers (peer to peer)', () => {
    class Store extends PlainMmio {
      readonly bytes = new Uint8Array(4096);
      read(offset: number, size: AccessSize): number {
        const view = new DataView(this.bytes.buffer);
        this.high = size === 8 ? view.getUint32(offset + 4, true) : 0;
        return size === 1 ? this.bytes[offset]! : size === 2 ? view.getUint16(offset, true) : view.getUint32(offset, true);
      }
      write(offset: number, size: AccessSize, lo: number, hi = 0): void {
        for (let i = 0; i < size; i++) this.bytes[offset + i] = (i < 4 ? lo : hi) >>> (8 * (i & 3));
      }
    }
    const world = createWorld(), store = new Store(), { port } = plug(world);
    world.systemBus.claim(0xe000_0000, 4096, 'peer', store);
    const data = bytes(205), back = new Uint8Array(205);
    expect(port.write(0xe0000, 3, data, 0, 205, NO_PASID, 0)).toBe(DMA_DONE);
    expect(store.bytes.subarray(3, 208)).toEqual(data);
    expect(port.read(0xe0000, 3, back, 0, 205, NO_PASID, 0)).toBe(DMA_DONE);
    expect(back).toEqual(data);
    expect(port.write(0xe0000, 4000, data, 0, 205, NO_PASID, 0)).toBe(DMA_UR);
  });
});

describe('held operations', () => {
  function held() {
    const world = createWorld(), device = plug(world);
    world.fabric.setAgent(8, world.agent);
    for (let i = 0; i < 4; i++) world.agent.map(5, 0x70 + i, 0x20 + 2 * i);
    world.agent.holdPage = 0x72;
    const data = bytes(4 * 4096);
    const status = device.port.write(0x70, 0, data, 0, data.length, 5, 0);
    return { world, data, status, token: device.port.heldToken, ...device };
  }

  it('carry on from the page that was held, when the agent says retry', () => {
    const { world, data, status, token, client, fn, port } = held();
    expect([status, port.doneBytes]).toEqual([DMA_HELD, 8192]);
    expect(fn.config.read(0x40 + 0xa, 2)).toBe(0x20); // transactions pending
    world.fabric.releaseHeld(world.agent.heldToken, 'retry');
    expect(client.ended).toEqual([]);
    world.clock.run();
    expect(client.ended.map(({ token: t, status: s }) => [t, s])).toEqual([[token, DMA_DONE]]);
    expect(fn.config.read(0x40 + 0xa, 2)).toBe(0);
    const back = new Uint8Array(4096);
    for (let i = 0; i < 4; i++) {
      world.memory.read((0x20 + 2 * i) * 4096, back, 0, 4096);
      expect(back).toEqual(data.subarray(i * 4096, (i + 1) * 4096));
    }
  });

  it('keep the function\'s token when they are held a second time', () => {
    const { world, token, client } = held();
    const first = world.agent.heldToken;
    world.agent.holdPage = 0x72;
    world.fabric.releaseHeld(first, 'retry');
    world.clock.run();
    expect(client.ended).toEqual([]);
    world.fabric.releaseHeld(world.agent.heldToken, DMA_UR);
    world.clock.run();
    expect(client.ended.map(({ token: t, status }) => [t, status])).toEqual([[token, DMA_UR]]);
  });

  it('end as revoked when bus mastering goes; a late release finds nothing', () => {
    const { world, token, client, fn } = held();
    fn.config.write(0x04, 2, 0x2);
    world.fabric.releaseHeld(world.agent.heldToken, 'retry');
    world.clock.run();
    expect(client.ended.map(({ token: t, status }) => [t, status])).toEqual([[token, DMA_REVOKED]]);
    expect(world.memory.load(0x24 * 4096, 4)).toBe(0);
  });

  it('end as revoked on a function level reset', () => {
    const { world, client, fn } = held();
    fn.reset('flr');
    world.clock.run();
    expect(client.ended.map(({ status }) => status)).toEqual([DMA_REVOKED]);
    expect(world.fabric.heldCount).toBe(0);
  });
});

describe('messages to a function', () => {
  it('arrive as events, a TLP later, in the order they were sent, whatever the jitter (section 2.4.1)', () => {
    for (let seed = 0; seed < 20; seed++) {
      const world = createWorld({ jitter: 0.9, seed }), { client } = plug(world);
      world.fabric.setAgent(8, world.agent);
      for (let i = 0; i < 10; i++) {
        expect(world.fabric.invalidate(8, i, i, 1, 5, false)).toBe(true);
        expect(world.fabric.pageResponse(8, i, 0, 5)).toBe(true);
      }
      expect(client.order).toEqual([]);
      world.clock.run();
      expect(client.order).toEqual(Array.from({ length: 20 }, (_, i) => (i % 2 === 0 ? `invalidate ${i / 2}` : `response ${(i - 1) / 2}`)));
      expect(client.invalidations[0]!.timeNs).toBeGreaterThanOrEqual(150);
    }
  });

  it('are refused for a function that is not there, and for one without ATS', () => {
    const world = createWorld();
    plug(world);
    const client = new Listener(world.clock);
    world.complex.insert(world.root, 0x18, new PciFunction({ name: 'plain', vendorId: 1, deviceId: 1, classCode: 0, client, flr: false, e2eTlpPrefix: false }));
    expect([world.fabric.invalidate(0x10, 0, 0, 1, 5, false), world.fabric.invalidate(0x18, 0, 0, 1, 5, false), world.fabric.pageResponse(0x10, 0, 0, 5)]).toEqual([false, false, false]);
  });
});

describe('removal', () => {
  it('makes a function absent at once: all ones, revoked, held operations ended, invalidations unanswered (2g)', () => {
    const world = createWorld(), { client, fn, port } = plug(world);
    world.fabric.setAgent(8, world.agent);
    world.agent.holdPage = 7;
    expect(port.write(7, 0, bytes(4), 0, 4, 5, 0)).toBe(DMA_HELD);
    expect(world.complex.configRead(0, 8, 0, 4)).toBe(0x0b25_8086);
    world.fabric.invalidate(8, 1, 0, 1, 5, false);
    world.complex.remove(fn, { surprise: true });
    expect(world.complex.configRead(0, 8, 0, 4)).toBe(0xffff_ffff);
    world.complex.configWrite(0, 8, 4, 2, 0x6);
    expect([port.revoked, port.write(7, 0, bytes(4), 0, 4, 5, 0), fn.present]).toEqual([true, DMA_REVOKED, false]);
    expect(world.fabric.invalidate(8, 2, 0, 1, 5, false)).toBe(false);
    world.clock.run();
    expect(client.ended.map(({ status }) => status)).toEqual([DMA_REVOKED]);
    expect([client.invalidations, world.agent.completions]).toEqual([[], []]);
    expect(world.records('pci:remove')).toEqual([[8, 1]]);
  });

  it('takes the windows of its BARs off the system bus', () => {
    const world = createWorld(), { fn } = plug(world, { bars: [{ index: 0, sizeBytes: 4096, prefetchable: false, is64: false }] });
    fn.config.write(0x10, 4, 0xe000_0000);
    expect(world.systemBus.list()).toHaveLength(1);
    world.complex.remove(fn, { surprise: false });
    expect(world.systemBus.list()).toHaveLength(0);
  });
});

describe('a port that holds at random', () => {
  it('still moves every byte of every operation', () => {
    const world = createWorld();
    let holding: HoldingPort | undefined;
    const { requester } = plugSva(world, {
      wrapPort: (port) => (holding = new HoldingPort({ port, clock: world.clock, random: new Random(3), probability: 0.5, maxHoldNs: 5_000 })),
    });
    world.serve();
    const data = bytes(40_000), back = new Uint8Array(40_000);
    const status = world.run((function* () {
      for (let at = 0; at < 40_000; at += 5_000) yield* requester.write(0x900 + (at >> 12), at & 4095, data, at, 5_000, 7, 0, true);
      return (yield* requester.read(0x900, 0, back, 0, 40_000, 7, 0, true)).status;
    })());
    expect(status).toBe('done');
    expect(back).toEqual(data);
    expect(holding!.holds).toBeGreaterThan(0);
  });
});
