/** Numbered scenarios of requirements section 10 about page requests, on the whole machine. */
import { describe, expect, it } from 'vitest';
import { ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE, PRG_INVALID, PRG_SUCCESS } from '../../host/pci/dma-port.js';
import { sleep } from '../../sim/task.js';
import { DSA0, probeWorld, World } from './world.js';

const PAGE = 4096;

describe('page requests', () => {
  it('scenario 1: malloc of 64 KiB, one group of 16 requests, one SUCCESS, 16 pages present', () => {
    const world = new World({
      devices: [{ ...DSA0, 'prefetch-pages': 16 }],
      processes: [{ name: 'app', steps: [{ open: { device: 'dsa0' } }, { malloc: { name: 'buffer', size: '64KiB' } }, { submit: { crc: { from: 'buffer' } } }, { wait: {} }] }],
    });
    world.machine.run({ stopAt: { at: 'before-teardown' } });
    const program = world.machine.scenario.programs.get('app')!;
    const first = program.addressOf('buffer')! / PAGE;
    const inBuffer = (page: number): boolean => page >= first && page < first + 16;

    const requests = world.records('pci:page_request').filter(({ page }) => inBuffer(page!));
    expect(requests.map(({ page }) => page! - first)).toEqual(Array.from({ length: 16 }, (_, i) => i));
    expect(new Set(requests.map(({ prg }) => prg)).size).toBe(1);
    expect(requests.map(({ last }) => last)).toEqual([...Array.from({ length: 15 }, () => 0), 1]);
    const handled = world.records('iommu:iopf_handle').filter(({ addr }) => inBuffer(addr!));
    expect(handled.map(({ addr, handled: ok }) => [addr! - first, ok])).toEqual(Array.from({ length: 16 }, (_, i) => [i, 1]));
    // the completion record is a request of its own
    const answers = world.records('pci:page_response');
    expect(answers.filter(({ prg }) => prg === requests[0]!.prg).map(({ code }) => code)).toEqual([PRG_SUCCESS]);
    for (let page = first; page < first + 16; page++) expect(world.present(program.process.mm, page)).toBe(true);
    world.finish();
  });

  it('scenario 2: an error sticks: pages 1 and 2 become present, 4 is not faulted, the response is INVALID', () => {
    const { world, probe } = probeWorld();
    const program = world.process('app');
    const { mm } = program.process;
    const page = world.pages(program, 4);
    world.run(mm.munmap((page + 2) * PAGE, PAGE));
    const pasid = world.run(world.core.svaBind(probe.pci, mm));
    expect(world.run(probe.requester.prefetchPages(page, 4, ACCESS_READ, pasid))).toBe(PRG_INVALID);
    expect([0, 1, 2, 3].map((i) => world.present(mm, page + i))).toEqual([true, true, false, false]);
    expect(world.records('iommu:iopf_handle').map(({ addr, handled }) => [addr! - page, handled])).toEqual([[0, 1], [1, 1], [2, 0]]);
    expect(world.records('pci:page_response').map(({ code }) => code)).toEqual([PRG_INVALID]);
    world.run(world.core.svaUnbind(probe.pci, pasid));
    world.finish();
  });

  it('scenario 2: without the stickiness page 4 would be faulted (defect)', () => {
    const { world, probe } = probeWorld({ defect: 'core.fault-after-error' });
    const program = world.process('app');
    const page = world.pages(program, 4);
    world.run(program.process.mm.munmap((page + 2) * PAGE, PAGE));
    const pasid = world.run(world.core.svaBind(probe.pci, program.process.mm));
    world.run(probe.requester.prefetchPages(page, 4, ACCESS_READ, pasid));
    expect(world.present(program.process.mm, page + 3)).toBe(true);
  });

  it('scenario 3: two interleaved groups are answered independently, B before A while A waits', () => {
    const { world, probe } = probeWorld();
    const a = world.process('a'), b = world.process('b');
    const pageA = world.pages(a, 2), pageB = world.pages(b, 2);
    world.run(b.process.mm.munmap((pageB + 1) * PAGE, PAGE));
    const pasidA = world.run(world.core.svaBind(probe.pci, a.process.mm)), pasidB = world.run(world.core.svaBind(probe.pci, b.process.mm));
    // somebody changes a's address space meanwhile
    const holder = world.start('a system call', a.process.mm.lock.with(() => sleep(world.host.clock, 50_000)));
    world.wait(0);
    probe.ask(pageA, ACCESS_READ, false, 1, pasidA);
    probe.ask(pageB, ACCESS_READ, false, 2, pasidB);
    probe.ask(pageA + 1, ACCESS_READ, true, 1, pasidA);
    probe.ask(pageB + 1, ACCESS_READ, true, 2, pasidB);
    world.until(() => probe.answers.length === 2);
    expect(probe.answers).toEqual([{ group: 2, code: PRG_INVALID }, { group: 1, code: PRG_SUCCESS }]);
    expect([world.present(a.process.mm, pageA), world.present(a.process.mm, pageA + 1), world.present(b.process.mm, pageB)]).toEqual([true, true, true]);
    expect(holder.ended).toBe(true);
    for (const pasid of [pasidA, pasidB]) world.run(world.core.svaUnbind(probe.pci, pasid));
    world.finish();
  });

  it.each([[false, 0], [true, 1]])('scenario 4: one group index from two PASIDs is merged; strict-prg %s counts %i violations', (strict, violations) => {
    const { world, probe } = probeWorld({ kernel: { 'strict-prg': strict } });
    const a = world.process('a'), b = world.process('b');
    const pageA = world.pages(a, 1), pageB = world.pages(b, 1);
    const pasidA = world.run(world.core.svaBind(probe.pci, a.process.mm)), pasidB = world.run(world.core.svaBind(probe.pci, b.process.mm));
    probe.ask(pageA, ACCESS_READ, false, 7, pasidA);
    probe.ask(pageB, ACCESS_READ, true, 7, pasidB);
    world.until(() => probe.answers.length === 1);
    world.settle();
    // one group, each request served from its own process
    expect(world.records('iommu:iopf_handle').map(({ pasid, handled }) => [pasid, handled])).toEqual([[pasidA, 1], [pasidB, 1]]);
    expect(world.records('pci:page_response').map(({ pasid, prg, code }) => [pasid, prg, code])).toEqual([[pasidB, 7, PRG_SUCCESS]]);
    expect(world.core.counters.violations).toBe(violations);
    expect(world.log('uses page request group 7')).toHaveLength(violations);
    for (const pasid of [pasidA, pasidB]) world.run(world.core.svaUnbind(probe.pci, pasid));
    // the device is at fault
    world.finish([`device 0x20 uses group 7 for PASID ${pasidB} while PASID ${pasidA} waits for its response`]);
  });

  it('scenario 5: a copy-on-write page that was faulted for reading needs a second request to be written', () => {
    const { world, probe } = probeWorld();
    const parent = world.process('parent');
    const page = world.pages(parent, 1);
    const { mm } = parent.process;
    world.run(mm.fill(page * PAGE, 0x11, PAGE));
    const child = world.run(parent.process.fork(500, 'child'));
    const pasid = world.run(world.core.svaBind(probe.pci, mm));
    const shared = mm.physicalOf(page * PAGE);
    expect(world.run(probe.requester.prefetchPages(page, 1, ACCESS_READ, pasid))).toBe(PRG_SUCCESS);
    expect(mm.physicalOf(page * PAGE)).toBe(shared);
    expect(world.run(probe.access(page * PAGE, false, pasid)).status).toBe('done');
    expect(world.run(probe.access(page * PAGE, true, pasid, { bytes: Uint8Array.of(0x22) })).status).toBe('done');
    expect(world.records('pci:page_request').map(({ access, last }) => [access, last])).toEqual([[ACCESS_READ, 1], [ACCESS_WRITE, 1]]);
    expect(mm.physicalOf(page * PAGE)).not.toBe(shared);
    const byte = new Uint8Array(2);
    world.run(mm.read(page * PAGE, byte));
    expect([...byte]).toEqual([0x22, 0x11]);
    world.run(child.mm.read(page * PAGE, byte));
    expect([...byte]).toEqual([0x11, 0x11]);
    world.run(world.core.svaUnbind(probe.pci, pasid));
    world.run(child.exit());
    world.finish();
  });

  it('scenario 6: a write to a read-only area is answered INVALID, the device aborts, the process gets a job error', () => {
    const world = new World({
      processes: [{
        name: 'app',
        steps: [
          { open: { device: 'dsa0' } }, { malloc: { name: 'source', size: '4KiB' } }, { mmap: { name: 'target', size: '4KiB', prot: 'r' } },
          { submit: { copy: { from: 'source', to: 'target' } } }, { wait: { status: 'page-fault' } }, { verify: { buffer: 'target', value: 0 } },
        ],
      }],
    });
    world.machine.run({ stopAt: { at: 'before-teardown' } });
    const page = world.machine.scenario.programs.get('app')!.addressOf('target')! / PAGE;
    const asked = world.records('pci:page_request').filter((request) => request['page'] === page);
    expect(asked.map(({ access }) => access! & ACCESS_WRITE)).toEqual([ACCESS_WRITE]);
    expect(world.records('pci:page_response').filter(({ prg }) => prg === asked[0]!['prg']).map(({ code }) => code)).toEqual([PRG_INVALID]);
    expect(world.records('pci:dma').filter(({ iova, write }) => iova === page && write === 1)).toEqual([]);
    expect(world.finish().stepFailures).toEqual([]);
  });

  it('scenario 7: a privileged request from a user PASID is rejected before anybody looks at the mm', () => {
    const { world, probe } = probeWorld();
    const program = world.process('app');
    const page = world.pages(program, 1);
    const pasid = world.run(world.core.svaBind(probe.pci, program.process.mm));
    probe.ask(page, ACCESS_READ | ACCESS_PRIVILEGED, true, 3, pasid);
    world.settle();
    expect(probe.answers).toEqual([{ group: 3, code: PRG_INVALID }]);
    expect(world.records('iommu:dev_fault')).toEqual([]);
    expect(world.records('iommu:iopf_handle')).toEqual([]);
    expect(world.present(program.process.mm, page)).toBe(false);
    world.run(world.core.svaUnbind(probe.pci, pasid));
    world.finish();
  });
});
