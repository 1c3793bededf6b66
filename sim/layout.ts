/**
 * Layouts of structures in memory, declared once from the manual:
 * `struct('STE', 64, { V: bit(0), Config: bits(3, 1), S1ContextPtr: addr(51, 6) })`.
 * Bits count from bit 0 of byte 0, little-endian, across the whole structure. A structure is handled as 32-bit
 * words (`Uint32Array` or any array of numbers). Overlapping or outsized fields throw at import.
 */
import { assert } from './assert.js';
import { loOf, hiOf } from './address.js';
import type { PhysicalMemory } from './memory.js';

export interface FieldSpec {
  readonly hi: number;
  readonly lo: number;
  /** `addr` fields read and write the whole value with its low bits zero, not shifted down. */
  readonly kind: 'bits' | 'addr';
}

/** One bit. */
export function bit(position: number): FieldSpec {
  return { hi: position, lo: position, kind: 'bits' };
}

/** Bits hi:lo, as the manual writes them. */
export function bits(hi: number, lo: number): FieldSpec {
  return { hi, lo, kind: 'bits' };
}

/** Address bits hi:lo of the 64-bit word they stand in: the value keeps its position, its low bits are zero. */
export function addr(hi: number, lo: number): FieldSpec {
  return { hi, lo, kind: 'addr' };
}

export type Words = Uint32Array | number[];

/** One declared field. `get` and `set` work on values up to 53 bits; wider fields use `getBig`, `setBig`. */
export class Field {
  readonly name: string;
  readonly hi: number;
  readonly lo: number;
  readonly width: number;
  readonly kind: FieldSpec['kind'];
  /** For hot code, when the field lies in one 32-bit word: word index, shift and mask before the shift. */
  readonly word: number;
  readonly shift: number;
  readonly mask: number;
  /** Value of bit 0 of the field: 1, or the weight of its lowest address bit. */
  private readonly scale: number;

  constructor(name: string, spec: FieldSpec) {
    this.name = name;
    this.hi = spec.hi;
    this.lo = spec.lo;
    this.kind = spec.kind;
    this.width = spec.hi - spec.lo + 1;
    this.word = spec.lo >> 5;
    this.shift = spec.lo & 31;
    this.mask = this.width >= 32 ? 0xffff_ffff : (((2 ** this.width - 1) * 2 ** this.shift) >>> 0);
    this.scale = spec.kind === 'addr' ? 2 ** (spec.lo % 64) : 1;
    assert(this.width >= 1 && spec.lo >= 0, `field ${name}: bits ${spec.hi}:${spec.lo}`);
    assert(this.word >> 1 === spec.hi >> 6 || spec.kind === 'bits', `address field ${name} crosses a 64-bit word`);
  }

  /** @param at index of the structure's first word in `words` */
  get(words: ArrayLike<number>, at = 0): number {
    let value = 0, factor = 1, position = this.lo, left = this.width;
    while (left > 0) {
      const shift = position & 31;
      const count = Math.min(left, 32 - shift);
      const part = (words[at + (position >> 5)]! >>> shift) & (count === 32 ? -1 : (1 << count) - 1);
      value += (part >>> 0) * factor;
      factor *= 2 ** count;
      position += count;
      left -= count;
    }
    return value * this.scale;
  }

  set(words: Words, value: number, at = 0): void {
    let rest = value / this.scale, position = this.lo, left = this.width;
    assert(rest >= 0 && Number.isInteger(rest) && (left > 53 || rest < 2 ** left), `${this.name} cannot hold ${value}`);
    while (left > 0) {
      const shift = position & 31;
      const count = Math.min(left, 32 - shift);
      const mask = count === 32 ? -1 : (1 << count) - 1;
      const index = at + (position >> 5);
      words[index] = ((words[index]! & ~(mask << shift)) | (((rest % 2 ** count) & mask) << shift)) >>> 0;
      rest = Math.floor(rest / 2 ** count);
      position += count;
      left -= count;
    }
  }

  getBig(words: ArrayLike<number>, at = 0): bigint {
    let value = 0n;
    for (let position = this.lo; position <= this.hi; ) {
      const shift = position & 31;
      const count = Math.min(this.hi - position + 1, 32 - shift);
      const part = (words[at + (position >> 5)]! >>> shift) & (count === 32 ? -1 : (1 << count) - 1);
      value |= BigInt(part >>> 0) << BigInt(position - this.lo);
      position += count;
    }
    return this.kind === 'addr' ? value << BigInt(this.lo % 64) : value;
  }

  setBig(words: Words, value: bigint, at = 0): void {
    const rest = this.kind === 'addr' ? value >> BigInt(this.lo % 64) : value;
    assert(rest >= 0n && rest < 1n << BigInt(this.width), `${this.name} cannot hold 0x${value.toString(16)}`);
    for (let position = this.lo; position <= this.hi; ) {
      const shift = position & 31;
      const count = Math.min(this.hi - position + 1, 32 - shift);
      const mask = count === 32 ? -1 : (1 << count) - 1;
      const part = Number((rest >> BigInt(position - this.lo)) & BigInt(mask >>> 0));
      const index = at + (position >> 5);
      words[index] = ((words[index]! & ~(mask << shift)) | (part << shift)) >>> 0;
      position += count;
    }
  }
}

