/**
 * A PCI function as the kernel sees it: everything goes through config space bytes and mapped BARs. Errnos as in
 * drivers/pci/ats.c and drivers/pci/msi (requirements A8, section 3.4, E36–E38).
 */
import type { Mmio } from '../../../sim/mmio.js';
import type { Steps } from '../../../sim/task.js';
import type { Device } from '../../device.js';

export const PASID_EXEC = 2;
export const PASID_PRIV = 4;

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
  /** Enables `count` MSI-X vectors (ENOSPC) and registers a handler for each. */
  allocIrqs(name: string, handlers: readonly (() => void)[]): void;
  freeIrqs(): void;
  /** Function-level reset, then what the kernel restores afterwards. ENOTTY when not supported. */
  reset(): Steps;
}
