/** The fault event's handler: accesses as Linux makes them, its log lines, and what it reports (R6, flow 2f). */
import { describe, expect, it } from 'vitest';
import { ACCESS_READ, ACCESS_WRITE, NO_PASID } from '../../host/pci/dma-port.js';
import { FAULT_DMA_UNRECOV, FAULT_REASON, type FaultReport } from '../../iommu/core/ops.js';
import { faultText, genericReason } from '../../iommu/intel-vtd/driver/fault-text.js';
import { DriverWorld, type TestFunction } from './vtd-driver-world.js';

function faulting(): { world: DriverWorld; dsa: TestFunction; reports: FaultReport[] } {
  const world = new DriverWorld({ capabilities: { 'fault-records': 4 } }).start();
  const dsa = world.svaFunction();
  const reports: FaultReport[] = [];
  world.driver.faults.values$.subscribe((report) => reports.push(report));
  return { world, dsa, reports };
}

describe('a fault', () => {
  it('is read, cleared and logged as recorded (vtd-scalable-dsa-sva: 0x71 after munmap)', () => {
    const { world, dsa } = faulting();
    const pasid = world.run(world.core.svaBind(dsa, world.process()));
    world.take();
    world.dma(dsa, 0x7ff57f061, true, pasid);
    world.settle();
    expect(world.take()).toEqual([
      'r FSTS 4 0x2', `r 0x22c 4 0x80000${pasid}71`, 'r 0x228 4 0x80000020', 'r 0x220 8 0x7ff57f061000', 'w 0x22c 4 0x80000000', 'r 0x23c 4 0x0', 'w FSTS 4 0x83',
    ]);
    expect(world.lines(/fault/)).toEqual([
      'DMAR: DRHD: handling fault status reg 2',
      `DMAR: [DMA Write PASID 0x${pasid}] Request device [0000:00:04.0] fault addr 0x7ff57f061000 [fault reason 0x71] SM: Present bit in first-level paging entry is clear`,
    ]);
  });

  it('without PASID says so, and reports NO_PASID', () => {
    const { world, dsa, reports } = faulting();
    world.dma(dsa, 0x1234);
    world.settle();
    expect(world.lines(/DMA Read/)).toEqual([
      'DMAR: [DMA Read NO_PASID] Request device [0000:00:04.0] fault addr 0x1234000 [fault reason 0x71] SM: Present bit in first-level paging entry is clear',
    ]);
    expect(reports).toHaveLength(1);
    expect(reports[0]).toMatchObject({ device: dsa, fault: {
      type: FAULT_DMA_UNRECOV, reason: FAULT_REASON.PTE_FETCH, pasid: NO_PASID, access: ACCESS_READ, page: 0x1234,
      detail: '0x71 SM: Present bit in first-level paging entry is clear',
    } });
  });

  it('of an unknown requester is logged and reported to nobody', () => {
    const { world, reports } = faulting();
    world.unit.translate(0x0158, NO_PASID, 0, 0x1234, true);
    world.settle();
    expect(world.lines(/DMA Write/)).toEqual([
      'DMAR: [DMA Write NO_PASID] Request device [0000:01:0b.0] fault addr 0x1234000 [fault reason 0x39] SM: Present bit in Root Entry is clear',
    ]);
    expect(reports).toEqual([]);
  });

  it('is one of many: records are taken round the ring, and the log is limited while reports are not', () => {
    const { world, dsa, reports } = faulting();
    for (let i = 0; i < 40; i++) {
      world.dma(dsa, 0x1000 + i, true);
      world.settle();
    }
    expect(reports.map(({ fault }) => fault.page)).toEqual(Array.from({ length: 40 }, (_, i) => 0x1000 + i));
    expect(reports.every(({ fault }) => fault.type === FAULT_DMA_UNRECOV && fault.access === ACCESS_WRITE)).toBe(true);
    expect(world.lines(/fault/)).toHaveLength(10);
    expect(world.log.suppressed).toBe(70);
  });

  it('storm of many functions overflows the records: some are lost, the event is not', () => {
    const { world, dsa, reports } = faulting();
    const others = Array.from({ length: 8 }, (_, i) => world.function({ sourceId: 0x40 + 8 * i }));
    for (const other of others) world.dma(other, 0x1000, true);
    world.settle();
    expect(reports).toHaveLength(4);
    world.dma(dsa, 0x2000, true);
    world.settle();
    expect(reports).toHaveLength(5);
  });
});

describe('a unit that is gone', () => {
  it('does not hold the handler', () => {
    const { world } = faulting();
    world.registers.read = () => 0xffff_ffff;
    world.driver.units[0]!.faultInterrupt.handle();
    expect(world.lines(/handling/)).toEqual(['DMAR: DRHD: handling fault status reg ffffffff']);
  });
});

describe('reasons', () => {
  it('map to the fault interface (R6)', () => {
    const { UNKNOWN, PASID_FETCH, BAD_PASID_ENTRY, PASID_INVALID, WALK_EABT, PTE_FETCH, PERMISSION, OOR_ADDRESS } = FAULT_REASON;
    const expected: [number, number][] = [
      [0x05, PERMISSION], [0x06, PERMISSION], [0x04, OOR_ADDRESS], [0x39, UNKNOWN], [0x45, PASID_INVALID], [0x46, PASID_INVALID], [0x50, PASID_FETCH],
      [0x58, PASID_FETCH], [0x59, PASID_INVALID], [0x5a, BAD_PASID_ENTRY], [0x5b, BAD_PASID_ENTRY], [0x5d, BAD_PASID_ENTRY], [0x70, WALK_EABT],
      [0x71, PTE_FETCH], [0x78, WALK_EABT], [0x79, PERMISSION], [0x80, OOR_ADDRESS], [0x81, PERMISSION], [0x85, PERMISSION], [0x86, PERMISSION],
    ];
    expect(expected.map(([code]) => [code, genericReason(code)])).toEqual(expected);
  });

  it('have the log\'s sentences, and "Unknown" beyond', () => {
    expect([0x01, 0x05, 0x59, 0x81, 0x85, 0x33, 0xff].map(faultText)).toEqual([
      'Present bit in root entry is clear', 'PTE Write access is not set', 'SM: Present bit in PASID Table Entry is clear',
      'SM: U/S set 0 for first-level translation with user privilege', 'SM: No write permission for Write/AtomicOp request', 'Unknown', 'Unknown',
    ]);
  });
});
