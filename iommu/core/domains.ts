/**
 * Groups and domains (C6, X1, X2, E22–E24): the default domain of each group, domains that a user attaches to a
 * whole group, aux domains beside them, and who owns a group's DMA. Domain contents are the driver's; the core
 * keeps who uses what.
 */
import { assert } from '../../sim/assert.js';
import { PAGE_SIZE } from '../../sim/address.js';
import { Errno } from '../../sim/errno.js';
import type { Steps } from '../../sim/task.js';
import { NO_PASID } from '../../host/pci/dma-port.js';
import { IovaAllocator } from './iova.js';
import type { DomainType, IommuDomain, IommuOps } from './ops.js';
import type { CoreContext } from './options.js';
import { IommuGroup, type DeviceRecord } from './records.js';

/** Owner of a group whose devices have kernel drivers that use the DMA API. */
export const KERNEL_OWNER: object = Object.freeze({ name: 'kernel' });

interface DomainUse {
  readonly ops: IommuOps;
  /** Groups it translates plus devices it is an aux domain of. */
  users: number;
  /** A group's default domain, which lives as long as the group. */
  readonly isDefault: boolean;
}

export class Domains {
  private readonly context: CoreContext;
  private readonly uses = new Map<IommuDomain, DomainUse>();
  /** Domains that somebody allocated and has not freed, without default domains. */
  live = 0;
  private readonly skipUnmapFlush: boolean;

  constructor(context: CoreContext) {
    this.context = context;
    this.skipUnmapFlush = context.defects.has('core.skip-unmap-flush');
  }

  // --- groups -------------------------------------------------------------------------------------------------

  /** The group of that number, made with its default domain when it is the first device's. */
  groupFor(id: number, ops: IommuOps): IommuGroup {
    const { registry, options, scheduler } = this.context;
    const known = registry.groups.get(id);
    if (known !== undefined) {
      if (known.ops !== ops) throw new Errno('EINVAL', `group ${id} is behind ${known.ops.name}, not ${ops.name}`);
      return known;
    }
    const domain = ops.domainAlloc(options.defaultDomain ?? 'dma');
    this.uses.set(domain, { ops, users: 1, isDefault: true });
    const iova = domain.type === 'dma' ? new IovaAllocator(domain.endPage) : undefined;
    const group = new IommuGroup(id, ops, scheduler, domain, iova);
    registry.groups.set(id, group);
    return group;
  }

  /** Attaches a new device to what its group is attached to now. */
  *join(record: DeviceRecord): Steps {
    const { group } = record;
    if (group.devices.length === 0) group.domain = group.defaultDomain;
    if (group.domain !== undefined) yield* this.attachOne(group.domain, record);
    group.devices.push(record);
    for (const { firstPage, endPage } of record.probed.reserved) group.iova?.reserve(firstPage, endPage);
  }

  /** Forgets a device whose context the driver has torn down. */
  leave(record: DeviceRecord): void {
    const { group } = record;
    const index = group.devices.indexOf(record);
    if (index >= 0) group.devices.splice(index, 1);
    this.dropIfEmpty(group);
  }

  /** Frees the default domain of a group without devices. */
  dropIfEmpty(group: IommuGroup): void {
    if (group.devices.length > 0 || this.context.registry.groups.get(group.id) !== group) return;
    if (group.domain !== undefined && group.domain !== group.defaultDomain) this.use(group.domain).users--;
    group.domain = undefined;
    this.uses.delete(group.defaultDomain);
    this.context.registry.groups.delete(group.id);
    group.ops.domainFree(group.defaultDomain);
  }

  // --- domains ------------------------------------------------------------------------------------------------

  alloc(ops: IommuOps, type: DomainType): IommuDomain {
    const domain = ops.domainAlloc(type);
    this.uses.set(domain, { ops, users: 0, isDefault: false });
    this.live++;
    return domain;
  }

  /** @throws Errno EBUSY while it is attached anywhere */
  free(domain: IommuDomain): void {
    const use = this.use(domain);
    if (use.isDefault) throw new Errno('EBUSY', `domain ${domain.id} is the default domain of a group`);
    if (use.users > 0) throw new Errno('EBUSY', `domain ${domain.id} is attached to ${use.users} groups or devices`);
    this.uses.delete(domain);
    this.live--;
    use.ops.domainFree(domain);
  }

  /** See IommuCore.attachGroup. */
  *attach(domain: IommuDomain, group: IommuGroup): Steps {
    yield* group.lock.with(() => this.attachLocked(domain, group));
  }

  private *attachLocked(domain: IommuDomain, group: IommuGroup): Steps {
    const use = this.use(domain);
    if (use.ops !== group.ops) throw new Errno('EINVAL', `domain ${domain.id} is ${use.ops.name}'s, group ${group.id} is behind ${group.ops.name}`);
    if (use.isDefault) throw new Errno('EINVAL', `domain ${domain.id} is the default domain of a group`);
    if (group.domain !== undefined && group.domain !== group.defaultDomain) {
      throw new Errno('EBUSY', `group ${group.id} is attached to domain ${group.domain.id}`);
    }
    for (const record of group.devices) this.refusePasidUsers(record, domain.type);
    yield* this.moveGroup(group, domain);
    use.users++;
  }

