import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { buildCapabilities, decodeCapabilities, type VtdCapabilityOptions } from '../../iommu/intel-vtd/spec/capabilities.js';
import { registerWindowBytes } from '../../iommu/intel-vtd/spec/registers.js';
import { formatRegisters } from '../../iommu/intel-vtd/hardware/front-end.js';
import { World } from './vtd-front-end-world.js';

const RECORDED_CAP = 0x11d2_008c_222f_0406n, RECORDED_ECAP = 0x1_cd9e_e4f0_0fc7n;

function cap(options: VtdCapabilityOptions): bigint {
  const { capabilities, problems } = buildCapabilities(options);
  expect(problems).toEqual([]);
  return capabilities.cap;
}

function ecap(options: VtdCapabilityOptions): bigint {
  const { capabilities, problems } = buildCapabilities(options);
  expect(problems).toEqual([]);
  return capabilities.ecap;
}

describe('capability registers (VT-d 4.1, 11.4.2 and 11.4.3; requirement 3.1)', () => {
  it('has these values without options', () => {
    expect(cap({}).toString(16)).toBe('1d2078c222f0606');
    expect(ecap({}).toString(16)).toBe('3cd9ae4000fc7');
  });

  it('puts every CAP word at its bits', () => {
    expect(cap({ 'aw-bits': 39 }) & 0x3f_1f00n).toBe(0x26_0200n);
    expect(cap({ 'aw-bits': 57 }) & 0x3f_1f00n).toBe(0x38_0e00n);
    expect(cap({ 'caching-mode': true }) ^ cap({})).toBe(1n << 7n);
    expect(cap({ 'five-level': true }) ^ cap({})).toBe(1n << 60n);
    expect(cap({ 'first-level-1g': false }) ^ cap({})).toBe(1n << 56n);
    expect(cap({ 'second-level-superpages': [] }) ^ cap({})).toBe(3n << 34n);
    expect(cap({ 'second-level-superpages': ['2M'] }) ^ cap({})).toBe(2n << 34n);
    expect(cap({ 'domain-ids': 256 }) & 7n).toBe(2n);
    expect(cap({ 'fault-records': 1 }) & (0xffn << 40n)).toBe(0n);
    expect(cap({ esrtps: true }) ^ cap({})).toBe(1n << 63n);
    expect(cap({ drain: false }) ^ cap({})).toBe(3n << 54n);
    expect((cap({ psi: false }) >> 39n) & 0x7fffn).toBe(7n << 1n);
    expect((cap({ mamv: 9 }) >> 48n) & 0x3fn).toBe(9n);
  });

  it('puts every ECAP word at its bits', () => {
    expect(ecap({ 'pass-through': false }) ^ ecap({})).toBe(1n << 6n);
    expect(ecap({ 'snoop-control': false }) ^ ecap({})).toBe(1n << 7n);
    expect(ecap({ nested: false }) ^ ecap({})).toBe(1n << 26n);
    expect(ecap({ 'page-requests': false }) ^ ecap({})).toBe((1n << 29n) | (1n << 42n));
    expect(ecap({ 'execute-requests': false }) ^ ecap({})).toBe(1n << 30n);
    expect(ecap({ 'supervisor-requests': false }) ^ ecap({})).toBe(1n << 31n);
    expect(ecap({ 'device-tlb': false }) ^ ecap({ 'page-requests': false })).toBe((1n << 2n) | (1n << 33n));
    expect(ecap({ 'extended-accessed': true }) ^ ecap({})).toBe(1n << 34n);
    expect((ecap({ 'pasid-bits': 16 }) >> 35n) & 0x3fn).toBe(0x2fn);
    expect((ecap({ 'pasid-bits': 0 }) >> 35n) & 0x3fn).toBe(0n);
    expect(ecap({ 'accessed-dirty': true }) ^ ecap({})).toBe(1n << 45n);
    expect(ecap({ 'abort-dma': true }) ^ ecap({})).toBe(1n << 52n);
    expect(ecap({ 'interrupt-remapping': true }) ^ ecap({})).toBe(0xf0_0008n);
    expect(ecap({ 'second-level': false }) ^ ecap({ nested: false })).toBe(1n << 46n);
    expect(ecap({ scalable: false })).toBe(0x2_0000_0fc7n);
  });

  it('never reports what is not modelled: x2APIC mode, posted interrupts, protected memory, performance monitoring, virtual commands', () => {
    fc.assert(fc.property(fc.record({
      scalable: fc.boolean(), 'interrupt-remapping': fc.boolean(), 'caching-mode': fc.boolean(), esrtps: fc.boolean(), 'abort-dma': fc.boolean(), 'aw-bits': fc.constantFrom(39, 48, 57),
      'fault-records': fc.integer({ min: 1, max: 222 }), haw: fc.integer({ min: 32, max: 52 }),
    }), (options) => {
      const built = buildCapabilities(options);
      expect(built.problems).toEqual([]);
      expect(built.capabilities.notModelled).toEqual([]);
      expect(built.capabilities.extendedInterruptMode).toBe(false);
      expect(registerWindowBytes(built.capabilities)).toBe(4096);
    }), { numRuns: 50 });
  });

  it('decodes what it builds', () => {
    const { capabilities } = buildCapabilities({ 'aw-bits': 57, 'pasid-bits': 12, 'domain-ids': 1024, 'fault-records': 3, mamv: 20, haw: 40, nested: false });
    const decoded = decodeCapabilities(capabilities.cap, capabilities.ecap, { hostAddressWidth: 40 });
    expect(decoded).toEqual(capabilities);
    expect(decoded).toMatchObject({
      guestAddressWidth: 57, adjustedWidths: 0xe, pasidBits: 12, domainIdBits: 10, faultRecords: 3, maxAddressMask: 20, hostAddressWidth: 40,
      nested: false, scalable: true, firstLevel: true, secondLevel: true, faultRecordOffset: 0x220, iotlbOffset: 0xf0,
    });
  });

  it('takes a recording\'s raw values as they are and names what it does not model', () => {
    const decoded = decodeCapabilities(RECORDED_CAP, RECORDED_ECAP);
    expect(decoded).toMatchObject({
      domainIdBits: 16, adjustedWidths: 4, guestAddressWidth: 48, faultRecords: 1, faultRecordOffset: 0x220, iotlbOffset: 0xf0, maxAddressMask: 18,
      fiveLevel: true, firstLevel1G: true, pasidBits: 20, pageRequests: true, pageRequestDrain: true, deviceTlb: true, nested: true,
      supervisorRequests: true, executeRequests: true, enhancedSetRootTable: false, interruptRemapping: false, maxHandleMask: 15, notModelled: [],
    });
    const world = new World({ capabilities: decoded });
    expect([world.read8(0x08), world.read8(0x10)]).toEqual([RECORDED_CAP, RECORDED_ECAP]);
    expect(decodeCapabilities(0x80d2_008c_222f_0606n, 0xf0_0f4an)).toMatchObject({ interruptRemapping: true, extendedInterruptMode: false, notModelled: [] });
    expect(decodeCapabilities(RECORDED_CAP | (1n << 59n), RECORDED_ECAP | (1n << 51n)).notModelled).toEqual(['CAP.PI', 'ECAP.PMS']);
  });

  it.each([
    [{ 'pasid-bits': 21 }, 'pasid-bits: 21 is not between 0 and 20'],
    [{ scalable: false, 'first-level': true }, 'first-level: needs scalable'],
    [{ scalable: false, 'pasid-bits': 20 }, 'pasid-bits: PASIDs need scalable'],
    [{ 'first-level': false, nested: true }, 'nested: needs first-level and second-level'],
    [{ 'device-tlb': false, 'page-requests': true }, 'page-requests: need device-tlb'],
    [{ 'pasid-bits': 0, 'page-requests': true }, 'page-requests: need pasid-bits'],
    [{ 'first-level': false, 'five-level': true }, 'five-level: needs first-level'],
    [{ 'first-level': false, 'first-level-1g': true }, 'first-level-1g: needs first-level'],
    [{ 'second-level': false, 'accessed-dirty': true }, 'accessed-dirty: needs second-level'],
    [{ 'second-level-superpages': ['1G'] }, 'second-level-superpages: 1G needs 2M'],
    [{ 'domain-ids': 100 }, 'domain-ids: 100 is not one of 16, 64, 256, 1024, 4096, 16384, 65536'],
    [{ 'fault-records': 223 }, 'fault-records: 223 is not between 1 and 222, which is what a 4 KiB register window holds'],
    [{ psi: false, mamv: 9 }, 'mamv: an address mask needs psi'],
    [{ mamv: 8 }, 'mamv: psi needs at least 9'],
    [{ haw: 53 }, 'haw: 53 is not between 32 and 52'],
    [{ 'pasid-bits': 0, 'supervisor-requests': true }, 'supervisor-requests: need first-level and pasid-bits'],
    [{ 'first-level': false, 'second-level': false, 'pass-through': false }, 'scalable: needs first-level, second-level or pass-through'],
  ] as [VtdCapabilityOptions, string][])('refuses %j', (options, problem) => {
    expect(buildCapabilities(options).problems).toEqual([problem]);
  });

  it('collects every problem at once', () => {
    expect(buildCapabilities({ 'pasid-bits': 30, haw: 10, mamv: 3 }).problems).toHaveLength(3);
  });
});

