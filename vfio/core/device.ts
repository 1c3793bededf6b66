/**
 * A device that a driver has registered (drivers/vfio/vfio_main.c): how often it is open, and the wait of its driver
 * until nobody has it open any more (C17).
 */
import { Mutex, WaitQueue, type Steps } from '../../sim/task.js';
import type { VfioRegistration } from '../device.js';
import type { VfioContext } from './context.js';
import type { VfioGroup } from './group.js';

/** Between two requests to the user to let the device go. */
const REQUEST_INTERVAL_NS = 10_000_000_000;

export class RegisteredDevice {
  readonly registration: VfioRegistration;
  readonly group: VfioGroup;
  /** Files of the device, and opens on their way. */
  users = 0;
  /** Its driver waits for the end of `users`. */
  leaving = false;
  private opened = 0;
  private readonly context: VfioContext;
  /** Serializes the driver's `open` and `close` (`dev_set->lock`). */
  private readonly lock: Mutex;
  private readonly unused: WaitQueue;

  constructor(registration: VfioRegistration, group: VfioGroup, context: VfioContext) {
    this.registration = registration;
    this.group = group;
    this.context = context;
    this.lock = new Mutex(context.scheduler, `vfio_device ${registration.ops.name}`);
    this.unused = new WaitQueue(context.scheduler, `release of ${registration.ops.name}`);
  }

  get name(): string {
    return this.registration.ops.name;
  }

  /** One more descriptor; the first one opens the device. What the driver refuses changes nothing. */
  *open(): Steps {
    yield* this.lock.with(() => this.openLocked());
  }

  private *openLocked(): Steps {
    if (this.opened === 0) {
      yield* this.registration.ops.open();
      this.context.trace.deviceEvent('open', this.name, this.group.id);
    }
    this.opened++;
  }

  /** One descriptor less; the last one closes the device (C18). */
  *close(): Steps {
    yield* this.lock.with(() => this.closeLocked());
  }

  private *closeLocked(): Steps {
    if (this.opened === 1) {
      yield* this.registration.ops.close();
      this.context.trace.deviceEvent('close', this.name, this.group.id);
    }
    this.opened--;
  }

  /** The end of one of `users`. */
  putUser(): void {
    if (--this.users === 0) this.unused.wakeAll();
  }

  /** C17: asks for the device at once and then every 10 s, until no descriptor is left. */
  *waitUnused(): Steps {
    const { log, scheduler, trace, unregisterDoesNotWait } = this.context;
    for (let count = 0; this.users > 0 && !unregisterDoesNotWait; count++) {
      trace.request(this.name, count);
      this.registration.ops.request(count);
      if (count === 0) log.log('warn', `${this.name}: Device is currently in use, task "${scheduler.current?.name ?? ''}" blocked until device is released`);
      yield* this.unused.untilOrTimeout(() => this.users === 0, REQUEST_INTERVAL_NS);
    }
  }
}
