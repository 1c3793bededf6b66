/**
 * The joint between the kernel's IOMMU core and an architecture's driver (`struct iommu_ops`), and the records that
 * travel on it. Numbers in brackets are requirements; record bits follow include/uapi/linux/iommu.h (v5.10).
 */
import type { Channel } from '../../sim/channel.js';
import type { Steps } from '../../sim/task.js';
import type { Device } from '../../host/device.js';
import type { AddressSpace } from '../../host/mm/address-space.js';

/** Device features (F5). `IOPF` is switched on before `SVA` and off after it. */
export type DeviceFeature = 'AUX' | 'SVA' | 'IOPF';

export type DomainType = 'blocked' | 'identity' | 'dma' | 'unmanaged' | 'sva';

/** Protection of a mapping, or-ed. */
export const PROT_READ = 1;
export const PROT_WRITE = 2;

/** A translation context without a process: page tables that the kernel fills. Pages are 4 KiB units. */
export interface IommuDomain {
  readonly id: number;
  readonly type: DomainType;
  /** First page number that cannot be mapped. */
  readonly endPage: number;
  /** Supported leaf sizes in 4 KiB pages, ascending: 1, 512, 262144. */
  readonly pageSizes: readonly number[];
  /** Maps [page, page + pages) to physical memory from `physical` on. EEXIST overlap, ERANGE beyond the aperture, EINVAL misaligned; nothing is mapped on failure. */
  map(page: number, physical: number, pages: number, prot: number): void;
  /** Clears entries; returns the pages that were mapped (a larger leaf is removed whole). The caller flushes before it frees anything. */
  unmap(page: number, pages: number): number;
  /** Physical address of a byte of the page, undefined when not mapped. */
  iovaToPhys(page: number, offset: number): number | undefined;
}

/** Fault types (R5). */
export const FAULT_DMA_UNRECOV = 1;
export const FAULT_PAGE_REQ = 2;

/** Reasons of unrecoverable faults (R6). */
export const FAULT_REASON = {
  UNKNOWN: 0, PASID_FETCH: 1, BAD_PASID_ENTRY: 2, PASID_INVALID: 3, WALK_EABT: 4, PTE_FETCH: 5, PERMISSION: 6, ACCESS: 7, OOR_ADDRESS: 8,
} as const;
export type FaultReason = (typeof FAULT_REASON)[keyof typeof FAULT_REASON];

export interface UnrecoverableFault {
  readonly type: typeof FAULT_DMA_UNRECOV;
  readonly reason: FaultReason;
  /** NO_PASID without one. */
  readonly pasid: number;
  /** ACCESS_* bits. */
  readonly access: number;
  readonly page: number;
  readonly offset: number;
  /** The architecture's own code and its sentence, for messages. */
  readonly detail: string;
}

export interface PageRequest {
  readonly type: typeof FAULT_PAGE_REQ;
  /** NO_PASID without one. */
  readonly pasid: number;
  readonly prgIndex: number;
  readonly last: boolean;
  /** ACCESS_* bits. */
  readonly access: number;
  readonly page: number;
  /** The response must carry the PASID (RESPONSE_NEEDS_PASID). */
  readonly responseNeedsPasid: boolean;
  /** Owned by the architecture: whatever it needs to answer (a PRG index, a stall tag, a PPR tag). */
  readonly token: unknown;
}

/** What happened at a device, decoded from the hardware's bytes by the driver. Travels on `IommuOps.faults`. */
export interface FaultReport {
  readonly timeNs: number;
  readonly correlation: number;
  readonly device: Device;
  readonly fault: UnrecoverableFault | PageRequest;
}

/** Generic response codes (R8): converted explicitly to each architecture's wire code. */
export type PageResponseCode = 'SUCCESS' | 'INVALID' | 'FAILURE';

/** The answer to one page request group. Travels on the core's `responses`. */
export interface PageResponse {
  readonly timeNs: number;
  readonly correlation: number;
  readonly device: Device;
  readonly code: PageResponseCode;
  /** The last request of the group, with its token. */
  readonly request: PageRequest;
}

/** What an architecture's driver finds out about a device when the core probes it. */
export interface ProbedDevice {
  /** PASIDs the device and its IOMMU have in common, 0 without PASID support. Valid PASIDs are 1 .. maxPasids - 1. */
  readonly maxPasids: number;
  /** Address ranges the IOMMU never translates, as [firstPage, endPage). */
  readonly reserved: readonly { readonly firstPage: number; readonly endPage: number; readonly name: string }[];
}

