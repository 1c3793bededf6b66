/**
 * One mediated serial card as VFIO sees it: configuration region, a region for each port, INTx or MSI, reset, migration
 * with pre-copy, and logging of what its receive DMA writes. No region can be mapped: every access is a call of host
 * software (samples/vfio-mdev/mtty.c, v6.12). Isolation is this driver's own: it reaches its user's memory only through
 * pages that it has pinned in the user's container (Y1 without iommu_device, C10).
 */
import { Errno } from '../../../sim/errno.js';
import type { Mmio } from '../../../sim/mmio.js';
import type { Steps } from '../../../sim/task.js';
import type { Trace } from '../../../sim/trace.js';
import type { Device } from '../../../host/device.js';
import {
  DEVICE_FLAGS_PCI, DEVICE_FLAGS_RESET, PCI_CONFIG_REGION, PCI_NUM_IRQS, PCI_NUM_REGIONS, REGION_INFO_READ, REGION_INFO_WRITE, REGION_STRIDE,
  type DmaUnmapNotifier, type VfioDeviceInfo, type VfioDeviceOps, type VfioFeatureRequest, type VfioIrqInfo, type VfioIrqSet, type VfioRegionInfo,
} from '../../../vfio/device.js';
import { DmaLogging } from '../../../vfio/migration/dma-logging.js';
import { VfioMigration, type MigrationVendor } from '../../../vfio/migration/migration.js';
import type { MigrationState } from '../../../vfio/migration/states.js';
import {
  VFIO_DEVICE_STATE_PRE_COPY, VFIO_DEVICE_STATE_PRE_COPY_P2P, VFIO_DEVICE_STATE_RUNNING, VFIO_DEVICE_STATE_STOP_COPY, VFIO_MIGRATION_P2P,
  VFIO_MIGRATION_PRE_COPY, VFIO_MIGRATION_STOP_COPY,
} from '../../../vfio/uapi/migration.js';
import { MTTY_CONFIG_SIZE, PORT_BAR_SIZE } from '../spec/registers.js';
import { MttyConfigSpace } from './config-space.js';
import { MttyInterrupts } from './interrupts.js';
import { MttyPort } from './port.js';
import { checkHeader, decodePort, encodeHeader, encodePort, MTTY_STATE_HEADER, portOffset, stateSize } from './state.js';
import type { MttyServices } from './services.js';

export class MttyDevice implements VfioDeviceOps, DmaUnmapNotifier, MigrationVendor {
  readonly name: string;
  readonly ports: readonly MttyPort[];
  readonly flags = VFIO_MIGRATION_STOP_COPY | VFIO_MIGRATION_P2P | VFIO_MIGRATION_PRE_COPY;
  readonly maxStateBytes: number;
  readonly migration: VfioMigration;
  readonly logging: DmaLogging;
  readonly interrupts: MttyInterrupts;
  private readonly device: Device;
  private readonly services: MttyServices;
  private readonly config: MttyConfigSpace;
  /** A pre-copy is open: its stream has begun with the header. */
  private headerSent = false;

  /** @param device the mediated device: who pins */
  constructor(device: Device, ports: 1 | 2, services: MttyServices, trace?: Trace) {
    this.device = device;
    this.name = device.name;
    this.services = services;
    this.maxStateBytes = stateSize(ports);
    this.interrupts = new MttyInterrupts(ports, {
      name: device.name, hotUnplug: services.config.hotUnplug, intxDisabled: () => this.config.intxDisabled,
      signalled: (index) => services.trace?.interrupt(device.name, index),
    });
    this.config = new MttyConfigSpace(ports, () => this.interrupts.updateIntx());
    this.config.interruptStatus = () => this.interrupts.level;
    const traced = trace === undefined ? {} : { trace };
    this.logging = new DmaLogging({ device: device.name, ...traced });
    this.migration = new VfioMigration({ device: device.name, vendor: this, scheduler: services.scheduler, defects: services.defects, ...traced });
    this.ports = Array.from({ length: ports }, (_, port) => new MttyPort(port, services, {
      device, busMaster: () => this.config.busMaster, wrote: (iova, sizeBytes) => this.logging.mark(iova, sizeBytes),
      interrupt: (causes) => this.interrupts.update(port, causes),
    }));
  }

  /** Pages that transfers of this device have pinned. */
  get pinnedPages(): number {
    return this.ports.reduce((sum, { dma }) => sum + dma.pinnedPages, 0);
  }

  // oxlint-disable-next-line require-yield -- VfioDeviceOps.open may sleep
  *open(): Steps {
    this.services.vfio.registerNotifier(this.device, this);
  }

  /** The next user finds the card as after power-on (C18). */
  *close(): Steps {
    this.interrupts.tearDown();
    this.config.reset();
    yield* this.quiesce();
    this.logging.stop();
    this.services.vfio.unregisterNotifier(this.device, this);
  }

  info(): VfioDeviceInfo {
    return { flags: DEVICE_FLAGS_PCI | DEVICE_FLAGS_RESET, regions: PCI_NUM_REGIONS, irqs: PCI_NUM_IRQS };
  }

  regionInfo(index: number): VfioRegionInfo {
    return { flags: REGION_INFO_READ | REGION_INFO_WRITE, sizeBytes: this.regionSize(index) };
  }

  irqInfo(index: number): VfioIrqInfo {
    return this.interrupts.info(index);
  }

