/**
 * Interrupt remapping (VT-d specification rev 4.1, chapter 5 and section 9.10): the entry of the interrupt remapping
 * table, and interrupt requests in remappable format. Positions were compared with include/linux/dmar.h and
 * arch/x86/include/asm/msi.h (Linux), include/VBox/iommu-intel.h (VirtualBox) and QEMU's intel_iommu. Left out: entries
 * of posted interrupts, whose mode bit is reserved while CAP.PI is clear.
 */
import { bit, bits, struct } from '../../../sim/layout.js';

/** Bytes of an entry; the table has 2^(S + 1) of them (IRTA.S). */
export const IRTE_SIZE = 16;

/**
 * Entry of a remapped interrupt. FPD counts also while P is clear. DM: 1 logical destination. RH: 1 one of several
 * processors. TM: 1 level. DLM: 0 fixed. AVAIL is software's. DST: xAPIC id in bits 47:40 (8 bits, the others
 * reserved), x2APIC id with IRTA.EIME. SID, SQ and SVT: who may use the entry.
 */
export const IRTE = struct('IRTE', IRTE_SIZE, {
  P: bit(0), FPD: bit(1), DM: bit(2), RH: bit(3), TM: bit(4), DLM: bits(7, 5), AVAIL: bits(11, 8), V: bits(23, 16), DST: bits(63, 32),
  SID: bits(79, 64), SQ: bits(81, 80), SVT: bits(83, 82),
});
/** P and FPD in the first word. */
export const IRTE_P = 1;
export const IRTE_FPD = 2;
/** Reserved bits of the first two words, without and with EIME, and of the last two. */
export const IRTE_RESERVED_0 = 0xff00_f000;
export const IRTE_RESERVED_1_XAPIC = 0xffff_00ff;
export const IRTE_RESERVED_2 = 0xfff0_0000;
/** Shift of the destination in DST without EIME. */
export const XAPIC_DESTINATION_SHIFT = 8;

/** SVT: nobody's requester id is verified. */
export const SVT_NONE = 0;
/** SVT: the requester id is SID, in the bits that SQ does not leave out. */
export const SVT_REQUESTER = 1;
/** SVT: the bus of the requester id is between the high byte of SID and the low one, both included. */
export const SVT_BUS = 2;
/** Bits of the requester id that count, by SQ: all; all but the third lowest; but the second and third; but the lowest three. */
export const SQ_MASKS: readonly number[] = [0xffff, 0xfffb, 0xfff9, 0xfff8];

/** Address of an interrupt request (5.1.2.2), low 32 bits: 0xFEE in 31:20, handle in 19:5 and 2, format in 4, subhandle valid in 3. */
export const MESSAGE_BASE = 0xfee0_0000;
/** Set: remappable format; clear: compatibility format. */
export const FORMAT_REMAPPABLE = 0x10;
export const SUBHANDLE_VALID = 0x08;

/** What goes into the address register of a device whose vector n is entry `handle` + n: n is its message data. */
export function remappableAddress(handle: number): number {
  return (MESSAGE_BASE | ((handle & 0x7fff) << 5) | FORMAT_REMAPPABLE | SUBHANDLE_VALID | ((handle >>> 15) << 2)) >>> 0;
}

/** The entry that a request in remappable format asks for, 0 to 0x1fffe. */
export function interruptIndex(address: number, data: number): number {
  const handle = ((address >>> 5) & 0x7fff) | ((address & 4) << 13);
  return (address & SUBHANDLE_VALID) === 0 ? handle : handle + (data & 0xffff);
}

/** Data bits that a request with a valid subhandle has to leave zero; without one the data is ignored. */
export const SUBHANDLE_DATA_RESERVED = 0xffff_0000;
