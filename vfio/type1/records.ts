/**
 * Ranges in records, where 64-bit addresses and sizes are any number a caller likes. A page number is exact in a
 * double, and the bits below it are looked at by themselves.
 */
import { hex, pageOfWords } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import type { Field } from '../../sim/layout.js';
import type { PageRange } from './iova-ranges.js';

/** Pages of the 64-bit address space. */
export const ALL_PAGES = 2 ** 52;

/** The bits of a 64-bit field below a page. */
export function offsetIn(field: Field, words: ArrayLike<number>): number {
  return words[field.word]! & 0xfff;
}

/** The page number of a 64-bit field. */
export function pageIn(field: Field, words: ArrayLike<number>): number {
  return pageOfWords(words[field.word]!, words[field.word + 1]!);
}

/** Pages of a range. EINVAL misaligned to pages, empty, or beyond 64 bits. */
export function rangeOf(address: Field, size: Field, words: ArrayLike<number>): PageRange {
  if ((offsetIn(address, words) | offsetIn(size, words)) !== 0) {
    throw new Errno('EINVAL', `${hex(size.get(words))} bytes at ${hex(address.get(words))} are not whole pages`);
  }
  const start = pageIn(address, words), pages = pageIn(size, words);
  if (pages === 0) throw new Errno('EINVAL', `an empty range at ${hex(address.get(words))}`);
  if (start + pages > ALL_PAGES) throw new Errno('EINVAL', `${hex(size.get(words))} bytes at ${hex(address.get(words))} wrap`);
  return { start, end: start + pages };
}
