/**
 * Runs a machine again from a recording: the same events, the same inputs at the same places between them, with nobody
 * at the other end. What the machine does to its clients is compared with what it did then, one thing after the other;
 * the first difference ends the replay and says where it is. Loads nothing of `posix/`.
 */
import type { VirtualClock } from '../../../sim/clock.js';
import type { Scheduler } from '../../../sim/task.js';
import { ClientMemory } from '../client-memory.js';
import { spawnDeviceTask } from '../device-task.js';
import { Session, type ServedDevice, type TwinChannel } from '../session.js';
import type { VfioUserTrace } from '../trace-kinds.js';
import type { ByteSink } from '../transport.js';
import { describeItem } from './describe.js';
import { isInput, type EffectItem, type InputItem, type Item, type Stamp } from './items.js';
import type { ItemReader, Recording } from './recording.js';
import { ReplayedDescriptor, replayedTransport, refuse, type Doing, type Expectations, type ItemOf } from './replayed-memory.js';

/** Errors of the machine that a report keeps. */
const KEPT_ERRORS = 10;

export interface ReplayOptions {
  /** Where the machine's was when recording began; the replay runs it. */
  readonly clock: VirtualClock;
  readonly scheduler: Scheduler;
  /** By the names they were recorded under, of a machine that was built in the same way; `connectDma` is called here, in the order of the recording. */
  readonly devices: ReadonlyMap<string, ServedDevice>;
  readonly trace?: VfioUserTrace;
  /** An error of ours in a handler, as when it was recorded. */
  readonly onBug?: (error: unknown) => void;
  readonly defects?: ReadonlySet<string>;
}

/** The first thing that is not as recorded. */
export interface ReplayDifference {
  /** The input that was last: its number from 1 on, 0 before any, and what it was. */
  readonly input: number;
  readonly inputText: string;
  /** Of the thing that differs: 7 is the seventh item of the recording. */
  readonly item: number;
  /** Since the recording began. */
  readonly events: number;
  readonly timeNs: number;
  /** Whose connection it is about, counted from 1 for each device; absent where it is about none. */
  readonly device?: string;
  readonly connection?: number;
  readonly expected: string;
  readonly actual: string;
}

export interface ReplayReport {
  readonly inputs: number;
  readonly events: number;
  readonly timeNs: number;
  readonly items: number;
  /** From the memory of clients. */
  readonly bytesRead: number;
  /** At most one. */
  readonly differences: readonly ReplayDifference[];
  /** Why the recording has no end; the replay went as far as it goes. */
  readonly truncated: string | undefined;
  /** What events and inputs threw, the first few; they may have when it was recorded too. */
  readonly errors: readonly unknown[];
}

/** Everything of a recording, to its end or the first difference. Throws only for devices that are missing, before anything runs. */
export function replayRecording(recording: Recording, options: ReplayOptions): ReplayReport {
  const replay = new MachineReplay(recording, options);
  while (replay.step());
  return replay.report();
}

/** One line: where, and what. */
export function formatDifference({ input, inputText, item, events, timeNs, device, connection, expected, actual }: ReplayDifference): string {
  const who = device === undefined ? '' : `${device}${connection === undefined ? '' : `, connection ${connection}`}: `;
  return `${who}item ${item}, after input ${input} (${inputText}), ${events} events, at ${timeNs} ns: recorded "${expected}", now "${actual}"`;
}

/** One channel of a connection. */
interface Channel {
  readonly device: string;
  readonly connection: number;
  /** The session, or its reader of replies; undefined for a second channel that was refused. */
  sink: ByteSink | undefined;
  /** Absent for a second channel. */
  session?: Session;
}

/** A replay that can be stopped between two inputs, to look at the machine. */
export class MachineReplay implements Expectations {
  /** Inputs so far. */
  inputs = 0;
  bytesRead = 0;
  private readonly recording: Recording;
  private readonly options: ReplayOptions;
  private readonly reader: ItemReader;
  private readonly served: { readonly name: string; readonly device: ServedDevice; readonly memory: ClientMemory; connections: number }[];
  private readonly baseEvents: number;
  private readonly channels: Channel[] = [];
  /** Channels by descriptor, window, signal. */
  private readonly descriptors: number[] = [];
  private readonly windows: number[] = [];
  private readonly signals: { readonly channel: number; listener: (() => void) | undefined }[] = [];
  private readonly errors: unknown[] = [];
  /** The next that is expected; undefined at the end of a recording that was cut off. */
  private item: Item | undefined;
  /** Its number, from 1 on. */
  private position = 0;
  private lastPosition = 0;
  private lastInput: InputItem | undefined;
  private difference: ReplayDifference | undefined;
  /** Nothing is compared any more, and nothing answers. */
  private over = false;

