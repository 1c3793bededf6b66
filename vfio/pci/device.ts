/**
 * One function in the hands of a user (drivers/vfio/pci/vfio_pci_core.c of v5.10 and v6.12): regions, interrupts,
 * resets, what happens on the first open and the last close. Nothing here trusts the user.
 * A function level reset that the user starts by its configuration space runs on its own, since a store does not
 * sleep: until it is over configuration space reads as all ones and takes no writes (Linux lets the writer wait).
 * Left out: expansion ROM and VGA regions, EEH, ioeventfds, virtual function tokens, runtime power management.
 */
import { Errno, isErrno } from '../../sim/errno.js';
import { Mutex, type Scheduler, type Steps } from '../../sim/task.js';
import type { Mmio } from '../../sim/mmio.js';
import type { KernelLog } from '../../host/kernel-log.js';
import type { Process } from '../../host/process.js';
import { PCI_COMMAND, PCI_COMMAND_MASTER, PCI_COMMAND_MEMORY, PCI_STD_NUM_BARS } from '../../host/pci/spec/index.js';
import { updateWord } from '../../host/pci/kernel/config-access.js';
import type { PciFunctionDevice } from '../../host/pci/kernel/function-device.js';
import type { PciCore } from '../../host/pci/kernel/pci-core.js';
import {
  DEVICE_FLAGS_PCI, DEVICE_FLAGS_RESET, PCI_CONFIG_REGION, PCI_NUM_IRQS, PCI_NUM_REGIONS, PCI_ROM_REGION, REGION_INFO_MMAP, REGION_INFO_READ,
  REGION_INFO_WRITE, REGION_STRIDE, type VfioDeviceInfo, type VfioDeviceOps, type VfioIrqInfo, type VfioIrqSet, type VfioRegionInfo,
} from '../device.js';
import { VFIO_DEVICE_GET_PCI_HOT_RESET_INFO, VFIO_DEVICE_PCI_HOT_RESET } from '../uapi/ioctl.js';
import { hotResetInfo } from './hot-reset.js';
import { PciInterrupts } from './interrupts.js';
import { BarRegions } from './regions.js';
import { powerOn, SavedConfig } from './saved-config.js';
import type { PciVfioTrace, ResetCause } from './trace-kinds.js';
import { VirtualConfig } from './virtual-config.js';

/** From the queueing of work to its run. */
const WORK_QUEUE_NS = 1000;

/** The functions that are reset together with one, in the hands of the same driver (`vfio_device_set`). */
export interface ResetSet {
  /** VFIO_DEVICE_PCI_HOT_RESET of `device`; EINVAL, ENODEV, EBADF, EFAULT. */
  hotReset(device: VfioPciDevice, caller: Process, address: number): Steps;
  /** `device` was closed: resets the bus where that is possible and somebody needs it. */
  resetUnused(device: VfioPciDevice): Steps;
}

export interface VfioPciDeviceOptions {
  readonly device: PciFunctionDevice;
  readonly bus: PciCore;
  readonly scheduler: Scheduler;
  readonly log: KernelLog;
  readonly trace: PciVfioTrace;
  readonly resetSet: ResetSet;
  readonly defects: ReadonlySet<string>;
}

/** Everything that exists between the first open and the last close. */
interface Session {
  readonly config: VirtualConfig;
  readonly bars: BarRegions;
  readonly interrupts: PciInterrupts;
  readonly saved: SavedConfig;
  /** The function can be reset alone. */
  readonly resetWorks: boolean;
}

export class VfioPciDevice implements VfioDeviceOps {
  readonly name: string;
  readonly device: PciFunctionDevice;
  /** The last user's traces are still in it: it was closed and could not be reset. */
  needsReset = false;
  private readonly bus: PciCore;
  private readonly scheduler: Scheduler;
  private readonly log: KernelLog;
  private readonly trace: PciVfioTrace;
  private readonly resetSet: ResetSet;
  private readonly defects: ReadonlySet<string>;
  private readonly masterStaysOn: boolean;
  /** Serializes interrupts, resets, open and close. */
  private readonly lock: Mutex;
  private session: Session | undefined;
  /** Resets under way. */
  private resetting = 0;

