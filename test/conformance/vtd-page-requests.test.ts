import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE } from '../../host/pci/dma-port.js';
import { PAGE_REQUESTS, World } from './vtd-front-end-world.js';

const RW = ACCESS_READ | ACCESS_WRITE;

/** A world whose page request queue has 2^order pages, event data 0x21. */
function ready(order = 0, options: ConstructorParameters<typeof World>[0] = {}): World {
  const world = new World(options);
  world.enableQueue();
  world.enableEvent(0xe0, 0x21);
  world.write8(0xc0, 0n);
  world.write8(0xc8, 0n);
  world.write8(0xd0, BigInt(PAGE_REQUESTS) | BigInt(order));
  return world;
}

function entry(world: World, index: number): bigint[] {
  return [0, 8, 16, 24].map((offset) => world.peek(PAGE_REQUESTS + 32 * index + offset));
}

describe('page request descriptors (VT-d 4.1, 7.4.1; requirement 9)', () => {
  it.each([
    ['read and write, last (VTD-PRQ-1)', [0x19, 0x12345, 0x7_f012_3456, RW, true, 0x1a5], [0x0001_2345_0019_0101n, 0x0000_7f01_2345_6d2fn]],
    ['a stop marker (VTD-PRQ-2)', [0x19, 0x12345, 0, 0, true, 0], [0x0001_2345_0019_0101n, 0x4n]],
    ['read, not last', [0x19, 2, 0x12345, ACCESS_READ, false, 1], [0x2_0019_0101n, 0x1234_5009n]],
    ['privileged instruction fetch', [0x19, 2, 0x12345, ACCESS_READ | ACCESS_EXECUTE | ACCESS_PRIVILEGED, true, 0], [0x30_0002_0019_0101n, 0x1234_5005n]],
    ['without PASID', [0x19, -1, 0x12345, ACCESS_WRITE, true, 511], [0x19_0001n, 0x1234_5ffen]],
    ['a canonical high address', [0xffff, 0xfffff, 0xf_ffff_8000_0001, RW, true, 0], [0x000f_ffff_ffff_0101n, 0xffff_f800_0000_1007n]],
  ] as const)('codes %s', (_name, [source, pasid, page, access, last, prg], words) => {
    const world = ready();
    world.unit.pageRequest(source, pasid, page, access, last, prg);
    expect(entry(world, 0)).toEqual([...words, 0n, 0n]);
    expect([world.read8(0xc8), world.read4(0xdc)]).toEqual([0x20n, 1]);
  });

  it('overwrites all 32 bytes of the slot, so private data is zero', () => {
    const world = ready();
    world.poke(PAGE_REQUESTS, [~0n & 0xffff_ffff_ffff_ffffn, 1n, 2n, 3n].map((word) => word & 0xffff_ffff_ffff_ffffn));
    world.unit.pageRequest(0x20, 2, 1, ACCESS_READ, true, 0);
    expect(entry(world, 0).slice(2)).toEqual([0n, 0n]);
  });
});

