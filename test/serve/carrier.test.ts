import { readFileSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { FLAG, OPCODE } from '../../devices/dsa/spec/descriptor.js';
import { DMAR_INTR_REMAP, decodeDmar, SCOPE_ENDPOINT } from '../../iommu/intel-vtd/spec/dmar.js';
import { unavailable } from '../vfio-user/socket-world.js';
import { CMD, infoRequest, u64 } from '../vfio-user/wire.js';
import { AT, dsaSubmit, FIRST_LEVEL, GCMD, REG, startDsa, VtdDriver } from './driver.js';
import { ACCELERATOR, DISK, EVERYTHING, inServedWorld, IOMMU, MIB, topologyOf, until } from './served-world.js';

describe.skipIf(unavailable !== undefined)('the function that carries the registers of the IOMMU', () => {
  it('is a host bridge with a BAR of 16 MiB, whose bus mastering nobody can switch off', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const unit = (await w.machine().attach({ enable: false })).of('iommu');
    expect((await unit.config(8)) >>> 8).toBe(0x06_0000);
    expect(await unit.config(4, 2)).toBe(4);
    await unit.setConfig(4, 2, 0);
    expect(await unit.config(4, 2)).toBe(4);
    await unit.setConfig(4, 2, 7);
    expect(await unit.config(4, 2)).toBe(6);
    await unit.client.ok(CMD.RESET);
    expect(await unit.config(4, 2)).toBe(4);
    await unit.setConfig(0x10, 4, 0xffff_ffff);
    expect(await unit.config(0x10)).toBe(0xff00_0000);
    await unit.setConfig(0x10, 4, 0xfd00_0000);
    expect([await unit.config(0x10), await unit.config(0x14), await unit.config(0x30)]).toEqual([0xfd00_0000, 0, 0]);
    expect(u64(await unit.client.ok(CMD.GET_REGION_INFO, infoRequest(32, 0)), 16)).toBe(16 * MIB);
  }));

  it('shows the registers while it decodes memory, and nobody behind them', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const unit = (await w.machine().attach({ enable: false })).of('iommu');
    expect(await unit.read32(0)).toBe(0xffff_ffff);
    await unit.enable();
    const { capabilities } = w.guest.server.guest.unit!;
    const cap = await unit.read(0, REG.CAP, 8), ecap = await unit.read(0, REG.ECAP, 8);
    expect([new DataView(cap.slice().buffer).getBigUint64(0, true), new DataView(ecap.slice().buffer).getBigUint64(0, true)]).toEqual([capabilities.cap, capabilities.ecap]);
    expect([await unit.read32(0), await unit.read32(REG.GSTS)]).toEqual([capabilities.version, 0]);
    const { sizeBytes } = w.guest.server.guest.unit!;
    expect([await unit.read32(sizeBytes), await unit.read32(16 * MIB - 4)]).toEqual([0xffff_ffff, 0xffff_ffff]);
    unit.write32(sizeBytes + REG.GCMD, GCMD.QIE);
    expect(await unit.read32(REG.GSTS)).toBe(0);
  }));

  it('a reset of the machine resets the unit', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach();
    const { unit } = await new VtdDriver(machine).start();
    expect(await unit.read32(REG.GSTS)).not.toBe(0);
    await unit.client.ok(CMD.RESET);
    await unit.enable();
    expect([await unit.read32(REG.GSTS), await unit.read64(REG.IQA), await unit.read64(REG.RTADDR), await unit.read64(REG.IQH)]).toEqual([0, 0, 0, 0]);
    await new VtdDriver(machine).start();
  }));

  it('the ACPI table names exactly the devices behind the unit, and where it is', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const bytes = new Uint8Array(readFileSync(w.guest.server.table!));
    expect(bytes.reduce((sum, byte) => (sum + byte) & 0xff, 0)).toBe(0);
    const table = decodeDmar(bytes);
    expect(table.flags & DMAR_INTR_REMAP).toBe(0);
    expect(table.structures).toMatchObject([{
      kind: 'DRHD', includeAll: false, segment: 0, base: 0xfd00_0000,
      scopes: [3, 4].map((device) => ({ type: SCOPE_ENDPOINT, startBus: 0, path: [{ device, function: 0 }] })),
    }]);
    expect(table.structures).toHaveLength(1);
  }));
});

