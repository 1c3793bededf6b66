/**
 * The SVA world with the way to mediated devices: VFIO's core and type1, the mdev core, the accelerator as a parent. A
 * `VdsaUser` is a VMM's side of one mediated device: container, group, device file, registers, eventfds.
 */
import { EventFd } from '../../host/eventfd.js';
import type { Process } from '../../host/process.js';
import { MdevCore } from '../../mdev/core.js';
import type { Mmio } from '../../sim/mmio.js';
import type { Steps } from '../../sim/task.js';
import { VfioClient, type ContainerHandle, type DeviceHandle, type GroupHandle } from '../../vfio/client/index.js';
import { Vfio } from '../../vfio/core/vfio.js';
import { PCI_BAR0_REGION, PCI_BAR2_REGION, PCI_CONFIG_REGION, PCI_ERR_IRQ, PCI_MSIX_IRQ, PCI_REQ_IRQ } from '../../vfio/device.js';
import { Type1Driver } from '../../vfio/type1/type1.js';
import type { IdxdWqOptions } from '../../devices/dsa/driver/idxd-options.js';
import { IdxdMdevParents } from '../../devices/dsa/parent/idxd-mdev.js';
import type { Vdsa } from '../../devices/dsa/parent/vdsa.js';
import { decodeCompletion, encodeDescriptor, type CompletionRecord, type DescriptorFields } from '../../devices/dsa/spec/encode.js';
import { SvaWorld, type SvaWorldOptions } from '../fixtures/sva-world.js';

export const uuid = (n: number): string => `c2177883-f1bb-47f0-914d-${n.toString(16).padStart(12, '0')}`;

export const MDEV_DEDICATED: IdxdWqOptions = { name: 'wq0.0', mode: 'dedicated', type: 'mdev', size: 16, blockOnFault: true };
export const MDEV_DEDICATED_2: IdxdWqOptions = { name: 'wq0.1', mode: 'dedicated', type: 'mdev', size: 16, maxTransfer: 2 ** 16 };
export const MDEV_SHARED: IdxdWqOptions = { name: 'wq0.2', mode: 'shared', type: 'mdev', size: 16, threshold: 12 };
export const HOST_USER: IdxdWqOptions = { name: 'wq0.3', mode: 'dedicated', type: 'user', size: 16, blockOnFault: true };
export const HOST_KERNEL: IdxdWqOptions = { name: 'wq0.4', mode: 'dedicated', type: 'kernel', size: 8 };
export const ALL_QUEUES = [MDEV_DEDICATED, MDEV_DEDICATED_2, MDEV_SHARED, HOST_USER, HOST_KERNEL];

/** Where each user's memory lies in its address space of I/O addresses; the same for all of them. */
export const IOVA = 0x100_0000;
const BUFFER_BYTES = 0x4_0000;
/** Completion records, at the end of the buffer. */
const RECORDS = BUFFER_BYTES - 0x1000;

export interface DsaMdevWorldOptions extends Partial<SvaWorldOptions> {
  readonly vfioDefects?: readonly string[];
}

export class DsaMdevWorld extends SvaWorld {
  readonly vfio: Vfio;
  readonly type1: Type1Driver;
  readonly mdevs: MdevCore;
  readonly parents: IdxdMdevParents;

  constructor(options: DsaMdevWorldOptions = {}) {
    super({ idxd: { wqs: ALL_QUEUES }, ...options, dsa: { siov: true, mdevVectors: 4, ...options.dsa } });
    const { scheduler, log, trace, core, frames, clock } = this;
    this.type1 = new Type1Driver({ clock, scheduler, core, frames, log, trace, options: { allowUnsafeInterrupts: true } });
    this.vfio = new Vfio({ scheduler, log, trace, owners: core, groupMembers: () => [], iommuDrivers: [this.type1] });
    this.mdevs = new MdevCore({ scheduler, log, trace, vfio: this.vfio, groups: this.pciCore.groups });
    this.parents = new IdxdMdevParents({ parents: this.mdevs, vfio: this.vfio, iommu: core, scheduler, log, trace, defects: new Set(options.defects) });
    this.idxd.offerMdevs(this.parents);
    this.run(this.loadDrivers());
  }

  get logText(): string {
    return this.log.lines.map(({ text }) => text).join('\n');
  }

  instances(type: string): number {
    const parent = this.mdevs.parents[0];
    return parent?.types.find(({ id }) => id === `idxd-${type}`)?.type.availableInstances() ?? -1;
  }

  create(n: number, type: string): void {
    this.run(this.mdevs.create(this.pci, `idxd-${type}`, uuid(n)));
  }

  /** The device behind a UUID, for what no user sees. */
  vdsa(n: number): Vdsa {
    return (this.parents.parentOf(this.idxd.device(this.pci)) as unknown as { devices: Map<string, Vdsa> }).devices.get(uuid(n))!;
  }

  /** A process that opens the mediated device and maps a buffer at IOVA. */
  open(n: number, options: { readonly map?: boolean } = {}): VdsaUser {
    const user = new VdsaUser(this, n);
    this.run(user.open(options.map ?? true));
    return user;
  }

  /** The same process opens another device in the same container. */
  openBeside(n: number, beside: VdsaUser): VdsaUser {
    const user = new VdsaUser(this, n, beside);
    this.run(user.open(false, beside));
    return user;
  }

