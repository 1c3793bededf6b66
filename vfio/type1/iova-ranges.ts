/**
 * The I/O virtual addresses that a container may map (C7, C8): what every domain can translate, without what some
 * device's requests never reach translation with, such as the interrupt window. In pages, half-open.
 */
export interface PageRange {
  readonly start: number;
  readonly end: number;
}

/** [0, end) without the reserved ranges, ascending, none empty. */
export function validRanges(end: number, reserved: readonly PageRange[]): PageRange[] {
  const sorted = reserved.toSorted((a, b) => a.start - b.start);
  const valid: PageRange[] = [];
  let start = 0;
  for (const hole of sorted) {
    if (hole.start > start) valid.push({ start, end: Math.min(hole.start, end) });
    start = Math.max(start, hole.end);
    if (start >= end) return valid;
  }
  valid.push({ start, end });
  return valid;
}

/** True when one of the ranges holds all of [start, end). */
export function holds(ranges: readonly PageRange[], start: number, end: number): boolean {
  return ranges.some((range) => start >= range.start && end <= range.end);
}