/**
 * An IOMMU driver. Calls that submit invalidations may sleep. Every refused call leaves the state unchanged.
 * The core serializes calls for one group; the driver need not. Exceptions are `flush` and `svaInvalidate`, which may
 * come at any time: they run under an mm's lock or without any, because a call that holds a group may wait for a
 * fault worker that waits for that mm.
 */
export interface IommuOps {
  readonly name: string;
  /** Stands for the absence of an IOMMU. */
  readonly direct?: true;
  /** Decoded fault reports, one channel per driver. */
  readonly faults: Channel<FaultReport>;

  /** ENODEV when none of this driver's units translates the device. */
  probe(device: Device): ProbedDevice;
  /**
   * The device is gone or leaves: its context is torn down with every PASID entry it still has (no `svaDetach` comes
   * for those), whatever is outstanding is dropped.
   */
  release(device: Device): Steps;

  hasFeature(device: Device, feature: DeviceFeature): boolean;
  enableFeature(device: Device, feature: DeviceFeature): Steps;
  disableFeature(device: Device, feature: DeviceFeature): Steps;
  featureEnabled(device: Device, feature: DeviceFeature): boolean;

  /** The device's IOMMU can translate a guest's tables through an unmanaged domain (DOMAIN_ATTR_NESTING). Without it: no. */
  canNest?(device: Device): boolean;
  domainAlloc(type: DomainType): IommuDomain;
  domainFree(domain: IommuDomain): void;
  /** The domain translates the device's requests without PASID; replaces what was attached. */
  attach(domain: IommuDomain, device: Device): Steps;
  /** Back to blocked. */
  detach(domain: IommuDomain, device: Device): Steps;
  /** Invalidates [page, page + pages) of the domain wherever it is attached, device TLBs included; after it, nobody uses the old entries. */
  flush(domain: IommuDomain, page: number, pages: number): Steps;

  /** Aux domains (X1, X2): the domain translates the device's requests with the domain's own default PASID. */
  auxAttach(domain: IommuDomain, device: Device): Steps;
  auxDetach(domain: IommuDomain, device: Device): Steps;
  /** EINVAL when the domain has none. */
  auxGetPasid(domain: IommuDomain, device: Device): number;

  /** Installs the mm's page table under `pasid` for one device. ENODEV, EINVAL, ENOSPC, EBUSY as the vendor does. */
  svaAttach(device: Device, mm: AddressSpace, pasid: number): Steps;
  /**
   * The mm is going away but the device may go on (M6): translations of `pasid` end silently (ATS answered R=W=0,
   * page requests answered Invalid, nothing logged), and caches are invalidated.
   */
  svaSilence(device: Device, pasid: number): Steps;
  /** Removes the entry, invalidates, and drains page requests in hardware and software queues (flow 2b); afterwards no record of (device, pasid) is pending. */
  svaDetach(device: Device, pasid: number): Steps;
  /** Byte range [start, end) of the mm changed: IOTLB and device TLBs of these devices forget it. */
  svaInvalidate(devices: readonly Device[], pasid: number, start: number, end: number): Steps;
  /** EINVAL or EBUSY when the mm's tables have a format this IOMMU cannot walk (U7). */
  svaCheckFormat(device: Device, mm: AddressSpace): void;

  /** Sends the answer of a group to the hardware. Called from the core's response channel; must not sleep: it queues. */
  pageResponse(response: PageResponse): void;
  /** Waits until no page request of a device whose DMA has stopped, nor the answer to one, is under way (2g). */
  drainPageRequests?(device: Device): Steps;
}

/** The software page-request queue of one IOMMU unit (P1–P9), made by the core for a driver. */
export interface IopfQueue {
  readonly name: string;
  /** EBUSY when the device is already on a queue (P8). */
  addDevice(device: Device): void;
  /** Answers INVALID to all that is outstanding for the device, drops its partial requests (P8, section 0). */
  removeDevice(device: Device): void;
  /** Waits until every group of the queue that was outstanding has been answered (P6). ENODEV when not on this queue. */
  flushDevice(device: Device): Steps;
  /** Drops the partial groups of every device on the queue, after a hardware overflow (P7). */
  discardPartial(): void;
}

/** What the core gives to drivers. */
export interface IommuCoreServices {
  createIopfQueue(name: string): IopfQueue;
  /** Global PASID space (I1–I4), for aux domains' default PASIDs. Undefined when full. */
  allocPasid(first: number, last: number, owner: string): number | undefined;
  freePasid(pasid: number): void;
}
