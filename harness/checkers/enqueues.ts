/**
 * What reaches the hardware queues behind mediated devices: descriptors under the PASID of the mediated device's own
 * container, which its user neither chooses nor sees (X3, Y3).
 */
import { SWERR } from '../../devices/dsa/spec/registers.js';
import { Checker } from './invariant.js';

interface Lease {
  readonly mdev: number;
  readonly device: number;
  readonly wq: number;
}

export interface OwnPasidParts {
  /** Name of a device on its bus by its name in the topology, both as numbers of the trace. */
  readonly deviceOf: (name: number) => number;
  /** A guest has the mediated device: its virtual processors translate PASIDs. */
  readonly ofGuest: (mdev: number) => boolean;
  /** An interned string. */
  readonly text: (id: number) => string;
}

/** A queue takes from the user of a mediated device only what carries that user's PASID, and only while the device is open. */
export class QueuesTakeOwnPasid extends Checker {
  readonly name = "a mediated device's queue takes only its user's descriptors";
  readonly kinds = [
    'vdsa:lease', 'mdev:create', 'mdev:remove', 'vfio:open_device', 'vfio:close_device', 'vfio:group_set_container', 'vfio:group_unset_container', 'vfio:container_device',
    'vfio:container_device_end', 'dsa:submit', 'dsa:sw_error', 'vdsa:portal_refused',
  ];
  private readonly parts: OwnPasidParts;
  private readonly leases = new Map<number, Lease>();
  /** Groups of mediated devices, containers of groups, PASIDs of devices in containers. */
  private readonly groupOf = new Map<number, number>();
  private readonly containerOf = new Map<number, number>();
  private readonly pasids = new Map<string, number>();
  private readonly open = new Set<number>();

  constructor(parts: OwnPasidParts) {
    super();
    this.parts = parts;
  }

  observe(kind: string, value: (argument: string) => number): void {
    switch (kind) {
      case 'vdsa:lease': return void this.leases.set(value('mdev'), { mdev: value('mdev'), device: value('device'), wq: value('wq') });
      case 'mdev:create': return void this.groupOf.set(value('uuid'), value('group'));
      case 'mdev:remove': return void this.leases.delete(value('uuid'));
      case 'vfio:open_device': return void this.open.add(value('device'));
      case 'vfio:close_device': return void this.open.delete(value('device'));
      case 'vfio:group_set_container': return void this.containerOf.set(value('group'), value('container'));
      case 'vfio:group_unset_container': return void this.containerOf.delete(value('group'));
      case 'vfio:container_device': return void this.pasids.set(`${value('container')} ${value('device')}`, value('pasid'));
      case 'vfio:container_device_end': return void this.pasids.delete(`${value('container')} ${value('device')}`);
      case 'dsa:submit': return this.submitted(value('device'), value('wq'), value('pasid'));
      case 'dsa:sw_error': return value('error') === SWERR.POSTED_TO_SHARED ? this.posted(value('device'), value('wq')) : undefined;
      default: return value('posted') === 1 ? undefined : this.refused(value('mdev'), value('pasid'));
    }
  }

  private submitted(name: number, wq: number, pasid: number): void {
    const leases = this.leasesOf(name, wq);
    if (leases.length === 0) return;
    this.checked++;
    if (leases.some((lease) => this.open.has(lease.mdev) && this.pasidOf(lease) === pasid)) return;
    const whose = leases.map((lease) => `${this.parts.text(lease.mdev)} (${this.open.has(lease.mdev) ? `PASID ${this.pasidOf(lease) ?? 'none'}` : 'closed'})`).join(', ');
    this.violate(`queue ${wq} of ${this.parts.text(name)} took a descriptor under PASID ${pasid}; it is the queue of ${whose}`);
  }

  private posted(name: number, wq: number): void {
    if (this.leasesOf(name, wq).length === 0) return;
    this.checked++;
    this.violate(`a plain store reached the portal of queue ${wq} of ${this.parts.text(name)}, which mediated devices share`);
  }

  /** An enqueue under a PASID that stands for no container of anybody: no processor translated it. */
  private refused(mdev: number, pasid: number): void {
    if (!this.parts.ofGuest(mdev)) return;
    this.checked++;
    if (![...this.pasids.values()].includes(pasid)) this.violate(`a guest's enqueue to ${this.parts.text(mdev)} came with PASID ${pasid}, which its virtual processor did not translate`);
  }

  private leasesOf(name: number, wq: number): Lease[] {
    const device = this.parts.deviceOf(name);
    return [...this.leases.values()].filter((lease) => lease.device === device && lease.wq === wq);
  }

  private pasidOf({ mdev, device }: Lease): number | undefined {
    const container = this.containerOf.get(this.groupOf.get(mdev) ?? -1);
    return container === undefined ? undefined : this.pasids.get(`${container} ${device}`);
  }
}
