/**
 * Fault lines of the kernel's log (drivers/iommu/intel/dmar.c, dmar_fault_do_one, and drivers/iommu/dmar.c before 5.7). Their form
 * changed over the years:
 *   3.x    `DMAR:[DMA Read] Request device [00:02.0] fault addr ff000` and, on the next line, `DMAR:[fault reason 06] …`
 *   4.x    both in one line
 *   5.x    `PASID ffffffff` between device and address (all ones: none); reasons are decimal up to here
 *   later  `[DMA Read NO_PASID]`, `[DMA Write PASID 0x2]`, addresses and reasons in hex with 0x
 *   latest the device with its segment
 */
import { FSTS_PPF } from '../../iommu/intel-vtd/spec/registers.js';
import { causesFor, faultCause, reasonText } from './fault-causes.js';
import type { Finding } from './log-finding.js';
import { fstsBits } from './unit-state.js';

const DEVICE = String.raw`\[{1,2}((?:[0-9a-f]{4}:)?(?:0x)?[0-9a-f]{2}:(?:0x)?[0-9a-f]{2}\.[0-7])\]`;
const REASON = String.raw`\[fault reason (0x[0-9a-f]{1,2}|\d{1,3})\]`;
const DMA = new RegExp(String.raw`\[DMA (Read|Write)(?: (NO_PASID|PASID 0x[0-9a-f]{1,8}))?\] Request device ${DEVICE}(?: PASID ([0-9a-f]{1,8}))?\s{1,8}fault addr (?:0x)?([0-9a-f]{1,16})(?:[^[]{0,16}${REASON})?`, 'i');
const INTERRUPT = new RegExp(String.raw`INTR-REMAP[\]:]{1,2}\s{0,2}Request device ${DEVICE} fault index (?:0x)?([0-9a-f]{1,16})(?:[^[]{0,16}${REASON})?`, 'i');
const BEGINNING = new RegExp(String.raw`(?:\[DMA (?:Read|Write)[^\]]{0,24}\]|INTR-REMAP[\]:]{1,2})\s{0,2}Request device ${DEVICE}`, 'i');
/** What a second line of a fault holds: the address, or the reason. */
const CONTINUATION = /fault addr|\[fault reason|^(?:0x)?[0-9a-f]{1,16}\s{0,4}(?:\[|$)/i;
const STATUS = /DRHD: handling fault status reg ([0-9a-f]{1,8})\b/i;

/** A fault whose reason is expected on the next line. */
export interface OpenFault {
  readonly text: string;
}

/** A fault line; an OpenFault when the reason is still to come; undefined for other lines. */
export function faultLine(line: string): Finding | OpenFault | undefined {
  const dma = DMA.exec(line);
  if (dma !== null) return dma[6] === undefined ? { text: line } : dmaFault(dma);
  const interrupt = INTERRUPT.exec(line);
  if (interrupt !== null) return interrupt[3] === undefined ? { text: line } : interruptFault(interrupt);
  if (BEGINNING.test(line)) return { text: line };
  const status = STATUS.exec(line);
  return status === null ? undefined : statusLine(BigInt(`0x${status[1]!}`));
}

/** True for a line that can be the second part of an open fault. */
export function continuesFault(line: string): boolean {
  return !BEGINNING.test(line) && CONTINUATION.test(line);
}

/** The open fault without its reason: cut off, or the next line is missing. */
export function withoutReason({ text }: OpenFault): Finding {
  const device = plainDevice(BEGINNING.exec(text)![1]!);
  return { kind: 'cut-fault', identity: device, device, title: `fault of ${device}, without its reason`, what: 'The line is cut off: the part with [fault reason …] is missing, and nothing can be said about why.' };
}

function dmaFault(match: RegExpExecArray): Finding {
  const access = match[1]!.toLowerCase();
  const device = plainDevice(match[3]!);
  const pasid = pasidOf(match[2], match[4]);
  const address = BigInt(`0x${match[5]!}`);
  const reason = reasonCode(match[6]!);
  const cause = faultCause(reason);
  const who = `${device}${pasid === undefined ? ', without PASID' : `, PASID ${pasid}`}`;
  return {
    kind: 'dma-fault', identity: `${access} ${who} ${reason}`, title: `DMA ${access} of ${who}: reason 0x${reason.toString(16).padStart(2, '0')}`,
    what: `${reasonText(reason)}.${addressHint(address)}`,
    ...(cause === undefined ? {} : { entry: cause.entry, causes: causesFor(reason, pasid) }),
    device, reason, address, ...(pasid === undefined ? {} : { pasid }),
  };
}

function interruptFault(match: RegExpExecArray): Finding {
  const device = plainDevice(match[1]!);
  const index = BigInt(`0x${match[2]!}`);
  const reason = reasonCode(match[3]!);
  const cause = faultCause(reason);
  return {
    kind: 'interrupt-fault', identity: `${device} ${reason}`, title: `interrupt of ${device}: reason 0x${reason.toString(16)}`,
    what: `${reasonText(reason)}. The index into the interrupt remapping table was ${index}.`,
    ...(cause === undefined ? {} : { entry: cause.entry, causes: cause.causes }), device, reason,
  };
}

function statusLine(fsts: bigint): Finding {
  const bits = fstsBits(fsts);
  const gone = fsts === 0xffff_ffffn;
  const record = (fsts >> 8n) & 0xffn;
  const what = gone
    ? 'The unit reads as all ones: it does not answer. What follows is not real.'
    : (Number(fsts) & FSTS_PPF) !== 0 && bits.length === 1 ? `A fault is recorded, the first in record ${record}. The next lines say which.` : `${bits.map(capital).join('. ')}${bits.length > 0 ? '.' : 'No bit that this program knows is set.'}`;
  return {
    // the record number only says which register of a ring comes first
    kind: 'fault-status', identity: gone ? 'gone' : (fsts & 0xffn).toString(16), title: `fault status 0x${fsts.toString(16)}`, what,
    ...(gone ? { causes: ['the unit lost power or was switched off', 'another device claims its address'] } : { routine: bits.length === 1 }),
  };
}

/** Old kernels print decimal, new ones hex with 0x. */
function reasonCode(text: string): number {
  return text.toLowerCase().startsWith('0x') ? parseInt(text, 16) : parseInt(text, 10);
}

function pasidOf(word: string | undefined, old: string | undefined): number | undefined {
  if (word !== undefined) return word.toUpperCase() === 'NO_PASID' ? undefined : parseInt(word.slice(6), 16);
  // -1 stands for none; 5.x kernels print it as ffffffff
  return old === undefined || parseInt(old, 16) === 0xffff_ffff ? undefined : parseInt(old, 16);
}

function plainDevice(text: string): string {
  return text.replaceAll(/0x/gi, '').toLowerCase();
}

function addressHint(address: bigint): string {
  if (address < 0x1000n) return ' The address is 0 or close to it: an uninitialized descriptor, or an interrupt message whose address was never written.';
  if (address >> 20n === 0xfeen) return ' The address lies in the interrupt range 0xFEExxxxx.';
  if (address >> 47n !== 0n && address >> 47n !== 0x1ffffn) return ' The address is not canonical (bits 63:47 differ): hardly a real one.';
  return '';
}

function capital(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}
