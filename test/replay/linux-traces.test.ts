/**
 * Our unit against what another implementation answered to a real Linux: every recorded trace is replayed, and what
 * differs is named line by line. Numbers of checks are written down so that a check that vanishes is noticed.
 */
import { readdirSync } from 'node:fs';
import { describe, expect, it } from 'vitest';
import { replayLinuxTrace } from '../../harness/replay/linux-replay.js';
import type { Disagreement } from '../../harness/replay/report.js';
import { InvalidInput } from '../../harness/topology/problems.js';
import { AGREEMENTS, TRACES, replay, textOf } from './linux-reports.js';

/** Lines that differ, as `line op: expected | got`. */
function texts(differences: readonly Disagreement[]): string[] {
  return differences.map(({ step, op, expected, got }) => `${step} ${op}: ${expected} | ${got}`);
}

/** Listed with their reasons in disagreements.yaml: line, recorded, ours. */
const KNOWN: Readonly<Record<string, readonly string[]>> = {
  'vtd-injected-iqe': ['810 r: 0x1 | 0x3'],
  'vtd-injected-ite': ['1307 r: 0x840 | 0x860', '1309 r: 0x840 | 0x860', '1313 desc: 0x2 | 0x1'],
  'vtd-no-pri': [
    '1198 fault: 0x20 PASID 2 writes 0x7f0e82d18000: 0x81 | 0x20 PASID 2 writes 0x7f0e82d18000: 0x85', '1203 r: 0x80000281 | 0x80000285', '1207 r: 0x281 | 0x285',
  ],
};

describe('traces of Linux agree with our unit', () => {
  it('every trace in the folder is replayed', () => {
    const traces = readdirSync(TRACES).filter((file) => file.endsWith('.jsonl.gz')).map((file) => file.replace('.jsonl.gz', ''));
    expect(traces.toSorted()).toEqual(Object.keys(AGREEMENTS).toSorted());
  });

  it.each(Object.keys(AGREEMENTS))('%s', (trace) => {
    const report = replay(trace);
    expect(texts(report.disagreements)).toEqual([]);
    expect(texts(report.known)).toEqual(KNOWN[trace] ?? []);
    expect(report.agreements).toBe(AGREEMENTS[trace]);
    expect(report.unsupported).toEqual([]);
    expect(report.notModelled).toEqual([]);
    const checks = Object.values(report.checks).reduce((sum, count) => sum + count, 0);
    expect(checks).toBe(report.agreements + report.known.length + report.stale.length);
  });

  it('a refused invalidation that Linux does not repeat leaves the old translation in the IOTLB (vtd-injected-iqe)', () => {
    const { stale } = replay('vtd-injected-iqe');
    expect(stale.map(({ step }) => step)).toEqual(Array.from({ length: 32 }, (_, i) => 819 + i));
    expect(stale[0]).toEqual({
      step: 819, what: '0x18 writes 0xfffa0000', side: 'model', expected: '0x3180000', got: '0x3160000',
      why: 'used in line 770, and no invalidation of domain 4 that covers it was executed since: the one in line 805 was refused',
    });
    // the only trace with anything stale
    for (const trace of Object.keys(AGREEMENTS)) if (trace !== 'vtd-injected-iqe') expect(replay(trace).stale).toEqual([]);
  });

  it('counts what it compares by kind', () => {
    expect(replay('vtd-scalable-dsa-sva').checks).toEqual({
      'dma': 712, 'register reads': 76, 'descriptors': 78, 'descriptor fields': 78, 'status words': 37, 'translation enabled': 1, 'table walks': 2,
      'translation requests': 6, 'page requests': 12, 'messages': 7, 'page responses': 6, 'faults': 1,
    });
  });
});

describe('a replay fails when the unit is wrong', () => {
  it.each([
    ['vtd.skip-iotlb-flush', 'vtd-scalable-strict', 'dma_w', 100],
    ['vtd.skip-iotlb-flush', 'vtd-legacy-nvme', 'dma_w', 100],
    ['vtd.skip-device-tlb-flush', 'vtd-scalable-dsa-sva', 'page_request', 1],
    ['vtd.lose-page-response', 'vtd-scalable-dsa-sva', 'page_response', 6],
    ['vtd.wrong-group-index', 'vtd-scalable-dsa-sva', 'page_response', 6],
  ])('%s shows in %s', (defect, trace, op, count) => {
    const found = replay(trace, defect).disagreements;
    expect(found).toHaveLength(count);
    expect(found.some((each) => each.op === op)).toBe(true);
  });

  it('beyond a hundred disagreements only their number is kept', () => {
    const { disagreements, remarks, agreements, checks } = replay('vtd-scalable-strict', 'vtd.skip-iotlb-flush');
    expect(disagreements).toHaveLength(100);
    const more = Number(/^(\d+) more disagreements$/.exec(remarks.at(-1)!)?.[1]);
    expect(agreements + 100 + more).toBe(Object.values(checks).reduce((sum, count) => sum + count, 0));
  });

  it('a recorded value that is changed is found in its line', () => {
    const lines = textOf('vtd-scalable-dsa-sva').split('\n');
    const change = (number: number, from: string, to: string): void => {
      expect(lines[number - 1]).toContain(from);
      lines[number - 1] = lines[number - 1]!.replace(from, to);
    };
    change(104, '0x44000000', '0x4000000');
    change(1167, '0x20', '0x40');
    change(1174, '"resp": 0', '"resp": 1');
    change(1164, '0x21', '0x22');
    change(1297, '0x80000020', '0x80000018');
    change(1163, '"pqt": "0x0"', '"pqt": "0x20"');
    const report = replayLinuxTrace(lines.join('\n'), 'changed');
    expect(report.disagreements.map(({ step }) => step)).toEqual([104, 1163, 1164, 1167, 1174, 1297]);
  });
});

describe('what is no trace is refused with its lines', () => {
  const problems = (text: string): string[] => {
    try {
      replayLinuxTrace(text, 'bad.jsonl');
    } catch (error) {
      if (error instanceof InvalidInput) return error.message.split('\n');
      throw error;
    }
    throw new Error('not refused');
  };

  it('text that is not JSON, lines without op, fields of the wrong kind', () => {
    expect(problems('{"t": 0, "op": "x"}\nnonsense\n[]\n{"t": "soon", "op": "r"}\n{"t": 1, "dev": "iommu", "op": "r", "off": "34", "size": 4, "val": "0x0"}')).toEqual([
      'bad.jsonl:2:1: "nonsense" is not a JSON object', 'bad.jsonl:3:1: "[]" is not a JSON object',
      'bad.jsonl:4:1: a line needs "t" (seconds), "op" (text), and "dev" (text) unless nobody is meant',
      'bad.jsonl:5:1: r: "off" must be a string such as "0x20" of at most 64 bits',
    ]);
  });

  it('a trace of something else', () => {
    expect(problems('{"t": 0.1, "dev": "iommu", "op": "connected"}')).toEqual(['bad.jsonl: no line gives CAP and ECAP ("op": "caps" of "dev": "iommu"): this is no trace of a VT-d unit']);
    expect(problems('')).toHaveLength(1);
  });
});
