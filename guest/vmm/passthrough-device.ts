/**
 * A device that the VMM has from VFIO, whole or mediated, and the virtual function that it shows to the guest for it
 * (QEMU: hw/vfio/pci.c, `vfio_realize`, `vfio_pci_reset`). The function is made anew whenever the guest starts: a guest
 * that begins again finds a device without history.
 *
 * Left out: expansion ROM, VGA, quirks, migration.
 */
import { hex } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import { EventFd } from '../../host/eventfd.js';
import type { DmaClient } from '../../host/pci/dma-port.js';
import type { BarOptions } from '../../host/pci/hardware/bar.js';
import { PciFunction, type FunctionChange } from '../../host/pci/hardware/pci-function.js';
import { PCI_COMMAND } from '../../host/pci/spec/index.js';
import type { DeviceHandle, RegionInfo } from '../../vfio/client/index.js';
import {
  DEVICE_FLAGS_PCI, DEVICE_FLAGS_RESET, PCI_ERR_IRQ, PCI_INTX_IRQ, PCI_NUM_REGIONS, PCI_REQ_IRQ, REGION_INFO_MMAP, REGION_INFO_READ, REGION_INFO_WRITE,
} from '../../vfio/device.js';
import { barShapes, DeviceConfig, forwardConfig, functionOptions, type BarShape } from './passthrough-config.js';
import { PassthroughInterrupts, type PassthroughInterruptsOptions } from './passthrough-interrupts.js';
import { RegionWindow, type MappedPart } from './region-window.js';
import { named, namedNow, tolerant } from './undo.js';

/** A device of a guest, as its configuration names it. */
export interface VfioDeviceOptions {
  /** /dev/vfio/$groupId */
  readonly groupId: number;
  /** As VFIO knows it: a BDF or a UUID. */
  readonly deviceName: string;
  /** Slot and function in the guest. */
  readonly devfn: number;
  readonly name: string;
  /** The guest may give memory to the balloon although this device is there: a mediated one that pins by itself. EINVAL for others. */
  readonly balloonAllowed?: boolean;
  /** What happens when the host wants the device back; the guest is asked by default. */
  readonly onRequest?: 'eject' | 'ignore';
}

export interface PassthroughDeviceOptions extends Omit<PassthroughInterruptsOptions, 'name' | 'device'> {
  readonly guest: string;
  readonly options: VfioDeviceOptions;
  readonly device: DeviceHandle;
  /** The host wants it back. */
  readonly onRequest: () => void;
  /** It reported an error that cannot be recovered from. */
  readonly onError: () => void;
}

interface BarRegion {
  readonly shape: BarShape;
  readonly info: RegionInfo;
  readonly mapped: readonly MappedPart[];
}

interface Notifier {
  readonly fd: number;
  readonly eventfd: EventFd;
}

/** The virtual function does no DMA: the device does it. */
const NO_DMA: DmaClient = { pageResponse: () => {}, invalidate: () => {}, heldDone: () => {} };

export class PassthroughDevice {
  readonly options: VfioDeviceOptions;
  readonly handle: DeviceHandle;
  readonly interrupts: PassthroughInterrupts;
  /** What stands in the guest's slot now. */
  fn: PciFunction;
  /** The guest has been asked to let it go. */
  ejecting = false;
  private readonly whole: PassthroughDeviceOptions;
  private readonly config: DeviceConfig;
  private readonly bars: readonly BarRegion[];
  private readonly resets: boolean;
  private readonly intx: boolean;
  private windows: RegionWindow[] = [];
  private notifiers: Notifier[] = [];

  private constructor(whole: PassthroughDeviceOptions, bars: readonly BarRegion[], resets: boolean, intx: boolean) {
    this.whole = whole;
    this.options = whole.options;
    this.handle = whole.device;
    this.config = new DeviceConfig(whole.device, whole.counters);
    this.bars = bars;
    this.resets = resets;
    this.intx = intx;
    this.interrupts = new PassthroughInterrupts({ ...whole, name: whole.options.name });
    this.fn = this.makeFunction();
  }

  /**
   * Takes an open device into the guest. EINVAL it is no PCI device, or one that cannot be shown; and what VFIO refuses.
   * The caller closes the descriptor.
   */
  static *realize(whole: PassthroughDeviceOptions): Steps<PassthroughDevice> {
    const { device, counters, options } = whole;
    const call = <T>(what: string, steps: Steps<T>): Steps<T> => {
      counters.ioctls++;
      return named(what, steps);
    };
    const info = yield* call('VFIO_DEVICE_GET_INFO', device.info());
    if ((info.flags & DEVICE_FLAGS_PCI) === 0 || info.regions < PCI_NUM_REGIONS) throw new Errno('EINVAL', `${options.deviceName} is no PCI device`);
    const bars: BarRegion[] = [];
    for (const shape of barShapes(new DeviceConfig(device, counters))) {
      const region = yield* call(`VFIO_DEVICE_GET_REGION_INFO of BAR ${shape.index}`, device.region(shape.index));
      if (region.sizeBytes === 0 || (region.flags & (REGION_INFO_READ | REGION_INFO_WRITE)) === 0) continue;
      bars.push({ shape, info: region, mapped: mapRegion(whole, shape.index, region) });
    }
    const intx = (yield* call('VFIO_DEVICE_GET_IRQ_INFO of INTx', device.irq(PCI_INTX_IRQ))).count > 0;
    const self = new PassthroughDevice(whole, bars, (info.flags & DEVICE_FLAGS_RESET) !== 0, intx);
    try {
      yield* self.listen(PCI_ERR_IRQ, 'err', whole.onError);
      if (options.onRequest !== 'ignore') yield* self.listen(PCI_REQ_IRQ, 'req', whole.onRequest);
      // as it comes from its last user; a device that cannot be reset has to do without
      yield* self.resetDevice();
    } catch (error) {
      yield* self.unrealize();
      throw error;
    }
    return self;
  }

