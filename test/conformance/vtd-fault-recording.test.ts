import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import type { FaultRecord } from '../../iommu/intel-vtd/hardware/back-end.js';
import { World } from './vtd-front-end-world.js';

function fault(values: Partial<FaultRecord> = {}): FaultRecord {
  return { sourceId: 0x19, pasid: -1, reason: 5, page: 0x7_f012_3456, write: true, execute: false, privileged: false, addressType: 0, ...values };
}

const FRCD = 0x220;

describe('fault records (VT-d 4.1, 11.4.7.6; requirement 9)', () => {
  it.each([
    ['a read with PASID (VTD-FRCD-1)', fault({ pasid: 0x12345, reason: 0x59, write: false }), 0xc123_4559_8000_0019n],
    ['a write without PASID', fault(), 0x8000_0005_0000_0019n],
    ['a read without PASID: PP and PASID stay clear', fault({ write: false, execute: true, privileged: true }), 0xc000_0005_0000_0019n],
    ['a privileged instruction fetch', fault({ pasid: 2, write: false, execute: true, privileged: true }), 0xc000_0205_e000_0019n],
    ['a translation request', fault({ pasid: 2, write: false, addressType: 1 }), 0xd000_0205_8000_0019n],
    ['a translated write', fault({ pasid: 2, addressType: 2 }), 0xa000_0205_8000_0019n],
    ['a page request', fault({ pasid: 2, write: false, pageRequest: true }), 0x8000_0205_9000_0019n],
  ])('codes %s', (_name, record, high) => {
    const world = new World();
    world.unit.fault(record);
    expect([world.read8(FRCD), world.read8(FRCD + 8)]).toEqual([0x7f01_2345_6000n, high]);
  });

  it('keeps a canonical high address whole', () => {
    const world = new World();
    world.unit.fault(fault({ page: 0xf_ffff_8000_0000 }));
    expect(world.read8(FRCD)).toBe(0xffff_f800_0000_0000n & 0xffff_ffff_ffff_f000n);
  });
});

describe('primary fault logging (VT-d 4.1, 7.2.1)', () => {
  it('serves one fault as the recorded driver does: dwords, then the address, then F by a 4-byte write', () => {
    const world = new World({ options: { 'fault-records': 1 } });
    world.enableEvent(0x38, 0x22);
    world.unit.fault(fault({ sourceId: 0x20, pasid: 2, reason: 0x71, page: 0x7_ff57_f061 }));
    expect(world.interrupts).toEqual(['0xfee00000 0x22']);
    expect(world.read4(0x34)).toBe(2);
    expect([world.read4(0x22c), world.read4(0x228), world.read8(0x220)]).toEqual([0x8000_0271, 0x8000_0020, 0x7ff5_7f06_1000n]);
    world.write4(0x22c, 0x8000_0000);
    expect([world.read4(0x22c), world.read4(0x34)]).toEqual([0x271, 0]);
    world.write4(0x34, 0x83);
    expect(world.read4(0x34)).toBe(0);
  });

  it('uses the registers in turn and reports the first pending one in FRI', () => {
    const world = new World({ options: { 'fault-records': 3 } });
    world.unit.fault(fault({ sourceId: 1 }));
    world.write4(0x22c, 0x8000_0000);
    world.unit.fault(fault({ sourceId: 2 }));
    world.unit.fault(fault({ sourceId: 3 }));
    world.unit.fault(fault({ sourceId: 4 }));
    expect(world.read4(0x34)).toBe(0x102);
    expect([0, 1, 2].map((i) => world.read4(FRCD + 16 * i + 8) & 0xffff)).toEqual([4, 2, 3]);
  });

  it('keeps PPF until the last F is cleared', () => {
    const world = new World({ options: { 'fault-records': 2 } });
    world.unit.fault(fault({ sourceId: 1 }));
    world.unit.fault(fault({ sourceId: 2 }));
    world.write4(0x22c, 0x8000_0000);
    expect(world.read4(0x34) & 2).toBe(2);
    world.write4(0x23c, 0x8000_0000);
    expect(world.read4(0x34) & 2).toBe(0);
  });

  it('folds faults of a requester that has a pending record into it', () => {
    const world = new World({ options: { 'fault-records': 2 } });
    world.unit.fault(fault({ reason: 5 }));
    world.unit.fault(fault({ reason: 6 }));
    expect([world.read4(0x34), world.read4(0x22c) & 0xff, world.read4(0x23c)]).toEqual([2, 5, 0]);
    expect(world.unit.faults.counts).toEqual({ met: 2, recorded: 1, collapsed: 1, lost: 0 });
  });

  it('sets PFO when the next register is occupied, and records nothing until software clears it', () => {
    const world = new World({ options: { 'fault-records': 1 } });
    world.unit.fault(fault({ sourceId: 1 }));
    world.unit.fault(fault({ sourceId: 2 }));
    expect([world.read4(0x34), world.read4(0x228) & 0xffff]).toEqual([3, 1]);
    world.write4(0x22c, 0x8000_0000);
    world.unit.fault(fault({ sourceId: 3 }));
    expect([world.read4(0x34), world.read4(0x22c) >>> 31]).toEqual([1, 0]);
    world.write4(0x34, 1);
    world.unit.fault(fault({ sourceId: 3 }));
    expect([world.read4(0x34), world.read4(0x228) & 0xffff]).toEqual([2, 3]);
    expect(world.unit.faults.counts).toEqual({ met: 4, recorded: 2, collapsed: 0, lost: 2 });
  });

  it('ignores writes to anything but F', () => {
    const world = new World();
    world.unit.fault(fault());
    const before = [world.read8(FRCD), world.read8(FRCD + 8)];
    world.write8(FRCD, 0xffff_ffff_ffff_ffffn);
    world.write8(FRCD + 8, 0x7fff_ffff_ffff_ffffn);
    expect([world.read8(FRCD), world.read8(FRCD + 8)]).toEqual(before);
  });

  it('traces every fault with what became of it', () => {
    const world = new World({ options: { 'fault-records': 1 } });
    for (const sourceId of [1, 1, 2, 3]) world.unit.fault(fault({ sourceId }));
    expect(world.traced('vtd:fault').map(({ args }) => `${args['source']} ${args['index']} ${args['outcome']}`))
      .toEqual(['0x1 0 recorded', '0x1 -1 collapsed', '0x2 -1 overflow', '0x3 -1 overflow']);
  });
});

