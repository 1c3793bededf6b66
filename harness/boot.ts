/** Bringing a host up as a kernel does (PCI, IOMMU, groups, drivers), and taking it down so that leaks show. */
import type { PciDriver } from '../host/pci/kernel/drivers.js';
import type { PciFunctionDevice } from '../host/pci/kernel/function-device.js';
import type { PciCore, PciListener } from '../host/pci/kernel/pci-core.js';
import type { IommuCore } from '../iommu/core/core.js';
import { DirectMapping } from '../iommu/core/direct-mapping.js';
import { isErrno } from '../sim/errno.js';
import type { Steps } from '../sim/task.js';
import type { Host, Kernel } from './compose/host.js';

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

  *resetQuiet(device: PciFunctionDevice): Steps {
    if (this.known.has(device)) yield* this.core.deviceDrain(device);
  }

  *deviceRemoved(device: PciFunctionDevice): Steps {
    if (this.known.delete(device)) yield* this.core.deviceRemove(device);
  }
}

/** Enumerates, starts the IOMMU, forms groups, probes drivers. What a device refuses is a line in the log. */
export function* boot(kernel: Kernel): Steps {
  yield* bootBus(kernel);
  for (const driver of kernel.kernelDrivers.list) yield* kernel.drivers.registerDriver(driver);
}

function* bootBus({ pci, iommu, core, mailbox, binding }: Kernel): Steps {
  const devices = pci.enumerate();
  if (iommu !== undefined) yield* iommu.start();
  core.registerDriver(iommu ?? new DirectMapping(mailbox));
  for (const device of devices) yield* binding.deviceAdded(device);
  // translation comes last, as in Linux: no device loses its untranslated DMA before it has a domain
  if (iommu !== undefined) yield* iommu.enableTranslation();
}

/** The host: devices that guests get as a whole go to vfio-pci, then drivers probe, then mediated devices are made that start by themselves. */
export function* bootHost(host: Host): Steps {
  const { passthrough, drivers, pci, devices, settings } = host;
  yield* bootBus(host);
  for (const name of passthrough.assigned) {
    const device = pci.find(devices.models.find((model) => model.name === name)!.bdf);
    if (device !== undefined) drivers.setDriverOverride(device, passthrough.vfioPci.name);
  }
  for (const driver of [...host.kernelDrivers.list, passthrough.vfioPci]) yield* drivers.registerDriver(driver);
  for (const parent of passthrough.mttyParents) passthrough.mdevs.registerParent(parent.device, parent);
  for (const { uuid, start } of settings.topology.mdevs) {
    if (start !== 'auto') continue;
    try {
      yield* passthrough.startMdev(uuid);
    } catch (error) {
      if (!isErrno(error)) throw error;
      host.log.log('warn', `mdevctl: ${uuid}: ${error.message}`);
    }
  }
}

/** Unbinds drivers and takes every device away: what is still in use then has leaked. */
export function* shutdown(kernel: Kernel, drivers: readonly PciDriver[] = kernel.kernelDrivers.list): Steps {
  for (const driver of drivers.toReversed()) yield* kernel.drivers.unregisterDriver(driver.name);
  for (const device of kernel.pci.devices.toReversed()) yield* kernel.binding.deviceRemoved(device);
  if (kernel.iommu !== undefined) yield* kernel.iommu.stop();
  kernel.core.close();
  kernel.interrupts.close();
}

/** Mediated devices go first, and their parents. */
export function* shutdownHost(host: Host): Steps {
  const { passthrough, kernelDrivers } = host;
  for (const parent of passthrough.mttyParents) yield* passthrough.mdevs.unregisterParent(parent.device);
  yield* shutdown(host, [...kernelDrivers.list, passthrough.vfioPci]);
}
