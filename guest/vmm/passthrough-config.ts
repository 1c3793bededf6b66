/**
 * The configuration space of a passed-through function (QEMU: hw/vfio/pci.c, `vfio_pci_read_config`,
 * `vfio_pci_write_config`): identity and capabilities are the device's, as VFIO shows them; BARs, MSI and MSI-X are the
 * virtual function's own; the command register, power state, device control and status bits go through to the device.
 *
 * What differs from QEMU: capabilities stand where the virtual function has them, not where the device does; extended
 * ones (ATS, PRI, PASID, SR-IOV, ACS, DVSEC) and vendor-specific registers are left out; an endpoint is shown as a root
 * complex integrated one, as QEMU does on its root bus.
 */
import { Errno, isErrno } from '../../sim/errno.js';
import { listCapabilities } from '../../host/pci/kernel/capability-list.js';
import type { ConfigWindow } from '../../host/pci/kernel/pci-device.js';
import type { BarOptions } from '../../host/pci/hardware/bar.js';
import type { MsiOptions } from '../../host/pci/hardware/msi.js';
import type { PciFunction, PciFunctionOptions } from '../../host/pci/hardware/pci-function.js';
import {
  barOffset, PCI_BASE_ADDRESS_MEM_PREFETCH, PCI_BASE_ADDRESS_MEM_TYPE_64, PCI_BASE_ADDRESS_MEM_TYPE_MASK, PCI_CAP_ID_EXP, PCI_CAP_ID_MSI, PCI_CAP_ID_MSIX, PCI_CAP_ID_PM,
  PCI_BASE_ADDRESS_SPACE_IO, PCI_CLASS_REVISION, PCI_COMMAND, PCI_DEVICE_ID, PCI_EXP_DEVCAP, PCI_EXP_DEVCAP_FLR, PCI_EXP_DEVCTL, PCI_EXP_DEVCTL_BCR_FLR, PCI_EXP_DEVSTA,
  PCI_EXP_TYPE_RC_END, PCI_INTERRUPT_PIN, PCI_MSI_FLAGS, PCI_MSI_FLAGS_MASKBIT, PCI_MSI_FLAGS_QMASK, PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_QSIZE, PCI_MSIX_PBA, PCI_MSIX_PBA_BIR,
  PCI_MSIX_PBA_OFFSET, PCI_MSIX_TABLE, PCI_MSIX_TABLE_BIR, PCI_MSIX_TABLE_OFFSET, PCI_PM_CTRL, PCI_STATUS, PCI_STD_NUM_BARS, PCI_SUBSYSTEM_ID, PCI_SUBSYSTEM_VENDOR_ID,
  PCI_VENDOR_ID, type IntxPin,
} from '../../host/pci/spec/index.js';
import type { DeviceHandle } from '../../vfio/client/index.js';
import { PCI_CONFIG_REGION } from '../../vfio/device.js';
import type { VmmCounters } from './counters.js';

/** W1C bits of PCI_STATUS, and of the device status. */
const STATUS_W1C = 0xf900;
const DEVSTA_W1C = 0x000f;
const DEVSTA_TRPND = 0x0020;

/** The device's configuration space as VFIO shows it; all ones and deaf once the descriptor is closed. */
export class DeviceConfig implements ConfigWindow {
  private readonly device: DeviceHandle;
  private readonly counters: VmmCounters;

  constructor(device: DeviceHandle, counters: VmmCounters) {
    this.device = device;
    this.counters = counters;
  }

  read(offset: number, size: 1 | 2 | 4): number {
    this.counters.regionReads++;
    try {
      return this.device.readValue(PCI_CONFIG_REGION, offset, size);
    } catch (error) {
      if (!isErrno(error)) throw error;
      return size === 1 ? 0xff : size === 2 ? 0xffff : 0xffff_ffff;
    }
  }

  write(offset: number, size: 1 | 2 | 4, value: number): void {
    this.counters.regionWrites++;
    try {
      this.device.writeValue(PCI_CONFIG_REGION, offset, size, value);
    } catch (error) {
      if (!isErrno(error)) throw error;
    }
  }
}

/** What the device says about a BAR. */
export interface BarShape {
  readonly index: number;
  readonly prefetchable: boolean;
  readonly is64: boolean;
}

/** Memory BARs by their registers; which of them exist, their regions say. */
export function barShapes(config: ConfigWindow): BarShape[] {
  const shapes: BarShape[] = [];
  for (let index = 0; index < PCI_STD_NUM_BARS; index++) {
    const low = config.read(barOffset(index), 4);
    if ((low & PCI_BASE_ADDRESS_SPACE_IO) !== 0) continue;
    const is64 = (low & PCI_BASE_ADDRESS_MEM_TYPE_MASK) === PCI_BASE_ADDRESS_MEM_TYPE_64;
    shapes.push({ index, prefetchable: (low & PCI_BASE_ADDRESS_MEM_PREFETCH) !== 0, is64 });
    if (is64) index++;
  }
  return shapes;
}

