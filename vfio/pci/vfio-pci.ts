/**
 * The vfio-pci driver (drivers/vfio/pci/vfio_pci.c, vfio_pci_core.c): takes functions that an administrator gives it
 * and offers them to VFIO. It does no DMA of its own; who opens the group owns it. Left out: `ids` and
 * `disable_denylist` parameters, SR-IOV by a user's driver.
 */
import { Errno, isErrno } from '../../sim/errno.js';
import type { Scheduler, Steps } from '../../sim/task.js';
import type { Trace } from '../../sim/trace.js';
import type { Device } from '../../host/device.js';
import type { KernelLog } from '../../host/kernel-log.js';
import type { Process } from '../../host/process.js';
import type { PciDriver, PciErrorVote } from '../../host/pci/kernel/drivers.js';
import type { PciFunctionDevice } from '../../host/pci/kernel/function-device.js';
import type { PciCore } from '../../host/pci/kernel/pci-core.js';
import type { PciDevice } from '../../host/pci/kernel/pci-device.js';
import type { IommuGroup } from '../../iommu/core/records.js';
import type { VfioCore } from '../device.js';
import { VfioPciDevice, type ResetSet } from './device.js';
import { affectedFunctions, withHotResetGroups } from './hot-reset.js';
import { PciVfioTrace } from './trace-kinds.js';

/** What the driver asks the IOMMU core: the group of a device. ENODEV without one. */
export interface DeviceGroups {
  groupOf(device: Device): IommuGroup;
}

export interface VfioPciDriverOptions {
  readonly vfio: Pick<VfioCore, 'register' | 'unregister'>;
  readonly bus: PciCore;
  readonly groups: DeviceGroups;
  readonly scheduler: Scheduler;
  readonly log: KernelLog;
  readonly trace?: Trace | undefined;
  /** `vfio-pci.bar-write-through`, `vfio-pci.ats-not-hidden`, `vfio-pci.master-stays-on` */
  readonly defects?: ReadonlySet<string>;
}

export class VfioPciDriver implements PciDriver, ResetSet {
  readonly name = 'vfio-pci';
  /** None: it takes what `driver_override` or `new_id` gives it. */
  readonly ids = [];
  readonly driverManagedDma = true;
  private readonly options: VfioPciDriverOptions;
  private readonly trace: PciVfioTrace;
  private readonly defects: ReadonlySet<string>;
  private readonly instances = new Map<PciDevice, VfioPciDevice>();

  constructor(options: VfioPciDriverOptions) {
    this.options = options;
    this.trace = new PciVfioTrace(options.trace);
    this.defects = options.defects ?? new Set();
  }

  /** The function as VFIO has it; undefined when this driver has not bound it. */
  instance(device: PciDevice): VfioPciDevice | undefined {
    return this.instances.get(device);
  }

  /** EINVAL a bridge; EBUSY a physical function with virtual ones enabled; ENODEV no IOMMU group. */
  // oxlint-disable-next-line require-yield -- PciDriver's signature
  *probe(device: PciDevice): Steps {
    const { bus, groups, vfio, scheduler, log } = this.options;
    const own = bus.own(device);
    if (own.isBridge) throw new Errno('EINVAL', `${own.name} is a bridge`);
    if (own.sriov !== undefined && own.sriov.enabledVfs > 0) {
      log.log('warn', `vfio-pci ${own.name}: Cannot bind to PF with SR-IOV enabled`);
      throw new Errno('EBUSY', `${own.name} has ${own.sriov.enabledVfs} virtual functions enabled, and somebody may use them`);
    }
    const iommuGroup = groups.groupOf(own);
    const instance = new VfioPciDevice({ device: own, bus, scheduler, log, trace: this.trace, resetSet: this, defects: this.defects });
    vfio.register({ device: own, ops: instance, group: { id: iommuGroup.id, iommuGroup } });
    this.instances.set(own, instance);
  }

  /** Waits until the user has let go (C17), also when the function is gone. */
  *remove(device: PciDevice): Steps {
    yield* this.options.vfio.unregister(device);
    this.instances.delete(device);
  }

  // oxlint-disable-next-line require-yield -- PciDriver's signature
  *errorDetected(device: PciDevice): Steps<PciErrorVote> {
    this.instances.get(device)?.errorDetected();
    return 'can-recover';
  }

  // ---- functions that share their reset

  /**
   * Every affected function has to be this driver's, in a group whose descriptor the caller has. EINVAL otherwise and
   * as `withHotResetGroups`; ENODEV on a root bus; ENOTTY something does not come back.
   */
  *hotReset(device: VfioPciDevice, caller: Process, address: number): Steps {
    const { bus } = this.options;
    const affected = affectedFunctions(bus, device.device);
    yield* withHotResetGroups(caller, address, affected.length, (groups) => this.hotResetOf(device, affected, groups));
  }

  private *hotResetOf(device: VfioPciDevice, affected: readonly PciFunctionDevice[], groups: ReadonlySet<number>): Steps {
    const members = this.membersOf(affected);
    if (members === undefined) throw new Errno('EINVAL', `a function on the bus of ${device.name} is in the hands of another driver, or of none`);
    const foreign = members.find((member) => !groups.has(this.options.bus.groupOf(member.device).id));
    if (foreign !== undefined) throw new Errno('EINVAL', `the group of ${foreign.name}, which would be reset too, is not among those given`);
    yield* this.resetTogether(members, device, 'hot');
  }

  /** Only when nobody on the bus is open and one of them could not be reset alone. */
  *resetUnused(device: VfioPciDevice): Steps {
    if (device.device.upstream === undefined || !device.device.present) return;
    const members = this.membersOf(this.options.bus.affectedByBusReset(device.device));
    if (members === undefined || members.some(({ opened }) => opened) || !members.some(({ needsReset }) => needsReset)) return;
    try {
      yield* this.resetTogether(members, device, 'unused');
    } catch (error) {
      if (!isErrno(error)) throw error;
    }
  }

  private *resetTogether(members: readonly VfioPciDevice[], device: VfioPciDevice, cause: 'hot' | 'unused'): Steps {
    let steps = (): Steps => this.resetLocked(members, device, cause);
    for (const member of members) {
      const inner = steps;
      steps = () => member.locked(inner);
    }
    yield* steps();
  }

  /** Nobody opens or closes one of them meanwhile; somebody may have just before. */
  private *resetLocked(members: readonly VfioPciDevice[], device: VfioPciDevice, cause: 'hot' | 'unused'): Steps {
    if (cause === 'unused' && members.some(({ opened }) => opened)) return;
    let steps = (): Steps => this.options.bus.resetBusOf(device.device);
    for (const member of members) {
      const inner = steps;
      steps = () => member.whileUnreachable(inner);
    }
    let done = false;
    try {
      yield* steps();
      done = true;
    } finally {
      for (const member of members) this.trace.reset(member.name, cause, done);
    }
    if (cause === 'unused') for (const member of members) member.needsReset = false;
  }

  /** Undefined when somebody else has one of the functions, or nobody. */
  private membersOf(affected: readonly PciFunctionDevice[]): VfioPciDevice[] | undefined {
    const members = affected.flatMap((other) => this.instances.get(other) ?? []);
    return members.length === affected.length ? members : undefined;
  }
}
