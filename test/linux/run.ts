/**
 * `npm run test:linux`: prepares the guest where that is possible and not done, and runs the tests on it. Where nothing is
 * prepared and nothing can be, it says why in one line, and that is no failure.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { defaultDirectory, findLinux, prepareScript } from '../../harness/linux/prepared.js';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));

process.exitCode = main(process.argv.slice(2));

function main(words: readonly string[]): number {
  if (process.platform !== 'linux' || process.arch !== 'x64') return skip(`vfio-user is served on Linux on x86-64, and this is ${process.platform} on ${process.arch}`);
  if ('missing' in findLinux()) {
    const why = whyNotHere();
    if (why !== undefined) return skip(`no guest is prepared in ${defaultDirectory()}, and ${why}`);
    if (run(prepareScript(), []) !== 0) return 1;
  } else if (existsSync(join(defaultDirectory(), 'rootfs/.base-complete')) && run(prepareScript(), []) !== 0) {
    process.stdout.write('test:linux: the guest is used as it is, although its programs may be older than their sources\n');
  }
  return run(process.execPath, [join(ROOT, 'node_modules/vitest/vitest.mjs'), 'run', '--config', 'vitest.linux.config.ts', ...words]);
}

/** Why `prepare` would refuse to begin. */
function whyNotHere(): string | undefined {
  const release = existsSync('/etc/os-release') ? readFileSync('/etc/os-release', 'utf8') : '';
  if (!/^ID="?debian"?$/m.test(release)) return 'only a Debian can prepare one (docs/linux-guest.md)';
  return process.getuid!() === 0 ? undefined : `preparing it needs root: sudo ${prepareScript()}`;
}

function skip(why: string): number {
  process.stdout.write(`test:linux: skipped: ${why}\n`);
  return 0;
}

function run(program: string, words: readonly string[]): number {
  return spawnSync(program, words, { cwd: ROOT, stdio: 'inherit' }).status ?? 1;
}
