/** Disk images as media: what reaches the file and what does not, and what people are told about files that cannot be one. */
import { execFileSync } from 'node:child_process';
import { chmodSync, closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { describe, expect, it, onTestFinished } from 'vitest';
import { MemoryMedium, zeroRange, type BlockMedium } from '../../devices/nvme/hardware/medium.js';
import { FileMedium, type FileMode } from '../../harness/media/file-medium.js';

const MIB = 2 ** 20;

function pattern(length: number, seed = 1): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 7 + (i >> 9) + seed) & 0xff);
}

function directory(): string {
  const path = mkdtempSync(join(tmpdir(), 'file-medium-'));
  onTestFinished(() => rmSync(path, { recursive: true }));
  return path;
}

function image(content: Uint8Array): string {
  const path = join(directory(), 'disk.img');
  writeFileSync(path, content);
  return path;
}

function open(path: string, mode: FileMode): FileMedium {
  const medium = new FileMedium(path, mode);
  onTestFinished(() => medium.close());
  return medium;
}

function bytes(medium: BlockMedium, offset: number, length: number): Uint8Array {
  const target = new Uint8Array(length).fill(0xee);
  expect(medium.read(offset, target)).toBe(true);
  return target;
}

describe('a disk image', () => {
  it('has the whole blocks of its file', () => {
    const path = image(pattern(3 * 512 + 100)), large = new FileMedium(path, 'read', { blockBytes: 1024 });
    expect([open(path, 'read').sizeBytes, large.sizeBytes]).toEqual([1536, 1024]);
    large.close();
  });

  it('takes writes into the file, and leaves what is behind the last block', () => {
    const content = pattern(4 * 4096 + 100), path = image(content), medium = open(path, 'write');
    expect([medium.readOnly, medium.write(5000, pattern(700, 9)), medium.write(4 * 4096 - 512, pattern(512, 3)), medium.flush()]).toEqual([false, true, true, true]);
    const wanted = content.slice();
    wanted.set(pattern(700, 9), 5000);
    wanted.set(pattern(512, 3), 4 * 4096 - 512);
    expect(Buffer.compare(readFileSync(path), wanted)).toBe(0);
    expect(bytes(medium, 4096, 8192)).toEqual(wanted.slice(4096, 12288));
  });

  it('reads zeros where it was zeroed, the rest of the file as before', () => {
    const content = pattern(MIB), path = image(content), medium = open(path, 'write');
    expect([medium.zero(512, 4096), medium.zero(99_840, 500_224), medium.zero(0, 0)]).toEqual([true, true, true]);
    content.fill(0, 512, 512 + 4096).fill(0, 99_840, 99_840 + 500_224);
    expect(Buffer.compare(readFileSync(path), content)).toBe(0);
    expect(statSync(path).size).toBe(MIB);
  });

  it('read-only refuses writes and says so beforehand', () => {
    const content = pattern(8192), path = image(content), medium = open(path, 'read');
    expect([medium.readOnly, medium.write(0, new Uint8Array(512)), medium.zero(0, 512), medium.flush()]).toEqual([true, false, false, true]);
    expect(bytes(medium, 512, 512)).toEqual(content.slice(512, 1024));
    expect(Buffer.compare(readFileSync(path), content)).toBe(0);
  });

  it('a snapshot keeps what is written from the file', () => {
    const content = pattern(3 * MIB + 512), path = image(content), medium = open(path, 'snapshot');
    expect([medium.write(4000, pattern(200, 5)), medium.zero(MIB - 1024, MIB + 2048), medium.write(3 * MIB, pattern(512, 6)), medium.flush()]).toEqual([true, true, true, true]);
    const wanted = content.slice();
    wanted.set(pattern(200, 5), 4000);
    wanted.fill(0, MIB - 1024, 2 * MIB + 1024);
    wanted.set(pattern(512, 6), 3 * MIB);
    expect(Buffer.compare(bytes(medium, 0, 3 * MIB + 512), wanted)).toBe(0);
    expect(Buffer.compare(readFileSync(path), content)).toBe(0);
    expect(medium.changedBytes).toBeLessThan(8 * 4096);
  });

  it('a snapshot of a huge file takes memory for what is written only, also when all of it is discarded', () => {
    const path = join(directory(), 'huge.img');
    const fd = openSync(path, 'w');
    ftruncateSync(fd, 2 ** 36);
    closeSync(fd);
    const medium = open(path, 'snapshot');
    expect([medium.sizeBytes, medium.zero(0, 2 ** 36), medium.write(2 ** 35, pattern(4096)), medium.changedBytes]).toEqual([2 ** 36, true, true, 4096]);
    expect(bytes(medium, 2 ** 35 - 512, 1024)).toEqual(Uint8Array.from([...new Uint8Array(512), ...pattern(512)]));
  });

  it.each(['write', 'snapshot'] as const)('(%s) answers as memory does, whatever is written and zeroed', (mode) => {
    const size = 2 * MIB + 3 * 512, content = pattern(size), path = image(content);
    const file = open(path, mode), memory = new MemoryMedium(size, content);
    const at = fc.oneof(fc.integer({ min: 0, max: size }), fc.constantFrom(0, MIB - 512, MIB, 2 * MIB, 2 * MIB + 512));
    const length = fc.oneof(fc.integer({ min: 0, max: 9000 }), fc.constantFrom(512, 4096, MIB, size));
    fc.assert(fc.property(fc.constantFrom('write', 'zero', 'read'), at, length, (what, offset, wanted) => {
      const count = Math.min(wanted, size - offset), from = Math.max(0, offset - 300), shown = Math.min(count + 600, size - from);
      for (const medium of [file, memory]) {
        if (what === 'write') expect(medium.write(offset, pattern(count, offset))).toBe(true);
        else if (what === 'zero') expect(zeroRange(medium, offset, count)).toBe(true);
      }
      expect(Buffer.compare(bytes(file, from, shown), bytes(memory, from, shown))).toBe(0);
    }), { numRuns: 60, seed: 11 });
    expect(Buffer.compare(bytes(file, 0, size), bytes(memory, 0, size))).toBe(0);
    if (mode === 'snapshot') expect(Buffer.compare(readFileSync(path), content)).toBe(0);
  });

  it('that shrinks or is closed under its user fails, and ends nobody', () => {
    const path = image(pattern(8192)), medium = open(path, 'write');
    truncateSync(path, 4096);
    expect([medium.read(4096, new Uint8Array(512)), medium.read(0, new Uint8Array(512)), medium.read(4000, new Uint8Array(200))]).toEqual([false, true, false]);
    medium.close();
    medium.close();
    expect([medium.read(0, new Uint8Array(512)), medium.write(0, new Uint8Array(512)), medium.zero(0, 512), medium.flush()]).toEqual([false, false, false, false]);
  });
});

