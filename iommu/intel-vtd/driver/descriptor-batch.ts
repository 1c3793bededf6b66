/**
 * Descriptors on their way into the invalidation queue (VT-d 4.1, sections 6.5.2 and 7.6.1): a few, submitted together
 * and waited for together.
 */
import {
  CONTEXT_CACHE_INVALIDATE, DESCRIPTOR, DEVICE_TLB_INVALIDATE, INTERRUPT_ENTRY_CACHE_INVALIDATE, INVALIDATION_WAIT, IOTLB_INVALIDATE,
  PAGE_GROUP_RESPONSE, PASID_CACHE_INVALIDATE, PASID_DEVICE_TLB_INVALIDATE, PASID_IOTLB_INVALIDATE,
} from '../spec/descriptors.js';
import type { VtdCapabilities } from '../spec/capabilities.js';
import { RID_PASID } from './pasid-table.js';

/** Granularities of the context cache and of the IOTLB. */
export const GLOBAL = 1;
export const DOMAIN_SELECTIVE = 2;
export const DEVICE_SELECTIVE = 3;
export const PAGE_SELECTIVE = 3;
/** Granularities of the PASID cache. */
export const PASID_CACHE_DOMAIN = 0;
export const PASID_CACHE_PASID = 1;
export const PASID_CACHE_GLOBAL = 3;
/** Granularities of the PASID-based IOTLB invalidation. */
export const PASID_ALL = 2;
export const PASID_PAGES = 3;

/** Status data that a wait descriptor writes when it completes. */
export const STATUS_FREE = 0;
export const STATUS_IN_USE = 1;
export const STATUS_DONE = 2;
export const STATUS_ABORTED = 3;

/** Log2 of the number of 4 KiB pages in a 64-bit address space: "all of it". */
export const ALL_PAGES_ORDER = 52;

/** Smallest aligned power-of-two range of pages that holds [page, page + pages). */
export interface AlignedRange {
  readonly page: number;
  /** Log2 of the number of pages; ALL_PAGES_ORDER for everything. */
  readonly order: number;
}

/** The aligned power of two that covers [page, page + pages): pages 0x…f071 to 0x…f080 become 32 pages. */
export function alignedRange(page: number, pages: number): AlignedRange {
  if (page + pages >= 2 ** ALL_PAGES_ORDER) return { page: 0, order: ALL_PAGES_ORDER };
  let order = 0, size = 1;
  while (Math.floor(page / size) !== Math.floor((page + pages - 1) / size)) {
    order++;
    size *= 2;
  }
  return { page: page - (page % size), order };
}

/** What a device-TLB invalidation has to know about a function. */
export interface DeviceTlb {
  readonly sourceId: number;
  /** Invalidate queue depth, 0 stands for 32. */
  readonly queueDepth: number;
  /** Requester id of the physical function; 0 unless ECAP.DIT. */
  readonly pfSourceId: number;
}

const PGRP = PAGE_GROUP_RESPONSE.f;

/** First 32-bit words of a page-group response (the others are zero): for code that answers many. */
export function responseWord0(sourceId: number, pasidPresent: boolean, code: number): number {
  return DESCRIPTOR.PAGE_GROUP_RESPONSE | (pasidPresent ? 1 << PGRP.PP.shift : 0) | (code << PGRP.RESP.shift) | (sourceId << PGRP.RID.shift);
}

export function responseWord1(pasid: number): number {
  return pasid << PGRP.PASID.shift;
}

export function responseWord2(prgIndex: number, last: boolean): number {
  return (last ? 1 << PGRP.LPIG.shift : 0) | (prgIndex << PGRP.PRGI.shift);
}

/** 32-bit words that are kept of a descriptor: nothing that is used has a bit in its upper half. */
export const DESCRIPTOR_WORDS = 4;

export class DescriptorBatch {
  /** DESCRIPTOR_WORDS words for each descriptor. */
  words = new Int32Array(4 * DESCRIPTOR_WORDS);
  count = 0;
  /** Requester ids whose device TLBs this batch invalidates. */
  readonly deviceTlbs: number[] = [];
  private readonly drainReads: number;
  private readonly drainWrites: number;

  /** @param capabilities of the unit that will get it: IOTLB invalidations ask for the drains it has */
  constructor(capabilities: Pick<VtdCapabilities, 'drainReads' | 'drainWrites'>) {
    this.drainReads = capabilities.drainReads ? 1 : 0;
    this.drainWrites = capabilities.drainWrites ? 1 : 0;
  }

  clear(): this {
    this.count = 0;
    if (this.deviceTlbs.length > 0) this.deviceTlbs.length = 0;
    return this;
  }

  /** Context cache, `granularity` GLOBAL, DOMAIN_SELECTIVE or DEVICE_SELECTIVE. */
  contextCache(granularity: number, domainId: number, sourceId: number): this {
    return this.add(CONTEXT_CACHE_INVALIDATE.encode({ Type: DESCRIPTOR.CONTEXT_CACHE, G: granularity, DID: domainId, SID: sourceId }));
  }