describe('register file (VT-d 4.1, chapter 11)', () => {
  it('starts with every event masked and nothing enabled', () => {
    const world = new World();
    expect([0x38, 0xa0, 0xe0].map((offset) => world.read4(offset))).toEqual([0x8000_0000, 0x8000_0000, 0x8000_0000]);
    expect([0x1c, 0x34, 0x9c, 0xdc].map((offset) => world.read4(offset))).toEqual([0, 0, 0, 0]);
    expect(world.read4(0)).toBe(0x60);
  });

  it('acknowledges each command at once, in the order of the recorded driver: QIE, SRTP, TE', () => {
    const world = new World({ capabilities: decodeCapabilities(RECORDED_CAP, RECORDED_ECAP) });
    world.write4(0x88, 0);
    world.write8(0x90, 0x22a_e801n);
    world.write4(0x18, 0x0400_0000);
    expect(world.read4(0x1c)).toBe(0x0400_0000);
    world.write8(0x20, 0x227_1400n);
    expect(world.backEnd.take()).toEqual([]);
    world.write4(0x18, 0x4400_0000);
    expect(world.read4(0x1c)).toBe(0x4400_0000);
    expect(world.backEnd.take()).toEqual(['state enabled=false root=0x2271000 mode=1']);
    world.write4(0x18, 0x8400_0000);
    expect(world.read4(0x1c)).toBe(0xc400_0000);
    expect(world.backEnd.take()).toEqual(['state enabled=true root=0x2271000 mode=1']);
    world.write4(0x18, 0x0400_0000);
    expect(world.read4(0x1c)).toBe(0x4400_0000);
    expect(world.backEnd.take()).toEqual(['state enabled=false root=0x2271000 mode=1']);
  });

  it('goes through the recorded bring-up of Linux 7.3 in scalable mode, value for value (VER to TE)', () => {
    const world = new World({ capabilities: decodeCapabilities(RECORDED_CAP, RECORDED_ECAP), ram: 0x400_0000 });
    const queue = (at: number, ...words: bigint[]): void => world.poke(0x22a_e000 + at, [...words, 0n, 0n, 0n, 0n].slice(0, 4));
    const done = (at: number): bigint => world.peek(at & ~7) >> BigInt((at & 7) * 8);
    expect([world.read8(0x08), world.read8(0x10), world.read4(0x00), world.read4(0x1c), world.read4(0x34)]).toEqual([RECORDED_CAP, RECORDED_ECAP, 0x60, 0, 0]);
    world.write4(0x88, 0);
    world.write8(0x90, 0x22a_e801n);
    world.write4(0x18, 0x0400_0000);
    world.write8(0x20, 0x227_1400n);
    world.write4(0x18, 0x4400_0000);
    const batches: [number, bigint, bigint][] = [[0x00, 0x11n, 0x196_a004n], [0x40, 0x37n, 0x196_a00cn], [0x80, 0xd2n, 0x196_a014n]];
    for (const [at, descriptor, status] of batches) {
      queue(at, descriptor);
      queue(at + 0x20, 0x2_0000_0025n, status);
      world.write4(0x88, at + 0x40);
      expect([done(Number(status)), world.read4(0x34), world.read4(0x80)]).toEqual([2n, 0, at + 0x40]);
    }
    for (const [control, data] of [[0xe0, 0x21], [0x38, 0x22]] as const) {
      if (control === 0x38) {
        world.write8(0xc0, 0n);
        world.write8(0xc8, 0n);
        world.write8(0xd0, 0x238_0004n);
      }
      for (let i = 0; i < 2; i++) {
        world.write4(control + 4, data);
        world.write4(control + 8, 0xfee0_0000);
        world.write4(control + 12, 0);
      }
      world.write4(control, 0);
      expect(world.read4(control)).toBe(0);
    }
    world.write4(0x18, 0x8400_0000);
    expect(world.read4(0x1c)).toBe(0xc400_0000);
    expect(world.interrupts).toEqual([]);
    expect(world.backEnd.take()).toEqual([
      'state enabled=false root=0x2271000 mode=1', 'context global did=0 sid=0x0 fm=0', 'pasid-cache global did=0 pasid=0x0', 'iotlb global did=0 0x0+1 ih=false', 'drain',
      'state enabled=true root=0x2271000 mode=1',
    ]);
  });

  it('latches the root table at SRTP only, also while translation is on', () => {
    const world = new World();
    world.write8(0x20, 0x5000n);
    world.write4(0x18, 0x4000_0000);
    world.write4(0x18, 0x8000_0000);
    world.write8(0x20, 0x9000n);
    world.write4(0x18, 0x8000_0000);
    expect(world.backEnd.take()).toEqual(['state enabled=false root=0x5000 mode=0', 'state enabled=true root=0x5000 mode=0']);
    world.write4(0x18, 0xc000_0000);
    expect(world.backEnd.take()).toEqual(['state enabled=true root=0x9000 mode=0']);
  });

  it('invalidates every cache at SRTP when ESRTPS is reported, and none when it is not', () => {
    const plain = new World(), enhanced = new World({ options: { esrtps: true } });
    plain.write4(0x18, 0x4000_0000);
    enhanced.write4(0x18, 0x4000_0000);
    expect(plain.backEnd.take()).toHaveLength(1);
    expect(enhanced.backEnd.take()).toEqual([
      'state enabled=false root=0x0 mode=0', 'context global did=0 sid=0x0 fm=0', 'pasid-cache global did=0 pasid=0x0', 'iotlb global did=0 0x0+1 ih=false',
    ]);
  });

  it.each([['SFL', 0x2000_0000], ['EAFL', 0x1000_0000], ['WBF', 0x0800_0000], ['IRE', 0x0200_0000], ['SIRTP', 0x0100_0000], ['CFI', 0x0080_0000]])(
    'ignores %s, whose feature is not reported', (_name, bit) => {
      const world = new World();
      world.write4(0x18, bit);
      expect(world.read4(0x1c)).toBe(0);
      expect(world.backEnd.take()).toEqual([]);
    });

  it.each([
    ['PMEN', 0x64, 4], ['PLMBASE', 0x68, 4], ['PLMLIMIT', 0x6c, 4], ['PHMBASE', 0x70, 8], ['PHMLIMIT', 0x78, 8], ['AFLOG', 0x58, 8],
    ['IRTA', 0xb8, 8], ['MTRRCAP', 0x100, 8], ['IQH', 0x80, 8], ['IQERCD', 0xb0, 8], ['GSTS', 0x1c, 4],
  ] as const)('keeps %s read-only zero', (_name, offset, size) => {
    const world = new World();
    world.unit.write(offset, size, 0xffff_ffff, 0xffff_ffff);
    expect(size === 8 ? world.read8(offset) : world.read4(offset)).toBe(size === 8 ? 0n : 0);
  });

  it('has no page request registers without PRS, no queue registers bits for 256-bit descriptors without scalable mode', () => {
    const world = new World({ options: { scalable: false } });
    world.write8(0xd0, 0x1000n);
    world.write4(0xe0, 0);
    world.write8(0x90, 0x1801n);
    world.write8(0x20, 0x1400n);
    expect([world.read8(0xd0), world.read4(0xe0), world.read8(0x90), world.read8(0x20)]).toEqual([0n, 0, 0x1001n, 0x1000n]);
  });

  it('does not implement address bits beyond the host address width', () => {
    const world = new World({ options: { haw: 39 } });
    world.write8(0x20, 0xffff_ffff_ffff_ffffn);
    world.write8(0x90, 0xffff_ffff_ffff_ffffn);
    expect([world.read8(0x20), world.read8(0x90)]).toEqual([0x7f_ffff_fc00n, 0x7f_ffff_f807n]);
  });

  it('takes the access widths of the recorded driver: IQT and IQH 4 bytes wide, PQA and IQERCD 8', () => {
    const world = new World();
    world.write4(0x88, 0xffff_ffff);
    expect([world.read4(0x88), world.read8(0x88), world.read4(0x8c)]).toEqual([0x7_fff0, 0x7_fff0n, 0]);
    world.write8(0xd0, 0x238_0004n);
    expect([world.read8(0xd0), world.read4(0xd0), world.read4(0xd4)]).toEqual([0x238_0004n, 0x238_0004, 0]);
    expect(world.unit.read(0x88, 2)).toBe(0);
    expect(world.unit.registers.invalidAccesses).toBe(1);
  });

  it('resets to power-on state and tells the back end', () => {
    const world = new World();
    world.write8(0x20, 0x5400n);
    world.write4(0x18, 0xc000_0000);
    world.backEnd.take();
    world.unit.reset();
    expect([world.read4(0x1c), world.read8(0x20), world.read4(0x38)]).toEqual([0, 0n, 0x8000_0000]);
    expect(world.backEnd.take()[0]).toBe('state enabled=false root=0x0 mode=0');
  });

  it('prints registers with their fields', () => {
    const world = new World();
    world.write8(0x20, 0x227_1400n);
    world.write4(0x18, 0x4000_0000);
    const lines = formatRegisters(world.unit.describeRegisters());
    expect(lines).toContain('GSTS       0x01c 0x40000000 RTPS');
    expect(lines).toContain('RTADDR     0x020 0x0000000002271400 TTM=1 RTA=0x2271000');
    expect(lines).toContain('FECTL      0x038 0x80000000 IM');
  });

  it('traces every register write with offset and value', () => {
    const world = new World();
    world.write8(0xd0, 0x1_2380_0004n);
    expect(world.traced('vtd:register_write').map(({ args }) => args)).toEqual([{ unit: 'dmar0', offset: '0xd0', size: '8', lo: '0x23800004', hi: '0x1' }]);
  });
});

