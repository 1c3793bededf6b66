import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadTopology, parseTopology, checkTopology } from '../../harness/topology/load.js';
import { formatProblems, InvalidInput } from '../../harness/topology/problems.js';
import { topologyJsonSchema } from '../../harness/topology/schema.js';

function problems(text: string): string[] {
  try {
    parseTopology(text, 't.yaml', '.');
  } catch (error) {
    if (error instanceof InvalidInput) return formatProblems(error.problems);
    throw error;
  }
  return [];
}

const DEVICE = (rest: string): string => `version: 1\nhost:\n  iommu: { model: intel-vtd }\n  devices:\n    - { model: dsa, name: dsa0, bdf: "6a:01.0"${rest} }\n`;

describe('topology files', () => {
  let directory: string;
  beforeAll(() => { directory = mkdtempSync(join(tmpdir(), 'topology-')); });
  afterAll(() => { rmSync(directory, { recursive: true }); });

  it.each([
    ['an unknown key', 'version: 1\nhost:\n  memry: 1GiB\n', ['t.yaml:3:3: host: unknown key "memry"; did you mean "memory"? Allowed: memory, iommu, kernel, ports, devices, mdev-parents']],
    ['a negative size', 'version: 1\nhost: { memory: -4096 }\n', ['t.yaml:2:17: host.memory: -4096 (negative) is not a size such as 4096, "64KiB" or "4GiB"']],
    ['a PASID width of 21', 'version: 1\nhost:\n  iommu: { model: intel-vtd, pasid-bits: 21 }\n', ['t.yaml:3:42: host.iommu.pasid-bits: 21 is too large; allowed: at most 20']],
    ['PRI without ATS', DEVICE(', ats: false'), ['t.yaml:5:7: host.devices[0].pri: page requests (PRI) need ats: true']],
    ['a duplicate BDF', `${DEVICE('')}    - { model: edu, name: edu0, bdf: "0000:6a:01.0" }\n`, ['t.yaml:6:38: host.devices[1].bdf: "0000:6a:01.0" is taken by host.devices[0]']],
    ['an unknown model', 'version: 1\nhost: { devices: [{ model: dsb, name: x, bdf: "6a:01.0" }] }\n', ['t.yaml:2:28: host.devices[0].model: unknown value "dsb"; did you mean "dsa"? Allowed: dsa, edu, nvme']],
    ['memory beyond the address width', 'version: 1\nhost: { memory: 32GiB, iommu: { model: intel-vtd, haw: 34 } }\n', ["t.yaml:2:17: host.memory: lies beyond the IOMMU's host address width (haw) of 34 bits"]],
    ['a buffer range beyond its buffer', 'version: 1\nprocesses:\n  - name: p\n    steps:\n      - malloc: { name: b, size: 4KiB }\n      - touch: { buffer: { buffer: b, offset: 4KiB, size: 1 } }\n', ['t.yaml:6:26: processes[0].steps[1].touch.buffer: bytes 4096 to 4097 lie outside "b", which has 4096']],
    ['YAML that does not parse', 'version: 1\nhost: {memory: 1GiB\n', ['t.yaml:3:1: YAML: Flow map in block collection must be sufficiently indented and end with a }']],
    ['a key given twice', 'version: 1\nseed: 1\nseed: 2\n', ['t.yaml:3:1: YAML: the key "seed" is given twice']],
    ['something that is no map', '- 1\n', ['t.yaml:1:1: a topology is a map with at least `version: 1`']],
    ['a list nested 1,000 deep', '['.repeat(1000), ['t.yaml:1:64: nested deeper than 64 levels']],
    ['a map nested 1,000 deep', Array.from({ length: 1000 }, (_, i) => `${' '.repeat(i)}a:`).join('\n'), ['t.yaml:65:65: nested deeper than 64 levels']],
    ['a sequence nested 1,000 deep on one line', `${'- '.repeat(1000)}x`, ['t.yaml:1:1: nested deeper than 64 levels']],
    ['aliases that explode', `a: &a [${'x,'.repeat(50)}]\n${Array.from({ length: 9 }, (_, i) => `b${i}: &b${i} [${`*${i === 0 ? 'a' : `b${i - 1}`},`.repeat(9)}]`).join('\n')}\n`, ['t.yaml:1:1: YAML: Excessive alias count indicates a resource exhaustion attack']],
  ])('point at %s', (_, text, expected) => {
    expect(problems(text)).toEqual(expected);
  });

  it('report every problem, at most 50, then how many more', () => {
    const text = `version: 1\nhost:\n  devices:\n${Array.from({ length: 60 }, (_, i) => `    - { model: edu, name: e${i}, bdf: bad }\n`).join('')}`;
    const lines = problems(text);
    expect(lines).toHaveLength(51);
    expect(lines[0]).toBe('t.yaml:4:36: host.devices[0].bdf: "bad" is not a quoted PCI address such as "0000:6a:01.0"');
    expect(lines[50]).toBe('… and 10 more');
  });

  it('refuse a missing file, a directory and 10 MB of garbage without reading on', () => {
    const big = join(directory, 'big.yaml');
    writeFileSync(big, '\u0007'.repeat(10_000_000));
    const message = (file: string): string => {
      try {
        loadTopology(file);
        return 'loaded';
      } catch (error) {
        return (error as Error).message.replaceAll(directory, 'dir');
      }
    };
    expect(message(join(directory, 'none.yaml'))).toBe('dir/none.yaml: no such file');
    expect(message(directory)).toBe('dir: is a directory, not a file');
    expect(message(big)).toBe('dir/big.yaml: file has 10000000 bytes; a topology has at most 4194304');
  });

  it('survive garbage of allowed size', () => {
    for (const garbage of ['\u0000'.repeat(1000), '%'.repeat(5000), '{}'.repeat(2000), '"'.repeat(999), ': '.repeat(3000), '\t'.repeat(100), '!!js/function x', '&a *a']) {
      expect(problems(garbage).length).toBeGreaterThan(0);
    }
  });

  it('keep integers above 2^53 exact', () => {
    const { topology } = checkTopology({
      version: 1, host: { devices: [{ model: 'dsa', name: 'd', bdf: '6a:01.0' }] },
      processes: [{ name: 'p', steps: [{ open: { device: 'd' } }, { malloc: { name: 'b', size: 4096 } }, { submit: { fill: { buffer: 'b', pattern: '0xfedcba9876543211' } } }] }],
    });
    expect(topology.processes[0]!.steps[2]!.submit!.fill!.pattern).toBe(0xfedc_ba98_7654_3211n);
  });

  it('have a JSON Schema from the same source', () => {
    const schema = topologyJsonSchema() as { properties: Record<string, unknown>; additionalProperties: boolean };
    expect(Object.keys(schema.properties)).toEqual(['version', 'name', 'description', 'seed', 'host', 'mdevs', 'guests', 'processes', 'inject', 'expect', 'timing', 'limits']);
    expect(schema.additionalProperties).toBe(false);
  });
});
