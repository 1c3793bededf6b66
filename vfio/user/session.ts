/**
 * The server's end of one connection (QEMU docs/interop/vfio-user.rst), as a state machine: bytes and descriptors in,
 * messages out through a `Transport`. Commands are carried out in the order in which they came; one that sleeps (reset,
 * features, interrupts) lets the later ones wait, while replies to the server's own messages are taken at once: so a
 * region access is answered without waiting for anything that the client would have to answer first. What a client
 * sends wrong ends in an error reply with an errno, or, where the next message cannot be found any more, in the end of
 * this connection. Left out: AF_VSOCK and TCP, any byte order but little-endian.
 */
import { ERRNO, Errno, isErrno } from '../../sim/errno.js';
import { sleep, type Scheduler, type Steps } from '../../sim/task.js';
import type { VfioDeviceOps } from '../device.js';
import { ClientInterrupts } from './client-interrupts.js';
import type { ClientMemory } from './client-memory.js';
import { ClientRequests } from './client-requests.js';
import { DeviceCommands, WRITES_PER_TURN, type RegionFile, type Reply } from './device-commands.js';
import { DeviceFeatures } from './device-features.js';
import {
  BrokenStream, decodeDmaMap, decodeDmaUnmap, decodeVersion, DEFAULT_MAX_DATA_TRANSFER, DMA_UNMAP_SIZE, encodeVersion, FLAG_ERROR, HEADER_SIZE, messageOf, MessageReader,
  newMessage, TYPE_COMMAND, TYPE_REPLY, VERSION_MAJOR, VERSION_MINOR, VFIO_USER_DEVICE_FEATURE, VFIO_USER_DEVICE_GET_INFO, VFIO_USER_DEVICE_GET_IRQ_INFO,
  VFIO_USER_DEVICE_GET_REGION_INFO, VFIO_USER_DEVICE_GET_REGION_IO_FDS, VFIO_USER_DEVICE_RESET, VFIO_USER_DEVICE_SET_IRQS, VFIO_USER_DMA_MAP, VFIO_USER_DMA_UNMAP,
  VFIO_USER_MIG_DATA_READ, VFIO_USER_MIG_DATA_WRITE, VFIO_USER_REGION_READ, VFIO_USER_REGION_WRITE, VFIO_USER_REGION_WRITE_MULTI, VFIO_USER_VERSION,
  type Capabilities, type Header, type Message,
} from './protocol/index.js';
import type { VfioUserTrace } from './trace-kinds.js';
import type { ByteSink, ReceivedDescriptor, Transport } from './transport.js';

/** A device on a socket. */
export interface ServedDevice {
  readonly ops: VfioDeviceOps;
  /** Memory of whoever is connected; the server makes one when a device brings none. */
  readonly memory?: ClientMemory;
  /** Called once, before the first client: what the device does DMA with. */
  connectDma?(memory: ClientMemory): void;
  /** Memory of a region that the client may map; every region is trapped without it. */
  regionFile?(index: number): RegionFile | undefined;
}

export interface SessionLimits {
  /** Most bytes of data in one message. */
  readonly maxTransferBytes: number;
  /** Descriptors that are taken with one message. */
  readonly maxDescriptors: number;
  readonly maxDmaMaps: number;
  /** Mappings of at most 1 GiB of the client's memory: a process has about 65,000, and needs some itself. */
  readonly maxMappings: number;
  /** Commands that wait for one that sleeps; more are not read before. */
  readonly maxWaiting: number;
}

export const DEFAULT_LIMITS: SessionLimits = { maxTransferBytes: DEFAULT_MAX_DATA_TRANSFER, maxDescriptors: 16, maxDmaMaps: 65535, maxMappings: 8192, maxWaiting: 64 };
/** Before versions are agreed on nothing longer is taken: there is no more to say. */
const VERSION_LIMIT_BYTES = HEADER_SIZE + 4096;
/** What a record may add to the data of a message. */
const RECORD_BYTES = 64;

/** The other end of a second socket, for messages from the server and their replies. */
export interface TwinChannel {
  readonly transport: Transport;
  /** Goes to the client; closed here afterwards. */
  readonly descriptor: number;
  /** The reply with the descriptor has been queued. */
  handedOver(): void;
}

export interface SessionOptions {
  readonly device: ServedDevice;
  readonly memory: ClientMemory;
  readonly transport: Transport;
  readonly scheduler: Scheduler;
  readonly limits?: Partial<SessionLimits>;
  /** Makes a second channel for a client that can use one; `replies` takes what arrives there. */
  readonly openTwin?: (replies: ByteSink) => TwinChannel;
  readonly trace?: VfioUserTrace;
  /** An error of ours in a handler: the client gets EIO and the session goes on. */
  readonly onBug?: (error: unknown) => void;
  /** Everything of the client has been given back. */
  readonly onEnd?: () => void;
  /** `vfio-user.keep-windows`, `vfio-user.leak-descriptors` */
  readonly defects?: ReadonlySet<string>;
}

