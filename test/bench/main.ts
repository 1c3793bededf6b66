/**
 * `npm run bench`: how fast the simulator is, against the numbers of docs/BENCHMARKS.md.
 *
 *     npm run bench [-- --json] [-- --only GROUP]…
 *
 * Each group runs in a process of its own, so that what one group's types do to compiled code does not change
 * another's figures, and heap sizes are its own. Rows on stdout, progress on a terminal's stderr. Exit 0: the figures
 * were taken, whatever they are; 1: a group failed; 2: wrong usage.
 */
import { spawn } from 'node:child_process';
import { createInterface } from 'node:readline';
import { cpus } from 'node:os';
import { parseArgs } from 'node:util';
import { clockEvents } from './clock.js';
import { dmaBandwidth } from './dma.js';
import { growth } from './growth.js';
import { guests, manyGuests } from './guests.js';
import { pageRequests } from './page-requests.js';
import { passthrough } from './passthrough.js';
import { printTable, type Row } from './report.js';
import { translations } from './translation.js';
import { vfioUser } from './vfio-user.js';

const GROUPS: Readonly<Record<string, () => Generator<Row> | AsyncGenerator<Row>>> = {
  translate: translations, 'page-requests': pageRequests, dma: dmaBandwidth, clock: clockEvents, growth, passthrough, guests, 'vfio-user': vfioUser,
};

/** Taken only when they are asked for. */
const LONG_GROUPS: typeof GROUPS = { 'many-guests': manyGuests };
const ALL_GROUPS = { ...GROUPS, ...LONG_GROUPS };

function showProgress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\u001b[K${text}`);
}

/** Runs one group in a child; rows as they come. False when the child failed, which has said why. */
function runGroup(name: string, onRow: (row: Row) => void): Promise<boolean> {
  const child = spawn(process.execPath, [...process.execArgv, '--expose-gc', process.argv[1]!, '--child', name], { stdio: ['ignore', 'pipe', 'inherit'] });
  createInterface({ input: child.stdout }).on('line', (line) => onRow(JSON.parse(line) as Row));
  return new Promise((resolve, reject) => {
    child.on('error', reject);
    child.on('close', (code) => resolve(code === 0));
  });
}

async function main(): Promise<number> {
  let options;
  try {
    options = parseArgs({ options: { json: { type: 'boolean' }, only: { type: 'string', multiple: true }, child: { type: 'string' } } }).values;
  } catch (error) {
    console.error((error as Error).message);
    return 2;
  }
  if (options.child !== undefined) {
    for await (const row of ALL_GROUPS[options.child]!()) console.log(JSON.stringify(row));
    return 0;
  }
  const names = options.only ?? Object.keys(GROUPS);
  const unknown = names.filter((name) => ALL_GROUPS[name] === undefined);
  if (unknown.length > 0) {
    console.error(`no such group: ${unknown.join(', ')}; there are ${Object.keys(ALL_GROUPS).join(', ')}`);
    return 2;
  }
  const rows: Row[] = [], failed: string[] = [];
  const started = performance.now();
  for (const [at, name] of names.entries()) {
    showProgress(`${at + 1} of ${names.length}: ${name}`);
    const whole = await runGroup(name, (row) => {
      rows.push(row);
      showProgress(`${at + 1} of ${names.length}: ${name}, ${rows.length} figures, ${((performance.now() - started) / 1000).toFixed(0)} s`);
    });
    if (!whole) failed.push(name);
  }
  showProgress('');
  const machine = { node: process.version, cores: cpus().length, cpu: cpus()[0]?.model ?? 'unknown', seconds: Math.round((performance.now() - started) / 1000) };
  console.log(options.json === true ? JSON.stringify({ machine, rows }, undefined, 2) : `${printTable(rows)}\n${machine.cores} cores (${machine.cpu}), Node ${machine.node}, ${machine.seconds} s`);
  if (failed.length > 0) console.error(`failed: ${failed.join(', ')}`);
  return failed.length > 0 ? 1 : 0;
}

try {
  process.exitCode = await main();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exitCode = 1;
}
