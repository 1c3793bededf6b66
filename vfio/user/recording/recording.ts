/**
 * Reads a recording: all of it is checked when it is opened, so that who replays meets whole items only. Frames are
 * inflated one at a time. A file that was cut off ends with its last whole frame and says so; anything else that is not
 * as written is a `BrokenRecording`.
 */
import { crc32, inflateRawSync } from 'node:zlib';
import { ERRNO, type ErrnoName } from '../../../sim/errno.js';
import { load32 } from '../../../sim/little-endian.js';
import { DEFAULT_LIMITS, type SessionLimits } from '../session.js';
import { BrokenRecording, FLAG_1, FLAG_2, FLAG_4, FORMAT, FRAME_HEADER_BYTES, ItemBytes, jsonObject, KIND_MASK, Malformed, MAX_FRAME_BYTES } from './format.js';
import { isInput, KINDS, type EffectItem, type EndItem, type Item, type RecordingFields, type Refusal, type Stamp } from './items.js';

/** Deflate makes nothing shorter than this. */
const MAX_RATIO = 1032;
/** With one message; more than any socket passes. */
const MAX_DESCRIPTORS = 1024;

/** A recording that can be read. */
export class Recording {
  readonly devices: readonly string[];
  /** What the recorder was given. */
  readonly fields: RecordingFields;
  /** Moments of all inputs. */
  readonly stamps: readonly Stamp[];
  /** Items, marks left out. */
  readonly items: number;
  /** What was known to have run at least at the end. */
  readonly events: number;
  /** Why there is no end; undefined for a complete recording. */
  readonly truncated: string | undefined;
  readonly end: EndItem | undefined;
  private readonly file: Uint8Array;
  private readonly bodyOffset: number;

  /** @param file all of it; must not change @throws BrokenRecording */
  constructor(file: Uint8Array) {
    this.file = file;
    const header = readHeader(file);
    this.devices = header.devices;
    this.fields = header.fields;
    this.bodyOffset = header.length;
    const reader = this.read();
    const stamps: Stamp[] = [];
    let end: EndItem | undefined;
    for (let item = reader.next(); item !== undefined; item = reader.next()) {
      if (isInput(item)) stamps.push({ events: item.events, timeNs: item.timeNs });
      else if (item.kind === 'end') end = item;
    }
    this.stamps = stamps;
    this.items = reader.items;
    this.events = reader.events;
    this.end = end;
    this.truncated = end === undefined ? (reader.truncated ?? 'the recording was not finished') : undefined;
  }

  /** All items from the first on. */
  read(): ItemReader {
    return new ItemReader(this.file, this.bodyOffset, this.devices.length);
  }
}

function readHeader(file: Uint8Array): { devices: string[]; fields: RecordingFields; length: number } {
  const name = new TextDecoder('latin1').decode(file.subarray(0, FORMAT.length + 1));
  if (name !== `${FORMAT} `) throw new BrokenRecording(0, `it does not begin with ${FORMAT}`);
  const end = file.indexOf(10);
  if (end < 0) throw new BrokenRecording(0, 'its first line has no end');
  try {
    const { devices, fields } = jsonObject(new TextDecoder().decode(file.subarray(name.length, end)));
    if (!Array.isArray(devices) || devices.some((device) => typeof device !== 'string')) throw new Malformed('`devices` is no list of names');
    if (typeof fields !== 'object' || fields === null) throw new Malformed('`fields` is no object');
    return { devices: devices as string[], fields: fields as RecordingFields, length: end + 1 };
  } catch (error) {
    throw at(0, error, 'the first line');
  }
}

function at(offset: number, error: unknown, what: string): unknown {
  return error instanceof Malformed ? new BrokenRecording(offset, `${what}: ${error.message}`) : error;
}

/** Numbers of what an item names. */
type Counted = 'channels' | 'descriptors' | 'windows' | 'signals' | 'devices';

