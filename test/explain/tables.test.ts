import { describe, expect, it } from 'vitest';
import fc from 'fast-check';
import { explainImage, parseImageWalk } from '../../harness/explain/image.js';
import { imageText } from '../../harness/explain/text.js';
import { MAX_DEVICES, type SpaceReport } from '../../harness/explain/tables.js';
import { Ram } from '../../sim/memory.js';
import { ramWith, registers, scalableMachine, TRANSLATION_ON } from './world.js';

function spaceOf(pasid: number): SpaceReport {
  const { memory, registers: values } = scalableMachine();
  return explainImage(memory, values).tables.devices[0]!.spaces.find((space) => space.pasid === pasid)!;
}

describe('tables of a stopped machine', () => {
  it('lists the devices with present context entries and what these allow (9.4)', () => {
    const { memory, registers: values } = scalableMachine();
    const { devices } = explainImage(memory, values).tables;
    expect(devices.map(({ bdf, address, deviceTlb, pasidEnable, pageRequests, pasidLimit, ridPasid }) => ({ bdf, address, deviceTlb, pasidEnable, pageRequests, pasidLimit, ridPasid })))
      .toEqual([{ bdf: '6a:01.0', address: 0x2100, deviceTlb: true, pasidEnable: true, pageRequests: true, pasidLimit: 8192, ridPasid: 0 }]);
  });

  it('tells the types of PASID entries apart (9.6)', () => {
    expect([0, 1, 2].map((pasid) => spaceOf(pasid)).map(({ type, domain, rid }) => [type, domain, rid])).toEqual([
      ['pass-through', 1, true], ['first-level', 2, false], ['nested', 3, false],
    ]);
    expect(spaceOf(2)).toMatchObject({ firstLevel: { root: 0x1000, levels: 4 }, secondLevel: { root: 0xa000, levels: 3 } });
  });

  it('groups devices and PASIDs by domain', () => {
    const { memory, registers: values } = scalableMachine();
    expect(explainImage(memory, values).tables.domains).toEqual([{ id: 1, users: ['6a:01.0'] }, { id: 2, users: ['6a:01.0 PASID 1'] }, { id: 3, users: ['6a:01.0 PASID 2'] }]);
  });

  it('counts leaves and joins neighbours with the same rights, which hold only if every level grants them', () => {
    const { memory, registers: values } = scalableMachine();
    const mapping = explainImage(memory, values).tables.mappings.get(spaceOf(1).mapping!)!;
    expect(mapping).toMatchObject({ leaves: [2, 0, 0, 0], pages: 2, tables: 7, complete: true });
    expect(mapping.ranges.map(({ page, rights, physical }) => [page, rights, physical])).toEqual([[0x7_ffff_7fbb, 'rw', 0x21d], [Number(0xffff_8000_0000_0000n >> 12n), 'rw kernel', 0x300]]);
  });

  it('finds a nested first level through the second (3.8)', () => {
    const { memory, registers: values } = scalableMachine();
    const mapping = explainImage(memory, values).tables.mappings.get(spaceOf(2).mapping!)!;
    expect(mapping).toMatchObject({ leaves: [1, 0, 0, 0], problems: [], ranges: [{ page: 5, pages: 1, rights: 'r-', physical: 5 }] });
  });

  it('reads legacy tables: superpages, read-only ranges, pass-through (9.1, 9.3, 9.8)', () => {
    const memory = ramWith({
      0x1000: [0x2001n, 0n],
      // 00:02.0 second level at 0x3000, 4 levels, domain 7; 00:03.0 pass-through, domain 8
      [0x2000 + 0x10 * 16]: [0x3001n, 0x702n], [0x2000 + 0x18 * 16]: [0x9n, 0x802n],
      0x3000: [0x4003n], 0x4000: [0x5003n], 0x5000: [0x40_0083n, 0x60_0083n, 0x6003n], 0x6000: [0x7001n, 0x9001n],
    });
    const { tables } = explainImage(memory, registers({ RTADDR: 0x1000n, GSTS: TRANSLATION_ON }));
    expect(tables.devices.map(({ bdf, spaces }) => [bdf, spaces[0]!.type, spaces[0]!.domain])).toEqual([['00:02.0', 'second-level', 7], ['00:03.0', 'pass-through', 8]]);
    const [mapping] = [...tables.mappings.values()];
    expect(mapping!.leaves).toEqual([2, 2, 0, 0]);
    expect(mapping!.ranges).toEqual([
      { page: 0, pages: 1024, rights: 'rw', physical: 0x400, contiguous: true },
      { page: 1024, pages: 2, rights: 'r-', physical: 7, contiguous: false },
    ]);
  });

  it('says which fault an entry that is not valid would cause', () => {
    const { memory, registers: values } = scalableMachine();
    memory.store64(0x4040, 0x141, 0);
    memory.store64(0x4050, 0x6f00, 0);
    memory.store64(0x40c0, 2, 0);
    const { spaces } = explainImage(memory, values).tables.devices[0]!;
    expect(spaces.map(({ pasid, reason, silent }) => [pasid, reason, silent])).toEqual([[0, 0, false], [1, 0x5a, false], [2, 0, false], [3, 0x59, true]]);
  });

  it('cuts tables that lead to themselves', () => {
    const { memory, registers: values } = scalableMachine();
    memory.store64(0x6000 + 3 * 8, 0x6067, 0);
    const mapping = explainImage(memory, values).tables.mappings.get(spaceOf(1).mapping!)!;
    expect(mapping.problems).toEqual(['the table at 0x6000 leads to itself at level 2']);
    expect(mapping.pages).toBe(2);
  });

  it('ends soon where tables fan out without end', () => {
    const { memory, registers: values } = scalableMachine();
    // every entry of each level leads to the next table: 2^36 leaves
    for (const [table, next] of [[0x6000, 0x7000], [0x7000, 0x8000], [0x8000, 0x9000], [0x9000, 0x1_5000]] as const) {
      for (let i = 0; i < 512; i++) memory.store64(table + i * 8, next | 0x67, 0);
    }
    const report = explainImage(memory, values);
    expect(report.tables.mappings.get(spaceOf(1).mapping!)!.complete).toBe(false);
    expect(report.tables.limits).toEqual(['page tables are so large that only a part was counted']);
  });

  it('limits devices when every root entry leads to the same full table', () => {
    const memory = ramWith({});
    for (let bus = 0; bus < 256; bus++) memory.store64(0x1000 + bus * 16, 0x2001, 0);
    for (let devfn = 0; devfn < 256; devfn++) {
      memory.store64(0x2000 + devfn * 16, 0x3001, 0);
      memory.store64(0x2008 + devfn * 16, 0x102, 0);
    }
    const { tables } = explainImage(memory, registers({ RTADDR: 0x1000n }));
    expect(tables.devices).toHaveLength(MAX_DEVICES);
    expect(tables.limits).toEqual([`only the first ${MAX_DEVICES} devices are shown`]);
    expect(tables.problems[0]).toBe('root entry of bus 01: the context table at 0x2000 is that of bus 00 too');
  });

  it('names what is not in a truncated image', () => {
    const { memory, registers: values } = scalableMachine();
    const short = new Ram(0x7000);
    const bytes = new Uint8Array(0x7000);
    memory.read(0, bytes, 0, bytes.length);
    short.write(0, bytes, 0, bytes.length);
    const text = imageText(explainImage(short, values));
    expect(text).toContain('problem: the table at 0x7000 (level 2) is not in the image');
  });

  it('ends on any garbage, and never throws', () => {
    fc.assert(fc.property(fc.infiniteStream(fc.nat(0xffff_ffff)), fc.constantFrom(0n, 0x400n, 0x800n, 0xc00n), fc.boolean(), (stream, mode, inside) => {
      const memory = new Ram(0x2_0000);
      const words = stream.take(0x4000);
      let address = 0;
      // half of the words are pointers that stay inside, so that walks go deep
      for (const word of words) {
        memory.store64(address, inside ? (word & 0x1_ff67) | 1 : word, inside ? 0 : word);
        address += 8;
      }
      const report = explainImage(memory, registers({ RTADDR: 0x1000n | mode, GSTS: TRANSLATION_ON, IQA: 0x2802n, IQH: 0x40n, IQT: 0x7ffn, PQA: 0x3000n, PQH: 0n, PQT: 0xfe0n }), { sourceId: 8, pasid: 1, address: 0x1234_5000n });
      expect(imageText(report).length).toBeLessThan(2_000_000);
    }), { numRuns: 12 });
  });
});