  constructor(recording: Recording, options: ReplayOptions) {
    this.recording = recording;
    this.options = options;
    this.baseEvents = options.clock.events;
    const missing = recording.devices.filter((name) => !options.devices.has(name));
    if (missing.length > 0) throw new RangeError(`the recording has ${missing.join(', ')}, the machine ${[...options.devices.keys()].join(', ')}`);
    this.served = recording.devices.map((name) => {
      const device = options.devices.get(name)!, memory = device.memory ?? new ClientMemory();
      device.connectDma?.(memory);
      return { name, device, memory, connections: 0 };
    });
    this.reader = recording.read();
    this.fetch();
  }

  /** To the next input, and through it; false at the end. */
  step(): boolean {
    if (this.over) return false;
    const { recording } = this;
    const next: Stamp | undefined = recording.stamps[this.inputs];
    this.runTo(next?.events ?? recording.events, next?.timeNs);
    const { item } = this;
    if (this.over) return false;
    if (item === undefined || (item.kind === 'end' && next === undefined)) this.over = true;
    else if (next === undefined || !isInput(item)) this.differs(item, 'nothing');
    else this.enter(item);
    return !this.over;
  }

  report(): ReplayReport {
    const { inputs, bytesRead, difference, errors, options: { clock } } = this;
    return {
      inputs, bytesRead, events: clock.events - this.baseEvents, timeNs: clock.now, items: this.position - 1, differences: difference === undefined ? [] : [difference],
      truncated: this.recording.truncated, errors,
    };
  }

  // --- what stands in for clients asks

  did<K extends EffectItem['kind']>(kind: K, doing: Doing & { kind: K }): ItemOf<K> | undefined {
    const { item } = this;
    if (this.over) return undefined;
    if (item === undefined) {
      this.over = true;
    } else if (item.kind !== kind || !fits(item, doing)) {
      this.differs(item, describeItem(doing as EffectItem), doing as EffectItem);
    } else {
      this.fetch();
      return item as ItemOf<K>;
    }
    return undefined;
  }

  channelOpened(): number {
    return this.channels.length;
  }

  windowOpened(descriptor: number): number {
    return this.windows.push(this.descriptors[descriptor]!) - 1;
  }

  signalOpened(descriptor: number): number {
    return this.signals.push({ channel: this.descriptors[descriptor]!, listener: undefined }) - 1;
  }

  listens(signal: number, listener: () => void): void {
    this.signals[signal]!.listener = listener;
  }

  private fetch(): void {
    this.item = this.reader.next();
    this.position++;
  }

  // --- events

  /** Runs events until `events` have run, none after `timeNs`, and moves the clock there. */
  private runTo(events: number, timeNs: number | undefined): void {
    const { clock } = this.options, target = this.baseEvents + events;
    const limit = timeNs === undefined ? {} : { untilNs: timeNs };
    while (!this.over && clock.events < target) {
      const before = clock.events;
      const reason = this.attempt(() => clock.run({ ...limit, stop: () => this.over || clock.events >= target }));
      // an event that threw is behind us; a clock that cannot run is not
      if (reason === undefined && clock.events > before) continue;
      if (reason === 'stopped' || this.over) break;
      const why = reason === 'event-limit' || reason === 'time-limit' ? `the clock's ${reason}` : 'no event is due';
      this.differs(this.item, `${why} after ${clock.events - this.baseEvents} of ${events} events`);
    }
    if (this.over || timeNs === undefined) return;
    if (clock.now > timeNs) this.differs(this.item, `it is ${clock.now} ns already, the input was at ${timeNs} ns`);
    else if (clock.nextNs < timeNs) this.differs(this.item, `an event is due at ${clock.nextNs} ns, before the input at ${timeNs} ns`);
    else clock.advance(timeNs);
  }

  private attempt<T>(run: () => T): T | undefined {
    try {
      return run();
    } catch (error) {
      if (!this.over && this.errors.length < KEPT_ERRORS) this.errors.push(error);
      return undefined;
    }
  }

