/** Page requests and their answers as the driver sees them: bytes of the queue, rules, overflow (3.1, P2–P9, E15–E21, R8). */
import { describe, expect, it } from 'vitest';
import { ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE, NO_PASID } from '../../host/pci/dma-port.js';
import { FAULT_PAGE_REQ, type FaultReport, type PageRequest } from '../../iommu/core/ops.js';
import { REG } from '../../iommu/intel-vtd/spec/registers.js';
import { DriverWorld, type TestFunction } from './vtd-driver-world.js';

interface Listening {
  readonly world: DriverWorld;
  readonly dsa: TestFunction;
  readonly reports: FaultReport[];
  readonly pasid: number;
}

/** A function with page requests on and a bound process; what the driver reports is noted. */
function listening(options: ConstructorParameters<typeof DriverWorld>[0] = {}): Listening {
  const world = new DriverWorld(options).start();
  const dsa = world.svaFunction();
  const pasid = world.run(world.core.svaBind(dsa, world.process()));
  world.take();
  const reports: FaultReport[] = [];
  world.driver.faults.values$.subscribe((report) => reports.push(report));
  return { world, dsa, reports, pasid };
}

/** Puts descriptors (pairs of 64-bit words) into the ring behind the tail, as hardware would, and interrupts. */
function inject(world: DriverWorld, ...descriptors: (readonly [bigint, bigint])[]): void {
  const { unit } = world;
  unit.read(REG.PQA, 8);
  const pqa = unit.read(REG.PQA, 8);
  const base = pqa & ~0xfff, mask = (4096 << (pqa & 7)) - 32;
  let tail = unit.read(REG.PQT, 8);
  for (const [q0, q1] of descriptors) {
    world.ram.store64(base + tail, Number(q0 & 0xffff_ffffn), Number(q0 >> 32n));
    world.ram.store64(base + tail + 8, Number(q1 & 0xffff_ffffn), Number(q1 >> 32n));
    tail = (tail + 32) & mask;
  }
  unit.write(REG.PQT, 8, tail, 0);
  unit.write(REG.PQH, 8, unit.read(REG.PQH, 8), 0);
  const data = unit.read(REG.PEDATA, 4), address = unit.read(REG.PEADDR, 4);
  world.interrupts.message(address, data, 0);
}

describe('a page request descriptor', () => {
  it('VTD-PRQ-1 becomes a report with its fields', () => {
    const { world, dsa, reports } = listening();
    const other = world.svaFunction({ sourceId: 0x19 });
    inject(world, [0x0001234500190101n, 0x00007f0123456d2fn]);
    world.settle();
    expect(reports).toHaveLength(1);
    expect(reports[0]).toMatchObject({ device: other, fault: {
      type: FAULT_PAGE_REQ, pasid: 0x12345, prgIndex: 0x1a5, last: true, access: ACCESS_READ | ACCESS_WRITE, page: 0x7f0123456, responseNeedsPasid: true,
    } });
    expect(dsa.responses).toEqual([]);
  });

  it('VTD-PRQ-2, a stop marker, is dropped without an answer (P9, scenario 10)', () => {
    const { world, reports } = listening();
    world.svaFunction({ sourceId: 0x19 });
    world.take();
    inject(world, [0x0001234500190101n, 0x4n]);
    world.settle();
    expect([reports, world.takeDescriptors()]).toEqual([[], []]);
    expect(world.driver.units[0]!.pageRequests!.requests).toBe(1);
  });

  it('passes on EXE and write, and a high canonical address', () => {
    const { world, reports } = listening();
    inject(world, [0x0010000100200101n, 0xffff_8000_0000_0003n & ~1n | 4n]);
    world.settle();
    expect(reports[0]!.fault).toMatchObject({ access: ACCESS_WRITE | ACCESS_EXECUTE, page: 0xffff_8000_0000_0000 / 4096, last: true });
  });
});

