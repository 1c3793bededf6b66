import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Vm } from '../../guest/kvm/vm.js';
import { EventFd } from '../../host/eventfd.js';
import { PlainMmio, type AccessSize, type EnqueueResult } from '../../sim/mmio.js';
import { GuestWorld, MIB } from '../fixtures/guest-world.js';

const PAGE = 4096;

describe('memory slots (KVM_SET_USER_MEMORY_REGION)', () => {
  function world() {
    const host = new GuestWorld();
    const hva = host.run(host.mm.mmap(MIB));
    const set = (slot: number, guestPhysAddr: number, memorySize: number, userspaceAddr = hva, flags = 0) =>
      host.vm.setUserMemoryRegion({ slot, guestPhysAddr, memorySize, userspaceAddr, flags });
    set(1, 0x10_0000, 0x4000);
    const shape = () => host.guest.slots.list.map(({ id, start, end, userspaceAddr }) => [id, start, end, userspaceAddr - hva]);
    return { host, hva, set, shape };
  }

  const refusals: [string, string, (w: ReturnType<typeof world>) => void][] = [
    ['EINVAL', 'a slot number that does not exist', ({ set }) => set(509, 0x20_0000, 0x1000)],
    ['EINVAL', 'a size that is not whole pages', ({ set }) => set(2, 0x20_0000, 0x1800)],
    ['EINVAL', 'a guest-physical address inside a page', ({ set }) => set(2, 0x20_0010, 0x1000)],
    ['EINVAL', 'a userspace address inside a page', ({ set, hva }) => set(2, 0x20_0000, 0x1000, hva + 8)],
    ['EINVAL', 'a userspace address of the kernel', ({ set }) => set(2, 0x20_0000, 0x1000, 0x8000_0000_0000)],
    ['EINVAL', 'memory that wraps', ({ set }) => set(2, 2 ** 52 - 0x1000, 0x2000)],
    ['EINVAL', 'unknown flags', ({ set, hva }) => set(2, 0x20_0000, 0x1000, hva, 0x80)],
    ['EINVAL', 'deleting what is not there', ({ set }) => set(2, 0, 0)],
    ['EINVAL', 'another size', ({ set }) => set(1, 0x10_0000, 0x2000)],
    ['EINVAL', 'other memory', ({ set, hva }) => set(1, 0x10_0000, 0x4000, hva + 0x4000)],
    ['EEXIST', 'an overlap at the end', ({ set }) => set(2, 0x10_3000, 0x2000)],
    ['EEXIST', 'an overlap at the start', ({ set }) => set(2, 0xf_f000, 0x2000)],
    ['EEXIST', 'an overlap all over', ({ set }) => set(2, 0xf_0000, 0x10_0000)],
  ];
  for (const [code, what, call] of refusals) {
    it(`refuses ${what} with ${code}`, () => {
      const w = world();
      const before = [w.shape(), w.host.guest.generation];
      expect(w.host.refused(() => call(w))).toBe(code);
      expect([w.shape(), w.host.guest.generation]).toEqual(before);
    });
  }

  it('moves a slot with its memory, and not onto another one', () => {
    const { host, set, shape } = world();
    host.guest.store(0x10_0000, 4, 7);
    set(2, 0x20_0000, 0x1000, host.run(host.mm.mmap(PAGE)));
    const { generation } = host.guest;
    expect(host.refused(() => set(1, 0x1f_e000, 0x4000))).toBe('EEXIST');
    set(1, 0x30_0000, 0x4000);
    expect([host.guest.load(0x30_0000, 4), host.guest.load(0x10_0000, 4)]).toEqual([7, -1]);
    expect(shape().map(([id]) => id)).toEqual([2, 1]);
    expect(host.guest.generation).toBeGreaterThan(generation);
    // onto itself is allowed
    set(1, 0x30_1000, 0x4000);
    expect(host.guest.load(0x30_1000, 4)).toBe(7);
  });

  it('deletes a slot; the memory stays the VMM\'s', () => {
    const { host, hva, set, shape } = world();
    host.guest.store(0x10_0000, 4, 7);
    set(1, 0, 0, 0);
    expect([shape(), host.guest.load(0x10_0000, 4)]).toEqual([[], -1]);
    set(4, 0, 0x1000, hva);
    expect(host.guest.load(0, 4)).toBe(7);
  });
});

