/**
 * Fault reporting (R1–R9): from a driver's channel of decoded faults to whoever handles them, and the answers back
 * on the responses channel to the driver. A request that nobody takes is answered INVALID here (R10).
 */
import { Errno, type ErrnoName } from '../../sim/errno.js';
import { Channel } from '../../sim/channel.js';
import type { Subscription } from 'rxjs';
import type { Device } from '../../host/device.js';
import { FAULT_PAGE_REQ, type FaultReport, type IommuOps, type PageRequest, type PageResponse, type PageResponseCode } from './ops.js';
import type { CoreContext } from './options.js';
import { bondOf, type DeviceFaultHandler, type DeviceRecord } from './records.js';
import { CODE_NUMBER } from './trace-kinds.js';

export const PAGE_RESPONSE_VERSION_1 = 1;
export const PAGE_RESP_PASID_VALID = 1;
/** Bytes of struct iommu_page_response (include/uapi/linux/iommu.h, v5.10). */
const PAGE_RESPONSE_BYTES = 24;

/** The answer to a reported page request group (R8). */
export interface PageResponseMessage {
  readonly argsz?: number;
  readonly version: number;
  /** PAGE_RESP_PASID_VALID or 0. */
  readonly flags: number;
  readonly pasid: number;
  readonly grpid: number;
  readonly code: PageResponseCode;
}

export class FaultReporting {
  /** Every fault of every driver, for listeners. */
  readonly faults: Channel<FaultReport>;
  readonly responses: Channel<PageResponse>;
  private readonly context: CoreContext;
  private readonly timeoutNs: number;
  private readonly timeoutPolicy: 'warn' | 'invalid' | 'failure';
  private readonly subscriptions: Subscription[] = [];
  private readonly loseOddGroups: boolean;
  private readonly ignoreResponsePasid: boolean;

  constructor(context: CoreContext) {
    const { mailbox, options, defects } = context;
    this.context = context;
    this.faults = new Channel(mailbox, 'iommu.faults');
    this.responses = new Channel(mailbox, 'iommu.responses');
    this.timeoutNs = (options.prqTimeoutSeconds ?? 10) * 1_000_000_000;
    this.timeoutPolicy = options.prqTimeoutPolicy ?? 'warn';
    this.loseOddGroups = defects.has('core.lose-response');
    this.ignoreResponsePasid = defects.has('core.ignore-response-pasid');
    const { responseWire } = options;
    const responses$ = responseWire === undefined ? this.responses.values$ : responseWire(this.responses.values$);
    this.subscriptions.push(responses$.subscribe((response) => {
      this.context.registry.devices.get(response.device)?.ops.pageResponse(response);
    }));
  }

  /** Listens to a driver's faults. */
  connect(ops: IommuOps): void {
    const { faultWire } = this.context.options;
    const faults$ = faultWire === undefined ? ops.faults.values$ : faultWire(ops.faults.values$);
    this.subscriptions.push(faults$.subscribe((report) => this.receive(ops, report)));
  }

  close(): void {
    for (const subscription of this.subscriptions) subscription.unsubscribe();
    this.subscriptions.length = 0;
    this.faults.close();
    this.responses.close();
  }

  /** R1. @throws Errno ENODEV, EBUSY a handler is there (E11) */
  register(device: Device, handler: DeviceFaultHandler, data: unknown): void {
    const record = this.recordOf(device);
    if (record.handler !== undefined) throw new Errno('EBUSY', `${device.name} already has a device fault handler`);
    record.handler = handler;
    record.handlerData = data;
  }

  /** R2. @throws Errno EINVAL unknown device, EBUSY while requests wait for an answer (E12) */
  unregister(device: Device): void {
    const record = this.recordOf(device);
    if (record.handler === undefined) return;
    if (record.pending.length > 0) {
      throw new Errno('EBUSY', `${record.pending.length} page requests of ${device.name} wait for an answer`);
    }
    record.handler = undefined;
    record.handlerData = undefined;
  }

