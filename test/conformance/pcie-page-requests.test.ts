/** Page request interface of a function: PCIe 6.0 section 10.4; requirements 7.1, 7.2, P9, scenarios 1, 10, invariants 1 and 5. */
import { describe, expect, it } from 'vitest';
import { sleep, type Steps } from '../../sim/task.js';
import { ACCESS_READ, ACCESS_WRITE, PRG_FAILURE, PRG_INVALID, PRG_SUCCESS } from '../../host/pci/dma-port.js';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import type { Requester } from '../../host/pci/hardware/requester.js';
import { bytes, createWorld, enableSva, findExtCapability, plugSva, svaFunction, type World } from '../unit/pci-world.js';

const PASID = 0x12345;

function* write(requester: Requester, page: number, length = 4096, block = true, pasid = PASID): Steps<{ status: string; doneBytes: number; faultPage: number; faultAccess: number; response: number }> {
  const { status, doneBytes, faultPage, faultAccess, response } = yield* requester.write(page, 0, bytes(length), 0, length, pasid, 0, block);
  return { status, doneBytes, faultPage, faultAccess, response };
}

function priStatus(fn: PciFunction): number {
  return fn.config.read(findExtCapability(fn, 0x13) + 6, 2);
}

describe('a missing page', () => {
  it('is asked for, and the access retried after success (flow 2a)', () => {
    const world = createWorld(), { requester, fn } = plugSva(world);
    world.serve();
    expect(world.run(write(requester, 0x7000, 8192))).toMatchObject({ status: 'done', doneBytes: 8192, response: -1 });
    expect(world.agent.requests.map(({ page, access, last, prgIndex, pasid }) => [page, access, last, prgIndex, pasid]))
      .toEqual([[0x7000, ACCESS_WRITE, true, 0, PASID], [0x7001, ACCESS_WRITE, true, 1, PASID]]);
    expect([fn.pri!.outstanding, requester.outstandingGroups]).toEqual([0, 0]);
    expect(world.records('pci:page_request')).toHaveLength(2);
    expect(world.records('pci:page_response')).toEqual([[8, PASID, 0, 0], [8, PASID, 1, 0]]);
    const back = new Uint8Array(8192);
    world.memory.read(0x80_0000, back, 0, 8192);
    expect(back).toEqual(bytes(8192));
  });

  it('ends the access when it does not block on faults, or PRI is off', () => {
    const world = createWorld(), { requester, fn } = plugSva(world);
    world.agent.map(PASID, 0x7000, 0x20);
    expect(world.run(write(requester, 0x7000, 8192, false))).toEqual({ status: 'page-fault', doneBytes: 4096, faultPage: 0x7001, faultAccess: ACCESS_WRITE, response: -1 });
    fn.config.write(findExtCapability(fn, 0x13) + 4, 2, 0);
    expect(world.run(write(requester, 0x7001))).toMatchObject({ status: 'page-fault', response: -1 });
    expect(world.agent.requests).toHaveLength(0);
  });

  it('ends the access when the response is Invalid Request, without retry', () => {
    const world = createWorld(), { requester, fn } = plugSva(world);
    world.serve(PRG_INVALID);
    expect(world.run(write(requester, 0x7000))).toMatchObject({ status: 'page-fault', response: PRG_INVALID, faultPage: 0x7000 });
    expect([world.agent.requests.length, priStatus(fn), fn.pri!.outstanding]).toEqual([1, 0x8000, 0]);
  });

  it('is asked for with write access when it is mapped for reading only', () => {
    const world = createWorld(), { requester } = plugSva(world);
    world.agent.map(PASID, 0x7000, 0x20, 'r');
    world.serve();
    const target = new Uint8Array(16);
    expect(world.run((function* () {
      return { ...(yield* requester.read(0x7000, 0, target, 0, 16, PASID, 0, true)) }.status;
    })())).toBe('done');
    expect(world.agent.requests).toHaveLength(0);
    expect(world.run(write(requester, 0x7000))).toMatchObject({ status: 'done' });
    expect(world.agent.requests.map(({ access }) => access)).toEqual([ACCESS_WRITE]);
  });
});

