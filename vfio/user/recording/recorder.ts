/**
 * Records a machine that serves clients: what comes in at the joint of `transport.ts`, with its moment, and what the
 * machine does there. It stands between a session and its transport only while a recording is made. What happens outside
 * of events and inputs, such as somebody who looks at the client's memory, is no part of the machine and is not recorded.
 * Left out: memory of a region that a client has mapped (`ServedDevice.regionFile`), which changes without a message.
 */
import { crc32, deflateRawSync } from 'node:zlib';
import { assert } from '../../../sim/assert.js';
import { store32 } from '../../../sim/little-endian.js';
import type { SessionLimits, TwinChannel } from '../session.js';
import type { ByteSink, Transport } from '../transport.js';
import { FLAG_1, FORMAT, FRAME_BYTES, FRAME_HEADER_BYTES, HEAD_BYTES, ItemBuffer, MAX_FRAME_BYTES } from './format.js';
import { KIND_NUMBER, type ItemKind, type RecordingFields } from './items.js';
import { RecordedDescriptor, recordOpening } from './recorded-memory.js';

/** Enough speed to record while sockets wait; half of what more effort would save. */
const DEFLATE_LEVEL = 3;

/** The clock of the machine. `WallClock` is one. */
export interface RecordedClock {
  readonly now: number;
  readonly eventsRun: number;
  /** False when what happens is not the machine's doing; always true when absent. */
  readonly inside?: boolean;
}

export interface MachineRecorderOptions {
  readonly clock: RecordedClock;
  /** Takes the file piece by piece, from the first byte on; must not keep the array. */
  readonly write: (chunk: Uint8Array) => void;
  /** Names of the devices that are served. */
  readonly devices: readonly string[];
  /** For who replays: what the machine is made from. */
  readonly fields?: RecordingFields;
  /** `write` failed: nothing more is recorded, and the machine goes on. */
  readonly onFailure?: (error: unknown) => void;
  /** `vfio-user.unrecorded-read`, `vfio-user.unrecorded-signal` */
  readonly defects?: ReadonlySet<string>;
}

/** Hears of one device; for `VfioUserServerOptions.recorder`. All of it inside of an input. */
export interface DeviceRecorder {
  /** The device is opened in a task of the machine. */
  open(): void;
  close(): void;
  connected(transport: Transport, limits: SessionLimits): ConnectionRecorder;
}

/** Stands between one session and its transports. */
export interface ConnectionRecorder {
  readonly transport: Transport;
  sink(session: ByteSink): ByteSink;
  twin(open: (replies: ByteSink) => TwinChannel): (replies: ByteSink) => TwinChannel;
  /** The server ends the connection. */
  stopped(): void;
}

export class MachineRecorder {
  /** Inputs so far. */
  inputs = 0;
  /** Bytes that the machine has read from its clients' memory. */
  bytesRead = 0;
  /** Bytes of the file. */
  bytesWritten = 0;
  /** @internal */
  readonly skipReads: boolean;
  /** @internal */
  readonly skipSignals: boolean;
  /** @internal the item that is being written */
  readonly buffer = new ItemBuffer();
  private readonly options: MachineRecorderOptions;
  private readonly baseEvents: number;
  /** Of the last stamp or mark. */
  private events = 0;
  private timeNs = 0;
  private channels = 0;
  private descriptors = 0;
  private windows = 0;
  private signals = 0;
  /** Where each window was used last. */
  private readonly offsets: number[] = [];
  private state: 'recording' | 'failed' | 'finished' = 'recording';

  /** Writes the first line. Events count from here on: the machine has been built, and nothing has come in yet. */
  constructor(options: MachineRecorderOptions) {
    this.options = options;
    this.baseEvents = options.clock.eventsRun;
    this.skipReads = options.defects?.has('vfio-user.unrecorded-read') ?? false;
    this.skipSignals = options.defects?.has('vfio-user.unrecorded-signal') ?? false;
    this.emit(new TextEncoder().encode(`${FORMAT} ${JSON.stringify({ devices: options.devices, fields: options.fields ?? {} })}\n`));
  }