  /**
   * R3: hands a fault to the device's handler or page-request queue. When it refuses a recoverable fault, the
   * caller answers it.
   * @throws Errno EINVAL unknown device or nobody handles its faults, ENOMEM, or what the handler said
   */
  report(device: Device, report: FaultReport): void {
    const record = this.recordOf(device);
    const refused = this.route(record, report);
    if (refused !== undefined) throw new Errno(refused, `nobody takes the fault of ${device.name}`);
  }

  /**
   * R4: answers a reported page request group. One response consumes one pending request.
   * @throws Errno ENODEV unknown device; EINVAL wrong version or flags, nothing pending, no match (E13, E14)
   */
  respond(device: Device, message: PageResponseMessage): void {
    const record = this.context.registry.recordOf(device);
    const { version, flags, grpid, argsz, code } = message;
    if (argsz !== undefined && argsz < PAGE_RESPONSE_BYTES) throw new Errno('EINVAL', `page response of ${argsz} bytes is shorter than ${PAGE_RESPONSE_BYTES}`);
    if (version !== PAGE_RESPONSE_VERSION_1) throw new Errno('EINVAL', `page response has version ${version}, not ${PAGE_RESPONSE_VERSION_1}`);
    if ((flags & ~PAGE_RESP_PASID_VALID) !== 0) throw new Errno('EINVAL', `page response has unknown flags ${flags}`);
    if (CODE_NUMBER[code] === undefined) throw new Errno('EINVAL', `page response has unknown code ${String(code)}`);
    if (record.pending.length === 0) {
      this.context.counters.lateResponses++;
      this.context.log.limited(`iommu.no-prq.${device.name}`, 'warn', `${device.name}: no pending PRQ, drop response`);
      throw new Errno('EINVAL', `no page request of ${device.name} is pending`);
    }
    const index = record.pending.findIndex(({ report }) => this.matches(report.fault as PageRequest, message));
    if (index < 0) {
      this.context.counters.lateResponses++;
      const pasid = (flags & PAGE_RESP_PASID_VALID) === 0 ? 'no PASID' : `PASID ${message.pasid}`;
      throw new Errno('EINVAL', `no pending page request of ${device.name} has group ${grpid} and ${pasid}`);
    }
    this.consume(record, index, code);
  }

  /** Answers everything that waits for the device's handler, e.g. when the device or its owner goes. */
  answerPending(record: DeviceRecord, code: PageResponseCode): void {
    while (record.pending.length > 0) this.consume(record, 0, code);
  }

  /** Sends the answer of a group on its way to the hardware. */
  readonly answer = (record: DeviceRecord, report: FaultReport, code: PageResponseCode): void => {
    const { counters, trace, clock } = this.context;
    const request = report.fault as PageRequest;
    if (this.loseOddGroups && request.prgIndex % 2 === 1) return;
    if (code === 'SUCCESS') counters.responses.success++;
    else if (code === 'INVALID') counters.responses.invalid++;
    else counters.responses.failure++;
    trace.devPageResponse(record.name, report.correlation, code, request.page, request.pasid, request.prgIndex);
    this.responses.publish({ timeNs: clock.now, correlation: report.correlation, device: record.device, code, request });
  };

  private receive(ops: IommuOps, report: FaultReport): void {
    if (this.faults.observed) this.faults.publish(report);
    const record = this.context.registry.devices.get(report.device);
    if (record === undefined || record.removed) {
      this.answerStranger(ops, report);
      return;
    }
    const refused = this.route(record, report);
    const { fault } = report;
    if (refused !== undefined && fault.type === FAULT_PAGE_REQ && fault.last) {
      if (refused === 'EINVAL') this.warnUnhandled(record, fault);
      this.answer(record, report, 'INVALID');
    }
  }