  read(offset: number, target: Uint8Array): number {
    const { region, at, count } = this.locate(offset, target.length);
    if (region === PCI_CONFIG_REGION) for (let i = 0; i < count; i++) target[i] = this.config.read(at + i);
    else this.ports[region]!.readBytes(at, target, count);
    return count;
  }

  write(offset: number, source: Uint8Array): number {
    const { region, at, count } = this.locate(offset, source.length);
    if (region === PCI_CONFIG_REGION) this.config.write(at, source.subarray(0, count));
    else this.ports[region]!.writeBytes(at, source, count);
    return count;
  }

  mmap(offset: number, sizeBytes: number): Mmio {
    throw new Errno('EINVAL', `${this.name}: ${sizeBytes} bytes of region ${Math.floor(offset / REGION_STRIDE)} cannot be mapped, every access is trapped`);
  }

  // oxlint-disable-next-line require-yield -- VfioDeviceOps.setIrqs may sleep
  *setIrqs(request: VfioIrqSet): Steps {
    this.interrupts.set(request);
  }

  /** Ports as after power-on, migration over; configuration space stays, as the kernel restores it behind a reset. */
  *reset(): Steps {
    yield* this.quiesce();
    this.logging.stop();
  }

  request(): void {
    this.interrupts.request();
  }

  *feature(request: VfioFeatureRequest): Steps<number> {
    const answer = (yield* this.migration.feature(request)) ?? (yield* this.logging.feature(request));
    if (answer === undefined) throw new Errno('ENOTTY', `${this.name} has no feature ${request.feature}`);
    return answer;
  }

  /** C9: what lies in the range is unpinned when this returns. */
  // oxlint-disable-next-line require-yield -- DmaUnmapNotifier may sleep
  *dmaUnmap(iova: number, sizeBytes: number): Steps {
    let transfers = 0;
    for (const { dma } of this.ports) transfers += dma.unmapped(iova, sizeBytes);
    this.services.trace?.dmaUnmap(this.name, iova, sizeBytes, transfers);
  }

  // --- migration

  /** In RUNNING_P2P and PRE_COPY_P2P a device answers and starts no DMA, in STOP it does nothing. */
  *arc(_from: MigrationState, to: MigrationState): Steps {
    if (to !== VFIO_DEVICE_STATE_PRE_COPY && to !== VFIO_DEVICE_STATE_PRE_COPY_P2P && to !== VFIO_DEVICE_STATE_STOP_COPY) this.headerSent = false;
    this.setRunning(to === VFIO_DEVICE_STATE_RUNNING || to === VFIO_DEVICE_STATE_PRE_COPY);
    for (const { dma } of this.ports) yield* dma.drained();
  }

  /** The header first, when there is a pre-copy; the rest once the card stands. */
  // oxlint-disable-next-line require-yield -- MigrationVendor may sleep
  *save(part: 'initial' | 'more' | 'final'): Steps<Uint8Array> {
    if (part === 'more') return new Uint8Array(0);
    if (part === 'initial') {
      this.headerSent = true;
      return encodeHeader(this.ports.length);
    }
    const bytes = new Uint8Array(this.maxStateBytes);
    bytes.set(encodeHeader(this.ports.length));
    bytes.set(this.config.save(), MTTY_STATE_HEADER.sizeBytes);
    for (const [i, port] of this.ports.entries()) bytes.set(encodePort(port.save()), portOffset(i));
    return bytes.subarray(this.headerSent ? MTTY_STATE_HEADER.sizeBytes : 0);
  }

  // oxlint-disable-next-line require-yield -- MigrationVendor may sleep
  *load(state: Uint8Array): Steps {
    checkHeader(this.name, state, this.ports.length);
    const ports = this.ports.map((_, i) => decodePort(this.name, state, portOffset(i)));
    const header = MTTY_STATE_HEADER.sizeBytes;
    this.config.load(state.subarray(header, header + MTTY_CONFIG_SIZE));
    for (const [i, port] of this.ports.entries()) port.load(ports[i]!);
  }

  dataSizeBytes(): number {
    return this.maxStateBytes;
  }

  private setRunning(running: boolean): void {
    for (const port of this.ports) port.setRunning(running);
  }

  /** Everything stops, nothing stays pinned, registers as after power-on, running. */
  private *quiesce(): Steps {
    for (const port of this.ports) port.reset();
    for (const { dma } of this.ports) yield* dma.drained();
    yield* this.migration.reset();
    this.setRunning(true);
  }

  /** EINVAL no such index; 0 a region that the card lacks. */
  private regionSize(index: number): number {
    if (!(index >= 0 && index < PCI_NUM_REGIONS)) throw new Errno('EINVAL', `${this.name} has no region ${index}`);
    if (index === PCI_CONFIG_REGION) return MTTY_CONFIG_SIZE;
    return index < this.ports.length ? PORT_BAR_SIZE : 0;
  }

  /** Where an access goes, cut at the region's end. EINVAL outside of every region. */
  private locate(offset: number, length: number): { region: number; at: number; count: number } {
    const region = Math.floor(offset / REGION_STRIDE), at = offset % REGION_STRIDE;
    const sizeBytes = this.regionSize(region);
    if (at >= sizeBytes) throw new Errno('EINVAL', `${this.name}: region ${region} has ${sizeBytes} bytes`);
    return { region, at, count: Math.min(length, sizeBytes - at) };
  }
}
