/**
 * Errors that functions report, and recovery with their drivers (PCIe Base 6.0 section 6.2; drivers/pci/pcie/aer.c and
 * err.c of v5.10, integrated endpoints as since v5.12): every function below the port that leads to the one in trouble
 * votes; a fatal error resets the link before anybody goes on; all go on together or none does.
 *
 * Left out: the Advanced Error Reporting capability, so the cause of an error (`type=`, status and TLP header lines)
 * and root port registers are unknown; several errors at once ("Multiple …"); `mmio_enabled`; forbidding DMA and
 * register access while the link is frozen. A link reset puts the functions' state back, which Linux leaves to
 * `slot_reset` of their drivers.
 */
import { isErrno } from '../../../sim/errno.js';
import type { Scheduler, Steps } from '../../../sim/task.js';
import type { KernelLog } from '../../kernel-log.js';
import {
  PCI_CAP_ID_EXP, PCI_EXP_DEVCTL, PCI_EXP_DEVCTL_CERE, PCI_EXP_DEVCTL_FERE, PCI_EXP_DEVCTL_NFERE, PCI_EXP_DEVCTL_URRE, PCI_EXP_DEVSTA,
  PCI_EXP_TYPE_DOWNSTREAM, PCI_EXP_TYPE_ROOT_PORT, type PciErrorMessage, type PciErrorSeverity, type PciErrorSource,
} from '../spec/index.js';
import { updateWord } from './config-access.js';
import type { PciDriver, PciDrivers, PciErrorVote } from './drivers.js';
import type { PciFunctionDevice } from './function-device.js';
import type { PciCore, PciListener } from './pci-core.js';

export interface PciErrorsOptions {
  readonly bus: PciCore;
  readonly drivers: PciDrivers;
  readonly sources: readonly PciErrorSource[];
  readonly scheduler: Scheduler;
  readonly log: KernelLog;
}

const REPORTING = PCI_EXP_DEVCTL_CERE | PCI_EXP_DEVCTL_NFERE | PCI_EXP_DEVCTL_FERE | PCI_EXP_DEVCTL_URRE;
const DETECTED = 0x000f;
const SEVERITY_TEXT: Record<PciErrorSeverity, string> = { correctable: 'Corrected', nonfatal: 'Uncorrected (Non-Fatal)', fatal: 'Uncorrected (Fatal)' };

/** Subscribes itself to the bus and to error messages. Errors are handled one after the other. */
export class PciErrors implements PciListener {
  private readonly options: PciErrorsOptions;
  private readonly endings: (() => void)[];
  private readonly queue: PciErrorMessage[] = [];
  private working = false;

  constructor(options: PciErrorsOptions) {
    this.options = options;
    const { bus, sources } = options;
    this.endings = [bus.subscribe(this), ...sources.map((source) => source.listenErrors((message) => this.receive(message)))];
  }

  /** Lets the functions that are there report errors; those that come later do from the start (`pci_aer_init` since v6.1). */
  start(): void {
    for (const device of this.options.bus.devices) enableReporting(device);
  }

  /** Hears nothing any more: for teardown. */
  close(): void {
    for (const end of this.endings) end();
  }

  // oxlint-disable-next-line require-yield -- PciListener's signature
  *deviceAdded(device: PciFunctionDevice): Steps {
    enableReporting(device);
  }

  private receive(message: PciErrorMessage): void {
    this.queue.push(message);
    if (this.working) return;
    this.working = true;
    this.options.scheduler.spawn('aerdrv', this.work(), { daemon: true });
  }

  private *work(): Steps {
    try {
      for (let message = this.queue.shift(); message !== undefined; message = this.queue.shift()) yield* this.handle(message);
    } finally {
      this.working = false;
    }
  }

  private *handle({ segment, sourceId, severity }: PciErrorMessage): Steps {
    const { bus, log } = this.options;
    const device = bus.findBySourceId(segment, sourceId);
    if (device === undefined) {
      log.limited('aer', 'warn', `pci: AER: can't find device of ID${sourceId.toString(16).padStart(4, '0')}`);
      return;
    }
    const port = portAbove(device);
    const level = severity === 'correctable' ? 'warn' : 'err';
    log.limited(`aer ${device.name}`, level, `${this.prefix(port ?? device)}: AER: ${SEVERITY_TEXT[severity]} error received: ${device.name}`);
    log.limited(`aer bus error ${device.name}`, level, `${this.prefix(device)}: PCIe Bus Error: severity=${SEVERITY_TEXT[severity]}`);
    if (severity !== 'correctable') yield* this.recover(device, port, severity);
    clearDetected(device);
  }

