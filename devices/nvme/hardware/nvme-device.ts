/**
 * The controller as a PCI Express endpoint 1b36:0010, class 0x010802, as QEMU's: BAR 0 with registers, doorbells and the MSI-X
 * structures behind them, one vector for the admin queue and one for each I/O queue, pin A, power management, function
 * level reset. No ATS, no PASID: its requests are untranslated.
 */
import type { Clock } from '../../../sim/clock.js';
import type { Scheduler, Steps } from '../../../sim/task.js';
import type { Trace } from '../../../sim/trace.js';
import { NO_PASID, type DmaPort } from '../../../host/pci/dma-port.js';
import type { FunctionPort } from '../../../host/pci/hardware/function-port.js';
import { PciFunction, type FunctionChange } from '../../../host/pci/hardware/pci-function.js';
import { Requester, type RequesterResult } from '../../../host/pci/hardware/requester.js';
import type { Timing } from '../../../host/timing.js';
import {
  NVME_BAR, NVME_CLASS_CODE, NVME_DEVICE_ID, NVME_REVISION, NVME_SUBSYSTEM_ID, NVME_SUBSYSTEM_VENDOR_ID, NVME_VENDOR_ID, windowOf,
} from '../spec/registers.js';
import { NvmeController } from './controller.js';
import { DEFAULT_NVME_CONFIG, type NvmeConfig, type NvmeFunctionSide } from './controller-options.js';
import type { BlockMedium } from './medium.js';
import type { MemoryAccess, Moved } from './transfer.js';

export interface NvmeDeviceOptions {
  readonly name: string;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly timing: Timing;
  readonly trace: Trace;
  readonly medium: BlockMedium;
  readonly config?: Partial<NvmeConfig>;
  /** Lets a test put a port that holds operations between device and fabric. */
  readonly wrapPort?: (port: FunctionPort) => DmaPort;
  /** Those of NvmeController; those of the PCI function and requester are passed on. */
  readonly defects?: ReadonlySet<string>;
}

/** Untranslated requests without PASID. */
class FunctionAccess implements MemoryAccess {
  costNs = 0;
  private readonly requester: Requester;
  private readonly timing: Timing;

  constructor(requester: Requester, timing: Timing) {
    this.requester = requester;
    this.timing = timing;
  }

  overlapNs(write: boolean): number {
    return this.timing.options.tlpNs * (write ? 1 : 2);
  }

  *read(page: number, offset: number, target: Uint8Array, targetOffset: number, length: number): Steps<Moved> {
    return this.ended(yield* this.requester.read(page, offset, target, targetOffset, length, NO_PASID, 0, false));
  }

  *write(page: number, offset: number, source: Uint8Array, sourceOffset: number, length: number): Steps<Moved> {
    return this.ended(yield* this.requester.write(page, offset, source, sourceOffset, length, NO_PASID, 0, false));
  }

  private ended({ status, costNs }: RequesterResult): Moved {
    this.costNs = costNs;
    return status === 'done' || status === 'revoked' ? status : 'error';
  }
}

export class NvmeDevice implements NvmeFunctionSide {
  /** What is plugged into a bus. */
  readonly function: PciFunction;
  readonly controller: NvmeController;
  readonly requester: Requester;
  readonly medium: BlockMedium;
  private readonly timing: Timing;

  constructor(options: NvmeDeviceOptions) {
    const { name, clock, scheduler, timing, trace, medium } = options;
    const config: NvmeConfig = { ...DEFAULT_NVME_CONFIG, serial: name, ...options.config };
    const defects = options.defects ?? new Set<string>();
    const window = windowOf(config);
    this.timing = timing;
    this.medium = medium;
    this.controller = new NvmeController({ name, clock, scheduler, trace, config, medium, side: this, defects });
    this.requester = new Requester({ name, clock, scheduler, timing, defects });
    this.function = new PciFunction({
      name, vendorId: NVME_VENDOR_ID, deviceId: NVME_DEVICE_ID, classCode: NVME_CLASS_CODE, revision: NVME_REVISION,
      subsystemVendorId: NVME_SUBSYSTEM_VENDOR_ID, subsystemId: NVME_SUBSYSTEM_ID, client: this.requester, defects,
      bars: [{ index: NVME_BAR, sizeBytes: window.barBytes, prefetchable: false, is64: true, mmio: this.controller.registers }],
      msix: { vectors: config.ioQueues + 1, tableBar: NVME_BAR, tableOffset: window.tableOffset, pbaBar: NVME_BAR, pbaOffset: window.pbaOffset },
      intx: 1, pm: true, flr: true, e2eTlpPrefix: false,
      onReset: () => this.controller.functionReset(),
      onFeatureChange: (change) => this.changed(change),
      ...(options.wrapPort === undefined ? {} : { wrapPort: options.wrapPort }),
    });
    this.requester.attach(this.function);
  }

  get reachable(): boolean {
    return !this.function.port.revoked;
  }

  get messageSignalled(): boolean {
    return this.function.messageSignalled;
  }

  readonly access = (): MemoryAccess => new FunctionAccess(this.requester, this.timing);

  raise(vector: number): void {
    this.function.raiseMsix(vector);
  }

  pin(level: boolean): void {
    this.function.setIntx(level);
  }

  private changed(change: FunctionChange): void {
    if (change === 'removed') this.controller.functionReset();
    else if (change === 'bus-master') this.controller.masterChanged();
    else if (change === 'msix') this.controller.updatePin();
  }
}
