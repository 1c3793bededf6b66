/** Operations of a program on a serial port: copies through the port's loopback, by DMA of the driver's. */
import type { MttyFile } from '../../devices/mtty/driver/mtty-file.js';
import type { Clock } from '../../sim/clock.js';
import { Errno, isErrno } from '../../sim/errno.js';
import type { Scheduler, Steps } from '../../sim/task.js';
import { CountingHandle } from './counting-handle.js';
import type { Operation, OperationResult, Submission } from './operations.js';

export interface MttyHandleParts {
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  /** Name of the topology. */
  readonly device: string;
  readonly file: MttyFile;
}

export class MttyHandle extends CountingHandle {
  private readonly parts: MttyHandleParts;

  constructor(parts: MttyHandleParts) {
    super(parts.device, parts.file);
    this.parts = parts;
  }

  /** EOPNOTSUPP for anything but copies. The port does one after the other. */
  // oxlint-disable-next-line require-yield -- UserHandle.submit may wait for room; a port has a queue of tasks
  *submit(operations: readonly Operation[]): Steps<Submission> {
    if (this.gone) throw new Errno('ENODEV', `${this.device} is gone`);
    const other = operations.find(({ kind, rawFrom, rawTo }) => kind !== 'copy' || rawFrom || rawTo);
    if (other !== undefined) throw new Errno('EOPNOTSUPP', `${this.device} only copies buffers of the process, it cannot ${other.kind}${other.kind === 'copy' ? ' to or from a raw address' : ''}`);
    const results: (OperationResult | undefined)[] = operations.map(() => undefined);
    operations.forEach((operation, i) => {
      this.inFlight++;
      this.parts.scheduler.spawn(`copy through ${this.device}`, this.copy(operation, (result) => {
        results[i] = result;
        this.inFlight--;
        this.notice();
      }), { daemon: true });
    });
    return {
      operations: operations.length,
      // oxlint-disable-next-line require-yield -- Submission.poll may look at memory
      poll: function* (): Steps<boolean> {
        return results.every((result) => result !== undefined);
      },
      results: () => results.map((result) => result!),
    };
  }

  private *copy({ from, to, sizeBytes }: Operation, ended: (result: OperationResult) => void): Steps {
    const { clock, file } = this.parts;
    const submittedNs = clock.now;
    try {
      yield* file.transfer(from, to, sizeBytes);
      this.onEnded?.({ bytes: sizeBytes, pageRequests: 0, responses: { success: 0, invalid: 0, failure: 0 }, latencyNs: clock.now - submittedNs });
      ended({ status: 'success', detail: 'success', bytes: sizeBytes, value: 0 });
    } catch (error) {
      if (!isErrno(error)) throw error;
      ended({ status: this.gone ? 'aborted' : 'error', detail: error.message, bytes: 0, value: 0 });
    }
  }
}