  // --- inputs

  private enter(item: InputItem): void {
    this.inputs++;
    this.lastInput = item;
    this.lastPosition = this.position;
    this.fetch();
    this.attempt(() => this.input(item));
  }

  private input(item: InputItem): void {
    switch (item.kind) {
      case 'open':
      case 'close': return spawnDeviceTask(this.options.scheduler, this.served[item.device]!.device.ops, item.kind, () => {});
      case 'connected': return this.connect(item);
      case 'bytes': return this.receive(item);
      case 'disconnected': return this.channels[item.channel]!.sink?.disconnected(item.why);
      case 'stopped': return this.channels[item.channel]!.session?.close();
      case 'signalled': {
        const { listener } = this.signals[item.signal] ?? {};
        if (listener === undefined) this.differs(item, 'nobody listens to that eventfd');
        else listener();
      }
    }
  }

  private connect({ device: number, limits }: InputItem & { kind: 'connected' }): void {
    const { options: { scheduler, trace, onBug, defects } } = this;
    const served = this.served[number]!, channel = this.channels.length;
    const opened: Channel = { device: served.name, connection: ++served.connections, sink: undefined };
    this.channels.push(opened);
    opened.session = new Session({
      device: served.device, memory: served.memory, scheduler, limits, transport: replayedTransport(this, channel), openTwin: (replies) => this.openTwin(channel, replies),
      ...(trace === undefined ? {} : { trace }), ...(onBug === undefined ? {} : { onBug }), ...(defects === undefined ? {} : { defects }),
    });
    opened.sink = opened.session;
  }

  private openTwin(channel: number, replies: ByteSink): TwinChannel {
    const item = this.did('open-twin', { kind: 'open-twin', channel });
    const { device, connection } = this.channels[channel]!;
    const twin = this.channels.push({ device, connection, sink: item === undefined || item.refused !== undefined ? undefined : replies }) - 1;
    if (item === undefined || item.refused !== undefined) refuse(item?.refused);
    return { transport: replayedTransport(this, twin), descriptor: -1, handedOver: () => {} };
  }

  private receive(item: InputItem & { kind: 'bytes' }): void {
    const { sink } = this.channels[item.channel]!, { bytes } = item;
    const space = sink?.space;
    if (space === undefined || space.length < bytes.length) {
      this.differs(item, `there is room for ${space?.length ?? 0} bytes`);
      return;
    }
    const descriptors = Array.from({ length: item.descriptors }, () => new ReplayedDescriptor(this, this.descriptors.push(item.channel) - 1));
    space.set(bytes);
    sink!.received(bytes.length, descriptors, item.truncated);
  }

  // --- differences

  private differs(expected: Item | undefined, actual: string, doing?: EffectItem): void {
    if (this.over) return;
    this.over = true;
    const { clock } = this.options;
    const about = this.aboutWhom(expected) ?? this.aboutWhom(doing);
    this.difference = {
      input: this.inputs, inputText: this.lastInput === undefined ? 'none yet' : describeItem(this.lastInput), item: expected !== undefined && expected === this.lastInput ? this.lastPosition : this.position,
      events: clock.events - this.baseEvents, timeNs: clock.now,
      ...about, expected: expected === undefined ? 'more events' : describeItem(expected), actual,
    };
  }

  /** Whom an item is about. */
  private aboutWhom(item: Item | undefined): { readonly device: string; readonly connection?: number } | undefined {
    if (item === undefined || item.kind === 'end') return undefined;
    if ('device' in item) return { device: this.served[item.device]!.name };
    const channel = 'channel' in item ? item.channel
      : 'descriptor' in item ? this.descriptors[item.descriptor]
      : 'window' in item ? this.windows[item.window]
      : this.signals[item.signal]?.channel;
    if (channel === undefined) return undefined;
    const { device, connection } = this.channels[channel]!;
    return { device, connection };
  }
}

/** All that the machine knows of what it does is as recorded. */
function fits(item: Item, doing: Doing): boolean {
  for (const key in doing) {
    const recorded = (item as unknown as Record<string, unknown>)[key], now = (doing as unknown as Record<string, unknown>)[key];
    // first bytes of a message are for people; its CRC is compared
    if (recorded !== now && !(now instanceof Uint8Array)) return false;
  }
  return true;
}