/** The virtual function's options that follow from the device's configuration space. EINVAL nothing sensible is there. */
export function functionOptions(name: string, config: ConfigWindow, bars: readonly BarOptions[], intx: boolean): Omit<PciFunctionOptions, 'client'> {
  const vendorId = config.read(PCI_VENDOR_ID, 2);
  if (vendorId === 0xffff) throw new Errno('EINVAL', `${name} does not answer: its vendor id reads as ffff`);
  const capabilities = new Map(listCapabilities(config).map(({ id, offset }) => [id, offset]));
  const at = (id: number): number | undefined => capabilities.get(id);
  const express = at(PCI_CAP_ID_EXP), msi = at(PCI_CAP_ID_MSI), msix = at(PCI_CAP_ID_MSIX);
  const pin = config.read(PCI_INTERRUPT_PIN, 1);
  const revision = config.read(PCI_CLASS_REVISION, 4);
  return {
    name, vendorId, deviceId: config.read(PCI_DEVICE_ID, 2), classCode: revision >>> 8, revision: revision & 0xff,
    subsystemVendorId: config.read(PCI_SUBSYSTEM_VENDOR_ID, 2), subsystemId: config.read(PCI_SUBSYSTEM_ID, 2),
    deviceType: PCI_EXP_TYPE_RC_END, bars, pm: at(PCI_CAP_ID_PM) !== undefined, e2eTlpPrefix: false,
    flr: express !== undefined && (config.read(express + PCI_EXP_DEVCAP, 4) & PCI_EXP_DEVCAP_FLR) !== 0,
    ...(msi === undefined ? {} : { msi: msiOptions(config.read(msi + PCI_MSI_FLAGS, 2)) }),
    ...(msix === undefined ? {} : { msix: msixOptions(config, msix) }),
    ...(intx && pin >= 1 && pin <= 4 ? { intx: pin as IntxPin } : {}),
  };
}

function msiOptions(flags: number): MsiOptions {
  return { vectors: 2 ** Math.min((flags & PCI_MSI_FLAGS_QMASK) >> 1, 5) as MsiOptions['vectors'], maskable: (flags & PCI_MSI_FLAGS_MASKBIT) !== 0 };
}

function msixOptions(config: ConfigWindow, at: number): NonNullable<PciFunctionOptions['msix']> {
  const table = config.read(at + PCI_MSIX_TABLE, 4), pba = config.read(at + PCI_MSIX_PBA, 4);
  return {
    vectors: (config.read(at + PCI_MSIX_FLAGS, 2) & PCI_MSIX_FLAGS_QSIZE) + 1,
    tableBar: table & PCI_MSIX_TABLE_BIR, tableOffset: (table & PCI_MSIX_TABLE_OFFSET) >>> 0,
    pbaBar: pba & PCI_MSIX_PBA_BIR, pbaOffset: (pba & PCI_MSIX_PBA_OFFSET) >>> 0,
  };
}

/** Connects the registers of a virtual function that are the device's. */
export function forwardConfig(fn: PciFunction, device: ConfigWindow): void {
  const { config } = fn;
  const theirs = new Map(listCapabilities(device).map(({ id, offset }) => [id, offset]));
  const ours = new Map(listCapabilities(config).map(({ id, offset }) => [id, offset]));
  // a device that was pulled out reads as ones
  config.onRead(PCI_VENDOR_ID, 2, () => config.set(PCI_VENDOR_ID, 2, device.read(PCI_VENDOR_ID, 2)));
  config.onWrite(PCI_COMMAND, 2, () => device.write(PCI_COMMAND, 2, config.get(PCI_COMMAND, 2)));
  config.onRead(PCI_STATUS, 2, () => config.set(PCI_STATUS, 2, (config.get(PCI_STATUS, 2) & ~STATUS_W1C) | (device.read(PCI_STATUS, 2) & STATUS_W1C)));
  config.onWrite(PCI_STATUS, 2, (written) => {
    if ((written & STATUS_W1C) !== 0) device.write(PCI_STATUS, 2, written & STATUS_W1C);
  });
  const pm = theirs.get(PCI_CAP_ID_PM), ourPm = ours.get(PCI_CAP_ID_PM);
  if (pm !== undefined && ourPm !== undefined) {
    config.onWrite(ourPm + PCI_PM_CTRL, 2, () => device.write(pm + PCI_PM_CTRL, 2, config.get(ourPm + PCI_PM_CTRL, 2)));
    config.onRead(ourPm + PCI_PM_CTRL, 2, () => config.set(ourPm + PCI_PM_CTRL, 2, device.read(pm + PCI_PM_CTRL, 2)));
  }
  const express = theirs.get(PCI_CAP_ID_EXP), ourExpress = ours.get(PCI_CAP_ID_EXP);
  if (express === undefined || ourExpress === undefined) return;
  const control = ourExpress + PCI_EXP_DEVCTL, status = ourExpress + PCI_EXP_DEVSTA;
  // a function level reset is done by VFIO_DEVICE_RESET
  config.onWrite(control, 2, () => device.write(express + PCI_EXP_DEVCTL, 2, config.get(control, 2) & ~PCI_EXP_DEVCTL_BCR_FLR));
  config.onRead(status, 2, () => config.set(status, 2, device.read(express + PCI_EXP_DEVSTA, 2) & (DEVSTA_W1C | DEVSTA_TRPND)));
  config.onWrite(status, 2, (written) => {
    if ((written & DEVSTA_W1C) !== 0) device.write(express + PCI_EXP_DEVSTA, 2, written & DEVSTA_W1C);
  });
}
