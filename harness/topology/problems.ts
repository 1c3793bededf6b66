/** Problems with what people wrote: all of them, each with its place, what is wrong and what is allowed. */

export interface Problem {
  readonly file: string;
  /** 1-based; absent when the problem has no place in the file. */
  readonly line?: number;
  readonly column?: number;
  /** `host.devices[0].pasid-bits` */
  readonly path?: string;
  readonly message: string;
}

/** A topology, vector or command line that cannot be used; nothing has started. */
export class InvalidInput extends Error {
  override readonly name = 'InvalidInput';
  readonly problems: readonly Problem[];

  constructor(problems: readonly Problem[]) {
    super(formatProblems(problems).join('\n'));
    this.problems = problems;
  }
}

const SHOWN = 50;

/** `file:line:col: path: message`, one per line; at most 50, then how many more. */
export function formatProblems(problems: readonly Problem[]): string[] {
  const lines = problems.slice(0, SHOWN).map(formatProblem);
  if (problems.length > SHOWN) lines.push(`… and ${problems.length - SHOWN} more`);
  return lines;
}

export function formatProblem(problem: Problem): string {
  const place = problem.line === undefined ? '' : `:${problem.line}:${problem.column ?? 1}`;
  const path = problem.path === undefined || problem.path === '' ? '' : `${problem.path}: `;
  return `${problem.file}${place}: ${path}${problem.message}`;
}

/** The nearest of `candidates` to a mistyped name, when it is near enough to be meant. */
export function nearest(name: string, candidates: readonly string[]): string | undefined {
  let best: string | undefined;
  let bestDistance = Math.max(2, Math.floor(name.length / 3)) + 1;
  for (const candidate of candidates) {
    const distance = editDistance(name.toLowerCase(), candidate.toLowerCase());
    if (distance < bestDistance) {
      best = candidate;
      bestDistance = distance;
    }
  }
  return best;
}

/** `unknown key "acess"; did you mean "access"? Allowed: …` */
export function unknownName(what: string, name: string, allowed: readonly string[]): string {
  const near = nearest(name, allowed);
  const hint = near === undefined ? '' : `; did you mean "${near}"?`;
  const list = allowed.length === 0 ? ' There is none' : allowed.length <= 24 ? ` Allowed: ${allowed.join(', ')}` : '';
  return `unknown ${what} "${clip(name)}"${hint === '' ? '.' : hint}${list}`;
}

export function clip(text: string, length = 60): string {
  return text.length <= length ? text : `${text.slice(0, length)}…`;
}

function editDistance(a: string, b: string): number {
  if (Math.abs(a.length - b.length) > 8 || a.length > 64) return 99;
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min(next[j - 1]! + 1, row[j]! + 1, row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)));
    }
    row = next;
  }
  return row[b.length]!;
}

/** Takes note of one problem: where in the topology, and what is wrong. */
export type Report = (path: readonly PropertyKey[], message: string) => void;

/** Reports every item whose key an earlier one has. */
export function unique<T>(items: readonly T[], key: (item: T) => string, report: (index: number, first: number) => void): void {
  const seen = new Map<string, number>();
  items.forEach((item, i) => {
    const first = seen.get(key(item));
    if (first === undefined) seen.set(key(item), i);
    else report(i, first);
  });
}
