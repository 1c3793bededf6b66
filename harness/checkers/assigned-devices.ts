/** Devices in the hands of users: what becomes of them while somebody has them open, and while nobody has. */
import { hex } from '../../sim/address.js';
import { VFIO_DEVICE_STATE_RESUMING, VFIO_DEVICE_STATE_STOP, VFIO_DEVICE_STATE_STOP_COPY } from '../../vfio/uapi/migration.js';
import { Checker, type SourceOf } from './invariant.js';

type Text = (id: number) => string;

/** What a user has open neither goes nor leaves its container (C3, C13, C17, E31). */
export class OpenDevicesStay extends Checker {
  readonly name = 'a device goes only after its user has closed it';
  readonly kinds = ['vfio:open_device', 'vfio:close_device', 'vfio:unregister', 'vfio:group_unset_container', 'mdev:remove'];
  /** Groups of open devices, by the device's name. */
  private readonly open = new Map<number, number>();
  private readonly text: Text;

  /** @param text an interned string */
  constructor(text: Text) {
    super();
    this.text = text;
  }

  observe(kind: string, value: (argument: string) => number): void {
    switch (kind) {
      case 'vfio:open_device': return void this.open.set(value('device'), value('group'));
      case 'vfio:close_device': return void this.open.delete(value('device'));
      case 'vfio:group_unset_container': return this.left(value('group'), value('container'));
      case 'vfio:unregister': return this.gone(value('device'), 'was taken back');
      case 'mdev:remove': return this.gone(value('uuid'), 'was ended by its parent');
    }
  }

  private gone(device: number, how: string): void {
    this.checked++;
    if (this.open.has(device)) this.violate(`${this.text(device)} ${how} while its user had it open`);
  }

  private left(group: number, container: number): void {
    this.checked++;
    for (const [device, of] of this.open) if (of === group) this.violate(`group ${group} left container ${container} while ${this.text(device)} was open`);
  }
}

/** A UUID names one mediated device, whichever its parent (C12, E34). */
export class UuidsUnique extends Checker {
  readonly name = 'a UUID names one mediated device';
  readonly kinds = ['mdev:create', 'mdev:remove'];
  /** Parents by UUID. */
  private readonly parents = new Map<number, number>();
  private readonly text: Text;

  /** @param text an interned string */
  constructor(text: Text) {
    super();
    this.text = text;
  }

  observe(kind: string, value: (argument: string) => number): void {
    const uuid = value('uuid');
    if (kind === 'mdev:remove') return void this.parents.delete(uuid);
    this.checked++;
    const other = this.parents.get(uuid);
    if (other !== undefined) this.violate(`${this.text(uuid)} was made under ${this.text(value('parent'))}, it is there under ${this.text(other)}`);
    this.parents.set(uuid, value('parent'));
  }
}

/** A function that its user has closed does no DMA until somebody else takes it (C18). */
export class SilentWhileClosed extends Checker {
  readonly name = 'bus mastering is off when a user has closed a device';
  readonly kinds = ['vfio:close_device'];
  private readonly sourceOf: SourceOf;
  private readonly busMaster: (source: number) => boolean;

  /** @param busMaster whether a function may do DMA now; false for one that is not there */
  constructor(sourceOf: SourceOf, busMaster: (source: number) => boolean) {
    super();
    this.sourceOf = sourceOf;
    this.busMaster = busMaster;
  }

  observe(_kind: string, value: (argument: string) => number): void {
    const source = this.sourceOf(value('device'));
    // a mediated device has no bus mastering of its own
    if (source === undefined) return;
    this.checked++;
    if (this.busMaster(source)) this.violate(`device ${hex(source)} may do DMA after its user has closed it`);
  }
}

const STOPPED: readonly number[] = [VFIO_DEVICE_STATE_STOP, VFIO_DEVICE_STATE_STOP_COPY, VFIO_DEVICE_STATE_RESUMING];

/** A device that was stopped for its migration finishes nothing until it runs again (include/uapi/linux/vfio.h, VFIO_DEVICE_STATE_STOP). */
export class StoppedDevicesAreQuiet extends Checker {
  readonly name = 'a stopped device moves nothing';
  readonly kinds = ['vfio:mig_state', 'mtty:dma_end'];
  private readonly stopped = new Set<number>();
  private readonly text: Text;

  /** @param text an interned string */
  constructor(text: Text) {
    super();
    this.text = text;
  }

  observe(kind: string, value: (argument: string) => number): void {
    const device = value('device');
    this.checked++;
    if (kind === 'vfio:mig_state') {
      if (STOPPED.includes(value('to'))) this.stopped.add(device);
      else this.stopped.delete(device);
    } else if (value('error') === 0 && this.stopped.has(device)) {
      // with an error it was refused or aborted
      this.violate(`${this.text(device)} finished a transfer of ${value('done')} bytes though it was stopped`);
    }
  }
}
