/** The DMAR table: bytes against a table that Linux has booted with, and what a decoder must refuse. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { Errno } from '../../sim/errno.js';
import { Ram } from '../../sim/memory.js';
import {
  SCOPE_BRIDGE, SCOPE_ENDPOINT, decodeDmar, encodeDmar, readDmar, type DmarScope, type DmarStructure, type DmarTable,
} from '../../iommu/intel-vtd/spec/dmar.js';

const IDS = { oemId: 'POCPOC', oemTableId: 'EXTIOMMU', oemRevision: 1, creatorId: 'POC ', creatorRevision: 1 };
const HEADER = '444d415240000000011e504f43504f43455854494f4d4d5501000000504f4320010000002f0000000000000000000000';

function hexOf(bytes: Uint8Array): string {
  return Buffer.from(bytes).toString('hex');
}

function endpoint(device: number): DmarScope {
  return { type: SCOPE_ENDPOINT, enumerationId: 0, startBus: 0, path: [{ device, function: 0 }] };
}

const ALL: DmarTable = { hostAddressWidth: 48, flags: 0, structures: [{ kind: 'DRHD', includeAll: true, segment: 0, base: 0xfd000000, sizeOrder: 0, scopes: [] }] };

describe('the DMAR table', () => {
  it('encodes a unit for the whole segment in the 64 bytes that Linux 7.3 booted with', () => {
    expect(hexOf(encodeDmar(ALL, IDS))).toBe(HEADER + '0000100001000000' + '000000fd00000000');
  });

  it('encodes device scopes: type, length, enumeration id, start bus, path (8.3.1)', () => {
    const bytes = encodeDmar({ ...ALL, structures: [{ ...ALL.structures[0]!, includeAll: false, scopes: [endpoint(3), endpoint(4)] } as DmarStructure] }, IDS);
    expect(bytes.length).toBe(80);
    expect(hexOf(bytes).slice(96)).toBe('0000200000000000' + '000000fd00000000' + '0108000000000300' + '0108000000000400');
  });

  it('encodes RMRR, ATSR and SATC', () => {
    const scopes = [{ type: SCOPE_BRIDGE, enumerationId: 2, startBus: 5, path: [{ device: 1, function: 2 }, { device: 0, function: 0 }] }];
    const table: DmarTable = {
      hostAddressWidth: 46, flags: 4, structures: [
        { kind: 'RMRR', segment: 1, base: 0x7a000000, limit: 0x7affffff, scopes: [endpoint(0x14)] },
        { kind: 'ATSR', allPorts: false, segment: 0, scopes },
        { kind: 'SATC', atcRequired: true, segment: 0, scopes: [] },
      ],
    };
    const bytes = encodeDmar(table);
    expect(hexOf(bytes).slice(72, 76)).toBe('2d04');
    expect(hexOf(bytes).slice(96)).toBe(
      '0100200000000100' + '0000007a00000000' + 'ffffff7a00000000' + '0108000000001400'
      + '0200120000000000' + '020a0000020501020000'
      + '0500080001000000',
    );
    expect(decodeDmar(bytes)).toEqual(table);
  });

  it('reads back from memory what it wrote, for any table', () => {
    const scope = fc.record({
      type: fc.constantFrom(1, 2, 3), enumerationId: fc.nat(255), startBus: fc.nat(255),
      path: fc.array(fc.record({ device: fc.nat(31), function: fc.nat(7) }), { minLength: 1, maxLength: 3 }),
    });
    const address = fc.integer({ min: 0, max: 2 ** 40 }).map((page) => page * 4096);
    const scopes = fc.array(scope, { maxLength: 3 });
    const segment = fc.nat(0xffff);
    const structure: fc.Arbitrary<DmarStructure> = fc.oneof(
      fc.record({ kind: fc.constant('DRHD' as const), includeAll: fc.boolean(), segment, base: address, sizeOrder: fc.nat(15), scopes }),
      fc.record({ kind: fc.constant('RMRR' as const), segment, base: address, limit: address, scopes }),
      fc.record({ kind: fc.constant('ATSR' as const), allPorts: fc.boolean(), segment, scopes }),
      fc.record({ kind: fc.constant('SATC' as const), atcRequired: fc.boolean(), segment, scopes }),
    );
    fc.assert(
      fc.property(fc.integer({ min: 32, max: 64 }), fc.array(structure, { maxLength: 5 }), (hostAddressWidth, structures) => {
        const table: DmarTable = { hostAddressWidth, flags: 1, structures };
        const memory = new Ram(1 << 20);
        const bytes = encodeDmar(table);
        memory.write(0x4000, bytes, 0, bytes.length);
        expect(readDmar(memory, 0x4000)).toEqual(table);
      }),
      { numRuns: 50 },
    );
  });

  it('skips structures of types it does not know', () => {
    const bytes = encodeDmar(ALL);
    const longer = new Uint8Array(bytes.length + 8);
    longer.set(bytes);
    longer.set([9, 0, 8, 0, 1, 2, 3, 4], bytes.length);
    longer[4] = longer.length;
    fixChecksum(longer);
    expect(decodeDmar(longer)).toEqual(ALL);
  });
});

describe('a broken DMAR table is refused', () => {
  const cases: [what: string, spoil: (bytes: Uint8Array) => void][] = [
    ['another signature', (bytes) => { bytes[0] = 0x58; }],
    ['a length beyond its bytes', (bytes) => { bytes[4] = 65; }],
    ['a length below its header', (bytes) => { bytes[4] = 40; }],
    ['a structure that does not move on', (bytes) => { bytes[50] = 0; }],
    ['a structure beyond the table', (bytes) => { bytes[50] = 17; }],
    ['a DRHD that is too short', (bytes) => { bytes[50] = 8; bytes[56] = 9; bytes[58] = 8; }],
  ];
  it.each(cases)('with %s', (_what, spoil) => {
    const bytes = encodeDmar(ALL);
    spoil(bytes);
    fixChecksum(bytes);
    expect(refusal(() => decodeDmar(bytes))).toBe('EINVAL');
  });

  it('with a device scope without a path', () => {
    const bytes = encodeDmar({ ...ALL, structures: [{ kind: 'DRHD', includeAll: false, segment: 0, base: 0, sizeOrder: 0, scopes: [endpoint(1)] }] });
    bytes[65] = 6;
    fixChecksum(bytes);
    expect(refusal(() => decodeDmar(bytes))).toBe('EINVAL');
  });

  it('with a wrong checksum', () => {
    const bytes = encodeDmar(ALL);
    bytes[9]!++;
    expect(refusal(() => decodeDmar(bytes))).toBe('EINVAL');
  });

  it('outside memory, or longer than memory', () => {
    const memory = new Ram(1 << 20);
    expect(refusal(() => readDmar(memory, 1 << 20))).toBe('EINVAL');
    const bytes = encodeDmar(ALL);
    memory.write((1 << 20) - 48, bytes, 0, 48);
    expect(refusal(() => readDmar(memory, (1 << 20) - 48))).toBe('EINVAL');
  });
});

function fixChecksum(bytes: Uint8Array): void {
  bytes[9] = 0;
  bytes[9] = -bytes.reduce((sum, byte) => sum + byte, 0) & 0xff;
}

function refusal(act: () => unknown): string {
  try {
    act();
  } catch (error) {
    if (error instanceof Errno) return error.code;
    throw error;
  }
  return 'accepted';
}
