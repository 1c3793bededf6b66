/**
 * Unix stream sockets that carry messages and descriptors. Nothing blocks: what the peer does not take is queued, and
 * a watcher says when it does. A message's descriptors arrive with its first byte, so that reading asks for no more
 * bytes than the reader has space for; descriptors that come in the middle of a message are dropped by the kernel.
 */
import { Errno } from '../../../sim/errno.js';
import type { ByteSink, Enter, Transport } from '../transport.js';
import {
  AF_UNIX, callError, EAGAIN, EINTR, MAP_ANONYMOUS, MAP_PRIVATE, MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_DONTWAIT, MSG_NOSIGNAL, POLLHUP, POLLRDHUP, PROT_READ,
  PROT_WRITE, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET, type BugReport, type PollHandle, type PosixCalls,
} from './calls.js';
import { PosixDescriptor, type WindowPolicy } from './descriptor.js';

// the layout of one message's msghdr, iovec, control data and bytes in a mapping of one page and more
const MSGHDR = 0, IOVEC = 64, CONTROL = 128, CMSG_HEADER = 16, DATA = 4096;
const DATA_BYTES = 65536;
const ARENA_BYTES = DATA + DATA_BYTES;
/** SCM_MAX_FD is 253; this is what a server ever takes or a client ever gives. */
export const MAX_DESCRIPTORS = 64;

/** One arena serves a process: calls do not overlap. Laid out once; per message only lengths change. */
export class MessageArena {
  private readonly calls: PosixCalls;
  /** 0: closed; what was a view of it must not be touched then. */
  private address: number;
  private readonly view: DataView;
  private readonly bytes: Uint8Array;

