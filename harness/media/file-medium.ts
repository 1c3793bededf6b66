/**
 * A disk image as what a namespace's blocks lie on, without reading it into memory: raw bytes of a regular file, block after
 * block. Everything is synchronous: a command's time passes in the controller, before. Zeros are holes where the file system
 * can make them, since a guest that formats 10 GB discards 10 GB. Left out: other formats than raw, block devices, files
 * that grow while they are used, locks against a second user of the same image.
 */
import { closeSync, constants, fdatasyncSync, fstatSync, openSync, readSync, writeSync, type Stats } from 'node:fs';
import type { BlockMedium } from '../../devices/nvme/hardware/medium.js';
import { assert } from '../../sim/assert.js';
import { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, posixCalls } from '../../vfio/user/posix/index.js';
import { InvalidInput } from '../topology/problems.js';
import { Overlay } from './overlay.js';

/**
 * `write`: what is written reaches the file, and is safe after a flush. `read`: nothing can be written, which a namespace tells
 * its host beforehand. `snapshot`: what is written is kept in memory until `close`; the file stays as it is.
 */
export type FileMode = 'write' | 'read' | 'snapshot';

export interface FileMediumOptions {
  /** Default 512. */
  readonly blockBytes?: number;
}

const ZEROS = new Uint8Array(1 << 20);

export class FileMedium implements BlockMedium {
  readonly path: string;
  readonly mode: FileMode;
  /** Whole blocks; what the file has behind the last one is never touched. */
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  private fd: number;
  private readonly overlay: Overlay | undefined;
  /** The file system has refused to make a hole. */
  private solid = false;

  /** @throws InvalidInput no such file, not a regular file, lacking rights, less than one block */
  constructor(path: string, mode: FileMode, { blockBytes = 512 }: FileMediumOptions = {}) {
    this.path = path;
    this.mode = mode;
    this.readOnly = mode === 'read';
    this.fd = openImage(path, mode);
    const { size } = fstatSync(this.fd);
    this.sizeBytes = size - size % blockBytes;
    if (this.sizeBytes === 0) {
      this.close();
      throw unusable(path, size === 0 ? `is empty; a disk image has at least one block of ${blockBytes} bytes` : `has ${size} bytes, less than one block of ${blockBytes}`);
    }
    this.overlay = mode === 'snapshot' ? new Overlay(this.sizeBytes, (offset, target) => this.readFile(offset, target)) : undefined;
  }

  /** Bytes of memory that hold what was written over a snapshot. */
  get changedBytes(): number {
    return this.overlay?.changedBytes ?? 0;
  }

  read(offset: number, target: Uint8Array): boolean {
    this.check(offset, target.length);
    return this.overlay === undefined ? this.readFile(offset, target) : this.overlay.read(offset, target);
  }

  write(offset: number, source: Uint8Array): boolean {
    this.check(offset, source.length);
    if (this.readOnly || this.fd < 0) return false;
    return this.overlay === undefined ? this.writeFile(offset, source) : this.overlay.write(offset, source);
  }

  flush(): boolean {
    if (this.mode !== 'write') return this.fd >= 0;
    return this.fd >= 0 && succeeds(() => fdatasyncSync(this.fd));
  }

  zero(offset: number, sizeBytes: number): boolean {
    this.check(offset, sizeBytes);
    if (this.readOnly || this.fd < 0) return false;
    if (this.overlay !== undefined) return this.overlay.zero(offset, sizeBytes);
    return sizeBytes === 0 || this.punch(offset, sizeBytes) || this.writeZeros(offset, sizeBytes);
  }

  /** What was not flushed may be lost, what was written over a snapshot is. Everything fails afterwards; twice does nothing more. */
  close(): void {
    if (this.fd >= 0) closeSync(this.fd);
    this.fd = -1;
  }

  private readFile(offset: number, target: Uint8Array): boolean {
    if (this.fd < 0) return false;
    return whole(target.length, (at) => readSync(this.fd, target, at, target.length - at, offset + at));
  }

  private writeFile(offset: number, source: Uint8Array): boolean {
    return whole(source.length, (at) => writeSync(this.fd, source, at, source.length - at, offset + at));
  }

  private punch(offset: number, sizeBytes: number): boolean {
    // without koffi, or where a file system has no holes, zeros are written
    this.solid ||= !succeeds(() => assert(posixCalls().fallocate(this.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, sizeBytes) === 0, 'no hole'));
    return !this.solid;
  }

  private writeZeros(offset: number, sizeBytes: number): boolean {
    for (let at = 0; at < sizeBytes; at += ZEROS.length) {
      if (!this.writeFile(offset + at, ZEROS.subarray(0, Math.min(ZEROS.length, sizeBytes - at)))) return false;
    }
    return true;
  }

  private check(offset: number, sizeBytes: number): void {
    assert(offset >= 0 && offset + sizeBytes <= this.sizeBytes, `bytes ${offset}+${sizeBytes} of ${this.path}, which has ${this.sizeBytes}`);
  }
}

function openImage(path: string, mode: FileMode): number {
  let fd: number, stats: Stats;
  try {
    // a pipe without a writer must not hold this up
    fd = openSync(path, (mode === 'write' ? constants.O_RDWR : constants.O_RDONLY) | constants.O_NONBLOCK);
    stats = fstatSync(fd);
  } catch (error) {
    throw unusable(path, reason(error as NodeJS.ErrnoException, mode));
  }
  if (stats.isFile()) return fd;
  closeSync(fd);
  throw unusable(path, stats.isDirectory() ? 'is a directory, not a disk image' : 'is no regular file; a disk image is a file of raw bytes');
}

function reason({ code, message }: NodeJS.ErrnoException, mode: FileMode): string {
  switch (code) {
    case 'ENOENT': return 'does not exist';
    case 'EISDIR': return 'is a directory, not a disk image';
    case 'EACCES': case 'EPERM': return mode === 'write' ? 'may not be read and written by this user; a read-only image or a snapshot only reads it' : 'may not be read by this user';
    case 'EROFS': return 'lies on a file system that is mounted read-only; a read-only image or a snapshot only reads it';
    case 'ENXIO': return 'is no regular file; a disk image is a file of raw bytes';
    default: return `cannot be opened: ${message}`;
  }
}

function unusable(path: string, message: string): InvalidInput {
  return new InvalidInput([{ file: path, message }]);
}

/** Repeats what moves fewer bytes than asked for. False: an error, or nothing more moves. */
function whole(sizeBytes: number, move: (at: number) => number): boolean {
  return succeeds(() => {
    for (let at = 0; at < sizeBytes; ) {
      const count = move(at);
      if (count === 0) throw new Error('the file has ended');
      at += count;
    }
  });
}

/** The error is the command's status: which one it was is nobody's to know. */
function succeeds(work: () => void): boolean {
  try {
    work();
    return true;
  } catch {
    return false;
  }
}
