/** Boots of a real Linux, recorded, run again on our hardware: no QEMU, no sockets, no real time. */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { replayGuest } from '../../harness/replay/guest-replay.js';
import { replayFiles } from '../../harness/replay/worker-pool.js';

const FOLDER = resolve(import.meta.dirname, '../guest-recordings');
const FILES = readdirSync(FOLDER).filter((file) => file.endsWith('.rec')).sort();
const scratch = mkdtempSync(join(tmpdir(), 'vfiosim-replay-'));

afterAll(() => rmSync(scratch, { recursive: true, force: true }));

/** A file with this content. */
function altered(name: string, bytes: Uint8Array): string {
  const path = join(scratch, name);
  writeFileSync(path, bytes);
  return path;
}

describe('a recorded boot of Linux', () => {
  it.each(FILES)('%s agrees in every message, every write and every interrupt', (file) => {
    const { kind, disagreements, checks, agreements, steps, remarks } = replayGuest(join(FOLDER, file));
    expect(kind).toBe('guest');
    expect(disagreements).toEqual([]);
    // configuration, registers and descriptors of a whole boot
    expect([steps > 1000, checks['messages']! > 400, checks['memory checks']! > 500, checks['interrupts']! > 10, agreements > 1000]).toEqual([true, true, true, true, true]);
    expect(remarks).toHaveLength(1);
  });

  it('is found by vfiosim replay among files of other kinds', async () => {
    const { reports, problems } = await replayFiles([FOLDER], { threads: 1 });
    expect([reports.length, problems]).toEqual([FILES.length, []]);
    expect(reports.flatMap(({ disagreements }) => disagreements)).toEqual([]);
  });
});

describe('a replay fails when our hardware is wrong', () => {
  const sva = join(FOLDER, 'linux.rec');
  it.each([
    ['vtd.lose-page-response', 'the accelerator waits for an answer that has come'],
    ['vtd.wrong-group-index', 'the answer goes to another group'],
    ['vtd.wait-ignores-device-tlb', 'a wait descriptor completes too early'],
    ['pci.reuse-prg-index', 'page requests carry another index'],
    ['pci.keep-raced-translation', undefined],
  ])('%s', (defect, why) => {
    const { disagreements } = replayGuest(sva, new Set([defect]));
    // nothing raced in this boot: the last one must not show, or the others would prove nothing
    expect(disagreements.length).toBe(why === undefined ? 0 : 1);
  });
});

describe('what is no sound recording is refused', () => {
  const whole = readFileSync(join(FOLDER, 'linux.rec'));
  it('a byte that is another one', () => {
    const bytes = Uint8Array.from(whole);
    bytes[bytes.length >> 1]! ^= 1;
    expect(() => replayGuest(altered('damaged.rec', bytes))).toThrow(/checksum/);
  });

  it('a file that was cut off is replayed as far as it goes, and says so', () => {
    const bytes = whole.subarray(0, whole.length - 9);
    const { disagreements, remarks } = replayGuest(altered('short.rec', bytes));
    expect(disagreements).toEqual([]);
    expect(remarks.join()).toMatch(/not whole/);
  });

  it('a disk that is not there with the content it had', () => {
    const line = whole.indexOf(10);
    const head = whole.subarray(0, line).toString('utf8').replaceAll('data/mandelbrot.pgm', 'data/mandelbrat.pgm');
    const path = altered('moved.rec', Buffer.concat([Buffer.from(head), whole.subarray(line)]));
    expect(() => replayGuest(path)).toThrow(/mandelbrat\.pgm/);
  });

  it('a disk that a replay would write to', () => {
    const line = whole.indexOf(10);
    const head = whole.subarray(0, line).toString('utf8').replace('image: data/mandelbrot.pgm', 'image-mode: write, image: data/mandelbrot.pgm');
    expect(() => replayGuest(altered('written.rec', Buffer.concat([Buffer.from(head), whole.subarray(line)])))).toThrow(/changes no files/);
  });

  it('a recording that says nothing of its topology', () => {
    const line = whole.indexOf(10);
    const path = altered('foreign.rec', Buffer.concat([Buffer.from('vfio-user-recording/1 {"devices":["iommu","disk","dsa0"],"fields":{}}'), whole.subarray(line)]));
    expect(() => replayGuest(path)).toThrow(/topology/);
  });
});
