/**
 * Configuration space of a virtual accelerator: identity and class of the real one, two 64-bit BARs, MSI-X with two vectors,
 * PCI Express as a root complex integrated endpoint with function level reset. No ATS, PRI or PASID: who passes through such
 * a device has no address spaces to share with it.
 */
import { Bar } from '../../../host/pci/hardware/bar.js';
import { ConfigSpace } from '../../../host/pci/hardware/config-space.js';
import { addExpress, buildHeader } from '../../../host/pci/hardware/function-config.js';
import {
  PCI_CAP_ID_MSIX, PCI_CAP_MSIX_SIZEOF, PCI_COMMAND, PCI_COMMAND_MASTER, PCI_EXP_DEVCTL, PCI_EXP_DEVCTL_BCR_FLR, PCI_EXP_TYPE_RC_END, PCI_MSIX_FLAGS, PCI_MSIX_FLAGS_ENABLE,
  PCI_MSIX_FLAGS_MASKALL, PCI_MSIX_PBA, PCI_MSIX_TABLE,
} from '../../../host/pci/spec/index.js';
import { DSA_CLASS_CODE, DSA_DEVICE_ID, DSA_VENDOR_ID, MSIX_PBA_OFFSET, MSIX_TABLE_OFFSET, PORTAL_SIZE, PORTALS_BAR, PORTALS_PER_WQ, REGISTERS_BAR, REGISTERS_BAR_SIZE } from '../spec/registers.js';
import { VDSA_VECTORS } from './vdsa-interrupts.js';

export const VDSA_PORTALS_SIZE = PORTALS_PER_WQ * PORTAL_SIZE;

export interface ConfigEvents {
  /** Bus mastering was switched off. */
  busMasterLost(): void;
  functionLevelReset(): void;
  /** The MSI-X control word was written. */
  msixControl(): void;
}

export class VdsaConfig {
  readonly space = new ConfigSpace();
  private readonly msix: number;

  constructor(events: ConfigEvents) {
    const { space } = this;
    buildHeader(space, { vendorId: DSA_VENDOR_ID, deviceId: DSA_DEVICE_ID, classCode: DSA_CLASS_CODE }, false);
    const express = addExpress(space, PCI_EXP_TYPE_RC_END, { flr: true, e2eTlpPrefix: false });
    const msix = (this.msix = space.addCapability(PCI_CAP_ID_MSIX, PCI_CAP_MSIX_SIZEOF));
    space.define(msix + PCI_MSIX_FLAGS, 2, VDSA_VECTORS - 1, { rw: PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL });
    space.define(msix + PCI_MSIX_TABLE, 4, MSIX_TABLE_OFFSET | REGISTERS_BAR);
    space.define(msix + PCI_MSIX_PBA, 4, MSIX_PBA_OFFSET | REGISTERS_BAR);
    for (const [index, sizeBytes] of [[REGISTERS_BAR, REGISTERS_BAR_SIZE], [PORTALS_BAR, VDSA_PORTALS_SIZE]] as const) {
      void new Bar(space, { index, sizeBytes, prefetchable: true, is64: true });
    }
    space.seal();
    space.onWrite(PCI_COMMAND, 2, (_written, previous) => {
      if ((previous & PCI_COMMAND_MASTER) !== 0 && !this.busMaster) events.busMasterLost();
    });
    space.onWrite(express + PCI_EXP_DEVCTL, 2, (written) => {
      if ((written & PCI_EXP_DEVCTL_BCR_FLR) !== 0) events.functionLevelReset();
    });
    space.onWrite(msix + PCI_MSIX_FLAGS, 2, () => events.msixControl());
  }

  get busMaster(): boolean {
    return (this.space.get(PCI_COMMAND, 2) & PCI_COMMAND_MASTER) !== 0;
  }

  /** Function Mask of MSI-X. */
  get msixMasked(): boolean {
    return (this.space.get(this.msix + PCI_MSIX_FLAGS, 2) & PCI_MSIX_FLAGS_MASKALL) !== 0;
  }
}