export class ItemReader {
  /** Items that were read. */
  items = 0;
  /** Events that had run at the last stamp or mark. */
  events = 0;
  /** Why the file ends here. */
  truncated: string | undefined;
  private readonly file: Uint8Array;
  private offset: number;
  private frameOffset: number;
  private frame = new ItemBytes(new Uint8Array(0));
  private timeNs = 0;
  private ended = false;
  private readonly counts: Record<Counted, number>;
  private readonly offsets: number[] = [];

  /** @param offset of the first frame */
  constructor(file: Uint8Array, offset: number, devices: number) {
    this.file = file;
    this.offset = this.frameOffset = offset;
    this.counts = { channels: 0, descriptors: 0, windows: 0, signals: 0, devices };
  }

  /** The next item; undefined at the end. @throws BrokenRecording */
  next(): Item | undefined {
    for (;;) {
      while (this.frame.left === 0) if (!this.nextFrame()) return undefined;
      const start = this.frame.at;
      try {
        const item = this.item();
        if (item === undefined) continue;
        if (this.ended) throw new Malformed('something behind the end');
        this.ended = item.kind === 'end';
        this.items++;
        return item;
      } catch (error) {
        throw at(this.frameOffset, error, `item ${this.items + 1}, at ${start} in the inflated frame`);
      }
    }
  }

  private nextFrame(): boolean {
    const { file, offset } = this, rest = file.length - offset;
    if (rest === 0) return false;
    const packedBytes = rest < FRAME_HEADER_BYTES ? 0 : load32(file, offset);
    if (rest < FRAME_HEADER_BYTES + packedBytes) {
      this.truncated = `the file was cut off at byte ${file.length}, in the frame that begins at ${offset}`;
      this.offset = file.length;
      return false;
    }
    const length = load32(file, offset + 4);
    if (length === 0 || length > MAX_FRAME_BYTES || length > packedBytes * MAX_RATIO) throw new BrokenRecording(offset, `a frame of ${length} bytes in ${packedBytes}`);
    const body = file.subarray(offset + FRAME_HEADER_BYTES, offset + FRAME_HEADER_BYTES + packedBytes);
    let content: Uint8Array;
    try {
      content = inflateRawSync(body, { maxOutputLength: length });
    } catch (error) {
      throw new BrokenRecording(offset, `a frame that cannot be inflated (${(error as Error).message})`);
    }
    if (content.length !== length || crc32(content) !== load32(file, offset + 8)) throw new BrokenRecording(offset, 'the checksum of a frame is wrong');
    this.frame = new ItemBytes(content);
    this.frameOffset = offset;
    this.offset = offset + FRAME_HEADER_BYTES + packedBytes;
    return true;
  }

  /** Undefined for a mark. */
  private item(): Item | undefined {
    const { frame } = this;
    const byte = frame.byte(), kind = KINDS[byte & KIND_MASK], flag1 = (byte & FLAG_1) !== 0;
    switch (kind) {
      case undefined: throw new Malformed(`kind ${byte & KIND_MASK}`);
      case 'mark':
        this.elapse();
        return undefined;
      case 'open':
      case 'close': return { kind, ...this.stamp(), device: this.reference('devices') };
      case 'connected': {
        const item = { kind, ...this.stamp(), device: this.reference('devices'), limits: limitsOf(frame.json()) };
        this.counts.channels++;
        return item;
      }
      case 'bytes': {
        const item = { kind, ...this.stamp(), channel: this.reference('channels'), descriptors: frame.number(), bytes: frame.block(), truncated: flag1 };
        if (item.descriptors > MAX_DESCRIPTORS) throw new Malformed(`${item.descriptors} descriptors`);
        this.counts.descriptors += item.descriptors;
        return item;
      }
      case 'disconnected': return { kind, ...this.stamp(), channel: this.reference('channels'), why: frame.text() };
      case 'stopped': return { kind, ...this.stamp(), channel: this.reference('channels') };
      case 'signalled': return { kind, ...this.stamp(), signal: this.reference('signals') };
      case 'end': return { kind, events: this.elapse(), fields: frame.json() };
      default: return this.effect(kind, byte, flag1);
    }
  }

