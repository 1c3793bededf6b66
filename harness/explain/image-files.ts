/**
 * Where the bytes of a stopped machine come from: raw files whose offset is the physical address, raw files with a
 * base (`FILE@0xBASE`), ELF core files (QEMU's dump-guest-memory, /proc/vmcore: every PT_LOAD segment lies at its
 * p_paddr), and lists of text lines `0xADDRESS: hex bytes`. Which one it is stands in the first bytes. Files that
 * disagree about an address are refused.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { hex } from '../../sim/address.js';
import { clip, InvalidInput, type Problem } from '../topology/problems.js';
import { bytesOf, ImageMemory, type ImageBytes, type ImagePiece } from './image-memory.js';

/** Largest list of text lines; raw files and core files have no limit. */
export const MAX_TEXT_BYTES = 2 ** 22;
/** Physical addresses have at most 52 bits. */
const ADDRESS_END = 2 ** 52;
const MAX_SEGMENTS = 65_535;

/** An image that was opened; `close` it when done. */
export interface OpenImage {
  readonly memory: ImageMemory;
  readonly close: () => void;
}

interface NamedPiece extends ImagePiece {
  readonly file: string;
}

/** `FILE`, or `FILE@0xBASE`: the physical address of the file's first byte. */
export function parseImageName(text: string): { readonly file: string; readonly base: number | undefined } {
  const match = /^(.+)@(0x[0-9a-fA-F]+)$/.exec(text);
  return match === null ? { file: text, base: undefined } : { file: match[1]!, base: Number(match[2]) };
}

/** Opens images. Throws InvalidInput with every problem; nothing stays open then. */
export function openImages(names: readonly string[]): OpenImage {
  const descriptors: number[] = [];
  const close = (): void => descriptors.forEach((descriptor) => closeSync(descriptor));
  const problems: Problem[] = [];
  const pieces: NamedPiece[] = [];
  for (const name of names) {
    const { file, base } = parseImageName(name);
    try {
      pieces.push(...openOne(file, base, descriptors));
    } catch (error) {
      if (error instanceof InvalidInput) problems.push(...error.problems);
      else problems.push({ file, message: fileProblem(error) });
    }
  }
  problems.push(...overlaps(pieces));
  if (problems.length > 0) {
    close();
    throw new InvalidInput(problems);
  }
  return { memory: new ImageMemory(pieces), close };
}

/** What is wrong with a file, from Node's error. */
export function fileProblem(error: unknown): string {
  const { code } = error as NodeJS.ErrnoException;
  return code === 'ENOENT' ? 'no such file' : code === 'EISDIR' ? 'is a directory, not a file' : `cannot be read (${code ?? String(error)})`;
}

/** Reads a whole file of at most `maxBytes`; `-` is standard input. Throws InvalidInput. */
export function readSmallFile(file: string, maxBytes: number, what: string): Uint8Array {
  let descriptor: number | undefined;
  try {
    descriptor = file === '-' ? 0 : openSync(file, 'r');
    if (fstatSync(descriptor).isDirectory()) throw new InvalidInput([{ file, message: 'is a directory, not a file' }]);
    const chunks: Uint8Array[] = [];
    let total = 0;
    for (;;) {
      const chunk = new Uint8Array(1 << 16);
      const count = readChunk(descriptor, chunk);
      if (count === 0) break;
      total += count;
      if (total > maxBytes) throw new InvalidInput([{ file, message: `has more than ${maxBytes} bytes, which is the most for ${what}` }]);
      chunks.push(chunk.subarray(0, count));
    }
    return Buffer.concat(chunks);
  } catch (error) {
    if (error instanceof InvalidInput) throw error;
    throw new InvalidInput([{ file, message: fileProblem(error) }]);
  } finally {
    if (descriptor !== undefined && descriptor !== 0) closeSync(descriptor);
  }
}