describe('a response failure (section 10.5.2.3, 7.2)', () => {
  it('sets RF, stops the interface and ends every waiting access; disable, reset, enable starts it again', () => {
    const world = createWorld(), { requester, fn } = plugSva(world);
    const statuses: unknown[] = [];
    for (const page of [0x7000, 0x7100, 0x7200]) {
      world.scheduler.spawn(`job ${page}`, (function* () {
        statuses.push((yield* write(requester, page)).response);
      })());
    }
    world.agent.answer = (request) => {
      if (request.prgIndex === 1) world.fabric.pageResponse(8, 1, PRG_FAILURE, PASID);
    };
    world.clock.run();
    expect(statuses).toEqual([PRG_FAILURE, PRG_FAILURE, PRG_FAILURE]);
    expect([priStatus(fn), fn.pri!.active, fn.pri!.outstanding]).toEqual([0x8001, false, 0]);
    // ignored: no response is expected any more
    world.fabric.pageResponse(8, 0, PRG_SUCCESS, PASID);
    world.clock.run();
    expect([priStatus(fn), requester.unexpectedResponses]).toEqual([0x8001, 0]);
    expect(world.run(write(requester, 0x7000))).toMatchObject({ status: 'page-fault', response: -1 });
    const at = findExtCapability(fn, 0x13);
    fn.config.write(at + 4, 2, 0);
    fn.config.write(at + 4, 2, 2);
    fn.config.write(at + 4, 2, 1);
    world.serve();
    expect(world.run(write(requester, 0x7000))).toMatchObject({ status: 'done' });
  });

  it('is what any code other than success and invalid means (section 10.4.2.1)', () => {
    const world = createWorld(), { requester, fn } = plugSva(world);
    world.serve(5);
    expect(world.run(write(requester, 0x7000))).toMatchObject({ status: 'page-fault', response: PRG_FAILURE });
    expect(priStatus(fn)).toBe(0x8001);
  });
});

describe('groups', () => {
  it('cover a prefetched range with one index, the last request marked (scenario 1)', () => {
    const world = createWorld(), { requester } = plugSva(world);
    world.serve();
    expect(world.run(requester.prefetchPages(0x7000, 16, ACCESS_READ, PASID))).toBe(PRG_SUCCESS);
    expect(world.agent.requests.map(({ page, last, prgIndex }) => [page, last, prgIndex])).toEqual(Array.from({ length: 16 }, (_, i) => [0x7000 + i, i === 15, 0]));
    expect(world.records('pci:page_response')).toHaveLength(1);
  });

  it('are no larger than the allocation, and never more is outstanding (invariant 5)', () => {
    const world = createWorld(), { requester, fn } = plugSva(world, { allocation: 6 });
    world.serve();
    const codes: number[] = [];
    for (let i = 0; i < 5; i++) {
      world.scheduler.spawn(`prefetch ${i}`, (function* () {
        codes.push(yield* requester.prefetchPages(0x7000 + 32 * i, 10, ACCESS_READ, PASID));
      })());
    }
    world.clock.run();
    expect(codes).toEqual([0, 0, 0, 0, 0]);
    expect([world.agent.requests.length, fn.pri!.peak, fn.pri!.outstanding]).toEqual([50, 6, 0]);
    expect(outstandingPeak(world)).toBe(6);
  });

  it('are caught outrunning the allocation (defect pci.ignore-pri-allocation)', () => {
    const world = createWorld(), { requester } = plugSva(world, { allocation: 6, defects: new Set(['pci.ignore-pri-allocation']) });
    world.serve();
    for (let i = 0; i < 5; i++) world.scheduler.spawn(`prefetch ${i}`, requester.prefetchPages(0x7000 + 32 * i, 10, ACCESS_READ, PASID) as unknown as Steps);
    world.clock.run();
    expect(outstandingPeak(world)).toBeGreaterThan(6);
  });

  it('do not reuse an index before its response, with 512 of them', () => {
    const world = createWorld(), { requester } = plugSva(world, { allocation: 4096, more: { pri: { maxRequests: 4096, prgResponsePasidRequired: true } } });
    let done = 0;
    for (let i = 0; i < 520; i++) {
      world.scheduler.spawn(`job ${i}`, (function* () {
        if ((yield* write(requester, 0x7000 + i, 8)).status === 'done') done++;
      })());
    }
    world.clock.run();
    expect(world.agent.requests).toHaveLength(512);
    expect(new Set(world.agent.requests.map(({ prgIndex }) => prgIndex)).size).toBe(512);
    world.agent.answer = (request) => {
      world.agent.map(PASID, request.page, 0x20);
      world.fabric.pageResponse(8, request.prgIndex, PRG_SUCCESS, PASID);
    };
    const asked = world.agent.requests.slice();
    for (const request of asked) world.agent.answer(request);
    world.clock.run();
    expect([done, world.agent.requests.length]).toEqual([520, 520]);
  });

  it('are caught sharing an index (defect pci.reuse-prg-index)', () => {
    const world = createWorld(), { requester } = plugSva(world, { defects: new Set(['pci.reuse-prg-index']) });
    for (let i = 0; i < 2; i++) world.scheduler.spawn(`job ${i}`, requester.prefetchPages(0x7000 + i, 1, ACCESS_READ, PASID) as unknown as Steps, { daemon: true });
    world.clock.run();
    expect(world.agent.requests.map(({ prgIndex }) => prgIndex)).toEqual([0, 0]);
  });
});