describe('what cannot be a disk image', () => {
  it.each(['write', 'read', 'snapshot'] as const)('is named with its reason (%s)', (mode) => {
    const where = directory(), empty = join(where, 'empty.img'), short = join(where, 'short.img'), pipe = join(where, 'pipe');
    writeFileSync(empty, '');
    writeFileSync(short, 'x'.repeat(511));
    execFileSync('mkfifo', [pipe]);
    expect(() => new FileMedium(join(where, 'none.img'), mode)).toThrow(`${join(where, 'none.img')}: does not exist`);
    expect(() => new FileMedium(where, mode)).toThrow(`${where}: is a directory, not a disk image`);
    expect(() => new FileMedium(empty, mode)).toThrow('is empty; a disk image has at least one block of 512 bytes');
    expect(() => new FileMedium(short, mode)).toThrow('has 511 bytes, less than one block of 512');
    expect(() => new FileMedium(pipe, mode)).toThrow('is no regular file; a disk image is a file of raw bytes');
  });

  it.skipIf(process.getuid?.() === 0)('a file that may only be read says what would do', () => {
    const path = image(pattern(512));
    chmodSync(path, 0o444);
    expect(() => new FileMedium(path, 'write')).toThrow(`${path}: may not be read and written by this user; a read-only image or a snapshot only reads it`);
    expect(open(path, 'snapshot').write(0, pattern(512, 2))).toBe(true);
  });
});
