/** Configuration space in the hands of a user (drivers/vfio/pci/vfio_pci_config.c), poked as software does. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { listCapabilities, listExtCapabilities, type PciFunctionDevice } from '../../host/pci/kernel/index.js';
import { PCI_MSIX_IRQ, REGION_STRIDE } from '../../vfio/device.js';
import { ConfigPokes, VfioPciWorld } from '../fixtures/vfio-pci-world.js';
import { IDLE, Scratch, TRANSLATING } from '../fixtures/pci-world.js';
import type { PciFunctionOptions } from '../../host/pci/hardware/pci-function.js';
import type { VfioPciDevice } from '../../vfio/pci/index.js';

const COMMAND = 0x04, MEMORY = 2, MASTER = 4, INTX_DISABLE = 0x400;
const ACS = 0x0d, ATS = 0x0f, SRIOV = 0x10, PRI = 0x13, PASID = 0x1b, DVSEC = 0x23;
const PM = 0x01, MSI = 0x05, EXP = 0x10, MSIX = 0x11;

/** A function with everything: 64-bit and 32-bit BARs, all interrupts, everything that an IOMMU driver would switch on. */
const FULL: Partial<PciFunctionOptions> = {
  ...TRANSLATING, acs: 0x5f & ~0x20, siov: true, pm: true, msi: { vectors: 4, maskable: true }, msix: { vectors: 8, tableBar: 2, tableOffset: 0, pbaBar: 2, pbaOffset: 0x800 }, intx: 1,
  bars: [{ index: 0, sizeBytes: 0x1_0000, is64: true, prefetchable: true, mmio: new Scratch() }, { index: 2, sizeBytes: 0x2000, is64: false, prefetchable: false, mmio: new Scratch() }],
  sriov: {
    totalVfs: 4, vfDeviceId: 0x0b26, vfBars: [{ index: 0, sizeBytes: 0x4000, is64: false, prefetchable: false }],
    createVf: (physfn) => new PciFunction({ ...IDLE, name: 'vf', physfn, bars: [{ index: 0, sizeBytes: 0x4000, is64: false, prefetchable: false, mmio: new Scratch() }] }),
  },
};

interface Bench {
  readonly world: VfioPciWorld;
  readonly hardware: PciFunction;
  readonly fn: PciFunctionDevice;
  readonly vdev: VfioPciDevice;
  readonly user: ConfigPokes;
  /** The function's own byte, word or doubleword. */
  readonly real: (offset: number, size: 1 | 2 | 4) => number;
  readonly cap: (id: number) => number;
  readonly ecap: (id: number) => number;
}

function bench(options: Partial<PciFunctionOptions> = FULL, pciDefects: readonly string[] = []): Bench {
  const world = new VfioPciWorld({ pciDefects });
  const hardware = world.plug(world.root, 0x08, options);
  world.boot();
  const vdev = world.bind('0000:00:01.0');
  world.run(vdev.open());
  const fn = world.fn('0000:00:01.0');
  return {
    world, hardware, fn, vdev, user: new ConfigPokes(vdev), real: (offset, size) => hardware.config.read(offset, size),
    cap: (id) => fn.findCapability(id)!, ecap: (id) => fn.findExtCapability(id)!,
  };
}

/** What a driver of the user finds by walking the lists. */
function lists(user: ConfigPokes): { readonly standard: number[]; readonly extended: number[] } {
  const window = { read: (offset: number, size: 1 | 2 | 4) => user.peek(offset, size), write: () => {} };
  return { standard: listCapabilities(window).map(({ id }) => id), extended: listExtCapabilities(window).map(({ id }) => id) };
}

