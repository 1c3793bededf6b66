/** Bad input of requirements section 4, through the whole machine: the answer of section 0, and nothing has changed. */
import { describe, expect, it } from 'vitest';
import { ACCESS_PRIVILEGED, ACCESS_READ, DMA_UR, NO_PASID, PRG_INVALID } from '../../host/pci/dma-port.js';
import { EVERYTHING } from '../../iommu/intel-vtd/driver/entries.js';
import { IntelIommu } from '../../iommu/intel-vtd/driver/intel-iommu.js';
import { REG } from '../../iommu/intel-vtd/spec/registers.js';
import { IoasidSet } from '../../iommu/core/ioasid.js';
import type { PageResponseMessage } from '../../iommu/core/fault-reporting.js';
import { DSA0, probeWorld, silentExit, World, type WorldOptions } from './world.js';

const PAGE = 4096;

function bound(options: WorldOptions = {}) {
  const made = probeWorld(options);
  const { world, probe } = made;
  const program = world.process('app');
  const page = world.pages(program, 4);
  const pasid = world.run(world.core.svaBind(probe.pci, program.process.mm));
  return { ...made, core: world.core, program, mm: program.process.mm, page, pasid, unbind: () => world.run(world.core.svaUnbind(probe.pci, pasid)) };
}

describe('bind and unbind', () => {
  it('E1: bind without an IOMMU is ENODEV', () => {
    const world = new World({ devices: [], iommu: false, probes: { probe: {} } });
    expect(world.refused(world.core.svaBind(world.probe().pci, world.process('app').process.mm))).toBe('ENODEV');
    world.finish();
  });

  it('E2: bind without enabling SVA is ENODEV', () => {
    const world = new World({ devices: [], probes: { probe: {} } });
    expect(world.refused(world.core.svaBind(world.probe().pci, world.process('app').process.mm))).toBe('ENODEV');
    world.finish();
  });

  it('E3: bind on a group of two devices is EINVAL', () => {
    const world = new World({
      ports: [{ name: 'sw', acs: false }], devices: [{ ...DSA0, port: 'sw', bdf: '0000:04:00.0' }, { ...DSA0, name: 'dsa1', port: 'sw', bdf: '0000:05:00.0' }],
    });
    expect(world.refused(world.core.svaBind(world.machine.scenario.world.device('dsa1').pci, world.process('app').process.mm))).toBe('EINVAL');
    world.finish();
  });

  it('E4: bind of the same device and mm is the same bond with one more reference', () => {
    const { world, probe, core, mm, pasid, unbind } = bound();
    expect(world.run(core.svaBind(probe.pci, mm))).toBe(pasid);
    expect(core.usage).toMatchObject({ bonds: 1, pasids: 1 });
    unbind();
    expect(core.bondState(probe.pci, pasid)).toBe('BOUND');
    unbind();
    expect(core.bondState(probe.pci, pasid)).toBe('NONE');
    world.finish();
  });

  it('E4: with another mm_exit or drvdata it is EBUSY', () => {
    const { world, probe, core, mm, unbind } = bound();
    expect(world.refused(core.svaBind(probe.pci, mm, silentExit))).toBe('EBUSY');
    expect(world.refused(core.svaBind(probe.pci, mm, undefined, 'another'))).toBe('EBUSY');
    unbind();
    world.finish();
  });

  it('E5: bind without a free PASID is ENOSPC', () => {
    const world = new World({ devices: [], probes: { probe: { function: { pasid: { width: 1, exec: false, priv: false } } } } });
    const probe = world.probe().enableSva();
    const [one, two] = [world.process('one'), world.process('two')];
    expect(world.run(world.core.svaBind(probe.pci, one.process.mm))).toBe(1);
    expect(world.refused(world.core.svaBind(probe.pci, two.process.mm))).toBe('ENOSPC');
    world.run(world.core.svaUnbind(probe.pci, 1));
    world.finish();
  });

  it("E6: bind of an mm whose PASID is beyond the device's width is ENOSPC", () => {
    const world = new World({ devices: [], probes: { wide: {}, narrow: { function: { pasid: { width: 1, exec: false, priv: false } } } } });
    const wide = world.probe('wide').enableSva(), narrow = world.probe('narrow').enableSva();
    const [one, two] = [world.process('one'), world.process('two')];
    expect([one, two].map(({ process }) => world.run(world.core.svaBind(wide.pci, process.mm)))).toEqual([1, 2]);
    expect(world.refused(world.core.svaBind(narrow.pci, two.process.mm))).toBe('ENOSPC');
    for (const pasid of [1, 2]) world.run(world.core.svaUnbind(wide.pci, pasid));
    world.finish();
  });

  it('E7: bind of a dead mm is ESRCH', () => {
    const { world, probe } = probeWorld();
    const { process } = world.process('app');
    world.run(process.exit());
    expect(world.refused(world.core.svaBind(probe.pci, process.mm))).toBe('ESRCH');
    world.finish();
  });

  it('E8: unbind of a PASID that is not bound is ESRCH', () => {
    const { world, probe, core, pasid, unbind } = bound();
    expect(world.refused(core.svaUnbind(probe.pci, pasid + 1))).toBe('ESRCH');
    unbind();
    expect(world.refused(core.svaUnbind(probe.pci, pasid))).toBe('ESRCH');
    world.finish();
  });

  it('E9: a device that goes on after unbind gets faults that are logged, and its driver is pointed out', () => {
    const { world, probe, mm, page, pasid, unbind } = bound();
    expect(world.run(probe.access(page * PAGE, true, pasid)).status).toBe('done');
    const before = mm.physicalOf(page * PAGE);
    unbind();
    expect(probe.fn.port.write(page, 0, Uint8Array.of(0x66), 0, 1, pasid, 0)).toBe(DMA_UR);
    world.settle();
    expect(world.log(`DMAR: [DMA Write PASID 0x${pasid.toString(16)}] Request device [0000:00:04.0]`)).toHaveLength(1);
    expect([mm.physicalOf(page * PAGE), world.host.memory.load(before, 1)]).toEqual([before, 0]);
    world.finish([`DMA of PASID ${pasid} was reported after its unbind had returned`]);
  });

  it('E10: SVA off with bonds is EBUSY', () => {
    const { world, probe, core, unbind } = bound();
    expect(world.refused(core.devDisableFeature(probe.pci, 'SVA'))).toBe('EBUSY');
    unbind();
    world.run(core.devDisableFeature(probe.pci, 'SVA'));
    world.finish();
  });

  it('E41: a PASID looked up in another set is EACCES', () => {
    const { world, core, pasid, unbind } = bound();
    expect(world.refused(() => core.ioasids.find(new IoasidSet('stranger'), pasid))).toBe('EACCES');
    unbind();
    world.finish();
  });
});

