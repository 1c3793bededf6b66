/** README.md shows what happens: its commands, its output, its topology and its test are run here. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { vfiosim } from '../cli/vfiosim.js';
import { blocksOf, ROOT, textOf } from './blocks.js';

const README = 'README.md';
const directory = mkdtempSync(join(tmpdir(), 'vfiosim-readme-'));
const generated = join(ROOT, 'out', 'readme-block.ts');
afterAll(() => {
  rmSync(directory, { recursive: true });
  rmSync(generated, { force: true });
});

const commands = blocksOf(README, 'sh').map((block) => block.trim());
const [topology] = blocksOf(README, 'yaml');
const [test] = blocksOf(README, 'ts');

describe('README', () => {
  it('gives two commands, the first one with its output', async () => {
    expect(commands).toEqual(['npm ci && npx vfiosim run configs/quickstart.yaml', 'npm ci && npm test']);
    const { code, out } = await vfiosim('run', join(ROOT, 'configs/quickstart.yaml'));
    expect(code).toBe(0);
    if (process.env['UPDATE_GOLDEN'] === '1') writeFileSync(join(ROOT, README), textOf(README).replace(/^```text\n[^]*?^```$/m, `\`\`\`text\n${out}\`\`\``));
    expect(blocksOf(README, 'text')).toEqual([out]);
  });

  it('shows a topology of about ten lines that passes', async () => {
    expect(topology!.split('\n').length).toBeLessThanOrEqual(12);
    const file = join(directory, 'readme.yaml');
    writeFileSync(file, topology!);
    expect(await vfiosim('check', file)).toEqual({ code: 0, out: `${file}: ok (1 device, 1 process)\n`, err: '' });
    expect((await vfiosim('run', file)).out).toMatch(/\nPASS\n$/);
  });

  it('names every command and no other', async () => {
    const { out } = await vfiosim('--help');
    const real = new Set([...out.split('Commands:\n')[1]!.matchAll(/^ {2}([a-z]+) /gm)].map(([, name]) => name));
    real.delete('help');
    expect(new Set([...textOf(README).matchAll(/^\| `vfiosim ([a-z]+)/gm)].map(([, name]) => name))).toEqual(real);
  });
});

// the block's own test becomes one of this file's
mkdirSync(join(ROOT, 'out'), { recursive: true });
writeFileSync(generated, test!.replace("'vfiosim'", "'../harness/index.js'").replace("'vfiosim/vitest'", "'../harness/vitest.js'"));
describe('the test in README', async () => {
  await import(generated);
});
