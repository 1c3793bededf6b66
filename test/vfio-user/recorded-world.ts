/**
 * A machine of several devices on one clock whose clients are this test, with a recorder between them, and the same
 * machine once more for a replay. The device reads descriptors out of the client's memory and does what they say, so
 * that nothing it does can be known without that memory.
 */
import { VirtualClock, type Clock } from '../../sim/clock.js';
import { Ram } from '../../sim/memory.js';
import { sleep, Scheduler, type Steps } from '../../sim/task.js';
import type { EventFd } from '../../host/eventfd.js';
import { IRQ_INFO_EVENTFD, IRQ_INFO_MASKABLE, REGION_INFO_READ, REGION_INFO_WRITE, type VfioDeviceInfo, type VfioDeviceOps, type VfioIrqInfo, type VfioIrqSet, type VfioRegionInfo } from '../../vfio/device.js';
import { spawnDeviceTask } from '../../vfio/user/device-task.js';
import { ClientMemory, DEFAULT_LIMITS, Session, type ReceivedDescriptor, type ServedDevice } from '../../vfio/user/index.js';
import { MachineRecorder, Recording, replayRecording, type Item, type ConnectionRecorder, type RecordedClock, type RecordingFields, type ReplayReport } from '../../vfio/user/recording/index.js';
import type { ByteSink, Transport } from '../../vfio/user/transport.js';
import { Descriptors, FakeDescriptor } from './memory-world.js';
import { CLIENT_CAPABILITIES, CMD, concat, dmaMap, EVENTFD_TRIGGER, EVENTFD_UNMASK, infoRequest, message, pack, regionWrite, setIrqs, versionPayload } from './wire.js';

export const RAM_BYTES = 2 ** 16;
/** What a descriptor of 32 bytes asks for: {op, delay} {from, to} {length, value} {next or 0}. */
export const OP = { copy: 1, words: 2, exchange: 3, fill: 4, interrupt: 5, byMessage: 6, small: 7, away: 8 } as const;

/** Runs descriptors from an address that is written to BAR0. `ran` is what a trace would be. */
export class Walker implements VfioDeviceOps {
  readonly name: string;
  readonly ran: string[] = [];
  memory: ClientMemory | undefined;
  unmasked = 0;
  private readonly scheduler: Scheduler;
  private readonly clock: Clock;
  private readonly triggers = new Map<string, EventFd>();

  constructor(name: string, scheduler: Scheduler) {
    this.name = name;
    this.scheduler = scheduler;
    this.clock = scheduler.clock;
  }

  *open(): Steps {
    yield* sleep(this.clock, 10);
    this.note('open');
  }

  *close(): Steps {
    yield* sleep(this.clock, 10);
    this.note('close');
  }

  info(): VfioDeviceInfo {
    return { flags: 3, regions: 9, irqs: 5 };
  }

  regionInfo(index: number): VfioRegionInfo {
    return { flags: REGION_INFO_READ | REGION_INFO_WRITE, sizeBytes: index === 0 ? 16 : 0 };
  }

  irqInfo(index: number): VfioIrqInfo {
    return { flags: IRQ_INFO_EVENTFD | IRQ_INFO_MASKABLE, count: index === 0 ? 1 : 0 };
  }

  /** The time: a guest that reads it sees whether a replay has the same. */
  read(_offset: number, target: Uint8Array): number {
    target.fill(0);
    new DataView(target.buffer, target.byteOffset).setUint32(0, this.clock.now >>> 0, true);
    return target.length;
  }

  write(_offset: number, source: Uint8Array): number {
    const at = new DataView(source.buffer, source.byteOffset).getUint32(0, true);
    this.note(`doorbell ${at}`);
    this.clock.post(at % 64, () => this.walk(at, 16));
    return source.length;
  }

  mmap(): never {
    throw new Error('not mappable');
  }

