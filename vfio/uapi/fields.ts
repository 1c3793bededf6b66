/**
 * Fields of C structures by byte offset, for declarations with `struct` of sim/layout.ts, and records as the bytes
 * that lie in a process's memory: little-endian 32-bit words.
 */
import { bits, type FieldSpec } from '../../sim/layout.js';

export function u8(offset: number): FieldSpec {
  return bits(offset * 8 + 7, offset * 8);
}

export function u16(offset: number): FieldSpec {
  return bits(offset * 8 + 15, offset * 8);
}

/** Also of `__s32`: `get() | 0` is the signed value, `value >>> 0` what to set. */
export function u32(offset: number): FieldSpec {
  return bits(offset * 8 + 31, offset * 8);
}

/** `get` is exact below 2^53 and for page-aligned values; `getBig` always. */
export function u64(offset: number): FieldSpec {
  return bits(offset * 8 + 63, offset * 8);
}

/** Bytes of words, little-endian. @param length bytes wanted, default all */
export function bytesOf(words: ArrayLike<number>, length = words.length * 4): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) bytes[i] = words[i >> 2]! >>> ((i & 3) * 8);
  return bytes;
}

/** Words of bytes; a last word that is not whole is filled up with zeros. */
export function wordsOfBytes(bytes: Uint8Array): Uint32Array {
  const words = new Uint32Array(Math.ceil(bytes.length / 4));
  for (let i = 0; i < bytes.length; i++) words[i >> 2]! |= bytes[i]! << ((i & 3) * 8);
  return words;
}

/** Words one behind the other. */
export function concatWords(...parts: readonly ArrayLike<number>[]): Uint32Array {
  const all = new Uint32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
