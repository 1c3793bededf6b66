/**
 * Resets and what the kernel puts back afterwards: function level reset of one function, secondary bus reset of
 * everything below a bridge (PCIe Base 6.0 sections 6.6.1, 6.6.2; `pci_reset_function`, `pcie_flr`, `pci_reset_bus`,
 * `pci_save_state` and `pci_restore_state` of drivers/pci/pci.c, v5.10). Order of the restoration: PCI Express
 * controls, PASID, PRI, ATS, the header (BARs before the command word), MSI, MSI-X, ACS, SR-IOV; parents before what
 * is below them. Left out: resets by power state and by slot; AER, LTR, resizable BARs.
 */
import { Errno, isErrno } from '../../../sim/errno.js';
import { sleep } from '../../../sim/task.js';
import type { Steps } from '../../../sim/task.js';
import {
  PCI_BRIDGE_CONTROL, PCI_BRIDGE_CTL_BUS_RESET, PCI_CAP_ID_EXP, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, PCI_EXP_DEVCAP, PCI_EXP_DEVCAP_FLR, PCI_EXP_DEVCTL,
  PCI_EXP_DEVCTL_BCR_FLR, PCI_EXP_DEVCTL2, PCI_EXP_DEVSTA, PCI_EXP_DEVSTA_TRPND, PCI_EXP_FLAGS, PCI_EXP_FLAGS_VERS,
  PCI_EXP_LNKCTL, PCI_EXP_TYPE_RC_END,
} from '../spec/index.js';
import { enableAcs } from './acs.js';
import { updateWord } from './config-access.js';
import type { PciFunctionDevice, PciServices } from './function-device.js';
import type { PciResetMethod } from './pci-device.js';

const MS = 1_000_000;
/** A function must be ready 100 ms after the write that started the reset. */
export const FLR_WAIT_NS = 100 * MS;
/** How long the bridge holds its bus in reset, and how long what is below may take then (`pci_reset_secondary_bus`). */
export const BUS_RESET_HOLD_NS = 2 * MS;
export const BUS_RESET_WAIT_NS = 1_000 * MS;
/** `PCIE_RESET_READY_POLL_MS`: how long the kernel asks on after that. */
const READY_LIMIT_MS = 60_000;

interface SavedState {
  readonly header: Uint32Array;
  readonly express: readonly { readonly offset: number; readonly value: number }[];
}

/** Best first, as `pci_reset_function` tries them. By the bus only a function that shares it with nobody (`pci_parent_bus_reset`). */
export function resetMethods(device: PciFunctionDevice): readonly PciResetMethod[] {
  const methods: PciResetMethod[] = [];
  const express = device.findCapability(PCI_CAP_ID_EXP);
  if (express !== undefined && (device.config.read(express + PCI_EXP_DEVCAP, 4) & PCI_EXP_DEVCAP_FLR) !== 0) methods.push('flr');
  const { upstream } = device;
  if (upstream !== undefined && !device.isBridge && device.physfn === undefined && upstream.subtree.length === 2) methods.push('bus');
  return methods;
}

/**
 * Resets the function and restores its state. ENOTTY when there is no way to reset it alone, or it does not come back
 * within a minute.
 */
export function* resetFunction(device: PciFunctionDevice, services: PciServices): Steps {
  if (!device.present) throw new Errno('ENOTTY', `device ${device.name} is gone`);
  const method = resetMethods(device)[0];
  if (method === undefined) {
    const why = device.upstream === undefined ? 'is on a root bus' : 'shares its bus';
    throw new Errno('ENOTTY', `device ${device.name} has no function level reset and ${why}`);
  }
  if (method === 'flr') yield* functionLevelReset(device, services);
  else yield* resetBelow(device.upstream!, services);
}

/**
 * Resets everything below a bridge and restores its state. ENOTTY when something below does not come back within a
 * minute; what comes back is restored all the same.
 */
export function* resetBelow(bridge: PciFunctionDevice, services: PciServices): Steps {
  const below = bridge.subtree.slice(1);
  const saved: SavedState[] = [];
  for (const device of below) {
    yield* services.resetPrepare(device);
    saved.push(saveState(device));
    device.config.write(PCI_COMMAND, 2, PCI_COMMAND_INTX_DISABLE);
  }
  for (const device of below) yield* services.resetQuiet(device);
  for (const device of below) begin(device);
  updateWord(bridge.config, PCI_BRIDGE_CONTROL, 0, PCI_BRIDGE_CTL_BUS_RESET);
  yield* sleep(services.clock, BUS_RESET_HOLD_NS);
  updateWord(bridge.config, PCI_BRIDGE_CONTROL, PCI_BRIDGE_CTL_BUS_RESET, 0);
  yield* sleep(services.clock, BUS_RESET_WAIT_NS);
  let failure: Errno | undefined;
  for (const [i, device] of below.entries()) {
    try {
      yield* waitUntilReady(device, services, 'bus reset');
      yield* restoreState(device, saved[i]!, services);
    } catch (error) {
      if (!isErrno(error, 'ENOTTY')) throw error;
      failure ??= error;
    } finally {
      device.resetting = false;
    }
  }
  for (const device of below) yield* services.resetDone(device);
  if (failure !== undefined) throw failure;
}

