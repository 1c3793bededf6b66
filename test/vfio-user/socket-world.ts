/** Servers on real sockets in real time, and a client of tests that sends bytes and descriptors as it likes. */
import { existsSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { expect, onTestFinished } from 'vitest';
import { Scheduler, type Steps } from '../../sim/task.js';
import { WallClock } from '../../sim/wall-clock.js';
import type { ServedDevice } from '../../vfio/user/index.js';
import { posixCalls, SharedMemory, VfioUserServer, type VfioUserServerOptions } from '../../vfio/user/posix/index.js';
import { EFD_CLOEXEC, EFD_NONBLOCK, type PosixCalls } from '../../vfio/user/posix/calls.js';
import { connectUnix, MessageArena } from '../../vfio/user/posix/socket.js';
import { CMD, ERROR, message, parse, CLIENT_CAPABILITIES, u32, versionPayload, type Answer } from './wire.js';

/** Why these tests cannot run here; undefined when they can. */
export const unavailable = ((): string | undefined => {
  try {
    posixCalls();
    return undefined;
  } catch (error) {
    return String(error);
  }
})();

/** What a client holds: memory, eventfds. */
export interface Closable {
  close(): void;
}

export class EventFile implements Closable {
  fd: number;
  private readonly calls: PosixCalls;

  constructor(calls: PosixCalls, flags = EFD_NONBLOCK) {
    this.calls = calls;
    this.fd = calls.eventfd(0, flags | EFD_CLOEXEC);
  }

  /** The counter, 0 when it was not signalled. */
  take(): number {
    const bytes = new Uint8Array(8);
    return this.calls.read(this.fd, bytes, 8) === 8 ? u32(bytes, 0) : 0;
  }

  write(value: bigint): void {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, value, true);
    this.calls.write(this.fd, bytes, 8);
  }

  close(): void {
    if (this.fd >= 0) this.calls.close(this.fd);
    this.fd = -1;
  }
}

export class RawClient implements Closable {
  /** Commands of the server, with the descriptors that came along. */
  readonly commands: Answer[] = [];
  /** The server closed the connection. */
  ended = false;
  /** Answers the server's commands; without one they pile up. */
  onCommand: ((command: Answer) => void) | undefined;
  /** Of the last reply. */
  descriptors: number[] = [];
  private readonly calls: PosixCalls;
  private readonly arena: MessageArena;
  private readonly answers = new Map<number, (answer: Answer) => void>();
  private readonly waiters = new Set<() => void>();
  private readonly watcher: { close(): void };
  private fd: number;
  private buffered = new Uint8Array(0);
  private nextId = 1;

  constructor(calls: PosixCalls, path: string | number) {
    this.calls = calls;
    this.fd = typeof path === 'number' ? path : connectUnix(calls, path);
    this.arena = new MessageArena(calls);
    this.watcher = calls.watch(this.fd, { readable: true, disconnect: true }, () => this.read());
  }

  /** Raw bytes; true when all of them were taken. */
  write(bytes: Uint8Array, descriptors: readonly number[] = []): boolean {
    const count = descriptors.length > 0 ? this.arena.send(this.fd, bytes, descriptors) : this.calls.send(this.fd, bytes, bytes.length, 0x4040);
    return count === bytes.length;
  }

  ask(command: number, payload?: Uint8Array, descriptors: readonly number[] = []): Promise<Answer> {
    const id = this.nextId++ & 0xffff;
    return new Promise((resolve, reject) => {
      this.answers.set(id, resolve);
      this.waiters.add(() => {
        if (this.ended && this.answers.has(id)) reject(new Error(`command ${command}: the server left`));
      });
      this.write(message(id, command, payload), descriptors);
    });
  }

  async ok(command: number, payload?: Uint8Array, descriptors: readonly number[] = []): Promise<Uint8Array> {
    const answer = await this.ask(command, payload, descriptors);
    if ((answer.flags & ERROR) !== 0) throw new Error(`command ${command}: errno ${answer.errno}`);
    return answer.payload;
  }

  async errno(command: number, payload?: Uint8Array, descriptors: readonly number[] = []): Promise<number> {
    const answer = await this.ask(command, payload, descriptors);
    return (answer.flags & ERROR) !== 0 ? answer.errno : 0;
  }

  async negotiate(capabilities: unknown = CLIENT_CAPABILITIES): Promise<this> {
    await this.ok(CMD.VERSION, versionPayload(0, capabilities));
    return this;
  }

  /** Resolves when the condition holds; it is asked after everything that arrives. */
  until(condition: () => boolean): Promise<void> {
    return new Promise((resolve) => {
      const check = (): void => {
        if (!condition()) return;
        this.waiters.delete(check);
        resolve();
      };
      this.waiters.add(check);
      check();
    });
  }

  close(): void {
    if (this.fd < 0) return;
    this.watcher.close();
    this.calls.close(this.fd);
    this.arena.close();
    this.fd = -1;
  }