describe('the header', () => {
  it('shows ids, class and subsystem of the function and takes no writes to them', () => {
    const { user, real } = bench();
    for (const offset of [0x00, 0x08, 0x2c]) {
      user.poke(offset, 4, 0xffff_ffff);
      expect(user.peek(offset, 4)).toBe(real(offset, 4));
    }
    expect(user.peek(0, 4)).toBe(0x0b25_8086);
  });

  it('lets the user size and place BARs, whose real registers stay (64-bit and 32-bit)', () => {
    const { user, real } = bench();
    const before = [0x10, 0x14, 0x18].map((offset) => real(offset, 4));
    expect([user.peek(0x10, 4), user.peek(0x14, 4), user.peek(0x18, 4)]).toEqual(before);
    for (const offset of [0x10, 0x14, 0x18, 0x1c, 0x30]) user.poke(offset, 4, 0xffff_ffff);
    expect([0x10, 0x14, 0x18, 0x1c, 0x30].map((offset) => user.peek(offset, 4))).toEqual([0xffff_000c, 0xffff_ffff, 0xffff_e000, 0, 0]);
    user.poke(0x10, 4, 0x1234_5678);
    user.poke(0x14, 4, 0x9a);
    user.poke(0x19, 1, 0xff);
    expect([user.peek(0x10, 4), user.peek(0x14, 4), user.peek(0x18, 4)]).toEqual([0x1234_000c, 0x9a, 0xffff_e000]);
    expect([0x10, 0x14, 0x18].map((offset) => real(offset, 4))).toEqual(before);
  });

  it('gives memory space and bus master to the hardware, Interrupt Disable to nobody but the user', () => {
    const { user, real, hardware } = bench();
    expect(real(COMMAND, 2) & (MEMORY | MASTER)).toBe(MEMORY);
    user.poke(COMMAND, 2, MEMORY | MASTER);
    expect([hardware.busMaster, user.peek(COMMAND, 2)]).toEqual([true, MEMORY | MASTER]);
    user.poke(COMMAND, 2, 0);
    expect([hardware.busMaster, hardware.memoryEnabled, user.peek(COMMAND, 2)]).toEqual([false, false, 0]);
    user.poke(COMMAND + 1, 1, 0x04);
    expect([user.peek(COMMAND, 2), real(COMMAND, 2) & INTX_DISABLE]).toEqual([INTX_DISABLE, INTX_DISABLE]);
    hardware.config.setBits(COMMAND, 2, INTX_DISABLE, false);
    expect(user.peek(COMMAND, 2)).toBe(INTX_DISABLE);
  });

  it('remembers the interrupt line for the user and does not tell the function', () => {
    const { user, real } = bench();
    const before = real(0x3c, 2);
    user.poke(0x3c, 2, 0x0a55);
    expect([user.peek(0x3c, 1), user.peek(0x3d, 1), real(0x3c, 2)]).toEqual([0x55, 1, before]);
  });

  it('puts the real BARs back when the function was reset behind the kernel and the user enables memory', () => {
    const { user, real, hardware } = bench();
    const before = [0x10, 0x14, 0x18].map((offset) => real(offset, 4));
    hardware.reset('flr');
    expect([real(0x14, 4), real(0x18, 4)]).toEqual([0, 0]);
    user.poke(COMMAND, 2, MEMORY);
    expect([0x10, 0x14, 0x18].map((offset) => real(offset, 4))).toEqual(before);
  });

  it('refuses what lies outside of configuration space with -EFAULT', () => {
    const { world, user } = bench();
    for (const [offset, size] of [[4096, 1], [4094, 4], [5000, 2]] as const) expect(world.refused(() => user.peek(offset, size))).toBe('EFAULT');
    expect(world.refused(() => user.poke(4096, 1, 0))).toBe('EFAULT');
  });

  it('gives a virtual function the ids it has in the kernel, no pin, and memory space that looks enabled', () => {
    const { world, hardware } = vfBench();
    const vdev = world.bind('0000:00:01.1');
    world.run(vdev.open());
    const user = new ConfigPokes(vdev);
    expect([user.peek(0, 4), user.peek(0x3d, 1), user.peek(COMMAND, 2) & MEMORY]).toEqual([0x0b26_8086, 0, MEMORY]);
    expect(hardware.sriov!.functions[0]!.config.read(0, 4)).toBe(0xffff_ffff);
    user.poke(0x10, 4, 0xffff_ffff);
    expect(user.peek(0x10, 4)).toBe(0xffff_c000);
    user.poke(COMMAND, 2, 0);
    expect(vdev.read(0, new Uint8Array(4))).toBe(4);
  });

  function vfBench(): { readonly world: VfioPciWorld; readonly hardware: PciFunction } {
    const world = new VfioPciWorld();
    const hardware = world.plug(world.root, 0x08, FULL);
    world.boot();
    world.run(world.bus.enableSriov(world.fn('0000:00:01.0'), 1));
    world.adopt('0000:00:01.1');
    return { world, hardware };
  }
});

