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
import { loadTopology } from '../../harness/topology/load.js';
import type { Topology } from '../../harness/topology/schema.js';
import { DEFAULT_TIMING, Timing } from '../../host/timing.js';
import { VtdUnit } from '../../iommu/intel-vtd/hardware/unit.js';
import { buildCapabilities } from '../../iommu/intel-vtd/spec/capabilities.js';
import { FSTS_IQE, FSTS_ITE, GCMD_QIE, REG } from '../../iommu/intel-vtd/spec/registers.js';
import { VirtualClock } from '../../sim/clock.js';
import { Ram } from '../../sim/memory.js';
import { Random } from '../../sim/random.js';
import { Trace } from '../../sim/trace.js';

const CONFIGS = fileURLToPath(new URL('../../configs/', import.meta.url));
/** Those with an IOMMU and a device behind it. */
const FILES = readdirSync(CONFIGS).filter((file) => file.endsWith('.yaml') && translates(loadTopology(CONFIGS + file).topology.host));

function translates({ iommu, devices }: Topology['host']): boolean {
  return iommu !== undefined && devices.length > 0;
}

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
    expect(report.agreements).toBeGreaterThan(50);
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
    expect(checks['interrupt requests']).toBe(steps.filter(({ op }) => op === 'interruptRequest').length);
    expect(checks['page responses']).toBe(requests.filter(({ last }) => last === true).length);
    expect(steps.every(({ op, t }) => op === 'mem' || op === 'delay' || typeof t === 'number')).toBe(true);
  });

  it('without its cache size a recording is replayed with caches and without, and agrees', () => {
    const recording = JSON.parse(record('fork-copy-on-write.yaml')) as { properties: { iotlbEntries?: number } } & Recording;
    delete recording.properties.iotlbEntries;
    expect(replay(recording).disagreements).toEqual([]);
  });

  it('what hardware does by itself, later, is in it too: a time-out, and the queue that goes on after an error (6.5.2.10, 6.5.2.11)', () => {
    const clock = new VirtualClock(), ram = new Ram(0x10_0000), recorder = new VectorRecorder('vfiosim test', 'errors');
    const interrupts: number[] = [];
    const unit = new VtdUnit(recorder.observe({
      name: 'dmar0', capabilities: buildCapabilities().capabilities, memory: ram, clock, timing: new Timing(DEFAULT_TIMING, new Random(7)), trace: new Trace(clock),
      interrupts: { message: (address) => void interrupts.push(address) }, router: { invalidate: () => false, pageResponse: () => false, releaseHeld() {} },
    }, ram.ranges));
    const { window } = recorder.attach(unit);
    const put = (at: number, q0Lo: number, q0Hi: number, q1Lo: number): void => {
      ram.store64(at, q0Lo, q0Hi);
      ram.store64(at + 8, q1Lo, 0);
    };
    window.write(REG.FEADDR, 4, 0xfee0_0000);
    window.write(REG.FECTL, 4, 0);
    window.write(REG.IQA, 8, 0x1000, 0);
    window.write(REG.GCMD, 4, GCMD_QIE);
    // a device-TLB invalidation for a device that is not there; a wait with status 0x77 at 0x2000
    put(0x1000, 3, 0x18, 0);
    put(0x1010, 0x25, 0x77, 0x2000);
    window.write(REG.IQT, 4, 0x20);
    clock.run({ untilNs: 100_000_000 });
    expect(window.read(REG.FSTS, 4)).toBe(FSTS_ITE);
    // the wait was aborted; another one, behind a descriptor that has no type
    window.write(REG.FSTS, 4, FSTS_ITE);
    put(0x1020, 0, 0, 0);
    put(0x1030, 0x25, 0x78, 0x2000);
    window.write(REG.IQT, 4, 0x40);
    clock.run();
    expect(window.read(REG.FSTS, 4)).toBe(FSTS_IQE);
    put(0x1020, 0x25, 0x79, 0x2004);
    window.write(REG.FSTS, 4, FSTS_IQE);
    expect(window.read(REG.IQH, 4)).toBe(0x20);
    clock.run();
    expect([window.read(REG.IQH, 4), ram.load(0x2000, 4), ram.load(0x2004, 4), interrupts.length]).toEqual([0x40, 0x78, 0x79, 2]);
    const text = [...recorder.text()].join('');
    expect(text).toContain('"delay"');
    const report = replay(text);
    expect(report.disagreements).toEqual([]);
    expect(report.checks).toMatchObject({ 'interrupts': 2, 'device-TLB invalidations': 1, 'memory checks': 1 });
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
    expect(disagreements.find(({ op }) => op === 'translate')?.walk?.at(-1)).toMatch(/PASID table entry is not present/);
  });

  it.each([
    ['where a DMA went', 'dma', (step: Record<string, unknown>) => { step['expect'] = { pa: '0x1000' }; }],
    ['where an interrupt of a device went', 'interruptRequest', (step: Record<string, unknown>) => { step['expect'] = { fault: true }; }],
    ['what a translation request was answered', 'translate', (step: Record<string, unknown>) => { step['expect'] = { status: 'UR' }; }],
    ['a register value', 'mmioRead', (step: Record<string, unknown>) => { step['expect'] = '0x12'; }],
    ['bytes that hardware wrote', 'memExpect', (step: Record<string, unknown>) => { step['hex'] = 'ee'.repeat(String(step['hex']).length / 2); }],
    ['the address of an interrupt', 'interrupt', (step: Record<string, unknown>) => { step['address'] = '0xfee01000'; }],
    ['the code of a page response', 'pageResponse', (step: Record<string, unknown>) => { step['code'] = step['code'] === 1 ? 0 : 1; }],
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
    ['vtd.untagged-pasid', 'shared-queues.yaml'],
  ])('%s in %s', (defect, file) => {
    expect(replay(record(file), defect).disagreements.length).toBeGreaterThan(0);
  });
});