describe('PASID translation of ENQCMD (Intel SDM vol. 3C)', () => {
  /** Reads the tables as the manual draws them. */
  function walk(world: GuestWorld, pasid: number): number {
    const directory = world.vm.pasids.directories[(pasid >>> 19) & 1]!;
    const entry = Buffer.alloc(8), word = Buffer.alloc(4);
    world.memory.read(directory + ((pasid >>> 10) & 511) * 8, entry, 0, 8);
    if ((entry[0]! & 1) === 0) return -1;
    world.memory.read(Number(entry.readBigUInt64LE() & 0x000f_ffff_ffff_f000n) + (pasid & 1023) * 4, word, 0, 4);
    return word[3]! >= 0x80 ? word.readUInt32LE() & 0xf_ffff : -1;
  }

  it('lies in two directories of 512 entries and tables of 1024 words', () => {
    const world = new GuestWorld();
    world.vm.setPasid(0x8_0401, 0xa_bcde);
    const [low, high] = world.vm.pasids.directories;
    expect(low % PAGE + high % PAGE).toBe(0);
    // bit 19: the high directory; bits 18:10 are 1; bits 9:0 are 1
    world.memory.load64(high + 8);
    expect(world.memory.lo & 0xfff).toBe(1);
    const table = (world.memory.lo & ~0xfff) >>> 0;
    expect(world.memory.load(table + 4, 4)).toBe(0x800a_bcde);
    expect(world.frames.framesOf('kvm-table')).toBe(3);
    expect([world.vm.translatePasid(0x8_0401), world.vm.translatePasid(0x401), world.vm.translatePasid(0x8_0402)]).toEqual([0xa_bcde, -1, -1]);
  });

  it('exits for a reserved bit in either entry, and for an invalid one', () => {
    const world = new GuestWorld();
    world.vm.setPasid(5, 6);
    const [low] = world.vm.pasids.directories;
    world.memory.load64(low);
    const { lo, hi } = world.memory;
    const table = (lo & ~0xfff) >>> 0;
    for (const [badLo, badHi] of [[lo | 2, hi], [lo, hi | 0x10_0000], [lo & ~1, hi]]) {
      world.memory.store64(low, badLo!, badHi!);
      expect(world.vm.translatePasid(5)).toBe(-1);
    }
    world.memory.store64(low, lo, hi);
    world.memory.store(table + 20, 4, 0x8010_0006);
    expect(world.vm.translatePasid(5)).toBe(-1);
    world.memory.store(table + 20, 4, 0x8000_0006);
    expect(world.vm.translatePasid(5)).toBe(6);
  });

  it('refuses PASIDs beyond 20 bits and another meaning of one that has one', () => {
    const world = new GuestWorld();
    world.vm.setPasid(1, 2);
    expect(world.refused(() => world.vm.setPasid(0x10_0000, 1))).toBe('EINVAL');
    expect(world.refused(() => world.vm.setPasid(3, -1))).toBe('EINVAL');
    expect(world.refused(() => world.vm.setPasid(1, 3))).toBe('EBUSY');
    world.vm.setPasid(1, 2);
    world.vm.clearPasid(1);
    world.vm.clearPasid(1);
    world.vm.setPasid(1, 3);
    expect(world.vm.translatePasid(1)).toBe(3);
  });

  it('agrees with a walk by hand for any set of PASIDs (random)', () => {
    fc.assert(fc.property(fc.array(fc.tuple(fc.nat(0xf_ffff), fc.nat(0xf_ffff), fc.boolean()), { maxLength: 30 }), (pairs) => {
      const world = new GuestWorld({ bytes: MIB });
      const model = new Map<number, number>();
      for (const [guest, host, keep] of pairs) {
        if (!model.has(guest)) world.vm.setPasid(guest, host);
        model.set(guest, model.get(guest) ?? host);
        if (keep) continue;
        world.vm.clearPasid(guest);
        model.delete(guest);
      }
      for (const [guest] of pairs) {
        expect(world.vm.translatePasid(guest)).toBe(model.get(guest) ?? -1);
        expect(walk(world, guest)).toBe(model.get(guest) ?? -1);
      }
      world.run(world.process.exit());
      expect(world.frames.usage()).toEqual([]);
    }), { numRuns: 40 });
  });
});

class Portal extends PlainMmio {
  readonly taken: number[][] = [];
  answer: EnqueueResult = 'accepted';

  read(_offset: number, _size: AccessSize): number {
    this.high = 9;
    return 0x55;
  }

  write(offset: number, size: AccessSize, lo: number, hi = 0): void {
    this.taken.push([offset, size, lo, hi]);
  }

  override write64(offset: number, bytes: Uint8Array): void {
    this.taken.push([offset, ...bytes.subarray(0, 5)]);
  }