  private read(): void {
    const piece = new Uint8Array(65536);
    for (;;) {
      const fds: number[] = [];
      const count = this.arena.receive(this.fd, piece, 16, fds);
      if (fds.length > 0) this.descriptors = fds;
      if (count <= 0) {
        if (count === 0 || this.calls.errno() !== 11) {
          this.ended = true;
          this.watcher.close();
        }
        break;
      }
      this.buffered = new Uint8Array(Buffer.concat([this.buffered, piece.subarray(0, count)]));
      this.cut();
    }
    for (const check of this.waiters) check();
  }

  private cut(): void {
    while (this.buffered.length >= 16 && this.buffered.length >= u32(this.buffered, 4)) {
      const size = u32(this.buffered, 4);
      const answer = parse(this.buffered.subarray(0, size));
      this.buffered = this.buffered.slice(size);
      if ((answer.flags & 0xf) === 0) {
        this.commands.push(answer);
        this.onCommand?.(answer);
      } else {
        const resolve = this.answers.get(answer.id);
        this.answers.delete(answer.id);
        resolve?.(answer);
      }
    }
  }
}

/** The kernel's number of an eventfd. */
function eventId(fd: number): string | undefined {
  return /^eventfd-id:\s*(\d+)/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'latin1'))?.[1];
}

export class SocketWorld {
  readonly calls = posixCalls();
  readonly clock: WallClock;
  readonly scheduler: Scheduler;
  readonly directory = mkdtempSync(join(tmpdir(), 'vfio-user-'));
  readonly bugs: unknown[] = [];
  private readonly servers: VfioUserServer[] = [];
  private readonly held: Closable[] = [];
  private readonly eventIds = new Set<string>();
  private serial = 0;

  constructor() {
    this.clock = new WallClock((error) => this.bugs.push(error));
    this.scheduler = new Scheduler(this.clock, (error) => this.clock.fail(error));
  }

  /** Like no other world's. */
  get name(): string {
    return basename(this.directory);
  }

  run<T>(steps: Steps<T>): Promise<T> {
    const { scheduler } = this;
    return new Promise((resolve, reject) => {
      scheduler.spawn('test', (function* (): Steps {
        try {
          resolve(yield* steps);
        } catch (error) {
          reject(error as Error);
        }
      })());
    });
  }

  path(): string {
    return join(this.directory, `${this.serial++}.sock`);
  }

  async serve(device: ServedDevice, options: Partial<VfioUserServerOptions> = {}): Promise<VfioUserServer> {
    const server = new VfioUserServer({ path: this.path(), device, scheduler: this.scheduler, onBug: (error) => this.bugs.push(error), ...options });
    await this.run(server.start());
    this.servers.push(server);
    return server;
  }

  /** A connected client that has agreed on versions. */
  async client(server: VfioUserServer, capabilities?: unknown): Promise<RawClient> {
    return await this.rawClient(server).negotiate(capabilities);
  }

  rawClient(server: VfioUserServer | string): RawClient {
    return this.hold(new RawClient(this.calls, typeof server === 'string' ? server : server.path));
  }

  guestMemory(sizeBytes: number, sealed = true): SharedMemory {
    return this.hold(new SharedMemory(this.calls, this.name, sizeBytes, sealed));
  }

  eventFd(flags?: number): EventFile {
    const event = this.hold(new EventFile(this.calls, flags));
    this.eventIds.add(eventId(event.fd)!);
    return event;
  }

  /**
   * Descriptors of this process that refer to something of this world: its memory, its eventfds, its servers' sockets.
   * Other threads of the process open others meanwhile.
   */
  openDescriptors(): string[] {
    const sockets = new Set(readFileSync('/proc/net/unix', 'latin1').split('\n').filter((line) => line.includes(this.directory)).map((line) => `socket:[${line.trim().split(/\s+/)[6]}]`));
    return readdirSync('/proc/self/fd').flatMap((fd) => {
      try {
        const link = readlinkSync(`/proc/self/fd/${fd}`);
        const ours = link.includes(this.name) || sockets.has(link) || (link === 'anon_inode:[eventfd]' && this.eventIds.has(eventId(Number(fd)) ?? ''));
        return ours ? [`${fd} ${link}`] : [];
      } catch {
        return [];
      }
    });
  }

  /** Places in this process where memory of this world is mapped. */
  mappings(): number {
    return readFileSync('/proc/self/maps', 'latin1').split('\n').filter((line) => line.includes(`memfd:${this.name}`)).length;
  }

  hold<T extends Closable>(one: T): T {
    this.held.push(one);
    return one;
  }

  /** Ends a client, and waits until its server has noticed and tidied up. */
  async leave(client: RawClient, server: VfioUserServer): Promise<void> {
    client.close();
    await this.run(server.until(() => !server.busy));
  }

  /** Twice does nothing more. */
  async end(): Promise<void> {
    for (const server of this.servers.splice(0)) await this.run(server.stop());
    for (const one of this.held.splice(0)) one.close();
    this.clock.stop();
    if (existsSync(this.directory)) rmSync(this.directory, { recursive: true });
  }
}

/** A test in a world of its own. It ends also after a timeout: koffi ends a process whose worker leaves with watchers open. */
export async function inSocketWorld(body: (world: SocketWorld) => Promise<void>): Promise<void> {
  const world = new SocketWorld();
  onTestFinished(() => world.end());
  await body(world);
  await world.end();
  expect(world.bugs).toEqual([]);
}