  /** False after a failure and at the end. */
  get recording(): boolean {
    return this.state === 'recording';
  }

  /** @param name one of `devices` */
  device(name: string): DeviceRecorder {
    const number = this.options.devices.indexOf(name);
    if (number < 0) throw new RangeError(`no device ${name} is recorded, but ${this.options.devices.join(', ')}`);
    const say = (kind: 'open' | 'close'): void => {
      if (!this.input(kind)) return;
      this.buffer.number(number);
      this.itemEnds();
    };
    return {
      open: () => say('open'),
      close: () => say('close'),
      connected: (transport, limits) => {
        if (this.input('connected')) {
          this.buffer.number(number);
          this.buffer.text(JSON.stringify(limits));
          this.itemEnds();
        }
        return new RecordedConnection(this, this.channels++, transport);
      },
    };
  }

  /** Writes what is complete so far: a file that ends here can be replayed up to here. */
  flush(): void {
    const { buffer } = this;
    if (buffer.length === 0 || this.state === 'failed') return;
    const events = this.options.clock.eventsRun - this.baseEvents;
    buffer.byte(0);
    buffer.number(events - this.events);
    this.events = events;
    const { content } = buffer;
    if (content.length > MAX_FRAME_BYTES) {
      this.failed(new RangeError(`${content.length} bytes at once, ${MAX_FRAME_BYTES} can be recorded`));
      return;
    }
    const packed = deflateRawSync(content, { level: DEFLATE_LEVEL });
    const frame = new Uint8Array(FRAME_HEADER_BYTES + packed.length);
    store32(frame, 0, packed.length);
    store32(frame, 4, content.length);
    store32(frame, 8, crc32(content));
    frame.set(packed, FRAME_HEADER_BYTES);
    buffer.length = 0;
    this.emit(frame);
  }

  /** The end of the recording; nothing is recorded after it. @param fields for who replays: what came out */
  finish(fields: RecordingFields = {}): void {
    if (this.state !== 'recording') return;
    const events = this.options.clock.eventsRun - this.baseEvents;
    this.kind('end', 0);
    this.buffer.number(events - this.events);
    this.events = events;
    this.buffer.text(JSON.stringify(fields));
    this.flush();
    if (this.recording) this.state = 'finished';
  }

  // --- for what stands between a session and its transport

  /** @internal Begins the item of an input; false when nothing is recorded. `itemEnds` ends it. */
  input(kind: ItemKind): boolean {
    if (this.state !== 'recording') return false;
    const { clock } = this.options;
    assert(clock.inside !== false, 'a recorded input comes through `enter` of the machine\'s clock');
    const events = clock.eventsRun - this.baseEvents, timeNs = clock.now;
    this.kind(kind, 0);
    this.buffer.number(events - this.events);
    this.buffer.signed(timeNs - this.timeNs);
    this.events = events;
    this.timeNs = timeNs;
    this.inputs++;
    return true;
  }

  /** @internal Begins the item of an effect; false when nothing is recorded. */
  effect(kind: ItemKind, flags = 0): boolean {
    if (this.state !== 'recording' || this.options.clock.inside === false) return false;
    this.kind(kind, flags);
    return true;
  }

  /** @internal Begins the item of an access to a window. */
  access(kind: ItemKind, window: number, offset: number, flags: number): boolean {
    if (!this.effect(kind, flags)) return false;
    this.buffer.number(window);
    this.buffer.signed(offset - this.offsets[window]!);
    this.offsets[window] = offset;
    return true;
  }

  /** @internal Flags and bytes of an input with bytes. */
  received(channel: number, bytes: Uint8Array, descriptors: number, truncated: boolean): void {
    const { buffer } = this, at = buffer.length;
    if (!this.input('bytes')) return;
    if (truncated) buffer.content[at]! |= FLAG_1;
    buffer.number(channel);
    buffer.number(descriptors);
    buffer.block(bytes);
    this.itemEnds();
  }

