/** Interrupts of functions: MSI (PCIe 6.0 sections 6.1.4, 7.7.1) and INTx (sections 2.2.8.1, 6.1.3, 7.5.1.1), poked as software does; then the kernel's side of both. */
import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { Channel, Mailbox } from '../../sim/channel.js';
import { VirtualClock } from '../../sim/clock.js';
import { Errno } from '../../sim/errno.js';
import { Random } from '../../sim/random.js';
import { Trace } from '../../sim/trace.js';
import { InterruptController, type InterruptMessage, type InterruptOptions } from '../../host/interrupts.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { IDLE, only, PciWorld } from '../fixtures/pci-world.js';
import { createWorld, findCapability, Listener, svaFunction, type World } from '../unit/pci-world.js';
import type { MsiOptions } from '../../host/pci/hardware/msi.js';
import type { PciFunctionOptions } from '../../host/pci/hardware/pci-function.js';
import type { PciBus } from '../../host/pci/hardware/pci-node.js';
import type { IntxPin } from '../../host/pci/spec/index.js';

const MSI = 0x05, DISABLE = 0x400, PENDING = 0x08;

function msiBench(msi: MsiOptions, defects: readonly string[] = []): { world: World; fn: PciFunction; at: number; poke: (offset: number, size: 1 | 2 | 4, value: number) => void; peek: (offset: number, size: 1 | 2 | 4) => number; data: () => number[] } {
  const world = createWorld();
  const fn = new PciFunction({ ...svaFunction(new Listener(world.clock), { msi }), defects: new Set(defects) });
  world.complex.insert(world.root, 0x08, fn);
  world.complex.configWrite(0, 0x08, 4, 2, 0x6);
  const at = findCapability(fn, MSI);
  return {
    world, fn, at,
    poke: (offset, size, value) => world.complex.configWrite(0, 0x08, at + offset, size, value),
    peek: (offset, size) => world.complex.configRead(0, 0x08, at + offset, size),
    data: () => {
      world.clock.run();
      return world.messages.map(({ data }) => data);
    },
  };
}