  // oxlint-disable-next-line require-yield -- VfioDeviceOps may sleep
  *setIrqs({ action, data }: VfioIrqSet): Steps {
    const fd = data.kind === 'eventfd' ? data.fds[0] : undefined;
    if (fd === undefined) this.triggers.delete(action);
    else this.triggers.set(action, fd);
    if (action === 'unmask') fd?.listen(() => {
      this.unmasked++;
      this.note('unmask');
      this.clock.post(3, () => this.triggers.get('trigger')?.signal(this.unmasked));
    });
  }

  *reset(): Steps {
    yield* sleep(this.clock, 500);
    this.note('reset');
  }

  request(): void {}

  // oxlint-disable-next-line require-yield -- VfioDeviceOps may sleep
  *feature(): Steps<number> {
    return 0;
  }

  note(what: string): void {
    this.ran.push(`${this.clock.now} ${what}`);
  }

  private walk(at: number, budget: number): void {
    const { memory } = this.memory!;
    if (budget === 0 || !memory.load64(at)) return this.note(`absent ${at}`);
    const op = memory.lo & 15, delay = (memory.hi >>> 0) % 5000;
    if (!memory.load64(at + 8)) return;
    const from = (memory.lo >>> 0) % RAM_BYTES & ~7, to = (memory.hi >>> 0) % RAM_BYTES & ~7;
    if (!memory.load64(at + 16)) return;
    const length = (memory.lo >>> 0) % 300, value = memory.hi;
    if (!memory.load64(at + 24)) return;
    const next = (memory.lo >>> 0) % RAM_BYTES & ~31;
    this.note(`${op} ${from} ${to} ${length}`);
    this.carryOut(op, from, to, length, value);
    if (next !== 0) this.clock.post(delay, () => this.walk(next, budget - 1));
  }

  private carryOut(op: number, from: number, to: number, length: number, value: number): void {
    const { memory } = this.memory!;
    const bytes = new Uint8Array(length);
    switch (op) {
      case OP.copy:
        if (memory.read(from, bytes, 0, length)) memory.write(to, bytes, 0, length);
        break;
      case OP.words:
        if (memory.load64(from)) memory.store64(to, memory.lo ^ value, memory.hi);
        break;
      case OP.exchange:
        if (memory.load64(from)) this.note(`exchanged ${memory.compareExchange64(to, memory.lo, memory.hi, value, 7)}`);
        break;
      case OP.fill: memory.fill(to, value, length); break;
      case OP.interrupt: this.triggers.get('trigger')?.signal(1 + (value & 3)); break;
      case OP.byMessage:
        this.memory!.readByMessages(from, bytes, (error) => {
          this.note(`${error?.code ?? 'read'} ${bytes[0]}`);
          if (error === undefined) this.memory!.writeByMessages(to, bytes.subarray(0, length >> 1), () => this.note('written'));
        });
        break;
      case OP.small:
        memory.store(to, 1, memory.load(from, 1) + 1);
        memory.store(to + 2, 2, memory.load(from + 2, 2) ^ value);
        memory.store(to + 4, 4, memory.load(from + 4, 4));
        break;
      default: this.note(`away ${memory.load(RAM_BYTES + from, 4)}`);
    }
  }
}

/** A descriptor as `Walker` reads it. */
export function job(op: number, { delay = 100, from = 0, to = 0, length = 64, value = 0, next = 0 } = {}): Uint8Array {
  return pack([4, op], [4, delay], [4, from], [4, to], [4, length], [4, value], [4, next], [4, 0]);
}

/** One machine, recorded or replayed. All DMA goes to the memory of its first device's client. */
export function machine(clock: VirtualClock | (Clock & { fail(error: unknown): void }), names: readonly string[]) {
  const scheduler = new Scheduler(clock, (error) => clock.fail(error));
  const memory = new ClientMemory();
  const walkers = names.map((name) => new Walker(name, scheduler));
  const devices = new Map<string, ServedDevice>(walkers.map((ops, i) => [ops.name, { ops, memory: i === 0 ? memory : new ClientMemory(), connectDma: () => void (ops.memory = memory) }]));
  return { clock, scheduler, walkers, devices, ran: () => walkers.map(({ ran }) => ran) };
}

