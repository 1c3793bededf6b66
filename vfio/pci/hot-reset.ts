/**
 * Reset of everything on a function's bus, as a user asks for it (VFIO_DEVICE_GET_PCI_HOT_RESET_INFO and
 * VFIO_DEVICE_PCI_HOT_RESET, include/uapi/linux/vfio.h; drivers/vfio/pci/vfio_pci_core.c): the user proves with the
 * descriptors of their groups that it owns every function that is affected. Left out: slot resets, proof by device
 * descriptors (IOMMUFD).
 */
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import type { HeldFile, Process } from '../../host/process.js';
import type { PciFunctionDevice } from '../../host/pci/kernel/function-device.js';
import type { PciCore } from '../../host/pci/kernel/pci-core.js';
import { groupOfFile } from '../core/group.js';
import { concatWords } from '../uapi/fields.js';
import { PCI_DEPENDENT_DEVICE, PCI_HOT_RESET, PCI_HOT_RESET_INFO } from '../uapi/device.js';
import { recordFromUser, wordsFromUser, wordsToUser } from '../uapi/user-memory.js';

/** Functions that a bus reset affects. ENODEV on a root bus, which nobody resets. */
export function affectedFunctions(bus: PciCore, device: PciFunctionDevice): readonly PciFunctionDevice[] {
  if (device.upstream === undefined) throw new Errno('ENODEV', `${device.name} is on a root bus, which cannot be reset`);
  return bus.affectedByBusReset(device);
}

/** EINVAL argsz, ENODEV, EPERM a function without group, EFAULT; ENOSPC too little room, with the count in the record. */
export function* hotResetInfo(bus: PciCore, device: PciFunctionDevice, caller: Process, address: number): Steps<number> {
  const record = yield* recordFromUser(caller, address, PCI_HOT_RESET_INFO);
  const { f } = PCI_HOT_RESET_INFO;
  const affected = affectedFunctions(bus, device);
  f.flags.set(record, 0);
  f.count.set(record, affected.length);
  if (f.argsz.get(record) < PCI_HOT_RESET_INFO.sizeBytes + affected.length * PCI_DEPENDENT_DEVICE.sizeBytes) {
    yield* wordsToUser(caller, address, record);
    throw new Errno('ENOSPC', `${affected.length} functions are affected by a reset of ${device.name}'s bus: argsz ${f.argsz.get(record)} does not hold them`);
  }
  const entries = affected.map((other) => PCI_DEPENDENT_DEVICE.encode({ group_id: bus.groupOf(other).id, segment: other.segment, bus: other.bus, devfn: other.devfn }));
  yield* wordsToUser(caller, address, concatWords(record, ...entries));
  return 0;
}

/**
 * Runs `reset` with the numbers of the groups whose descriptors the caller gives; nobody else can open them before it has
 * ended. EINVAL argsz, flags, not 1 to `limit` descriptors, one that is no group; EBADF closed; EFAULT; and what `reset` throws.
 */
export function* withHotResetGroups(caller: Process, address: number, limit: number, reset: (groups: ReadonlySet<number>) => Steps): Steps {
  const record = yield* recordFromUser(caller, address, PCI_HOT_RESET);
  const { f } = PCI_HOT_RESET;
  if (f.flags.get(record) !== 0) throw new Errno('EINVAL', 'a hot reset has no flags');
  const count = f.count.get(record);
  if (count === 0 || count > limit) throw new Errno('EINVAL', `${count} group descriptors for ${limit} functions`);
  const fds = yield* wordsFromUser(caller, address + PCI_HOT_RESET.sizeBytes, count);
  const held: HeldFile[] = [];
  try {
    for (const fd of fds) held.push(caller.hold(fd | 0));
    yield* reset(new Set(held.map(({ file }) => groupOfFile(file).id)));
  } finally {
    for (const file of held) yield* file.put();
  }
}
