/**
 * The page request interface of a physical function, which its virtual functions share: the registers of the PRI
 * extended capability and the credits behind them (PCIe 6.0 section 10.5.2; requirements 3.4, 7.1, 7.2).
 * Outstanding requests never exceed the allocation that software wrote; who asks for more waits (back-pressure).
 */
import { assert } from '../../../sim/assert.js';
import {
  PCI_EXT_CAP_ID_PRI, PCI_EXT_CAP_PRI_SIZEOF, PCI_PRI_ALLOC_REQ, PCI_PRI_CTRL, PCI_PRI_CTRL_ENABLE, PCI_PRI_CTRL_RESET,
  PCI_PRI_MAX_REQ, PCI_PRI_STATUS, PCI_PRI_STATUS_PASID, PCI_PRI_STATUS_RF, PCI_PRI_STATUS_STOPPED, PCI_PRI_STATUS_UPRGI,
} from '../spec/index.js';
import type { ConfigSpace } from './config-space.js';

export interface PageRequestOptions {
  /** Outstanding page request capacity. */
  readonly maxRequests: number;
  /** The function expects the request's PASID in the response (status bit 15). */
  readonly prgResponsePasidRequired: boolean;
}

/**
 * `enabled`, `disabled`: the enable bit changed. `reset`: pending requests are forgotten. `failed`: a response
 * failure stopped the interface. `credit`: credits came back.
 */
export type PageRequestEvent = 'enabled' | 'disabled' | 'reset' | 'failed' | 'credit';

export class PageRequestInterface {
  /** Offset of the capability. */
  readonly offset: number;
  readonly maxRequests: number;
  readonly prgResponsePasidRequired: boolean;
  enabled = false;
  /** A response failure arrived since the interface was enabled: nothing is requested until it is enabled anew. */
  failed = false;
  /** Page requests without a response. */
  outstanding = 0;
  /** Highest value of `outstanding` ever. */
  peak = 0;
  private readonly config: ConfigSpace;
  private readonly listeners: ((event: PageRequestEvent) => void)[] = [];
  private readonly ignoreAllocation: boolean;

  constructor(config: ConfigSpace, options: PageRequestOptions, ignoreAllocation = false) {
    this.config = config;
    this.maxRequests = options.maxRequests;
    this.prgResponsePasidRequired = options.prgResponsePasidRequired;
    this.ignoreAllocation = ignoreAllocation;
    const at = config.addExtCapability(PCI_EXT_CAP_ID_PRI, 1, PCI_EXT_CAP_PRI_SIZEOF);
    this.offset = at;
    // the reset bit is a command: it reads as zero and reaches the hook
    config.define(at + PCI_PRI_CTRL, 2, 0, { rw: PCI_PRI_CTRL_ENABLE });
    const status = PCI_PRI_STATUS_STOPPED | (options.prgResponsePasidRequired ? PCI_PRI_STATUS_PASID : 0);
    config.define(at + PCI_PRI_STATUS, 2, status, { w1c: PCI_PRI_STATUS_RF | PCI_PRI_STATUS_UPRGI });
    config.define(at + PCI_PRI_MAX_REQ, 4, options.maxRequests);
    config.define(at + PCI_PRI_ALLOC_REQ, 4, 0, { rw: 0xffff_ffff });
    config.onWrite(at + PCI_PRI_CTRL, 2, (written, previous) => this.writeControl(written, previous));
  }

  /** Outstanding page request allocation, never above the capacity. */
  get allocation(): number {
    return this.ignoreAllocation ? Infinity : this.allocated;
  }

  /** What software wrote, whatever the device makes of it. */
  get allocated(): number {
    return Math.min(this.maxRequests, this.config.get(this.offset + PCI_PRI_ALLOC_REQ, 4));
  }

  /** True while requests may be sent at all. */
  get active(): boolean {
    return this.enabled && !this.failed;
  }

  get status(): number {
    return this.config.get(this.offset + PCI_PRI_STATUS, 2);
  }

  listen(listener: (event: PageRequestEvent) => void): void {
    this.listeners.push(listener);
  }

  /** Takes `count` credits; false when the allocation does not have them now. */
  take(count: number): boolean {
    if (!this.active || this.outstanding + count > this.allocation) return false;
    this.outstanding += count;
    if (this.outstanding > this.peak) this.peak = this.outstanding;
    return true;
  }

  /** Credits of an answered group come back. */
  give(count: number): void {
    assert(count <= this.outstanding, `${count} page request credits returned, ${this.outstanding} outstanding`);
    this.outstanding -= count;
    if (!this.enabled && this.outstanding === 0) this.setStatus(PCI_PRI_STATUS_STOPPED, true);
    this.notify('credit');
  }

  /** A response that matches no outstanding group (requirements 3.4). */
  unexpectedResponse(): void {
    this.setStatus(PCI_PRI_STATUS_UPRGI, true);
  }

  /** Response Failure: no further responses are expected, nothing more is requested (section 10.5.2.3). */
  responseFailure(): void {
    this.setStatus(PCI_PRI_STATUS_RF, true);
    this.failed = true;
    this.outstanding = 0;
    this.notify('failed');
  }

  /** After the function's configuration bytes were reset. */
  functionReset(): void {
    this.enabled = false;
    this.failed = false;
    this.outstanding = 0;
    this.notify('reset');
  }

  private setStatus(mask: number, on: boolean): void {
    this.config.setBits(this.offset + PCI_PRI_STATUS, 2, mask, on);
  }

  private writeControl(written: number, previous: number): void {
    const enable = (written & PCI_PRI_CTRL_ENABLE) !== 0;
    const was = (previous & PCI_PRI_CTRL_ENABLE) !== 0;
    this.enabled = enable;
    if (enable && !was) {
      // a rising enable clears all status flags (section 10.5.2.2)
      this.setStatus(PCI_PRI_STATUS_STOPPED | PCI_PRI_STATUS_RF | PCI_PRI_STATUS_UPRGI, false);
      this.failed = false;
      this.notify('enabled');
    } else if (!enable) {
      if ((written & PCI_PRI_CTRL_RESET) !== 0) {
        this.outstanding = 0;
        this.notify('reset');
      }
      this.setStatus(PCI_PRI_STATUS_STOPPED, this.outstanding === 0);
      if (was) this.notify('disabled');
    }
  }

  private notify(event: PageRequestEvent): void {
    for (const listener of this.listeners) listener(event);
  }
}
