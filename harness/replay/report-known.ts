/**
 * Disagreements whose reason is known: a list beside the files (disagreements.yaml), each entry with what the other
 * implementation does, the clause that decides, and why. Listed ones are reported apart and are no failure; an entry
 * that no longer applies is an error, so that the list stays true.
 */
import { existsSync, readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { LineCounter, isMap, isScalar, isSeq, parseDocument, type Node, type YAMLMap } from 'yaml';
import { InvalidInput, unknownName, type Problem } from '../topology/problems.js';
import type { KnownDisagreement, ReplayReport } from './report.js';
import { systemError } from './vector-file.js';

export const KNOWN_FILE = 'disagreements.yaml';

export interface KnownEntry {
  /** Names of vectors or traces, without folder and without `.gz`, and the steps or lines in each. */
  readonly files: readonly { readonly file: string; readonly steps: readonly number[]; readonly line: number }[];
  /** What the implementation that was recorded does. */
  readonly does: string;
  readonly clause: string;
  /** Why the model does otherwise. */
  readonly why: string;
}

export interface KnownList {
  /** As problems name it. */
  readonly file: string;
  readonly entries: readonly KnownEntry[];
}

/** `dir/vtd-qi-s1.json.gz` → `vtd-qi-s1.json` */
export function knownName(file: string): string {
  return basename(file).replace(/\.gz$/, '');
}

/** The list in the folder of a file; undefined when there is none. */
export function knownListBeside(file: string): string | undefined {
  const path = join(dirname(file), KNOWN_FILE);
  return existsSync(path) ? path : undefined;
}

/** Folders of the recordings this project keeps; their lists are part of the package. */
const OWN_FOLDERS = ['test/vectors', 'test/linux-traces'];

/** The project's own list that names a file, for copies that lie elsewhere; undefined when none does. */
export function ownListNaming(file: string): string | undefined {
  const name = knownName(file);
  return OWN_FOLDERS.map((folder) => ownPath(join(folder, KNOWN_FILE)))
    .find((path) => path !== undefined && loadKnownList(path).entries.some(({ files }) => files.some((listed) => listed.file === name)));
}

/** A file of the package: beside the sources in a checkout, two levels further up from what was built. */
function ownPath(path: string): string | undefined {
  return ['../..', '../../..'].map((up) => fileURLToPath(new URL(`${up}/${path}`, import.meta.url))).find(existsSync);
}

/** @throws InvalidInput with every problem and its line */
export function loadKnownList(file: string): KnownList {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new InvalidInput([{ file, message: systemError(error) }]);
  }
  return parseKnownList(text, file);
}

export function parseKnownList(text: string, file: string): KnownList {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, uniqueKeys: true });
  const problems: Problem[] = document.errors.map((error): Problem => ({ file, ...at(lines, error.pos[0]), message: error.message.split('\n')[0]!.replace(/ at line.*$/, '') }));
  const complain = (node: Node | null | undefined, path: string, message: string): void => {
    problems.push({ file, ...(node?.range == null ? {} : at(lines, node.range[0])), path, message });
  };
  const entries: KnownEntry[] = [];
  const root = document.contents;
  const list = isMap(root) ? root.get('disagreements', true) : undefined;
  if (problems.length === 0) {
    if (!isMap(root) || (root as YAMLMap).get('version') !== 1) complain(root, 'version', 'expected "version: 1"');
    else if (!isSeq(list)) complain(root, 'disagreements', 'expected a list');
    else list.items.forEach((item, index) => {
      const path = `disagreements[${index}]`;
      if (isMap(item)) entries.push(readEntry(item, path, lines, complain));
      else complain(item as Node, path, 'expected an entry with files, does, clause, why');
    });
  }
  if (problems.length > 0) throw new InvalidInput(problems);
  return { file, entries };
}

const ENTRY_KEYS = ['files', 'does', 'clause', 'why'];

function readEntry(map: YAMLMap, path: string, lines: LineCounter, complain: (node: Node | null | undefined, path: string, message: string) => void): KnownEntry {
  for (const pair of map.items) {
    const key = String(isScalar(pair.key) ? pair.key.value : pair.key);
    if (!ENTRY_KEYS.includes(key)) complain(pair.key as Node, path, unknownName('key', key, ENTRY_KEYS));
  }
  const text = (key: string): string => {
    const value: unknown = map.get(key);
    if (typeof value === 'string' && value.trim() !== '') return value.trim();
    complain(map, `${path}.${key}`, 'expected a text');
    return '';
  };
  const files = map.get('files', true);
  if (!isMap(files) || files.items.length === 0) complain(map, `${path}.files`, 'expected file names with their steps, such as "vtd-qi-s1.json: [210, 228]"');
  const entry = { does: text('does'), clause: text('clause'), why: text('why') };
  return {
    ...entry,
    files: !isMap(files) ? [] : files.items.map((pair) => {
      const steps: unknown = isSeq(pair.value) ? pair.value.toJSON() : undefined;
      const node = pair.key as Node;
      if (!Array.isArray(steps) || steps.length === 0 || !steps.every((step) => Number.isSafeInteger(step) && (step as number) >= 0)) complain(node, `${path}.files`, 'expected a list of step numbers');
      return { file: String(isScalar(pair.key) ? pair.key.value : ''), steps: (steps ?? []) as number[], line: node.range == null ? 1 : at(lines, node.range[0]).line };
    }),
  };
}

function at(lines: LineCounter, offset: number): { line: number; column: number } {
  const { line, col } = lines.linePos(offset);
  return { line, column: col };
}

/** The report with listed disagreements apart, and a problem for each listed step that does not disagree any more. */
export function applyKnown(report: ReplayReport, list: KnownList): { readonly report: ReplayReport; readonly outdated: readonly Problem[] } {
  const name = knownName(report.file);
  const known: KnownDisagreement[] = [];
  const outdated: Problem[] = [];
  let left = report.disagreements;
  for (const entry of list.entries) {
    for (const { file, steps, line } of entry.files) {
      if (file !== name) continue;
      for (const step of steps) {
        const matching = left.filter((disagreement) => disagreement.step === step);
        if (matching.length === 0) outdated.push({ file: list.file, line, column: 1, message: `${file}: step ${step} does not disagree any more: "${entry.does.slice(0, 60)}…"` });
        left = left.filter((disagreement) => disagreement.step !== step);
        known.push(...matching.map((disagreement) => ({ ...disagreement, clause: entry.clause, why: entry.why })));
      }
    }
  }
  return { report: { ...report, disagreements: left, known: [...report.known, ...known].toSorted((a, b) => a.step - b.step) }, outdated };
}

/** Listed files that a replayed folder does not hold. */
export function missingFiles(list: KnownList, present: ReadonlySet<string>): Problem[] {
  return list.entries.flatMap(({ files }) => files.filter(({ file }) => !present.has(file))
    .map(({ file, line }): Problem => ({ file: list.file, line, column: 1, message: `${file}: there is no such file in this folder` })));
}
