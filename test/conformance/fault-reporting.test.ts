/** Fault reporting and page responses: requirements R1–R10, E11–E14, R-RACE-2; scenarios 21–24. */
import { describe, expect, it } from 'vitest';
import { filter } from 'rxjs';
import type { ErrnoName } from '../../sim/errno.js';
import { ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE } from '../../host/pci/dma-port.js';
import { FAULT_DMA_UNRECOV, type FaultReport, type PageRequest, type PageResponseCode } from '../../iommu/core/ops.js';
import { PAGE_RESP_PASID_VALID, PAGE_RESPONSE_VERSION_1, type PageResponseMessage } from '../../iommu/core/fault-reporting.js';
import { CoreWorld, type CoreWorldOptions } from '../fixtures/core-world.js';
import { SoftwareDevice, type SoftwareDeviceOptions } from '../fixtures/software-iommu.js';

const SECOND = 1_000_000_000;

function message(grpid: number, pasid: number, rest: Partial<PageResponseMessage> = {}): PageResponseMessage {
  return { version: PAGE_RESPONSE_VERSION_1, flags: PAGE_RESP_PASID_VALID, pasid, grpid, code: 'SUCCESS', ...rest };
}

/** A world with one device whose faults a handler collects, as a VMM's would. */
function guestWorld(options: CoreWorldOptions = {}, device: SoftwareDeviceOptions = {}) {
  const world = new CoreWorld(options);
  const dev = world.device('dev0', device);
  const seen: FaultReport[] = [];
  let refusal: ErrnoName | undefined;
  world.core.registerDeviceFaultHandler(dev, (report) => {
    if (refusal === undefined) seen.push(report);
    return refusal;
  });
  return { world, dev, seen, refuseWith: (code: ErrnoName | undefined) => { refusal = code; } };
}

