// Packs the project, installs the tarball in an empty project and uses it there as a stranger would: whatever works
// only in a checkout (a missing file, an undeclared dependency, an unbuilt module) shows here.
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, relative, sep } from 'node:path';
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

/** Builds and packs; returns the tarball's path. */
function pack(into) {
  const listing = run('npm pack', ROOT, 'npm', ['pack', '--json', '--pack-destination', into, ...QUIET]);
  // The build's own output comes before npm's JSON.
  const parsed = JSON.parse(listing.slice(listing.search(/^[[{]/m)));
  const [packed] = Array.isArray(parsed) ? parsed : Object.values(parsed);
  const paths = packed.files.map(({ path }) => path);
  const configs = readdirSync(join(ROOT, 'configs'), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(ROOT, join(entry.parentPath, entry.name)).split(sep).join('/'));
  const linked = [...readFileSync(join(ROOT, 'README.md'), 'utf8').matchAll(/\]\((docs\/[^)#]+\.md)\)/g)].map(([, path]) => path);
  // What `replay` knows of recordings; npm adds the README beside each list.
  const lists = ['test/vectors/disagreements.yaml', 'test/linux-traces/disagreements.yaml'];
  for (const needed of ['package.json', 'LICENSE', 'README.md', 'bin/vfiosim.mjs', 'dist/cli/main.js', 'harness/linux/prepare', 'harness/linux/guest/init', ...configs, ...linked, ...lists]) {
    expect(`the tarball lacks ${needed}`, paths.includes(needed));
  }
  const stray = paths.filter((path) => (/^(test|out|coverage)\//.test(path) && !lists.includes(path) && !/^test\/(vectors|linux-traces)\/README\.md$/.test(path)) || /(?<!\.d)\.[cm]?ts$/.test(path));
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

function vfiosim(what, project, ...args) {
  return run(what, project, 'npx', ['--no-install', 'vfiosim', ...args]);
}

function checkCommand(project) {
  const { version } = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));
  const printed = vfiosim('vfiosim --version', project, '--version').trim();
  expect(`vfiosim --version printed "${printed}", package.json says "${version}"`, printed === version);
  passed(`npx vfiosim --version: ${printed}`);

  const topology = join(project, 'node_modules/vfiosim/configs/quickstart.yaml');
  const output = vfiosim('vfiosim run quickstart.yaml', project, 'run', topology);
  expect('the output of the quickstart is not what README.md shows', output === block('text'));
  passed('npx vfiosim run quickstart.yaml: the output that README.md shows');

  const own = join(project, 'readme.yaml');
  writeFileSync(own, block('yaml'));
  vfiosim('vfiosim check', project, 'check', own);
  expect('the topology of README.md does not pass', vfiosim('vfiosim run', project, 'run', own).endsWith('\nPASS\n'));
  passed('the topology of README.md: check and run');
}

/** The first fenced block of README.md in a language. */
function block(language) {
  const found = new RegExp(`^\`\`\`${language}\n([^]*?)^\`\`\`$`, 'm').exec(readFileSync(join(ROOT, 'README.md'), 'utf8'));
  expect(`README.md has no ${language} block`, found !== null);
  return found[1];
}

function checkImport(project) {
  const script = "const names = Object.keys(await import('vfiosim')); console.log(names.length);";
  const count = run("import 'vfiosim'", project, 'node', ['--input-type=module', '--eval', script]).trim();
  expect("'vfiosim' exports nothing", Number(count) > 0);
  expect('vitest came along', !existsSync(join(project, 'node_modules/vitest')));
  passed(`import 'vfiosim': ${count} exports, without vitest`);
}

/** The test of README.md with the checkout's compiler and Vitest, which the project of a user has as well. */
function checkTest(project) {
  for (const name of ['vitest', '@types/node']) {
    mkdirSync(join(project, 'node_modules', name, '..'), { recursive: true });
    symlinkSync(join(ROOT, 'node_modules', name), join(project, 'node_modules', name), 'junction');
  }
  writeFileSync(join(project, 'readme.test.ts'), block('ts'));
  writeFileSync(join(project, 'tsconfig.json'), JSON.stringify({
    compilerOptions: { target: 'es2023', lib: ['es2023', 'esnext.disposable'], types: ['node'], module: 'nodenext', strict: true, skipLibCheck: true, noEmit: true },
    include: ['readme.test.ts'],
  }));
  run('type-check of the test of README.md', project, 'node', [join(ROOT, 'node_modules/typescript/bin/tsc'), '-p', '.']);
  run('the test of README.md', project, 'node', [join(ROOT, 'node_modules/vitest/vitest.mjs'), 'run', '--root', '.']);
  passed('the test of README.md: types and run');
}

const temporary = mkdtempSync(join(tmpdir(), 'vfiosim-pack-'));
try {
  const tarball = pack(temporary);
  const project = join(temporary, 'project');
  install(tarball, project);
  checkCommand(project);
  checkImport(project);
  checkTest(project);
} catch (error) {
  if (!(error instanceof Failure)) throw error;
  console.error(`pack: FAILED  ${error.message}`);
  process.exitCode = 1;
} finally {
  rmSync(temporary, { recursive: true, force: true });
}
