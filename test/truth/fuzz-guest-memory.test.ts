/**
 * Guest-physical memory under a guest that stores anywhere, while its VMM maps, unmaps, protects, discards, forks and
 * moves what is behind it. What the guest reads is what the VMM has there; what it writes is written there and nowhere
 * else: not to a neighbour process, not to the host's kernel, not to a page that the VMM has given back.
 */
import { describe, expect, it } from 'vitest';
import { PROT_READ, PROT_WRITE } from '../../host/mm/vma.js';
import { Mm, SegmentationFault } from '../../host/mm/mm.js';
import { isErrno } from '../../sim/errno.js';
import { Random } from '../../sim/random.js';
import { sleep, type Steps } from '../../sim/task.js';
import { GIB, GuestWorld, MIB } from '../fixtures/guest-world.js';

const NIGHTLY = process.env['VFIOSIM_NIGHTLY'] === '1';
const WORLDS = NIGHTLY ? 300 : 6;
const STEPS = NIGHTLY ? 3000 : 600;
const PAGE = 4096;
/** Guest-physical start and size of each slot: low memory, a piece behind a hole, memory above 4 GiB next to another. */
const SLOTS: readonly (readonly [start: number, bytes: number, hugeLevel: 0 | 1])[] = [[0, MIB, 0], [0x18_0000, 0x4_0000, 0], [4 * GIB, 2 * MIB, 1], [4 * GIB + 2 * MIB, 0x8_0000, 0]];
const EDGES = [0, MIB, 0x18_0000, 0x1c_0000, 4 * GIB, 4 * GIB + 2 * MIB, 4 * GIB + 2 * MIB + 0x8_0000, 2 ** 32, 2 ** 40, 2 ** 51, 2 ** 52 - PAGE];
/** Of the neighbour, whose pages lie between those of the VMM. */
const CANARY = 64;

class FuzzedMemory {
  readonly world: GuestWorld;
  readonly random: Random;
  private readonly neighbour: Mm;
  private readonly canary: number;
  private readonly slots: { start: number; readonly bytes: number; readonly hva: number; readonly huge: boolean }[] = [];
  private readonly children: Mm[] = [];
  private next = 10;

  constructor(seed: number, defects: string[] = []) {
    const random = (this.random = new Random(0).split(`guest memory ${seed}`));
    const world = (this.world = new GuestWorld({ defects }));
    // a device that shares the VMM's address space, and takes its time to forget
    if (random.chance(0.5)) {
      world.mm.registerNotifier({
        *invalidateRange() { yield* sleep(world.clock, 200 + random.below(1000)); },
        *release() { yield* sleep(world.clock, 100); },
      });
    }
    const { memory, frames, scheduler } = world;
    this.neighbour = new Mm({ id: 2, name: 'neighbour', memory, frames, scheduler });
    this.canary = world.run(this.neighbour.mmap(CANARY * PAGE));
    SLOTS.forEach(([start, bytes, level], i) => {
      this.slots.push({ start, bytes, hva: world.slot(i, start, bytes, level === 0 ? undefined : level), huge: level > 0 });
      // its pages and the guest's in turn
      for (let page = 0; page < CANARY / SLOTS.length; page++) {
        world.run(this.neighbour.fill(this.canary + (i * CANARY / SLOTS.length + page) * PAGE, 0x5a, PAGE));
        world.guest.store(start + page * PAGE, 1, 1);
      }
    });
  }

  step(): void {
    const { random, world } = this;
    switch (random.below(10)) {
      case 0: return this.vmm();
      case 1: return world.settle();
      case 2: return this.compare();
      default: return this.guestAccess();
    }
  }

  /** Any access, anywhere. A paused guest goes on, as if its VMM had not looked. */
  private guestAccess(): void {
    const { random, world: { guest } } = this;
    const address = this.address(), length = random.chance(0.9) ? random.below(300) : random.below(3 * PAGE);
    const aligned = address - (address % 8);
    const bytes = Uint8Array.from({ length }, () => random.below(256));
    switch (random.below(9)) {
      case 0: guest.load64(aligned); break;
      case 1: guest.store64(aligned, random.u32() | 0, random.u32() | 0); break;
      case 2: guest.compareExchange64(aligned, 0, 0, random.u32() | 0, 1); break;
      case 3: guest.load(aligned, random.pick([1, 2, 4])); break;
      case 4: guest.store(aligned, random.pick([1, 2, 4]), random.u32()); break;
      case 5: guest.read(address, bytes, 0, length); break;
      case 6: guest.write(address, bytes, 0, length); break;
      case 7: guest.fill(address, random.below(256), length); break;
      default: guest.copy(address, this.address(), length);
    }
    this.world.guestClock.resume();
  }

