/**
 * Addresses are numbers. A page-aligned 64-bit address is exact in a double, an arbitrary one is not, so a
 * 64-bit I/O virtual address travels as a page number (address / 4096, below 2^52) and a byte offset (0..4095).
 * Physical addresses stay below 2^52 and user virtual addresses of 4-level tables below 2^47: plain numbers.
 */
export const PAGE_SIZE = 4096;
/** 2^32 */
export const WORD = 0x1_0000_0000;

/** Page number of a 64-bit word given as two 32-bit halves. */
export function pageOfWords(lo: number, hi: number): number {
  return (hi >>> 0) * 0x10_0000 + (lo >>> 12);
}

/** Low 32 bits of the byte address of `page`, `offset`. */
export function loOfPage(page: number, offset = 0): number {
  return (((page % 0x10_0000) << 12) | offset) >>> 0;
}

/** High 32 bits of the byte address of `page`. */
export function hiOfPage(page: number): number {
  return Math.floor(page / 0x10_0000);
}

/** 64-bit address as a bigint, for printing and the public API. */
export function toAddress(page: number, offset = 0): bigint {
  return (BigInt(page) << 12n) | BigInt(offset);
}

/** Page number of a 64-bit bigint address. */
export function pageOf(address: bigint): number {
  return Number(BigInt.asUintN(64, address) >> 12n);
}

export function offsetOf(address: bigint): number {
  return Number(address & 0xfffn);
}

export function toU64(lo: number, hi: number): bigint {
  return (BigInt(hi >>> 0) << 32n) | BigInt(lo >>> 0);
}

export function loOf(value: bigint): number {
  return Number(value & 0xffff_ffffn);
}

export function hiOf(value: bigint): number {
  return Number((value >> 32n) & 0xffff_ffffn);
}

/** `0x…` of a non-negative number; formats two halves because toString(16) is slow above 2^32. */
export function hex(value: number, digits = 0): string {
  const hi = Math.floor(value / WORD);
  const lo = (value >>> 0).toString(16);
  const text = hi > 0 ? hi.toString(16) + lo.padStart(8, '0') : lo;
  return '0x' + text.padStart(digits, '0');
}

/** `0x…` of the byte address of `page`, `offset`. */
export function hexPage(page: number, offset = 0, digits = 0): string {
  const hi = hiOfPage(page);
  const lo = loOfPage(page, offset).toString(16);
  const text = hi > 0 ? hi.toString(16) + lo.padStart(8, '0') : lo;
  return '0x' + text.padStart(digits, '0');
}

export function alignDown(value: number, alignment: number): number {
  return value - (value % alignment);
}

export function alignUp(value: number, alignment: number): number {
  return alignDown(value + alignment - 1, alignment);
}
