/* oxlint-disable require-yield -- drivers and listeners that have nothing to wait for */
/** The kernel's PCI core over a root complex: names, capability lists, addresses, hot plug, interrupts. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { AddressRange } from '../../host/pci/kernel/address-range.js';
import { EcamAccess, listCapabilities, listExtCapabilities, parseBdf } from '../../host/pci/kernel/index.js';
import { EcamWindow } from '../../host/pci/hardware/root-complex.js';
import { formatBdf } from '../../host/pci/spec/index.js';
import { only, PciWorld, PREFETCHABLE, MEMORY, Scratch } from '../fixtures/pci-world.js';

/** 4096 bytes as a function without a model would show them. */
function bytesAt(values: Record<number, number>): { read(offset: number, size: 1 | 2 | 4): number; write(): void } {
  const bytes = new Uint8Array(4096);
  for (const [at, word] of Object.entries(values)) for (let i = 0; i < 4; i++) bytes[Number(at) + i] = word >>> (8 * i);
  const view = new DataView(bytes.buffer);
  const read = (offset: number, size: 1 | 2 | 4): number => (size === 4 ? view.getUint32(offset, true) : size === 2 ? view.getUint16(offset, true) : bytes[offset]!);
  return { read, write: () => {} };
}

describe('names of functions', () => {
  it('parses what it prints', () => {
    fc.assert(
      fc.property(fc.nat(0xffff), fc.nat(0xff), fc.nat(0xff), (segment, bus, devfn) => {
        expect(parseBdf(formatBdf(segment, bus, devfn))).toEqual({ segment, bus, devfn });
      }),
      { numRuns: 50 },
    );
    expect(parseBdf('6a:01.0')).toEqual({ segment: 0, bus: 0x6a, devfn: 8 });
  });

  it.each([
    ['6a.1', '"6a.1" is not a PCI address: expected segment:bus:device.function in hex, like "0000:6a:01.0"'],
    ['0000:100:00.0', '"0000:100:00.0": bus 100 is above ff'],
    ['0000:00:20.0', '"0000:00:20.0": device 20 is above 1f'],
    ['0000:00:00.8', '"0000:00:00.8": function 8 is above 7'],
    ['10000:00:00.0', '"10000:00:00.0": segment 10000 is above ffff'],
    ['', '"" is not a PCI address: expected segment:bus:device.function in hex, like "0000:6a:01.0"'],
  ])('says what is wrong with %j', (text, problem) => {
    expect(parseBdf(text)).toBe(problem);
  });
});

describe('capability lists', () => {
  it('ends at an offset seen twice', () => {
    const ring = bytesAt({ 0x04: 0x0010_0000, 0x34: 0x40, 0x40: 0x0000_5010, 0x50: 0x0000_4011, 0x100: 0x1201_000f, 0x120: 0x1001_0013 });
    expect(listCapabilities(ring)).toEqual([{ id: 0x10, offset: 0x40, version: 0 }, { id: 0x11, offset: 0x50, version: 0 }]);
    expect(listExtCapabilities(ring)).toEqual([{ id: 0x0f, offset: 0x100, version: 1 }, { id: 0x13, offset: 0x120, version: 1 }]);
  });

  it('ends at an offset inside the header and at all ones', () => {
    expect(listCapabilities(bytesAt({ 0x04: 0x0010_0000, 0x34: 0x40, 0x40: 0x0000_1c10 }))).toHaveLength(1);
    const gone = { read: (_offset: number, size: 1 | 2 | 4) => (size === 4 ? 0xffff_ffff : size === 2 ? 0xffff : 0xff), write: () => {} };
    expect(listCapabilities(gone)).toEqual([]);
    expect(listExtCapabilities(gone)).toEqual([]);
  });

  it('terminates and visits no offset twice, whatever the bytes', () => {
    fc.assert(
      fc.property(fc.infiniteStream(fc.nat(0xffff_ffff)), (words) => {
        const memory = Array.from({ length: 1024 }, () => words.next().value as number);
        const read = (offset: number, size: 1 | 2 | 4): number => {
          const word = memory[offset >>> 2]! >>> (8 * (offset & 3));
          return size === 4 ? word >>> 0 : word & (size === 2 ? 0xffff : 0xff);
        };
        const config = { read: (offset: number, size: 1 | 2 | 4) => (offset === 6 ? 0x10 : read(offset, size)), write: () => {} };
        for (const list of [listCapabilities(config), listExtCapabilities(config)]) {
          expect(new Set(list.map((entry) => entry.offset)).size).toBe(list.length);
        }
      }),
      { numRuns: 20 },
    );
  });
});