describe('fault handlers and responses', () => {
  /** An aux domain, whose page requests the kernel does not answer by itself, with a handler that keeps them. */
  function handled() {
    const { world, probe } = probeWorld();
    const { core } = world;
    world.run(core.devEnableFeature(probe.pci, 'AUX'));
    const domain = core.domainAlloc(probe.pci, 'unmanaged');
    world.run(core.auxAttach(domain, probe.pci));
    const pasid = core.auxGetPasid(domain, probe.pci);
    core.registerDeviceFaultHandler(probe.pci, () => undefined);
    const end = (): void => {
      core.unregisterDeviceFaultHandler(probe.pci);
      world.run(core.auxDetach(domain, probe.pci));
      core.domainFree(domain);
      world.finish();
    };
    const pending = (): void => {
      probe.ask(0x1000, ACCESS_READ, true, 5, pasid);
      world.until(() => core.usage.pendingRequests === 1);
    };
    const answer: PageResponseMessage = { version: 1, flags: 1, pasid, grpid: 5, code: 'SUCCESS' };
    return { world, probe, core, answer, pending, end };
  }

  it('E11: a second fault handler is EBUSY', () => {
    const { world, probe, core, end } = handled();
    expect(world.refused(() => core.registerDeviceFaultHandler(probe.pci, () => undefined))).toBe('EBUSY');
    end();
  });

  it('E12: unregistering it while a request waits is EBUSY', () => {
    const { world, probe, core, answer, pending, end } = handled();
    pending();
    expect(world.refused(() => core.unregisterDeviceFaultHandler(probe.pci))).toBe('EBUSY');
    core.pageResponse(probe.pci, answer);
    world.settle();
    expect(probe.codes(5)).toEqual([0]);
    end();
  });

  it.each<[string, Partial<PageResponseMessage>]>([
    ['another group', { grpid: 6 }], ['another PASID', { pasid: 77 }], ['no PASID', { flags: 0 }], ['version 2', { version: 2 }], ['unknown flags', { flags: 3 }],
  ])('E13: a page response with %s is EINVAL, and the request stays pending', (_what, wrong) => {
    const { world, probe, core, answer, pending, end } = handled();
    pending();
    expect(world.refused(() => core.pageResponse(probe.pci, { ...answer, ...wrong }))).toBe('EINVAL');
    world.wait(100_000);
    expect([core.usage.pendingRequests, probe.answers]).toEqual([1, []]);
    core.pageResponse(probe.pci, answer);
    world.settle();
    end();
  });

  it('E13: a page response to nothing, and the second one to a request, is EINVAL', () => {
    const { world, probe, core, answer, pending, end } = handled();
    expect(world.refused(() => core.pageResponse(probe.pci, answer))).toBe('EINVAL');
    pending();
    core.pageResponse(probe.pci, answer);
    expect(world.refused(() => core.pageResponse(probe.pci, answer))).toBe('EINVAL');
    world.settle();
    expect(probe.codes()).toEqual([0]);
    end();
  });
});

