/**
 * Driver of the educational device: what a student writes. Liveness check at probe, a factorial with interrupt, and a
 * buffer sent through the device and back, with memory mapped by the DMA API.
 */
import type { Clock } from '../../../sim/clock.js';
import { Errno, isErrno } from '../../../sim/errno.js';
import type { Mmio } from '../../../sim/mmio.js';
import { Completion, Mutex, type Scheduler, type Steps } from '../../../sim/task.js';
import type { Device } from '../../../host/device.js';
import type { KernelLog } from '../../../host/kernel-log.js';
import type { PciDevice } from '../../../host/pci/kernel/pci-device.js';
import type { PciDriver } from '../../../host/pci/kernel/drivers.js';
import {
  BUFFER_ADDRESS, BUFFER_SIZE, DMA_IRQ, DMA_RUN, DMA_TO_MEMORY, EDU_BAR, EDU_DEVICE_ID, EDU_ID, EDU_REG, EDU_VENDOR_ID, IRQ_DMA, IRQ_FACTORIAL,
  STATUS_COMPUTING, STATUS_IRQ_FACTORIAL,
} from '../spec/registers.js';

const LIVENESS_PROBE = 0xabba_beef;
/** How long the driver waits for an interrupt. */
const TIMEOUT_NS = 1_000_000_000;

/** What the driver uses of the DMA API. */
export interface EduDma {
  dmaSetMask(device: Device, bits: number): void;
  dmaMap(device: Device, physical: number, sizeBytes: number, direction: 'to-device' | 'from-device' | 'bidirectional'): Steps<number>;
  dmaUnmap(device: Device, address: number, sizeBytes: number): Steps;
}

export interface EduServices {
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly log: KernelLog;
  readonly dma: EduDma;
  /** Address bits of the device's dma_mask; 28 by default. */
  readonly dmaBits?: number;
  /** Does without MSI, as a kernel booted with `pci=nomsi`. */
  readonly intxOnly?: boolean;
}

export class EduInstance {
  readonly device: PciDevice;
  private readonly mmio: Mmio;
  private readonly services: EduServices;
  private readonly lock: Mutex;
  private factorialDone: Completion | undefined;
  private dmaDone: Completion | undefined;

  constructor(device: PciDevice, mmio: Mmio, services: EduServices) {
    this.device = device;
    this.mmio = mmio;
    this.services = services;
    this.lock = new Mutex(services.scheduler, `edu ${device.name}`);
  }

  /** ENODEV when the identification or the liveness check is wrong. */
  check(): void {
    const id = this.mmio.read(EDU_REG.ID, 4);
    if (id !== EDU_ID) throw new Errno('ENODEV', `${this.device.name}: identification is 0x${id.toString(16)}, not 0x${EDU_ID.toString(16)}`);
    this.mmio.write(EDU_REG.LIVENESS, 4, LIVENESS_PROBE);
    const answer = this.mmio.read(EDU_REG.LIVENESS, 4);
    if (answer !== ~LIVENESS_PROBE >>> 0) throw new Errno('ENODEV', `${this.device.name}: liveness check read 0x${answer.toString(16)}`);
  }

  /** `n`! modulo 2^32. ETIMEDOUT when the device does not interrupt. */
  *factorial(n: number): Steps<number> {
    yield* this.lock.lock();
    try {
      const done = (this.factorialDone = new Completion(this.services.scheduler, `factorial of ${this.device.name}`));
      this.mmio.write(EDU_REG.STATUS, 4, STATUS_IRQ_FACTORIAL);
      this.mmio.write(EDU_REG.FACTORIAL, 4, n);
      if (!(yield* done.waitFor(TIMEOUT_NS)) || (this.mmio.read(EDU_REG.STATUS, 4) & STATUS_COMPUTING) !== 0) {
        throw new Errno('ETIMEDOUT', `${this.device.name}: no interrupt for the factorial`);
      }
      return this.mmio.read(EDU_REG.FACTORIAL, 4);
    } finally {
      this.factorialDone = undefined;
      this.lock.unlock();
    }
  }

  /**
   * Sends `sizeBytes` at physical address `source` into the device's buffer and back to `target`.
   * @throws Errno EINVAL larger than the buffer; ETIMEDOUT no interrupt; what the DMA API says
   */
  *roundTrip(target: number, source: number, sizeBytes: number): Steps {
    yield* this.copyIn(source, sizeBytes);
    yield* this.copyOut(target, sizeBytes);
  }

