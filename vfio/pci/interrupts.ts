/**
 * Interrupts of a function for its user, delivered by eventfds (drivers/vfio/pci/vfio_pci_intrs.c): at most one of
 * INTx, MSI and MSI-X is enabled; INTx is masked by the driver when it arrives, and unmasked by the user. The number
 * of vectors of MSI and MSI-X is fixed when they are enabled. Left out: bypass of the host for virtual machines,
 * masking of single vectors.
 */
import { Errno } from '../../sim/errno.js';
import type { EventFd } from '../../host/eventfd.js';
import type { PciDevice } from '../../host/pci/kernel/pci-device.js';
import {
  IRQ_INFO_AUTOMASKED, IRQ_INFO_EVENTFD, IRQ_INFO_MASKABLE, IRQ_INFO_NORESIZE, PCI_ERR_IRQ, PCI_INTX_IRQ, PCI_MSI_IRQ, PCI_MSIX_IRQ, PCI_REQ_IRQ,
  type VfioIrqInfo, type VfioIrqSet,
} from '../device.js';

/** What the driver around it decides. */
export interface InterruptSurroundings {
  /** Runs `program` with memory space enabled, where a table in a BAR has to be written. */
  withMemory<T>(program: () => T): T;
  /** The user has set Interrupt Disable in its command register. */
  readonly virtualDisable: boolean;
  /** Runs `work` a little later, as a work queue of the kernel does. */
  defer(work: () => void): void;
}

export class PciInterrupts {
  /** Index that is enabled now. */
  active: typeof PCI_INTX_IRQ | typeof PCI_MSI_IRQ | typeof PCI_MSIX_IRQ | undefined;
  errTrigger: EventFd | undefined;
  reqTrigger: EventFd | undefined;
  private readonly device: PciDevice;
  private readonly express: boolean;
  private readonly surroundings: InterruptSurroundings;
  /** Of each vector of `active`; for INTx there is one. */
  private triggers: (EventFd | undefined)[] = [];
  /** Interrupt Disable can be used for masking; otherwise the whole line is masked, and not shared. */
  private readonly maskable: boolean;
  private masked = false;
  /** Grows whenever INTx is enabled: what was deferred before is for nobody. */
  private enables = 0;
  private stopUnmasking: (() => void) | undefined;

  /** @param express the function has a PCI Express capability: only those report errors */
  constructor(device: PciDevice, express: boolean, surroundings: InterruptSurroundings) {
    this.device = device;
    this.express = express;
    this.surroundings = surroundings;
    this.maskable = device.intxMaskSupported;
  }

  /** EINVAL no such index, or errors of a function without PCI Express. */
  info(index: number): VfioIrqInfo {
    const flags = IRQ_INFO_EVENTFD | (index === PCI_INTX_IRQ ? IRQ_INFO_MASKABLE | IRQ_INFO_AUTOMASKED : IRQ_INFO_NORESIZE);
    return { flags, count: this.countOf(index) };
  }

  /** Vectors enabled, as the exponent of MSI's Multiple Message Enable; undefined while MSI is not. */
  get msiOrder(): number | undefined {
    return this.active === PCI_MSI_IRQ ? Math.ceil(Math.log2(this.triggers.length)) : undefined;
  }

  /**
   * VFIO_DEVICE_SET_IRQS. EINVAL index, range, another kind is enabled, not enabled, more than were enabled; ENOTTY an
   * action that the kind does not have; EBUSY an eventfd unmasks already; ENODEV no line; ENOSPC no vectors.
   */
  set(request: VfioIrqSet): void {
    const { index, start, count, action } = request;
    const available = this.countOf(index);
    if (start >= available || start + count > available) throw new Errno('EINVAL', `interrupts [${start}, ${start + count}) of index ${index} of ${this.device.name}, which has ${available}`);
    if (index === PCI_INTX_IRQ) this.setIntx(request);
    else if (action !== 'trigger') throw new Errno('ENOTTY', `interrupts of index ${index} cannot be masked`);
    else if (index === PCI_ERR_IRQ || index === PCI_REQ_IRQ) this.setSingle(request);
    else this.setMessages(request);
  }