describe('the MSI capability', () => {
  it('announces vectors, 64-bit addresses and masks; only enable, count, address, data and masks are writable (section 7.7.1)', () => {
    const { peek, poke } = msiBench({ vectors: 4, maskable: true });
    expect(peek(2, 2)).toBe(0x0184);
    for (let offset = 0; offset < 0x18; offset += 4) poke(offset, 4, 0xffff_ffff);
    expect([peek(2, 2), peek(4, 4), peek(8, 4), peek(0xc, 4), peek(0x10, 4), peek(0x14, 4)]).toEqual([0x01f5, 0xffff_fffc, 0xffff_ffff, 0xffff, 0xf, 0]);
    const plain = msiBench({ vectors: 1 });
    expect([plain.peek(2, 2), plain.peek(0x10, 4)]).toEqual([0x0080, 0]);
  });

  it('sends address and data once enabled, the low bits of the data replaced by the vector', () => {
    const { fn, poke, world, data } = msiBench({ vectors: 4 });
    fn.raiseMsi(0);
    poke(4, 4, 0xfee0_3000);
    poke(0xc, 2, 0x4567);
    poke(2, 2, 0x0021);
    for (const vector of [0, 3, 1]) fn.raiseMsi(vector);
    expect(data()).toEqual([0x4564, 0x4567, 0x4565]);
    expect([world.messages[0]!.address, world.messages[0]!.sourceId, fn.msi!.dropped]).toEqual([0xfee0_3000, 0x08, 1]);
  });

  it('uses the vectors that software allocated in turn when it has more (Multiple Message Enable)', () => {
    const { fn, poke, data } = msiBench({ vectors: 8 });
    poke(4, 4, 0xfee0_0000);
    poke(0xc, 2, 0x40);
    poke(2, 2, 0x0011);
    for (let vector = 0; vector < 8; vector++) fn.raiseMsi(vector);
    expect(data()).toEqual([0x40, 0x41, 0x40, 0x41, 0x40, 0x41, 0x40, 0x41]);
  });

  it('needs bus mastering: a message is a memory write', () => {
    const { world, fn, poke, data } = msiBench({ vectors: 1 });
    poke(4, 4, 0xfee0_0000);
    poke(2, 2, 1);
    world.complex.configWrite(0, 0x08, 4, 2, 0x2);
    fn.raiseMsi(0);
    expect(data()).toEqual([]);
  });

  it('keeps a masked vector pending and sends it once when the mask goes (section 6.1.4)', () => {
    const { fn, poke, peek, data } = msiBench({ vectors: 4, maskable: true });
    poke(4, 4, 0xfee0_0000);
    poke(0xc, 2, 0x40);
    poke(2, 2, 0x0021);
    poke(0x10, 4, 0x6);
    for (const vector of [1, 2, 2, 0]) fn.raiseMsi(vector);
    expect([data(), peek(0x14, 4)]).toEqual([[0x40], 0x6]);
    poke(0x10, 4, 0x2);
    expect([data(), peek(0x14, 4)]).toEqual([[0x40, 0x42], 0x2]);
    fn.reset('flr');
    expect([peek(0x14, 4), peek(2, 2)]).toEqual([0, 0x0184]);
  });

  it('sends what was pending, exactly once each, whatever software masks and unmasks (state space)', () => {
    const step = fc.oneof(fc.record({ raise: fc.nat(3) }), fc.record({ mask: fc.nat(15) }), fc.record({ on: fc.boolean() }));
    fc.assert(fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const { fn, poke, peek, data } = msiBench({ vectors: 4, maskable: true });
      poke(4, 4, 0xfee0_0000);
      let mask = 0, pending = 0, on = false;
      const expected: number[] = [];
      const flush = (): void => {
        for (let v = 0; v < 4 && on; v++) {
          if ((pending & ~mask & (1 << v)) === 0) continue;
          pending &= ~(1 << v);
          expected.push(v);
        }
      };
      for (const one of steps) {
        if ('raise' in one) {
          fn.raiseMsi(one.raise);
          if (on) pending |= 1 << one.raise;
        } else if ('mask' in one) {
          mask = one.mask;
          poke(0x10, 4, mask);
        } else {
          on = one.on;
          poke(2, 2, 0x20 | (on ? 1 : 0));
        }
        flush();
        expect(peek(0x14, 4)).toBe(pending);
      }
      expect(data()).toEqual(expected);
    }), { numRuns: 60 });
  });

  it('is heard through its mask with the defect pci.msi-ignore-mask', () => {
    const { fn, poke, data } = msiBench({ vectors: 1, maskable: true }, ['pci.msi-ignore-mask']);
    poke(4, 4, 0xfee0_0000);
    poke(2, 2, 1);
    poke(0x10, 4, 1);
    fn.raiseMsi(0);
    expect(data()).toEqual([0]);
  });
});

/** A function with a pin; `count` handlers calls that it was, each silences the device when `quiet`. */
function intxBench(options: Partial<PciFunctionOptions> = {}, place: (world: PciWorld) => [PciBus, number] = (world) => [world.root, 0x08]): { world: PciWorld; fn: PciFunction; command: (value: number) => void; status: () => number; rang: () => number } {
  const world = new PciWorld();
  const [bus, devfn] = place(world);
  const fn = world.fn(bus, devfn, { intx: 1, ...options });
  let calls = 0;
  world.interrupts.requestLine(17, 'dev', () => {
    calls++;
    fn.setIntx(false);
    return true;
  });
  return {
    world, fn,
    command: (value) => world.complex.configWrite(0, 0x08, 4, 2, value),
    status: () => world.complex.configRead(0, 0x08, 6, 2),
    rang: () => {
      world.clock.run();
      return calls;
    },
  };
}