describe('what is refused by rule, in order (3.1)', () => {
  const LAST = 4n, READ = 1n, WRITE = 2n, INDEX = 7n << 3n;
  const EXE = 1n << 52n, PM = 1n << 53n;
  const USUAL = 0x0000_0001_0020_0101n;
  const PAGE = 0x7f00_0000_1000n;
  const cases: [what: string, q0: bigint, q1: bigint, log: string][] = [
    ['no PASID (E17)', USUAL & ~0x100n, PAGE | READ, 'Page request without PASID'],
    ['a non-canonical address (E16)', USUAL, 0x8000_0000_0000n | READ, 'Address is not canonical'],
    ['privileged access (E18)', USUAL | PM, PAGE | READ, 'Page request in Privilege Mode'],
    ['a privileged write', USUAL | PM, PAGE | WRITE, 'Page request in Privilege Mode'],
    ['execute and read', USUAL | EXE, PAGE | READ, 'Execution request not supported'],
    ['an unknown requester (E19)', USUAL & ~0xffff_0000n | 0x77_0000n, PAGE | READ, 'Invalid page request'],
  ];
  it.each(cases)('%s: Invalid if last, otherwise nothing', (_what, q0, q1, log) => {
    const { world, reports } = listening();
    inject(world, [q0, q1 | INDEX]);
    world.settle();
    expect([reports, world.takeDescriptors()]).toEqual([[], []]);
    expect(world.lines(new RegExp(log))).toHaveLength(1);
    inject(world, [q0, q1 | INDEX | LAST]);
    world.settle();
    const pasid = (q0 & 0x100n) === 0n ? 0n : 0x10n;
    const expected = (((q0 >> 16n) & 0xffffn) << 16n) | 0x1009n | pasid | (1n << 32n);
    expect(world.takeDescriptors()[0]).toBe(`d PGRP 0x${expected.toString(16)} 0x3c`);
  });

  it('a privileged stop marker is a stop marker', () => {
    const { world, reports } = listening();
    inject(world, [USUAL | PM, LAST]);
    world.settle();
    expect([reports, world.takeDescriptors()]).toEqual([[], []]);
  });
});

describe('the interrupt thread', () => {
  it('clears PPR, reads tail and head, gives the entries back, looks at PRS, then answers (vtd-scalable-dsa-sva)', () => {
    const world = new DriverWorld().start();
    const dsa = world.svaFunction();
    const mm = world.process();
    const pasid = world.run(world.core.svaBind(dsa, mm));
    const page = world.run(mm.mmap(4096)) / 4096;
    world.take();
    world.unit.pageRequest(dsa.sourceId, pasid, page, ACCESS_WRITE, true, 1);
    world.settle();
    // LPIG (bit 2 of the second word) is set, as requirements section 9 has it; Linux 7.3 leaves it clear
    expect(world.take()).toEqual([
      'w PRS 4 0x1', 'r PQT 8 0x20', 'r PQH 8 0x0', 'w PQH 8 0x20', 'r PRS 4 0x0', 'w IQT 4 0x200', `d PGRP 0x${pasid}00200019 0xc`, 'd WAIT 0x200000025',
    ]);
    expect(dsa.responses).toEqual([`1 0 ${pasid}`]);
  });

  it('takes a whole burst in one pass, in order, and wraps', () => {
    const { world, dsa, reports, pasid } = listening({ driver: { prqOrder: 0 } });
    for (let burst = 0; burst < 5; burst++) {
      for (let i = 0; i < 100; i++) world.unit.pageRequest(dsa.sourceId, pasid, burst * 100 + i, ACCESS_READ, false, 0);
      world.settle();
    }
    expect(reports.map(({ fault }) => (fault as PageRequest).page)).toEqual(Array.from({ length: 500 }, (_, i) => i));
    expect(world.take().filter((note) => note.startsWith('w PRS'))).toHaveLength(5);
  });

  it('runs again for requests that arrive while it works', () => {
    const { world, dsa, reports, pasid } = listening();
    let more = 3;
    world.driver.faults.values$.subscribe(() => {
      if (more-- > 0) world.unit.pageRequest(dsa.sourceId, pasid, 100 + more, ACCESS_READ, false, 0);
    });
    world.unit.pageRequest(dsa.sourceId, pasid, 7, ACCESS_READ, false, 0);
    world.settle();
    expect(reports).toHaveLength(4);
    expect([world.unit.read(REG.PQH, 8), world.unit.read(REG.PQT, 8)]).toEqual([128, 128]);
  });

  it('reports a group of 16 in order and answers once (scenario 1)', () => {
    const world = new DriverWorld().start();
    const dsa = world.svaFunction();
    const mm = world.process();
    const pasid = world.run(world.core.svaBind(dsa, mm));
    const page = world.run(mm.mmap(16 * 4096)) / 4096;
    for (let i = 0; i < 16; i++) world.unit.pageRequest(dsa.sourceId, pasid, page + i, ACCESS_READ, i === 15, 4);
    world.settle();
    expect(dsa.responses).toEqual([`4 0 ${pasid}`]);
    for (let i = 0; i < 16; i++) expect(world.ats(dsa, page + i, pasid)).toBeDefined();
  });
});