  /** X1, E24: a whole device is not given away while somebody uses its PASIDs. */
  private refusePasidUsers({ device, ops, bonds, aux }: DeviceRecord, type: DomainType | 'blocked'): void {
    if (ops.featureEnabled(device, 'AUX') && type === 'unmanaged') {
      throw new Errno('EPERM', `${device.name} has AUX enabled${aux === undefined ? '' : ` and ${aux.size} aux domains`}, so no domain may take the whole device`);
    }
    if (aux !== undefined) throw new Errno('EBUSY', `${device.name} has ${aux.size} aux domains`);
    if (bonds > 0) throw new Errno('EBUSY', `${device.name} is bound to ${bonds} address spaces`);
  }

  /** See IommuCore.detachGroup. */
  *detach(domain: IommuDomain, group: IommuGroup): Steps {
    yield* group.lock.with(() => this.detachLocked(domain, group));
  }

  private *detachLocked(domain: IommuDomain, group: IommuGroup): Steps {
    if (group.domain !== domain || domain === group.defaultDomain) {
      throw new Errno('EINVAL', `group ${group.id} is not attached to domain ${domain.id}`);
    }
    const owned = group.owner !== undefined && group.owner !== KERNEL_OWNER;
    yield* this.moveGroup(group, owned ? undefined : group.defaultDomain);
    this.use(domain).users--;
  }

  /** Attaches every device of the group, or none. */
  private *moveGroup(group: IommuGroup, to: IommuDomain | undefined): Steps {
    const from = group.domain;
    const moved: DeviceRecord[] = [];
    try {
      for (const record of group.devices) {
        yield* this.moveDevice(record, from, to);
        moved.push(record);
      }
    } catch (error) {
      for (const record of moved) yield* this.moveDevice(record, to, from);
      throw error;
    }
    group.domain = to;
  }

  private *moveDevice(record: DeviceRecord, from: IommuDomain | undefined, to: IommuDomain | undefined): Steps {
    if (to !== undefined) yield* this.attachOne(to, record);
    else if (from !== undefined) {
      yield* record.ops.detach(from, record.device);
      this.traceDetach(record, from, NO_PASID);
    }
  }

  private *attachOne(domain: IommuDomain, record: DeviceRecord): Steps {
    yield* record.ops.attach(domain, record.device);
    this.traceAttach(record, domain, NO_PASID);
  }

  /** See IommuCore.map. */
  map(domain: IommuDomain, page: number, physical: number, pages: number, prot: number): void {
    domain.map(page, physical, pages, prot);
    const { trace } = this.context;
    trace.trace.record(trace.map, 0, domain.id, page, physical, pages * PAGE_SIZE);
  }

  /** See IommuCore.unmap. */
  *unmap(domain: IommuDomain, page: number, pages: number): Steps<number> {
    const unmapped = this.unmapWithoutFlush(domain, page, pages);
    if (unmapped > 0) yield* this.flush(domain, page, Math.max(pages, unmapped));
    return unmapped;
  }

  unmapWithoutFlush(domain: IommuDomain, page: number, pages: number): number {
    const unmapped = domain.unmap(page, pages);
    const { trace } = this.context;
    trace.trace.record(trace.unmap, 0, domain.id, page, pages * PAGE_SIZE, unmapped * PAGE_SIZE);
    return unmapped;
  }

  *flush(domain: IommuDomain, page: number, pages: number): Steps {
    if (!this.skipUnmapFlush) yield* this.use(domain).ops.flush(domain, page, pages);
    const { trace } = this.context;
    trace.trace.record(trace.flush, 0, domain.id, page, pages);
  }

  // --- ownership ----------------------------------------------------------------------------------------------

  /** See IommuCore.claimDmaOwner. */
  *claim(group: IommuGroup, owner: object): Steps {
    yield* group.lock.with(() => this.claimLocked(group, owner));
  }

  private *claimLocked(group: IommuGroup, owner: object): Steps {
    if (group.ownerCount > 0) {
      const who = group.owner === KERNEL_OWNER ? 'kernel drivers' : 'another owner';
      throw new Errno('EPERM', `DMA of group ${group.id} belongs to ${who}`);
    }
    if (group.domain !== group.defaultDomain) throw new Errno('EBUSY', `group ${group.id} is attached to domain ${group.domain?.id ?? 'none'}`);
    for (const { device, bonds } of group.devices) {
      if (bonds > 0) throw new Errno('EBUSY', `${device.name} is bound to ${bonds} address spaces`);
    }
    // owned before the first sleep: a kernel driver that comes meanwhile takes no lock
    group.owner = owner;
    group.ownerCount = 1;
    try {
      yield* this.moveGroup(group, undefined);
    } catch (error) {
      group.owner = undefined;
      group.ownerCount = 0;
      throw error;
    }
  }

