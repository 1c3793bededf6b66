/** The command: folders on several threads, exit codes, what is printed. */
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gunzipSync } from 'node:zlib';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { ioFor } from '../../cli/io.js';
import { main } from '../../cli/main.js';
import { replayFiles } from '../../harness/replay/worker-pool.js';

const VECTORS = fileURLToPath(new URL('../vectors', import.meta.url));
const QUICKSTART = fileURLToPath(new URL('../../configs/write-to-read-only.yaml', import.meta.url));

async function command(...argv: string[]): Promise<{ code: number; out: string; err: string }> {
  let out = '', err = '';
  const stream = (take: (text: string) => void) => ({ write: (text: string) => (take(text), true), once: () => undefined });
  const code = await main(argv, ioFor(stream((text) => { out += text; }), stream((text) => { err += text; }), { NO_COLOR: '1' }));
  return { code, out, err };
}

interface Json {
  readonly verdict: string;
  readonly reports: { readonly file: string; readonly agreements: number; readonly disagreements: unknown[]; readonly known: unknown[] }[];
}

describe('vfiosim replay', () => {
  let folder = '';
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), 'vfiosim-replay-'));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  it('replays a folder on several threads with the result of one', async () => {
    const seen: number[] = [];
    const two = await replayFiles([VECTORS], { threads: 2, onProgress: (done, total) => seen.push(done * 100 + total) });
    const one = await replayFiles([VECTORS], { threads: 1 });
    expect(two).toEqual(one);
    expect(two.reports).toHaveLength(20);
    expect(seen).toEqual(Array.from({ length: 20 }, (_, i) => (i + 1) * 100 + 20));
    expect([two.problems, two.outdated]).toEqual([[], []]);
  });

  it('prints a line per file and a verdict, exit 0', async () => {
    const { code, out, err } = await command('replay', join(VECTORS, 'vtd-qi-s1.json.gz'), join(VECTORS, 'vtd-stale-s1.json.gz'));
    expect([code, err]).toEqual([0, '']);
    expect(out).toMatch(/vtd-qi-s1\.json\.gz +│ +441 │ +26 │ +167 │ +71 │ +0 │ +253 │ +0 │ +11 │ +0 │ +0 │/);
    expect(out).toContain('2 files, 587 checks: AGREE');
    expect(out).not.toContain('not modelled');
    expect(out).not.toContain('known: IQH');
    const verbose = await command('replay', '-v', join(VECTORS, 'vtd-qi-s1.json.gz'), join(VECTORS, 'vtd-stale-s1.json.gz'));
    expect(verbose.out).toContain('step 210 (mmioRead) known: IQH (0x80)\n  expected 0x40\n  got      0x70\n  IQE stops fetching only while it is set.');
    expect(verbose.out).toContain('the file answers from its cache');
  });

  it('a difference is printed with its walk, exit 1; a list that explains it makes it known', async () => {
    const vector = JSON.parse(gunzipSync(readFileSync(join(VECTORS, 'vtd-sm-sl-s1.json.gz'))).toString()) as { steps: { op: string; expect?: { pa?: string } }[] };
    const index = vector.steps.findIndex((step) => step.op === 'dma' && step.expect?.pa !== undefined);
    vector.steps[index]!.expect!.pa = '0x1000';
    const file = join(folder, 'changed.json');
    writeFileSync(file, JSON.stringify(vector));
    const { code, out } = await command('replay', file);
    expect(code).toBe(1);
    expect(out).toContain(`changed.json: step ${index + 1} (dma) disagrees: `);
    expect(out).toMatch(/expected 0x1000\n {2}got {6}0x[0-9a-f]+\n {4}root +0x/);
    expect(out).toContain('1 DISAGREE');
    const list = join(folder, 'known.yaml');
    writeFileSync(list, `version: 1\ndisagreements:\n  - files: { changed.json: [${index + 1}] }\n    does: a test\n    clause: none\n    why: changed by hand\n`);
    expect((await command('replay', '--known', list, file)).code).toBe(0);
    const json = JSON.parse((await command('replay', '--json', '--known', list, file)).out) as Json;
    expect([json.verdict, json.reports[0]!.known.length, json.reports[0]!.disagreements.length]).toEqual(['agree', 1, 0]);
    writeFileSync(list, readFileSync(list, 'utf8').replace(`[${index + 1}]`, `[${index + 1}, 3]`));
    const outdated = await command('replay', '--known', list, file);
    expect([outdated.code, outdated.err]).toEqual([1, `${list}:3:1: changed.json: step 3 does not disagree any more: "a test…"\n`]);
  });

  it('a list beside a folder of files that names one that is not there is out of date, exit 1', async () => {
    const copy = join(folder, 'copy');
    cpSync(VECTORS, copy, { recursive: true, filter: (path) => !path.includes('vtd-qi-sm') && !path.includes('-aw39') && !path.includes('linux') });
    const { code, err } = await command('replay', copy);
    expect(code).toBe(1);
    expect(err).toMatch(/disagreements\.yaml:\d+:1: vtd-qi-sm-s2\.json: there is no such file in this folder\n$/);
  });

  it('bad files are said, one line each, exit 3; good ones are replayed all the same', async () => {
    const bad = join(folder, 'bad');
    cpSync(join(VECTORS, 'vtd-fault-overflow-s1.json.gz'), join(bad, 'a.json.gz'));
    writeFileSync(join(bad, 'amd.json'), JSON.stringify({ format: 'iommu-vector/1', model: 'amd-vi' }));
    writeFileSync(join(bad, 'cut.json.gz'), readFileSync(join(VECTORS, 'vtd-qi-s1.json.gz')).subarray(0, 3000));
    writeFileSync(join(bad, 'other.jsonl'), '{"op":"reset"}\n');
    const { code, out, err } = await command('replay', bad, join(bad, 'none.json'));
    expect(code).toBe(3);
    expect(out).toContain('1 file, 65 checks: AGREE');
    const lines = err.trimEnd().split('\n').map((line) => line.replaceAll(`${bad}/`, ''));
    expect(lines).toEqual(expect.arrayContaining(['none.json: no such file', 'amd.json: model: amd-vi is not modelled yet', 'cut.json.gz: the gzip data end early: the file is truncated']));
    expect(lines.some((line) => line.startsWith('other.jsonl'))).toBe(true);
    expect((await command('replay')).code).toBe(2);
    expect((await command('replay', folder, '--known', join(folder, 'no.yaml'))).code).toBe(3);
  });

  it('replays what `run --record` wrote, plain and packed', async () => {
    for (const name of ['recording.json', 'recording.json.gz']) {
      const file = join(folder, name);
      expect((await command('run', QUICKSTART, '--record', file)).code).toBe(0);
      const { code, out } = await command('replay', file);
      expect([code, /checks: AGREE/.test(out)]).toEqual([0, true]);
    }
    expect(gunzipSync(readFileSync(join(folder, 'recording.json.gz'))).equals(readFileSync(join(folder, 'recording.json')))).toBe(true);
    const refused = await command('run', QUICKSTART, '--record', join(folder, 'none', 'x.json'));
    expect([refused.code, refused.err]).toEqual([2, `--record: ${join(folder, 'none', 'x.json')} cannot be written: no such directory\n`]);
  });
});
