/** A group in the hands of a program. */
import type { Steps } from '../../sim/task.js';
import { GROUP_STATUS, VFIO_GROUP_FLAGS_CONTAINER_SET, VFIO_GROUP_FLAGS_VIABLE } from '../uapi/group.js';
import { VFIO_GROUP_GET_DEVICE_FD, VFIO_GROUP_GET_STATUS, VFIO_GROUP_SET_CONTAINER, VFIO_GROUP_UNSET_CONTAINER } from '../uapi/ioctl.js';
import type { RawAnswer, VfioCalls } from './calls.js';
import type { ContainerHandle } from './container.js';
import { DeviceHandle } from './device.js';

export class GroupHandle {
  readonly fd: number;
  private readonly calls: VfioCalls;

  constructor(calls: VfioCalls, fd: number) {
    this.calls = calls;
    this.fd = fd;
  }

  *status(): Steps<{ readonly viable: boolean; readonly containerSet: boolean }> {
    const status = yield* this.calls.record(this.fd, VFIO_GROUP_GET_STATUS, GROUP_STATUS.encode({ argsz: GROUP_STATUS.sizeBytes }));
    const flags = GROUP_STATUS.f.flags.get(status);
    return { viable: (flags & VFIO_GROUP_FLAGS_VIABLE) !== 0, containerSet: (flags & VFIO_GROUP_FLAGS_CONTAINER_SET) !== 0 };
  }

  /** C2. @param container a handle, or any descriptor */
  *setContainer(container: ContainerHandle | number): Steps {
    yield* this.calls.record(this.fd, VFIO_GROUP_SET_CONTAINER, [typeof container === 'number' ? container : container.fd]);
  }

  /** C3. */
  *unsetContainer(): Steps {
    yield* this.calls.process.ioctl(this.fd, VFIO_GROUP_UNSET_CONTAINER, 0);
  }

  /** C5. @param name a BDF or a UUID */
  *getDevice(name: string): Steps<DeviceHandle> {
    const { result, refusal } = yield* this.raw(VFIO_GROUP_GET_DEVICE_FD, new TextEncoder().encode(`${name}\0`));
    if (refusal !== undefined) throw refusal;
    return new DeviceHandle(this.calls, result!);
  }

  /** Any command with any bytes as its record. */
  *raw(command: number, bytes: Uint8Array): Steps<RawAnswer> {
    return yield* this.calls.raw(this.fd, command, bytes);
  }

  *close(): Steps {
    yield* this.calls.process.close(this.fd);
  }
}
