/**
 * Runs QEMU with a guest and listens to its console. A boot ends when QEMU does, when its time is over, when it is
 * stopped, or when this process exits; whatever QEMU started ends with it, since all of it is one process group.
 * Left out: input to the console.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { ConsoleLines, readConsole, type ConsoleReport } from './guest-report.js';

export interface BootOptions {
  /** Program and arguments: `[...linux.qemu, ...qemuArguments(...)]`. */
  readonly argv: readonly string[];
  /** Real time; default three minutes. */
  readonly timeoutMs?: number;
  readonly signal?: AbortSignal;
  /** Each line of the console, as it comes. */
  readonly onLine?: (line: string) => void;
  /** Each line of QEMU's own messages. */
  readonly onMessage?: (line: string) => void;
}

export interface GuestExit {
  /** `ended`: QEMU ended by itself; `not-started`: there was nothing to run. */
  readonly cause: 'ended' | 'timeout' | 'stopped' | 'not-started';
  /** QEMU's exit code; null when a signal ended it or it was never there. */
  readonly code: number | null;
  readonly signal: string | null;
}

export interface GuestReport extends ConsoleReport {
  readonly exit: GuestExit;
  /** What QEMU itself printed: errors of its command line, of the protocol. */
  readonly messages: readonly string[];
}

export interface GuestBoot {
  /** Undefined when the program could not be started. */
  readonly pid: number | undefined;
  /** Never rejects. */
  readonly report: Promise<GuestReport>;
  /** Ends it; `report` says when it has. */
  stop(): void;
}

const TIMEOUT_MS = 180_000;
/** The longest that a timer of Node can wait. */
const LONGEST_MS = 0x7fff_ffff;
/** QEMU gets this long to leave its devices in order. */
const GRACE_MS = 2_000;
/** A guest that prints without end fills no memory: what comes later goes to the callback only. */
const LINES_KEPT = 200_000;

/** Starts QEMU; the console can be listened to at once. */
export function bootGuest(options: BootOptions): GuestBoot {
  const { argv, timeoutMs = TIMEOUT_MS, signal, onLine, onMessage } = options;
  const lines: string[] = [];
  const messages: string[] = [];
  const console = new ConsoleLines((line) => keep(lines, line, onLine));
  const errors = new ConsoleLines((line) => keep(messages, line, onMessage));
  const child = spawn(argv[0]!, argv.slice(1), { stdio: ['ignore', 'pipe', 'pipe'], detached: true });
  child.stdout.on('data', (bytes: Uint8Array) => console.push(bytes));
  child.stderr.on('data', (bytes: Uint8Array) => errors.push(bytes));

  let cause: GuestExit['cause'] = 'ended';
  let over = false;
  const end = (why: GuestExit['cause']): void => {
    if (over || cause !== 'ended') return;
    cause = why;
    kill(child, 'SIGTERM');
    AbortSignal.timeout(GRACE_MS).addEventListener('abort', () => {
      if (!over) kill(child, 'SIGKILL');
    });
  };
  const stop = (): void => end('stopped');
  const orphan = (): void => kill(child, 'SIGKILL');
  process.once('exit', orphan);
  signal?.addEventListener('abort', stop);
  AbortSignal.timeout(Math.min(Math.ceil(timeoutMs), LONGEST_MS)).addEventListener('abort', () => end('timeout'));
  if (signal?.aborted === true) stop();

  const report = new Promise<GuestReport>((resolve) => {
    const settle = (code: number | null, ending: string | null): void => {
      if (over) return;
      over = true;
      process.removeListener('exit', orphan);
      signal?.removeEventListener('abort', stop);
      console.end();
      errors.end();
      resolve({ ...readConsole(lines), messages, exit: { cause, code, signal: ending } });
    };
    child.once('error', (error) => {
      if (child.pid !== undefined) return;
      cause = 'not-started';
      keep(messages, error.message, onMessage);
      settle(null, null);
    });
    // a child of QEMU that outlives it would keep the console open, and us waiting
    child.once('exit', () => kill(child, 'SIGKILL'));
    child.once('close', settle);
  });
  return { pid: child.pid, report, stop };
}

function keep(lines: string[], line: string, tell: ((line: string) => void) | undefined): void {
  if (lines.length < LINES_KEPT) lines.push(line);
  tell?.(line);
}

/** To the whole group; nothing when it is gone already. */
function kill(child: ChildProcess, signal: NodeJS.Signals): void {
  if (child.pid === undefined) return;
  try {
    process.kill(-child.pid, signal);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}