export class Session implements ByteSink {
  /** Commands that were refused. */
  refusals = 0;
  private readonly options: SessionOptions;
  private readonly limits: SessionLimits;
  private readonly ops: VfioDeviceOps;
  private readonly memory: ClientMemory;
  private readonly reader: MessageReader;
  private readonly requests: ClientRequests;
  private readonly interrupts: ClientInterrupts;
  private readonly features: DeviceFeatures;
  private readonly commands: DeviceCommands;
  private readonly leakDescriptors: boolean;
  private readonly keepWindows: boolean;
  private readonly waiting: Message[] = [];
  private state: 'version' | 'running' | 'ending' | 'ended' = 'version';
  /** A command sleeps. */
  private busy = false;
  private twin: TwinChannel | undefined;

  constructor(options: SessionOptions) {
    const { device, scheduler, memory, defects } = options;
    this.options = options;
    this.limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.ops = device.ops;
    this.memory = memory;
    this.reader = new MessageReader(VERSION_LIMIT_BYTES, this.limits.maxDescriptors);
    this.requests = new ClientRequests((bytes) => (this.twin?.transport ?? options.transport).send(bytes));
    this.interrupts = new ClientInterrupts(this.ops, scheduler);
    this.features = new DeviceFeatures({ ops: this.ops, scheduler, log: memory.log, maxTransferBytes: this.limits.maxTransferBytes });
    this.commands = new DeviceCommands(this.ops, (index) => device.regionFile?.(index), this.limits.maxTransferBytes);
    this.leakDescriptors = defects?.has('vfio-user.leak-descriptors') ?? false;
    this.keepWindows = defects?.has('vfio-user.keep-windows') ?? false;
  }

  /** Where the next bytes of the client go. */
  get space(): Uint8Array {
    return this.reader.space;
  }

  /** The rest of a message is still to come. */
  get midMessage(): boolean {
    return this.reader.midMessage;
  }

  /** False when nothing more should be read for the moment (`Transport.resume` says when), or ever. */
  get accepting(): boolean {
    return (this.state === 'version' || this.state === 'running') && this.waiting.length < this.limits.maxWaiting;
  }

  get ended(): boolean {
    return this.state === 'ended';
  }

  /** Eventfds of the client in use, and its messages that wait. */
  get wiredInterrupts(): number {
    return this.interrupts.wired;
  }

  /**
   * `count` bytes were put into `space`, and these descriptors came with them.
   * @param truncated descriptors were lost on the way
   */
  received(count: number, descriptors: readonly ReceivedDescriptor[] = [], truncated = false): void {
    if (this.over) {
      for (const descriptor of descriptors) descriptor.close();
      return;
    }
    try {
      const message = this.reader.advance(count, descriptors, truncated);
      if (message !== undefined) this.accept(message);
    } catch (error) {
      if (!(error instanceof BrokenStream)) throw error;
      this.refuse(error.header, new Errno('EINVAL', error.message));
      this.end(error.message);
    }
  }

  /** The client closed the connection, or it broke. */
  disconnected(why = 'client left'): void {
    this.end(why);
  }

  /** The server ends the connection. */
  close(): void {
    this.end('server stopped');
  }

  private get over(): boolean {
    return this.state === 'ending' || this.state === 'ended';
  }

  private accept(message: Message): void {
    const { header } = message;
    if (header.type === TYPE_REPLY) {
      this.requests.reply(message);
      this.release(message);
    } else if (this.busy || this.waiting.length > 0) {
      this.waiting.push(message);
    } else {
      this.serve(message);
    }
  }

  /** One command, to its reply or, if it sleeps, to where it sleeps. */
  private serve(message: Message): void {
    const { header, payload, descriptors, truncated } = message;
    this.options.trace?.command(this.ops.name, header.command, payload.length, descriptors.length);
    let asleep = false;
    try {
      if (header.type !== TYPE_COMMAND) throw new Errno('EINVAL', `a message of type ${header.type}`);
      if (truncated) throw new Errno('EINVAL', 'not all descriptors of the message arrived');
      if (this.state === 'version' || header.command === VFIO_USER_VERSION) {
        this.negotiate(message);
        return;
      }
      const steps = this.sleeping(header.command, message);
      if (steps === undefined) {
        this.reply(header, this.atOnce(header.command, message));
      } else {
        asleep = true;
        this.sleep(message, steps);
      }
    } catch (error) {
      this.failed(header, error);
    } finally {
      // what sleeps has its descriptors until it is done
      if (!asleep) this.release(message);
    }
  }

