/** Numbered scenarios of requirements section 10 about the page request queue and its end: overflow, drain, stop marker. */
import { describe, expect, it } from 'vitest';
import { ACCESS_READ, PRG_SUCCESS } from '../../host/pci/dma-port.js';
import { PRS_PRO, REG } from '../../iommu/intel-vtd/spec/registers.js';
import type { Task } from '../../sim/task.js';
import { probeWorld, World, type WorldOptions } from './world.js';

const PAGE = 4096;
/** Entries that a queue of 128 holds: one stays free so that full differs from empty. */
const CAPACITY = 127;

describe('the page request queue', () => {
  /**
   * Two functions with 5 groups of 20 requests each at one instant: 200 for a queue of 128, whose thread is slow to
   * wake. One function alone is not allocated more requests than the queue has entries.
   */
  function flood(options: WorldOptions = {}) {
    const world = new World({ devices: [], probes: { one: {}, two: {} }, iommu: { 'page-request-queue': 128 }, timing: { 'thread-wake': '40us' }, ...options });
    const probes = [world.probe('one').enableSva(), world.probe('two').enableSva()];
    const program = world.process('flood');
    const page = world.pages(program, 200);
    let pasid = 0;
    for (const probe of probes) pasid = world.run(world.core.svaBind(probe.pci, program.process.mm));
    const groups: Task<number>[] = Array.from({ length: 10 }, (_, i) => world.start(`group ${i}`, probes[i < 5 ? 0 : 1]!.requester.prefetchPages(page + i * 20, 20, ACCESS_READ, pasid)));
    return { world, probes, program, page, pasid, groups };
  }

  it('scenario 8: overflow sets PRO, partial groups are discarded, the device asks again and completes', () => {
    const { world, probes, program, page, pasid, groups } = flood();
    const { frontEnd } = world.host.unit!;
    world.until(() => world.records('vtd:prq_overflow').length > 0);
    expect(frontEnd.read(REG.PRS, 4) & PRS_PRO).toBe(PRS_PRO);
    world.until(() => groups.every((group) => group.ended));
    // requests that do not fit are dropped, the last one of a group is answered Success by hardware
    expect(world.records('pci:page_request')).toHaveLength(200);
    expect(world.records('vtd:prq_overflow')).toHaveLength(200 - CAPACITY);
    expect(groups.map(({ result }) => result)).toEqual(Array.from({ length: 10 }, () => PRG_SUCCESS));
    const whole = Math.floor(CAPACITY / 20) * 20;
    expect(world.records('iommu:iopf_discard').map(({ requests }) => requests)).toEqual([CAPACITY - whole]);
    expect(Array.from({ length: 200 }, (_, i) => i).filter((i) => world.present(program.process.mm, page + i))).toEqual(Array.from({ length: whole }, (_, i) => i));
    world.settle();
    expect(frontEnd.read(REG.PRS, 4) & PRS_PRO).toBe(0);
    for (let i = 0; i < 200; i++) expect(world.run(probes[i % 2]!.access((page + i) * PAGE, false, pasid)).status).toBe('done');
    for (const probe of probes) world.run(world.core.svaUnbind(probe.pci, pasid));
    world.finish();
  });

  it('scenario 8: an unbind during the overflow ends its drain', () => {
    const { world, probes, pasid, groups } = flood();
    world.until(() => world.records('vtd:prq_overflow').length > 0);
    for (const probe of probes) world.run(world.core.svaUnbind(probe.pci, pasid));
    expect(groups.every((group) => group.ended)).toBe(true);
    expect(world.host.unit!.frontEnd.read(REG.PRS, 4) & PRS_PRO).toBe(0);
    expect(world.core.usage.pendingRequests).toBe(0);
    world.finish();
  });

  it('scenario 8: partials that survive the overflow are seen (defect)', () => {
    const { world, groups } = flood({ defect: 'core.keep-partials-on-overflow' });
    world.until(() => groups.every((group) => group.ended));
    world.settle();
    expect(world.core.usage.pendingRequests).toBe(CAPACITY % 20);
  });

  it('scenario 9: unbind with 5 outstanding requests ends when all are answered; no event of the PASID follows', () => {
    const { world, probe } = probeWorld();
    const program = world.process('app');
    const page = world.pages(program, 5);
    const pasid = world.run(world.core.svaBind(probe.pci, program.process.mm));
    for (let i = 0; i < 5; i++) probe.ask(page + i, ACCESS_READ, true, i, pasid);
    expect(probe.answers).toEqual([]);
    world.run(world.core.svaUnbind(probe.pci, pasid));
    expect(probe.answers.map(({ group }) => group).sort((a, b) => a - b)).toEqual([0, 1, 2, 3, 4]);
    expect(world.core.usage).toMatchObject({ bonds: 0, pendingRequests: 0 });
    const { count } = world.host.trace;
    world.settle();
    expect([...world.host.trace.records(count)].filter(({ kind }) => /^(iommu:dev_fault|iommu:iopf|pci:page_response)/.test(kind.name))).toEqual([]);
    world.finish();
  });

  it('scenario 9: without the drain a request outlives its bond (defect)', () => {
    const { world, probe } = probeWorld({ defect: 'vtd-driver.skip-prq-drain' });
    const program = world.process('app');
    const page = world.pages(program, 5);
    const pasid = world.run(world.core.svaBind(probe.pci, program.process.mm));
    for (let i = 0; i < 5; i++) probe.ask(page + i, ACCESS_READ, true, i, pasid);
    world.run(world.core.svaUnbind(probe.pci, pasid));
    expect(probe.answers.length).toBeLessThan(5);
  });

  it('scenario 10: a stop marker behind the end of the use is ignored: no response, counters unaffected', () => {
    const { world, probe } = probeWorld();
    const program = world.process('app');
    const page = world.pages(program, 1);
    const pasid = world.run(world.core.svaBind(probe.pci, program.process.mm));
    expect(world.run(probe.access(page * PAGE, false, pasid)).status).toBe('done');
    world.run(probe.requester.stopPasid(pasid, 'wait'));
    const before = JSON.stringify(world.core.counters), responses = world.records('pci:page_response').length;
    probe.ask(0, 0, true, 0, pasid);
    world.settle();
    expect(world.records('pci:page_request').at(-1)).toMatchObject({ access: 0, last: 1 });
    expect(world.records('pci:page_response')).toHaveLength(responses);
    expect(JSON.stringify(world.core.counters)).toBe(before);
    world.run(world.core.svaUnbind(probe.pci, pasid));
    world.finish();
  });

  it('scenario 10: a device that does not wait for its answers sends the marker behind them', () => {
    const { world, probe } = probeWorld();
    const program = world.process('app');
    const page = world.pages(program, 2);
    const pasid = world.run(world.core.svaBind(probe.pci, program.process.mm));
    const group = world.start('prefetch', probe.requester.prefetchPages(page, 2, ACCESS_READ, pasid));
    world.until(() => world.records('pci:page_request').length === 2);
    world.run(probe.requester.stopPasid(pasid, 'marker'));
    expect(group.ended).toBe(true);
    world.run(world.core.svaUnbind(probe.pci, pasid));
    expect(world.records('pci:page_request').map(({ access, last }) => [access, last])).toEqual([[1, 0], [1, 1], [0, 1]]);
    expect(world.records('pci:page_response')).toHaveLength(1);
    expect(probe.fn.pri!.outstanding).toBe(0);
    world.finish();
  });
});
