/**
 * Eventfds that a client gave for a device's interrupts (VFIO_USER_DEVICE_SET_IRQS). The device gets an `EventFd` for
 * each: those of a trigger pass the device's signals on to the client's, those of mask and unmask pass the client's
 * signals to the device, as in the kernel. What the device refuses is closed again; what is replaced or torn down is
 * closed once the device has let it go.
 */
import { hex } from '../../sim/address.js';
import { Errno, isErrno } from '../../sim/errno.js';
import { load32 } from '../../sim/little-endian.js';
import type { Scheduler, Steps } from '../../sim/task.js';
import { EventFd } from '../../host/eventfd.js';
import type { VfioDeviceOps, VfioIrqSet } from '../device.js';
import {
  IRQ_SET, VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_BOOL,
  VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_DATA_TYPE_MASK,
} from '../uapi/device.js';
import { checkArgsz } from './protocol/records.js';
import type { ReceivedDescriptor, RemoteSignal } from './transport.js';

/** Interrupts of one index; MSI-X has at most 2048. */
const MAX_INTERRUPTS = 2048;
const ACTIONS: readonly VfioIrqSet['action'][] = ['mask', 'unmask', 'trigger'];

interface Wire {
  readonly eventFd: EventFd;
  readonly signal: RemoteSignal;
}

export class ClientInterrupts {
  private readonly ops: VfioDeviceOps;
  private readonly scheduler: Scheduler;
  /** By index, action and number of the interrupt. */
  private readonly wires = new Map<number, Wire>();

  constructor(ops: VfioDeviceOps, scheduler: Scheduler) {
    this.ops = ops;
    this.scheduler = scheduler;
  }

  /** Eventfds of the client that are in use. */
  get wired(): number {
    return this.wires.size;
  }

  /**
   * Carries out a request. EINVAL length, argsz, index, range, flags, number or kind of descriptors; ENOTTY not one
   * action; what the device refuses.
   */
  *set(payload: Uint8Array, descriptors: ReceivedDescriptor[]): Steps {
    const request = this.decode(payload);
    const { index, start, count, action } = request;
    if (request.data.kind !== 'eventfd') {
      if (descriptors.length > 0) throw new Errno('EINVAL', `SET_IRQS: ${descriptors.length} descriptors with data that needs none`);
      yield* this.ops.setIrqs(request);
      if (action === 'trigger' && count === 0) this.drop((key) => indexOf(key) === index);
      return;
    }
    if (descriptors.length !== 0 && descriptors.length !== count) throw new Errno('EINVAL', `SET_IRQS: ${descriptors.length} descriptors for ${count} interrupts`);
    const wires = this.wire(request, descriptors);
    try {
      yield* this.ops.setIrqs({ ...request, data: { kind: 'eventfd', fds: Array.from({ length: count }, (_, i) => wires[i]?.eventFd) } });
    } catch (error) {
      for (const wire of wires) wire.signal.close();
      throw error;
    }
    for (let i = 0; i < count; i++) this.keep(keyOf(index, action, start + i), wires[i]);
  }

  /** The client is gone: nothing signals it any more, and its descriptors are closed. */
  *tearDown(): Steps {
    const indices = new Set([...this.wires.keys()].map(indexOf));
    for (const index of [...indices].toSorted((a, b) => a - b)) {
      try {
        yield* this.ops.setIrqs({ index, start: 0, count: 0, action: 'trigger', data: { kind: 'none' } });
      } catch (error) {
        // it is not enabled any more, after a reset
        if (!isErrno(error)) throw error;
      }
    }
    this.drop(() => true);
  }

