/** Where a command reads its surroundings and writes: the process's own streams, or a test's. */
import { once } from 'node:events';
import pc from 'picocolors';

export type Colors = ReturnType<typeof pc.createColors>;

/** What a command needs of a stream. */
export interface Output {
  readonly isTTY?: boolean;
  /** False: what was written waits in memory; `drained` says when it has gone. */
  write(text: string): boolean;
  once(event: string, listener: (...args: unknown[]) => void): unknown;
}

export interface Io {
  /** Data. */
  readonly stdout: Output;
  /** Everything else: progress, problems, logs. */
  readonly stderr: Output;
  /** For what goes to stdout. */
  readonly colors: Colors;
}

/** @param env NO_COLOR and FORCE_COLOR count when they are not empty; otherwise colours are for terminals */
export function ioFor(stdout: Output, stderr: Output, env: Readonly<Record<string, string | undefined>>): Io {
  const set = (name: string): boolean => (env[name] ?? '') !== '';
  const wanted = set('FORCE_COLOR') ? env['FORCE_COLOR'] !== '0' : stdout.isTTY === true && env['TERM'] !== 'dumb';
  return { stdout, stderr, colors: pc.createColors(!set('NO_COLOR') && wanted) };
}

/** Writes pieces one after the other, no faster than the reader takes them. */
export async function writePieces(output: Output, pieces: Iterable<string>): Promise<void> {
  for (const piece of pieces) {
    if (!output.write(piece)) await once(output as unknown as NodeJS.EventEmitter, 'drain');
  }
}

/** A line for people, on stderr. */
export function say(io: Io, line: string): void {
  io.stderr.write(`${line}\n`);
}
