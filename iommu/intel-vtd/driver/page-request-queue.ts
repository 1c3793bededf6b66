/**
 * The page request queue, the software side (VT-d 4.1, sections 7.4 to 7.10; Linux: drivers/iommu/intel/prq.c): an
 * interrupt wakes a thread that decodes everything between head and tail, reports it, and gives the entries back.
 * Answers that the thread itself has to give travel with the others through the invalidation queue.
 */
import { isErrno } from '../../../sim/errno.js';
import { pageOfWords } from '../../../sim/address.js';
import { WaitQueue, sleep, type Scheduler, type Steps } from '../../../sim/task.js';
import type { Channel } from '../../../sim/channel.js';
import type { Clock } from '../../../sim/clock.js';
import type { Mmio } from '../../../sim/mmio.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { Trace, TraceKind } from '../../../sim/trace.js';
import type { Device } from '../../../host/device.js';
import type { FrameSource } from '../../../host/frame-source.js';
import type { InterruptController, IrqVector } from '../../../host/interrupts.js';
import type { KernelLog } from '../../../host/kernel-log.js';
import type { Timing } from '../../../host/timing.js';
import { ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE } from '../../../host/pci/dma-port.js';
import { FAULT_PAGE_REQ, type FaultReport, type IopfQueue } from '../../core/ops.js';
import { PAGE_REQUEST, PAGE_REQUEST_BYTES, RESP_INVALID } from '../spec/descriptors.js';
import { PQA, PQ_POINTER_MASK, PRS_PPR, PRS_PRO, REG } from '../spec/registers.js';
import { responseWord0, responseWord1, responseWord2, type DescriptorBatch } from './descriptor-batch.js';
import { unmaskEvent } from './event-interrupt.js';
import type { InvalidationQueue } from './invalidation-queue.js';

/** A function whose requests are reported. */
export interface RequestSource {
  readonly device: Device;
  /** Its interned name. */
  readonly nameId: number;
}

export interface PageRequestQueueOptions {
  readonly name: string;
  readonly memory: PhysicalMemory;
  readonly frames: FrameSource;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly timing: Timing;
  readonly registers: Mmio;
  readonly interrupts: InterruptController;
  readonly queue: InvalidationQueue;
  /** The software queue that collects and answers groups. */
  readonly iopf: IopfQueue;
  readonly faults: Channel<FaultReport>;
  readonly trace: Trace;
  readonly log: KernelLog;
  readonly sourceOf: (sourceId: number) => RequestSource | undefined;
  /** The ring has 2^order pages of 128 entries. */
  readonly order: number;
  /** Addresses of five-level tables are canonical too. */
  readonly fiveLevel: boolean;
  /** `vtd-driver.lose-page-requests` */
  readonly defects?: ReadonlySet<string>;
}

/** Group indices of a function: 9 bits. */
const F = PAGE_REQUEST.f;
const PP = 1 << F.PP.shift;
const PASID_MASK = F.PASID.mask;
const EXE = 1 << F.EXE.shift;
const PM = 1 << F.PM.shift;
const RD = 1 << F.RD.shift;
const WR = 1 << F.WR.shift;
const LPIG = 1 << F.LPIG.shift;

export class PageRequestQueue {
  readonly iopf: IopfQueue;
  /** Requests taken from the ring, the refused ones included. */
  requests = 0;
  /** Times that the ring overflowed and was cleared. */
  overflows = 0;
  private readonly options: PageRequestQueueOptions;
  private readonly base: number;
  private readonly ringMask: number;
  private readonly canonicalShift: number;
  private readonly work: WaitQueue;
  private readonly completed: WaitQueue;
  private interrupted = false;
  /** Passes of the thread so far. */
  private passes = 0;
  private vector: IrqVector | undefined;
  private readonly loseRequests: boolean;
  private readonly reportKind: TraceKind;
  private readonly nameId: number;

  /** ENOMEM without frames for the ring. */
  constructor(options: PageRequestQueueOptions) {
    this.options = options;
    this.iopf = options.iopf;
    this.base = options.frames.alloc(`${options.name} page request queue`, options.order);
    this.ringMask = (4096 << options.order) - PAGE_REQUEST_BYTES;
    // bits of the high half above which all must equal the sign: 63:47, or 63:56
    this.canonicalShift = options.fiveLevel ? 24 : 15;
    this.work = new WaitQueue(options.scheduler, `page requests of ${options.name}`);
    this.completed = new WaitQueue(options.scheduler, `the page request thread of ${options.name}`);
    this.reportKind = options.trace.define('intel_iommu:prq_report', [
      ['iommu', 'str'], ['dev', 'str'], ['pasid', 'dec'], ['addr', 'page'], ['access', 'hex'], ['prgi', 'dec'], ['last', 'bool'], ['seq', 'dec'],
    ]);
    this.nameId = options.trace.intern(options.name);
    this.loseRequests = options.defects?.has('vtd-driver.lose-page-requests') ?? false;
  }