  override enqueue64(offset: number, bytes: Uint8Array): EnqueueResult {
    this.taken.push([offset, ...bytes.subarray(0, 5)]);
    return this.answer;
  }
}

describe('a window of a device in a guest', () => {
  function world(defects: string[] = []) {
    const host = new GuestWorld({ defects });
    const portal = new Portal();
    const window = host.vm.window(portal);
    const command = Uint8Array.from({ length: 64 }, (_, i) => i);
    command.set([0x34, 0x12, 0x75, 0x80]);
    return { host, portal, window, command };
  }

  it('puts the host\'s PASID into bits 19:0 of an enqueue and leaves the rest and the caller\'s bytes', () => {
    const { host, portal, window, command } = world();
    host.vm.setPasid(0x5_1234, 0xa_0042);
    const before = [...command];
    expect(window.enqueue64(0x40, command)).toBe('accepted');
    expect(portal.taken).toEqual([[0x40, 0x42, 0x00, 0x7a, 0x80, 4]]);
    expect([...command]).toEqual(before);
    portal.answer = 'retry';
    expect(window.enqueue64(0x40, command)).toBe('retry');
  });

  it('exits for a PASID without translation: nothing reaches the device, the guest\'s queue seems full', () => {
    const { host, portal, window, command } = world();
    const exits: number[][] = [];
    host.trace.listen(({ args }) => exits.push([...args]), ['kvm:enqcmd_exit']);
    expect(window.enqueue64(0, command)).toBe('retry');
    command[3] = 0;
    expect(window.enqueue64(0, command)).toBe('retry');
    expect([portal.taken, host.vm.enqcmdExits]).toEqual([[], 2]);
    expect(exits.map(([, pasid, reason]) => [pasid, reason])).toEqual([[0x5_1234, 73], [0x5_1234, 72]]);
  });

  it('lets the guest\'s own PASID through with the defect kvm.enqcmd-untranslated', () => {
    const { portal, window, command } = world(['kvm.enqcmd-untranslated']);
    expect(window.enqueue64(0, command)).toBe('accepted');
    expect(portal.taken).toEqual([[0, 0x34, 0x12, 0x75, 0x80, 4]]);
  });

  it('passes everything else as it is', () => {
    const { portal, window, command } = world();
    expect([window.read(8, 8), window.high]).toEqual([0x55, 9]);
    window.write(16, 8, 1, 2);
    window.write64(64, command);
    expect(portal.taken).toEqual([[16, 8, 1, 2], [64, 0x34, 0x12, 0x75, 0x80, 4]]);
  });
});

describe('interrupts from eventfds (KVM_IRQFD)', () => {
  it('takes the counter and delivers in the event of the signal', () => {
    const { vm, scheduler } = new GuestWorld();
    const eventfd = new EventFd(scheduler, 'vector 0');
    let delivered = 0;
    eventfd.signal();
    const end = vm.irqfd(eventfd, () => delivered++);
    expect(delivered).toBe(1);
    eventfd.signal(3);
    expect([delivered, eventfd.count, vm.injections]).toEqual([2, 0, 2]);
    end();
    eventfd.signal();
    expect([delivered, eventfd.count]).toEqual([2, 1]);
  });

  it('is one interrupt at most: EBUSY', () => {
    const world = new GuestWorld();
    const eventfd = new EventFd(world.scheduler);
    const end = world.vm.irqfd(eventfd, () => {});
    expect(world.refused(() => world.vm.irqfd(eventfd, () => {}))).toBe('EBUSY');
    end();
    world.vm.irqfd(eventfd, () => {});
  });

  it('ends with the virtual machine', () => {
    const world = new GuestWorld();
    const eventfd = new EventFd(world.scheduler);
    let delivered = 0;
    world.vm.irqfd(eventfd, () => delivered++);
    world.run(world.process.close(world.vmFd));
    eventfd.signal();
    expect([delivered, world.guestClock.state, world.guest.has(0, 1)]).toEqual([0, 'stopped', false]);
    world.run(world.process.exit());
    expect(world.frames.usage()).toEqual([]);
  });
});

describe('a virtual machine', () => {
  it('has 1 to 288 virtual CPUs', () => {
    const { process, memory, frames, guestClock, vm } = new GuestWorld({ vcpus: 4 });
    expect(vm.vcpus).toBe(4);
    for (const vcpus of [0, 289, 1.5]) {
      expect(() => new Vm({ name: 'x', process, memory, frames, clock: guestClock, vcpus })).toThrow('EINVAL');
    }
    expect(frames.framesOf('kvm-table')).toBe(2);
  });
});