describe('page request queue (VT-d 4.1, 7.4.1, 7.5, 11.4.11; requirement 3.1)', () => {
  it('serves a request in the recorded order: event, PRS, PQT, PQH, head = tail, response', () => {
    const world = ready(4);
    world.unit.pageRequest(0x20, 2, 0x7_ff57_f061, ACCESS_WRITE, true, 1);
    expect(world.interrupts).toEqual(['0xfee00000 0x21']);
    world.write4(0xdc, 1);
    expect([world.read8(0xc8), world.read8(0xc0)]).toEqual([0x20n, 0n]);
    world.write8(0xc0, 0x20n);
    expect(world.read4(0xdc)).toBe(0);
    world.submit([0x2_0020_0019n, 0x8n], [0x2_0000_0025n, 0x30_0000n]);
    expect(world.backEnd.take()).toEqual(['response sid=0x20 pasid=2 pp=true prg=1 code=0 last=true']);
  });

  it('sends one event for any number of requests until software clears PPR', () => {
    const world = ready();
    for (let i = 0; i < 100; i++) world.unit.pageRequest(0x20, 2, i, ACCESS_READ, i % 10 === 9, i % 512);
    expect([world.interrupts.length, world.read8(0xc8), world.unit.pageRequests.depth]).toEqual([1, 3200n, 100]);
    world.write4(0xdc, 1);
    world.unit.pageRequest(0x20, 2, 100, ACCESS_READ, true, 100);
    expect(world.interrupts).toHaveLength(2);
  });

  it('holds the event back while it is masked, and withdraws it when PPR is cleared first', () => {
    const world = ready();
    world.write4(0xe0, 0x8000_0000);
    world.unit.pageRequest(0x20, 2, 1, ACCESS_READ, true, 0);
    expect([world.read4(0xe0), world.interrupts]).toEqual([0xc000_0000, []]);
    world.write4(0xdc, 1);
    expect(world.read4(0xe0)).toBe(0x8000_0000);
    world.unit.pageRequest(0x20, 2, 2, ACCESS_READ, true, 1);
    world.write4(0xe0, 0);
    expect([world.read4(0xe0), world.interrupts]).toEqual([0, ['0xfee00000 0x21']]);
  });

  it.each([[0, 128], [1, 256], [4, 2048]])('has room for size %i: %i entries but one', (order, entries) => {
    const world = ready(order);
    for (let i = 0; i < entries + 5; i++) world.unit.pageRequest(0x20, 2, i, ACCESS_READ, false, 0);
    expect(world.unit.pageRequests.counts).toEqual({ queued: entries - 1, lost: 6, answered: 0 });
    expect(world.read4(0xdc)).toBe(3);
  });

  it('wraps at the end of the ring', () => {
    const world = ready();
    world.write8(0xc8, 0xfe0n);
    world.write8(0xc0, 0xfe0n);
    world.unit.pageRequest(0x20, 2, 0x11, ACCESS_READ, false, 0);
    world.unit.pageRequest(0x20, 2, 0x22, ACCESS_READ, true, 0);
    expect([world.read8(0xc8), entry(world, 127)[1], entry(world, 0)[1]]).toEqual([0x20n, 0x1_1001n, 0x2_2005n]);
  });
});

