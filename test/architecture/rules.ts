/**
 * The walls of the house, as a function from source files to violations. Which room may import which, what never
 * meets (a hardware model and its driver), and which names would make a run depend on anything but topology and seed.
 */
import { posix } from 'node:path';
import { importsOf, type ImportSite } from './imports.js';
import { tokenize, type Token } from './tokens.js';

/** In import order: a room imports itself and the rooms before it. */
export const ROOMS = ['sim', 'host', 'iommu', 'vfio', 'mdev', 'devices', 'guest', 'harness', 'cli'] as const;

export interface SourceFile {
  /** From the project's root, with forward slashes. */
  readonly path: string;
  readonly text: string;
}

export interface Violation {
  readonly path: string;
  readonly line: number;
  readonly message: string;
}

interface Import extends ImportSite {
  readonly line: number;
  /** The imported file from the project's root; undefined for a package or a computed name. */
  readonly target: string | undefined;
}

interface Module {
  readonly path: string;
  readonly tokens: readonly Token[];
  readonly imports: readonly Import[];
}

/** Files that live in real time: the wall clock and the transport to a real VMM. */
const REAL_TIME = /(^|\/)(wall-clock\.ts$|vfio-user(\/|[-.]))/;
/** Folders of `iommu/` that every architecture shares. */
const SHARED_IOMMU = new Set(['core', 'page-table', 'tlb']);
const SELF = 'vfiosim';

function roomIndex(path: string): number {
  return (ROOMS as readonly string[]).indexOf(path.split('/', 1)[0]!);
}

function has(path: string, folder: string): boolean {
  return path.split('/').slice(0, -1).includes(folder);
}

/** The architecture or device that a file belongs to: the second folder of its path. */
function under(path: string, room: string): string | undefined {
  const [first, second, ...rest] = path.split('/');
  return first === room && rest.length > 0 ? second : undefined;
}

function architecture(path: string): string | undefined {
  const folder = under(path, 'iommu');
  return folder === undefined || SHARED_IOMMU.has(folder) ? undefined : folder;
}

function parse(file: SourceFile): Module {
  const tokens = tokenize(file.text);
  const imports = importsOf(tokens).map((site): Import => {
    const relative = site.specifier?.startsWith('.') === true;
    const target = relative
      ? posix.join(posix.dirname(file.path), site.specifier).replace(/\.([cm]?)js$/, '.$1ts')
      : undefined;
    return { ...site, target };
  });
  return { path: file.path, tokens, imports };
}

/** Why `from` may not import the project's file `to`; undefined when it may. */
function refuseFile(from: string, to: string): string | undefined {
  const fromRoom = roomIndex(from);
  const toRoom = roomIndex(to);
  if (toRoom < 0) return 'lies outside the product folders';
  if (toRoom > fromRoom) return `room ${ROOMS[fromRoom]} may not import the later room ${ROOMS[toRoom]}`;
  if (has(from, 'spec') && toRoom > 0 && !has(to, 'spec')) return 'a spec imports only sim and other specs';
  if (has(from, 'hardware') && has(to, 'driver')) return 'hardware may not import a driver';
  if (has(from, 'hardware') && has(to, 'parent')) return 'hardware may not import a parent';
  if (has(from, 'driver') && has(to, 'hardware')) return 'a driver may not import hardware';
  const sharedIommu = under(from, 'iommu');
  if (sharedIommu !== undefined && SHARED_IOMMU.has(sharedIommu) && architecture(to) !== undefined) {
    return `iommu/${sharedIommu} may not import an architecture`;
  }
  if (ROOMS[fromRoom] === 'devices') {
    if (architecture(to) !== undefined) return 'a device may not import an IOMMU architecture';
    if (has(to, 'hardware') && ROOMS[toRoom] === 'iommu') return 'a device may not import IOMMU hardware';
    if (has(from, 'hardware') && ['iommu', 'vfio', 'mdev'].includes(ROOMS[toRoom]!)) {
      return 'device hardware does not know that an IOMMU exists';
    }
  }
  return undefined;
}

/** Why `from` may not import the package `name`; undefined when it may. */
function refusePackage(from: string, name: string): string | undefined {
  const room = ROOMS[roomIndex(from)];
  if (has(from, 'spec')) return 'a spec imports only sim and other specs';
  if (name === SELF || (name.startsWith(`${SELF}/`) && name !== `${SELF}/package.json`)) {
    return 'the product refers to its own files by path';
  }
  if (/^(inversify|reflect-metadata)(\/|$)/.test(name) && room !== 'harness') {
    return 'only harness composes with inversify';
  }
  if (/^(node:)?(timers(\/promises)?|perf_hooks)$/.test(name) && room !== 'cli' && !REAL_TIME.test(from)) {
    return 'a run depends on topology and seed only';
  }
  return undefined;
}

