import { afterAll, describe, expect, it } from 'vitest';
import { mkdtempSync, rmSync, writeFileSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { bytesOf, ImageMemory } from '../../harness/explain/image-memory.js';
import { openImages, parseByteList, parseImageName } from '../../harness/explain/image-files.js';
import { parseRegisterWindow, parseRegisterYaml, parseRegset, readRegisters } from '../../harness/explain/register-file.js';
import { InvalidInput } from '../../harness/topology/problems.js';

const directory = mkdtempSync(join(tmpdir(), 'vfiosim-explain-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

function file(name: string, content: string | Uint8Array): string {
  const path = join(directory, name);
  writeFileSync(path, content);
  return path;
}

function refused(work: () => unknown): string[] {
  try {
    work();
  } catch (error) {
    if (error instanceof InvalidInput) return error.problems.map(({ line, message }) => `${line ?? '-'}: ${message}`);
    throw error;
  }
  throw new Error('was not refused');
}

describe('memory of an image', () => {
  it('reads like one array with holes, whatever the pieces', () => {
    fc.assert(fc.property(fc.array(fc.tuple(fc.nat(200_000), fc.integer({ min: 1, max: 90_000 })), { minLength: 1, maxLength: 5 }), fc.array(fc.nat(290_000), { minLength: 20, maxLength: 20 }), (wanted, addresses) => {
      const flat = new Int16Array(300_000).fill(-1);
      const pieces = [];
      let end = 0;
      for (const [gap, length] of wanted) {
        const start = end + (gap % 40_000);
        if (start + length > flat.length) break;
        const data = Uint8Array.from({ length }, (_, i) => (start + i * 7) & 0xff);
        data.forEach((byte, i) => (flat[start + i] = byte));
        pieces.push({ start, bytes: bytesOf(data) });
        end = start + length;
      }
      const memory = new ImageMemory(pieces);
      for (const address of addresses) {
        const aligned = address - (address % 8);
        const expected = Array.from(flat.subarray(aligned, aligned + 8));
        const present = expected.every((byte) => byte >= 0);
        expect(memory.load64(aligned)).toBe(present);
        expect(memory.load(address, 1)).toBe(flat[address]!);
        const got = new Uint8Array(8);
        expect(memory.read(aligned, got, 0, 8)).toBe(present);
        if (!present) continue;
        expect(Array.from(got)).toEqual(expected);
        expect(Array.from(new Uint8Array(new Int32Array([memory.lo, memory.hi]).buffer))).toEqual(expected);
      }
    }), { numRuns: 40 });
  });

  it('is never changed', () => {
    const memory = new ImageMemory([{ start: 0, bytes: bytesOf(new Uint8Array(4096)) }]);
    expect([memory.store64(), memory.store(), memory.compareExchange64(), memory.write(), memory.fill(), memory.copy()]).toEqual([false, false, false, false, false, false]);
  });

  it('reads a sparse file of 8 GiB window by window', () => {
    const path = file('large.img', new Uint8Array(0));
    truncateSync(path, 8 * 2 ** 30);
    const { memory, close } = openImages([path]);
    const before = process.memoryUsage().arrayBuffers;
    for (let i = 0; i < 2000; i++) expect(memory.load64(i * 4 * 2 ** 20)).toBe(true);
    expect(process.memoryUsage().arrayBuffers - before).toBeLessThan(64 * 2 ** 20);
    expect(memory.load64(8 * 2 ** 30)).toBe(false);
    close();
  });
});

describe('image files', () => {
  it('have their base in the name: FILE@0xBASE', () => {
    expect(parseImageName('a@b.img@0x100000000')).toEqual({ file: 'a@b.img', base: 0x1_0000_0000 });
    expect(parseImageName('a@b.img')).toEqual({ file: 'a@b.img', base: undefined });
    const path = file('piece.img', Uint8Array.from([1, 2, 3, 4, 5, 6, 7, 8]));
    const { memory, close } = openImages([`${path}@0x100000000`]);
    expect([memory.load(0, 4), memory.load(0x1_0000_0000, 4)]).toEqual([-1, 0x0403_0201]);
    close();
  });

  it('may be lists of bytes; the rest of a page is zero', () => {
    const path = file('list.txt', '# a list\n0x1000: 01 20 00 00\n"0x2ffe": "ab cd"  # and more\n');
    const { memory, close } = openImages([path]);
    expect([memory.load(0x1000, 4), memory.load(0x1ffc, 4), memory.load(0x2ffe, 2), memory.load(0x3000, 1)]).toEqual([0x2001, 0, 0xcdab, -1]);
    close();
  });

  it('may be ELF cores: segments at their physical addresses, overlapping ones once', () => {
    const elf = new DataView(new ArrayBuffer(0x400));
    [0x7f, 0x45, 0x4c, 0x46, 2, 1, 1].forEach((byte, i) => elf.setUint8(i, byte));
    elf.setBigUint64(0x20, 64n, true);
    elf.setUint16(0x36, 56, true);
    elf.setUint16(0x38, 3, true);
    [[4, 0, 0, 0], [1, 0x200, 0x1000, 0x100], [1, 0x300, 0x1080, 0x100]].forEach(([type, offset, physical, length], i) => {
      elf.setUint32(64 + i * 56, type!, true);
      elf.setBigUint64(64 + i * 56 + 8, BigInt(offset!), true);
      elf.setBigUint64(64 + i * 56 + 24, BigInt(physical!), true);
      elf.setBigUint64(64 + i * 56 + 32, BigInt(length!), true);
    });
    elf.setUint8(0x200, 0x11);
    elf.setUint8(0x3ff, 0x22);
    const { memory, close } = openImages([file('core.elf', new Uint8Array(elf.buffer))]);
    expect([memory.load(0x1000, 1), memory.load(0x117f, 1), memory.load(0x1180, 1), memory.load(0, 1)]).toEqual([0x11, 0x22, -1, -1]);
    close();
  });

  it.each([
    ['a missing file', () => [join(directory, 'nothing.img')], 'no such file'],
    ['a directory', () => [directory], 'is a directory'],
    ['an empty file', () => [file('empty.img', '')], 'is empty'],
    ['files that overlap', () => [file('a.img', new Uint8Array(64)), `${file('b.img', new Uint8Array(64))}@0x20`], 'covers 0x20, which'],
    ['a base of 60 bits', () => [`${file('c.img', new Uint8Array(8))}@0x800000000000000`], 'more than 52 bits'],
    ['a cut ELF file', () => [file('cut.elf', Uint8Array.from([0x7f, 0x45, 0x4c, 0x46, 2, 1]))], 'without a whole header'],
    ['a list that is none', () => [file('bad.txt', '0x1000: 01 2\n')], 'not an even number of hex digits'],
    ['bytes given twice', () => [file('twice.txt', '0x1000: 0102\n0x1001: 03\n')], '0x1001 is given already, in line 1'],
  ])('refuse %s', (_what, names, why) => {
    expect(refused(() => openImages(names())).join()).toContain(why);
  });

  it('report every bad line of a list', () => {
    expect(refused(() => parseByteList('0x0: 00\nzebra\n0x8 12\n', 'list'))).toEqual(['2: "zebra" is not 0xADDRESS: hex bytes', '3: "0x8 12" is not 0xADDRESS: hex bytes']);
  });
});

describe('register values', () => {
  it('come as YAML; FRCD as one number of 128 bits or two of 64', () => {
    const values = parseRegisterYaml('CAP: 0x01d2078c222f0606 # comment\nGSTS: 0xc4000000\nHAW: 46\nFRCD0: 0x80000159800_06a0800007ffff7fbb000\n'.replace('_', ''), 'registers.yaml');
    expect(Object.fromEntries(values)).toEqual({ CAP: 0x01d2078c222f0606n, GSTS: 0xc400_0000n, HAW: 46n, FRCD0_LO: 0x0000_7fff_f7fb_b000n, FRCD0_HI: 0x8000_0159_8000_6a08n });
  });

  it.each([
    ['RTADR: 0x1000', 'unknown register "RTADR"; did you mean "RTADDR"?'],
    ['GSTS: 0x100000000', 'has 32 bits'],
    ['CAP: lots', 'expects a number'],
    ['CAP: -1', 'expects a number'],
    ['HAW: 60', '32 to 52 bits'],
    ['CAP: 1\nCAP: 2', 'YAML: Map keys must be unique'],
    ['- CAP', 'map of names and values'],
    ['', 'map of names and values'],
    ['CAP: { a: 1 }', 'lines of a name and a value'],
    ['['.repeat(500_000), 'lines of a name and a value'],
  ])('refuse %s', (text, why) => {
    expect(refused(() => parseRegisterYaml(text, 'registers.yaml')).join()).toContain(why);
  });

  const regset = 'IOMMU: dmar0 Register Base Address: fed90000\nName\t\t\tOffset\t\tContents\nVER             \t0x00\t\t0x0000000000000010\nRTADDR          \t0x20\t\t0x0000000103027000\nMTRR_PHYSBASE0  \t0x180\t\t0x0000000000000000\n\nIOMMU: dmar1 Register Base Address: fed91000\nName\t\t\tOffset\t\tContents\nRTADDR          \t0x20\t\t0x0000000103028000\n';

  it('come from iommu_regset, of the unit that is asked for', () => {
    expect(parseRegset(regset, 'regset', 'dmar0').get('RTADDR')).toBe(0x1_0302_7000n);
    expect(parseRegset(regset, 'regset', 'dmar1').get('RTADDR')).toBe(0x1_0302_8000n);
    expect(refused(() => parseRegset(regset, 'regset'))[0]).toContain('--unit chooses one of dmar0, dmar1');
    expect(refused(() => parseRegset(regset, 'regset', 'dmar2'))[0]).toContain('unknown unit "dmar2"');
    expect(readRegisters(file('regset.txt', regset), 'dmar1').get('RTADDR')).toBe(0x1_0302_8000n);
  });

  it('come from the raw register page; FRO says where the fault records are (11.4.2)', () => {
    const view = new DataView(new ArrayBuffer(4096));
    view.setBigUint64(8, 0x01d2_078c_222f_0606n, true);
    view.setBigUint64(0x10, 0x0003_cd9a_e400_0fc7n, true);
    view.setUint32(0x1c, 0x8000_0000, true);
    view.setBigUint64(0x228, 0x8000_0159_8000_6a08n, true);
    const values = readRegisters(file('page.bin', new Uint8Array(view.buffer)));
    expect([values.get('GSTS'), values.get('FRCD0_HI'), values.has('FRCD7_HI'), values.has('FRCD8_HI')]).toEqual([0x8000_0000n, 0x8000_0159_8000_6a08n, true, false]);
  });

  it('refuse a page that is no register page', () => {
    expect(refused(() => parseRegisterWindow(new Uint8Array(4096), 'page'))[0]).toContain('has no CAP');
    expect(refused(() => parseRegisterWindow(new Uint8Array(4096).fill(0xff), 'page'))[0]).toContain('all ones');
    expect(refused(() => parseRegisterWindow(new Uint8Array(100), 'page'))[0]).toContain('4096 bytes');
  });
});