describe('overflow (P7, E21, scenario 8)', () => {
  it('discards partial groups and clears PRO; the device completes by asking again', () => {
    const world = new DriverWorld({ driver: { prqOrder: 0 } }).start();
    const dsa = world.svaFunction();
    const mm = world.process();
    const pasid = world.run(world.core.svaBind(dsa, mm));
    const page = world.run(mm.mmap(200 * 4096)) / 4096;
    // one group of 200 in a ring of 128: its last is lost to the queue and answered by hardware
    for (let i = 0; i < 200; i++) world.unit.pageRequest(dsa.sourceId, pasid, page + i, ACCESS_READ, i === 199, 2);
    world.settle();
    expect(world.driver.units[0]!.pageRequests!.overflows).toBe(1);
    expect(world.unit.read(REG.PRS, 4)).toBe(0);
    expect(dsa.responses).toEqual([`2 0 ${pasid}`]);
    expect(world.core.usage.pendingRequests).toBe(0);
    expect(world.lines(/PRQ overflow/)).toEqual(['DMAR: IOMMU: dmar0: PRQ overflow detected', 'DMAR: IOMMU: dmar0: PRQ overflow cleared']);
    world.unit.pageRequest(dsa.sourceId, pasid, page + 199, ACCESS_READ, true, 2);
    world.settle();
    expect(world.ats(dsa, page + 199, pasid)).toBeDefined();
  });

  it('while a bond ends: the drain is repeated until PRO is clear', () => {
    const world = new DriverWorld({ driver: { prqOrder: 0 } }).start();
    const dsa = world.svaFunction();
    const mm = world.process();
    const pasid = world.run(world.core.svaBind(dsa, mm));
    for (let i = 0; i < 200; i++) world.unit.pageRequest(dsa.sourceId, pasid, 0x100 + i, ACCESS_READ, false, 2);
    world.run(world.core.svaUnbind(dsa, pasid));
    expect(world.unit.read(REG.PRS, 4)).toBe(0);
    world.settle();
    expect(world.driver.units[0]!.pageRequests!.overflows).toBe(1);
  });
});

describe('responses', () => {
  const request = (pasid: number, prgIndex: number): PageRequest =>
    ({ type: FAULT_PAGE_REQ, pasid, prgIndex, last: true, access: ACCESS_READ | ACCESS_PRIVILEGED, page: 1, responseNeedsPasid: true, token: undefined });

  it.each([['SUCCESS', 0], ['INVALID', 1], ['FAILURE', 15]] as const)('%s goes out as %i, not as the generic number (R8)', (code, wire) => {
    const { world, dsa } = listening();
    world.driver.pageResponse({ timeNs: 0, correlation: 0, device: dsa, code, request: request(5, 9) });
    world.settle();
    expect(dsa.responses).toEqual([`9 ${wire} 5`]);
  });

  it('would be a wrong code with defect vtd-driver.generic-failure-code', () => {
    const { world, dsa } = listening({ driverDefects: ['vtd-driver.generic-failure-code'] });
    world.driver.pageResponse({ timeNs: 0, correlation: 0, device: dsa, code: 'FAILURE', request: request(5, 9) });
    world.settle();
    expect(dsa.responses).toEqual(['9 2 5']);
  });

  it('to a request without PASID carries none', () => {
    const { world, dsa } = listening();
    world.driver.pageResponse({ timeNs: 0, correlation: 0, device: dsa, code: 'SUCCESS', request: request(NO_PASID, 9) });
    world.settle();
    expect(world.takeDescriptors()[0]).toBe('d PGRP 0x200009 0x4c');
  });

  it('to a function that has left goes nowhere', () => {
    const { world, dsa } = listening();
    world.run(world.core.deviceRemove(dsa));
    world.take();
    world.driver.pageResponse({ timeNs: 0, correlation: 0, device: dsa, code: 'SUCCESS', request: request(5, 9) });
    world.settle();
    expect(world.take()).toEqual([]);
  });
});