describe('page requests', () => {
  const NON_CANONICAL = 2 ** 47 / PAGE;
  it.each<[string, (own: { page: number; pasid: number }) => [page: number, access: number, pasid: number]]>([
    ['E15: an unknown PASID', ({ page, pasid }) => [page, ACCESS_READ, pasid + 1]],
    ['E16: an address that is not canonical', ({ pasid }) => [NON_CANONICAL, ACCESS_READ, pasid]],
    ['E17: no PASID', ({ page }) => [page, ACCESS_READ, NO_PASID]],
    ['E18: privileged mode', ({ page, pasid }) => [page, ACCESS_READ | ACCESS_PRIVILEGED, pasid]],
  ])('%s is answered INVALID if last in its group, otherwise not at all', (_what, request) => {
    const { world, probe, core, mm, page, pasid, unbind } = bound();
    const [at, access, tag] = request({ page, pasid });
    const before = JSON.stringify(world.state());
    probe.ask(at, access, false, 1, tag);
    world.settle();
    expect(probe.answers).toEqual([]);
    probe.ask(at, access, true, 2, tag);
    world.settle();
    expect(probe.answers).toEqual([{ group: 2, code: PRG_INVALID }]);
    expect(world.records('iommu:iopf_handle')).toEqual([]);
    expect([core.counters.groups, mm.residentPages]).toEqual([0, 0]);
    expect(JSON.stringify(world.state())).toBe(before);
    unbind();
    world.finish();
  });

  it('E19: a function that the kernel has let go is answered INVALID if last in its group, otherwise not at all', () => {
    const { world, probe, core, mm, page, pasid } = bound({ timing: { 'thread-wake': '500us' } });
    probe.ask(page, ACCESS_READ, false, 1, pasid);
    probe.ask(page, ACCESS_READ, true, 2, pasid);
    world.run(world.host.binding.deviceRemoved(probe.pci));
    expect(probe.answers).toEqual([]);
    world.settle();
    expect(probe.answers).toEqual([{ group: 2, code: PRG_INVALID }]);
    expect([core.counters.pageRequests, mm.residentPages]).toEqual([0, 0]);
    world.finish();
  });

  it('E20: a group index that is used again while pending is a violation for strict-prg, and merged', () => {
    const { world, probe, core, page, pasid, unbind } = bound({ kernel: { 'strict-prg': true } });
    probe.ask(page, ACCESS_READ, true, 9, pasid);
    probe.ask(page + 1, ACCESS_READ, true, 9, pasid);
    world.settle();
    expect(core.counters.violations).toBe(1);
    expect(probe.codes(9)).toEqual([0, 0]);
    unbind();
    world.finish([`device 0x20 uses group 9 for PASID ${pasid} while PASID ${pasid} waits for its response`]);
  });

  it('E21: a full page request queue sets its flag and discards partial groups', () => {
    const { world, probe, core, page, pasid, unbind } = bound({ iommu: { 'page-request-queue': 128 } });
    for (let i = 0; i < 130; i++) probe.ask(page, ACCESS_READ, false, 3, pasid);
    expect(world.host.unit!.frontEnd.read(REG.PRS, 4)).toBe(3);
    world.settle();
    expect(world.host.unit!.frontEnd.read(REG.PRS, 4)).toBe(0);
    expect(core.counters.discarded).toBe(127);
    expect(core.usage.pendingRequests).toBe(0);
    unbind();
    world.finish(['device 0x20 has 129 page requests outstanding, allocated 128', 'device 0x20 has 130 page requests outstanding, allocated 128']);
  });

  it('E21: full fault recording registers set PFO, and what comes then is lost', () => {
    const world = new World({ devices: [], iommu: { 'fault-records': 1 }, probes: { one: {}, two: {} } });
    const before = JSON.stringify(world.state());
    for (const name of ['one', 'two']) {
      world.probe(name).pci.setMaster(true);
      world.probe(name).fn.port.read(0x1234, 0, new Uint8Array(4), 0, 4, NO_PASID, 0);
    }
    // PPF and PFO
    expect(world.host.unit!.frontEnd.read(REG.FSTS, 4) & 3).toBe(3);
    world.settle();
    expect(world.records('iommu:dev_fault')).toHaveLength(1);
    expect(world.host.unit!.frontEnd.read(REG.FSTS, 4)).toBe(0);
    for (const name of ['one', 'two']) world.probe(name).pci.setMaster(false);
    expect(JSON.stringify(world.state())).toBe(before);
    world.finish();
  });
});

