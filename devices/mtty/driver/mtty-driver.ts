/**
 * Driver of the virtual serial card, in a guest's kernel or any other that sees the card on its PCI bus. MSI where
 * there is any, else INTx (drivers/tty/serial/8250/8250_pci.c knows cards like this one by their class). Interrupts are
 * served until no port has one left, as with MSI only a new cause would come again (`serial8250_interrupt`).
 */
import type { Clock } from '../../../sim/clock.js';
import { Errno } from '../../../sim/errno.js';
import type { Scheduler, Steps } from '../../../sim/task.js';
import type { Device } from '../../../host/device.js';
import type { KernelLog } from '../../../host/kernel-log.js';
import type { PciDriver } from '../../../host/pci/kernel/drivers.js';
import type { PciDevice } from '../../../host/pci/kernel/pci-device.js';
import type { Process } from '../../../host/process.js';
import type { Timing } from '../../../host/timing.js';
import type { DmaDirection, DmaSegment, ScatterEntry } from '../../../iommu/core/dma-api.js';
import { MTTY_DEVICE_ID, MTTY_VENDOR_ID } from '../spec/registers.js';
import { MttyFile } from './mtty-file.js';
import { MttyPort } from './mtty-port.js';

/** What the driver uses of the DMA API. */
export interface MttyDmaApi {
  dmaSetMask(device: Device, bits: number): void;
  dmaMapSg(device: Device, list: readonly ScatterEntry[], direction: DmaDirection): Steps<DmaSegment[]>;
  dmaUnmapSg(device: Device, segments: readonly DmaSegment[]): Steps;
}

export interface MttyDriverServices {
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly timing: Timing;
  readonly log: KernelLog;
  readonly dma: MttyDmaApi;
  /** False: INTx also where there is MSI (`pci=nomsi`). */
  readonly msi?: boolean;
}

const PORTS = 2;
/** Looks at all ports in one interrupt before it gives up for now (PASS_LIMIT of the 8250 driver). */
const PASS_LIMIT = 512;

interface MttyInstance {
  readonly ports: readonly MttyPort[];
  readonly files: Set<MttyFile>;
  readonly msi: boolean;
}

export class MttyDriver implements PciDriver {
  readonly name = 'mtty';
  readonly ids = [{ vendor: MTTY_VENDOR_ID, device: MTTY_DEVICE_ID }];
  private readonly services: MttyDriverServices;
  private readonly instances = new Map<PciDevice, MttyInstance>();

  constructor(services: MttyDriverServices) {
    this.services = services;
  }

  /** Ports of a device that this driver has; undefined for another. */
  ports(device: PciDevice): readonly MttyPort[] | undefined {
    return this.instances.get(device)?.ports;
  }

  /** ENODEV when a port is not what it should be; otherwise what PCI and the DMA API refuse. */
  // oxlint-disable-next-line require-yield -- PciDriver's signature; nothing in this probe sleeps
  *probe(device: PciDevice): Steps {
    const { dma, msi = true } = this.services;
    dma.dmaSetMask(device, 64);
    const ports: MttyPort[] = [];
    for (let bar = 0; bar < PORTS; bar++) {
      if (device.resource(bar) !== undefined) ports.push(new MttyPort(device, bar, device.ioremap(bar), this.services));
    }
    if (ports.length === 0) throw new Errno('ENODEV', `${device.name} has no port with an address`);
    for (const port of ports) port.check();
    const instance = { ports, files: new Set<MttyFile>(), msi: msi && device.msiVectors > 0 };
    if (instance.msi) device.allocMsi('mtty', [() => void this.interrupt(device, instance)]);
    else device.requestIntx('mtty', () => this.interrupt(device, instance));
    device.setMaster(true);
    this.instances.set(device, instance);
  }

  /** Who waits for the device is told; what is under way ends before this returns. */
  *remove(device: PciDevice): Steps {
    const instance = this.instances.get(device);
    if (instance === undefined) return;
    this.instances.delete(device);
    for (const port of instance.ports) {
      if (device.present) port.shutDown();
      port.gone = true;
      port.wake();
    }
    for (const file of instance.files) yield* file.idle();
    if (instance.msi) device.freeIrqs();
    else device.freeIntx();
    device.setMaster(false);
  }

  /**
   * open(2) of a port's character device, by number; text as in a topology is read as one, undefined is the first.
   * @throws Errno ENODEV the driver does not have the device; ENXIO no such port; ESRCH the process is ending
   */
  // oxlint-disable-next-line require-yield -- an open may sleep
  *open(device: PciDevice, process: Process, port: number | string = 0): Steps<MttyFile> {
    const instance = this.instances.get(device);
    if (instance === undefined || !device.present) throw new Errno('ENODEV', `${device.name} is ${instance === undefined ? 'not driven by mtty' : 'gone'}`);
    const found = instance.ports.find(({ index }) => String(index) === String(port));
    if (found === undefined) throw new Errno('ENXIO', `${device.name} has no port ${port}; it has ${instance.ports.map(({ index }) => index).join(', ')}`);
    const file = new MttyFile(device, found, process, this.services);
    file.fd = process.open(file);
    instance.files.add(file);
    file.onReleased = () => instance.files.delete(file);
    if (found.users++ === 0) found.startUp();
    return file;
  }

  private interrupt(device: PciDevice, { ports }: MttyInstance): boolean {
    let handled = false;
    for (let pass = 0; pass < PASS_LIMIT; pass++) {
      let any = false;
      for (const port of ports) any = port.interrupt() || any;
      if (!any) return handled;
      handled = true;
    }
    this.services.log.limited(`mtty ${device.name}`, 'warn', `mtty ${device.name}: too much work in an interrupt`);
    return handled;
  }
}
