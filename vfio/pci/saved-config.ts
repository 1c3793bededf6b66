/**
 * A copy of what the kernel had in a function's configuration space when a user opened it, to be put back when the
 * user is gone (`pci_store_saved_state` and `pci_load_saved_state` of drivers/pci/pci.c): header and the controls of
 * the PCI Express capability. What a driver of the kernel enables by itself (ATS, MSI) is not part of it.
 */
import {
  PCI_CAP_ID_EXP, PCI_CAP_ID_PM, PCI_EXP_DEVCTL, PCI_EXP_DEVCTL2, PCI_PM_CTRL, PCI_PM_CTRL_STATE_MASK, PCI_STD_HEADER_SIZEOF,
} from '../../host/pci/spec/index.js';
import { updateWord } from '../../host/pci/kernel/config-access.js';
import type { PciDevice } from '../../host/pci/kernel/pci-device.js';

export class SavedConfig {
  private readonly header: readonly number[];
  private readonly controls: readonly { readonly offset: number; readonly value: number }[];

  constructor(device: PciDevice) {
    this.header = Array.from({ length: PCI_STD_HEADER_SIZEOF / 4 }, (_, i) => device.config.read(i * 4, 4));
    const express = device.findCapability(PCI_CAP_ID_EXP);
    this.controls = express === undefined ? [] : [PCI_EXP_DEVCTL, PCI_EXP_DEVCTL2].map((at) => ({ offset: express + at, value: device.config.read(express + at, 2) }));
  }

  /** Writes what differs; BARs before the command word lets them be decoded. */
  restore(device: PciDevice): void {
    for (const { offset, value } of this.controls) device.config.write(offset, 2, value);
    for (let i = this.header.length - 1; i >= 0; i--) {
      if (device.config.read(i * 4, 4) !== this.header[i]) device.config.write(i * 4, 4, this.header[i]!);
    }
  }
}

/** Brings the function back to D0. */
export function powerOn(device: PciDevice): void {
  const pm = device.findCapability(PCI_CAP_ID_PM);
  if (pm !== undefined) updateWord(device.config, pm + PCI_PM_CTRL, PCI_PM_CTRL_STATE_MASK, 0);
}