  /** Takes a vector, starts the thread and hands the ring to hardware: the message is programmed before the ring. ENOSPC. */
  enable(): void {
    const { name, interrupts, registers, scheduler, order } = this.options;
    this.vector = interrupts.request(`${name}-prq`, () => {
      this.interrupted = true;
      this.work.wakeAll();
    });
    scheduler.spawn(`${name}-prq`, this.serve(), { daemon: true });
    unmaskEvent(registers, REG.PECTL, this.vector);
    const pqa = PQA.encode({ PQS: order, PQA: this.base });
    registers.write(REG.PQH, 8, 0, 0);
    registers.write(REG.PQT, 8, 0, 0);
    registers.write(REG.PQA, 8, pqa[0]!, pqa[1]!);
  }

  /**
   * Waits until no page request of (device, pasid) is left in the ring, in the software queue, or on its way through
   * hardware (7.10; flow 2b). The PASID entry is gone and the caches are invalidated; no lock is held that a fault
   * worker needs.
   * @param pasid undefined: of the device, under whatever PASID
   * @param batch fence, IOTLB and device-TLB invalidation, which a draining wait ends
   */
  *drain(device: Device, sourceId: number, pasid: number | undefined, batch: DescriptorBatch): Steps {
    for (;;) {
      const seen = this.passes;
      if (!this.holds(sourceId, pasid)) break;
      yield* this.completed.until(() => this.passes > seen);
    }
    yield* this.flushGroups(device);
    yield* this.options.queue.flushPosted();
    for (;;) {
      const seen = this.passes;
      yield* this.options.queue.invalidate(batch, true);
      if ((this.options.registers.read(REG.PRS, 4) & PRS_PRO) === 0) return;
      yield* this.completed.until(() => this.passes > seen);
    }
  }

  /** A device that has left the software queue had everything answered then. */
  private *flushGroups(device: Device): Steps {
    try {
      yield* this.iopf.flushDevice(device);
    } catch (error) {
      if (!isErrno(error, 'ENODEV')) throw error;
    }
  }

  private *serve(): Steps {
    const { clock, timing } = this.options;
    for (;;) {
      yield* this.work.until(() => this.interrupted);
      yield* sleep(clock, timing.jittered(timing.options.threadWakeNs));
      this.interrupted = false;
      this.handle();
      this.passes++;
      this.completed.wakeAll();
    }
  }

  /** One pass: PPR is cleared before the tail is read, so that whatever comes later interrupts again. */
  private handle(): void {
    const { registers } = this.options;
    registers.write(REG.PRS, 4, PRS_PPR);
    const tail = registers.read(REG.PQT, 8) & PQ_POINTER_MASK & this.ringMask;
    let head = registers.read(REG.PQH, 8) & PQ_POINTER_MASK & this.ringMask;
    while (head !== tail) {
      this.take(this.base + head);
      head = (head + PAGE_REQUEST_BYTES) & this.ringMask;
    }
    registers.write(REG.PQH, 8, tail, 0);
    if ((registers.read(REG.PRS, 4) & PRS_PRO) !== 0) this.recoverOverflow();
  }

  /** The rules of Linux 6.12, in their order (section 3.1; E15–E19, P9). */
  private take(address: number): void {
    const { memory, sourceOf } = this.options;
    memory.load64(address);
    const lo0 = memory.lo, hi0 = memory.hi;
    memory.load64(address + 8);
    const lo1 = memory.lo, hi1 = memory.hi;
    this.requests++;
    if (this.loseRequests) return;
    const sign = hi1 >> this.canonicalShift;
    const reading = (lo1 & RD) !== 0, writing = (lo1 & WR) !== 0;
    if ((lo0 & PP) === 0) this.refuse(lo0, hi0, lo1, hi1, 'Page request without PASID');
    else if (sign !== 0 && sign !== -1) this.refuse(lo0, hi0, lo1, hi1, 'Address is not canonical');
    else if ((hi0 & PM) !== 0 && (reading || writing)) this.refuse(lo0, hi0, lo1, hi1, 'Page request in Privilege Mode');
    else if ((hi0 & EXE) !== 0 && reading) this.refuse(lo0, hi0, lo1, hi1, 'Execution request not supported');
    // a stop marker: no response (P9)
    else if ((lo1 & LPIG) !== 0 && !reading && !writing) return;
    else {
      const source = sourceOf(lo0 >>> 16);
      if (source === undefined) this.refuse(lo0, hi0, lo1, hi1, undefined);
      else this.report(source, lo0 >>> 16, hi0, lo1, hi1);
    }
  }

