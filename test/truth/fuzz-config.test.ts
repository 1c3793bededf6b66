/**
 * Configuration writes of any size, place and value, to functions with every capability, to ports, to virtual functions
 * and to nobody; bytes as a DMAR table. Nothing throws but refusals, what is read-only stays, and a machine that was treated
 * like this can still be enumerated.
 */
import { describe, expect, it } from 'vitest';
import { Errno } from '../../sim/errno.js';
import { Ram } from '../../sim/memory.js';
import { Random } from '../../sim/random.js';
import { NO_PASID } from '../../host/pci/dma-port.js';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { decodeDmar, encodeDmar, readDmar, type DmarStructure } from '../../iommu/intel-vtd/spec/dmar.js';
import { IDLE, PciWorld, Scratch, TRANSLATING } from '../fixtures/pci-world.js';

const NIGHTLY = process.env['VFIOSIM_NIGHTLY'] === '1';
const WORLDS = NIGHTLY ? 500 : 12;

class FuzzedTree {
  readonly world = new PciWorld();
  readonly functions: PciFunction[] = [];
  private readonly random: Random;

  constructor(random: Random) {
    this.random = random;
    const { world } = this;
    const bars = [
      { index: 0, sizeBytes: 0x1_0000, prefetchable: false, is64: true, mmio: new Scratch() },
      { index: 2, sizeBytes: 0x2000, prefetchable: true, is64: false, mmio: new Scratch() },
    ];
    const msix = { vectors: 9, tableBar: 0, tableOffset: 0x2000, pbaOffset: 0x3000 };
    const full = { ...TRANSLATING, bars, msix, pm: true, siov: true } as const;
    this.functions.push(world.fn(world.root, 0x08, full));
    const root = world.rootPort(0x10), upstream = world.upstreamPort(root.secondary);
    const downstream = world.downstreamPort(upstream.secondary, 0x00, { acs: 0x1d });
    this.functions.push(world.fn(downstream.secondary, 0, {
      ...full,
      sriov: {
        totalVfs: 4, vfDeviceId: 0x0b26, vfBars: [{ index: 0, sizeBytes: 0x1000, prefetchable: true, is64: true }],
        createVf: (physfn, index) => new PciFunction({ ...IDLE, ...TRANSLATING, name: `vf${index}`, physfn, ats: { queueDepth: 8, pageAligned: true } }),
      },
    }));
    world.core().enumerate();
  }

  step(): void {
    const { random, world } = this;
    const bus = random.below(random.chance(0.9) ? 4 : 256), devfn = random.pick([0, 0, 0, 0x08, 0x08, 0x10, 1, random.below(256)]);
    const size = random.pick([1, 2, 4] as const);
    const offset = random.chance(0.7) ? random.below(0x200) : random.below(0x1000);
    const at = random.chance(0.9) ? offset - (offset % size) : offset;
    switch (random.below(8)) {
      case 0: case 1: case 2: case 3: case 4: return world.access.write(0, bus, devfn, at, size, random.chance(0.3) ? random.pick([0, 1, 2, 3, 0x8000, 0xffff_ffff]) : random.u32());
      case 5: {
        const value = world.access.read(0, bus, devfn, at, size);
        expect(Number.isInteger(value) && value >= 0 && value < 2 ** (8 * size)).toBe(true);
        return;
      }
      case 6: return this.useDevice(random.pick(this.functions));
      default: return void world.clock.run({ untilNs: world.clock.now + random.below(100_000) });
    }
  }

  /** What a device does meanwhile, whatever its bits allow. */
  private useDevice(fn: PciFunction): void {
    const { random } = this;
    const pasid = random.chance(0.5) ? NO_PASID : random.below(0x10_0000);
    const page = random.below(32);
    const statuses = [
      fn.port.read(page, random.below(4096), new Uint8Array(64), 0, 64, pasid, random.below(16)),
      fn.port.write(page, random.below(4096), new Uint8Array(64), 0, 64, pasid, random.below(16)),
      fn.port.translate(page, pasid, random.below(16)),
      fn.port.pageRequest(page, random.below(16), random.chance(0.5), random.below(512), pasid),
      fn.port.messageInterrupt(random.u32(), random.u32()),
    ];
    for (const status of statuses) expect([0, 1, 2, 3, 4]).toContain(status);
    fn.raiseMsix(random.below(9));
  }
}

