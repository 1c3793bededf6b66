// Packs the project, installs the tarball in an empty project and uses it there as a stranger would: whatever works
// only in a checkout (a missing file, an undeclared dependency, an unbuilt module) shows here.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const ROOT = fileURLToPath(new URL('../..', import.meta.url));
const TIMEOUT_MS = 300_000;
const QUIET = ['--no-audit', '--no-fund', '--loglevel=error'];

class Failure extends Error {}

/** The environment without what the surrounding `npm test` says about the checkout. */
const environment = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => !/^npm_(package|lifecycle|config_local)|^INIT_CWD$/i.test(name)),
);

/** Runs a program to its end and returns what it printed; anything but exit code 0 is a failure. */
function run(what, cwd, command, args) {
  const done = spawnSync(command, args, {
    cwd,
    env: environment,
    encoding: 'utf8',
    timeout: TIMEOUT_MS,
    shell: process.platform === 'win32',
    maxBuffer: 64 << 20,
  });
  if (done.status === 0) return done.stdout;
  const end = done.error?.message ?? (done.signal === null ? `exit code ${done.status}` : `signal ${done.signal}`);
  throw new Failure(
    [`${what}: ${end}`, `  ran: ${command} ${args.join(' ')}`, done.stdout, done.stderr].filter(Boolean).join('\n'),
  );
}

function expect(what, holds) {
  if (!holds) throw new Failure(what);
}

function passed(what) {
  console.log(`pack: ok    ${what}`);
}

function skipped(what) {
  console.log(`pack: skip  ${what}`);
}

/** Builds and packs; returns the tarball's path. */
function pack(into) {
  const listing = run('npm pack', ROOT, 'npm', ['pack', '--json', '--pack-destination', into, ...QUIET]);
  // The build's own output comes before npm's JSON.
  const parsed = JSON.parse(listing.slice(listing.search(/^[[{]/m)));
  const [packed] = Array.isArray(parsed) ? parsed : Object.values(parsed);
  const paths = packed.files.map(({ path }) => path);
  for (const needed of ['package.json', 'LICENSE', 'bin/vfiosim.mjs', 'dist/cli/main.js']) {
    expect(`the tarball lacks ${needed}`, paths.includes(needed));
  }
  const stray = paths.filter((path) => /^(test|out|coverage)\//.test(path) || /(?<!\.d)\.[cm]?ts$/.test(path));
  expect(`the tarball has files that are not for users: ${stray.join(', ')}`, stray.length === 0);
  passed(`npm pack: ${paths.length} files, ${Math.ceil(packed.size / 1024)} KiB`);
  return join(into, packed.filename);
}

function install(tarball, project) {
  mkdirSync(project);
  writeFileSync(join(project, 'package.json'), JSON.stringify({ name: 'pack-check', private: true, type: 'module' }));
  run('npm install of the tarball', project, 'npm', ['install', tarball, '--prefer-offline', ...QUIET]);
  passed('npm install in an empty project');
}

function checkCommand(project) {
  const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
  const printed = run('vfiosim --version', project, 'npx', ['--no-install', 'vfiosim', '--version']).trim();
  expect(`vfiosim --version printed "${printed}", package.json says "${version}"`, printed === version);
  passed(`npx vfiosim --version: ${printed}`);

  const topology = 'configs/quickstart.yaml';
  if (!existsSync(join(ROOT, topology))) return skipped(`vfiosim run: there is no ${topology}`);
  const installed = join(project, 'node_modules/vfiosim', topology);
  expect(`the installed package lacks ${topology}`, existsSync(installed));
  run(`vfiosim run ${topology}`, project, 'npx', ['--no-install', 'vfiosim', 'run', installed]);
  passed(`npx vfiosim run ${topology}`);
}

function checkImport(project) {
  if (!existsSync(join(ROOT, 'harness/index.ts'))) return skipped("import 'vfiosim': there is no harness/index.ts");
  const script = "const names = Object.keys(await import('vfiosim')); console.log(names.length);";
  const count = run("import 'vfiosim'", project, 'node', ['--input-type=module', '--eval', script]).trim();
  expect("'vfiosim' exports nothing", Number(count) > 0);
  const types = join(project, 'node_modules/vfiosim/dist/harness/index.d.ts');
  expect("'vfiosim' has no type declarations", existsSync(types));
  passed(`import 'vfiosim': ${count} exports`);
}

const temporary = mkdtempSync(join(tmpdir(), 'vfiosim-pack-'));
try {
  const tarball = pack(temporary);
  const project = join(temporary, 'project');
  install(tarball, project);
  checkCommand(project);
  checkImport(project);
} catch (error) {
  if (!(error instanceof Failure)) throw error;
  console.error(`pack: FAILED  ${error.message}`);
  process.exitCode = 1;
} finally {
  rmSync(temporary, { recursive: true, force: true });
}
