/**
 * The per-device features AUX, IOPF and SVA (F1–F6) on VT-d: who has them, in which order they are switched, and
 * which link of the chain is missing when they cannot be. PRI is switched as Linux 6.12 does: reset, software queue,
 * PRE in the context entry, then the device; back in the opposite direction, with everything outstanding answered.
 */
import { Errno } from '../../../sim/errno.js';
import type { Steps } from '../../../sim/task.js';
import type { DeviceFeature } from '../../core/ops.js';
import type { DomainAttachment } from './attach.js';
import type { Entries } from './entries.js';
import type { VtdDevice } from './vtd-device.js';

export interface FeatureServices {
  readonly entries: Entries;
  readonly attachment: DomainAttachment;
  /** Every unit is in scalable mode with PASIDs. */
  readonly allUnitsHavePasids: () => boolean;
  /** Page requests that a device may have outstanding. */
  readonly prqDepth: number;
}

export class Features {
  private readonly services: FeatureServices;

  constructor(services: FeatureServices) {
    this.services = services;
  }

  has(info: VtdDevice, feature: DeviceFeature): boolean {
    switch (feature) {
      case 'AUX': return this.services.allUnitsHavePasids() && info.maxPasids > 0 && info.device.siov;
      case 'IOPF': return info.priSupported && info.atsSupported;
      case 'SVA': return info.unit.svmCapable && info.maxPasids > 0 && info.priSupported && info.atsSupported;
    }
  }

  enabled(info: VtdDevice, feature: DeviceFeature): boolean {
    switch (feature) {
      case 'AUX': return info.auxEnabled;
      case 'IOPF': return info.priEnabled;
      case 'SVA': return info.svaEnabled;
    }
  }

  *enable(info: VtdDevice, feature: DeviceFeature): Steps {
    if (this.enabled(info, feature)) throw new Errno('EBUSY', `${feature}: device ${info.device.name} has it enabled already`);
    switch (feature) {
      case 'AUX': return yield* this.enableAux(info);
      case 'IOPF': return yield* this.enableIopf(info);
      case 'SVA': return this.enableSva(info);
    }
  }

  *disable(info: VtdDevice, feature: DeviceFeature): Steps {
    const { name } = info.device;
    if (!this.enabled(info, feature)) throw new Errno('EINVAL', `${feature}: device ${name} does not have it enabled`);
    switch (feature) {
      case 'AUX':
        if (info.aux.size > 0) throw new Errno('EBUSY', `AUX: ${info.aux.size} auxiliary domains are attached to device ${name}`);
        info.auxEnabled = false;
        return;
      case 'SVA':
        if (info.sva.size > 0) throw new Errno('EBUSY', `SVA: device ${name} has ${info.sva.size} bonds`);
        info.svaEnabled = false;
        return;
      case 'IOPF':
        if (info.svaEnabled) throw new Errno('EBUSY', `IOPF: device ${name} has SVA enabled`);
        return yield* this.disableIopf(info);
    }
  }

  /** PRE off, everything outstanding answered Invalid, PRI off; also when the function leaves. */
  *disableIopf(info: VtdDevice): Steps {
    yield* this.services.entries.setPageRequests(info, false);
    info.unit.pageRequests!.iopf.removeDevice(info.device);
    if (info.device.present) info.device.disablePri();
    info.priEnabled = false;
  }

  private *enableAux(info: VtdDevice): Steps {
    const { name } = info.device;
    if (!this.services.allUnitsHavePasids()) throw new Errno('EINVAL', `AUX: not every IOMMU is in scalable mode with PASIDs, and device ${name} could meet one that is not`);
    if (!info.device.siov) throw new Errno('EINVAL', `AUX: device ${name} does not announce scalable I/O virtualization`);
    yield* this.services.attachment.prepare(info);
    if (!info.pasidEnabled) throw new Errno('ENODEV', `AUX: PASID could not be enabled on device ${name}`);
    info.auxEnabled = true;
  }

  private *enableIopf(info: VtdDevice): Steps {
    const { device, unit } = info;
    const { entries, attachment, prqDepth } = this.services;
    const { pageRequests } = unit;
    if (pageRequests === undefined) throw new Errno('ENODEV', `IOPF: ${unit.name}, which serves device ${device.name}, takes no page requests`);
    if (!info.priSupported) throw new Errno('ENODEV', `IOPF: device ${device.name} has no PRI capability`);
    yield* attachment.prepare(info);
    if (!info.atsEnabled) throw new Errno('ENODEV', `IOPF: device ${device.name} has PRI but ATS is not enabled`);
    if (info.pasidEnabled && !device.prgResponsePasidRequired) {
      throw new Errno('EINVAL', `IOPF: device ${device.name} uses PASIDs but wants none in page responses (PRG Response PASID Required is clear)`);
    }
    device.resetPri();
    pageRequests.iopf.addDevice(device);
    try {
      yield* entries.setPageRequests(info, true);
      device.enablePri(prqDepth);
    } catch (error) {
      yield* entries.setPageRequests(info, false);
      pageRequests.iopf.removeDevice(device);
      throw error;
    }
    info.priEnabled = true;
  }

  /** Each refusal names the missing link. */
  private enableSva(info: VtdDevice): void {
    const { unit } = info;
    const { name } = info.device;
    if (!unit.svmCapable) {
      const why = !unit.scalable ? 'is in legacy mode' : unit.capabilities.firstLevel ? 'has no PASIDs' : 'walks no first-level tables';
      throw new Errno('ENODEV', `SVA: ${unit.name}, which serves device ${name}, ${why}`);
    }
    const has = [info.pasidEnabled ? 'PASID' : '', info.atsEnabled ? 'ATS' : ''].filter((word) => word !== '').join(' and ');
    const missing = !info.pasidEnabled ? 'PASID' : !info.atsEnabled ? 'ATS' : !info.priEnabled ? 'PRI' : undefined;
    if (missing !== undefined) throw new Errno('EINVAL', `SVA: device ${name} has ${has === '' ? 'neither PASID nor ATS' : has} but ${missing} is not enabled`);
    info.svaEnabled = true;
  }
}
