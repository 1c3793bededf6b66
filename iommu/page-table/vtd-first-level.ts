/**
 * First-level tables of kernel-filled VT-d domains (VT-d 4.1, sections 3.6 and 9.7 to 9.9): the x86-64 format with
 * the bits that a DMA domain needs. Leaves are user pages (U/S), because requests without privilege walk them, and
 * carry A, and D when writable, from the start, so that hardware never has to update them (Linux,
 * drivers/iommu/intel/iommu.c: DMA_FL_PTE_US, DMA_FL_PTE_ACCESS, DMA_FL_PTE_DIRTY).
 *
 * Left out: XD. The PASID entries of such domains leave NXE clear, and hardware then ignores the bit.
 */
import { X86_64, X86_A, X86_D, X86_P, X86_PS, X86_RW, X86_US } from '../../host/page-table/x86-64.js';
import type { PageTableFormat } from '../../host/page-table/format.js';
import { PROT_WRITE } from '../core/ops.js';

/** `prot` is PROT_* of iommu/core/ops.ts; the format cannot express a page that may be written but not read. */
export const VTD_FIRST_LEVEL: PageTableFormat = {
  ...X86_64,
  name: 'VT-d first level',
  leafLo(prot, level) {
    const lo = X86_P | X86_US | X86_A | (level > 0 ? X86_PS : 0);
    return (prot & PROT_WRITE) !== 0 ? lo | X86_RW | X86_D : lo;
  },
  leafHi() {
    return 0;
  },
  tableLo() {
    return X86_P | X86_RW | X86_US | X86_A;
  },
};
