/** Containers in the story of a run, known by their numbers. */
import type { Trace, TraceKind } from '../../sim/trace.js';

export class Type1Trace {
  readonly trace: Trace;
  /** `domain` 0: the group has no IOMMU behind it, its vendor's driver pins. */
  readonly attachGroup: TraceKind;
  readonly detachGroup: TraceKind;
  readonly mapDma: TraceKind;
  readonly unmapDma: TraceKind;
  /** A vendor's driver pinned single pages, or gave them back. */
  readonly pinPages: TraceKind;
  readonly unpinPages: TraceKind;
  /** `pages` frames from `frame` on stand behind the container's `iova` from now on; `vendor`: pinned for a vendor's driver, beside the IOMMU's pin if there is one. */
  readonly pinRun: TraceKind;
  readonly unpinRun: TraceKind;
  /** Requests of `device` with `pasid` (-1: without one) reach what the container maps. */
  readonly containerDevice: TraceKind;
  readonly containerDeviceEnd: TraceKind;
  readonly bind: TraceKind;
  readonly unbind: TraceKind;
  readonly dirtyPages: TraceKind;
  /** A vendor's driver broke a rule (C9). */
  readonly violation: TraceKind;
  private readonly scope: string;

  /** @param scope tells one kernel's devices from another's; empty for the host */
  constructor(trace: Trace, scope: string) {
    this.trace = trace;
    this.scope = scope;
    this.attachGroup = trace.define('vfio:attach_group', [['container', 'dec'], ['group', 'dec'], ['domain', 'dec']]);
    this.detachGroup = trace.define('vfio:detach_group', [['container', 'dec'], ['group', 'dec'], ['domain', 'dec']]);
    this.mapDma = trace.define('vfio:map_dma', [['container', 'dec'], ['iova', 'page'], ['vaddr', 'page'], ['pages', 'dec'], ['prot', 'hex']]);
    this.unmapDma = trace.define('vfio:unmap_dma', [['container', 'dec'], ['iova', 'page'], ['pages', 'dec']]);
    this.pinPages = trace.define('vfio:pin_pages', [['container', 'dec'], ['device', 'str'], ['iova', 'page'], ['pages', 'dec'], ['prot', 'hex']]);
    this.unpinPages = trace.define('vfio:unpin_pages', [['container', 'dec'], ['device', 'str'], ['iova', 'page'], ['pages', 'dec']]);
    this.pinRun = trace.define('vfio:pin_run', [['container', 'dec'], ['iova', 'page'], ['frame', 'page'], ['pages', 'dec'], ['vendor', 'bool']], { hashed: false });
    this.unpinRun = trace.define('vfio:unpin_run', [['container', 'dec'], ['iova', 'page'], ['frame', 'page'], ['pages', 'dec'], ['vendor', 'bool']], { hashed: false });
    this.containerDevice = trace.define('vfio:container_device', [['container', 'dec'], ['device', 'str'], ['pasid', 'dec']]);
    this.containerDeviceEnd = trace.define('vfio:container_device_end', [['container', 'dec'], ['device', 'str'], ['pasid', 'dec']]);
    this.bind = trace.define('vfio:bind', [['container', 'dec'], ['mm', 'dec'], ['pasid', 'dec']]);
    this.unbind = trace.define('vfio:unbind', [['container', 'dec'], ['mm', 'dec'], ['pasid', 'dec']]);
    this.dirtyPages = trace.define('vfio:dirty_pages', [['container', 'dec'], ['action', 'str'], ['iova', 'page'], ['pages', 'dec'], ['dirty', 'dec']]);
    this.violation = trace.define('vfio:violation', [['container', 'dec'], ['what', 'str'], ['iova', 'page']]);
  }

  /** Number of a device's name. */
  nameOf(device: { readonly name: string }): number {
    return this.trace.intern(this.scope === '' ? device.name : `${this.scope}/${device.name}`);
  }
}
