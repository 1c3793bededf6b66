/**
 * `vfio-user-recording/1`, a file that is only ever appended to:
 *
 * - one line of text: the format's name, a space, and JSON: `devices` (names; a device's number is its place) and
 *   `fields` (whatever the caller put there);
 * - frames: three little-endian 32-bit numbers (bytes that follow, bytes when inflated, CRC-32 of those), then raw
 *   deflate data of whole items. Each ends with a mark: so a file that was cut off is good up to its last whole frame.
 *
 * An item is a byte, kind + 32 × flags (`KINDS`), and numbers of 7 bits a byte, least first, high bit: more follows.
 * A signed number n is 2n, or -2n - 1 below 0. Text and bytes have their length before them. Fields by kind, where
 * `stamp` is events and nanoseconds since the last stamp, `at` a window's number and the signed distance from the
 * last offset that was used in it, word 4 bytes, and `?refusal` two texts (errno, reason) when flag 1 is set:
 *
 * | mark | events since the last stamp or mark | read | at, length, bytes unless flag 1 (absent) |
 * | open, close | stamp, device | exchange | at, 4 words; flag 1: not exchanged |
 * | connected | stamp, device, JSON of the limits | store64 | at, 2 words; flag 1: absent, as below |
 * | bytes | stamp, channel, descriptors, bytes; flag 1: truncated | store | at, value; flags 2, 4: 2 bytes, 4 bytes |
 * | disconnected | stamp, channel, text | write | at, length, word: CRC-32 |
 * | stopped | stamp, channel | fill | at, length, value |
 * | signalled | stamp, signal | signal | signal, value |
 * | send | channel, length, word: CRC-32, descriptors, first bytes | shut | channel |
 * | open-twin | channel, ?refusal | open-signal | descriptor, ?refusal |
 * | open-window | descriptor, offset, bytes, ?refusal; flags 2: writable, 4: by messages only | load | at, value; flags 2, 4: size; flag 1: absent |
 * | load64 | at, 2 words; flag 1: absent, no words | end | events since the last stamp, JSON of the caller |
 */
import { load32, store32 } from '../../../sim/little-endian.js';

export const FORMAT = 'vfio-user-recording/1';
export const FRAME_HEADER_BYTES = 12;
/** A frame that is fuller is written; one item may make it longer. */
export const FRAME_BYTES = 65536;
/** Longer ones are not believed. */
export const MAX_FRAME_BYTES = 2 ** 28;
/** Of a message that was sent, to say what differs. */
export const HEAD_BYTES = 48;
export const FLAG_1 = 32, FLAG_2 = 64, FLAG_4 = 128;
export const KIND_MASK = 31;

/** A recording that cannot be read: where, and why. */
export class BrokenRecording extends Error {
  override readonly name = 'BrokenRecording';
  /** Bytes from the start of the file: of the line or frame that is broken. */
  readonly offset: number;

  constructor(offset: number, reason: string) {
    super(`the recording is broken at byte ${offset}: ${reason}`);
    this.offset = offset;
  }
}

const ENCODER = new TextEncoder();

/** Items as bytes, in a buffer that grows. */
export class ItemBuffer {
  length = 0;
  private bytes = new Uint8Array(2 * FRAME_BYTES);

  /** What was put in; valid until the next `put`. */
  get content(): Uint8Array {
    return this.bytes.subarray(0, this.length);
  }

  byte(value: number): void {
    this.reserve(1);
    this.bytes[this.length++] = value;
  }

  /** Not negative, whole. */
  number(value: number): void {
    this.reserve(8);
    let rest = value;
    while (rest >= 128) {
      this.bytes[this.length++] = (rest % 128) + 128;
      rest = Math.floor(rest / 128);
    }
    this.bytes[this.length++] = rest;
  }

  signed(value: number): void {
    this.number(value < 0 ? -2 * value - 1 : 2 * value);
  }

  word(value: number): void {
    this.reserve(4);
    store32(this.bytes, this.length, value);
    this.length += 4;
  }

  block(bytes: Uint8Array): void {
    this.number(bytes.length);
    this.raw(bytes);
  }

  raw(bytes: Uint8Array): void {
    this.reserve(bytes.length);
    this.bytes.set(bytes, this.length);
    this.length += bytes.length;
  }

  text(text: string): void {
    this.block(ENCODER.encode(text));
  }

  private reserve(count: number): void {
    if (this.length + count <= this.bytes.length) return;
    const grown = new Uint8Array(Math.max(this.bytes.length * 2, this.length + count));
    grown.set(this.content);
    this.bytes = grown;
  }
}

const DECODER = new TextDecoder('utf-8', { fatal: true });

/** The way back, of one frame. Every method throws `Malformed` for what cannot be. */
export class ItemBytes {
  at = 0;
  private readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
  }

  get left(): number {
    return this.bytes.length - this.at;
  }

  byte(): number {
    return this.bytes[this.take(1)]!;
  }

  number(): number {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      const byte = this.byte();
      value += (byte & 127) * factor;
      if (value > Number.MAX_SAFE_INTEGER) throw new Malformed('a number beyond 2^53');
      if (byte < 128) return value;
      if (factor > 2 ** 53) throw new Malformed('a number without an end');
    }
  }

  signed(): number {
    const value = this.number();
    return value % 2 === 1 ? -(value + 1) / 2 : value / 2;
  }

  word(): number {
    return load32(this.bytes, this.take(4));
  }

  block(): Uint8Array {
    return this.raw(this.number());
  }

  raw(length: number): Uint8Array {
    const at = this.take(length);
    return this.bytes.subarray(at, at + length);
  }

  text(): string {
    try {
      return DECODER.decode(this.block());
    } catch (error) {
      throw error instanceof Malformed ? error : new Malformed('a text that is no UTF-8');
    }
  }

  json(): Record<string, unknown> {
    return jsonObject(this.text());
  }

  private take(count: number): number {
    const { at } = this;
    if (count > this.left) throw new Malformed(`an item of ${count} bytes more, ${this.left} are left`);
    this.at += count;
    return at;
  }
}

/** What is wrong with an item; who reads says where. */
export class Malformed extends Error {
  override readonly name = 'Malformed';
}

export function jsonObject(text: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    throw new Malformed('no JSON');
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw new Malformed('no JSON object');
  return value as Record<string, unknown>;
}
