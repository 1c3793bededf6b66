/**
 * The card's interrupts as its user gets them: INTx or MSI with one vector through an eventfd, never both
 * (`mtty_set_irqs` of samples/vfio-mdev/mtty.c, v6.12, which also gives the errnos), and on parents that can unplug a
 * device in use the request index. INTx is a level: its eventfd is signalled once and masked until the user unmasks it,
 * and again right then if the level is still high (the sample forgets that). MSI is signalled for each new cause.
 */
import { Errno } from '../../../sim/errno.js';
import type { EventFd } from '../../../host/eventfd.js';
import {
  IRQ_INFO_AUTOMASKED, IRQ_INFO_EVENTFD, IRQ_INFO_MASKABLE, IRQ_INFO_NORESIZE, PCI_INTX_IRQ, PCI_MSI_IRQ, PCI_NUM_IRQS, PCI_REQ_IRQ,
  type VfioIrqInfo, type VfioIrqSet,
} from '../../../vfio/device.js';

const NAMES = ['INTx', 'MSI', 'MSI-X', 'error', 'request'];

export interface MttyInterruptsOptions {
  readonly name: string;
  readonly hotUnplug: boolean;
  /** INTX_DISABLE of the command register. */
  readonly intxDisabled: () => boolean;
  /** Told of every signal, with its index. */
  readonly signalled: (index: number) => void;
}

export class MttyInterrupts {
  private readonly options: MttyInterruptsOptions;
  /** The index that has an eventfd: INTx or MSI. */
  private index: number | undefined;
  private eventFd: EventFd | undefined;
  private requestFd: EventFd | undefined;
  private masked = false;
  /** CAUSE_* bits of each port, DMA above them. */
  private readonly causes: number[];

  constructor(ports: number, options: MttyInterruptsOptions) {
    this.options = options;
    this.causes = Array.from({ length: ports }, () => 0);
  }

  /** A port asserts its interrupt. */
  get level(): boolean {
    return this.causes.some((causes) => causes !== 0);
  }

  /** What a port has pending now. */
  update(port: number, causes: number): void {
    const fresh = causes & ~this.causes[port]!;
    this.causes[port] = causes;
    if (this.index === PCI_MSI_IRQ) {
      if (fresh !== 0) this.signal(this.eventFd!);
    } else this.updateIntx();
  }

  /** The level, or what gates it, may have changed. */
  updateIntx(): void {
    if (this.index !== PCI_INTX_IRQ || this.masked || !this.level || this.options.intxDisabled()) return;
    this.masked = true;
    this.signal(this.eventFd!);
  }

  /** Somebody wants the device back. @returns false when the user cannot be told */
  request(): boolean {
    if (this.requestFd === undefined) return false;
    this.signal(this.requestFd, PCI_REQ_IRQ);
    return true;
  }

  /** EINVAL an index that the card lacks. */
  info(index: number): VfioIrqInfo {
    if (index === PCI_INTX_IRQ) return { flags: IRQ_INFO_EVENTFD | IRQ_INFO_MASKABLE | IRQ_INFO_AUTOMASKED, count: 1 };
    if (index === PCI_MSI_IRQ || (index === PCI_REQ_IRQ && this.options.hotUnplug)) return { flags: IRQ_INFO_EVENTFD | IRQ_INFO_NORESIZE, count: 1 };
    throw new Errno('EINVAL', `${this.options.name} has no ${NAMES[index] ?? 'such'} interrupt`);
  }

  /** EINVAL another index is in use, a range other than the one interrupt, nothing to trigger; ENOTTY what this card cannot do. */
  set(request: VfioIrqSet): void {
    const { index } = request;
    if (!(index >= 0 && index < PCI_NUM_IRQS)) throw this.invalid(request, 'no such index');
    if (index === PCI_INTX_IRQ && request.action !== 'trigger') this.mask(request, request.action === 'mask');
    else if (index === PCI_INTX_IRQ || index === PCI_MSI_IRQ) this.trigger(request);
    else if (index === PCI_REQ_IRQ && this.options.hotUnplug) this.setRequest(request);
    else throw new Errno('ENOTTY', `${this.options.name} has no ${NAMES[index]!} interrupt`);
  }

  /** No eventfd is signalled any more; causes stay. */
  tearDown(): void {
    this.disable();
    this.requestFd = undefined;
  }

  private mask(request: VfioIrqSet, masked: boolean): void {
    if (this.index !== PCI_INTX_IRQ) throw this.invalid(request, 'INTx is not in use');
    if (request.start !== 0 || request.count !== 1) throw this.invalid(request, 'there is one interrupt');
    if (request.data.kind === 'eventfd') throw new Errno('ENOTTY', `${this.options.name} takes no eventfd to mask or unmask`);
    if (request.data.kind === 'bool' && request.data.values[0] !== true) return;
    this.masked = masked;
    this.updateIntx();
  }

  private trigger(request: VfioIrqSet): void {
    const { index, data } = request;
    if (index === PCI_MSI_IRQ && request.action !== 'trigger') throw new Errno('ENOTTY', `${this.options.name} cannot mask MSI`);
    const mine = this.index === index;
    if (mine && request.count === 0 && data.kind === 'none') return this.disable();
    if (!mine && this.index !== undefined) throw this.invalid(request, `${NAMES[this.index]!} is in use`);
    if (request.start !== 0 || request.count !== 1) throw this.invalid(request, 'there is one interrupt');
    if (data.kind === 'eventfd') {
      this.disable();
      const [fd] = data.fds;
      if (fd === undefined) return;
      this.index = index;
      this.eventFd = fd;
      // what is pending already would never be a new cause
      if (index === PCI_MSI_IRQ && this.level) this.signal(fd);
      this.updateIntx();
      return;
    }
    if (!mine) throw this.invalid(request, 'no eventfd is set');
    if (data.kind === 'none' || data.values[0] === true) this.loopback(index);
  }

  /** The user triggers its own interrupt. */
  private loopback(index: number): void {
    if (index === PCI_INTX_IRQ) {
      if (this.masked) return;
      this.masked = true;
    }
    this.signal(this.eventFd!);
  }

  private setRequest(request: VfioIrqSet): void {
    const { data } = request;
    if (request.action !== 'trigger') throw this.invalid(request, 'it cannot be masked');
    if (request.count === 0 && data.kind === 'none') {
      this.requestFd = undefined;
      return;
    }
    if (request.start !== 0 || request.count !== 1) throw this.invalid(request, 'there is one interrupt');
    if (data.kind === 'eventfd') this.requestFd = data.fds[0];
    else if (data.kind === 'none' || data.values[0] === true) this.request();
  }

  private disable(): void {
    this.index = undefined;
    this.eventFd = undefined;
    this.masked = false;
  }

  private signal(eventFd: EventFd, index = this.index!): void {
    this.options.signalled(index);
    eventFd.signal();
  }

  private invalid({ index }: VfioIrqSet, why: string): Errno {
    return new Errno('EINVAL', `${NAMES[index] ?? 'interrupt'} of ${this.options.name}: ${why}`);
  }
}
