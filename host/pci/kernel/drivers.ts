/**
 * Drivers of PCI functions: matching by id, binding and unbinding by name, `driver_override` (drivers/pci/pci-driver.c,
 * drivers/base/bus.c and dd.c). Around probe and remove the owner of the device's DMA is told, so that a group in
 * the hands of a user refuses a kernel driver and the reverse. Left out: deferred probing, asynchronous probing,
 * power management.
 */
import { Errno, isErrno } from '../../../sim/errno.js';
import { WaitQueue } from '../../../sim/task.js';
import type { Scheduler, Steps } from '../../../sim/task.js';
import type { KernelLog } from '../../kernel-log.js';
import type { PciFunctionDevice } from './function-device.js';
import type { PciCore, PciListener } from './pci-core.js';
import type { PciDevice } from './pci-device.js';

/** Matches every vendor, or every device of a vendor. */
export const PCI_ANY_ID = 0xffff_ffff;

export interface PciDeviceId {
  readonly vendor: number;
  readonly device: number;
}

export interface PciDriver {
  readonly name: string;
  readonly ids: readonly PciDeviceId[];
  /** The driver hands the DMA to somebody else and claims it itself (vfio-pci). */
  readonly driverManagedDma?: boolean;
  /** Takes the device over. An Errno refuses it; ENODEV and ENXIO quietly. */
  probe(device: PciDevice): Steps;
  /** Lets the device go, also when it is not there any more (`device.present` false). */
  remove(device: PciDevice): Steps;
  /**
   * The function, or another one below the same port, reported an uncorrectable error (`pci_error_handlers`); when it
   * was fatal, the link is reset next. Without this method the error cannot be recovered from.
   */
  errorDetected?(device: PciDevice, severity: 'nonfatal' | 'fatal'): Steps<PciErrorVote>;
  /** Somebody voted for a reset, and it is done: brings the device up again. */
  slotReset?(device: PciDevice): Steps<PciErrorVote>;
  /** Everybody is fine again. */
  errorResume?(device: PciDevice): Steps;
  /** Somebody resets the function: stops using it before (`pci_error_handlers.reset_prepare`). */
  resetPrepare?(device: PciDevice): Steps;
  /** The reset is done, and the kernel has restored what it restores (`reset_done`). */
  resetDone?(device: PciDevice): Steps;
}

/** `recovered` and `disconnect` are answers to a reset; a driver that gives up says `disconnect`. */
export type PciErrorVote = 'can-recover' | 'need-reset' | 'disconnect' | 'recovered' | 'none';

/** Told around the time in which a driver uses a device's DMA. */
export interface DmaOwnership {
  /** Throws EBUSY when the device's group belongs to a user. */
  claimDma(device: PciDevice): void;
  releaseDma(device: PciDevice): void;
}

export interface PciDriversOptions {
  readonly bus: PciCore;
  readonly scheduler: Scheduler;
  readonly log: KernelLog;
  readonly dmaOwnership?: DmaOwnership;
}

/** Subscribes itself to the bus; what an IOMMU sets up for a new device must have subscribed before. */
export class PciDrivers implements PciListener {
  private readonly bus: PciCore;
  private readonly scheduler: Scheduler;
  private readonly log: KernelLog;
  private readonly dmaOwnership: DmaOwnership | undefined;
  /** Replaced, never changed: who walks it may register. */
  private drivers: readonly PciDriver[] = [];
  private readonly dynamicIds = new Map<PciDriver, PciDeviceId[]>();
  private readonly bound = new Map<PciDevice, PciDriver>();
  private readonly overrides = new Map<PciDevice, string>();
  /** Devices that some task is binding or unbinding, with those who wait (`device_lock`). */
  private readonly locks = new Map<PciDevice, WaitQueue>();

  constructor(options: PciDriversOptions) {
    this.bus = options.bus;
    this.scheduler = options.scheduler;
    this.log = options.log;
    this.dmaOwnership = options.dmaOwnership;
    this.bus.subscribe(this);
  }

  /** Registers and probes every device that matches and has no driver. EBUSY when the name is taken. */
  *registerDriver(driver: PciDriver): Steps {
    if (this.named(driver.name) !== undefined) throw new Errno('EBUSY', `driver ${driver.name} is already registered`);
    this.drivers = [...this.drivers, driver];
    this.dynamicIds.set(driver, []);
    for (const device of this.bus.devices) yield* this.attachQuietly(device, [driver]);
  }

  /** Removes the driver from its devices and forgets it. ENODEV when it is not registered. */
  *unregisterDriver(name: string): Steps {
    const driver = this.registered(name);
    this.drivers = this.drivers.filter((other) => other !== driver);
    for (const device of this.bus.devices) if (this.bound.get(device) === driver) yield* this.detach(device);
    this.dynamicIds.delete(driver);
  }

  /** The driver that has the device. */
  driverOf(device: PciDevice): PciDriver | undefined {
    return this.bound.get(device);
  }

  /** Lets the driver that has the device do something while nobody binds or unbinds; nothing without one (`device_lock`). */
  *withDriver(device: PciDevice, steps: (driver: PciDriver) => Steps): Steps {
    const own = this.bus.own(device);
    yield* this.locked(own, () => {
      const driver = this.bound.get(own);
      return driver === undefined ? none() : steps(driver);
    });
  }

