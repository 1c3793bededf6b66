/** Routing by bus numbers and windows, access control services, resets from above: PCIe 6.0 sections 6.6.1, 6.12, 7.3.3. */
import { describe, expect, it } from 'vitest';
import { UnclaimedMmio } from '../../host/pci/hardware/unclaimed-mmio.js';
import { ATTR_TRANSLATED, DMA_DONE, DMA_REVOKED, DMA_UR, NO_PASID } from '../../host/pci/dma-port.js';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { PciPort } from '../../host/pci/hardware/pci-port.js';
import { EcamWindow } from '../../host/pci/hardware/root-complex.js';
import { bytes, createWorld, enableSva, findExtCapability, Listener, svaFunction, type World } from '../unit/pci-world.js';

const ACS_ALL = 0x5f;

/** Counts what reaches a function's registers. */
class Probe extends UnclaimedMmio {
  writes = 0;
  override write(): void {
    this.writes++;
  }
}

/** Root port 00:01.0 → switch (upstream 01:00.0, downstream 02:00.0 and 02:01.0) → endpoints 03:00.0, 04:00.0. */
function switchWorld() {
  const world = createWorld();
  const rootPort = new PciPort({ name: 'rp', type: 4, e2eTlpPrefix: true, acs: 0x1f });
  const upstream = new PciPort({ name: 'up', type: 5, e2eTlpPrefix: true });
  const down = [0, 1].map((i) => new PciPort({ name: `down${i}`, type: 6, e2eTlpPrefix: true, acs: ACS_ALL | 0x20, egressPorts: 8, portNumber: i + 1 }));
  const probes = [new Probe(), new Probe()];
  const clients = [new Listener(world.clock), new Listener(world.clock)];
  const fns = [0, 1].map((i) => new PciFunction(svaFunction(clients[i]!, { name: `ep${i}`, deviceType: 0, bars: [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: false, mmio: probes[i]! }] })));
  world.complex.insert(world.root, 0x08, rootPort);
  world.complex.insert(rootPort.secondary, 0, upstream);
  down.forEach((port, i) => world.complex.insert(upstream.secondary, i << 3, port));
  fns.forEach((fn, i) => world.complex.insert(down[i]!.secondary, 0, fn));
  world.fabric.setAgent(() => true, world.agent);
  const bridge = (bus: number, devfn: number, buses: number, memory: number): void => {
    world.complex.configWrite(bus, devfn, 0x18, 4, buses);
    world.complex.configWrite(bus, devfn, 0x20, 4, memory);
    world.complex.configWrite(bus, devfn, 0x04, 2, 0x6);
  };
  bridge(0, 0x08, 0x040100, 0xe010_e000);
  bridge(1, 0x00, 0x040201, 0xe010_e000);
  bridge(2, 0x00, 0x030302, 0xe000_e000);
  bridge(2, 0x08, 0x040402, 0xe010_e010);
  world.complex.configWrite(3, 0, 0x10, 4, 0xe000_0000);
  world.complex.configWrite(4, 0, 0x10, 4, 0xe010_0000);
  for (const fn of fns) enableSva(fn);
  return { world, rootPort, upstream, down, fns, probes, clients };
}

function setAcs(world: World, bus: number, devfn: number, services: number): void {
  world.complex.configWrite(bus, devfn, 0x106, 2, services);
}