function* functionLevelReset(device: PciFunctionDevice, services: PciServices): Steps {
  const express = device.findCapability(PCI_CAP_ID_EXP)!;
  yield* services.resetPrepare(device);
  const saved = saveState(device);
  device.config.write(PCI_COMMAND, 2, PCI_COMMAND_INTX_DISABLE);
  if (!(yield* waitForPendingTransactions(device, express, services))) {
    services.log.log('err', `pci ${device.name}: timed out waiting for pending transaction; performing function level reset anyway`);
  }
  yield* services.resetQuiet(device);
  begin(device);
  try {
    updateWord(device.config, express + PCI_EXP_DEVCTL, 0, PCI_EXP_DEVCTL_BCR_FLR);
    yield* sleep(services.clock, FLR_WAIT_NS);
    yield* waitUntilReady(device, services, 'FLR');
  } finally {
    device.resetting = false;
  }
  yield* restoreState(device, saved, services);
  yield* services.resetDone(device);
}

function begin(device: PciFunctionDevice): void {
  device.resetting = true;
  device.presenceChanged = false;
}

/** Four looks: at once, then after 100, 200 and 400 ms (`pci_wait_for_pending`). */
function* waitForPendingTransactions(device: PciFunctionDevice, express: number, services: PciServices): Steps<boolean> {
  for (let i = 0; i < 4; i++) {
    if (i > 0) yield* sleep(services.clock, 2 ** (i - 1) * 100 * MS);
    if ((device.config.read(express + PCI_EXP_DEVSTA, 2) & PCI_EXP_DEVSTA_TRPND) === 0) return true;
  }
  return false;
}

function* waitUntilReady(device: PciFunctionDevice, services: PciServices, kind: 'FLR' | 'bus reset'): Steps {
  for (let delayMs = 1; device.config.read(PCI_COMMAND, 4) === 0xffff_ffff; delayMs *= 2) {
    // as `pci_dev_wait` of newer kernels, which does not wait for what is disconnected
    if (device.presenceChanged) throw new Errno('ENOTTY', `device ${device.name} was pulled out during its ${kind === 'FLR' ? 'function level reset' : kind}`);
    if (delayMs > READY_LIMIT_MS) {
      services.log.log('warn', `pci ${device.name}: not ready ${delayMs - 1}ms after ${kind}; giving up`);
      throw new Errno('ENOTTY', `device ${device.name} does not answer after its ${kind === 'FLR' ? 'function level reset' : kind}`);
    }
    yield* sleep(services.clock, delayMs * MS);
  }
}

function saveState(device: PciFunctionDevice): SavedState {
  const header = new Uint32Array(16);
  for (let i = 0; i < 16; i++) header[i] = device.config.read(i * 4, 4);
  return { header, express: expressControls(device).map((offset) => ({ offset, value: device.config.read(offset, 2) })) };
}

/** Control words of the PCI Express capability that this function has. */
function expressControls(device: PciFunctionDevice): number[] {
  const express = device.findCapability(PCI_CAP_ID_EXP);
  if (express === undefined) return [];
  const controls = [express + PCI_EXP_DEVCTL];
  if (device.pcieType !== PCI_EXP_TYPE_RC_END) controls.push(express + PCI_EXP_LNKCTL);
  if ((device.config.read(express + PCI_EXP_FLAGS, 2) & PCI_EXP_FLAGS_VERS) >= 2) controls.push(express + PCI_EXP_DEVCTL2);
  return controls;
}

function* restoreState(device: PciFunctionDevice, saved: SavedState, services: PciServices): Steps {
  const { config } = device;
  for (const { offset, value } of saved.express) config.write(offset, 2, value);
  device.translation.restore();
  // from the end, so that the BARs are back before the command word lets them be decoded
  for (let i = 15; i >= 0; i--) {
    if (config.read(i * 4, 4) !== saved.header[i]) config.write(i * 4, 4, saved.header[i]!);
  }
  device.msi.restore();
  device.msix.restore();
  if (services.requestAcs) enableAcs(device);
  yield* device.sriov?.restore() ?? none();
}

function* none(): Steps {}
