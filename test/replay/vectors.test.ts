/**
 * The recorded vectors against the model: all agree, but for what disagreements.yaml explains. Numbers of checks are
 * written down, so that a check that vanishes is noticed.
 */
import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { applyKnown, loadKnownList, missingFiles } from '../../harness/replay/report-known.js';
import { disagreementsPage } from '../../harness/replay/report-page.js';
import type { ReplayReport } from '../../harness/replay/report.js';
import { readJsonText } from '../../harness/replay/vector-file.js';
import { parseVector } from '../../harness/replay/vector-read.js';
import { replayVector } from '../../harness/replay/vector-replay.js';

const FOLDER = fileURLToPath(new URL('../vectors/', import.meta.url));
const FILES = readdirSync(FOLDER).filter((file) => file.endsWith('.json.gz'));
const LIST = { ...loadKnownList(`${FOLDER}disagreements.yaml`), file: 'test/vectors/disagreements.yaml' };

function replay(file: string, ...defects: string[]): ReplayReport {
  return replayVector(parseVector(readJsonText(FOLDER + file), file), file, { defects: new Set(defects) });
}

/** DMA, register reads, memory checks, unmentioned writes; then agreements, known, stale. */
const EXPECTED: Readonly<Record<string, readonly number[]>> = {
  'vtd-fault-overflow-s1': [18, 39, 8, 0, 65, 0, 0],
  'vtd-legacy-aw39-s3': [155, 226, 0, 0, 381, 0, 0],
  'vtd-legacy-aw48-s1': [155, 198, 7, 0, 360, 0, 0],
  'vtd-legacy-aw48-s13': [155, 190, 7, 0, 352, 0, 0],
  'vtd-legacy-aw48-s2': [155, 184, 7, 0, 346, 0, 0],
  'vtd-legacy-ctxfaults-aw48-s1': [99, 394, 69, 0, 553, 8, 1],
  'vtd-linux-legacy-s1': [234, 254, 1, 0, 489, 0, 0],
  'vtd-linux-sm-fl-s2': [393, 239, 1, 0, 633, 0, 0],
  'vtd-qi-s1': [26, 167, 71, 0, 253, 11, 0],
  'vtd-qi-sm-s2': [31, 193, 76, 0, 287, 13, 0],
  'vtd-sm-cfgfaults-fl-s2': [115, 466, 108, 3, 689, 3, 0],
  'vtd-sm-cfgfaults-sl-s1': [121, 490, 82, 0, 693, 0, 0],
  'vtd-sm-fl-s1': [171, 290, 151, 1, 612, 1, 0],
  'vtd-sm-fl-s13': [169, 278, 172, 0, 619, 0, 0],
  'vtd-sm-fl-s2': [169, 286, 179, 1, 634, 1, 0],
  'vtd-sm-sl-s1': [171, 266, 6, 0, 443, 0, 0],
  'vtd-sm-sl-s13': [170, 232, 6, 0, 408, 0, 0],
  'vtd-sm-sl-s2': [168, 266, 6, 0, 440, 0, 0],
  'vtd-stale-s1': [138, 185, 0, 0, 289, 0, 34],
  'vtd-stale-sm-s2': [138, 106, 149, 0, 358, 0, 35],
};

