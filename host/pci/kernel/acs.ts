/**
 * Access Control Services: switching it on, and asking whether a function is isolated from its peers
 * (PCIe Base 6.0 section 6.12; `pci_acs_enabled` and `pci_std_enable_acs` of drivers/pci/pci.c; requirements C16,
 * section 3.4). Left out: vendor quirks, egress control vectors.
 */
import {
  PCI_ACS_CAP, PCI_ACS_CR, PCI_ACS_CTRL, PCI_ACS_EC, PCI_ACS_RR, PCI_ACS_SV, PCI_ACS_TB, PCI_ACS_UF, PCI_EXP_TYPE_DOWNSTREAM,
  PCI_EXP_TYPE_ENDPOINT, PCI_EXP_TYPE_LEG_END, PCI_EXP_TYPE_RC_END, PCI_EXP_TYPE_ROOT_PORT, PCI_EXP_TYPE_UPSTREAM,
} from '../spec/index.js';
import { updateWord } from './config-access.js';
import type { PciFunctionDevice } from './function-device.js';

/** A function is isolated when nobody's requests or completions reach a peer without the IOMMU (C16). */
export const ISOLATION_FLAGS = PCI_ACS_SV | PCI_ACS_RR | PCI_ACS_CR | PCI_ACS_UF;

/** Switches isolation on as far as the function can; translated requests are blocked at untrusted ports. */
export function enableAcs(device: PciFunctionDevice): void {
  const acs = device.acsCapability;
  if (acs === undefined) return;
  const capability = device.config.read(acs + PCI_ACS_CAP, 2);
  const wanted = ISOLATION_FLAGS | (device.externalFacing || device.untrusted ? PCI_ACS_TB : 0);
  updateWord(device.config, acs + PCI_ACS_CTRL, 0, capability & wanted);
}

/** True when the function enforces `flags`, or cannot reach a peer without leaving through its port anyway. */
export function acsEnabled(device: PciFunctionDevice, flags: number): boolean {
  switch (device.pcieType) {
    case PCI_EXP_TYPE_DOWNSTREAM:
    case PCI_EXP_TYPE_ROOT_PORT:
      return acsFlagsEnabled(device, flags);
    case PCI_EXP_TYPE_ENDPOINT:
    case PCI_EXP_TYPE_UPSTREAM:
    case PCI_EXP_TYPE_LEG_END:
    case PCI_EXP_TYPE_RC_END:
      // section 6.12.1.2: a function alone in its device has no peer there
      return !device.multifunction || acsFlagsEnabled(device, flags);
    default:
      // conventional PCI: everybody on the bus sees everything
      return device.pcieType !== undefined && device.pcieType !== PCI_EXP_TYPE_PCI_BRIDGE && device.pcieType !== PCI_EXP_TYPE_PCIE_BRIDGE;
  }
}

/** Bridges between PCIe and conventional PCI (values of the type field that no model here advertises). */
export const PCI_EXP_TYPE_PCI_BRIDGE = 0x7;
export const PCI_EXP_TYPE_PCIE_BRIDGE = 0x8;

function acsFlagsEnabled(device: PciFunctionDevice, flags: number): boolean {
  const acs = device.acsCapability;
  if (acs === undefined) return false;
  // what the capability does not offer is either not needed or always on, except egress control
  const needed = flags & (device.config.read(acs + PCI_ACS_CAP, 2) | PCI_ACS_EC);
  return (device.config.read(acs + PCI_ACS_CTRL, 2) & needed) === needed;
}
