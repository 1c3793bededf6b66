/**
 * VFIO_DEVICE_SET_IRQS: from bytes to a request, with the rules that every driver shares
 * (drivers/vfio/vfio_main.c vfio_set_irqs_validate_and_prepare). Descriptors are looked up before anything changes.
 */
import { hex } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import { load32 } from '../../sim/little-endian.js';
import type { Steps } from '../../sim/task.js';
import { EventFd } from '../../host/eventfd.js';
import type { Process } from '../../host/process.js';
import type { VfioIrqInfo, VfioIrqSet } from '../device.js';
import {
  IRQ_SET, VFIO_IRQ_SET_ACTION_MASK, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_ACTION_TYPE_MASK, VFIO_IRQ_SET_ACTION_UNMASK, VFIO_IRQ_SET_DATA_BOOL,
  VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_IRQ_SET_DATA_TYPE_MASK,
} from '../uapi/device.js';
import { checkFlags, copyFromUser, recordFromUser } from '../uapi/user-memory.js';

const U32_MAX = 0xffff_ffff;

/**
 * @param irqs number of indices; `irqInfo` says how many interrupts an index has
 * @throws Errno EFAULT; EBADF; EINVAL argsz, index, range, flags, data that argsz does not hold, no eventfd; ENOTTY not one action
 */
export function* irqSetFromUser(caller: Process, address: number, irqs: number, irqInfo: (index: number) => VfioIrqInfo): Steps<VfioIrqSet> {
  const header = yield* recordFromUser(caller, address, IRQ_SET);
  const { f } = IRQ_SET;
  const argsz = f.argsz.get(header), flags = f.flags.get(header), index = f.index.get(header), start = f.start.get(header), count = f.count.get(header);
  if (index >= irqs) throw new Errno('EINVAL', `interrupt index ${index} of ${irqs}`);
  if (count >= U32_MAX - start) throw new Errno('EINVAL', `interrupts from ${start}, ${count} of them`);
  checkFlags(IRQ_SET.name, flags, VFIO_IRQ_SET_DATA_TYPE_MASK | VFIO_IRQ_SET_ACTION_TYPE_MASK);
  const available = irqInfo(index).count;
  if (start >= available || start + count > available) throw new Errno('EINVAL', `interrupts [${start}, ${start + count}) of index ${index}, which has ${available}`);
  const elementBytes = bytesPerInterrupt(flags);
  if (argsz - IRQ_SET.sizeBytes < count * elementBytes) throw new Errno('EINVAL', `argsz ${argsz} does not hold data of ${count} interrupts`);
  const data = yield* copyFromUser(caller, address + IRQ_SET.sizeBytes, count * elementBytes);
  return { index, start, count, action: actionOf(flags), data: decodeData(caller, flags, data) };
}

function bytesPerInterrupt(flags: number): number {
  switch (flags & VFIO_IRQ_SET_DATA_TYPE_MASK) {
    case VFIO_IRQ_SET_DATA_NONE: return 0;
    case VFIO_IRQ_SET_DATA_BOOL: return 1;
    case VFIO_IRQ_SET_DATA_EVENTFD: return 4;
    default: throw new Errno('EINVAL', `flags ${hex(flags)} name not one kind of data`);
  }
}

/** Not one action is -ENOTTY, where the drivers look for what carries it out (drivers/vfio/pci/vfio_pci_intrs.c). */
function actionOf(flags: number): VfioIrqSet['action'] {
  switch (flags & VFIO_IRQ_SET_ACTION_TYPE_MASK) {
    case VFIO_IRQ_SET_ACTION_MASK: return 'mask';
    case VFIO_IRQ_SET_ACTION_UNMASK: return 'unmask';
    case VFIO_IRQ_SET_ACTION_TRIGGER: return 'trigger';
    default: throw new Errno('ENOTTY', `flags ${hex(flags)} name not one action`);
  }
}

function decodeData(caller: Process, flags: number, data: Uint8Array): VfioIrqSet['data'] {
  switch (flags & VFIO_IRQ_SET_DATA_TYPE_MASK) {
    case VFIO_IRQ_SET_DATA_BOOL: return { kind: 'bool', values: [...data].map((value) => value !== 0) };
    case VFIO_IRQ_SET_DATA_EVENTFD: return { kind: 'eventfd', fds: Array.from({ length: data.length / 4 }, (_, i) => eventFdOf(caller, load32(data, i * 4) | 0)) };
    default: return { kind: 'none' };
  }
}

/** EBADF closed, EINVAL another kind of file. -1 takes the eventfd of an interrupt away. */
function eventFdOf(caller: Process, fd: number): EventFd | undefined {
  if (fd === -1) return undefined;
  if (fd < -1) throw new Errno('EINVAL', `${fd} is no descriptor`);
  const file = caller.file(fd);
  if (!(file instanceof EventFd)) throw new Errno('EINVAL', `descriptor ${fd} is ${file.name}, not an eventfd`);
  return file;
}
