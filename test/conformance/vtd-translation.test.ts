import { describe, expect, it } from 'vitest';
import { ATTR_EXECUTE, ATTR_PRIVILEGED, ATTR_TRANSLATED, NO_PASID } from '../../host/pci/dma-port.js';
import { buildCapabilities, decodeCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { FAULT_REASONS, faultReason, faultText } from '../../iommu/intel-vtd/spec/fault-reasons.js';
import { PASID_ENTRY, pasidDirectoryIndex, pasidEntryAddress, pasidTableIndex } from '../../iommu/intel-vtd/spec/pasid-table.js';
import { SM_CONTEXT_ENTRY } from '../../iommu/intel-vtd/spec/root-context.js';
import { qwordsOf } from '../../sim/layout.js';
import {
  A, CONTEXTS, DEVICE, DIRECTORY, EA, FL, P, PAGE, PASIDS, PS, ROOT, RW, SILENT, SL, TARGET, TranslationWorld, US, XD, everything, flAt, slAt,
} from './vtd-translation-world.js';

const CONTEXT = CONTEXTS + DEVICE * 32;
const ENTRY = PASIDS + 5 * 64;

describe('structures (VT-d 4.1, 9.1 to 9.8; requirement 9)', () => {
  it('finds a PASID in directory and table (VTD-PASID-IDX)', () => {
    expect([pasidDirectoryIndex(0x12345), pasidTableIndex(0x12345), pasidEntryAddress(0x10000, 0x12345)]).toEqual([0x48d, 5, 0x10140]);
  });

  it('codes a nested PASID entry (VTD-PTE-NEST)', () => {
    const words = PASID_ENTRY.encode({ P: 1, PGTT: 3, AW: 2, SLPTPTR: 0x20_0000, DID: 5, FLPTPTR: 0x30_0000 });
    expect(qwordsOf(words)).toEqual([0x0000_0000_0020_00c9n, 5n, 0x30_0000n, 0n, 0n, 0n, 0n, 0n]);
  });

  it('codes a scalable context entry (VTD-SMCTX)', () => {
    const words = SM_CONTEXT_ENTRY.encode({ P: 1, DTE: 1, PASIDE: 1, PRE: 1, PDTS: 7, PASIDDIRPTR: 0x40_0000 });
    expect(qwordsOf(words)).toEqual([0x0000_0000_0040_0e1dn, 0n, 0n, 0n]);
  });

  it('has one sentence for every reason', () => {
    for (const reason of FAULT_REASONS) expect([reason.text.length > 20, faultReason(reason.code) === reason]).toEqual([true, true]);
    expect(new Set(FAULT_REASONS.map((reason) => reason.text)).size).toBe(FAULT_REASONS.length);
    expect([faultText(0x71), faultText(0xee)]).toEqual(['SM: first-level paging entry is not present', 'Unknown']);
  });
});

describe('translation', () => {
  it('walks the words of the vectors: VTD-SMCTX over a nested entry like VTD-PTE-NEST', () => {
    const world = new TranslationWorld();
    world.poke(ROOT, BigInt(CONTEXTS) | 1n);
    // PDTS 7: a directory of 128 KiB at 0x400000, entry 0x48d at + 0x2468
    world.poke(CONTEXT, 0x0000_0000_0040_0e1dn, 0n, 0n, 0n);
    world.poke(0x40_2468, BigInt(PASIDS) | 1n);
    // SLPTPTR 0x30000 and FLPTPTR 0x23000 of this world instead of 0x200000 and 0x300000
    world.poke(PASIDS + 0x140, 0x0000_0000_0003_30c9n, 5n, 0x2_3000n);
    world.firstLevel();
    world.secondLevel();
    world.on(1);
    expect(world.read(PAGE, 0x12345)).toBe(TARGET);
  });

  it.each([
    ['legacy', (w: TranslationWorld) => w.legacy(), NO_PASID, 8],
    ['first-level', (w: TranslationWorld) => w.scalable(1n), 5, 8 + 4],
    ['second-level', (w: TranslationWorld) => w.scalable(2n), 5, 8],
    ['nested', (w: TranslationWorld) => w.scalable(3n), 5, 60],
  ] as const)('translates in %s mode and then answers from the IOTLB', (_name, prepare, pasid, most) => {
    const world = prepare(new TranslationWorld());
    expect(world.read(PAGE, pasid)).toBe(TARGET);
    expect(world.backEnd.walkAccesses).toBeGreaterThan(4);
    expect(world.backEnd.walkAccesses).toBeLessThanOrEqual(most);
    expect(world.backEnd.lastHit()).toBeUndefined();
    expect(world.read(PAGE, pasid)).toBe(TARGET);
    expect([world.backEnd.walkAccesses, world.backEnd.lastHit()?.page, world.backEnd.lastHit()?.frame]).toEqual([0, PAGE, TARGET]);
  });

  it('uses RID_PASID for requests without PASID', () => {
    const world = new TranslationWorld().scalable(1n);
    world.poke(CONTEXT + 8, 5n);
    world.poke(PASIDS, 0n);
    expect(world.read(PAGE)).toBe(TARGET);
  });

  it('walks five levels (FLPM 1)', () => {
    const world = new TranslationWorld().scalable(1n, { entry2: 4n });
    world.poke(ENTRY + 16, BigInt(FL[4]) | 4n);
    world.poke(FL[4], BigInt(FL[3]) | P | RW | US);
    expect(world.read(PAGE, 5)).toBe(TARGET);
    world.poke(FL[4] + 0x1ff * 8, BigInt(FL[3]) | P | RW | US);
    expect(world.read(PAGE + (2 ** 52 - 2 ** 36), 5)).toBe(TARGET);
  });

  it('walks three, four and five second-level levels (AW 1 to 3)', () => {
    const world = new TranslationWorld().legacy();
    world.poke(CONTEXTS + DEVICE * 16, BigInt(SL[2]) | 1n, 1n | (6n << 8n));
    world.backEnd.invalidateContext('global', 0, 0, 0);
    expect(world.read(PAGE % 2 ** 27)).toBe(TARGET);
    world.poke(SL[4], BigInt(SL[3]) | 3n);
    world.poke(CONTEXTS + DEVICE * 16, BigInt(SL[4]) | 1n, 3n | (8n << 8n));
    world.backEnd.invalidateContext('global', 0, 0, 0);
    expect(world.read(PAGE)).toBe(TARGET);
  });

  it.each([[1, 0x60_0000n, 0x600 + 0x56], [2, 0x4000_0000n, 0x4_0000 + 0x1a * 512 + 0x56]] as const)('uses large leaves of level %i in both kinds of tables', (level, address, expected) => {
    const first = new TranslationWorld().scalable(1n);
    first.poke(flAt(level), address | P | RW | US | PS);
    expect(first.read(PAGE, 5)).toBe(expected);
    expect(first.read(PAGE + 1, 5)).toBe(expected + 1);
    expect(first.backEnd.lastHit()?.pages).toBe(512 ** level);
    const second = new TranslationWorld().legacy();
    second.poke(slAt(level), address | 3n | PS);
    expect([second.read(), second.write(PAGE + 1)]).toEqual([expected, expected + 1]);
  });

  it('ignores bit 12 of a large first-level leaf, which is PAT', () => {
    const world = new TranslationWorld().scalable(1n);
    world.poke(flAt(1), 0x60_1000n | P | RW | US | PS);
    expect(world.read(PAGE, 5)).toBe(0x600 + 0x56);
  });

  it('caches the smaller of two leaves when nested', () => {
    const world = new TranslationWorld().scalable(3n);
    world.poke(flAt(1), 0x60_0000n | P | RW | US | PS);
    expect(world.read(PAGE, 5)).toBe(0x656);
    expect([world.read(PAGE, 5), world.backEnd.lastHit()?.pages]).toEqual([0x656, 1]);
  });

  it('passes requests through (TT 2, PGTT 4) up to the host address width', () => {
    const legacy = new TranslationWorld().legacy(2n << 2n);
    expect([legacy.read(0x77), legacy.write(2 ** 34 - 1), legacy.read(2 ** 34)]).toEqual([0x77, 2 ** 34 - 1, -0x04]);
    const scalable = new TranslationWorld().scalable(4n);
    expect([scalable.read(0x77, 5), scalable.write(2 ** 34, 5), scalable.read(0xfee01, 5)]).toEqual([0x77, -0x83, -0x87]);
  });

  it('passes requests without PASID while remapping is off, and refuses others silently', () => {
    const world = new TranslationWorld().scalable(1n);
    world.backEnd.setState({ enabled: false, rootTable: ROOT, mode: 1 });
    expect([world.read(0x77), world.read(0x77, 5), world.read(0x77, NO_PASID, ATTR_TRANSLATED), world.ats()]).toEqual([0x77, SILENT, SILENT, 'UR']);
  });

  it('leaves interrupt writes alone and refuses reads of that range (3.15)', () => {
    for (const world of [new TranslationWorld().legacy(), new TranslationWorld().scalable(1n)]) {
      expect([world.write(0xfee00), world.write(0xfeeff), world.read(0xfee10)]).toEqual([0xfee00, 0xfeeff, -0x29]);
    }
  });

  it('translates requests with PASID in that range like any other', () => {
    const world = new TranslationWorld().scalable(1n);
    world.poke(FL[3], BigInt(FL[2]) | P | RW | US);
    world.poke(FL[2] + 3 * 8, 0x4000_0000n | P | RW | US | PS);
    expect(world.write(0xfee00, 5)).toBe(0x4_0000 + 0x3ee00);
  });
});

describe('rights of first-level entries (3.6)', () => {
  const attributes = { entry2: 3n }; // SRE, ERE

  it('refuses users what is for supervisors at any level, and lets privileged requests pass', () => {
    for (const level of [0, 1, 2, 3]) {
      const world = new TranslationWorld().scalable(1n, attributes);
      world.clear(flAt(level), US);
      expect([world.read(PAGE, 5), world.read(PAGE, 5, ATTR_PRIVILEGED), world.read(PAGE, 5)]).toEqual([-0x81, TARGET, -0x81]);
    }
  });

  it('refuses users writes without R/W at any level', () => {
    for (const level of [0, 1, 2, 3]) {
      const world = new TranslationWorld().scalable(1n, attributes);
      world.clear(flAt(level), RW);
      expect([world.read(PAGE, 5), world.write(PAGE, 5)]).toEqual([TARGET, -0x85]);
    }
  });

  it('lets privileged requests write read-only pages unless WPE is set', () => {
    const free = new TranslationWorld().scalable(1n, attributes), protect = new TranslationWorld().scalable(1n, { entry2: 3n | 0x10n });
    for (const world of [free, protect]) world.clear(flAt(0), RW);
    expect([free.write(PAGE, 5, ATTR_PRIVILEGED), protect.write(PAGE, 5, ATTR_PRIVILEGED)]).toEqual([TARGET, -0x85]);
  });

  it('refuses execution where XD is set, with NXE only', () => {
    const plain = new TranslationWorld().scalable(1n, attributes), nxe = new TranslationWorld().scalable(1n, { entry2: 3n | 0x20n });
    for (const world of [plain, nxe]) world.or(flAt(2), XD);
    expect([plain.read(PAGE, 5, ATTR_EXECUTE), nxe.read(PAGE, 5), nxe.read(PAGE, 5, ATTR_EXECUTE)]).toEqual([TARGET, TARGET, -0x82]);
  });

  it('refuses privileged execution of user pages with SMEP, also from the cache', () => {
    const world = new TranslationWorld().scalable(1n, { entry2: 3n | 0x40n });
    expect([world.read(PAGE, 5, ATTR_PRIVILEGED), world.read(PAGE, 5, ATTR_PRIVILEGED | ATTR_EXECUTE), world.read(PAGE, 5, ATTR_EXECUTE)]).toEqual([TARGET, -0x82, TARGET]);
  });

  it('ignores attributes of requests without PASID, but for RID_PRIV', () => {
    const world = new TranslationWorld().scalable(1n, attributes);
    world.clear(flAt(0), US);
    expect(world.read(PAGE, NO_PASID, ATTR_PRIVILEGED)).toBe(-0x81);
    world.poke(CONTEXT + 8, 0x10_0000n);
    world.backEnd.invalidateContext('device', 0, DEVICE, 0);
    world.backEnd.invalidatePasidCache('global', 0, 0);
    expect(world.read(PAGE)).toBe(TARGET);
  });

  it('lets writes fail and reads pass by the second level when nested', () => {
    const world = new TranslationWorld().scalable(3n);
    // TARGET is below 32 MiB, in the identity tables: leaf 0x1234
    world.poke(0x5_0000 + 0x1234 * 8, (BigInt(TARGET) << 12n) | 1n);
    expect([world.read(PAGE, 5), world.write(PAGE, 5)]).toEqual([TARGET, -0x85]);
  });
});

/** Nested with a second level of 39 bits, which is less than the host address width. */
function narrow(world: TranslationWorld): TranslationWorld {
  world.scalable(3n);
  world.poke(ENTRY, 0x4_1000n | 1n | (1n << 2n) | (3n << 6n));
  return world;
}

interface Case {
  readonly reason: number;
  readonly name: string;
  readonly make: (world: TranslationWorld) => number;
}

/** Every reason, reached by bytes. */
const CASES: readonly Case[] = [
  { reason: 0x01, name: 'root P', make: (w) => (w.legacy().poke(ROOT, 0n), w.read()) },
  { reason: 0x02, name: 'context P', make: (w) => (w.legacy().clear(CONTEXTS + DEVICE * 16, 1n), w.read()) },
  { reason: 0x03, name: 'address width that SAGAW lacks', make: (w) => w.legacy(0n, 0n).read() },
  { reason: 0x03, name: 'reserved translation type', make: (w) => w.legacy(0xcn).read() },
  { reason: 0x03, name: 'second-level root outside memory', make: (w) => (w.legacy().poke(CONTEXTS + DEVICE * 16, 0x7000_0001n), w.read()) },
  { reason: 0x04, name: 'beyond AW', make: (w) => w.legacy().read(2 ** 36) },
  { reason: 0x05, name: 'no W', make: (w) => (w.legacy().clear(slAt(0), 2n), w.write()) },
  { reason: 0x05, name: 'no W above', make: (w) => (w.legacy().clear(slAt(2), 2n), w.write()) },
  { reason: 0x06, name: 'no R', make: (w) => (w.legacy().clear(slAt(0), 1n), w.read()) },
  { reason: 0x06, name: 'not present', make: (w) => (w.legacy().poke(slAt(1), 0n), w.read()) },
  { reason: 0x07, name: 'table outside memory', make: (w) => (w.legacy().poke(slAt(1), 0x7000_0003n), w.read()) },
  { reason: 0x08, name: 'root table outside memory', make: (w) => (w.backEnd.setState({ enabled: true, rootTable: 0x7000_0000, mode: 0 }), w.read()) },
  { reason: 0x09, name: 'context table outside memory', make: (w) => (w.legacy().poke(ROOT, 0x7000_0001n), w.read()) },
  { reason: 0x0a, name: 'root reserved', make: (w) => (w.legacy().or(ROOT, 2n), w.read()) },
  { reason: 0x0a, name: 'root upper half', make: (w) => (w.legacy().poke(ROOT + 8, 1n), w.read()) },
  { reason: 0x0a, name: 'root beyond HAW', make: (w) => (w.legacy().or(ROOT, 1n << 46n), w.read()) },
  { reason: 0x0b, name: 'context low reserved', make: (w) => w.legacy(0x10n).read() },
  { reason: 0x0b, name: 'context high reserved', make: (w) => w.legacy(0n, 2n | (1n << 24n)).read() },
  { reason: 0x0c, name: 'SNP of a table', make: (w) => (w.legacy().or(slAt(1), 0x800n), w.read()) },
  { reason: 0x0c, name: 'bit 62', make: (w) => (w.legacy().or(slAt(0), 1n << 62n), w.read()) },
  { reason: 0x0c, name: 'leaf beyond HAW', make: (w) => (w.legacy().or(slAt(0), 1n << 46n), w.read()) },
  { reason: 0x0c, name: 'unaligned large leaf', make: (w) => (w.legacy().poke(slAt(1), 0x60_1000n | 3n | PS), w.read()) },
  { reason: 0x0c, name: 'PS at level 3', make: (w) => (w.legacy().or(slAt(3), PS), w.read()) },
  { reason: 0x0d, name: 'translated request with TT 0', make: (w) => w.legacy().read(PAGE, NO_PASID, ATTR_TRANSLATED) },
  { reason: 0x0e, name: 'result in the interrupt range', make: (w) => (w.legacy().poke(slAt(0), 0xfee0_0003n), w.read()) },
  { reason: 0x29, name: 'read of the interrupt range', make: (w) => w.legacy().read(0xfee00) },
  { reason: 0x30, name: 'reserved table mode', make: (w) => (w.on(2), w.read()) },
  { reason: 0x31, name: 'PASID in legacy mode', make: (w) => w.legacy().read(PAGE, 5) },
  { reason: 0x38, name: 'root table outside memory', make: (w) => (w.backEnd.setState({ enabled: true, rootTable: 0x7000_0000, mode: 1 }), w.read()) },
  { reason: 0x39, name: 'lower root P', make: (w) => (w.scalable(1n).poke(ROOT, 0n), w.read(PAGE, 5)) },
  { reason: 0x3a, name: 'lower root reserved', make: (w) => (w.scalable(1n).or(ROOT, 4n), w.read(PAGE, 5)) },
  { reason: 0x40, name: 'context table outside memory', make: (w) => (w.scalable(1n).poke(ROOT, 0x7000_0001n), w.read()) },
  { reason: 0x41, name: 'context P', make: (w) => (w.scalable(1n).clear(CONTEXT, 1n), w.read()) },
  { reason: 0x42, name: 'context low reserved', make: (w) => (w.scalable(1n).or(CONTEXT, 0x20n), w.read()) },
  { reason: 0x42, name: 'context second word', make: (w) => (w.scalable(1n).or(CONTEXT + 8, 1n << 21n), w.read()) },
  { reason: 0x42, name: 'context fourth word', make: (w) => (w.scalable(1n).or(CONTEXT + 24, 1n << 63n), w.read()) },
  { reason: 0x43, name: 'PRE without DTE', make: (w) => (w.scalable(1n).clear(CONTEXT, 4n), w.read()) },
  { reason: 0x43, name: 'RID_PASID beyond the directory', make: (w) => (w.scalable(1n).poke(CONTEXT + 8, 8192n), w.read(PAGE, 5)) },
  { reason: 0x44, name: 'translated request without DTE', make: (w) => (w.scalable(1n).clear(CONTEXT, 0x14n), w.read(PAGE, NO_PASID, ATTR_TRANSLATED)) },
  { reason: 0x45, name: 'PASID without PASIDE', make: (w) => (w.scalable(1n).clear(CONTEXT, 8n), w.read(PAGE, 5)) },
  { reason: 0x46, name: 'PASID beyond the directory', make: (w) => w.scalable(1n).read(PAGE, 8192) },
  { reason: 0x48, name: 'request with RID_PASID as its PASID', make: (w) => (w.scalable(1n).poke(CONTEXT + 8, 5n), w.read(PAGE, 5)) },
  { reason: 0x50, name: 'directory outside memory', make: (w) => (w.scalable(1n).poke(CONTEXT, 0x7000_001dn), w.read(PAGE, 5)) },
  { reason: 0x51, name: 'directory entry P', make: (w) => (w.scalable(1n).poke(DIRECTORY, 0n), w.read(PAGE, 5)) },
  { reason: 0x52, name: 'directory entry reserved', make: (w) => (w.scalable(1n).or(DIRECTORY, 4n), w.read(PAGE, 5)) },
  { reason: 0x58, name: 'PASID table outside memory', make: (w) => (w.scalable(1n).poke(DIRECTORY, 0x7000_0001n), w.read(PAGE, 5)) },
  { reason: 0x59, name: 'PASID entry P', make: (w) => (w.scalable(1n).clear(ENTRY, 1n), w.read(PAGE, 5)) },
  { reason: 0x5a, name: 'PASID entry bit 10', make: (w) => w.scalable(1n, { entry0: 0x400n }).read(PAGE, 5) },
  { reason: 0x5a, name: 'PASID entry bit 16 of the second word', make: (w) => w.scalable(1n, { entry1: 0x1_0000n }).read(PAGE, 5) },
  { reason: 0x5a, name: 'PASID entry bit 8 of the third word', make: (w) => w.scalable(1n, { entry2: 0x100n }).read(PAGE, 5) },
  { reason: 0x5a, name: 'PASID entry eighth word', make: (w) => (w.scalable(1n).poke(ENTRY + 56, 1n), w.read(PAGE, 5)) },
  { reason: 0x5a, name: 'PAT without memory types', make: (w) => w.scalable(1n, { entry1: 1n << 32n }).read(PAGE, 5) },
  { reason: 0x5a, name: 'first-level pointer beyond HAW where it is not used', make: (w) => w.scalable(2n, { entry2: 1n << 46n }).read(PAGE, 5) },
  { reason: 0x5a, name: 'first-level pointer beyond HAW', make: (w) => w.scalable(1n, { entry2: 1n << 46n }).read(PAGE, 5) },
  { reason: 0x5b, name: 'PGTT 0', make: (w) => w.scalable(0n).read(PAGE, 5) },
  { reason: 0x5b, name: 'PGTT 5', make: (w) => w.scalable(5n).read(PAGE, 5) },
  { reason: 0x5b, name: 'FLPM 2', make: (w) => w.scalable(1n, { entry2: 8n }).read(PAGE, 5) },
  { reason: 0x5b, name: 'AW that SAGAW lacks', make: (w) => w.scalable(2n, { entry0: 4n << 2n }).read(PAGE, 5) },
  { reason: 0x5b, name: 'nested: first-level root beyond the second-level width', make: (w) => (narrow(w).or(ENTRY + 16, 1n << 40n), w.read(PAGE, 5)) },
  { reason: 0x5c, name: 'execute without ERE', make: (w) => w.scalable(1n).read(PAGE, 5, ATTR_EXECUTE) },
  { reason: 0x5d, name: 'privileged without SRE', make: (w) => w.scalable(1n).read(PAGE, 5, ATTR_PRIVILEGED) },
  { reason: 0x70, name: 'first-level table outside memory', make: (w) => (w.scalable(1n).poke(flAt(2), 0x7000_0007n), w.read(PAGE, 5)) },
  { reason: 0x71, name: 'first-level leaf P', make: (w) => (w.scalable(1n).poke(flAt(0), 0n), w.read(PAGE, 5)) },
  { reason: 0x71, name: 'first-level table P', make: (w) => (w.scalable(1n).poke(flAt(3), 0n), w.read(PAGE, 5)) },
  { reason: 0x72, name: 'PS at level 3', make: (w) => (w.scalable(1n).or(flAt(3), PS), w.read(PAGE, 5)) },
  { reason: 0x72, name: 'leaf beyond HAW', make: (w) => (w.scalable(1n).or(flAt(0), 1n << 51n), w.read(PAGE, 5)) },
  { reason: 0x72, name: 'unaligned large leaf', make: (w) => (w.scalable(1n).poke(flAt(1), 0x60_2000n | P | RW | US | PS), w.read(PAGE, 5)) },
  { reason: 0x72, name: 'nested: leaf beyond HAW', make: (w) => (w.scalable(3n).or(flAt(0), 1n << 46n), w.read(PAGE, 5)) },
  { reason: 0x73, name: 'first-level root outside memory', make: (w) => (w.scalable(1n).poke(ENTRY + 16, 0x7000_0000n), w.read(PAGE, 5)) },
  { reason: 0x74, name: 'nested: table beyond the second-level width', make: (w) => (narrow(w).poke(flAt(2), (1n << 40n) | P | RW | US), w.read(PAGE, 5)) },
  { reason: 0x74, name: 'nested: result beyond the second-level width', make: (w) => (narrow(w).poke(flAt(0), (1n << 40n) | P | RW | US), w.read(PAGE, 5)) },
  { reason: 0x75, name: 'nested: root not readable', make: (w) => (w.scalable(3n).poke(0x5_0000 + 0x23 * 8, 0x2_3002n), w.read(PAGE, 5)) },
  { reason: 0x76, name: 'nested: table not readable', make: (w) => (w.scalable(3n).poke(0x5_0000 + 0x21 * 8, 0x2_1002n), w.read(PAGE, 5)) },
  { reason: 0x77, name: 'nested: A cannot be set', make: (w) => (w.scalable(3n).poke(0x5_0000 + 0x20 * 8, 0x2_0001n), w.read(PAGE, 5)) },
  { reason: 0x77, name: 'nested: table read-only with SLADE', make: (w) => (w.scalable(3n, { entry0: 0x200n }).poke(0x5_0000 + 0x20 * 8, 0x2_0001n), w.or(flAt(0), A), w.read(PAGE, 5)) },
  { reason: 0x78, name: 'second-level table outside memory', make: (w) => (w.scalable(2n).poke(slAt(2), 0x7000_0003n), w.read(PAGE, 5)) },
  { reason: 0x79, name: 'second-level leaf neither R nor W', make: (w) => (w.scalable(2n).poke(slAt(0), 0n), w.write(PAGE, 5)) },
  { reason: 0x79, name: 'nothing that all second-level entries permit', make: (w) => (w.scalable(2n).clear(slAt(2), 1n), w.clear(slAt(0), 2n), w.read(PAGE, 5)) },
  { reason: 0x79, name: 'nested: table not mapped', make: (w) => (w.scalable(3n).poke(0x5_0000 + 0x21 * 8, 0n), w.read(PAGE, 5)) },
  { reason: 0x7a, name: 'second-level reserved', make: (w) => (w.scalable(2n).or(slAt(3), PS), w.read(PAGE, 5)) },
  { reason: 0x7b, name: 'second-level root outside memory', make: (w) => (w.scalable(2n).poke(ENTRY, 0x7000_0089n), w.read(PAGE, 5)) },
  { reason: 0x80, name: 'not canonical', make: (w) => w.scalable(1n).read(2 ** 35, 5) },
  { reason: 0x80, name: 'not canonical in five levels', make: (w) => w.scalable(1n, { entry2: 4n }).read(2 ** 44, 5) },
  { reason: 0x81, name: 'user on a supervisor page', make: (w) => (w.scalable(1n).clear(flAt(0), US), w.read(PAGE, 5)) },
  { reason: 0x82, name: 'XD', make: (w) => (w.scalable(1n, { entry2: 0x22n }).or(flAt(0), XD), w.read(PAGE, 5, ATTR_EXECUTE)) },
  { reason: 0x83, name: 'pass-through beyond HAW', make: (w) => w.scalable(4n).read(2 ** 34, 5) },
  { reason: 0x84, name: 'beyond the second-level width', make: (w) => w.scalable(2n).read(2 ** 36, 5) },
  { reason: 0x85, name: 'write without R/W', make: (w) => (w.scalable(1n).clear(flAt(0), RW), w.write(PAGE, 5)) },
  { reason: 0x85, name: 'second-level write without W', make: (w) => (w.scalable(2n).clear(slAt(0), 2n), w.write(PAGE, 5)) },
  { reason: 0x86, name: 'second-level read without R', make: (w) => (w.scalable(2n).clear(slAt(0), 1n), w.read(PAGE, 5)) },
  { reason: 0x87, name: 'result in the interrupt range', make: (w) => (w.scalable(1n).poke(flAt(0), 0xfeef_f000n | P | RW | US), w.write(PAGE, 5)) },
];

describe('fault reasons, reached by bytes (VT-d 4.1, 7.1.3)', () => {
  it.each(CASES.map((entry) => [`0x${entry.reason.toString(16).padStart(2, '0')} ${entry.name}`, entry] as const))('%s', (_name, { reason, make }) => {
    const world = new TranslationWorld();
    expect(make(world)).toBe(-reason);
    expect(world.faults).toHaveLength(1);
    expect(faultReason(reason)).toBeDefined();
  });

  it('reports the upper half of a root entry for devfn 0x80 and above', () => {
    const world = new TranslationWorld().scalable(1n);
    world.poke(ROOT + 8, 0n);
    expect([world.backEnd.translate(0x80, 5, 0, PAGE, false), world.faults[0]?.reason, world.read(PAGE, 5)]).toEqual([1, 0x39, TARGET]);
    world.poke(ROOT + 8, BigInt(CONTEXTS + 0x1000) | 3n);
    world.backEnd.translate(0x80, 5, 0, PAGE, false);
    expect(world.faults.at(-1)?.reason).toBe(0x3a);
    world.poke(ROOT + 8, BigInt(CONTEXTS + 0x1000) | 1n);
    world.poke(CONTEXTS + 0x1000, BigInt(DIRECTORY) | 0x1dn);
    expect([world.backEnd.translate(0x80, 5, 0, PAGE, false), world.backEnd.page]).toEqual([0, TARGET]);
  });

  it.each([
    ['DTE', 'device-tlb', 4n], ['PASIDE', 'pasid-bits', 8n], ['PRE', 'page-requests', 0x10n],
  ] as const)('reports 0x42 for %s in a unit without %s (9.4)', (_field, word, bit) => {
    const { capabilities, problems } = buildCapabilities({ 'page-requests': false, ...(word === 'device-tlb' ? { 'device-tlb': false } : {}), ...(word === 'pasid-bits' ? { 'pasid-bits': 0 } : {}) });
    expect(problems).toEqual([]);
    const world = new TranslationWorld({ capabilities }).scalable(1n);
    world.poke(CONTEXT, BigInt(DIRECTORY) | 1n | bit);
    expect(world.read()).toBe(-0x42);
  });

  it('reports 0x5b for types and modes that the unit lacks', () => {
    const unit = (options: Parameters<typeof buildCapabilities>[0]): TranslationWorld => new TranslationWorld({ capabilities: buildCapabilities(options).capabilities });
    expect(unit({ 'first-level': false }).scalable(1n).read(PAGE, 5)).toBe(-0x5b);
    expect(unit({ 'second-level': false }).scalable(2n).read(PAGE, 5)).toBe(-0x5b);
    expect(unit({ nested: false }).scalable(3n).read(PAGE, 5)).toBe(-0x5b);
    expect(unit({ 'pass-through': false }).scalable(4n).read(PAGE, 5)).toBe(-0x5b);
    expect(unit({ 'five-level': false }).scalable(1n, { entry2: 4n }).read(PAGE, 5)).toBe(-0x5b);
  });

  it('reports 0x5a for bits of features that the unit lacks: SRE, ERE, EAFE, SLADE, PGSNP', () => {
    const { capabilities } = buildCapabilities({ 'snoop-control': false, 'execute-requests': false, 'supervisor-requests': false });
    const read = (type: bigint, options: { entry0?: bigint; entry1?: bigint; entry2?: bigint }): number => new TranslationWorld({ capabilities }).scalable(type, options).read(PAGE, 5);
    expect([read(1n, { entry2: 1n }), read(1n, { entry2: 2n }), read(1n, { entry2: 0x80n }), read(2n, { entry0: 0x200n }), read(1n, { entry1: 1n << 24n })]).toEqual(Array(5).fill(-0x5a));
    expect(read(1n, {})).toBe(TARGET);
  });

  it('reports 0x72 and 0x0c for leaves of 1 GiB that the unit lacks', () => {
    const { capabilities } = buildCapabilities({ 'first-level-1g': false, 'second-level-superpages': ['2M'] });
    const first = new TranslationWorld({ capabilities }).scalable(1n), second = new TranslationWorld({ capabilities }).legacy();
    first.poke(flAt(2), 0x4000_0000n | P | RW | US | PS);
    second.poke(slAt(2), 0x4000_0000n | 3n | PS);
    expect([first.read(PAGE, 5), second.read()]).toEqual([-0x72, -0x0c]);
  });

  it('reserves SNP of leaves without snoop control', () => {
    for (const [control, expected] of [[true, TARGET], [false, -0x0c]] as const) {
      const world = new TranslationWorld({ capabilities: buildCapabilities({ 'snoop-control': control }).capabilities }).legacy();
      world.or(slAt(0), 0x800n);
      expect(world.read()).toBe(expected);
    }
  });

  it('ends requests with 0x33 in abort-DMA mode, and with 0x30 in a unit without it', () => {
    const abort = new TranslationWorld();
    abort.on(3);
    expect(abort.read()).toBe(-0x33);
    const plain = new TranslationWorld({ capabilities: buildCapabilities({}).capabilities });
    plain.on(3);
    expect(plain.read()).toBe(-0x30);
  });

  it('records who asked for what', () => {
    const world = new TranslationWorld().scalable(1n, { entry2: 3n });
    world.poke(flAt(0), 0n);
    world.write(PAGE, 5, ATTR_PRIVILEGED);
    expect(world.faults).toEqual([{ sourceId: DEVICE, pasid: 5, reason: 0x71, page: PAGE, write: true, execute: false, privileged: true, addressType: 0, pageRequest: false }]);
  });
});

describe('fault processing disable (7.1.4; M6)', () => {
  it.each([
    ['context entry', 0x59, (w: TranslationWorld) => { w.or(CONTEXT, 2n); w.clear(ENTRY, 1n); }],
    ['context entry that is not present', 0x41, (w: TranslationWorld) => { w.or(CONTEXT, 2n); w.clear(CONTEXT, 1n); }],
    ['directory entry', 0x59, (w: TranslationWorld) => { w.or(DIRECTORY, 2n); w.clear(ENTRY, 1n); }],
    ['directory entry that is not present', 0x51, (w: TranslationWorld) => w.poke(DIRECTORY, 2n)],
    ['PASID entry that is not present', 0x59, (w: TranslationWorld) => w.poke(ENTRY, 2n)],
    ['PASID entry', 0x71, (w: TranslationWorld) => { w.or(ENTRY, 2n); w.poke(flAt(0), 0n); }],
  ] as const)('of a %s keeps faults from being recorded', (_name, reason, disable) => {
    const world = new TranslationWorld().scalable(1n), defective = new TranslationWorld({ defects: ['vtd.ignore-fpd'] }).scalable(1n);
    disable(world);
    disable(defective);
    expect([world.read(PAGE, 5), world.faults]).toEqual([SILENT, []]);
    expect(defective.read(PAGE, 5)).toBe(-reason);
  });

  it('of a legacy context entry qualifies what is found behind it, and its own reserved bits (table 30, LCT.3)', () => {
    const world = new TranslationWorld().legacy(2n);
    world.poke(slAt(0), 0n);
    expect(world.read()).toBe(SILENT);
    expect([new TranslationWorld().legacy(2n | 0x10n).read(), new TranslationWorld().legacy(0x10n).read()]).toEqual([SILENT, -0x0b]);
  });
});

describe('what a printer sees (explainWalk)', () => {
  it('lists every entry of a nested walk and leaves memory and caches alone', () => {
    const world = new TranslationWorld().scalable(3n);
    const before = [0, 1, 2, 3].map((level) => world.peek(flAt(level)));
    const explanation = world.backEnd.explainWalk(DEVICE, 5, PAGE, 3);
    expect([explanation.page, explanation.reason, explanation.read, explanation.write, explanation.pages]).toEqual([TARGET, 0, true, true, 1]);
    const kinds = explanation.steps.map((step) => step.what);
    expect(kinds.slice(0, 4)).toEqual(['root', 'context', 'pasid-directory', 'pasid']);
    expect([kinds.filter((kind) => kind === 'first-level').length, kinds.filter((kind) => kind === 'second-level').length]).toEqual([4, 20]);
    expect([0, 1, 2, 3].map((level) => world.peek(flAt(level)))).toEqual(before);
    expect([world.backEnd.cachedTranslations(), world.faults]).toEqual([[], []]);
    expect(explanation.steps[1]).toEqual({ what: 'context', level: 0, address: CONTEXT, qwords: [BigInt(DIRECTORY) | 0x1dn, 0n, 0n, 0n], text: 'P=1 DTE=1 PASIDE=1 PRE=1 PASIDDIRPTR=0x4000' });
    expect(explanation.steps[3]?.text).toBe('P=1 AW=2 PGTT=3 SLPTPTR=0x33000 DID=7 FLPTPTR=0x23000');
    expect(explanation.steps.at(-1)).toMatchObject({ what: 'second-level', level: 0, text: 'R=1 W=1 ADDR=0x1234000' });
  });

  it('ends with the reason where hardware would', () => {
    const world = new TranslationWorld().scalable(1n);
    world.poke(flAt(1), 0n);
    const explanation = world.backEnd.explainWalk(DEVICE, 5, PAGE, 1);
    expect([explanation.page, explanation.reason, explanation.text]).toEqual([undefined, 0x71, 'SM: first-level paging entry is not present']);
    expect(explanation.steps.at(-1)).toMatchObject({ what: 'first-level', level: 1, address: flAt(1), qwords: [0n], text: '' });
  });

  it('says that an address is no memory', () => {
    const world = new TranslationWorld().legacy();
    world.poke(ROOT, 0x7000_0001n);
    expect(world.backEnd.explainWalk(DEVICE, NO_PASID, PAGE, 1).steps.at(-1)).toMatchObject({ what: 'context', qwords: [], text: 'not memory' });
  });
});

it('works with the capabilities of a recording (requirement 9 of the vectors: HAW from the properties)', () => {
  const capabilities = decodeCapabilities(0x81d2008c222f0606n, 0x880000f00f4an, { hostAddressWidth: 48 });
  const world = new TranslationWorld({ capabilities });
  world.scalable(1n);
  world.poke(CONTEXT, BigInt(DIRECTORY) | 1n);
  expect([world.read(), world.peek(flAt(0)) & (EA | 0x20n)]).toEqual([TARGET, 0x20n]);
  expect(everything().executeRequests).toBe(true);
});