  /** Commands that end at once. EINVAL unknown ones. */
  private atOnce(command: number, { payload, descriptors }: Message): Reply | undefined {
    switch (command) {
      case VFIO_USER_REGION_READ: return this.commands.read(payload);
      case VFIO_USER_REGION_WRITE: return this.commands.write(payload);
      case VFIO_USER_REGION_WRITE_MULTI: return this.commands.writeMulti(payload);
      case VFIO_USER_DMA_MAP: return this.dmaMap(payload, descriptors);
      case VFIO_USER_DMA_UNMAP: return this.dmaUnmap(payload);
      case VFIO_USER_DEVICE_GET_INFO: return this.commands.info(payload);
      case VFIO_USER_DEVICE_GET_REGION_INFO: return this.commands.regionInfo(payload);
      case VFIO_USER_DEVICE_GET_REGION_IO_FDS: return this.commands.regionIoFds(payload);
      case VFIO_USER_DEVICE_GET_IRQ_INFO: return this.commands.irqInfo(payload);
      default: throw new Errno('EINVAL', `unknown command ${command}`);
    }
  }

  /** Commands of which a driver may make a longer story. */
  private sleeping(command: number, { payload, descriptors }: Message): Steps<Uint8Array | void> | undefined {
    switch (command) {
      case VFIO_USER_REGION_WRITE_MULTI: return this.commands.writesInTurns(payload) ? this.writeMulti(payload) : undefined;
      case VFIO_USER_DEVICE_SET_IRQS: return this.interrupts.set(payload, descriptors);
      case VFIO_USER_DEVICE_RESET: return this.ops.reset();
      case VFIO_USER_DEVICE_FEATURE: return this.features.feature(payload);
      case VFIO_USER_MIG_DATA_READ: return this.features.readStream(payload);
      case VFIO_USER_MIG_DATA_WRITE: return this.features.writeStream(payload);
      default: return undefined;
    }
  }

  /** Many writes: others get their turn between some and some more. */
  private *writeMulti(payload: Uint8Array): Steps<Uint8Array> {
    for (let first = 0; ; first += WRITES_PER_TURN) {
      const reply = this.commands.writeMulti(payload, first);
      if (reply !== undefined) return reply.payload;
      yield* sleep(this.options.scheduler.clock, 0);
    }
  }

  private sleep(message: Message, steps: Steps<Uint8Array | void>): void {
    this.busy = true;
    this.options.scheduler.spawn(`vfio-user ${this.ops.name} command ${message.header.command}`, this.carryOut(message, steps), { daemon: true });
  }

  private *carryOut(message: Message, steps: Steps<Uint8Array | void>): Steps {
    try {
      const payload = yield* steps;
      this.reply(message.header, payload === undefined ? undefined : { payload });
    } catch (error) {
      this.failed(message.header, error);
    }
    this.release(message);
    this.busy = false;
    this.serveWaiting();
  }

  private serveWaiting(): void {
    if (this.state === 'ending') {
      this.startTearDown();
      return;
    }
    const had = this.waiting.length;
    while (!this.busy && !this.over && this.waiting.length > 0) this.serve(this.waiting.shift()!);
    if (had > 0 && this.accepting) this.options.transport.resume();
  }

  // --- versions

  /** Anything but a first VERSION that can be agreed on ends the connection. */
  private negotiate({ header, payload }: Message): void {
    if (this.state !== 'version') throw new Errno('EINVAL', 'versions are agreed on already');
    try {
      if (header.command !== VFIO_USER_VERSION) throw new Errno('EINVAL', `command ${header.command} before VERSION`);
      const offered = decodeVersion(payload);
      if (offered.major !== VERSION_MAJOR) throw new Errno('EINVAL', `major version ${offered.major}, spoken is ${VERSION_MAJOR}`);
      this.agree(header, offered.minor, offered.capabilities);
    } catch (error) {
      this.failed(header, error);
      this.end('no common version');
    }
  }

  private agree(header: Header, offeredMinor: number, theirs: Capabilities): void {
    const minor = Math.min(offeredMinor, VERSION_MINOR);
    const { limits, options } = this;
    if (theirs.max_data_xfer_size === 0) throw new Errno('EINVAL', 'VERSION: no data can be transferred');
    if (theirs.twin_socket?.supported === true && options.openTwin !== undefined) this.twin = options.openTwin(this.twinReader());
    const ours: Required<Capabilities> = {
      max_msg_fds: limits.maxDescriptors, max_data_xfer_size: limits.maxTransferBytes, max_dma_maps: limits.maxDmaMaps, pgsizes: 4096, write_multiple: true,
      twin_socket: this.twin === undefined ? { supported: false } : { supported: true, fd_index: 0 },
    };
    // only what the client knows
    const common = Object.fromEntries(Object.entries(ours).filter(([name]) => theirs[name as keyof Capabilities] !== undefined)) as Capabilities;
    this.state = 'running';
    if (offeredMinor === 0 && isQemu(theirs)) this.requests.doubtLayout();
    this.reader.limitBytes = HEADER_SIZE + RECORD_BYTES + limits.maxTransferBytes;
    this.memory.connect({ requests: this.requests, maxTransferBytes: Math.min(theirs.max_data_xfer_size ?? DEFAULT_MAX_DATA_TRANSFER, DEFAULT_MAX_DATA_TRANSFER) });
    options.trace?.connected(this.ops.name, minor);
    const payload = encodeVersion(VERSION_MAJOR, minor, common);
    this.reply(header, { payload, ...(this.twin === undefined ? {} : { descriptors: [this.twin.descriptor] }) });
    this.twin?.handedOver();
  }