  /** Checks as drivers/vfio/vfio_main.c vfio_set_irqs_validate_and_prepare. */
  private decode(payload: Uint8Array): VfioIrqSet {
    const argsz = checkArgsz(payload, IRQ_SET.sizeBytes, 'SET_IRQS');
    const flags = load32(payload, 4), index = load32(payload, 8), start = load32(payload, 12), count = load32(payload, 16);
    if (argsz > payload.length) throw new Errno('EINVAL', `SET_IRQS: argsz ${argsz}, the payload has ${payload.length} bytes`);
    if ((flags & ~(VFIO_IRQ_SET_DATA_TYPE_MASK | VFIO_IRQ_SET_ACTION_TYPE_MASK)) !== 0) throw new Errno('EINVAL', `SET_IRQS: flags ${hex(flags)}`);
    const { irqs } = this.ops.info();
    if (index >= irqs) throw new Errno('EINVAL', `SET_IRQS: interrupt index ${index} of ${irqs}`);
    const available = Math.min(this.ops.irqInfo(index).count, MAX_INTERRUPTS);
    if (start >= available || start + count > available) throw new Errno('EINVAL', `SET_IRQS: interrupts [${start}, ${start + count}) of index ${index}, which has ${available}`);
    return { index, start, count, action: actionOf(flags), data: dataOf(flags, payload.subarray(IRQ_SET.sizeBytes, argsz), count) };
  }

  /** All of them, or none and every descriptor is left to who brought it. */
  private wire({ index, start, action }: VfioIrqSet, descriptors: ReceivedDescriptor[]): Wire[] {
    const wires: Wire[] = [];
    try {
      while (descriptors.length > 0) {
        const signal = descriptors[0]!.openSignal();
        descriptors.shift();
        const eventFd = new EventFd(this.scheduler, `${this.ops.name} ${action} ${index}.${start + wires.length}`);
        if (action === 'trigger') {
          eventFd.listen(() => {
            if (eventFd.count > 0) signal.signal(eventFd.read());
          });
        } else {
          signal.listen(() => eventFd.signal());
        }
        wires.push({ eventFd, signal });
      }
    } catch (error) {
      for (const wire of wires) wire.signal.close();
      throw error;
    }
    return wires;
  }

  private keep(key: number, wire: Wire | undefined): void {
    this.wires.get(key)?.signal.close();
    if (wire === undefined) this.wires.delete(key);
    else this.wires.set(key, wire);
  }

  private drop(which: (key: number) => boolean): void {
    for (const [key, wire] of this.wires) {
      if (!which(key)) continue;
      wire.signal.close();
      this.wires.delete(key);
    }
  }
}

function keyOf(index: number, action: VfioIrqSet['action'], subindex: number): number {
  return (index * ACTIONS.length + ACTIONS.indexOf(action)) * MAX_INTERRUPTS + subindex;
}

function indexOf(key: number): number {
  return Math.floor(key / MAX_INTERRUPTS / ACTIONS.length);
}

function actionOf(flags: number): VfioIrqSet['action'] {
  switch (flags & VFIO_IRQ_SET_ACTION_TYPE_MASK) {
    case VFIO_IRQ_SET_ACTION_MASK: return 'mask';
    case VFIO_IRQ_SET_ACTION_UNMASK: return 'unmask';
    case VFIO_IRQ_SET_ACTION_TRIGGER: return 'trigger';
    default: throw new Errno('ENOTTY', `SET_IRQS: flags ${hex(flags)} name not one action`);
  }
}

function dataOf(flags: number, data: Uint8Array, count: number): VfioIrqSet['data'] {
  switch (flags & VFIO_IRQ_SET_DATA_TYPE_MASK) {
    case VFIO_IRQ_SET_DATA_NONE: return { kind: 'none' };
    case VFIO_IRQ_SET_DATA_BOOL:
      if (data.length < count) throw new Errno('EINVAL', `SET_IRQS: ${data.length} bytes of data for ${count} interrupts`);
      return { kind: 'bool', values: [...data.subarray(0, count)].map((value) => value !== 0) };
    case VFIO_IRQ_SET_DATA_EVENTFD: return { kind: 'eventfd', fds: [] };
    default: throw new Errno('EINVAL', `SET_IRQS: flags ${hex(flags)} name not one kind of data`);
  }
}
