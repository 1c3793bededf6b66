/* oxlint-disable require-yield -- notifiers that have nothing to wait for */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import type { GuestMemory } from '../../guest/kvm/guest-memory.js';
import type { AddressSpace, MmNotifier } from '../../host/mm/address-space.js';
import type { Mm } from '../../host/mm/mm.js';
import { Ram } from '../../sim/memory.js';
import { sleep, type Steps } from '../../sim/task.js';
import { GuestWorld, MIB } from '../fixtures/guest-world.js';

const PAGE = 4096;

/** Somebody else who listens to the VMM's address space and takes its time: an IOMMU that shares it. */
class Slow implements MmNotifier {
  told: string[] = [];
  private readonly world: GuestWorld;

  constructor(world: GuestWorld) {
    this.world = world;
  }

  *invalidateRange(_mm: AddressSpace, start: number, end: number): Steps {
    yield* sleep(this.world.clock, 1000);
    this.told.push(`${(end - start) / PAGE} pages`);
  }

  *release(): Steps {}
}

function bytes(memory: GuestMemory, address: number, length: number): number[] {
  const target = new Uint8Array(length);
  expect(memory.read(address, target, 0, length)).toBe(true);
  return [...target];
}

describe('guest memory', () => {
  it('is memory of the VMM: slot, page of the process, frame of the host (E: GPA, VMM virtual, HPA)', () => {
    const world = new GuestWorld();
    const hva = world.slot(0, 0x10_0000, 16 * PAGE);
    const { guest, mm } = world;
    expect(guest.translate(0x10_2008)).toEqual({ slot: 0, hva: hva + 0x2008, hpa: undefined });
    expect(guest.store64(0x10_2008, 0x1234_5678, -2)).toBe(true);
    const hpa = mm.physicalOf(hva + 0x2008);
    expect(guest.translate(0x10_2008)).toEqual({ slot: 0, hva: hva + 0x2008, hpa });
    expect(hpa).toBeGreaterThan(0);
    world.memory.load64(hpa);
    expect([world.memory.lo, world.memory.hi]).toEqual([0x1234_5678, -2]);
    // what the process stores, the guest loads
    world.run(mm.write(hva + 0x5000, Uint8Array.of(1, 2, 3, 4)));
    expect(guest.load(0x10_5000, 4)).toBe(0x0403_0201);
    expect(mm.residentPages).toBe(2);
  });

  it('costs the VMM nothing where the guest touched nothing', () => {
    const world = new GuestWorld();
    world.slot(0, 0, 32 * MIB);
    const before = world.frames.inUse;
    expect(world.guest.has(0, 32 * MIB)).toBe(true);
    expect([world.mm.residentPages, world.frames.inUse]).toEqual([0, before]);
    expect(bytes(world.guest, 8 * MIB - 4, 8)).toEqual([0, 0, 0, 0, 0, 0, 0, 0]);
    expect(world.mm.residentPages).toBe(2);
  });

  it('answers absent outside of slots and changes nothing', () => {
    const host = new GuestWorld();
    host.slot(0, 0x1000, PAGE);
    host.slot(1, 0x3000, PAGE);
    const memory = host.guest;
    expect([memory.load64(0), memory.load(0x2000, 4), memory.store(0x2ffe, 2, 1), memory.store64(0x4000, 1, 1)]).toEqual([false, -1, false, false]);
    expect([memory.has(0x1000, 0x1000), memory.has(0x1000, 0x1001), memory.has(0x0fff, 2), memory.has(0x3000, 0x1000)]).toEqual([true, false, false, true]);
    expect(memory.write(0x1800, new Uint8Array(0x2000).fill(7), 0, 0x2000)).toBe(false);
    expect(memory.fill(0x1800, 7, 0x1000)).toBe(false);
    expect(memory.copy(0x1000, 0x2800, 0x1000)).toBe(false);
    expect(memory.compareExchange64(0x2000, 0, 0, 1, 1)).toBe(false);
    expect(memory.load(0x1800, 4)).toBe(0);
    expect(new GuestWorld().guest.has(0, 1)).toBe(false);
  });

  it('crosses slots that touch', () => {
    const world = new GuestWorld();
    world.slot(3, 0x2000, PAGE);
    world.slot(1, 0x1000, PAGE);
    const { guest } = world;
    expect(guest.has(0x1000, 0x2000)).toBe(true);
    expect(guest.write(0x1ffe, Uint8Array.of(1, 2, 3, 4), 0, 4)).toBe(true);
    expect([guest.load(0x1ffe, 2), guest.load(0x2000, 2)]).toEqual([0x0201, 0x0403]);
    expect(guest.copy(0x1ffc, 0x1ffe, 4)).toBe(true);
    expect(bytes(guest, 0x1ffc, 6)).toEqual([1, 2, 3, 4, 3, 4]);
  });

  it('exchanges words only when they are as expected', () => {
    const world = new GuestWorld();
    world.slot(0, 0, PAGE);
    const { guest } = world;
    guest.store64(8, 5, 6);
    expect([guest.compareExchange64(8, 5, 7, 1, 1), guest.compareExchange64(8, 5, 6, 1, 2)]).toEqual([false, true]);
    guest.load64(8);
    expect([guest.lo, guest.hi]).toEqual([1, 2]);
  });

  it('lets a store after a load mark the VMM\'s entry dirty', () => {
    const world = new GuestWorld();
    const hva = world.slot(0, 0, PAGE);
    const dirty = () => {
      world.mm.tables.find(hva / PAGE);
      return (world.mm.tables.lo & 0x40) !== 0;
    };
    world.guest.load(0, 4);
    expect(dirty()).toBe(false);
    world.guest.store(0, 4, 1);
    expect(dirty()).toBe(true);
  });

  it('uses the VMM\'s huge pages', () => {
    const world = new GuestWorld();
    const hva = world.slot(0, 0, 4 * MIB, 1);
    const { guest, mm } = world;
    expect(guest.store(2 * MIB + 0x3004, 4, 99)).toBe(true);
    expect(mm.residentPages).toBe(512);
    expect(mm.physicalOf(hva + 2 * MIB + 0x3004) % (2 * MIB)).toBe(0x3004);
    expect(guest.load(2 * MIB + 0x3004, 4)).toBe(99);
  });

  it('forgets what the VMM gives up: madvise, munmap, mremap', () => {
    const world = new GuestWorld();
    const hva = world.slot(0, 0, 4 * PAGE);
    const { guest, mm } = world;
    for (let page = 0; page < 4; page++) guest.store(page * PAGE, 4, page + 1);
    world.run(mm.madviseDontNeed(hva + PAGE, PAGE));
    expect([0, 1, 2].map((page) => guest.load(page * PAGE, 4))).toEqual([1, 0, 3]);
    world.run(mm.munmap(hva + 2 * PAGE, PAGE));
    expect([guest.load(2 * PAGE, 4), guest.load(3 * PAGE, 4)]).toEqual([-1, 4]);
    expect(world.guestClock.state).toBe('paused');
    expect(world.log.lines.map(({ text }) => text)).toEqual(['error: kvm run failed Bad address: guest-physical 0x2000 of vm0: no-vma']);
    world.run(mm.mmap(PAGE, { address: hva + 2 * PAGE, fixed: 'noreplace' }));
    expect(guest.load(2 * PAGE, 4)).toBe(0);
  });

  it('reads freed frames with the defect kvm.stale-translation', () => {
    const world = new GuestWorld({ defects: ['kvm.stale-translation'] });
    const hva = world.slot(0, 0, PAGE);
    world.guest.store(0, 4, 5);
    world.run(world.mm.madviseDontNeed(hva, PAGE));
    expect(world.guest.load(0, 4)).toBe(0xa5a5_a5a5);
  });

  it('keeps a child of the VMM from seeing what the guest stores after the fork', () => {
    const world = new GuestWorld();
    const hva = world.slot(0, 0, 2 * PAGE);
    const { guest, mm } = world;
    guest.store(0, 4, 1);
    guest.load(PAGE, 4);
    const child = world.run(mm.fork(2, 'child'));
    guest.store(0, 4, 2);
    guest.store(PAGE, 4, 3);
    const seen = new Uint8Array(4);
    world.run(child.read(hva, seen));
    expect([seen[0], guest.load(0, 4), guest.load(PAGE, 4)]).toEqual([1, 2, 3]);
    world.run(child.write(hva + PAGE, Uint8Array.of(9)));
    expect(guest.load(PAGE, 4)).toBe(3);
    world.run(child.put());
  });

  it('is gone with the VMM\'s address space, and so are its virtual CPUs', () => {
    const world = new GuestWorld();
    world.slot(0, 0, PAGE);
    world.guest.store(0, 4, 1);
    const { generation } = world.guest;
    world.run(world.process.exit());
    expect([world.guest.load(0, 4), world.guest.has(0, 1), world.guest.translate(0)]).toEqual([-1, false, undefined]);
    expect([world.guestClock.state, world.guest.generation > generation]).toEqual(['stopped', true]);
    expect(world.frames.usage()).toEqual([]);
  });

  it('pauses the guest when the host has no page for it', () => {
    const world = new GuestWorld({ bytes: 64 * PAGE });
    world.slot(0, 0, 256 * PAGE);
    let page = 0;
    while (world.guest.store(page * PAGE, 4, 1)) page++;
    expect(page).toBeGreaterThan(32);
    expect([world.guestClock.state, world.log.lines[0]!.text.includes('out-of-memory')]).toEqual(['paused', true]);
    expect(world.guest.load(0, 4)).toBe(1);
  });

  describe('while mmap_lock is held by a task that sleeps', () => {
    function slowWorld() {
      const world = new GuestWorld();
      const slow = new Slow(world);
      world.mm.registerNotifier(slow);
      const hva = world.slot(0, 0, 8 * PAGE);
      for (let page = 0; page < 4; page++) world.guest.store(page * PAGE, 4, page + 1);
      return { world, slow, hva };
    }
    const start = (world: GuestWorld, steps: Steps<unknown>) => {
      const task = world.scheduler.spawn('other', steps, { joined: true });
      world.clock.run({ untilNs: world.clock.now + 500 });
      expect(world.mm.lock.owner).toBe(task);
      return task;
    };

    it('faults pages in', () => {
      const { world, hva, slow } = slowWorld();
      start(world, world.mm.madviseDontNeed(hva, 2 * PAGE));
      expect([world.guest.load(PAGE, 4), world.guest.store(5 * PAGE, 4, 6), world.guest.store(PAGE, 4, 9)]).toEqual([0, true, true]);
      world.settle();
      expect([world.guest.load(PAGE, 4), world.guest.load(5 * PAGE, 4), slow.told]).toEqual([9, 6, ['2 pages']]);
    });

    it('reaches a page that is being copied: its copy', () => {
      const { world, hva } = slowWorld();
      const child = world.run(world.mm.fork(2, 'child'));
      start(world, world.mm.handleFault(hva, 2));
      expect(world.mm.unsharing).toBeDefined();
      expect([world.guest.load(0, 4), world.guest.store(0, 4, 77), world.guestClock.runs]).toEqual([1, true, false]);
      world.settle();
      expect(world.guestClock.runs).toBe(true);
      expect(world.guest.load(0, 4)).toBe(77);
      const seen = new Uint8Array(1);
      world.run(child.read(hva, seen));
      expect(seen[0]).toBe(1);
      world.run(child.put());
      world.run(world.process.exit());
      expect(world.frames.usage()).toEqual([]);
    });

    it('unshares a page at once and tells the others behind', () => {
      const { world, hva, slow } = slowWorld();
      const child = world.run(world.mm.fork(2, 'child'));
      slow.told = [];
      start(world, world.mm.madviseDontNeed(hva + 3 * PAGE, PAGE));
      const before = world.frames.inUse;
      expect(world.guest.store(PAGE, 4, 50)).toBe(true);
      expect([world.guest.load(PAGE, 4), world.frames.inUse - before, world.guestClock.runs]).toEqual([50, 1, false]);
      world.settle();
      expect(world.guestClock.runs).toBe(true);
      expect(slow.told).toEqual(['1 pages', '1 pages']);
      const seen = new Uint8Array(1);
      world.run(child.read(hva + PAGE, seen));
      expect([seen[0], world.guest.load(PAGE, 4)]).toEqual([2, 50]);
      world.run(child.put());
      world.run(world.process.exit());
      expect(world.frames.usage()).toEqual([]);
    });
  });

  it('is told before those that sleep, whoever registered first', () => {
    const world = new GuestWorld();
    const order: string[] = [];
    const early: MmNotifier = { *invalidateRange() { order.push('early'); }, *release() {} };
    const world2 = new GuestWorld();
    world2.mm.unregisterNotifier(world2.guest);
    world2.mm.registerNotifier(early);
    world2.mm.registerNotifier({ neverSleeps: true, *invalidateRange() { order.push('swift'); }, *release() {} });
    const at = world2.run(world2.mm.mmap(PAGE));
    world2.run(world2.mm.write(at, Uint8Array.of(1)));
    world2.run(world2.mm.madviseDontNeed(at, PAGE));
    expect(order).toEqual(['swift', 'early']);
    expect(world.mm.notifiersMaySleep).toBe(false);
    expect(world2.mm.notifiersMaySleep).toBe(true);
  });
});

