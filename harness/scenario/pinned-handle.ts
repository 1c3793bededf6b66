/**
 * Operations of a program on a kernel queue: the driver pins the program's buffers and programs the device, the program
 * learns of ends by the driver's interrupts. Where there is no IOMMU that a process's address space could be bound to.
 */
import type { DeviceAddress, IdxdPinnedFile, PinnedOperation, PinnedSubmission } from '../../devices/dsa/driver/idxd-pinned.js';
import { NO_PASID } from '../../host/pci/dma-port.js';
import type { Clock } from '../../sim/clock.js';
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import type { DescriptorEnd } from './flows.js';
import type { Operation, OperationResult, Submission, UserHandle } from './operations.js';

export interface PinnedHandleParts {
  readonly clock: Clock;
  /** Name of the topology. */
  readonly device: string;
  readonly file: IdxdPinnedFile;
}

const NO_RESPONSES = { success: 0, invalid: 0, failure: 0 };

export class PinnedHandle implements UserHandle {
  readonly device: string;
  readonly pasid = NO_PASID;
  readonly countsItself = true;
  onEnded: ((end: DescriptorEnd) => void) | undefined;
  private readonly parts: PinnedHandleParts;
  private readonly watchers: (() => void)[] = [];
  private notices = 0;
  private inFlight = 0;

  constructor(parts: PinnedHandleParts) {
    this.parts = parts;
    this.device = parts.device;
  }

  get gone(): boolean {
    return this.parts.file.gone;
  }

  get activity(): number {
    return this.parts.file.activity + this.notices;
  }

  watch(wake: () => void): void {
    this.watchers.push(wake);
    this.parts.file.watch(wake);
  }

  notice(): void {
    this.notices++;
    for (const wake of this.watchers) wake();
  }

  /** Completion records are the driver's, so no address tells; true while anything is in flight. */
  awaits(): boolean {
    return this.inFlight > 0;
  }

  private count(submission: PinnedSubmission, submittedNs: number): void {
    this.inFlight--;
    const bytes = submission.results().reduce((sum, result) => sum + result.bytes, 0);
    this.onEnded?.({ bytes, pageRequests: 0, responses: NO_RESPONSES, latencyNs: this.parts.clock.now - submittedNs });
  }

  /** Each operation is a submission of its own, so that each has its own latency. */
  *submit(operations: readonly Operation[], options: { batch: boolean; noWait: boolean }): Steps<Submission> {
    const { clock, file } = this.parts;
    if (this.gone) throw new Errno('ENODEV', `${this.device} is gone`);
    const groups = options.batch ? [operations] : operations.map((operation) => [operation]);
    const mine: PinnedSubmission[] = [];
    for (const group of groups) {
      const submittedNs = clock.now;
      const submission = yield* file.submit(group.map(pinned), options);
      submission.onDone = () => this.count(submission, submittedNs);
      this.inFlight++;
      mine.push(submission);
    }
    return {
      operations: operations.length,
      // oxlint-disable-next-line require-yield -- Submission.poll may look at memory
      poll: function* (): Steps<boolean> {
        return mine.every(({ done }) => done);
      },
      results: (): readonly OperationResult[] => mine.flatMap((submission) => submission.results().map(({ status, detail, bytes, value }) => ({ status, detail, bytes, value }))),
    };
  }
}

function pinned({ kind, from, to, sizeBytes, pattern, rawFrom, rawTo }: Operation): PinnedOperation {
  const address = (value: number, raw: boolean): number | DeviceAddress => (raw ? { deviceAddress: value } : value);
  return { kind, from: address(from, rawFrom), to: address(to, rawTo), sizeBytes, pattern };
}
