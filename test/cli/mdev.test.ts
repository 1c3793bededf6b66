/** `vfiosim mdev`: mdevctl's words on a topology file. Every test works on a copy. */
import { copyFileSync, lstatSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync, chmodSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, beforeEach, describe, expect, it } from 'vitest';
import { editMdevs } from '../../harness/mdev-text.js';
import { config, expectGolden, vfiosim } from './vfiosim.js';

const uuid = (n: number): string => `83b8f4f2-509f-382f-3c1e-e6bfe0fa100${n}`;
const ONE = 'guest-one-mdev', THREE = 'mdev-removed-under-load', SHARED = 'guests-share-an-accelerator', PINNING = 'guest-vendor-pinning';

let directory: string, file: string;
beforeAll(() => { directory = mkdtempSync(join(tmpdir(), 'vfiosim-mdev-')); });
beforeEach(() => { file = copyOf(THREE); });
afterAll(() => { rmSync(directory, { recursive: true }); });

function copyOf(name: string): string {
  const copy = join(directory, `${name}.yaml`);
  rmSync(copy, { force: true });
  copyFileSync(config(name), copy);
  return copy;
}

function topology(name: string, text: string): string {
  const path = join(directory, `${name}.yaml`);
  writeFileSync(path, text);
  return path;
}

const text = (path = file): string => readFileSync(path, 'utf8');
const mdev = (verb: string, ...argv: string[]) => vfiosim('mdev', verb, file, ...argv);

/** What was printed, of a command that went well. */
async function went(verb: string, ...argv: string[]): Promise<string> {
  const { code, out, err } = await mdev(verb, ...argv);
  expect({ code, err }).toEqual({ code: 0, err: '' });
  return out;
}

/** Lines that have changed: `- old`, `+ new`. */
function changes(before: string, after: string): string[] {
  const [old, now] = [before.split('\n'), after.split('\n')];
  return [...old.filter((line) => !now.includes(line)).map((line) => `- ${line.trim()}`), ...now.filter((line) => !old.includes(line)).map((line) => `+ ${line.trim()}`)];
}

const HOST = 'host:\n  iommu: { model: intel-vtd }\n  devices:\n    - { model: dsa, name: dsa0, bdf: "6a:01.0", work-queues: [ { type: mdev }, { type: mdev } ] }\n';

describe('mdev types and list', () => {
  it('print as mdevctl does', async () => {
    file = copyOf(SHARED);
    expectGolden('mdev-types.txt', await went('types'));
    expectGolden('mdev-types.json', await went('types', '--dumpjson'));
    file = copyOf(THREE);
    expectGolden('mdev-list.txt', await went('list'));
    expectGolden('mdev-list-defined.txt', await went('list', '-d', '-v'));
    expectGolden('mdev-list-defined.json', await went('list', '--defined', '--dumpjson'));
  });

  it('select by parent, by its name or BDF, and by UUID or name of the device', async () => {
    file = copyOf(PINNING);
    expect(await went('types', '-p', 'mtty0')).toBe(await went('types'));
    expect(await went('list', '-p', 'mtty0', '-u', 'serial0')).toBe(`${uuid(1)} mtty0 mtty-2 auto (defined)\n`);
    file = copyOf(THREE);
    const all = await went('list', '-d');
    for (const parent of ['dsa0', '0000:6a:01.0', '6a:01.0']) expect(await went('list', '-d', '-p', parent)).toBe(all);
    expect(await went('list', '-d', '-u', 'slice2')).toBe(`${uuid(3)} 0000:6a:01.0 idxd-1dwq-v1 manual\n`);
    expect(await went('list', '-u', 'slice2')).toBe('');
    expect(await went('list', '-u', uuid(3).toUpperCase(), '--dumpjson')).toBe('[]\n');
  });

  it('print nothing where there is nothing', async () => {
    file = topology('empty', 'version: 1\n');
    for (const verb of ['types', 'list']) expect([await went(verb), await went(verb, '--dumpjson')]).toEqual(['', '[]\n']);
  });
});

