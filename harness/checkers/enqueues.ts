/**
 * What reaches the hardware queues behind mediated devices: descriptors under the PASID of the mediated device's own
 * container, which its user neither chooses nor sees (X2).
 */
import { SWERR } from '../../devices/dsa/spec/registers.js';
import { Checker } from './invariant.js';

interface Lease {
  readonly mdev: number;
  readonly device: number;
  /** One number for a queue of a device. */
  readonly queue: number;
}

/** One number for two numbers of the trace. */
function pair(a: number, b: number): number {
  return a * 2 ** 26 + b;
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
  /** By mediated device, and by queue. */
  private readonly leases = new Map<number, Lease>();
  private readonly onQueue = new Map<number, Set<Lease>>();
  /** Groups of mediated devices, containers of groups, PASIDs of devices in containers. */
  private readonly groupOf = new Map<number, number>();
  private readonly containerOf = new Map<number, number>();
  private readonly pasids = new Map<number, number>();
  private readonly open = new Set<number>();

  constructor(parts: OwnPasidParts) {
    super();
    this.parts = parts;
  }

  observe(kind: string, value: (argument: string) => number): void {
    switch (kind) {
      case 'vdsa:lease': return this.leased({ mdev: value('mdev'), device: value('device'), queue: pair(value('device'), value('wq')) });
      case 'mdev:create': return void this.groupOf.set(value('uuid'), value('group'));
      case 'mdev:remove': return this.ended(value('uuid'));
      case 'vfio:open_device': return void this.open.add(value('device'));
      case 'vfio:close_device': return void this.open.delete(value('device'));
      case 'vfio:group_set_container': return void this.containerOf.set(value('group'), value('container'));
      case 'vfio:group_unset_container': return void this.containerOf.delete(value('group'));
      case 'vfio:container_device': return void this.pasids.set(pair(value('container'), value('device')), value('pasid'));
      case 'vfio:container_device_end': return void this.pasids.delete(pair(value('container'), value('device')));
      case 'dsa:submit': return this.submitted(value('device'), value('wq'), value('pasid'));
      case 'dsa:sw_error': return value('error') === SWERR.POSTED_TO_SHARED ? this.posted(value('device'), value('wq')) : undefined;
      default: return value('posted') === 1 ? undefined : this.refused(value('mdev'), value('pasid'));
    }
  }

  private submitted(name: number, wq: number, pasid: number): void {
    const leases = this.leasesOf(name, wq);
    if (leases === undefined) return;
    this.checked++;
    for (const lease of leases) if (this.open.has(lease.mdev) && this.pasidOf(lease) === pasid) return;
    const whose = [...leases].map((lease) => `${this.parts.text(lease.mdev)} (${this.open.has(lease.mdev) ? `PASID ${this.pasidOf(lease) ?? 'none'}` : 'closed'})`).join(', ');
    this.violate(`queue ${wq} of ${this.parts.text(name)} took a descriptor under PASID ${pasid}; it is the queue of ${whose}`);
  }

  private posted(name: number, wq: number): void {
    if (this.leasesOf(name, wq) === undefined) return;
    this.checked++;
    this.violate(`a plain store reached the portal of queue ${wq} of ${this.parts.text(name)}, which mediated devices share`);
  }

  /** An enqueue under a PASID that stands for no container of anybody: no processor translated it. */
  private refused(mdev: number, pasid: number): void {
    if (!this.parts.ofGuest(mdev)) return;
    this.checked++;
    if (![...this.pasids.values()].includes(pasid)) this.violate(`a guest's enqueue to ${this.parts.text(mdev)} came with PASID ${pasid}, which its virtual processor did not translate`);
  }

  private leased(lease: Lease): void {
    this.leases.set(lease.mdev, lease);
    const others = this.onQueue.get(lease.queue);
    if (others === undefined) this.onQueue.set(lease.queue, new Set([lease]));
    else others.add(lease);
  }

  private ended(mdev: number): void {
    const lease = this.leases.get(mdev);
    if (lease === undefined) return;
    this.leases.delete(mdev);
    const others = this.onQueue.get(lease.queue)!;
    others.delete(lease);
    if (others.size === 0) this.onQueue.delete(lease.queue);
  }

  private leasesOf(name: number, wq: number): ReadonlySet<Lease> | undefined {
    return this.onQueue.get(pair(this.parts.deviceOf(name), wq));
  }

  private pasidOf({ mdev, device }: Lease): number | undefined {
    const container = this.containerOf.get(this.groupOf.get(mdev) ?? -1);
    return container === undefined ? undefined : this.pasids.get(pair(container, device));
  }
}