describe('configuration requests', () => {
  it('reach who software numbered, all ones elsewhere (section 7.3.3)', () => {
    const { world, fns } = switchWorld();
    const id = (bus: number, devfn: number) => world.complex.configRead(bus, devfn, 0, 4);
    expect([id(0, 8), id(1, 0), id(2, 0), id(2, 8), id(3, 0), id(4, 0)]).toEqual([0x000c_1b36, 0x000c_1b36, 0x000c_1b36, 0x000c_1b36, 0x0b25_8086, 0x0b25_8086]);
    expect([id(0, 0), id(3, 1), id(3, 8), id(5, 0), id(1, 8)]).toEqual(Array.from({ length: 5 }, () => 0xffff_ffff));
    expect(fns.map((fn) => fn.requesterId)).toEqual([0x300, 0x400]);
    const ecam = new EcamWindow(world.complex);
    expect(ecam.read((4 << 20) | 0x2, 2)).toBe(0x0b25);
    ecam.write((4 << 20) | 0x3c, 1, 0x55);
    expect(ecam.read((4 << 20) | 0x3c, 1)).toBe(0x55);
  });

  it('follow a change of bus numbers, and so do requester ids and messages', () => {
    const { world, fns, clients } = switchWorld();
    world.complex.configWrite(0, 8, 0x1a, 1, 0x20);
    world.complex.configWrite(1, 0, 0x1a, 1, 0x20);
    world.complex.configWrite(2, 8, 0x18, 4, 0x101002);
    expect([world.complex.configRead(4, 0, 0, 4), world.complex.configRead(0x10, 0, 0, 4)]).toEqual([0xffff_ffff, 0x0b25_8086]);
    expect(fns[1]!.requesterId).toBe(0x1000);
    expect([world.fabric.pageResponse(0x400, 1, 0, 5), world.fabric.pageResponse(0x1000, 2, 0, 5)]).toEqual([false, true]);
    world.clock.run();
    expect(clients[1]!.responses.map(({ prgIndex }) => prgIndex)).toEqual([2]);
  });

  it('say so when a device has several functions', () => {
    const world = createWorld(), client = new Listener(world.clock);
    const fns = [0, 1].map((i) => new PciFunction(svaFunction(client, { name: `f${i}` })));
    world.complex.insert(world.root, 0x10, fns[0]!);
    expect(world.complex.configRead(0, 0x10, 0x0e, 1)).toBe(0);
    world.complex.insert(world.root, 0x11, fns[1]!);
    expect([world.complex.configRead(0, 0x10, 0x0e, 1), world.complex.configRead(0, 0x11, 0x0e, 1)]).toEqual([0x80, 0x80]);
    fns[0]!.reset('flr');
    expect(world.complex.configRead(0, 0x10, 0x0e, 1)).toBe(0x80);
  });
});

describe('memory below bridges', () => {
  it('is reached inside the windows of every bridge with memory space enabled only', () => {
    const { world } = switchWorld();
    const names = () => world.systemBus.list().map((window) => window.name);
    expect(names()).toEqual(['ep0 BAR 0', 'ep1 BAR 0']);
    world.complex.configWrite(2, 0, 0x04, 2, 0x4);
    expect(names()).toEqual(['ep1 BAR 0']);
    world.complex.configWrite(2, 0, 0x04, 2, 0x6);
    world.complex.configWrite(0, 8, 0x20, 4, 0xe000_e000);
    expect(names()).toEqual(['ep0 BAR 0']);
  });

  it('is not reached by DMA from below without bus mastering in every bridge', () => {
    const { world, fns } = switchWorld(), { port } = fns[0]!;
    world.agent.map(NO_PASID, 5, 6);
    expect(port.write(5, 0, bytes(4), 0, 4, NO_PASID, 0)).toBe(DMA_DONE);
    world.complex.configWrite(1, 0, 0x04, 2, 0x2);
    expect([port.write(5, 0, bytes(4), 0, 4, NO_PASID, 0), port.revoked]).toEqual([DMA_UR, false]);
  });

  it('takes no PASID prefix when one port of the path does not (E38)', () => {
    const world = createWorld();
    const port = new PciPort({ name: 'rp', type: 4, e2eTlpPrefix: false });
    const fn = new PciFunction(svaFunction(new Listener(world.clock), { deviceType: 0 }));
    world.complex.insert(world.root, 8, port);
    world.complex.insert(port.secondary, 0, fn);
    world.complex.configWrite(0, 8, 0x18, 4, 0x010100);
    world.complex.configWrite(0, 8, 0x04, 2, 0x6);
    enableSva(fn);
    expect([fn.port.write(5, 0, bytes(4), 0, 4, 1, 0), fn.port.write(5, 0, bytes(4), 0, 4, NO_PASID, 0)]).toEqual([DMA_UR, DMA_DONE]);
  });
});