  private route(record: DeviceRecord, report: FaultReport): ErrnoName | undefined {
    const { counters, trace, registry } = this.context;
    const { fault } = report;
    const { handler, queue } = record;
    trace.devFault(record.name, report);
    if (fault.type !== FAULT_PAGE_REQ) {
      counters.unrecoverable++;
      return handler === undefined ? 'EINVAL' : handler(report, record.handlerData);
    }
    counters.pageRequests++;
    if (queue !== undefined) {
      if (handler === undefined) return queue.report(record, report);
      // with both, the kernel answers for the processes it has bound, the handler for the rest (guest-mode PASIDs)
      const bound = registry.bound.get(fault.pasid);
      if (bound !== undefined && bondOf(bound, record) !== undefined) return queue.report(record, report);
    }
    if (handler === undefined) return 'EINVAL';
    if (fault.last) this.addPending(record, report);
    const refused = handler(report, record.handlerData);
    if (refused !== undefined && fault.last) this.removePending(record, report);
    return refused;
  }

  private addPending(record: DeviceRecord, report: FaultReport): void {
    record.pending.push({ report, deadlineNs: this.context.clock.now + this.timeoutNs, warned: false });
    this.arm(record);
  }

  private removePending(record: DeviceRecord, report: FaultReport): void {
    const index = record.pending.findIndex((pending) => pending.report === report);
    if (index < 0) return;
    record.pending.splice(index, 1);
    this.disarmIfIdle(record);
  }

  private consume(record: DeviceRecord, index: number, code: PageResponseCode): void {
    const [pending] = record.pending.splice(index, 1);
    this.disarmIfIdle(record);
    this.answer(record, pending!.report, code);
  }

  private matches(request: PageRequest, message: PageResponseMessage): boolean {
    if (request.prgIndex !== message.grpid) return false;
    if (!request.responseNeedsPasid || this.ignoreResponsePasid) return true;
    return (message.flags & PAGE_RESP_PASID_VALID) !== 0 && message.pasid === request.pasid;
  }

  private arm(record: DeviceRecord): void {
    if (this.timeoutNs === 0 || record.timer !== undefined) return;
    const first = record.pending.find((pending) => !pending.warned);
    if (first !== undefined) record.timer = this.context.clock.at(first.deadlineNs, () => this.expire(record));
  }

  private disarmIfIdle(record: DeviceRecord): void {
    if (record.pending.length > 0) return;
    record.timer?.cancel();
    record.timer = undefined;
  }

  /** R9: warns about every overdue request; the policy may also answer it. */
  private expire(record: DeviceRecord): void {
    const { clock, counters, log } = this.context;
    record.timer = undefined;
    const overdue = record.pending.filter((pending) => !pending.warned && pending.deadlineNs <= clock.now);
    for (const pending of overdue) {
      const request = pending.report.fault as PageRequest;
      pending.warned = true;
      counters.timeouts++;
      log.log('warn', `${record.device.name}: Page response time expired, pasid ${request.pasid} gid ${request.prgIndex}`);
      if (this.timeoutPolicy !== 'warn') {
        this.consume(record, record.pending.indexOf(pending), this.timeoutPolicy === 'invalid' ? 'INVALID' : 'FAILURE');
      }
    }
    this.arm(record);
  }

  private answerStranger(ops: IommuOps, report: FaultReport): void {
    const { fault } = report;
    if (fault.type !== FAULT_PAGE_REQ || !fault.last) return;
    ops.pageResponse({ timeNs: this.context.clock.now, correlation: report.correlation, device: report.device, code: 'INVALID', request: fault });
  }

  private warnUnhandled(record: DeviceRecord, request: PageRequest): void {
    const { log } = this.context;
    log.limited(
      `iommu.iopf.${record.device.name}`, 'warn', `${record.device.name}: iopf (pasid ${request.pasid}) without domain attached or handler installed`,
    );
  }

  private recordOf(device: Device): DeviceRecord {
    const record = this.context.registry.devices.get(device);
    if (record === undefined) throw new Errno('EINVAL', `${device.name} is not behind an IOMMU that has a driver`);
    return record;
  }
}