/** A read that also waits for a pipe or terminal that does not block. */
function readChunk(descriptor: number, chunk: Uint8Array): number {
  for (;;) {
    try {
      return readSync(descriptor, chunk, 0, chunk.length, null);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'EOF') return 0;
      if (code !== 'EAGAIN') throw error;
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 10);
    }
  }
}

function openOne(file: string, base: number | undefined, descriptors: number[]): NamedPiece[] {
  const refuse = (message: string): never => {
    throw new InvalidInput([{ file, message }]);
  };
  if (base !== undefined && base >= ADDRESS_END) refuse(`the base ${hex(base)} has more than 52 bits`);
  const descriptor = openSync(file, 'r');
  descriptors.push(descriptor);
  const stat = fstatSync(descriptor);
  if (stat.isDirectory()) return refuse('is a directory, not a file');
  if (!stat.isFile()) return refuse('is not a regular file; copy it first, its size has to be known');
  if (stat.size === 0) return refuse('is empty');
  const head = new Uint8Array(4096);
  const headBytes = head.subarray(0, readSync(descriptor, head, 0, head.length, 0));
  if (base === undefined && headBytes[0] === 0x7f && headBytes[1] === 0x45 && headBytes[2] === 0x4c && headBytes[3] === 0x46) {
    return elfPieces(file, descriptor, stat.size);
  }
  if (base === undefined && looksLikeList(headBytes)) {
    return parseByteList(Buffer.from(readSmallFile(file, MAX_TEXT_BYTES, 'a list of bytes')).toString('latin1'), file);
  }
  if ((base ?? 0) + stat.size > ADDRESS_END) return refuse(`ends above 2^52, the largest physical address`);
  return [{ file, start: base ?? 0, bytes: fileBytes(descriptor, 0, stat.size) }];
}

/** Part of an open file. */
function fileBytes(descriptor: number, offset: number, length: number): ImageBytes {
  return {
    length,
    read(from, target, count) {
      let done = 0;
      while (done < count) {
        const got = readSync(descriptor, target, done, count - done, offset + from + done);
        if (got === 0) return false;
        done += got;
      }
      return true;
    },
  };
}