describe('address ranges', () => {
  it('gives aligned, disjoint pieces inside the range and takes them back', () => {
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.integer({ min: 12, max: 20 }), fc.boolean()), { maxLength: 30 }), (steps) => {
        const range = new AddressRange(0x1_0000, 0x40_0000);
        let held: { start: number; size: number }[] = [];
        for (const [bits, drop] of steps) {
          const size = 2 ** bits;
          const start = range.allocate(size, size);
          if (start !== undefined) {
            expect(start % size).toBe(0);
            expect(start >= range.start && start + size <= range.end).toBe(true);
            expect(held.every((piece) => start + size <= piece.start || piece.start + piece.size <= start)).toBe(true);
            held.push({ start, size });
          }
          if (drop && held.length > 0) range.free(held.shift()!.start);
        }
        for (const piece of held) range.free(piece.start);
        held = [];
        expect(range.empty).toBe(true);
      }),
      { numRuns: 40 },
    );
  });
});

describe('enumeration', () => {
  it('numbers buses depth first and programs primary, secondary and subordinate', () => {
    const world = new PciWorld();
    const first = world.rootPort(0x08);
    const upstream = world.upstreamPort(first.secondary);
    world.fn(world.downstreamPort(upstream.secondary, 0x00).secondary, 0);
    world.fn(world.downstreamPort(upstream.secondary, 0x08).secondary, 0);
    world.fn(world.rootPort(0x10).secondary, 0);
    const core = world.core();
    expect(core.enumerate().map((device) => device.name)).toEqual([
      '0000:00:01.0', '0000:00:02.0', '0000:01:00.0', '0000:02:00.0', '0000:02:01.0', '0000:03:00.0', '0000:04:00.0', '0000:05:00.0',
    ]);
    const numbers = (name: string): number => only(core, name).config.read(0x18, 4) & 0xff_ffff;
    expect(numbers('0000:00:01.0')).toBe(0x04_01_00);
    expect(numbers('0000:01:00.0')).toBe(0x04_02_01);
    expect(numbers('0000:02:01.0')).toBe(0x04_04_02);
    expect(numbers('0000:00:02.0')).toBe(0x05_05_00);
  });

  it('finds devices on a root bus that is not 0', () => {
    const world = new PciWorld(0x6a);
    world.fn(world.root, 0x08);
    const core = world.core({ rootBuses: [{ segment: 0, bus: 0x6a, lastBus: 0x6f }] });
    expect(core.enumerate().map((device) => device.name)).toEqual(['0000:6a:01.0']);
    expect(core.devices[0]!.sourceId).toBe(0x6a08);
  });

  it('sees all functions of a multifunction device and none above a single one', () => {
    const world = new PciWorld();
    for (const devfn of [0x08, 0x0a, 0x0f, 0x10]) world.fn(world.root, devfn);
    const core = world.core();
    core.enumerate();
    expect(core.devices.map((device) => [device.name, device.multifunction])).toEqual([
      ['0000:00:01.0', true], ['0000:00:01.2', true], ['0000:00:01.7', true], ['0000:00:02.0', false],
    ]);
  });

  it('logs a bridge for which no bus number is left, and goes on', () => {
    const world = new PciWorld();
    world.fn(world.rootPort(0x08).secondary, 0);
    world.fn(world.rootPort(0x10).secondary, 0);
    const core = world.core({ rootBuses: [{ segment: 0, bus: 0, lastBus: 1 }] });
    expect(core.enumerate().map((device) => device.name)).toEqual(['0000:00:01.0', '0000:00:02.0', '0000:01:00.0']);
    expect(world.log.lines.map((line) => line.text)).toEqual(['pci 0000:00:02.0: no bus number left for what is behind the bridge']);
  });

  it('works through an ECAM window too', () => {
    const world = new PciWorld();
    world.fn(world.rootPort(0x08).secondary, 0);
    const core = world.core({ access: new EcamAccess(new EcamWindow(world.complex), 0, 0, 0xff) });
    expect(core.enumerate().map((device) => device.name)).toEqual(['0000:00:01.0', '0000:01:00.0']);
  });
});

