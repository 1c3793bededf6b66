/** Replays what other implementations, or this one, did, and prints what agrees and what does not. */
import Table from 'cli-table3';
import { formatProblems } from '../harness/topology/problems.js';
import type { Disagreement, ReplayReport } from '../harness/replay/report.js';
import { replayFiles, type ReplayFilesResult } from '../harness/replay/worker-pool.js';
import { EXIT } from './exit.js';
import { say, type Colors, type Io } from './io.js';

interface ReplayCommandOptions {
  readonly json?: boolean;
  readonly known?: string;
  readonly verbose?: boolean;
}

/** Disagreements printed per file; `--json` has all. */
const SHOWN = 20;

export async function replay(io: Io, paths: readonly string[], options: ReplayCommandOptions): Promise<number> {
  const clear = '\r\u001b[K';
  let shown = false;
  const onProgress = (done: number, total: number): void => {
    if (io.stderr.isTTY !== true || total < 2) return;
    shown = true;
    io.stderr.write(`${clear}${done} of ${total} files`);
  };
  const result = await replayFiles(paths, { onProgress, ...(options.known === undefined ? {} : { known: options.known }) });
  if (shown) io.stderr.write(clear);
  if (options.json === true) io.stdout.write(`${JSON.stringify({ verdict: verdictOf(result), ...result }, null, 2)}\n`);
  else if (result.reports.length > 0) io.stdout.write(render(result, io.colors, options.verbose === true));
  for (const line of formatProblems([...result.outdated, ...result.problems])) say(io, line);
  return { agree: EXIT.ok, disagree: EXIT.failed, 'invalid input': EXIT.input }[verdictOf(result)];
}

/** A difference counts more than a file that could not be read. */
function verdictOf({ reports, problems, outdated }: ReplayFilesResult): 'agree' | 'disagree' | 'invalid input' {
  if (outdated.length > 0 || reports.some(({ disagreements }) => disagreements.length > 0)) return 'disagree';
  return problems.length > 0 ? 'invalid input' : 'agree';
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((total, number) => total + number, 0);
}

function checksOf({ checks }: ReplayReport): number {
  return sum(Object.values(checks));
}

function render(result: ReplayFilesResult, colors: Colors, verbose: boolean): string {
  const { reports } = result;
  const lines = [table(reports, colors)];
  const notModelled = [...new Set(reports.flatMap((report) => report.notModelled))];
  if (notModelled.length > 0) lines.push('', `not modelled, reported by the files' hardware: ${notModelled.join(', ')}`);
  for (const report of reports) lines.push(...details(report, colors, verbose));
  const differing = sum(reports.map(({ disagreements }) => disagreements.length));
  const known = sum(reports.map((report) => report.known.length));
  const verdict = differing === 0 ? colors.green(colors.bold('AGREE')) : colors.red(colors.bold(`${differing} DISAGREE`));
  lines.push('', `${reports.length} ${reports.length === 1 ? 'file' : 'files'}, ${sum(reports.map(checksOf))} checks: ${verdict}${known === 0 ? '' : `, ${known} known ${known === 1 ? 'disagreement' : 'disagreements'} apart`}`);
  return `${lines.join('\n')}\n`;
}

function table(reports: readonly ReplayReport[], colors: Colors): string {
  const head = ['file', 'steps', 'DMA', 'register reads', 'memory', 'other', 'agree', 'disagree', 'known', 'stale', 'unsupported'];
  const grid = new Table({ head, colAligns: head.map((_, index) => (index === 0 ? 'left' : 'right')), style: { head: [], border: [], compact: true } });
  const row = (name: string, of: readonly ReplayReport[]): void => {
    const check = (kind: string): number => sum(of.map(({ checks }) => checks[kind] ?? 0));
    const [dma, reads, memory] = [check('DMA'), check('register reads'), check('memory checks')];
    const count = (list: 'disagreements' | 'known' | 'stale' | 'unsupported'): number => sum(of.map((report) => report[list].length));
    const disagree = count('disagreements');
    grid.push([
      name, sum(of.map(({ steps }) => steps)), dma, reads, memory, sum(of.map(checksOf)) - dma - reads - memory, sum(of.map(({ agreements }) => agreements)),
      disagree === 0 ? '0' : colors.red(String(disagree)), count('known'), count('stale'), count('unsupported'),
    ]);
  };
  for (const report of reports) row(report.file.split('/').at(-1)!, [report]);
  if (reports.length > 1) row('total', reports);
  return grid.toString();
}

function details(report: ReplayReport, colors: Colors, verbose: boolean): string[] {
  const { disagreements, known, stale, unsupported, remarks, file } = report;
  const lines = disagreements.slice(0, SHOWN).flatMap((disagreement) => ['', ...describe(file, disagreement, colors.red('disagrees'), colors)]);
  if (disagreements.length > SHOWN) lines.push('', `${file}: … and ${disagreements.length - SHOWN} more (--json lists them)`);
  if (checksOf(report) === 0) lines.push(colors.yellow(`${file}: nothing in this file can be checked`));
  if (!verbose) return lines;
  for (const one of known) lines.push('', ...describe(file, one, colors.yellow('known'), colors), `  ${one.why} (${one.clause})`);
  for (const one of stale) lines.push('', `${file}: step ${one.step}: ${one.what}: ${one.side === 'file' ? 'the file' : 'the model'} answers from its cache`, `  file ${one.expected}, model ${one.got}; ${one.why}`);
  for (const one of unsupported) lines.push('', `${file}: step ${one.step} (${one.op}): ${one.what}: ${one.why}`);
  for (const remark of remarks) lines.push('', `${file}: ${remark}`);
  return lines;
}

function describe(file: string, { step, op, what, expected, got, caches, walk }: Disagreement, word: string, colors: Colors): string[] {
  return [
    `${file}: step ${step} (${op}) ${word}${caches === undefined ? '' : `, with caches ${caches}`}: ${what}`,
    `  expected ${expected}`,
    `  got      ${got}`,
    ...(walk ?? []).map((line) => colors.dim(`    ${line}`)),
  ];
}
