/**
 * A process of a topology: its steps, run as a task. A step that is refused, or does not do what it says, is
 * reported and ends the program; the process then exits, as a program that checks its errors would.
 */
import { createHash } from 'node:crypto';
import type { Malloc } from '../../host/mm/malloc.js';
import { SegmentationFault } from '../../host/mm/mm.js';
import type { Process } from '../../host/process.js';
import { hex, hiOf, loOf, toU64 } from '../../sim/address.js';
import { Errno, isErrno } from '../../sim/errno.js';
import { Random } from '../../sim/random.js';
import { WaitQueue, type Steps, type Task } from '../../sim/task.js';
import { STEP_VERBS, type BufferRef, type Operand, type Step, type Submit } from '../topology/schema.js';
import type { Flow } from './flows.js';
import { CpuMemory } from './cpu-memory.js';
import { IDLE_NS, type DataFile, type Operation, type OperationResult, type Submission, type UserHandle } from './operations.js';
import type { ScenarioWorld } from './world.js';

const PROT = { none: 0, r: 1, rw: 3, rx: 5, rwx: 7 } as const;
const PAGE_LEVEL = { '4KiB': undefined, '2MiB': 1, '1GiB': 2 } as const;

interface NamedBuffer {
  address: number;
  sizeBytes: number;
  /** Comes from malloc, not mmap. */
  readonly block: boolean;
}

/** An open file of the program on a device. */
export interface Handle {
  readonly fd: number;
  readonly user: UserHandle;
  readonly flow: Flow;
  readonly pending: Submission[];
}

/** Thrown at the next point where a signal is looked at. */
export class Killed extends Error {
  override readonly name = 'Killed';

  constructor(process: string) {
    super(`process ${process} was killed`);
  }
}

/** The program called exit. */
class Exited extends Error {}

/** A step did not do what the topology says; the innermost step reports it. */
class StepFailure extends Error {
  reported = false;
}

export class Program {
  readonly name: string;
  readonly process: Process;
  task: Task | undefined;
  /** The step it is in, such as `step 5 (wait)`; empty before the first and after the last. */
  current = '';
  readonly malloc: Malloc;
  /** Its loads and stores. */
  readonly cpu: CpuMemory;
  readonly world: ScenarioWorld;
  private readonly buffers = new Map<string, NamedBuffer>();
  private readonly handles = new Map<string, Handle>();
  private readonly signals: WaitQueue;
  private readonly ended: WaitQueue;
  private killed = false;

  constructor(world: ScenarioWorld, process: Process, malloc: Malloc) {
    this.world = world;
    this.name = process.name;
    this.process = process;
    this.malloc = malloc;
    this.cpu = new CpuMemory(world.clock, world.timing, process.mm);
    this.signals = new WaitQueue(world.scheduler, `a signal of ${process.name}`);
    this.ended = new WaitQueue(world.scheduler, `end of ${process.name}`);
  }

  get exited(): boolean {
    return this.process.state === 'exited';
  }

  /** Runs `steps`, then exits. Never throws what a step did wrong: that goes to the world's report. */
  *run(steps: readonly Step[]): Steps {
    try {
      yield* this.steps(steps, '');
    } catch (error) {
      if (!(error instanceof Killed || error instanceof Exited || error instanceof StepFailure)) throw error;
      if (error instanceof Killed) this.failPending();
    }
    yield* this.exit();
  }

  /** Ends the process, of its own will or killed. */
  *exit(): Steps {
    yield* this.world.beforeTeardown();
    yield* this.process.exit();
    this.ended.wakeAll();
  }

  /** SIGKILL: takes effect where the program sleeps in user space or between two steps. */
  kill(): void {
    this.killed = true;
    this.signals.wakeAll();
  }

  /** Its kernel is gone from under it: nothing of it runs any more, nothing is closed. */
  abandon(reason: string): void {
    for (const handle of this.handles.values()) handle.flow.fail(reason);
  }

  /** A killed program does not wait for what it submitted. */
  failPending(): void {
    for (const handle of this.handles.values()) if (handle.pending.length > 0) handle.flow.fail('process killed');
  }

  *join(): Steps {
    yield* this.ended.until(() => this.exited);
  }

  /** Open handles by name. */
  get opened(): ReadonlyMap<string, Handle> {
    return this.handles;
  }