/** The first line with anything on it starts as a list does, and the beginning is text. */
function looksLikeList(head: Uint8Array): boolean {
  if (head.includes(0)) return false;
  const text = Buffer.from(head).toString('latin1');
  for (const line of text.split('\n')) {
    const trimmed = line.trim();
    if (trimmed === '' || trimmed.startsWith('#') || trimmed === '---') continue;
    return /^["']?(0x)?[0-9a-fA-F]+["']?\s*:/.test(trimmed);
  }
  return false;
}

const LIST_LINE = /^["']?(?:0x)?([0-9a-fA-F]{1,13})["']?\s*:\s*["']?([^"'#]*)["']?\s*(?:#.*)?$/;
const LIST_PROBLEMS = 50;

/**
 * Lines `0xADDRESS: hex bytes`, which are a YAML map as well; bytes may be separated by spaces. A page of which any
 * byte is given is memory, its other bytes are zero. Throws InvalidInput with every problem.
 */
export function parseByteList(text: string, file: string): NamedPiece[] {
  const problems: Problem[] = [];
  const pages = new Map<number, { readonly bytes: Uint8Array; readonly line: Int32Array }>();
  const report = (line: number, message: string): void => {
    if (problems.length < LIST_PROBLEMS) problems.push({ file, line, column: 1, message });
  };
  text.split('\n').forEach((raw, index) => {
    const line = raw.trim();
    if (line === '' || line.startsWith('#') || line === '---') return;
    const match = LIST_LINE.exec(line);
    if (match === null) return report(index + 1, `"${clip(line, 40)}" is not 0xADDRESS: hex bytes`);
    const digits = match[2]!.replaceAll(/0x/gi, '').replaceAll(/[\s,]/g, '');
    if (digits === '' || digits.length % 2 !== 0 || !/^[0-9a-fA-F]+$/.test(digits)) return report(index + 1, `"${clip(match[2]!.trim(), 40)}" is not an even number of hex digits`);
    const start = parseInt(match[1]!, 16), data = Buffer.from(digits, 'hex');
    if (start + data.length > ADDRESS_END) return report(index + 1, `${hex(start)} has more than 52 bits`);
    for (let i = 0; i < data.length; i++) {
      const number = Math.floor((start + i) / 4096), offset = (start + i) % 4096;
      let page = pages.get(number);
      if (page === undefined) pages.set(number, (page = { bytes: new Uint8Array(4096), line: new Int32Array(4096) }));
      if (page.line[offset] !== 0) return report(index + 1, `${hex(start + i)} is given already, in line ${page.line[offset]}`);
      page.line[offset] = index + 1;
      page.bytes[offset] = data[i]!;
    }
  });
  if (problems.length > 0) throw new InvalidInput(problems);
  return [...pages].map(([number, { bytes }]) => ({ file, start: number * 4096, bytes: bytesOf(bytes) }));
}

/** PT_LOAD segments of an ELF64 little-endian core file (System V ABI, chapters 4 and 5). */
function elfPieces(file: string, descriptor: number, sizeBytes: number): NamedPiece[] {
  const refuse = (message: string): never => {
    throw new InvalidInput([{ file, message }]);
  };
  const header = new DataView(new ArrayBuffer(64));
  const readAt = (view: DataView, offset: number): boolean => fileBytes(descriptor, 0, sizeBytes).read(offset, new Uint8Array(view.buffer), view.byteLength);
  if (sizeBytes < 64 || !readAt(header, 0)) return refuse('is an ELF file without a whole header');
  if (header.getUint8(4) !== 2 || header.getUint8(5) !== 1) return refuse('is an ELF file, but not a 64-bit little-endian one');
  const tableOffset = Number(header.getBigUint64(0x20, true));
  const entryBytes = header.getUint16(0x36, true), count = header.getUint16(0x38, true);
  if (count === 0 || count >= MAX_SEGMENTS || entryBytes < 56 || tableOffset + count * entryBytes > sizeBytes) return refuse('is an ELF file whose program headers are not there (a core file is expected)');
  const table = new DataView(new ArrayBuffer(count * entryBytes));
  if (!readAt(table, tableOffset)) return refuse('is an ELF file whose program headers cannot be read');
  const segments: { start: number; offset: number; length: number }[] = [];
  for (let i = 0; i < count; i++) {
    const at = i * entryBytes;
    if (table.getUint32(at, true) !== 1) continue;
    const offset = Number(table.getBigUint64(at + 0x08, true)), start = Number(table.getBigUint64(at + 0x18, true));
    const length = Math.min(Number(table.getBigUint64(at + 0x20, true)), Math.max(0, sizeBytes - offset));
    if (length > 0 && start + length <= ADDRESS_END) segments.push({ start, offset, length });
  }
  // a kernel's core has its text twice: by its own mapping and as part of RAM
  const pieces: NamedPiece[] = [];
  let end = 0;
  for (const { start, offset, length } of segments.toSorted((a, b) => a.start - b.start || b.length - a.length)) {
    const skip = Math.max(0, end - start);
    if (skip >= length) continue;
    pieces.push({ file, start: start + skip, bytes: fileBytes(descriptor, offset + skip, length - skip) });
    end = start + length;
  }
  if (pieces.length === 0) return refuse('is an ELF file without loadable segments at physical addresses');
  return pieces;
}

function overlaps(pieces: readonly NamedPiece[]): Problem[] {
  const sorted = pieces.toSorted((a, b) => a.start - b.start);
  const problems: Problem[] = [];
  for (let i = 1; i < sorted.length; i++) {
    const before = sorted[i - 1]!, piece = sorted[i]!;
    if (before.start + before.bytes.length <= piece.start) continue;
    problems.push({ file: piece.file, message: `covers ${hex(piece.start)}, which ${before.file} covers as well` });
  }
  return problems;
}