describe('a device fault handler', () => {
  it('is registered once per device and gets its data back (R1, E11)', () => {
    const world = new CoreWorld();
    const device = world.device('dev0');
    const data = { fd: 3 };
    const got: unknown[] = [];
    world.core.registerDeviceFaultHandler(device, (_, handed) => void got.push(handed), data);
    expect(world.refused(() => world.core.registerDeviceFaultHandler(device, () => undefined))).toBe('EBUSY');
    expect(world.refused(() => world.core.registerDeviceFaultHandler(new SoftwareDevice('x'), () => undefined))).toBe('EINVAL');
    world.iommu.request(device, 9, 1, 0x10, { last: false });
    expect(got).toEqual([data]);
  });

  it('is not unregistered while a request waits for its answer (R2, E12)', () => {
    const { world, dev } = guestWorld();
    world.iommu.request(dev, 9, 1, 0x10);
    expect(world.refused(() => world.core.unregisterDeviceFaultHandler(dev))).toBe('EBUSY');
    world.core.pageResponse(dev, message(1, 9));
    world.core.unregisterDeviceFaultHandler(dev);
    world.core.unregisterDeviceFaultHandler(dev);
    expect(world.refused(() => world.core.unregisterDeviceFaultHandler(new SoftwareDevice('x')))).toBe('EINVAL');
    world.iommu.request(dev, 9, 2, 0x10);
    expect(world.iommu.codes(2)).toEqual(['INVALID']);
  });

  it('sees unrecoverable faults, which nobody answers (R5, R6)', () => {
    const { world, dev, seen } = guestWorld();
    world.iommu.faults.publish(world.iommu.unrecoverable(dev, 0x20));
    expect(seen.map(({ fault }) => fault.type)).toEqual([FAULT_DMA_UNRECOV]);
    expect(world.core.usage.pendingRequests).toBe(0);
    expect(world.core.counters.unrecoverable).toBe(1);
  });

  it('keeps a last request as pending before it is called, and takes it back when it fails (R3, scenario 23)', () => {
    const { world, dev, refuseWith } = guestWorld();
    refuseWith('ENOSPC');
    world.iommu.request(dev, 9, 1, 0x10);
    expect(world.iommu.codes(1)).toEqual(['INVALID']);
    expect(world.core.usage.pendingRequests).toBe(0);
    const report = world.iommu.pageRequest(dev, 9, 2, 0x10);
    expect(world.refused(() => world.core.reportDeviceFault(dev, report))).toBe('ENOSPC');
    expect(world.iommu.codes(2)).toEqual([]);
  });

  it('may answer from inside its call (R3)', () => {
    const world = new CoreWorld();
    const device = world.device('dev0');
    world.core.registerDeviceFaultHandler(device, ({ fault }) => {
      world.core.pageResponse(device, message((fault as PageRequest).prgIndex, 9));
      return undefined;
    });
    world.iommu.request(device, 9, 4, 0x10);
    expect(world.iommu.codes(4)).toEqual(['SUCCESS']);
    expect(world.core.usage.pendingRequests).toBe(0);
  });

  it('is given PASID, group, last, rights and address of a request, and whether the answer needs the PASID (R7)', () => {
    const { world, dev, seen } = guestWorld();
    const access = ACCESS_READ | ACCESS_WRITE | ACCESS_EXECUTE | ACCESS_PRIVILEGED;
    world.iommu.request(dev, 0xfffff, 0x1ff, 0xf_ffff_ffff, { last: false, access });
    world.iommu.request(dev, 3, 0, 0, { access: ACCESS_READ });
    expect(seen.map(({ fault }) => fault)).toEqual([
      { type: 2, pasid: 0xfffff, prgIndex: 0x1ff, last: false, access: 15, page: 0xf_ffff_ffff, responseNeedsPasid: true, token: undefined },
      { type: 2, pasid: 3, prgIndex: 0, last: true, access: 1, page: 0, responseNeedsPasid: true, token: undefined },
    ]);
    expect([ACCESS_READ, ACCESS_WRITE, ACCESS_EXECUTE, ACCESS_PRIVILEGED]).toEqual([1, 2, 4, 8]);
    world.core.answerPendingFaults(dev, 'INVALID');
  });

  it('does not keep requests that are not last (R3)', () => {
    const { world, dev, seen } = guestWorld();
    world.iommu.request(dev, 9, 1, 0x10, { last: false });
    expect(seen).toHaveLength(1);
    expect(world.core.usage.pendingRequests).toBe(0);
    expect(world.refused(() => world.core.pageResponse(dev, message(1, 9)))).toBe('EINVAL');
  });

  it('is missing: the request is answered INVALID by the core, or refused to the caller (R3, R10)', () => {
    const world = new CoreWorld();
    const device = world.device('dev0');
    world.iommu.request(device, 9, 1, 0x10);
    world.iommu.request(device, 9, 2, 0x10, { last: false });
    expect(world.iommu.codes()).toEqual(['INVALID']);
    expect(world.refused(() => world.core.reportDeviceFault(device, world.iommu.pageRequest(device, 9, 3, 0x10)))).toBe('EINVAL');
    expect(world.refused(() => world.core.reportDeviceFault(new SoftwareDevice('x'), world.iommu.pageRequest(device, 9, 3, 0x10)))).toBe('EINVAL');
    expect(world.iommu.answers).toHaveLength(1);
  });

  it('answers a request from a device nobody added INVALID if last (E19)', () => {
    const world = new CoreWorld();
    const stranger = new SoftwareDevice('stranger');
    world.iommu.request(stranger, 9, 1, 0x10, { last: false });
    world.iommu.request(stranger, 9, 1, 0x10);
    expect(world.iommu.codes()).toEqual(['INVALID']);
  });

  it('gets the PASIDs the kernel has not bound, the page fault queue the others (R10, 2d step 5)', () => {
    const world = new CoreWorld();
    const device = world.svaDevice('dev0');
    const mm = world.process('app');
    const page = world.malloc(mm, 1);
    const pasid = world.run(world.core.svaBind(device, mm));
    const guest: number[] = [];
    world.core.registerDeviceFaultHandler(device, ({ fault }) => void guest.push(fault.pasid));
    world.iommu.request(device, pasid, 1, page);
    world.iommu.request(device, 500, 2, page);
    world.settle();
    expect(guest).toEqual([500]);
    expect(world.iommu.codes(1)).toEqual(['SUCCESS']);
    expect(world.iommu.codes(2)).toEqual([]);
  });
});