describe('mdev start and stop', () => {
  it('change what is there at boot, and nothing but that word', async () => {
    const before = text();
    await went('stop', '-u', uuid(1));
    expect(changes(before, text())).toEqual([
      `- - { uuid: ${uuid(1)}, name: slice0, parent: dsa0, mdev_type: idxd-1dwq-v1 }`, `+ - { uuid: ${uuid(1)}, name: slice0, parent: dsa0, mdev_type: idxd-1dwq-v1, start: manual }`,
    ]);
    expect(await went('list')).toBe(`${uuid(2)} 0000:6a:01.0 idxd-1dwq-v1 auto (defined)\n`);
    await went('start', '-u', 'slice2');
    expect(await went('list', '-u', 'slice2')).toBe(`${uuid(3)} 0000:6a:01.0 idxd-1dwq-v1 auto (defined)\n`);
    expect(changes(before, text()).filter((line) => line.startsWith('+'))).toHaveLength(2);
  });

  it('start what is fully said, and print the UUID that nobody gave', async () => {
    await went('stop', '-u', 'slice0');
    const started = await went('start', '-p', 'dsa0', '-t', 'idxd-1dwq-v1');
    expect(started).toMatch(/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\n$/);
    expect(text()).toContain(`  - { uuid: ${started.trim()}, parent: dsa0, mdev_type: idxd-1dwq-v1, start: auto }\n`);
  });

  it('keep the attributes of the file that they start from', async () => {
    file = copyOf(PINNING);
    const json = topology('definition', JSON.stringify({ mdev_type: 'mtty-1', start: 'manual', attrs: [] }));
    await went('start', '-u', uuid(7), '-p', 'mtty0', '--jsonfile', json);
    expect(await went('list', '-d', '-u', uuid(7))).toBe(`${uuid(7)} mtty0 mtty-1 auto (active)\n`);
  });

  it.each([
    [['start', '-u', uuid(3)], 'No available instances of idxd-1dwq-v1 on 0000:6a:01.0'],
    [['start', '-u', 'slice0'], 'Device already exists'],
    [['start', '-u', uuid(9)], 'Device is insufficiently specified'],
    [['start', '-p', 'dsa0', '-t', 'idxd-9'], 'Parent 0000:6a:01.0 does not support mdev type idxd-9'],
    [['stop', '-u', 'slice2'], `Device ${uuid(3)} is not active`],
  ])('%j is refused, and the file stays', async ([verb, ...argv], message) => {
    const before = text();
    expect(await mdev(verb!, ...argv)).toEqual({ code: 1, out: '', err: `${message}\n` });
    expect(text()).toBe(before);
  });

  it('says what the kernel said about an attribute, and does not start the device', async () => {
    file = copyOf(PINNING);
    await went('define', '-u', uuid(7), '-p', 'mtty0', '-t', 'mtty-1');
    await went('modify', '-u', uuid(7), '--addattr', 'vendor/sample_mdev_dev', '--value', '1');
    const before = text();
    const { code, out, err } = await mdev('start', '-u', uuid(7));
    expect({ code, out }).toEqual({ code: 1, out: '' });
    expect(err).toMatch(/^Failed to write 1 to attribute vendor\/sample_mdev_dev: -EACCES: /);
    expect(text()).toBe(before);
  });
});

