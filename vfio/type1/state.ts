/** What the parts of one container share, and what containers share with each other. */
import { hexPage } from '../../sim/address.js';
import { Mutex, type Scheduler, type Steps } from '../../sim/task.js';
import type { Clock } from '../../sim/clock.js';
import type { Trace } from '../../sim/trace.js';
import type { Device } from '../../host/device.js';
import type { FrameAllocator } from '../../host/frames.js';
import type { KernelLog } from '../../host/kernel-log.js';
import type { Mm } from '../../host/mm/mm.js';
import type { Process } from '../../host/process.js';
import type { IommuCore } from '../../iommu/core/core.js';
import type { IommuDomain, IommuOps } from '../../iommu/core/ops.js';
import type { IommuGroup } from '../../iommu/core/records.js';
import type { DmaUnmapNotifier } from '../device.js';
import type { ContainerGroup } from '../iommu-driver.js';
import { DmaList } from './dma-list.js';
import type { PageRange } from './iova-ranges.js';
import type { Type1Trace } from './trace-kinds.js';

export interface Type1Options {
  /** Attach devices although their interrupts are not remapped (E33). Default false. */
  readonly allowUnsafeInterrupts?: boolean;
  /** Mappings that a container may have. Default 65535. */
  readonly dmaEntryLimit?: number;
  /** Map page by page, so that no domain gets a leaf above 4 KiB. Default false. */
  readonly disableHugepages?: boolean;
  /** Tells this kernel's devices from another kernel's in the trace. Empty for the host. */
  readonly scope?: string;
}

export interface Type1Parts {
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly core: IommuCore;
  readonly frames: FrameAllocator;
  readonly log: KernelLog;
  readonly trace?: Trace | undefined;
  /** Interrupts of the device are remapped. Default: no device's. */
  readonly interruptRemapping?: (device: Device) => boolean;
  /** Finds a process that BIND names by pid. Default: there is none. */
  readonly processes?: (pid: number) => Process | undefined;
  /** ptrace permission (V1). Default: only over itself. */
  readonly mayAttach?: (caller: Process, target: Process) => boolean;
  /** CAP_IPC_LOCK. Default: nobody has it. */
  readonly mayPassMemlock?: (caller: Process) => boolean;
  readonly options?: Type1Options;
  /** `vfio.skip-unpin`, `vfio.unpin-before-flush`, `vfio.skip-replay-rollback`, `vfio.wrong-rlimit`, `vfio.skip-dma-unmap-notify` */
  readonly defects?: ReadonlySet<string>;
}

/** What went on in all containers since the start. */
export interface Type1Counters {
  maps: number;
  unmaps: number;
  /** Broken rules of vendors' drivers. */
  violations: number;
}

export interface Type1Context {
  readonly parts: Type1Parts;
  readonly core: IommuCore;
  readonly trace: Type1Trace | undefined;
  readonly counters: Type1Counters;
  /** Kernel memory in bitmaps of dirty pages, of all containers. */
  readonly bitmaps: { bytes: number };
  readonly allowUnsafeInterrupts: boolean;
  readonly dmaEntryLimit: number;
  /** Frames that one mapping of a domain may cover. */
  readonly longestRun: number;
  readonly skipUnpin: boolean;
  readonly unpinBeforeFlush: boolean;
  readonly skipReplayRollback: boolean;
  readonly wrongRlimit: boolean;
  readonly skipNotify: boolean;
}

/** How a group's requests are translated: by a domain for all requests of the group; by an aux domain of the parent; by a domain for all of the parent's requests; not at all. */
export type Backing = 'group' | 'aux' | 'parent' | 'external';

/** A group in a container (`struct vfio_group` of type1). */
export interface AttachedGroup {
  readonly group: ContainerGroup;
  readonly backing: Backing;
  /** The core's group that the domain takes as a whole; undefined for aux and external. */
  readonly iommuGroup: IommuGroup | undefined;
  /** Parents that carry the requests of mediated devices, one for each of them. */
  readonly parents: readonly { readonly device: Device; readonly parent: Device }[];
  /** This container took the DMA of the group: it gives it back. */
  claimed: boolean;
  /** Requester devices whose requests reach the container's mappings now. */
  requesters: readonly { readonly device: Device; readonly pasid: number }[];
  /** Its device dirties only pages that its driver pinned. */
  pinnedPageDirtyScope: boolean;
  /** Features that were switched on for binds (V1), to be switched off. */
  readonly svaFeatures: { readonly device: Device; readonly feature: 'IOPF' | 'SVA' }[];
  /** Devices are ready for binds. */
  svaEnabled: boolean;
}

/** A domain with an IOMMU behind it, and its groups (`struct vfio_domain`). */
export interface ContainerDomain {
  readonly domain: IommuDomain;
  readonly ops: IommuOps;
  readonly groups: AttachedGroup[];
}

/** An address space that is bound to every device of the container (V1). */
export interface BoundProcess {
  readonly mm: Mm;
  pasid: number;
  readonly exit: (device: Device, pasid: number) => Steps<number>;
}

export class ContainerState {
  readonly number: number;
  readonly context: Type1Context;
  readonly v2: boolean;
  readonly nesting: boolean;
  /** Guards everything below; held while pages are pinned and invalidations are waited for. */
  readonly lock: Mutex;
  readonly mappings = new DmaList();
  readonly domains: ContainerDomain[] = [];
  readonly external: AttachedGroup[] = [];
  /** Vendors' drivers, in the order in which they came. */
  readonly notifiers = new Map<Device, DmaUnmapNotifier>();
  readonly binds: BoundProcess[] = [];
  /** Empty without a domain: everything may be recorded. */
  validIova: readonly PageRange[] = [];
  dmaAvailable: number;
  dirtyTracking = false;

  constructor(context: Type1Context, number: number, type: { readonly v2: boolean; readonly nesting: boolean }) {
    this.context = context;
    this.number = number;
    this.v2 = type.v2;
    this.nesting = type.nesting;
    this.lock = new Mutex(context.parts.scheduler, `vfio_iommu ${number}`);
    this.dmaAvailable = context.dmaEntryLimit;
  }

  get name(): string {
    return `container ${this.number}`;
  }

  /** Every group, those with an IOMMU first. */
  *groups(): Generator<AttachedGroup> {
    for (const domain of this.domains) yield* domain.groups;
    yield* this.external;
  }

  find(group: ContainerGroup): AttachedGroup | undefined {
    for (const attached of this.groups()) if (attached.group.id === group.id) return attached;
    return undefined;
  }

  /** Every group dirties only what its driver pinned (`pinned_page_dirty_scope`). */
  get pinnedPageDirtyScope(): boolean {
    for (const attached of this.groups()) if (!attached.pinnedPageDirtyScope) return false;
    return true;
  }

  /** Somebody broke a rule of the interface: the kernel goes on, but the run has failed. */
  violation(what: string, page: number): void {
    const { parts, trace, counters } = this.context;
    counters.violations++;
    parts.log.limited(`vfio_iommu_type1 ${this.name}`, 'warn', `vfio_iommu_type1: ${this.name}: ${what} (iova ${hexPage(page)})`);
    trace?.trace.record(trace.violation, 0, this.number, trace.trace.intern(what), page);
  }
}
