/**
 * The page fault handler for devices (P1–P9; drivers/iommu/io-pgfault.c): collects the requests of a group, faults
 * their pages in on behalf of the process, and answers the group once. Works as an unbound, unordered workqueue:
 * requests of one group are handled in order, groups may overtake each other.
 * Left out: page requests without PASID on a domain that can fault (6.11); they are answered INVALID (P4).
 */
import { assert } from '../../sim/assert.js';
import { PAGE_SIZE } from '../../sim/address.js';
import { Errno, type ErrnoName } from '../../sim/errno.js';
import { Pause, WaitQueue, type Mutex, type Steps } from '../../sim/task.js';
import { ACCESS_PRIVILEGED } from '../../host/pci/dma-port.js';
import type { Device } from '../../host/device.js';
import type { AddressSpace } from '../../host/mm/address-space.js';
import type { FaultReport, IopfQueue, PageRequest, PageResponseCode } from './ops.js';
import type { CoreContext } from './options.js';
import { bondOf, type DeviceRecord } from './records.js';

/** A group that was handed to the workers, from its last request until its answer. */
export interface FaultGroup {
  readonly record: DeviceRecord;
  readonly last: FaultReport;
  /** The requests before the last one, in arrival order. */
  readonly partials: readonly FaultReport[] | undefined;
  readonly epoch: number;
  answered: boolean;
  next: FaultGroup | undefined;
  previous: FaultGroup | undefined;
}

export type Answer = (record: DeviceRecord, report: FaultReport, code: PageResponseCode) => void;

export class FaultQueue implements IopfQueue {
  readonly name: string;
  private readonly context: CoreContext;
  private readonly answer: Answer;
  /** Guards the lookup of an mm by PASID against bind and unbind; a flush under it never ends (R-RACE-4). */
  private readonly svaLock: Mutex;
  private readonly devices = new Set<DeviceRecord>();
  private work: FaultGroup[] = [];
  private workHead = 0;
  private workers = 0;
  private readonly idle: WaitQueue;
  private readonly drained: WaitQueue;
  /** Groups not yet finished, by the flush epoch they belong to; the last entry is the open epoch. */
  private readonly unfinished = [0];
  private firstEpoch = 0;
  private readonly maxWorkers: number;
  private readonly limit: number;
  private readonly strict: boolean;
  private readonly unsticky: boolean;
  private readonly keepPartials: boolean;
  private readonly mixGroups: boolean;
  private readonly putInWorker: boolean;
  private readonly refuseAll: boolean;
  private readonly answerTwice: boolean;
  private readonly wrongMm: boolean;

  constructor(context: CoreContext, name: string, answer: Answer, svaLock: Mutex) {
    this.name = name;
    this.context = context;
    this.answer = answer;
    this.svaLock = svaLock;
    this.idle = new WaitQueue(context.scheduler, `work on iopf_queue/${name}`);
    this.drained = new WaitQueue(context.scheduler, `the flush of iopf_queue/${name}`);
    this.maxWorkers = context.options.iopfWorkers ?? 4;
    this.limit = context.options.iopfLimit ?? 0x1_0000;
    this.strict = context.options.strictPrg ?? false;
    this.unsticky = context.defects.has('core.fault-after-error');
    this.keepPartials = context.defects.has('core.keep-partials-on-overflow');
    this.putInWorker = context.defects.has('core.put-mm-in-worker');
    this.mixGroups = context.defects.has('core.collect-any-group');
    this.refuseAll = context.defects.has('core.refuse-page-requests');
    this.answerTwice = context.defects.has('core.answer-twice');
    this.wrongMm = context.defects.has('core.fault-in-wrong-mm');
  }

  /** @throws Errno ENODEV unknown device, EBUSY on a queue already (P8) */
  addDevice(device: Device): void {
    const record = this.context.registry.recordOf(device);
    if (record.queue !== undefined) throw new Errno('EBUSY', `${device.name} is already on iopf_queue/${record.queue.name}`);
    record.queue = this;
    this.devices.add(record);
  }

  removeDevice(device: Device): void {
    const record = this.context.registry.devices.get(device);
    if (record === undefined || record.queue !== this) return;
    this.discard(record);
    while (record.firstGroup !== undefined) this.respond(record.firstGroup, 'INVALID');
    record.queue = undefined;
    this.devices.delete(record);
  }

