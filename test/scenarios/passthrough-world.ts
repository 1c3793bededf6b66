/**
 * A whole machine whose devices are in the hands of users: guests, and processes that drive a device themselves. Guests
 * of the topology start when a test says so; programs of a guest run on its virtual CPUs.
 */
import { expect } from 'vitest';
import type { Guest } from '../../harness/guests/guest.js';
import type { OperationResult } from '../../harness/scenario/operations.js';
import { Program } from '../../harness/scenario/program.js';
import type { Summary } from '../../harness/summary.js';
import type { TopologyInput } from '../../harness/topology/schema.js';
import { EventFd } from '../../host/eventfd.js';
import { Malloc } from '../../host/mm/malloc.js';
import type { PciFunctionDevice } from '../../host/pci/kernel/index.js';
import type { Process } from '../../host/process.js';
import type { MdevDevice } from '../../mdev/device.js';
import type { Steps } from '../../sim/task.js';
import { VfioClient, type ContainerHandle, type DeviceHandle, type GroupHandle, type IommuType } from '../../vfio/client/index.js';
import { PCI_REQ_IRQ } from '../../vfio/device.js';
import { NO_LEAKS } from './shipped.js';
import { DSA0, World, type WorldOptions } from './world.js';

export const MIB = 2 ** 20;
export const PAGE = 4096;
type GuestInput = NonNullable<TopologyInput['guests']>[number];
type MdevInput = NonNullable<TopologyInput['mdevs']>[number];
type DsaInput = typeof DSA0;

/** The nth UUID of a test. */
export function uuid(n: number): string {
  return `83b8f4f2-509f-382f-3c1e-${n.toString(16).padStart(12, '0')}`;
}

/** An accelerator with `dedicated` and `shared` queues for mediated devices, and queues of others behind them. */
export function mdevDsa(dedicated: number, shared = 0, more: NonNullable<DsaInput['work-queues']> = []): DsaInput {
  return {
    ...DSA0,
    'work-queues': [
      ...Array.from({ length: dedicated }, () => ({ mode: 'dedicated' as const, type: 'mdev' as const, size: 16, 'block-on-fault': false })),
      ...Array.from({ length: shared }, () => ({ mode: 'shared' as const, type: 'mdev' as const, size: 16, 'block-on-fault': false })),
      ...more,
    ],
  };
}

/** Mediated devices m0, m1, … of dsa0. */
export function slices(dedicated: number, shared = 0, more: Partial<MdevInput> = {}): MdevInput[] {
  return Array.from({ length: dedicated + shared }, (_, i) => ({ uuid: uuid(i + 1), name: `m${i}`, parent: 'dsa0', mdev_type: i < dedicated ? 'idxd-1dwq-v1' : 'idxd-1swq-v1', ...more }));
}

/** Guests vm0, vm1, … with 16 MiB and one mediated device each. */
export function guestsOf(count: number, more: Partial<GuestInput> = {}): GuestInput[] {
  return Array.from({ length: count }, (_, i) => ({ name: `vm${i}`, memory: '16MiB', devices: [{ mdev: `m${i}`, name: 'wq' }], ...more }));
}

/** A container with its groups and devices, in the hands of one process. */
export interface Assembled {
  readonly container: ContainerHandle;
  readonly groups: readonly GroupHandle[];
  readonly devices: readonly DeviceHandle[];
}

/** A process of the host that calls VFIO. */
export class VfioUser {
  readonly program: Program;
  readonly process: Process;
  readonly client: VfioClient;
  private readonly world: PassthroughWorld;

  constructor(world: PassthroughWorld, name: string, memlockBytes?: number) {
    this.world = world;
    this.program = memlockBytes === undefined ? world.process(name) : world.limitedProcess(name, memlockBytes);
    this.process = this.program.process;
    this.client = new VfioClient(world.host.passthrough.vfio, this.process);
  }

  run<T>(steps: Steps<T>): T {
    return this.world.run(steps);
  }

