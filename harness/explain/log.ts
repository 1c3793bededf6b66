/**
 * Kernel logs in plain words: `explainLog` takes the lines that people paste, groups those that say the same, and
 * tells what happened, at which entry, and what usually causes it. Timestamps, syslog prefixes, mail quoting and lines that
 * were wrapped by a mail program are tolerated. Nothing in a log makes it throw.
 */
import type { FaultEntry } from './fault-causes.js';
import { bootLine } from './log-boot.js';
import { TableDump } from './log-dump.js';
import { continuesFault, faultLine, withoutReason, type OpenFault } from './log-faults.js';
import type { Finding } from './log-finding.js';
import { queueLine } from './log-queue.js';

/** Longer lines are cut: no kernel prints one. */
const MAX_LINE = 2048;
export const MAX_GROUPS = 500;
const MAX_UNKNOWN = 20;
const LINES_KEPT = 6;
/** Different pages that are counted for a group. */
export const ADDRESSES_KEPT = 1024;

export interface LogGroup {
  readonly kind: string;
  readonly title: string;
  readonly what: string;
  readonly entry?: FaultEntry;
  readonly causes: readonly string[];
  readonly device?: string;
  readonly pasid?: number;
  readonly reason?: number;
  readonly details: readonly string[];
  readonly routine: boolean;
  /** Lines that say this. */
  readonly count: number;
  /** Numbers of the first of them, from 1. */
  readonly lines: readonly number[];
  /** Pages that they name: lowest, highest, how many different ones. */
  readonly addresses?: { readonly lowest: bigint; readonly highest: bigint; readonly different: number };
}

export interface LogReport {
  /** In the order of their first line; faults and errors before what is routine. */
  readonly groups: readonly LogGroup[];
  /** Lines about an IOMMU that are not understood, without timestamps. */
  readonly notUnderstood: readonly { readonly text: string; readonly count: number }[];
  readonly notUnderstoodLines: number;
  /** Lines about something else. */
  readonly otherLines: number;
  /** What was left out. */
  readonly limits: readonly string[];
}

interface OpenGroup {
  readonly finding: Finding;
  count: number;
  readonly lines: number[];
  readonly pages: Set<bigint>;
  lowest: bigint;
  highest: bigint;
}

const ABOUT_IOMMU = /\b(?:DMAR(?:-IR)?|IOMMU|INTR-REMAP|VT-d|PASID|SVA|SVM|PRQ|PRI|ATS|iommufd|vfio[-_a-z]*)\b/i;

/** Every line that any pattern knows has one of these: the others are passed over quickly. */
const MAYBE = /dmar|iommu|remap|vt-d|request|prq|sva|svm|rmrr|fault|pasid|invalidation|pte|table|bios|domain|canonical|response|translation|entry|identity|address width|no (?:atsr|satc)|opt (?:in|out)/i;

/** Explains the text of a log. */
export function explainLog(text: string): LogReport {
  const reader = new LogReader();
  let start = 0;
  for (let number = 1; start <= text.length; number++) {
    let end = text.indexOf('\n', start);
    if (end < 0) end = text.length;
    if (end > start || end < text.length) reader.line(text.slice(start, Math.min(end, start + MAX_LINE)), number);
    start = end + 1;
  }
  return reader.report();
}

class LogReader {
  private readonly groups = new Map<string, OpenGroup>();
  private readonly unknown = new Map<string, number>();
  private readonly limits = new Set<string>();
  private unknownLines = 0;
  private otherLines = 0;
  private open: { fault: OpenFault; line: number } | undefined;
  private dump: { dump: TableDump; line: number } | undefined;

