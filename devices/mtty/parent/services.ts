/** What the sample parent's devices need of the host kernel, and how they behave. */
import type { Clock } from '../../../sim/clock.js';
import type { PhysicalMemory } from '../../../sim/memory.js';
import type { Scheduler } from '../../../sim/task.js';
import type { VfioPinning } from '../../../vfio/device.js';
import type { MttyTrace } from './trace-kinds.js';

export interface MttyConfig {
  /** Speed of a port's DMA, bytes per nanosecond. */
  readonly bytesPerNs: number;
  /** From the doorbell to the first byte. */
  readonly startNs: number;
  /**
   * How many notifications of an unmap a transfer lets pass before it gives its pages back (scenario 19): 0 as a
   * driver must, Infinity for one that only ever unpins at the transfer's own end.
   */
  readonly lateUnpin: number;
  /** A device in use can be removed: its user is asked, and can be signalled through the request interrupt (7.5). */
  readonly hotUnplug: boolean;
}

export const DEFAULT_MTTY_CONFIG: MttyConfig = { bytesPerNs: 1, startNs: 500, lateUnpin: 0, hotUnplug: false };

export interface MttyServices {
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  /** Host physical memory: what the CPU copies through. */
  readonly memory: PhysicalMemory;
  readonly vfio: VfioPinning;
  readonly trace: MttyTrace | undefined;
  readonly config: MttyConfig;
  readonly defects: ReadonlySet<string>;
}
