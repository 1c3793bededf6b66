import { describe, expect, it } from 'vitest';
import { FLAG, OPCODE, STATUS } from '../../devices/dsa/spec/descriptor.js';
import { unavailable } from '../vfio-user/socket-world.js';
import { AT, DiskDriver, DSA_RID, dsaSubmit, FAULT_VECTOR, FIRST_LEVEL, PAGE_VECTOR, REG, SECOND_LEVEL, startDsa, VECTOR_ADDRESS, VtdDriver } from './driver.js';
import { EVERYTHING, inServedWorld, topologyOf, until, type Machine } from './served-world.js';

const QUEUES = 0x20_0000, DATA = 0x30_0000;
/** Bus addresses of the disk's memory: nowhere near where it is. */
const BUS = 0x7_0000_0000;

/** A disk behind second-level tables: pages from QUEUES on at BUS. */
async function startDisk(machine: Machine, vtd: VtdDriver, interrupts = false): Promise<DiskDriver> {
  const root = vtd.newTable();
  for (let page = 0; page < 4; page++) vtd.map(root, BUS + page * 4096, QUEUES + page * 4096);
  for (let page = 0; page < 16; page++) vtd.map(root, BUS + 0x10_0000 + page * 4096, DATA + page * 4096);
  vtd.pasid(AT.diskPasids, 0, SECOND_LEVEL, root, 4);
  await vtd.invalidateAll();
  const physical = (address: number): number => address - BUS + QUEUES;
  return new DiskDriver(machine.of('disk'), BUS, (address, bytes) => machine.put(physical(address), bytes), (address) => machine.get32(physical(address))).start(interrupts);
}

describe.skipIf(unavailable !== undefined)('a served machine without a kernel', () => {
  it('a disk writes and reads blocks through second-level tables, and interrupts', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach();
    const vtd = await new VtdDriver(machine).start();
    const events = await machine.of('disk').vectors(3);
    const disk = await startDisk(machine, vtd, true);
    machine.put(DATA, Uint8Array.from({ length: 8192 }, (_, i) => i * 7));
    expect(await disk.command(1, { opcode: 1, prp1: BUS + 0x10_0000, prp2: BUS + 0x10_1000, cdw: [8, 0, 15] })).toBe(0);
    expect(await disk.command(1, { opcode: 2, prp1: BUS + 0x10_4000, prp2: BUS + 0x10_5000, cdw: [8, 0, 15] })).toBe(0);
    expect(machine.bytesAt(DATA + 0x4000, 8192)).toEqual(machine.bytesAt(DATA, 8192));
    let completions = 0;
    await until(() => (completions += events[1]!.take()) === 2);
    expect([events[0]!.take() > 0, w.guest.server.guest.interruptsLost]).toEqual([true, 0]);
    // an address that no table knows
    expect(await disk.command(1, { opcode: 2, prp1: BUS + 0x20_0000, cdw: [0, 0, 0] })).not.toBe(0);
    await until(() => machine.interrupts.length > 0);
    expect(machine.interrupts).toEqual([[VECTOR_ADDRESS, FAULT_VECTOR]]);
    expect((await vtd.unit.read32(REG.FSTS)) & 2).toBe(2);
  }));

  it('an accelerator copies in a PASID, asks for its pages, and is answered through the queue', () => inServedWorld(topologyOf(EVERYTHING), async (w) => {
    const machine = await w.machine().attach();
    const vtd = await new VtdDriver(machine).start();
    const disk = await startDisk(machine, vtd);
    const dsa = machine.of('dsa0');
    await dsa.enableSva();
    const root = vtd.newTable(), pasid = 5, source = 0x7f00_0000_0000, target = source + 0x1000, record = source + 0x2000;
    vtd.pasid(AT.dsaPasids, pasid, FIRST_LEVEL, root, 1);
    vtd.map(root, source, DATA, 7);
    vtd.map(root, record, DATA + 0x2000, 7);
    await vtd.invalidateAll();
    await startDsa(dsa, pasid);
    machine.put(DATA, Uint8Array.from({ length: 4096 }, (_, i) => i * 3));
    dsaSubmit(dsa, { opcode: OPCODE.MEMMOVE, flags: FLAG.BOF, completion: record, source, destination: target, size: 4096 });
    await until(() => machine.interrupts.length > 0);
    expect(machine.interrupts).toEqual([[VECTOR_ADDRESS, PAGE_VECTOR]]);
    const [asked] = await vtd.pageRequests();
    expect(asked).toMatchObject({ rid: DSA_RID, pasid, address: target, last: true });
    // nobody else waits for the answer
    expect(await disk.command(1, { opcode: 2, prp1: BUS + 0x10_4000, cdw: [0, 0, 7] })).toBe(0);
    expect([await vtd.unit.read32(REG.GSTS), await dsa.read32(0), machine.bytesAt(DATA + 0x2000, 1)[0]]).toEqual([0xc400_0000, 0x100, 0]);
    vtd.map(root, target, DATA + 0x1000, 7);
    await vtd.respond(DSA_RID, pasid, asked!.group);
    await until(() => machine.bytesAt(DATA + 0x2000, 1)[0] !== 0);
    expect([machine.bytesAt(DATA + 0x2000, 1)[0], machine.bytesAt(DATA + 0x1000, 4096)]).toEqual([STATUS.SUCCESS, machine.bytesAt(DATA, 4096)]);
    // accessed and dirty bits are set in the guest's own tables
    expect(w.count('vtd:fault')).toBe(0);
  }));
});
