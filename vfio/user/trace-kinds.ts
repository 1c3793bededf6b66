/** Records of what a vfio-user server does: connections, messages and refusals by device. */
import type { Trace } from '../../sim/trace.js';

export interface VfioUserTrace {
  connected(device: string, minor: number): void;
  disconnected(device: string, why: string): void;
  command(device: string, command: number, bytes: number, descriptors: number): void;
  refused(device: string, command: number, errno: string): void;
  dmaMap(device: string, address: number, sizeBytes: number, flags: number, window: boolean): void;
  dmaUnmap(device: string, address: number, sizeBytes: number, flags: number): void;
}

export function vfioUserTrace(trace: Trace): VfioUserTrace {
  const connected = trace.define('vfio_user:connected', [['device', 'str'], ['minor', 'dec']]);
  const disconnected = trace.define('vfio_user:disconnected', [['device', 'str'], ['why', 'str']]);
  const command = trace.define('vfio_user:command', [['device', 'str'], ['command', 'dec'], ['bytes', 'dec'], ['descriptors', 'dec']]);
  const refused = trace.define('vfio_user:refused', [['device', 'str'], ['command', 'dec'], ['errno', 'str']]);
  const map = trace.define('vfio_user:dma_map', [['device', 'str'], ['address', 'hex'], ['size', 'hex'], ['flags', 'hex'], ['window', 'bool']]);
  const unmap = trace.define('vfio_user:dma_unmap', [['device', 'str'], ['address', 'hex'], ['size', 'hex'], ['flags', 'hex']]);
  return {
    connected: (device, minor) => trace.record(connected, 0, trace.intern(device), minor),
    disconnected: (device, why) => trace.record(disconnected, 0, trace.intern(device), trace.intern(why)),
    command: (device, number, bytes, descriptors) => trace.record(command, 0, trace.intern(device), number, bytes, descriptors),
    refused: (device, number, errno) => trace.record(refused, 0, trace.intern(device), number, trace.intern(errno)),
    dmaMap: (device, address, sizeBytes, flags, window) => trace.record(map, 0, trace.intern(device), address, sizeBytes, flags, window ? 1 : 0),
    dmaUnmap: (device, address, sizeBytes, flags) => trace.record(unmap, 0, trace.intern(device), address, sizeBytes, flags),
  };
}