describe('mdev define, undefine and modify', () => {
  it('add, change and remove a definition', async () => {
    const before = text();
    await went('define', '-u', uuid(9), '-p', '6a:01.0', '-t', 'idxd-1dwq-v1');
    expect(changes(before, text())).toEqual([`+ - { uuid: ${uuid(9)}, parent: dsa0, mdev_type: idxd-1dwq-v1, start: manual }`]);
    await went('modify', '-u', uuid(9), '--addattr', 'second', '--value', '2');
    await went('modify', '-u', uuid(9), '--addattr', 'first', '--value', '1', '-i', '0');
    expect(await went('list', '-d', '-v', '-u', uuid(9))).toBe(`${uuid(9)} 0000:6a:01.0 idxd-1dwq-v1 manual\n  Attrs:\n    @{0}: {"first":"1"}\n    @{1}: {"second":"2"}\n`);
    await went('modify', '-u', uuid(9), '--delattr');
    await went('modify', '-u', uuid(9), '--delattr', '--index', '0');
    expect(changes(before, text())).toEqual([`+ - { uuid: ${uuid(9)}, parent: dsa0, mdev_type: idxd-1dwq-v1, start: manual }`]);
    await went('undefine', '-u', uuid(9), '-p', 'dsa0');
    expect(text()).toBe(before);
  });

  it('print the UUID that nobody gave', async () => {
    const out = await went('define', '-p', 'dsa0', '-t', 'idxd-1dwq-v1');
    expect(await went('list', '-d', '-u', out.trim())).toContain(out.trim());
  });

  it('take back what list --dumpjson printed', async () => {
    file = copyOf(PINNING);
    await went('define', '-u', uuid(7), '-p', 'mtty0', '-t', 'mtty-1');
    await went('modify', '-u', uuid(7), '--addattr', 'name', '--value', 'a "quoted" value');
    const [before, json] = [text(), await went('list', '-d', '-u', uuid(7), '--dumpjson')];
    const dumped = topology('dumped', json);
    await went('undefine', '-u', uuid(7));
    await went('define', '-u', uuid(7), '-p', 'mtty0', '--jsonfile', dumped);
    expect(await went('list', '-d', '-u', uuid(7), '--dumpjson')).toBe(json);
    await went('modify', '-u', uuid(7), '-p', 'mtty0', '--jsonfile', topology('other', json.replace('manual', 'auto').replace('mtty-1', 'mtty-2')));
    expect(await went('list', '-d', '-u', uuid(7))).toContain('mtty0 mtty-2 auto');
    await went('modify', '-u', uuid(7), '-p', 'mtty0', '--jsonfile', dumped);
    expect(await went('list', '-d', '-u', uuid(7), '--dumpjson')).toBe(json);
    expect(before).toContain('quoted');
  });

  it.each([
    [['define', '-u', uuid(1), '-p', 'dsa0', '-t', 'idxd-1dwq-v1'], `Device ${uuid(1)} on 0000:6a:01.0 already defined`],
    [['define', '-u', uuid(9), '-p', 'dsa0'], 'No type specified'],
    [['define', '-u', uuid(9)], 'No parent specified'],
    [['undefine', '-u', uuid(9)], 'No devices match the specified uuid'],
    [['modify', '-u', uuid(9), '--auto'], `Mediated device ${uuid(9)} is not defined`],
    [['modify', '-u', 'slice0', '--delattr', '-i', '3'], `Attribute index 3 is invalid\nDevice ${uuid(1)} has no attributes`],
  ])('%j is refused, and the file stays', async ([verb, ...argv], message) => {
    const before = text();
    expect(await mdev(verb!, ...argv)).toEqual({ code: 1, out: '', err: `${message}\n` });
    expect(text()).toBe(before);
  });

  it.each([
    ['a device that a guest has', ONE, ['undefine', '-u', 'slice0'], /guests\[0\]\.devices\[0\]\.mdev: unknown mediated device "slice0"/],
    ['a type that the parent has no queue for', THREE, ['define', '-p', 'dsa0', '-t', 'idxd-1swq-v1'], /mdevs\[3\]\.mdev_type: needs a shared work queue of type mdev on "dsa0", which has none/],
    ['more at boot than there are', THREE, ['define', '-p', 'dsa0', '-t', 'idxd-1dwq-v1', '--auto'], /mdevs\[3\]\.mdev_type: "dsa0" has 2 instance\(s\) of idxd-1dwq-v1, and all are taken/],
    ['a parent that cannot be one', 'quickstart', ['define', '-p', 'dsa0', '-t', 'idxd-1dwq-v1'], /mdevs\[0\]\.mdev_type: needs a dedicated work queue/],
  ])('do not write a file that would be no topology: %s', async (_, name, [verb, ...argv], message) => {
    file = copyOf(name);
    const data = join(directory, 'data');
    try { symlinkSync(config('x').replace('x.yaml', 'data'), data); } catch { /* it is there */ }
    const before = text();
    const { code, out, err } = await mdev(verb!, ...argv);
    expect({ code, out }).toEqual({ code: 3, out: '' });
    expect(err).toMatch(message);
    expect(err.split('\n')[0]).toBe(`${file} stays as it is, because it would become invalid:`);
    expect(text()).toBe(before);
  });

  it('shows every mistake of a definition file with its place', async () => {
    const json = topology('bad', '{\n  "mdev_type": 7,\n  "start": "later"\n}\n');
    const { code, err } = await mdev('define', '-p', 'dsa0', '--jsonfile', json);
    expect(code).toBe(3);
    expect(err.trimEnd().split('\n').map((line) => line.slice(json.length))).toEqual([expect.stringMatching(/^:2:16: mdev_type: /) as string, expect.stringMatching(/^:3:12: start: /) as string]);
  });
});

