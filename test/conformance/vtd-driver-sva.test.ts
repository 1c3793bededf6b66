/** Processes under PASIDs on VT-d: bind, invalidation, the silent end of a process, and the drain at unbind (B7, M6, U7, flow 2b). */
import { describe, expect, it } from 'vitest';
import type { AddressSpace } from '../../host/mm/address-space.js';
import { DriverWorld, type TestFunction } from './vtd-driver-world.js';

const WAIT = 'd WAIT 0x200000025';

interface Bound {
  readonly world: DriverWorld;
  readonly dsa: TestFunction;
  readonly mm: ReturnType<DriverWorld['process']>;
  readonly pasid: number;
  /** Page number of 16 fresh pages. */
  readonly page: number;
}

function bound(options: ConstructorParameters<typeof DriverWorld>[0] = {}): Bound {
  const world = new DriverWorld(options).start();
  const dsa = world.svaFunction();
  const mm = world.process();
  const pasid = world.run(world.core.svaBind(dsa, mm));
  const page = world.run(mm.mmap(16 * 4096)) / 4096;
  world.take();
  dsa.invalidations.length = 0;
  return { world, dsa, mm, pasid, page };
}

/** Asks for a page, waits for the answer, and translates. */
function touch({ world, dsa, pasid }: Bound, page: number, prgIndex = 0): ReturnType<DriverWorld['ats']> {
  world.unit.pageRequest(dsa.sourceId, pasid, page, 3, true, prgIndex);
  world.settle();
  return world.ats(dsa, page, pasid);
}

describe('svaAttach', () => {
  it('lets the device walk the process\' own tables', () => {
    const it = bound();
    expect(it.world.ats(it.dsa, it.page, it.pasid)).toBe(undefined);
    expect(touch(it, it.page)).toMatchObject({ read: true, write: true });
    const physical = it.world.ats(it.dsa, it.page, it.pasid)!.page;
    it.world.run(it.mm.write(it.page * 4096, new Uint8Array([7])));
    expect(it.world.ram.load(physical * 4096, 1)).toBe(7);
  });

  it('refuses: not enabled ENODEV, PASID 0 EINVAL, beyond the device ENOSPC (B7), in use EBUSY; nothing changes', () => {
    const { world, dsa, mm, pasid } = bound();
    const plain = world.function({ sourceId: 0x28 });
    expect(world.refused(world.driver.svaAttach(plain, mm, 5))).toBe('ENODEV');
    expect(world.refused(world.driver.svaAttach(dsa, mm, 0))).toBe('EINVAL');
    const narrow = world.svaFunction({ sourceId: 0x30, pasidBits: 4 });
    expect(world.refused(world.driver.svaAttach(narrow, mm, 16))).toBe('ENOSPC');
    expect(world.refused(world.driver.svaAttach(dsa, mm, pasid))).toBe('EBUSY');
    expect(world.takeDescriptors().filter((note) => note.includes('P_IOTLB'))).toEqual([]);
    world.run(world.driver.svaAttach(narrow, mm, 15));
  });

  it('refuses tables that the unit cannot walk (U7)', () => {
    const world = new DriverWorld({ capabilities: { 'first-level-1g': false } }).start();
    const dsa = world.svaFunction();
    const like = (change: PropertyDescriptorMap): AddressSpace => Object.create(world.process(), change) as AddressSpace;
    expect(world.refused(() => world.driver.svaCheckFormat(dsa, like({ usesGigantic: { value: true } })))).toBe('EINVAL');
    expect(world.refused(() => world.driver.svaCheckFormat(dsa, like({ usesGigantic: { value: false }, levels: { value: 5 } })))).toBe('EINVAL');
    world.driver.svaCheckFormat(dsa, like({ usesGigantic: { value: false } }));
    const wide = new DriverWorld({ capabilities: { 'five-level': true } }).start();
    wide.driver.svaCheckFormat(wide.svaFunction(), like({ usesGigantic: { value: true }, levels: { value: 5 } }));
  });
});