  /** Back to how the guest first found it: interrupts off, device reset, another virtual function. */
  *restart(): Steps {
    this.closeWindows();
    yield* this.resetDevice();
    this.fn = this.makeFunction();
    yield* this.interrupts.follow();
  }

  /** Interrupts and notifications end; the guest's windows do not answer any more. The caller closes the descriptor. */
  *unrealize(): Steps {
    this.closeWindows();
    yield* this.interrupts.disable();
    for (const { fd } of this.notifiers) yield* tolerant(this.whole.process.close(fd));
    this.notifiers = [];
  }

  /** The guest's interrupt controller saw an end of interrupt of this function's line. */
  endOfInterrupt(): void {
    this.interrupts.served();
  }

  /** As `vfio_pci_pre_reset` and `vfio_pci_reset`: interrupts off, no DMA, no memory, VFIO_DEVICE_RESET. */
  private *resetDevice(): Steps {
    yield* this.interrupts.disable();
    this.config.write(PCI_COMMAND, 2, 0);
    if (!this.resets) return;
    this.whole.counters.ioctls++;
    yield* tolerant(this.handle.reset());
  }

  private makeFunction(): PciFunction {
    const { guest, options, counters } = this.whole;
    const bars = this.bars.map(({ shape, info, mapped }): BarOptions => {
      const window = new RegionWindow({
        device: this.handle, region: shape.index, sizeBytes: info.sizeBytes, mapped, counters, onTrap: () => this.interrupts.served(),
      });
      this.windows.push(window);
      return { ...shape, sizeBytes: info.sizeBytes, mmio: window };
    });
    const fn: PciFunction = new PciFunction({
      ...namedNow(options.name, () => functionOptions(`${guest} ${options.name}`, this.config, bars, this.intx)),
      client: NO_DMA,
      onFeatureChange: (change) => this.featureChanged(fn, change),
      onReset: () => this.guestReset(fn),
    });
    forwardConfig(fn, this.config);
    this.interrupts.serve(fn);
    return fn;
  }

  private featureChanged(fn: PciFunction, change: FunctionChange): void {
    if (fn === this.fn && (change === 'msi' || change === 'msix')) this.interrupts.changed();
  }

  /** The guest resets its function: the device is reset while it waits. */
  private guestReset(fn: PciFunction): void {
    if (fn !== this.fn) return;
    this.whole.work.push(`reset of ${this.options.name}`, () => this.resetForGuest());
  }

  private *resetForGuest(): Steps {
    yield* this.resetDevice();
    yield* this.interrupts.follow();
  }

  /** Wires a notification to a handler of the VMM, where the device has it. */
  private *listen(index: number, name: string, handle: () => void): Steps {
    const { process, scheduler, options, counters } = this.whole;
    counters.ioctls++;
    let count = 0;
    try {
      ({ count } = yield* this.handle.irq(index));
    } catch (error) {
      // a device without errors to report says EINVAL
      if (!(error instanceof Errno)) throw error;
    }
    if (count === 0) return;
    const eventfd = new EventFd(scheduler, `${options.name} ${name}`);
    const fd = process.open(eventfd);
    this.notifiers.push({ fd, eventfd });
    eventfd.listen(() => {
      if (eventfd.count > 0) eventfd.read();
      handle();
    });
    counters.ioctls++;
    yield* named(`VFIO_DEVICE_SET_IRQS of ${name}`, this.handle.setIrqs({ index, eventfds: [fd] }));
  }

  /** The VMM's mappings are gone: nobody answers the guest any more. */
  abandon(): void {
    this.closeWindows();
  }

  private closeWindows(): void {
    for (const window of this.windows) window.close();
    this.windows = [];
  }
}

/** Maps what may be mapped of a region; the rest of it traps. */
function mapRegion({ device, vm }: PassthroughDeviceOptions, index: number, info: RegionInfo): MappedPart[] {
  if ((info.flags & REGION_INFO_MMAP) === 0) return [];
  const areas = info.sparse ?? [{ offset: 0, sizeBytes: info.sizeBytes }];
  return areas.filter(({ sizeBytes }) => sizeBytes > 0).map(({ offset, sizeBytes }) => ({
    start: offset, end: offset + sizeBytes,
    mmio: vm.window(namedNow(`mmap of BAR ${index} at ${hex(offset)}`, () => device.mmap(index, offset, sizeBytes))),
  }));
}
