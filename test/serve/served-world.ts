/**
 * External guests on real sockets, and who stands for a virtual machine monitor with its guest: memory in a sealed file,
 * one connection for each function, register accesses as QEMU sends them (writes are posted), interrupts taken as the
 * messages that they are. What a kernel would do is done word by word.
 */
import { existsSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { basename, join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { expect, onTestFinished } from 'vitest';
import { ExternalGuests, type ExternalGuestsOptions, type RunningGuest } from '../../harness/serve/external-guests.js';
import { checkTopology, type LoadedTopology } from '../../harness/topology/load.js';
import { PCI_EXT_CAP_ID_ATS, PCI_EXT_CAP_ID_PASID, PCI_EXT_CAP_ID_PRI } from '../../host/pci/spec/index.js';
import { posixCalls, SharedMemory } from '../../vfio/user/posix/index.js';
import { EventFile, RawClient, type Closable } from '../vfio-user/socket-world.js';
import { CMD, concat, dmaMap, ERROR, message, NO_REPLY, pack, QEMU_CAPABILITIES, regionAccess, regionWrite, setIrqs, u32, u64, type Answer } from '../vfio-user/wire.js';

export const MIB = 2 ** 20;
export const CONFIG = 7;
export const RAM_BYTES = 16 * MIB;

type External = Record<string, unknown>;

/** A topology in code. @param externals what stands under `external:` of each guest */
export function topologyOf(...externals: readonly External[]): LoadedTopology {
  return checkTopology({ version: 1, guests: externals.map((external, i) => ({ name: i === 0 ? 'linux' : `linux${i + 1}`, external })) } as never);
}

export const IOMMU = { model: 'intel-vtd' };
export const DISK = { model: 'nvme', name: 'disk', bdf: '0000:00:03.0', size: 4 * MIB };
export const ACCELERATOR = { model: 'dsa', name: 'dsa0', bdf: '0000:00:04.0' };
export const EVERYTHING = { iommu: IOMMU, devices: [DISK, ACCELERATOR] };

/** One function as its client reaches it. */
export class Register {
  readonly client: RawClient;
  readonly name: string;
  private readonly world: ServedWorld;

  constructor(world: ServedWorld, name: string, client: RawClient) {
    this.world = world;
    this.name = name;
    this.client = client;
  }

  async read(region: number, offset: number, size: number): Promise<Uint8Array> {
    return (await this.client.ok(CMD.REGION_READ, regionAccess(region, offset, size))).subarray(16);
  }

  async read32(offset: number, region = 0): Promise<number> {
    return u32(await this.read(region, offset, 4), 0);
  }

  async read64(offset: number, region = 0): Promise<number> {
    return u64(await this.read(region, offset, 8), 0);
  }

  /** Posted, as QEMU's writes of a BAR. */
  post(offset: number, bytes: Uint8Array, region = 0): void {
    expect(this.client.write(message(0, CMD.REGION_WRITE, regionWrite(region, offset, bytes), NO_REPLY))).toBe(true);
  }

  write32(offset: number, value: number, region = 0): void {
    this.post(offset, pack([4, value]), region);
  }

  write64(offset: number, value: number | bigint, region = 0): void {
    this.post(offset, pack([8, value]), region);
  }

  async config(offset: number, size: 1 | 2 | 4 = 4): Promise<number> {
    const bytes = await this.read(CONFIG, offset, size);
    return bytes.reduce((value, byte, i) => value + byte * 2 ** (8 * i), 0);
  }

  async setConfig(offset: number, size: 1 | 2 | 4, value: number): Promise<void> {
    await this.client.ok(CMD.REGION_WRITE, regionWrite(CONFIG, offset, pack([size, value])));
  }

  /** Memory space and bus mastering on. */
  async enable(): Promise<this> {
    await this.setConfig(4, 2, 6);
    return this;
  }

  async extendedCapability(id: number): Promise<number> {
    for (let at = 0x100; at !== 0; ) {
      const header = await this.config(at);
      if ((header & 0xffff) === id) return at;
      at = header >>> 20;
    }
    throw new Error(`${this.name} has no extended capability ${id}`);
  }

  async capability(id: number): Promise<number> {
    for (let at = await this.config(0x34, 1); at !== 0; at = await this.config(at + 1, 1)) if ((await this.config(at, 1)) === id) return at;
    throw new Error(`${this.name} has no capability ${id}`);
  }

  /** MSI-X on, and an eventfd for each vector. */
  async vectors(count: number): Promise<EventFile[]> {
    const events = Array.from({ length: count }, () => this.world.hold(new EventFile(this.world.calls)));
    await this.client.ok(CMD.SET_IRQS, setIrqs(2, 0, count, 0x24), events.map(({ fd }) => fd));
    await this.setConfig((await this.capability(0x11)) + 2, 2, 0x8000);
    return events;
  }

  /** PASID, ATS, page requests on, in the order in which Linux does it. */
  async enableSva(allocation = 32): Promise<void> {
    await this.setConfig((await this.extendedCapability(PCI_EXT_CAP_ID_PASID)) + 6, 2, 7);
    await this.setConfig((await this.extendedCapability(PCI_EXT_CAP_ID_ATS)) + 6, 2, 0x8000);
    const pri = await this.extendedCapability(PCI_EXT_CAP_ID_PRI);
    await this.setConfig(pri + 12, 4, allocation);
    await this.setConfig(pri + 4, 2, 1);
  }
}

/** A message that the server sent to its client. */
export interface Sent {
  readonly write: boolean;
  readonly address: number;
  readonly data: Uint8Array;
}

/** A virtual machine monitor and its guest. */
export class Machine {
  readonly functions: Record<string, Register> = {};
  /** Messages of the server in order. */
  readonly sent: Sent[] = [];
  /** Memory that is reached by messages, where there is no descriptor. */
  readonly bytes = new Uint8Array(MIB);
  /** Answers the server's message; without one they pile up in `unanswered`. */
  answer: 'yes' | 'refuse' | 'never' = 'yes';
  readonly ram: SharedMemory;
  private readonly world: ServedWorld;
  private readonly guest: RunningGuest;

  constructor(world: ServedWorld, guest: RunningGuest) {
    this.world = world;
    this.guest = guest;
    this.ram = world.hold(new SharedMemory(world.calls, world.name, RAM_BYTES));
  }

  /** Connects to every function that has no connection, announces memory, and switches the function on. */
  async attach({ descriptors = true, enable = true }: { readonly descriptors?: boolean; readonly enable?: boolean } = {}): Promise<this> {
    for (const { served, path } of this.guest.server.functions) {
      if (this.functions[served.name] !== undefined) continue;
      const client = this.world.hold(new RawClient(this.world.calls, path));
      client.onCommand = (command) => this.serve(client, command);
      await client.negotiate(QEMU_CAPABILITIES);
      await client.ok(CMD.DMA_MAP, dmaMap(0, descriptors ? RAM_BYTES : MIB), descriptors ? [this.ram.descriptor] : []);
      await client.ok(CMD.RESET);
      this.functions[served.name] = new Register(this.world, served.name, client);
      if (enable) await this.functions[served.name]!.enable();
    }
    return this;
  }

  of(name: string): Register {
    return this.functions[name]!;
  }

  /** One connection ends. */
  detach(name: string): void {
    this.of(name).client.close();
    delete this.functions[name];
  }

  // --- memory of the guest

  get(address: number): number {
    expect(this.ram.window.load64(address)).toBe(true);
    return (this.ram.window.lo >>> 0) + (this.ram.window.hi >>> 0) * 2 ** 32;
  }

  get32(address: number): number {
    return this.ram.window.load(address, 4);
  }

  set(address: number, ...words: readonly (number | bigint)[]): void {
    const bytes = pack(...words.map((word) => [8, word] as const));
    expect(this.ram.window.write(address, bytes, 0, bytes.length)).toBe(true);
  }

  put(address: number, bytes: Uint8Array): void {
    expect(this.ram.window.write(address, bytes, 0, bytes.length)).toBe(true);
  }

  bytesAt(address: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    expect(this.ram.window.read(address, bytes, 0, length)).toBe(true);
    return bytes;
  }

  /** Interrupts of the unit: address and data. */
  get interrupts(): [number, number][] {
    return this.sent.flatMap(({ write, address, data }) => (write && address >= 0xfee0_0000 ? [[address, u32(data, 0)] as [number, number]] : []));
  }

  private serve(client: RawClient, { id, command, payload }: Answer): void {
    const write = command === CMD.DMA_WRITE, address = u64(payload, 0);
    // as QEMU does from version 11 on: the count is in the upper half, too, of who sends as to an older one
    if (write && u32(payload, 12) !== 0) {
      client.write(message(id, command, new Uint8Array(0), 1 | ERROR, 7));
      return;
    }
    const count = u64(payload, 8);
    this.sent.push({ write, address, data: payload.slice(16) });
    if (this.answer === 'never') return;
    const inside = address + count <= this.bytes.length;
    if (this.answer === 'refuse' || (!inside && !(write && address >= 0xfee0_0000))) {
      client.write(message(id, command, new Uint8Array(0), 1 | ERROR, 19));
      return;
    }
    if (write && inside) this.bytes.set(payload.subarray(16), address);
    client.write(message(id, command, write ? payload.subarray(0, 16) : concat(payload.subarray(0, 16), this.bytes.subarray(address, address + count)), 1));
  }
}

export class ServedWorld {
  readonly calls = posixCalls();
  readonly directory = mkdtempSync(join(tmpdir(), 'vfiosim-serve-'));
  readonly bugs: unknown[] = [];
  readonly guests: ExternalGuests;
  private readonly held: Closable[] = [];
  private state: 'new' | 'running' | 'ended' = 'new';

  constructor(loaded: LoadedTopology, options: Partial<ExternalGuestsOptions> = {}) {
    this.guests = new ExternalGuests(loaded, { directory: this.directory, onBug: (error) => this.bugs.push(error), ...options });
  }

  get name(): string {
    return basename(this.directory);
  }

  get guest(): RunningGuest {
    return this.guests.guests[0]!;
  }

  /** What has happened in the machine so far. */
  count(kind: string, guest = this.guest): number {
    const { trace } = guest.server.guest;
    const found = trace.kinds.find(({ name }) => name === kind);
    return found === undefined ? 0 : trace.countOf(found);
  }

  hold<T extends Closable>(one: T): T {
    this.held.push(one);
    return one;
  }

  machine(guest = this.guest): Machine {
    return new Machine(this, guest);
  }

  async start(): Promise<void> {
    await this.guests.start();
    this.state = 'running';
  }

  /** Twice does nothing more. */
  async stop(): Promise<void> {
    if (this.state === 'running') await this.guests.stop();
    this.state = 'ended';
  }

  async end(): Promise<void> {
    await this.stop();
    for (const one of this.held.splice(0)) one.close();
    if (existsSync(this.directory)) rmSync(this.directory, { recursive: true });
  }

  /** Descriptors of this process that are this world's: its memory, its sockets. */
  descriptors(): string[] {
    const sockets = new Set(readFileSync('/proc/net/unix', 'latin1').split('\n').filter((line) => line.includes(this.directory)).map((line) => `socket:[${line.trim().split(/\s+/)[6]}]`));
    return readdirSync('/proc/self/fd').flatMap((fd) => {
      try {
        const link = readlinkSync(`/proc/self/fd/${fd}`);
        return link.includes(this.name) || sockets.has(link) ? [link] : [];
      } catch {
        return [];
      }
    });
  }

  mappings(): number {
    return readFileSync('/proc/self/maps', 'latin1').split('\n').filter((line) => line.includes(`memfd:${this.name}`)).length;
  }
}

/** Resolves when the condition holds; the event loop goes on meanwhile. */
export async function until(condition: () => boolean): Promise<void> {
  while (!condition()) await turn();
}

/** A test in a world of its own that runs. It ends also after a timeout: koffi ends a process whose worker leaves with watchers open. */
export async function inServedWorld(loaded: LoadedTopology, body: (world: ServedWorld) => Promise<void>, options: Partial<ExternalGuestsOptions> = {}): Promise<void> {
  const world = new ServedWorld(loaded, options);
  onTestFinished(() => world.end());
  await world.start();
  await body(world);
  await world.end();
  expect(world.bugs).toEqual([]);
}