describe('addresses', () => {
  it('are natural, disjoint, 64-bit prefetchable ones above 4 GiB, and decoded on the system bus', () => {
    const world = new PciWorld();
    const port = world.rootPort(0x08);
    world.fn(port.secondary, 0, {
      bars: [
        { index: 0, sizeBytes: 0x1_0000, prefetchable: false, is64: true },
        { index: 2, sizeBytes: 2 ** 33, prefetchable: true, is64: true },
        { index: 4, sizeBytes: 0x1000, prefetchable: false, is64: false },
      ],
    });
    world.fn(world.root, 0x10, { bars: [{ index: 0, sizeBytes: 0x20_0000, prefetchable: false, is64: false }] });
    const core = world.core();
    core.enumerate();
    const behind = only(core, '0000:01:00.0'), beside = only(core, '0000:00:02.0');
    expect(behind.bars.map((bar) => [bar.index, bar.start, bar.sizeBytes])).toEqual([
      [0, MEMORY.start + 0x20_0000, 0x1_0000], [2, PREFETCHABLE.start, 2 ** 33], [4, MEMORY.start + 0x21_0000, 0x1000],
    ]);
    expect(beside.resource(0)).toEqual({ start: MEMORY.start, sizeBytes: 0x20_0000 });
    // the registers, by hand: 0xc0200000 with 64-bit type, 0x40_0000_0000 with 64-bit prefetchable
    expect([0, 1, 2, 3, 4].map((i) => behind.config.read(0x10 + 4 * i, 4))).toEqual([0xc020_0004, 0, 0x0000_000c, 0x40, 0xc021_0000]);
    // the port: memory c0200000-c02fffff, prefetchable 4000000000-41ffffffff, memory space and bus master on
    const bridge = only(core, '0000:00:01.0');
    expect([0x20, 0x24, 0x28, 0x2c].map((at) => bridge.config.read(at, 4))).toEqual([0xc020_c020, 0xfff1_0001, 0x40, 0x41]);
    expect(bridge.config.read(0x04, 2)).toBe(0x0006);
    expect(behind.config.read(0x04, 2)).toBe(0x0002);
    expect(world.systemBus.list().map((window) => window.start)).toEqual([MEMORY.start, MEMORY.start + 0x20_0000, MEMORY.start + 0x21_0000, PREFETCHABLE.start]);
    expect(world.complex.conflicts).toBe(0);
  });

  it('always: disjoint, aligned, inside the windows of every bridge above', () => {
    const bar = fc.record({ bits: fc.integer({ min: 12, max: 24 }), prefetchable: fc.boolean(), is64: fc.boolean() });
    fc.assert(
      fc.property(fc.array(fc.tuple(fc.integer({ min: 0, max: 3 }), fc.array(bar, { maxLength: 3 })), { minLength: 1, maxLength: 8 }), (functions) => {
        const world = new PciWorld();
        const ports = [world.rootPort(0x08), world.rootPort(0x10)];
        const upstream = world.upstreamPort(ports[0]!.secondary);
        const down = [0x00, 0x08].map((devfn) => world.downstreamPort(upstream.secondary, devfn));
        const places = [down[0]!.secondary, down[1]!.secondary, ports[1]!.secondary, world.root];
        const next = [0, 0, 0, 0x18];
        for (const [place, bars] of functions) {
          const devfn = next[place]!++;
          if ((devfn & 7) === 7) continue;
          const declared = bars.map((one, i) => ({ index: i * 2, sizeBytes: 2 ** one.bits, prefetchable: one.prefetchable, is64: one.is64 }));
          world.fn(places[place]!, devfn, { name: `f${place}.${devfn}`, bars: declared });
        }
        const core = world.core();
        core.enumerate();
        const assigned = core.devices.flatMap((device) => device.bars);
        expect(assigned).toHaveLength(functions.filter(([place], i) => functions.slice(0, i).filter(([other]) => other === place).length < 7).flatMap(([, bars]) => bars).length);
        for (const one of assigned) expect(one.start! % one.sizeBytes).toBe(0);
        // the root complex decodes a BAR only inside the windows of every bridge above, and refuses overlaps
        expect(world.complex.conflicts).toBe(0);
        expect(world.systemBus.list()).toHaveLength(assigned.length);
      }),
      { numRuns: 25 },
    );
  });

  it('are missing where there is no room, with a line in the log', () => {
    const world = new PciWorld();
    world.fn(world.root, 0x08, { bars: [{ index: 0, sizeBytes: 0x20_0000, prefetchable: false, is64: false }] });
    const core = world.core({ memory: { start: 0xc000_0000, sizeBytes: 0x10_0000 } });
    core.enumerate();
    expect(world.log.lines.map((line) => line.text)).toEqual(["pci 0000:00:01.0: BAR 0 [mem size 0x00200000]: can't assign; no space"]);
    expect(() => only(core, '0000:00:01.0').ioremap(0)).toThrow('-EINVAL');
    expect(only(core, '0000:00:01.0').config.read(0x04, 2)).toBe(0);
  });
});

