/**
 * The two rings in memory of a stopped unit: invalidation descriptors between IQH and IQT (VT-d rev 4.1, sections 6.5.2
 * and 11.4.8), page requests between PQH and PQT (7.4.1 and 11.4.11), each raw and as a sentence.
 */
import { hexPage } from '../../sim/address.js';
import { qwordsOf, wordsOf } from '../../sim/layout.js';
import type { PhysicalMemory } from '../../sim/memory.js';
import { deviceTlbPages } from '../../iommu/intel-vtd/hardware/invalidation-queue.js';
import {
  CONTEXT_CACHE_INVALIDATE, DESCRIPTOR, DESCRIPTOR_LAYOUTS, DEVICE_TLB_INVALIDATE, INTERRUPT_ENTRY_CACHE_INVALIDATE, INVALIDATION_WAIT, IOTLB_INVALIDATE, PAGE_GROUP_RESPONSE, PAGE_REQUEST,
  PAGE_REQUEST_BYTES, PAGE_REQUEST_TYPE, PASID_CACHE_INVALIDATE, PASID_DEVICE_TLB_INVALIDATE, PASID_IOTLB_INVALIDATE, RESP_FAILURE, RESP_INVALID, RESP_SUCCESS,
} from '../../iommu/intel-vtd/spec/descriptors.js';
import { IQA, IQEI_TEXT, IQERCD, PQA, FSTS_IQE, FSTS_ITE, PRS_PRO } from '../../iommu/intel-vtd/spec/registers.js';
import type { RegisterValues } from './register-file.js';
import { bdfText } from './tables.js';

/** Entries shown of one queue; all are counted. */
export const MAX_QUEUE_ENTRIES = 64;

export interface QueueEntry {
  readonly index: number;
  /** Physical byte address. */
  readonly address: number;
  readonly qwords: readonly bigint[];
  readonly text: string;
}

export interface QueueReport {
  readonly base: number;
  readonly entryBytes: number;
  /** Entries that the ring holds. */
  readonly length: number;
  /** Indices. */
  readonly head: number;
  readonly tail: number;
  /** Entries between head and tail; at most MAX_QUEUE_ENTRIES of them in `entries`. */
  readonly pending: number;
  readonly entries: readonly QueueEntry[];
  /** The entry before the head: the last that was taken. */
  readonly last: QueueEntry | undefined;
  readonly problems: readonly string[];
}

interface Ring {
  readonly base: number;
  readonly bytes: number;
  readonly entryBytes: number;
  readonly head: bigint;
  readonly tail: bigint;
  readonly describe: (words: Uint32Array) => string;
}

/** Undefined when IQA, IQH or IQT are not known, or the ring was never set up (IQA is 0). */
export function invalidationQueue(memory: PhysicalMemory, registers: RegisterValues): QueueReport | undefined {
  const iqa = registers.get('IQA'), head = registers.get('IQH'), tail = registers.get('IQT');
  if (iqa === undefined || head === undefined || tail === undefined || iqa === 0n) return undefined;
  const words = wordsOf(iqa);
  const problems = queueErrors(registers);
  return ring(memory, {
    base: IQA.f.IQA.get(words), bytes: 4096 << IQA.f.QS.get(words), entryBytes: IQA.f.DW.get(words) === 1 ? 32 : 16, head, tail, describe: describeDescriptor,
  }, problems);
}

/** Undefined when PQA, PQH or PQT are not known, or the ring was never set up (PQA is 0). */
export function pageRequestQueue(memory: PhysicalMemory, registers: RegisterValues): QueueReport | undefined {
  const pqa = registers.get('PQA'), head = registers.get('PQH'), tail = registers.get('PQT');
  if (pqa === undefined || head === undefined || tail === undefined || pqa === 0n) return undefined;
  const words = wordsOf(pqa);
  const overflow = (Number(registers.get('PRS') ?? 0n) & PRS_PRO) !== 0;
  return ring(memory, {
    base: PQA.f.PQA.get(words), bytes: 4096 << PQA.f.PQS.get(words), entryBytes: PAGE_REQUEST_BYTES, head, tail, describe: describePageRequest,
  }, overflow ? ['PRS.PRO is set: the queue was full, requests are dropped or answered by the unit until software clears it'] : []);
}