/** A client's end of one connection. */
export class Client {
  readonly sent: Uint8Array[] = [];
  closed = false;
  readonly session: Session;
  private readonly recorded: ConnectionRecorder;
  private readonly sink: ByteSink;
  private readonly enter: (action: () => void) => void;
  private nextId = 1;

  constructor(world: RecordedWorld, name: string) {
    this.enter = world.enter;
    const device = world.machine.devices.get(name)!;
    const transport: Transport = {
      send: (bytes) => void this.sent.push(bytes.slice()),
      close: () => {
        this.closed = true;
      },
      resume: () => {},
    };
    let made: { session: Session; recorded: ConnectionRecorder } | undefined;
    this.enter(() => {
      const recorded = world.recorder.device(name).connected(transport, DEFAULT_LIMITS);
      const openTwin = recorded.twin(() => {
        throw new Error('no second channel here');
      });
      const session = new Session({ device, memory: device.memory!, scheduler: world.machine.scheduler, limits: DEFAULT_LIMITS, transport: recorded.transport, openTwin });
      made = { session, recorded };
    });
    this.session = made!.session;
    this.recorded = made!.recorded;
    this.sink = this.recorded.sink(this.session);
  }

  /** Each piece is an input. */
  push(bytes: Uint8Array, descriptors: readonly ReceivedDescriptor[] = []): void {
    for (let at = 0; at < bytes.length && !this.closed && this.session.accepting; ) {
      const { space } = this.sink, count = Math.min(space.length, bytes.length - at), first = at === 0;
      space.set(bytes.subarray(at, at + count));
      this.enter(() => this.sink.received(count, first ? descriptors : [], false));
      at += count;
    }
  }

  command(command: number, payload?: Uint8Array, descriptors: readonly ReceivedDescriptor[] = []): void {
    this.push(message(this.nextId++ & 0xffff, command, payload), descriptors);
  }

  negotiate(capabilities: unknown = CLIENT_CAPABILITIES): this {
    this.command(CMD.VERSION, versionPayload(0, capabilities));
    return this;
  }

  doorbell(address: number): void {
    this.command(CMD.REGION_WRITE, regionWrite(0, 0, pack([4, address])));
  }

  /** Replies to every DMA_READ and DMA_WRITE that has been sent. */
  answer(ram: Ram): void {
    for (const bytes of this.sent.splice(0)) {
      const view = new DataView(bytes.buffer, bytes.byteOffset), command = view.getUint16(2, true);
      if ((view.getUint32(8, true) & 15) !== 0) continue;
      const address = Number(view.getBigUint64(16, true)), count = Number(view.getBigUint64(24, true));
      const data = new Uint8Array(command === CMD.DMA_READ ? count : 0);
      if (command === CMD.DMA_READ) ram.read(address, data, 0, count);
      else ram.write(address, bytes, 32, count);
      this.push(message(view.getUint16(0, true), command, concat(pack([8, address], [8, count]), data), 1));
    }
  }

  leave(): void {
    if (!this.closed) this.enter(() => this.sink.disconnected('client left'));
  }

  /** The server ends it. */
  stop(): void {
    this.enter(() => {
      this.recorded.stopped();
      this.session.close();
    });
  }
}

export interface RecordedWorldOptions {
  readonly names?: readonly string[];
  readonly defects?: readonly string[];
  readonly clock?: Clock & RecordedClock & { fail(error: unknown): void; enter(action: () => void): void };
  readonly fields?: RecordingFields;
}

export class RecordedWorld {
  /** Without a clock of its own. */
  readonly virtual = new VirtualClock();
  readonly machine: ReturnType<typeof machine>;
  readonly recorder: MachineRecorder;
  readonly enter: (action: () => void) => void;
  readonly ram = new Ram(RAM_BYTES);
  readonly table = new Descriptors();
  readonly names: readonly string[];
  private readonly chunks: Uint8Array[] = [];