describe('ioremap', () => {
  it('reaches the registers, follows memory decode, and reads all ones after removal', () => {
    const world = new PciWorld();
    const registers = new Scratch();
    const fn = world.fn(world.root, 0x08, { bars: [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: true, mmio: registers }] });
    const core = world.core();
    core.enumerate();
    const device = only(core, '0000:00:01.0');
    const mmio = device.ioremap(0);
    mmio.write(8, 4, 0x1234);
    expect(registers.words[2]).toBe(0x1234);
    expect(mmio.read(8, 4)).toBe(0x1234);
    device.config.write(0x04, 2, 0);
    expect([mmio.read(8, 1), mmio.read(8, 2), mmio.read(8, 4), mmio.read(8, 8), mmio.high]).toEqual([0xff, 0xffff, 0xffff_ffff, 0xffff_ffff, 0xffff_ffff]);
    device.config.write(0x04, 2, 2);
    expect(mmio.read(8, 4)).toBe(0x1234);
    world.complex.remove(fn, { surprise: true });
    expect(mmio.read(8, 4)).toBe(0xffff_ffff);
    expect(mmio.enqueue64(0, new Uint8Array(64))).toBe('retry');
    expect(() => device.ioremap(1)).toThrow('BAR 1 of 0000:00:01.0 is not implemented');
  });
});

