/** The vfio-user server on this machine's sockets. Importing this loads no koffi; making a server does. */
export { FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, posixCalls } from './calls.js';
export type { WindowPolicy } from './descriptor.js';
export { VfioUserServer, type VfioUserServerOptions } from './server.js';
export { SharedMemory } from './shared-memory.js';
