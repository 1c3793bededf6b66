/**
 * The accelerator as a parent of mediated devices (idxd VDCM patches: drivers/vfio/mdev/idxd/mdev.c). Two types: `1dwq-v1`
 * has a dedicated work queue of its own, `1swq-v1` shares one with others and has an interrupt vector of its own. Both are made
 * of queues that the administrator configured with type `mdev`. DMA of a mediated device carries the accelerator's requester
 * id and the PASID of an aux domain.
 */
import { Errno } from '../../../sim/errno.js';
import type { Scheduler, Steps } from '../../../sim/task.js';
import type { Trace } from '../../../sim/trace.js';
import type { KernelLog } from '../../../host/kernel-log.js';
import type { MdevHandle, MdevInstance, MdevParentOps, MdevType } from '../../../mdev/parent.js';
import type { VfioCore } from '../../../vfio/device.js';
import { SWERROR } from '../spec/registers.js';
import type { IdxdDevice, IdxdWq } from '../driver/idxd-device.js';
import { QueueLease } from './queue-lease.js';
import { Vdsa } from './vdsa.js';

export interface IdxdMdevParentOptions {
  readonly device: IdxdDevice;
  readonly vfio: Pick<VfioCore, 'pasidOf'>;
  readonly scheduler: Scheduler;
  readonly log: KernelLog;
  readonly trace?: Trace;
  readonly defects?: ReadonlySet<string>;
}

export class IdxdMdevParent implements MdevParentOps {
  readonly driver = 'idxd';
  readonly hotUnplug = true;
  readonly types: readonly MdevType[];
  private readonly options: IdxdMdevParentOptions;
  private readonly devices = new Map<string, Vdsa>();
  /** Queues of type `mdev`. */
  private readonly dedicated: readonly IdxdWq[];
  private readonly shared: readonly IdxdWq[];
  private readonly freeVectors: number[];

  constructor(options: IdxdMdevParentOptions) {
    const { device } = options;
    this.options = options;
    const queues = device.wqs.filter((wq) => wq.options.type === 'mdev');
    this.dedicated = queues.filter((wq) => wq.dedicated);
    this.shared = queues.filter((wq) => !wq.dedicated && wq.enabled);
    this.freeVectors = [...device.sharedMdevVectors];
    for (const wq of queues) wq.onError = (words) => this.softwareError(wq, words);
    this.types = [
      {
        name: '1dwq-v1', label: 'DSA 1 dedicated work queue', description: '1 dedicated work queue', deviceApi: 'vfio-pci',
        availableInstances: () => this.dedicated.filter((wq) => this.leasesOf(wq).length === 0).length,
      },
      {
        name: '1swq-v1', label: 'DSA 1 shared work queue', description: 'a slot of a shared work queue', deviceApi: 'vfio-pci',
        availableInstances: () => (this.shared.length === 0 ? 0 : this.freeVectors.length),
      },
    ];
  }

  /** ENODEV the accelerator is halted or gone, EINVAL another parent's type, EUSERS no queue or slot is left (C12, E34). */
  // oxlint-disable-next-line require-yield -- MdevParentOps.create may sleep
  *create(mdev: MdevHandle): Steps<MdevInstance> {
    const { device, vfio, scheduler, log, trace, defects } = this.options;
    if (!device.alive) throw new Errno('ENODEV', `${device.pci.name} is halted or gone`);
    const lease = this.takeLease(mdev.type);
    const vdsa = new Vdsa({
      mdev, lease, scheduler, log, pasid: () => vfio.pasidOf(mdev), defects: defects ?? new Set(), ...(trace === undefined ? {} : { trace }),
    });
    this.devices.set(mdev.uuid, vdsa);
    device.vectorHandlers[lease.vector] = () => vdsa.completion();
    return { ops: vdsa, iommuDevice: device.pci, attributes: [{ name: 'wq', read: () => lease.wq.options.name }] };
  }

  /** The queue or slot is free again. */
  *remove(mdev: MdevHandle): Steps {
    const vdsa = this.devices.get(mdev.uuid);
    if (vdsa === undefined) throw new Errno('ENODEV', `${this.options.device.pci.name} has no mediated device ${mdev.uuid}`);
    const { lease } = vdsa;
    // its last user has closed it, which turned the queue off
    yield* lease.disable(false);
    this.devices.delete(mdev.uuid);
    this.options.device.vectorHandlers[lease.vector] = undefined;
    if (!lease.wq.dedicated) this.freeVectors.push(lease.vector);
  }

  /** The accelerator is halted or gone: users are told, and reach nothing any more. */
  lost(): void {
    for (const vdsa of this.devices.values()) vdsa.lost();
  }

  /** No more mediated devices: the queues' errors are the host's alone again. */
  end(): void {
    for (const wq of [...this.dedicated, ...this.shared]) wq.onError = undefined;
  }

  private takeLease(type: MdevType): QueueLease {
    const { device } = this.options;
    switch (type.name) {
      case '1dwq-v1': {
        const wq = this.dedicated.find((candidate) => this.leasesOf(candidate).length === 0);
        if (wq === undefined) throw new Errno('EUSERS', `${device.pci.name}: every dedicated work queue of type mdev is taken`);
        return this.lease(wq, wq.index + 1);
      }
      case '1swq-v1': {
        const wq = this.shared.reduce<IdxdWq | undefined>((least, candidate) => (least !== undefined && this.leasesOf(least).length <= this.leasesOf(candidate).length ? least : candidate), undefined);
        const vector = wq === undefined ? undefined : this.freeVectors.shift();
        if (wq === undefined || vector === undefined) {
          throw new Errno('EUSERS', `${device.pci.name}: ${wq === undefined ? 'no shared work queue is of type mdev' : 'no interrupt vector is left for another mediated device'}`);
        }
        return this.lease(wq, vector);
      }
    }
    throw new Errno('EINVAL', `${device.pci.name} makes no mediated devices of type ${this.driver}-${type.name}`);
  }

  private lease(wq: IdxdWq, vector: number): QueueLease {
    const lease: QueueLease = new QueueLease(this.options.device, wq, vector, (pasid) => [...this.devices.values()].some((vdsa) => vdsa.lease !== lease && vdsa.lease.pasid === pasid));
    return lease;
  }

  private leasesOf(wq: IdxdWq): QueueLease[] {
    return [...this.devices.values()].filter((vdsa) => vdsa.lease.wq === wq).map((vdsa) => vdsa.lease);
  }

  /** Finds whose it is: the only one on a dedicated queue, by PASID on a shared one. */
  private softwareError(wq: IdxdWq, words: Uint32Array): void {
    const pasid = SWERROR.f.DescValid.get(words) === 1 ? SWERROR.f.Pasid.get(words) : undefined;
    for (const vdsa of this.devices.values()) {
      if (vdsa.lease.wq === wq && (wq.dedicated || (pasid !== undefined && vdsa.lease.pasid === pasid))) vdsa.softwareError(words);
    }
  }
}