  /** A container of `type` that holds the groups of these devices, with the devices open. */
  assemble(names: readonly string[], type: IommuType = 'type1v2'): Assembled {
    const container = this.client.openContainer();
    const groups: GroupHandle[] = [];
    const devices: DeviceHandle[] = [];
    for (const name of names) {
      const group = this.client.openGroup(this.world.groupId(name));
      this.run(group.setContainer(container));
      if (groups.length === 0) this.run(container.setIommu(type));
      groups.push(group);
      devices.push(this.run(group.getDevice(this.world.vfioName(name))));
    }
    return { container, groups, devices };
  }

  /** Memory that nobody has touched. */
  mmap(bytes: number, options: { hugeLevel?: 1 | 2; prot?: number } = {}): number {
    return this.run(this.process.mm.mmap(bytes, options));
  }

  write(address: number, bytes: Uint8Array): void {
    this.run(this.process.mm.write(address, bytes));
  }

  read(address: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.run(this.process.mm.read(address, bytes));
    return bytes;
  }

  /** Answers a device's request with `release`, once. */
  onRequest(device: DeviceHandle, release: () => void): void {
    const eventfd = new EventFd(this.world.host.scheduler, 'request');
    eventfd.listen(() => {
      eventfd.read();
      release();
    });
    this.run(device.setIrqs({ index: PCI_REQ_IRQ, eventfds: [this.process.open(eventfd)] }));
  }

  exit(): void {
    this.run(this.process.exit());
  }
}

export class PassthroughWorld extends World {
  constructor(options: WorldOptions = {}) {
    super({ devices: [mdevDsa(2)], ...options });
  }

  /** The guest of that name, off when nobody has started it. */
  guest(name = 'vm0'): Guest {
    const { scenario, loaded } = this.machine;
    return scenario.guests.get(name) ?? scenario.newGuest(loaded.topology.guests.find((guest) => guest.name === name)!);
  }

  /** A guest that runs. */
  started(name = 'vm0'): Guest {
    const guest = this.guest(name);
    this.run(guest.start());
    expect([guest.state, guest.reason]).toEqual(['running', '']);
    return guest;
  }

  /** Runs steps on a guest's virtual CPUs, with everything that happens meanwhile. */
  inGuest<T>(guest: Guest, steps: Steps<T>): T {
    return this.machine.execute(`in ${guest.name}`, steps, guest.kernel!.scheduler);
  }

  user(name: string, memlockBytes?: number): VfioUser {
    return new VfioUser(this, name, memlockBytes);
  }

  /** A process with an RLIMIT_MEMLOCK of its own. */
  limitedProcess(name: string, memlockBytes: number): Program {
    const { world } = this.machine.scenario;
    const process = world.newProcess(name, memlockBytes);
    const program = new Program(world, process, new Malloc(process.mm));
    world.admit(program);
    return program;
  }

  pci(name: string): PciFunctionDevice {
    return this.machine.scenario.world.device(name).pci;
  }

  mdev(reference: string): MdevDevice {
    const { passthrough } = this.host;
    return passthrough.mdevs.find(passthrough.definition(reference).uuid)!;
  }

  private isMdev(name: string): boolean {
    return this.machine.loaded.topology.mdevs.some((mdev) => mdev.name === name);
  }

  /** The number under /dev/vfio of a device or mediated device. */
  groupId(name: string): number {
    return this.isMdev(name) ? this.mdev(name).group! : this.host.pci.groupOf(this.pci(name)).id;
  }

  /** As GET_DEVICE_FD takes it. */
  vfioName(name: string): string {
    return this.isMdev(name) ? this.mdev(name).uuid : this.pci(name).name;
  }

  /** PASID of a mediated device's aux domain. */
  pasidOf(mdev: string): number | undefined {
    return this.host.passthrough.vfio.pasidOf(this.mdev(mdev));
  }

  /** The administrator takes a device from its driver and gives it to vfio-pci. */
  give(name: string): PciFunctionDevice {
    const { drivers, passthrough: { vfioPci } } = this.host;
    const pci = this.pci(name);
    const driver = drivers.driverOf(pci);
    if (driver !== undefined) this.run(drivers.unbind(driver.name, pci));
    drivers.setDriverOverride(pci, vfioPci.name);
    this.run(drivers.bind(vfioPci.name, pci));
    return pci;
  }