describe('options that do not go together', () => {
  const conflict = (one: string, other: string): string => `error: option '${one}' cannot be used with option '${other}'\n(vfiosim --help lists the commands)\n`;
  const [TYPE, AUTO, JSONFILE] = ['-t, --type <type>', '-a, --auto', '--jsonfile <file>'];

  it.each([
    [['define', '-p', 'dsa0', '--jsonfile', 'x', '-t', 'y'], conflict(JSONFILE, TYPE)],
    [['define', '-p', 'dsa0', '--jsonfile', 'x', '-a'], conflict(JSONFILE, AUTO)],
    [['start', '-p', 'dsa0', '--jsonfile', 'x', '-t', 'y'], conflict(JSONFILE, TYPE)],
    [['modify', '-u', uuid(1), '-a', '-m'], conflict('-m, --manual', AUTO)],
    [['modify', '-u', uuid(1), '--addattr', 'x', '--value', '1', '--delattr'], conflict('--addattr <name>', '--delattr')],
    ...([['-t', 'y', TYPE], ['--value', 'y', '--value <text>'], ['-i', '1', '-i, --index <n>'], ['--addattr', 'y', '--addattr <name>']] as const)
      .map(([flag, value, name]) => [['modify', '-u', uuid(1), '--jsonfile', 'x', flag, value], conflict(JSONFILE, name)] as [string[], string]),
    [['modify', '-u', uuid(1), '--addattr', 'x'], '--addattr needs --value\n'],
    [['modify', '-u', uuid(1), '--value', 'x'], '--value needs --addattr\n'],
    [['modify', '-u', uuid(1), '--index', '1', '--auto'], '--index needs --addattr or --delattr\n'],
    [['modify', '-u', uuid(1)], 'mdev modify needs one of --type, --auto, --manual, --addattr, --delattr, --jsonfile\n'],
    [['modify', '-u', uuid(1), '--delattr', '-i', 'one'], "error: option '-i, --index <n>' argument 'one' is invalid. expects a whole number from 0 to 4294967295.\n(vfiosim --help lists the commands)\n"],
    [['define'], 'mdev define needs --uuid, --parent or both\n'],
    [['start', '-t', 'idxd-1dwq-v1'], 'mdev start needs --uuid, --parent or both\n'],
    [['undefine'], "error: required option '-u, --uuid <uuid>' not specified\n(vfiosim --help lists the commands)\n"],
    [['stop', '-u', uuid(1), '-p', 'dsa0'], "error: unknown option '-p'\n(vfiosim --help lists the commands)\n"],
    [['list', '-u', 'slice9'], '--uuid: "slice9" is no UUID, such as 83b8f4f2-509f-382f-3c1e-e6bfe0fa1001\n'],
    [['list', '-p', 'dsa1'], '--parent: unknown device "dsa1"; did you mean "dsa0"? Allowed: dsa0\n'],
    [['define', '-p', 'dsa0', '--jsonfile', '/nonexistent'], '--jsonfile: /nonexistent cannot be read: no such file\n'],
  ])('%j', async ([verb, ...argv], message) => {
    const before = text();
    expect(await mdev(verb!, ...argv)).toEqual({ code: 2, out: '', err: message });
    expect(text()).toBe(before);
  });

  it('and files that are none, or no topology', async () => {
    file = join(directory, 'none.yaml');
    expect(await mdev('list')).toEqual({ code: 3, out: '', err: `${file}: no such file\n` });
    file = topology('bad', 'version: 2\n');
    expect(await mdev('list')).toMatchObject({ code: 3, out: '' });
    const { code, err } = await vfiosim('mdev');
    expect(code).toBe(2);
    expect(err).toContain('Usage: vfiosim mdev');
    expect((await vfiosim('mdev', '--help')).out).toContain('FILE is the machine at boot');
  });
});