describe.skipIf(unavailable !== undefined)('errors that a topology injects', () => {
  const served = (...inject: object[]): Parameters<typeof inServedWorld>[0] => topologyOf({ ...EVERYTHING, inject });

  it('a good descriptor is taken for a bad one, and goes on when software has cleared it', () => inServedWorld(served({ error: 'iqe', count: 2, descriptor: 'p_iotlb' }), async (w) => {
    const machine = await w.machine().attach();
    const vtd = await new VtdDriver(machine).start(), { unit } = vtd;
    await vtd.submit([0x26, 0, 0, 0]);
    const sequence = vtd.post([0x26, 0, 0, 0]);
    expect((await unit.read32(REG.FSTS)) & 0x10).toBe(0x10);
    expect([await unit.read64(REG.IQH), machine.get32(AT.status)]).toEqual([6 * 32, sequence - 1]);
    unit.write32(REG.FSTS, 0x10);
    await until(() => machine.get32(AT.status) === sequence);
  }));

  it('a device does not answer, and the wait behind it is given up', () => inServedWorld(served({ error: 'ite' }), async (w) => {
    const machine = await w.machine().attach();
    const vtd = await new VtdDriver(machine).start(), { unit } = vtd;
    await machine.of('dsa0').enableSva();
    const sequence = vtd.post([0x20_0008, 1, 0, 0]);
    for (let status = 0; (status & 0x40) === 0; ) status = await unit.read32(REG.FSTS);
    expect(machine.get32(AT.status)).toBe(sequence - 1);
    unit.write32(REG.FSTS, 0x40);
    await vtd.submit([0x20_0008, 1, 0, 0]);
  }));

  it('a page request finds the queue full: hardware answers it, and the device asks again', () => inServedWorld(served({ error: 'page-request-overflow' }), async (w) => {
    const machine = await w.machine().attach();
    const vtd = await new VtdDriver(machine).start(), dsa = machine.of('dsa0'), root = vtd.newTable();
    await dsa.enableSva();
    vtd.pasid(AT.dsaPasids, 5, FIRST_LEVEL, root, 1);
    await vtd.invalidateAll();
    await startDsa(dsa, 5);
    dsaSubmit(dsa, { opcode: OPCODE.MEMMOVE, flags: FLAG.BOF, completion: 0x7000_0000, source: 0x1000_0000, destination: 0x2000_0000, size: 4096 });
    await until(() => machine.interrupts.length > 0);
    // PRO; nothing is queued before it is cleared
    expect([(await vtd.unit.read32(REG.PRS)) & 3, await vtd.unit.read64(REG.PQT)]).toEqual([2, 0]);
    vtd.unit.write32(REG.PRS, 2);
    await until(() => machine.interrupts.length > 1);
    expect(await vtd.pageRequests()).toMatchObject([{ pasid: 5, address: 0x1000_0000 }]);
  }));
});

describe('topologies with external guests', () => {
  const problems = (external: object): string => {
    try {
      topologyOf({ ...external });
      return '';
    } catch (error) {
      return (error as Error).message;
    }
  };

  it.each<[string, object, string]>([
    ['a slot that the board has', { devices: [{ ...DISK, bdf: '0000:00:02.0' }] }, 'is no free slot'],
    ['a function other than 0', { devices: [{ ...DISK, bdf: '0000:00:03.1' }] }, 'is no free slot'],
    ['another bus', { devices: [{ ...DISK, bdf: '0000:01:03.0' }] }, 'is no free slot'],
    ['the chip set\'s slot', { devices: [{ ...DISK, bdf: '0000:00:1f.0' }] }, 'is no free slot'],
    ['two in one slot', { devices: [DISK, { ...ACCELERATOR, bdf: DISK.bdf }] }, 'is taken by devices[0]'],
    ['two of one name', { devices: [DISK, { ...ACCELERATOR, name: 'disk' }] }, 'is taken by devices[0]'],
    ['a switch', { devices: [{ ...DISK, port: 'p' }] }, 'no switches'],
    ['errors of no IOMMU', { devices: [DISK], inject: [{ error: 'iqe' }] }, 'need external.iommu'],
    ['interrupt remapping', { iommu: { ...IOMMU, 'interrupt-remapping': true }, devices: [DISK] }, 'interrupt-remapping'],
    ['an image mode without an image', { devices: [{ ...DISK, 'image-mode': 'write' }] }, 'needs an image'],
    ['no devices', { iommu: IOMMU, devices: [] }, 'devices'],
  ])('refuse %s', (_what, external, text) => {
    expect(problems(external)).toContain(text);
  });

  it('are fine as the others here are', () => {
    expect(problems(EVERYTHING)).toBe('');
      });
});