describe('the interrupt pin', () => {
  it('drives its line while the device wants it, without bus mastering, and shows it in Interrupt Status', () => {
    const { fn, world, status, rang } = intxBench();
    expect(world.complex.configRead(0, 0x08, 0x3d, 1)).toBe(1);
    fn.setIntx(true);
    expect([status() & PENDING, world.interrupts.lineIsHigh(17)]).toEqual([PENDING, true]);
    expect(rang()).toBe(1);
    expect([status() & PENDING, world.interrupts.lineIsHigh(17)]).toEqual([0, false]);
  });

  it('is silenced by Interrupt Disable, which leaves Interrupt Status alone (sections 7.5.1.1.3, 7.5.1.1.4)', () => {
    const { fn, world, command, status, rang } = intxBench();
    command(DISABLE);
    fn.setIntx(true);
    expect([rang(), status() & PENDING, world.interrupts.lineIsHigh(17)]).toEqual([0, PENDING, false]);
    command(0);
    expect(rang()).toBe(1);
    const liar = intxBench({ defects: new Set(['pci.intx-ignore-disable']) });
    liar.command(DISABLE);
    liar.fn.setIntx(true);
    expect(liar.rang()).toBe(1);
  });

  it('is silent while MSI or MSI-X is enabled (section 6.1.4)', () => {
    const { fn, world, rang } = intxBench({ msi: { vectors: 1 } });
    const at = findCapability(fn, MSI);
    world.complex.configWrite(0, 0x08, at + 2, 2, 1);
    fn.setIntx(true);
    expect(rang()).toBe(0);
    world.complex.configWrite(0, 0x08, at + 2, 2, 0);
    expect(rang()).toBe(1);
  });

  it('lets its line go at a reset and when the function is pulled out', () => {
    const { fn, world } = intxBench();
    fn.setIntx(true);
    fn.reset('flr');
    expect([world.interrupts.lineIsHigh(17), fn.config.read(6, 2) & PENDING]).toEqual([false, 0]);
    fn.setIntx(true);
    expect(world.interrupts.lineIsHigh(17)).toBe(true);
    world.complex.remove(fn, { surprise: true });
    expect(world.interrupts.lineIsHigh(17)).toBe(false);
  });

  it.each([[0x08, 1, 17], [0x10, 1, 18], [0x10, 3, 16], [0x18, 2, 16], [0x20, 4, 19]] as const)('of slot %i, pin %i is line %i: devices take turns', (devfn, pin, line) => {
    const world = new PciWorld();
    world.fn(world.root, devfn, { intx: pin }).setIntx(true);
    expect([16, 17, 18, 19].filter((candidate) => world.interrupts.lineIsHigh(candidate))).toEqual([line]);
  });

  it('is renamed by every bridge above (table 2-21)', () => {
    const world = new PciWorld();
    const upstream = world.upstreamPort(world.rootPort(0x10).secondary);
    const downstream = world.downstreamPort(upstream.secondary, 0x18);
    const fn = world.fn(downstream.secondary, 0, { intx: 2 });
    const core = world.core();
    core.enumerate();
    fn.setIntx(true);
    // B at device 0, B above; the downstream port is device 3: A; upstream port device 0; root port device 2: C, line 18
    expect(world.interrupts.lineIsHigh(18)).toBe(true);
    const device = core.devices.at(-1)!;
    expect([device.interruptPin, device.intxInterrupt.line, device.config.read(0x3c, 1)]).toEqual([2, 18, 18]);
  });
});

function controller(options: InterruptOptions = {}): { clock: VirtualClock; interrupts: InterruptController } {
  const clock = new VirtualClock();
  const timing = new Timing({ ...DEFAULT_TIMING, jitter: 0 }, new Random(1));
  return { clock, interrupts: new InterruptController(clock, timing, new Channel<InterruptMessage>(new Mailbox((error) => clock.fail(error)), 'interrupts'), options) };
}

