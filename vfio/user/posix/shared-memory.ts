/** Memory in a file of its own (memfd_create(2)), sealed against shrinking: what a device's region or a test's guest lies in. */
import { callError, F_ADD_SEALS, F_SEAL_SHRINK, MFD_ALLOW_SEALING, MFD_CLOEXEC, type PosixCalls } from './calls.js';
import { MappedWindow } from './mapping.js';

export class SharedMemory {
  /** Given to others by number; stays ours. -1 once it is closed. */
  descriptor: number;
  readonly window: MappedWindow;
  private readonly calls: PosixCalls;

  /** @param sizeBytes whole pages @param sealed without, others will not dare to map it */
  constructor(calls: PosixCalls, name: string, sizeBytes: number, sealed = true) {
    this.calls = calls;
    this.descriptor = calls.memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (this.descriptor < 0) throw callError(calls, `no memory file ${name}`);
    try {
      if (calls.ftruncate(this.descriptor, sizeBytes) < 0) throw callError(calls, `no memory of ${sizeBytes} bytes`);
      if (sealed && calls.fcntl(this.descriptor, F_ADD_SEALS, F_SEAL_SHRINK) < 0) throw callError(calls, `${name} cannot be sealed`);
      this.window = new MappedWindow(calls, this.descriptor, 0, sizeBytes, true);
    } catch (error) {
      calls.close(this.descriptor);
      throw error;
    }
  }

  close(): void {
    this.window.close();
    if (this.descriptor >= 0) this.calls.close(this.descriptor);
    this.descriptor = -1;
  }
}
