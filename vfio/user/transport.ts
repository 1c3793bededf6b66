/**
 * The joint between a session of the vfio-user protocol and what carries it: a socket, descriptors that arrived with
 * a message, and memory behind them. `posix/` implements it with real ones; a test can do so without any.
 */

/** Sends messages and ends a connection. */
export interface Transport {
  /** Queues a message; never blocks. Descriptors stay the caller's. */
  send(bytes: Uint8Array, descriptors?: readonly number[]): void;
  /** Sends what is queued, as far as the peer takes it at once, and ends the connection. The session hears nothing more. */
  close(): void;
  /** The session takes messages again after it had enough. */
  resume(): void;
}

/** What takes bytes: a session, its second channel, a client. */
export interface ByteSink {
  /** Where the next bytes go. */
  readonly space: Uint8Array;
  /** False: stop reading until `Transport.resume`. */
  readonly accepting?: boolean;
  /** `count` bytes were put into `space`, and these descriptors came with them. @param truncated descriptors were lost on the way */
  received(count: number, descriptors: readonly ReceivedDescriptor[], truncated: boolean): void;
  disconnected(why?: string): void;
}

/** How anything that comes from outside gets into the machine: `WallClock.enter`, or at once. */
export type Enter = (action: () => void) => void;

/** Memory of the client that can be reached without asking it. Offsets count from the start of the region. */
export interface MemoryWindow {
  /** Halves of the last `load64`. */
  readonly lo: number;
  readonly hi: number;
  /** False when the memory cannot be reached (any more), here and below; nothing has happened then. */
  load64(offset: number): boolean;
  store64(offset: number, lo: number, hi: number): boolean;
  compareExchange64(offset: number, expectLo: number, expectHi: number, lo: number, hi: number): boolean;
  /** Unsigned; -1 when it cannot be reached. */
  load(offset: number, size: 1 | 2 | 4): number;
  store(offset: number, size: 1 | 2 | 4, value: number): boolean;
  read(offset: number, target: Uint8Array, targetOffset: number, length: number): boolean;
  write(offset: number, source: Uint8Array, sourceOffset: number, length: number): boolean;
  fill(offset: number, value: number, length: number): boolean;
  /** Gives the memory back; every later access fails. */
  close(): void;
}

/** An eventfd of the client. */
export interface RemoteSignal {
  /** Adds to its counter; never blocks. */
  signal(value: number): void;
  /** Calls `listener` when the client signals, until the end. */
  listen(listener: () => void): void;
  close(): void;
}

/** A descriptor that came with a message. */
export interface ReceivedDescriptor {
  /**
   * Memory at `offset` of the file; takes the descriptor over. Undefined when the file is none that may be touched
   * without danger for this process: the client is asked by messages then. EINVAL no file of memory or too short,
   * EACCES rights, ENOMEM.
   */
  openWindow(offset: number, sizeBytes: number, writable: boolean): MemoryWindow | undefined;
  /** Takes the descriptor over. EINVAL not an eventfd. */
  openSignal(): RemoteSignal;
  /** Does nothing when it was taken over, or closed before. */
  close(): void;
}