describe('a level-triggered line', () => {
  it('interrupts again after each end of interrupt while it is high, every interruptNs', () => {
    const { clock, interrupts } = controller();
    const at: number[] = [], ends: number[] = [];
    const device = {};
    interrupts.listenEoi(16, () => ends.push(clock.now));
    interrupts.requestLine(16, 'dev', () => {
      at.push(clock.now);
      if (at.length === 3) interrupts.setLine(16, device, false);
      return true;
    });
    interrupts.setLine(16, device, true);
    clock.run();
    expect([at, ends]).toEqual([[1000, 2000, 3000], [1000, 2000, 3000]]);
    expect(interrupts.listLines()).toEqual([{ line: 16, count: 3, names: ['dev'] }]);
  });

  it('is high until the last device lets it go; every handler is asked', () => {
    const { clock, interrupts } = controller();
    const devices = [{ wants: true }, { wants: true }];
    const asked: number[] = [];
    devices.forEach((device, i) => {
      interrupts.requestLine(16, `dev${i}`, () => {
        asked.push(i);
        const mine = device.wants && asked.length > 2 * i;
        if (mine) {
          device.wants = false;
          interrupts.setLine(16, device, false);
        }
        return mine;
      });
      interrupts.setLine(16, device, true);
    });
    clock.run();
    expect(asked).toEqual([0, 1, 0, 1]);
    expect(interrupts.lineIsHigh(16)).toBe(false);
  });

  it('waits while it is disabled, counted, and is heard when it is enabled and still high', () => {
    const { clock, interrupts } = controller();
    const device = {};
    let calls = 0;
    interrupts.requestLine(16, 'dev', () => {
      calls++;
      interrupts.disableLine(16);
      return true;
    });
    interrupts.setLine(16, device, true);
    clock.run();
    interrupts.disableLine(16);
    interrupts.enableLine(16);
    clock.run();
    expect(calls).toBe(1);
    interrupts.enableLine(16);
    clock.run();
    expect(calls).toBe(2);
    interrupts.setLine(16, device, false);
    interrupts.enableLine(16);
    clock.run();
    expect(calls).toBe(2);
  });

  it('is switched off when nobody feels responsible for long, and is on again for the next who asks', () => {
    const lines: number[] = [];
    const { clock, interrupts } = controller({ onNobodyCared: (line) => lines.push(line) });
    const device = {};
    const action = interrupts.requestLine(16, 'dev', () => false);
    interrupts.setLine(16, device, true);
    clock.run();
    expect([lines, interrupts.listLines()[0]!.count]).toEqual([[16], 100_000]);
    interrupts.freeLine(action);
    let heard = 0;
    interrupts.requestLine(16, 'other', () => {
      heard++;
      interrupts.setLine(16, device, false);
      return true;
    });
    clock.run();
    expect(heard).toBe(1);
  });

  it('is shared only by those who share: EBUSY', () => {
    const { interrupts } = controller();
    interrupts.requestLine(16, 'a', () => true);
    expect(() => interrupts.requestLine(16, 'b', () => true, false)).toThrow('-EBUSY');
    const alone = interrupts.requestLine(17, 'c', () => true, false);
    expect(() => interrupts.requestLine(17, 'd', () => true)).toThrow('-EBUSY');
    expect(interrupts.listLines().map(({ names }) => names)).toEqual([['a'], ['c']]);
    interrupts.freeLine(alone);
    expect(interrupts.requestLine(17, 'd', () => true).line).toBe(17);
  });
});

describe('the interrupt controller', () => {
  it('has no processor beyond `cpus`: messages there are spurious, vectors are not given', () => {
    const trace = new Trace(new VirtualClock());
    const { clock, interrupts } = controller({ cpus: 2, trace });
    let heard = 0;
    const given = Array.from({ length: 2 * (256 - 0x21) }, (_, i) => interrupts.request(`v${i}`, () => heard++));
    expect(new Set(given.map(({ address }) => address))).toEqual(new Set([0xfee0_0000, 0xfee0_1000]));
    expect(() => interrupts.request('one more', () => {})).toThrow('-ENOSPC');
    interrupts.message(0xfee0_1000, 0x21, 8);
    interrupts.message(0xfee0_2000, 0x21, 8);
    clock.run();
    expect([heard, interrupts.spurious, trace.hash]).toEqual([1, 1, new Trace(new VirtualClock()).hash]);
    expect([...trace.records()].map(({ kind, args }) => [kind.name, ...args])).toEqual([['irq:msi', 8, 1, 0x21], ['irq:msi', 8, 2, 0x21]]);
  });

  it('gives blocks of 2^n aligned vectors; what is left over is nobody\'s', () => {
    const { clock, interrupts } = controller({ cpus: 1 });
    const rang: number[] = [];
    interrupts.request('x', () => {});
    const block = interrupts.requestBlock('dev', [0, 1, 2].map((i) => () => rang.push(i)));
    expect(block.map(({ vector }) => vector)).toEqual([0x24, 0x25, 0x26, 0x27]);
    expect(interrupts.request('y', () => {}).vector).toBe(0x22);
    for (const { address, data } of block) interrupts.message(address, data, 8);
    clock.run();
    expect([rang, interrupts.spurious]).toEqual([[0, 1, 2], 1]);
    for (const vector of block) interrupts.free(vector);
    expect(interrupts.list().map(({ name }) => name)).toEqual(['x', 'y']);
    for (let i = 0; i < 7; i++) interrupts.requestBlock('big', Array.from({ length: i < 6 ? 32 : 1 }, () => () => {}));
    expect(() => interrupts.requestBlock('big', Array.from({ length: 17 }, () => () => {}))).toThrow('-ENOSPC');
  });
});