  /** What VFIO, mediated devices and the IOMMU hold: for refusals, which change nothing. */
  books(): unknown {
    const { passthrough: { type1, mdevs, vfio }, frames, pci } = this.host;
    return [
      type1.usage, frames.pinnedPages, this.core.usage, mdevs.devices.map(({ name, state }) => [name, state]), vfio.groupIds.map((id) => [id, vfio.group(id)!.container?.id]),
      pci.devices.map((device) => (['AUX', 'IOPF', 'SVA'] as const).map((feature) => this.core.devFeatureEnabled(device, feature))),
    ];
  }

  /** Ends guests and processes, takes the machine down, and expects nothing to be left. */
  override finish(violations: readonly unknown[] = []): Summary {
    const { scenario } = this.machine;
    for (const guest of scenario.guests.values()) {
      if (guest.state === 'running') this.run(guest.shutdown());
      else if (guest.alive) this.run(guest.kill());
    }
    for (const { process } of scenario.world.programs.values()) this.run(process.exit());
    this.settle();
    // what is defined and was not started stays so
    this.machine.takeDown();
    const summary = this.machine.summary();
    expect(summary.stepFailures).toEqual([]);
    expect(summary.invariants.flatMap(({ violations: texts }) => texts)).toEqual(violations);
    expect(summary.leaks).toEqual(NO_LEAKS);
    expect(this.host.passthrough.type1.usage).toEqual({ containers: 0, mappings: 0, domains: 0, binds: 0 });
    // the verdict also judges flows and guests, which tests here end as they like
    expect(summary.end).toBe('finished');
    return summary;
  }
}

/** A program of a guest, or of the host, that submits to a device and looks at memory. */
export class Worker {
  readonly program: Program;
  private readonly world: PassthroughWorld;
  private readonly guest: Guest | undefined;

  constructor(world: PassthroughWorld, where: Guest | undefined, name = 'app') {
    this.world = world;
    this.guest = where;
    this.program = where === undefined ? world.process(name) : where.world!.newProgram(name);
  }

  run<T>(steps: Steps<T>): T {
    return this.guest === undefined ? this.world.run(steps) : this.world.inGuest(this.guest, steps);
  }

  open(device: string, queue?: string): this {
    this.run(this.program.open({ device, queue, as: undefined }));
    return this;
  }

  malloc(bytes: number): number {
    return this.run(this.program.malloc.malloc(bytes));
  }

  write(address: number, bytes: Uint8Array): void {
    this.run(this.program.process.mm.write(address, bytes));
  }

  read(address: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.run(this.program.process.mm.read(address, bytes));
    return bytes;
  }

  /** One copy; raw addresses go to the device as they are. */
  *copying(device: string, from: number, to: number, sizeBytes: number, raw: { from?: boolean; to?: boolean } = {}): Steps<OperationResult> {
    const handle = this.program.opened.get(device)!;
    const submission = yield* handle.user.submit([{
      kind: 'copy', from, to, sizeBytes, pattern: 0n, blockOnFault: undefined, rawFrom: raw.from ?? false, rawTo: raw.to ?? false,
    }], { batch: false, noWait: false });
    yield* this.program.await(handle, submission);
    return submission.results()[0]!;
  }

  copy(device: string, from: number, to: number, sizeBytes: number, raw: { from?: boolean; to?: boolean } = {}): OperationResult {
    return this.run(this.copying(device, from, to, sizeBytes, raw));
  }

  /** Copies random-looking bytes from one buffer to another by the device; whether they arrived. */
  copies(device: string, sizeBytes = 20_000): boolean {
    const from = this.malloc(sizeBytes), to = this.malloc(sizeBytes);
    const data = pattern(sizeBytes, sizeBytes + from);
    this.write(from, data);
    const { status } = this.copy(device, from, to, sizeBytes);
    return status === 'success' && same(this.read(to, sizeBytes), data);
  }
}

export function pattern(length: number, seed: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => (i * 31 + seed * 7 + (i >> 8)) & 0xff);
}

export function same(one: Uint8Array, other: Uint8Array): boolean {
  return Buffer.compare(one, other) === 0;
}
