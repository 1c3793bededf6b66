/** Trace records of vfio-pci: what a user or the driver changed about a function. */
import type { Trace, TraceKind } from '../../sim/trace.js';

/** How a function or its bus was reset. */
export type ResetCause = 'open' | 'ioctl' | 'flr' | 'close' | 'hot' | 'unused';

export class PciVfioTrace {
  private readonly trace: Trace | undefined;
  private readonly resetKind: TraceKind | undefined;
  private readonly irqs: TraceKind | undefined;
  private readonly memory: TraceKind | undefined;
  private readonly notice: TraceKind | undefined;

  constructor(trace: Trace | undefined) {
    this.trace = trace;
    this.resetKind = trace?.define('vfio_pci:reset', [['device', 'str'], ['cause', 'str'], ['done', 'bool']]);
    this.irqs = trace?.define('vfio_pci:set_irqs', [['device', 'str'], ['index', 'dec'], ['start', 'dec'], ['count', 'dec'], ['action', 'str'], ['data', 'str']]);
    this.memory = trace?.define('vfio_pci:memory', [['device', 'str'], ['reachable', 'bool']]);
    this.notice = trace?.define('vfio_pci:notify', [['device', 'str'], ['what', 'str'], ['heard', 'bool']]);
  }

  reset(device: string, cause: ResetCause, done: boolean): void {
    if (this.resetKind !== undefined) this.trace!.record(this.resetKind, 0, this.trace!.intern(device), this.trace!.intern(cause), done ? 1 : 0);
  }

  setIrqs(device: string, index: number, start: number, count: number, action: string, data: string): void {
    if (this.irqs !== undefined) this.trace!.record(this.irqs, 0, this.trace!.intern(device), index, start, count, this.trace!.intern(action), this.trace!.intern(data));
  }

  /** BARs became reachable for the user, or not any more. */
  reachable(device: string, reachable: boolean): void {
    if (this.memory !== undefined) this.trace!.record(this.memory, 0, this.trace!.intern(device), reachable ? 1 : 0);
  }

  /** The user was told of an error, or asked for the device. */
  notify(device: string, what: 'error' | 'request', heard: boolean): void {
    if (this.notice !== undefined) this.trace!.record(this.notice, 0, this.trace!.intern(device), this.trace!.intern(what), heard ? 1 : 0);
  }
}
