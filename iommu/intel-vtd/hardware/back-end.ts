/**
 * The line through the VT-d hardware model. The front end owns registers, queues and logs, decodes descriptors and
 * generates interrupts; the back end translates, keeps caches, and reaches devices. A unit of silicon joins the
 * front end to `TranslationBackEnd`; a virtual IOMMU joins the same front end to one that calls the host's kernel.
 * Clauses are of the Intel VT-d architecture specification, rev 4.1.
 */

/** State that the front end latches and the back end obeys. */
export interface TranslationState {
  /** GSTS.TES */
  readonly enabled: boolean;
  /** Root table address, 4 KiB aligned (RTADDR latched by SRTP). */
  readonly rootTable: number;
  /** RTADDR.TTM: 0 legacy, 1 scalable, 3 abort-dma. */
  readonly mode: number;
}

/** State of interrupt remapping that the front end latches and the back end obeys. */
export interface InterruptState {
  /** GSTS.IRES */
  readonly enabled: boolean;
  /** Interrupt remapping table, 4 KiB aligned (IRTA latched by SIRTP). */
  readonly table: number;
  /** Entries of the table, 2^(S + 1). */
  readonly entries: number;
  /** IRTA.EIME: destinations have 32 bits, and nothing in compatibility format passes. */
  readonly extended: boolean;
  /** GSTS.CFIS: interrupts in compatibility format pass. */
  readonly compatibility: boolean;
}

export type ContextGranularity = 'global' | 'domain' | 'device';
export type IotlbGranularity = 'global' | 'domain' | 'page';
export type PasidCacheGranularity = 'domain' | 'pasid' | 'global';
export type PasidIotlbGranularity = 'pasid' | 'page';

/** Tells the front end that a device-TLB invalidation ended. */
export type DeviceTlbResult = 'completed' | 'timed-out';

export interface BackEnd {
  /** SRTP or TE took effect. */
  setState(state: TranslationState): void;
  /** SIRTP, IRE or CFI took effect; never called on a unit without interrupt remapping. */
  setInterruptState(state: InterruptState): void;
  /** @param index first of `entries`, aligned to them, a power of two; all of them: 0 and Infinity */
  invalidateInterruptEntries(index: number, entries: number): void;
  /** @param functionMask FM of section 6.5.2.1, 0..3 */
  invalidateContext(granularity: ContextGranularity, domainId: number, sourceId: number, functionMask: number): void;
  /** @param pages aligned power of two; `hint` IH: leaf entries only */
  invalidateIotlb(granularity: IotlbGranularity, domainId: number, page: number, pages: number, hint: boolean): void;
  invalidatePasidCache(granularity: PasidCacheGranularity, domainId: number, pasid: number): void;
  invalidatePasidIotlb(granularity: PasidIotlbGranularity, domainId: number, pasid: number, page: number, pages: number, hint: boolean): void;
  /**
   * Sends an invalidation request to a device; `done` is called once, later. `pages` is Infinity for all addresses.
   * At most 32 are outstanding per device, further ones wait inside (flow 2e, step 6).
   */
  invalidateDeviceTlb(sourceId: number, pasid: number, page: number, pages: number, global: boolean, done: (result: DeviceTlbResult) => void): void;
  /** Page-group response for a device. */
  pageResponse(sourceId: number, pasid: number, pasidPresent: boolean, prgIndex: number, code: number, last: boolean): void;
  /** Drain of DMA that is in flight (wait descriptor's ordering, IOTLB DR/DW): calls back when nothing older is under way. */
  drain(done: () => void): void;
}

/** A non-recoverable fault that the back end met (chapter 7). */
export interface FaultRecord {
  readonly sourceId: number;
  /** NO_PASID without one. */
  readonly pasid: number;
  /** Fault reason code, spec/fault-reasons.ts. */
  readonly reason: number;
  /** FI as a page number; reasons of interrupt remapping have the interrupt index in its highest 16 bits. */
  readonly page: number;
  readonly write: boolean;
  readonly execute: boolean;
  readonly privileged: boolean;
  /** Address type of the request: 0 untranslated, 1 translation request, 2 translated. */
  readonly addressType: number;
  /** The request was a page request (T1 = 0, T2 = 1 in the record). */
  readonly pageRequest?: boolean;
}

/** What the back end asks of the front end. */
export interface FrontEndSink {
  /** Records a fault unless its qualification says otherwise (the back end has already honoured FPD). */
  fault(record: FaultRecord): void;
  /**
   * A page request that passed the checks of section 7.4: queued, or dropped and auto-answered on overflow.
   */
  pageRequest(sourceId: number, pasid: number, page: number, access: number, last: boolean, prgIndex: number): void;
  /** An interrupt of a device was remapped: for the trace. */
  interruptRemapped?(sourceId: number, index: number, vector: number, destination: number): void;
  /** A device-TLB invalidation completion with a tag or requester that nothing waits for (FSTS.ICE). */
  invalidCompletion?(sourceId: number): void;
}
