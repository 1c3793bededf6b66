/**
 * Cuts a stream of bytes into messages. Whoever reads from a socket never takes more than `space` has room for: first
 * exactly a header, then exactly the rest, so that descriptors, which arrive with the first byte of the message they
 * were sent with, never reach the message before.
 */
import type { ReceivedDescriptor } from '../transport.js';
import { decodeHeader, HEADER_SIZE, type Header } from './header.js';

export interface Message {
  readonly header: Header;
  readonly payload: Uint8Array;
  /** Taken from here by who uses them; what is left is closed when the message has been served. */
  readonly descriptors: ReceivedDescriptor[];
  /** Descriptors did not all arrive. */
  readonly truncated: boolean;
}

/** A size that no message can have: where the next one begins is unknown. */
export class BrokenStream extends Error {
  override readonly name = 'BrokenStream';
  readonly header: Header;

  constructor(header: Header, reason: string) {
    super(reason);
    this.header = header;
  }
}

export class MessageReader {
  /** Largest message that is taken. */
  limitBytes: number;
  private readonly maxDescriptors: number;
  private readonly headerBytes = new Uint8Array(HEADER_SIZE);
  private header: Header | undefined;
  private payload = new Uint8Array(0);
  private filled = 0;
  private descriptors: ReceivedDescriptor[] = [];
  private truncated = false;

  constructor(limitBytes: number, maxDescriptors: number) {
    this.limitBytes = limitBytes;
    this.maxDescriptors = maxDescriptors;
  }

  /** Where the next bytes go; never empty. */
  get space(): Uint8Array {
    return (this.header === undefined ? this.headerBytes : this.payload).subarray(this.filled);
  }

  /** A message has begun and not ended. */
  get midMessage(): boolean {
    return this.header !== undefined || this.filled > 0;
  }

  /**
   * `count` bytes were put into `space`; the message, when it is complete.
   * @throws BrokenStream a size below the header's or above the limit
   */
  advance(count: number, descriptors: readonly ReceivedDescriptor[] = [], truncated = false): Message | undefined {
    for (const descriptor of descriptors) {
      if (this.descriptors.length < this.maxDescriptors) {
        this.descriptors.push(descriptor);
      } else {
        descriptor.close();
        this.truncated = true;
      }
    }
    if (truncated) this.truncated = true;
    this.filled += count;
    if (this.header === undefined) {
      if (this.filled < HEADER_SIZE) return undefined;
      const header = decodeHeader(this.headerBytes);
      const { sizeBytes } = header;
      if (sizeBytes < HEADER_SIZE || sizeBytes > this.limitBytes) throw new BrokenStream(header, `a message of ${sizeBytes} bytes, possible are ${HEADER_SIZE} to ${this.limitBytes}`);
      this.header = header;
      this.payload = new Uint8Array(sizeBytes - HEADER_SIZE);
      this.filled = 0;
    }
    return this.filled === this.payload.length ? this.take() : undefined;
  }

  /** The connection is over: descriptors of a half message are closed. */
  drop(): void {
    for (const descriptor of this.descriptors) descriptor.close();
    this.descriptors = [];
  }

  private take(): Message {
    const message = { header: this.header!, payload: this.payload, descriptors: this.descriptors, truncated: this.truncated };
    this.header = undefined;
    this.filled = 0;
    this.descriptors = [];
    this.truncated = false;
    return message;
  }
}