describe('recorded vectors agree with the model, with caches and without', () => {
  it('every vector in the folder is replayed, every listed one is in the folder', () => {
    const names = FILES.map((file) => file.replace('.json.gz', ''));
    expect(names.toSorted()).toEqual(Object.keys(EXPECTED).toSorted());
    expect(missingFiles(LIST, new Set(names.map((name) => `${name}.json`)))).toEqual([]);
  });

  it.each(FILES)('%s', (file) => {
    const { report, outdated } = applyKnown(replay(file), LIST);
    expect(report.disagreements).toEqual([]);
    expect(outdated).toEqual([]);
    expect(report.unsupported).toEqual([]);
    expect(report.notModelled).toEqual([]);
    const { DMA = 0, 'register reads': reads = 0, 'memory checks': memory = 0, 'unmentioned writes': writes = 0 } = report.checks;
    expect([DMA, reads, memory, writes, report.agreements, report.known.length, report.stale.length]).toEqual(EXPECTED[file.replace('.json.gz', '')]);
    expect(DMA + reads + memory + writes).toBe(report.agreements + report.known.length + report.stale.length);
  });

  it('what is known is of three kinds: a queue that goes on by itself, a fault that FPD keeps back, and a dirty bit', () => {
    const listed = FILES.filter((file) => LIST.entries.some(({ files }) => files.some((one) => `${one.file}.gz` === file)));
    const known = listed.flatMap((file) => applyKnown(replay(file), LIST).report.known);
    expect(new Set(known.map(({ what }) => what.replace(/0x.*/, '')))).toEqual(new Set(['FSTS (', 'FRCD0_HI (', 'IQH (', 'the model writes 4 bytes at ']));
    for (const { what, expected, got } of known) if (what.startsWith('FSTS')) expect([expected, got]).toEqual(['0x2', '0x0']);
    // the first byte of a leaf: present, writable, user, accessed, and now dirty
    for (const { op, got } of known) if (op === 'hardwareWrite') expect(parseInt(got.slice(0, 2), 16) & 0x67).toBe(0x67);
  });

  it('an answer counts as stale only with the cached entry and the invalidation that is missing', () => {
    const { stale } = replay('vtd-stale-s1.json.gz');
    expect(stale[0]).toEqual({
      step: 79, what: '0000:05:00.0 reads 0x78503713a0', side: 'file', expected: '0x1415833a0', got: '0x10b313a0',
      why: 'IOTLB entry of domain 6, 0x7850371000 → 0x141583000, 1 page; not reached by an IOTLB invalidation (6.5.2.3) since step 77',
    });
    expect(replay('vtd-stale-sm-s2.json.gz').stale[0]?.why).toContain('PASID 0');
    expect(replay('vtd-legacy-ctxfaults-aw48-s1.json.gz').stale[0]?.why).toContain('a context-cache invalidation (6.5.2.1) and an IOTLB invalidation');
  });

  it.each([
    ['vtd.skip-iotlb-flush', 'vtd-stale-sm-s2.json.gz'], ['vtd.ignore-user-bit', 'vtd-sm-fl-s1.json.gz'], ['vtd.skip-dirty-bit', 'vtd-sm-fl-s1.json.gz'],
    ['vtd.ignore-fpd', 'vtd-legacy-ctxfaults-aw48-s1.json.gz'], ['vtd.skip-pasid-cache-flush', 'vtd-sm-cfgfaults-fl-s2.json.gz'],
  ])('the defect %s shows in %s', (defect, file) => {
    const { report } = applyKnown(replay(file, defect), LIST);
    expect(report.disagreements.length).toBeGreaterThan(0);
  });

  it('a DMA that differs comes with the walk that led there, and says which replay differs', () => {
    const [first] = replay('vtd-sm-fl-s1.json.gz', 'vtd.ignore-user-bit').disagreements.filter(({ op }) => op === 'dma');
    expect(first?.expected).toBe('fault');
    expect(first?.walk?.[0]).toMatch(/^root +0x[0-9a-f]+ +[0-9a-f]{16} [0-9a-f]{16} +LP=1/);
    expect(replay('vtd-stale-sm-s2.json.gz', 'vtd.skip-iotlb-flush').disagreements[0]).toMatchObject({ step: 96, expected: 'fault', got: '0x1418ecfd0', caches: 'on' });
  });

  it('the page about disagreements is what the list makes (vitest -u writes it)', async () => {
    await expect(disagreementsPage(LIST, '`npx vitest run test/replay/vectors.test.ts -u`')).toMatchFileSnapshot('../../docs/disagreements.md');
  });
});
