/** The kernel's PASIDs: one global space for address spaces and aux domains, from the IOASID allocator (I3, M7). */
import type { CoreContext } from './options.js';
import { INVALID_IOASID, IoasidSet, type IoasidAllocator } from './ioasid.js';

export class Pasids {
  readonly set = new IoasidSet('pasid');
  readonly ioasids: IoasidAllocator;
  private readonly context: CoreContext;

  constructor(context: CoreContext, ioasids: IoasidAllocator) {
    this.context = context;
    this.ioasids = ioasids;
  }

  get live(): number {
    return this.ioasids.live;
  }

  /** A PASID of first .. last, both included and above 0; undefined when none is free. */
  alloc(first: number, last: number, owner: string, data?: unknown): number | undefined {
    if (first < 1 || last < first) return undefined;
    const pasid = this.ioasids.alloc(this.set, first, last, data ?? owner);
    if (pasid === INVALID_IOASID) return undefined;
    const { trace } = this.context;
    trace.trace.record(trace.pasidAlloc, 0, trace.kernel, pasid, trace.trace.intern(owner));
    return pasid;
  }

  /** Returns a PASID that was allocated under a name of its owner alone. */
  release(pasid: number): void {
    const owner = this.ioasids.has(pasid) ? this.ioasids.find(this.set, pasid) : undefined;
    this.free(pasid, typeof owner === 'string' ? owner : '');
  }

  free(pasid: number, owner: string): void {
    const { trace } = this.context;
    if (this.ioasids.free(pasid)) trace.trace.record(trace.pasidFree, 0, trace.kernel, pasid, trace.trace.intern(owner));
  }
}