  /** `new_id`: one more id for a driver, which then probes what matches. ENODEV no driver, EEXIST known id. */
  *addId(name: string, id: PciDeviceId): Steps {
    const driver = this.registered(name);
    const known = [...driver.ids, ...this.dynamicIds.get(driver)!].some((entry) => entry.vendor === id.vendor && entry.device === id.device);
    if (known) throw new Errno('EEXIST', `driver ${name} has id ${id.vendor.toString(16)}:${id.device.toString(16)} already`);
    this.dynamicIds.get(driver)!.push(id);
    for (const device of this.bus.devices) yield* this.attachQuietly(device, [driver]);
  }

  /** `driver_override`: only the driver of that name may take the device, whatever its ids; undefined lifts it. */
  setDriverOverride(device: PciDevice, name: string | undefined): void {
    this.bus.own(device);
    if (name === undefined) this.overrides.delete(device);
    else this.overrides.set(device, name);
  }

  driverOverrideOf(device: PciDevice): string | undefined {
    return this.overrides.get(device);
  }

  /** ENODEV when there is no such driver or it does not match, EBUSY when the device has a driver; or probe's errno. */
  *bind(name: string, device: PciDevice): Steps {
    const own = this.bus.own(device);
    const driver = this.registered(name);
    if (!this.matches(driver, own)) throw new Errno('ENODEV', `driver ${name} does not match ${own.name}`);
    yield* this.locked(own, () => this.attach(own, driver));
  }

  /** ENODEV when another driver has the device, or none. */
  *unbind(name: string, device: PciDevice): Steps {
    const own = this.bus.own(device);
    if (this.bound.get(own)?.name !== name) {
      throw new Errno('ENODEV', `${own.name} is bound to ${this.bound.get(own)?.name ?? 'no driver'}, not to ${name}`);
    }
    yield* this.detach(own);
  }

  /** Offers a device without driver to all drivers (`drivers_probe`). */
  *probeDevice(device: PciDevice): Steps {
    yield* this.attachQuietly(this.bus.own(device), this.drivers);
  }

  *deviceAdded(device: PciFunctionDevice): Steps {
    yield* this.attachQuietly(device, this.drivers);
  }

  *deviceRemoved(device: PciFunctionDevice): Steps {
    yield* this.detach(device);
    this.overrides.delete(device);
  }

  *resetPrepare(device: PciFunctionDevice): Steps {
    yield* this.bound.get(device)?.resetPrepare?.(device) ?? none();
  }

  *resetDone(device: PciFunctionDevice): Steps {
    yield* this.bound.get(device)?.resetDone?.(device) ?? none();
  }

  private named(name: string): PciDriver | undefined {
    return this.drivers.find((driver) => driver.name === name);
  }

  private registered(name: string): PciDriver {
    const driver = this.named(name);
    if (driver === undefined) throw new Errno('ENODEV', `no driver is named ${name}`);
    return driver;
  }

  private matches(driver: PciDriver, device: PciFunctionDevice): boolean {
    const override = this.overrides.get(device);
    if (override !== undefined) return override === driver.name;
    const ids = [...driver.ids, ...(this.dynamicIds.get(driver) ?? [])];
    return ids.some(
      (id) => (id.vendor === PCI_ANY_ID || id.vendor === device.vendorId) && (id.device === PCI_ANY_ID || id.device === device.deviceId),
    );
  }

  /** The first of `drivers` that matches and does not refuse; a refusal is a line in the log. */
  private *attachQuietly(device: PciFunctionDevice, drivers: readonly PciDriver[]): Steps {
    for (const driver of drivers) {
      if (this.bound.has(device) || !this.matches(driver, device)) continue;
      try {
        yield* this.locked(device, () => this.attach(device, driver));
      } catch (error) {
        if (!isErrno(error)) throw error;
        if (error.code !== 'ENODEV' && error.code !== 'ENXIO' && !this.bound.has(device)) {
          this.log.log('warn', `${driver.name}: probe of ${device.name} failed with error ${error.errno}: ${error.message}`);
        }
      }
    }
  }

  private *attach(device: PciFunctionDevice, driver: PciDriver): Steps {
    const owner = this.bound.get(device);
    if (owner !== undefined) throw new Errno('EBUSY', `${device.name} is bound to ${owner.name} already`);
    if (driver.driverManagedDma !== true) this.dmaOwnership?.claimDma(device);
    try {
      yield* driver.probe(device);
    } catch (error) {
      device.freeIrqs();
      device.freeIntx();
      if (driver.driverManagedDma !== true) this.dmaOwnership?.releaseDma(device);
      throw error;
    }
    this.bound.set(device, driver);
  }

  private *detach(device: PciFunctionDevice): Steps {
    yield* this.locked(device, () => this.release(device));
  }

  private *release(device: PciFunctionDevice): Steps {
    const driver = this.bound.get(device);
    if (driver === undefined) return;
    yield* driver.remove(device);
    device.freeIrqs();
    device.freeIntx();
    if (device.sriov !== undefined && device.sriov.enabledVfs > 0) {
      this.log.log('warn', `pci ${device.name}: driver left SR-IOV enabled after remove`);
    }
    this.bound.delete(device);
    if (driver.driverManagedDma !== true) this.dmaOwnership?.releaseDma(device);
  }

  /** One task at a time for each device. */
  private *locked(device: PciFunctionDevice, steps: () => Steps): Steps {
    for (let queue = this.locks.get(device); queue !== undefined; queue = this.locks.get(device)) yield* queue.wait();
    const queue = new WaitQueue(this.scheduler, `binding of ${device.name}`);
    this.locks.set(device, queue);
    try {
      yield* steps();
    } finally {
      this.locks.delete(device);
      queue.wakeAll();
    }
  }
}

function* none(): Steps {}