  constructor(options: VfioPciDeviceOptions) {
    const { device } = options;
    this.name = device.name;
    this.device = device;
    this.bus = options.bus;
    this.scheduler = options.scheduler;
    this.log = options.log;
    this.trace = options.trace;
    this.resetSet = options.resetSet;
    this.defects = options.defects;
    this.masterStaysOn = options.defects.has('vfio-pci.master-stays-on');
    this.lock = new Mutex(options.scheduler, `vfio-pci ${device.name}`);
  }

  get opened(): boolean {
    return this.session !== undefined;
  }

  // ---- open and close

  /** ENODEV the function is gone. */
  *open(): Steps {
    yield* this.lock.with(() => this.enable());
  }

  *close(): Steps {
    yield* this.lock.with(() => this.disable());
    yield* this.resetSet.resetUnused(this);
  }

  private *enable(): Steps {
    const { device } = this;
    if (!device.present) throw new Errno('ENODEV', `${this.name} is gone`);
    // what is put back at the end must not let it do DMA
    device.setMaster(false);
    if (device.physfn === undefined && device.bars.some(({ start }) => start !== undefined)) updateWord(device.config, PCI_COMMAND, 0, PCI_COMMAND_MEMORY);
    const resetWorks = yield* this.tryReset('open');
    const saved = new SavedConfig(device);
    if (device.intxMaskSupported) device.intx(true);
    const config = new VirtualConfig(device, this.configEffects(), this.defects);
    const interrupts = new PciInterrupts(device, device.pcieType !== undefined, {
      withMemory: (program) => this.withMemory(program),
      get virtualDisable() { return config.virtualIntxDisable; },
      defer: (work) => this.scheduler.clock.post(WORK_QUEUE_NS, work),
    });
    this.session = { config, interrupts, saved, bars: new BarRegions(device), resetWorks };
    this.updateReachable();
  }

  /** The order of `vfio_pci_core_disable` (C18). */
  private *disable(): Steps {
    const session = this.session;
    if (session === undefined) return;
    const { device } = this;
    session.bars.reachable = false;
    this.session = undefined;
    if (!device.present) {
      session.interrupts.teardown(true);
      return;
    }
    powerOn(device);
    const master = (device.config.read(PCI_COMMAND, 2) & PCI_COMMAND_MASTER) !== 0;
    device.setMaster(false);
    session.interrupts.teardown(true);
    this.needsReset = true;
    session.saved.restore(device);
    if (session.resetWorks && (yield* this.tryReset('close'))) this.needsReset = false;
    if (this.masterStaysOn && master) device.setMaster(true);
  }

  /** False when the function cannot be reset alone, or did not come back. */
  private *tryReset(cause: ResetCause): Steps<boolean> {
    try {
      yield* this.device.reset();
      this.trace.reset(this.name, cause, true);
      return true;
    } catch (error) {
      if (!isErrno(error)) throw error;
      this.trace.reset(this.name, cause, false);
      return false;
    }
  }

  // ---- what there is

  info(): VfioDeviceInfo {
    const flags = DEVICE_FLAGS_PCI | (this.session?.resetWorks === true ? DEVICE_FLAGS_RESET : 0);
    return { flags, regions: PCI_NUM_REGIONS, irqs: PCI_NUM_IRQS };
  }

