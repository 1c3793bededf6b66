/**
 * The educational device as a PCI function 1234:11e8 with QEMU's interrupts: one MSI vector with 64-bit address and
 * without mask, and INTA# while MSI is off. No PASID, no ATS, as in QEMU.
 */
import type { Clock } from '../../../sim/clock.js';
import { sleep, type Scheduler, type Steps } from '../../../sim/task.js';
import type { Trace } from '../../../sim/trace.js';
import type { FunctionPort } from '../../../host/pci/hardware/function-port.js';
import { NO_PASID, type DmaPort } from '../../../host/pci/dma-port.js';
import { PciFunction } from '../../../host/pci/hardware/pci-function.js';
import { Requester, type RequesterResult } from '../../../host/pci/hardware/requester.js';
import type { Timing } from '../../../host/timing.js';
import { EDU_BAR, EDU_BAR_SIZE, EDU_CLASS_CODE, EDU_DEVICE_ID, EDU_REVISION, EDU_VENDOR_ID } from '../spec/registers.js';
import { DEFAULT_EDU_CONFIG, EduCore, type EduConfig, type EduFunctionSide } from './edu-core.js';

export interface EduDeviceOptions {
  readonly name: string;
  readonly clock: Clock;
  readonly scheduler: Scheduler;
  readonly timing: Timing;
  readonly trace: Trace;
  readonly config?: Partial<EduConfig>;
  /** Lets a test put a port that holds operations between device and fabric. */
  readonly wrapPort?: (port: FunctionPort) => DmaPort;
  readonly defects?: ReadonlySet<string>;
}

export class EduDevice implements EduFunctionSide {
  readonly function: PciFunction;
  readonly core: EduCore;
  readonly requester: Requester;
  private readonly clock: Clock;

  constructor(options: EduDeviceOptions) {
    const { name, clock, scheduler, timing, trace } = options;
    const defects = options.defects ?? new Set<string>();
    this.clock = clock;
    this.core = new EduCore({ name, clock, scheduler, trace, config: { ...DEFAULT_EDU_CONFIG, ...options.config }, side: this, defects });
    this.requester = new Requester({ name, clock, scheduler, timing, defects });
    this.function = new PciFunction({
      name, vendorId: EDU_VENDOR_ID, deviceId: EDU_DEVICE_ID, classCode: EDU_CLASS_CODE, revision: EDU_REVISION, client: this.requester, defects,
      bars: [{ index: EDU_BAR, sizeBytes: EDU_BAR_SIZE, prefetchable: false, is64: false, mmio: this.core.registers }],
      msi: { vectors: 1 }, intx: 1,
      flr: true, e2eTlpPrefix: false,
      onReset: () => this.core.reset(),
      onFeatureChange: (change) => {
        if (change === 'removed') this.core.reset();
      },
      ...(options.wrapPort === undefined ? {} : { wrapPort: options.wrapPort }),
    });
    this.requester.attach(this.function);
  }

  raise(): void {
    if (this.function.messageSignalled) this.function.raiseMsi(0);
    else this.function.setIntx(true);
  }

  /** As in QEMU, an acknowledgement while MSI is on leaves a level that was there before. */
  lower(): void {
    if (!this.function.messageSignalled) this.function.setIntx(false);
  }

  *read(page: number, offset: number, target: Uint8Array, targetOffset: number, length: number): Steps<boolean> {
    return yield* this.pay(yield* this.requester.read(page, offset, target, targetOffset, length, NO_PASID, 0, false));
  }

  *write(page: number, offset: number, source: Uint8Array, sourceOffset: number, length: number): Steps<boolean> {
    return yield* this.pay(yield* this.requester.write(page, offset, source, sourceOffset, length, NO_PASID, 0, false));
  }

  /** Lets the transfer's time pass. */
  private *pay({ status, costNs }: RequesterResult): Steps<boolean> {
    if (costNs > 0) yield* sleep(this.clock, costNs);
    return status === 'done';
  }
}