export interface Struct<Names extends string = string> {
  readonly name: string;
  readonly sizeBytes: number;
  readonly sizeWords: number;
  /** Fields by the manual's spelling. */
  readonly f: { readonly [N in Names]: Field };
  readonly fields: readonly Field[];
  /** Per 32-bit word, the bits that no field declares. */
  readonly reservedMask: Uint32Array;
  /** Words with the given fields set, all else zero. */
  encode(values: { readonly [N in Names]?: number | bigint }): Uint32Array;
  decode(words: ArrayLike<number>, at?: number): { [N in Names]: bigint };
  /** True when a bit that no field declares is set. */
  reservedSet(words: ArrayLike<number>, at?: number): boolean;
  /** `NAME=value …` for traces and printers; zero fields are left out unless `all`. */
  format(words: ArrayLike<number>, at?: number, all?: boolean): string;
  /** Words at `address`, undefined when absent. */
  load(memory: PhysicalMemory, address: number): Uint32Array | undefined;
  /** False when absent. Words are stored in ascending order, so a Present bit in word 0 must be stored last by the caller where it matters. */
  store(memory: PhysicalMemory, address: number, words: ArrayLike<number>): boolean;
}

/** Declares a structure of `sizeBytes` (a multiple of 4). */
export function struct<const F extends Record<string, FieldSpec>>(
  name: string,
  sizeBytes: number,
  specs: F,
): Struct<keyof F & string> {
  type Names = keyof F & string;
  assert(sizeBytes % 4 === 0, `${name}: size ${sizeBytes} is not a multiple of 4`);
  const sizeWords = sizeBytes / 4;
  const fields = Object.entries(specs).map(([fieldName, spec]) => new Field(`${name}.${fieldName}`, spec));
  const short = Object.keys(specs);
  const reservedMask = new Uint32Array(sizeWords).fill(0xffff_ffff);
  for (const field of fields) {
    assert(field.hi < sizeBytes * 8, `${field.name} lies outside the ${sizeBytes} bytes of ${name}`);
    for (let b = field.lo; b <= field.hi; b++) {
      assert((reservedMask[b >> 5]! & (1 << (b & 31))) !== 0, `${field.name} overlaps another field at bit ${b}`);
      reservedMask[b >> 5]! &= ~(1 << (b & 31));
    }
  }
  const byName = Object.fromEntries(fields.map((field, i) => [short[i]!, field])) as { [N in Names]: Field };
  return {
    name, sizeBytes, sizeWords, f: byName, fields, reservedMask,
    encode(values) {
      const words = new Uint32Array(sizeWords);
      for (const [fieldName, value] of Object.entries(values) as [Names, number | bigint][]) {
        const field = byName[fieldName];
        assert(field !== undefined, `${name} has no field ${fieldName}`);
        if (typeof value === 'bigint') field.setBig(words, value);
        else field.set(words, value);
      }
      return words;
    },
    decode(words, at = 0) {
      return Object.fromEntries(fields.map((field, i) => [short[i]!, field.getBig(words, at)])) as { [N in Names]: bigint };
    },
    reservedSet(words, at = 0) {
      for (let i = 0; i < sizeWords; i++) if ((words[at + i]! & reservedMask[i]!) !== 0) return true;
      return false;
    },
    format(words, at = 0, all = false) {
      const parts: string[] = [];
      fields.forEach((field, i) => {
        const value = field.getBig(words, at);
        if (value !== 0n || all) parts.push(`${short[i]!}=${value < 10n ? value.toString() : '0x' + value.toString(16)}`);
      });
      return parts.join(' ');
    },
    load(memory, address) {
      if (!memory.has(address, sizeBytes)) return undefined;
      const words = new Uint32Array(sizeWords);
      for (let i = 0; i < sizeWords; i++) words[i] = memory.load(address + i * 4, 4);
      return words;
    },
    store(memory, address, words) {
      if (!memory.has(address, sizeBytes)) return false;
      for (let i = 0; i < sizeWords; i++) memory.store(address + i * 4, 4, words[i]!);
      return true;
    },
  };
}

/** 32-bit words of 64-bit words, low half first. */
export function wordsOf(...qwords: bigint[]): Uint32Array {
  const words = new Uint32Array(qwords.length * 2);
  qwords.forEach((qword, i) => {
    words[2 * i] = loOf(qword);
    words[2 * i + 1] = hiOf(qword);
  });
  return words;
}

/** 64-bit words of 32-bit words. */
export function qwordsOf(words: ArrayLike<number>): bigint[] {
  return Array.from({ length: words.length / 2 }, (_, i) => (BigInt(words[2 * i + 1]! >>> 0) << 32n) | BigInt(words[2 * i]! >>> 0));
}
