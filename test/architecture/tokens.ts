/**
 * A small lexer for TypeScript, enough to see a file's imports and the names it uses: comments vanish, strings
 * are single tokens, code inside `${…}` is code. It leaves out JSX. A regular expression is told from a
 * division by what stands before it, as no parser is at hand.
 */

export type TokenKind = 'word' | 'string' | 'template' | 'regex' | 'number' | 'punctuation';

export interface Token {
  readonly kind: TokenKind;
  /** A string's content without its quotes and escapes as written; any other token's text. */
  readonly text: string;
  /** 1-based. */
  readonly line: number;
  readonly start: number;
}

const WORD = /[\p{ID_Start}$_#][\p{ID_Continue}$\u200c\u200d]*/uy;
const NUMBER = /(?:0[xob][\da-f_]+|\d[\d_]*\.?[\d_]*(?:e[+-]?\d+)?)n?/iy;
const REGEX = /\/(?![*/])(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\[\n])+\/[a-z]*/y;
const WORDS_BEFORE_A_VALUE = new Set(
  'await case delete do else extends in instanceof new of return throw typeof void yield'.split(' '),
);

function matchAt(pattern: RegExp, text: string, at: number): string | undefined {
  pattern.lastIndex = at;
  return pattern.exec(text)?.[0];
}

/** Whether the tokens so far end a value, so that a following `/` divides and a following `!` asserts. */
function endsValue(tokens: readonly Token[], at = tokens.length - 1): boolean {
  const last = tokens[at];
  if (last === undefined) return false;
  if (last.kind === 'word') return !WORDS_BEFORE_A_VALUE.has(last.text) || tokens[at - 1]?.text === '.';
  if (last.kind !== 'punctuation') return true;
  if (last.text === ')' || last.text === ']' || last.text === '}') return true;
  if (last.text === '!') return endsValue(tokens, at - 1);
  const before = tokens[at - 1];
  const doubled = before?.text === last.text && before.start === last.start - 1;
  return (last.text === '+' || last.text === '-') && doubled && endsValue(tokens, at - 2);
}

class Lexer {
  private readonly source: string;
  private readonly tokens: Token[] = [];
  private at = 0;
  private line = 1;

  constructor(source: string) {
    this.source = source;
  }

  run(): Token[] {
    while (this.at < this.source.length) this.code();
    return this.tokens;
  }

  private push(kind: TokenKind, text: string, end: number): void {
    this.tokens.push({ kind, text, line: this.line, start: this.at });
    this.skipTo(end);
  }

  private skipTo(end: number): void {
    for (; this.at < end; this.at++) if (this.source[this.at] === '\n') this.line++;
  }

  /** Reads code until the brace that closes the current `${`, or to the end of the file. */
  private substitution(): void {
    let depth = 1;
    while (this.at < this.source.length) {
      const char = this.source[this.at];
      if (char === '{') depth++;
      if (char === '}' && --depth === 0) return;
      this.code();
    }
  }

  private code(): void {
    const { source, at } = this;
    const char = source[at]!;
    if (/\s/.test(char)) return this.skipTo(at + 1);
    if (source.startsWith('//', at)) return this.skipTo(this.find('\n', at));
    if (at === 0 && source.startsWith('#!')) return this.skipTo(this.find('\n', at));
    if (source.startsWith('/*', at)) return this.skipTo(this.find('*/', at + 2) + 2);
    if (char === '"' || char === "'") return this.string(char);
    if (char === '`') return this.template();
    const regex = char === '/' && !endsValue(this.tokens) ? matchAt(REGEX, source, at) : undefined;
    if (regex !== undefined) return this.push('regex', regex, at + regex.length);
    const number = matchAt(NUMBER, source, at);
    if (number !== undefined) return this.push('number', number, at + number.length);
    const word = matchAt(WORD, source, at);
    if (word !== undefined) return this.push('word', word, at + word.length);
    this.push('punctuation', char, at + 1);
  }

  private find(what: string, from: number): number {
    const found = this.source.indexOf(what, from);
    return found < 0 ? this.source.length : found;
  }

  private string(quote: string): void {
    let end = this.at + 1;
    while (end < this.source.length && this.source[end] !== quote && this.source[end] !== '\n') {
      end += this.source[end] === '\\' ? 2 : 1;
    }
    this.push('string', this.source.slice(this.at + 1, end), end + 1);
  }

  /** One token for the template itself, then the tokens of its substitutions. */
  private template(): void {
    this.push('template', '`', this.at + 1);
    while (this.at < this.source.length) {
      if (this.source[this.at] === '`') return this.skipTo(this.at + 1);
      if (this.source.startsWith('${', this.at)) {
        this.skipTo(this.at + 2);
        this.substitution();
        this.skipTo(this.at + 1);
      } else {
        this.skipTo(this.at + (this.source[this.at] === '\\' ? 2 : 1));
      }
    }
  }
}

export function tokenize(source: string): Token[] {
  return new Lexer(source).run();
}
