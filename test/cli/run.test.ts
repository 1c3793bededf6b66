/** `vfiosim run`, `check` and `schema` as people type them. */
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { reportBug, withMachine } from '../../cli/failure.js';
import { main } from '../../cli/main.js';
import type { Summary } from '../../harness/index.js';
import { capture, config, expectGolden, vfiosim } from './vfiosim.js';

const QUICKSTART = config('quickstart');
let directory: string;
beforeAll(() => { directory = mkdtempSync(join(tmpdir(), 'vfiosim-cli-')); });
afterAll(() => { rmSync(directory, { recursive: true }); });

function topology(name: string, text: string): string {
  const file = join(directory, `${name}.yaml`);
  writeFileSync(file, text);
  return file;
}

const DSA = 'host:\n  memory: 1GiB\n  iommu: { model: intel-vtd }\n  devices: [{ model: dsa, name: dsa0, bdf: "6a:01.0" }]\n';

describe('vfiosim run', () => {
  it('prints flows, invariants and the verdict, and nothing else on stderr', async () => {
    const { code, out, err } = await vfiosim('run', QUICKSTART);
    expect(code).toBe(0);
    expect(err).toBe('');
    expect(out).toMatch(/^quickstart {2}seed 1 {2}/);
    expect(out).toContain('│ app/dsa0 │ dsa0   │ ok     │ 1 MiB │');
    expect(out).toContain('leaks: pasids 0, pinnedPages 0, domains 0, frames 0\n');
    expect(out.endsWith('\nPASS\n')).toBe(true);
  });

  it('prints one JSON object, the same for every run', async () => {
    const first = await vfiosim('run', QUICKSTART, '--json');
    expect(first.code).toBe(0);
    expectGolden('run-quickstart.json', first.out);
    expect(await vfiosim('run', '--json', QUICKSTART)).toEqual(first);
    const other = await vfiosim('run', QUICKSTART, '--json', '--seed', '0x7');
    const { seed, traceHash } = JSON.parse(other.out) as Summary;
    expect(seed).toBe(7);
    expect(traceHash).not.toBe((JSON.parse(first.out) as Summary).traceHash);
  });

  it('exits with 1 and says why when a step, a flow or an expectation fails', async () => {
    const file = topology('fails', `version: 1\nname: fails\n${DSA}processes:\n  - name: app\n    steps:\n      - open: { device: dsa0 }\n      - malloc: { name: a, size: 1 }\n      - verify: { buffer: a, value: 1 }\nexpect: { counters: { iommu:sva_bind: 2 } }\n`);
    const { code, out } = await vfiosim('run', file);
    expect(code).toBe(1);
    expect(out).toContain('app/dsa0: step 3 (verify): buffer "a" differs at offset 0x0: 0x00, expected 0x01');
    expect(out).toContain('step failed: app: step 3 (verify)');
    expect(out).toContain('expected: count of iommu:sva_bind is 1, expected 2');
    expect(out.endsWith('\nFAIL\n')).toBe(true);
  });

  it('exits with 3 for a topology whose guest is somebody else\'s, and says what to do with it', async () => {
    const { code, out, err } = await vfiosim('run', config('linux'));
    expect({ code, out }).toEqual({ code: 3, out: '' });
    expect(err).toBe(`${config('linux')}: guests[0].external: "linux" is external: its machine is served and not simulated. vfiosim serve FILE waits for it, vfiosim linux FILE boots a Linux on it\n`);
  });

  it('exits with 42 at a limit and shows who still waits', async () => {
    const file = topology('limit', `version: 1\nname: limit\nlimits: { time: 10us }\nprocesses: [{ name: sleeper, steps: [{ sleep: 1s }] }]\n`);
    const { code, out } = await vfiosim('run', file);
    expect(code).toBe(42);
    expect(out).toContain('sleeper, step 1 (sleep): waits for');
    expect(out.endsWith('\nLIMIT: stopped at the simulated time limit of the topology\n')).toBe(true);
    expect((JSON.parse((await vfiosim('run', file, '--json')).out) as Summary).verdict).toBe('limit');
  });

  it('exits with 42 too when the machine does not get through its boot', async () => {
    const file = topology('boot', `version: 1\nname: boot\nlimits: { events: 10 }\n${DSA}`);
    const { code, out } = await vfiosim('run', file);
    expect(code).toBe(42);
    expect(out.endsWith('\nLIMIT: stopped at the event limit of the topology\n')).toBe(true);
    expect(await vfiosim('lspci', file)).toEqual({ code: 42, out: '', err: `${file}: boot did not end before the event limit of the topology\n` });
  });

  it('reports a device that is unplugged twice', async () => {
    const file = topology('twice', `version: 1\nname: twice\n${DSA}processes: [{ name: app, steps: [{ open: { device: dsa0 } }, { sleep: 100us }] }]\ninject: [{ at: 10us, unplug: dsa0 }, { at: 11us, unplug: dsa0 }]\n`);
    const { code, out } = await vfiosim('run', file);
    expect(code).toBe(1);
    expect(out).toContain('step failed: inject unplug dsa0: -ENODEV: dsa0 is not there');
  });

  it('writes the trace: NDJSON to stdout with the summary on stderr, a file for Perfetto', async () => {
    const { code, out, err } = await vfiosim('run', QUICKSTART, '--trace', '-');
    expect(code).toBe(0);
    const records = out.trimEnd().split('\n').map((line) => JSON.parse(line) as { i: number; t: number; kind: string });
    expect(records.map(({ i }) => i)).toEqual(records.map((_, i) => i));
    expect(records.filter(({ kind }) => kind === 'pci:page_request').length).toBe(514);
    expect(err).toContain('PASS');
    const file = join(directory, 'trace.json');
    expect((await vfiosim('run', QUICKSTART, '--trace', file)).code).toBe(0);
    const { traceEvents } = JSON.parse(readFileSync(file, 'utf8')) as { traceEvents: { ph: string; ts?: number }[] };
    expect(traceEvents.length).toBeGreaterThan(records.length);
    expect((await vfiosim('run', QUICKSTART, '--trace', join(directory, 'trace.ndjson'))).code).toBe(0);
    expect(readFileSync(join(directory, 'trace.ndjson'), 'utf8')).toBe(out);
  });

  it.each([
    ['a directory that is not there', '/nonexistent/x', '--trace: /nonexistent/x cannot be written: no such directory\n'],
    ['a directory', '/', '--trace: / cannot be written: is a directory\n'],
  ])('says at once that a trace cannot be written to %s', async (_, file, message) => {
    expect(await vfiosim('run', QUICKSTART, '--trace', file)).toEqual({ code: 2, out: '', err: message });
  });

  it('stops at a time and shows tasks, what they wait for and the last records', async () => {
    const { code, out } = await vfiosim('run', QUICKSTART, '--until', '50us');
    expect(code).toBe(0);
    const lines = out.split('\n');
    expect(lines[2]).toMatch(/^stopped at 50 µs, event \d+$/);
    expect(out).toContain('\n  app, step 5 (wait): waits for ');
    expect(out).toContain('\n  dmar0-prq: waits for page requests of dmar0\n');
    expect(lines[lines.indexOf('last records') + 1]).toMatch(/^ {2}\[ {3}0\.0000\d+\] [a-z_]+:[a-z_]+: /);
    expect(out).not.toContain('leaks:');
    expect(out.endsWith('\nSTOPPED where asked\n')).toBe(true);
  });

  it('stops at the Nth record of a kind', async () => {
    const { code, out } = await vfiosim('run', QUICKSTART, '--break', 'pci:page_request:3', '--json');
    expect(code).toBe(0);
    const { end, counters, state } = JSON.parse(out) as Summary & { state: { tasks: { name: string; step: string }[]; records: string[] } };
    expect(end).toBe('stopped');
    expect(counters['pci:page_request']).toBe(3);
    expect(state.records.at(-1)).toMatch(/ (pci:page_request|vtd:page_request): /);
    expect(state.tasks.find(({ name }) => name === 'app')?.step).toBe('step 4 (submit)');
  });

  it('says when the place was not reached', async () => {
    const { code, err } = await vfiosim('run', QUICKSTART, '--break', 'vtd:prq_overflow');
    expect({ code, err }).toEqual({ code: 0, err: 'the run ended before vtd:prq_overflow\n' });
  });

  it('prints the kernel log on stderr', async () => {
    const { out, err } = await vfiosim('run', QUICKSTART, '--log', '--json');
    expect(err).toMatch(/^\[ *-?\d+\.\d{6}\] /);
    expect(() => { JSON.parse(out); }).not.toThrow();
  });

  it.each([
    [['run', QUICKSTART, '--break', 'pci:page_reqest'], '--break: unknown event "pci:page_reqest"; did you mean "pci:page_request"?\n'],
    [['run', QUICKSTART, '--until', '100'], '--until: "100" is no place in a run; allowed: a time such as 120us, event:N, fault:K, before-teardown\n'],
    [['run', QUICKSTART, '--until', '1us', '--break', 'mm:page_fault'], '--until and --break exclude each other\n'],
    [['run', QUICKSTART, '--json', '--trace', '-'], '--json and --trace - both write to stdout\n'],
    [['run', QUICKSTART, '--seed', '-1'], "error: option '--seed <n>' argument '-1' is invalid. expects a whole number from 0 to 4294967295.\n(vfiosim --help lists the commands)\n"],
    [['run', QUICKSTART, '--sed', '1'], "error: unknown option '--sed'\n(Did you mean --seed?)\n(vfiosim --help lists the commands)\n"],
    [['run'], "error: missing required argument 'file'\n(vfiosim --help lists the commands)\n"],
    [['rnu', QUICKSTART], "error: unknown command 'rnu'\n(Did you mean run?)\n(vfiosim --help lists the commands)\n"],
    [['run', QUICKSTART, QUICKSTART], "error: too many arguments for 'run'. Expected 1 argument but got 2.\n(vfiosim --help lists the commands)\n"],
  ])('refuses %j as wrong usage', async (argv, message) => {
    expect(await vfiosim(...argv)).toEqual({ code: 2, out: '', err: message });
  });

  it('refuses a topology with every problem and its place', async () => {
    const file = topology('bad', 'version: 1\nhost:\n  memry: 1GiB\nsed: 1\n');
    expect(await vfiosim('run', file)).toEqual({
      code: 3, out: '',
      err: `${file}:3:3: host: unknown key "memry"; did you mean "memory"? Allowed: memory, iommu, kernel, ports, devices, mdev-parents\n${file}:4:1: unknown key "sed"; did you mean "seed"? Allowed: version, name, description, seed, host, mdevs, guests, processes, inject, expect, timing, limits\n`,
    });
    const missing = join(directory, 'none.yaml');
    expect(await vfiosim('run', missing)).toEqual({ code: 3, out: '', err: `${missing}: no such file\n` });
  });

  it.each([
    ['more lines than anybody reads', '- a\n'.repeat(1_000_000), /: more than 120000 lines, keys and list items; /],
    ['a map of 300,000 keys', Array.from({ length: 300_000 }, (_, i) => `k${i}: 1\n`).join(''), /: more than 120000 lines/],
    ['20,000 unknown keys', `version: 1\n${Array.from({ length: 20_000 }, (_, i) => `k${i}: 1\n`).join('')}`, /:2:1: unknown key "k0"[^]*… and 19950 more\n$/],
    ['brackets', '{}'.repeat(1_000_000), /: more than 120000 lines/],
    ['zeros', '\u0000'.repeat(4_000_000), /:1:1: the control character U\+0000 is not allowed/],
    ['aliases', `a: &a x\nb: [${'*a,'.repeat(50_000)}]\n`, /: more than 1000 aliases/],
    ['duplicates', `version: 1\nhost: { memory: 1GiB, memory: 2GiB }\n`, /:2:23: YAML: the key "memory" is given twice\n$/],
    ['one endless string', `name: "${'x'.repeat(4_000_000)}`, /: YAML: Missing closing "quote/],
  ])('answers garbage quickly: %s', async (_, text, message) => {
    const { code, err } = await vfiosim('check', topology('garbage', text));
    expect(code).toBe(3);
    expect(err).toMatch(message);
    expect(err).not.toContain('    at ');
  });
});

describe('other commands', () => {
  it('checks every file and goes on after a bad one', async () => {
    const bad = topology('bad2', 'version: 2\n');
    expect(await vfiosim('check', QUICKSTART, bad, config('shared-queues'))).toEqual({
      code: 3, out: `${QUICKSTART}: ok (1 device, 1 process)\n${config('shared-queues')}: ok (1 device, 64 processes)\n`, err: `${bad}:1:10: version: 2 is not allowed; allowed: 1\n`,
    });
  });

  it('prints a JSON Schema', async () => {
    const { code, out } = await vfiosim('schema');
    expect(code).toBe(0);
    expect(JSON.parse(out)).toMatchObject({ title: 'vfiosim topology', type: 'object' });
  });

  it('prints version and help on stdout, help after a mistake on stderr', async () => {
    const { version } = JSON.parse(readFileSync(new URL('../../package.json', import.meta.url), 'utf8')) as { version: string };
    expect(await vfiosim('--version')).toEqual({ code: 0, out: `${version}\n`, err: '' });
    const help = await vfiosim('--help');
    expect({ ...help, out: '' }).toEqual({ code: 0, out: '', err: '' });
    for (const command of ['run', 'check', 'schema', 'lspci', 'inspect', 'mdev']) expect(help.out).toMatch(new RegExp(`^ {2}${command}\\b`, 'm'));
    expect(help.out).toContain('Exit codes: 0 fine');
    const none = await vfiosim();
    expect(none).toMatchObject({ code: 2, out: '' });
    expect(none.err).toContain('Usage: vfiosim');
  });
});

describe('colours', () => {
  const coloured = async (options: Parameters<typeof capture>[0]): Promise<boolean> => {
    const { io, out } = capture(options);
    await main(['run', topology('idle', 'version: 1\n')], io);
    return out.text.includes('\u001b[');
  };

  it('are for terminals, without NO_COLOR', async () => {
    expect(await coloured({ terminal: true })).toBe(true);
    expect(await coloured({ terminal: false })).toBe(false);
    expect(await coloured({ terminal: true, env: { NO_COLOR: '1' } })).toBe(false);
    expect(await coloured({ terminal: true, env: { NO_COLOR: '' } })).toBe(true);
    expect(await coloured({ terminal: true, env: { TERM: 'dumb' } })).toBe(false);
    expect(await coloured({ env: { FORCE_COLOR: '1' } })).toBe(true);
    expect(await coloured({ env: { CI: '1' } })).toBe(false);
  });
});

describe('a bug in the simulator', () => {
  it('is called one, with the seed and the tail of the trace', async () => {
    const { io, out, err } = capture();
    const code = await withMachine(io, QUICKSTART, { seed: 12 }, (machine) => {
      machine.run({ stopAt: { at: 'time', timeNs: 50_000 } });
      throw new Error('two owners of one frame');
    });
    expect(code).toBe(70);
    expect(out.text).toBe('');
    const lines = err.text.split('\n');
    expect(lines[0]).toBe('bug in the simulator: two owners of one frame');
    expect(lines[1]).toMatch(/^topology quickstart, seed 12, at 50000 ns, event \d+; the same seed brings it back$/);
    expect(lines[2]).toBe('the last 20 records of the trace:');
    expect(lines.slice(3, 23).every((line) => /^ {2}\[ *0\.0000\d+\] [a-z_]+:[a-z_]+: /.test(line))).toBe(true);
    expect(err.text).toContain('    at ');
  });

  it('is told without a machine too', () => {
    const { io, err } = capture();
    reportBug(io, 'something thrown', undefined);
    expect(err.text).toBe('bug in the simulator: something thrown\n');
  });
});
