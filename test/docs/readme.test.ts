/** README.md shows what happens: its commands, its output, its topology and its test are run here. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { vfiosim } from '../cli/vfiosim.js';
import { blocksOf, commandsOf, comparedOutputs, needsVirtualMachine, ROOT, textOf } from './blocks.js';

const README = 'README.md';
const directory = mkdtempSync(join(tmpdir(), 'vfiosim-readme-'));
const generated = join(ROOT, 'out', 'readme-block.ts');
afterAll(() => {
  rmSync(directory, { recursive: true });
  rmSync(generated, { force: true });
});

const commands = blocksOf(README, 'sh').map((block) => block.trim());
const topologies = blocksOf(README, 'yaml');
const [test] = blocksOf(README, 'ts');

describe('README', () => {
  it('begins with two commands, and shows what its commands print', async () => {
    expect(commands.slice(0, 2)).toEqual(['npm ci && npx vfiosim run configs/quickstart.yaml', 'npm ci && npm test']);
    const { shown, real } = await comparedOutputs(README);
    expect(shown).toEqual(real);
    const booted = commandsOf(README).filter(({ command, output }) => output !== undefined && needsVirtualMachine(command));
    expect(booted).toHaveLength(1);
    expect(shown.length + booted.length).toBe(blocksOf(README, 'text').length);
  });

  it.each([[0, 12, '1 device, 1 process'], [1, 18, '1 device, 1 mediated device, 1 guest, 1 process']])('shows topologies of a few lines that pass: %i', async (at, lines, parts) => {
    const topology = topologies[at]!;
    expect(topology.split('\n').length).toBeLessThanOrEqual(lines);
    const file = join(directory, 'readme.yaml');
    writeFileSync(file, topology);
    expect(await vfiosim('check', file)).toEqual({ code: 0, out: `${file}: ok (${parts})\n`, err: '' });
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