describe('page request overflow (section 0 of the requirements; VT-d 4.1, 7.4.1; E21, R-RACE-3)', () => {
  function overflowed(options: ConstructorParameters<typeof World>[0] = {}): World {
    const world = ready(0, options);
    for (let i = 0; i < 128; i++) world.unit.pageRequest(0x20, 2, i, ACCESS_READ, false, 7);
    world.backEnd.take();
    return world;
  }

  it('drops requests that are not last and answers last ones with Success', () => {
    const world = overflowed();
    const before = entry(world, 0);
    world.unit.pageRequest(0x20, 2, 0x1000, ACCESS_READ, false, 8);
    world.unit.pageRequest(0x20, 2, 0x1001, ACCESS_READ, true, 8);
    world.unit.pageRequest(0x28, -1, 0x1002, ACCESS_WRITE, true, 9);
    expect(world.backEnd.take()).toEqual([
      'response sid=0x20 pasid=2 pp=true prg=8 code=0 last=true', 'response sid=0x28 pasid=-1 pp=false prg=9 code=0 last=true',
    ]);
    expect([world.read8(0xc8), world.read4(0xdc), entry(world, 0)]).toEqual([0xfe0n, 3, before]);
  });

  it('answers the very request that found the queue full', () => {
    const world = ready();
    for (let i = 0; i < 128; i++) world.unit.pageRequest(0x20, 2, i, ACCESS_READ, true, i);
    expect(world.backEnd.take()).toEqual(['response sid=0x20 pasid=2 pp=true prg=127 code=0 last=true']);
  });

  it('does not answer stop markers (P9)', () => {
    const world = overflowed();
    world.unit.pageRequest(0x20, 2, 0, 0, true, 0);
    expect(world.backEnd.take()).toEqual([]);
  });

  it('queues nothing until software clears PRO, also when the head has moved', () => {
    const world = overflowed();
    world.write8(0xc0, 0xfe0n);
    world.unit.pageRequest(0x20, 2, 0x1001, ACCESS_READ, true, 8);
    expect(world.unit.pageRequests.depth).toBe(0);
    expect(world.backEnd.take()).toHaveLength(1);
    world.write4(0xdc, 3);
    world.unit.pageRequest(0x20, 2, 0x1001, ACCESS_READ, true, 8);
    expect([world.unit.pageRequests.depth, world.backEnd.take(), world.read4(0xdc)]).toEqual([1, [], 1]);
  });

  it('raises the event for PRO when software had already cleared PPR', () => {
    const world = ready();
    for (let i = 0; i < 127; i++) world.unit.pageRequest(0x20, 2, i, ACCESS_READ, false, 7);
    world.write4(0xdc, 1);
    expect(world.interrupts).toHaveLength(1);
    world.unit.pageRequest(0x20, 2, 127, ACCESS_READ, false, 7);
    expect([world.interrupts.length, world.read4(0xdc)]).toEqual([2, 2]);
    world.unit.pageRequest(0x20, 2, 128, ACCESS_READ, false, 7);
    expect(world.interrupts).toHaveLength(2);
  });

  it('takes a queue that is not memory for a full one', () => {
    const world = ready();
    world.write8(0xd0, 0x8000_0000n);
    world.unit.pageRequest(0x20, 2, 1, ACCESS_READ, true, 3);
    expect([world.read4(0xdc), world.read8(0xc8), world.backEnd.take().length]).toEqual([2, 0n, 1]);
  });

  it('can be broken: overflowing requests without an answer, responses lost or for the wrong group', () => {
    const silent = overflowed({ defects: ['vtd.lose-overflow-answer'] });
    silent.unit.pageRequest(0x20, 2, 1, ACCESS_READ, true, 8);
    expect(silent.backEnd.take()).toEqual([]);
    const losing = ready(0, { defects: ['vtd.lose-page-response'] });
    losing.submit([0x2_0020_0019n, 0x8n]);
    expect(losing.backEnd.take()).toEqual([]);
    const confusing = ready(0, { defects: ['vtd.wrong-group-index'] });
    confusing.submit([0x2_0020_0019n, 0x8n]);
    expect(confusing.backEnd.take()).toEqual(['response sid=0x20 pasid=2 pp=true prg=2 code=0 last=true']);
  });

  it('answers every last request exactly once, in the queue or by hardware (any sequence)', () => {
    const step = fc.record({ last: fc.boolean(), serve: fc.integer({ min: 0, max: 9 }) });
    fc.assert(fc.property(fc.array(step, { maxLength: 400 }), (steps) => {
      const world = ready();
      let lastRequests = 0, queuedLast = 0;
      const serve = (): void => {
        world.write4(0xdc, 1);
        const tail = Number(world.read8(0xc8));
        for (let head = Number(world.read8(0xc0)); head !== tail; head = (head + 32) % 4096) if ((world.peek(PAGE_REQUESTS + head + 8) & 4n) !== 0n) queuedLast++;
        world.write8(0xc0, BigInt(tail));
        world.write4(0xdc, 2);
      };
      for (const { last, serve: when } of steps) {
        world.unit.pageRequest(0x20, 2, 5, ACCESS_READ, last, 3);
        if (last) lastRequests++;
        if (when === 0) serve();
      }
      serve();
      expect(queuedLast + world.backEnd.calls.length).toBe(lastRequests);
    }), { numRuns: 40 });
  });
});

describe('correlation of a group (design section 4)', () => {
  it('gives every record of a group one id, from the first request to the response', () => {
    const world = ready();
    world.unit.pageRequest(0x20, 2, 1, ACCESS_READ, false, 5);
    world.unit.pageRequest(0x28, 2, 1, ACCESS_READ, true, 5);
    world.unit.pageRequest(0x20, 2, 2, ACCESS_READ, true, 5);
    const [first, other, second] = world.traced('vtd:page_request').map(({ correlation }) => correlation);
    expect(first).toBe(second);
    expect(first).not.toBe(other);
    world.submit([0x2_0020_0019n, BigInt(5 << 3)]);
    expect(world.traced('vtd:page_response').map(({ correlation }) => correlation)).toEqual([first]);
    expect(world.traced('vtd:descriptor').map(({ correlation }) => correlation)).toEqual([first]);
  });

  it('gives the hardware\'s own answer the id of the request', () => {
    const world = ready();
    for (let i = 0; i < 127; i++) world.unit.pageRequest(0x20, 2, i, ACCESS_READ, false, 7);
    world.unit.pageRequest(0x28, 2, 1, ACCESS_READ, true, 9);
    const [overflow] = world.traced('vtd:prq_overflow'), [response] = world.traced('vtd:page_response');
    expect(overflow!.correlation).toBe(response!.correlation);
    expect(overflow!.args).toMatchObject({ source: '0x28', last: 'yes', prg: '9', answered: 'yes' });
  });
});
