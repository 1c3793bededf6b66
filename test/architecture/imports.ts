/** Finds every way in which a TypeScript file names another module. */
import type { Token } from './tokens.js';

export interface ImportSite {
  /** The module as written, or undefined where it is computed at run time. */
  readonly specifier: string | undefined;
  /** Gone after compilation: `import type`, `export type … from`, `import('x').Type`. */
  readonly typeOnly: boolean;
  /** 1-based line of the `import`, `export` or `require`. */
  readonly line: number;
}

const PROMISE_METHODS = new Set(['then', 'catch', 'finally']);

/** `import('x')` and `require('x')`, `at` being the opening parenthesis. */
function call(tokens: readonly Token[], at: number, line: number): ImportSite {
  const argument = tokens[at + 1];
  if (argument?.kind !== 'string') return { specifier: undefined, typeOnly: false, line };
  // `import('x').Name` names a type; on a promise only its methods can follow.
  const member = tokens[at + 3]?.text === '.' ? tokens[at + 4]?.text : undefined;
  const awaited = tokens[at - 2]?.text === 'await';
  const typeOnly =
    (member !== undefined && !PROMISE_METHODS.has(member) && !awaited && tokens[at - 1]?.text === 'import') ||
    tokens[at - 2]?.text === 'typeof';
  return { specifier: argument.text, typeOnly, line };
}

/** The string after the next `from` of the clause that starts at `at`; undefined when there is none. */
function fromClause(tokens: readonly Token[], at: number): string | undefined {
  for (let i = at; i < tokens.length; i++) {
    const token = tokens[i]!;
    const next = tokens[i + 1];
    if (token.text === 'from' && token.kind === 'word' && next?.kind === 'string') return next.text;
    const inClause =
      token.kind === 'word' || token.kind === 'string' || (token.kind === 'punctuation' && '{},*'.includes(token.text));
    if (!inClause || (token.text === '}' && next?.text !== 'from')) return undefined;
  }
  return undefined;
}

function staticImport(tokens: readonly Token[], at: number): ImportSite | undefined {
  const { line } = tokens[at]!;
  const next = tokens[at + 1];
  if (next?.kind === 'string') return { specifier: next.text, typeOnly: false, line };
  const specifier = fromClause(tokens, at + 1);
  if (specifier === undefined) return undefined;
  const after = tokens[at + 2]?.text;
  return { specifier, typeOnly: next?.text === 'type' && after !== 'from' && after !== ',', line };
}

function exportFrom(tokens: readonly Token[], at: number): ImportSite | undefined {
  const typeOnly = tokens[at + 1]?.text === 'type';
  const open = at + (typeOnly ? 2 : 1);
  if (tokens[open]?.text !== '{' && tokens[open]?.text !== '*') return undefined;
  const specifier = fromClause(tokens, open);
  return specifier === undefined ? undefined : { specifier, typeOnly, line: tokens[at]!.line };
}

export function importsOf(tokens: readonly Token[]): ImportSite[] {
  const found: ImportSite[] = [];
  tokens.forEach((token, at) => {
    if (token.kind !== 'word' || tokens[at - 1]?.text === '.') return;
    const called = tokens[at + 1]?.text === '(' && tokens[at + 1]?.kind === 'punctuation';
    let site: ImportSite | undefined;
    if (token.text === 'import') site = called ? call(tokens, at + 1, token.line) : staticImport(tokens, at);
    else if (token.text === 'require' && called) site = call(tokens, at + 1, token.line);
    else if (token.text === 'export') site = exportFrom(tokens, at);
    if (site !== undefined) found.push(site);
  });
  return found;
}