  /** `pcie_do_recovery` */
  private *recover(device: PciFunctionDevice, port: PciFunctionDevice | undefined, severity: 'nonfatal' | 'fatal'): Steps {
    const affected = (port === undefined ? [device] : port.subtree.slice(1)).filter((other) => !other.isBridge);
    let result: Outcome = 'can-recover';
    for (const other of affected) result = merge(result, yield* this.ask(other, (driver) => driver.errorDetected?.(other, severity)));
    if (severity === 'fatal' && !(yield* this.resetLink(device, port))) {
      this.conclude(port ?? device, false);
      return;
    }
    if (result === 'can-recover') result = 'recovered';
    if (result === 'need-reset') {
      result = 'recovered';
      for (const other of affected) result = merge(result, yield* this.ask(other, (driver) => driver.slotReset?.(other) ?? abstain()));
    }
    if (result === 'recovered') {
      for (const other of affected) yield* this.withDriver(other, (driver) => driver.errorResume?.(other));
    }
    this.conclude(port ?? device, result === 'recovered');
  }

  /** What a driver votes; `undefined` from `question`, or no driver, is the veto of nobody being there. */
  private *ask(device: PciFunctionDevice, question: (driver: PciDriver) => Steps<PciErrorVote> | undefined): Steps<Outcome> {
    let vote: Outcome = 'no-driver';
    yield* this.withDriver(device, (driver) => {
      const answer = question(driver);
      return answer === undefined ? undefined : (function* (): Steps {
        vote = yield* answer;
      })();
    });
    if (vote === 'no-driver') this.options.log.log('info', `${this.prefix(device)}: AER: can't recover (no error_detected callback)`);
    return vote;
  }

  /** Nothing for a device that has gone meanwhile. */
  private *withDriver(device: PciFunctionDevice, steps: (driver: PciDriver) => Steps | undefined): Steps {
    const { bus, drivers } = this.options;
    if (bus.devices.includes(device)) yield* drivers.withDriver(device, (driver) => steps(driver) ?? nothing());
  }

  private *resetLink(device: PciFunctionDevice, port: PciFunctionDevice | undefined): Steps<boolean> {
    const { bus, log } = this.options;
    try {
      if (port === undefined) yield* device.reset();
      else yield* bus.resetBus(port);
      return true;
    } catch (error) {
      if (!isErrno(error)) throw error;
      log.log('warn', `${this.prefix(port ?? device)}: AER: subordinate device reset failed`);
      return false;
    }
  }

  private conclude(reporter: PciFunctionDevice, recovered: boolean): void {
    this.options.log.log('info', `${this.prefix(reporter)}: AER: device recovery ${recovered ? 'successful' : 'failed'}`);
  }

  /** Driver and name, as the kernel's messages begin. */
  private prefix(device: PciFunctionDevice): string {
    const driver = device.isBridge && device.pcieType !== undefined ? 'pcieport' : this.options.drivers.driverOf(device)?.name ?? 'pci';
    return `${driver} ${device.name}`;
  }
}

type Outcome = PciErrorVote | 'no-driver';

/** `merge_result` of drivers/pci/pcie/err.c: one without a driver decides; a reset, once asked for, stays; who gives up yields to it. */
function merge(sum: Outcome, vote: Outcome): Outcome {
  if (vote === 'no-driver' || sum === 'no-driver') return 'no-driver';
  if (vote === 'none') return sum;
  if (sum === 'can-recover' || sum === 'recovered') return vote;
  return sum === 'disconnect' && vote === 'need-reset' ? 'need-reset' : sum;
}

/** The root or downstream port whose link leads to the function; undefined for one that is integrated into the root complex. */
function portAbove(device: PciFunctionDevice): PciFunctionDevice | undefined {
  let port: PciFunctionDevice | undefined = device;
  while (port !== undefined && port.pcieType !== PCI_EXP_TYPE_ROOT_PORT && port.pcieType !== PCI_EXP_TYPE_DOWNSTREAM) port = port.upstream;
  return port;
}

function enableReporting(device: PciFunctionDevice): void {
  const express = device.findCapability(PCI_CAP_ID_EXP);
  if (express !== undefined) updateWord(device.config, express + PCI_EXP_DEVCTL, 0, REPORTING);
}

/** Clears what Device Status says was detected (W1C; `pcie_clear_device_status`). */
function clearDetected(device: PciFunctionDevice): void {
  const express = device.findCapability(PCI_CAP_ID_EXP);
  if (express === undefined) return;
  device.config.write(express + PCI_EXP_DEVSTA, 2, device.config.read(express + PCI_EXP_DEVSTA, 2) & DETECTED);
}

// oxlint-disable-next-line require-yield -- an answer that needs no time
function* abstain(): Steps<PciErrorVote> {
  return 'none';
}

function* nothing(): Steps {}