describe('registers that are missing', () => {
  it('say what cannot be said without them', () => {
    const report = explainImage(new Ram(0x1000), registers({}));
    expect(report.unit).toMatchObject({ translation: undefined, mode: 'unknown', rootTable: undefined });
    expect(report.unit.unknown.map((line) => line.split(':')[0])).toEqual([
      'RTADDR missing', 'GSTS missing', 'CAP, ECAP missing', 'HAW missing', 'IQA, IQH, IQT missing', 'PQA, PQH, PQT missing', 'FRCD0 … missing', 'FSTS missing',
    ]);
    expect(report.tables.devices).toEqual([]);
  });

  it('do not make a walk: RTADDR', () => {
    const { memory } = scalableMachine();
    expect(explainImage(memory, registers({}), { sourceId: 0x6a08, pasid: 1, address: 0n }).walk!.text).toBe('RTADDR is missing: the tables cannot be found');
  });

  it('count as unsupported only when the unit says so: an entry for 5 levels without FS5LP', () => {
    const { memory, registers: values } = scalableMachine();
    memory.store64(0x4050, 0x6004, 0);
    expect(explainImage(memory, values).tables.devices[0]!.spaces[1]!.reason).toBe(0);
    const cap = 0x01d2_078c_222f_0606n, ecap = 0x0003_cd9a_e400_0fc7n;
    expect(explainImage(memory, new Map([...values, ['CAP', cap], ['ECAP', ecap]])).tables.devices[0]!.spaces[1]!.reason).toBe(0x5b);
  });
});

