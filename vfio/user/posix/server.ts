/**
 * A device on a Unix socket. One client at a time: others wait in the socket's queue, and are served when it has left
 * or died and everything of it has been given back; the device keeps its state meanwhile. Many servers live in one
 * process and share its event loop; the scheduler's clock has to run by itself (`WallClock`).
 */
import { lstatSync, rmSync, unlinkSync } from 'node:fs';
import type { Scheduler, Steps } from '../../../sim/task.js';
import { assert } from '../../../sim/assert.js';
import { Completion, WaitQueue } from '../../../sim/task.js';
import { ClientMemory } from '../client-memory.js';
import { spawnDeviceTask } from '../device-task.js';
import type { ConnectionRecorder, DeviceRecorder } from '../recording/recorder.js';
import { DEFAULT_LIMITS, Session, type ServedDevice, type SessionLimits, type TwinChannel } from '../session.js';
import type { VfioUserTrace } from '../trace-kinds.js';
import type { ByteSink, Enter } from '../transport.js';
import { AF_UNIX, callError, EAGAIN, posixCalls, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, type BugReport, type PollHandle, type PosixCalls } from './calls.js';
import type { WindowPolicy } from './descriptor.js';
import { listenUnix, MessageArena, UnixConnection } from './socket.js';

/** Until the next try to accept a client when this process has no descriptor left. */
const RETRY_NS = 100_000_000;

export interface VfioUserServerOptions {
  readonly path: string;
  readonly device: ServedDevice;
  readonly scheduler: Scheduler;
  readonly limits?: Partial<SessionLimits>;
  /** `map-sealed` by default. */
  readonly policy?: WindowPolicy;
  readonly trace?: VfioUserTrace;
  /** An error of ours in a handler; the client gets EIO. */
  readonly onBug?: (error: unknown) => void;
  /** How anything that comes from outside gets into the machine, such as `WallClock.enter`; at once by default. */
  readonly enter?: Enter;
  /**
   * Who starts, stops and waits for this server when they are no tasks of the device's machine: opening, closing and the
   * end of a connection are then inputs of the machine too. `scheduler`, and no inputs, by default.
   */
  readonly outside?: Scheduler;
  /** A client came, or has left. */
  readonly onChange?: () => void;
  /** Everything that comes from outside is recorded here; needs `outside`. */
  readonly recorder?: DeviceRecorder;
  /** `vfio-user.keep-windows`, `vfio-user.leak-descriptors` */
  readonly defects?: ReadonlySet<string>;
}

export class VfioUserServer {
  readonly path: string;
  /** Memory of whoever is connected. */
  readonly memory: ClientMemory;
  /** Connections so far. */
  connections = 0;
  private readonly options: VfioUserServerOptions;
  private readonly calls: PosixCalls;
  private readonly enter: Enter;
  private readonly onBug: BugReport;
  private readonly outside: Scheduler;
  private readonly changed: WaitQueue;
  private arena: MessageArena | undefined;
  private listener = -1;
  private watcher: PollHandle | undefined;
  private session: Session | undefined;
  private recorded: ConnectionRecorder | undefined;

  /** @throws Errno ENOSYS as `posixCalls` */
  constructor(options: VfioUserServerOptions) {
    this.options = options;
    this.path = options.path;
    this.calls = posixCalls();
    this.memory = options.device.memory ?? new ClientMemory();
    this.enter = options.enter ?? ((action) => action());
    this.outside = options.outside ?? options.scheduler;
    this.onBug = options.onBug ?? ((error) => this.outside.clock.post(0, () => rethrow(error)));
    assert(options.recorder === undefined || this.outside !== options.scheduler, 'the tasks of who starts and stops a recorded server are no part of its machine');
    this.changed = new WaitQueue(this.outside, `clients of ${options.path}`);
    options.device.connectDma?.(this.memory);
  }

  /** A client is connected, or what it left is being tidied up. */
  get busy(): boolean {
    return this.session !== undefined;
  }

  /** Opens the device and listens. EADDRINUSE, ENAMETOOLONG, and what the device refuses. */
  *start(): Steps {
    const { calls, path } = this;
    yield* this.carryOut('open');
    try {
      this.arena = new MessageArena(calls);
      this.listener = listenUnix(calls, path, unlinkSync, (name) => lstatSync(name).isSocket());
    } catch (error) {
      this.arena?.close();
      yield* this.carryOut('close');
      throw error;
    }
    this.watch();
  }

