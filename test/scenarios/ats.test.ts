/** Numbered scenarios of requirements section 10 about address translation services and their invalidation. */
import { describe, expect, it } from 'vitest';
import { NO_PASID, PRG_INVALID } from '../../host/pci/dma-port.js';
import { probeWorld, World, type Probe, type WorldOptions } from './world.js';

const PAGE = 4096;

/** The probe lets the next `count` invalidation requests go unanswered; grows with each. */
function ignoreInvalidations(probe: Probe, count: number): { seen: number } {
  const { fabricPort } = probe.fn, { requester } = probe;
  const heard = { seen: 0 };
  fabricPort.client = {
    pageResponse: (...response) => requester.pageResponse(...response),
    heldDone: (...end) => requester.heldDone(...end),
    invalidate: (...request) => {
      if (heard.seen++ >= count) requester.invalidate(...request);
    },
  };
  return heard;
}

describe('ATS', () => {
  function cached(options: WorldOptions = {}) {
    const { world, probe } = probeWorld(options);
    const program = world.process('app');
    const page = world.pages(program, 2);
    const pasid = world.run(world.core.svaBind(probe.pci, program.process.mm));
    expect(world.run(probe.access(page * PAGE, false, pasid)).status).toBe('done');
    expect(probe.requester.atc.lookup(page, pasid, false)).toBeGreaterThanOrEqual(0);
    return { world, probe, program, mm: program.process.mm, page, pasid };
  }

  it('scenario 26: after munmap returned the device must ask again; what was under way before may end', () => {
    const { world, probe, mm, page, pasid } = cached();
    const munmap = world.start('munmap', mm.munmap(page * PAGE, PAGE));
    world.until(() => world.records('pci:invalidate').length > 0);
    // the request for the invalidation is on its way: the old translation still works
    expect(munmap.ended).toBe(false);
    expect(probe.requester.readNow(page, 0, new Uint8Array(8), 0, 8, pasid, 0)).toBe(true);
    expect(probe.requester.result.status).toBe('done');
    world.until(() => munmap.ended);
    expect(munmap.state).toBe('done');
    expect(probe.requester.atc.lookup(page, pasid, false)).toBe(-1);
    const asked = world.records('pci:page_request').length;
    expect(world.run(probe.access(page * PAGE, false, pasid))).toEqual({ status: 'page-fault', response: PRG_INVALID });
    expect(world.records('pci:page_request')).toHaveLength(asked + 1);
    world.run(world.core.svaUnbind(probe.pci, pasid));
    expect(world.finish().invariants.find(({ name }) => name.startsWith('no DMA lands'))!.checked).toBeGreaterThan(1);
  });

  it('scenario 26: a device TLB that is not told keeps the page (defect)', () => {
    const { world, probe, mm, page, pasid } = cached({ defect: 'vtd-driver.skip-device-tlb-flush' });
    world.run(mm.munmap(page * PAGE, PAGE));
    expect(world.run(probe.access(page * PAGE, false, pasid)).status).toBe('done');
    expect(world.machine.checkers.summaries().flatMap(({ violations }) => violations).join()).toMatch(/the translation of .* is no longer true/);
  });

  it('scenario 27: a device that is slow to answer is asked again until it does', () => {
    const { world, probe, mm, page, pasid } = cached({ timing: { 'invalidation-timeout': '50us' } });
    const heard = ignoreInvalidations(probe, 3);
    world.run(mm.munmap(page * PAGE, PAGE));
    expect(heard.seen).toBe(4);
    expect(world.log('Invalidation Time-out Error (ITE) cleared')).toHaveLength(3);
    expect(world.log('ETIMEDOUT')).toEqual([]);
    expect(probe.requester.atc.lookup(page, pasid, false)).toBe(-1);
    world.run(world.core.svaUnbind(probe.pci, pasid));
    world.finish();
  });

  it('scenario 27: a device that was pulled out is given up once, with ETIMEDOUT', () => {
    const { world, probe, mm, page } = cached({ timing: { 'invalidation-timeout': '50us' } });
    const { name } = probe.pci;
    const heard = ignoreInvalidations(probe, Infinity);
    const munmap = world.start('munmap', mm.munmap(page * PAGE, PAGE));
    world.until(() => heard.seen === 1);
    world.host.tree.complex.remove(probe.fn, { surprise: true });
    world.wait(200_000);
    expect(munmap.state).toBe('done');
    expect(heard.seen).toBe(1);
    expect(world.log('ETIMEDOUT')).toHaveLength(1);
    expect(world.log('Invalidation Time-out Error (ITE) cleared')).toHaveLength(1);
    // from now on it is not asked at all
    const before = world.host.clock.now;
    world.run(mm.munmap((page + 1) * PAGE, PAGE));
    expect(world.host.clock.now - before).toBeLessThan(50_000);
    expect(world.log('ETIMEDOUT')).toHaveLength(1);
    world.run(world.host.pci.removeAbsent());
    expect(world.host.pci.find(name)).toBeUndefined();
    world.finish();
  });

  /** A domain for requests without PASID and an address space, both with a translation of the same address. */
  function twoSpaces(options: WorldOptions = {}) {
    const world = new World({ devices: [], probes: { probe: {} }, ...options });
    const probe = world.probe().enableSva();
    const { core } = world;
    const program = world.process('app');
    const page = world.pages(program, 2);
    const domain = core.domainAlloc(probe.pci, 'unmanaged');
    const group = core.groupOf(probe.pci);
    world.run(core.attachGroup(domain, group));
    const frame = world.host.frames.alloc('test');
    world.run(core.map(domain, page, frame, 1, 3));
    const pasid = world.run(core.svaBind(probe.pci, program.process.mm));
    for (const at of [page, page + 1]) expect(world.run(probe.access(at * PAGE, false, pasid)).status).toBe('done');
    const known = (): boolean[] => [page, page + 1].map((at) => probe.requester.atc.lookup(at, pasid, false) >= 0);
    expect(known()).toEqual([true, true]);
    return { world, probe, page, pasid, domain, group, frame, known };
  }

  it('scenario 28: an invalidation without PASID flushes entries with PASID, too (A5)', () => {
    const { world, probe, page, pasid, domain, group, frame, known } = twoSpaces();
    const { core } = world;
    const sent = world.records('pci:invalidate').length;
    expect(world.run(core.unmap(domain, page, 1))).toBe(1);
    expect(world.records('pci:invalidate').slice(sent).map(({ pasid: tag, page: first, pages }) => [tag, first, pages])).toEqual([[NO_PASID, page, 1]]);
    // the entry of that address goes, whatever its PASID; its neighbour stays
    expect(known()).toEqual([false, true]);
    // the address space has changed nothing: the translation comes back without a page request
    const asked = world.records('pci:page_request').length;
    expect(world.run(probe.access(page * PAGE, false, pasid)).status).toBe('done');
    expect(world.records('pci:page_request')).toHaveLength(asked);

    world.run(core.svaUnbind(probe.pci, pasid));
    world.run(core.detachGroup(domain, group));
    core.domainFree(domain);
    world.host.frames.free(frame);
    world.finish();
  });

  it('scenario 28: a device that keeps them is seen (defect)', () => {
    const { world, page, domain, known } = twoSpaces({ defect: 'pci.atc-pasid-less-invalidation' });
    world.run(world.core.unmap(domain, page, 1));
    expect(known()).toEqual([true, true]);
  });
});
