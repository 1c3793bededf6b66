/** The driver of 8086:0b25 as the PCI core sees it, and the door for processes and kernel users of its queues. */
import { Errno } from '../../../sim/errno.js';
import type { Steps } from '../../../sim/task.js';
import type { PciDriver } from '../../../host/pci/kernel/drivers.js';
import type { PciDevice } from '../../../host/pci/kernel/pci-device.js';
import type { Process } from '../../../host/process.js';
import { DSA_DEVICE_ID, DSA_VENDOR_ID } from '../spec/registers.js';
import { IdxdDevice } from './idxd-device.js';
import { openWq, type IdxdFile } from './idxd-file.js';
import { openPinned, type IdxdPinnedFile } from './idxd-pinned.js';
import type { IdxdMdevHooks, IdxdOptions, IdxdServices } from './idxd-options.js';

export class IdxdDriver implements PciDriver {
  readonly name = 'idxd';
  readonly ids = [{ vendor: DSA_VENDOR_ID, device: DSA_DEVICE_ID }];
  private services: IdxdServices;
  private readonly optionsOf: (device: PciDevice) => IdxdOptions;
  private readonly devices = new Map<PciDevice, IdxdDevice>();

  /** @param optionsOf configuration of each device that the driver meets */
  constructor(services: IdxdServices, optionsOf: (device: PciDevice) => IdxdOptions) {
    this.services = services;
    this.optionsOf = optionsOf;
  }

  /** Who makes mediated devices of the devices that are probed from now on, where it was not known at construction. */
  offerMdevs(mdev: IdxdMdevHooks): void {
    this.services = { ...this.services, mdev };
  }

  /** The device under this driver. ENODEV. */
  device(pci: PciDevice): IdxdDevice {
    const device = this.devices.get(pci);
    if (device === undefined) throw new Errno('ENODEV', `${pci.name} is not bound to idxd`);
    return device;
  }

  /** See IdxdDevice.start for what is refused. */
  *probe(pci: PciDevice): Steps {
    const device = new IdxdDevice(pci, this.services, this.optionsOf(pci));
    yield* device.start();
    this.devices.set(pci, device);
  }

  *remove(pci: PciDevice): Steps {
    const device = this.device(pci);
    this.devices.delete(pci);
    yield* device.stop();
  }

  /** A process opens a user queue. ENODEV, EPERM, EBUSY, ENXIO, or what the bind refuses. */
  *open(pci: PciDevice, process: Process, wqName: string): Steps<IdxdFile> {
    const device = this.device(pci);
    return yield* openWq(device, device.wq(wqName), process);
  }

  /** A process opens a kernel queue, whose driver pins what it names. ENODEV, EPERM, ENXIO. */
  // oxlint-disable-next-line require-yield -- opening a device may sleep
  *openPinned(pci: PciDevice, process: Process, wqName: string): Steps<IdxdPinnedFile> {
    const device = this.device(pci);
    return openPinned(device, device.wq(wqName), process);
  }

  /** Copies physical memory through the first kernel queue, or the named one. ENODEV, EIO, ENXIO. */
  *kernelCopy(pci: PciDevice, target: number, source: number, sizeBytes: number, wqName?: string): Steps {
    const device = this.device(pci);
    const wq = wqName === undefined ? device.wqs.find((candidate) => candidate.kernel !== undefined) : device.wq(wqName);
    if (wq?.kernel === undefined) throw new Errno('ENODEV', `${pci.name} has no ${wqName === undefined ? 'kernel work queue' : `kernel work queue ${wqName}`}`);
    yield* wq.kernel.copy(target, source, sizeBytes);
  }
}