  regionInfo(index: number): VfioRegionInfo {
    const { config, bars } = this.current();
    if (index === PCI_CONFIG_REGION) return { flags: REGION_INFO_READ | REGION_INFO_WRITE, sizeBytes: config.sizeBytes };
    if (index === PCI_ROM_REGION) return { flags: 0, sizeBytes: 0 };
    if (!isBar(index)) throw new Errno('EINVAL', `${this.name} has no region ${index}`);
    const sizeBytes = bars.sizeOf(index);
    if (sizeBytes === 0) return { flags: 0, sizeBytes };
    const mappable = bars.mappable(index);
    const flags = REGION_INFO_READ | REGION_INFO_WRITE | (mappable ? REGION_INFO_MMAP : 0);
    return mappable && bars.hasMsixTable(index) ? { flags, sizeBytes, msixMappable: true } : { flags, sizeBytes };
  }

  irqInfo(index: number): VfioIrqInfo {
    return this.current().interrupts.info(index);
  }

  // ---- regions

  /** EFAULT beyond configuration space; EINVAL no such region, beyond a BAR; EIO memory is not reachable. */
  read(offset: number, target: Uint8Array): number {
    const { config, bars } = this.current();
    const index = Math.floor(offset / REGION_STRIDE), at = offset % REGION_STRIDE;
    if (target.length === 0) return 0;
    if (isBar(index)) return bars.read(index, at, target);
    if (index !== PCI_CONFIG_REGION) throw new Errno('EINVAL', `${this.name} has no region ${index} to read`);
    const length = config.read(at, target);
    // nobody answers a function that is being reset, or gone
    if (this.resetting > 0 || !this.device.present) target.fill(0xff);
    return length;
  }

  /** As `read`. */
  write(offset: number, source: Uint8Array): number {
    const { config, bars } = this.current();
    const index = Math.floor(offset / REGION_STRIDE), at = offset % REGION_STRIDE;
    if (source.length === 0) return 0;
    if (isBar(index)) return bars.write(index, at, source);
    if (index !== PCI_CONFIG_REGION) throw new Errno('EINVAL', `${this.name} has no region ${index} to write`);
    return this.resetting > 0 ? source.length : config.write(at, source);
  }

  mmap(offset: number, sizeBytes: number): Mmio {
    const { bars } = this.current();
    const index = Math.floor(offset / REGION_STRIDE);
    if (!isBar(index)) throw new Errno('EINVAL', `region ${index} of ${this.name} cannot be mapped`);
    return bars.mmap(index, offset % REGION_STRIDE, sizeBytes);
  }

  // ---- interrupts and notifications

  *setIrqs(request: VfioIrqSet): Steps {
    yield* this.lock.with(() => this.setIrqsLocked(request));
  }

  // oxlint-disable-next-line require-yield -- runs under the lock
  private *setIrqsLocked(request: VfioIrqSet): Steps {
    this.current().interrupts.set(request);
    const { index, start, count, action, data } = request;
    this.trace.setIrqs(this.name, index, start, count, action, data.kind);
  }

  request(count: number): void {
    const trigger = this.session?.interrupts.reqTrigger;
    this.trace.notify(this.name, 'request', trigger !== undefined);
    if (trigger !== undefined) {
      if (count % 10 === 0) this.log.limited(`vfio request ${this.name}`, 'info', `vfio-pci ${this.name}: Relaying device request to user (#${count})`);
      trigger.signal();
    } else if (count === 0) {
      this.log.log('warn', `vfio-pci ${this.name}: No device request channel registered, blocked until released by user`);
    }
  }

  /** The function, or one beside it, reported an error (C18). */
  errorDetected(): void {
    const trigger = this.session?.interrupts.errTrigger;
    this.trace.notify(this.name, 'error', trigger !== undefined);
    trigger?.signal();
  }

  // ---- resets

  /** EINVAL the function cannot be reset alone; ENOTTY it does not come back. */
  *reset(): Steps {
    if (!this.current().resetWorks) throw new Errno('EINVAL', `${this.name} cannot be reset without its neighbours`);
    yield* this.resetLocked('ioctl');
  }