describe('capabilities', () => {
  it('shows power management, PCI Express, MSI and MSI-X, and of the extended ones what no IOMMU driver needs', () => {
    const { user, fn } = bench();
    expect(fn.extCapabilities.map(({ id }) => id)).toEqual([ACS, ATS, PASID, PRI, DVSEC, SRIOV]);
    expect(lists(user)).toEqual({ standard: [PM, EXP, MSI, MSIX], extended: [0, DVSEC] });
  });

  it('reads zeros where ACS, ATS, PRI, PASID and SR-IOV are, and drops what is written there', () => {
    const { user, real, ecap } = bench();
    for (const [id, sizeBytes] of [[ACS, 8], [ATS, 8], [PASID, 8], [PRI, 16], [SRIOV, 0x40]] as const) {
      const before = Array.from({ length: sizeBytes / 4 }, (_, i) => real(ecap(id) + i * 4, 4));
      for (let at = 4; at < sizeBytes; at += 4) {
        user.poke(ecap(id) + at, 4, 0xffff_ffff);
        expect(user.peek(ecap(id) + at, 4)).toBe(0);
      }
      expect(Array.from({ length: sizeBytes / 4 }, (_, i) => real(ecap(id) + i * 4, 4))).toEqual(before);
    }
  });

  it('says that there is no extended capability when all are hidden', () => {
    const { user, fn } = bench({ ...TRANSLATING });
    expect(fn.extCapabilities.length).toBe(3);
    expect([user.peek(0x100, 4), lists(user).extended]).toEqual([0, []]);
  });

  it('enables neither MSI nor MSI-X for a write: that is what SET_IRQS does', () => {
    const { user, cap, hardware, real } = bench();
    const msix = real(cap(MSIX), 4), table = real(cap(MSIX) + 4, 4);
    user.poke(cap(MSIX) + 2, 2, 0xc000);
    user.poke(cap(MSIX) + 4, 4, 0);
    user.poke(cap(MSI) + 2, 2, 0x0071);
    expect([real(cap(MSIX), 4), real(cap(MSIX) + 4, 4), hardware.msi!.enabled, hardware.msix!.enabled]).toEqual([msix, table, false, false]);
    expect(user.peek(cap(MSI) + 2, 2)).toBe(real(cap(MSI) + 2, 2) & ~0x71);
  });

  it('keeps MSI address and data from the hardware, and lets masks through', () => {
    const { user, cap, real } = bench();
    user.poke(cap(MSI) + 4, 4, 0xfee0_1000);
    user.poke(cap(MSI) + 0xc, 2, 0x55);
    user.poke(cap(MSI) + 0x10, 4, 3);
    expect([user.peek(cap(MSI) + 4, 4), user.peek(cap(MSI) + 0xc, 2), user.peek(cap(MSI) + 0x10, 4)]).toEqual([0xfee0_1000, 0x55, 3]);
    expect([real(cap(MSI) + 4, 4), real(cap(MSI) + 0xc, 2), real(cap(MSI) + 0x10, 4)]).toEqual([0, 0, 3]);
  });

  it('resets the function for the FLR bit, which reads as zero; nothing answers until it is over', () => {
    const { world, user, cap, real, hardware } = bench();
    const changes: string[] = [];
    hardware.listen((change) => changes.push(change));
    user.poke(0x3c, 1, 0x77);
    user.poke(COMMAND, 2, MEMORY | MASTER);
    const before = [0x04, 0x10, 0x18].map((offset) => real(offset, 4));
    user.poke(cap(EXP) + 8, 2, 0x8000 | user.peek(cap(EXP) + 8, 2));
    expect([user.peek(0, 4), user.peek(COMMAND, 2)]).toEqual([0xffff_ffff, 0xffff]);
    user.poke(0x3c, 1, 0x11);
    world.settle();
    expect(changes).toContain('reset');
    expect([user.peek(cap(EXP) + 8, 2) & 0x8000, user.peek(0x3c, 1)]).toEqual([0, 0x77]);
    expect([0x04, 0x10, 0x18].map((offset) => real(offset, 4))).toEqual(before);
    expect(world.clock.now).toBeGreaterThan(100_000_000);
  });

  it('drops the FLR bit of a function that has no such reset', () => {
    const { world, user, cap, hardware } = bench({ ...FULL, flr: false });
    const changes: string[] = [];
    hardware.listen((change) => changes.push(change));
    user.poke(cap(EXP) + 8, 2, 0x8000);
    world.settle();
    expect([changes, user.peek(0, 4), user.peek(cap(EXP) + 8, 2) & 0x8000]).toEqual([[], 0x0b25_8086, 0]);
  });

  it('keeps the payload size from the hardware, and the read request size not below it', () => {
    const { user, cap, real, hardware } = bench();
    hardware.config.set(cap(EXP) + 8, 2, 0x2040);
    user.poke(cap(EXP) + 8, 2, 0x00a0);
    expect([user.peek(cap(EXP) + 8, 2) & 0x70e0, real(cap(EXP) + 8, 2) & 0x70e0]).toEqual([0x00a0, 0x2040]);
    user.poke(cap(EXP) + 8, 2, 0x5000);
    expect(real(cap(EXP) + 8, 2) & 0x70e0).toBe(0x5040);
  });

  it('does not clear the status beside the device control register (RW1C)', () => {
    const { user, cap, real, hardware } = bench();
    hardware.config.set(cap(EXP) + 0xa, 2, 0x000f);
    user.poke(cap(EXP) + 8, 4, 0xffff_0000 | (user.peek(cap(EXP) + 8, 2) & 0x7fff));
    expect(real(cap(EXP) + 0xa, 2) & 0xf).toBe(0xf);
  });

  it('follows the power state, in which D3hot makes BARs unreachable', () => {
    const { world, user, cap, vdev, real } = bench();
    user.poke(cap(PM) + 4, 2, 3);
    expect([real(cap(PM) + 4, 2) & 3, world.refused(() => vdev.read(0, new Uint8Array(4)))]).toEqual([3, 'EIO']);
    user.poke(cap(PM) + 4, 2, 0);
    expect([real(cap(PM) + 4, 2) & 3, vdev.read(0, new Uint8Array(4))]).toEqual([0, 4]);
  });
});