describe('register-based invalidation (VT-d 4.1, 6.5.1)', () => {
  it.each([
    ['global', 0xa000_0000_0000_0000n, 'context global did=0 sid=0x0 fm=0', 0x2800_0000_0000_0000n],
    ['domain-selective', 0xc000_0000_0000_0007n, 'context domain did=7 sid=0x0 fm=0', 0x5000_0000_0000_0007n],
    ['device-selective', 0xe000_0003_0018_0007n, 'context device did=7 sid=0x18 fm=3', 0x7800_0000_0000_0007n],
  ])('runs a %s context-cache invalidation through CCMD and reports its granularity', (_name, value, call, after) => {
    const world = new World({ options: { scalable: false, version: 0x10 } });
    world.write8(0x28, value);
    expect(world.backEnd.take()).toEqual([call]);
    expect(world.read8(0x28)).toBe(after);
  });

  it('starts on the write of the upper half only', () => {
    const world = new World({ options: { scalable: false, version: 0x10 } });
    world.write4(0x28, 0x0018_0007);
    expect(world.backEnd.take()).toEqual([]);
    world.write4(0x2c, 0xe000_0001);
    expect(world.backEnd.take()).toEqual(['context device did=7 sid=0x18 fm=1']);
  });

  it.each([
    ['global', 0n, 0x9000_0000_0000_0000n, 'iotlb global did=0 0x0+1 ih=false', 0x1200_0000_0000_0000n],
    ['domain-selective', 0n, 0xa000_0005_0000_0000n, 'iotlb domain did=5 0x0+1 ih=false', 0x2400_0005_0000_0000n],
    ['page-selective', 0x7f01_2345_6043n, 0xb000_0005_0000_0000n, 'iotlb page did=5 0x7f0123450000+8 ih=true', 0x3600_0005_0000_0000n],
  ])('runs a %s IOTLB invalidation and reports its granularity', (_name, address, value, call, after) => {
    const world = new World({ options: { scalable: false, version: 0x10 } });
    world.write8(0xf0, address);
    world.write8(0xf8, value);
    expect(world.backEnd.take()).toEqual([call]);
    expect(world.read8(0xf8)).toBe(after);
  });

  it('keeps IVT set until the reads and writes that it drains have ended', () => {
    const world = new World({ options: { scalable: false, version: 0x10 } });
    world.backEnd.drainAtOnce = false;
    world.write8(0xf8, 0x9003_0000_0000_0000n);
    expect(world.read8(0xf8)).toBe(0x9003_0000_0000_0000n);
    world.backEnd.drains[0]!();
    expect(world.read8(0xf8)).toBe(0x1203_0000_0000_0000n);
  });

  it('works domain-selectively without PSI', () => {
    const world = new World({ options: { scalable: false, psi: false, version: 0x10 } });
    world.write8(0xf0, 0x5003n);
    world.write8(0xf8, 0xb000_0005_0000_0000n);
    expect(world.backEnd.take()).toEqual(['iotlb domain did=5 0x0+8 ih=false']);
    expect(world.read8(0xf8)).toBe(0x3400_0005_0000_0000n);
  });

  it.each([
    ['an address mask above MAMV', 0x10, (world: World) => world.write8(0xf0, 0x13n)],
    ['architecture version 6', 0x60, () => {}],
    ['scalable mode', 0x10, (world: World) => { world.write8(0x20, 0x1400n); world.write4(0x18, 0x4000_0000); }],
    ['the queue enabled', 0x10, (world: World) => world.write4(0x18, 0x0400_0000)],
  ] as const)('ignores the request with %s and reports granularity 0', (_name, version, prepare) => {
    const world = new World({ options: { version } });
    prepare(world);
    world.backEnd.take();
    world.write8(0xf8, 0xb000_0005_0000_0000n);
    expect(world.backEnd.take()).toEqual([]);
    expect(world.read8(0xf8)).toBe(0x3000_0005_0000_0000n);
  });
});
