/** What is wrong with a file is said with its place, at once, and nothing runs. */
import { mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { gzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { parseKnownList } from '../../harness/replay/report-known.js';
import { readJsonText } from '../../harness/replay/vector-file.js';
import { parseVector } from '../../harness/replay/vector-read.js';
import { InvalidInput, formatProblems } from '../../harness/topology/problems.js';

function problemsOf(action: () => unknown): string[] {
  try {
    action();
  } catch (error) {
    if (error instanceof InvalidInput) return formatProblems(error.problems);
    throw error;
  }
  return [];
}

const SOUND = {
  format: 'iommu-vector/2', name: 'v', source: 'a test', model: 'intel-vtd',
  registers: [{ offset: '0x0', size: 4, value: '0x60' }, { offset: '0x8', size: 8, value: '0x1d2008c222f0406' }, { offset: '0x10', size: 8, value: '0x4ee4f00fc7' }],
  properties: { ram: [['0x0', '0x100000']], hostAddressWidth: 46 },
};

function withSteps(...steps: unknown[]): () => unknown {
  return () => parseVector(JSON.stringify({ ...SOUND, steps }), 'v.json');
}

const DMA = { op: 'dma', requester: '0000:00:03.0', pasid: null, iova: '0x1000', access: 'read', length: 4, expect: { fault: true } };

describe('steps of a vector', () => {
  it('a sound one is taken', () => {
    expect(problemsOf(withSteps(DMA, { op: 'mem', at: '0x1000', hex: 'ff00' }, { op: 'pageRequest', requester: '0000:6a:01.0', pasid: 1, iova: '0x7ff000', rights: 'rw', last: true, group: 3 }))).toEqual([]);
  });

  it.each([
    [{ ...DMA, iova: '0xzz' }, 'v.json: step 1 (dma): iova: "0xzz" is no hex number such as "0x1f00"'],
    [{ ...DMA, iova: 4096 }, 'v.json: step 1 (dma): iova: 4096 is no hex number such as "0x1f00"'],
    [{ ...DMA, iova: '0x1ffff000000000000' }, 'v.json: step 1 (dma): iova: "0x1ffff000000000000" is no hex number such as "0x1f00"'],
    [{ ...DMA, requester: '00:03.0' }, 'v.json: step 1 (dma): requester: "00:03.0" is no requester such as "0000:00:03.0"'],
    [{ ...DMA, requester: '0001:00:03.0' }, 'v.json: step 1 (dma): requester: "0001:00:03.0": a unit serves one segment, and that is 0000'],
    [{ ...DMA, pasid: 2 ** 20 }, 'v.json: step 1 (dma): pasid: 1048576 is no whole number from 0 to 1048575'],
    [{ ...DMA, acess: 'read' }, 'v.json: step 1 (dma): unknown key "acess"; did you mean "access"?'],
    [{ ...DMA, iova: '0x1ffe' }, 'v.json: step 1 (dma): length: the access crosses a page'],
    [{ ...DMA, expect: { fault: true, pa: '0x1000' } }, 'v.json: step 1 (dma): expect: expects either "pa", or "fault": true'],
    [{ ...DMA, expect: {} }, 'v.json: step 1 (dma): expect: expects either "pa", or "fault": true'],
    [{ op: 'mem', at: '0xffffe', hex: 'ffffffff' }, 'v.json: step 1 (mem): at: 4 bytes at 0xffffe are not inside properties.ram'],
    [{ op: 'mem', at: '0x0', hex: 'fff' }, 'v.json: step 1 (mem): hex: "fff" is no sequence of bytes such as "00ff"'],
    [{ op: 'memExpect', at: '0x0', hex: 'ffff', mask: 'ff' }, 'v.json: step 1 (memExpect): mask: has 1 bytes, hex has 2'],
    [{ op: 'mmioRead', offset: '0x34', size: 3, expect: '0x0' }, 'v.json: step 1 (mmioRead): size: 3 is not one of 1, 2, 4, 8'],
    [{ op: 'mmioWrite', offset: '0x34', size: 4, value: '0x100000000' }, 'v.json: step 1 (mmioWrite): value: 0x100000000 has more than 32 bits'],
    [{ op: 'translate', requester: '0000:00:03.0', iova: '0x0', expect: { pa: '0x0', pages: 1, rights: 'wr' } }, 'v.json: step 1 (translate): expect: rights: "wr" is not made of the letters r, w, x, p, g, u in this order'],
    [{ op: 'interruptRequest', requester: '0000:00:03.0', address: '0xfee00018', data: '0x0', expect: {} }, 'v.json: step 1 (interruptRequest): expect: expects either "address" and "data", or "fault": true'],
    [{ op: 'interruptRequest', requester: '0000:00:03.0', address: '0xfee00018', data: '0x100000000', expect: { fault: true } }, 'v.json: step 1 (interruptRequest): data: 0x100000000 has more than 32 bits'],
    [{ op: 'dmaa' }, 'v.json: step 1: unknown op "dmaa"; did you mean "dma"?'],
    [17, 'v.json: step 1: 17 is no object'],
    [null, 'v.json: step 1: null is no object'],
  ])('%j', (step, problem) => {
    expect(problemsOf(withSteps(step))[0]).toContain(problem);
  });

  it('names the step, and every problem', () => {
    const bad = { ...DMA, iova: 'x', access: 'execute' };
    expect(problemsOf(withSteps(DMA, bad, bad)).map((line) => line.split(' is ')[0])).toEqual([
      'v.json: step 2 (dma): iova: "x"', 'v.json: step 2 (dma): access: "execute"', 'v.json: step 3 (dma): iova: "x"', 'v.json: step 3 (dma): access: "execute"',
    ]);
  });

  it('stops after many, so that a file of nonsense is refused fast', () => {
    const problems = problemsOf(withSteps(...Array.from({ length: 100_000 }, () => ({ op: 'x' }))));
    expect(problems).toHaveLength(51);
    expect(problems.at(-1)).toBe('… and 150 more');
  });

  it('time does not go backwards', () => {
    expect(problemsOf(withSteps({ ...DMA, t: 5 }, { ...DMA, t: 4 }))).toEqual(['v.json: step 2 (dma): t: 4 is before 5, the time of an earlier step']);
  });
});

describe('a vector as a whole', () => {
  const parse = (change: object): (() => unknown) => () => parseVector(JSON.stringify({ ...SOUND, steps: [], ...change }), 'v.json');

  it.each([
    [{ format: 'iommu-vector/3' }, 'v.json: format: "iommu-vector/3" is not one of "iommu-vector/1", "iommu-vector/2"'],
    [{ format: undefined }, 'v.json: is no vector: there is no "format"'],
    [{ model: 'amd-vi' }, 'v.json: model: amd-vi is not modelled yet'],
    [{ model: 'riscv-iommu' }, 'v.json: model: riscv-iommu is not modelled yet'],
    [{ model: 'intel-vtx' }, 'v.json: model: "intel-vtx" is no known model; modelled: "intel-vtd"'],
    [{ steps: {} }, 'v.json: steps: {} is no list'],
    [{ step: [] }, 'v.json: unknown key "step"; did you mean "steps"?'],
    [{ registers: [] }, 'v.json: registers: VER (offset 0x0, size 4) is missing: the model is configured from it'],
    [{ properties: { ram: [['0x0', '0x1001']], hostAddressWidth: 46 } }, 'v.json: properties: ram: range 1 is not aligned to 4 KiB'],
    [{ properties: { ram: [['0x2000', '0x1000']], hostAddressWidth: 46 } }, 'v.json: properties: ram: range 1 is empty, or not above the one before it'],
    [{ properties: { ram: [[0, 4096]], hostAddressWidth: 46 } }, 'v.json: properties: ram: range 1: start: 0 is no hex number such as "0x1f00"'],
    [{ properties: { ram: [], hostAddressWidth: 65 } }, 'v.json: properties: hostAddressWidth: 65 is no whole number from 32 to 52'],
    [{ properties: { ram: [], hostAddressWidth: 46, iotlbEntries: 100 } }, 'v.json: properties: iotlbEntries: 100 is neither 0 nor a power of two from 4 to 65536'],
  ])('%j', (change, problem) => {
    expect(problemsOf(parse(change))[0]).toContain(problem);
  });

  it('format 1 has only its own operations', () => {
    expect(problemsOf(() => parseVector(JSON.stringify({ ...SOUND, format: 'iommu-vector/1', steps: [{ op: 'translate' }] }), 'v.json'))[0]).toContain('step 1: unknown op "translate"');
  });

  it.each([
    ['[1, 2]', 'v.json: is no vector: the outermost value is no object'],
    ['{"format": "iommu-vector/2", "steps": [{"op": "m', 'v.json: the JSON ends early, after 48 characters: the file is truncated'],
  ])('%s', (text, problem) => {
    expect(problemsOf(() => parseVector(text, 'v.json'))).toEqual([problem]);
  });

  it('text that is no JSON', () => {
    expect(problemsOf(() => parseVector('{"format": "iommu-vector/2",\n "name": oops}', 'v.json'))[0]).toMatch(/^v\.json(:2:10)?: is no JSON: Unexpected token/);
  });
});

describe('files', () => {
  let folder = '';
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'vfiosim-vectors-'));
  });
  afterAll(() => rmSync(folder, { recursive: true }));
  const file = (name: string, bytes: string | Uint8Array): string => {
    writeFileSync(join(folder, name), bytes);
    return join(folder, name);
  };
  const refusal = (path: string): string[] => problemsOf(() => readJsonText(path)).map((line) => line.replace(`${folder}/`, ''));

  it('plain and packed ones are read by what is in them', () => {
    const text = JSON.stringify(SOUND);
    expect(readJsonText(file('plain.gz', text))).toBe(text);
    expect(readJsonText(file('packed.json', gzipSync(text)))).toBe(text);
  });

  it('truncated, damaged and empty ones are refused', () => {
    const packed = gzipSync(JSON.stringify(SOUND));
    expect(refusal(file('cut.json.gz', packed.subarray(0, packed.length - 20)))).toEqual(['cut.json.gz: the gzip data end early: the file is truncated']);
    const damaged = Uint8Array.from(packed);
    damaged[40] = damaged[40]! ^ 0xff;
    expect(refusal(file('damaged.json.gz', damaged))[0]).toMatch(/^damaged\.json\.gz: the gzip data are damaged/);
    expect(refusal(file('empty.json', ''))).toEqual(['empty.json: is empty']);
    expect(refusal(file('empty.json.gz', gzipSync('')))).toEqual(['empty.json.gz: is empty']);
    expect(refusal(join(folder, 'none.json'))).toEqual(['none.json: no such file']);
    expect(refusal(folder)[0]).toContain('is no file');
  });

  it('100 MB of noise is refused after its first bytes', () => {
    const noise = new Uint8Array(4096).fill(0xa7);
    const path = file('noise.json', noise);
    truncateSync(path, 100_000_000);
    expect(refusal(path)).toEqual(['noise.json: is neither JSON nor gzip']);
    expect(refusal(file('noise.json.gz', gzipSync(noise)))).toEqual(['noise.json.gz: holds no JSON']);
  });

  it('what is larger than the limit, or unpacks to more, is refused', () => {
    expect(problemsOf(() => readJsonText(file('bomb.json.gz', gzipSync(new Uint8Array(3 * 2 ** 20))), 2 ** 20))[0]).toContain('bomb.json.gz: unpacks to more than 1 MiB');
    const path = file('huge.json', '{}');
    truncateSync(path, 300 * 2 ** 20);
    expect(refusal(path)).toEqual(['huge.json: has 300 MiB; the limit is 256 MiB']);
  });
});