describe('domains', () => {
  it('E22: aux attach with AUX off is EPERM, without an IOMMU ENODEV', () => {
    const { world, probe, core, unbind } = bound();
    const domain = core.domainAlloc(probe.pci, 'unmanaged');
    expect(world.refused(core.auxAttach(domain, probe.pci))).toBe('EPERM');
    world.run(world.host.binding.deviceRemoved(probe.pci));
    expect(world.refused(function* () { yield* core.auxAttach(domain, probe.pci); }())).toBe('ENODEV');
    expect(() => unbind()).toThrow('ENODEV');
    core.domainFree(domain);
    world.finish();
  });

  it('E23: aux attach of a domain of another type is EPERM', () => {
    const { world, probe } = probeWorld();
    const { core } = world;
    world.run(core.devEnableFeature(probe.pci, 'AUX'));
    for (const type of ['dma', 'identity', 'blocked'] as const) {
      const domain = core.domainAlloc(probe.pci, type);
      expect(world.refused(core.auxAttach(domain, probe.pci))).toBe('EPERM');
      core.domainFree(domain);
    }
    world.finish();
  });

  it('E24: a whole device is not given away while AUX is enabled (EPERM) or an address space is bound (EBUSY)', () => {
    const { world, probe, core, unbind } = bound();
    const domain = core.domainAlloc(probe.pci, 'unmanaged');
    const group = core.groupOf(probe.pci);
    expect(world.refused(core.attachGroup(domain, group))).toBe('EBUSY');
    unbind();
    world.run(core.devEnableFeature(probe.pci, 'AUX'));
    expect(world.refused(core.attachGroup(domain, group))).toBe('EPERM');
    world.run(core.devDisableFeature(probe.pci, 'AUX'));
    world.run(core.attachGroup(domain, group));
    world.run(core.detachGroup(domain, group));
    core.domainFree(domain);
    world.finish();
  });
});

describe('PCI features', () => {
  it('E36: ATS twice is EBUSY, a translation unit below 4 KiB EINVAL', () => {
    const { world, probe } = probeWorld();
    expect(world.refused(() => probe.pci.enableAts(12))).toBe('EBUSY');
    probe.pci.disableAts();
    expect(world.refused(() => probe.pci.enableAts(11))).toBe('EINVAL');
    probe.pci.enableAts(12);
    world.finish();
  });

  it('E37: PRI that has not stopped is EBUSY', () => {
    const { world, probe, page, pasid, unbind } = bound();
    const group = world.start('prefetch', probe.requester.prefetchPages(page, 2, ACCESS_READ, pasid));
    world.until(() => world.records('pci:page_request').length === 2);
    probe.pci.disablePri();
    expect(world.refused(() => probe.pci.enablePri(32))).toBe('EBUSY');
    world.until(() => group.ended);
    world.settle();
    probe.pci.enablePri(32);
    unbind();
    world.finish();
  });

  it('E38: PASID without a path for TLP prefixes is EINVAL, and SVA says so', () => {
    const world = new World({ devices: [], probes: { probe: { function: { e2eTlpPrefix: false } } } });
    const { pci } = world.probe();
    pci.setMaster(true);
    expect(world.refused(() => pci.enablePasid(0))).toBe('EINVAL');
    expect(world.refused(world.core.devEnableFeature(pci, 'SVA'))).toBe('EINVAL');
    world.finish();
  });
});

describe('the invalidation queue', () => {
  function queued(options: WorldOptions = {}) {
    const made = bound(options);
    const { iommu } = made.world.host;
    if (!(iommu instanceof IntelIommu)) throw new Error('no VT-d driver');
    return { ...made, queue: iommu.units[0]!.queue };
  }

  it('E39: an invalidation that a device does not answer because it is gone is ETIMEDOUT', () => {
    const { world, probe, queue, pasid } = queued({ timing: { 'invalidation-timeout': '50us' } });
    const { sourceId } = probe.pci;
    world.host.tree.complex.remove(probe.fn, { surprise: true });
    const batch = queue.batch().deviceTlb({ sourceId, pfSourceId: sourceId, queueDepth: 32 }, pasid, EVERYTHING);
    expect(world.refused(queue.submitSync(batch), () => world.core.usage)).toBe('ETIMEDOUT');
    world.run(queue.submitSync(queue.batch().fence()));
    world.run(world.host.pci.removeAbsent());
    world.finish();
  });

  it('E40: a bad descriptor is EINVAL, and the queue goes on', () => {
    const { world, probe, page, pasid, queue, unbind } = queued();
    expect(world.refused(queue.submitSync(queue.batch().raw(0xf, 0, 0, 0)))).toBe('EINVAL');
    expect(world.log('Invalidation Queue Error (IQE) cleared')).toHaveLength(1);
    world.run(queue.submitSync(queue.batch().fence()));
    expect(world.run(probe.access(page * PAGE, true, pasid)).status).toBe('done');
    unbind();
    world.finish();
  });
});