  /** Only replies come here. */
  private twinReader(): ByteSink {
    const reader = new MessageReader(HEADER_SIZE + RECORD_BYTES + this.limits.maxTransferBytes, 0);
    return {
      get space() {
        return reader.space;
      },
      received: (count, descriptors, truncated) => {
        if (this.over) return;
        try {
          const message = reader.advance(count, descriptors, truncated);
          if (message?.header.type === TYPE_REPLY) this.requests.reply(message);
          else if (message !== undefined) this.end('a command on the channel of the server');
        } catch (error) {
          if (!(error instanceof BrokenStream)) throw error;
          this.end(error.message);
        }
      },
      disconnected: () => this.end('client left the second channel'),
    };
  }

  // --- memory

  private dmaMap(payload: Uint8Array, descriptors: ReceivedDescriptor[]): undefined {
    const request = decodeDmaMap(payload);
    if (descriptors.length > 1) throw new Errno('EINVAL', `DMA_MAP: ${descriptors.length} descriptors`);
    const descriptor = descriptors[0];
    this.memory.map(request, descriptor, this.limits);
    this.options.trace?.dmaMap(this.ops.name, request.address, request.sizeBytes, request.flags, descriptor !== undefined);
  }

  private dmaUnmap(payload: Uint8Array): Reply {
    const request = decodeDmaUnmap(payload);
    this.memory.unmap(request);
    this.options.trace?.dmaUnmap(this.ops.name, request.address, request.sizeBytes, request.flags);
    return { payload: payload.slice(0, DMA_UNMAP_SIZE) };
  }

  // --- replies

  private reply({ id, command, noReply }: Header, reply: Reply | undefined): void {
    if (noReply || this.over) return;
    this.options.transport.send(messageOf(id, command, TYPE_REPLY, reply?.payload), reply?.descriptors);
  }

  private failed(header: Header, error: unknown): void {
    if (isErrno(error)) {
      this.refuse(header, error);
      return;
    }
    // the client must not pay for a bug of ours with its life: some abort when a server leaves
    this.refuse(header, new Errno('EIO', 'the server failed'));
    this.options.onBug?.(error);
  }

  private refuse({ id, command, noReply }: Header, error: Errno): void {
    this.refusals++;
    this.options.trace?.refused(this.ops.name, command, error.code);
    if (!noReply && !this.over) this.options.transport.send(newMessage(id, command, TYPE_REPLY | FLAG_ERROR, 0, ERRNO[error.code]));
  }

  private release({ descriptors }: Message): void {
    if (!this.leakDescriptors) for (const descriptor of descriptors) descriptor.close();
    descriptors.length = 0;
  }

  // --- the end

  /** All of the client's memory and descriptors go; the device keeps its state ("Client Disconnection"). */
  private end(why: string): void {
    if (this.over) return;
    this.state = 'ending';
    this.options.trace?.disconnected(this.ops.name, why);
    this.options.transport.close();
    this.twin?.transport.close();
    this.reader.drop();
    for (const message of this.waiting.splice(0)) this.release(message);
    if (!this.keepWindows) this.memory.disconnect();
    this.requests.end();
    if (!this.busy) this.startTearDown();
  }

  private startTearDown(): void {
    this.busy = true;
    this.options.scheduler.spawn(`vfio-user ${this.ops.name} end`, this.tearDown(), { daemon: true });
  }

  private *tearDown(): Steps {
    try {
      yield* this.interrupts.tearDown();
      yield* this.features.end();
    } catch (error) {
      this.options.onBug?.(error);
    }
    this.state = 'ended';
    this.options.onEnd?.();
  }
}

/** What QEMU's client says of itself in every version so far (hw/vfio-user/proxy.c); up to 10.2 it has its own idea of DMA_READ and DMA_WRITE. */
function isQemu({ max_msg_fds: descriptors, max_dma_maps: maps, pgsizes, write_multiple: multiple }: Capabilities): boolean {
  return descriptors === 16 && maps === 65535 && pgsizes !== undefined && multiple === true;
}