describe('an accelerator with everything (DSA)', () => {
  it('shows its user neither ATS nor PRI nor PASID; its registers, reset and MSI-X are there', () => {
    const world = new VfioPciWorld();
    const dsa = world.plugDsa(world.root, 0x08);
    world.boot();
    const vdev = world.bind('0000:00:01.0');
    world.run(vdev.open());
    const user = new ConfigPokes(vdev), fn = world.fn('0000:00:01.0');
    expect([PASID, ATS, PRI].map((id) => fn.findExtCapability(id) !== undefined)).toEqual([true, true, true]);
    expect(lists(user)).toEqual({ standard: [EXP, MSIX], extended: [0, DVSEC] });
    for (let offset = 0x100; offset < 0x1000; offset += 4) user.poke(offset, 4, 0xffff_ffff);
    expect([dsa.function.atsEnabled, dsa.function.pasidEnabled, dsa.function.priEnabled]).toEqual([false, false, false]);
    const version = new Uint8Array(4);
    expect([vdev.read(0, version), [...version]]).toEqual([4, [0, 1, 0, 0]]);
    expect(vdev.mmap(2 * REGION_STRIDE, 0x1000).enqueue64(0, new Uint8Array(64))).toBe('retry');
    expect(vdev.irqInfo(PCI_MSIX_IRQ).count).toBe(fn.msixVectors);
  });
});