describe('unexpected responses set UPRGI (requirements 3.4, R-RACE-2)', () => {
  it('for an index without group, and for the right index with another PASID', () => {
    const world = createWorld(), { requester, fn } = plugSva(world);
    world.fabric.pageResponse(8, 77, PRG_SUCCESS, PASID);
    world.clock.run();
    expect([priStatus(fn), requester.unexpectedResponses]).toEqual([0x8002, 1]);
    fn.config.write(findExtCapability(fn, 0x13) + 6, 2, 2);
    world.agent.answer = ({ prgIndex }) => {
      world.fabric.pageResponse(8, prgIndex, PRG_SUCCESS, PASID + 1);
      world.agent.map(PASID, 0x7000, 0x20);
      world.clock.post(5_000, () => world.fabric.pageResponse(8, prgIndex, PRG_SUCCESS, PASID));
    };
    expect(world.run(write(requester, 0x7000))).toMatchObject({ status: 'done' });
    expect([priStatus(fn), requester.unexpectedResponses]).toEqual([0x8002, 2]);
  });

  it('after a reset that forgot the group, whose access ended as revoked', () => {
    const world = createWorld(), { requester, fn } = plugSva(world);
    world.agent.answer = ({ prgIndex }) => {
      world.clock.post(1_000, () => fn.reset('flr'));
      world.clock.post(2_000, () => world.fabric.pageResponse(8, prgIndex, PRG_SUCCESS, PASID));
    };
    expect(world.run(write(requester, 0x7000))).toMatchObject({ status: 'revoked', response: -1 });
    expect(priStatus(fn)).toBe(0x8102);
    expect([fn.pri!.outstanding, requester.outstandingGroups]).toEqual([0, 0]);
  });
});

describe('surprise removal (flow 2g)', () => {
  it('ends accesses that wait for a page or for credits as revoked; a late response reaches nobody', () => {
    const world = createWorld(), { requester, fn } = plugSva(world, { allocation: 1 });
    const statuses: string[] = [];
    for (const page of [0x7000, 0x7100]) {
      world.scheduler.spawn(`job ${page}`, (function* () {
        statuses.push((yield* write(requester, page)).status);
      })());
    }
    world.clock.post(5_000, () => world.complex.remove(fn, { surprise: true }));
    world.clock.post(6_000, () => expect(world.fabric.pageResponse(8, 0, PRG_SUCCESS, PASID)).toBe(false));
    world.clock.run();
    expect(statuses).toEqual(['revoked', 'revoked']);
    expect([world.agent.requests.length, requester.outstandingGroups, fn.pri!.outstanding, world.scheduler.blocked()]).toEqual([1, 0, 0, []]);
  });
});

