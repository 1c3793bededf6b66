import { describe, expect, it } from 'vitest';
import { NO_PASID, type FunctionRouter } from '../../host/pci/dma-port.js';
import { DeviceTlbInvalidations } from '../../iommu/intel-vtd/hardware/device-tlb.js';
import { VirtualClock } from '../../sim/clock.js';
import { isErrno } from '../../sim/errno.js';
import { ClientMemory } from '../../vfio/user/client-memory.js';
import { ClientRequests } from '../../vfio/user/client-requests.js';
import { F_ADD_SEALS, F_SEAL_SHRINK } from '../../vfio/user/posix/calls.js';
import { unavailable } from '../vfio-user/socket-world.js';
import { CMD, concat, dmaMap, ERROR, message, NO_REPLY, pack, regionAccess, regionWrite, setIrqs, writeMulti } from '../vfio-user/wire.js';
import { AT, DiskDriver, GCMD, REG, VtdDriver } from './driver.js';
import { HostileGuest } from './hostile-guest.js';
import { EVERYTHING, inServedWorld, MIB, topologyOf, until } from './served-world.js';

const ENOSPC = 28, EINVAL = 22;

describe.skipIf(unavailable !== undefined)('a hostile guest', () => {
  it.each([1, 2, 3])('does no harm with registers, queues, tables and descriptors of all kinds (%i)', (seed) => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach();
    for (const name of ['disk', 'dsa0']) await machine.of(name).vectors(3);
    const guest = new HostileGuest(machine, seed);
    for (let round = 0; round < 6; round++) {
      await guest.start();
      for (let i = 0; i < 500; i++) {
        guest.step(i < 350);
        if (i % 25 === 0) await machine.of(['iommu', 'disk', 'dsa0'][(i / 25) % 3]!).config(0);
      }
    }
    // the machine is as good as new
    await guest.start();
    expect([w.bugs, w.count('nvme:fetch') > 100, w.count('dsa:submit') > 10, w.count('vtd:descriptor') > 30]).toEqual([[], true, true, true]);
  }));

  it('a queue full of descriptors is worked off while everybody else is served', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach();
    const { unit } = await new VtdDriver(machine).start();
    const entries = 16384, queue = 8 * MIB;
    machine.put(queue, concat(...Array.from({ length: entries - 2 }, () => pack([8, 0x32], [8, 0x12], [8, 0], [8, 0]))));
    machine.set(queue + (entries - 2) * 32, (77n << 32n) | 0x25n, AT.status, 0, 0);
    unit.write32(REG.GCMD, GCMD.TE);
    unit.write32(REG.IQT, 0);
    unit.write64(REG.IQA, queue | 0x807);
    unit.write32(REG.GCMD, GCMD.TE + GCMD.QIE);
    unit.write32(REG.IQT, (entries - 1) * 32);
    await machine.of('dsa0').config(0);
    expect(machine.get32(AT.status)).not.toBe(77);
    await until(() => machine.get32(AT.status) === 77);
    expect([await unit.read64(REG.IQH), (await unit.read32(REG.FSTS)) & 0x70]).toEqual([(entries - 1) * 32, 0]);
  }));

  it('many writes in one message let others in between, and are in order', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach();
    const unit = machine.of('iommu');
    const order: string[] = [];
    const writes = Array.from({ length: 6000 }, (_, i) => ({ region: 0, offset: REG.PEDATA, data: pack([4, i]) }));
    const done = (async () => {
      await unit.client.ok(CMD.WRITE_MULTI, writeMulti(writes));
      order.push('writes');
    })();
    const behind = (async () => {
      expect(await unit.read32(REG.PEDATA)).toBe(5999);
      order.push('read behind them');
    })();
    await machine.of('disk').config(0);
    order.push('another function');
    await Promise.all([done, behind]);
    expect(order).toEqual(['another function', 'writes', 'read behind them']);
    // one that is refused ends it, as with few
    expect(await unit.client.errno(CMD.WRITE_MULTI, writeMulti([...writes.slice(0, 300), { region: 9, offset: 0, data: pack([4, 1]) }, ...writes.slice(0, 10)]))).toBe(EINVAL);
    expect(await unit.read32(REG.PEDATA)).toBe(299);
  }));

  it('queues at the end of memory and outside of it are errors that software sees', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach();
    const { unit } = await new VtdDriver(machine).start();
    for (const queue of [16 * MIB - 4096, 16 * MIB, 0xfee0_0000, 0xfd00_0000, 2 ** 52 - 4096]) {
      unit.write32(REG.GCMD, 0);
      unit.write32(REG.FSTS, 0xff);
      unit.write32(REG.IQT, 0);
      unit.write64(REG.IQA, BigInt(queue) | 0x801n);
      unit.write32(REG.GCMD, GCMD.QIE);
      unit.write32(REG.IQT, 0x1fe0);
      for (let status = 0; (status & 0x10) === 0; ) status = await unit.read32(REG.FSTS);
      expect((await unit.read64(REG.IQERCD)) & 0xf).not.toBe(0);
    }
  }));

  it('a device TLB that is not there is waited for no longer than there is room', () => {
    const clock = new VirtualClock();
    const nobody: FunctionRouter = { invalidate: () => false, pageResponse: () => false, releaseHeld: () => {} };
    const invalidations = new DeviceTlbInvalidations(clock, nobody, 1000);
    const ended = Array.from({ length: 10_000 }, () => 0);
    for (const i of ended.keys()) invalidations.send(0x77, NO_PASID, 0, 1, false, () => ended[i]!++);
    clock.run({ untilNs: 1000 });
    // 32 that were sent, and what found no room
    expect(ended.filter((times) => times > 0).length).toBe(10_000 - 4096);
    clock.run();
    expect(ended.every((times) => times === 1)).toBe(true);
  });

  it('zeroing a whole disk lets others in between', () => inServedWorld(topologyOf({ devices: [{ model: 'nvme', name: 'disk', bdf: '0000:00:03.0', size: 1024 * MIB }] }), async (w) => {
    const machine = await w.machine().attach();
    const disk = await new DiskDriver(machine.of('disk'), 0x1_0000, (address, bytes) => machine.put(address, bytes), (address) => machine.get32(address)).start();
    const blocks = 1024 * MIB / 512;
    for (let i = 0; i < 8; i++) machine.put(0x3_0000 + i * 16, pack([4, 0], [4, blocks], [8, 0]));
    const before = w.guest.clock.eventsRun;
    expect(await disk.command(1, { opcode: 9, prp1: 0x3_0000, cdw: [7, 4, 0] })).toBe(0);
    expect(w.guest.clock.eventsRun - before).toBeGreaterThan(8 * 64);
  }));
});

