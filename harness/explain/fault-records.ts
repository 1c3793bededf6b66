/** Fault recording registers of a stopped unit (VT-d rev 4.1, section 11.4.7.6): who did what, and why it was refused. */
import { hexPage, pageOfWords } from '../../sim/address.js';
import { wordsOf } from '../../sim/layout.js';
import { FRCD } from '../../iommu/intel-vtd/spec/registers.js';
import { causesFor, faultCause, reasonText, type FaultEntry } from './fault-causes.js';
import type { RegisterValues } from './register-file.js';
import { bdfText } from './tables.js';

export interface RecordedFault {
  /** Number of the register, from FRCD0. */
  readonly record: number;
  readonly device: string;
  readonly sourceId: number;
  readonly pasid: number | undefined;
  readonly kind: 'read' | 'write' | 'atomic' | 'page request' | 'interrupt';
  /** Page address; interrupt faults have the index of the entry instead. */
  readonly address: bigint;
  readonly reason: number;
  readonly text: string;
  readonly entry: FaultEntry | undefined;
  readonly causes: readonly string[];
  /** A sentence without the causes. */
  readonly sentence: string;
}

/** Bits 63:48 of FI hold the index of the interrupt remapping entry for reasons of interrupt remapping. */
const INTERRUPT_REASONS = { first: 0x20, last: 0x28 };

/** Records whose F bit is set, by register number. */
export function recordedFaults(registers: RegisterValues): RecordedFault[] {
  const numbers = [...registers.keys()].flatMap((name) => /^FRCD(\d+)_HI$/.exec(name)?.[1] ?? []).map(Number).sort((a, b) => a - b);
  return numbers.flatMap((record) => decode(record, registers.get(`FRCD${record}_LO`) ?? 0n, registers.get(`FRCD${record}_HI`)!) ?? []);
}

function decode(record: number, low: bigint, high: bigint): RecordedFault | undefined {
  const words = wordsOf(low, high);
  const f = FRCD.f;
  if (f.F.get(words) === 0) return undefined;
  const reason = f.FR.get(words), sourceId = f.SID.get(words);
  const interrupt = reason >= INTERRUPT_REASONS.first && reason <= INTERRUPT_REASONS.last;
  const t1 = f.T1.get(words), t2 = f.T2.get(words);
  const kind = interrupt ? 'interrupt' : t1 === 1 ? (t2 === 1 ? 'atomic' : 'read') : t2 === 1 ? 'page request' : 'write';
  const pasid = f.PP.get(words) === 1 ? f.PV.get(words) : undefined;
  const address = interrupt ? low >> 48n : low & ~0xfffn;
  const cause = faultCause(reason);
  const attributes = [f.EXE.get(words) === 1 && 'execute', f.PRIV.get(words) === 1 && 'as supervisor', f.AT.get(words) === 1 && 'a translation request', f.AT.get(words) === 2 && 'translated'].filter((word) => word !== false);
  const where = interrupt ? `index ${address}` : hexPage(pageOfWords(words[0]!, words[1]!));
  return {
    record, device: bdfText(sourceId), sourceId, pasid, kind, address, reason, text: reasonText(reason), entry: cause?.entry, causes: causesFor(reason, pasid),
    sentence: `${bdfText(sourceId)}${pasid === undefined ? '' : ` PASID ${pasid}`}: ${kind}${kind === 'interrupt' ? ' with' : ' at'} ${where}${attributes.length === 0 ? '' : ` (${attributes.join(', ')})`}`,
  };
}
