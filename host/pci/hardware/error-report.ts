/**
 * Baseline error reporting of a function (PCIe 6.0 sections 6.2.4, 6.2.5, 7.5.3.4, 7.5.3.5): the detected bits of
 * Device Status, and whether a message goes to the root complex. Left out: Advanced Error Reporting, bridges that
 * stop messages (SERR# Enable of bridge control), Root Control.
 */
import {
  PCI_COMMAND, PCI_COMMAND_SERR, PCI_EXP_DEVCTL, PCI_EXP_DEVCTL_CERE, PCI_EXP_DEVCTL_FERE, PCI_EXP_DEVCTL_NFERE, PCI_EXP_DEVSTA, PCI_EXP_DEVSTA_CED,
  PCI_EXP_DEVSTA_FED, PCI_EXP_DEVSTA_NFED, PCI_STATUS, PCI_STATUS_SIG_SYSTEM_ERROR, type PciErrorSeverity,
} from '../spec/index.js';
import type { ConfigSpace } from './config-space.js';

const DETECTED = { correctable: PCI_EXP_DEVSTA_CED, nonfatal: PCI_EXP_DEVSTA_NFED, fatal: PCI_EXP_DEVSTA_FED } as const;
const ENABLE = { correctable: PCI_EXP_DEVCTL_CERE, nonfatal: PCI_EXP_DEVCTL_NFERE, fatal: PCI_EXP_DEVCTL_FERE } as const;

/** Notes the error in the registers; true when software enabled its message. @param express offset of the PCI Express capability */
export function noteError(config: ConfigSpace, express: number, severity: PciErrorSeverity): boolean {
  config.setBits(express + PCI_EXP_DEVSTA, 2, DETECTED[severity], true);
  const systemError = severity !== 'correctable' && (config.get(PCI_COMMAND, 2) & PCI_COMMAND_SERR) !== 0;
  if (systemError) config.setBits(PCI_STATUS, 2, PCI_STATUS_SIG_SYSTEM_ERROR, true);
  return systemError || (config.get(express + PCI_EXP_DEVCTL, 2) & ENABLE[severity]) !== 0;
}
