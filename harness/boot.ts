/** Bringing a host up as a kernel does (PCI, IOMMU, groups, drivers), and taking it down so that leaks show. */
import type { PciFunctionDevice } from '../host/pci/kernel/function-device.js';
import type { PciCore, PciListener } from '../host/pci/kernel/pci-core.js';
import type { IommuCore } from '../iommu/core/core.js';
import { DirectMapping } from '../iommu/core/direct-mapping.js';
import { isErrno } from '../sim/errno.js';
import type { Steps } from '../sim/task.js';
import type { Host } from './compose/host.js';

/** Puts functions behind the IOMMU as they appear, before their drivers probe. */
export class IommuBinding implements PciListener {
  private readonly pci: PciCore;
  private readonly core: IommuCore;
  private readonly known = new Set<PciFunctionDevice>();

  constructor(pci: PciCore, core: IommuCore) {
    this.pci = pci;
    this.core = core;
  }

  *deviceAdded(device: PciFunctionDevice): Steps {
    if (device.isBridge) return;
    try {
      yield* this.core.addDevice(device, this.pci.groupOf(device).id);
      this.known.add(device);
    } catch (error) {
      if (!isErrno(error, 'ENODEV')) throw error;
    }
  }

  *deviceRemoved(device: PciFunctionDevice): Steps {
    if (this.known.delete(device)) yield* this.core.deviceRemove(device);
  }
}

/** Enumerates, starts the IOMMU, forms groups, probes drivers. What a device refuses is a line in the log. */
export function* boot(host: Host): Steps {
  const devices = host.pci.enumerate();
  if (host.iommu !== undefined) yield* host.iommu.start();
  host.core.registerDriver(host.iommu ?? new DirectMapping(host.mailbox));
  for (const device of devices) yield* host.binding.deviceAdded(device);
  // translation comes last, as in Linux: no device loses its untranslated DMA before it has a domain
  if (host.iommu !== undefined) yield* host.iommu.enableTranslation();
  for (const driver of host.devices.drivers) yield* host.drivers.registerDriver(driver);
}

/** Unbinds drivers and takes every device away: what is still in use then has leaked. */
export function* shutdown(host: Host): Steps {
  for (const driver of host.devices.drivers.toReversed()) yield* host.drivers.unregisterDriver(driver.name);
  for (const device of host.pci.devices.toReversed()) yield* host.binding.deviceRemoved(device);
  if (host.iommu !== undefined) yield* host.iommu.stop();
  host.core.close();
  host.interrupts.close();
}
