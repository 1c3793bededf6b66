/**
 * Files of vectors and traces: opened, unpacked, and refused early when they can be none. Everything that is wrong
 * with a file is an `InvalidInput`.
 */
import { closeSync, fstatSync, openSync, readFileSync, readSync } from 'node:fs';
import { gunzipSync } from 'node:zlib';
import { InvalidInput } from '../topology/problems.js';

/** Larger files, packed or not, are refused before they are read. */
export const FILE_LIMIT_BYTES = 256 * 2 ** 20;

function refuse(file: string, message: string): never {
  throw new InvalidInput([{ file, message }]);
}

/**
 * Text of a file that holds JSON, plain or gzip (by its first bytes, not by its name).
 * @param limitBytes of the file, packed or not
 * @throws InvalidInput when it cannot be read, is too large, truncated, or does not begin as JSON does
 */
export function readJsonText(file: string, limitBytes = FILE_LIMIT_BYTES): string {
  let packed: Buffer;
  try {
    const fd = openSync(file, 'r');
    try {
      const stat = fstatSync(fd);
      if (!stat.isFile()) refuse(file, 'is no file');
      if (stat.size > limitBytes) refuse(file, `has ${Math.round(stat.size / 2 ** 20)} MiB; the limit is ${limitBytes / 2 ** 20} MiB`);
      const start = Buffer.alloc(Math.min(stat.size, 64));
      readSync(fd, start, 0, start.length, 0);
      if (!isGzip(start) && !beginsAsJson(start)) refuse(file, stat.size === 0 ? 'is empty' : 'is neither JSON nor gzip');
      packed = readFileSync(fd);
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    if (error instanceof InvalidInput) throw error;
    return refuse(file, systemError(error));
  }
  if (!isGzip(packed)) return packed.toString('utf8');
  const unpacked = unpack(file, packed, limitBytes);
  if (!beginsAsJson(unpacked)) refuse(file, unpacked.length === 0 ? 'is empty' : 'holds no JSON');
  return unpacked.toString('utf8');
}

/** What tells what a file is; nothing when it cannot be read, which who reads it properly will say. */
export function firstBytes(file: string): Uint8Array {
  const start = new Uint8Array(64);
  try {
    const fd = openSync(file, 'r');
    try {
      return start.subarray(0, fstatSync(fd).isFile() ? readSync(fd, start, 0, start.length, 0) : 0);
    } finally {
      closeSync(fd);
    }
  } catch {
    return start.subarray(0, 0);
  }
}

function unpack(file: string, packed: Buffer, limitBytes: number): Buffer {
  try {
    return gunzipSync(packed, { maxOutputLength: limitBytes });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ERR_BUFFER_TOO_LARGE') return refuse(file, `unpacks to more than ${limitBytes / 2 ** 20} MiB`);
    return refuse(file, code === 'Z_BUF_ERROR' ? 'the gzip data end early: the file is truncated' : `the gzip data are damaged (${(error as Error).message})`);
  }
}

function isGzip(bytes: Buffer): boolean {
  return bytes.length >= 2 && bytes[0] === 0x1f && bytes[1] === 0x8b;
}

function beginsAsJson(bytes: Buffer): boolean {
  return /^\ufeff?\s*[{[]/.test(bytes.subarray(0, 64).toString('utf8'));
}

const SYSTEM_ERRORS: Readonly<Record<string, string>> = {
  ENOENT: 'no such file', EACCES: 'permission denied', EISDIR: 'is a directory', ENOTDIR: 'no such file', ELOOP: 'too many symbolic links',
};

/** A sentence for an error of the operating system. */
export function systemError(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return SYSTEM_ERRORS[code ?? ''] ?? message;
}
