/**
 * Legacy interrupts of one function as the kernel uses them: which line its pin is wired to, its handler there, and
 * masking by Interrupt Disable (PCIe Base 6.0 sections 7.5.1.1.3, 2.2.8.1; `pci_intx`, `pci_check_and_mask_intx` and
 * `pci_check_and_unmask_intx` of drivers/pci/pci.c). The routing on root buses is what firmware would tell
 * (`rootIntxLine`). Left out: pins of bridges, the list of functions whose masking is broken.
 */
import { Errno } from '../../../sim/errno.js';
import type { LineAction } from '../../interrupt-lines.js';
import {
  deviceOf, PCI_COMMAND, PCI_COMMAND_INTX_DISABLE, PCI_INTERRUPT_LINE, PCI_INTERRUPT_PIN, PCI_STATUS_INTERRUPT, rootIntxLine, swizzleIntx, type IntxPin,
} from '../spec/index.js';
import { updateWord } from './config-access.js';
import type { InterruptAllocator } from './msix.js';
import type { ConfigWindow } from './pci-device.js';

/** What the routing needs to know of a function. */
interface Placed {
  readonly devfn: number;
  readonly upstream?: Placed | undefined;
}

export interface IntxInterruptOptions extends Placed {
  readonly name: string;
  readonly config: ConfigWindow;
  readonly interrupts: InterruptAllocator;
  /** A virtual function has no pin. */
  readonly virtual: boolean;
}

export class IntxInterrupt {
  /** 1 is INTA#, 0 none. */
  readonly pin: number;
  /** The interrupt controller's input; undefined without pin or without lines. */
  readonly line: number | undefined;
  private readonly name: string;
  private readonly config: ConfigWindow;
  private readonly interrupts: InterruptAllocator;
  /** Counted `disableLine`s that are this function's. */
  private disables = 0;
  private action: LineAction | undefined;
  private maskable: boolean | undefined;

  constructor(options: IntxInterruptOptions) {
    this.name = options.name;
    this.config = options.config;
    this.interrupts = options.interrupts;
    const pin = options.virtual ? 0 : options.config.read(PCI_INTERRUPT_PIN, 1);
    this.pin = pin <= 4 ? pin : 0;
    if (this.pin === 0 || options.interrupts.requestLine === undefined) return;
    this.line = routeIntx(options, this.pin as IntxPin);
  }

  /** Tells whoever reads configuration space where the pin is wired to (`pci_assign_irq`). */
  writeLine(): void {
    if (this.line !== undefined) this.config.write(PCI_INTERRUPT_LINE, 1, this.line);
  }

  get requested(): boolean {
    return this.action !== undefined;
  }

  /** ENODEV no pin or no line, EINVAL requested already, EBUSY the line is not shared. */
  request(name: string, handler: () => boolean, exclusive = false): void {
    if (this.line === undefined) throw new Errno('ENODEV', `INTx: device ${this.name} has ${this.pin === 0 ? 'no interrupt pin' : 'a pin that is wired to nothing'}`);
    if (this.action !== undefined) throw new Errno('EINVAL', `INTx: device ${this.name} has a handler already`);
    this.action = this.interrupts.requestLine!(this.line, name, handler, !exclusive);
  }

  /** Takes the handler away, with the line's counted `disable`s of this function; Interrupt Disable stays as it is. */
  free(): void {
    if (this.action === undefined) return;
    const { action } = this;
    this.action = undefined;
    this.interrupts.freeLine!(action);
    while (this.disables > 0) this.enableLine();
  }

  /** Interrupt Disable, inverted. */
  set(enable: boolean): void {
    const command = this.config.read(PCI_COMMAND, 2);
    if ((command & PCI_COMMAND_INTX_DISABLE) === (enable ? 0 : PCI_COMMAND_INTX_DISABLE)) return;
    updateWord(this.config, PCI_COMMAND, enable ? PCI_COMMAND_INTX_DISABLE : 0, enable ? 0 : PCI_COMMAND_INTX_DISABLE);
  }

  /** Tries once whether Interrupt Disable can be toggled, as the kernel does when it finds a function. */
  get maskSupported(): boolean {
    if (this.maskable === undefined) {
      const command = this.config.read(PCI_COMMAND, 2);
      this.config.write(PCI_COMMAND, 2, command ^ PCI_COMMAND_INTX_DISABLE);
      this.maskable = ((command ^ this.config.read(PCI_COMMAND, 2)) & PCI_COMMAND_INTX_DISABLE) !== 0;
      this.config.write(PCI_COMMAND, 2, command);
    }
    return this.maskable;
  }

  checkAndMask(): boolean {
    return this.checkAndSet(true);
  }

  checkAndUnmask(): boolean {
    return this.checkAndSet(false);
  }

  /** The line for everybody who shares it; counted. */
  disableLine(): void {
    if (this.line === undefined) return;
    this.disables++;
    this.interrupts.disableLine!(this.line);
  }

  enableLine(): void {
    if (this.line === undefined || this.disables === 0) return;
    this.disables--;
    this.interrupts.enableLine!(this.line);
  }

  /** Command and status in one read, so that the answer fits the state that is changed. */
  private checkAndSet(mask: boolean): boolean {
    const word = this.config.read(PCI_COMMAND, 4);
    const pending = ((word >>> 16) & PCI_STATUS_INTERRUPT) !== 0;
    if (word === 0xffff_ffff || pending !== mask) return false;
    this.set(!mask);
    return true;
  }
}

/** Up through the bridges to the root bus (`pci_common_swizzle`). */
function routeIntx(device: Placed, pin: IntxPin): number {
  let at = device, name = pin;
  for (; at.upstream !== undefined; at = at.upstream) name = swizzleIntx(deviceOf(at.devfn), name);
  return rootIntxLine(deviceOf(at.devfn), name);
}