  /** Ends the connection and the socket, and closes the device. */
  *stop(): Steps {
    if (this.listener < 0) return;
    this.unwatch();
    this.calls.close(this.listener);
    this.listener = -1;
    // somebody may have tidied it up
    rmSync(this.path, { force: true });
    this.endSession();
    yield* this.changed.until(() => this.session === undefined);
    this.arena!.close();
    yield* this.carryOut('close');
  }

  /** Sleeps until a condition about this server's clients holds. */
  *until(condition: () => boolean): Steps {
    yield* this.changed.until(condition);
  }

  /** In the caller's task, or, when that is outside of the machine, in one of the machine. */
  private *carryOut(what: 'open' | 'close'): Steps {
    const { device, scheduler, outside, recorder } = this.options;
    if (outside === undefined) {
      yield* device.ops[what]();
      return;
    }
    const ended = new Completion(outside, `${what} of ${this.path}`);
    let failure: { readonly error: unknown } | undefined;
    this.enter(() => {
      recorder?.[what]();
      spawnDeviceTask(scheduler, device.ops, what, (met) => {
        failure = met;
        ended.complete();
      });
    });
    yield* ended.wait();
    if (failure !== undefined) throw failure.error;
  }

  private endSession(): void {
    const { session, recorded } = this;
    if (session === undefined) return;
    const end = (): void => {
      recorded?.stopped();
      session.close();
    };
    if (this.options.outside === undefined) end();
    else this.enter(end);
  }

  private watch(): void {
    this.watcher ??= this.calls.watch(this.listener, { readable: true }, () => this.accept(), this.onBug);
  }

  private unwatch(): void {
    this.watcher?.close();
    this.watcher = undefined;
  }

  /** What clients do. An error of ours that escaped a handler must not end the process, and clients with it. */
  private readonly arrived = (action: () => void): void => {
    try {
      this.enter(action);
    } catch (error) {
      this.onBug(error);
    }
  };

  private accept(): void {
    const { calls } = this;
    if (this.listener < 0 || this.session !== undefined) return;
    const fd = calls.accept4(this.listener, null, null, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) {
      if (calls.errno() === EAGAIN) return;
      this.unwatch();
      this.outside.clock.post(RETRY_NS, () => {
        if (this.listener >= 0 && this.session === undefined) this.watch();
      });
      return;
    }
    this.unwatch();
    this.arrived(() => this.serve(fd));
    if (this.session !== undefined) return;
    calls.close(fd);
    this.watch();
  }

  private serve(fd: number): void {
    const { options, memory } = this;
    const { device, scheduler, recorder, trace, defects } = options;
    const limits = { ...DEFAULT_LIMITS, ...options.limits };
    const connection = this.connection(fd);
    this.connections++;
    const recorded = recorder?.connected(connection, limits);
    const openTwin = (replies: ByteSink): TwinChannel => this.openTwin(replies);
    const session = new Session({
      device, memory, scheduler, limits, transport: recorded?.transport ?? connection, openTwin: recorded?.twin(openTwin) ?? openTwin, onEnd: () => this.ended(),
      ...(trace === undefined ? {} : { trace }), onBug: this.onBug,
      ...(defects === undefined ? {} : { defects }),
    });
    this.session = session;
    this.recorded = recorded;
    connection.start(recorded?.sink(session) ?? session);
    this.changed.wakeAll();
    this.options.onChange?.();
  }

  private ended(): void {
    this.session = this.recorded = undefined;
    this.changed.wakeAll();
    this.options.onChange?.();
    if (this.listener >= 0) this.watch();
  }

  private connection(fd: number): UnixConnection {
    const { policy = 'map-sealed', limits } = this.options;
    return new UnixConnection({ calls: this.calls, arena: this.arena!, fd, policy, maxDescriptors: limits?.maxDescriptors ?? DEFAULT_LIMITS.maxDescriptors, enter: this.arrived, onBug: this.onBug });
  }

  private openTwin(replies: ByteSink): TwinChannel {
    const { calls } = this;
    const pair = new Int32Array(2);
    if (calls.socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0) throw callError(calls, 'no second channel');
    const transport = this.connection(pair[0]!);
    transport.start(replies);
    return { transport, descriptor: pair[1]!, handedOver: () => void calls.close(pair[1]!) };
  }
}

/** In an event: who owns the clock takes what events throw. */
function rethrow(error: unknown): never {
  throw error;
}
