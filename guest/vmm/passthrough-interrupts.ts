/**
 * Interrupts of a passed-through device (QEMU: hw/vfio/pci.c, `vfio_msix_enable`, `vfio_msi_enable`, `vfio_intx_enable`,
 * `vfio_disable_interrupts`): whichever kind the guest has enabled in the virtual function is enabled in the device by
 * SET_IRQS, with an eventfd for each vector; a signal of one is the virtual function's interrupt, which then honours the
 * guest's masks and goes where the guest programmed it. Without MSI and MSI-X it is INTx, where the device has it: VFIO
 * masks it when it arrives, and it is unmasked when the guest has served it (its end of interrupt, or an access to a
 * register that traps).
 *
 * All vectors of MSI-X are wired when it is enabled; QEMU adds them as the guest unmasks them.
 */
import type { Scheduler, Steps } from '../../sim/task.js';
import type { Trace, TraceKind } from '../../sim/trace.js';
import { EventFd } from '../../host/eventfd.js';
import type { Process } from '../../host/process.js';
import type { PciFunction } from '../../host/pci/hardware/pci-function.js';
import { PCI_INTERRUPT_PIN } from '../../host/pci/spec/index.js';
import type { DeviceHandle } from '../../vfio/client/index.js';
import { PCI_INTX_IRQ, PCI_MSI_IRQ, PCI_MSIX_IRQ } from '../../vfio/device.js';
import type { Vm } from '../kvm/vm.js';
import { guestTraceKinds } from '../trace-kinds.js';
import type { VmmCounters } from './counters.js';
import { tolerant } from './undo.js';
import type { VmmWork } from './work.js';

export type InterruptMode = 'none' | 'intx' | 'msi' | 'msix';

interface Vector {
  readonly fd: number;
  readonly eventfd: EventFd;
  readonly end: () => void;
}

export interface PassthroughInterruptsOptions {
  readonly name: string;
  readonly device: DeviceHandle;
  readonly process: Process;
  readonly scheduler: Scheduler;
  readonly vm: Vm;
  readonly work: VmmWork;
  readonly counters: VmmCounters;
  readonly trace?: Trace | undefined;
}

const INDEX: { readonly [M in Exclude<InterruptMode, 'none'>]: number } = { intx: PCI_INTX_IRQ, msi: PCI_MSI_IRQ, msix: PCI_MSIX_IRQ };

export class PassthroughInterrupts {
  /** What is enabled in the device. */
  mode: InterruptMode = 'none';
  private readonly options: PassthroughInterruptsOptions;
  private readonly kind: TraceKind | undefined;
  private fn: PciFunction | undefined;
  private vectors: readonly Vector[] = [];
  /** INTx has arrived and has not been served. */
  private asserted = false;
  private asked = false;

  constructor(options: PassthroughInterruptsOptions) {
    this.options = options;
    this.kind = options.trace === undefined ? undefined : guestTraceKinds(options.trace).interrupts;
  }

  /** Vectors wired now. */
  get count(): number {
    return this.vectors.length;
  }

  /** The virtual function whose interrupts these are from now on. */
  serve(fn: PciFunction): void {
    this.fn = fn;
    this.asserted = false;
  }

  /** The guest has changed its function: the device follows, while the guest waits. */
  changed(): void {
    if (this.asked) return;
    this.asked = true;
    this.options.work.push(`interrupts of ${this.options.name}`, () => this.follow());
  }

  /** Enables what the virtual function has enabled. */
  *follow(): Steps {
    this.asked = false;
    const { fn } = this;
    if (fn === undefined) return;
    const mode: InterruptMode = fn.msix?.enabled === true ? 'msix' : fn.msi?.enabled === true ? 'msi' : fn.config.get(PCI_INTERRUPT_PIN, 1) === 0 ? 'none' : 'intx';
    const count = mode === 'msix' ? fn.msix!.options.vectors : mode === 'msi' ? fn.msi!.allocated : 1;
    if (mode === this.mode && (mode === 'none' || count === this.vectors.length)) return;
    yield* this.disable();
    if (mode !== 'none') yield* this.enable(mode, count);
  }

  /** Nothing is enabled in the device. */
  *disable(): Steps {
    const { mode } = this;
    if (mode === 'none') return;
    this.mode = 'none';
    this.asserted = false;
    yield* tolerant(this.setIrqs({ index: INDEX[mode], count: 0 }));
    yield* this.closeVectors();
    this.record('none', 0);
  }

  /** The guest has served the legacy interrupt: the line falls, and the device may interrupt again. */
  served(): void {
    if (!this.asserted) return;
    this.asserted = false;
    this.fn?.setIntx(false);
    this.options.work.push(`INTx of ${this.options.name}`, () => this.unmask());
  }

  private *unmask(): Steps {
    if (this.mode === 'intx') yield* this.setIrqs({ index: PCI_INTX_IRQ, action: 'unmask', count: 1 });
  }

  private *enable(mode: Exclude<InterruptMode, 'none'>, count: number): Steps {
    const { name, process, scheduler, vm } = this.options;
    this.vectors = Array.from({ length: count }, (_, i) => {
      const eventfd = new EventFd(scheduler, `${name} ${mode} ${i}`);
      return { fd: process.open(eventfd), eventfd, end: vm.irqfd(eventfd, () => this.deliver(mode, i)) };
    });
    this.mode = mode;
    try {
      yield* this.setIrqs({ index: INDEX[mode], eventfds: this.vectors.map(({ fd }) => fd) });
    } catch (error) {
      this.mode = 'none';
      yield* this.closeVectors();
      throw error;
    }
    this.record(mode, count);
  }

  private deliver(mode: InterruptMode, vector: number): void {
    const { fn } = this;
    if (fn === undefined) return;
    if (mode === 'msix') fn.raiseMsix(vector);
    else if (mode === 'msi') fn.raiseMsi(vector);
    else {
      this.asserted = true;
      fn.setIntx(true);
    }
  }

  private *closeVectors(): Steps {
    const { vectors } = this;
    this.vectors = [];
    for (const { fd, end } of vectors) {
      end();
      yield* tolerant(this.options.process.close(fd));
    }
  }

  private *setIrqs(request: Parameters<DeviceHandle['setIrqs']>[0]): Steps {
    this.options.counters.ioctls++;
    yield* this.options.device.setIrqs(request);
  }

  private record(mode: InterruptMode, count: number): void {
    const { trace, name } = this.options;
    if (this.kind !== undefined) trace!.record(this.kind, 0, trace!.intern(name), trace!.intern(mode), count);
  }
}
