/**
 * Device features (F1–F6). The state of a feature is the driver's; the order in which features may be switched, and
 * who still uses them, is checked here for every driver alike.
 */
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import type { Device } from '../../host/device.js';
import type { DeviceFeature } from './ops.js';
import type { CoreContext } from './options.js';
import type { DeviceRecord } from './records.js';

const FEATURES: readonly string[] = ['AUX', 'SVA', 'IOPF'] satisfies DeviceFeature[];

export class Features {
  private readonly context: CoreContext;

  constructor(context: CoreContext) {
    this.context = context;
  }

  has(device: Device, feature: DeviceFeature): boolean {
    const record = this.context.registry.devices.get(device);
    return record !== undefined && FEATURES.includes(feature) && record.ops.hasFeature(device, feature);
  }

  enabled(device: Device, feature: DeviceFeature): boolean {
    const record = this.context.registry.devices.get(device);
    return record !== undefined && FEATURES.includes(feature) && record.ops.featureEnabled(device, feature);
  }

  /** See IommuCore.devEnableFeature. */
  *enable(device: Device, feature: DeviceFeature): Steps {
    const record = this.context.registry.recordOf(device);
    yield* record.group.lock.with(() => this.enableLocked(record, feature));
  }

  private *enableLocked({ device, ops }: DeviceRecord, feature: DeviceFeature): Steps {
    if (!FEATURES.includes(feature)) throw new Errno('EINVAL', `unknown device feature ${feature}`);
    if (ops.featureEnabled(device, feature)) throw new Errno('EBUSY', `${feature} is enabled on ${device.name} already`);
    if (feature === 'SVA' && ops.hasFeature(device, 'IOPF') && !ops.featureEnabled(device, 'IOPF')) {
      throw new Errno('EINVAL', `SVA: device ${device.name} can fault through the IOMMU but IOPF is not enabled`);
    }
    yield* ops.enableFeature(device, feature);
  }

  /** See IommuCore.devDisableFeature. */
  *disable(device: Device, feature: DeviceFeature): Steps {
    const record = this.context.registry.devices.get(device);
    // F3: without a driver the kernel answers EBUSY here, not ENODEV
    if (record === undefined || record.ops.direct === true) throw new Errno('EBUSY', `${device.name} is not behind an IOMMU that has a driver`);
    yield* record.group.lock.with(() => this.disableLocked(record, feature));
  }

  private *disableLocked({ device, ops, bonds, aux }: DeviceRecord, feature: DeviceFeature): Steps {
    if (!FEATURES.includes(feature)) throw new Errno('EINVAL', `unknown device feature ${feature}`);
    if (!ops.featureEnabled(device, feature)) throw new Errno('EINVAL', `${feature} is not enabled on ${device.name}`);
    if (feature === 'SVA' && bonds > 0) throw new Errno('EBUSY', `SVA: ${device.name} is bound to ${bonds} address spaces`);
    if (feature === 'IOPF' && ops.featureEnabled(device, 'SVA')) throw new Errno('EBUSY', `IOPF: SVA is enabled on ${device.name}`);
    if (feature === 'AUX' && aux !== undefined) throw new Errno('EBUSY', `AUX: ${device.name} has ${aux.size} aux domains`);
    yield* ops.disableFeature(device, feature);
  }
}
