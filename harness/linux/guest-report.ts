/**
 * What a guest's console said, as data: the lines of guest/init, which begin with GUEST, and the kernel's own messages.
 * Both come through the kernel's log, so each has its time. Left out: what other programs print on the console; it
 * stays among the lines.
 */

/** One line of guest/init or its programs: `nvme written block=7 direct=yes`. */
export interface GuestFact {
  /** Seconds since the kernel started; absent when the line did not come through the kernel's log. */
  readonly seconds?: number;
  /** First word: a step, or `booted`, `begin`, `end`, `fail`, `timeout`, `done`. */
  readonly topic: string;
  /** What follows and is not KEY=VALUE. */
  readonly words: readonly string[];
  readonly values: Readonly<Record<string, string>>;
  /** All behind GUEST. */
  readonly text: string;
}

/** One message of the guest's kernel. */
export interface KernelLine {
  readonly seconds: number;
  readonly text: string;
}

/** A console as it was: nothing left out, nothing repeated. */
export interface ConsoleReport {
  readonly lines: readonly string[];
  readonly facts: readonly GuestFact[];
  readonly dmesg: readonly KernelLine[];
}

const KERNEL_LINE = /^\[ *(\d+\.\d+)\](?:\[ *[TC]\d+\])? ?(.*)$/;
const FACT = /^GUEST (\S+) ?(.*)$/;
const VALUE = /^([A-Za-z][A-Za-z0-9_.-]*)=(.*)$/;
// a terminal's control sequences, which firmware prints
// oxlint-disable-next-line no-control-regex
const ESCAPES = /\u001B(?:\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>78])/g;
const LONGEST_LINE = 16_384;

/** Cuts what comes from a console into lines: carriage returns and a terminal's escapes go, a screen reset ends a line. */
export class ConsoleLines {
  private readonly onLine: (line: string) => void;
  private readonly decoder = new TextDecoder();
  private rest = '';

  constructor(onLine: (line: string) => void) {
    this.onLine = onLine;
  }

  push(bytes: Uint8Array): void {
    this.take(this.rest + this.decoder.decode(bytes, { stream: true }));
  }

  /** What had no end of line is a line too. */
  end(): void {
    this.take(this.rest + this.decoder.decode());
    if (this.rest !== '') this.emit(this.rest);
    this.rest = '';
  }

  private take(text: string): void {
    const pieces = text.split('\n');
    this.rest = pieces.pop()!;
    for (const piece of pieces) this.emit(piece);
    if (this.rest.length > LONGEST_LINE) {
      this.emit(this.rest);
      this.rest = '';
    }
  }

  private emit(piece: string): void {
    for (const line of piece.split('\u001Bc')) {
      const clean = line.replaceAll(ESCAPES, '').replaceAll('\r', '');
      if (clean !== '') this.onLine(clean);
    }
  }
}

/** The fact in a line of the console, if there is one. */
export function parseFact(line: string): GuestFact | undefined {
  const kernel = KERNEL_LINE.exec(line);
  const fact = FACT.exec(kernel?.[2] ?? line);
  if (fact === null) return undefined;
  const [, topic, rest] = fact;
  const words: string[] = [];
  const values: Record<string, string> = {};
  // a message of the kernel keeps its words
  for (const word of topic === 'dmesg' ? [] : rest!.split(' ')) {
    const value = VALUE.exec(word);
    if (value !== null) values[value[1]!] = value[2]!;
    else if (word !== '') words.push(word);
  }
  const text = rest === '' ? topic! : `${topic} ${rest}`;
  return { ...(kernel === null ? {} : { seconds: Number(kernel[1]) }), topic: topic!, words, values, text };
}

/** The kernel's message in a line of the console; undefined for a fact, and for what the kernel did not print. */
export function parseKernelLine(line: string): KernelLine | undefined {
  const found = KERNEL_LINE.exec(line);
  if (found === null || FACT.test(found[2]!)) return undefined;
  return { seconds: Number(found[1]), text: found[2]! };
}

/** Facts and kernel messages among a console's lines. Messages that only `GUEST dmesg` has (a quiet console) count too. */
export function readConsole(lines: readonly string[]): ConsoleReport {
  const facts: GuestFact[] = [];
  const dmesg: KernelLine[] = [];
  for (const line of lines) {
    const fact = parseFact(line);
    if (fact !== undefined) facts.push(fact);
    const message = parseKernelLine(line);
    if (message !== undefined) dmesg.push(message);
  }
  const known = new Set(dmesg.map(({ seconds, text }) => `${seconds} ${text}`));
  for (const { topic, text } of facts) {
    const message = topic === 'dmesg' ? parseKernelLine(text.slice('dmesg '.length)) : undefined;
    if (message !== undefined && !known.has(`${message.seconds} ${message.text}`)) dmesg.push(message);
  }
  return { lines, facts, dmesg };
}

/** Facts of one topic, those only whose words begin with `words`: `factsOf(report, 'dsa-test', 'wq0.0', 'memmove')`. */
export function factsOf(report: Pick<ConsoleReport, 'facts'>, topic: string, ...words: readonly string[]): GuestFact[] {
  return report.facts.filter((fact) => fact.topic === topic && words.every((word, at) => fact.words[at] === word));
}
