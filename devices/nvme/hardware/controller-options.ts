/** What a controller is configured with, and what it needs of its function and the machine. */
import type { Clock } from '../../../sim/clock.js';
import type { Scheduler } from '../../../sim/task.js';
import type { Trace } from '../../../sim/trace.js';
import type { NvmeLayout } from '../spec/registers.js';
import type { BlockMedium } from './medium.js';
import type { MemoryAccess } from './transfer.js';

export interface NvmeConfig extends NvmeLayout {
  /** Largest number of entries of a queue, a power of two. */
  readonly queueEntries: number;
  /** Largest transfer: 2^mdts pages of 4 KiB; 0 no limit. */
  readonly mdts: number;
  /** Log2 of the bytes of a block, 9 to 12. */
  readonly blockShift: number;
  /** Commands of one submission queue that are worked on at a time. */
  readonly commandsPerQueue: number;
  readonly serial: string;
  /** Between two commands that the controller takes up. */
  readonly commandNs: number;
  /** From command to data at the medium. */
  readonly readNs: number;
  readonly writeNs: number;
  readonly flushNs: number;
  /** Of the medium, which serves one command after the other. */
  readonly bytesPerNs: number;
  /** From CC.EN to CSTS.RDY, either way. */
  readonly enableNs: number;
}

export const DEFAULT_NVME_CONFIG: NvmeConfig = {
  ioQueues: 4, doorbellStride: 0, queueEntries: 2048, mdts: 7, blockShift: 9, commandsPerQueue: 32, serial: 'vfiosim-0', commandNs: 200, readNs: 8_000, writeNs: 4_000,
  flushNs: 20_000, bytesPerNs: 3, enableNs: 500_000,
};

export interface NvmeFunctionSide {
  /** Requests leave the function: it is there, and bus mastering is on. */
  readonly reachable: boolean;
  readonly messageSignalled: boolean;
  readonly access: () => MemoryAccess;
  raise(vector: number): void;
  /** The interrupt pin, while no messages are enabled. */
  pin(level: boolean): void;
}

export interface NvmeControllerOptions {
  readonly name: string;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly trace: Trace;
  readonly config: NvmeConfig;
  readonly medium: BlockMedium;
  readonly side: NvmeFunctionSide;
  /**
   * `nvme.completion-before-data`: a read's completion is posted before its data. `nvme.ready-clears-early`: CSTS.RDY is 0
   * while commands still move data.
   */
  readonly defects?: ReadonlySet<string>;
}