  constructor(calls: PosixCalls) {
    this.calls = calls;
    this.address = calls.mmap(null, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (this.address === -1) throw callError(calls, 'no memory for messages');
    const buffer = calls.view(this.address, ARENA_BYTES);
    this.view = new DataView(buffer);
    this.bytes = new Uint8Array(buffer);
    this.pointer(MSGHDR + 16, IOVEC);
    this.view.setBigUint64(MSGHDR + 24, 1n, true);
    this.pointer(MSGHDR + 32, CONTROL);
    this.pointer(IOVEC, DATA);
  }

  /** Bytes that were sent; -1 and errno. As much as fits goes, the descriptors with the first byte. */
  send(fd: number, bytes: Uint8Array, descriptors: readonly number[]): number {
    if (this.address === 0) return -1;
    const { view } = this;
    const count = Math.min(bytes.length, DATA_BYTES);
    this.bytes.set(count === bytes.length ? bytes : bytes.subarray(0, count), DATA);
    view.setBigUint64(IOVEC + 8, BigInt(count), true);
    const length = CMSG_HEADER + descriptors.length * 4;
    view.setBigUint64(MSGHDR + 40, BigInt(Math.ceil(length / 8) * 8), true);
    view.setBigUint64(CONTROL, BigInt(length), true);
    view.setInt32(CONTROL + 8, SOL_SOCKET, true);
    view.setInt32(CONTROL + 12, SCM_RIGHTS, true);
    descriptors.forEach((descriptor, i) => view.setInt32(CONTROL + CMSG_HEADER + i * 4, descriptor, true));
    return this.calls.sendmsg(fd, this.address + MSGHDR, MSG_DONTWAIT | MSG_NOSIGNAL);
  }

  /**
   * Bytes that were received into `target`, 0 at the end, -1 and errno. What came along is appended to `descriptors`.
   * @param room most descriptors that are taken; the kernel closes others
   */
  receive(fd: number, target: Uint8Array, room: number, descriptors: number[]): number {
    if (this.address === 0) return -1;
    const { view } = this;
    view.setBigUint64(IOVEC + 8, BigInt(Math.min(target.length, DATA_BYTES)), true);
    view.setBigUint64(MSGHDR + 40, BigInt(CMSG_HEADER + room * 4), true);
    view.setInt32(MSGHDR + 48, 0, true);
    const count = this.calls.recvmsg(fd, this.address + MSGHDR, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (count < 0) return count;
    target.set(this.bytes.subarray(DATA, DATA + count));
    const end = Number(view.getBigUint64(MSGHDR + 40, true));
    if (end >= CMSG_HEADER && view.getInt32(CONTROL + 8, true) === SOL_SOCKET && view.getInt32(CONTROL + 12, true) === SCM_RIGHTS) {
      const length = Math.min(Number(view.getBigUint64(CONTROL, true)), end);
      for (let at = CMSG_HEADER; at + 4 <= length; at += 4) descriptors.push(view.getInt32(CONTROL + at, true));
    }
    return count;
  }

  /** Of the last `receive`: descriptors did not fit, or this process can have no more. */
  get truncated(): boolean {
    return this.address !== 0 && (this.view.getInt32(MSGHDR + 48, true) & MSG_CTRUNC) !== 0;
  }

  close(): void {
    if (this.address !== 0) this.calls.munmap(this.address, ARENA_BYTES);
    this.address = 0;
  }

  private pointer(at: number, to: number): void {
    this.view.setBigUint64(at, BigInt(this.address + to), true);
  }
}

interface Outgoing {
  readonly bytes: Uint8Array;
  sent: number;
  descriptors: readonly number[];
}

/** Bytes that may wait for a peer; more commands are not read before it has taken some. */
const QUEUE_LIMIT_BYTES = 4 * 1024 * 1024;
/** Reads per turn, so that a flood on one connection leaves time for others. */
const READS_PER_TURN = 64;

export interface UnixConnectionOptions {
  readonly calls: PosixCalls;
  readonly arena: MessageArena;
  /** Owned. */
  readonly fd: number;
  readonly policy: WindowPolicy;
  /** Descriptors that are taken with one message. */
  readonly maxDescriptors: number;
  /** What arrives goes in through this. */
  readonly enter: Enter;
  /** What nobody else hears of: the connection goes on. */
  readonly onBug: BugReport;
}

export class UnixConnection implements Transport {
  private readonly options: UnixConnectionOptions;
  private readonly calls: PosixCalls;
  private readonly queue: Outgoing[] = [];
  private queuedBytes = 0;
  private fd: number;
  private sink: ByteSink | undefined;
  private watcher: PollHandle | undefined;
  /** What is watched for now; undefined when nothing is. */
  private watching: string | undefined;
  private pumping = false;

  constructor(options: UnixConnectionOptions) {
    this.options = options;
    this.calls = options.calls;
    this.fd = options.fd;
  }

  /** Begins to read into `sink`. */
  start(sink: ByteSink): void {
    this.sink = sink;
    this.watch();
  }

  send(bytes: Uint8Array, descriptors: readonly number[] = []): void {
    if (this.fd < 0) return;
    this.queue.push({ bytes, sent: 0, descriptors });
    this.queuedBytes += bytes.length;
    if (this.queue.length === 1) this.flush();
  }

  resume(): void {
    if (!this.pumping) this.watch();
  }

  close(): void {
    if (this.fd < 0) return;
    this.flush();
    this.shut();
  }

  private shut(): void {
    this.watcher?.close();
    this.watcher = undefined;
    this.calls.close(this.fd);
    this.fd = -1;
    this.queue.length = 0;
    this.sink = undefined;
  }

  private get reading(): boolean {
    return this.sink !== undefined && this.sink.accepting !== false && this.queuedBytes < QUEUE_LIMIT_BYTES;
  }

  /** Watches for what can be done now; an end of the connection is seen in any case. */
  private watch(): void {
    if (this.fd < 0) return;
    const readable = this.reading, writable = this.queue.length > 0;
    const want = `${readable ? 'r' : ''}${writable ? 'w' : ''}`;
    if (this.watcher !== undefined && want === this.watching) return;
    this.watching = want;
    const options = { readable, writable, disconnect: true };
    if (this.watcher === undefined) this.watcher = this.calls.watch(this.fd, options, this.ready, this.options.onBug);
    else this.watcher.start(options);
  }

  private readonly ready = (status: number): void => {
    this.pumping = true;
    // an error stops the watcher, but there may be bytes left to read before it
    if (status < 0) this.watching = undefined;
    try {
      this.flush();
      for (let i = 0; i < READS_PER_TURN && this.fd >= 0 && this.reading; i++) if (!this.receive()) break;
      // who does not read any more still learns that nobody is there
      if (this.fd >= 0 && !this.reading) this.checkAlive();
    } finally {
      this.pumping = false;
      this.watch();
    }
  };

  /** True when there may be more. */
  private receive(): boolean {
    const { sink, calls, options } = this;
    const { space } = sink!;
    const fds: number[] = [];
    const count = options.arena.receive(this.fd, space, options.maxDescriptors, fds);
    if (count > 0) {
      const { truncated } = options.arena;
      options.enter(() => sink!.received(count, fds.map((fd) => new PosixDescriptor(fd, options)), truncated));
      return true;
    }
    const errno = count === 0 ? 0 : calls.errno();
    if (errno === EAGAIN) return false;
    if (errno === EINTR) return true;
    this.lost(count === 0 ? 'client left' : `error ${errno}`);
    return false;
  }

  /** Behind what is unread an end shows in the state of the socket only. */
  private checkAlive(): void {
    const question = new DataView(new ArrayBuffer(8));
    question.setInt32(0, this.fd, true);
    question.setInt16(4, POLLRDHUP, true);
    this.calls.poll(new Uint8Array(question.buffer), 1, 0);
    if ((question.getInt16(6, true) & (POLLHUP | POLLRDHUP)) !== 0) this.lost('client left');
  }

  private lost(why: string): void {
    const { sink } = this;
    this.shut();
    if (sink !== undefined) this.options.enter(() => sink.disconnected(why));
  }

  private flush(): void {
    while (this.queue.length > 0 && this.fd >= 0) {
      const next = this.queue[0]!;
      const rest = next.sent === 0 ? next.bytes : next.bytes.subarray(next.sent);
      const plain = next.descriptors.length === 0;
      const count = plain ? this.calls.send(this.fd, rest, rest.length, MSG_DONTWAIT | MSG_NOSIGNAL) : this.options.arena.send(this.fd, rest, next.descriptors);
      if (count < 0) {
        const errno = this.calls.errno();
        if (errno === EINTR) continue;
        // a peer that is gone is noticed by reading
        if (errno !== EAGAIN) this.dropQueue();
        break;
      }
      next.sent += count;
      next.descriptors = [];
      this.queuedBytes -= count;
      if (next.sent === next.bytes.length) this.queue.shift();
    }
    if (!this.pumping) this.watch();
  }

  private dropQueue(): void {
    this.queue.length = 0;
    this.queuedBytes = 0;
  }
}

/** Clients that wait for their turn. */
const BACKLOG = 16;
/** sizeof(sun_path), with the NUL at its end. */
const PATH_BYTES = 108;

function unixAddress(path: string): Uint8Array {
  const name = new TextEncoder().encode(path);
  if (name.length === 0 || name.length >= PATH_BYTES) throw new Errno('ENAMETOOLONG', `a socket's path has 1 to ${PATH_BYTES - 1} bytes: ${path}`);
  const address = new Uint8Array(2 + name.length + 1);
  address[0] = AF_UNIX;
  address.set(name, 2);
  return address;
}

function newSocket(calls: PosixCalls): number {
  const fd = calls.socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) throw callError(calls, 'no socket');
  return fd;
}

/** A connected socket. What connect refuses with. */
export function connectUnix(calls: PosixCalls, path: string): number {
  const address = unixAddress(path);
  const fd = newSocket(calls);
  if (calls.connect(fd, address, address.length) < 0) {
    const error = callError(calls, `no connection to ${path}`);
    calls.close(fd);
    throw error;
  }
  return fd;
}

/** A listening socket. EADDRINUSE somebody listens there, or something else has that name; ENAMETOOLONG. A name that a dead server left is taken over. */
export function listenUnix(calls: PosixCalls, path: string, unlink: (path: string) => void, isSocket: (path: string) => boolean): number {
  const address = unixAddress(path);
  const fd = newSocket(calls);
  const attempt = (): Errno | undefined => {
    if (calls.bind(fd, address, address.length) === 0 && calls.listen(fd, BACKLOG) === 0) return undefined;
    return callError(calls, `cannot listen at ${path}`);
  };
  let error = attempt();
  if (error?.code === 'EADDRINUSE' && isSocket(path) && !somebodyListens(calls, path)) {
    unlink(path);
    error = attempt();
  }
  if (error === undefined) return fd;
  calls.close(fd);
  throw error;
}

function somebodyListens(calls: PosixCalls, path: string): boolean {
  try {
    calls.close(connectUnix(calls, path));
    return true;
  } catch (error) {
    return !(error instanceof Errno && error.code === 'ECONNREFUSED');
  }
}