  /** @internal */
  sent(channel: number, bytes: Uint8Array, descriptors: number): void {
    if (!this.effect('send')) return;
    const { buffer } = this;
    buffer.number(channel);
    buffer.number(bytes.length);
    buffer.word(crc32(bytes));
    buffer.number(descriptors);
    buffer.block(bytes.subarray(0, HEAD_BYTES));
    this.itemEnds();
  }

  /** @internal */
  itemEnds(): void {
    if (this.buffer.length >= FRAME_BYTES) this.flush();
  }

  /** @internal */
  nextChannel(): number {
    return this.channels++;
  }

  /** @internal */
  nextDescriptor(): number {
    return this.descriptors++;
  }

  /** @internal */
  nextSignal(): number {
    return this.signals++;
  }

  /** @internal */
  nextWindow(): number {
    this.offsets.push(0);
    return this.windows++;
  }

  private kind(kind: ItemKind, flags: number): void {
    this.buffer.byte(KIND_NUMBER[kind] + flags);
  }

  private emit(chunk: Uint8Array): void {
    try {
      this.options.write(chunk);
      this.bytesWritten += chunk.length;
    } catch (error) {
      this.failed(error);
    }
  }

  private failed(error: unknown): void {
    this.state = 'failed';
    this.options.onFailure?.(error);
  }
}

class RecordedConnection implements ConnectionRecorder {
  readonly transport: Transport;
  private readonly recorder: MachineRecorder;
  private readonly channel: number;

  constructor(recorder: MachineRecorder, channel: number, transport: Transport) {
    this.recorder = recorder;
    this.channel = channel;
    this.transport = recordedTransport(recorder, channel, transport);
  }

  sink(session: ByteSink): ByteSink {
    return new RecordedSink(this.recorder, this.channel, session);
  }

  twin(open: (replies: ByteSink) => TwinChannel): (replies: ByteSink) => TwinChannel {
    const { recorder } = this;
    return (replies) => {
      const channel = recorder.nextChannel();
      const twin = recordOpening(recorder, () => open(new RecordedSink(recorder, channel, replies)), (_twin, flags) => {
        if (!recorder.effect('open-twin', flags)) return false;
        recorder.buffer.number(this.channel);
        return true;
      });
      return { ...twin, transport: recordedTransport(recorder, channel, twin.transport), handedOver: () => twin.handedOver() };
    };
  }

  stopped(): void {
    if (!this.recorder.input('stopped')) return;
    this.recorder.buffer.number(this.channel);
    this.recorder.itemEnds();
  }
}

class RecordedSink implements ByteSink {
  private readonly recorder: MachineRecorder;
  private readonly channel: number;
  private readonly inner: ByteSink;

  constructor(recorder: MachineRecorder, channel: number, inner: ByteSink) {
    this.recorder = recorder;
    this.channel = channel;
    this.inner = inner;
  }

  get space(): Uint8Array {
    return this.inner.space;
  }

  get accepting(): boolean {
    return this.inner.accepting !== false;
  }

  received(count: number, descriptors: Parameters<ByteSink['received']>[1], truncated: boolean): void {
    const { recorder, inner } = this;
    recorder.received(this.channel, inner.space.subarray(0, count), descriptors.length, truncated);
    inner.received(count, descriptors.map((descriptor) => new RecordedDescriptor(recorder, descriptor)), truncated);
  }

  disconnected(why?: string): void {
    const { recorder } = this;
    if (recorder.input('disconnected')) {
      recorder.buffer.number(this.channel);
      recorder.buffer.text(why ?? '');
      recorder.itemEnds();
    }
    this.inner.disconnected(why);
  }
}

function recordedTransport(recorder: MachineRecorder, channel: number, inner: Transport): Transport {
  return {
    send: (bytes, descriptors) => {
      recorder.sent(channel, bytes, descriptors?.length ?? 0);
      inner.send(bytes, descriptors);
    },
    close: () => {
      if (recorder.effect('shut')) {
        recorder.buffer.number(channel);
        recorder.itemEnds();
      }
      inner.close();
    },
    resume: () => inner.resume(),
  };
}