describe('the walk of an address', () => {
  it('shows every entry and where it ends', () => {
    const { memory, registers: values } = scalableMachine();
    const { walk } = explainImage(memory, values, parseImageWalk('6a:01.0/1/0x7ffff7fbb123') as Exclude<ReturnType<typeof parseImageWalk>, string>);
    expect(walk!.steps.map(({ what, address }) => [what, address])).toEqual([
      ['root', 0x16a0], ['context', 0x2100], ['pasid-directory', 0x3000], ['pasid', 0x4040],
      ['first-level', 0x67f8], ['first-level', 0x7ff8], ['first-level', 0x8df8], ['first-level', 0x9dd8],
    ]);
    expect(walk).toMatchObject({ physical: 0x21_d123n, write: true, reason: 0 });
  });

  it('ends with the reason of the fault: nothing mapped, and a write to a read-only nested page', () => {
    const { memory, registers: values } = scalableMachine();
    const walkOf = (text: string) => explainImage(memory, values, parseImageWalk(text) as Exclude<ReturnType<typeof parseImageWalk>, string>).walk!;
    expect(walkOf('6a:01.0/1/0x1000').reason).toBe(0x71);
    expect(walkOf('6a:01.0/2/0x5000:w').reason).toBe(0x85);
    expect(walkOf('6a:01.0/2/0x5000')).toMatchObject({ physical: 0x1_4000n, write: false });
    expect(walkOf('6a:02.0/-/0x5000').reason).toBe(0x41);
    expect(walkOf('00:02.0/-/0x5000').reason).toBe(0x39);
  });

  it.each([
    ['6a:01.0/1', 'is not BDF/PASID/ADDRESS'], ['dsa0/1/0x1000', 'is no PCI address'], ['6a:01.0/app/0x1000', 'is no PASID'],
    ['6a:01.0/0x100000/0x1000', 'more than 20 bits'], ['6a:01.0/1/here', 'is no address'], ['6a:01.0/1/0x1000:q', 'is no address'],
  ])('refuses %s', (text, why) => {
    expect(parseImageWalk(text)).toContain(why);
  });
});
