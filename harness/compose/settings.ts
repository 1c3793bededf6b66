import type { PlannedError } from '../../iommu/intel-vtd/hardware/injected-errors.js';
import type { DmaPort } from '../../host/pci/dma-port.js';
import type { FunctionPort } from '../../host/pci/hardware/function-port.js';
import type { Clock } from '../../sim/clock.js';
import type { VectorRecorder } from '../replay/record.js';
import type { BlockMedium } from '../../devices/nvme/hardware/medium.js';
import type { DeviceTopology, Topology } from '../topology/schema.js';

/** Values of a unit's read-only registers. */
export interface UnitRegisters {
  readonly cap: bigint;
  readonly ecap: bigint;
  readonly version: number;
}

/** What a kernel and the machine under it are composed from. A guest's topology is its virtual machine. */
export interface Settings {
  /** Empty for the host, a guest's name: tells its devices and PASIDs from another kernel's in the trace. */
  readonly scope: string;
  readonly topology: Topology;
  readonly seed: number;
  /** Named defects of the product, switched on by tests only. */
  readonly defects: ReadonlySet<string>;
  /** What the IOMMU's registers say, instead of what the topology's words make of them: those of a recorded unit. */
  readonly unitRegisters?: UnitRegisters;
  /** Content of a file that the topology names. */
  readonly file?: (path: string) => Uint8Array;
  /** What a disk's blocks lie on, where it is not what `file` reads. */
  readonly medium?: (device: Extract<DeviceTopology, { model: 'nvme' }>) => BlockMedium | undefined;
  /** The machine is hardware only: its kernel is somebody else's. */
  readonly external?: boolean;
  /** Stands between the devices and the fabric. */
  readonly wrapPort?: (port: FunctionPort, clock: Clock) => DmaPort;
  /** Errors that the IOMMU brings about on purpose. */
  readonly inject?: readonly PlannedError[];
  /** Records what happens at the IOMMU. */
  readonly recorder?: VectorRecorder;
  /** Trace records kept; older ones are dropped from the ring, never from the hash. */
  readonly traceRecords: number;
  /** Records every page that DMA moves and every page-table change, for checkers. */
  readonly watch: boolean;
}
