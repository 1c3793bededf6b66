/** An open user queue of a device, for code: operations that are awaited, results that are values. */
import type { Program, Handle } from '../scenario/program.js';
import type { Operation, OperationResult, OperationStatus } from '../scenario/operations.js';
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import type { MachineSession } from '../session.js';
import { descriptorAddress as at } from './numbers.js';

export interface OperationOptions {
  /** A page fault suspends the operation until it is handled; otherwise it ends it. Default: what the queue allows. */
  readonly blockOnFault?: boolean;
  /** A full queue is EAGAIN instead of a retry. */
  readonly noWait?: boolean;
}

/** What one call asked for; several descriptors when it is larger than the device takes at once. */
export interface DeviceResult {
  /** `success`, or how the first descriptor that failed ended. */
  readonly status: OperationStatus;
  /** The device's own code and words. */
  readonly detail: string;
  /** Moved or compared, summed up. */
  readonly bytes: number;
  /** What the operation computed: a CRC, the offset of a difference. */
  readonly value: number;
}

/** The operations that a batch may hold. Addresses are user virtual addresses of the process that opened the handle. */
export type BatchOperation =
  | { readonly copy: { readonly from: bigint; readonly to: bigint; readonly size: number } }
  | { readonly fill: { readonly to: bigint; readonly size: number; readonly pattern: bigint } }
  | { readonly compare: { readonly a: bigint; readonly b: bigint; readonly size: number } }
  | { readonly crc: { readonly from: bigint; readonly size: number } }
  | { readonly noop: true };

export class DeviceHandle implements AsyncDisposable, Disposable {
  /** The name it was opened as. */
  readonly name: string;
  private readonly session: MachineSession;
  private readonly program: Program;
  private readonly handle: Handle;

  constructor(session: MachineSession, program: Program, name: string, handle: Handle) {
    this.session = session;
    this.program = program;
    this.name = name;
    this.handle = handle;
  }

  /** Name of the topology. */
  get device(): string {
    return this.handle.user.device;
  }

  get pasid(): number {
    return this.handle.user.pasid;
  }

  /** Copies `size` bytes. What the device says is the result; a request that the queue does not take is an Errno. */
  async copy(from: bigint, to: bigint, size: number, options: OperationOptions = {}): Promise<DeviceResult> {
    return this.one({ copy: { from, to, size } }, options);
  }

  /** Repeats 8 bytes. */
  async fill(to: bigint, size: number, pattern: bigint, options: OperationOptions = {}): Promise<DeviceResult> {
    return this.one({ fill: { to, size, pattern } }, options);
  }

  /** `mismatch` with the offset as `value` when the buffers differ. */
  async compare(a: bigint, b: bigint, size: number, options: OperationOptions = {}): Promise<DeviceResult> {
    return this.one({ compare: { a, b, size } }, options);
  }

  /** CRC-32C as `value`, of at most what one descriptor takes: EINVAL beyond. */
  async crc(from: bigint, size: number, options: OperationOptions = {}): Promise<DeviceResult> {
    return this.one({ crc: { from, size } }, options);
  }

  async noop(options: OperationOptions = {}): Promise<DeviceResult> {
    return this.one({ noop: true }, options);
  }

  /** Submits operations as one batch descriptor; a result each. */
  async batch(operations: readonly BatchOperation[], options: OperationOptions = {}): Promise<DeviceResult[]> {
    return this.perform(operations.map((operation) => operationOf(operation, options)), true, options);
  }

  /** Closes the file; the last descriptor of it unbinds the process from the device. EBADF. */
  async close(): Promise<void> {
    await this.session.perform(`${this.program.name}: close ${this.name}`, this.program.close(this.name), this.program.world.scheduler);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    if (this.isOpen) await this.close();
  }

  [Symbol.dispose](): void {
    if (this.isOpen) this.session.model.execute(`${this.program.name}: close ${this.name}`, this.program.close(this.name), this.program.world.scheduler);
  }

  private get isOpen(): boolean {
    return !this.program.exited && !this.session.isGone(this.program.world.scheduler) && this.program.opened.get(this.name) === this.handle;
  }

  private async one(operation: BatchOperation, options: OperationOptions): Promise<DeviceResult> {
    const results = await this.perform([operationOf(operation, options)], false, options);
    if ('crc' in operation && results.length > 1) throw new Errno('EINVAL', `${operation.crc.size} bytes are more than one descriptor takes; there is no CRC of several`);
    return merged(results);
  }

  private perform(operations: readonly Operation[], batch: boolean, options: OperationOptions): Promise<DeviceResult[]> {
    return this.session.perform(`${this.program.name}: ${batch ? 'batch' : operations[0]!.kind} on ${this.name}`, this.run(operations, batch, options.noWait ?? false), this.program.world.scheduler);
  }

  private *run(operations: readonly Operation[], batch: boolean, noWait: boolean): Steps<DeviceResult[]> {
    const submission = yield* this.handle.user.submit(operations, { batch, noWait });
    yield* this.program.await(this.handle, submission);
    return [...submission.results()];
  }
}

function operationOf(operation: BatchOperation, { blockOnFault }: OperationOptions): Operation {
  const base = { pattern: 0n, blockOnFault, rawFrom: false, rawTo: false } as const;
  if ('copy' in operation) return { ...base, kind: 'copy', from: at(operation.copy.from), to: at(operation.copy.to), sizeBytes: operation.copy.size };
  if ('fill' in operation) return { ...base, kind: 'fill', from: 0, to: at(operation.fill.to), sizeBytes: operation.fill.size, pattern: operation.fill.pattern };
  if ('compare' in operation) return { ...base, kind: 'compare', from: at(operation.compare.a), to: at(operation.compare.b), sizeBytes: operation.compare.size };
  if ('crc' in operation) return { ...base, kind: 'crc', from: at(operation.crc.from), to: 0, sizeBytes: operation.crc.size };
  return { ...base, kind: 'noop', from: 0, to: 0, sizeBytes: 0 };
}

function merged(results: readonly OperationResult[]): DeviceResult {
  const at = results.findIndex(({ status }) => status !== 'success');
  const bytesBefore = results.slice(0, Math.max(at, 0)).reduce((sum, { bytes }) => sum + bytes, 0);
  const decisive = results[at] ?? results.at(-1)!;
  const value = decisive.status === 'mismatch' ? bytesBefore + decisive.value : decisive.value;
  return { ...decisive, value, bytes: results.reduce((sum, { bytes }) => sum + bytes, 0) };
}
