/**
 * The physical portal page of a queue in the hands of a mediated device's user: what the user's processor stores there goes
 * to the hardware. A dedicated queue takes 64-byte posted writes. A shared queue is others' too: it takes enqueues only, and
 * only those that carry the PASID of the mediated device's aux domain, which the (virtual) processor put there.
 */
import { load32 } from '../../../sim/little-endian.js';
import type { AccessSize, EnqueueResult, Mmio } from '../../../sim/mmio.js';
import { PORTAL_LIMITED, PORTAL_SIZE, PORTALS_PER_WQ } from '../spec/registers.js';
import type { QueueLease } from './queue-lease.js';

const PASID_MASK = 0xf_ffff;

export interface PortalUser {
  /** False while the queue must not be reached: halted, or being reset. */
  readonly reachesQueue: boolean;
  /** A plain store to a shared portal. */
  postedToShared(): void;
  /** An enqueue under a PASID that is not the mediated device's. */
  foreignPasid(pasid: number): void;
}

export class VdsaPortal implements Mmio {
  high = 0;
  /** The user's mapping is gone: nothing that is done here reaches anybody. */
  unmapped = false;
  private readonly lease: QueueLease;
  private readonly user: PortalUser;
  private readonly base: number;
  private readonly trustsPasid: boolean;
  private readonly passesPosted: boolean;

  /** `defects`: `vdsa.guest-pasid-trusted`, `vdsa.posted-to-shared` */
  constructor(lease: QueueLease, user: PortalUser, defects: ReadonlySet<string>) {
    this.lease = lease;
    this.user = user;
    this.base = (lease.wq.index * PORTALS_PER_WQ + PORTAL_LIMITED) * PORTAL_SIZE;
    this.trustsPasid = defects.has('vdsa.guest-pasid-trusted');
    this.passesPosted = defects.has('vdsa.posted-to-shared');
  }

  /** Portals read as ones. */
  read(_offset: number, size: AccessSize): number {
    this.high = size === 8 ? 0xffff_ffff : 0;
    return size === 1 ? 0xff : size === 2 ? 0xffff : 0xffff_ffff;
  }

  write(offset: number, size: AccessSize, lo: number, hi?: number): void {
    if (this.takesPosted()) this.lease.device.portalWindow.write(this.base + offset, size, lo, hi);
  }

  write64(offset: number, bytes: Uint8Array): void {
    if (this.takesPosted()) this.lease.device.portalWindow.write64(this.base + offset, bytes);
  }

  enqueue64(offset: number, bytes: Uint8Array): EnqueueResult {
    const { lease, user } = this;
    if (this.unmapped || !user.reachesQueue || !lease.accepts) return 'retry';
    if (!lease.wq.dedicated && !this.trustsPasid) {
      const pasid = load32(bytes, 0) & PASID_MASK;
      if (pasid !== lease.pasid) {
        user.foreignPasid(pasid);
        return 'retry';
      }
    }
    return lease.device.portalWindow.enqueue64(this.base + offset, bytes);
  }

  private takesPosted(): boolean {
    if (this.unmapped || !this.user.reachesQueue) return false;
    if (this.lease.wq.dedicated || this.passesPosted) return true;
    this.user.postedToShared();
    return false;
  }
}
