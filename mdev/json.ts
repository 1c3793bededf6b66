/**
 * JSON as people write it into files (RFC 8259), read with the place of every value, so that a mistake can be shown
 * where it is; and printed as serde_json's `to_string_pretty` prints it, which is what mdevctl writes. Keys keep
 * their order. Numbers are read as JavaScript reads them: nothing here needs more.
 */

/** 1-based. */
export interface JsonAt {
  readonly line: number;
  readonly column: number;
}

export interface JsonMember {
  readonly key: string;
  readonly at: JsonAt;
  readonly value: JsonValue;
}

export type JsonValue = { readonly at: JsonAt } & (
  | { readonly kind: 'null' }
  | { readonly kind: 'boolean'; readonly value: boolean }
  | { readonly kind: 'number'; readonly value: number }
  | { readonly kind: 'string'; readonly value: string }
  | { readonly kind: 'array'; readonly items: readonly JsonValue[] }
  | { readonly kind: 'object'; readonly members: readonly JsonMember[] }
);

/** A text that is no JSON; `message` says what is wrong, `at` where. */
export class JsonSyntaxError extends Error {
  override readonly name = 'JsonSyntaxError';
  readonly at: JsonAt;

  constructor(at: JsonAt, message: string) {
    super(message);
    this.at = at;
  }
}

const MAX_DEPTH = 64;
const ESCAPES: Readonly<Record<string, string>> = { '"': '"', '\\': '\\', '/': '/', b: '\b', f: '\f', n: '\n', r: '\r', t: '\t' };
const NUMBER = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
const WORD = /[A-Za-z]+/y;

/** @throws JsonSyntaxError */
export function readJson(text: string): JsonValue {
  return new JsonReader(text).document();
}

class JsonReader {
  private readonly text: string;
  private offset = 0;
  private depth = 0;

  constructor(text: string) {
    this.text = text.startsWith('\uFEFF') ? text.slice(1) : text;
  }

  document(): JsonValue {
    const value = this.value('a value');
    this.space();
    if (this.offset < this.text.length) this.fail(`${this.here()} follows the end of the value`);
    return value;
  }

  private value(wanted: string): JsonValue {
    this.space();
    const at = this.at();
    const first = this.text[this.offset];
    switch (first) {
      case '{': return { at, kind: 'object', members: this.nested(() => this.members()) };
      case '[': return { at, kind: 'array', items: this.nested(() => this.items()) };
      case '"': return { at, kind: 'string', value: this.string() };
      default: return this.scalar(at, wanted);
    }
  }

  private scalar(at: JsonAt, wanted: string): JsonValue {
    const number = this.match(NUMBER);
    if (number !== undefined) return { at, kind: 'number', value: Number(number) };
    const start = this.offset;
    switch (this.match(WORD)) {
      case 'null': return { at, kind: 'null' };
      case 'true': return { at, kind: 'boolean', value: true };
      case 'false': return { at, kind: 'boolean', value: false };
      default:
        this.offset = start;
        return this.fail(`${this.here()} stands where ${wanted} should be`);
    }
  }

  private nested<T>(read: () => T): T {
    if (++this.depth > MAX_DEPTH) this.fail(`nested deeper than ${MAX_DEPTH}`);
    this.offset++;
    const result = read();
    this.depth--;
    return result;
  }

  private items(): JsonValue[] {
    const items: JsonValue[] = [];
    this.space();
    if (this.take(']')) return items;
    for (;;) {
      items.push(this.value('a value'));
      this.space();
      if (this.take(']')) return items;
      if (!this.take(',')) this.fail(`${this.here()} stands where , or ] should be`);
    }
  }

  private members(): JsonMember[] {
    const members: JsonMember[] = [];
    this.space();
    if (this.take('}')) return members;
    for (;;) {
      this.space();
      const at = this.at();
      if (this.text[this.offset] !== '"') this.fail(`${this.here()} stands where a key in double quotes should be`);
      const key = this.string();
      this.space();
      if (!this.take(':')) this.fail(`${this.here()} stands where : should be`);
      members.push({ key, at, value: this.value(`the value of ${JSON.stringify(key)}`) });
      this.space();
      if (this.take('}')) return members;
      if (!this.take(',')) this.fail(`${this.here()} stands where , or } should be`);
    }
  }

  private string(): string {
    let value = '';
    const start = this.offset++;
    for (;;) {
      const c = this.text[this.offset];
      if (c === undefined || c === '\n') return this.fail('the string does not end', start);
      if (c < ' ') return this.fail('a control character in a string has to be escaped');
      this.offset++;
      if (c === '"') return value;
      value += c === '\\' ? this.escape() : c;
    }
  }

  private escape(): string {
    const c = this.text[this.offset] ?? '';
    if (c === 'u') {
      const digits = /^[0-9a-fA-F]{4}/.exec(this.text.slice(this.offset + 1, this.offset + 5))?.[0];
      if (digits === undefined) return this.fail('\\u needs four hexadecimal digits', this.offset - 1);
      this.offset += 5;
      return String.fromCharCode(parseInt(digits, 16));
    }
    if (!Object.hasOwn(ESCAPES, c)) return this.fail(`there is no escape \\${c}`, this.offset - 1);
    this.offset++;
    return ESCAPES[c]!;
  }

  private space(): void {
    while (this.offset < this.text.length && ' \t\n\r'.includes(this.text[this.offset]!)) this.offset++;
  }

  private take(c: string): boolean {
    if (this.text[this.offset] !== c) return false;
    this.offset++;
    return true;
  }

  private match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.offset;
    const found = pattern.exec(this.text)?.[0];
    if (found !== undefined) this.offset += found.length;
    return found;
  }

  private here(): string {
    const start = this.offset;
    const code = this.text.codePointAt(start);
    const word = this.match(WORD) ?? (code === undefined ? undefined : String.fromCodePoint(code));
    this.offset = start;
    return word === undefined ? 'the end of the file' : `"${word}"`;
  }

  private at(offset = this.offset): JsonAt {
    const before = this.text.slice(0, offset).split('\n');
    return { line: before.length, column: before.at(-1)!.length + 1 };
  }

  private fail(message: string, offset = this.offset): never {
    throw new JsonSyntaxError(this.at(offset), message);
  }
}

/** What can be printed; a Map is an object, in its order. */
export type Printable = string | number | readonly Printable[] | ReadonlyMap<string, Printable>;

/** Two spaces a level, empty arrays and objects on one line, no newline at the end. */
export function printJson(value: Printable, indent = ''): string {
  if (typeof value === 'string' || typeof value === 'number') return JSON.stringify(value);
  const inner = `${indent}  `;
  const [open, close] = value instanceof Map ? ['{', '}'] : ['[', ']'];
  const lines = value instanceof Map
    ? [...(value as ReadonlyMap<string, Printable>)].map(([key, member]) => `${inner}${JSON.stringify(key)}: ${printJson(member, inner)}`)
    : (value as readonly Printable[]).map((item) => `${inner}${printJson(item, inner)}`);
  return lines.length === 0 ? `${open}${close}` : `${open}\n${lines.join(',\n')}\n${indent}${close}`;
}