describe('a page response', () => {
  it('consumes one pending request and carries its token and correlation (R4)', () => {
    const { world, dev } = guestWorld();
    const correlation = world.iommu.request(dev, 9, 1, 0x10);
    for (const code of ['SUCCESS', 'INVALID', 'FAILURE'] satisfies PageResponseCode[]) {
      if (code !== 'SUCCESS') world.iommu.request(dev, 9, 1, 0x10);
      world.core.pageResponse(dev, message(1, 9, { code }));
    }
    expect(world.iommu.codes(1)).toEqual(['SUCCESS', 'INVALID', 'FAILURE']);
    expect(world.iommu.answers[0]).toMatchObject({ correlation, device: dev });
    expect(world.core.usage.pendingRequests).toBe(0);
  });

  it.each([
    ['nothing is pending', message(1, 9), false],
    ['another group', message(2, 9), true],
    ['another PASID (scenario 21)', message(1, 8), true],
    ['the PASID is missing', message(1, 9, { flags: 0 }), true],
    ['version 2', message(1, 9, { version: 2 }), true],
    ['an unknown flag', message(1, 9, { flags: PAGE_RESP_PASID_VALID | 2 }), true],
    ['an unknown code (E14)', message(1, 9, { code: 'OTHER' as PageResponseCode }), true],
    ['a short record', message(1, 9, { argsz: 20 }), true],
  ] as const)('is refused when %s (R4, E13)', (_, wrong, pending) => {
    const { world, dev } = guestWorld();
    if (pending) world.iommu.request(dev, 9, 1, 0x10);
    expect(world.refused(() => world.core.pageResponse(dev, wrong))).toBe('EINVAL');
    expect(world.core.usage.pendingRequests).toBe(pending ? 1 : 0);
    expect(world.iommu.answers).toEqual([]);
  });

  it('is refused twice and for an unknown device (R4, E13)', () => {
    const { world, dev } = guestWorld();
    world.iommu.request(dev, 9, 1, 0x10);
    world.core.pageResponse(dev, message(1, 9));
    expect(world.refused(() => world.core.pageResponse(dev, message(1, 9)))).toBe('EINVAL');
    expect(world.refused(() => world.core.pageResponse(new SoftwareDevice('x'), message(1, 9)))).toBe('ENODEV');
    expect(world.iommu.codes()).toEqual(['SUCCESS']);
    expect(world.log.lines.at(-1)!.text).toBe('dev0: no pending PRQ, drop response');
  });

  it('needs no PASID where the request does not, and a superfluous one is ignored (R4)', () => {
    const { world, dev } = guestWorld({}, { responseNeedsPasid: false });
    world.iommu.request(dev, 9, 1, 0x10);
    world.core.pageResponse(dev, message(1, 0, { flags: 0 }));
    world.iommu.request(dev, 9, 2, 0x10);
    world.core.pageResponse(dev, message(2, 777));
    expect(world.iommu.codes()).toEqual(['SUCCESS', 'SUCCESS']);
  });

  it('tells two requests with one group index apart by PASID (R4)', () => {
    const { world, dev } = guestWorld();
    const first = world.iommu.request(dev, 9, 1, 0x10);
    const second = world.iommu.request(dev, 10, 1, 0x20);
    world.core.pageResponse(dev, message(1, 10));
    world.core.pageResponse(dev, message(1, 9));
    expect(world.iommu.answers.map(({ correlation }) => correlation)).toEqual([second, first]);
  });

  it('from the wrong PASID gets through with the defect (defect)', () => {
    const { world, dev } = guestWorld({ defects: ['core.ignore-response-pasid'] });
    world.iommu.request(dev, 9, 1, 0x10);
    world.core.pageResponse(dev, message(1, 8));
    expect(world.iommu.codes()).toEqual(['SUCCESS']);
  });
});