  /** Buffers by name, for looking from outside. */
  addressOf(buffer: string): number | undefined {
    return this.buffers.get(buffer)?.address;
  }

  private *steps(steps: readonly Step[], path: string): Steps {
    for (const [i, step] of steps.entries()) {
      this.checkSignals();
      const where = `${path}step ${i + 1} (${STEP_VERBS.find((verb) => (step as Record<string, unknown>)[verb] !== undefined)})`;
      this.current = where;
      yield* this.step(step, where, path);
      this.current = '';
      this.world.progress.stepsDone++;
    }
  }

  private *step(step: Step, where: string, path: string): Steps {
    try {
      yield* this.perform(step, path);
    } catch (error) {
      const code = isErrno(error) ? error.code : error instanceof SegmentationFault ? 'SIGSEGV' : undefined;
      if (code !== undefined && code === step.expect) return;
      if (code !== undefined) throw this.report(where, `${step.expect === undefined ? '' : `expected ${step.expect}, got `}${(error as Error).message}`);
      if (error instanceof StepFailure && !error.reported) throw this.report(where, error.message);
      throw error;
    }
    if (step.expect !== undefined) throw this.report(where, `expected ${step.expect}, but it went well`);
  }

  private report(where: string, message: string): StepFailure {
    this.world.failures.push(`${this.world.fullName(this.name)}: ${where}: ${message}`);
    for (const handle of this.handles.values()) handle.flow.fail(`${where}: ${message}`);
    const failure = new StepFailure(message);
    failure.reported = true;
    return failure;
  }

  private checkSignals(): void {
    if (this.killed) throw new Killed(this.name);
  }

  private *perform(step: Step, path: string): Steps {
    if (step.open !== undefined) return void (yield* this.open(step.open));
    if (step.close !== undefined) return yield* this.close(step.close.handle);
    if (step.bind !== undefined) return yield* this.world.bind(this.process, step.bind.device, step.bind['mm-exit']);
    if (step.unbind !== undefined) {
      yield* this.world.beforeTeardown();
      return yield* this.world.unbind(this.process, step.unbind.device);
    }
    if (step.malloc !== undefined) return yield* this.allocate(step.malloc.name, step.malloc.size);
    if (step.mmap !== undefined) return yield* this.mmap(step.mmap);
    if (step.munmap !== undefined) return yield* this.munmap(step.munmap);
    if (step.mremap !== undefined) return yield* this.mremap(step.mremap.buffer, step.mremap.size);
    if (step.mprotect !== undefined) {
      const { address, sizeBytes } = this.resolve({ ...step.mprotect, size: step.mprotect.size });
      return yield* this.process.mm.mprotect(address, sizeBytes, PROT[step.mprotect.prot]);
    }
    if (step.touch !== undefined) {
      const { address, sizeBytes } = this.resolve(step.touch.buffer);
      return yield* this.cpu.touch(address, sizeBytes, step.touch.write);
    }
    if (step.fill !== undefined) return yield* this.fill(step.fill);
    if (step.submit !== undefined) return yield* this.submit(step.submit);
    if (step.pread !== undefined) return yield* this.transfer('pread', step.pread.from, step.pread.buffer, step.pread.offset);
    if (step.pwrite !== undefined) return yield* this.transfer('pwrite', step.pwrite.to, step.pwrite.buffer, step.pwrite.offset);
    if (step.fsync !== undefined) return yield* this.dataOf(step.fsync.handle).fsync();
    if (step.wait !== undefined) return yield* this.wait(step.wait.for, step.wait.status);
    if (step.verify !== undefined) return yield* this.verify(step.verify);
    if (step.fork !== undefined) return yield* this.fork(step.fork.name, step.fork.steps);
    if (step.join !== undefined) return yield* this.world.join(step.join.process);
    if (step.peek !== undefined) return this.peek(step.peek);
    if (step.poke !== undefined) return this.poke(step.poke);
    if (step.sleep !== undefined) return yield* this.sleep(step.sleep);
    if (step.kill !== undefined) return this.world.kill(step.kill.process);
    if (step.repeat !== undefined) {
      for (let i = 0; i < step.repeat.times; i++) yield* this.steps(step.repeat.steps, `${path}repeat ${i + 1}, `);
      return;
    }
    throw new Exited();
  }

