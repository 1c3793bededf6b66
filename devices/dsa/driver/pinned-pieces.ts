/** How buffers of scattered pages become descriptors: runs of contiguous bytes, and pieces that are contiguous on both sides. */
import { PAGE_SIZE } from '../../../sim/address.js';

/** Contiguous bytes. */
export interface Run {
  readonly address: number;
  readonly sizeBytes: number;
}

/** What one descriptor does; `at` is its offset in the operation. */
export interface Piece {
  readonly at: number;
  readonly from: number;
  readonly to: number;
  readonly sizeBytes: number;
}

/** Joins pages that follow each other. @param offset of the first byte in the first page */
export function runsOfPages(pages: readonly number[], offset: number, sizeBytes: number): Run[] {
  const runs: { address: number; sizeBytes: number }[] = [];
  let left = sizeBytes;
  pages.forEach((page, i) => {
    const start = i === 0 ? offset : 0;
    const bytes = Math.min(PAGE_SIZE - start, left);
    const last = runs.at(-1);
    if (last !== undefined && last.address + last.sizeBytes === page + start) last.sizeBytes += bytes;
    else runs.push({ address: page + start, sizeBytes: bytes });
    left -= bytes;
  });
  return runs;
}

/** Cuts where either side stops being contiguous, and at `maxBytes`. A side without runs is left at 0. */
export function piecesOf(from: readonly Run[], to: readonly Run[], maxBytes: number): Piece[] {
  const pieces: Piece[] = [];
  const total = (from.length > 0 ? from : to).reduce((sum, run) => sum + run.sizeBytes, 0);
  let f = 0, t = 0, fromDone = 0, toDone = 0;
  for (let at = 0; at < total; ) {
    const source = from[f], target = to[t];
    const sizeBytes = Math.min(maxBytes, source === undefined ? Infinity : source.sizeBytes - fromDone, target === undefined ? Infinity : target.sizeBytes - toDone);
    pieces.push({ at, from: source === undefined ? 0 : source.address + fromDone, to: target === undefined ? 0 : target.address + toDone, sizeBytes });
    at += sizeBytes;
    fromDone += sizeBytes;
    toDone += sizeBytes;
    if (source !== undefined && fromDone === source.sizeBytes) {
      f++;
      fromDone = 0;
    }
    if (target !== undefined && toDone === target.sizeBytes) {
      t++;
      toDone = 0;
    }
  }
  return pieces;
}

/** A copy onto higher addresses of its own source runs from the end, as memmove does; everything else as it is. */
export function orderOfPieces(pieces: readonly Piece[], { kind, from, to, sizeBytes }: { readonly kind: string; readonly from: unknown; readonly to: unknown; readonly sizeBytes: number }): readonly Piece[] {
  const upwards = kind === 'copy' && typeof from === 'number' && typeof to === 'number' && to > from && to < from + sizeBytes;
  return upwards ? pieces.toReversed() : pieces;
}
