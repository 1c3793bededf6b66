/**
 * The page request queue in memory (VT-d 4.1, 7.4.1, 11.4.11): 32-byte descriptors written at PQT, PPR and PRO, the
 * page request event. Private data is never sent.
 *
 * Overflow: when the queue is full PRO is set, and until software clears it no request is queued; requests that
 * are not the last of their group are dropped, last ones are answered with Success by hardware, so that the device
 * asks again (7.4.1, handling of overflow). Stop markers want no answer (PCIe 6.0, 10.4.1.2.1).
 * PPR is set by every request that is queued, not only by last ones, as QEMU reads 7.5 too.
 */
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { Register, RegisterFile } from '../../../sim/registers.js';
import type { Trace } from '../../../sim/trace.js';
import { WORD, hiOfPage, loOfPage } from '../../../sim/address.js';
import { ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE, NO_PASID, PRG_SUCCESS } from '../../../host/pci/dma-port.js';
import type { BackEnd } from './back-end.js';
import type { EventMessage } from './event-message.js';
import type { InjectedErrors } from './injected-errors.js';
import type { VtdTraceKinds } from './trace-kinds.js';
import { PAGE_REQUEST_BYTES, PAGE_REQUEST_TYPE } from '../spec/descriptors.js';
import { PRS_PPR, PRS_PRO } from '../spec/registers.js';

export interface PageRequestQueueOptions {
  readonly unit: string;
  readonly registers: RegisterFile;
  readonly memory: PhysicalMemory;
  readonly event: EventMessage;
  readonly trace: Trace;
  readonly kinds: VtdTraceKinds;
  /** Last requests that overflow get no answer. */
  readonly loseOverflowAnswers: boolean;
  readonly injected?: InjectedErrors | undefined;
}

export class PageRequestQueue {
  /** Requests queued; lost to overflow; of these, answered by hardware. */
  readonly counts = { queued: 0, lost: 0, answered: 0 };
  private readonly head: Register;
  private readonly tail: Register;
  private readonly status: Register;
  private readonly memory: PhysicalMemory;
  private readonly event: EventMessage;
  private readonly trace: Trace;
  private readonly kinds: VtdTraceKinds;
  private readonly unitName: number;
  private readonly loseOverflowAnswers: boolean;
  private readonly injected: InjectedErrors | undefined;
  private backEnd: BackEnd | undefined;
  private base = 0;
  private ringMask = 0xfe0;

  constructor(options: PageRequestQueueOptions) {
    const { r } = options.registers;
    this.head = r['PQH']!;
    this.tail = r['PQT']!;
    this.status = r['PRS']!;
    this.memory = options.memory;
    this.event = options.event;
    this.trace = options.trace;
    this.kinds = options.kinds;
    this.unitName = options.trace.intern(options.unit);
    this.loseOverflowAnswers = options.loseOverflowAnswers;
    this.injected = options.injected;
    const address = r['PQA']!;
    address.onWrite = () => {
      this.base = address.hi * WORD + ((address.lo & ~0xfff) >>> 0);
      this.ringMask = (0x1000 << (address.lo & 7)) - PAGE_REQUEST_BYTES;
    };
    this.status.onWrite = () => {
      if ((this.status.lo & (PRS_PPR | PRS_PRO)) === 0) this.event.withdraw();
    };
  }

  connect(backEnd: BackEnd): void {
    this.backEnd = backEnd;
  }

  /** Entries between head and tail. */
  get depth(): number {
    return ((this.tail.lo - this.head.lo) & this.ringMask) / PAGE_REQUEST_BYTES;
  }

  /** A page request that passed the checks; allocates nothing unless a requester appears for the first time. */
  request(sourceId: number, pasid: number, page: number, access: number, last: boolean, prgIndex: number): void {
    const stopMarker = last && (access & (ACCESS_READ | ACCESS_WRITE)) === 0;
    const correlation = stopMarker ? 0 : this.trace.shared.open(sourceId, prgIndex);
    const tail = this.tail.lo & this.ringMask;
    const next = (tail + PAGE_REQUEST_BYTES) & this.ringMask;
    const status = this.status.lo;
    if ((status & PRS_PRO) === 0) {
      if (next !== (this.head.lo & this.ringMask) && this.injected?.full() !== true && this.store(this.base + tail, sourceId, pasid, page, access, last, prgIndex)) {
        this.counts.queued++;
        this.tail.lo = next;
        this.trace.record(this.kinds.pageRequest, correlation, this.unitName, sourceId, pasid, page, access, last ? 1 : 0, prgIndex, tail);
        this.status.lo = status | PRS_PPR;
        if ((status & PRS_PPR) === 0) this.event.raise();
        return;
      }
      // full, or not memory at all: software sees the same
      this.status.lo = status | PRS_PRO;
      if ((status & PRS_PPR) === 0) this.event.raise();
    }
    this.lose(correlation, sourceId, pasid, page, last, stopMarker, prgIndex);
  }

  reset(): void {
    this.base = 0;
    this.ringMask = 0xfe0;
    this.counts.queued = this.counts.lost = this.counts.answered = 0;
  }

  private lose(correlation: number, sourceId: number, pasid: number, page: number, last: boolean, stopMarker: boolean, prgIndex: number): void {
    const answered = last && !stopMarker && !this.loseOverflowAnswers;
    this.counts.lost++;
    this.trace.record(this.kinds.pageRequestOverflow, correlation, this.unitName, sourceId, pasid, page, last ? 1 : 0, prgIndex, answered ? 1 : 0);
    if (!answered) return;
    this.counts.answered++;
    this.trace.record(this.kinds.pageResponse, correlation, this.unitName, sourceId, pasid, prgIndex, PRG_SUCCESS);
    this.backEnd!.pageResponse(sourceId, pasid, pasid !== NO_PASID, prgIndex, PRG_SUCCESS, true);
  }

  private store(address: number, sourceId: number, pasid: number, page: number, access: number, last: boolean, prgIndex: number): boolean {
    const memory = this.memory;
    const withPasid = pasid !== NO_PASID;
    const lo0 = PAGE_REQUEST_TYPE | (withPasid ? 0x100 : 0) | (sourceId << 16);
    const hi0 = (withPasid ? pasid : 0) | ((access & ACCESS_EXECUTE) !== 0 ? 1 << 20 : 0) | ((access & ACCESS_PRIVILEGED) !== 0 ? 1 << 21 : 0);
    const lo1 = loOfPage(page) | (access & (ACCESS_READ | ACCESS_WRITE)) | (last ? 4 : 0) | (prgIndex << 3);
    return memory.store64(address, lo0, hi0) && memory.store64(address + 8, lo1, hiOfPage(page))
      && memory.store64(address + 16, 0, 0) && memory.store64(address + 24, 0, 0);
  }
}