describe('access control services (section 6.12)', () => {
  const PEER = 0xe0100;

  it('without redirect: a switch delivers to the peer, past the IOMMU (why such functions share a group)', () => {
    const { fns, probes } = switchWorld();
    expect(fns[0]!.port.write(PEER, 0, bytes(4), 0, 4, NO_PASID, 0)).toBe(DMA_DONE);
    expect(probes[1]!.writes).toBe(1);
  });

  it('P2P request redirect sends the same request to the root complex, where the agent refuses it', () => {
    const { world, fns, probes } = switchWorld();
    setAcs(world, 2, 0, 0x4);
    expect(fns[0]!.port.write(PEER, 0, bytes(4), 0, 4, NO_PASID, 0)).toBe(DMA_UR);
    expect(probes[1]!.writes).toBe(0);
    world.agent.map(NO_PASID, PEER, PEER);
    expect(fns[0]!.port.write(PEER, 0, bytes(4), 0, 4, NO_PASID, 0)).toBe(DMA_DONE);
    expect(probes[1]!.writes).toBe(1);
  });

  it('direct translated P2P lets translated requests through in spite of the redirect', () => {
    const { world, fns } = switchWorld();
    setAcs(world, 2, 0, 0x4);
    const write = () => fns[0]!.port.write(PEER, 0, bytes(4), 0, 4, NO_PASID, ATTR_TRANSLATED);
    expect([write(), world.agent.translatedPages]).toEqual([DMA_DONE, [PEER]]);
    setAcs(world, 2, 0, 0x44);
    expect([write(), world.agent.translatedPages]).toEqual([DMA_DONE, [PEER]]);
  });

  it('egress control refuses requests to the ports in its vector, or redirects them with RR', () => {
    const { world, fns, probes } = switchWorld();
    world.complex.configWrite(2, 0, 0x108, 4, 1 << 2);
    world.agent.map(NO_PASID, PEER, PEER);
    setAcs(world, 2, 0, 0x20);
    expect([fns[0]!.port.write(PEER, 0, bytes(4), 0, 4, NO_PASID, 0), probes[1]!.writes]).toEqual([DMA_UR, 0]);
    setAcs(world, 2, 0, 0x24);
    expect([fns[0]!.port.write(PEER, 0, bytes(4), 0, 4, NO_PASID, 0), probes[1]!.writes]).toEqual([DMA_DONE, 1]);
    world.agent.unmap(NO_PASID, PEER);
    expect(fns[0]!.port.write(PEER, 0, bytes(4), 0, 4, NO_PASID, 0)).toBe(DMA_UR);
    world.complex.configWrite(2, 0, 0x108, 4, 0);
    expect(fns[0]!.port.write(PEER, 0, bytes(4), 0, 4, NO_PASID, 0)).toBe(DMA_DONE);
  });

  it('translation blocking denies everything whose address type is not untranslated', () => {
    const { world, fns } = switchWorld(), { port } = fns[0]!;
    world.agent.map(1, 5, 6);
    expect([port.translate(5, 1, 0), port.write(6, 0, bytes(4), 0, 4, NO_PASID, ATTR_TRANSLATED)]).toEqual([DMA_DONE, DMA_DONE]);
    for (const [bus, devfn] of [[2, 0], [0, 8]] as const) {
      setAcs(world, bus, devfn, 0x2);
      expect([port.translate(5, 1, 0), port.write(6, 0, bytes(4), 0, 4, NO_PASID, ATTR_TRANSLATED), port.write(5, 0, bytes(4), 0, 4, 1, 0)]).toEqual([DMA_UR, DMA_UR, DMA_DONE]);
      setAcs(world, bus, devfn, 0);
    }
    setAcs(world, 2, 8, 0x2);
    expect(port.translate(5, 1, 0)).toBe(DMA_DONE);
  });

  it('source validation refuses a requester id outside the port\'s bus range', () => {
    const { world, fns } = switchWorld(), { port } = fns[0]!;
    const write = () => port.write(5, 0, bytes(4), 0, 4, NO_PASID, 0);
    world.agent.map(NO_PASID, 5, 6);
    fns[0]!.forgeRequesterId(0x400);
    expect(write()).toBe(DMA_DONE);
    setAcs(world, 2, 0, 0x1);
    expect(write()).toBe(DMA_UR);
    fns[0]!.forgeRequesterId(undefined);
    expect(write()).toBe(DMA_DONE);
    fns[0]!.forgeRequesterId(0x400);
    expect(write()).toBe(DMA_UR);
  });
});

