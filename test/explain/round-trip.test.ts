/** A machine that ran, written down with `run --dump` and explained from its bytes alone. */
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { existsSync, mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { dumpMachine } from '../../harness/explain/dump.js';
import { explainImage, type ImageReport } from '../../harness/explain/image.js';
import { openImages, type OpenImage } from '../../harness/explain/image-files.js';
import { readRegisters, type RegisterValues } from '../../harness/explain/register-file.js';
import { createMachineSync, type Machine } from '../../harness/machine.js';
import { InvalidInput } from '../../harness/topology/problems.js';
import { main } from '../../cli/main.js';
import { captured } from './capture.js';

const directory = mkdtempSync(join(tmpdir(), 'vfiosim-dump-'));
afterAll(() => rmSync(directory, { recursive: true, force: true }));

describe('a dump of quickstart before teardown', () => {
  let machine: Machine, image: OpenImage, registers: RegisterValues, report: ImageReport;
  beforeAll(() => {
    machine = createMachineSync('configs/quickstart.yaml');
    machine.run({ stopAt: { at: 'before-teardown' } });
    const dumped = dumpMachine(machine.host, join(directory, 'dump'));
    image = openImages([dumped.image]);
    registers = readRegisters(dumped.registers);
    report = explainImage(image.memory, registers);
  });
  afterAll(() => image.close());

  it('takes as much room as what is not zero', () => {
    const { size, blocks } = statSync(join(directory, 'dump', 'memory.img'));
    expect(size).toBe(0x1_4000_0000);
    expect(blocks * 512).toBeLessThan(64 * 2 ** 20);
  });

  it('shows the unit as it is: scalable mode, translation on, root table', () => {
    expect(report.unit).toMatchObject({ mode: 'scalable', translation: true, version: '6.0', hostAddressWidth: 46, unknown: [] });
  });

  it('explains PASID 1 of 6a:01.0 with the pages of the process', () => {
    const device = report.tables.devices.find(({ bdf }) => bdf === '6a:01.0')!;
    expect(device).toMatchObject({ deviceTlb: true, pasidEnable: true, pageRequests: true, problem: undefined });
    const space = device.spaces.find(({ pasid }) => pasid === 1)!;
    expect(space).toMatchObject({ type: 'first-level', problem: undefined });
    const mapping = report.tables.mappings.get(space.mapping!)!;
    const mapped = new Set(mapping.ranges.flatMap(({ page, pages }) => Array.from({ length: pages }, (_, i) => page + i)));
    expect(mapping).toMatchObject({ pages: mapped.size, complete: true, problems: [] });
    for (const buffer of ['picture', 'copy']) {
      const base = machine.bufferAddress('app', buffer)!;
      for (let offset = 0; offset < 1_048_593; offset += 4096) expect(mapped.has(Math.floor((base + offset) / 4096)), `${buffer}+${offset}`).toBe(true);
    }
  });

  it('walks every page to where the machine itself would go', () => {
    for (const buffer of ['picture', 'copy']) {
      const base = machine.bufferAddress('app', buffer)!;
      for (let offset = 0; offset < 1_048_593; offset += 65_536) {
        const address = BigInt(base + offset);
        const { walk } = explainImage(image.memory, registers, { sourceId: 0x6a08, pasid: 1, address });
        const expected = machine.walk({ device: 'dsa0', pasid: 1, address });
        expect({ ...walk, device: 'dsa0' }).toEqual(expected);
      }
    }
  });

  it('shows both queues empty, at the head where the unit stands', () => {
    expect(report.invalidationQueue).toMatchObject({ entryBytes: 32, pending: 0, problems: [] });
    expect(report.pageRequestQueue).toMatchObject({ pending: 0, problems: [] });
    expect(report.pageRequestQueue!.last!.text).toContain('6a:01.0 PASID 1: wants ');
  });

  it('contains the files\' bytes at the frames that the walk names', () => {
    const source = readFileSync('configs/data/mandelbrot.pgm');
    const { walk } = explainImage(image.memory, registers, { sourceId: 0x6a08, pasid: 1, address: BigInt(machine.bufferAddress('app', 'copy')!) });
    const bytes = new Uint8Array(64);
    image.memory.read(Number(walk!.physical), bytes, 0, 64);
    expect(Buffer.from(bytes)).toEqual(source.subarray(0, 64));
  });
});

describe('the command', () => {
  it('dumps where a run stops, and explains the dump', async () => {
    const out = join(directory, 'by-command');
    const run = captured();
    expect(await main(['run', 'configs/quickstart.yaml', '--until', 'fault:1', '--dump', out], run.io)).toBe(0);
    expect(run.err()).toContain(`wrote ${join(out, 'memory.img')}`);
    const explained = captured();
    expect(await main(['explain', '--image', join(out, 'memory.img'), '--registers', join(out, 'registers.yaml'), '--json'], explained.io)).toBe(0);
    expect(JSON.parse(explained.out())).toMatchObject({ unit: { mode: 'scalable' }, tables: { devices: [{ bdf: '6a:01.0' }] } });
  });

  it.each([
    [[], 2, 'explain needs --log FILE, or --registers FILE'],
    [['--log', 'x', '--image', 'y'], 2, '--log explains a log on its own'],
    [['--registers', 'x', '--walk', 'nonsense'], 2, '--walk: "nonsense" is not BDF/PASID/ADDRESS'],
    [['--log', 'test/explain/data/nothing'], 3, 'no such file'],
    [['--registers', 'test/explain/data/nothing'], 3, 'no such file'],
    [['--registers', 'test/explain/data/registers.yaml', '--image', 'test/explain/data/nothing'], 3, 'no such file'],
    [['--registers', 'configs/quickstart.yaml'], 3, 'lines of a name and a value'],
    [['--bogus'], 2, 'unknown option'],
  ])('answers %j with code %i', async (argv, code, text) => {
    const capture = captured();
    expect(await main(['explain', ...argv], capture.io)).toBe(code);
    expect(capture.err()).toContain(text);
    expect(capture.out()).toBe('');
  });

  it('refuses to dump into a file, or a machine without an IOMMU', async () => {
    const capture = captured();
    expect(await main(['run', 'configs/quickstart.yaml', '--until', '1us', '--dump', join('configs', 'quickstart.yaml')], capture.io)).toBe(3);
    expect(capture.err()).toContain('cannot be written');
    const machine = createMachineSync({ version: 1, host: { memory: '64MiB' } });
    expect(() => dumpMachine(machine.host, join(directory, 'never'))).toThrow(InvalidInput);
    expect(existsSync(join(directory, 'never'))).toBe(false);
  });
});
