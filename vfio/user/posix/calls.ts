/**
 * System calls that Node does not offer: sockets that pass descriptors, memory files, mappings, eventfds, polling.
 * Linux only, through koffi, which is loaded at the first `posixCalls()` and by nobody else. Types are not given names
 * in koffi, since those would be global to the process.
 */
import { createRequire } from 'node:module';
import type * as Koffi from 'koffi';
import { ERRNO, Errno, type ErrnoName } from '../../../sim/errno.js';

type KoffiModule = typeof Koffi;

// the same numbers on x86-64 and arm64
export const AF_UNIX = 1;
export const SOCK_STREAM = 1;
export const SOCK_NONBLOCK = 0o4000;
export const SOCK_CLOEXEC = 0o2000000;
export const EINTR = 4;
export const EAGAIN = 11;
export const MSG_DONTWAIT = 0x40;
export const MSG_CTRUNC = 0x08;
export const MSG_NOSIGNAL = 0x4000;
export const MSG_CMSG_CLOEXEC = 0x4000_0000;
export const SOL_SOCKET = 1;
export const SCM_RIGHTS = 1;
export const PROT_READ = 1;
export const PROT_WRITE = 2;
export const MAP_SHARED = 1;
export const MAP_PRIVATE = 2;
export const MAP_ANONYMOUS = 0x20;
export const F_GETFL = 3;
export const F_SETFL = 4;
export const F_ADD_SEALS = 1033;
export const F_GET_SEALS = 1034;
export const F_SEAL_SHRINK = 0x0002;
export const O_ACCMODE = 3;
export const O_RDONLY = 0;
export const O_WRONLY = 1;
export const O_NONBLOCK = 0o4000;
export const FALLOC_FL_KEEP_SIZE = 1;
export const FALLOC_FL_PUNCH_HOLE = 2;
export const MFD_CLOEXEC = 1;
export const MFD_ALLOW_SEALING = 2;
export const EFD_CLOEXEC = 0o2000000;
export const EFD_NONBLOCK = 0o4000;
export const POLLIN = 1;
export const POLLOUT = 4;
export const POLLHUP = 0x10;
export const POLLRDHUP = 0x2000;

export interface WatchOptions {
  readonly readable?: boolean;
  readonly writable?: boolean;
  readonly disconnect?: boolean;
}

/** Told that something can be done; below 0 the watcher has stopped over an error of the descriptor and has to be started again. */
export type Ready = (status: number) => void;

/** Takes an error of ours in something that the event loop called, where nobody else would hear of it. */
export type BugReport = (error: unknown) => void;

/** A watched descriptor; closed before the descriptor is. */
export interface PollHandle {
  start(options: WatchOptions): void;
  close(): void;
  unref(): void;
}

/** Functions as in the manual's section 2; -1 for failure, then `errno()`. Memory is a typed array or an address. */
export interface PosixCalls {
  socket(domain: number, type: number, protocol: number): number;
  socketpair(domain: number, type: number, protocol: number, fds: Int32Array): number;
  bind(fd: number, address: Uint8Array, length: number): number;
  listen(fd: number, backlog: number): number;
  connect(fd: number, address: Uint8Array, length: number): number;
  accept4(fd: number, address: null, length: null, flags: number): number;
  recv(fd: number, buffer: Uint8Array, length: number, flags: number): number;
  send(fd: number, buffer: Uint8Array, length: number, flags: number): number;
  /** @param header address of a msghdr */
  recvmsg(fd: number, header: number, flags: number): number;
  sendmsg(fd: number, header: number, flags: number): number;
  close(fd: number): number;
  fcntl(fd: number, command: number, argument: number): number;
  memfd_create(name: string, flags: number): number;
  ftruncate(fd: number, length: number): number;
  fallocate(fd: number, mode: number, offset: number, length: number): number;
  eventfd(initial: number, flags: number): number;
  read(fd: number, buffer: Uint8Array, length: number): number;
  write(fd: number, buffer: Uint8Array, length: number): number;
  pread(fd: number, buffer: Uint8Array, length: number, offset: number): number;
  pwrite(fd: number, buffer: Uint8Array, length: number, offset: number): number;
  poll(fds: Uint8Array, count: number, timeoutMs: number): number;
  /** The address; `MAP_FAILED` is -1. */
  mmap(address: null, length: number, protection: number, flags: number, fd: number, offset: number): number;
  munmap(address: number, length: number): number;
  errno(): number;
  /** Memory at an address, not owned. Never longer than 1 GiB. */
  view(address: number, length: number): ArrayBuffer;
  /** @param onBug what `callback` threw; an uncaught exception of this process by default */
  watch(fd: number, options: WatchOptions, callback: Ready, onBug?: BugReport): PollHandle;
}

