/** The public API of vfiosim. */
import { createMachineSync, Machine, type MachineOptions } from './machine.js';
import { MachineSession } from './session.js';
import type { TopologyInput } from './topology/schema.js';

/**
 * Composes a machine from a topology file or a topology in code, and boots it: PCI is enumerated, the IOMMU is on,
 * drivers are bound, and it is time 0. The topology's own processes begin with `run`.
 * @throws InvalidInput with every problem and its place
 */
export async function createMachine(source: string | TopologyInput, options: MachineOptions = {}): Promise<MachineSession> {
  return new MachineSession(createMachineSync(source, options));
}

export { createMachineSync, Machine, MachineSession, type MachineOptions };
export { SimulatedProcess, type MmapOptions, type Protection } from './session/process.js';
export { DeviceHandle, type BatchOperation, type DeviceResult, type OperationOptions } from './session/device-handle.js';
export { SimulatedGuest } from './session/guest.js';
export type { GuestState } from './guests/guest.js';
export { VfioClient } from '../vfio/client/index.js';
/** Numbers and records of VFIO's ioctls, for calls with bytes of one's own. */
export * as vfioUapi from '../vfio/uapi/index.js';
export {
  PCI_BAR0_REGION, PCI_CONFIG_REGION, PCI_ERR_IRQ, PCI_INTX_IRQ, PCI_MSI_IRQ, PCI_MSIX_IRQ, PCI_REQ_IRQ,
} from '../vfio/device.js';
export { KernelApi, type SvaBindOptions } from './session/kernel.js';
export type { FaultRecord, InterruptRecord, PageRequestRecord, PageResponseRecord, UnrecoverableFaultRecord } from './session/records.js';
export { Deadlock } from './session/turns.js';
export { LimitReached } from './limit-reached.js';
export { Killed } from './scenario/program.js';
export type { OperationStatus } from './scenario/operations.js';
export { SegmentationFault } from '../host/mm/mm.js';
export { SimulatorBug } from '../sim/assert.js';
export { Errno, ERRNO, isErrno, type ErrnoName } from '../sim/errno.js';
export { InvalidInput, formatProblems, type Problem } from './topology/problems.js';
export { loadTopology, checkTopology } from './topology/load.js';
export { topologyJsonSchema, type Topology, type TopologyInput } from './topology/schema.js';
export type { FlowSummary, GuestSummary, InvariantSummary, Leaks, RunEnd, Summary } from './summary.js';
export type { MachineState, TaskState } from './machine-state.js';
export { Checker } from './checkers/invariant.js';
export type { WalkReport, WalkTarget } from './inspect.js';
export { parseStopPoint, type StopPoint } from './stop-point.js';
export { traceToNdjson, traceToPerfetto } from '../sim/trace-export.js';
export { explainImage, parseImageWalk, type ImageReport, type ImageWalkTarget } from './explain/image.js';
export { openImages, type OpenImage } from './explain/image-files.js';
export { readRegisters, type RegisterValues } from './explain/register-file.js';
export { explainLog, type LogGroup, type LogReport } from './explain/log.js';
export { replayFiles, type ReplayFilesOptions, type ReplayFilesResult } from './replay/worker-pool.js';
export { VectorRecorder } from './replay/record.js';
export type { Disagreement, KnownDisagreement, ReplayReport, StaleAnswer, Unsupported } from './replay/report.js';
/** External guests: somebody else's virtual machine on IOMMU and devices of ours. */
export { ExternalGuests, type ExternalGuestsOptions, type RunningGuest } from './serve/external-guests.js';
export { guestCommand } from './linux/guest-command.js';
export { runLinux, type LinuxGuestResult, type LinuxResult, type LinuxRunOptions } from './linux/linux-run.js';
export { findLinux, type LinuxSearch, type PreparedLinux } from './linux/prepared.js';