  /** Opens a user queue of a device under a name of its own. What the driver refuses. */
  *open(open: NonNullable<Step['open']>): Steps<Handle> {
    const name = open.as ?? open.device;
    const { fd, user } = yield* this.world.open(this.process, open.device, open.queue, this.malloc);
    const flow = this.world.newFlow(this.name, name, user.device);
    user.onEnded = (end) => flow.ended(end);
    const handle: Handle = { fd, user, flow, pending: [] };
    this.handles.set(name, handle);
    user.watch(() => this.signals.wakeAll());
    this.world.opened(user, flow);
    return handle;
  }

  /** Closes a handle, by default the only one. EBADF. */
  *close(name: string | undefined): Steps {
    yield* this.world.beforeTeardown();
    const [key, handle] = this.handle(name);
    this.handles.delete(key);
    yield* this.process.close(handle.fd);
  }

  private *allocate(name: string, sizeBytes: number): Steps {
    this.buffers.set(name, { address: yield* this.malloc.malloc(sizeBytes), sizeBytes, block: true });
  }

  private *mmap(mmap: NonNullable<Step['mmap']>): Steps {
    const options = { prot: PROT[mmap.prot], shared: mmap.shared };
    const hugeLevel = PAGE_LEVEL[mmap['page-size']];
    const { mm } = this.process;
    if (mmap.file !== undefined) {
      const content = this.world.file(mmap.file);
      const part = mmap.size === undefined ? content : content.subarray(0, mmap.size);
      this.buffers.set(mmap.name, { address: yield* mm.mmapFile(part, options), sizeBytes: part.length, block: false });
    } else {
      const address = yield* mm.mmap(mmap.size!, hugeLevel === undefined ? options : { ...options, hugeLevel });
      this.buffers.set(mmap.name, { address, sizeBytes: mmap.size!, block: false });
    }
  }

  private *munmap(ref: BufferRef): Steps {
    const { name, address, sizeBytes, buffer } = this.resolve(ref);
    const whole = address === buffer.address && sizeBytes === buffer.sizeBytes;
    if (buffer.block && whole) yield* this.malloc.free(buffer.address);
    else yield* this.process.mm.munmap(address, sizeBytes);
    if (whole) this.buffers.delete(name);
  }

  private *mremap(name: string, sizeBytes: number): Steps {
    const { buffer } = this.resolve(name);
    buffer.address = yield* this.process.mm.mremap(buffer.address, buffer.sizeBytes, sizeBytes);
    buffer.sizeBytes = sizeBytes;
  }

  private *fill(fill: NonNullable<Step['fill']>): Steps {
    const { address, sizeBytes } = this.resolve(fill.buffer);
    if (fill.random === undefined) return yield* this.cpu.fill(address, sizeBytes, fill.value ?? 0);
    yield* this.cpu.write(address, seededBytes(fill.random, sizeBytes));
  }

  private *submit(submit: Submit): Steps {
    const [, handle] = this.handle(submit.to);
    const operations: Operation[] = [];
    for (let i = 0; i < submit.times; i++) operations.push(...this.operations(submit));
    handle.pending.push(yield* handle.user.submit(operations, { batch: submit.batch, noWait: submit['no-wait'] }));
  }

  /** Reads or writes a file of a device. A short count fails the step: the buffer reaches beyond the end. */
  private *transfer(verb: 'pread' | 'pwrite', name: string | undefined, ref: BufferRef, offset: number): Steps {
    const { address, sizeBytes } = this.resolve(ref);
    const bytes = yield* this.dataOf(name)[verb](address, offset, sizeBytes);
    if (bytes < sizeBytes) throw new StepFailure(`${verb} moved ${bytes} of ${sizeBytes} bytes: the device ends there`);
  }

  /** EBADF; ESPIPE a device without data. */
  private dataOf(name: string | undefined): DataFile {
    const [key, { user }] = this.handle(name);
    if (user.data === undefined) throw new Errno('ESPIPE', `${key} is no file that can be read or written at an offset`);
    return user.data;
  }

