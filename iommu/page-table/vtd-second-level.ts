/**
 * Second-level tables of VT-d (VT-d 4.1, section 9.10): R and W instead of a present bit, PS at bit 7, A at 8 and D
 * at 9 (only with SSADS), SNP at 11.
 *
 * Left out: X (execute is ignored without nested execute checks), memory types, TM.
 */
import type { PageTableFormat } from '../../host/page-table/format.js';
import { PROT_READ, PROT_WRITE } from '../core/ops.js';

const R = 1 << 0;
const W = 1 << 1;
const PS = 1 << 7;
const A = 1 << 8;
const D = 1 << 9;
const SNP = 1 << 11;

const FLAGS: readonly (readonly [bit: number, name: string])[] = [[R, 'R'], [W, 'W'], [A, 'A'], [D, 'D'], [SNP, 'SNP']];

/** `prot` is PROT_* of iommu/core/ops.ts. */
export const VTD_SECOND_LEVEL: PageTableFormat = {
  name: 'VT-d second level',
  largestLeaf: 2,
  addressHi: 0x000f_ffff,
  accessedLo: A,
  dirtyLo: D,
  leafLo(prot, level) {
    return ((prot & PROT_READ) !== 0 ? R : 0) | ((prot & PROT_WRITE) !== 0 ? W : 0) | (level > 0 ? PS : 0);
  },
  leafHi() {
    return 0;
  },
  tableLo() {
    return R | W;
  },
  tableHi() {
    return 0;
  },
  isPresent(lo) {
    return (lo & (R | W)) !== 0;
  },
  isLeaf(lo, _hi, level) {
    return level === 0 || (lo & PS) !== 0;
  },
  flags(lo, _hi, level) {
    const names = FLAGS.filter(([bit]) => (lo & bit) !== 0).map(([, name]) => name);
    if (level > 0 && (lo & PS) !== 0) names.push('PS');
    return names;
  },
};
