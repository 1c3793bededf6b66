/** What travels on the wires of a machine, as code outside sees it: names, bigint addresses, rights as words. */
import type { InterruptMessage } from '../../host/interrupts.js';
import { ACCESS_EXECUTE, ACCESS_PRIVILEGED, ACCESS_READ, ACCESS_WRITE, NO_PASID } from '../../host/pci/dma-port.js';
import { FAULT_PAGE_REQ, FAULT_REASON, type FaultReport, type PageResponse, type PageResponseCode } from '../../iommu/core/ops.js';
import { toAddress } from '../../sim/address.js';

interface FaultCommon {
  readonly timeNs: number;
  /** Shared by the records of one fault; also `id` in the trace. */
  readonly correlation: number;
  /** Name of the topology, or BDF. */
  readonly device: string;
  /** Undefined without one. */
  readonly pasid: number | undefined;
  readonly address: bigint;
  readonly read: boolean;
  readonly write: boolean;
  readonly execute: boolean;
  readonly privileged: boolean;
}

export interface PageRequestRecord extends FaultCommon {
  readonly kind: 'page-request';
  readonly prgIndex: number;
  /** Ends its group: the group is answered. */
  readonly last: boolean;
}

export interface UnrecoverableFaultRecord extends FaultCommon {
  readonly kind: 'unrecoverable';
  readonly reason: keyof typeof FAULT_REASON;
  /** The architecture's own code and words. */
  readonly detail: string;
}

export type FaultRecord = PageRequestRecord | UnrecoverableFaultRecord;

export interface PageResponseRecord {
  readonly timeNs: number;
  readonly correlation: number;
  readonly device: string;
  readonly pasid: number | undefined;
  readonly prgIndex: number;
  readonly code: PageResponseCode;
}

export interface InterruptRecord {
  readonly timeNs: number;
  readonly address: bigint;
  readonly data: number;
  readonly vector: number;
  /** Requester id of the sender. */
  readonly sourceId: number;
}

export function faultRecord({ timeNs, correlation, fault }: FaultReport, device: string): FaultRecord {
  const common: FaultCommon = {
    timeNs, correlation, device, pasid: pasidOf(fault.pasid), address: toAddress(fault.page, fault.type === FAULT_PAGE_REQ ? 0 : fault.offset),
    read: (fault.access & ACCESS_READ) !== 0, write: (fault.access & ACCESS_WRITE) !== 0,
    execute: (fault.access & ACCESS_EXECUTE) !== 0, privileged: (fault.access & ACCESS_PRIVILEGED) !== 0,
  };
  if (fault.type === FAULT_PAGE_REQ) return { kind: 'page-request', ...common, prgIndex: fault.prgIndex, last: fault.last };
  const [reason] = Object.entries(FAULT_REASON).find(([, code]) => code === fault.reason)!;
  return { kind: 'unrecoverable', ...common, reason: reason as keyof typeof FAULT_REASON, detail: fault.detail };
}

export function responseRecord({ timeNs, correlation, code, request }: PageResponse, device: string): PageResponseRecord {
  return { timeNs, correlation, device, pasid: pasidOf(request.pasid), prgIndex: request.prgIndex, code };
}

export function interruptRecord({ timeNs, address, data, vector, sourceId }: InterruptMessage): InterruptRecord {
  return { timeNs, address: BigInt(address), data, vector, sourceId };
}

function pasidOf(pasid: number): number | undefined {
  return pasid === NO_PASID ? undefined : pasid;
}
