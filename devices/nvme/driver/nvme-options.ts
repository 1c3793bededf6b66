/** What the driver needs around it, and how it is set up. */
import type { Clock } from '../../../sim/clock.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { Scheduler, Steps } from '../../../sim/task.js';
import type { Device } from '../../../host/device.js';
import type { KernelLog } from '../../../host/kernel-log.js';
import type { CoherentMemory, DmaDirection, DmaSegment, ScatterEntry } from '../../../iommu/core/dma-api.js';

/** What the driver uses of the DMA API. */
export interface NvmeDma {
  dmaSetMask(device: Device, bits: number): void;
  dmaMapSg(device: Device, list: readonly ScatterEntry[], direction: DmaDirection): Steps<DmaSegment[]>;
  dmaUnmapSg(device: Device, segments: readonly DmaSegment[]): Steps;
  dmaAllocCoherent(device: Device, sizeBytes: number): Steps<CoherentMemory>;
  dmaFreeCoherent(device: Device, memory: CoherentMemory): Steps;
}

export interface NvmeServices {
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly log: KernelLog;
  readonly dma: NvmeDma;
  /** The kernel's view of memory: queues and lists of pages lie there. */
  readonly memory: PhysicalMemory;
  /** Most I/O queue pairs; as many as the controller has by default. */
  readonly ioQueues?: number;
  /** Entries of an I/O queue; 64 by default, at most what the controller has. */
  readonly queueDepth?: number;
  /** `nvme_core.io_timeout`, 30 s. */
  readonly ioTimeoutNs?: number;
  /** Does without messages, as a kernel booted with `pci=nomsi`. */
  readonly intxOnly?: boolean;
  /** `nvme-driver.unmap-before-completion`: buffers are unmapped and unpinned while the controller works on them. */
  readonly defects?: ReadonlySet<string>;
}

export type { CoherentMemory, DmaSegment, ScatterEntry } from '../../../iommu/core/dma-api.js';

/** `NVME_AQ_DEPTH` */
export const ADMIN_DEPTH = 32;
export const DEFAULT_QUEUE_DEPTH = 64;
export const ADMIN_TIMEOUT_NS = 60_000_000_000;
export const IO_TIMEOUT_NS = 30_000_000_000;
/** `nvme_max_retries` */
export const MAX_RETRIES = 5;
/** Largest transfer of one command, whatever the controller takes (a list of pages in one page). */
export const MAX_TRANSFER = 2 ** 20;