  private operations(submit: Submit): Operation[] {
    const part = (ref: Operand | undefined): { address: number; sizeBytes: number; raw: boolean } => {
      if (ref === undefined) return { address: 0, sizeBytes: Infinity, raw: false };
      if (typeof ref !== 'string' && 'address' in ref) return { address: Number(ref.address), sizeBytes: ref.size, raw: true };
      return { ...this.resolve(ref), raw: false };
    };
    const kind = submit.copy !== undefined ? 'copy' : submit.fill !== undefined ? 'fill' : submit.compare !== undefined ? 'compare' : submit.crc !== undefined ? 'crc' : 'noop';
    const from = part(submit.copy?.from ?? submit.compare?.a ?? submit.crc?.from);
    const to = part(submit.copy?.to ?? submit.compare?.b ?? submit.fill?.buffer);
    const total = kind === 'noop' ? 0 : Math.min(from.sizeBytes, to.sizeBytes);
    const base = { kind, pattern: submit.fill?.pattern ?? 0n, blockOnFault: submit['block-on-fault'], rawFrom: from.raw, rawTo: to.raw } as const;
    if (kind === 'noop') return [{ ...base, from: 0, to: 0, sizeBytes: 0 }];
    const chunk = submit.chunk ?? total;
    const operations: Operation[] = [];
    for (let at = 0; at < total; at += chunk) {
      operations.push({ ...base, from: from.address + at, to: to.address + at, sizeBytes: Math.min(chunk, total - at) });
    }
    return operations;
  }

  private *wait(name: string | undefined, status: NonNullable<Step['wait']>['status']): Steps {
    const handles = name === undefined ? [...this.handles.values()] : [this.handle(name)[1]];
    for (const handle of handles) {
      for (let submission = handle.pending[0]; submission !== undefined; submission = handle.pending[0]) {
        yield* this.await(handle, submission);
        this.judge(handle, submission.results(), status);
      }
    }
  }

  /** Waits for one submission of a handle; a kill ends the wait. */
  *await(handle: Handle, submission: Submission): Steps {
    if (!handle.pending.includes(submission)) handle.pending.push(submission);
    const { user } = handle;
    const { timing } = this.world;
    for (let { activity } = user; !(yield* submission.poll()); activity = user.activity) {
      yield* this.signals.untilOrTimeout(() => this.killed || user.activity !== activity, IDLE_NS);
      yield* this.sleep(timing.jittered(timing.options.pollNs));
    }
    handle.pending.splice(handle.pending.indexOf(submission), 1);
  }

  /** `success`: all of them. Another status: at least one, and the rest succeeded. */
  private judge(handle: Handle, results: readonly OperationResult[], status: NonNullable<Step['wait']>['status']): void {
    if (status === 'any') return;
    const met = results.length === 0 || results.some((result) => result.status === status);
    const result = results.find((candidate) => (met ? candidate.status !== status && candidate.status !== 'success' : candidate.status !== status));
    if (result === undefined) return;
    throw new StepFailure(`${handle.flow.name}: an operation ended with ${result.status} (${result.detail}), expected ${status}`);
  }

  private *verify(verify: NonNullable<Step['verify']>): Steps {
    const { name, address, sizeBytes } = this.resolve(verify.buffer);
    const bytes = yield* this.cpu.read(address, sizeBytes);
    let difference: string | undefined;
    if (verify.sha256 !== undefined) {
      const got = sha256(bytes);
      if (got !== verify.sha256) difference = `has SHA-256 ${got}, not ${verify.sha256}`;
    }
    const expected = yield* this.expectedBytes(verify, sizeBytes);
    if (expected !== undefined) difference ??= describeDifference(bytes, expected);
    if (verify.differs) {
      if (difference === undefined) throw new StepFailure(`buffer "${name}" is the same, but should differ`);
    } else if (difference !== undefined) throw new StepFailure(`buffer "${name}" ${difference}`);
  }

  private *expectedBytes(verify: NonNullable<Step['verify']>, sizeBytes: number): Steps<Uint8Array | undefined> {
    if (verify.file !== undefined) return this.world.file(verify.file);
    if (verify.value !== undefined) return new Uint8Array(sizeBytes).fill(verify.value);
    if (verify.equals === undefined) return undefined;
    const other = this.resolve(verify.equals);
    return yield* this.cpu.read(other.address, other.sizeBytes);
  }

