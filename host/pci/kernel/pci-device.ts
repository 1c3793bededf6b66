/**
 * A PCI function as the kernel sees it: everything goes through config space bytes and mapped BARs. Errnos as in
 * drivers/pci/ats.c and drivers/pci/msi (requirements A8, section 3.4, E36–E38).
 */
import type { Mmio } from '../../../sim/mmio.js';
import type { Steps } from '../../../sim/task.js';
import type { Device } from '../../device.js';

export const PASID_EXEC = 2;
export const PASID_PRIV = 4;

/** Function level reset; secondary bus reset, where the function is alone on its bus. */
export type PciResetMethod = 'flr' | 'bus';

export interface ConfigWindow {
  /** All ones from a function that is absent. */
  read(offset: number, size: 1 | 2 | 4): number;
  write(offset: number, size: 1 | 2 | 4, value: number): void;
}

export interface PciDevice extends Device {
  readonly segment: number;
  readonly bus: number;
  /** device << 3 | function */
  readonly devfn: number;
  /** bus << 8 | devfn */
  readonly sourceId: number;
  readonly vendorId: number;
  readonly deviceId: number;
  readonly classCode: number;
  readonly config: ConfigWindow;
  /** Physical function of a VF. */
  readonly physfn: PciDevice | undefined;
  /** The bridge above; undefined on a root bus. */
  readonly upstream?: PciDevice | undefined;
  /** False once the function was removed from under the kernel. */
  readonly present: boolean;

  findCapability(id: number): number | undefined;
  findExtCapability(id: number): number | undefined;

  readonly pasidSupported: boolean;
  readonly pasidEnabled: boolean;
  /** Execute and privileged support, PASID_EXEC | PASID_PRIV. */
  readonly pasidFeatures: number;
  /** 2^width; EINVAL without the capability. */
  maxPasids(): number;
  /** EBUSY enabled already or ATS on, EINVAL no end-to-end TLP prefix path, no capability, feature missing. */
  enablePasid(features: number): void;
  disablePasid(): void;

  readonly atsSupported: boolean;
  readonly atsEnabled: boolean;
  /** Invalidate queue depth, 1..32; 0 for a VF (it shares the PF's). */
  readonly atsQueueDepth: number;
  /** @param pageShift smallest translation unit, at least 12. EINVAL, EBUSY (A8, E36). */
  enableAts(pageShift: number): void;
  disableAts(): void;

  readonly priSupported: boolean;
  readonly priEnabled: boolean;
  /** PRG Response PASID Required. */
  readonly prgResponsePasidRequired: boolean;
  /** EBUSY enabled already or not stopped; EINVAL no capability, or a VF whose PF has it off. */
  enablePri(maxRequests: number): void;
  disablePri(): void;
  /** EBUSY while enabled. */
  resetPri(): void;

  /** The DVSEC that announces scalable I/O virtualization is there. */
  readonly siov: boolean;

  setMaster(on: boolean): void;
  /** The register window of a BAR. EINVAL when the BAR is not implemented or not assigned. */
  ioremap(bar: number): Mmio;
  /** Physical address and size of a BAR, as assigned by enumeration. */
  resource(bar: number): { readonly start: number; readonly sizeBytes: number } | undefined;
  /** Vectors in the MSI-X table; 0 without the capability. */
  readonly msixVectors: number;
  /** MSI vectors the function can use (Multiple Message Capable); 0 without the capability. */
  readonly msiVectors: number;
  /**
   * One message-signalled vector for each handler, MSI-X where the function has it, else MSI. ENOSPC more than there
   * are, EINVAL none asked for, neither capability, or interrupts are allocated already.
   */
  allocIrqs(name: string, handlers: readonly (() => void)[]): void;
  /** The same with MSI, also when there is MSI-X. */
  allocMsi(name: string, handlers: readonly (() => void)[]): void;
  /** Gives back what `allocIrqs` or `allocMsi` gave. Nothing when there is nothing. */
  freeIrqs(): void;

  /** PCI_INTERRUPT_PIN: 1 is INTA#, 0 no legacy interrupt. */
  readonly interruptPin: number;
  /**
   * Registers for the function's level-triggered line; Interrupt Disable stays as it is. The handler says whether it
   * was its device's interrupt; it is called again as long as the line is high and not disabled.
   * ENODEV no pin or no line, EINVAL requested already, EBUSY the line has somebody who does not share it (or whom
   * `exclusive` would not share it with).
   */
  requestIntx(name: string, handler: () => boolean, options?: { readonly exclusive?: boolean }): void;
  /** Takes the handler and this function's `disableIntxLine`s back. Nothing when there is no handler. */
  freeIntx(): void;
  /** Clears or sets Interrupt Disable in the command register (`pci_intx`). */
  intx(enable: boolean): void;
  /** Interrupt Disable can be set and cleared (`pci_intx_mask_supported`). */
  readonly intxMaskSupported: boolean;
  /** Masks and says true when the function's interrupt is pending; else nothing and false (`pci_check_and_mask_intx`). */
  checkAndMaskIntx(): boolean;
  /** Unmasks and says true when nothing is pending; else it stays masked and false (`pci_check_and_unmask_intx`). */
  checkAndUnmaskIntx(): boolean;
  /** The line as a whole, for functions that cannot mask: `disable_irq_nosync` and `enable_irq`, counted. */
  disableIntxLine(): void;
  enableIntxLine(): void;

  /** Ways to reset this function alone, best first. */
  readonly resetMethods: readonly PciResetMethod[];
  /** Resets by the first of `resetMethods`, then what the kernel restores afterwards. ENOTTY when there is none. */
  reset(): Steps;
}
