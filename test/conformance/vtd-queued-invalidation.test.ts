import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { decodeCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { qwordsOf } from '../../sim/layout.js';
import { PASID_DEVICE_TLB_INVALIDATE, PASID_IOTLB_INVALIDATE, PASID_CACHE_INVALIDATE, INVALIDATION_WAIT } from '../../iommu/intel-vtd/spec/descriptors.js';
import { deviceTlbPages } from '../../iommu/intel-vtd/hardware/invalidation-queue.js';
import { QUEUE, STATUS, World, wait } from './vtd-front-end-world.js';

function ready(options: ConstructorParameters<typeof World>[0] = {}): World {
  const world = new World(options);
  world.enableQueue();
  return world;
}

/** FSTS, IQERCD.IQEI and the head. */
function errorState(world: World): [number, number, number] {
  return [world.read4(0x34), world.read4(0xb0), world.read4(0x80)];
}

const DEVICE_TLB = [0x2_0020_0008n, 0x7f_f57f_063800n] as const;

describe('invalidation descriptors (VT-d 4.1, 6.5.2; requirement 9)', () => {
  it.each([
    ['context cache, global', [0x11n], 'context global did=0 sid=0x0 fm=0'],
    ['context cache, domain', [0x5_0021n], 'context domain did=5 sid=0x0 fm=0'],
    ['context cache, device', [0x1_0019_0005_0031n], 'context device did=5 sid=0x19 fm=1'],
    ['PASID cache, global', [0x37n], 'pasid-cache global did=0 pasid=0x0'],
    ['PASID cache, domain', [0x1_0007n], 'pasid-cache domain did=1 pasid=0x0'],
    ['PASID cache, PASID-selective (VTD-PC-1)', [0x0001_2345_0001_0017n], 'pasid-cache pasid did=1 pasid=0x12345'],
    ['IOTLB, global without drain', [0x12n], 'iotlb global did=0 0x0+1 ih=false'],
    ['IOTLB, domain', [0x4_0022n], 'iotlb domain did=4 0x0+1 ih=false'],
    ['IOTLB, page with hint', [0x4_0032n, 0x1234_5043n], 'iotlb page did=4 0x12340000+8 ih=true'],
    ['device TLB, one page', [0x20_0000_0003n, 0x1234_5000n], 'device-tlb sid=0x20 pasid=-1 0x12345000+1 g=false'],
    ['device TLB, everything', [0x20_0000_0003n, 0x7fff_ffff_ffff_f001n], 'device-tlb sid=0x20 pasid=-1 0x0+Infinity g=false'],
    ['PASID device TLB, one page (VTD-PDIOTLB-1)', [0x0011_2345_0019_9048n, 0x0000_7f01_2345_6000n], 'device-tlb sid=0x19 pasid=74565 0x7f0123456000+1 g=false'],
    ['PASID device TLB of eight pages, as recorded', [...DEVICE_TLB], 'device-tlb sid=0x20 pasid=2 0x7ff57f060000+8 g=false'],
    ['PASID device TLB, everything, global', [0x2_0020_0008n, 0x7fff_ffff_ffff_f801n], 'device-tlb sid=0x20 pasid=2 0x0+Infinity g=true'],
    ['page group response (VTD-PGRP-SUCCESS)', [0x0001_2345_0019_0019n, 0xd2cn], 'response sid=0x19 pasid=74565 pp=true prg=421 code=0 last=true'],
    ['page group response (VTD-PGRP-INVALID)', [0x0001_2345_0019_1019n, 0xd2cn], 'response sid=0x19 pasid=74565 pp=true prg=421 code=1 last=true'],
    ['page group response (VTD-PGRP-FAILURE)', [0x0001_2345_0019_f019n, 0xd2cn], 'response sid=0x19 pasid=74565 pp=true prg=421 code=15 last=true'],
    ['page group response without LPIG, as recorded', [0x2_0020_0019n, 0x8n], 'response sid=0x20 pasid=2 pp=true prg=1 code=0 last=true'],
    ['page group response without PASID', [0x19_0009n, 0xd2cn], 'response sid=0x19 pasid=-1 pp=false prg=421 code=0 last=true'],
  ])('runs %s', (_name, descriptor, call) => {
    const world = ready();
    world.submit(descriptor);
    expect(world.backEnd.take()).toEqual([call]);
    expect(errorState(world)).toEqual([0, 0, 0x20]);
  });

  it.each([
    ['IOTLB with DR and DW', [0xd2n], ['iotlb global did=0 0x0+1 ih=false', 'drain']],
    ['PASID IOTLB, whole PASID (VTD-PIOTLB-1)', [0x0001_2345_0001_0026n], ['pasid-iotlb pasid did=1 pasid=0x12345 0x0+1 ih=false', 'drain']],
    ['PASID IOTLB, one page (VTD-PIOTLB-2)', [0x0001_2345_0001_0036n, 0x0000_7f01_2345_6000n], ['pasid-iotlb page did=1 pasid=0x12345 0x7f0123456000+1 ih=false', 'drain']],
    ['PASID IOTLB of 32 pages, as recorded', [0x2_0001_0036n, 0x7fd9_b5c0_0005n], ['pasid-iotlb page did=1 pasid=0x2 0x7fd9b5c00000+32 ih=false', 'drain']],
  ])('drains after %s', (_name, descriptor, calls) => {
    const world = ready();
    world.submit(descriptor);
    expect(world.backEnd.take()).toEqual(calls);
  });

  it('does not drain where the capability is missing', () => {
    const world = ready({ options: { drain: false } });
    world.submit([0xd2n], [0x2_0001_0026n]);
    expect(world.backEnd.take()).toEqual(['iotlb global did=0 0x0+1 ih=false', 'pasid-iotlb pasid did=1 pasid=0x2 0x0+1 ih=false']);
  });

  it('works by domain and by PASID where page-selective invalidation is missing', () => {
    const world = ready({ options: { psi: false } });
    world.submit([0x4_0032n, 0x1234_5003n], [0x2_0001_0036n, 0x7fd9_b5c0_0005n]);
    expect(world.backEnd.take().filter((call) => call !== 'drain').map((call) => call.split(' ').slice(0, 2).join(' '))).toEqual(['iotlb domain', 'pasid-iotlb pasid']);
  });

  it('ignores domain id bits beyond ND', () => {
    const world = ready({ options: { 'domain-ids': 256 } });
    world.submit([0x1ff_0022n]);
    expect(world.backEnd.take()).toEqual(['iotlb domain did=255 0x0+1 ih=false']);
  });

  it('codes descriptors as the vectors say', () => {
    expect(qwordsOf(PASID_IOTLB_INVALIDATE.encode({ Type: 6, G: 3, DID: 1, PASID: 0x12345, ADDR: 0x7_f012_3456 })).slice(0, 2)).toEqual([0x0001_2345_0001_0036n, 0x7f01_2345_6000n]);
    expect(qwordsOf(PASID_CACHE_INVALIDATE.encode({ Type: 7, G: 1, DID: 1, PASID: 0x12345 }))[0]).toBe(0x0001_2345_0001_0017n);
    expect(qwordsOf(PASID_DEVICE_TLB_INVALIDATE.encode({ Type: 8, MIP: 4, PFSID_3_0: 9, PFSID_15_4: 1, SID: 0x19, PASID: 0x12345, ADDR: 0x7_f012_3456 })).slice(0, 2))
      .toEqual([0x0011_2345_0019_9048n, 0x7f01_2345_6000n]);
    expect(qwordsOf(INVALIDATION_WAIT.encode({ Type: 5, SW: 1, PD: 1, SDATA: 2, SADDR: 0x1000 / 4 })).slice(0, 2)).toEqual([0x0000_0002_0000_00a5n, 0x1000n]);
  });

  it('reads the size of a device-TLB invalidation from the trailing ones of its address', () => {
    fc.assert(fc.property(fc.integer({ min: 0, max: 50 }), fc.bigInt({ min: 0n, max: (1n << 52n) - 1n }), (order, pages) => {
      const page = ((pages >> BigInt(order)) << BigInt(order + 1)) & ((1n << 52n) - 1n);
      const address = (page << 12n) | (((1n << BigInt(order)) - 1n) << 12n);
      expect(deviceTlbPages(Number(address & 0xffff_ffffn), Number(address >> 32n), true)).toBe(2 ** (order + 1));
    }), { numRuns: 200 });
    expect(deviceTlbPages(0xffff_f000, 0x7fff_ffff, true)).toBe(Infinity);
    expect(deviceTlbPages(0x3000, 0, false)).toBe(1);
  });
});

describe('invalidation queue errors (VT-d 4.1, 6.5.2.10, 11.4.8.9; E40)', () => {
  const INVALID_TYPE = 3, RESERVED = 4;
  it.each([
    ['type 0', [0n], INVALID_TYPE],
    ['page stream response, deprecated', [0xan], INVALID_TYPE],
    ['type bits 11:9 set', [0x211n], INVALID_TYPE],
    ['interrupt entry cache without interrupt remapping', [0x4n], INVALID_TYPE],
    ['context cache with granularity 0', [0x1n], RESERVED],
    ['IOTLB with granularity 0', [0x2n], RESERVED],
    ['PASID IOTLB with granularity 0', [0x6n], RESERVED],
    ['PASID IOTLB with granularity 1', [0x16n], RESERVED],
    ['PASID cache with granularity 2', [0x27n], RESERVED],
    ['context cache with a reserved bit', [0x11n | (1n << 50n)], RESERVED],
    ['context cache with something in the second word', [0x11n, 1n], RESERVED],
    ['IOTLB with a reserved bit', [0x12n | (1n << 32n)], RESERVED],
    ['IOTLB with an address mask above MAMV', [0x32n, 19n], RESERVED],
    ['PASID IOTLB with an address mask above MAMV', [0x36n, 19n], RESERVED],
    ['PASID IOTLB with PASID bits above 20', [0x26n | (1n << 52n)], RESERVED],
    ['PASID device TLB with a reserved bit', [0x8n, 2n], RESERVED],
    ['device TLB with a reserved bit', [0x3n, 2n], RESERVED],
    ['wait with an unaligned status address', [0x25n, 0x1001n], RESERVED],
    ['wait with a reserved bit', [0x25n | (1n << 8n), 0x1000n], RESERVED],
    ['page group response with private data', [0x19_0019n | (1n << 5n), 0xd2cn, 7n, 7n], RESERVED],
    ['anything in the upper half', [0x11n, 0n, 1n, 0n], RESERVED],
  ])('stops at a descriptor of %s', (_name, descriptor, code) => {
    const world = ready();
    world.submit(wait(STATUS), descriptor, wait(STATUS + 8));
    expect(errorState(world)).toEqual([0x10, code, 0x20]);
    expect([world.peek(STATUS), world.peek(STATUS + 8)]).toEqual([2n, 0n]);
    expect(world.backEnd.take()).toEqual([]);
  });

  it.each([
    ['device TLB', { 'device-tlb': false, 'page-requests': false }, [0x20_0000_0003n, 0x1000n]],
    ['PASID device TLB', { 'pasid-bits': 0, 'page-requests': false }, [0x2_0020_0008n, 0x1000n]],
    ['page group response', { 'page-requests': false }, [0x2_0020_0019n, 0x8n]],
  ])('takes a %s descriptor for an invalid type when its feature is not reported', (_name, options, descriptor) => {
    const world = ready({ options });
    world.submit(descriptor);
    expect(errorState(world)).toEqual([0x10, INVALID_TYPE, 0]);
  });

  it('reserves PD where page request draining is not reported', () => {
    const world = ready({ options: { 'page-requests': false } });
    world.submit(wait(STATUS, 0xa0n));
    expect(errorState(world)).toEqual([0x10, RESERVED, 0]);
  });

  it('accepts interrupt entry cache invalidations when a recording reports interrupt remapping', () => {
    const world = ready({ capabilities: decodeCapabilities(0x80d2_008c_222f_0606n, 0x4800_80f0_0f4an) });
    world.submit([0x4n], wait());
    expect([errorState(world), world.peek(STATUS)]).toEqual([[0, 0, 0x40], 2n]);
  });

  it('refuses a tail beyond the queue (IQEI 1) and one that is not aligned to 256 bits (IQEI 6)', () => {
    const beyond = ready(), unaligned = ready();
    beyond.write4(0x88, 0x1000);
    unaligned.write4(0x88, 0x30);
    expect([errorState(beyond), errorState(unaligned)]).toEqual([[0x10, 1, 0], [0x10, 6, 0]]);
  });

  it('reports a queue outside memory (IQEI 2)', () => {
    const world = new World();
    world.write8(0x90, 0x8000_0800n);
    world.write4(0x18, 0x0400_0000);
    world.write4(0x88, 0x20);
    expect(errorState(world)).toEqual([0x10, 2, 0]);
  });

  it('reports 128-bit descriptors in scalable mode (IQEI 5) and a reserved table mode (IQEI 7)', () => {
    const narrow = new World(), mode = new World();
    narrow.write8(0x90, BigInt(QUEUE));
    narrow.write8(0x20, 0x40_0400n);
    mode.write8(0x90, BigInt(QUEUE) | 0x800n);
    mode.write8(0x20, 0x40_0800n);
    for (const world of [narrow, mode]) {
      world.write4(0x18, 0x4000_0000);
      world.write4(0x18, 0x0400_0000);
      world.write4(0x88, 0x20);
    }
    expect([errorState(narrow), errorState(mode)]).toEqual([[0x10, 5, 0], [0x10, 7, 0]]);
  });

  it('raises one fault event, holds the tail while IQE is set, and goes on from the head after software cleared it', () => {
    const world = ready();
    world.enableEvent(0x38, 0x22);
    world.submit([0x6n], wait());
    expect(world.interrupts).toEqual(['0xfee00000 0x22']);
    // as the recorded driver: overwrite the bad descriptor with a copy of the wait, then clear IQE
    world.poke(QUEUE, [...wait(), 0n, 0n]);
    world.submit(wait(STATUS + 8));
    expect(world.read4(0x80)).toBe(0);
    world.write4(0x34, 0x10);
    expect([world.read4(0x34), world.read4(0x80)]).toEqual([0, 0]);
    world.clock.run();
    expect([world.read4(0x80), world.peek(STATUS), world.peek(STATUS + 8)]).toEqual([0x60, 2n, 2n]);
    expect(world.interrupts).toHaveLength(1);
  });

  it('goes on at once when software moves the tail after clearing IQE', () => {
    const world = ready();
    world.submit([0x6n]);
    world.poke(QUEUE, [0x11n, 0n, 0n, 0n]);
    world.write4(0x34, 0x10);
    world.submit(wait());
    expect(world.backEnd.take()).toEqual(['context global did=0 sid=0x0 fm=0']);
    expect(world.peek(STATUS)).toBe(2n);
  });

  it('uses 128-bit descriptors in legacy mode, in a ring that wraps', () => {
    const world = new World({ options: { scalable: false } });
    world.write8(0x90, BigInt(QUEUE));
    world.write4(0x18, 0x0400_0000);
    for (let i = 0; i < 300; i++) {
      const at = (i % 256) * 16;
      world.poke(QUEUE + at, [0x5_0000_0000n | 0x25n, BigInt(STATUS + (i % 64) * 4)]);
      world.write4(0x88, (at + 16) % 4096);
      expect(world.read4(0x80)).toBe((at + 16) % 4096);
    }
    expect(world.read4(0x34)).toBe(0);
    expect(world.memory.load(STATUS + 4 * (299 % 64), 4)).toBe(5);
  });

  it('has no PASID-based descriptors in 128-bit queues', () => {
    const world = new World();
    world.write8(0x90, BigInt(QUEUE));
    world.write4(0x18, 0x0400_0000);
    world.poke(QUEUE, [0x37n, 0n]);
    world.write4(0x88, 0x10);
    expect(errorState(world)).toEqual([0x10, INVALID_TYPE, 0]);
  });

  it('returns the head to 0 and forgets what was under way when the queue is disabled', () => {
    const world = ready();
    world.submit([...DEVICE_TLB], wait());
    world.write4(0x18, 0);
    expect(world.read4(0x80)).toBe(0);
    world.backEnd.deviceTlb[0]!('completed');
    expect(world.peek(STATUS)).toBe(0n);
    expect(world.unit.invalidationQueue.pending).toEqual({ operations: 0, waits: 0 });
  });
});

describe('wait descriptors (VT-d 4.1, 6.5.2.8)', () => {
  it('writes the status data, four bytes, to memory (VTD-IWD-1)', () => {
    const world = ready();
    world.poke(STATUS, [0x1111_1111_2222_2222n]);
    world.submit([0x0000_0002_0000_00a5n, BigInt(STATUS + 4)]);
    expect(world.peek(STATUS)).toBe(0x0000_0002_2222_2222n);
  });

  it('drops a status write to an address that is not memory', () => {
    const world = ready();
    world.submit(wait(0x8000_0000), wait());
    expect([errorState(world), world.peek(STATUS)]).toEqual([[0, 0, 0x40], 2n]);
    expect(world.traced('vtd:inv_wait').map(({ args }) => args['written'])).toEqual(['no', 'yes']);
  });

  it('sets IWC and raises the completion event once until software clears IWC', () => {
    const world = ready();
    world.enableEvent(0xa0, 0x23);
    world.submit(wait(STATUS, 0x10n), wait(STATUS, 0x30n));
    expect([world.read4(0x9c), world.interrupts]).toEqual([1, ['0xfee00000 0x23']]);
    world.write4(0x9c, 1);
    expect(world.read4(0x9c)).toBe(0);
    world.submit(wait(STATUS, 0x10n));
    expect(world.interrupts).toHaveLength(2);
  });

  it('holds the event back while it is masked, and withdraws it when IWC is cleared first', () => {
    const world = ready();
    world.enableEvent(0xa0, 0x23);
    world.write4(0xa0, 0x8000_0000);
    world.submit(wait(STATUS, 0x10n));
    expect(world.read4(0xa0)).toBe(0xc000_0000);
    world.write4(0x9c, 1);
    expect(world.read4(0xa0)).toBe(0x8000_0000);
    world.submit(wait(STATUS, 0x10n));
    world.write4(0xa0, 0);
    expect([world.read4(0xa0), world.interrupts]).toEqual([0, ['0xfee00000 0x23']]);
  });

  it('completes after the device-TLB invalidations ahead of it, in order, while later descriptors go on', () => {
    const world = ready();
    world.submit([...DEVICE_TLB], wait(STATUS), [0x11n], [...DEVICE_TLB], wait(STATUS + 8));
    expect(world.read4(0x80)).toBe(0xa0);
    expect(world.backEnd.take()).toHaveLength(3);
    world.backEnd.deviceTlb[1]!('completed');
    expect([world.peek(STATUS), world.peek(STATUS + 8)]).toEqual([0n, 0n]);
    world.backEnd.deviceTlb[0]!('completed');
    expect([world.peek(STATUS), world.peek(STATUS + 8)]).toEqual([2n, 2n]);
  });

  it('lets nothing pass a fence until it completed (FN)', () => {
    const world = ready();
    // the drain of the recorded driver at unbind: fence, PASID IOTLB, device TLB, wait with PD
    world.submit([...DEVICE_TLB], [0x2_0000_0045n], [0x2_0003_0026n], [0x2_0020_0008n, 0x7fff_ffff_ffff_f800n], [0x2_0000_00a5n, BigInt(STATUS)]);
    expect(world.backEnd.take()).toEqual(['device-tlb sid=0x20 pasid=2 0x7ff57f060000+8 g=false']);
    expect(world.read4(0x80)).toBe(0x40);
    world.backEnd.deviceTlb[0]!('completed');
    expect(world.backEnd.take()).toEqual(['pasid-iotlb pasid did=3 pasid=0x2 0x0+1 ih=false', 'drain', 'device-tlb sid=0x20 pasid=2 0x0+Infinity g=false']);
    expect([world.read4(0x80), world.peek(STATUS)]).toEqual([0xa0, 0n]);
    world.backEnd.deviceTlb[1]!('completed');
    expect(world.peek(STATUS)).toBe(2n);
  });

  it('waits for the drain of an IOTLB invalidation ahead of it', () => {
    const world = ready();
    world.backEnd.drainAtOnce = false;
    world.submit([0xd2n], wait());
    expect(world.peek(STATUS)).toBe(0n);
    world.backEnd.drains[0]!();
    expect(world.peek(STATUS)).toBe(2n);
  });

  it('completes whatever order devices answer in, never before everything ahead (any interleaving)', () => {
    fc.assert(fc.property(fc.array(fc.constantFrom('tlb', 'wait', 'fence'), { minLength: 1, maxLength: 12 }), fc.array(fc.nat(), { maxLength: 40 }), (program, choices) => {
      const world = ready();
      const ended = new Set<number>();
      const before: number[] = [];
      let invalidations = 0;
      program.forEach((kind, i) => {
        if (kind === 'tlb') {
          invalidations++;
          world.queue([...DEVICE_TLB]);
        } else {
          before[i] = invalidations;
          world.queue(wait(STATUS + 8 * i, kind === 'fence' ? 0x60n : 0x20n));
        }
      });
      world.submit();
      const check = (): void => program.forEach((kind, i) => {
        if (kind === 'tlb') return;
        let ready = true;
        for (let n = 0; n < before[i]!; n++) ready &&= ended.has(n);
        expect(world.peek(STATUS + 8 * i) === 2n).toBe(ready);
      });
      check();
      for (let step = 0; ended.size < invalidations; step++) {
        const open = world.backEnd.deviceTlb.map((_, n) => n).filter((n) => !ended.has(n));
        const n = open[(choices[step] ?? 0) % open.length]!;
        ended.add(n);
        world.backEnd.deviceTlb[n]!('completed');
        check();
      }
      expect(world.read4(0x80)).toBe(program.length * 32);
    }), { numRuns: 60 });
  });
});

describe('device-TLB errors (VT-d 4.1, 6.5.2.11; E39)', () => {
  it('sets ITE with the requester, aborts waits that were fetched, and stops fetching', () => {
    const world = ready();
    world.enableEvent(0x38, 0x22);
    world.submit([...DEVICE_TLB], wait(STATUS), [0x11n]);
    world.backEnd.take();
    world.backEnd.deviceTlb[0]!('timed-out');
    expect([world.read4(0x34), world.read8(0xb0), world.read4(0x80)]).toEqual([0x40, 0x20_0000_0000n, 0x60]);
    expect(world.interrupts).toEqual(['0xfee00000 0x22']);
    expect(world.traced('vtd:inv_wait').map(({ args }) => args['aborted'])).toEqual(['yes']);
    world.submit([0x37n], wait(STATUS + 8));
    expect([world.backEnd.take(), world.read4(0x80)]).toEqual([[], 0x60]);
    world.write4(0x34, 0x40);
    world.clock.run();
    expect(world.backEnd.take()).toEqual(['pasid-cache global did=0 pasid=0x0']);
    expect([world.peek(STATUS), world.peek(STATUS + 8), world.read4(0x80)]).toEqual([0n, 2n, 0xa0]);
  });

  it('lifts a fence that was waiting for the device', () => {
    const world = ready();
    world.submit([...DEVICE_TLB], wait(STATUS, 0x60n), [0x11n]);
    world.backEnd.take();
    world.backEnd.deviceTlb[0]!('timed-out');
    expect(world.backEnd.take()).toEqual([]);
    world.write4(0x34, 0x40);
    world.clock.run();
    expect(world.backEnd.take()).toEqual(['context global did=0 sid=0x0 fm=0']);
  });

  it('keeps the requester of the first of several timeouts', () => {
    const world = ready();
    world.submit([...DEVICE_TLB], [0x2_0028_0008n, 0x1000n]);
    world.backEnd.deviceTlb[1]!('timed-out');
    world.backEnd.deviceTlb[0]!('timed-out');
    expect(world.read8(0xb0)).toBe(0x28_0000_0000n);
  });

  it('sets ICE for a completion that nobody waits for, and goes on', () => {
    const world = ready();
    world.unit.invalidCompletion(0x28);
    expect([world.read4(0x34), world.read8(0xb0)]).toEqual([0x20, 0x28_0000_0000_0000n]);
    world.submit(wait());
    expect(world.peek(STATUS)).toBe(2n);
    world.write4(0x34, 0x20);
    expect(world.read4(0x34)).toBe(0);
  });
});

describe('traces and defects of the queue', () => {
  it('traces each descriptor as it was read', () => {
    const world = ready();
    world.submit([0x2_0001_0036n, 0x7fd9_b5c0_0005n]);
    expect(world.traced('vtd:descriptor')[0]!.args).toEqual({ unit: 'dmar0', head: '0x0', type: 'P-IOTLB', q0_lo: '0x10036', q0_hi: '0x2', q1_lo: '0xb5c00005', q1_hi: '0x7fd9' });
  });

  it('can be broken: IOTLB flushes skipped, waits that do not wait', () => {
    const skipping = ready({ defects: ['vtd.skip-iotlb-flush'] });
    skipping.submit([0x12n], [0x2_0001_0026n], wait());
    expect([skipping.backEnd.take(), skipping.peek(STATUS)]).toEqual([['drain'], 2n]);
    const hasty = ready({ defects: ['vtd.wait-ignores-device-tlb'] });
    hasty.submit([...DEVICE_TLB], wait());
    expect(hasty.peek(STATUS)).toBe(2n);
  });
});