describe('the kernel and MSI', () => {
  const bench = (options: Partial<PciFunctionOptions> = { msi: { vectors: 4, maskable: true }, intx: 1 }): { world: PciWorld; fn: PciFunction; device: ReturnType<typeof only> } => {
    const world = new PciWorld();
    const fn = world.fn(world.root, 0x08, options);
    const core = world.core();
    core.enumerate();
    const device = only(core, '0000:00:01.0');
    device.setMaster(true);
    return { world, fn, device };
  };

  it('programs one block, masks what it does not use, switches INTx off, and gives all back', () => {
    const { world, fn, device } = bench();
    const before = world.bytesOf(device), at = device.findCapability(MSI)!;
    const rang: number[] = [];
    device.allocMsi('dev', [0, 1, 2].map((i) => () => rang.push(i)));
    expect([device.config.read(at + 2, 2), device.config.read(at + 4, 4), device.config.read(at + 8, 4), device.config.read(at + 0xc, 2), device.config.read(at + 0x10, 4)]).toEqual([0x01a5, 0xfee0_0000, 0, 0x24, 8]);
    expect(device.config.read(4, 2)).toBe(0x0404);
    for (const vector of [2, 0, 1, 3]) fn.raiseMsi(vector);
    world.clock.run();
    expect([rang, world.interrupts.spurious, fn.msi!.isPending(3)]).toEqual([[2, 0, 1], 0, true]);
    fn.config.set(at + 0x14, 4, 0);
    device.freeIrqs();
    expect(world.interrupts.list()).toEqual([]);
    device.config.write(at + 4, 4, 0);
    device.config.write(at + 0xc, 2, 0);
    device.config.write(at + 0x10, 4, 0);
    expect(world.bytesOf(device)).toBe(before);
  });

  it('takes MSI-X when a function has both, MSI when asked or when there is nothing else, never both', () => {
    const both = { msi: { vectors: 2 as const }, msix: { vectors: 2, tableBar: 0, tableOffset: 0x800, pbaOffset: 0xc00 }, bars: [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: true }] };
    const { fn, device } = bench(both);
    expect([device.msiVectors, device.msixVectors]).toEqual([2, 2]);
    device.allocIrqs('dev', [() => {}]);
    expect([fn.msi!.enabled, fn.msix!.enabled]).toEqual([false, true]);
    expect(() => device.allocMsi('dev', [() => {}])).toThrow('-EINVAL');
    device.freeIrqs();
    device.allocMsi('dev', [() => {}]);
    expect([fn.msi!.enabled, fn.msix!.enabled]).toEqual([true, false]);
    expect(() => device.allocIrqs('dev', [() => {}])).toThrow('-EINVAL');
    const alone = bench();
    alone.device.allocIrqs('dev', [() => {}]);
    expect([alone.fn.msi!.enabled, alone.device.msixVectors]).toEqual([true, 0]);
  });

  it.each([
    ['EINVAL', 'no handler', 0, undefined],
    ['ENOSPC', 'more than the function has', 5, undefined],
    ['EINVAL', 'no MSI', 1, {}],
  ] as const)('refuses with %s: %s', (code, _what, count, options) => {
    const { world, device } = options === undefined ? bench() : bench(options);
    const before = world.bytesOf(device);
    expect(() => device.allocMsi('dev', Array.from({ length: count }, () => () => {}))).toThrow(`-${code}`);
    expect([world.bytesOf(device), world.interrupts.list()]).toEqual([before, []]);
  });

  it('puts it back after a function level reset', () => {
    const { world, fn, device } = bench();
    let rang = 0;
    device.allocMsi('dev', [() => rang++, () => rang++]);
    const before = world.bytesOf(device);
    world.run(device.reset());
    expect(world.bytesOf(device)).toBe(before);
    fn.raiseMsi(1);
    world.clock.run();
    expect(rang).toBe(1);
  });
});