describe('a malicious user', () => {
  const write = fc.record({
    offset: fc.oneof(fc.integer({ min: 0, max: 0x3f }), fc.integer({ min: 0x40, max: 0xff }), fc.integer({ min: 0x100, max: 0x1ff })),
    size: fc.constantFrom(1 as const, 2 as const, 4 as const), value: fc.oneof(fc.constant(0xffff_ffff), fc.integer({ min: 0, max: 0xffff_ffff })),
  });
  /** What a program may never change in the hardware: offset, size. */
  const guarded = ({ cap, ecap }: Bench): [number, 1 | 2 | 4][] => [
    ...[0x00, 0x08, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x2c, 0x30].map((at): [number, 4] => [at, 4]), [cap(MSI) + 2, 2], [cap(MSI) + 4, 4], [cap(MSI) + 0xc, 2], [cap(MSIX), 4], [cap(MSIX) + 4, 4],
    [ecap(ACS) + 6, 2], [ecap(ATS) + 6, 2], [ecap(PRI) + 4, 2], [ecap(PRI) + 12, 4], [ecap(PASID) + 6, 2], [ecap(SRIOV) + 8, 2], [ecap(SRIOV) + 0x10, 2], [ecap(SRIOV) + 0x24, 4],
  ];
  const BARS = [0xffff_0000, 0xffff_ffff, 0xffff_e000, 0, 0, 0], TYPES = [0xc, 0, 0, 0, 0, 0];

  function attack(one: Bench, writes: readonly { offset: number; size: 1 | 2 | 4; value: number }[]): void {
    const { user, world } = one;
    const state = (): number[] => guarded(one).map(([at, size]) => one.real(at, size));
    const before = state(), capabilities = lists(user);
    // the second table: what the writable bytes of BARs must read
    const bars = new Uint8Array(24);
    for (let i = 0; i < 24; i++) bars[i] = user.peek(0x10 + i, 1);
    for (const { offset, size, value } of writes) {
      user.poke(offset, size, value);
      for (let i = 0; i < size; i++) if (offset + i >= 0x10 && offset + i < 0x28) bars[offset + i - 0x10] = value >>> (8 * i);
      world.settle();
    }
    expect(state()).toEqual(before);
    const view = new DataView(bars.buffer);
    expect(BARS.map((_, i) => user.peek(0x10 + i * 4, 4))).toEqual(BARS.map((mask, i) => ((view.getUint32(i * 4, true) & mask) | TYPES[i]!) >>> 0));
    expect(lists(user)).toEqual(capabilities);
    expect([user.peek(0, 4), user.peek(8, 4), user.peek(0x3d, 1), user.peek(0x30, 4)]).toEqual([0x0b25_8086, one.real(8, 4), 1, 0]);
  }

  it('never moves real BARs, switches on ATS, PRI, PASID, SR-IOV, MSI or MSI-X, or breaks the lists', () => {
    fc.assert(fc.property(fc.array(write, { minLength: 1, maxLength: 25 }), (writes) => attack(bench(), writes)), { numRuns: 60 });
  });

  it('would be seen: the defects vfio-pci.bar-write-through and vfio-pci.ats-not-hidden', () => {
    expect(() => attack(bench(FULL, ['vfio-pci.bar-write-through']), [{ offset: 0x10, size: 4, value: 0xdead_0000 }])).toThrow();
    const leaky = bench(FULL, ['vfio-pci.ats-not-hidden']);
    expect(() => attack(leaky, [{ offset: leaky.ecap(ATS) + 6, size: 2, value: 0x8000 }])).toThrow();
    expect(leaky.hardware.atsEnabled).toBe(true);
  });
});