  /** See IommuCore.releaseDmaOwner. */
  *release(group: IommuGroup, owner: object): Steps {
    yield* group.lock.with(() => this.releaseLocked(group, owner));
  }

  private *releaseLocked(group: IommuGroup, owner: object): Steps {
    if (group.ownerCount === 0 || group.owner !== owner) throw new Errno('EINVAL', `DMA of group ${group.id} is not owned by the caller`);
    if (group.domain !== undefined) throw new Errno('EBUSY', `group ${group.id} is attached to domain ${group.domain.id}`);
    yield* this.moveGroup(group, group.defaultDomain);
    group.owner = undefined;
    group.ownerCount = 0;
  }

  /** See IommuCore.useDefaultDomain. */
  useDefault(group: IommuGroup): void {
    if (group.ownerCount > 0 && group.owner !== KERNEL_OWNER) throw new Errno('EBUSY', `DMA of group ${group.id} belongs to a user`);
    if (group.domain !== group.defaultDomain) throw new Errno('EBUSY', `group ${group.id} is attached to domain ${group.domain?.id ?? 'none'}`);
    group.owner = KERNEL_OWNER;
    group.ownerCount++;
  }

  unuseDefault(group: IommuGroup): void {
    assert(group.owner === KERNEL_OWNER && group.ownerCount > 0, `group ${group.id} has no kernel driver to unuse its default domain`);
    if (--group.ownerCount === 0) group.owner = undefined;
  }

  // --- aux domains --------------------------------------------------------------------------------------------

  /** See IommuCore.auxAttach. */
  *auxAttach(domain: IommuDomain, record: DeviceRecord): Steps {
    yield* record.group.lock.with(() => this.auxAttachLocked(domain, record));
  }

  private *auxAttachLocked(domain: IommuDomain, record: DeviceRecord): Steps {
    const { device, ops } = record;
    const use = this.use(domain);
    if (use.ops !== ops) throw new Errno('EINVAL', `domain ${domain.id} is ${use.ops.name}'s, ${device.name} is behind ${ops.name}`);
    if (!ops.featureEnabled(device, 'AUX')) throw new Errno('EPERM', `AUX is not enabled on ${device.name}`);
    if (domain.type !== 'unmanaged') throw new Errno('EPERM', `an aux domain is unmanaged, domain ${domain.id} is ${domain.type}`);
    const count = record.aux?.get(domain) ?? 0;
    if (count === 0) {
      yield* ops.auxAttach(domain, device);
      use.users++;
      this.traceAttach(record, domain, ops.auxGetPasid(domain, device));
    }
    (record.aux ??= new Map<IommuDomain, number>()).set(domain, count + 1);
  }

  /** See IommuCore.auxDetach. */
  *auxDetach(domain: IommuDomain, record: DeviceRecord): Steps {
    yield* record.group.lock.with(() => this.auxDetachLocked(domain, record, false));
  }

  /** @param all also the attachments others of this device still count on: the device goes */
  *auxDetachLocked(domain: IommuDomain, record: DeviceRecord, all: boolean): Steps {
    const count = record.aux?.get(domain) ?? 0;
    if (count === 0) throw new Errno('EINVAL', `domain ${domain.id} is no aux domain of ${record.device.name}`);
    if (count > 1 && !all) {
      record.aux!.set(domain, count - 1);
      return;
    }
    const pasid = record.ops.auxGetPasid(domain, record.device);
    yield* record.ops.auxDetach(domain, record.device);
    record.aux!.delete(domain);
    if (record.aux!.size === 0) record.aux = undefined;
    this.use(domain).users--;
    this.traceDetach(record, domain, pasid);
  }

  /** @throws Errno EINVAL when the domain has none on this device */
  auxPasid(domain: IommuDomain, record: DeviceRecord): number {
    if (record.aux?.has(domain) !== true) throw new Errno('EINVAL', `domain ${domain.id} is no aux domain of ${record.device.name}`);
    return record.ops.auxGetPasid(domain, record.device);
  }

  private use(domain: IommuDomain): DomainUse {
    const use = this.uses.get(domain);
    if (use === undefined) throw new Errno('EINVAL', `domain ${domain.id} is none of this kernel's`);
    return use;
  }

  private traceAttach(record: DeviceRecord, domain: IommuDomain, pasid: number): void {
    const { trace } = this.context;
    trace.trace.record(trace.attach, 0, record.name, domain.id, trace.trace.intern(domain.type), pasid);
  }

  private traceDetach(record: DeviceRecord, domain: IommuDomain, pasid: number): void {
    const { trace } = this.context;
    trace.trace.record(trace.detach, 0, record.name, domain.id, trace.trace.intern(domain.type), pasid);
  }
}