  /** Physical registers of a queue's PASID fields: `[PasidEn, Pasid]`. */
  physicalPasid(wq: number): [number, number] {
    const word = this.dsa.function.window(0)!.read(0x508 + wq * 64, 4);
    return [(word >>> 28) & 1, (word >>> 8) & 0xf_ffff];
  }
}

export class VdsaUser {
  readonly world: DsaMdevWorld;
  readonly n: number;
  readonly process: Process;
  readonly misc: EventFd;
  readonly completion: EventFd;
  readonly error: EventFd;
  readonly asked: EventFd;
  container!: ContainerHandle;
  group!: GroupHandle;
  device!: DeviceHandle;
  portal!: Mmio;
  /** Virtual address of the buffer. */
  buffer = 0;
  dedicated = false;
  private readonly client: VfioClient;

  constructor(world: DsaMdevWorld, n: number, beside?: VdsaUser) {
    this.world = world;
    this.n = n;
    this.process = beside?.process ?? world.process(`vmm ${n}`).process;
    this.client = new VfioClient(world.vfio, this.process);
    const eventFd = (name: string): EventFd => new EventFd(world.scheduler, name);
    [this.misc, this.completion, this.error, this.asked] = [eventFd('misc'), eventFd('completion'), eventFd('error'), eventFd('request')];
  }

  /** @param beside a user of another device, whose process and container this one joins */
  *open(map: boolean, beside?: VdsaUser): Steps {
    this.container = beside?.container ?? this.client.openContainer();
    this.group = this.client.openGroup(this.world.mdevs.find(uuid(this.n))!.group!);
    yield* this.group.setContainer(this.container);
    if (beside === undefined) yield* this.container.setIommu('type1v2');
    else this.buffer = beside.buffer;
    if (map && beside === undefined) {
      this.buffer = yield* this.process.mm.mmap(BUFFER_BYTES);
      yield* this.container.mapDma({ iova: IOVA, vaddr: this.buffer, sizeBytes: BUFFER_BYTES });
    }
    this.device = yield* this.group.getDevice(uuid(this.n));
    const fds = [this.misc, this.completion].map((event) => this.process.open(event));
    yield* this.device.setIrqs({ index: PCI_MSIX_IRQ, eventfds: fds });
    yield* this.device.setIrqs({ index: PCI_ERR_IRQ, eventfds: [this.process.open(this.error)] });
    yield* this.device.setIrqs({ index: PCI_REQ_IRQ, eventfds: [this.process.open(this.asked)] });
    this.portal = this.device.mmap(PCI_BAR2_REGION, 0x1000, 0x1000);
    this.configWrite(4, 2, 6);
    this.dedicated = this.world.vdsa(this.n).lease.wq.dedicated;
  }

  get pasid(): number {
    return this.world.vfio.pasidOf(this.world.mdevs.find(uuid(this.n))!)!;
  }

  config(offset: number, size: 1 | 2 | 4): number {
    return this.device.readValue(PCI_CONFIG_REGION, offset, size);
  }

  configWrite(offset: number, size: 1 | 2 | 4, value: number): void {
    this.device.writeValue(PCI_CONFIG_REGION, offset, size, value);
  }

  read(offset: number): number {
    return this.device.readValue(PCI_BAR0_REGION, offset, 4);
  }

  write(offset: number, value: number): void {
    this.device.writeValue(PCI_BAR0_REGION, offset, 4, value);
  }

  /** Runs a command and returns CMDSTS. */
  command(command: number, operand = 0): number {
    this.write(0xa0, ((command << 20) | operand) >>> 0);
    this.world.settle();
    return this.read(0xa8);
  }

  /** Device and queue on, with an interrupt handle, which is returned. */
  start(): number {
    const statuses = [this.command(1), this.command(6, 0), this.command(13, 1)];
    if (statuses[0] !== 0 || statuses[1] !== 0 || (statuses[2]! & 0xff) !== 0) throw new Error(`start: ${statuses.map((status) => status.toString(16)).join(' ')}`);
    return statuses[2]! >>> 8;
  }

  /** SWERROR as 8 words; acknowledges it. */
  takeError(): number[] {
    const words = Array.from({ length: 8 }, (_, i) => this.read(0xc0 + 4 * i));
    this.write(0xc0, 3);
    return words;
  }

  /** Submits as the queue wants it; record `slot` of the buffer. */
  put(fields: DescriptorFields, slot = 0): 'accepted' | 'retry' {
    const bytes = encodeDescriptor({ pasid: this.pasid, ...fields, completion: IOVA + RECORDS + slot * 32 });
    if (!this.dedicated) return this.portal.enqueue64(0, bytes);
    this.portal.write64(0, bytes);
    return 'accepted';
  }

  record(slot = 0): CompletionRecord {
    return decodeCompletion(this.peek(RECORDS + slot * 32, 32));
  }

  /** Submits, lets everything happen, and reads the record. */
  submit(fields: DescriptorFields): CompletionRecord {
    this.poke(RECORDS, new Uint8Array(32));
    this.put(fields);
    this.world.settle();
    return this.record();
  }

  poke(offset: number, bytes: Uint8Array): void {
    this.world.run(this.process.mm.write(this.buffer + offset, bytes));
  }

  peek(offset: number, length: number): Uint8Array {
    const bytes = new Uint8Array(length);
    this.world.run(this.process.mm.read(this.buffer + offset, bytes));
    return bytes;
  }

  close(): void {
    this.world.run(this.process.exit());
  }
}
