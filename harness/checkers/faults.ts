/** Page requests on the kernel's side, from the report to the answer. */
import { FAULT_DMA_UNRECOV, FAULT_PAGE_REQ } from '../../iommu/core/ops.js';
import { bondKey, Checker, type SourceOf } from './invariant.js';

/** A page request of a PASID is served from the mm that owns the PASID, never from another (section 5; scenario 13). */
export class FaultsStayWithTheirMm extends Checker {
  readonly name = 'a fault never reaches another mm';
  readonly kinds = ['iommu:sva_bind', 'iommu:pasid_free', 'iommu:iopf_handle'];
  private readonly owners = new Map<number, number>();

  observe(kind: string, value: (argument: string) => number): void {
    if (kind === 'iommu:sva_bind') this.owners.set(value('pasid'), value('mm'));
    else if (kind === 'iommu:pasid_free') this.owners.delete(value('pasid'));
    else if (value('mm') !== 0) {
      this.checked++;
      const owner = this.owners.get(value('pasid'));
      if (owner !== value('mm')) this.violate(`a request of PASID ${value('pasid')} was served from mm ${value('mm')}, its owner is mm ${owner ?? 'nobody'}`);
    }
  }
}

interface Group {
  readonly source: number;
  /** Requests that the device has sent. */
  asked: number;
  /** The device has sent the last one; the driver has reported it. */
  complete: boolean;
  reported: boolean;
  handled: number;
  failed: boolean;
}

/**
 * The requests of a group are handled after its last one was reported, up to the first that fails, and it is answered
 * accordingly (P2, P3). Requests of a group that was answered or lost are never handled (P7).
 */
export class GroupsHandledWhole extends Checker {
  readonly name = 'a page request group is handled as a whole';
  readonly kinds = ['pci:page_request', 'iommu:dev_fault', 'iommu:iopf_handle', 'iommu:dev_page_response', 'pci:page_response', 'pci:flr', 'pci:remove'];
  /** By correlation id, which the records of one group share. */
  private readonly groups = new Map<number, Group>();
  /** The newest group of each device, and the newest that ended with a reset, after which ids are used again. */
  private readonly newest = new Map<number, number>();
  private readonly reset = new Map<number, number>();
  private readonly sourceOf: SourceOf;

  constructor(sourceOf: SourceOf) {
    super();
    this.sourceOf = sourceOf;
  }

  observe(kind: string, value: (argument: string) => number, { correlation }: { readonly correlation: number }): void {
    if (kind === 'pci:flr' || kind === 'pci:remove') return this.ended(value('source'));
    if (correlation === 0) return;
    switch (kind) {
      case 'pci:page_request': return this.asked(correlation, value('source'), value('last') === 1);
      case 'iommu:dev_fault': {
        const group = this.groups.get(correlation);
        if (group !== undefined && value('type') === FAULT_PAGE_REQ && value('last') === 1) group.reported = true;
        return;
      }
      case 'iommu:iopf_handle': return this.handled(correlation, value);
      case 'iommu:dev_page_response': return this.answered(correlation, value('group'), value('code'));
      case 'pci:page_response': return void this.groups.delete(correlation);
    }
  }

  private asked(correlation: number, source: number, last: boolean): void {
    if (correlation <= (this.reset.get(source) ?? 0)) return;
    this.newest.set(source, Math.max(this.newest.get(source) ?? 0, correlation));
    let group = this.groups.get(correlation);
    if (group === undefined) this.groups.set(correlation, (group = { source, asked: 0, complete: false, reported: false, handled: 0, failed: false }));
    // a device that uses an index twice at a time gets what it deserves: GroupIndexUsedOnce
    if (group.complete) group.asked = Infinity;
    group.asked++;
    group.complete ||= last;
  }

  private handled(correlation: number, value: (argument: string) => number): void {
    const source = this.sourceOf(value('device'));
    if (source === undefined || correlation <= (this.reset.get(source) ?? 0)) return;
    this.checked++;
    const group = this.groups.get(correlation);
    const request = `a request of PASID ${value('pasid')}`;
    if (group === undefined) return this.violate(`${request} was handled, but its group is not outstanding`);
    if (!group.reported) this.violate(`${request} was handled before the last one of its group was reported`);
    if (group.failed) this.violate(`${request} was handled after an earlier one of its group had failed`);
    if (++group.handled > group.asked) this.violate(`${request} was handled with a group to which it does not belong`);
    group.failed ||= value('handled') === 0;
  }

