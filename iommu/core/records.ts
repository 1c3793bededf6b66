/**
 * What the core remembers about a device, a group, a bond and a bound address space. Plain records: the rules live
 * in the files that use them. A bond costs one object and two links, because there may be 100,000 of them.
 */
import { Errno } from '../../sim/errno.js';
import { Mutex, type Scheduler, type Steps } from '../../sim/task.js';
import type { Alarm } from '../../sim/clock.js';
import type { Device } from '../../host/device.js';
import type { AddressSpace } from '../../host/mm/address-space.js';
import type { IovaAllocator } from './iova.js';
import { PasidTable } from './pasid-table.js';
import type { FaultGroup, FaultQueue } from './io-pgfault.js';
import type { FaultReport, IommuDomain, IommuOps, ProbedDevice } from './ops.js';
import type { ErrnoName } from '../../sim/errno.js';

/**
 * A driver's callback for an mm that dies before unbind (M1–M5). It stops the device's use of the PASID and may
 * sleep. It must not unbind. Non-zero: the device may still use the PASID.
 */
export type MmExitCallback = (device: Device, pasid: number, drvdata: unknown) => Steps<number>;

/** Takes a fault, or names the error why not (ENOSPC: ring full); then the core answers the request itself (R3). */
export type DeviceFaultHandler = (report: FaultReport, data: unknown) => ErrnoName | undefined;

/** Life of a bond (7.3); a bond that does not exist is NONE. */
export type BondState = 'BINDING' | 'BOUND' | 'EXITING' | 'ZOMBIE' | 'DRAINING';

export interface Bond {
  readonly record: DeviceRecord;
  readonly bound: BoundMm;
  refs: number;
  state: BondState;
  readonly mmExit: MmExitCallback | undefined;
  readonly drvdata: unknown;
  readonly correlation: number;
  nextOfMm: Bond | undefined;
  nextOfDevice: Bond | undefined;
  previousOfDevice: Bond | undefined;
}

/** An mm with a PASID (B11). It keeps the PASID until the mm is freed. */
export interface BoundMm {
  readonly mm: AddressSpace;
  readonly pasid: number;
  firstBond: Bond | undefined;
  bonds: number;
  /** A bind succeeded once: from then on only the end of the mm returns the PASID. */
  everBound: boolean;
  /** The PASID has been returned. */
  gone: boolean;
  /** Who hears of invalidations, built on the first one after a change of bonds. */
  listeners: { readonly ops: IommuOps; readonly devices: Device[] }[] | undefined;
}

/** A page request with `last` that waits for the answer of a handler (R3). */
export interface PendingRequest {
  readonly report: FaultReport;
  readonly deadlineNs: number;
  warned: boolean;
}

export class IommuGroup {
  readonly id: number;
  readonly ops: IommuOps;
  readonly devices: DeviceRecord[] = [];
  /** Serializes what changes the group (B3). Never held while something that a fault worker needs is awaited. */
  readonly lock: Mutex;
  readonly defaultDomain: IommuDomain;
  /** What translates requests without PASID; undefined: blocked. */
  domain: IommuDomain | undefined;
  /** Who may attach domains: undefined nobody, KERNEL the drivers of its devices (C6). */
  owner: object | undefined;
  ownerCount = 0;
  readonly iova: IovaAllocator | undefined;

  constructor(id: number, ops: IommuOps, scheduler: Scheduler, defaultDomain: IommuDomain, iova: IovaAllocator | undefined) {
    this.id = id;
    this.ops = ops;
    this.lock = new Mutex(scheduler, `iommu_group ${id}`);
    this.defaultDomain = defaultDomain;
    this.iova = iova;
  }
}

export class DeviceRecord {
  readonly device: Device;
  readonly ops: IommuOps;
  readonly group: IommuGroup;
  readonly probed: ProbedDevice;
  /** Number of the device's name in the trace. */
  readonly name: number;
  removed = false;

  firstPasid = 1;
  /** Last PASID that may be bound, 0 without PASID support. */
  lastPasid: number;
  firstBond: Bond | undefined;
  bonds = 0;
  everBound = false;

  handler: DeviceFaultHandler | undefined;
  handlerData: unknown;
  readonly pending: PendingRequest[] = [];
  timer: Alarm | undefined;

  queue: FaultQueue | undefined;
  /** Requests of groups whose last one has not come, in arrival order (P2). */
  partials: FaultReport[] = [];
  /** Groups that wait for a worker or are in its hands. */
  firstGroup: FaultGroup | undefined;
  groups = 0;

  /** Highest address the device can drive, plus one. */
  dmaEnd = 0x1_0000_0000;
  /** 4 KiB pages of live DMA mappings. */
  dmaPages = 0;
  /** Aux domains attached, with a count per domain (X2). */
  aux: Map<IommuDomain, number> | undefined;

  constructor(device: Device, ops: IommuOps, group: IommuGroup, probed: ProbedDevice, name: number) {
    this.device = device;
    this.ops = ops;
    this.group = group;
    this.probed = probed;
    this.name = name;
    this.lastPasid = Math.max(0, probed.maxPasids - 1);
  }
}

/** Devices the core knows, groups by number, bound address spaces by PASID. */
export class Registry {
  readonly devices = new Map<Device, DeviceRecord>();
  readonly groups = new Map<number, IommuGroup>();
  readonly bound = new PasidTable<BoundMm>();

  /** @throws Errno ENODEV when no IOMMU driver has the device */
  recordOf(device: Device): DeviceRecord {
    const record = this.devices.get(device);
    if (record === undefined) throw new Errno('ENODEV', `${device.name} is not behind an IOMMU that has a driver`);
    return record;
  }
}

export function bondOf(bound: BoundMm, record: DeviceRecord): Bond | undefined {
  let bond = bound.firstBond;
  while (bond !== undefined && bond.record !== record) bond = bond.nextOfMm;
  return bond;
}
