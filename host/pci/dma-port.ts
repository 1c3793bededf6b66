/**
 * The joints between a device function, the fabric, and the agent that translates at the root complex.
 *
 * A function acts on the world through its `DmaPort` only. The fabric implements the port, splits at pages, asks
 * the `TranslationAgent` (an IOMMU's hardware, or nothing) for each page, and moves the bytes. What comes back to a
 * function (page responses, invalidation requests, ends of held transactions) arrives through `DmaClient`.
 *
 * Addresses are a page number (address / 4096, below 2^52) and a byte offset; see sim/address.ts.
 */

/** No PASID TLP prefix. */
export const NO_PASID = -1;

/** Attributes of a request, or-ed. */
export const ATTR_PRIVILEGED = 1;
export const ATTR_EXECUTE = 2;
/** Address type 10b: the address is already translated. */
export const ATTR_TRANSLATED = 4;
/** Translation request for reading only (NW, "no write"). */
export const ATTR_NO_WRITE = 8;

/** How an operation ended. Values, never exceptions. */
export const DMA_DONE = 0;
/** Completion with Unsupported Request, or a posted write that was dropped for the same reason. */
export const DMA_UR = 1;
/** Completion with Completer Abort. */
export const DMA_CA = 2;
/** Suspended (a stall): `heldToken` names it, `DmaClient.heldDone` ends it; the buffer stays in use until then. */
export const DMA_HELD = 3;
/** The port is revoked: bus mastering off, function reset or removed. */
export const DMA_REVOKED = 4;
export type DmaStatus = 0 | 1 | 2 | 3 | 4;

/** Access rights in page requests and faults, or-ed (bits of R7 in include/uapi/linux/iommu.h, v5.10). */
export const ACCESS_READ = 1;
export const ACCESS_WRITE = 2;
export const ACCESS_EXECUTE = 4;
export const ACCESS_PRIVILEGED = 8;

/** Response codes of a page request group, as on the wire (PCIe 6.0 section 10.4.2.1). */
export const PRG_SUCCESS = 0;
export const PRG_INVALID = 1;
export const PRG_FAILURE = 0xf;

/** Result of an ATS translation request (PCIe 6.0 section 10.2.3); read it before the next request. */
export interface TranslationCompletion {
  /** Translated page, aligned down to `pages`. */
  page: number;
  /** Size of the translation in 4 KiB pages, a power of two. */
  pages: number;
  read: boolean;
  write: boolean;
  execute: boolean;
  privileged: boolean;
  global: boolean;
  /** U: the range may be used with untranslated requests only. */
  untranslatedOnly: boolean;
}

/** Keeps a result beyond the next request, without allocating. */
export function copyCompletion(from: TranslationCompletion, to: TranslationCompletion): void {
  to.page = from.page;
  to.pages = from.pages;
  to.read = from.read;
  to.write = from.write;
  to.execute = from.execute;
  to.privileged = from.privileged;
  to.global = from.global;
  to.untranslatedOnly = from.untranslatedOnly;
}

export interface DmaPort {
  /** bus << 8 | devfn; segment groups do not mix on one fabric. */
  readonly requesterId: number;
  readonly revoked: boolean;
  /** Token of the operation that last answered DMA_HELD. */
  readonly heldToken: number;
  /** Bytes that the last read or write moved before it ended; all of them when it is done. */
  readonly doneBytes: number;
  /** What the last operation took, in nanoseconds; the caller lets that time pass. */
  readonly costNs: number;
  /** Filled by `translate`. */
  readonly translation: TranslationCompletion;

  /** Memory read of any length; data of completed pages stands in `target` also when a later page fails. */
  read(page: number, offset: number, target: Uint8Array, targetOffset: number, length: number, pasid: number, attributes: number): DmaStatus;
  /** Memory write of any length. */
  write(page: number, offset: number, source: Uint8Array, sourceOffset: number, length: number, pasid: number, attributes: number): DmaStatus;
  /** ATS translation request for one page. DMA_DONE with read = write = false: no translation, a page request may help. */
  translate(page: number, pasid: number, attributes: number): DmaStatus;
  /** Page request message; `access` 0 with `last` is a stop marker. Answered through `DmaClient.pageResponse`. */
  pageRequest(page: number, access: number, last: boolean, prgIndex: number, pasid: number): DmaStatus;
  /** Message-signalled interrupt: a 4-byte posted write without PASID. */
  messageInterrupt(address: number, data: number): DmaStatus;
  /** Completion of the invalidation request with that tag. */
  invalidateCompletion(tag: number): void;
}

/** What a function answers to. Called by the fabric as events of their own, never from inside a port call. */
export interface DmaClient {
  /** The response to a page request group. `pasid` is NO_PASID when the response carries none. */
  pageResponse(prgIndex: number, code: number, pasid: number): void;
  /**
   * ATS invalidation: drop cached translations of [page, page + pages) (`pages` a power of two; all addresses:
   * Infinity) for `pasid`, or for every PASID when NO_PASID (A5); then `port.invalidateCompletion(tag)`, after the
   * translated requests that used them.
   */
  invalidate(tag: number, page: number, pages: number, pasid: number, global: boolean): void;
  /** A held operation ended with DMA_DONE (its bytes have moved), DMA_UR, DMA_CA or DMA_REVOKED. */
  heldDone(token: number, status: DmaStatus): void;
}

/** What the root complex asks for each page of a request. One agent serves many functions. */
export interface TranslationAgent {
  /** Physical page of the last `translate` that was done. */
  readonly page: number;
  /** Memory accesses that the last `translate`, `translationRequest` or `remapInterrupt` made; 0 on a cache hit. */
  readonly walkAccesses: number;
  /** Token of the last `translate` that was held. */
  readonly heldToken: number;
  readonly completion: TranslationCompletion;

  /**
   * Translates one untranslated or (ATTR_TRANSLATED) checks one translated access to a page. DMA_DONE: `page` is
   * the physical page (which may be in the interrupt window or a register window). Faults are recorded by the agent.
   */
  translate(sourceId: number, pasid: number, attributes: number, page: number, write: boolean): DmaStatus;
  /** ATS translation request; result in `completion`. DMA_UR or DMA_CA when ATS is refused. */
  translationRequest(sourceId: number, pasid: number, attributes: number, page: number): DmaStatus;
  pageRequest(sourceId: number, pasid: number, page: number, access: number, last: boolean, prgIndex: number): void;
  /**
   * A message-signalled interrupt (a 4-byte write without PASID that `translate` let into the interrupt window).
   * DMA_DONE: `messageAddress` and `messageData` are what the processors get. DMA_UR: dropped; the agent has recorded
   * why. An agent without it lets every message pass as it is.
   */
  remapInterrupt?(sourceId: number, address: number, data: number): DmaStatus;
  readonly messageAddress?: number;
  readonly messageData?: number;
  invalidateCompletion(sourceId: number, tag: number): void;
}

/** What an agent can send to functions; implemented by the fabric, each call is delivered after a TLP's time. */
export interface FunctionRouter {
  /** False when no function with that requester id is reachable: nobody will answer. */
  invalidate(sourceId: number, tag: number, page: number, pages: number, pasid: number, global: boolean): boolean;
  pageResponse(sourceId: number, prgIndex: number, code: number, pasid: number): boolean;
  /** Ends a held transaction: retried from its first page, or ended with `status`. */
  releaseHeld(token: number, action: 'retry' | DmaStatus): void;
}