  constructor({ names = ['walker'], defects = [], clock, fields = {} }: RecordedWorldOptions = {}) {
    const { virtual } = this;
    this.names = names;
    this.machine = machine(clock ?? virtual, names);
    this.enter = clock === undefined ? (action) => action() : (action) => clock.enter(action);
    const recorded = clock ?? {
      get now() {
        return virtual.now;
      },
      get eventsRun() {
        return virtual.events;
      },
    };
    for (const device of this.machine.devices.values()) device.connectDma!(device.memory!);
    this.recorder = new MachineRecorder({ clock: recorded, write: (chunk) => void this.chunks.push(chunk.slice()), devices: names, fields, defects: new Set(defects) });
  }

  perform(what: 'open' | 'close', name = this.names[0]!): void {
    this.enter(() => {
      this.recorder.device(name)[what]();
      spawnDeviceTask(this.machine.scheduler, this.machine.devices.get(name)!.ops, what, () => {});
    });
  }

  fd(what: Ram | 'eventfd' | 'pipe' = this.ram): FakeDescriptor {
    return new FakeDescriptor(this.table, what);
  }

  client(name = this.names[0]!): Client {
    return new Client(this, name);
  }

  /** At most so many events, or all. */
  run(events = Infinity): void {
    let left = events;
    if (left > 0) this.virtual.run({ stop: () => --left <= 0 });
  }

  /** Time passes up to the next event. */
  wait(ns: number): void {
    this.virtual.advance(Math.min(this.virtual.now + ns, this.virtual.nextNs));
  }

  put(at: number, bytes: Uint8Array): void {
    this.ram.write(at, bytes, 0, bytes.length);
  }

  file(): Uint8Array {
    return concat(...this.chunks);
  }

  finish(fields?: RecordingFields): Uint8Array {
    this.recorder.finish(fields);
    return this.file();
  }
}

/** The same machine, with nobody there. */
export function replay(file: Uint8Array, names: readonly string[] = ['walker'], defects: readonly string[] = []): ReplayReport & { ran: string[][]; recording: Recording } {
  const recording = new Recording(file);
  const { clock, scheduler, devices, ran } = machine(new VirtualClock(), names);
  const report = replayRecording(recording, { clock: clock as VirtualClock, scheduler, devices, defects: new Set(defects) });
  return { ...report, ran: ran(), recording };
}

/** A client that has given its memory. */
export function started(options: RecordedWorldOptions = {}): { world: RecordedWorld; client: Client } {
  const world = new RecordedWorld(options);
  world.perform('open');
  world.run();
  const client = world.client().negotiate();
  client.command(CMD.DMA_MAP, dmaMap(0, RAM_BYTES), [world.fd()]);
  return { world, client };
}

/** Every kind of access, chained. */
export function chain(world: RecordedWorld): void {
  const ops = [OP.copy, OP.words, OP.exchange, OP.fill, OP.interrupt, OP.small, OP.away, OP.exchange];
  ops.forEach((op, i) => world.put(0x1000 + 32 * i, job(op, { from: 0x2000 + 64 * i, to: 0x4000 + 64 * i, value: 5 + i, delay: 1000 * i, next: i === ops.length - 1 ? 0 : 0x1020 + 32 * i })));
  for (let i = 0; i < 0x1000; i++) world.put(0x2000 + i, Uint8Array.of(i * 7));
}

/** Of a recording, in order. */
export function itemsOf(file: Uint8Array): Item[] {
  const reader = new Recording(file).read(), items: Item[] = [];
  for (let item = reader.next(); item !== undefined; item = reader.next()) items.push(item);
  return items;
}

/** A recording in which one access was of something else. */
export function changed(defect?: string): { file: Uint8Array; world: RecordedWorld } {
  const { world, client } = started(defect === undefined ? {} : { defects: [defect] });
  const events = [world.fd('eventfd'), world.fd('eventfd')];
  client.command(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_TRIGGER), [events[0]!]);
  client.command(CMD.SET_IRQS, setIrqs(0, 0, 1, EVENTFD_UNMASK), [events[1]!]);
  world.run();
  chain(world);
  client.doorbell(0x1000);
  world.run();
  world.enter(() => events[1]!.listener!());
  world.run();
  client.command(CMD.GET_INFO, infoRequest(16));
  return { file: world.finish(), world };
}