describe('the kernel and INTx', () => {
  const bench = (): { world: PciWorld; fns: PciFunction[]; devices: ReturnType<typeof only>[] } => {
    const world = new PciWorld();
    const fns = ([1, 1] as IntxPin[]).map((pin, i) => world.fn(world.root, 0x08 + 0x20 * i, { intx: pin, name: `dev${i}` }));
    const core = world.core();
    core.enumerate();
    return { world, fns, devices: [only(core, '0000:00:01.0'), only(core, '0000:00:05.0')] };
  };

  it('masks in the handler, hears no more until it unmasks, and then once more when the level is still there', () => {
    const { world, fns, devices } = bench();
    const fn = fns[0]!, device = devices[0]!;
    let calls = 0;
    expect([device.intxMaskSupported, device.config.read(4, 2)]).toEqual([true, 0]);
    device.requestIntx('user', () => {
      const mine = device.checkAndMaskIntx();
      if (mine) calls++;
      return mine;
    });
    fn.setIntx(true);
    world.clock.run();
    expect([calls, device.config.read(4, 2) & DISABLE, device.checkAndMaskIntx(), device.checkAndUnmaskIntx()]).toEqual([1, DISABLE, true, false]);
    device.intx(true);
    world.clock.run();
    expect([calls, device.config.read(4, 2) & DISABLE]).toEqual([2, DISABLE]);
    fn.setIntx(false);
    expect([device.checkAndUnmaskIntx(), device.config.read(4, 2) & DISABLE, device.checkAndMaskIntx()]).toEqual([true, 0, false]);
    world.clock.run();
    expect(calls).toBe(2);
  });

  it('shares a line among functions, each knows its own; exclusive use and double use are refused', () => {
    const { world, fns, devices } = bench();
    const calls = [0, 0];
    devices.forEach((device, i) => device.requestIntx(`user${i}`, () => {
      const mine = device.checkAndMaskIntx();
      if (mine) calls[i]!++;
      return mine;
    }));
    fns[1]!.setIntx(true);
    world.clock.run();
    expect([calls, world.interrupts.listLines()]).toEqual([[0, 1], [{ line: 17, count: 1, names: ['user0', 'user1'] }]]);
    expect(() => devices[0]!.requestIntx('again', () => true)).toThrow('-EINVAL');
    devices[0]!.freeIntx();
    expect(() => devices[0]!.requestIntx('alone', () => true, { exclusive: true })).toThrow('-EBUSY');
    devices[1]!.freeIntx();
    devices[0]!.requestIntx('alone', () => true, { exclusive: true });
    expect(world.interrupts.listLines().map(({ names }) => names)).toEqual([['alone']]);
  });

  it('disables the line for a function that is not asked, and gives the line back enabled', () => {
    const { world, fns, devices } = bench();
    let calls = 0;
    const device = devices[0]!;
    device.requestIntx('user', () => {
      calls++;
      device.disableIntxLine();
      return true;
    });
    fns[0]!.setIntx(true);
    world.clock.run();
    expect([calls, device.config.read(4, 2) & DISABLE]).toEqual([1, 0]);
    device.enableIntxLine();
    world.clock.run();
    expect(calls).toBe(2);
    device.freeIntx();
    let other = 0;
    devices[1]!.requestIntx('other', () => {
      other++;
      fns[0]!.setIntx(false);
      return true;
    });
    world.clock.run();
    expect(other).toBe(1);
  });

  it('has none: ENODEV for a function without pin', () => {
    const world = new PciWorld();
    world.fn(world.root, 0x08);
    const core = world.core();
    core.enumerate();
    const device = only(core, '0000:00:01.0');
    expect([device.interruptPin, device.config.read(0x3c, 1)]).toEqual([0, 0]);
    expect(() => device.requestIntx('user', () => true)).toThrow(Errno);
    expect(() => device.requestIntx('user', () => true)).toThrow('-ENODEV');
  });

  it('masks an absent function no more than it is there', () => {
    const { world, fns, devices } = bench();
    world.complex.remove(fns[0]!, { surprise: true });
    expect([devices[0]!.checkAndMaskIntx(), devices[0]!.checkAndUnmaskIntx()]).toEqual([false, false]);
  });

  it('comes back after a reset as masked as it was', () => {
    const { world, fns, devices } = bench();
    const device = devices[0]!;
    device.requestIntx('user', () => device.checkAndMaskIntx());
    device.intx(false);
    world.run(device.reset());
    expect(device.config.read(4, 2) & DISABLE).toBe(DISABLE);
    fns[0]!.setIntx(true);
    world.clock.run();
    expect(world.interrupts.listLines()[0]!.count).toBe(0);
  });
});

it('a virtual function has no pin', () => {
  const physfn = new PciFunction(IDLE);
  expect(() => new PciFunction({ ...IDLE, physfn, intx: 1 })).toThrow(/no interrupt pin/);
});
