import { existsSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { ExternalGuests } from '../../harness/serve/external-guests.js';
import { InvalidInput } from '../../harness/topology/problems.js';
import { unavailable } from '../vfio-user/socket-world.js';
import { CMD, dmaMap, message, NO_REPLY, pack, regionAccess, regionWrite } from '../vfio-user/wire.js';
import { AT, DiskDriver, dsaSubmit, FIRST_LEVEL, PAGE_VECTOR, REG, startDsa, VECTOR_ADDRESS, VtdDriver } from './driver.js';
import { FLAG, OPCODE } from '../../devices/dsa/spec/descriptor.js';
import { ACCELERATOR, DISK, EVERYTHING, inServedWorld, IOMMU, MIB, topologyOf, until, type Machine, type ServedWorld } from './served-world.js';

/** An accelerator that waits for a page that nobody brings. */
async function suspended(machine: Machine): Promise<VtdDriver> {
  const vtd = await new VtdDriver(machine).start();
  const dsa = machine.of('dsa0'), root = vtd.newTable();
  await dsa.enableSva();
  vtd.pasid(AT.dsaPasids, 5, FIRST_LEVEL, root, 1);
  await vtd.invalidateAll();
  await startDsa(dsa, 5);
  const before = machine.interrupts.length;
  for (let i = 0; i < 12; i++) dsaSubmit(dsa, { opcode: OPCODE.MEMMOVE, flags: FLAG.BOF, completion: 0x7000_0000, source: 0x1000_0000 + i * 0x10000, destination: 0x2000_0000, size: 4096 });
  await until(() => machine.interrupts.length > before);
  return vtd;
}

/** Everything of a client has been given back. */
async function alone(w: ServedWorld): Promise<void> {
  await w.guests.until(w.guest, () => !w.guest.server.busy);
}

describe.skipIf(unavailable !== undefined)('machines come and go', () => {
  it('nothing is left of one: descriptors, mappings, sockets, tables', async () => {
    let world: ServedWorld | undefined;
    await inServedWorld(topologyOf(EVERYTHING), async (w) => {
      world = w;
      const listening = w.descriptors().length;
      const { functions, table } = w.guest.server;
      expect([listening, functions.every(({ path }) => existsSync(path)), existsSync(table!)]).toEqual([3, true, true]);
      const machine = await w.machine().attach();
      await suspended(machine);
      for (const name of ['iommu', 'disk', 'dsa0']) machine.detach(name);
      await alone(w);
      machine.ram.close();
      expect([w.descriptors().length, w.mappings()]).toEqual([listening, 0]);
      await w.stop();
      expect([w.descriptors(), w.mappings(), functions.some(({ path }) => existsSync(path)), existsSync(table!)]).toEqual([[], 0, false, false]);
    });
    expect(world!.descriptors()).toEqual([]);
  });

  it('stops with everything in flight', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach();
    await suspended(machine);
    machine.answer = 'never';
    machine.of('iommu').write32(REG.IQT, 0xfff0);
    machine.of('disk').client.write(message(7, CMD.DMA_MAP, dmaMap(64 * MIB, MIB)).subarray(0, 20), [machine.ram.descriptor]);
    await w.stop();
    await machine.of('iommu').client.until(() => machine.of('iommu').client.ended);
    machine.ram.close();
    for (const name of ['iommu', 'disk', 'dsa0']) machine.detach(name);
    expect([w.descriptors(), w.mappings()]).toEqual([[], 0]);
  }));

  it('a socket that somebody removed is no reason not to stop', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    for (const { path } of w.guest.server.functions) rmSync(path);
    rmSync(w.guest.server.table!);
    await w.stop();
    expect(w.descriptors()).toEqual([]);
  }));

  it('one that cannot start leaves nothing of its own, and what the others have', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const image = join(w.directory, 'image'), chunks: Uint8Array[] = [];
    writeFileSync(image, new Uint8Array(MIB));
    const before = w.descriptors().length;
    // the second of its guests finds a socket of the first world's
    const loaded = topologyOf({ devices: [{ ...DISK, size: undefined, image }] }, EVERYTHING);
    loaded.topology.guests[0]!.name = 'other';
    loaded.topology.guests[1]!.name = 'linux';
    const second = new ExternalGuests(loaded, { directory: w.directory, onBug: (error) => w.bugs.push(error), recordTo: () => (chunk) => chunks.push(chunk.slice()) });
    expect(w.descriptors().length).toBe(before + 1);
    await expect(second.start()).rejects.toThrow(/EADDRINUSE/);
    expect(w.descriptors().length).toBe(before);
    expect(readdirSync(w.directory).sort()).toEqual(['image', 'linux-disk.sock', 'linux-dmar.aml', 'linux-dsa0.sock', 'linux-iommu.sock']);
    await second.stop();
    // both recordings are whole
    expect(chunks.length).toBe(4);
  }));

  it('an image that will not do takes back those that were opened before it', () => inServedWorld(topologyOf(EVERYTHING), (w) => {
    const image = join(w.directory, 'image'), before = w.descriptors().length;
    writeFileSync(image, new Uint8Array(MIB));
    const loaded = topologyOf({ devices: [{ ...DISK, size: undefined, image }, { ...DISK, name: 'none', bdf: '0000:00:05.0', size: undefined, image }] });
    (loaded.topology.guests[0]!.external!.devices[1] as { image: string }).image = join(w.directory, 'none');
    expect(() => new ExternalGuests(loaded, { directory: w.directory, onBug: () => {} })).toThrow(InvalidInput);
    expect(w.descriptors().length).toBe(before);
    return Promise.resolve();
  }));

  it.each(['iommu', 'disk', 'dsa0'])('%s loses its client in the middle of everything, and another one takes its place', (name) => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach();
    const vtd = await suspended(machine);
    const client = machine.of(name).client;
    client.write(message(7, CMD.REGION_WRITE, regionWrite(0, 0, new Uint8Array(64))).subarray(0, 40));
    machine.detach(name);
    // the others are served meanwhile
    for (const other of ['iommu', 'disk', 'dsa0']) if (other !== name) await machine.of(other).config(0);
    await w.guests.until(w.guest, () => !w.guest.server.attached);
    await machine.attach();
    for (const one of ['iommu', 'disk', 'dsa0']) expect((await machine.of(one).config(0)) & 0xffff).not.toBe(0xffff);
    // what the last client left does not keep a new kernel from starting
    const again = name === 'iommu' ? await new VtdDriver(machine).start() : vtd;
    await again.invalidateAll();
    const dsa = machine.of('dsa0');
    await dsa.client.ok(CMD.RESET);
    await dsa.enable();
    await suspended(machine);
    expect(machine.interrupts.at(-1)).toEqual([VECTOR_ADDRESS, PAGE_VECTOR]);
  }));

  it('while a machine is there a second one waits, and is told nothing', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach();
    const second = w.machine();
    const attached = second.attach();
    await machine.of('dsa0').config(0);
    expect([Object.keys(second.functions), w.guest.server.functions.map(({ server }) => server.connections)]).toEqual([[], [1, 1, 1]]);
    for (const name of ['iommu', 'disk', 'dsa0']) machine.detach(name);
    await attached;
    await new VtdDriver(second).start();
  }));

  it('says when a machine is attached and when it has gone, whichever connection is last', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const told: string[] = [];
    const story = (async () => {
      await w.guests.until(w.guest, () => w.guest.server.attached);
      told.push('attached');
      await w.guests.until(w.guest, () => !w.guest.server.busy);
      told.push('gone');
    })();
    const machine = await w.machine().attach();
    await until(() => told.length === 1);
    for (const name of ['iommu', 'disk', 'dsa0']) machine.detach(name);
    await story;
    expect(told).toEqual(['attached', 'gone']);
  }));

  it('two guests in one process know nothing of each other', () => inServedWorld(topologyOf(EVERYTHING, { iommu: IOMMU, devices: [ACCELERATOR] }), async (w) => {
    const [first, second] = w.guests.guests;
    const one = await w.machine(first).attach(), two = await w.machine(second).attach();
    await suspended(one);
    await suspended(two);
    for (const name of ['iommu', 'disk', 'dsa0']) one.detach(name);
    await w.guests.until(first!, () => !first!.server.busy);
    expect([second!.server.attached, two.interrupts.length]).toEqual([true, 1]);
    expect((await new VtdDriver(two).pageRequests())[0]).toMatchObject({ pasid: 5 });
  }));

  it('an unanswered page request keeps nothing else from working', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach();
    const vtd = await suspended(machine);
    const count = async (): Promise<number> => (await Promise.all(Array.from({ length: 50 }, () => machine.of('dsa0').config(0)))).length;
    expect(await count()).toBe(50);
    await vtd.invalidateAll();
    const disk = new DiskDriver(machine.of('disk'), 0x20_0000, (address, bytes) => machine.put(address, bytes), (address) => machine.get32(address));
    vtd.pasid(AT.diskPasids, 0, 4, 0, 4);
    await vtd.invalidateAll();
    await disk.start();
    machine.put(0x30_0000, new Uint8Array(512).fill(9));
    expect(await disk.command(1, { opcode: 1, prp1: 0x30_0000, cdw: [0, 0, 0] })).toBe(0);
  }));

  it('a flood on one socket does not starve the others', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach();
    const disk = machine.of('disk').client, write = message(0, CMD.REGION_WRITE, regionWrite(0, 0x1000, pack([4, 1])), NO_REPLY), read = message(1, CMD.REGION_READ, regionAccess(0, 0, 4096));
    let answered = 0, sent = 0;
    while (answered < 20) {
      for (let i = 0; i < 200 && disk.write(i % 10 === 0 ? read : write); i++) sent++;
      await machine.of('dsa0').config(0);
      answered++;
    }
    expect([sent > 0, await machine.of('iommu').read32(REG.GSTS)]).toEqual([true, 0]);
  }));
});