describe('svaInvalidate', () => {
  it('flushes IOTLB and device TLB for an aligned power of two, in one submission', () => {
    const it = bound();
    touch(it, it.page);
    it.world.take();
    it.world.run(it.mm.munmap(it.page * 4096, 16 * 4096));
    const aligned = it.page - (it.page % 32);
    // 16 pages that cross a multiple of 16: 32 pages, AM 5
    expect(it.page % 16).not.toBe(0);
    const notes = it.world.takeDescriptors();
    expect(notes).toHaveLength(3);
    expect(notes[0]).toBe(`d P_IOTLB 0x${pasidWord(it.pasid, 0x10036)} 0x${(aligned * 4096 + 5).toString(16)}`);
    expect(notes[1]).toBe(`d P_DEVTLB 0x${pasidWord(it.pasid, 0x200008)} 0x${((aligned + 15) * 4096 + 0x800).toString(16)}`);
    expect(notes[2]).toBe(WAIT);
    expect(it.dsa.invalidations).toEqual([`${it.pasid} ${aligned.toString(16)}+32`]);
    expect(it.world.ats(it.dsa, it.page, it.pasid)).toBe(undefined);
  });

  it('is PASID-wide beyond the largest address mask, and for everything', () => {
    const { world, dsa, pasid } = bound({ capabilities: { mamv: 9 } });
    world.run(world.driver.svaInvalidate([dsa], pasid, 0x1000_0000, 0x1040_0000));
    world.run(world.driver.svaInvalidate([dsa], pasid, 0, 2 ** 57));
    expect(world.takeDescriptors()).toEqual([
      `d P_IOTLB 0x${pasidWord(pasid, 0x10026)} 0x0`, `d P_DEVTLB 0x${pasidWord(pasid, 0x200008)} 0x101ff800`, WAIT,
      `d P_IOTLB 0x${pasidWord(pasid, 0x10026)} 0x0`, `d P_DEVTLB 0x${pasidWord(pasid, 0x200008)} 0x7ffffffffffff800`, WAIT,
    ]);
  });

  it('is one IOTLB descriptor per unit and one per device TLB; devices without the PASID are left alone', () => {
    const { world, dsa, mm, pasid } = bound();
    const second = world.svaFunction({ sourceId: 0x28 });
    const third = world.svaFunction({ sourceId: 0x30 });
    world.run(world.core.svaBind(second, mm));
    world.run(world.driver.svaInvalidate([dsa, second, third], pasid, 0x5000, 0x6000));
    expect(world.takeDescriptors().map((note) => note.split(' ')[1])).toEqual(['P_IOTLB', 'P_DEVTLB', 'P_DEVTLB', 'WAIT']);
    expect(third.invalidations.filter((line) => !line.startsWith('-1'))).toEqual([]);
  });

  it('flushes nothing for an empty range', () => {
    const { world, dsa, pasid } = bound();
    world.run(world.driver.svaInvalidate([dsa], pasid, 0x5000, 0x5000));
    expect(world.take()).toEqual([]);
  });
});

/** Hexadecimal of pasid << 32 | low. */
function pasidWord(pasid: number, lowWord: number): string {
  return pasid.toString(16) + lowWord.toString(16).padStart(8, '0');
}

describe('a process that ends while its device goes on (M6)', () => {
  it('leaves FPD without P; translations end silently, requests are answered Invalid, nothing is logged', () => {
    const it = bound();
    touch(it, it.page);
    it.world.run(it.mm.put());
    expect(it.world.takeDescriptors().filter((note) => note !== WAIT).slice(-3).map((note) => note.split(' ')[1])).toEqual(['PASIDC', 'P_IOTLB', 'P_DEVTLB']);
    for (let i = 0; i < 1000; i++) expect(it.world.dma(it.dsa, it.page + i, true, it.pasid)).toBe(undefined);
    expect(it.world.ats(it.dsa, it.page, it.pasid)).toBe(undefined);
    it.dsa.responses.length = 0;
    it.world.unit.pageRequest(it.dsa.sourceId, it.pasid, it.page, 1, true, 9);
    it.world.settle();
    expect(it.dsa.responses).toEqual([`9 1 ${it.pasid}`]);
    expect(it.world.lines(/fault/)).toEqual([]);
    expect(it.world.driver.units[0]!.faultInterrupt.records).toBe(0);
  });

  it('is an error that is recorded once unbind has returned (scenario 12)', () => {
    const it = bound();
    it.world.run(it.mm.put());
    it.world.run(it.world.core.svaUnbind(it.dsa, it.pasid));
    it.world.dma(it.dsa, it.page, true, it.pasid);
    it.world.settle();
    expect(it.world.lines(/DMA Write/)).toEqual([
      `DMAR: [DMA Write PASID 0x${it.pasid.toString(16)}] Request device [0000:00:04.0] fault addr 0x${it.page.toString(16)}000 [fault reason 0x59] SM: Present bit in PASID Table Entry is clear`,
    ]);
  });

  it('would be logged without FPD (defect vtd-driver.log-after-exit)', () => {
    const it = bound({ driverDefects: ['vtd-driver.log-after-exit'] });
    it.world.run(it.mm.put());
    it.world.dma(it.dsa, it.page, true, it.pasid);
    it.world.settle();
    expect(it.world.lines(/DMA Write/)).toHaveLength(1);
  });
});