  /** Memory to buffer. */
  *copyIn(source: number, sizeBytes: number): Steps {
    yield* this.transfer(source, sizeBytes, false);
  }

  /** Buffer to memory. */
  *copyOut(target: number, sizeBytes: number): Steps {
    yield* this.transfer(target, sizeBytes, true);
  }

  private *transfer(physical: number, sizeBytes: number, toMemory: boolean): Steps {
    const { dma } = this.services;
    if (!(sizeBytes > 0 && sizeBytes <= BUFFER_SIZE)) throw new Errno('EINVAL', `${this.device.name}: ${sizeBytes} bytes do not fit into the buffer of ${BUFFER_SIZE}`);
    yield* this.lock.lock();
    try {
      const address = yield* dma.dmaMap(this.device, physical, sizeBytes, toMemory ? 'from-device' : 'to-device');
      try {
        const done = (this.dmaDone = new Completion(this.services.scheduler, `DMA of ${this.device.name}`));
        this.write64(EDU_REG.DMA_SRC, toMemory ? BUFFER_ADDRESS : address);
        this.write64(EDU_REG.DMA_DST, toMemory ? address : BUFFER_ADDRESS);
        this.write64(EDU_REG.DMA_COUNT, sizeBytes);
        this.write64(EDU_REG.DMA_CMD, DMA_RUN | DMA_IRQ | (toMemory ? DMA_TO_MEMORY : 0));
        if (!(yield* done.waitFor(TIMEOUT_NS))) throw new Errno('ETIMEDOUT', `${this.device.name}: no interrupt for the DMA`);
      } finally {
        this.dmaDone = undefined;
        yield* dma.dmaUnmap(this.device, address, sizeBytes);
      }
    } finally {
      this.lock.unlock();
    }
  }

  /** True: it was this device. */
  interrupt(): boolean {
    const status = this.mmio.read(EDU_REG.IRQ_STATUS, 4);
    if (status === 0 || status === 0xffff_ffff) return false;
    this.mmio.write(EDU_REG.IRQ_ACK, 4, status);
    if ((status & IRQ_FACTORIAL) !== 0) this.factorialDone?.complete();
    if ((status & IRQ_DMA) !== 0) this.dmaDone?.complete();
    return true;
  }

  private write64(offset: number, value: number): void {
    this.mmio.write(offset, 8, value % 0x1_0000_0000, Math.floor(value / 0x1_0000_0000));
  }
}

export class EduDriver implements PciDriver {
  readonly name = 'edu';
  readonly ids = [{ vendor: EDU_VENDOR_ID, device: EDU_DEVICE_ID }];
  private readonly services: EduServices;
  private readonly instances = new Map<PciDevice, EduInstance>();

  constructor(services: EduServices) {
    this.services = services;
  }

  /** The instance that drives `device`; undefined when this driver has not bound it. */
  instance(device: PciDevice): EduInstance | undefined {
    return this.instances.get(device);
  }

  /** ENODEV when the device is not what it says; otherwise what PCI and DMA API refuse. */
  // oxlint-disable-next-line require-yield -- PciDriver's signature; nothing in this probe sleeps
  *probe(device: PciDevice): Steps {
    this.services.dma.dmaSetMask(device, this.services.dmaBits ?? 28);
    const instance = new EduInstance(device, device.ioremap(EDU_BAR), this.services);
    device.setMaster(true);
    instance.check();
    this.requestInterrupt(device, instance);
    this.instances.set(device, instance);
  }

  // oxlint-disable-next-line require-yield -- as probe
  *remove(device: PciDevice): Steps {
    this.instances.delete(device);
    device.freeIrqs();
    device.freeIntx();
    device.setMaster(false);
  }

  /** MSI, or the shared legacy line where there is none or no vector is left. */
  private requestInterrupt(device: PciDevice, instance: EduInstance): void {
    try {
      if (device.msiVectors > 0 && this.services.intxOnly !== true) {
        device.allocMsi('edu', [() => void instance.interrupt()]);
        return;
      }
    } catch (error) {
      if (!isErrno(error, 'ENOSPC')) throw error;
    }
    device.requestIntx('edu', () => instance.interrupt());
    device.intx(true);
  }
}