  /**
   * Waits until every group that stood on the queue at the call has been answered, whatever its device (P6). The
   * caller has stopped the producers, and holds no lock that a worker needs.
   * @throws Errno ENODEV when the device is not on this queue
   */
  *flushDevice(device: Device): Steps {
    const record = this.context.registry.devices.get(device);
    if (record === undefined || record.queue !== this) throw new Errno('ENODEV', `${device.name} is not on iopf_queue/${this.name}`);
    this.recordFlush(record);
    if (this.outstanding === 0) return;
    const epoch = this.firstEpoch + this.unfinished.length - 1;
    this.unfinished.push(0);
    yield* this.drained.until(() => this.firstEpoch > epoch);
  }

  /** Says which lock the caller holds that a worker may wait for, and whether the caller is a worker itself. */
  private recordFlush(record: DeviceRecord): void {
    const task = this.context.scheduler.current;
    const held = task?.heldLocks.find((lock) => lock === this.svaLock || lock.name === 'mmap_lock');
    const { trace, iopfFlush } = this.context.trace;
    trace.record(iopfFlush, 0, record.name, trace.intern(held?.name ?? ''), task?.name.startsWith(`iopf_queue/${this.name}-`) === true ? 1 : 0);
  }

  discardPartial(): void {
    if (this.keepPartials) return;
    for (const record of this.devices) this.discard(record);
  }

  /** Drops the partial groups of a device that is reset: their last requests never come (2g). */
  forgetPartial(record: DeviceRecord): void {
    this.discard(record);
  }

  /** Groups that have not been finished. */
  get outstanding(): number {
    let sum = 0;
    for (const count of this.unfinished) sum += count;
    return sum;
  }

  /** Takes one page request of a device on this queue. ENOMEM: dropped, and the caller answers if it was the last (P5). */
  report(record: DeviceRecord, report: FaultReport): ErrnoName | undefined {
    const request = report.fault as PageRequest;
    if (!request.last) {
      if (record.partials.length >= this.limit) return 'ENOMEM';
      if (this.strict) this.checkReuse(record, request);
      record.partials.push(report);
      return undefined;
    }
    if (this.strict) this.checkReuse(record, request);
    const partials = record.partials.length === 0 ? undefined : this.collect(record, request.prgIndex);
    if (record.groups >= this.limit) {
      this.context.counters.discarded += partials?.length ?? 0;
      return 'ENOMEM';
    }
    const group: FaultGroup = {
      record, last: report, partials, epoch: this.firstEpoch + this.unfinished.length - 1, answered: false, next: record.firstGroup, previous: undefined,
    };
    if (record.firstGroup !== undefined) record.firstGroup.previous = group;
    record.firstGroup = group;
    record.groups++;
    this.unfinished[this.unfinished.length - 1]!++;
    this.context.counters.groups++;
    this.work.push(group);
    if (!this.idle.empty) this.idle.wakeOne();
    else if (this.workers < this.maxWorkers) this.spawn();
    return undefined;
  }

  /** Partial requests with this group index, taken off the list; the index alone decides, not the PASID (P2). */
  private collect(record: DeviceRecord, prgIndex: number): FaultReport[] | undefined {
    const taken: FaultReport[] = [];
    const kept: FaultReport[] = [];
    for (const partial of record.partials) {
      if (this.mixGroups || (partial.fault as PageRequest).prgIndex === prgIndex) taken.push(partial);
      else kept.push(partial);
    }
    if (taken.length === 0) return undefined;
    record.partials = kept;
    return taken;
  }

  private discard(record: DeviceRecord): void {
    if (record.partials.length === 0) return;
    const { trace, counters } = this.context;
    trace.trace.record(trace.discard, 0, record.name, record.partials.length);
    counters.discarded += record.partials.length;
    record.partials = [];
  }

  private spawn(): void {
    this.context.scheduler.spawn(`iopf_queue/${this.name}-${this.workers++}`, this.serve(), { daemon: true });
  }