describe('svaDetach (flow 2b)', () => {
  it('tears down PASID cache, IOTLB and device TLB one after the other, then drains: fence, both again, PD', () => {
    const { world, dsa, pasid } = bound();
    world.run(world.core.svaUnbind(dsa, pasid));
    const all = `0x${pasidWord(pasid, 0x10026)} 0x0`, tlb = `0x${pasidWord(pasid, 0x200008)} 0x7ffffffffffff800`;
    expect(world.take().filter((note) => !note.startsWith('r FSTS') && !note.startsWith('w IQT'))).toEqual([
      `d PASIDC 0x${pasidWord(pasid, 0x10017)} 0x0`, WAIT, `d P_IOTLB ${all}`, WAIT, `d P_DEVTLB ${tlb}`, WAIT,
      'r PQT 8 0x0', 'r PQH 8 0x0',
      // the recording names the default domain in the drain's IOTLB descriptor, whose entries this PASID never has
      'd WAIT 0x200000045', `d P_IOTLB ${all}`, `d P_DEVTLB ${tlb}`, 'd WAIT 0x2000000a5', 'r PRS 4 0x0',
    ]);
  });

  it('returns only after five outstanding requests are answered (scenario 9)', () => {
    const it = bound();
    for (let i = 0; i < 5; i++) it.world.unit.pageRequest(it.dsa.sourceId, it.pasid, it.page + i, 1, true, i);
    it.world.run(it.world.core.svaUnbind(it.dsa, it.pasid));
    expect(it.world.core.usage.pendingRequests).toBe(0);
    expect(it.world.driver.units[0]!.pageRequests!.requests).toBe(5);
    it.world.settle();
    expect(it.dsa.responses.map((line) => Number(line.split(' ')[0])).toSorted((a, b) => a - b)).toEqual([0, 1, 2, 3, 4]);
  });

  it('would return early without the drain (defect vtd-driver.skip-prq-drain)', () => {
    const it = bound({ driverDefects: ['vtd-driver.skip-prq-drain'] });
    for (let i = 0; i < 5; i++) it.world.unit.pageRequest(it.dsa.sourceId, it.pasid, it.page + i, 1, true, i);
    it.world.run(it.world.driver.svaDetach(it.dsa, it.pasid));
    expect(it.dsa.responses.length).toBeLessThan(5);
  });

  it('refuses a PASID that is not installed (ESRCH), and then changes nothing', () => {
    const { world, dsa, pasid } = bound();
    expect(world.refused(world.driver.svaDetach(dsa, pasid + 1))).toBe('ESRCH');
    expect(world.take()).toEqual([]);
  });

  it('leaves the PASID cache behind with defect vtd-driver.skip-pasid-cache-flush, so that a dead process stays reachable', () => {
    for (const [defects, reachable] of [[[], false], [['vtd-driver.skip-pasid-cache-flush'], true]] as const) {
      const it = bound({ driverDefects: defects });
      touch(it, it.page);
      it.world.run(it.world.driver.svaDetach(it.dsa, it.pasid));
      expect(it.world.ats(it.dsa, it.page, it.pasid) !== undefined).toBe(reachable);
    }
  });
});

describe('defects of range invalidation', () => {
  it.each([
    ['vtd-driver.skip-iotlb-flush', ['P_DEVTLB', 'WAIT']], ['vtd-driver.skip-device-tlb-flush', ['P_IOTLB', 'WAIT']],
  ])('%s leaves a cache alone', (defect, types) => {
    const { world, dsa, pasid } = bound({ driverDefects: [defect] });
    world.run(world.driver.svaInvalidate([dsa], pasid, 0x5000, 0x6000));
    expect(world.takeDescriptors().map((note) => note.split(' ')[1])).toEqual(types);
  });
});

describe('a device that is pulled out', () => {
  it('is released quickly although its TLB never answers, and everything is returned (2g, E39)', () => {
    const it = bound({ timing: { invalidationTimeoutNs: 1_000_000 } });
    const { world, dsa } = it;
    world.unit.pageRequest(dsa.sourceId, it.pasid, it.page, 1, true, 1);
    dsa.present = false;
    const start = world.clock.now;
    world.run(world.core.deviceRemove(dsa));
    expect(world.clock.now - start).toBeLessThan(100_000);
    expect(world.takeDescriptors().filter((note) => note.includes('DEVTLB'))).toEqual([]);
    expect(world.driver.units[0]!.queue.submitted).toBeGreaterThan(0);
    // page requests of a function that has left
    world.unit.pageRequest(dsa.sourceId, it.pasid, it.page, 1, true, 2);
    world.settle();
    expect(world.refused(world.driver.svaAttach(dsa, it.mm, 3))).toBe('ENODEV');
  });

  it('in the middle of an unbind costs one time-out and no more', () => {
    const it = bound({ timing: { invalidationTimeoutNs: 1_000_000 } });
    const { world, dsa } = it;
    dsa.completes = false;
    world.clock.post(200, () => { dsa.present = false; });
    const start = world.clock.now;
    world.run(world.core.svaUnbind(dsa, it.pasid));
    expect(world.clock.now - start).toBeLessThan(1_200_000);
    expect(world.lines(/ETIMEDOUT/)).toEqual(['DMAR: dmar0: invalidation failed (ETIMEDOUT)']);
  });

  it('returns every frame of its tables', () => {
    const world = new DriverWorld().start();
    const used = (): number => world.frames.usage().filter((entry) => entry.owner.includes('PASID tables')).reduce((sum, entry) => sum + entry.frames, 0);
    const dsa = world.svaFunction();
    const mm = world.process();
    const pasid = world.run(world.core.svaBind(dsa, mm));
    expect(used()).toBeGreaterThan(0);
    world.run(world.core.svaUnbind(dsa, pasid));
    world.run(world.core.deviceRemove(dsa));
    expect(used()).toBe(0);
    expect(dsa.switched.slice(-3)).toEqual(['pri off', 'ats off', 'pasid off']);
  });
});