function queueErrors(registers: RegisterValues): string[] {
  const fsts = registers.get('FSTS');
  if (fsts === undefined || fsts === 0xffff_ffffn) return [];
  const problems: string[] = [];
  const words = wordsOf(registers.get('IQERCD') ?? 0n);
  const known = registers.has('IQERCD');
  if ((Number(fsts) & FSTS_IQE) !== 0) {
    problems.push(`FSTS.IQE is set: the unit refused the descriptor at the head${known ? ` (${IQEI_TEXT[IQERCD.f.IQEI.get(words)] ?? `IQEI ${IQERCD.f.IQEI.get(words)}`})` : ''}; nothing is fetched until software clears it`);
  }
  if ((Number(fsts) & FSTS_ITE) !== 0) {
    problems.push(`FSTS.ITE is set: ${known && IQERCD.f.ITESID.get(words) !== 0 ? bdfText(IQERCD.f.ITESID.get(words)) : 'a device'} did not complete a device-TLB invalidation in time; nothing is fetched until software clears it`);
  }
  return problems;
}

function ring(memory: PhysicalMemory, { base, bytes, entryBytes, head, tail, describe }: Ring, problems: string[]): QueueReport {
  const length = bytes / entryBytes;
  const position = (name: string, pointer: bigint): number => {
    const offset = Number(pointer % BigInt(bytes));
    if (pointer >= BigInt(bytes)) problems.push(`the ${name} 0x${pointer.toString(16)} lies beyond the queue of ${bytes} bytes`);
    if (offset % entryBytes !== 0) problems.push(`the ${name} 0x${pointer.toString(16)} is not at an entry of ${entryBytes} bytes`);
    return Math.floor(offset / entryBytes);
  };
  const headIndex = position('head', head), tailIndex = position('tail', tail);
  const pending = (tailIndex - headIndex + length) % length;
  if (!memory.has(base, bytes)) problems.push(`the queue at 0x${BigInt(base).toString(16)} is not wholly in the image`);
  const entryAt = (index: number): QueueEntry | undefined => {
    const address = base + index * entryBytes;
    const data = new Uint8Array(32);
    if (!memory.read(address, data, 0, entryBytes)) return undefined;
    const words = new Uint32Array(data.buffer);
    return { index, address, qwords: qwordsOf(words.subarray(0, entryBytes / 4)), text: describe(words) };
  };
  const entries: QueueEntry[] = [];
  for (let i = 0; i < Math.min(pending, MAX_QUEUE_ENTRIES); i++) {
    const entry = entryAt((headIndex + i) % length);
    if (entry === undefined) break;
    entries.push(entry);
  }
  const last = entryAt((headIndex + length - 1) % length);
  const used = last !== undefined && last.qwords.some((qword) => qword !== 0n);
  return { base, entryBytes, length, head: headIndex, tail: tailIndex, pending, entries, last: used ? last : undefined, problems };
}

/** One invalidation descriptor, 4 or 8 words, as a sentence. */
export function describeDescriptor(words: ArrayLike<number>): string {
  const w = words.length >= 8 ? words : Uint32Array.from({ length: 8 }, (_, i) => words[i] ?? 0);
  const type = CONTEXT_CACHE_INVALIDATE.f.Type.get(w);
  const high = CONTEXT_CACHE_INVALIDATE.f.TypeHi.get(w);
  const layout = high === 0 ? DESCRIPTOR_LAYOUTS[type] : undefined;
  const text = layout === undefined ? undefined : SENTENCES[type]?.(w);
  if (layout === undefined || text === undefined) return `no descriptor: type ${high * 16 + type} is not known`;
  return layout.reservedSet(w) ? `${text}; reserved bits are set` : text;
}

type Sentence = (words: ArrayLike<number>) => string;

const page = (w: ArrayLike<number>, field: { getBig(words: ArrayLike<number>): bigint }): number => Number(field.getBig(w));

function maskedRange(w: ArrayLike<number>, address: { getBig(words: ArrayLike<number>): bigint }, order: number): string {
  const pages = 2 ** order;
  return pages === 1 ? `page ${hexPage(page(w, address))}` : `${pages} pages at ${hexPage(page(w, address) - (page(w, address) % pages))}`;
}

function deviceRange(w: ArrayLike<number>, first: number, size: boolean): string {
  const pages = deviceTlbPages(w[2]!, w[3]!, size);
  if (pages === Infinity) return 'all addresses';
  return pages === 1 ? `page ${hexPage(first)}` : `${pages} pages at ${hexPage(first - (first % pages))}`;
}

