import { Checker } from './invariant.js';
import { hex } from '../../sim/address.js';

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
      if (total > this.allocation(source)) this.violate(`device ${hex(source)} has ${total} page requests outstanding, allocated ${this.allocation(source)}`);
    } else if (kind === 'pci:page_response') {
      const groups = this.outstanding.get(source);
      if (groups === undefined) return;
      groups[512]! -= groups[value('prg')]!;
      groups[value('prg')] = 0;
    } else this.outstanding.delete(source);
  }
}
