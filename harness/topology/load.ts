/**
 * From a YAML file to a checked topology. Every problem that has a place in the file is reported with line and
 * column; nothing is built from a file that has one.
 */
import { readFileSync, statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import { isMap, isPair, isScalar, isSeq, LineCounter, parseDocument, visit, type Document, type Node } from 'yaml';
import { z } from 'zod';
import { clip, InvalidInput, unknownName, type Problem } from './problems.js';
import { semanticProblems, type PathProblem } from './checks.js';
import { scan } from './scan.js';
import { topologySchema, type Topology, type TopologyInput } from './schema.js';

export const MAX_FILE_BYTES = 4 * 2 ** 20;

const MAX_ALIASES = 1000;
/** Problems whose place is looked up; there may be as many as keys in the file. */
const PLACED_PROBLEMS = 200;

export interface LoadedTopology {
  readonly topology: Topology;
  /** As given on the command line, or `<topology>` for one built in code. */
  readonly file: string;
  /** Files that processes name are relative to it. */
  readonly directory: string;
}

/** Loads and checks a file. Throws InvalidInput with every problem. */
export function loadTopology(file: string): LoadedTopology {
  const directory = dirname(resolve(file));
  return { topology: parseTopology(readText(file), file, directory), file, directory };
}

/** Checks a topology built in code; the same rules, problems without line and column. */
export function checkTopology(input: TopologyInput, directory = process.cwd()): LoadedTopology {
  return { topology: validate(input, '<topology>', directory, () => ({})), file: '<topology>', directory };
}

function readText(file: string): string {
  try {
    const { size } = statSync(file);
    if (size > MAX_FILE_BYTES) refuse(file, `file has ${size} bytes; a topology has at most ${MAX_FILE_BYTES}`);
    return readFileSync(file, 'utf8');
  } catch (error) {
    if (error instanceof InvalidInput) throw error;
    const { code } = error as NodeJS.ErrnoException;
    return refuse(file, code === 'ENOENT' ? 'no such file' : code === 'EISDIR' ? 'is a directory, not a file' : `cannot be read (${code ?? String(error)})`);
  }
}

function refuse(file: string, message: string, line?: number, column?: number): never {
  throw new InvalidInput([{ file, message, ...(line === undefined ? {} : { line, column: column ?? 1 }) }]);
}

/** Checks the text of a topology file. */
export function parseTopology(text: string, file: string, directory: string): Topology {
  if (text.length > MAX_FILE_BYTES) refuse(file, `${text.length} characters; a topology has at most ${MAX_FILE_BYTES}`);
  const refused = scan(text);
  if (refused !== undefined) refuse(file, refused.message, refused.line, refused.column);
  const lineCounter = new LineCounter();
  // the parser compares every key of a map with every other; `repeatedKeys` does not
  const document = withoutStacks(() => parseDocument(text, { lineCounter, uniqueKeys: false, intAsBigInt: true, prettyErrors: false }));
  const errors = document.errors.length > 0 ? document.errors.map(({ pos, message }) => ({ offset: pos[0], message })) : misuses(document);
  if (errors.length > 0) {
    throw new InvalidInput(errors.map(({ offset, message }) => {
      const { line, col } = lineCounter.linePos(offset);
      return { file, line, column: col, message: `YAML: ${clip(message.split('\n')[0]!, 200)}` };
    }));
  }
  let value: unknown;
  try {
    value = numbersOf(document.toJS({ maxAliasCount: 100 }));
  } catch (error) {
    refuse(file, `YAML: ${clip(String((error as Error).message), 200)}`, 1);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    refuse(file, 'a topology is a map with at least `version: 1`', 1);
  }
  return validate(value, file, directory, (path, key) => placeOf(document, lineCounter, path, key));
}

/** Garbage may bring 100,000 errors; the stack of each would cost more than the parsing. */
function withoutStacks<T>(parse: () => T): T {
  const limit = Error.stackTraceLimit;
  Error.stackTraceLimit = 0;
  try {
    return parse();
  } finally {
    Error.stackTraceLimit = limit;
  }
}

/** Keys given twice, and more aliases than anybody writes. */
function misuses(document: Document.Parsed): { offset: number; message: string }[] {
  const found: { offset: number; message: string }[] = [];
  let aliases = 0;
  visit(document, {
    Map(_key, map) {
      const seen = new Set<unknown>();
      for (const { key } of map.items) {
        if (!isScalar(key)) continue;
        if (seen.has(key.value)) found.push({ offset: key.range?.[0] ?? 0, message: `the key "${clip(String(key.value))}" is given twice` });
        seen.add(key.value);
      }
    },
    Alias(_key, { range }) {
      if (++aliases === MAX_ALIASES + 1) found.push({ offset: range?.[0] ?? 0, message: `more than ${MAX_ALIASES} aliases` });
    },
  });
  return found;
}

type Place = { line: number; column: number } | Record<string, never>;

function validate(value: unknown, file: string, directory: string, place: (path: readonly PropertyKey[], key?: string) => Place): Topology {
  const result = topologySchema.safeParse(value);
  let placed = 0;
  const problem = ({ path, message, key }: PathProblem & { key?: string }): Problem => ({
    file, ...(placed++ < PLACED_PROBLEMS ? place(path, key) : {}), path: formatPath(path), message,
  });
  if (!result.success) {
    const found = result.error.issues.flatMap((issue) => problemsOf(issue, value)).map(problem);
    const last = Number.MAX_SAFE_INTEGER;
    throw new InvalidInput(found.sort((a, b) => (a.line ?? last) - (b.line ?? last) || (a.column ?? 0) - (b.column ?? 0)));
  }
  const semantic = semanticProblems(result.data, directory);
  if (semantic.length > 0) throw new InvalidInput(semantic.map(problem));
  return result.data;
}

function problemsOf(issue: z.core.$ZodIssue, root: unknown): (PathProblem & { key?: string })[] {
  const { path } = issue;
  const value = path.reduce<unknown>((at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key], root);
  switch (issue.code) {
    case 'unrecognized_keys': {
      const allowed = allowedKeys(path, root);
      // the nearest name is looked for as long as somebody reads it
      return issue.keys.map((key, i) => ({ path, key, message: i < PLACED_PROBLEMS ? unknownName('key', key, allowed) : `unknown key "${clip(key)}"` }));
    }
    case 'invalid_type':
      return [{ path, message: value === undefined ? 'is missing' : `expects ${article(issue.expected)}, not ${shown(value)}` }];
    case 'invalid_value':
      return [{ path, message: value === undefined ? `is missing; allowed: ${issue.values.join(', ')}` : typeof value === 'string' ? unknownName('value', value, issue.values.map(String)) : `${shown(value)} is not allowed; allowed: ${issue.values.join(', ')}` }];
    case 'invalid_union':
      return [unionProblem(issue, path, value, root)];
    case 'too_small':
      return [{ path, message: `${shown(value)} is too small; allowed: at least ${issue.minimum}${unit(issue.origin)}` }];
    case 'too_big':
      return [{ path, message: `${shown(value)} is too large; allowed: at most ${issue.maximum}${unit(issue.origin)}` }];
    default:
      return [{ path, message: issue.message }];
  }
}

/** The branch of a union that got furthest says most. */
function unionProblem(issue: z.core.$ZodIssueInvalidUnion, path: readonly PropertyKey[], value: unknown, root: unknown): PathProblem {
  if (issue.discriminator !== undefined && path.at(-1) === issue.discriminator) {
    const allowed = discriminatorValues(schemaAt(path.slice(0, -1), root), issue.discriminator);
    return { path, message: typeof value === 'string' ? unknownName('value', value, allowed) : `is missing; allowed: ${allowed.join(', ')}` };
  }
  const deep = issue.errors.flat().filter((nested) => nested.path.length > 0 || nested.code === 'unrecognized_keys');
  if (deep.length > 0 && typeof value === 'object') {
    const nested = problemsOf(deep[0]!, value)[0]!;
    return { path: [...path, ...nested.path], message: nested.message };
  }
  const expected = [...new Set(issue.errors.flat().map((nested) => (nested.code === 'invalid_type' ? article(nested.expected) : nested.code === 'invalid_value' ? nested.values.join(', ') : nested.message)))];
  return { path, message: value === undefined ? 'is missing' : `${shown(value)} is not allowed; allowed: ${expected.join(' or ')}` };
}

function article(expected: string): string {
  const words: Record<string, string> = { int: 'a whole number', number: 'a number', string: 'a text', boolean: 'true or false', array: 'a list', object: 'a map', record: 'a map' };
  return words[expected] ?? expected;
}

function unit(origin: string): string {
  return origin === 'array' ? ' entries' : origin === 'string' ? ' characters' : '';
}

function shown(value: unknown): string {
  if (Array.isArray(value)) return 'a list';
  if (value === null) return 'nothing';
  if (typeof value === 'string') return `"${clip(value, 40)}"`;
  return typeof value === 'number' || typeof value === 'bigint' || typeof value === 'boolean' ? String(value) : 'a map';
}

/** Keys the schema allows at `path`. */
function allowedKeys(path: readonly PropertyKey[], root: unknown): string[] {
  const value = path.reduce<unknown>((at, key) => (at as Record<PropertyKey, unknown> | undefined)?.[key], root);
  const schema = unwrap(schemaAt(path, root), value);
  return schema instanceof z.ZodObject ? Object.keys(schema.shape) : [];
}

function discriminatorValues(schema: z.core.$ZodType | undefined, discriminator: string): string[] {
  if (!(schema instanceof z.ZodDiscriminatedUnion)) return [];
  return schema.options.flatMap((option) => (option instanceof z.ZodObject ? [...(option.shape[discriminator] as z.ZodLiteral).values].map(String) : []));
}

/** The schema of the value at `path`; unions on the way are resolved by their discriminator in the value. */
function schemaAt(path: readonly PropertyKey[], root: unknown): z.core.$ZodType | undefined {
  let schema: z.core.$ZodType | undefined = topologySchema;
  let value = root;
  for (const key of path) {
    schema = unwrap(schema, value);
    if (schema instanceof z.ZodObject) schema = schema.shape[String(key)] as z.core.$ZodType | undefined;
    else if (schema instanceof z.ZodArray) schema = schema.element;
    else if (schema instanceof z.ZodRecord) schema = schema.valueType;
    else return undefined;
    value = (value as Record<PropertyKey, unknown> | undefined)?.[key];
  }
  return schema;
}

function unwrap(schema: z.core.$ZodType | undefined, value: unknown): z.core.$ZodType | undefined {
  for (;;) {
    if (schema instanceof z.ZodOptional || schema instanceof z.ZodDefault || schema instanceof z.ZodPrefault) schema = schema.unwrap() as z.core.$ZodType;
    else if (schema instanceof z.ZodDiscriminatedUnion) {
      const { discriminator } = schema.def;
      const said = (value as Record<string, unknown> | undefined)?.[discriminator];
      schema = schema.options.find((option) => option instanceof z.ZodObject && (option.shape[discriminator] as z.ZodLiteral | undefined)?.safeParse(said).success);
    } else if (schema instanceof z.ZodUnion) schema = schema.options.find((option): option is z.ZodObject => option instanceof z.ZodObject);
    else return schema;
  }
}

function formatPath(path: readonly PropertyKey[]): string {
  return path.map((key, i) => (typeof key === 'number' ? `[${key}]` : i === 0 ? String(key) : `.${String(key)}`)).join('');
}

/** Place of the node at `path`, of its nearest existing parent, or of `key` in it. */
function placeOf(document: Document.Parsed, lineCounter: LineCounter, path: readonly PropertyKey[], key?: string): Place {
  let node: unknown = document.contents;
  let offset = (node as Node | null)?.range?.[0] ?? 0;
  const keys = key === undefined ? path : [...path, key];
  for (const [index, part] of keys.entries()) {
    if (isMap(node)) {
      const pair = node.items.find((item) => isPair(item) && isScalar(item.key) && String(item.key.value) === String(part));
      if (pair === undefined) break;
      const last = index === keys.length - 1;
      const keyStart = (pair.key as Node).range?.[0] ?? offset;
      node = pair.value;
      offset = last && key === undefined ? ((node as Node | null)?.range?.[0] ?? keyStart) : keyStart;
    } else if (isSeq(node)) {
      node = node.items[Number(part)];
      offset = (node as Node | undefined)?.range?.[0] ?? offset;
    } else break;
  }
  const { line, col } = lineCounter.linePos(offset);
  return { line, column: col };
}

/** Integers come as bigint so that none is rounded; those a double holds exactly become numbers. */
function numbersOf(value: unknown): unknown {
  if (typeof value === 'bigint') return value <= Number.MAX_SAFE_INTEGER && value >= Number.MIN_SAFE_INTEGER ? Number(value) : value;
  if (Array.isArray(value)) return value.map(numbersOf);
  if (typeof value === 'object' && value !== null) return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, numbersOf(item)]));
  return value;
}
