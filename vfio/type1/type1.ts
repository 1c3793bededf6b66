/**
 * The type1 IOMMU driver of VFIO (drivers/vfio/vfio_iommu_type1.c, v5.10, with the bind calls proposed for it): what
 * containers on x86 map memory with. Errnos and their order as there; requirements C7–C10, V1–V3, X1, X2, Y1.
 *
 * Left out: memory that is no RAM behind a mapping (a mapped BAR), moving mappings to another process
 * (FLAG_VADDR), coherence of the caches (VFIO_DMA_CC_IOMMU answers no).
 */
import { Errno } from '../../sim/errno.js';
import type { ContainerIommuDriver } from '../iommu-driver.js';
import { VFIO_TYPE1_IOMMU, VFIO_TYPE1_NESTING_IOMMU, VFIO_TYPE1v2_IOMMU, VFIO_UNMAP_ALL } from '../uapi/index.js';
import { Type1Container } from './container.js';
import { ContainerState, type Type1Context, type Type1Counters, type Type1Parts } from './state.js';
import { Type1Trace } from './trace-kinds.js';

export type { Type1Counters, Type1Options, Type1Parts } from './state.js';

const DMA_ENTRY_LIMIT = 65_535;

/** What containers hold; all zero after the last one's end. */
export interface Type1Usage {
  readonly containers: number;
  readonly mappings: number;
  readonly domains: number;
  readonly binds: number;
}

export class Type1Driver implements ContainerIommuDriver {
  readonly name = 'vfio-iommu-type1';
  readonly counters: Type1Counters = { maps: 0, unmaps: 0, violations: 0 };
  private readonly context: Type1Context;
  private readonly live = new Set<Type1Container>();
  private last = 0;

  constructor(parts: Type1Parts) {
    const options = parts.options ?? {};
    const defects = parts.defects ?? new Set<string>();
    this.context = {
      parts, core: parts.core, trace: parts.trace === undefined ? undefined : new Type1Trace(parts.trace, options.scope ?? ''), counters: this.counters, bitmaps: { bytes: 0 },
      allowUnsafeInterrupts: options.allowUnsafeInterrupts ?? false,
      dmaEntryLimit: options.dmaEntryLimit ?? DMA_ENTRY_LIMIT,
      longestRun: options.disableHugepages === true ? 1 : Infinity,
      skipUnpin: defects.has('vfio.skip-unpin'),
      unpinBeforeFlush: defects.has('vfio.unpin-before-flush'),
      skipReplayRollback: defects.has('vfio.skip-replay-rollback'),
      wrongRlimit: defects.has('vfio.wrong-rlimit'),
      skipNotify: defects.has('vfio.skip-dma-unmap-notify'),
    };
  }

  /** VFIO_CHECK_EXTENSION: the three types, and unmapping everything (v5.12). */
  checkExtension(extension: number): number {
    switch (extension) {
      case VFIO_TYPE1_IOMMU:
      case VFIO_TYPE1v2_IOMMU:
      case VFIO_TYPE1_NESTING_IOMMU:
      case VFIO_UNMAP_ALL:
        return 1;
      default:
        return 0;
    }
  }

  /** @throws Errno EINVAL another type */
  open(type: number, container?: number): Type1Container {
    if (type !== VFIO_TYPE1_IOMMU && type !== VFIO_TYPE1v2_IOMMU && type !== VFIO_TYPE1_NESTING_IOMMU) {
      throw new Errno('EINVAL', `${this.name} has no IOMMU of type ${type}`);
    }
    const nesting = type === VFIO_TYPE1_NESTING_IOMMU;
    const state = new ContainerState(this.context, container ?? ++this.last, { v2: nesting || type === VFIO_TYPE1v2_IOMMU, nesting });
    const opened = new Type1Container(state, {
      checkExtension: (extension) => this.checkExtension(extension),
      released: () => void this.live.delete(opened),
    });
    this.live.add(opened);
    return opened;
  }

  /** Containers with an IOMMU now, in the order of SET_IOMMU. */
  get containers(): readonly Type1Container[] {
    return [...this.live];
  }

  get usage(): Type1Usage {
    const states = this.containers.map(({ state }) => state);
    const sum = (of: (state: ContainerState) => number): number => states.reduce((total, state) => total + of(state), 0);
    return { containers: states.length, mappings: sum((state) => state.mappings.count), domains: sum((state) => state.domains.length), binds: sum((state) => state.binds.length) };
  }
}
