/** What `serve` and `linux` say before anything is served: files, folders and options that will not do. */
import { existsSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { config, vfiosim } from './vfiosim.js';

let directory = '', file = '';
beforeAll(() => {
  directory = mkdtempSync(join(tmpdir(), 'vfiosim-serve-'));
});
beforeEach(() => {
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

  it('takes a simulated machine for what it is, with options for one external guest too', async () => {
    expect((await vfiosim(command, config('quickstart'), '--record', join(directory, 'unmade.rec'))).code).toBe(3);
    expect(existsSync(join(directory, 'unmade.rec'))).toBe(false);
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

it.each([
  ['a device with the name of the IOMMU\'s function', 'iommu: { model: intel-vtd }, devices: [ { model: edu, name: iommu, bdf: "0000:00:03.0" } ]', '', /devices\[0\]\.name: "iommu" is the function that carries/],
  ['a time to start', 'devices: [ { model: edu, name: edu0, bdf: "0000:00:03.0" } ]', 'start: 1ms, ', /start: "vm" is external/],
  ['a container', 'devices: [ { model: edu, name: edu0, bdf: "0000:00:03.0" } ]', 'container: nesting, ', /container: "vm" is external/],
])('%s is refused for an external guest', async (_what, external, more, said) => {
  writeFileSync(file, `version: 1\nguests: [ { name: vm, ${more}external: { ${external} } } ]\n`);
  const { code, err } = await vfiosim('check', file);
  expect({ code, err }).toEqual({ code: 3, err: expect.stringMatching(said) as string });
});

it('a device of a host beside an external guest is refused, not forgotten', async () => {
  writeFileSync(file, 'version: 1\nhost: { devices: [ { model: edu, name: edu1, bdf: "00:03.0" } ] }\nguests: [ { name: vm, external: { devices: [ { model: edu, name: edu0, bdf: "0000:00:03.0" } ] } } ]\n');
  expect(await vfiosim('serve', file)).toMatchObject({ code: 3, err: expect.stringContaining('device "edu1" of the host') as string });
});

it('a recording that cannot be written is said before a guest boots', async () => {
  expect(await vfiosim('serve', file, '--record', join(directory, 'none/x.rec'))).toMatchObject({ code: 2, out: '', err: expect.stringContaining('no such directory') as string });
});
