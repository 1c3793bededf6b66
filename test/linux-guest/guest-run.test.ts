/** Programs in QEMU's place: what they print is reported, and nothing of them is left. */
import { existsSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { bootGuest } from '../../harness/linux/guest-run.js';

const sh = (script: string): string[] => ['sh', '-c', script];
/** Prints the number of a process of its own that would run for long, and waits for it. */
const WITH_CHILD = 'sleep 600 & echo GUEST child $!; wait';

/** Gone, or dead and only waiting for its parent; a process closes its console shortly before it is. */
function ended(pid: number): boolean {
  return !existsSync(`/proc/${pid}`) || /^\d+ \(.*\) [ZX]/.test(readFileSync(`/proc/${pid}/stat`, 'utf8'));
}

describe.runIf(process.platform === 'linux')('bootGuest', () => {
  test('reports console, QEMU’s own messages and the exit code', async () => {
    const seen: string[] = [];
    const boot = bootGuest({ argv: sh('echo "[    1.5] GUEST booted release=7"; printf "[    1.6] DMAR: x\\r\\n"; echo oops >&2; exit 3'), onLine: (line) => seen.push(line) });
    const report = await boot.report;
    expect(report.exit).toEqual({ cause: 'ended', code: 3, signal: null });
    expect(report.messages).toEqual(['oops']);
    expect(report.facts.map(({ topic }) => topic)).toEqual(['booted']);
    expect(report.dmesg).toEqual([{ seconds: 1.6, text: 'DMAR: x' }]);
    expect(seen).toEqual(report.lines);
  });

  test('a program that is not there is an outcome, not an exception', async () => {
    const boot = bootGuest({ argv: ['/nowhere/qemu'] });
    expect(boot.pid).toBeUndefined();
    const report = await boot.report;
    expect(report.exit.cause).toBe('not-started');
    expect(report.messages.join()).toMatch(/ENOENT/);
  });

  test('when its time is over it ends with all its processes', async () => {
    const report = await bootGuest({ argv: sh(WITH_CHILD), timeoutMs: 300 }).report;
    expect(report.exit).toMatchObject({ cause: 'timeout', signal: 'SIGTERM' });
    await expect.poll(() => ended(Number(report.facts[0]!.words[0]))).toBe(true);
  });

  test('its time may have parts of a millisecond, or be longer than a timer has', async () => {
    const ends = await Promise.all([0.25, 1e12].map((timeoutMs) => bootGuest({ argv: sh(timeoutMs < 1 ? 'sleep 600' : 'true'), timeoutMs }).report));
    expect(ends.map(({ exit }) => exit.cause)).toEqual(['timeout', 'ended']);
  });

  test('stop ends it', async () => {
    const boot = bootGuest({ argv: sh(WITH_CHILD), onLine: () => boot.stop() });
    const report = await boot.report;
    expect(report.exit.cause).toBe('stopped');
    await expect.poll(() => ended(Number(report.facts[0]!.words[0]))).toBe(true);
    boot.stop();
  });

  test('an abort signal ends it, also one that was given before', async () => {
    const controller = new AbortController();
    const boot = bootGuest({ argv: sh(WITH_CHILD), signal: controller.signal, onLine: () => controller.abort() });
    expect((await boot.report).exit.cause).toBe('stopped');
    expect((await bootGuest({ argv: sh(WITH_CHILD), signal: controller.signal }).report).exit.cause).toBe('stopped');
  });

  test('a process that outlives it does not keep the console open', async () => {
    const report = await bootGuest({ argv: sh('sleep 600 & echo GUEST child $!') }).report;
    expect(report.exit).toMatchObject({ cause: 'ended', code: 0 });
    await expect.poll(() => ended(Number(report.facts[0]!.words[0]))).toBe(true);
  });

  test('nothing of it stays with this process', async () => {
    const before = process.listenerCount('exit');
    await Promise.all([bootGuest({ argv: sh('true') }).report, bootGuest({ argv: ['/nowhere/qemu'] }).report]);
    expect(process.listenerCount('exit')).toBe(before);
  });
});
