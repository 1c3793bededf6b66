/**
 * Memory access through a requester: ATS translations, page requests, untranslated requests without ATS. Where a
 * descriptor blocks on faults, the device asks for the page it needs and, if set up so, for some that follow in the
 * same buffer, as one group, and tries again once the answer is there.
 */
import type { Clock } from '../../../sim/clock.js';
import { sleep, type Steps } from '../../../sim/task.js';
import { ATTR_PRIVILEGED, NO_PASID, PRG_INVALID, PRG_SUCCESS } from '../../../host/pci/dma-port.js';
import type { PciFunction } from '../../../host/pci/hardware/pci-function.js';
import type { Requester } from '../../../host/pci/hardware/requester.js';
import { ACCESS_ERROR, ACCESS_FAULT, ACCESS_OK, ACCESS_REFUSED, ACCESS_REVOKED, type AccessOutcome, type MemoryAccess } from './access.js';
import type { Job } from './job.js';

export class RequesterAccess implements MemoryAccess {
  doneBytes = 0;
  private readonly clock: Clock;
  private readonly requester: Requester;
  private readonly fn: () => PciFunction;
  /** Most pages of one page request group. */
  private readonly groupPages: number;
  private readonly ignoreAbort: boolean;
  private readonly dropPasid: boolean;

  constructor(options: { clock: Clock; requester: Requester; fn: () => PciFunction; groupPages: number; defects: ReadonlySet<string> }) {
    this.clock = options.clock;
    this.requester = options.requester;
    this.fn = options.fn;
    this.groupPages = options.groupPages;
    this.ignoreAbort = options.defects.has('dsa.ignore-abort');
    this.dropPasid = options.defects.has('dsa.drop-pasid');
  }

  read(job: Job, page: number, offset: number, target: Uint8Array, targetOffset: number, length: number, block: boolean): Steps<AccessOutcome> {
    return this.move(false, job, page, offset, target, targetOffset, length, block);
  }

  write(job: Job, page: number, offset: number, source: Uint8Array, sourceOffset: number, length: number, block: boolean): Steps<AccessOutcome> {
    return this.move(true, job, page, offset, source, sourceOffset, length, block);
  }

  private *move(write: boolean, job: Job, page: number, offset: number, buffer: Uint8Array, bufferOffset: number, length: number, block: boolean): Steps<AccessOutcome> {
    const { requester } = this;
    const { result } = requester;
    const pasid = this.dropPasid ? NO_PASID : job.pasid;
    // where privileged mode is off, what is left to write is the record that says so
    const attributes = job.privileged && pasid !== NO_PASID && this.fn().pasidPrivilegedEnabled ? ATTR_PRIVILEGED : 0;
    this.doneBytes = 0;
    for (;;) {
      if (job.aborted && !this.ignoreAbort) return ACCESS_REVOKED;
      const done = this.doneBytes;
      const byte = offset + done;
      const atPage = page + Math.floor(byte / 4096), atOffset = byte & 4095;
      const moved = write
        ? requester.writeNow(atPage, atOffset, buffer, bufferOffset + done, length - done, pasid, attributes)
        : requester.readNow(atPage, atOffset, buffer, bufferOffset + done, length - done, pasid, attributes);
      if (!moved) {
        yield* write
          ? requester.write(atPage, atOffset, buffer, bufferOffset + done, length - done, pasid, attributes, false)
          : requester.read(atPage, atOffset, buffer, bufferOffset + done, length - done, pasid, attributes, false);
      }
      // the result is the requester's: taken before anything else runs
      const { status, faultPage, faultAccess, costNs } = result;
      this.doneBytes = done + result.doneBytes;
      if (costNs > 0) yield* sleep(this.clock, costNs);
      if (status === 'done') return ACCESS_OK;
      if (status === 'revoked') return ACCESS_REVOKED;
      if (status === 'error') return ACCESS_ERROR;
      if (!block) return ACCESS_FAULT;
      const outcome = yield* this.requestPages(job, faultPage, page + Math.floor((offset + length - 1) / 4096), faultAccess, pasid);
      if (outcome !== ACCESS_OK) return outcome;
    }
  }

  /** One group from `page` on, within the buffer and the allocation; waits for its response. */
  private *requestPages(job: Job, page: number, lastPage: number, access: number, pasid: number): Steps<AccessOutcome> {
    const fn = this.fn();
    if (job.aborted && !this.ignoreAbort) return ACCESS_REVOKED;
    if (!fn.priEnabled || fn.priAllocation === 0) return ACCESS_FAULT;
    const pages = Math.min(this.groupPages, lastPage - page + 1, fn.priAllocation);
    job.pageRequests += pages;
    const code = yield* this.requester.prefetchPages(page, pages, access, pasid);
    if (code === PRG_SUCCESS) {
      job.success++;
      return ACCESS_OK;
    }
    if (code === -1) return job.aborted || fn.port.revoked ? ACCESS_REVOKED : ACCESS_FAULT;
    if (code === PRG_INVALID) job.invalid++;
    else job.failure++;
    return ACCESS_REFUSED;
  }
}
