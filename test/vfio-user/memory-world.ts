/** A session without a socket: a client that is a list of messages, descriptors that are objects, memory that is an array. */
import { VirtualClock } from '../../sim/clock.js';
import { Errno } from '../../sim/errno.js';
import { Ram } from '../../sim/memory.js';
import { Scheduler } from '../../sim/task.js';
import { ClientMemory, Session, type MemoryWindow, type ReceivedDescriptor, type RemoteSignal, type ServedDevice, type SessionLimits, type Transport } from '../../vfio/user/index.js';
import { SampleDevice } from './sample-device.js';
import { CMD, ERROR, message, parse, CLIENT_CAPABILITIES, REPLY, versionPayload, type Answer } from './wire.js';

/** Counts what is open, as /proc/self/fd would. */
export class Descriptors {
  open = 0;
}

class ArrayWindow implements MemoryWindow {
  private readonly ram: Ram;
  private readonly base: number;
  private readonly table: Descriptors;
  private closed = false;

  constructor(ram: Ram, base: number, table: Descriptors) {
    this.ram = ram;
    this.base = base;
    this.table = table;
    table.open++;
  }

  get lo(): number {
    return this.ram.lo;
  }

  get hi(): number {
    return this.ram.hi;
  }

  load64(offset: number): boolean {
    return !this.closed && this.ram.load64(this.base + offset);
  }

  store64(offset: number, lo: number, hi: number): boolean {
    return !this.closed && this.ram.store64(this.base + offset, lo, hi);
  }

  compareExchange64(offset: number, expectLo: number, expectHi: number, lo: number, hi: number): boolean {
    return !this.closed && this.ram.compareExchange64(this.base + offset, expectLo, expectHi, lo, hi);
  }

  load(offset: number, size: 1 | 2 | 4): number {
    return this.closed ? -1 : this.ram.load(this.base + offset, size);
  }

  store(offset: number, size: 1 | 2 | 4, value: number): boolean {
    return !this.closed && this.ram.store(this.base + offset, size, value);
  }

  read(offset: number, target: Uint8Array, targetOffset: number, length: number): boolean {
    return !this.closed && this.ram.read(this.base + offset, target, targetOffset, length);
  }

  write(offset: number, source: Uint8Array, sourceOffset: number, length: number): boolean {
    return !this.closed && this.ram.write(this.base + offset, source, sourceOffset, length);
  }

  fill(offset: number, value: number, length: number): boolean {
    return !this.closed && this.ram.fill(this.base + offset, value, length);
  }

  close(): void {
    if (!this.closed) this.table.open--;
    this.closed = true;
  }
}

/** Memory, an eventfd, or something useless. */
export class FakeDescriptor implements ReceivedDescriptor {
  /** Signals that reached the client's eventfd. */
  signals = 0;
  listener: (() => void) | undefined;
  private readonly table: Descriptors;
  private readonly what: Ram | 'eventfd' | 'pipe';
  private here = true;

  constructor(table: Descriptors, what: Ram | 'eventfd' | 'pipe') {
    this.table = table;
    this.what = what;
    table.open++;
  }

  openWindow(offset: number, sizeBytes: number): MemoryWindow | undefined {
    if (typeof this.what === 'string') throw new Errno('EINVAL', 'no memory');
    if (!this.what.has(offset, sizeBytes)) throw new Errno('EINVAL', 'too short');
    this.close();
    return new ArrayWindow(this.what, offset, this.table);
  }

  openSignal(): RemoteSignal {
    if (this.what !== 'eventfd') throw new Errno('EINVAL', 'no eventfd');
    this.close();
    this.table.open++;
    let open = true;
    return {
      signal: (value) => {
        if (open) this.signals += value;
      },
      listen: (listener) => {
        this.listener = listener;
      },
      close: () => {
        if (open) this.table.open--;
        open = false;
      },
    };
  }

  close(): void {
    if (this.here) this.table.open--;
    this.here = false;
  }
}

export interface MemoryWorldOptions {
  readonly limits?: Partial<SessionLimits>;
  readonly device?: (world: MemoryWorld) => ServedDevice;
  readonly defects?: readonly string[];
}

export class MemoryWorld implements Transport {
  readonly clock = new VirtualClock();
  readonly scheduler = new Scheduler(this.clock, (error) => this.clock.fail(error));
  readonly memory = new ClientMemory();
  readonly device: SampleDevice;
  readonly session: Session;
  readonly table = new Descriptors();
  readonly ram = new Ram(2 ** 24);
  /** What the server sent and nobody has looked at. */
  readonly sent: Answer[] = [];
  readonly bugs: unknown[] = [];
  closed = false;
  resumed = 0;
  private nextId = 1;

  constructor({ limits = {}, device, defects = [] }: MemoryWorldOptions = {}) {
    const { scheduler, memory } = this;
    this.device = new SampleDevice(scheduler);
    const served = device?.(this) ?? { ops: this.device };
    this.device.connectDma(memory);
    this.session = new Session({ device: served, memory, transport: this, scheduler, limits, onBug: (error) => this.bugs.push(error), defects: new Set(defects) });
  }

  send(bytes: Uint8Array): void {
    if (bytes.length < 16) throw new Error('half a header was sent');
    this.sent.push(parse(bytes));
  }

  close(): void {
    this.closed = true;
  }

  resume(): void {
    this.resumed++;
  }

  fd(what: Ram | 'eventfd' | 'pipe' = this.ram): FakeDescriptor {
    return new FakeDescriptor(this.table, what);
  }

  /** Any bytes in pieces of at most `piece`; descriptors come with the first. */
  push(bytes: Uint8Array, descriptors: ReceivedDescriptor[] = [], piece = Infinity): void {
    // nobody is there to receive them
    if (this.closed) for (const descriptor of descriptors) descriptor.close();
    for (let at = 0; at < bytes.length && !this.closed; ) {
      const { space } = this.session;
      const count = Math.min(space.length, bytes.length - at, piece);
      space.set(bytes.subarray(at, at + count));
      this.session.received(count, at === 0 ? descriptors : []);
      at += count;
    }
  }

  /** One command and its answer. */
  ask(command: number, payload?: Uint8Array, descriptors: ReceivedDescriptor[] = [], flags = 0): Answer | undefined {
    const id = this.nextId++ & 0xffff;
    this.push(message(id, command, payload, flags), descriptors);
    this.clock.run();
    const at = this.sent.findIndex((answer) => answer.id === id && (answer.flags & 0xf) === REPLY);
    return at < 0 ? undefined : this.sent.splice(at, 1)[0];
  }

  negotiate(capabilities: unknown = CLIENT_CAPABILITIES): this {
    const answer = this.ask(CMD.VERSION, versionPayload(0, capabilities));
    if (answer === undefined || (answer.flags & ERROR) !== 0) throw new Error('no common version');
    return this;
  }

  /** The payload of a command that is not refused. */
  ok(command: number, payload?: Uint8Array, descriptors: ReceivedDescriptor[] = []): Uint8Array {
    const answer = this.ask(command, payload, descriptors);
    if (answer === undefined) throw new Error(`command ${command}: no answer`);
    if ((answer.flags & ERROR) !== 0) throw new Error(`command ${command}: errno ${answer.errno}`);
    return answer.payload;
  }

  /** The errno of a command that is refused. */
  errno(command: number, payload?: Uint8Array, descriptors: ReceivedDescriptor[] = []): number {
    const answer = this.ask(command, payload, descriptors);
    if (answer === undefined) throw new Error(`command ${command}: no answer`);
    return (answer.flags & ERROR) !== 0 && answer.payload.length === 0 ? answer.errno : 0;
  }
}
