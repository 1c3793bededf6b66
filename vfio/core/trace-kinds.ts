/** Trace records of VFIO's core. Linux has no tracepoints there; names are those of the operations. */
import type { Trace, TraceKind } from '../../sim/trace.js';

export class VfioTrace {
  private readonly trace: Trace | undefined;
  private readonly device: { readonly [K in DeviceEvent]: TraceKind } | undefined;
  private readonly group: { readonly [K in GroupEvent]: TraceKind } | undefined;
  private readonly requested: TraceKind | undefined;
  private readonly iommuSet: TraceKind | undefined;

  constructor(trace: Trace | undefined) {
    this.trace = trace;
    if (trace === undefined) return;
    const ofDevice = (name: string): TraceKind => trace.define(`vfio:${name}`, [['device', 'str'], ['group', 'dec']]);
    const ofGroup = (name: string): TraceKind => trace.define(`vfio:${name}`, [['group', 'dec'], ['container', 'dec']]);
    this.device = { register: ofDevice('register'), unregister: ofDevice('unregister'), open: ofDevice('open_device'), close: ofDevice('close_device') };
    this.group = { set: ofGroup('group_set_container'), unset: ofGroup('group_unset_container') };
    this.requested = trace.define('vfio:request', [['device', 'str'], ['count', 'dec']]);
    this.iommuSet = trace.define('vfio:set_iommu', [['container', 'dec'], ['type', 'dec']]);
  }

  deviceEvent(event: DeviceEvent, name: string, group: number): void {
    if (this.device !== undefined) this.trace!.record(this.device[event], 0, this.trace!.intern(name), group);
  }

  groupEvent(event: GroupEvent, group: number, container: number): void {
    if (this.group !== undefined) this.trace!.record(this.group[event], 0, group, container);
  }

  request(name: string, count: number): void {
    if (this.requested !== undefined) this.trace!.record(this.requested, 0, this.trace!.intern(name), count);
  }

  setIommu(container: number, type: number): void {
    if (this.iommuSet !== undefined) this.trace!.record(this.iommuSet, 0, container, type);
  }
}

type DeviceEvent = 'register' | 'unregister' | 'open' | 'close';
type GroupEvent = 'set' | 'unset';
