/**
 * How the driver brings a unit up and what it writes into the tables, against recordings of Linux 7.3.4 (registers
 * and descriptors in their order; addresses of tables are ours). Where the driver departs from a recording, the
 * test's name or a comment says why.
 */
import { describe, expect, it } from 'vitest';
import { DeadMmio, DriverWorld } from './vtd-driver-world.js';

/** CAP and ECAP of the recordings. */
const SCALABLE = { cap: 0x11d2008c222f0406n, ecap: 0x1cd9ee4f00fc7n };
const ESRTPS = { cap: 0x91d2008c222f0406n, ecap: 0x1cd9ee4f00fc7n };
const CACHING = { cap: 0x11d2008c222f0486n, ecap: 0x1cd9ee4f00fc7n };
const SECOND_LEVEL_ONLY = { cap: 0x11d2008c222f0406n, ecap: 0x14d9ee4f00fc7n };
const LEGACY = { cap: 0x1d2008c222f0406n, ecap: 0xf00fc7n, version: 0x10 };

/** Table addresses differ from run to run: IQA, RTADDR and PQA keep their low 12 bits. */
function anonymous(notes: readonly string[]): string[] {
  return notes.map((note) => note.replace(/^w (IQA|RTADDR|PQA) 8 0x[0-9a-f]+([0-9a-f]{3})$/, 'w $1 8 …$2'));
}

const IDENTIFY = (cap: string, ecap: string, version: string): string[] => [`r CAP 8 0x${cap}`, `r ECAP 8 0x${ecap}`, `r VER 4 0x${version}`, 'r GSTS 4 0x0'];
const QUEUE = (iqa: string): string[] => [
  'r FSTS 4 0x0', 'r GSTS 4 0x0', 'w IQT 4 0x0', `w IQA 8 …${iqa}`, 'w GCMD 4 0x4000000', 'r GSTS 4 0x4000000',
];
const ROOT = (rtaddr: string): string[] => [`w RTADDR 8 …${rtaddr}`, 'w GCMD 4 0x44000000', 'r GSTS 4 0x44000000'];
const WAIT = 'd WAIT 0x200000025';
const FLUSH = ['w IQT 4 0x40', 'd CC 0x11 0x0', WAIT, 'w IQT 4 0x80', 'd PASIDC 0x37 0x0', WAIT, 'w IQT 4 0xc0', 'd IOTLB 0xd2 0x0', WAIT];
const EVENT = (prefix: string, data: string): string[] => [
  `w ${prefix}DATA 4 ${data}`, `w ${prefix}ADDR 4 0xfee00000`, `w ${prefix}UADDR 4 0x0`, `w ${prefix}CTL 4 0x0`, `r ${prefix}CTL 4 0x0`,
];
const PAGE_REQUESTS = [...EVENT('PE', '0x21'), 'w PQH 8 0x0', 'w PQT 8 0x0', 'w PQA 8 …004'];
const ENABLE = ['w GCMD 4 0x84000000', 'r GSTS 4 0xc4000000'];