describe('random configuration writes', () => {
  it(`leave ${WORLDS} trees of ports and functions standing`, () => {
    let enumerated = 0;
    for (let seed = 0; seed < WORLDS; seed++) {
      const tree = new FuzzedTree(new Random(0).split(`config ${seed}`));
      const { world } = tree;
      for (let i = 0; i < 400; i++) tree.step();
      expect(world.clock.run()).toBe('idle');
      // identity is read-only, and the capability lists still end
      const headers = tree.functions.map((fn) => fn.config.read(0, 4));
      expect(headers).toEqual([0x0b25_8086, 0x0b25_8086]);
      for (const fn of tree.functions) {
        const seen = new Set<number>();
        for (let at = fn.config.read(0x34, 1); at !== 0; at = fn.config.read(at + 1, 1)) {
          expect(seen.has(at) || at < 0x40).toBe(false);
          seen.add(at);
        }
        for (let at = 0x100; at !== 0; at = fn.config.read(at, 4) >>> 20) {
          expect(seen.has(at)).toBe(false);
          seen.add(at);
        }
      }
      // a second kernel finds whatever it finds, or refuses with a reason
      try {
        enumerated += world.core().enumerate().length;
      } catch (error) {
        expect(error).toBeInstanceOf(Errno);
      }
    }
    expect(enumerated).toBeGreaterThan(WORLDS);
  });
});

describe('random bytes as a DMAR table', () => {
  const structures: DmarStructure[] = [
    { kind: 'DRHD', includeAll: false, segment: 0, base: 0xfed9_0000, sizeOrder: 0, scopes: [{ type: 1, enumerationId: 0, startBus: 0, path: [{ device: 3, function: 0 }, { device: 0, function: 1 }] }] },
    { kind: 'RMRR', segment: 0, base: 0x9c00_0000, limit: 0x9fff_ffff, scopes: [{ type: 1, enumerationId: 0, startBus: 0, path: [{ device: 2, function: 0 }] }] },
    { kind: 'ATSR', allPorts: true, segment: 0, scopes: [] },
    { kind: 'DRHD', includeAll: true, segment: 0, base: 0xfed9_1000, sizeOrder: 0, scopes: [] },
  ];
  const table = encodeDmar({ hostAddressWidth: 46, flags: 0, structures });

  /** Decodes, or refuses with EINVAL. */
  function decodes(bytes: Uint8Array): boolean {
    try {
      for (const structure of decodeDmar(bytes).structures) expect(structure.scopes.every((scope) => scope.path.length > 0)).toBe(true);
      return true;
    } catch (error) {
      expect(error instanceof Errno && error.code).toBe('EINVAL');
      return false;
    }
  }

  it('is refused with EINVAL or decoded, mutated tables too', () => {
    const random = new Random(0).split('dmar');
    let accepted = 0;
    for (let i = 0; i < (NIGHTLY ? 200_000 : 4000); i++) {
      let bytes = Uint8Array.from(table);
      const style = random.below(4);
      if (style === 0) bytes = Uint8Array.from({ length: random.below(200) }, () => random.below(256));
      else for (let n = random.between(1, 4); n > 0; n--) bytes[random.below(bytes.length)] = random.pick([0, 1, 0xff, random.below(256)]);
      if (style === 3) bytes = bytes.subarray(0, random.below(bytes.length));
      // most with a checksum that is right, so that the structures are looked at
      if (style !== 1 && bytes.length > 36) {
        bytes.set(table.subarray(0, 4));
        if (random.chance(0.8)) new DataView(bytes.buffer, bytes.byteOffset).setUint32(4, bytes.length, true);
        bytes[9] = 0;
        const length = Math.min(new DataView(bytes.buffer, bytes.byteOffset).getUint32(4, true), bytes.length);
        bytes[9] = (256 - (bytes.subarray(0, length).reduce((sum, byte) => sum + byte, 0) & 0xff)) & 0xff;
      }
      if (decodes(bytes)) accepted++;
    }
    expect(accepted).toBeGreaterThan(100);
  });

  it('is refused where memory ends, or is none', () => {
    const memory = new Ram(0x1000);
    for (const address of [0x2000, 0x1000 - 8, 0x1000 - 36, 2 ** 52]) expect(() => readDmar(memory, address)).toThrow(Errno);
    memory.write(0, table, 0, table.length);
    memory.store(4, 4, 0xffff_ffff);
    expect(() => readDmar(memory, 0)).toThrow(Errno);
  });
});