describe('a response that does not come', () => {
  it('is warned about after 10 s, once, and the request stays pending (R9, scenario 22)', () => {
    const { world, dev } = guestWorld();
    const start = world.clock.now;
    world.iommu.request(dev, 9, 1, 0x10);
    world.clock.run({ untilNs: start + 10 * SECOND - 1 });
    expect(world.log.lines).toEqual([]);
    world.settle();
    expect(world.log.lines.map(({ text, timeNs }) => [text, timeNs - start])).toEqual([['dev0: Page response time expired, pasid 9 gid 1', 10 * SECOND]]);
    expect(world.core.usage.pendingRequests).toBe(1);
    world.core.pageResponse(dev, message(1, 9));
    expect(world.iommu.codes()).toEqual(['SUCCESS']);
  });

  it('has a deadline per request (R9)', () => {
    const { world, dev } = guestWorld({ options: { prqTimeoutSeconds: 1 } });
    const start = world.clock.now;
    world.iommu.request(dev, 9, 1, 0x10);
    world.clock.run({ untilNs: start + SECOND / 2 });
    world.iommu.request(dev, 9, 2, 0x10);
    world.settle();
    expect(world.log.lines.map(({ timeNs }) => timeNs - start)).toEqual([SECOND, 1.5 * SECOND]);
  });

  it('does not move another request\'s deadline (R9)', () => {
    const { world, dev } = guestWorld({ options: { prqTimeoutSeconds: 1 } });
    const start = world.clock.now;
    world.iommu.request(dev, 9, 1, 0x10);
    world.clock.run({ untilNs: start + SECOND / 2 });
    world.iommu.request(dev, 9, 2, 0x10);
    world.core.pageResponse(dev, message(1, 9));
    world.settle();
    expect(world.log.lines.map(({ text, timeNs }) => [text, timeNs - start])).toEqual([['dev0: Page response time expired, pasid 9 gid 2', 1.5 * SECOND]]);
  });

  it.each([['invalid', 'INVALID'], ['failure', 'FAILURE']] as const)('is given by policy %s (R9, scenario 22)', (prqTimeoutPolicy, code) => {
    const { world, dev } = guestWorld({ options: { prqTimeoutSeconds: 2, prqTimeoutPolicy } });
    world.iommu.request(dev, 9, 1, 0x10);
    world.settle();
    expect(world.iommu.codes()).toEqual([code]);
    expect(world.core.usage.pendingRequests).toBe(0);
    expect(world.refused(() => world.core.pageResponse(dev, message(1, 9)))).toBe('EINVAL');
  });

  it('leaves no timer behind when everything was answered, and 0 switches it off (R9)', () => {
    const { world, dev } = guestWorld();
    world.iommu.request(dev, 9, 1, 0x10);
    world.core.pageResponse(dev, message(1, 9));
    const start = world.clock.now;
    world.settle();
    expect(world.clock.now).toBe(start);
    const off = guestWorld({ options: { prqTimeoutSeconds: 0 } });
    off.world.iommu.request(off.dev, 9, 1, 0x10);
    off.world.settle();
    expect(off.world.log.lines).toEqual([]);
  });

  it('takes 0 to 100 seconds (R9)', () => {
    expect(() => new CoreWorld({ options: { prqTimeoutSeconds: 101 } })).toThrow('not 0..100');
    expect(() => new CoreWorld({ options: { prqTimeoutSeconds: 0.5 } })).toThrow('not 0..100');
  });

  it('is INVALID for all when the owner goes (7.1, scenario 24)', () => {
    const { world, dev } = guestWorld();
    for (const group of [1, 2, 3]) world.iommu.request(dev, 9, group, 0x10);
    world.core.answerPendingFaults(dev, 'INVALID');
    expect(world.iommu.codes()).toEqual(['INVALID', 'INVALID', 'INVALID']);
    world.core.unregisterDeviceFaultHandler(dev);
  });
});

describe('the wires', () => {
  it('show every fault and every answer to whoever listens', () => {
    const { world, dev } = guestWorld();
    const seen: string[] = [];
    world.core.faults$.subscribe(({ fault }) => seen.push(`fault ${fault.pasid}`));
    world.core.responses$.subscribe(({ code }) => seen.push(code));
    world.iommu.request(dev, 9, 1, 0x10);
    world.core.pageResponse(dev, message(1, 9));
    expect(seen).toEqual(['fault 9', 'SUCCESS']);
  });

  it('let a test drop responses on the way', () => {
    const { world, dev } = guestWorld({ options: { responseWire: (responses$) => responses$.pipe(filter(({ request }) => request.prgIndex !== 1)) } });
    for (const group of [1, 2]) {
      world.iommu.request(dev, 9, group, 0x10);
      world.core.pageResponse(dev, message(group, 9));
    }
    expect(world.iommu.answers.map(({ request }) => request.prgIndex)).toEqual([2]);
  });

  it('carry the correlation of the fault into both trace records', () => {
    const { world, dev } = guestWorld();
    const correlation = world.iommu.request(dev, 9, 1, 0x10);
    world.core.pageResponse(dev, message(1, 9));
    const records = [...world.trace.records()].filter((record) => record.correlation === correlation);
    expect(records.map(({ kind }) => kind.name)).toEqual(['iommu:dev_fault', 'iommu:dev_page_response']);
    expect(Object.fromEntries(world.trace.describe(records[0]!))).toEqual({
      device: 'dev0', type: '2', reason: '0', addr: '0x10000', pasid: '9', group: '1', last: 'yes', prot: '0x1',
    });
    expect(Object.fromEntries(world.trace.describe(records[1]!))).toEqual({ device: 'dev0', code: '0', addr: '0x10000', pasid: '9', group: '1' });
  });

  it('a lost response is visible (defect)', () => {
    const { world, dev } = guestWorld({ defects: ['core.lose-response'] });
    world.iommu.request(dev, 9, 1, 0x10);
    world.core.pageResponse(dev, message(1, 9));
    expect(world.iommu.answers).toEqual([]);
  });

  it('end when the core is closed (section 5: 8)', () => {
    const { world, dev } = guestWorld();
    let ended = 0;
    world.core.faults$.subscribe({ complete: () => ended++ });
    world.core.responses$.subscribe({ complete: () => ended++ });
    world.core.close();
    expect(ended).toBe(2);
    expect(world.iommu.faults.observed).toBe(false);
    world.iommu.request(dev, 9, 1, 0x10);
    expect(world.iommu.answers).toEqual([]);
  });
});