describe('a unit is brought up in the order of Linux', () => {
  it('in scalable mode (vtd-scalable-dsa-sva)', () => {
    const world = new DriverWorld({ registers: SCALABLE }).start();
    expect(anonymous(world.take())).toEqual([
      ...IDENTIFY('11d2008c222f0406', '1cd9ee4f00fc7', '60'), ...QUEUE('801'), ...ROOT('400'), ...FLUSH, ...PAGE_REQUESTS, ...EVENT('FE', '0x22'), ...ENABLE,
    ]);
  });

  it('in legacy mode, with a queue of one page and no PASIDs (vtd-legacy-nvme)', () => {
    const world = new DriverWorld({ registers: LEGACY }).start();
    expect(anonymous(world.take())).toEqual([
      ...IDENTIFY('1d2008c222f0406', 'f00fc7', '10'), ...QUEUE('000'), ...ROOT('000'),
      'w IQT 4 0x20', 'd CC 0x11 0x0', WAIT, 'w IQT 4 0x40', 'd IOTLB 0xd2 0x0', WAIT, ...EVENT('FE', '0x21'), ...ENABLE,
    ]);
  });

  it('without any invalidation when SRTP does it (vtd-esrtps)', () => {
    const world = new DriverWorld({ registers: ESRTPS }).start();
    expect(anonymous(world.take())).toEqual([
      ...IDENTIFY('91d2008c222f0406', '1cd9ee4f00fc7', '60'), ...QUEUE('801'), ...ROOT('400'), ...PAGE_REQUESTS, ...EVENT('FE', '0x22'), ...ENABLE,
    ]);
  });

  it('with 256-bit descriptors and legacy tables when scalable mode is there but not wanted (sm_off)', () => {
    const world = new DriverWorld({ registers: SCALABLE, driver: { scalable: false } }).start();
    const notes = anonymous(world.take());
    expect(notes).toContain('w IQA 8 …801');
    expect(notes).toContain('w RTADDR 8 …000');
    expect(notes.filter((note) => note.startsWith('d '))).toEqual(['d CC 0x11 0x0', WAIT, 'd IOTLB 0xd2 0x0', WAIT]);
  });

  it('says in the log what it found', () => {
    const world = new DriverWorld({ registers: SCALABLE }).start();
    expect(world.lines(/DMAR/)).toEqual([
      'DMAR: Host address width 48',
      'DMAR: DRHD base: 0x000000fd000000 flags: 0x1',
      'DMAR: dmar0: reg_base_addr fd000000 ver 6:0 cap 11d2008c222f0406 ecap 1cd9ee4f00fc7',
      'DMAR: dmar0: Using Queued invalidation',
      'DMAR: Intel(R) Virtualization Technology for Directed I/O',
    ]);
  });

  it('leaves DMA untranslated until it is told, so that devices get their domains first', () => {
    const world = new DriverWorld({ registers: SCALABLE });
    world.run(world.driver.start());
    expect(world.take()).not.toContain(ENABLE[0]);
    const device = world.function();
    expect(world.dma(device, 5)).toBe(5);
    world.run(world.driver.enableTranslation());
    expect(world.take().slice(-2)).toEqual(ENABLE);
    expect(world.dma(device, 5)).toBeUndefined();
  });

  it('ends translation at power-off and keeps the queue', () => {
    const world = new DriverWorld({ registers: SCALABLE }).start();
    world.take();
    world.run(world.driver.stop());
    expect(world.take()).toEqual(['w GCMD 4 0x4000000', 'r GSTS 4 0x44000000']);
  });

  it('takes over a unit that somebody left running', () => {
    const world = new DriverWorld({ registers: SCALABLE });
    world.unit.write(0x18, 4, 0x0400_0000);
    world.unit.write(0x18, 4, 0x8400_0000);
    world.start();
    expect(world.take().filter((note) => note.startsWith('w GCMD'))).toEqual([
      'w GCMD 4 0x4000000', 'w GCMD 4 0x0', 'w GCMD 4 0x4000000', 'w GCMD 4 0x44000000', 'w GCMD 4 0x84000000',
    ]);
  });

  it('refuses what is no remapping unit', () => {
    const world = new DriverWorld({ structures: [] });
    expect(world.refused(world.driver.start())).toBe('ENODEV');
    for (const value of [0, 0xffff_ffff]) {
      const dead = new DriverWorld({ mmio: new DeadMmio(value) });
      expect(dead.refused(dead.driver.start())).toBe('EINVAL');
    }
    const noQueue = new DriverWorld({ registers: { cap: LEGACY.cap, ecap: LEGACY.ecap & ~2n } });
    expect(noQueue.refused(noQueue.driver.start())).toBe('EINVAL');
  });
});

/** 64-bit words of a table, as the recordings print them. */
function qwords(world: DriverWorld, address: number, count: number): string[] {
  return Array.from({ length: count }, (_, i) => {
    world.ram.load64(address + i * 8);
    return ((BigInt(world.ram.hi >>> 0) << 32n) | BigInt(world.ram.lo >>> 0)).toString(16);
  });
}

function pointer(world: DriverWorld, address: number): number {
  world.ram.load64(address);
  return (world.ram.hi >>> 0) * 2 ** 32 + ((world.ram.lo & ~0xfff) >>> 0);
}

