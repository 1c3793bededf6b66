import { ContainerModule } from 'inversify';
import { FrameAllocator } from '../../host/frames.js';
import { InterruptController, type InterruptMessage, type InterruptSink } from '../../host/interrupts.js';
import { KernelLog } from '../../host/kernel-log.js';
import { ProcessTable } from '../../host/process.js';
import { SystemBus } from '../../host/system-bus.js';
import { DEFAULT_TIMING, Timing, type TimingOptions } from '../../host/timing.js';
import { Channel, type Mailbox } from '../../sim/channel.js';
import type { Clock } from '../../sim/clock.js';
import { Ram, type PhysicalMemory } from '../../sim/memory.js';
import type { Random } from '../../sim/random.js';
import type { Trace } from '../../sim/trace.js';
import type { Topology } from '../topology/schema.js';
import { layoutFor, type MachineLayout } from './layout.js';
import type { Settings } from './settings.js';
import { CLOCK, FRAMES, INTERRUPT_SINK, INTERRUPTS, LAYOUT, LOG, MAILBOX, MEMORY, PROCESSES, RANDOM, SETTINGS, SYSTEM_BUS, TIMING, TRACE } from './tokens.js';

/** A machine of its own has RAM; a virtual one has what its VMM gives it. */
export const ramModule = new ContainerModule(({ bind }) => {
  bind(MEMORY).toResolvedValue(({ ram }: MachineLayout) => new Ram(ram), [LAYOUT]).inSingletonScope();
});

/** A kernel's ground floor: frames, register windows, interrupts, the log. */
export const groundModule = new ContainerModule(({ bind }) => {
  bind(LAYOUT).toResolvedValue(({ topology }: Settings) => layoutFor(topology.host.memory), [SETTINGS]).inSingletonScope();
  bind(FRAMES).toResolvedValue(
    (memory: PhysicalMemory, { usable }: MachineLayout, trace: Trace, { defects, watch, scope, topology }: Settings) => {
      const freed = trace.define('mm:free_frames', [['frame', 'page'], ['pages', 'dec']], { hashed: false });
      return new FrameAllocator({
        memory, ranges: usable, defects,
        // RAM of the host starts as zeros, and an IOMMU keeps devices away from what nobody has allocated
        freshZero: scope === '' && topology.host.iommu !== undefined,
        ...(watch ? { onFree: (physical, frames) => trace.record(freed, 0, physical / 4096, frames) } : {}) });
    },
    [MEMORY, LAYOUT, TRACE, SETTINGS],
  ).inSingletonScope();
  bind(TIMING).toResolvedValue(({ topology }: Settings, random: Random) => new Timing(timingOptions(topology), random.split('timing')), [SETTINGS, RANDOM]).inSingletonScope();
  bind(LOG).toResolvedValue((clock: Clock) => new KernelLog(clock), [CLOCK]).inSingletonScope();
  bind(PROCESSES).toResolvedValue(() => new ProcessTable(), []).inSingletonScope();
  bind(SYSTEM_BUS).toResolvedValue(() => new SystemBus(), []).inSingletonScope();
});

/** Interrupts of a machine whose kernel is ours: the controller takes what hardware sends. */
export const interruptsModule = new ContainerModule(({ bind }) => {
  bind(INTERRUPTS).toResolvedValue(
    (clock: Clock, timing: Timing, mailbox: Mailbox) => new InterruptController(clock, timing, new Channel<InterruptMessage>(mailbox, 'interrupts')),
    [CLOCK, TIMING, MAILBOX],
  ).inSingletonScope();
  bind(INTERRUPT_SINK).toResolvedValue((controller: InterruptController): InterruptSink => controller, [INTERRUPTS]).inSingletonScope();
});

/** Topology words → names in code. */
function timingOptions({ timing }: Topology): TimingOptions {
  const times = {
    tlpNs: timing.tlp, memoryAccessNs: timing['memory-access'], interruptNs: timing.interrupt, threadWakeNs: timing['thread-wake'], faultServiceNs: timing['fault-service'],
    mmioNs: timing.mmio, deviceTlbInvalidationNs: timing['device-tlb-invalidation'], pollNs: timing.poll, invalidationTimeoutNs: timing['invalidation-timeout'],
    copyBytesPerNs: timing['copy-bytes-per-ns'], jitter: timing.jitter,
  };
  return { ...DEFAULT_TIMING, ...Object.fromEntries(Object.entries(times).filter(([, value]) => value !== undefined)) };
}