describe.skipIf(unavailable !== undefined)('a hostile client', () => {
  it('messages that nobody answers do not pile up without end', () => {
    const sent: Uint8Array[] = [];
    const requests = new ClientRequests((bytes) => sent.push(bytes));
    const errors: string[] = [];
    for (let i = 0; i < 6000; i++) requests.write(0xfee0_0000, new Uint8Array(4), (error) => errors.push(isErrno(error) ? error.code : 'moved'));
    expect([sent.length, requests.pending, errors.length, new Set(errors)]).toEqual([256, 256 + 4096, 6000 - 256 - 4096, new Set(['ENOMEM'])]);
    requests.end();
    expect([requests.pending, errors.length]).toEqual([0, 6000]);
  });

  it('cannot use up the mappings of this process: by one enormous file, or by many windows', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach();
    const fd = w.calls.memfd_create(w.name, 3);
    w.calls.ftruncate(fd, 2 ** 44);
    w.calls.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK);
    expect(await machine.of('iommu').client.errno(CMD.DMA_MAP, dmaMap(2 ** 45, 2 ** 44), [fd])).toBe(ENOSPC);
    w.calls.close(fd);
    const memory = new ClientMemory(), limits = { maxDmaMaps: 65535, maxMappings: 4 };
    const map = (address: number, sizeBytes: number): void => memory.map({ flags: 3, offset: 0, address, sizeBytes }, { openWindow: () => ({ close() {} }) as never, openSignal: () => undefined as never, close() {} }, limits);
    const GIB = 2 ** 30;
    map(0, 4096);
    map(2 * GIB, GIB + 4096);
    map(8 * GIB, 4096);
    expect(() => map(9 * GIB, 4096)).toThrow('ENOSPC');
    // what goes makes room
    memory.unmap({ flags: 0, address: 2 * GIB, sizeBytes: GIB + 4096 });
    map(9 * GIB, 2 * GIB);
    memory.disconnect();
    map(0, 4 * GIB);
  }));

  it('cannot shrink memory under a mapping; a file that can shrink is read instead', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach({ enable: false });
    const { client } = machine.of('iommu');
    expect(w.calls.ftruncate(machine.ram.descriptor, 4096)).toBe(-1);
    const fd = w.calls.memfd_create(w.name, 3);
    w.calls.ftruncate(fd, MIB);
    await client.ok(CMD.DMA_MAP, dmaMap(2 ** 32, MIB), [fd]);
    w.calls.ftruncate(fd, 0);
    const unit = await machine.of('iommu').enable();
    unit.write64(REG.IQA, 2 ** 32 + 0x800);
    unit.write32(REG.GCMD, GCMD.QIE);
    unit.write32(REG.IQT, 32);
    expect((await unit.read32(REG.FSTS)) & 0x10).toBe(0x10);
    w.calls.close(fd);
  }));

  it('an eventfd for everything, taken away and given again under interrupts', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach();
    const disk = machine.of('disk');
    for (let i = 0; i < 30; i++) {
      const events = await disk.vectors(5);
      events[0]!.write(0xffff_ffff_ffff_fffen);
      await disk.client.ask(CMD.SET_IRQS, setIrqs(2, 0, 5, 0x21));
      await disk.client.ask(CMD.SET_IRQS, setIrqs(i % 6, i % 3, 1, 0x24), [machine.ram.descriptor]);
      await disk.client.ask(CMD.SET_IRQS, setIrqs(2, 0, 0, 0x21));
      for (const event of events) event.close();
    }
    expect((await disk.config(0)) & 0xffff).toBe(0x1b36);
  }));

  it('replies that nobody asked for, commands by the wrong end, floods of refused messages', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach();
    const { client } = machine.of('dsa0');
    for (let i = 0x8000; i < 0x8100; i++) {
      client.write(message(i, CMD.DMA_WRITE, new Uint8Array(16), 1));
      client.write(message(i, CMD.DMA_READ, new Uint8Array(16), 1 | ERROR, 5));
      client.write(message(i, CMD.DMA_READ, pack([8, 0], [8, 2 ** 40])));
      client.write(message(i, 200 + (i & 0xff), new Uint8Array(8), NO_REPLY));
      client.write(message(i, CMD.REGION_WRITE, regionWrite(0, 2 ** 50, new Uint8Array(4)), NO_REPLY));
      if (i % 8 === 0) await machine.of('dsa0').config(0);
    }
    expect((await machine.of('dsa0').config(0)) & 0xffff).toBe(0x8086);
    expect(await client.errno(CMD.REGION_READ, regionAccess(0, 0, 2 ** 31))).toBe(EINVAL);
  }));
});
