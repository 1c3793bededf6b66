/**
 * A first look at a topology's text, before the YAML parser sees it: what would make the parser recurse deeply, or
 * work for more than a second or two, is refused here. Counts roughly: it knows quotes, comments, flow brackets and
 * indentation, and nothing else of YAML.
 */

export const MAX_DEPTH = 64;
/** Lines, keys, list items and brackets together. */
export const MAX_MARKS = 120_000;

export interface ScanProblem {
  readonly message: string;
  readonly line: number;
  readonly column: number;
}

const TAB = 9, LF = 10, CR = 13, SPACE = 32, DOUBLE = 34, HASH = 35, SINGLE = 39, COMMA = 44, DASH = 45, COLON = 58, OPEN_LIST = 91, BACKSLASH = 92, CLOSE_LIST = 93, OPEN_MAP = 123, CLOSE_MAP = 125;

/** The first reason not to parse `text`; undefined when there is none. */
export function scan(text: string): ScanProblem | undefined {
  const indents: number[] = [];
  let flow = 0, marks = 0, line = 1, lineStart = 0, quote = 0, blank = true;
  const problem = (message: string, at: number): ScanProblem => ({ message, line, column: at - lineStart + 1 });
  for (let i = 0; i < text.length; i++) {
    const c = text.charCodeAt(i);
    if (c === LF) {
      line++;
      lineStart = i + 1;
      blank = true;
      marks++;
      // a quote in a plain scalar is no quote; a real one may span lines inside brackets only
      if (flow === 0) quote = 0;
      if (marks > MAX_MARKS) return problem(tooMany(), i + 1);
      continue;
    }
    if (c < SPACE && c !== TAB && c !== CR) return problem(`the control character U+${c.toString(16).toUpperCase().padStart(4, '0')} is not allowed`, i);
    if (quote !== 0) {
      if (c === quote) quote = 0;
      else if (c === BACKSLASH && quote === DOUBLE && text.charCodeAt(i + 1) !== LF) i++;
      continue;
    }
    if (c === SPACE) continue;
    if (blank) {
      blank = false;
      if (flow === 0 && c !== HASH && c !== CR) openBlock(text, i, i - lineStart, indents);
    }
    if (c === HASH && isSpace(text.charCodeAt(i - 1), i === lineStart)) while (i + 1 < text.length && text.charCodeAt(i + 1) !== LF) i++;
    else if ((c === DOUBLE || c === SINGLE) && opensQuote(text.charCodeAt(i - 1), i === lineStart)) quote = c;
    else if (c === OPEN_LIST || c === OPEN_MAP) {
      flow++;
      marks++;
    } else if (c === CLOSE_LIST || c === CLOSE_MAP) flow -= flow > 0 ? 1 : 0;
    else if (c === COLON || (c === COMMA && flow > 0)) marks++;
    if (marks > MAX_MARKS) return problem(tooMany(), i);
    if (flow + indents.length > MAX_DEPTH) return problem(`nested deeper than ${MAX_DEPTH} levels`, i);
  }
  return undefined;
}

function tooMany(): string {
  return `more than ${MAX_MARKS} lines, keys and list items; \`count\` of a process and \`repeat\` say many things in few lines`;
}

/** Block structure by growing indentation; `- - - x` opens one level per dash. */
function openBlock(text: string, at: number, indent: number, indents: number[]): void {
  while (indents.length > 0 && indents.at(-1)! >= indent) indents.pop();
  indents.push(indent);
  for (let j = at; indents.length <= MAX_DEPTH && text.charCodeAt(j) === DASH && text.charCodeAt(j + 1) === SPACE; j += 2) indents.push((indent += 2));
}

function isSpace(c: number, lineStart: boolean): boolean {
  return lineStart || c === SPACE || c === TAB;
}

function opensQuote(before: number, lineStart: boolean): boolean {
  return isSpace(before, lineStart) || before === OPEN_LIST || before === OPEN_MAP || before === COMMA || before === COLON || before === DASH;
}