/** Low 12 bits of a word. */
function low(word: string): string {
  return word.slice(-3);
}

describe('tables', () => {
  it('of a function with PASIDs: PDTS 7, P, DTE, PASIDE; PRE only while page requests are on (c0 = …e1d of vtd-scalable-dsa-sva)', () => {
    const world = new DriverWorld({ registers: SCALABLE }).start();
    const dsa = world.function({ sourceId: 0x20 });
    const root = world.driver.units[0]!.contexts.root;
    const context = pointer(world, root) + 0x20 * 32;
    expect(qwords(world, root, 2).map(low)).toEqual(['001', '0']);
    expect(qwords(world, context, 2).map(low)).toEqual(['e0d', '0']);
    world.run(world.core.devEnableFeature(dsa, 'IOPF'));
    expect(qwords(world, context, 2).map(low)).toEqual(['e1d', '0']);
  });

  it('of functions from devfn 0x80 on hang at the upper half of the root entry', () => {
    const world = new DriverWorld({ registers: SCALABLE }).start();
    world.function({ sourceId: 0x1f8 });
    const root = world.driver.units[0]!.contexts.root;
    expect(qwords(world, root + 16, 2).map(low)).toEqual(['0', '001']);
    expect(qwords(world, pointer(world, root + 24) + 0x78 * 32, 1).map(low)).toEqual(['e0d']);
  });

  it('of a function without PASID and ATS: PDTS 2, P (0x…401); first-level entry 49, 800002, root', () => {
    const world = new DriverWorld({ registers: SCALABLE }).start();
    world.function({ sourceId: 0x18, pasidBits: 0, ats: false, pri: false });
    const context = pointer(world, world.driver.units[0]!.contexts.root) + 0x18 * 32;
    expect(qwords(world, context, 2).map(low)).toEqual(['401', '0']);
    const entry = pointer(world, pointer(world, context));
    const words = qwords(world, entry, 8);
    expect(words.slice(0, 2)).toEqual(['49', '800002']);
    expect(low(words[2]!)).toBe('000');
    expect(words.slice(3)).toEqual(['0', '0', '0', '0', '0']);
    expect(world.take().filter((note) => note.startsWith('d ')).slice(6)).toEqual([]);
  });

  it('of a second-level unit: …089, 800002, 0 (vtd-second-level-only)', () => {
    const world = new DriverWorld({ registers: SECOND_LEVEL_ONLY }).start();
    world.function({ sourceId: 0x18, pasidBits: 0, ats: false, pri: false });
    const context = pointer(world, world.driver.units[0]!.contexts.root) + 0x18 * 32;
    const words = qwords(world, pointer(world, pointer(world, context)), 3);
    expect([low(words[0]!), ...words.slice(1)]).toEqual(['089', '800002', '0']);
  });

  it('of pass-through: 109, 800001, 0 (vtd-passthrough)', () => {
    const world = new DriverWorld({ registers: SCALABLE, core: { defaultDomain: 'identity' } }).start();
    const nvme = world.function({ sourceId: 0x18, pasidBits: 0, ats: false, pri: false });
    const context = pointer(world, world.driver.units[0]!.contexts.root) + 0x18 * 32;
    expect(qwords(world, pointer(world, pointer(world, context)), 3)).toEqual(['109', '800001', '0']);
    expect(world.dma(nvme, 0x1234)).toBe(0x1234);
  });

  it('of legacy mode: context entry …001, AW 2 and a domain id (hi = 0x202 here, 0x402 in vtd-legacy-nvme)', () => {
    const world = new DriverWorld({ registers: LEGACY }).start();
    world.function({ sourceId: 0x18, pasidBits: 0, ats: false, pri: false });
    const context = pointer(world, world.driver.units[0]!.contexts.root) + 0x18 * 16;
    const words = qwords(world, context, 2);
    expect([low(words[0]!), words[1]]).toEqual(['001', '202']);
  });

  it('of a process: 49, 800001, pgd (vtd-scalable-dsa-sva; FLPM is 0 for four levels), without any invalidation', () => {
    const world = new DriverWorld({ registers: SCALABLE }).start();
    const dsa = world.svaFunction({ sourceId: 0x20 });
    const mm = world.process();
    const pasid = world.run(world.core.svaBind(dsa, mm));
    expect(world.take()).toEqual([]);
    const context = pointer(world, world.driver.units[0]!.contexts.root) + 0x20 * 32;
    const entry = pointer(world, pointer(world, context)) + pasid * 64;
    expect(qwords(world, entry, 3)).toEqual(['49', '800001', mm.pgd.toString(16)]);
    // five levels, as in the recording: …004
    const five = Object.create(mm, { levels: { value: 5 } }) as typeof mm;
    world.run(world.driver.svaAttach(dsa, five, 9));
    expect(qwords(world, pointer(world, pointer(world, context)) + 9 * 64, 3)).toEqual(['49', '800001', (mm.pgd + 4).toString(16)]);
  });

  it('of PASIDs beyond the first 64 stand in a table of their own, made when it is needed (VTD-PASID-IDX)', () => {
    const world = new DriverWorld({ registers: SCALABLE }).start();
    const dsa = world.svaFunction({ sourceId: 0x20 });
    const directory = pointer(world, pointer(world, world.driver.units[0]!.contexts.root) + 0x20 * 32);
    expect(qwords(world, directory + 0x48d * 8, 1)).toEqual(['0']);
    world.run(world.driver.svaAttach(dsa, world.process(), 0x12345));
    expect(qwords(world, directory + 0x48d * 8, 1).map(low)).toEqual(['001']);
    expect(qwords(world, pointer(world, directory + 0x48d * 8) + 0x140, 2)).toEqual(['49', '800001']);
  });
});