  /** Interrupt Disable of the user's command register changed: the hardware follows, also without INTx. */
  virtualDisableChanged(disabled: boolean): void {
    if (disabled) this.mask();
    else this.unmask();
  }

  /** Tears down what is enabled, and the eventfds of errors and requests when the device is closed. */
  teardown(closing = false): void {
    if (this.active === PCI_INTX_IRQ) this.disableIntx();
    else if (this.active !== undefined) this.disableMessages();
    if (closing) this.errTrigger = this.reqTrigger = undefined;
  }

  private countOf(index: number): number {
    switch (index) {
      case PCI_INTX_IRQ: return this.device.interruptPin === 0 ? 0 : 1;
      case PCI_MSI_IRQ: return this.device.msiVectors;
      case PCI_MSIX_IRQ: return this.device.msixVectors;
      case PCI_REQ_IRQ: return 1;
      case PCI_ERR_IRQ:
        if (this.express) return 1;
        break;
    }
    throw new Errno('EINVAL', `${this.device.name} has no interrupts of index ${index}`);
  }

  // ---- INTx

  private setIntx(request: VfioIrqSet): void {
    const { action, count, data } = request;
    const on = this.active === PCI_INTX_IRQ;
    if (action === 'trigger') {
      if (on && count === 0 && data.kind === 'none') this.disableIntx();
      else this.triggerIntx(request, on);
      return;
    }
    if (!on || count !== 1) throw new Errno('EINVAL', `INTx of ${this.device.name} is not enabled`);
    if (data.kind === 'eventfd') this.listenForUnmask(action, data.fds[0]);
    else if (data.kind === 'bool' && data.values[0] !== true) return;
    else if (action === 'mask') this.mask();
    else this.unmask();
  }

  private triggerIntx({ count, data }: VfioIrqSet, on: boolean): void {
    if ((!on && this.active !== undefined) || count !== 1) throw new Errno('EINVAL', `INTx of ${this.device.name}: another kind of interrupt is enabled, or not one is asked for`);
    if (data.kind === 'eventfd') {
      if (on) this.triggers = [data.fds[0]];
      else this.enableIntx(data.fds[0]);
      return;
    }
    if (!on) throw new Errno('EINVAL', `INTx of ${this.device.name} is not enabled`);
    if (data.kind === 'none' || data.values[0] === true) this.sendIntx();
  }

  private enableIntx(trigger: EventFd | undefined): void {
    const { device } = this;
    const name = `vfio-intx(${device.name})`;
    this.enables++;
    // before the handler can run
    this.active = PCI_INTX_IRQ;
    this.triggers = [trigger];
    this.masked = this.surroundings.virtualDisable;
    if (this.maskable) device.intx(!this.masked);
    try {
      device.requestIntx(name, () => this.handleIntx(), this.maskable ? {} : { exclusive: true });
    } catch (error) {
      this.active = undefined;
      this.triggers = [];
      this.masked = false;
      throw error;
    }
    if (!this.maskable && this.masked) device.disableIntxLine();
  }

  private disableIntx(): void {
    this.stopUnmasking?.();
    this.stopUnmasking = undefined;
    this.device.freeIntx();
    this.active = undefined;
    this.triggers = [];
    this.masked = false;
  }

  private handleIntx(): boolean {
    if (this.masked) return false;
    if (this.maskable) {
      if (!this.device.checkAndMaskIntx()) return false;
    } else {
      this.device.disableIntxLine();
    }
    this.masked = true;
    this.sendIntx();
    return true;
  }

  private sendIntx(): void {
    if (this.active === PCI_INTX_IRQ && !this.surroundings.virtualDisable) this.triggers[0]?.signal();
  }

  private mask(): void {
    const { device } = this;
    if (this.active === PCI_INTX_IRQ && this.masked) return;
    if (this.maskable) device.intx(false);
    else if (this.active === PCI_INTX_IRQ) device.disableIntxLine();
    if (this.active === PCI_INTX_IRQ) this.masked = true;
  }