  /**
   * A worker. P3: the faults of a group in order, the first failure skips the rest, one answer. All in one generator
   * with one reusable sleep, because this loop bounds how many page requests a second can be handled.
   */
  private *serve(): Steps {
    const { timing, scheduler } = this.context;
    const { threadWakeNs, faultServiceNs } = timing.options;
    const pause = new Pause(scheduler);
    const task = scheduler.current!;
    // a worker that waits for a lock is part of a deadlock; one that waits for work is not
    task.daemon = false;
    yield pause.of(timing.jittered(threadWakeNs));
    for (;;) {
      const group = this.take();
      if (group === undefined) {
        task.daemon = true;
        yield this.idle;
        task.daemon = false;
        yield pause.of(timing.jittered(threadWakeNs));
        continue;
      }
      if (group.answered) {
        this.finish(group);
        continue;
      }
      const { record, partials } = group;
      const count = partials === undefined ? 0 : partials.length;
      let code: PageResponseCode = 'SUCCESS';
      let mm: AddressSpace | undefined;
      let mmPasid = 0;
      let serviceNs = 0;
      for (let i = 0; i <= count; i++) {
        const report = i < count ? partials![i]! : group.last;
        const request = report.fault as PageRequest;
        if (mm === undefined || request.pasid !== mmPasid) {
          mm?.putAsync();
          // the lookup does not sleep, so a lock that nobody holds need not be taken
          if (this.svaLock.owner !== undefined) yield* this.svaLock.with(nothing);
          mm = this.mmOf(record, request.pasid);
          mmPasid = request.pasid;
        }
        let handled = false;
        if (mm !== undefined && !this.refuseAll) {
          serviceNs += timing.jittered(faultServiceNs);
          const address = request.page * PAGE_SIZE, access = request.access & ~ACCESS_PRIVILEGED;
          handled = (mm.tryHandleFault(address, access) ?? (yield* mm.handleFault(address, access))) === 'handled';
        }
        const { trace, handle } = this.context.trace;
        trace.record(handle, report.correlation, record.name, request.pasid, mm === undefined ? 0 : mm.id, request.page, handled ? 1 : 0);
        if (!handled) {
          code = 'INVALID';
          if (!this.unsticky) break;
        }
      }
      if (serviceNs > 0) yield pause.of(serviceNs);
      // the last user's put tears the mm down and flushes this very queue, so it must not happen in a worker (M5)
      if (this.putInWorker && mm !== undefined) yield* mm.put();
      else mm?.putAsync();
      this.respond(group, code);
      this.finish(group);
    }
  }

  private take(): FaultGroup | undefined {
    if (this.workHead === this.work.length) {
      if (this.workHead > 0) this.work = [];
      this.workHead = 0;
      return undefined;
    }
    const group = this.work[this.workHead++];
    if (this.workHead >= 1024 && this.workHead * 2 >= this.work.length) {
      this.work = this.work.slice(this.workHead);
      this.workHead = 0;
    }
    return group;
  }

  /** The process' address space, with a use taken; undefined when there is none the device may fault in (P4). */
  private mmOf(record: DeviceRecord, pasid: number): AddressSpace | undefined {
    const { bound: byPasid } = this.context.registry;
    const bound = (this.wrongMm ? byPasid.get(pasid - 1) : undefined) ?? byPasid.get(pasid);
    if (bound === undefined || bondOf(bound, record) === undefined) return undefined;
    return bound.mm.get() ? bound.mm : undefined;
  }

  private respond(group: FaultGroup, code: PageResponseCode): void {
    if (group.answered) return;
    group.answered = true;
    const { record } = group;
    if (group.previous === undefined) record.firstGroup = group.next;
    else group.previous.next = group.next;
    if (group.next !== undefined) group.next.previous = group.previous;
    record.groups--;
    this.answer(record, group.last, code);
    if (this.answerTwice) this.answer(record, group.last, code);
  }

  private finish(group: FaultGroup): void {
    const { unfinished } = this;
    unfinished[group.epoch - this.firstEpoch]!--;
    assert(unfinished[group.epoch - this.firstEpoch]! >= 0, `iopf_queue/${this.name} finished a group twice`);
    let passed = false;
    while (unfinished.length > 1 && unfinished[0] === 0) {
      unfinished.shift();
      this.firstEpoch++;
      passed = true;
    }
    if (passed) this.drained.wakeAll();
  }

  private checkReuse(record: DeviceRecord, request: PageRequest): void {
    const other = record.partials.find(({ fault }) => {
      const partial = fault as PageRequest;
      return partial.prgIndex === request.prgIndex && partial.pasid !== request.pasid;
    });
    if (other !== undefined) this.violation(record, request, (other.fault as PageRequest).pasid);
    else this.checkPending(record, request);
  }

  /** A group index may not be reused before the response (E20). */
  private checkPending(record: DeviceRecord, request: PageRequest): void {
    for (let group = record.firstGroup; group !== undefined; group = group.next) {
      const pending = group.last.fault as PageRequest;
      if (pending.prgIndex === request.prgIndex) {
        this.violation(record, request, pending.pasid);
        return;
      }
    }
  }

  private violation(record: DeviceRecord, request: PageRequest, other: number): void {
    this.context.counters.violations++;
    this.context.log.log(
      'err', `iopf_queue/${this.name}: ${record.device.name} uses page request group ${request.prgIndex} for PASID ${request.pasid} while PASID ${other} has it`,
    );
  }
}

/* oxlint-disable-next-line require-yield -- taking the lock is all */
function* nothing(): Steps {}
