/**
 * An eventfd of another process. Its counter may be full and its descriptor blocking, which the other side decides at
 * any time: what would block is not written, and is lost as the kernel's own signals to a full counter are. (Between
 * the question and the write a hostile owner could still fill it; it would have to do so within microseconds.)
 */
import type { Enter, RemoteSignal } from '../transport.js';
import { F_GETFL, F_SETFL, O_NONBLOCK, POLLIN, POLLOUT, type BugReport, type PollHandle, type PosixCalls } from './calls.js';

export class PosixSignal implements RemoteSignal {
  /** Signals that found the counter full. */
  lost = 0;
  private readonly calls: PosixCalls;
  private readonly enter: Enter;
  private readonly onBug: BugReport;
  private readonly value = new Uint8Array(8);
  private readonly question = new Uint8Array(8);
  /** -1: closed. */
  private fd: number;
  private watcher: PollHandle | undefined;

  /** Owns the descriptor. */
  constructor(fd: number, { calls, enter, onBug }: { readonly calls: PosixCalls; readonly enter: Enter; readonly onBug: BugReport }) {
    this.calls = calls;
    this.enter = enter;
    this.onBug = onBug;
    this.fd = fd;
    new DataView(this.question.buffer).setInt32(0, fd, true);
  }

  signal(value: number): void {
    if (this.fd < 0) return;
    if (!this.would(POLLOUT)) {
      this.lost++;
      return;
    }
    new DataView(this.value.buffer).setBigUint64(0, BigInt(value), true);
    this.calls.write(this.fd, this.value, 8);
  }

  listen(listener: () => void): void {
    if (this.fd < 0) return;
    this.watcher?.close();
    this.watcher = this.calls.watch(this.fd, { readable: true }, () => {
      if (this.fd < 0 || !this.would(POLLIN)) return;
      this.unblock();
      if (this.calls.read(this.fd, this.value, 8) === 8) this.enter(listener);
    }, this.onBug);
    // who waits for a client keeps the process alive with its socket
    this.watcher.unref();
  }

  close(): void {
    this.watcher?.close();
    this.watcher = undefined;
    if (this.fd >= 0) this.calls.close(this.fd);
    this.fd = -1;
  }

  /** Between the question and the read its owner may have read it. Owners of what is listened to write, which does not block before 2^64 - 2. */
  private unblock(): void {
    const flags = this.calls.fcntl(this.fd, F_GETFL, 0);
    if (flags >= 0 && (flags & O_NONBLOCK) === 0) this.calls.fcntl(this.fd, F_SETFL, flags | O_NONBLOCK);
  }

  /** The descriptor would not block now. */
  private would(events: number): boolean {
    const view = new DataView(this.question.buffer);
    view.setInt16(4, events, true);
    view.setInt16(6, 0, true);
    return this.calls.poll(this.question, 1, 0) === 1 && (view.getInt16(6, true) & events) !== 0;
  }
}