  /** Where an interrupt is pending already it stays masked and is sent again. @param send how */
  private unmask(send = (): void => this.sendIntx()): void {
    const { device } = this;
    if (this.active !== PCI_INTX_IRQ) {
      // message-signalled interrupts have it switched off for themselves
      if (this.maskable && this.active === undefined) device.intx(true);
      return;
    }
    if (!this.masked || this.surroundings.virtualDisable) return;
    if (this.maskable && !device.checkAndUnmaskIntx()) {
      send();
      return;
    }
    this.masked = false;
    if (!this.maskable) device.enableIntxLine();
  }

  private listenForUnmask(action: 'mask' | 'unmask', fd: EventFd | undefined): void {
    if (action === 'mask') throw new Errno('ENOTTY', `INTx of ${this.device.name} cannot be masked by an eventfd`);
    if (fd !== undefined && this.stopUnmasking !== undefined) throw new Errno('EBUSY', `INTx of ${this.device.name} is unmasked by an eventfd already`);
    this.stopUnmasking?.();
    this.stopUnmasking = fd?.listen(() => {
      if (fd.count > 0) fd.read();
      this.unmask(() => this.sendLater());
    });
  }

  /** Not from inside of a signal (virqfd_inject): the user may have chained one eventfd to the other, or taken one for both. */
  private sendLater(): void {
    const { enables } = this;
    this.surroundings.defer(() => {
      if (this.enables === enables) this.sendIntx();
    });
  }

  // ---- MSI and MSI-X

  private setMessages({ index, start, count, data }: VfioIrqSet): void {
    const on = this.active === index;
    if (on && count === 0 && data.kind === 'none') {
      this.disableMessages();
      return;
    }
    if (!on && this.active !== undefined) throw new Errno('EINVAL', `${this.device.name} has interrupts of index ${this.active} enabled`);
    if (data.kind === 'eventfd') {
      if (!on) this.enableMessages(index, start, count);
      if (start >= this.triggers.length || start + count > this.triggers.length) {
        throw new Errno('EINVAL', `${this.device.name} has ${this.triggers.length} vectors enabled; their number is fixed`);
      }
      data.fds.forEach((fd, i) => (this.triggers[start + i] = fd));
      return;
    }
    if (!on || start + count > this.triggers.length) throw new Errno('EINVAL', `${this.device.name} has ${on ? this.triggers.length : 'no'} vectors of index ${index} enabled`);
    for (let i = 0; i < count; i++) if (data.kind === 'none' || data.values[i] === true) this.triggers[start + i]?.signal();
  }

  private enableMessages(index: number, start: number, count: number): void {
    const { device } = this;
    if (count === 0) throw new Errno('EINVAL', `no vector of ${device.name} is asked for`);
    const triggers: (EventFd | undefined)[] = Array.from({ length: start + count }, () => undefined);
    const handlers = triggers.map((_, i) => () => this.triggers[i]?.signal());
    const msix = index === PCI_MSIX_IRQ;
    const name = `vfio-msi${msix ? 'x' : ''}(${device.name})`;
    this.surroundings.withMemory(() => (msix ? device.allocIrqs(name, handlers) : device.allocMsi(name, handlers)));
    this.triggers = triggers;
    this.active = msix ? PCI_MSIX_IRQ : PCI_MSI_IRQ;
  }

  private disableMessages(): void {
    this.surroundings.withMemory(() => this.device.freeIrqs());
    this.triggers = [];
    this.active = undefined;
    // freeing lets INTx again; the user's word stands
    if (this.maskable && this.surroundings.virtualDisable) this.device.intx(false);
  }

  // ---- errors and requests

  private setSingle({ index, count, data }: VfioIrqSet): void {
    const current = index === PCI_ERR_IRQ ? this.errTrigger : this.reqTrigger;
    if (data.kind === 'none' && current !== undefined) {
      if (count > 0) current.signal();
      else this.keepSingle(index, undefined);
      return;
    }
    if (data.kind === 'none' || count === 0) throw new Errno('EINVAL', `no eventfd for index ${index} of ${this.device.name}`);
    if (data.kind === 'eventfd') this.keepSingle(index, data.fds[0]);
    else if (data.values[0] === true) current?.signal();
  }

  private keepSingle(index: number, trigger: EventFd | undefined): void {
    if (index === PCI_ERR_IRQ) this.errTrigger = trigger;
    else this.reqTrigger = trigger;
  }
}