const SENTENCES: Readonly<Record<number, Sentence>> = {
  [DESCRIPTOR.CONTEXT_CACHE](w) {
    const { G, DID, SID, FM } = CONTEXT_CACHE_INVALIDATE.f;
    const scope = ['reserved granularity', 'all', `domain ${DID.get(w)}`, `device ${bdfText(SID.get(w))}${FM.get(w) === 0 ? '' : ` (function mask ${FM.get(w)})`} of domain ${DID.get(w)}`];
    return `context cache: ${scope[G.get(w)]!}`;
  },
  [DESCRIPTOR.PASID_CACHE](w) {
    const { G, DID, PASID } = PASID_CACHE_INVALIDATE.f;
    const scope = [`domain ${DID.get(w)}`, `PASID ${PASID.get(w)} of domain ${DID.get(w)}`, 'reserved granularity', 'all'];
    return `PASID cache: ${scope[G.get(w)]!}`;
  },
  [DESCRIPTOR.IOTLB](w) {
    const { G, DID, AM, IH, ADDR } = IOTLB_INVALIDATE.f;
    const scope = ['reserved granularity', 'all', `domain ${DID.get(w)}`, `${maskedRange(w, ADDR, AM.get(w))} of domain ${DID.get(w)}${IH.get(w) === 1 ? ', leaves only' : ''}`];
    return `IOTLB: ${scope[G.get(w)]!}`;
  },
  [DESCRIPTOR.PASID_IOTLB](w) {
    const { G, DID, PASID, AM, IH, ADDR } = PASID_IOTLB_INVALIDATE.f;
    const who = `PASID ${PASID.get(w)} of domain ${DID.get(w)}`;
    const scope = ['reserved granularity', 'reserved granularity', who, `${maskedRange(w, ADDR, AM.get(w))} of ${who}${IH.get(w) === 1 ? ', leaves only' : ''}`];
    return `IOTLB: ${scope[G.get(w)]!}`;
  },
  [DESCRIPTOR.DEVICE_TLB](w) {
    const { SID, S, ADDR } = DEVICE_TLB_INVALIDATE.f;
    return `device TLB of ${bdfText(SID.get(w))}: ${deviceRange(w, page(w, ADDR), S.get(w) === 1)}`;
  },
  [DESCRIPTOR.PASID_DEVICE_TLB](w) {
    const { SID, PASID, S, ADDR, G } = PASID_DEVICE_TLB_INVALIDATE.f;
    return `device TLB of ${bdfText(SID.get(w))} for PASID ${PASID.get(w)}: ${deviceRange(w, page(w, ADDR), S.get(w) === 1)}${G.get(w) === 1 ? ', of every PASID' : ''}`;
  },
  [DESCRIPTOR.INTERRUPT_ENTRY_CACHE](w) {
    const { G, IM, IIDX } = INTERRUPT_ENTRY_CACHE_INVALIDATE.f;
    const entries = 2 ** IM.get(w), index = IIDX.get(w) - (IIDX.get(w) % entries);
    return `interrupt entry cache: ${G.get(w) === 0 ? 'all' : entries === 1 ? `entry ${index}` : `${entries} entries from ${index} on`}`;
  },
  [DESCRIPTOR.WAIT](w) {
    const { IF, SW, FN, PD, SDATA, SADDR } = INVALIDATION_WAIT.f;
    const parts = [
      SW.get(w) === 1 && `write ${SDATA.get(w)} to 0x${(SADDR.getBig(w) << 2n).toString(16)}`, IF.get(w) === 1 && 'interrupt', FN.get(w) === 1 && 'fence', PD.get(w) === 1 && 'drain page requests',
    ].filter((part) => part !== false);
    return `wait for everything before: ${parts.join(', ') || 'tell nobody'}`;
  },
  [DESCRIPTOR.PAGE_GROUP_RESPONSE](w) {
    const { PP, RESP, RID, PASID, PRGI } = PAGE_GROUP_RESPONSE.f;
    const codes: Readonly<Record<number, string>> = { [RESP_SUCCESS]: 'success', [RESP_INVALID]: 'invalid request', [RESP_FAILURE]: 'failure' };
    return `response to ${bdfText(RID.get(w))}${PP.get(w) === 1 ? ` PASID ${PASID.get(w)}` : ''}, group ${PRGI.get(w)}: ${codes[RESP.get(w)] ?? `reserved code ${RESP.get(w)}`}`;
  },
};

/** One page request descriptor, 8 words, as a sentence. */
export function describePageRequest(words: ArrayLike<number>): string {
  const f = PAGE_REQUEST.f;
  if (f.Type.get(words) !== PAGE_REQUEST_TYPE) return `no page request: type ${f.Type.get(words)}`;
  const read = f.RD.get(words) === 1, write = f.WR.get(words) === 1, last = f.LPIG.get(words) === 1;
  const who = `${bdfText(f.RID.get(words))}${f.PP.get(words) === 1 ? ` PASID ${f.PASID.get(words)}` : ' without PASID'}`;
  if (!read && !write && last) return `${who}: stop marker`;
  const wants = [read && 'read', write && 'write', f.EXE.get(words) === 1 && 'execute', f.PM.get(words) === 1 && 'as supervisor'].filter((part) => part !== false).join(', ');
  return `${who}: wants ${wants || 'nothing'} at ${hexPage(page(words, f.ADDR))}, group ${f.PRGI.get(words)}${last ? ', last of the group' : ''}`;
}
