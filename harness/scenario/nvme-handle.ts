/** A program's file on an NVMe namespace: reads and writes that return when they are done. */
import type { NvmeFile } from '../../devices/nvme/driver/nvme-file.js';
import type { Clock } from '../../sim/clock.js';
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import { CountingHandle } from './counting-handle.js';
import type { DataFile, Submission } from './operations.js';

export interface NvmeHandleParts {
  readonly clock: Clock;
  /** Name of the topology. */
  readonly device: string;
  readonly file: NvmeFile;
}

const NO_RESPONSES = { success: 0, invalid: 0, failure: 0 };

export class NvmeHandle extends CountingHandle implements DataFile {
  readonly data: DataFile = this;
  private readonly parts: NvmeHandleParts;

  constructor(parts: NvmeHandleParts) {
    super(parts.device, parts.file);
    this.parts = parts;
  }

  /** EOPNOTSUPP: there are no queues for processes. */
  // oxlint-disable-next-line require-yield -- UserHandle.submit may wait
  *submit(): Steps<Submission> {
    throw new Errno('EOPNOTSUPP', `${this.device} is read and written (pread, pwrite), not given operations`);
  }

  pread(address: number, offset: number, sizeBytes: number): Steps<number> {
    return this.counted(this.parts.file.pread(address, offset, sizeBytes));
  }

  pwrite(address: number, offset: number, sizeBytes: number): Steps<number> {
    return this.counted(this.parts.file.pwrite(address, offset, sizeBytes));
  }

  *fsync(): Steps {
    yield* this.parts.file.fsync();
  }

  /** Counts a request that went well. */
  private *counted(request: Steps<number>): Steps<number> {
    const { clock } = this.parts, startedNs = clock.now;
    this.inFlight++;
    try {
      const bytes = yield* request;
      this.onEnded?.({ bytes, pageRequests: 0, responses: NO_RESPONSES, latencyNs: clock.now - startedNs });
      return bytes;
    } finally {
      this.inFlight--;
      this.notice();
    }
  }
}
