/**
 * The legacy interrupt of a function: a level that the device sets, Interrupt Status and Interrupt Disable in the
 * header (PCIe 6.0 sections 7.5.1.1.3, 7.5.1.1.4, 6.1.3). While MSI or MSI-X is enabled, INTx is silent (section
 * 6.1.4). Assert and Deassert messages are not gated by bus mastering, in the function as in the bridges above;
 * bridges rename the pin by the device number of who is below (table 2-21).
 * Left out: the messages as TLPs (the line at the interrupt controller changes at once), pins of bridges.
 */
import { assert } from '../../../sim/assert.js';
import { deviceOf, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, PCI_INTERRUPT_PIN, PCI_STATUS, PCI_STATUS_INTERRUPT, rootIntxLine, swizzleIntx, type IntxPin } from '../spec/index.js';
import type { InterruptSink } from '../../interrupts.js';
import type { ConfigSpace } from './config-space.js';
import type { PciNode } from './pci-node.js';

export interface IntxOptions {
  readonly pin: IntxPin;
  readonly config: ConfigSpace;
  /** MSI or MSI-X is on. */
  readonly messageSignalled: () => boolean;
  /** `pci.intx-ignore-disable` */
  readonly ignoreDisable: boolean;
}

export class Intx {
  /** What the device wants. */
  level = false;
  /** Takes the line's level instead of the interrupt controller, at once and at every change. */
  private deliver: ((high: boolean) => void) | undefined;
  private readonly options: IntxOptions;
  private interrupts: InterruptSink | undefined;
  /** The interrupt controller's input; undefined outside the machine. */
  private line: number | undefined;
  private driven = false;

  constructor(options: IntxOptions) {
    assert(options.pin >= 1 && options.pin <= 4, `interrupt pin ${options.pin}`);
    this.options = options;
    options.config.define(PCI_INTERRUPT_PIN, 1, options.pin);
  }

  set(level: boolean): void {
    this.level = level;
    this.options.config.setBits(PCI_STATUS, 2, PCI_STATUS_INTERRUPT, level);
    this.update();
  }

  /** The function was plugged in, moved or pulled out. */
  route(node: PciNode, interrupts: InterruptSink | undefined): void {
    const line = interrupts === undefined ? undefined : lineOf(node, this.options.pin);
    if (line === this.line && interrupts === this.interrupts) return;
    this.drive(false);
    this.line = line;
    this.interrupts = interrupts;
    this.update();
  }

  /** The function is served to somebody else's machine, or is not any more. */
  deliverTo(deliver: ((high: boolean) => void) | undefined): void {
    this.drive(false);
    this.deliver = deliver;
    this.update();
  }

  /** Drives the line as level and enables say. */
  update(): void {
    const { config, messageSignalled, ignoreDisable } = this.options;
    const disabled = !ignoreDisable && (config.get(PCI_COMMAND, 2) & PCI_COMMAND_INTX_DISABLE) !== 0;
    this.drive(this.level && !disabled && !messageSignalled());
  }

  private drive(high: boolean): void {
    if (high === this.driven || (this.line === undefined && this.deliver === undefined)) return;
    this.driven = high;
    if (this.deliver !== undefined) this.deliver(high);
    else if (this.line !== undefined) this.interrupts?.setLine?.(this.line, this, high);
  }
}

/** Up through the bridges to the root bus, and from there to the interrupt controller. */
function lineOf(node: PciNode, pin: IntxPin): number | undefined {
  let at: PciNode = node, name = pin;
  for (let bridge = at.bus?.bridge; bridge !== undefined; bridge = at.bus?.bridge) {
    name = swizzleIntx(deviceOf(at.devfn), name);
    at = bridge;
  }
  return at.bus === undefined ? undefined : rootIntxLine(deviceOf(at.devfn), name);
}
