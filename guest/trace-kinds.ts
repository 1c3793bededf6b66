/**
 * What guests and their VMMs tell. Linux' KVM has tracepoints of its own (virt/kvm, arch/x86/kvm/trace.h); names that exist
 * there mean the same here. A machine with guests knows all of them before the first guest starts.
 */
import type { Trace, TraceKind } from '../sim/trace.js';

export interface GuestTraceKinds {
  /** An ENQCMD left the guest: its PASID has no translation. */
  readonly enqcmdExit: TraceKind;
  /** An eventfd became an interrupt of the guest. */
  readonly irqfd: TraceKind;
  readonly setMemoryRegion: TraceKind;
  /** The guest's memory at an address is host memory from now on. */
  readonly pageFault: TraceKind;
  readonly unmapHvaRange: TraceKind;
  readonly state: TraceKind;
  /** How the guest's interrupts are wired now. */
  readonly interrupts: TraceKind;
  /** The host asked for a device back. */
  readonly deviceRequest: TraceKind;
  readonly balloon: TraceKind;
}

export function guestTraceKinds(trace: Trace): GuestTraceKinds {
  return {
    enqcmdExit: trace.define('kvm:enqcmd_exit', [['vm', 'str'], ['pasid', 'dec'], ['reason', 'dec']]),
    irqfd: trace.define('kvm:irqfd', [['vm', 'str'], ['eventfd', 'str']]),
    setMemoryRegion: trace.define('kvm:set_memory_region', [['vm', 'str'], ['slot', 'dec'], ['gpa', 'page'], ['pages', 'dec'], ['hva', 'page']]),
    pageFault: trace.define('kvm:page_fault', [['vm', 'str'], ['gpa', 'page'], ['hva', 'page'], ['hpa', 'page'], ['write', 'bool']]),
    unmapHvaRange: trace.define('kvm:unmap_hva_range', [['vm', 'str'], ['start', 'page'], ['end', 'page']]),
    state: trace.define('vmm:state', [['guest', 'str'], ['state', 'str']]),
    interrupts: trace.define('vmm:interrupts', [['device', 'str'], ['mode', 'str'], ['vectors', 'dec']]),
    deviceRequest: trace.define('vmm:device_request', [['guest', 'str'], ['device', 'str'], ['answer', 'str']]),
    balloon: trace.define('vmm:balloon', [['guest', 'str'], ['target', 'dec'], ['pages', 'dec']]),
  };
}