  private report(source: RequestSource, sourceId: number, hi0: number, lo1: number, hi1: number): void {
    const { trace, clock, faults } = this.options;
    const pasid = hi0 & PASID_MASK;
    const last = (lo1 & LPIG) !== 0;
    const prgIndex = (lo1 & F.PRGI.mask) >>> F.PRGI.shift;
    const access = ((lo1 & RD) !== 0 ? ACCESS_READ : 0) | ((lo1 & WR) !== 0 ? ACCESS_WRITE : 0)
      | ((hi0 & EXE) !== 0 ? ACCESS_EXECUTE : 0) | ((hi0 & PM) !== 0 ? ACCESS_PRIVILEGED : 0);
    const page = pageOfWords(lo1, hi1);
    const correlation = trace.shared.open(sourceId, prgIndex);
    trace.record(this.reportKind, correlation, this.nameId, source.nameId, pasid, page, access, prgIndex, last ? 1 : 0, this.requests);
    faults.publish({
      timeNs: clock.now, correlation, device: source.device,
      fault: { type: FAULT_PAGE_REQ, pasid, prgIndex, last, access, page, responseNeedsPasid: true, token: sourceId },
    });
  }

  /** Answered Invalid when it is the last of its group, otherwise nothing (section 0, E15–E19). */
  private refuse(lo0: number, hi0: number, lo1: number, hi1: number, why: string | undefined): void {
    const { log, name, queue } = this.options;
    if (why !== undefined) log.limited(`${name} prq`, 'err', `DMAR: ${name}: ${why}`);
    log.limited(`${name} prq`, 'err', `DMAR: ${name}: Invalid page request: ${qword(lo0, hi0)} ${qword(lo1, hi1)}`);
    if ((lo1 & LPIG) === 0) return;
    const prgIndex = (lo1 & F.PRGI.mask) >>> F.PRGI.shift;
    queue.post(responseWord0(lo0 >>> 16, (lo0 & PP) !== 0, RESP_INVALID), responseWord1(hi0 & PASID_MASK), responseWord2(prgIndex, true), 0);
  }

  /** A lost "last" would leave partial groups that a reused index completes by mistake (P7). */
  private recoverOverflow(): void {
    const { registers, log, name, iopf } = this.options;
    log.limited(`${name} prq`, 'info', `DMAR: IOMMU: ${name}: PRQ overflow detected`);
    const head = registers.read(REG.PQH, 8) & PQ_POINTER_MASK;
    const tail = registers.read(REG.PQT, 8) & PQ_POINTER_MASK;
    if (head !== tail) return;
    iopf.discardPartial();
    registers.write(REG.PRS, 4, PRS_PRO);
    this.overflows++;
    log.limited(`${name} prq`, 'info', `DMAR: IOMMU: ${name}: PRQ overflow cleared`);
  }

  /** True while a request of (device, pasid) stands between head and tail. */
  private holds(sourceId: number, pasid: number | undefined): boolean {
    const { registers, memory } = this.options;
    const tail = registers.read(REG.PQT, 8) & PQ_POINTER_MASK & this.ringMask;
    let head = registers.read(REG.PQH, 8) & PQ_POINTER_MASK & this.ringMask;
    for (; head !== tail; head = (head + PAGE_REQUEST_BYTES) & this.ringMask) {
      memory.load64(this.base + head);
      if (memory.lo >>> 16 === sourceId && (pasid === undefined || ((memory.lo & PP) !== 0 && (memory.hi & PASID_MASK) === pasid))) return true;
    }
    return false;
  }
}

function qword(lo: number, hi: number): string {
  return hi === 0 ? (lo >>> 0).toString(16).padStart(8, '0') : (hi >>> 0).toString(16) + (lo >>> 0).toString(16).padStart(8, '0');
}
