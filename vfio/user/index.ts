/** Devices of VFIO served over the vfio-user protocol. Sockets are in `posix/`. */
export { ClientMemory, type MemoryListener } from './client-memory.js';
export { ClientPinning } from './client-pinning.js';
export { type ClientRegion, ForeignMemory } from './client-regions.js';
export type { RegionFile } from './device-commands.js';
export { PciFunctionOps } from './pci-function-ops.js';
export { DEFAULT_LIMITS, Session, type ServedDevice, type SessionLimits, type SessionOptions } from './session.js';
export { vfioUserTrace, type VfioUserTrace } from './trace-kinds.js';
export type { MemoryWindow, ReceivedDescriptor, RemoteSignal, Transport } from './transport.js';