describe('intel-svm (U1)', () => {
  it('has one page request thread per unit, whatever the number of devices and processes', () => {
    const { world, dsa, pasid } = listening();
    const more = world.svaFunction({ sourceId: 0x30 });
    const second = world.run(world.core.svaBind(more, world.process()));
    world.unit.pageRequest(dsa.sourceId, pasid, 0x10, 1, true, 1);
    world.unit.pageRequest(more.sourceId, second, 0x10, 1, true, 2);
    world.settle();
    expect(world.driver.units.map((unit) => unit.pageRequests!.requests)).toEqual([2]);
    expect([dsa.responses, more.responses]).toEqual([[`1 1 ${pasid}`], [`2 1 ${second}`]]);
  });

  it.each<[string, bigint, bigint, readonly string[]]>([
    ['without PASID', 0x00200001n, 0x1004n | 1n | (7n << 3n), ['7 1 -1']],
    ['without PASID, not last', 0x00200001n, 0x1001n | (7n << 3n), []],
    ['with a PASID that nobody owns', 0x0000_0777_0020_0101n, 0x1005n | (7n << 3n), ['7 1 1911']],
    ['in privileged mode with read', 0x0020_0001_0020_0101n, 0x1005n | (7n << 3n), ['7 1 1']],
    ['to execute and read', 0x0010_0001_0020_0101n, 0x1005n | (7n << 3n), ['7 1 1']],
  ])('answers a request %s as 6.12 does: INVALID where it is the last', (_what, q0, q1, responses) => {
    const { world, dsa } = listening();
    inject(world, [q0, q1]);
    world.settle();
    expect(dsa.responses).toEqual(responses);
  });

  it('clears the entry of a dead process with faults disabled, and the whole entry at unbind', () => {
    const world = new DriverWorld().start();
    const dsa = world.svaFunction();
    const mm = world.process();
    const pasid = world.run(world.core.svaBind(dsa, mm));
    const entry = (): readonly number[] => entryWords(world, dsa, pasid);
    expect(entry()[0]! & 3).toBe(1);
    world.run(mm.put());
    expect(entry()).toEqual([2, ...Array.from({ length: 15 }, () => 0)]);
    world.run(world.core.svaUnbind(dsa, pasid));
    expect(entry()).toEqual(Array.from({ length: 16 }, () => 0));
  });
});

/** The PASID entry of a function as its bytes say: root, context, directory, table (section 3.1). */
function entryWords({ ram, unit }: DriverWorld, { sourceId }: TestFunction, pasid: number): number[] {
  const pointer = (address: number): number => (ram.load(address, 4) & 0xffff_f000) >>> 0;
  const root = (unit.read(REG.RTADDR, 8) & 0xffff_f000) >>> 0;
  const devfn = sourceId & 0xff;
  const context = pointer(root + (sourceId >> 8) * 16 + (devfn >= 0x80 ? 8 : 0)) + (devfn & 0x7f) * 32;
  const table = pointer(pointer(context) + (pasid >> 6) * 8);
  return Array.from({ length: 16 }, (_, i) => ram.load(table + (pasid & 63) * 64 + i * 4, 4));
}