describe('guest memory against plain memory (random)', () => {
  const SLOTS = [{ start: 0, pages: 4 }, { start: 6, pages: 3 }, { start: 9, pages: 2 }];
  const END = 12 * PAGE;
  const address = fc.integer({ min: 0, max: END - 1 });
  const length = fc.oneof(fc.integer({ min: 0, max: 40 }), fc.integer({ min: 0, max: 3 * PAGE }));
  const action = fc.oneof(
    fc.record({ do: fc.constant('store' as const), address, value: fc.nat(), size: fc.constantFrom(1 as const, 2 as const, 4 as const) }),
    fc.record({ do: fc.constant('store64' as const), address, value: fc.nat(), cas: fc.boolean() }),
    fc.record({ do: fc.constant('fill' as const), address, length, value: fc.nat(255) }),
    fc.record({ do: fc.constant('write' as const), address, length, value: fc.nat(255) }),
    fc.record({ do: fc.constant('copy' as const), address, from: address, length }),
    fc.record({ do: fc.constant('madvise' as const), slot: fc.nat(2), page: fc.nat(3), pages: fc.integer({ min: 1, max: 4 }) }),
    fc.record({ do: fc.constant('fork' as const), exit: fc.boolean() }),
    fc.record({ do: fc.constant('child' as const), slot: fc.nat(2), page: fc.nat(3) }),
    fc.record({ do: fc.constant('protect' as const), slot: fc.nat(2) }),
    fc.record({ do: fc.constant('move' as const), slot: fc.nat(2) }),
  );

  function play(actions: readonly (typeof action extends fc.Arbitrary<infer A> ? A : never)[], slow: boolean, defects: string[]): void {
    const world = new GuestWorld({ bytes: 2 * MIB, defects });
    if (slow) world.mm.registerNotifier(new Slow(world));
    const model = new Ram(SLOTS.map(({ start, pages }) => ({ start: start * PAGE, end: (start + pages) * PAGE })).reduce<{ start: number; end: number }[]>((all, range) => {
      const last = all.at(-1);
      if (last?.end === range.start) all[all.length - 1] = { start: last.start, end: range.end };
      else all.push(range);
      return all;
    }, []));
    const hvas = SLOTS.map(({ start, pages }, i) => world.slot(i, start * PAGE, pages * PAGE));
    const { guest, mm } = world;
    const children: { mm: Mm; image: Ram }[] = [];
    const source = (value: number, count: number) => Uint8Array.from({ length: count }, (_, i) => value + i * 7);
    for (const act of actions) {
      switch (act.do) {
        case 'store': {
          const at = act.address - (act.address % act.size);
          expect(guest.store(at, act.size, act.value)).toBe(model.store(at, act.size, act.value));
          expect(guest.load(at, act.size)).toBe(model.load(at, act.size));
          break;
        }
        case 'store64': {
          const at = act.address - (act.address % 8);
          if (act.cas && model.load64(at)) {
            guest.load64(at);
            expect([guest.lo, guest.hi]).toEqual([model.lo, model.hi]);
            expect(guest.compareExchange64(at, model.lo, model.hi, act.value, ~act.value)).toBe(model.compareExchange64(at, model.lo, model.hi, act.value, ~act.value));
          } else expect(guest.store64(at, act.value, 3)).toBe(model.store64(at, act.value, 3));
          break;
        }
        case 'fill':
          expect(guest.fill(act.address, act.value, act.length)).toBe(model.fill(act.address, act.value, act.length));
          break;
        case 'write':
          expect(guest.write(act.address, source(act.value, act.length), 0, act.length)).toBe(model.write(act.address, source(act.value, act.length), 0, act.length));
          break;
        case 'copy':
          expect(guest.copy(act.address, act.from, act.length)).toBe(model.copy(act.address, act.from, act.length));
          break;
        case 'madvise': {
          const { start, pages } = SLOTS[act.slot]!;
          const first = act.page % pages, count = Math.min(act.pages, pages - first);
          world.run(mm.madviseDontNeed(hvas[act.slot]! + first * PAGE, count * PAGE));
          model.fill((start + first) * PAGE, 0, count * PAGE);
          break;
        }
        case 'fork': {
          if (act.exit && children.length > 0) world.run(children.pop()!.mm.put());
          else if (children.length < 3) {
            const image = new Ram(END);
            for (const { start, pages } of SLOTS) {
              const bytes = new Uint8Array(pages * PAGE);
              model.read(start * PAGE, bytes, 0, bytes.length);
              image.write(start * PAGE, bytes, 0, bytes.length);
            }
            children.push({ mm: world.run(mm.fork(10 + children.length, 'child')), image });
          }
          break;
        }
        case 'child': {
          const child = children.at(-1);
          const at = hvas[act.slot]! + (act.page % SLOTS[act.slot]!.pages) * PAGE;
          if (child === undefined || child.mm.areas.find(at / PAGE) === undefined) break;
          world.run(child.mm.write(at + 5, Uint8Array.of(0xee)));
          child.image.store((SLOTS[act.slot]!.start + (act.page % SLOTS[act.slot]!.pages)) * PAGE + 5, 1, 0xee);
          break;
        }
        case 'protect':
          world.run(mm.mprotect(hvas[act.slot]!, SLOTS[act.slot]!.pages * PAGE, 1));
          world.run(mm.mprotect(hvas[act.slot]!, SLOTS[act.slot]!.pages * PAGE, 3));
          break;
        case 'move': {
          // the VMM moves its memory and tells the slot; a child keeps the old place and is not looked at any more
          if (children.length > 0) break;
          const { start, pages } = SLOTS[act.slot]!;
          const size = pages * PAGE, old = hvas[act.slot]!;
          const target = world.run(mm.mmap(size));
          const content = new Uint8Array(size);
          world.run(mm.read(old, content));
          world.run(mm.write(target, content));
          world.run(mm.munmap(old, size));
          world.vm.setUserMemoryRegion({ slot: act.slot, guestPhysAddr: start * PAGE, memorySize: 0, userspaceAddr: 0 });
          world.vm.setUserMemoryRegion({ slot: act.slot, guestPhysAddr: start * PAGE, memorySize: size, userspaceAddr: target });
          hvas[act.slot] = target;
          break;
        }
      }
    }
    for (const { start, pages } of SLOTS) {
      const mine = new Uint8Array(pages * PAGE), expected = new Uint8Array(pages * PAGE);
      expect([guest.read(start * PAGE, mine, 0, mine.length), model.read(start * PAGE, expected, 0, expected.length)]).toEqual([true, true]);
      expect(Buffer.compare(mine, expected)).toBe(0);
      for (const child of children) {
        const seen = new Uint8Array(pages * PAGE);
        world.run(child.mm.read(hvas[SLOTS.findIndex((slot) => slot.start === start)]!, seen));
        child.image.read(start * PAGE, expected, 0, expected.length);
        expect(Buffer.compare(seen, expected)).toBe(0);
      }
    }
    world.settle();
    for (const child of children) world.run(child.mm.put());
    world.run(world.process.exit());
    expect(world.frames.usage()).toEqual([]);
  }

  it('agrees after any stores, copies, madvise, forks, protections and moves of the VMM', () => {
    fc.assert(fc.property(fc.array(action, { maxLength: 40 }), (actions) => play(actions, false, [])), { numRuns: 150 });
  });

  it('agrees when another listener of the VMM\'s address space sleeps', () => {
    fc.assert(fc.property(fc.array(action, { maxLength: 30 }), (actions) => play(actions, true, [])), { numRuns: 100 });
  });

  it('notices the defect kvm.stale-translation', () => {
    expect(() => fc.assert(fc.property(fc.array(action, { minLength: 10, maxLength: 40 }), (actions) => play(actions, false, ['kvm.stale-translation'])), { numRuns: 100 })).toThrow();
  });
});
