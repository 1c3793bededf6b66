/** Page request groups on the wire: PCIe 6.0 section 10.4; requirements 7.1. */
import { hex } from '../../sim/address.js';
import { Checker, type SourceOf } from './invariant.js';

const key = (source: number, prg: number): number => source * 512 + prg;

/** Every page request group is answered exactly once, unless its device was reset or is gone (P3, section 5 rule 1). */
export class GroupsAnsweredOnce extends Checker {
  readonly name = 'every page request group answered exactly once';
  readonly kinds = ['pci:page_request', 'pci:page_response', 'pci:flr', 'pci:remove'];
  private readonly open = new Map<number, number>();

  observe(kind: string, value: (argument: string) => number): void {
    const source = value('source');
    if (kind === 'pci:page_request') {
      if (value('last') === 1 && value('access') !== 0) this.open.set(key(source, value('prg')), (this.open.get(key(source, value('prg'))) ?? 0) + 1);
    } else if (kind === 'pci:page_response') {
      this.checked++;
      const group = key(source, value('prg'));
      const outstanding = this.open.get(group) ?? 0;
      if (outstanding === 0) this.violate(`device ${hex(source)} got a response to group ${value('prg')}, which is not outstanding`);
      else if (outstanding === 1) this.open.delete(group);
      else this.open.set(group, outstanding - 1);
    } else {
      for (const group of this.open.keys()) if (Math.floor(group / 512) === source) this.open.delete(group);
    }
  }

  override finish(): void {
    for (const [group] of this.open) this.violate(`group ${group % 512} of device ${hex(Math.floor(group / 512))} was never answered`);
  }
}

/** A function does not use a group index again before its response (section 3.4, E20). */
export class GroupIndexUsedOnce extends Checker {
  readonly name = 'a page request group index is used by one group at a time';
  readonly kinds = ['pci:page_request', 'pci:page_response', 'pci:flr', 'pci:remove'];
  /** PASID of the group under each index, and whether its last request has been sent. */
  private readonly open = new Map<number, { readonly pasid: number; complete: boolean }>();

  observe(kind: string, value: (argument: string) => number): void {
    const source = value('source');
    if (kind === 'pci:page_request') {
      if (value('access') === 0) return;
      this.checked++;
      const group = this.open.get(key(source, value('prg')));
      if (group !== undefined && (group.complete || group.pasid !== value('pasid'))) {
        this.violate(`device ${hex(source)} uses group ${value('prg')} for PASID ${value('pasid')} while PASID ${group.pasid} waits for its response`);
      }
      if (group === undefined) this.open.set(key(source, value('prg')), { pasid: value('pasid'), complete: value('last') === 1 });
      else group.complete ||= value('last') === 1;
    } else if (kind === 'pci:page_response') this.open.delete(key(source, value('prg')));
    else for (const group of this.open.keys()) if (Math.floor(group / 512) === source) this.open.delete(group);
  }
}

/** A function never has more page requests outstanding than it was allocated (section 5 rule 5). */
export class RequestsWithinAllocation extends Checker {
  readonly name = 'page requests stay within their allocation';
  readonly kinds = ['pci:page_request', 'pci:page_response', 'pci:flr', 'pci:remove'];
  private readonly outstanding = new Map<number, number[]>();
  private readonly allocation: (source: number) => number;

  /** @param allocation Outstanding Page Request Allocation of a function, from its config bytes */
  constructor(allocation: (source: number) => number) {
    super();
    this.allocation = allocation;
  }

  observe(kind: string, value: (argument: string) => number): void {
    const source = value('source');
    if (kind === 'pci:page_request') {
      if (value('access') === 0) return;
      let groups = this.outstanding.get(source);
      if (groups === undefined) this.outstanding.set(source, (groups = Array.from({ length: 513 }, () => 0)));
      groups[value('prg')]!++;
      const total = ++groups[512]!;
      this.checked++;
      const allowed = this.allocation(source);
      if (total > allowed) this.violate(`device ${hex(source)} has ${total} page requests outstanding, allocated ${allowed}`);
    } else if (kind === 'pci:page_response') {
      const groups = this.outstanding.get(source);
      if (groups === undefined) return;
      groups[512]! -= groups[value('prg')]!;
      groups[value('prg')] = 0;
    } else this.outstanding.delete(source);
  }
}

const WIRE_CODES = [0, 1, 15] as const;
const WIRE_NAMES: Readonly<Record<number, string>> = { 0: 'Success', 1: 'Invalid Request', 15: 'Response Failure' };

/** What the kernel decided about a group reaches the device, in the wire's codes and no others (R8, section 3.0: the enum trap). */
export class AnswersAsGiven extends Checker {
  readonly name = 'a device gets the answer that the kernel gave';
  readonly kinds = ['iommu:dev_page_response', 'pci:page_response', 'pci:flr', 'pci:remove'];
  /** Wire code that is on its way, by source and group. */
  private readonly given = new Map<number, number>();
  private readonly sourceOf: SourceOf;

  constructor(sourceOf: SourceOf) {
    super();
    this.sourceOf = sourceOf;
  }

  observe(kind: string, value: (argument: string) => number): void {
    if (kind === 'iommu:dev_page_response') {
      const source = this.sourceOf(value('device'));
      if (source !== undefined) this.given.set(key(source, value('group')), WIRE_CODES[value('code')]!);
      return;
    }
    const source = value('source');
    if (kind === 'pci:page_response') {
      this.checked++;
      const group = key(source, value('prg')), code = value('code');
      const expected = this.given.get(group);
      this.given.delete(group);
      if (WIRE_NAMES[code] === undefined) this.violate(`device ${hex(source)} got response code ${hex(code)} to group ${value('prg')}, which no specification defines`);
      else if (expected !== undefined && code !== expected) this.violate(`device ${hex(source)} got ${WIRE_NAMES[code]} to group ${value('prg')}, the kernel said ${WIRE_NAMES[expected]}`);
    } else for (const group of this.given.keys()) if (Math.floor(group / 512) === source) this.given.delete(group);
  }
}