describe('caching mode hears of everything that becomes present (6.1; vtd-caching-mode)', () => {
  it('a context entry under domain 0, then the PASID entry of the default domain', () => {
    const world = new DriverWorld({ registers: CACHING }).start();
    world.take();
    world.function({ sourceId: 0x10, pasidBits: 0, ats: false, pri: false });
    expect(world.takeDescriptors()).toEqual([
      'd CC 0x1000000031 0x0', WAIT, 'd IOTLB 0xe2 0x0', WAIT, 'd PASIDC 0x20017 0x0', WAIT, 'd P_IOTLB 0x20026 0x0', WAIT,
    ]);
  });

  it('the PASID entry of a process', () => {
    const world = new DriverWorld({ registers: CACHING }).start();
    const dsa = world.svaFunction({ sourceId: 0x20 });
    world.run(world.core.svaBind(dsa, world.process()));
    expect(world.takeDescriptors()).toEqual(['d PASIDC 0x100010017 0x0', WAIT, 'd P_IOTLB 0x100010026 0x0', WAIT]);
  });

  it('a second-level mapping, but no first-level one', () => {
    const second = new DriverWorld({ registers: { ...CACHING, ecap: SECOND_LEVEL_ONLY.ecap } }).start();
    const a = second.function({ sourceId: 0x18, pasidBits: 0, ats: false, pri: false });
    second.take();
    second.run(second.core.map(second.core.groupOf(a).domain!, 0x100, 0x20_0000, 3, 3));
    second.settle();
    // pages 0x100 to 0x102: four pages, not the leaf-only hint, because tables may be new
    expect(second.takeDescriptors()).toEqual(['d IOTLB 0x200f2 0x100002', WAIT]);
    const first = new DriverWorld({ registers: CACHING }).start();
    const b = first.function({ sourceId: 0x18, pasidBits: 0, ats: false, pri: false });
    first.take();
    first.run(first.core.map(first.core.groupOf(b).domain!, 0x100, 0x20_0000, 3, 3));
    first.settle();
    expect(first.take()).toEqual([]);
  });

  it('a legacy context entry under domain 0', () => {
    const world = new DriverWorld({ registers: { ...LEGACY, cap: LEGACY.cap | 0x80n } }).start();
    world.take();
    world.function({ sourceId: 0x18, pasidBits: 0, ats: false, pri: false });
    expect(world.takeDescriptors()).toEqual(['d CC 0x1800000031 0x0', WAIT, 'd IOTLB 0xe2 0x0', WAIT]);
  });
});