  /** PASID cache, `granularity` PASID_CACHE_*. */
  pasidCache(granularity: number, domainId: number, pasid: number): this {
    return this.add(PASID_CACHE_INVALIDATE.encode({ Type: DESCRIPTOR.PASID_CACHE, G: granularity, DID: domainId, PASID: pasid }));
  }

  /** IOTLB, by domain: `range` and `leafOnly` (IH) matter for PAGE_SELECTIVE. */
  iotlb(granularity: number, domainId: number, range?: AlignedRange, leafOnly = false): this {
    return this.add(IOTLB_INVALIDATE.encode({
      Type: DESCRIPTOR.IOTLB, G: granularity, DW: this.drainWrites, DR: this.drainReads, DID: domainId,
      ...(range === undefined ? {} : { AM: range.order, IH: leafOnly ? 1 : 0, ADDR: range.page }),
    }));
  }

  /** IOTLB, all entries of a PASID of a domain. */
  pasidIotlb(domainId: number, pasid: number): this {
    return this.add(PASID_IOTLB_INVALIDATE.encode({ Type: DESCRIPTOR.PASID_IOTLB, G: PASID_ALL, DID: domainId, PASID: pasid }));
  }

  /** IOTLB, some pages of a PASID. @param leafOnly IH: no table was freed, only leaves changed */
  pasidIotlbPages(domainId: number, pasid: number, range: AlignedRange, leafOnly: boolean): this {
    return this.add(PASID_IOTLB_INVALIDATE.encode({
      Type: DESCRIPTOR.PASID_IOTLB, G: PASID_PAGES, DID: domainId, PASID: pasid, AM: range.order, IH: leafOnly ? 1 : 0, ADDR: range.page,
    }));
  }

  /**
   * Device TLB. A range above one page sets S, and the lowest zero among the address bits gives its size: all bits
   * below the highest of the offset are ones (6.5.2.5, 6.5.2.6).
   * @param pasid RID_PASID: without PASID, which also drops the entries of every PASID (A5)
   */
  deviceTlb(device: DeviceTlb, pasid: number, range: AlignedRange): this {
    const depth = device.queueDepth >= 32 ? 0 : device.queueDepth;
    const sized = range.order > 0 ? 1 : 0;
    const page = range.page + (sized === 1 ? 2 ** (range.order - 1) - 1 : 0);
    const common = { SID: device.sourceId, MIP: depth, PFSID_3_0: device.pfSourceId & 0xf, PFSID_15_4: device.pfSourceId >>> 4, S: sized, ADDR: page };
    this.deviceTlbs.push(device.sourceId);
    return this.add(
      pasid === RID_PASID
        ? DEVICE_TLB_INVALIDATE.encode({ Type: DESCRIPTOR.DEVICE_TLB, ...common })
        : PASID_DEVICE_TLB_INVALIDATE.encode({ Type: DESCRIPTOR.PASID_DEVICE_TLB, PASID: pasid, ...common }),
    );
  }

  /** Interrupt-entry cache, one entry, or all of them. */
  interruptEntry(index?: number): this {
    return this.add(INTERRUPT_ENTRY_CACHE_INVALIDATE.encode({ Type: DESCRIPTOR.INTERRUPT_ENTRY_CACHE, ...(index === undefined ? {} : { G: 1, IIDX: index }) }));
  }

  /** A wait descriptor without status: later ones start after all earlier ones are done (FN). */
  fence(): this {
    return this.add(INVALIDATION_WAIT.encode({ Type: DESCRIPTOR.WAIT, FN: 1, SDATA: STATUS_DONE }));
  }

  /** A descriptor of four words. */
  raw(word0: number, word1: number, word2: number, word3: number): this {
    const at = this.room();
    const words = this.words;
    words[at] = word0;
    words[at + 1] = word1;
    words[at + 2] = word2;
    words[at + 3] = word3;
    return this;
  }

  private add(encoded: Uint32Array): this {
    return this.raw(encoded[0]!, encoded[1]!, encoded[2]!, encoded[3]!);
  }

  /** Index of the words of a new descriptor. */
  private room(): number {
    const at = this.count++ * DESCRIPTOR_WORDS;
    if (at + DESCRIPTOR_WORDS > this.words.length) {
      const larger = new Int32Array(this.words.length * 2);
      larger.set(this.words);
      this.words = larger;
    }
    return at;
  }
}

/** Words of the wait descriptor that ends a submission: status write, and drain of page requests when asked. */
export function waitWords(statusAddress: number, drain: boolean): Uint32Array {
  return INVALIDATION_WAIT.encode({ Type: DESCRIPTOR.WAIT, SW: 1, PD: drain ? 1 : 0, SDATA: STATUS_DONE, SADDR: statusAddress / 4 });
}
