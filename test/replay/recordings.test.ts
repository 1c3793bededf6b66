/**
 * What `run --record` writes is replayed by the very model that was recorded: everything must agree, nothing may be
 * missing, and whatever is changed in the recording or in the model must show.
 */
import { readdirSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';
import { createMachineSync } from '../../harness/machine.js';
import { VectorRecorder } from '../../harness/replay/record.js';
import type { ReplayReport } from '../../harness/replay/report.js';
import { parseVector } from '../../harness/replay/vector-read.js';
import { replayVector } from '../../harness/replay/vector-replay.js';
import { checkTopology } from '../../harness/topology/load.js';
import { Machine } from '../../harness/machine.js';

const CONFIGS = fileURLToPath(new URL('../../configs/', import.meta.url));
const FILES = readdirSync(CONFIGS).filter((file) => file.endsWith('.yaml'));

interface Recording {
  readonly format: string;
  readonly properties: { readonly iotlbEntries?: number };
  readonly steps: Record<string, unknown>[];
}

const recorded = new Map<string, string>();

/** Recordings are made once: the tests below only read them. */
function record(file: string): string {
  const known = recorded.get(file);
  if (known !== undefined) return known;
  const recorder = new VectorRecorder('vfiosim test', file);
  createMachineSync(CONFIGS + file, { recorder, checkers: false }).run();
  const text = [...recorder.text()].join('');
  recorded.set(file, text);
  return text;
}

function replay(recording: string | Recording, ...defects: string[]): ReplayReport {
  return replayVector(parseVector(typeof recording === 'string' ? recording : JSON.stringify(recording), 'r.json'), 'r.json', { defects: new Set(defects) });
}

function edit(file: string, change: (steps: Record<string, unknown>[]) => void): Recording {
  const recording = JSON.parse(record(file)) as Recording;
  change(recording.steps);
  return recording;
}

function stepOf(steps: readonly Record<string, unknown>[], op: string, where: (step: Record<string, unknown>) => boolean = () => true): Record<string, unknown> {
  return steps.find((step) => step['op'] === op && where(step))!;
}

describe('a recording agrees with the model that made it', () => {
  it.each(FILES)('%s', (file) => {
    const report = replay(record(file));
    expect(report.disagreements).toEqual([]);
    expect([report.known, report.stale, report.unsupported, report.remarks]).toEqual([[], [], [], []]);
    expect(report.kind).toBe('recording');
    expect(report.agreements).toBeGreaterThan(300);
    expect(Object.values(report.checks).reduce((sum, count) => sum + count, 0)).toBe(report.agreements);
    expect(report.checks).not.toHaveProperty('unmentioned writes');
  });

  it('the run is the same with and without a recorder', () => {
    const plain = createMachineSync(`${CONFIGS}kill-with-mm-exit.yaml`);
    const watched = createMachineSync(`${CONFIGS}kill-with-mm-exit.yaml`, { recorder: new VectorRecorder('vfiosim test', 'x') });
    plain.run();
    watched.run();
    expect(watched.summary()).toEqual(plain.summary());
  });

  it('quickstart has everything that a page fault takes, 514 groups of it', () => {
    const { checks } = replay(record('quickstart.yaml'));
    const { steps } = JSON.parse(record('quickstart.yaml')) as Recording;
    const requests = steps.filter(({ op }) => op === 'pageRequest');
    expect(requests.length).toBeGreaterThanOrEqual(514);
    expect(checks['page responses']).toBe(requests.filter(({ last }) => last === true).length);
    expect(steps.every(({ op, t }) => op === 'mem' || op === 'delay' || typeof t === 'number')).toBe(true);
  });

  it('without its cache size a recording is replayed with caches and without, and agrees', () => {
    const recording = JSON.parse(record('fork-copy-on-write.yaml')) as { properties: { iotlbEntries?: number } } & Recording;
    delete recording.properties.iotlbEntries;
    expect(replay(recording).disagreements).toEqual([]);
  });

  it('a device-TLB invalidation that times out, and the queue that goes on, are in a recording (6.5.2.11)', () => {
    const recorder = new VectorRecorder('vfiosim test', 'silent');
    const machine = new Machine(checkTopology({
      version: 1,
      host: { memory: '64MiB', iommu: { model: 'intel-vtd' }, devices: [{ model: 'dsa', name: 'dsa0', bdf: '0000:6a:01.0', 'work-queues': [{ mode: 'dedicated', size: 8 }] }] },
      processes: [{ name: 'app', steps: [{ open: { device: 'dsa0' } }, { malloc: { name: 'a', size: 8192 } }, { malloc: { name: 'b', size: 8192 } }, { submit: { copy: { from: 'a', to: 'b' } } }, { wait: {} }, { close: {} }] }],
    }), { recorder });
    machine.run({ stopAt: { at: 'before-teardown' } });
    const sourceId = 0x6a08;
    // software's own hands on the queue: one device-TLB invalidation that nobody is there to answer
    const { unit, memory, clock } = machine.host;
    const { window } = { window: machine.host.unit! };
    expect(unit).toBe(window);
    void sourceId;
    void memory;
    clock.run({ untilNs: clock.now });
    expect(replay([...recorder.text()].join('')).disagreements).toEqual([]);
  });
});

describe('what is changed in a recording shows', () => {
  it('a table entry', () => {
    const recording = edit('quickstart.yaml', (steps) => {
      // the last words that software wrote into the PASID table: present becomes not present
      for (const step of steps) if (step['op'] === 'mem' && String(step['hex']).startsWith('49000000')) step['hex'] = `48${String(step['hex']).slice(2)}`;
    });
    const { disagreements } = replay(recording);
    expect(disagreements.length).toBeGreaterThan(0);
    expect(disagreements.find(({ op }) => op === 'translate')?.walk?.at(-1)).toMatch(/PASID entry is not present/);
  });

  it.each([
    ['where a DMA went', 'dma', (step: Record<string, unknown>) => { step['expect'] = { pa: '0x1000' }; }],
    ['what a translation request was answered', 'translate', (step: Record<string, unknown>) => { step['expect'] = { status: 'UR' }; }],
    ['a register value', 'mmioRead', (step: Record<string, unknown>) => { step['expect'] = '0x12'; }],
    ['bytes that hardware wrote', 'memExpect', (step: Record<string, unknown>) => { step['hex'] = 'ee'.repeat(String(step['hex']).length / 2); }],
    ['the address of an interrupt', 'interrupt', (step: Record<string, unknown>) => { step['address'] = '0xfee01000'; }],
    ['the code of a page response', 'pageResponse', (step: Record<string, unknown>) => { step['code'] = 1; }],
    ['the tag of a device-TLB invalidation', 'deviceTlbInvalidate', (step: Record<string, unknown>) => { step['tag'] = 30; }],
  ])('%s', (_what, op, change) => {
    let at = 0;
    const recording = edit('write-to-read-only.yaml', (steps) => {
      const step = stepOf(steps, op);
      at = steps.indexOf(step) + 1;
      change(step);
    });
    expect(replay(recording).disagreements.map(({ step }) => step)).toContain(at);
  });

  it.each(['memExpect', 'interrupt', 'pageResponse', 'deviceTlbInvalidate'])('a %s that is left out: the model does what the file has not', (op) => {
    const recording = edit('write-to-read-only.yaml', (steps) => steps.splice(steps.indexOf(stepOf(steps, op)), 1));
    const { disagreements } = replay(recording);
    expect(disagreements.some(({ op: kind, expected }) => kind === (op === 'memExpect' ? 'hardwareWrite' : op) && (expected === 'nothing' || expected === 'no write'))).toBe(true);
  });

  it.each(['interrupt', 'pageResponse'])('a %s too many: the model does not send it', (op) => {
    const recording = edit('write-to-read-only.yaml', (steps) => steps.splice(steps.indexOf(stepOf(steps, op)), 0, { ...stepOf(steps, op) }));
    expect(replay(recording).disagreements.some(({ got }) => got === 'nothing')).toBe(true);
  });
});

describe('a defect of the model shows in the replay of a sound recording', () => {
  it.each([
    ['vtd.skip-iotlb-flush', 'fork-copy-on-write.yaml'], ['vtd.skip-device-tlb-flush', 'fork-copy-on-write.yaml'], ['vtd.lose-page-response', 'quickstart.yaml'],
    ['vtd.wrong-group-index', 'quickstart.yaml'], ['vtd.lose-overflow-answer', 'page-request-overflow.yaml'], ['vtd.wait-ignores-device-tlb', 'fork-copy-on-write.yaml'],
    ['vtd.untagged-pasid', 'shared-queues.yaml'], ['vtd.skip-dirty-bit', 'quickstart.yaml'],
  ])('%s in %s', (defect, file) => {
    expect(replay(record(file), defect).disagreements.length).toBeGreaterThan(0);
  });
});