  private effect(kind: EffectItem['kind'], byte: number, flag1: boolean): EffectItem {
    const { frame, counts } = this;
    switch (kind) {
      case 'send': return { kind, channel: this.reference('channels'), length: frame.number(), hash: frame.word(), descriptors: frame.number(), head: frame.block() };
      case 'shut': return { kind, channel: this.reference('channels') };
      case 'open-twin': {
        const item = { kind, channel: this.reference('channels'), refused: this.refusal(flag1) };
        counts.channels++;
        return item;
      }
      case 'open-window': {
        const item = {
          kind, descriptor: this.reference('descriptors'), offset: frame.number(), sizeBytes: frame.number(), writable: (byte & FLAG_2) !== 0,
          found: !flag1 && (byte & FLAG_4) === 0, refused: this.refusal(flag1),
        };
        if (item.found) this.offsets[counts.windows++] = 0;
        return item;
      }
      case 'open-signal': {
        const item = { kind, descriptor: this.reference('descriptors'), refused: this.refusal(flag1) };
        if (!flag1) counts.signals++;
        return item;
      }
      case 'signal': return { kind, signal: this.reference('signals'), value: frame.number() };
      default: return this.access(kind, byte, !flag1);
    }
  }

  private access(kind: AccessKind, byte: number, ok: boolean): EffectItem {
    const { frame, offsets } = this;
    const window = this.reference('windows'), offset = offsets[window]! + frame.signed();
    if (!Number.isSafeInteger(offset) || offset < 0) throw new Malformed(`offset ${offset}`);
    offsets[window] = offset;
    const size = (byte & FLAG_4) !== 0 ? 4 : (byte & FLAG_2) !== 0 ? 2 : 1;
    switch (kind) {
      case 'load64': return { kind, window, offset, ok, lo: ok ? frame.word() | 0 : 0, hi: ok ? frame.word() | 0 : 0 };
      case 'load': return { kind, window, offset, size, value: ok ? frame.number() : -1 };
      case 'read': {
        const length = frame.number();
        return { kind, window, offset, length, bytes: ok ? frame.raw(length) : undefined };
      }
      case 'exchange': return { kind, window, offset, expectLo: frame.word(), expectHi: frame.word(), lo: frame.word(), hi: frame.word(), ok };
      case 'store64': return { kind, window, offset, lo: frame.word(), hi: frame.word(), ok };
      case 'store': return { kind, window, offset, size, value: frame.number(), ok };
      case 'write': return { kind, window, offset, length: frame.number(), hash: frame.word(), ok };
      case 'fill': return { kind, window, offset, length: frame.number(), value: frame.number(), ok };
    }
  }

  private elapse(): number {
    this.events += this.frame.number();
    return this.events;
  }

  private stamp(): Stamp {
    const events = this.elapse();
    this.timeNs += this.frame.signed();
    return { events, timeNs: this.timeNs };
  }

  private reference(what: Counted): number {
    const number = this.frame.number();
    if (number >= this.counts[what]) throw new Malformed(`number ${number} of ${this.counts[what]} ${what}`);
    return number;
  }

  private refusal(refused: boolean): Refusal | undefined {
    if (!refused) return undefined;
    const code = this.frame.text(), reason = this.frame.text();
    if (!Object.hasOwn(ERRNO, code)) throw new Malformed(`errno ${code.slice(0, 40)}`);
    return { code: code as ErrnoName, reason };
  }
}

type AccessKind = Extract<EffectItem, { window: number }>['kind'];

function limitsOf(json: Record<string, unknown>): SessionLimits {
  for (const name of Object.keys(DEFAULT_LIMITS)) if (!Number.isSafeInteger(json[name]) || (json[name] as number) < 0) throw new Malformed(`limit ${name}`);
  return json as unknown as SessionLimits;
}
