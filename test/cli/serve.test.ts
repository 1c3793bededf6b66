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

it.each([
  ['host: { devices: [ { model: edu, name: edu1, bdf: "00:03.0" } ] }', '', 'host\\.devices'],
  ['host: { iommu: { model: intel-vtd } }', '', 'host\\.iommu'],
  ['processes: [ { name: app, steps: [] } ]', '', 'processes'],
  ['', ', { name: other }', 'guests\\[1\\]'],
])('what is simulated beside an external guest is refused, not forgotten: %s%s', async (more, guest, place) => {
  writeFileSync(file, `version: 1\n${more}\nguests: [ { name: vm, external: { devices: [ { model: edu, name: edu0, bdf: "0000:00:03.0" } ] } }${guest} ]\n`);
  for (const command of ['check', 'serve', 'linux']) {
    expect(await vfiosim(command, file), command).toMatchObject({ code: 3, out: '', err: expect.stringMatching(`${place}.* is simulated, and "vm" is an external guest.*either`) as string });
  }
});

it('two guests whose sockets would have one name are refused', async () => {
  const guest = (name: string, device: string): string => `{ name: ${name}, external: { devices: [ { model: edu, name: ${device}, bdf: "0000:00:03.0" } ] } }`;
  writeFileSync(file, `version: 1\nguests: [ ${guest('a', 'b-c')}, ${guest('a-b', 'c')} ]\n`);
  expect(await vfiosim('check', file)).toMatchObject({ code: 3, err: expect.stringContaining('would have the socket a-b-c.sock') as string });
});

it('a recording that cannot be written is said before a guest boots', async () => {
  expect(await vfiosim('serve', file, '--record', join(directory, 'none/x.rec'))).toMatchObject({ code: 2, out: '', err: expect.stringContaining('no such directory') as string });
});