const PROTOTYPES: Readonly<Record<string, string>> = {
  socket: 'int socket(int, int, int)', socketpair: 'int socketpair(int, int, int, void *)', bind: 'int bind(int, void *, uint32_t)', listen: 'int listen(int, int)',
  connect: 'int connect(int, void *, uint32_t)', accept4: 'int accept4(int, void *, void *, int)', recv: 'int64_t recv(int, void *, size_t, int)',
  send: 'int64_t send(int, void *, size_t, int)', recvmsg: 'int64_t recvmsg(int, uintptr_t, int)', sendmsg: 'int64_t sendmsg(int, uintptr_t, int)',
  close: 'int close(int)', fcntl: 'int fcntl(int, int, long)', memfd_create: 'int memfd_create(str, unsigned int)', ftruncate: 'int ftruncate(int, int64_t)',
  fallocate: 'int fallocate64(int, int, int64_t, int64_t)',
  eventfd: 'int eventfd(unsigned int, int)', read: 'int64_t read(int, void *, size_t)', write: 'int64_t write(int, void *, size_t)',
  pread: 'int64_t pread64(int, void *, size_t, int64_t)', pwrite: 'int64_t pwrite64(int, void *, size_t, int64_t)',
  poll: 'int poll(void *, unsigned long, int)', mmap: 'intptr_t mmap64(void *, size_t, int, int, int, int64_t)', munmap: 'int munmap(uintptr_t, size_t)',
};

let loaded: PosixCalls | undefined;

/** Loads koffi at the first call. ENOSYS not Linux, or no koffi for this machine. */
export function posixCalls(): PosixCalls {
  loaded ??= load();
  return loaded;
}

function load(): PosixCalls {
  if (process.platform !== 'linux') throw new Errno('ENOSYS', `descriptors are passed on Linux only, this is ${process.platform}`);
  let koffi: KoffiModule;
  try {
    koffi = createRequire(import.meta.url)('koffi') as KoffiModule;
  } catch (error) {
    throw new Errno('ENOSYS', `koffi cannot be loaded: ${error instanceof Error ? error.message : String(error)}`);
  }
  const library = koffi.load(null);
  const functions = Object.fromEntries(Object.entries(PROTOTYPES).map(([name, prototype]) => [name, library.func(prototype)]));
  return {
    ...functions,
    errno: () => koffi.errno(),
    view: (address: number, length: number) => koffi.view(BigInt(address), length),
    watch: (fd: number, options: WatchOptions, callback: Ready, onBug: BugReport = uncaught) => watch(koffi, fd, options, guarded(callback, onBug)),
  } as unknown as PosixCalls;
}

/** koffi passes libuv's status first, which its types leave out. */
function watch({ node }: KoffiModule, fd: number, options: WatchOptions, callback: Ready): PollHandle {
  const handle = node.poll(fd, options, callback as never) as unknown as { start(options: WatchOptions, callback: Ready): void; close(): void; unref(): void };
  return { start: (changed) => handle.start(changed, callback), close: () => handle.close(), unref: () => handle.unref() };
}

/** What a callback throws koffi neither reports nor forgets: it ends the process later, from a finalizer. So nothing is thrown through koffi. */
function guarded(callback: Ready, onBug: BugReport): Ready {
  return (status) => {
    try {
      callback(status);
    } catch (error) {
      try {
        onBug(error);
      } catch (worse) {
        uncaught(worse);
      }
    }
  };
}

function uncaught(error: unknown): void {
  queueMicrotask(() => {
    throw error;
  });
}

const NAMES = new Map<number, ErrnoName>(Object.entries(ERRNO).map(([name, number]) => [number, name as ErrnoName]));

/** The last call's error, with what could not be done; numbers without a name here are EIO. */
export function callError(calls: PosixCalls, what: string): Errno {
  const number = calls.errno();
  const name = NAMES.get(number);
  return new Errno(name ?? 'EIO', name === undefined ? `${what} (error ${number})` : what);
}
