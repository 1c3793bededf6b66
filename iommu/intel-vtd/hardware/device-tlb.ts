/**
 * Invalidation requests to device TLBs (PCIe 6.0 section 10.3; VT-d rev 4.1, section 4.2 and 6.5.2.5): at most 32 are outstanding
 * for one device, each with a tag of its own; further ones wait inside, in order (flow 2e step 6). A request that
 * is not completed in time, or whose device cannot be reached, ends as timed out; whether that means a device that
 * was removed is for software to find out (E39). So does one for which there is no room.
 */
import type { Alarm, Clock } from '../../../sim/clock.js';
import type { FunctionRouter } from '../../../host/pci/dma-port.js';
import type { DeviceTlbResult } from './back-end.js';

/** Tags of one device (ITag has 5 bits). */
const TAGS = 32;
/** Requests that wait for tags, of all devices. A queue brings fewer; one that is switched off and on again brings them anew. */
const MAX_WAITING = 4096;

interface Request {
  readonly page: number;
  readonly pages: number;
  readonly pasid: number;
  readonly global: boolean;
  readonly done: (result: DeviceTlbResult) => void;
  deadlineNs: number;
}

interface Device {
  readonly outstanding: (Request | undefined)[];
  count: number;
  nextTag: number;
  readonly waiting: Request[];
}

export class DeviceTlbInvalidations {
  private readonly clock: Clock;
  private readonly router: FunctionRouter;
  private readonly timeoutNs: number;
  private readonly devices = new Map<number, Device>();
  /** Requests that devices have not completed. */
  outstanding = 0;
  private waiting = 0;
  private alarm: Alarm | undefined;

  constructor(clock: Clock, router: FunctionRouter, timeoutNs: number) {
    this.clock = clock;
    this.router = router;
    this.timeoutNs = timeoutNs;
  }

  /** Sends a request, now or when a tag is free. `done` is called once, never from inside. */
  send(sourceId: number, pasid: number, page: number, pages: number, global: boolean, done: (result: DeviceTlbResult) => void): void {
    let device = this.devices.get(sourceId);
    if (device === undefined) {
      device = { outstanding: Array.from({ length: TAGS }, () => undefined), count: 0, nextTag: 0, waiting: [] };
      this.devices.set(sourceId, device);
    }
    const request: Request = { page, pages, pasid, global, done, deadlineNs: 0 };
    if (device.count < TAGS) {
      this.issue(sourceId, device, request);
    } else if (this.waiting < MAX_WAITING) {
      this.waiting++;
      device.waiting.push(request);
    } else {
      this.clock.post(this.timeoutNs, () => done('timed-out'));
    }
  }

  /** A completion from a device; false when nothing with that tag is outstanding. */
  complete(sourceId: number, tag: number): boolean {
    const device = this.devices.get(sourceId);
    const request = device?.outstanding[tag];
    if (device === undefined || request === undefined) return false;
    this.end(sourceId, device, tag, request, 'completed');
    return true;
  }

  private issue(sourceId: number, device: Device, request: Request): void {
    // tags go round, so that a completion that comes after its time-out rarely meets its tag in use again
    let tag = device.nextTag;
    while (device.outstanding[tag] !== undefined) tag = (tag + 1) % TAGS;
    device.nextTag = (tag + 1) % TAGS;
    device.outstanding[tag] = request;
    device.count++;
    this.outstanding++;
    request.deadlineNs = this.clock.now + this.timeoutNs;
    this.alarm ??= this.clock.at(request.deadlineNs, () => this.ring());
    // nobody there: no answer will come, the time-out ends it
    this.router.invalidate(sourceId, tag, request.page, request.pages, request.pasid, request.global);
  }

  private end(sourceId: number, device: Device, tag: number, request: Request, result: DeviceTlbResult): void {
    device.outstanding[tag] = undefined;
    device.count--;
    this.outstanding--;
    const next = device.waiting.shift();
    if (next !== undefined) {
      this.waiting--;
      this.issue(sourceId, device, next);
    }
    if (this.outstanding === 0) {
      this.alarm?.cancel();
      this.alarm = undefined;
    }
    request.done(result);
  }

  /** One alarm serves all requests: it ends those whose time is over and waits for the next deadline. */
  private ring(): void {
    this.alarm = undefined;
    const over: (() => void)[] = [];
    let nextNs = Infinity;
    for (const [sourceId, device] of this.devices) {
      device.outstanding.forEach((request, tag) => {
        if (request === undefined) return;
        if (request.deadlineNs <= this.clock.now) over.push(() => this.end(sourceId, device, tag, request, 'timed-out'));
        else nextNs = Math.min(nextNs, request.deadlineNs);
      });
    }
    if (nextNs !== Infinity) this.alarm = this.clock.at(nextNs, () => this.ring());
    for (const end of over) end();
  }
}
