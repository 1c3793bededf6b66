/** Files that commands write. */
import { closeSync, openSync, writeSync } from 'node:fs';
import { gzipSync } from 'node:zlib';
import { TRACE_SPANS } from '../harness/trace-spans.js';
import type { Trace } from '../sim/trace.js';
import { traceToNdjson, traceToPerfetto } from '../sim/trace-export.js';
import { WrongUsage } from './failure.js';

/** A trace as the name of its file wants it: *.json for Perfetto, anything else NDJSON. */
export function tracePieces(trace: Trace, out: string): Generator<string> {
  return out.endsWith('.json') ? traceToPerfetto(trace, TRACE_SPANS) : traceToNdjson(trace);
}

const BLOCK_CHARACTERS = 1 << 16;

export function* inBlocks(pieces: Iterable<string>): Generator<string> {
  let block = '';
  for (const piece of pieces) {
    block += piece;
    if (block.length < BLOCK_CHARACTERS) continue;
    yield block;
    block = '';
  }
  if (block !== '') yield block;
}

/** The file is opened before the run, so that a wrong name is said at once. */
export class OutputFile {
  private readonly option: string;
  private readonly name: string;
  /** -1: closed. */
  private fd: number;

  constructor(option: string, name: string) {
    this.option = option;
    this.name = name;
    this.fd = this.attempt(() => openSync(name, 'w'));
  }

  /** Writes everything and closes the file. */
  write(pieces: Iterable<string>): void {
    try {
      for (const block of this.name.endsWith('.gz') ? [gzipSync([...pieces].join(''))] : inBlocks(pieces)) this.append(Buffer.from(block));
    } finally {
      this.close();
    }
  }

  append(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) at += this.attempt(() => writeSync(this.fd, bytes, at));
  }

  /** Twice does nothing more. */
  close(): void {
    if (this.fd >= 0) closeSync(this.fd);
    this.fd = -1;
  }

  private attempt<T>(action: () => T): T {
    try {
      return action();
    } catch (error) {
      const { code = String(error) } = error as NodeJS.ErrnoException;
      const reasons: Record<string, string> = { ENOENT: 'no such directory', EACCES: 'permission denied', EISDIR: 'is a directory', ENOTDIR: 'is below a file', ENOSPC: 'no space left', EROFS: 'the file system is read-only' };
      throw new WrongUsage(`${this.option}: ${this.name} cannot be written: ${reasons[code] ?? code}`);
    }
  }
}