  *ioctl(caller: Process, command: number, argument: number): Steps<number> {
    switch (command) {
      case VFIO_DEVICE_GET_PCI_HOT_RESET_INFO:
        return yield* hotResetInfo(this.bus, this.device, caller, argument);
      case VFIO_DEVICE_PCI_HOT_RESET:
        yield* this.resetSet.hotReset(this, caller, argument);
        return 0;
      default:
        throw new Errno('ENOTTY', `${this.name} knows no command ${command}`);
    }
  }

  /** Nobody opens, closes or resets the function during `steps`. For resets of the whole bus. */
  *locked(steps: () => Steps): Steps {
    yield* this.lock.with(steps);
  }

  /** Nobody reaches the function during `reset`, which is given a powered function. The caller is inside of `locked`. */
  *whileUnreachable(reset: () => Steps): Steps {
    yield* this.isolated(reset);
  }

  private *resetLocked(cause: ResetCause): Steps {
    yield* this.lock.with(() => this.isolated(() => this.resetAlone(cause)));
  }

  private *resetAlone(cause: ResetCause): Steps {
    try {
      yield* this.device.reset();
    } catch (error) {
      this.trace.reset(this.name, cause, false);
      throw error;
    }
    this.trace.reset(this.name, cause, true);
  }

  private *isolated(reset: () => Steps): Steps {
    this.resetting++;
    this.updateReachable();
    try {
      if (this.session !== undefined && this.device.present) {
        powerOn(this.device);
        this.session.config.poweredOn();
      }
      yield* reset();
    } finally {
      this.resetting--;
      this.updateReachable();
    }
  }

  /** Function level reset from a store of the user: from this moment on nothing answers. */
  private startFunctionReset(): void {
    this.resetting++;
    this.updateReachable();
    this.scheduler.spawn(`vfio-pci reset of ${this.name}`, this.functionReset(this.session));
  }

  private *functionReset(session: Session | undefined): Steps {
    try {
      yield* this.lock.with(() => this.isolated(() => this.resetIfOpen(session)));
    } catch (error) {
      if (!isErrno(error)) throw error;
      this.log.limited(`vfio-pci flr ${this.name}`, 'warn', `vfio-pci ${this.name}: function level reset failed: ${error.message}`);
    } finally {
      this.resetting--;
      this.updateReachable();
    }
  }

  /** The user may have closed the device before the reset's turn. */
  private *resetIfOpen(session: Session | undefined): Steps {
    if (this.session === session) yield* this.resetAlone('flr');
  }

  // ---- memory space

  private configEffects(): ConstructorParameters<typeof VirtualConfig>[1] {
    const msiOrder = (): number | undefined => this.session?.interrupts.msiOrder;
    return {
      memory: (reachable) => this.setReachable(reachable),
      intxDisable: (disabled) => this.session?.interrupts.virtualDisableChanged(disabled),
      functionReset: () => this.startFunctionReset(),
      get msiOrder() { return msiOrder(); },
    };
  }

  private updateReachable(): void {
    if (this.session !== undefined) this.setReachable(this.session.config.memoryReachable);
  }

  private setReachable(wanted: boolean): void {
    const { session } = this;
    if (session === undefined) return;
    const reachable = wanted && this.resetting === 0;
    if (reachable === session.bars.reachable) return;
    session.bars.reachable = reachable;
    this.trace.reachable(this.name, reachable);
  }

  /** Memory space is on while `program` runs, whatever the user wants. */
  private withMemory<T>(program: () => T): T {
    const { device } = this;
    if (device.physfn !== undefined || (device.config.read(PCI_COMMAND, 2) & PCI_COMMAND_MEMORY) !== 0) return program();
    updateWord(device.config, PCI_COMMAND, 0, PCI_COMMAND_MEMORY);
    try {
      return program();
    } finally {
      updateWord(device.config, PCI_COMMAND, PCI_COMMAND_MEMORY, 0);
    }
  }

  private current(): Session {
    if (this.session === undefined) throw new Errno('ENODEV', `${this.name} is not open`);
    return this.session;
  }
}

function isBar(index: number): boolean {
  return index >= 0 && index < PCI_STD_NUM_BARS;
}
