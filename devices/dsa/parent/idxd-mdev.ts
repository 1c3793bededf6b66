/**
 * What the idxd driver calls to offer mediated devices (the "virtual device composition module" of the idxd patches): AUX on
 * the accelerator first, because every mediated device needs an aux domain; then the parent's types. Without AUX there are no
 * types, and the log names the missing link: requests of a queue cannot be told apart otherwise.
 */
import { isErrno } from '../../../sim/errno.js';
import type { Scheduler, Steps } from '../../../sim/task.js';
import type { Trace } from '../../../sim/trace.js';
import type { Device } from '../../../host/device.js';
import type { KernelLog } from '../../../host/kernel-log.js';
import type { MdevParents } from '../../../mdev/parent.js';
import type { VfioCore } from '../../../vfio/device.js';
import type { IdxdDevice } from '../driver/idxd-device.js';
import type { IdxdMdevHooks } from '../driver/idxd-options.js';
import { IdxdMdevParent } from './mdev-parent.js';

/** What is used of the IOMMU core. */
export interface AuxFeature {
  devEnableFeature(device: Device, feature: 'AUX'): Steps;
  devDisableFeature(device: Device, feature: 'AUX'): Steps;
}

export interface IdxdMdevOptions {
  readonly parents: MdevParents;
  readonly vfio: Pick<VfioCore, 'pasidOf'>;
  readonly iommu: AuxFeature;
  readonly scheduler: Scheduler;
  readonly log: KernelLog;
  readonly trace?: Trace;
  /** `vdsa.guest-pasid-trusted`, `vdsa.posted-to-shared`, `vdsa.portal-stays-mapped` */
  readonly defects?: ReadonlySet<string>;
}

export class IdxdMdevParents implements IdxdMdevHooks {
  private readonly options: IdxdMdevOptions;
  private readonly parents = new Map<IdxdDevice, IdxdMdevParent>();

  constructor(options: IdxdMdevOptions) {
    this.options = options;
  }

  /** The parent that a device is registered as. */
  parentOf(device: IdxdDevice): IdxdMdevParent | undefined {
    return this.parents.get(device);
  }

  *prepare(device: IdxdDevice): Steps<boolean> {
    const { iommu, log } = this.options;
    try {
      yield* iommu.devEnableFeature(device.pci, 'AUX');
      return true;
    } catch (error) {
      if (!isErrno(error)) throw error;
      log.log('warn', `idxd ${device.pci.name}: no mediated devices: ${error.message}`);
      return false;
    }
  }

  /** EEXIST registered already. */
  // oxlint-disable-next-line require-yield -- IdxdMdevHooks.register may sleep
  *register(device: IdxdDevice): Steps {
    const { parents } = this.options;
    const parent = new IdxdMdevParent({ ...this.options, device });
    parents.registerParent(device.pci, parent);
    this.parents.set(device, parent);
  }

  *unregister(device: IdxdDevice): Steps {
    const { parents, iommu } = this.options;
    const parent = this.parents.get(device);
    if (parent !== undefined) {
      yield* parents.unregisterParent(device.pci);
      parent.end();
      this.parents.delete(device);
    }
    if (device.pci.present) yield* iommu.devDisableFeature(device.pci, 'AUX');
  }

  lost(device: IdxdDevice): void {
    this.parents.get(device)?.lost();
  }
}