describe('fault event (VT-d 4.1, 7.3, 11.4.7.2)', () => {
  it('is raised only when no status field was set before', () => {
    const world = new World();
    world.enableEvent(0x38, 0x22);
    world.unit.fault(fault({ sourceId: 1 }));
    world.unit.fault(fault({ sourceId: 2 }));
    world.unit.invalidCompletion(5);
    expect(world.interrupts).toHaveLength(1);
    world.write4(0x34, 0x20);
    world.write4(0x22c, 0x8000_0000);
    world.write4(0x23c, 0x8000_0000);
    world.unit.fault(fault({ sourceId: 3 }));
    expect(world.interrupts).toHaveLength(2);
  });

  it('waits behind the mask with IP set, goes out when the mask is cleared, and is withdrawn when everything was serviced', () => {
    const world = new World();
    world.enableEvent(0x38, 0x22);
    world.write4(0x38, 0x8000_0000);
    world.unit.fault(fault());
    expect([world.read4(0x38), world.interrupts]).toEqual([0xc000_0000, []]);
    world.write4(0x38, 0);
    expect([world.read4(0x38), world.interrupts]).toEqual([0, ['0xfee00000 0x22']]);
    world.write4(0x22c, 0x8000_0000);
    world.write4(0x38, 0x8000_0000);
    world.unit.fault(fault());
    world.write4(0x23c, 0x8000_0000);
    expect(world.read4(0x38)).toBe(0x8000_0000);
    world.write4(0x38, 0);
    expect(world.interrupts).toHaveLength(1);
  });

  it('carries the upper address', () => {
    const world = new World();
    world.enableEvent(0x38, 0x4022);
    world.write4(0x44, 0x1);
    world.unit.fault(fault());
    expect(world.interrupts).toEqual(['0x1fee00000 0x4022']);
  });

  it('never loses or invents a fault: met = recorded + collapsed + lost, PPF = some F, one event per service (any sequence)', () => {
    fc.assert(fc.property(fc.array(fc.oneof(fc.record({ sid: fc.integer({ min: 1, max: 6 }) }), fc.record({ clear: fc.nat({ max: 3 }) }), fc.constant({ pfo: true })), { maxLength: 60 }), (steps) => {
      const world = new World({ options: { 'fault-records': 4 } });
      world.enableEvent(0x38, 0x22);
      let events = 0;
      for (const step of steps) {
        const pending = world.read4(0x34) & 2;
        if ('sid' in step) world.unit.fault(fault({ sourceId: step.sid }));
        else if ('clear' in step) world.write4(FRCD + 16 * step.clear + 12, 0x8000_0000);
        else world.write4(0x34, 1);
        const occupied = [0, 1, 2, 3].filter((i) => world.read4(FRCD + 16 * i + 12) >>> 31 === 1);
        const sources = occupied.map((i) => world.read4(FRCD + 16 * i + 8) & 0xffff);
        expect(new Set(sources).size).toBe(sources.length);
        expect((world.read4(0x34) & 2) !== 0).toBe(occupied.length > 0);
        if (pending === 0 && occupied.length > 0) events++;
      }
      const { met, recorded, collapsed, lost } = world.unit.faults.counts;
      expect(met).toBe(recorded + collapsed + lost);
      expect(world.interrupts).toHaveLength(events);
    }), { numRuns: 60 });
  });
});