  /** Reads a register of a device, as the kernel does. */
  private peek({ device, space, offset, size, equals, mask }: NonNullable<Step['peek']>): void {
    const { pci } = this.world.device(device);
    let value: bigint;
    if (space === 'config') value = BigInt(pci.config.read(offset, configSize(size)));
    else {
      const bar = pci.ioremap(Number(space.slice(3)));
      const lo = bar.read(offset, size);
      value = size === 8 ? toU64(lo, bar.high) : BigInt(lo);
    }
    const compared = mask ?? ~0n;
    if ((value & compared) !== (equals & compared)) throw new StepFailure(`${space} ${hex(offset)} of ${device} is 0x${value.toString(16)}, expected 0x${equals.toString(16)}`);
  }

  private poke({ device, space, offset, size, value = 0n, bytes, enqueue }: NonNullable<Step['poke']>): void {
    const { pci } = this.world.device(device);
    if (space === 'config') return pci.config.write(offset, configSize(size), Number(value & 0xffff_ffffn));
    const bar = pci.ioremap(Number(space.slice(3)));
    if (bytes === undefined) return bar.write(offset, size, loOf(value), hiOf(value));
    const data = new Uint8Array(Buffer.from(bytes, 'hex'));
    if (!enqueue) bar.write64(offset, data);
    else if (bar.enqueue64(offset, data) === 'retry') throw new Errno('EAGAIN', `${space} ${hex(offset)} of ${device} does not accept what is enqueued`);
  }

  private *fork(name: string, steps: readonly Step[]): Steps {
    this.world.start(yield* this.forkProgram(name), steps);
  }

  /** A child with the same buffers and handles, which nobody runs yet. */
  *forkProgram(name: string): Steps<Program> {
    const process = yield* this.world.forkProcess(this.process, name);
    const child = new Program(this.world, process, this.malloc.fork(process.mm));
    for (const [key, buffer] of this.buffers) child.buffers.set(key, { ...buffer });
    for (const [key, handle] of this.handles) {
      handle.user.watch(() => child.signals.wakeAll());
      child.handles.set(key, { fd: handle.fd, user: handle.user, flow: this.world.newFlow(name, key, handle.user.device), pending: [] });
    }
    return child;
  }

  private *sleep(delayNs: number): Steps {
    if (yield* this.signals.untilOrTimeout(() => this.killed, delayNs)) throw new Killed(this.name);
  }

  private handle(name: string | undefined): [string, Handle] {
    if (name === undefined) {
      const [first, second] = this.handles;
      if (first !== undefined && second === undefined) return first;
      throw new Errno('EBADF', first === undefined ? `${this.name} has nothing open` : `${this.name} has several handles open; say which`);
    }
    const handle = this.handles.get(name);
    if (handle === undefined) throw new Errno('EBADF', `${this.name} has no open handle "${name}"`);
    return [name, handle];
  }

  private resolve(ref: BufferRef): { name: string; address: number; sizeBytes: number; buffer: NamedBuffer } {
    const name = typeof ref === 'string' ? ref : ref.buffer;
    const buffer = this.buffers.get(name);
    if (buffer === undefined) throw new Errno('EFAULT', `${this.name} has no buffer "${name}"`);
    const offset = typeof ref === 'string' ? 0 : ref.offset;
    const size = typeof ref === 'string' ? undefined : ref.size;
    return { name, address: buffer.address + offset, sizeBytes: size ?? buffer.sizeBytes - offset, buffer };
  }
}

function configSize(size: 1 | 2 | 4 | 8): 1 | 2 | 4 {
  if (size === 8) throw new Errno('EINVAL', 'config space is accessed by 1, 2 or 4 bytes');
  return size;
}

function describeDifference(bytes: Uint8Array, expected: Uint8Array): string | undefined {
  if (bytes.length !== expected.length) return `has ${bytes.length} bytes, expected are ${expected.length}`;
  if (Buffer.compare(bytes, expected) === 0) return undefined;
  const at = bytes.findIndex((byte, i) => byte !== expected[i]);
  return `differs at offset ${hex(at)}: ${hex(bytes[at]!, 2)}, expected ${hex(expected[at]!, 2)} (SHA-256 ${sha256(bytes).slice(0, 16)}…, expected ${sha256(expected).slice(0, 16)}…)`;
}

function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

function seededBytes(seed: number, length: number): Uint8Array {
  const random = new Random(seed);
  const words = new Uint32Array(Math.ceil(length / 4));
  for (let i = 0; i < words.length; i++) words[i] = random.u32();
  return new Uint8Array(words.buffer, 0, length);
}