describe.skipIf(unavailable !== undefined)('memory without descriptors', () => {
  const ALONE = { devices: [DISK] };

  async function diskAlone(machine: Machine): Promise<DiskDriver> {
    const view = new DataView(machine.bytes.buffer);
    return new DiskDriver(machine.of('disk'), 0x1_0000, (address, bytes) => machine.bytes.set(bytes, address), (address) => view.getUint32(address, true)).start();
  }

  it('without an IOMMU a disk moves everything by messages', () => inServedWorld(topologyOf(ALONE), async (w) => {
    const machine = await w.machine().attach({ descriptors: false });
    const disk = await diskAlone(machine);
    expect([w.guest.server.table, w.guest.server.guest.lackingMemory]).toEqual([undefined, undefined]);
    machine.bytes.set(Uint8Array.from({ length: 8192 }, (_, i) => i * 5), 0x2_0000);
    expect(await disk.command(1, { opcode: 1, prp1: 0x2_0000, prp2: 0x2_1000, cdw: [0, 0, 15] })).toBe(0);
    expect(await disk.command(1, { opcode: 2, prp1: 0x3_0000, prp2: 0x3_1000, cdw: [0, 0, 15] })).toBe(0);
    expect(machine.bytes.slice(0x3_0000, 0x3_2000)).toEqual(machine.bytes.slice(0x2_0000, 0x2_2000));
    expect(machine.sent.length).toBeGreaterThan(8);
  }));

  it('a message that the client refuses ends the command with an error', () => inServedWorld(topologyOf(ALONE), async (w) => {
    const machine = await w.machine().attach({ descriptors: false });
    const disk = await diskAlone(machine);
    // beyond what the client has
    expect((await disk.command(1, { opcode: 1, prp1: 64 * MIB, cdw: [0, 0, 0] })) & 0x7ff).toBe(4);
    expect((await disk.command(1, { opcode: 2, prp1: 64 * MIB, cdw: [0, 0, 0] })) & 0x7ff).toBe(4);
    expect(await disk.command(1, { opcode: 1, prp1: 0x2_0000, cdw: [0, 0, 0] })).toBe(0);
    // not even the queues can be read any more
    machine.answer = 'refuse';
    disk.submit(1, { opcode: 0 });
    expect((await disk.status((csts) => (csts & 2) !== 0)) & 2).toBe(2);
  }));

  it('a reset does not wait for answers, and answers that come later change nothing', () => inServedWorld(topologyOf(ALONE), async (w) => {
    const machine = await w.machine().attach({ descriptors: false });
    const disk = await diskAlone(machine);
    machine.bytes.fill(0xaa, 0x2_0000, 0x2_1000);
    expect(await disk.command(1, { opcode: 1, prp1: 0x2_0000, cdw: [0, 0, 7] })).toBe(0);
    machine.answer = 'never';
    const before = machine.sent.length;
    for (let i = 0; i < 8; i++) disk.submit(1, { opcode: 1, prp1: 0x3_0000, cdw: [0, 0, 7] });
    await until(() => machine.sent.length > before);
    const unanswered = machine.sent.length;
    await machine.of('disk').client.ok(CMD.RESET);
    machine.answer = 'yes';
    await machine.of('disk').enable();
    await diskAlone(machine);
    expect(machine.sent.length).toBeGreaterThan(unanswered);
    expect(await (await diskAlone(machine)).command(1, { opcode: 2, prp1: 0x4_0000, cdw: [0, 0, 7] })).toBe(0);
    expect(machine.bytes.slice(0x4_0000, 0x4_1000)).toEqual(new Uint8Array(4096).fill(0xaa));
  }));

  it('a client that leaves with messages unanswered leaves nothing behind', () => inServedWorld(topologyOf(ALONE), async (w) => {
    const machine = await w.machine().attach({ descriptors: false });
    const disk = await diskAlone(machine);
    machine.answer = 'never';
    const before = machine.sent.length;
    disk.submit(1, { opcode: 2, prp1: 0x3_0000, cdw: [0, 0, 7] });
    await until(() => machine.sent.length > before);
    machine.detach('disk');
    await alone(w);
    machine.answer = 'yes';
    await machine.attach({ descriptors: false });
    expect(await (await diskAlone(machine)).command(1, { opcode: 0 })).toBe(0);
  }));

  it('an IOMMU finds no tables there: requests fault, and the user is told what to start QEMU with', () => inServedWorld(topologyOf({ iommu: IOMMU, devices: [DISK] }), async (w) => {
    const machine = await w.machine().attach({ descriptors: false });
    expect(w.guest.server.guest.lackingMemory).toContain('passed no descriptor for its memory');
    expect(w.guest.server.guest.lackingMemory).toContain('memory-backend-memfd,share=on');
    const unit = machine.of('iommu');
    unit.write64(REG.RTADDR, AT.root | 0x400);
    unit.write32(0x18, 0x4000_0000);
    unit.write32(0x18, 0x8000_0000);
    const { disk } = machine.functions;
    disk!.write32(0x24, 0xf_000f);
    disk!.write64(0x28, 0x1_0000);
    disk!.write64(0x30, 0x2_0000);
    disk!.write32(0x14, 0x46_0001);
    for (let csts = 0; (csts & 1) === 0; ) csts = await disk!.read32(0x1c);
    disk!.write32(0x1000, 1);
    for (let csts = 0; (csts & 2) === 0; ) csts = await disk!.read32(0x1c);
    expect((await unit.read32(REG.FSTS)) & 2).toBe(2);
    // a queue that is not there either
    unit.write64(REG.IQA, AT.queue | 0x800);
    unit.write32(0x18, 0x8400_0000);
    unit.write32(REG.IQT, 32);
    expect([(await unit.read32(REG.FSTS)) & 0x10, machine.sent.every(({ address }) => address >= 0xfee0_0000)]).toEqual([0x10, true]);
  }));

  it('with a descriptor nobody is told anything', () => inServedWorld(topologyOf({ iommu: IOMMU, devices: [DISK] }), async (w) => {
    expect(w.guest.server.guest.lackingMemory).toBeUndefined();
    await w.machine().attach();
    expect(w.guest.server.guest.lackingMemory).toBeUndefined();
  }));
});