describe('from above', () => {
  it('a secondary bus reset resets everything below and nothing beside (section 6.6.1)', () => {
    const { world, fns } = switchWorld();
    world.complex.configWrite(2, 0, 0x3e, 2, 0x40);
    expect([fns[0]!.atsEnabled, fns[0]!.busMaster, fns[1]!.atsEnabled]).toEqual([false, false, true]);
    expect(world.records('pci:flr')).toHaveLength(1);
    world.complex.configWrite(0, 8, 0x3e, 2, 0x40);
    expect([fns[1]!.atsEnabled, world.complex.configRead(1, 0, 0x18, 4), world.complex.configRead(3, 0, 0, 4)]).toEqual([false, 0, 0xffff_ffff]);
  });

  it('removing a bridge takes all functions below with it', () => {
    const { world, rootPort, fns } = switchWorld();
    world.complex.remove(rootPort, { surprise: true });
    expect(fns.map((fn) => fn.port.write(5, 0, bytes(4), 0, 4, NO_PASID, 0))).toEqual([DMA_REVOKED, DMA_REVOKED]);
    expect([world.systemBus.list(), world.complex.functions()]).toEqual([[], []]);
    expect(world.records('pci:remove')).toEqual([[0x300, 1], [0x400, 1]]);
    expect(world.complex.configRead(0, 8, 0, 4)).toBe(0xffff_ffff);
  });
});

describe('virtual functions', () => {
  it('stand at offset and stride from the physical one, on a following bus too, with slices of its VF BARs (section 9.2.1)', () => {
    const world = createWorld(), client = new Listener(world.clock);
    const port = new PciPort({ name: 'rp', type: 4, e2eTlpPrefix: true });
    const pf = new PciFunction(svaFunction(client, { deviceType: 0, sriov: {
      totalVfs: 3, vfDeviceId: 7, firstVfOffset: 0x80, vfStride: 0x80, vfBars: [{ index: 0, sizeBytes: 0x4000, prefetchable: true, is64: true }],
      createVf: (physfn, index) => new PciFunction({ name: `vf${index}`, vendorId: 1, deviceId: 7, classCode: 0, client, flr: true, e2eTlpPrefix: true, physfn, bars: [{ index: 0, sizeBytes: 0x4000, prefetchable: true, is64: true, mmio: new Probe() }] }),
    } }));
    world.complex.insert(world.root, 8, port);
    world.complex.insert(port.secondary, 0, pf);
    world.complex.configWrite(0, 8, 0x18, 4, 0x020100);
    world.complex.configWrite(0, 8, 0x20, 4, 0xe010_e000);
    world.complex.configWrite(0, 8, 0x04, 2, 0x6);
    const at = findExtCapability(pf, 0x10);
    world.complex.configWrite(1, 0, at + 0x24, 4, 0xe000_0000);
    world.complex.configWrite(1, 0, at + 0x10, 2, 3);
    world.complex.configWrite(1, 0, at + 8, 2, 0x9);
    expect(pf.sriov!.functions.map((fn) => fn.requesterId)).toEqual([0x180, 0x200, 0x280]);
    expect([world.complex.configRead(1, 0x80, 0x34, 1), world.complex.configRead(2, 0, 0x34, 1), world.complex.configRead(2, 0x80, 0x34, 1), world.complex.configRead(2, 8, 0x34, 1)]).toEqual([0x40, 0x40, 0x40, 0xff]);
    expect(world.systemBus.list().map(({ name, start }) => [name, start])).toEqual([['vf0 BAR 0', 0xe000_0000], ['vf1 BAR 0', 0xe000_4000], ['vf2 BAR 0', 0xe000_8000]]);
    world.complex.configWrite(2, 0, 4, 2, 4);
    expect(pf.sriov!.functions[1]!.port.write(5, 0, bytes(4), 0, 4, NO_PASID, 0)).toBe(DMA_DONE);
    expect(pf.sriov!.functions[0]!.port.revoked).toBe(true);
    world.complex.remove(pf, { surprise: true });
    expect([world.systemBus.list(), world.records('pci:remove').length]).toEqual([[], 4]);
  });
});
