/** The user's side of VFIO: what a virtual machine monitor, a driver in user space or a test calls. */
import type { Process } from '../../host/process.js';
import type { Vfio } from '../core/vfio.js';
import { VfioCalls } from './calls.js';
import { ContainerHandle } from './container.js';
import { GroupHandle } from './group.js';

export { VfioCalls, type RawAnswer } from './calls.js';
export { ContainerHandle, type DmaMapping, type IommuInfo, type IommuType, type U64 } from './container.js';
export { DeviceHandle, type DependentDevice, type IrqRequest, type RegionInfo } from './device.js';
export { GroupHandle } from './group.js';
export { MigrationCalls, type IovaRange } from './migration.js';

/** One program's doors into VFIO. Everything it does goes through descriptors of its process and records in its memory. */
export class VfioClient {
  readonly process: Process;
  readonly calls: VfioCalls;
  private readonly vfio: Vfio;

  constructor(vfio: Vfio, process: Process) {
    this.vfio = vfio;
    this.process = process;
    this.calls = new VfioCalls(process);
  }

  /** Opens /dev/vfio/vfio. */
  openContainer(): ContainerHandle {
    return new ContainerHandle(this.calls, this.vfio.openContainer(this.process));
  }

  /** Opens /dev/vfio/$group. C1, E30. */
  openGroup(id: number): GroupHandle {
    return new GroupHandle(this.calls, this.vfio.openGroup(this.process, id));
  }
}