  line(raw: string, number: number): void {
    const line = raw.replaceAll(/\p{Cc}\[[0-9;]{0,8}m|\p{Cc}/gu, ' ').trim();
    if (line === '') return;
    if (this.continueFault(line)) return;
    if (!MAYBE.test(line)) return this.settle(undefined, line, number);
    const begun = TableDump.start(line);
    if (begun !== undefined) {
      this.endDump();
      this.dump = { dump: begun, line: number };
      return;
    }
    if (this.dump !== undefined && this.dump.dump.take(line)) return;
    const fault = faultLine(line);
    if (fault !== undefined && 'text' in fault) this.open = { fault, line: number };
    else this.settle(fault ?? queueLine(line) ?? bootLine(line), line, number);
  }

  report(): LogReport {
    this.giveUpFault();
    this.endDump();
    const groups = [...this.groups.values()].map(closed).sort((a, b) => Number(a.routine) - Number(b.routine) || a.lines[0]! - b.lines[0]!);
    return {
      groups, notUnderstood: [...this.unknown].map(([text, count]) => ({ text, count })), notUnderstoodLines: this.unknownLines, otherLines: this.otherLines, limits: [...this.limits],
    };
  }

  /** The second half of a fault that was printed, or wrapped, into two lines. */
  private continueFault(line: string): boolean {
    const { open } = this;
    if (open === undefined) return false;
    const rest = withoutPrefix(line).replace(/^(?:DMAR|dmar|INTR-REMAP):\s?/, '');
    if (!continuesFault(rest)) {
      this.giveUpFault();
      return false;
    }
    const whole = faultLine(`${open.fault.text} ${rest}`.slice(0, MAX_LINE));
    if (whole !== undefined && !('text' in whole)) {
      this.open = undefined;
      this.add(whole, open.line);
    } else this.open = { fault: { text: `${open.fault.text} ${rest}`.slice(0, MAX_LINE) }, line: open.line };
    return true;
  }

  private giveUpFault(): void {
    if (this.open === undefined) return;
    this.add(withoutReason(this.open.fault), this.open.line);
    this.open = undefined;
  }

  private endDump(): void {
    if (this.dump === undefined) return;
    this.add(this.dump.dump.finding(), this.dump.line);
    this.dump = undefined;
  }

  private settle(finding: Finding | undefined, line: string, number: number): void {
    if (finding !== undefined) return this.add(finding, number);
    if (!ABOUT_IOMMU.test(line)) {
      this.otherLines++;
      return;
    }
    this.unknownLines++;
    const text = withoutPrefix(line).slice(0, 160);
    const seen = this.unknown.get(text);
    if (seen !== undefined) this.unknown.set(text, seen + 1);
    else if (this.unknown.size < MAX_UNKNOWN) this.unknown.set(text, 1);
  }

  private add(finding: Finding, number: number): void {
    const key = `${finding.kind} ${finding.identity}`;
    let group = this.groups.get(key);
    if (group === undefined) {
      if (this.groups.size >= MAX_GROUPS) {
        this.limits.add(`only the first ${MAX_GROUPS} different findings are shown`);
        return;
      }
      group = { finding, count: 0, lines: [], pages: new Set(), lowest: finding.address ?? 0n, highest: finding.address ?? 0n };
      this.groups.set(key, group);
    }
    group.count++;
    if (group.lines.length < LINES_KEPT) group.lines.push(number);
    const { address } = finding;
    if (address === undefined) return;
    if (address < group.lowest) group.lowest = address;
    if (address > group.highest) group.highest = address;
    if (group.pages.size < ADDRESSES_KEPT) group.pages.add(address >> 12n);
  }
}

function closed({ finding, count, lines, pages, lowest, highest }: OpenGroup): LogGroup {
  const { kind, title, what, entry, causes, device, pasid, reason, details, routine } = finding;
  return {
    kind, title, what, causes: causes ?? [], details: details ?? [], routine: routine ?? false, count, lines,
    ...(entry === undefined ? {} : { entry }), ...(device === undefined ? {} : { device }), ...(pasid === undefined ? {} : { pasid }), ...(reason === undefined ? {} : { reason }),
    ...(pages.size === 0 ? {} : { addresses: { lowest, highest, different: pages.size } }),
  };
}

/** Without quoting, timestamp, host name and log level, so that repeated lines look alike. */
function withoutPrefix(line: string): string {
  return line
    .replace(/^(?:>\s?){1,8}/, '')
    .replace(/^<\d{1,3}>/, '')
    .replace(/^[a-z]{3,8}\s{0,4}:[a-z]{3,8}\s{0,4}:\s/i, '')
    .replace(/^(?:[A-Z][a-z]{2}\s{1,2}\d{1,2} [\d:]{8}|\d{4}-\d{2}-\d{2}T\S{8,32}) \S{1,64} kernel: /, '')
    .replace(/^\[\s{0,12}\d{1,12}[.,]\d{1,9}\](?:\s?\[\s{0,8}[TC]\d{1,8}\])?\s?/, '');
}