  private address(): number {
    const { random } = this;
    if (random.chance(0.2)) return Math.max(0, random.pick(EDGES) + random.below(64) - 32);
    const slot = random.pick(this.slots);
    return slot.start + random.below(slot.bytes);
  }

  /** What the VMM's process does to the memory behind the guest, not waited for or waited for. */
  private vmm(): void {
    const { random, world } = this;
    const { mm } = world;
    const i = random.below(this.slots.length), slot = this.slots[i]!;
    const unit = slot.huge ? 2 * MIB : PAGE;
    const first = random.below(slot.bytes / unit) * unit, length = Math.min(slot.bytes - first, random.between(1, 8) * unit);
    const at = slot.hva + first;
    const level = slot.huge ? { hugeLevel: 1 as const } : {};
    switch (random.below(8)) {
      case 0: return this.start(mm.munmap(at, length));
      case 1: return this.start(mm.mmap(length, { address: at, fixed: 'replace', ...level }));
      case 2: return this.start(mm.mprotect(at, length, random.pick([0, PROT_READ, PROT_READ | PROT_WRITE])));
      case 3: case 4: return this.start(mm.madviseDontNeed(at, length));
      case 5: return this.fork();
      case 6: {
        const child = this.children.pop();
        if (child !== undefined) this.start(child.put());
        return;
      }
      default: return this.moveSlot(i);
    }
  }

  private start(steps: Steps<unknown>): void {
    const task = this.world.scheduler.spawn('vmm', tolerant(steps), { joined: true });
    if (this.random.chance(0.7)) this.world.clock.run({ stop: () => task.ended });
  }

  private fork(): void {
    if (this.children.length > 1) return;
    const id = this.next++;
    this.children.push(this.world.run(this.world.mm.fork(id, `child ${id}`)));
  }

  private moveSlot(i: number): void {
    const slot = this.slots[i]!;
    const start = this.random.chance(0.5) ? SLOTS[i]![0] : 8 * GIB + i * 16 * MIB + this.random.below(16) * PAGE;
    try {
      this.world.vm.setUserMemoryRegion({ slot: i, guestPhysAddr: start, memorySize: slot.bytes, userspaceAddr: slot.hva });
      slot.start = start;
    } catch (error) {
      if (!isErrno(error)) throw error;
    }
  }

  /** The guest and its VMM see the same bytes where both see any. */
  compare(): void {
    const { random, world } = this;
    world.settle();
    const slot = random.pick(this.slots);
    const at = random.below(slot.bytes / PAGE) * PAGE;
    const theirs = new Uint8Array(PAGE), ours = new Uint8Array(PAGE);
    const guestFirst = random.chance(0.5);
    let there = guestFirst && world.guest.read(slot.start + at, ours, 0, PAGE);
    let mapped = true;
    try {
      world.run(world.mm.read(slot.hva + at, theirs));
    } catch (error) {
      if (!(error instanceof SegmentationFault)) throw error;
      mapped = false;
    }
    if (!guestFirst) there = world.guest.read(slot.start + at, ours, 0, PAGE);
    world.guestClock.resume();
    if (there !== mapped || (there && Buffer.compare(ours, theirs) !== 0)) throw new Error(`guest page ${(slot.start + at).toString(16)} is not what its VMM has`);
  }

  finish(): void {
    const { world } = this;
    world.settle();
    for (let i = 0; i < 40; i++) this.compare();
    const bytes = new Uint8Array(CANARY * PAGE);
    world.run(this.neighbour.read(this.canary, bytes));
    expect(bytes.every((byte) => byte === 0x5a)).toBe(true);
    for (const child of this.children) world.run(child.put());
    world.run(world.process.exit());
    world.run(this.neighbour.put());
    world.settle();
    expect([world.frames.inUse, world.frames.pinnedPages]).toEqual([0, 0]);
  }
}

function* tolerant(steps: Steps<unknown>): Steps {
  try {
    yield* steps;
  } catch (error) {
    if (!isErrno(error)) throw error;
  }
}

describe('a guest that stores anywhere', () => {
  it(`reaches what its VMM has and nothing else, ${WORLDS} × ${STEPS} steps`, { timeout: 600_000 }, () => {
    for (let seed = 0; seed < WORLDS; seed++) {
      const fuzzed = new FuzzedMemory(seed);
      for (let i = 0; i < STEPS; i++) fuzzed.step();
      fuzzed.finish();
    }
  });

  it('would be seen reading what its VMM does not have any more: the defect kvm.stale-translation', () => {
    let seen = 0;
    for (let seed = 0; seed < 5; seed++) {
      const fuzzed = new FuzzedMemory(seed, ['kvm.stale-translation']);
      try {
        for (let i = 0; i < 600; i++) fuzzed.step();
        fuzzed.finish();
      } catch {
        seen++;
      }
    }
    expect(seen).toBeGreaterThan(2);
  });
});
