/** The command as a program of its own: exit codes, closed pipes, the same bytes every time. */
import { spawn, spawnSync } from 'node:child_process';
import { describe, expect, it } from 'vitest';
import { config, ROOT } from './vfiosim.js';

const BIN = `${ROOT}bin/vfiosim.mjs`;
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/COLOR/.test(name)));

function run(...argv: string[]): { code: number | null; out: string; err: string } {
  const { status, stdout, stderr } = spawnSync(process.execPath, [BIN, ...argv], { encoding: 'utf8', env, maxBuffer: 1 << 28 });
  return { code: status, out: stdout, err: stderr };
}

/** Exit code of a command whose reader goes away after the first bytes. */
function runIntoClosedPipe(...argv: string[]): Promise<{ code: number | null; err: string }> {
  return new Promise((resolve) => {
    const child = spawn(process.execPath, [BIN, ...argv], { env, stdio: ['ignore', 'pipe', 'pipe'] });
    let err = '';
    child.stderr.on('data', (data: Buffer) => { err += data.toString(); });
    child.stdout.once('data', () => child.stdout.destroy());
    child.on('close', (code) => resolve({ code, err }));
  });
}

describe('the vfiosim program', { timeout: 60_000 }, () => {
  it('runs, exits with the code, and prints the same bytes again', () => {
    const first = run('run', config('quickstart'), '--json');
    expect(first).toMatchObject({ code: 0, err: '' });
    expect(run('run', config('quickstart'), '--json').out).toBe(first.out);
    expect(run('run', 'nowhere.yaml')).toEqual({ code: 3, out: '', err: 'nowhere.yaml: no such file\n' });
  });

  it('is silent when its reader goes away', async () => {
    const { code, err } = await runIntoClosedPipe('run', config('quickstart'), '--trace', '-');
    expect(code).toBe(0);
    expect(err).not.toMatch(/EPIPE|    at /);
  });
});
