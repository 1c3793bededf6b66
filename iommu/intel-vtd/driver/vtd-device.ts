/** What the driver knows of a function behind a unit (`struct device_domain_info`). */
import { Errno } from '../../../sim/errno.js';
import type { Device } from '../../../host/device.js';
import type { PciDevice } from '../../../host/pci/kernel/pci-device.js';
import type { DeviceTlb } from './descriptor-batch.js';
import type { VtdDomain } from './domain.js';
import type { PasidTable } from './pasid-table.js';
import type { RemappingUnit } from './remapping-unit.js';

export class VtdDevice {
  readonly device: PciDevice;
  readonly unit: RemappingUnit;
  readonly nameId: number;
  /** PASIDs that function and unit have in common, 0 without. */
  readonly maxPasids: number;
  readonly atsSupported: boolean;
  readonly priSupported: boolean;
  readonly tlb: DeviceTlb;
  pasidEnabled = false;
  atsEnabled = false;
  priEnabled = false;
  svaEnabled = false;
  auxEnabled = false;
  /** Scalable mode, from the first attach on. */
  pasidTable: PasidTable | undefined;
  /** What translates requests without PASID; undefined: blocked. */
  domain: VtdDomain | undefined;
  /** PASIDs of processes, present or silenced. */
  readonly sva = new Set<number>();
  readonly aux = new Set<VtdDomain>();

  constructor(options: {
    device: PciDevice; unit: RemappingUnit; nameId: number; maxPasids: number; atsSupported: boolean; priSupported: boolean;
  }) {
    this.device = options.device;
    this.unit = options.unit;
    this.nameId = options.nameId;
    this.maxPasids = options.maxPasids;
    this.atsSupported = options.atsSupported;
    this.priSupported = options.priSupported;
    // without throttling (ECAP.DIT) the PF's id is reserved, and the depth tells nothing beyond 32
    this.tlb = { sourceId: options.device.sourceId, queueDepth: options.atsSupported ? options.device.atsQueueDepth : 0, pfSourceId: 0 };
  }

  get sourceId(): number {
    return this.device.sourceId;
  }

  /** Somebody can answer device-TLB invalidations. */
  get hasDeviceTlb(): boolean {
    return this.atsEnabled && this.device.present;
  }

  /** The table that the context entry points to. */
  requirePasidTable(): PasidTable {
    if (this.pasidTable === undefined) throw new Errno('ENODEV', `${this.device.name} has no PASID table: ${this.unit.name} is in legacy mode`);
    return this.pasidTable;
  }
}

/** The device as a PCI function; undefined for anything else (a mediated device). */
export function asPci(device: Device): PciDevice | undefined {
  return 'sourceId' in device && 'devfn' in device ? (device as PciDevice) : undefined;
}