describe('lists of known disagreements', () => {
  const entry = 'version: 1\ndisagreements:\n  - files: { a.json: [3] }\n    does: x\n    clause: "1.1"\n    why: y\n';

  it('a sound one is read', () => {
    expect(parseKnownList(entry, 'k.yaml').entries).toEqual([{ files: [{ file: 'a.json', steps: [3], line: 3 }], does: 'x', clause: '1.1', why: 'y' }]);
    expect(parseKnownList('version: 1\ndisagreements: []\n', 'k.yaml').entries).toEqual([]);
  });

  it.each([
    ['version: 2\ndisagreements: []\n', 'k.yaml:1:1: version: expected "version: 1"'],
    ['version: 1\n', 'k.yaml:1:1: disagreements: expected a list'],
    [entry.replace('why: y', 'wy: y'), 'k.yaml:6:5: disagreements[0]: unknown key "wy"; did you mean "why"?'],
    [entry.replace('[3]', '[three]'), 'k.yaml:3:14: disagreements[0].files: expected a list of step numbers'],
    [entry.replace('does: x', 'does: ""'), 'k.yaml:3:5: disagreements[0].does: expected a text'],
    ['a: [', 'k.yaml:1:5: '],
  ])('%j', (text, problem) => {
    expect(problemsOf(() => parseKnownList(text, 'k.yaml'))[0]).toContain(problem);
  });
});