  private answered(correlation: number, index: number, code: number): void {
    const group = this.groups.get(correlation);
    // groups that a handler outside the kernel answers, or a removal, are not handled here
    if (group === undefined || group.handled === 0) return;
    if (code === 0 && group.failed) this.violate(`group ${index} was answered SUCCESS, though one of its requests failed`);
    if (code === 0 && !group.failed && group.handled < group.asked && group.asked < Infinity) this.violate(`group ${index} was answered SUCCESS after ${group.handled} of its ${group.asked} requests`);
  }

  private ended(source: number): void {
    this.reset.set(source, this.newest.get(source) ?? 0);
    for (const [correlation, group] of this.groups) if (group.source === source) this.groups.delete(correlation);
  }
}

/** When the last unbind has returned, everything that was asked under the PASID is answered, and the device is silent (section 5 rule 3; B2, E9, R-RACE-7). */
export class SilentAfterUnbind extends Checker {
  readonly name = 'no use of a PASID after unbind';
  readonly kinds = ['iommu:sva_bind', 'iommu:sva_unbind', 'iommu:dev_fault', 'iommu:dev_page_response', 'iommu:iopf_handle', 'pci:remove'];
  private readonly bound = new Set<number>();
  private readonly ended = new Set<number>();
  /** Groups that were reported and not answered, by device and PASID. */
  private readonly pending = new Map<number, number>();
  /** Devices that are gone: what is left of their requests ends when it ends. */
  private readonly gone = new Set<number>();
  private readonly sourceOf: SourceOf;

  constructor(sourceOf: SourceOf) {
    super();
    this.sourceOf = sourceOf;
  }

  observe(kind: string, value: (argument: string) => number): void {
    if (kind === 'pci:remove') return void this.gone.add(value('source'));
    const source = this.sourceOf(value('device'));
    if (source === undefined) return;
    const pasid = value('pasid');
    const bond = bondKey(source, pasid);
    switch (kind) {
      case 'iommu:sva_bind': {
        this.bound.add(bond);
        this.ended.delete(bond);
        this.gone.delete(source);
        return;
      }
      case 'iommu:sva_unbind': return value('refs') === 0 && !this.gone.has(source) ? this.unbound(bond, pasid) : undefined;
      case 'iommu:dev_page_response': return void this.pending.set(bond, Math.max(0, (this.pending.get(bond) ?? 0) - 1));
      case 'iommu:iopf_handle': return this.used(bond, pasid, 'a page request', 'handled');
    }
    const unrecoverable = value('type') === FAULT_DMA_UNRECOV;
    if (!unrecoverable && value('last') === 1) this.pending.set(bond, (this.pending.get(bond) ?? 0) + 1);
    // the driver has not stopped its device before it unbound
    this.used(bond, pasid, unrecoverable ? 'DMA' : 'a page request', 'reported');
  }

  private used(bond: number, pasid: number, what: string, how: string): void {
    this.checked++;
    if (this.ended.has(bond)) this.violate(`${what} of PASID ${pasid} was ${how} after its unbind had returned`);
  }

  private unbound(bond: number, pasid: number): void {
    if (!this.bound.delete(bond)) return;
    this.ended.add(bond);
    const pending = this.pending.get(bond) ?? 0;
    if (pending > 0) this.violate(`${pending} page request groups of PASID ${pasid} were not answered when its unbind returned`);
  }
}

/** Whoever flushes a fault queue holds no lock that its workers take, and is no worker (section 5 rule 7; M5, R-RACE-4). */
export class FlushedWithoutLocks extends Checker {
  readonly name = 'no flush of a fault queue that its workers cannot pass';
  readonly kinds = ['iommu:iopf_flush'];
  private readonly text: (id: number) => string;

  /** @param text an interned string */
  constructor(text: (id: number) => string) {
    super();
    this.text = text;
  }

  observe(_kind: string, value: (argument: string) => number): void {
    this.checked++;
    const device = this.text(value('device'));
    if (value('holds') !== 0) this.violate(`the flush of ${device} holds ${this.text(value('holds'))}, which a worker of the queue takes`);
    if (value('worker') === 1) this.violate(`a worker flushes ${device}'s queue, which waits for the worker itself`);
  }
}