describe('hot plug', () => {
  it('adds below a known bridge without moving anything', () => {
    const world = new PciWorld();
    const bars = [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: false }];
    const port = world.rootPort(0x08), other = world.rootPort(0x10);
    world.fn(port.secondary, 0, { bars });
    const core = world.core();
    core.enumerate();
    const before = core.devices.map((device) => [device.name, device.bars[0]?.start]);
    world.fn(other.secondary, 0, { bars });
    world.fn(world.root, 0x18, { bars });
    const added = world.run(core.rescan());
    expect(added.map((device) => device.name)).toEqual(['0000:00:03.0', '0000:02:00.0']);
    // the port opens a window of 1 MiB behind the first port's
    expect(added[1]!.resource(0)).toEqual({ start: MEMORY.start + 0x10_0000, sizeBytes: 0x1000 });
    expect(added[0]!.resource(0)).toEqual({ start: MEMORY.start + 0x20_0000, sizeBytes: 0x1000 });
    expect(world.systemBus.list()).toHaveLength(3);
    expect(core.devices.filter((device) => !added.includes(device)).map((device) => [device.name, device.bars[0]?.start])).toEqual(before);
    expect(world.run(core.rescan())).toEqual([]);
  });

  it('tells listeners in order, and in reverse when it goes; children first', () => {
    const world = new PciWorld();
    world.fn(world.rootPort(0x08).secondary, 0);
    const core = world.core();
    const seen: string[] = [];
    for (const who of ['iommu', 'drivers']) {
      core.subscribe({
        *deviceAdded(device) { seen.push(`${who} +${device.name}`); },
        *deviceRemoved(device) { seen.push(`${who} -${device.name}`); },
      });
    }
    world.run(core.rescan());
    world.run(core.remove(only(core, '0000:00:01.0')));
    expect(seen).toEqual([
      'iommu +0000:00:01.0', 'drivers +0000:00:01.0', 'iommu +0000:01:00.0', 'drivers +0000:01:00.0',
      'drivers -0000:01:00.0', 'iommu -0000:01:00.0', 'drivers -0000:00:01.0', 'iommu -0000:00:01.0',
    ]);
    expect(core.devices).toEqual([]);
    expect(core.groups.list).toEqual([]);
  });

  it('an orderly removal silences the function and frees its address for the next', () => {
    const world = new PciWorld();
    const fn = world.fn(world.root, 0x08, { bars: [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: false }] });
    const core = world.core();
    core.enumerate();
    const device = only(core, '0000:00:01.0');
    device.setMaster(true);
    expect(fn.busMaster).toBe(true);
    world.run(core.remove(device));
    expect(fn.busMaster).toBe(false);
    expect(world.systemBus.list()).toEqual([]);
    expect(() => world.run(core.remove(device))).toThrow('-ENODEV');
    const again = world.run(core.rescan())[0]!;
    expect(again).not.toBe(device);
    expect(again.resource(0)!.start).toBe(MEMORY.start);
  });

  it('notices a surprise removal by all ones, for good (flow 2g)', () => {
    const world = new PciWorld();
    const port = world.rootPort(0x08);
    const fn = world.fn(port.secondary, 0);
    const core = world.core();
    core.enumerate();
    const device = only(core, '0000:01:00.0');
    expect(device.present).toBe(true);
    world.complex.remove(fn, { surprise: true });
    expect(device.config.read(0, 4)).toBe(0xffff_ffff);
    expect(device.present).toBe(false);
    world.fn(port.secondary, 0, { deviceId: 0x1111 });
    expect(device.present).toBe(false);
    const seen: [string, boolean][] = [];
    core.subscribe({ *deviceRemoved(gone) { seen.push([gone.name, gone.present]); } });
    expect(world.run(core.removeAbsent())).toEqual([device]);
    expect(seen).toEqual([['0000:01:00.0', false]]);
    expect(world.run(core.rescan()).map((added) => added.deviceId)).toEqual([0x1111]);
  });
});