describe('stopping a PASID (P9, scenario 10)', () => {
  function stopping(style: 'wait' | 'marker') {
    const world = createWorld(), { requester, fn } = plugSva(world);
    const events: string[] = [];
    world.agent.answer = ({ prgIndex }) => {
      world.clock.post(10_000, () => {
        events.push('response');
        world.fabric.pageResponse(8, prgIndex, PRG_SUCCESS, PASID);
      });
    };
    world.scheduler.spawn('job', (function* () {
      events.push(`job ${(yield* write(requester, 0x7000)).status}`);
    })());
    world.scheduler.spawn('stop', (function* () {
      yield* sleep(world.clock, 2_000);
      const stop = requester.stopPasid(PASID, style);
      world.scheduler.spawn('late job', (function* () {
        events.push(`late job ${(yield* write(requester, 0x7800)).status}`);
      })());
      yield* stop;
      events.push('stopped');
    })());
    world.clock.run();
    return { world, requester, fn, events };
  }

  it('waits for the responses in the style that waits', () => {
    const { events, world, requester } = stopping('wait');
    expect(events).toEqual(['late job revoked', 'response', 'job revoked', 'stopped']);
    world.serve();
    expect(world.run(write(requester, 0x7000))).toMatchObject({ status: 'done' });
  });

  it('sends a stop marker behind the requests in the other; the response still frees index and credit', () => {
    const { events, world, requester, fn } = stopping('marker');
    expect(events).toEqual(['late job revoked', 'job revoked', 'stopped', 'response']);
    const marker = world.agent.requests.at(-1)!;
    expect([marker.access, marker.last, marker.prgIndex, marker.page, marker.pasid]).toEqual([0, true, 0, 0, PASID]);
    expect([requester.outstandingGroups, fn.pri!.outstanding, requester.unexpectedResponses]).toEqual([0, 0, 0]);
  });

  it('leaves other PASIDs alone', () => {
    const world = createWorld(), { requester } = plugSva(world);
    world.serve();
    world.scheduler.spawn('stop', requester.stopPasid(PASID, 'wait'));
    expect(world.run(write(requester, 0x7000, 4096, true, 7))).toMatchObject({ status: 'done' });
  });
});

describe('virtual functions share the physical function\'s credits (section 10.5.2)', () => {
  function shared() {
    const world = createWorld(), requester = world.requester('pf'), vfRequester = world.requester('vf');
    const pf = new PciFunction(svaFunction(requester, {
      sriov: { totalVfs: 1, vfDeviceId: 1, createVf: (physfn) => {
        const vf = new PciFunction({ name: 'vf', vendorId: 1, deviceId: 1, classCode: 0, client: vfRequester, flr: true, e2eTlpPrefix: true, ats: { queueDepth: 32, pageAligned: true }, physfn });
        vfRequester.attach(vf);
        return vf;
      } },
    }));
    requester.attach(pf);
    world.fabric.setAgent(() => true, world.agent);
    world.complex.insert(world.root, 0x10, pf);
    enableSva(pf, 2);
    const sriov = findExtCapability(pf, 0x10);
    pf.config.write(sriov + 0x10, 2, 1);
    pf.config.write(sriov + 8, 2, 1);
    const vf = pf.sriov!.functions[0]!;
    vf.config.write(4, 2, 4);
    vf.config.write(findExtCapability(vf, 0x0f) + 6, 2, 0x8000);
    return { world, pf, vf, requester, vfRequester };
  }

  it('in one pool, with requests under their own ids', () => {
    const { world, pf, requester, vfRequester } = shared();
    world.serve();
    for (let i = 0; i < 4; i++) {
      world.scheduler.spawn(`pf ${i}`, write(requester, 0x7000 + i) as unknown as Steps);
      world.scheduler.spawn(`vf ${i}`, write(vfRequester, 0x8000 + i) as unknown as Steps);
    }
    world.clock.run();
    expect(world.agent.requests).toHaveLength(8);
    expect(new Set(world.agent.requests.map(({ sourceId }) => sourceId))).toEqual(new Set([0x10, 0x11]));
    expect([pf.pri!.peak, pf.pri!.outstanding]).toEqual([2, 0]);
  });

  it('which a virtual function that is reset gives back', () => {
    const { world, pf, vf, requester, vfRequester } = shared();
    for (let i = 0; i < 2; i++) world.scheduler.spawn(`vf ${i}`, write(vfRequester, 0x8000 + i) as unknown as Steps);
    world.clock.run();
    expect(pf.pri!.outstanding).toBe(2);
    vf.reset('flr');
    expect(pf.pri!.outstanding).toBe(0);
    world.serve();
    expect(world.run(write(requester, 0x7000))).toMatchObject({ status: 'done' });
  });
});

/** Most requests without response, by the trace alone. */
function outstandingPeak(world: World): number {
  const perGroup = new Map<number, number>();
  let now = 0, peak = 0;
  for (const record of world.trace.records()) {
    if (record.kind.name === 'pci:page_request') {
      const prg = record.args[5]!;
      perGroup.set(prg, (perGroup.get(prg) ?? 0) + 1);
      peak = Math.max(peak, ++now);
    } else if (record.kind.name === 'pci:page_response') {
      now -= perGroup.get(record.args[2]!) ?? 0;
      perGroup.delete(record.args[2]!);
    }
  }
  return peak;
}