describe('the file', () => {
  const DEFINE = ['-u', uuid(9), '-p', 'dsa0', '-t', 'idxd-1dwq-v1'] as const;
  const LINE = `  - { uuid: ${uuid(9)}, parent: dsa0, mdev_type: idxd-1dwq-v1, start: manual }\n`;

  it('gets its first definition behind host, and looks as before without it', async () => {
    const tail = '# about processes\n\n# and more\nprocesses: []   # none\nseed: 0x00ff\n';
    file = topology('first', `version: 1\n${HOST}\n  # about the host\n\n${tail}`);
    const before = text();
    await went('define', ...DEFINE);
    expect(text()).toBe(before.replace('# and more\n', `mdevs:\n${LINE}# and more\n`));
    await went('undefine', '-u', uuid(9));
    expect(text()).toBe(before);
  });

  it.each([
    ['host comes last', `version: 1\n${HOST}`, `version: 1\n${HOST}mdevs:\n${LINE}`],
    ['the last line does not end', `version: 1\n${HOST.trimEnd()}`, `version: 1\n${HOST}mdevs:\n${LINE}`],
    ['lines end with CR LF', `version: 1\r\n${HOST.replaceAll('\n', '\r\n')}`, `version: 1\r\n${HOST.replaceAll('\n', '\r\n')}mdevs:\r\n${LINE.replaceAll('\n', '\r\n')}`],
    ['the list is there and empty', `version: 1\nmdevs: []\n${HOST}`, `version: 1\nmdevs: [ { uuid: ${uuid(9)}, parent: dsa0, mdev_type: idxd-1dwq-v1, start: manual } ]\n${HOST}`],
  ])('takes a definition when %s', async (_, before, after) => {
    file = topology('place', before);
    await went('define', ...DEFINE);
    expect(text()).toBe(after);
  });

  it('may be JSON, and stays JSON', async () => {
    file = topology('json', JSON.stringify({ version: 1, host: { iommu: { model: 'intel-vtd' }, devices: [{ model: 'dsa', name: 'dsa0', bdf: '6a:01.0', 'work-queues': [{ type: 'mdev' }] }] } }));
    await went('define', ...DEFINE);
    expect(await went('list', '-d')).toContain(uuid(9));
  });

  it('keeps comments, spelling and order of everything else to the byte', async () => {
    const list = `mdevs:\n  # the first\n  - { uuid: ${uuid(1)}, parent: dsa0, mdev_type: idxd-1dwq-v1 } # one\n  - uuid: "${uuid(2)}" # two\n    parent: dsa0\n    mdev_type: idxd-1dwq-v1\n    start: manual # for now\n  # the end\n`;
    file = topology('comments', `version: 1\n${list}\n# behind\nname:   spaced\n${HOST}limits: { events: 0x0010000 }\n`);
    const before = text();
    await went('modify', '-u', uuid(2), '--type', 'idxd-1dwq-v1');
    expect(text()).toBe(before);
    await went('start', '-u', uuid(2));
    expect(text()).toBe(before.replace('start: manual # for now', 'start: auto # for now'));
    await went('stop', '-u', uuid(1));
    expect(text()).toBe(before.replace('start: manual # for now', 'start: auto # for now').replace('idxd-1dwq-v1 } # one', 'idxd-1dwq-v1, start: manual } # one'));
    await went('undefine', '-u', uuid(1));
    expect(text()).toContain('\n# behind\nname:   spaced\n');
    expect(text()).toContain('\n  # the end\n');
    expect(text()).not.toContain('# one');
  });

  it('is replaced as a whole, behind a link and with its mode', async () => {
    const link = join(directory, 'link.yaml');
    rmSync(link, { force: true });
    symlinkSync(file, link);
    chmodSync(file, 0o640);
    const { code } = await vfiosim('mdev', 'define', link, ...DEFINE);
    expect(code).toBe(0);
    expect(lstatSync(link).isSymbolicLink()).toBe(true);
    expect(text()).toContain(uuid(9));
    expect(statSync(file).mode & 0o777).toBe(0o640);
    expect(readdirSync(directory).filter((name) => name.endsWith('.tmp'))).toEqual([]);
  });

  it('keeps anchors', async () => {
    file = topology('anchors', `version: 1\n${HOST}mdevs:\n  - &one { uuid: ${uuid(1)}, parent: dsa0, mdev_type: idxd-1dwq-v1, attrs: &none [] }\n  - { uuid: ${uuid(2)}, parent: dsa0, mdev_type: idxd-1dwq-v1, attrs: *none }\n`);
    await went('stop', '-u', uuid(1));
    expect(text()).toContain(`&one { uuid: ${uuid(1)}, parent: dsa0, mdev_type: idxd-1dwq-v1, attrs: &none [], start: manual }\n`);
    const before = text();
    const { code, err } = await mdev('undefine', '-u', uuid(1));
    expect(code).toBe(3);
    expect(err).toContain('anchor');
    expect(text()).toBe(before);
  });

  it.each([ONE, THREE, SHARED, PINNING, 'quickstart', 'memory-over-commit', 'parent-unplugged-with-guests', 'guest-malicious'])('%s.yaml stays to the byte when nothing changes', (name) => {
    const before = readFileSync(config(name), 'utf8');
    expect(editMdevs(before, () => {})).toBe(before);
  });
});