describe('MSI-X', () => {
  const WITH_MSIX = {
    bars: [{ index: 0, sizeBytes: 0x1000, prefetchable: false, is64: true }],
    msix: { vectors: 3, tableBar: 0, tableOffset: 0x800, pbaOffset: 0xc00 },
  };

  it('programs the table through the BAR and delivers to the handlers', () => {
    const world = new PciWorld();
    const fn = world.fn(world.root, 0x08, WITH_MSIX);
    const core = world.core();
    core.enumerate();
    const device = only(core, '0000:00:01.0');
    device.setMaster(true);
    const rang: number[] = [];
    device.allocIrqs('dev', [() => rang.push(0), () => rang.push(1)]);
    const table = device.ioremap(0);
    // vectors 0x21 and 0x22 of destination 0, unmasked; the third entry stays masked
    expect([0, 4, 8, 12, 16, 24, 28, 44].map((at) => table.read(0x800 + at, 4))).toEqual([0xfee0_0000, 0, 0x21, 0, 0xfee0_0000, 0x22, 0, 1]);
    const flags = device.findCapability(0x11)! + 2;
    expect(device.config.read(flags, 2)).toBe(0x8002);
    expect(device.config.read(0x04, 2)).toBe(0x0406);
    fn.raiseMsix(1);
    fn.raiseMsix(0);
    world.clock.run();
    expect(rang).toEqual([1, 0]);
    expect(world.interrupts.list().map((line) => line.name)).toEqual(['dev-0', 'dev-1']);
    device.freeIrqs();
    expect(device.config.read(flags, 2)).toBe(0x0002);
    expect(world.interrupts.list()).toEqual([]);
  });

  it.each([
    ['ENOSPC', 'more vectors than the table has', 4, WITH_MSIX],
    ['EINVAL', 'no vector at all', 0, WITH_MSIX],
    ['EINVAL', 'a function without MSI-X', 1, {}],
  ] as const)('refuses with %s: %s', (code, _what, count, options) => {
    const world = new PciWorld();
    world.fn(world.root, 0x08, options);
    const core = world.core();
    core.enumerate();
    const device = only(core, '0000:00:01.0'), before = world.bytesOf(device);
    expect(() => device.allocIrqs('dev', Array.from({ length: count }, () => () => {}))).toThrow(`-${code}`);
    expect(world.bytesOf(device)).toBe(before);
    expect(world.interrupts.list()).toEqual([]);
  });

  it('gives vectors back when the machine runs out of them', () => {
    const world = new PciWorld();
    world.fn(world.root, 0x08, WITH_MSIX);
    let left = 1;
    const freed: number[] = [];
    const core = world.core({
      interrupts: {
        request: (name) => {
          if (left-- === 0) throw new Error(`none for ${name}`);
          return { vector: 7, address: 0xfee0_0000, data: 7 };
        },
        free: (vector) => freed.push(vector.vector),
      },
    });
    core.enumerate();
    const device = only(core, '0000:00:01.0'), before = world.bytesOf(device);
    expect(() => device.allocIrqs('dev', [() => {}, () => {}])).toThrow('none for dev-1');
    expect(freed).toEqual([7]);
    expect(world.bytesOf(device)).toBe(before);
  });
});

describe('a machine whose interrupt controller has vectors only', () => {
  it('gives one MSI vector, no more and no line', () => {
    const world = new PciWorld();
    world.fn(world.root, 0x08, { msi: { vectors: 4 }, intx: 1 });
    const core = world.core({ interrupts: { request: () => ({ vector: 7, address: 0xfee0_0000, data: 7 }), free: () => {} } });
    core.enumerate();
    const device = only(core, '0000:00:01.0'), before = world.bytesOf(device);
    expect(() => device.allocMsi('dev', [() => {}, () => {}])).toThrow('-ENOSPC');
    expect(() => device.requestIntx('dev', () => true)).toThrow('-ENODEV');
    expect([world.bytesOf(device), device.config.read(0x3c, 1)]).toEqual([before, 0]);
    device.allocMsi('dev', [() => {}]);
    expect(device.config.read(device.findCapability(0x05)! + 0xc, 2)).toBe(7);
  });

  it('lets interrupts of a driver that forgot them go when it leaves, both kinds', () => {
    const world = new PciWorld();
    world.fn(world.root, 0x08, { msi: { vectors: 1 }, intx: 1 });
    const core = world.core();
    core.enumerate();
    const device = only(core, '0000:00:01.0');
    device.allocMsi('dev', [() => {}]);
    device.requestIntx('dev', () => false);
    world.run(core.remove(device));
    expect([world.interrupts.list(), world.interrupts.listLines()]).toEqual([[], []]);
  });
});
