/** Typed access to the fields of one JSON object of a vector; what is wrong is collected, the value is then a neutral one. */
import { clip, unknownName, type Problem } from '../topology/problems.js';

/** Problems kept; the rest is not looked for. */
const KEPT_PROBLEMS = 200;

/** Where problems of one file go. */
export class Complaints {
  readonly file: string;
  readonly problems: Problem[] = [];

  constructor(file: string) {
    this.file = file;
  }

  get full(): boolean {
    return this.problems.length >= KEPT_PROBLEMS;
  }

  add(path: string, message: string): void {
    if (!this.full) this.problems.push({ file: this.file, ...(path === '' ? {} : { path }), message });
  }
}

/** `"0xzz"`, `12`, `nothing`. */
export function show(value: unknown): string {
  return value === undefined ? 'nothing' : clip(JSON.stringify(value));
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

const HEX = /^0x[0-9a-fA-F]{1,16}$/;

export class Fields {
  readonly path: string;
  private readonly object: Record<string, unknown>;
  private readonly complaints: Complaints;

  /** @param path of the object, as problems name it */
  constructor(object: Record<string, unknown>, path: string, complaints: Complaints) {
    this.object = object;
    this.path = path;
    this.complaints = complaints;
  }

  complain(key: string, message: string): void {
    this.complaints.add(key === '' ? this.path : this.path === '' ? key : `${this.path}: ${key}`, message);
  }

  /** Complains about keys that are not in `allowed`. */
  only(allowed: readonly string[]): void {
    for (const key of Object.keys(this.object)) if (!allowed.includes(key)) this.complain('', unknownName('key', key, allowed));
  }

  has(key: string): boolean {
    return this.object[key] !== undefined;
  }

  raw(key: string): unknown {
    return this.object[key];
  }

  /** A number below 2^bits, written as a hexadecimal string. */
  hex(key: string, bits: number): bigint {
    const value = this.object[key];
    if (typeof value !== 'string' || !HEX.test(value)) return this.neutral(key, `${show(value)} is no hex number such as "0x1f00"`, 0n);
    const number = BigInt(value);
    return number >> BigInt(bits) === 0n ? number : this.neutral(key, `${value} has more than ${bits} bits`, 0n);
  }

  /** A hexadecimal number below 2^53. */
  address(key: string, bits = 52): number {
    return Number(this.hex(key, bits));
  }

  /** A JSON number: an integer in [first, last]. */
  integer(key: string, first: number, last: number): number {
    const value = this.object[key];
    if (typeof value === 'number' && Number.isInteger(value) && value >= first && value <= last) return value;
    return this.neutral(key, `${show(value)} is no whole number from ${first} to ${last}`, first);
  }

  oneOf<T>(key: string, allowed: readonly T[]): T {
    const value = this.object[key] as T;
    return allowed.includes(value) ? value : this.neutral(key, `${show(value)} is not one of ${allowed.map((one) => show(one)).join(', ')}`, allowed[0]!);
  }

  /** True where the key is `true`; absent is false. */
  flag(key: string): boolean {
    const value = this.object[key];
    if (value === undefined || typeof value === 'boolean') return value === true;
    return this.neutral(key, `${show(value)} is not true or false`, false);
  }

  text(key: string): string {
    const value = this.object[key];
    return typeof value === 'string' ? value : this.neutral(key, `${show(value)} is no text`, '');
  }

  /** Bytes as pairs of hexadecimal digits, at least one. */
  bytes(key: string): Uint8Array {
    const value = this.object[key];
    if (typeof value !== 'string' || value.length === 0 || value.length % 2 !== 0 || !/^[0-9a-fA-F]*$/.test(value)) {
      return this.neutral(key, `${show(value)} is no sequence of bytes such as "00ff"`, new Uint8Array(1));
    }
    return Uint8Array.from(Buffer.from(value, 'hex'));
  }

  /** `0000:6a:01.0` as a source id: bus << 8 | device << 3 | function. */
  requester(key: string): number {
    const value = this.object[key];
    const match = typeof value === 'string' ? /^([0-9a-fA-F]{4}):([0-9a-fA-F]{2}):([01][0-9a-fA-F])\.([0-7])$/.exec(value) : null;
    if (match === null) return this.neutral(key, `${show(value)} is no requester such as "0000:00:03.0"`, 0);
    if (match[1] !== '0000') return this.neutral(key, `${show(value)}: a unit serves one segment, and that is 0000`, 0);
    return (parseInt(match[2]!, 16) << 8) | (parseInt(match[3]!, 16) << 3) | Number(match[4]);
  }

  section(key: string): Fields | undefined {
    const value = this.object[key];
    if (isObject(value)) return new Fields(value, this.path === '' ? key : `${this.path}: ${key}`, this.complaints);
    return this.neutral(key, `${show(value)} is no object`, undefined);
  }

  list(key: string): readonly unknown[] {
    const value = this.object[key];
    return Array.isArray(value) ? value as unknown[] : this.neutral(key, `${show(value)} is no list`, []);
  }

  private neutral<T>(key: string, message: string, value: T): T {
    this.complain(key, message);
    return value;
  }
}