function checkImports({ path, imports }: Module): Violation[] {
  const found: Violation[] = [];
  for (const { specifier, target, line } of imports) {
    let why: string | undefined;
    if (specifier === undefined) {
      why = ['harness', 'cli'].includes(ROOMS[roomIndex(path)]!) ? undefined : 'a computed import hides what it imports';
    } else {
      why = target === undefined ? refusePackage(path, specifier) : refuseFile(path, target);
    }
    if (why !== undefined) found.push({ path, line, message: `import of ${target ?? specifier ?? '(computed)'}: ${why}` });
  }
  return found;
}

const TIMERS = new Set(['setTimeout', 'setInterval', 'setImmediate']);
const ENTROPY = new Set(['randomUUID', 'randomBytes', 'getRandomValues']);
const MEMBERS = new Set(['Date.now', 'performance.now', 'Math.random', 'process.hrtime']);

/** The forbidden name that starts or stands at token `at`. */
function nondeterminism(tokens: readonly Token[], at: number): string | undefined {
  const token = tokens[at]!;
  if (token.kind !== 'word') return undefined;
  const before = tokens[at - 1];
  const global = before?.text !== '.' || tokens[at - 2]?.text === 'globalThis';
  if (ENTROPY.has(token.text)) return token.text;
  if (!global) return undefined;
  if (TIMERS.has(token.text)) return token.text;
  if (token.text === 'Date' && (before?.text === 'new' || tokens[at + 1]?.text === '(')) return 'new Date';
  const dot = tokens[at + 1]?.text === '?' ? at + 2 : at + 1;
  const member = `${token.text}.${tokens[dot]?.text === '.' ? tokens[dot + 1]?.text : ''}`;
  return MEMBERS.has(member) ? member : undefined;
}

function checkDeterminism({ path, tokens }: Module): Violation[] {
  if (ROOMS[roomIndex(path)] === 'cli' || REAL_TIME.test(path)) return [];
  return tokens.flatMap((token, at) => {
    const name = nondeterminism(tokens, at);
    if (name === undefined) return [];
    return [{ path, line: token.line, message: `${name}: a run depends on topology and seed only` }];
  });
}

/** The shortest way along `edges` from `start` back to itself. */
function cycleThrough(start: string, edges: ReadonlyMap<string, readonly Import[]>): string[] | undefined {
  const cameFrom = new Map<string, string>();
  const queue = [start];
  for (let next = queue.shift(); next !== undefined; next = queue.shift()) {
    for (const { target } of edges.get(next)!) {
      if (target === start) {
        const way = [start];
        for (let at = next; at !== start; at = cameFrom.get(at)!) way.unshift(at);
        return [start, ...way];
      }
      if (cameFrom.has(target!)) continue;
      cameFrom.set(target!, next);
      queue.push(target!);
    }
  }
  return undefined;
}

/** Files that need each other at run time, each such circle once. */
function checkCycles(modules: readonly Module[]): Violation[] {
  const paths = new Set(modules.map(({ path }) => path));
  const edges = new Map<string, Import[]>();
  for (const { path, imports } of modules) {
    edges.set(path, imports.filter(({ target, typeOnly }) => !typeOnly && target !== undefined && paths.has(target)));
  }
  const reported = new Set<string>();
  const found: Violation[] = [];
  for (const path of [...paths].toSorted()) {
    const cycle = reported.has(path) ? undefined : cycleThrough(path, edges);
    if (cycle === undefined) continue;
    for (const member of cycle) reported.add(member);
    const { line } = edges.get(path)!.find(({ target }) => target === cycle[1])!;
    found.push({ path, line, message: `import cycle: ${cycle.join(' → ')}` });
  }
  return found;
}

/** Checks all files of the product folders together; files elsewhere are ignored. */
export function checkArchitecture(files: readonly SourceFile[]): Violation[] {
  const modules = files.filter(({ path }) => roomIndex(path) >= 0).map(parse);
  return [...modules.flatMap((module) => [...checkImports(module), ...checkDeterminism(module)]), ...checkCycles(modules)];
}

/** One violation as a line that editors and terminals can jump to. */
export function formatViolation({ path, line, message }: Violation): string {
  return `${path}:${line}: ${message}`;
}
