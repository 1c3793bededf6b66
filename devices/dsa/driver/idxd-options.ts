/** How an administrator sets up an accelerator (what accel-config writes to sysfs), and what the driver needs around it. */
import type { Clock } from '../../../sim/clock.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { Scheduler, Steps } from '../../../sim/task.js';
import type { Device } from '../../../host/device.js';
import type { KernelLog } from '../../../host/kernel-log.js';
import type { AddressSpace } from '../../../host/mm/address-space.js';
import type { Timing } from '../../../host/timing.js';
import type { IdxdDevice } from './idxd-device.js';

export type WqMode = 'dedicated' | 'shared';
/** `mdev`: configured here, run by whoever makes mediated devices of it (IdxdMdevHooks). */
export type WqType = 'user' | 'kernel' | 'mdev';

/** On a device that cannot be configured only `name` and `type` count. */
export interface IdxdWqOptions {
  readonly name: string;
  readonly mode: WqMode;
  readonly type: WqType;
  readonly size: number;
  /** Of a shared queue: entries that its limited portal may fill; the size by default. */
  readonly threshold?: number;
  /** 1..15, default 10. */
  readonly priority?: number;
  /** Default 0. */
  readonly group?: number;
  readonly blockOnFault?: boolean;
  /** Bytes, a power of two; default 2 MiB. */
  readonly maxTransfer?: number;
  /** Descriptors, a power of two; default 32. */
  readonly maxBatch?: number;
}

/** What to do with a PASID when its process dies before the queue is closed (M1–M5); `none`: nothing, v5.8 (M6). */
export type MmExitPolicy = 'none' | 'drain' | 'abort';

export interface IdxdOptions {
  readonly wqs: readonly IdxdWqOptions[];
  /** Group of each engine, in order; without it engines are dealt out to the groups that queues name. */
  readonly engines?: readonly number[];
  readonly mmExit?: MmExitPolicy;
  /**
   * What the kernel enqueues to a shared queue of type `kernel` as its PASID; without it such a queue is refused. A device that
   * cannot be configured is a virtual one: there the default is 0, which the virtual processor translates.
   */
  readonly kernelPasid?: number;
  /** Most mediated devices on shared queues, each of which takes an interrupt vector; default: as many as there are vectors. */
  readonly mdevSlots?: number;
}

/** Stops the device's use of a PASID whose address space dies (M1). */
export type PasidExit = (device: Device, pasid: number, drvdata: unknown) => Steps<number>;

/** What the driver uses of the IOMMU core. */
export interface IdxdIommu {
  devHasFeature(device: Device, feature: 'SVA' | 'IOPF'): boolean;
  devEnableFeature(device: Device, feature: 'SVA' | 'IOPF'): Steps;
  devDisableFeature(device: Device, feature: 'SVA' | 'IOPF'): Steps;
  devFeatureEnabled(device: Device, feature: 'SVA' | 'IOPF'): boolean;
  svaBind(device: Device, mm: AddressSpace, mmExit?: PasidExit, drvdata?: unknown): Steps<number>;
  svaUnbind(device: Device, pasid: number): Steps;
  readonly dma: IdxdDma;
}

export interface IdxdDma {
  dmaSetMask(device: Device, bits: number): void;
  dmaMap(device: Device, physical: number, sizeBytes: number, direction: 'to-device' | 'from-device' | 'bidirectional'): Steps<number>;
  dmaUnmap(device: Device, address: number, sizeBytes: number): Steps;
  dmaAllocCoherent(device: Device, sizeBytes: number): Steps<DmaMemory>;
  dmaFreeCoherent(device: Device, memory: DmaMemory): Steps;
}

/** Memory that CPU and device share: the device's address and the physical one. */
export interface DmaMemory {
  readonly address: number;
  readonly physical: number;
  readonly sizeBytes: number;
}

/** What makes mediated devices of queues of type `mdev`; devices/dsa/parent/ implements it. */
export interface IdxdMdevHooks {
  /** Before queues are enabled. False, with the reason in the log: the device gets no mediated devices. */
  prepare(device: IdxdDevice): Steps<boolean>;
  /** Types appear. */
  register(device: IdxdDevice): Steps;
  /** Every mediated device goes, then its types; undoes `prepare` too. */
  unregister(device: IdxdDevice): Steps;
  /** The device halted or was pulled out: nothing reaches it any more. */
  lost(device: IdxdDevice): void;
}

export interface IdxdServices {
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly timing: Timing;
  readonly log: KernelLog;
  readonly iommu: IdxdIommu;
  /** The kernel's view of memory, for completion records of kernel queues. */
  readonly memory: PhysicalMemory;
  /** Without it queues of type `mdev` are configured and nobody offers them. */
  readonly mdev?: IdxdMdevHooks;
  /** `idxd.exit-without-abort`, `idxd.unpin-before-completion` */
  readonly defects?: ReadonlySet<string>;
}

/** A software error as the driver read it from SWERROR. */
export interface SoftwareError {
  readonly error: number;
  /** Undefined when the error names no queue. */
  readonly wq: string | undefined;
  readonly operation: number;
  readonly pasid: number;
  readonly faultAddress: bigint;
  readonly overflow: boolean;
  readonly raw: readonly bigint[];
}

export const DEFAULT_WQ = { priority: 10, maxTransfer: 2 ** 21, maxBatch: 32 } as const;
