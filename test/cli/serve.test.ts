/** What `serve` and `linux` say before anything is served: files, folders and options that will not do. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { config, vfiosim } from './vfiosim.js';

let directory = '', file = '';
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'vfiosim-serve-'));
  file = join(directory, 'guest.yaml');
  writeFileSync(file, 'version: 1\nguests: [ { name: vm, external: { devices: [ { model: edu, name: edu0, bdf: "0000:00:03.0" } ] } } ]\n');
});
afterAll(() => rmSync(directory, { recursive: true }));

describe.each(['serve', 'linux'])('vfiosim %s', (command) => {
  it('says first that a file has no external guest, whatever else is missing', async () => {
    const { code, out, err } = await vfiosim(command, config('quickstart'), ...(command === 'linux' ? ['--guest', '/nowhere'] : ['--dir', directory]));
    expect({ code, out }).toEqual({ code: 3, out: '' });
    expect(err).toMatch(/quickstart\.yaml: has no external guest: .*`vfiosim run`/);
  });

  it('says what a folder of a prepared guest lacks, and how to make one', async () => {
    const { code, out, err } = await vfiosim(command, file, '--guest', join(directory, 'none'));
    expect({ code, out }).toEqual({ code: 1, out: '' });
    expect(err).toMatch(/none does not exist;[^]*\nRun, on a Debian, once .*harness\/linux\/prepare/);
  });
});

it('a folder of sockets that cannot be made is wrong usage', async () => {
  expect(await vfiosim('serve', file, '--dir', join(file, 'below'))).toMatchObject({ code: 2, out: '', err: expect.stringContaining('cannot be made: ENOTDIR') as string });
});

it('a recording that cannot be written is said before a guest boots', async () => {
  expect(await vfiosim('serve', file, '--record', join(directory, 'none/x.rec'))).toMatchObject({ code: 2, out: '', err: expect.stringContaining('no such directory') as string });
});
